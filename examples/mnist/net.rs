//! The network.

use candle_core::{Result, Tensor};
use candle_textbook::nn::{self, BatchNorm, Conv2d, Linear, Mode, Model, VarBuilder};

pub struct Net {
    conv1: Conv2d,
    conv2: Conv2d,
    norm: BatchNorm,
    output: Linear,
}

impl Net {
    pub fn new(vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            conv1: nn::conv2d(1, 16, 5, Default::default(), vb.pp("conv1"))?,
            conv2: nn::conv2d_no_bias(16, 32, 5, Default::default(), vb.pp("conv2"))?,
            norm: nn::batch_norm(32, 1e-5, vb.pp("norm"))?,
            output: nn::linear(32 * 4 * 4, 10, vb.pp("output"))?,
        })
    }
}

impl Model for Net {
    /// `(batch, 1, 28, 28)` to `(batch, 10)`.
    fn forward(&self, xs: &Tensor, mode: Mode) -> Result<Tensor> {
        let xs = nn::max_pool2d(&xs.apply(&self.conv1)?.relu()?, 2)?; // (batch, 16, 12, 12)
        let xs = xs.apply(&self.conv2)?.apply_t(&self.norm, mode.is_training())?; // (batch, 32, 8, 8)
        nn::max_pool2d(&xs.relu()?, 2)?.flatten_from(1)?.apply(&self.output)
    }
}
