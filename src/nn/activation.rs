//! Element-wise nonlinearities.

use super::is_native;
use crate::ops;
use candle_core::{Module, Result, Tensor};
use serde::{Deserialize, Serialize};

pub use candle_nn::activation::{PReLU, prelu};

/// An element-wise nonlinearity: one of candle_nn's, or the hyperbolic tangent.
///
/// As text it has candle_nn's names, which Hugging Face configurations use too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// `x Φ(x)`, with the normal distribution function Φ (Hendrycks and Gimpel 2016).
    #[default]
    Gelu,
    /// [`Gelu`](Self::Gelu) with the approximation by `tanh`.
    #[serde(alias = "gelu_new")]
    NewGelu,
    /// `max(x, 0)`
    Relu,
    /// `max(x, 0)²`
    Relu2,
    /// `min(max(x, 0), 6)`
    Relu6,
    /// `x sigmoid(x)`
    Silu,
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    /// `min(max((x + 3) / 6, 0), 1)`
    HardSigmoid,
    /// `silu(a) b`, with the two halves a and b of the last dimension.
    Swiglu,
    /// The same as [`Silu`](Self::Silu).
    Swish,
    /// `x tanh(ln(1 + exp(x)))`
    Mish,
    /// `x` times [`HardSigmoid`](Self::HardSigmoid).
    HardSwish,
    /// `x` above 0, else `a (exp(x) - 1)`.
    Elu(f64),
    /// `x` above 0, else `a x`.
    LeakyRelu(f64),
    /// The same as [`NewGelu`](Self::NewGelu).
    #[serde(alias = "gelu_pytorch_tanh")]
    GeluPytorchTanh,
    /// Hyperbolic tangent.
    Tanh,
}

impl Module for Activation {
    /// Any shape to the same shape, except for [`Swiglu`](Self::Swiglu), which halves the last dimension.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        use candle_nn::Activation as Candle;
        let native = is_native(xs);
        let candle = match *self {
            Self::Relu if native => return ops::relu(xs),
            Self::Sigmoid if native => return ops::sigmoid(xs),
            Self::Tanh if native => return ops::tanh(xs),
            Self::Tanh => return xs.tanh(),
            Self::Gelu => Candle::Gelu,
            Self::NewGelu => Candle::NewGelu,
            Self::Relu => Candle::Relu,
            Self::Relu2 => Candle::Relu2,
            Self::Relu6 => Candle::Relu6,
            Self::Silu => Candle::Silu,
            Self::Sigmoid => Candle::Sigmoid,
            Self::HardSigmoid => Candle::HardSigmoid,
            Self::Swiglu => Candle::Swiglu,
            Self::Swish => Candle::Swish,
            Self::Mish => return super::ops::mish(xs),
            Self::HardSwish => Candle::HardSwish,
            Self::Elu(alpha) => Candle::Elu(alpha),
            Self::LeakyRelu(slope) => Candle::LeakyRelu(slope),
            Self::GeluPytorchTanh => Candle::GeluPytorchTanh,
        };
        candle.forward(xs)
    }
}

/// The command line offers the nonlinearities that the models of the books have.
#[cfg(feature = "cli")]
impl clap::ValueEnum for Activation {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Relu, Self::Sigmoid, Self::Tanh]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        let (name, help) = match self {
            Self::Relu => ("relu", "`max(x, 0)`"),
            Self::Sigmoid => ("sigmoid", "`1 / (1 + exp(-x))`"),
            Self::Tanh => ("tanh", "Hyperbolic tangent"),
            _ => return None,
        };
        Some(clap::builder::PossibleValue::new(name).help(help))
    }
}
