//! The numbering of tokens.

use crate::data::count;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::HashMap;

/// The tokens that a model knows, and their ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    tokens: Vec<String>,
    ids: HashMap<String, u32>,
    lower_case: bool,
}

/// The first line of a vocabulary's file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    tokens: usize,
    lower_case: bool,
}

impl Vocabulary {
    /// The id of `<pad>`, the padding in batches of sentences of different lengths.
    pub const PAD: u32 = 0;
    /// The id of `<unk>`, which stands for all unknown tokens.
    pub const UNKNOWN: u32 = 1;
    /// The id of the most frequent token.
    pub const FIRST: u32 = 2;
    const SPECIAL: [&str; Self::FIRST as usize] = ["<pad>", "<unk>"];

    /// Creates the vocabulary of the training sentences.
    ///
    /// It has the tokens that occur at least `minimum_count` times, in order of decreasing frequency, then
    /// alphabetically. With `lower_case`, tokens are lower-cased here and in [`id`](Self::id).
    pub fn new(
        sentences: impl IntoIterator<Item = impl AsRef<[String]>>,
        lower_case: bool,
        minimum_count: usize,
    ) -> Self {
        let mut counts = HashMap::new();
        for sentence in sentences {
            for token in sentence.as_ref() {
                let token = if lower_case { Cow::Owned(token.to_lowercase()) } else { Cow::Borrowed(token) };
                match counts.get_mut(token.as_ref()) {
                    Some(count) => *count += 1,
                    None => _ = counts.insert(token.into_owned(), 1),
                }
            }
        }
        Self::from_counts(counts, lower_case, minimum_count, None)
    }

    /// Creates the vocabulary of a text from its tokens' counts, of at most `size` tokens.
    pub(super) fn from_counts(
        mut counts: HashMap<String, usize>,
        lower_case: bool,
        minimum_count: usize,
        size: Option<usize>,
    ) -> Self {
        counts.retain(|token, count| *count >= minimum_count && !Self::SPECIAL.contains(&token.as_str()));
        let mut counts: Vec<(String, usize)> = counts.into_iter().collect();
        counts.sort_by(|(a, a_count), (b, b_count)| b_count.cmp(a_count).then_with(|| a.cmp(b)));
        counts.truncate(size.unwrap_or(usize::MAX));
        let known = Self::SPECIAL.map(String::from).into_iter();
        Self::numbered(known.chain(counts.into_iter().map(|(token, _)| token)).collect(), lower_case)
    }

    fn numbered(tokens: Vec<String>, lower_case: bool) -> Self {
        let ids = tokens.iter().zip(0..).map(|(token, id)| (token.clone(), id)).collect();
        Self { tokens, ids, lower_case }
    }

    /// Adds `tokens` at the end, except known ones.
    pub fn extend<'a>(&mut self, tokens: impl IntoIterator<Item = &'a str>) {
        for token in tokens {
            if !self.ids.contains_key(token) {
                self.ids.insert(token.to_string(), self.tokens.len() as u32);
                self.tokens.push(token.to_string());
            }
        }
    }

    /// The id of `token`, or [`UNKNOWN`](Self::UNKNOWN).
    pub fn id(&self, token: &str) -> u32 {
        let id = if self.lower_case { self.ids.get(&token.to_lowercase()) } else { self.ids.get(token) };
        id.copied().unwrap_or(Self::UNKNOWN)
    }

    /// The token with this id.
    pub fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize).map(String::as_str)
    }

    /// The tokens except `<pad>` and `<unk>`, in the order of their ids.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        self.tokens[Self::FIRST as usize..].iter().map(String::as_str)
    }

    /// Number of tokens, including `<pad>` and `<unk>`.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are no tokens. Never true, as `<pad>` and `<unk>` always exist.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Writes the vocabulary as JSON lines: a header, then one quoted token per line, in order of the ids.
    pub fn to_text(&self) -> String {
        let header = serde_json::json!({ "tokens": self.len(), "lower_case": self.lower_case });
        let tokens = self.tokens.iter().map(|token| serde_json::Value::from(token.as_str()));
        std::iter::once(header).chain(tokens).map(|line| format!("{line}\n")).collect()
    }

    /// Reads the format of [`to_text`](Self::to_text).
    ///
    /// # Errors
    /// Fails if a line is malformed, a token is duplicated, or tokens are missing; the message has the line's number.
    pub fn from_text(text: &str) -> Result<Self> {
        let mut lines = text.lines().zip(1..);
        let header = lines.next().and_then(|(line, _)| serde_json::from_str(line).ok());
        let Header { tokens: expected, lower_case } =
            header.context("line 1: not the first line of a vocabulary, expected {\"tokens\": ..}")?;
        let mut tokens = Vec::new();
        for (line, number) in lines {
            let token: String = serde_json::from_str(line)
                .ok()
                .with_context(|| format!("line {number}: {line:?}, expected a quoted token"))?;
            if let Some(special) = Self::SPECIAL.get(tokens.len()).filter(|&&special| special != token) {
                bail!("line {number}: token {token:?}, expected {special:?}");
            }
            tokens.push(token);
        }
        ensure!(
            tokens.len() == expected && expected >= Self::SPECIAL.len(),
            "line {}: the file ends after {}, expected {expected}",
            tokens.len() + 1,
            count(tokens.len(), "token")
        );
        let vocabulary = Self::numbered(tokens, lower_case);
        for (token, number) in vocabulary.tokens.iter().zip(2..) {
            let last = vocabulary.ids[token] + 2;
            ensure!(last == number, "line {number}: token {token:?} is duplicated in line {last}");
        }
        Ok(vocabulary)
    }
}
