//! A recurrent network that reads one token at a time, without tensors or a graph.
//!
//! One step is so little work that tensors would cost more than the step itself.

use super::arguments::{RecurrentWeights, check_bias, check_recurrent_weights};
use super::{Cell, PackedSequences};
use crate::kernels::cpu::decoder::{DecoderLayer, DecoderOutput};
use crate::kernels::cpu::recurrent::Weights;
use candle_core::{DType, Device, Result, Tensor, bail};

/// A recurrent network with a linear output layer that reads a sequence token by token.
///
/// It keeps its state between tokens. It computes in f32 on the CPU, whatever the device of the weights: a single token
/// is too little work for other devices. Later changes of the weights do not affect it.
pub struct IncrementalDecoder {
    tokens: usize,
    layers: Vec<DecoderLayer>,
    output: DecoderOutput,
}

impl IncrementalDecoder {
    /// Creates a decoder before its first token, with a zero state.
    ///
    /// The rows of `table` `(tokens, features)` are the tokens' vectors, and `layers` the weights of one or more layers. The
    /// output layer has a weight `(outputs, hidden)` and possibly a bias `(outputs)`.
    ///
    /// # Errors
    /// Fails if there are no layers, or the shapes do not agree.
    pub fn new<'a>(
        cell: Cell,
        table: &Tensor,
        layers: impl IntoIterator<Item = &'a RecurrentWeights>,
        (output, bias): (&Tensor, Option<&Tensor>),
    ) -> Result<Self> {
        let (tokens, mut inputs) = table.dims2()?;
        let (table, single) = (values(table)?, PackedSequences::new(&[1])?);
        let mut stack = vec![];
        for weights in layers {
            let own = std::slice::from_ref(weights);
            let hidden = check_recurrent_weights(cell, |rows| [rows, inputs], &single, own, None)?;
            let (input, recurrent) = (values(&weights.input)?, values(&weights.hidden)?);
            let (input_bias, hidden_bias) = (values(&weights.input_bias)?, values(&weights.hidden_bias)?);
            let weights = Weights {
                input: &input,
                hidden: &recurrent,
                input_bias: &input_bias,
                hidden_bias: &hidden_bias,
            };
            stack.push(match stack.is_empty() {
                true => DecoderLayer::first(cell, weights, &table, tokens),
                false => DecoderLayer::upper(cell, weights),
            });
            inputs = hidden;
        }
        let outputs = match output.dims() {
            &[outputs, found] if found == inputs && !stack.is_empty() => outputs,
            dims => bail!(
                "incremental decoder: found an output weight of shape {dims:?} after {} layers, expected (outputs, \
                 {inputs}) after one layer or more",
                stack.len()
            ),
        };
        check_bias("incremental decoder", bias, outputs)?;
        let bias = bias.map_or(Ok(vec![0.0; outputs]), values)?;
        Ok(Self { tokens, layers: stack, output: DecoderOutput::new(&values(output)?, bias) })
    }

    /// Reads the token `id` and returns the outputs after it, such as the logits of the next token.
    ///
    /// # Errors
    /// Fails if `id` is not below the number of tokens.
    pub fn step(&mut self, id: u32) -> Result<Vec<f32>> {
        if id as usize >= self.tokens {
            bail!("incremental decoder: found the id {id}, expected one below {}", self.tokens);
        }
        let mut xs: &[f32] = &[];
        for layer in &mut self.layers {
            xs = layer.step(id as usize, xs);
        }
        Ok(self.output.apply(xs))
    }

    /// The value that each unit of each layer holds, from -1 to 1 (Karpathy et al. 2015, section 4.2).
    ///
    /// For an LSTM it is the tanh of the cell state, for other cells the hidden state. The hidden state of a ReLU layer
    /// may exceed 1.
    pub fn activations(&self) -> Vec<Vec<f32>> {
        self.layers.iter().map(DecoderLayer::activations).collect()
    }
}

/// The elements of a tensor on any device, in f32.
fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}
