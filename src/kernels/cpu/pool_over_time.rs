//! Reductions of the rows of each sequence to one row.
//!
//! Every function takes the `features` of a row and `sequences`, the index of the sequence that each row belongs to.

use super::Real;
use super::simd::vectorised;

/// The mean row of each sequence, given the sequences' `lengths`.
pub(crate) fn mean<T: Real>(
    xs: &[T],
    features: usize,
    sequences: impl Iterator<Item = usize>,
    lengths: &[usize],
) -> Vec<T> {
    let mut ys = vec![T::ZERO; lengths.len() * features];
    if features == 0 {
        return ys;
    }
    for (sequence, x) in sequences.zip(xs.chunks_exact(features)) {
        ys[sequence * features..][..features].iter_mut().zip(x).for_each(|(y, &x)| *y += x);
    }
    for (y, &length) in ys.chunks_exact_mut(features).zip(lengths) {
        y.iter_mut().for_each(|y| *y /= T::of(length as f64));
    }
    ys
}

/// The gradient of the input of [`mean`].
pub(crate) fn mean_grad<T: Real>(
    grad: &[T],
    features: usize,
    sequences: impl Iterator<Item = usize>,
    lengths: &[usize],
) -> Vec<T> {
    let mut xs_grad = Vec::with_capacity(lengths.iter().sum::<usize>() * features);
    for sequence in sequences {
        let length = T::of(lengths[sequence] as f64);
        xs_grad.extend(grad[sequence * features..][..features].iter().map(|&grad| grad / length));
    }
    xs_grad
}

/// Returns the maximum of each feature of each of `batch` sequences, and its row.
///
/// It is the first of equal maxima, or the last NaN.
pub(crate) fn max<T: Real>(
    xs: &[T],
    features: usize,
    sequences: impl Iterator<Item = usize>,
    batch: usize,
) -> (Vec<T>, Vec<u32>) {
    let (mut maxima, mut rows) = (vec![T::ZERO; batch * features], vec![u32::MAX; batch * features]);
    if features == 0 {
        return (maxima, rows);
    }
    vectorised(
        #[inline(always)]
        || {
            for ((row, sequence), xs) in (0u32..).zip(sequences).zip(xs.chunks_exact(features)) {
                let at = sequence * features..(sequence + 1) * features;
                let best = maxima[at.clone()].iter_mut().zip(&mut rows[at]);
                for ((max, max_row), &x) in best.zip(xs) {
                    let takes = (*max_row == u32::MAX) | (x > *max) | x.is_nan();
                    *max = if takes { x } else { *max };
                    *max_row = if takes { row } else { *max_row };
                }
            }
        },
    );
    (maxima, rows)
}

/// The gradient of the input of [`max`], which has `len` elements.
pub(crate) fn max_grad<T: Real>(grad: &[T], features: usize, rows: &[u32], len: usize) -> Vec<T> {
    let mut xs_grad = vec![T::ZERO; len];
    if features > 0 {
        for (rows, grad) in rows.chunks_exact(features).zip(grad.chunks_exact(features)) {
            for ((at, &row), &grad) in rows.iter().enumerate().zip(grad) {
                xs_grad[row as usize * features + at] = grad;
            }
        }
    }
    xs_grad
}
