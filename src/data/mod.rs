//! Data sets: built-in generators, readers of common file formats, downloads from the Hugging Face hub.
//!
//! - [`image`]: labelled images, and their augmentation in training;
//! - [`text`]: labelled sentences, long texts, vocabularies and word vectors;
//! - [`sequence`]: sentences with a tag for each word;
//! - [`translation`]: sentences with their translations;
//! - [`music`]: pieces of music in time steps.
//!
//! Each of them starts with an example, and has a `load` that finds a data set by its name. Built-in sets are generated from a seed and are the
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

/// A count in words: "1 example", "2 examples", "2 classes", "2 entities".
pub(crate) fn count(count: usize, noun: &str) -> String {
    match noun.strip_suffix('y') {
        _ if count == 1 => format!("{count} {noun}"),
        Some(stem) if !stem.ends_with(['a', 'e', 'o', 'u']) => format!("{count} {stem}ies"),
        _ if noun.ends_with('s') => format!("{count} {noun}es"),
        _ => format!("{count} {noun}s"),
    }
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
        for (noun, two) in
            [("example", "2 examples"), ("class", "2 classes"), ("entity", "2 entities"), ("key", "2 keys")]
        {
            assert_eq!(
                (super::count(1, noun), super::count(2, noun)),
                (format!("1 {noun}"), two.to_string())
            );
        }
    }
}
