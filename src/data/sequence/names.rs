//! The built-in tagged sentences: names of persons, places and firms, generated from a seed.
//!
//! Most sentences begin with an ambiguous word, and only the following words resolve it: "Rose walked home" and "Rose
//! Keller walked home", but "Rose petals fell on the carpet"; "Paris Hilton smiled", "Paris streets were empty", "Paris
//! Motors hired 300 workers"; "Morgan sang all evening", "Morgan cut 40 jobs". For names inside a sentence, the
//! preceding words suffice, such as "met", "moved to" or "works for". Some surnames are so rare that 7% of the test
//! sentences have a word that is not in the training set.
//!
//! The whole sentence always determines the tags. A word and its two neighbours nearly do: counting them gives F1 0.98.
//! A model that reads from left to right has to guess the tag of the first word. With the best guess and no other
//! mistake, F1 is 0.78.

use std::collections::HashSet;

use super::tagged::{TaggedCorpus, TaggedSentences, tag_names};
use crate::rng::stream;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

type Words = &'static [&'static str];

/// First names that are also other words, with the nouns that follow in that sense.
#[rustfmt::skip]
const THINGS: [(&str, Words); 44] = [
    ("Rose", &["petals", "bushes", "gardens"]), ("Teddy", &["bears"]), ("Daisy", &["chains"]), ("Lily", &["ponds"]),
    ("Amber", &["lights", "beads"]), ("Ruby", &["rings", "earrings"]), ("Pearl", &["necklaces", "earrings"]),
    ("Olive", &["trees", "groves"]), ("Ginger", &["biscuits", "roots"]), ("Basil", &["leaves", "seeds"]),
    ("Ivy", &["leaves"]), ("Heather", &["fields", "hills"]), ("Hazel", &["bushes"]), ("Violet", &["flowers"]),
    ("Iris", &["bulbs", "flowers"]), ("Robin", &["nests", "eggs"]), ("Jay", &["feathers"]), ("Crystal", &["glasses"]),
    ("Penny", &["stamps"]), ("Sandy", &["beaches", "paths"]), ("Sunny", &["mornings"]), ("Rusty", &["nails", "gates"]),
    ("Cliff", &["paths"]), ("Dawn", &["flights", "patrols"]), ("Summer", &["dresses", "sales"]),
    ("April", &["showers", "sales"]), ("May", &["storms", "flowers"]), ("June", &["weddings", "storms"]),
    ("Autumn", &["leaves", "storms"]), ("Frank", &["talks"]), ("Rich", &["desserts"]), ("Art", &["galleries", "lessons"]),
    ("Chase", &["scenes"]), ("Grant", &["papers"]), ("Faith", &["schools"]), ("Grace", &["notes"]),
    ("Gene", &["tests", "banks"]), ("Coral", &["reefs", "beads"]), ("Jasmine", &["teas", "flowers"]),
    ("Poppy", &["seeds", "fields"]), ("Forest", &["fires", "paths"]), ("Carol", &["singers"]),
    ("Clay", &["pots", "fields"]), ("Jade", &["rings", "beads"]),
];
/// Towns and countries that are also first names.
#[rustfmt::skip]
const TOWNS: Words = &[
    "Paris", "Florence", "Sydney", "Victoria", "Charlotte", "Georgia", "Virginia", "Carolina", "Phoenix", "Austin",
    "Madison", "Jordan", "Chelsea", "Orlando", "Milan", "Sofia", "Adelaide", "Kent", "Devon", "Lincoln", "Jackson",
    "Chester", "Savannah", "Brooklyn",
];
/// Persons that are also firms.
#[rustfmt::skip]
const FIRMS: Words = &[
    "Morgan", "Ford", "Stanley", "Baker", "Porter", "Harper", "Spencer", "Mason", "Parker", "Taylor", "Chandler",
    "Fisher", "Sawyer", "Carter",
];
/// Unambiguous names.
#[rustfmt::skip]
const PERSONS: Words = &[
    "Anna", "Peter", "Maria", "Thomas", "Helen", "Martin", "Julia", "Oscar", "Emma", "Paul", "Laura", "Simon", "Nora",
    "Felix", "Clara", "Hugo", "Eva", "Leo", "Ines", "Karim",
];
#[rustfmt::skip]
const PLACES: Words = &[
    "Lisbon", "Oslo", "Lyon", "Vienna", "Prague", "Dublin", "Kyoto", "Quito", "Nairobi", "Lima", "Porto", "Geneva",
    "Turin", "Cairo", "Bergen", "Zurich",
];
#[rustfmt::skip]
const SURNAMES: Words = &[
    "Keller", "Roosevelt", "Hilton", "Novak", "Jensen", "Rossi", "Silva", "Costa", "Meyer", "Larsen", "Kovacs", "Dubois",
    "Walsh", "Murphy", "Tanaka", "Okafor", "Haddad", "Petrov", "Garcia", "Lindgren",
];
/// The beginnings and ends of rare surnames, most of which occur only once.
#[rustfmt::skip]
const BEGINNINGS: Words = &[
    "Bar", "Ben", "Bol", "Bran", "Cal", "Car", "Dal", "Den", "Dor", "El", "Fal", "Fen", "Gal", "Gor", "Hal", "Har", "Hol",
    "Jan", "Kar", "Kel", "Lam", "Lan", "Mal", "Mar", "Mel", "Nor", "Ol", "Pel", "Ran", "Ros", "Sal", "Sten", "Tal", "Tor",
    "Ul", "Val", "Van", "Wal", "Wes", "Zel",
];
#[rustfmt::skip]
const ENDS: Words = &[
    "bach", "beck", "berg", "bert", "by", "dahl", "den", "der", "din", "dor", "feld", "gard", "ger", "holm", "kin", "lund",
    "mond", "nack", "nik", "quist", "ran", "rup", "sby", "scott", "stad", "thal", "vik", "wick", "witz", "zano",
];
const FIRM_KINDS: Words =
    &["Motors", "Bank", "Airlines", "Foods", "Press", "Steel", "Insurance", "Records", "Shipping", "Energy"];
#[rustfmt::skip]
const TOWN_THINGS: Words =
    &["streets", "hotels", "trains", "museums", "taxis", "parks", "bridges", "buses", "evenings", "markets"];

// The predicates. Predicates of different kinds begin with different words.

#[rustfmt::skip]
const PERSON_DOES: Words = &[
    "walked home", "walked to the station", "smiled at the children", "met PER in LOC", "moved to LOC", "works for ORG",
    "wrote to PER", "sang all evening", "was a great president", "was late again", "forgot the keys", "flew to LOC with PER",
    "married PER last spring", "left ORG after ten years", "laughed at the joke", "grew up in LOC", "told PER the truth",
    "played the piano", "thanked PER", "ran for mayor", "painted the kitchen",
];
#[rustfmt::skip]
const THINGS_DO: Words = &[
    "are on sale", "are hard to find", "fell on the carpet", "cost more this year", "were sold at the market in LOC",
    "came from LOC", "pleased PER", "turned up in LOC", "always remind me of PER", "filled the front page",
];
#[rustfmt::skip]
const TOWN_THINGS_DO: Words = &[
    "were empty", "are crowded", "reopened last week", "attract visitors from LOC", "impressed PER", "cost a fortune",
    "are closed until Monday", "belong to ORG", "are famous for their age",
];
#[rustfmt::skip]
const TOWN_DOES: Words = &[
    "lies on a river", "has two airports", "became the capital", "hosted the games", "elected a new mayor", "borders LOC",
    "welcomes visitors from LOC", "honoured PER with a statue",
];
#[rustfmt::skip]
const FIRM_DOES: Words = &[
    "hired NUMBER workers", "opened an office in LOC", "named PER as its chairman", "lost money again", "sued ORG",
    "bought ORG for NUMBER million", "closed its plant near LOC", "cut NUMBER jobs", "raised its prices", "merged with ORG",
];
#[rustfmt::skip]
const UNNAMED: Words = &["The doctor", "She", "He", "My uncle", "The whole family", "Our neighbour", "A young actor", "Nobody"];
const OPENERS: Words = &["News :", "Headline :", "Page 3 :", "From our reporter :", "Quote of the day :"];
const NUMBERS: Words = &["20", "40", "75", "120", "300", "450", "900", "2,000"];

/// The types, in the order of their tags.
const TYPES: [&str; 3] = ["LOC", "ORG", "PER"];

/// Generates `train` training and `test` test sentences, all distinct, with the types LOC, ORG and PER.
///
/// They are a function of `seed`; a smaller training set is the beginning of a larger one.
pub fn names(train: usize, test: usize, seed: u64) -> TaggedCorpus {
    let mut seen = HashSet::new();
    let mut split = |len, name: &str| {
        let mut rng = stream(seed, &format!("names/{name}"));
        let mut tagged = TaggedSentences::default();
        while tagged.len() < len {
            let sentence = Sentence::new(&mut rng);
            if seen.insert(sentence.words.clone()) {
                tagged.words.push(sentence.words);
                tagged.tags.push(sentence.tags);
            }
        }
        tagged
    };
    let train = split(train, "train");
    TaggedCorpus { train, test: Some(split(test, "test")), tags: tag_names(TYPES), ..TaggedCorpus::default() }
}

fn one(of: Words, rng: &mut ChaCha8Rng) -> &'static str {
    of[rng.random_range(0..of.len())]
}

#[derive(Default)]
struct Sentence {
    words: Vec<String>,
    tags: Vec<u32>,
}

impl Sentence {
    fn new(rng: &mut ChaCha8Rng) -> Self {
        let mut sentence = Self::default();
        if rng.random_bool(0.25) {
            sentence.say(one(OPENERS, rng), rng);
        }
        let predicates = match rng.random_range(0..100) {
            0..35 => {
                let (name, things) = THINGS[rng.random_range(0..THINGS.len())];
                if rng.random_bool(0.5) {
                    sentence.say_person(name, rng)
                } else {
                    sentence.say(name, rng);
                    sentence.say(one(things, rng), rng);
                    THINGS_DO
                }
            }
            35..65 => {
                let town = one(TOWNS, rng);
                match rng.random_range(0..100) {
                    0..40 => sentence.say_person(town, rng),
                    40..60 => sentence.say_town(town),
                    60..75 => {
                        sentence.say_town(town);
                        sentence.say(one(TOWN_THINGS, rng), rng);
                        TOWN_THINGS_DO
                    }
                    _ => sentence.say_firm(town, true, rng),
                }
            }
            65..80 => {
                let (name, kind) = (one(FIRMS, rng), rng.random_bool(0.4));
                if rng.random_bool(0.5) {
                    sentence.say_person(name, rng)
                } else {
                    sentence.say_firm(name, kind, rng)
                }
            }
            80..88 => sentence.say_person(one(PERSONS, rng), rng),
            88..93 => sentence.say_town(one(PLACES, rng)),
            _ => {
                sentence.say(one(UNNAMED, rng), rng);
                PERSON_DOES
            }
        };
        sentence.say(one(predicates, rng), rng);
        sentence.say(".", rng);
        sentence
    }

    /// Adds the words of `text`, and replaces each type by a name.
    fn say(&mut self, text: &str, rng: &mut ChaCha8Rng) {
        for word in text.split(' ') {
            match word {
                "PER" => {
                    let name = match rng.random_range(0..5) {
                        0..2 => THINGS[rng.random_range(0..THINGS.len())].0,
                        2 => one(TOWNS, rng),
                        _ => one(PERSONS, rng),
                    };
                    self.say_person(name, rng);
                }
                "LOC" => _ = self.say_town(one(if rng.random_bool(0.5) { TOWNS } else { PLACES }, rng)),
                "ORG" => {
                    let town = rng.random_bool(0.3);
                    let kind = town || rng.random_bool(0.5);
                    self.say_firm(one(if town { TOWNS } else { FIRMS }, rng), kind, rng);
                }
                "NUMBER" => self.push(one(NUMBERS, rng), 0),
                _ => self.push(word, 0),
            }
        }
    }

    fn say_person(&mut self, name: &str, rng: &mut ChaCha8Rng) -> Words {
        self.push(name, 5);
        if rng.random_bool(0.5) {
            match rng.random_bool(0.3) {
                true => self.push(&[one(BEGINNINGS, rng), one(ENDS, rng)].concat(), 6),
                false => self.push(one(SURNAMES, rng), 6),
            }
        }
        PERSON_DOES
    }

    fn say_town(&mut self, name: &str) -> Words {
        self.push(name, 1);
        TOWN_DOES
    }

    fn say_firm(&mut self, name: &str, kind: bool, rng: &mut ChaCha8Rng) -> Words {
        self.push(name, 3);
        if kind {
            self.push(one(FIRM_KINDS, rng), 4);
        }
        FIRM_DOES
    }

    fn push(&mut self, word: &str, tag: u32) {
        self.words.push(word.into());
        self.tags.push(tag);
    }
}

#[cfg(test)]
mod tests {
    use super::super::entity_scores::entity_scores;
    use super::*;

    #[test]
    fn the_second_word_resolves_the_first() {
        let first =
            |predicates: Words| predicates.iter().filter_map(|words| words.split(' ').next()).collect();
        let surnames =
            BEGINNINGS.iter().flat_map(|beginning| ENDS.iter().map(move |end| format!("{beginning}{end}")));
        let surnames: Vec<String> = surnames.collect();
        let person =
            [first(PERSON_DOES), SURNAMES.to_vec(), surnames.iter().map(String::as_str).collect()].concat();
        let thing = THINGS.iter().flat_map(|(_, things)| *things).copied().collect();
        let place = [first(TOWN_DOES), TOWN_THINGS.to_vec()].concat();
        let firm = [first(FIRM_DOES), FIRM_KINDS.to_vec()].concat();
        let kinds: [HashSet<&str>; 4] =
            [person, thing, place, firm].map(|words: Vec<&str>| words.into_iter().collect());
        for (at, kind) in kinds.iter().enumerate() {
            assert!(kinds[..at].iter().all(|other| other.is_disjoint(kind)), "{kind:?}");
        }
    }

    /// Every tag is correct, but the tag of an ambiguous first word is guessed from the kind of word.
    #[test]
    fn a_tagger_that_reads_from_left_to_right_has_to_guess() {
        let corpus = names(20_000, 0, 1);
        let kind = |word: &str| {
            let thing = THINGS.iter().any(|(name, _)| *name == word);
            [thing, TOWNS.contains(&word), FIRMS.contains(&word)].into_iter().position(|is| is)
        };
        let guessed = |words: &[String], gold: &[u32], guesses: [u32; 3]| {
            let mut tags = gold.to_vec();
            let at = words.iter().position(|word| word == ":").map_or(0, |at| at + 1);
            if let Some(guess) = kind(&words[at]).map(|kind| guesses[kind]).filter(|&guess| guess != gold[at])
            {
                tags[at] = guess;
                tags[at + 1..].iter_mut().take_while(|tag| [2, 4, 6].contains(*tag)).for_each(|tag| *tag = 0);
            }
            tags
        };
        let mut best: f64 = 0.0;
        for thing in [0, 5] {
            for town in [0, 1, 3, 5] {
                for firm in [0, 3, 5] {
                    let sentences = corpus.train.words.iter().zip(&corpus.train.tags);
                    let tags: Vec<_> =
                        sentences.map(|(words, gold)| guessed(words, gold, [thing, town, firm])).collect();
                    let scores = entity_scores(&corpus.train.tags, &tags, &corpus.tags).unwrap();
                    best = best.max(scores.overall.f1());
                }
            }
        }
        assert!((0.77..0.79).contains(&best), "{best}");
    }
}
