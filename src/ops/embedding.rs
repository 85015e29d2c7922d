//! Rows of a table by number.

use super::host::{self, Real, with_real};
use super::parallel;
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};

/// The rows `ids` (u32, of any shape) of `table` `(rows, size)`: `(.., size)`, PyTorch's `embedding`.
///
/// # Errors
/// When an id is no row of the table.
pub fn embedding(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let (_, size) = table.dims2()?;
    if ids.dtype() != DType::U32 {
        bail!("embedding: found ids of {:?}, expected u32", ids.dtype());
    }
    let flat = ids.flatten_all()?.contiguous()?;
    let rows = match table.device().is_cpu() {
        true => table.contiguous()?.apply_op2(&flat, Embedding)?,
        false => table.index_select(&flat, 0)?,
    };
    rows.reshape([ids.dims(), &[size]].concat())
}

/// Ids whose rows one task copies.
const IDS: usize = 256;

struct Embedding;

impl CustomOp2 for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(
        &self,
        table: &CpuStorage,
        layout: &Layout,
        ids: &CpuStorage,
        ids_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, size) = layout.shape().dims2()?;
        let (start, end) = ids_layout.contiguous_offsets().unwrap_or_default();
        let ids = &ids.as_slice::<u32>()?[start..end];
        if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
            bail!("embedding: found the id {id}, expected one below {rows}");
        }
        with_real!(self.name(), host::dtype(table), T => {
            let table = host::slice::<T>(table, layout)?;
            let work = |i: usize, found: &mut [T]| {
                for (found, &id) in found.chunks_exact_mut(size.max(1)).zip(&ids[i * IDS..]) {
                    found.copy_from_slice(&table[id as usize * size..][..size]);
                }
            };
            // SAFETY: each row is written.
            let found = unsafe { parallel::build(ids.len() * size, IDS * size, work) };
            Ok(host::output(found, (ids.len(), size)))
        })
    }

    fn bwd(
        &self,
        table: &Tensor,
        ids: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (ids, (rows, size)) = (ids.to_vec1::<u32>()?, table.dims2()?);
        let grad = grad.contiguous()?;
        // Each piece goes through all ids: there are few pieces, whatever the table's size.
        let piece = (rows / 16).max(16);
        with_real!(self.name(), grad.dtype(), T => host::read::<T, _>(&grad, |grad| {
            let work = |i: usize, sums: &mut [T]| {
                sums.fill(T::ZERO);
                for (&id, grad) in ids.iter().zip(grad.chunks_exact(size.max(1))) {
                    let Some(place) = (id as usize).checked_sub(i * piece) else { continue };
                    let Some(sums) = sums.get_mut(place * size..(place + 1) * size) else { continue };
                    sums.iter_mut().zip(grad).for_each(|(sum, &number)| *sum += number);
                }
            };
            // SAFETY: each number is written.
            let sums = unsafe { parallel::build(rows * size, piece * size, work) };
            Ok((Some(Tensor::from_vec(sums, table.shape(), table.device())?), None))
        }))
    }
}
