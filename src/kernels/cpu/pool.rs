//! Pooling over the windows of each channel.

use super::Real;
use super::memory::{build, write_copy, write_fill};
use super::simd::{sum, vectorised};
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
    fn max<T: Real>(&self, xs: &[T], ys: &mut [MaybeUninit<T>], maxima: &mut Maxima<T>) {
        if self.is_square_2() {
            return self.max_square_2(xs, ys);
        }
        for (y, ys) in ys.chunks_exact_mut(self.output.1).enumerate() {
            maxima.find(self, xs, y);
            write_copy(ys, &maxima.values);
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
    fn max_grad<T: Real>(
        &self,
        xs: &[T],
        grad: &[T],
        xs_grad: &mut [MaybeUninit<T>],
        maxima: &mut Maxima<T>,
    ) {
        if self.is_square_2() {
            return self.max_square_2_grad(xs, grad, xs_grad);
        }
        let xs_grad = write_fill(xs_grad, T::ZERO);
        for (y, grad) in grad.chunks_exact(self.output.1).enumerate() {
            maxima.find(self, xs, y);
            let places = maxima.rows.iter().zip(&maxima.taps).enumerate();
            for (&grad, (x, (&row, &tap))) in grad.iter().zip(places) {
                let column = x * self.stride.1 + tap as usize - self.padding.1;
                xs_grad[row as usize * self.input.1 + column] += grad;
            }
        }
    }

    #[inline(always)]
    fn max_square_2_grad<T: Real>(&self, xs: &[T], grad: &[T], xs_grad: &mut [MaybeUninit<T>]) {
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
            let grads = grad_top.as_chunks_mut().0.iter_mut().zip(grad_bottom.as_chunks_mut().0);
            for (((&[a, b], &[c, d]), &g), (grad_top, grad_bottom)) in windows.zip(grad).zip(grads) {
                let (right, lower_right) = (exceeds(b, a), exceeds(d, c));
                let lower = exceeds(if lower_right { d } else { c }, if right { b } else { a });
                let only = |here: bool| MaybeUninit::new(if here { g } else { T::ZERO });
                *grad_top = [only(!lower & !right), only(!lower & right)];
                *grad_bottom = [only(lower & !lower_right), only(lower & lower_right)];
            }
        }
    }
}

/// The maxima of a row of windows.
///
/// First come the maxima of each column of the input, then of the columns of each window. Neighbouring windows, side by
/// side in vectors, thus take one step per row and column of a window.
struct Maxima<T> {
    /// The maximum of each column over the rows of the windows, including padding, and its row.
    line: Vec<T>,
    line_rows: Vec<u32>,
    /// Both by phase of the stride, so that the same element of neighbouring windows is adjacent.
    phases: Vec<T>,
    phases_rows: Vec<u32>,
    /// The maximum of each window: the first of equal ones, or the last NaN.
    values: Vec<T>,
    /// The row of the input and the column of the window that hold the maximum.
    rows: Vec<u32>,
    taps: Vec<u32>,
}

impl<T: Real> Maxima<T> {
    /// Allocates no memory if `reduction` of the windows does not use it.
    fn new(reduction: Reduction, windows: &Windows) -> Self {
        let is_used = reduction == Reduction::Max && !windows.is_square_2();
        let size = |size| if is_used { size } else { 0 };
        let stride = windows.stride.1;
        let length = size(windows.input.1 + 2 * windows.padding.1);
        // Padding is not an element: it has no row, and loses even against minus infinity.
        let line = vec![T::of(f64::NEG_INFINITY); length];
        let line_rows = vec![u32::MAX; length];
        let phases = if stride == 1 { 0 } else { length.next_multiple_of(stride) };
        let outputs = size(windows.output.1);
        Self {
            line,
            line_rows,
            phases: vec![T::ZERO; phases],
            phases_rows: vec![0; phases],
            values: vec![T::ZERO; outputs],
            rows: vec![0; outputs],
            taps: vec![0; outputs],
        }
    }

    /// Finds the maxima of row `y` of the windows of the channel `xs`.
    #[inline(always)]
    fn find(&mut self, windows: &Windows, xs: &[T], y: usize) {
        let (width, stride) = (windows.input.1, windows.stride.1);
        let inside = windows.padding.1..windows.padding.1 + width;
        let (line, line_rows) = (&mut self.line[inside.clone()], &mut self.line_rows[inside]);
        let mut rows = windows.window_at(y, 0).0;
        if let Some(row) = rows.next() {
            line.copy_from_slice(&xs[row * width..][..width]);
            line_rows.fill(row as u32);
        }
        for row in rows {
            for ((max, at), &x) in line.iter_mut().zip(&mut *line_rows).zip(&xs[row * width..][..width]) {
                let takes = exceeds(x, *max);
                *max = if takes { x } else { *max };
                *at = if takes { row as u32 } else { *at };
            }
        }
        let (line, line_rows, pitch) = match stride {
            1 => (&self.line, &self.line_rows, 0),
            _ => {
                let pitch = self.phases.len() / stride;
                for (i, (&x, &row)) in self.line.iter().zip(&self.line_rows).enumerate() {
                    let at = i % stride * pitch + i / stride;
                    (self.phases[at], self.phases_rows[at]) = (x, row);
                }
                (&self.phases, &self.phases_rows, pitch)
            }
        };
        for tap in 0..windows.kernel.1 {
            let at = tap % stride * pitch + tap / stride;
            let (xs, rows) = (&line[at..][..self.values.len()], &line_rows[at..][..self.values.len()]);
            if tap == 0 {
                self.values.copy_from_slice(xs);
                self.rows.copy_from_slice(rows);
                self.taps.fill(0);
                continue;
            }
            let best = self.values.iter_mut().zip(&mut self.rows).zip(&mut self.taps);
            for (((max, max_row), max_tap), (&x, &row)) in best.zip(xs.iter().zip(rows)) {
                let takes = (x > *max)
                    | ((x == *max) & (row < *max_row))
                    | (x.is_nan() & (!max.is_nan() | (row >= *max_row)));
                *max = if takes { x } else { *max };
                *max_row = if takes { row } else { *max_row };
                *max_tap = if takes { tap as u32 } else { *max_tap };
            }
        }
    }
}

/// The pooled channels of `xs`, which holds `channels` of them.
pub(crate) fn forward<T: Real>(reduction: Reduction, windows: &Windows, xs: &[T], channels: usize) -> Vec<T> {
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
pub(crate) fn backward<T: Real>(
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
fn channel_forward<T: Real>(
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
fn channel_backward<T: Real>(
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
