//! Corpora in CSV and TSV files: the user's own and AG News.

use super::corpus::{Corpus, Texts};
use super::file::{TextFile, find, find_required};
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::path::Path;

pub(super) const AG_NEWS_CLASSES: [&str; 4] = ["World", "Sports", "Business", "Sci/Tech"];

/// A text, its label, and the line in which they begin.
struct Row {
    line: usize,
    label: String,
    text: String,
}

/// Reads files of two columns, label and text. The labels of the training file become the classes.
pub(super) fn labelled(dir: &Path, extension: &str, delimiter: u8) -> Result<Corpus> {
    let mut notes = Vec::new();
    let mut read = |path| -> Result<(TextFile, Vec<Row>)> {
        let file = TextFile::read(path, &mut notes)?;
        let rows = rows(&file, delimiter)?;
        Ok((file, rows))
    };
    let names = |stems: &[&str]| stems.iter().map(|stem| format!("{stem}.{extension}")).collect::<Vec<_>>();
    let train = read(find_required(dir, &names(&["train"]))?)?;
    let test = read(find_required(dir, &names(&["test"]))?)?;
    let validation = find(dir, &names(&["validation", "valid", "dev"]))?.map(read).transpose()?;

    let classes: BTreeSet<&str> = train.1.iter().map(|row| row.label.as_str()).collect();
    let classes: Vec<String> = classes.into_iter().map(String::from).collect();
    if let [only] = &classes[..] {
        return Err(train.0.error(format!("every label is {only:?}, expected two or more classes")));
    }
    let texts = |(file, rows): (TextFile, Vec<Row>)| -> Result<Texts> {
        let mut texts = Texts::default();
        for Row { line, label, text } in rows {
            match classes.binary_search(&label) {
                Ok(class) => texts.push(text, class as u32),
                Err(_) => {
                    return Err(file.error_at(line, format!("label {label:?}, which the training set lacks")));
                }
            }
        }
        Ok(texts)
    };
    let (train, test) = (texts(train)?, texts(test)?);
    let validation = validation.map(texts).transpose()?;
    Ok(Corpus { train, validation, test: Some(test), classes, notes })
}

fn rows(file: &TextFile, delimiter: u8) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (at, (line, columns)) in records(file, delimiter)?.into_iter().enumerate() {
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        let is_header = |names: [&str; 2]| {
            let [first, second] = columns[..] else { return false };
            at == 0 && first.eq_ignore_ascii_case(names[0]) && second.eq_ignore_ascii_case(names[1])
        };
        match columns[..] {
            [_, _] if is_header(["label", "text"]) => {}
            [_, _] if is_header(["text", "label"]) => {
                return Err(file.error_at(line, "the columns are text and label, expected label and text"));
            }
            [_, text] if delimiter == b'\t' && text.contains('\n') => {
                return Err(file.error_at(line, "a quoted text spans several lines, expected one"));
            }
            ["", _] => return Err(file.error_at(line, "no label, expected label and text")),
            [_, ""] => return Err(file.error_at(line, "no text, expected label and text")),
            [label, text] => rows.push(Row { line, label: label.into(), text: text.into() }),
            _ => {
                let message = format!("found {} columns, expected label and text", columns.len());
                return Err(file.error_at(line, message));
            }
        }
    }
    if rows.is_empty() { Err(file.error("no rows of label and text")) } else { Ok(rows) }
}

/// Each record's first line and trimmed columns.
fn records(file: &TextFile, delimiter: u8) -> Result<Vec<(usize, Vec<String>)>> {
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

/// News by topic (Zhang, Zhao and LeCun 2015). Title and description make up the text.
pub(super) fn ag_news(dir: &Path) -> Result<Corpus> {
    let mut notes = Vec::new();
    let mut read = |name: &str| -> Result<Texts> {
        let file = TextFile::read(find_required(dir, &[name.into()])?, &mut notes)?;
        let mut texts = Texts::default();
        for (at, (line, columns)) in records(&file, b',')?.into_iter().enumerate() {
            match &columns[..] {
                [class, ..] if at == 0 && class.eq_ignore_ascii_case("class index") => {}
                [class, title, description] => match class.parse::<u32>() {
                    // The files have a backslash for each line break of the original.
                    Ok(class @ 1..=4) => {
                        texts.push(format!("{title} {description}").replace('\\', " "), class - 1);
                    }
                    _ => return Err(file.error_at(line, format!("class {class:?}, expected 1 to 4"))),
                },
                _ => {
                    let message =
                        format!("found {} columns, expected class, title and description", columns.len());
                    return Err(file.error_at(line, message));
                }
            }
        }
        if texts.is_empty() { Err(file.error("no news")) } else { Ok(texts) }
    };
    let (train, test) = (read("train.csv")?, read("test.csv")?);
    let classes = AG_NEWS_CLASSES.map(String::from).into();
    Ok(Corpus { train, test: Some(test), classes, notes, ..Corpus::default() })
}
