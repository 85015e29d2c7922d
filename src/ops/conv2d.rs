//! Two-dimensional convolution.

use super::autograd::{self, Operation, gradients};
use super::host::{self, Element, with_real};
use super::linear::check_bias;
use super::reference;
use crate::kernels::cpu::parallel;
use crate::kernels::cpu::planes::{ChannelsLast, OutputLayout, Planes, SlidingProduct};
use crate::kernels::cpu::simd::{self, DotProducts, OuterProducts, vectorised};
use crate::kernels::cpu::winograd::Winograd;
use candle_core::{CpuStorage, Result, Shape, Tensor, bail};

/// How the kernel of a convolution moves over its input: (height, width) of each, and into how many groups the
/// channels are split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dConfig {
    pub stride: (usize, usize),
    /// Zeros on either side.
    pub padding: (usize, usize),
    pub dilation: (usize, usize),
    pub groups: usize,
}

impl Default for Conv2dConfig {
    fn default() -> Self {
        Self { stride: (1, 1), padding: (0, 0), dilation: (1, 1), groups: 1 }
    }
}

/// The cross-correlation of `xs` (batch, in, height, width) with `weight` (out, in / groups, kernel height, kernel
/// width), plus `bias` (out): PyTorch's `conv2d`.
///
/// An error if the channels do not match the weight and the groups, or the kernel does not fit the padded input.
pub fn conv2d(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, geometry: Conv2dConfig) -> Result<Tensor> {
    let conv = check(xs, weight, bias, geometry)?;
    if !xs.device().is_cpu() {
        return reference::conv2d(xs, weight, bias, geometry);
    }
    let args = [Some(xs), Some(weight), bias].into_iter().flatten().map(Tensor::contiguous);
    autograd::apply(conv, args.collect::<Result<_>>()?)
}

/// Checks the shapes and the geometry and returns the sizes.
pub(super) fn check(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: Conv2dConfig,
) -> Result<Conv2d> {
    let Conv2dConfig { stride, padding, dilation, groups } = geometry;
    let (batch, channels, height, width) = match *xs.dims() {
        [batch, channels, height, width] => (batch, channels, height, width),
        ref dims => {
            bail!("conv2d: found an input of shape {dims:?}, expected (batch, channels, height, width)")
        }
    };
    let (outputs, group_channels, kernel) = match *weight.dims() {
        [outputs, group_channels, h, w] => (outputs, group_channels, (h, w)),
        ref dims => {
            bail!("conv2d: found a weight of shape {dims:?}, expected (out, in / groups, height, width)")
        }
    };
    let sizes = [stride.0, stride.1, dilation.0, dilation.1, groups];
    if sizes.contains(&0) || weight.elem_count() * height * width == 0 {
        let (xs, weight) = (xs.dims(), weight.dims());
        bail!(
            "conv2d: found an input of shape {xs:?}, a weight of shape {weight:?} and {geometry:?}, expected 1 or more \
             for all sizes but the batch and the padding"
        );
    }
    if channels != group_channels * groups || outputs % groups != 0 {
        bail!(
            "conv2d: found {channels} input channels and {outputs} output channels in {groups} groups, expected {} \
             and a multiple of {groups} for a weight of shape {:?}",
            group_channels * groups,
            weight.dims()
        );
    }
    check_bias("conv2d", bias, outputs)?;
    let padded = (height + 2 * padding.0, width + 2 * padding.1);
    let reach = (dilation.0 * (kernel.0 - 1) + 1, dilation.1 * (kernel.1 - 1) + 1);
    if reach.0 > padded.0 || reach.1 > padded.1 {
        bail!(
            "conv2d: found a kernel that covers {reach:?}, expected one no larger than the padded input {padded:?}"
        );
    }
    Ok(Conv2d {
        geometry,
        batch,
        channels: group_channels,
        outputs: outputs / groups,
        kernel,
        input: (height, width),
        output: ((padded.0 - reach.0) / stride.0 + 1, (padded.1 - reach.1) / stride.1 + 1),
    })
}

#[derive(Clone, Copy)]
pub(super) struct Conv2d {
    geometry: Conv2dConfig,
    batch: usize,
    /// Of one group.
    channels: usize,
    /// Of one group.
    outputs: usize,
    kernel: (usize, usize),
    /// (height, width)
    input: (usize, usize),
    output: (usize, usize),
}

impl Operation for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let shape = (self.batch, self.geometry.groups * self.outputs, self.output.0, self.output.1);
        let held = host::hold(args);
        with_real!(self.name(), args[0].dtype(), T => {
            let bias = if args.len() > 2 { held.get::<T>(2)? } else { &[] };
            Ok(host::output(self.forward(held.get(0)?, held.get(1)?, bias), shape))
        })
    }

    fn backward(&self, args: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let held = host::hold(args.iter().chain([grad]));
        with_real!(self.name(), grad.dtype(), T => {
            let (xs, weight, grad) = (held.get::<T>(0)?, held.get::<T>(1)?, held.get::<T>(args.len())?);
            gradients(args, |index| match index {
                0 => self.input_grad(grad, weight),
                1 => self.weight_grad(grad, xs),
                _ => self.bias_grad(grad),
            })
        })
    }
}

impl Conv2d {
    /// Elements of one example's input in one group.
    fn input_size(&self) -> usize {
        self.channels * self.input.0 * self.input.1
    }

    /// Positions of the kernel.
    fn positions(&self) -> usize {
        self.output.0 * self.output.1
    }

    /// Weights of one output.
    fn taps(&self) -> usize {
        self.channels * self.kernel.0 * self.kernel.1
    }

    /// How many pairs of example and group make a chunk worth handing to a thread.
    fn pairs_a_chunk(&self) -> usize {
        (1usize << 20).div_ceil(2 * self.outputs * self.taps() * self.positions())
    }

    /// The input of one example and group.
    fn planes(&self) -> Planes {
        let Conv2dConfig { stride, padding, dilation, .. } = self.geometry;
        Planes {
            channels: self.channels,
            stride,
            border: padding,
            rows: self.output.0 + dilation.0 * (self.kernel.0 - 1) / stride.0,
            pitch: self.output.1 + dilation.1 * (self.kernel.1 - 1) / stride.1,
        }
    }

    /// Where in the planes each tap of each channel reads at the kernel's first position.
    fn reads(&self, planes: &Planes) -> impl Iterator<Item = usize> {
        let Self { kernel, geometry: Conv2dConfig { stride, dilation, .. }, .. } = *self;
        let (size, pitch) = (planes.size(), planes.pitch);
        (0..self.taps()).map(move |tap| {
            let (row, column) = (tap / kernel.1 % kernel.0 * dilation.0, tap % kernel.1 * dilation.1);
            let channel = tap / (kernel.0 * kernel.1);
            let phase = (channel * stride.0 + row % stride.0) * stride.1 + column % stride.1;
            phase * size + row / stride.0 * pitch + column / stride.1
        })
    }

    /// This convolution by Winograd's method, if it can be done so and pays.
    fn winograd(&self) -> Option<Winograd> {
        let Self { geometry: Conv2dConfig { stride, padding, dilation, groups }, kernel, .. } = *self;
        let fits = (stride, dilation, groups, kernel.0) == ((1, 1), (1, 1), 1, 3);
        let winograd = Winograd {
            batch: self.batch,
            channels: self.channels,
            outputs: self.outputs,
            columns: kernel.1,
            padding,
            input: self.input,
            output: self.output,
        };
        (fits && padding.0 <= 2 && padding.1 < kernel.1 && winograd.pays()).then_some(winograd)
    }

    fn forward<T: Element>(&self, xs: &[T], weight: &[T], bias: &[T]) -> Vec<T> {
        if let Some(winograd) = self.winograd() {
            return winograd.forward(xs, weight, bias);
        }
        let size = self.outputs * self.positions();
        let planes = self.planes();
        let layout = OutputLayout { first: 0, row: self.output.1, column: 1, plane: self.positions() };
        let sweep = SlidingProduct::new::<T>(
            self.output,
            planes.pitch,
            self.reads(&planes).enumerate().collect(),
            layout,
        );
        let chunk = self.pairs_a_chunk();
        let work = |i: usize, ys: &mut [T]| {
            let mut image = planes.zeros();
            let mut scratch = vec![T::ZERO; sweep.scratch * self.outputs];
            for (pair, ys) in (i * chunk..).zip(ys.chunks_exact_mut(size)) {
                let group = pair % self.geometry.groups;
                planes.fill(
                    &mut image,
                    &xs[pair * self.input_size()..][..self.input_size()],
                    self.channels,
                    self.input,
                );
                let weight = &weight[group * self.outputs * self.taps()..][..self.outputs * self.taps()];
                let start =
                    if bias.is_empty() { bias } else { &bias[group * self.outputs..][..self.outputs] };
                sweep.run(self.outputs, (weight, self.taps()), &image, start, &mut scratch, ys);
            }
        };
        // SAFETY: the sweep writes each result.
        unsafe { parallel::build(self.batch * self.geometry.groups * size, chunk * size, work) }
    }

    fn input_grad<T: Element>(&self, grad: &[T], weight: &[T]) -> Vec<T> {
        if let Some(winograd) = self.winograd() {
            return winograd.input_grad(grad, weight);
        }
        let Conv2dConfig { stride, padding, dilation, groups } = self.geometry;
        let size = self.outputs * self.positions();
        // Tap t reads padded row `y * stride + dilation * t`. Seen from the input: padded row `stride * q + r` is read
        // at `y = q - before` by the taps with `dilation * t = stride * before + r`.
        let reach =
            (dilation.0 * (self.kernel.0 - 1) / stride.0, dilation.1 * (self.kernel.1 - 1) / stride.1);
        let border =
            (reach.0.saturating_sub(padding.0 / stride.0), reach.1.saturating_sub(padding.1 / stride.1));
        let last = ((self.input.0 - 1 + padding.0) / stride.0, (self.input.1 - 1 + padding.1) / stride.1);
        let planes = Planes {
            channels: self.outputs,
            stride: (1, 1),
            border,
            rows: border.0 + (last.0 + 1).max(self.output.0),
            pitch: border.1 + (last.1 + 1).max(self.output.1),
        };
        let mut phases = vec![];
        for (r_h, r_w) in (0..stride.0).flat_map(|r_h| (0..stride.1).map(move |r_w| (r_h, r_w))) {
            // the first row and column of the input in this phase
            let first_h = (r_h + stride.0 - padding.0 % stride.0) % stride.0;
            let first_w = (r_w + stride.1 - padding.1 % stride.1) % stride.1;
            if first_h >= self.input.0 || first_w >= self.input.1 {
                continue;
            }
            let (q_h, q_w) = ((first_h + padding.0) / stride.0, (first_w + padding.1) / stride.1);
            let mut steps = vec![];
            for output in 0..self.outputs {
                for (t_h, t_w) in (0..self.kernel.0).flat_map(|h| (0..self.kernel.1).map(move |w| (h, w))) {
                    let (at_h, at_w) = (dilation.0 * t_h, dilation.1 * t_w);
                    if at_h % stride.0 == r_h && at_w % stride.1 == r_w {
                        let row = border.0 + q_h - at_h / stride.0;
                        let column = border.1 + q_w - at_w / stride.1;
                        steps.push((
                            output * self.taps() + t_h * self.kernel.1 + t_w,
                            output * planes.size() + row * planes.pitch + column,
                        ));
                    }
                }
            }
            let size =
                ((self.input.0 - first_h).div_ceil(stride.0), (self.input.1 - first_w).div_ceil(stride.1));
            let layout = OutputLayout {
                first: first_h * self.input.1 + first_w,
                row: stride.0 * self.input.1,
                column: stride.1,
                plane: self.input.0 * self.input.1,
            };
            phases.push(SlidingProduct::new::<T>(size, planes.pitch, steps, layout));
        }
        let chunk = self.pairs_a_chunk();
        let work = |i: usize, xs_grad: &mut [T]| {
            let mut image = planes.zeros();
            let scratch = phases.iter().map(|sweep| sweep.scratch).max().unwrap_or(0);
            let mut scratch = vec![T::ZERO; scratch * self.channels];
            for (pair, xs_grad) in (i * chunk..).zip(xs_grad.chunks_exact_mut(self.input_size())) {
                let group = pair % groups;
                planes.fill(&mut image, &grad[pair * size..][..size], self.outputs, self.output);
                let weight = &weight[group * self.outputs * self.taps()..][..self.outputs * self.taps()];
                let weight = (weight, self.kernel.0 * self.kernel.1);
                for sweep in &phases {
                    sweep.run(self.channels, weight, &image, &[], &mut scratch, xs_grad);
                }
            }
        };
        // SAFETY: the sweeps, one for each phase of the stride, write each gradient.
        unsafe { parallel::build(self.batch * groups * self.input_size(), chunk * self.input_size(), work) }
    }

    /// The gradient of the weight.
    fn weight_grad<T: Element>(&self, grad: &[T], xs: &[T]) -> Vec<T> {
        if let Some(winograd) = self.winograd() {
            return winograd.weight_grad(grad, xs);
        }
        // Cycles of either way, a vector's product in each: of rows of the kernel by channels, and to lay an image out
        // anew; or of the planes, and to add up the numbers of each result's vector, once an example or a few.
        let lanes = simd::lanes::<T>();
        let rows = self.runs(&self.pixels()).iter().map(|run| run.2.div_ceil(lanes)).sum::<usize>();
        let by_channels = self.positions() * self.outputs * rows + self.input_size();
        let len = (self.output.0 - 1) * self.planes().pitch + self.output.1;
        let by_planes = self.outputs * self.taps() * (len.div_ceil(lanes) + 8);
        match by_channels < by_planes {
            true => self.weight_grad_by_channels(grad, xs),
            false => self.weight_grad_by_planes(grad, xs),
        }
    }

    /// The input of one example and group, as far as it is read.
    fn pixels(&self) -> ChannelsLast {
        let Self { kernel, output, geometry: Conv2dConfig { stride, padding, dilation, .. }, .. } = *self;
        let reach = |output, stride, dilation, kernel| (output - 1) * stride + dilation * (kernel - 1) + 1;
        ChannelsLast {
            channels: self.channels,
            border: padding,
            rows: reach(output.0, stride.0, dilation.0, kernel.0),
            columns: reach(output.1, stride.1, dilation.1, kernel.1),
        }
    }

    /// Consecutive numbers of the pixels that the kernel sees at its first position, and what weights they meet if those
    /// have their channels last: see `OuterProducts`.
    fn runs(&self, pixels: &ChannelsLast) -> Vec<(usize, usize, usize)> {
        let Self { channels, kernel, geometry: Conv2dConfig { dilation, .. }, .. } = *self;
        let beside = if dilation.1 == 1 { kernel.1 } else { 1 };
        let taps = (0..kernel.0 * kernel.1).step_by(beside);
        let run = |tap: usize| {
            let place = tap / kernel.1 * dilation.0 * pixels.columns + tap % kernel.1 * dilation.1;
            (place * channels, tap * channels, beside * channels)
        };
        taps.map(run).collect()
    }

    /// For each output the sum over the positions of its gradient there times all that the kernel sees.
    fn weight_grad_by_channels<T: Element>(&self, grad: &[T], xs: &[T]) -> Vec<T> {
        /// Chunks whose sums are added in the end.
        const CHUNKS: usize = 16;
        let Self { geometry: Conv2dConfig { stride, groups, .. }, channels, outputs, .. } = *self;
        let (positions, taps, pixels) = (self.positions(), self.taps(), self.pixels());
        let runs = self.runs(&pixels);
        let step = |at: usize| {
            let (y, x) = (at / self.output.1 * stride.0, at % self.output.1 * stride.1);
            (at, (y * pixels.columns + x) * channels)
        };
        let steps: Vec<_> = (0..positions).map(step).collect();
        let chunk = self.batch.div_ceil(CHUNKS).max(self.pairs_a_chunk().div_ceil(groups));
        let size = groups * outputs * taps;
        let work = |i: usize, partial: &mut [T]| {
            let mut image = pixels.zeros();
            for example in i * chunk..self.batch.min((i + 1) * chunk) {
                for (group, partial) in partial.chunks_exact_mut(outputs * taps).enumerate() {
                    let pair = example * groups + group;
                    pixels.fill(&mut image, &xs[pair * self.input_size()..][..self.input_size()], self.input);
                    OuterProducts {
                        rows: outputs,
                        terms: &steps,
                        runs: &runs,
                        a: &grad[pair * outputs * positions..][..outputs * positions],
                        a_stride: positions,
                        b: &image,
                        b_padded: true,
                        c: partial.into(),
                        c_stride: taps,
                        bias: &[],
                        accumulate: example > i * chunk,
                    }
                    .run();
                }
            }
        };
        // SAFETY: each chunk has an example, the first of which writes each number.
        let partial = unsafe { parallel::build(self.batch.div_ceil(chunk) * size, size, work) };
        pixels.weight_grad(&partial, (size, taps))
    }

    /// For each weight the product of its output's gradient with the plane of what it meets.
    fn weight_grad_by_planes<T: Element>(&self, grad: &[T], xs: &[T]) -> Vec<T> {
        /// Bytes of images that are worked on at once.
        const CACHE: usize = 1 << 17;
        let (groups, outputs, taps, positions) =
            (self.geometry.groups, self.outputs, self.taps(), self.positions());
        let planes = self.planes();
        let at = self.reads(&planes).collect::<Vec<_>>();
        // The gradient with rows as long as the planes', zeros at their ends: both are walked through in one go.
        let len = (self.output.0 - 1) * planes.pitch + self.output.1;
        let bytes = (planes.len() + outputs * len) * size_of::<T>();
        let chunk = (CACHE / bytes).clamp(1, 8);
        let size = groups * outputs * taps;
        let mut partial = vec![T::ZERO; self.batch.div_ceil(chunk) * size];
        parallel::for_each_piece(&mut partial, size, |i, partial| {
            let examples = i * chunk..self.batch.min((i + 1) * chunk);
            let mut images = vec![T::ZERO; examples.len() * planes.len()];
            let mut grads = vec![T::ZERO; examples.len() * outputs * len];
            for group in 0..groups {
                let buffers =
                    images.chunks_exact_mut(planes.len()).zip(grads.chunks_exact_mut(outputs * len));
                for (example, (image, spread)) in examples.clone().zip(buffers) {
                    let pair = example * groups + group;
                    let xs = &xs[pair * self.input_size()..][..self.input_size()];
                    planes.fill(image, xs, self.channels, self.input);
                    let grad = grad[pair * outputs * positions..].chunks_exact(positions);
                    for (spread, grad) in spread.chunks_exact_mut(len).zip(grad) {
                        for (spread, grad) in
                            spread.chunks_mut(planes.pitch).zip(grad.chunks_exact(self.output.1))
                        {
                            spread[..grad.len()].copy_from_slice(grad);
                        }
                    }
                }
                DotProducts {
                    rows: outputs,
                    segments: examples.len(),
                    len,
                    a: &grads,
                    a_stride: len,
                    a_segment_stride: outputs * len,
                    b: &images,
                    b_offsets: &at,
                    b_segment_stride: planes.len(),
                    c: (&mut partial[group * outputs * taps..][..outputs * taps]).into(),
                    c_stride: taps,
                    bias: &[],
                }
                .run();
            }
        });
        sum_rows(partial, size)
    }

    /// The gradient of the bias.
    fn bias_grad<T: Element>(&self, grad: &[T]) -> Vec<T> {
        let (outputs, positions) = (self.geometry.groups * self.outputs, self.positions());
        let chunk = (1usize << 14).div_ceil((self.batch * positions).max(1));
        let mut sums = vec![T::ZERO; outputs];
        parallel::for_each_piece(&mut sums, chunk, |i, sums| {
            vectorised(
                #[inline(always)]
                || {
                    for grad in grad.chunks_exact(outputs * positions) {
                        let grad = grad[i * chunk * positions..].chunks_exact(positions);
                        sums.iter_mut().zip(grad).for_each(|(sum, grad)| *sum += simd::sum(grad));
                    }
                },
            );
        });
        sums
    }
}

/// The sum of rows of `size` elements, in order.
fn sum_rows<T: Element>(mut rows: Vec<T>, size: usize) -> Vec<T> {
    if rows.len() < size {
        return vec![T::ZERO; size];
    }
    let (sum, rest) = rows.split_at_mut(size);
    for row in rest.chunks_exact(size) {
        sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += x);
    }
    rows.truncate(size);
    rows
}
