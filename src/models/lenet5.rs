//! LeNet-5 as published (LeCun, Bottou, Bengio and Haffner 1998, section II.B and figure 2).
//!
//! One thing differs: the output layer is linear and followed by a softmax. The output layer of the paper computes
//! distances to fixed bitmaps of the characters.

use super::ImageModel;
use crate::nn::{self, Conv2d, Conv2dConfig, Linear, Mode, Model, Pool2dConfig};
use crate::ops;
use candle_core::{Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use candle_nn::init::Init;

/// Connections from the 6 maps of S2 to the 16 maps of C3 (table I of the paper).
///
/// Each row belongs to a map of C3.
const CONNECTIONS: [[u8; 6]; 16] = [
    [1, 1, 1, 0, 0, 0],
    [0, 1, 1, 1, 0, 0],
    [0, 0, 1, 1, 1, 0],
    [0, 0, 0, 1, 1, 1],
    [1, 0, 0, 0, 1, 1],
    [1, 1, 0, 0, 0, 1],
    [1, 1, 1, 1, 0, 0],
    [0, 1, 1, 1, 1, 0],
    [0, 0, 1, 1, 1, 1],
    [1, 0, 0, 1, 1, 1],
    [1, 1, 0, 0, 1, 1],
    [1, 1, 1, 0, 0, 1],
    [1, 1, 0, 1, 1, 0],
    [0, 1, 1, 0, 1, 1],
    [1, 0, 1, 1, 0, 1],
    [1, 1, 1, 1, 1, 1],
];

/// Trainable subsampling: scales the mean of each 2x2 square and adds a bias, both per channel.
#[derive(Debug, Clone)]
struct Subsampling {
    weight: Tensor,
    bias: Tensor,
}

impl Subsampling {
    fn new(channels: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            weight: vb.get_with_hints((channels, 1, 1), "weight", Init::Const(1.0))?,
            bias: vb.get_with_hints((channels, 1, 1), "bias", Init::Const(0.0))?,
        })
    }
}

impl Module for Subsampling {
    /// `(batch, channels, height, width)` to `(batch, channels, height / 2, width / 2)`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        ops::avg_pool2d(xs, Pool2dConfig::square(2))?.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)
    }
}

/// LeNet-5.
///
/// Parameters: `weight` and `bias` of `c1`, `c3`, `c5`, `f6` and `output`, and of `s2` and `s4`, `(channels, 1, 1)` each.
/// `c3.weight` is `(16, 6, 5, 5)`; the weights of missing connections have no effect.
#[derive(Debug, Clone)]
pub struct LeNet5 {
    c1: Conv2d,
    s2: Subsampling,
    c3: Conv2d,
    s4: Subsampling,
    c5: Conv2d,
    f6: Linear,
    output: Linear,
    connections: Tensor,
}

impl LeNet5 {
    /// Creates the model with its parameters in `vb`.
    ///
    /// # Errors
    /// Fails if `classes` is 0, or `vb` holds a parameter in another shape.
    pub fn new(classes: usize, vb: VarBuilder) -> Result<Self> {
        if classes == 0 {
            bail!("lenet5: found 0 classes, expected at least one");
        }
        let padded = Conv2dConfig { padding: 2, ..Default::default() };
        let plain = Conv2dConfig::default();
        Ok(Self {
            c1: nn::conv2d(1, 6, 5, padded, vb.pp("c1"))?,
            s2: Subsampling::new(6, vb.pp("s2"))?,
            c3: nn::conv2d(6, 16, 5, plain, vb.pp("c3"))?,
            s4: Subsampling::new(16, vb.pp("s4"))?,
            c5: nn::conv2d(16, 120, 5, plain, vb.pp("c5"))?,
            f6: nn::linear(120, 84, vb.pp("f6"))?,
            output: nn::linear(84, classes, vb.pp("output"))?,
            connections: Tensor::new(&CONNECTIONS, vb.device())?
                .to_dtype(vb.dtype())?
                .reshape((16, 6, 1, 1))?,
        })
    }
}

impl Model for LeNet5 {
    /// `(batch, 1, 28, 28)` to `(batch, classes)`.
    fn forward(&self, xs: &Tensor, mode: Mode) -> Result<Tensor> {
        self.head(&self.feature_maps(xs)?[1], mode)
    }
}

/// The paper's squashing function, `1.7159 tanh(2/3 x)` (appendix A).
fn squash(xs: &Tensor) -> Result<Tensor> {
    ops::tanh(&xs.affine(2.0 / 3.0, 0.0)?)?.affine(1.7159, 0.0)
}

impl ImageModel for LeNet5 {
    fn filters(&self) -> &Tensor {
        self.c1.weight()
    }

    fn feature_maps(&self, xs: &Tensor) -> Result<Vec<Tensor>> {
        let c1 = squash(&xs.apply(&self.c1)?)?; // (batch, 6, 28, 28)
        let s2 = squash(&c1.apply(&self.s2)?)?; // (batch, 6, 14, 14)
        let kernel = self.c3.weight().broadcast_mul(&self.connections)?;
        let c3 = ops::conv2d(&s2, &kernel, self.c3.bias(), ops::Conv2dConfig::default())?;
        let c3 = squash(&c3)?; // (batch, 16, 10, 10)
        let s4 = squash(&c3.apply(&self.s4)?)?; // (batch, 16, 5, 5)
        Ok(vec![s2, s4])
    }

    fn head(&self, s4: &Tensor, _: Mode) -> Result<Tensor> {
        let c5 = squash(&s4.apply(&self.c5)?.flatten_from(1)?)?; // (batch, 120)
        let f6 = squash(&c5.apply(&self.f6)?)?; // (batch, 84)
        f6.apply(&self.output) // (batch, classes)
    }
}
