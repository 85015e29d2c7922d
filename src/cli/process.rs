//! Setting up the process: threads, memory and signals.

use crate::train::INTERRUPTED;
use anyhow::Result;
use std::sync::atomic::Ordering;

/// Calls `work` in a pool of `threads` threads, or one per physical core, with the process set up for training.
///
/// Call it at the start of `main`. Candle's own thread pool would compete with this one for the cores, so it is kept
/// at one thread through the environment. That is only sound while no other thread runs; if another one does, or if
/// the system can't tell, the environment stays as it is: set `CANDLE_NUM_THREADS=1` yourself then.
///
/// # Errors
/// Fails if `work` does, the threads can't be started, or `CANDLE_TEXTBOOK_SIMD` names an instruction set that is not
/// available.
pub fn on_threads<R: Send>(threads: Option<usize>, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    crate::ops::instruction_set()?;
    if is_only_thread() {
        // SAFETY: no other thread exists, so none reads or writes the environment during the call.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
        keep_memory();
    }
    let threads = threads.unwrap_or_else(candle_core::utils::get_num_threads);
    // All of the work runs inside the pool, so that no operation has to hand its share over to it first.
    rayon::ThreadPoolBuilder::new().num_threads(threads).build()?.install(work)
}

/// Whether the calling thread is certainly the only one of the process.
fn is_only_thread() -> bool {
    // Linux lists the threads of a process here; other systems have no such directory.
    std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1)
}

/// Makes the allocator keep freed memory: each training step asks for the same sizes again.
fn keep_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` only sets limits of the allocator. It must not run while other threads allocate; the caller has
    // checked that there are none.
    unsafe {
        // One arena, because those of other threads return memory all the same.
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 30);
    }
}

/// Makes Ctrl-C and TERM end the training loop after a checkpoint. A second signal ends the process at once.
pub(super) fn catch_interrupts() -> Result<()> {
    Ok(ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_stays_as_it_is_while_other_threads_run() {
        // The test harness runs this on a thread of its own.
        let before = std::env::var_os("CANDLE_NUM_THREADS");
        on_threads(Some(2), || Ok(())).unwrap();
        assert_eq!(std::env::var_os("CANDLE_NUM_THREADS"), before);
    }

    #[test]
    fn work_runs_on_the_number_of_threads_asked_for() {
        assert_eq!(on_threads(Some(3), || Ok(rayon::current_num_threads())).unwrap(), 3);
    }
}
