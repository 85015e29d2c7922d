//! Scores of a model, and the record of each epoch.

use serde::{Deserialize, Serialize};

/// The quality measure of a task, besides its loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Fraction of examples whose predicted class is the label. Higher is better.
    Accuracy,
    /// Harmonic mean of precision and recall. Higher is better.
    F1,
    /// Exponential of the mean loss per token. Lower is better.
    Perplexity,
}

impl Metric {
    /// Returns the name used in `metrics.jsonl`: `accuracy`, `f1` or `perplexity`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::F1 => "f1",
            Self::Perplexity => "perplexity",
        }
    }

    /// Formats a value for display: accuracy and F1 as percentages.
    pub fn format(self, value: f64) -> String {
        match self {
            Self::Accuracy | Self::F1 => format!("{:6.2}%", 100.0 * value),
            Self::Perplexity => format!("{value:6.3}"),
        }
    }

    /// Maps a value to a scale on which higher is better.
    pub(super) fn goodness(self, value: f64) -> f64 {
        if self == Self::Perplexity { -value } else { value }
    }
}

/// Result of a validation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Mean loss per example (per token for language models).
    pub loss: f64,
    /// Value of the task's [`Metric`].
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
    pub train_loss: f64,
    /// Score on the validation data at the end of the epoch.
    pub validation: Score,
    /// Mean over the epoch's steps of the Euclidean norm of all gradients together, before clipping.
    pub gradient_norm: f64,
    /// Largest gradient norm of the epoch's steps.
    pub largest_gradient_norm: f64,
    /// Learning rate of the epoch's last step.
    pub learning_rate: f64,
    /// Time spent in training steps, in seconds; validation and checkpoints are not included.
    pub seconds: f64,
    /// Training examples per second.
    pub examples_per_second: f64,
}

/// Outcome of [`Trainer::fit`](super::Trainer::fit).
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// All finished epochs, including those from before a resume.
    pub epochs: Vec<Epoch>,
    /// Number of the epoch with the best validation score, counted from 1; 0 if no epoch has finished.
    pub best_epoch: usize,
    /// Whether [`INTERRUPTED`](super::INTERRUPTED) ended training early.
    pub interrupted: bool,
}
