//! A recurrent language model, which predicts each token of a text from the tokens before it.
//!
//! Karpathy 2015; Zaremba et al. 2014, arXiv:1409.2329.

use crate::nn::{
    Cell, Dropout, Embedding, IncrementalDecoder, InitScheme, Linear, Mode, PackedSequences, Recurrent,
    RecurrentConfig, RecurrentState, embedding_with, linear, recurrent,
};
use candle_core::{Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use std::sync::Arc;

/// The configuration of a [`LanguageModel`].
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Number of tokens in the vocabulary.
    pub vocabulary: usize,
    /// Size of a token's embedding; `None` for one-hot vectors without an embedding layer.
    pub embedding: Option<usize>,
    /// The kind of recurrent cell.
    pub cell: Cell,
    /// Number of hidden units per layer.
    pub hidden: usize,
    /// Number of recurrent layers.
    pub layers: usize,
    /// Dropout probability of the embeddings, between layers, and of the last layer's output.
    ///
    /// See Zaremba et al. 2014.
    pub dropout: f32,
    /// Whether the embedding table also serves as the output weights (Press and Wolf 2017).
    ///
    /// `embedding` must then equal `hidden`.
    pub tie_weights: bool,
}

/// A recurrent language model.
#[derive(Debug, Clone)]
pub struct LanguageModel {
    embedding: Embedding,
    recurrent: Recurrent,
    output: Linear,
    input_dropout: Dropout,
    output_dropout: Dropout,
}

impl LanguageModel {
    /// Creates the model with the parameters of `vb`.
    ///
    /// They are `embedding.weight` unless tokens are one-hot, the parameters of a [`Recurrent`] network under
    /// `recurrent`, and `output.{weight,bias}`. With tied weights there is no `output.weight`.
    ///
    /// # Errors
    /// Fails if weights are tied and the size of the embeddings differs from `hidden`, or if `vb` holds a parameter in
    /// another shape.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let &Config { vocabulary, embedding, cell, hidden, layers, dropout: rate, tie_weights } = config;
        if tie_weights && embedding != Some(hidden) {
            bail!(
                "tied weights: found embeddings of size {} and {hidden} hidden units, expected equal sizes",
                embedding.unwrap_or(vocabulary)
            );
        }
        let network = RecurrentConfig {
            cell,
            features: embedding.unwrap_or(vocabulary),
            hidden,
            layers,
            bidirectional: false,
            dropout: rate,
            forget_bias: None,
        };
        let embedding = match embedding {
            None => Embedding::new(Tensor::eye(vocabulary, vb.dtype(), vb.device())?, vocabulary),
            Some(size) => {
                let init = match tie_weights {
                    true => InitScheme::PyTorch.weight(hidden, vocabulary),
                    false => candle_nn::Init::Randn { mean: 0.0, stdev: 1.0 },
                };
                embedding_with(vocabulary, size, init, vb.pp("embedding"))?
            }
        };
        let output = match tie_weights {
            true => {
                let init = InitScheme::PyTorch.bias(hidden);
                let bias = vb.pp("output").get_with_hints(vocabulary, "bias", init)?;
                Linear::new(embedding.embeddings().clone(), Some(bias))
            }
            false => linear(hidden, vocabulary, vb.pp("output"))?,
        };
        Ok(Self {
            embedding,
            recurrent: recurrent(&network, vb.pp("recurrent"))?,
            output,
            input_dropout: Dropout::at_path(rate, vb.pp("input_dropout")),
            output_dropout: Dropout::at_path(rate, vb.pp("output_dropout")),
        })
    }

    /// Computes logits `(rows, vocabulary)` of the token that follows each of `ids` `(rows)`.
    ///
    /// The ids are packed as `texts` describes. Also returns the state after the last tokens.
    ///
    /// # Errors
    /// Fails if an id is not below the vocabulary's size, or the shapes do not agree.
    pub fn forward(
        &self,
        ids: &Tensor,
        texts: &Arc<PackedSequences>,
        state: Option<&RecurrentState>,
        mode: Mode,
    ) -> Result<(Tensor, RecurrentState)> {
        let table = self.embedding.embeddings(); // (vocabulary, embedding)
        // Dropout makes the embeddings of equal tokens differ, so it rules out one projection per token.
        let few_tokens = table.dim(0)? < ids.elem_count() && !self.input_dropout.is_active(mode);
        let (ys, state) = if few_tokens {
            let projection = self.recurrent.project_tokens(table)?; // (vocabulary, gates * hidden)
            self.recurrent.forward_tokens(ids, &projection, texts, state, mode)?
        } else {
            let xs = self.embedding.forward(ids)?; // (rows, embedding)
            let xs = self.input_dropout.forward_packed(&xs, texts, mode)?;
            self.recurrent.forward(&xs, texts, state, mode)?
        }; // (rows, hidden)
        let ys = self.output_dropout.forward_packed(&ys, texts, mode)?;
        Ok((ys.apply(&self.output)?, state)) // (rows, vocabulary)
    }

    /// Creates a decoder that reads a text token by token and returns the logits of each next token.
    ///
    /// # Errors
    /// Fails if the weights can't be copied to main memory.
    pub fn incremental_decoder(&self) -> Result<IncrementalDecoder> {
        self.recurrent.incremental_decoder(self.embedding.embeddings(), &self.output)
    }
}
