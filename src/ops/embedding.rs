//! Rows of a table by number, each by itself or the mean of each sequence's.

use super::autograd::{self, Operation};
use super::host::{self, Element, with_real};
use super::{PackedSequences, TimePooling, reference};
use crate::kernels::cpu::Real;
use crate::kernels::cpu::parallel;
use crate::kernels::cpu::simd::vectorised;
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, Device, Result, Shape, Tensor, TensorId, bail};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

/// The rows `ids` (u32, of any shape) of `table` `(rows, size)`: `(.., size)`, PyTorch's `embedding`.
///
/// # Errors
/// When an id is no row of the table.
pub fn embedding(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let (rows, size) = table.dims2()?;
    let flat = checked(ids)?.flatten_all()?;
    match table.device().is_cpu() {
        true => {
            let op = Embedding { ids: below(flat.to_vec1()?, rows)?, shape: ids.dims().to_vec() };
            autograd::apply(op, vec![table.contiguous()?])
        }
        false => table.index_select(&flat.contiguous()?, 0)?.reshape([ids.dims(), &[size]].concat()),
    }
}

/// The mean of the rows `ids` `(rows)`, u32, of `table` over each of `sequences`: `(batch, size)`, PyTorch's
/// `embedding_bag`.
///
/// # Errors
/// When an id is no row of the table, or there is another number of ids.
pub fn embedding_mean(table: &Tensor, ids: &Tensor, sequences: &Arc<PackedSequences>) -> Result<Tensor> {
    if checked(ids)?.dims() != [sequences.rows()] {
        bail!("embedding_mean: found ids of shape {:?}, expected ({})", ids.dims(), sequences.rows());
    }
    match table.device().is_cpu() {
        true => {
            let ids = below(ids.to_vec1()?, table.dim(0)?)?;
            autograd::apply(Mean { ids, sequences: sequences.clone() }, vec![table.contiguous()?])
        }
        false => reference::pool_over_time(&table.index_select(ids, 0)?, sequences, TimePooling::Mean),
    }
}

fn checked(ids: &Tensor) -> Result<&Tensor> {
    match ids.dtype() {
        DType::U32 => Ok(ids),
        other => bail!("embedding: found ids of {other:?}, expected u32"),
    }
}

/// The gradient of some rows of a table; that of the others is zero.
#[derive(Debug, Clone)]
pub struct RowGradients {
    /// In rising order.
    pub rows: Vec<u32>,
    /// `(rows, size)`.
    pub values: Tensor,
}

/// What the backward pass under way on this thread is to put by: candle's own store has room for whole gradients only.
struct ByRows {
    tables: Vec<TensorId>,
    found: HashMap<TensorId, RowGradients>,
}

thread_local! {
    static BY_ROWS: RefCell<Option<ByRows>> = const { RefCell::new(None) };
}

/// The gradients of the scalar `loss`, where what `tables` get from [`embedding`] and [`embedding_mean`] on the CPU comes
/// by itself, for the rows used alone: its cost does not go by the tables' sizes.
///
/// # Errors
/// Those of the operations.
pub fn backward(
    loss: &Tensor,
    tables: Vec<TensorId>,
) -> Result<(GradStore, HashMap<TensorId, RowGradients>)> {
    let outer = BY_ROWS.replace(Some(ByRows { tables, found: HashMap::new() }));
    let grads = autograd::backward(loss);
    let found = BY_ROWS.replace(outer).map(|by_rows| by_rows.found);
    Ok((grads?, found.unwrap_or_default()))
}

/// Numbers that one task works on.
const CHUNK: usize = 1 << 14;

fn below(ids: Vec<u32>, rows: usize) -> Result<Vec<u32>> {
    match ids.iter().find(|&&id| id as usize >= rows) {
        Some(id) => bail!("embedding: found the id {id}, expected one below {rows}"),
        None => Ok(ids),
    }
}

/// The gradient of `table`, to whose row `ids[i]` was added: the numbers and the factor that `added(i)` tells. Put by where
/// it is wanted by rows.
fn table_gradient<'a, T: Element>(
    table: &Tensor,
    ids: &[u32],
    added: impl Fn(usize) -> (&'a [T], T) + Sync,
) -> Result<Option<Tensor>> {
    let (rows, size) = table.dims2()?;
    let uses = ids.iter().zip(0u64..).map(|(&id, at)| u64::from(id) << 32 | at);
    let mut uses: Vec<u64> = uses.collect();
    uses.sort_unstable();
    let row = |uses: &[u64]| (uses[0] >> 32) as usize;
    let uses: Vec<&[u64]> = uses.chunk_by(|a, b| a >> 32 == b >> 32).collect();
    let step = CHUNK.div_ceil(size.max(1));
    let put_by = |wanted: &mut ByRows| -> Result<()> {
        let work = |i: usize, sums: &mut [T]| {
            vectorised(
                #[inline(always)]
                || {
                    for (to, uses) in sums.chunks_exact_mut(size).zip(&uses[i * step..]) {
                        sum(to, uses, &added);
                    }
                },
            );
        };
        // SAFETY: each number is written.
        let sums = unsafe { parallel::build(uses.len() * size, step * size, work) };
        let values = Tensor::from_vec(sums, (uses.len(), size), &Device::Cpu)?;
        let rows = uses.iter().map(|uses| row(uses) as u32).collect();
        let gradients = RowGradients { rows, values };
        let gradients = match wanted.found.remove(&table.id()) {
            Some(before) => before.plus(gradients)?,
            None => gradients,
        };
        wanted.found.insert(table.id(), gradients);
        Ok(())
    };
    let is_put_by = |by_rows: &mut Option<ByRows>| {
        let wanted = by_rows.as_mut().filter(|wanted| wanted.tables.contains(&table.id()));
        wanted.map(put_by).transpose()
    };
    if BY_ROWS.with_borrow_mut(is_put_by)?.is_some() {
        return Ok(None);
    }
    let work = |i: usize, sums: &mut [T]| {
        sums.fill(T::ZERO);
        let (first, end) = (i * step, i * step + sums.len() / size);
        let uses = &uses[uses.partition_point(|uses| row(uses) < first)..];
        vectorised(
            #[inline(always)]
            || {
                for uses in uses.iter().take_while(|uses| row(uses) < end) {
                    sum(&mut sums[(row(uses) - first) * size..][..size], uses, &added);
                }
            },
        );
    };
    // SAFETY: each number is written.
    let sums = unsafe { parallel::build(rows * size, step * size, work) };
    Ok(Some(Tensor::from_vec(sums, table.shape(), table.device())?))
}

/// What is `added` at `uses`, of whose bits the lower half is the place.
#[inline(always)]
fn sum<'a, T: Element>(to: &mut [T], uses: &[u64], added: impl Fn(usize) -> (&'a [T], T)) {
    for (i, &at) in uses.iter().enumerate() {
        let (numbers, factor) = added(at as u32 as usize);
        let numbers = to.iter_mut().zip(numbers);
        match i {
            0 => numbers.for_each(|(to, &number)| *to = factor * number),
            _ => numbers.for_each(|(to, &number)| *to += factor * number),
        }
    }
}

impl RowGradients {
    /// Of a table that was used in two places.
    fn plus(self, other: Self) -> Result<Self> {
        let mut rows = [&self.rows[..], &other.rows].concat();
        rows.sort_unstable();
        rows.dedup();
        let sum =
            self.values.zeros_like()?.narrow(0, 0, 1)?.broadcast_as((rows.len(), self.values.dim(1)?))?;
        let add = |sum: Tensor, part: &Self| {
            let places = part.rows.iter().map(|row| rows.partition_point(|other| other < row) as u32);
            sum.index_add(&Tensor::new(places.collect::<Vec<_>>(), &Device::Cpu)?, &part.values, 0)
        };
        let values = add(add(sum.contiguous()?, &self)?, &other)?;
        Ok(Self { rows, values })
    }
}

struct Embedding {
    ids: Vec<u32>,
    /// Of the ids.
    shape: Vec<usize>,
}

impl Operation for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let (ids, size) = (&self.ids, args[0].dim(1)?);
        with_real!(self.name(), args[0].dtype(), T => host::read::<T, _>(&args[0], |table| {
            let step = CHUNK.div_ceil(size.max(1));
            let work = |i: usize, found: &mut [T]| {
                for (found, &id) in found.chunks_exact_mut(size.max(1)).zip(&ids[i * step..]) {
                    found.copy_from_slice(&table[id as usize * size..][..size]);
                }
            };
            // SAFETY: each row is written.
            let found = unsafe { parallel::build(ids.len() * size, step * size, work) };
            Ok(host::output(found, [&self.shape[..], &[size]].concat()))
        }))
    }

    fn backward(&self, args: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let size = args[0].dim(1)?;
        with_real!(self.name(), grad.dtype(), T => host::read::<T, _>(grad, |grad| {
            Ok(vec![table_gradient(&args[0], &self.ids, |at| (&grad[at * size..][..size], T::ONE))?])
        }))
    }
}

/// The sum of the rows `ids`, times `share`.
#[inline(always)]
fn mean<T: Element>(to: &mut [T], table: &[T], ids: impl Iterator<Item = u32>, share: T) {
    to.fill(T::ZERO);
    for id in ids {
        let row = &table[id as usize * to.len()..][..to.len()];
        to.iter_mut().zip(row).for_each(|(to, &number)| *to += number);
    }
    to.iter_mut().for_each(|to| *to *= share);
}

struct Mean {
    ids: Vec<u32>,
    sequences: Arc<PackedSequences>,
}

impl Operation for Mean {
    fn name(&self) -> &'static str {
        "embedding_mean"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let (Self { ids, sequences }, size) = (self, args[0].dim(1)?);
        let (places, lengths) = (sequences.places(), sequences.lengths());
        with_real!(self.name(), args[0].dtype(), T => host::read::<T, _>(&args[0], |table| {
            let step = (CHUNK * sequences.batch()).div_ceil((ids.len() * size).max(1));
            let work = |i: usize, means: &mut [T]| {
                vectorised(
                    #[inline(always)]
                    || {
                        for (k, to) in means.chunks_exact_mut(size).enumerate() {
                            let (place, length) = (places[i * step + k], lengths[i * step + k]);
                            let ids = (0..length).map(|step| ids[sequences.step(step).1 + place]);
                            mean(to, table, ids, T::ONE / T::of(length as f64));
                        }
                    },
                );
            };
            // SAFETY: each row is written.
            let means = unsafe { parallel::build(sequences.batch() * size, step * size, work) };
            Ok(host::output(means, (sequences.batch(), size)))
        }))
    }

    fn backward(&self, args: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (Self { ids, sequences }, size) = (self, args[0].dim(1)?);
        let owners: Vec<usize> = sequences.positions().map(|(sequence, _)| sequence).collect();
        let lengths = sequences.lengths();
        with_real!(self.name(), grad.dtype(), T => host::read::<T, _>(grad, |grad| {
            let shares: Vec<T> = lengths.iter().map(|&length| T::ONE / T::of(length as f64)).collect();
            let added = |at: usize| {
                let sequence = owners[at];
                (&grad[sequence * size..][..size], shares[sequence])
            };
            Ok(vec![table_gradient(&args[0], ids, added)?])
        }))
    }
}
