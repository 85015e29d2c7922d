//! Options shared by all binaries, and the parsers of their values.

use super::UsageError;
use crate::data::{Selection, count};
use crate::device::DeviceChoice;
use crate::optim::{Clip, Curve, Lbfgs, Schedule};
use crate::train::TrainerOptions;
use anyhow::ensure;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, ValueEnum};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::ops::{Bound, RangeBounds};
use std::path::PathBuf;
use std::str::FromStr;

/// Name of the parameter that holds the word vectors, in every model of sentences.
pub(super) const WORD_VECTORS: &str = "embedding.weight";

/// Options of every training run.
///
/// The command line shows the defaults of [`Binary::train_defaults`](super::Binary::train_defaults).
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct TrainOptions {
    /// Data set
    #[arg(long, value_name = "NAME")]
    pub dataset: String,
    /// Read the data set's files from DIR; without it, they are built in or downloaded
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Number of passes over the training set
    #[arg(long, value_name = "N", value_parser = positive)]
    pub epochs: usize,
    /// Number of examples per step
    #[arg(long, value_name = "N", value_parser = positive)]
    pub batch_size: usize,
    /// Peak learning rate
    #[arg(long, value_name = "X", value_parser = positive_number)]
    pub learning_rate: f64,
    /// Seed of initial values, shuffles, dropout and augmentation; the same seed gives the same model, bit for bit
    #[arg(long, value_name = "N", value_parser = whole::<u64>)]
    pub seed: u64,
    /// Train on N examples only, selected like the validation part
    #[arg(long, value_name = "N", value_parser = positive)]
    pub train_limit: Option<usize>,
    /// Number of training examples held out for validation [default: a tenth]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub validation: Option<usize>,
    /// Which training examples are held out: random ones have the proportions of the classes
    #[arg(long, value_name = "NAME")]
    pub validation_split: Selection,
    /// Optimizer
    #[arg(long, value_name = "NAME")]
    pub optimizer: OptimizerName,
    /// Momentum (sgd, rmsprop)
    #[arg(long, value_name = "X", value_parser = fraction::<f64>)]
    pub momentum: f64,
    /// Use Nesterov momentum (sgd)
    #[arg(long)]
    pub nesterov: bool,
    /// Number of past steps that the optimizer keeps (lbfgs)
    #[arg(long, value_name = "N", value_parser = positive)]
    pub history_size: usize,
    /// L2 penalty; decoupled weight decay for adamw [default: 0, adamw 0.01]
    #[arg(long, value_name = "X", value_parser = non_negative)]
    pub weight_decay: Option<f64>,
    /// L1 penalty (sgd)
    #[arg(long, value_name = "X", value_parser = non_negative)]
    pub l1: f64,
    /// Exclude biases and normalisation layers from weight decay and L1
    #[arg(long)]
    pub keep_biases: bool,
    /// Learning-rate schedule
    #[arg(long, value_name = "NAME")]
    pub schedule: ScheduleName,
    /// Epochs between reductions (step), or without improvement before one (plateau)
    #[arg(long, value_name = "N", value_parser = positive)]
    pub schedule_epochs: usize,
    /// Factor applied to the learning rate at each reduction (step, milestones, plateau)
    #[arg(long, value_name = "X", value_parser = positive_number)]
    pub schedule_factor: f64,
    /// Number of steps over which the learning rate rises from 0
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    pub warmup: usize,
    /// Clip the global gradient norm to X
    #[arg(long, value_name = "X", value_parser = positive_number, conflicts_with = "clip_value")]
    pub clip_norm: Option<f64>,
    /// Clip each gradient element to the range from -X to X
    #[arg(long, value_name = "X", value_parser = positive_number)]
    pub clip_value: Option<f64>,
    /// Stop after N epochs without a better validation score
    #[arg(long, value_name = "N", value_parser = positive)]
    pub patience: Option<usize>,
    /// Save a checkpoint every N steps as well as after each epoch
    #[arg(long, value_name = "N", value_parser = positive)]
    pub checkpoint_every: Option<usize>,
    /// Keep the whole checkpoint after the last epoch, so that `--resume RUN --epochs N` can train on
    #[arg(long)]
    pub keep_checkpoint: bool,
    /// The options that the user gave, as opposed to defaults, presets and a run's record.
    #[arg(skip)]
    #[serde(skip)]
    pub given: Given,
}

// Recipes flatten these options into their settings. They pass through JSON, so that serde's code for them is compiled
// once and not in each binary.
impl Serialize for TrainOptions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().map_err(ser::Error::custom)?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for TrainOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_json(Map::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl TrainOptions {
    fn to_json(&self) -> serde_json::Result<Value> {
        Self::serialize(self, serde_json::value::Serializer)
    }

    fn from_json(fields: Map<String, Value>) -> serde_json::Result<Self> {
        Self::deserialize(Value::Object(fields))
    }
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            dataset: "digits".to_string(),
            data_dir: None,
            epochs: 10,
            batch_size: 64,
            learning_rate: 2e-3,
            seed: 42,
            train_limit: None,
            validation: None,
            validation_split: Selection::Random,
            optimizer: OptimizerName::AdamW,
            momentum: 0.0,
            nesterov: false,
            history_size: Lbfgs::default().history_size,
            weight_decay: None,
            l1: 0.0,
            keep_biases: false,
            schedule: ScheduleName::Cosine,
            schedule_epochs: 10,
            schedule_factor: 0.5,
            warmup: 0,
            clip_norm: None,
            clip_value: None,
            patience: None,
            checkpoint_every: None,
            keep_checkpoint: false,
            given: Given::default(),
        }
    }
}

/// The ids of the options that the user gave.
#[derive(Debug, Clone, Default)]
pub struct Given(HashSet<String>);

impl Given {
    /// As if the user gave the option `id`.
    #[cfg(test)]
    pub(super) fn of(id: &str) -> Self {
        Self(HashSet::from([id.to_string()]))
    }

    /// The options in `matches` that are not defaults.
    pub(super) fn new(matches: &ArgMatches) -> Self {
        let is_given = |id: &&str| matches.value_source(id) == Some(ValueSource::CommandLine);
        Self(matches.ids().map(clap::Id::as_str).filter(is_given).map(String::from).collect())
    }

    /// Whether the user gave the option `id`.
    pub(super) fn contains(&self, id: &str) -> bool {
        self.0.contains(id)
    }
}

/// Options that choose where to compute.
#[derive(Debug, Clone, Default, Args)]
pub struct MachineOptions {
    /// auto, cpu, cuda, cuda:N, metal or metal:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Number of CPU threads [default: one per physical core]
    #[arg(long, value_name = "N", value_parser = |text: &str| in_range(text, 1..=1024_usize, "a whole number, 1 to 1024"))]
    pub threads: Option<usize>,
}

/// The value of `--optimizer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum OptimizerName {
    /// Stochastic gradient descent
    Sgd,
    /// Adam with an L2 penalty
    Adam,
    /// Adam with decoupled weight decay
    AdamW,
    /// RMSprop
    RmsProp,
    /// Adagrad
    Adagrad,
    /// Adadelta, which expects a learning rate of 1
    Adadelta,
    /// Adam that updates only the word vectors that occur in the batch
    #[serde(rename = "lazy-adam")]
    #[value(name = "lazy-adam")]
    LazyAdam,
    /// L-BFGS: each epoch is one step on all training examples, with a line search (mlp)
    Lbfgs,
    /// Newton's method with conjugate gradients: each epoch is one step on all training examples (mlp)
    #[serde(rename = "newton-cg")]
    #[value(name = "newton-cg")]
    NewtonCg,
}

impl OptimizerName {
    /// Whether a step takes all training examples, and evaluates their loss several times.
    pub fn is_full_batch(self) -> bool {
        matches!(self, Self::Lbfgs | Self::NewtonCg)
    }
}

/// The value of `--schedule`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleName {
    /// The same learning rate throughout
    Constant,
    /// Lower the rate every few epochs
    Step,
    /// Lower the rate after half and after three quarters of the training
    Milestones,
    /// Decay linearly to 0
    Linear,
    /// Decay to 0 along a cosine
    Cosine,
    /// Rise, then fall (Smith 2018)
    OneCycle,
    /// Lower the rate when validation stops improving; stop at 1/128 of the initial rate (Nielsen)
    Plateau,
}

impl TrainOptions {
    /// Checks that the chosen optimizer and schedule use all options that the user gave.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        use OptimizerName::{Lbfgs, RmsProp, Sgd};
        use ScheduleName::{Milestones, OneCycle, Plateau, Step};
        let (optimizer, schedule) = (self.optimizer, self.schedule);
        let decays =
            self.weight_decay.unwrap_or(f64::from(u8::from(optimizer == OptimizerName::AdamW))) > 0.0;
        for (option, is_used, needed) in [
            ("momentum", [Sgd, RmsProp].contains(&optimizer), "--optimizer sgd or rmsprop"),
            ("nesterov", optimizer == Sgd, "--optimizer sgd"),
            ("l1", optimizer == Sgd, "--optimizer sgd"),
            ("history_size", optimizer == Lbfgs, "--optimizer lbfgs"),
            ("keep_biases", decays || self.l1 > 0.0, "--weight-decay or --l1"),
            ("schedule_epochs", [Step, Plateau].contains(&schedule), "--schedule step or plateau"),
            (
                "schedule_factor",
                [Step, Milestones, Plateau].contains(&schedule),
                "--schedule step, milestones or plateau",
            ),
        ] {
            let name = option.replace('_', "-");
            ensure!(
                is_used || !self.given.contains(option),
                UsageError(format!("--{name}: has no effect without {needed}"))
            );
        }
        ensure!(
            !self.nesterov || self.momentum > 0.0,
            UsageError("--nesterov: needs a --momentum above 0".into())
        );
        ensure!(
            schedule != OneCycle || self.warmup == 0 || !self.given.contains("warmup"),
            UsageError("--warmup: the one-cycle schedule has its own: leave it out".into())
        );
        ensure!(
            schedule != Plateau || self.schedule_factor < 1.0,
            "--schedule-factor {}: a plateau schedule needs one below 1, so that the learning rate falls",
            self.schedule_factor
        );
        if optimizer.is_full_batch() {
            self.check_full_batch()?;
        }
        Ok(())
    }

    /// Notes on options without effect, for `examples` training examples in epochs of `steps` steps.
    pub(super) fn without_effect(&self, examples: usize, steps: usize) -> Vec<String> {
        let &Self { epochs, warmup, schedule, schedule_epochs: every, batch_size, .. } = self;
        let total = epochs.saturating_mul(steps);
        let exceeds = |id: &str, number: Option<usize>, limit: usize| {
            number.filter(|&number| self.given.contains(id) && number > limit)
        };
        let training = format!("training has {}", count(total, "step"));
        let mut notes = vec![];
        if warmup >= total {
            let what = match self.given.contains("warmup") {
                true => format!("--warmup {warmup}"),
                false => format!("the warm-up takes {}", count(warmup, "step")),
            };
            notes.push(format!("{what}: {training}, so the learning rate never reaches its peak"));
        }
        if schedule == ScheduleName::Milestones && total.saturating_sub(warmup) < 2 {
            notes.push(format!("--schedule milestones: {training}, so the learning rate is never lowered"));
        }
        if [ScheduleName::Step, ScheduleName::Plateau].contains(&schedule) && every >= epochs {
            notes.push(format!(
                "--schedule-epochs {every}: training has {}, so the learning rate is never lowered",
                count(epochs, "epoch")
            ));
        }
        if let Some(patience) = exceeds("patience", self.patience, epochs - 1) {
            notes.push(format!(
                "--patience {patience}: training has {}, so it never stops early",
                count(epochs, "epoch")
            ));
        }
        if let Some(every) = exceeds("checkpoint_every", self.checkpoint_every, total) {
            notes.push(format!(
                "--checkpoint-every {every}: {training}, so only the ends of epochs save checkpoints"
            ));
        }
        if let Some(limit) = exceeds("train_limit", self.train_limit, examples) {
            notes.push(format!("--train-limit {limit}: training has only {}", count(examples, "example")));
        }
        if let Some(size) = exceeds("batch_size", Some(batch_size), examples) {
            notes.push(format!(
                "--batch-size {size}: the training part has {examples}, so each epoch is one step"
            ));
        }
        notes
    }

    /// The training loop's options for epochs of `steps` steps.
    pub fn options(&self, steps: usize) -> TrainerOptions {
        let factor = self.schedule_factor;
        let curve = match self.schedule {
            ScheduleName::Constant => Curve::Constant,
            ScheduleName::Step => Curve::Step { every: self.schedule_epochs.saturating_mul(steps), factor },
            ScheduleName::Milestones => Curve::Milestones { factor },
            ScheduleName::Linear => Curve::Linear,
            ScheduleName::Cosine => Curve::Cosine,
            ScheduleName::OneCycle => Curve::one_cycle(),
            ScheduleName::Plateau => {
                Curve::Plateau { factor, patience: self.schedule_epochs, stop_at: 1.0 / 128.0 }
            }
        };
        TrainerOptions {
            epochs: self.epochs,
            batch_size: self.batch_size,
            learning_rate: self.learning_rate,
            schedule: Schedule { warmup_steps: self.warmup, curve },
            clip: match (self.clip_norm, self.clip_value) {
                // The norm may be a default; the user gave the value.
                (_, Some(value)) => Clip::Value(value),
                (Some(norm), None) => Clip::Norm(norm),
                (None, None) => Clip::None,
            },
            seed: self.seed,
            patience: self.patience,
            checkpoint_every: self.checkpoint_every.map(|every| every as u64),
            keep_checkpoint: self.keep_checkpoint,
            ..TrainerOptions::default()
        }
    }
}

/// Parses a number in `range`.
///
/// # Errors
/// Fails if `text` isn't such a number. The message names `expected`.
pub fn in_range<T: FromStr + PartialOrd>(
    text: &str,
    range: impl RangeBounds<T>,
    expected: &str,
) -> Result<T, String> {
    match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(format!("expected {expected}")),
    }
}

/// Parses a whole number.
///
/// # Errors
/// Fails if `text` isn't one, or is too large for the type.
pub fn whole<T: FromStr + PartialOrd + From<u8>>(text: &str) -> Result<T, String> {
    in_range(text, T::from(0).., "a whole number, 0 or more")
}

/// Parses a count of at least 1.
///
/// # Errors
/// Fails if `text` isn't a whole number from 1 to the largest number of 32 bits.
pub fn positive(text: &str) -> Result<usize, String> {
    in_range(text, 1..=u32::MAX as usize, "a whole number, 1 to 4294967295")
}

/// The maximum number of layers of a network.
///
/// Candle's graph is dropped recursively, so a longer chain would exhaust the stack.
pub const MOST_LAYERS: usize = 256;

/// Parses a number of layers.
///
/// # Errors
/// Fails if `text` isn't a whole number from 1 to [`MOST_LAYERS`].
pub fn layers(text: &str) -> Result<usize, String> {
    in_range(text, 1..=MOST_LAYERS, "a whole number, 1 to 256")
}

/// Parses a finite number of at least 0.
///
/// # Errors
/// Fails if `text` isn't one.
pub fn non_negative(text: &str) -> Result<f64, String> {
    in_range(text, 0.0..f64::INFINITY, "a number, 0 or more")
}

/// Parses a finite number above 0.
///
/// # Errors
/// Fails if `text` isn't one.
pub fn positive_number(text: &str) -> Result<f64, String> {
    in_range(text, (Bound::Excluded(0.0), Bound::Excluded(f64::INFINITY)), "a number above 0")
}

/// Parses a number from 0 to 1, excluding 1.
///
/// # Errors
/// Fails if `text` isn't one.
pub fn fraction<T: FromStr + PartialOrd + From<u8>>(text: &str) -> Result<T, String> {
    in_range(text, T::from(0)..T::from(1), "a number from 0 to 1, excluding 1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clip_value_wins_over_the_default_norm() {
        let options = TrainOptions { clip_norm: Some(5.0), ..TrainOptions::default() };
        assert_eq!(options.options(1).clip, Clip::Norm(5.0));
        let options = TrainOptions { clip_value: Some(0.1), ..options };
        assert_eq!(options.options(1).clip, Clip::Value(0.1));
    }

    #[test]
    fn options_that_the_optimizer_or_the_schedule_ignores_are_refused() {
        let options = |option: &str| TrainOptions { given: Given::of(option), ..TrainOptions::default() };
        for option in ["momentum", "nesterov", "l1", "schedule_epochs", "schedule_factor"] {
            let error = options(option).check().unwrap_err().to_string();
            assert!(
                error.contains(&format!("--{}: has no effect without", option.replace('_', "-"))),
                "{error}"
            );
        }
        for option in ["keep_biases", "learning_rate", "warmup"] {
            options(option).check().unwrap();
        }
        TrainOptions { optimizer: OptimizerName::Sgd, ..options("momentum") }.check().unwrap();
        TrainOptions { schedule: ScheduleName::Plateau, ..options("schedule_epochs") }.check().unwrap();
        let never_falls = TrainOptions {
            schedule_factor: 1.0,
            schedule: ScheduleName::Plateau,
            ..options("schedule_factor")
        };
        assert!(never_falls.check().unwrap_err().to_string().contains("--schedule-factor 1:"));
        let twice = TrainOptions { schedule: ScheduleName::OneCycle, warmup: 9, ..options("warmup") };
        assert!(
            twice.check().unwrap_err().to_string().contains("--warmup: the one-cycle schedule has its own")
        );
        let adam = TrainOptions { optimizer: OptimizerName::Adam, ..options("keep_biases") };
        assert!(adam.check().unwrap_err().to_string().contains("--weight-decay or --l1"));
    }

    #[test]
    fn options_without_effect_are_named() {
        let notes = |options: TrainOptions| options.without_effect(30, 3).join("; ");
        assert_eq!(notes(TrainOptions::default()), "");
        assert!(
            notes(TrainOptions { warmup: 30, given: Given::of("warmup"), ..TrainOptions::default() })
                .contains("--warmup 30: training has 30 steps")
        );
        let one = TrainOptions { epochs: 1, ..TrainOptions::default() };
        let milestones = TrainOptions { schedule: ScheduleName::Milestones, ..one.clone() };
        assert_eq!(notes(milestones.clone()), "");
        assert!(milestones.without_effect(30, 1)[0].contains("--schedule milestones: training has 1 step"));
        for schedule in [ScheduleName::Step, ScheduleName::Plateau] {
            assert!(
                notes(TrainOptions { schedule, ..TrainOptions::default() }).contains("--schedule-epochs 10")
            );
            assert_eq!(notes(TrainOptions { schedule, schedule_epochs: 9, ..TrainOptions::default() }), "");
        }
        let given = |id: &str| TrainOptions {
            patience: Some(10),
            checkpoint_every: Some(31),
            train_limit: Some(31),
            given: Given::of(id),
            ..TrainOptions::default()
        };
        for id in ["patience", "checkpoint_every", "train_limit", "batch_size"] {
            let option = format!("--{} ", id.replace('_', "-"));
            assert!(notes(given(id)).starts_with(&option), "{id}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_rejected() {
        for text in ["-1", "nan", "inf", "x", ""] {
            assert!(non_negative(text).is_err() && positive_number(text).is_err(), "{text}");
        }
        assert_eq!((non_negative("0"), positive_number("0").is_err()), (Ok(0.0), true));
        assert_eq!((fraction("0"), fraction::<f64>("1").is_err()), (Ok(0.0), true));
        assert_eq!(
            (whole("0"), whole::<u64>("-1").is_err(), whole::<u64>("x").is_err()),
            (Ok(0_u64), true, true)
        );
        assert_eq!((positive("1"), positive("0").is_err(), positive("1.5").is_err()), (Ok(1), true, true));
        assert_eq!((layers("256"), layers("257").is_err()), (Ok(MOST_LAYERS), true));
    }
}
