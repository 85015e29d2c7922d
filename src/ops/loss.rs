//! Classification losses: scalars, the mean over the batch.
//!
//! Each takes `logits` `(batch, classes)` and `targets` `(batch)`, the u32 class labels. The forward pass also computes the
//! gradient, which costs little more, unless nothing records it.

use super::arguments::{check_loss, check_smoothing};
use super::autograd::{self, Operation};
use super::host::{self, with_real};
use super::reference;
use crate::kernels::cpu::loss::{self as kernel, Loss};
use candle_core::{Result, Shape, Storage, Tensor};
use std::sync::OnceLock;

/// The mean of `-ln softmax(logits)[target]`: PyTorch's `cross_entropy`, and the log-likelihood cost of Nielsen, eq. 80.
///
/// `smoothing` is the part of the target distribution that is spread evenly over all classes (Szegedy et al. 2016,
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
    match check_loss(name, logits, targets)? {
        Some(labels) => {
            let op = Classification::new(name, loss, labels, logits);
            autograd::apply(op, vec![logits.contiguous()?])
        }
        None => reference(logits, targets),
    }
}

struct Classification {
    name: &'static str,
    loss: Loss,
    labels: Vec<u32>,
    wants_gradient: bool,
    /// The gradient of the logits, which the forward pass computes if it is wanted.
    grad: OnceLock<Tensor>,
}

impl Classification {
    fn new(name: &'static str, loss: Loss, labels: Vec<u32>, logits: &Tensor) -> Self {
        Self { name, loss, labels, wants_gradient: autograd::records(logits), grad: OnceLock::new() }
    }
}

impl Operation for Classification {
    fn name(&self) -> &'static str {
        self.name
    }

    fn forward(&self, args: &[Tensor]) -> Result<(Storage, Shape)> {
        let logits = &args[0];
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
        Ok(vec![self.grad.get().map(|saved| saved.broadcast_mul(grad)).transpose()?])
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
            let op = Classification::new("loss", Loss::Quadratic, vec![0, 1], logits);
            op.forward(std::slice::from_ref(logits))?;
            Ok(op.grad.get().is_some())
        };
        assert!(has_gradient(&variable)?);
        assert!(!no_grad(|| has_gradient(&variable))?);
        assert!(!has_gradient(&variable.detach())?);
        Ok(())
    }
}
