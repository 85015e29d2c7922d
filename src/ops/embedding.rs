//! Rows of a table by index, individually or averaged over sequences.

use super::autograd::{self, Operation, RowGradients};
use super::host::{self, Element, with_real};
use super::{PackedSequences, TimePooling, reference};
use crate::kernels::cpu::embedding::{Uses, lookup, means, row_gradients, table_gradient};
use candle_core::{DType, Result, Shape, Storage, Tensor, bail};
use std::sync::Arc;

/// Returns the rows `ids` of `table`, PyTorch's `embedding`.
///
/// `table` is `(rows, size)`; `ids` has any shape and type `u32`; the result is `(.., size)`.
///
/// # Errors
/// Fails if an id is not a row of the table.
pub fn embedding(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let (rows, size) = table.dims2()?;
    check_type("embedding", ids)?;
    let flat = ids.flatten_all()?;
    let shape = [ids.dims(), &[size]].concat();
    match table.device().is_cpu() {
        true => {
            let ids = flat.to_vec1()?;
            check_range("embedding", &ids, rows)?;
            autograd::apply(Lookup { ids, shape }, vec![table.contiguous()?])
        }
        false => table.contiguous()?.index_select(&flat.contiguous()?, 0)?.reshape(shape),
    }
}

/// Returns the mean of the rows `ids` of `table` over each sequence, PyTorch's `embedding_bag`.
///
/// `table` is `(rows, size)`; `ids` is packed like `sequences`, `(sequences.rows())`, of type `u32`; the result is
/// `(batch, size)`.
///
/// # Errors
/// Fails if an id is not a row of the table, or the number of ids differs from the number of elements of `sequences`.
pub fn embedding_mean(table: &Tensor, ids: &Tensor, sequences: &Arc<PackedSequences>) -> Result<Tensor> {
    let (rows, _) = table.dims2()?;
    check_type("embedding_mean", ids)?;
    if ids.dims() != [sequences.rows()] {
        bail!("embedding_mean: found ids of shape {:?}, expected ({})", ids.dims(), sequences.rows());
    }
    match table.device().is_cpu() {
        true => {
            let ids = ids.to_vec1()?;
            check_range("embedding_mean", &ids, rows)?;
            autograd::apply(Mean { ids, sequences: sequences.clone() }, vec![table.contiguous()?])
        }
        false => {
            let rows = table.contiguous()?.index_select(&ids.contiguous()?, 0)?;
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

fn check_range(op: &str, ids: &[u32], rows: usize) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= rows) {
        Some(id) => bail!("{op}: found the id {id}, expected one below {rows}"),
        None => Ok(()),
    }
}

struct Lookup {
    ids: Vec<u32>,
    /// Shape of the result.
    shape: Vec<usize>,
}

impl Operation for Lookup {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(Storage, Shape)> {
        let size = args[0].dim(1)?;
        with_real!(self.name(), args[0].dtype(), T => host::read::<T, _>(&args[0], |table| {
            Ok(host::output(lookup(table, size, &self.ids), &self.shape[..]))
        }))
    }

    fn backward(&self, args: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (table, uses) = (args[0].dims2()?, Uses::new(&self.ids));
        with_real!(self.name(), grad.dtype(), T => host::read::<T, _>(grad, |grad| {
            let values = table_gradient(table, &uses, self.grad(grad, table.1));
            Ok(vec![Some(Tensor::from_vec(values, table, args[0].device())?)])
        }))
    }

    fn row_gradients(&self, args: &[Tensor], grad: &Tensor) -> Result<Option<RowGradients>> {
        let (size, uses) = (args[0].dim(1)?, Uses::new(&self.ids));
        with_real!(self.name(), grad.dtype(), T => host::read::<T, _>(grad, |grad| {
            let (rows, values) = row_gradients(size, &uses, self.grad(grad, size));
            let values = Tensor::from_vec(values, (rows.len(), size), args[0].device())?;
            Ok(Some(RowGradients { rows, values }))
        }))
    }
}

impl Lookup {
    /// Returns the gradient of the row read at each place, and its factor.
    fn grad<'a, T: Element>(&self, grad: &'a [T], size: usize) -> impl Fn(usize) -> (&'a [T], T) + Sync {
        move |place| (&grad[place * size..][..size], T::ONE)
    }
}

struct Mean {
    ids: Vec<u32>,
    sequences: Arc<PackedSequences>,
}

impl Operation for Mean {
    fn name(&self) -> &'static str {
        "embedding_mean"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(Storage, Shape)> {
        let (Self { ids, sequences }, size) = (self, args[0].dim(1)?);
        let (places, lengths) = (sequences.places(), sequences.lengths());
        let id = |sequence: usize, step: usize| ids[sequences.step(step).1 + places[sequence]];
        with_real!(self.name(), args[0].dtype(), T => host::read::<T, _>(&args[0], |table| {
            Ok(host::output(means(table, size, &lengths, id), (sequences.batch(), size)))
        }))
    }

    fn backward(&self, args: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (table, uses) = (args[0].dims2()?, Uses::new(&self.ids));
        with_real!(self.name(), grad.dtype(), T => host::read::<T, _>(grad, |grad| {
            let values = table_gradient(table, &uses, self.grad(grad, table.1));
            Ok(vec![Some(Tensor::from_vec(values, table, args[0].device())?)])
        }))
    }

    fn row_gradients(&self, args: &[Tensor], grad: &Tensor) -> Result<Option<RowGradients>> {
        let (size, uses) = (args[0].dim(1)?, Uses::new(&self.ids));
        with_real!(self.name(), grad.dtype(), T => host::read::<T, _>(grad, |grad| {
            let (rows, values) = row_gradients(size, &uses, self.grad(grad, size));
            let values = Tensor::from_vec(values, (rows.len(), size), args[0].device())?;
            Ok(Some(RowGradients { rows, values }))
        }))
    }
}

impl Mean {
    /// Returns the gradient of the row read at each place, and its factor: the mean passes on one share per element.
    fn grad<'a, T: Element>(&self, grad: &'a [T], size: usize) -> impl Fn(usize) -> (&'a [T], T) + Sync {
        let sequence_at: Vec<usize> = self.sequences.positions().map(|(sequence, _)| sequence).collect();
        let share = |length: &usize| T::ONE / T::of(*length as f64);
        let shares: Vec<T> = self.sequences.lengths().iter().map(share).collect();
        move |place| {
            let sequence = sequence_at[place];
            (&grad[sequence * size..][..size], shares[sequence])
        }
    }
}
