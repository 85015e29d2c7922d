//! Classification losses: scalars, the mean over the batch.
//!
//! Each takes `logits` `(batch, classes)` and `targets` `(batch)`, the u32 class labels. The forward pass also computes
//! the gradient, which costs little more, unless no graph records it.

use super::arguments::{check_loss, check_smoothing};
use super::autograd::{self, Operation};
use super::gpu::{Gpu, Stored};
use super::host::{self, with_real};
use super::reference;
use crate::kernels::cpu::loss::{self as kernel, Loss};
use crate::kernels::cuda::{self, Arg, Buffer, Grid, Pointer};
use candle_core::{Result, Shape, Storage, Tensor};
use std::sync::OnceLock;

/// The mean of `-ln softmax(logits)[target]`, PyTorch's `cross_entropy` (Nielsen, eq. 80).
///
/// `smoothing` is the fraction of the target distribution that is spread evenly over all classes (Szegedy et al. 2016,
/// arXiv:1512.00567, section 7). A logit of minus infinity masks its class.
///
/// # Errors
/// Fails if the batch is empty, `smoothing` is not from 0 to 1 or, on the CPU, a label is not below the number of
/// classes.
pub fn softmax_cross_entropy(logits: &Tensor, targets: &Tensor, smoothing: f64) -> Result<Tensor> {
    check_smoothing(smoothing)?;
    let loss = Loss::SoftmaxCrossEntropy { smoothing };
    apply("softmax_cross_entropy", loss, logits, targets, |logits, targets| {
        reference::softmax_cross_entropy(logits, targets, smoothing)
    })
}

/// The mean over the batch of the summed binary cross-entropies of `sigmoid(logits)`: Nielsen, eq. 63.
///
/// The targets are one-hot. The result is accurate for logits of any size.
///
/// # Errors
/// Fails if the batch is empty or, on the CPU, a label is not below the number of classes.
pub fn sigmoid_cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let loss = Loss::SigmoidCrossEntropy;
    apply("sigmoid_cross_entropy", loss, logits, targets, reference::sigmoid_cross_entropy)
}

/// The mean over the batch of `||one_hot(target) - sigmoid(logits)||^2 / 2`: Nielsen, eq. 6.
///
/// # Errors
/// Fails if the batch is empty or, on the CPU, a label is not below the number of classes.
pub fn quadratic(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    apply("quadratic", Loss::Quadratic, logits, targets, reference::quadratic)
}

fn apply(
    name: &'static str,
    loss: Loss,
    logits: &Tensor,
    targets: &Tensor,
    reference: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let labels = check_loss(name, logits, targets)?;
    if !Gpu::supports(logits) {
        return reference(logits, targets);
    }
    let op = Classification::new(name, loss, labels.unwrap_or_default(), targets.contiguous()?, logits);
    autograd::apply(op, vec![logits.contiguous()?])
}

struct Classification {
    name: &'static str,
    loss: Loss,
    /// The targets in main memory, if the logits are there.
    labels: Vec<u32>,
    targets: Tensor,
    wants_gradient: bool,
    /// The gradient of the logits, which the forward pass computes if a graph records it.
    grad: OnceLock<Tensor>,
}

impl Classification {
    fn new(name: &'static str, loss: Loss, labels: Vec<u32>, targets: Tensor, logits: &Tensor) -> Self {
        let wants_gradient = autograd::records(logits);
        Self { name, loss, labels, targets, wants_gradient, grad: OnceLock::new() }
    }

    fn forward_on<T: Stored + cuda::Real>(&self, gpu: &Gpu, logits: &Tensor) -> Result<(Storage, Shape)> {
        let (batch, classes) = logits.dims2()?;
        let grad = self.wants_gradient.then(|| gpu.alloc::<T>(batch * classes)).transpose()?;
        let rows = Rows {
            logits: gpu.pointer(logits)?,
            bias: Pointer::null(),
            targets: gpu.pointer(&self.targets)?,
            grad: grad.as_ref().map_or(Pointer::null(), Buffer::pointer),
            batch,
            classes,
        };
        // SAFETY: the arrays have these sizes, and the gradient is new.
        let loss = unsafe { rows.loss(gpu, self.loss)? };
        if let Some(grad) = grad {
            self.grad.get_or_init(|| gpu.tensor(grad, logits.shape()));
        }
        Ok(gpu.output(loss, ()))
    }
}

/// The arguments of the loss kernels, for logits `(batch, classes)`.
pub(super) struct Rows<T> {
    pub logits: Pointer<T>,
    /// The bias to add to each row, `(classes)`; null for none.
    pub bias: Pointer<T>,
    pub targets: Pointer<u32>,
    /// Where to write the gradient of the logits, possibly over the logits; null to skip it.
    pub grad: Pointer<T>,
    pub batch: usize,
    pub classes: usize,
}

impl<T: Stored + cuda::Real> Rows<T> {
    /// Computes the mean loss and the gradient of the logits.
    ///
    /// # Safety
    /// The arrays have these sizes and values; the gradient is the caller's to write.
    pub unsafe fn loss(self, gpu: &Gpu, loss: Loss) -> Result<Buffer<T>> {
        const THREADS: usize = 256;
        let Self { logits, bias, targets, grad, batch, classes } = self;
        // A warp for each row, or a block for each long one.
        let team = if classes <= 1024 { 32 } else { THREADS };
        let (losses, mean) = (gpu.alloc::<T>(batch)?, gpu.alloc::<T>(1)?);
        let mut args: Vec<Arg> = vec![logits.into(), targets.into(), grad.into()];
        args.extend([losses.pointer(), mean.pointer()].map(Arg::from));
        args.extend([batch, classes].map(|size| Arg::from(size as i32)));
        let name = match loss {
            Loss::SoftmaxCrossEntropy { smoothing } => {
                args.extend([1. - smoothing, smoothing / classes as f64].map(|part| T::of(part).into()));
                args.push(bias.into());
                "softmax_cross_entropy"
            }
            Loss::SigmoidCrossEntropy => "sigmoid_cross_entropy",
            Loss::Quadratic => "quadratic",
        };
        let constants = [("TEAM", team)];
        let kernel = cuda::LOSS.kernel::<T>(name).with(&constants);
        let grid =
            Grid { blocks: [batch.div_ceil(THREADS / team), 1, 1], threads: [THREADS, 1, 1], shared: 0 };
        // SAFETY: these are the kernel's parameters, which are as the caller promises.
        unsafe { gpu.launch(kernel, grid, &args)? };
        Ok(mean)
    }
}

/// Returns `saved`, scaled by the scalar `grad`.
pub(super) fn scaled_on<T: Stored + cuda::Real>(gpu: &Gpu, saved: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let n = saved.elem_count();
    let out = gpu.alloc::<T>(n)?;
    let args = [
        gpu.pointer::<T>(saved)?.into(),
        gpu.pointer::<T>(grad)?.into(),
        out.pointer().into(),
        (n as i32).into(),
    ];
    let constants = [("TEAM", 32)];
    let kernel = cuda::LOSS.kernel::<T>("scale_gradient").with(&constants);
    // SAFETY: these are the kernel's parameters; both arrays have `n` elements.
    unsafe { gpu.launch(kernel, Grid::elements(n, 1), &args)? };
    Ok(gpu.tensor(out, saved.shape()))
}

impl Operation for Classification {
    fn name(&self) -> &'static str {
        self.name
    }

    fn forward(&self, args: &[Tensor]) -> Result<(Storage, Shape)> {
        let logits = &args[0];
        if let Some(gpu) = Gpu::of(logits) {
            return with_real!(self.name, logits.dtype(), T => self.forward_on::<T>(&gpu, logits));
        }
        with_real!(self.name, logits.dtype(), T => {
            let (loss, grad) = host::read::<T, _>(logits, |elements| {
                Ok(kernel::forward(self.loss, elements, &self.labels, self.wants_gradient))
            })?;
            if let Some(grad) = grad {
                let grad = Tensor::from_vec(grad, logits.shape(), logits.device())?;
                self.grad.get_or_init(|| grad);
            }
            Ok(host::output(vec![loss], ()))
        })
    }

    fn backward(&self, _: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let Some(saved) = self.grad.get() else { return Ok(vec![None]) };
        let scaled = match Gpu::of(saved) {
            Some(gpu) => with_real!(self.name, saved.dtype(), T => scaled_on::<T>(&gpu, saved, grad)?),
            None => saved.broadcast_mul(grad)?,
        };
        Ok(vec![Some(scaled)])
    }

    fn backward_from_one(&self, _: &[Tensor]) -> Result<Option<Vec<Option<Tensor>>>> {
        Ok(self.grad.get().map(|saved| vec![Some(saved.clone())]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::no_grad;
    use candle_core::{Device, Var};

    #[test]
    fn the_gradient_is_computed_only_if_it_is_recorded() -> Result<()> {
        let variable = Var::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu)?;
        let has_gradient = |logits: &Tensor| -> Result<bool> {
            let targets = Tensor::new(&[0u32, 1], &Device::Cpu)?;
            let op = Classification::new("loss", Loss::Quadratic, vec![0, 1], targets, logits);
            op.forward(std::slice::from_ref(logits))?;
            Ok(op.grad.get().is_some())
        };
        assert!(has_gradient(&variable)?);
        assert!(!no_grad(|| has_gradient(&variable))?);
        assert!(!has_gradient(&variable.detach())?);
        Ok(())
    }
}
