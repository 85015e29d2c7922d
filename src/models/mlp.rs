//! Multi-layer perceptron (Nielsen, *Neural Networks and Deep Learning*, chapters 1 and 3).

use super::ImageModel;
use crate::nn::{self, Activation, Dropout, InitScheme, Linear, Mode, Model};
use candle_core::{Module, Result, Tensor, bail};
use candle_nn::VarBuilder;

/// The shape of a perceptron.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Number of units of each layer, input and output included: `[784, 30, 10]`.
    pub sizes: Vec<usize>,
    /// Nonlinearity of the hidden layers.
    pub activation: Activation,
    /// Distribution of the initial weights and biases.
    pub init: InitScheme,
    /// Probability of dropping a hidden unit in training.
    pub dropout: f32,
}

/// Fully connected layers with a nonlinearity between them.
///
/// The cost applies the output nonlinearity. Parameters: `layers.0.weight`, `layers.0.bias`, `layers.1.weight`, ...
#[derive(Debug, Clone)]
pub struct Mlp {
    layers: Vec<Linear>,
    dropouts: Vec<Dropout>,
    activation: Activation,
}

impl Mlp {
    /// Creates the model with its parameters in `vb`.
    ///
    /// # Errors
    /// Fails if there are fewer than two sizes, a size is 0, or `vb` holds a parameter in another shape.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        if config.sizes.len() < 2 || config.sizes.contains(&0) {
            bail!("mlp: found the layer sizes {:?}, expected at least two, each 1 or more", config.sizes);
        }
        let sizes = config.sizes.iter().zip(&config.sizes[1..]);
        let layer =
            |(i, (&inputs, &outputs))| nn::linear_with(inputs, outputs, config.init, vb.pp("layers").pp(i));
        let layers = sizes.enumerate().map(layer).collect::<Result<Vec<_>>>()?;
        let dropouts =
            (1..layers.len()).map(|i| Dropout::at_path(config.dropout, vb.pp("dropouts").pp(i))).collect();
        Ok(Self { layers, dropouts, activation: config.activation })
    }
}

impl Model for Mlp {
    /// `(batch, ..)` with `sizes[0]` values per example to `(batch, classes)`.
    fn forward(&self, xs: &Tensor, mode: Mode) -> Result<Tensor> {
        let mut xs = xs.flatten_from(1)?.apply(&self.layers[0])?; // (batch, sizes[1])
        for (layer, dropout) in self.layers[1..].iter().zip(&self.dropouts) {
            xs = self.activation.forward(&xs)?;
            xs = dropout.forward_at(&xs, mode)?.apply(layer)?; // (batch, sizes[i])
        }
        Ok(xs)
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
