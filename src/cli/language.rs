//! Language modelling: the text, its parts, and the test.

use super::images::numbers;
use super::language_commands::{self, LanguageCommand, TrainedModel};
use super::options::{TrainOptions, fraction, positive};
use super::recipe::{About, AnyBinary, Data, Test, Trained};
use super::text::{check_vocabulary, note_unknown_count, noun};
use super::{Outcome, TestSet, command_line, count, data_error, is_place_of, note_moved, show_notes};
use crate::data::{DataError, Level, TextStream, TokenWindows, Vocabulary, text};
use crate::models::language_model::LanguageModel;
use crate::train::{Epoch, LanguageModelling, LanguageModellingConfig, Task, Windowing, evaluate_text};
use anyhow::{Result, anyhow, bail, ensure};
use candle_core::Device;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};
use std::ffi::OsString;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options that choose a text, its tokens and its parts.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
pub struct LanguageOptions {
    /// Learn the text in FILE, of any size
    #[arg(long, value_name = "FILE", conflicts_with_all = ["dataset", "data_dir"])]
    pub text: Option<PathBuf>,
    /// Kind of tokens
    #[arg(long, value_name = "NAME", value_enum, default_value_t = Level::Char)]
    pub level: Level,
    /// Treat tokens that occur less than N times in the training part as unknown
    #[arg(long, value_name = "N", value_parser = positive, default_value_t = 1)]
    pub min_count: usize,
    /// Treat all but the N most frequent tokens as unknown
    #[arg(long, value_name = "N", value_parser = positive)]
    pub vocab_size: Option<usize>,
    /// Fraction of the text for validation, before the test part
    #[arg(long, value_name = "X", value_parser = fraction::<f64>, default_value_t = 0.05)]
    pub validation_fraction: f64,
    /// Fraction of the text for testing, at its end
    #[arg(long, value_name = "X", value_parser = fraction::<f64>, default_value_t = 0.05)]
    pub test_fraction: f64,
    /// Number of steps that gradients flow back over
    #[arg(long, value_name = "N", value_parser = positive, default_value_t = 50)]
    pub window: usize,
}

/// Options of `eval` that choose a text.
#[derive(Args)]
pub struct TestText {
    /// Test on all of FILE, or on its test part if the run was trained on it [default: that part]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["dataset", "data_dir"])]
    text: Option<PathBuf>,
    #[command(flatten)]
    set: TestSet,
}

/// A text, split into a training, a validation and a test part, in this order.
pub struct LanguageData {
    text: TextStream,
    about: About<Vocabulary>,
    training: Range<u64>,
    validation: Range<u64>,
    test: Range<u64>,
    windowing: Windowing,
    seed: u64,
}

impl LanguageData {
    fn new(
        text: TextStream,
        facts: Vocabulary,
        [training, validation, test]: [Range<u64>; 3],
        windowing: Windowing,
        seed: u64,
    ) -> Self {
        let sizes = [&training, &validation, &test].map(|part| part.end - part.start);
        let (name, fingerprints) = (text.name().to_string(), json!({ "text": text.fingerprint() }));
        let about = About { name, sizes, fingerprints, facts };
        Self { text, about, training, validation, test, windowing, seed }
    }

    /// Whether there is a test part: a token to read, and one to predict.
    fn has_test(&self) -> bool {
        self.test.end - self.test.start >= 2
    }

    /// The test loss in nats per token; none if there is no test part.
    fn test_loss(&self, model: &LanguageModel, device: &Device) -> Result<Option<f64>> {
        if !self.has_test() {
            return Ok(None);
        }
        let Self { text, about, test, windowing, .. } = self;
        evaluate_text(model, &about.facts, text, test.clone(), *windowing, device).map(Some)
    }
}

/// Opens the text that a recipe chose.
fn open(options: &LanguageOptions, train: &TrainOptions) -> Result<TextStream> {
    let text =
        match &options.text {
            Some(path) => TextStream::open(path, options.level)?,
            None => text::load_stream(&train.dataset, train.data_dir.as_deref(), options.level).map_err(
                |error| match error.downcast_ref() {
                    Some(DataError::UnknownName { .. } | DataError::BuiltIn { .. }) => {
                        anyhow!("{error}; read any file with --text FILE")
                    }
                    _ => data_error(error),
                },
            )?,
        };
    show_notes(&text.notes);
    Ok(text)
}

/// The training, validation and test part of `tokens` tokens.
fn split(tokens: u64, options: &LanguageOptions, train: &TrainOptions) -> Result<[Range<u64>; 3]> {
    let of = |fraction: f64| (fraction * tokens as f64).round() as u64;
    let (validation, test) = (of(options.validation_fraction), of(options.test_fraction));
    let Some(training) = tokens.checked_sub(validation + test).filter(|&left| left > 0) else {
        bail!(
            "--validation-fraction {} and --test-fraction {}: nothing is left for training",
            options.validation_fraction,
            options.test_fraction
        );
    };
    let used = train.train_limit.map_or(training, |limit| training.min(limit as u64));
    Ok([0..used, training..training + validation, training + validation..tokens])
}

/// How to cut `tokens` training tokens, in smaller windows than by default if necessary.
///
/// That is so if the tokens do not fill a default window of every stream.
///
/// # Errors
/// Fails if they do not fill a window that the user chose.
fn windowing(tokens: u64, options: &LanguageOptions, train: &TrainOptions) -> Result<Windowing> {
    let wanted = Windowing { streams: train.batch_size, window: options.window };
    let mut windowing = wanted;
    let is_short =
        |windowing: Windowing| TokenWindows::steps(tokens, windowing.streams) < windowing.window as u64;
    ensure!(
        !train.given.contains("window") || !is_short(Windowing { streams: 1, ..wanted }),
        "--window {}: the training part has only {}, expected at least one more than the window",
        wanted.window,
        count(tokens as usize, "token")
    );
    if is_short(windowing) && !train.given.contains("batch_size") {
        windowing.streams = (tokens.saturating_sub(1) as usize / wanted.window).clamp(1, wanted.streams);
    }
    if is_short(windowing) && !train.given.contains("window") {
        windowing.window = (TokenWindows::steps(tokens, windowing.streams) as usize).clamp(1, wanted.window);
    }
    if windowing != wanted {
        show_notes(&[format!(
            "the text is short: it is read in windows of {} in {} at once, not {} in {}",
            windowing.window,
            count(windowing.streams, "stream"),
            wanted.window,
            wanted.streams
        )]);
    }
    Ok(windowing)
}

impl Data for LanguageData {
    type Model = LanguageModel;
    type Options = LanguageOptions;
    type Facts = Vocabulary;
    type TestOptions = TestText;
    type Command = LanguageCommand;
    const DATA_SETS: &'static [(&'static [&'static str], &'static str)] =
        &[(&["source"], "built in"), (&["tiny-shakespeare"], "input.txt; or a download")];
    const NOUN: &'static str = "tokens";
    const UNIT: &'static str = "tokens";

    fn load(
        options: LanguageOptions,
        train: &TrainOptions,
        run: Option<(Vocabulary, &TestText)>,
    ) -> Result<Self> {
        let Some((vocabulary, other)) = run else {
            let text = open(&options, train)?;
            let parts = split(text.len(), &options, train)?;
            let windowing = windowing(parts[0].end, &options, train)?;
            let vocabulary = text.vocabulary(parts[0].clone(), options.min_count, options.vocab_size)?;
            check_vocabulary(vocabulary.words().next().is_none(), options.min_count)?;
            return Ok(Self::new(text, vocabulary, parts, windowing, train.seed));
        };
        let windowing = Windowing { streams: train.batch_size, window: options.window };
        let TestText { text: file, set } = other;
        let is_own = match (file, &options.text) {
            (Some(file), own) => is_place_of(Some(file), own.as_deref()),
            (None, Some(_)) => set.dataset.is_none() && set.data_dir.is_none(),
            (None, None) => TestSet::is_own(Some(set), train),
        };
        match file {
            Some(file) => note_moved(Some(file), options.text.as_deref()),
            None if is_own => TestSet::note_moved(Some(set), train),
            None => {}
        }
        let (dataset, data_dir) = TestSet::resolve(Some(set), train);
        let (dataset, data_dir) = (dataset.to_string(), data_dir.map(Path::to_path_buf));
        let train = &TrainOptions { dataset, data_dir, ..train.clone() };
        let own_file = options.text.clone().filter(|_| is_own);
        let options = LanguageOptions { text: file.clone().or(own_file), ..options };
        let text = open(&options, train)?;
        let test = match is_own {
            true => split(text.len(), &options, train)?[2].clone(),
            false => 0..text.len(),
        };
        let data = Self::new(text, vocabulary, [0..0, 0..0, test], windowing, train.seed);
        ensure!(
            data.has_test(),
            "{}: found {} to test on, expected at least 2: give another text with --text FILE",
            data.about.name,
            count(data.about.sizes[2] as usize, "token")
        );
        Ok(data)
    }

    fn about(&self) -> &About<Vocabulary> {
        &self.about
    }

    fn batch_size(&self, _train: &TrainOptions) -> usize {
        self.windowing.streams
    }

    fn largest_batch(&self, batch_size: usize) -> u64 {
        (batch_size as u64).saturating_mul(self.windowing.window as u64)
    }

    fn note_unknown(&self) -> Result<()> {
        let Self { text, about, test, .. } = self;
        if self.has_test() {
            let unknown = text.count_unknown(test.clone(), &about.facts)?;
            note_unknown_count(unknown, test.end - test.start, noun(text.level()), &[]);
        }
        Ok(())
    }

    fn task<'a>(&'a self, model: &'a LanguageModel, device: &'a Device) -> Result<Box<dyn Task + 'a>> {
        Ok(Box::new(LanguageModelling::new(LanguageModellingConfig {
            model,
            vocabulary: &self.about.facts,
            text: &self.text,
            training: self.training.clone(),
            validation: self.validation.clone(),
            windowing: self.windowing,
            seed: self.seed,
            device,
        })?))
    }

    fn test(&self, model: &LanguageModel, best: Option<&Epoch>, device: &Device) -> Result<Test> {
        let level = self.text.level();
        let test = self.test_loss(model, device)?;
        let Some(best) = best else {
            let text = test.map(|loss| in_all_units(loss, level)).unwrap_or_default();
            return Ok(Test { text, ..Test::default() });
        };
        let losses = [("train", Some(best.train_loss)), ("val", Some(best.validation.loss)), ("test", test)];
        let (mut record, mut lines) = (Map::new(), vec![]);
        for (part, loss) in losses.into_iter().filter_map(|(part, loss)| Some((part, loss?))) {
            record.extend(numbers(&[
                (&format!("{part}_loss"), loss),
                (&format!("{part}_bits"), loss / std::f64::consts::LN_2),
                (&format!("{part}_perplexity"), libm::exp(loss)),
            ]));
            lines.push(format!("{part:<5} {}", in_all_units(loss, level)));
        }
        Ok(Test { record, text: lines.join("\n"), ..Test::default() })
    }

    fn answer(command: &LanguageCommand, trained: Trained<Self>) -> Result<Outcome> {
        let level = trained.settings.data_options()?.level;
        let Trained { run, facts: vocabulary, model, device, .. } = &trained;
        language_commands::answer(command, &TrainedModel { run, model, vocabulary, level, device })
    }

    fn main(binary: &AnyBinary<Self>, arguments: Vec<OsString>) -> ExitCode {
        command_line::main(binary, arguments)
    }
}

/// A mean loss in nats and bits per token, and as a perplexity.
fn in_all_units(loss: f64, level: Level) -> String {
    let token = match level {
        Level::Char => "character",
        Level::Word => "word",
    };
    let bits = loss / std::f64::consts::LN_2;
    format!("{loss:.4} nats per {token}, {bits:.4} bits, perplexity {:.3}", libm::exp(loss))
}
