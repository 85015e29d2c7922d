//! Work on several threads.
//!
//! Everything runs on the rayon pool of the calling thread: the global pool, or the pool that the program entered with
//! `ThreadPool::install`, which saves the hop from the main thread to the pool in every operation. Candle's own pool is
//! unsuitable: it waits in each operation until every thread has answered, which takes a hundred times longer than the
//! work itself on a busy machine. Keep candle's pool at one thread with `CANDLE_NUM_THREADS=1`, so that the two pools
//! do not compete for the cores.
//!
//! Where partial sums are added, the size of the problem alone determines the chunks, never the number of threads, and
//! the sums are added in the order of their chunks. Results are therefore equal to the bit for any number of threads.
//!
//! # State of a thread
//!
//! A thread of the pool that waits for its chunks runs other jobs meanwhile, deep inside the operation that waits. State
//! in plain thread-locals would leak into those jobs. State is therefore kept with [`replace_local`], and every function
//! here sets all of it aside while it waits: a job always starts without any.

use rayon::prelude::*;
use std::any::Any;
use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;

/// Values of different types.
type Locals = Vec<Box<dyn Any>>;

thread_local! {
    static LOCALS: Cell<Locals> = const { Cell::new(vec![]) };
}

/// Stores `value` for the current thread, and returns the value of this type that it had.
///
/// A thread has no values any more while its thread-locals are being destroyed.
pub(crate) fn replace_local<T: 'static>(value: Option<Box<T>>) -> Option<Box<T>> {
    let replace = |locals: &Cell<Locals>| {
        let mut values = locals.take();
        let before = values.iter().position(|value| value.is::<T>()).map(|index| values.swap_remove(index));
        values.extend(value.map(|value| value as Box<dyn Any>));
        locals.set(values);
        before.and_then(|before| before.downcast().ok())
    };
    LOCALS.try_with(replace).unwrap_or(None)
}

/// Returns a copy of the current thread's value of this type.
pub(crate) fn local<T: Clone + 'static>() -> Option<T> {
    let value = replace_local::<T>(None)?;
    let copy = T::clone(&value);
    replace_local(Some(value));
    Some(copy)
}

/// Runs `work` with `value` as the current thread's value of its type.
pub(crate) fn with_local<T: 'static, R>(value: T, work: impl FnOnce() -> R) -> R {
    struct Restore<T: 'static>(Option<Box<T>>);
    impl<T> Drop for Restore<T> {
        fn drop(&mut self) {
            replace_local(self.0.take());
        }
    }
    let _restore = Restore(replace_local(Some(Box::new(value))));
    work()
}

/// Runs `work`, which may wait for the pool, without the current thread's values.
fn without_locals<R>(work: impl FnOnce() -> R) -> R {
    struct Restore(Locals);
    impl Drop for Restore {
        fn drop(&mut self) {
            LOCALS.set(std::mem::take(&mut self.0));
        }
    }
    let _restore = Restore(LOCALS.take());
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
        without_locals(|| (0..chunks).into_par_iter().with_max_len(1).for_each(work));
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
    fn jobs_start_without_the_values_of_the_waiting_thread_which_gets_them_back() {
        let values = || (local::<u32>(), local::<&str>());
        with_local(7u32, || {
            with_local("seven", || {
                for_each_chunk(50, |_| assert_eq!(values(), (None, None)));
                for_each_piece(&mut [0; 50], 1, |_, _| assert_eq!(values(), (None, None)));
                assert_eq!(values(), (Some(7), Some("seven")));
                let panicked = std::panic::catch_unwind(|| for_each_chunk(2, |_| panic!("on purpose")));
                assert!(panicked.is_err());
                assert_eq!(with_local(8u32, values), (Some(8), Some("seven")));
            });
            assert_eq!(values(), (Some(7), None));
        });
        assert_eq!(values(), (None, None));
    }
}
