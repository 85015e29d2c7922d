//! Classification losses and their gradients, one row of logits per example.

use super::Real;
use super::memory::{assume_init, uninit, write_copy};
use super::parallel::{self, Shared};
use super::simd::{sum, vectorised};

#[derive(Clone, Copy)]
pub(crate) enum Loss {
    SoftmaxCrossEntropy {
        smoothing: f64,
    },
    /// The sum over the classes of the binary cross-entropy of `sigmoid(logits)`.
    SigmoidCrossEntropy,
    /// Half the squared distance of `sigmoid(logits)` from the one-hot target.
    Quadratic,
}

/// Returns the mean loss of `logits` `(targets.len(), classes)` and, if wanted, its gradient.
///
/// Every target is below `classes`, which is at least 1.
pub(crate) fn forward<T: Real>(
    loss: Loss,
    logits: &[T],
    targets: &[u32],
    wants_gradient: bool,
) -> (T, Option<Vec<T>>) {
    let (batch, classes) = (targets.len(), logits.len() / targets.len());
    assert_eq!(logits.len(), batch * classes);
    let scale = T::ONE / T::of(batch as f64);
    let mut grad = uninit(if wants_gradient { logits.len() } else { 0 });
    let grad_rows = Shared::new(&mut grad);
    let mut losses = vec![T::ZERO; batch];
    let chunk = (1usize << 13).div_ceil(classes);
    parallel::for_each_piece(&mut losses, chunk, |i, losses| {
        let mut scratch = uninit(if wants_gradient { 0 } else { classes });
        vectorised(
            #[inline(always)]
            || {
                for (example, example_loss) in (i * chunk..).zip(losses) {
                    let at = example * classes..(example + 1) * classes;
                    let row = match wants_gradient {
                        // SAFETY: the rows of different examples do not overlap.
                        true => unsafe { grad_rows.slice(at.clone()) },
                        false => &mut scratch[..],
                    };
                    let row = write_copy(row, &logits[at]);
                    let target = targets[example] as usize;
                    *example_loss = loss.example(row, target, wants_gradient.then_some(scale));
                }
            },
        );
    });
    // SAFETY: every example has written its row, and these make up the whole.
    let grad = wants_gradient.then(|| unsafe { assume_init(grad) });
    (mean(&losses), grad)
}

/// Replaces `logits` `(targets.len(), classes)` by the gradient of their mean loss; returns the loss.
///
/// Every target is below `classes`, which is at least 1.
pub(crate) fn replace_by_gradient<T: Real>(loss: Loss, logits: &mut [T], targets: &[u32]) -> T {
    let (batch, classes) = (targets.len(), logits.len() / targets.len());
    assert_eq!(logits.len(), batch * classes);
    let scale = T::ONE / T::of(batch as f64);
    let mut losses = vec![T::ZERO; batch];
    let shared = Shared::new(&mut losses);
    let rows = (1usize << 13).div_ceil(classes);
    parallel::for_each_piece(logits, rows * classes, |i, logits| {
        let examples = i * rows..i * rows + logits.len() / classes;
        // SAFETY: the pieces hold different examples.
        let losses = unsafe { shared.slice(examples.clone()) };
        vectorised(
            #[inline(always)]
            || {
                for ((row, loss_of_row), example) in
                    logits.chunks_exact_mut(classes).zip(losses).zip(examples)
                {
                    *loss_of_row = loss.example(row, targets[example] as usize, Some(scale));
                }
            },
        );
    });
    mean(&losses)
}

/// The mean, added up in f64 in the order of the examples.
fn mean<T: Real>(losses: &[T]) -> T {
    T::of(losses.iter().map(|loss| loss.as_f64()).sum::<f64>() / losses.len() as f64)
}

impl Loss {
    /// Returns the loss of one example, and overwrites its logits.
    ///
    /// The logits become the gradient times the given factor, if there is one.
    #[inline(always)]
    fn example<T: Real>(self, logits: &mut [T], target: usize, gradient: Option<T>) -> T {
        match self {
            Self::SoftmaxCrossEntropy { smoothing } => {
                softmax_cross_entropy(logits, target, smoothing, gradient)
            }
            Self::SigmoidCrossEntropy => sigmoid_cross_entropy(logits, target, gradient),
            Self::Quadratic => quadratic(logits, target, gradient.unwrap_or(T::ONE)),
        }
    }
}

#[inline(always)]
fn softmax_cross_entropy<T: Real>(logits: &mut [T], target: usize, smoothing: f64, gradient: Option<T>) -> T {
    let max = max(logits);
    let (at_target, everywhere) = (T::of(1.0 - smoothing), T::of(smoothing / logits.len() as f64));
    let mut expected = at_target * (logits[target] - max);
    // Without smoothing, a logit of minus infinity must not turn 0 * x into NaN.
    if smoothing > 0.0 {
        expected += everywhere * logits.iter().fold(T::ZERO, |sum, &x| sum + (x - max));
    }
    logits.iter_mut().for_each(|x| *x = (*x - max).exp());
    let sum = sum(logits);
    if let Some(factor) = gradient {
        let (scale, shift) = (factor / sum, factor * everywhere);
        logits.iter_mut().for_each(|x| *x = *x * scale - shift);
        logits[target] -= factor * at_target;
    }
    sum.ln() - expected
}

/// The largest element, or NaN if the first element is NaN. Sixteen lanes find it side by side.
#[inline(always)]
fn max<T: Real>(elements: &[T]) -> T {
    let greater = |max: T, x: T| if x > max { x } else { max };
    let (chunks, rest) = elements.as_chunks::<16>();
    let mut lanes = [elements[0]; 16];
    for chunk in chunks {
        for (max, &x) in lanes.iter_mut().zip(chunk) {
            *max = greater(*max, x);
        }
    }
    lanes.iter().chain(rest).fold(elements[0], |max, &x| greater(max, x))
}

#[inline(always)]
fn sigmoid_cross_entropy<T: Real>(logits: &mut [T], target: usize, gradient: Option<T>) -> T {
    // The target's term is softplus(-x), every other one softplus(x): all are positive, so none cancel.
    logits[target] = -logits[target];
    let loss = logits.iter().fold(T::ZERO, |sum, &x| sum + softplus(x));
    if let Some(factor) = gradient {
        logits.iter_mut().for_each(|x| *x = x.sigmoid() * factor);
        logits[target] = -logits[target];
    }
    loss
}

#[inline(always)]
fn quadratic<T: Real>(logits: &mut [T], target: usize, factor: T) -> T {
    let mut loss = T::ZERO;
    for (class, x) in logits.iter_mut().enumerate() {
        let y = x.sigmoid();
        let error = if class == target { y - T::ONE } else { y };
        loss += error * error;
        *x = error * y * (T::ONE - y) * factor;
    }
    loss / T::of(2.)
}

/// `ln(1 + exp(x))`, accurate for any x.
#[inline(always)]
fn softplus<T: Real>(x: T) -> T {
    let positive = if x > T::ZERO { x } else { T::ZERO };
    positive + (-x.abs()).exp().ln_1p()
}
