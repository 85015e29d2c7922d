//! Updates on the CPU: lends the memory of variables to the kernels.

use super::step::{Gradient, Update};
use crate::kernels::cpu::optimizer::{self, Coverage};
use crate::ops::RowNumbers;
use crate::ops::host::{self, Element, with_real};
use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Result, Tensor, Var, bail};
use std::any::Any;
use std::cell::Cell;
use std::marker::PhantomData;

/// Whether the kernels can work on `tensor`.
pub(super) fn supports(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && matches!(tensor.dtype(), DType::F32 | DType::F64)
}

/// Updates `parameter` and its `moments` `(moments, shape of the parameter)` in place; all contiguous.
pub(super) fn update(
    update: &Update,
    parameter: &Var,
    gradient: &Gradient,
    moments: Option<&Var>,
) -> Result<()> {
    with_real!("optimizer", parameter.dtype(), T => typed::<T>(update, parameter, gradient, moments))
}

fn typed<T: Element>(
    update: &Update,
    parameter: &Var,
    gradient: &Gradient,
    moments: Option<&Var>,
) -> Result<()> {
    let rows = match &gradient.rows {
        None => None,
        Some(RowNumbers::Host(rows)) => Some(&rows[..]),
        Some(RowNumbers::Device(_)) => bail!("optimizer: found row numbers on a GPU"),
    };
    let coverage = match update.sparse {
        true => Coverage::Sparse { columns: parameter.dim(1)?, rows },
        false => Coverage::Dense,
    };
    let apply = |moments: &mut [T]| {
        lend(parameter, &gradient.values, |parameter, gradient| {
            optimizer::update(&update.rule, update.terms, coverage, parameter, gradient, moments);
        })
    };
    match moments {
        Some(moments) => {
            let mut applied = Ok(());
            lend(moments, &gradient.values, |moments, _| applied = apply(moments))?;
            applied
        }
        None => apply(&mut []),
    }
}

/// Scales down the rows of `matrix` whose Euclidean norm exceeds `max`.
pub(super) fn limit_row_norms(matrix: &Var, max: f64) -> Result<()> {
    let columns = matrix.dim(1)?;
    with_real!("optimizer", matrix.dtype(), T => {
        // Candle lends a variable only together with a second tensor.
        let unused = Tensor::zeros(0, matrix.dtype(), matrix.device())?;
        lend::<T>(matrix, &unused, |matrix, _| optimizer::limit_row_norms(matrix, columns, max))
    })
}

/// The sum of the squares of all elements of a contiguous tensor.
pub(super) fn sum_squares(gradient: &Tensor) -> Result<f64> {
    with_real!("optimizer", gradient.dtype(), T => {
        host::read::<T, _>(gradient, |gradient| Ok(optimizer::sum_squares(gradient)))
    })
}

/// Lends the elements of `to`, for writing, and of `from` to `work`.
///
/// Candle gives write access to a tensor's memory only inside an in-place operation.
fn lend<T: Element>(to: &Tensor, from: &Tensor, work: impl FnOnce(&mut [T], &[T])) -> Result<()> {
    struct Lend<T, F>(Cell<Option<F>>, PhantomData<T>);

    impl<T: Element, F: FnOnce(&mut [T], &[T])> InplaceOp2 for Lend<T, F> {
        fn name(&self) -> &'static str {
            "optimizer"
        }

        fn cpu_fwd(
            &self,
            to: &mut CpuStorage,
            to_layout: &Layout,
            from: &CpuStorage,
            from_layout: &Layout,
        ) -> Result<()> {
            let from = host::slice::<T>(from, from_layout)?;
            let to = to_layout
                .contiguous_offsets()
                .and_then(|(start, end)| elements_mut::<T>(to)?.get_mut(start..end));
            match (to, self.0.take()) {
                (Some(to), Some(work)) => work(to, from),
                _ => bail!("optimizer: expected a contiguous {:?} variable", T::DTYPE),
            }
            Ok(())
        }
    }

    to.inplace_op2(from, &Lend(Cell::new(Some(work)), PhantomData))
}

/// The elements of `storage`, if it holds elements of type `T`.
fn elements_mut<T: Element>(storage: &mut CpuStorage) -> Option<&mut [T]> {
    let elements: &mut dyn Any = match storage {
        CpuStorage::F32(elements) => elements,
        CpuStorage::F64(elements) => elements,
        _ => return None,
    };
    elements.downcast_mut::<Vec<T>>().map(Vec::as_mut_slice)
}
