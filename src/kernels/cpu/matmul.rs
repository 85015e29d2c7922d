//! Matrix products, blocked for the caches: what the linear and the recurrent layers spend their time in.
//!
//! The right-hand side is first laid out in the order in which the inner loop reads it ([`Panels`]), which pays as
//! each of its numbers is used once a row of the left-hand side. The left-hand side is read where it lies, or laid
//! out likewise ([`Lhs::Packed`]) where its rows do not lie along memory.

// Loops over the M rows and N columns of a tile are unrolled and all written alike.
#![allow(clippy::needless_range_loop)]

use super::memory::Destination;
use super::parallel;
use super::simd::{Lanes, dispatch, prefetch};
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// Vectors side by side in a panel of the right-hand side.
const VECTORS: usize = 3;
/// Rows of a panel that stay in the first-level cache while the rows of the left-hand side go past.
const DEPTH: usize = 128;
/// Rows that are laid out anew together.
const PACKED: usize = 64;

/// A right-hand side, `depth` x `columns`, cut into panels of a few vectors' width.
///
/// Panels lie one after the other; in a panel row follows row, each as wide as the panel, in whole vectors.
pub(crate) struct Panels<T> {
    depth: usize,
    columns: usize,
    /// Numbers of a vector.
    lanes: usize,
    data: Vec<T>,
    /// Where the data starts in the vector: at a cache line.
    start: usize,
}

impl<T: Lanes> Panels<T> {
    /// The matrix, `depth` x `columns`, whose row k is the start of `row(k)`.
    pub fn new<'a>((depth, columns): (usize, usize), row: impl Fn(usize) -> &'a [T] + Sync) -> Self {
        // SAFETY: all rows are written.
        unsafe {
            Self::pack((depth, columns), |panels, lanes| {
                parallel::for_each_chunk(depth.div_ceil(PACKED), |i| {
                    for k in i * PACKED..depth.min((i + 1) * PACKED) {
                        Self::write_row(panels, (depth, lanes), k, &row(k)[..columns]);
                    }
                });
            })
        }
    }

    /// Writes row `k` of panels `depth` deep.
    ///
    /// # Safety
    /// Nobody else writes or reads that row.
    unsafe fn write_row(
        panels: &parallel::Shared<T>,
        (depth, lanes): (usize, usize),
        k: usize,
        numbers: &[T],
    ) {
        for (panel, from) in numbers.chunks(lanes * VECTORS).enumerate() {
            let width = from.len().next_multiple_of(lanes);
            let at = panel * depth * (lanes * VECTORS) + k * width;
            // SAFETY: the caller's.
            let to = unsafe { panels.slice(at..at + width) };
            to[..from.len()].copy_from_slice(from);
            to[from.len()..].fill(T::ZERO);
        }
    }

    /// The matrix, `depth` x `columns`, whose column j is the start of `column(j)`.
    pub fn transposed<'a>(
        (depth, columns): (usize, usize),
        column: impl Fn(usize) -> &'a [T] + Sync,
    ) -> Self {
        let fill = |panels: &parallel::Shared<T>, lanes: usize| {
            let width = lanes * VECTORS;
            parallel::for_each_chunk(columns.div_ceil(width), |panel| {
                let used = width.min(columns - panel * width);
                let wide = used.next_multiple_of(lanes);
                let at = panel * width * depth;
                // SAFETY: each panel is written by one chunk alone.
                let to = unsafe { panels.slice(at..at + wide * depth) };
                if used < wide {
                    to.fill(T::ZERO);
                }
                // A block of columns at a time: there the data lies together, and what is written stays near.
                for (block, to) in to.chunks_mut(PACKED * wide).enumerate() {
                    for j in 0..used {
                        let column = &column(panel * width + j)[..depth][block * PACKED..];
                        for (to, &from) in to[j..].iter_mut().step_by(wide).zip(column) {
                            *to = from;
                        }
                    }
                }
            });
        };
        // SAFETY: all panels are written.
        unsafe { Self::pack((depth, columns), fill) }
    }

    /// Panels that `fill` writes, given where, and the numbers in a vector.
    ///
    /// # Safety
    /// It must write all of them.
    unsafe fn pack((depth, columns): (usize, usize), fill: impl FnOnce(&parallel::Shared<T>, usize)) -> Self {
        let lanes = super::simd::lanes::<T>();
        let len = columns.next_multiple_of(lanes) * depth;
        // SAFETY: what is read of it, the part that `fill` gets, `fill` writes first.
        let mut data = unsafe { parallel::unwritten::<T>(len + 64 / size_of::<T>()) };
        let start = data.as_ptr().align_offset(64).min(64 / size_of::<T>());
        fill(&parallel::Shared::new(&mut data[start..start + len]), lanes);
        Self { depth, columns, lanes, data, start }
    }
}

/// A left-hand side: some rows, each as long as the right-hand side is deep.
#[derive(Clone, Copy)]
pub(crate) enum Lhs<'a, T> {
    /// Each row's numbers lie together; the rows start every so many numbers.
    Rows(&'a [T], usize),
    /// Tile after tile; in a tile the numbers of one depth lie together.
    Packed(&'a [T]),
}

/// How many rows make a tile that the registers hold.
struct Tallest;

impl WithSimd for Tallest {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        if S::REGISTER_COUNT >= 32 { 8 } else { 4 }
    }
}

/// The tiles that `rows` rows are cut into: as few as can be, and of about the same height.
fn tiles(rows: usize, tallest: usize) -> impl Iterator<Item = Range<usize>> {
    let count = rows.div_ceil(tallest);
    let (low, higher) = (rows / count.max(1), rows % count.max(1));
    (0..count).scan(0, move |start, i| {
        let tile = *start..*start + low + usize::from(i < higher);
        *start = tile.end;
        Some(tile)
    })
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub(crate) enum Init<'a, T> {
    Zero,
    /// What the result holds already.
    Accumulate,
    /// The same row in each row of the result.
    Bias(&'a [T]),
}

/// `c = start + left * right`, for `rows` rows: c's row i starts at `c[i * c_stride]`. On the thread that asks.
pub(crate) fn gemm_serial<'c, T: Lanes>(
    left: Lhs<T>,
    right: &Panels<T>,
    c: impl Into<Destination<'c, T>>,
    (rows, c_stride): (usize, usize),
    start: Init<T>,
) {
    let c = c.into();
    let Some(last) = rows.checked_sub(1) else { return };
    assert!(last * c_stride + right.columns <= c.len());
    match left {
        Lhs::Rows(data, row) => assert!(last * row + right.depth <= data.len()),
        Lhs::Packed(data) => assert!(rows * right.depth <= data.len()),
    }
    if let Init::Bias(row) = start {
        assert_eq!(row.len(), right.columns);
    }
    dispatch(Multiply { left, right, c, rows, c_stride, start });
}

struct Multiply<'a, T> {
    left: Lhs<'a, T>,
    right: &'a Panels<T>,
    c: Destination<'a, T>,
    rows: usize,
    c_stride: usize,
    start: Init<'a, T>,
}

impl<T: Lanes> WithSimd for Multiply<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let lanes = T::lanes::<S>();
        assert_eq!(lanes, self.right.lanes);
        let (depth, columns) = (self.right.depth, self.right.columns);
        for first in (0..columns).step_by(VECTORS * lanes) {
            let used = (VECTORS * lanes).min(columns - first);
            let vectors = used.div_ceil(lanes);
            let panel = self.right.start + first * depth;
            // At least once, for what it starts from.
            for k in (0..depth.max(1)).step_by(DEPTH) {
                let depths = k..depth.min(k + DEPTH);
                let block = panel + k * vectors * lanes;
                // SAFETY: `multiply` has checked what is read and written.
                unsafe {
                    match vectors {
                        3 => self.block::<S, 3>(simd, depths, block, first, used),
                        2 => self.block::<S, 2>(simd, depths, block, first, used),
                        _ => self.block::<S, 1>(simd, depths, block, first, used),
                    }
                }
            }
        }
    }
}

impl<T: Lanes> Multiply<'_, T> {
    /// All rows of N vectors' width for some depths, whose part of the panel starts at `b`.
    ///
    /// # Safety
    /// All elements lie inside their slices.
    #[inline(always)]
    unsafe fn block<S: Simd, const N: usize>(
        &mut self,
        simd: S,
        depths: Range<usize>,
        b: usize,
        column: usize,
        used: usize,
    ) {
        let start = if depths.start > 0 { Init::Accumulate } else { self.start };
        let depth = self.right.depth;
        for (i, tile) in tiles(self.rows, Tallest.with_simd(simd)).enumerate() {
            // SAFETY: the caller's.
            unsafe {
                let b = self.right.data.as_ptr().add(b);
                let c = self.c.as_mut_ptr().add(tile.start * self.c_stride + column);
                let (a, row, step) = match self.left {
                    Lhs::Rows(data, row) => (data.as_ptr().add(tile.start * row + depths.start), row, 1),
                    Lhs::Packed(data) => {
                        (data.as_ptr().add(tile.start * depth + depths.start * tile.len()), 1, tile.len())
                    }
                };
                let start = match start {
                    Init::Zero => (std::ptr::null(), 0),
                    Init::Accumulate => (c.cast_const(), self.c_stride),
                    Init::Bias(row) => (row.as_ptr().add(column), 0),
                };
                let last = used - (N - 1) * T::lanes::<S>();
                let ahead = (DEPTH * N + i % N) * T::lanes::<S>();
                let job = Tile {
                    ahead,
                    a,
                    row,
                    step,
                    b,
                    depth: depths.len(),
                    c,
                    c_stride: self.c_stride,
                    last,
                    start,
                };
                match tile.len() {
                    8 => job.run::<S, 8, N>(simd),
                    7 => job.run::<S, 7, N>(simd),
                    6 => job.run::<S, 6, N>(simd),
                    5 => job.run::<S, 5, N>(simd),
                    4 => job.run::<S, 4, N>(simd),
                    3 => job.run::<S, 3, N>(simd),
                    2 => job.run::<S, 2, N>(simd),
                    _ => job.run::<S, 1, N>(simd),
                }
            }
        }
    }
}

/// A tile of the result, as tall and wide as the registers hold.
struct Tile<T> {
    /// How far on in the right-hand side the cache line is that will be wanted in the next block.
    ahead: usize,
    a: *const T,
    row: usize,
    step: usize,
    b: *const T,
    depth: usize,
    c: *mut T,
    c_stride: usize,
    /// Numbers of the last vector that count.
    last: usize,
    /// What the sums are added to, if anything, and the way from one row of it to the next.
    start: (*const T, usize),
}

impl<T: Lanes> Tile<T> {
    /// # Safety
    /// All elements lie inside their slices.
    #[inline(always)]
    unsafe fn run<S: Simd, const M: usize, const N: usize>(self, simd: S) {
        let lanes = T::lanes::<S>();
        let zero = T::splat(simd, T::ZERO);
        let mut sums = [[zero; N]; M];
        // SAFETY: the caller's.
        unsafe {
            if !self.start.0.is_null() {
                for m in 0..M {
                    for n in 0..N {
                        let from = self.start.0.add(m * self.start.1 + n * lanes);
                        sums[m][n] = match n + 1 < N || self.last == lanes {
                            true => from.cast::<T::Vector<S>>().read_unaligned(),
                            false => T::load_first(simd, from, self.last),
                        };
                    }
                }
            }
            let (mut a, mut b) = (self.a, self.b);
            // Hidden from the compiler, which would otherwise add them up anew at each depth: the loop has as many
            // instructions as the processor takes in while it multiplies.
            let rows: [usize; M] = std::array::from_fn(|m| std::hint::black_box(m * self.row));
            for _ in 0..self.depth {
                let mut columns = [zero; N];
                for n in 0..N {
                    columns[n] = b.add(n * lanes).cast::<T::Vector<S>>().read_unaligned();
                }
                prefetch(b.wrapping_add(self.ahead));
                for m in 0..M {
                    let x = T::splat(simd, *a.add(rows[m]));
                    for n in 0..N {
                        sums[m][n] = T::mul_add(simd, x, columns[n], sums[m][n]);
                    }
                }
                a = a.add(self.step);
                b = b.add(N * lanes);
            }
            for m in 0..M {
                for n in 0..N {
                    let to = self.c.add(m * self.c_stride + n * lanes);
                    match n + 1 < N || self.last == lanes {
                        true => to.cast::<T::Vector<S>>().write_unaligned(sums[m][n]),
                        false => T::store_first(simd, to, self.last, sums[m][n]),
                    }
                }
            }
        }
    }
}

/// Rows of a product that make a piece of work for a thread: of a megaflop or more, enough that what is read of the
/// right-hand side is used several times, and no more than stay in the cache.
fn rows_a_piece(rows: usize, flops_a_row: usize) -> usize {
    const MOST: usize = 96;
    let least = (1usize << 20).div_ceil(flops_a_row.max(1)).clamp(32, MOST);
    let pieces = rows.div_ceil((rows / 16).clamp(least, MOST)).max(1);
    rows.div_ceil(pieces).next_multiple_of(8)
}

/// `c = start + left * right` on all threads, for rows of consecutive numbers every `row` of them.
pub(crate) fn gemm<'c, T: Lanes>(
    (left, row): (&[T], usize),
    right: &Panels<T>,
    c: impl Into<Destination<'c, T>>,
    c_stride: usize,
    start: Init<T>,
) {
    let c = c.into();
    let rows = c.len() / c_stride.max(1);
    let piece = rows_a_piece(rows, 2 * right.depth * right.columns);
    c.for_each_piece(piece * c_stride, |i, c| {
        let left = Lhs::Rows(left.get(i * piece * row..).unwrap_or(&[]), row);
        let rows = c.len() / c_stride;
        gemm_serial(left, right, c, (rows, c_stride), start);
    });
}

/// A matrix of given width: its row k is the start of what the function gives for k.
pub(crate) type Rows<'a, 'b, T> = (&'b (dyn Fn(usize) -> &'a [T] + Sync), usize);

/// `left^T * right` for each of `rights`, on all threads, for `depth` rows of `height` numbers every `row` of them, and as
/// many rows of each of `rights`.
pub(crate) fn gemm_transposed<'a, T: Lanes, const N: usize>(
    (left, row): (&[T], usize),
    rights: [Rows<'a, '_, T>; N],
    (depth, height): (usize, usize),
) -> [Vec<T>; N] {
    /// So deep that what is laid out anew stays in the cache until it is used.
    const DEEP: usize = 2 * DEPTH;
    /// Depths that are laid out side by side: few rows are read at a time, each from its start to its end, and what is
    /// written of each tile makes whole cache lines.
    const BESIDE: usize = 16;
    let tallest = dispatch(Tallest);
    let piece = rows_a_piece(height, 2 * depth * rights.iter().map(|right| right.1).sum::<usize>());
    // SAFETY: of both, all that is read is written first.
    let (mut products, mut packed) = unsafe {
        (
            rights.map(|(_, width)| parallel::unwritten(height * width)),
            parallel::unwritten(height * DEEP.min(depth)),
        )
    };
    // At least once, for the zeros.
    for first in (0..depth.max(1)).step_by(DEEP) {
        let deep = DEEP.min(depth - first);
        let shared = parallel::Shared::new(&mut packed);
        let lay_out_left = |beside: usize, depths: Range<usize>| {
            for start in (0..height).step_by(piece) {
                for tile in tiles(piece.min(height - start), tallest) {
                    let (at, tall) = (start + tile.start, tile.len());
                    let place = at * deep + depths.start * tall..at * deep + depths.end * tall;
                    // SAFETY: what belongs to a depth is written by one chunk alone.
                    let to = unsafe { shared.slice(place) };
                    for (k, to) in (beside..).zip(to.chunks_exact_mut(tall)) {
                        let from = &left[(first + k) * row + at..][..tall];
                        // Most are of this height, which makes it one instruction.
                        match (to.first_chunk_mut::<8>(), from.first_chunk::<8>()) {
                            (Some(to), Some(from)) => *to = *from,
                            _ => to.copy_from_slice(from),
                        }
                    }
                }
            }
        };
        // SAFETY: all rows are written, below.
        let mut panels = rights.map(|(_, width)| unsafe { Panels::pack((deep, width), |_, _| ()) });
        let lanes = super::simd::lanes::<T>();
        let right_panels = panels.each_mut().map(|panels| {
            let len = panels.data.len() - 64 / size_of::<T>();
            parallel::Shared::new(&mut panels.data[panels.start..panels.start + len])
        });
        parallel::for_each_chunk(deep.div_ceil(PACKED), |i| {
            for beside in (i * PACKED..deep.min((i + 1) * PACKED)).step_by(BESIDE) {
                lay_out_left(beside, beside..deep.min(beside + BESIDE));
            }
            for (panels, (right, width)) in right_panels.iter().zip(&rights) {
                for k in i * PACKED..deep.min((i + 1) * PACKED) {
                    // SAFETY: each row is written by one chunk alone.
                    unsafe { Panels::write_row(panels, (deep, lanes), k, &right(first + k)[..*width]) };
                }
            }
        });
        let results = products.each_mut().map(|product| parallel::Shared::new(product));
        parallel::for_each_chunk(height.div_ceil(piece), |i| {
            let rows = i * piece..height.min((i + 1) * piece);
            for ((c, panels), (_, width)) in results.iter().zip(&panels).zip(&rights) {
                let start = if first == 0 { Init::Zero } else { Init::Accumulate };
                let left = Lhs::Packed(packed.get(rows.start * deep..).unwrap_or(&[]));
                // SAFETY: each piece is one chunk's.
                let c = unsafe { c.slice(rows.start * width..rows.end * width) };
                gemm_serial(left, panels, c, (rows.len(), *width), start);
            }
        });
    }
    products
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;
    use rand::Rng;

    /// Numbers whose products and sums are whole, so that any order of adding gives the same.
    fn whole(len: usize, purpose: &str) -> Vec<f32> {
        let mut rng = rng::stream(1, purpose);
        (0..len).map(|_| rng.random_range(-3i32..=3) as f32).collect()
    }

    #[test]
    fn products_of_any_shape_are_those_of_the_definition() {
        let sizes =
            [(1, 1, 1), (3, 0, 5), (8, 7, 48), (9, 130, 49), (25, 128, 65), (50, 600, 17), (120, 3, 200)];
        for (rows, depth, columns) in sizes {
            let (a, b) = (whole(rows * depth, "a"), whole(depth * columns, "b"));
            let start = whole(rows * columns, "c");
            let expected = |i: usize, j: usize| -> f32 {
                start[i * columns + j]
                    + (0..depth).map(|k| a[i * depth + k] * b[k * columns + j]).sum::<f32>()
            };
            let expected: Vec<f32> =
                (0..rows * columns).map(|at| expected(at / columns, at % columns)).collect();
            let straight = Panels::new((depth, columns), |k| &b[k * columns..]);
            let transpose = |m: &[f32], rows: usize, columns: usize| -> Vec<f32> {
                (0..m.len()).map(|at| m[at % rows * columns + at / rows]).collect()
            };
            let turned = transpose(&b, depth, columns);
            let turned = Panels::transposed((depth, columns), |j| &turned[j * depth..]);
            for right in [&straight, &turned] {
                let mut c = start.clone();
                gemm((&a, depth), right, &mut c, columns, Init::Accumulate);
                assert_eq!(c, expected, "{rows} x {depth} x {columns}");
            }
            let left = transpose(&a, rows, depth);
            let right = |k: usize| &b[k * columns..];
            let products = gemm_transposed((&left, rows), [(&right, columns), (&right, 1)], (depth, rows));
            let sums: Vec<f32> = products[0].iter().zip(&start).map(|(sum, start)| sum + start).collect();
            assert_eq!(sums, expected, "transposed, {rows} x {depth} x {columns}");
            assert!(products[1].iter().eq(products[0].iter().step_by(columns)));
            let mut sums = vec![f32::NAN; rows * columns];
            gemm((&a, depth), &straight, &mut sums, columns, Init::Zero);
            let from_start: Vec<f32> = sums.iter().zip(&start).map(|(sum, start)| sum + start).collect();
            assert_eq!(from_start, expected);
        }
    }
}
