//! Two-dimensional convolution.

use super::autograd::{self, Operation, gradients};
use super::host::{self, with_real};
use super::linear::check_bias;
use super::reference;
use crate::kernels::cpu::conv2d::Conv2d;
use candle_core::{CpuStorage, Result, Shape, Tensor, bail};

/// Stride, padding, dilation and groups of a two-dimensional convolution; pairs are (height, width).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dConfig {
    /// Distance between neighbouring positions of the kernel.
    pub stride: (usize, usize),
    /// Zeros on either side of the input.
    pub padding: (usize, usize),
    /// Distance between neighbouring taps of the kernel.
    pub dilation: (usize, usize),
    /// Number of groups of channels that are convolved separately.
    pub groups: usize,
}

impl Default for Conv2dConfig {
    /// Stride 1, no padding, dilation 1, one group.
    fn default() -> Self {
        Self { stride: (1, 1), padding: (0, 0), dilation: (1, 1), groups: 1 }
    }
}

/// Two-dimensional cross-correlation, as PyTorch's `conv2d`.
///
/// `xs` `(batch, in, height, width)` with `weight` `(out, in / groups, kernel height, kernel width)` and `bias` `(out)`
/// gives `(batch, out, output height, output width)`, where an output size is
/// `(size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1`, rounded down.
///
/// # Errors
/// When the channels do not match the weight and the groups, the kernel does not fit the padded input, or sizes are too
/// large for memory.
pub fn conv2d(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, config: Conv2dConfig) -> Result<Tensor> {
    let conv = check(xs, weight, bias, config)?;
    if !xs.device().is_cpu() {
        return reference::conv2d(xs, weight, bias, config);
    }
    let args = [Some(xs), Some(weight), bias].into_iter().flatten().map(Tensor::contiguous);
    autograd::apply(conv, args.collect::<Result<_>>()?)
}

/// Checks the shapes and returns the sizes of the convolution.
pub(super) fn check(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: Conv2dConfig,
) -> Result<Conv2d> {
    let Conv2dConfig { stride, padding, dilation, groups } = config;
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
    let positive = [stride.0, stride.1, dilation.0, dilation.1, groups, height, width];
    if positive.contains(&0) || weight.elem_count() == 0 {
        let (xs, weight) = (xs.dims(), weight.dims());
        bail!(
            "conv2d: found an input of shape {xs:?}, a weight of shape {weight:?}, stride {stride:?}, dilation \
             {dilation:?} and {groups} groups, expected sizes of 1 or more"
        );
    }
    let group_outputs = outputs / groups;
    if Some(channels) != group_channels.checked_mul(groups) || outputs != group_outputs * groups {
        bail!(
            "conv2d: found {channels} input channels and {outputs} output channels in {groups} groups, expected \
             {group_channels} input channels per group and a multiple of {groups} output channels"
        );
    }
    let (Some(rows), Some(columns)) = (
        Extent::new(height, kernel.0, padding.0, dilation.0),
        Extent::new(width, kernel.1, padding.1, dilation.1),
    ) else {
        bail!("conv2d: found padding {padding:?} and dilation {dilation:?}, expected less: sizes overflow")
    };
    if rows.kernel > rows.padded || columns.kernel > columns.padded {
        bail!(
            "conv2d: found a kernel that covers {:?}, expected one no larger than the padded input {:?}",
            (rows.kernel, columns.kernel),
            (rows.padded, columns.padded)
        );
    }
    check_bias("conv2d", bias, outputs)?;
    // A longer stride than the input leaves one position, too.
    let stride = (stride.0.min(rows.padded), stride.1.min(columns.padded));
    let output = (rows.positions(stride.0), columns.positions(stride.1));
    let planes = group_channels.max(group_outputs);
    if !fits(&[planes, rows.padded, columns.padded]) || !fits(&[batch, outputs, output.0, output.1]) {
        bail!(
            "conv2d: found an input of {}x{} with its padding, expected one that fits in memory",
            rows.padded,
            columns.padded
        );
    }
    Ok(Conv2d {
        batch,
        groups,
        channels: group_channels,
        outputs: group_outputs,
        kernel,
        stride,
        padding,
        dilation,
        input: (height, width),
        output,
    })
}

/// Sizes along one dimension.
struct Extent {
    /// The input with its padding.
    padded: usize,
    /// What the dilated kernel covers.
    kernel: usize,
}

impl Extent {
    /// None if a size overflows.
    fn new(size: usize, kernel: usize, padding: usize, dilation: usize) -> Option<Self> {
        let padded = padding.checked_mul(2)?.checked_add(size)?;
        Some(Self { padded, kernel: dilation.checked_mul(kernel - 1)?.checked_add(1)? })
    }

    fn positions(&self, stride: usize) -> usize {
        (self.padded - self.kernel) / stride + 1
    }
}

/// Whether a buffer of these sizes could be allocated, with room for what surrounds it.
fn fits(sizes: &[usize]) -> bool {
    const MOST: usize = isize::MAX as usize / (4 * size_of::<f64>());
    sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size)).is_some_and(|size| size <= MOST)
}

impl Operation for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let shape = (self.batch, self.groups * self.outputs, self.output.0, self.output.1);
        let held = host::hold(args);
        with_real!(self.name(), args[0].dtype(), T => {
            let bias = if args.len() > 2 { held.get::<T>(2)? } else { &[] };
            Ok(host::output(Conv2d::forward(self, held.get(0)?, held.get(1)?, bias), shape))
        })
    }

    fn backward(&self, args: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let held = host::hold(args.iter().chain([grad]));
        with_real!(self.name(), grad.dtype(), T => {
            let (xs, weight, grad) = (held.get::<T>(0)?, held.get::<T>(1)?, held.get::<T>(args.len())?);
            gradients(args, |index| match index {
                0 => self.input_grad(grad, weight),
                1 => self.weight_grad(grad, xs),
                _ => self.bias_grad(grad),
            })
        })
    }
}
