//! What a convolution walks over.

use super::parallel;
use super::simd::{self, Lanes, OVERREAD, OuterProducts};

/// Images with zeros around them, taken apart by the phases of a stride: what a tap of the kernel sees while the
/// kernel moves along a row is then consecutive, at `pitch` from one row to the next.
pub(crate) struct Planes {
    pub channels: usize,
    pub stride: (usize, usize),
    /// Zeros above and to the left.
    pub border: (usize, usize),
    /// Of one phase.
    pub rows: usize,
    pub pitch: usize,
}

impl Planes {
    pub fn size(&self) -> usize {
        self.rows * self.pitch
    }

    pub fn len(&self) -> usize {
        self.channels * self.stride.0 * self.stride.1 * self.size() + OVERREAD
    }

    pub fn zeros<T: Lanes>(&self) -> Vec<T> {
        vec![T::ZERO; self.len()]
    }

    /// Puts the images of (height, width) `size` in; around them nothing is written.
    pub fn fill<T: Lanes>(&self, planes: &mut [T], images: &[T], channels: usize, size: (usize, usize)) {
        simd::vectorised(
            #[inline(always)]
            || self.lay_out(planes, images, channels, size),
        );
    }

    #[inline(always)]
    fn lay_out<T: Lanes>(&self, planes: &mut [T], images: &[T], channels: usize, size: (usize, usize)) {
        let Self { stride, border, .. } = *self;
        // Of each phase of the columns, the first that is in the image, and where it goes.
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
                    let plane = &mut plane[start..self.pitch];
                    let image = image.get(first..).unwrap_or(&[]);
                    match stride.1 {
                        1 => {
                            let len = plane.len().min(image.len());
                            plane[..len].copy_from_slice(&image[..len]);
                        }
                        2 => {
                            // A loop over pairs becomes vector instructions.
                            let (pairs, last) = image.as_chunks::<2>();
                            let (to, rest) = plane.split_at_mut(pairs.len().min(plane.len()));
                            to.iter_mut().zip(pairs).for_each(|(to, pair)| *to = pair[0]);
                            rest.iter_mut().zip(last).for_each(|(to, &x)| *to = x);
                        }
                        _ => {
                            plane.iter_mut().zip(image.iter().step_by(stride.1)).for_each(|(to, &x)| *to = x)
                        }
                    }
                }
                phase += 1;
                if phase == stride.0 {
                    (row, phase) = (row + 1, 0);
                }
            }
        }
    }
}

/// An image with zeros around it, the channels of each place side by side: what a row of the kernel sees is consecutive.
pub(crate) struct ChannelsLast {
    pub channels: usize,
    /// Zeros above and to the left.
    pub border: (usize, usize),
    pub rows: usize,
    pub columns: usize,
}

impl ChannelsLast {
    pub fn zeros<T: Lanes>(&self) -> Vec<T> {
        vec![T::ZERO; self.rows * self.columns * self.channels + OVERREAD]
    }

    /// Puts the image of (height, width) `size` in; around it nothing is written.
    pub fn fill<T: Lanes>(&self, pixels: &mut [T], image: &[T], size: (usize, usize)) {
        simd::vectorised(
            #[inline(always)]
            || self.lay_out(pixels, image, size),
        );
    }

    #[inline(always)]
    fn lay_out<T: Lanes>(&self, pixels: &mut [T], image: &[T], (height, width): (usize, usize)) {
        let Self { channels, border, .. } = *self;
        let used = width.min(self.columns.saturating_sub(border.1));
        for y in 0..height.min(self.rows.saturating_sub(border.0)) {
            let row = &mut pixels[((y + border.0) * self.columns + border.1) * channels..][..used * channels];
            let image = |channel: usize| &image[(channel * height + y) * width..][..used];
            let (fours, pieces) = (channels / 4 * 4, used / 4);
            for channel in (0..fours).step_by(4) {
                let images = [0, 1, 2, 3].map(|i| image(channel + i).as_chunks::<4>().0);
                for (piece, row) in row.chunks_exact_mut(4 * channels).enumerate() {
                    let columns = T::transpose(images.map(|image| &image[piece]));
                    for (i, column) in columns.iter().enumerate() {
                        row[i * channels + channel..][..4].copy_from_slice(column);
                    }
                }
            }
            for channel in 0..channels {
                let done = if channel < fours { pieces * 4 } else { 0 };
                let to = row[done * channels..].iter_mut().skip(channel).step_by(channels);
                to.zip(&image(channel)[done..]).for_each(|(to, &x)| *to = x);
            }
        }
    }

    /// The sum of the parts of a weight's gradient, `size` numbers each, in order: of each output `taps` of them, which have
    /// their channels last as the pixels have, and in the sum first.
    pub fn weight_grad<T: Lanes>(&self, parts: &[T], (size, taps): (usize, usize)) -> Vec<T> {
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

/// A product of a matrix with what the taps of a kernel see at rows of `columns` positions.
pub(crate) struct SlidingProduct {
    columns: usize,
    /// Of the planes that are read.
    pitch: usize,
    /// For each term of the sum, where its weight and what it is multiplied with lie: see `OuterProducts`.
    steps: Vec<(usize, usize)>,
    layout: OutputLayout,
    /// What is computed in one go: rows of results, or, in `scratch`, all from the first to the last with what lies
    /// between the rows too.
    runs: Vec<(usize, usize, usize)>,
    /// Numbers of a plane in between, 0 if none is needed.
    pub scratch: usize,
}

/// Where the results of a sweep go: result (y, x) of plane p to `first + p * plane + y * row + x * column`.
#[derive(Clone, Copy)]
pub(crate) struct OutputLayout {
    pub first: usize,
    pub row: usize,
    pub column: usize,
    pub plane: usize,
}

impl SlidingProduct {
    pub fn new<T: Lanes>(
        (rows, columns): (usize, usize),
        pitch: usize,
        steps: Vec<(usize, usize)>,
        layout: OutputLayout,
    ) -> Self {
        // Cycles: two products of vectors in each, and some ten to move a row.
        let lanes = simd::lanes::<T>();
        let together = (rows - 1) * pitch + columns;
        let by_row = rows * columns.div_ceil(lanes) * steps.len() / 2;
        let at_once = together.div_ceil(lanes) * steps.len() / 2 + 10 * rows;
        let (runs, scratch) = match layout.column == 1 && by_row <= at_once {
            true => ((0..rows).map(|y| (y * pitch, layout.first + y * layout.row, columns)).collect(), 0),
            false => (vec![(0, 0, together)], together),
        };
        Self { columns, pitch, steps, layout, runs, scratch }
    }

    /// The products of the matrix whose rows lie at `weight.1` from each other.
    pub fn run<T: Lanes>(
        &self,
        outputs: usize,
        weight: (&[T], usize),
        planes: &[T],
        start: &[T],
        scratch: &mut [T],
        results: &mut [T],
    ) {
        let direct = self.scratch == 0;
        OuterProducts {
            rows: outputs,
            terms: &self.steps,
            runs: &self.runs,
            a: weight.0,
            a_stride: weight.1,
            b: planes,
            b_padded: true,
            c: if direct { &mut *results } else { &mut *scratch }.into(),
            c_stride: if direct { self.layout.plane } else { self.scratch },
            bias: start,
            accumulate: false,
        }
        .run();
        if direct {
            return;
        }
        let OutputLayout { first, row, column, plane } = self.layout;
        for (output, scratch) in scratch.chunks_exact(self.scratch).take(outputs).enumerate() {
            for (y, scratch) in scratch.chunks(self.pitch).enumerate() {
                let results = &mut results[first + output * plane + y * row..];
                match column {
                    1 => results[..self.columns].copy_from_slice(&scratch[..self.columns]),
                    _ => {
                        let results = results.iter_mut().step_by(column);
                        results.zip(&scratch[..self.columns]).for_each(|(to, &x)| *to = x);
                    }
                }
            }
        }
    }
}
