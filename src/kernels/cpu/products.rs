//! Matrix products that do not pack their operands: outer products and dot products in register tiles.
//!
//! Offsets say where the operands' elements lie, so that a convolution reads its windows from the padded image.

// The loops over a tile's M rows and N columns are unrolled and written alike.
#![allow(clippy::needless_range_loop)]

use super::memory::Destination;
use super::simd::{Lanes, dispatch};
use pulp::{Simd, WithSimd};

/// Elements past the end of a run that a whole-vector load may read: a vector of 512 bits of `f32`.
pub(crate) const OVERREAD: usize = 16;

/// Consecutive elements: their offset in `b`, their offset in a row of `c`, and their number.
pub(crate) type Span = (usize, usize, usize);

/// `c[i, j] = bias[i] + sum over k of a[i, k] * b[k, j]`, as a sum of outer products.
///
/// Element a[i, k] lies at `a[terms[k].0 + i * a_stride]`. The columns j come in runs of consecutive elements: for
/// `j < run.2`, b[k, j] lies at `b[terms[k].1 + run.0 + j]` and c[i, j] at `c[i * c_stride + run.1 + j]`.
pub(crate) struct OuterProducts<'a, T> {
    pub rows: usize,
    pub terms: &'a [(usize, usize)],
    pub runs: &'a [Span],
    pub a: &'a [T],
    pub a_stride: usize,
    pub b: &'a [T],
    /// Whether `OVERREAD` elements may be read after each run of b. No load needs a mask then.
    pub b_padded: bool,
    pub c: Destination<'a, T>,
    pub c_stride: usize,
    /// Initial value of each row; empty for zeros.
    pub bias: &'a [T],
    /// Adds to `c`, which is initialised, instead of to the bias.
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

    /// The micro-kernel: adds some terms to rows `i..i + M` of N runs, or of one run through a mask if `MASKED`.
    ///
    /// # Safety
    /// `i + M` is at most `rows`. Each run is a vector or less, and it lies within a run of `self` that `run` has
    /// checked, as `terms` lie within its terms. Without `MASKED`, a whole vector of b can be read there.
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const N: usize, const MASKED: bool>(
        &mut self,
        simd: S,
        i: usize,
        runs: [Span; N],
        terms: &[(usize, usize)],
        first: bool,
    ) {
        let lanes = T::lanes::<S>();
        debug_assert!(i + M <= self.rows);
        debug_assert!(runs.iter().all(|run| run.2 <= lanes && run.1 + run.2 <= self.c.len()));
        // SAFETY: `run` has checked the last element of each operand, and the caller stays within those.
        unsafe {
            let a = self.a.as_ptr().add(i * self.a_stride);
            let c = self.c.as_mut_ptr().add(i * self.c_stride);
            let b = runs.map(|run| self.b.as_ptr().wrapping_add(run.0));
            let mut sums = [[T::splat(simd, T::ZERO); N]; M];
            for m in 0..M {
                if first {
                    sums[m] = [T::splat(simd, self.bias.get(i + m).copied().unwrap_or(T::ZERO)); N];
                    continue;
                }
                for n in 0..N {
                    sums[m][n] = T::load_first(simd, c.add(m * self.c_stride + runs[n].1), runs[n].2);
                }
            }
            let a_stride = self.a_stride;
            for &(a_at, b_at) in terms {
                let mut columns = [T::splat(simd, T::ZERO); N];
                for n in 0..N {
                    let from = b[n].add(b_at);
                    columns[n] = match MASKED {
                        true => T::load_first(simd, from, runs[n].2),
                        false => from.cast::<T::Vector<S>>().read_unaligned(),
                    };
                }
                let a = a.add(a_at);
                for m in 0..M {
                    let x = T::splat(simd, *a.add(m * a_stride));
                    for n in 0..N {
                        sums[m][n] = T::mul_add(simd, x, columns[n], sums[m][n]);
                    }
                }
            }
            for m in 0..M {
                for n in 0..N {
                    let to = c.add(m * self.c_stride + runs[n].1);
                    let count = runs[n].2;
                    match count == lanes {
                        true => to.cast::<T::Vector<S>>().write_unaligned(sums[m][n]),
                        false => T::store_first(simd, to, count, sums[m][n]),
                    }
                }
            }
        }
    }

    /// Adds some terms to all rows of N runs.
    ///
    /// # Safety
    /// As for [`Self::tile`].
    #[inline(always)]
    unsafe fn panel<S: Simd, const N: usize, const MASKED: bool>(
        &mut self,
        simd: S,
        runs: [Span; N],
        terms: &[(usize, usize)],
        first: bool,
    ) {
        let (mut i, rows) = (0, self.rows);
        // SAFETY: each tile ends at or before the last row.
        unsafe {
            while i < rows {
                i += match rows - i {
                    8.. if S::REGISTER_COUNT >= 32 => {
                        self.tile::<S, 8, N, MASKED>(simd, i, runs, terms, first);
                        8
                    }
                    6.. if S::REGISTER_COUNT >= 32 => {
                        self.tile::<S, 6, N, MASKED>(simd, i, runs, terms, first);
                        6
                    }
                    4.. => {
                        self.tile::<S, 4, N, MASKED>(simd, i, runs, terms, first);
                        4
                    }
                    2.. => {
                        self.tile::<S, 2, N, MASKED>(simd, i, runs, terms, first);
                        2
                    }
                    _ => {
                        self.tile::<S, 1, N, MASKED>(simd, i, runs, terms, first);
                        1
                    }
                };
            }
        }
    }

    /// Adds all terms, in blocks that stay in the first-level cache, to all rows of up to three runs.
    ///
    /// # Safety
    /// As for [`Self::tile`], for all terms.
    #[inline(always)]
    unsafe fn runs<S: Simd>(&mut self, simd: S, one: Span, two: Option<Span>, three: Option<Span>) {
        /// Terms of a block.
        const BLOCK: usize = 128;
        let terms = self.terms;
        let whole = self.b_padded || one.2 == T::lanes::<S>();
        let mut blocks = terms.chunks(BLOCK);
        let mut block = blocks.next().unwrap_or(&[]);
        let mut first = !self.accumulate;
        loop {
            // SAFETY: the caller's.
            unsafe {
                match (two, three) {
                    (Some(two), Some(three)) => {
                        self.panel::<S, 3, false>(simd, [one, two, three], block, first)
                    }
                    (Some(two), None) => self.panel::<S, 2, false>(simd, [one, two], block, first),
                    _ if whole => self.panel::<S, 1, false>(simd, [one], block, first),
                    _ => self.panel::<S, 1, true>(simd, [one], block, first),
                }
            }
            first = false;
            match blocks.next() {
                Some(next) => block = next,
                None => break,
            }
        }
    }
}

impl<T: Lanes> WithSimd for OuterProducts<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let lanes = T::lanes::<S>();
        let mut pieces = self.runs.iter().flat_map(|&(b, c, len)| {
            (0..len.div_ceil(lanes)).map(move |i| (b + i * lanes, c + i * lanes, lanes.min(len - i * lanes)))
        });
        let padded = self.b_padded;
        let whole = |run: Span| padded || run.2 == lanes;
        let mut next = pieces.next();
        while let Some(one) = next {
            next = pieces.next();
            let (mut two, mut three) = (None, None);
            if whole(one) && next.is_some_and(whole) {
                two = std::mem::replace(&mut next, pieces.next());
                if next.is_some_and(whole) {
                    three = std::mem::replace(&mut next, pieces.next());
                }
            }
            // SAFETY: the pieces make up the runs, whose ends `run` has checked; a whole vector can be read of each
            // but a single one that is shorter.
            unsafe { self.runs(simd, one, two, three) };
        }
    }
}

/// `c[i, j] = bias[j] + sum over segments and k of a[i, k] * b[j, k]`: the dot products of rows.
///
/// A row is `segments` runs of `len` elements. Segment s of a[i] starts at `a[i * a_stride + s * a_segment_stride]`, and
/// that of b[j] at `b[b_offsets[j] + s * b_segment_stride]`; c[i, j] lies at `c[i * c_stride + j]`.
///
/// Lane l of [`Lanes::VIRTUAL`] adds up the elements k with k % VIRTUAL = l: first those of the whole virtual vectors of
/// all segments, then those of the segments' remainders. The upper half of the lanes is then added to the lower half
/// until one is left.
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

    /// The micro-kernel: rows `i..i + M` and columns `j..j + N` of the result, with the virtual lanes in P registers.
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
        // Remainders follow in a loop of their own: with both in one loop, the sums do not stay in registers.
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
                } else if M > 2 && left >= 2 {
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
                } else if N > 3 && left >= 3 {
                    self.panel::<S, M, 3, P>(simd, j);
                    3
                } else if N > 2 && left >= 2 {
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
        // The sums of a tile take 24 of 32 registers, or 12 of 16.
        // SAFETY: the last number is the virtual lanes over the register's.
        unsafe {
            match T::VIRTUAL / T::lanes::<S>() {
                1 => self.panels::<S, 4, 6, 1>(simd),
                2 => self.panels::<S, 2, 3, 2>(simd),
                4 => self.panels::<S, 2, 3, 4>(simd),
                8 => self.panels::<S, 1, 1, 8>(simd),
                _ => self.panels::<S, 1, 1, 16>(simd),
            }
        }
    }
}
