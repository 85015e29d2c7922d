//! A recurrent language model: at each token of a text, what comes next (Karpathy 2015; Zaremba et al. 2014).

use crate::nn::{
    Cell, Dropout, Embedding, IncrementalDecoder, Init, Linear, Mode, PackedSequences, Recurrent,
    RecurrentConfig, RecurrentState, dropout, embedding_with, linear, recurrent,
};
use candle_core::{Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use std::sync::Arc;

#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Number of different tokens.
    pub vocabulary: usize,
    /// Size of a token's vector; none where tokens go in as they are, one of all numbers being 1 (one-hot).
    pub embedding: Option<usize>,
    pub cell: Cell,
    pub hidden: usize,
    pub layers: usize,
    /// Of tokens' vectors, between recurrent layers and before the output (Zaremba et al. 2014).
    pub dropout: f32,
    /// Whether the output's weights are the tokens' vectors (Press and Wolf 2017).
    pub tie_weights: bool,
}

#[derive(Debug, Clone)]
pub struct LanguageModel {
    embedding: Embedding,
    recurrent: Recurrent,
    output: Linear,
    input_dropout: Dropout,
    output_dropout: Dropout,
}

impl LanguageModel {
    /// With the parameters `embedding.weight` (unless one-hot), those of `recurrent`, and `output.{weight,bias}` (of tied
    /// weights: the bias) of `vb`.
    ///
    /// # Errors
    /// When weights are tied that are not of one shape, and when `vb` holds the parameters in other shapes.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let &Config { vocabulary, embedding, cell, hidden, layers, dropout: rate, tie_weights } = config;
        if tie_weights && embedding != Some(hidden) {
            bail!(
                "tied weights: found tokens' vectors of {} numbers and {hidden} hidden units, expected as many",
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
            None => Embedding::new(Tensor::eye(vocabulary, vb.dtype(), vb.device())?),
            Some(size) => {
                let init = match tie_weights {
                    true => Init::PyTorch.weight(hidden, vocabulary),
                    false => candle_nn::Init::Randn { mean: 0.0, stdev: 1.0 },
                };
                embedding_with(vocabulary, size, init, vb.pp("embedding"))?
            }
        };
        let output = vb.pp("output");
        Ok(Self {
            recurrent: recurrent(&network, vb.pp("recurrent"))?,
            output: match tie_weights {
                true => {
                    let bias = output.get_with_hints(vocabulary, "bias", Init::PyTorch.bias(hidden))?;
                    Linear::new(embedding.weight().clone(), Some(bias))
                }
                false => linear(hidden, vocabulary, output)?,
            },
            embedding,
            input_dropout: dropout(rate, vb.pp("input_dropout")),
            output_dropout: dropout(rate, vb.pp("output_dropout")),
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
        texts: &Arc<PackedSequences>,
        state: Option<&RecurrentState>,
        mode: Mode,
    ) -> Result<(Tensor, RecurrentState)> {
        let table = self.embedding.weight();
        // Where a text has more tokens than there are different ones, what each of those adds to the first layer's gates
        // is found once; unless dropout makes each occurrence another.
        let (ys, state) = match table.dim(0)? < ids.elem_count() && !self.input_dropout.is_active(mode) {
            true => {
                let projected = self.recurrent.project_tokens(table)?;
                self.recurrent.forward_tokens(ids, &projected, texts, state, mode)?
            }
            false => {
                let xs = self.input_dropout.forward(&self.embedding.forward(ids)?, mode)?;
                self.recurrent.forward(&xs, texts, state, mode)?
            }
        };
        Ok((self.output_dropout.forward(&ys, mode)?.apply(&self.output)?, state))
    }

    /// Starts to read a text token by token, after each of which come the logits of the next.
    ///
    /// # Errors
    /// None that can be expected.
    pub fn incremental_decoder(&self) -> Result<IncrementalDecoder> {
        self.recurrent.incremental_decoder(self.embedding.weight(), &self.output)
    }
}
