//! What a bag of features has of a sentence: its words and, hashed into buckets, runs of words and of characters.

use super::Vocabulary;
use serde::{Deserialize, Serialize};

/// Which features there are besides the words (Joulin et al. 2016, arXiv:1607.01759, section 2.2; runs of characters as in
/// Bojanowski et al. 2017, arXiv:1607.04606, section 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NGrams {
    /// Words of the longest run of words; 1 for none.
    pub words: usize,
    /// Characters of the shortest and the longest run within a word, whose ends count as one character each; none if the
    /// longest is 0.
    pub characters: (usize, usize),
    /// Runs share so many numbers, which follow those of the words.
    pub buckets: usize,
}

impl Default for NGrams {
    /// Words alone.
    fn default() -> Self {
        Self { words: 1, characters: (0, 0), buckets: 0 }
    }
}

impl NGrams {
    /// How many features there are in all, where these words are known.
    pub fn size(&self, known: usize) -> usize {
        known + self.buckets
    }

    /// The features of a sentence by number; without words it counts as one unknown word.
    pub fn ids(&self, vocabulary: &Vocabulary, words: &[String]) -> Vec<u32> {
        let mut ids: Vec<u32> = words.iter().map(|word| vocabulary.id(word)).collect();
        if ids.is_empty() {
            ids.push(Vocabulary::UNKNOWN);
        }
        if self.buckets > 0 {
            let known = vocabulary.len() as u32;
            self.runs(words, |hash, _| ids.push(known + (hash % self.buckets as u64) as u32));
        }
        ids
    }

    /// The features of a sentence as text, in the order of [`ids`](Self::ids); none without words.
    pub fn texts(&self, words: &[String]) -> Vec<String> {
        let mut texts = words.to_vec();
        if self.buckets > 0 {
            self.runs(words, |_, text| texts.push(text()));
        }
        texts
    }

    /// Calls `found` with the hash of each run and what gives its text.
    fn runs(&self, words: &[String], mut found: impl FnMut(u64, &dyn Fn() -> String)) {
        let hashes: Vec<u64> = match self.words {
            0 | 1 => vec![],
            _ => words.iter().map(|word| hash(word.bytes())).collect(),
        };
        for first in 0..hashes.len() {
            let mut run = hashes[first];
            for end in first + 2..=(first + self.words).min(words.len()) {
                run = mix(run ^ hashes[end - 1].rotate_left(23));
                found(run, &|| words[first..end].join(" "));
            }
        }
        let (shortest, longest) = self.characters;
        if longest == 0 {
            return;
        }
        for word in words {
            let word = format!("<{word}>");
            let starts: Vec<usize> = word.char_indices().map(|(at, _)| at).chain([word.len()]).collect();
            for first in 0..starts.len() - 1 {
                for end in first + shortest.max(1)..=(first + longest).min(starts.len() - 1) {
                    let run = &word[starts[first]..starts[end]];
                    // Apart from the word of the same letters.
                    found(mix(hash(run.bytes())), &|| run.to_string());
                }
            }
        }
    }
}

/// FNV-1a.
fn hash(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// Spreads each bit over all (the end of MurmurHash3).
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

    #[test]
    fn runs_of_words_and_characters_follow_the_words() {
        let sentence = words("not so bad");
        let ngrams = NGrams { words: 3, characters: (0, 0), buckets: 1000 };
        assert_eq!(ngrams.texts(&sentence), ["not", "so", "bad", "not so", "not so bad", "so bad"]);
        let ngrams = NGrams { words: 1, characters: (3, 4), buckets: 1000 };
        assert_eq!(ngrams.texts(&words("né")), ["né", "<né", "<né>", "né>"]);
        assert_eq!(NGrams::default().texts(&sentence), sentence);
    }

    #[test]
    fn each_feature_has_one_number_and_the_order_of_words_matters() {
        let vocabulary = Vocabulary::new([words("not so bad")], false, 1);
        let ngrams = NGrams { words: 2, characters: (2, 3), buckets: 1 << 20 };
        let ids = |text: &str| ngrams.ids(&vocabulary, &words(text));
        assert_eq!(ids("so bad").len(), ngrams.texts(&words("so bad")).len());
        assert_eq!(ids("not so")[2], ids("bad not so")[4]);
        assert_ne!(ids("not so")[2], ids("so not")[2]);
        let size = ngrams.size(vocabulary.len()) as u32;
        assert!(ids("so very bad").iter().all(|&id| id < size));
        assert_eq!(ngrams.ids(&vocabulary, &[]), [Vocabulary::UNKNOWN]);
    }
}
