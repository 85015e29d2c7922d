//! Pooling over time: the elements of each sequence reduced to one.

use super::arguments::{TimePooling, check_pool_over_time};
use super::autograd::{self, Operation};
use super::host::{self, with_real};
use super::{PackedSequences, reference};
use crate::kernels::cpu::pool_over_time as kernel;
use candle_core::{Result, Shape, Storage, Tensor};
use std::sync::Arc;

/// Reduces the elements of each sequence to one: `xs` `(rows, features)` to `(batch, features)`.
///
/// `xs` holds the elements of `sequences` in packed order.
///
/// # Errors
/// Fails if the number of rows is not that of `sequences`.
pub fn pool_over_time(xs: &Tensor, sequences: &Arc<PackedSequences>, pooling: TimePooling) -> Result<Tensor> {
    check_pool_over_time(xs, sequences)?;
    match xs.device().is_cpu() {
        true => {
            autograd::apply(PoolOverTime { sequences: sequences.clone(), pooling }, vec![xs.contiguous()?])
        }
        false => reference::pool_over_time(xs, sequences, pooling),
    }
}

struct PoolOverTime {
    sequences: Arc<PackedSequences>,
    pooling: TimePooling,
}

impl PoolOverTime {
    /// The index of the sequence that each row belongs to.
    fn sequence_of_rows(&self) -> impl Iterator<Item = usize> + '_ {
        self.sequences.positions().map(|(sequence, _)| sequence)
    }
}

impl Operation for PoolOverTime {
    fn name(&self) -> &'static str {
        "pool_over_time"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(Storage, Shape)> {
        let (batch, features) = (self.sequences.batch(), args[0].dim(1)?);
        with_real!(self.name(), args[0].dtype(), T => host::read::<T, _>(&args[0], |xs| {
            let ys = match self.pooling {
                TimePooling::Mean => {
                    kernel::mean(xs, features, self.sequence_of_rows(), &self.sequences.lengths())
                }
                TimePooling::Max => {
                    let rows = kernel::argmax(xs, features, self.sequence_of_rows(), batch);
                    kernel::max(xs, features, &rows)
                }
            };
            Ok(host::output(ys, (batch, features)))
        }))
    }

    fn backward(&self, args: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (batch, features) = (self.sequences.batch(), args[0].dim(1)?);
        let held = host::hold([&args[0], grad]);
        with_real!(self.name(), grad.dtype(), T => {
            let (xs, grad) = (held.get::<T>(0)?, held.get::<T>(1)?);
            let xs_grad = match self.pooling {
                TimePooling::Mean => {
                    kernel::mean_grad(grad, features, self.sequence_of_rows(), &self.sequences.lengths())
                }
                TimePooling::Max => {
                    let rows = kernel::argmax(xs, features, self.sequence_of_rows(), batch);
                    kernel::max_grad(grad, features, &rows, xs.len())
                }
            };
            Ok(vec![Some(Tensor::from_vec(xs_grad, args[0].shape(), args[0].device())?)])
        })
    }
}
