//! CUDA kernels on the CPU, for tests (feature `cuda-emulator`).
//!
//! In a build with this feature, operations on CPU tensors run their CUDA kernels if they have any, compiled with g++.

pub use crate::kernels::cuda::Counts;
use crate::kernels::cuda::emulator::FAULT;
pub use crate::kernels::cuda::emulator::Fault;
use std::cell::Cell;

thread_local! {
    static IS_ON: Cell<bool> = const { Cell::new(true) };
}

pub(super) fn is_on() -> bool {
    IS_ON.get()
}

/// Runs `work` with the CPU kernels on this thread.
pub fn off<R>(work: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            IS_ON.set(self.0);
        }
    }
    let _restore = Restore(IS_ON.replace(false));
    work()
}

/// Runs `work` and counts its calls of the emulator on this thread.
pub fn count<R>(work: impl FnOnce() -> R) -> (R, Counts) {
    let before = crate::kernels::cuda::counts();
    let result = work();
    (result, crate::kernels::cuda::counts().since(before))
}

/// Runs `work` while the emulator fails at `fault` on this thread.
pub fn failing<R>(fault: Fault, work: impl FnOnce() -> R) -> R {
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            FAULT.set(None);
        }
    }
    let _restore = Restore;
    FAULT.set(Some(fault));
    work()
}
