//! Headers of tables: the names of their columns.

use super::records::Record;
use std::collections::HashMap;

pub(super) const LABEL_NAMES: [&str; 12] = [
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
pub(super) const TEXT_NAMES: [&str; 11] = [
    "text", "sentence", "review", "comment", "tweet", "content", "message", "document", "phrase", "post",
    "headline",
];

/// The places of the cells of a header that are one of `known`.
pub(super) fn names(header: &[String], known: &[&str]) -> Vec<usize> {
    let is_known = |cell: &String| known.contains(&cell.to_lowercase().as_str());
    (0..header.len()).filter(|&place| is_known(&header[place])).collect()
}

/// The place of the cell that is `name`, in any case.
pub(super) fn place_of(name: &str, cells: &[String]) -> Option<usize> {
    let name = name.to_lowercase();
    cells.iter().position(|cell| !name.is_empty() && cell.to_lowercase() == name)
}

/// The place of the only cell of a header that is one of `known`.
pub(super) fn only(header: &[String], known: &[&str]) -> Option<usize> {
    match names(header, known)[..] {
        [place] => Some(place),
        _ => None,
    }
}

/// The positions of label and text, if the first record is a header that names them.
pub(super) fn by_names(records: &[Record]) -> Option<(usize, usize)> {
    let (_, first) = records.first()?;
    let is_pair = width(records) == 2;
    let (label, text) = match (&names(first, &LABEL_NAMES)[..], &names(first, &TEXT_NAMES)[..]) {
        (&[label], &[text]) => return Some((label, text)),
        (&[label], []) if is_pair => (label, 1 - label),
        ([], &[text]) if is_pair => (1 - text, text),
        _ => return None,
    };
    (is_unique(records, label) && is_unique(records, text)).then_some((label, text))
}

/// Whether the first cell of the column `place` occurs nowhere else in it, except in repeated headers.
pub(super) fn is_unique(records: &[Record], place: usize) -> bool {
    let (_, first) = &records[0];
    let is_name = |cell: &String| cell.chars().count() <= 40 && cell.split_whitespace().count() <= 3;
    let is_repeated = |cells: &[String]| first.iter().all(is_name) && is_header(cells, first);
    records[1..].iter().all(|(_, cells)| cells.get(place) != first.get(place) || is_repeated(cells))
}

/// Whether the first record's cell is the only one in the column `place` that occurs once.
///
/// A few copies of the record do not count.
pub(super) fn is_odd_one(records: &[Record], place: usize) -> bool {
    let (_, header) = &records[0];
    let is_copy = |(_, cells): &&Record| is_header(cells, header);
    let copies = records[1..].iter().filter(is_copy).count();
    let is_other = |record: &&Record| 10 * copies > records.len() || !is_copy(record);
    let mut counts = HashMap::<&str, usize>::new();
    for cell in records[1..].iter().filter(is_other).filter_map(|(_, cells)| cells.get(place)) {
        *counts.entry(cell).or_default() += 1;
    }
    let first = header.get(place);
    counts.len() > 1
        && counts.values().all(|&count| count > 1)
        && first.is_some_and(|cell| !counts.contains_key(cell.as_str()))
}

/// Whether a record repeats `header`, except for empty cells at its end.
pub(super) fn is_header(cells: &[String], header: &[String]) -> bool {
    let is_equal = |(a, b): (&String, &String)| a.to_lowercase() == b.to_lowercase();
    let common = cells.len().min(header.len());
    cells.iter().zip(header).all(is_equal)
        && cells[common..].iter().chain(&header[common..]).all(String::is_empty)
}

/// Number of columns of the first record, without those at the end that are empty in all records.
pub(super) fn width(records: &[Record]) -> usize {
    let mut width = records.first().map_or(0, |(_, cells)| cells.len());
    let is_empty =
        |place: usize| records.iter().all(|(_, cells)| cells.get(place).is_none_or(String::is_empty));
    while width > 2 && is_empty(width - 1) {
        width -= 1;
    }
    width
}
