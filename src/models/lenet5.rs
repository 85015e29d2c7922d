//! LeNet-5 as published (LeCun, Bottou, Bengio and Haffner 1998, section II.B and figure 2).
//!
//! One thing differs: the output layer is linear with a softmax, where the paper measures distances to fixed
//! drawings of the characters.

use super::ImageModel;
use crate::nn::{self, Conv2d, Conv2dConfig, Linear, Mode, Model, Pool2dConfig};
use crate::ops;
use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use candle_nn::init::Init;

/// Which of the 6 maps of S2 each of the 16 maps of C3 sees (table I of the paper): one row a map of C3.
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

/// Trainable subsampling: the mean of each 2x2 square times a coefficient a channel, plus a bias a channel.
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
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        ops::avg_pool2d(xs, Pool2dConfig::square(2))?.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)
    }
}

/// Parameters: `c1`, `c3`, `c5`, `f6`, `output` (`weight`, `bias`) and `s2`, `s4` (`weight` and `bias` of shape
/// `(channels, 1, 1)`). `c3.weight` is `(16, 6, 5, 5)`; what the table leaves unconnected stays out of the sum.
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
    /// # Errors
    /// When `vb` holds the parameters in other shapes.
    pub fn new(classes: usize, vb: VarBuilder) -> Result<Self> {
        let (padded, plain) =
            (Conv2dConfig { padding: (2, 2), ..Default::default() }, Conv2dConfig::default());
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

/// The paper's squashing function, 1.7159 tanh(2/3 x) (appendix A).
fn squash(xs: &Tensor) -> Result<Tensor> {
    ops::tanh(&xs.affine(2.0 / 3.0, 0.0)?)?.affine(1.7159, 0.0)
}

impl ImageModel for LeNet5 {
    fn filters(&self) -> &Tensor {
        self.c1.weight()
    }

    fn feature_maps(&self, xs: &Tensor) -> Result<Vec<Tensor>> {
        let s2 = squash(&squash(&xs.apply(&self.c1)?)?.apply(&self.s2)?)?;
        let kernel = self.c3.weight().broadcast_mul(&self.connections)?;
        let c3 = squash(&ops::conv2d(&s2, &kernel, self.c3.bias(), Conv2dConfig::default())?)?;
        let s4 = squash(&c3.apply(&self.s4)?)?;
        Ok(vec![s2, s4])
    }

    fn head(&self, s4: &Tensor, _: Mode) -> Result<Tensor> {
        let c5 = squash(&s4.apply(&self.c5)?.flatten_from(1)?)?;
        squash(&c5.apply(&self.f6)?)?.apply(&self.output)
    }
}
