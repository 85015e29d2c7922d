//! Training.

pub mod pictures;
