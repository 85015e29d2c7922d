#![doc = include_str!("../README.md")]
#![deny(missing_docs, clippy::undocumented_unsafe_blocks, unsafe_op_in_unsafe_fn)]

#[cfg(feature = "cli")]
pub mod cli;
pub mod data;
pub mod device;
mod kernels;
#[cfg(feature = "plots")]
pub mod lab;
pub mod models;
pub mod nn;
pub mod ops;
pub mod optim;
#[cfg(feature = "plots")]
pub mod plots;
pub mod rng;
pub mod train;
