//! The CUDA form of a recurrent layer.
//!
//! One matrix product over all sequences computes the product with the input weights, and likewise the gradient of each
//! weight. The recurrence takes one launch for all steps if a block can hold the layer ([`Plan`]), and otherwise one
//! product and one launch per step. `kernels/cuda/recurrent.cu` has the formulas.

use super::plan::Plan;
use super::{FinalState, Ids, Recurrent, SavedForBackward, Sizes};
use crate::kernels::cuda::{self, Arg, Buffer, Grid, Kernel, Matrix, Pointer, Product};
use crate::ops::autograd;
use crate::ops::gpu::{Gpu, Stored};
use crate::ops::{Cell, PackedSequences};
use candle_core::{Result, Shape, Storage, Tensor, bail};

/// The parameters of a direction.
#[derive(Clone, Copy)]
pub(super) struct Parameters<T> {
    pub input: Pointer<T>,
    pub hidden: Pointer<T>,
    pub input_bias: Pointer<T>,
    pub hidden_bias: Pointer<T>,
}

/// The addresses of a layer's arguments. Without a second direction, its slots repeat the first.
pub(super) struct Layer<'a, T> {
    pub gpu: &'a Gpu,
    pub sizes: &'a Sizes,
    pub xs: Pointer<T>,
    pub parameters: [Parameters<T>; 2],
    /// The initial hidden state and cell state, null if zero.
    pub initial: [Pointer<T>; 2],
    /// Null without tokens.
    pub ids: Pointer<u32>,
    /// The arguments `starts`, `lengths` and `order` of the kernels.
    pub layout: [Pointer<u32>; 3],
    plan: Option<Plan>,
}

/// The buffers that the recurrence reads and writes.
#[derive(Clone, Copy)]
pub(super) struct Buffers<T> {
    /// The input part of each direction's gates, or the table of tokens.
    pub x: [Pointer<T>; 2],
    pub gates: Pointer<T>,
    pub kept: Pointer<T>,
    pub before: Pointer<T>,
    pub ys: Pointer<T>,
    pub final_state: Pointer<T>,
}

/// The buffers that back-propagation through time reads and writes.
#[derive(Clone, Copy)]
pub(super) struct BackwardBuffers<T> {
    pub gates: Pointer<T>,
    pub kept: Pointer<T>,
    pub before: Pointer<T>,
    pub ys: Pointer<T>,
    pub grad: Pointer<T>,
    pub cell_grad: Pointer<T>,
    pub input_grads: Pointer<T>,
    pub product_grads: Pointer<T>,
    /// The gradients of the initial hidden state and cell state, null if not needed.
    pub state_grads: [Pointer<T>; 2],
}

/// The kernels' arguments `starts`, `lengths` and `order`: null if all sequences have the same length.
fn layout(gpu: &Gpu, sequences: &PackedSequences) -> Result<[Pointer<u32>; 3]> {
    if sequences.step(sequences.steps() - 1).0 == sequences.batch() {
        return Ok([Pointer::null(); 3]);
    }
    let layout = sequences.on_device(gpu)?;
    Ok([layout.starts, layout.lengths, layout.sequences])
}

/// The address of a buffer, null if there is none.
pub(super) fn address<T: cuda::Scalar>(buffer: &Option<Buffer<T>>) -> Pointer<T> {
    buffer.as_ref().map_or(Pointer::null(), Buffer::pointer)
}

impl<'a, T: Stored + cuda::Real> Layer<'a, T> {
    fn new(gpu: &'a Gpu, op: &'a Recurrent, args: &[Tensor]) -> Result<Self> {
        let sizes = &op.sizes;
        let Sizes { cell, hidden, directions, ref sequences, .. } = *sizes;
        let parameters = |first: usize| -> Result<Parameters<T>> {
            let get = |i: usize| gpu.pointer::<T>(&args[first + i]);
            Ok(Parameters { input: get(0)?, hidden: get(1)?, input_bias: get(2)?, hidden_bias: get(3)? })
        };
        let (ids, xs) = match &op.ids {
            Some(Ids::Device(ids)) => (gpu.pointer(ids)?, Pointer::null()),
            Some(Ids::Host(_)) => bail!("recurrent: found tokens in main memory, expected them on the GPU"),
            None => (Pointer::null(), gpu.pointer(&args[0])?),
        };
        let state = |i: usize| match args.get(1 + 4 * directions + i) {
            Some(state) => gpu.pointer(state),
            None => Ok(Pointer::null()),
        };
        Ok(Self {
            gpu,
            sizes,
            xs,
            parameters: [parameters(1)?, parameters(4 * directions - 3)?],
            initial: [state(0)?, state(1)?],
            ids,
            layout: layout(gpu, sequences)?,
            plan: Plan::new::<T>(cell, hidden, directions * sequences.batch(), gpu.shared_limit()),
        })
    }

    pub(super) fn sequences(&self) -> &PackedSequences {
        &self.sizes.sequences
    }

    /// The units of all gates.
    pub(super) fn width(&self) -> usize {
        self.sizes.cell.gates() * self.sizes.hidden
    }

    /// Elements of a buffer that has one hidden state for each row and direction.
    pub(super) fn elements(&self) -> usize {
        self.sizes.directions * self.sequences().rows() * self.sizes.hidden
    }

    /// Elements of a state of all sequences.
    pub(super) fn state_elements(&self) -> usize {
        self.sizes.directions * self.sequences().batch() * self.sizes.hidden
    }

    /// Launches a kernel of `recurrent.cu`, on `blocks` for each direction.
    ///
    /// # Safety
    /// As for [`cuda::Device::launch`].
    pub(super) unsafe fn launch(
        &self,
        name: &'static str,
        blocks: usize,
        threads: [usize; 3],
        args: &[Arg],
    ) -> Result<()> {
        let grid = Grid { blocks: [blocks, self.sizes.directions, 1], threads, shared: 0 };
        let constants = [("CELL", self.sizes.cell.code())];
        // SAFETY: the caller's contract.
        unsafe { self.gpu.launch(cuda::RECURRENT.kernel::<T>(name).with(&constants), grid, args) }
    }

    /// Launches a kernel that runs all steps.
    ///
    /// # Safety
    /// As for [`cuda::Device::launch`].
    unsafe fn launch_all(&self, plan: &Plan, name: &'static str, shared: usize, args: &[Arg]) -> Result<()> {
        let Sizes { cell, hidden, directions, ref sequences, .. } = *self.sizes;
        let blocks = [sequences.batch().div_ceil(plan.rows), directions, 1];
        let grid = Grid { blocks, threads: [2 * plan.capacity, 1, 1], shared };
        // Compile a kernel for each large layer: constant sizes save registers.
        let fixed = if hidden > 64 || hidden == plan.capacity { hidden } else { 0 };
        let starts = self.parameters.map(|parameters| parameters.hidden.address());
        let row_bytes = (hidden * size_of::<T>()) as u64;
        let aligned = fixed > 0 && starts.into_iter().chain([row_bytes]).all(|bytes| bytes % 16 == 0);
        let constants = [
            ("CELL", cell.code()),
            ("HIDDEN", plan.capacity),
            ("FIXED", fixed),
            ("ROWS", plan.rows),
            ("ALIGNED", aligned.into()),
            ("KEPT", plan.forward.registers),
            ("HELD", plan.forward.shared),
            ("KEPT_BACK", plan.backward.registers),
            ("HELD_BACK", plan.backward.shared),
        ];
        let kernel: Kernel = cuda::RECURRENT_SEQUENCE.kernel::<T>(name).with(&constants);
        // SAFETY: the caller's contract.
        unsafe { self.gpu.launch(kernel, grid, args) }
    }

    /// Computes the input part of the gates of all directions.
    fn input_product(&self, gates: Pointer<T>) -> Result<()> {
        let (rows, width, features) = (self.sequences().rows(), self.width(), self.sizes.features);
        for direction in 0..self.sizes.directions {
            let (to, weight) = (gates.offset(direction * rows * width), self.parameters[direction].input);
            let product =
                Product::new([rows, width, features], (self.xs, features), (weight, features), (to, width));
            // SAFETY: the input and the weights have these sizes; the caller's buffer has room for the gates.
            unsafe { self.gpu.product(Product { b_transposed: true, ..product })? };
        }
        Ok(())
    }

    /// Runs the recurrence.
    fn forward(&self, buffers: Buffers<T>) -> Result<()> {
        let Some(plan) = &self.plan else { return self.forward_by_steps(buffers) };
        let Buffers { x, gates, kept, before, ys, final_state } = buffers;
        let [first, second] = self.parameters;
        let tokens = self.sizes.features as i32;
        let mut args: Vec<Arg> = vec![x[0].into(), x[1].into(), self.ids.into(), tokens.into()];
        args.extend([first.hidden, second.hidden, first.input_bias, second.input_bias].map(Arg::from));
        args.extend([first.hidden_bias, second.hidden_bias, self.initial[0], self.initial[1]].map(Arg::from));
        args.extend([gates, kept, before, ys, final_state].map(Arg::from));
        args.extend(self.layout.map(Arg::from));
        args.extend(self.counts());
        // SAFETY: these are the kernel's parameters; `Buffers` are as long as it requires.
        unsafe { self.launch_all(plan, "recurrent_forward", plan.forward.bytes, &args) }
    }

    /// The last arguments of a kernel that runs all steps: the numbers of steps, sequences, rows and units.
    pub(super) fn counts(&self) -> [Arg; 4] {
        let sequences = self.sequences();
        [sequences.steps(), sequences.batch(), sequences.rows(), self.sizes.hidden].map(|n| (n as i32).into())
    }

    /// Goes back through time. Returns sums of the gates' gradients, and their number for each direction.
    fn backward(&self, buffers: BackwardBuffers<T>) -> Result<(Buffer<T>, usize)> {
        let Some(plan) = &self.plan else { return self.backward_by_steps(buffers) };
        let count = self.sequences().batch().div_ceil(plan.rows);
        let sums = self.gpu.alloc::<T>(self.sizes.directions * count * self.gradients())?;
        let BackwardBuffers { gates, kept, before, ys, grad, cell_grad, .. } = buffers;
        let [first, second] = self.parameters;
        let mut args: Vec<Arg> = [gates, kept, before, ys, self.initial[1]].map(Arg::from).into();
        args.extend([first.hidden, second.hidden, grad, cell_grad].map(Arg::from));
        args.extend([buffers.input_grads, buffers.product_grads].map(Arg::from));
        args.extend([buffers.state_grads[0], buffers.state_grads[1], sums.pointer()].map(Arg::from));
        args.extend(self.layout.map(Arg::from));
        args.extend(self.counts());
        // SAFETY: these are the kernel's parameters; `BackwardBuffers` are as long as it requires.
        unsafe { self.launch_all(plan, "recurrent_backward", plan.backward.bytes, &args)? };
        Ok((sums, count))
    }

    /// Number of columns of the gates' gradients that are summed to the biases' gradients.
    pub(super) fn gradients(&self) -> usize {
        // The n of a GRU has two gradients: through the input and through the hidden product.
        self.width() + if self.sizes.cell == Cell::Gru { self.sizes.hidden } else { 0 }
    }

    /// The gradient of the input.
    fn input_gradient(&self, grads: Pointer<T>) -> Result<Buffer<T>> {
        let (rows, width, features) = (self.sequences().rows(), self.width(), self.sizes.features);
        let to = self.gpu.alloc::<T>(rows * features)?;
        for direction in 0..self.sizes.directions {
            let (from, weight) = (grads.offset(direction * rows * width), self.parameters[direction].input);
            let each = Product::new(
                [rows, features, width],
                (from, width),
                (weight, features),
                (to.pointer(), features),
            );
            let beta = if direction == 0 { T::ZERO } else { T::ONE };
            // SAFETY: the gradients and the weights have these sizes.
            unsafe { self.gpu.product(Product { beta, ..each })? };
        }
        Ok(to)
    }

    /// Computes the weight gradients of all directions, `(directions, width, columns)`.
    ///
    /// `grads` are the gate gradients.
    ///
    /// `from` is what the weights are multiplied with; its directions are `distance` elements apart.
    fn weight_gradients(
        &self,
        grads: Pointer<T>,
        (from, distance): (Pointer<T>, usize),
        columns: usize,
    ) -> Result<Tensor> {
        let (directions, rows, width) = (self.sizes.directions, self.sequences().rows(), self.width());
        let to = self.gpu.alloc::<T>(directions * width * columns)?;
        let matrix = |at, stride, batch_stride| Matrix { at, stride, batch_stride };
        let all = Product::new(
            [width, columns, rows],
            matrix(grads, width, rows * width),
            matrix(from, columns, distance),
            matrix(to.pointer(), columns, width * columns),
        );
        // SAFETY: both have a row for each element.
        unsafe { self.gpu.product(Product { batch: directions, a_transposed: true, ..all })? };
        Ok(self.gpu.tensor(to, (directions, width, columns)))
    }

    /// The gradient of a table of tokens.
    fn token_gradient(&self, grads: Pointer<T>) -> Result<Buffer<T>> {
        let (tokens, width) = (self.sizes.features, self.width());
        let to = self.gpu.alloc::<T>(tokens * width)?;
        let (rows, columns) = (self.sequences().rows() as i32, width as i32);
        let args: [Arg; 5] =
            [grads.into(), self.ids.into(), rows.into(), columns.into(), to.pointer().into()];
        let grid = Grid { blocks: [tokens, width.div_ceil(32), 1], threads: [32, 16, 1], shared: 0 };
        let constants = [("CELL", self.sizes.cell.code())];
        let kernel = cuda::RECURRENT.kernel::<T>("recurrent_token_gradient").with(&constants);
        // SAFETY: these are the kernel's parameters; there is one id and one row of gradients for each element.
        unsafe { self.gpu.launch(kernel, grid, &args)? };
        Ok(to)
    }

    /// The gradients of the biases of each direction, the input biases first.
    fn bias_gradients(&self, (sums, count): (Buffer<T>, usize)) -> Result<[Vec<Buffer<T>>; 2]> {
        let new = || {
            (0..self.sizes.directions).map(|_| self.gpu.alloc::<T>(self.width())).collect::<Result<Vec<_>>>()
        };
        let grads = [new()?, new()?];
        let mut args: Vec<Arg> =
            vec![sums.pointer().into(), (count as i32).into(), (self.sizes.hidden as i32).into()];
        for grads in &grads {
            args.extend([&grads[0], &grads[grads.len() - 1]].map(|grad| Arg::from(grad.pointer())));
        }
        // SAFETY: these are the kernel's parameters; there are `count` sums for each direction.
        unsafe { self.launch("recurrent_bias_gradients", self.gradients().div_ceil(32), [32, 8, 1], &args)? };
        Ok(grads)
    }
}

impl Cell {
    /// The value of the option `CELL` of the kernels.
    pub(super) fn code(self) -> usize {
        match self {
            Self::Tanh => 0,
            Self::Relu => 1,
            Self::Gru => 2,
            Self::Lstm => 3,
        }
    }
}

impl Recurrent {
    pub(super) fn forward_on<T: Stored + cuda::Real>(
        &self,
        gpu: &Gpu,
        args: &[Tensor],
    ) -> Result<(Storage, Shape)> {
        let layer = Layer::<T>::new(gpu, self, args)?;
        let Sizes { cell, hidden, directions, ref sequences, .. } = self.sizes;
        let (elements, gate_elements) = (layer.elements(), layer.elements() * cell.gates());
        let backward = args.iter().any(autograd::records);
        let keeps_gates = backward && matches!(cell, Cell::Gru | Cell::Lstm);
        let buffer = |exists: bool, len: usize| exists.then(|| gpu.alloc::<T>(len)).transpose();
        // The activated gates replace their input part.
        let gates = buffer(self.ids.is_none() || keeps_gates, gate_elements)?;
        let (kept, before) = (buffer(keeps_gates, elements)?, buffer(backward, elements)?);
        let ys = gpu.alloc::<T>(elements)?;
        let parts = if cell.has_cell_state() { 2 } else { 1 };
        let final_state = gpu.alloc::<T>(parts * layer.state_elements())?;
        let x = match self.ids {
            Some(_) => layer.parameters.map(|parameters| parameters.input),
            None => {
                layer.input_product(address(&gates))?;
                [0, directions - 1]
                    .map(|direction| address(&gates).offset(direction * sequences.rows() * layer.width()))
            }
        };
        layer.forward(Buffers {
            x,
            gates: address(&gates),
            kept: address(&kept),
            before: address(&before),
            ys: ys.pointer(),
            final_state: final_state.pointer(),
        })?;
        let tensor = |buffer: Option<Buffer<T>>, len: usize| buffer.map(|buffer| gpu.tensor(buffer, len));
        let shape = (parts, directions, sequences.batch(), hidden);
        let saved = SavedForBackward {
            gates: tensor(gates.filter(|_| keeps_gates), gate_elements),
            cells: tensor(kept, elements),
            before: tensor(before, elements),
            final_state: Some(gpu.output(final_state, shape)).into(),
        };
        let _ = self.saved.set(saved);
        Ok(gpu.output(ys, (sequences.rows(), directions * hidden)))
    }

    pub(super) fn backward_on<T: Stored + cuda::Real>(
        &self,
        gpu: &Gpu,
        args: &[Tensor],
        ys: &Tensor,
        grad: &Tensor,
        cell_grad: Option<Tensor>,
    ) -> Result<Vec<Option<Tensor>>> {
        let Some(saved) = self.saved.get() else { bail!("recurrent: backward before forward") };
        let layer = Layer::<T>::new(gpu, self, args)?;
        let Sizes { cell, hidden, directions, features, .. } = self.sizes;
        let (weight_args, state_args) = args[1..].split_at(4 * directions);
        let gate_elements = layer.elements() * cell.gates();
        let input_grads = gpu.alloc::<T>(gate_elements)?;
        let product_grads = (cell == Cell::Gru).then(|| gpu.alloc::<T>(gate_elements)).transpose()?;
        let state_grad = |i: usize| {
            let state = state_args.get(i).filter(|state| state.track_op());
            state.map(|_| gpu.alloc::<T>(layer.state_elements())).transpose()
        };
        let state_grads = [state_grad(0)?, state_grad(1)?];
        let pointer = |tensor: &Option<Tensor>| match tensor {
            Some(tensor) => gpu.pointer::<T>(tensor),
            None => Ok(Pointer::null()),
        };
        let before = pointer(&saved.before)?;
        let sums = layer.backward(BackwardBuffers {
            gates: pointer(&saved.gates)?,
            kept: pointer(&saved.cells)?,
            before,
            ys: gpu.pointer(ys)?,
            grad: gpu.pointer(grad)?,
            cell_grad: pointer(&cell_grad)?,
            input_grads: input_grads.pointer(),
            product_grads: address(&product_grads),
            state_grads: [address(&state_grads[0]), address(&state_grads[1])],
        })?;
        let mut grads = vec![None; args.len()];
        if args[0].track_op() {
            let grad = layer.input_gradient(input_grads.pointer())?;
            grads[0] = Some(gpu.tensor(grad, args[0].shape()));
        }
        let track = |index: usize| weight_args.iter().skip(index).step_by(4).any(Tensor::track_op);
        let input_weights = (self.ids.is_none() && track(0))
            .then(|| layer.weight_gradients(input_grads.pointer(), (layer.xs, 0), features))
            .transpose()?;
        let outer = product_grads.as_ref().unwrap_or(&input_grads).pointer();
        let hidden_weights = track(1)
            .then(|| layer.weight_gradients(outer, (before, layer.elements() / directions), hidden))
            .transpose()?;
        for (direction, weights) in weight_args.chunks_exact(4).enumerate() {
            let first = 1 + 4 * direction;
            if weights[0].track_op() {
                grads[first] = Some(match &input_weights {
                    Some(all) => all.get(direction)?,
                    None => {
                        let input_grads =
                            input_grads.pointer().offset(direction * gate_elements / directions);
                        gpu.tensor(layer.token_gradient(input_grads)?, weights[0].shape())
                    }
                });
            }
            if let Some(all) = hidden_weights.as_ref().filter(|_| weights[1].track_op()) {
                grads[first + 1] = Some(all.get(direction)?);
            }
        }
        if weight_args.chunks_exact(4).flat_map(|weights| &weights[2..]).any(Tensor::track_op) {
            for (i, biases) in layer.bias_gradients(sums)?.into_iter().enumerate() {
                for (direction, grad) in biases.into_iter().enumerate() {
                    grads[3 + i + 4 * direction] = Some(gpu.tensor(grad, layer.width()));
                }
            }
        }
        for (i, (state, grad)) in state_args.iter().zip(state_grads).enumerate() {
            grads[1 + 4 * directions + i] = grad.map(|grad| gpu.tensor(grad, state.shape()));
        }
        Ok(grads)
    }
}

impl FinalState {
    /// Computes the gradient of the outputs from the gradient of the final states.
    pub(super) fn backward_on<T: Stored + cuda::Real>(
        &self,
        gpu: &Gpu,
        args: &[Tensor],
        grad: &Tensor,
    ) -> Result<Tensor> {
        let Sizes { cell, hidden, directions, ref sequences, .. } = self.sizes;
        let to = gpu.alloc::<T>(args[0].elem_count())?;
        let mut args_of_kernel: Vec<Arg> = vec![gpu.pointer::<T>(grad)?.into()];
        args_of_kernel.extend(layout(gpu, sequences)?.map(Arg::from));
        args_of_kernel
            .extend([sequences.steps(), sequences.batch(), hidden, directions].map(|n| Arg::from(n as i32)));
        args_of_kernel.push(to.pointer().into());
        let blocks = (sequences.batch() * directions * hidden).div_ceil(1024);
        let grid = Grid { blocks: [sequences.steps(), blocks, 1], threads: [256, 1, 1], shared: 0 };
        let constants = [("CELL", cell.code())];
        let kernel = cuda::RECURRENT.kernel::<T>("recurrent_final_gradient").with(&constants);
        // SAFETY: these are the kernel's parameters; `grad` begins with the gradient of the hidden states.
        unsafe { gpu.launch(kernel, grid, &args_of_kernel)? };
        Ok(gpu.tensor(to, args[0].shape()))
    }
}
