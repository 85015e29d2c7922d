//! Translation: the pairs, their parts, the task, and the test.

use super::images::numbers;
use super::options::TrainOptions;
use super::parts::Parts;
use super::recipe::{About, Data, Recipe, Test, Trained};
use super::translation_commands::{self, TranslationCommand};
use super::translation_options::{
    ScoreName, SearchOptions, TranslationFacts, TranslationOptions, note_unknown,
};
use super::{Outcome, TestSet, count, show_notes};
use crate::data::translation::{BleuTokenizer, exact_match};
use crate::data::{Language, Pairs, TextPairs, WordVectors, bleu, chrf};
use crate::models::seq2seq::Seq2Seq;
use crate::plots;
use crate::train::{Decoding, Epoch, Run, Scoring, Task, Translation, Translator, evaluate_translation};
use anyhow::{Context, Result, ensure};
use candle_core::Device;
use candle_nn::VarMap;
use clap::Args;
use serde_json::json;
use std::sync::PoisonError;

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
    /// Translates the test sources.
    pub(super) fn translate(&self, model: &Seq2Seq, device: &Device) -> Result<Vec<String>> {
        let found = Translator::new(model, device).translate(&self.test.sources, &self.decoding)?;
        Ok(found.iter().map(|best| self.about.facts.target.decode(&best[0].ids)).collect())
    }

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

/// `texts` as a translation has them: with the letters of the language, and one space between words.
fn references(language: &Language, texts: &[String]) -> Vec<String> {
    let reference = |text: &String| language.join(language.tokens(text).iter().map(String::as_str));
    texts.iter().map(reference).collect()
}

/// Removes pairs that are too long for training; returns their number.
fn remove_long(pairs: &mut Pairs, max_length: usize) -> usize {
    let before = pairs.len();
    let both = std::mem::take(&mut pairs.sources).into_iter().zip(std::mem::take(&mut pairs.targets));
    let kept = both.filter(|(source, target)| source.len().max(target.len()) <= max_length);
    (pairs.sources, pairs.targets) = kept.unzip();
    before - pairs.len()
}

impl Data for TranslationData {
    type Model = Seq2Seq;
    type Options = TranslationOptions;
    type Facts = TranslationFacts;
    type TestOptions = TranslationTest;
    type Command = TranslationCommand;
    const DATA_SETS: &'static [(&'static str, &'static str)] = &[
        ("dates", "built in"),
        ("tsv-pairs", "train.tsv, optionally dev.tsv, test.tsv: a source, a tab and a target per line"),
        (
            "parallel",
            "train.en and train.de, optionally dev.*, test.*, for --source-lang en --target-lang de: a sentence per line",
        ),
    ];
    const NOUN: &'static str = "pairs";

    fn load(
        mut options: TranslationOptions,
        train: &TrainOptions,
        run: Option<(TranslationFacts, &TranslationTest)>,
    ) -> Result<Self> {
        let (facts, test_options) = run.unzip();
        let (name, dir) = TestSet::resolve(test_options.map(|test| &test.set), train);
        let corpus = options.read(name, dir, facts.is_some())?;
        let fingerprint = |part: &Option<TextPairs>| part.as_ref().map(TextPairs::fingerprint);
        let fingerprints = json!({
            "training_data": corpus.train.fingerprint(),
            "validation_data": fingerprint(&corpus.validation),
            "test_data": fingerprint(&corpus.test),
        });
        let size = |part: &Option<TextPairs>| part.as_ref().map(TextPairs::len);
        let sizes = [Some(corpus.train.len()), size(&corpus.validation), size(&corpus.test)];
        let parts = Parts::new(sizes, |_| 0, train)?;
        let mut all = TextPairs::default();
        for part in [Some(corpus.train), corpus.validation, corpus.test].into_iter().flatten() {
            all.sources.extend(part.sources);
            all.targets.extend(part.targets);
        }
        let part = |indices: &[u32]| {
            let of = |texts: &[String]| indices.iter().map(|&i| texts[i as usize].clone()).collect();
            TextPairs { sources: of(&all.sources), targets: of(&all.targets) }
        };
        let [training, validation, test_texts] =
            [&parts.training, &parts.validation, &parts.test].map(|indices| part(indices));
        let (facts, vectors) = match facts {
            Some(facts) => (facts, None),
            None => options.languages(name, &training, &all)?,
        };
        for (texts, what) in [(&validation, "validation"), (&test_texts, "test")] {
            facts.check_direction(texts, &format!("data set {name}: the {what} pairs"))?;
        }
        let (mut training, validation_pairs) = (facts.encode(&training), facts.encode(&validation));
        let (pairs, skipped) = (training.len(), remove_long(&mut training, options.max_length));
        if skipped > 0 {
            let limit = options.max_length;
            let pairs = count(pairs, "training pair");
            show_notes(&[format!(
                "skipped {skipped} of {pairs} with more than {limit} tokens; see --max-length"
            )]);
            ensure!(!training.is_empty(), "--max-length {limit}: no training pairs are left: choose more");
        }
        let decoding = match test_options {
            None => options.decoding(),
            Some(test) => test.search.decoding(&options),
        };
        let test = facts.encode(&test_texts);
        if test_options.is_some() {
            note_unknown(&facts.source, &test.sources.concat());
        }
        if let Some(words) = test_options.and_then(|test| test.bleu_words) {
            options.bleu_words = words;
        }
        let (words, language) = (options.bleu_words, facts.target.clone());
        let expected = references(&language, &validation.targets);
        let validation_bleu = move |ids: &[Vec<u32>]| {
            let found: Vec<String> = ids.iter().map(|ids| language.decode(ids)).collect();
            bleu(&found, &expected, words)
        };
        let [_, validation_size, test_size] = parts.sizes();
        Ok(Self {
            training,
            validation: validation_pairs,
            validation_bleu: Box::new(validation_bleu),
            test,
            about: About {
                name: name.to_string(),
                sizes: [(pairs - skipped) as u64, validation_size, test_size],
                fingerprints,
                facts,
            },
            test_texts,
            options,
            decoding,
            vectors,
        })
    }

    fn about(&self) -> &About<TranslationFacts> {
        &self.about
    }

    fn largest_batch(&self, batch_size: usize) -> u64 {
        let both = self.training.sources.iter().zip(&self.training.targets);
        let mut lengths: Vec<u64> =
            both.map(|(source, target)| (source.len() + target.len() + 2) as u64).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.iter().take(batch_size).sum()
    }

    fn initialise(&self, vars: &VarMap) -> Result<Option<String>> {
        let (Some(vectors), Some(path)) = (&self.vectors, &self.options.vectors) else { return Ok(None) };
        let vocabulary = self.about.facts.source.vocabulary();
        let vars = vars.data().lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = vars.get(SOURCE_VECTORS) {
            let filled = vectors.fill(vocabulary, &table.as_detached_tensor());
            table.set(&filled.with_context(|| format!("{}, --embedding", path.display()))?)?;
        }
        let (found, words) = (vectors.len(), vocabulary.len());
        Ok(Some(format!("{found} of {words} source tokens have a vector in {}", path.display())))
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
        let (translations, references) = (self.translate(model, device)?, self.references());
        let exact = exact_match(&translations, &references);
        let bleu = bleu(&translations, &references, self.options.bleu_words);
        let chrf = chrf(&translations, &references);
        let record = numbers(&[
            ("test_loss", loss),
            ("test_perplexity", loss.exp()),
            ("test_exact_match", exact / 100.0),
            ("test_bleu", bleu),
            ("test_chrf", chrf),
        ]);
        let text = format!(
            "test exact match {exact:.2}%, BLEU {bleu:.2}, chrF {chrf:.2}, perplexity {:.3}",
            loss.exp()
        );
        Ok(Test { record, text, evaluation: None })
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

    fn answer<R: Recipe<Data = Self>>(command: &TranslationCommand, trained: Trained<R>) -> Result<Outcome> {
        translation_commands::answer(command, &trained.settings.data_options()?, &trained)
    }
}
