//! A recurrent layer over packed sequences as one operation.
//!
//! A second operation reads the final state off the layer's output. Both share the values saved by the forward pass.

mod cuda;
mod plan;
mod steps;

use super::arguments::{RecurrentState, RecurrentWeights, check_recurrent, check_recurrent_tokens};
use super::autograd::{self, Operation};
use super::gpu::Gpu;
use super::host::{self, Element, with_real};
use super::{Cell, PackedSequences, reference};
use crate::kernels::cpu::recurrent::{self as kernel, InitialState, Input, Layer};
use crate::kernels::cpu::recurrent_gradient::{self as gradient, CellGradient, Saved};
use candle_core::{Device, Result, Shape, Storage, Tensor, bail};
use std::ops::Deref;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Runs one recurrent layer over the input `xs` `(rows, features)` of `sequences`.
///
/// Returns the hidden states at all elements, `(rows, directions * hidden)`, and the final state `(directions, batch,
/// hidden)`. The layer has one direction per element of `weights`. The first reads each sequence forward. The second
/// reads it backward from its own end, so the final state of that direction belongs to the first element. `state` is
/// the initial state `(directions, batch, hidden)`; it is zero if `None`.
///
/// # Errors
/// Fails if the shapes do not agree, or if `state` has cell states although the cell is not an LSTM, or lacks them
/// although it is.
pub fn recurrent(
    cell: Cell,
    xs: &Tensor,
    sequences: &Arc<PackedSequences>,
    weights: &[RecurrentWeights],
    state: Option<&RecurrentState>,
) -> Result<(Tensor, RecurrentState)> {
    let sizes = check_recurrent(cell, xs, sequences, weights, state)?;
    if !Gpu::supports(xs) {
        return reference::recurrent(cell, xs, sequences, weights, state);
    }
    run(cell, sizes, xs, None, sequences, weights, state)
}

/// Runs one recurrent layer over tokens whose products with the input weights are known.
///
/// The tokens are `ids` `(rows)`, u32. The result equals [`recurrent`] on the tokens' vectors. Instead of the
/// input weights, `weights` hold a table `(tokens, gates * hidden)`: the product of each token's vector with the input
/// weights, without biases. If there are fewer tokens than rows, this is less work, also in the backward pass.
///
/// # Errors
/// Fails if [`recurrent`] would, or an id is not below the number of tokens.
pub fn recurrent_tokens(
    cell: Cell,
    ids: &Tensor,
    sequences: &Arc<PackedSequences>,
    weights: &[RecurrentWeights],
    state: Option<&RecurrentState>,
) -> Result<(Tensor, RecurrentState)> {
    let sizes = check_recurrent_tokens(cell, ids, sequences, weights, state)?;
    if !Gpu::supports(&weights[0].hidden) {
        return reference::recurrent_tokens(cell, ids, sequences, weights, state);
    }
    let ids = Ids::new(ids, &weights[0].hidden, sizes[0])?;
    let no_input = Tensor::zeros(0, weights[0].input.dtype(), &Device::Cpu)?;
    run(cell, sizes, &no_input, Some(ids), sequences, weights, state)
}

/// Runs a recurrent layer in one direction, in main memory, and returns the states at all steps.
///
/// It is [`recurrent`] with all states instead of the final one: the hidden states `(rows, hidden)` and, for an LSTM,
/// the cell states `(rows, hidden)`.
pub(crate) fn recurrent_states(
    cell: Cell,
    xs: &Tensor,
    sequences: &Arc<PackedSequences>,
    weights: &RecurrentWeights,
    state: Option<&RecurrentState>,
) -> Result<(Tensor, Option<Tensor>)> {
    let weights = std::slice::from_ref(weights);
    let [features, hidden] = check_recurrent(cell, xs, sequences, weights, state)?;
    let sizes = Sizes { cell, features, hidden, directions: 1, sequences: sequences.clone() };
    let (ys, saved) = run_layer(&sizes, xs, None, weights, state)?;
    let cells = match cell.has_cell_state() {
        true => Some(autograd::apply(CellStates(saved), vec![ys.clone()])?),
        false => None,
    };
    Ok((ys, cells))
}

/// The tokens of a layer, one per row, in the memory that its kernels read.
enum Ids {
    Host(Vec<u32>),
    Device(Tensor),
}

impl Ids {
    /// Prepares the tokens for a layer with the hidden weights `weights`.
    ///
    /// On a GPU the kernels check them: a token that does not exist makes all later states NaN.
    fn new(ids: &Tensor, weights: &Tensor, tokens: usize) -> Result<Self> {
        let ids = ids.contiguous()?;
        if !ids.device().is_cpu() {
            return Ok(Self::Device(ids));
        }
        let values = ids.to_vec1::<u32>()?;
        if let Some(id) = values.iter().find(|&&id| id as usize >= tokens) {
            bail!("recurrent: found the id {id}, expected one below {tokens}");
        }
        Ok(if Gpu::of(weights).is_some() { Self::Device(ids) } else { Self::Host(values) })
    }
}

/// Applies the two operations to arguments whose shapes have been checked.
fn run(
    cell: Cell,
    [features, hidden]: [usize; 2],
    xs: &Tensor,
    ids: Option<Ids>,
    sequences: &Arc<PackedSequences>,
    weights: &[RecurrentWeights],
    state: Option<&RecurrentState>,
) -> Result<(Tensor, RecurrentState)> {
    let sizes = Sizes { cell, features, hidden, directions: weights.len(), sequences: sequences.clone() };
    let (ys, saved) = run_layer(&sizes, xs, ids, weights, state)?;
    let state = autograd::apply(FinalState { sizes, saved }, vec![ys.clone()])?;
    let part = |index| autograd::reshape(&autograd::part(&state, index, 1)?, &state.dims()[1..]);
    let cell = if cell.has_cell_state() { Some(part(1)?) } else { None };
    Ok((ys, RecurrentState { hidden: part(0)?, cell }))
}

/// Applies the layer's operation, and returns its result with the values saved for the backward pass.
fn run_layer(
    sizes: &Sizes,
    xs: &Tensor,
    ids: Option<Ids>,
    weights: &[RecurrentWeights],
    state: Option<&RecurrentState>,
) -> Result<(Tensor, Arc<OnceLock<SavedForBackward>>)> {
    let mut args = vec![xs.contiguous()?];
    for RecurrentWeights { input, hidden, input_bias, hidden_bias } in weights {
        for weight in [input, hidden, input_bias, hidden_bias] {
            args.push(weight.contiguous()?);
        }
    }
    for state in state.into_iter().flat_map(|state| [Some(&state.hidden), state.cell.as_ref()]).flatten() {
        args.push(state.contiguous()?);
    }
    let saved = Arc::<OnceLock<SavedForBackward>>::default();
    let layer = Recurrent { sizes: sizes.clone(), ids, saved: saved.clone() };
    Ok((autograd::apply(layer, args)?, saved))
}

/// The sizes of a layer; see [`Layer`].
#[derive(Clone)]
struct Sizes {
    cell: Cell,
    features: usize,
    hidden: usize,
    directions: usize,
    sequences: Arc<PackedSequences>,
}

impl Sizes {
    fn layer(&self) -> Layer<'_> {
        let &Self { cell, features, hidden, directions, ref sequences } = self;
        Layer { cell, features, hidden, directions, sequences: sequences.layout() }
    }
}

/// Intermediate values of the forward pass that the backward pass needs.
#[derive(Default)]
struct SavedForBackward {
    /// The activated gates of a GRU or LSTM, flat; the gates of other cells follow from the result.
    gates: Option<Tensor>,
    /// The cell states of an LSTM, flat. On a GPU also the values that a GRU multiplies with its reset gate.
    cells: Option<Tensor>,
    /// On a GPU, the hidden states before each step, flat.
    before: Option<Tensor>,
    /// On a GPU, the result of [`FinalState`], which takes it.
    final_state: Mutex<Option<(Storage, Shape)>>,
}

/// The operation of a layer.
///
/// Its arguments are the input, the weights of each direction and the parts of the initial state.
struct Recurrent {
    sizes: Sizes,
    /// The tokens, if the input weights are a table of tokens.
    ids: Option<Ids>,
    saved: Arc<OnceLock<SavedForBackward>>,
}

/// The arguments of the kernels.
struct KernelArguments<'a, T> {
    input: Input<'a, T>,
    weights: Vec<kernel::Weights<'a, T>>,
    initial: InitialState<T>,
}

impl Recurrent {
    /// The arguments of the kernels, from the `count` tensors that are held.
    fn arguments<'a, T: Element>(
        &'a self,
        held: &'a host::Held<'_, impl Deref<Target = Storage>>,
        count: usize,
    ) -> Result<KernelArguments<'a, T>> {
        let input = match &self.ids {
            Some(Ids::Host(ids)) => Input::Tokens(ids),
            Some(Ids::Device(_)) => bail!("recurrent: found tokens on a GPU, expected them in main memory"),
            None => Input::Features(held.get::<T>(0)?),
        };
        let state_index = 1 + 4 * self.sizes.directions;
        let weights = (1..state_index).step_by(4).map(|i| {
            Ok(kernel::Weights {
                input: held.get(i)?,
                hidden: held.get(i + 1)?,
                input_bias: held.get(i + 2)?,
                hidden_bias: held.get(i + 3)?,
            })
        });
        let state = |i: usize| (i < count).then(|| held.get::<T>(i)).transpose();
        let initial = self.sizes.layer().initial_state(state(state_index)?, state(state_index + 1)?);
        Ok(KernelArguments { input, weights: weights.collect::<Result<_>>()?, initial })
    }

    fn run<T: Element>(&self, args: &[Tensor]) -> Result<(Storage, Shape)> {
        let Sizes { cell, hidden, directions, sequences, .. } = &self.sizes;
        let held = host::hold(args);
        let KernelArguments { input, weights, initial } = self.arguments::<T>(&held, args.len())?;
        let kernel::Forward { ys, gates, cells } =
            kernel::forward(self.sizes.layer(), input, &weights, &initial);
        let save = |keep: bool, data: Vec<T>| {
            let len = data.len();
            keep.then(|| Tensor::from_vec(data, len, &Device::Cpu)).transpose()
        };
        let saved = SavedForBackward {
            gates: save(matches!(cell, Cell::Gru | Cell::Lstm), gates)?,
            cells: save(cell.has_cell_state(), cells)?,
            ..SavedForBackward::default()
        };
        let _ = self.saved.set(saved);
        Ok(host::output(ys, (sequences.rows(), directions * hidden)))
    }

    fn run_backward<T: Element>(
        &self,
        args: &[Tensor],
        ys: &Tensor,
        grad: &Tensor,
        cell_grad: Option<Tensor>,
    ) -> Result<Vec<Option<Tensor>>> {
        let (layer, directions) = (self.sizes.layer(), self.sizes.directions);
        let Some(SavedForBackward { gates, cells, .. }) = self.saved.get() else {
            bail!("recurrent: backward before forward")
        };
        let empty = Tensor::zeros(0, grad.dtype(), &Device::Cpu)?;
        let optional = [gates, cells, &cell_grad].map(|tensor| tensor.as_ref().unwrap_or(&empty));
        let (given, held) = (host::hold(args), host::hold([ys, grad].into_iter().chain(optional)));
        let KernelArguments { input, weights, initial } = self.arguments::<T>(&given, args.len())?;
        let (ys, grad) = (held.get::<T>(0)?, held.get::<T>(1)?);
        let saved = Saved { ys, gates: held.get(2)?, cells: held.get(3)? };
        let cell_grad = match &cell_grad {
            None => None,
            // From `CellStates`, or from `FinalState`.
            Some(grad) if grad.rank() == 2 => Some(CellGradient::Every(held.get::<T>(4)?)),
            Some(_) => Some(CellGradient::Final(held.get::<T>(4)?)),
        };
        let back = gradient::backward(layer, &weights, &initial, saved, grad, cell_grad);

        let tensor =
            |data: Vec<T>, like: &Tensor| Tensor::from_vec(data, like.shape(), &Device::Cpu).map(Some);
        let mut grads = vec![None; args.len()];
        if args[0].track_op() {
            grads[0] = tensor(gradient::input_gradient(layer, &weights, &back.gates), &args[0])?;
        }
        let (weight_args, state_args) = args[1..].split_at(4 * directions);
        for (direction, weight) in weight_args.chunks_exact(4).enumerate() {
            let mut set = |first: usize, parts: [Vec<T>; 2]| -> Result<()> {
                for (i, part) in (first..).zip(parts) {
                    grads[1 + 4 * direction + i] = tensor(part, &weight[i])?;
                }
                Ok(())
            };
            if weight[0].track_op() || weight[1].track_op() {
                set(0, gradient::weight_gradients(layer, direction, input, ys, &initial, &back.gates))?;
            }
            if weight[2].track_op() || weight[3].track_op() {
                set(2, gradient::bias_gradients(layer, direction, &back.gates))?;
            }
        }
        for (i, (state, grad)) in state_args.iter().zip([back.hidden, back.cell]).enumerate() {
            grads[1 + 4 * directions + i] = tensor(layer.to_batch_order(&grad), state)?;
        }
        Ok(grads)
    }
}

impl Operation for Recurrent {
    fn name(&self) -> &'static str {
        "recurrent"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(Storage, Shape)> {
        if let Some(gpu) = Gpu::of(&args[1]) {
            return with_real!(self.name(), args[1].dtype(), T => self.forward_on::<T>(&gpu, args));
        }
        with_real!(self.name(), args[0].dtype(), T => self.run::<T>(args))
    }

    fn backward(&self, args: &[Tensor], ys: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        self.backward_both(args, ys, grad, None)
    }

    /// The second result is an LSTM's final cell state.
    fn backward_both(
        &self,
        args: &[Tensor],
        ys: &Tensor,
        grad: &Tensor,
        cell_grad: Option<Tensor>,
    ) -> Result<Vec<Option<Tensor>>> {
        if let Some(gpu) = Gpu::of(grad) {
            return with_real!(self.name(), grad.dtype(), T => {
                self.backward_on::<T>(&gpu, args, ys, grad, cell_grad)
            });
        }
        with_real!(self.name(), grad.dtype(), T => self.run_backward::<T>(args, ys, grad, cell_grad))
    }
}

/// The operation that returns all cell states of an LSTM in one direction, `(rows, hidden)`.
///
/// Its argument is the layer's output, which links it into the graph; its result does not depend on the values.
struct CellStates(Arc<OnceLock<SavedForBackward>>);

impl Operation for CellStates {
    fn name(&self) -> &'static str {
        "recurrent-cell-states"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(Storage, Shape)> {
        let Some(cells) = self.0.get().and_then(|saved| saved.cells.as_ref()) else {
            bail!("recurrent: found no cell states")
        };
        with_real!(self.name(), cells.dtype(), T => {
            host::read::<T, _>(cells, |cells| Ok(host::output(cells.to_vec(), args[0].shape())))
        })
    }

    fn backward(&self, args: &[Tensor], _: &Tensor, _: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(args[0].zeros_like()?.detach())])
    }

    fn second_gradient(&self, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(grad.clone()))
    }
}

/// The operation that reads the final state off a layer's output.
///
/// The result is `(1, directions, batch, hidden)`, or `(2, ..)` with the cell state of an LSTM.
struct FinalState {
    sizes: Sizes,
    saved: Arc<OnceLock<SavedForBackward>>,
}

impl Operation for FinalState {
    fn name(&self) -> &'static str {
        "recurrent-final-state"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(Storage, Shape)> {
        let saved = self.saved.get();
        let computed =
            saved.and_then(|saved| saved.final_state.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(state) = computed {
            return Ok(state);
        }
        let Sizes { cell, hidden, directions, sequences, .. } = &self.sizes;
        let parts = if cell.has_cell_state() { 2 } else { 1 };
        let shape = (parts, *directions, sequences.batch(), *hidden);
        let cells = saved.and_then(|saved| saved.cells.as_ref());
        let held = host::hold(args.iter().chain(cells));
        with_real!(self.name(), args[0].dtype(), T => {
            let cells = if cells.is_some() { held.get::<T>(1)? } else { &[] };
            Ok(host::output(self.sizes.layer().final_state(held.get::<T>(0)?, cells), shape))
        })
    }

    fn backward(&self, args: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        if let Some(gpu) = Gpu::of(grad) {
            return with_real!(self.name(), grad.dtype(), T => {
                Ok(vec![Some(self.backward_on::<T>(&gpu, args, grad)?)])
            });
        }
        with_real!(self.name(), grad.dtype(), T => {
            let gradient = |grad: &[T]| Ok(self.sizes.layer().final_state_gradient(grad));
            let ys_grad = host::read(&grad.get(0)?, gradient)?;
            Ok(vec![Some(Tensor::from_vec(ys_grad, args[0].shape(), &Device::Cpu)?)])
        })
    }

    fn second_gradient(&self, grad: &Tensor) -> Result<Option<Tensor>> {
        if self.sizes.cell.has_cell_state() { grad.get(1).map(Some) } else { Ok(None) }
    }
}
