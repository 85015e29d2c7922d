use super::super::arguments::{Conv2dConfig, check_conv_transpose2d};
use super::conv2d;
use candle_core::{Result, Tensor};

/// The definition of [`conv_transpose2d()`](crate::ops::conv_transpose2d()): the convolution of the input, with zeros between its
/// elements, with the mirrored kernel.
///
/// # Errors
/// Fails if [`conv_transpose2d()`](crate::ops::conv_transpose2d()) would.
pub fn conv_transpose2d(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: Conv2dConfig,
    output_padding: (usize, usize),
) -> Result<Tensor> {
    let conv = check_conv_transpose2d(xs, weight, bias, config, output_padding)?;
    let Conv2dConfig { padding, dilation, groups, .. } = config;
    let ((batch, channels, height, width), stride) = (xs.dims4()?, conv.stride);
    let spread = xs
        .reshape((batch, channels, height, 1, width, 1))?
        .pad_with_zeros(3, 0, stride.0 - 1)?
        .pad_with_zeros(5, 0, stride.1 - 1)?
        .reshape((batch, channels, height * stride.0, width * stride.1))?;
    let spread =
        with_margins(&spread, 2, conv.input.0, stride.0, dilation.0 * (conv.kernel.0 - 1), padding.0)?;
    let spread =
        with_margins(&spread, 3, conv.input.1, stride.1, dilation.1 * (conv.kernel.1 - 1), padding.1)?;
    let (inputs, outputs, kernel_h, kernel_w) = weight.dims4()?;
    let mirrored = weight
        .reshape((groups, inputs / groups, outputs, kernel_h, kernel_w))?
        .transpose(1, 2)?
        .reshape((groups * outputs, inputs / groups, kernel_h, kernel_w))?
        .flip(&[2, 3])?;
    conv2d(&spread, &mirrored, bias, Conv2dConfig { dilation, groups, ..Conv2dConfig::default() })
}

/// Cuts or pads a dimension of a spread input for a kernel that covers `reach` elements beside its first, so that the
/// convolution has `output` elements. Behind each element of the input are `stride - 1` zeros.
fn with_margins(
    xs: &Tensor,
    dim: usize,
    output: usize,
    stride: usize,
    reach: usize,
    padding: usize,
) -> Result<Tensor> {
    let last = xs.dim(dim)? - (stride - 1);
    let xs = xs.narrow(dim, 0, last)?.pad_with_zeros(dim, reach, reach + output)?;
    xs.narrow(dim, padding, output + reach)
}
