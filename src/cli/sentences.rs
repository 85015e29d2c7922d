//! Training, testing and asking a classifier of sentences from the command line.

use super::flow::{self, Parts};
use super::{
    Commands, EvalCommand, MachineOptions, Outcome, PredictCommand, Questions, Request, Settings,
    TrainOptions, Training, complain, gradient_flow, in_colour, positive, settings_of,
};
use crate::data::{Corpus, NGrams, Texts, Tokenizer, Vocabulary, WordVectors, text};
use crate::nn::{Attribution, Cost, Mode, SentenceModel, seeded_var_builder};
use crate::optim::Optimizer;
use crate::plots;
use crate::rng;
use crate::train::{
    self, Evaluation, Metric, Progress, Run, SentenceClassification, Sentences, Trainer, say,
};
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device};
use candle_nn::{VarBuilder, VarMap};
use clap::{Args, Subcommand};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::ffi::OsString;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// A binary that trains a classifier of sentences.
pub trait SentenceRecipe: Settings {
    const NAME: &'static str;
    const ABOUT: &'static str;

    fn text_options(&self) -> &TextOptions;

    /// Whether to draw how far back gradients reach instead.
    fn gradient_flow(&self) -> bool {
        false
    }

    /// What of a sentence the model reads besides its words.
    fn ngrams(&self) -> NGrams {
        NGrams::default()
    }

    /// What the optimizer is to see to besides the updates.
    ///
    /// # Errors
    /// When the model has not the parameters that this is about.
    fn constrain(&self, _optimizer: &mut Optimizer) -> candle_core::Result<()> {
        Ok(())
    }

    /// The model with its parameters in `vb`, of so many known words, n-grams among them, and classes.
    ///
    /// # Errors
    /// When there is no such model.
    fn model(
        &self,
        words: usize,
        classes: usize,
        vb: VarBuilder,
    ) -> candle_core::Result<Box<dyn SentenceModel>>;
}

/// How sentences become words.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
pub struct TextOptions {
    /// What sentences are cut into
    #[arg(long, value_name = "NAME", default_value = "kim")]
    pub tokenizer: Tokenizer,
    #[command(flatten)]
    #[serde(flatten)]
    pub vocabulary: VocabularyOptions,
    /// Start from the words' vectors in FILE: word2vec's, GloVe's or fastText's, gzipped or not
    #[arg(long, value_name = "FILE")]
    pub vectors: Option<PathBuf>,
    /// Cross-validation: train N times, each time testing on another Nth of all sentences
    #[arg(long, value_name = "N", value_parser = folds)]
    pub folds: Option<usize>,
}

/// Which words are known.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
pub struct VocabularyOptions {
    /// Whether "The" counts as "the"
    #[arg(long)]
    pub lower_case: bool,
    /// Words that the training set has less often are unknown ones
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
    pub min_count: usize,
}

impl VocabularyOptions {
    /// The words of the training sentences.
    pub fn vocabulary<'a>(&self, sentences: impl Iterator<Item = &'a Vec<String>>) -> Vocabulary {
        Vocabulary::new(sentences, self.lower_case, self.min_count)
    }
}

fn folds(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(folds @ 2..=1000) => Ok(folds),
        _ => Err("expected a whole number, 2 to 1000".to_string()),
    }
}

/// File of the run folder that holds the vocabulary.
const VOCABULARY: &str = "vocabulary.txt";

pub(super) fn write_vocabulary(run: &Run, vocabulary: &Vocabulary) -> Result<()> {
    run.write(VOCABULARY, &vocabulary.to_text())
}

pub(super) fn read_vocabulary(run: &Run) -> Result<Vocabulary> {
    let path = run.dir().join(VOCABULARY);
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("{}: cannot read it", path.display()))?;
    Vocabulary::from_text(&text).with_context(|| path.display().to_string())
}

/// The sentences that `predict` is asked about: its arguments, or else the lines of standard input.
pub(super) fn asked(inputs: &[OsString]) -> Result<Vec<String>> {
    match inputs {
        [] => std::io::stdin().lock().lines().map(|line| line.context("standard input")).collect(),
        inputs => Ok(inputs.iter().map(|input| input.to_string_lossy().into_owned()).collect()),
    }
}

/// What is on record of a text data set's files, for the reader.
pub(super) fn tell(notes: &[String]) {
    notes.iter().for_each(|note| complain(&format!("note: {note}")));
}

/// The sub-commands besides `train`.
#[derive(Subcommand)]
enum SentenceQuestions {
    #[command(flatten)]
    Classifier(Questions),
    /// The words whose vectors lie nearest to a word's
    Neighbours(PredictCommand),
}

impl Commands for SentenceQuestions {
    fn machine(&self) -> &MachineOptions {
        match self {
            Self::Classifier(command) => command.machine(),
            Self::Neighbours(command) => &command.machine,
        }
    }
}

/// The whole program of a binary.
pub fn main<R: SentenceRecipe>() -> ExitCode {
    super::run(R::NAME, R::ABOUT, |request| match request {
        Request::Train(training) => train::<R>(training),
        Request::Other(SentenceQuestions::Classifier(Questions::Eval(command))) => eval::<R>(&command),
        Request::Other(SentenceQuestions::Classifier(Questions::Predict(command))) => predict::<R>(&command),
        Request::Other(SentenceQuestions::Neighbours(command)) => neighbours::<R>(&command),
    })
}

/// All sentences of a data set, cut into words, and which of them are for what.
struct Examples {
    words: Vec<Vec<String>>,
    labels: Vec<u32>,
    classes: Vec<String>,
    parts: Parts,
    /// Of all these words, as far as they were found.
    vectors: Option<WordVectors>,
}

impl Examples {
    fn new(corpus: Corpus, text: &TextOptions, options: &TrainOptions) -> Result<Self> {
        let Corpus { train, validation, test, classes, .. } = corpus;
        let size = |part: &Option<Texts>| part.as_ref().map(Texts::len);
        let parts = Parts::new(train.len(), size(&validation), size(&test), options)?;
        let (mut words, mut labels) = (vec![], vec![]);
        for part in [Some(train), validation, test].into_iter().flatten() {
            words.extend(part.texts.iter().map(|sentence| text.tokenizer.tokens(sentence)));
            labels.extend(part.labels);
        }
        Ok(Self { words, labels, classes, parts, vectors: None })
    }

    /// Reads the vectors of all words.
    fn read_vectors(&mut self, path: &Path, lower_case: bool) -> Result<()> {
        let words = self.words.iter().flatten();
        self.vectors = Some(if lower_case {
            let words: HashSet<String> = words.map(|word| word.to_lowercase()).collect();
            WordVectors::read(path, &words.iter().map(String::as_str).collect())?
        } else {
            WordVectors::read(path, &words.map(String::as_str).collect())?
        });
        Ok(())
    }

    /// All sentences in an order drawn with the seed, of which every `folds`th from `fold` on is for testing.
    fn fold(&self, fold: usize, folds: usize, options: &TrainOptions) -> Result<Parts> {
        let mut order: Vec<u32> = (0..self.words.len() as u32).collect();
        order.shuffle(&mut rng::stream(options.seed, "folds"));
        let test: Vec<u32> = order.iter().copied().skip(fold).step_by(folds).collect();
        let rest = order.iter().enumerate().filter(|(place, _)| place % folds != fold);
        let rest: Vec<u32> = rest.map(|(_, &sentence)| sentence).collect();
        ensure!(!test.is_empty(), "--folds {folds}: there are only {} sentences", self.words.len());
        let (training, validation) = flow::split(rest.len(), None, options)?;
        let at = |which: Vec<u32>| which.into_iter().map(|i| rest[i as usize]).collect();
        Ok(Parts { training: at(training), validation: at(validation), test })
    }
}

fn train<R: SentenceRecipe>(training: Training<R>) -> Result<Outcome> {
    super::catch_interrupts()?;
    let options = training.settings.train_options();
    if training.settings.gradient_flow() {
        let device = training.machine.device.open()?;
        return gradient_flow::draw(R::NAME, options, training.out.as_deref(), &device);
    }
    let corpus = text::load(&options.dataset, options.data_dir.as_deref()).map_err(super::data_error)?;
    tell(&corpus.notes);
    let text = training.settings.text_options();
    let mut examples = Examples::new(corpus, text, options)?;
    if let Some(path) = &text.vectors {
        examples.read_vectors(path, text.vocabulary.lower_case)?;
    }
    match text.folds {
        None => {
            let Training { settings, resume, out, machine, progress } = training;
            let device = machine.device.open()?;
            let start = (resume, out.as_deref());
            Ok(match train_on(&settings, &examples, &examples.parts, start, &device, progress.as_ref())? {
                None => Outcome::Interrupted,
                Some(_) => Outcome::Done,
            })
        }
        Some(folds) => cross_validate(training, &examples, folds),
    }
}

/// Trains and tests one model; nothing if it was interrupted.
fn train_on<R: SentenceRecipe>(
    settings: &R,
    examples: &Examples,
    parts: &Parts,
    start: (Option<(Run, Value)>, Option<&Path>),
    device: &Device,
    progress: &dyn Progress,
) -> Result<Option<Evaluation>> {
    let begin = Instant::now();
    let options = settings.train_options();
    let Parts { training, validation, test } = parts;
    let known = training.iter().map(|&i| &examples.words[i as usize]);
    let mut vocabulary = settings.text_options().vocabulary.vocabulary(known);
    if let Some(vectors) = &examples.vectors {
        // Words that only come up in testing are known by their vectors.
        vocabulary.extend(vectors.words());
    }
    let ngrams = settings.ngrams();
    let sentences = Sentences::encode(&vocabulary, ngrams, &examples.words);
    let vars = VarMap::new();
    let vb = seeded_var_builder(&vars, options.seed, DType::F32, device);
    let model = settings.model(ngrams.size(vocabulary.len())?, examples.classes.len(), vb)?;
    if let (Some(vectors), Some(path)) = (&examples.vectors, &settings.text_options().vectors) {
        fill_in(vectors, &vocabulary, &vars).with_context(|| format!("{}, --embedding", path.display()))?;
    }
    let mut optimizer = options.optimizer(&vars)?;
    settings.constrain(&mut optimizer)?;
    let facts = json!({
        "classes": examples.classes,
        "words": vocabulary.len(),
        "training_examples": training.len(),
        "validation_examples": validation.len(),
        "test_examples": test.len(),
        "parameters": flow::size(&vars),
    });
    let run = flow::folder(R::NAME, start, device, facts, settings)?;
    write_vocabulary(&run, &vocabulary)?;
    if !progress.is_quiet() {
        if let (Some(vectors), Some(path)) = (&examples.vectors, &settings.text_options().vectors) {
            say(&coverage(vectors, &vocabulary, path));
        }
        say(&format!(
            "{}: {} parameters, {} words; {} training, {} validation, {} test sentences of {}; run folder {}",
            R::NAME,
            flow::size(&vars),
            vocabulary.len(),
            training.len(),
            validation.len(),
            test.len(),
            options.dataset,
            run.dir().display()
        ));
    }
    let task = SentenceClassification {
        model: model.as_ref(),
        sentences: &sentences,
        labels: &examples.labels,
        training,
        validation,
        device,
    };
    let trainer = Trainer { options: options.options(training.len()), run: &run, progress };
    let report = trainer.fit(&task, &vars, &mut optimizer)?;
    if report.interrupted {
        if settings.text_options().folds.is_none() {
            flow::interrupted(R::NAME, &run);
        }
        return Ok(None);
    }
    let evaluation = task.evaluate(test)?;
    flow::conclude((&run, &report), &evaluation, &examples.classes, begin, || {
        run.write("words.svg", &map(model.as_ref(), &vocabulary)?)
    })?;
    Ok(Some(evaluation))
}

/// Puts the words' vectors into all tables of the model.
fn fill_in(vectors: &WordVectors, vocabulary: &Vocabulary, vars: &VarMap) -> Result<()> {
    let vars = vars.data().lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for (_, table) in vars.iter().filter(|(name, _)| name.ends_with(super::VECTORS)) {
        table.set(&vectors.fill(vocabulary, &table.as_detached_tensor())?)?;
    }
    Ok(())
}

/// How many of the known words have a vector.
fn coverage(vectors: &WordVectors, vocabulary: &Vocabulary, path: &Path) -> String {
    let words = vocabulary.words().count();
    let found = vocabulary.words().filter(|word| vectors.get(word).is_some()).count();
    let share = 100.0 * found as f64 / words.max(1) as f64;
    format!("{found} of {words} words ({share:.1}%) have a vector in {}", path.display())
}

/// The picture of the most frequent words' vectors.
fn map(model: &dyn SentenceModel, vocabulary: &Vocabulary) -> Result<String> {
    const WORDS: usize = 150;
    let words: Vec<String> = vocabulary.words().take(WORDS).map(String::from).collect();
    let table = model.embedding().weight().detach().to_dtype(DType::F32)?;
    let vectors = table.narrow(0, Vocabulary::FIRST as usize, words.len())?.flatten_all()?.to_vec1()?;
    plots::word_map(&words, &vectors, table.dim(1)?)
}

/// Trains one model a fold, each in a folder of its own inside the run's.
fn cross_validate<R: SentenceRecipe>(
    training: Training<R>,
    examples: &Examples,
    folds: usize,
) -> Result<Outcome> {
    let Training { settings, resume, out, machine, progress } = training;
    let (begin, device) = (Instant::now(), machine.device.open()?);
    let facts = json!({ "classes": examples.classes, "training_examples": examples.words.len() });
    let run = flow::folder(R::NAME, (resume, out.as_deref()), &device, facts, &settings)?;
    let mut accuracies = vec![];
    for fold in 0..folds {
        let dir = run.dir().join(format!("fold-{}", fold + 1));
        let resume = match dir.join("config.json").exists() {
            true => Some(Run::open(R::NAME, Some(&dir))?),
            false => None,
        };
        let parts = examples.fold(fold, folds, settings.train_options())?;
        let start = (resume, Some(dir.as_path()));
        match train_on(&settings, examples, &parts, start, &device, progress.as_ref())? {
            Some(evaluation) => accuracies.push(evaluation.accuracy()),
            None => return Ok(flow::interrupted(R::NAME, &run)),
        }
    }
    let mean = accuracies.iter().sum::<f64>() / folds as f64;
    let variance = accuracies.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (folds - 1) as f64;
    let deviation = variance.sqrt();
    let seconds = begin.elapsed().as_secs_f64();
    run.write_final(
        &[],
        Metric::Accuracy,
        &json!({
            "final": true, "test_accuracy": mean, "deviation": deviation, "folds": accuracies, "seconds": seconds,
        }),
    )?;
    say(&format!(
        "test accuracy {:.2}% over {folds} folds, standard deviation {:.2}; run folder {}",
        100.0 * mean,
        100.0 * deviation,
        run.dir().display()
    ));
    Ok(Outcome::Done)
}

/// A run's model with its best weights, its words and its classes.
struct Trained {
    model: Box<dyn SentenceModel>,
    vocabulary: Vocabulary,
    classes: Vec<String>,
}

impl Trained {
    fn load<R: SentenceRecipe>(settings: &R, run: &Run, config: &Value, device: &Device) -> Result<Self> {
        if settings.text_options().folds.is_some() && !run.model().exists() {
            bail!("{0}: this run has one model a fold: name one, such as {0}/fold-1", run.dir().display());
        }
        let vocabulary = read_vocabulary(run)?;
        let classes: Vec<String> = serde_json::from_value(config["classes"].clone())
            .with_context(|| format!("{}: config.json does not tell the classes", run.dir().display()))?;
        let size = settings.ngrams().size(vocabulary.len())?;
        let model = train::load_model(&run.model(), device, |vb| settings.model(size, classes.len(), vb))?;
        Ok(Self { model, vocabulary, classes })
    }
}

fn eval<R: SentenceRecipe>(command: &EvalCommand) -> Result<Outcome> {
    let (run, config) = Run::open(R::NAME, command.run.as_deref())?;
    let settings: R = settings_of(&run, &config)?;
    let device = command.machine.device.open()?;
    let trained = Trained::load(&settings, &run, &config, &device)?;
    let trained_on = settings.train_options();
    let (name, dir) = command.data(trained_on);
    let corpus = text::load(name, dir).map_err(super::data_error)?;
    tell(&corpus.notes);
    ensure!(
        corpus.classes == trained.classes,
        "{}: this run tells apart {:?}, but the data set has {:?}",
        run.dir().display(),
        trained.classes,
        corpus.classes
    );
    let examples = Examples::new(corpus, settings.text_options(), trained_on)?;
    let task = SentenceClassification {
        model: trained.model.as_ref(),
        sentences: &Sentences::encode(&trained.vocabulary, settings.ngrams(), &examples.words),
        labels: &examples.labels,
        training: &[],
        validation: &[],
        device: &device,
    };
    say(&flow::result(&task.evaluate(&examples.parts.test)?));
    Ok(Outcome::Done)
}

fn predict<R: SentenceRecipe>(command: &PredictCommand) -> Result<Outcome> {
    let (dir, inputs) = command.split();
    let (run, config) = Run::open(R::NAME, dir)?;
    let settings: R = settings_of(&run, &config)?;
    let device = command.machine.device.open()?;
    let Trained { model, vocabulary, classes } = Trained::load(&settings, &run, &config, &device)?;
    let texts = asked(inputs)?;
    let tokenizer = settings.text_options().tokenizer;
    let words: Vec<Vec<String>> = texts.iter().map(|text| tokenizer.tokens(text)).collect();
    let ngrams = settings.ngrams();
    let sentences = Sentences::encode(&vocabulary, ngrams, &words);
    for (i, text) in texts.iter().enumerate() {
        let (ids, sequences) = sentences.batch(&[i as u32], &device)?;
        let logits = model.forward(&ids, &sequences, Mode::Evaluate)?;
        let probabilities = Cost::SoftmaxCrossEntropy.probabilities(&logits)?.get(0)?.to_vec1::<f32>()?;
        let mut ranked: Vec<(&String, f32)> = classes.iter().zip(probabilities).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        let said: Vec<String> =
            ranked.iter().take(3).map(|(class, p)| format!("{class} ({:.2}%)", 100.0 * p)).collect();
        say(&format!("{}: {text}", said.join("  ")));
        let class = classes.iter().position(|class| class == ranked[0].0).unwrap_or_default();
        for attributions in model.attributions(&ids, &sequences)? {
            tell_reasons(attributions, class, &ngrams.texts(&words[i]));
        }
    }
    Ok(Outcome::Done)
}

fn neighbours<R: SentenceRecipe>(command: &PredictCommand) -> Result<Outcome> {
    const TOLD: usize = 10;
    let (dir, words) = command.split();
    let (run, config) = Run::open(R::NAME, dir)?;
    let settings: R = settings_of(&run, &config)?;
    let device = command.machine.device.open()?;
    let Trained { model, vocabulary, .. } = Trained::load(&settings, &run, &config, &device)?;
    for word in words {
        let word = word.to_string_lossy();
        let id = vocabulary.id(&word);
        ensure!(id != Vocabulary::UNKNOWN, "{word}: this run's model does not know the word");
        let nearest = model.embedding().nearest(id, vocabulary.len(), TOLD + Vocabulary::FIRST as usize)?;
        let nearest = nearest.iter().filter(|(id, _)| *id >= Vocabulary::FIRST).take(TOLD);
        let said: Vec<String> = nearest
            .map(|&(id, cosine)| format!("{} ({cosine:.2})", vocabulary.token(id).unwrap_or_default()))
            .collect();
        say(&format!("{word}: {}", said.join("  ")));
    }
    Ok(Outcome::Done)
}

/// The words that speak most for a class, with what they add to its logit, and those that speak most against it.
fn tell_reasons(mut attributions: Vec<Attribution>, class: usize, words: &[String]) {
    const TOLD: usize = 3;
    attributions.retain(|reason| !reason.words.is_empty() && reason.words.end <= words.len());
    attributions.sort_by(|a, b| b.logits[class].abs().total_cmp(&a.logits[class].abs()));
    for reason in attributions.iter().take(TOLD) {
        let (added, words) = (reason.logits[class], words[reason.words.clone()].join(" "));
        let words = match in_colour() {
            // Blue for, orange against.
            true => format!("\x1b[{}m{words}\x1b[0m", if added > 0.0 { "34" } else { "33" }),
            false => words,
        };
        say(&format!("  {added:+.2}  {words}"));
    }
}
