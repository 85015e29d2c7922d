//! Music: the pieces, their parts, the task, and the test.

use super::images::numbers;
use super::music_commands::{self, MusicCommand};
use super::music_facts::MusicFacts;
use super::options::{Given, TrainOptions, in_range, positive};
use super::parts::Parts;
use super::recipe::{About, AnyBinary, Data, Test, Trained, split_fingerprints};
use super::{
    Outcome, TestSet, UsageError, command_line, count, data_error, note_if_slow, show_notes, sum_of_largest,
    test_error,
};
use crate::data::music::{self, MusicCorpus, Piece, Texture};
use crate::models::music::MusicModel;
use crate::train::{Composition, Epoch, Run, Task, evaluate_music, music_windows};
use anyhow::{Context, Result, ensure};
use candle_core::Device;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::ops::Range;
use std::process::ExitCode;

/// Options that choose how pieces are read and learned.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
pub struct MusicOptions {
    /// How the notes of a step depend on each other
    #[arg(long, value_name = "NAME", value_enum, default_value_t = OutputName::Autoregressive)]
    pub output: OutputName,
    /// Number of units that join a step with the notes already chosen in it (autoregressive)
    #[arg(long, value_name = "N", value_parser = positive, default_value_t = 128)]
    pub note_units: usize,
    /// Number of steps in a quarter note of MIDI files
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = |text: &str| in_range(text, 1..=48_usize, "a whole number, 1 to 48"))]
    pub steps_per_quarter: usize,
    /// Transpose each piece in each epoch by up to N semitones, up or down
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = |text: &str| in_range(text, 0..=24_i8, "a whole number, 0 to 24"))]
    pub transpose: i8,
    /// Maximum number of steps of an example: longer pieces are learned in parts
    #[arg(long, value_name = "N", value_parser = positive, default_value_t = 256)]
    pub window: usize,
}

/// The value of `--output`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputName {
    /// Not at all: one output per key
    Independent,
    /// Each on those chosen before it: voices from the highest, or keys from the lowest
    Autoregressive,
}

impl MusicOptions {
    /// Checks the options that the user gave for a training on the data set `name`.
    ///
    /// # Errors
    /// Fails if one of them has no effect.
    fn check(&self, name: &str, given: &Given) -> Result<()> {
        let is_independent = self.output == OutputName::Independent;
        for (id, is_used, why) in [
            ("note_units", !is_independent, "with --output independent"),
            ("steps_per_quarter", name == "midi", "on other data than MIDI files"),
        ] {
            let option = id.replace('_', "-");
            ensure!(
                is_used || !given.contains(id),
                UsageError(format!("--{option}: has no effect {why}: leave it out"))
            );
        }
        Ok(())
    }
}

/// Pieces of music, divided into parts.
pub struct MusicData {
    options: MusicOptions,
    about: About<MusicFacts>,
    training: Vec<Piece>,
    /// The examples: the number of a training piece, and a range of its steps.
    windows: Vec<(usize, Range<usize>)>,
    validation: Vec<Piece>,
    test: Vec<Piece>,
}

impl Data for MusicData {
    type Model = MusicModel;
    type Options = MusicOptions;
    type Facts = MusicFacts;
    type TestOptions = TestSet;
    type Command = MusicCommand;
    const DATA_SETS: &'static [(&'static [&'static str], &'static str)] = &[
        (&["chorales"], "built in"),
        (&["midi"], ".mid files, in the folders train, val, test or in DIR itself"),
        (&["piano-roll"], "a .json file with lists of pitches per time step under train, val, test"),
    ];
    const NOUN: &'static str = "pieces";

    fn load(
        options: MusicOptions,
        train: &TrainOptions,
        run: Option<(MusicFacts, &TestSet)>,
    ) -> Result<Self> {
        let (facts, test_options) = run.unzip();
        let (name, dir) = TestSet::resolve(test_options, train);
        if facts.is_none() {
            options.check(name, &train.given)?;
        }
        let load = || match &facts {
            None => music::load(name, dir, options.steps_per_quarter, train.train_limit),
            Some(facts) => music::load_test(name, dir, facts.encoding.steps_per_quarter),
        };
        let corpus = note_if_slow("the music is being read or composed", load)
            .map_err(if facts.is_some() { test_error } else { data_error })?;
        let MusicCorpus { train: training, validation, test, mut texture, notes } = corpus;
        show_notes(&notes);
        TestSet::check_split(test_options, train, test.is_some())?;
        let splits = [Some(training), validation, test];
        let fingerprints =
            splits.each_ref().map(|split| split.as_ref().map(|pieces| music::fingerprint(pieces)));
        let sizes = splits.each_ref().map(|split| split.as_ref().map(Vec::len));
        let all: Vec<Piece> = splits.into_iter().flatten().flatten().collect();
        let parts = Parts::new(sizes, |_| 0, train)?;
        if facts.is_none() && dir.is_some() {
            parts.note_repeated(Self::NOUN, |index| &all[index as usize].steps);
        }
        if options.output == OutputName::Independent {
            texture = Texture::Keys;
        }
        let select = |indices: &[u32]| -> Vec<Piece> {
            let pieces = indices.iter().map(|&index| all[index as usize].clone());
            pieces
                .map(|piece| if texture == Texture::Keys { piece.without_voices() } else { piece })
                .collect()
        };
        let [training, validation, test] =
            [&parts.training, &parts.validation, &parts.test].map(|part| select(part));
        let facts = facts.unwrap_or_else(|| MusicFacts::new(&training, texture));
        let test = test.into_iter().map(|piece| facts.encoding.adapt(piece)).collect::<Result<_>>();
        let test = test.with_context(|| format!("data set {name}"))?;
        let windows = music_windows(&training, options.window);
        let [_, validation_size, test_size] = parts.sizes();
        Ok(Self {
            about: About {
                name: name.to_string(),
                sizes: [windows.len() as u64, validation_size, test_size],
                fingerprints: split_fingerprints(fingerprints),
                facts,
            },
            options,
            training,
            windows,
            validation,
            test,
        })
    }

    fn about(&self) -> &About<MusicFacts> {
        &self.about
    }

    /// Number of steps.
    fn largest_batch(&self, batch_size: usize) -> u64 {
        sum_of_largest(self.windows.iter().map(|(_, range)| range.len() as u64), batch_size)
    }

    fn task<'a>(&'a self, model: &'a MusicModel, _device: &'a Device) -> Result<Box<dyn Task + 'a>> {
        Ok(Box::new(Composition {
            model,
            encoding: &self.about.facts.encoding,
            training: &self.training,
            validation: &self.validation,
            transpose: self.options.transpose,
            windows: &self.windows,
        }))
    }

    fn test(&self, model: &MusicModel, _best: Option<&Epoch>, _device: &Device) -> Result<Test> {
        let nats = evaluate_music(model, &self.about.facts.encoding, &self.test)?;
        let steps: usize = self.test.iter().map(Piece::len).sum();
        Ok(Test {
            record: numbers(&[("test_nats", nats)]),
            text: format!("test {nats:.4} nats per time step, over {}", count(steps, "step")),
            ..Test::default()
        })
    }

    fn plot(&self, run: &Run, model: &MusicModel, _test: &Test, _device: &Device) -> Result<()> {
        music_commands::show(run, model, &self.about.facts, &self.test)
    }

    fn answer(command: &MusicCommand, trained: Trained<Self>) -> Result<Outcome> {
        music_commands::answer(command, &trained.run, &trained.model, &trained.facts)
    }

    fn main(binary: &AnyBinary<Self>, arguments: Vec<OsString>) -> ExitCode {
        command_line::main(binary, arguments)
    }
}
