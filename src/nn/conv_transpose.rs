//! Transposed convolutions.

use super::conv_layer::{check_groups, fan, layer};
use super::{InitScheme, is_native};
use crate::ops;
use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use candle_nn::conv::{ConvTranspose1dConfig, ConvTranspose2dConfig};

layer! {
    /// A transposed 1-d convolution (deconvolution), the input gradient of a convolution.
    ConvTranspose1d, ConvTranspose1dConfig, "(inputs, outputs / groups, kernel)"
}

layer! {
    /// A transposed 2-d convolution (deconvolution), the input gradient of a convolution.
    ConvTranspose2d, ConvTranspose2dConfig, "(inputs, outputs, height, width)"
}

/// Creates a transposed 1-d convolution with PyTorch's initial values.
///
/// Parameters in `vb`: `weight` `(inputs, outputs / groups, kernel)` and `bias` `(outputs)`.
///
/// # Errors
/// Fails if the channels do not divide into the configured groups, the weight is too large, or `vb` holds a parameter
/// in another shape.
pub fn conv_transpose1d(
    inputs: usize,
    outputs: usize,
    kernel: usize,
    config: ConvTranspose1dConfig,
    vb: VarBuilder,
) -> Result<ConvTranspose1d> {
    let conv = conv_transpose1d_no_bias(inputs, outputs, kernel, config, vb.clone())?;
    let fan_in = fan(outputs / config.groups, &[kernel])?;
    let bias = vb.get_with_hints(outputs, "bias", InitScheme::PyTorch.bias(fan_in))?;
    Ok(ConvTranspose1d::new(conv.weight().clone(), Some(bias), config))
}

/// Creates a transposed 1-d convolution without bias; see [`conv_transpose1d`].
///
/// # Errors
/// Fails if [`conv_transpose1d`] would.
pub fn conv_transpose1d_no_bias(
    inputs: usize,
    outputs: usize,
    kernel: usize,
    config: ConvTranspose1dConfig,
    vb: VarBuilder,
) -> Result<ConvTranspose1d> {
    check_groups("conv_transpose1d", inputs, outputs, config.groups)?;
    let outputs = outputs / config.groups;
    let init = InitScheme::PyTorch.weight(fan(outputs, &[kernel])?, 0);
    Ok(ConvTranspose1d::new(vb.get_with_hints((inputs, outputs, kernel), "weight", init)?, None, config))
}

/// Creates a transposed 2-d convolution with square kernels and PyTorch's initial values.
///
/// Parameters in `vb`: `weight` `(inputs, outputs, kernel, kernel)` and `bias` `(outputs)`.
///
/// # Errors
/// Fails if the weight is too large, or `vb` holds a parameter in another shape.
pub fn conv_transpose2d(
    inputs: usize,
    outputs: usize,
    kernel: usize,
    config: ConvTranspose2dConfig,
    vb: VarBuilder,
) -> Result<ConvTranspose2d> {
    let conv = conv_transpose2d_no_bias(inputs, outputs, kernel, config, vb.clone())?;
    let bias = vb.get_with_hints(outputs, "bias", InitScheme::PyTorch.bias(fan(outputs, &[kernel; 2])?))?;
    Ok(ConvTranspose2d::new(conv.weight().clone(), Some(bias), config))
}

/// Creates a transposed 2-d convolution without bias; see [`conv_transpose2d`].
///
/// # Errors
/// Fails if [`conv_transpose2d`] would.
pub fn conv_transpose2d_no_bias(
    inputs: usize,
    outputs: usize,
    kernel: usize,
    config: ConvTranspose2dConfig,
    vb: VarBuilder,
) -> Result<ConvTranspose2d> {
    let init = InitScheme::PyTorch.weight(fan(outputs, &[kernel; 2])?, 0);
    let weight = vb.get_with_hints((inputs, outputs, kernel, kernel), "weight", init)?;
    Ok(ConvTranspose2d::new(weight, None, config))
}

impl Module for ConvTranspose1d {
    /// `(batch, inputs, length)` to `(batch, outputs, length')`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        if !is_native(xs) {
            return self.as_candle().forward(xs);
        }
        let ConvTranspose1dConfig { padding, output_padding, stride, dilation, groups } = self.config;
        let config =
            ops::Conv2dConfig { stride: (1, stride), padding: (0, padding), dilation: (1, dilation), groups };
        let (batch, channels, length) = xs.dims3()?;
        let (inputs, outputs, kernel) = self.weight.dims3()?;
        let xs = ops::reshape(xs, (batch, channels, 1, length))?;
        let weight = ops::reshape(&self.weight, (inputs, outputs, 1, kernel))?;
        let ys = ops::conv_transpose2d(&xs, &weight, self.bias.as_ref(), config, (0, output_padding))?;
        ops::reshape(&ys, (batch, outputs * groups, ys.dim(3)?))
    }
}

impl Module for ConvTranspose2d {
    /// `(batch, inputs, height, width)` to `(batch, outputs, height', width')`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        if !is_native(xs) {
            return self.as_candle().forward(xs);
        }
        let ConvTranspose2dConfig { padding, output_padding, stride, dilation } = self.config;
        let [padding, output_padding, stride, dilation] =
            [padding, output_padding, stride, dilation].map(|size| (size, size));
        let config = ops::Conv2dConfig { stride, padding, dilation, groups: 1 };
        ops::conv_transpose2d(xs, &self.weight, self.bias.as_ref(), config, output_padding)
    }
}
