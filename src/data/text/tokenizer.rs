//! Cutting a sentence into tokens.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use unicode_normalization::{UnicodeNormalization, is_nfc};
use unicode_segmentation::UnicodeSegmentation;

/// The text with composed accents (normalisation form C).
pub(crate) fn composed(text: &str) -> Cow<'_, str> {
    if is_nfc(text) { text.into() } else { text.nfc().collect() }
}

/// How a sentence is cut into tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Tokenizer {
    /// Words of every script and `( ) , ! ?`; `'s 've n't 're 'd 'll` are tokens of their own.
    ///
    /// The same as [`Kim`](Self::Kim) for ASCII text. Letters and digits of other scripts are kept, with their accents;
    /// scripts without spaces between words, such as Chinese, are cut into characters (Unicode Standard Annex 29).
    #[default]
    Words,
    /// For English: words and `( ) , ! ?`; characters other than ASCII letters, digits and quotes are dropped.
    ///
    /// As in Kim 2014 (arXiv:1408.5882): `'s 've n't 're 'd 'll` are tokens of their own. Kim also lower-cases all data
    /// sets but TREC, which the vocabulary does here.
    Kim,
    /// Words separated by white space.
    Plain,
    /// Characters, including white space.
    Characters,
}

impl Tokenizer {
    /// The tokens of `text`, in order. Composed and decomposed accents give the same tokens (normalisation form C).
    pub fn tokens(self, text: &str) -> Vec<String> {
        let text = &*composed(text);
        match self {
            Self::Words if text.is_ascii() => Self::Kim.tokens(text),
            Self::Words => words(text),
            Self::Kim => {
                let mut spaced = String::with_capacity(text.len() + text.len() / 8);
                text.char_indices().for_each(|(at, c)| separate(&mut spaced, c, &text[at..]));
                spaced.split_ascii_whitespace().map(String::from).collect()
            }
            Self::Plain => text.split_whitespace().map(String::from).collect(),
            Self::Characters => text.chars().map(String::from).collect(),
        }
    }

    /// The fraction of the letters of `texts` that the tokenizer drops.
    pub fn dropped_letters<'a>(self, texts: impl IntoIterator<Item = &'a str>) -> f64 {
        let (mut letters, mut dropped) = (0_usize, 0_usize);
        for c in texts.into_iter().flat_map(|text| text.nfc()).filter(|c| c.is_alphabetic()) {
            letters += 1;
            dropped += usize::from(self == Self::Kim && !c.is_ascii());
        }
        dropped as f64 / letters.max(1) as f64
    }
}

/// Appends the ASCII character `c`, with which `rest` begins, to `spaced`, in which spaces separate Kim's tokens.
fn separate(spaced: &mut String, c: char, rest: &str) {
    match c {
        '(' | ')' | ',' | '!' | '?' => spaced.extend([' ', c, ' ']),
        '\'' | 'n' if ["'s", "'ve", "n't", "'re", "'d", "'ll"].iter().any(|end| rest.starts_with(end)) => {
            spaced.extend([' ', c]);
        }
        '\'' | '`' | 'a'..='z' | 'A'..='Z' | '0'..='9' => spaced.push(c),
        _ => spaced.push(' '),
    }
}

/// The tokens of [`Tokenizer::Words`].
fn words(text: &str) -> Vec<String> {
    // The typographic apostrophe means the same as the typewriter's.
    let text = text.replace('\u{2019}', "'");
    let mut spaced = String::with_capacity(text.len() + text.len() / 8);
    // A grapheme is a character with its accents.
    for (at, grapheme) in text.grapheme_indices(true) {
        match grapheme.chars().next() {
            Some(c) if grapheme.len() == c.len_utf8() && c.is_ascii() => {
                separate(&mut spaced, c, &text[at..])
            }
            Some(c) if c.is_alphanumeric() => spaced.push_str(grapheme),
            _ => spaced.push(' '),
        }
    }
    let mut tokens = vec![];
    for token in spaced.split_ascii_whitespace() {
        if token.is_ascii() {
            tokens.push(token.to_string());
        } else {
            tokens.extend(token.unicode_words().map(String::from));
        }
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_every_script_are_kept() {
        for (text, expected) in [
            ("Caf\u{e9} na\u{ef}ve, l'\u{e9}t\u{e9}!", "Caf\u{e9} na\u{ef}ve , l'\u{e9}t\u{e9} !"),
            ("Это очень хорошо, не так ли?", "Это очень хорошо , не так ли ?"),
            ("这部电影很好。", "这 部 电 影 很 好"),
            ("हिन्दी अच्छी है", "हिन्दी अच्छी है"),
            ("영화가 좋다", "영화가 좋다"),
            ("میخواهم کتاب", "میخواهم کتاب"),
            ("1984年 iPhone", "1984 年 iPhone"),
            ("\u{fc}ber-\u{e4}hnlich it's", "\u{fc}ber \u{e4}hnlich it 's"),
        ] {
            assert_eq!(Tokenizer::Words.tokens(text).join(" "), expected);
        }
        assert!(!Tokenizer::Words.tokens("ดีมาก").is_empty());
    }

    #[test]
    fn composed_and_decomposed_accents_are_the_same_word() {
        for tokenizer in [Tokenizer::Words, Tokenizer::Kim, Tokenizer::Plain, Tokenizer::Characters] {
            assert_eq!(tokenizer.tokens("cafe\u{301}"), tokenizer.tokens("caf\u{e9}"));
        }
        // No composed form exists.
        assert_eq!(Tokenizer::Words.tokens("x\u{302}y"), ["x\u{302}y"]);
        assert_eq!(Tokenizer::Words.tokens("it\u{2019}s"), ["it", "'s"]);
    }

    #[test]
    fn kim_drops_what_is_not_ascii() {
        assert_eq!(Tokenizer::Kim.dropped_letters(["caf\u{e9}", "b"]), 0.2);
        assert_eq!(Tokenizer::Words.dropped_letters(["caf\u{e9}"]), 0.0);
        assert_eq!(Tokenizer::Kim.dropped_letters([]), 0.0);
    }
}
