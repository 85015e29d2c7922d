//! When and how a training ends, and what it leaves behind.

use candle_core::{Device, Result, Tensor, Var};
use candle_nn::VarMap;
use candle_textbook::nn::Mode;
use candle_textbook::optim::{Curve, Optimizer, Sgd};
use candle_textbook::train::{Metric, Quiet, Report, Run, Score, Task, Trainer, TrainerOptions};
use std::cell::Cell;
use tempfile::TempDir;

/// Minimises w², validates with scores that were written down before, and has a loss of NaN where told.
struct Scripted {
    w: Var,
    nan_at: Option<u64>,
    metrics: Vec<f64>,
    validated: Cell<usize>,
}

impl Task for Scripted {
    fn examples(&self) -> usize {
        5
    }

    fn loss(&self, _: &[u32], mode: Mode) -> Result<Tensor> {
        let loss = self.w.sqr()?;
        match mode {
            Mode::Train { step, .. } if Some(step) == self.nan_at => loss.affine(f64::NAN, 0.0),
            _ => Ok(loss),
        }
    }

    fn validate(&self) -> Result<Score> {
        let metric = self.metrics[self.validated.replace(self.validated.get() + 1)];
        Ok(Score { loss: 1.0, metric })
    }

    fn metric(&self) -> Metric {
        Metric::Accuracy
    }
}

/// Three steps an epoch, each multiplying w by 0.98. Also gives the folder and the final w.
fn train(
    nan_at: Option<u64>,
    metrics: &[f64],
    options: TrainerOptions,
) -> (anyhow::Result<Report>, TempDir, f64) {
    let options = TrainerOptions { epochs: metrics.len(), batch_size: 2, learning_rate: 0.01, ..options };
    let dir = tempfile::tempdir().unwrap();
    let run = Run::create("test", Some(dir.path()), &serde_json::json!({})).unwrap();
    let (vars, w) = (VarMap::new(), Var::new(1f64, &Device::Cpu).unwrap());
    vars.data().lock().unwrap().insert("w".to_string(), w.clone());
    let task = Scripted { w: w.clone(), nan_at, metrics: metrics.to_vec(), validated: Cell::new(0) };
    let mut optimizer = Optimizer::new(Sgd::default(), &vars).unwrap();
    let report = Trainer { options, run: &run, progress: &Quiet }.fit(&task, &vars, &mut optimizer);
    (report, dir, w.to_scalar::<f64>().unwrap())
}

#[test]
fn a_loss_that_is_no_number_names_the_step_and_the_last_checkpoint() {
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
fn patience_ends_training_and_the_best_epochs_weights_are_left() {
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
