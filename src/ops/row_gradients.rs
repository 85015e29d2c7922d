//! Gradients of the rows of a table that were read.

use super::gpu::{Gpu, Stored};
use super::host::{self, with_real};
use crate::kernels::cpu::embedding;
use crate::kernels::cuda::{self, Arg, Grid, Pointer};
use candle_core::{Result, Tensor, bail};

/// The gradient of some rows of a table; the gradient of the other rows is zero.
#[derive(Debug, Clone)]
pub struct RowGradients {
    /// The indices of the rows.
    pub rows: RowNumbers,
    /// Gradients of these rows, `(rows, size)`.
    pub values: Tensor,
}

/// Indices of rows of a table.
#[derive(Debug, Clone)]
pub enum RowNumbers {
    /// In main memory, in increasing order.
    Host(Vec<u32>),
    /// In the memory of a GPU: distinct indices, and any number of `u32::MAX`, which stands for no row.
    Device(Tensor),
}

impl RowGradients {
    /// Adds gradients of the same table.
    pub(crate) fn add(self, other: Self) -> Result<Self> {
        let size = self.values.dim(1)?;
        match (&self.rows, &other.rows) {
            (RowNumbers::Host(a), RowNumbers::Host(b)) => {
                let held = host::hold([&self.values, &other.values]);
                with_real!("row gradients", self.values.dtype(), T => {
                    let (a, b) = ((&a[..], held.get::<T>(0)?), (&b[..], held.get::<T>(1)?));
                    let (rows, values) = embedding::add_rows(a, b, size);
                    let values = Tensor::from_vec(values, (rows.len(), size), self.values.device())?;
                    Ok(Self { rows: RowNumbers::Host(rows), values })
                })
            }
            (RowNumbers::Device(a), RowNumbers::Device(b)) => {
                let Some(gpu) = Gpu::of(&self.values) else { bail!("row gradients: found no GPU") };
                with_real!("row gradients", self.values.dtype(), T => {
                    let parts = [(a, &self.values), (b, &other.values)];
                    let (rows, values) = add_rows_on::<T>(&gpu, parts)?;
                    Ok(Self { rows: RowNumbers::Device(rows), values })
                })
            }
            _ => bail!("row gradients: found two places of one table"),
        }
    }

    /// Returns the gradient of the whole table, which has `rows` rows.
    ///
    /// # Errors
    /// Fails if a row number is not below `rows`.
    pub fn whole(&self, rows: usize) -> Result<Tensor> {
        let table = (rows, self.values.dim(1)?);
        match &self.rows {
            RowNumbers::Host(numbers) => {
                let zeros = Tensor::zeros(table, self.values.dtype(), self.values.device())?;
                zeros.index_add(&Tensor::new(&numbers[..], self.values.device())?, &self.values, 0)
            }
            RowNumbers::Device(numbers) => {
                let Some(gpu) = Gpu::of(&self.values) else { bail!("row gradients: found no GPU") };
                with_real!("row gradients", self.values.dtype(), T => {
                    whole_on::<T>(&gpu, table, numbers, &self.values)
                })
            }
        }
    }
}

/// Computes the gradient of a table `(rows, size)`.
///
/// `grad` is the gradient of the rows `ids`. With `vectors`, the sequence of each id and the lengths of the sequences,
/// it is the gradient of the sequences' means.
///
/// With `numbers`, one per id, returns only the rows in use. Each row is stored at the place of its first id, where
/// `numbers` receives the index of the row. The other numbers become `u32::MAX`, and their rows are not written.
pub(super) fn gradient_on<T: Stored + cuda::Real>(
    gpu: &Gpu,
    (rows, size): (usize, usize),
    ids: &Tensor,
    vectors: [Pointer<u32>; 2],
    grad: Pointer<T>,
    numbers: Option<Pointer<u32>>,
) -> Result<Tensor> {
    /// Columns per block.
    const COLUMNS: usize = 512;
    let count = ids.elem_count();
    let (found, values) = match numbers {
        Some(_) => (count, gpu.alloc::<T>(count * size)?),
        None => (rows, gpu.zeros::<T>(rows * size)?),
    };
    let [sequences, lengths] = vectors.map(Arg::from);
    let args = [
        gpu.pointer::<u32>(ids)?.into(),
        grad.into(),
        sequences,
        lengths,
        numbers.unwrap_or(Pointer::null()).into(),
        values.pointer().into(),
        (count as i32).into(),
        (size as i32).into(),
        (rows as u32).into(),
    ];
    let grid = Grid { blocks: [count, size.div_ceil(COLUMNS).max(1), 1], threads: [128, 1, 1], shared: 0 };
    // SAFETY: these are the kernel's parameters; the arrays have a row for each id, or for each row of the table.
    unsafe { gpu.launch(cuda::EMBEDDING.kernel::<T>("row_gradients"), grid, &args)? };
    Ok(gpu.tensor(values, (found, size)))
}

/// Adds row gradients in the memory of a GPU.
fn add_rows_on<T: Stored + cuda::Real>(
    gpu: &Gpu,
    parts: [(&Tensor, &Tensor); 2],
) -> Result<(Tensor, Tensor)> {
    let [a, b] = parts.map(|(rows, _)| rows.elem_count());
    let (count, size) = (a + b, parts[0].1.dim(1)?);
    let (ids, values, rows) =
        (gpu.alloc::<u32>(count)?, gpu.alloc::<T>(count * size)?, gpu.alloc::<u32>(count)?);
    for ((part, gradients), start) in parts.into_iter().zip([0, a]) {
        let n = part.elem_count();
        let (part, gradients) = (gpu.pointer::<u32>(part)?, gpu.pointer::<T>(gradients)?);
        // SAFETY: the buffers are new and have room for both parts.
        unsafe {
            gpu.copy(part, ids.pointer().offset(start), n)?;
            gpu.copy(gradients, values.pointer().offset(start * size), n * size)?;
        }
    }
    let ids = gpu.tensor(ids, count);
    // Any number except `u32::MAX` is a row.
    let table = (u32::MAX as usize, size);
    let at = values.pointer();
    let values = gradient_on::<T>(gpu, table, &ids, [Pointer::null(); 2], at, Some(rows.pointer()))?;
    Ok((gpu.tensor(rows, count), values))
}

/// Returns the gradient of a whole table `(rows, size)` in the memory of a GPU.
///
/// It has the rows `numbers` of `values`, and zeros elsewhere.
fn whole_on<T: Stored + cuda::Real>(
    gpu: &Gpu,
    table: (usize, usize),
    numbers: &Tensor,
    values: &Tensor,
) -> Result<Tensor> {
    gradient_on::<T>(gpu, table, numbers, [Pointer::null(); 2], gpu.pointer(values)?, None)
}
