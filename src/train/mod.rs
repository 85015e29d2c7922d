//! Training: one loop for every model, the run folder it writes, evaluation and pictures.

mod classify;
mod language;
mod progress;
mod run;
mod sentences;

pub use classify::{Evaluation, ImageClassification, evaluate};
pub use language::{LanguageModelling, TextGenerator, line_score};
pub use progress::{Progress, say};
pub use run::{Run, load_model, load_pretrained, load_weights, save_weights, write_file};
pub use sentences::{SentenceClassification, Sentences, Tagged, Tagging};

use crate::nn::Mode;
use crate::optim::{Clip, Optimizer, PlateauState, Schedule};
use crate::rng;
use anyhow::{Result, bail, ensure};
use candle_core::{DType, Tensor};
use candle_nn::VarMap;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Set by a signal handler: the loop then saves a checkpoint after the step it is in, and returns.
pub static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// What is learned: a model with its data.
pub trait Task {
    /// How many training examples there are.
    fn examples(&self) -> usize;

    /// Told at the start of an epoch, or where one is gone on with, which batches will come, for a task that has its
    /// examples read ahead.
    fn announce(&self, _batches: &[&[u32]]) {}

    /// The mean loss, a scalar, of the training examples `batch`.
    ///
    /// # Errors
    /// Those of the model.
    fn loss(&self, batch: &[u32], mode: Mode) -> candle_core::Result<Tensor>;

    /// How well the model does on validation data now.
    ///
    /// # Errors
    /// Those of the model.
    fn validate(&self) -> candle_core::Result<Score>;

    /// What [`Score::metric`] is.
    fn metric(&self) -> Metric;

    /// Whether the examples of an epoch are to come in their order, not in one drawn anew.
    fn in_order(&self) -> bool {
        false
    }

    /// What the next step takes over from the last one, for the checkpoint: a recurrent state.
    ///
    /// # Errors
    /// Those of the model.
    fn carried(&self) -> candle_core::Result<HashMap<String, Tensor>> {
        Ok(HashMap::new())
    }

    /// Takes over what [`carried`](Self::carried) gave.
    ///
    /// # Errors
    /// When it does not fit the task.
    fn carry(&self, carried: HashMap<String, Tensor>) -> Result<()> {
        ensure!(carried.is_empty(), "found a carried state, expected none");
        Ok(())
    }

    /// Something to show after an epoch, such as a text that the model writes.
    ///
    /// # Errors
    /// Those of the model.
    fn sample(&self) -> Result<Option<String>> {
        Ok(None)
    }
}

/// What tells how good a model is, besides its loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Share of examples whose class was said.
    Accuracy,
    /// Harmonic mean of precision and recall.
    F1,
    /// `exp` of the mean loss a token.
    Perplexity,
}

impl Metric {
    /// Its name in `metrics.jsonl`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::F1 => "f1",
            Self::Perplexity => "perplexity",
        }
    }

    /// The value for the reader.
    pub fn format(self, value: f64) -> String {
        match self {
            Self::Accuracy | Self::F1 => format!("{:6.2}%", 100.0 * value),
            Self::Perplexity => format!("{value:6.3}"),
        }
    }

    /// The value, or its negative where less is better.
    fn goodness(self, value: f64) -> f64 {
        if self == Self::Perplexity { -value } else { value }
    }
}

/// Mean loss and a metric.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Score {
    pub loss: f64,
    pub metric: f64,
}

impl Score {
    /// Whether this is better: by the metric, then by the loss.
    fn beats(&self, other: &Self, metric: Metric) -> bool {
        let [own, others] = [self, other].map(|score| metric.goodness(score.metric));
        own > others || (own == others && self.loss < other.loss)
    }
}

/// How long and in what steps to train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Options {
    pub epochs: usize,
    pub batch_size: usize,
    pub learning_rate: f64,
    pub schedule: Schedule,
    pub clip: Clip,
    /// Seed of the shuffles and of every draw made in a training step.
    pub seed: u64,
    /// Stop after so many epochs without a better validation score.
    pub patience: Option<usize>,
    /// Save a checkpoint every so many steps, besides the one at the end of each epoch.
    pub checkpoint_every: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            epochs: 10,
            batch_size: 64,
            learning_rate: 1e-3,
            schedule: Schedule::default(),
            clip: Clip::None,
            seed: 42,
            patience: None,
            checkpoint_every: None,
        }
    }
}

/// One epoch, as `metrics.jsonl` tells it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Counted from 1.
    pub epoch: usize,
    /// Steps since the start of training.
    pub step: u64,
    /// Mean loss of the training batches, each before its step.
    pub train_loss: f64,
    pub validation: Score,
    /// Euclidean norm of all gradients together, before clipping: the mean over the steps, and the largest.
    pub gradient_norm: f64,
    pub largest_gradient_norm: f64,
    /// That of the last step.
    pub learning_rate: f64,
    /// Training time alone.
    pub seconds: f64,
    pub examples_per_second: f64,
}

/// How a training went.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    pub epochs: Vec<Epoch>,
    /// The epoch of the best validation score, counted from 1; 0 before the first epoch's end.
    pub best_epoch: usize,
    /// Whether [`INTERRUPTED`] ended it.
    pub interrupted: bool,
}

/// Everything besides parameters and optimizer that a checkpoint holds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    /// Finished epochs.
    history: Vec<Epoch>,
    best_epoch: usize,
    step: u64,
    /// Of the epoch under way.
    steps_in_epoch: usize,
    loss_sum: f64,
    norm_sum: f64,
    largest_norm: f64,
    seconds: f64,
    plateau: PlateauState,
}

impl State {
    /// Epochs since the best one.
    fn stale(&self) -> usize {
        self.history.len() - self.best_epoch
    }
}

/// Trains `vars` on `task` and leaves the weights of the best epoch in them and in the run's `model.safetensors`.
///
/// A run that holds a checkpoint is gone on with from there, to the same end, bit for bit, as if it had never
/// stopped.
///
/// # Errors
/// A loss that is no longer a finite number, with the step and the last good checkpoint; a checkpoint that does not
/// fit; no room or no right to write; those of the task.
pub fn fit(
    task: &dyn Task,
    vars: &VarMap,
    optimizer: &mut Optimizer,
    options: &Options,
    run: &Run,
    progress: &Progress,
) -> Result<Report> {
    let &Options { epochs, batch_size, learning_rate, schedule, clip, seed, .. } = options;
    ensure!(epochs > 0, "epochs: found 0, expected at least 1");
    ensure!(batch_size > 0, "batch size: found 0, expected at least 1");
    ensure!(task.examples() > 0, "there are no training examples");
    let total_steps = epochs.saturating_mul(task.examples().div_ceil(batch_size));
    let metric = task.metric();
    let mut state: State = run.load_checkpoint(vars, optimizer, task)?.unwrap_or_default();
    run.write_metrics(&state.history, metric)?;
    let rate_of = |step: u64, plateau: &PlateauState| {
        schedule.learning_rate(learning_rate, step as usize, total_steps, plateau)
    };

    while state.history.len() < epochs
        && !schedule.has_ended(&state.plateau)
        && options.patience.is_none_or(|patience| state.stale() < patience)
    {
        let epoch = state.history.len();
        let mut order: Vec<u32> = (0..task.examples() as u32).collect();
        if !task.in_order() {
            order.shuffle(&mut rng::stream(seed, &format!("shuffle/epoch {epoch}")));
        }
        let bar = progress.epoch(epoch + 1, epochs, order.len());
        let batches: Vec<&[u32]> = order.chunks(batch_size).skip(state.steps_in_epoch).collect();
        task.announce(&batches);
        for batch in batches {
            let start = Instant::now();
            let rate = rate_of(state.step, &state.plateau);
            let loss = task.loss(batch, Mode::Train { seed, epoch, step: state.step })?;
            let value = loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
            if !value.is_finite() {
                bail!("the loss of step {} is {value}: {}", state.step + 1, run.last_good());
            }
            let norm = optimizer.backward_step(&loss, rate, clip)?;
            if !norm.is_finite() {
                bail!("the gradient's norm at step {} is {norm}: {}", state.step + 1, run.last_good());
            }
            state.step += 1;
            state.steps_in_epoch += 1;
            state.loss_sum += value * batch.len() as f64;
            state.norm_sum += norm;
            state.largest_norm = state.largest_norm.max(norm);
            state.seconds += start.elapsed().as_secs_f64();
            bar.advance((state.steps_in_epoch * batch_size).min(order.len()), value);

            let interrupted = INTERRUPTED.load(Ordering::Relaxed);
            if interrupted || options.checkpoint_every.is_some_and(|every| state.step.is_multiple_of(every)) {
                run.save_checkpoint(vars, optimizer, task, &state)?;
            }
            if interrupted {
                let State { history: epochs, best_epoch, .. } = state;
                return Ok(Report { epochs, best_epoch, interrupted });
            }
        }

        let validation = task.validate()?;
        if !validation.loss.is_finite() {
            bail!("the validation loss of epoch {} is {}: {}", epoch + 1, validation.loss, run.last_good());
        }
        let record = Epoch {
            epoch: epoch + 1,
            step: state.step,
            train_loss: state.loss_sum / task.examples() as f64,
            validation,
            gradient_norm: state.norm_sum / state.steps_in_epoch as f64,
            largest_gradient_norm: state.largest_norm,
            learning_rate: rate_of(state.step.saturating_sub(1), &state.plateau),
            seconds: state.seconds,
            examples_per_second: task.examples() as f64 / state.seconds,
        };
        bar.finish(&record, epochs, metric);
        if *progress != Progress::Quiet
            && let Some(sample) = task.sample()?
        {
            say(&sample);
        }
        schedule.observe(&mut state.plateau, -metric.goodness(validation.metric));
        if state
            .history
            .get(state.best_epoch.wrapping_sub(1))
            .is_none_or(|best| validation.beats(&best.validation, metric))
        {
            state.best_epoch = epoch + 1;
            // Before the checkpoint that says so: a crash in between only repeats the epoch.
            save_weights(&run.model(), vars)?;
        }
        state.history.push(record);
        state.steps_in_epoch = 0;
        (state.loss_sum, state.norm_sum, state.largest_norm, state.seconds) = (0.0, 0.0, 0.0, 0.0);
        run.save_checkpoint(vars, optimizer, task, &state)?;
        run.write_metrics(&state.history, metric)?;
    }
    load_weights(&run.model(), vars)?;
    Ok(Report { epochs: state.history, best_epoch: state.best_epoch, interrupted: false })
}
