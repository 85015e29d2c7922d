//! Translation: the pairs, their parts, the task, and the test.

use super::images::numbers;
use super::options::TrainOptions;
use super::parts::Parts;
use super::recipe::{About, AnyBinary, Data, Test, Trained, split_fingerprints};
use super::text::{fill_tables, keep_vectors, note_few_vectors, note_unknown_count};
use super::translation_commands::{self, TranslationCommand};
use super::translation_options::{
    ScoreName, SearchOptions, TranslationFacts, TranslationOptions, cut_off_notes, noun, unknown,
};
use super::{Outcome, TestSet, command_line, count, show_notes, sum_of_largest};
use crate::data::translation::{BleuTokenizer, exact_match};
use crate::data::{Language, PairCorpus, Pairs, TextPairs, WordVectors, bleu, chrf};
use crate::models::seq2seq::Seq2Seq;
use crate::plots;
use crate::train::{
    Decoding, Epoch, Run, Scoring, Task, Translation, Translator, best_translations, evaluate_translation,
};
use anyhow::{Result, ensure};
use candle_core::Device;
use candle_nn::VarMap;
use clap::Args;
use std::collections::HashSet;
use std::ffi::OsString;
use std::process::ExitCode;

/// Name of the parameter that holds the vectors of the source tokens.
const SOURCE_VECTORS: &str = "source_embedding.weight";

/// Options of `eval` that choose the test data and how to translate it.
#[derive(Args)]
pub struct TranslationTest {
    #[command(flatten)]
    set: TestSet,
    #[command(flatten)]
    search: SearchOptions,
    /// Words that BLEU counts [default: as in training]
    #[arg(long, value_name = "NAME", value_enum)]
    bleu_words: Option<BleuTokenizer>,
}

/// A score of translations, given as ids.
type ScoreOf = dyn Fn(&[Vec<u32>]) -> f64;

/// Pairs of sentences and translations, divided into parts.
pub struct TranslationData {
    options: TranslationOptions,
    about: About<TranslationFacts>,
    training: Pairs,
    validation: Pairs,
    /// Returns the BLEU of translations of the validation sources.
    validation_bleu: Box<ScoreOf>,
    pub(super) test_texts: TextPairs,
    pub(super) test: Pairs,
    pub(super) decoding: Decoding,
    vectors: Option<WordVectors>,
}

impl TranslationData {
    /// The true translations of the test sources.
    pub(super) fn references(&self) -> Vec<String> {
        references(&self.about.facts.target, &self.test_texts.targets)
    }

    /// The name of the score that matters most, and its value in percent.
    pub(super) fn score(&self, translations: &[String], references: &[String]) -> (&'static str, f64) {
        match self.options.score(&self.about.name) {
            ScoreName::ExactMatch => ("exact match", exact_match(translations, references)),
            _ => ("BLEU", bleu(translations, references, self.options.bleu_words)),
        }
    }
}

/// Normalises `texts` like translations: with the letters of the language, and one space between words.
fn references(language: &Language, texts: &[String]) -> Vec<String> {
    let reference = |text: &String| language.join(language.tokens(text).iter().map(String::as_str));
    texts.iter().map(reference).collect()
}

/// Divides the pairs of all splits, which are returned in one list, into parts.
fn divide(splits: [Option<TextPairs>; 3], train: &TrainOptions) -> Result<(TextPairs, Parts)> {
    let sizes = splits.each_ref().map(|split| split.as_ref().map(TextPairs::len));
    let parts = Parts::new(sizes, |_| 0, train)?;
    let mut all = TextPairs::default();
    for split in splits.into_iter().flatten() {
        all.sources.extend(split.sources);
        all.targets.extend(split.targets);
    }
    Ok((all, parts))
}

/// The pairs with the given indices.
fn select(all: &TextPairs, indices: &[u32]) -> TextPairs {
    let of = |texts: &[String]| indices.iter().map(|&i| texts[i as usize].clone()).collect();
    TextPairs { sources: of(&all.sources), targets: of(&all.targets) }
}

/// Notes how many test pairs also occur in the training part, if any do.
fn note_repeated(training: &TextPairs, test: &TextPairs) {
    let known: HashSet<_> = training.sources.iter().zip(&training.targets).collect();
    let repeated = test.sources.iter().zip(&test.targets).filter(|pair| known.contains(pair)).count();
    if repeated > 0 {
        show_notes(&[format!(
            "test pairs that also occur in the training part: {repeated} of {}",
            test.len()
        )]);
    }
}

/// Removes pairs that are too long for training, with a note.
///
/// # Errors
/// Fails if no pairs are left.
fn skip_long(pairs: &mut Pairs, max_length: usize) -> Result<()> {
    let before = pairs.len();
    let both = std::mem::take(&mut pairs.sources).into_iter().zip(std::mem::take(&mut pairs.targets));
    let kept = both.filter(|(source, target)| source.len().max(target.len()) <= max_length);
    (pairs.sources, pairs.targets) = kept.unzip();
    let skipped = before - pairs.len();
    if skipped > 0 {
        show_notes(&[format!(
            "skipped {skipped} of {} with more than {}; see --max-length",
            count(before, "training pair"),
            count(max_length, "token")
        )]);
        ensure!(!pairs.is_empty(), "no training pairs are left: choose a larger --max-length");
    }
    Ok(())
}

impl Data for TranslationData {
    type Model = Seq2Seq;
    type Options = TranslationOptions;
    type Facts = TranslationFacts;
    type TestOptions = TranslationTest;
    type Command = TranslationCommand;
    const DATA_SETS: &'static [(&'static [&'static str], &'static str)] = &[
        (&["dates"], "built in"),
        (
            &["tsv-pairs"],
            "train.tsv, optionally dev.tsv, test.tsv: a source, a tab and a target per line, or as the header says; or a single \
             file such as Anki's deu.txt",
        ),
        (
            &["parallel"],
            "train.en and train.de, optionally dev.*, test.*, for --source-lang en --target-lang de: a sentence per line; also \
             train.en.txt or train.en-de.en; or src-train.txt and tgt-train.txt without languages",
        ),
    ];
    const NOUN: &'static str = "pairs";

    fn load(
        mut options: TranslationOptions,
        train: &TrainOptions,
        run: Option<(TranslationFacts, &TranslationTest)>,
    ) -> Result<Self> {
        let (facts, test_options) = run.unzip();
        if facts.is_none() {
            options.check(&train.given)?;
        }
        let (name, dir) = TestSet::resolve(test_options.map(|test| &test.set), train);
        let PairCorpus { train: training, validation, test, .. } =
            options.read(name, dir, facts.is_some())?;
        TestSet::check_split(test_options.map(|test| &test.set), train, test.is_some())?;
        let splits = [Some(training), validation, test];
        let fingerprints = splits.each_ref().map(|split| split.as_ref().map(TextPairs::fingerprint));
        let (all, parts) = divide(splits, train)?;
        let [training, validation, test_texts] =
            [&parts.training, &parts.validation, &parts.test].map(|indices| select(&all, indices));
        let (facts, vectors) = match facts {
            Some(facts) => (facts, None),
            None => options.languages(name, &training, &all, &train.given)?,
        };
        let place = dir.map_or(format!("data set {name}"), |dir| dir.display().to_string());
        for (texts, what) in [(&validation, "validation"), (&test_texts, "test")] {
            facts.check_direction(texts, &format!("{place}: the {what} pairs"))?;
        }
        note_repeated(&training, &test_texts);
        let (mut training, validation_pairs) = (facts.encode(&training), facts.encode(&validation));
        skip_long(&mut training, options.max_length)?;
        let test = facts.encode(&test_texts);
        let decoding = match test_options {
            None => options.decoding(),
            Some(test) => test.search.decoding(&options)?,
        };
        if let Some(test_options) = test_options {
            options.bleu_words = test_options.bleu_words.unwrap_or(options.bleu_words);
        }
        let expected = references(&facts.target, &validation.targets);
        if !expected.is_empty() {
            options.choose_score(name, &expected)?;
        }
        let (words, language) = (options.bleu_words, facts.target.clone());
        let validation_bleu = move |ids: &[Vec<u32>]| {
            let found: Vec<String> = ids.iter().map(|ids| language.decode(ids)).collect();
            bleu(&found, &expected, words)
        };
        let [_, validation_size, test_size] = parts.sizes();
        Ok(Self {
            about: About {
                name: name.to_string(),
                sizes: [training.len() as u64, validation_size, test_size],
                fingerprints: split_fingerprints(fingerprints),
                facts,
            },
            training,
            validation: validation_pairs,
            validation_bleu: Box::new(validation_bleu),
            test,
            test_texts,
            options,
            decoding,
            vectors,
        })
    }

    fn about(&self) -> &About<TranslationFacts> {
        &self.about
    }

    /// Number of target tokens, ends included. Only they have logits, which need the most memory.
    fn largest_batch(&self, batch_size: usize) -> u64 {
        sum_of_largest(self.training.targets.iter().map(|target| target.len() as u64 + 1), batch_size)
    }

    fn note_unknown(&self) -> Result<()> {
        let ids = self.test.sources.concat();
        note_unknown_count(unknown(&ids) as u64, ids.len() as u64, noun(&self.about.facts.source), &[]);
        Ok(())
    }

    fn initialise(&self, vars: &VarMap) -> Result<Option<String>> {
        let (Some(vectors), Some(path)) = (&self.vectors, &self.options.vectors) else { return Ok(None) };
        let vocabulary = self.about.facts.source.vocabulary();
        fill_tables(vars, |name| name == SOURCE_VECTORS, vectors, vocabulary, path)?;
        let (found, words) = (vectors.len(), vocabulary.len());
        note_few_vectors(path, found, words, self.options.lower_case);
        let (words, have) = (count(words, "source token"), if found == 1 { "has" } else { "have" });
        Ok(Some(format!("{found} of {words} {have} a vector in {}", path.display())))
    }

    fn keep_files(&self, run: &Run) -> Result<()> {
        keep_vectors(self.vectors.as_ref(), run)
    }

    fn task<'a>(&'a self, model: &'a Seq2Seq, device: &'a Device) -> Result<Box<dyn Task + 'a>> {
        let max_length = self.options.max_length;
        Ok(Box::new(Translation {
            model,
            training: &self.training,
            validation: &self.validation,
            forcing: self.options.forcing(),
            label_smoothing: self.options.label_smoothing,
            scoring: match self.options.score(&self.about.name) {
                ScoreName::ExactMatch => Scoring::ExactMatch { max_length },
                ScoreName::Bleu => Scoring::Bleu { max_length, bleu: &self.validation_bleu },
                ScoreName::Perplexity => Scoring::Perplexity,
            },
            device,
        }))
    }

    fn test(&self, model: &Seq2Seq, _best: Option<&Epoch>, device: &Device) -> Result<Test> {
        let loss = evaluate_translation(model, &self.test, device)?;
        let found = best_translations(model, &self.test.sources, &self.decoding, device)?;
        let cut_off = found.iter().zip(&self.test.targets).filter(|((_, finished), _)| !finished);
        let cut_off: Vec<usize> = cut_off.map(|(_, target)| target.len()).collect();
        show_notes(&cut_off_notes(&cut_off, found.len(), self.decoding.max_length));
        let translations: Vec<String> =
            found.iter().map(|(ids, _)| self.about.facts.target.decode(ids)).collect();
        let references = self.references();
        let exact = exact_match(&translations, &references);
        let bleu = bleu(&translations, &references, self.options.bleu_words);
        let chrf = chrf(&translations, &references);
        let record = numbers(&[
            ("test_loss", loss),
            ("test_perplexity", libm::exp(loss)),
            ("test_exact_match", exact / 100.0),
            ("test_bleu", bleu),
            ("test_chrf", chrf),
        ]);
        // BLEU is 0 for any translation if no reference has four words.
        let has_bleu = self.options.bleu_words.has_four_words(&references);
        let bleu = if has_bleu { format!("BLEU {bleu:.2}, ") } else { String::new() };
        let text =
            format!("test exact match {exact:.2}%, {bleu}chrF {chrf:.2}, perplexity {:.3}", libm::exp(loss));
        Ok(Test { record, text, translations, ..Test::default() })
    }

    fn plot(&self, run: &Run, model: &Seq2Seq, _test: &Test, device: &Device) -> Result<()> {
        const SHOWN: usize = 5;
        let shown = self.test.sources.len().min(SHOWN);
        let found = Translator::new(model, device).translate(&self.test.sources[..shown], &self.decoding)?;
        let alignments: Vec<_> = self.test_texts.sources[..shown]
            .iter()
            .zip(&found)
            .filter_map(|(text, best)| translation_commands::alignment(&self.about.facts, text, &best[0]))
            .collect();
        match alignments.is_empty() {
            true => Ok(()),
            false => run.write("alignments.svg", &plots::alignments(&alignments)?),
        }
    }

    fn answer(command: &TranslationCommand, trained: Trained<Self>) -> Result<Outcome> {
        translation_commands::answer(command, &trained.settings.data_options()?, &trained)
    }

    fn main(binary: &AnyBinary<Self>, arguments: Vec<OsString>) -> ExitCode {
        command_line::main(binary, arguments)
    }
}
