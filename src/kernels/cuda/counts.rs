//! Counts of the calls that threads make to the emulator, for tests.

/// The calls that a thread has made to the emulator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Launches of kernels and products, and copies within the device, also those that are part of a graph.
    pub launches: usize,
    /// Launches of graphs.
    pub graphs: usize,
    /// Graphs captured.
    pub captures: usize,
    /// Buffers allocated.
    pub allocations: usize,
    /// Bytes of these buffers.
    pub bytes: usize,
    /// Copies from the host to the device.
    pub to_device: usize,
    /// Copies from the device to the host.
    pub to_host: usize,
    /// Times that the host waited for the device.
    pub waits: usize,
}

impl Counts {
    /// The difference to an earlier count.
    #[cfg(feature = "cuda-emulator")]
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            launches: self.launches - before.launches,
            graphs: self.graphs - before.graphs,
            captures: self.captures - before.captures,
            allocations: self.allocations - before.allocations,
            bytes: self.bytes - before.bytes,
            to_device: self.to_device - before.to_device,
            to_host: self.to_host - before.to_host,
            waits: self.waits - before.waits,
        }
    }
}

thread_local! {
    static COUNTS: std::cell::Cell<Counts> = const { std::cell::Cell::new(Counts {
        launches: 0, graphs: 0, captures: 0, allocations: 0, bytes: 0, to_device: 0, to_host: 0, waits: 0,
    }) };
}

/// Changes the counts of this thread.
pub(super) fn count(change: impl FnOnce(&mut Counts)) {
    if cfg!(feature = "cuda-emulator") {
        let mut counts = COUNTS.get();
        change(&mut counts);
        COUNTS.set(counts);
    }
}

/// Returns what this thread has counted so far.
#[cfg(feature = "cuda-emulator")]
pub(crate) fn counts() -> Counts {
    COUNTS.get()
}
