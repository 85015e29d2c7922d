//! Scores of translations: BLEU and chrF, computed like sacrebleu 2.

use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::hash::Hash;

/// How [`bleu`] cuts a sentence into words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum BleuTokenizer {
    /// As mteval-v13a does, for text as people write it
    #[default]
    #[serde(rename = "13a")]
    #[cfg_attr(feature = "cli", value(name = "13a"))]
    Mteval13a,
    /// At white space only, for text that is cut into tokens already
    None,
}

impl BleuTokenizer {
    /// Whether a line has four words. Otherwise [`bleu`] has nothing to compare.
    pub fn has_four_words<S: AsRef<str>>(self, lines: &[S]) -> bool {
        lines.iter().any(|line| self.words(line.as_ref()).len() >= 4)
    }

    /// The words of `line`.
    fn words(self, line: &str) -> Vec<String> {
        match self {
            Self::Mteval13a => words(&mteval_13a(line)),
            Self::None => words(line),
        }
    }
}

/// White space as Python's `str.split` sees it.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn words(line: &str) -> Vec<String> {
    line.split(is_space).filter(|word| !word.is_empty()).map(String::from).collect()
}

/// Separates punctuation from words by spaces.
fn mteval_13a(line: &str) -> String {
    let mut line =
        line.trim_end_matches(is_space).replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    for (entity, character) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
        line = line.replace(entity, character);
    }
    let mut spaced: Vec<char> = vec![' '];
    for c in line.chars() {
        match c {
            '\'' | ',' | '-' | '.' => spaced.push(c),
            c if c.is_ascii_punctuation() => spaced.extend([' ', c, ' ']),
            c => spaced.push(c),
        }
    }
    spaced.push(' ');
    let is_point = |c: char| matches!(c, '.' | ',');
    let is_digit = |c: char| c.is_ascii_digit();
    let spaced = insert_spaces(&spaced, [false, true, true], |a, b| !is_digit(a) && is_point(b));
    let spaced = insert_spaces(&spaced, [true, true, false], |a, b| is_point(a) && !is_digit(b));
    let spaced = insert_spaces(&spaced, [false, true, true], |a, b| is_digit(a) && b == '-');
    spaced.into_iter().collect()
}

/// Inserts spaces before, between and after two adjacent characters that satisfy `is_pair`.
///
/// As with a regular expression, the pairs do not overlap, and the leftmost wins.
fn insert_spaces(text: &[char], places: [bool; 3], is_pair: impl Fn(char, char) -> bool) -> Vec<char> {
    let (mut spaced, mut at) = (Vec::with_capacity(text.len() + 8), 0);
    while at < text.len() {
        let pair = text.get(at + 1).filter(|&&next| is_pair(text[at], next));
        let characters = [Some(text[at]), pair.copied(), None];
        for (place, character) in places.iter().zip(characters) {
            if *place && pair.is_some() {
                spaced.push(' ');
            }
            spaced.extend(character);
        }
        at += if pair.is_some() { 2 } else { 1 };
    }
    spaced
}

/// The number of times that each run of `order` items occurs in `items`.
fn ngrams<T: Hash + Eq>(items: &[T], order: usize) -> HashMap<&[T], usize> {
    let mut counts = HashMap::new();
    items.windows(order).for_each(|ngram| *counts.entry(ngram).or_default() += 1);
    counts
}

/// Number of `candidate`'s n-grams that are in `reference`, each counted at most as often as there.
fn matches<T: Hash + Eq>(candidate: &[T], reference: &[T], order: usize) -> usize {
    let reference = ngrams(reference, order);
    let matched = |(ngram, &count): (&&[T], &usize)| count.min(reference.get(ngram).copied().unwrap_or(0));
    ngrams(candidate, order).iter().map(matched).sum()
}

/// Number of n-grams of `order` in `length` items.
fn ngram_count(length: usize, order: usize) -> usize {
    (length + 1).saturating_sub(order)
}

/// The BLEU score of a corpus, 0 to 100 (Papineni et al. 2002), with one reference per hypothesis.
///
/// The precisions of n-grams of up to 4 words are taken over the whole corpus. An order without a match is smoothed
/// exponentially. All of this is sacrebleu's default (Post 2018).
pub fn bleu<S: AsRef<str>>(hypotheses: &[S], references: &[S], tokenizer: BleuTokenizer) -> f64 {
    const ORDERS: usize = 4;
    let (mut correct, mut total) = ([0; ORDERS], [0; ORDERS]);
    let (mut length, mut reference_length) = (0, 0);
    for (hypothesis, reference) in hypotheses.iter().zip(references) {
        let [hypothesis, reference] = [hypothesis, reference].map(|line| tokenizer.words(line.as_ref()));
        length += hypothesis.len();
        reference_length += reference.len();
        for order in 1..=ORDERS {
            correct[order - 1] += matches(&hypothesis, &reference, order);
            total[order - 1] += ngram_count(hypothesis.len(), order);
        }
    }
    if correct == [0; ORDERS] || total.contains(&0) {
        return 0.0;
    }
    let mut smoothing = 1.0;
    let mut log_precision = |(&correct, &total): (&usize, &usize)| {
        let correct = if correct == 0 {
            smoothing *= 2.0;
            1.0 / smoothing
        } else {
            correct as f64
        };
        libm::log(100.0 * correct / total as f64)
    };
    let mean = correct.iter().zip(&total).map(&mut log_precision).sum::<f64>() / ORDERS as f64;
    let brevity = (1.0 - reference_length as f64 / length as f64).min(0.0);
    libm::exp(brevity + mean)
}

/// The chrF2 score of a corpus, 0 to 100 (Popović 2015), with one reference per hypothesis.
///
/// It is the F-score of runs of 1 to 6 characters without white space, in which recall has twice the weight of
/// precision. As in sacrebleu's default, precisions and recalls are taken over the whole corpus and averaged over the
/// orders that occur in it.
pub fn chrf<S: AsRef<str>>(hypotheses: &[S], references: &[S]) -> f64 {
    const ORDERS: usize = 6;
    const BETA: f64 = 2.0;
    let characters = |line: &S| -> Vec<char> { line.as_ref().chars().filter(|&c| !is_space(c)).collect() };
    let mut counts = [[0; 3]; ORDERS];
    for (hypothesis, reference) in hypotheses.iter().zip(references) {
        let [hypothesis, reference] = [hypothesis, reference].map(characters);
        for (order, [found, expected, matched]) in (1..).zip(&mut counts) {
            let reference_ngrams = ngram_count(reference.len(), order);
            // Without any n-gram in the reference, the hypothesis's n-grams don't count.
            *found += if reference_ngrams > 0 { ngram_count(hypothesis.len(), order) } else { 0 };
            *expected += reference_ngrams;
            *matched += matches(&hypothesis, &reference, order);
        }
    }
    let used: Vec<_> = counts.into_iter().filter(|&[found, expected, _]| found > 0 && expected > 0).collect();
    let mean = |part: usize| {
        let ratios = used.iter().map(|counts| counts[2] as f64 / counts[part] as f64);
        ratios.sum::<f64>() / used.len().max(1) as f64
    };
    let (precision, recall) = (mean(0), mean(1));
    let factor = BETA * BETA;
    match precision + recall > 0.0 {
        true => 100.0 * (1.0 + factor) * precision * recall / (factor * precision + recall),
        false => 0.0,
    }
}

/// The percentage of hypotheses that equal their reference; 0 without hypotheses.
pub fn exact_match<S: AsRef<str>>(hypotheses: &[S], references: &[S]) -> f64 {
    let pairs = hypotheses.iter().zip(references);
    let equal = pairs.filter(|(hypothesis, reference)| hypothesis.as_ref() == reference.as_ref()).count();
    100.0 * equal as f64 / hypotheses.len().max(1) as f64
}
