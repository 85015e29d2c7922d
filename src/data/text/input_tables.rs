//! The texts in tables that a trained model reads.

use super::file::{TextFile, check_is_corpus};
use super::header::{TEXT_NAMES, is_unique, only};
use super::records::{Record, first_width, records};
use super::table::{Columns, Layout, Table, delimiters, shown};
use anyhow::Result;

/// The texts of a table with the columns of a model's training table, in one line each; `None` if it is no such table.
///
/// In such a table, a header names the column of texts, or all labels are among `classes`.
pub(crate) fn texts_of_table(file: &TextFile, trained: &Layout, classes: &[String]) -> Option<Vec<String>> {
    let named = || {
        let records = trained.records_of(file).ok()?;
        let text = trained.text_in(&records, classes)?;
        Table::read_texts(file, records, text).ok()
    };
    let columns = Columns { trained: Some(trained.clone()), ..Columns::default() };
    let is_labelled = |table: &Table| table.rows.iter().all(|row| classes.contains(&row.label));
    let labelled = || Table::read_test(file, &columns, classes, &mut vec![]).ok().filter(is_labelled);
    named().or_else(labelled).map(|table| texts(&table))
}

/// The texts of a table of any origin, in one line each, and a note; `None` for a file of lines.
///
/// A table is one by its name and its content. Its header has exactly one common name of a column of texts.
///
/// # Errors
/// Fails for JSON, for a table without such a header, and for one with a broken row.
pub(crate) fn texts_by_header(file: &TextFile) -> Result<Option<(Vec<String>, String)>> {
    let name = file.path.to_string_lossy().to_lowercase();
    let is_named = |endings: &[&str]| endings.iter().any(|end| name.trim_end_matches(".gz").ends_with(end));
    let may_be_table = is_named(&[".csv", ".tsv"]);
    if may_be_table || is_named(&[".json", ".jsonl", ".ndjson"]) {
        check_is_corpus(&file.text).map_err(|error| file.error(error))?;
    }
    let mut first_row = None;
    for delimiter in delimiters(file).into_iter().filter(|_| may_be_table) {
        let records = match records(file, delimiter) {
            // Lines may begin with a quote.
            Err(_) if first_width(file, delimiter) < 2 => continue,
            records => records?,
        };
        let rows = &records.records;
        let Some((_, cells)) = rows.first().filter(|_| rows.len() > 1) else { continue };
        let is_alike = |(_, row): &&Record| row.len() == cells.len();
        let alike = rows.iter().filter(is_alike).count();
        let is_table = cells.len() > 1 && 20 * alike >= 19 * (rows.len() + records.before.len());
        let is_header = |&text: &usize| (is_table || records.before.is_empty()) && is_unique(rows, text);
        if let Some(text) = only(cells, &TEXT_NAMES).filter(is_header) {
            let note = format!("a table, of which only the column {} is read", cells[text]);
            return Ok(Some((texts(&Table::read_texts(file, records, text)?), note)));
        }
        first_row = first_row.or(is_table.then(|| shown(cells)));
    }
    first_row.map_or(Ok(None), |row| {
        let expected = "expected a header that names one column text";
        Err(file.error(format!("found a table that begins with {row}, {expected}")))
    })
}

fn texts(table: &Table) -> Vec<String> {
    table.rows.iter().map(|row| row.text.lines().collect::<Vec<_>>().join(" ")).collect()
}
