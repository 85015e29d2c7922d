//! Cutting a sentence into tokens.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use unicode_normalization::{UnicodeNormalization, is_nfc};
use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};
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
    /// Words of every script, `( ) , ! ?` and symbols; `'s 've n't 're 'd 'll` are separate tokens.
    ///
    /// Equals [`Kim`](Self::Kim) for ASCII text without symbols. Letters and digits of other scripts are kept, with
    /// their accents; scripts without spaces between words, such as Chinese, are cut into characters (Unicode Standard
    /// Annex 29). Each emoji or other symbol, such as `+`, is a token. Invisible characters such as soft hyphens are
    /// dropped.
    #[default]
    Words,
    /// For English: words and `( ) , ! ?`, as in Kim 2014 (arXiv:1408.5882).
    ///
    /// `'s 've n't 're 'd 'll` are separate tokens. Characters other than ASCII letters, digits and quotes are dropped.
    /// Kim also lower-cases all data sets but TREC; here the vocabulary does so.
    Kim,
    /// Words separated by white space.
    Plain,
    /// Characters, including white space.
    Characters,
}

impl Tokenizer {
    /// The tokens of `text`, in order.
    ///
    /// Composed and decomposed accents give the same tokens (normalisation form C).
    pub fn tokens(self, text: &str) -> Vec<String> {
        let text = &*composed(text);
        match self {
            Self::Words if text.bytes().all(is_kims) => Self::Kim.tokens(text),
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
}

/// Whether [`Tokenizer::Kim`] and [`Tokenizer::Words`] treat an ASCII character alike.
fn is_kims(byte: u8) -> bool {
    byte.is_ascii() && !is_symbol(char::from(byte))
}

/// Whether `c` is a symbol, such as an emoji or `+`. The backquote counts as a quote.
fn is_symbol(c: char) -> bool {
    match c {
        '`' => false,
        '\0'..='\x7f' => "$+<=>^|~".contains(c),
        _ => c.general_category_group() == GeneralCategoryGroup::Symbol,
    }
}

/// Appends the ASCII character `c`, the first of `rest`, to `spaced`, where spaces separate tokens.
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
    // The typographic apostrophe is equivalent to the typewriter's.
    let text = text.replace('\u{2019}', "'");
    let mut spaced = String::with_capacity(text.len() + text.len() / 8);
    // A grapheme is a character with its accents.
    for (at, grapheme) in text.grapheme_indices(true) {
        match grapheme.chars().next() {
            Some('\u{ad}' | '\u{200e}' | '\u{200f}' | '\u{2060}' | '\u{feff}') => {}
            Some(c) if is_symbol(c) => spaced.extend([" ", grapheme, " "]),
            Some(c) if grapheme.len() == c.len_utf8() && c.is_ascii() => {
                separate(&mut spaced, c, &text[at..])
            }
            Some(c) if c.is_alphanumeric() => spaced.push_str(grapheme),
            _ => spaced.push(' '),
        }
    }
    let mut tokens = vec![];
    for token in spaced.split_ascii_whitespace() {
        if token.is_ascii() || token.starts_with(is_symbol) {
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
    fn symbols_are_tokens_and_soft_hyphens_vanish() {
        for (text, expected) in [
            ("love it😀👍🏽❤️!", "love it 😀 👍🏽 ❤️ !"),
            ("C++ > C#, 5€ 🇩🇪👨‍👩‍👧 :-)", "C + + > C , 5 € 🇩🇪 👨‍👩‍👧 )"),
            ("a co\u{ad}operative ma\u{ad}\u{f1}ana", "a cooperative ma\u{f1}ana"),
            ("`quoted' a+b", "`quoted' a + b"),
        ] {
            assert_eq!(Tokenizer::Words.tokens(text).join(" "), expected);
        }
    }
}
