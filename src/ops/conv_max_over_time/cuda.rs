//! The operation on a GPU.

use super::ConvMaxOverTime;
use crate::kernels::cpu::conv_max_over_time::FilterSize;
use crate::kernels::cuda::{self, Arg, Grid, Pointer, Product};
use crate::ops::gpu::{Gpu, Stored};
use candle_core::{Result, Shape, Storage, Tensor, bail};

/// The largest number of different widths.
const WIDTHS: usize = 8;

/// Whether the kernels can work on filters of these sizes.
pub(super) fn supports(sizes: &[FilterSize]) -> bool {
    sizes.len() <= WIDTHS && sizes.iter().all(|size| size.count < 1 << 20 && size.width < 1 << 12)
}

/// Features that a block of a gradient kernel computes, with 128 threads.
const FEATURES: usize = 512;

/// The data of the forward pass that the backward pass needs.
pub(super) struct Saved {
    /// The weights in the order of the kernels, `(columns, features)`.
    filters: Tensor,
    /// The word at which the window of each maximum begins, i32 in the bits of u32: `(batch, filters)`.
    positions: Tensor,
}

impl Saved {
    /// Reads the positions.
    pub(super) fn positions(&self) -> Result<Vec<Vec<i64>>> {
        let rows = self.positions.to_vec2::<u32>()?.into_iter();
        Ok(rows.map(|row| row.into_iter().map(|position| i64::from(position as i32)).collect()).collect())
    }
}

impl ConvMaxOverTime {
    /// The number of words of all filters, which are the columns of the product.
    fn columns(&self) -> usize {
        self.sizes.iter().map(|size| size.count * size.width).sum()
    }

    /// The sizes of the filters as kernel arguments: two widths in a number.
    fn groups(&self) -> [Arg; WIDTHS / 2] {
        let mut groups = [0u64; WIDTHS];
        groups
            .iter_mut()
            .zip(&self.sizes)
            .for_each(|(to, size)| *to = (size.count << 12 | size.width) as u64);
        std::array::from_fn(|i| (groups[2 * i] | groups[2 * i + 1] << 32).into())
    }

    pub(super) fn forward_on<T: Stored + cuda::Real>(
        &self,
        gpu: &Gpu,
        args: &[Tensor],
    ) -> Result<(Storage, Shape)> {
        let (rows, features) = args[0].dims2()?;
        let (batch, total, columns) = (self.sentences.batch(), self.total(), self.columns());
        let kernel = |name| cuda::CONV_MAX_OVER_TIME.kernel::<T>(name);
        let (filters, biases) = (gpu.alloc::<T>(columns * features)?, gpu.alloc::<T>(total)?);
        let (mut column, mut filter) = (0, 0);
        for (size, parameters) in self.sizes.iter().zip(args[1..].chunks_exact(2)) {
            let elements = size.count * size.width * features;
            let args = [
                gpu.pointer::<T>(&parameters[0])?.into(),
                gpu.pointer::<T>(&parameters[1])?.into(),
                filters.pointer().offset(column * features).into(),
                biases.pointer().offset(filter).into(),
                (size.count as i32).into(),
                (size.width as i32).into(),
                (features as i32).into(),
            ];
            // SAFETY: these are the kernel's parameters; the filters of this width have `elements` elements.
            unsafe { gpu.launch(kernel("arrange_filters"), Grid::elements(elements, 1), &args)? };
            (column, filter) = (column + size.count * size.width, filter + size.count);
        }
        let responses = gpu.alloc::<T>(rows * columns)?;
        let (words, found) = ((gpu.pointer::<T>(&args[0])?, features), (responses.pointer(), columns));
        let product = Product::new([rows, columns, features], words, (filters.pointer(), features), found);
        // SAFETY: the matrices have these sizes; the result is new.
        unsafe { gpu.product(Product { b_transposed: true, ..product })? };
        let (ys, positions) = (gpu.alloc::<T>(batch * total)?, gpu.alloc::<u32>(batch * total)?);
        let layout = self.sentences.on_device(gpu)?;
        let mut args: Vec<Arg> = vec![responses.pointer().into(), biases.pointer().into()];
        args.extend([layout.starts, layout.places, layout.lengths].map(Arg::from));
        args.extend([Arg::from(ys.pointer()), positions.pointer().into()]);
        args.extend([total, columns, self.padding].map(|size| Arg::from(size as i32)));
        args.extend(self.groups());
        let grid = Grid { blocks: [total.div_ceil(32), batch, 1], threads: [32, 8, 1], shared: 0 };
        // SAFETY: these are the kernel's parameters; the responses have a row for each word.
        unsafe { gpu.launch(kernel("maxima"), grid, &args)? };
        self.on_gpu.get_or_init(|| Saved {
            filters: gpu.tensor(filters, (columns, features)),
            positions: gpu.tensor(positions, (batch, total)),
        });
        Ok(gpu.output(ys, (batch, total)))
    }

    pub(super) fn backward_on<T: Stored + cuda::Real>(
        &self,
        gpu: &Gpu,
        args: &[Tensor],
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let Some(Saved { filters, positions }) = self.on_gpu.get() else {
            bail!("conv_max_over_time: the backward pass ran before the forward pass")
        };
        let (rows, features) = args[0].dims2()?;
        let (batch, total, columns) = (self.sentences.batch(), self.total(), self.columns());
        let kernel = |name| cuda::CONV_MAX_OVER_TIME.kernel::<T>(name);
        let layout = self.sentences.on_device(gpu)?;
        let (positions, grad) = (gpu.pointer::<u32>(positions)?, gpu.pointer::<T>(grad)?);
        let parts = features.div_ceil(FEATURES);
        let mut grads = vec![None; args.len()];
        if args[0].track_op() {
            let xs_grad = gpu.alloc::<T>(rows * features)?;
            let filters = gpu.pointer::<T>(filters)?;
            let mut kernel_args: Vec<Arg> = vec![filters.into(), positions.into(), grad.into()];
            kernel_args.extend([layout.sequences, layout.steps].map(Arg::from));
            kernel_args.extend([
                Arg::from(xs_grad.pointer()),
                (features as i32).into(),
                (total as i32).into(),
            ]);
            kernel_args.extend(self.groups());
            let grid = Grid { blocks: [rows, parts, 1], threads: [128, 1, 1], shared: 0 };
            // SAFETY: these are the kernel's parameters; it writes a row for each word.
            unsafe { gpu.launch(kernel("words_gradient"), grid, &kernel_args)? };
            grads[0] = Some(gpu.tensor(xs_grad, args[0].shape()));
        }
        if args[1..].iter().all(|arg| !arg.track_op()) {
            return Ok(grads);
        }
        let weights = args[1..].iter().step_by(2).any(Tensor::track_op);
        let weight_grads = weights.then(|| gpu.alloc::<T>(columns * features)).transpose()?;
        let bias_grads = gpu.alloc::<T>(total)?;
        let weights_at = weight_grads.as_ref().map_or(Pointer::null(), |grads| grads.pointer());
        let mut kernel_args: Vec<Arg> =
            vec![gpu.pointer::<T>(&args[0])?.into(), positions.into(), grad.into()];
        kernel_args.extend([layout.starts, layout.places, layout.lengths].map(Arg::from));
        kernel_args.extend([Arg::from(weights_at), bias_grads.pointer().into()]);
        kernel_args.extend([batch, features, total].map(|size| Arg::from(size as i32)));
        kernel_args.extend(self.groups());
        let grid = Grid { blocks: [columns, parts, 1], threads: [128, 1, 1], shared: 0 };
        // SAFETY: these are the kernel's parameters; the gradients have room for all filters.
        unsafe { gpu.launch(kernel("filters_gradient"), grid, &kernel_args)? };
        // The gradients of each width are views.
        let weight_grads = weight_grads.map(|grads| gpu.tensor(grads, columns * features));
        let bias_grads = gpu.tensor(bias_grads, total);
        let (mut element, mut filter) = (0, 0);
        for (i, size) in self.sizes.iter().enumerate() {
            let (weight, elements) = (&args[1 + 2 * i], size.count * size.width * features);
            if let (Some(all), true) = (&weight_grads, weight.track_op()) {
                grads[1 + 2 * i] = Some(all.narrow(0, element, elements)?.reshape(weight.shape())?);
            }
            if args[2 + 2 * i].track_op() {
                grads[2 + 2 * i] = Some(bias_grads.narrow(0, filter, size.count)?);
            }
            (element, filter) = (element + elements, filter + size.count);
        }
        Ok(grads)
    }
}
