//! Sentences for the binaries: their words, their parts, and the facts that a run records.

use super::options::{Given, TrainOptions, WORD_VECTORS, positive};
use super::parts::Parts;
use super::recipe::{About, CLASSES, Facts, KEPT_VECTORS, of_another_version, split_fingerprints};
use super::{TestSet, complain, count};
use crate::data::text::Layout;
use crate::data::{Level, NGrams, Vocabulary, WordVectors, quoted};
use crate::train::{Run, Sentences, checksum};
use anyhow::{Context, Result, ensure};
use candle_nn::VarMap;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::cmp::Reverse;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

/// Options that choose the known words and their initial vectors.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
pub struct WordOptions {
    /// Convert words to lower case
    #[arg(long)]
    pub lower_case: bool,
    /// Treat words that occur less than N times in the training set as unknown
    #[arg(long, value_name = "N", value_parser = positive, default_value_t = 1)]
    pub min_count: usize,
    /// Start from the word vectors in FILE: word2vec, GloVe or fastText, gzipped or not
    #[arg(long, value_name = "FILE")]
    pub vectors: Option<PathBuf>,
}

/// Sentences with labels of type `L`.
pub struct TextData<L> {
    pub(super) options: WordOptions,
    /// N-grams that the model uses besides words.
    pub(super) ngrams: NGrams,
    /// The words of each sentence, across all parts.
    pub(super) words: Vec<Vec<String>>,
    /// The labels, across all parts.
    pub(super) labels: L,
    pub(super) parts: Parts,
    /// Pretrained vectors of the words that the file has.
    pub(super) vectors: Option<WordVectors>,
    /// The ids of words and n-grams of each sentence.
    pub(super) sentences: Sentences,
    pub(super) about: About<TextFacts>,
}

/// A data set as read from its files.
pub(super) struct Labelled<L> {
    pub(super) words: Vec<Vec<String>>,
    pub(super) labels: L,
    pub(super) parts: Parts,
    pub(super) classes: Vec<String>,
    /// A hash of the content of the training, validation and test split.
    pub(super) fingerprints: [Option<u64>; 3],
    /// The positions of a table's columns.
    pub(super) layout: Option<Layout>,
}

impl<L> TextData<L> {
    /// Prepares `data` for training, or, given a run's facts, for the test of that run.
    pub(super) fn new(
        options: WordOptions,
        ngrams: NGrams,
        data: Labelled<L>,
        train: &TrainOptions,
        run: Option<(TextFacts, &TestSet)>,
    ) -> Result<Self> {
        let Labelled { words, labels, parts, classes, fingerprints, layout } = data;
        let (facts, test) = run.unzip();
        let (name, _) = TestSet::resolve(test, train);
        let mut vectors = None;
        let facts = match facts {
            Some(facts) => {
                facts.check_classes(&classes).with_context(|| format!("data set {name}"))?;
                facts
            }
            None => {
                vectors = options.read_vectors(&words)?;
                options.facts(&words, &parts, vectors.as_ref(), (classes, layout), &train.given)?
            }
        };
        let sentences = encode(&facts.vocabulary, ngrams, &words)?;
        let fingerprints = split_fingerprints(fingerprints);
        let about = About { name: name.to_string(), sizes: parts.sizes(), fingerprints, facts };
        Ok(Self { options, ngrams, words, labels, parts, vectors, sentences, about })
    }

    /// Notes how many words of the test part are unknown, if most are.
    pub(super) fn note_unknown_words(&self) {
        let vocabulary = &self.about.facts.vocabulary;
        let tested: Vec<&String> = self.parts.test.iter().flat_map(|&i| &self.words[i as usize]).collect();
        let unknown = tested.iter().filter(|word| vocabulary.id(word) == Vocabulary::UNKNOWN).count();
        if 2 * unknown > tested.len() {
            note_unknown_count(unknown as u64, tested.len() as u64, "words", &[]);
        }
    }

    /// Number of ids in the `count` longest training sentences.
    pub(super) fn longest(&self, count: usize) -> u64 {
        let length = |&sentence: &u32| self.sentences.sentence(sentence as usize).len() as u64;
        let mut lengths: Vec<u64> = self.parts.training.iter().map(length).collect();
        lengths.sort_unstable_by_key(|&length| Reverse(length));
        lengths.iter().take(count).sum()
    }

    /// Divides the sentences again.
    ///
    /// # Errors
    /// Fails if the new training part leaves no word in the vocabulary.
    pub(super) fn divide(&mut self, parts: Parts, given: &Given) -> Result<()> {
        let About { sizes, facts, .. } = &mut self.about;
        let kept = (std::mem::take(&mut facts.classes), facts.layout.take());
        *facts = self.options.facts(&self.words, &parts, self.vectors.as_ref(), kept, given)?;
        *sizes = parts.sizes();
        self.sentences = encode(&facts.vocabulary, self.ngrams, &self.words)?;
        self.parts = parts;
        Ok(())
    }

    /// Sets the initial vectors of the words in the file of `--vectors`, and returns a line to show.
    pub(super) fn set_vectors(&self, vars: &VarMap) -> Result<Option<String>> {
        let (Some(vectors), Some(path)) = (&self.vectors, &self.options.vectors) else { return Ok(None) };
        let vocabulary = &self.about.facts.vocabulary;
        fill_tables(vars, |name| name.ends_with(WORD_VECTORS), vectors, vocabulary, path)?;
        let words = vocabulary.words().count();
        let found = vocabulary.words().filter(|word| vectors.get(word).is_some()).count();
        let share = 100.0 * found as f64 / words.max(1) as f64;
        note_few_vectors(path, found, words, self.options.lower_case);
        let (words, have) = (count(words, "word"), if found == 1 { "has" } else { "have" });
        Ok(Some(format!("{found} of {words} ({share:.1}%) {have} a vector in {}", path.display())))
    }
}

/// The ids of the words and n-grams of each sentence.
fn encode(vocabulary: &Vocabulary, ngrams: NGrams, words: &[Vec<String>]) -> Result<Sentences> {
    ngrams.size(vocabulary.len()).context("--buckets")?;
    Ok(Sentences::encode(vocabulary, ngrams, words))
}

/// Keeps the pretrained vectors of the data's words in the folder of `run`.
pub(super) fn keep_vectors(vectors: Option<&WordVectors>, run: &Run) -> Result<()> {
    // A file without vectors would not be readable.
    match vectors.filter(|vectors| !vectors.is_empty()) {
        Some(vectors) => run.write(KEPT_VECTORS, &vectors.to_text()),
        None => Ok(()),
    }
}

impl WordOptions {
    /// The vectors of `words` in the file of `--vectors`.
    fn read_vectors(&self, words: &[Vec<String>]) -> Result<Option<WordVectors>> {
        let Some(path) = &self.vectors else { return Ok(None) };
        let words = words.iter().flatten();
        if !self.lower_case {
            return WordVectors::read(path, &words.map(String::as_str).collect()).map(Some);
        }
        let words: HashSet<String> = words.map(|word| word.to_lowercase()).collect();
        WordVectors::read(path, &words.iter().map(String::as_str).collect()).map(Some)
    }

    /// The classes, and the vocabulary: words of the training part, and words with a pretrained vector.
    fn facts(
        &self,
        words: &[Vec<String>],
        parts: &Parts,
        vectors: Option<&WordVectors>,
        (classes, layout): (Vec<String>, Option<Layout>),
        given: &Given,
    ) -> Result<TextFacts> {
        let learn = |min_count| {
            let training = parts.training.iter().map(|&i| &words[i as usize]);
            Vocabulary::new(training, self.lower_case, min_count)
        };
        let mut vocabulary = learn(self.min_count);
        // Before a fold is selected, nothing is in the training part.
        if !parts.training.is_empty() {
            let is_empty = |vocabulary: &Vocabulary| vocabulary.words().next().is_none();
            if is_empty(&vocabulary) && keeps_rare(self.min_count, given) {
                vocabulary = learn(1);
            }
            check_vocabulary(is_empty(&vocabulary), self.min_count)?;
        }
        if let Some(vectors) = vectors {
            // This way the model knows test words that are missing from the training part.
            vocabulary.extend(vectors.words());
        }
        Ok(TextFacts { vocabulary, classes, vector_size: vectors.map(WordVectors::size), layout })
    }
}

/// Copies the tokens' `vectors` to the rows of the tables whose names `is_table` accepts.
///
/// `path` is the file that they were read from.
pub(super) fn fill_tables(
    vars: &VarMap,
    is_table: impl Fn(&str) -> bool,
    vectors: &WordVectors,
    vocabulary: &Vocabulary,
    path: &Path,
) -> Result<()> {
    let vars = vars.data().lock().unwrap_or_else(PoisonError::into_inner);
    for (_, table) in vars.iter().filter(|(name, _)| is_table(name)) {
        let filled = vectors.fill(vocabulary, &table.as_detached_tensor());
        table.set(&filled.with_context(|| format!("{}, --embedding", path.display()))?)?;
    }
    Ok(())
}

/// Notes that the file of vectors may not fit if less than one percent of the words have vectors in it.
pub(super) fn note_few_vectors(path: &Path, found: usize, words: usize, lower_case: bool) {
    if 100 * found < words {
        let cased = if lower_case { "" } else { "for lower-cased text (then use --lower-case), or " };
        let path = path.display();
        complain(&format!(
            "note: {path} has vectors of {found} of {}: is it {cased}for another language?",
            count(words, "word")
        ));
    }
}

/// Counts the unknown tokens of all inputs of a command, for one note at its end.
#[derive(Default)]
pub(super) struct UnknownCount {
    pub(super) unknown: u64,
    pub(super) all: u64,
    inputs: usize,
    empty: usize,
    /// The first unknown words, each once.
    words: Vec<String>,
    /// The beginnings of inputs of which no token is known, and the number of further ones.
    whole: (Vec<String>, usize),
}

impl UnknownCount {
    /// The number of words or inputs that a note names.
    const NAMED: usize = 3;

    /// Adds an input of `all` tokens.
    pub(super) fn add(&mut self, input: &str, unknown: u64, all: u64) {
        (self.unknown, self.all) = (self.unknown + unknown, self.all + all);
        (self.inputs, self.empty) = (self.inputs + 1, self.empty + usize::from(all == 0));
        if unknown == all && all > 0 {
            match self.whole.0.len() {
                Self::NAMED => self.whole.1 += 1,
                _ => self.whole.0.push(quoted(input)),
            }
        }
    }

    /// Adds an input of these words.
    pub(super) fn add_words(&mut self, input: &str, words: &[String], vocabulary: &Vocabulary) {
        let is_unknown = |word: &&String| vocabulary.id(word) == Vocabulary::UNKNOWN;
        let unknown: Vec<&String> = words.iter().filter(is_unknown).collect();
        self.add(input, unknown.len() as u64, words.len() as u64);
        for word in unknown {
            if self.words.len() < Self::NAMED && !self.words.contains(word) {
                self.words.push(word.clone());
            }
        }
    }

    /// Notes unknown tokens, inputs without a known token, and inputs without tokens.
    ///
    /// `noun` names the tokens.
    pub(super) fn note(&self, noun: &str) {
        let &Self { unknown, all, inputs, empty, ref words, whole: (ref named, more) } = self;
        if all > 0 || inputs == 1 {
            note_unknown_count(unknown, all, noun, words);
        }
        if !named.is_empty() && inputs > 1 {
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            complain(&format!("note: all {noun} are unknown in {}{more}", named.join(", ")));
        }
        if empty > 0 && inputs > 1 {
            let (have, their) =
                if empty == 1 { ("has", "its answer depends") } else { ("have", "their answers depend") };
            complain(&format!("note: {empty} of {inputs} inputs {have} no {noun}, so {their} on nothing"));
        }
    }
}

/// Notes how many of `all` tokens, called `noun`, are unknown, if any are. The first of them may be `named`.
pub(super) fn note_unknown_count(unknown: u64, all: u64, noun: &str, named: &[String]) {
    if all == 0 {
        complain(&format!("note: there are no {noun}, so the answer depends on nothing"));
    } else if unknown > 0 {
        let are = if unknown == 1 { "is" } else { "are" };
        let names = match named {
            [] => String::new(),
            _ if named.len() < UnknownCount::NAMED => format!(": {}", named.join(", ")),
            _ => format!(", such as {}", named.join(", ")),
        };
        complain(&format!("note: {unknown} of {all} {noun} {are} unknown to this model{names}"));
    }
}

/// The name of the tokens, in the plural.
pub(super) fn noun(level: Level) -> &'static str {
    match level {
        Level::Char => "characters",
        Level::Word => "words",
    }
}

/// Returns whether to keep all tokens, because none occurs `min_count` times.
///
/// This is so only if the user did not choose the number. A note says so.
pub(super) fn keeps_rare(min_count: usize, given: &Given) -> bool {
    let keeps = min_count > 1 && !given.contains("min_count");
    if keeps {
        complain(&format!(
            "note: nothing in the training part occurs {min_count} times, so the model knows all of it, however rare"
        ));
    }
    keeps
}

/// Checks that a vocabulary has tokens besides the special ones.
pub(super) fn check_vocabulary(is_empty: bool, min_count: usize) -> Result<()> {
    ensure!(!is_empty || min_count > 1, "the training part contains no words");
    ensure!(!is_empty, "--min-count {min_count}: nothing in the training part occurs so often: choose less");
    Ok(())
}

/// The facts that a model of sentences depends on.
pub struct TextFacts {
    /// The known words.
    pub vocabulary: Vocabulary,
    /// Names of the classes or tags.
    pub classes: Vec<String>,
    /// Size of the pretrained vectors; `None` if the model starts without them.
    pub vector_size: Option<usize>,
    /// The positions of the training table's columns; `None` for other files.
    pub layout: Option<Layout>,
}

impl TextFacts {
    /// Checks that a model for these classes can be tested on data with the classes `found`.
    fn check_classes(&self, found: &[String]) -> Result<()> {
        let expected = &self.classes;
        ensure!(
            found == expected,
            "found the classes {}, expected {}",
            found.join(", "),
            expected.join(", ")
        );
        Ok(())
    }
}

impl Facts for TextFacts {
    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn record(&self) -> Map<String, Value> {
        let mut record = self.vocabulary.record();
        record.extend(self.vector_size.map(|size| ("vector_size".to_string(), json!(size))));
        record.extend(self.layout.as_ref().map(|layout| (COLUMNS.to_string(), json!(layout))));
        record
    }

    fn write(&self, run: &Run) -> Result<()> {
        self.vocabulary.write(run)
    }

    fn read(run: &Run, config: &Value) -> Result<Self> {
        let classes = serde_json::from_value(config[CLASSES].clone())
            .map_err(|_| of_another_version(run, "classes"))?;
        let vector_size = config["vector_size"].as_u64().map(|size| size as usize);
        let layout = serde_json::from_value(config[COLUMNS].clone()).ok();
        Ok(Self { vocabulary: Vocabulary::read(run, config)?, classes, vector_size, layout })
    }

    fn describe(&self) -> String {
        format!(", {} words, {}", self.vocabulary.len(), count(self.classes.len(), "class"))
    }
}

/// Name of the columns of the training table in `config.json`.
pub(super) const COLUMNS: &str = "columns";

/// File of the run folder that holds the vocabulary.
const VOCABULARY: &str = "vocabulary.txt";

/// Name of the checksum of this file in `config.json`.
const FINGERPRINT: &str = "vocabulary_fingerprint";

impl Facts for Vocabulary {
    fn record(&self) -> Map<String, Value> {
        let (len, fingerprint) = (json!(self.len()), json!(checksum(self.to_text().as_bytes())));
        Map::from_iter([("vocabulary".to_string(), len), (FINGERPRINT.to_string(), fingerprint)])
    }

    fn write(&self, run: &Run) -> Result<()> {
        let (path, text) = (run.dir().join(VOCABULARY), self.to_text());
        if path.exists() && std::fs::read(&path).ok().as_deref() != Some(text.as_bytes()) {
            complain(&format!("note: {}: it was damaged; the data restores it", path.display()));
        }
        run.write(VOCABULARY, &text)
    }

    fn read(run: &Run, config: &Value) -> Result<Self> {
        let path = run.dir().join(VOCABULARY);
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("{}: cannot read it", path.display()))?;
        ensure!(
            config[FINGERPRINT] == checksum(text.as_bytes()),
            "{}: it has changed since the run wrote it",
            path.display()
        );
        Self::from_text(&text).with_context(|| path.display().to_string())
    }

    fn describe(&self) -> String {
        format!(", {} different tokens", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_features_than_ids_are_an_error() {
        let vocabulary = Vocabulary::new([["a".to_string()]], false, 1);
        let ngrams = NGrams { words: 2, characters: (0, 0), buckets: u32::MAX as usize };
        let error = encode(&vocabulary, ngrams, &[vec!["a".to_string()]]).err().unwrap();
        let error = format!("{error:#}");
        assert!(error.starts_with("--buckets: ") && error.contains("4294967295 buckets"), "{error}");
    }
}
