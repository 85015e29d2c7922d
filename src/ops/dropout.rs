//! Dropout.

use super::host::{self, Real, with_real};
use super::simd::vectorised;
use super::{parallel, reference};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rand::RngCore;
use rand_chacha::ChaCha8Rng;

/// Sets each element to 0 with `probability` (rounded to a multiple of 1/65536), else divides it by
/// `1 - probability`, so that the expected value stays (Srivastava et al. 2014, section 10, at training time).
///
/// The mask is drawn from `rng` on the host: the same one on every device.
pub fn dropout(xs: &Tensor, probability: f32, rng: &mut ChaCha8Rng) -> Result<Tensor> {
    if !(0. ..=1.).contains(&probability) {
        bail!("dropout: found a probability of {probability}, expected one from 0 to 1");
    }
    let mut words = vec![0u8; 2 * xs.elem_count()];
    rng.fill_bytes(&mut words);
    let threshold = (probability * 65536.).round() as u32;
    let keep = |word: &[u8]| u8::from(u32::from(u16::from_le_bytes([word[0], word[1]])) >= threshold);
    let keep = words.chunks_exact(2).map(keep).collect::<Vec<_>>();
    let scale = if probability < 1. { 1. / (1. - probability) } else { 0. };
    match xs.device().is_cpu() {
        true => xs.contiguous()?.apply_op1(Dropout { keep, scale }),
        false => reference::dropout(xs, &keep, scale),
    }
}

struct Dropout {
    /// One for each element: 1 to keep it, 0 to drop it.
    keep: Vec<u8>,
    scale: f32,
}

impl Dropout {
    fn apply<T: Real>(&self, xs: &[T]) -> Vec<T> {
        const CHUNK: usize = 1 << 14;
        let scale = T::from_f64(f64::from(self.scale));
        let work = |i: usize, ys: &mut [T]| {
            let (xs, keep) = (&xs[i * CHUNK..][..ys.len()], &self.keep[i * CHUNK..][..ys.len()]);
            vectorised(|| {
                for ((y, &x), &keep) in ys.iter_mut().zip(xs).zip(keep) {
                    *y = if keep != 0 { x * scale } else { T::ZERO };
                }
            });
        };
        // SAFETY: each element is written.
        unsafe { parallel::build(xs.len(), CHUNK, work) }
    }
}

impl CustomOp1 for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        with_real!(self.name(), host::dtype(xs), T => {
            Ok(host::output(self.apply(host::slice::<T>(xs, layout)?), layout.shape()))
        })
    }

    fn bwd(&self, xs: &Tensor, _ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        with_real!(self.name(), xs.dtype(), T => host::read::<T, _>(&grad, |grad| {
            Ok(Some(Tensor::from_vec(self.apply(grad), xs.shape(), xs.device())?))
        }))
    }
}
