//! Recurrent networks of any number of layers, in one or both directions.

use super::{Dropout, Linear, Mode, dropout};
use crate::ops::{self, Cell, IncrementalDecoder, PackedSequences, RecurrentState, RecurrentWeights};
use candle_core::{Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};
use std::sync::Arc;

/// What a recurrent network is made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RecurrentConfig {
    pub cell: Cell,
    /// Numbers of an input element.
    pub features: usize,
    /// Units of each layer and direction.
    pub hidden: usize,
    pub layers: usize,
    /// Whether each layer also reads the sequences from their ends.
    pub bidirectional: bool,
    /// Probability that an output of a layer, but for the last, is dropped in training.
    pub dropout: f32,
    /// What the bias of LSTM's forget gate starts from (1: Jozefowicz et al. 2015); if none, a small random value as
    /// PyTorch has it.
    pub forget_bias: Option<f64>,
}

/// A recurrent network; PyTorch's `RNN`, `GRU` or `LSTM`, with its parameter names.
#[derive(Debug, Clone)]
pub struct Recurrent {
    cell: Cell,
    hidden: usize,
    /// Of each layer, the weights of its directions.
    layers: Vec<Vec<RecurrentWeights>>,
    /// One less than there are layers.
    dropout: Vec<Dropout>,
}

/// A recurrent network with PyTorch's initial values, uniform within ±1/√hidden. Of `vb`, for layer k:
/// `weight_ih_lk` `(gates * hidden, inputs)`, `weight_hh_lk` `(gates * hidden, hidden)`, `bias_ih_lk` and `bias_hh_lk`
/// `(gates * hidden)`; those of the backward direction end in `_reverse`.
///
/// # Errors
/// Without layers or units, with a forget bias where there is no forget gate, and when `vb` holds these parameters in
/// other shapes.
pub fn recurrent(config: &RecurrentConfig, vb: VarBuilder) -> Result<Recurrent> {
    let &RecurrentConfig { cell, features, hidden, layers, bidirectional, forget_bias, .. } = config;
    if layers * hidden == 0 {
        bail!("recurrent: found {layers} layers of {hidden} units, expected at least one of one");
    }
    if forget_bias.is_some() && cell != Cell::Lstm {
        bail!("recurrent: only an LSTM has a forget gate, not {cell:?}");
    }
    let bound = 1.0 / (hidden as f64).sqrt();
    let init = Init::Uniform { lo: -bound, up: bound };
    let rows = cell.gates() * hidden;
    let direction = |layer: usize, suffix: &str| -> Result<RecurrentWeights> {
        let inputs = match (layer, bidirectional) {
            (0, _) => features,
            (_, false) => hidden,
            (_, true) => 2 * hidden,
        };
        let name = |what: &str| format!("{what}_l{layer}{suffix}");
        let bias = |what: &str, forget: f64| -> Result<Tensor> {
            let is_new = !vb.contains_tensor(&name(what));
            let bias = vb.get_with_hints(rows, &name(what), init)?;
            if is_new && forget_bias.is_some() {
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
    let suffixes: &[&str] = if bidirectional { &["", "_reverse"] } else { &[""] };
    let layer = |layer: usize| suffixes.iter().map(|suffix| direction(layer, suffix)).collect();
    Ok(Recurrent {
        cell,
        hidden,
        layers: (0..layers).map(layer).collect::<Result<_>>()?,
        dropout: (1..layers).map(|layer| dropout(config.dropout, vb.pp(format!("dropout{layer}")))).collect(),
    })
}

impl Recurrent {
    /// Numbers of an output element: units of both directions together.
    pub fn outputs(&self) -> usize {
        self.directions() * self.hidden
    }

    /// How many directions each layer reads in.
    pub fn directions(&self) -> usize {
        self.layers[0].len()
    }

    /// What each row of `table` `(tokens, features)` adds to the first layer's gates: all that
    /// [`forward_tokens`](Self::forward_tokens) needs of it.
    ///
    /// # Errors
    /// When the rows have another number of features.
    pub fn project_tokens(&self, table: &Tensor) -> Result<TokenProjection> {
        let project = |weights: &RecurrentWeights| {
            let input = ops::linear(table, &weights.input, None)?;
            Ok(RecurrentWeights { input, ..weights.clone() })
        };
        Ok(TokenProjection(self.layers[0].iter().map(project).collect::<Result<_>>()?))
    }

    /// As [`forward`](Self::forward), of the table's rows `ids` `(rows)`, u32: the same sums, but less work where the table
    /// has fewer rows than there are elements, or is used more than once.
    ///
    /// # Errors
    /// When shapes do not fit, or an id is no row of the table.
    pub fn forward_tokens(
        &self,
        ids: &Tensor,
        projected: &TokenProjection,
        sequences: &Arc<PackedSequences>,
        state: Option<&RecurrentState>,
        mode: Mode,
    ) -> Result<(Tensor, RecurrentState)> {
        self.layers_on(sequences, state, mode, |start| {
            ops::recurrent_tokens(self.cell, ids, sequences, &projected.0, start)
        })
    }

    /// The last layer's outputs `(rows, outputs)` at the elements `xs` `(rows, features)` of `sequences`, and the state
    /// of all layers after their last steps.
    ///
    /// The state to start from is zero if none is given. To carry it from one window of a long text to the next
    /// without sending gradients back (truncated back-propagation through time), detach it in between.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(
        &self,
        xs: &Tensor,
        sequences: &Arc<PackedSequences>,
        state: Option<&RecurrentState>,
        mode: Mode,
    ) -> Result<(Tensor, RecurrentState)> {
        self.layers_on(sequences, state, mode, |start| {
            ops::recurrent(self.cell, xs, sequences, &self.layers[0], start)
        })
    }

    /// Reads tokens one by one, of which the rows of `table` `(tokens, features)` are the vectors; each state goes through
    /// `output`.
    ///
    /// # Errors
    /// When shapes do not fit, and of a network that also reads backward.
    pub fn incremental_decoder(&self, table: &Tensor, output: &Linear) -> Result<IncrementalDecoder> {
        if self.directions() > 1 {
            bail!("recurrent: a bidirectional network can't read on token by token");
        }
        let layers = self.layers.iter().flatten();
        IncrementalDecoder::new(self.cell, table, layers, (output.weight(), output.bias()))
    }

    /// All layers, of which `first` is the first, given the state it starts from.
    fn layers_on(
        &self,
        sequences: &Arc<PackedSequences>,
        state: Option<&RecurrentState>,
        mode: Mode,
        first: impl FnOnce(Option<&RecurrentState>) -> Result<(Tensor, RecurrentState)>,
    ) -> Result<(Tensor, RecurrentState)> {
        let directions = self.directions();
        let start = |layer: usize| {
            let part = |of: &Tensor| of.narrow(0, layer * directions, directions);
            let part = |RecurrentState { hidden, cell }: &RecurrentState| -> Result<RecurrentState> {
                Ok(RecurrentState { hidden: part(hidden)?, cell: cell.as_ref().map(part).transpose()? })
            };
            state.map(part).transpose()
        };
        let (mut xs, end) = first(start(0)?.as_ref())?;
        let (mut hidden, mut cells) = (vec![end.hidden], Vec::from_iter(end.cell));
        for (layer, (weights, dropout)) in (1..).zip(self.layers[1..].iter().zip(&self.dropout)) {
            xs = dropout.forward(&xs, mode)?;
            let (ys, end) = ops::recurrent(self.cell, &xs, sequences, weights, start(layer)?.as_ref())?;
            hidden.push(end.hidden);
            cells.extend(end.cell);
            xs = ys;
        }
        let cell = if cells.is_empty() { None } else { Some(Tensor::cat(&cells, 0)?) };
        Ok((xs, RecurrentState { hidden: Tensor::cat(&hidden, 0)?, cell }))
    }
}

/// What each token of a table adds to the gates of a network's first layer.
#[derive(Debug, Clone)]
pub struct TokenProjection(Vec<RecurrentWeights>);

impl RecurrentState {
    /// The same numbers, through which no gradient goes back.
    pub fn detach(&self) -> Self {
        Self { hidden: self.hidden.detach(), cell: self.cell.as_ref().map(Tensor::detach) }
    }

    /// The hidden states `(batch, directions * hidden)` of the last layer, which reads in so many directions.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn last_layer(&self, directions: usize) -> Result<Tensor> {
        let layers = self.hidden.dim(0)?;
        let last = (layers - directions.min(layers)..layers).map(|i| self.hidden.get(i));
        Tensor::cat(&last.collect::<Result<Vec<_>>>()?, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::seeded_var_builder;
    use candle_core::{DType, Device};
    use candle_nn::VarMap;

    #[test]
    fn the_forget_bias_is_set_at_the_start_and_not_over_known_weights() -> Result<()> {
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
