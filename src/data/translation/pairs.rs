//! Sentences with their translations, as text and as ids.

use crate::data::fingerprint::Fingerprint;

/// Sentences and their translations.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TextPairs {
    /// The sentences to translate.
    pub sources: Vec<String>,
    /// The translation of each sentence.
    pub targets: Vec<String>,
}

impl TextPairs {
    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.sources.len()
    }

    /// Whether there are no pairs.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// A hash of the texts, to detect changed data when a run is resumed.
    pub fn fingerprint(&self) -> u64 {
        Fingerprint::new().add_strings(&self.sources).add_strings(&self.targets).finish()
    }

    pub(super) fn push(&mut self, source: impl Into<String>, target: impl Into<String>) {
        self.sources.push(source.into());
        self.targets.push(target.into());
    }
}

/// A data set of sentences and translations with the splits that it defines.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PairCorpus {
    /// The training split.
    pub train: TextPairs,
    /// The validation split, if the data set defines one.
    pub validation: Option<TextPairs>,
    /// The test split, if the data set defines one.
    pub test: Option<TextPairs>,
    /// Remarks about the files for the user, one line each.
    pub notes: Vec<String>,
}

/// Sentences and translations as ids of two [`Language`](super::Language)s, without special tokens.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pairs {
    /// The ids of each sentence.
    pub sources: Vec<Vec<u32>>,
    /// The ids of each translation.
    pub targets: Vec<Vec<u32>>,
}

impl Pairs {
    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.sources.len()
    }

    /// Whether there are no pairs.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }
}
