//! The arithmetic itself, on plain slices: no tensors, no graph, no errors.

pub(crate) mod cpu;
pub(crate) mod cuda;
