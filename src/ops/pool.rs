//! Pooling over windows of each channel.

use super::autograd::{self, Operation};
use super::host::{self, Element, with_real};
use super::reference;
use crate::kernels::cpu::Real;
use crate::kernels::cpu::parallel;
use crate::kernels::cpu::simd::dispatch;
use candle_core::{CpuStorage, Result, Shape, Tensor, bail};
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// The windows of a pooling: (height, width) of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool2dConfig {
    pub kernel: (usize, usize),
    pub stride: (usize, usize),
    /// On either side; at most half the kernel.
    pub padding: (usize, usize),
}

impl Pool2dConfig {
    /// `size` by `size`, side by side: no overlap, no padding.
    pub fn square(size: usize) -> Self {
        Self { kernel: (size, size), stride: (size, size), padding: (0, 0) }
    }
}

/// The maximum of each window of `xs` (batch, channels, height, width); the padding counts as minus infinity.
///
/// The gradient goes to the first of equal maxima, in rows from the top, as in PyTorch. An error if the kernel does
/// not fit the padded input or the padding is more than half the kernel.
pub fn max_pool2d(xs: &Tensor, window: Pool2dConfig) -> Result<Tensor> {
    apply(xs, window, Kind::Max, reference::max_pool2d)
}

/// The mean of each window of `xs` (batch, channels, height, width); the padding counts as zeros.
///
/// Errors as for [`max_pool2d`].
pub fn avg_pool2d(xs: &Tensor, window: Pool2dConfig) -> Result<Tensor> {
    apply(xs, window, Kind::Average, reference::avg_pool2d)
}

/// The square root of the sum of the squares in each window of `xs` (batch, channels, height, width): Nielsen's L2
/// pooling, chapter 6. Where the result is 0 its gradient is taken as 0.
///
/// Errors as for [`max_pool2d`].
pub fn l2_pool2d(xs: &Tensor, window: Pool2dConfig) -> Result<Tensor> {
    apply(xs, window, Kind::L2, reference::l2_pool2d)
}

fn apply(
    xs: &Tensor,
    window: Pool2dConfig,
    kind: Kind,
    reference: impl Fn(&Tensor, Pool2dConfig) -> Result<Tensor>,
) -> Result<Tensor> {
    let name = kind.name();
    let Pool2dConfig { kernel, stride, padding } = window;
    let (height, width) = match *xs.dims() {
        [_, _, height, width] if height * width > 0 => (height, width),
        ref dims => {
            bail!("{name}: found an input of shape {dims:?}, expected (batch, channels, height, width)")
        }
    };
    if kernel.0 == 0 || kernel.1 == 0 || stride.0 == 0 || stride.1 == 0 {
        bail!("{name}: found kernel {kernel:?} and stride {stride:?}, expected 1 or more each way");
    }
    if padding.0 > kernel.0 / 2 || padding.1 > kernel.1 / 2 {
        bail!("{name}: found padding {padding:?}, expected at most half the kernel {kernel:?}");
    }
    let padded = (height + 2 * padding.0, width + 2 * padding.1);
    if kernel.0 > padded.0 || kernel.1 > padded.1 {
        bail!("{name}: found kernel {kernel:?}, expected one no larger than the padded input {padded:?}");
    }
    if !xs.device().is_cpu() {
        return reference(xs, window);
    }
    let outputs = ((padded.0 - kernel.0) / stride.0 + 1, (padded.1 - kernel.1) / stride.1 + 1);
    let grid = Grid { window, inputs: (height, width), outputs };
    autograd::apply(Pool { kind, grid }, vec![xs.contiguous()?])
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Max,
    Average,
    L2,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Max => "max_pool2d",
            Self::Average => "avg_pool2d",
            Self::L2 => "l2_pool2d",
        }
    }
}

struct Pool {
    kind: Kind,
    grid: Grid,
}

/// Where the windows lie in a channel of (height, width) `inputs`, and how many there are.
#[derive(Clone, Copy)]
struct Grid {
    window: Pool2dConfig,
    inputs: (usize, usize),
    outputs: (usize, usize),
}

impl Grid {
    /// The rows and columns of the input that the window at `y`, `x` covers.
    #[inline(always)]
    fn window_at(&self, y: usize, x: usize) -> (Range<usize>, Range<usize>) {
        let Pool2dConfig { kernel, stride, padding } = self.window;
        let range = |at: usize, stride: usize, kernel: usize, padding: usize, size: usize| {
            (at * stride).saturating_sub(padding)..(at * stride + kernel - padding).min(size)
        };
        (
            range(y, stride.0, kernel.0, padding.0, self.inputs.0),
            range(x, stride.1, kernel.1, padding.1, self.inputs.1),
        )
    }

    /// Calls `f(output, input)` on the index of each output and of each input that belongs to it.
    #[inline(always)]
    fn for_each_pair(&self, mut f: impl FnMut(usize, usize)) {
        for y in 0..self.outputs.0 {
            for x in 0..self.outputs.1 {
                let (rows, columns) = self.window_at(y, x);
                for row in rows {
                    for column in columns.clone() {
                        f(y * self.outputs.1 + x, row * self.inputs.1 + column);
                    }
                }
            }
        }
    }

    /// Whether the windows are 2 by 2, side by side.
    fn is_square_2(&self) -> bool {
        self.window == Pool2dConfig::square(2)
    }

    /// The maximum of each window of one channel.
    #[inline(always)]
    fn max<T: Element>(&self, xs: &[T], ys: &mut [T]) {
        let (width, out_width) = (self.inputs.1, self.outputs.1);
        if self.is_square_2() {
            for (rows, ys) in xs.chunks_exact(2 * width).zip(ys.chunks_exact_mut(out_width)) {
                let (top, bottom) = rows.split_at(width);
                let windows = top.as_chunks().0.iter().zip(bottom.as_chunks().0);
                for ((&[a, b], &[c, d]), y) in windows.zip(ys) {
                    *y = greater(greater(a, b), greater(c, d));
                }
            }
            return;
        }
        for y in 0..self.outputs.0 {
            for x in 0..out_width {
                ys[y * out_width + x] = xs[self.first_max(xs, y, x)];
            }
        }
    }

    /// The gradient of each maximum, given to the first element that has it.
    #[inline(always)]
    fn max_grad<T: Element>(&self, xs: &[T], grad: &[T], xs_grad: &mut [T]) {
        let (width, out_width) = (self.inputs.1, self.outputs.1);
        if self.is_square_2() {
            // an odd last row or column belongs to no window
            if self.inputs.0 % 2 + width % 2 > 0 {
                xs_grad.fill(T::ZERO);
            }
            let rows = xs.chunks_exact(2 * width).zip(xs_grad.chunks_exact_mut(2 * width));
            for ((rows, grad_rows), grad) in rows.zip(grad.chunks_exact(out_width)) {
                let ((top, bottom), (grad_top, grad_bottom)) =
                    (rows.split_at(width), grad_rows.split_at_mut(width));
                let windows = top.as_chunks().0.iter().zip(bottom.as_chunks().0);
                let grads = grad_top.as_chunks_mut().0.iter_mut().zip(grad_bottom.as_chunks_mut().0);
                for (((&[a, b], &[c, d]), &g), (grad_top, grad_bottom)) in windows.zip(grad).zip(grads) {
                    let (right, lower_right) = (exceeds(b, a), exceeds(d, c));
                    let lower = exceeds(if lower_right { d } else { c }, if right { b } else { a });
                    let only = |here: bool| if here { g } else { T::ZERO };
                    *grad_top = [only(!lower & !right), only(!lower & right)];
                    *grad_bottom = [only(lower & !lower_right), only(lower & lower_right)];
                }
            }
            return;
        }
        xs_grad.fill(T::ZERO);
        for y in 0..self.outputs.0 {
            for x in 0..out_width {
                xs_grad[self.first_max(xs, y, x)] += grad[y * out_width + x];
            }
        }
    }

    /// Where the first of the greatest elements of a window is.
    #[inline(always)]
    fn first_max<T: Element>(&self, xs: &[T], y: usize, x: usize) -> usize {
        let (rows, columns) = self.window_at(y, x);
        let mut first = rows.start * self.inputs.1 + columns.start;
        for row in rows {
            for i in row * self.inputs.1 + columns.start..row * self.inputs.1 + columns.end {
                if exceeds(xs[i], xs[first]) {
                    first = i;
                }
            }
        }
        first
    }

    fn kernel_size(&self) -> usize {
        self.window.kernel.0 * self.window.kernel.1
    }

    fn input_size(&self) -> usize {
        self.inputs.0 * self.inputs.1
    }

    fn output_size(&self) -> usize {
        self.outputs.0 * self.outputs.1
    }

    /// How many channels make a chunk worth handing to a thread.
    fn channels_a_chunk(&self) -> usize {
        (1usize << 14).div_ceil(self.input_size().max(self.output_size() * self.kernel_size()))
    }
}

impl Operation for Pool {
    fn name(&self) -> &'static str {
        self.kind.name()
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, _, _) = args[0].dims4()?;
        let (inputs, outputs) = (self.grid.input_size(), self.grid.output_size());
        let shape = (batch, channels, self.grid.outputs.0, self.grid.outputs.1);
        with_real!(self.name(), args[0].dtype(), T => host::read::<T, _>(&args[0], |xs| {
            let chunk = self.grid.channels_a_chunk();
            let work = |i: usize, ys: &mut [T]| {
                dispatch(Forward { pool: self, xs: &xs[i * chunk * inputs..], ys });
            };
            // SAFETY: `Forward` writes each output.
            Ok(host::output(unsafe { parallel::build(shape.0 * shape.1 * outputs, chunk * outputs, work) }, shape))
        }))
    }

    fn backward(&self, args: &[Tensor], ys: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (inputs, outputs) = (self.grid.input_size(), self.grid.output_size());
        let chunk = self.grid.channels_a_chunk();
        let held = host::hold([&args[0], ys, grad]);
        with_real!(self.name(), grad.dtype(), T => {
            let (xs, ys, grad) = (held.get::<T>(0)?, held.get::<T>(1)?, held.get::<T>(2)?);
            let work = |i: usize, xs_grad: &mut [T]| {
                let (xs, from) = (&xs[i * chunk * inputs..], i * chunk * outputs);
                let (ys, grad) = (&ys[from..], &grad[from..]);
                dispatch(Backward { pool: self, xs, ys, grad, xs_grad });
            };
            // SAFETY: `Backward` writes each gradient.
            let xs_grad = unsafe { parallel::build(xs.len(), chunk * inputs, work) };
            Ok(vec![Some(Tensor::from_vec(xs_grad, args[0].shape(), args[0].device())?)])
        })
    }
}

/// The outputs of as many channels as `ys` holds.
struct Forward<'a, T> {
    pool: &'a Pool,
    xs: &'a [T],
    ys: &'a mut [T],
}

impl<T: Element> WithSimd for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Pool { kind, grid } = self.pool;
        let scale = T::ONE / T::of(grid.kernel_size() as f64);
        for (xs, ys) in
            self.xs.chunks_exact(grid.input_size()).zip(self.ys.chunks_exact_mut(grid.output_size()))
        {
            match kind {
                Kind::Max => grid.max(xs, ys),
                Kind::Average => {
                    ys.fill(T::ZERO);
                    grid.for_each_pair(|output, input| ys[output] += xs[input]);
                    ys.iter_mut().for_each(|y| *y *= scale);
                }
                Kind::L2 => {
                    ys.fill(T::ZERO);
                    grid.for_each_pair(|output, input| ys[output] += xs[input] * xs[input]);
                    ys.iter_mut().for_each(|y| *y = Real::sqrt(*y));
                }
            }
        }
    }
}

/// The gradients of as many channels as `xs_grad` holds.
struct Backward<'a, T> {
    pool: &'a Pool,
    xs: &'a [T],
    ys: &'a [T],
    grad: &'a [T],
    xs_grad: &'a mut [T],
}

impl<T: Element> WithSimd for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Pool { kind, grid } = self.pool;
        let scale = T::ONE / T::of(grid.kernel_size() as f64);
        let inputs =
            self.xs.chunks_exact(grid.input_size()).zip(self.xs_grad.chunks_exact_mut(grid.input_size()));
        let outputs =
            self.ys.chunks_exact(grid.output_size()).zip(self.grad.chunks_exact(grid.output_size()));
        for ((xs, xs_grad), (ys, grad)) in inputs.zip(outputs) {
            match kind {
                Kind::Max => grid.max_grad(xs, grad, xs_grad),
                Kind::Average => {
                    xs_grad.fill(T::ZERO);
                    grid.for_each_pair(|output, input| xs_grad[input] += grad[output] * scale);
                }
                Kind::L2 => {
                    xs_grad.fill(T::ZERO);
                    grid.for_each_pair(|output, input| {
                        if ys[output] > T::ZERO {
                            xs_grad[input] += grad[output] * xs[input] / ys[output];
                        }
                    });
                }
            }
        }
    }
}

/// Whether `x` takes the place of a maximum found before it. A NaN does, and keeps it from all numbers.
#[inline(always)]
fn exceeds<T: Element>(x: T, max: T) -> bool {
    (x > max) | x.is_nan()
}

#[inline(always)]
fn greater<T: Element>(a: T, b: T) -> T {
    if exceeds(b, a) { b } else { a }
}
