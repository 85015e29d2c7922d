//! The transforms of Winograd's method: a small matrix times the rows of a strip.

// The loops over a matrix are unrolled and written alike.
#![allow(clippy::needless_range_loop)]

use crate::kernels::cpu::memory::Destination;
use crate::kernels::cpu::simd::{Lanes, dispatch};
use pulp::{Simd, WithSimd};
use std::marker::PhantomData;
use std::ops::Range;

/// Output rows of a strip.
pub(super) const ROWS: usize = 4;
/// Input rows of a strip, and products for each tap along the row.
pub(super) const POINTS: usize = 6;
/// Rows of the kernel.
pub(super) const TAPS: usize = 3;

// The matrices for the points 0, 1, -1, 2, -1/2 and infinity, which round less than the paper's matrices with -2
// (Barabasz et al. 2018, arXiv:1803.10986).

/// B^T
const INPUT: [[f64; POINTS]; POINTS] = [
    [2., 3., -4., -3., 2., 0.],
    [0., 2., 5., 1., -2., 0.],
    [0., 2., 1., -5., 2., 0.],
    [0., -1., -2., 1., 2., 0.],
    [0., -2., 1., 2., -1., 0.],
    [0., 2., 3., -4., -3., 2.],
];
/// G
pub(super) const FILTER: [[f64; TAPS]; POINTS] = [
    [1. / 2., 0., 0.],
    [1. / 6., 1. / 6., 1. / 6.],
    [1. / 6., -1. / 6., 1. / 6.],
    [1. / 30., 1. / 15., 2. / 15.],
    [16. / 15., -8. / 15., 4. / 15.],
    [0., 0., 1. / 2.],
];
/// A^T
const OUTPUT: [[f64; POINTS]; ROWS] = [
    [1., 1., 1., 1., 1., 0.],
    [0., 1., -1., 2., -1. / 2., 0.],
    [0., 1., 1., 4., 1. / 4., 0.],
    [0., 1., -1., 8., -1. / 8., 1.],
];

/// A transform with a constant matrix, known when its loop over a row is compiled.
pub(super) trait Matrix<const M: usize, const N: usize> {
    const ELEMENTS: [[f64; N]; M];
}

/// `B^T`
pub(super) struct InputTransform;
/// `A^T`
pub(super) struct OutputTransform;
/// `A`
pub(super) struct OutputAdjoint;
/// `G^T`
pub(super) struct FilterAdjoint;

impl Matrix<POINTS, POINTS> for InputTransform {
    const ELEMENTS: [[f64; POINTS]; POINTS] = INPUT;
}
impl Matrix<ROWS, POINTS> for OutputTransform {
    const ELEMENTS: [[f64; POINTS]; ROWS] = OUTPUT;
}
impl Matrix<POINTS, ROWS> for OutputAdjoint {
    const ELEMENTS: [[f64; ROWS]; POINTS] = transposed(OUTPUT);
}
impl Matrix<TAPS, POINTS> for FilterAdjoint {
    const ELEMENTS: [[f64; POINTS]; TAPS] = transposed(FILTER);
}

const fn transposed<const M: usize, const N: usize>(matrix: [[f64; N]; M]) -> [[f64; M]; N] {
    let mut result = [[0.; M]; N];
    let mut at = 0;
    while at < M * N {
        result[at % N][at / N] = matrix[at / N][at % N];
        at += 1;
    }
    result
}

/// The rows that a matrix is multiplied with, and the place of the product's rows.
pub(super) struct Strip<T> {
    /// The rows that exist; the others are zeros.
    pub(super) rows: Range<usize>,
    /// Offset of the first of them, and the row stride.
    pub(super) from: (usize, usize),
    /// Offset of the product's first row, and the row stride.
    pub(super) to: (usize, usize),
    /// Rows of the product that are stored.
    pub(super) wanted: usize,
    /// Initial value of the sums.
    pub(super) bias: T,
}

/// Multiplies a matrix with the strips of `count` examples, planes and strips per plane.
///
/// Strips are `len` elements wide. The planes are divided among the threads, so no two of them may share a result.
pub(super) fn transform<'a, T: Lanes, A: Matrix<M, N>, const M: usize, const N: usize>(
    _: A,
    count: [usize; 3],
    len: usize,
    from: &'a [T],
    to: impl Into<Destination<'a, T>>,
    strip: impl Fn([usize; 3]) -> Strip<T> + Sync,
) {
    /// Elements that make up for moving a part of the planes to another thread, and the number of parts.
    const LARGE: usize = 1 << 15;
    const PARTS: usize = 8;
    let planes = count[1];
    let is_large = count.iter().product::<usize>() * len >= LARGE;
    let part = if is_large { planes.div_ceil(PARTS) } else { planes }.max(1);
    to.into().for_each_chunk(planes.div_ceil(part), |i, to| {
        let planes = i * part..planes.min((i + 1) * part);
        let strip = &strip;
        dispatch(Transform::<T, _, A, M, N> { count, planes, len, from, to, strip, matrix: PhantomData });
    });
}

struct Transform<'a, T, F, A, const M: usize, const N: usize> {
    count: [usize; 3],
    /// Those of the planes that are multiplied.
    planes: Range<usize>,
    len: usize,
    from: &'a [T],
    to: Destination<'a, T>,
    strip: &'a F,
    matrix: PhantomData<A>,
}

impl<T: Lanes, F: Fn([usize; 3]) -> Strip<T>, A: Matrix<M, N>, const M: usize, const N: usize> WithSimd
    for Transform<'_, T, F, A, M, N>
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { count, planes, len, from, mut to, strip, .. } = self;
        let (zeros, mut unwanted) = (vec![T::ZERO; len], vec![T::ZERO; len]);
        for example in 0..count[0] {
            for plane in planes.clone() {
                for i in 0..count[2] {
                    let strip = strip([example, plane, i]);
                    let mut rows = [zeros.as_ptr(); N];
                    for (i, row) in strip.rows.enumerate() {
                        rows[row] = from[strip.from.0 + i * strip.from.1..][..len].as_ptr();
                    }
                    let mut results = [unwanted.as_mut_ptr(); M];
                    for (m, result) in results.iter_mut().take(strip.wanted).enumerate() {
                        let first = strip.to.0 + m * strip.to.1;
                        assert!(first + len <= to.len());
                        // SAFETY: in bounds.
                        *result = unsafe { to.as_mut_ptr().add(first) };
                    }
                    // SAFETY: all rows have `len` elements.
                    unsafe { multiply_rows::<T, S, A, M, N>(simd, len, rows, results, strip.bias) };
                }
            }
        }
    }
}

/// Multiplies the matrix with N rows of `len` elements.
///
/// # Safety
/// The rows are valid for reading `len` elements and the results for writing as many. They do not overlap, except that
/// unwanted results may share a row.
#[inline(always)]
unsafe fn multiply_rows<T: Lanes, S: Simd, A: Matrix<M, N>, const M: usize, const N: usize>(
    simd: S,
    len: usize,
    rows: [*const T; N],
    results: [*mut T; M],
    bias: T,
) {
    debug_assert!(rows.iter().all(|row| !row.is_null()) && results.iter().all(|row| !row.is_null()));
    let lanes = T::lanes::<S>();
    let bias = T::splat(simd, bias);
    for at in (0..len).step_by(lanes) {
        let used = lanes.min(len - at);
        // SAFETY: `used` elements from `at` lie within the rows.
        unsafe {
            let mut x = [T::splat(simd, T::ZERO); N];
            for n in 0..N {
                x[n] = match used == lanes {
                    true => rows[n].add(at).cast::<T::Vector<S>>().read_unaligned(),
                    false => T::load_first(simd, rows[n].add(at), used),
                };
            }
            for m in 0..M {
                let mut sum = bias;
                for n in 0..N {
                    if A::ELEMENTS[m][n] != 0. {
                        let factor = T::splat(simd, T::of(A::ELEMENTS[m][n]));
                        sum = T::mul_add(simd, factor, x[n], sum);
                    }
                }
                match used == lanes {
                    true => results[m].add(at).cast::<T::Vector<S>>().write_unaligned(sum),
                    false => T::store_first(simd, results[m].add(at), used, sum),
                }
            }
        }
    }
}
