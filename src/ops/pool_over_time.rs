//! Pooling over time: the elements of each sequence reduced to one.

use super::arguments::{TimePooling, check_pool_over_time};
use super::autograd::{self, Operation};
use super::gpu::{Gpu, Stored};
use super::host::{self, with_real};
use super::{PackedSequences, reference};
use crate::kernels::cpu::pool_over_time as kernel;
use crate::kernels::cuda::{self, Arg, Grid};
use candle_core::{Result, Shape, Storage, Tensor};
use std::sync::{Arc, OnceLock};

/// Reduces the elements of each sequence to one.
///
/// Maps `xs` `(rows, features)`, in the packed order of `sequences`, to `(batch, features)`.
///
/// # Errors
/// Fails if `xs` has a different number of rows than `sequences`.
pub fn pool_over_time(xs: &Tensor, sequences: &Arc<PackedSequences>, pooling: TimePooling) -> Result<Tensor> {
    check_pool_over_time(xs, sequences)?;
    if !Gpu::supports(xs) {
        return reference::pool_over_time(xs, sequences, pooling);
    }
    let op = PoolOverTime {
        sequences: sequences.clone(),
        pooling,
        rows: OnceLock::new(),
        maxima: OnceLock::new(),
    };
    autograd::apply(op, vec![xs.contiguous()?])
}

struct PoolOverTime {
    sequences: Arc<PackedSequences>,
    pooling: TimePooling,
    /// The rows of the maxima, which a forward pass keeps for the backward pass: on the CPU, or on a GPU.
    rows: OnceLock<Vec<u32>>,
    maxima: OnceLock<Tensor>,
}

impl PoolOverTime {
    fn forward_on<T: Stored + cuda::Real>(&self, gpu: &Gpu, xs: &Tensor) -> Result<(Storage, Shape)> {
        let (batch, features) = (self.sequences.batch(), xs.dim(1)?);
        let (ys, layout) = (gpu.alloc::<T>(batch * features)?, self.sequences.on_device(gpu)?);
        let mut args = vec![
            gpu.pointer::<T>(xs)?.into(),
            layout.starts.into(),
            layout.places.into(),
            layout.lengths.into(),
            ys.pointer().into(),
        ];
        let sizes = [Arg::from(batch as i32), Arg::from(features as i32)];
        let grid = Grid::elements(batch * features, 1);
        match self.pooling {
            TimePooling::Mean => {
                args.extend(sizes);
                let kernel = cuda::POOL_OVER_TIME.kernel::<T>("mean_over_time");
                // SAFETY: these are the kernel's parameters, with the sizes of the sequences.
                unsafe { gpu.launch(kernel, grid, &args)? };
            }
            TimePooling::Max => {
                let maxima = gpu.alloc::<u32>(batch * features)?;
                args.push(maxima.pointer().into());
                args.extend(sizes);
                let kernel = cuda::POOL_OVER_TIME.kernel::<T>("max_over_time");
                // SAFETY: these are the kernel's parameters, with the sizes of the sequences.
                unsafe { gpu.launch(kernel, grid, &args)? };
                self.maxima.get_or_init(|| gpu.tensor(maxima, (batch, features)));
            }
        }
        Ok(gpu.output(ys, (batch, features)))
    }

    fn backward_on<T: Stored + cuda::Real>(&self, gpu: &Gpu, xs: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let (rows, features) = xs.dims2()?;
        let (xs_grad, layout) = (gpu.alloc::<T>(rows * features)?, self.sequences.on_device(gpu)?);
        let (name, third) = match self.maxima.get() {
            None => ("mean_over_time_gradient", layout.lengths),
            Some(maxima) => ("max_over_time_gradient", gpu.pointer::<u32>(maxima)?),
        };
        let args = [
            gpu.pointer::<T>(grad)?.into(),
            layout.sequences.into(),
            third.into(),
            xs_grad.pointer().into(),
            (rows as i32).into(),
            (features as i32).into(),
        ];
        let kernel = cuda::POOL_OVER_TIME.kernel::<T>(name);
        // SAFETY: these are the kernel's parameters, with the sizes of the sequences.
        unsafe { gpu.launch(kernel, Grid::elements(rows * features, 1), &args)? };
        Ok(gpu.tensor(xs_grad, xs.shape()))
    }

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
        if let Some(gpu) = Gpu::of(&args[0]) {
            return with_real!(self.name(), args[0].dtype(), T => self.forward_on::<T>(&gpu, &args[0]));
        }
        let (batch, features) = (self.sequences.batch(), args[0].dim(1)?);
        with_real!(self.name(), args[0].dtype(), T => host::read::<T, _>(&args[0], |xs| {
            let ys = match self.pooling {
                TimePooling::Mean => {
                    kernel::mean(xs, features, self.sequence_of_rows(), &self.sequences.lengths())
                }
                TimePooling::Max => {
                    let (ys, rows) = kernel::max(xs, features, self.sequence_of_rows(), batch);
                    self.rows.get_or_init(|| rows);
                    ys
                }
            };
            Ok(host::output(ys, (batch, features)))
        }))
    }

    fn backward(&self, args: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        if let Some(gpu) = Gpu::of(grad) {
            let xs_grad =
                with_real!(self.name(), grad.dtype(), T => self.backward_on::<T>(&gpu, &args[0], grad)?);
            return Ok(vec![Some(xs_grad)]);
        }
        let features = args[0].dim(1)?;
        with_real!(self.name(), grad.dtype(), T => host::read::<T, _>(grad, |grad| {
            let xs_grad = match self.pooling {
                TimePooling::Mean => {
                    kernel::mean_grad(grad, features, self.sequence_of_rows(), &self.sequences.lengths())
                }
                TimePooling::Max => {
                    let rows = self.rows.get().map_or(&[][..], Vec::as_slice);
                    kernel::max_grad(grad, features, rows, args[0].elem_count())
                }
            };
            Ok(vec![Some(Tensor::from_vec(xs_grad, args[0].shape(), args[0].device())?)])
        }))
    }
}
