//! The recurrence of a layer on a GPU, one product and one launch per time step.

use super::Sizes;
use super::cuda::{BackwardBuffers, Buffers, Layer, address};
use crate::kernels::cuda::{self, Arg, Buffer, Grid, Matrix, Pointer, Product};
use crate::ops::Cell;
use crate::ops::gpu::Stored;
use candle_core::Result;

impl<T: Stored + cuda::Real> Layer<'_, T> {
    /// Copies a state from batch order to packed order, or back. Writes zeros if `from` is null.
    fn reorder(&self, from: Pointer<T>, to: Pointer<T>, back: bool) -> Result<()> {
        let len = self.state_elements();
        if from.address() == 0 {
            // SAFETY: the caller's buffer holds a state.
            return unsafe { self.gpu.clear(to, len) };
        }
        let mut args: Vec<Arg> = [from, to].map(Arg::from).into();
        args.extend(self.layout.map(Arg::from));
        let [steps, batch, _, hidden] = self.counts();
        args.extend([i32::from(back).into(), (self.sizes.directions as i32).into(), steps, batch, hidden]);
        let constants = [("CELL", self.sizes.cell.code())];
        let kernel = cuda::RECURRENT.kernel::<T>("recurrent_reorder").with(&constants);
        // SAFETY: these are the kernel's parameters; both hold a state.
        unsafe { self.gpu.launch(kernel, Grid::elements(len, 1), &args) }
    }

    /// The time steps of both directions in the order of the recurrence.
    fn steps(&self) -> Vec<[usize; 2]> {
        let steps = self.sequences().steps();
        (0..steps).map(|step| [step, steps - 1 - step]).collect()
    }

    /// The first row and the number of rows of a step in each direction; zeros without a second direction.
    fn rows(&self, step: [usize; 2]) -> [[usize; 2]; 2] {
        let rows = |direction: usize| match direction < self.sizes.directions {
            true => {
                let (count, start) = self.sequences().step(step[direction]);
                [start, count]
            }
            false => [0, 0],
        };
        [rows(0), rows(1)]
    }

    /// Multiplies the hidden weights of each direction from the left with the rows of a step in `from`.
    fn multiply(
        &self,
        rows: [[usize; 2]; 2],
        from: impl Fn(usize) -> Pointer<T>,
        product: Product<T>,
    ) -> Result<()> {
        for (direction, [_, m]) in rows.into_iter().enumerate().take(self.sizes.directions) {
            let a = Matrix::new(from(direction), product.a.stride);
            let b = Matrix::new(self.parameters[direction].hidden, product.b.stride);
            let c = product.c.at.offset(direction * self.sequences().batch() * product.n);
            let c = Matrix::new(c, product.c.stride);
            // SAFETY: the operands hold a row for each sequence, and the result, too.
            unsafe { self.gpu.product(Product { m, a, b, c, ..product })? };
        }
        Ok(())
    }

    /// Runs the recurrence.
    pub(super) fn forward_by_steps(&self, buffers: Buffers<T>) -> Result<()> {
        let (len, width, hidden) = (self.state_elements(), self.width(), self.sizes.hidden);
        let has_cells = self.sizes.cell.has_cell_state();
        let states = self.gpu.alloc::<T>(len)?;
        let cells = has_cells.then(|| self.gpu.alloc::<T>(len)).transpose()?;
        let products = self.gpu.alloc::<T>(len * self.sizes.cell.gates())?;
        self.reorder(self.initial[0], states.pointer(), false)?;
        if has_cells {
            self.reorder(self.initial[1], address(&cells), false)?;
        }
        let Buffers { x, gates, kept, before, ys, final_state } = buffers;
        let [first, second] = self.parameters;
        for (n, &step) in self.steps().iter().enumerate() {
            let rows = self.rows(step);
            let is_zero = n == 0 && self.initial[0].address() == 0;
            if !is_zero {
                let to = (products.pointer(), width);
                let each =
                    Product::new([0, width, hidden], (states.pointer(), hidden), (first.hidden, hidden), to);
                let state =
                    |direction: usize| states.pointer().offset(direction * self.sequences().batch() * hidden);
                self.multiply(rows, state, Product { b_transposed: true, ..each })?;
            }
            let products = if is_zero { Pointer::null() } else { products.pointer() };
            let tokens = self.sizes.features as i32;
            let mut args: Vec<Arg> =
                vec![x[0].into(), x[1].into(), self.ids.into(), tokens.into(), products.into()];
            args.extend([first.input_bias, second.input_bias].map(Arg::from));
            args.extend([first.hidden_bias, second.hidden_bias].map(Arg::from));
            args.extend([states.pointer(), address(&cells), gates, kept, before, ys].map(Arg::from));
            args.extend(rows.as_flattened().iter().map(|&n| Arg::from(n as i32)));
            args.extend(self.step_counts());
            self.launch_step("recurrent_step", rows, &args)?;
        }
        self.reorder(states.pointer(), final_state, true)?;
        if has_cells {
            self.reorder(address(&cells), final_state.offset(len), true)?;
        }
        Ok(())
    }

    /// Launches the kernel of a step.
    fn launch_step(&self, name: &'static str, rows: [[usize; 2]; 2], args: &[Arg]) -> Result<()> {
        let units = rows[0][1].max(rows[1][1]) * self.sizes.hidden;
        // SAFETY: the callers pass the kernel's parameters, and buffers for all rows and sequences.
        unsafe { self.launch(name, units.div_ceil(128), [128, 1, 1], args) }
    }

    /// Goes back through time. Returns sums of the gates' gradients, and their number for each direction.
    pub(super) fn backward_by_steps(&self, buffers: BackwardBuffers<T>) -> Result<(Buffer<T>, usize)> {
        let Sizes { cell, hidden, directions, .. } = *self.sizes;
        let (len, width, batch) = (self.state_elements(), self.width(), self.sequences().batch());
        let states = self.gpu.zeros::<T>(len)?;
        let cells = cell.has_cell_state().then(|| self.gpu.alloc::<T>(len)).transpose()?;
        let initial = (self.initial[1].address() != 0).then(|| self.gpu.alloc::<T>(len)).transpose()?;
        if cells.is_some() {
            self.reorder(buffers.cell_grad, address(&cells), false)?;
        }
        if initial.is_some() {
            self.reorder(self.initial[1], address(&initial), false)?;
        }
        let sums = self.gpu.zeros::<T>(directions * batch * self.gradients())?;
        let BackwardBuffers { gates, kept, before, ys, grad, input_grads, product_grads, .. } = buffers;
        let through = if cell == Cell::Gru { product_grads } else { input_grads };
        // A GRU's gradient already has a part; add the part that goes through the product.
        let beta = if cell == Cell::Gru { T::ONE } else { T::ZERO };
        let steps = self.steps();
        for (n, &step) in steps.iter().enumerate().rev() {
            let rows = self.rows(step);
            let previous = if n > 0 { self.rows(steps[n - 1]) } else { [[0; 2]; 2] };
            let row_args = |direction: usize| {
                let ([row, count], [previous, carried]) = (rows[direction], previous[direction]);
                [row, count, previous, carried.min(count)].map(|n| Arg::from(n as i32))
            };
            let mut args: Vec<Arg> = [gates, kept, before, ys, address(&initial), grad].map(Arg::from).into();
            args.extend(
                [states.pointer(), address(&cells), input_grads, product_grads, sums.pointer()]
                    .map(Arg::from),
            );
            args.extend(row_args(0).into_iter().chain(row_args(1)));
            args.extend(self.step_counts());
            self.launch_step("recurrent_step_gradient", rows, &args)?;
            let operands =
                ((through, width), (self.parameters[0].hidden, hidden), (states.pointer(), hidden));
            let each = Product::new([0, hidden, width], operands.0, operands.1, operands.2);
            let all = self.sequences().rows();
            let from = |direction: usize| through.offset((direction * all + rows[direction][0]) * width);
            self.multiply(rows, from, Product { beta, ..each })?;
        }
        for (grad, to) in
            [(states.pointer(), buffers.state_grads[0]), (address(&cells), buffers.state_grads[1])]
        {
            if to.address() != 0 && grad.address() != 0 {
                self.reorder(grad, to, true)?;
            }
        }
        Ok((sums, batch))
    }

    /// The last arguments of a kernel of one step: the numbers of rows, sequences and units.
    fn step_counts(&self) -> [Arg; 3] {
        let [_, batch, rows, hidden] = self.counts();
        [rows, batch, hidden]
    }
}
