//! One side of a translation: its tokens and their ids.

use super::byte_pairs::{BytePairs, learn};
use crate::data::Vocabulary;
use crate::data::text::composed;
use anyhow::{Result, anyhow, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The kind of tokens of a language.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Segmentation {
    /// Characters (Unicode scalar values).
    Characters,
    /// Words separated by white space.
    Words,
    /// Parts of words by byte-pair encoding (Sennrich, Haddow and Birch 2016).
    ///
    /// There are up to this number of merges. The last part of each word ends with a space.
    Subwords(usize),
}

/// The tokens of one side of a translation, and their ids.
#[derive(Debug, Clone, PartialEq)]
pub struct Language {
    segmentation: Segmentation,
    lower_case: bool,
    vocabulary: Vocabulary,
    merges: Vec<(String, String)>,
    byte_pairs: BytePairs,
}

/// The file of a language.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recorded {
    segmentation: Segmentation,
    lower_case: bool,
    tokens: Vec<String>,
    merges: Vec<(String, String)>,
}

impl Language {
    /// The id of `<pad>`, the padding in batches.
    pub const PAD: u32 = Vocabulary::PAD;
    /// The id of `<unk>`, which stands for all unknown tokens.
    pub const UNKNOWN: u32 = Vocabulary::UNKNOWN;
    /// The id of `<bos>`, the decoder's first input.
    pub const BEGIN: u32 = 2;
    /// The id of `<eos>`, the end of a sentence.
    pub const END: u32 = 3;
    /// Number of these special tokens. The most frequent other token has this id.
    const SPECIAL: u32 = 4;

    /// Learns the tokens of the training texts of one side.
    ///
    /// Tokens that occur less than `minimum_count` times are unknown.
    pub fn learn<'a>(
        texts: impl Iterator<Item = &'a str> + Clone,
        segmentation: Segmentation,
        lower_case: bool,
        minimum_count: usize,
    ) -> Self {
        let mut language = Self {
            segmentation,
            lower_case,
            vocabulary: Vocabulary::new([[]; 0], false, 1),
            merges: vec![],
            byte_pairs: BytePairs::default(),
        };
        if let Segmentation::Subwords(count) = segmentation {
            let mut words = BTreeMap::new();
            for text in texts.clone() {
                for word in language.normalised(text).split_whitespace() {
                    *words.entry(word.to_string()).or_default() += 1;
                }
            }
            language.merges = learn(&words, count);
            language.byte_pairs = BytePairs::new(&language.merges);
        }
        let counted = Vocabulary::new(texts.map(|text| language.tokens(text)), false, minimum_count);
        language.vocabulary.extend(["<bos>", "<eos>"]);
        language.vocabulary.extend(counted.words());
        language
    }

    /// Adds `words`, except known ones, such as those with a pretrained vector.
    pub fn extend<'a>(&mut self, words: impl IntoIterator<Item = &'a str>) {
        self.vocabulary.extend(words);
    }

    /// The kind of the tokens.
    pub fn segmentation(&self) -> Segmentation {
        self.segmentation
    }

    /// The tokens and their ids.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Number of tokens, with the special ones.
    pub fn len(&self) -> usize {
        self.vocabulary.len()
    }

    /// Whether there are no tokens but the special ones.
    pub fn is_empty(&self) -> bool {
        self.len() == Self::SPECIAL as usize
    }

    /// `text` with composed accents (normalisation form C), and in lower case if the language is.
    pub fn normalised(&self, text: &str) -> String {
        let text = composed(text);
        if self.lower_case { text.to_lowercase() } else { text.into_owned() }
    }

    /// The tokens of `text`. Surrounding white space is dropped.
    pub fn tokens(&self, text: &str) -> Vec<String> {
        let text = self.normalised(text);
        match self.segmentation {
            Segmentation::Characters => text.trim().chars().map(String::from).collect(),
            Segmentation::Words => text.split_whitespace().map(String::from).collect(),
            Segmentation::Subwords(_) => {
                text.split_whitespace().flat_map(|word| self.byte_pairs.parts(word)).collect()
            }
        }
    }

    /// The id of each of [`tokens`](Self::tokens).
    pub fn encode(&self, text: &str) -> Vec<u32> {
        // A text may contain the name of a special token.
        let id = |token: &String| Some(self.vocabulary.id(token)).filter(|&id| id >= Self::SPECIAL);
        self.tokens(text).iter().map(|token| id(token).unwrap_or(Self::UNKNOWN)).collect()
    }

    /// The text of tokens.
    pub fn join<'a>(&self, tokens: impl IntoIterator<Item = &'a str>) -> String {
        let mut text = String::new();
        for token in tokens {
            text.push_str(token);
            // An unknown part of a word has no text, so it is shown as a word.
            let is_whole = match self.segmentation {
                Segmentation::Characters => false,
                Segmentation::Words => true,
                Segmentation::Subwords(_) => self.vocabulary.token(Self::UNKNOWN) == Some(token),
            };
            if is_whole {
                text.push(' ');
            }
        }
        text.truncate(text.trim_end().len());
        text
    }

    /// The text of `ids`; padding, `<bos>` and `<eos>` are dropped.
    pub fn decode(&self, ids: &[u32]) -> String {
        let silent = [Self::PAD, Self::BEGIN, Self::END];
        let ids = ids.iter().filter(|id| !silent.contains(id));
        self.join(ids.filter_map(|&id| self.vocabulary.token(id)))
    }

    /// Writes the language as JSON.
    pub fn to_json(&self) -> String {
        let recorded = Recorded {
            segmentation: self.segmentation,
            lower_case: self.lower_case,
            tokens: (0..self.len() as u32)
                .filter_map(|id| self.vocabulary.token(id))
                .map(String::from)
                .collect(),
            merges: self.merges.clone(),
        };
        // A struct of strings always serialises.
        serde_json::to_string(&recorded).unwrap_or_default() + "\n"
    }

    /// Reads the format of [`to_json`](Self::to_json).
    ///
    /// # Errors
    /// Fails if `text` is not in this format, or the tokens do not begin with the special ones or are not distinct.
    pub fn from_json(text: &str) -> Result<Self> {
        let Recorded { segmentation, lower_case, tokens, merges } = serde_json::from_str(text)
            .map_err(|_| anyhow!("not the tokens of a language: truncated or damaged"))?;
        let special = ["<pad>", "<unk>", "<bos>", "<eos>"];
        ensure!(
            tokens.iter().take(special.len()).eq(special.iter()),
            "the first tokens are others, expected {}",
            special.join(", ")
        );
        let mut vocabulary = Vocabulary::new([[]; 0], false, 1);
        vocabulary.extend(tokens.iter().map(String::as_str));
        ensure!(
            vocabulary.len() == tokens.len(),
            "found {} tokens, of which {} are distinct",
            tokens.len(),
            vocabulary.len()
        );
        let byte_pairs = BytePairs::new(&merges);
        Ok(Self { segmentation, lower_case, vocabulary, merges, byte_pairs })
    }
}
