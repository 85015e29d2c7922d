//! Rows of a table by index, individually or averaged over sequences.

use super::autograd::{self, Operation};
use super::gpu::{Gpu, Stored};
use super::host::{self, Element, with_real};
use super::row_gradients::{RowGradients, RowNumbers, gradient_on};
use super::{PackedSequences, TimePooling, reference};
use crate::kernels::cpu::embedding::{Uses, lookup, means, row_gradients, table_gradient};
use crate::kernels::cuda::{self, Arg, Grid, Pointer};
use candle_core::{DType, Result, Shape, Storage, Tensor, bail};
use std::sync::Arc;

/// The id of no row, as in candle's `index_select`: zeros, which pass no gradient on.
pub const NO_ROW: u32 = u32::MAX;

/// Returns the rows `ids` of `table`, like PyTorch's `embedding`.
///
/// `table` is `(rows, size)`; `ids` has any shape and type `u32`; the result is `(.., size)`.
///
/// # Errors
/// Fails on the CPU if an id is neither a row of the table nor [`NO_ROW`].
pub fn embedding(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let (_, size) = table.dims2()?;
    check_type("embedding", ids)?;
    let flat = ids.flatten_all()?.contiguous()?;
    let shape = [ids.dims(), &[size]].concat();
    match Gpu::supports(table) {
        true => Rows::apply("embedding", table, flat, Use::Single { shape }),
        false => table.contiguous()?.index_select(&flat, 0)?.reshape(shape),
    }
}

/// Returns the mean of the rows `ids` of `table` over each sequence, like PyTorch's `embedding_bag`.
///
/// `table` is `(rows, size)`; `ids` is packed like `sequences`, `(sequences.rows())`, of type `u32`; the result is
/// `(batch, size)`.
///
/// # Errors
/// Fails if an id is not a row of the table, or the number of ids differs from the number of elements of `sequences`.
pub fn embedding_mean(table: &Tensor, ids: &Tensor, sequences: &Arc<PackedSequences>) -> Result<Tensor> {
    table.dims2()?;
    check_type("embedding_mean", ids)?;
    if ids.dims() != [sequences.rows()] {
        bail!("embedding_mean: found ids of shape {:?}, expected ({})", ids.dims(), sequences.rows());
    }
    let ids = ids.contiguous()?;
    match Gpu::supports(table) {
        true => Rows::apply("embedding_mean", table, ids, Use::Mean(sequences.clone())),
        false => {
            let rows = table.contiguous()?.index_select(&ids, 0)?;
            reference::pool_over_time(&rows, sequences, TimePooling::Mean)
        }
    }
}

fn check_type(op: &str, ids: &Tensor) -> Result<()> {
    match ids.dtype() {
        DType::U32 => Ok(()),
        other => bail!("{op}: found ids of type {}, expected u32", other.as_str()),
    }
}

/// An operation that reads rows of a table.
struct Rows {
    name: &'static str,
    /// The id of each row to read, in the memory of the table.
    ids: Tensor,
    uses: Use,
}

/// How the rows are used.
enum Use {
    /// The rows are the result, in this shape.
    Single { shape: Vec<usize> },
    /// The rows are averaged over sequences.
    Mean(Arc<PackedSequences>),
}

impl Rows {
    fn apply(name: &'static str, table: &Tensor, ids: Tensor, uses: Use) -> Result<Tensor> {
        if table.device().is_cpu() {
            let rows = table.dim(0)?;
            let is_known =
                |&id: &u32| (id as usize) < rows || (id == NO_ROW && matches!(uses, Use::Single { .. }));
            if let Some(id) = ids.to_vec1()?.into_iter().find(|id| !is_known(id)) {
                bail!("{name}: found the id {id}, expected one below {rows}");
            }
        }
        autograd::apply(Self { name, ids, uses }, vec![table.contiguous()?])
    }

    /// Returns the gradient of the row read at each place, and its factor.
    ///
    /// A mean passes an equal share to each element.
    fn grad<'a, T: Element>(&self, grad: &'a [T], size: usize) -> impl Fn(usize) -> (&'a [T], T) + Sync {
        let means = match &self.uses {
            Use::Single { .. } => None,
            Use::Mean(sequences) => {
                let sequence_at: Vec<usize> = sequences.positions().map(|(sequence, _)| sequence).collect();
                let share = |length: &usize| T::ONE / T::of(*length as f64);
                let shares: Vec<T> = sequences.lengths().iter().map(share).collect();
                Some((sequence_at, shares))
            }
        };
        move |place| {
            let (vector, factor) = match &means {
                None => (place, T::ONE),
                Some((sequence_at, shares)) => (sequence_at[place], shares[sequence_at[place]]),
            };
            (&grad[vector * size..][..size], factor)
        }
    }

    fn forward_on<T: Stored + cuda::Real>(&self, gpu: &Gpu, table: &Tensor) -> Result<(Storage, Shape)> {
        let (rows, size) = table.dims2()?;
        let (table, ids) = (gpu.pointer::<T>(table)?, gpu.pointer::<u32>(&self.ids)?);
        match &self.uses {
            Use::Single { shape } => {
                let count = self.ids.elem_count();
                let found = gpu.alloc::<T>(count * size)?;
                let mut args = vec![table.into(), ids.into(), found.pointer().into()];
                args.extend([Arg::from(count as i32), (size as i32).into(), (rows as u32).into()]);
                let grid = Grid { blocks: [count.div_ceil(8), 1, 1], threads: [256, 1, 1], shared: 0 };
                // SAFETY: these are the kernel's parameters; the result has a row for each id.
                unsafe { gpu.launch(cuda::EMBEDDING.kernel::<T>("lookup"), grid, &args)? };
                Ok(gpu.output(found, &shape[..]))
            }
            Use::Mean(sequences) => {
                let (batch, layout) = (sequences.batch(), sequences.on_device(gpu)?);
                let means = gpu.alloc::<T>(batch * size)?;
                let mut args = vec![table.into(), ids.into()];
                args.extend([layout.starts, layout.places, layout.lengths].map(Arg::from));
                args.extend([Arg::from(means.pointer()), (size as i32).into(), (rows as u32).into()]);
                let grid = Grid { blocks: [batch, size.div_ceil(128), 1], threads: [128, 1, 1], shared: 0 };
                // SAFETY: these are the kernel's parameters; the result has a row for each sequence.
                unsafe { gpu.launch(cuda::EMBEDDING.kernel::<T>("means"), grid, &args)? };
                Ok(gpu.output(means, (batch, size)))
            }
        }
    }

    /// The arguments of [`gradient_on`] that map ids to vectors of the gradient.
    fn vectors_on(&self, gpu: &Gpu) -> Result<[Pointer<u32>; 2]> {
        match &self.uses {
            Use::Single { .. } => Ok([Pointer::null(); 2]),
            Use::Mean(sequences) => {
                let layout = sequences.on_device(gpu)?;
                Ok([layout.sequences, layout.lengths])
            }
        }
    }
}

impl Operation for Rows {
    fn name(&self) -> &'static str {
        self.name
    }

    fn forward(&self, args: &[Tensor]) -> Result<(Storage, Shape)> {
        let size = args[0].dim(1)?;
        if let Some(gpu) = Gpu::of(&args[0]) {
            return with_real!(self.name, args[0].dtype(), T => self.forward_on::<T>(&gpu, &args[0]));
        }
        let ids: Vec<u32> = self.ids.to_vec1()?;
        with_real!(self.name, args[0].dtype(), T => host::read::<T, _>(&args[0], |table| {
            Ok(match &self.uses {
                Use::Single { shape } => host::output(lookup(table, size, &ids), &shape[..]),
                Use::Mean(sequences) => {
                    let (places, lengths) = (sequences.places(), sequences.lengths());
                    let id = |sequence: usize, step: usize| ids[sequences.step(step).1 + places[sequence]];
                    host::output(means(table, size, &lengths, id), (sequences.batch(), size))
                }
            })
        }))
    }

    fn backward(&self, args: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let table = args[0].dims2()?;
        if let Some(gpu) = Gpu::of(grad) {
            let values = with_real!(self.name, grad.dtype(), T => {
                gradient_on::<T>(&gpu, table, &self.ids, self.vectors_on(&gpu)?, gpu.pointer(grad)?, None)?
            });
            return Ok(vec![Some(values)]);
        }
        let uses = Uses::new(&self.ids.to_vec1()?);
        with_real!(self.name, grad.dtype(), T => host::read::<T, _>(grad, |grad| {
            let values = table_gradient(table, &uses, self.grad(grad, table.1));
            Ok(vec![Some(Tensor::from_vec(values, table, args[0].device())?)])
        }))
    }

    fn row_gradients(&self, args: &[Tensor], grad: &Tensor) -> Result<Option<RowGradients>> {
        let table = args[0].dims2()?;
        if let Some(gpu) = Gpu::of(grad) {
            let rows = gpu.alloc::<u32>(self.ids.elem_count())?;
            let values = with_real!(self.name, grad.dtype(), T => {
                let (vectors, grad) = (self.vectors_on(&gpu)?, gpu.pointer(grad)?);
                gradient_on::<T>(&gpu, table, &self.ids, vectors, grad, Some(rows.pointer()))?
            });
            let rows = RowNumbers::Device(gpu.tensor(rows, self.ids.elem_count()));
            return Ok(Some(RowGradients { rows, values }));
        }
        let uses = Uses::new(&self.ids.to_vec1()?);
        with_real!(self.name, grad.dtype(), T => host::read::<T, _>(grad, |grad| {
            let (rows, values) = row_gradients(table.1, &uses, self.grad(grad, table.1));
            let values = Tensor::from_vec(values, (rows.len(), table.1), args[0].device())?;
            Ok(Some(RowGradients { rows: RowNumbers::Host(rows), values }))
        }))
    }
}
