//! Convolutions.

use super::{BatchNorm, InitScheme, is_native};
use crate::ops;
use candle_core::{Module, Result, Tensor, bail};
use candle_nn::VarBuilder;

pub use candle_nn::conv::*;

/// A 2-d convolution (cross-correlation, as everywhere in deep learning).
#[derive(Debug, Clone)]
pub struct Conv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    config: Conv2dConfig,
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
    let fan_in = fan(inputs, kernel, config.groups)?;
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
    let groups = config.groups;
    if groups == 0 || !inputs.is_multiple_of(groups) || !outputs.is_multiple_of(groups) {
        bail!("conv2d: {inputs} input and {outputs} output channels do not divide into {groups} groups");
    }
    let init = init.weight(fan(inputs, kernel, groups)?, fan(outputs, kernel, groups)?);
    let weight = vb.get_with_hints((outputs, inputs / groups, kernel, kernel), "weight", init)?;
    Ok(Conv2d { weight, bias: None, config })
}

/// Number of weights per output (from `channels` inputs) or per input (to `channels` outputs).
fn fan(channels: usize, kernel: usize, groups: usize) -> Result<usize> {
    match kernel.checked_mul(kernel).and_then(|area| area.checked_mul(channels / groups)) {
        Some(fan) => Ok(fan),
        None => bail!("conv2d: {channels} channels with {kernel}x{kernel} kernels are too many weights"),
    }
}

impl Conv2d {
    /// Creates a layer from `weight` `(outputs, inputs / groups, height, width)` and `bias` `(outputs)`.
    pub fn new(weight: Tensor, bias: Option<Tensor>, config: Conv2dConfig) -> Self {
        Self { weight, bias, config }
    }

    /// Padding, stride, dilation and groups.
    pub fn config(&self) -> &Conv2dConfig {
        &self.config
    }

    /// The kernels, `(outputs, inputs / groups, height, width)`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The bias, `(outputs)`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// The convolution that equals this one followed by `norm` in evaluation.
    ///
    /// # Errors
    /// Fails if `norm` has no weight and bias, or their shapes do not fit.
    pub fn absorb_bn(&self, norm: &BatchNorm) -> Result<Self> {
        let absorbed = self.as_candle().absorb_bn(norm.as_candle())?;
        Ok(Self::new(absorbed.weight().clone(), absorbed.bias().cloned(), self.config))
    }

    fn as_candle(&self) -> candle_nn::Conv2d {
        candle_nn::Conv2d::new(self.weight.clone(), self.bias.clone(), self.config)
    }
}

impl Module for Conv2d {
    /// `(batch, inputs, height, width)` to `(batch, outputs, height', width')`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        if !is_native(xs) {
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
