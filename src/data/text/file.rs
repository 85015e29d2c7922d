//! Whole text files, decoded and read line by line.

use super::encoding::decode;
use crate::data::file_kind::{check_is_file, markup};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::de::IgnoredAny;
use serde_json::{Map, Value};
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};

/// A whole text file, decoded.
pub(crate) struct TextFile {
    pub path: PathBuf,
    pub text: String,
}

impl TextFile {
    /// Reads a file in UTF-8, UTF-16 with a byte order mark, or Windows-1252, gzipped or not.
    ///
    /// A note names an encoding other than UTF-8.
    ///
    /// # Errors
    /// Fails if the file can't be read or decoded, is empty, or is an HTML page, an XML document or JSON.
    pub fn read(path: PathBuf, notes: &mut Vec<String>) -> Result<Self> {
        let name = path.display();
        check_is_file(&path)?;
        let bytes = fs::read(&path).with_context(|| format!("{name}: can't be read"))?;
        ensure!(!bytes.is_empty(), "{name}: is empty");
        let (text, note) = decode(bytes).map_err(|error| anyhow!("{name}: {error:#}"))?;
        check_is_corpus(&text).map_err(|error| anyhow!("{name}: {error}"))?;
        notes.extend(note.map(|note| format!("{name}: {note}")));
        Ok(Self { path, text })
    }

    /// The lines and their numbers, from 1.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(at, line)| (at + 1, line))
    }

    /// A note about the lines that were skipped because they are `what`, if there are any.
    pub fn skipped(&self, lines: &[usize], what: &str) -> Option<String> {
        let skipped = counted_lines(lines, what);
        (!lines.is_empty()).then(|| format!("{}: skipped {skipped}", self.path.display()))
    }

    /// An error about the file.
    pub fn error(&self, message: impl Display) -> anyhow::Error {
        anyhow!("{}: {message}", self.path.display())
    }

    /// An error about line `line`.
    pub fn error_at(&self, line: usize, message: impl Display) -> anyhow::Error {
        self.error(format!("line {line}: {message}"))
    }
}

/// Checks by its beginning that a text is a corpus, not another file saved under that name.
///
/// # Errors
/// Fails for an HTML page, an XML document and JSON.
pub(super) fn check_is_corpus(text: &str) -> Result<()> {
    match markup(text.as_bytes()).or_else(|| is_json(text).then_some("JSON")) {
        Some(other) => bail!("found {other}, expected lines or a table of text"),
        None => Ok(()),
    }
}

/// Whether a text is JSON or JSON Lines, or begins with a list of JSON objects.
pub(crate) fn is_json(text: &str) -> bool {
    let text = text.trim_start();
    if text.starts_with(['[', '{']) && serde_json::from_str::<IgnoredAny>(text).is_ok() {
        return true;
    }
    let is_object = |line: &str| serde_json::from_str::<Map<String, Value>>(line).is_ok();
    let is_list = text.strip_prefix('[').is_some_and(|rest| rest.trim_start().starts_with("{\""));
    is_list || text.starts_with('{') && text.lines().next().is_some_and(is_object)
}

/// Number of `lines` that are `what`, and the first of them.
pub(in crate::data) fn counted_lines(lines: &[usize], what: &str) -> String {
    match lines {
        [line] => format!("1 line {what} (line {line})"),
        _ => format!("{} lines {what} (first: line {})", lines.len(), lines.first().unwrap_or(&0)),
    }
}

/// Finds the file `name` in `dir`, also with `.txt` appended, gzipped or not.
pub(super) fn required(dir: &Path, name: &str) -> Result<PathBuf> {
    let names = ["", ".gz", ".txt", ".txt.gz"].map(|ending| format!("{name}{ending}"));
    let found = names.iter().map(|name| dir.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{}: no file {name}", dir.display()))
}
