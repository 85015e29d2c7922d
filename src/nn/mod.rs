//! Layers that candle_nn lacks, gets wrong or runs slowly, with PyTorch's parameter names and initial values.
//!
//! A constructor such as [`linear`] takes its parameters from a `VarBuilder`. A layer that behaves the same in training
//! and evaluation is a [`candle_core::Module`], so a model is a chain of `xs.apply(&layer)`; any other layer takes a
//! [`Mode`].
//!
//! [`Model`] and [`SentenceModel`] are what [`train`](crate::train) trains.

pub mod activation;
mod attention_layer;
pub mod batch_norm;
pub mod conv;
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
pub mod optim;
mod pool;
mod recurrent;
pub mod rnn;
pub mod rotary_emb;
mod token_sampling;

// What the names below do not replace.
pub use candle_nn::*;

pub use crate::ops::{
    Cell, Epilogue, IncrementalDecoder, PackedSequences, Pool2dConfig, QueryRows, RecurrentState,
    TimePooling, pool_over_time,
};
pub use activation::{Activation, PReLU, prelu};
pub use attention_layer::{Attention, AttentionLayer, AttentionMemory, attention};
pub use batch_norm::{BatchNorm, BatchNormConfig, batch_norm};
pub use conv::{
    Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d, conv_transpose1d, conv_transpose1d_no_bias,
    conv_transpose2d, conv_transpose2d_no_bias, conv1d, conv1d_no_bias, conv2d, conv2d_no_bias,
    conv2d_no_bias_with,
};
pub use conv_max_over_time::{ConvMaxOverTime, conv_max_over_time};
pub use cost::Cost;
pub use dropout::{Dropout, dropout};
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
    },
    /// Evaluation: no randomness, running statistics.
    Evaluate,
}

impl Mode {
    /// Whether the forward pass trains.
    pub fn is_training(self) -> bool {
        matches!(self, Self::Train { .. })
    }
}

/// Whether the operations of this crate take tensors of this type; candle's layers do the work for all others.
fn is_native(xs: &Tensor) -> bool {
    matches!(xs.dtype(), DType::F32 | DType::F64)
}

/// A classifier: maps a batch to one row of logits per example.
pub trait Model {
    /// Computes logits `(batch, classes)` of `xs` `(batch, ..)`; the model defines the shape of an example.
    ///
    /// # Errors
    /// Fails if `xs` does not fit the model.
    fn forward(&self, xs: &Tensor, mode: Mode) -> Result<Tensor>;
}

/// A model of sentences: classifies whole sentences, or tags each of their words.
pub trait SentenceModel {
    /// Computes logits, one row per sentence or per word, of the u32 word ids `words` `(rows)`, which `sentences` packs.
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
    /// What they add to the logit of each class.
    pub logits: Vec<f32>,
}
