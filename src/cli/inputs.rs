//! The run and the inputs of a command for a trained model.

use super::{Outcome, complain, count, error_line, shell_quoted, show_notes};
use crate::data::text::{LiveLines, TextFile, is_json, path_of_bytes, texts_by_header};
use crate::train::{Run, is_output_open};
use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, IsTerminal};
use std::path::{Path, PathBuf};

/// The option of every command but `train`.
#[derive(Args)]
pub(super) struct RunOption {
    /// Run: its folder, or its number or name under runs/ [default: the newest that holds a model]
    #[arg(long, value_name = "RUN")]
    run: Option<PathBuf>,
}

impl RunOption {
    /// Opens the run, and prints its name unless the user gave it.
    pub(super) fn open(&self, binary: &str) -> Result<(Run, Value)> {
        let dir = self.run.as_deref().map(|run| folder(binary, run)).transpose()?;
        let found = Run::open(binary, dir.as_deref());
        if dir.is_none() {
            let found = found.context("without --run RUN, a command uses the newest run")?;
            complain(&format!("note: this uses the newest run, {}", found.0.dir().display()));
            return Ok(found);
        }
        found
    }
}

/// Finds the folder of the run that the user named by its path, or by its number or name under `runs/`.
///
/// # Errors
/// Fails if there is no such folder; the message lists the existing runs.
pub(super) fn folder(binary: &str, run: &Path) -> Result<PathBuf> {
    let runs = Path::new("runs").join(binary);
    let in_runs = runs.join(run);
    let is_in_runs = match run.exists() {
        true => is_number(run) && in_runs.is_dir(),
        false => is_number(run) || in_runs.is_dir(),
    };
    let dir = if is_in_runs { in_runs } else { run.to_path_buf() };
    if dir.exists() {
        ensure!(dir.is_dir(), "{}: is a file, expected the folder of a run", dir.display());
        return Ok(dir);
    }
    let names = std::fs::read_dir(&runs).into_iter().flatten().flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        entry.path().join("config.json").exists().then_some(name)
    });
    let mut names: Vec<String> = names.collect();
    // Sort numbers by value.
    names.sort_by_key(|name| (name.len(), name.clone()));
    let runs = runs.display();
    let known = if names.is_empty() { "no run".to_string() } else { names.join(", ") };
    bail!("{}: there is no such run; found {known} in {runs}", dir.display())
}

/// Whether the name of a run is its number.
fn is_number(run: &Path) -> bool {
    run.to_str().is_some_and(|run| run.parse::<u64>().is_ok())
}

/// Checks that no input is a run, which belongs to `--run`, or, if inputs are text, another path.
pub(super) fn check(binary: &str, inputs: &[&OsString], are_paths: bool) -> Result<()> {
    for path in inputs.iter().map(Path::new) {
        let name = path.display();
        ensure!(!is_run(path), "{name}: this is a run: name it with --run {}", shell_quoted(path));
        if !path.is_file() {
            let is_path = if are_paths { shape(path) == Shape::Run } else { shape(path) != Shape::Text };
            let remedy =
                if are_paths { "" } else { "; --file FILE or standard input takes lines as they are" };
            ensure!(
                !is_path && (are_paths || !path.is_dir()),
                "{name}: there is no such run or file: name the run with --run RUN{remedy}"
            );
        }
        if is_number(path) && !path.exists() && is_run(&Path::new("runs").join(binary).join(path)) {
            complain(&format!("note: {name} is taken as an input: to use run {name}, give --run {name}"));
        }
    }
    Ok(())
}

/// The form of an argument.
#[derive(Debug, PartialEq)]
enum Shape {
    /// A path of something in a folder `runs`.
    Run,
    /// Another path.
    Path,
    Text,
}

/// Classifies an argument. Text of several words is usually not a path.
fn shape(argument: &Path) -> Shape {
    let text = argument.to_string_lossy().replace('\\', "/");
    let starts = ["/", "./", "../", "~/"];
    match text {
        _ if text.contains(char::is_whitespace) || !text.contains('/') => Shape::Text,
        _ if text.trim_end_matches('/').split('/').rev().skip(1).any(|folder| folder == "runs") => Shape::Run,
        _ if starts.iter().any(|start| text.starts_with(start)) && text.len() > 2 => Shape::Path,
        _ => Shape::Text,
    }
}

/// Whether a folder is a run's.
pub(super) fn is_run(path: &Path) -> bool {
    path.join("config.json").is_file()
}

/// The lines of a file that was read as a whole.
type FileLines = LiveLines<Cursor<Vec<u8>>>;

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
    /// The file of `--file`, unless it is standard input or a pipe, which are read as they arrive.
    pub(super) fn file(&self) -> Option<&Path> {
        let is_pipe = |path: &Path| path.exists() && !path.is_file() && !path.is_dir();
        self.file.as_deref().filter(|path| *path != Path::new("-") && !is_pipe(path))
    }

    /// Whether the inputs are lines of a file or of standard input, not arguments.
    pub(super) fn are_lines(&self) -> bool {
        self.inputs.iter().all(|input| input == "-")
    }

    /// Calls `answer` with each input that `parse` finds in the file of `--file`, with each text of another table, or else
    /// with each line or argument.
    ///
    /// `parse` also returns a note, and `None` for a file in another format. A note says if the first line that arrives
    /// is `header`, of the training table, or JSON.
    ///
    /// # Errors
    /// Fails if the inputs can't be read, and for the first input of a parsed file that fails.
    pub(super) fn for_each_parsed<I: for<'a> From<&'a str>>(
        &self,
        header: Option<&str>,
        parse: impl FnOnce(&TextFile) -> Result<Option<(Vec<I>, String)>>,
        mut answer: impl FnMut(I) -> Result<()>,
    ) -> Result<Outcome> {
        let opened = self.open()?;
        let file = self.file().zip(opened.as_ref()).and_then(|(path, lines)| lines.file(path));
        if let Some(file) = file {
            let found = match parse(&file)? {
                None => texts_by_header(&file)
                    .map_err(|error| anyhow!("{error:#}; standard input takes lines as they are"))?
                    .map(|(texts, note)| (texts.iter().map(|text| text.as_str().into()).collect(), note)),
                found => found,
            };
            if let Some((inputs, note)) = found {
                show_notes(&[format!("{}: {note}", file.path.display())]);
                inputs.into_iter().take_while(|_| is_output_open()).try_for_each(answer)?;
                return Ok(Outcome::Done);
            }
        }
        let mut is_first = self.are_lines() && opened.is_none();
        self.for_each_text_of(opened, |text| {
            if std::mem::take(&mut is_first) {
                let note = "but lines are read as they are";
                if header.is_some_and(|header| text.trim().replace('"', "") == header) {
                    complain(&format!("note: the first line is a header, {note}: --file FILE reads tables"));
                } else if is_json(text) {
                    complain(&format!("note: the first line is JSON, {note}"));
                }
            }
            answer(text.into())
        })
    }

    /// Like [`for_each`](Self::for_each), with text.
    pub(super) fn for_each_text(&self, answer: impl FnMut(&str) -> Result<()>) -> Result<Outcome> {
        self.for_each_text_of(self.open()?, answer)
    }

    /// The lines of the file of `--file`.
    fn open(&self) -> Result<Option<FileLines>> {
        let mut notes = vec![];
        let opened = self.file().map(|path| LiveLines::open(path, &mut notes)).transpose()?;
        show_notes(&notes);
        Ok(opened)
    }

    fn for_each_text_of(
        &self,
        opened: Option<FileLines>,
        mut answer: impl FnMut(&str) -> Result<()>,
    ) -> Result<Outcome> {
        if let Some(file) = self.inputs.iter().find(|input| Path::new(input).is_file()) {
            let file = Path::new(file);
            let (name, quoted) = (file.display(), shell_quoted(file));
            complain(&format!("note: {name} is taken as text: to read the file, use --file {quoted}"));
        }
        self.for_each(opened, false, |input| {
            let text = input.to_str();
            answer(text.with_context(|| format!("{}: it is not UTF-8", Path::new(input).display()))?)
        })
    }

    /// Like [`for_each`](Self::for_each), with the paths of files. Blank lines are skipped, with a note.
    pub(super) fn for_each_path(&self, mut answer: impl FnMut(&Path) -> Result<()>) -> Result<Outcome> {
        let mut blank = 0;
        let opened = self.file().map(LiveLines::open_paths).transpose()?;
        let outcome = self.for_each(opened, true, |input| {
            if input.to_string_lossy().trim().is_empty() {
                blank += 1;
                return Ok(());
            }
            let path = written_path(input);
            let name = path.display();
            let quoted = shell_quoted(&path);
            ensure!(
                !path.is_dir(),
                "{name}: this is a folder: name the files in it, such as {}/*",
                quoted.trim_end_matches('/')
            );
            if path.exists() && !path.is_file() {
                complain(&format!("note: {name}: this is a pipe or a device, and is read to its end"));
            }
            answer(&path)
        });
        if blank > 0 {
            complain(&format!("note: skipped {}", count(blank, "blank line")));
        }
        outcome
    }

    /// Calls `answer` with each input as soon as it is known. `opened` are the lines of the file of `--file`.
    ///
    /// An input that fails is named on standard error, and the others are still answered.
    ///
    /// # Errors
    /// Fails if the inputs can't be read.
    fn for_each(
        &self,
        opened: Option<FileLines>,
        are_paths: bool,
        mut answer: impl FnMut(&OsStr) -> Result<()>,
    ) -> Result<Outcome> {
        let mut outcome = Outcome::Done;
        let mut fail = |error: &anyhow::Error| {
            complain(&error_line(error));
            outcome = Outcome::Failed;
        };
        let mut next = |input: Input| {
            let (place, result) = match input {
                Input::Argument(input) => (None, answer(input)),
                Input::Line(place, line) => (Some(place), answer(line)),
                Input::Bad(place, error) => {
                    fail(&anyhow!("{place} {error}"));
                    return is_output_open();
                }
            };
            if let Err(error) = match place {
                Some(place) => result.with_context(|| place.to_string()),
                None => result,
            } {
                fail(&error);
            }
            is_output_open()
        };
        if let Some((path, file)) = self.file().zip(opened) {
            lines(&path.display().to_string(), are_paths, file, &mut next)?;
            return Ok(outcome);
        }
        let default = [self.file.clone().map_or("-".into(), OsString::from)];
        let inputs = if self.inputs.is_empty() { &default } else { self.inputs.as_slice() };
        for input in inputs {
            let goes_on = match input.to_str() {
                Some("-") => {
                    let stdin = std::io::stdin();
                    if stdin.is_terminal() {
                        complain("note: this reads standard input, one input per line, up to Ctrl-D");
                    }
                    lines("standard input", are_paths, LiveLines::new(stdin.lock()), &mut next)?
                }
                _ if self.file.is_some() => {
                    let name = Path::new(input).display().to_string();
                    let pipe = File::open(input).with_context(|| format!("{name}: can't be read"))?;
                    lines(&name, are_paths, LiveLines::new(BufReader::new(pipe)), &mut next)?
                }
                _ => next(Input::Argument(input)),
            };
            if !goes_on {
                break;
            }
        }
        Ok(outcome)
    }
}

/// Finds the file that a line names, or returns the line as a path if there is none.
///
/// The line may be the path itself, or have spaces around it, quotes, the form of a `file:` URL, `~` for the home
/// directory, `\` before special characters, or Windows' drives and separators, as under WSL.
fn written_path(line: &OsStr) -> PathBuf {
    let Some(text) = line.to_str().filter(|_| !Path::new(line).exists()) else { return line.into() };
    let text = text.trim();
    let unquoted = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    let text = unquoted('"').or_else(|| unquoted('\'')).unwrap_or(text);
    let from_url = text.strip_prefix("file://").map(|url| path_of_bytes(percent_decoded(url)));
    let from_home = text.strip_prefix("~/").zip(std::env::home_dir());
    let (slashed, unescaped) = (text.replace('\\', "/"), text.replace('\\', ""));
    let on_drive =
        slashed.split_once(":/").map(|(drive, rest)| format!("/mnt/{}/{rest}", drive.to_lowercase()));
    let candidates = [Some(text.into()), from_url, on_drive.map(PathBuf::from)].into_iter().flatten();
    let candidates = candidates.chain(from_home.map(|(rest, home)| home.join(rest)));
    let mut candidates = candidates.chain([unescaped.into(), slashed.into()]);
    candidates.find(|path| path.exists()).unwrap_or_else(|| text.into())
}

/// `text` with its `%20` and the like decoded.
fn percent_decoded(text: &str) -> Vec<u8> {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        match part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => bytes.extend([&[byte], &part.as_bytes()[2..]].concat()),
            None => bytes.extend([b"%", part.as_bytes()].concat()),
        }
    }
    bytes
}

/// An input of a command.
enum Input<'a> {
    Argument(&'a OsStr),
    /// A line, after its place.
    Line(&'a str, &'a OsStr),
    /// An error in a line, after its place.
    Bad(&'a str, &'a str),
}

/// Calls `next` with each line as soon as it is complete, while `next` returns true.
fn lines(
    name: &str,
    are_paths: bool,
    mut lines: LiveLines<impl BufRead>,
    mut next: impl FnMut(Input) -> bool,
) -> Result<bool> {
    let mut notes = vec![];
    let read = |lines: &mut LiveLines<_>, notes: &mut Vec<String>| match are_paths {
        true => lines.next_path(notes),
        false => Ok(lines.next(notes)?.map(|line| line.map(OsString::from))),
    };
    while let Some(line) = read(&mut lines, &mut notes).with_context(|| name.to_string())? {
        notes.drain(..).for_each(|note| complain(&format!("note: {name}: {note}")));
        let place = format!("{name}: line {}", lines.number);
        for line in lines.doubtful() {
            let doubt = "was read as Windows-1252, but other lines are in another encoding";
            next(Input::Bad(&format!("{name}: line {line}"), doubt));
        }
        let input = match &line {
            Ok(line) => Input::Line(&place, line),
            Err(error) => Input::Bad(&place, error),
        };
        if !next(input) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_from_text() {
        for path in ["runs/1", "./runs/fasttext/8", "/home/me/runs/8/", "..\\runs\\lstm\\2"] {
            assert_eq!(shape(Path::new(path)), Shape::Run, "{path}");
        }
        for path in ["/tmp/model", "../best", "~/model", "./model"] {
            assert_eq!(shape(Path::new(path)), Shape::Path, "{path}");
        }
        for text in ["he runs/walks daily", "runs", "and/or", "/", "1/2/1999", "runs/", "good", "./ "] {
            assert_eq!(shape(Path::new(text)), Shape::Text, "{text}");
        }
    }

    #[test]
    fn paths_are_read_as_terminals_and_other_systems_write_them() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a b%.png");
        std::fs::write(&path, "").unwrap();
        let text = path.to_str().unwrap();
        let url = format!("file://{}", text.replace('%', "%25").replace(' ', "%20"));
        for line in [
            text,
            &format!("  {text} \t"),
            &format!("\"{text}\""),
            &format!("'{text}' "),
            &url,
            &text.replace(' ', "\\ "),
            &text.replace('/', "\\"),
        ] {
            assert_eq!(written_path(line.as_ref()), path, "{line}");
        }
        assert_eq!(written_path("\"no such.png\"".as_ref()), Path::new("no such.png"));
        assert_eq!(percent_decoded("100%"), b"100%");
    }
}
