//! Losses, scalars.

use super::is_native;
use super::ops::softplus;
use crate::ops;
use candle_core::{Result, Tensor};

pub use candle_nn::loss::*;

/// The mean of `-ln softmax(logits)[target]`.
///
/// Takes logits `(batch, classes)` and integer targets `(batch)`. See [`ops::softmax_cross_entropy`] for label
/// smoothing.
///
/// # Errors
/// Fails if the shapes do not fit, the batch is empty, the targets are not integers or, on the CPU, one is not below the number
/// of classes.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let targets = ops::to_ids("cross_entropy: found a target", targets)?;
    match is_native(logits) {
        true => ops::softmax_cross_entropy(logits, &targets, 0.0),
        false => candle_nn::loss::cross_entropy(logits, &targets),
    }
}

/// The mean binary cross-entropy of `sigmoid(logits)` with targets from 0 to 1 of the same shape.
///
/// It is accurate for logits of any size; candle_nn's is infinite or NaN beyond about ±17 in f32.
///
/// # Errors
/// Fails if the shapes differ.
pub fn binary_cross_entropy_with_logit(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    (softplus(logits)? - (logits * targets.to_dtype(logits.dtype())?)?)?.mean_all()
}
