//! Dropout.

use super::autograd::{self, Operation};
use super::gpu::{Gpu, Stored};
use super::host::{self, with_real};
use super::reference;
use crate::kernels::cpu::Real;
use crate::kernels::cpu::dropout::mask;
use crate::kernels::cuda::{self, Arg, Grid};
use candle_core::op::BackpropOp;
use candle_core::{Result, Shape, Storage, Tensor, bail};
use rand::RngCore;
use rand_chacha::ChaCha8Rng;

/// Zeroes each element with the given `probability` and scales the others by `1 / (1 - probability)`.
///
/// The scaling keeps the expected value (Srivastava et al. 2014, section 10, at training time). The probability is rounded
/// to a multiple of 1/65536. The mask is a function of `rng`, the same on every device. A dropped NaN or infinity becomes
/// NaN, as in PyTorch.
///
/// # Errors
/// Fails if `probability` is not from 0 to 1.
pub fn dropout(xs: &Tensor, probability: f32, rng: &mut ChaCha8Rng) -> Result<Tensor> {
    if !(0. ..=1.).contains(&probability) {
        bail!("dropout: found a probability of {probability}, expected one from 0 to 1");
    }
    let threshold = (probability * 65536.).round() as u32;
    let scale = if probability < 1. { 1. / (1. - probability) } else { 0. };
    let count = xs.elem_count();
    if Gpu::of(xs).is_some() {
        let mask = Mask::Stream(KeyStream::skip(rng, count), threshold);
        return autograd::apply(Dropout { mask, scale }, vec![xs.contiguous()?]);
    }
    let mut words = vec![0u8; 2 * count];
    rng.fill_bytes(&mut words);
    let keep = |word: &[u8]| u8::from(u32::from(u16::from_le_bytes([word[0], word[1]])) >= threshold);
    let keep = words.chunks_exact(2).map(keep).collect::<Vec<_>>();
    match xs.device().is_cpu() {
        true => autograd::apply(Dropout { mask: Mask::Drawn(keep), scale }, vec![xs.contiguous()?]),
        false => reference::dropout(xs, &keep, scale),
    }
}

struct Dropout {
    mask: Mask,
    scale: f32,
}

enum Mask {
    /// One per element: 1 to keep it, 0 to drop it.
    Drawn(Vec<u8>),
    /// Keeps the elements whose 16 bits of the stream are at least the threshold. The kernels compute the stream.
    Stream(KeyStream, u32),
}

/// A part of the output of ChaCha8.
struct KeyStream {
    key: [u64; 4],
    stream: u64,
    /// Number of its first word.
    word: u128,
}

impl KeyStream {
    /// Takes 16 bits for each of `count` elements from `rng`, without computing them.
    fn skip(rng: &mut ChaCha8Rng, count: usize) -> Self {
        let (seed, word) = (rng.get_seed(), rng.get_word_pos());
        rng.set_word_pos(word + count.div_ceil(2) as u128);
        let part = |i: usize| u64::from_le_bytes(std::array::from_fn(|k| seed[8 * i + k]));
        Self { key: std::array::from_fn(part), stream: rng.get_stream(), word }
    }
}

impl Dropout {
    /// Applies the mask to `xs`: to the input, or to the gradient of the result.
    fn apply(&self, xs: &Tensor) -> Result<(Storage, Shape)> {
        with_real!("dropout", xs.dtype(), T => match &self.mask {
            Mask::Drawn(keep) => host::read::<T, _>(xs, |elements| {
                Ok(host::output(mask(elements, keep, T::of(f64::from(self.scale))), xs.shape()))
            }),
            Mask::Stream(stream, threshold) => self.apply_on::<T>(stream, *threshold, xs),
        })
    }

    fn apply_on<T: Stored + cuda::Real>(
        &self,
        stream: &KeyStream,
        threshold: u32,
        xs: &Tensor,
    ) -> Result<(Storage, Shape)> {
        const THREADS: usize = 128;
        let Some(gpu) = Gpu::of(xs) else {
            bail!("dropout: found a gradient in another place than the input")
        };
        let count = xs.elem_count();
        let ys = gpu.alloc::<T>(count)?;
        // A block of the stream has 16 words, for 32 elements.
        let (block, skipped) = ((stream.word / 16) as u64, 2 * (stream.word % 16) as usize);
        let [key0, key1, key2, key3] = stream.key.map(Arg::from);
        let args = [
            gpu.pointer::<T>(xs)?.into(),
            ys.pointer().into(),
            (count as i64).into(),
            key0,
            key1,
            key2,
            key3,
            stream.stream.into(),
            block.into(),
            (skipped as i32).into(),
            threshold.into(),
            T::of(f64::from(self.scale)).into(),
        ];
        let blocks = if count == 0 { 0 } else { (skipped + count).div_ceil(32 * THREADS) };
        let grid = Grid { blocks: [blocks, 1, 1], threads: [THREADS, 1, 1], shared: 0 };
        // SAFETY: these are the kernel's parameters; both arrays have `count` elements.
        unsafe { gpu.launch(cuda::DROPOUT.kernel::<T>("dropout"), grid, &args)? };
        Ok(gpu.output(ys, xs.shape()))
    }
}

impl Operation for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(Storage, Shape)> {
        self.apply(&args[0])
    }

    fn backward(&self, _: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (values, shape) = self.apply(grad)?;
        Ok(vec![Some(Tensor::from_storage(values, shape, BackpropOp::none(), false))])
    }
}
