//! A step: how gradients are clipped, the update of each parameter, and the result.

use crate::kernels::cpu::optimizer::{GradientTerms, Rule};
use crate::ops::RowNumbers;
use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};

/// Gradient clipping, which limits the effect of a single large gradient.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clip {
    /// No clipping.
    #[default]
    None,
    /// Scales all gradients by one factor so that their Euclidean norm is at most this value.
    ///
    /// Pascanu et al. 2013, algorithm 1; `torch.nn.utils.clip_grad_norm_`.
    Norm(f64),
    /// Limits each element to plus or minus this value (`torch.nn.utils.clip_grad_value_`).
    Value(f64),
}

impl Clip {
    /// The largest norm of all gradients together, and the largest absolute value of an element.
    pub(super) fn limits(self) -> Result<(f64, f64)> {
        match self {
            Self::Norm(max) | Self::Value(max) if max.is_nan() || max < 0. => {
                bail!("optimizer: the clipping limit is {max}, expected a number of at least 0")
            }
            Self::None => Ok((f64::INFINITY, f64::INFINITY)),
            Self::Norm(max) => Ok((max, f64::INFINITY)),
            Self::Value(max) => Ok((f64::INFINITY, max)),
        }
    }

    /// The factor for all gradients, given their `norm`.
    pub(super) fn scale(self, norm: f64) -> Result<f64> {
        let (max, _) = self.limits()?;
        // PyTorch adds 1e-6, too.
        Ok(if norm + 1e-6 > max { max / (norm + 1e-6) } else { 1. })
    }
}

/// The result of [`Optimizer::step_with`](super::Optimizer::step_with).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// The loss before the step.
    pub loss: f64,
    /// The Euclidean norm of all gradients before the step, unclipped; NaN if the loss is not finite.
    pub gradient_norm: f64,
    /// Number of evaluations of the loss and its gradient.
    pub evaluations: usize,
    /// Whether L-BFGS or Newton-CG found no parameters with a lower loss.
    ///
    /// The parameters have not changed, and another step would not change them either.
    pub converged: bool,
}

/// The gradient of a parameter: in the parameter's shape or, with `rows`, of these rows only.
pub(super) struct Gradient {
    pub values: Tensor,
    pub rows: Option<RowNumbers>,
}

/// One update of one parameter.
pub(super) struct Update {
    pub rule: Rule,
    pub terms: GradientTerms,
    /// Whether rows whose gradient is all zero keep their values.
    pub sparse: bool,
}
