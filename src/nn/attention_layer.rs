//! Attention over the outputs of an encoder.

use super::{InitScheme, Linear, PackedSequences, QueryRows};
use crate::ops;
use candle_core::{Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How a decoder attends to the outputs of the encoder.
///
/// The variants differ in the score of a query q, a decoder state, and a value s, an encoder output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Attention {
    /// No attention: the decoder knows the encoder's final state only (Sutskever et al. 2014; Cho et al. 2014)
    None,
    /// `v · tanh(W q + U s)` (Bahdanau et al. 2015)
    #[default]
    Additive,
    /// `q · s`, for queries and values of equal size (Luong et al. 2015)
    Dot,
    /// `q · W s` (Luong et al. 2015)
    General,
}

/// An attention layer: for each query, a weighted sum of the values of its sentence.
///
/// The weights are the softmax of the scores over the sentence, and never reach into another sentence.
#[derive(Debug, Clone)]
pub struct AttentionLayer {
    query: Option<Linear>,
    key: Option<Linear>,
    v: Option<Linear>,
}

/// Creates an attention layer for `queries` and `values` of these sizes.
///
/// Returns `None` for [`Attention::None`].
///
/// Parameters in `vb`, with PyTorch's initial values for linear layers without a bias:
///
/// | attention | parameters |
/// |---|---|
/// | additive | `query.weight` `(queries, queries)`, `key.weight` `(queries, values)`, `v.weight` `(1, queries)` |
/// | general | `key.weight` `(queries, values)` |
///
/// # Errors
/// Fails if the sizes differ for [`Attention::Dot`], or `vb` holds a parameter in another shape.
pub fn attention(
    kind: Attention,
    queries: usize,
    values: usize,
    vb: VarBuilder,
) -> Result<Option<AttentionLayer>> {
    let linear = |inputs: usize, outputs: usize, name: &str| -> Result<Option<Linear>> {
        let init = InitScheme::PyTorch.weight(inputs, outputs);
        Ok(Some(Linear::new(vb.pp(name).get_with_hints((outputs, inputs), "weight", init)?, None)))
    };
    Ok(Some(match kind {
        Attention::None => return Ok(None),
        Attention::Additive => AttentionLayer {
            query: linear(queries, queries, "query")?,
            key: linear(values, queries, "key")?,
            v: linear(queries, 1, "v")?,
        },
        Attention::Dot if queries != values => bail!(
            "dot attention: found decoder states of size {queries} and encoder outputs of size {values}, expected equal \
             sizes; general attention takes any"
        ),
        Attention::Dot => AttentionLayer { query: None, key: None, v: None },
        Attention::General => AttentionLayer { query: None, key: linear(values, queries, "key")?, v: None },
    }))
}

/// The values that an [`AttentionLayer`] attends to, and the keys that it compares queries with.
#[derive(Debug, Clone)]
pub struct AttentionMemory {
    keys: Tensor,
    values: Tensor,
    sentences: Arc<PackedSequences>,
}

impl AttentionLayer {
    /// Computes the keys of `values` `(rows, size)`, packed as `sentences` describe.
    ///
    /// # Errors
    /// Fails if the shapes do not fit.
    pub fn memory(&self, values: &Tensor, sentences: &Arc<PackedSequences>) -> Result<AttentionMemory> {
        let keys = match &self.key {
            Some(key) => key.forward(values)?,
            None => values.clone(),
        };
        Ok(AttentionMemory { keys, values: values.clone(), sentences: sentences.clone() })
    }

    /// Computes the context of each of the `queries` `(rows, size)`, and the attention weights.
    ///
    /// `rows` tells which sentence of the memory each query attends to. The result `[c; q]` `(rows, values + size)` is
    /// the context followed by the query (Luong et al. 2015, eq. 5). The weights `(rows, length)` have a column per
    /// element of the longest sentence, zero beyond the end of a shorter one; they have no gradient.
    ///
    /// # Errors
    /// Fails if the shapes do not fit, or a sentence is not in the memory.
    pub fn forward(
        &self,
        queries: &Tensor,
        rows: QueryRows,
        memory: &AttentionMemory,
    ) -> Result<(Tensor, Tensor)> {
        let compared = match &self.query {
            Some(query) => query.forward(queries)?,
            None => queries.clone(),
        };
        let AttentionMemory { keys, values, sentences } = memory;
        let v = self.v.as_ref().map(Linear::weight);
        ops::attention_beside([&compared, keys, values], v, queries, sentences, rows)
    }
}
