use crate::ops;
use candle_core::{D, Result, Tensor};
use serde::{Deserialize, Serialize};

/// The cost of a classifier, together with its output nonlinearity: models return logits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Cost {
    /// Softmax output, negative log-likelihood (Nielsen eq. 80; PyTorch's `CrossEntropyLoss`).
    #[default]
    SoftmaxCrossEntropy,
    /// Sigmoid output, cross-entropy summed over the classes (Nielsen eq. 63).
    SigmoidCrossEntropy,
    /// Sigmoid output, half the squared distance to the one-hot target (Nielsen eq. 6).
    Quadratic,
}

impl Cost {
    /// The mean cost, a scalar, of `logits` `(batch, classes)` for the u32 `targets` `(batch)`.
    ///
    /// # Errors
    /// If shapes do not fit, or a target is not a class.
    pub fn loss(self, logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
        match self {
            Self::SoftmaxCrossEntropy => ops::softmax_cross_entropy(logits, targets, 0.0),
            Self::SigmoidCrossEntropy => ops::sigmoid_cross_entropy(logits, targets),
            Self::Quadratic => ops::quadratic(logits, targets),
        }
    }

    /// The probabilities `(batch, classes)` of `logits`. Sigmoid outputs are divided by their sum.
    ///
    /// # Errors
    /// If `logits` has no dimension.
    pub fn probabilities(self, logits: &Tensor) -> Result<Tensor> {
        match self {
            Self::SoftmaxCrossEntropy => candle_nn::ops::softmax(logits, D::Minus1),
            Self::SigmoidCrossEntropy | Self::Quadratic => {
                let outputs = ops::sigmoid(logits)?;
                outputs.broadcast_div(&outputs.sum_keepdim(D::Minus1)?)
            }
        }
    }
}
