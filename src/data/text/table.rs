//! Tables of labels and texts in CSV and TSV files.

use super::file::TextFile;
use crate::data::count;
use crate::data::error::DataError;
use anyhow::{Context, Result};
use std::collections::{BTreeSet, HashMap, HashSet};

const LABEL_NAMES: [&str; 12] = [
    "label",
    "labels",
    "class",
    "category",
    "sentiment",
    "target",
    "polarity",
    "topic",
    "intent",
    "emotion",
    "rating",
    "stars",
];
const TEXT_NAMES: [&str; 11] = [
    "text", "sentence", "review", "comment", "tweet", "content", "message", "document", "phrase", "post",
    "headline",
];

/// The columns of a table that hold label and text, each a name in its header or a number from 1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns {
    /// The column of the label; none to find it.
    pub label: Option<String>,
    /// The column of the text; none to find it.
    pub text: Option<String>,
}

impl Columns {
    /// Whether neither column is given.
    pub fn is_empty(&self) -> bool {
        self.label.is_none() && self.text.is_none()
    }
}

/// The trimmed columns of a record and the line in which it begins.
type Record = (usize, Vec<String>);

/// A text, its label, and the line in which they begin.
pub(super) struct Row<'a> {
    pub line: usize,
    pub label: &'a str,
    pub text: &'a str,
}

/// Where a table has its labels and texts.
#[derive(Debug, Clone, Default)]
pub(super) struct Layout {
    delimiter: u8,
    /// Number of columns.
    width: usize,
    label: usize,
    text: usize,
    /// The first record, if it is a header.
    header: Option<Vec<String>>,
}

/// A file of labels and texts.
pub(super) struct Table {
    pub file: TextFile,
    records: Vec<Record>,
    layout: Layout,
}

impl Table {
    /// Reads the table of the first split, and finds its columns, which `columns` may name.
    ///
    /// Notes say what was assumed.
    pub fn read(file: TextFile, columns: &Columns, notes: &mut Vec<String>) -> Result<Self> {
        let is_tsv = file.path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("tsv"));
        let delimiters = if is_tsv { &b"\t"[..] } else { b",;\t" };
        let mut error = None;
        for &delimiter in delimiters {
            match parse(&file, delimiter, columns) {
                Ok((layout, records, assumptions)) => {
                    let separator = match delimiter {
                        _ if delimiter == delimiters[0] => None,
                        b';' => Some("semicolons separate the columns".to_string()),
                        _ => Some("tabs separate the columns".to_string()),
                    };
                    let assumptions = separator.into_iter().chain(assumptions);
                    notes.extend(assumptions.map(|note| format!("{}: {note}", file.path.display())));
                    return Ok(Self { file, records, layout });
                }
                Err(found) => error = error.or(Some(found)),
            }
        }
        Err(error.unwrap_or_else(|| file.error(NO_ROWS)))
    }

    /// Reads the table of another split, which has the same columns unless its header says otherwise.
    pub fn read_like(file: TextFile, first: &Layout) -> Result<Self> {
        let mut records = records(&file, first.delimiter)?;
        let mut layout = first.clone();
        let header = records.first().map_or(&[][..], |(_, cells)| cells);
        let is_same = first.header.as_ref().is_some_and(|header_of_first| {
            header_of_first
                .iter()
                .map(|cell| cell.to_lowercase())
                .eq(header.iter().map(|cell| cell.to_lowercase()))
        });
        match by_names(&records) {
            _ if is_same => _ = records.remove(0),
            Some((label, text)) => {
                (layout.width, layout.label, layout.text) = (header.len(), label, text);
                records.remove(0);
            }
            None => {}
        }
        check(&file, &records, &layout)?;
        Ok(Self { file, records, layout })
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    pub fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        let Layout { label, text, .. } = self.layout;
        self.records.iter().map(move |(line, cells)| Row {
            line: *line,
            label: &cells[label],
            text: &cells[text],
        })
    }

    /// The different labels, sorted.
    pub fn classes(&self) -> Result<Vec<String>> {
        let classes: BTreeSet<&str> = self.rows().map(|row| row.label).collect();
        let classes: Vec<String> = classes.into_iter().map(String::from).collect();
        match &classes[..] {
            [only] => Err(self.file.error(format!("every label is {only:?}, expected two or more classes"))),
            _ => Ok(classes),
        }
    }
}

const NO_ROWS: &str = "no rows of label and text";

/// Reads the records of a file, and finds label and text in them. Returns also what was assumed.
fn parse(file: &TextFile, delimiter: u8, columns: &Columns) -> Result<(Layout, Vec<Record>, Vec<String>)> {
    let mut records = records(file, delimiter)?;
    let Some((_, first)) = records.first() else { return Err(file.error(NO_ROWS)) };
    let width = first.len();
    let unclear =
        |reason: String| -> anyhow::Error { DataError::Columns { file: file.path.clone(), reason }.into() };
    let given = [&columns.label, &columns.text].map(|name| {
        let place = |name: &String| {
            let named = first.iter().position(|cell| cell.eq_ignore_ascii_case(name.trim()));
            let numbered = name.parse().ok().filter(|number| (1..=width).contains(number));
            named
                .or(numbered.map(|number: usize| number - 1))
                .with_context(|| file.error(format!("no column {name}, found {}", first.join(", "))))
        };
        name.as_ref().map(place).transpose()
    });
    let [label, text] = given;
    let (label, text) = (label?, text?);
    let is_name = |name: &Option<String>| name.as_ref().is_some_and(|name| name.parse::<usize>().is_err());
    let mut assumed = vec![];
    let mut has_header = is_name(&columns.label) || is_name(&columns.text);
    let only = |known: &[&str]| match names(first, known)[..] {
        [place] => Some(place),
        _ => None,
    };
    let named = (only(&LABEL_NAMES), only(&TEXT_NAMES), by_names(&records));
    let (label, text) = match (label, text, named) {
        (Some(label), Some(text), _) => (label, text),
        (Some(place), None, _) if width == 2 => (place, 1 - place),
        (None, Some(place), _) if width == 2 => (1 - place, place),
        (Some(label), None, (_, Some(text), _)) => (label, text),
        (None, Some(text), (Some(label), _, _)) => (label, text),
        (None, None, (_, _, Some(places))) => places,
        (None, None, _) if width == 2 => (0, 1),
        _ => {
            let first: String = first.join(", ").chars().take(100).collect();
            let message =
                format!("found {}, expected label and text; line 1 has {first}", count(width, "column"));
            return Err(unclear(message));
        }
    };
    if label == text {
        return Err(unclear(format!("column {} can't be both label and text", label + 1)));
    }
    let is_named = names(first, &LABEL_NAMES).contains(&label) || names(first, &TEXT_NAMES).contains(&text);
    has_header |= is_named && is_unique(&records, label) && is_unique(&records, text);
    if !has_header && is_odd_one(&records, label) {
        has_header = true;
        assumed.push(format!(
            "line 1 is read as a header, because no other line has the label {:?}",
            first[label]
        ));
    }
    if !has_header && columns.is_empty() {
        assumed.push("no header, so column 1 is read as the label and column 2 as the text".to_string());
    }
    let others = (0..width).filter(|&place| place != label && place != text);
    let name = |place: usize| if has_header { first[place].clone() } else { (place + 1).to_string() };
    let others: Vec<String> = others.map(name).collect();
    if !others.is_empty() {
        assumed.push(format!("columns passed over: {}", others.join(", ")));
    }
    let header = has_header.then(|| records.remove(0).1);
    let layout = Layout { delimiter, width, label, text, header };
    check(file, &records, &layout)?;
    if columns.is_empty() {
        plausible(&records, &layout).map_err(unclear)?;
    }
    Ok((layout, records, assumed))
}

/// The places of the cells of a header that are one of `known`.
fn names(header: &[String], known: &[&str]) -> Vec<usize> {
    let is_known = |cell: &String| known.contains(&cell.to_lowercase().as_str());
    (0..header.len()).filter(|&place| is_known(&header[place])).collect()
}

/// The places of label and text, if the first record is a header that names them.
fn by_names(records: &[Record]) -> Option<(usize, usize)> {
    let (_, first) = records.first()?;
    let (label, text) = match (&names(first, &LABEL_NAMES)[..], &names(first, &TEXT_NAMES)[..]) {
        (&[label], &[text]) => (label, text),
        (&[label], []) if first.len() == 2 => (label, 1 - label),
        ([], &[text]) if first.len() == 2 => (1 - text, text),
        _ => return None,
    };
    (is_unique(records, label) && is_unique(records, text)).then_some((label, text))
}

/// Whether the first record's cell occurs nowhere else in the column `place`.
fn is_unique(records: &[Record], place: usize) -> bool {
    let mut cells = records.iter().map(|(_, cells)| cells.get(place));
    let first = cells.next().flatten();
    cells.all(|cell| cell != first)
}

/// Whether the first record's cell is the only one in the column `place` that occurs once.
fn is_odd_one(records: &[Record], place: usize) -> bool {
    let mut counts = HashMap::<&str, usize>::new();
    for cell in records[1..].iter().filter_map(|(_, cells)| cells.get(place)) {
        *counts.entry(cell).or_default() += 1;
    }
    let first = records[0].1.get(place);
    counts.len() > 1
        && counts.values().all(|&count| count > 1)
        && first.is_some_and(|cell| !counts.contains_key(cell.as_str()))
}

/// Checks the number of columns of each record, and that it has a label.
fn check(file: &TextFile, records: &[Record], layout: &Layout) -> Result<()> {
    if records.is_empty() {
        return Err(file.error(NO_ROWS));
    }
    for (line, cells) in records {
        if cells.len() != layout.width {
            let message = format!("found {}, expected {}", count(cells.len(), "column"), layout.width);
            return Err(file.error_at(*line, message));
        }
        if layout.delimiter == b'\t' && cells.iter().any(|cell| cell.contains('\n')) {
            return Err(file.error_at(*line, "a quoted text spans several lines, expected one"));
        }
        if cells[layout.label].is_empty() {
            return Err(file.error_at(*line, "no label, expected label and text"));
        }
    }
    Ok(())
}

/// Checks that the labels are not texts.
fn plausible(records: &[Record], layout: &Layout) -> Result<(), String> {
    let different =
        |place: usize| records.iter().map(|(_, cells)| &cells[place]).collect::<HashSet<_>>().len();
    let (labels, texts) = (different(layout.label), different(layout.text));
    if records.len() >= 10 && (2 * labels > records.len() || labels > texts) {
        let rows = records.len();
        return Err(format!(
            "{labels} different labels in {rows} rows: are the columns text and label? Expected label and text"
        ));
    }
    Ok(())
}

/// Each record's first line and trimmed columns.
pub(super) fn records(file: &TextFile, delimiter: u8) -> Result<Vec<Record>> {
    // An unclosed quote swallows the rest of the file, and with it this record.
    const END: &str = "\u{3}";
    let text = format!("{}\n{END}", file.text);
    let reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .has_headers(false)
        .flexible(true)
        .from_reader(text.as_bytes());
    let mut records = Vec::new();
    for record in reader.into_records() {
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
            return Err(file.error_at(line, "a quoted field never ends"));
        }
        records.push((line, columns));
    }
    Ok(records)
}
