//! The lines of standard input and pipes, decoded as they arrive.

use super::encoding::{
    Encoding, NO_ENCODING, Scan, check_start, converted, decode, in_windows_1252, is_converted, windows_1252,
};
use super::file::TextFile;
use crate::data::file_kind::check_is_file;
use anyhow::{Context, Result, anyhow, ensure};
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, Cursor};
use std::path::{Path, PathBuf};

/// The lines of a text that is still being written, such as standard input, or of a whole file.
///
/// Lines end with `\n` or `\r\n`. Each line is decoded as it arrives. A line that can't be read is a separate error, and
/// the other lines are still read. Lines that are not UTF-8 are read as Windows-1252 unless there is UTF-8 outside ASCII:
/// anywhere in a whole file, or in the previous lines of another text.
pub(crate) struct LiveLines<R> {
    reader: R,
    /// A text that was read as a whole, to read instead of `reader`.
    whole: Option<Cursor<Vec<u8>>>,
    scan: Scan,
    /// The encoding of a whole text.
    encoding: Option<Encoding>,
    /// Number of lines so far.
    pub number: usize,
    /// The lines that were read as Windows-1252.
    western: Vec<usize>,
}

impl LiveLines<Cursor<Vec<u8>>> {
    /// The lines of a file, with remarks about its encoding.
    ///
    /// # Errors
    /// Fails if the file can't be read, is empty or of another format, or if most of its lines can't be read.
    pub fn open(path: &Path, notes: &mut Vec<String>) -> Result<Self> {
        let name = path.display();
        let bytes = content(path)?;
        let mut lines = Self::new(Cursor::default());
        let mut remarks = vec![];
        lines.take_whole(bytes, &mut remarks).map_err(|error| anyhow!("{name}: {error:#}"))?;
        notes.extend(remarks.into_iter().map(|remark| format!("{name}: {remark}")));
        Ok(lines)
    }

    /// The whole text of the file `path`, which was opened, if all of its lines can be read.
    pub fn file(&self, path: &Path) -> Option<TextFile> {
        let (text, _) = decode(self.whole.as_ref()?.get_ref().clone()).ok()?;
        Some(TextFile { path: path.into(), text })
    }

    /// The lines of a file for [`next_path`](Self::next_path).
    ///
    /// # Errors
    /// Fails if the file can't be read or is empty.
    pub fn open_paths(path: &Path) -> Result<Self> {
        Ok(Self::new(Cursor::new(content(path)?)))
    }
}

fn content(path: &Path) -> Result<Vec<u8>> {
    check_is_file(path)?;
    let bytes = fs::read(path).with_context(|| format!("{}: can't be read", path.display()))?;
    ensure!(!bytes.is_empty(), "{}: is empty", path.display());
    Ok(bytes)
}

impl<R: BufRead> LiveLines<R> {
    pub fn new(reader: R) -> Self {
        Self { reader, whole: None, scan: Scan::default(), encoding: None, number: 0, western: vec![] }
    }

    /// Reads the next line, without its end, or returns the reason why it can't be decoded.
    ///
    /// The first line in another encoding adds a remark to `notes`.
    ///
    /// # Errors
    /// Fails if the input can't be read or is a file of another format.
    pub fn next(&mut self, notes: &mut Vec<String>) -> Result<Option<Result<String, String>>> {
        let line = self.read(notes)?;
        line.map(|line| self.decode(&line, notes)).transpose()
    }

    /// Like [`next`](Self::next), for lines that name files: a path that is not UTF-8 is returned as it is.
    pub fn next_path(&mut self, notes: &mut Vec<String>) -> Result<Option<Result<OsString, String>>> {
        let Some(line) = self.read(notes)? else { return Ok(None) };
        let path = path_of_bytes(without_end(&line).to_vec());
        Ok(Some(match path.to_str().is_none() && path.exists() {
            true => Ok(path.into()),
            false => self.decode(&line, notes)?.map(OsString::from),
        }))
    }

    /// Reads the next line, with its `\n`.
    fn read(&mut self, notes: &mut Vec<String>) -> Result<Option<Vec<u8>>> {
        let mut line = vec![];
        if self.number == 0 && self.whole.is_none() {
            let start = self.reader.fill_buf().context("can't be read")?;
            if is_converted(start) {
                self.reader.read_to_end(&mut line).context("can't be read")?;
                self.take_whole(std::mem::take(&mut line), notes)?;
            } else {
                check_start(start)?;
            }
        }
        self.number += 1;
        let read = match &mut self.whole {
            Some(whole) => whole.read_until(b'\n', &mut line),
            None => self.reader.read_until(b'\n', &mut line),
        };
        if read.context("can't be read")? == 0 {
            return Ok(None);
        }
        if self.number == 1 && self.whole.is_none() && !line.ends_with(b"\n") && line.contains(&b'\r') {
            self.number = 0;
            self.take_whole(line, notes)?;
            return self.read(notes);
        }
        Ok(Some(line))
    }

    /// Reads `bytes` instead of the reader.
    fn take_whole(&mut self, bytes: Vec<u8>, notes: &mut Vec<String>) -> Result<()> {
        let (bytes, note) = converted(bytes)?;
        notes.extend(note);
        let mut scan = Scan::default();
        scan.add(&bytes, true)?;
        let encoding = match scan.check_whole() {
            Ok(encoding) => encoding,
            Err(error) => {
                let (unreadable, all) = scan.unreadable();
                ensure!(2 * unreadable <= all, error);
                Encoding::Utf8
            }
        };
        if encoding == Encoding::Windows1252 {
            notes.extend(scan.remark());
        }
        (self.encoding, self.scan) = (Some(encoding), scan);
        self.whole = Some(Cursor::new(bytes));
        Ok(())
    }

    /// Decodes a line, or returns the reason why it can't be decoded.
    fn decode(&mut self, line: &[u8], notes: &mut Vec<String>) -> Result<Result<String, String>> {
        if self.whole.is_none() {
            self.scan.add(line, true)?;
        }
        let line = without_end(line);
        let line = if self.number == 1 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
        Ok(self.text(line, notes))
    }

    fn text(&mut self, line: &[u8], notes: &mut Vec<String>) -> Result<String, String> {
        if line.contains(&0) {
            return Err("is binary (with a zero byte), expected text".to_string());
        }
        if let Ok(text) = std::str::from_utf8(line) {
            return Ok(text.to_string());
        }
        match self.encoding {
            Some(Encoding::Windows1252) => return Ok(windows_1252(line)),
            None if self.scan.may_be_windows_1252() => {}
            _ if !self.scan.has_utf8() => return Err(format!("is {NO_ENCODING}")),
            _ => return Err("is not UTF-8, but other lines are".to_string()),
        }
        if self.western.is_empty() {
            notes.push(in_windows_1252(self.number));
        }
        self.western.push(self.number);
        Ok(windows_1252(line))
    }

    /// The lines read as Windows-1252 before other lines turned out to be in another encoding, each returned once.
    pub fn doubtful(&mut self) -> Vec<usize> {
        if self.scan.may_be_windows_1252() { vec![] } else { std::mem::take(&mut self.western) }
    }
}

/// A line without `\n` or `\r\n` at its end.
fn without_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// The path that `bytes` are. Where paths are not bytes, what is not UTF-8 is replaced.
pub(crate) fn path_of_bytes(bytes: Vec<u8>) -> PathBuf {
    #[cfg(unix)]
    return <OsString as std::os::unix::ffi::OsStringExt>::from_vec(bytes).into();
    #[cfg(not(unix))]
    return String::from_utf8_lossy(&bytes).into_owned().into();
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
            all.push(line.unwrap_or_else(|error| format!("line {} {error}", lines.number)));
            notes.extend(lines.doubtful().iter().map(|line| format!("line {line} is doubtful")));
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
            if !bytes.is_empty() {
                let file = tempfile::NamedTempFile::new().unwrap();
                fs::write(file.path(), &bytes).unwrap();
                let opened = LiveLines::open(file.path(), &mut vec![]).unwrap();
                assert_eq!(opened.file(file.path()).unwrap().text, text);
            }
            let expected = text.split_terminator('\n').map(String::from).collect();
            assert_eq!(lines(&bytes).unwrap(), (expected, note.into_iter().collect()));
        }
    }

    #[test]
    fn bad_lines_are_named_wherever_they_stand_and_the_others_read() {
        let good = "カフェ\n".as_bytes();
        let bad = b"caf\xe9\n";
        for (text, line) in [([bad, good, good].concat(), 1), ([good, bad, good].concat(), 2)] {
            let error = decode(text.clone()).unwrap_err().to_string();
            let expected = format!("line {line} is not UTF-8, but there are UTF-8 characters elsewhere");
            assert!(error.starts_with(&expected), "{error}");
            let place = tempfile::tempdir().unwrap();
            let path = place.path().join("f.txt");
            fs::write(&path, &text).unwrap();
            let mut whole = LiveLines::open(&path, &mut vec![]).unwrap();
            assert!(whole.file(&path).is_none());
            let read: Vec<_> =
                std::iter::from_fn(|| whole.next(&mut vec![]).unwrap()).map(|line| line.is_ok()).collect();
            assert_eq!(read, [line != 1, line != 2, true]);
            let gzipped = lines(&gzip(&text)).unwrap();
            assert!(gzipped.0[line - 1].contains("is not UTF-8, but other lines are"), "{gzipped:?}");
        }
        let (read, notes) = lines(&[bad, good, bad, b"a\0\n", b"\xe3\x81\n"].concat()).unwrap();
        assert_eq!(read[..2], ["café", "カフェ"]);
        assert!(
            read[2].starts_with("line 3 is not UTF-8") && read[3].starts_with("line 4 is binary"),
            "{read:?}"
        );
        assert!(read[4].starts_with("line 5 is not UTF-8"), "{read:?}");
        assert!(notes[0].contains("not UTF-8 at line 1") && notes[1] == "line 1 is doubtful", "{notes:?}");
        assert!(lines(b"\xe3\x81\n").unwrap().0[0].contains("save it as UTF-8"));
    }

    #[test]
    fn lines_in_east_asian_encodings_are_named_so_however_much_ascii_surrounds_them() {
        let ascii = b"4,positive,https://example.com/item-4,a long description in English,";
        let euc_jp = b"\xa4\xb3\xa4\xce\xc7\xad\xa4\xcf\xc4\xed\xa4\xc7\xbf\xb2\xa4\xc6\xa4\xa4\xa4\xeb";
        let shift_jis = b"\x82\xb1\x82\xcc\x94\x4c\x82\xcd\x92\xeb\x82\xc5\x90\x51\x82\xc4\x82\xa2\x82\xe9";
        let gbk = b"\xbd\xf1\xcc\xec\xcc\xec\xc6\xf8\xba\xdc\xba\xc3";
        let said = format!("line 1 is {NO_ENCODING}");
        for foreign in [&euc_jp[..], shift_jis, gbk] {
            let line = [&ascii[..], foreign, b"\n"].concat();
            assert_eq!(decode(line.clone()).unwrap_err().to_string(), said);
            assert_eq!(lines(&line).unwrap().0, [said.as_str()]);
            // Among more lines in ASCII.
            let text = [&line[..], b"a\nb\nc\n"].concat();
            assert_eq!(lines(&gzip(&text)).unwrap().0, [said.as_str(), "a", "b", "c"]);
        }
        // A short line may be Windows-1252 until others follow.
        let (read, notes) = lines(&[&b"\xa4\xb3\n"[..], euc_jp].concat()).unwrap();
        assert_eq!(read, ["\u{a4}\u{b3}", &format!("line 2 is {NO_ENCODING}")]);
        assert!(notes.contains(&"line 1 is doubtful".to_string()), "{notes:?}");
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
            (bare, "is UTF-16 without a byte order mark"),
            (cut, "not UTF-16LE, but the file is marked as such"),
            (gzip(b"a\n")[..12].to_vec(), "truncated"),
        ] {
            let error = format!("{:#}", decode(bytes.clone()).unwrap_err());
            assert!(error.contains(part), "{error}");
            assert_eq!(lines(&bytes).unwrap_err(), error);
        }
        for (bytes, part) in [
            (&b"label,text\na,b\0\n"[..], "line 2 is binary (with a zero byte)"),
            (
                b"caf\xe9\n\x01\n",
                "is binary (line 1 is not UTF-8, and there is a control character in line 2)",
            ),
            (b"\xef\xbb\xbfa\n\xe9", "line 2 is not UTF-8, but the file is marked as such"),
        ] {
            let error = decode(bytes.to_vec()).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
