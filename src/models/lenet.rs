//! LeNet as it is usually drawn today, and the convolutional networks of Nielsen's chapter 6: convolution, pooling
//! and nonlinearity, once or twice, then fully connected layers.
//!
//! The network of the 1998 paper, with its trainable subsampling and its table of connections, is in [`super::lenet5`].

use super::ImageModel;
use crate::nn::{
    self, Activation, Conv2d, Conv2dConfig, Dropout, Linear, Mode, Model, Pool2d, Pool2dConfig, Pooling,
};
use candle_core::{Result, Tensor, bail};
use candle_nn::VarBuilder;

/// The shape of a network over `(1, 28, 28)` pictures.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Output channels of each 5x5 convolution, each followed by 2x2 pooling.
    pub channels: Vec<usize>,
    /// Zeros around the input of the first convolution.
    pub padding: usize,
    pub pooling: Pooling,
    pub activation: Activation,
    /// Units of the fully connected layers before the output.
    pub hidden: Vec<usize>,
    /// Probability that a unit of a fully connected layer is dropped in training.
    pub dropout: f32,
    pub classes: usize,
}

impl Default for Config {
    /// The usual modern LeNet: 6 and 16 channels, 120 and 84 units, ReLU, max-pooling.
    fn default() -> Self {
        Self {
            channels: vec![6, 16],
            padding: 2,
            pooling: Pooling::Max,
            activation: Activation::Relu,
            hidden: vec![120, 84],
            dropout: 0.0,
            classes: 10,
        }
    }
}

impl Config {
    /// A network of Nielsen's chapter 6: one stage of 20 channels, or a second one of 40; no padding.
    pub fn nielsen(stages: usize, activation: Activation, hidden: &[usize], dropout: f32) -> Self {
        Self {
            channels: [20, 40].into_iter().take(stages).collect(),
            padding: 0,
            activation,
            hidden: hidden.to_vec(),
            dropout,
            ..Self::default()
        }
    }
}

/// Parameters: `conv1.weight`, `conv1.bias`, ..., `fc1.weight`, `fc1.bias`, ..., the last `fc` being the output.
#[derive(Debug, Clone)]
pub struct LeNet {
    convolutions: Vec<Conv2d>,
    pool: Pool2d,
    activation: Activation,
    hidden: Vec<(Linear, Dropout)>,
    output: Linear,
}

impl LeNet {
    /// # Errors
    /// When there is no convolution, or they leave nothing of a 28x28 picture, or `vb` holds the parameters in other shapes.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        if config.channels.is_empty() {
            bail!("a LeNet has at least one convolution");
        }
        let (mut side, mut inputs) = (28 + 2 * config.padding, 1);
        let mut convolutions = Vec::new();
        for (i, &outputs) in config.channels.iter().enumerate() {
            if side < 6 {
                bail!("{} convolutions leave nothing of a 28x28 picture", config.channels.len());
            }
            let padding = if i == 0 { config.padding } else { 0 };
            let geometry = Conv2dConfig { padding: (padding, padding), ..Default::default() };
            convolutions.push(nn::conv2d(inputs, outputs, 5, geometry, vb.pp(format!("conv{}", i + 1)))?);
            (side, inputs) = ((side - 4) / 2, outputs);
        }
        inputs *= side * side;
        let mut hidden = Vec::new();
        for (i, &units) in config.hidden.iter().enumerate() {
            let path = vb.pp(format!("fc{}", i + 1));
            let dropout = nn::dropout(config.dropout, path.clone());
            hidden.push((nn::linear(inputs, units, path)?, dropout));
            inputs = units;
        }
        let output = nn::linear(inputs, config.classes, vb.pp(format!("fc{}", config.hidden.len() + 1)))?;
        let pool = Pool2d { pooling: config.pooling, window: Pool2dConfig::square(2) };
        Ok(Self { convolutions, pool, activation: config.activation, hidden, output })
    }
}

impl Model for LeNet {
    /// `(batch, 1, 28, 28)` to `(batch, classes)`.
    fn forward(&self, xs: &Tensor, mode: Mode) -> Result<Tensor> {
        self.head(self.feature_maps(xs)?.last().unwrap_or(xs), mode)
    }
}

impl ImageModel for LeNet {
    fn filters(&self) -> &Tensor {
        self.convolutions[0].weight()
    }

    fn feature_maps(&self, xs: &Tensor) -> Result<Vec<Tensor>> {
        let mut maps = Vec::new();
        for convolution in &self.convolutions {
            // Nielsen's order. Where the pooling is a maximum the other order gives the same, at four times the work.
            let map = maps.last().unwrap_or(xs).apply(convolution)?;
            maps.push(map.apply(&self.pool)?.apply(&self.activation)?);
        }
        Ok(maps)
    }

    fn head(&self, maps: &Tensor, mode: Mode) -> Result<Tensor> {
        let mut units = maps.flatten_from(1)?;
        for (layer, dropout) in &self.hidden {
            units = dropout.forward(&units.apply(layer)?.apply(&self.activation)?, mode)?;
        }
        units.apply(&self.output)
    }
}
