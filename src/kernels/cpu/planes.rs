//! Padded layouts of images for convolution, and the product that slides over them.

use super::memory::{self, write_copy};
use super::parallel;
use super::products::{LEAST_ROWS, OVERREAD, OuterProducts, Span};
use super::simd::{self, Lanes, vectorised};
use std::borrow::Cow;
use std::mem::MaybeUninit;

/// Images with a zero border, split by the phases of a stride.
///
/// Phase (r, s) of a channel holds rows r, r + stride, ... and columns s, s + stride, ... of these. The elements under
/// a tap of the kernel, while the kernel moves along a row, are then consecutive; rows are `pitch` elements apart.
pub(crate) struct Planes {
    pub channels: usize,
    pub stride: (usize, usize),
    /// Zeros above and to the left.
    pub border: (usize, usize),
    /// Rows of a phase.
    pub rows: usize,
    /// Row stride of a phase.
    pub pitch: usize,
}

impl Planes {
    /// Elements of a phase.
    pub fn size(&self) -> usize {
        self.rows * self.pitch
    }

    /// Elements of all phases of all channels, and the overread of the last one.
    pub fn len(&self) -> usize {
        self.channels * self.stride.0 * self.stride.1 * self.size() + OVERREAD
    }

    /// A buffer of zeros.
    pub fn zeros<T: Lanes>(&self) -> Vec<T> {
        vec![T::ZERO; self.len()]
    }

    /// Copies `channels` images of (height, width) `size` into the planes, and does not touch the border.
    pub fn fill<T: Lanes>(&self, planes: &mut [T], images: &[T], channels: usize, size: (usize, usize)) {
        vectorised(
            #[inline(always)]
            || self.copy(planes, images, channels, size),
        );
    }

    #[inline(always)]
    fn copy<T: Lanes>(&self, planes: &mut [T], images: &[T], channels: usize, size: (usize, usize)) {
        let Self { stride, border, .. } = *self;
        // Per phase of the columns: its first column in the image, and the place of that column in a row of the plane.
        let columns = (0..stride.1).map(|phase| {
            let first = (phase + stride.1 - border.1 % stride.1) % stride.1;
            (first, ((first + border.1) / stride.1).min(self.pitch))
        });
        let columns: Vec<_> = columns.collect();
        let images = images.chunks_exact(size.0 * size.1).take(channels);
        for (image, planes) in images.zip(planes.chunks_exact_mut(stride.0 * stride.1 * self.size())) {
            let (mut row, mut phase) = (border.0 / stride.0, border.0 % stride.0);
            for image in image.chunks_exact(size.1) {
                if row >= self.rows {
                    break;
                }
                for (phase_w, &(first, start)) in columns.iter().enumerate() {
                    let plane = &mut planes[(phase * stride.1 + phase_w) * self.size() + row * self.pitch..];
                    copy_strided(&mut plane[start..self.pitch], image.get(first..).unwrap_or(&[]), stride.1);
                }
                phase += 1;
                if phase == stride.0 {
                    (row, phase) = (row + 1, 0);
                }
            }
        }
    }
}

/// Copies every `stride`-th element of `from` to `to`, up to the end of either.
#[inline(always)]
fn copy_strided<T: Lanes>(to: &mut [T], from: &[T], stride: usize) {
    match stride {
        1 => {
            let len = to.len().min(from.len());
            to[..len].copy_from_slice(&from[..len]);
        }
        2 => {
            // The compiler vectorises loops over pairs of known length.
            let (pairs, last) = from.as_chunks::<2>();
            let (to, rest) = to.split_at_mut(pairs.len().min(to.len()));
            let pairs = &pairs[..to.len()];
            let ((to, to_rest), (pairs, pairs_rest)) = (to.as_chunks_mut::<4>(), pairs.as_chunks::<4>());
            for (to, pairs) in to.iter_mut().zip(pairs) {
                *to = pairs.map(|pair| pair[0]);
            }
            to_rest.iter_mut().zip(pairs_rest).for_each(|(to, pair)| *to = pair[0]);
            rest.iter_mut().zip(last).for_each(|(to, &x)| *to = x);
        }
        _ => to.iter_mut().zip(from.iter().step_by(stride)).for_each(|(to, &x)| *to = x),
    }
}

/// An image with a zero border and its channels last.
///
/// The elements under a row of the kernel are consecutive.
pub(crate) struct ChannelsLast {
    pub channels: usize,
    /// Zeros above and to the left.
    pub border: (usize, usize),
    pub rows: usize,
    pub columns: usize,
}

impl ChannelsLast {
    /// A buffer of zeros.
    pub fn zeros<T: Lanes>(&self) -> Vec<T> {
        vec![T::ZERO; self.rows * self.columns * self.channels + OVERREAD]
    }

    /// Copies an image of (height, width) `size` into the pixels, and does not touch the border.
    pub fn fill<T: Lanes>(&self, pixels: &mut [T], image: &[T], size: (usize, usize)) {
        vectorised(
            #[inline(always)]
            || self.transpose(pixels, image, size),
        );
    }

    #[inline(always)]
    fn transpose<T: Lanes>(&self, pixels: &mut [T], image: &[T], (height, width): (usize, usize)) {
        let Self { channels, border, .. } = *self;
        let used = width.min(self.columns.saturating_sub(border.1));
        for y in 0..height.min(self.rows.saturating_sub(border.0)) {
            let row = &mut pixels[((y + border.0) * self.columns + border.1) * channels..][..used * channels];
            let image = |channel: usize| &image[(channel * height + y) * width..][..used];
            simd::transpose(image, [channels, used], channels, |at, elements| {
                row[at..at + elements.len()].copy_from_slice(elements)
            });
        }
    }

    /// Adds up partial weight gradients of `size` elements each, in order, and puts their channels first.
    ///
    /// An output channel has `taps` weights, with the input channels last in the parts and first in the sum.
    pub fn sum_weight_grads<T: Lanes>(&self, parts: &[T], (size, taps): (usize, usize)) -> Vec<T> {
        let channels = self.channels;
        let mut weight_grad = vec![T::ZERO; size];
        parallel::for_each_piece(&mut weight_grad, taps, |output, weight_grad| {
            let mut sum = vec![T::ZERO; taps];
            for part in parts.chunks_exact(size) {
                let part = &part[output * taps..][..taps];
                sum.iter_mut().zip(part).for_each(|(sum, &x)| *sum += x);
            }
            for (channel, weight_grad) in weight_grad.chunks_exact_mut(taps / channels).enumerate() {
                let sum = sum[channel..].iter().step_by(channels);
                weight_grad.iter_mut().zip(sum).for_each(|(to, &x)| *to = x);
            }
        });
        weight_grad
    }
}

/// Images cut into patches that do not overlap; remainders at the right and the bottom are dropped.
///
/// The patches follow one another, each in the order of its image: channels, rows, columns.
pub(crate) struct Patches {
    pub channels: usize,
    /// Height and width of a patch, of the image, and in patches.
    pub size: (usize, usize),
    pub input: (usize, usize),
    pub count: (usize, usize),
}

impl Patches {
    /// Elements of the patches of an image.
    fn len(&self) -> usize {
        self.channels * self.size.0 * self.size.1 * self.count.0 * self.count.1
    }

    /// Cuts images into patches.
    pub fn cut<'a, T: Lanes>(&self, images: &'a [T]) -> Cow<'a, [T]> {
        if self.size == self.input {
            return Cow::Borrowed(images);
        }
        let image = self.channels * self.input.0 * self.input.1;
        let cut = |i: usize, patches: &mut [MaybeUninit<T>]| {
            let image = &images[i * image..][..image];
            for (row, at) in patches.chunks_exact_mut(self.size.1).zip(self.rows()) {
                write_copy(row, &image[at..at + self.size.1]);
            }
        };
        // SAFETY: the patches consist of these rows.
        Cow::Owned(unsafe { memory::build(images.len() / image * self.len(), self.len(), cut) })
    }

    /// Reassembles images from patches, with zeros for uncovered pixels.
    pub fn join<T: Lanes>(&self, patches: Vec<T>) -> Vec<T> {
        if self.size == self.input {
            return patches;
        }
        let image = self.channels * self.input.0 * self.input.1;
        let mut images = vec![T::ZERO; patches.len() / self.len() * image];
        parallel::for_each_piece(&mut images, image, |i, image| {
            let patches = &patches[i * self.len()..][..self.len()];
            for (row, at) in patches.chunks_exact(self.size.1).zip(self.rows()) {
                image[at..at + self.size.1].copy_from_slice(row);
            }
        });
        images
    }

    /// The offset in the image of each row of each patch.
    fn rows(&self) -> impl Iterator<Item = usize> {
        let Self { channels, size, input, count } = *self;
        let patches = (0..count.0).flat_map(move |y| (0..count.1).map(move |x| (y, x)));
        patches.flat_map(move |(y, x)| {
            let rows = (0..channels).flat_map(move |channel| (0..size.0).map(move |row| (channel, row)));
            rows.map(move |(channel, row)| (channel * input.0 + y * size.0 + row) * input.1 + x * size.1)
        })
    }
}

/// The product of a weight matrix with the windows under a kernel, at rows of `columns` positions.
pub(crate) struct SlidingProduct {
    columns: usize,
    /// Offsets of each term's weight and of the element it meets: see [`OuterProducts`].
    terms: Vec<(usize, usize)>,
    layout: OutputLayout,
    /// The rows of results; with `scratch` perhaps one run from the first row to the last, with the gaps between them.
    runs: Vec<Span>,
    /// Elements of a channel's intermediate result; 0 if the product writes the output directly.
    pub scratch: usize,
    /// Row stride of the intermediate result.
    scratch_row: usize,
}

/// The layout of the results.
///
/// Element (y, x) of plane p is at `first + p * plane + y * row + x * column`.
#[derive(Clone, Copy)]
pub(crate) struct OutputLayout {
    pub first: usize,
    pub row: usize,
    pub column: usize,
    pub plane: usize,
}

impl SlidingProduct {
    /// The product for `outputs` rows of weights.
    pub fn new<T: Lanes>(
        outputs: usize,
        (rows, columns): (usize, usize),
        pitch: usize,
        terms: Vec<(usize, usize)>,
        layout: OutputLayout,
    ) -> Self {
        let rows_to =
            |first: usize, row: usize| (0..rows).map(move |y| (y * pitch, first + y * row, columns));
        // Count cycles, at two multiply-adds of a register in each, and about ten to move a row. This may depend on the
        // width of a register: each element adds its terms in the same order either way.
        let lanes = simd::lanes::<T>();
        let together = (rows - 1) * pitch + columns;
        let by_row = rows * columns.div_ceil(lanes) * terms.len() / 2;
        let at_once = together.div_ceil(lanes) * terms.len() / 2 + 10 * rows;
        // The copy of the windows for many outputs leaves out the gaps between rows.
        let is_copied = outputs >= LEAST_ROWS;
        let is_direct =
            layout.column == 1 && if is_copied { layout.row == columns } else { by_row <= at_once };
        let (runs, scratch, scratch_row) = match (is_direct, is_copied) {
            (true, _) => (rows_to(layout.first, layout.row).collect(), 0, 0),
            (false, true) => (rows_to(0, columns).collect(), rows * columns, columns),
            (false, false) => (vec![(0, 0, together)], together, pitch),
        };
        Self { columns, terms, layout, runs, scratch, scratch_row }
    }

    /// Writes the results for a weight matrix of `outputs` rows, `weight.1` elements apart.
    pub fn run<T: Lanes>(
        &self,
        outputs: usize,
        weight: (&[T], usize),
        planes: &[T],
        bias: &[T],
        scratch: &mut [T],
        results: &mut [MaybeUninit<T>],
    ) {
        let direct = self.scratch == 0;
        OuterProducts {
            rows: outputs,
            terms: &self.terms,
            runs: &self.runs,
            a: weight.0,
            a_stride: weight.1,
            b: planes,
            b_padded: true,
            c: if direct { (&mut *results).into() } else { (&mut *scratch).into() },
            c_stride: if direct { self.layout.plane } else { self.scratch },
            bias,
            accumulate: false,
        }
        .run();
        if direct {
            return;
        }
        let OutputLayout { first, row, column, plane } = self.layout;
        for (output, scratch) in scratch.chunks_exact(self.scratch).take(outputs).enumerate() {
            for (y, scratch) in scratch.chunks(self.scratch_row).enumerate() {
                let results = &mut results[first + output * plane + y * row..];
                match column {
                    1 => _ = write_copy(&mut results[..self.columns], &scratch[..self.columns]),
                    _ => {
                        let results = results.iter_mut().step_by(column);
                        results.zip(&scratch[..self.columns]).for_each(|(to, &x)| _ = to.write(x));
                    }
                }
            }
        }
    }
}
