//! Classification losses and their gradients, one row of logits per example.

use super::Real;
use super::memory::{assume_init, uninit, write_copy};
use super::parallel::{self, Shared};
use super::simd::vectorised;

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
        vectorised(
            #[inline(always)]
            || {
                let examples = i * chunk..i * chunk + losses.len();
                let at = examples.start * classes..examples.end * classes;
                let (logits, targets) = (&logits[at.clone()], &targets[examples]);
                match wants_gradient {
                    true => {
                        // SAFETY: the rows of different examples do not overlap.
                        let rows = write_copy(unsafe { grad_rows.slice(at) }, logits);
                        loss.replace(rows, targets, losses, scale);
                    }
                    false => loss.values(logits, targets, losses),
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
                loss.replace(logits, &targets[examples], losses, scale);
            },
        );
    });
    mean(&losses)
}

/// The mean: sixteen partial sums in f64, added in order, then the remainder.
fn mean<T: Real>(losses: &[T]) -> T {
    let (chunks, rest) = losses.as_chunks::<16>();
    let mut sums = [0f64; 16];
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, loss)| *sum += loss.as_f64());
    }
    let sum = sums.into_iter().chain(rest.iter().map(|loss| loss.as_f64())).sum::<f64>();
    T::of(sum / losses.len() as f64)
}

impl Loss {
    /// Writes the losses of some examples.
    #[inline(always)]
    fn values<T: Real>(self, logits: &[T], targets: &[u32], losses: &mut [T]) {
        let rows = logits.chunks_exact(logits.len() / targets.len());
        match self {
            Self::SoftmaxCrossEntropy { smoothing } => {
                let mut sums = maxima(logits, targets, smoothing, losses);
                for (row, sum) in rows.zip(&mut sums) {
                    *sum = sum_exp(row, *sum);
                }
                add_ln(losses, &sums);
            }
            Self::SigmoidCrossEntropy => {
                for ((row, &target), loss) in rows.zip(targets).zip(losses) {
                    *loss = sigmoid_cross_entropy(row, target as usize);
                }
            }
            Self::Quadratic => {
                for ((row, &target), loss) in rows.zip(targets).zip(losses) {
                    let errors =
                        row.iter().enumerate().map(|(i, &x)| error(x.sigmoid(), i == target as usize));
                    *loss = errors.fold(T::ZERO, |sum, error| sum + error * error) / T::of(2.);
                }
            }
        }
    }

    /// Writes the losses of some examples. Replaces their logits by the gradients times `factor`.
    #[inline(always)]
    fn replace<T: Real>(self, logits: &mut [T], targets: &[u32], losses: &mut [T], factor: T) {
        let classes = logits.len() / targets.len();
        match self {
            Self::SoftmaxCrossEntropy { smoothing } => {
                let mut sums = maxima(logits, targets, smoothing, losses);
                for (row, sum) in logits.chunks_exact_mut(classes).zip(&mut sums) {
                    *sum = replace_by_exp(row, *sum);
                }
                let (at_target, everywhere) = target_distribution::<T>(smoothing, classes);
                for ((row, &target), &sum) in logits.chunks_exact_mut(classes).zip(targets).zip(&sums) {
                    let (scale, shift) = (factor / sum, factor * everywhere);
                    row.iter_mut().for_each(|x| *x = *x * scale - shift);
                    row[target as usize] -= factor * at_target;
                }
                add_ln(losses, &sums);
            }
            Self::SigmoidCrossEntropy => {
                for ((row, &target), loss) in logits.chunks_exact_mut(classes).zip(targets).zip(losses) {
                    let target = target as usize;
                    *loss = sigmoid_cross_entropy(row, target);
                    row[target] = -row[target];
                    row.iter_mut().for_each(|x| *x = x.sigmoid() * factor);
                    row[target] = -row[target];
                }
            }
            Self::Quadratic => {
                for ((row, &target), loss) in logits.chunks_exact_mut(classes).zip(targets).zip(losses) {
                    let mut sum = T::ZERO;
                    for (class, x) in row.iter_mut().enumerate() {
                        let y = x.sigmoid();
                        let error = error(y, class == target as usize);
                        sum += error * error;
                        *x = error * y * (T::ONE - y) * factor;
                    }
                    *loss = sum / T::of(2.);
                }
            }
        }
    }
}

/// Returns the largest logit of each example.
///
/// Writes the part of its loss that is not the logarithm of the sum of `exp(logit - max)`. This and the sums are loops of
/// their own, so that the processor works on several examples at once.
#[inline(always)]
fn maxima<T: Real>(logits: &[T], targets: &[u32], smoothing: f64, losses: &mut [T]) -> Vec<T> {
    let rows = logits.chunks_exact(logits.len() / targets.len());
    let mut maxima = vec![T::ZERO; targets.len()];
    for (((row, &target), loss), to) in rows.zip(targets).zip(losses).zip(&mut maxima) {
        *to = max(row);
        *loss = -expected(row, *to, target as usize, smoothing);
    }
    maxima
}

/// Adds the logarithms of sums to the losses.
#[inline(always)]
fn add_ln<T: Real>(losses: &mut [T], sums: &[T]) {
    for (loss, sum) in losses.iter_mut().zip(sums) {
        *loss += sum.ln();
    }
}

/// The probability that label smoothing leaves to the target alone, and the one that every class gets.
#[inline(always)]
fn target_distribution<T: Real>(smoothing: f64, classes: usize) -> (T, T) {
    (T::of(1.0 - smoothing), T::of(smoothing / classes as f64))
}

/// The expectation of `logits - max` under the target distribution.
#[inline(always)]
fn expected<T: Real>(logits: &[T], max: T, target: usize, smoothing: f64) -> T {
    let (at_target, everywhere) = target_distribution::<T>(smoothing, logits.len());
    let expected = at_target * (logits[target] - max);
    // Without smoothing, a logit of minus infinity must not turn 0 * x into NaN.
    if smoothing > 0.0 {
        return expected + everywhere * logits.iter().fold(T::ZERO, |sum, &x| sum + (x - max));
    }
    expected
}

/// Elements of a row that are worked on side by side.
const LANES: usize = 16;

/// The last elements of a row, filled up with minus infinity.
#[inline(always)]
fn last_chunk<T: Real>(rest: &[T]) -> [T; LANES] {
    let mut last = [T::of(f64::NEG_INFINITY); LANES];
    last[..rest.len()].copy_from_slice(rest);
    last
}

/// The sum of `exp(x - max)` of each element.
#[inline(always)]
fn sum_exp<T: Real>(row: &[T], max: T) -> T {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut sums = [T::ZERO; LANES];
    for chunk in chunks {
        add_exp(&mut sums, *chunk, max);
    }
    if !rest.is_empty() {
        add_exp(&mut sums, last_chunk(rest), max);
    }
    reduce(sums, |a, b| a + b)
}

/// Replaces each element by `exp(x - max)`, and returns their sum.
#[inline(always)]
fn replace_by_exp<T: Real>(row: &mut [T], max: T) -> T {
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    let mut sums = [T::ZERO; LANES];
    for chunk in chunks {
        *chunk = add_exp(&mut sums, *chunk, max);
    }
    if !rest.is_empty() {
        rest.copy_from_slice(&add_exp(&mut sums, last_chunk(rest), max)[..rest.len()]);
    }
    reduce(sums, |a, b| a + b)
}

/// Returns `exp(x - max)` for each element, and adds it to a sum of its own.
#[inline(always)]
fn add_exp<T: Real>(sums: &mut [T; LANES], mut chunk: [T; LANES], max: T) -> [T; LANES] {
    for (sum, x) in sums.iter_mut().zip(&mut chunk) {
        *x = (*x - max).exp_non_positive();
        *sum += *x;
    }
    chunk
}

/// Combines the upper half of the lanes with the lower half until one is left.
#[inline(always)]
fn reduce<T: Real>(mut lanes: [T; LANES], combine: impl Fn(T, T) -> T) -> T {
    for i in 0..8 {
        lanes[i] = combine(lanes[i], lanes[i + 8]);
    }
    for i in 0..4 {
        lanes[i] = combine(lanes[i], lanes[i + 4]);
    }
    combine(combine(lanes[0], lanes[2]), combine(lanes[1], lanes[3]))
}

/// The largest element. Some NaN may make it NaN.
#[inline(always)]
fn max<T: Real>(row: &[T]) -> T {
    let greater = |max: T, x: T| if x > max { x } else { max };
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut lanes = [T::of(f64::NEG_INFINITY); LANES];
    for chunk in chunks {
        for (max, &x) in lanes.iter_mut().zip(chunk) {
            *max = greater(*max, x);
        }
    }
    let mut max = reduce(lanes, greater);
    for &x in rest {
        max = greater(max, x);
    }
    max
}

/// The loss of one example.
///
/// The target's term is softplus(-x), every other one softplus(x): all are positive, so none cancel.
#[inline(always)]
fn sigmoid_cross_entropy<T: Real>(row: &[T], target: usize) -> T {
    let signed = |(class, &x): (usize, &T)| if class == target { -x } else { x };
    row.iter().enumerate().fold(T::ZERO, |sum, x| sum + softplus(signed(x)))
}

/// The difference of an output from the one-hot target.
#[inline(always)]
fn error<T: Real>(y: T, is_target: bool) -> T {
    if is_target { y - T::ONE } else { y }
}

/// `ln(1 + exp(x))`, accurate for any x.
#[inline(always)]
fn softplus<T: Real>(x: T) -> T {
    let positive = if x > T::ZERO { x } else { T::ZERO };
    positive + (-x.abs()).exp().ln_1p()
}
