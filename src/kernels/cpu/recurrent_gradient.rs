//! The gradients of a recurrent layer.
//!
//! [`backward`] goes back through time over the gates from the forward pass. It computes the gradients of all gate
//! pre-activations and of the initial state. The gradients of the input and of the parameters are then products and
//! sums over whole sequences, one function each.

use super::cells::{Cell, StepGradient};
use super::linear::column_sums;
use super::matmul::{Init, Lhs, Panels, gemm, gemm_serial, gemm_transposed};
use super::memory;
use super::parallel::{self, Shared};
use super::recurrent::{Chunk, InitialState, Input, Layer, Step, Weights, rows_of};
use super::simd::{Lanes, vectorised};
use std::mem::MaybeUninit;

/// The tensors of the forward pass that the backward pass reads.
#[derive(Clone, Copy)]
pub(crate) struct Saved<'a, T> {
    /// The outputs, `(rows, directions * hidden)`.
    pub ys: &'a [T],
    /// The activated gates, `(directions, rows, stride)`; empty for Elman cells.
    pub gates: &'a [T],
    /// The cell states of an LSTM, `(directions, rows, hidden)`; otherwise empty.
    pub cells: &'a [T],
}

/// The result of going back through time.
pub(crate) struct Backward<T> {
    /// Gradients of the gate pre-activations, `(directions, rows, stride)`.
    pub gates: Vec<T>,
    /// Gradients of the initial hidden state, `(directions, batch, hidden)`, longest sequence first.
    pub hidden: Vec<T>,
    /// Gradients of the initial cell state, in the same layout.
    pub cell: Vec<T>,
}

/// The gradient of the cell states of an LSTM.
#[derive(Clone, Copy)]
pub(crate) enum CellGradient<'a, T> {
    /// Of the final states, `(directions, batch, hidden)` in the order of the batch.
    Final(&'a [T]),
    /// Of all states, `(directions, rows, hidden)`.
    Every(&'a [T]),
}

/// Goes back through time from `grad`, the gradient of the outputs, and `cell_grad`.
pub(crate) fn backward<T: Lanes>(
    layer: Layer,
    weights: &[Weights<T>],
    initial: &InitialState<T>,
    saved: Saved<T>,
    grad: &[T],
    cell_grad: Option<CellGradient<T>>,
) -> Backward<T> {
    let Layer { hidden, directions, .. } = layer;
    let (rows, batch, layout) = (layer.sequences.rows(), layer.sequences.batch(), layer.gate_layout());
    debug_assert_eq!(grad.len(), rows * directions * hidden);
    let mut gate_grads = memory::uninit(directions * rows * layout.stride);
    let zeros = || vec![T::ZERO; directions * batch * hidden];
    let mut state_grads = zeros();
    let (mut cell_grads, every_cell_grad) = match cell_grad {
        None => (zeros(), None),
        Some(CellGradient::Final(grad)) => (layer.to_packed_order(grad), None),
        Some(CellGradient::Every(grad)) => (zeros(), Some(grad)),
    };
    let panels = |weights: &Weights<T>| {
        let weight = weights.hidden;
        Panels::new((layout.width, hidden), |gate| &weight[gate * hidden..])
    };
    let pass = BackwardPass {
        layer,
        weights: weights.iter().map(panels).collect(),
        initial,
        zeros: vec![T::ZERO; hidden],
        saved,
        grad,
        every_cell_grad,
        gate_grads: Shared::new(&mut gate_grads),
        state_grads: Shared::new(&mut state_grads),
        cell_grads: Shared::new(&mut cell_grads),
    };
    let chunks = layer.chunks();
    // SAFETY: the chunks are disjoint, and each runs once.
    parallel::for_each_chunk(chunks.len(), |i| unsafe { pass.run(chunks[i]) });
    drop(pass);
    // SAFETY: every row of each direction belongs to one step of one chunk, which has written it.
    let gates = unsafe { memory::assume_init(gate_grads) };
    Backward { gates, hidden: state_grads, cell: cell_grads }
}

/// The loop back through time, and the buffers that its chunks write.
struct BackwardPass<'a, T> {
    layer: Layer<'a>,
    /// The hidden weights of each direction.
    weights: Vec<Panels<T>>,
    initial: &'a InitialState<T>,
    /// The initial state of a sequence if none is given.
    zeros: Vec<T>,
    saved: Saved<'a, T>,
    grad: &'a [T],
    /// The gradient of all cell states.
    every_cell_grad: Option<&'a [T]>,
    gate_grads: Shared<'a, MaybeUninit<T>>,
    /// Gradients of the state before the step processed last.
    state_grads: Shared<'a, T>,
    cell_grads: Shared<'a, T>,
}

impl<T: Lanes> BackwardPass<'_, T> {
    /// Goes back through all steps of one chunk.
    ///
    /// # Safety
    /// No chunk that shares a sequence and the direction with this one runs before or at the same time.
    unsafe fn run(&self, chunk: Chunk) {
        let (layer, layout, hidden) = (self.layer, self.layer.gate_layout(), self.layer.hidden);
        let first = chunk.direction * layer.sequences.batch() + chunk.start;
        let count = chunk.end - chunk.start;
        // SAFETY: only this chunk uses the states of its sequences, by the caller's contract.
        let (state_grads, cell_grads) = unsafe {
            (
                rows_of(&self.state_grads, first, count, hidden),
                rows_of(&self.cell_grads, first, count, hidden),
            )
        };
        for step in layer.steps(chunk).rev() {
            // SAFETY: this is the only call for this step, by the caller's contract.
            let gate_grads = unsafe { self.gate_gradients(chunk, &step, state_grads, cell_grads) };
            // Without an initial state, nothing precedes a sequence's first step.
            let count = if self.initial.hidden.is_empty() { step.carried } else { step.active };
            let left = Lhs::Rows(&gate_grads[layout.hidden_offset..], layout.stride);
            let start = if layer.cell == Cell::Gru { Init::Accumulate } else { Init::Zero };
            gemm_serial(left, &self.weights[chunk.direction], &mut *state_grads, (count, hidden), start);
        }
    }

    /// Writes the gradients of the gate pre-activations of a step's rows, and returns them.
    ///
    /// # Safety
    /// Only the caller uses the rows of the chunk's sequences.
    unsafe fn gate_gradients(
        &self,
        chunk: Chunk,
        step: &Step,
        state_grads: &mut [T],
        cell_grads: &mut [T],
    ) -> &[T] {
        let (layout, Layer { cell, hidden, directions, .. }) = (self.layer.gate_layout(), self.layer);
        let &Step { row, active, carried, previous } = step;
        let first = chunk.direction * self.layer.sequences.rows();
        let Saved { ys, gates, cells } = self.saved;
        // SAFETY: only the caller uses these rows, and it holds no slice of them.
        let gate_grads = unsafe { rows_of(&self.gate_grads, first + row, active, layout.stride) };
        let initial = self.initial.previous(self.layer, chunk);
        let output = |row: usize| {
            let start = (row * directions + chunk.direction) * hidden;
            start..start + hidden
        };
        // Buffers that a cell does not have are empty.
        let row_of = |buffer: &'_ [T], row: usize, width: usize| {
            let start = (first + row) * width;
            if buffer.is_empty() { 0..0 } else { start..start + width }
        };
        vectorised(
            #[inline(always)]
            || {
                for (i, gate_grads) in gate_grads.chunks_exact_mut(layout.stride).enumerate() {
                    let own = i * hidden..(i + 1) * hidden;
                    let previous = match i < carried {
                        true if cell.has_cell_state() => &cells[row_of(cells, previous + i, hidden)],
                        true => &ys[output(previous + i)],
                        false => initial.get(own.clone()).unwrap_or(&self.zeros),
                    };
                    let step = StepGradient {
                        gates: &gates[row_of(gates, row + i, layout.stride)],
                        previous,
                        cells: &cells[row_of(cells, row + i, hidden)],
                        y: &ys[output(row + i)],
                        grad: &self.grad[output(row + i)],
                    };
                    if let Some(grad) = self.every_cell_grad {
                        let grad = &grad[row_of(grad, row + i, hidden)];
                        cell_grads[own.clone()].iter_mut().zip(grad).for_each(|(sum, &grad)| *sum += grad);
                    }
                    step.run(cell, &mut state_grads[own.clone()], &mut cell_grads[own], gate_grads);
                }
            },
        );
        // SAFETY: the loop has written each row, with its padding.
        unsafe { memory::assume_init_mut(gate_grads) }
    }
}

/// The gradient of the input, `(rows, features)`.
pub(crate) fn input_gradient<T: Lanes>(layer: Layer, weights: &[Weights<T>], gate_grads: &[T]) -> Vec<T> {
    let (rows, features, layout) = (layer.sequences.rows(), layer.features, layer.gate_layout());
    let mut xs_grad = memory::uninit(rows * features);
    for (direction, weights) in weights.iter().enumerate() {
        let gate_grads = &gate_grads[direction * rows * layout.stride..];
        let row = |gate: usize| &weights.input[layout.input_row(gate) * features..];
        let panels = Panels::new((layout.width, features), row);
        let start = if direction == 0 { Init::Zero } else { Init::Accumulate };
        gemm((gate_grads, layout.stride), &panels, &mut xs_grad, features, start);
    }
    // SAFETY: the product of the first direction has written every element.
    unsafe { memory::assume_init(xs_grad) }
}

/// The gradients of a direction's input weights and hidden weights, in the shapes of [`Weights`].
pub(crate) fn weight_gradients<T: Lanes>(
    layer: Layer,
    direction: usize,
    input: Input<T>,
    ys: &[T],
    initial: &InitialState<T>,
    gate_grads: &[T],
) -> [Vec<T>; 2] {
    let Layer { features, hidden, directions, .. } = layer;
    let (rows, batch, layout) = (layer.sequences.rows(), layer.sequences.batch(), layer.gate_layout());
    let gate_grads = &gate_grads[direction * rows * layout.stride..][..rows * layout.stride];
    let (previous, zeros) = (layer.previous_states(direction), vec![T::ZERO; hidden]);
    let previous = |row: usize| match previous[row] {
        Previous::Row(row) => &ys[(row * directions + direction) * hidden..],
        Previous::Initial(place) => {
            let start = (direction * batch + place) * hidden;
            initial.hidden.get(start..start + hidden).unwrap_or(&zeros)
        }
    };
    let (left, dims) = ((gate_grads, layout.stride), (rows, layout.width));
    let hidden_gradient = || {
        let left = (&gate_grads[layout.hidden_offset..], layout.stride);
        let [gradient] = gemm_transposed(left, [(&previous, hidden)], dims);
        gradient
    };
    let xs = match input {
        Input::Tokens(ids) => return [token_gradient(layer, gate_grads, ids), hidden_gradient()],
        Input::Features(xs) => xs,
    };
    let xs = |row: usize| &xs[row * features..];
    let [mut input, hidden] = match layout.hidden_offset {
        // Both products have the same left-hand side, which is laid out once.
        0 => gemm_transposed(left, [(&xs, features), (&previous, hidden)], dims),
        _ => {
            let [input] = gemm_transposed(left, [(&xs, features)], dims);
            [input, hidden_gradient()]
        }
    };
    layout.rotate_to_input_order(&mut input, features);
    [input, hidden]
}

/// The gradient of the tokens' table: for each token the sum of the gate gradients of its occurrences.
fn token_gradient<T: Lanes>(layer: Layer, gate_grads: &[T], ids: &[u32]) -> Vec<T> {
    const PIECE: usize = 128;
    let layout = layer.gate_layout();
    let mut sums = vec![T::ZERO; layer.features * layout.width];
    let shared = Shared::new(&mut sums);
    parallel::for_each_chunk(layout.width.div_ceil(PIECE), |i| {
        let columns = i * PIECE..layout.width.min((i + 1) * PIECE);
        vectorised(
            #[inline(always)]
            || {
                for (gates, &id) in gate_grads.chunks_exact(layout.stride).zip(ids) {
                    let start = id as usize * layout.width;
                    // SAFETY: only this piece uses its columns.
                    let sums = unsafe { shared.slice(start + columns.start..start + columns.end) };
                    sums.iter_mut().zip(&gates[columns.clone()]).for_each(|(sum, &gate)| *sum += gate);
                }
            },
        );
    });
    sums.chunks_exact_mut(layout.width).for_each(|sums| layout.rotate_to_input_order(sums, 1));
    sums
}

/// The gradients of a direction's input bias and hidden bias.
pub(crate) fn bias_gradients<T: Lanes>(layer: Layer, direction: usize, gate_grads: &[T]) -> [Vec<T>; 2] {
    let (rows, layout) = (layer.sequences.rows(), layer.gate_layout());
    let gate_grads = &gate_grads[direction * rows * layout.stride..][..rows * layout.stride];
    let sums = column_sums(gate_grads, layout.stride, layout.len());
    let mut input = sums[..layout.width].to_vec();
    layout.rotate_to_input_order(&mut input, 1);
    [input, sums[layout.hidden_offset..].to_vec()]
}

/// Where the previous hidden state of a row is.
#[derive(Clone, Copy)]
enum Previous {
    /// The output at this row.
    Row(usize),
    /// The initial state of the sequence at this place in the order of descending length.
    Initial(usize),
}

impl Layer<'_> {
    /// Where the previous hidden state of each row is in a direction.
    fn previous_states(self, direction: usize) -> Vec<Previous> {
        let mut states = vec![Previous::Initial(0); self.sequences.rows()];
        let all = Chunk { direction, start: 0, end: self.sequences.batch() };
        for Step { row, active, carried, previous } in self.steps(all) {
            for i in 0..active {
                states[row + i] =
                    if i < carried { Previous::Row(previous + i) } else { Previous::Initial(i) };
            }
        }
        states
    }
}
