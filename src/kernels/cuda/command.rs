//! Work for a device.

#[cfg(feature = "cuda")]
use super::driver;
#[cfg(feature = "cuda-emulator")]
use super::emulator;
use super::{Arg, Grid, Product};

/// Work for a device.
#[derive(Clone, PartialEq)]
pub(crate) enum Command {
    Launch { function: Function, name: &'static str, grid: Grid, args: Vec<Arg> },
    ProductF32(Product<f32>),
    ProductF64(Product<f64>),
    Copy { from: u64, to: u64, bytes: usize },
    Clear { at: u64, bytes: usize },
}

/// A compiled kernel.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Function {
    #[cfg(feature = "cuda-emulator")]
    Emulated(emulator::Entry),
    #[cfg(feature = "cuda")]
    Gpu(driver::Function),
}
