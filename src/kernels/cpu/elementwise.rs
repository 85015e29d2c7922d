//! Functions of single elements.

use super::memory;
use super::real::Real;
use super::simd::vectorised;
use std::mem::MaybeUninit;

/// Elements per task.
const CHUNK: usize = 1 << 14;

/// Returns `f(x)` for each element of `xs`.
#[inline(always)]
pub(crate) fn map<T: Real>(xs: &[T], f: impl Fn(T) -> T + Sync) -> Vec<T> {
    zip_map(
        xs,
        xs,
        #[inline(always)]
        |x, _| f(x),
    )
}

/// Returns `f(a[i], b[i])` for each `i`.
#[inline(always)]
pub(crate) fn zip_map<T: Real>(a: &[T], b: &[T], f: impl Fn(T, T) -> T + Sync) -> Vec<T> {
    assert_eq!(a.len(), b.len());
    let write = |i: usize, ys: &mut [MaybeUninit<T>]| {
        let (a, b) = (&a[i * CHUNK..][..ys.len()], &b[i * CHUNK..][..ys.len()]);
        vectorised(|| {
            for ((y, &a), &b) in ys.iter_mut().zip(a).zip(b) {
                y.write(f(a, b));
            }
        });
    };
    // SAFETY: `write` writes every element, as `a` and `b` are as long as the piece.
    unsafe { memory::build(a.len(), CHUNK, write) }
}
