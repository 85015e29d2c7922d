//! A tagger of words: a recurrent network that reads a sentence from both ends (Graves and Schmidhuber 2005; Huang,
//! Xu and Yu 2015, without the CRF).

use crate::nn::{
    Cell, Dropout, Embedding, Linear, Mode, PackedSequences, Recurrent, RecurrentConfig, SentenceModel,
    WORD_VECTOR_INIT, dropout, embedding_with, linear, recurrent,
};
use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use std::sync::Arc;

#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Number of known words.
    pub vocabulary: usize,
    pub embedding: usize,
    pub cell: Cell,
    /// Units of each direction.
    pub hidden: usize,
    pub layers: usize,
    /// Whether the right context is read too.
    pub bidirectional: bool,
    /// Of embeddings, between layers, and before the tags.
    pub dropout: f32,
    pub tags: usize,
}

#[derive(Debug, Clone)]
pub struct BiRnn {
    embedding: Embedding,
    recurrent: Recurrent,
    dropout: (Dropout, Dropout),
    output: Linear,
}

impl BiRnn {
    /// With the parameters `embedding.weight`, those of `recurrent` and `output.{weight,bias}` of `vb`.
    ///
    /// # Errors
    /// When `vb` holds them in other shapes.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let &Config { vocabulary, embedding: features, cell, hidden, layers, bidirectional, tags, .. } =
            config;
        let network = RecurrentConfig {
            cell,
            features,
            hidden,
            layers,
            bidirectional,
            dropout: config.dropout,
            forget_bias: None,
        };
        let recurrent = recurrent(&network, vb.pp("recurrent"))?;
        Ok(Self {
            embedding: embedding_with(vocabulary, features, WORD_VECTOR_INIT, vb.pp("embedding"))?,
            dropout: (dropout(config.dropout, vb.pp("words")), dropout(config.dropout, vb.pp("outputs"))),
            output: linear(recurrent.outputs(), tags, vb.pp("output"))?,
            recurrent,
        })
    }
}

impl SentenceModel for BiRnn {
    /// One row `(rows, tags)` a word.
    fn forward(&self, words: &Tensor, sentences: &Arc<PackedSequences>, mode: Mode) -> Result<Tensor> {
        let xs = self.dropout.0.forward(&self.embedding.forward(words)?, mode)?;
        let (ys, _) = self.recurrent.forward(&xs, sentences, None, mode)?;
        self.output.forward(&self.dropout.1.forward(&ys, mode)?)
    }

    fn embedding(&self) -> &Embedding {
        &self.embedding
    }
}
