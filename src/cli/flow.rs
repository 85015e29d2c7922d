//! Steps that every training from the command line takes.

use super::{Outcome, TrainOptions};
use crate::nn::BatchNorm2d;
use crate::plots::{self, Chart, Line};
use crate::train::{Epoch, Evaluation, Metric, Report, Run, say};
use anyhow::{Result, bail, ensure};
use candle_core::Device;
use candle_nn::VarMap;
use serde::Serialize;
use serde_json::{Value, json};
use std::ops::Range;
use std::path::Path;
use std::sync::PoisonError;
use std::time::Instant;

/// Indices of `examples` for training, and those for validation: where the data set has none, the last `--validation` ones
/// of the examples, or a tenth.
pub(super) fn split(
    examples: usize,
    validation: Option<Range<usize>>,
    options: &TrainOptions,
) -> Result<(Vec<u32>, Vec<u32>)> {
    if let Some(Range { start, end }) = validation {
        let used = options.train_limit.unwrap_or(examples).min(examples);
        return Ok(((0..used as u32).collect(), (start as u32..end as u32).collect()));
    }
    let validation = options.validation.unwrap_or(examples.div_ceil(10));
    if validation >= examples {
        bail!("--validation {validation}: the training set has only {examples} examples");
    }
    let training = examples - validation;
    let used = options.train_limit.unwrap_or(training).min(training);
    Ok(((0..used as u32).collect(), (training as u32..examples as u32).collect()))
}

/// Which examples are for what, where those of all parts of a data set are counted through.
#[derive(Clone)]
pub(super) struct Parts {
    pub(super) training: Vec<u32>,
    pub(super) validation: Vec<u32>,
    pub(super) test: Vec<u32>,
}

impl Parts {
    /// Of a data set whose training, validation and test parts have so many examples; where it lacks the latter, they
    /// are a tenth of the training part each.
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
        ensure!(!test.is_empty(), "the data set has no test part, and is too small to be cut");
        let (training, validation) = split(rest, validation.map(|_| training..given), options)?;
        Ok(Self { training, validation, test })
    }
}

/// How many numbers a model learns: running statistics are not among them.
pub(super) fn size(vars: &VarMap) -> usize {
    let vars = vars.data().lock().unwrap_or_else(PoisonError::into_inner);
    let learned = |name: &str| !BatchNorm2d::BUFFERS.iter().any(|buffer| name.ends_with(buffer));
    vars.iter().filter(|(name, _)| learned(name)).map(|(_, var)| var.elem_count()).sum()
}

/// A new run folder that records the device, `facts` of data and model, and the settings; or the folder of the run to go on
/// with, whose data must still be of the same sizes.
pub(super) fn folder(
    binary: &str,
    (resume, out): (Option<(Run, Value)>, Option<&Path>),
    device: &Device,
    facts: Value,
    settings: &impl Serialize,
) -> Result<Run> {
    let mut config = json!({ "device": format!("{:?}", device.location()) });
    for (name, fact) in facts.as_object().into_iter().flatten() {
        config[name] = fact.clone();
    }
    config["settings"] = serde_json::to_value(settings)?;
    let Some((run, recorded)) = resume else { return Run::create(binary, out, &config) };
    for (part, kind) in
        ["training", "validation", "test"].iter().flat_map(|part| [(part, "examples"), (part, "tokens")])
    {
        let what = format!("{part}_{kind}");
        let (found, expected) = (&config[&what], &recorded[&what]);
        let dir = run.dir().display();
        ensure!(found == expected, "{dir}: this run had {expected} {what}, but the data now has {found}");
    }
    Ok(run)
}

/// Tells how to go on with a training that was interrupted.
pub(super) fn interrupted(binary: &str, run: &Run) -> Outcome {
    say(&format!("interrupted; go on with: {binary} train --resume {}", run.dir().display()));
    Outcome::Interrupted
}

/// Ends a classifier's training: records the test's `evaluation`, draws the curves and the confusion of `classes`, then what
/// else the model has to show, and tells the result.
pub(super) fn conclude(
    (run, report): (&Run, &Report),
    evaluation: &Evaluation,
    classes: &[String],
    start: Instant,
    draw: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let last = json!({
        "final": true,
        "best_epoch": report.best_epoch,
        "test_loss": evaluation.loss,
        "test_accuracy": evaluation.accuracy(),
        "seconds": start.elapsed().as_secs_f64(),
    });
    run.write_final(&report.epochs, Metric::Accuracy, &last)?;
    run.write("curves.svg", &curves(report, Metric::Accuracy)?)?;
    run.write(
        "confusion.svg",
        &plots::confusion_matrix(&evaluation.confusion_matrix(classes.len())?, classes)?,
    )?;
    draw()?;
    let (result, dir) = (result(evaluation), run.dir().display());
    say(&format!("{result}; best epoch {}; run folder {dir}", report.best_epoch));
    Ok(())
}

/// A classifier's test result in words.
pub(super) fn result(evaluation: &Evaluation) -> String {
    let total = evaluation.predictions.len();
    let right = evaluation.correct();
    let accuracy = 100.0 * evaluation.accuracy();
    format!("test accuracy {accuracy:.2}% ({right} of {total}), loss {:.4}", evaluation.loss)
}

/// The picture of losses and `metric` over epochs.
pub(super) fn curves(report: &Report, metric: Metric) -> Result<String> {
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
