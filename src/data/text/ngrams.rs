//! The features of a sentence in a bag of features: words, and hashed n-grams of words and characters.

use super::vocabulary::Vocabulary;
use crate::data::fingerprint::Fingerprint;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Which n-grams are features besides the words.
///
/// Word n-grams follow Joulin et al. 2016 (arXiv:1607.01759, section 2.2), character n-grams Bojanowski et al. 2017
/// (arXiv:1607.04606, section 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NGrams {
    /// Maximum length of word n-grams; 1 for none.
    pub words: usize,
    /// Minimum and maximum length of character n-grams; maximum 0 for none.
    ///
    /// `<` and `>` mark the ends of a word.
    pub characters: (usize, usize),
    /// Number of hash buckets that the n-grams share; 0 for no n-grams. Their ids follow the words' ids.
    pub buckets: usize,
}

impl Default for NGrams {
    /// Words alone.
    fn default() -> Self {
        Self { words: 1, characters: (0, 0), buckets: 0 }
    }
}

impl NGrams {
    /// Number of features, given the number of words in the vocabulary.
    ///
    /// # Errors
    /// Fails if their ids exceed 32 bits.
    pub fn size(&self, words: usize) -> Result<usize> {
        let size = words.checked_add(self.buckets).filter(|&size| u32::try_from(size).is_ok());
        size.with_context(|| {
            format!(
                "n-grams: found {words} words and {} buckets, expected at most {} in all",
                self.buckets,
                u32::MAX
            )
        })
    }

    /// The ids of a sentence's features. An empty sentence counts as one unknown word.
    ///
    /// # Panics
    /// If [`size`](Self::size) refuses this many words and buckets.
    pub fn ids(&self, vocabulary: &Vocabulary, words: &[String]) -> Vec<u32> {
        let mut ids: Vec<u32> = words.iter().map(|word| vocabulary.id(word)).collect();
        if ids.is_empty() {
            ids.push(Vocabulary::UNKNOWN);
        }
        if self.buckets > 0 {
            assert!(self.size(vocabulary.len()).is_ok(), "n-grams: too many buckets");
            let known = vocabulary.len() as u32;
            self.for_each(words, |hash, _, _| ids.push(known + (hash % self.buckets as u64) as u32));
        }
        ids
    }

    /// The features of a sentence as text, each with the places of its words.
    ///
    /// They have the order of [`ids`](Self::ids).
    ///
    /// An empty sentence has none.
    pub fn texts(&self, words: &[String]) -> Vec<(String, Range<usize>)> {
        let mut texts: Vec<_> = words.iter().cloned().zip((0..).map(|place| place..place + 1)).collect();
        if self.buckets > 0 {
            self.for_each(words, |_, text, places| texts.push((text(), places)));
        }
        texts
    }

    /// Calls `found` with each n-gram: its hash, a function that returns its text, and its words' places.
    fn for_each(&self, words: &[String], mut found: impl FnMut(u64, &dyn Fn() -> String, Range<usize>)) {
        let hashes: Vec<u64> = match self.words {
            0 | 1 => vec![],
            _ => words.iter().map(|word| hash(word)).collect(),
        };
        for first in 0..hashes.len() {
            let mut ngram = hashes[first];
            for end in first + 2..=first.saturating_add(self.words).min(words.len()) {
                ngram = mix(ngram ^ hashes[end - 1].rotate_left(23));
                found(ngram, &|| words[first..end].join(" "), first..end);
            }
        }
        let (shortest, longest) = self.characters;
        if longest == 0 {
            return;
        }
        for (place, word) in words.iter().enumerate() {
            let word = format!("<{word}>");
            let starts: Vec<usize> = word.char_indices().map(|(at, _)| at).chain([word.len()]).collect();
            for first in 0..starts.len() - 1 {
                let last = first.saturating_add(longest).min(starts.len() - 1);
                for end in first.saturating_add(shortest.max(1))..=last {
                    let ngram = &word[starts[first]..starts[end]];
                    // Mix the hash, so that it differs from the hash of the word with the same letters.
                    found(mix(hash(ngram)), &|| ngram.to_string(), place..place + 1);
                }
            }
        }
    }
}

fn hash(text: &str) -> u64 {
    Fingerprint::new().add(text.as_bytes()).finish()
}

/// Spreads each bit over all others (the finaliser of MurmurHash3).
fn mix(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(String::from).collect()
    }

    fn texts(ngrams: NGrams, sentence: &[String]) -> Vec<String> {
        ngrams.texts(sentence).into_iter().map(|(text, _)| text).collect()
    }

    #[test]
    fn ngrams_of_words_and_characters_follow_the_words() {
        let sentence = words("not so bad");
        let ngrams = NGrams { words: 3, characters: (0, 0), buckets: 1000 };
        assert_eq!(texts(ngrams, &sentence), ["not", "so", "bad", "not so", "not so bad", "so bad"]);
        assert_eq!(ngrams.texts(&sentence).pop().unwrap().1, 1..3);
        let ngrams = NGrams { words: 1, characters: (3, 4), buckets: 1000 };
        assert_eq!(texts(ngrams, &words("né")), ["né", "<né", "<né>", "né>"]);
        assert_eq!(texts(NGrams::default(), &sentence), sentence);
    }

    #[test]
    fn each_feature_has_one_id_and_the_order_of_words_matters() {
        let vocabulary = Vocabulary::new([words("not so bad")], false, 1);
        let ngrams = NGrams { words: 2, characters: (2, 3), buckets: 1 << 20 };
        let ids = |text: &str| ngrams.ids(&vocabulary, &words(text));
        assert_eq!(ids("so bad").len(), ngrams.texts(&words("so bad")).len());
        assert_eq!(ids("not so")[2], ids("bad not so")[4]);
        assert_ne!(ids("not so")[2], ids("so not")[2]);
        let size = ngrams.size(vocabulary.len()).unwrap() as u32;
        assert!(ids("so very bad").iter().all(|&id| id < size));
        assert_eq!(ngrams.ids(&vocabulary, &[]), [Vocabulary::UNKNOWN]);
    }

    #[test]
    fn absurd_lengths_and_bucket_counts_do_not_overflow() {
        let sentence = words("not so bad");
        let all = NGrams { words: usize::MAX, characters: (1, usize::MAX), buckets: 10 };
        assert_eq!(all.texts(&sentence).len(), 3 + 3 + 15 + 10 + 15);
        let none = NGrams { words: 1, characters: (usize::MAX, usize::MAX), buckets: 10 };
        assert_eq!(texts(none, &sentence), sentence);
        for buckets in [usize::MAX, u32::MAX as usize] {
            let error = NGrams { buckets, ..all }.size(5).unwrap_err().to_string();
            assert!(error.contains("5 words") && error.contains(&buckets.to_string()), "{error}");
        }
    }
}
