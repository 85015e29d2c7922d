//! Setting up the process: threads, memory and signals.

use super::together;
use crate::data::count;
use crate::train::Stop;
use anyhow::{Result, anyhow};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

/// Sets up the process for training, and calls `work` in a pool of `threads` threads.
///
/// By default there is one thread per physical core.
///
/// Call it at the start of `main`. Candle's own thread pool would compete with this one for the cores, so it is kept at
/// one thread through the environment. Except on Windows, that is sound only while no other thread runs. If another one
/// runs, or if the system can't tell, the environment is not changed: set `CANDLE_NUM_THREADS=1` yourself then.
///
/// # Errors
/// Fails if `work` does, the threads can't be started, or `CANDLE_TEXTBOOK_SIMD` names an instruction set that is not
/// available.
pub fn on_threads<R: Send>(threads: Option<usize>, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    // All of the work runs inside the pool, so that no operation has to move its share there first.
    set_up(threads)?.install(work)
}

/// Sets up the process, and starts the threads.
fn set_up(threads: Option<usize>) -> Result<ThreadPool> {
    crate::ops::instruction_set()?;
    if cfg!(windows) || is_only_thread() {
        // SAFETY: Windows allows it at any time. Elsewhere no other thread exists, so none reads or writes the environment
        // during the call.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
        keep_memory();
    }
    let threads = threads.unwrap_or_else(candle_core::utils::get_num_threads);
    let pool = ThreadPoolBuilder::new().num_threads(threads).stack_size(STACK).build();
    pool.map_err(|error| anyhow!("{}: can't be started: {error}", count(threads, "thread")))
}

/// Size of a thread's stack. Candle walks through the graph of a network recursively.
const STACK: usize = 16 << 20;

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
        // Use one arena, because the arenas of other threads return memory regardless.
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 30);
    }
}

/// The request that the first signal makes.
pub static STOP: LazyLock<Stop> = LazyLock::new(Stop::default);

/// The last action when the first signal ends the process immediately; `None` in a training loop.
static LAST_ACT: Mutex<Option<Box<dyn FnOnce() + Send>>> = Mutex::new(None);

/// Makes a write beyond the file size limit (`ulimit -f`) fail instead of ending the process.
pub(super) fn let_large_writes_fail() {
    #[cfg(unix)]
    // SAFETY: to ignore a signal runs no code of ours when it arrives.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// The exit code of a process that a signal has stopped: 128 plus the signal's number, as in shells.
pub(super) fn interrupted_code() -> u8 {
    128 + SIGNAL.load(Ordering::Relaxed)
}

/// The first signal that asked the process to stop, or Ctrl-C's number if there was none.
static SIGNAL: AtomicU8 = AtomicU8::new(2);

/// Makes Ctrl-C, TERM and HUP end the training loop after a checkpoint. A second signal ends the process immediately.
///
/// A signal that was ignored when the process started, such as HUP under `nohup`, stays ignored.
///
/// # Errors
/// Fails if the system refuses, or signals are caught already.
pub fn catch_interrupts() -> Result<()> {
    // A signal handler must not be the first to use it.
    LazyLock::force(&STOP);
    #[cfg(unix)]
    let (ignored, caught): (Vec<libc::c_int>, Vec<_>) =
        [libc::SIGINT, libc::SIGTERM, libc::SIGHUP].into_iter().partition(|&signal| is_ignored(signal));
    ctrlc::set_handler(|| {
        let mut last_act = LAST_ACT.lock().unwrap_or_else(PoisonError::into_inner);
        let is_second = STOP.request();
        let last_act = last_act.take();
        if is_second || last_act.is_some() {
            let report = || last_act.into_iter().for_each(|act| act());
            together::end_all(report, interrupted_code());
        }
    })?;
    #[cfg(unix)]
    for signal in ignored {
        // SAFETY: to ignore a signal runs no code of ours when it arrives.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    #[cfg(unix)]
    caught.into_iter().for_each(note_signal);
    Ok(())
}

/// The handler of `ctrlc`, which does not tell signals apart.
#[cfg(unix)]
static HANDLER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

/// Makes `signal` record its number before its handler runs.
#[cfg(unix)]
fn note_signal(signal: libc::c_int) {
    extern "C" fn receive(signal: libc::c_int) {
        if !STOP.is_requested() {
            SIGNAL.store(signal as u8, Ordering::Relaxed);
        }
        // SAFETY: `note_signal` has stored the handler that the signal had, which takes the number alone.
        let handler: extern "C" fn(libc::c_int) =
            unsafe { std::mem::transmute(HANDLER.load(Ordering::Relaxed)) };
        handler(signal);
    }
    let Some(mut action) = action(signal).filter(|action| action.sa_flags & libc::SA_SIGINFO == 0) else {
        return;
    };
    HANDLER.store(action.sa_sigaction, Ordering::Relaxed);
    action.sa_sigaction = receive as *const () as usize;
    // SAFETY: `action` is complete, and `receive` touches nothing but atomics before it runs the handler that was there.
    unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) };
}

#[cfg(unix)]
fn is_ignored(signal: libc::c_int) -> bool {
    action(signal).is_some_and(|action| action.sa_sigaction == libc::SIG_IGN)
}

/// The current action of the process for the signal.
#[cfg(unix)]
fn action(signal: libc::c_int) -> Option<libc::sigaction> {
    // SAFETY: all-zero bytes are a valid `sigaction`, and with a null pointer for the new action the call only writes the
    // current one to it.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        (libc::sigaction(signal, std::ptr::null(), &mut action) == 0).then_some(action)
    }
}

/// Calls `work`, during which a signal calls `last_act` and ends the process immediately.
///
/// Returns `None` if a signal has come before. Call [`catch_interrupts`] first.
pub fn end_at_once<T>(last_act: impl FnOnce() + Send + 'static, work: impl FnOnce() -> T) -> Option<T> {
    ending_at_once(last_act, || (!STOP.is_requested()).then(work))
}

/// Calls `work`, during which a signal calls `last_act` and ends the process immediately.
///
/// The processes that this one works with end, too. Unlike [`end_at_once`], it ignores a signal that came before.
pub(super) fn ending_at_once<T>(last_act: impl FnOnce() + Send + 'static, work: impl FnOnce() -> T) -> T {
    let set = |act| *LAST_ACT.lock().unwrap_or_else(PoisonError::into_inner) = act;
    set(Some(Box::new(last_act)));
    let result = work();
    set(None);
    result
}

/// Calls `work`, during which a signal ends the process immediately.
///
/// Before the first training step there is nothing to save.
pub(super) fn prepare<T>(work: impl FnOnce() -> T) -> T {
    let report = || together::report("interrupted before training began", super::complain);
    end_at_once(report, work).unwrap_or_else(|| together::end_all(report, interrupted_code()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_stays_as_it_is_while_other_threads_run() {
        // The test harness runs this on a separate thread.
        let before = std::env::var_os("CANDLE_NUM_THREADS");
        on_threads(Some(2), || Ok(())).unwrap();
        assert_eq!(std::env::var_os("CANDLE_NUM_THREADS"), before);
    }

    #[test]
    fn work_runs_on_the_number_of_threads_asked_for() {
        assert_eq!(on_threads(Some(3), || Ok(rayon::current_num_threads())).unwrap(), 3);
    }
}
