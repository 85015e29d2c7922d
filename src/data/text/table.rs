//! Tables of labels and texts in CSV and TSV files.

use super::file::TextFile;
use super::header::{
    LABEL_NAMES, TEXT_NAMES, by_names, is_header, is_odd_one, is_unique, names, only, place_of, width,
};
use super::quotes::text_after_quote;
use super::records::{
    Record, Records, declared_delimiter, delimiter_name, first_width, records, usual_delimiter,
};
use super::tokenizer::composed;
use crate::data::error::DataError;
use crate::data::{count, quoted};
use anyhow::{Context, Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashSet};

/// The columns of a table that hold label and text, each a name in its header or a number from 1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns {
    /// The column of the label; `None` to find it.
    pub label: Option<String>,
    /// The column of the text; `None` to find it.
    pub text: Option<String>,
    /// The columns of the model's training file.
    ///
    /// The test file has the same columns unless its header says otherwise.
    pub trained: Option<Layout>,
}

impl Columns {
    /// Whether neither column is given.
    pub fn is_empty(&self) -> bool {
        self.label.is_none() && self.text.is_none()
    }
}

/// A text, its label, and the line in which they begin.
#[derive(Debug)]
pub(super) struct Row {
    pub line: usize,
    pub label: String,
    pub text: String,
}

/// The positions of labels and texts in a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    delimiter: u8,
    /// Number of columns.
    width: usize,
    label: usize,
    text: usize,
    /// The first record, if it is a header.
    header: Option<Vec<String>>,
}

impl Layout {
    /// The columns of label and text, unless the header names both by common words.
    ///
    /// Such words are `label` and `text`. A column is a name in the header or a number from 1.
    pub fn guessed(&self) -> Option<[String; 2]> {
        let header = self.header.as_deref().unwrap_or_default();
        let is_named = |place: usize, known: &[&str]| names(header, known).contains(&place);
        let name = |place: usize| match header.get(place) {
            Some(name) if !name.is_empty() => name.clone(),
            _ => (place + 1).to_string(),
        };
        let are_named = is_named(self.label, &LABEL_NAMES) && is_named(self.text, &TEXT_NAMES);
        (!are_named).then(|| [self.label, self.text].map(name))
    }

    /// The name of the column of labels, if another file has the texts and perhaps other columns of this table, but not
    /// that one.
    ///
    /// The test files of competitions are such.
    pub(super) fn missing_label(&self, other: &Records) -> Option<&str> {
        let header = self.header.as_ref()?;
        let (_, cells) = other.records.first()?;
        let has = |place: usize| place_of(&header[place], cells).is_some();
        let are_names = cells.iter().all(|cell| cell.is_empty() || place_of(cell, header).is_some());
        (are_names && has(self.text) && !has(self.label)).then(|| header[self.label].as_str())
    }

    /// The header as a line, if the table has one.
    #[cfg(feature = "cli")]
    pub(crate) fn header_line(&self) -> Option<String> {
        Some(self.header.as_ref()?.join(&char::from(self.delimiter).to_string()))
    }

    /// The column of texts in another file, if its first record is a header that names it as this table does.
    ///
    /// A row with one of the labels `classes` is not a header.
    #[cfg(feature = "cli")]
    pub(super) fn text_in(&self, other: &Records, classes: &[String]) -> Option<usize> {
        let (_, cells) = other.records.first().filter(|(_, cells)| cells.len() > 1)?;
        let is_row = cells.get(self.label).is_some_and(|label| classes.contains(label));
        place_of(&self.header.as_ref()?[self.text], cells).filter(|_| !is_row)
    }

    /// The records of another file of the data set.
    pub(super) fn records_of(&self, file: &TextFile) -> Result<Records> {
        records(file, self.delimiter_of(file))
    }

    /// The delimiter of another file of the data set.
    fn delimiter_of(&self, file: &TextFile) -> u8 {
        declared_delimiter(&file.text).unwrap_or_else(|| {
            let splits = |delimiter: &u8| first_width(file, *delimiter) > 1;
            let others = DELIMITERS.into_iter().filter(|_| self.delimiter != b'\t');
            std::iter::once(self.delimiter).chain(others).find(splits).unwrap_or(self.delimiter)
        })
    }

    /// The positions of label and text in another file's first record, if it is a header.
    ///
    /// # Errors
    /// Fails for a header that names only one of them.
    fn places_in(
        &self,
        cells: &[String],
        file: &TextFile,
        classes: &[String],
    ) -> Result<Option<(usize, usize)>> {
        let find = |place: usize, known: &[&str]| {
            let same = self.header.as_ref().and_then(|header| place_of(&header[place], cells));
            same.or_else(|| only(cells, known))
        };
        let missing = |place: usize, role: &str| {
            let name = self.header.as_ref().map_or(role, |header| &header[place]);
            let remedy = if role == "label" { "; predict --file reads texts without labels" } else { "" };
            Err(file.error(format!("no column {name}: found {}{remedy}", shown(cells))))
        };
        let is_row = cells.get(self.label).is_some_and(|label| classes.contains(label));
        match (find(self.label, &LABEL_NAMES), find(self.text, &TEXT_NAMES)) {
            (Some(label), Some(text)) if label != text => Ok(Some((label, text))),
            (Some(_), _) if !is_row => missing(self.text, "text"),
            (None, Some(_)) if !is_row => missing(self.label, "label"),
            _ => Ok(None),
        }
    }
}

/// A file of labels and texts.
pub(super) struct Table<'a> {
    pub file: &'a TextFile,
    /// The rows with a text.
    pub rows: Vec<Row>,
    pub layout: Layout,
    /// What was assumed about the columns, if anything was.
    pub assumption: Option<String>,
}

impl<'a> Table<'a> {
    /// Reads the table of the first split, and finds its columns, which `columns` may name.
    ///
    /// A row with one of the labels `known` is not a header. Notes name the delimiter and list the skipped lines.
    pub fn read(
        file: &'a TextFile,
        columns: &Columns,
        known: &[String],
        notes: &mut Vec<String>,
    ) -> Result<Self> {
        let (mut found, mut error) = (vec![], None);
        for delimiter in delimiters(file) {
            match Parsed::new(file, delimiter, columns, known) {
                Ok(parsed) => found.push(parsed),
                Err(failed) => error = error.or(Some(failed)),
            }
        }
        let parsed = match (found.iter().position(|parsed| parsed.is_named), error) {
            (Some(named), _) => found.swap_remove(named),
            (None, _) if found.len() > 1 => {
                let names = found.iter().map(|parsed| delimiter_name(parsed.layout.delimiter));
                return Err(file.error(format!(
                    "both {} could separate the columns: say which in the first line, such as sep=;",
                    names.collect::<Vec<_>>().join(" and ")
                )));
            }
            (None, error) => match found.pop() {
                Some(parsed) => parsed,
                None => return Err(error.unwrap_or_else(|| file.error(NO_ROWS))),
            },
        };
        let Parsed { layout, rows, notes: remarks, assumption, .. } = parsed;
        if layout.delimiter != usual_delimiter(file) {
            let name = delimiter_name(layout.delimiter);
            notes.push(format!("{}: {name} separate the columns", file.path.display()));
        }
        notes.extend(remarks);
        let assumption = assumption.map(|assumption| format!("{}: {assumption}", file.path.display()));
        Ok(Self { file, rows, layout, assumption })
    }

    /// Reads the table of a test split, with the columns of a model's training file, or else its own.
    ///
    /// A row with one of the labels `known` is not a header.
    pub fn read_test(
        file: &'a TextFile,
        columns: &Columns,
        known: &[String],
        notes: &mut Vec<String>,
    ) -> Result<Self> {
        let Some(trained) = columns.trained.as_ref().filter(|_| columns.is_empty()) else {
            return Self::read(file, columns, known, notes);
        };
        let is_known = |table: &Self| table.rows.iter().all(|row| known.contains(&row.label));
        let [mut like_notes, mut own_notes] = [vec![], vec![]];
        let records = trained.records_of(file);
        let like =
            records.and_then(|records| Self::read_like(file, records, trained, known, &mut like_notes));
        if !like.as_ref().is_ok_and(is_known) {
            let own = Self::read(file, columns, known, &mut own_notes);
            if own.as_ref().is_ok_and(is_known) {
                notes.append(&mut own_notes);
                return own;
            }
        }
        notes.append(&mut like_notes);
        like
    }

    /// Reads the table of another split, which has the same columns unless its header says otherwise.
    ///
    /// A row with one of the labels `classes` is not a header, unless it names both columns.
    pub fn read_like(
        file: &'a TextFile,
        Records { records, before, note, delimiter }: Records,
        first: &Layout,
        classes: &[String],
        notes: &mut Vec<String>,
    ) -> Result<Self> {
        let mut layout = Layout { delimiter, ..first.clone() };
        let cells = records.first().map_or(&[][..], |(_, cells)| cells);
        let places = match &first.header {
            Some(header) if is_header(cells, header) => Some((first.label, first.text)),
            _ => first.places_in(cells, file, classes)?,
        };
        layout.header = None;
        if let Some((label, text)) = places {
            let header = Some(cells.to_vec());
            layout = Layout { width: width(&records), label, text, header, ..layout };
        }
        notes.extend(note);
        let rows = rows(file, records, before, &layout, notes)?;
        Ok(Self { file, rows, layout, assumption: None })
    }

    /// Reads the column `text` of a table whose first record is a header.
    ///
    /// The labels of the rows are their texts, as the file may lack labels.
    #[cfg(feature = "cli")]
    pub fn read_texts(
        file: &'a TextFile,
        Records { records, before, delimiter, .. }: Records,
        text: usize,
    ) -> Result<Self> {
        let header = records.first().map(|(_, cells)| cells.clone());
        let layout = Layout { delimiter, width: width(&records), label: text, text, header };
        let rows = rows(file, records, before, &layout, &mut vec![])?;
        Ok(Self { file, rows, layout, assumption: None })
    }

    /// The different labels, sorted.
    pub fn classes(&self) -> Result<Vec<String>> {
        let classes: BTreeSet<&str> = self.rows.iter().map(|row| row.label.as_str()).collect();
        let classes: Vec<String> = classes.into_iter().map(String::from).collect();
        match &classes[..] {
            [only] => {
                Err(self.file.error(format!("every label is {}, expected two or more classes", quoted(only))))
            }
            _ => Ok(classes),
        }
    }
}

/// The delimiters of CSV files.
const DELIMITERS: [u8; 3] = *b",;\t";

/// The delimiters that may separate the columns of a file.
pub(super) fn delimiters(file: &TextFile) -> Vec<u8> {
    let all = match (declared_delimiter(&file.text), usual_delimiter(file)) {
        (Some(declared), _) => vec![declared],
        (None, b'\t') => vec![b'\t'],
        _ => DELIMITERS.to_vec(),
    };
    let split: Vec<u8> = all.iter().copied().filter(|&delimiter| first_width(file, delimiter) > 1).collect();
    if split.is_empty() { vec![all[0]] } else { split }
}

const NO_ROWS: &str = "no rows of label and text";

/// A table, parsed with one delimiter.
struct Parsed {
    layout: Layout,
    rows: Vec<Row>,
    /// Remarks on quotes and on skipped lines.
    notes: Vec<String>,
    /// What was assumed about the columns.
    assumption: Option<String>,
    /// Whether the header has names of a label and a text.
    is_named: bool,
}

impl Parsed {
    fn new(file: &TextFile, delimiter: u8, columns: &Columns, known: &[String]) -> Result<Self> {
        let Records { records, before, note, .. } = records(file, delimiter)?;
        let Some((_, first)) = records.first() else { return Err(file.error(NO_ROWS)) };
        let (width, named) = (width(&records), by_names(&records));
        let (label, text) = places(file, first, width, named, columns)?;
        let is_name =
            |name: &Option<String>| name.as_ref().is_some_and(|name| name.parse::<usize>().is_err());
        let is_known =
            names(first, &LABEL_NAMES).contains(&label) || names(first, &TEXT_NAMES).contains(&text);
        let mut has_header = named.is_some()
            || is_name(&columns.label)
            || is_name(&columns.text)
            || is_known && is_unique(&records, label) && is_unique(&records, text);
        let mut assumed = vec![];
        if let (Some(named), true) = (named, columns.is_empty() && !known.contains(&first[label])) {
            // A run's test file may have other columns than its training file.
            assumed.extend(unnamed(file, first, named)?.filter(|_| !known.is_empty()));
        }
        if !has_header && !known.contains(&first[label]) && is_odd_one(&records, label) {
            has_header = true;
            let (line, name) = (records[0].0, quoted(&first[label]));
            assumed
                .push(format!("line {line} is read as a header, because no other line has the label {name}"));
            if columns.is_empty() {
                let text = quoted(&first[text]);
                assumed.push(format!("column {name} is read as the label and column {text} as the text"));
            }
        } else if !has_header && columns.is_empty() {
            assumed.push("no header, so column 1 is read as the label and column 2 as the text".to_string());
        }
        if has_header {
            check_names(file, first, [(label, &columns.label), (text, &columns.text)])?;
        }
        let name = |place: usize| match &first[place] {
            name if has_header && !name.is_empty() => name.clone(),
            _ if has_header => format!("{} (without a name)", place + 1),
            _ => (place + 1).to_string(),
        };
        let others: Vec<String> =
            (0..width).filter(|&place| place != label && place != text).map(name).collect();
        if !others.is_empty() {
            let [label, text] = [label, text].map(&name);
            let others = others.join(", ");
            assumed.push(format!("the label is column {label} and the text {text}; ignored: {others}"));
        }
        let header = has_header.then(|| first.clone());
        let layout = Layout { delimiter, width, label, text, header };
        let path = file.path.display();
        let mut notes: Vec<String> = note.into_iter().collect();
        let rows = rows(file, records, before, &layout, &mut notes)?;
        if columns.is_empty() && rows.len() >= 10 {
            let different = |cell: fn(&Row) -> &String| rows.iter().map(cell).collect::<HashSet<_>>().len();
            let (labels, texts) = (different(|row| &row.label), different(|row| &row.text));
            let found = format!("{labels} different labels in {} rows", rows.len());
            let is_unlikely = 2 * labels > rows.len();
            if !has_header && (is_unlikely || labels > texts) {
                let reason = format!("{found}: are the columns text and label? Expected label and text");
                return Err(unclear(file, reason));
            }
            notes.extend(is_unlikely.then(|| format!("{path}: {found}")));
        }
        let assumption = (!assumed.is_empty()).then(|| assumed.join("; "));
        Ok(Self { layout, rows, notes, assumption, is_named: named.is_some() })
    }
}

fn unclear(file: &TextFile, reason: String) -> Error {
    DataError::Columns { file: file.path.clone(), reason }.into()
}

/// The positions of label and text.
///
/// They come from `columns`, or else from `named` in the header, or else the label precedes the text.
fn places(
    file: &TextFile,
    first: &[String],
    width: usize,
    named: Option<(usize, usize)>,
    columns: &Columns,
) -> Result<(usize, usize)> {
    let given = |name: &String| {
        let name = name.trim();
        let place = first.iter().position(|cell| !name.is_empty() && cell.eq_ignore_ascii_case(name));
        let numbered = name.parse().ok().filter(|number| (1..=width).contains(number));
        place
            .or(numbered.map(|number: usize| number - 1))
            .with_context(|| file.error(format!("no column {name}, found {}", shown(first))))
    };
    let label = columns.label.as_ref().map(given).transpose()?;
    let text = columns.text.as_ref().map(given).transpose()?;
    let places = match (label, text) {
        (Some(label), Some(text)) => Some((label, text)),
        (Some(label), None) if width == 2 => Some((label, 1 - label.min(1))),
        (None, Some(text)) if width == 2 => Some((1 - text.min(1), text)),
        (Some(label), None) => only(first, &TEXT_NAMES).map(|text| (label, text)),
        (None, Some(text)) => only(first, &LABEL_NAMES).map(|label| (label, text)),
        (None, None) => named.or((width == 2).then_some((0, 1))),
    };
    match places {
        Some((label, text)) if label == text => {
            Err(unclear(file, format!("column {} can't be both label and text", label + 1)))
        }
        Some(places) => Ok(places),
        None if width == 1 && first[0].is_empty() => Err(file.error(NO_ROWS)),
        None if width == 1 => Err(file.error(format!(
            "found 1 column, expected label and text, separated by commas, semicolons or tabs; the first row has {}",
            shown(first)
        ))),
        None => {
            let (found, first) = (count(width, "column"), shown(first));
            let expected = match (label, text) {
                (Some(_), _) => "only the label's is chosen",
                (_, Some(_)) => "only the text's is chosen",
                _ => "expected label and text",
            };
            Err(unclear(file, format!("found {found}, {expected}; the first row has {first}")))
        }
    }
}

/// Checks that the header names the columns of label and text once.
///
/// Columns given by number are not checked.
fn check_names(file: &TextFile, header: &[String], used: [(usize, &Option<String>); 2]) -> Result<()> {
    for (place, given) in used {
        let name = &header[place];
        let is_number = given.as_ref().is_some_and(|given| given != name && given.parse::<usize>().is_ok());
        let same = header.iter().filter(|other| other.eq_ignore_ascii_case(name)).count();
        if same > 1 && !name.is_empty() && !is_number {
            return Err(unclear(file, format!("{same} columns are named {name}: give the number of one")));
        }
    }
    Ok(())
}

/// The beginning of a row, for a message.
pub(super) fn shown(cells: &[String]) -> String {
    cells.join(", ").chars().filter(|c| !c.is_control()).take(100).collect()
}

/// Refuses a table of two columns that names only one of them and numbers its rows in the other.
///
/// The note says which column is read without a known name.
fn unnamed(file: &TextFile, first: &[String], places: (usize, usize)) -> Result<Option<String>> {
    let has_label = names(first, &LABEL_NAMES).contains(&places.0);
    let has_text = names(first, &TEXT_NAMES).contains(&places.1);
    let (role, name) = match (has_label, has_text) {
        (true, false) => ("text", &first[places.1]),
        (false, true) => ("label", &first[places.0]),
        _ => return Ok(None),
    };
    let lower = name.to_lowercase();
    if matches!(&lower[..], "" | "id" | "ids" | "index" | "idx" | "uid") || lower.ends_with("_id") {
        return Err(unclear(file, format!("no column {role}: found {}", shown(first))));
    }
    Ok(Some(format!("column {name} is read as the {role}")))
}

/// Returns the rows with a text.
///
/// The other lines, `without_text` and repetitions of the header, are skipped and counted in notes.
fn rows(
    file: &TextFile,
    records: Vec<Record>,
    mut without_text: Vec<usize>,
    layout: &Layout,
    notes: &mut Vec<String>,
) -> Result<Vec<Row>> {
    let (mut rows, mut headers) = (vec![], vec![]);
    for (line, mut cells) in records {
        if layout.header.as_ref().is_some_and(|header| is_header(&cells, header)) {
            headers.push(line);
            continue;
        }
        if cells.iter().all(String::is_empty) {
            without_text.push(line);
            continue;
        }
        if cells.len() < layout.width || cells[layout.width..].iter().any(|cell| !cell.is_empty()) {
            let message = format!("found {}, expected {}", count(cells.len(), "column"), layout.width);
            return Err(file.error_at(line, message));
        }
        let (label, text) = (composed(&cells[layout.label]).into_owned(), cells.swap_remove(layout.text));
        if text.is_empty() {
            without_text.push(line);
        } else if label.is_empty() {
            return Err(file.error_at(line, "no label, expected label and text"));
        } else {
            rows.push(Row { line, label, text });
        }
    }
    if rows.is_empty() {
        return Err(file.error(NO_ROWS));
    }
    if layout.delimiter != b'\t' {
        check_quotes(file, &rows, layout)?;
    }
    notes.extend(file.skipped(&without_text, "without text"));
    notes.extend(file.skipped(headers.get(1..).unwrap_or_default(), "equal to the header"));
    Ok(rows)
}

/// Refuses texts that swallow rows because a quote is missing, and text after a closing quote.
fn check_quotes(file: &TextFile, rows: &[Row], layout: &Layout) -> Result<()> {
    let continued = text_after_quote(&file.text, layout.delimiter);
    let labels: HashSet<&str> = rows.iter().map(|row| row.label.as_str()).collect();
    let is_row = |line: &&str| {
        let cells: Vec<&str> = line.split(char::from(layout.delimiter)).map(str::trim).collect();
        cells.len() == layout.width && labels.contains(cells[layout.label])
    };
    for Row { line, text, .. } in rows.iter().filter(|row| row.text.contains('\n')) {
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let found = lines.iter().copied().filter(|line| is_row(line)).count();
        // The quote cuts one row in two.
        if found + 1 >= lines.len() && (found > 1 || found == 1 && continued == Some(*line)) {
            let found = match found {
                1 => "1 line that looks like a row".to_string(),
                _ => format!("{found} lines that look like rows"),
            };
            let message = format!("the quoted text goes on for {found}: is a closing quote missing?");
            return Err(file.error_at(*line, message));
        }
    }
    continued.map_or(Ok(()), |line| {
        let message =
            "text follows a closing quote: expected a separator, and \"\" for a quote within a text";
        Err(file.error_at(line, message))
    })
}
