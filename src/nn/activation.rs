use crate::ops;
use candle_core::{Module, Result, Tensor};
use serde::{Deserialize, Serialize};

/// An element-wise nonlinearity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// `max(x, 0)`
    #[default]
    Relu,
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
}

impl Module for Activation {
    /// Any shape to the same shape.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match self {
            Self::Relu => ops::relu(xs),
            Self::Sigmoid => ops::sigmoid(xs),
            Self::Tanh => ops::tanh(xs),
        }
    }
}
