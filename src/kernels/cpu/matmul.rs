//! Matrix products with packed operands, blocked for the caches.
//!
//! The linear and recurrent layers spend their time here.
//!
//! The right-hand side is packed in the order in which the micro-kernel reads it ([`Panels`]). This pays off because
//! each of its elements is used once per row of the left-hand side. The left-hand side is read in place, or packed
//! ([`Lhs::Packed`]) if its rows are not contiguous.

// The loops over a tile's M rows and N columns are unrolled and written alike.
#![allow(clippy::needless_range_loop)]

#[cfg(test)]
mod tests;

use super::memory::{self, Destination, write_copy, write_fill};
use super::parallel::{self, Shared};
use super::simd::{self, Lanes, dispatch, lanes, prefetch};
use pulp::{Simd, WithSimd};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Number of vectors side by side in a panel.
const PANEL_VECTORS: usize = 3;
/// Rows of a panel that stay in the first-level cache during the loop over the left-hand side's rows.
const BLOCK_DEPTH: usize = 128;
/// Rows of the right-hand side that one task packs.
const PACK_ROWS: usize = 64;
/// Bytes of a cache line, where panels start.
const CACHE_LINE: usize = 64;

/// A right-hand side, `depth` x `columns`, packed into panels of a few vectors' width.
///
/// The panels are stored one after the other, each row by row. Rows are padded with zeros to whole vectors.
pub(crate) struct Panels<T> {
    depth: usize,
    columns: usize,
    /// Lanes of a vector.
    lanes: usize,
    /// All elements from `start` on are initialised, except the last of a cache line.
    data: Vec<MaybeUninit<T>>,
    /// Offset of the first panel, at a cache line.
    start: usize,
}

impl<T: Lanes> Panels<T> {
    /// Packs a matrix, `depth` x `columns`. `row(k)` starts with row k.
    pub fn new<'a>((depth, columns): (usize, usize), row: impl Fn(usize) -> &'a [T] + Sync) -> Self {
        // SAFETY: all rows are written.
        unsafe {
            Self::pack((depth, columns), |panels, lanes| {
                parallel::for_each_chunk(depth.div_ceil(PACK_ROWS), |i| {
                    for k in i * PACK_ROWS..depth.min((i + 1) * PACK_ROWS) {
                        Self::write_row(panels, (depth, lanes), k, &row(k)[..columns]);
                    }
                });
            })
        }
    }

    /// Writes row `k` of panels of `depth` rows.
    ///
    /// # Safety
    /// No other thread accesses that row.
    unsafe fn write_row(
        panels: &Shared<MaybeUninit<T>>,
        (depth, lanes): (usize, usize),
        k: usize,
        elements: &[T],
    ) {
        debug_assert!(k < depth);
        for (panel, from) in elements.chunks(lanes * PANEL_VECTORS).enumerate() {
            let width = from.len().next_multiple_of(lanes);
            let at = panel * depth * (lanes * PANEL_VECTORS) + k * width;
            // SAFETY: the caller keeps others away from the row.
            let (to, padding) = unsafe { panels.slice(at..at + width) }.split_at_mut(from.len());
            write_copy(to, from);
            write_fill(padding, T::ZERO);
        }
    }

    /// Packs the transpose of a matrix: `column(j)` starts with column j of the right-hand side.
    ///
    /// The right-hand side is `depth` x `columns`.
    pub fn transposed<'a>(
        (depth, columns): (usize, usize),
        column: impl Fn(usize) -> &'a [T] + Sync,
    ) -> Self {
        let fill = |panels: &Shared<MaybeUninit<T>>, lanes: usize| {
            let width = lanes * PANEL_VECTORS;
            parallel::for_each_chunk(columns.div_ceil(width), |panel| {
                let used = width.min(columns - panel * width);
                let wide = used.next_multiple_of(lanes);
                let at = panel * width * depth;
                // SAFETY: one call of the closure writes each panel.
                let to = unsafe { panels.slice(at..at + wide * depth) };
                if used < wide {
                    write_fill(to, T::ZERO);
                }
                // A block of each column at a time, which keeps the destination in the cache.
                for (block, to) in to.chunks_mut(PACK_ROWS * wide).enumerate() {
                    let rows = to.len() / wide;
                    let column = |j: usize| &column(panel * width + j)[..depth][block * PACK_ROWS..];
                    let put = |at: usize, elements: &[T]| {
                        _ = write_copy(&mut to[at..at + elements.len()], elements)
                    };
                    simd::transpose(column, [used, rows], wide, put);
                }
            });
        };
        // SAFETY: all panels are written.
        unsafe { Self::pack((depth, columns), fill) }
    }

    /// Allocates panels, and fills them with `fill`, which also receives the lanes of a vector.
    ///
    /// # Safety
    /// `fill` writes all elements.
    unsafe fn pack(
        (depth, columns): (usize, usize),
        fill: impl FnOnce(&Shared<MaybeUninit<T>>, usize),
    ) -> Self {
        let mut panels = Self::unwritten((depth, columns));
        let lanes = panels.lanes;
        fill(&panels.shared(), lanes);
        panels
    }

    /// Panels whose elements are not initialised yet.
    fn unwritten((depth, columns): (usize, usize)) -> Self {
        let lanes = lanes::<T>();
        let line = CACHE_LINE / size_of::<T>();
        let data = memory::uninit::<T>(columns.next_multiple_of(lanes) * depth + line);
        let start = data.as_ptr().align_offset(CACHE_LINE).min(line);
        Self { depth, columns, lanes, data, start }
    }

    /// The panels, for several threads to write.
    fn shared(&mut self) -> Shared<'_, MaybeUninit<T>> {
        let len = self.data.len() - CACHE_LINE / size_of::<T>();
        Shared::new(&mut self.data[self.start..self.start + len])
    }
}

/// A left-hand side with one row per row of the result, each as long as the right-hand side is deep.
#[derive(Clone, Copy)]
pub(crate) enum Lhs<'a, T> {
    /// Contiguous rows, and their row stride.
    Rows(&'a [T], usize),
    /// Tiles of rows, one after the other. In a tile, the elements of one depth are adjacent.
    Packed(&'a [T]),
}

/// Rows of a register tile.
struct TileRows;

impl WithSimd for TileRows {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        tallest::<S>()
    }
}

const fn tallest<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { 8 } else { 4 }
}

/// Cuts `rows` rows into as few tiles as possible, of about the same height and at most `tallest` rows.
fn tiles(rows: usize, tallest: usize) -> impl Iterator<Item = Range<usize>> {
    let count = rows.div_ceil(tallest);
    let (low, higher) = (rows / count.max(1), rows % count.max(1));
    (0..count).scan(0, move |start, i| {
        let tile = *start..*start + low + usize::from(i < higher);
        *start = tile.end;
        Some(tile)
    })
}

/// Initial value of a product.
#[derive(Clone, Copy)]
pub(crate) enum Init<'a, T> {
    Zero,
    /// The present elements of the result, which must be initialised.
    Accumulate,
    /// The same row for every row of the result.
    Bias(&'a [T]),
}

/// `c = init + lhs * rhs` on the calling thread, for `rows` rows; row i starts at `c[i * c_stride]`.
pub(crate) fn gemm_serial<'c, T: Lanes>(
    lhs: Lhs<T>,
    rhs: &Panels<T>,
    c: impl Into<Destination<'c, T>>,
    (rows, c_stride): (usize, usize),
    init: Init<T>,
) {
    Gemm { lhs, rhs, c: c.into(), rows, c_stride, init }.run();
}

struct Gemm<'a, T> {
    lhs: Lhs<'a, T>,
    rhs: &'a Panels<T>,
    c: Destination<'a, T>,
    rows: usize,
    c_stride: usize,
    init: Init<'a, T>,
}

impl<T: Lanes> Gemm<'_, T> {
    fn run(self) {
        let Some(last) = self.rows.checked_sub(1) else { return };
        assert!(last * self.c_stride + self.rhs.columns <= self.c.len());
        match self.lhs {
            Lhs::Rows(data, stride) => assert!(last * stride + self.rhs.depth <= data.len()),
            Lhs::Packed(data) => assert!(self.rows * self.rhs.depth <= data.len()),
        }
        if let Init::Bias(row) = self.init {
            assert_eq!(row.len(), self.rhs.columns);
        }
        dispatch(self);
    }
}

impl<T: Lanes> WithSimd for Gemm<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let lanes = T::lanes::<S>();
        assert_eq!(lanes, self.rhs.lanes);
        let (depth, columns) = (self.rhs.depth, self.rhs.columns);
        for first in (0..columns).step_by(PANEL_VECTORS * lanes) {
            let used = (PANEL_VECTORS * lanes).min(columns - first);
            let vectors = used.div_ceil(lanes);
            let panel = self.rhs.start + first * depth;
            // Run once even without depth, for the initial value.
            for k in (0..depth.max(1)).step_by(BLOCK_DEPTH) {
                let depths = k..depth.min(k + BLOCK_DEPTH);
                let block = panel + k * vectors * lanes;
                // SAFETY: `run` has checked the last element of each operand.
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

impl<T: Lanes> Gemm<'_, T> {
    /// Adds the products of some depths to all rows of a panel of N vectors, up to column `used`.
    ///
    /// # Safety
    /// The operands hold all elements that `run` checks, and `b` is the offset of these depths in the panel.
    #[inline(always)]
    unsafe fn block<S: Simd, const N: usize>(
        &mut self,
        simd: S,
        depths: Range<usize>,
        b: usize,
        column: usize,
        used: usize,
    ) {
        let lanes = T::lanes::<S>();
        debug_assert!(used <= N * lanes && column + used <= self.rhs.columns);
        debug_assert!(b + depths.len() * N * lanes <= self.rhs.data.len());
        let init = if depths.start > 0 { Init::Accumulate } else { self.init };
        let depth = self.rhs.depth;
        for (i, tile) in tiles(self.rows, TileRows.with_simd(simd)).enumerate() {
            // SAFETY: the caller's contract.
            unsafe {
                let b = self.rhs.data.as_ptr().add(b).cast();
                let c = self.c.as_mut_ptr().add(tile.start * self.c_stride + column);
                let (a, a_stride, step) = match self.lhs {
                    Lhs::Rows(data, stride) => {
                        (data.as_ptr().add(tile.start * stride + depths.start), stride, 1)
                    }
                    Lhs::Packed(data) => {
                        (data.as_ptr().add(tile.start * depth + depths.start * tile.len()), 1, tile.len())
                    }
                };
                let init = match init {
                    Init::Zero => (std::ptr::null(), 0),
                    Init::Accumulate => (c.cast_const(), self.c_stride),
                    Init::Bias(row) => (row.as_ptr().add(column), 0),
                };
                let last = used - (N - 1) * lanes;
                let ahead = (BLOCK_DEPTH * N + i % N) * lanes;
                let depth = depths.len();
                let job = Tile { ahead, a, a_stride, step, b, depth, c, c_stride: self.c_stride, last, init };
                // In a constant, so that an instruction set with fewer registers does not compile the tall tiles.
                match tile.len() {
                    8 if const { tallest::<S>() >= 8 } => job.run::<S, 8, N>(simd),
                    7 if const { tallest::<S>() >= 7 } => job.run::<S, 7, N>(simd),
                    6 if const { tallest::<S>() >= 6 } => job.run::<S, 6, N>(simd),
                    5 if const { tallest::<S>() >= 5 } => job.run::<S, 5, N>(simd),
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
    /// Distance in the right-hand side to the cache line that the next block will read.
    ahead: usize,
    a: *const T,
    a_stride: usize,
    /// Distance from one depth of `a` to the next.
    step: usize,
    b: *const T,
    depth: usize,
    c: *mut T,
    c_stride: usize,
    /// Used columns of the last vector.
    last: usize,
    /// The initial value, unless null, and its row stride.
    init: (*const T, usize),
}

impl<T: Lanes> Tile<T> {
    /// The micro-kernel.
    ///
    /// # Safety
    /// For M rows: `a` is valid for reading `depth` elements of each. `c` is valid for writing N vectors of each, the
    /// last with `last` elements, and `init`, unless null, for reading the same number. `b` is valid for reading
    /// `depth` rows of N vectors.
    #[inline(always)]
    unsafe fn run<S: Simd, const M: usize, const N: usize>(self, simd: S) {
        let lanes = T::lanes::<S>();
        debug_assert!((1..=lanes).contains(&self.last) && !self.c.is_null());
        let zero = T::splat(simd, T::ZERO);
        let mut sums = [[zero; N]; M];
        // SAFETY: the caller's contract.
        unsafe {
            if !self.init.0.is_null() {
                for m in 0..M {
                    for n in 0..N {
                        let from = self.init.0.add(m * self.init.1 + n * lanes);
                        sums[m][n] = match n + 1 < N || self.last == lanes {
                            true => from.cast::<T::Vector<S>>().read_unaligned(),
                            false => T::load_first(simd, from, self.last),
                        };
                    }
                }
            }
            let (mut a, mut b) = (self.a, self.b);
            // Hide this from the compiler, which would otherwise recompute the offsets at each depth and make the loop
            // longer than the processor can issue while it multiplies.
            let mut rows = [0; M];
            for m in 0..M {
                rows[m] = std::hint::black_box(m * self.a_stride);
            }
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

/// Rows of the result that one task computes, a megaflop or more.
///
/// They are enough to use each loaded part of the right-hand side several times, and few enough to stay in the cache.
fn rows_per_task(rows: usize, flops_per_row: usize) -> usize {
    const MOST: usize = 96;
    let least = (1usize << 20).div_ceil(flops_per_row.max(1)).clamp(32, MOST);
    let tasks = rows.div_ceil((rows / 16).clamp(least, MOST)).max(1);
    rows.div_ceil(tasks).next_multiple_of(8)
}

/// `c = init + lhs * rhs` on all threads, for contiguous rows of `lhs` with their row stride. The rows of `c` fill it.
pub(crate) fn gemm<'c, T: Lanes>(
    (lhs, stride): (&[T], usize),
    rhs: &Panels<T>,
    c: impl Into<Destination<'c, T>>,
    c_stride: usize,
    init: Init<T>,
) {
    let c = c.into();
    let rows = c.len() / c_stride.max(1);
    let task = rows_per_task(rows, 2 * rhs.depth * rhs.columns);
    c.for_each_piece(task * c_stride, |i, c| {
        let lhs = Lhs::Rows(lhs.get(i * task * stride..).unwrap_or(&[]), stride);
        let rows = c.len() / c_stride;
        gemm_serial(lhs, rhs, c, (rows, c_stride), init);
    });
}

/// Returns `bias + lhs * rhs`, computed on all threads, for a right-hand side that exceeds the caches.
///
/// Each element of the right-hand side is read once. `lhs` has `rows` contiguous rows of `depth` elements; there may be
/// no bias. A task computes some columns of all rows. `pack(depths, columns)` packs a part of the right-hand side.
pub(crate) fn gemm_by_columns<T: Lanes>(
    lhs: &[T],
    pack: impl Fn(Range<usize>, Range<usize>) -> Panels<T> + Sync,
    [rows, depth, columns]: [usize; 3],
    bias: &[T],
) -> Vec<T> {
    // A part of this width stays in the second-level cache, beside these depths of the left-hand side. All threads get the
    // same number of parts.
    let parts = columns.div_ceil(384).next_multiple_of(parallel::threads());
    let wide = columns.div_ceil(parts).next_multiple_of(16).max(48);
    let write = |i: usize, to: &mut [MaybeUninit<T>]| pack_rows(&lhs[i * BLOCK_DEPTH..], depth, rows, to);
    // SAFETY: `pack_rows` writes all elements.
    let packed = unsafe { memory::build(rows * depth, rows * BLOCK_DEPTH, write) };
    let mut product = memory::uninit(rows * columns);
    Destination::from(&mut product).for_each_strip(columns, wide, |strip, mut c| {
        for k in (0..depth).step_by(BLOCK_DEPTH) {
            let depths = k..depth.min(k + BLOCK_DEPTH);
            let init = match () {
                _ if k > 0 => Init::Accumulate,
                _ if bias.is_empty() => Init::Zero,
                _ => Init::Bias(&bias[strip.clone()]),
            };
            let lhs = Lhs::Packed(&packed[rows * k..rows * depths.end]);
            let panels = pack(depths, strip.clone());
            gemm_serial(lhs, &panels, c.reborrow(), (rows, columns), init);
        }
    });
    // SAFETY: the strips cover the product, and the first depths write all elements of a strip.
    unsafe { memory::assume_init(product) }
}

/// Packs rows for [`Lhs::Packed`]. Takes the first elements of each row, until `to` is full.
fn pack_rows<T: Lanes>(lhs: &[T], stride: usize, rows: usize, to: &mut [MaybeUninit<T>]) {
    let depth = to.len() / rows.max(1);
    for tile in tiles(rows, dispatch(TileRows)) {
        let (first, tall) = (tile.start, tile.len());
        let to = &mut to[first * depth..(first + tall) * depth];
        let put = |at: usize, elements: &[T]| _ = write_copy(&mut to[at..at + elements.len()], elements);
        simd::transpose(|m| &lhs[(first + m) * stride..], [tall, depth], tall, put);
    }
}

/// A right-hand side of a given width; the slice for k starts with row k.
pub(crate) type Rhs<'a, 'b, T> = (&'b (dyn Fn(usize) -> &'a [T] + Sync), usize);

/// Computes `lhs^T * rhs` for each of `rhs`, on all threads.
///
/// All have `depth` rows. The rows of `lhs` have `height` elements and the row stride `stride`.
pub(crate) fn gemm_transposed<'a, T: Lanes, const N: usize>(
    (lhs, stride): (&[T], usize),
    rhs: [Rhs<'a, '_, T>; N],
    (depth, height): (usize, usize),
) -> [Vec<T>; N] {
    /// Depths that are packed at once, so that they are still in the cache when they are used.
    const DEEP: usize = 2 * BLOCK_DEPTH;
    let tallest = dispatch(TileRows);
    let task = rows_per_task(height, 2 * depth * rhs.iter().map(|rhs| rhs.1).sum::<usize>());
    let mut products = rhs.map(|(_, width)| memory::uninit(height * width));
    let mut packed = memory::uninit(height * DEEP.min(depth));
    // Run once even without depth, for the zeros.
    for first in (0..depth.max(1)).step_by(DEEP) {
        let deep = DEEP.min(depth - first);
        let mut panels = rhs.map(|(_, width)| Panels::unwritten((deep, width)));
        let shared = Shared::new(&mut packed);
        let shared_panels = panels.each_mut().map(Panels::shared);
        parallel::for_each_chunk(deep.div_ceil(PACK_ROWS), |i| {
            let depths = i * PACK_ROWS..deep.min((i + 1) * PACK_ROWS);
            // SAFETY: one call of the closure writes what belongs to a depth.
            unsafe {
                let rows = |k: usize| &lhs[(first + k) * stride..][..height];
                pack_transposed(&shared, rows, deep, depths.clone(), task, tallest);
                for (panels, (row, width)) in shared_panels.iter().zip(&rhs) {
                    for k in depths.clone() {
                        Panels::write_row(panels, (deep, lanes::<T>()), k, &row(first + k)[..*width]);
                    }
                }
            }
        });
        // SAFETY: all depths have been packed.
        let packed = unsafe { memory::assume_init_ref(&packed[..height * deep]) };
        let results = products.each_mut().map(|product| Shared::new(product));
        parallel::for_each_chunk(height.div_ceil(task), |i| {
            let rows = i * task..height.min((i + 1) * task);
            for ((c, panels), (_, width)) in results.iter().zip(&panels).zip(&rhs) {
                let init = if first == 0 { Init::Zero } else { Init::Accumulate };
                let lhs = Lhs::Packed(&packed[rows.start * deep..]);
                // SAFETY: one call of the closure writes these rows.
                let c = unsafe { c.slice(rows.start * width..rows.end * width) };
                gemm_serial(lhs, panels, c, (rows.len(), *width), init);
            }
        });
    }
    // SAFETY: the first pass writes all products.
    products.map(|product| unsafe { memory::assume_init(product) })
}

/// Packs `depths` of a left-hand side for [`Lhs::Packed`]. Its transpose has the rows `rows(k)` of all heights.
///
/// `deep` is the number of depths of a tile. The tiles start again at each task of `task` rows.
///
/// # Safety
/// No other thread accesses these depths.
unsafe fn pack_transposed<'a, T: Lanes>(
    packed: &Shared<MaybeUninit<T>>,
    rows: impl Fn(usize) -> &'a [T],
    deep: usize,
    depths: Range<usize>,
    task: usize,
    tallest: usize,
) {
    /// Depths that are packed together.
    ///
    /// This way few rows are read at a time, each from start to end, and the writes to each tile fill whole cache
    /// lines.
    const TOGETHER: usize = 16;
    debug_assert!(depths.end <= deep);
    let height = if depths.is_empty() { 0 } else { rows(depths.start).len() };
    for first in depths.clone().step_by(TOGETHER) {
        let together = first..depths.end.min(first + TOGETHER);
        for start in (0..height).step_by(task) {
            for tile in tiles(task.min(height - start), tallest) {
                let (at, tall) = (start + tile.start, tile.len());
                let place = at * deep + together.start * tall..at * deep + together.end * tall;
                // SAFETY: the caller keeps others away from these depths.
                let to = unsafe { packed.slice(place) };
                for (k, to) in together.clone().zip(to.chunks_exact_mut(tall)) {
                    let from = &rows(k)[at..][..tall];
                    // Most tiles have this height, and one instruction copies it.
                    match (to.first_chunk_mut::<8>(), from.first_chunk::<8>()) {
                        (Some(to), Some(from)) => _ = write_copy(to, from),
                        _ => _ = write_copy(to, from),
                    }
                }
            }
        }
    }
}
