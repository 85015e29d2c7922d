//! Data sets: built-in generators, readers of common file formats, downloads from the Hugging Face hub.
//!
//! - [`image`]: labelled images, and their augmentation in training;
//! - [`text`]: labelled sentences, long texts, vocabularies and word vectors;
//! - [`sequence`]: sentences with a tag for each word;
//! - [`translation`]: sentences with their translations;
//! - [`music`]: pieces of music in time steps.
//!
//! Each of them has a `load` that finds a data set by its name. Built-in sets are generated from a seed and are the
//! same on every machine.

mod error;
pub(crate) mod file_kind;
mod fingerprint;
mod gzip;
#[cfg(feature = "hub")]
pub mod hub;
pub mod image;
pub mod music;
pub mod sequence;
mod splits;
pub mod text;
pub mod translation;

pub use self::image::{
    Augmentation, Distortion, ImageSet, Images, Normalisation, PhotoAugmentation, Preparation, Prepared,
    digits, shapes,
};
pub use error::DataError;
pub use sequence::{EntityCounts, EntityScores, TaggedCorpus, TaggedSentences, entity_scores, names};
pub use splits::Selection;
pub(crate) use splits::is_of_system;
pub use text::{
    Columns, Corpus, Level, NGrams, TextStream, Texts, TokenWindow, TokenWindows, Tokenizer, Tokens,
    Vocabulary, WordVectors, reviews,
};
pub use translation::{Language, PairCorpus, Pairs, Segmentation, TextPairs, bleu, chrf};

/// A count in words: "1 example", "2 examples".
pub(crate) fn count(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// The beginning of a text in quotes, for a message, without control characters.
pub(crate) fn quoted(text: &str) -> String {
    const SHOWN: usize = 60;
    let mut characters = text.chars().filter(|c| !c.is_control());
    let shown: String = characters.by_ref().take(SHOWN).collect();
    format!("\"{shown}{}\"", if characters.next().is_some() { ".." } else { "" })
}

#[cfg(test)]
mod tests {
    #[test]
    fn quoted_text_is_short_and_stands_as_it_is() {
        assert_eq!(super::quoted("a \"b\"\u{1b}\n"), "\"a \"b\"\"");
        assert!(super::quoted(&"x".repeat(61)).ends_with("xx..\""));
    }

    #[test]
    fn counts_have_the_right_number() {
        let count = |number| super::count(number, "example");
        assert_eq!((count(1), count(2)), ("1 example".to_string(), "2 examples".to_string()));
    }
}
