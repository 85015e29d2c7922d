//! Matrix products in vector registers, the inner loops of the linear layer and the convolution.
//!
//! Neither packs its operands: elements are found through offsets, so that a convolution reads its windows straight
//! from the padded image.

// Loops over the M rows and N columns of a tile are unrolled and all written alike.
#![allow(clippy::needless_range_loop)]

use super::memory::Destination;
use super::real::Real;
use pulp::{Simd, WithSimd};
use std::marker::PhantomData;

/// A number with vectors of it.
pub(crate) trait Lanes: Real {
    type Vector<S: Simd>: Copy;

    fn lanes<S: Simd>() -> usize {
        size_of::<Self::Vector<S>>() / size_of::<Self>()
    }

    /// Four rows' columns.
    #[inline(always)]
    fn transpose(rows: [&[Self; 4]; 4]) -> [[Self; 4]; 4] {
        std::array::from_fn(|i| rows.map(|row| row[i]))
    }

    fn splat<S: Simd>(simd: S, x: Self) -> Self::Vector<S>;
    /// `a * b + c`
    fn mul_add<S: Simd>(
        simd: S,
        a: Self::Vector<S>,
        b: Self::Vector<S>,
        c: Self::Vector<S>,
    ) -> Self::Vector<S>;
    fn sum<S: Simd>(simd: S, a: Self::Vector<S>) -> Self;

    /// The first `count` lanes from memory, zeros in the others.
    ///
    /// # Safety
    /// `from` is valid for reading `count` numbers.
    unsafe fn load_first<S: Simd>(simd: S, from: *const Self, count: usize) -> Self::Vector<S>;

    /// The first `count` lanes to memory.
    ///
    /// # Safety
    /// `to` is valid for writing `count` numbers.
    unsafe fn store_first<S: Simd>(simd: S, to: *mut Self, count: usize, x: Self::Vector<S>);
}

macro_rules! lanes {
    ($t:ty, $vector:ident, $index:ty, $splat:ident, $mul_add:ident, $sum:ident, $mask:ident, $load:ident, $store:ident $(, $more:item)?) => {
        impl Lanes for $t {
            type Vector<S: Simd> = S::$vector;
            $($more)?

            #[inline(always)]
            fn splat<S: Simd>(simd: S, x: Self) -> S::$vector {
                simd.$splat(x)
            }
            #[inline(always)]
            fn mul_add<S: Simd>(simd: S, a: S::$vector, b: S::$vector, c: S::$vector) -> S::$vector {
                simd.$mul_add(a, b, c)
            }
            #[inline(always)]
            fn sum<S: Simd>(simd: S, a: S::$vector) -> Self {
                simd.$sum(a)
            }
            #[inline(always)]
            unsafe fn load_first<S: Simd>(simd: S, from: *const Self, count: usize) -> S::$vector {
                // From the bare mask: a plain masked load, not a call through pulp's table of them.
                let mask = simd.$mask(0, count as $index).mask().into();
                // SAFETY: the mask names the first `count` lanes.
                unsafe { simd.$load(mask, from) }
            }
            #[inline(always)]
            unsafe fn store_first<S: Simd>(simd: S, to: *mut Self, count: usize, x: S::$vector) {
                let mask = simd.$mask(0, count as $index).mask().into();
                // SAFETY: the mask names the first `count` lanes.
                unsafe { simd.$store(mask, to, x) }
            }
        }
    };
}
lanes!(
    f32,
    f32s,
    u32,
    splat_f32s,
    mul_add_e_f32s,
    reduce_sum_f32s,
    mask_between_m32s,
    mask_load_ptr_f32s,
    mask_store_ptr_f32s,
    // What the compiler makes of the loop is several times slower.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn transpose(rows: [&[f32; 4]; 4]) -> [[f32; 4]; 4] {
        use std::arch::x86_64::{_MM_TRANSPOSE4_PS, _mm_loadu_ps, _mm_storeu_ps};
        let mut columns = [[0.; 4]; 4];
        // SAFETY: every x86-64 has these, and all rows and columns are four long.
        unsafe {
            let [mut a, mut b, mut c, mut d] = rows.map(|row| _mm_loadu_ps(row.as_ptr()));
            _MM_TRANSPOSE4_PS(&mut a, &mut b, &mut c, &mut d);
            for (column, x) in columns.iter_mut().zip([a, b, c, d]) {
                _mm_storeu_ps(column.as_mut_ptr(), x);
            }
        }
        columns
    }
);
lanes!(
    f64,
    f64s,
    u64,
    splat_f64s,
    mul_add_e_f64s,
    reduce_sum_f64s,
    mask_between_m64s,
    mask_load_ptr_f64s,
    mask_store_ptr_f64s
);

/// Runs `op` compiled for the instruction set in use.
#[inline(always)]
pub(crate) fn dispatch<Op: WithSimd>(op: Op) -> Op::Output {
    pulp::Arch::new().dispatch(op)
}

/// Runs `work` compiled for the best instructions that this processor has: plain loops in it are vectorised too.
#[inline(always)]
pub(crate) fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}

/// The sum of some numbers, added in a fixed order: sixteen sums, then those and what is left over.
#[inline(always)]
pub(crate) fn sum<T: Real>(numbers: &[T]) -> T {
    let (chunks, rest) = numbers.as_chunks::<16>();
    let mut sums = [T::ZERO; 16];
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += x;
        }
    }
    sums.iter().chain(rest).fold(T::ZERO, |sum, &x| sum + x)
}

/// How many numbers a vector of this processor holds.
pub(crate) fn lanes<T: Lanes>() -> usize {
    struct Count<T>(PhantomData<T>);
    impl<T: Lanes> WithSimd for Count<T> {
        type Output = usize;

        fn with_simd<S: Simd>(self, _simd: S) -> usize {
            T::lanes::<S>()
        }
    }
    dispatch(Count::<T>(PhantomData))
}

/// Asks for the cache line at `address`, which need not be valid, to be brought near.
#[inline(always)]
pub(crate) fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// How many numbers may be read beyond what counts where a vector is loaded whole.
pub(crate) const OVERREAD: usize = 16;

/// `c[i, j] = start[i] + sum over k of a[i, k] * b[k, j]` for j along runs of consecutive numbers.
///
/// Element a[i, k] lies at `a[terms[k].0 + i * a_stride]`, b[k, j] at `b[terms[k].1 + run.0 + j]` and c[i, j] at
/// `c[i * c_stride + run.1 + j]`, for `j < run.2` of each of the `runs`.
pub(crate) struct OuterProducts<'a, T> {
    pub rows: usize,
    pub terms: &'a [(usize, usize)],
    pub runs: &'a [(usize, usize, usize)],
    pub a: &'a [T],
    pub a_stride: usize,
    pub b: &'a [T],
    /// Whether `OVERREAD` numbers may be read after each run of b: then no load needs a mask.
    pub b_padded: bool,
    pub c: Destination<'a, T>,
    pub c_stride: usize,
    /// What c starts from, one number a row; none: 0.
    pub bias: &'a [T],
    /// Whether c starts from what it holds instead.
    pub accumulate: bool,
}

impl<T: Lanes> OuterProducts<'_, T> {
    pub fn run(self) {
        let (rows, last) = (self.rows, self.rows.saturating_sub(1));
        let (a_end, b_end) = self.terms.iter().fold((0, 0), |(a, b), step| (a.max(step.0), b.max(step.1)));
        let (b_run, c_run) =
            self.runs.iter().fold((0, 0), |(b, c), run| (b.max(run.0 + run.2), c.max(run.1 + run.2)));
        if rows == 0 || c_run == 0 {
            return;
        }
        assert!(self.terms.is_empty() || a_end + last * self.a_stride < self.a.len());
        let slack = if self.b_padded { OVERREAD } else { 0 };
        assert!(self.terms.is_empty() || b_end + b_run + slack <= self.b.len());
        assert!(last * self.c_stride + c_run <= self.c.len());
        assert!(self.bias.is_empty() || self.bias.len() == rows);
        dispatch(self)
    }

    /// Rows `i..i + M` of N runs, or of one if `MASKED`, of which then only what counts is loaded.
    ///
    /// # Safety
    /// All elements lie inside their slices.
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const N: usize, const MASKED: bool>(
        &mut self,
        simd: S,
        i: usize,
        runs: [(usize, usize, usize); N],
        terms: &[(usize, usize)],
        first: bool,
    ) {
        // SAFETY: the caller's.
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
                    match count == T::lanes::<S>() {
                        true => to.cast::<T::Vector<S>>().write_unaligned(sums[m][n]),
                        false => T::store_first(simd, to, count, sums[m][n]),
                    }
                }
            }
        }
    }

    /// All rows of N runs.
    #[inline(always)]
    unsafe fn panel<S: Simd, const N: usize, const MASKED: bool>(
        &mut self,
        simd: S,
        runs: [(usize, usize, usize); N],
        terms: &[(usize, usize)],
        first: bool,
    ) {
        let (mut i, rows) = (0, self.rows);
        // SAFETY: the caller's.
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
}

impl<T: Lanes> WithSimd for OuterProducts<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        // So many terms that what three vectors of them read of b stays in the first-level cache.
        const BLOCK: usize = 128;
        let lanes = T::lanes::<S>();
        let (terms, runs) = (self.terms, self.runs);
        let mut pieces = runs.iter().flat_map(|&(b, c, len)| {
            (0..len.div_ceil(lanes)).map(move |i| (b + i * lanes, c + i * lanes, lanes.min(len - i * lanes)))
        });
        let mut next = pieces.next();
        while let Some(one) = next {
            next = pieces.next();
            let whole = |run: (usize, usize, usize)| self.b_padded || run.2 == lanes;
            let (mut two, mut three) = (None, None);
            if whole(one) && next.is_some_and(whole) {
                two = std::mem::replace(&mut next, pieces.next());
                if next.is_some_and(whole) {
                    three = std::mem::replace(&mut next, pieces.next());
                }
            }
            let mut blocks = terms.chunks(BLOCK);
            let mut block = blocks.next().unwrap_or(&[]);
            let mut first = !self.accumulate;
            loop {
                // SAFETY: `run` has checked the ends of all that is read and written.
                unsafe {
                    match (two, three) {
                        (Some(two), Some(three)) => {
                            self.panel::<S, 3, false>(simd, [one, two, three], block, first)
                        }
                        (Some(two), None) => self.panel::<S, 2, false>(simd, [one, two], block, first),
                        _ if self.b_padded || one.2 == lanes => {
                            self.panel::<S, 1, false>(simd, [one], block, first)
                        }
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
}

/// `c[i, j] = start[j] + sum over segments and k of a[i, k] * b[j, k]`: the dot products of rows.
///
/// Segment s of a[i] is the `len` numbers from `a[i * a_stride + s * a_segment_stride]`, that of b[j] those from
/// `b[b_offsets[j] + s * b_segment_stride]`; c[i, j] lies at `c[i * c_stride + j]`.
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
    /// What c starts from, one number a column; none: 0.
    pub bias: &'a [T],
}

impl<T: Lanes> DotProducts<'_, T> {
    pub fn run(self) {
        let (columns, Some(last)) = (self.b_offsets.len(), self.rows.checked_sub(1)) else { return };
        let Some(&b_row) = self.b_offsets.iter().max() else { return };
        let before = self.segments.saturating_sub(1);
        assert!(
            self.segments == 0
                || last * self.a_stride + before * self.a_segment_stride + self.len <= self.a.len()
        );
        assert!(self.segments == 0 || b_row + before * self.b_segment_stride + self.len <= self.b.len());
        assert!(last * self.c_stride + columns <= self.c.len());
        assert!(self.bias.is_empty() || self.bias.len() == columns);
        dispatch(self)
    }

    /// # Safety
    /// All elements lie inside their slices.
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const N: usize>(&mut self, simd: S, i: usize, j: usize) {
        let lanes = T::lanes::<S>();
        let mut a = [self.a.as_ptr(); M];
        for m in 0..M {
            a[m] = a[m].wrapping_add((i + m) * self.a_stride);
        }
        let mut b = [self.b.as_ptr(); N];
        for n in 0..N {
            b[n] = b[n].wrapping_add(self.b_offsets[j + n]);
        }
        let mut sums = [[T::splat(simd, T::ZERO); N]; M];
        let (whole, rest) = (self.len / lanes * lanes, self.len % lanes);
        // First the whole vectors of all segments, then what is left of each: with both in one loop the sums do not
        // stay in registers.
        // SAFETY: the caller's.
        unsafe {
            for segment in 0..self.segments {
                let a = a.map(|a| a.add(segment * self.a_segment_stride));
                let b = b.map(|b| b.add(segment * self.b_segment_stride));
                let mut k = 0;
                while k < whole {
                    let x = a.map(|a| a.add(k).cast::<T::Vector<S>>().read_unaligned());
                    for n in 0..N {
                        let y = b[n].add(k).cast::<T::Vector<S>>().read_unaligned();
                        for m in 0..M {
                            sums[m][n] = T::mul_add(simd, x[m], y, sums[m][n]);
                        }
                    }
                    k += lanes;
                }
            }
            for segment in 0..if rest > 0 { self.segments } else { 0 } {
                let x = a.map(|a| T::load_first(simd, a.add(segment * self.a_segment_stride + whole), rest));
                for n in 0..N {
                    let y = T::load_first(simd, b[n].add(segment * self.b_segment_stride + whole), rest);
                    for m in 0..M {
                        sums[m][n] = T::mul_add(simd, x[m], y, sums[m][n]);
                    }
                }
            }
        }
        for m in 0..M {
            for n in 0..N {
                let start = self.bias.get(j + n).copied().unwrap_or(T::ZERO);
                let sum = start + T::sum(simd, sums[m][n]);
                // SAFETY: the caller's.
                unsafe { self.c.as_mut_ptr().add((i + m) * self.c_stride + j + n).write(sum) };
            }
        }
    }

    #[inline(always)]
    unsafe fn panel<S: Simd, const N: usize>(&mut self, simd: S, j: usize) {
        let (mut i, rows) = (0, self.rows);
        // SAFETY: the caller's.
        unsafe {
            while i < rows {
                i += match rows - i {
                    4.. => {
                        self.tile::<S, 4, N>(simd, i, j);
                        4
                    }
                    2.. => {
                        self.tile::<S, 2, N>(simd, i, j);
                        2
                    }
                    _ => {
                        self.tile::<S, 1, N>(simd, i, j);
                        1
                    }
                };
            }
        }
    }
}

impl<T: Lanes> WithSimd for DotProducts<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let (mut j, columns) = (0, self.b_offsets.len());
        // SAFETY: `run` has checked the ends of all that is read and written.
        unsafe {
            while j < columns {
                j += match columns - j {
                    6.. if S::REGISTER_COUNT >= 32 => {
                        self.panel::<S, 6>(simd, j);
                        6
                    }
                    3.. => {
                        self.panel::<S, 3>(simd, j);
                        3
                    }
                    _ => {
                        self.panel::<S, 1>(simd, j);
                        1
                    }
                };
            }
        }
    }
}
