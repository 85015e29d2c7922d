use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Asks a training to stop. Clones share the request, so that a signal handler or another thread can make it.
///
/// [`Trainer::fit`](super::Trainer::fit) then finishes the current step, saves a checkpoint if there is a run folder, and
/// returns a [`Report`](super::Report) with `interrupted` set.
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
}
