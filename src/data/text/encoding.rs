//! The encodings of text, and the detection of binary data.
//!
//! Text is UTF-8, UTF-16 with a byte order mark, or Windows-1252, gzipped or not.

use crate::data::file_kind::{Remedy, known_format, markup};
use crate::data::gzip;
use anyhow::{Context, Result, bail, ensure};
use std::fmt;
use std::io::{BufRead, Read};

/// The characters of the bytes 0x80 to 0x9f in Windows-1252, as browsers read it. All others agree with Latin-1.
const HIGH_CONTROLS: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', '\u{90}',
    '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
];

/// Decodes Windows-1252.
pub(super) fn windows_1252(bytes: &[u8]) -> String {
    let character = |&byte: &u8| match byte {
        0x80..=0x9f => HIGH_CONTROLS[usize::from(byte - 0x80)],
        _ => char::from(byte),
    };
    bytes.iter().map(character).collect()
}

/// Assembles a number from two bytes.
type ByteOrder = fn([u8; 2]) -> u16;

/// The name and the byte order of the UTF-16 that a byte order mark at the start of `bytes` declares.
fn marked_utf16(bytes: &[u8]) -> Option<(&'static str, ByteOrder)> {
    match bytes {
        [0xff, 0xfe, ..] => Some(("UTF-16LE", u16::from_le_bytes)),
        [0xfe, 0xff, ..] => Some(("UTF-16BE", u16::from_be_bytes)),
        _ => None,
    }
}

/// Whether a text that starts with `bytes` must be converted as a whole, as it is gzipped or in UTF-16.
pub(super) fn is_converted(bytes: &[u8]) -> bool {
    bytes.starts_with(&gzip::MAGIC) || marked_utf16(bytes).is_some()
}

/// Decodes a whole text, and returns a remark if it is not UTF-8.
///
/// In a text without `\n`, each `\r` counts as `\n`.
///
/// # Errors
/// Fails if the text is binary, or isn't in the encoding that its byte order mark declares.
pub(super) fn decode(bytes: Vec<u8>) -> Result<(String, Option<String>)> {
    let (bytes, note) = converted(bytes)?;
    let mut scan = Scan::default();
    scan.add(&bytes, true)?;
    match scan.check_whole()? {
        Encoding::Windows1252 => Ok((windows_1252(&bytes), scan.remark())),
        Encoding::Utf8 => {
            let text = String::from_utf8(bytes)?;
            Ok((text.strip_prefix('\u{feff}').map(String::from).unwrap_or(text), note))
        }
    }
}

/// Unpacks a text and converts UTF-16 to UTF-8, with a remark.
///
/// Lines end with `\n` afterwards.
///
/// # Errors
/// Fails if the text is truncated, or isn't in the UTF-16 that its byte order mark declares.
pub(super) fn converted(mut bytes: Vec<u8>) -> Result<(Vec<u8>, Option<String>)> {
    if bytes.starts_with(&gzip::MAGIC) {
        let mut unpacked = vec![];
        gzip::Unpacked::new(&bytes[..]).read_to_end(&mut unpacked).map_err(gzip::read_error)?;
        bytes = unpacked;
    }
    let mut note = None;
    if let Some((name, unit)) = marked_utf16(&bytes) {
        let (pairs, odd) = bytes[2..].as_chunks::<2>();
        let units: Vec<u16> = pairs.iter().map(|&pair| unit(pair)).collect();
        ensure!(!units.contains(&0), "is binary or in UTF-32, expected UTF-8, UTF-16 or Windows-1252");
        let text = String::from_utf16(&units).ok().filter(|_| odd.is_empty());
        let text = text.with_context(|| format!("not {name}, but the file is marked as such"))?;
        bytes = text.into_bytes();
        note = Some(format!("is converted from {name}"));
    }
    if bytes.contains(&b'\r') && !bytes.contains(&b'\n') {
        bytes.iter_mut().filter(|byte| **byte == b'\r').for_each(|byte| *byte = b'\n');
    }
    // MS-DOS marks the end of a file.
    bytes.truncate(bytes.iter().rposition(|&byte| byte != 0x1a).map_or(0, |last| last + 1));
    Ok((bytes, note))
}

/// Reads the next character from `reader`, and adds its number of bytes to `at`.
///
/// Each line ends with `\n`: as in Python's text mode, `\r\n` and `\r` are read as `\n`.
///
/// # Errors
/// Fails if the text can't be read, or was UTF-8 before and is no more.
pub(super) fn read_char(reader: &mut impl BufRead, at: &mut u64, encoding: Encoding) -> Result<Option<char>> {
    const UNREADABLE: &str = "can't be read";
    const CHANGED: &str = "has changed since it was opened: not UTF-8 any more";
    let Some(&first) = reader.fill_buf().context(UNREADABLE)?.first() else { return Ok(None) };
    let length = match first {
        0..0x80 => 1,
        _ if encoding == Encoding::Windows1252 => 1,
        0x80..0xe0 => 2,
        0xe0..0xf0 => 3,
        0xf0.. => 4,
    };
    *at += length as u64;
    if length > 1 {
        let mut bytes = [0; 4];
        reader.read_exact(&mut bytes[..length]).context(CHANGED)?;
        return Ok(std::str::from_utf8(&bytes[..length]).context(CHANGED)?.chars().next());
    }
    reader.consume(1);
    if first == b'\r' && reader.fill_buf().context(UNREADABLE)?.first() == Some(&b'\n') {
        reader.consume(1);
        *at += 1;
    }
    Ok(match first {
        b'\r' => Some('\n'),
        0..0x80 => Some(char::from(first)),
        _ => windows_1252(&[first]).chars().next(),
    })
}

/// The encoding of a text that is neither gzipped nor in UTF-16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Utf8,
    Windows1252,
}

/// The evidence that consecutive bytes give about the encoding of a text.
#[derive(Default)]
pub(super) struct Scan {
    /// Number of bytes and of line breaks so far.
    at: u64,
    breaks: usize,
    /// The lines that are not UTF-8.
    invalid: Lines,
    /// The lines with zero bytes.
    zeros: Lines,
    /// The lines with control characters that do not occur in text.
    controls: Lines,
    /// Whether the text has the byte order mark of UTF-8.
    pub is_marked: bool,
    /// Number of UTF-8 characters outside ASCII, and of byte sequences that are not UTF-8.
    characters: u64,
    errors: u64,
    western: Western,
}

/// Lines of a kind: their number, the first and the last, counted from 1.
#[derive(Default)]
struct Lines {
    count: usize,
    first: usize,
    last: usize,
}

impl Lines {
    fn add(&mut self, line: usize) {
        if self.count == 0 {
            self.first = line;
        }
        self.count += usize::from(self.last != line);
        self.last = line;
    }
}

impl fmt::Display for Lines {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.count {
            0 | 1 => write!(f, "line {} is", self.first),
            count => write!(f, "{count} lines (first: line {}) are", self.first),
        }
    }
}

impl Scan {
    /// Checks the next bytes, and returns how many of them are whole characters.
    ///
    /// The rest must come again with the next call.
    ///
    /// # Errors
    /// Fails if the text starts like a file of another format.
    pub fn add(&mut self, bytes: &[u8], is_end: bool) -> Result<usize> {
        if self.at == 0 {
            check_start(bytes)?;
            self.is_marked = bytes.starts_with(b"\xef\xbb\xbf");
        }
        let whole = self.add_characters(bytes, is_end);
        let bytes = &bytes[..whole];
        let is_control = |byte: u8| {
            byte.is_ascii_control()
                && !byte.is_ascii_whitespace()
                && ![0x0b, 0x1a, 0x1b, 0x7f].contains(&byte)
        };
        if bytes.iter().any(|&byte| is_control(byte)) {
            for (line, bytes) in (self.breaks + 1..).zip(bytes.split(|&byte| byte == b'\n')) {
                bytes.contains(&0).then(|| self.zeros.add(line));
                bytes.iter().any(|&byte| is_control(byte)).then(|| self.controls.add(line));
            }
        }
        if !self.has_utf8() || self.is_invalid() {
            self.western.add(bytes);
        }
        self.at += whole as u64;
        self.breaks += line_breaks(bytes);
        Ok(whole)
    }

    fn add_characters(&mut self, bytes: &[u8], is_end: bool) -> usize {
        let (mut at, mut line) = (0, self.breaks + 1);
        loop {
            let rest = &bytes[at..];
            let error = std::str::from_utf8(rest).err();
            let valid = &rest[..error.map_or(rest.len(), |error| error.valid_up_to())];
            if !valid.is_ascii() {
                self.characters += valid.iter().filter(|&&byte| byte >= 0xc0).count() as u64;
            }
            at += valid.len();
            match error.map(|error| error.error_len()) {
                None => return at,
                Some(None) if !is_end => return at,
                Some(length) => {
                    line += line_breaks(valid);
                    self.invalid.add(line);
                    self.errors += 1;
                    at += length.unwrap_or(rest.len() - valid.len());
                }
            }
        }
    }

    /// Whether there are UTF-8 characters outside ASCII so far, not just by chance.
    ///
    /// In Shift-JIS, EUC, GBK and Big5, some pairs of bytes happen to be UTF-8.
    pub fn has_utf8(&self) -> bool {
        let is_by_chance = self.errors > self.characters && self.western.has_foreign_words();
        self.characters > 0 && !is_by_chance
    }

    /// Whether lines so far are not UTF-8.
    pub fn is_invalid(&self) -> bool {
        self.invalid.count > 0
    }

    /// Number of lines so far that can't be read as UTF-8 text, and of all lines.
    #[cfg(feature = "cli")]
    pub fn unreadable(&self) -> (usize, usize) {
        (self.invalid.count.max(self.zeros.count), self.breaks + 1)
    }

    /// Checks that there are no zero bytes so far.
    ///
    /// # Errors
    /// Fails for binary data.
    pub fn check_zeros(&self) -> Result<()> {
        let zeros = &self.zeros;
        ensure!(zeros.count == 0, "{zeros} binary (with a zero byte), expected text");
        Ok(())
    }

    /// The encoding of the whole text.
    ///
    /// # Errors
    /// Fails if the text is binary: it has zero bytes, or is not UTF-8 and has control characters. Also fails if it is
    /// neither UTF-8 nor, judging by its letters, Windows-1252.
    pub fn check_whole(&self) -> Result<Encoding> {
        let Self { invalid, controls, .. } = self;
        self.check_zeros()?;
        if invalid.count == 0 {
            return Ok(Encoding::Utf8);
        }
        ensure!(!self.is_marked, "{invalid} not UTF-8, but the file is marked as such: repair it");
        ensure!(
            !self.has_utf8(),
            "{invalid} not UTF-8, but there are UTF-8 characters elsewhere: the text is damaged or in two encodings; save it \
             as UTF-8"
        );
        ensure!(
            controls.count == 0,
            "is binary ({invalid} not UTF-8, and there is a control character in line {}), expected text",
            controls.first
        );
        ensure!(self.may_be_windows_1252(), "{invalid} {NO_ENCODING}");
        Ok(Encoding::Windows1252)
    }

    /// Whether the text so far may be Windows-1252.
    pub fn may_be_windows_1252(&self) -> bool {
        self.characters == 0 && !self.is_marked && self.controls.count == 0 && self.western.is_plausible()
    }

    /// The remark that the text is not UTF-8, or `None` if it is.
    pub fn remark(&self) -> Option<String> {
        self.is_invalid().then(|| in_windows_1252(self.invalid.first))
    }
}

/// The remark that a text is not UTF-8, with the first such line.
pub(super) fn in_windows_1252(line: usize) -> String {
    format!("not UTF-8 at line {line}, so it is read as Windows-1252")
}

/// The error for text in an unrecognisable encoding.
pub(super) const NO_ENCODING: &str =
    "not UTF-8, and the text does not look like Windows-1252 either: save it as UTF-8";

fn line_breaks(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte == b'\n').count()
}

/// Whether text that is not UTF-8 is plausible as Windows-1252, which Western European languages use.
#[derive(Default)]
struct Western {
    /// Number of bytes outside ASCII.
    others: u64,
    /// Those of them that follow two others, unless all three are the same.
    in_runs: u64,
    /// Symbols between two letters, where other encodings have letters.
    symbols_in_words: u64,
    has_undefined: bool,
}

impl Western {
    fn add(&mut self, bytes: &[u8]) {
        if bytes.is_ascii() {
            return;
        }
        self.others += bytes.iter().filter(|byte| !byte.is_ascii()).count() as u64;
        let is_run = |at: &[u8]| at.iter().all(|byte| !byte.is_ascii()) && at != [at[0]; 3];
        self.in_runs += bytes.windows(3).filter(|at| is_run(at)).count() as u64;
        self.has_undefined |= bytes.iter().any(|byte| [0x81, 0x8d, 0x8f, 0x90, 0x9d].contains(byte));
        let is_letter =
            |byte: u8| byte.is_ascii_alphabetic() || byte >= 0xc0 && ![0xd7, 0xf7].contains(&byte);
        // Accents, quotes, the soft hyphen and the like may stand within words.
        let is_symbol = |byte: u8| {
            matches!(byte, 0xa1..=0xbf)
                && ![0xa8, 0xaa, 0xab, 0xad, 0xb4, 0xb7, 0xb8, 0xba, 0xbb].contains(&byte)
        };
        let in_words =
            bytes.windows(3).filter(|at| is_letter(at[0]) && is_symbol(at[1]) && is_letter(at[2])).count();
        self.symbols_in_words += in_words as u64;
    }

    /// Whether whole words are outside ASCII, unlike in Western European text.
    fn has_foreign_words(&self) -> bool {
        4 * self.in_runs > self.others
    }

    fn is_plausible(&self) -> bool {
        let &Self { others, symbols_in_words, has_undefined, .. } = self;
        // Short text is not conclusive.
        !has_undefined
            && (others < 8 || !self.has_foreign_words())
            && (symbols_in_words < 3 || 10 * symbols_in_words <= others)
    }
}

/// Checks that a text does not start like a file of another well-known format. HTML and XML are text.
pub(super) fn check_start(bytes: &[u8]) -> Result<()> {
    if let Some((what, remedy)) = known_format(bytes).filter(|_| !bytes.is_empty() && markup(bytes).is_none())
    {
        bail!(
            "is {what}, {}",
            match remedy {
                Remedy::Unpack => "expected text: unpack it first",
                Remedy::Export => "expected text: export it as CSV or text in UTF-8",
                Remedy::None => "expected text",
            }
        );
    }
    // Text in a European language has zeros at every second byte.
    let zeros =
        |first: usize| bytes.iter().take(64).skip(first).step_by(2).filter(|&&byte| byte == 0).count();
    let zeros = [zeros(0), zeros(1)];
    let is_utf16 =
        bytes.len() >= 4 && zeros.contains(&0) && zeros.iter().sum::<usize>() * 3 > bytes.len().min(64);
    ensure!(!is_utf16, "is UTF-16 without a byte order mark, expected UTF-8: save it as UTF-8");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_windows_1252_is_a_character_of_its_own() {
        let bytes: Vec<u8> = (0..=u8::MAX).collect();
        let text = windows_1252(&bytes);
        assert_eq!(text.chars().collect::<std::collections::BTreeSet<_>>().len(), 256);
        for (byte, expected) in
            [(0x41, 'A'), (0x80, '€'), (0x81, '\u{81}'), (0x92, '’'), (0x9f, 'Ÿ'), (0xff, 'ÿ')]
        {
            assert_eq!(text.chars().nth(byte), Some(expected), "{byte:#x}");
        }
    }

    #[test]
    fn encodings_other_than_windows_1252_are_refused() {
        let of = |bytes: &[u8]| decode(bytes.to_vec()).map_err(|error| error.to_string());
        for bytes in [
            &b"\x82\xb1\x82\xcc\x89f\x89\xe6\x81B\n"[..], // Shift-JIS
            b"pos,\xef\xf2\xeb\xe8\xf7\xed\xfb\xe9 \xf4\xe8\xeb\xfc\xec\n", // Windows-1251
            b"za\xbf\xf3\xb3\xe6 g\xea\xb6l\xb1 ja\xbc\xf1 by\xb3o ma\xb3o\n", // Latin-2
        ] {
            let error = of(bytes).unwrap_err();
            assert!(
                error.starts_with("line 1 is not UTF-8") && error.contains("save it as UTF-8"),
                "{error}"
            );
        }
        for bytes in
            [&b"\xe9t\xe9 l\xb7l 20\xb0C d\x92un prix\n"[..], b"\xc9\xc8\xc0\n", b"o\xb4clock 5m\xb2"]
        {
            assert!(of(bytes).is_ok(), "{bytes:?}");
        }
    }

    #[test]
    fn utf16_that_ends_within_a_character_is_refused() {
        for bytes in [&b"\xff\xfea\0b"[..], b"\xff\xfe\x3d\xd8", b"\xfe\xff\xdc\x00\0a"] {
            let error = decode(bytes.to_vec()).unwrap_err().to_string();
            assert!(error.contains("but the file is marked as such"), "{error}");
        }
        assert_eq!(decode(b"\xfe\xff\0a\xd8\x3d\xde\0".to_vec()).unwrap().0, "a😀");
    }
}
