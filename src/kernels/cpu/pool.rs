//! Pooling over the windows of each channel.

use super::memory::{build, write_copy, write_fill};
use super::planes::Planes;
use super::simd::{sum, vectorised};
use super::{Lanes, Real};
use std::mem::MaybeUninit;
use std::ops::Range;

/// The reduction of a window.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reduction {
    Max,
    /// The mean, in which the padding counts as zeros.
    Average,
    /// The root of the sum of squares.
    L2,
}

/// The windows of a channel; each size is (height, width).
#[derive(Clone, Copy)]
pub(crate) struct Windows {
    pub kernel: (usize, usize),
    pub stride: (usize, usize),
    pub padding: (usize, usize),
    pub input: (usize, usize),
    pub output: (usize, usize),
}

impl Windows {
    /// Returns `None` if a size is invalid or overflows.
    ///
    /// A kernel, stride or input size must not be 0, the padding must be at most half the kernel, and the kernel must
    /// fit the padded input.
    pub(crate) fn new(
        kernel: (usize, usize),
        stride: (usize, usize),
        padding: (usize, usize),
        input: (usize, usize),
    ) -> Option<Self> {
        let along = |kernel: usize, stride: usize, padding: usize, input: usize| {
            if kernel == 0 || input == 0 || padding > kernel / 2 {
                return None;
            }
            let room = input.checked_add(padding.checked_mul(2)?)?.checked_sub(kernel)?;
            room.checked_div(stride)?.checked_add(1)
        };
        let height = along(kernel.0, stride.0, padding.0, input.0)?;
        let width = along(kernel.1, stride.1, padding.1, input.1)?;
        // The sizes of a channel must not overflow either.
        let _ = (input.0.checked_mul(input.1)?, height.checked_mul(width)?);
        Some(Self { kernel, stride, padding, input, output: (height, width) })
    }

    pub(crate) fn output(&self) -> (usize, usize) {
        self.output
    }

    fn input_size(&self) -> usize {
        self.input.0 * self.input.1
    }

    fn output_size(&self) -> usize {
        self.output.0 * self.output.1
    }

    /// The share of an element in the mean of its window, which includes the padding.
    fn share<T: Real>(&self) -> T {
        T::ONE / T::of(self.kernel.0 as f64 * self.kernel.1 as f64)
    }

    /// Channels per task.
    fn chunk(&self) -> usize {
        let reads = self.output_size().saturating_mul(self.kernel.0.saturating_mul(self.kernel.1));
        (1usize << 14).div_ceil(self.input_size().max(reads).max(1))
    }

    /// The rows and columns of the input that the window at `y`, `x` covers.
    #[inline(always)]
    fn window_at(&self, y: usize, x: usize) -> (Range<usize>, Range<usize>) {
        let Self { kernel, stride, padding, .. } = self;
        let range = |at: usize, stride: usize, kernel: usize, padding: usize, size: usize| {
            (at * stride).saturating_sub(padding)..(at * stride + kernel - padding).min(size)
        };
        (
            range(y, stride.0, kernel.0, padding.0, self.input.0),
            range(x, stride.1, kernel.1, padding.1, self.input.1),
        )
    }

    /// Calls `f(output, input)` with the index of each output and of each input in its window.
    #[inline(always)]
    fn for_each_pair(&self, mut f: impl FnMut(usize, usize)) {
        for y in 0..self.output.0 {
            for x in 0..self.output.1 {
                let (rows, columns) = self.window_at(y, x);
                for row in rows {
                    for column in columns.clone() {
                        f(y * self.output.1 + x, row * self.input.1 + column);
                    }
                }
            }
        }
    }

    /// Whether a single window covers exactly the channel.
    fn is_whole(&self) -> bool {
        self.kernel == self.input && self.padding == (0, 0)
    }

    /// Whether the windows are adjacent squares of 2 by 2.
    fn is_square_2(&self) -> bool {
        (self.kernel, self.stride, self.padding) == ((2, 2), (2, 2), (0, 0))
    }

    /// The maximum of each window of one channel.
    #[inline(always)]
    fn max<T: Lanes>(&self, xs: &[T], ys: &mut [MaybeUninit<T>], maxima: &mut Maxima<T>) {
        if self.is_square_2() {
            return self.max_square_2(xs, ys);
        }
        maxima.find::<false>(self, xs);
        let rows = maxima.values.chunks(maxima.planes.pitch);
        for (ys, row) in ys.chunks_exact_mut(self.output.1).zip(rows) {
            write_copy(ys, &row[..self.output.1]);
        }
    }

    #[inline(always)]
    fn max_square_2<T: Real>(&self, xs: &[T], ys: &mut [MaybeUninit<T>]) {
        let width = self.input.1;
        for (rows, ys) in xs.chunks_exact(2 * width).zip(ys.chunks_exact_mut(self.output.1)) {
            let (top, bottom) = rows.split_at(width);
            let windows = top.as_chunks().0.iter().zip(bottom.as_chunks().0);
            for ((&[a, b], &[c, d]), y) in windows.zip(ys) {
                y.write(greater(greater(a, b), greater(c, d)));
            }
        }
    }

    /// Computes the gradient of one channel: the gradient of each window goes to its maximum.
    #[inline(always)]
    fn max_grad<T: Lanes>(
        &self,
        xs: &[T],
        grad: &[T],
        xs_grad: &mut [MaybeUninit<T>],
        maxima: &mut Maxima<T>,
    ) {
        if self.is_square_2() {
            return self.max_square_2_grad(xs, grad, xs_grad, &mut maxima.places[..self.output.1]);
        }
        let (xs_grad, width) = (write_fill(xs_grad, T::ZERO), self.input.1);
        maxima.find::<true>(self, xs);
        let rows = maxima.places.chunks_mut(maxima.planes.pitch);
        for (y, (grad, places)) in grad.chunks_exact(self.output.1).zip(rows).enumerate() {
            let (row, first_row) = self.starts(y, self.stride.0, self.padding.0);
            for (x, place) in places[..self.output.1].iter_mut().enumerate() {
                let (column, first_column) = self.starts(x, self.stride.1, self.padding.1);
                let start = row.wrapping_mul(width).wrapping_add(column) as u32;
                // Nothing exceeds the first place of a window of minus infinities, which may lie in the padding.
                let first = (first_row * width + first_column) as u32;
                *place = if *place == 0 { first } else { start.wrapping_add(*place) };
            }
            for (&grad, &place) in grad.iter().zip(&*places) {
                xs_grad[place as usize] += grad;
            }
        }
    }

    #[inline(always)]
    fn max_square_2_grad<T: Real>(
        &self,
        xs: &[T],
        grad: &[T],
        xs_grad: &mut [MaybeUninit<T>],
        places: &mut [u32],
    ) {
        let width = self.input.1;
        // The last row and column of an odd size belong to no window.
        if self.input.0 % 2 + width % 2 > 0 {
            write_fill(xs_grad, T::ZERO);
        }
        let rows = xs.chunks_exact(2 * width).zip(xs_grad.chunks_exact_mut(2 * width));
        for ((rows, grad_rows), grad) in rows.zip(grad.chunks_exact(self.output.1)) {
            let ((top, bottom), (grad_top, grad_bottom)) =
                (rows.split_at(width), grad_rows.split_at_mut(width));
            let windows = top.as_chunks().0.iter().zip(bottom.as_chunks().0);
            for ((&[a, b], &[c, d]), place) in windows.zip(&mut *places) {
                let top = if exceeds(b, a) { (b, 1) } else { (a, 0) };
                let bottom = if exceeds(d, c) { (d, 3) } else { (c, 2) };
                *place = if exceeds(bottom.0, top.0) { bottom.1 } else { top.1 };
            }
            let grads = grad_top.as_chunks_mut().0.iter_mut().zip(grad_bottom.as_chunks_mut().0);
            for ((&g, &place), (grad_top, grad_bottom)) in grad.iter().zip(&*places).zip(grads) {
                let at = |here: u32| MaybeUninit::new(if place == here { g } else { T::ZERO });
                *grad_top = [at(0), at(1)];
                *grad_bottom = [at(2), at(3)];
            }
        }
    }

    /// Where window `at` starts, which wraps around in the padding, and where the input in it starts.
    #[inline(always)]
    fn starts(&self, at: usize, stride: usize, padding: usize) -> (usize, usize) {
        ((at * stride).wrapping_sub(padding), (at * stride).saturating_sub(padding))
    }
}

/// The maxima of the windows of a channel: those of each row of a window first, then those of its rows.
///
/// The channel lies in planes, by phase of the stride, so that the elements under a tap of all windows are consecutive. A
/// few long loops then take as many steps as a window has rows and columns. The row stride of all results is the planes'.
struct Maxima<T> {
    planes: Planes,
    image: Vec<T>,
    /// The maxima along the rows of windows that start at each element, and their columns in the window.
    ///
    /// They are ordered by the phase of the rows.
    across: Vec<T>,
    columns: Vec<u32>,
    /// The maximum of each window: of equal ones the first, or the last NaN.
    values: Vec<T>,
    /// The distance in the input from the start of the window to its maximum.
    places: Vec<u32>,
    zeros: Vec<u32>,
}

impl<T: Lanes> Maxima<T> {
    /// Needs no memory if `reduction` does not use it.
    fn new(reduction: Reduction, windows: &Windows) -> Self {
        let Windows { kernel, stride, padding, output, .. } = *windows;
        let rows = output.0 + (kernel.0 - 1) / stride.0;
        let pitch = output.1 + (kernel.1 - 1) / stride.1;
        let planes = Planes { channels: 1, stride, border: padding, rows, pitch };
        let is_used = reduction == Reduction::Max && !windows.is_square_2();
        let size = |size| if is_used { size } else { 0 };
        let (plane, outputs) = (size(planes.size()), size(output.0 * pitch));
        Self {
            image: vec![T::of(f64::NEG_INFINITY); size(planes.len())],
            across: vec![T::ZERO; plane * stride.0],
            columns: vec![0; plane * stride.0],
            values: vec![T::ZERO; outputs],
            places: vec![0; output.0 * pitch],
            zeros: vec![0; plane],
            planes,
        }
    }

    /// Finds the maxima of the windows of the channel `xs`, and their places if `PLACES`.
    #[inline(always)]
    fn find<const PLACES: bool>(&mut self, windows: &Windows, xs: &[T]) {
        let Windows { kernel, stride, output, input, .. } = *windows;
        let (size, pitch) = (self.planes.size(), self.planes.pitch);
        self.planes.fill(&mut self.image, xs, 1, input);
        let len = size - (kernel.1 - 1) / stride.1;
        for phase in 0..stride.0.min(kernel.0) {
            let at = phase * size..phase * size + len;
            let mut best = (&mut self.across[at.clone()], &mut self.columns[at]);
            for tap in 0..kernel.1 {
                let at = (phase * stride.1 + tap % stride.1) * size + tap / stride.1;
                let from = (&self.image[at..at + len], &self.zeros[..len]);
                take_greater::<T, PLACES>(&mut best, from, tap as u32, tap == 0);
            }
        }
        let len = (output.0 - 1) * pitch + output.1;
        let mut best = (&mut self.values[..len], &mut self.places[..len]);
        for row in 0..kernel.0 {
            let at = row % stride.0 * size + row / stride.0 * pitch;
            let from = (&self.across[at..at + len], &self.columns[at..at + len]);
            take_greater::<T, PLACES>(&mut best, from, (row * input.1) as u32, row == 0);
        }
    }
}

/// Replaces each of the `best` values that one of `from` exceeds, or all of them.
///
/// With `PLACES`, also replaces their places, to which `offset` is added.
#[inline(always)]
fn take_greater<T: Real, const PLACES: bool>(
    best: &mut (&mut [T], &mut [u32]),
    from: (&[T], &[u32]),
    offset: u32,
    all: bool,
) {
    if all {
        best.0.copy_from_slice(from.0);
        if PLACES {
            best.1.iter_mut().zip(from.1).for_each(|(to, &place)| *to = place + offset);
        }
        return;
    }
    if !PLACES {
        return best.0.iter_mut().zip(from.0).for_each(|(max, &x)| *max = greater(*max, x));
    }
    let best = best.0.iter_mut().zip(best.1.iter_mut());
    for ((max, to), (&x, &place)) in best.zip(from.0.iter().zip(from.1)) {
        let takes = exceeds(x, *max);
        *max = if takes { x } else { *max };
        *to = if takes { place + offset } else { *to };
    }
}

/// The pooled channels of `xs`, which holds `channels` of them.
pub(crate) fn forward<T: Lanes>(
    reduction: Reduction,
    windows: &Windows,
    xs: &[T],
    channels: usize,
) -> Vec<T> {
    let (inputs, outputs, chunk) = (windows.input_size(), windows.output_size(), windows.chunk());
    assert_eq!(xs.len(), channels * inputs);
    let work = |i: usize, ys: &mut [MaybeUninit<T>]| {
        vectorised(
            #[inline(always)]
            || {
                let mut maxima = Maxima::new(reduction, windows);
                let xs = xs[i * chunk * inputs..].chunks_exact(inputs);
                for (xs, ys) in xs.zip(ys.chunks_exact_mut(outputs)) {
                    channel_forward(reduction, windows, xs, ys, &mut maxima);
                }
            },
        );
    };
    // SAFETY: a piece is some whole channels with an input each, and `channel_forward` writes all of a channel.
    unsafe { build(channels * outputs, chunk * outputs, work) }
}

/// The gradient of `xs`, for the outputs `ys` and their gradient `grad`.
pub(crate) fn backward<T: Lanes>(
    reduction: Reduction,
    windows: &Windows,
    xs: &[T],
    ys: &[T],
    grad: &[T],
) -> Vec<T> {
    let (inputs, outputs, chunk) = (windows.input_size(), windows.output_size(), windows.chunk());
    let channels = xs.len() / inputs;
    assert!(xs.len() == channels * inputs && [ys.len(), grad.len()] == [channels * outputs; 2]);
    let work = |i: usize, xs_grad: &mut [MaybeUninit<T>]| {
        vectorised(
            #[inline(always)]
            || {
                let mut maxima = Maxima::new(reduction, windows);
                let (xs, from) = (xs[i * chunk * inputs..].chunks_exact(inputs), i * chunk * outputs);
                let outputs = ys[from..].chunks_exact(outputs).zip(grad[from..].chunks_exact(outputs));
                for ((xs, (ys, grad)), xs_grad) in xs.zip(outputs).zip(xs_grad.chunks_exact_mut(inputs)) {
                    channel_backward(reduction, windows, xs, (ys, grad), xs_grad, &mut maxima);
                }
            },
        );
    };
    // SAFETY: a piece is some whole channels with their operands, and `channel_backward` writes all of a channel.
    unsafe { build(xs.len(), chunk * inputs, work) }
}

/// Writes all outputs of one channel.
#[inline(always)]
fn channel_forward<T: Lanes>(
    reduction: Reduction,
    windows: &Windows,
    xs: &[T],
    ys: &mut [MaybeUninit<T>],
    maxima: &mut Maxima<T>,
) {
    match reduction {
        Reduction::Max => windows.max(xs, ys, maxima),
        Reduction::Average if windows.is_whole() => {
            _ = write_fill(ys, sum(xs) * windows.share());
        }
        Reduction::Average => {
            let (ys, scale) = (write_fill(ys, T::ZERO), windows.share());
            windows.for_each_pair(|output, input| ys[output] += xs[input]);
            ys.iter_mut().for_each(|y| *y *= scale);
        }
        Reduction::L2 => {
            let ys = write_fill(ys, T::ZERO);
            windows.for_each_pair(|output, input| ys[output] += xs[input] * xs[input]);
            ys.iter_mut().for_each(|y| *y = y.sqrt());
        }
    }
}

/// Writes the whole input gradient of one channel.
#[inline(always)]
fn channel_backward<T: Lanes>(
    reduction: Reduction,
    windows: &Windows,
    xs: &[T],
    (ys, grad): (&[T], &[T]),
    xs_grad: &mut [MaybeUninit<T>],
    maxima: &mut Maxima<T>,
) {
    match reduction {
        Reduction::Max => windows.max_grad(xs, grad, xs_grad, maxima),
        Reduction::Average if windows.is_whole() => {
            _ = write_fill(xs_grad, grad[0] * windows.share());
        }
        Reduction::Average => {
            let (xs_grad, scale) = (write_fill(xs_grad, T::ZERO), windows.share());
            windows.for_each_pair(|output, input| xs_grad[input] += grad[output] * scale);
        }
        Reduction::L2 => {
            let xs_grad = write_fill(xs_grad, T::ZERO);
            windows.for_each_pair(|output, input| {
                // True for NaN, which must reach the gradient.
                if ys[output] != T::ZERO {
                    xs_grad[input] += grad[output] * xs[input] / ys[output];
                }
            });
        }
    }
}

/// Whether `x` replaces the maximum found so far. A NaN always does, and no number replaces a NaN.
#[inline(always)]
fn exceeds<T: Real>(x: T, max: T) -> bool {
    (x > max) | x.is_nan()
}

#[inline(always)]
fn greater<T: Real>(a: T, b: T) -> T {
    if exceeds(b, a) { b } else { a }
}
