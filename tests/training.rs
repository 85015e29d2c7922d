//! How training ends, what it refuses, and the files it writes.

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::VarMap;
use candle_textbook::data::{Level, TextStream};
use candle_textbook::models::language_model::{Config, LanguageModel};
use candle_textbook::nn::{Cell, Cost, Mode, seeded_var_builder};
use candle_textbook::optim::{Curve, Optimizer, Sgd};
use candle_textbook::train::{
    Evaluation, LanguageModelling, LanguageModellingConfig, Metric, Prediction, Quiet, Report, Run, Score,
    Task, Trainer, TrainerOptions, Windowing, evaluate_text,
};
use std::path::Path;
use tempfile::TempDir;

/// Minimises w² and reports scripted validation metrics, one per epoch.
struct Scripted {
    w: Var,
    /// The step with a loss of NaN.
    nan_at: Option<u64>,
    metrics: Vec<f64>,
    epoch: std::cell::Cell<usize>,
    /// Whether the loss has no graph.
    detached: bool,
}

impl Task for Scripted {
    fn examples(&self) -> usize {
        5
    }

    fn loss(&self, _: &[u32], mode: Mode) -> Result<Tensor> {
        let Mode::Train { step, epoch, .. } = mode else { candle_core::bail!("not a training step") };
        self.epoch.set(epoch);
        let loss = self.w.sqr()?;
        match self.detached {
            true => Ok(loss.detach()),
            false if Some(step) == self.nan_at => loss.affine(f64::NAN, 0.0),
            false => Ok(loss),
        }
    }

    fn validate(&self) -> Result<Score> {
        Ok(Score { loss: 1.0, metric: self.metrics[self.epoch.get()] })
    }

    fn metric(&self) -> Metric {
        Metric::Accuracy
    }
}

/// Trains on `Scripted` in the run folder `dir`, new or not; also returns the final w.
fn train_in(
    dir: &Path,
    nan_at: Option<u64>,
    metrics: &[f64],
    options: TrainerOptions,
) -> (anyhow::Result<Report>, f64) {
    let run = match dir.join("config.json").exists() {
        true => Run::open("test", Some(dir)).unwrap().0,
        false => Run::create("test", Some(dir), &serde_json::json!({})).unwrap(),
    };
    let (vars, w) = (VarMap::new(), Var::new(1f64, &Device::Cpu).unwrap());
    vars.data().lock().unwrap().insert("w".to_string(), w.clone());
    let (metrics, epoch) = (metrics.to_vec(), Default::default());
    let task = Scripted { w: w.clone(), nan_at, metrics, epoch, detached: false };
    let mut optimizer = Optimizer::new(Sgd::default(), &vars).unwrap();
    let report = Trainer { options, run: &run, progress: &Quiet }.fit(&task, &vars, &mut optimizer);
    (report, w.to_scalar::<f64>().unwrap())
}

/// Three steps per epoch, each of which multiplies w by 0.98; also returns the run folder and the final w.
fn train(
    nan_at: Option<u64>,
    metrics: &[f64],
    options: TrainerOptions,
) -> (anyhow::Result<Report>, TempDir, f64) {
    let options = TrainerOptions { epochs: metrics.len(), batch_size: 2, learning_rate: 0.01, ..options };
    let dir = tempfile::tempdir().unwrap();
    let (report, w) = train_in(dir.path(), nan_at, metrics, options);
    (report, dir, w)
}

#[test]
fn a_loss_of_nan_is_an_error_that_names_the_step_and_the_last_checkpoint() {
    for (nan_at, checkpoint_every, saved_step) in
        [(0, None, None), (2, None, None), (2, Some(2), Some(2)), (4, None, Some(3)), (5, Some(4), Some(4))]
    {
        let options = TrainerOptions { checkpoint_every, ..TrainerOptions::default() };
        let (report, dir, _) = train(Some(nan_at), &[1.0, 2.0, 3.0], options);
        let message = report.unwrap_err().to_string();
        assert!(message.contains(&format!("step {} is NaN", nan_at + 1)), "{message}");
        let path = dir.path().join("checkpoint.safetensors");
        assert_eq!(path.exists(), saved_step.is_some());
        match saved_step {
            None => assert!(message.contains("no checkpoint yet"), "{message}"),
            Some(step) => {
                assert!(message.contains(&path.display().to_string()), "{message}");
                let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
                let w = tensors["parameters.w"].to_scalar::<f64>().unwrap();
                assert!((w - 0.98f64.powi(step)).abs() < 1e-12, "{w} after {step} steps");
            }
        }
    }
}

#[test]
fn patience_ends_training_with_the_weights_of_the_best_epoch() {
    let options = TrainerOptions { patience: Some(2), ..TrainerOptions::default() };
    let (report, dir, w) = train(None, &[1.0, 3.0, 2.0, 3.0, 4.0], options);
    let report = report.unwrap();
    assert_eq!((report.epochs.len(), report.best_epoch, report.interrupted), (4, 2, false));
    assert!((w - 0.98f64.powi(6)).abs() < 1e-12, "{w}");
    let saved = candle_core::safetensors::load(dir.path().join("model.safetensors"), &Device::Cpu).unwrap();
    assert_eq!(saved["w"].to_scalar::<f64>().unwrap(), w);
    let lines = std::fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    assert_eq!((&lines[3]["step"], &lines[3]["val_accuracy"]), (&12.into(), &3.0.into()));
}

#[test]
fn the_plateau_schedule_lowers_the_rate_and_ends_training() {
    let curve = Curve::Plateau { factor: 0.5, patience: 1, stop_at: 0.25 };
    let options = TrainerOptions { schedule: curve.into(), ..TrainerOptions::default() };
    let report = train(None, &[1.0; 9], options).0.unwrap();
    let rates: Vec<f64> = report.epochs.iter().map(|epoch| epoch.learning_rate).collect();
    assert_eq!(rates, [0.01, 0.01, 0.005]);
}

#[test]
fn huge_option_values_do_not_overflow() {
    let options = TrainerOptions {
        epochs: usize::MAX,
        batch_size: usize::MAX,
        learning_rate: 0.01,
        schedule: Curve::Cosine.into(),
        patience: Some(2),
        checkpoint_every: Some(u64::MAX),
        ..TrainerOptions::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let report = train_in(dir.path(), None, &[1.0; 3], options).0.unwrap();
    assert_eq!((report.epochs.len(), report.epochs[2].step), (3, 3));
}

#[test]
fn a_loss_without_a_graph_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let run = Run::create("test", Some(dir.path()), &serde_json::json!({})).unwrap();
    let (vars, w) = (VarMap::new(), Var::new(1f64, &Device::Cpu).unwrap());
    vars.data().lock().unwrap().insert("w".to_string(), w.clone());
    let task = Scripted { w, nan_at: None, metrics: vec![1.0], epoch: Default::default(), detached: true };
    let mut optimizer = Optimizer::new(Sgd::default(), &vars).unwrap();
    let options = TrainerOptions { epochs: 1, ..TrainerOptions::default() };
    let report = Trainer { options, run: &run, progress: &Quiet }.fit(&task, &vars, &mut optimizer);
    let message = report.unwrap_err().to_string();
    assert!(message.contains("loss of step 1 depends on no parameter"), "{message}");
}

#[test]
fn a_checkpoint_that_does_not_fit_the_number_of_steps_is_refused() {
    let options = TrainerOptions { epochs: 1, batch_size: 2, ..TrainerOptions::default() };
    let dir = tempfile::tempdir().unwrap();
    train_in(dir.path(), None, &[1.0; 2], options.clone()).0.unwrap();
    let path = dir.path().join("checkpoint.safetensors");
    let checkpoint = std::fs::read(&path).unwrap();

    // Another batch size than the run's.
    let other = TrainerOptions { epochs: 2, batch_size: 1, ..options.clone() };
    let message = train_in(dir.path(), None, &[1.0; 2], other).0.unwrap_err().to_string();
    assert!(message.contains("step 3") && message.contains("5 steps per epoch"), "{message}");

    // Counts at the end of their range, in place of those saved.
    let text = String::from_utf8_lossy(&checkpoint[8..]).into_owned();
    let header_length = u64::from_le_bytes(checkpoint[..8].try_into().unwrap()) as usize;
    for (count, value) in [("step", u64::MAX), ("steps_in_epoch", u64::MAX), ("steps_in_epoch", 1 << 60)] {
        let header = &text[..header_length];
        let start = header.find(r#"\"best_epoch\":1,\"step\":3,"#).unwrap();
        assert!(start > 0);
        let old = match count {
            "step" => r#"\"step\":3,\"steps_in_epoch\":0,"#.to_string(),
            _ => r#"\"steps_in_epoch\":0,"#.to_string(),
        };
        let new = match count {
            "step" => format!(r#"\"step\":{value},\"steps_in_epoch\":0,"#),
            _ => format!(r#"\"steps_in_epoch\":{value},"#),
        };
        let header = header.trim_end().replacen(&old, &new, 1);
        let mut damaged = (header.len() as u64).to_le_bytes().to_vec();
        damaged.extend_from_slice(header.as_bytes());
        damaged.extend_from_slice(&checkpoint[8 + header_length..]);
        std::fs::write(&path, damaged).unwrap();
        let message = train_in(dir.path(), None, &[1.0; 2], options.clone()).0.unwrap_err().to_string();
        assert!(message.contains("steps per epoch"), "{count} {value}: {message}");
    }

    // A longer run with the same steps resumes.
    std::fs::write(&path, checkpoint).unwrap();
    let longer = TrainerOptions { epochs: 2, ..options };
    assert_eq!(train_in(dir.path(), None, &[1.0; 2], longer).0.unwrap().epochs.len(), 2);
}

#[test]
fn a_run_does_not_resume_with_other_data() {
    let dir = tempfile::tempdir().unwrap();
    let facts = |text: &str| {
        let text = TextStream::from_memory("text", text, Level::Char).unwrap();
        serde_json::json!({ "tokens": text.len(), "fingerprint": text.fingerprint() })
    };
    Run::create("test", Some(dir.path()), &facts("to be")).unwrap();
    let (run, config) = Run::open("test", Some(dir.path())).unwrap();
    run.check_facts(&config, &facts("to be")).unwrap();
    let mut unrecorded = facts("to be");
    unrecorded["classes"] = serde_json::json!(["a"]);
    for (changed, field) in
        [(facts("to be or not"), "tokens"), (facts("to me"), "fingerprint"), (unrecorded, "classes")]
    {
        let message = run.check_facts(&config, &changed).unwrap_err().to_string();
        assert!(message.contains(&format!("cannot resume: found {field} ")), "{message}");
    }
}

#[test]
fn the_confusion_matrix_counts_each_pair_and_refuses_unknown_classes() {
    let predictions = [(0, 0), (0, 2), (2, 0), (0, 2)].map(|(label, predicted)| Prediction {
        label,
        predicted,
        probability: 0.5,
    });
    let evaluation = Evaluation { loss: 0.0, predictions: predictions.to_vec() };
    assert_eq!(evaluation.correct(), 1);
    let expected = [vec![1, 0, 2], vec![0, 0, 0], vec![1, 0, 0]];
    assert_eq!(evaluation.confusion_matrix(3).unwrap(), expected);
    for classes in [0, 1, 2] {
        let message = evaluation.confusion_matrix(classes).unwrap_err().to_string();
        assert!(message.contains(&format!("expected below {classes}")), "{message}");
    }
}

#[test]
fn an_evaluation_without_examples_has_accuracy_0() -> Result<()> {
    let evaluation = Evaluation::from_batches(Cost::SoftmaxCrossEntropy, [])?;
    assert_eq!((evaluation.loss, evaluation.accuracy(), evaluation.correct()), (0.0, 0.0, 0));
    Ok(())
}

/// Calls `check` with the configuration of a small language model on a text of 200 tokens.
fn with_language_model(check: impl FnOnce(&LanguageModellingConfig, &VarMap)) {
    let text = TextStream::from_memory("letters", "abcab".repeat(40), Level::Char).unwrap();
    let vocabulary = text.vocabulary(0..200, 1, None).unwrap();
    let (vars, device) = (VarMap::new(), Device::Cpu);
    let config = Config {
        vocabulary: vocabulary.len(),
        embedding: Some(4),
        cell: Cell::Gru,
        hidden: 5,
        layers: 1,
        dropout: 0.0,
        tie_weights: false,
    };
    let vb = seeded_var_builder(&vars, 0, DType::F32, &device);
    let model = LanguageModel::new(&config, vb).unwrap();
    let config = LanguageModellingConfig {
        model: &model,
        vocabulary: &vocabulary,
        text: &text,
        training: 0..161,
        validation: 161..200,
        windowing: Windowing { streams: 4, window: 10 },
        seed: 0,
        device: &device,
    };
    check(&config, &vars);
}

#[test]
fn language_modelling_trains_only_with_a_batch_of_all_streams() {
    with_language_model(|config, vars| {
        for (batch_size, is_right) in [(4, true), (1, false), (2, false), (3, false), (5, false), (8, false)]
        {
            let task = LanguageModelling::new(config.clone()).unwrap();
            assert_eq!(task.examples(), 16);
            let dir = tempfile::tempdir().unwrap();
            let run = Run::create("test", Some(dir.path()), &serde_json::json!({})).unwrap();
            let mut optimizer = Optimizer::new(Sgd::default(), vars).unwrap();
            let options = TrainerOptions { epochs: 1, batch_size, ..TrainerOptions::default() };
            let report = Trainer { options, run: &run, progress: &Quiet }.fit(&task, vars, &mut optimizer);
            match report {
                Ok(report) => assert!(is_right && report.epochs[0].step == 4, "batch size {batch_size}"),
                Err(error) => {
                    assert!(!is_right, "batch size {batch_size}: {error:#}");
                    assert!(error.to_string().contains("number of streams"), "{error:#}");
                }
            }
        }
        let task = LanguageModelling::new(config.clone()).unwrap();
        let mode = Mode::Train { seed: 0, epoch: 0, step: 0 };
        for batch in [&[][..], &[1, 0, 2, 3], &[0, 1, 2, 7], &[2, 3, 4, 5]] {
            assert!(task.loss(batch, mode).is_err(), "{batch:?}");
        }
        assert!(task.loss(&[4, 5, 6, 7], mode).is_ok());
    });
}

#[test]
fn language_modelling_refuses_ranges_and_windows_that_do_not_fit_the_text() {
    with_language_model(|config, _| {
        let max = usize::MAX;
        for (streams, window) in [(0, 10), (4, 0), (4, 41), (max, 1), (1, max), (max, max), (max, 2)] {
            let config =
                LanguageModellingConfig { windowing: Windowing { streams, window }, ..config.clone() };
            assert!(LanguageModelling::new(config).is_err(), "{streams} streams, window {window}");
        }
        #[allow(clippy::reversed_empty_ranges)]
        for (training, validation) in
            [(0..201, 161..200), (0..u64::MAX, 0..10), (0..161, 161..201), (100..0, 0..200), (0..161, 9..8)]
        {
            let shown = format!("{training:?}, {validation:?}");
            let config = LanguageModellingConfig { training, validation, ..config.clone() };
            assert!(LanguageModelling::new(config).is_err(), "{shown}");
        }
    });
}

#[test]
fn a_text_is_evaluated_with_windows_of_any_size() {
    with_language_model(|config, _| {
        let &LanguageModellingConfig { model, vocabulary, text, device, .. } = config;
        let loss = |streams, window| {
            evaluate_text(model, vocabulary, text, 0..200, Windowing { streams, window }, device)
        };
        let expected = loss(1, 10).unwrap();
        for (streams, window) in [(1, 1), (1, usize::MAX), (usize::MAX, usize::MAX)] {
            let found = loss(streams, window).unwrap();
            assert!(
                (found - expected).abs() < 1e-6,
                "{streams} streams, window {window}: {found}, {expected}"
            );
        }
        assert!(loss(usize::MAX, 1).is_ok());
        assert!(loss(0, 10).is_err() && loss(1, 0).is_err());
    });
}
