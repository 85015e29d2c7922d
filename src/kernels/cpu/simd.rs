//! Vector registers: the instruction set in use, and operations on vectors of `f32` or `f64`.
//!
//! Every kernel gives the same bits on every instruction set. The vector width must not change the order in which a
//! kernel adds the terms of an element. Either one lane adds all terms of an element in order, or the terms are spread
//! over [`Lanes::VIRTUAL`] lanes, whatever the width of the registers. Multiply-add is fused everywhere.
//!
//! The variable `CANDLE_TEXTBOOK_SIMD` forces an instruction set; it is read once. Its values are `scalar`, `avx2` and
//! `avx512` (x86-64), `neon` (AArch64) and, with the feature of that name, `portable512`: 512-bit vectors composed of
//! shorter ones, which run the AVX-512 code on any processor. If the variable names a set that this processor does not
//! support, the kernels use the best available one, and [`instruction_set`] returns an error.

use super::real::Real;
use pulp::{Arch, Simd, WithSimd};
use std::marker::PhantomData;
use std::sync::OnceLock;

const VARIABLE: &str = "CANDLE_TEXTBOOK_SIMD";

#[derive(Clone, Copy)]
enum InstructionSet {
    Native(Arch),
    #[cfg(feature = "portable512")]
    Portable512,
}

impl InstructionSet {
    /// The sets that this processor supports, the best first.
    fn available() -> impl Iterator<Item = Self> {
        let native = [
            #[cfg(target_arch = "x86_64")]
            pulp::x86::V4::try_new().map(Arch::V4),
            #[cfg(target_arch = "x86_64")]
            pulp::x86::V3::try_new().map(Arch::V3),
            #[cfg(not(target_arch = "x86_64"))]
            Some(Arch::new()),
            Some(Arch::Scalar),
        ];
        let native = native.into_iter().flatten().map(Self::Native);
        #[cfg(feature = "portable512")]
        let native = native.chain([Self::Portable512]);
        native
    }

    fn name(self) -> &'static str {
        match self {
            Self::Native(Arch::Scalar) => "scalar",
            #[cfg(target_arch = "x86_64")]
            Self::Native(Arch::V3(_)) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Native(Arch::V4(_)) => "avx512",
            #[cfg(feature = "portable512")]
            Self::Portable512 => "portable512",
            #[allow(unreachable_patterns)]
            Self::Native(_) => "neon",
        }
    }

    /// The set in use, and whether the environment asks for one that is not available.
    fn in_use() -> (Self, bool) {
        static IN_USE: OnceLock<(InstructionSet, bool)> = OnceLock::new();
        *IN_USE.get_or_init(|| {
            let best = Self::Native(Arch::new());
            match std::env::var_os(VARIABLE).filter(|name| !name.is_empty()) {
                None => (best, false),
                Some(name) => match Self::available().find(|set| name == set.name()) {
                    Some(set) => (set, false),
                    None => (best, true),
                },
            }
        })
    }
}

/// Returns the name of the instruction set in use.
///
/// # Errors
/// Fails if the environment asks for a set that is not available.
pub(crate) fn instruction_set() -> Result<&'static str, String> {
    match InstructionSet::in_use() {
        (set, false) => Ok(set.name()),
        (_, true) => {
            let available: Vec<_> = InstructionSet::available().map(InstructionSet::name).collect();
            let found = std::env::var_os(VARIABLE).unwrap_or_default();
            Err(format!("{VARIABLE}: found {}, expected {}", found.display(), available.join(", ")))
        }
    }
}

/// Runs `op` compiled for the instruction set in use.
#[inline(always)]
pub(crate) fn dispatch<Op: WithSimd>(op: Op) -> Op::Output {
    match InstructionSet::in_use().0 {
        InstructionSet::Native(arch) => arch.dispatch(op),
        #[cfg(feature = "portable512")]
        InstructionSet::Portable512 => portable512(op),
    }
}

/// Runs `op` on 512-bit vectors composed of shorter ones.
#[cfg(feature = "portable512")]
fn portable512<Op: WithSimd>(op: Op) -> Op::Output {
    struct Portable<Op>(Op);
    impl<Op: WithSimd> pulp::NullaryFnOnce for Portable<Op> {
        type Output = Op::Output;

        #[inline(always)]
        fn call(self) -> Op::Output {
            self.0.with_simd(pulp::Scalar512b)
        }
    }
    // Use fused multiply-add in hardware if available.
    #[cfg(target_arch = "x86_64")]
    if let Some(avx2) = pulp::x86::V3::try_new() {
        return avx2.vectorize(Portable(op));
    }
    op.with_simd(pulp::Scalar512b)
}

/// Runs `work` compiled for the instruction set in use, so that the compiler vectorises plain loops.
#[inline(always)]
pub(crate) fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    match InstructionSet::in_use().0 {
        InstructionSet::Native(arch) => arch.dispatch(work),
        #[cfg(feature = "portable512")]
        InstructionSet::Portable512 => Arch::new().dispatch(work),
    }
}

/// An element type with vectors.
pub(crate) trait Lanes: Real {
    /// A register.
    type Vector<S: Simd>: Copy;

    /// Number of virtual lanes of a reduction: the lanes of 512 bits, held in one or more registers.
    const VIRTUAL: usize = 64 / size_of::<Self>();

    /// Lanes of a register.
    fn lanes<S: Simd>() -> usize {
        size_of::<Self::Vector<S>>() / size_of::<Self>()
    }

    /// The columns of four rows.
    #[inline(always)]
    fn transpose(rows: [&[Self; 4]; 4]) -> [[Self; 4]; 4] {
        std::array::from_fn(|i| rows.map(|row| row[i]))
    }

    /// `x` in every lane.
    fn splat<S: Simd>(simd: S, x: Self) -> Self::Vector<S>;

    /// `a + b`
    fn add_lanes<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;

    /// `a * b + c` with one rounding.
    fn mul_add<S: Simd>(
        simd: S,
        a: Self::Vector<S>,
        b: Self::Vector<S>,
        c: Self::Vector<S>,
    ) -> Self::Vector<S>;

    /// The sum of the lanes: the upper half is added to the lower half until one lane is left.
    fn sum<S: Simd>(simd: S, a: Self::Vector<S>) -> Self;

    /// Loads the first `count` lanes and sets the others to zero.
    ///
    /// # Safety
    /// `count` is at most the number of lanes, and `from` is valid for reading `count` elements.
    unsafe fn load_first<S: Simd>(simd: S, from: *const Self, count: usize) -> Self::Vector<S>;

    /// Stores the first `count` lanes.
    ///
    /// # Safety
    /// `count` is at most the number of lanes, and `to` is valid for writing `count` elements.
    unsafe fn store_first<S: Simd>(simd: S, to: *mut Self, count: usize, x: Self::Vector<S>);
}

macro_rules! lanes {
    ($t:ty, $vector:ident, $index:ty, $splat:ident, $add:ident, $mul_add:ident, $sum:ident, $mask:ident, $load:ident,
     $store:ident $(, $more:item)?) => {
        impl Lanes for $t {
            type Vector<S: Simd> = S::$vector;
            $($more)?

            #[inline(always)]
            fn splat<S: Simd>(simd: S, x: Self) -> S::$vector {
                simd.$splat(x)
            }
            #[inline(always)]
            fn add_lanes<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$add(a, b)
            }
            #[inline(always)]
            fn mul_add<S: Simd>(simd: S, a: S::$vector, b: S::$vector, c: S::$vector) -> S::$vector {
                simd.$mul_add(a, b, c)
            }
            #[inline(always)]
            fn sum<S: Simd>(simd: S, a: S::$vector) -> Self {
                if size_of::<S::$vector>() != 16 {
                    return simd.$sum(a);
                }
                // NEON adds neighbours first.
                const N: usize = 16 / size_of::<$t>();
                // SAFETY: a vector of 16 bytes holds `N` elements.
                let mut lanes: [$t; N] = unsafe { std::mem::transmute_copy(&a) };
                let mut half = N / 2;
                while half > 0 {
                    for i in 0..half {
                        lanes[i] += lanes[i + half];
                    }
                    half /= 2;
                }
                lanes[0]
            }
            #[inline(always)]
            unsafe fn load_first<S: Simd>(simd: S, from: *const Self, count: usize) -> S::$vector {
                debug_assert!(count <= Self::lanes::<S>());
                // The bare mask gives a masked load. Otherwise pulp calls a function from a table.
                let mask = simd.$mask(0, count as $index).mask().into();
                // SAFETY: the mask selects the first `count` lanes.
                unsafe { simd.$load(mask, from) }
            }
            #[inline(always)]
            unsafe fn store_first<S: Simd>(simd: S, to: *mut Self, count: usize, x: S::$vector) {
                debug_assert!(count <= Self::lanes::<S>());
                let mask = simd.$mask(0, count as $index).mask().into();
                // SAFETY: the mask selects the first `count` lanes.
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
    add_f32s,
    mul_add_f32s,
    reduce_sum_f32s,
    mask_between_m32s,
    mask_load_ptr_f32s,
    mask_store_ptr_f32s,
    // The compiler's code for the plain loop is several times slower.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn transpose(rows: [&[f32; 4]; 4]) -> [[f32; 4]; 4] {
        use std::arch::x86_64::{_MM_TRANSPOSE4_PS, _mm_loadu_ps, _mm_storeu_ps};
        let mut columns = [[0.; 4]; 4];
        // SAFETY: SSE is part of x86-64, and all rows and columns have four elements.
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
    add_f64s,
    mul_add_f64s,
    reduce_sum_f64s,
    mask_between_m64s,
    mask_load_ptr_f64s,
    mask_store_ptr_f64s
);

/// The sum of a slice in a fixed order: sixteen partial sums, added in order, then the remainder.
#[inline(always)]
pub(crate) fn sum<T: Real>(elements: &[T]) -> T {
    let (chunks, rest) = elements.as_chunks::<16>();
    let mut sums = [T::ZERO; 16];
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += x;
        }
    }
    sums.iter().chain(rest).fold(T::ZERO, |sum, &x| sum + x)
}

/// Transposes `rows` rows of `columns` elements.
///
/// `put(at, elements)` writes elements; element k of row j belongs at `k * stride + j`.
#[inline(always)]
pub(crate) fn transpose<'a, T: Lanes>(
    row: impl Fn(usize) -> &'a [T],
    [rows, columns]: [usize; 2],
    stride: usize,
    mut put: impl FnMut(usize, &[T]),
) {
    let whole = [rows / 4 * 4, columns / 4 * 4];
    for j in (0..whole[0]).step_by(4) {
        let rows = [0, 1, 2, 3].map(|i| row(j + i)[..columns].as_chunks::<4>().0);
        for k in 0..columns / 4 {
            for (i, column) in T::transpose(rows.map(|row| &row[k])).iter().enumerate() {
                put((4 * k + i) * stride + j, column);
            }
        }
    }
    // The remainders: the ends of those rows, and the last rows.
    for j in 0..rows {
        let first = if j < whole[0] { whole[1] } else { 0 };
        for (k, x) in row(j)[..columns].iter().enumerate().skip(first) {
            put(k * stride + j, std::slice::from_ref(x));
        }
    }
}

/// Lanes of a register of the instruction set in use.
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

/// Prefetches the cache line at `address`, which need not be valid.
#[inline(always)]
pub(crate) fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
