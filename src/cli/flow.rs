//! Training and evaluation, the same for every recipe.

use super::command_line::{Action, Request, recorded_settings};
use super::inputs::RunOption;
use super::options::TrainOptions;
use super::process::catch_interrupts;
use super::recipe::{About, Data, Facts, Recipe, Start, Test, Trained, Training};
use super::{MachineOptions, Outcome};
use crate::nn::{BatchNorm2d, seeded_var_builder};
use crate::plots::{self, Chart, Line};
use crate::train::{self, Epoch, Metric, Report, Run, Trainer, say};
use anyhow::{Result, bail, ensure};
use candle_core::{DType, Device};
use candle_nn::VarMap;
use serde_json::{Map, Value, json};
use std::ops::Range;
use std::sync::PoisonError;
use std::time::Instant;

/// Runs what the command line asks for.
pub(super) fn run<R: Recipe>(Request { machine, action }: Request<R>) -> Result<Outcome> {
    match action {
        Action::Train { settings, start, progress } => {
            catch_interrupts()?;
            train(&Training { settings, start, device: machine.device.open()?, progress })
        }
        Action::Eval(run, test) => eval(open::<R>(&run, &machine)?, &test),
        Action::Answer(run, command) => R::Data::answer(&command, open::<R>(&run, &machine)?),
    }
}

fn train<R: Recipe>(training: &Training<R>) -> Result<Outcome> {
    let Training { settings, start, .. } = training;
    if let Some(experiment) = settings.experiment() {
        return experiment(training);
    }
    let data = R::Data::load(settings.data_options()?, settings.train_options(), None)?;
    Ok(match fit_and_test(training, settings, &data, start)? {
        Fitted::Tested(_) => Outcome::Done,
        Fitted::Interrupted(run) => interrupted(R::NAME, &run),
    })
}

/// The end of a training run.
pub(super) enum Fitted {
    Tested(Test),
    Interrupted(Run),
}

/// Trains and tests a model, and completes its run folder.
pub(super) fn fit_and_test<R: Recipe>(
    training: &Training<R>,
    settings: &R,
    data: &R::Data,
    start: &Start,
) -> Result<Fitted> {
    let begin = Instant::now();
    let (run, model, report) = fit(training, settings, data, start)?;
    if report.interrupted {
        return Ok(Fitted::Interrupted(run));
    }
    let device = &training.device;
    let test = data.test(&model, report.epochs.get(report.best_epoch.wrapping_sub(1)), device)?;
    let mut last = Map::from_iter([
        ("final".to_string(), json!(true)),
        ("best_epoch".to_string(), json!(report.best_epoch)),
    ]);
    last.extend(test.record.clone());
    last.insert("seconds".to_string(), json!(begin.elapsed().as_secs_f64()));
    let metric = R::Data::METRIC;
    run.write_final(&report.epochs, metric, &Value::Object(last))?;
    run.write("curves.svg", &curves(&report, metric)?)?;
    if let Some(evaluation) = &test.evaluation {
        let classes = data.about().facts.classes();
        let confusion = evaluation.confusion_matrix(classes.len())?;
        run.write("confusion.svg", &plots::confusion_matrix(&confusion, classes)?)?;
        data.plot(&run, &model, evaluation, device)?;
    }
    let separator = if test.text.contains('\n') { "\n" } else { "; " };
    let dir = run.dir().display();
    say(&format!("{}{separator}best epoch {}; run folder {dir}", test.text, report.best_epoch));
    Ok(Fitted::Tested(test))
}

type ModelOf<R> = <<R as Recipe>::Data as Data>::Model;

/// Trains a model in a new run folder, or continues in the folder of a resumed run.
pub(super) fn fit<R: Recipe>(
    training: &Training<R>,
    settings: &R,
    data: &R::Data,
    start: &Start,
) -> Result<(Run, Box<ModelOf<R>>, Report)> {
    let (options, device) = (settings.train_options(), &training.device);
    let about = data.about();
    let vars = VarMap::new();
    let vb = seeded_var_builder(&vars, options.seed, DType::F32, device);
    let model = settings.model(&about.facts, vb)?;
    let note = data.initialise(&vars)?;
    let mut optimizer = options.optimizer(&vars)?;
    settings.constrain(&mut optimizer)?;
    let task = data.task(&model, device)?;
    let parameters = count_parameters(&vars);
    let mut record = record::<R>(about);
    record.insert("parameters".to_string(), json!(parameters));
    let run = folder(settings, start, device, record)?;
    about.facts.write(&run)?;
    if !training.progress.is_quiet() {
        note.iter().for_each(|note| say(note));
        let [training, validation, test] = about.sizes;
        say(&format!(
            "{}: {parameters} parameters{}; {training} training, {validation} validation, {test} test {} of {}; run \
             folder {}",
            R::NAME,
            about.facts.describe(),
            R::Data::NOUN,
            about.name,
            run.dir().display()
        ));
    }
    let trainer = Trainer {
        options: options.options(task.examples()),
        run: &run,
        progress: training.progress.as_ref(),
    };
    let report = trainer.fit(task.as_ref(), &vars, &mut optimizer)?;
    drop(task);
    Ok((run, model, report))
}

fn eval<R: Recipe>(trained: Trained<R>, test: &<R::Data as Data>::TestOptions) -> Result<Outcome> {
    let Trained { settings, facts, model, device, .. } = trained;
    let data = R::Data::load(settings.data_options()?, settings.train_options(), Some((facts, test)))?;
    say(&data.test(&model, None, &device)?.text);
    Ok(Outcome::Done)
}

/// What `config.json` records about a data set.
pub(super) fn record<R: Recipe>(about: &About<<R::Data as Data>::Facts>) -> Map<String, Value> {
    let mut record = about.facts.record();
    record.insert("data_fingerprint".to_string(), about.fingerprint.clone());
    for (part, size) in ["training", "validation", "test"].iter().zip(about.sizes) {
        record.insert(format!("{part}_{}", R::Data::UNIT), json!(size));
    }
    record
}

/// Opens a run with its best weights.
fn open<R: Recipe>(run: &RunOption, machine: &MachineOptions) -> Result<Trained<R>> {
    let (run, config) = run.open(R::NAME)?;
    let settings: R = recorded_settings(&run, &config)?;
    let facts = <R::Data as Data>::Facts::read(&run, &config)?;
    let device = machine.device.open()?;
    let model = train::load_model(&run.model(), &device, |vb| settings.model(&facts, vb))?;
    Ok(Trained { run, settings, facts, model, device })
}

/// A new run folder that records the device, `facts` and the settings, or the folder of the run to resume.
///
/// # Errors
/// Fails if the folder can't be written, or the data of a resumed run has changed.
pub(super) fn folder<R: Recipe>(
    settings: &R,
    start: &Start,
    device: &Device,
    facts: Map<String, Value>,
) -> Result<Run> {
    if let Some((run, recorded)) = &start.resume {
        // A run of an older version may lack some facts.
        let known = facts.into_iter().filter(|(name, _)| recorded.get(name).is_some());
        run.check_facts(recorded, &Value::Object(known.collect()))?;
        return Ok(run.clone());
    }
    let mut config = json!({ "device": format!("{:?}", device.location()) });
    facts.into_iter().for_each(|(name, fact)| config[name] = fact);
    config["settings"] = serde_json::to_value(settings)?;
    Run::create(R::NAME, start.out.as_deref(), &config)
}

/// Says how to resume an interrupted training run.
pub(super) fn interrupted(binary: &str, run: &Run) -> Outcome {
    say(&format!("interrupted; resume with: {binary} train --resume {}", run.dir().display()));
    Outcome::Interrupted
}

/// Number of trained parameters, without running statistics.
fn count_parameters(vars: &VarMap) -> usize {
    let vars = vars.data().lock().unwrap_or_else(PoisonError::into_inner);
    let is_trained = |name: &str| !BatchNorm2d::BUFFERS.iter().any(|buffer| name.ends_with(buffer));
    vars.iter().filter(|(name, _)| is_trained(name)).map(|(_, var)| var.elem_count()).sum()
}

/// Draws losses and `metric` over epochs.
fn curves(report: &Report, metric: Metric) -> Result<String> {
    let points = |value: fn(&Epoch) -> f64| report.epochs.iter().map(|e| (e.epoch, value(e))).collect();
    let name = metric.name();
    let title = name[..1].to_uppercase() + &name[1..];
    plots::line_charts(&[
        Chart {
            title: "Loss",
            x_label: "epoch",
            y_label: "mean loss",
            lines: vec![
                Line { name: "training", points: points(|e| e.train_loss) },
                Line { name: "validation", points: points(|e| e.validation.loss) },
            ],
        },
        Chart {
            title: &title,
            x_label: "epoch",
            y_label: name,
            lines: vec![Line { name: "validation", points: points(|e| e.validation.metric) }],
        },
    ])
}

/// Splits `examples` into indices for training and for validation.
///
/// If the data set has a validation part, it lies at the indices `validation`. Otherwise the last `--validation`
/// examples are held out, by default a tenth.
pub(super) fn split(
    examples: usize,
    validation: Option<Range<usize>>,
    options: &TrainOptions,
) -> Result<(Vec<u32>, Vec<u32>)> {
    let limit = |training: usize| options.train_limit.unwrap_or(training).min(training) as u32;
    if let Some(Range { start, end }) = validation {
        return Ok(((0..limit(examples)).collect(), (start as u32..end as u32).collect()));
    }
    let held_out = options.validation.unwrap_or(examples.div_ceil(10));
    if held_out >= examples {
        bail!("--validation {held_out}: the training set has only {examples} examples");
    }
    let training = examples - held_out;
    Ok(((0..limit(training)).collect(), (training as u32..examples as u32).collect()))
}

/// Indices of the examples of each part, in a numbering across all parts.
pub(super) struct Parts {
    pub(super) training: Vec<u32>,
    pub(super) validation: Vec<u32>,
    pub(super) test: Vec<u32>,
}

impl Parts {
    /// Splits a data set with parts of the given sizes, which follow one another.
    ///
    /// A missing validation or test part becomes a tenth of the training part.
    pub(super) fn new(
        training: usize,
        validation: Option<usize>,
        test: Option<usize>,
        options: &TrainOptions,
    ) -> Result<Self> {
        let given = training + validation.unwrap_or(0);
        let rest = training - if test.is_none() { training / 10 } else { 0 };
        let test = match test {
            Some(test) => (given as u32..(given + test) as u32).collect(),
            None => (rest as u32..training as u32).collect::<Vec<_>>(),
        };
        ensure!(!test.is_empty(), "the data set has no test part, and is too small to be split");
        let (training, validation) = split(rest, validation.map(|_| training..given), options)?;
        Ok(Self { training, validation, test })
    }

    /// Number of examples in the training, validation and test part.
    pub(super) fn sizes(&self) -> [u64; 3] {
        [&self.training, &self.validation, &self.test].map(|part| part.len() as u64)
    }
}
