//! A recurrent layer over packed sequences, in one or both directions.
//!
//! The forward pass computes the input part of all gate pre-activations in one matrix product per direction. It then
//! runs over the time steps: each adds the product of the previous hidden states with the hidden weights and applies
//! the cell. Chunks of sequences run in parallel, each through all its steps without waiting for the others. The
//! weights are laid out once for all chunks. The activated gates stay in memory for the backward pass
//! ([`super::recurrent_gradient`]).
//!
//! A buffer holds one direction after the other, and has one row per element in the order of the packed layout. The
//! rows of a chunk's step are contiguous.

use super::cells::{self, Cell, GateLayout};
use super::matmul::{Init, Lhs, Panels, gemm, gemm_serial};
use super::memory;
use super::parallel::{self, Shared};
use super::sequences::PackedLayout;
use super::simd::{Lanes, vectorised};
use std::mem::MaybeUninit;

/// The sizes of a recurrent layer.
#[derive(Clone, Copy)]
pub(crate) struct Layer<'a> {
    pub cell: Cell,
    /// Number of input features, or of distinct tokens.
    pub features: usize,
    /// Number of hidden units of each direction.
    pub hidden: usize,
    /// 1 or 2; the second direction reads each sequence from its end.
    pub directions: usize,
    pub sequences: &'a PackedLayout,
}

/// The input of a layer, one row per element.
#[derive(Clone, Copy)]
pub(crate) enum Input<'a, T> {
    /// `(rows, features)`.
    Features(&'a [T]),
    /// `(rows)`. The input weights are then a table `(tokens, gates * hidden)` of each token's product with them.
    Tokens(&'a [u32]),
}

/// The parameters of one direction, as in PyTorch.
#[derive(Clone, Copy)]
pub(crate) struct Weights<'a, T> {
    /// `(gates * hidden, features)`, or `(tokens, gates * hidden)` for [`Input::Tokens`].
    pub input: &'a [T],
    /// `(gates * hidden, hidden)`.
    pub hidden: &'a [T],
    /// `(gates * hidden)`.
    pub input_bias: &'a [T],
    /// `(gates * hidden)`.
    pub hidden_bias: &'a [T],
}

/// The initial state, `(directions, batch, hidden)` with the longest sequence first.
///
/// A part that is zero is empty.
pub(crate) struct InitialState<T> {
    pub hidden: Vec<T>,
    pub cell: Vec<T>,
}

/// The results of a forward pass.
pub(crate) struct Forward<T> {
    /// The hidden states, `(rows, directions * hidden)`.
    pub ys: Vec<T>,
    /// The activated gates, `(directions, rows, stride)` in the layout of [`GateLayout`].
    pub gates: Vec<T>,
    /// The cell states of an LSTM, `(directions, rows, hidden)`; otherwise empty.
    pub cells: Vec<T>,
}

/// Sequences that are processed together in one direction.
///
/// They are a range of places in the order of descending length.
#[derive(Clone, Copy)]
pub(super) struct Chunk {
    pub direction: usize,
    pub start: usize,
    pub end: usize,
}

/// One time step of a chunk.
pub(super) struct Step {
    /// The first row of the step.
    pub row: usize,
    /// Number of the chunk's sequences that have an element at this step.
    pub active: usize,
    /// Number of these sequences that also have an element at the previous step; the others start here.
    pub carried: usize,
    /// The first row of the previous step.
    pub previous: usize,
}

impl Layer<'_> {
    pub(super) fn gate_layout(self) -> GateLayout {
        GateLayout::new(self.cell, self.hidden)
    }

    /// The independent tasks of a pass. Chunks of too few sequences would read the hidden weights too often.
    ///
    /// Results do not depend on them: each sequence is computed apart.
    pub(super) fn chunks(self) -> Vec<Chunk> {
        let batch = self.sequences.batch();
        let count = batch.div_ceil(32).max((batch / 8).min(parallel::threads()).min(2)).max(1);
        let bounds = (0..count).map(|i| (i * batch / count, (i + 1) * batch / count));
        bounds
            .flat_map(|(start, end)| {
                (0..self.directions).map(move |direction| Chunk { direction, start, end })
            })
            .collect()
    }

    /// The steps of a chunk in the order of the recurrence.
    pub(super) fn steps(&self, chunk: Chunk) -> impl DoubleEndedIterator<Item = Step> + '_ {
        let last = self.sequences.steps() - 1;
        let forward = chunk.direction == 0;
        let rows = move |step: usize| {
            let (size, start) = self.sequences.step(step);
            (start + chunk.start, size.min(chunk.end).saturating_sub(chunk.start))
        };
        (0..=last).map(move |i| if forward { i } else { last - i }).filter_map(move |step| {
            let (row, active) = rows(step);
            let previous =
                if forward { step.checked_sub(1) } else { Some(step + 1).filter(|&step| step <= last) };
            let previous = previous.map(rows).filter(|&(_, count)| count > 0);
            let (previous, count) = previous.unwrap_or_default();
            (active > 0).then_some(Step { row, active, carried: active.min(count), previous })
        })
    }

    /// Sorts states `(directions, batch, hidden)` by descending length of their sequences.
    pub fn to_packed_order<T: Lanes>(self, states: &[T]) -> Vec<T> {
        let (batch, hidden) = (self.sequences.batch(), self.hidden);
        let mut sorted = Vec::with_capacity(states.len());
        for states in states.chunks_exact(batch * hidden) {
            for &sequence in self.sequences.order() {
                sorted.extend_from_slice(&states[sequence * hidden..(sequence + 1) * hidden]);
            }
        }
        sorted
    }

    /// Undoes [`to_packed_order`](Self::to_packed_order).
    pub fn to_batch_order<T: Lanes>(self, states: &[T]) -> Vec<T> {
        let (batch, hidden) = (self.sequences.batch(), self.hidden);
        let mut unsorted = vec![T::ZERO; states.len()];
        for (place, from) in states.chunks_exact(hidden).enumerate() {
            let to = place / batch * batch + self.sequences.order()[place % batch];
            unsorted[to * hidden..(to + 1) * hidden].copy_from_slice(from);
        }
        unsorted
    }

    /// The initial state from its parts `(directions, batch, hidden)` in the order of the batch.
    pub fn initial_state<T: Lanes>(self, hidden: Option<&[T]>, cell: Option<&[T]>) -> InitialState<T> {
        let sorted = |part: Option<&[T]>| part.map_or_else(Vec::new, |part| self.to_packed_order(part));
        InitialState { hidden: sorted(hidden), cell: sorted(cell) }
    }
}

impl<T: Lanes> InitialState<T> {
    /// The part that the cell itself reads (see [`cells`]), starting with a chunk's first sequence.
    pub(super) fn previous(&self, layer: Layer, chunk: Chunk) -> &[T] {
        let states = if layer.cell.has_cell_state() { &self.cell } else { &self.hidden };
        let start = (chunk.direction * layer.sequences.batch() + chunk.start) * layer.hidden;
        states.get(start..).unwrap_or(&[])
    }
}

/// Runs a layer over its input, with one of `weights` per direction.
pub(crate) fn forward<T: Lanes>(
    layer: Layer,
    input: Input<T>,
    weights: &[Weights<T>],
    initial: &InitialState<T>,
) -> Forward<T> {
    let Layer { cell, hidden, directions, .. } = layer;
    let (rows, layout) = (layer.sequences.rows(), layer.gate_layout());
    debug_assert_eq!(weights.len(), directions);
    let cell_elements = if cell.has_cell_state() { directions * rows * hidden } else { 0 };
    let mut gates = memory::uninit(directions * rows * layout.stride);
    let mut states = memory::uninit(directions * rows * hidden);
    let mut cells = memory::uninit(cell_elements);
    let prepare = |(weights, gates)| Direction::new(layout, input, weights, gates);
    let parts = weights.iter().zip(gates.chunks_exact_mut(rows * layout.stride)).map(prepare).collect();
    let recurrence = Recurrence {
        layer,
        layout,
        input,
        directions: parts,
        initial,
        zeros: vec![T::ZERO; hidden],
        gates: Shared::new(&mut gates),
        states: Shared::new(&mut states),
        cells: Shared::new(&mut cells),
    };
    let chunks = layer.chunks();
    // SAFETY: the chunks are disjoint, and each runs once.
    parallel::for_each_chunk(chunks.len(), |i| unsafe { recurrence.run(chunks[i]) });
    drop(recurrence);
    // SAFETY: every row of each direction belongs to one step of one chunk, which has written its gates with their
    // padding, its hidden state and, for an LSTM, its cell state.
    let (gates, states, cells) =
        unsafe { (memory::assume_init(gates), memory::assume_init(states), memory::assume_init(cells)) };
    Forward { ys: join_directions(layer, states), gates, cells }
}

/// Converts `(directions, rows, hidden)` to `(rows, directions * hidden)`.
fn join_directions<T: Lanes>(layer: Layer, states: Vec<T>) -> Vec<T> {
    if layer.directions == 1 {
        return states;
    }
    let (forward, backward) = states.split_at(states.len() / 2);
    let rows = forward.chunks_exact(layer.hidden).zip(backward.chunks_exact(layer.hidden));
    rows.flat_map(|(forward, backward)| forward.iter().chain(backward).copied()).collect()
}

/// The parameters of a direction, laid out for the recurrence.
struct Direction<'a, T> {
    /// For [`Input::Tokens`], each token's product with the input weights.
    table: &'a [T],
    /// A row of gates before any product is added: the biases, and zeros in the padding.
    biases: Vec<T>,
    /// The transposed hidden weights.
    hidden: Panels<T>,
}

impl<'a, T: Lanes> Direction<'a, T> {
    /// Lays out the parameters, and writes the input part of the gates to `gates` if it is a product.
    fn new(
        layout: GateLayout,
        input: Input<T>,
        weights: &Weights<'a, T>,
        gates: &mut [MaybeUninit<T>],
    ) -> Self {
        let mut biases = layout.biases(weights.input_bias, weights.hidden_bias);
        biases.resize(layout.stride, T::ZERO);
        if let Input::Features(xs) = input {
            let features = weights.input.len() / layout.width;
            let panels = layout.input_panels(weights.input);
            let start = Init::Bias(&biases[..layout.width]);
            gemm((xs, features), &panels, gates, layout.stride, start);
        }
        Self { table: weights.input, biases, hidden: layout.hidden_panels(weights.hidden) }
    }
}

/// The loop over time, and the buffers that its chunks write.
struct Recurrence<'a, T> {
    layer: Layer<'a>,
    layout: GateLayout,
    input: Input<'a, T>,
    directions: Vec<Direction<'a, T>>,
    initial: &'a InitialState<T>,
    /// The initial state of a sequence if none is given.
    zeros: Vec<T>,
    gates: Shared<'a, MaybeUninit<T>>,
    states: Shared<'a, MaybeUninit<T>>,
    cells: Shared<'a, MaybeUninit<T>>,
}

impl<T: Lanes> Recurrence<'_, T> {
    /// Runs one chunk through all its steps.
    ///
    /// # Safety
    /// No chunk that shares a sequence and the direction with this one runs before or at the same time.
    unsafe fn run(&self, chunk: Chunk) {
        for step in self.layer.steps(chunk) {
            // SAFETY: the caller's contract; `steps` are in the order of the recurrence.
            unsafe {
                let gates = self.pre_activations(chunk, &step);
                self.activate(chunk, &step, gates);
            }
        }
    }

    /// The gate pre-activations of a step's rows: biases, input and previous hidden state.
    ///
    /// # Safety
    /// Only the caller uses the rows of the chunk's sequences, and it has run the previous step.
    #[allow(clippy::mut_from_ref)]
    unsafe fn pre_activations(&self, chunk: Chunk, step: &Step) -> &mut [T] {
        let (layout, hidden) = (self.layout, self.layer.hidden);
        let &Step { row, active, carried, previous } = step;
        let Direction { table, biases, hidden: weights } = &self.directions[chunk.direction];
        let first = chunk.direction * self.layer.sequences.rows();
        // SAFETY: only the caller uses these rows, and it holds no slice of them.
        let gates = unsafe { rows_of(&self.gates, first + row, active, layout.stride) };
        let written = if let Input::Features(_) = self.input { layout.width } else { 0 };
        for gates in gates.chunks_exact_mut(layout.stride) {
            memory::write_copy(&mut gates[written..], &biases[written..]);
        }
        // SAFETY: the input product has written the first `written` elements of each row, and the loop the others.
        let gates = unsafe { memory::assume_init_mut(gates) };
        if let Input::Tokens(ids) = self.input {
            for (gates, &id) in gates.chunks_exact_mut(layout.stride).zip(&ids[row..]) {
                let projection = &table[id as usize * layout.width..][..layout.width];
                let (end, start) = projection.split_at(layout.first_input_row);
                let (first, rest) = gates.split_at_mut(start.len());
                first.iter_mut().zip(start).for_each(|(gate, &x)| *gate += x);
                rest.iter_mut().zip(end).for_each(|(gate, &x)| *gate += x);
            }
        }
        let add_product = |states: &[T], gates: &mut [T], count: usize| {
            let gates = &mut gates[layout.hidden_offset..];
            gemm_serial(Lhs::Rows(states, hidden), weights, gates, (count, layout.stride), Init::Accumulate);
        };
        // SAFETY: the previous step has written these rows, and no later one does.
        let states = unsafe { written_rows(&self.states, first + previous, carried, hidden) };
        add_product(states, gates, carried);
        if active > carried && !self.initial.hidden.is_empty() {
            let place = chunk.direction * self.layer.sequences.batch() + chunk.start + carried;
            let starting = &mut gates[carried * layout.stride..];
            add_product(&self.initial.hidden[place * hidden..], starting, active - carried);
        }
        gates
    }

    /// Applies the cell to the pre-activations of a step's rows.
    ///
    /// # Safety
    /// As for [`pre_activations`](Self::pre_activations).
    unsafe fn activate(&self, chunk: Chunk, step: &Step, gates: &mut [T]) {
        let (layout, Layer { cell, hidden, .. }) = (self.layout, self.layer);
        let &Step { row, active, carried, previous } = step;
        let first = chunk.direction * self.layer.sequences.rows();
        let (old, cells) = match cell.has_cell_state() {
            true => (&self.cells, active),
            false => (&self.states, 0),
        };
        // SAFETY: only the caller uses these rows. The rows of the previous step are different ones, and that step has
        // written them.
        let (ys, cells, carried_states) = unsafe {
            (
                rows_of(&self.states, first + row, active, hidden),
                // Only an LSTM has cell states.
                if cells > 0 { rows_of(&self.cells, first + row, cells, hidden) } else { &mut [] },
                written_rows(old, first + previous, carried, hidden),
            )
        };
        let initial = self.initial.previous(self.layer, chunk);
        vectorised(
            #[inline(always)]
            || {
                for (i, (gates, y)) in
                    gates.chunks_exact_mut(layout.stride).zip(ys.chunks_exact_mut(hidden)).enumerate()
                {
                    let place = i * hidden..(i + 1) * hidden;
                    let previous = match i < carried {
                        true => &carried_states[place.clone()],
                        false => initial.get(place.clone()).unwrap_or(&self.zeros),
                    };
                    let cells = cells.get_mut(place).unwrap_or_default();
                    cells::step(cell, gates, previous, cells, y);
                }
            },
        );
    }
}

/// Rows of `width` elements, from `row` on.
///
/// # Safety
/// As for [`Shared::slice`].
#[allow(clippy::mut_from_ref)]
pub(super) unsafe fn rows_of<'a, T>(
    shared: &'a Shared<T>,
    row: usize,
    count: usize,
    width: usize,
) -> &'a mut [T] {
    // SAFETY: the caller keeps overlapping ranges apart.
    unsafe { shared.slice(row * width..(row + count) * width) }
}

/// Rows of `width` elements, from `row` on, for reading.
///
/// # Safety
/// All elements of the rows have been written, and no mutable slice that overlaps them is alive.
unsafe fn written_rows<'a, T: Lanes>(
    shared: &'a Shared<MaybeUninit<T>>,
    row: usize,
    count: usize,
    width: usize,
) -> &'a [T] {
    // SAFETY: the caller's contract.
    unsafe { memory::assume_init_mut(rows_of(shared, row, count, width)) }
}

impl Layer<'_> {
    /// The row where the recurrence of each sequence ends in a direction.
    fn final_rows(self, direction: usize) -> Vec<usize> {
        if direction == 0 { self.sequences.last_rows() } else { self.sequences.first_rows() }
    }

    /// The places of the final hidden state of each sequence in the outputs, direction by direction.
    fn final_places(self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let Self { hidden, directions, .. } = self;
        let places = (0..directions).map(move |direction| (direction, self.final_rows(direction)));
        places
            .flat_map(move |(direction, rows)| {
                rows.into_iter().map(move |row| (row * directions + direction) * hidden)
            })
            .map(move |start| start..start + hidden)
    }

    /// Reads the final states `(1, directions, batch, hidden)` off the outputs `ys`.
    ///
    /// For an LSTM, the result is `(2, ..)` and includes the final states of `cells`.
    pub fn final_state<T: Lanes>(self, ys: &[T], cells: &[T]) -> Vec<T> {
        let hidden = self.hidden;
        let mut state = Vec::new();
        self.final_places().for_each(|place| state.extend_from_slice(&ys[place]));
        for (direction, cells) in cells.chunks_exact(self.sequences.rows() * hidden).enumerate() {
            for row in self.final_rows(direction) {
                state.extend_from_slice(&cells[row * hidden..(row + 1) * hidden]);
            }
        }
        state
    }

    /// The gradient of the outputs from the final hidden states' gradient, `(directions, batch, hidden)`.
    pub fn final_state_gradient<T: Lanes>(self, grad: &[T]) -> Vec<T> {
        let mut ys_grad = vec![T::ZERO; self.sequences.rows() * self.directions * self.hidden];
        for (place, from) in self.final_places().zip(grad.chunks_exact(self.hidden)) {
            ys_grad[place].copy_from_slice(from);
        }
        ys_grad
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_thread_cuts_no_small_batch() {
        let sequences = PackedLayout::new(&[3; 32]);
        let layer = Layer { cell: Cell::Lstm, features: 1, hidden: 1, directions: 1, sequences: &sequences };
        let chunks = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| layer.chunks().len())
        };
        assert_eq!([chunks(1), chunks(2), chunks(4)], [1, 2, 2]);
    }
}
