//! A classifier of sentences: a recurrent network reads the words, and what it has made of them tells the class.

use crate::nn::{
    Dropout, Embedding, Linear, Mode, PackedSequences, Recurrent, RecurrentConfig, SentenceModel,
    TimePooling, WORD_VECTOR_INIT, dropout, embedding_with, linear, pool_over_time, recurrent,
};
use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Number of known words.
    pub vocabulary: usize,
    /// Its `features` are the size of the embedding.
    pub recurrent: RecurrentConfig,
    pub pool: Pool,
    /// Of embeddings and before the classes.
    pub dropout: f32,
    pub classes: usize,
}

/// What stands for the sentence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Pool {
    /// The state after the last word (and before the first, read backward)
    #[default]
    Last,
    /// The mean of the outputs at all words
    Mean,
    /// Of each output its largest value
    Max,
}

#[derive(Debug, Clone)]
pub struct Rnn {
    embedding: Embedding,
    recurrent: Recurrent,
    pool: Pool,
    dropout: (Dropout, Dropout),
    output: Linear,
}

impl Rnn {
    /// With the parameters `embedding.weight`, those of `recurrent` and `output.{weight,bias}` of `vb`.
    ///
    /// # Errors
    /// When `vb` holds them in other shapes.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let recurrent = recurrent(&config.recurrent, vb.pp("recurrent"))?;
        Ok(Self {
            embedding: embedding_with(
                config.vocabulary,
                config.recurrent.features,
                WORD_VECTOR_INIT,
                vb.pp("embedding"),
            )?,
            pool: config.pool,
            dropout: (dropout(config.dropout, vb.pp("words")), dropout(config.dropout, vb.pp("sentence"))),
            output: linear(recurrent.outputs(), config.classes, vb.pp("output"))?,
            recurrent,
        })
    }
}

impl SentenceModel for Rnn {
    /// One row `(batch, classes)` a sentence.
    fn forward(&self, words: &Tensor, sentences: &Arc<PackedSequences>, mode: Mode) -> Result<Tensor> {
        let xs = self.dropout.0.forward(&self.embedding.forward(words)?, mode)?;
        let (ys, state) = self.recurrent.forward(&xs, sentences, None, mode)?;
        let pooled = match self.pool {
            Pool::Last => state.last_layer(self.recurrent.directions())?,
            Pool::Mean => pool_over_time(&ys, sentences, TimePooling::Mean)?,
            Pool::Max => pool_over_time(&ys, sentences, TimePooling::Max)?,
        };
        self.output.forward(&self.dropout.1.forward(&pooled, mode)?)
    }

    fn embedding(&self) -> &Embedding {
        &self.embedding
    }
}
