//! Matrix products that do not pack their operands: outer products and dot products in register tiles.
//!
//! The operands are addressed by offsets, so that a convolution can read its windows from the padded image.

// The loops over a tile's M rows and N columns are unrolled and written alike.
#![allow(clippy::needless_range_loop)]

use super::memory::Destination;
use super::simd::{Lanes, dispatch, prefetch};
use pulp::{Simd, WithSimd};
use std::mem::MaybeUninit;

/// Elements past the end of a run that a whole-vector load may read: a vector of 512 bits of `f32`.
pub(crate) const OVERREAD: usize = 16;

/// Number of terms added to all rows before the next block, so that they stay in the first-level cache.
const BLOCK: usize = 128;
/// Largest number of vectors side by side in a register tile.
const WIDEST: usize = 3;

/// Smallest number of rows for which a copy of b pays off.
pub(crate) const LEAST_ROWS: usize = 17;

/// A copy of a block of b, as wide as a register tile.
///
/// The copy occupies consecutive cache lines, whereas rows of b may compete for the same ones. It consists of whole
/// vectors, whose columns may come from several runs.
#[repr(align(64))]
struct Packed<T> {
    /// The copy, and room for the end of the vector that is stored last.
    b: [MaybeUninit<T>; (BLOCK * WIDEST + 1) * OVERREAD],
    /// The block's terms, with offsets in the copy.
    terms: [MaybeUninit<(usize, usize)>; BLOCK],
}

impl<T: Lanes> Packed<T> {
    const EMPTY: Self = Self {
        b: [MaybeUninit::uninit(); (BLOCK * WIDEST + 1) * OVERREAD],
        terms: [MaybeUninit::uninit(); BLOCK],
    };

    /// Copies N vectors of b for each of `terms`. What is not in a segment is unspecified.
    ///
    /// `segments` are consecutive elements of b for a term with offset 0, a vector of them or less: their offset in `b`,
    /// their offset in the vectors, and their number. Returns the places of the vectors in the copy, and its terms.
    ///
    /// # Safety
    /// Those elements can be read for each term, with `OVERREAD` elements after each segment if `padded`. The segments
    /// are in the order of their offsets in the vectors.
    #[inline(always)]
    unsafe fn fill<S: Simd, const N: usize>(
        &mut self,
        simd: S,
        (b, padded, segments): (*const T, bool, &[Span]),
        terms: &[(usize, usize)],
    ) -> ([*const T; N], &[(usize, usize)]) {
        let lanes = T::lanes::<S>();
        assert!(terms.len() <= BLOCK && N <= WIDEST && lanes <= OVERREAD);
        assert!(segments.iter().all(|segment| segment.2 <= lanes && segment.1 + segment.2 <= N * lanes));
        let gaps = segments.iter().map(|segment| segment.2).sum::<usize>() < N * lanes;
        let to = self.b.as_mut_ptr().cast::<T>();
        for (k, &(a_at, b_at)) in terms.iter().enumerate() {
            self.terms[k].write((a_at, k * N * lanes));
            // SAFETY: the caller's contract; a block of terms and vectors fits into the copy, with a vector to spare.
            unsafe {
                let to = to.add(k * N * lanes);
                let store = |at: usize, x| to.add(at).cast::<T::Vector<S>>().write_unaligned(x);
                for n in 0..if gaps { N } else { 0 } {
                    store(n * lanes, T::splat(simd, T::ZERO));
                }
                for &(from, at, len) in segments {
                    let from = b.wrapping_add(from + b_at);
                    let x = match padded || len == lanes {
                        true => from.cast::<T::Vector<S>>().read_unaligned(),
                        false => T::load_first(simd, from, len),
                    };
                    // Each store overwrites what the one before has stored beyond its segment.
                    store(at, x);
                }
            }
        }
        // SAFETY: the loop has written these terms.
        let terms = unsafe { std::slice::from_raw_parts(self.terms.as_ptr().cast(), terms.len()) };
        (std::array::from_fn(|n| to.wrapping_add(n * lanes).cast_const()), terms)
    }
}

/// Consecutive elements: their offset in `b`, their offset in a row of `c`, and their number.
pub(crate) type Span = (usize, usize, usize);
/// A vector of `c` or less: the offset in a row, and the number of elements.
type Piece = (usize, usize);

/// `c[i, j] = bias[i] + sum over k of a[i, k] * b[k, j]`, as a sum of outer products.
///
/// Element a[i, k] is `a[terms[k].0 + i * a_stride]`. The columns j come in runs of consecutive elements: for `j <
/// run.2`, b[k, j] is `b[terms[k].1 + run.0 + j]` and c[i, j] is `c[i * c_stride + run.1 + j]`.
pub(crate) struct OuterProducts<'a, T> {
    pub rows: usize,
    pub terms: &'a [(usize, usize)],
    pub runs: &'a [Span],
    pub a: &'a [T],
    pub a_stride: usize,
    pub b: &'a [T],
    /// Whether `OVERREAD` elements may be read after each run of b. Loads then need no mask.
    pub b_padded: bool,
    pub c: Destination<'a, T>,
    pub c_stride: usize,
    /// Initial value of each row; empty for zeros.
    pub bias: &'a [T],
    /// Whether to add to `c`, which must be initialised, instead of to the bias.
    pub accumulate: bool,
}

impl<T: Lanes> OuterProducts<'_, T> {
    pub fn run(self) {
        let (rows, last) = (self.rows, self.rows.saturating_sub(1));
        let (a_end, b_end) = self.terms.iter().fold((0, 0), |(a, b), term| (a.max(term.0), b.max(term.1)));
        let (b_run, c_run) =
            self.runs.iter().fold((0, 0), |(b, c), run| (b.max(run.0 + run.2), c.max(run.1 + run.2)));
        if rows == 0 || c_run == 0 {
            return;
        }
        assert!(self.terms.is_empty() || a_end + last * self.a_stride < self.a.len());
        let overread = if self.b_padded { OVERREAD } else { 0 };
        assert!(self.terms.is_empty() || b_end + b_run + overread <= self.b.len());
        assert!(last * self.c_stride + c_run <= self.c.len());
        assert!(self.bias.is_empty() || self.bias.len() == rows);
        dispatch(self)
    }

    /// The micro-kernel: adds some terms to rows `i..i + M` of N pieces.
    ///
    /// # Safety
    /// `i + M` is at most `rows`. Each piece is a vector or less, and within a run that `run` has checked. `run` has
    /// also checked the elements of a in `terms`. A whole vector can be read at `b[n]` plus the second offset of each
    /// term.
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const N: usize>(
        &mut self,
        simd: S,
        i: usize,
        (pieces, b): ([Piece; N], [*const T; N]),
        terms: &[(usize, usize)],
        first: bool,
    ) {
        let lanes = T::lanes::<S>();
        debug_assert!(i + M <= self.rows);
        debug_assert!(pieces.iter().all(|piece| piece.1 <= lanes && piece.0 + piece.1 <= self.c.len()));
        // SAFETY: `run` has checked the last element of each operand, and the caller stays within those.
        unsafe {
            let a = self.a.as_ptr().add(i * self.a_stride);
            let c = self.c.as_mut_ptr().add(i * self.c_stride);
            let mut sums = [[T::splat(simd, T::ZERO); N]; M];
            for m in 0..M {
                if first {
                    sums[m] = [T::splat(simd, self.bias.get(i + m).copied().unwrap_or(T::ZERO)); N];
                    continue;
                }
                for n in 0..N {
                    sums[m][n] = T::load_first(simd, c.add(m * self.c_stride + pieces[n].0), pieces[n].1);
                }
            }
            // Hide this from the compiler: see `matmul`.
            let mut rows = [0; M];
            for m in 0..M {
                rows[m] = std::hint::black_box(m * self.a_stride);
            }
            for terms in terms.chunks(const { 64 / size_of::<T>() }) {
                // The cache lines that the next tile needs: a block's part of a row is too short for the processor to
                // foresee the end of it.
                for row in rows {
                    prefetch(a.wrapping_add(terms[0].0 + M * self.a_stride + row));
                }
                for &(a_at, b_at) in terms {
                    let b = b.map(|b| b.add(b_at));
                    add_outer_product::<T, S, M, N>(simd, a.add(a_at), rows, b, &mut sums);
                }
            }
            for m in 0..M {
                for n in 0..N {
                    let to = c.add(m * self.c_stride + pieces[n].0);
                    let count = pieces[n].1;
                    match count == lanes {
                        true => to.cast::<T::Vector<S>>().write_unaligned(sums[m][n]),
                        false => T::store_first(simd, to, count, sums[m][n]),
                    }
                }
            }
        }
    }

    /// Adds a block of terms to all rows of N pieces, whose elements of b are in `segments`: see [`Packed::fill`].
    ///
    /// # Safety
    /// The pieces and segments lie within runs that `run` has checked; `terms` are among the terms that it has checked.
    /// With fewer rows than [`LEAST_ROWS`], each piece has one segment.
    #[inline(always)]
    unsafe fn panel<S: Simd, const N: usize>(
        &mut self,
        simd: S,
        pieces: [Piece; N],
        segments: &[Span],
        terms: &[(usize, usize)],
        first: bool,
    ) {
        let mut packed = Packed::EMPTY;
        let whole = self.b_padded || segments.iter().all(|segment| segment.2 == T::lanes::<S>());
        let (b, terms) = match whole && self.rows < LEAST_ROWS {
            true => (std::array::from_fn(|n| self.b.as_ptr().wrapping_add(segments[n].0)), terms),
            // SAFETY: the segments lie within runs of b.
            false => unsafe { packed.fill(simd, (self.b.as_ptr(), self.b_padded, segments), terms) },
        };
        let (mut i, rows) = (0, self.rows);
        // A tile's sums, its vectors of b and an element of a for each row share the registers. The conditions are
        // constants, so that tiles that do not fit are not even compiled.
        // SAFETY: each tile ends at or before the last row.
        unsafe {
            while i < rows {
                i += match rows - i {
                    8.. if const { S::REGISTER_COUNT >= 32 && N < 3 } => {
                        self.tile::<S, 8, N>(simd, i, (pieces, b), terms, first);
                        8
                    }
                    6.. if const { S::REGISTER_COUNT >= 32 || N < 3 } => {
                        self.tile::<S, 6, N>(simd, i, (pieces, b), terms, first);
                        6
                    }
                    4.. if const { S::REGISTER_COUNT >= 32 || N < 3 } => {
                        self.tile::<S, 4, N>(simd, i, (pieces, b), terms, first);
                        4
                    }
                    2.. => {
                        self.tile::<S, 2, N>(simd, i, (pieces, b), terms, first);
                        2
                    }
                    _ => {
                        self.tile::<S, 1, N>(simd, i, (pieces, b), terms, first);
                        1
                    }
                };
            }
        }
    }

    /// Adds all terms, block after block, to all rows of up to three pieces.
    ///
    /// # Safety
    /// As for [`Self::panel`], for all terms.
    #[inline(always)]
    unsafe fn pieces<S: Simd>(&mut self, simd: S, pieces: &[Piece], segments: &[Span]) {
        let terms = self.terms;
        // Run once even without terms, for the initial values.
        for at in (0..terms.len().max(1)).step_by(BLOCK) {
            let block = &terms[at..terms.len().min(at + BLOCK)];
            let first = at == 0 && !self.accumulate;
            // SAFETY: the caller's contract.
            unsafe {
                match *pieces {
                    [one, two, three] => self.panel::<S, 3>(simd, [one, two, three], segments, block, first),
                    [one, two] => self.panel::<S, 2>(simd, [one, two], segments, block, first),
                    [one, ..] => self.panel::<S, 1>(simd, [one], segments, block, first),
                    [] => {}
                }
            }
        }
    }
}

/// Adds the product of column `a`, with an element at each of `rows`, and row `b` of N vectors to `sums`.
///
/// # Safety
/// The elements of `a` and the vectors of `b` can be read.
#[inline(always)]
unsafe fn add_outer_product<T: Lanes, S: Simd, const M: usize, const N: usize>(
    simd: S,
    a: *const T,
    rows: [usize; M],
    b: [*const T; N],
    sums: &mut [[T::Vector<S>; N]; M],
) {
    let mut columns = [T::splat(simd, T::ZERO); N];
    for n in 0..N {
        // SAFETY: the caller's contract.
        columns[n] = unsafe { b[n].cast::<T::Vector<S>>().read_unaligned() };
    }
    for m in 0..M {
        // SAFETY: the caller's contract.
        let x = T::splat(simd, unsafe { *a.add(rows[m]) });
        for n in 0..N {
            sums[m][n] = T::mul_add(simd, x, columns[n], sums[m][n]);
        }
    }
}

impl<T: Lanes> WithSimd for OuterProducts<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        // Without AVX-512, tall tiles of three vectors exceed the registers.
        let widest = if S::REGISTER_COUNT >= 32 || self.rows < 4 { WIDEST } else { 2 };
        let mut cutter = Cutter::new(self.runs, T::lanes::<S>(), widest, self.rows >= LEAST_ROWS);
        while let Some((pieces, segments)) = cutter.cut() {
            // SAFETY: the pieces and segments make up the runs, whose ends `run` has checked.
            unsafe { self.pieces(simd, pieces, segments) };
        }
    }
}

/// Cuts runs into the pieces of panels.
struct Cutter<'a> {
    /// What is left of the first run, if it is not empty, and the others.
    run: Span,
    runs: std::slice::Iter<'a, Span>,
    lanes: usize,
    widest: usize,
    /// Whether a piece may consist of several runs, which must follow one another in `c`.
    joins: bool,
    /// Pieces that are left.
    left: usize,
    pieces: [Piece; WIDEST],
    /// Room for segments of single elements.
    segments: [Span; WIDEST * OVERREAD],
}

impl<'a> Cutter<'a> {
    fn new(runs: &'a [Span], lanes: usize, widest: usize, joins: bool) -> Self {
        let follows = |a: &Span, b: &Span| joins && a.1 + a.2 == b.1;
        let pieces = |runs: &[Span]| runs.iter().map(|run| run.2).sum::<usize>().div_ceil(lanes);
        let left = runs.chunk_by(follows).map(pieces).sum();
        let (pieces, segments) = ([(0, 0); WIDEST], [(0, 0, 0); WIDEST * OVERREAD]);
        let mut cutter =
            Self { run: (0, 0, 0), runs: runs.iter(), lanes, widest, joins, left, pieces, segments };
        cutter.next_run();
        cutter
    }

    /// Goes on to the next run that is not empty.
    fn next_run(&mut self) {
        self.run = self.runs.by_ref().copied().find(|run| run.2 > 0).unwrap_or_default();
    }

    /// The pieces of the next panel, and their segments: see [`Packed::fill`].
    #[inline(always)]
    fn cut(&mut self) -> Option<(&[Piece], &[Span])> {
        // Two panels of two vectors are faster than one of three and one of one.
        let vectors = if self.left == 4 { 2 } else { self.left.min(self.widest) };
        self.left -= vectors;
        let mut count = 0;
        for n in 0..vectors {
            let (first, mut filled) = (self.run.1, 0);
            loop {
                let (b, c, len) = self.run;
                let some = len.min(self.lanes - filled);
                self.segments[count] = (b, n * self.lanes + filled, some);
                (count, filled) = (count + 1, filled + some);
                self.run = (b + some, c + some, len - some);
                if some == len {
                    self.next_run();
                }
                if filled == self.lanes || !self.joins || self.run.2 == 0 || self.run.1 != c + some {
                    break;
                }
            }
            self.pieces[n] = (first, filled);
        }
        (vectors > 0).then_some((&self.pieces[..vectors], &self.segments[..count]))
    }
}

/// `c[i, j] = bias[j] + sum over segments and k of a[i, k] * b[j, k]`: the dot products of rows.
///
/// A row is `segments` runs of `len` elements. Segment s of a[i] starts at `a[i * a_stride + s * a_segment_stride]`,
/// segment s of b[j] at `b[b_offsets[j] + s * b_segment_stride]`; c[i, j] is `c[i * c_stride + j]`.
///
/// Lane l of [`Lanes::VIRTUAL`] adds the elements k with k % VIRTUAL = l: first in the whole virtual vectors of all
/// segments, then in the remainders of the segments. The upper half of the lanes is then added to the lower half until
/// one is left.
pub(crate) struct DotProducts<'a, T> {
    pub rows: usize,
    pub segments: usize,
    pub len: usize,
    pub a: &'a [T],
    pub a_stride: usize,
    pub a_segment_stride: usize,
    pub b: &'a [T],
    pub b_offsets: &'a [usize],
    pub b_segment_stride: usize,
    pub c: Destination<'a, T>,
    pub c_stride: usize,
    /// Initial value of each column; empty for zeros.
    pub bias: &'a [T],
}

impl<T: Lanes> DotProducts<'_, T> {
    pub fn run(self) {
        let (columns, Some(last)) = (self.b_offsets.len(), self.rows.checked_sub(1)) else { return };
        let Some(&b_last) = self.b_offsets.iter().max() else { return };
        let before = self.segments.saturating_sub(1);
        let a_end = last * self.a_stride + before * self.a_segment_stride + self.len;
        assert!(self.segments == 0 || a_end <= self.a.len());
        assert!(self.segments == 0 || b_last + before * self.b_segment_stride + self.len <= self.b.len());
        assert!(last * self.c_stride + columns <= self.c.len());
        assert!(self.bias.is_empty() || self.bias.len() == columns);
        dispatch(self)
    }

    /// The micro-kernel: rows `i..i + M` and columns `j..j + N` of the result.
    ///
    /// The virtual lanes are in P registers.
    ///
    /// # Safety
    /// `i + M` is at most `rows` and `j + N` at most the number of columns. P registers hold the virtual lanes.
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const N: usize, const P: usize>(
        &mut self,
        simd: S,
        i: usize,
        j: usize,
    ) {
        let lanes = T::lanes::<S>();
        debug_assert!(i + M <= self.rows && j + N <= self.b_offsets.len() && P * lanes == T::VIRTUAL);
        let mut a = [self.a.as_ptr(); M];
        for m in 0..M {
            a[m] = a[m].wrapping_add((i + m) * self.a_stride);
        }
        let mut b = [self.b.as_ptr(); N];
        for n in 0..N {
            b[n] = b[n].wrapping_add(self.b_offsets[j + n]);
        }
        let zero = T::splat(simd, T::ZERO);
        let mut sums = [[[zero; N]; M]; P];
        let (whole, rest) = (self.len / T::VIRTUAL * T::VIRTUAL, self.len % T::VIRTUAL);
        // The remainders follow in a separate loop: with both in one loop, the sums do not stay in registers.
        // SAFETY: `run` has checked the last element of each operand. A load past it has a count of 0.
        unsafe {
            for segment in 0..self.segments {
                let (mut a, mut b) = (a, b);
                for m in 0..M {
                    a[m] = a[m].add(segment * self.a_segment_stride);
                }
                for n in 0..N {
                    b[n] = b[n].add(segment * self.b_segment_stride);
                }
                let mut k = 0;
                while k < whole {
                    for p in 0..P {
                        let mut x = [zero; M];
                        for m in 0..M {
                            x[m] = a[m].add(k + p * lanes).cast::<T::Vector<S>>().read_unaligned();
                        }
                        for n in 0..N {
                            let y = b[n].add(k + p * lanes).cast::<T::Vector<S>>().read_unaligned();
                            for m in 0..M {
                                sums[p][m][n] = T::mul_add(simd, x[m], y, sums[p][m][n]);
                            }
                        }
                    }
                    k += T::VIRTUAL;
                }
            }
            for segment in 0..if rest > 0 { self.segments } else { 0 } {
                for p in 0..P {
                    let count = rest.saturating_sub(p * lanes).min(lanes);
                    let mut x = [zero; M];
                    for m in 0..M {
                        let at = segment * self.a_segment_stride + whole + p * lanes;
                        x[m] = T::load_first(simd, a[m].wrapping_add(at), count);
                    }
                    for n in 0..N {
                        let at = segment * self.b_segment_stride + whole + p * lanes;
                        let y = T::load_first(simd, b[n].wrapping_add(at), count);
                        for m in 0..M {
                            sums[p][m][n] = T::mul_add(simd, x[m], y, sums[p][m][n]);
                        }
                    }
                }
            }
        }
        // SAFETY: the caller's contract.
        unsafe { self.store(simd, i, j, sums) };
    }

    /// Adds up the lanes of the sums of a tile, and writes the elements.
    ///
    /// # Safety
    /// `i + M` is at most `rows` and `j + N` at most the number of columns.
    #[inline(always)]
    unsafe fn store<S: Simd, const M: usize, const N: usize, const P: usize>(
        &mut self,
        simd: S,
        i: usize,
        j: usize,
        mut sums: [[[T::Vector<S>; N]; M]; P],
    ) {
        let mut half = P / 2;
        while half > 0 {
            for p in 0..half {
                for m in 0..M {
                    for n in 0..N {
                        sums[p][m][n] = T::add_lanes(simd, sums[p][m][n], sums[p + half][m][n]);
                    }
                }
            }
            half /= 2;
        }
        for m in 0..M {
            for n in 0..N {
                let bias = self.bias.get(j + n).copied().unwrap_or(T::ZERO);
                let sum = bias + T::sum(simd, sums[0][m][n]);
                // SAFETY: `run` has checked the last element.
                unsafe { self.c.as_mut_ptr().add((i + m) * self.c_stride + j + n).write(sum) };
            }
        }
    }

    /// All rows of columns `j..j + N`, in tiles of M, 2 or 1 rows.
    ///
    /// # Safety
    /// `j + N` is at most the number of columns, and P registers hold the virtual lanes.
    #[inline(always)]
    unsafe fn panel<S: Simd, const M: usize, const N: usize, const P: usize>(&mut self, simd: S, j: usize) {
        let (mut i, rows) = (0, self.rows);
        // SAFETY: each tile ends at or before the last row.
        unsafe {
            while i < rows {
                let left = rows - i;
                i += if left >= M {
                    self.tile::<S, M, N, P>(simd, i, j);
                    M
                } else if const { M > 2 } && left >= 2 {
                    self.tile::<S, 2, N, P>(simd, i, j);
                    2
                } else {
                    self.tile::<S, 1, N, P>(simd, i, j);
                    1
                };
            }
        }
    }

    /// All rows and columns, in tiles of at most M rows and N columns.
    ///
    /// # Safety
    /// P registers hold the virtual lanes.
    #[inline(always)]
    unsafe fn panels<S: Simd, const M: usize, const N: usize, const P: usize>(&mut self, simd: S) {
        let (mut j, columns) = (0, self.b_offsets.len());
        // SAFETY: each panel ends at or before the last column.
        unsafe {
            while j < columns {
                let left = columns - j;
                j += if left >= N {
                    self.panel::<S, M, N, P>(simd, j);
                    N
                } else if const { N > 3 } && left >= 3 {
                    self.panel::<S, M, 3, P>(simd, j);
                    3
                } else if const { N > 2 } && left >= 2 {
                    self.panel::<S, M, 2, P>(simd, j);
                    2
                } else {
                    self.panel::<S, M, 1, P>(simd, j);
                    1
                };
            }
        }
    }
}

impl<T: Lanes> WithSimd for DotProducts<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        // The sums of a tile take 24 of 32 registers, or 12 of 16. Only the case at hand is compiled.
        // SAFETY: the last number is the virtual lanes over the register's.
        unsafe {
            match const { T::VIRTUAL * size_of::<T>() / size_of::<T::Vector<S>>() } {
                1 => self.panels::<S, 4, 6, 1>(simd),
                2 => self.panels::<S, 2, 3, 2>(simd),
                4 => self.panels::<S, 2, 3, 4>(simd),
                8 => self.panels::<S, 1, 1, 8>(simd),
                _ => self.panels::<S, 1, 1, 16>(simd),
            }
        }
    }
}
