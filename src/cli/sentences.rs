//! Classifying sentences.

use super::command_line::PredictCommand;
use super::flow::{self, Parts};
use super::options::{MachineOptions, TrainOptions, WORD_VECTORS, in_range};
use super::recipe::{Command, Data, Recipe, Test, Trained};
use super::text::{TextFacts, VocabularyOptions, input_sentences, write_vocabulary};
use super::{TestSet, data_error, in_colour, most_probable, show_notes};
use crate::data::{Corpus, NGrams, Texts, Tokenizer, Vocabulary, WordVectors, text};
use crate::nn::{Attribution, Cost, Mode, SentenceModel};
use crate::plots;
use crate::rng;
use crate::train::{Epoch, Evaluation, Metric, Run, SentenceClassification, Sentences, Task, say};
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device};
use candle_nn::VarMap;
use clap::{Args, Subcommand};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

/// Options that choose how sentences become words.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
pub struct TextOptions {
    /// Tokenizer
    #[arg(long, value_name = "NAME")]
    pub tokenizer: Tokenizer,
    /// The known words.
    #[command(flatten)]
    #[serde(flatten)]
    pub vocabulary: VocabularyOptions,
    /// Start from the word vectors in FILE: word2vec, GloVe or fastText, gzipped or not
    #[arg(long, value_name = "FILE")]
    pub vectors: Option<PathBuf>,
    /// Cross-validate: train N models, each tested on a different Nth of all sentences
    #[arg(long, value_name = "N", value_parser = |text: &str| in_range(text, 2..=1000_usize, "a whole number, 2 to 1000"))]
    pub folds: Option<usize>,
}

/// A recipe's choices about sentences.
pub struct SentenceOptions {
    /// Words, pretrained vectors and cross-validation.
    pub text: TextOptions,
    /// N-grams that the model uses besides words.
    pub ngrams: NGrams,
}

/// Labelled sentences.
pub struct SentenceData {
    options: SentenceOptions,
    /// The words of each sentence, across all parts.
    words: Vec<Vec<String>>,
    labels: Vec<u32>,
    /// Fingerprint of all sentences and labels.
    fingerprint: u64,
    parts: Parts,
    /// Pretrained vectors of the words that the file has.
    vectors: Option<WordVectors>,
    /// The ids of words and n-grams of each sentence.
    sentences: Sentences,
    facts: TextFacts,
}

impl SentenceData {
    /// Number of sentences in all parts.
    pub(super) fn len(&self) -> usize {
        self.words.len()
    }

    /// Makes fold `fold` of `folds` the test part, in an order drawn with the seed.
    pub(super) fn select_fold(&mut self, fold: usize, folds: usize, options: &TrainOptions) -> Result<()> {
        let mut order: Vec<u32> = (0..self.len() as u32).collect();
        order.shuffle(&mut rng::stream(options.seed, "folds"));
        let test: Vec<u32> = order.iter().copied().skip(fold).step_by(folds).collect();
        let rest = order.iter().enumerate().filter(|(place, _)| place % folds != fold);
        let rest: Vec<u32> = rest.map(|(_, &sentence)| sentence).collect();
        ensure!(!test.is_empty(), "--folds {folds}: there are only {} sentences", self.len());
        let (training, validation) = flow::split(rest.len(), None, options)?;
        let select = |places: Vec<u32>| places.into_iter().map(|i| rest[i as usize]).collect();
        self.parts = Parts { training: select(training), validation: select(validation), test };
        let classes = std::mem::take(&mut self.facts.classes);
        self.facts = new_facts(&self.options.text, &self.words, &self.parts, self.vectors.as_ref(), classes);
        self.sentences = Sentences::encode(&self.facts.vocabulary, self.options.ngrams, &self.words);
        Ok(())
    }

    fn classification<'a>(
        &'a self,
        model: &'a dyn SentenceModel,
        device: &'a Device,
    ) -> SentenceClassification<'a> {
        SentenceClassification {
            model,
            sentences: &self.sentences,
            labels: &self.labels,
            training: &self.parts.training,
            validation: &self.parts.validation,
            device,
        }
    }
}

/// The classes, and the words of the training part and those with a pretrained vector.
fn new_facts(
    options: &TextOptions,
    words: &[Vec<String>],
    parts: &Parts,
    vectors: Option<&WordVectors>,
    classes: Vec<String>,
) -> TextFacts {
    let mut facts = TextFacts::new(&options.vocabulary, words, &parts.training, classes);
    if let Some(vectors) = vectors {
        // This way the model knows test words that are missing from the training part.
        facts.vocabulary.extend(vectors.words());
    }
    facts
}

fn read_vectors(path: &Path, words: &[Vec<String>], lower_case: bool) -> Result<WordVectors> {
    let words = words.iter().flatten();
    if !lower_case {
        return WordVectors::read(path, &words.map(String::as_str).collect());
    }
    let words: HashSet<String> = words.map(|word| word.to_lowercase()).collect();
    WordVectors::read(path, &words.iter().map(String::as_str).collect())
}

impl Data for SentenceData {
    type Model = dyn SentenceModel;
    type Options = SentenceOptions;
    type Facts = TextFacts;
    type TestOptions = TestSet;
    type Command = SentenceCommand;
    const METRIC: Metric = Metric::Accuracy;
    const NOUN: &'static str = "sentences";
    const READS_INPUT: bool = true;

    fn load(
        options: SentenceOptions,
        train: &TrainOptions,
        run: Option<(TextFacts, &TestSet)>,
    ) -> Result<Self> {
        let (facts, test) = run.unzip();
        let (name, dir) = TestSet::resolve(test, train);
        let corpus = text::load(name, dir).map_err(data_error)?;
        show_notes(&corpus.notes);
        let fingerprint = corpus.fingerprint();
        let Corpus { train: training, validation, test, classes, .. } = corpus;
        let size = |part: &Option<Texts>| part.as_ref().map(Texts::len);
        let parts = Parts::new(training.len(), size(&validation), size(&test), train)?;
        let (mut words, mut labels) = (vec![], vec![]);
        for part in [Some(training), validation, test].into_iter().flatten() {
            words.extend(part.texts.iter().map(|sentence| options.text.tokenizer.tokens(sentence)));
            labels.extend(part.labels);
        }
        let (mut vectors, lower_case) = (None, options.text.vocabulary.lower_case);
        let facts = match (facts, &options.text.vectors) {
            (Some(facts), _) => {
                facts.check_classes(&classes).with_context(|| format!("data set {name}"))?;
                facts
            }
            (None, path) => {
                vectors = path.as_deref().map(|path| read_vectors(path, &words, lower_case)).transpose()?;
                new_facts(&options.text, &words, &parts, vectors.as_ref(), classes)
            }
        };
        let sentences = Sentences::encode(&facts.vocabulary, options.ngrams, &words);
        Ok(Self { options, words, labels, fingerprint, parts, vectors, sentences, facts })
    }

    fn facts(&self) -> &TextFacts {
        &self.facts
    }

    fn sizes(&self) -> [u64; 3] {
        self.parts.sizes()
    }

    fn classes(&self) -> &[String] {
        &self.facts.classes
    }

    fn record(&self) -> Result<Map<String, Value>> {
        Ok(self.facts.record("classes", self.fingerprint))
    }

    fn write(&self, run: &Run) -> Result<()> {
        write_vocabulary(run, &self.facts.vocabulary)
    }

    fn read(run: &Run, config: &Value) -> Result<TextFacts> {
        let dir = run.dir();
        if dir.join("fold-1").exists() && !run.model().exists() {
            bail!("{0}: this run has one model per fold: name one, such as {0}/fold-1", dir.display());
        }
        TextFacts::read(run, config, "classes")
    }

    fn describe(&self) -> String {
        format!(", {} words", self.facts.vocabulary.len())
    }

    fn initialise(&self, vars: &VarMap) -> Result<Option<String>> {
        let (Some(vectors), Some(path)) = (&self.vectors, &self.options.text.vectors) else {
            return Ok(None);
        };
        let vocabulary = &self.facts.vocabulary;
        let vars = vars.data().lock().unwrap_or_else(PoisonError::into_inner);
        for (_, table) in vars.iter().filter(|(name, _)| name.ends_with(WORD_VECTORS)) {
            let filled = vectors.fill(vocabulary, &table.as_detached_tensor());
            table.set(&filled.with_context(|| format!("{}, --embedding", path.display()))?)?;
        }
        let words = vocabulary.words().count();
        let found = vocabulary.words().filter(|word| vectors.get(word).is_some()).count();
        let share = 100.0 * found as f64 / words.max(1) as f64;
        Ok(Some(format!("{found} of {words} words ({share:.1}%) have a vector in {}", path.display())))
    }

    fn task<'a>(
        &'a self,
        model: &'a dyn SentenceModel,
        _train: &TrainOptions,
        device: &'a Device,
    ) -> Result<Box<dyn Task + 'a>> {
        Ok(Box::new(self.classification(model, device)))
    }

    fn test(&self, model: &dyn SentenceModel, _best: Option<&Epoch>, device: &Device) -> Result<Test> {
        Ok(Test::classification(self.classification(model, device).evaluate(&self.parts.test)?))
    }

    fn plot(&self, run: &Run, model: &dyn SentenceModel, _test: &Evaluation, _device: &Device) -> Result<()> {
        run.write("words.svg", &word_map(model, &self.facts.vocabulary)?)
    }

    fn answer<R: Recipe<Data = Self>>(command: &SentenceCommand, trained: Trained<R>) -> Result<()> {
        match command {
            SentenceCommand::Predict(command) => predict(command, trained),
            SentenceCommand::Neighbours(command) => neighbours(command, &trained),
        }
    }
}

/// The sub-commands of a classifier of sentences.
#[derive(Subcommand)]
pub enum SentenceCommand {
    /// Predict your own sentences, with probabilities: arguments, or lines of standard input
    Predict(PredictCommand),
    /// Show the words with the most similar vectors
    Neighbours(PredictCommand),
}

impl SentenceCommand {
    fn command(&self) -> &PredictCommand {
        let (Self::Predict(command) | Self::Neighbours(command)) = self;
        command
    }
}

impl Command for SentenceCommand {
    fn machine(&self) -> &MachineOptions {
        &self.command().machine
    }

    fn run(&self) -> Option<&Path> {
        self.command().run()
    }
}

fn predict<R: Recipe<Data = SentenceData>>(command: &PredictCommand, trained: Trained<R>) -> Result<()> {
    let Trained { settings, facts: TextFacts { vocabulary, classes }, model, device, .. } = trained;
    let SentenceOptions { text: options, ngrams } = settings.data_options()?;
    let texts = input_sentences(command.inputs())?;
    let words: Vec<Vec<String>> = texts.iter().map(|text| options.tokenizer.tokens(text)).collect();
    let sentences = Sentences::encode(&vocabulary, ngrams, &words);
    for (i, text) in texts.iter().enumerate() {
        let (ids, sequences) = sentences.batch(&[i as u32], &device)?;
        let logits = model.forward(&ids, &sequences, Mode::Evaluate)?;
        let probabilities = Cost::SoftmaxCrossEntropy.probabilities(&logits)?.get(0)?.to_vec1::<f32>()?;
        say(&format!("{}: {text}", most_probable(&classes, &probabilities, 3)));
        // The first of the most probable classes, as above.
        let best = (0..classes.len()).rev().max_by(|&a, &b| probabilities[a].total_cmp(&probabilities[b]));
        for attributions in model.attributions(&ids, &sequences)? {
            show_attributions(attributions, best.unwrap_or_default(), &ngrams.texts(&words[i]));
        }
    }
    Ok(())
}

fn neighbours<R: Recipe<Data = SentenceData>>(command: &PredictCommand, trained: &Trained<R>) -> Result<()> {
    const SHOWN: usize = 10;
    let Trained { facts: TextFacts { vocabulary, .. }, model, .. } = trained;
    for word in command.inputs() {
        let word = word.to_string_lossy();
        let id = vocabulary.id(&word);
        ensure!(id != Vocabulary::UNKNOWN, "{word}: this run's model does not know the word");
        let nearest = model.embedding().nearest(id, vocabulary.len(), SHOWN + Vocabulary::FIRST as usize)?;
        let nearest = nearest.iter().filter(|(id, _)| *id >= Vocabulary::FIRST).take(SHOWN);
        let shown: Vec<String> = nearest
            .map(|&(id, cosine)| format!("{} ({cosine:.2})", vocabulary.token(id).unwrap_or_default()))
            .collect();
        say(&format!("{word}: {}", shown.join("  ")));
    }
    Ok(())
}

/// Shows the words with the largest contributions, positive or negative, to the logit of a class.
fn show_attributions(mut attributions: Vec<Attribution>, class: usize, words: &[String]) {
    const SHOWN: usize = 3;
    attributions.retain(|found| !found.words.is_empty() && found.words.end <= words.len());
    attributions.sort_by(|a, b| b.logits[class].abs().total_cmp(&a.logits[class].abs()));
    for Attribution { words: range, logits } in attributions.iter().take(SHOWN) {
        let (contribution, words) = (logits[class], words[range.clone()].join(" "));
        let words = match in_colour() {
            // Blue for, orange against.
            true => format!("\x1b[{}m{words}\x1b[0m", if contribution > 0.0 { "34" } else { "33" }),
            false => words,
        };
        say(&format!("  {contribution:+.2}  {words}"));
    }
}

/// Draws the vectors of the most frequent words.
fn word_map(model: &dyn SentenceModel, vocabulary: &Vocabulary) -> Result<String> {
    const WORDS: usize = 150;
    let words: Vec<String> = vocabulary.words().take(WORDS).map(String::from).collect();
    let table = model.embedding().weight().detach().to_dtype(DType::F32)?;
    let vectors = table.narrow(0, Vocabulary::FIRST as usize, words.len())?.flatten_all()?.to_vec1()?;
    plots::word_map(&words, &vectors, table.dim(1)?)
}
