//! A recurrent layer over whole sequences, in one operation.
//!
//! The input's part in all gates of all steps is one matrix product. The recurrence then runs over chunks of the
//! batch, each through all its steps without waiting for another, on weights laid out for the inner loop once. The
//! gradient is back-propagation through time over the gates that the forward pass has left; the gradients of the
//! weights are again products over whole sequences.

use super::host::{self, Real, with_real};
use super::linear::column_sums;
use super::matmul::{Left, Panels, Start, multiply, product, transposed_product};
use super::nary::{self, Operation};
use super::parallel::{self, Shared};
use super::simd::{Lanes, vectorised};
use super::{Sequences, reference};
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, bail};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

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

/// The parameters of one direction of a layer, with PyTorch's shapes and order of gates.
#[derive(Debug, Clone)]
pub struct Weights {
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
pub struct State {
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
    sequences: &Arc<Sequences>,
    weights: &[Weights],
    state: Option<&State>,
) -> Result<(Tensor, State)> {
    let hidden = check(cell, xs, sequences, weights, state)?;
    if !xs.device().is_cpu() {
        return reference::recurrent(cell, xs, sequences, weights, state);
    }
    let mut args = vec![xs.contiguous()?];
    for Weights { input, hidden, input_bias, hidden_bias } in weights {
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
        sequences: sequences.clone(),
        memory: Arc::default(),
    };
    let end = Ending {
        cell,
        directions: layer.directions,
        sequences: sequences.clone(),
        memory: layer.memory.clone(),
    };
    let ys = nary::apply(layer, args)?;
    let end = ys.apply_op1(end)?;
    let cell = if cell.has_cell_state() { Some(end.get(1)?) } else { None };
    Ok((ys, State { hidden: end.get(0)?, cell }))
}

/// The number of hidden units, of arguments that fit each other.
fn check(
    cell: Cell,
    xs: &Tensor,
    sequences: &Sequences,
    weights: &[Weights],
    state: Option<&State>,
) -> Result<usize> {
    let features = match xs.dims() {
        &[rows, features] if rows == sequences.rows() => features,
        dims => {
            bail!("recurrent: found an input of shape {dims:?}, expected ({}, features)", sequences.rows())
        }
    };
    if !(1..=2).contains(&weights.len()) {
        bail!("recurrent: found weights of {} directions, expected one or two", weights.len());
    }
    let hidden = weights[0].hidden.dims().last().copied().unwrap_or(0);
    let rows = cell.gates() * hidden;
    for Weights { input, hidden: recurrent, input_bias, hidden_bias } in weights {
        for (name, found, expected) in [
            ("input weight", input.dims(), [rows, features].as_slice()),
            ("hidden weight", recurrent.dims(), &[rows, hidden]),
            ("input bias", input_bias.dims(), &[rows]),
            ("hidden bias", hidden_bias.dims(), &[rows]),
        ] {
            if found != expected || rows == 0 {
                bail!(
                    "recurrent: found the {name} of shape {found:?}, expected {expected:?} for a {cell:?} cell of \
                     {hidden} hidden units and {features} features"
                );
            }
        }
    }
    if let Some(State { hidden: state, cell: cells }) = state {
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

/// How the gates of one step lie in memory: LSTM's as in its weights; GRU's as n's input part, r, z, n's hidden part,
/// so that what the input adds to and what the hidden state adds to each lie together.
#[derive(Clone, Copy)]
struct Gates {
    /// Numbers from one row to the next: a little more than there are, lest all rows meet in the same cache lines.
    row: usize,
    /// How many the input and the hidden state each add to.
    added: usize,
    /// Where those begin that the hidden state adds to.
    hidden_at: usize,
    /// Which row of the input's weights adds to the first.
    input_from: usize,
}

impl Gates {
    fn new(cell: Cell, hidden: usize) -> Self {
        let added = cell.gates() * hidden;
        let (hidden_at, input_from) = if cell == Cell::Gru { (hidden, 2 * hidden) } else { (0, 0) };
        Self { row: (hidden_at + added).next_multiple_of(16) + 16, added, hidden_at, input_from }
    }

    /// The row of the input's weights that adds to gate `at`.
    fn input_row(self, at: usize) -> usize {
        (at + self.input_from) % self.added
    }
}

struct Layer {
    cell: Cell,
    hidden: usize,
    directions: usize,
    sequences: Arc<Sequences>,
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

    fn run<T: Lanes>(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let &Self { cell, hidden, directions, .. } = self;
        let (rows, batch) = (self.sequences.rows(), self.sequences.batch());
        let features = args[0].dim(1)?;
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
        let mut weights = Vec::new();
        for (weight, gates) in args[1..].chunks_exact(4).zip(gates.chunks_exact_mut(rows * layout.row)) {
            let (hidden_bias, panels) =
                numbers::<T, _>(weight, |[input, recurrent, input_bias, hidden_bias]| {
                    // What the hidden state's product starts from: with its bias, but for GRU's n.
                    let bias: Vec<T> = (0..layout.added)
                        .map(|at| match layout.input_row(at) {
                            row if cell == Cell::Gru && row >= 2 * hidden => input_bias[row],
                            row => input_bias[row] + hidden_bias[row],
                        })
                        .collect();
                    let panels = Panels::transposed((features, layout.added), |at| {
                        &input[layout.input_row(at) * features..]
                    });
                    host::read(&args[0], |xs| {
                        product((xs, features), &panels, gates, layout.row, Start::Row(&bias));
                        Ok(())
                    })?;
                    let panels = Panels::transposed((hidden, layout.added), |at| &recurrent[at * hidden..]);
                    Ok((hidden_bias.to_vec(), panels))
                })?;
            weights.push((hidden_bias, panels));
        }
        let (chunks, zeros) = (self.chunks(), vec![T::ZERO; hidden]);
        let (all_gates, all_states) = (Shared::new(&mut gates), Shared::new(&mut states));
        let all_cells = Shared::new(&mut cells);
        parallel::for_each_chunk(chunks.len(), |i| {
            let chunk = chunks[i];
            let (hidden_bias, panels) = &weights[chunk.direction];
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
                if cell == Cell::Gru {
                    let n = layout.added..layout.added + hidden;
                    let bias = &hidden_bias[2 * hidden..];
                    gates.chunks_exact_mut(layout.row).for_each(|row| row[n.clone()].copy_from_slice(bias));
                }
                let at = layout.hidden_at;
                multiply(
                    Left::Rows(last, hidden),
                    panels,
                    &mut gates[at..],
                    (carried, layout.row),
                    Start::Result,
                );
                if active > carried && !initial.hidden.is_empty() {
                    let place = chunk.direction * batch + chunk.start + carried;
                    let fresh = Left::Rows(&initial.hidden[place * hidden..], hidden);
                    let to = &mut gates[carried * layout.row + at..];
                    multiply(fresh, panels, to, (active - carried, layout.row), Start::Result);
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
                            match cell {
                                Cell::Tanh => elman(gates, y, T::tanh),
                                Cell::Relu => elman(gates, y, |x| if x > T::ZERO { x } else { T::ZERO }),
                                Cell::Gru => gru(gates, before, y),
                                Cell::Lstm => lstm(gates, before, &mut cells[place], y),
                            }
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

    fn run_back<T: Lanes>(&self, args: &[Tensor], ys: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let &Self { cell, hidden, directions, .. } = self;
        let (rows, batch) = (self.sequences.rows(), self.sequences.batch());
        let features = args[0].dim(1)?;
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
        let mut weights = Vec::new();
        for weight in args[1..].chunks_exact(4).take(directions) {
            weights.push(host::read::<T, _>(&weight[1], |weight| {
                Ok(Panels::new((layout.added, hidden), |k| &weight[k * hidden..]))
            })?);
        }
        let kept =
            [kept.gates.as_ref(), kept.cells.as_ref(), Some(ys), Some(grad)].map(|t| t.unwrap_or(&none));
        numbers::<T, _>(&kept.map(Clone::clone), |[gates, cells, ys, grad]| {
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
                let (state_grads, cell_grads) =
                    unsafe { (all_states.slice(own.clone()), all_cells.slice(own)) };
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
                                        if y > T::ZERO { T::ONE } else { T::ZERO }
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
                    let left = Left::Rows(&gate_grads[layout.hidden_at..], layout.row);
                    let start = if cell == Cell::Gru { Start::Result } else { Start::Zero };
                    multiply(left, &weights[chunk.direction], state_grads, (wanted, hidden), start);
                }
            });
            Ok(())
        })?;

        let tensor =
            |data: Vec<T>, like: &Tensor| Tensor::from_vec(data, like.shape(), &Device::Cpu).map(Some);
        let mut grads = vec![None; args.len()];
        if args[0].track_op() {
            // SAFETY: the first direction's product writes all of it.
            let mut xs_grad = unsafe { parallel::unwritten::<T>(rows * features) };
            for (direction, weight) in args[1..].chunks_exact(4).take(directions).enumerate() {
                let gate_grads = &gate_grads[direction * rows * layout.row..];
                host::read::<T, _>(&weight[0], |weight| {
                    let panels =
                        Panels::new((layout.added, features), |k| &weight[layout.input_row(k) * features..]);
                    let start = if direction == 0 { Start::Zero } else { Start::Result };
                    product((gate_grads, layout.row), &panels, &mut xs_grad, features, start);
                    Ok(())
                })?;
            }
            grads[0] = tensor(xs_grad, &args[0])?;
        }
        for (direction, weight) in args[1..].chunks_exact(4).take(directions).enumerate() {
            let gate_grads = &gate_grads[direction * rows * layout.row..][..rows * layout.row];
            let at = 1 + 4 * direction;
            if weight[0].track_op() {
                let mut grad = host::read(&args[0], |xs: &[T]| {
                    let dims = (rows, layout.added, features);
                    Ok(transposed_product((gate_grads, layout.row), |k| &xs[k * features..], dims))
                })?;
                grad.rotate_left((layout.added - layout.input_from) % layout.added * features);
                grads[at] = tensor(grad, &weight[0])?;
            }
            if weight[1].track_op() {
                let (before, zeros) = (self.before(direction), vec![T::ZERO; hidden]);
                let grad = host::read(ys, |ys: &[T]| {
                    let right = |k: usize| match before[k] {
                        Before::Row(row) => &ys[row * ys_row + direction * hidden..],
                        Before::Start(place) => {
                            let at = (direction * batch + place) * hidden;
                            initial.hidden.get(at..at + hidden).unwrap_or(&zeros)
                        }
                    };
                    let left = (&gate_grads[layout.hidden_at..], layout.row);
                    Ok(transposed_product(left, right, (rows, layout.added, hidden)))
                })?;
                grads[at + 1] = tensor(grad, &weight[1])?;
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
    fn sorted<T: Real>(&self, states: &[T]) -> Vec<T> {
        let batch = self.sequences.batch();
        let places = (0..self.directions).flat_map(|direction| {
            self.sequences.order().iter().map(move |sequence| direction * batch + sequence)
        });
        places.flat_map(|place| &states[place * self.hidden..(place + 1) * self.hidden]).copied().collect()
    }

    /// The other way round.
    fn unsorted<T: Real>(&self, states: &[T]) -> Vec<T> {
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
    const NAME: &'static str = "recurrent";

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        with_real!(Self::NAME, args[0].dtype(), T => self.run::<T>(args))
    }

    fn backward(&self, args: &[Tensor], ys: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        with_real!(Self::NAME, grad.dtype(), T => self.run_back::<T>(args, ys, grad))
    }
}

/// The state to start from, `(directions, batch, hidden)` in the order of falling length; empty if it is zero.
struct Initial<T> {
    hidden: Vec<T>,
    cell: Vec<T>,
}

impl<T: Real> Initial<T> {
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

/// Gives `read` the numbers of four tensors.
fn numbers<T: Real, R>(tensors: &[Tensor], read: impl FnOnce([&[T]; 4]) -> Result<R>) -> Result<R> {
    host::read(&tensors[0], |a| {
        host::read(&tensors[1], |b| {
            host::read(&tensors[2], |c| host::read(&tensors[3], |d| read([a, b, c, d])))
        })
    })
}

#[inline(always)]
fn sigmoid<T: Real>(x: T) -> T {
    T::ONE / (T::ONE + (-x).exp())
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
fn elman_back<T: Real>(y: &[T], grad: &[T], state: &[T], gate_grads: &mut [T], slope: impl Fn(T) -> T) {
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
            let (i, f, g, o) = (sigmoid(i), sigmoid(f), g.tanh(), sigmoid(o));
            let cell = f * before + i * g;
            [i, f, g, o, cell, o * cell.tanh()]
        },
    );
}

#[inline(always)]
fn lstm_back<T: Real>(
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
            let (r, z) = (sigmoid(r), sigmoid(z));
            let n = (n + r * product).tanh();
            [n, r, z, n + z * (before - n)]
        },
    );
}

#[inline(always)]
fn gru_back<T: Real>(gates: &[T], before: &[T], grad: &[T], state: &mut [T], gate_grads: &mut [T]) {
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

/// The state after the last steps: `(1, directions, batch, hidden)` of the hidden states, with LSTM 2 for the cells.
struct Ending {
    cell: Cell,
    directions: usize,
    sequences: Arc<Sequences>,
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

    fn run<T: Real>(&self, ys: &[T], hidden: usize) -> Result<Vec<T>> {
        let rows = self.sequences.rows();
        let mut end = Vec::new();
        for direction in 0..self.directions {
            for row in self.rows(direction) {
                let at = (row * self.directions + direction) * hidden;
                end.extend_from_slice(&ys[at..at + hidden]);
            }
        }
        if let Some(cells) = self.memory.kept.get().and_then(|kept| kept.cells.as_ref()) {
            host::read(cells, |cells: &[T]| {
                for direction in 0..self.directions {
                    for row in self.rows(direction) {
                        let at = (direction * rows + row) * hidden;
                        end.extend_from_slice(&cells[at..at + hidden]);
                    }
                }
                Ok(())
            })?;
        }
        Ok(end)
    }
}

impl CustomOp1 for Ending {
    fn name(&self) -> &'static str {
        "recurrent-end"
    }

    fn cpu_fwd(&self, ys: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let hidden = layout.dims()[1] / self.directions;
        let parts = if self.cell.has_cell_state() { 2 } else { 1 };
        let shape = (parts, self.directions, self.sequences.batch(), hidden);
        with_real!(self.name(), host::dtype(ys), T => {
            Ok(host::output(self.run::<T>(host::slice(ys, layout)?, hidden)?, shape))
        })
    }

    fn bwd(&self, ys: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        if self.cell.has_cell_state() {
            *self.memory.cell_grad.lock().unwrap_or_else(PoisonError::into_inner) = Some(grad.get(1)?);
        }
        let hidden = ys.dim(1)? / self.directions;
        with_real!(self.name(), grad.dtype(), T => {
            let mut ys_grad = vec![T::ZERO; ys.elem_count()];
            host::read(&grad.get(0)?, |grad: &[T]| {
                let mut from = grad.chunks_exact(hidden);
                for direction in 0..self.directions {
                    for (row, from) in self.rows(direction).into_iter().zip(&mut from) {
                        let at = (row * self.directions + direction) * hidden;
                        ys_grad[at..at + hidden].copy_from_slice(from);
                    }
                }
                Ok(())
            })?;
            Tensor::from_vec(ys_grad, ys.shape(), &Device::Cpu).map(Some)
        })
    }
}
