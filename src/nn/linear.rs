//! The fully connected layer.

use super::{InitScheme, is_native};
use crate::ops;
use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

/// A fully connected layer: `y = x · weightᵀ + bias`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

/// Creates a fully connected layer with PyTorch's initial values.
///
/// Parameters in `vb`: `weight` `(outputs, inputs)` and `bias` `(outputs)`.
///
/// # Errors
/// Fails if `vb` holds a parameter in another shape.
pub fn linear(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Linear> {
    linear_with(inputs, outputs, InitScheme::PyTorch, vb)
}

/// Creates a fully connected layer without bias; see [`linear`].
///
/// # Errors
/// Fails if [`linear`] would.
pub fn linear_no_bias(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Linear> {
    let init = InitScheme::PyTorch.weight(inputs, outputs);
    Ok(Linear { weight: vb.get_with_hints((outputs, inputs), "weight", init)?, bias: None })
}

/// Creates a fully connected layer with or without `bias`; see [`linear`].
///
/// # Errors
/// Fails if [`linear`] would.
pub fn linear_b(inputs: usize, outputs: usize, bias: bool, vb: VarBuilder) -> Result<Linear> {
    if bias { linear(inputs, outputs, vb) } else { linear_no_bias(inputs, outputs, vb) }
}

/// Creates a fully connected layer with the initial values of `init`; see [`linear`].
///
/// # Errors
/// Fails if [`linear`] would.
pub fn linear_with(inputs: usize, outputs: usize, init: InitScheme, vb: VarBuilder) -> Result<Linear> {
    Ok(Linear {
        weight: vb.get_with_hints((outputs, inputs), "weight", init.weight(inputs, outputs))?,
        bias: Some(vb.get_with_hints(outputs, "bias", init.bias(inputs))?),
    })
}

impl Linear {
    /// Creates a layer from `weight` `(outputs, inputs)` and `bias` `(outputs)`.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// The weight, `(outputs, inputs)`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The bias, `(outputs)`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

impl Module for Linear {
    /// `(.., inputs)` to `(.., outputs)`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        // Candle's layer also adds a bias of one value, and multiplies other types.
        let is_usual = self.bias.as_ref().is_none_or(|bias| bias.rank() == 1);
        match is_native(&self.weight) && is_usual {
            true => ops::linear(xs, &self.weight, self.bias.as_ref()),
            false => candle_nn::Linear::new(self.weight.clone(), self.bias.clone()).forward(xs),
        }
    }
}
