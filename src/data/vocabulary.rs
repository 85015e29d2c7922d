//! From text to tokens, and from tokens to numbers.

use std::borrow::Cow;
use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// What a text is cut into.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Tokenizer {
    /// Words and `( ) , ! ?` as Kim 2014 (arXiv:1408.5882) has them: `'s 've n't 're 'd 'll` are tokens of their own,
    /// and what is neither a letter, digit nor quote of ASCII is dropped. Kim also made all but TREC lower-case,
    /// which is left to the vocabulary.
    #[default]
    Kim,
    /// What stands between blanks.
    Plain,
    /// Every character, blanks too.
    Characters,
}

impl Tokenizer {
    /// The tokens of `text`, in order.
    pub fn tokens(self, text: &str) -> Vec<String> {
        match self {
            Self::Kim => kim(text).split_ascii_whitespace().map(String::from).collect(),
            Self::Plain => text.split_whitespace().map(String::from).collect(),
            Self::Characters => text.chars().map(String::from).collect(),
        }
    }
}

/// `text` with blanks around what is to be a token.
fn kim(text: &str) -> String {
    let mut spaced = String::with_capacity(text.len() + text.len() / 8);
    for (at, c) in text.char_indices() {
        match c {
            '(' | ')' | ',' | '!' | '?' => spaced.extend([' ', c, ' ']),
            '\'' | 'n'
                if ["'s", "'ve", "n't", "'re", "'d", "'ll"].iter().any(|end| text[at..].starts_with(end)) =>
            {
                spaced.extend([' ', c]);
            }
            '\'' | '`' | 'a'..='z' | 'A'..='Z' | '0'..='9' => spaced.push(c),
            _ => spaced.push(' '),
        }
    }
    spaced
}

/// The tokens that a model knows, and the number of each.
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
    /// The number of `<pad>`, what fills up a batch of sentences of several lengths.
    pub const PAD: u32 = 0;
    /// The number of `<unk>`, any token that is not known.
    pub const UNKNOWN: u32 = 1;
    /// The number of the most frequent token.
    pub const FIRST: u32 = 2;
    const SPECIAL: [&str; Self::FIRST as usize] = ["<pad>", "<unk>"];

    /// The vocabulary of `sentences`, those of the training split: the tokens that occur at least `minimum_count`
    /// times, from the most frequent on, equally frequent ones in alphabetical order.
    ///
    /// With `lower_case`, here and in [`id`](Self::id), "The" counts as "the".
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

    /// The vocabulary of a text in which each token occurs so many times, of at most `size` tokens.
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

    /// Also knows `tokens`, which follow the ones known before.
    pub fn extend<'a>(&mut self, tokens: impl IntoIterator<Item = &'a str>) {
        for token in tokens {
            if !self.ids.contains_key(token) {
                self.ids.insert(token.to_string(), self.tokens.len() as u32);
                self.tokens.push(token.to_string());
            }
        }
    }

    /// The number of `token`, [`UNKNOWN`](Self::UNKNOWN) if it has none.
    pub fn id(&self, token: &str) -> u32 {
        let id = if self.lower_case { self.ids.get(&token.to_lowercase()) } else { self.ids.get(token) };
        id.copied().unwrap_or(Self::UNKNOWN)
    }

    /// The token of number `id`.
    pub fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize).map(String::as_str)
    }

    /// The tokens but for `<pad>` and `<unk>`, in the order of their numbers.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        self.tokens[Self::FIRST as usize..].iter().map(String::as_str)
    }

    /// How many tokens there are, `<pad>` and `<unk>` among them.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The whole vocabulary as JSON lines: a header, then a token a line, quoted, in the order of their numbers.
    pub fn to_text(&self) -> String {
        let header = serde_json::json!({ "tokens": self.len(), "lower_case": self.lower_case });
        let tokens = self.tokens.iter().map(|token| serde_json::Value::from(token.as_str()));
        std::iter::once(header).chain(tokens).map(|line| format!("{line}\n")).collect()
    }

    /// Reads what [`to_text`](Self::to_text) wrote.
    ///
    /// # Errors
    /// With the line's number: when a line is not as it was written, a token comes twice, or some are missing.
    pub fn from_text(text: &str) -> Result<Self> {
        let mut lines = text.lines().zip(1..);
        let header = lines.next().and_then(|(line, _)| serde_json::from_str(line).ok());
        let Header { tokens: expected, lower_case } =
            header.context("line 1: not the first line of a vocabulary, expected {\"tokens\": ..}")?;
        let mut tokens = Vec::new();
        for (line, number) in lines {
            let token: String = serde_json::from_str(line)
                .ok()
                .with_context(|| format!("line {number}: {line:?}, expected a token in quotes"))?;
            if let Some(special) = Self::SPECIAL.get(tokens.len()).filter(|&&special| special != token) {
                bail!("line {number}: token {token:?}, expected {special:?}");
            }
            tokens.push(token);
        }
        ensure!(
            tokens.len() == expected && expected >= Self::SPECIAL.len(),
            "line {}: the file ends after {} tokens, expected {expected}",
            tokens.len() + 1,
            tokens.len()
        );
        let vocabulary = Self::numbered(tokens, lower_case);
        for (token, number) in vocabulary.tokens.iter().zip(2..) {
            let last = vocabulary.ids[token] + 2;
            ensure!(
                last == number,
                "line {number}: token {token:?}, expected once but line {last} has it too"
            );
        }
        Ok(vocabulary)
    }
}
