//! Attention of queries to the elements of packed sequences.

use super::PackedSequences;
use super::reference;
use candle_core::{Result, Tensor};
use std::sync::Arc;

/// Computes for each query the weighted sum of the values of its sequence; the weights are the softmax of the scores.
///
/// `queries` are `(rows, size)`; row i attends to the sequence `sequence_of_row[i]`. `keys` `(elements, size)` and `values`
/// `(elements, features)` are packed as `sequences` describe. The score of a query q and a key k is `v · tanh(q + k)` if
/// there is a vector `v` `(size)` (Bahdanau et al. 2015), and else `q · k` (Luong et al. 2015).
///
/// Returns the sums `(rows, features)` and the weights `(rows, steps)`, which are zero beyond the end of a sequence and have
/// no gradient.
///
/// # Errors
/// Fails if the shapes do not agree, or a row's sequence does not exist.
pub fn attention(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    v: Option<&Tensor>,
    sequences: &Arc<PackedSequences>,
    sequence_of_row: &[u32],
) -> Result<(Tensor, Tensor)> {
    reference::attention(queries, keys, values, v, sequences, sequence_of_row)
}
