//! Cutting a sentence into tokens.

use serde::{Deserialize, Serialize};

/// How a sentence is cut into tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Tokenizer {
    /// Words and `( ) , ! ?` as in Kim 2014 (arXiv:1408.5882): `'s 've n't 're 'd 'll` are tokens of their own, and
    /// characters other than ASCII letters, digits and quotes are dropped. Kim also lower-cases all data sets but TREC,
    /// which the vocabulary does here.
    #[default]
    Kim,
    /// Words separated by white space.
    Plain,
    /// Characters, including white space.
    Characters,
}

impl Tokenizer {
    /// The tokens of `text`, in order.
    pub fn tokens(self, text: &str) -> Vec<String> {
        match self {
            Self::Kim => separate(text).split_ascii_whitespace().map(String::from).collect(),
            Self::Plain => text.split_whitespace().map(String::from).collect(),
            Self::Characters => text.chars().map(String::from).collect(),
        }
    }
}

/// Separates the tokens of [`Tokenizer::Kim`] by spaces.
fn separate(text: &str) -> String {
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
