//! Scores of a model, and the record of each epoch.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The quality measure of a task besides its loss: its name, its direction and its format.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    name: &'static str,
    higher_is_better: bool,
    format: fn(f64) -> String,
}

impl Metric {
    /// Fraction of examples whose predicted class is the label. Higher is better.
    pub const ACCURACY: Self = Self::new("accuracy", true, percentage);
    /// Harmonic mean of precision and recall. Higher is better.
    pub const F1: Self = Self::new("f1", true, percentage);
    /// Exponential of the mean loss per token. Lower is better.
    pub const PERPLEXITY: Self = Self::new("perplexity", false, |value| format!("{value:6.3}"));
    /// Mean loss in nats, for losses whose exponential has no meaning. Lower is better.
    pub const NATS: Self = Self::new("nats", false, |value| format!("{value:6.3}"));
    /// Fraction of translations that equal the reference. Higher is better.
    pub const EXACT_MATCH: Self = Self::new("exact_match", true, percentage);
    /// BLEU of translations, from 0 to 100. Higher is better.
    pub const BLEU: Self = Self::new("bleu", true, |value| format!("{value:6.2}"));

    /// Creates a metric. `metrics.jsonl` holds it under its `name`, with the prefix `val_`.
    pub const fn new(name: &'static str, higher_is_better: bool, format: fn(f64) -> String) -> Self {
        Self { name, higher_is_better, format }
    }

    /// Returns the name.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Formats a value for display.
    pub fn format(self, value: f64) -> String {
        (self.format)(value)
    }

    /// Maps a value to a scale on which higher is better.
    pub(crate) fn goodness(self, value: f64) -> f64 {
        if self.higher_is_better { value } else { -value }
    }
}

impl PartialEq for Metric {
    fn eq(&self, other: &Self) -> bool {
        (self.name, self.higher_is_better) == (other.name, other.higher_is_better)
    }
}

impl Eq for Metric {}

fn percentage(value: f64) -> String {
    format!("{:6.2}%", 100.0 * value)
}

/// Result of a validation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Mean loss per example (per token for language models).
    #[serde(with = "any_f64")]
    pub loss: f64,
    /// Value of the task's [`Metric`].
    #[serde(with = "any_f64")]
    pub metric: f64,
}

impl Score {
    /// Returns whether this score is better than `other`: by the metric, then by the loss.
    pub(super) fn beats(&self, other: &Self, metric: Metric) -> bool {
        let [own, others] = [self, other].map(|score| metric.goodness(score.metric));
        own > others || (own == others && self.loss < other.loss)
    }
}

/// Record of one epoch: a line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Number of the epoch, counted from 1.
    pub epoch: usize,
    /// Steps since the start of training.
    pub step: u64,
    /// Mean loss of the training examples, each measured just before the step that uses it.
    #[serde(with = "any_f64")]
    pub train_loss: f64,
    /// Score on the validation data at the end of the epoch.
    pub validation: Score,
    /// Mean over the epoch's steps of the Euclidean norm of all gradients together, before clipping.
    #[serde(with = "any_f64")]
    pub gradient_norm: f64,
    /// Largest gradient norm of the epoch's steps.
    #[serde(with = "any_f64")]
    pub largest_gradient_norm: f64,
    /// Learning rate of the epoch's last step.
    #[serde(with = "any_f64")]
    pub learning_rate: f64,
    /// Time spent in training steps, in seconds; validation and checkpoints are not included.
    #[serde(with = "any_f64")]
    pub seconds: f64,
    /// Training examples per second.
    #[serde(with = "any_f64")]
    pub examples_per_second: f64,
}

/// Outcome of [`Trainer::fit`](super::Trainer::fit).
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The metric of the epochs' validation scores.
    pub metric: Metric,
    /// All finished epochs, including those from before a resume.
    pub epochs: Vec<Epoch>,
    /// Number of the epoch with the best validation score, counted from 1; 0 if no epoch has finished.
    pub best_epoch: usize,
    /// Whether a [`Stop`](super::Stop) ended training early.
    pub interrupted: bool,
}

/// Numbers in a checkpoint. JSON has no infinities and no NaN, so they become strings.
pub(super) mod any_f64 {
    use super::*;

    pub(in crate::train) fn serialize<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        match number.is_finite() {
            true => serializer.serialize_f64(*number),
            false => serializer.collect_str(number),
        }
    }

    pub(in crate::train) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Number {
            Finite(f64),
            Other(String),
        }
        match Number::deserialize(deserializer)? {
            Number::Finite(number) => Ok(number),
            Number::Other(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}
