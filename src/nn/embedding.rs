//! Tables of vectors.

use super::is_native;
use crate::ops::{self, PackedSequences};
use candle_core::{DType, Module, Result, Tensor};
use candle_nn::VarBuilder;
use std::sync::Arc;

/// A table of vectors, one per word or character.
#[derive(Debug, Clone)]
pub struct Embedding {
    embeddings: Tensor,
    hidden_size: usize,
}

/// Creates an embedding with PyTorch's initial values, N(0, 1).
///
/// Parameter in `vb`: `weight` `(rows, size)`.
///
/// # Errors
/// Fails if `vb` holds this parameter in another shape.
pub fn embedding(rows: usize, size: usize, vb: VarBuilder) -> Result<Embedding> {
    embedding_with(rows, size, candle_nn::Init::Randn { mean: 0.0, stdev: 1.0 }, vb)
}

/// Creates an embedding with the initial values of `init`; see [`embedding`].
///
/// # Errors
/// Fails if [`embedding`] would.
pub fn embedding_with(rows: usize, size: usize, init: candle_nn::Init, vb: VarBuilder) -> Result<Embedding> {
    Ok(Embedding::new(vb.get_with_hints((rows, size), "weight", init)?, size))
}

/// Initial values of word vectors: uniform within ±0.25 (Kim 2014).
///
/// They are small, so that rare words have little influence.
pub const WORD_VECTOR_INIT: candle_nn::Init = candle_nn::Init::Uniform { lo: -0.25, up: 0.25 };

impl Embedding {
    /// Creates an embedding from the table `embeddings` `(rows, hidden_size)`.
    pub fn new(embeddings: Tensor, hidden_size: usize) -> Self {
        Self { embeddings, hidden_size }
    }

    /// The table, `(rows, hidden size)`.
    pub fn embeddings(&self) -> &Tensor {
        &self.embeddings
    }

    /// The size of a vector.
    pub fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    /// Finds the `count` nearest neighbours of `id` by cosine similarity, each with its cosine.
    ///
    /// Only the first `rows` rows of the table are searched.
    ///
    /// # Errors
    /// Fails if the table has fewer than `rows` rows, or `id` is not among them.
    pub fn nearest(&self, id: u32, rows: usize, count: usize) -> Result<Vec<(u32, f32)>> {
        let table = self.embeddings.narrow(0, 0, rows)?.detach().to_dtype(DType::F32)?;
        let own = table.get(id as usize)?;
        let norms = (table.sqr()?.sum(1)? * own.sqr()?.sum_all()?.to_scalar::<f32>()? as f64)?.sqrt()?;
        let cosines = (table.broadcast_mul(&own)?.sum(1)? / norms.maximum(f32::MIN_POSITIVE)?)?;
        let mut ranked: Vec<(u32, f32)> = (0..).zip(cosines.to_vec1()?).filter(|row| row.0 != id).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        ranked.truncate(count);
        Ok(ranked)
    }

    /// Averages the vectors of each sequence (PyTorch's `EmbeddingBag`).
    ///
    /// Maps u32 `ids` `(rows)` to `(batch, size)`.
    ///
    /// # Errors
    /// Fails if an id is outside the table, or there is not exactly one id per element of the sequences.
    pub fn mean(&self, ids: &Tensor, sequences: &Arc<PackedSequences>) -> Result<Tensor> {
        ops::embedding_mean(&self.embeddings, ids, sequences)
    }
}

impl Module for Embedding {
    /// Integer ids `(..)` to their vectors `(.., hidden size)`.
    ///
    /// As in candle, the largest u32 or i64 is the id of no row and gives zeros; in u8, 255 is an id like the others.
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let ids = ops::to_ids("embedding: found an id", ids)?;
        match is_native(&self.embeddings) {
            true => ops::embedding(&self.embeddings, &ids),
            false => candle_nn::Embedding::new(self.embeddings.clone(), self.hidden_size).forward(&ids),
        }
    }
}
