//! The code that all convolution layers share.

use candle_core::{Result, bail};

/// Defines a layer with a weight of this shape, an optional bias and a configuration.
macro_rules! layer {
    ($(#[$docs:meta])* $name:ident, $config:ident, $shape:literal) => {
        $(#[$docs])*
        #[derive(Debug, Clone)]
        pub struct $name {
            weight: Tensor,
            bias: Option<Tensor>,
            config: $config,
        }

        impl $name {
            #[doc = concat!("Creates a layer from `weight` `", $shape, "` and `bias` `(outputs)`.")]
            pub fn new(weight: Tensor, bias: Option<Tensor>, config: $config) -> Self {
                Self { weight, bias, config }
            }

            /// Padding, stride and so on.
            pub fn config(&self) -> &$config {
                &self.config
            }

            #[doc = concat!("The kernels, `", $shape, "`.")]
            pub fn weight(&self) -> &Tensor {
                &self.weight
            }

            /// The bias, `(outputs)`.
            pub fn bias(&self) -> Option<&Tensor> {
                self.bias.as_ref()
            }

            fn as_candle(&self) -> candle_nn::$name {
                candle_nn::$name::new(self.weight.clone(), self.bias.clone(), self.config)
            }
        }
    };
}
pub(super) use layer;

pub(super) fn check_groups(op: &str, inputs: usize, outputs: usize, groups: usize) -> Result<()> {
    if groups == 0 || !inputs.is_multiple_of(groups) || !outputs.is_multiple_of(groups) {
        bail!("{op}: {inputs} input and {outputs} output channels do not divide into {groups} groups");
    }
    Ok(())
}

/// Number of weights per output (from `channels` inputs) or per input (to `channels` outputs).
pub(super) fn fan(channels: usize, kernel: &[usize]) -> Result<usize> {
    match kernel.iter().try_fold(channels, |fan, &size| fan.checked_mul(size)) {
        Some(fan) => Ok(fan),
        None => {
            bail!("convolution: {channels} channels with kernels of size {kernel:?} are too many weights")
        }
    }
}
