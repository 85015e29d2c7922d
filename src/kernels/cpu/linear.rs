//! The fully connected layer, `ys = xs * weight^T + bias`, and its gradients.
//!
//! `xs` is `(rows, inputs)`, `weight` `(outputs, inputs)`, `bias` `(outputs)` or empty, `ys` `(rows, outputs)`.

use super::matmul::{Init, Panels, gemm, gemm_by_columns, gemm_transposed};
use super::memory::{self, write_copy};
use super::parallel;
use super::products::{DotProducts, OuterProducts};
use super::simd::{self, Lanes, vectorised};
use std::borrow::Cow;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Sizes of a linear layer.
#[derive(Clone, Copy)]
pub(crate) struct Dims {
    pub rows: usize,
    pub inputs: usize,
    pub outputs: usize,
}

impl Dims {
    /// Whether the forward pass packs the weight.
    ///
    /// It does if there are enough rows to make up for the copy, and enough outputs to fill a register.
    fn packs(self) -> bool {
        self.rows >= if self.is_large() { 48 } else { 128 } && self.outputs >= 8
    }

    /// Whether the gradients pack their operands.
    ///
    /// Unpacked operands are read by columns, which in a large matrix compete for the same cache lines.
    fn gradients_pack(self) -> bool {
        self.rows >= if self.is_large() { 24 } else { 128 } && self.inputs >= 8
    }

    /// Whether products read the weight only once. Some columns of all rows must then stay in the second-level cache.
    fn streams(self) -> bool {
        self.is_large() && self.rows <= 1024
    }

    /// Whether the weight does not stay in the second-level cache.
    fn is_large(self) -> bool {
        self.inputs.saturating_mul(self.outputs) >= 1 << 20
    }
}

/// Returns the number of rows per task for a product that costs `flops_per_row`.
fn rows_per_task(flops_per_row: usize) -> usize {
    (1usize << 20).div_ceil(flops_per_row.max(1)).next_multiple_of(8)
}

/// Returns `ys`.
pub(crate) fn forward<T: Lanes>(xs: &[T], weight: &[T], bias: &[T], dims: Dims) -> Vec<T> {
    let Dims { rows, inputs, outputs } = dims;
    if inputs == 0 {
        return if bias.is_empty() { vec![T::ZERO; rows * outputs] } else { bias.repeat(rows) };
    }
    if dims.packs() && dims.streams() {
        let pack = |depths: Range<usize>, columns: Range<usize>| {
            let column = |j: usize| &weight[(columns.start + j) * inputs + depths.start..];
            Panels::transposed((depths.len(), columns.len()), column)
        };
        return gemm_by_columns(xs, pack, [rows, inputs, outputs], bias);
    }
    if dims.packs() {
        return PackedWeight::new(weight, [inputs, outputs]).product(xs, bias);
    }
    dot_products(xs, weight, bias, dims)
}

/// Returns `xs * weight^T + bias` without packing the weight.
fn dot_products<T: Lanes>(xs: &[T], weight: &[T], bias: &[T], dims: Dims) -> Vec<T> {
    let Dims { rows, inputs, outputs } = dims;
    let step = rows_per_task(2 * inputs * outputs);
    let offsets: Vec<usize> = (0..outputs).map(|output| output * inputs).collect();
    let write = |i: usize, ys: &mut [MaybeUninit<T>]| {
        DotProducts {
            rows: ys.len() / outputs,
            segments: 1,
            len: inputs,
            a: &xs[i * step * inputs..],
            a_stride: inputs,
            a_segment_stride: 0,
            b: weight,
            b_offsets: &offsets,
            b_segment_stride: 0,
            c: ys.into(),
            c_stride: outputs,
            bias,
        }
        .run();
    };
    // SAFETY: `DotProducts` writes every element.
    unsafe { memory::build(rows * outputs, step * outputs, write) }
}

/// The weight of a layer with at least one input and output, packed for products with many rows.
pub(crate) struct PackedWeight<T> {
    panels: Panels<T>,
    inputs: usize,
    outputs: usize,
}

impl<T: Lanes> PackedWeight<T> {
    pub fn new(weight: &[T], [inputs, outputs]: [usize; 2]) -> Self {
        let panels = Panels::transposed((inputs, outputs), |output| &weight[output * inputs..]);
        Self { panels, inputs, outputs }
    }

    /// Returns `ys`.
    pub fn product(&self, xs: &[T], bias: &[T]) -> Vec<T> {
        let &Self { ref panels, inputs, outputs } = self;
        let init = if bias.is_empty() { Init::Zero } else { Init::Bias(bias) };
        let mut ys = memory::uninit(xs.len() / inputs * outputs);
        gemm((xs, inputs), panels, &mut ys, outputs, init);
        // SAFETY: `gemm` writes every element.
        unsafe { memory::assume_init(ys) }
    }
}

/// Returns the gradient of `xs`, `grad * weight`.
pub(crate) fn input_grad<T: Lanes>(grad: &[T], weight: &[T], dims: Dims) -> Vec<T> {
    let Dims { rows, inputs, outputs } = dims;
    if outputs == 0 {
        return vec![T::ZERO; rows * inputs];
    }
    if rows >= 128 && inputs < 8 {
        // A register would hold few columns, so sum along the rows instead.
        let transposed = transposed(weight, [outputs, inputs]);
        return dot_products(grad, &transposed, &[], Dims { rows, inputs: outputs, outputs: inputs });
    }
    if dims.gradients_pack() && dims.streams() {
        let pack = |depths: Range<usize>, columns: Range<usize>| {
            let row = |k: usize| &weight[(depths.start + k) * inputs + columns.start..];
            Panels::new((depths.len(), columns.len()), row)
        };
        return gemm_by_columns(grad, pack, [rows, outputs, inputs], &[]);
    }
    if dims.gradients_pack() {
        let panels = Panels::new((outputs, inputs), |output| &weight[output * inputs..]);
        let mut xs_grad = memory::uninit(rows * inputs);
        gemm((grad, outputs), &panels, &mut xs_grad, inputs, Init::Zero);
        // SAFETY: `gemm` writes every element.
        return unsafe { memory::assume_init(xs_grad) };
    }
    let step = rows_per_task(2 * inputs * outputs);
    let terms: Vec<(usize, usize)> = (0..outputs).map(|output| (output, output * inputs)).collect();
    let write = |i: usize, xs_grad: &mut [MaybeUninit<T>]| {
        OuterProducts {
            rows: xs_grad.len() / inputs,
            terms: &terms,
            runs: &[(0, 0, inputs)],
            a: &grad[i * step * outputs..],
            a_stride: outputs,
            b: weight,
            b_padded: false,
            c: xs_grad.into(),
            c_stride: inputs,
            bias: &[],
            accumulate: false,
        }
        .run();
    };
    // SAFETY: `OuterProducts` writes every element.
    unsafe { memory::build(rows * inputs, step * inputs, write) }
}

/// Returns the gradient of `weight`, `grad^T * xs`.
pub(crate) fn weight_grad<T: Lanes>(grad: &[T], xs: &[T], dims: Dims) -> Vec<T> {
    let Dims { rows, inputs, outputs } = dims;
    if inputs * outputs == 0 {
        return vec![];
    }
    if rows >= 1024 && inputs * outputs <= 1 << 12 {
        return long_weight_grad(grad, xs, dims);
    }
    if dims.gradients_pack() {
        let right = |row: usize| &xs[row * inputs..];
        let [product] = gemm_transposed((grad, outputs), [(&right, inputs)], (rows, outputs));
        return product;
    }
    let step = rows_per_task(2 * inputs * rows);
    let terms: Vec<(usize, usize)> = (0..rows).map(|row| (row * outputs, row * inputs)).collect();
    let write = |i: usize, weight_grad: &mut [MaybeUninit<T>]| {
        OuterProducts {
            rows: weight_grad.len() / inputs,
            terms: &terms,
            runs: &[(0, 0, inputs)],
            a: grad.get(i * step..).unwrap_or(&[]),
            a_stride: 1,
            b: xs,
            b_padded: false,
            c: weight_grad.into(),
            c_stride: inputs,
            bias: &[],
            accumulate: false,
        }
        .run();
    };
    // SAFETY: `OuterProducts` writes every element.
    unsafe { memory::build(outputs * inputs, step * inputs, write) }
}

/// Computes the gradient of a small weight from many rows as a sum over pieces of the rows.
///
/// Each piece is a task.
fn long_weight_grad<T: Lanes>(grad: &[T], xs: &[T], dims: Dims) -> Vec<T> {
    const PIECE: usize = 512;
    let Dims { rows, inputs, outputs } = dims;
    // The longer side fills the registers.
    let (a, height, b, width) = match inputs >= outputs {
        true => (grad, outputs, xs, inputs),
        false => (xs, inputs, grad, outputs),
    };
    let size = height * width;
    let write = |i: usize, sums: &mut [MaybeUninit<T>]| {
        let rows = i * PIECE..rows.min((i + 1) * PIECE);
        let terms: Vec<_> = rows.map(|row| (row * height, row * width)).collect();
        OuterProducts {
            rows: height,
            terms: &terms,
            runs: &[(0, 0, width)],
            a,
            a_stride: 1,
            b,
            b_padded: false,
            c: sums.into(),
            c_stride: width,
            bias: &[],
            accumulate: false,
        }
        .run();
    };
    // SAFETY: `OuterProducts` writes every element.
    let sums = unsafe { memory::build(rows.div_ceil(PIECE) * size, size, write) };
    let sum = sum_rows(sums, size);
    if inputs >= outputs { sum } else { transposed(&sum, [inputs, outputs]).into_owned() }
}

/// Returns the transposes of consecutive matrices of `rows` and `columns`.
pub(crate) fn transposed<T: Lanes>(matrices: &[T], [rows, columns]: [usize; 2]) -> Cow<'_, [T]> {
    if rows == 1 || columns == 1 {
        return Cow::Borrowed(matrices);
    }
    let size = rows * columns;
    let write = |i: usize, to: &mut [MaybeUninit<T>]| {
        let from = &matrices[i * size..][..size];
        let put = |at: usize, elements: &[T]| _ = write_copy(&mut to[at..at + elements.len()], elements);
        simd::transpose(|row| &from[row * columns..], [rows, columns], rows, put);
    };
    // SAFETY: every element of each matrix is put.
    Cow::Owned(unsafe { memory::build(matrices.len(), size, write) })
}

/// Returns the column sums of the first `columns` columns of a matrix whose rows have `row` elements.
pub(crate) fn column_sums<T: Lanes>(rows: &[T], row: usize, columns: usize) -> Vec<T> {
    const PIECE: usize = 128;
    if row == columns && row <= PIECE {
        return short_column_sums(rows, columns);
    }
    let mut sums = vec![T::ZERO; columns];
    parallel::for_each_piece(&mut sums, PIECE, |i, sums| {
        let at = i * PIECE..i * PIECE + sums.len();
        vectorised(
            #[inline(always)]
            || {
                for row in rows.chunks_exact(row) {
                    sums.iter_mut().zip(&row[at.clone()]).for_each(|(sum, &x)| *sum += x);
                }
            },
        );
    });
    sums
}

/// Sums the columns of a matrix with short rows.
///
/// A task adds the rows of a piece of the matrix, some of them side by side.
fn short_column_sums<T: Lanes>(rows: &[T], columns: usize) -> Vec<T> {
    /// Elements of a piece, at least.
    const PIECE: usize = 1 << 14;
    if columns == 0 {
        return vec![];
    }
    let side_by_side = 64usize.div_ceil(columns) * columns;
    let piece = PIECE.next_multiple_of(side_by_side);
    let mut sums = vec![T::ZERO; rows.len().div_ceil(piece) * side_by_side];
    parallel::for_each_piece(&mut sums, side_by_side, |i, sums| {
        vectorised(
            #[inline(always)]
            || {
                let rows = &rows[i * piece..rows.len().min((i + 1) * piece)];
                for rows in rows.chunks(side_by_side) {
                    sums.iter_mut().zip(rows).for_each(|(sum, &x)| *sum += x);
                }
            },
        );
    });
    sum_rows(sums, columns)
}

/// The sum of rows of `size` elements, in order.
pub(crate) fn sum_rows<T: Lanes>(mut rows: Vec<T>, size: usize) -> Vec<T> {
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
