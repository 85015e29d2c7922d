//! How the kernels that run all time steps in one launch divide a layer.

use crate::ops::Cell;

/// The largest number of hidden units of a layer that runs in one launch.
///
/// A block of a larger layer would read most of its weights from the L2 cache in each step; a product is faster.
const MOST_HIDDEN: usize = 256;

/// The number of blocks that run side by side on a large GPU.
const BLOCKS: usize = 128;

/// How the kernels that run all steps divide a layer.
pub(super) struct Plan {
    /// The hidden units that the kernel is compiled for. A block has two threads for each.
    pub capacity: usize,
    /// Sequences of a block.
    pub rows: usize,
    pub forward: Weights,
    pub backward: Weights,
}

/// Where a thread keeps its weights, in chunks or vectors of the kernel; the rest is in global memory.
pub(super) struct Weights {
    pub registers: usize,
    pub shared: usize,
    /// Bytes of a block's shared memory.
    pub bytes: usize,
}

impl Plan {
    /// Plans the blocks of a layer of `sequences` in all directions. Returns `None` if a block cannot hold it.
    pub fn new<T>(cell: Cell, hidden: usize, sequences: usize, limit: usize) -> Option<Self> {
        let capacity = hidden.next_multiple_of(if hidden > 64 { 16 } else { 32 });
        let rows = match sequences.div_ceil(BLOCKS) {
            1 => 1,
            2 => 2,
            _ => 4,
        };
        let gates = cell.gates();
        let units_of_vector = if gates == 1 { 4 } else { 1 };
        let vectors = capacity.div_ceil(8 * units_of_vector);
        let states = 2 * rows * capacity * size_of::<T>();
        let gradients = 2 * rows * 8 * vectors * 4 * size_of::<T>();
        if capacity > MOST_HIDDEN || states.max(gradients) > limit {
            return None;
        }
        let weights = |pieces: usize, vectors: usize, buffers: usize| {
            let threads = 2 * capacity;
            let piece = vectors * 4 * size_of::<T>() * threads;
            let fit = (limit - buffers) / piece;
            // A multiprocessor gives its 65536 registers to 128 threads at a time. The kernel needs further
            // registers beside the weights', as ptxas shows; more of them if it reads weights from global memory.
            let limit = (65536 / threads.next_multiple_of(128)).min(255);
            let kept = |others: usize| match size_of::<T>() {
                4 => pieces.min(limit.saturating_sub(others) / (4 * vectors)),
                _ => 0,
            };
            let all = kept(if gates == 4 { 60 } else { 56 } + 7 * rows);
            let registers = if all + fit >= pieces { all } else { kept(56 + 14 * rows) };
            let shared = fit.min(pieces - registers);
            Weights { registers, shared, bytes: buffers + shared * piece }
        };
        let forward = weights(capacity / 16, 2 * gates, states);
        let backward = weights(vectors, if gates == 3 { 3 } else { 4 }, gradients);
        Some(Self { capacity, rows, forward, backward })
    }
}
