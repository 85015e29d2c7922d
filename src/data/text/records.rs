//! The records of CSV and TSV files, and their delimiters.

use super::file::TextFile;
use anyhow::{Context, Result};

/// The trimmed columns of a record and the line in which it begins.
pub(in crate::data) type Record = (usize, Vec<String>);

/// The delimiter of files with this name.
pub(super) fn usual_delimiter(file: &TextFile) -> u8 {
    let name = file.path.to_string_lossy().to_lowercase();
    if name.trim_end_matches(".gz").ends_with(".tsv") { b'\t' } else { b',' }
}

/// The name of a delimiter, in the plural.
pub(super) fn delimiter_name(delimiter: u8) -> String {
    match delimiter {
        b',' => "commas".to_string(),
        b';' => "semicolons".to_string(),
        b'\t' => "tabs".to_string(),
        other => format!("characters {:?}", char::from(other)),
    }
}

/// The delimiter that the first line declares, as in Excel: `sep=;`.
pub(super) fn declared_delimiter(text: &str) -> Option<u8> {
    let line = text.lines().next()?.trim_matches('"');
    let (name, delimiter) = line.split_at_checked(4)?;
    match (name.eq_ignore_ascii_case("sep="), delimiter.as_bytes()) {
        (true, &[delimiter] | &[delimiter, b' ']) if !delimiter.is_ascii_alphanumeric() => Some(delimiter),
        (true, b"\\t") => Some(b'\t'),
        _ => None,
    }
}

fn reader(text: &str, delimiter: u8, has_quotes: bool) -> csv::Reader<&[u8]> {
    csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .quoting(has_quotes)
        .has_headers(false)
        .flexible(true)
        .from_reader(text.as_bytes())
}

/// Number of columns of the first record.
pub(super) fn first_width(file: &TextFile, delimiter: u8) -> usize {
    let first = reader(&file.text, delimiter, true).into_records().next();
    first.and_then(Result::ok).map_or(0, |record| record.len())
}

/// The records of a file, without a declaration of the delimiter.
pub(in crate::data) struct Records {
    pub records: Vec<Record>,
    /// The lines before the first record with two cells, such as a title. Only the first of two cells may be empty.
    pub before: Vec<usize>,
    /// The assumption about quotes.
    pub note: Option<String>,
    pub delimiter: u8,
}

/// Reads the records of a file.
///
/// Where tabs separate the columns, a text may begin with a quote that never ends.
pub(in crate::data) fn records(file: &TextFile, delimiter: u8) -> Result<Records> {
    let unended = |line| file.error_at(line, "a quoted field never ends");
    let is_swallowed = |cell: &String| cell.contains('\n') && cell.contains('\t');
    let quoted = quoted_records(file, delimiter, true)?.and_then(|records| {
        match records.iter().find(|(_, cells)| delimiter == b'\t' && cells.iter().any(is_swallowed)) {
            Some((line, _)) => Err(*line),
            None => Ok(records),
        }
    });
    let (mut records, note) = match quoted {
        Ok(records) => (records, None),
        Err(line) if delimiter == b'\t' => {
            let path = file.path.display();
            let note =
                format!("{path}: quotes are read as characters, because in line {line} one never ends");
            (quoted_records(file, delimiter, false)?.map_err(unended)?, Some(note))
        }
        Err(line) => return Err(unended(line)),
    };
    // A header may lack the name of the first column, which numbers the rows.
    let has_two = |(_, cells): &Record| {
        let filled = cells.iter().filter(|cell| !cell.is_empty()).count();
        filled > 1 || filled == 1 && cells.len() == 2 && cells[0].is_empty()
    };
    let start = records.iter().position(has_two).unwrap_or(0);
    let before = records.drain(..start).map(|(line, _)| line).collect();
    Ok(Records { records, before, note, delimiter })
}

/// Like [`records`], or returns the line in which a quoted field begins that never ends.
fn quoted_records(file: &TextFile, delimiter: u8, has_quotes: bool) -> Result<Result<Vec<Record>, usize>> {
    // An unclosed quote swallows the rest of the file, and with it this record.
    const END: &str = "\u{3}";
    let text = format!("{}\n{END}", file.text);
    let mut records = Vec::new();
    for record in reader(&text, delimiter, has_quotes).into_records() {
        let record = record.with_context(|| format!("{}: can't be read", file.path.display()))?;
        // The position of a record includes the blank lines before it.
        let (offset, line) = record.position().map_or((0, 0), |at| (at.byte() as usize, at.line() as usize));
        let blank = text[offset..].split(|c| c != '\r' && c != '\n').next().unwrap_or_default();
        let line = line + blank.matches('\n').count();
        let columns: Vec<String> = record.iter().map(|column| column.trim().to_string()).collect();
        if offset + blank.len() > file.text.len() && columns == [END] {
            break;
        }
        if columns.last().is_some_and(|column| column.ends_with(END)) {
            return Ok(Err(line));
        }
        records.push((line, columns));
    }
    let is_declaration = declared_delimiter(&file.text).is_some() && !records.is_empty();
    records.drain(..usize::from(is_declaration));
    Ok(Ok(records))
}
