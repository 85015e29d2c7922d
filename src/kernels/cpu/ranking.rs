//! The most probable classes of each row of logits.

use super::Real;
use super::parallel;
use super::simd::{sum, vectorised};

/// Returns the `count` most probable classes of each row of `logits` `(rows, classes)`.
///
/// Each comes with the logarithm of its probability. The most probable class comes first; of equal ones, the one with
/// the lower index. A NaN logit makes all probabilities of its row NaN.
pub(crate) fn top_log_probabilities<T: Real>(
    logits: &[T],
    classes: usize,
    count: usize,
) -> Vec<Vec<(u32, T)>> {
    let mut rows: Vec<Vec<(u32, T)>> = vec![vec![]; logits.len() / classes.max(1)];
    parallel::for_each_piece(&mut rows, 4, |piece, rows| {
        let mut scratch = vec![T::ZERO; classes];
        for (row, top) in (4 * piece..).zip(rows) {
            let logits = &logits[row * classes..][..classes];
            *top = largest(logits, count);
            let max = top.first().map_or(T::ZERO, |&(_, max)| max);
            let log_sum = vectorised(
                #[inline(always)]
                || {
                    scratch.iter_mut().zip(logits).for_each(|(to, &x)| *to = (x - max).exp());
                    sum(&scratch).ln()
                },
            );
            top.iter_mut().for_each(|(_, x)| *x = *x - max - log_sum);
        }
    });
    rows
}

/// The `count` largest elements in descending order, with their indices.
fn largest<T: Real>(elements: &[T], count: usize) -> Vec<(u32, T)> {
    let mut top: Vec<(u32, T)> = Vec::with_capacity(count.min(elements.len()) + 1);
    for (i, &x) in (0..).zip(elements) {
        if top.len() == count && top.last().is_none_or(|&(_, least)| x <= least || x.is_nan()) {
            continue;
        }
        let at = top.partition_point(|&(_, y)| y >= x);
        top.insert(at, (i, x));
        top.truncate(count);
    }
    top
}
