//! Layers with candle_nn's names and signatures, and PyTorch's parameter names and initial values.
//!
//! # In place of candle_nn
//!
//! `use candle_textbook::nn as candle_nn;` compiles in a program for candle_nn. What this module does not replace, such as
//! `VarMap`, `func` and `seq`, it re-exports. An import cannot replace the methods of a tensor, of which these are wrong in
//! candle 0.11.1:
//!
//! | method | what is wrong | instead |
//! |---|---|---|
//! | `xs.max_pool2d(2)` | the gradient is divided by the size of the window; there is none if windows overlap | [`max_pool2d`]`(&xs, 2)`, [`max_pool2d_with_stride`] |
//! | `xs.avg_pool2d(2)` | wrong gradient if windows do not cover the image exactly, none if they overlap | [`avg_pool2d`]`(&xs, 2)`, [`avg_pool2d_with_stride`] |
//! | `xs.conv1d(&weight, ..)` | wrong gradient of the weight for several examples | [`Conv1d::new`]`(weight, None, config).forward(&xs)` |
//! | `xs.conv_transpose1d(&weight, ..)` | no gradient | [`ConvTranspose1d::new`]`(weight, None, config).forward(&xs)` |
//! | `xs.conv2d(&weight, ..)` | no gradient for images that are not square, with a stride | [`Conv2d::new`]`(weight, None, config).forward(&xs)` |
//! | `xs.upsample_nearest2d(h, w)`, also `1d` | the gradient replaces that of other uses of `xs` | `xs.affine(1.0, 0.0)?.upsample_nearest2d(h, w)` |
//! | `xs.relu()` | the gradient at 0 is 1, in PyTorch 0 | [`relu`]`(&xs)`, [`Activation::Relu`] |
//!
//! In f16 and bf16 the layers and functions of this module are candle's, so these gradients are as wrong there, except that of
//! `relu`; [`Recurrent`], [`Attention`] and [`ConvMaxOverTime`] refuse these types. In f32 and f64, kernels of this crate
//! compute them on the CPU and on CUDA. On Metal they consist of candle's operations, with the right gradients.
//!
//! Other differences:
//!
//! - Layers and optimizers are types of this crate. Where another crate takes candle_nn's, make one of the same parameters, as in
//!   `candle_nn::Linear::new(layer.weight().clone(), layer.bias().cloned())`. [`Activation`] converts with `into` and
//!   `try_into`, and a `match` on it also needs an arm for `Tanh`.
//! - Initial values are PyTorch's; candle_nn's linear layers and convolutions start from larger ones.
//! - Candle's attention functions, which this module re-exports ([`flash_attn`](attention::flash_attn) and [`ops::sdpa`]), have no
//!   gradient, and no error says so: train with [`ops::softmax_last_dim`] and `matmul`.
//! - `loss.backward()` works, but `Optimizer::backward_step` is faster.
//! - Candle's thread pool competes with the one that this crate uses: set `CANDLE_NUM_THREADS=1`.
//!
//! The [crate page](crate#layers) lists what differs layer by layer.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use candle_textbook::nn as candle_nn;
//! use candle_nn::{AdamW, Conv2dConfig, Module, Optimizer, VarBuilder, VarMap};
//!
//! fn main() -> candle_core::Result<()> {
//!     let vars = VarMap::new();
//!     let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
//!     let conv = candle_nn::conv2d(1, 4, 3, Conv2dConfig { padding: 1, ..Default::default() }, vb.pp("conv"))?;
//!     let output = candle_nn::linear(4 * 4 * 4, 10, vb.pp("output"))?;
//!     let mut optimizer = AdamW::new_lr(vars.all_vars(), 1e-3)?;
//!
//!     let images = Tensor::ones((2, 1, 8, 8), DType::F32, &Device::Cpu)?;
//!     let maps = candle_nn::max_pool2d(&images.apply(&conv)?.relu()?, 2)?;
//!     let logits = output.forward(&maps.flatten_from(1)?)?;
//!     let loss = candle_nn::loss::cross_entropy(&logits, &Tensor::new(&[3u32, 7], &Device::Cpu)?)?;
//!     optimizer.backward_step(&loss)?;
//!     Ok(())
//! }
//! ```
//!
//! # Models
//!
//! A constructor such as [`linear()`] takes its parameters from a `VarBuilder`. A layer that behaves the same in training
//! and evaluation is a [`candle_core::Module`], so a model is a chain of `xs.apply(&layer)`. Any other layer takes a
//! [`Mode`], such as [`Dropout::forward_at`], or candle_nn's `train: bool`, such as
//! [`BatchNorm::forward_t`](candle_nn::ModuleT::forward_t), which is `mode.is_training()`.
//!
//! [`Model`] and [`SentenceModel`] are what [`train`](crate::train) trains.

pub mod activation;
mod attention_layer;
pub mod batch_norm;
pub mod conv;
mod conv_layer;
mod conv_max_over_time;
mod conv_transpose;
mod cost;
mod dropout;
pub mod embedding;
pub mod group_norm;
mod initial_values;
pub mod layer_norm;
pub mod linear;
pub mod loss;
pub mod ops;
mod pool;
mod recurrent;
pub mod rnn;
pub mod rotary_emb;
mod token_sampling;

/// Optimizers with candle_nn's interface. [`crate::optim`] has more methods, saved state, schedules and clipping.
pub mod optim {
    pub use crate::optim::{AdamW, SGD};
    pub use candle_nn::optim::{Optimizer, ParamsAdamW};
}

// Everything that the names below do not replace.
pub use candle_nn::*;

pub use crate::ops::{
    Cell, Epilogue, IncrementalDecoder, PackedSequences, Pool2dConfig, QueryRows, RecurrentState,
    TimePooling, pool_over_time,
};
pub use activation::{Activation, PReLU, prelu, relu};
pub use attention_layer::{Attention, AttentionLayer, AttentionMemory, attention};
pub use batch_norm::{BatchNorm, BatchNormConfig, batch_norm};
pub use conv::{
    Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d, conv_transpose1d, conv_transpose1d_no_bias,
    conv_transpose2d, conv_transpose2d_no_bias, conv1d, conv1d_no_bias, conv2d, conv2d_no_bias,
    conv2d_no_bias_with,
};
pub use conv_max_over_time::{ConvMaxOverTime, conv_max_over_time};
pub use cost::Cost;
pub use dropout::Dropout;
pub(crate) use dropout::of_share;
pub use embedding::{Embedding, WORD_VECTOR_INIT, embedding, embedding_with};
pub use group_norm::{GroupNorm, group_norm};
pub use initial_values::{InitScheme, count_parameters, seeded_var_builder};
pub use layer_norm::{LayerNorm, RmsNorm, layer_norm, layer_norm_no_bias, rms_norm};
pub use linear::{Linear, linear, linear_b, linear_no_bias, linear_with};
pub use optim::{AdamW, SGD};
pub use pool::{Pool2d, Pooling, avg_pool2d, avg_pool2d_with_stride, max_pool2d, max_pool2d_with_stride};
pub use recurrent::{Recurrent, RecurrentConfig, TokenProjection, recurrent};
pub use rnn::{GRU, LSTM, gru, lstm};
pub use token_sampling::Sampling;

use candle_core::{DType, Result, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// Whether a forward pass trains or evaluates, and the place in training.
///
/// Every random draw of a training step (dropout masks, augmentation) is a function of `seed`, of the place in training
/// and of its purpose. A resumed run therefore draws the same values as an uninterrupted one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Training: dropout is active, batch normalisation uses the statistics of the batch.
    Train {
        /// Seed of all random draws.
        seed: u64,
        /// Current epoch, from 0.
        epoch: usize,
        /// Current step, from 0 at the start of training.
        step: u64,
        /// The examples of the batch that this pass computes; `None` for all.
        share: Option<Share>,
    },
    /// Evaluation: no randomness, running statistics.
    Evaluate,
}

/// Consecutive examples of a batch, which one of several processes computes.
///
/// They draw the same random values as in a pass over the whole batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// First example.
    pub start: usize,
    /// Number of examples.
    pub len: usize,
    /// Number of examples of the whole batch.
    pub batch: usize,
}

impl Mode {
    /// Training on a whole batch.
    pub const fn train(seed: u64, epoch: usize, step: u64) -> Self {
        Self::Train { seed, epoch, step, share: None }
    }

    /// Whether the forward pass trains.
    pub fn is_training(self) -> bool {
        matches!(self, Self::Train { .. })
    }

    /// The examples that the pass computes, of a batch of `len`.
    pub fn examples(self, len: usize) -> Range<usize> {
        match self {
            Self::Train { share: Some(Share { start, len, .. }), .. } => start..start + len,
            _ => 0..len,
        }
    }
}

/// Whether this crate's operations support the tensor's type. Candle's layers handle all others.
fn is_native(xs: &Tensor) -> bool {
    matches!(xs.dtype(), DType::F32 | DType::F64)
}

/// A classifier: maps a batch to one row of logits per example.
pub trait Model {
    /// Computes logits `(batch, classes)` of `xs` `(batch, ..)`. The model defines the shape of an example.
    ///
    /// # Errors
    /// Fails if `xs` does not fit the model.
    fn forward(&self, xs: &Tensor, mode: Mode) -> Result<Tensor>;
}

/// A model of sentences: classifies whole sentences, or tags each of their words.
pub trait SentenceModel {
    /// Computes logits, one row per sentence or per word.
    ///
    /// `words` `(rows)` holds u32 word ids, packed as `sentences` describes.
    ///
    /// # Errors
    /// Fails if an id is outside the vocabulary, or shapes do not fit.
    fn forward(&self, words: &Tensor, sentences: &Arc<PackedSequences>, mode: Mode) -> Result<Tensor>;

    /// The word vectors.
    fn embedding(&self) -> &Embedding;

    /// The words that contribute to each sentence's logits; empty if the model cannot attribute them.
    ///
    /// # Errors
    /// Fails if [`forward`](Self::forward) would.
    fn attributions(
        &self,
        _words: &Tensor,
        _sentences: &Arc<PackedSequences>,
    ) -> Result<Vec<Vec<Attribution>>> {
        Ok(vec![])
    }
}

/// The contribution of consecutive words of a sentence, or of other features, to its logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Attribution {
    /// Indices of the words in the sentence.
    pub words: Range<usize>,
    /// The amount that they add to the logit of each class.
    pub logits: Vec<f32>,
}
