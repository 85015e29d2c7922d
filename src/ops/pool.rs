//! Pooling over windows of each channel.

use super::host::{self, Real, with_real};
use super::simd::vectorised;
use super::{parallel, reference};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, bail};
use std::ops::Range;

/// The windows of a pooling: (height, width) of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub kernel: (usize, usize),
    pub stride: (usize, usize),
    /// On either side; at most half the kernel.
    pub padding: (usize, usize),
}

impl Window {
    /// `size` by `size`, side by side: no overlap, no padding.
    pub fn square(size: usize) -> Self {
        Self { kernel: (size, size), stride: (size, size), padding: (0, 0) }
    }
}

/// The maximum of each window of `xs` (batch, channels, height, width); the padding counts as minus infinity.
///
/// The gradient goes to the first of equal maxima, in rows from the top, as in PyTorch. An error if the kernel does
/// not fit the padded input or the padding is more than half the kernel.
pub fn max_pool2d(xs: &Tensor, window: Window) -> Result<Tensor> {
    apply(xs, window, Kind::Max, reference::max_pool2d)
}

/// The mean of each window of `xs` (batch, channels, height, width); the padding counts as zeros.
///
/// Errors as for [`max_pool2d`].
pub fn avg_pool2d(xs: &Tensor, window: Window) -> Result<Tensor> {
    apply(xs, window, Kind::Average, reference::avg_pool2d)
}

/// The square root of the sum of the squares in each window of `xs` (batch, channels, height, width): Nielsen's L2
/// pooling, chapter 6. Where the result is 0 its gradient is taken as 0.
///
/// Errors as for [`max_pool2d`].
pub fn l2_pool2d(xs: &Tensor, window: Window) -> Result<Tensor> {
    apply(xs, window, Kind::L2, reference::l2_pool2d)
}

fn apply(
    xs: &Tensor,
    window: Window,
    kind: Kind,
    reference: impl Fn(&Tensor, Window) -> Result<Tensor>,
) -> Result<Tensor> {
    let name = kind.name();
    let Window { kernel, stride, padding } = window;
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
    xs.contiguous()?.apply_op1(Pool { kind, grid })
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
    window: Window,
    inputs: (usize, usize),
    outputs: (usize, usize),
}

impl Grid {
    /// The rows and columns of the input that the window at `y`, `x` covers.
    #[inline(always)]
    fn window_at(&self, y: usize, x: usize) -> (Range<usize>, Range<usize>) {
        let Window { kernel, stride, padding } = self.window;
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
        self.window == Window::square(2)
    }

    /// The maximum of each window of one channel.
    #[inline(always)]
    fn max<T: Real>(&self, xs: &[T], ys: &mut [T]) {
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

    /// Adds the gradient of each maximum to that of the first element that has it.
    #[inline(always)]
    fn max_grad<T: Real>(&self, xs: &[T], grad: &[T], xs_grad: &mut [T]) {
        let (width, out_width) = (self.inputs.1, self.outputs.1);
        if self.is_square_2() {
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
        for y in 0..self.outputs.0 {
            for x in 0..out_width {
                xs_grad[self.first_max(xs, y, x)] += grad[y * out_width + x];
            }
        }
    }

    /// Where the first of the greatest elements of a window is.
    #[inline(always)]
    fn first_max<T: Real>(&self, xs: &[T], y: usize, x: usize) -> usize {
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

    fn input_size(&self) -> usize {
        self.inputs.0 * self.inputs.1
    }

    fn output_size(&self) -> usize {
        self.outputs.0 * self.outputs.1
    }

    /// How many channels make a chunk worth handing to a thread.
    fn channels_a_chunk(&self) -> usize {
        let kernel = self.window.kernel;
        (1usize << 14).div_ceil(self.input_size().max(self.output_size() * kernel.0 * kernel.1))
    }
}

impl CustomOp1 for Pool {
    fn name(&self) -> &'static str {
        self.kind.name()
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, _, _) = layout.shape().dims4()?;
        let shape = (batch, channels, self.grid.outputs.0, self.grid.outputs.1);
        with_real!(self.name(), host::dtype(xs), T => {
            let xs = host::slice::<T>(xs, layout)?;
            let ys = match self.kind {
                Kind::Max => forward(xs, batch * channels, &self.grid, |xs, ys| self.grid.max(xs, ys)),
                Kind::Average => {
                    let kernel = self.grid.window.kernel;
                    let scale = T::ONE / T::from_f64((kernel.0 * kernel.1) as f64);
                    forward(xs, batch * channels, &self.grid, |xs, ys| {
                        self.grid.for_each_pair(|output, input| ys[output] += xs[input]);
                        ys.iter_mut().for_each(|y| *y *= scale);
                    })
                }
                Kind::L2 => forward(xs, batch * channels, &self.grid, |xs, ys| {
                    self.grid.for_each_pair(|output, input| ys[output] += xs[input] * xs[input]);
                    ys.iter_mut().for_each(|y| *y = Real::sqrt(*y));
                }),
            };
            Ok(host::output(ys, shape))
        })
    }

    fn bwd(&self, xs: &Tensor, ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let (grid, kernel) = (&self.grid, self.grid.window.kernel);
        with_real!(self.name(), xs.dtype(), T => host::read::<T, _>(&grad, |grad| {
            let xs_grad = match self.kind {
                Kind::Max => host::read::<T, _>(xs, |xs| {
                    Ok(scatter(xs.len(), grid, |channel, xs_grad: &mut [T]| {
                        let xs = &xs[channel * grid.input_size()..][..grid.input_size()];
                        grid.max_grad(xs, &grad[channel * grid.output_size()..][..grid.output_size()], xs_grad);
                    }))
                })?,
                Kind::Average => {
                    let scale = T::ONE / T::from_f64((kernel.0 * kernel.1) as f64);
                    scatter(xs.elem_count(), grid, |channel, xs_grad: &mut [T]| {
                        let grad = &grad[channel * grid.output_size()..];
                        grid.for_each_pair(|output, input| xs_grad[input] += grad[output] * scale);
                    })
                }
                Kind::L2 => host::read::<T, _>(xs, |xs| host::read::<T, _>(ys, |ys| {
                    Ok(scatter(xs.len(), grid, |channel, xs_grad: &mut [T]| {
                        let (grad, ys) = (&grad[channel * grid.output_size()..], &ys[channel * grid.output_size()..]);
                        let xs = &xs[channel * grid.input_size()..];
                        grid.for_each_pair(|output, input| {
                            if ys[output] > T::ZERO {
                                xs_grad[input] += grad[output] * xs[input] / ys[output];
                            }
                        });
                    }))
                }))?,
            };
            Ok(Some(Tensor::from_vec(xs_grad, xs.shape(), xs.device())?))
        }))
    }
}

/// Whether `x` takes the place of a maximum found before it. A NaN does, and keeps it, as in PyTorch.
#[inline(always)]
fn exceeds<T: Real>(x: T, max: T) -> bool {
    (x > max) | (x.is_nan() & !max.is_nan())
}

#[inline(always)]
fn greater<T: Real>(a: T, b: T) -> T {
    if exceeds(b, a) { b } else { a }
}

/// Calls `pool(input, output)` on each channel.
fn forward<T: Real>(xs: &[T], channels: usize, grid: &Grid, pool: impl Fn(&[T], &mut [T]) + Sync) -> Vec<T> {
    let (inputs, outputs) = (grid.input_size(), grid.output_size());
    let mut ys = vec![T::ZERO; channels * outputs];
    let chunk = grid.channels_a_chunk();
    parallel::for_each_piece(&mut ys, chunk * outputs, |i, ys| {
        let xs = xs[i * chunk * inputs..].chunks_exact(inputs);
        vectorised(|| ys.chunks_exact_mut(outputs).zip(xs).for_each(|(ys, xs)| pool(xs, ys)));
    });
    ys
}

/// Calls `add(channel, gradient)` on the gradient, zero at first, of each input channel.
fn scatter<T: Real>(elements: usize, grid: &Grid, add: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
    let mut xs_grad = vec![T::ZERO; elements];
    let (inputs, chunk) = (grid.input_size(), grid.channels_a_chunk());
    parallel::for_each_piece(&mut xs_grad, chunk * inputs, |i, xs_grad| {
        let channels = (i * chunk..).zip(xs_grad.chunks_exact_mut(inputs));
        vectorised(|| channels.for_each(|(channel, xs_grad)| add(channel, xs_grad)));
    });
    xs_grad
}
