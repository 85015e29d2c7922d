//! Rotary position embeddings (Su et al. 2021).
//!
//! candle_nn's functions block the gradient; these pass it on. Without gradients, candle's own are used.

use candle_core::{D, Result, Tensor, bail};

pub use candle_nn::rotary_emb::*;

/// Rotates pairs of elements that are half the last dimension apart.
///
/// `xs` is `(batch, heads, steps, size)`; `cos` and `sin` are `(steps, size / 2)`, or `(batch, steps, size / 2)` if each
/// example has its own. They may have further steps, which are left out.
///
/// # Errors
/// Fails if the shapes do not fit or, without gradients, `xs` is not contiguous.
pub fn rope(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (batch, _, steps, size) = xs.dims4()?;
    let [cos, sin] = factors([cos, sin], batch, steps, size)?;
    if !is_tracked([xs, &cos, &sin]) {
        return candle_nn::rotary_emb::rope(xs, &cos, &sin);
    }
    let halves = [0, size / 2].map(|start| xs.narrow(3, start, size / 2));
    Tensor::cat(&rotated(halves, cos, sin)?, 3)
}

/// Rotates pairs of adjacent elements; see [`rope`].
///
/// # Errors
/// Fails if [`rope`] would.
pub fn rope_i(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (batch, heads, steps, size) = xs.dims4()?;
    let [cos, sin] = factors([cos, sin], batch, steps, size)?;
    if !is_tracked([xs, &cos, &sin]) {
        return candle_nn::rotary_emb::rope_i(xs, &cos, &sin);
    }
    let pairs = xs.reshape((batch, heads, steps, size / 2, 2))?;
    let elements = [0, 1].map(|element| pairs.narrow(4, element, 1)?.squeeze(4));
    Tensor::stack(&rotated(elements, cos, sin)?, 4)?.flatten_from(3)
}

/// Like [`rope`], with `xs` `(batch, steps, heads, size)`.
///
/// # Errors
/// Fails if [`rope`] would.
pub fn rope_thd(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    if is_tracked([xs, cos, sin]) {
        return rope(&xs.transpose(1, 2)?, cos, sin)?.transpose(1, 2)?.contiguous();
    }
    let (batch, steps, _, size) = xs.dims4()?;
    let [cos, sin] = factors([cos, sin], batch, steps, size)?;
    candle_nn::rotary_emb::rope_thd(xs, &cos, &sin)
}

fn is_tracked(tensors: [&Tensor; 3]) -> bool {
    tensors.into_iter().any(Tensor::track_op)
}

/// Checks the shapes of `cos` and `sin`, and leaves out steps that `xs` lacks.
///
/// Candle would mix the steps of different examples.
fn factors(cos_and_sin: [&Tensor; 2], batch: usize, steps: usize, size: usize) -> Result<[Tensor; 2]> {
    let [cos, sin] = cos_and_sin.map(|factors| {
        let fits = match *factors.dims() {
            [found, pairs] => found >= steps && 2 * pairs == size,
            [examples, found, pairs] => examples == batch && found >= steps && 2 * pairs == size,
            _ => false,
        };
        if !fits {
            let found = factors.dims();
            bail!(
                "rope: found cos or sin of shape {found:?}, expected half of size {size} for {steps} steps of {batch} examples"
            );
        }
        factors.narrow(D::Minus2, 0, steps)?.contiguous()
    });
    let [cos, sin] = [cos?, sin?];
    if cos.rank() != sin.rank() {
        bail!("rope: found cos and sin of shapes {:?} and {:?}, expected one shape", cos.dims(), sin.dims());
    }
    Ok([cos, sin])
}

/// Rotates the first and the second elements of pairs, `(batch, heads, steps, pairs)` each.
fn rotated([first, second]: [Result<Tensor>; 2], cos: Tensor, sin: Tensor) -> Result<[Tensor; 2]> {
    let (first, second) = (first?, second?);
    // One for all heads.
    let (cos, sin) = (cos.unsqueeze(D::Minus(3))?, sin.unsqueeze(D::Minus(3))?);
    Ok([
        (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?,
        (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?,
    ])
}
