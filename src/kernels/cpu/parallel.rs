//! Work on several threads.
//!
//! Everything runs on the rayon pool of the calling thread: the global pool, or the pool that the program entered with
//! `ThreadPool::install`, which saves the hop from the main thread to the pool in every operation. Candle's own pool is
//! unsuitable: it waits in each operation until every thread has answered, which takes a hundred times longer than the
//! work itself on a busy machine. Keep candle's pool at one thread with `CANDLE_NUM_THREADS=1`, so that the two pools
//! do not compete for the cores.
//!
//! The size of the problem alone determines the chunks, never the number of threads. Partial sums are added in the order
//! of their chunks. Results are therefore equal to the bit for any number of threads.
//!
//! # The context of a thread
//!
//! A pool thread that waits for its chunks runs other jobs meanwhile, from deep inside the operation that waits. State
//! in plain thread-locals would leak into those jobs. Each thread therefore has one slot for such state
//! ([`replace_context`]). Every function here empties the slot before it waits and restores it afterwards, so a job
//! always starts with an empty slot. The code that stores the state defines its type.

use rayon::prelude::*;
use std::any::Any;
use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;

/// State of a thread that jobs run by this thread must not see.
pub(crate) type Context = Box<dyn Any>;

thread_local! {
    static CONTEXT: Cell<Option<Context>> = const { Cell::new(None) };
}

/// Stores `context` for the current thread and returns the previous one.
///
/// The slot counts as empty while the thread's locals are being destroyed.
pub(crate) fn replace_context(context: Option<Context>) -> Option<Context> {
    CONTEXT.try_with(|slot| slot.replace(context)).unwrap_or(None)
}

/// Runs `work`, which may wait for the pool, with an empty context slot.
fn without_context<R>(work: impl FnOnce() -> R) -> R {
    struct Restore(Option<Context>);
    impl Drop for Restore {
        fn drop(&mut self) {
            replace_context(self.0.take());
        }
    }
    let _restore = Restore(replace_context(None));
    work()
}

/// Number of threads that share parallel work.
pub(crate) fn threads() -> usize {
    rayon::current_num_threads()
}

/// Calls `work(i)` for each `i < chunks`, in parallel.
pub(crate) fn for_each_chunk(chunks: usize, work: impl Fn(usize) + Sync) {
    // One copy of the thread pool's code serves every caller. A call through a pointer per chunk has no measurable
    // cost, whereas a copy for each caller would be a tenth of the library.
    fn run(chunks: usize, work: &(dyn Fn(usize) + Sync)) {
        without_context(|| (0..chunks).into_par_iter().with_max_len(1).for_each(work));
    }
    match chunks {
        0 | 1 => (0..chunks).for_each(work),
        _ => run(chunks, &work),
    }
}

/// Calls `work(i, piece)` on consecutive pieces of `data`, in parallel.
///
/// Each piece has `size` elements; the last may be shorter.
pub(crate) fn for_each_piece<T: Send>(data: &mut [T], size: usize, work: impl Fn(usize, &mut [T]) + Sync) {
    let (size, len) = (size.max(1), data.len());
    let data = Shared::new(data);
    for_each_chunk(len.div_ceil(size), |i| {
        // SAFETY: the pieces do not overlap.
        work(i, unsafe { data.slice(i * size..len.min((i + 1) * size)) });
    });
}

/// A mutable slice whose parts several threads write at the same time.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    _borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: all access goes through `slice`, whose callers keep their ranges apart; `T: Send` lets another thread write.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(data: &'a mut [T]) -> Self {
        Self { start: data.as_mut_ptr(), len: data.len(), _borrow: PhantomData }
    }

    /// Returns the elements `range`.
    ///
    /// # Safety
    /// Slices that are in use at the same time do not overlap.
    ///
    /// # Panics
    /// If the range is out of bounds.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: the range is in bounds, the data is borrowed for as long as `self`, and the caller keeps ranges apart.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_start_without_a_context_and_the_waiting_thread_gets_its_own_back() {
        let context = || {
            let context = replace_context(None);
            let value = context.as_ref().and_then(|context| context.downcast_ref::<u32>().copied());
            replace_context(context);
            value
        };
        replace_context(Some(Box::new(7u32)));
        for_each_chunk(50, |_| assert_eq!(context(), None));
        for_each_piece(&mut [0; 50], 1, |_, _| assert_eq!(context(), None));
        assert_eq!(context(), Some(7));
        let panicked = std::panic::catch_unwind(|| for_each_chunk(2, |_| panic!("on purpose")));
        assert!(panicked.is_err());
        assert_eq!(context(), Some(7));
        replace_context(None);
    }
}
