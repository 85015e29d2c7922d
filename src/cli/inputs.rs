//! The run and the inputs of a command that uses a trained model.

use super::{Outcome, complain, error_line, shell_quoted, show_notes};
use crate::data::text::{LiveLines, TextFile};
use crate::train::{Run, is_output_open};
use anyhow::{Context, Result, ensure};
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
    /// Read the inputs from the lines of FILE; - stands for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "inputs")]
    file: Option<PathBuf>,
}

impl Inputs {
    /// The file of `--file`, unless it is standard input or a pipe, which are read as they come.
    pub(super) fn file(&self) -> Option<&Path> {
        let is_pipe = |path: &Path| path.exists() && !path.is_file() && !path.is_dir();
        self.file.as_deref().filter(|path| *path != Path::new("-") && !is_pipe(path))
    }

    /// Like [`for_each`](Self::for_each), with text.
    pub(super) fn for_each_text(&self, mut answer: impl FnMut(&str) -> Result<()>) -> Result<Outcome> {
        self.for_each_line(|line| answer(line.trim_end_matches('\r')))
    }

    /// Like [`for_each`](Self::for_each), with text of which only `\n` ends a line.
    pub(super) fn for_each_line(&self, mut answer: impl FnMut(&str) -> Result<()>) -> Result<Outcome> {
        if let Some(file) = self.inputs.iter().find(|input| Path::new(input).is_file()) {
            let file = Path::new(file);
            let (name, quoted) = (file.display(), shell_quoted(file));
            complain(&format!("note: {name} is taken as text: to read the file, use --file {quoted}"));
        }
        self.read(|input| {
            let text = input.to_str();
            answer(text.with_context(|| format!("{}: it is not UTF-8", Path::new(input).display()))?)
        })
    }

    /// Calls `answer` with each input as soon as it is known.
    ///
    /// An input that fails is named on standard error, and the others are still answered.
    ///
    /// # Errors
    /// Fails if an argument is a run, or the inputs can't be read.
    pub(super) fn for_each(&self, mut answer: impl FnMut(&OsStr) -> Result<()>) -> Result<Outcome> {
        self.read(|input| match input.to_str() {
            Some(text) => answer(OsStr::new(text.trim_end_matches('\r'))),
            None => answer(input),
        })
    }

    fn read(&self, mut answer: impl FnMut(&OsStr) -> Result<()>) -> Result<Outcome> {
        let mut outcome = Outcome::Done;
        let mut next = |place: Option<String>, input: &OsStr| {
            let result = answer(input);
            if let Err(error) = match place {
                Some(place) => result.with_context(|| place),
                None => result,
            } {
                complain(&error_line(&error));
                outcome = Outcome::Failed;
            }
            is_output_open()
        };
        if let Some(path) = self.file() {
            let mut notes = vec![];
            let file = TextFile::read(path.to_path_buf(), &mut notes)?;
            show_notes(&notes);
            for (number, line) in (1..).zip(file.text.split_terminator('\n')) {
                let place = format!("{}: line {number}", path.display());
                if !next(Some(place), OsStr::new(line)) {
                    break;
                }
            }
            return Ok(outcome);
        }
        self.inputs.iter().try_for_each(|input| check(input))?;
        let default = [self.file.clone().map_or("-".into(), OsString::from)];
        let inputs = if self.inputs.is_empty() { &default } else { self.inputs.as_slice() };
        for input in inputs {
            let goes_on = match input.to_str() {
                Some("-") => {
                    let stdin = std::io::stdin();
                    if stdin.is_terminal() {
                        complain("note: this reads standard input, one input per line, up to Ctrl-D");
                    }
                    lines("standard input", stdin.lock(), &mut next)?
                }
                _ if self.file.is_some() => {
                    let name = Path::new(input).display().to_string();
                    let pipe = File::open(input).with_context(|| format!("{name}: can't be read"))?;
                    lines(&name, BufReader::new(pipe), &mut next)?
                }
                _ => next(None, input),
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
    reader: impl BufRead,
    mut next: impl FnMut(Option<String>, &OsStr) -> bool,
) -> Result<bool> {
    let (mut lines, mut notes) = (LiveLines::new(reader), vec![]);
    while let Some(line) = lines.next(&mut notes).with_context(|| name.to_string())? {
        notes.drain(..).for_each(|note| complain(&format!("note: {name}: {note}")));
        if !next(Some(format!("{name}: line {}", lines.number)), OsStr::new(&line)) {
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
