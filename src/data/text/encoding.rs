//! The encodings of text: UTF-8, UTF-16 with a byte order mark, or Windows-1252, gzipped or not; and what is binary.

use crate::data::file_kind::{Remedy, is_html, known_format};
use crate::data::gzip;
use anyhow::{Context, Result, bail, ensure};
use std::io::Read;

/// The characters of the bytes 0x80 to 0x9f in Windows-1252, as browsers read it. The others are those of Latin-1.
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

/// The name of the UTF-16 that the byte order mark at the start of `bytes` says, and how it orders two bytes.
fn marked_utf16(bytes: &[u8]) -> Option<(&'static str, fn([u8; 2]) -> u16)> {
    match bytes {
        [0xff, 0xfe, ..] => Some(("UTF-16LE", u16::from_le_bytes)),
        [0xfe, 0xff, ..] => Some(("UTF-16BE", u16::from_be_bytes)),
        _ => None,
    }
}

/// Whether a text that starts with `bytes` must be converted as a whole: it is gzipped or in UTF-16.
pub(super) fn is_converted(bytes: &[u8]) -> bool {
    bytes.starts_with(&gzip::MAGIC) || marked_utf16(bytes).is_some()
}

/// Decodes a whole text, and returns a remark if it is not UTF-8. In a text without `\n`, each `\r` counts as `\n`.
///
/// # Errors
/// Fails if the text is binary, or isn't in the encoding that its byte order mark says.
pub(super) fn decode(mut bytes: Vec<u8>) -> Result<(String, Option<String>)> {
    if bytes.starts_with(&gzip::MAGIC) {
        let mut unpacked = vec![];
        gzip::Unpacked::new(&bytes[..]).read_to_end(&mut unpacked).map_err(gzip::read_error)?;
        bytes = unpacked;
    }
    let (text, note) = match marked_utf16(&bytes) {
        Some((name, unit)) => {
            let (pairs, odd) = bytes[2..].as_chunks::<2>();
            let units: Vec<u16> = pairs.iter().map(|&pair| unit(pair)).collect();
            ensure!(!units.contains(&0), "is binary or in UTF-32, expected UTF-8, UTF-16 or Windows-1252");
            let text = String::from_utf16(&units).ok().filter(|_| odd.is_empty());
            let text = text.with_context(|| format!("not {name}, but the file is marked as such"))?;
            (text, Some(format!("is converted from {name}")))
        }
        _ => {
            let mut scan = Scan::default();
            scan.add(&bytes, true)?;
            scan.check_whole()?;
            match scan.invalid {
                None => {
                    let text = String::from_utf8(bytes)?;
                    (text.strip_prefix('\u{feff}').map(String::from).unwrap_or(text), None)
                }
                Some(at) => {
                    let line = 1 + bytes[..at as usize].iter().filter(|&&byte| byte == b'\n').count();
                    (windows_1252(&bytes), Some(in_windows_1252(format!("line {line}"))))
                }
            }
        }
    };
    let mut text = if !text.contains('\n') && text.contains('\r') { text.replace('\r', "\n") } else { text };
    // The end of a file of MS-DOS.
    text.truncate(text.trim_end_matches('\u{1a}').len());
    Ok((text, note))
}

/// The remark that a text is not UTF-8 at `place`.
pub(super) fn in_windows_1252(place: String) -> String {
    format!("not UTF-8 at {place}, so it is read as Windows-1252")
}

/// What consecutive bytes say about the encoding of a text.
#[derive(Default)]
pub(super) struct Scan {
    /// Number of bytes so far.
    at: u64,
    /// The first byte that is not UTF-8.
    pub invalid: Option<u64>,
    /// The first control character that text does not have.
    control: Option<u64>,
    /// Whether the text has the byte order mark of UTF-8.
    pub is_marked: bool,
    /// Whether characters outside ASCII precede the first byte that is not UTF-8.
    has_utf8: bool,
}

impl Scan {
    /// Checks the next bytes, and returns how many are whole characters; the rest must come again with the next call.
    ///
    /// # Errors
    /// Fails if the text is binary: it has zero bytes, or is not UTF-8 and has control characters.
    pub fn add(&mut self, bytes: &[u8], is_end: bool) -> Result<usize> {
        let begin = self.at;
        if begin == 0 {
            check_start(bytes)?;
            self.is_marked = bytes.starts_with(b"\xef\xbb\xbf");
        }
        let whole = self.check_utf8(bytes, is_end);
        if let Some(zero) = bytes.iter().position(|&byte| byte == 0) {
            bail!("is binary (byte {} is zero), expected text", begin + zero as u64);
        }
        let is_control = |byte: &u8| {
            byte.is_ascii_control() && !byte.is_ascii_whitespace() && ![0x0b, 0x1a, 0x1b, 0x7f].contains(byte)
        };
        self.control = self.control.or(bytes.iter().position(is_control).map(|at| begin + at as u64));
        if let Some(byte) = self.invalid {
            ensure!(!self.is_marked, "not UTF-8 at byte {byte}, but the file is marked as such");
            if let Some(control) = self.control {
                bail!(
                    "is binary (not UTF-8 at byte {byte}, and byte {control} is a control character), expected text"
                );
            }
        }
        self.at += whole as u64;
        Ok(whole)
    }

    /// Checks that the bytes so far are in one encoding.
    ///
    /// # Errors
    /// Fails if they are not UTF-8, but begin with UTF-8 characters outside ASCII.
    pub fn check_whole(&self) -> Result<()> {
        match self.invalid {
            Some(byte) if self.has_utf8 => bail!(
                "not UTF-8 at byte {byte}, but there are UTF-8 characters before it: the text is damaged or in two encodings"
            ),
            _ => Ok(()),
        }
    }

    fn check_utf8(&mut self, bytes: &[u8], is_end: bool) -> usize {
        if self.invalid.is_some() {
            return bytes.len();
        }
        let error = std::str::from_utf8(bytes).err();
        let valid = error.map_or(bytes.len(), |error| error.valid_up_to());
        self.has_utf8 |= !bytes[..valid].is_ascii();
        match error {
            Some(error) if error.error_len().is_some() || is_end => {
                self.invalid = Some(self.at + valid as u64);
                bytes.len()
            }
            _ => valid,
        }
    }
}

/// Checks that a text does not start with the first bytes of a well-known format of other files. An HTML page is text.
pub(super) fn check_start(bytes: &[u8]) -> Result<()> {
    if let Some((what, remedy)) = known_format(bytes).filter(|_| !bytes.is_empty() && !is_html(bytes)) {
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
    fn utf16_that_ends_within_a_character_is_refused() {
        for bytes in [&b"\xff\xfea\0b"[..], b"\xff\xfe\x3d\xd8", b"\xfe\xff\xdc\x00\0a"] {
            let error = decode(bytes.to_vec()).unwrap_err().to_string();
            assert!(error.contains("but the file is marked as such"), "{error}");
        }
        assert_eq!(decode(b"\xfe\xff\0a\xd8\x3d\xde\0".to_vec()).unwrap().0, "a😀");
    }
}
