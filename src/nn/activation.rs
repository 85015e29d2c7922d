//! Element-wise nonlinearities.

use super::is_native;
use crate::ops;
use candle_core::{Error, Module, Result, Tensor, bail};
use serde::{Deserialize, Serialize};

pub use candle_nn::activation::{PReLU, prelu};

/// An element-wise nonlinearity: one of candle_nn's, or the hyperbolic tangent.
///
/// As text it has candle_nn's names, which Hugging Face configurations use too. It converts into candle_nn's type, which the
/// configurations of candle_transformers take, and back.
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
        match *self {
            Self::Relu => relu(xs),
            Self::Sigmoid => super::ops::sigmoid(xs),
            Self::Tanh if is_native(xs) => ops::tanh(xs),
            Self::Tanh => xs.tanh(),
            Self::Mish => super::ops::mish(xs),
            other => candle_nn::Activation::try_from(other)?.forward(xs),
        }
    }
}

/// `max(x, 0)` of each element, as `Tensor::relu`. The gradient at 0 is 0, as in PyTorch, where candle's is 1.
///
/// # Errors
/// Fails if the elements are not floating-point numbers.
pub fn relu(xs: &Tensor) -> Result<Tensor> {
    match is_native(xs) {
        true => ops::relu(xs),
        false => xs.gt(0f64)?.where_cond(xs, &xs.zeros_like()?),
    }
}

/// The conversions between both types, given the variants that both have.
macro_rules! conversions {
    ($($name:ident $(($value:ident))?),*) => {
        impl From<candle_nn::Activation> for Activation {
            fn from(candle: candle_nn::Activation) -> Self {
                match candle {
                    $(candle_nn::Activation::$name $(($value))? => Self::$name $(($value))?,)*
                }
            }
        }

        /// Fails for [`Activation::Tanh`], which candle_nn lacks.
        impl TryFrom<Activation> for candle_nn::Activation {
            type Error = Error;

            fn try_from(activation: Activation) -> Result<Self> {
                Ok(match activation {
                    $(Activation::$name $(($value))? => Self::$name $(($value))?,)*
                    Activation::Tanh => bail!("activation: candle_nn has no Tanh"),
                })
            }
        }
    };
}

conversions!(
    Gelu,
    NewGelu,
    Relu,
    Relu2,
    Relu6,
    Silu,
    Sigmoid,
    HardSigmoid,
    Swiglu,
    Swish,
    Mish,
    HardSwish,
    Elu(alpha),
    LeakyRelu(slope),
    GeluPytorchTanh
);

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
