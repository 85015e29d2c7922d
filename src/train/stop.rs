use crate::kernels::cpu::parallel;
use anyhow::{Result, ensure};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Asks a training run to stop. Clones share the request, so a signal handler or another thread can make it.
///
/// [`Trainer::fit`](super::Trainer::fit) then finishes the current step or abandons the validation, saves a checkpoint
/// if there is a run folder, and returns a [`Report`](super::Report) with `interrupted` set.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Makes the request, and returns whether it was made before.
    pub fn request(&self) -> bool {
        self.0.swap(true, Ordering::Relaxed)
    }

    /// Whether the request was made.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Calls `work`, which [`check`] ends if the request is made; returns `None` in that case.
    pub(super) fn interrupting<T>(&self, work: impl FnOnce() -> Result<T>) -> Option<Result<T>> {
        match parallel::with_local(self.clone(), work) {
            Err(error) if error.is::<Stopped>() => None,
            result => Some(result),
        }
    }
}

/// The error that ends work early.
#[derive(Debug)]
struct Stopped;

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Stopped {}

/// Fails if this thread's work has been asked to stop.
pub(super) fn check() -> Result<()> {
    ensure!(!parallel::local().is_some_and(|stop: Stop| stop.is_requested()), Stopped);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_ends_the_work_at_its_next_check() {
        let stop = Stop::default();
        assert_eq!(stop.interrupting(|| check().map(|()| 1)).unwrap().unwrap(), 1);
        let mut steps = 0;
        let ended = stop.interrupting(|| {
            for step in 1.. {
                steps = step;
                if step == 3 {
                    stop.request();
                }
                check()?;
            }
            Ok(())
        });
        assert!(ended.is_none() && steps == 3);
        // Other work continues.
        check().unwrap();
        assert!(stop.interrupting(|| anyhow::bail!("x") as Result<()>).unwrap().is_err());
    }
}
