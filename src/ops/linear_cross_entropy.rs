//! A linear layer and its softmax cross-entropy, as one operation.

use super::arguments::{check_linear, check_loss_targets, check_smoothing};
use super::autograd::{self, Operation};
use super::gpu::Gpu;
use super::host::{self, with_real};
use super::{linear, softmax_cross_entropy};
use crate::kernels::cpu::linear::{Dims, column_sums, forward, input_grad, weight_grad};
use crate::kernels::cpu::loss::{self as kernel, Loss};
use candle_core::{Device, Result, Shape, Storage, Tensor, bail};
use std::sync::OnceLock;

/// The mean of `-ln softmax(xs * weight^T + bias)[target]`: [`softmax_cross_entropy`] of [`linear()`].
///
/// `xs` is `(rows, in)`, `weight` `(classes, in)`, `bias` `(classes)`, and `targets` `(rows)`, the u32 class labels. On the
/// CPU the logits become their gradient in place, which halves the memory that many classes take.
///
/// # Errors
/// Fails if the shapes do not match, or [`softmax_cross_entropy`] would.
pub fn linear_cross_entropy(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    targets: &Tensor,
    smoothing: f64,
) -> Result<Tensor> {
    if !xs.device().is_cpu() || Gpu::of(xs).is_some() {
        return softmax_cross_entropy(&linear(xs, weight, bias)?, targets, smoothing);
    }
    const NAME: &str = "linear_cross_entropy";
    check_smoothing(smoothing)?;
    check_linear(xs, weight, bias)?;
    let (rows, _) = xs.dims2()?;
    let labels = check_loss_targets(NAME, [rows, weight.dim(0)?], targets)?;
    let args = [Some(xs), Some(weight), bias].into_iter().flatten();
    let wants_gradient = args.clone().any(autograd::records);
    let op = LinearCrossEntropy { smoothing, labels, wants_gradient, grad: OnceLock::new() };
    autograd::apply(op, args.map(Tensor::contiguous).collect::<Result<_>>()?)
}

/// The arguments are the input, the weight and, if there is one, the bias.
struct LinearCrossEntropy {
    smoothing: f64,
    labels: Vec<u32>,
    wants_gradient: bool,
    /// The gradient of the logits, which the forward pass computes if it is wanted.
    grad: OnceLock<Tensor>,
}

impl LinearCrossEntropy {
    fn dims(args: &[Tensor]) -> Result<Dims> {
        let ((rows, inputs), outputs) = (args[0].dims2()?, args[1].dim(0)?);
        Ok(Dims { rows, inputs, outputs })
    }

    /// The gradients of all arguments, for a gradient of 1.
    fn gradients(&self, args: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        let Some(grad) = self.grad.get() else { bail!("linear_cross_entropy: there is no gradient") };
        let dims = Self::dims(args)?;
        let held = host::hold(args.iter().chain([grad]));
        with_real!(self.name(), grad.dtype(), T => {
            let (xs, weight, grad) = (held.get::<T>(0)?, held.get::<T>(1)?, held.get::<T>(args.len())?);
            autograd::gradients(args, |index| match index {
                0 => input_grad(grad, weight, dims),
                1 => weight_grad(grad, xs, dims),
                _ => column_sums(grad, dims.outputs, dims.outputs),
            })
        })
    }
}

impl Operation for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        "linear_cross_entropy"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(Storage, Shape)> {
        let dims = Self::dims(args)?;
        let held = host::hold(args);
        with_real!(self.name(), args[0].dtype(), T => {
            let bias = if args.len() > 2 { held.get::<T>(2)? } else { &[] };
            let mut logits = forward(held.get(0)?, held.get(1)?, bias, dims);
            let loss = Loss::SoftmaxCrossEntropy { smoothing: self.smoothing };
            let mean = match self.wants_gradient {
                true => kernel::replace_by_gradient(loss, &mut logits, &self.labels),
                false => kernel::forward(loss, &logits, &self.labels, false).0,
            };
            if self.wants_gradient {
                let grad = Tensor::from_vec(logits, (dims.rows, dims.outputs), &Device::Cpu)?;
                self.grad.get_or_init(|| grad);
            }
            Ok(host::output(vec![mean], ()))
        })
    }

    fn backward(&self, args: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let scaled = |part: Option<Tensor>| part.map(|part| part.broadcast_mul(grad)).transpose();
        self.gradients(args)?.into_iter().map(scaled).collect()
    }
}
