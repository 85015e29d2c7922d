//! Sequence tagging with a bidirectional recurrent network.
//!
//! It predicts one tag per word, from the context on both sides (Graves and Schmidhuber 2005; Huang, Xu and Yu 2015,
//! without the CRF).

use crate::nn::{
    Cell, Dropout, Embedding, Linear, Mode, PackedSequences, Recurrent, RecurrentConfig, SentenceModel,
    WORD_VECTOR_INIT, embedding_with, linear, recurrent,
};
use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use std::sync::Arc;

/// The configuration of a [`BiRnn`].
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Number of words in the vocabulary.
    pub vocabulary: usize,
    /// Size of a word's embedding.
    pub embedding: usize,
    /// The kind of recurrent cell.
    pub cell: Cell,
    /// Number of hidden units per layer and direction.
    pub hidden: usize,
    /// Number of recurrent layers.
    pub layers: usize,
    /// Whether the network also reads the words to the right.
    ///
    /// Without it, a tag depends only on the words so far.
    pub bidirectional: bool,
    /// Dropout probability of the embeddings, between layers, and of the last layer's output.
    pub dropout: f32,
    /// Number of tags.
    pub tags: usize,
}

/// A recurrent tagger of words.
#[derive(Debug, Clone)]
pub struct BiRnn {
    embedding: Embedding,
    recurrent: Recurrent,
    word_dropout: Dropout,
    output_dropout: Dropout,
    output: Linear,
}

impl BiRnn {
    /// Creates the model with the parameters of `vb`.
    ///
    /// They are `embedding.weight`, the parameters of a [`Recurrent`] network under `recurrent`, and
    /// `output.{weight,bias}`.
    ///
    /// # Errors
    /// Fails if `vb` holds a parameter in another shape.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let &Config { vocabulary, embedding, cell, hidden, layers, bidirectional, dropout: rate, tags } =
            config;
        let network = RecurrentConfig {
            cell,
            features: embedding,
            hidden,
            layers,
            bidirectional,
            dropout: rate,
            forget_bias: None,
        };
        let embedding = embedding_with(vocabulary, embedding, WORD_VECTOR_INIT, vb.pp("embedding"))?;
        let recurrent = recurrent(&network, vb.pp("recurrent"))?;
        let output = linear(recurrent.outputs(), tags, vb.pp("output"))?;
        Ok(Self {
            embedding,
            recurrent,
            word_dropout: Dropout::at_path(rate, vb.pp("words")),
            output_dropout: Dropout::at_path(rate, vb.pp("outputs")),
            output,
        })
    }
}

impl SentenceModel for BiRnn {
    /// One row of logits per word, `(rows, tags)`.
    fn forward(&self, words: &Tensor, sentences: &Arc<PackedSequences>, mode: Mode) -> Result<Tensor> {
        let xs = self.embedding.forward(words)?; // (rows, embedding)
        let xs = self.word_dropout.forward_packed(&xs, sentences, mode)?;
        let (ys, _) = self.recurrent.forward(&xs, sentences, None, mode)?; // (rows, directions * hidden)
        let ys = self.output_dropout.forward_packed(&ys, sentences, mode)?;
        self.output.forward(&ys) // (rows, tags)
    }

    fn embedding(&self) -> &Embedding {
        &self.embedding
    }
}
