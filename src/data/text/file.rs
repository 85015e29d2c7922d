//! Whole text files, decoded and read line by line.

use super::encoding::{byte_order_mark, windows_1252};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};

/// A whole text file, decoded.
pub(in crate::data) struct TextFile {
    pub path: PathBuf,
    pub text: String,
}

impl TextFile {
    /// Reads a file in UTF-8 or, with a note, in Windows-1252.
    pub fn read(path: PathBuf, notes: &mut Vec<String>) -> Result<Self> {
        let name = path.display();
        let bytes = fs::read(&path).with_context(|| format!("{name}: can't be read"))?;
        ensure!(!bytes.is_empty(), "{name}: is empty");
        let mark = byte_order_mark(&bytes).map_err(|error| anyhow!("{name}: {error}"))?;
        let text = match std::str::from_utf8(&bytes) {
            Ok(text) => text[mark..].to_string(),
            Err(error) => {
                let line = 1 + bytes[..error.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count();
                if mark > 0 {
                    bail!("{name}: line {line}: not UTF-8, but the file is marked as such");
                }
                notes.push(format!("{name}: not UTF-8 at line {line}, so it is read as Windows-1252"));
                windows_1252(&bytes)
            }
        };
        Ok(Self { path, text })
    }

    /// The lines and their numbers, from 1.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(at, line)| (at + 1, line))
    }

    /// A note about the lines without text that were skipped, if there are any.
    pub fn without_text(&self, lines: &[usize]) -> Option<String> {
        let skipped = counted_lines(lines, "without text");
        (!lines.is_empty()).then(|| format!("{}: skipped {skipped}", self.path.display()))
    }

    /// An error about the file.
    pub fn error(&self, message: impl Display) -> anyhow::Error {
        anyhow!("{}: {message}", self.path.display())
    }

    /// An error about line `line`.
    pub fn error_at(&self, line: usize, message: impl Display) -> anyhow::Error {
        anyhow!("{}: line {line}: {message}", self.path.display())
    }
}

/// Number of `lines` that are `what`, and the first of them.
pub(in crate::data) fn counted_lines(lines: &[usize], what: &str) -> String {
    match lines {
        [line] => format!("1 line {what} (line {line})"),
        _ => format!("{} lines {what} (first: line {})", lines.len(), lines.first().unwrap_or(&0)),
    }
}

/// The file `name` in `dir`.
pub(super) fn required(dir: &Path, name: &str) -> Result<PathBuf> {
    Some(dir.join(name))
        .filter(|path| path.is_file())
        .with_context(|| format!("{}: no file {name}", dir.display()))
}
