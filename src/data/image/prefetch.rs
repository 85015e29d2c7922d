//! Loading batches in the background.

use anyhow::Result;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};

/// Batches in order, loaded on another thread ahead of their use.
///
/// At most two batches are ready or being loaded, in addition to the one in use.
#[derive(Debug)]
pub(super) struct Prefetch<T> {
    loaded: Receiver<Result<T>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Prefetch<T> {
    /// Starts to `load` the `batches`, and stops at the first that fails.
    ///
    /// Parallel work in `load` runs on its own rayon pool, with as many threads as the caller's. It must not run on the
    /// caller's pool: a worker that blocks in [`next`](Self::next) would wait for work that only it could do.
    ///
    /// # Errors
    /// Fails if a thread can't be started.
    pub fn new<B, L>(batches: B, mut load: L) -> Result<Self>
    where
        B: IntoIterator<Item: Send> + Send + 'static,
        L: FnMut(B::Item) -> Result<T> + Send + 'static,
    {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(rayon::current_num_threads()).build()?;
        let (sender, loaded) = sync_channel(1);
        let thread = thread::Builder::new().spawn(move || {
            for batch in batches {
                let batch = pool.install(|| load(batch));
                let failed = batch.is_err();
                if sender.send(batch).is_err() || failed {
                    break;
                }
            }
        })?;
        Ok(Self { loaded, thread: Some(thread) })
    }
}

impl<T> Iterator for Prefetch<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Ok(batch) = self.loaded.recv() {
            return Some(batch);
        }
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
            std::panic::resume_unwind(panic);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::Prefetch;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn batches_come_in_order_and_at_most_two_ahead() {
        let loaded = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&loaded);
        let batches = Prefetch::new(0..20, move |batch| {
            counter.fetch_add(1, Ordering::SeqCst);
            Ok(batch)
        });
        while loaded.load(Ordering::SeqCst) < 2 {
            std::thread::yield_now();
        }
        let mut used = 0;
        for batch in batches.unwrap() {
            assert_eq!(batch.unwrap(), used);
            used += 1;
            assert!(loaded.load(Ordering::SeqCst) <= used + 2);
        }
        assert_eq!(used, 20);
    }

    #[test]
    fn loading_ends_at_the_first_failure() {
        let load = |batch| if batch == 3 { anyhow::bail!("no batch 3") } else { Ok(batch) };
        let results: Vec<_> = Prefetch::new(0..20, load).unwrap().map(|batch| batch.ok()).collect();
        assert_eq!(results, [Some(0), Some(1), Some(2), None]);
    }

    #[test]
    fn loading_uses_as_many_threads_as_the_callers_pool() {
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let load = |()| Ok(rayon::current_num_threads());
            let batches = pool.install(|| Prefetch::new([()], load)).unwrap();
            assert_eq!(batches.map(Result::unwrap).collect::<Vec<_>>(), [threads]);
        }
    }
}
