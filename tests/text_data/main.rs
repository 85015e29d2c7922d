//! Sentences, texts and tags: built-in sets, file formats, vocabularies, streams, entity scores.

#[path = "../says/mod.rs"]
mod says;

mod built_in;
mod conll;
mod corpora;
mod tables;
mod tokens;

use candle_textbook::data::{Columns, Corpus, sequence, text};
use says::assert_says;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::{TempDir, tempdir};

fn dir_of(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempdir().unwrap();
    files.iter().for_each(|(name, bytes)| fs::write(dir.path().join(name), bytes).unwrap());
    dir
}

fn load(name: &str, dir: Option<&Path>) -> anyhow::Result<Corpus> {
    text::load(name, dir, &Columns::default())
}

fn corpus_of(name: &str, files: &[(&str, &[u8])]) -> Corpus {
    load(name, Some(dir_of(files).path())).unwrap()
}

/// Checks that loading `files` as the data set `name` is an error of one line that contains `parts`.
#[track_caller]
fn assert_refused(name: &str, files: &[(&str, &[u8])], parts: &[&str]) {
    let dir = dir_of(files);
    let error = match name {
        "conll" => sequence::load(name, Some(dir.path())).err(),
        _ => load(name, Some(dir.path())).err(),
    };
    assert_says(&format!("{:#}", error.expect("a malformed file was read")), parts);
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().copied().map(String::from).collect()
}

fn data() -> Option<PathBuf> {
    std::env::var_os("TEXTBOOK_DATA").map(PathBuf::from)
}
