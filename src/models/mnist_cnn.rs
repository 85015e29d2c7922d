//! The network of PyTorch's MNIST example.
//!
//! Two 3x3 convolutions, one max-pooling, dropout, and two fully connected layers.

use super::ImageModel;
use crate::nn::{self, Conv2d, Dropout, Linear, Mode, Model, Pool2dConfig};
use crate::ops;
use candle_core::{Result, Tensor, bail};
use candle_nn::VarBuilder;

/// The network of PyTorch's MNIST example.
///
/// Parameters: `weight` and `bias` of `conv1`, `conv2`, `fc1` and `fc2`. The example ends with a log-softmax; here the
/// loss contains it.
#[derive(Debug, Clone)]
pub struct MnistCnn {
    conv1: Conv2d,
    conv2: Conv2d,
    dropout1: Dropout,
    fc1: Linear,
    dropout2: Dropout,
    fc2: Linear,
}

impl MnistCnn {
    /// Creates the model with its parameters in `vb`.
    ///
    /// # Errors
    /// Fails if `classes` is 0, or `vb` holds a parameter in another shape.
    pub fn new(classes: usize, vb: VarBuilder) -> Result<Self> {
        if classes == 0 {
            bail!("mnist_cnn: found 0 classes, expected at least one");
        }
        Ok(Self {
            conv1: nn::conv2d(1, 32, 3, Default::default(), vb.pp("conv1"))?,
            conv2: nn::conv2d(32, 64, 3, Default::default(), vb.pp("conv2"))?,
            dropout1: Dropout::at_path(0.25, vb.pp("dropout1")),
            fc1: nn::linear(64 * 12 * 12, 128, vb.pp("fc1"))?,
            dropout2: Dropout::at_path(0.5, vb.pp("dropout2")),
            fc2: nn::linear(128, classes, vb.pp("fc2"))?,
        })
    }
}

impl Model for MnistCnn {
    /// `(batch, 1, 28, 28)` to `(batch, classes)`.
    fn forward(&self, xs: &Tensor, mode: Mode) -> Result<Tensor> {
        self.head(&self.feature_maps(xs)?[1], mode)
    }
}

impl ImageModel for MnistCnn {
    fn filters(&self) -> &Tensor {
        self.conv1.weight()
    }

    fn feature_maps(&self, xs: &Tensor) -> Result<Vec<Tensor>> {
        let conv1 = ops::relu(&xs.apply(&self.conv1)?)?; // (batch, 32, 26, 26)
        // The maximum of rectified values is the rectified maximum, which takes a quarter of the work.
        let conv2 = ops::max_pool2d(&conv1.apply(&self.conv2)?, Pool2dConfig::square(2))?;
        Ok(vec![conv1, ops::relu(&conv2)?]) // (batch, 64, 12, 12)
    }

    fn head(&self, maps: &Tensor, mode: Mode) -> Result<Tensor> {
        let xs = self.dropout1.forward_at(maps, mode)?;
        let xs = ops::reshape(&xs, (xs.dim(0)?, ()))?; // (batch, 64 * 12 * 12)
        let xs = ops::relu(&xs.apply(&self.fc1)?)?; // (batch, 128)
        self.dropout2.forward_at(&xs, mode)?.apply(&self.fc2) // (batch, classes)
    }
}
