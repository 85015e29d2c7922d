//! A text of any size, read on demand.

use super::encoding::{self, Encoding, decode, is_converted, read_char};
use super::level::Level;
use super::tokenizer::composed;
use super::vocabulary::Vocabulary;
use crate::data::file_kind::check_is_file;
use crate::data::fingerprint::Fingerprint;
use anyhow::{Context, Result, anyhow, ensure};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use unicode_normalization::{IsNormalized, is_nfc_quick};

/// A text in memory, or in a file that is read on demand.
///
/// Its index takes a few bytes per thousand tokens.
#[derive(Debug)]
pub struct TextStream {
    name: String,
    source: Source,
    encoding: Encoding,
    fingerprint: u64,
    level: Level,
    len: u64,
    /// The byte at which every `MARK`th token begins.
    marks: Vec<u64>,
    /// Remarks about the file for the user, one line each.
    pub notes: Vec<String>,
}

#[derive(Debug)]
enum Source {
    Memory(Vec<u8>),
    File(Mutex<File>),
}

/// Number of tokens between two known positions of the text.
const MARK: u64 = 1 << 14;

impl TextStream {
    /// Opens the file `path` and reads it once. A file that is not UTF-8 is read as Windows-1252, with a note.
    ///
    /// A file that is gzipped, in UTF-16 with a byte order mark, or has decomposed accents is converted in memory: accents
    /// become composed (normalisation form C).
    ///
    /// Lines end with `\n`: as in Python's text mode, `\r\n` and `\r` become `\n`.
    ///
    /// # Errors
    /// Fails if the file can't be read, is empty or is binary: it has zero bytes, or it has control characters and is
    /// not UTF-8.
    pub fn open(path: &Path, level: Level) -> Result<Self> {
        let name = path.display().to_string();
        let context = || format!("{name}: can't be read");
        // A text is read more than once, which is impossible with a pipe.
        check_is_file(path)?;
        let mut file = File::open(path).with_context(context)?;
        let mut start = [0; 3];
        let read = file.read(&mut start).with_context(context)?;
        if is_converted(&start[..read]) {
            let decoded = decode(fs::read(path).with_context(context)?);
            let (text, note) = decoded.map_err(|error| anyhow!("{name}: {error:#}"))?;
            let notes = note.iter().map(|note| format!("{name}: {note}")).collect();
            return Ok(Self { notes, ..Self::new(name, Source::Memory(text.into_bytes()), level)? });
        }
        Self::new(name, Source::File(Mutex::new(file)), level)
    }

    /// Creates a text in memory.
    ///
    /// # Errors
    /// Fails if it is empty or binary.
    pub fn from_memory(name: &str, text: impl Into<Vec<u8>>, level: Level) -> Result<Self> {
        Self::new(name.to_string(), Source::Memory(text.into()), level)
    }

    fn new(name: String, mut source: Source, level: Level) -> Result<Self> {
        let scan_of = |source: &Source| Scan::of(source).map_err(|error| anyhow!("{name}: {error:#}"));
        let mut scan = scan_of(&source)?;
        if !scan.is_composed && scan.encoding == Encoding::Utf8 {
            source = Source::Memory(source.composed().with_context(|| format!("{name}: can't be read"))?);
            scan = scan_of(&source)?;
        }
        let mut text = Self {
            source,
            encoding: scan.encoding,
            fingerprint: scan.fingerprint.finish(),
            level,
            len: 0,
            marks: vec![scan.start],
            notes: scan.remark.iter().map(|remark| format!("{name}: {remark}")).collect(),
            name,
        };
        let (mut tokens, mut token) = (text.read(0), String::new());
        let (mut marks, mut len) = (vec![], 0);
        loop {
            if len % MARK == 0 {
                marks.push(tokens.at - u64::from(tokens.at_line_end));
            }
            if !tokens.next_into(&mut token)? {
                break;
            }
            len += 1;
        }
        drop(tokens);
        (text.marks, text.len) = (marks, len);
        ensure!(len > 0, "{}: no tokens, only white space", text.name);
        Ok(text)
    }

    /// Number of tokens.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no tokens. Never true, as an empty text is refused.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The kind of the tokens.
    pub fn level(&self) -> Level {
        self.level
    }

    /// The name of the text: its file's path.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The beginning of the text.
    pub(super) fn beginning(&self) -> Result<String> {
        let mut bytes = [0; 1 << 12];
        let read = self.source.read_at(0, &mut bytes);
        let read = read.with_context(|| format!("{}: can't be read", self.name))?;
        Ok(String::from_utf8_lossy(&bytes[..read]).into_owned())
    }

    /// A hash of the text's bytes, to detect a changed text when a run is resumed.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The vocabulary of the tokens `range`.
    ///
    /// It has at most `size` tokens, all of which occur at least `minimum_count` times.
    ///
    /// # Errors
    /// Fails if a file can't be read or has changed since it was opened.
    pub fn vocabulary(
        &self,
        range: Range<u64>,
        minimum_count: usize,
        size: Option<usize>,
    ) -> Result<Vocabulary> {
        let (mut ascii, mut others) = ([0usize; 128], HashMap::<String, usize>::new());
        let (mut tokens, mut token) = (self.read(range.start), String::new());
        for _ in range {
            tokens.require(&mut token)?;
            match token.as_bytes() {
                &[byte] => ascii[byte as usize] += 1,
                _ => match others.get_mut(&token) {
                    Some(count) => *count += 1,
                    None => _ = others.insert(token.clone(), 1),
                },
            }
        }
        let ascii = ascii.into_iter().zip(0u8..).filter(|&(count, _)| count > 0);
        others.extend(ascii.map(|(count, byte)| (char::from(byte).to_string(), count)));
        Ok(Vocabulary::from_counts(others, false, minimum_count, size))
    }

    /// Number of the tokens `range` that `vocabulary` lacks.
    ///
    /// # Errors
    /// Fails if a file can't be read or has changed since it was opened.
    pub fn count_unknown(&self, range: Range<u64>, vocabulary: &Vocabulary) -> Result<u64> {
        let (mut tokens, mut token, mut unknown) = (self.read(range.start), String::new(), 0);
        for _ in range {
            tokens.require(&mut token)?;
            unknown += u64::from(vocabulary.id(&token) == Vocabulary::UNKNOWN);
        }
        Ok(unknown)
    }

    /// Reads the tokens from number `from` on.
    pub fn read(&self, from: u64) -> Tokens<'_> {
        let mark = ((from / MARK) as usize).min(self.marks.len() - 1);
        let at = self.marks[mark];
        let reader = BufReader::with_capacity(1 << 13, Cursor { source: &self.source, at });
        Tokens { text: self, reader, at, at_line_end: false, skip: from - mark as u64 * MARK }
    }
}

/// The result of one pass over the bytes of a text.
struct Scan {
    encoding: Encoding,
    remark: Option<String>,
    /// Where the text starts, after a byte order mark.
    start: u64,
    /// Whether all accents are certainly composed.
    is_composed: bool,
    fingerprint: Fingerprint,
}

impl Scan {
    fn of(source: &Source) -> Result<Self> {
        let mut scan = encoding::Scan::default();
        let (mut fingerprint, mut is_composed) = (Fingerprint::new(), true);
        let mut block = vec![0; 1 << 18];
        // The first `kept` bytes of the block are the beginning of a character that the last block cut.
        let (mut at, mut kept) = (0, 0);
        loop {
            let read = source.read_at(at, &mut block[kept..]).context("can't be read")?;
            ensure!(at > 0 || read > 0, "is empty");
            let bytes = &block[..kept + read];
            let whole = scan.add(bytes, read == 0)?;
            scan.check_zeros()?;
            fingerprint = fingerprint.add(&bytes[..whole]);
            is_composed &= bytes[..whole].is_ascii()
                || str::from_utf8(&bytes[..whole])
                    .is_ok_and(|text| is_nfc_quick(text.chars()) == IsNormalized::Yes);
            if read == 0 {
                break;
            }
            at += read as u64;
            kept = bytes.len() - whole;
            block.copy_within(whole..whole + kept, 0);
        }
        let (encoding, remark) = (scan.check_whole()?, scan.remark());
        let start = if scan.is_marked { 3 } else { 0 };
        Ok(Self { encoding, remark, start, is_composed, fingerprint })
    }
}

impl Source {
    /// The whole text with composed accents.
    fn composed(&self) -> io::Result<Vec<u8>> {
        let mut text = String::new();
        BufReader::new(Cursor { source: self, at: 0 }).read_to_string(&mut text)?;
        Ok(composed(&text).into_owned().into_bytes())
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Memory(bytes) => bytes.get(at as usize..).unwrap_or_default().read(buffer),
            Self::File(file) => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(at))?;
                file.read(buffer)
            }
        }
    }
}

/// A position in a source. All readers of a file share one handle.
#[derive(Debug)]
struct Cursor<'a> {
    source: &'a Source,
    at: u64,
}

impl Read for Cursor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read_at(self.at, buffer)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Reads the tokens of a [`TextStream`] one after another.
#[derive(Debug)]
pub struct Tokens<'a> {
    text: &'a TextStream,
    reader: BufReader<Cursor<'a>>,
    /// The byte after the last character read.
    at: u64,
    /// Whether that character was the end of a line that ended a word and is itself the next token.
    at_line_end: bool,
    /// Tokens to skip first.
    skip: u64,
}

impl Tokens<'_> {
    /// Reads the next token into `token`, and returns whether there was one.
    ///
    /// # Errors
    /// Fails if a file can't be read or has changed since it was opened.
    pub fn next_into(&mut self, token: &mut String) -> Result<bool> {
        while self.skip > 0 {
            self.skip -= 1;
            self.advance(token)?;
        }
        self.advance(token)
    }

    /// Reads the next token, which must exist.
    pub(crate) fn require(&mut self, token: &mut String) -> Result<()> {
        ensure!(self.next_into(token)?, "{}: has changed since it was opened: ends earlier", self.text.name);
        Ok(())
    }

    fn advance(&mut self, token: &mut String) -> Result<bool> {
        let Self { text, reader, at, at_line_end, .. } = self;
        let next = || read_char(reader, at, text.encoding).with_context(|| text.name.clone());
        text.level.read(token, at_line_end, next)
    }
}
