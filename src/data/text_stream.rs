//! A text of any size, read as it goes.

use super::Vocabulary;
use anyhow::{Context, Result, bail, ensure};
use encoding_rs::{Encoding, UTF_8, WINDOWS_1252};
use include_dir::{Dir, include_dir};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// What the tokens of a text are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Unicode scalar values
    Char,
    /// What stands between blanks, and `<eos>` for the end of a line
    Word,
}

impl Level {
    /// The token that ends a line.
    pub fn line_end(self) -> &'static str {
        match self {
            Self::Char => "\n",
            Self::Word => "<eos>",
        }
    }

    /// The numbers of the tokens of the short `text`: those of a [`TextStream`] of it, except that there may be
    /// none.
    ///
    /// # Errors
    /// When it has zero bytes.
    pub fn encode(self, text: &str, vocabulary: &Vocabulary) -> Result<Vec<u32>> {
        if let Some(zero) = text.bytes().position(|byte| byte == 0) {
            bail!("binary (byte {zero} is zero), expected text");
        }
        let mut chars = text.strip_prefix('\u{feff}').unwrap_or(text).chars();
        let (mut token, mut at_line_end, mut ids) = (String::new(), false, vec![]);
        while self.read(&mut token, &mut at_line_end, || Ok(chars.next()))? {
            ids.push(vocabulary.id(&token));
        }
        Ok(ids)
    }

    /// The next token, in place of what `token` holds, of the characters that `next` gives; whether there was
    /// one. `at_line_end` is whether the end of a line has just ended a word, and so is the next token.
    fn read(
        self,
        token: &mut String,
        at_line_end: &mut bool,
        mut next: impl FnMut() -> Result<Option<char>>,
    ) -> Result<bool> {
        token.clear();
        if std::mem::take(at_line_end) {
            token.push_str(self.line_end());
            return Ok(true);
        }
        while let Some(c) = next()? {
            match self {
                Self::Word if !c.is_whitespace() => token.push(c),
                Self::Word if !token.is_empty() => {
                    *at_line_end = c == '\n';
                    return Ok(true);
                }
                Self::Word if c != '\n' => {}
                Self::Word => {
                    token.push_str(self.line_end());
                    return Ok(true);
                }
                Self::Char => {
                    token.push(c);
                    return Ok(true);
                }
            }
        }
        Ok(!token.is_empty())
    }

    /// What to write for `token` after what was written for `before`.
    pub fn written<'a>(self, before: Option<&str>, token: &'a str) -> [&'a str; 2] {
        let end = self.line_end();
        match self {
            Self::Char => ["", token],
            Self::Word if token == end => ["", "\n"],
            Self::Word if before.is_none_or(|before| before == end) => ["", token],
            Self::Word => [" ", token],
        }
    }
}

/// A text, from memory or from a file that is read as it goes, and how many tokens it has.
///
/// In memory it takes a few bytes for each thousand tokens, whatever its size.
#[derive(Debug)]
pub struct TextStream {
    name: String,
    source: Source,
    /// How a byte that does not begin a character of UTF-8 is read.
    latin: bool,
    level: Level,
    len: u64,
    /// Where every `MARK`th token begins.
    marks: Vec<u64>,
    /// What the user should know about the file, a line each.
    pub notes: Vec<String>,
}

#[derive(Debug)]
enum Source {
    Memory(Vec<u8>),
    File(Mutex<File>),
}

/// Tokens from one known place in the text to the next.
const MARK: u64 = 1 << 14;

impl TextStream {
    /// The file `path`, which is gone through once. What is not UTF-8 is read as Windows-1252, with a note.
    ///
    /// # Errors
    /// A file that can't be read, is empty, or is no text: one with zero bytes, or neither UTF-8 nor free of control
    /// characters.
    pub fn open(path: &Path, level: Level) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).with_context(|| format!("{name}: can't be read"))?;
        ensure!(!path.is_dir(), "{name}: is a directory, expected a text file");
        Self::new(name, Source::File(Mutex::new(file)), level)
    }

    /// A text in memory.
    ///
    /// # Errors
    /// When it is empty or has zero bytes.
    pub fn from_memory(name: &str, text: impl Into<Vec<u8>>, level: Level) -> Result<Self> {
        Self::new(name.to_string(), Source::Memory(text.into()), level)
    }

    fn new(name: String, source: Source, level: Level) -> Result<Self> {
        let mut text = Self { name, source, latin: false, level, len: 0, marks: vec![], notes: vec![] };
        let start = text.check()?;
        text.marks.push(start);
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
        ensure!(len > 0, "{}: holds nothing but blanks", text.name);
        Ok(text)
    }

    /// Finds out how the file is encoded, and where its text begins.
    fn check(&mut self) -> Result<u64> {
        let name = &self.name;
        let mut block = vec![0; 1 << 18];
        let (mut at, mut kept) = (0u64, 0);
        let (mut wrong, mut control, mut start) = (None, None, 0);
        loop {
            let read = self
                .source
                .read_at(at, &mut block[kept..])
                .with_context(|| format!("{name}: can't be read"))?;
            let bytes = &block[..kept + read];
            let begin = at - kept as u64;
            if at == 0 {
                ensure!(!bytes.is_empty(), "{name}: is empty");
                if let Some((marked, length)) = Encoding::for_bom(bytes) {
                    ensure!(marked == UTF_8, "{name}: is {}, expected UTF-8 or Windows-1252", marked.name());
                    start = length as u64;
                }
            }
            let fresh = &bytes[kept..];
            if let Some(zero) = fresh.iter().position(|&byte| byte == 0) {
                bail!("{name}: is binary (byte {} is zero), expected text", at + zero as u64);
            }
            let is_control =
                |byte: &u8| byte.is_ascii_control() && !byte.is_ascii_whitespace() && *byte != 0x1b;
            control = control.or(fresh.iter().position(is_control).map(|i| at + i as u64));
            let end_of_file = read == 0;
            let valid = match (wrong, std::str::from_utf8(bytes)) {
                (Some(_), _) => 0,
                (None, Ok(_)) => bytes.len(),
                (None, Err(error)) if error.error_len().is_none() && !end_of_file => error.valid_up_to(),
                (None, Err(error)) => {
                    wrong = Some(begin + error.valid_up_to() as u64);
                    0
                }
            };
            if let Some(byte) = wrong
                && let Some(control) = control
            {
                bail!(
                    "{name}: is binary (not UTF-8 at byte {byte}, and byte {control} is a control character), expected \
                     text"
                );
            }
            if end_of_file {
                break;
            }
            at += read as u64;
            let consumed = if wrong.is_some() { bytes.len() } else { valid };
            kept = bytes.len() - consumed;
            block.copy_within(consumed..consumed + kept, 0);
        }
        if let Some(byte) = wrong {
            ensure!(start == 0, "{name}: not UTF-8 at byte {byte}, but the file is marked as such");
            self.notes.push(format!("{name}: not UTF-8 at byte {byte}, so it is read as Windows-1252"));
            self.latin = true;
        }
        Ok(start)
    }

    /// How many tokens it has.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn level(&self) -> Level {
        self.level
    }

    /// What the text is called: its file's path.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tokens of `range` that occur in it at least `minimum_count` times, at most `size` of them.
    ///
    /// # Errors
    /// A file that can't be read any more.
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

    /// The tokens from number `from` on.
    pub fn read(&self, from: u64) -> Tokens<'_> {
        let mark = ((from / MARK) as usize).min(self.marks.len() - 1);
        let at = self.marks[mark];
        let reader = BufReader::with_capacity(1 << 13, Cursor { source: &self.source, at });
        Tokens { text: self, reader, at, at_line_end: false, skip: from - mark as u64 * MARK }
    }

    /// The character at the byte `at`, which `reader` has come to, and goes on after it.
    fn decode(&self, reader: &mut impl BufRead, at: &mut u64) -> Result<Option<char>> {
        let name = &self.name;
        let mut bytes = [0; 4];
        let Some(&first) = reader.fill_buf().with_context(|| format!("{name}: can't be read"))?.first()
        else {
            return Ok(None);
        };
        let length = match first {
            0..0x80 => 1,
            _ if self.latin => 1,
            0x80..0xe0 => 2,
            0xe0..0xf0 => 3,
            0xf0.. => 4,
        };
        *at += length as u64;
        if length == 1 {
            reader.consume(1);
            return Ok(match first {
                0..0x80 => Some(char::from(first)),
                _ => WINDOWS_1252.decode_without_bom_handling(&[first]).0.chars().next(),
            });
        }
        let changed = || format!("{name}: is no longer the UTF-8 that it was when it was opened");
        reader.read_exact(&mut bytes[..length]).with_context(changed)?;
        Ok(std::str::from_utf8(&bytes[..length]).with_context(changed)?.chars().next())
    }
}

/// A part of a text cut into parallel streams, read in windows of some steps, each going on where the last one ended.
#[derive(Debug)]
pub struct Streams<'a> {
    vocabulary: &'a Vocabulary,
    /// Of each stream, what is yet to come, and the number of the token before it.
    readers: Vec<(Tokens<'a>, u32)>,
    /// Steps left to each.
    left: u64,
}

/// Tokens of parallel streams and what follows each, first all streams' first ones, then their second ones, and so on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenWindow {
    pub tokens: Vec<u32>,
    pub next: Vec<u32>,
}

impl<'a> Streams<'a> {
    /// The steps of each of `streams` streams of a part of so many tokens: every token of a stream but the first is
    /// foretold from those before it. What is left over at the end, less than one step a stream, is not read.
    pub fn steps(tokens: u64, streams: usize) -> u64 {
        tokens.saturating_sub(1) / streams.max(1) as u64
    }

    /// The streams of `range`, from step `start` on.
    ///
    /// # Errors
    /// A file that can't be read.
    pub fn new(
        text: &'a TextStream,
        vocabulary: &'a Vocabulary,
        range: Range<u64>,
        streams: usize,
        start: u64,
    ) -> Result<Self> {
        let steps = Self::steps(range.end.saturating_sub(range.start), streams);
        let mut token = String::new();
        let reader = |stream: u64| {
            let mut tokens = text.read(range.start + stream * steps + start);
            tokens.require(&mut token)?;
            Ok((tokens, vocabulary.id(&token)))
        };
        let readers = (0..streams as u64).map(reader).collect::<Result<_>>()?;
        Ok(Self { vocabulary, readers, left: steps.saturating_sub(start) })
    }

    /// The next `steps` steps of all streams, or as many as there are; nothing at the end.
    ///
    /// # Errors
    /// A file that can't be read, or is no longer what it was.
    pub fn next_window(&mut self, steps: usize) -> Result<Option<TokenWindow>> {
        let steps = self.left.min(steps as u64);
        self.left -= steps;
        let (streams, mut token) = (self.readers.len(), String::new());
        let mut window = TokenWindow { tokens: vec![0; steps as usize * streams], next: vec![] };
        window.next.clone_from(&window.tokens);
        for (stream, (reader, before)) in self.readers.iter_mut().enumerate() {
            for row in (stream..window.tokens.len()).step_by(streams) {
                reader.require(&mut token)?;
                let next = self.vocabulary.id(&token);
                (window.tokens[row], window.next[row]) = (std::mem::replace(before, next), next);
            }
        }
        Ok((steps > 0).then_some(window))
    }
}

impl Source {
    fn read_at(&self, at: u64, buffer: &mut [u8]) -> std::io::Result<usize> {
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

/// A place in a source. All of a file's share one handle.
#[derive(Debug)]
struct Cursor<'a> {
    source: &'a Source,
    at: u64,
}

impl Read for Cursor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.source.read_at(self.at, buffer)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Reads the tokens of a [`TextStream`] one after the other.
#[derive(Debug)]
pub struct Tokens<'a> {
    text: &'a TextStream,
    reader: BufReader<Cursor<'a>>,
    /// The byte after the last character read.
    at: u64,
    /// Whether that was a line's end, of one byte, which has ended a word and is a token yet to come.
    at_line_end: bool,
    /// Tokens to pass over first.
    skip: u64,
}

impl Tokens<'_> {
    /// The next token, in place of what `token` holds; whether there was one.
    ///
    /// # Errors
    /// A file that can't be read, or is no longer what it was.
    pub fn next_into(&mut self, token: &mut String) -> Result<bool> {
        while self.skip > 0 {
            self.skip -= 1;
            self.token(token)?;
        }
        self.token(token)
    }

    /// The next token, which there must be.
    pub(crate) fn require(&mut self, token: &mut String) -> Result<()> {
        ensure!(self.next_into(token)?, "{}: ends earlier than it did when it was opened", self.text.name);
        Ok(())
    }

    fn token(&mut self, token: &mut String) -> Result<bool> {
        let Self { text, reader, at, at_line_end, .. } = self;
        text.level.read(token, at_line_end, || text.decode(reader, at))
    }
}

/// The text `name`: `source`, the files of this project (built in), or `tiny-shakespeare`, from `input.txt` in `dir`.
///
/// # Errors
/// A name that is not known; a file that is missing or no text.
pub fn load(name: &str, dir: Option<&Path>, level: Level) -> Result<TextStream> {
    match (name, dir) {
        ("source", None) => TextStream::from_memory("source", source(), level),
        ("source", Some(_)) => bail!("data set source: it is built in, so --data-dir has no meaning"),
        ("tiny-shakespeare", Some(dir)) => TextStream::open(&dir.join("input.txt"), level),
        #[cfg(feature = "hub")]
        ("tiny-shakespeare", None) => {
            let text = super::hub::load_text(name).with_context(|| format!("data set {name}"))?;
            TextStream::from_memory(name, text, level)
        }
        #[cfg(not(feature = "hub"))]
        ("tiny-shakespeare", None) => bail!(
            "data set {name}: this build can't download it: give its file with --data-dir DIR, build with `--features \
             hub`, or use the built-in source"
        ),
        _ => bail!(
            "data set {name}: not known; there are source and tiny-shakespeare, and any file with --text FILE"
        ),
    }
}

/// This project's documents and Rust sources, one after the other.
fn source() -> String {
    static SOURCES: Dir = include_dir!("$CARGO_MANIFEST_DIR/src");
    static BINARIES: Dir = include_dir!("$CARGO_MANIFEST_DIR/bin");
    let mut text = include_str!("../../README.md").to_string();
    let mut directories = vec![&BINARIES, &SOURCES];
    while let Some(directory) = directories.pop() {
        directory.files().filter_map(|file| file.contents_utf8()).for_each(|file| text.push_str(file));
        directories.extend(directory.dirs());
    }
    text
}
