//! Dropout.

use super::autograd::{self, Operation};
use super::host::{self, Element, with_real};
use super::reference;
use crate::kernels::cpu::dropout::mask;
use candle_core::{Result, Shape, Storage, Tensor, bail};
use rand::RngCore;
use rand_chacha::ChaCha8Rng;

/// Zeroes each element with the given `probability` and scales the others by `1 / (1 - probability)`.
///
/// The scaling keeps the expected value (Srivastava et al. 2014, section 10, at training time). The probability is rounded
/// to a multiple of 1/65536. `rng` draws the mask on the host, so it is the same on every device. A dropped NaN or infinity
/// becomes NaN, as in PyTorch.
///
/// # Errors
/// Fails if `probability` is not from 0 to 1.
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
        true => autograd::apply(Dropout { keep, scale }, vec![xs.contiguous()?]),
        false => reference::dropout(xs, &keep, scale),
    }
}

struct Dropout {
    /// One per element: 1 to keep it, 0 to drop it.
    keep: Vec<u8>,
    scale: f32,
}

impl Dropout {
    fn mask<T: Element>(&self, xs: &[T]) -> Vec<T> {
        mask(xs, &self.keep, T::of(f64::from(self.scale)))
    }
}

impl Operation for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(Storage, Shape)> {
        with_real!(self.name(), args[0].dtype(), T => host::read::<T, _>(&args[0], |xs| {
            Ok(host::output(self.mask(xs), args[0].shape()))
        }))
    }

    fn backward(&self, _: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        with_real!(self.name(), grad.dtype(), T => host::read::<T, _>(grad, |elements| {
            Ok(vec![Some(Tensor::from_vec(self.mask(elements), grad.shape(), grad.device())?)])
        }))
    }
}
