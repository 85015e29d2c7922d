//! The built-in reviews and names.

use super::load;
use candle_textbook::data::{
    Corpus, TaggedSentences, Texts, Tokenizer, Vocabulary, entity_scores, names, reviews, sequence,
};
use candle_textbook::rng::stream;
use rand::seq::SliceRandom;
use std::collections::{BTreeMap, HashMap, HashSet};

/// The test accuracy of logistic regression on word counts and, with `pairs`, on adjacent pairs.
fn logistic_regression(corpus: &Corpus, pairs: bool) -> f64 {
    let features = |texts: &Texts| -> Vec<Vec<String>> {
        let of = |text: &String| {
            let words = Tokenizer::Kim.tokens(text);
            let neighbours = words.windows(2).filter(|_| pairs).map(|pair| pair.join(" "));
            words.iter().cloned().chain(neighbours).collect()
        };
        texts.texts.iter().map(of).collect()
    };
    let (train, test) = (&corpus.train, corpus.test.as_ref().unwrap());
    let (train_features, test_features) = (features(train), features(test));
    let known = Vocabulary::new(&train_features, false, 1);
    let number = |features: &[Vec<String>], labels: &[u32]| -> Vec<(Vec<usize>, f64)> {
        let ids = features.iter().map(|all| all.iter().map(|feature| known.id(feature) as usize).collect());
        ids.zip(labels.iter().map(|&label| f64::from(label))).collect()
    };
    let mut train = number(&train_features, &train.labels);
    let test = number(&test_features, &test.labels);
    let mut weights = vec![0.0; known.len()];
    let logit = |weights: &[f64], features: &[usize]| features.iter().map(|&at| weights[at]).sum::<f64>();
    for epoch in 0..30 {
        train.shuffle(&mut stream(0, &format!("epoch {epoch}")));
        for (features, label) in &train {
            let error = label - 1.0 / (1.0 + (-logit(&weights, features)).exp());
            features.iter().for_each(|&at| weights[at] += 0.1 * error);
        }
    }
    let correct =
        test.iter().filter(|(features, label)| (logit(&weights, features) > 0.0) == (*label == 1.0));
    correct.count() as f64 / test.len() as f64
}

#[test]
fn reviews_need_word_order_and_mostly_that_of_adjacent_words() {
    let corpus = load("reviews", None).unwrap();
    let (words, pairs) = (logistic_regression(&corpus, false), logistic_regression(&corpus, true));
    println!("words {words}, words and pairs {pairs}");
    assert!(words < 0.56, "{words}");
    assert!((0.96..0.985).contains(&pairs), "{pairs}");
}

#[test]
fn every_word_of_the_reviews_is_equally_frequent_in_both_classes() {
    let Corpus { train, .. } = reviews(100_000, 0, 1);
    let mut counts: HashMap<&str, [f64; 2]> = HashMap::new();
    for (text, &label) in train.texts.iter().zip(&train.labels) {
        text.split(' ').for_each(|word| counts.entry(word).or_default()[label as usize] += 1.0);
    }
    assert!((250..400).contains(&counts.len()), "{}", counts.len());
    for (word, [negative, positive]) in counts {
        assert!(
            (negative - positive).abs() < 5.0 * (negative + positive).sqrt(),
            "{word} {negative} {positive}"
        );
    }
}

#[test]
fn reviews_are_balanced_distinct_and_a_function_of_the_seed() {
    let corpus = load("reviews", None).unwrap();
    let test = corpus.test.as_ref().unwrap();
    for (texts, len) in [(&corpus.train, 10_000), (test, 2_000)] {
        assert_eq!((texts.len(), texts.labels.len()), (len, len));
        assert_eq!(texts.labels.iter().filter(|&&label| label == 1).count(), len / 2);
        let lengths: Vec<usize> = texts.texts.iter().map(|text| text.split(' ').count()).collect();
        assert!(lengths.iter().all(|length| (5..=32).contains(length)));
    }
    assert_eq!(corpus.train.texts.iter().chain(&test.texts).collect::<HashSet<_>>().len(), 12_000);
    assert_eq!(corpus.classes, ["negative", "positive"]);
    assert_eq!(reviews(50, 0, 0).train.texts, corpus.train.texts[..50]);
    assert_ne!(reviews(50, 0, 1).train.texts, corpus.train.texts[..50]);
}

/// Tags each word with the most frequent tag of its window in the training set.
///
/// The window has `left` words before and `right` words after. An unseen window is replaced by one with fewer words
/// before, then by one with any name instead of the word.
fn tag_by_windows(
    train: &TaggedSentences,
    test: &TaggedSentences,
    left: usize,
    right: usize,
) -> Vec<Vec<u32>> {
    let known = Vocabulary::new(&train.words, false, 2);
    let windows = |words: &[String], at: usize| -> Vec<Vec<u32>> {
        let id =
            |place: usize| words.get(place.wrapping_sub(left)).map_or(Vocabulary::PAD, |word| known.id(word));
        let full: Vec<u32> = (at..=at + left + right).map(id).collect();
        let mut unnamed = full.clone();
        if words[at].starts_with(char::is_uppercase) {
            unnamed[left] = Vocabulary::UNKNOWN;
        }
        [full, unnamed].iter().flat_map(|window| (0..=left).map(|skip| window[skip..].to_vec())).collect()
    };
    let mut counts: HashMap<Vec<u32>, BTreeMap<u32, u32>> = HashMap::new();
    for (words, tags) in train.words.iter().zip(&train.tags) {
        for (at, &tag) in tags.iter().enumerate() {
            for window in windows(words, at) {
                *counts.entry(window).or_default().entry(tag).or_default() += 1;
            }
        }
    }
    let tag = |words: &[String], at: usize| {
        let Some(counts) = windows(words, at).iter().find_map(|window| counts.get(window)) else { return 0 };
        counts.iter().max_by(|a, b| a.1.cmp(b.1)).map_or(0, |(&tag, _)| tag)
    };
    test.words.iter().map(|words| (0..words.len()).map(|at| tag(words, at)).collect()).collect()
}

#[test]
fn names_need_the_words_on_both_sides() {
    let corpus = sequence::load("names", None).unwrap();
    let test = corpus.test.unwrap();
    let f1 = |right| {
        let tags = tag_by_windows(&corpus.train, &test, 3, right);
        entity_scores(&test.tags, &tags, &corpus.tags).unwrap().overall.f1()
    };
    let (both, left) = (f1(1), f1(0));
    println!("both sides {both}, left side {left}");
    assert!(both > 0.97 && (0.6..0.75).contains(&left), "{both} {left}");
}

#[test]
fn names_are_distinct_well_formed_and_a_function_of_the_seed() {
    let corpus = sequence::load("names", None).unwrap();
    let test = corpus.test.as_ref().unwrap();
    assert_eq!((corpus.train.len(), test.len()), (6_000, 1_000));
    assert_eq!(corpus.train.words.iter().chain(&test.words).collect::<HashSet<_>>().len(), 7_000);
    assert_eq!(corpus.tags, ["O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER"]);
    for (words, tags) in corpus.train.words.iter().zip(&corpus.train.tags) {
        assert_eq!(words.len(), tags.len());
        let inside = |at: usize| tags[at] > 0 && tags[at] % 2 == 0;
        assert!(
            (0..tags.len())
                .all(|at| !inside(at) || at > 0 && [tags[at], tags[at] - 1].contains(&tags[at - 1]))
        );
    }
    let known: HashSet<&String> = corpus.train.words.iter().flatten().collect();
    let new = test.words.iter().filter(|words| words.iter().any(|word| !known.contains(word))).count();
    println!("{new} test sentences with a new word");
    assert!((40..110).contains(&new), "{new}");
    assert_eq!(names(50, 0, 0).train.words, corpus.train.words[..50]);
    assert_ne!(names(50, 0, 1).train.words, corpus.train.words[..50]);
}
