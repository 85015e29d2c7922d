//! The hub's parquet files of texts.

use super::columns::AG_NEWS_CLASSES;
use super::corpus::{Corpus, Texts, polarities};
use crate::data::{count, hub};
use anyhow::{Result, bail};
use std::path::Path;

const SPLITS: [&str; 3] = ["train", "validation", "test"];

/// Downloads and reads `mr`, `sst2` or `ag-news`. A split with missing labels is left out, with a note.
pub(super) fn corpus(name: &str) -> Result<Corpus> {
    let (id, splits, column, classes) = match name {
        "mr" => ("cornell-movie-review-data/rotten_tomatoes", &SPLITS[..], "text", polarities()),
        "sst2" => ("stanfordnlp/sst2", &SPLITS[..], "sentence", polarities()),
        "ag-news" => {
            ("fancyzhx/ag_news", &["train", "test"][..], "text", AG_NEWS_CLASSES.map(String::from).into())
        }
        _ => bail!("{name}: not a corpus of the hub"),
    };
    let mut corpus = Corpus { classes, ..Corpus::default() };
    for &split in splits {
        let [path] = hub::dataset(id, [format!("default/{split}/0000.parquet")])?;
        let texts = sentences(&path, column, corpus.classes.len(), &mut corpus.notes)?;
        if texts.is_none() {
            corpus.notes.push(format!("{}: has no labels, so there is no {split} set", path.display()));
        }
        match split {
            "train" => corpus.train = texts.unwrap_or_default(),
            "validation" => corpus.validation = texts,
            _ => corpus.test = texts,
        }
    }
    if corpus.test.is_none() {
        corpus.test = corpus.validation.take();
        corpus.notes.push(format!("{id}: no test split, so the validation split is used for the test"));
    }
    Ok(corpus)
}

/// Reads rows of a text and a label; returns `None` if labels are missing.
///
/// Rows without text are skipped, with a note.
fn sentences(path: &Path, column: &str, classes: usize, notes: &mut Vec<String>) -> Result<Option<Texts>> {
    let (mut texts, mut complete, mut without_text) = (Texts::default(), true, 0);
    hub::read_rows(path, |at, row| {
        let text = hub::text(row, at, column)?.trim();
        match hub::label(row, at, classes)? {
            Some(_) if text.is_empty() => without_text += 1,
            Some(label) => texts.push(text, label),
            None => complete = false,
        }
        Ok(())
    })?;
    if without_text > 0 {
        notes.push(format!("{}: skipped {} without text", path.display(), count(without_text, "row")));
    }
    Ok(complete.then_some(texts))
}

/// Downloads and reads `tiny-shakespeare`.
///
/// Its training, validation and test parts are consecutive pieces of one text.
pub(super) fn tiny_shakespeare() -> Result<String> {
    let files = SPLITS.map(|split| format!("default/{split}/0000.parquet"));
    let mut whole = String::new();
    for path in hub::dataset("karpathy/tiny_shakespeare", files)? {
        hub::read_rows(&path, |at, row| {
            whole.push_str(hub::text(row, at, "text")?);
            Ok(())
        })?;
    }
    Ok(whole)
}
