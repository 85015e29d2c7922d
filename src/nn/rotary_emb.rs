//! Rotary position embeddings (Su et al. 2021).
//!
//! candle_nn's functions block the gradient; these pass it on. Without gradients, candle's own are used.

use candle_core::{Result, Tensor};

pub use candle_nn::rotary_emb::*;

/// Rotates pairs of elements that are half the last dimension apart.
///
/// `xs` is `(batch, heads, steps, size)`; `cos` and `sin` are `(steps, size / 2)`.
///
/// # Errors
/// Fails if the shapes do not fit.
pub fn rope(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    match xs.track_op() {
        true => candle_nn::rotary_emb::rope_slow(xs, cos, sin),
        false => candle_nn::rotary_emb::rope(xs, cos, sin),
    }
}

/// Rotates pairs of adjacent elements; see [`rope`].
///
/// # Errors
/// Fails if the shapes do not fit.
pub fn rope_i(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    match xs.track_op() {
        true => candle_nn::rotary_emb::rope_i_slow(xs, cos, sin),
        false => candle_nn::rotary_emb::rope_i(xs, cos, sin),
    }
}

/// Like [`rope`], with `xs` `(batch, steps, heads, size)`.
///
/// # Errors
/// Fails if the shapes do not fit.
pub fn rope_thd(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    match xs.track_op() {
        true => rope(&xs.transpose(1, 2)?.contiguous()?, cos, sin)?.transpose(1, 2)?.contiguous(),
        false => candle_nn::rotary_emb::rope_thd(xs, cos, sin),
    }
}
