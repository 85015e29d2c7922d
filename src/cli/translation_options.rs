//! Translation: its options, and the facts that a translator depends on.

use super::options::{Given, non_negative, positive};
use super::recipe::Facts;
use super::text::{check_vocabulary, keeps_rare};
use super::{UsageError, count, data_error, show_notes, test_error};
use crate::data::translation::{self, BleuTokenizer};
use crate::data::{Language, PairCorpus, Pairs, Segmentation, TextPairs, WordVectors};
use crate::train::{Decoding, Run, TeacherForcing, checksum};
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// Files of the run folder that hold the languages.
const LANGUAGES: [&str; 2] = ["source.json", "target.json"];

/// Options that choose the languages, their tokens, and how to translate.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
pub struct TranslationOptions {
    /// Translate from the files that end with LANG (parallel), or the column of this name or language (tsv-pairs)
    #[arg(long, value_name = "LANG")]
    pub source_lang: Option<String>,
    /// Translate into the language of the files that end with LANG, or of the column with this name
    #[arg(long, value_name = "LANG")]
    pub target_lang: Option<String>,
    /// Kind of source tokens [default: char for dates, word for others]
    #[arg(long, value_name = "NAME", value_enum)]
    pub source_level: Option<TokenLevel>,
    /// Kind of target tokens [default: char for dates, word for others]
    #[arg(long, value_name = "NAME", value_enum)]
    pub target_level: Option<TokenLevel>,
    /// Cut words into parts with N merges of byte-pair encoding per language
    #[arg(long, value_name = "N", value_parser = positive, conflicts_with_all = ["source_level", "target_level"])]
    pub bpe: Option<usize>,
    /// Convert both sides to lower case
    #[arg(long)]
    pub lower_case: bool,
    /// Treat tokens that occur less than N times on their side of the training set as unknown
    #[arg(long, value_name = "N", value_parser = positive, default_value_t = 1)]
    pub min_count: usize,
    /// Start the source side from the word vectors in FILE: word2vec, GloVe or fastText, gzipped or not
    #[arg(long, value_name = "FILE", conflicts_with = "bpe")]
    pub vectors: Option<PathBuf>,
    /// Skip training pairs with more than N tokens on a side; end translations after N tokens
    #[arg(long, value_name = "N", value_parser = positive, default_value_t = 100)]
    pub max_length: usize,
    /// Number of hypotheses that the beam search follows in tests and `predict`; 1 is greedy search
    #[arg(long, value_name = "N", value_parser = beam_size, default_value_t = 1)]
    pub beam: usize,
    /// Length normalisation of the beam search (Wu et al. 2016): 0 is none, larger favours longer translations
    #[arg(long, value_name = "X", value_parser = non_negative, default_value_t = 0.6)]
    pub length_penalty: f64,
    /// Score that selects the best epoch [default: exact-match for dates, bleu for others]
    #[arg(long, value_name = "NAME", value_enum)]
    pub select_by: Option<ScoreName>,
    /// Words that BLEU counts
    #[arg(long, value_name = "NAME", value_enum, default_value = "none")]
    pub bleu_words: BleuTokenizer,
    /// Probability that the decoder reads the true token rather than its own prediction in training
    #[arg(long, value_name = "X", value_parser = |text: &str| super::in_range(text, 0.0..=1.0, "a number from 0 to 1"), default_value_t = 1.0)]
    pub teacher_forcing: f64,
    /// Lower that probability from 1 gradually, over the first N steps
    #[arg(long, value_name = "N", value_parser = positive, requires = "teacher_forcing")]
    pub forcing_steps: Option<usize>,
    /// Share of the target probability that is spread over all tokens
    #[arg(long, value_name = "X", value_parser = super::fraction::<f64>, default_value_t = 0.0)]
    pub label_smoothing: f64,
}

/// The value of `--source-level` and `--target-level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenLevel {
    /// Characters
    Char,
    /// Words separated by white space
    Word,
}

/// The value of `--select-by`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScoreName {
    /// Fraction of greedy translations that are equal to the true one
    ExactMatch,
    /// BLEU of greedy translations
    Bleu,
    /// Perplexity of the true translations, which needs no search
    Perplexity,
}

/// Parses the size of a beam.
///
/// Each step ranks about the square of it, so a mistyped size would exhaust the memory.
pub(super) fn beam_size(text: &str) -> Result<usize, String> {
    super::in_range(text, 1..=1000, "a whole number, 1 to 1000")
}

/// Options of commands that translate. An option that is not given is as in training.
#[derive(Args)]
pub(super) struct SearchOptions {
    /// Number of hypotheses that the beam search follows; 1 is greedy search [default: as in training]
    #[arg(long, value_name = "N", value_parser = beam_size)]
    pub(super) beam: Option<usize>,
    /// End translations after N tokens [default: as in training]
    #[arg(long, value_name = "N", value_parser = positive)]
    max_length: Option<usize>,
    /// Length normalisation of the beam search [default: as in training]
    #[arg(long, value_name = "X", value_parser = non_negative)]
    length_penalty: Option<f64>,
}

/// Checks that a length penalty given by the user has an effect: greedy search ignores it.
fn check_length_penalty(is_given: bool, beam: usize) -> Result<()> {
    ensure!(!is_given || beam > 1, UsageError("--length-penalty: has no effect with --beam 1".to_string()));
    Ok(())
}

impl SearchOptions {
    /// How to search. Options that are not given are as in training.
    ///
    /// # Errors
    /// Fails if the user gave a length penalty that has no effect.
    pub(super) fn decoding(&self, trained: &TranslationOptions) -> Result<Decoding> {
        let beam = self.beam.unwrap_or(trained.beam);
        check_length_penalty(self.length_penalty.is_some(), beam)?;
        Ok(Decoding {
            beam,
            max_length: self.max_length.unwrap_or(trained.max_length),
            length_penalty: self.length_penalty.unwrap_or(trained.length_penalty),
            n_best: 1,
        })
    }
}

impl TranslationOptions {
    /// How to search in a test at the end of training.
    pub(super) fn decoding(&self) -> Decoding {
        let &Self { beam, max_length, length_penalty, .. } = self;
        Decoding { beam, max_length, length_penalty, n_best: 1 }
    }

    /// Checks the options that the user gave for training.
    ///
    /// # Errors
    /// Fails if one of them has no effect.
    pub(super) fn check(&self, given: &Given) -> Result<()> {
        ensure!(
            !given.contains("forcing_steps") || self.teacher_forcing < 1.0,
            UsageError("--forcing-steps: has no effect with --teacher-forcing 1".to_string())
        );
        check_length_penalty(given.contains("length_penalty"), self.beam)
    }

    /// The score that selects the best epoch on the data set `name`.
    pub(super) fn score(&self, name: &str) -> ScoreName {
        let default = if name == "dates" { ScoreName::ExactMatch } else { ScoreName::Bleu };
        self.select_by.unwrap_or(default)
    }

    /// Chooses the score that selects the best epoch if the user did not, given the validation references.
    ///
    /// # Errors
    /// Fails if the user chose BLEU, and no reference is long enough for it.
    pub(super) fn choose_score(&mut self, name: &str, references: &[String]) -> Result<()> {
        if self.score(name) == ScoreName::Bleu && !self.bleu_words.has_four_words(references) {
            let why = "no validation target has four words, as BLEU demands";
            ensure!(self.select_by.is_none(), "--select-by bleu: {why}: choose exact-match");
            show_notes(&[format!("{why}, so the exact match selects the best epoch")]);
            self.select_by = Some(ScoreName::ExactMatch);
        }
        Ok(())
    }

    fn segmentation(&self, level: Option<TokenLevel>, name: &str) -> Segmentation {
        match (self.bpe, level) {
            (Some(merges), _) => Segmentation::Subwords(merges),
            (None, Some(TokenLevel::Char)) => Segmentation::Characters,
            (None, None) if name == "dates" => Segmentation::Characters,
            (None, _) => Segmentation::Words,
        }
    }

    pub(super) fn forcing(&self) -> TeacherForcing {
        match self.forcing_steps {
            None => TeacherForcing::Constant(self.teacher_forcing),
            Some(steps) => TeacherForcing::Linear { end: self.teacher_forcing, steps: steps as u64 },
        }
    }

    /// Reads the pairs of the data set `name`, or with `test_only` its test split.
    pub(super) fn read(&self, name: &str, dir: Option<&Path>, test_only: bool) -> Result<PairCorpus> {
        let languages = match (&self.source_lang, &self.target_lang) {
            // The training data does not determine the languages of other data.
            _ if test_only && name == "dates" => None,
            (Some(source), Some(target)) => Some([source.as_str(), target.as_str()]),
            (None, None) => None,
            (Some(source), None) => bail!("--source-lang {source}: needs --target-lang as well"),
            (None, Some(target)) => bail!("--target-lang {target}: needs --source-lang as well"),
        };
        let load = if test_only { translation::load_test } else { translation::load };
        let corpus = load(name, dir, languages).map_err(if test_only { test_error } else { data_error })?;
        show_notes(&corpus.notes);
        Ok(corpus)
    }

    /// The languages of the training pairs, and the vectors of the source words of `all` pairs.
    pub(super) fn languages(
        &self,
        name: &str,
        training: &TextPairs,
        all: &TextPairs,
        given: &Given,
    ) -> Result<(TranslationFacts, Option<WordVectors>)> {
        let learn = |min_count| {
            let sides = [(&training.sources, self.source_level), (&training.targets, self.target_level)];
            sides.map(|(texts, level)| {
                let texts = texts.iter().map(String::as_str);
                Language::learn(texts, self.segmentation(level, name), self.lower_case, min_count)
            })
        };
        let lack_tokens = |languages: &[Language; 2]| languages.iter().any(Language::is_empty);
        let mut languages = learn(self.min_count);
        if lack_tokens(&languages) && keeps_rare(self.min_count, given) {
            languages = learn(1);
        }
        check_vocabulary(lack_tokens(&languages), self.min_count)?;
        let [mut source, target] = languages;
        let mut vectors = None;
        if let Some(path) = &self.vectors {
            ensure!(
                source.segmentation() == Segmentation::Words,
                "--vectors: holds vectors of words, but the source tokens are not words: choose --source-level word"
            );
            let words: HashSet<String> = all.sources.iter().flat_map(|text| source.tokens(text)).collect();
            let found = WordVectors::read(path, &words.iter().map(String::as_str).collect())?;
            // This way the model knows test words that are missing from the training part.
            source.extend(found.words());
            vectors = Some(found);
        }
        let vector_size = vectors.as_ref().map(WordVectors::size);
        Ok((TranslationFacts { source, target, vector_size }, vectors))
    }
}

/// The facts that a translator depends on.
pub struct TranslationFacts {
    /// The language that it reads.
    pub source: Language,
    /// The language that it writes.
    pub target: Language,
    /// Size of the pretrained source vectors; `None` if the model starts without them.
    pub vector_size: Option<usize>,
}

impl TranslationFacts {
    pub(super) fn encode(&self, texts: &TextPairs) -> Pairs {
        Pairs {
            sources: texts.sources.iter().map(|text| self.source.encode(text)).collect(),
            targets: texts.targets.iter().map(|text| self.target.encode(text)).collect(),
        }
    }

    /// Checks that the two sides of `texts`, such as "the test pairs", are not swapped.
    ///
    /// # Errors
    /// Fails if each language knows clearly more of the other side.
    pub(super) fn check_direction(&self, texts: &TextPairs, what: &str) -> Result<()> {
        let known = |texts: &[String], language: &Language| {
            let ids: Vec<u32> = texts.iter().take(1000).flat_map(|text| language.encode(text)).collect();
            known_share(unknown(&ids), ids.len())
        };
        let (sources, targets) = (&texts.sources, &texts.targets);
        let is_swapped = known(sources, &self.source) + 0.2 < known(sources, &self.target)
            && known(targets, &self.target) + 0.2 < known(targets, &self.source);
        ensure!(
            !is_swapped,
            "{what}: the sources are in the target language of the training data, and the targets in its source language: \
             are the two sides swapped?"
        );
        Ok(())
    }
}

/// Notes on how many of `all` translations were cut off at `max_length` tokens.
///
/// `cut` holds the expected length of each of them. If it is far below the limit, a higher one would not help.
pub(super) fn cut_off_notes(cut: &[usize], all: usize, max_length: usize) -> Vec<String> {
    let is_short = |length: &usize| 2 * length < max_length;
    let (endless, cut): (Vec<usize>, Vec<usize>) = cut.iter().copied().partition(is_short);
    let tokens = count(max_length, "token");
    let which = |some: usize| match (some, all) {
        (_, 1) => "the translation was".to_string(),
        (1, _) => format!("1 of {all} translations was"),
        _ => format!("{some} of {all} translations were"),
    };
    let mut notes = vec![];
    if !cut.is_empty() {
        notes.push(format!("{} cut off at {tokens}: see --max-length", which(cut.len())));
    }
    if !endless.is_empty() {
        notes.push(format!(
            "{} still without an end after {tokens}: the model may need more epochs",
            which(endless.len())
        ));
    }
    notes
}

/// The name of a language's tokens, in the plural.
pub(super) fn noun(language: &Language) -> &'static str {
    match language.segmentation() {
        Segmentation::Characters => "characters",
        Segmentation::Words => "words",
        Segmentation::Subwords(_) => "parts of words",
    }
}

/// Number of unknown tokens.
pub(super) fn unknown(ids: &[u32]) -> usize {
    ids.iter().filter(|&&id| id == Language::UNKNOWN).count()
}

/// Fraction of known tokens.
pub(super) fn known_share(unknown: usize, all: usize) -> f64 {
    (all - unknown) as f64 / all.max(1) as f64
}

impl Facts for TranslationFacts {
    fn record(&self) -> Map<String, Value> {
        let mut record = Map::new();
        for (name, language) in [("source", &self.source), ("target", &self.target)] {
            record.insert(format!("{name}_vocabulary"), json!(language.len()));
            let fingerprint = checksum(language.to_json().as_bytes());
            record.insert(format!("{name}_vocabulary_fingerprint"), json!(fingerprint));
        }
        record.extend(self.vector_size.map(|size| ("vector_size".to_string(), json!(size))));
        record
    }

    fn write(&self, run: &Run) -> Result<()> {
        run.write(LANGUAGES[0], &self.source.to_json())?;
        run.write(LANGUAGES[1], &self.target.to_json())
    }

    fn read(run: &Run, config: &Value) -> Result<Self> {
        let read = |file: &str, name: &str| {
            let path = run.dir().join(file);
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("{}: cannot read it", path.display()))?;
            ensure!(
                config[format!("{name}_vocabulary_fingerprint")] == checksum(text.as_bytes()),
                "{}: it has changed since the run wrote it",
                path.display()
            );
            Language::from_json(&text).with_context(|| path.display().to_string())
        };
        Ok(Self {
            source: read(LANGUAGES[0], "source")?,
            target: read(LANGUAGES[1], "target")?,
            vector_size: config["vector_size"].as_u64().map(|size| size as usize),
        })
    }

    fn describe(&self) -> String {
        format!(", {} source and {} target tokens", self.source.len(), self.target.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_higher_limit_is_suggested_only_if_it_may_help() {
        assert_eq!(cut_off_notes(&[], 2, 100), [""; 0]);
        let more = "cut off at 100 tokens: see --max-length";
        assert_eq!(cut_off_notes(&[120], 1, 100), [format!("the translation was {more}")]);
        assert_eq!(cut_off_notes(&[120, 60], 3, 100), [format!("2 of 3 translations were {more}")]);
        let epochs = "still without an end after 100 tokens: the model may need more epochs";
        assert_eq!(cut_off_notes(&[8, 9], 2, 100), [format!("2 of 2 translations were {epochs}")]);
        let both = [format!("1 of 9 translations was {more}"), format!("1 of 9 translations was {epochs}")];
        assert_eq!(cut_off_notes(&[8, 99], 9, 100), both);
    }
}
