//! Recurrent networks with several layers, in one or both directions.

use super::{Dropout, Linear, Mode};
use crate::data::count;
use crate::ops::{self, Cell, IncrementalDecoder, PackedSequences, RecurrentState, RecurrentWeights};
use candle_core::{Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};
use std::sync::Arc;

/// The configuration of a [`Recurrent`] network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RecurrentConfig {
    /// The kind of cell: Elman (tanh or ReLU), GRU or LSTM. All layers use the same one.
    pub cell: Cell,
    /// Number of features of one input element: PyTorch's `input_size`.
    pub features: usize,
    /// Number of hidden units per layer and direction: PyTorch's `hidden_size`.
    pub hidden: usize,
    /// Number of layers, each reading the output of the one below: PyTorch's `num_layers`.
    pub layers: usize,
    /// Whether each layer also reads the sequences from their last element to their first.
    ///
    /// A second set of units does so. The outputs of both directions are concatenated, so that a layer's output, and
    /// the input of the layer above, has `2 * hidden` features.
    pub bidirectional: bool,
    /// Probability with which an element of a layer's output is dropped in training.
    ///
    /// It applies between layers only, not to the input and not to the output of the last layer.
    pub dropout: f32,
    /// Initial bias of an LSTM's forget gate; 1 keeps memories from the start (Jozefowicz et al. 2015).
    ///
    /// If `None`, the bias starts from a small random value, as in PyTorch. Other cells must have `None`.
    pub forget_bias: Option<f64>,
}

/// A recurrent network over batches of sequences, equivalent to PyTorch's `RNN`, `GRU` or `LSTM`.
///
/// [`recurrent()`] creates one from a [`RecurrentConfig`].
///
/// # Input and output
///
/// Sequences of a batch may have different lengths. They are passed as a packed tensor: one row per element and no padding,
/// in the order that [`PackedSequences`] describes. [`PackedSequences::pack`] makes one from a padded tensor. A packed input
/// `(rows, features)` gives a packed output `(rows, directions * hidden)`, in which row i belongs to the same element as row
/// i of the input. It is the hidden state of the last layer, the forward direction's units first.
///
/// The forward direction has read the elements up to and including its row; the backward direction of a bidirectional
/// network has read the elements from the end of the sequence down to and including its row. Neither depends on the
/// other sequences of the batch.
///
/// # State
///
/// A [`RecurrentState`] holds hidden states `(layers * directions, batch, hidden)`, and for an LSTM cell states of the
/// same shape. Layers follow each other, and within a layer the forward direction comes first. Sequences are in the order of
/// the batch, not of the packed rows.
///
/// Each forward pass starts from a state, zero if none is given, and also returns the final state. The forward
/// direction ends after each sequence's own last element, the backward direction after its first. A unidirectional
/// network can read a long text in windows that pass the state on. [`RecurrentState::detach`] then stops gradients
/// between the windows (truncated back-propagation through time).
///
/// # Parameters
///
/// Names, shapes and initial values are PyTorch's. Layer k has these, and a second set with the suffix `_reverse` if the
/// network is bidirectional:
///
/// | name | shape |
/// |---|---|
/// | `weight_ih_lk` | `(gates * hidden, inputs)`: `inputs` is `features` for k = 0, else `directions * hidden` |
/// | `weight_hh_lk` | `(gates * hidden, hidden)` |
/// | `bias_ih_lk`, `bias_hh_lk` | `(gates * hidden)` |
///
/// [`Cell`] gives the formulas and the order of the gates.
///
/// # Example
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_textbook::nn::{self, Cell, Mode, PackedSequences, RecurrentConfig, VarMap};
/// use std::sync::Arc;
///
/// fn main() -> candle_core::Result<()> {
///     let (vars, device) = (VarMap::new(), Device::Cpu);
///     let config = RecurrentConfig {
///         cell: Cell::Gru,
///         features: 8,
///         hidden: 16,
///         layers: 2,
///         bidirectional: true,
///         dropout: 0.1,
///         forget_bias: None,
///     };
///     let network = nn::recurrent(&config, nn::seeded_var_builder(&vars, 0, DType::F32, &device))?;
///
///     // Two sequences, of 5 and 3 elements, padded to 5 steps.
///     let padded = Tensor::zeros((2, 5, 8), DType::F32, &device)?;
///     let sequences = Arc::new(PackedSequences::new(&[5, 3])?);
///     let xs = sequences.pack(&padded)?;
///     let (ys, state) = network.forward(&xs, &sequences, None, Mode::Evaluate)?;
///     assert_eq!(ys.dims(), [5 + 3, 2 * 16]);
///     assert_eq!(state.hidden.dims(), [2 * 2, 2, 16]);
///     assert_eq!(sequences.unpack(&ys)?.dims(), [2, 5, 2 * 16]);
///     Ok(())
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Recurrent {
    cell: Cell,
    hidden: usize,
    /// The weights of each layer, one per direction.
    layers: Vec<Vec<RecurrentWeights>>,
    /// The dropout layers between the layers.
    dropout: Vec<Dropout>,
}

/// Creates a recurrent network whose parameters `vb` holds, or initialises them as PyTorch does.
///
/// Initial values are uniform within ±1/√hidden. [`Recurrent`] lists the parameters. A forget bias applies to new
/// parameters only: it becomes the forget gate's part of `bias_ih_lk`; the forget gate's part of `bias_hh_lk` becomes
/// zero.
///
/// # Errors
/// Fails if there are no layers or no hidden units, if the network is too large for the address space, if the
/// configuration has a forget bias for another cell than an LSTM, or if `vb` holds a parameter in another shape.
pub fn recurrent(config: &RecurrentConfig, vb: VarBuilder) -> Result<Recurrent> {
    let &RecurrentConfig { cell, features, hidden, layers, bidirectional, forget_bias, .. } = config;
    if forget_bias.is_some() && cell != Cell::Lstm {
        bail!("recurrent: found a forget bias for a {cell} layer, expected one for an LSTM only");
    }
    let suffixes: &[&str] = if bidirectional { &["", "_reverse"] } else { &[""] };
    let rows = check_size(config, suffixes.len())?;
    let bound = 1.0 / (hidden as f64).sqrt();
    let init = Init::Uniform { lo: -bound, up: bound };
    let direction = |layer: usize, suffix: &str| -> Result<RecurrentWeights> {
        let inputs = if layer == 0 { features } else { suffixes.len() * hidden };
        let name = |parameter: &str| format!("{parameter}_l{layer}{suffix}");
        let bias = |parameter: &str, forget: f64| -> Result<Tensor> {
            let is_new = !vb.contains_tensor(&name(parameter));
            let bias = vb.get_with_hints(rows, &name(parameter), init)?;
            if is_new && forget_bias.is_some() {
                // The gates are i, f, g, o.
                let forget = Tensor::full(forget, hidden, bias.device())?.to_dtype(bias.dtype())?;
                bias.slice_set(&forget, 0, hidden)?;
            }
            Ok(bias)
        };
        Ok(RecurrentWeights {
            input: vb.get_with_hints((rows, inputs), &name("weight_ih"), init)?,
            hidden: vb.get_with_hints((rows, hidden), &name("weight_hh"), init)?,
            input_bias: bias("bias_ih", forget_bias.unwrap_or_default())?,
            hidden_bias: bias("bias_hh", 0.0)?,
        })
    };
    let layer = |layer: usize| suffixes.iter().map(|suffix| direction(layer, suffix)).collect();
    Ok(Recurrent {
        cell,
        hidden,
        layers: (0..layers).map(layer).collect::<Result<_>>()?,
        dropout: (1..layers)
            .map(|layer| Dropout::at_path(config.dropout, vb.pp(format!("dropout{layer}"))))
            .collect(),
    })
}

/// Checks that a network of this size can exist, and returns the number of rows of its weights.
fn check_size(config: &RecurrentConfig, directions: usize) -> Result<usize> {
    let &RecurrentConfig { cell, features, hidden, layers, .. } = config;
    if layers == 0 || hidden == 0 {
        bail!(
            "recurrent: found {hidden} hidden units in {}, expected at least one of each",
            count(layers, "layer")
        );
    }
    let rows = cell.gates().checked_mul(hidden);
    let bytes = || {
        let inputs = directions.checked_mul(hidden)?.max(features);
        let columns = inputs.checked_add(hidden)?.checked_add(2)?;
        let elements = rows?.checked_mul(columns)?.checked_mul(directions)?.checked_mul(layers)?;
        elements.checked_mul(size_of::<f64>()).filter(|&bytes| isize::try_from(bytes).is_ok())
    };
    match (rows, bytes()) {
        (Some(rows), Some(_)) => Ok(rows),
        _ => bail!(
            "recurrent: {} of {hidden} hidden units for {features} features do not fit the address space",
            count(layers, "layer")
        ),
    }
}

impl Recurrent {
    /// Number of features of an output element: `directions * hidden`.
    pub fn outputs(&self) -> usize {
        self.directions() * self.hidden
    }

    /// Number of directions in which each layer reads: 1, or 2 if the network is bidirectional.
    pub fn directions(&self) -> usize {
        self.layers[0].len()
    }

    /// Runs the network over the input `xs` `(rows, features)`, packed as `sequences` describe.
    ///
    /// Returns the output of the last layer, `(rows, directions * hidden)`, and the final state of all layers. `state` is
    /// the initial state, zero if `None`; see [`Recurrent`] for its shape and order.
    ///
    /// # Errors
    /// Fails if the shapes do not agree; if, in training, the dropout probability is not from 0 to 1; or if `state` has cell
    /// states although the cell is not an LSTM, or lacks them although it is.
    pub fn forward(
        &self,
        xs: &Tensor,
        sequences: &Arc<PackedSequences>,
        state: Option<&RecurrentState>,
        mode: Mode,
    ) -> Result<(Tensor, RecurrentState)> {
        self.forward_from(sequences, state, mode, |initial| {
            ops::recurrent(self.cell, xs, sequences, &self.layers[0], initial)
        })
    }

    /// Multiplies the embedding table `(tokens, features)` by the first layer's input weights.
    ///
    /// [`forward_tokens`](Self::forward_tokens) uses the result.
    ///
    /// # Errors
    /// Fails if the table has a different number of features.
    pub fn project_tokens(&self, table: &Tensor) -> Result<TokenProjection> {
        let project = |weights: &RecurrentWeights| {
            let input = ops::linear(table, &weights.input, None)?;
            Ok(RecurrentWeights { input, ..weights.clone() })
        };
        Ok(TokenProjection(self.layers[0].iter().map(project).collect::<Result<_>>()?))
    }

    /// Runs the network over tokens `ids` `(rows)`, u32.
    ///
    /// The result equals [`forward`](Self::forward) on the embeddings. It is faster if there are fewer
    /// distinct tokens than rows, or if one projection serves several passes. A projection uses the weights at the time
    /// of its computation, so project again after each step of the optimizer.
    ///
    /// # Errors
    /// Fails if [`forward`](Self::forward) would, or an id is not a row of the embedding table.
    pub fn forward_tokens(
        &self,
        ids: &Tensor,
        projection: &TokenProjection,
        sequences: &Arc<PackedSequences>,
        state: Option<&RecurrentState>,
        mode: Mode,
    ) -> Result<(Tensor, RecurrentState)> {
        self.forward_from(sequences, state, mode, |initial| {
            ops::recurrent_tokens(self.cell, ids, sequences, &projection.0, initial)
        })
    }

    /// Creates a decoder that reads tokens one by one.
    ///
    /// The rows of the embedding table `(tokens, features)` go through the network, and the last hidden state through
    /// `output`.
    ///
    /// # Errors
    /// Fails if the shapes do not agree, or the network is bidirectional.
    pub fn incremental_decoder(&self, table: &Tensor, output: &Linear) -> Result<IncrementalDecoder> {
        if self.directions() > 1 {
            bail!("recurrent: a bidirectional network can't read token by token");
        }
        let layers = self.layers.iter().flatten();
        IncrementalDecoder::new(self.cell, table, layers, (output.weight(), output.bias()))
    }

    /// Runs all layers; `first` runs the first one from its initial state.
    fn forward_from(
        &self,
        sequences: &Arc<PackedSequences>,
        state: Option<&RecurrentState>,
        mode: Mode,
        first: impl FnOnce(Option<&RecurrentState>) -> Result<(Tensor, RecurrentState)>,
    ) -> Result<(Tensor, RecurrentState)> {
        let directions = self.directions();
        let parts = self.layers.len() * directions;
        let tensors = state.into_iter().flat_map(|state| std::iter::once(&state.hidden).chain(&state.cell));
        if let Some(found) = tensors.map(Tensor::dims).find(|dims| dims.first() != Some(&parts)) {
            bail!("recurrent: found a state of shape {found:?}, expected ({parts}, batch, {})", self.hidden);
        }
        let initial = |layer: usize| {
            let part = |states: &Tensor| ops::part(states, layer * directions, directions);
            let part = |RecurrentState { hidden, cell }: &RecurrentState| -> Result<RecurrentState> {
                Ok(RecurrentState { hidden: part(hidden)?, cell: cell.as_ref().map(part).transpose()? })
            };
            state.map(part).transpose()
        };
        let (mut xs, end) = first(initial(0)?.as_ref())?;
        let (mut hidden, mut cells) = (vec![end.hidden], Vec::from_iter(end.cell));
        for (layer, (weights, dropout)) in (1..).zip(self.layers[1..].iter().zip(&self.dropout)) {
            xs = dropout.forward_packed(&xs, sequences, mode)?;
            let (ys, end) = ops::recurrent(self.cell, &xs, sequences, weights, initial(layer)?.as_ref())?;
            hidden.push(end.hidden);
            cells.extend(end.cell);
            xs = ys;
        }
        let cell = if cells.is_empty() { None } else { Some(ops::concat(&cells, 0, 0)?) };
        Ok((xs, RecurrentState { hidden: ops::concat(&hidden, 0, 0)?, cell }))
    }
}

/// The embedding table multiplied by the first layer's input weights, once per distinct token.
///
/// [`Recurrent::project_tokens`] computes it. Gradients flow through it to the table and to the input weights.
#[derive(Debug, Clone)]
pub struct TokenProjection(Vec<RecurrentWeights>);

impl RecurrentState {
    /// The same state, detached from the graph that computed it.
    pub fn detach(&self) -> Self {
        Self { hidden: self.hidden.detach(), cell: self.cell.as_ref().map(Tensor::detach) }
    }

    /// The last layer's hidden states `(batch, directions * hidden)`, the forward direction's units first.
    ///
    /// # Errors
    /// Fails if the state has fewer than `directions` directions.
    pub fn last_layer(&self, directions: usize) -> Result<Tensor> {
        let parts = self.hidden.dim(0)?;
        let Some(first) = parts.checked_sub(directions) else {
            bail!(
                "last_layer: found a state of {parts} layers and directions, expected at least {directions}"
            )
        };
        let last = (first..parts).map(|i| self.hidden.get(i));
        ops::concat(&last.collect::<Result<Vec<_>>>()?, 1, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::seeded_var_builder;
    use candle_core::{DType, Device};
    use candle_nn::VarMap;

    #[test]
    fn the_forget_bias_initialises_new_parameters_only() -> Result<()> {
        let config = RecurrentConfig {
            cell: Cell::Lstm,
            features: 2,
            hidden: 3,
            layers: 1,
            bidirectional: false,
            dropout: 0.0,
            forget_bias: Some(1.0),
        };
        let vars = VarMap::new();
        recurrent(&config, seeded_var_builder(&vars, 0, DType::F32, &Device::Cpu))?;
        let bias = |name: &str| vars.data().lock().unwrap()[name].to_vec1::<f32>();
        assert_eq!(bias("bias_ih_l0")?[3..6], [1.0; 3]);
        assert_eq!(bias("bias_hh_l0")?[3..6], [0.0; 3]);
        assert!(bias("bias_ih_l0")?[..3].iter().all(|x| x.abs() < 0.6));
        let again = RecurrentConfig { forget_bias: Some(5.0), ..config };
        recurrent(&again, seeded_var_builder(&vars, 0, DType::F32, &Device::Cpu))?;
        assert_eq!(bias("bias_ih_l0")?[3..6], [1.0; 3]);
        assert!(
            recurrent(
                &RecurrentConfig { cell: Cell::Gru, ..config },
                seeded_var_builder(&vars, 0, DType::F32, &Device::Cpu)
            )
            .is_err()
        );
        Ok(())
    }
}
