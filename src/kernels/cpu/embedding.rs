//! Rows of a table `(rows, size)`: lookup, mean over sequences, and the gradient of the table.

use super::memory::{self, write_copy, write_fill, write_map};
use super::real::Real;
use super::simd::vectorised;
use std::mem::MaybeUninit;

/// Elements per task.
const CHUNK: usize = 1 << 14;

/// Returns the rows `ids` of `table`, one after the other; zeros for an id of `u32::MAX`.
pub(crate) fn lookup<T: Real>(table: &[T], size: usize, ids: &[u32]) -> Vec<T> {
    let step = rows_per_task(size);
    let write = |i: usize, found: &mut [MaybeUninit<T>]| {
        for (found, &id) in found.chunks_exact_mut(size).zip(&ids[i * step..]) {
            match id {
                u32::MAX => write_fill(found, T::ZERO),
                _ => write_copy(found, row(table, size, id)),
            };
        }
    };
    // SAFETY: `write` writes every row of its piece.
    unsafe { memory::build(ids.len() * size, step * size, write) }
}

/// Returns, for each of `lengths`, the mean of that number of rows of `table`.
///
/// `ids(sequence, step)` is the id of a row.
pub(crate) fn means<T: Real>(
    table: &[T],
    size: usize,
    lengths: &[usize],
    ids: impl Fn(usize, usize) -> u32 + Sync,
) -> Vec<T> {
    let rows: usize = lengths.iter().sum();
    let step = (CHUNK * lengths.len()).div_ceil((rows * size).max(1));
    let write = |i: usize, means: &mut [MaybeUninit<T>]| {
        vectorised(
            #[inline(always)]
            || {
                for (k, mean) in means.chunks_exact_mut(size).enumerate() {
                    let sequence = i * step + k;
                    let mean = write_fill(mean, T::ZERO);
                    for step in 0..lengths[sequence] {
                        let row = row(table, size, ids(sequence, step));
                        mean.iter_mut().zip(row).for_each(|(sum, &x)| *sum += x);
                    }
                    let factor = T::ONE / T::of(lengths[sequence] as f64);
                    mean.iter_mut().for_each(|x| *x *= factor);
                }
            },
        );
    };
    // SAFETY: `write` writes every row of its piece.
    unsafe { memory::build(lengths.len() * size, step * size, write) }
}

fn row<T>(table: &[T], size: usize, id: u32) -> &[T] {
    &table[id as usize * size..][..size]
}

fn rows_per_task(size: usize) -> usize {
    CHUNK.div_ceil(size.max(1))
}

/// The positions at which each row of a table is used.
pub(crate) struct Uses {
    /// Row in the upper half, position in the lower half, in increasing order.
    sorted: Vec<u64>,
}

impl Uses {
    /// Lists the uses: row `ids[i]` is used at position `i`, none if the id is `u32::MAX`.
    pub(crate) fn new(ids: &[u32]) -> Self {
        assert!(ids.len() <= u32::MAX as usize);
        let rows = ids.iter().zip(0u64..).filter(|&(&id, _)| id != u32::MAX);
        let uses = rows.map(|(&id, place)| u64::from(id) << 32 | place);
        let mut sorted: Vec<u64> = uses.collect();
        sorted.sort_unstable();
        Self { sorted }
    }

    /// Returns the uses of each row that is used, in the order of the rows.
    fn by_row(&self) -> Vec<&[u64]> {
        self.sorted.chunk_by(|a, b| a >> 32 == b >> 32).collect()
    }
}

fn row_of(uses: &[u64]) -> usize {
    (uses[0] >> 32) as usize
}

/// Returns the gradient of a table `(rows, size)`.
///
/// Each row is the sum of `grad(place)`, a vector and its factor, over the positions at which the row is used.
pub(crate) fn table_gradient<'a, T: Real>(
    (rows, size): (usize, usize),
    uses: &Uses,
    grad: impl Fn(usize) -> (&'a [T], T) + Sync,
) -> Vec<T> {
    let (uses, step) = (uses.by_row(), rows_per_task(size));
    let write = |i: usize, sums: &mut [MaybeUninit<T>]| {
        write_fill(sums, T::ZERO);
        let (first, end) = (i * step, i * step + sums.len() / size);
        let uses = &uses[uses.partition_point(|uses| row_of(uses) < first)..];
        vectorised(
            #[inline(always)]
            || {
                for uses in uses.iter().take_while(|uses| row_of(uses) < end) {
                    write_sum(&mut sums[(row_of(uses) - first) * size..][..size], uses, &grad);
                }
            },
        );
    };
    // SAFETY: `write` writes its whole piece first.
    unsafe { memory::build(rows * size, step * size, write) }
}

/// Returns the rows that are used, in increasing order, and their gradients as in [`table_gradient`].
pub(crate) fn row_gradients<'a, T: Real>(
    size: usize,
    uses: &Uses,
    grad: impl Fn(usize) -> (&'a [T], T) + Sync,
) -> (Vec<u32>, Vec<T>) {
    let (uses, step) = (uses.by_row(), rows_per_task(size));
    let write = |i: usize, sums: &mut [MaybeUninit<T>]| {
        vectorised(
            #[inline(always)]
            || {
                for (sum, uses) in sums.chunks_exact_mut(size).zip(&uses[i * step..]) {
                    write_sum(sum, uses, &grad);
                }
            },
        );
    };
    // SAFETY: `write` writes every row of its piece, as each is used somewhere.
    let values = unsafe { memory::build(uses.len() * size, step * size, write) };
    (uses.iter().map(|uses| row_of(uses) as u32).collect(), values)
}

/// Writes the sum of `grad(place)`, a vector and its factor, over the positions in `uses`.
#[inline(always)]
fn write_sum<'a, T: Real>(to: &mut [MaybeUninit<T>], uses: &[u64], grad: impl Fn(usize) -> (&'a [T], T)) {
    let grad = |place: u64| grad(place as u32 as usize);
    let (first, factor) = grad(uses[0]);
    let sum = write_map(
        to,
        first,
        #[inline(always)]
        |g| factor * g,
    );
    for &place in &uses[1..] {
        let (grad, factor) = grad(place);
        sum.iter_mut().zip(grad).for_each(|(sum, &g)| *sum += factor * g);
    }
}

/// Returns the sum of two gradients of the same table, each given by rows as in [`row_gradients`].
pub(crate) fn add_rows<T: Real>(a: (&[u32], &[T]), b: (&[u32], &[T]), size: usize) -> (Vec<u32>, Vec<T>) {
    let mut rows = [a.0, b.0].concat();
    rows.sort_unstable();
    rows.dedup();
    let mut values = vec![T::ZERO; rows.len() * size];
    for (of, grads) in [a, b] {
        let mut at = 0;
        for (i, row) in of.iter().enumerate() {
            at += rows[at..].partition_point(|other| other < row);
            let sum = &mut values[at * size..][..size];
            sum.iter_mut().zip(&grads[i * size..]).for_each(|(sum, &g)| *sum += g);
        }
    }
    (rows, values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_gradients_of_two_uses_add_up_row_by_row() {
        let (rows, values) = add_rows((&[1, 4], &[1., 2., 3., 4.]), (&[0, 4], &[5., 6., 7., 8.]), 2);
        assert_eq!(rows, [0, 1, 4]);
        assert_eq!(values, [5., 6., 1., 2., 10., 12.]);
        assert_eq!(add_rows::<f32>((&[], &[]), (&[], &[]), 2), (vec![], vec![]));
    }
}
