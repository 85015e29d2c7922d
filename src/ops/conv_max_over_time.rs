//! Convolution over the words of sentences, of which each filter's largest response is kept.
//!
//! The sentences lie one after the other with zeros between them, so that a window of several words is a run of
//! consecutive numbers, and all windows are the rows of a matrix without being copied: the convolution is one matrix
//! product, and the largest responses are found while its results are still in the cache. On the way back only the
//! windows that won count: a gradient touches one window a sentence and filter, not all of them.

use super::autograd::{self, Operation};
use super::host::{self, Element, with_real};
use super::{PackedSequences, reference};
use crate::kernels::cpu::matmul::{Init, Lhs, Panels, gemm_serial};
use crate::kernels::cpu::parallel::{self, Shared};
use crate::kernels::cpu::simd::vectorised;
use candle_core::{CpuStorage, Device, Result, Shape, Tensor, bail};
use std::sync::{Arc, OnceLock};

/// Filters that look at windows of so many words.
#[derive(Debug, Clone)]
pub struct ConvFilters {
    /// `(filters, features, width)`: that of PyTorch's `Conv1d`.
    pub weight: Tensor,
    /// `(filters)`
    pub bias: Tensor,
}

/// The largest response of each filter over all windows of each sentence, `(batch, filters)`, those of all of `filters`
/// side by side (Collobert et al. 2011; Kim 2014, equations 2 to 4, before the nonlinearity, which may as well come after
/// the maximum).
///
/// `xs` `(rows, features)` are the words of `sentences`, each of which has `padding` zeros before and after it. Of several
/// largest responses the first one counts.
///
/// # Errors
/// When shapes do not fit, or a sentence with its padding is shorter than a window.
pub fn conv_max_over_time(
    xs: &Tensor,
    sentences: &Arc<PackedSequences>,
    filters: &[ConvFilters],
    padding: usize,
) -> Result<Tensor> {
    let (op, args) = prepare(xs, sentences, filters, padding)?;
    match xs.device().is_cpu() {
        true => autograd::apply(op, args),
        false => Ok(reference::conv_max_over_time(xs, sentences, filters, padding)?.0),
    }
}

/// Where the window of each filter's largest response begins in each sentence: `(batch, filters)` numbers of words, negative
/// in the padding before the first. See [`conv_max_over_time`].
///
/// # Errors
/// As for [`conv_max_over_time`].
pub fn conv_max_positions(
    xs: &Tensor,
    sentences: &Arc<PackedSequences>,
    filters: &[ConvFilters],
    padding: usize,
) -> Result<Vec<Vec<i64>>> {
    let (op, args) = prepare(xs, sentences, filters, padding)?;
    if !xs.device().is_cpu() {
        return Ok(reference::conv_max_over_time(xs, sentences, filters, padding)?.1);
    }
    op.forward(&args)?;
    let starts = op.layout().starts;
    let Some(kept) = op.memory.get() else { bail!("conv_max_over_time: nothing was kept") };
    let winners = kept.winners.chunks_exact(kept.winners.len() / starts.len());
    let of = |(winners, start): (&[u32], usize)| {
        winners.iter().map(|&row| i64::from(row) - start as i64).collect()
    };
    Ok(winners.zip(starts).map(of).collect())
}

fn prepare(
    xs: &Tensor,
    sentences: &Arc<PackedSequences>,
    filters: &[ConvFilters],
    padding: usize,
) -> Result<(ConvMaxOverTime, Vec<Tensor>)> {
    let features = match xs.dims() {
        &[rows, features] if rows == sentences.rows() && features > 0 => features,
        dims => {
            bail!(
                "conv_max_over_time: found an input of shape {dims:?}, expected ({}, features)",
                sentences.rows()
            )
        }
    };
    let lengths = sentences.lengths();
    let shortest = lengths.iter().min().copied().unwrap_or(0) + 2 * padding;
    let (mut args, mut shapes) = (vec![xs.contiguous()?], vec![]);
    for ConvFilters { weight, bias } in filters {
        let (count, width) = match weight.dims() {
            &[count, of, width] if of == features && count * width > 0 => (count, width),
            dims => {
                bail!(
                    "conv_max_over_time: found a weight of shape {dims:?}, expected (filters, {features}, width)"
                )
            }
        };
        if bias.dims() != [count] {
            bail!("conv_max_over_time: found a bias of shape {:?}, expected ({count})", bias.dims());
        }
        if shortest < width {
            bail!(
                "conv_max_over_time: a sentence of {shortest} words with its padding, expected at least {width}"
            );
        }
        args.extend([weight.contiguous()?, bias.contiguous()?]);
        shapes.push((count, width));
    }
    if filters.is_empty() {
        bail!("conv_max_over_time: found no filters, expected some");
    }
    let sentences = sentences.clone();
    Ok((
        ConvMaxOverTime { sentences, lengths, features, padding, filters: shapes, memory: OnceLock::new() },
        args,
    ))
}

struct ConvMaxOverTime {
    sentences: Arc<PackedSequences>,
    lengths: Vec<usize>,
    features: usize,
    padding: usize,
    /// Of each width: how many, and the width.
    filters: Vec<(usize, usize)>,
    memory: OnceLock<Kept>,
}

struct Kept {
    /// The sentences as the convolution reads them.
    spread: CpuStorage,
    /// `(batch, filters)`: the row at which the winning window begins.
    winners: Vec<u32>,
}

/// How sentences lie one after the other.
struct Spread {
    /// The row of each one's first word.
    starts: Vec<usize>,
    rows: usize,
}

/// So many rows of words make a task.
const ROWS: usize = 256;

impl ConvMaxOverTime {
    fn layout(&self) -> Spread {
        let (mut starts, mut rows) = (vec![], self.padding);
        for length in &self.lengths {
            starts.push(rows);
            rows += length + self.padding;
        }
        Spread { starts, rows }
    }

    /// How many filters there are.
    fn total(&self) -> usize {
        self.filters.iter().map(|filters| filters.0).sum()
    }

    /// The row of `spread` where the words of each row of the input are.
    fn places(&self, starts: &[usize]) -> Vec<usize> {
        self.sentences.positions().map(|(sentence, word)| starts[sentence] + word).collect()
    }

    /// Sentences that one task takes: consecutive ones.
    fn tasks(&self) -> Vec<std::ops::Range<usize>> {
        let (mut tasks, mut start, mut rows) = (vec![], 0, 0);
        for (i, length) in self.lengths.iter().enumerate() {
            rows += length + self.padding;
            if rows >= ROWS || i + 1 == self.lengths.len() {
                tasks.push(start..i + 1);
                (start, rows) = (i + 1, 0);
            }
        }
        tasks
    }

    fn run<T: Element>(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let &Self { features, padding, .. } = self;
        let (batch, total) = (self.lengths.len(), self.total());
        let held = host::hold(args);
        let layout = self.layout();
        let mut spread = vec![T::ZERO; layout.rows * features];
        let xs = held.get::<T>(0)?;
        for (x, place) in xs.chunks_exact(features).zip(self.places(&layout.starts)) {
            spread[place * features..(place + 1) * features].copy_from_slice(x);
        }
        let mut panels = vec![];
        for (i, &(count, width)) in self.filters.iter().enumerate() {
            let turned = turned(held.get::<T>(1 + 2 * i)?, (count, features, width));
            let depth = width * features;
            panels.push(Panels::transposed((depth, count), |filter| &turned[filter * depth..]));
        }
        let (mut ys, mut winners) = (vec![T::ZERO; batch * total], vec![0u32; batch * total]);
        let (all_ys, all_winners) = (Shared::new(&mut ys), Shared::new(&mut winners));
        let biases: Vec<&[T]> =
            (0..self.filters.len()).map(|i| held.get::<T>(2 + 2 * i)).collect::<Result<_>>()?;
        let tasks = self.tasks();
        parallel::for_each_chunk(tasks.len(), |task| {
            let sentences = tasks[task].clone();
            // SAFETY: each sentence belongs to one task.
            let (ys, winners) = unsafe {
                let own = sentences.start * total..sentences.end * total;
                (all_ys.slice(own.clone()), all_winners.slice(own))
            };
            let mut from = 0;
            for ((&(count, width), panels), bias) in self.filters.iter().zip(&panels).zip(&biases) {
                let windows = |sentence: usize| {
                    let first = layout.starts[sentence] - padding;
                    first..first + self.lengths[sentence] + 2 * padding + 1 - width
                };
                let first = windows(sentences.start).start;
                let rows = windows(sentences.end - 1).end - first;
                // SAFETY: the product writes all of it.
                let mut responses = unsafe { parallel::unwritten::<T>(rows * count) };
                let left = Lhs::Rows(&spread[first * features..], features);
                gemm_serial(left, panels, &mut responses, (rows, count), Init::Bias(bias));
                for sentence in sentences.clone() {
                    let at = (sentence - sentences.start) * total + from;
                    largest(
                        &responses,
                        first,
                        windows(sentence),
                        &mut ys[at..at + count],
                        &mut winners[at..at + count],
                    );
                }
                from += count;
            }
        });
        let (spread, _) = host::output(spread, layout.rows * features);
        let _ = self.memory.set(Kept { spread, winners });
        Ok(host::output(ys, (batch, total)))
    }

    fn run_back<T: Element>(&self, args: &[Tensor], grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let &Self { features, padding, .. } = self;
        let total = self.total();
        let Some(Kept { spread, winners }) = self.memory.get() else {
            bail!("conv_max_over_time: backward before forward")
        };
        let spread = T::cpu_storage_as_slice(spread)?;
        let (held, layout) = (host::hold(args.iter().chain([grad])), self.layout());
        let grad = held.get::<T>(args.len())?;
        let tensor =
            |data: Vec<T>, like: &Tensor| Tensor::from_vec(data, like.shape(), &Device::Cpu).map(Some);
        let mut grads = vec![None; args.len()];
        if args[0].track_op() {
            let weights =
                self.filters.iter().enumerate().map(|(i, &(count, width))| {
                    Ok(turned(held.get::<T>(1 + 2 * i)?, (count, features, width)))
                });
            let weights: Vec<Vec<T>> = weights.collect::<Result<_>>()?;
            let mut spread_grad = vec![T::ZERO; layout.rows * features];
            let all = Shared::new(&mut spread_grad);
            parallel::for_each_chunk(self.lengths.len(), |sentence| {
                let first = layout.starts[sentence] - padding;
                let end = layout.starts[sentence] + self.lengths[sentence] + padding;
                let mut own = vec![T::ZERO; (end - first) * features];
                let mut at = sentence * total;
                for (weight, &(count, width)) in weights.iter().zip(&self.filters) {
                    for weight in weight.chunks_exact(width * features).take(count) {
                        let place = (winners[at] as usize - first) * features;
                        add_multiple(&mut own[place..place + weight.len()], weight, grad[at]);
                        at += 1;
                    }
                }
                let words = layout.starts[sentence] * features..(end - padding) * features;
                // SAFETY: a sentence's words are its own.
                unsafe { all.slice(words.clone()) }
                    .copy_from_slice(&own[words.start - first * features..words.end - first * features]);
            });
            let rows = self.places(&layout.starts).into_iter();
            let rows = rows.flat_map(|place| &spread_grad[place * features..(place + 1) * features]);
            grads[0] = tensor(rows.copied().collect(), &args[0])?;
        }
        let mut from = 0;
        for (i, &(count, width)) in self.filters.iter().enumerate() {
            let (weight, bias) = (&args[1 + 2 * i], &args[2 + 2 * i]);
            let places = |filter: usize| (from + filter..grad.len()).step_by(total);
            if weight.track_op() {
                let len = width * features;
                let work = |filter: usize, to: &mut [T]| {
                    let mut sum = vec![T::ZERO; len];
                    for at in places(filter) {
                        add_multiple(&mut sum, &spread[winners[at] as usize * features..][..len], grad[at]);
                    }
                    for (word, sum) in sum.chunks_exact(features).enumerate() {
                        to.iter_mut().skip(word).step_by(width).zip(sum).for_each(|(to, &sum)| *to = sum);
                    }
                };
                // SAFETY: each number is written.
                grads[1 + 2 * i] = tensor(unsafe { parallel::build(count * len, len, work) }, weight)?;
            }
            if bias.track_op() {
                let sum =
                    |filter: usize| places(filter).map(|at| grad[at]).fold(T::ZERO, |sum, grad| sum + grad);
                grads[2 + 2 * i] = tensor((0..count).map(sum).collect(), bias)?;
            }
            from += count;
        }
        Ok(grads)
    }
}

/// `(filters, features, width)` to `(filters, width, features)`.
fn turned<T: Element>(weight: &[T], (count, features, width): (usize, usize, usize)) -> Vec<T> {
    let work = |filter: usize, to: &mut [T]| {
        let from = &weight[filter * to.len()..(filter + 1) * to.len()];
        for (word, to) in to.chunks_exact_mut(features).enumerate() {
            to.iter_mut().zip(from[word..].iter().step_by(width)).for_each(|(to, &from)| *to = from);
        }
    };
    // SAFETY: each number is written.
    unsafe { parallel::build(count * features * width, features * width, work) }
}

/// The largest response of each filter at the rows `windows`, the first of `responses` being row `first`; what is no number
/// counts as the largest.
fn largest<T: Element>(
    responses: &[T],
    first: usize,
    windows: std::ops::Range<usize>,
    ys: &mut [T],
    winners: &mut [u32],
) {
    let count = ys.len();
    vectorised(
        #[inline(always)]
        || {
            for row in windows.clone() {
                let responses = &responses[(row - first) * count..][..count];
                for ((y, winner), &response) in ys.iter_mut().zip(&mut *winners).zip(responses) {
                    let better = row == windows.start || response > *y || response.is_nan();
                    *winner = if better { row as u32 } else { *winner };
                    *y = if better { response } else { *y };
                }
            }
        },
    );
}

/// `sum += factor * numbers`; nothing where the factor is 0, as for half of all filters behind a ReLU.
fn add_multiple<T: Element>(sum: &mut [T], numbers: &[T], factor: T) {
    if factor == T::ZERO {
        return;
    }
    vectorised(
        #[inline(always)]
        || sum.iter_mut().zip(numbers).for_each(|(sum, &number)| *sum += factor * number),
    );
}

impl Operation for ConvMaxOverTime {
    fn name(&self) -> &'static str {
        "conv_max_over_time"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        with_real!(self.name(), args[0].dtype(), T => self.run::<T>(args))
    }

    fn backward(&self, args: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        with_real!(self.name(), grad.dtype(), T => self.run_back::<T>(args, grad))
    }
}
