//! Recurrent cells: the layout of their gates in memory, and one time step of each with its gradient.
//!
//! `previous` is the state at the step before: the cell state of an LSTM, the hidden state of the other cells.

use super::matmul::Panels;
use super::memory::Destination;
use super::real::Real;
use super::simd::Lanes;
use std::fmt;
use std::mem::MaybeUninit;

/// The cell of a recurrent layer: the function from the input and the state to the next state.
///
/// `x` is the input, `h` the hidden state, `c` the cell state, `σ` the logistic function; products of gates are
/// element-wise. Gates and parameters are PyTorch's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    /// Elman network: `h' = tanh(W x + b + U h + d)` (Elman 1990).
    Tanh,
    /// Elman network with a ReLU: `h' = max(0, W x + b + U h + d)`.
    Relu,
    /// Gated recurrent unit (Cho et al. 2014): `h' = (1 - z) n + z h`.
    ///
    /// The gates are the reset gate `r = σ(..)`, the update gate `z = σ(..)` and `n = tanh(W x + b + r (U h + d))`. The
    /// rows of the weights belong to r, z and n, in this order. As in PyTorch, and unlike the paper, the reset gate
    /// acts on the product with `h`, not on `h`.
    Gru,
    /// Long short-term memory (Hochreiter and Schmidhuber 1997): `c' = f c + i g` and `h' = o tanh(c')`.
    ///
    /// The gates are `i, f, o = σ(..)` and `g = tanh(..)`, with the forget gate of Gers et al. 2000. The rows of the
    /// weights belong to i, f, g and o, in this order.
    Lstm,
}

impl Cell {
    /// Number of gates; the weights have one row per gate and hidden unit.
    pub fn gates(self) -> usize {
        match self {
            Self::Tanh | Self::Relu => 1,
            Self::Gru => 3,
            Self::Lstm => 4,
        }
    }

    /// Whether the cell has a cell state besides the hidden state.
    pub fn has_cell_state(self) -> bool {
        self == Self::Lstm
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Tanh => "tanh",
            Self::Relu => "ReLU",
            Self::Gru => "GRU",
            Self::Lstm => "LSTM",
        })
    }
}

/// The layout of one element's gate pre-activations.
///
/// The gates of an LSTM have the order of its weights: i, f, g, o. The gates of a GRU have the order n (input part), r,
/// z, n (hidden part): the input product covers the first three and the hidden product the last three, so that both are
/// contiguous.
#[derive(Clone, Copy)]
pub(crate) struct GateLayout {
    /// Distance from one element's gates to the next element's.
    ///
    /// Rows are padded. Otherwise all of them would fall into the same few cache sets if the number of units is a power
    /// of two.
    pub stride: usize,
    /// Number of pre-activations that the input product covers; the hidden product covers as many.
    pub width: usize,
    /// The first pre-activation that the hidden product covers; the input product starts at 0.
    pub hidden_offset: usize,
    /// The row of the input weights that belongs to the first pre-activation.
    pub first_input_row: usize,
}

impl GateLayout {
    pub fn new(cell: Cell, hidden: usize) -> Self {
        let width = cell.gates() * hidden;
        let (hidden_offset, first_input_row) = if cell == Cell::Gru { (hidden, 2 * hidden) } else { (0, 0) };
        let stride = (hidden_offset + width).next_multiple_of(16) + 16;
        Self { stride, width, hidden_offset, first_input_row }
    }

    /// Number of elements in a row without its padding.
    pub fn len(self) -> usize {
        self.hidden_offset + self.width
    }

    /// The biases in the layout of the gates: the pre-activations before any product is added.
    pub fn biases<T: Real>(self, input_bias: &[T], hidden_bias: &[T]) -> Vec<T> {
        let (before, from) = input_bias.split_at(self.first_input_row);
        let mut biases = [from, before].concat();
        biases.resize(self.len(), T::ZERO);
        biases[self.hidden_offset..].iter_mut().zip(hidden_bias).for_each(|(sum, &bias)| *sum += bias);
        biases
    }

    /// The transposed input weights, with their columns in the layout of the gates.
    pub fn input_panels<T: Lanes>(self, weight: &[T]) -> Panels<T> {
        let features = weight.len() / self.width;
        Panels::transposed((features, self.width), |gate| &weight[self.input_row(gate) * features..])
    }

    /// The transposed hidden weights.
    pub fn hidden_panels<T: Lanes>(self, weight: &[T]) -> Panels<T> {
        let hidden = weight.len() / self.width;
        Panels::transposed((hidden, self.width), |gate| &weight[gate * hidden..])
    }

    /// The row of the input weights that belongs to pre-activation `gate`.
    pub fn input_row(self, gate: usize) -> usize {
        let row = gate + self.first_input_row;
        if row < self.width { row } else { row - self.width }
    }

    /// Reorders rows of `size` elements per pre-activation from the gates' layout to the weights' order.
    pub fn rotate_to_input_order<T>(self, rows: &mut [T], size: usize) {
        rows.rotate_right(self.first_input_row * size);
    }
}

/// Runs one time step of one sequence.
///
/// Activates the gates in place and writes the new hidden state `y` and, for an LSTM, the new cell state `cells`. Every
/// element of `y`, and of `cells` for an LSTM, is written.
#[inline(always)]
pub(crate) fn step<'a, T: Real>(
    cell: Cell,
    gates: &mut [T],
    previous: &[T],
    cells: impl Into<Destination<'a, T>>,
    y: impl Into<Destination<'a, T>>,
) {
    let (cells, y) = (cells.into(), y.into());
    match cell {
        Cell::Tanh => elman(gates, y, T::tanh),
        Cell::Relu => elman(gates, y, T::relu),
        Cell::Gru => gru(gates, previous, y),
        Cell::Lstm => lstm(gates, previous, cells, y),
    }
}

/// The gradient of [`step`], for one sequence.
pub(crate) struct StepGradient<'a, T> {
    /// The activated gates; empty for Elman cells.
    pub gates: &'a [T],
    pub previous: &'a [T],
    /// The new cell state of an LSTM; otherwise empty.
    pub cells: &'a [T],
    /// The new hidden state.
    pub y: &'a [T],
    /// Gradient of the step's output.
    pub grad: &'a [T],
}

impl<T: Real> StepGradient<'_, T> {
    /// Writes the gradient of the gate pre-activations, one full row with its padding.
    ///
    /// `state_grad` holds the gradient of the new hidden state from later steps. A GRU replaces it by the gradient of
    /// the previous hidden state, except for the part that goes through the hidden product. An LSTM replaces
    /// `cell_grad`, the gradient of the new cell state, by the gradient of the previous one.
    #[inline(always)]
    pub fn run(
        self,
        cell: Cell,
        state_grad: &mut [T],
        cell_grad: &mut [T],
        gate_grads: &mut [MaybeUninit<T>],
    ) {
        let used = GateLayout::new(cell, self.y.len()).len();
        let (gate_grads, padding) = gate_grads.split_at_mut(used);
        padding.iter_mut().for_each(|element| _ = element.write(T::ZERO));
        match cell {
            Cell::Tanh => self.elman(state_grad, gate_grads, |y| T::ONE - y * y),
            Cell::Relu => self.elman(state_grad, gate_grads, |y| if y <= T::ZERO { T::ZERO } else { T::ONE }),
            Cell::Gru => self.gru(state_grad, gate_grads),
            Cell::Lstm => self.lstm(state_grad, cell_grad, gate_grads),
        }
    }

    #[inline(always)]
    fn elman(self, state_grad: &[T], gate_grads: &mut [MaybeUninit<T>], slope: impl Fn(T) -> T) {
        map_blocks(
            [self.y, self.grad, state_grad],
            [],
            [gate_grads.into()],
            #[inline(always)]
            |[y, grad, state], []| ([], [(grad + state) * slope(y)]),
        );
    }

    #[inline(always)]
    fn gru(self, state_grad: &mut [T], gate_grads: &mut [MaybeUninit<T>]) {
        let hidden = self.grad.len();
        let [n, r, z, product] = four(self.gates, hidden);
        map_blocks(
            [n, r, z, product, self.previous, self.grad],
            [state_grad],
            four_mut(gate_grads, hidden).map(Into::into),
            #[inline(always)]
            |[n, r, z, product, previous, grad], [state]| {
                let (one, grad) = (T::ONE, grad + state);
                let inner = grad * (one - z) * (one - n * n);
                let to_r = inner * product * r * (one - r);
                let to_z = grad * (previous - n) * z * (one - z);
                ([grad * z], [inner, to_r, to_z, inner * r])
            },
        );
    }

    #[inline(always)]
    fn lstm(self, state_grad: &[T], cell_grad: &mut [T], gate_grads: &mut [MaybeUninit<T>]) {
        let hidden = self.grad.len();
        let [i, f, g, o] = four(self.gates, hidden);
        map_blocks(
            [i, f, g, o, self.previous, self.cells, self.grad, state_grad],
            [cell_grad],
            four_mut(gate_grads, hidden).map(Into::into),
            #[inline(always)]
            |[i, f, g, o, previous, cell, grad, state], [cell_grad]| {
                let (one, grad, tanh) = (T::ONE, grad + state, cell.tanh());
                let cell = cell_grad + grad * o * (one - tanh * tanh);
                let to_i = cell * g * i * (one - i);
                let to_f = cell * previous * f * (one - f);
                let to_g = cell * i * (one - g * g);
                let to_o = grad * tanh * o * (one - o);
                ([cell * f], [to_i, to_f, to_g, to_o])
            },
        );
    }
}

#[inline(always)]
fn elman<T: Real>(gates: &[T], y: Destination<T>, activation: impl Fn(T) -> T) {
    map_blocks(
        [&gates[..y.len()]],
        [],
        [y],
        #[inline(always)]
        |[gate], []| ([], [activation(gate)]),
    );
}

#[inline(always)]
fn gru<T: Real>(gates: &mut [T], previous: &[T], y: Destination<T>) {
    let [n, r, z, product] = four_mut(gates, y.len());
    map_blocks(
        [previous, product],
        [n, r, z],
        [y],
        #[inline(always)]
        |[previous, product], [n, r, z]| {
            let (r, z) = (Real::sigmoid(r), Real::sigmoid(z));
            let n = (n + r * product).tanh();
            ([n, r, z], [n + z * (previous - n)])
        },
    );
}

#[inline(always)]
fn lstm<T: Real>(gates: &mut [T], previous: &[T], cells: Destination<T>, y: Destination<T>) {
    let [i, f, g, o] = four_mut(gates, y.len());
    map_blocks(
        [previous],
        [i, f, g, o],
        [cells, y],
        #[inline(always)]
        |[previous], [i, f, g, o]| {
            let (i, f, g, o) = (Real::sigmoid(i), Real::sigmoid(f), g.tanh(), Real::sigmoid(o));
            let cell = f * previous + i * g;
            ([i, f, g, o], [cell, o * cell.tanh()])
        },
    );
}

/// The gates of one element, `hidden` elements each.
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

/// Applies `f` element by element to slices of the same length.
///
/// It reads `inputs`, replaces `updated` and writes `outputs`, which are never read. Every element of `outputs` is
/// written. Blocks of sixteen elements pass through local arrays. The compiler knows that these do not overlap, and
/// vectorises a loop over this many slices only then.
///
/// # Panics
/// If the slices differ in length.
#[inline(always)]
fn map_blocks<T: Real, const IN: usize, const UPDATED: usize, const OUT: usize>(
    inputs: [&[T]; IN],
    mut updated: [&mut [T]; UPDATED],
    mut outputs: [Destination<T>; OUT],
    f: impl Fn([T; IN], [T; UPDATED]) -> ([T; UPDATED], [T; OUT]),
) {
    const BLOCK: usize = 16;
    let len = outputs[0].len();
    for output in &outputs {
        assert_eq!(output.len(), len);
    }
    for start in (0..len).step_by(BLOCK) {
        let end = len.min(start + BLOCK);
        let (mut ins, mut states) = ([[T::ZERO; BLOCK]; IN], [[T::ZERO; BLOCK]; UPDATED]);
        let mut outs = [[T::ZERO; BLOCK]; OUT];
        let load = |to: &mut [T; BLOCK], from: &[T]| match from[start..end].try_into() {
            Ok(block) => *to = block,
            Err(_) => to[..end - start].copy_from_slice(&from[start..end]),
        };
        ins.iter_mut().zip(&inputs).for_each(|(to, from)| load(to, from));
        states.iter_mut().zip(&updated).for_each(|(to, from)| load(to, from));
        for i in 0..BLOCK {
            let input = std::array::from_fn(|k| ins[k][i]);
            let (new, out) = f(input, std::array::from_fn(|k| states[k][i]));
            states.iter_mut().zip(new).for_each(|(state, new)| state[i] = new);
            outs.iter_mut().zip(out).for_each(|(to, out)| to[i] = out);
        }
        for (to, from) in updated.iter_mut().zip(&states) {
            match <&mut [T; BLOCK]>::try_from(&mut to[start..end]) {
                Ok(to) => *to = *from,
                Err(_) => to[start..end].copy_from_slice(&from[..end - start]),
            }
        }
        for (to, from) in outputs.iter_mut().zip(&outs) {
            // SAFETY: `start..end` lies within the `len` elements of each output, and a block holds that many.
            unsafe {
                let to = to.as_mut_ptr().add(start);
                match end - start {
                    BLOCK => to.cast::<[T; BLOCK]>().write_unaligned(*from),
                    rest => std::ptr::copy_nonoverlapping(from.as_ptr(), to, rest),
                }
            }
        }
    }
}
