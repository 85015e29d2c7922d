//! The fully connected layer.

use super::arguments::check_linear;
use super::autograd::{self, Operation, gradients};
use super::host::{self, with_real};
use super::reference;
use crate::kernels::cpu::linear::{Dims, column_sums, forward, input_grad, weight_grad};
use candle_core::{CpuStorage, Result, Shape, Tensor};

/// Applies a fully connected layer: `xs * weight^T + bias`, PyTorch's `linear`.
///
/// `xs` is `(.., in)`, `weight` `(out, in)`, `bias` `(out)`; the result is `(.., out)`. `in` and `out` may be 0.
///
/// # Errors
/// Fails if the shapes do not match.
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    check_linear(xs, weight, bias)?;
    if !xs.device().is_cpu() {
        return reference::linear(xs, weight, bias);
    }
    let args = [Some(xs), Some(weight), bias].into_iter().flatten().map(Tensor::contiguous);
    autograd::apply(Linear, args.collect::<Result<_>>()?)
}

/// The arguments are the input, the weight and, if there is one, the bias.
struct Linear;

impl Linear {
    fn dims(args: &[Tensor]) -> Result<Dims> {
        let (outputs, inputs) = args[1].dims2()?;
        let (_, leading) = args[0].dims().split_last().expect("a rank of 1 or more");
        Ok(Dims { rows: leading.iter().product(), inputs, outputs })
    }
}

impl Operation for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let (held, dims) = (host::hold(args), Self::dims(args)?);
        let mut shape = args[0].dims().to_vec();
        shape.pop();
        shape.push(dims.outputs);
        with_real!(self.name(), args[0].dtype(), T => {
            let bias = if args.len() > 2 { held.get::<T>(2)? } else { &[] };
            Ok(host::output(forward(held.get(0)?, held.get(1)?, bias, dims), shape))
        })
    }

    fn backward(&self, args: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (held, dims) = (host::hold(args.iter().chain([grad])), Self::dims(args)?);
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
