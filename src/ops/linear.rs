//! The fully connected layer.

use super::arguments::check_linear;
use super::autograd::{self, Operation, gradients};
use super::gpu::{Gpu, Stored};
use super::host::{self, with_real};
use super::reference;
use crate::kernels::cpu::linear::{Dims, column_sums, forward, input_grad, weight_grad};
use crate::kernels::cuda::{self, Buffer, Grid, Pointer, Product};
use candle_core::{Result, Shape, Storage, Tensor};

/// Applies a fully connected layer, `xs * weight^T + bias`, like PyTorch's `linear`.
///
/// `xs` is `(.., in)`, `weight` `(out, in)`, `bias` `(out)`; the result is `(.., out)`. `in` and `out` may be 0.
///
/// # Errors
/// Fails if the shapes do not match.
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    check_linear(xs, weight, bias)?;
    if !Gpu::supports(xs) {
        return reference::linear(xs, weight, bias);
    }
    let args = [Some(xs), Some(weight), bias].into_iter().flatten().map(Tensor::contiguous);
    autograd::apply(Linear, args.collect::<Result<_>>()?)
}

/// The arguments are the input, the weight and, if there is one, the bias.
pub(super) struct Linear;

impl Linear {
    pub(super) fn dims(args: &[Tensor]) -> Result<Dims> {
        let (outputs, inputs) = args[1].dims2()?;
        let (_, leading) = args[0].dims().split_last().expect("a rank of 1 or more");
        Ok(Dims { rows: leading.iter().product(), inputs, outputs })
    }

    /// Computes the product of the input and the weight.
    pub(super) fn product_on<T: Stored + cuda::Real>(
        gpu: &Gpu,
        args: &[Tensor],
        dims: Dims,
    ) -> Result<Buffer<T>> {
        let Dims { rows, inputs, outputs } = dims;
        let ys = gpu.alloc::<T>(rows * outputs)?;
        let (xs, weight) = (gpu.pointer(&args[0])?, gpu.pointer(&args[1])?);
        let product =
            Product::new([rows, outputs, inputs], (xs, inputs), (weight, inputs), (ys.pointer(), outputs));
        // SAFETY: the arguments have these sizes; the result is new.
        unsafe { gpu.product(Product { b_transposed: true, ..product })? };
        Ok(ys)
    }

    fn forward_on<T: Stored + cuda::Real>(gpu: &Gpu, args: &[Tensor], dims: Dims) -> Result<Buffer<T>> {
        let ys = Self::product_on::<T>(gpu, args, dims)?;
        let (n, outputs) = (dims.rows * dims.outputs, dims.outputs);
        if let Some(bias) = args.get(2) {
            let bias = gpu.pointer::<T>(bias)?;
            let args = [ys.pointer().into(), bias.into(), (n as i64).into(), (outputs as i32).into()];
            // SAFETY: these are the kernel's parameters; `bias` has `outputs` elements.
            unsafe { gpu.launch(cuda::LINEAR.kernel::<T>("add_bias"), Grid::elements(n, 4), &args)? };
        }
        Ok(ys)
    }

    pub(super) fn backward_on<T: Stored + cuda::Real>(
        gpu: &Gpu,
        args: &[Tensor],
        grad: &Tensor,
        dims: Dims,
    ) -> Result<Vec<Option<Tensor>>> {
        let Dims { rows, inputs, outputs } = dims;
        let (xs, weight) = (gpu.pointer::<T>(&args[0])?, gpu.pointer::<T>(&args[1])?);
        let grad = gpu.pointer::<T>(grad)?;
        let multiply = |product: Product<T>| {
            // SAFETY: the arguments and the gradient have these sizes; the result is new.
            unsafe { gpu.product(product) }
        };
        let gradient = |index| -> Result<Buffer<T>> {
            Ok(match index {
                0 => {
                    let to = gpu.alloc::<T>(rows * inputs)?;
                    let sizes = [rows, inputs, outputs];
                    multiply(Product::new(sizes, (grad, outputs), (weight, inputs), (to.pointer(), inputs)))?;
                    to
                }
                1 => {
                    let to = gpu.alloc::<T>(outputs * inputs)?;
                    let sizes = [outputs, inputs, rows];
                    let product = Product::new(sizes, (grad, outputs), (xs, inputs), (to.pointer(), inputs));
                    multiply(Product { a_transposed: true, ..product })?;
                    to
                }
                _ => column_sums_on(gpu, grad, rows, outputs)?,
            })
        };
        let mut grads = vec![None; args.len()];
        let mut rest = 0..args.len();
        if rows <= FEW_ROWS && args.len() == 3 && args[1].track_op() && args[2].track_op() {
            let [weight_grad, bias_grad] = few_rows_gradient_on(gpu, xs, grad, dims)?;
            grads[1] = Some(gpu.tensor(weight_grad, args[1].shape()));
            grads[2] = Some(gpu.tensor(bias_grad, args[2].shape()));
            rest = 0..1;
        }
        for index in rest.filter(|&index| args[index].track_op()) {
            grads[index] = Some(gpu.tensor(gradient(index)?, args[index].shape()));
        }
        Ok(grads)
    }
}

/// The largest number of rows for which one kernel computes the gradients of weight and bias.
///
/// The kernel calls it `ROWS`.
const FEW_ROWS: usize = 64;

/// Computes the gradients of weight and bias in one launch.
fn few_rows_gradient_on<T: cuda::Real>(
    gpu: &Gpu,
    xs: Pointer<T>,
    grad: Pointer<T>,
    Dims { rows, inputs, outputs }: Dims,
) -> Result<[Buffer<T>; 2]> {
    let (weight_grad, bias_grad) = (gpu.alloc::<T>(outputs * inputs)?, gpu.alloc::<T>(outputs)?);
    let args = [
        xs.into(),
        grad.into(),
        weight_grad.pointer().into(),
        bias_grad.pointer().into(),
        (rows as i32).into(),
        (inputs as i32).into(),
        (outputs as i32).into(),
    ];
    let blocks = [inputs.div_ceil(32).max(1), outputs.div_ceil(8), 1];
    let grid = Grid { blocks, threads: [32, 8, 1], shared: 0 };
    // SAFETY: these are the kernel's parameters; the gradients have the sizes of weight and bias.
    unsafe { gpu.launch(cuda::LINEAR.kernel::<T>("few_rows_gradient"), grid, &args)? };
    Ok([weight_grad, bias_grad])
}

/// Rows that a block sums; more if there are enough columns for many blocks.
fn chunk_of(columns: usize) -> usize {
    if columns > 4096 { 1024 } else { 256 }
}

/// Sums each column of a matrix `(rows, columns)`.
///
/// Chunks of rows are summed side by side, and then their sums in the same way.
pub(super) fn column_sums_on<T: cuda::Real>(
    gpu: &Gpu,
    xs: Pointer<T>,
    rows: usize,
    columns: usize,
) -> Result<Buffer<T>> {
    let chunk = chunk_of(columns);
    let chunks = rows.div_ceil(chunk).max(1);
    let sums = gpu.alloc::<T>(chunks * columns)?;
    let grid = Grid { blocks: [columns.div_ceil(32), chunks, 1], threads: [32, 8, 1], shared: 0 };
    let (n, chunk) = (rows as i64, chunk as i32);
    let args = [xs.into(), sums.pointer().into(), n.into(), (columns as i32).into(), chunk.into()];
    // SAFETY: these are the kernel's parameters; it writes `chunks` rows of sums.
    unsafe { gpu.launch(cuda::LINEAR.kernel::<T>("column_sums"), grid, &args)? };
    match chunks {
        1 => Ok(sums),
        _ => column_sums_on(gpu, sums.pointer(), chunks, columns),
    }
}

impl Operation for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(Storage, Shape)> {
        let dims = Self::dims(args)?;
        let mut shape = args[0].dims().to_vec();
        shape.pop();
        shape.push(dims.outputs);
        if let Some(gpu) = Gpu::of(&args[0]) {
            return with_real!(self.name(), args[0].dtype(), T => {
                Ok(gpu.output(Self::forward_on::<T>(&gpu, args, dims)?, shape))
            });
        }
        with_real!(self.name(), args[0].dtype(), T => {
            let held = host::hold(args);
            let bias = if args.len() > 2 { held.get::<T>(2)? } else { &[] };
            Ok(host::output(forward(held.get(0)?, held.get(1)?, bias, dims), shape))
        })
    }

    fn backward(&self, args: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let dims = Self::dims(args)?;
        if let Some(gpu) = Gpu::of(grad) {
            return with_real!(self.name(), grad.dtype(), T => Self::backward_on::<T>(&gpu, args, grad, dims));
        }
        let held = host::hold(args.iter().chain([grad]));
        with_real!(self.name(), grad.dtype(), T => {
            let (xs, weight, grad) = (held.get::<T>(0)?, held.get::<T>(1)?, held.get::<T>(args.len())?);
            gradients(args, |index| match index {
                0 => input_grad(grad, weight, dims),
                1 => weight_grad(grad, xs, dims),
                _ => column_sums(grad, dims.outputs, dims.outputs),
            })
        })
    }
}
