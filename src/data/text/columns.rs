//! Corpora in CSV and TSV files: the user's own and AG News.

use super::corpus::{Corpus, Texts};
use super::file::TextFile;
use super::records::{Records, declared_delimiter, records};
use super::table::{Columns, Row, Table};
use crate::data::splits::Splits;
use crate::data::{count, quoted};
use anyhow::Result;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

pub(super) const AG_NEWS_CLASSES: [&str; 4] = ["World", "Sports", "Business", "Sci/Tech"];

/// Reads tables with a column of labels and one of texts.
///
/// With the classes `known`, only the test split is read. Otherwise the classes are the labels of the training split.
pub(super) fn labelled(
    dir: &Path,
    extension: &str,
    columns: &Columns,
    known: Option<&[String]>,
) -> Result<Corpus> {
    let mut notes = Vec::new();
    let splits = Splits::find(dir, &|split| vec![format!("{split}.{extension}")])?;
    let expected = format!("train.{extension}");
    let splits = splits.choose(dir, &expected, known.is_some(), &mut notes)?;
    let Splits { train, validation, test, .. } = splits;
    let first = train.clone().or(test.clone()).unwrap_or_default();
    let file = TextFile::read(first.clone(), &mut notes)?;
    let table = match known {
        Some(known) => Table::read_test(&file, columns, known, &mut notes)?,
        None => Table::read(&file, columns, &[], &mut notes)?,
    };
    let (layout, assumption) = (table.layout.clone(), table.assumption.clone());
    let classes = match known {
        None => table.classes()?,
        Some(known) => known.to_vec(),
    };
    let mut table = Some(table);
    let mut read = |path: Option<PathBuf>, is_test: bool| -> Result<Option<Texts>> {
        let Some(path) = path else { return Ok(None) };
        let other;
        let table = match table.take_if(|_| path == first) {
            Some(table) => table,
            None => {
                other = TextFile::read(path, &mut notes)?;
                let records = layout.records_of(&other)?;
                if let Some(label) = layout.missing_label(&records).filter(|_| is_test) {
                    let name = other.path.display();
                    notes.push(format!("{name}: no column {label}, so it can't be the test split"));
                    return Ok(None);
                }
                Table::read_like(&other, records, &layout, &classes, &mut notes)?
            }
        };
        encode(table, &classes).map(Some)
    };
    let train = read(train, false)?.unwrap_or_default();
    let (validation, test) = (read(validation, false)?, read(test, true)?);
    let layout = Some(layout);
    let mut corpus = Corpus { train, validation, test, classes, notes, layout, assumption };
    if known.is_none() {
        corpus.note_odd_classes();
    }
    Ok(corpus)
}

/// Replaces the labels by their indices in `classes`.
fn encode(table: Table, classes: &[String]) -> Result<Texts> {
    let classes: HashMap<&str, u32> = classes.iter().map(String::as_str).zip(0..).collect();
    let mut texts = Texts::default();
    for Row { line, label, text } in table.rows {
        match classes.get(label.as_str()) {
            None => {
                let message = format!("label {}, which the training set lacks", quoted(&label));
                return Err(table.file.error_at(line, message));
            }
            Some(&class) => texts.push(text, class),
        }
    }
    Ok(texts)
}

/// News by topic (Zhang, Zhao and LeCun 2015). Title and description make up the text.
pub(super) fn ag_news(dir: &Path, test_only: bool) -> Result<Corpus> {
    let mut notes = Vec::new();
    let splits = Splits::find(dir, &|split| vec![format!("{split}.csv")])?;
    let splits = splits.choose(dir, "train.csv", test_only, &mut notes)?;
    let classes = AG_NEWS_CLASSES.map(String::from).into();
    Corpus::read(splits, classes, notes, |path, notes| {
        let file = TextFile::read(path, notes)?;
        let delimiter = declared_delimiter(&file.text).unwrap_or(b',');
        let Records { records, before: mut without_text, .. } = records(&file, delimiter)?;
        let (mut texts, mut headers) = (Texts::default(), vec![]);
        for (line, mut columns) in records {
            columns.truncate(
                columns.iter().rposition(|cell| !cell.is_empty()).map_or(0, |last| last + 1).max(3),
            );
            match &columns[..] {
                columns if columns.iter().all(String::is_empty) => without_text.push(line),
                [class, ..] if class.eq_ignore_ascii_case("class index") => headers.push(line),
                [_, title, description] if title.is_empty() && description.is_empty() => {
                    without_text.push(line)
                }
                [class, title, description] => match class.parse::<u32>() {
                    // The files have a backslash for each line break of the original.
                    Ok(class @ 1..=4) => {
                        texts.push(format!("{title} {description}").replace('\\', " "), class - 1);
                    }
                    _ => return Err(file.error_at(line, format!("class {}, expected 1 to 4", quoted(class)))),
                },
                _ => {
                    let message = format!(
                        "found {}, expected class, title and description",
                        count(columns.len(), "column")
                    );
                    return Err(file.error_at(line, message));
                }
            }
        }
        notes.extend(file.skipped(&without_text, "without text"));
        notes.extend(file.skipped(headers.get(1..).unwrap_or_default(), "equal to the header"));
        if texts.is_empty() { Err(file.error("no news")) } else { Ok(texts) }
    })
}
