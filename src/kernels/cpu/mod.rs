//! CPU kernels: functions on slices of `f32` or `f64`, vectorised and spread over the thread pool.

pub(crate) mod attention;
pub(crate) mod batch_norm;
pub(crate) mod cells;
pub(crate) mod conv2d;
pub(crate) mod conv_max_over_time;
pub(crate) mod decoder;
pub(crate) mod dropout;
pub(crate) mod elementwise;
pub(crate) mod embedding;
pub(crate) mod linear;
pub(crate) mod loss;
pub(crate) mod matmul;
pub(crate) mod memory;
pub(crate) mod optimizer;
pub(crate) mod parallel;
pub(crate) mod planes;
pub(crate) mod pool;
pub(crate) mod pool_over_time;
pub(crate) mod products;
pub(crate) mod ranking;
pub(crate) mod real;
pub(crate) mod recurrent;
pub(crate) mod recurrent_gradient;
pub(crate) mod sequences;
pub(crate) mod simd;
pub(crate) mod winograd;

pub use cells::Cell;
pub(crate) use real::Real;
pub(crate) use simd::Lanes;
