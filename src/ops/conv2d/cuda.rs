//! Two-dimensional convolution on a GPU: direct kernels for common shapes, products for all others.

use crate::kernels::cpu::conv2d::Conv2d;
use crate::kernels::cuda::conv2d_tiles::{self, Pass, Tiles};
use crate::kernels::cuda::{self, Arg, Buffer, Grid, Matrix, Pointer, Product, Real};
use crate::ops::gpu::{Gpu, Stored};
use candle_core::{Result, Shape, Storage, Tensor};

/// Target number of blocks of the weight gradient: two per multiprocessor of a large GPU.
///
/// It is the product of the parts that the gradient is summed in and the blocks of a part.
const BLOCKS: usize = 264;

/// The output for `args`: the input, the weight and, if there is one, the bias.
pub(super) fn forward<T: Real + Stored>(
    conv: &Conv2d,
    gpu: &Gpu,
    args: &[Tensor],
) -> Result<(Storage, Shape)> {
    let Conv2d { batch, groups, outputs, output, .. } = *conv;
    let shape = (batch, groups * outputs, output.0, output.1);
    let ys = gpu.alloc::<T>(batch * groups * outputs * output.0 * output.1)?;
    let (xs, weight) = (gpu.pointer::<T>(&args[0])?, gpu.pointer::<T>(&args[1])?);
    let bias = args.get(2).map(|bias| gpu.pointer::<T>(bias)).transpose()?;
    match conv2d_tiles::of(conv, Pass::Forward, size_of::<T>()) {
        Some(tiles) => {
            let args =
                [xs.into(), weight.into(), bias.unwrap_or(Pointer::null()).into(), ys.pointer().into()];
            // SAFETY: these are the kernel's parameters, and the tiles are made for the shapes.
            unsafe {
                gpu.launch(
                    cuda::CONV2D.kernel::<T>("conv2d").with(&tiles.constants),
                    grid(&tiles, batch),
                    &args,
                )?
            };
        }
        None => Unfolded::new(conv).forward(gpu, xs, weight, bias, &ys)?,
    }
    Ok(gpu.output(ys, shape))
}

/// The gradients of `args` that are needed, from the gradient `grad` of the output.
pub(super) fn backward<T: Real + Stored>(
    conv: &Conv2d,
    gpu: &Gpu,
    args: &[Tensor],
    grad: &Tensor,
) -> Result<Vec<Option<Tensor>>> {
    let (xs, weight, grad) =
        (gpu.pointer::<T>(&args[0])?, gpu.pointer::<T>(&args[1])?, gpu.pointer::<T>(grad)?);
    let mut grads = vec![None; args.len()];
    if args[0].track_op() {
        let buffer = input_gradient(conv, gpu, grad, weight, args[0].elem_count())?;
        grads[0] = Some(gpu.tensor(buffer, args[0].shape()));
    }
    let bias = args.get(2);
    if args[1].track_op() || bias.is_some_and(Tensor::track_op) {
        let (of_weight, of_bias) = weight_gradients(conv, gpu, xs, grad, bias.is_some())?;
        grads[1] = args[1].track_op().then(|| gpu.tensor(of_weight, args[1].shape()));
        if let Some(bias) = bias.filter(|bias| bias.track_op()) {
            grads[2] = Some(gpu.tensor(of_bias, bias.shape()));
        }
    }
    Ok(grads)
}

fn grid(tiles: &Tiles, batch: usize) -> Grid {
    Grid { blocks: [batch * tiles.blocks, 1, 1], threads: [tiles.threads, 1, 1], shared: tiles.shared }
}

fn input_gradient<T: Real + Stored>(
    conv: &Conv2d,
    gpu: &Gpu,
    grad: Pointer<T>,
    weight: Pointer<T>,
    len: usize,
) -> Result<Buffer<T>> {
    let Some(tiles) = conv2d_tiles::of(conv, Pass::InputGradient, size_of::<T>()) else {
        return Unfolded::new(conv).input_gradient(gpu, grad, weight, len);
    };
    let dx = gpu.alloc::<T>(len)?;
    let args = [grad.into(), weight.into(), Pointer::<T>::null().into(), dx.pointer().into()];
    // SAFETY: as in `forward`.
    unsafe {
        gpu.launch(
            cuda::CONV2D.kernel::<T>("conv2d").with(&tiles.constants),
            grid(&tiles, conv.batch),
            &args,
        )?
    };
    Ok(dx)
}

/// The gradients of the weight and the bias; the second holds no values if there is no bias.
fn weight_gradients<T: Real + Stored>(
    conv: &Conv2d,
    gpu: &Gpu,
    xs: Pointer<T>,
    grad: Pointer<T>,
    has_bias: bool,
) -> Result<(Buffer<T>, Buffer<T>)> {
    let Some(tiles) = conv2d_tiles::of(conv, Pass::WeightGradient, size_of::<T>()) else {
        let unfolded = Unfolded::new(conv);
        let of_weight = unfolded.weight_gradient(gpu, xs, grad)?;
        let of_bias = if has_bias { unfolded.bias_gradient(gpu, grad)? } else { gpu.alloc(0)? };
        return Ok((of_weight, of_bias));
    };
    let all = conv.batch * tiles.pieces;
    let pieces = (all * tiles.blocks).div_ceil(BLOCKS).max(1);
    let parts = all.div_ceil(pieces);
    let (weights, biases) = (
        conv.outputs * conv.channels * conv.kernel.0 * conv.kernel.1,
        if has_bias { conv.outputs } else { 0 },
    );
    let sums = gpu.alloc::<T>(parts * (weights + biases))?;
    let kernel = cuda::CONV2D_FILTER.kernel::<T>("conv2d_filter").with(&tiles.constants);
    let grid =
        Grid { blocks: [tiles.blocks, parts, 1], threads: [tiles.threads, 1, 1], shared: tiles.shared };
    let numbers = [conv.batch, pieces, usize::from(has_bias)].map(|number| Arg::from(number as i32));
    let args = [&[xs.into(), grad.into(), sums.pointer().into()], &numbers[..]].concat();
    // SAFETY: these are the kernel's parameters, the tiles are made for the shapes, and each part has its row of `sums`.
    unsafe { gpu.launch(kernel, grid, &args)? };
    sum_rows(gpu, &sums, parts, weights, biases)
}

/// Sums the columns of a matrix of `rows` rows: the `first` ones, and `second` more.
fn sum_rows<T: Real + Stored>(
    gpu: &Gpu,
    matrix: &Buffer<T>,
    rows: usize,
    first: usize,
    second: usize,
) -> Result<(Buffer<T>, Buffer<T>)> {
    let (to_first, to_second) = (gpu.alloc::<T>(first)?, gpu.alloc::<T>(second)?);
    let pointers = [matrix.pointer().into(), to_first.pointer().into(), to_second.pointer().into()];
    let sizes = [rows, first, second].map(|size| (size as i32).into());
    let grid = Grid { blocks: [(first + second).div_ceil(32), 1, 1], threads: [32, 16, 1], shared: 0 };
    // SAFETY: these are the kernel's parameters; the matrix has `rows` rows of `first + second` elements.
    unsafe { gpu.launch(cuda::SUM_ROWS.kernel::<T>("sum_rows"), grid, &[&pointers[..], &sizes].concat())? };
    Ok((to_first, to_second))
}

/// A convolution as products with unfolded images, each a matrix of taps by positions.
struct Unfolded<'a> {
    conv: &'a Conv2d,
    /// Kernel, stride and so on as arguments of `unfold` and `fold`.
    sizes: Vec<Arg>,
    /// Rows of the unfolded images of a group, and their columns.
    taps: usize,
    positions: usize,
    /// Whether images unfold to themselves.
    is_identity: bool,
}

impl<'a> Unfolded<'a> {
    fn new(conv: &'a Conv2d) -> Self {
        let Conv2d { channels, kernel, stride, padding, dilation, input, output, .. } = *conv;
        let pairs = [kernel, stride, padding, dilation, input, output];
        let sizes = pairs.into_iter().flat_map(|(y, x)| [y, x]).map(|size| (size as i32).into());
        Self {
            conv,
            sizes: sizes.collect(),
            taps: channels * kernel.0 * kernel.1,
            positions: output.0 * output.1,
            is_identity: (kernel, stride, padding) == ((1, 1), (1, 1), (0, 0)),
        }
    }

    /// Launches a kernel with a thread for each of the `count` elements of the second array.
    fn rearrange<T: Real>(
        gpu: &Gpu,
        name: &'static str,
        [from, to]: [Pointer<T>; 2],
        count: usize,
        sizes: &[Arg],
    ) -> Result<()> {
        let args = [&[from.into(), to.into(), (count as i64).into()], sizes].concat();
        // SAFETY: these are the kernel's parameters.
        unsafe { gpu.launch(cuda::UNFOLD.kernel::<T>(name), Grid::elements(count, 1), &args) }
    }

    /// Output channels and positions as arguments.
    fn output_sizes(&self) -> [Arg; 2] {
        [self.conv.groups * self.conv.outputs, self.positions].map(|size| (size as i32).into())
    }

    /// Elements of all unfolded images.
    fn unfolded_len(&self) -> usize {
        self.conv.batch * self.conv.groups * self.taps * self.positions
    }

    /// The unfolded images. The buffer that holds them must outlive the launches that read them.
    fn unfold<T: Real + Stored>(&self, gpu: &Gpu, xs: Pointer<T>) -> Result<(Pointer<T>, Option<Buffer<T>>)> {
        if self.is_identity {
            return Ok((xs, None));
        }
        let columns = gpu.alloc::<T>(self.unfolded_len())?;
        Self::rearrange(gpu, "unfold", [xs, columns.pointer()], self.unfolded_len(), &self.sizes)?;
        Ok((columns.pointer(), Some(columns)))
    }

    /// The matrices of one group in a tensor `(batch, groups, rows, columns)`.
    fn of_group<T>(&self, at: Pointer<T>, group: usize, rows: usize, columns: usize) -> Matrix<T> {
        Matrix {
            at: at.offset(group * rows * columns),
            stride: columns,
            batch_stride: self.conv.groups * rows * columns,
        }
    }

    /// The weight of one group, the same for all examples.
    fn weight<T>(&self, at: Pointer<T>, group: usize) -> Matrix<T> {
        Matrix::new(at.offset(group * self.conv.outputs * self.taps), self.taps)
    }

    fn forward<T: Real + Stored>(
        &self,
        gpu: &Gpu,
        xs: Pointer<T>,
        weight: Pointer<T>,
        bias: Option<Pointer<T>>,
        ys: &Buffer<T>,
    ) -> Result<()> {
        let Conv2d { batch, groups, outputs, .. } = *self.conv;
        if let Some(bias) = bias {
            let count = batch * groups * outputs * self.positions;
            Self::rearrange(gpu, "spread_bias", [bias, ys.pointer()], count, &self.output_sizes())?;
        }
        let (columns, _held) = self.unfold(gpu, xs)?;
        for group in 0..groups {
            let product = Product::new(
                [outputs, self.positions, self.taps],
                self.weight(weight, group),
                self.of_group(columns, group, self.taps, self.positions),
                self.of_group(ys.pointer(), group, outputs, self.positions),
            );
            let beta = if bias.is_some() { T::ONE } else { T::ZERO };
            // SAFETY: the matrices of a group are parts of their tensors.
            unsafe { gpu.product(Product { batch, beta, ..product })? };
        }
        Ok(())
    }

    fn input_gradient<T: Real + Stored>(
        &self,
        gpu: &Gpu,
        grad: Pointer<T>,
        weight: Pointer<T>,
        len: usize,
    ) -> Result<Buffer<T>> {
        let Conv2d { batch, groups, outputs, .. } = *self.conv;
        let columns = gpu.alloc::<T>(self.unfolded_len())?;
        for group in 0..groups {
            let product = Product::new(
                [self.taps, self.positions, outputs],
                self.weight(weight, group),
                self.of_group(grad, group, outputs, self.positions),
                self.of_group(columns.pointer(), group, self.taps, self.positions),
            );
            // SAFETY: as in `forward`.
            unsafe { gpu.product(Product { batch, a_transposed: true, ..product })? };
        }
        if self.is_identity {
            return Ok(columns);
        }
        let dx = gpu.alloc::<T>(len)?;
        Self::rearrange(gpu, "fold", [columns.pointer(), dx.pointer()], len, &self.sizes)?;
        Ok(dx)
    }

    fn weight_gradient<T: Real + Stored>(
        &self,
        gpu: &Gpu,
        xs: Pointer<T>,
        grad: Pointer<T>,
    ) -> Result<Buffer<T>> {
        let Conv2d { batch, groups, outputs, .. } = *self.conv;
        let (columns, _held) = self.unfold(gpu, xs)?;
        // The gradient of each example.
        let grads = gpu.alloc::<T>(batch * groups * outputs * self.taps)?;
        for group in 0..groups {
            let product = Product::new(
                [outputs, self.taps, self.positions],
                self.of_group(grad, group, outputs, self.positions),
                self.of_group(columns, group, self.taps, self.positions),
                self.of_group(grads.pointer(), group, outputs, self.taps),
            );
            // SAFETY: as in `forward`.
            unsafe { gpu.product(Product { batch, b_transposed: true, ..product })? };
        }
        Ok(sum_rows(gpu, &grads, batch, groups * outputs * self.taps, 0)?.0)
    }

    fn bias_gradient<T: Real + Stored>(&self, gpu: &Gpu, grad: Pointer<T>) -> Result<Buffer<T>> {
        let outputs = self.conv.groups * self.conv.outputs;
        let db = gpu.alloc::<T>(outputs)?;
        let kernel = cuda::UNFOLD.kernel::<T>("bias_gradient");
        let grid = Grid { blocks: [outputs, 1, 1], threads: [256, 1, 1], shared: 0 };
        let args = [grad.into(), db.pointer().into(), (self.conv.batch as i32).into()];
        let args = [&args[..], &self.output_sizes()].concat();
        // SAFETY: these are the kernel's parameters.
        unsafe { gpu.launch(kernel, grid, &args)? };
        Ok(db)
    }
}
