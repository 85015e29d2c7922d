//! Byte-pair encoding: parts of words, learned from frequencies (Sennrich et al. 2016, section 3.2).
//!
//! The symbols are characters and merges of them. The last symbol of a word ends with a space, which occurs in no word.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::ops::Range;

type Pair = (u32, u32);

/// A part of a word, and its symbol if it has one.
type Part = (Range<usize>, Option<u32>);

/// Numbers symbols in the order of their first use.
#[derive(Debug, Clone, Default, PartialEq)]
struct Symbols {
    ids: HashMap<String, u32>,
    texts: Vec<String>,
}

impl Symbols {
    fn id(&mut self, text: String) -> u32 {
        *self.ids.entry(text).or_insert_with_key(|text| {
            self.texts.push(text.clone());
            self.texts.len() as u32 - 1
        })
    }

    fn concat(&mut self, pair: Pair) -> u32 {
        let text = [pair.0, pair.1].map(|id| self.texts[id as usize].as_str()).concat();
        self.id(text)
    }
}

/// The parts of `padded`, a word and a space, before any merge.
fn characters(padded: &str) -> impl Iterator<Item = Range<usize>> {
    let last = padded.trim_end().char_indices().next_back().map_or(0, |(at, _)| at);
    let end = move |at, c: char| if at == last { padded.len() } else { at + c.len_utf8() };
    padded[..padded.len().saturating_sub(1)].char_indices().map(move |(at, c)| at..end(at, c))
}

/// Learns up to `count` merges, most frequent first, from words and their frequencies.
///
/// Of pairs with the same frequency, the pair with the older symbols is merged first. A pair that occurs once is not
/// merged.
pub(super) fn learn(words: &BTreeMap<String, u64>, count: usize) -> Vec<(String, String)> {
    let padded: Vec<String> = words.keys().map(|word| format!("{word} ")).collect();
    let mut symbols = Symbols::default();
    let alphabet: BTreeSet<&str> =
        padded.iter().flat_map(|word| characters(word).map(move |part| &word[part])).collect();
    alphabet.into_iter().for_each(|symbol| _ = symbols.id(symbol.into()));
    let mut words: Vec<(Vec<u32>, u64)> = padded
        .iter()
        .zip(words.values())
        .map(|(word, &count)| (characters(word).map(|part| symbols.ids[&word[part]]).collect(), count))
        .collect();
    let mut counts: HashMap<Pair, u64> = HashMap::new();
    let mut places: HashMap<Pair, Vec<usize>> = HashMap::new();
    for (at, (word, count)) in words.iter().enumerate() {
        for pair in word.windows(2).map(|pair| (pair[0], pair[1])) {
            *counts.entry(pair).or_default() += count;
            places.entry(pair).or_default().push(at);
        }
    }
    // An entry with an outdated count is skipped: a later one replaces it.
    let mut queue: BinaryHeap<(u64, Reverse<Pair>)> =
        counts.iter().map(|(&pair, &count)| (count, Reverse(pair))).collect();
    let mut merges = vec![];
    while merges.len() < count {
        let Some((frequency, Reverse(pair))) = queue.pop() else { break };
        if frequency != counts[&pair] {
            continue;
        }
        if frequency < 2 {
            break;
        }
        merges.push(pair);
        let merged = symbols.concat(pair);
        let mut changed = BTreeSet::new();
        let mut at_words = places.remove(&pair).unwrap_or_default();
        at_words.sort_unstable();
        at_words.dedup();
        for at in at_words {
            let (word, count) = &mut words[at];
            for old in word.windows(2).map(|pair| (pair[0], pair[1])) {
                counts.entry(old).and_modify(|total| *total -= *count);
                changed.insert(old);
            }
            merge(word, pair, merged);
            for new in word.windows(2).map(|pair| (pair[0], pair[1])) {
                *counts.entry(new).or_default() += *count;
                changed.insert(new);
                if new.0 == merged || new.1 == merged {
                    places.entry(new).or_default().push(at);
                }
            }
        }
        queue.extend(changed.into_iter().map(|pair| (counts[&pair], Reverse(pair))));
    }
    let text = |id: u32| symbols.texts[id as usize].clone();
    merges.into_iter().map(|(first, second)| (text(first), text(second))).collect()
}

/// Replaces each occurrence of `pair`, from left to right, by `merged`.
fn merge(word: &mut Vec<u32>, pair: Pair, merged: u32) {
    let (mut read, mut written) = (0, 0);
    while read < word.len() {
        let is_pair = word[read] == pair.0 && word.get(read + 1) == Some(&pair.1);
        word[written] = if is_pair { merged } else { word[read] };
        read += if is_pair { 2 } else { 1 };
        written += 1;
    }
    word.truncate(written);
}

/// Cuts words into the parts that result from the merges.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct BytePairs {
    symbols: Symbols,
    /// The rank and the result of each merge.
    merges: HashMap<Pair, (usize, u32)>,
}

impl BytePairs {
    pub fn new(merges: &[(String, String)]) -> Self {
        let mut pairs = Self::default();
        for (rank, (first, second)) in merges.iter().enumerate() {
            let pair = (pairs.symbols.id(first.clone()), pairs.symbols.id(second.clone()));
            let merged = pairs.symbols.concat(pair);
            pairs.merges.insert(pair, (rank, merged));
        }
        pairs
    }

    /// The parts of `word`, the last with a space at its end.
    pub fn parts(&self, word: &str) -> Vec<String> {
        let padded = format!("{word} ");
        let id = |part: &Range<usize>| self.symbols.ids.get(&padded[part.clone()]).copied();
        let mut parts: Vec<Part> = characters(&padded).map(|part| (part.clone(), id(&part))).collect();
        loop {
            let pairs = parts.windows(2).enumerate();
            let merge = |(at, pair): (usize, &[Part])| {
                let &(rank, merged) = self.merges.get(&(pair[0].1?, pair[1].1?))?;
                Some((rank, at, merged))
            };
            let Some((_, at, merged)) = pairs.filter_map(merge).min() else { break };
            let (second, _) = parts.remove(at + 1);
            parts[at] = (parts[at].0.start..second.end, Some(merged));
        }
        parts.into_iter().map(|(part, _)| padded[part].to_string()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(counts: &[(&str, u64)]) -> BTreeMap<String, u64> {
        counts.iter().map(|&(word, count)| (word.to_string(), count)).collect()
    }

    #[test]
    fn merges_follow_the_papers_example() {
        // Sennrich et al. 2016, algorithm 1.
        let words = words(&[("low", 5), ("lower", 2), ("newest", 6), ("widest", 3)]);
        let merges = learn(&words, 4);
        let merges: Vec<(&str, &str)> = merges.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        assert_eq!(merges, [("e", "s"), ("es", "t "), ("l", "o"), ("e", "w")]);
    }

    #[test]
    fn parts_join_to_the_word_and_frequent_words_are_whole() {
        let words = words(&[("banana", 9), ("bandana", 3), ("aaaa", 4)]);
        let pairs = BytePairs::new(&learn(&words, 100));
        for word in ["banana", "bandana", "aaaa"] {
            assert_eq!(pairs.parts(word), [format!("{word} ")]);
        }
        for word in ["bananas", "nab", "x", "ñandú", "aaaaa"] {
            assert_eq!(pairs.parts(word).concat(), format!("{word} "));
        }
        assert!(pairs.parts("").is_empty());
    }
}
