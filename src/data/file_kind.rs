//! Recognition of files that are not in the format that a reader expects.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;

/// The remedy for a file of a known format that is not the expected one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// It holds files: unpack it.
    Unpack,
    /// It holds data: export them.
    Export,
    /// Look for another file.
    None,
}

/// The name of MusicXML, compressed or not.
pub(crate) const MUSICXML: &str = "a MusicXML file";

/// Describes the format that the first bytes of a file show, if it is a well-known one other than text.
pub(crate) fn known_format(bytes: &[u8]) -> Option<(&'static str, Remedy)> {
    use Remedy::{Export, None as Other, Unpack};
    const FORMATS: [(&[u8], &str, Remedy); 22] = [
        (b"PK\x03\x04", "a zip archive or an Office document", Unpack),
        (b"\x1f\x8b", "a gzip file", Unpack),
        (b"\xfd7zXZ\0", "an xz file", Unpack),
        (b"\x28\xb5\x2f\xfd", "a zstd file", Unpack),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive", Unpack),
        (b"Rar!\x1a\x07", "a RAR archive", Unpack),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "an Office document", Export),
        (b"PAR1\x15", "a parquet file", Export),
        (b"ARROW1\0", "an Arrow file", Export),
        (b"SQLite format 3\0", "an SQLite database", Export),
        (b"\x93NUMPY", "a NumPy array", Export),
        (b"\x89HDF\r\n", "an HDF5 file", Export),
        (b"%PDF-", "a PDF document", Export),
        (b"GGUF", "a GGUF file", Other),
        (b"\x89PNG\r\n\x1a\n", "a PNG image", Other),
        (b"\xff\xd8\xff", "a JPEG image", Other),
        (b"GIF89a", "a GIF image", Other),
        (b"GIF87a", "a GIF image", Other),
        (b"MThd", "a MIDI file", Other),
        (b"\x7fELF", "a program", Other),
        (
            b"version https://git-lfs",
            "a Git LFS pointer in place of the file (`git lfs pull` fetches it)",
            Other,
        ),
        (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20", "a file of torch.save", Other),
    ];
    if bytes.is_empty() {
        return Some(("an empty file", Other));
    }
    if let Some(name) = markup(bytes) {
        return Some((name, Other));
    }
    if bytes.starts_with(b"BZh") && bytes.get(4..10) == Some(b"1AY&SY") {
        return Some(("a bzip2 file", Unpack));
    }
    if bytes.get(257..262) == Some(b"ustar") {
        return Some(("a tar archive", Unpack));
    }
    if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        return Some(("a WebP image", Other));
    }
    // The first file in the archive.
    let (start, is_zip) = (&bytes[..bytes.len().min(512)], bytes.starts_with(b"PK\x03\x04"));
    if is_zip && contains(start, b"/data.pkl") {
        return Some(("a file of torch.save", Other));
    }
    // The same is in electronic books and MuseScore's own files.
    let is_score = || {
        contains(bytes, b"META-INF/container.xml")
            && !contains(start, b"application/epub")
            && !contains(bytes, b".mscx")
    };
    if is_zip && is_score() {
        return Some((MUSICXML, Other));
    }
    // As telephones store photographs.
    if bytes.get(4..8) == Some(b"ftyp") && bytes.get(8..11).is_some_and(|brand| HEIC.contains(&brand)) {
        return Some(("an HEIC image", Other));
    }
    if is_safetensors(bytes) {
        return Some(("a safetensors file", Other));
    }
    let known = FORMATS.into_iter().find(|(start, ..)| bytes.starts_with(start));
    match known {
        Some((_, name, remedy)) => Some((name, remedy)),
        // A file of torch.save or safetensors may also start like this.
        None if matches!(bytes, [0x80, 2..=5, ..]) => Some(("a Python pickle", Export)),
        None => None,
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// How the brands of HEIC images begin.
const HEIC: [&[u8]; 4] = [b"hei", b"hev", b"mif", b"msf"];

/// Whether a file starts like one of safetensors: the length of its header, then the header.
pub(crate) fn is_safetensors(bytes: &[u8]) -> bool {
    bytes.get(8) == Some(&b'{') && bytes.get(5..8) == Some(&[0; 3])
}

/// What a file is, in words, that starts like an HTML page or an XML document, perhaps after comments.
pub(crate) fn markup(bytes: &[u8]) -> Option<&'static str> {
    const COMMENT_END: &[u8] = b"-->";
    let mut text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    while text.starts_with(b"<!--") {
        let end = text.windows(COMMENT_END.len()).position(|bytes| bytes == COMMENT_END)?;
        text = text[end + COMMENT_END.len()..].trim_ascii_start();
    }
    let starts_with = |tag: &[u8]| text.get(..tag.len()).is_some_and(|start| start.eq_ignore_ascii_case(tag));
    if starts_with(b"<!doctype html") || starts_with(b"<html") {
        return Some("an HTML page, perhaps of a download that failed");
    }
    let start = &text[..text.len().min(4096)];
    if start.starts_with(b"<") && (contains(start, b"<score-partwise") || contains(start, b"<score-timewise"))
    {
        return Some(MUSICXML);
    }
    starts_with(b"<?xml").then_some("an XML document, perhaps of a download that failed")
}

/// Describes a file that is not `expected`, for an error message; `None` if its format is unknown.
pub(crate) fn found_instead(bytes: &[u8], expected: &str) -> Option<String> {
    known_format(bytes).map(|(what, remedy)| {
        let remedy = match remedy {
            Remedy::Unpack => ": unpack it first",
            Remedy::Export | Remedy::None => "",
        };
        format!("found {what}, expected {expected}{remedy}")
    })
}

/// Checks that `path` is a file before it is opened, as opening a pipe may wait forever.
///
/// # Errors
/// Fails if it is missing, a folder, a pipe or a device.
pub(crate) fn check_is_file(path: &Path) -> Result<()> {
    let name = path.display();
    let kind = fs::metadata(path).with_context(|| format!("{name}: can't be read"))?.file_type();
    ensure!(!kind.is_dir(), "{name}: is a directory, expected a file");
    ensure!(kind.is_file(), "{name}: is a pipe or a device, expected a file");
    Ok(())
}

/// Checks that `path` is the directory of a data set.
///
/// # Errors
/// Fails if there is no such directory, or if it is a file.
pub(crate) fn check_is_directory(path: &Path) -> Result<()> {
    let name = path.display();
    ensure!(!path.exists() || path.is_dir(), "{name}: is a file, expected the directory that holds the data");
    ensure!(path.is_dir(), "{name}: no such directory");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_no_missing_directory() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = |path: &Path| check_is_directory(path).unwrap_err().to_string();
        assert!(error(file.path()).ends_with("is a file, expected the directory that holds the data"));
        assert_eq!(error(Path::new("nowhere")), "nowhere: no such directory");
    }

    #[test]
    fn files_are_named_for_what_they_are() {
        let tar = [&[b'a'; 257][..], b"ustar"].concat();
        for (bytes, name) in [
            (&b""[..], "an empty file"),
            (b"\n<!DOCTYPE html>", "an HTML page, perhaps of a download that failed"),
            (b"\xef\xbb\xbf<HTML>", "an HTML page, perhaps of a download that failed"),
            (b"<!-- a --> <!---->\n<html", "an HTML page, perhaps of a download that failed"),
            (b"<?xml version=", "an XML document, perhaps of a download that failed"),
            (b"<?xml version='1.0'?>\n<!-- a -->\n<score-partwise version='4.0'>", "a MusicXML file"),
            (b"<!DOCTYPE score-timewise PUBLIC ''>\n<score-timewise>", "a MusicXML file"),
            (b"PK\x03\x04\0\0META-INF/container.xml\0a.xml", "a MusicXML file"),
            (
                b"PK\x03\x04\0\0mimetypeapplication/epub+zip\0META-INF/container.xml",
                "a zip archive or an Office document",
            ),
            (b"\x93NUMPY\x01\0", "a NumPy array"),
            (b"\x80\x04\x95", "a Python pickle"),
            (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a", "a file of torch.save"),
            (b"PK\x03\x04\0\0model/data.pkl", "a file of torch.save"),
            (b"PK\x03\x04\0\0word/document.xml", "a zip archive or an Office document"),
            (b"\0\0\0\x18ftypheic", "an HEIC image"),
            (b"\x40\0\0\0\0\0\0\0{\"a\"", "a safetensors file"),
            (b"\x80\x02\0\0\0\0\0\0{\"a\"", "a safetensors file"),
            (b"BZh11AY&SY", "a bzip2 file"),
            (b"RIFF\x01\0\0\0WEBP", "a WebP image"),
            (&tar, "a tar archive"),
        ] {
            assert_eq!(known_format(bytes).unwrap().0, name);
        }
        for text in [&b"label,text\n"[..], b"<!-- a comment", b"<p>"] {
            assert!(known_format(text).is_none());
        }
        assert!(known_format(b"version https://git-lfs.github.com").unwrap().0.contains("git lfs pull"));
    }
}
