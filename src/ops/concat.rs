//! Concatenation of tensors.

use super::autograd::{self, Operation};
use super::gpu::{Gpu, Stored};
use super::host::with_real;
use crate::kernels::cuda::{self, Grid, Pointer};
use candle_core::{Result, Shape, Storage, Tensor, bail};

/// Concatenates `parts` along dimension `dim`, and appends `zeros` entries of zeros.
///
/// # Errors
/// Fails if the parts differ in another dimension.
pub(crate) fn concat(parts: &[Tensor], dim: usize, zeros: usize) -> Result<Tensor> {
    if let ([part], 0) = (parts, zeros) {
        return Ok(part.clone());
    }
    if Gpu::of(&parts[0]).is_some() {
        let parts = parts.iter().map(Tensor::contiguous).collect::<Result<_>>()?;
        return autograd::apply(Concat { dim, zeros }, parts);
    }
    match zeros {
        0 => Tensor::cat(parts, dim),
        _ => Tensor::cat(parts, dim)?.pad_with_zeros(dim, 0, zeros),
    }
}

/// The operation on a GPU.
struct Concat {
    dim: usize,
    zeros: usize,
}

/// Copies columns from one matrix to another, and clears a number of columns after them.
fn copy_columns<T: Stored + cuda::Real>(
    gpu: &Gpu,
    rows: usize,
    (from, from_stride): (Pointer<T>, usize),
    (to, to_stride): (Pointer<T>, usize),
    [columns, zeros]: [usize; 2],
) -> Result<()> {
    let count = rows * (columns + zeros);
    let args = [
        from.into(),
        to.into(),
        (count as i64).into(),
        (columns as i32).into(),
        (zeros as i32).into(),
        (from_stride as i64).into(),
        (to_stride as i64).into(),
    ];
    // SAFETY: these are the kernel's parameters; the callers' matrices have these columns.
    unsafe { gpu.launch(cuda::CONCAT.kernel::<T>("copy_columns"), Grid::elements(count, 1), &args) }
}

impl Concat {
    /// Returns the number of rows, and a function from the entries of a part to its columns.
    fn columns(&self, dims: &[usize]) -> (usize, impl Fn(usize) -> usize + use<>) {
        let inner: usize = dims[self.dim + 1..].iter().product();
        (dims[..self.dim].iter().product(), move |size| size * inner)
    }

    fn forward_on<T: Stored + cuda::Real>(&self, gpu: &Gpu, parts: &[Tensor]) -> Result<(Storage, Shape)> {
        let mut dims = parts[0].dims().to_vec();
        dims[self.dim] = self.zeros;
        for part in parts {
            let same = |(at, (a, b)): (usize, (&usize, &usize))| at == self.dim || a == b;
            if part.rank() != dims.len() || !part.dims().iter().zip(&dims).enumerate().all(same) {
                bail!("concat: found {:?} and {:?}, expected equal sizes", parts[0].dims(), part.dims());
            }
            dims[self.dim] += part.dim(self.dim)?;
        }
        let (rows, columns) = self.columns(&dims);
        let width = columns(dims[self.dim]);
        let joined = gpu.alloc::<T>(rows * width)?;
        let mut at = 0;
        for (index, part) in parts.iter().enumerate() {
            let own = columns(part.dim(self.dim)?);
            let zeros = if index + 1 == parts.len() { columns(self.zeros) } else { 0 };
            let to = (joined.pointer().offset(at), width);
            copy_columns::<T>(gpu, rows, (gpu.pointer(part)?, own), to, [own, zeros])?;
            at += own;
        }
        Ok(gpu.output(joined, dims))
    }

    fn backward_on<T: Stored + cuda::Real>(
        &self,
        gpu: &Gpu,
        parts: &[Tensor],
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let (rows, columns) = self.columns(grad.dims());
        let width = columns(grad.dim(self.dim)?);
        let mut start = 0;
        let mut gradient = |part: &Tensor| -> Result<Option<Tensor>> {
            let (first, size) = (start, part.dim(self.dim)?);
            start += size;
            if !part.track_op() {
                return Ok(None);
            }
            if rows == 1 {
                return grad.narrow(self.dim, first, size).map(Some);
            }
            let own = gpu.alloc::<T>(part.elem_count())?;
            let from = (gpu.pointer(grad)?.offset(columns(first)), width);
            copy_columns::<T>(gpu, rows, from, (own.pointer(), columns(size)), [columns(size), 0])?;
            Ok(Some(gpu.tensor(own, part.shape())))
        };
        parts.iter().map(&mut gradient).collect()
    }
}

impl Operation for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(Storage, Shape)> {
        let Some(gpu) = Gpu::of(&args[0]) else { bail!("concat: found no GPU") };
        with_real!(self.name(), args[0].dtype(), T => self.forward_on::<T>(&gpu, args))
    }

    fn backward(&self, args: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let Some(gpu) = Gpu::of(grad) else { bail!("concat: found no GPU") };
        with_real!(self.name(), grad.dtype(), T => self.backward_on::<T>(&gpu, args, grad))
    }
}

#[cfg(all(test, feature = "cuda-emulator"))]
mod tests {
    use super::*;
    use crate::ops::{self, emulator};
    use candle_core::{Device, Var};

    #[test]
    fn parts_and_their_gradients_are_those_of_candle() -> Result<()> {
        for (dim, zeros) in [(0, 0), (1, 0), (1, 3), (2, 1)] {
            let part = |size: usize| {
                let mut dims = [2, 3, 5];
                dims[dim] = size;
                Var::randn(0f32, 1., &dims, &Device::Cpu)
            };
            let (a, b) = (part(2)?, part(4)?);
            let run = || -> Result<Vec<Vec<f32>>> {
                let joined = concat(&[a.as_tensor().clone(), b.as_tensor().clone()], dim, zeros)?;
                let factors = Tensor::arange(0f32, joined.elem_count() as f32, &Device::Cpu)?;
                let loss = (&joined * factors.reshape(joined.shape())?)?.sum_all()?;
                let (grads, _) = ops::backward(&loss, vec![])?;
                let all = [&joined, grads.get(&a).unwrap(), grads.get(&b).unwrap()];
                all.iter().map(|tensor| tensor.flatten_all()?.to_vec1()).collect()
            };
            assert_eq!(run()?, emulator::off(run)?, "dimension {dim}, {zeros} zeros");
        }
        Ok(())
    }
}
