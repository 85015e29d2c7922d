//! Differentiable operations.
//!
//! Each has two forms: on the CPU a kernel of our own with its gradient (f32 and f64), on every other device the
//! form in [`mod@reference`], which is written with candle's own operations and is also what the kernels are tested
//! against. Tensors may be laid out in any way; a kernel takes a contiguous copy of one that is not.

mod activation;
mod autograd;
mod batch_norm;
mod conv2d;
mod conv_max_over_time;
mod dropout;
mod embedding;
pub(crate) mod host;
mod incremental;
mod linear;
mod loss;

mod pool;
mod pool_over_time;
mod recurrent;
pub mod reference;
mod sequences;

pub use crate::kernels::cpu::Cell;
pub use activation::{relu, sigmoid, tanh};
pub use autograd::no_grad;
pub use batch_norm::{BatchStatistics, Epilogue, batch_norm};
pub use conv_max_over_time::{ConvFilters, conv_max_over_time, conv_max_positions};
pub use conv2d::{Conv2dConfig, conv2d};
pub use dropout::dropout;
pub use embedding::{RowGradients, backward, embedding, embedding_mean};
pub use incremental::IncrementalDecoder;
pub use linear::linear;
pub use loss::{quadratic, sigmoid_cross_entropy, softmax_cross_entropy};
pub use pool::{Pool2dConfig, avg_pool2d, l2_pool2d, max_pool2d};
pub use pool_over_time::{TimePooling, pool_over_time};
pub use recurrent::{RecurrentState, RecurrentWeights, recurrent, recurrent_tokens};
pub use sequences::PackedSequences;
