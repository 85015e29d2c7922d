//! A stack of recurrent layers that reads one token at a time.

use super::cells::{self, Cell, GateLayout};
use super::matmul::{Init, Lhs, Panels, gemm, gemm_serial};
use super::real::Real;
use super::recurrent::Weights;
use super::simd::vectorised;

/// One layer, its weights laid out for single rows, and its state.
pub(crate) struct DecoderLayer {
    cell: Cell,
    layout: GateLayout,
    input: Input,
    hidden_weights: Panels<f32>,
    gates: Vec<f32>,
    hidden: Vec<f32>,
    /// The cell state of an LSTM.
    cells: Vec<f32>,
    /// The state that the cell reads from the previous step: an LSTM's cell state, or the hidden state.
    previous: Vec<f32>,
}

/// The source of a layer's gate pre-activations before the hidden product.
enum Input {
    /// Biases plus input product, one row per token.
    Tokens(Vec<f32>),
    /// The biases, and the weights for the output of the layer below.
    Layer(Vec<f32>, Panels<f32>),
}

impl DecoderLayer {
    /// The first layer: its input is a row of `table`, `(tokens, features)`.
    pub fn first(cell: Cell, weights: Weights<f32>, table: &[f32], tokens: usize) -> Self {
        let layout = Self::layout(cell, weights);
        let panels = layout.input_panels(weights.input);
        let mut rows = layout.biases(weights.input_bias, weights.hidden_bias).repeat(tokens);
        let features = weights.input.len() / layout.width;
        gemm((table, features), &panels, &mut rows, layout.len(), Init::Accumulate);
        Self::new(cell, weights, Input::Tokens(rows))
    }

    /// A layer that reads the hidden state of the layer below.
    pub fn upper(cell: Cell, weights: Weights<f32>) -> Self {
        let layout = Self::layout(cell, weights);
        let biases = layout.biases(weights.input_bias, weights.hidden_bias);
        Self::new(cell, weights, Input::Layer(biases, layout.input_panels(weights.input)))
    }

    fn layout(cell: Cell, weights: Weights<f32>) -> GateLayout {
        GateLayout::new(cell, weights.hidden_bias.len() / cell.gates())
    }

    fn new(cell: Cell, weights: Weights<f32>, input: Input) -> Self {
        let layout = Self::layout(cell, weights);
        let zeros = vec![0.0; weights.hidden_bias.len() / cell.gates()];
        Self {
            cell,
            layout,
            input,
            hidden_weights: layout.hidden_panels(weights.hidden),
            gates: vec![0.0; layout.len()],
            hidden: zeros.clone(),
            cells: zeros.clone(),
            previous: zeros,
        }
    }

    /// Advances by one step, and returns the new hidden state.
    ///
    /// The first layer reads the token `id`, any other layer the hidden state `below`.
    pub fn step(&mut self, id: usize, below: &[f32]) -> &[f32] {
        let Self { cell, layout, input, hidden_weights, gates, hidden, cells, previous } = self;
        match input {
            Input::Tokens(rows) => {
                let len = gates.len();
                gates.copy_from_slice(&rows[id * len..][..len]);
            }
            Input::Layer(biases, weights) => {
                gates.copy_from_slice(biases);
                gemm_serial(Lhs::Rows(below, below.len()), weights, &mut *gates, (1, 0), Init::Accumulate);
            }
        }
        let covered = &mut gates[layout.hidden_offset..];
        gemm_serial(Lhs::Rows(hidden, hidden.len()), hidden_weights, covered, (1, 0), Init::Accumulate);
        std::mem::swap(previous, if cell.has_cell_state() { cells } else { hidden });
        vectorised(
            #[inline(always)]
            || cells::step(*cell, gates, previous, &mut *cells, &mut *hidden),
        );
        hidden
    }

    /// The value that each unit holds, from -1 to 1.
    ///
    /// It is the tanh of an LSTM's cell state, or else the hidden state.
    pub fn activations(&self) -> Vec<f32> {
        match self.cell.has_cell_state() {
            true => self.cells.iter().map(|&cell| Real::tanh(cell)).collect(),
            false => self.hidden.clone(),
        }
    }
}

/// A linear layer on one row: `(outputs, inputs)` weights, `(outputs)` bias.
pub(crate) struct DecoderOutput {
    weights: Panels<f32>,
    bias: Vec<f32>,
}

impl DecoderOutput {
    pub fn new(weights: &[f32], bias: Vec<f32>) -> Self {
        let outputs = bias.len();
        let inputs = weights.len() / outputs.max(1);
        Self { weights: Panels::transposed((inputs, outputs), |output| &weights[output * inputs..]), bias }
    }

    pub fn apply(&self, xs: &[f32]) -> Vec<f32> {
        let mut ys = self.bias.clone();
        gemm_serial(Lhs::Rows(xs, xs.len()), &self.weights, &mut ys, (1, 0), Init::Accumulate);
        ys
    }
}
