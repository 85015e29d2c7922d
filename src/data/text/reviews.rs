//! The built-in labelled sentences: reviews, generated from a seed.
//!
//! They are short sentences about films, books, food and places. Every word is equally frequent in both classes, so
//! only the order of the words decides:
//!
//! - 40% of the sentences have one opinion, half of them negated ("the soup was never bland .");
//! - 30% have two that agree, one of them negated ("the plot was clever and the cast was far from dull .");
//! - 30% have two that disagree ("the opening was dull , but the ending was superb ."); the opinion
//!   after "but" or "yet", or the one without "although" or "despite", decides the label.
//!
//! With two opinions, the same words in another order have the opposite label. In one sentence of forty, pairs of
//! adjacent words do not suffice either: the negation is further away ("not really clever"), or one of two contrasting
//! clauses is negated.
//!
//! Accuracies on the test set: logistic regression on word counts 51%; any function of word counts at most 0.4 + 0.6 /
//! 2 = 70%; a linear model of the counts of words and adjacent pairs about 97%; a model of the whole word order up to
//! 100%.

use super::corpus::{Corpus, Texts, polarities};
use crate::rng::stream;
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;
use std::collections::HashSet;

type Words = &'static [&'static str];

/// A reviewed thing: its parts, phrases that may follow a part, and its own adjectives.
struct Topic {
    parts: Words,
    details: Words,
    opinions: [Words; 2],
}

#[rustfmt::skip]
const TOPICS: [Topic; 4] = [
    Topic {
        parts: &[
            "film", "plot", "cast", "opening", "ending", "script", "music", "hero", "villain", "dialogue", "camera work",
            "second half", "chase scene", "romance", "sequel", "trailer",
        ],
        details: &[
            "we saw on monday", "about the two brothers", "that won the prize", "from the same studio", "set in space",
            "everyone talks about", "with the famous singer",
        ],
        opinions: [
            &["predictable", "wooden", "shallow", "noisy", "confused", "lifeless"],
            &["gripping", "moving", "funny", "thrilling", "tense", "witty"],
        ],
    },
    Topic {
        parts: &[
            "book", "novel", "first chapter", "last chapter", "story", "prose", "narrator", "preface", "poem", "detective",
            "cover", "translation", "mystery", "essay", "memoir",
        ],
        details: &[
            "my teacher gave me", "about the long war", "in the new edition", "by the young author", "told in letters",
            "i read on the train", "from the library",
        ],
        opinions: [
            &["predictable", "shallow", "clumsy", "dry", "wordy", "pompous"],
            &["gripping", "moving", "witty", "elegant", "wise", "vivid"],
        ],
    },
    Topic {
        parts: &[
            "soup", "bread", "salad", "fish", "dessert", "pasta", "coffee", "breakfast", "menu", "wine", "rice", "cheese",
            "main course", "chicken", "lemon cake",
        ],
        details: &[
            "my sister ordered", "from the lunch menu", "with the green sauce", "they brought us", "of the day",
            "at the corner table", "we shared",
        ],
        opinions: [
            &["bland", "stale", "greasy", "soggy", "burnt", "salty"],
            &["tasty", "fresh", "crisp", "juicy", "tender", "spicy"],
        ],
    },
    Topic {
        parts: &[
            "hotel", "room", "garden", "beach", "view", "museum", "market", "lobby", "pool", "street", "park", "balcony",
            "bathroom", "terrace", "castle",
        ],
        details: &[
            "near the old harbour", "we booked in may", "on the third floor", "behind the station", "by the river",
            "our guide showed us", "in the north of the island",
        ],
        opinions: [
            &["filthy", "noisy", "crowded", "gloomy", "shabby", "dusty"],
            &["clean", "peaceful", "cosy", "sunny", "spotless", "quiet"],
        ],
    },
];

/// Negative and positive adjectives for every topic.
#[rustfmt::skip]
const ADJECTIVES: [Words; 2] = [
    &["bad", "dull", "awful", "poor", "boring", "terrible", "dreadful", "weak", "tedious", "mediocre"],
    &["good", "great", "superb", "lovely", "clever", "wonderful", "charming", "perfect", "brilliant", "delightful"],
];
#[rustfmt::skip]
const NOUNS: [Words; 2] = [
    &["disaster", "mess", "bore", "failure", "letdown", "nuisance", "chore", "flop"],
    &["delight", "treat", "triumph", "success", "marvel", "pleasure", "gem", "joy"],
];
#[rustfmt::skip]
const VERBS: [Words; 2] = [
    &["regret", "avoid", "resent", "mock", "detest", "curse", "hate", "criticise"],
    &["recommend", "praise", "enjoy", "treasure", "admire", "applaud", "love", "celebrate"],
];

/// A way to express an opinion. The same words precede positive and negative ones.
struct Form {
    opinion: fn(&Topic, usize, &mut ChaCha8Rng) -> &'static str,
    affirmed: Words,
    negated: Words,
    /// Negations that are not adjacent to the opinion, or that also occur in affirmations.
    distant: Words,
    /// Whether the opinion precedes its subject.
    verb: bool,
}

fn adjective(topic: &Topic, polarity: usize, rng: &mut ChaCha8Rng) -> &'static str {
    one(if rng.random_bool(0.5) { ADJECTIVES[polarity] } else { topic.opinions[polarity] }, rng)
}

#[rustfmt::skip]
const FORMS: [Form; 3] = [
    Form {
        opinion: adjective,
        affirmed: &[
            "was", "was", "is", "is", "seemed", "felt", "proved", "is always", "was really", "was truly", "is very", "is so",
            "was simply", "was quite",
        ],
        negated: &[
            "was not", "is not", "was never", "is never", "was hardly", "is hardly", "was far from", "is far from",
        ],
        distant: &[
            "was not really", "is not very", "was never truly", "is never so", "is not always", "was hardly what i call",
            "was not what i would call", "was anything but", "is by no means",
        ],
        verb: false,
    },
    Form {
        opinion: |_, polarity, rng| one(NOUNS[polarity], rng),
        affirmed: &["was a", "is a", "proved a", "felt like a", "was such a"],
        negated: &["was no", "is no", "proved no", "felt like no"],
        distant: &["was not a", "is hardly a", "was never a", "was anything but a"],
        verb: false,
    },
    Form {
        opinion: |_, polarity, rng| one(VERBS[polarity], rng),
        affirmed: &["i would", "we would", "you will", "my friends would", "anyone would", "i could"],
        negated: &["i would not", "we would never", "you will never", "my friends would hardly", "i could not"],
        distant: &["i do not think you will", "we would not say we", "it is not true that i", "nobody would"],
        verb: true,
    },
];

#[rustfmt::skip]
const LEADS: Words = &[
    "last week", "to be honest ,", "in my view ,", "on the whole ,", "for the price ,", "this time", "i must say that",
    "i think that", "we all agreed that", "as far as i remember ,", "believe me ,", "in the end", "after all these years",
    "as i told my mother ,", "for once", "well ,", "looking back ,", "on our first visit", "to my surprise ,",
];
const DETERMINERS: Words = &["the", "the", "the", "this", "their", "that"];

/// Generates `train` training and `test` test reviews, all distinct, half of them positive.
///
/// They are a function of `seed`; a smaller training set is the beginning of a larger one.
pub fn reviews(train: usize, test: usize, seed: u64) -> Corpus {
    let mut seen = HashSet::new();
    let mut split = |len, name: &str| {
        let mut rng = stream(seed, &format!("reviews/{name}"));
        let mut texts = Texts::default();
        while texts.len() < len {
            let mut polarities = [0, 1];
            polarities.shuffle(&mut rng);
            for polarity in polarities.into_iter().take(len - texts.len()) {
                let mut text = review(polarity, &mut rng);
                while !seen.insert(text.clone()) {
                    text = review(polarity, &mut rng);
                }
                texts.push(text, polarity as u32);
            }
        }
        texts
    };
    let train = split(train, "train");
    Corpus { train, test: Some(split(test, "test")), classes: polarities(), ..Corpus::default() }
}

fn one<T: Copy>(of: &[T], rng: &mut ChaCha8Rng) -> T {
    of[rng.random_range(0..of.len())]
}

/// Writes one positive (1) or negative (0) sentence.
fn review(polarity: usize, rng: &mut ChaCha8Rng) -> String {
    let topic = &TOPICS[rng.random_range(0..TOPICS.len())];
    let mut parts = topic.parts.choose_multiple(rng, 2).copied();
    let mut part = || parts.next().unwrap_or_default();
    let (part, other) = (part(), part());
    let far = rng.random_bool(0.025);
    let lead = if rng.random_bool(0.4) { one(LEADS, rng) } else { "" };
    let body = match rng.random_range(0..20) {
        0..8 => {
            let form = one(&[&FORMS[0], &FORMS[0], &FORMS[1], &FORMS[2]], rng);
            let negation = if far { Negation::Distant } else { one(&[Negation::None, Negation::Near], rng) };
            clause(topic, part, form, polarity, negation, rng)
        }
        8..14 => {
            let form = one(&[&FORMS[0], &FORMS[0], &FORMS[1], &FORMS[2]], rng);
            let mut negations = [Negation::None, if far { Negation::Distant } else { Negation::Near }];
            negations.shuffle(rng);
            let first = clause(topic, part, form, polarity, negations[0], rng);
            let second = clause(topic, other, form, polarity, negations[1], rng);
            format!("{first} {} {second}", one(&["and", "and also", "and even"], rng))
        }
        _ => contrast(topic, [part, other], polarity, far, rng),
    };
    format!("{lead} {body} .").trim_start().into()
}

#[derive(Clone, Copy, PartialEq)]
enum Negation {
    None,
    Near,
    Distant,
}

/// Writes a clause of the given polarity about `part`.
fn clause(
    topic: &Topic,
    part: &str,
    form: &Form,
    polarity: usize,
    negation: Negation,
    rng: &mut ChaCha8Rng,
) -> String {
    let (frames, polarity) = match negation {
        Negation::None => (form.affirmed, polarity),
        Negation::Near => (form.negated, 1 - polarity),
        Negation::Distant => (form.distant, 1 - polarity),
    };
    let (frame, opinion) = (one(frames, rng), (form.opinion)(topic, polarity, rng));
    let subject = subject(topic, one(DETERMINERS, rng), part, rng);
    if form.verb { format!("{frame} {opinion} {subject}") } else { format!("{subject} {frame} {opinion}") }
}

fn subject(topic: &Topic, determiner: &str, part: &str, rng: &mut ChaCha8Rng) -> String {
    match rng.random_bool(0.35) {
        true => format!("{determiner} {part} {}", one(topic.details, rng)),
        false => format!("{determiner} {part}"),
    }
}

/// Writes two clauses that disagree. The decisive one has the polarity `polarity`.
///
/// With `far`, one or both are negated.
fn contrast(topic: &Topic, parts: [&str; 2], polarity: usize, far: bool, rng: &mut ChaCha8Rng) -> String {
    let near = |negated| if negated { Negation::Near } else { Negation::None };
    let negations =
        if far { one(&[(false, true), (true, false), (true, true)], rng) } else { (false, false) };
    let forms = [(); 2].map(|()| rng.random_range(0..2));
    let kind = rng.random_range(0..if forms == [0, 0] && !far { 8 } else { 7 });
    let decisive = clause(topic, parts[0], &FORMS[forms[0]], polarity, near(negations.0), rng);
    if kind == 7 {
        let opinion = adjective(topic, 1 - polarity, rng);
        return format!(
            "despite {} , {decisive}",
            subject(topic, "the", &format!("{opinion} {}", parts[1]), rng)
        );
    }
    let other = clause(topic, parts[1], &FORMS[forms[1]], 1 - polarity, near(negations.1), rng);
    match kind {
        0..3 => format!("{other} {} {decisive}", one(&[", but", ", but", ", yet"], rng)),
        3..5 => format!("{} {other} , {decisive}", one(&["although", "though", "even though"], rng)),
        _ => format!("{decisive} although {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_opinion(word: &str, polarity: usize) -> bool {
        let general = [ADJECTIVES[polarity], NOUNS[polarity], VERBS[polarity]];
        let mut words = general.into_iter().chain(TOPICS.iter().map(|topic| topic.opinions[polarity]));
        words.any(|words| words.contains(&word))
    }

    /// The polarity of a clause with one opinion.
    fn read(clause: &str) -> usize {
        let mut words = clause.split(' ');
        let negations = ["not", "never", "hardly", "but", "no", "nobody"];
        let negated = words.clone().any(|word| negations.contains(&word)) || clause.contains("far from");
        let polarity = words.find_map(|word| [0, 1].into_iter().find(|&polarity| is_opinion(word, polarity)));
        polarity.unwrap() ^ usize::from(negated)
    }

    #[test]
    fn word_order_determines_the_label_and_40_percent_have_one_opinion() {
        let texts = reviews(20_000, 0, 1).train;
        let mut single = 0;
        for (text, &label) in texts.texts.iter().zip(&texts.labels) {
            let concession =
                ["although ", "though ", "despite "].iter().filter_map(|word| text.find(word)).min();
            let read = match concession.map(|at| (text[..at].trim(), text[at..].rsplit_once(" , "))) {
                Some((_, Some((_, counts))) | (counts, None)) => vec![read(counts)],
                None => match text.split_once(" , but ").or_else(|| text.split_once(" , yet ")) {
                    Some((_, counts)) => vec![read(counts)],
                    None => text.split(" and ").map(read).collect(),
                },
            };
            assert!(read.iter().all(|&read| read == label as usize), "{text} {label}");
            let opinions = text.split(' ').filter(|word| is_opinion(word, 0) || is_opinion(word, 1));
            single += usize::from(opinions.count() == 1);
        }
        assert!((0.39..0.41).contains(&(single as f64 / texts.len() as f64)), "{single}");
    }
}
