//! Reductions of the rows of each sequence to one row.
//!
//! Every function takes the `features` of a row and `sequences`, the index of the sequence that each row belongs to.

use super::Real;

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

/// The row of the maximum of each feature of each of `batch` sequences: the first of equal ones, or the last NaN.
pub(crate) fn argmax<T: Real>(
    xs: &[T],
    features: usize,
    sequences: impl Iterator<Item = usize>,
    batch: usize,
) -> Vec<usize> {
    let mut rows = vec![usize::MAX; batch * features];
    for (row, sequence) in sequences.enumerate() {
        for (i, best) in rows[sequence * features..][..features].iter_mut().enumerate() {
            let x = xs[row * features + i];
            if *best == usize::MAX || x > xs[*best * features + i] || x.is_nan() {
                *best = row;
            }
        }
    }
    rows
}

/// The elements of `xs` at the `rows` that [`argmax`] has found.
pub(crate) fn max<T: Real>(xs: &[T], features: usize, rows: &[usize]) -> Vec<T> {
    rows.iter().enumerate().map(|(at, row)| xs[row * features + at % features]).collect()
}

/// The gradient of the input of [`max`], which has `len` elements.
pub(crate) fn max_grad<T: Real>(grad: &[T], features: usize, rows: &[usize], len: usize) -> Vec<T> {
    let mut xs_grad = vec![T::ZERO; len];
    for (at, (row, &grad)) in rows.iter().zip(grad).enumerate() {
        xs_grad[row * features + at % features] = grad;
    }
    xs_grad
}
