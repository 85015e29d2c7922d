//! What a convolution walks over.

use super::simd::{self, Lanes, Outer, SLACK};

/// Images with zeros around them, taken apart by the phases of a stride: what a tap of the kernel sees while the
/// kernel moves along a row is then consecutive, at `pitch` from one row to the next.
pub(super) struct Planes {
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
        self.channels * self.stride.0 * self.stride.1 * self.size() + SLACK
    }

    pub fn zeros<T: Lanes>(&self) -> Vec<T> {
        vec![T::ZERO; self.len()]
    }

    /// Puts the images of (height, width) `size` in; around them nothing is written.
    pub fn fill<T: Lanes>(&self, planes: &mut [T], images: &[T], channels: usize, size: (usize, usize)) {
        let Self { stride, border, .. } = *self;
        let images = images.chunks_exact(size.0 * size.1).take(channels);
        for (image, planes) in images.zip(planes.chunks_exact_mut(stride.0 * stride.1 * self.size())) {
            for (y, image) in image.chunks_exact(size.1).enumerate() {
                let (row, phase) = ((y + border.0) / stride.0, (y + border.0) % stride.0);
                if row >= self.rows {
                    break;
                }
                for phase_w in 0..stride.1 {
                    let plane = &mut planes[(phase * stride.1 + phase_w) * self.size() + row * self.pitch..];
                    let plane = &mut plane[..self.pitch];
                    let first = (phase_w + stride.1 - border.1 % stride.1) % stride.1;
                    let plane = &mut plane[((first + border.1) / stride.1).min(self.pitch)..];
                    match stride.1 {
                        1 => {
                            let len = plane.len().min(image.len());
                            plane[..len].copy_from_slice(&image[..len]);
                        }
                        _ => {
                            let image = image.iter().skip(first).step_by(stride.1);
                            plane.iter_mut().zip(image).for_each(|(to, &x)| *to = x);
                        }
                    }
                }
            }
        }
    }
}

/// An image with zeros around it, the channels of each place side by side: what a row of the kernel sees is consecutive.
pub(super) struct Pixels {
    pub channels: usize,
    /// Zeros above and to the left.
    pub border: (usize, usize),
    pub rows: usize,
    pub columns: usize,
}

impl Pixels {
    pub fn zeros<T: Lanes>(&self) -> Vec<T> {
        vec![T::ZERO; self.rows * self.columns * self.channels + SLACK]
    }

    /// Puts the image of (height, width) `size` in; around it nothing is written.
    pub fn fill<T: Lanes>(&self, pixels: &mut [T], image: &[T], (height, width): (usize, usize)) {
        let Self { channels, border, .. } = *self;
        let used = width.min(self.columns.saturating_sub(border.1));
        for y in 0..height.min(self.rows.saturating_sub(border.0)) {
            let row = &mut pixels[((y + border.0) * self.columns + border.1) * channels..][..used * channels];
            for channel in 0..channels {
                let image = &image[(channel * height + y) * width..][..used];
                row[channel..].iter_mut().step_by(channels).zip(image).for_each(|(to, &x)| *to = x);
            }
        }
    }
}

/// A product of a matrix with what the taps of a kernel see at rows of `columns` positions.
pub(super) struct Sweep {
    columns: usize,
    /// Of the planes that are read.
    pitch: usize,
    /// For each term of the sum, where its weight and what it is multiplied with lie: see `Outer`.
    steps: Vec<(usize, usize)>,
    onto: Onto,
    /// What is computed in one go: rows of results, or, in `scratch`, all from the first to the last with what lies
    /// between the rows too.
    runs: Vec<(usize, usize, usize)>,
    /// Numbers of a plane in between, 0 if none is needed.
    pub scratch: usize,
}

/// Where the results of a sweep go: result (y, x) of plane p to `first + p * plane + y * row + x * column`.
#[derive(Clone, Copy)]
pub(super) struct Onto {
    pub first: usize,
    pub row: usize,
    pub column: usize,
    pub plane: usize,
}

impl Sweep {
    pub fn new<T: Lanes>(
        (rows, columns): (usize, usize),
        pitch: usize,
        steps: Vec<(usize, usize)>,
        onto: Onto,
    ) -> Self {
        // Cycles: two products of vectors in each, and some ten to move a row.
        let lanes = simd::lanes::<T>();
        let together = (rows - 1) * pitch + columns;
        let by_row = rows * columns.div_ceil(lanes) * steps.len() / 2;
        let at_once = together.div_ceil(lanes) * steps.len() / 2 + 10 * rows;
        let (runs, scratch) = match onto.column == 1 && by_row <= at_once {
            true => ((0..rows).map(|y| (y * pitch, onto.first + y * onto.row, columns)).collect(), 0),
            false => (vec![(0, 0, together)], together),
        };
        Self { columns, pitch, steps, onto, runs, scratch }
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
        Outer {
            rows: outputs,
            steps: &self.steps,
            runs: &self.runs,
            a: weight.0,
            a_row: weight.1,
            b: planes,
            b_slack: true,
            c: if direct { &mut *results } else { &mut *scratch },
            c_row: if direct { self.onto.plane } else { self.scratch },
            start,
            onto: false,
        }
        .run();
        if direct {
            return;
        }
        let Onto { first, row, column, plane } = self.onto;
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
