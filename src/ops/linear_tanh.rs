//! A fully connected layer with tanh.

use super::autograd::{self, Operation};
use super::gpu::{Gpu, Stored};
use super::host::with_real;
use super::linear::column_sums_on;
use super::{linear, tanh};
use crate::kernels::cuda::{self, Arg, Grid, Matrix, Pointer, Product};
use candle_core::{Result, Shape, Storage, Tensor, bail};

/// Computes `tanh(xs * weight^T + bias)`.
///
/// `weight` is `(out, in)`, `bias` `(out)`, the result `(rows, out)`. `xs` is `(rows, in)`, or `(parts, rows, in /
/// parts)`: a row of the input then consists of the row of each part, one after the other.
///
/// # Errors
/// Fails if the shapes do not match.
pub(crate) fn linear_tanh(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if Gpu::of(xs).is_some() {
        let args = [Some(xs), Some(weight), bias].into_iter().flatten().map(Tensor::contiguous);
        return autograd::apply(LinearTanh, args.collect::<Result<_>>()?);
    }
    let xs = match xs.rank() {
        3 => Tensor::cat(&(0..xs.dim(0)?).map(|part| xs.get(part)).collect::<Result<Vec<_>>>()?, 1)?,
        _ => xs.clone(),
    };
    tanh(&linear(&xs, weight, bias)?)
}

/// The operation on a GPU. The arguments are the input, the weight and, if there is one, the bias.
struct LinearTanh;

/// The input has `parts` matrices `(rows, columns)`.
#[derive(Clone, Copy)]
struct Sizes {
    parts: usize,
    rows: usize,
    columns: usize,
    outputs: usize,
}

impl Sizes {
    fn of(args: &[Tensor]) -> Result<Self> {
        let outputs = args[1].dim(0)?;
        let (parts, rows, columns) = match *args[0].dims() {
            [rows, columns] => (1, rows, columns),
            [parts, rows, columns] => (parts, rows, columns),
            ref dims => bail!("linear_tanh: found an input of shape {dims:?}, expected a rank of 2 or 3"),
        };
        let sizes = Self { parts, rows, columns, outputs };
        let expected = [outputs, sizes.inputs()];
        if args[1].dims() != expected || args.get(2).is_some_and(|bias| bias.dims() != [outputs]) {
            bail!("linear_tanh: found a weight of shape {:?}, expected {expected:?}", args[1].dims());
        }
        Ok(sizes)
    }

    fn inputs(self) -> usize {
        self.parts * self.columns
    }

    /// The parts of a matrix `(parts, rows, columns)`.
    fn parts<T>(self, at: Pointer<T>) -> Matrix<T> {
        Matrix { at, stride: self.columns, batch_stride: self.rows * self.columns }
    }

    /// The columns of a weight `(outputs, inputs)` that belong to each part.
    fn weights<T>(self, at: Pointer<T>) -> Matrix<T> {
        Matrix { at, stride: self.inputs(), batch_stride: self.columns }
    }
}

impl LinearTanh {
    fn forward_on<T: Stored + cuda::Real>(gpu: &Gpu, args: &[Tensor]) -> Result<(Storage, Shape)> {
        let sizes @ Sizes { parts, rows, columns, outputs } = Sizes::of(args)?;
        let (xs, weight) = (gpu.pointer::<T>(&args[0])?, gpu.pointer::<T>(&args[1])?);
        let n = rows * outputs;
        let ys = gpu.alloc::<T>(n)?;
        for part in 0..parts {
            let product = Product::new(
                [rows, outputs, columns],
                (xs.offset(part * rows * columns), columns),
                (weight.offset(part * columns), sizes.inputs()),
                (ys.pointer(), outputs),
            );
            let beta = if part == 0 { T::ZERO } else { T::ONE };
            // SAFETY: the arguments have these sizes; the result is new.
            unsafe { gpu.product(Product { b_transposed: true, beta, ..product })? };
        }
        let bias = args.get(2).map_or(Ok(Pointer::null()), |bias| gpu.pointer::<T>(bias))?;
        let args = [ys.pointer().into(), bias.into(), (n as i64).into(), (outputs as i32).into()];
        // SAFETY: these are the kernel's parameters; `bias` has `outputs` elements or is null.
        unsafe { gpu.launch(cuda::LINEAR.kernel::<T>("add_bias_tanh"), Grid::elements(n, 1), &args)? };
        Ok(gpu.output(ys, (rows, outputs)))
    }

    fn backward_on<T: Stored + cuda::Real>(
        gpu: &Gpu,
        args: &[Tensor],
        ys: &Tensor,
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        const CHUNK: usize = 256;
        let sizes @ Sizes { parts, rows, columns, outputs } = Sizes::of(args)?;
        let chunks = rows.div_ceil(CHUNK).max(1);
        let (inner, sums) = (gpu.alloc::<T>(rows * outputs)?, gpu.alloc::<T>(chunks * outputs)?);
        let mut kernel_args: Vec<Arg> = vec![gpu.pointer::<T>(ys)?.into(), gpu.pointer::<T>(grad)?.into()];
        kernel_args.extend([inner.pointer(), sums.pointer()].map(Arg::from));
        kernel_args.extend([Arg::from(rows as i64), (outputs as i32).into(), (CHUNK as i32).into()]);
        let grid = Grid { blocks: [outputs.div_ceil(32), chunks, 1], threads: [32, 8, 1], shared: 0 };
        // SAFETY: these are the kernel's parameters; it writes `chunks` rows of sums.
        unsafe { gpu.launch(cuda::LINEAR.kernel::<T>("tanh_gradient_sums"), grid, &kernel_args)? };
        let (xs, weight) = (gpu.pointer::<T>(&args[0])?, gpu.pointer::<T>(&args[1])?);
        let inner = Matrix::new(inner.pointer(), outputs);
        let mut grads = vec![None; args.len()];
        if args[0].track_op() {
            let to = gpu.alloc::<T>(parts * rows * columns)?;
            let sizes_of = [rows, columns, outputs];
            let product = Product::new(sizes_of, inner, sizes.weights(weight), sizes.parts(to.pointer()));
            // SAFETY: the gradients and the weight have these sizes; the result is new.
            unsafe { gpu.product(Product { batch: parts, ..product })? };
            grads[0] = Some(gpu.tensor(to, args[0].shape()));
        }
        if args[1].track_op() {
            let to = gpu.alloc::<T>(outputs * parts * columns)?;
            let sizes_of = [outputs, columns, rows];
            let product = Product::new(sizes_of, inner, sizes.parts(xs), sizes.weights(to.pointer()));
            // SAFETY: the gradients and the input have these sizes; each part has its columns of the new result.
            unsafe { gpu.product(Product { batch: parts, a_transposed: true, ..product })? };
            grads[1] = Some(gpu.tensor(to, args[1].shape()));
        }
        if args.get(2).is_some_and(Tensor::track_op) {
            let sums = if chunks == 1 { sums } else { column_sums_on(gpu, sums.pointer(), chunks, outputs)? };
            grads[2] = Some(gpu.tensor(sums, outputs));
        }
        Ok(grads)
    }
}

impl Operation for LinearTanh {
    fn name(&self) -> &'static str {
        "linear_tanh"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(Storage, Shape)> {
        let Some(gpu) = Gpu::of(&args[0]) else { bail!("linear_tanh: found no GPU") };
        with_real!(self.name(), args[0].dtype(), T => Self::forward_on::<T>(&gpu, args))
    }

    fn backward(&self, args: &[Tensor], ys: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let Some(gpu) = Gpu::of(grad) else { bail!("linear_tanh: found no GPU") };
        with_real!(self.name(), grad.dtype(), T => Self::backward_on::<T>(&gpu, args, ys, grad))
    }
}

#[cfg(all(test, feature = "cuda-emulator"))]
mod tests {
    use super::*;
    use crate::ops::{self, emulator};
    use candle_core::{Device, Var};

    #[test]
    fn the_layer_and_its_gradients_are_those_of_linear_and_tanh() -> Result<()> {
        for (shape, outputs, has_bias) in
            [(&[7, 6][..], 5, true), (&[2, 5, 3], 4, true), (&[3, 1, 2], 33, false), (&[600, 2], 3, true)]
        {
            let random = |shape: &[usize]| Var::randn(0f64, 0.5, shape, &Device::Cpu);
            let inputs = shape.iter().product::<usize>() / shape[shape.len() - 2];
            let (xs, weight, bias) = (random(shape)?, random(&[outputs, inputs])?, random(&[outputs])?);
            let run = || -> Result<Vec<Vec<f64>>> {
                let ys = linear_tanh(&xs, &weight, has_bias.then_some(&bias))?;
                let factors = Tensor::arange(0f64, ys.elem_count() as f64, &Device::Cpu)?;
                let loss = (&ys * factors.reshape(ys.shape())?)?.sum_all()?;
                let (grads, _) = ops::backward(&loss, vec![])?;
                let grads = [&xs, &weight, &bias].into_iter().filter_map(|var| grads.get(var));
                [&ys].into_iter().chain(grads).map(|tensor| tensor.flatten_all()?.to_vec1()).collect()
            };
            let (found, expected) = (run()?, emulator::off(run)?);
            assert_eq!(found.len(), expected.len());
            for (a, b) in found.into_iter().flatten().zip(expected.into_iter().flatten()) {
                assert!((a - b).abs() <= 1e-12 * (1. + b.abs()), "{shape:?}: {a}, expected {b}");
            }
        }
        Ok(())
    }
}
