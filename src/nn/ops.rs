//! The functions of candle_nn's module `ops`.
//!
//! candle_nn's `layer_norm`, `rms_norm` and `softmax_last_dim` block the gradient; these pass it on. Without gradients,
//! candle's own are used.

use super::dropout::masked;
use super::is_native;
use crate::ops::MaskPlace;
use candle_core::{D, Result, Tensor};
use std::sync::atomic::{AtomicU64, Ordering};

pub use super::dropout::Dropout;
pub use candle_nn::ops::*;

/// `1 / (1 + exp(-x))` of each element.
///
/// # Errors
/// Fails if the elements are not floating-point numbers.
pub fn sigmoid(xs: &Tensor) -> Result<Tensor> {
    if is_native(xs) { crate::ops::sigmoid(xs) } else { candle_nn::ops::sigmoid(xs) }
}

/// `ln(1 + exp(x))` of each element, for x of any size.
pub(super) fn softplus(xs: &Tensor) -> Result<Tensor> {
    // Candle splits the gradient of a maximum between equal arguments, so the gradient at 0 is correct.
    let magnitude = xs.maximum(&xs.neg()?)?;
    xs.maximum(&xs.zeros_like()?)? + (magnitude.neg()?.exp()? + 1.0)?.log()?
}

/// `x tanh(ln(1 + exp(x)))` of each element (Misra 2019). candle_nn's gradient is NaN for x beyond 88 in f32.
///
/// # Errors
/// Fails if the elements are not floating-point numbers.
pub fn mish(xs: &Tensor) -> Result<Tensor> {
    xs * softplus(xs)?.tanh()?
}

/// `scale` times `x` above 0, else `scale alpha (exp(x) - 1)` (Klambauer et al. 2017).
///
/// candle_nn's gradient is NaN for x beyond 88, and it takes f32 only.
///
/// # Errors
/// Fails if the elements are not floating-point numbers.
pub fn selu(xs: &Tensor, alpha: f32, scale: f32) -> Result<Tensor> {
    xs.elu(f64::from(alpha))? * f64::from(scale)
}

/// The softmax along the last dimension.
///
/// # Errors
/// Fails if `xs` has no dimension.
pub fn softmax_last_dim(xs: &Tensor) -> Result<Tensor> {
    if xs.track_op() { softmax(xs, D::Minus1) } else { candle_nn::ops::softmax_last_dim(xs) }
}

/// Normalises the vectors of `xs` `(.., size)`; see [`LayerNorm`](super::LayerNorm).
///
/// `weight` and `bias` are `(size)`.
///
/// # Errors
/// Fails if the sizes differ.
pub fn layer_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, epsilon: f32) -> Result<Tensor> {
    candle_core::Module::forward(&super::LayerNorm::new(weight.clone(), bias.clone(), f64::from(epsilon)), xs)
}

/// Divides the vectors of `xs` `(.., size)` by their root mean square; see [`RmsNorm`](super::RmsNorm).
///
/// `weight` is `(size)`.
///
/// # Errors
/// Fails if the sizes differ.
pub fn rms_norm(xs: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    candle_core::Module::forward(&super::RmsNorm::new(weight.clone(), f64::from(epsilon)), xs)
}

/// Zeroes each element with a `probability` and scales up the rest; see [`Dropout`].
///
/// The mask is a function of the number of earlier calls in the process.
///
/// # Errors
/// Fails if the probability is not from 0 to 1.
pub fn dropout(xs: &Tensor, probability: f32) -> Result<Tensor> {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    masked(xs, probability, 0, &format!("dropout/call {call}"), &MaskPlace::From(0))
}
