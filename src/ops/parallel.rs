//! The one place where work is spread over threads.
//!
//! Everything here runs on candle's own pool ([`candle_core::utils::barrier_pool`]), which candle's element-wise
//! operations use anyway: a second pool (rayon's) would only fight it for the cores. The pool is created at its
//! first use with `CANDLE_NUM_THREADS` threads (else `RAYON_NUM_THREADS`, else one a core).
//!
//! Work is cut by the problem's size, never by the number of threads, and whoever adds partial sums adds them in
//! the order of the chunks: results are the same to the bit for any number of threads.

use super::host::Real;
use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;

thread_local! {
    /// Whether this thread is inside `for_each_chunk`: a nested call must not wait for the pool that runs it.
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

/// Calls `work(i)` once for each `i < chunks`, spread over the pool; nested calls run in place.
pub(crate) fn for_each_chunk(chunks: usize, work: impl Fn(usize) + Sync) {
    if chunks <= 1 || BUSY.get() {
        return (0..chunks).for_each(work);
    }
    candle_core::utils::barrier_pool().execute_chunked(chunks, |range| {
        let _busy = Busy::enter();
        range.for_each(&work)
    });
}

/// Sets `BUSY` for as long as it lives, through a panic too.
struct Busy(bool);

impl Busy {
    fn enter() -> Self {
        Self(BUSY.replace(true))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        BUSY.set(self.0);
    }
}

/// Calls `work(i, chunk)` on consecutive pieces of `data`, `size` elements each (the last may be shorter).
pub(crate) fn for_each_piece<T: Send + Sync>(
    data: &mut [T],
    size: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    let (len, size) = (data.len(), size.max(1));
    let data = Shared::new(data);
    for_each_chunk(len.div_ceil(size), |i| {
        // SAFETY: the ranges of different `i` do not overlap, and each `i` is visited once.
        work(i, unsafe { data.slice(i * size..len.min((i + 1) * size)) })
    });
}

/// A new vector of `len` numbers, of which `work(i, piece)` writes consecutive pieces as in `for_each_piece`.
///
/// # Safety
/// `work` must write every element of its piece before it reads it.
pub(crate) unsafe fn build<T: Real>(
    len: usize,
    size: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) -> Vec<T> {
    let mut data = Vec::with_capacity(len);
    // SAFETY: the memory is there, any bits make a number, and none is read before it is written.
    for_each_piece(unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr(), len) }, size, work);
    // SAFETY: the pieces, all of which were written, make up the `len` elements.
    unsafe { data.set_len(len) };
    data
}

/// A mutable slice of which several threads write different parts.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    _borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `slice`, whose caller keeps ranges apart.
unsafe impl<T: Send + Sync> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(data: &'a mut [T]) -> Self {
        Self { start: data.as_mut_ptr(), len: data.len(), _borrow: PhantomData }
    }

    /// The part `range` of the slice.
    ///
    /// # Safety
    /// No two ranges that are alive at the same time may overlap.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds; the caller keeps ranges apart.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
