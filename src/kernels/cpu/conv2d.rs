//! Two-dimensional convolution and its gradients: direct, or by Winograd's method where that is faster.

use super::linear;
use super::matmul::{Init, Panels, gemm};
use super::memory::{self, write_fill};
use super::parallel;
use super::planes::{ChannelsLast, OutputLayout, Patches, Planes, SlidingProduct};
use super::products::{DotProducts, OuterProducts, Span};
use super::simd::{self, Lanes, vectorised};
use super::winograd::Winograd;
use std::mem::MaybeUninit;

/// Sizes of a convolution, each pair as (height, width).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Conv2d {
    pub batch: usize,
    pub groups: usize,
    /// Input channels of a group.
    pub channels: usize,
    /// Output channels of a group.
    pub outputs: usize,
    pub kernel: (usize, usize),
    pub stride: (usize, usize),
    pub padding: (usize, usize),
    pub dilation: (usize, usize),
    pub input: (usize, usize),
    pub output: (usize, usize),
}

impl Conv2d {
    /// Input elements of one example and group.
    fn input_size(&self) -> usize {
        self.channels * self.input.0 * self.input.1
    }

    /// Positions of the kernel, which is the number of elements of an output channel.
    fn positions(&self) -> usize {
        self.output.0 * self.output.1
    }

    /// Output elements of one example and group.
    fn output_size(&self) -> usize {
        self.outputs * self.positions()
    }

    /// Weights of an output channel.
    fn taps(&self) -> usize {
        self.channels * self.kernel.0 * self.kernel.1
    }

    /// The weights of a group.
    fn group_weight<'a, T>(&self, weight: &'a [T], group: usize) -> &'a [T] {
        let size = self.outputs * self.taps();
        &weight[group * size..][..size]
    }

    /// Number of pairs of example and group that one task computes: about a megaflop of work.
    fn pairs_per_task(&self) -> usize {
        (1usize << 20).div_ceil((2 * self.outputs * self.taps()).saturating_mul(self.positions()))
    }

    /// The padded input of one example and group, by phase of the stride.
    fn planes(&self) -> Planes {
        let Self { kernel, stride, dilation, .. } = *self;
        Planes {
            channels: self.channels,
            stride,
            border: self.padding,
            rows: self.output.0 + dilation.0 * (kernel.0 - 1) / stride.0,
            pitch: self.output.1 + dilation.1 * (kernel.1 - 1) / stride.1,
        }
    }

    /// Offset in the planes of the element under each tap while the kernel is at its first position.
    fn tap_offsets(&self, planes: &Planes) -> impl Iterator<Item = usize> {
        let Self { kernel, stride, dilation, .. } = *self;
        let (size, pitch) = (planes.size(), planes.pitch);
        (0..self.taps()).map(move |tap| {
            let (row, column) = (tap / kernel.1 % kernel.0 * dilation.0, tap % kernel.1 * dilation.1);
            let channel = tap / (kernel.0 * kernel.1);
            let phase = (channel * stride.0 + row % stride.0) * stride.1 + column % stride.1;
            phase * size + row / stride.0 * pitch + column / stride.1
        })
    }

    /// The same function as a linear layer on patches of the images, if that is faster.
    ///
    /// The patches must not overlap, and must be large enough to make up for cutting them.
    fn linear(&self) -> Option<(linear::Dims, Patches)> {
        let Self { batch, groups, channels, outputs, kernel, stride, padding, dilation, input, output } =
            *self;
        let whole = kernel == input;
        let adjacent = kernel == stride && dilation == (1, 1) && kernel.0 * kernel.1 >= 64;
        let dims = linear::Dims { rows: batch * self.positions(), inputs: self.taps(), outputs };
        let applies = (whole || adjacent) && padding == (0, 0) && groups == 1 && dims.inputs > 0;
        applies.then_some((dims, Patches { channels, size: kernel, input, count: output }))
    }

    /// The same convolution by Winograd's method, if that applies and is faster.
    fn winograd(&self) -> Option<Winograd> {
        let Self { kernel, padding, .. } = *self;
        let applies = (self.stride, self.dilation, self.groups, kernel.0) == ((1, 1), (1, 1), 1, 3);
        let winograd = Winograd {
            batch: self.batch,
            channels: self.channels,
            outputs: self.outputs,
            columns: kernel.1,
            padding,
            input: self.input,
            output: self.output,
        };
        (applies && padding.0 <= 2 && padding.1 < kernel.1 && winograd.pays()).then_some(winograd)
    }

    /// The same convolution of every stride-th pixel, if the kernel reads no others.
    fn without_stride(&self) -> Option<Self> {
        let applies = self.kernel == (1, 1) && self.stride != (1, 1) && self.padding == (0, 0);
        applies.then_some(Self { stride: (1, 1), input: self.output, ..*self })
    }

    /// Every stride-th pixel.
    fn strided_pixels<T: Lanes>(&self, xs: &[T]) -> Vec<T> {
        let (plane, positions) = (self.input.0 * self.input.1, self.positions());
        let write = |channel: usize, pixels: &mut [MaybeUninit<T>]| {
            let rows = xs[channel * plane..][..plane].chunks(self.input.1).step_by(self.stride.0);
            for (pixels, row) in pixels.chunks_mut(self.output.1).zip(rows) {
                let row = row.iter().step_by(self.stride.1);
                pixels.iter_mut().zip(row).for_each(|(to, &from)| _ = to.write(from));
            }
        };
        // SAFETY: the input has a pixel for each position, all of which are written.
        unsafe { memory::build(self.batch * self.groups * self.channels * positions, positions, write) }
    }

    /// The output `(batch, groups * outputs, output)`. `bias` has one element per output channel or none.
    pub fn forward<T: Lanes>(&self, xs: &[T], weight: &[T], bias: &[T]) -> Vec<T> {
        if let Some((dims, patches)) = self.linear() {
            let ys = linear::forward(&patches.cut(xs), weight, bias, dims);
            return linear::transposed(&ys, [self.positions(), self.outputs]).into_owned();
        }
        if let Some(winograd) = self.winograd() {
            return winograd.forward(xs, weight, bias);
        }
        if let Some(conv) = self.without_stride() {
            return conv.forward(&self.strided_pixels(xs), weight, bias);
        }
        if self.is_large_product() {
            return self.products(weight, xs, (self.outputs, self.channels), bias);
        }
        let (input_size, size) = (self.input_size(), self.output_size());
        let planes = self.planes();
        let layout = OutputLayout { first: 0, row: self.output.1, column: 1, plane: self.positions() };
        let terms = self.tap_offsets(&planes).enumerate().collect();
        let product = SlidingProduct::new::<T>(self.outputs, self.output, planes.pitch, terms, layout);
        let pairs = self.pairs_per_task();
        let work = |i: usize, ys: &mut [MaybeUninit<T>]| {
            let mut image = planes.zeros();
            let mut scratch = vec![T::ZERO; product.scratch * self.outputs];
            for (pair, ys) in (i * pairs..).zip(ys.chunks_exact_mut(size)) {
                let group = pair % self.groups;
                planes.fill(&mut image, &xs[pair * input_size..][..input_size], self.channels, self.input);
                let weight = (self.group_weight(weight, group), self.taps());
                let bias = if bias.is_empty() { bias } else { &bias[group * self.outputs..][..self.outputs] };
                product.run(self.outputs, weight, &image, bias, &mut scratch, ys);
            }
        };
        // SAFETY: the product writes each output.
        unsafe { memory::build(self.batch * self.groups * size, pairs * size, work) }
    }

    /// The gradient with respect to the input, from the gradient `grad` with respect to the output.
    pub fn input_grad<T: Lanes>(&self, grad: &[T], weight: &[T]) -> Vec<T> {
        if let Some((dims, patches)) = self.linear() {
            let grad = linear::transposed(grad, [self.outputs, self.positions()]);
            return patches.join(linear::input_grad(&grad, weight, dims));
        }
        if let Some(winograd) = self.winograd() {
            return winograd.input_grad(grad, weight);
        }
        if self.is_large_product() {
            let weight = linear::transposed(weight, [self.outputs, self.channels]);
            return self.products(&weight, grad, (self.channels, self.outputs), &[]);
        }
        let (input_size, size) = (self.input_size(), self.output_size());
        let planes = self.gradient_planes();
        let phases = self.phases::<T>(&planes);
        let weight = self.channels_first(weight);
        let pairs = self.pairs_per_task();
        let work = |i: usize, xs_grad: &mut [MaybeUninit<T>]| {
            let mut image = planes.zeros();
            let scratch = phases.iter().map(|product| product.scratch).max().unwrap_or(0);
            let mut scratch = vec![T::ZERO; scratch * self.channels];
            for (pair, xs_grad) in (i * pairs..).zip(xs_grad.chunks_exact_mut(input_size)) {
                planes.fill(&mut image, &grad[pair * size..][..size], self.outputs, self.output);
                let row = self.outputs * self.kernel.0 * self.kernel.1;
                let weight = (self.group_weight(&weight, pair % self.groups), row);
                for product in &phases {
                    product.run(self.channels, weight, &image, &[], &mut scratch, xs_grad);
                }
            }
        };
        // SAFETY: the products, one per phase of the stride, write every element.
        unsafe { memory::build(self.batch * self.groups * input_size, pairs * input_size, work) }
    }

    /// The weights of each group with the input channels before the output channels.
    fn channels_first<T: Lanes>(&self, weight: &[T]) -> Vec<T> {
        let (window, taps) = (self.kernel.0 * self.kernel.1, self.taps());
        let mut turned = Vec::with_capacity(weight.len());
        for group in weight.chunks_exact(self.outputs * taps) {
            for channel in 0..self.channels {
                let windows = group.chunks_exact(taps).map(|output| &output[channel * window..][..window]);
                turned.extend(windows.flatten());
            }
        }
        turned
    }

    /// The output gradient of one example and group, padded for the convolution to the input gradient.
    fn gradient_planes(&self) -> Planes {
        let Self { kernel, stride, padding, dilation, input, output, .. } = *self;
        let reach = (dilation.0 * (kernel.0 - 1) / stride.0, dilation.1 * (kernel.1 - 1) / stride.1);
        let border =
            (reach.0.saturating_sub(padding.0 / stride.0), reach.1.saturating_sub(padding.1 / stride.1));
        let last = ((input.0 - 1 + padding.0) / stride.0, (input.1 - 1 + padding.1) / stride.1);
        Planes {
            channels: self.outputs,
            stride: (1, 1),
            border,
            rows: border.0 + (last.0 + 1).max(output.0),
            pitch: border.1 + (last.1 + 1).max(output.1),
        }
    }

    /// The input gradient as one product per phase of the stride.
    ///
    /// Tap t covers padded row `y * stride + dilation * t` at position y. Padded row `stride * q + r` is thus covered at
    /// position `y = q - before` by the taps with `dilation * t = stride * before + r`.
    fn phases<T: Lanes>(&self, planes: &Planes) -> Vec<SlidingProduct> {
        let Self { stride, padding, input, .. } = *self;
        let phases = (0..stride.0).flat_map(|h| (0..stride.1).map(move |w| (h, w)));
        let product = |phase: (usize, usize)| {
            // The first row and column of the input in this phase.
            let first = (
                (phase.0 + stride.0 - padding.0 % stride.0) % stride.0,
                (phase.1 + stride.1 - padding.1 % stride.1) % stride.1,
            );
            if first.0 >= input.0 || first.1 >= input.1 {
                return None;
            }
            let size = ((input.0 - first.0).div_ceil(stride.0), (input.1 - first.1).div_ceil(stride.1));
            let layout = OutputLayout {
                first: first.0 * input.1 + first.1,
                row: stride.0 * input.1,
                column: stride.1,
                plane: input.0 * input.1,
            };
            let terms = self.phase_terms(planes, phase, first);
            Some(SlidingProduct::new::<T>(self.channels, size, planes.pitch, terms, layout))
        };
        phases.filter_map(product).collect()
    }

    /// Offsets of the weights in a phase, and of the output gradients at the phase's `first` element.
    fn phase_terms(
        &self,
        planes: &Planes,
        phase: (usize, usize),
        first: (usize, usize),
    ) -> Vec<(usize, usize)> {
        let Self { kernel, stride, padding, dilation, .. } = *self;
        let q = ((first.0 + padding.0) / stride.0, (first.1 + padding.1) / stride.1);
        let mut terms = vec![];
        for output in 0..self.outputs {
            for tap in 0..kernel.0 * kernel.1 {
                let (h, w) = (dilation.0 * (tap / kernel.1), dilation.1 * (tap % kernel.1));
                if (h % stride.0, w % stride.1) == phase {
                    let row = planes.border.0 + q.0 - h / stride.0;
                    let column = planes.border.1 + q.1 - w / stride.1;
                    let place = output * planes.size() + row * planes.pitch + column;
                    terms.push((output * kernel.0 * kernel.1 + tap, place));
                }
            }
        }
        terms
    }

    /// The gradient with respect to the weight, from the gradient `grad` with respect to the output.
    pub fn weight_grad<T: Lanes>(&self, grad: &[T], xs: &[T]) -> Vec<T> {
        if let Some((dims, patches)) = self.linear() {
            let grad = linear::transposed(grad, [self.outputs, self.positions()]);
            return linear::weight_grad(&grad, &patches.cut(xs), dims);
        }
        if let Some(winograd) = self.winograd() {
            return winograd.weight_grad(grad, xs);
        }
        if let Some(conv) = self.without_stride() {
            return conv.weight_grad(grad, &self.strided_pixels(xs));
        }
        if self.is_large_product() {
            return self.weight_grad_by_products(grad, xs);
        }
        // Count cycles, at one per multiply-add of virtual lanes. By channels: the rows of the kernel, and the
        // transposition of the image. By planes: the planes, which take as many loads, and the sum of the lanes of each
        // result. The width of a register must not matter, because the two ways add in different orders.
        let lanes = T::VIRTUAL;
        let rows = self.kernel_runs(&self.pixels()).iter().map(|run| run.2.div_ceil(lanes)).sum::<usize>();
        let by_channels = self.positions() * self.outputs * rows + self.input_size();
        let len = (self.output.0 - 1) * self.planes().pitch + self.output.1;
        let by_planes = self.outputs * self.taps() * (len.div_ceil(lanes) * 5 / 4 + 8);
        match by_channels < by_planes {
            true => self.weight_grad_by_channels(grad, xs),
            false => self.weight_grad_by_planes(grad, xs),
        }
    }

    /// The padded input of one example and group with its channels last, as far as the kernel covers it.
    fn pixels(&self) -> ChannelsLast {
        let Self { kernel, output, stride, dilation, .. } = *self;
        let reach = |output, stride, dilation, kernel| (output - 1) * stride + dilation * (kernel - 1) + 1;
        ChannelsLast {
            channels: self.channels,
            border: self.padding,
            rows: reach(output.0, stride.0, dilation.0, kernel.0),
            columns: reach(output.1, stride.1, dilation.1, kernel.1),
        }
    }

    /// The runs of pixels under the kernel at its first position, and the weights for them.
    ///
    /// The weights have their channels last; see [`OuterProducts`].
    fn kernel_runs(&self, pixels: &ChannelsLast) -> Vec<Span> {
        let Self { channels, kernel, dilation, .. } = *self;
        let adjacent = if dilation.1 == 1 { kernel.1 } else { 1 };
        let run = |tap: usize| {
            let place = tap / kernel.1 * dilation.0 * pixels.columns + tap % kernel.1 * dilation.1;
            (place * channels, tap * channels, adjacent * channels)
        };
        (0..kernel.0 * kernel.1).step_by(adjacent).map(run).collect()
    }

    /// Whether a convolution of single pixels is, for each example, a matrix product that is worth packing.
    fn is_large_product(&self) -> bool {
        /// Multiply-adds.
        const WORK: usize = 1 << 22;
        /// Rows and columns of the product.
        const SIDE: usize = 32;
        let is_product = (self.kernel, self.stride, self.padding, self.groups) == ((1, 1), (1, 1), (0, 0), 1);
        let is_large = self.outputs * self.channels * self.positions() >= WORK;
        is_product && is_large && self.outputs.min(self.channels) >= SIDE
    }

    /// The product of `lhs`, `rows` x `depth`, with each image of `depth` channels, plus each row's bias.
    fn products<T: Lanes>(
        &self,
        lhs: &[T],
        images: &[T],
        (rows, depth): (usize, usize),
        bias: &[T],
    ) -> Vec<T> {
        let positions = self.positions();
        let write = |example: usize, product: &mut [MaybeUninit<T>]| {
            let image = &images[example * depth * positions..];
            let panels = Panels::new((depth, positions), |channel| &image[channel * positions..]);
            for (row, &bias) in product.chunks_exact_mut(positions).zip(bias) {
                write_fill(row, bias);
            }
            let init = if bias.is_empty() { Init::Zero } else { Init::Accumulate };
            gemm((lhs, depth), &panels, product, positions, init);
        };
        // SAFETY: `gemm` writes every element.
        unsafe { memory::build(self.batch * rows * positions, rows * positions, write) }
    }

    /// Computes the weight gradient as a sum over examples of matrix products.
    ///
    /// Each is the output gradient times the transposed image.
    fn weight_grad_by_products<T: Lanes>(&self, grad: &[T], xs: &[T]) -> Vec<T> {
        let Self { channels, outputs, .. } = *self;
        let positions = self.positions();
        let mut weight_grad = vec![T::ZERO; outputs * channels];
        let examples = grad.chunks_exact(outputs * positions).zip(xs.chunks_exact(channels * positions));
        for (grad, xs) in examples {
            let panels = Panels::transposed((positions, channels), |channel| &xs[channel * positions..]);
            gemm((grad, positions), &panels, &mut weight_grad, channels, Init::Accumulate);
        }
        weight_grad
    }

    /// Computes the weight gradient as a sum over positions.
    ///
    /// Each term is the output gradient at a position times the pixels under the kernel.
    fn weight_grad_by_channels<T: Lanes>(&self, grad: &[T], xs: &[T]) -> Vec<T> {
        /// Partial sums over examples, which are added in order at the end.
        const PARTS: usize = 16;
        let Self { groups, channels, outputs, stride, .. } = *self;
        let (positions, taps, input_size) = (self.positions(), self.taps(), self.input_size());
        let pixels = self.pixels();
        let runs = self.kernel_runs(&pixels);
        let term = |at: usize| {
            let (y, x) = (at / self.output.1 * stride.0, at % self.output.1 * stride.1);
            (at, (y * pixels.columns + x) * channels)
        };
        let terms: Vec<_> = (0..positions).map(term).collect();
        let examples = self.batch.div_ceil(PARTS).max(self.pairs_per_task().div_ceil(groups));
        let size = groups * outputs * taps;
        let work = |i: usize, partial: &mut [MaybeUninit<T>]| {
            let mut image = pixels.zeros();
            for example in i * examples..self.batch.min((i + 1) * examples) {
                for (group, partial) in partial.chunks_exact_mut(outputs * taps).enumerate() {
                    let pair = example * groups + group;
                    pixels.fill(&mut image, &xs[pair * input_size..][..input_size], self.input);
                    OuterProducts {
                        rows: outputs,
                        terms: &terms,
                        runs: &runs,
                        a: &grad[pair * outputs * positions..][..outputs * positions],
                        a_stride: positions,
                        b: &image,
                        b_padded: true,
                        c: partial.into(),
                        c_stride: taps,
                        bias: &[],
                        accumulate: example > i * examples,
                    }
                    .run();
                }
            }
        };
        // SAFETY: each part has at least one example, the first of which writes every element.
        let partial = unsafe { memory::build(self.batch.div_ceil(examples) * size, size, work) };
        pixels.sum_weight_grads(&partial, (size, taps))
    }

    /// Computes the weight gradient as dot products.
    ///
    /// Each is the output gradient of a channel times the plane under a tap.
    fn weight_grad_by_planes<T: Lanes>(&self, grad: &[T], xs: &[T]) -> Vec<T> {
        /// Bytes of images and gradients that stay in the cache together.
        const CACHE: usize = 1 << 17;
        let (groups, outputs, taps) = (self.groups, self.outputs, self.taps());
        let planes = self.planes();
        let offsets = self.tap_offsets(&planes).collect::<Vec<_>>();
        // Pad the rows of the gradient with zeros to the pitch of the planes, so that each product is one contiguous
        // run.
        let len = (self.output.0 - 1) * planes.pitch + self.output.1;
        let bytes = (planes.len() + outputs * len) * size_of::<T>();
        let chunk = (CACHE / bytes).clamp(1, 8);
        let size = groups * outputs * taps;
        let work = |i: usize, partial: &mut [MaybeUninit<T>]| {
            let examples = i * chunk..self.batch.min((i + 1) * chunk);
            let mut images = vec![T::ZERO; examples.len() * planes.len()];
            let mut grads = vec![T::ZERO; examples.len() * outputs * len];
            for (group, partial) in partial.chunks_exact_mut(outputs * taps).enumerate() {
                let buffers =
                    images.chunks_exact_mut(planes.len()).zip(grads.chunks_exact_mut(outputs * len));
                for (example, (image, spread)) in examples.clone().zip(buffers) {
                    let pair = example * groups + group;
                    let xs = &xs[pair * self.input_size()..][..self.input_size()];
                    planes.fill(image, xs, self.channels, self.input);
                    self.spread_rows(&grad[pair * self.output_size()..], spread, (len, planes.pitch));
                }
                DotProducts {
                    rows: outputs,
                    segments: examples.len(),
                    len,
                    a: &grads,
                    a_stride: len,
                    a_segment_stride: outputs * len,
                    b: &images,
                    b_offsets: &offsets,
                    b_segment_stride: planes.len(),
                    c: partial.into(),
                    c_stride: taps,
                    bias: &[],
                }
                .run();
            }
        };
        // SAFETY: the dot products write each element.
        let partial = unsafe { memory::build(self.batch.div_ceil(chunk) * size, size, work) };
        linear::sum_rows(partial, size)
    }

    /// Copies the output gradient of an example and group into channels of `len` elements.
    ///
    /// Rows are `pitch` elements apart.
    fn spread_rows<T: Lanes>(&self, grad: &[T], spread: &mut [T], (len, pitch): (usize, usize)) {
        for (spread, grad) in spread.chunks_exact_mut(len).zip(grad.chunks_exact(self.positions())) {
            for (spread, grad) in spread.chunks_mut(pitch).zip(grad.chunks_exact(self.output.1)) {
                spread[..grad.len()].copy_from_slice(grad);
            }
        }
    }

    /// The gradient with respect to the bias, from the gradient `grad` with respect to the output.
    pub fn bias_grad<T: Lanes>(&self, grad: &[T]) -> Vec<T> {
        if self.positions() == 1 && self.groups == 1 {
            return linear::column_sums(grad, self.outputs, self.outputs);
        }
        let (outputs, positions) = (self.groups * self.outputs, self.positions());
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

/// Adds to each plane of `plane` elements the bias of its channel.
pub(crate) fn add_bias<T: Lanes>(ys: &mut [T], bias: &[T], plane: usize) {
    let planes = (1usize << 14).div_ceil(plane.max(1));
    parallel::for_each_piece(ys, planes * plane, |i, ys| {
        vectorised(
            #[inline(always)]
            || {
                for (channel, ys) in (i * planes..).zip(ys.chunks_exact_mut(plane)) {
                    let bias = bias[channel % bias.len()];
                    ys.iter_mut().for_each(|y| *y += bias);
                }
            },
        );
    });
}
