//! Layers: the ones candle_nn lacks, gets wrong or runs slowly, with PyTorch's parameter names and initial values.
//!
//! A layer without randomness is a [`candle_core::Module`], so that a model is a chain of `xs.apply(&layer)`.
//! What behaves differently in training takes a [`Mode`].

mod init;
mod layers;
mod loss;
mod recurrent;
mod sampling;

pub use crate::ops::{
    Cell, Conv2dConfig, Epilogue, IncrementalDecoder, PackedSequences, Pool2dConfig, RecurrentState,
    TimePooling, pool_over_time,
};
pub use init::{Init, seeded_var_builder};
pub use layers::{
    Activation, BatchNorm2d, Conv2d, ConvMaxOverTime, Dropout, Embedding, Linear, Pool2d, Pooling,
    WORD_VECTOR_INIT, batch_norm2d, conv_max_over_time, conv2d, conv2d_no_bias, dropout, embedding,
    embedding_with, linear, linear_with,
};
pub use loss::Cost;
pub use recurrent::{Recurrent, RecurrentConfig, TokenProjection, recurrent};
pub use sampling::Sampling;

use candle_core::{Result, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// Whether a model is being trained, and if so where in the training it is.
///
/// Every random draw of a training step (dropout masks, distortions of pictures) is a function of `seed`, the place
/// in training and what it is for, so that a resumed run draws what the uninterrupted one would have drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Step `step`, counted from the start of training, within epoch `epoch`; both start at 0.
    Train {
        seed: u64,
        epoch: usize,
        step: u64,
    },
    Evaluate,
}

/// A network: a batch in, one row of logits an example out.
pub trait Model {
    /// Logits `(batch, classes)` of the batch `xs`, whose shape beyond the first dimension is the model's own.
    ///
    /// # Errors
    /// When `xs` does not fit the model.
    fn forward(&self, xs: &Tensor, mode: Mode) -> Result<Tensor>;
}

/// A model of sentences of words.
pub trait SentenceModel {
    /// Logits, one row for each sentence or each word, of the words `words` `(rows)`, u32 ids, of `sentences`.
    ///
    /// # Errors
    /// When an id is outside the vocabulary, or shapes do not fit.
    fn forward(&self, words: &Tensor, sentences: &Arc<PackedSequences>, mode: Mode) -> Result<Tensor>;

    /// The words' vectors.
    fn embedding(&self) -> &Embedding;

    /// Of each sentence the words that its logits come from, where the model can tell.
    ///
    /// # Errors
    /// As for [`forward`](Self::forward).
    fn attributions(
        &self,
        _words: &Tensor,
        _sentences: &Arc<PackedSequences>,
    ) -> Result<Vec<Vec<Attribution>>> {
        Ok(vec![])
    }
}

/// Some consecutive words, or other features, of a sentence, and what they add to the logit of each class.
#[derive(Debug, Clone, PartialEq)]
pub struct Attribution {
    pub words: Range<usize>,
    pub logits: Vec<f32>,
}
