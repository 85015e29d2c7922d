//! Cross-validation of classifiers of sentences.

use super::Outcome;
use super::flow::{self, Fitted};
use super::recipe::{About, CLASSES, Data, Experiment, Facts, Start, Training};
use super::report;
use super::sentences::{SentenceData, TextOptions};
use crate::train::{Metric, say};
use anyhow::{Context, Result};
use serde_json::{Map, json};
use std::time::Instant;

/// Cross-validation, if `--folds` asks for it.
pub fn cross_validation(options: &TextOptions) -> Option<Experiment<SentenceData>> {
    options.folds.map(|_| Box::new(cross_validate) as Experiment<SentenceData>)
}

/// Trains one model per fold, each in its own folder in the run folder, and reports the mean accuracy.
fn cross_validate(training: &Training<SentenceData>) -> Result<Outcome> {
    let begin = Instant::now();
    let Training { settings, start, device, .. } = training;
    let options = settings.data_options()?;
    let folds = options.text.folds.context("--folds: not given")?;
    let mut data: SentenceData = flow::load(training)?;
    // Find everything that a fold lacks before the first one is trained.
    for fold in 0..folds {
        data.select_fold(fold, folds, &training.options())?;
    }
    let About { facts, fingerprints, .. } = data.about();
    // Each fold has its own vocabulary, and tests on a part of all data.
    let record = Map::from_iter([
        ("data_fingerprint".to_string(), fingerprints.clone()),
        (CLASSES.to_string(), json!(facts.classes())),
        ("training_examples".to_string(), json!(data.words.len())),
    ]);
    let run = flow::folder(settings, start, device, record)?;
    data.keep_files(&run)?;
    let mut accuracies = vec![];
    for fold in 0..folds {
        data.select_fold(fold, folds, &training.options())?;
        let start = Start::part(settings.binary, &run, &format!("fold-{}", fold + 1))?;
        match flow::fit_and_test(training, settings, &data, &start)? {
            Fitted::Tested(test) => accuracies.extend(test.evaluation.map(|test| test.accuracy())),
            Fitted::Interrupted => return Ok(Outcome::Interrupted),
        }
    }
    let mean = accuracies.iter().sum::<f64>() / folds as f64;
    let variance = accuracies.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (folds - 1) as f64;
    let deviation = variance.sqrt();
    let last = json!({
        "final": true,
        "test_accuracy": mean,
        "deviation": deviation,
        "folds": accuracies,
        "seconds": begin.elapsed().as_secs_f64(),
    });
    run.write_final(&[], Metric::ACCURACY, &last)?;
    let text = format!(
        "test accuracy {:.2}% over {folds} folds, standard deviation {:.2}",
        100.0 * mean,
        100.0 * deviation
    );
    report::write(&run, training, settings, start, &text, &[])?;
    say(&format!("{text}; run folder {}", run.dir().display()));
    Ok(Outcome::Done)
}
