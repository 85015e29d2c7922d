//! A recurrent layer over whole sequences, in one operation.
//!
//! The input's part in all gates of all steps is one matrix product. The recurrence then runs over chunks of the
//! batch, each through all its steps without waiting for another, on weights laid out for the inner loop once. The
//! gradient is back-propagation through time over the gates that the forward pass has left; the gradients of the
//! weights are again products over whole sequences.

use super::autograd::{self, Operation};
use super::host::{self, Element, with_real};
use super::linear::column_sums;
use super::{Cell, PackedSequences, reference};
use crate::kernels::cpu::Real;
use crate::kernels::cpu::cells::{self, Gates, elman_back, gru_back, lstm_back};
use crate::kernels::cpu::matmul::{Init, Lhs, Panels, gemm, gemm_serial, gemm_transposed};
use crate::kernels::cpu::parallel::{self, Shared};
use crate::kernels::cpu::simd::vectorised;
use candle_core::{CpuStorage, DType, Device, Result, Shape, Tensor, bail};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The parameters of one direction of a layer, with PyTorch's shapes and order of gates.
#[derive(Debug, Clone)]
pub struct RecurrentWeights {
    /// W, `(gates * hidden, features)`: PyTorch's `weight_ih`.
    pub input: Tensor,
    /// U, `(gates * hidden, hidden)`: `weight_hh`.
    pub hidden: Tensor,
    /// b, `(gates * hidden)`: `bias_ih`.
    pub input_bias: Tensor,
    /// c, `(gates * hidden)`: `bias_hh`.
    pub hidden_bias: Tensor,
}

/// What a recurrent layer, or several, knows of the steps before.
#[derive(Debug, Clone)]
pub struct RecurrentState {
    /// `(layers * directions, batch, hidden)`
    pub hidden: Tensor,
    /// The same of LSTM's cells.
    pub cell: Option<Tensor>,
}

/// The hidden states `(rows, directions * hidden)` at all elements `xs` `(rows, features)` of `sequences`, and the
/// state after each sequence's last step (of the backward direction: its first).
///
/// One of `weights` a direction: the first goes forward, a second one backward from each sequence's own end. The state
/// to start from, `(directions, batch, hidden)`, is zero if none is given.
///
/// # Errors
/// When shapes do not fit.
pub fn recurrent(
    cell: Cell,
    xs: &Tensor,
    sequences: &Arc<PackedSequences>,
    weights: &[RecurrentWeights],
    state: Option<&RecurrentState>,
) -> Result<(Tensor, RecurrentState)> {
    let features = match xs.dims() {
        &[rows, features] if rows == sequences.rows() => features,
        dims => {
            bail!("recurrent: found an input of shape {dims:?}, expected ({}, features)", sequences.rows())
        }
    };
    let hidden = check(cell, |gates| [gates, features], sequences, weights, state)?;
    if !xs.device().is_cpu() {
        return reference::recurrent(cell, xs, sequences, weights, state);
    }
    run(cell, hidden, xs, None, sequences, weights, state)
}

/// The same where the elements are tokens, `ids` `(rows)` in u32, and it is known already what each of them adds to the
/// gates: in place of a direction's input weights stand those sums, `(tokens, gates * hidden)`.
///
/// Where there are fewer tokens than rows this is less work, in the gradient too.
///
/// # Errors
/// When shapes do not fit, or an id is no token's.
pub fn recurrent_tokens(
    cell: Cell,
    ids: &Tensor,
    sequences: &Arc<PackedSequences>,
    weights: &[RecurrentWeights],
    state: Option<&RecurrentState>,
) -> Result<(Tensor, RecurrentState)> {
    if ids.dims() != [sequences.rows()] || ids.dtype() != DType::U32 {
        let (dims, dtype) = (ids.dims(), ids.dtype());
        bail!("recurrent: found ids of shape {dims:?} in {dtype:?}, expected ({}) in u32", sequences.rows());
    }
    let tokens = weights.first().map_or(Ok(0), |weights| weights.input.dim(0))?;
    let hidden = check(cell, |gates| [tokens, gates], sequences, weights, state)?;
    if !ids.device().is_cpu() {
        return reference::recurrent_tokens(cell, ids, sequences, weights, state);
    }
    let numbers = ids.to_vec1::<u32>()?;
    if let Some(id) = numbers.iter().find(|&&id| id as usize >= tokens) {
        bail!("recurrent: found the id {id}, expected one below {tokens}");
    }
    let none = Tensor::zeros(0, weights[0].input.dtype(), ids.device())?;
    run(cell, hidden, &none, Some(numbers), sequences, weights, state)
}

fn run(
    cell: Cell,
    hidden: usize,
    xs: &Tensor,
    ids: Option<Vec<u32>>,
    sequences: &Arc<PackedSequences>,
    weights: &[RecurrentWeights],
    state: Option<&RecurrentState>,
) -> Result<(Tensor, RecurrentState)> {
    let mut args = vec![xs.contiguous()?];
    for RecurrentWeights { input, hidden, input_bias, hidden_bias } in weights {
        for weight in [input, hidden, input_bias, hidden_bias] {
            args.push(weight.contiguous()?);
        }
    }
    for state in state.into_iter().flat_map(|state| [Some(&state.hidden), state.cell.as_ref()]).flatten() {
        args.push(state.contiguous()?);
    }
    let layer = Layer {
        cell,
        hidden,
        directions: weights.len(),
        ids,
        sequences: sequences.clone(),
        memory: Arc::default(),
    };
    let end = Ending {
        cell,
        directions: layer.directions,
        sequences: sequences.clone(),
        memory: layer.memory.clone(),
    };
    let ys = autograd::apply(layer, args)?;
    let end = autograd::apply(end, vec![ys.clone()])?;
    let cell = if cell.has_cell_state() { Some(end.get(1)?) } else { None };
    Ok((ys, RecurrentState { hidden: end.get(0)?, cell }))
}

/// The number of hidden units, of arguments that fit each other; `input` gives the shape of what stands for the input's
/// weights, for so many gate units.
pub(super) fn check(
    cell: Cell,
    input_shape: impl Fn(usize) -> [usize; 2],
    sequences: &PackedSequences,
    weights: &[RecurrentWeights],
    state: Option<&RecurrentState>,
) -> Result<usize> {
    if !(1..=2).contains(&weights.len()) {
        bail!("recurrent: found weights of {} directions, expected one or two", weights.len());
    }
    let hidden = weights[0].hidden.dims().last().copied().unwrap_or(0);
    let rows = cell.gates() * hidden;
    for RecurrentWeights { input, hidden: recurrent, input_bias, hidden_bias } in weights {
        for (name, found, expected) in [
            ("input weight", input.dims(), input_shape(rows).as_slice()),
            ("hidden weight", recurrent.dims(), &[rows, hidden]),
            ("input bias", input_bias.dims(), &[rows]),
            ("hidden bias", hidden_bias.dims(), &[rows]),
        ] {
            if found != expected || rows == 0 {
                bail!(
                    "recurrent: found the {name} of shape {found:?}, expected {expected:?} for a {cell:?} cell of \
                     {hidden} hidden units"
                );
            }
        }
    }
    if let Some(RecurrentState { hidden: state, cell: cells }) = state {
        let expected = [weights.len(), sequences.batch(), hidden];
        for found in std::iter::once(state).chain(cells) {
            if found.dims() != expected {
                bail!("recurrent: found a state of shape {:?}, expected {expected:?}", found.dims());
            }
        }
        if cells.is_some() != cell.has_cell_state() {
            bail!("recurrent: a state must have a cell part for an LSTM, and for nothing else");
        }
    }
    Ok(hidden)
}

/// What the forward pass leaves behind.
#[derive(Default)]
struct Memory {
    kept: OnceLock<Kept>,
    /// The gradient of the last cells, on its way back from [`Ending`].
    cell_grad: Mutex<Option<Tensor>>,
}

struct Kept {
    /// Of GRU and LSTM, after their nonlinearities: `(directions, rows, width)`, a row being one of [`Gates`].
    gates: Option<Tensor>,
    /// Of LSTM: `(directions, rows, hidden)`.
    cells: Option<Tensor>,
}

struct Layer {
    cell: Cell,
    hidden: usize,
    directions: usize,
    /// The tokens, where the elements are such.
    ids: Option<Vec<u32>>,
    sequences: Arc<PackedSequences>,
    memory: Arc<Memory>,
}

/// The sequences that one task goes through: places in the order of falling length.
#[derive(Clone, Copy)]
struct Chunk {
    direction: usize,
    start: usize,
    end: usize,
}

/// A step of a chunk.
struct Step {
    /// Its first row.
    row: usize,
    /// How many of its sequences have an element here.
    active: usize,
    /// How many of those have been at a step before this one.
    carried: usize,
    /// The row of the first of those at that step.
    before: usize,
}

impl Layer {
    /// The tasks that do not wait for each other. Few sequences a task would read the weights too often.
    fn chunks(&self) -> Vec<Chunk> {
        let batch = self.sequences.batch();
        let count = batch.div_ceil(32).max((batch / 8).min(2)).max(1);
        let part = |i: usize| (i * batch / count, (i + 1) * batch / count);
        let all = (0..count).map(part);
        all.flat_map(|(start, end)| {
            (0..self.directions).map(move |direction| Chunk { direction, start, end })
        })
        .collect()
    }

    /// The steps of a chunk in the order of the recurrence.
    fn steps(&self, chunk: Chunk) -> impl DoubleEndedIterator<Item = Step> + '_ {
        let last = self.sequences.steps() - 1;
        let forward = chunk.direction == 0;
        let rows = move |step: usize| {
            let (size, start) = self.sequences.step(step);
            (start + chunk.start, size.min(chunk.end).saturating_sub(chunk.start))
        };
        (0..=last).map(move |i| if forward { i } else { last - i }).filter_map(move |step| {
            let (row, active) = rows(step);
            let before =
                if forward { step.checked_sub(1) } else { Some(step + 1).filter(|&step| step <= last) };
            let (before, there) = before.map(rows).filter(|&(_, there)| there > 0).unwrap_or_default();
            (active > 0).then_some(Step { row, active, carried: active.min(there), before })
        })
    }

    fn run<T: Element>(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let &Self { cell, hidden, directions, .. } = self;
        let (rows, batch) = (self.sequences.rows(), self.sequences.batch());
        let layout = Gates::new(cell, hidden);
        // SAFETY: all that is read of these is written first.
        let (mut gates, mut states, mut cells) = unsafe {
            let cells = if cell.has_cell_state() { directions * rows * hidden } else { 0 };
            (
                parallel::unwritten::<T>(directions * rows * layout.row),
                parallel::unwritten::<T>(directions * rows * hidden),
                parallel::unwritten::<T>(cells),
            )
        };
        let initial = Initial::<T>::of(self, args)?;
        let held = host::hold(args);
        let xs = held.get::<T>(0)?;
        let mut weights = Vec::new();
        for (direction, gates) in gates.chunks_exact_mut(rows * layout.row).enumerate() {
            let at = 1 + 4 * direction;
            let (input, recurrent) = (held.get::<T>(at)?, held.get::<T>(at + 1)?);
            let (input_bias, hidden_bias) = (held.get::<T>(at + 2)?, held.get::<T>(at + 3)?);
            let start = layout.start(input_bias, hidden_bias);
            if self.ids.is_none() {
                let (features, panels) = (input.len() / layout.added, layout.input_panels(input));
                gemm((xs, features), &panels, gates, layout.row, Init::Bias(&start[..layout.added]));
            }
            weights.push((input, start, layout.recurrent_panels(recurrent)));
        }
        let (chunks, zeros) = (self.chunks(), vec![T::ZERO; hidden]);
        let (all_gates, all_states) = (Shared::new(&mut gates), Shared::new(&mut states));
        let all_cells = Shared::new(&mut cells);
        parallel::for_each_chunk(chunks.len(), |i| {
            let chunk = chunks[i];
            let (input, start, right) = &weights[chunk.direction];
            let first = chunk.direction * rows;
            for Step { row, active, carried, before } in self.steps(chunk) {
                // SAFETY: these rows belong to this chunk's sequences, and those of the step before are other ones.
                let (gates, ys, last) = unsafe {
                    (
                        rows_of(&all_gates, first + row, active, layout.row),
                        rows_of(&all_states, first + row, active, hidden),
                        &*rows_of(&all_states, first + before, carried, hidden),
                    )
                };
                // What the input's product has not written yet.
                let written = if self.ids.is_some() { 0 } else { layout.added };
                for gates in gates.chunks_exact_mut(layout.row) {
                    gates[written..start.len()].copy_from_slice(&start[written..]);
                }
                if let Some(ids) = &self.ids {
                    for (gates, &id) in gates.chunks_exact_mut(layout.row).zip(&ids[row..]) {
                        let input = &input[id as usize * layout.added..][..layout.added];
                        let (later, earlier) = input.split_at(layout.input_from);
                        let (first, rest) = gates.split_at_mut(earlier.len());
                        first.iter_mut().zip(earlier).for_each(|(gate, &x)| *gate += x);
                        rest.iter_mut().zip(later).for_each(|(gate, &x)| *gate += x);
                    }
                }
                let add_product = |states: &[T], gates: &mut [T], count: usize| {
                    let gates = &mut gates[layout.hidden_at..];
                    gemm_serial(
                        Lhs::Rows(states, hidden),
                        right,
                        gates,
                        (count, layout.row),
                        Init::Accumulate,
                    );
                };
                add_product(last, gates, carried);
                if active > carried && !initial.hidden.is_empty() {
                    let place = chunk.direction * batch + chunk.start + carried;
                    let fresh = &mut gates[carried * layout.row..];
                    add_product(&initial.hidden[place * hidden..], fresh, active - carried);
                }
                let (cells, memory) = match cell.has_cell_state() {
                    // SAFETY: as above.
                    true => unsafe {
                        (
                            rows_of(&all_cells, first + row, active, hidden),
                            &*rows_of(&all_cells, first + before, carried, hidden),
                        )
                    },
                    false => (Default::default(), last),
                };
                let fresh = initial.memory(cell, chunk, hidden, batch);
                vectorised(
                    #[inline(always)]
                    || {
                        for (i, (gates, y)) in
                            gates.chunks_exact_mut(layout.row).zip(ys.chunks_exact_mut(hidden)).enumerate()
                        {
                            let place = i * hidden..(i + 1) * hidden;
                            let before = match i < carried {
                                true => &memory[place.clone()],
                                false => fresh.get(place.clone()).unwrap_or(&zeros),
                            };
                            // Only an LSTM has cells.
                            let cells = cells.get_mut(place).unwrap_or_default();
                            cells::step(cell, gates, before, cells, y);
                        }
                    },
                );
            }
        });
        let shaped =
            |data: Vec<T>, width: usize| Tensor::from_vec(data, (directions, rows, width), &Device::Cpu);
        let gated = matches!(cell, Cell::Gru | Cell::Lstm);
        let kept = Kept {
            gates: if gated { Some(shaped(gates, layout.row)?) } else { None },
            cells: if cell.has_cell_state() { Some(shaped(cells, hidden)?) } else { None },
        };
        let _ = self.memory.kept.set(kept);
        let ys = match directions {
            1 => states,
            _ => {
                let (forward, backward) = states.split_at(rows * hidden);
                forward
                    .chunks_exact(hidden)
                    .zip(backward.chunks_exact(hidden))
                    .flat_map(|(forward, backward)| forward.iter().chain(backward).copied())
                    .collect()
            }
        };
        Ok(host::output(ys, (rows, directions * hidden)))
    }

    fn run_back<T: Element>(
        &self,
        args: &[Tensor],
        ys: &Tensor,
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let &Self { cell, hidden, directions, .. } = self;
        let (rows, batch) = (self.sequences.rows(), self.sequences.batch());
        let layout = Gates::new(cell, hidden);
        let initial = Initial::<T>::of(self, args)?;
        let Some(kept) = self.memory.kept.get() else { bail!("recurrent: backward before forward") };
        let (none, ys_row) = (Tensor::zeros(0, grad.dtype(), &Device::Cpu)?, directions * hidden);
        // SAFETY: all that is read of it is written first.
        let mut gate_grads = unsafe { parallel::unwritten::<T>(directions * rows * layout.row) };
        // Of the state before the step gone back to last; in the order of falling length.
        let mut state_grads = vec![T::ZERO; directions * batch * hidden];
        let cell_grad = self.memory.cell_grad.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut cell_grads = match &cell_grad {
            Some(grad) => host::read(grad, |grad| Ok(self.sorted(grad)))?,
            None => vec![T::ZERO; directions * batch * hidden],
        };
        let given = host::hold(args);
        let features = given.get::<T>(1)?.len() / layout.added;
        let weights = (0..directions).map(|direction| {
            let weight = given.get::<T>(2 + 4 * direction)?;
            Ok(Panels::new((layout.added, hidden), |k| &weight[k * hidden..]))
        });
        let weights: Vec<_> = weights.collect::<Result<_>>()?;
        let held = [kept.gates.as_ref(), kept.cells.as_ref(), Some(ys), Some(grad)];
        let held = host::hold(held.map(|tensor| tensor.unwrap_or(&none)));
        let (gates, cells) = (held.get::<T>(0)?, held.get::<T>(1)?);
        let (ys, grad) = (held.get::<T>(2)?, held.get::<T>(3)?);
        let chunks = self.chunks();
        let zeros = vec![T::ZERO; hidden];
        let all_grads = Shared::new(&mut gate_grads);
        let (all_states, all_cells) = (Shared::new(&mut state_grads), Shared::new(&mut cell_grads));
        parallel::for_each_chunk(chunks.len(), |i| {
            let chunk = chunks[i];
            let first = chunk.direction * rows;
            let own = (chunk.direction * batch + chunk.start) * hidden
                ..(chunk.direction * batch + chunk.end) * hidden;
            // SAFETY: each sequence belongs to one chunk alone.
            let (state_grads, cell_grads) = unsafe { (all_states.slice(own.clone()), all_cells.slice(own)) };
            let fresh = initial.memory(cell, chunk, hidden, batch);
            for Step { row, active, carried, before } in self.steps(chunk).rev() {
                let place = (first + row) * layout.row..(first + row + active) * layout.row;
                // SAFETY: these rows belong to this chunk's sequences.
                let gate_grads = unsafe { all_grads.slice(place) };
                vectorised(
                    #[inline(always)]
                    || {
                        for (i, gate_grads) in gate_grads.chunks_exact_mut(layout.row).enumerate() {
                            let at = (row + i) * ys_row + chunk.direction * hidden;
                            let (y, grad) = (&ys[at..at + hidden], &grad[at..at + hidden]);
                            let own = i * hidden..(i + 1) * hidden;
                            let state = &mut state_grads[own.clone()];
                            let of = |numbers: &'_ [T], width: usize| -> std::ops::Range<usize> {
                                let at = (first + row + i) * width;
                                if numbers.is_empty() { 0..0 } else { at..at + width }
                            };
                            let gates = &gates[of(gates, layout.row)];
                            let before = || match i < carried {
                                true if cell.has_cell_state() => {
                                    let at = (first + before + i) * hidden;
                                    &cells[at..at + hidden]
                                }
                                true => {
                                    let at = (before + i) * ys_row + chunk.direction * hidden;
                                    &ys[at..at + hidden]
                                }
                                false => fresh.get(own.clone()).unwrap_or(&zeros),
                            };
                            match cell {
                                Cell::Tanh => elman_back(y, grad, state, gate_grads, |y| T::ONE - y * y),
                                Cell::Relu => elman_back(y, grad, state, gate_grads, |y| {
                                    if y <= T::ZERO { T::ZERO } else { T::ONE }
                                }),
                                Cell::Gru => gru_back(gates, before(), grad, state, gate_grads),
                                Cell::Lstm => {
                                    let cells_here = &cells[of(cells, hidden)];
                                    let cell_grad = &mut cell_grads[own.clone()];
                                    lstm_back(
                                        gates,
                                        before(),
                                        cells_here,
                                        grad,
                                        state,
                                        cell_grad,
                                        gate_grads,
                                    );
                                }
                            }
                        }
                    },
                );
                // What came before, where anything did.
                let wanted = if initial.hidden.is_empty() { carried } else { active };
                let left = Lhs::Rows(&gate_grads[layout.hidden_at..], layout.row);
                let start = if cell == Cell::Gru { Init::Accumulate } else { Init::Zero };
                gemm_serial(left, &weights[chunk.direction], &mut *state_grads, (wanted, hidden), start);
            }
        });

        let tensor =
            |data: Vec<T>, like: &Tensor| Tensor::from_vec(data, like.shape(), &Device::Cpu).map(Some);
        let mut grads = vec![None; args.len()];
        if args[0].track_op() {
            // SAFETY: the first direction's product writes all of it.
            let mut xs_grad = unsafe { parallel::unwritten::<T>(rows * features) };
            for direction in 0..directions {
                let gate_grads = &gate_grads[direction * rows * layout.row..];
                let weight = given.get::<T>(1 + 4 * direction)?;
                let panels =
                    Panels::new((layout.added, features), |k| &weight[layout.input_row(k) * features..]);
                let start = if direction == 0 { Init::Zero } else { Init::Accumulate };
                gemm((gate_grads, layout.row), &panels, &mut xs_grad, features, start);
            }
            grads[0] = tensor(xs_grad, &args[0])?;
        }
        let xs = given.get::<T>(0)?;
        for (direction, weight) in args[1..].chunks_exact(4).take(directions).enumerate() {
            let gate_grads = &gate_grads[direction * rows * layout.row..][..rows * layout.row];
            let at = 1 + 4 * direction;
            if weight[0].track_op() || weight[1].track_op() {
                let (before, zeros) = (self.before(direction), vec![T::ZERO; hidden]);
                let input = |k: usize| &xs[k * features..];
                let recurrent = |k: usize| match before[k] {
                    Before::Row(row) => &ys[row * ys_row + direction * hidden..],
                    Before::Start(place) => {
                        let at = (direction * batch + place) * hidden;
                        initial.hidden.get(at..at + hidden).unwrap_or(&zeros)
                    }
                };
                let (dims, left) = ((rows, layout.added), (gate_grads, layout.row));
                let from_hidden = (&gate_grads[layout.hidden_at..], layout.row);
                let recurrent_alone = || {
                    let [recurrent] = gemm_transposed(from_hidden, [(&recurrent, hidden)], dims);
                    recurrent
                };
                let [input, recurrent] = match &self.ids {
                    Some(ids) => [layout.sums_of_tokens(gate_grads, ids, features), recurrent_alone()],
                    None => {
                        let [mut input, recurrent] = match layout.hidden_at {
                            // Both from the same gates, which are laid out once.
                            0 => gemm_transposed(left, [(&input, features), (&recurrent, hidden)], dims),
                            _ => {
                                let [input] = gemm_transposed(left, [(&input, features)], dims);
                                [input, recurrent_alone()]
                            }
                        };
                        input.rotate_left((layout.added - layout.input_from) % layout.added * features);
                        [input, recurrent]
                    }
                };
                grads[at] = tensor(input, &weight[0])?;
                grads[at + 1] = tensor(recurrent, &weight[1])?;
            }
            if weight[2].track_op() || weight[3].track_op() {
                let sums = column_sums(gate_grads, layout.row, layout.hidden_at + layout.added);
                let mut input = sums[..layout.added].to_vec();
                input.rotate_left((layout.added - layout.input_from) % layout.added);
                grads[at + 2] = tensor(input, &weight[2])?;
                grads[at + 3] = tensor(sums[layout.hidden_at..].to_vec(), &weight[3])?;
            }
        }
        let states = args.iter().skip(1 + 4 * directions).zip([state_grads, cell_grads]);
        for (i, (state, grad)) in states.enumerate() {
            grads[1 + 4 * directions + i] = tensor(self.unsorted(&grad), state)?;
        }
        Ok(grads)
    }

    /// States `(directions, batch, hidden)`, put in the order of falling length.
    fn sorted<T: Element>(&self, states: &[T]) -> Vec<T> {
        let batch = self.sequences.batch();
        let mut sorted = Vec::with_capacity(states.len());
        for states in states.chunks_exact(batch * self.hidden) {
            for &sequence in self.sequences.order() {
                sorted.extend_from_slice(&states[sequence * self.hidden..(sequence + 1) * self.hidden]);
            }
        }
        sorted
    }

    /// The other way round.
    fn unsorted<T: Element>(&self, states: &[T]) -> Vec<T> {
        let mut back = vec![T::ZERO; states.len()];
        let batch = self.sequences.batch();
        for (place, from) in states.chunks_exact(self.hidden).enumerate() {
            let to = place / batch * batch + self.sequences.order()[place % batch];
            back[to * self.hidden..(to + 1) * self.hidden].copy_from_slice(from);
        }
        back
    }

    fn whole(&self, direction: usize) -> Chunk {
        Chunk { direction, start: 0, end: self.sequences.batch() }
    }

    /// What comes before each row of a direction.
    fn before(&self, direction: usize) -> Vec<Before> {
        let mut before = vec![Before::Start(0); self.sequences.rows()];
        for step in self.steps(self.whole(direction)) {
            for i in 0..step.active {
                before[step.row + i] =
                    if i < step.carried { Before::Row(step.before + i) } else { Before::Start(i) };
            }
        }
        before
    }
}

/// Where the hidden state that a step starts from is: in the row of another step, or at its sequence's place in the
/// initial state.
#[derive(Clone, Copy)]
enum Before {
    Row(usize),
    Start(usize),
}

impl Operation for Layer {
    fn name(&self) -> &'static str {
        "recurrent"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        with_real!(self.name(), args[0].dtype(), T => self.run::<T>(args))
    }

    fn backward(&self, args: &[Tensor], ys: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        with_real!(self.name(), grad.dtype(), T => self.run_back::<T>(args, ys, grad))
    }
}

/// The state to start from, `(directions, batch, hidden)` in the order of falling length; empty if it is zero.
struct Initial<T> {
    hidden: Vec<T>,
    cell: Vec<T>,
}

impl<T: Element> Initial<T> {
    fn of(layer: &Layer, args: &[Tensor]) -> Result<Self> {
        let mut states = args[1 + 4 * layer.directions..]
            .iter()
            .map(|state| host::read(state, |state| Ok(layer.sorted(state))));
        let mut next = || states.next().unwrap_or(Ok(Vec::new()));
        Ok(Self { hidden: next()?, cell: next()? })
    }

    /// What an element-wise step needs of it for a chunk: LSTM the cells, others the hidden states.
    fn memory(&self, cell: Cell, chunk: Chunk, hidden: usize, batch: usize) -> &[T] {
        let states = if cell.has_cell_state() { &self.cell } else { &self.hidden };
        states.get((chunk.direction * batch + chunk.start) * hidden..).unwrap_or(&[])
    }
}

/// Some rows, each of `width` numbers.
///
/// # Safety
/// As for [`Shared::slice`].
#[allow(clippy::mut_from_ref)]
unsafe fn rows_of<'a, T>(shared: &'a Shared<T>, row: usize, count: usize, width: usize) -> &'a mut [T] {
    // SAFETY: the caller's.
    unsafe { shared.slice(row * width..(row + count) * width) }
}

/// The state after the last steps: `(1, directions, batch, hidden)` of the hidden states, with LSTM 2 for the cells.
struct Ending {
    cell: Cell,
    directions: usize,
    sequences: Arc<PackedSequences>,
    memory: Arc<Memory>,
}

impl Ending {
    /// The row where each sequence ends in a direction.
    fn rows(&self, direction: usize) -> Vec<usize> {
        let mut first = vec![0; self.sequences.batch()];
        if direction == 0 {
            return self.sequences.last_rows();
        }
        self.sequences.order().iter().enumerate().for_each(|(row, &sequence)| first[sequence] = row);
        first
    }

    /// Where in `ys` each sequence's last hidden state is, direction after direction.
    fn places(&self, hidden: usize) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        let of = move |direction: usize| {
            self.rows(direction).into_iter().map(move |row| (row * self.directions + direction) * hidden)
        };
        (0..self.directions).flat_map(of).map(move |at| at..at + hidden)
    }

    fn run<T: Element>(&self, ys: &[T], hidden: usize) -> Result<Vec<T>> {
        let mut end = Vec::new();
        self.places(hidden).for_each(|place| end.extend_from_slice(&ys[place]));
        if let Some(cells) = self.memory.kept.get().and_then(|kept| kept.cells.as_ref()) {
            host::read(cells, |cells: &[T]| {
                let cells_of = cells.chunks_exact(self.sequences.rows() * hidden);
                for (direction, cells) in cells_of.enumerate() {
                    for row in self.rows(direction) {
                        end.extend_from_slice(&cells[row * hidden..(row + 1) * hidden]);
                    }
                }
                Ok(())
            })?;
        }
        Ok(end)
    }
}

impl Operation for Ending {
    fn name(&self) -> &'static str {
        "recurrent-end"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let hidden = args[0].dim(1)? / self.directions;
        let parts = if self.cell.has_cell_state() { 2 } else { 1 };
        let shape = (parts, self.directions, self.sequences.batch(), hidden);
        with_real!(self.name(), args[0].dtype(), T => host::read::<T, _>(&args[0], |ys| {
            Ok(host::output(self.run(ys, hidden)?, shape))
        }))
    }

    fn backward(&self, args: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        if self.cell.has_cell_state() {
            *self.memory.cell_grad.lock().unwrap_or_else(PoisonError::into_inner) = Some(grad.get(1)?);
        }
        let (ys, hidden) = (&args[0], args[0].dim(1)? / self.directions);
        with_real!(self.name(), grad.dtype(), T => {
            let mut ys_grad = vec![T::ZERO; ys.elem_count()];
            host::read(&grad.get(0)?, |grad: &[T]| {
                for (place, from) in self.places(hidden).zip(grad.chunks_exact(hidden)) {
                    ys_grad[place].copy_from_slice(from);
                }
                Ok(())
            })?;
            Ok(vec![Some(Tensor::from_vec(ys_grad, ys.shape(), ys.device())?)])
        })
    }
}
