//! Sentence classification with a recurrent network.
//!
//! The network reads the words' embeddings, and a linear layer maps its pooled hidden states to classes.

use crate::nn::{
    Dropout, Embedding, Linear, Mode, PackedSequences, Recurrent, RecurrentConfig, SentenceModel,
    TimePooling, WORD_VECTOR_INIT, embedding_with, linear, pool_over_time, recurrent,
};
use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The configuration of an [`Rnn`].
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Number of words in the vocabulary.
    pub vocabulary: usize,
    /// The recurrent network; its `features` are the size of the word embeddings.
    pub recurrent: RecurrentConfig,
    /// How the hidden states become one vector per sentence.
    pub pool: Pool,
    /// Dropout probability of the embeddings and of the sentence vector.
    pub dropout: f32,
    /// Number of classes.
    pub classes: usize,
}

/// How the hidden states at all words become one vector per sentence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Pool {
    /// The final hidden state: after the last word, and for the backward direction after the first
    #[default]
    Last,
    /// The mean over all words
    Mean,
    /// The maximum of each unit over all words
    Max,
}

/// A recurrent sentence classifier.
#[derive(Debug, Clone)]
pub struct Rnn {
    embedding: Embedding,
    recurrent: Recurrent,
    pool: Pool,
    word_dropout: Dropout,
    sentence_dropout: Dropout,
    output: Linear,
}

impl Rnn {
    /// Creates the model with the parameters of `vb`.
    ///
    /// They are `embedding.weight`, the parameters of a [`Recurrent`] network under `recurrent`, and
    /// `output.{weight,bias}`.
    ///
    /// # Errors
    /// Fails if `vb` holds a parameter in another shape.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let &Config { vocabulary, recurrent: network, pool, dropout: rate, classes } = config;
        let embedding = embedding_with(vocabulary, network.features, WORD_VECTOR_INIT, vb.pp("embedding"))?;
        let recurrent = recurrent(&network, vb.pp("recurrent"))?;
        let output = linear(recurrent.outputs(), classes, vb.pp("output"))?;
        Ok(Self {
            embedding,
            recurrent,
            pool,
            word_dropout: Dropout::at_path(rate, vb.pp("words")),
            sentence_dropout: Dropout::at_path(rate, vb.pp("sentence")),
            output,
        })
    }
}

impl SentenceModel for Rnn {
    /// One row of logits per sentence, `(batch, classes)`.
    fn forward(&self, words: &Tensor, sentences: &Arc<PackedSequences>, mode: Mode) -> Result<Tensor> {
        let xs = self.embedding.forward(words)?; // (rows, embedding)
        let xs = self.word_dropout.forward_packed(&xs, sentences, mode)?;
        let (ys, state) = self.recurrent.forward(&xs, sentences, None, mode)?; // (rows, directions * hidden)
        let pooled = match self.pool {
            Pool::Last => state.last_layer(self.recurrent.directions())?,
            Pool::Mean => pool_over_time(&ys, sentences, TimePooling::Mean)?,
            Pool::Max => pool_over_time(&ys, sentences, TimePooling::Max)?,
        }; // (batch, directions * hidden)
        let pooled = self.sentence_dropout.forward_at(&pooled, mode)?;
        self.output.forward(&pooled) // (batch, classes)
    }

    fn embedding(&self) -> &Embedding {
        &self.embedding
    }
}
