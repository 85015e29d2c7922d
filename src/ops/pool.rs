//! Pooling over windows of each channel.

use super::host::{self, Real, with_real};
use super::{parallel, reference};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, bail};
use std::ops::Range;
use std::sync::OnceLock;

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
    let track = xs.track_op();
    xs.contiguous()?.apply_op1(Pool { kind, grid, track, first: OnceLock::new() })
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
    /// Whether the gradient will be asked for.
    track: bool,
    /// Of each maximum, where it was found in its channel.
    first: OnceLock<Vec<u32>>,
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
                Kind::Max => {
                    let (ys, first) = max_forward(xs, batch * channels, &self.grid);
                    if self.track {
                        self.first.get_or_init(|| first);
                    }
                    ys
                }
                Kind::Average => {
                    let kernel = self.grid.window.kernel;
                    let scale = T::ONE / T::from_f64((kernel.0 * kernel.1) as f64);
                    sum_forward(xs, batch * channels, &self.grid, |x| x, |sum| sum * scale)
                }
                Kind::L2 => sum_forward(xs, batch * channels, &self.grid, |x| x * x, Real::sqrt),
            };
            Ok(host::output(ys, shape))
        })
    }

    fn bwd(&self, xs: &Tensor, ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let (grid, kernel) = (&self.grid, self.grid.window.kernel);
        with_real!(self.name(), xs.dtype(), T => host::read::<T, _>(&grad, |grad| {
            let xs_grad = match self.kind {
                Kind::Max => match self.first.get() {
                    Some(first) => scatter(xs.elem_count(), grid, |channel, xs_grad: &mut [T]| {
                        let outputs = channel * grid.output_size()..(channel + 1) * grid.output_size();
                        for (&g, &i) in grad[outputs.clone()].iter().zip(&first[outputs]) {
                            xs_grad[i as usize] += g;
                        }
                    }),
                    None => return Ok(None),
                },
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

/// The maximum of each window and where in its channel it was first found.
fn max_forward<T: Real>(xs: &[T], channels: usize, grid: &Grid) -> (Vec<T>, Vec<u32>) {
    let (inputs, outputs) = (grid.input_size(), grid.output_size());
    let mut ys = vec![T::ZERO; channels * outputs];
    let mut first = vec![0; channels * outputs];
    let shared = parallel::Shared::new(&mut first);
    let chunk = grid.channels_a_chunk();
    parallel::for_each_piece(&mut ys, chunk * outputs, |i, ys| {
        // SAFETY: as many elements from the same place as `ys`, whose pieces do not overlap.
        let first = unsafe { shared.slice(i * chunk * outputs..i * chunk * outputs + ys.len()) };
        let channels = ys.chunks_exact_mut(outputs).zip(first.chunks_exact_mut(outputs));
        for ((ys, first), xs) in channels.zip(xs[i * chunk * inputs..].chunks_exact(inputs)) {
            for y in 0..grid.outputs.0 {
                for x in 0..grid.outputs.1 {
                    let (rows, columns) = grid.window_at(y, x);
                    let mut at = rows.start * grid.inputs.1 + columns.start;
                    let mut max = xs[at];
                    for row in rows {
                        for column in columns.clone() {
                            let i = row * grid.inputs.1 + column;
                            // A NaN is its own greatest: it is found and stays, as in PyTorch.
                            if xs[i] > max || xs[i].is_nan() {
                                (max, at) = (xs[i], i);
                            }
                        }
                    }
                    ys[y * grid.outputs.1 + x] = max;
                    first[y * grid.outputs.1 + x] = at as u32;
                }
            }
        }
    });
    (ys, first)
}

/// `finish` of the sum of `each` over each window.
fn sum_forward<T: Real>(
    xs: &[T],
    channels: usize,
    grid: &Grid,
    each: impl Fn(T) -> T + Sync,
    finish: impl Fn(T) -> T + Sync,
) -> Vec<T> {
    let (inputs, outputs) = (grid.input_size(), grid.output_size());
    let mut ys = vec![T::ZERO; channels * outputs];
    let chunk = grid.channels_a_chunk();
    parallel::for_each_piece(&mut ys, chunk * outputs, |i, ys| {
        let xs = xs[i * chunk * inputs..].chunks_exact(inputs);
        for (ys, xs) in ys.chunks_exact_mut(outputs).zip(xs) {
            grid.for_each_pair(|output, input| ys[output] += each(xs[input]));
            ys.iter_mut().for_each(|y| *y = finish(*y));
        }
    });
    ys
}

/// Calls `add(channel, gradient)` on the gradient, zero at first, of each input channel.
fn scatter<T: Real>(elements: usize, grid: &Grid, add: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
    let mut xs_grad = vec![T::ZERO; elements];
    let (inputs, chunk) = (grid.input_size(), grid.channels_a_chunk());
    parallel::for_each_piece(&mut xs_grad, chunk * inputs, |i, xs_grad| {
        for (channel, xs_grad) in xs_grad.chunks_exact_mut(inputs).enumerate() {
            add(i * chunk + channel, xs_grad);
        }
    });
    xs_grad
}
