//! Dropout.

use super::autograd::{self, Operation};
use super::gpu::{Gpu, Stored};
use super::host::{self, with_real};
use super::reference;
use super::sequences::MaskPlace;
use crate::kernels::cpu::Real;
use crate::kernels::cpu::dropout::mask;
use crate::kernels::cuda::{self, Arg, Grid};
use candle_core::op::BackpropOp;
use candle_core::{Result, Shape, Storage, Tensor, bail};
use rand::RngCore;
use rand_chacha::ChaCha8Rng;
use std::ops::Range;

/// Zeroes each element with the given `probability` and scales the others by `1 / (1 - probability)`.
///
/// The scaling keeps the expected value (Srivastava et al. 2014, section 10). The probability is rounded to a multiple
/// of 1/65536. The mask is a function of `rng`, the same on every device. A dropped NaN or infinity becomes NaN, as in
/// PyTorch.
///
/// # Errors
/// Fails if `probability` is not from 0 to 1.
pub fn dropout(xs: &Tensor, probability: f32, rng: &mut ChaCha8Rng) -> Result<Tensor> {
    dropout_in(xs, probability, rng, &MaskPlace::From(0))
}

/// Like [`dropout`], with the part of a mask at `place`.
pub(crate) fn dropout_in(
    xs: &Tensor,
    probability: f32,
    rng: &mut ChaCha8Rng,
    place: &MaskPlace,
) -> Result<Tensor> {
    if !(0. ..=1.).contains(&probability) {
        bail!("dropout: found a probability of {probability}, expected one from 0 to 1");
    }
    if let MaskPlace::Packed(sequences) = place
        && xs.dims().first() != Some(&sequences.rows())
    {
        bail!("dropout: found a tensor of shape {:?}, expected ({}, ..)", xs.dims(), sequences.rows());
    }
    let threshold = (probability * 65536.).round() as u32;
    let scale = if probability < 1. { 1. / (1. - probability) } else { 0. };
    let count = xs.elem_count();
    if let Some(gpu) = Gpu::of(xs) {
        let (first, rows) = match *place {
            MaskPlace::From(first) => (first, None),
            MaskPlace::Packed(sequences) => (0, Some(sequences.rows_in_batch_on(&gpu)?)),
        };
        let mask = Mask::Stream { stream: KeyStream::skip(rng, first, count), threshold, rows };
        return autograd::apply(Dropout { mask, scale }, vec![xs.contiguous()?]);
    }
    let start = rng.get_word_pos();
    let mut keep = Vec::with_capacity(count);
    for run in runs(place, count) {
        // The 16 bits of an odd element are the second half of a word.
        let odd = run.start % 2;
        rng.set_word_pos(start + (run.start / 2) as u128);
        let mut words = vec![0u8; 2 * (odd + run.len())];
        rng.fill_bytes(&mut words);
        let is_kept = |word: &[u8]| u8::from(u32::from(u16::from_le_bytes([word[0], word[1]])) >= threshold);
        keep.extend(words[2 * odd..].chunks_exact(2).map(is_kept));
    }
    match xs.device().is_cpu() {
        true => autograd::apply(Dropout { mask: Mask::Drawn(keep), scale }, vec![xs.contiguous()?]),
        false => reference::dropout(xs, &keep, scale),
    }
}

/// Returns the tensor's `count` elements of the larger mask, in order, as ranges.
fn runs(place: &MaskPlace, count: usize) -> Vec<Range<usize>> {
    match *place {
        MaskPlace::From(first) => std::iter::once(first..first + count).collect(),
        MaskPlace::Packed(sequences) => {
            let columns = count / sequences.rows();
            let mut runs: Vec<Range<usize>> = vec![];
            for row in sequences.rows_in_batch().iter().map(|&row| row as usize) {
                let run = row * columns..(row + 1) * columns;
                match runs.last_mut() {
                    Some(last) if last.end == run.start => last.end = run.end,
                    _ => runs.push(run),
                }
            }
            runs
        }
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
    Stream {
        stream: KeyStream,
        threshold: u32,
        /// The row of each row in a larger tensor; `None` if the elements are consecutive.
        rows: Option<Tensor>,
    },
}

/// A part of the output of ChaCha8.
struct KeyStream {
    key: [u64; 4],
    stream: u64,
    /// Number of its first 16 bits.
    first: u128,
}

impl KeyStream {
    /// Takes 16 bits for each of `count` elements from number `first` on, without computing them.
    fn skip(rng: &mut ChaCha8Rng, first: usize, count: usize) -> Self {
        let (seed, word) = (rng.get_seed(), rng.get_word_pos());
        rng.set_word_pos(word + (first + count).div_ceil(2) as u128);
        let part = |i: usize| u64::from_le_bytes(std::array::from_fn(|k| seed[8 * i + k]));
        Self { key: std::array::from_fn(part), stream: rng.get_stream(), first: 2 * word + first as u128 }
    }
}

impl Dropout {
    /// Applies the mask to `xs`: to the input, or to the gradient of the result.
    fn apply(&self, xs: &Tensor) -> Result<(Storage, Shape)> {
        with_real!("dropout", xs.dtype(), T => match &self.mask {
            Mask::Drawn(keep) => host::read::<T, _>(xs, |elements| {
                Ok(host::output(mask(elements, keep, T::of(f64::from(self.scale))), xs.shape()))
            }),
            Mask::Stream { stream, threshold, rows } => {
                self.apply_on::<T>(stream, *threshold, rows.as_ref(), xs)
            }
        })
    }

    fn apply_on<T: Stored + cuda::Real>(
        &self,
        stream: &KeyStream,
        threshold: u32,
        rows: Option<&Tensor>,
        xs: &Tensor,
    ) -> Result<(Storage, Shape)> {
        const THREADS: usize = 128;
        let Some(gpu) = Gpu::of(xs) else {
            bail!("dropout: found a gradient in another place than the input")
        };
        let count = xs.elem_count();
        let ys = gpu.alloc::<T>(count)?;
        // A block of the stream has 16 words, for 32 elements.
        let (block, skipped) = ((stream.first / 32) as u64, (stream.first % 32) as usize);
        let pointers: [Arg; 2] = [gpu.pointer::<T>(xs)?.into(), ys.pointer().into()];
        let key: [Arg; 4] = stream.key.map(Arg::from);
        let last: [Arg; 5] = [
            stream.stream.into(),
            block.into(),
            (skipped as i32).into(),
            threshold.into(),
            T::of(f64::from(self.scale)).into(),
        ];
        let (name, units, place): (_, _, Vec<Arg>) = match rows {
            None => ("dropout", (skipped + count).div_ceil(32), vec![(count as i64).into()]),
            Some(numbers) => {
                let rows = numbers.elem_count();
                let columns = count / rows.max(1);
                // The number of blocks of the stream that the elements of a row can span.
                let blocks = (columns + 30) / 32 + 1;
                let place = vec![
                    gpu.pointer::<u32>(numbers)?.into(),
                    (rows as i64).into(),
                    (columns as i32).into(),
                    (blocks as i32).into(),
                ];
                ("dropout_rows", rows * blocks, place)
            }
        };
        let blocks = if count == 0 { 0 } else { units.div_ceil(THREADS) };
        let grid = Grid { blocks: [blocks, 1, 1], threads: [THREADS, 1, 1], shared: 0 };
        let args = [&pointers[..], &place, &key, &last].concat();
        // SAFETY: these are the kernel's parameters; both arrays have `count` elements.
        unsafe { gpu.launch(cuda::DROPOUT.kernel::<T>(name), grid, &args)? };
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
