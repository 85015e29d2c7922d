//! Differentiable operations.
//!
//! Each has two forms: on the CPU a kernel of our own with its gradient (f32 and f64), on every other device the
//! form in [`mod@reference`], which is written with candle's own operations and is also what the kernels are tested
//! against. Tensors may be laid out in any way; a kernel takes a contiguous copy of one that is not.

mod activation;
mod batch_norm;
mod cells;
mod conv2d;
mod conv_max;
mod dropout;
mod embedding;
mod host;
mod linear;
mod loss;
mod matmul;
mod operation;
mod over_time;
pub(crate) mod parallel;
mod planes;
mod pool;
mod recurrent;
pub mod reference;
mod sequences;
mod simd;
mod steps;
mod winograd;

pub use activation::{relu, sigmoid, tanh};
pub use batch_norm::{Moments, Then, batch_norm};
pub use cells::Cell;
pub use conv_max::{Filters, conv_max, conv_winners};
pub use conv2d::{Conv2dGeometry, conv2d};
pub use dropout::dropout;
pub use embedding::{RowGradients, backward, embedding, embedding_mean};
pub use linear::linear;
pub use loss::{quadratic, sigmoid_cross_entropy, softmax_cross_entropy};
pub use operation::without_gradients;
pub use over_time::{OverTime, over_time};
pub use pool::{Window, avg_pool2d, l2_pool2d, max_pool2d};
pub use recurrent::{State, Weights, recurrent, recurrent_tokens};
pub use sequences::Sequences;
pub use steps::Steps;
