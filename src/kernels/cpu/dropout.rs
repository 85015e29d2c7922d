//! Dropout with a given mask.

use super::Real;
use super::memory::build;
use super::simd::vectorised;
use std::mem::MaybeUninit;

/// Multiplies each element by `scale` if its `keep` is not 0, and by 0 otherwise.
///
/// The product with 0 keeps NaN and infinity visible.
pub(crate) fn mask<T: Real>(xs: &[T], keep: &[u8], scale: T) -> Vec<T> {
    const CHUNK: usize = 1 << 14;
    assert_eq!(xs.len(), keep.len());
    let work = |i: usize, ys: &mut [MaybeUninit<T>]| {
        let (xs, keep) = (&xs[i * CHUNK..][..ys.len()], &keep[i * CHUNK..][..ys.len()]);
        vectorised(
            #[inline(always)]
            || {
                for ((y, &x), &keep) in ys.iter_mut().zip(xs).zip(keep) {
                    y.write(x * if keep != 0 { scale } else { T::ZERO });
                }
            },
        );
    };
    // SAFETY: `xs` and `keep` have the length of the piece, so the loop writes every element.
    unsafe { build(xs.len(), CHUNK, work) }
}
