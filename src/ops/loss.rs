//! Losses of a classifier: scalars, the mean over the batch.
//!
//! Each takes `logits` (batch, classes) and `targets`, the u32 labels (batch). The gradient costs next to nothing
//! beside the loss, so both are computed at once.

use super::autograd::{self, Operation};
use super::host::{self, Element, with_real};
use super::reference;
use crate::kernels::cpu::Real;
use crate::kernels::cpu::parallel::{self, Shared};
use crate::kernels::cpu::simd::{sum, vectorised};
use candle_core::{CpuStorage, DType, Result, Shape, Tensor, bail};
use std::sync::OnceLock;

/// The mean of `-ln softmax(logits)[target]`: the log-likelihood cost, Nielsen eq. 80. Of the target so large a part as
/// `smoothing` is spread evenly over all classes (Szegedy et al. 2016, arXiv:1512.00567, section 7); 0 leaves it whole.
///
/// An error if a label is not below the number of classes (on the CPU), the batch is empty, or `smoothing` is not in 0 to 1.
pub fn softmax_cross_entropy(logits: &Tensor, targets: &Tensor, smoothing: f64) -> Result<Tensor> {
    if !(0.0..=1.0).contains(&smoothing) {
        bail!("softmax_cross_entropy: found a label smoothing of {smoothing}, expected one in 0 to 1");
    }
    apply(logits, targets, Kind::SoftmaxCrossEntropy { smoothing }, |logits, targets| {
        reference::softmax_cross_entropy(logits, targets, smoothing)
    })
}

/// The mean over the batch of the sum over the classes of the binary cross-entropy of `sigmoid(logits)` against the
/// one-hot target: Nielsen eq. 63. Stable for logits of any size.
///
/// An error if a label is not below the number of classes (on the CPU) or the batch is empty.
pub fn sigmoid_cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    apply(logits, targets, Kind::SigmoidCrossEntropy, reference::sigmoid_cross_entropy)
}

/// The mean over the batch of `||one_hot(target) - sigmoid(logits)||^2 / 2`: Nielsen eq. 6.
///
/// An error if a label is not below the number of classes (on the CPU) or the batch is empty.
pub fn quadratic(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    apply(logits, targets, Kind::Quadratic, reference::quadratic)
}

fn apply(
    logits: &Tensor,
    targets: &Tensor,
    kind: Kind,
    reference: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let name = kind.name();
    let (batch, classes) = match *logits.dims() {
        [batch, classes] => (batch, classes),
        ref dims => bail!("{name}: found logits of shape {dims:?}, expected (batch, classes)"),
    };
    if targets.dims() != [batch] || targets.dtype() != DType::U32 {
        let (dims, dtype) = (targets.dims(), targets.dtype());
        bail!(
            "{name}: found {dtype:?} targets of shape {dims:?}, expected u32 of shape ({batch}), the logits' batch"
        );
    }
    if batch == 0 {
        bail!("{name}: found an empty batch, whose mean is undefined; expected one example or more");
    }
    if !logits.device().is_cpu() {
        return reference(logits, targets);
    }
    let targets = targets.to_vec1::<u32>()?;
    if let Some(label) = targets.iter().find(|&&label| label as usize >= classes) {
        bail!("{name}: found the target {label}, expected less than {classes}, the number of classes");
    }
    autograd::apply(Loss { kind, targets, grad: OnceLock::new() }, vec![logits.contiguous()?])
}

#[derive(Clone, Copy)]
enum Kind {
    SoftmaxCrossEntropy { smoothing: f64 },
    SigmoidCrossEntropy,
    Quadratic,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::SoftmaxCrossEntropy { .. } => "softmax_cross_entropy",
            Self::SigmoidCrossEntropy => "sigmoid_cross_entropy",
            Self::Quadratic => "quadratic",
        }
    }

    /// The loss of one example; `logits` become its gradient.
    #[inline(always)]
    fn example<T: Element>(self, logits: &mut [T], target: usize) -> T {
        match self {
            Self::SoftmaxCrossEntropy { smoothing } => {
                let max = logits.iter().fold(logits[0], |max, &x| if x > max { x } else { max });
                let (at_target, everywhere) =
                    (T::of(1.0 - smoothing), T::of(smoothing / logits.len() as f64));
                let mut expected = at_target * (logits[target] - max);
                if smoothing > 0.0 {
                    expected += everywhere * logits.iter().fold(T::ZERO, |sum, &x| sum + (x - max));
                }
                logits.iter_mut().for_each(|x| *x = (*x - max).exp());
                let sum = sum(logits);
                let scale = T::ONE / sum;
                logits.iter_mut().for_each(|x| *x = *x * scale - everywhere);
                logits[target] -= at_target;
                sum.ln() - expected
            }
            Self::SigmoidCrossEntropy => {
                let mut loss = -logits[target];
                for x in logits.iter_mut() {
                    let positive = if *x > T::ZERO { *x } else { T::ZERO };
                    loss += positive + (-x.abs()).exp().ln_1p();
                    *x = Real::sigmoid(*x);
                }
                logits[target] -= T::ONE;
                loss
            }
            Self::Quadratic => {
                let mut loss = T::ZERO;
                for (class, x) in logits.iter_mut().enumerate() {
                    let y = Real::sigmoid(*x);
                    let error = if class == target { y - T::ONE } else { y };
                    loss += error * error;
                    *x = error * y * (T::ONE - y);
                }
                loss / T::of(2.)
            }
        }
    }
}

struct Loss {
    kind: Kind,
    targets: Vec<u32>,
    /// The gradient of the logits, where it will be asked for.
    grad: OnceLock<Tensor>,
}

impl Operation for Loss {
    fn name(&self) -> &'static str {
        self.kind.name()
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let logits = &args[0];
        let (batch, classes) = logits.dims2()?;
        with_real!(self.name(), logits.dtype(), T => {
            let mut grad = host::read(logits, |logits: &[T]| Ok(logits.to_vec()))?;
            let scale = T::ONE / T::of(batch as f64);
            let mut losses = vec![T::ZERO; batch];
            let losses_shared = Shared::new(&mut losses);
            let chunk = (1usize << 13).div_ceil(classes);
            parallel::for_each_piece(&mut grad, chunk * classes, |i, grad| {
                let examples = i * chunk..batch.min((i + 1) * chunk);
                // SAFETY: the examples of different `i` do not overlap.
                let losses = unsafe { losses_shared.slice(examples.clone()) };
                let rows = grad.chunks_exact_mut(classes).zip(&self.targets[examples]).zip(losses);
                vectorised(|| {
                    rows.for_each(|((row, &target), loss)| {
                        *loss = self.kind.example(row, target as usize);
                        row.iter_mut().for_each(|g| *g *= scale);
                    })
                });
            });
            let loss = losses.iter().map(|loss| loss.as_f64()).sum::<f64>();
            if logits.track_op() {
                let grad = Tensor::from_vec(grad, logits.shape(), logits.device())?;
                self.grad.get_or_init(|| grad);
            }
            Ok(host::output(vec![T::of(loss / batch as f64)], ()))
        })
    }

    fn backward(&self, _: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![self.grad.get().map(|saved| saved.broadcast_mul(grad)).transpose()?])
    }
}
