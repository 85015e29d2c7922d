//! Training runs give the same bits when repeated, and when interrupted and resumed.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarMap;
use candle_textbook::data::{Augmentation, Distortion, digits};
use candle_textbook::models::lenet::{Config, LeNet};
use candle_textbook::nn::{Cost, Mode, seeded_var_builder};
use candle_textbook::optim::{Adam, Clip, Curve, Lbfgs, Method, NewtonCg, Optimizer, Schedule, Sgd};
use candle_textbook::train::{
    Epoch, ImageClassification, Metric, Quiet, Report, Run, Score, Stop, Task, Trainer, TrainerOptions,
};
use std::path::Path;

/// Stands for the next validation instead of a step.
const VALIDATION: u64 = u64::MAX;

/// A task that interrupts training in step `at`.
struct Interrupted<'a> {
    task: ImageClassification<'a>,
    at: Option<u64>,
    stop: Stop,
}

impl Task for Interrupted<'_> {
    fn examples(&self) -> usize {
        self.task.examples()
    }

    fn loss(&self, batch: &[u32], mode: Mode) -> Result<Tensor> {
        if matches!(mode, Mode::Train { step, .. } if Some(step) == self.at) {
            self.stop.request();
        }
        self.task.loss(batch, mode)
    }

    fn validate(&self) -> Result<Score> {
        if self.at == Some(VALIDATION) {
            self.stop.request();
        }
        self.task.validate()
    }

    fn metric(&self) -> Metric {
        self.task.metric()
    }
}

/// Trains a small LeNet with everything that has a state or draws random values.
///
/// It trains for three epochs of seven steps, or for five steps if the method takes all examples at once.
fn train(dir: &Path, seed: u64, method: Method, interrupt_at: Option<u64>) -> Result<Report> {
    let binary = "test";
    let run = match dir.exists() {
        true => Run::open(binary, Some(dir))?.0,
        false => Run::create(binary, Some(dir), &serde_json::json!({ "binary": binary }))?,
    };
    let (images, _) = digits(70, 0, 0)?;
    let indices: Vec<u32> = (0..70).collect();
    let is_full_batch = method.is_full_batch();
    let dropout = if is_full_batch { 0. } else { 0.3 };
    let config = Config { channels: vec![2, 3], hidden: vec![8], dropout, ..Config::default() };
    let vars = VarMap::new();
    let model = LeNet::new(&config, seeded_var_builder(&vars, seed, DType::F32, &Device::Cpu))?;
    let mut optimizer = Optimizer::new(method, &vars)?;
    let mut options = TrainerOptions::default();
    options.epochs = 3;
    options.batch_size = 8;
    options.learning_rate = 1e-2;
    options.schedule = Schedule { warmup_steps: 2, curve: Curve::one_cycle() };
    options.clip = Clip::Norm(1.0);
    options.seed = seed;
    options.keep_checkpoint = true;
    let options = match is_full_batch {
        true => {
            let mut changed = options;
            changed.epochs = 5;
            changed.batch_size = 50;
            changed.learning_rate = 1.0;
            changed.schedule = Curve::Constant.into();
            changed.clip = Clip::None;
            changed
        }
        false => options,
    };
    let augmentation = (!is_full_batch).then(|| Augmentation::Distort(Distortion::default()));
    let task = ImageClassification {
        model: &model,
        cost: Cost::default(),
        images: &images,
        training: &indices[..50],
        validation: &indices[50..],
        augmentation,
        label_smoothing: 0.1,
        device: &Device::Cpu,
    };
    let stop = Stop::default();
    let task = Interrupted { task, at: interrupt_at, stop: stop.clone() };
    Trainer { options, run: Some(&run), progress: &Quiet, stop, processes: None }.fit(
        &task,
        &vars,
        &mut optimizer,
    )
}

/// The results of a run, except its timings.
#[derive(PartialEq)]
struct Outcome {
    model: Vec<u8>,
    checkpoint: Vec<(String, Vec<u8>)>,
    epochs: Vec<Epoch>,
    best_epoch: usize,
}

fn outcome(dir: &Path, report: Report) -> Result<Outcome> {
    let file = std::fs::read(dir.join("checkpoint.safetensors"))?;
    let tensors = safetensors::SafeTensors::deserialize(&file)?.tensors();
    let mut checkpoint: Vec<_> =
        tensors.into_iter().map(|(name, view)| (name, view.data().to_vec())).collect();
    checkpoint.sort();
    let untimed = |epoch| Epoch { seconds: 0.0, examples_per_second: 0.0, ..epoch };
    let epochs = report.epochs.into_iter().map(untimed).collect();
    let model = std::fs::read(dir.join("model.safetensors"))?;
    Ok(Outcome { model, checkpoint, epochs, best_epoch: report.best_epoch })
}

#[test]
fn an_interrupted_run_resumes_to_the_same_bits() -> Result<()> {
    let momentum = Sgd { momentum: 0.9, nesterov: true, weight_decay: 1e-3, ..Sgd::default() };
    for method in [Method::from(Adam::adamw()), momentum.into()] {
        let dir = tempfile::tempdir()?;
        let whole = dir.path().join("whole");
        let expected = outcome(&whole, train(&whole, 1, method, None)?)?;
        // The first step, the last of an epoch, one in the middle, the very last, several in turn, and validations.
        for interruptions in
            [&[0][..], &[6], &[9], &[20], &[2, 7, 8, 13], &[VALIDATION, VALIDATION, 9, VALIDATION]]
        {
            let cut = dir.path().join(format!("{interruptions:?}"));
            for &at in interruptions {
                assert!(train(&cut, 1, method, Some(at))?.interrupted);
            }
            let found = outcome(&cut, train(&cut, 1, method, None)?)?;
            assert!(found == expected, "interrupted after {interruptions:?}: {:?}", found.epochs);
        }
    }
    Ok(())
}

#[test]
fn an_interrupted_solver_resumes_to_the_same_bits() -> Result<()> {
    for method in [Method::from(Lbfgs { history_size: 2, ..Lbfgs::default() }), NewtonCg::default().into()] {
        let dir = tempfile::tempdir()?;
        let whole = dir.path().join("whole");
        let report = train(&whole, 1, method, None)?;
        assert!(report.epochs[4].train_loss < report.epochs[0].train_loss, "{:?}", report.epochs);
        let expected = outcome(&whole, report)?;
        let cut = dir.path().join("cut");
        for at in [0, 2, 3] {
            assert!(train(&cut, 1, method, Some(at))?.interrupted);
        }
        let found = outcome(&cut, train(&cut, 1, method, None)?)?;
        assert!(found == expected, "{method:?}: {:?}", found.epochs);
    }
    Ok(())
}

#[test]
fn the_seed_determines_every_bit() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let model = |name: &str, seed| -> Result<Vec<u8>> {
        let dir = dir.path().join(name);
        train(&dir, seed, Adam::adamw().into(), None)?;
        Ok(std::fs::read(dir.join("model.safetensors"))?)
    };
    let first = model("first", 1)?;
    assert!(first == model("again", 1)?);
    assert!(first != model("other", 2)?);
    Ok(())
}
