//! Vocabularies of the binaries for text, and the facts that their runs record.

use crate::cli::options::positive;
use crate::data::Vocabulary;
use crate::train::Run;
use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::ffi::OsString;
use std::io::BufRead;

/// Options that choose the known words.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
pub struct VocabularyOptions {
    /// Convert words to lower case
    #[arg(long)]
    pub lower_case: bool,
    /// Treat words that occur less than N times in the training set as unknown
    #[arg(long, value_name = "N", value_parser = positive)]
    pub min_count: usize,
}

impl Default for VocabularyOptions {
    fn default() -> Self {
        Self { lower_case: false, min_count: 1 }
    }
}

/// What a run records about its sentences.
pub struct TextFacts {
    /// The known words.
    pub vocabulary: Vocabulary,
    /// Names of the classes or tags.
    pub classes: Vec<String>,
}

impl TextFacts {
    /// The facts about the training sentences `training` among all `sentences`.
    pub(super) fn new(
        options: &VocabularyOptions,
        sentences: &[Vec<String>],
        training: &[u32],
        classes: Vec<String>,
    ) -> Self {
        let words = training.iter().map(|&i| &sentences[i as usize]);
        Self { vocabulary: Vocabulary::new(words, options.lower_case, options.min_count), classes }
    }

    /// Checks that a model for these classes can be tested on data with the classes `found`.
    pub(super) fn check_classes(&self, found: &[String]) -> Result<()> {
        let expected = &self.classes;
        ensure!(
            found == expected,
            "found the classes {}, expected {}",
            found.join(", "),
            expected.join(", ")
        );
        Ok(())
    }

    /// The fields of `config.json`: the classes under `name`, the number of known words, and the data's fingerprint.
    pub(super) fn record(&self, name: &str, fingerprint: u64) -> Map<String, Value> {
        Map::from_iter([
            (name.to_string(), json!(self.classes)),
            ("words".to_string(), json!(self.vocabulary.len())),
            ("data_fingerprint".to_string(), json!(fingerprint)),
        ])
    }

    /// Reads what [`record`](Self::record) and [`write_vocabulary`] wrote.
    pub(super) fn read(run: &Run, config: &Value, name: &str) -> Result<Self> {
        let classes = serde_json::from_value(config[name].clone())
            .with_context(|| format!("{}: config.json has no list of {name}", run.dir().display()))?;
        Ok(Self { vocabulary: read_vocabulary(run)?, classes })
    }
}

/// File of the run folder that holds the vocabulary.
const VOCABULARY: &str = "vocabulary.txt";

pub(super) fn write_vocabulary(run: &Run, vocabulary: &Vocabulary) -> Result<()> {
    run.write(VOCABULARY, &vocabulary.to_text())
}

pub(super) fn read_vocabulary(run: &Run) -> Result<Vocabulary> {
    let path = run.dir().join(VOCABULARY);
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("{}: cannot read it", path.display()))?;
    Vocabulary::from_text(&text).with_context(|| path.display().to_string())
}

/// The sentences to predict: the arguments, or the lines of standard input if there are none.
pub(super) fn input_sentences(inputs: &[OsString]) -> Result<Vec<String>> {
    match inputs {
        [] => std::io::stdin().lock().lines().map(|line| line.context("standard input")).collect(),
        inputs => Ok(inputs.iter().map(|input| input.to_string_lossy().into_owned()).collect()),
    }
}
