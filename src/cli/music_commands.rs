//! Using a trained model of music.

use super::music_facts::{Form, MusicFacts};
use super::options::{in_range, non_negative, positive, whole};
use super::{Outcome, complain, count, error_line, show_notes};
use crate::data::music::{
    Metre, MusicStatistics, Note, Piece, Texture, Tonality, checked_voices, read_midi, write_midi,
    write_musicxml, write_wav,
};
use crate::models::music::MusicModel;
use crate::nn::Sampling;
use crate::plots::{listen_page, music_page, piano_roll};
use crate::rng;
use crate::train::{Composer, Run, say, score_music, write_file};
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use rand::Rng;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Number of pieces composed after training.
const SAMPLES: u64 = 5;
/// Number of bars of a composed piece.
const BARS: usize = 16;
/// Default temperature: freer choices break more rules.
const TEMPERATURE: f64 = 0.5;
const TOP_P: f64 = 0.9;

/// The sub-commands of a model of music.
#[derive(Subcommand)]
pub enum MusicCommand {
    /// Compose a piece: piece.mid, piece.wav, piece.svg (a piano roll) and piece.musicxml
    Sample(SampleCommand),
    /// Add the other voices to a melody, the highest voice: harmonized.mid and others, as for sample
    Harmonize(HarmonizeCommand),
    /// Print the nats per time step of MIDI files
    Score(ScoreCommand),
    /// Write a page that plays a piece while its piano roll moves
    Listen(ListenCommand),
}

/// How to choose notes.
#[derive(Args)]
pub struct ChoiceOptions {
    /// Divisor of the logits: below 1 favours probable notes, 0 always takes the most probable one
    #[arg(long, value_name = "X", default_value_t = TEMPERATURE, value_parser = non_negative)]
    temperature: f64,
    /// Choose from the smallest set of most probable notes with total probability P
    #[arg(long, value_name = "P", default_value_t = TOP_P, value_parser = |text: &str| in_range(text, 0.0..=1.0, "a number from 0 to 1"))]
    top_p: f64,
    /// Seed; the same seed gives the same piece
    #[arg(long, value_name = "N", value_parser = whole::<u64>, default_value_t = 42)]
    seed: u64,
    /// Key, such as C or Eb for major, c or f# for minor [default: the file's, or one of the training pieces]
    #[arg(long, value_name = "KEY")]
    key: Option<Tonality>,
    /// Style: a label of the training pieces [default: any]
    #[arg(long, value_name = "NAME")]
    style: Option<String>,
    /// Folder for the files [default: the run folder]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// The options of `sample`.
#[derive(Args)]
pub struct SampleCommand {
    /// Begin with the notes of a MIDI file
    #[arg(long, value_name = "FILE")]
    prompt: Option<PathBuf>,
    /// Number of bars, including the prompt
    #[arg(long, value_name = "N", default_value_t = BARS, value_parser = |text: &str| in_range(text, 1..=10_000_usize, "a whole number, 1 to 10000"))]
    bars: usize,
    #[command(flatten)]
    choice: ChoiceOptions,
}

/// The options of `harmonize`.
#[derive(Args)]
pub struct HarmonizeCommand {
    /// MIDI file of the melody
    #[arg(value_name = "MELODY")]
    melody: PathBuf,
    /// Number of times that each beat is redrawn
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = whole::<usize>)]
    sweeps: usize,
    #[command(flatten)]
    choice: ChoiceOptions,
}

/// The options of `score`.
#[derive(Args)]
pub struct ScoreCommand {
    /// MIDI files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// The options of `listen`.
#[derive(Args)]
pub struct ListenCommand {
    /// MIDI file [default: the run's last piece.mid]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The page [default: listen.html in the run folder]
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
    /// Number of steps in a quarter note
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = positive)]
    steps_per_quarter: usize,
}

/// A trained model, and the facts that it depends on.
struct Musician<'a> {
    run: &'a Run,
    model: &'a MusicModel,
    facts: &'a MusicFacts,
}

pub(super) fn answer(
    command: &MusicCommand,
    run: &Run,
    model: &MusicModel,
    facts: &MusicFacts,
) -> Result<Outcome> {
    let musician = Musician { run, model, facts };
    match command {
        MusicCommand::Sample(command) => musician.sample(command),
        MusicCommand::Harmonize(command) => musician.harmonize(command),
        MusicCommand::Score(ScoreCommand { files }) => Ok(musician.score(files)),
        MusicCommand::Listen(command) => musician.listen(command),
    }
}

impl Musician<'_> {
    fn composer(&self, choice: &ChoiceOptions) -> Composer<'_> {
        let &ChoiceOptions { temperature, top_p, .. } = choice;
        let sampling = Sampling { temperature, top_k: None, top_p: Some(top_p) };
        Composer { model: self.model, encoding: &self.facts.encoding, sampling }
    }

    /// Returns an empty piece in the requested form.
    ///
    /// Options that are not given take any form of the training pieces.
    fn frame(&self, choice: &ChoiceOptions, name: &str) -> Result<Piece> {
        let ChoiceOptions { key, style, seed, .. } = choice;
        let forms = &self.facts.forms;
        let with_key = |form: &&Form| key.is_none() || form.tonality == *key;
        let with_style = |form: &&Form| style.is_none() || form.style == *style;
        if let Some(key) = key.filter(|_| !forms.iter().any(|form| with_key(&form))) {
            bail!(
                "--key {key}: no training piece has this key; their keys are {}",
                known(forms, |form| form.tonality)
            );
        }
        if let Some(style) = style.as_ref().filter(|_| !forms.iter().any(|form| with_style(&form))) {
            bail!(
                "--style {style}: no training piece has this style; their styles are {}",
                known(forms, |form| form.style.clone())
            );
        }
        let fitting: Vec<&Form> = forms.iter().filter(with_key).filter(with_style).collect();
        let fitting = if fitting.is_empty() { forms.iter().filter(with_key).collect() } else { fitting };
        ensure!(!fitting.is_empty(), "the run describes no training pieces");
        let form = fitting[rng::stream(*seed, "form").random_range(0..fitting.len())];
        Ok(self.empty(form, style.clone(), name))
    }

    fn empty(&self, form: &Form, style: Option<String>, name: &str) -> Piece {
        let encoding = &self.facts.encoding;
        Piece {
            name: name.to_string(),
            steps: vec![],
            voices: match encoding.texture {
                Texture::Voices(voices) => Some(voices),
                Texture::Keys => None,
            },
            steps_per_quarter: encoding.steps_per_quarter,
            metres: form.metre.iter().map(|&metre| (0, metre)).collect(),
            tonality: form.tonality,
            style: style.or_else(|| form.style.clone()),
            tempo: form.tempo,
        }
    }

    /// Reads a MIDI file into the steps of the model, with the key and style that the options give.
    fn read(&self, path: &Path, choice: &ChoiceOptions) -> Result<Piece> {
        let frame = self.frame(choice, "")?;
        let piece = read_noted(path, self.facts.encoding.steps_per_quarter)?;
        let tonality = choice.key.or(piece.tonality).or(frame.tonality);
        Ok(Piece { tonality, style: frame.style, ..piece })
    }

    fn sample(&self, command: &SampleCommand) -> Result<Outcome> {
        let SampleCommand { prompt, bars, choice } = command;
        let beginning = match prompt {
            None => self.frame(choice, "piece")?,
            Some(path) => {
                let name = format!("--prompt {}", path.display());
                let piece = self.facts.encoding.adapt(Piece { name, ..self.read(path, choice)? })?;
                let length = self.steps(&piece, *bars);
                ensure!(
                    piece.len() <= length,
                    "--prompt {}: found {}, but a piece of {} has {length}: choose more with --bars",
                    path.display(),
                    count(piece.len(), "step"),
                    count(*bars, "bar")
                );
                Piece { name: "piece".into(), ..piece }
            }
        };
        let length = self.steps(&beginning, *bars);
        let piece = self.composer(choice).compose(beginning, length, choice.seed)?;
        self.write(&piece, choice.out.as_deref())
    }

    /// Composes a piece from nothing.
    fn compose(&self, name: &str, bars: usize, choice: &ChoiceOptions) -> Result<Piece> {
        let beginning = self.frame(choice, name)?;
        let length = self.steps(&beginning, bars);
        self.composer(choice).compose(beginning, length, choice.seed)
    }

    /// Number of steps in a number of bars, of 4/4 if the piece has no bars.
    fn steps(&self, piece: &Piece, bars: usize) -> usize {
        let metre = piece.metres.last().map_or(Metre { beats: 4, unit: 4 }, |&(_, metre)| metre);
        let start = piece.metres.last().map_or(0, |&(start, _)| start);
        let bars_before = piece.place(start).map_or(0, |(_, bar, _)| bar);
        start + metre.steps(piece.steps_per_quarter) * bars.saturating_sub(bars_before)
    }

    fn harmonize(&self, command: &HarmonizeCommand) -> Result<Outcome> {
        let HarmonizeCommand { melody: path, sweeps, choice } = command;
        let Texture::Voices(voices) = self.facts.encoding.texture else {
            bail!("the model was trained on music without separate voices, which harmonizing needs");
        };
        let melody = highest_voice(self.read(path, choice)?, voices);
        let piece = self.composer(choice).harmonize(&melody, *sweeps, choice.seed)?;
        self.write(&Piece { name: "harmonized".into(), ..piece }, choice.out.as_deref())
    }

    fn score(&self, files: &[PathBuf]) -> Outcome {
        let encoding = &self.facts.encoding;
        let score = |file: &PathBuf| -> Result<f64> {
            let piece = read_noted(file, encoding.steps_per_quarter)?;
            let piece = encoding.adapt(Piece { name: file.display().to_string(), ..piece })?;
            Ok(score_music(self.model, encoding, std::slice::from_ref(&piece))? / piece.len() as f64)
        };
        let mut outcome = Outcome::Done;
        say("nats_per_step\tfile");
        for file in files {
            match score(file) {
                Ok(nats) => say(&format!("{nats:.4}\t{}", file.display())),
                Err(error) => {
                    complain(&error_line(&error));
                    outcome = Outcome::Failed;
                }
            }
        }
        outcome
    }

    fn listen(&self, command: &ListenCommand) -> Result<Outcome> {
        let ListenCommand { file, page, steps_per_quarter } = command;
        let own = self.run.dir().join("piece.mid");
        ensure!(
            file.is_some() || own.exists(),
            "{}: there is no such file: compose a piece first, with music sample",
            own.display()
        );
        let file = file.clone().unwrap_or(own);
        let piece = read_noted(&file, *steps_per_quarter)?;
        let page = page.clone().unwrap_or_else(|| self.run.dir().join("listen.html"));
        write_file(&page, listen_page(&piece).as_bytes())?;
        say(&page.display().to_string());
        Ok(Outcome::Done)
    }

    /// Writes a piece in all formats, and names the files.
    fn write(&self, piece: &Piece, out: Option<&Path>) -> Result<Outcome> {
        let dir = out.unwrap_or(self.run.dir());
        std::fs::create_dir_all(dir)
            .with_context(|| format!("{}: cannot create the folder", dir.display()))?;
        // The sound, which may be too long, comes last.
        type Writer = fn(&Piece) -> Result<Vec<u8>>;
        let files: [(&str, Writer); 4] = [
            ("mid", |piece| Ok(write_midi(piece))),
            ("svg", |piece| Ok(piano_roll(piece).into_bytes())),
            ("musicxml", |piece| Ok(write_musicxml(piece).into_bytes())),
            ("wav", write_wav),
        ];
        for (extension, contents) in files {
            let path = dir.join(format!("{}.{extension}", piece.name));
            write_file(&path, &contents(piece)?)?;
            say(&path.display().to_string());
        }
        Ok(Outcome::Done)
    }
}

/// Composes a piece of a number of bars, in one of the forms of the training pieces.
#[cfg(feature = "playground")]
pub(super) fn compose(
    (run, model, facts): (&Run, &MusicModel, &MusicFacts),
    bars: usize,
    temperature: f64,
    seed: u64,
) -> Result<Piece> {
    let musician = Musician { run, model, facts };
    let choice = ChoiceOptions { temperature, top_p: TOP_P, seed, key: None, style: None, out: None };
    musician.compose("A new piece", bars, &choice)
}

/// Reads a MIDI file, with a note on what does not fit the steps.
fn read_noted(path: &Path, steps_per_quarter: usize) -> Result<Piece> {
    let (piece, report) = read_midi(path, steps_per_quarter)?;
    let note = report.report().map(|report| format!("{}: {report}", path.display()));
    show_notes(note.as_slice());
    Ok(piece)
}

/// Lists the different values that some forms have.
fn known<T: ToString>(forms: &[Form], of: impl Fn(&Form) -> Option<T>) -> String {
    let known: BTreeSet<String> =
        forms.iter().filter_map(|form| of(form).map(|value| value.to_string())).collect();
    if known.is_empty() { "not known".into() } else { known.into_iter().collect::<Vec<_>>().join(", ") }
}

/// Takes the highest notes of `piece` as the first of some voices; the others rest.
fn highest_voice(piece: Piece, voices: usize) -> Piece {
    let mut before: Option<Note> = None;
    let mut steps = vec![];
    for step in 0..piece.len() {
        let highest = match piece.voices {
            Some(_) => piece.steps[step][0],
            None => piece.notes(step).next_back(),
        };
        // A note that a higher one has covered so far starts where it appears.
        let note = highest.map(|note| Note {
            held: note.held && before.is_some_and(|before| before.pitch == note.pitch),
            ..note
        });
        before = note;
        steps.push(std::iter::once(note).chain(std::iter::repeat_n(None, voices - 1)).collect());
    }
    Piece { steps, voices: Some(voices), ..piece }
}

/// Composes some pieces with a trained model, and writes them and their statistics into its run folder.
pub(super) fn show(run: &Run, model: &MusicModel, facts: &MusicFacts, test: &[Piece]) -> Result<()> {
    let musician = Musician { run, model, facts };
    let (mut samples, mut links) = (vec![], vec![]);
    for seed in 0..SAMPLES {
        let choice =
            ChoiceOptions { temperature: TEMPERATURE, top_p: TOP_P, seed, key: None, style: None, out: None };
        let piece = musician.compose(&format!("sample-{}", seed + 1), BARS, &choice)?;
        let name = piece.name.clone();
        write_file(&run.dir().join(format!("{name}.mid")), &write_midi(&piece))?;
        run.write(&format!("{name}.html"), &listen_page(&piece))?;
        links.push((name.clone(), format!("{name}.html")));
        samples.push(piece);
    }
    write_file(&run.dir().join("sample-1.wav"), &write_wav(&samples[0])?)?;
    run.write("sample-1.svg", &piano_roll(&samples[0]))?;
    run.write("sample-1.musicxml", &write_musicxml(&samples[0]))?;
    let voices = checked_voices(test);
    let [data, composed] = [test, &samples].map(|pieces| MusicStatistics::new(pieces, voices));
    if let Some(voices) = voices {
        say(&format!(
            "steps that break a rule of part writing for {}: {:.1}% in the samples, {:.1}% in the test pieces",
            count(voices, "voice"),
            100.0 * composed.any_violation,
            100.0 * data.any_violation
        ));
    }
    run.write("music.html", &music_page(&[("test pieces", data), ("samples", composed)], &links))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::music::chorales;

    #[test]
    fn the_melody_is_the_highest_voice() {
        let piece = chorales(1, 0, 0, 0).train.remove(0);
        let soprano: Vec<_> = piece.steps.iter().map(|notes| notes[0]).collect();
        for piece in [piece.clone(), piece.without_voices()] {
            let melody = highest_voice(piece, 4);
            assert!(
                melody.steps.iter().zip(&soprano).all(|(notes, &note)| *notes == [note, None, None, None])
            );
        }
    }
}
