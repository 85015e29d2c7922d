//! The allocator of the programs, which reports a lack of memory as an error.

use super::memory;
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};

/// The system's allocator for programs: one that reaches the limit of its address space (`ulimit -v`) ends with an error line
/// and exit code 1, where Rust would abort it.
///
/// [`allocator!`](crate::allocator) declares it.
pub struct Allocator;

// SAFETY: every call goes to the system's allocator, whose results are returned.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: both have the same contract.
        checked(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: both have the same contract.
        checked(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: both have the same contract.
        checked(unsafe { System.realloc(memory, layout, size) }, size)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: both have the same contract.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Returns `memory`, the answer to a request for `size` bytes. If it is null, the process may end.
#[inline]
fn checked(memory: *mut u8, size: usize) -> *mut u8 {
    if memory.is_null() { refused(size) } else { memory }
}

/// Ends the process, without taking memory, if the request for `size` bytes is smaller than the limit.
///
/// A larger one is most often the size of a file, whose reader reports the error with the file's name.
#[cold]
fn refused(size: usize) -> *mut u8 {
    static IS_REPORTED: AtomicBool = AtomicBool::new(false);
    if memory::address_space().is_none_or(|limit| size as u64 > limit) {
        return null_mut();
    }
    // Several threads may run out of memory at the same time.
    while IS_REPORTED.swap(true, Ordering::Relaxed) {
        std::thread::park();
    }
    let mut line = [0; 200];
    let mut rest = &mut line[..];
    let _ = writeln!(
        rest,
        "error: out of memory: {size} more bytes exceed its limit: choose a smaller model or batch, or raise the limit \
         (ulimit -v)"
    );
    let length = 200 - rest.len();
    let _ = std::io::stderr().write_all(&line[..length]);
    #[cfg(unix)]
    // SAFETY: it ends the process without running any code of it.
    unsafe {
        libc::_exit(1)
    }
    #[cfg(not(unix))]
    null_mut()
}

/// Makes [`cli::Allocator`](crate::cli::Allocator) the allocator of a program.
///
/// With the feature `playground`, only the binary of that name has it: the other programs are modules of it, and an executable
/// declares one allocator.
#[cfg(not(feature = "playground"))]
#[macro_export]
macro_rules! allocator {
    () => {
        #[global_allocator]
        static ALLOCATOR: $crate::cli::Allocator = $crate::cli::Allocator;
    };
}

#[cfg(feature = "playground")]
#[doc(hidden)]
#[macro_export]
macro_rules! allocator {
    () => {};
}
