//! The modern LeNet and the convolutional networks of Nielsen's chapter 6.
//!
//! One or two stages of convolution, pooling and nonlinearity, then fully connected layers. [`super::lenet5`] is the
//! network of the 1998 paper, with its trainable subsampling and its table of connections.

use super::ImageModel;
use crate::nn::{
    self, Activation, Conv2d, Conv2dConfig, Dropout, Linear, Mode, Model, Pool2d, Pool2dConfig, Pooling,
};
use crate::ops;
use candle_core::{Result, Tensor, bail};
use candle_nn::VarBuilder;

/// The shape of a network over `(1, 28, 28)` images.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Output channels of each 5x5 convolution, each followed by 2x2 pooling.
    pub channels: Vec<usize>,
    /// Zero padding around the input of the first convolution.
    pub padding: usize,
    /// Function of the pooling layers.
    pub pooling: Pooling,
    /// Nonlinearity of all layers but the last.
    pub activation: Activation,
    /// Units of the fully connected layers before the output.
    pub hidden: Vec<usize>,
    /// Probability of dropping a unit of a hidden fully connected layer in training.
    pub dropout: f32,
    /// Number of classes.
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

    /// Height and width of the last feature maps.
    fn last_side(&self) -> Result<usize> {
        let Some(mut side) = self.padding.checked_mul(2).and_then(|padding| padding.checked_add(28)) else {
            bail!("lenet: the padding {} is too large", self.padding);
        };
        for _ in &self.channels {
            if side < 6 {
                bail!("lenet: {} convolutions leave nothing of a 28x28 image", self.channels.len());
            }
            side = (side - 4) / 2;
        }
        Ok(side)
    }
}

/// A LeNet.
///
/// Parameters: `conv1.weight`, `conv1.bias`, ..., `fc1.weight`, `fc1.bias`, ...; the last `fc` is the output layer.
#[derive(Debug, Clone)]
pub struct LeNet {
    convolutions: Vec<Conv2d>,
    pool: Pool2d,
    activation: Activation,
    hidden: Vec<(Linear, Dropout)>,
    output: Linear,
}

impl LeNet {
    /// Creates the model with its parameters in `vb`.
    ///
    /// # Errors
    /// Fails if there is no convolution, a size is 0 or too large, the convolutions leave nothing of a 28x28 image, or
    /// `vb` holds a parameter in another shape.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let Config { channels, hidden: units, classes, .. } = config;
        if channels.is_empty() || channels.contains(&0) || units.contains(&0) || *classes == 0 {
            bail!(
                "lenet: found {channels:?} channels, {units:?} hidden units and {classes} classes, \
                 expected at least one convolution and no zeros"
            );
        }
        let side = config.last_side()?;
        let mut inputs = 1;
        let mut convolutions = Vec::new();
        for (i, &outputs) in channels.iter().enumerate() {
            let padding = if i == 0 { config.padding } else { 0 };
            let geometry = Conv2dConfig { padding, ..Default::default() };
            convolutions.push(nn::conv2d(inputs, outputs, 5, geometry, vb.pp(format!("conv{}", i + 1)))?);
            inputs = outputs;
        }
        inputs = match side.checked_mul(side).and_then(|area| area.checked_mul(inputs)) {
            Some(inputs) => inputs,
            None => bail!("lenet: {inputs} feature maps of {side}x{side} are too large"),
        };
        let mut hidden = Vec::new();
        for (i, &units) in units.iter().enumerate() {
            let path = vb.pp(format!("fc{}", i + 1));
            let dropout = Dropout::at_path(config.dropout, path.clone());
            hidden.push((nn::linear(inputs, units, path)?, dropout));
            inputs = units;
        }
        let output = nn::linear(inputs, *classes, vb.pp(format!("fc{}", units.len() + 1)))?;
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
        let mut maps = Vec::new(); // with the default config: (batch, 6, 14, 14), (batch, 16, 5, 5)
        for convolution in &self.convolutions {
            // Pooling before the nonlinearity is Nielsen's order. With max-pooling both orders give the same result,
            // but the opposite one takes four times the work.
            let map = maps.last().unwrap_or(xs).apply(convolution)?;
            maps.push(match (self.pool, self.activation) {
                (Pool2d { pooling: Pooling::Max, window }, Activation::Relu) => {
                    ops::max_pool2d_relu(&map, window)?
                }
                _ => map.apply(&self.pool)?.apply(&self.activation)?,
            });
        }
        Ok(maps)
    }

    fn head(&self, maps: &Tensor, mode: Mode) -> Result<Tensor> {
        let mut xs = ops::reshape(maps, (maps.dim(0)?, ()))?; // (batch, 16 * 5 * 5)
        for (layer, dropout) in &self.hidden {
            xs = xs.apply(layer)?.apply(&self.activation)?; // (batch, 120), (batch, 84)
            xs = dropout.forward_at(&xs, mode)?;
        }
        xs.apply(&self.output) // (batch, classes)
    }
}
