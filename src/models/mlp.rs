//! Multi-layer perceptron (Nielsen, *Neural Networks and Deep Learning*, chapters 1 and 3).

use super::ImageModel;
use crate::nn::{self, Activation, Dropout, Init, Linear, Mode, Model};
use candle_core::{Module, Result, Tensor, bail};
use candle_nn::VarBuilder;

/// `sizes` lists the units of each layer, input and output included: `[784, 30, 10]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub sizes: Vec<usize>,
    pub activation: Activation,
    pub init: Init,
    /// Probability that a hidden unit is dropped in training.
    pub dropout: f32,
}

/// Fully connected layers with a nonlinearity between them; the output nonlinearity belongs to the cost.
///
/// Parameters: `layers.0.weight`, `layers.0.bias`, `layers.1.weight`, ...
#[derive(Debug, Clone)]
pub struct Mlp {
    layers: Vec<Linear>,
    dropouts: Vec<Dropout>,
    activation: Activation,
}

impl Mlp {
    /// # Errors
    /// When there are fewer than two sizes or one is 0, or `vb` holds the parameters in other shapes.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        if config.sizes.len() < 2 || config.sizes.contains(&0) {
            bail!("layer sizes {:?}: at least two are needed, each 1 or more", config.sizes);
        }
        let layers = std::iter::zip(&config.sizes, &config.sizes[1..])
            .enumerate()
            .map(|(i, (&inputs, &outputs))| {
                nn::linear_with(inputs, outputs, config.init, vb.pp("layers").pp(i))
            })
            .collect::<Result<Vec<_>>>()?;
        let dropouts =
            (1..layers.len()).map(|i| nn::dropout(config.dropout, vb.pp("dropouts").pp(i))).collect();
        Ok(Self { layers, dropouts, activation: config.activation })
    }
}

impl Model for Mlp {
    /// Any `(batch, ..)` with the first size's number of values an example.
    fn forward(&self, xs: &Tensor, mode: Mode) -> Result<Tensor> {
        let mut hidden = xs.flatten_from(1)?.apply(&self.layers[0])?;
        for (layer, dropout) in self.layers[1..].iter().zip(&self.dropouts) {
            hidden = dropout.forward(&self.activation.forward(&hidden)?, mode)?.apply(layer)?;
        }
        Ok(hidden)
    }
}

impl ImageModel for Mlp {
    fn filters(&self) -> &Tensor {
        self.layers[0].weight()
    }

    fn feature_maps(&self, _: &Tensor) -> Result<Vec<Tensor>> {
        Ok(Vec::new())
    }

    fn head(&self, xs: &Tensor, mode: Mode) -> Result<Tensor> {
        self.forward(xs, mode)
    }
}
