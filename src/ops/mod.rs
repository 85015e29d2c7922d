//! Differentiable operations.
//!
//! ```
//! use candle_core::{Device, Result, Tensor, Var};
//! use candle_textbook::{ops, rng};
//!
//! fn main() -> Result<()> {
//!     let weight = Var::new(&[[1f32, 2.], [3., -4.]], &Device::Cpu)?;
//!     let xs = Tensor::new(&[[1f32, 1.]], &Device::Cpu)?;
//!     let ys = ops::relu(&ops::linear(&xs, &weight, None)?)?;
//!     assert_eq!(ys.to_vec2::<f32>()?, [[3., 0.]]);
//!     let gradients = ys.sum_all()?.backward()?;
//!     assert_eq!(gradients.get(&weight).unwrap().to_vec2::<f32>()?, [[1., 1.], [0., 0.]]);
//!
//!     // The mask is a function of the seed and the name.
//!     let drop = || ops::dropout(&ys, 0.5, &mut rng::stream(42, "dropout/step 7"))?.to_vec2::<f32>();
//!     assert_eq!(drop()?, drop()?);
//!     Ok(())
//! }
//! ```
//!
//! Kernels of this crate compute the results and the gradients in `f32` and `f64`, on the CPU and on CUDA devices. On
//! the CPU, other types are an error. On other devices an operation runs its definition in [`mod@reference`], which
//! consists of candle's own operations and which the kernels are tested against. Tensors may have any memory layout;
//! kernels work on a contiguous copy of a tensor that is not contiguous.

mod activation;
mod arguments;
mod attention;
mod autograd;
mod batch_norm;
mod concat;
mod conv2d;
mod conv_max_over_time;
mod conv_transpose2d;
mod dropout;
mod embedding;
#[cfg(feature = "cuda-emulator")]
pub mod emulator;
pub(crate) mod gpu;
pub(crate) mod host;
pub(crate) mod image_batch;
mod incremental;
mod linear;
mod linear_cross_entropy;
mod linear_tanh;
mod loss;
mod pool;
mod pool_over_time;
mod prepared_linear;
mod ranking;
mod recurrent;
pub mod reference;
mod row_gradients;
mod sequences;

pub use arguments::{
    BatchStatistics, Conv2dConfig, ConvFilters, Epilogue, Pool2dConfig, RecurrentState, RecurrentWeights,
    RunningAverages, TimePooling,
};
pub(crate) use arguments::{check_types, to_ids};

// The backward pass.
pub(crate) use autograd::{Finished, backward_with, is_native, part, reshape, sum};
pub use autograd::{backward, no_grad};
pub(crate) use concat::concat;
pub use row_gradients::{RowGradients, RowNumbers};

// Layers with weights.
pub use batch_norm::{batch_norm, batch_norm_training};
pub use conv_transpose2d::conv_transpose2d;
pub use conv2d::conv2d;
pub use embedding::{NO_ROW, embedding, embedding_mean};
pub use linear::linear;
pub use linear_cross_entropy::linear_cross_entropy;
pub(crate) use linear_tanh::linear_tanh;
pub use prepared_linear::PreparedLinear;

// Activations, pooling, dropout and losses.
pub use activation::{relu, sigmoid, tanh};
pub use dropout::dropout;
pub(crate) use dropout::dropout_in;
pub use loss::{quadratic, sigmoid_cross_entropy, softmax_cross_entropy};
pub(crate) use pool::max_pool2d_relu;
pub use pool::{avg_pool2d, l2_pool2d, max_pool2d};

// Sequences.
pub use crate::kernels::cpu::Cell;
pub(crate) use attention::attention_beside;
pub use attention::{QueryRows, attention};
pub use conv_max_over_time::{conv_max_over_time, conv_max_positions};
pub use incremental::IncrementalDecoder;
pub use pool_over_time::pool_over_time;
pub use ranking::top_log_probabilities;
pub(crate) use recurrent::recurrent_states;
pub use recurrent::{recurrent, recurrent_tokens};
pub(crate) use sequences::MaskPlace;
pub use sequences::PackedSequences;

use candle_core::{Error, Result};

/// Name of the instruction set that the CPU kernels use: `scalar`, `avx2`, `avx512` or `neon`.
///
/// It is the best that the processor has. The environment variable `CANDLE_TEXTBOOK_SIMD` forces another one, which
/// changes the speed but no result.
///
/// # Errors
/// Fails if the variable names an instruction set that is not available. The kernels then use the best one.
pub fn instruction_set() -> Result<&'static str> {
    crate::kernels::cpu::simd::instruction_set().map_err(Error::Msg)
}
