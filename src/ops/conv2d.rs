//! Two-dimensional convolution.

use super::gemm::{Matrix, gemm};
use super::host::{self, Real, with_real};
use super::linear::{bias_or_none, check_bias};
use super::parallel;
use super::reference;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use std::ops::Range;

/// How the kernel of a convolution moves over its input: (height, width) of each, and into how many groups the
/// channels are split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dGeometry {
    pub stride: (usize, usize),
    /// Zeros on either side.
    pub padding: (usize, usize),
    pub dilation: (usize, usize),
    pub groups: usize,
}

impl Default for Conv2dGeometry {
    fn default() -> Self {
        Self { stride: (1, 1), padding: (0, 0), dilation: (1, 1), groups: 1 }
    }
}

/// The cross-correlation of `xs` (batch, in, height, width) with `weight` (out, in / groups, kernel height, kernel
/// width), plus `bias` (out): PyTorch's `conv2d`.
///
/// An error if the channels do not match the weight and the groups, or the kernel does not fit the padded input.
pub fn conv2d(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: Conv2dGeometry,
) -> Result<Tensor> {
    let Conv2dGeometry { stride, padding, dilation, groups } = geometry;
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
    if !xs.device().is_cpu() {
        return reference::conv2d(xs, weight, bias, geometry);
    }
    let conv = Conv2d {
        geometry,
        batch,
        channels: group_channels,
        outputs: outputs / groups,
        kernel,
        input: (height, width),
        output: ((padded.0 - reach.0) / stride.0 + 1, (padded.1 - reach.1) / stride.1 + 1),
    };
    let bias = bias_or_none(bias, xs)?;
    xs.contiguous()?.apply_op3(&weight.contiguous()?, &bias, conv)
}

#[derive(Clone, Copy)]
struct Conv2d {
    geometry: Conv2dGeometry,
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

impl CustomOp3 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = (self.batch, self.geometry.groups * self.outputs, self.output.0, self.output.1);
        with_real!(self.name(), host::dtype(xs), T => {
            let (xs, weight) = (host::slice::<T>(xs, xs_layout)?, host::slice::<T>(weight, weight_layout)?);
            Ok(host::output(self.forward(xs, weight, host::slice(bias, bias_layout)?), shape))
        })
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        with_real!(self.name(), xs.dtype(), T => host::read::<T, _>(&grad, |grad| {
            let tensor = |data: Vec<T>, like: &Tensor| Tensor::from_vec(data, like.shape(), like.device()).map(Some);
            let xs_grad = match xs.track_op() {
                true => host::read(weight, |weight| tensor(self.input_grad(grad, weight), xs))?,
                false => None,
            };
            let weight_grad = match weight.track_op() {
                true => host::read(xs, |xs| tensor(self.weight_grad(grad, xs), weight))?,
                false => None,
            };
            let bias_grad = match bias.track_op() {
                true => tensor(self.bias_grad(grad), bias)?,
                false => None,
            };
            Ok((xs_grad, weight_grad, bias_grad))
        }))
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

    /// Weights of one output: the rows of the matrix of windows.
    fn taps(&self) -> usize {
        self.channels * self.kernel.0 * self.kernel.1
    }

    fn forward<T: Real>(&self, xs: &[T], weight: &[T], bias: &[T]) -> Vec<T> {
        let (positions, taps, outputs) = (self.positions(), self.taps(), self.outputs);
        let mut ys = vec![T::ZERO; self.batch * self.geometry.groups * outputs * positions];
        parallel::for_each_piece(&mut ys, outputs * positions, |i, ys| {
            let group = i % self.geometry.groups;
            if !bias.is_empty() {
                for (ys, &bias) in ys.chunks_exact_mut(positions).zip(&bias[group * outputs..]) {
                    ys.fill(bias);
                }
            }
            let mut columns = vec![T::ZERO; taps * positions];
            self.gather(&xs[i * self.input_size()..][..self.input_size()], &mut columns);
            let weight = Matrix::new(&weight[group * outputs * taps..], taps);
            let columns = Matrix::new(&columns, positions);
            gemm((outputs, positions, taps), weight, columns, ys, positions, !bias.is_empty());
        });
        ys
    }

    fn input_grad<T: Real>(&self, grad: &[T], weight: &[T]) -> Vec<T> {
        let (positions, taps, outputs) = (self.positions(), self.taps(), self.outputs);
        let mut xs_grad = vec![T::ZERO; self.batch * self.geometry.groups * self.input_size()];
        parallel::for_each_piece(&mut xs_grad, self.input_size(), |i, xs_grad| {
            let group = i % self.geometry.groups;
            let mut columns = vec![T::ZERO; taps * positions];
            let weight = Matrix::new(&weight[group * outputs * taps..], taps).transposed();
            let grad = Matrix::new(&grad[i * outputs * positions..], positions);
            gemm((taps, positions, outputs), weight, grad, &mut columns, positions, false);
            self.scatter(&columns, xs_grad);
        });
        xs_grad
    }

    fn weight_grad<T: Real>(&self, grad: &[T], xs: &[T]) -> Vec<T> {
        const CHUNKS: usize = 16;
        let (positions, taps, outputs) = (self.positions(), self.taps(), self.outputs);
        let groups = self.geometry.groups;
        let size = groups * outputs * taps;
        let chunk = self.batch.div_ceil(CHUNKS).max(1);
        let mut partial = vec![T::ZERO; self.batch.div_ceil(chunk) * size];
        parallel::for_each_piece(&mut partial, size, |i, partial| {
            let mut columns = vec![T::ZERO; taps * positions];
            for example in i * chunk..self.batch.min((i + 1) * chunk) {
                for group in 0..groups {
                    let at = example * groups + group;
                    self.gather(&xs[at * self.input_size()..][..self.input_size()], &mut columns);
                    let grad = Matrix::new(&grad[at * outputs * positions..], positions);
                    let columns = Matrix::new(&columns, positions).transposed();
                    let into = &mut partial[group * outputs * taps..][..outputs * taps];
                    gemm((outputs, taps, positions), grad, columns, into, taps, true);
                }
            }
        });
        sum_rows(partial, size)
    }

    fn bias_grad<T: Real>(&self, grad: &[T]) -> Vec<T> {
        let outputs = self.geometry.groups * self.outputs;
        let mut sums = vec![T::ZERO; self.batch * outputs];
        let positions = self.positions();
        let chunk = (1usize << 14).div_ceil(positions);
        parallel::for_each_piece(&mut sums, chunk, |i, sums| {
            for (sum, grad) in sums.iter_mut().zip(grad[i * chunk * positions..].chunks_exact(positions)) {
                *sum = grad.iter().fold(T::ZERO, |sum, &g| sum + g);
            }
        });
        sum_rows(sums, outputs)
    }

    /// The windows of one example and group as the columns of a matrix (taps, positions).
    fn gather<T: Real>(&self, xs: &[T], columns: &mut [T]) {
        let stride = self.geometry.stride.1;
        for (tap, row) in columns.chunks_exact_mut(self.positions()).enumerate() {
            for (y, row) in row.chunks_exact_mut(self.output.1).enumerate() {
                let Some((start, inside)) = self.line(tap, y) else {
                    row.fill(T::ZERO);
                    continue;
                };
                row[..inside.start].fill(T::ZERO);
                row[inside.end..].fill(T::ZERO);
                let row = &mut row[inside];
                match stride {
                    1 => row.copy_from_slice(&xs[start..start + row.len()]),
                    _ => row.iter_mut().zip(xs[start..].iter().step_by(stride)).for_each(|(to, &x)| *to = x),
                }
            }
        }
    }

    /// Adds the columns of a matrix (taps, positions) to where `gather` takes them from.
    fn scatter<T: Real>(&self, columns: &[T], xs: &mut [T]) {
        let stride = self.geometry.stride.1;
        for (tap, row) in columns.chunks_exact(self.positions()).enumerate() {
            for (y, row) in row.chunks_exact(self.output.1).enumerate() {
                let Some((start, inside)) = self.line(tap, y) else { continue };
                let row = &row[inside];
                match stride {
                    1 => xs[start..].iter_mut().zip(row).for_each(|(x, &from)| *x += from),
                    _ => xs[start..].iter_mut().step_by(stride).zip(row).for_each(|(x, &from)| *x += from),
                }
            }
        }
    }

    /// For one row of positions: which of them see the input, not the padding, with this tap, and where the first of
    /// those reads it. None if none does.
    fn line(&self, tap: usize, y: usize) -> Option<(usize, Range<usize>)> {
        let Conv2dGeometry { stride, padding, dilation, .. } = self.geometry;
        let (tap, column) = (tap / self.kernel.1, tap % self.kernel.1 * dilation.1);
        let (channel, row) = (tap / self.kernel.0, tap % self.kernel.0 * dilation.0);
        let row = (y * stride.0 + row).checked_sub(padding.0).filter(|&row| row < self.input.0)?;
        let first = padding.1.saturating_sub(column).div_ceil(stride.1);
        let end = (self.input.1 + padding.1).saturating_sub(column).div_ceil(stride.1).min(self.output.1);
        let start = (channel * self.input.0 + row) * self.input.1
            + (first * stride.1 + column).checked_sub(padding.1)?;
        (first < end).then_some((start, first..end))
    }
}

/// The sum of rows of `size` elements, in order.
fn sum_rows<T: Real>(mut rows: Vec<T>, size: usize) -> Vec<T> {
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
