//! Winograd's convolution for kernels of three rows and stride 1, with half the multiplications.
//!
//! Winograd's minimal filtering F(4, 3) (Lavin and Gray 2016, arXiv:1509.09308, section 4) computes four neighbouring
//! outputs of a filter g of three taps as `A^T ((G g) . (B^T d))`, from six inputs d, with 6 products instead of 12.
//! Here it runs down the columns of an image only:
//!
//! 1. the input transform `B^T` maps a strip of six input rows to one row per point;
//! 2. the filter transform `G` maps the three rows of the kernel to one row per point;
//! 3. each point is a convolution along the row and over the channels, a matrix product by [`OuterProducts`];
//! 4. the output transform `A^T` maps the six products to four output rows.
//!
//! Vectors lie along the rows throughout, so images of any size need no other layout. Rounding errors are smaller than
//! with the method in both dimensions.
//!
//! The gradients are the adjoints: the input gradient is a convolution with the kernel turned by 180 degrees, and the
//! weight gradient is `G^T ((A dy) . (B^T d))`, summed over all strips before `G^T` is applied.

mod transforms;

use super::memory::{self, write_fill};
use super::parallel::{self, Shared};
use super::planes::ChannelsLast;
use super::products::{LEAST_ROWS, OVERREAD, OuterProducts};
use super::simd::{Lanes, vectorised};
use std::mem::MaybeUninit;
use std::ops::Range;
use transforms::{
    FILTER, FilterAdjoint, InputTransform, OutputAdjoint, OutputTransform, POINTS, ROWS, Strip, TAPS,
    transform,
};

/// A convolution in one group with a kernel of three rows, stride 1 and no dilation. Pairs are (height, width).
#[derive(Clone, Copy)]
pub(crate) struct Winograd {
    pub batch: usize,
    pub channels: usize,
    pub outputs: usize,
    /// Columns of the kernel.
    pub columns: usize,
    /// Zeros on either side: at most two rows, and fewer columns than the kernel.
    pub padding: (usize, usize),
    pub input: (usize, usize),
    pub output: (usize, usize),
}

impl Winograd {
    /// Whether the method takes fewer cycles than the direct convolution.
    pub fn pays(&self) -> bool {
        // Count cycles per register along a strip: one for two multiply-adds. Each transformed row takes two to load or
        // store it and two for its sum.
        let Self { channels, outputs, columns, output, .. } = *self;
        let products = channels * columns * outputs;
        let strips = output.0.div_ceil(ROWS) * (POINTS * products / 2 + 4 * POINTS * (channels + outputs));
        strips < output.0 * TAPS * products / 2
    }

    /// Strips of one example.
    fn strips(&self) -> usize {
        self.output.0.div_ceil(ROWS)
    }

    /// Row stride of the transformed input: neighbouring rows share the padding between them.
    fn pitch(&self) -> usize {
        self.input.1 + self.padding.1
    }

    /// The block that is transformed at once: a number of examples, and of strips of each.
    ///
    /// Small images are transformed as a whole. Their rows, end to end, then fill most of a register's width, and the
    /// transformed rows stay in the second-level cache.
    fn block(&self) -> (usize, usize) {
        /// Elements of a row of products.
        const LEAST: usize = 144;
        let (strips, pitch) = (self.strips(), self.pitch());
        let parts = strips.div_ceil((2 * LEAST / pitch).max(1));
        (LEAST.div_ceil(strips * pitch).min(self.batch.max(1)), strips.div_ceil(parts))
    }

    /// Examples that one task computes.
    fn examples_per_task(&self) -> usize {
        let products = self.output.0 * self.output.1 * self.outputs * TAPS * self.columns * self.channels;
        let (block, _) = self.block();
        ((1usize << 23) / (products * block)).max(1) * block
    }

    /// The output.
    pub fn forward<T: Lanes>(&self, xs: &[T], weight: &[T], bias: &[T]) -> Vec<T> {
        let size = TAPS * self.columns;
        let kernel = |output, channel| &weight[(output * self.channels + channel) * size..][..size];
        self.convolve(xs, self.transform_filters(kernel, false), bias)
    }

    /// The gradient with respect to the input: `grad` convolved with the kernel turned by 180 degrees.
    pub fn input_grad<T: Lanes>(&self, grad: &[T], weight: &[T]) -> Vec<T> {
        let Self { channels, outputs, columns, padding, input, output, .. } = *self;
        let turned = Self {
            channels: outputs,
            outputs: channels,
            padding: (TAPS - 1 - padding.0, columns - 1 - padding.1),
            input: output,
            output: input,
            ..*self
        };
        let size = TAPS * columns;
        let kernel = |channel, output| &weight[(output * channels + channel) * size..][..size];
        turned.convolve(grad, turned.transform_filters(kernel, true), &[])
    }

    /// The convolution with transformed filters.
    fn convolve<T: Lanes>(&self, xs: &[T], weights: Vec<T>, bias: &[T]) -> Vec<T> {
        let Self { channels, outputs, columns, input, output, .. } = *self;
        let (strips, pitch, (block, part)) = (self.strips(), self.pitch(), self.block());
        let (input_size, output_size) = (channels * input.0 * input.1, outputs * output.0 * output.1);
        let len = block * part * pitch + self.padding.1;
        let term = |tap: usize| (tap, tap / columns * len + tap % columns);
        let convolution = Convolution {
            sizes: *self,
            weights,
            bias,
            len,
            terms: (0..channels * columns).map(term).collect(),
        };
        let task = self.examples_per_task();
        let work = |i: usize, ys: &mut [MaybeUninit<T>]| {
            let mut points = vec![T::ZERO; POINTS * convolution.point()];
            let mut products = memory::uninit(POINTS * outputs * block * part * pitch);
            let xs = xs[i * task * input_size..].chunks(block * input_size);
            for (xs, ys) in xs.zip(ys.chunks_mut(block * output_size)) {
                for first in (0..strips).step_by(part) {
                    let some = first..strips.min(first + part);
                    convolution.block(xs, some, &mut points, &mut products, ys);
                }
            }
        };
        // SAFETY: the rows of all strips make up the output.
        unsafe { memory::build(self.batch * output_size, task * output_size, work) }
    }

    /// Row stride of the transformed filters: a cache line more than a row, so that rows do not compete for the same ones.
    fn filter_row(&self) -> usize {
        self.channels * self.columns + OVERREAD
    }

    /// The filter transform: `G g` for each point, output, channel and column of the kernel.
    ///
    /// `kernel(output, channel)` is one kernel, turned by 180 degrees if `turned`.
    fn transform_filters<'a, T: Lanes>(
        &self,
        kernel: impl Fn(usize, usize) -> &'a [T] + Sync,
        turned: bool,
    ) -> Vec<T> {
        /// Outputs that are transformed together, so that each cache line of the weights is read once.
        const TOGETHER: usize = 8;
        let Self { channels, outputs, columns, .. } = *self;
        let (row, used) = (self.filter_row(), channels * columns);
        let mut filters = memory::uninit(POINTS * outputs * row);
        let shared = Shared::new(&mut filters);
        parallel::for_each_chunk(outputs.div_ceil(TOGETHER), |i| {
            let some = i * TOGETHER..outputs.min((i + 1) * TOGETHER);
            // The rows of the kernels, each with the columns of all channels, as far apart as those of the filters.
            let mut taps = vec![T::ZERO; some.len() * TAPS * row];
            // The compiler unrolls the loops over a kernel of known size.
            let kernel = |output, channel| kernel(some.start + output, channel);
            match columns {
                3 => gather_rows(&kernel, [some.len(), channels, 3], turned, row, &mut taps),
                _ => gather_rows(&kernel, [some.len(), channels, columns], turned, row, &mut taps),
            }
            vectorised(
                #[inline(always)]
                || {
                    for (output, taps) in some.clone().zip(taps.chunks_exact(TAPS * row)) {
                        let [a, b, c] = std::array::from_fn(|i| &taps[i * row..][..used]);
                        for (point, factors) in FILTER.iter().enumerate() {
                            let [f, g, h] = factors.map(T::of);
                            let first = (point * outputs + output) * row;
                            // SAFETY: only this call of the closure writes the weights of these outputs.
                            let (to, padding) =
                                unsafe { shared.slice(first..first + row) }.split_at_mut(used);
                            for (((to, &a), &b), &c) in to.iter_mut().zip(a).zip(b).zip(c) {
                                to.write(T::ZERO + a * f + b * g + c * h);
                            }
                            write_fill(padding, T::ZERO);
                        }
                    }
                },
            );
        });
        // SAFETY: the rows of all points and outputs have been written.
        unsafe { memory::assume_init(filters) }
    }

    /// The gradient with respect to the weight.
    pub fn weight_grad<T: Lanes>(&self, grad: &[T], xs: &[T]) -> Vec<T> {
        let Self { channels, outputs, columns, padding, input, output, .. } = *self;
        let (strips, (block, part)) = (self.strips(), self.block());
        let pixels = ChannelsLast {
            channels,
            border: padding,
            rows: (strips - 1) * ROWS + POINTS,
            columns: output.1 + columns - 1,
        };
        let row = pixels.columns * channels;
        let len = block * part * output.1;
        let term = |at: usize| (at, at / output.1 * row + at % output.1 * channels);
        let gradient = WeightGradient { sizes: *self, row, terms: (0..len).map(term).collect() };
        let (size, width) = (gradient.size(), columns * channels);
        let input_size = channels * input.0 * input.1;
        let work = |i: usize, partial: &mut [MaybeUninit<T>]| {
            let examples = i * block..self.batch.min((i + 1) * block);
            let xs = xs[examples.start * input_size..].chunks_exact(input_size);
            let grad = &grad[examples.start * outputs * output.0 * output.1..];
            let mut images = vec![pixels.zeros(); examples.len()];
            for (image, xs) in images.iter_mut().zip(xs) {
                pixels.fill(image, xs, input);
            }
            let mut points = vec![T::ZERO; POINTS * (block * part * row + OVERREAD)];
            let mut grads = memory::uninit(POINTS * outputs * len);
            let mut products = memory::uninit(POINTS * size);
            for first in (0..strips).step_by(part) {
                let some = first..strips.min(first + part);
                gradient.block(&images, grad, some, &mut points, &mut grads, &mut products);
            }
            // SAFETY: the first block writes all products.
            gradient.adjoint_of_filters(unsafe { memory::assume_init_ref(&products) }, partial);
        };
        // SAFETY: `adjoint_of_filters` writes a whole partial sum.
        let partial = unsafe { memory::build(self.batch.div_ceil(block) * TAPS * size, TAPS * size, work) };
        pixels.sum_weight_grads(&partial, (TAPS * size, TAPS * width))
    }
}

/// Calls `work(i, products)` for the `size` products of each point, sums of `terms` terms.
///
/// Large products run in parallel, since there may be few examples then.
fn for_each_point<T: Send>(
    products: &mut [T],
    size: usize,
    terms: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    /// Multiply-adds of a point that make up for moving it to another thread.
    const LARGE: usize = 1 << 22;
    match size.saturating_mul(terms) >= LARGE {
        true => parallel::for_each_piece(products, size, work),
        false => products.chunks_exact_mut(size).enumerate().for_each(|(i, products)| work(i, products)),
    }
}

/// Gathers the rows of kernels, each with the columns of all channels: `rows` is `(outputs, TAPS, channels, columns)`,
/// with `stride` elements from one row to the next.
#[inline(always)]
fn gather_rows<'a, T: Lanes>(
    kernel: &impl Fn(usize, usize) -> &'a [T],
    [outputs, channels, columns]: [usize; 3],
    turned: bool,
    stride: usize,
    rows: &mut [T],
) {
    let size = TAPS * columns;
    for channel in 0..channels {
        for output in 0..outputs {
            let kernel = &kernel(output, channel)[..size];
            for row in 0..TAPS {
                let to = &mut rows[(output * TAPS + row) * stride + channel * columns..][..columns];
                let from = if turned { TAPS - 1 - row } else { row };
                to.copy_from_slice(&kernel[from * columns..][..columns]);
                if turned {
                    to.reverse();
                }
            }
        }
    }
}

/// A convolution with its transformed weights.
struct Convolution<'a, T> {
    sizes: Winograd,
    /// One matrix per point.
    weights: Vec<T>,
    bias: &'a [T],
    /// Elements of a channel of a point: rows end to end.
    len: usize,
    /// Offsets of the weight and the element of each channel and kernel column; see [`OuterProducts`].
    terms: Vec<(usize, usize)>,
}

impl<T: Lanes> Convolution<'_, T> {
    /// Elements of a point: all channels, and the overread.
    fn point(&self) -> usize {
        self.sizes.channels * self.len + OVERREAD
    }

    /// Computes `some` strips of the examples in `ys`, through buffers for the points and their products.
    fn block(
        &self,
        xs: &[T],
        some: Range<usize>,
        points: &mut [T],
        products: &mut [MaybeUninit<T>],
        ys: &mut [MaybeUninit<T>],
    ) {
        let Winograd { outputs, output, .. } = self.sizes;
        let pitch = self.sizes.pitch();
        let examples = ys.len() / (outputs * output.0 * output.1);
        let (rows, row) = (examples * some.len(), self.sizes.filter_row());
        // The copy of the points, which pays off for many outputs, leaves out the padding between the rows.
        let is_copied = outputs >= LEAST_ROWS;
        let row_to = if is_copied { output.1 } else { pitch };
        let used = (rows - 1) * row_to + output.1;
        let runs: Vec<_> = match is_copied {
            true => (0..rows).map(|i| (i * pitch, i * output.1, output.1)).collect(),
            false => vec![(0, 0, used)],
        };
        self.transform_input(xs, examples, some.clone(), points);
        let products = &mut products[..POINTS * outputs * used];
        for_each_point(products, outputs * used, self.terms.len(), |i, products| {
            OuterProducts {
                rows: outputs,
                terms: &self.terms,
                runs: &runs,
                a: &self.weights[i * outputs * row..],
                a_stride: row,
                b: &points[i * self.point()..][..self.point()],
                b_padded: true,
                c: products.into(),
                c_stride: used,
                bias: &[],
                accumulate: false,
            }
            .run();
        });
        // SAFETY: the products of all points have been written.
        let products = unsafe { memory::assume_init_ref(products) };
        transform(
            OutputTransform,
            [examples, outputs, some.len()],
            output.1,
            products,
            ys,
            #[inline(always)]
            |[example, plane, i]| {
                let strip = some.start + i;
                let first = (example * outputs + plane) * output.0 + strip * ROWS;
                Strip {
                    rows: 0..POINTS,
                    from: (plane * used + (example * some.len() + i) * row_to, outputs * used),
                    to: (first * output.1, output.1),
                    wanted: ROWS.min(output.0 - strip * ROWS),
                    bias: self.bias.get(plane).copied().unwrap_or(T::ZERO),
                }
            },
        );
    }

    /// The input transform of `some` strips. Rows above and below the image are zeros.
    fn transform_input(&self, xs: &[T], examples: usize, some: Range<usize>, points: &mut [T]) {
        let Winograd { channels, padding, input, .. } = self.sizes;
        let (pitch, len, point) = (self.sizes.pitch(), self.len, self.point());
        transform(
            InputTransform,
            [examples, channels, some.len()],
            input.1,
            xs,
            points,
            #[inline(always)]
            |[example, channel, i]| {
                let strip = some.start + i;
                let above = padding.0.saturating_sub(strip * ROWS);
                let first = strip * ROWS + above - padding.0;
                let plane = (example * channels + channel) * input.0;
                Strip {
                    rows: above..POINTS.min(above + input.0 - first),
                    from: ((plane + first) * input.1, input.1),
                    to: (channel * len + (example * some.len() + i) * pitch + padding.1, point),
                    wanted: POINTS,
                    bias: T::ZERO,
                }
            },
        );
    }
}

/// The weight gradient of some examples.
struct WeightGradient {
    sizes: Winograd,
    /// Elements of a row of the images, which have their channels last.
    row: usize,
    /// Offsets of the output gradient and of the pixels at each position: see [`OuterProducts`].
    terms: Vec<(usize, usize)>,
}

impl WeightGradient {
    /// Weights of a row of the kernel: output by output and column by column, with adjacent channels.
    fn size(&self) -> usize {
        self.sizes.outputs * self.sizes.columns * self.sizes.channels
    }

    /// Adds `some` strips of the images to the products of each point; the first strips initialise them.
    fn block<T: Lanes>(
        &self,
        images: &[Vec<T>],
        grad: &[T],
        some: Range<usize>,
        points: &mut [T],
        grads: &mut [MaybeUninit<T>],
        products: &mut [MaybeUninit<T>],
    ) {
        let Winograd { outputs, output, columns, channels, .. } = self.sizes;
        let (row, point) = (self.row, points.len() / POINTS);
        for (example, image) in images.iter().enumerate() {
            transform(
                InputTransform,
                [1, 1, some.len()],
                row,
                image,
                &mut *points,
                #[inline(always)]
                |[_, _, i]| Strip {
                    rows: 0..POINTS,
                    from: ((some.start + i) * ROWS * row, row),
                    to: ((example * some.len() + i) * row, point),
                    wanted: POINTS,
                    bias: T::ZERO,
                },
            );
        }
        let len = images.len() * some.len() * output.1;
        let grads = &mut grads[..POINTS * outputs * len];
        transform(
            OutputAdjoint,
            [images.len(), outputs, some.len()],
            output.1,
            grad,
            &mut *grads,
            #[inline(always)]
            |[example, plane, i]| {
                let at = (some.start + i) * ROWS;
                Strip {
                    rows: 0..ROWS.min(output.0 - at),
                    from: (((example * outputs + plane) * output.0 + at) * output.1, output.1),
                    to: (plane * len + (example * some.len() + i) * output.1, outputs * len),
                    wanted: POINTS,
                    bias: T::ZERO,
                }
            },
        );
        // SAFETY: the transform has written the rows of all examples, outputs, strips and points.
        let grads = unsafe { memory::assume_init_ref(grads) };
        let width = columns * channels;
        for_each_point(products, self.size(), len, |i, products| {
            OuterProducts {
                rows: outputs,
                terms: &self.terms[..len],
                runs: &[(0, 0, width)],
                a: &grads[i * outputs * len..][..outputs * len],
                a_stride: len,
                b: &points[i * point..][..point],
                b_padded: true,
                c: products.into(),
                c_stride: width,
                bias: &[],
                accumulate: some.start > 0,
            }
            .run();
        });
    }

    /// Applies the adjoint of the filter transform to the products of each point: the weights' gradient.
    fn adjoint_of_filters<T: Lanes>(&self, products: &[T], partial: &mut [MaybeUninit<T>]) {
        let (size, width) = (self.size(), self.sizes.columns * self.sizes.channels);
        transform(
            FilterAdjoint,
            [1, self.sizes.outputs, 1],
            width,
            products,
            partial,
            #[inline(always)]
            |[_, output, _]| Strip {
                rows: 0..POINTS,
                from: (output * width, size),
                to: (output * TAPS * width, width),
                wanted: TAPS,
                bias: T::ZERO,
            },
        );
    }
}
