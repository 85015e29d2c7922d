//! The elements of each sequence as one.

use super::autograd::{self, Operation};
use super::host::{self, Element, with_real};
use super::{PackedSequences, reference};
use candle_core::{CpuStorage, Result, Shape, Tensor, bail};
use std::sync::Arc;

/// What is made of the elements of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimePooling {
    Mean,
    /// Of each feature the largest value, whose first place takes all the gradient (Collobert et al. 2011).
    Max,
}

/// One row `(batch, features)` a sequence of the elements `xs` `(rows, features)` of `sequences`.
///
/// # Errors
/// When `xs` has another number of rows.
pub fn pool_over_time(xs: &Tensor, sequences: &Arc<PackedSequences>, how: TimePooling) -> Result<Tensor> {
    match xs.dims() {
        &[rows, _] if rows == sequences.rows() => {}
        dims => {
            bail!("pool_over_time: found a tensor of shape {dims:?}, expected ({}, ..)", sequences.rows())
        }
    }
    match xs.device().is_cpu() {
        true => autograd::apply(Op { sequences: sequences.clone(), how }, vec![xs.contiguous()?]),
        false => reference::pool_over_time(xs, sequences, how),
    }
}

struct Op {
    sequences: Arc<PackedSequences>,
    how: TimePooling,
}

impl Op {
    fn mean<T: Element>(&self, xs: &[T], features: usize) -> Vec<T> {
        let mut ys = vec![T::ZERO; self.sequences.batch() * features];
        for ((sequence, _), x) in self.sequences.positions().zip(xs.chunks_exact(features)) {
            ys[sequence * features..][..features].iter_mut().zip(x).for_each(|(y, &x)| *y += x);
        }
        for (y, length) in ys.chunks_exact_mut(features).zip(self.sequences.lengths()) {
            y.iter_mut().for_each(|y| *y /= T::of(length as f64));
        }
        ys
    }

    /// The row of the largest value of each feature of each sequence.
    fn largest<T: Element>(&self, xs: &[T], features: usize) -> Vec<usize> {
        let mut rows = vec![usize::MAX; self.sequences.batch() * features];
        for (row, (sequence, _)) in self.sequences.positions().enumerate() {
            for (i, best) in rows[sequence * features..][..features].iter_mut().enumerate() {
                let x = xs[row * features + i];
                if *best == usize::MAX || x > xs[*best * features + i] || x.is_nan() {
                    *best = row;
                }
            }
        }
        rows
    }

    fn run_back<T: Element>(&self, xs: &[T], grad: &[T], features: usize) -> Vec<T> {
        let mut xs_grad = vec![T::ZERO; xs.len()];
        match self.how {
            TimePooling::Mean => {
                let lengths = self.sequences.lengths();
                for ((sequence, _), to) in self.sequences.positions().zip(xs_grad.chunks_exact_mut(features))
                {
                    let length = T::of(lengths[sequence] as f64);
                    to.iter_mut()
                        .zip(&grad[sequence * features..])
                        .for_each(|(to, &grad)| *to = grad / length);
                }
            }
            TimePooling::Max => {
                for (at, (row, &grad)) in self.largest(xs, features).into_iter().zip(grad).enumerate() {
                    xs_grad[row * features + at % features] = grad;
                }
            }
        }
        xs_grad
    }
}

impl Operation for Op {
    fn name(&self) -> &'static str {
        "pool_over_time"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let (_, features) = args[0].dims2()?;
        with_real!(self.name(), args[0].dtype(), T => host::read::<T, _>(&args[0], |xs| {
            let ys = match self.how {
                TimePooling::Mean => self.mean(xs, features),
                TimePooling::Max => {
                    let rows = self.largest(xs, features).into_iter().enumerate();
                    rows.map(|(at, row)| xs[row * features + at % features]).collect()
                }
            };
            Ok(host::output(ys, (self.sequences.batch(), features)))
        }))
    }

    fn backward(&self, args: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (xs, held) = (&args[0], host::hold([&args[0], grad]));
        with_real!(self.name(), xs.dtype(), T => {
            let xs_grad = self.run_back::<T>(held.get(0)?, held.get(1)?, xs.dim(1)?);
            Ok(vec![Some(Tensor::from_vec(xs_grad, xs.shape(), xs.device())?)])
        })
    }
}
