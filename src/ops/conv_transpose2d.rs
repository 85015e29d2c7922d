//! Transposed two-dimensional convolution.

use super::arguments::{Conv2dConfig, check_conv_transpose2d};
use super::autograd::{self, Operation, gradients};
use super::gpu::Gpu;
use super::host::{self, with_real};
use super::reference;
use crate::kernels::cpu::conv2d::{Conv2d, add_bias};
use candle_core::{Result, Shape, Storage, Tensor};

/// Transposed two-dimensional convolution (deconvolution), like PyTorch's `conv_transpose2d`.
///
/// It is the gradient of [`conv2d`](super::conv2d()) with respect to the input. `xs` `(batch, in, height, width)` with
/// `weight` `(in, out / groups, kernel height, kernel width)` and `bias` `(out)` gives `(batch, out, output height, output
/// width)`, where an output size is `(size - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1`.
///
/// # Errors
/// Fails if a tensor has the wrong rank, type or device; if the channels do not match `weight`, `bias` and the groups; if
/// a stride, a dilation or the number of groups is 0; if the output padding is neither below the stride nor below the
/// dilation; if the padding leaves no output; or if sizes are too large for memory.
pub fn conv_transpose2d(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: Conv2dConfig,
    output_padding: (usize, usize),
) -> Result<Tensor> {
    let conv = check_conv_transpose2d(xs, weight, bias, config, output_padding)?;
    if !xs.device().is_cpu() || Gpu::of(xs).is_some() {
        return reference::conv_transpose2d(xs, weight, bias, config, output_padding);
    }
    let args = [Some(xs), Some(weight), bias].into_iter().flatten().map(Tensor::contiguous);
    autograd::apply(Transposed(conv), args.collect::<Result<_>>()?)
}

/// The convolution from the output to the input.
///
/// The three passes of the transposed convolution are its passes in another order.
struct Transposed(Conv2d);

impl Operation for Transposed {
    fn name(&self) -> &'static str {
        "conv_transpose2d"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(Storage, Shape)> {
        let Conv2d { batch, groups, channels, input, .. } = self.0;
        let held = host::hold(args);
        with_real!(self.name(), args[0].dtype(), T => {
            let mut ys = self.0.input_grad::<T>(held.get(0)?, held.get(1)?);
            if args.len() > 2 {
                add_bias(&mut ys, held.get(2)?, input.0 * input.1);
            }
            Ok(host::output(ys, (batch, groups * channels, input.0, input.1)))
        })
    }

    fn backward(&self, args: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let held = host::hold(args.iter().chain([grad]));
        with_real!(self.name(), grad.dtype(), T => {
            let (xs, weight, grad) = (held.get::<T>(0)?, held.get::<T>(1)?, held.get::<T>(args.len())?);
            gradients(args, |index| match index {
                0 => self.0.forward(grad, weight, &[]),
                1 => self.0.weight_grad(xs, grad),
                // The gradient has the shape of the output of this convolution.
                _ => Conv2d { outputs: self.0.channels, output: self.0.input, ..self.0 }.bias_grad(grad),
            })
        })
    }
}
