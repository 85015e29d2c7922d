//! Convolution with kernels three rows high that move by one, in half the multiplications.
//!
//! Winograd's minimal filtering F(4, 3) (Lavin and Gray 2016, arXiv:1509.09308, section 4): four neighbouring results of
//! a filter g of three taps are `A^T ((G g) . (B^T d))`, of six numbers d of the input, with 6 products in place of 12.
//! Here it runs down the columns of an image, whose rows stay as they are: a strip of six input rows becomes six other
//! rows ([`INPUT`]), three rows of the kernel become six ([`KERNEL`]), each of the six is a convolution along the row
//! and over the channels, a matrix product for [`OuterProducts`], and what comes out of them makes four rows of the result
//! ([`RESULT`]). Vectors lie along the rows throughout, so that images of any size need no other layout, and rounding
//! grows less than with the same in both dimensions.
//!
//! The gradients are the adjoints: that of the input is a convolution with the kernel turned round, that of the weight
//! is `G^T ((A dy) . (B^T d))`, summed over all strips before `G^T` is taken.

// Loops over a matrix are unrolled and all written alike.
#![allow(clippy::needless_range_loop)]

use super::parallel::{self, Shared};
use super::planes::ChannelsLast;
use super::simd::{Lanes, OVERREAD, OuterProducts, dispatch};
use pulp::{Simd, WithSimd};
use std::marker::PhantomData;
use std::ops::Range;

/// Rows of the result that a strip makes.
const ROWS: usize = 4;
/// Rows of the input that a strip reads, and products for each tap along the row.
const POINTS: usize = 6;
/// Rows of the kernel.
const TAPS: usize = 3;

// The matrices of the points 0, 1, -1, 2, -1/2 and infinity, which round less than those of the paper with -2 (Barabasz
// et al. 2018, arXiv:1803.10986).

/// B^T
const INPUT: [[f64; POINTS]; POINTS] = [
    [2., 3., -4., -3., 2., 0.],
    [0., 2., 5., 1., -2., 0.],
    [0., 2., 1., -5., 2., 0.],
    [0., -1., -2., 1., 2., 0.],
    [0., -2., 1., 2., -1., 0.],
    [0., 2., 3., -4., -3., 2.],
];
/// G
const KERNEL: [[f64; TAPS]; POINTS] = [
    [1. / 2., 0., 0.],
    [1. / 6., 1. / 6., 1. / 6.],
    [1. / 6., -1. / 6., 1. / 6.],
    [1. / 30., 1. / 15., 2. / 15.],
    [16. / 15., -8. / 15., 4. / 15.],
    [0., 0., 1. / 2.],
];
/// A^T
const RESULT: [[f64; POINTS]; ROWS] = [
    [1., 1., 1., 1., 1., 0.],
    [0., 1., -1., 2., -1. / 2., 0.],
    [0., 1., 1., 4., 1. / 4., 0.],
    [0., 1., -1., 8., -1. / 8., 1.],
];

/// A matrix that is known when the loop over a row is compiled.
trait Matrix<const M: usize, const N: usize> {
    const NUMBERS: [[f64; N]; M];
}

struct ToPoints;
struct ToResult;
struct FromResult;
struct FromKernel;

impl Matrix<POINTS, POINTS> for ToPoints {
    const NUMBERS: [[f64; POINTS]; POINTS] = INPUT;
}
impl Matrix<ROWS, POINTS> for ToResult {
    const NUMBERS: [[f64; POINTS]; ROWS] = RESULT;
}
impl Matrix<POINTS, ROWS> for FromResult {
    const NUMBERS: [[f64; ROWS]; POINTS] = transposed(RESULT);
}
impl Matrix<TAPS, POINTS> for FromKernel {
    const NUMBERS: [[f64; POINTS]; TAPS] = transposed(KERNEL);
}

const fn transposed<const M: usize, const N: usize>(matrix: [[f64; N]; M]) -> [[f64; M]; N] {
    let mut result = [[0.; M]; N];
    let mut at = 0;
    while at < M * N {
        result[at % N][at / N] = matrix[at / N][at % N];
        at += 1;
    }
    result
}

/// Rows of numbers that a matrix is multiplied with, and where the rows of the product go.
struct Strip<T> {
    /// Those that there are; the others are zeros.
    rows: Range<usize>,
    /// Where the first of them starts, and from one to the next.
    from: (usize, usize),
    /// Where the first of the product starts, and from one to the next.
    to: (usize, usize),
    /// Rows of the product that are wanted.
    wanted: usize,
    /// What is added to each number.
    start: T,
}

/// The product of a matrix with the strips, `len` wide, of examples and planes.
fn transform<T: Lanes, A: Matrix<M, N>, const M: usize, const N: usize>(
    _: A,
    count: [usize; 3],
    len: usize,
    from: &[T],
    to: &mut [T],
    strip: impl Fn([usize; 3]) -> Strip<T>,
) {
    dispatch(Transform::<T, _, A, M, N> { count, len, from, to, strip, matrix: PhantomData });
}

struct Transform<'a, T, F, A, const M: usize, const N: usize> {
    count: [usize; 3],
    len: usize,
    from: &'a [T],
    to: &'a mut [T],
    strip: F,
    matrix: PhantomData<A>,
}

impl<T: Lanes, F: Fn([usize; 3]) -> Strip<T>, A: Matrix<M, N>, const M: usize, const N: usize> WithSimd
    for Transform<'_, T, F, A, M, N>
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { count, len, from, to, strip, .. } = self;
        let lanes = T::lanes::<S>();
        let (zeros, mut unwanted) = (vec![T::ZERO; len], vec![T::ZERO; len]);
        for example in 0..count[0] {
            for plane in 0..count[1] {
                for i in 0..count[2] {
                    let Strip { rows: present, from: (first, step), to: (first_to, step_to), wanted, start } =
                        strip([example, plane, i]);
                    let mut rows = [zeros.as_ptr(); N];
                    for (row, n) in present.enumerate() {
                        rows[n] = from[first + row * step..][..len].as_ptr();
                    }
                    let mut results = [unwanted.as_mut_ptr(); M];
                    for (m, result) in results.iter_mut().take(wanted).enumerate() {
                        *result = to[first_to + m * step_to..][..len].as_mut_ptr();
                    }
                    let start = T::splat(simd, start);
                    for at in (0..len).step_by(lanes) {
                        let used = lanes.min(len - at);
                        // SAFETY: all rows are `len` long, of which `used` numbers are read and written.
                        unsafe {
                            let mut numbers = [T::splat(simd, T::ZERO); N];
                            for n in 0..N {
                                numbers[n] = match used == lanes {
                                    true => rows[n].add(at).cast::<T::Vector<S>>().read_unaligned(),
                                    false => T::load_first(simd, rows[n].add(at), used),
                                };
                            }
                            for m in 0..M {
                                let mut sum = start;
                                for n in 0..N {
                                    if A::NUMBERS[m][n] != 0. {
                                        let factor = T::splat(simd, T::of(A::NUMBERS[m][n]));
                                        sum = T::mul_add(simd, factor, numbers[n], sum);
                                    }
                                }
                                match used == lanes {
                                    true => results[m].add(at).cast::<T::Vector<S>>().write_unaligned(sum),
                                    false => T::store_first(simd, results[m].add(at), used, sum),
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A convolution in one group with a kernel of three rows, stride 1 and no dilation.
#[derive(Clone, Copy)]
pub(crate) struct Winograd {
    pub batch: usize,
    pub channels: usize,
    pub outputs: usize,
    /// Columns of the kernel.
    pub columns: usize,
    /// Zeros on either side: at most two rows, and fewer columns than the kernel has.
    pub padding: (usize, usize),
    /// (height, width)
    pub input: (usize, usize),
    pub output: (usize, usize),
}

impl Winograd {
    /// Whether it takes less time than all the products.
    pub fn pays(&self) -> bool {
        // Cycles for a vector's width of a strip: two products of vectors in each, and for each row that is transformed
        // two to read or write it and two for its sum.
        let Self { channels, outputs, columns, output, .. } = *self;
        let products = channels * columns * outputs;
        let strips = output.0.div_ceil(ROWS) * (POINTS * products / 2 + 4 * POINTS * (channels + outputs));
        strips < output.0 * TAPS * products / 2
    }

    /// Strips of one example.
    fn strips(&self) -> usize {
        self.output.0.div_ceil(ROWS)
    }

    /// From one row to the next, which share the zeros between them.
    fn pitch(&self) -> usize {
        self.input.1 + self.padding.1
    }

    /// How many examples are worked on at once, and how many strips of each: whole images if they are small. Rows laid end
    /// to end fill most of the vectors' width then, and what they are made into stays in the second-level cache.
    fn block(&self) -> (usize, usize) {
        const LEAST: usize = 144;
        let (strips, pitch) = (self.strips(), self.pitch());
        let parts = strips.div_ceil((2 * LEAST / pitch).max(1));
        (LEAST.div_ceil(strips * pitch).min(self.batch.max(1)), strips.div_ceil(parts))
    }

    /// How many examples make a chunk worth handing to a thread.
    fn examples_a_chunk(&self) -> usize {
        let products = self.output.0 * self.output.1 * self.outputs * TAPS * self.columns * self.channels;
        let (block, _) = self.block();
        ((1usize << 23) / (products * block)).max(1) * block
    }

    /// The result.
    pub fn forward<T: Lanes>(&self, xs: &[T], weight: &[T], bias: &[T]) -> Vec<T> {
        let at = |output, channel, row, column| {
            weight[((output * self.channels + channel) * TAPS + row) * self.columns + column]
        };
        self.convolve(xs, at, bias)
    }

    /// The gradient of the input.
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
        let at = |channel, output, row, column| {
            weight[((output * channels + channel) * TAPS + TAPS - 1 - row) * columns + columns - 1 - column]
        };
        turned.convolve(grad, at, &[])
    }

    /// The convolution with the weight that is given for an output, a channel, a row and a column of the kernel.
    fn convolve<T: Lanes>(
        &self,
        xs: &[T],
        weight: impl Fn(usize, usize, usize, usize) -> T + Sync,
        bias: &[T],
    ) -> Vec<T> {
        let Self { channels, outputs, columns, padding, input, output, .. } = *self;
        let (strips, pitch, (block, part)) = (self.strips(), self.pitch(), self.block());
        let (input_size, output_size) = (channels * input.0 * input.1, outputs * output.0 * output.1);
        let weights = self.kernels(weight);
        // What a channel has of each point: rows end to end.
        let len = block * part * pitch + padding.1;
        let point = channels * len + OVERREAD;
        let step = |tap: usize| (tap * outputs, tap / columns * len + tap % columns);
        let steps: Vec<_> = (0..channels * columns).map(step).collect();
        // Some strips of some examples.
        let convolve = |xs: &[T], some: Range<usize>, points: &mut [T], sums: &mut [T], ys: &mut [T]| {
            let examples = ys.len() / output_size;
            // Of each output and point; the last row needs no end.
            let used = (examples * some.len() - 1) * pitch + output.1;
            transform(
                ToPoints,
                [examples, channels, some.len()],
                input.1,
                xs,
                points,
                #[inline(always)]
                |[example, channel, i]| {
                    let strip = some.start + i;
                    // Rows above and below the image are zeros.
                    let above = padding.0.saturating_sub(strip * ROWS);
                    let first = strip * ROWS + above - padding.0;
                    let plane = (example * channels + channel) * input.0;
                    Strip {
                        rows: above..POINTS.min(above + input.0 - first),
                        from: ((plane + first) * input.1, input.1),
                        to: (channel * len + (example * some.len() + i) * pitch + padding.1, point),
                        wanted: POINTS,
                        start: T::ZERO,
                    }
                },
            );
            for i in 0..POINTS {
                OuterProducts {
                    rows: outputs,
                    terms: &steps,
                    runs: &[(0, 0, used)],
                    a: &weights[i * channels * columns * outputs..],
                    a_stride: 1,
                    b: &points[i * point..][..point],
                    b_padded: true,
                    c: (&mut sums[i * outputs * used..][..outputs * used]).into(),
                    c_stride: used,
                    bias: &[],
                    accumulate: false,
                }
                .run();
            }
            transform(
                ToResult,
                [examples, outputs, some.len()],
                output.1,
                sums,
                ys,
                #[inline(always)]
                |[example, plane, i]| {
                    let strip = some.start + i;
                    let first = (example * outputs + plane) * output.0 + strip * ROWS;
                    Strip {
                        rows: 0..POINTS,
                        from: (plane * used + (example * some.len() + i) * pitch, outputs * used),
                        to: (first * output.1, output.1),
                        wanted: ROWS.min(output.0 - strip * ROWS),
                        start: bias.get(plane).copied().unwrap_or(T::ZERO),
                    }
                },
            );
        };
        let chunk = self.examples_a_chunk();
        let work = |i: usize, ys: &mut [T]| {
            let mut points = vec![T::ZERO; POINTS * point];
            // SAFETY: `convolve` writes what it reads.
            let mut sums = unsafe { parallel::unwritten(POINTS * outputs * block * part * pitch) };
            let xs = xs[i * chunk * input_size..].chunks(block * input_size);
            for (xs, ys) in xs.zip(ys.chunks_mut(block * output_size)) {
                for first in (0..strips).step_by(part) {
                    convolve(xs, first..strips.min(first + part), &mut points, &mut sums, ys);
                }
            }
        };
        // SAFETY: the rows of all strips make up the result.
        unsafe { parallel::build(self.batch * output_size, chunk * output_size, work) }
    }

    /// For each point the weights, those of an output side by side: `G g`.
    fn kernels<T: Lanes>(&self, weight: impl Fn(usize, usize, usize, usize) -> T + Sync) -> Vec<T> {
        let Self { channels, outputs, columns, .. } = *self;
        let size = channels * columns * outputs;
        let mut kernels = vec![T::ZERO; POINTS * size];
        let shared = Shared::new(&mut kernels);
        parallel::for_each_chunk(channels, |channel| {
            for column in 0..columns {
                let first = (channel * columns + column) * outputs;
                // SAFETY: of each point, a channel's weights are written by one chunk alone.
                let mut to: [_; POINTS] = std::array::from_fn(|i| unsafe {
                    shared.slice(i * size + first..i * size + first + outputs)
                });
                for output in 0..outputs {
                    let taps: [T; TAPS] = std::array::from_fn(|row| weight(output, channel, row, column));
                    for (to, numbers) in to.iter_mut().zip(KERNEL) {
                        let terms = taps.iter().zip(numbers).map(|(&tap, number)| tap * T::of(number));
                        to[output] = terms.fold(T::ZERO, |sum, term| sum + term);
                    }
                }
            }
        });
        kernels
    }

    /// The gradient of the weight.
    pub fn weight_grad<T: Lanes>(&self, grad: &[T], xs: &[T]) -> Vec<T> {
        let Self { channels, outputs, columns, padding, input, output, .. } = *self;
        let (strips, (block, part)) = (self.strips(), self.block());
        let (input_size, output_size) = (channels * input.0 * input.1, outputs * output.0 * output.1);
        let pixels = ChannelsLast {
            channels,
            border: padding,
            rows: (strips - 1) * ROWS + POINTS,
            columns: output.1 + columns - 1,
        };
        let row = pixels.columns * channels;
        let (point, len) = (block * part * row + OVERREAD, block * part * output.1);
        let step = |at: usize| (at, at / output.1 * row + at % output.1 * channels);
        let steps: Vec<_> = (0..len).map(step).collect();
        // Of each output the weights that meet the same row: column after column, the channels of each side by side.
        let width = columns * channels;
        let size = outputs * width;
        let work = |i: usize, partial: &mut [T]| {
            let examples = i * block..self.batch.min((i + 1) * block);
            let (xs, grad) = (&xs[examples.start * input_size..], &grad[examples.start * output_size..]);
            let mut images = vec![pixels.zeros(); examples.len()];
            let mut points = vec![T::ZERO; POINTS * point];
            // SAFETY: of both, what is read is written first.
            let (mut grads, mut products) = unsafe {
                (parallel::unwritten::<T>(POINTS * outputs * len), parallel::unwritten::<T>(POINTS * size))
            };
            for (image, xs) in images.iter_mut().zip(xs.chunks_exact(input_size)) {
                pixels.fill(image, xs, input);
            }
            for some in (0..strips).step_by(part).map(|start| start..strips.min(start + part)) {
                for (example, image) in images.iter().enumerate() {
                    transform(
                        ToPoints,
                        [1, 1, some.len()],
                        row,
                        image,
                        &mut points,
                        #[inline(always)]
                        |[_, _, i]| Strip {
                            rows: 0..POINTS,
                            from: ((some.start + i) * ROWS * row, row),
                            to: ((example * some.len() + i) * row, point),
                            wanted: POINTS,
                            start: T::ZERO,
                        },
                    );
                }
                transform(
                    FromResult,
                    [images.len(), outputs, some.len()],
                    output.1,
                    grad,
                    &mut grads,
                    #[inline(always)]
                    |[example, plane, i]| {
                        let at = (some.start + i) * ROWS;
                        Strip {
                            rows: 0..ROWS.min(output.0 - at),
                            from: (((example * outputs + plane) * output.0 + at) * output.1, output.1),
                            to: (plane * len + (example * some.len() + i) * output.1, outputs * len),
                            wanted: POINTS,
                            start: T::ZERO,
                        }
                    },
                );
                for i in 0..POINTS {
                    OuterProducts {
                        rows: outputs,
                        terms: &steps[..images.len() * some.len() * output.1],
                        runs: &[(0, 0, width)],
                        a: &grads[i * outputs * len..][..outputs * len],
                        a_stride: len,
                        b: &points[i * point..][..point],
                        b_padded: true,
                        c: (&mut products[i * size..][..size]).into(),
                        c_stride: width,
                        bias: &[],
                        accumulate: some.start > 0,
                    }
                    .run();
                }
            }
            transform(
                FromKernel,
                [1, 1, outputs],
                width,
                &products,
                partial,
                #[inline(always)]
                |[_, _, output]| Strip {
                    rows: 0..POINTS,
                    from: (output * width, size),
                    to: (output * TAPS * width, width),
                    wanted: TAPS,
                    start: T::ZERO,
                },
            );
        };
        // SAFETY: the last of the transforms writes all of a partial sum.
        let partial = unsafe { parallel::build(self.batch.div_ceil(block) * TAPS * size, TAPS * size, work) };
        pixels.weight_grad(&partial, (TAPS * size, TAPS * width))
    }
}
