//! Training, testing and asking a tagger of words from the command line.

use super::flow::{self, Parts};
use super::sentences::{VocabularyOptions, asked, read_vocabulary, tell, write_vocabulary};
use super::{
    EvalCommand, Outcome, PredictCommand, Questions, Request, Settings, TrainOptions, Training, in_colour,
    settings_of,
};
use crate::data::{
    EntityCounts, EntityScores, NGrams, TaggedCorpus, TaggedSentences, Vocabulary, entity_scores, sequence,
};
use crate::nn::{Mode, SentenceModel, seeded_var_builder};
use crate::plots;
use crate::train::{self, Metric, Run, Sentences, Tagging, TaggingEvaluation, Trainer, say};
use anyhow::{Context, Result, ensure};
use candle_core::{D, DType, Device};
use candle_nn::{VarBuilder, VarMap};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::Instant;

/// A binary that trains a tagger.
pub trait TaggingRecipe: Settings {
    const NAME: &'static str;
    const ABOUT: &'static str;

    fn vocabulary_options(&self) -> &VocabularyOptions;

    /// The model with its parameters in `vb`, of so many known words and tags.
    ///
    /// # Errors
    /// When there is no such model.
    fn model(&self, words: usize, tags: usize, vb: VarBuilder)
    -> candle_core::Result<Box<dyn SentenceModel>>;
}

/// The whole program of a binary.
pub fn main<R: TaggingRecipe>() -> ExitCode {
    super::run(R::NAME, R::ABOUT, |request: Request<R>| match request {
        Request::Train(training) => train(training),
        Request::Other(Questions::Eval(command)) => eval::<R>(&command),
        Request::Other(Questions::Predict(command)) => predict::<R>(&command),
    })
}

/// All sentences of a data set, and which of them are for what.
struct Examples {
    words: Vec<Vec<String>>,
    tags: Sentences,
    parts: Parts,
}

impl Examples {
    fn new(corpus: TaggedCorpus, options: &TrainOptions) -> Result<Self> {
        let TaggedCorpus { train, validation, test, .. } = corpus;
        let size = |part: &Option<TaggedSentences>| part.as_ref().map(TaggedSentences::len);
        let parts = Parts::new(train.len(), size(&validation), size(&test), options)?;
        let (mut words, mut tags) = (vec![], vec![]);
        for part in [Some(train), validation, test].into_iter().flatten() {
            words.extend(part.words);
            tags.extend(part.tags);
        }
        Ok(Self { words, tags: Sentences::new(tags), parts })
    }
}

fn train<R: TaggingRecipe>(training: Training<R>) -> Result<Outcome> {
    let Training { settings, resume, out, machine, progress } = training;
    super::catch_interrupts()?;
    let start = Instant::now();
    let options = settings.train_options();
    let corpus = sequence::load(&options.dataset, options.data_dir.as_deref()).map_err(super::data_error)?;
    tell(&corpus.notes);
    let names = corpus.tags.clone();
    let examples = Examples::new(corpus, options)?;
    let Parts { training, validation, test } = &examples.parts;
    let device = machine.device.open()?;
    let known = training.iter().map(|&i| &examples.words[i as usize]);
    let vocabulary = settings.vocabulary_options().vocabulary(known);
    let vars = VarMap::new();
    let vb = seeded_var_builder(&vars, options.seed, DType::F32, &device);
    let model = settings.model(vocabulary.len(), names.len(), vb)?;
    let mut optimizer = options.optimizer(&vars)?;
    let facts = json!({
        "tags": names,
        "words": vocabulary.len(),
        "training_examples": training.len(),
        "validation_examples": validation.len(),
        "test_examples": test.len(),
        "parameters": flow::size(&vars),
    });
    let run = flow::folder(R::NAME, (resume, out.as_deref()), &device, facts, &settings)?;
    write_vocabulary(&run, &vocabulary)?;
    if !progress.is_quiet() {
        say(&format!(
            "{}: {} parameters, {} words, {} tags; {} training, {} validation, {} test sentences of {}; run \
             folder {}",
            R::NAME,
            flow::size(&vars),
            vocabulary.len(),
            names.len(),
            training.len(),
            validation.len(),
            test.len(),
            options.dataset,
            run.dir().display()
        ));
    }
    let task = Tagging {
        model: model.as_ref(),
        words: &Sentences::encode(&vocabulary, NGrams::default(), &examples.words),
        tags: &examples.tags,
        names: &names,
        training,
        validation,
        device: &device,
    };
    let options = options.options(training.len());
    let trainer = Trainer { options, run: &run, progress: progress.as_ref() };
    let report = trainer.fit(&task, &vars, &mut optimizer)?;
    if report.interrupted {
        return Ok(flow::interrupted(R::NAME, &run));
    }
    let TaggingEvaluation { words: evaluation, tags } = task.evaluate(test)?;
    let scores = entity_scores(&task.true_tags(test), &tags, &names)?;
    let last = json!({
        "final": true,
        "best_epoch": report.best_epoch,
        "test_loss": evaluation.loss,
        "test_f1": scores.overall.f1(),
        "test_precision": scores.overall.precision(),
        "test_recall": scores.overall.recall(),
        "seconds": start.elapsed().as_secs_f64(),
    });
    run.write_final(&report.epochs, Metric::F1, &last)?;
    run.write("curves.svg", &flow::curves(&report, Metric::F1)?)?;
    run.write(
        "confusion.svg",
        &plots::confusion_matrix(&evaluation.confusion_matrix(names.len())?, &names)?,
    )?;
    table(&scores);
    say(&format!("best epoch {}; run folder {}", report.best_epoch, run.dir().display()));
    Ok(Outcome::Done)
}

/// Precision, recall and F1 of each type and of all entities.
fn table(scores: &EntityScores) {
    let line = |name: &str, counts: &EntityCounts| {
        say(&format!(
            "{name:<12} precision {:6.2}%  recall {:6.2}%  F1 {:6.2}%  ({} entities, {} found, {} of them right)",
            100.0 * counts.precision(),
            100.0 * counts.recall(),
            100.0 * counts.f1(),
            counts.gold,
            counts.predicted,
            counts.correct
        ));
    };
    scores.types.iter().for_each(|(name, counts)| line(name, counts));
    line("test", &scores.overall);
}

/// A run's model with its best weights, its words and its tags.
struct Trained {
    model: Box<dyn SentenceModel>,
    vocabulary: Vocabulary,
    names: Vec<String>,
}

impl Trained {
    fn load<R: TaggingRecipe>(settings: &R, run: &Run, config: &Value, device: &Device) -> Result<Self> {
        let vocabulary = read_vocabulary(run)?;
        let names: Vec<String> = serde_json::from_value(config["tags"].clone())
            .with_context(|| format!("{}: config.json does not tell the tags", run.dir().display()))?;
        let model =
            train::load_model(&run.model(), device, |vb| settings.model(vocabulary.len(), names.len(), vb))?;
        Ok(Self { model, vocabulary, names })
    }
}

fn eval<R: TaggingRecipe>(command: &EvalCommand) -> Result<Outcome> {
    let (run, config) = Run::open(R::NAME, command.run.as_deref())?;
    let settings: R = settings_of(&run, &config)?;
    let device = command.machine.device.open()?;
    let Trained { model, vocabulary, names } = Trained::load(&settings, &run, &config, &device)?;
    let trained_on = settings.train_options();
    let (name, dir) = command.data(trained_on);
    let corpus = sequence::load(name, dir).map_err(super::data_error)?;
    tell(&corpus.notes);
    ensure!(
        corpus.tags == names,
        "{}: this run knows the tags {names:?}, but the data set has {:?}",
        run.dir().display(),
        corpus.tags
    );
    let examples = Examples::new(corpus, trained_on)?;
    let task = Tagging {
        model: model.as_ref(),
        words: &Sentences::encode(&vocabulary, NGrams::default(), &examples.words),
        tags: &examples.tags,
        names: &names,
        training: &[],
        validation: &[],
        device: &device,
    };
    let said = task.evaluate(&examples.parts.test)?;
    table(&entity_scores(&task.true_tags(&examples.parts.test), &said.tags, &names)?);
    Ok(Outcome::Done)
}

fn predict<R: TaggingRecipe>(command: &PredictCommand) -> Result<Outcome> {
    let (dir, inputs) = command.split();
    let (run, config) = Run::open(R::NAME, dir)?;
    let settings: R = settings_of(&run, &config)?;
    let device = command.machine.device.open()?;
    let Trained { model, vocabulary, names } = Trained::load(&settings, &run, &config, &device)?;
    for text in asked(inputs)? {
        let words: Vec<String> = text.split_whitespace().map(String::from).collect();
        if words.is_empty() {
            say("");
            continue;
        }
        let (ids, sentence) =
            Sentences::encode(&vocabulary, NGrams::default(), [&words]).batch(&[0], &device)?;
        let tags = model.forward(&ids, &sentence, Mode::Evaluate)?.argmax(D::Minus1)?.to_vec1::<u32>()?;
        let tags: Vec<&str> = tags.iter().map(|&tag| names[tag as usize].as_str()).collect();
        match in_colour() {
            true => say(&coloured(&words, &tags)),
            // As in a CoNLL file.
            false => {
                words.iter().zip(&tags).for_each(|(word, tag)| say(&format!("{word}\t{tag}")));
                say("");
            }
        }
    }
    Ok(Outcome::Done)
}

/// The sentence, its entities in their types' colours and followed by their types.
fn coloured(words: &[String], tags: &[&str]) -> String {
    let mut types: Vec<&str> = vec![];
    let mut parts = vec![];
    for (i, (word, tag)) in words.iter().zip(tags).enumerate() {
        let Some((_, entity)) = tag.split_once('-') else {
            parts.push(word.clone());
            continue;
        };
        let colour = types.iter().position(|&known| known == entity).unwrap_or_else(|| {
            types.push(entity);
            types.len() - 1
        });
        let goes_on = tags.get(i + 1).is_some_and(|next| *next == format!("I-{entity}"));
        let label = if goes_on { String::new() } else { format!(" [{entity}]") };
        parts.push(format!("\x1b[1;{}m{word}{label}\x1b[0m", 31 + colour % 6));
    }
    parts.join(" ")
}
