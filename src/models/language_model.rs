//! A recurrent language model: at each token of a text, what comes next (Karpathy 2015; Zaremba et al. 2014).

use crate::nn::{
    Cell, Embedding, Linear, Mode, Recurrent, RecurrentConfig, Sequences, State, embedding, linear, recurrent,
};
use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use std::sync::Arc;

#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Number of different tokens.
    pub vocabulary: usize,
    pub embedding: usize,
    pub cell: Cell,
    pub hidden: usize,
    pub layers: usize,
    /// Between recurrent layers.
    pub dropout: f32,
}

#[derive(Debug, Clone)]
pub struct LanguageModel {
    embedding: Embedding,
    recurrent: Recurrent,
    output: Linear,
}

impl LanguageModel {
    /// With the parameters `embedding.weight`, those of `recurrent` and `output.{weight,bias}` of `vb`.
    ///
    /// # Errors
    /// When `vb` holds them in other shapes.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let &Config { vocabulary, embedding: features, cell, hidden, layers, dropout } = config;
        let network = RecurrentConfig {
            cell,
            features,
            hidden,
            layers,
            bidirectional: false,
            dropout,
            forget_bias: None,
        };
        Ok(Self {
            embedding: embedding(vocabulary, features, vb.pp("embedding"))?,
            recurrent: recurrent(&network, vb.pp("recurrent"))?,
            output: linear(hidden, vocabulary, vb.pp("output"))?,
        })
    }

    /// Logits `(rows, vocabulary)` of the token after each of `ids` `(rows)`, the tokens of `texts`, and the state
    /// that goes on from there.
    ///
    /// # Errors
    /// When an id is outside the vocabulary, or shapes do not fit.
    pub fn forward(
        &self,
        ids: &Tensor,
        texts: &Arc<Sequences>,
        state: Option<&State>,
        mode: Mode,
    ) -> Result<(Tensor, State)> {
        let xs = self.embedding.forward(ids)?;
        let (ys, state) = self.recurrent.forward(&xs, texts, state, mode)?;
        Ok((self.output.forward(&ys)?, state))
    }
}
