use crate::kernels::cpu::parallel;
use crate::processes::{self, Processes};
use anyhow::{Result, ensure};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Asks a training run to stop. Clones share the request, so a signal handler or another thread can make it.
///
/// [`Trainer::fit`](super::Trainer::fit) then finishes the current step or abandons the validation, saves a checkpoint
/// if there is a run folder, and returns a [`Report`](super::Report) with `interrupted` set.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

/// The request that ends the work of a thread.
#[derive(Clone)]
struct Current {
    stop: Stop,
    /// When several processes last agreed on it.
    agreed: Instant,
}

/// How long several processes work at least before they agree again, because each then waits for the slowest.
const AGREE_AFTER: Duration = Duration::from_secs(1);

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
    ///
    /// If `work` runs on several processes, the request of one of them ends it on all.
    pub(super) fn interrupting<T>(&self, work: impl FnOnce() -> Result<T>) -> Option<Result<T>> {
        match parallel::with_local(Current { stop: self.clone(), agreed: Instant::now() }, work) {
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
///
/// Processes that work [`together`](processes::together) need not call this equally often, but each calls [`finish`] after
/// its last call.
pub(super) fn check() -> Result<()> {
    let Some(Current { stop, agreed }) = parallel::local() else { return Ok(()) };
    match processes::current() {
        None => ensure!(!stop.is_requested(), Stopped),
        Some(processes) if agreed.elapsed() >= AGREE_AFTER => drop(agree(&*processes, &stop, true)?),
        Some(_) => {}
    }
    Ok(())
}

/// Waits for the parts of a work that the other processes compute, and fails if one of them has been asked to stop.
pub(super) fn finish() -> Result<()> {
    let (Some(Current { stop, .. }), Some(processes)) = (parallel::local(), processes::current()) else {
        return Ok(());
    };
    while agree(&*processes, &stop, false)? {}
    Ok(())
}

/// Fails on all processes if one of them has been asked to stop; returns whether one `is_working`.
fn agree(processes: &dyn Processes, stop: &Stop, is_working: bool) -> Result<bool> {
    let all = processes.gather(&[stop.is_requested(), is_working].map(u8::from))?;
    parallel::replace_local(Some(Box::new(Current { stop: stop.clone(), agreed: Instant::now() })));
    let any = |at: usize| all.iter().any(|one| one.get(at) == Some(&1));
    ensure!(!any(0), Stopped);
    Ok(any(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processes::{threads, together};

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

    #[test]
    fn a_request_to_one_process_ends_the_work_of_all() {
        // What each of three processes does: 0 has ended its part, 1 is asked to stop, 2 is in the middle of its part.
        let work = |processes: &Arc<dyn Processes>| {
            let stop = Stop::default();
            let results = [false, true].map(|asks| {
                stop.interrupting(|| {
                    together(processes, || {
                        for step in 0.. {
                            check()?;
                            match processes.rank() {
                                0 => break,
                                1 if asks && step == 5 => drop(stop.request()),
                                _ if !asks && step == 10 => break,
                                _ => std::thread::sleep(Duration::from_millis(1)),
                            }
                        }
                        finish()
                    })
                })
            });
            results.map(|result| result.map(Result::unwrap))
        };
        std::thread::scope(|scope| {
            let running: Vec<_> =
                threads(3).into_iter().map(|processes| scope.spawn(move || work(&processes))).collect();
            for thread in running {
                assert_eq!(thread.join().unwrap(), [Some(()), None]);
            }
        });
    }
}
