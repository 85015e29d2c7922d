//! The program that all binaries share: options, training, evaluation, prediction, errors, exit codes.
//!
//! A binary implements [`Binary`] and [`Recipe`] for its options and calls [`main`]. The recipe names a kind of data:
//! [`ImageData`], [`SentenceData`], [`TaggingData`], [`LanguageData`], [`TranslationData`] or [`MusicData`]. [`Data`] has
//! no implementations outside this crate: a program for other data implements [`train::Task`](crate::train::Task).
//!
//! A complete binary: `wide --hidden 500 --epochs 3` trains, and `wide predict digit.png` uses the result. It needs the crates
//! `clap` and `serde` with their features `derive`.
//!
//! ```no_run
//! use candle_textbook::cli::{self, Binary, ImageData, ImageFacts, ImageOptions, Recipe, TrainOptions};
//! use candle_textbook::models::ImageModel;
//! use candle_textbook::models::mlp::{Config, Mlp};
//! use candle_textbook::nn::{Activation, InitScheme, VarBuilder};
//! use clap::Args;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Clone, Args, Serialize, Deserialize)]
//! struct Settings {
//!     /// Number of hidden units
//!     #[arg(long, value_name = "N", value_parser = cli::positive, default_value_t = 1000)]
//!     hidden: usize,
//!     #[command(flatten)]
//!     #[serde(flatten)]
//!     train: TrainOptions,
//! }
//!
//! impl Binary for Settings {
//!     const NAME: &'static str = "wide";
//!     const ABOUT: &'static str = "A wide network classifies digits";
//!
//!     fn train_defaults() -> TrainOptions {
//!         TrainOptions { epochs: 5, ..TrainOptions::default() }
//!     }
//! }
//!
//! impl Recipe for Settings {
//!     type Data = ImageData;
//!
//!     fn train_options(&self) -> &TrainOptions {
//!         &self.train
//!     }
//!
//!     fn data_options(&self) -> anyhow::Result<ImageOptions> {
//!         Ok(ImageOptions::default())
//!     }
//!
//!     fn model(&self, images: &ImageFacts, vb: VarBuilder) -> candle_core::Result<Box<dyn ImageModel>> {
//!         let (channels, height, width) = images.shape;
//!         let sizes = vec![channels * height * width, self.hidden, images.classes.len()];
//!         let (activation, init) = (Activation::Relu, InitScheme::PyTorch);
//!         Ok(Box::new(Mlp::new(&Config { sizes, activation, init, dropout: 0.0 }, vb)?))
//!     }
//!
//!     fn activations(&self, _images: &ImageFacts) -> u64 {
//!         self.hidden as u64
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     cli::main::<Settings>()
//! }
//! ```

mod command_line;
mod comparison;
pub mod degradation;
mod flow;
mod folds;
mod gradient_flow;
mod image_plots;
mod images;
mod inputs;
mod language;
mod language_commands;
mod memory;
mod music;
mod music_commands;
mod music_facts;
mod optimizer;
mod options;
mod parts;
#[cfg(feature = "playground")]
pub mod playground;
mod process;
mod progress;
mod recipe;
mod record;
mod recurrent;
mod report;
mod runs;
mod sentences;
mod settings;
mod tagging;
mod text;
mod together;
mod translation;
mod translation_commands;
mod translation_options;

pub use comparison::compare_by_length;
pub use folds::cross_validation;
pub use images::{Augment, ImageCommand, ImageData, ImageFacts, ImageOptions, Normalise};
pub use inputs::Inputs;
pub use language::{LanguageData, LanguageOptions, TestText};
pub use language_commands::LanguageCommand;
pub use music::{MusicData, MusicOptions, OutputName};
pub use music_commands::MusicCommand;
pub use music_facts::MusicFacts;
pub use options::{
    Given, MOST_LAYERS, MachineOptions, OptimizerName, ScheduleName, TrainOptions, fraction, in_range,
    layers, non_negative, positive, positive_number, whole,
};
pub use process::{STOP, catch_interrupts, end_at_once, on_threads};
pub use recipe::{
    About, AnyBinary, AnyRecipe, Binary, Data, Experiment, Facts, Recipe, Saved, Test, Trained, Training,
};
pub use recurrent::{CellName, RecurrentClassifier, RecurrentRecipe, recurrent_activations};
pub use sentences::{SentenceCommand, SentenceData, SentenceOptions, SentenceTest, TextOptions};
pub use tagging::TaggingData;
pub use text::{TextData, TextFacts, WordOptions};
pub use translation::{TranslationData, TranslationTest};
pub use translation_commands::{TranslateCommand, TranslationCommand};
pub use translation_options::{ScoreName, TokenLevel, TranslationFacts, TranslationOptions};

use crate::data::{DataError, count};
use crate::train::{Run, check_output, say};
use clap::{ArgMatches, Args, Subcommand};
use settings::with_negative_numbers;
use std::ffi::OsStr;
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// A mistake in the options that shows only when all of them are known. The exit code is 2, as for clap's errors.
#[derive(Debug)]
pub struct UsageError(pub String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// How a program ended without an error.
pub enum Outcome {
    /// It finished.
    Done,
    /// A signal stopped it.
    Interrupted,
    /// Some inputs failed, each with its own message.
    Failed,
}

/// Runs the binary `B` on the process's arguments.
///
/// Errors are one line on standard error. The exit code is 0 for success, 1 for an error, 2 for wrong usage, and 128
/// plus the number of the signal after one: 130 after Ctrl-C, 143 after TERM, 129 after HUP.
pub fn main<B: Binary>() -> ExitCode {
    B::Data::main(&AnyBinary::new::<B>(), std::env::args_os().collect())
}

/// Runs a program without a [`Recipe`]: parses the process's arguments with `command`, and calls `run`.
///
/// Errors and exit codes are the same as for [`main`]. If a launcher has started several processes, the first does the
/// work.
pub fn program(command: clap::Command, run: fn(&ArgMatches) -> anyhow::Result<Outcome>) -> ExitCode {
    let command = command.mut_args(with_negative_numbers);
    let command = command.mut_subcommands(|command| command.mut_args(with_negative_numbers));
    finish(command.try_get_matches(), &|matches| match together::is_silent() {
        true => Ok(Outcome::Done),
        false => run(matches).map_err(data_error),
    })
}

fn finish(
    matches: Result<ArgMatches, clap::Error>,
    run: &dyn Fn(&ArgMatches) -> anyhow::Result<Outcome>,
) -> ExitCode {
    process::let_large_writes_fail();
    together::silence_others();
    let matches = match matches {
        Ok(matches) => matches,
        Err(error) => {
            let Some(message) = command_line::usage(&error) else { return shown(error.print()) };
            complain(&message);
            return ExitCode::from(2);
        }
    };
    let outcome = run(&matches).and_then(|outcome| check_output().map(|()| outcome));
    match outcome {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::FAILURE,
        Ok(Outcome::Interrupted) => ExitCode::from(process::interrupted_code()),
        Err(error) => {
            complain(&error_line(&error));
            ExitCode::from(error_code(&error))
        }
    }
}

/// The exit code after an error.
fn error_code(error: &anyhow::Error) -> u8 {
    if error.is::<UsageError>() { 2 } else { 1 }
}

/// The exit code after the help or the version was printed.
fn shown(result: std::io::Result<()>) -> ExitCode {
    match result {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            complain(&format!("error: standard output: cannot write it: {error}"));
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// The message of an error as one line.
fn error_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    // Candle appends a backtrace.
    let message = text.split("\n   0: ").next().unwrap_or_default();
    // The name of a file may have line breaks.
    format!("error: {}", message.trim_end().replace('\n', "\\n"))
}

/// Whether `path` is the place of the data that a run found at `recorded`, or [may have become](has_moved) it.
fn is_place_of(path: Option<&Path>, recorded: Option<&Path>) -> bool {
    let (Some(from), Some(to)) = (recorded, path) else { return path == recorded };
    has_moved(from, to) || from == to || from.canonicalize().ok() == to.canonicalize().ok()
}

/// Whether there is something at `to`, and nothing at `from` any more.
fn has_moved(from: &Path, to: &Path) -> bool {
    to.exists() && !from.exists()
}

/// Notes that the run's data are taken from `path` if there is nothing at `recorded` any more.
fn note_moved(path: Option<&Path>, recorded: Option<&Path>) {
    if let (Some(path), Some(recorded)) = (path, recorded)
        && has_moved(recorded, path)
    {
        let (path, recorded) = (path.display(), recorded.display());
        show_notes(&[format!("{path}: taken for the run's data, which is no longer at {recorded}")]);
    }
}

/// Options of `eval` that choose a data set.
#[derive(Args)]
pub struct TestSet {
    /// Data set to test on [default: the one the run was trained on]
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,
    /// Read the data set's files from DIR; without it, they are built in or downloaded
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl TestSet {
    /// Name and folder of the data set to read: from `test`, or else from `train`.
    fn resolve<'a>(test: Option<&'a Self>, train: &'a TrainOptions) -> (&'a str, Option<&'a Path>) {
        let own = train.data_dir.as_deref();
        let Some(Self { dataset, data_dir }) = test else { return (&train.dataset, own) };
        let name = dataset.as_ref().unwrap_or(&train.dataset);
        (name, data_dir.as_deref().or(own.filter(|_| *name == train.dataset)))
    }

    /// Whether [`resolve`](Self::resolve) returns the data set of `train`.
    fn is_own(test: Option<&Self>, train: &TrainOptions) -> bool {
        let (name, dir) = Self::resolve(test, train);
        name == train.dataset && is_place_of(dir, train.data_dir.as_deref())
    }

    /// Checks that the data set has a test split, unless the run was trained on it.
    ///
    /// In that case drawing one again gives the examples that training left out.
    fn check_split(test: Option<&Self>, train: &TrainOptions, has_test: bool) -> anyhow::Result<()> {
        let (name, dir) = Self::resolve(test, train);
        let place = dir.map_or_else(|| format!("data set {name}"), |dir| dir.display().to_string());
        if !has_test {
            anyhow::ensure!(
                Self::is_own(test, train),
                "{place}: no test split, so there is nothing to test this model on"
            );
            Self::note_moved(test, train);
        }
        Ok(())
    }

    /// Like [`note_moved`](note_moved()), for the data set that [`is_own`](Self::is_own).
    fn note_moved(test: Option<&Self>, train: &TrainOptions) {
        note_moved(Self::resolve(test, train).1, train.data_dir.as_deref());
    }
}

/// The sub-command of models that only predict.
#[derive(Subcommand)]
pub enum Predict {
    /// Predict your own input, with probabilities
    Predict(Inputs),
}

/// The `count` most probable classes, most probable first, in words.
fn most_probable(classes: &[String], probabilities: &[f32], count: usize) -> String {
    let mut ranked: Vec<(&String, &f32)> = classes.iter().zip(probabilities).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(a.1));
    let class = |(class, probability): &(&String, &f32)| format!("{class} ({:.2}%)", 100.0 * **probability);
    ranked.iter().take(count).map(class).collect::<Vec<_>>().join("  ")
}

/// Writes a picture into the folder of `run`, and prints its path.
fn write_drawing(run: &Run, name: &str, svg: &str) -> anyhow::Result<()> {
    run.write(name, svg)?;
    say(&format!("drawn: {}", run.dir().join(name).display()));
    Ok(())
}

/// The sum of the `count` largest of `lengths`.
fn sum_of_largest(lengths: impl Iterator<Item = u64>, count: usize) -> u64 {
    let mut lengths: Vec<u64> = lengths.collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    lengths.iter().take(count).sum()
}

/// Whether `output` shows colours.
fn in_colour(output: &impl IsTerminal) -> bool {
    let [no_color, term] = ["NO_COLOR", "TERM"].map(std::env::var_os);
    output.is_terminal() && allows_colour(no_color.as_deref(), term.as_deref())
}

/// Whether `NO_COLOR` and `TERM`, with these values, allow colours on a terminal.
fn allows_colour(no_color: Option<&OsStr>, term: Option<&OsStr>) -> bool {
    no_color.is_none_or(OsStr::is_empty) && term.is_none_or(|term| term != "dumb")
}

/// Writes a line to standard error, which may be closed already, unless only process 0 prints.
fn complain(line: &str) {
    if together::is_silent() {
        return;
    }
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A path as a shell reads it back.
fn shell_quoted(path: &Path) -> String {
    let Some(text) = path.to_str() else {
        let quoted = |&byte: &u8| match byte {
            b'\\' | b'\'' | 0x7f.. | ..b' ' => format!("\\{byte:03o}"),
            _ => char::from(byte).to_string(),
        };
        let bytes = path.as_os_str().as_encoded_bytes();
        return format!("$'{}'", bytes.iter().map(quoted).collect::<String>());
    };
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+=:,@%".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_string(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

/// The error about a path that `config.json` can't hold.
fn unrecordable(path: &Path) -> String {
    format!("{}: the path is not UTF-8, which a run cannot record: rename it", path.display())
}

/// Adds the options that help to an error of loading a data set.
fn data_error(error: anyhow::Error) -> anyhow::Error {
    let remedy = match error.downcast_ref() {
        Some(DataError::UnknownName { .. }) => "choose one with --dataset NAME",
        Some(DataError::BuiltIn { .. }) => {
            "leave out --data-dir, or choose the format of your data with --dataset NAME"
        }
        Some(DataError::FilesNeeded { .. }) => {
            "give its files with --data-dir DIR, or choose another with --dataset NAME"
        }
        Some(DataError::Languages { .. }) => "choose them with --source-lang and --target-lang",
        Some(DataError::Columns { .. }) => "choose them with --label-column and --text-column",
        None => return error,
    };
    anyhow::anyhow!("{error:#}; {remedy}")
}

/// Like [`data_error`], for the test of a run, whose languages are fixed.
fn test_error(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref() {
        Some(DataError::Languages { .. }) => error,
        _ => data_error(error),
    }
}

/// Calls `work`, and prints on a terminal what is happening if it takes some seconds.
fn note_if_slow<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let (done, is_done) = mpsc::channel::<()>();
    let note = format!("note: {what} ..");
    thread::spawn(move || {
        let is_slow = is_done.recv_timeout(Duration::from_secs(3)) == Err(RecvTimeoutError::Timeout);
        if is_slow && std::io::stderr().is_terminal() {
            complain(&note);
        }
    });
    let result = work();
    drop(done);
    result
}

/// Shows notes about the data's files.
fn show_notes(notes: &[String]) {
    notes.iter().for_each(|note| complain(&format!("note: {note}")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_variable_allows_colours_and_a_dumb_terminal_does_not() {
        let allows = |no_color: &str, term: &str| allows_colour(Some(no_color.as_ref()), Some(term.as_ref()));
        assert!(allows_colour(None, None) && allows("", "xterm"));
        assert!(!allows("1", "xterm") && !allows("", "dumb"));
    }

    #[test]
    fn an_error_is_one_line_with_the_whole_name_of_a_file_and_no_backtrace() {
        let inner = anyhow::anyhow!("no such file\n   0: a frame\n   1: another\n");
        assert_eq!(error_line(&inner.context("a\nb.png")), "error: a\\nb.png: no such file");
    }

    #[test]
    fn paths_are_quoted_for_the_shell_where_they_need_it() {
        for (path, quoted) in [
            ("runs/lenet/1", "runs/lenet/1"),
            ("my run", "'my run'"),
            ("it's", r"'it'\''s'"),
            ("größe", "größe"),
        ] {
            assert_eq!(shell_quoted(Path::new(path)), quoted);
        }
        #[cfg(unix)]
        {
            use std::os::unix::ffi::OsStrExt;
            let path = Path::new(OsStr::from_bytes(b"a b's/\xe9.png"));
            assert_eq!(shell_quoted(path), r"$'a b\047s/\351.png'");
        }
    }
}
