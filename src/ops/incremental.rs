//! A recurrent network that goes on by one step at a time, outside of candle's graph.
//!
//! A step is so little work that tensors around it would cost more than it does: the weights are laid out once for the
//! products, and all that changes are a few vectors.

use super::linear::check_bias;
use super::recurrent::{RecurrentWeights, check};
use super::{Cell, PackedSequences};
use crate::kernels::cpu::cells::{self, Gates};
use crate::kernels::cpu::matmul::{Init, Lhs, Panels, gemm, gemm_serial};
use crate::kernels::cpu::simd::vectorised;
use candle_core::{DType, Device, Result, Tensor, bail};

/// Tokens that a recurrent network with a linear layer after it reads one by one.
///
/// In f32 and on the CPU wherever the weights are: one token is too little work for any other device.
pub struct IncrementalDecoder {
    cell: Cell,
    tokens: usize,
    layers: Vec<Layer>,
    output: Panels<f32>,
    output_bias: Vec<f32>,
}

struct Layer {
    input: Input,
    recurrent: Panels<f32>,
    gates: Vec<f32>,
    hidden: Vec<f32>,
    /// LSTM's cells.
    cells: Vec<f32>,
    /// What was there before the step, of LSTM the cells, of others the hidden state.
    before: Vec<f32>,
}

/// What a layer's gates hold before the hidden state adds to them.
enum Input {
    /// Of each token.
    Tokens(Vec<f32>),
    /// The biases and the product with the layer below.
    Below(Vec<f32>, Panels<f32>),
}

impl IncrementalDecoder {
    /// Before the first token: the state is zero. Of `table` `(tokens, features)` the rows are the tokens' vectors; of
    /// `output` the weight is `(outputs, hidden)` and the bias, if there is one, `(outputs)`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn new<'a>(
        cell: Cell,
        table: &Tensor,
        layers: impl IntoIterator<Item = &'a RecurrentWeights>,
        (output, bias): (&Tensor, Option<&Tensor>),
    ) -> Result<Self> {
        let (tokens, mut features) = table.dims2()?;
        let (table, one) = (numbers(table)?, PackedSequences::new(&[1])?);
        let mut stack: Vec<Layer> = vec![];
        for weights in layers {
            let hidden = check(cell, |gates| [gates, features], &one, std::slice::from_ref(weights), None)?;
            let (layout, input) = (Gates::new(cell, hidden), numbers(&weights.input)?);
            let input = layout.input_panels(&input);
            let recurrent = numbers(&weights.hidden)?;
            let start = layout.start(&numbers(&weights.input_bias)?, &numbers(&weights.hidden_bias)?);
            let len = start.len();
            let input = match stack.is_empty() {
                true => {
                    let mut rows = start.repeat(tokens);
                    gemm((&table, features), &input, &mut rows, len, Init::Accumulate);
                    Input::Tokens(rows)
                }
                false => Input::Below(start, input),
            };
            let zeros = vec![0.0; hidden];
            stack.push(Layer {
                input,
                recurrent: layout.recurrent_panels(&recurrent),
                gates: vec![0.0; len],
                hidden: zeros.clone(),
                cells: zeros.clone(),
                before: zeros,
            });
            features = hidden;
        }
        let outputs = match output.dims() {
            &[outputs, inputs] if inputs == features && !stack.is_empty() => outputs,
            dims => bail!(
                "steps: found an output weight of shape {dims:?} after {} layers, expected (outputs, {features}) \
                 after one or more",
                stack.len()
            ),
        };
        check_bias("steps", bias, outputs)?;
        let output = numbers(output)?;
        Ok(Self {
            cell,
            tokens,
            layers: stack,
            output: Panels::transposed((features, outputs), |at| &output[at * features..]),
            output_bias: bias.map_or(Ok(vec![0.0; outputs]), numbers)?,
        })
    }

    /// Reads the token `id`; what the output layer makes of the state after it.
    ///
    /// # Errors
    /// When the id is no token's.
    pub fn step(&mut self, id: u32) -> Result<Vec<f32>> {
        if id as usize >= self.tokens {
            bail!("steps: found the id {id}, expected one below {}", self.tokens);
        }
        let mut xs: &[f32] = &[];
        for layer in &mut self.layers {
            layer.step(self.cell, id as usize, xs);
            xs = &layer.hidden;
        }
        let mut ys = self.output_bias.clone();
        gemm_serial(Lhs::Rows(xs, xs.len()), &self.output, &mut ys, (1, 0), Init::Accumulate);
        Ok(ys)
    }

    /// What each unit of each layer holds now, from -1 to 1: of LSTM the tanh of its cell, of others the hidden state
    /// (Karpathy et al. 2015, section 4.2).
    pub fn activations(&self) -> Vec<Vec<f32>> {
        let held = |layer: &Layer| match self.cell.has_cell_state() {
            true => layer.cells.iter().map(|cell| cell.tanh()).collect(),
            false => layer.hidden.clone(),
        };
        self.layers.iter().map(held).collect()
    }
}

impl Layer {
    fn step(&mut self, cell: Cell, id: usize, below: &[f32]) {
        let Self { input, recurrent, gates, hidden, cells, before } = self;
        match input {
            Input::Tokens(rows) => {
                let len = gates.len();
                gates.copy_from_slice(&rows[id * len..][..len]);
            }
            Input::Below(start, weight) => {
                gates.copy_from_slice(start);
                gemm_serial(Lhs::Rows(below, below.len()), weight, &mut *gates, (1, 0), Init::Accumulate);
            }
        }
        let at = Gates::new(cell, hidden.len()).hidden_at;
        gemm_serial(Lhs::Rows(hidden, hidden.len()), recurrent, &mut gates[at..], (1, 0), Init::Accumulate);
        std::mem::swap(before, if cell.has_cell_state() { cells } else { hidden });
        vectorised(
            #[inline(always)]
            || cells::step(cell, gates, before, cells, hidden),
        );
    }
}

fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}
