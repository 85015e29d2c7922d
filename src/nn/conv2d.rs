use super::Init;
use crate::ops::{self, Conv2dConfig};
use candle_core::{Module, Result, Tensor, bail};
use candle_nn::VarBuilder;

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
    let mut conv = conv2d_no_bias(inputs, outputs, kernel, config, Init::PyTorch, vb.clone())?;
    let fan_in = fan(inputs, kernel, config.groups)?;
    conv.bias = Some(vb.get_with_hints(outputs, "bias", Init::PyTorch.bias(fan_in))?);
    Ok(conv)
}

/// Creates a convolution without bias, with the initial values of `init`; see [`conv2d`].
///
/// # Errors
/// Fails if [`conv2d`] would.
pub fn conv2d_no_bias(
    inputs: usize,
    outputs: usize,
    kernel: usize,
    config: Conv2dConfig,
    init: Init,
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

    /// The kernels, `(outputs, inputs / groups, height, width)`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The bias, `(outputs)`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

impl Module for Conv2d {
    /// `(batch, inputs, height, width)` to `(batch, outputs, height', width')`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        ops::conv2d(xs, &self.weight, self.bias.as_ref(), self.config)
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
