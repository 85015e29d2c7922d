//! The run and the inputs of a command that uses a trained model.

use super::{Outcome, complain, error_line, shell_quoted};
use crate::data::text::windows_1252;
use crate::train::{Run, is_output_open};
use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};

/// The option of every command but `train`.
#[derive(Args)]
pub(super) struct RunOption {
    /// Run: its folder, or its number under runs/ [default: the newest that holds a model]
    #[arg(long, value_name = "RUN")]
    run: Option<PathBuf>,
}

impl RunOption {
    /// Opens the run, and says which one it is unless the user named it.
    pub(super) fn open(&self, binary: &str) -> Result<(Run, Value)> {
        let found = Run::open(binary, self.run.as_deref().map(|run| folder(binary, run)).as_deref())?;
        if self.run.is_none() {
            complain(&format!("note: this uses the newest run, {}", found.0.dir().display()));
        }
        Ok(found)
    }
}

/// The folder of the run that the user named by its path or by its number.
pub(super) fn folder(binary: &str, run: &Path) -> PathBuf {
    let numbered = Path::new("runs").join(binary).join(run);
    let is_number = run.to_str().is_some_and(|run| run.parse::<u64>().is_ok());
    if is_number && numbered.is_dir() { numbered } else { run.to_path_buf() }
}

/// Inputs of a trained model: arguments, or the lines of a file or of standard input.
#[derive(Args)]
pub struct Inputs {
    /// Inputs; - stands for the lines of standard input [default: -]
    #[arg(value_name = "INPUT")]
    inputs: Vec<OsString>,
    /// Read the inputs from the lines of FILE
    #[arg(long, value_name = "FILE", conflicts_with = "inputs")]
    file: Option<PathBuf>,
}

impl Inputs {
    /// The file of `--file`.
    pub(super) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Like [`for_each`](Self::for_each), with text.
    pub(super) fn for_each_text(&self, mut answer: impl FnMut(&str) -> Result<()>) -> Result<Outcome> {
        if let Some(file) = self.inputs.iter().find(|input| Path::new(input).is_file()) {
            let file = Path::new(file);
            let (name, quoted) = (file.display(), shell_quoted(file));
            complain(&format!("note: {name} is taken as text: to read the file, use --file {quoted}"));
        }
        self.for_each(|input| {
            let text = input.to_str();
            answer(text.with_context(|| format!("{}: it is not UTF-8", Path::new(input).display()))?)
        })
    }

    /// Like [`for_each`](Self::for_each), with lines of text as a [`TextStream`](crate::data::TextStream) reads them.
    ///
    /// Only `\n` ends a line. A line that is not UTF-8 is read as Windows-1252, with a note.
    pub(super) fn for_each_text_line(&self, mut answer: impl FnMut(&str) -> Result<()>) -> Result<Outcome> {
        let decode = |line: &[u8]| {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            Ok(String::from_utf8(line.to_vec()).unwrap_or_else(|_| {
                complain("note: this line is not UTF-8, so it is read as Windows-1252");
                windows_1252(line)
            }))
        };
        self.read(decode, |input| answer(&input.to_string_lossy()))
    }

    /// Calls `answer` with each input as soon as it is known.
    ///
    /// An input that fails is named on standard error, and the others are still answered.
    ///
    /// # Errors
    /// Fails if an argument is a run, or the inputs can't be read.
    pub(super) fn for_each(&self, answer: impl FnMut(&OsStr) -> Result<()>) -> Result<Outcome> {
        let decode = |line: &[u8]| {
            let end = line.iter().rposition(|byte| !b"\r\n".contains(byte)).map_or(0, |last| last + 1);
            Ok(std::str::from_utf8(&line[..end]).context("it is not UTF-8")?.to_string())
        };
        self.read(decode, answer)
    }

    fn read(
        &self,
        decode: impl Fn(&[u8]) -> Result<String>,
        mut answer: impl FnMut(&OsStr) -> Result<()>,
    ) -> Result<Outcome> {
        let mut outcome = Outcome::Done;
        let mut next = |place: Option<String>, input: Result<&OsStr>| {
            let result = input.and_then(&mut answer);
            if let Err(error) = match place {
                Some(place) => result.with_context(|| place),
                None => result,
            } {
                complain(&error_line(&error));
                outcome = Outcome::Failed;
            }
            is_output_open()
        };
        if let Some(path) = &self.file {
            let name = path.display().to_string();
            let file = File::open(path).with_context(|| format!("{name}: cannot read it"))?;
            lines(&name, BufReader::new(file), decode, &mut next)?;
            return Ok(outcome);
        }
        self.inputs.iter().try_for_each(|input| check(input))?;
        let default = [OsString::from("-")];
        let inputs = if self.inputs.is_empty() { &default } else { self.inputs.as_slice() };
        for input in inputs {
            let goes_on = match input.to_str() {
                Some("-") => {
                    let stdin = std::io::stdin();
                    if stdin.is_terminal() {
                        complain("note: this reads standard input, one input per line, up to Ctrl-D");
                    }
                    lines("standard input", stdin.lock(), &decode, &mut next)?
                }
                _ => next(None, Ok(input)),
            };
            if !goes_on {
                break;
            }
        }
        Ok(outcome)
    }
}

/// Calls `next` with each line and its place, as soon as it is complete, while `next` returns true.
fn lines(
    name: &str,
    mut reader: impl BufRead,
    decode: impl Fn(&[u8]) -> Result<String>,
    mut next: impl FnMut(Option<String>, Result<&OsStr>) -> bool,
) -> Result<bool> {
    let mut line = vec![];
    for number in 1.. {
        line.clear();
        let place = || format!("{name}: line {number}");
        if reader.read_until(b'\n', &mut line).with_context(place)? == 0 {
            break;
        }
        let text = decode(&line);
        if !next(Some(place()), text.as_ref().map(OsStr::new).map_err(|error| anyhow!("{error:#}"))) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Checks that an argument is not a run, which belongs to `--run`.
fn check(input: &OsStr) -> Result<()> {
    let path = Path::new(input);
    let name = path.display();
    let is_run = path.join("config.json").is_file();
    ensure!(!is_run, "{name}: this is a run folder: name it with --run {}", shell_quoted(path));
    let relative = path.strip_prefix(".").unwrap_or(path);
    let is_under_runs = relative.starts_with("runs") && relative.components().count() > 1;
    ensure!(
        path.exists() || !is_under_runs,
        "{name}: there is no such run or file: name the run with --run RUN"
    );
    Ok(())
}
