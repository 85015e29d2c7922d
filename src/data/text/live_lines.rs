//! The lines of standard input and pipes, decoded as they come.

use super::encoding::{Scan, check_start, decode, in_windows_1252, is_converted, windows_1252};
use anyhow::{Context, Result};
use std::io::BufRead;

/// The lines of a text that is still being written, such as standard input.
///
/// Each line is decoded as it comes. It is UTF-8 or Windows-1252, whatever the other lines are.
pub(crate) struct LiveLines<R> {
    reader: R,
    scan: Scan,
    /// Number of lines so far.
    pub number: usize,
    /// The lines of a text that is converted as a whole, in reverse order.
    converted: Option<Vec<String>>,
}

impl<R: BufRead> LiveLines<R> {
    pub fn new(reader: R) -> Self {
        Self { reader, scan: Scan::default(), number: 0, converted: None }
    }

    /// Reads the next line, without its `\n`. The first line in another encoding adds a remark to `notes`.
    ///
    /// # Errors
    /// Fails if the input can't be read or is binary.
    pub fn next(&mut self, notes: &mut Vec<String>) -> Result<Option<String>> {
        self.number += 1;
        if let Some(lines) = &mut self.converted {
            return Ok(lines.pop());
        }
        let mut line = vec![];
        if self.number == 1 {
            let start = self.reader.fill_buf().context("can't be read")?;
            if is_converted(start) {
                self.reader.read_to_end(&mut line).context("can't be read")?;
                return self.convert(line, notes);
            }
            check_start(start)?;
        }
        if self.reader.read_until(b'\n', &mut line).context("can't be read")? == 0 {
            return Ok(None);
        }
        if self.number == 1 && !line.ends_with(b"\n") && line.contains(&b'\r') {
            return self.convert(line, notes);
        }
        let was_valid = self.scan.invalid.is_none();
        self.scan.add(&line, true)?;
        if was_valid && self.scan.invalid.is_some() {
            notes.push(in_windows_1252(format!("line {}", self.number)));
        }
        let line = line.strip_suffix(b"\n").unwrap_or(&line);
        let line = if self.number == 1 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
        Ok(Some(std::str::from_utf8(line).map_or_else(|_| windows_1252(line), String::from)))
    }

    fn convert(&mut self, bytes: Vec<u8>, notes: &mut Vec<String>) -> Result<Option<String>> {
        let (text, note) = decode(bytes)?;
        notes.extend(note);
        let mut lines: Vec<String> = text.split_terminator('\n').map(String::from).collect();
        lines.reverse();
        let first = lines.pop();
        self.converted = Some(lines);
        Ok(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    fn utf16(text: &str) -> Vec<u8> {
        "\u{feff}".encode_utf16().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(vec![], Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// The lines of `bytes`, read as they come, and the notes; or the error.
    fn lines(bytes: &[u8]) -> Result<(Vec<String>, Vec<String>), String> {
        let (mut lines, mut all, mut notes) = (LiveLines::new(bytes), vec![], vec![]);
        while let Some(line) = lines.next(&mut notes).map_err(|error| format!("{error:#}"))? {
            all.push(line);
        }
        Ok((all, notes))
    }

    #[test]
    fn whole_texts_and_lines_are_decoded_alike() {
        for (bytes, text, note) in [
            ("a\ncafé 😀".as_bytes().to_vec(), "a\ncafé 😀", None),
            ("\u{feff}é\n".as_bytes().to_vec(), "é\n", None),
            (
                b"a\ncaf\xe9\n".to_vec(),
                "a\ncafé\n",
                Some("not UTF-8 at line 2, so it is read as Windows-1252"),
            ),
            (utf16("a\né😀\n"), "a\né😀\n", Some("is converted from UTF-16LE")),
            (gzip(b"a\nb\n"), "a\nb\n", None),
            (gzip(&utf16("a\n\nb")), "a\n\nb", Some("is converted from UTF-16LE")),
            (b"a\rb\r".to_vec(), "a\nb\n", None),
            (b"".to_vec(), "", None),
        ] {
            let note = note.map(String::from);
            assert_eq!(decode(bytes.clone()).unwrap(), (text.to_string(), note.clone()));
            let expected = text.split_terminator('\n').map(String::from).collect();
            assert_eq!(lines(&bytes).unwrap(), (expected, note.into_iter().collect()));
        }
    }

    #[test]
    fn two_encodings_are_refused_in_a_whole_text_and_read_line_by_line() {
        let bytes = b"caf\xc3\xa9\nbad\xe9\ncaf\xc3\xa9\n";
        let error = decode(bytes.to_vec()).unwrap_err().to_string();
        assert!(error.contains("not UTF-8 at byte 9") && error.contains("two encodings"), "{error}");
        let note = "not UTF-8 at line 2, so it is read as Windows-1252".to_string();
        assert_eq!(lines(bytes), Ok((["café", "badé", "café"].map(String::from).to_vec(), vec![note])));
    }

    #[test]
    fn binary_texts_are_named_for_what_they_are() {
        let png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
        let mut bare = utf16("label,text\n");
        bare.drain(..2);
        let mut cut = utf16("ab");
        cut.pop();
        for (bytes, part) in [
            (gzip(&png), "is a PNG image, expected text"),
            (png, "is a PNG image, expected text"),
            (b"PK\x03\x04\x14\0".to_vec(), "is a zip archive"),
            (b"PAR1\x15\x04".to_vec(), "is a parquet file, expected text: export it"),
            (b"label,text\na,b\0\n".to_vec(), "is binary (byte 14 is zero)"),
            (
                b"caf\xe9\n\x01\n".to_vec(),
                "is binary (not UTF-8 at byte 3, and byte 5 is a control character)",
            ),
            (bare, "is UTF-16 without a byte order mark"),
            (cut, "not UTF-16LE, but the file is marked as such"),
            (b"\xef\xbb\xbfa\n\xe9".to_vec(), "not UTF-8 at byte 5, but the file is marked as such"),
            (gzip(b"a\n")[..12].to_vec(), "truncated"),
        ] {
            let error = format!("{:#}", decode(bytes.clone()).unwrap_err());
            assert!(error.contains(part), "{error}");
            assert_eq!(lines(&bytes).unwrap_err(), error);
        }
    }
}
