//! Recurrent cells: how their gates lie in memory, what they do at one step with the gates' sums, element by element, and
//! its gradient.
//!
//! `before` is what the step starts from: LSTM's cells, else the hidden state.

use super::matmul::Panels;
use super::parallel::{self, Shared};
use super::real::Real;
use super::simd::{Lanes, vectorised};

/// What a recurrent layer does at each step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    /// `h' = tanh(W x + b + U h + c)` (Elman 1990).
    Tanh,
    /// `h' = max(0, W x + b + U h + c)`.
    Relu,
    /// Gated recurrent unit (Cho et al. 2014), gates r, z, n; the reset gate acts after the hidden state's product, as
    /// in PyTorch: `h' = (1 - z) n + z h` with `n = tanh(W x + b + r (U h + c))`.
    Gru,
    /// Long short-term memory (Hochreiter and Schmidhuber 1997, with Gers' forget gate), gates i, f, g, o:
    /// `c' = f c + i g`, `h' = o tanh(c')`.
    Lstm,
}

impl Cell {
    /// How many gates the weights have, each as many rows as there are hidden units.
    pub fn gates(self) -> usize {
        match self {
            Self::Tanh | Self::Relu => 1,
            Self::Gru => 3,
            Self::Lstm => 4,
        }
    }

    /// Whether there is a cell state beside the hidden one.
    pub fn has_cell_state(self) -> bool {
        self == Self::Lstm
    }
}

/// How the gates of one step lie in memory: LSTM's as in its weights; GRU's as n's input part, r, z, n's hidden part,
/// so that what the input adds to and what the hidden state adds to each lie together.
#[derive(Clone, Copy)]
pub(crate) struct Gates {
    /// Numbers from one row to the next: a little more than there are, lest all rows meet in the same cache lines.
    pub row: usize,
    /// How many the input and the hidden state each add to.
    pub added: usize,
    /// Where those begin that the hidden state adds to.
    pub hidden_at: usize,
    /// Which row of the input's weights adds to the first.
    pub input_from: usize,
}

impl Gates {
    pub fn new(cell: Cell, hidden: usize) -> Self {
        let added = cell.gates() * hidden;
        let (hidden_at, input_from) = if cell == Cell::Gru { (hidden, 2 * hidden) } else { (0, 0) };
        Self { row: (hidden_at + added).next_multiple_of(16) + 16, added, hidden_at, input_from }
    }

    /// What a row starts from: the biases.
    pub fn start<T: Real>(self, input_bias: &[T], hidden_bias: &[T]) -> Vec<T> {
        let mut start = [&input_bias[self.input_from..], &input_bias[..self.input_from]].concat();
        start.resize(self.hidden_at + self.added, T::ZERO);
        start[self.hidden_at..].iter_mut().zip(hidden_bias).for_each(|(start, &bias)| *start += bias);
        start
    }

    /// The transpose of the input's weights.
    pub fn input_panels<T: Lanes>(self, weight: &[T]) -> Panels<T> {
        let features = weight.len() / self.added;
        Panels::transposed((features, self.added), |at| &weight[self.input_row(at) * features..])
    }

    /// The transpose of the hidden state's weights.
    pub fn recurrent_panels<T: Lanes>(self, weight: &[T]) -> Panels<T> {
        let hidden = weight.len() / self.added;
        Panels::transposed((hidden, self.added), |at| &weight[at * hidden..])
    }

    /// The sums of the rows of gates at which each of so many tokens is, in the order of the input's rows.
    pub fn sums_of_tokens<T: Real>(self, gates: &[T], ids: &[u32], tokens: usize) -> Vec<T> {
        const PIECE: usize = 128;
        let mut sums = vec![T::ZERO; tokens * self.added];
        let shared = Shared::new(&mut sums);
        parallel::for_each_chunk(self.added.div_ceil(PIECE), |i| {
            let columns = i * PIECE..self.added.min((i + 1) * PIECE);
            vectorised(
                #[inline(always)]
                || {
                    for (gates, &id) in gates.chunks_exact(self.row).zip(ids) {
                        let at = id as usize * self.added;
                        // SAFETY: each column is one chunk's.
                        let sums = unsafe { shared.slice(at + columns.start..at + columns.end) };
                        sums.iter_mut().zip(&gates[columns.clone()]).for_each(|(sum, &gate)| *sum += gate);
                    }
                },
            );
        });
        sums.chunks_exact_mut(self.added).for_each(|sums| sums.rotate_right(self.input_from));
        sums
    }

    /// The row of the input's weights that adds to gate `at`.
    pub fn input_row(self, at: usize) -> usize {
        let row = at + self.input_from;
        if row < self.added { row } else { row - self.added }
    }
}

/// The new state `y`, and LSTM's `cells`, of the gates' sums; of GRU and LSTM the gates become what they are after their
/// nonlinearities.
#[inline(always)]
pub(crate) fn step<T: Real>(cell: Cell, gates: &mut [T], before: &[T], cells: &mut [T], y: &mut [T]) {
    match cell {
        Cell::Tanh => elman(gates, y, T::tanh),
        Cell::Relu => elman(gates, y, T::relu),
        Cell::Gru => gru(gates, before, y),
        Cell::Lstm => lstm(gates, before, cells, y),
    }
}

/// Makes `f(inputs, outputs)` of the numbers at each place of some slices of the same length.
///
/// Sixteen places at a time go through arrays of their own, of which the compiler knows that they do not overlap: only
/// then does it make vector instructions of so many slices.
#[inline(always)]
fn each<T: Real, const IN: usize, const OUT: usize>(
    inputs: [&[T]; IN],
    mut outputs: [&mut [T]; OUT],
    f: impl Fn([T; IN], [T; OUT]) -> [T; OUT],
) {
    const BLOCK: usize = 16;
    let len = outputs[0].len();
    for start in (0..len).step_by(BLOCK) {
        let end = len.min(start + BLOCK);
        let (mut ins, mut outs) = ([[T::ZERO; BLOCK]; IN], [[T::ZERO; BLOCK]; OUT]);
        let load = |to: &mut [T; BLOCK], from: &[T]| match from[start..end].try_into() {
            Ok(block) => *to = block,
            Err(_) => to[..end - start].copy_from_slice(&from[start..end]),
        };
        ins.iter_mut().zip(&inputs).for_each(|(to, from)| load(to, from));
        outs.iter_mut().zip(&outputs).for_each(|(to, from)| load(to, from));
        for i in 0..BLOCK {
            let new = f(std::array::from_fn(|k| ins[k][i]), std::array::from_fn(|k| outs[k][i]));
            outs.iter_mut().zip(new).for_each(|(out, new)| out[i] = new);
        }
        for (to, from) in outputs.iter_mut().zip(&outs) {
            match <&mut [T; BLOCK]>::try_from(&mut to[start..end]) {
                Ok(to) => *to = *from,
                Err(_) => to[start..end].copy_from_slice(&from[..end - start]),
            }
        }
    }
}

/// Four gates, each of `hidden` numbers.
#[inline(always)]
fn four<T>(gates: &[T], hidden: usize) -> [&[T]; 4] {
    [0, 1, 2, 3].map(|i| &gates[i * hidden..(i + 1) * hidden])
}

#[inline(always)]
fn four_mut<T>(gates: &mut [T], hidden: usize) -> [&mut [T]; 4] {
    let (a, rest) = gates.split_at_mut(hidden);
    let (b, rest) = rest.split_at_mut(hidden);
    let (c, rest) = rest.split_at_mut(hidden);
    [a, b, c, &mut rest[..hidden]]
}

#[inline(always)]
fn elman<T: Real>(gates: &[T], y: &mut [T], activation: impl Fn(T) -> T) {
    each(
        [gates],
        [y],
        #[inline(always)]
        |[gate], _| [activation(gate)],
    );
}

#[inline(always)]
pub(crate) fn elman_back<T: Real>(
    y: &[T],
    grad: &[T],
    state: &[T],
    gate_grads: &mut [T],
    slope: impl Fn(T) -> T,
) {
    let gate_grads = &mut gate_grads[..y.len()];
    each(
        [y, grad, state],
        [gate_grads],
        #[inline(always)]
        |[y, grad, state], _| [(grad + state) * slope(y)],
    );
}

#[inline(always)]
fn lstm<T: Real>(gates: &mut [T], before: &[T], cells: &mut [T], y: &mut [T]) {
    let [i, f, g, o] = four_mut(gates, y.len());
    each(
        [before],
        [i, f, g, o, cells, y],
        #[inline(always)]
        |[before], [i, f, g, o, _, _]| {
            let (i, f, g, o) = (Real::sigmoid(i), Real::sigmoid(f), g.tanh(), Real::sigmoid(o));
            let cell = f * before + i * g;
            [i, f, g, o, cell, o * cell.tanh()]
        },
    );
}

#[inline(always)]
pub(crate) fn lstm_back<T: Real>(
    gates: &[T],
    before: &[T],
    cells: &[T],
    grad: &[T],
    state: &[T],
    cell_grad: &mut [T],
    gate_grads: &mut [T],
) {
    let [i, f, g, o] = four(gates, grad.len());
    let [to_i, to_f, to_g, to_o] = four_mut(gate_grads, grad.len());
    let inputs = [i, f, g, o, before, cells, grad, state];
    each(
        inputs,
        [to_i, to_f, to_g, to_o, cell_grad],
        #[inline(always)]
        |[i, f, g, o, before, cell, grad, state], old| {
            let (one, grad, tanh) = (T::ONE, grad + state, cell.tanh());
            let cell = old[4] + grad * o * (one - tanh * tanh);
            [
                cell * g * i * (one - i),
                cell * before * f * (one - f),
                cell * i * (one - g * g),
                grad * tanh * o * (one - o),
                cell * f,
            ]
        },
    );
}

#[inline(always)]
fn gru<T: Real>(gates: &mut [T], before: &[T], y: &mut [T]) {
    let [n, r, z, product] = four_mut(gates, y.len());
    each(
        [before, product],
        [n, r, z, y],
        #[inline(always)]
        |[before, product], [n, r, z, _]| {
            let (r, z) = (Real::sigmoid(r), Real::sigmoid(z));
            let n = (n + r * product).tanh();
            [n, r, z, n + z * (before - n)]
        },
    );
}

#[inline(always)]
pub(crate) fn gru_back<T: Real>(
    gates: &[T],
    before: &[T],
    grad: &[T],
    state: &mut [T],
    gate_grads: &mut [T],
) {
    let [n, r, z, product] = four(gates, grad.len());
    let [to_n, to_r, to_z, to_product] = four_mut(gate_grads, grad.len());
    let inputs = [n, r, z, product, before, grad];
    each(
        inputs,
        [to_n, to_r, to_z, to_product, state],
        #[inline(always)]
        |[n, r, z, product, before, grad], old| {
            let (one, grad) = (T::ONE, grad + old[4]);
            let inner = grad * (one - z) * (one - n * n);
            [inner, inner * product * r * (one - r), grad * (before - n) * z * (one - z), inner * r, grad * z]
        },
    );
}
