//! Arguments of recurrent layers.

use crate::kernels::cpu::Cell;
use crate::ops::PackedSequences;
use candle_core::{DType, Result, Tensor, bail};

/// The parameters of one direction of a recurrent layer, with PyTorch's shapes and order of gates.
#[derive(Debug, Clone)]
pub struct RecurrentWeights {
    /// W, `(gates * hidden, features)`: PyTorch's `weight_ih`.
    ///
    /// For [`recurrent_tokens`](crate::ops::recurrent_tokens): the product of each token's vector with W, `(tokens, gates * hidden)`.
    pub input: Tensor,
    /// U, `(gates * hidden, hidden)`: PyTorch's `weight_hh`.
    pub hidden: Tensor,
    /// b, `(gates * hidden)`: PyTorch's `bias_ih`.
    pub input_bias: Tensor,
    /// d, `(gates * hidden)`: PyTorch's `bias_hh`.
    pub hidden_bias: Tensor,
}

/// The state of a recurrent network between two steps: one vector per sequence, layer and direction.
///
/// The first dimension is ordered as in PyTorch: layer by layer, and within a layer the forward direction first.
#[derive(Debug, Clone)]
pub struct RecurrentState {
    /// Hidden states h, `(layers * directions, batch, hidden)`.
    pub hidden: Tensor,
    /// Cell states c of an LSTM, in the same shape; `None` for other cells.
    pub cell: Option<Tensor>,
}

/// Checks the arguments of `recurrent` and returns the numbers of features and of hidden units.
pub(in crate::ops) fn check_recurrent(
    cell: Cell,
    xs: &Tensor,
    sequences: &PackedSequences,
    weights: &[RecurrentWeights],
    state: Option<&RecurrentState>,
) -> Result<[usize; 2]> {
    let features = match xs.dims() {
        &[rows, features] if rows == sequences.rows() => features,
        dims => {
            bail!("recurrent: found an input of shape {dims:?}, expected ({}, features)", sequences.rows())
        }
    };
    let hidden = check_recurrent_weights(cell, |gates| [gates, features], sequences, weights, state)?;
    Ok([features, hidden])
}

/// Checks the arguments of `recurrent_tokens` and returns the numbers of tokens and of hidden units.
pub(in crate::ops) fn check_recurrent_tokens(
    cell: Cell,
    ids: &Tensor,
    sequences: &PackedSequences,
    weights: &[RecurrentWeights],
    state: Option<&RecurrentState>,
) -> Result<[usize; 2]> {
    if ids.dims() != [sequences.rows()] || ids.dtype() != DType::U32 {
        let (dims, dtype) = (ids.dims(), ids.dtype().as_str());
        bail!("recurrent: found ids of shape {dims:?} in {dtype}, expected ({}) in u32", sequences.rows());
    }
    let tokens = weights.first().and_then(|weights| weights.input.dims().first().copied()).unwrap_or(0);
    let hidden = check_recurrent_weights(cell, |gates| [tokens, gates], sequences, weights, state)?;
    Ok([tokens, hidden])
}

/// Checks that the weights and the state fit each other, and returns the number of hidden units.
///
/// `input_shape` is the expected shape of the input weights, given the number of rows of the weights.
pub(in crate::ops) fn check_recurrent_weights(
    cell: Cell,
    input_shape: impl Fn(usize) -> [usize; 2],
    sequences: &PackedSequences,
    weights: &[RecurrentWeights],
    state: Option<&RecurrentState>,
) -> Result<usize> {
    if !(1..=2).contains(&weights.len()) {
        bail!("recurrent: found weights of {} directions, expected one or two", weights.len());
    }
    let hidden = weights[0].hidden.dims().last().copied().unwrap_or(0);
    let Some(rows) = cell.gates().checked_mul(hidden).filter(|&rows| rows > 0) else {
        bail!(
            "recurrent: found a hidden weight of shape {:?}, expected (gates * hidden, hidden)",
            weights[0].hidden.dims()
        )
    };
    for RecurrentWeights { input, hidden: recurrent, input_bias, hidden_bias } in weights {
        for (name, found, expected) in [
            ("input weight", input.dims(), input_shape(rows).as_slice()),
            ("hidden weight", recurrent.dims(), &[rows, hidden]),
            ("input bias", input_bias.dims(), &[rows]),
            ("hidden bias", hidden_bias.dims(), &[rows]),
        ] {
            if found != expected {
                bail!(
                    "recurrent: found the {name} of shape {found:?}, expected {expected:?} for a layer of {hidden} \
                     {cell} units"
                );
            }
        }
    }
    if let Some(RecurrentState { hidden: state, cell: cells }) = state {
        let expected = [weights.len(), sequences.batch(), hidden];
        for found in std::iter::once(state).chain(cells) {
            if found.dims() != expected {
                bail!("recurrent: found a state of shape {:?}, expected {expected:?}", found.dims());
            }
        }
        match (cells, cell.has_cell_state()) {
            (Some(_), false) => {
                bail!("recurrent: found a state with a cell part, expected none for a {cell} layer")
            }
            (None, true) => bail!("recurrent: found a state without a cell part, expected one for an LSTM"),
            _ => {}
        }
    }
    Ok(hidden)
}
