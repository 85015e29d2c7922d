//! A linear layer and its softmax cross-entropy as one operation.

use super::arguments::{check_linear, check_smoothing, check_targets};
use super::autograd::{self, Operation};
use super::gpu::{Gpu, Stored};
use super::host::{self, with_real};
use super::linear::Linear;
use super::loss::{Rows, scaled_on};
use super::{linear, softmax_cross_entropy};
use crate::kernels::cpu::linear::{column_sums, forward, input_grad, weight_grad};
use crate::kernels::cpu::loss::{self as kernel, Loss};
use crate::kernels::cuda::{self, Pointer};
use candle_core::{Device, Result, Shape, Storage, Tensor, bail};
use std::sync::OnceLock;

/// The mean of `-ln softmax(xs * weight^T + bias)[target]`.
///
/// It equals [`softmax_cross_entropy`] of [`linear()`]. `xs` is `(rows, in)`, `weight` `(classes, in)`, `bias`
/// `(classes)`, and `targets` `(rows)`, the u32 class labels. The gradient overwrites the logits, which halves the
/// memory for many classes.
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
    if !Gpu::supports(xs) {
        return softmax_cross_entropy(&linear(xs, weight, bias)?, targets, smoothing);
    }
    const NAME: &str = "linear_cross_entropy";
    check_smoothing(smoothing)?;
    check_linear(xs, weight, bias)?;
    let (rows, _) = xs.dims2()?;
    let labels = check_targets(NAME, [rows, weight.dim(0)?], targets, xs.device())?;
    let args = [Some(xs), Some(weight), bias].into_iter().flatten();
    let wants_gradient = args.clone().any(autograd::records);
    let op = LinearCrossEntropy {
        loss: Loss::SoftmaxCrossEntropy { smoothing },
        labels: labels.unwrap_or_default(),
        targets: targets.contiguous()?,
        wants_gradient,
        grad: OnceLock::new(),
    };
    autograd::apply(op, args.map(Tensor::contiguous).collect::<Result<_>>()?)
}

/// The arguments are the input, the weight and, if there is one, the bias.
struct LinearCrossEntropy {
    loss: Loss,
    /// The targets in main memory, if the logits are there.
    labels: Vec<u32>,
    targets: Tensor,
    wants_gradient: bool,
    /// The gradient of the logits, which the forward pass computes if a graph records it.
    grad: OnceLock<Tensor>,
}

impl LinearCrossEntropy {
    fn forward_on<T: Stored + cuda::Real>(&self, gpu: &Gpu, args: &[Tensor]) -> Result<(Storage, Shape)> {
        let dims = Linear::dims(args)?;
        let logits = Linear::product_on::<T>(gpu, args, dims)?;
        let rows = Rows {
            logits: logits.pointer(),
            bias: args.get(2).map_or(Ok(Pointer::null()), |bias| gpu.pointer(bias))?,
            targets: gpu.pointer(&self.targets)?,
            grad: if self.wants_gradient { logits.pointer() } else { Pointer::null() },
            batch: dims.rows,
            classes: dims.outputs,
        };
        // SAFETY: the arrays have these sizes, and the logits are new.
        let loss = unsafe { rows.loss(gpu, self.loss)? };
        if self.wants_gradient {
            self.grad.get_or_init(|| gpu.tensor(logits, (dims.rows, dims.outputs)));
        }
        Ok(gpu.output(loss, ()))
    }

    /// The gradient of the logits, for a gradient of 1.
    fn grad(&self) -> Result<&Tensor> {
        match self.grad.get() {
            Some(grad) => Ok(grad),
            None => bail!("linear_cross_entropy: there is no gradient"),
        }
    }

    /// The gradients of all arguments from `grad`, the gradient of the logits.
    fn gradients(&self, args: &[Tensor], grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let dims = Linear::dims(args)?;
        if let Some(gpu) = Gpu::of(grad) {
            return with_real!(self.name(), grad.dtype(), T => Linear::backward_on::<T>(&gpu, args, grad, dims));
        }
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
        if let Some(gpu) = Gpu::of(&args[0]) {
            return with_real!(self.name(), args[0].dtype(), T => self.forward_on::<T>(&gpu, args));
        }
        let dims = Linear::dims(args)?;
        let held = host::hold(args);
        with_real!(self.name(), args[0].dtype(), T => {
            let bias = if args.len() > 2 { held.get::<T>(2)? } else { &[] };
            let mut logits = forward(held.get(0)?, held.get(1)?, bias, dims);
            let mean = match self.wants_gradient {
                true => kernel::replace_by_gradient(self.loss, &mut logits, &self.labels),
                false => kernel::forward(self.loss, &logits, &self.labels, false).0,
            };
            if self.wants_gradient {
                let grad = Tensor::from_vec(logits, (dims.rows, dims.outputs), &Device::Cpu)?;
                self.grad.get_or_init(|| grad);
            }
            Ok(host::output(vec![mean], ()))
        })
    }

    fn backward(&self, args: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let saved = self.grad()?;
        if let Some(gpu) = Gpu::of(saved) {
            let scaled = with_real!(self.name(), saved.dtype(), T => scaled_on::<T>(&gpu, saved, grad)?);
            return self.gradients(args, &scaled);
        }
        let scaled = |part: Option<Tensor>| part.map(|part| part.broadcast_mul(grad)).transpose();
        self.gradients(args, saved)?.into_iter().map(scaled).collect()
    }

    fn backward_from_one(&self, args: &[Tensor]) -> Result<Option<Vec<Option<Tensor>>>> {
        self.gradients(args, self.grad()?).map(Some)
    }
}
