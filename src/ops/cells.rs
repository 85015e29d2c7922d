//! What recurrent cells do at one step with the gates' sums, element by element, and its gradient.
//!
//! Gates lie in memory as [`super::recurrent`] lays them out. `before` is what the step starts from: LSTM's cells, else
//! the hidden state.

use super::activation::sigmoid_of;
use super::host::Real;

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
pub(super) fn elman<T: Real>(gates: &[T], y: &mut [T], activation: impl Fn(T) -> T) {
    each(
        [gates],
        [y],
        #[inline(always)]
        |[gate], _| [activation(gate)],
    );
}

#[inline(always)]
pub(super) fn elman_back<T: Real>(
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
pub(super) fn lstm<T: Real>(gates: &mut [T], before: &[T], cells: &mut [T], y: &mut [T]) {
    let [i, f, g, o] = four_mut(gates, y.len());
    each(
        [before],
        [i, f, g, o, cells, y],
        #[inline(always)]
        |[before], [i, f, g, o, _, _]| {
            let (i, f, g, o) = (sigmoid_of(i), sigmoid_of(f), g.tanh(), sigmoid_of(o));
            let cell = f * before + i * g;
            [i, f, g, o, cell, o * cell.tanh()]
        },
    );
}

#[inline(always)]
pub(super) fn lstm_back<T: Real>(
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
pub(super) fn gru<T: Real>(gates: &mut [T], before: &[T], y: &mut [T]) {
    let [n, r, z, product] = four_mut(gates, y.len());
    each(
        [before, product],
        [n, r, z, y],
        #[inline(always)]
        |[before, product], [n, r, z, _]| {
            let (r, z) = (sigmoid_of(r), sigmoid_of(z));
            let n = (n + r * product).tanh();
            [n, r, z, n + z * (before - n)]
        },
    );
}

#[inline(always)]
pub(super) fn gru_back<T: Real>(
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
