//! Recurrent layers with candle_nn's interface.
//!
//! [`recurrent`](super::recurrent()) supports several layers, both directions and sequences of different lengths.

use super::is_native;
use crate::ops::{self, Cell, PackedSequences, RecurrentState, RecurrentWeights};
use candle_core::{Result, Tensor, TensorId, bail};
use candle_nn::VarBuilder;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

pub use candle_nn::rnn::{Direction, GRUConfig, GRUState, LSTMConfig, LSTMState, RNN};

/// The parts that an [`LSTM`] and a [`GRU`] share.
#[derive(Debug, Clone)]
struct Layer {
    cell: Cell,
    weights: RecurrentWeights,
    has_biases: [bool; 2],
    hidden: usize,
    suffix: String,
    /// The hidden states of the last sequences, until [`RNN::states_to_tensor`] takes them.
    last: Arc<Mutex<Option<Sequences>>>,
}

/// Hidden states `(steps, batch, hidden)`, with the ids of the tensors that show one step each.
#[derive(Debug)]
struct Sequences {
    ids: Vec<TensorId>,
    states: Tensor,
}

impl Layer {
    fn new(
        cell: Cell,
        [features, hidden]: [usize; 2],
        [input, recurrent]: [candle_nn::Init; 2],
        biases: [Option<candle_nn::Init>; 2],
        suffix: String,
        vb: VarBuilder,
    ) -> Result<Self> {
        let rows = cell.gates() * hidden;
        let bias = |name: &str, init: Option<candle_nn::Init>| match init {
            Some(init) => vb.get_with_hints(rows, &format!("bias_{name}_{suffix}"), init),
            None => Tensor::zeros(rows, vb.dtype(), vb.device()),
        };
        let weights = RecurrentWeights {
            input: vb.get_with_hints((rows, features), &format!("weight_ih_{suffix}"), input)?,
            hidden: vb.get_with_hints((rows, hidden), &format!("weight_hh_{suffix}"), recurrent)?,
            input_bias: bias("ih", biases[0])?,
            hidden_bias: bias("hh", biases[1])?,
        };
        let has_biases = biases.map(|bias| bias.is_some());
        Ok(Self { cell, weights, has_biases, hidden, suffix, last: Arc::default() })
    }

    fn zeros(&self, batch: usize) -> Result<Tensor> {
        Tensor::zeros((batch, self.hidden), self.weights.hidden.dtype(), self.weights.hidden.device())
    }

    /// Returns a builder over the parameters, for candle's layer in types without kernels of this crate.
    fn var_builder(&self) -> VarBuilder<'static> {
        let RecurrentWeights { input, hidden, input_bias, hidden_bias } = &self.weights;
        let mut tensors = HashMap::new();
        for (name, tensor) in
            [("weight_ih", input), ("weight_hh", hidden), ("bias_ih", input_bias), ("bias_hh", hidden_bias)]
        {
            tensors.insert(format!("{name}_{}", self.suffix), tensor.clone());
        }
        VarBuilder::from_tensors(tensors, hidden.dtype(), hidden.device())
    }

    /// Computes the next hidden and cell state from `(batch, features)` and states `(batch, hidden)`.
    fn step(&self, xs: &Tensor, hidden: &Tensor, cell: Option<&Tensor>) -> Result<(Tensor, Option<Tensor>)> {
        let sequences = Arc::new(PackedSequences::new(&vec![1; xs.dim(0)?])?);
        let state = initial(hidden, cell)?;
        let weights = std::slice::from_ref(&self.weights);
        let (hidden, state) = ops::recurrent(self.cell, xs, &sequences, weights, Some(&state))?;
        let cell = match state.cell {
            Some(cell) => Some(ops::reshape(&cell, hidden.shape())?),
            None => None,
        };
        Ok((hidden, cell))
    }

    /// Computes the hidden and cell states of all steps of `xs` `(batch, steps, features)`.
    fn sequences(
        &self,
        xs: &Tensor,
        hidden: &Tensor,
        cell: Option<&Tensor>,
    ) -> Result<Vec<(Tensor, Option<Tensor>)>> {
        let keep = |states: Option<Sequences>| {
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = states;
        };
        // The old states would keep their graph in memory.
        keep(None);
        let (batch, steps, features) = xs.dims3()?;
        if steps == 0 {
            return Ok(vec![]);
        }
        let sequences = Arc::new(PackedSequences::new(&vec![steps; batch])?);
        let rows = ops::reshape(&xs.transpose(0, 1)?.contiguous()?, (steps * batch, features))?;
        let state = initial(hidden, cell)?;
        let (ys, cells) = ops::recurrent_states(self.cell, &rows, &sequences, &self.weights, Some(&state))?;
        let step = |states: &Tensor, step: usize| states.narrow(0, step * batch, batch);
        let states = (0..steps)
            .map(|i| Ok((step(&ys, i)?, cells.as_ref().map(|cells| step(cells, i)).transpose()?)))
            .collect::<Result<Vec<_>>>()?;
        let ids = states.iter().map(|(hidden, _)| hidden.id()).collect();
        keep(Some(Sequences { ids, states: ops::reshape(&ys, (steps, batch, self.hidden))? }));
        Ok(states)
    }

    /// Returns the hidden states `(batch, steps, hidden)`, one tensor for each step.
    ///
    /// For the states of the last sequences this is the output of the operation that computed them. Stacking their
    /// views would make the backward pass go over all states once per view.
    fn stack(&self, states: Vec<Tensor>) -> Result<Tensor> {
        let same = |last: &mut Sequences| states.iter().map(Tensor::id).eq(last.ids.iter().copied());
        let taken = self.last.lock().unwrap_or_else(PoisonError::into_inner).take_if(same);
        match taken {
            Some(Sequences { states, .. }) => states.transpose(0, 1)?.contiguous(),
            None => Tensor::stack(&states, 1),
        }
    }

    /// Whether all steps can be one operation.
    fn is_fused(&self, xs: &Tensor) -> bool {
        is_native(xs) && xs.device().is_cpu() && ops::gpu::Gpu::of(xs).is_none()
    }
}

fn initial(hidden: &Tensor, cell: Option<&Tensor>) -> Result<RecurrentState> {
    let layer = |state: &Tensor| match state.dims() {
        &[batch, hidden] => ops::reshape(state, (1, batch, hidden)),
        dims => bail!("recurrent: found a state of shape {dims:?}, expected (batch, hidden)"),
    };
    Ok(RecurrentState { hidden: layer(hidden)?, cell: cell.map(layer).transpose()? })
}

/// A layer of long short-term memory (Hochreiter and Schmidhuber 1997).
///
/// On the CPU, [`RNN::seq`] is one operation for all time steps.
#[derive(Debug, Clone)]
pub struct LSTM {
    layer: Layer,
    config: LSTMConfig,
}

/// Creates an LSTM layer; see [`LSTM::new`].
///
/// # Errors
/// Fails if [`LSTM::new`] would.
pub fn lstm(features: usize, hidden: usize, config: LSTMConfig, vb: VarBuilder) -> Result<LSTM> {
    LSTM::new(features, hidden, config, vb)
}

impl LSTM {
    /// Creates an LSTM layer with the initial values of `config`.
    ///
    /// Parameters in `vb`, for layer k: `weight_ih_lk` `(4 * hidden, features)`, `weight_hh_lk` `(4 * hidden, hidden)`,
    /// `bias_ih_lk` and `bias_hh_lk` `(4 * hidden)`; with the suffix `_reverse` for [`Direction::Backward`].
    ///
    /// # Errors
    /// Fails if `vb` holds a parameter in another shape.
    pub fn new(features: usize, hidden: usize, config: LSTMConfig, vb: VarBuilder) -> Result<Self> {
        let end = if matches!(config.direction, Direction::Backward) { "_reverse" } else { "" };
        let suffix = format!("l{}{end}", config.layer_idx);
        let (weights, biases) = ([config.w_ih_init, config.w_hh_init], [config.b_ih_init, config.b_hh_init]);
        let layer = Layer::new(Cell::Lstm, [features, hidden], weights, biases, suffix, vb)?;
        Ok(Self { layer, config })
    }

    /// The configuration.
    pub fn config(&self) -> &LSTMConfig {
        &self.config
    }

    fn as_candle(&self) -> Result<candle_nn::LSTM> {
        let [input, hidden] = self.layer.has_biases;
        let zero = Some(candle_nn::init::ZERO);
        let config = LSTMConfig {
            b_ih_init: zero.filter(|_| input),
            b_hh_init: zero.filter(|_| hidden),
            ..self.config
        };
        let (_, features) = self.layer.weights.input.dims2()?;
        candle_nn::LSTM::new(features, self.layer.hidden, config, self.layer.var_builder())
    }
}

impl RNN for LSTM {
    type State = LSTMState;

    fn zero_state(&self, batch: usize) -> Result<LSTMState> {
        let zeros = self.layer.zeros(batch)?;
        Ok(LSTMState::new(zeros.clone(), zeros))
    }

    fn step(&self, xs: &Tensor, state: &LSTMState) -> Result<LSTMState> {
        if !is_native(xs) {
            return self.as_candle()?.step(xs, state);
        }
        let (h, cell) = self.layer.step(xs, &state.h, Some(&state.c))?;
        Ok(LSTMState::new(h, cell.unwrap_or_else(|| state.c.clone())))
    }

    fn seq_init(&self, xs: &Tensor, state: &LSTMState) -> Result<Vec<LSTMState>> {
        if !self.layer.is_fused(xs) {
            return steps(self, xs, state);
        }
        let states = self.layer.sequences(xs, &state.h, Some(&state.c))?;
        Ok(states.into_iter().map(|(h, c)| LSTMState::new(h.clone(), c.unwrap_or(h))).collect())
    }

    fn states_to_tensor(&self, states: &[LSTMState]) -> Result<Tensor> {
        self.layer.stack(states.iter().map(|state| state.h.clone()).collect())
    }
}

/// A layer of gated recurrent units (Cho et al. 2014), in PyTorch's variant.
///
/// On the CPU, [`RNN::seq`] is one operation for all time steps.
#[derive(Debug, Clone)]
pub struct GRU {
    layer: Layer,
    config: GRUConfig,
}

/// Creates a GRU layer; see [`GRU::new`].
///
/// # Errors
/// Fails if [`GRU::new`] would.
pub fn gru(features: usize, hidden: usize, config: GRUConfig, vb: VarBuilder) -> Result<GRU> {
    GRU::new(features, hidden, config, vb)
}

impl GRU {
    /// Creates a GRU layer with the initial values of `config`.
    ///
    /// Parameters in `vb`: `weight_ih_l0` `(3 * hidden, features)`, `weight_hh_l0` `(3 * hidden, hidden)`, `bias_ih_l0` and
    /// `bias_hh_l0` `(3 * hidden)`.
    ///
    /// # Errors
    /// Fails if `vb` holds a parameter in another shape.
    pub fn new(features: usize, hidden: usize, config: GRUConfig, vb: VarBuilder) -> Result<Self> {
        let (weights, biases) = ([config.w_ih_init, config.w_hh_init], [config.b_ih_init, config.b_hh_init]);
        let layer = Layer::new(Cell::Gru, [features, hidden], weights, biases, "l0".to_string(), vb)?;
        Ok(Self { layer, config })
    }

    /// The configuration.
    pub fn config(&self) -> &GRUConfig {
        &self.config
    }

    fn as_candle(&self) -> Result<candle_nn::GRU> {
        let [input, hidden] = self.layer.has_biases;
        let zero = Some(candle_nn::init::ZERO);
        let config = GRUConfig {
            b_ih_init: zero.filter(|_| input),
            b_hh_init: zero.filter(|_| hidden),
            ..self.config
        };
        let (_, features) = self.layer.weights.input.dims2()?;
        candle_nn::GRU::new(features, self.layer.hidden, config, self.layer.var_builder())
    }
}

impl RNN for GRU {
    type State = GRUState;

    fn zero_state(&self, batch: usize) -> Result<GRUState> {
        Ok(GRUState { h: self.layer.zeros(batch)? })
    }

    fn step(&self, xs: &Tensor, state: &GRUState) -> Result<GRUState> {
        match is_native(xs) {
            true => Ok(GRUState { h: self.layer.step(xs, &state.h, None)?.0 }),
            false => self.as_candle()?.step(xs, state),
        }
    }

    fn seq_init(&self, xs: &Tensor, state: &GRUState) -> Result<Vec<GRUState>> {
        if !self.layer.is_fused(xs) {
            return steps(self, xs, state);
        }
        let states = self.layer.sequences(xs, &state.h, None)?;
        Ok(states.into_iter().map(|(h, _)| GRUState { h }).collect())
    }

    /// The hidden states side by side, `(batch, steps * hidden)`, as in candle_nn.
    fn states_to_tensor(&self, states: &[GRUState]) -> Result<Tensor> {
        self.layer.stack(states.iter().map(|state| state.h.clone()).collect())?.flatten_from(1)
    }
}

/// Runs the network step by step over `xs` `(batch, steps, features)`.
fn steps<R: RNN>(rnn: &R, xs: &Tensor, state: &R::State) -> Result<Vec<R::State>> {
    let mut states: Vec<R::State> = vec![];
    for step in 0..xs.dim(1)? {
        let xs = xs.narrow(1, step, 1)?.squeeze(1)?.contiguous()?;
        states.push(rnn.step(&xs, states.last().unwrap_or(state))?);
    }
    Ok(states)
}
