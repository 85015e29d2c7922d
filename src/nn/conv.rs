//! Convolutions.

use super::conv_layer::{check_groups, fan, layer};
use super::{BatchNorm, InitScheme, is_native};
use crate::ops;
use candle_core::{Module, Result, Tensor, bail};
use candle_nn::VarBuilder;

pub use super::conv_transpose::*;
pub use candle_nn::conv::{Conv1dConfig, Conv2dConfig, ConvTranspose1dConfig, ConvTranspose2dConfig};

layer! {
    /// A 1-d convolution (cross-correlation, as everywhere in deep learning).
    Conv1d, Conv1dConfig, "(outputs, inputs / groups, kernel)"
}

layer! {
    /// A 2-d convolution (cross-correlation, as everywhere in deep learning).
    Conv2d, Conv2dConfig, "(outputs, inputs / groups, height, width)"
}

/// Creates a 1-d convolution with PyTorch's initial values.
///
/// Parameters in `vb`: `weight` `(outputs, inputs / groups, kernel)` and `bias` `(outputs)`.
///
/// # Errors
/// Fails if the channels do not divide into the configured groups, the weight is too large, or `vb` holds a parameter
/// in another shape.
pub fn conv1d(
    inputs: usize,
    outputs: usize,
    kernel: usize,
    config: Conv1dConfig,
    vb: VarBuilder,
) -> Result<Conv1d> {
    let mut conv = conv1d_no_bias(inputs, outputs, kernel, config, vb.clone())?;
    let fan_in = fan(inputs / config.groups, &[kernel])?;
    conv.bias = Some(vb.get_with_hints(outputs, "bias", InitScheme::PyTorch.bias(fan_in))?);
    Ok(conv)
}

/// Creates a 1-d convolution without bias; see [`conv1d`].
///
/// # Errors
/// Fails if [`conv1d`] would.
pub fn conv1d_no_bias(
    inputs: usize,
    outputs: usize,
    kernel: usize,
    config: Conv1dConfig,
    vb: VarBuilder,
) -> Result<Conv1d> {
    check_groups("conv1d", inputs, outputs, config.groups)?;
    let inputs = inputs / config.groups;
    let init = InitScheme::PyTorch.weight(fan(inputs, &[kernel])?, 0);
    let weight = vb.get_with_hints((outputs, inputs, kernel), "weight", init)?;
    Ok(Conv1d { weight, bias: None, config })
}

/// Creates a convolution with square kernels and PyTorch's initial values.
///
/// Parameters in `vb`: `weight` `(outputs, inputs / groups, kernel, kernel)` and `bias` `(outputs)`.
///
/// # Errors
/// Fails if the channels do not divide into the configured groups, the weight is too large, or `vb` holds a parameter
/// in another shape.
pub fn conv2d(
    inputs: usize,
    outputs: usize,
    kernel: usize,
    config: Conv2dConfig,
    vb: VarBuilder,
) -> Result<Conv2d> {
    let mut conv = conv2d_no_bias(inputs, outputs, kernel, config, vb.clone())?;
    let fan_in = fan(inputs / config.groups, &[kernel; 2])?;
    conv.bias = Some(vb.get_with_hints(outputs, "bias", InitScheme::PyTorch.bias(fan_in))?);
    Ok(conv)
}

/// Creates a convolution without bias; see [`conv2d`].
///
/// # Errors
/// Fails if [`conv2d`] would.
pub fn conv2d_no_bias(
    inputs: usize,
    outputs: usize,
    kernel: usize,
    config: Conv2dConfig,
    vb: VarBuilder,
) -> Result<Conv2d> {
    conv2d_no_bias_with(inputs, outputs, kernel, config, InitScheme::PyTorch, vb)
}

/// Creates a convolution without bias, with the initial values of `init`; see [`conv2d`].
///
/// # Errors
/// Fails if [`conv2d`] would.
pub fn conv2d_no_bias_with(
    inputs: usize,
    outputs: usize,
    kernel: usize,
    config: Conv2dConfig,
    init: InitScheme,
    vb: VarBuilder,
) -> Result<Conv2d> {
    check_groups("conv2d", inputs, outputs, config.groups)?;
    let fan = |channels| fan(channels / config.groups, &[kernel; 2]);
    let init = init.weight(fan(inputs)?, fan(outputs)?);
    let weight = vb.get_with_hints((outputs, inputs / config.groups, kernel, kernel), "weight", init)?;
    Ok(Conv2d { weight, bias: None, config })
}

impl Conv2d {
    /// The convolution that equals this one followed by `norm` in evaluation.
    ///
    /// # Errors
    /// Fails if `norm` has no weight and bias, or their shapes do not fit.
    pub fn absorb_bn(&self, norm: &BatchNorm) -> Result<Self> {
        let absorbed = self.as_candle().absorb_bn(norm.as_candle())?;
        Ok(Self::new(absorbed.weight().clone(), absorbed.bias().cloned(), self.config))
    }
}

impl Module for Conv1d {
    /// `(batch, inputs, length)` to `(batch, outputs, length')`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        if !is_native(xs) {
            return self.as_candle().forward(xs);
        }
        let Conv1dConfig { padding, stride, dilation, groups, .. } = self.config;
        let config =
            ops::Conv2dConfig { stride: (1, stride), padding: (0, padding), dilation: (1, dilation), groups };
        let &[batch, channels, length] = xs.dims() else {
            bail!("conv1d: found an input of shape {:?}, expected (batch, channels, length)", xs.dims())
        };
        let (outputs, inputs, kernel) = self.weight.dims3()?;
        let xs = ops::reshape(xs, (batch, channels, 1, length))?;
        let weight = ops::reshape(&self.weight, (outputs, inputs, 1, kernel))?;
        let ys = ops::conv2d(&xs, &weight, self.bias.as_ref(), config)?;
        ops::reshape(&ys, (batch, outputs, ys.dim(3)?))
    }
}

impl Module for Conv2d {
    /// `(batch, inputs, height, width)` to `(batch, outputs, height', width')`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        if !is_native(&self.weight) {
            return self.as_candle().forward(xs);
        }
        let Conv2dConfig { padding, stride, dilation, groups, .. } = self.config;
        let [padding, stride, dilation] = [padding, stride, dilation].map(|size| (size, size));
        let config = ops::Conv2dConfig { stride, padding, dilation, groups };
        ops::conv2d(xs, &self.weight, self.bias.as_ref(), config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::seeded_var_builder;
    use candle_core::{DType, Device};
    use candle_nn::VarMap;

    fn error(inputs: usize, kernel: usize, groups: usize) -> String {
        let vb = seeded_var_builder(&VarMap::new(), 0, DType::F32, &Device::Cpu);
        let config = Conv2dConfig { groups, ..Default::default() };
        conv2d(inputs, 8, kernel, config, vb).unwrap_err().to_string()
    }

    #[test]
    fn channels_that_do_not_divide_into_groups_are_refused() {
        assert!(error(6, 3, 4).contains("do not divide into 4 groups"));
        assert!(error(6, 3, 0).contains("do not divide into 0 groups"));
    }

    #[test]
    fn huge_kernels_are_refused_without_overflow() {
        assert!(error(8, usize::MAX, 1).contains("too many weights"));
        assert!(error(usize::MAX, 3, 1).contains("too many weights"));
        assert!(error(1, 1 << 30, 1).contains("too large"));
    }
}
