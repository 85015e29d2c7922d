#![doc = include_str!("../README.md")]

pub mod cli;
pub mod data;
pub mod device;
pub mod models;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod rng;
pub mod train;
