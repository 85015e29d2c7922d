//! Architectures, one file each.
//!
//! Each has a `Config`, a constructor that takes its parameters from a `VarBuilder` under the names of the PyTorch
//! module, and a forward pass.

pub mod birnn;
pub mod fasttext;
pub mod language_model;
pub mod lenet;
pub mod lenet5;
pub mod mlp;
pub mod mnist_cnn;
pub mod music;
pub mod resnet;
pub mod rnn;
pub mod seq2seq;
pub mod textcnn;

use crate::nn::{Mode, Model};
use candle_core::{Result, Tensor};

/// A model of images, whose first layer and feature maps can be plotted.
pub trait ImageModel: Model {
    /// The weight of the first layer, `(units, ..)`; each unit's weights form a square image.
    fn filters(&self) -> &Tensor;

    /// Computes the output of each convolutional stage for the images `xs`.
    ///
    /// Maps `(batch, channels, height, width)` to one `(batch, channels', height', width')` per stage. A model without
    /// convolutions returns no maps.
    ///
    /// # Errors
    /// Fails if `xs` does not fit the model.
    fn feature_maps(&self, xs: &Tensor) -> Result<Vec<Tensor>>;

    /// Computes logits `(batch, classes)` from the last feature maps, or from the images.
    ///
    /// This is the last part of [`Model::forward`]. It starts from the images if the model has no convolutions.
    ///
    /// # Errors
    /// Fails if `maps` do not fit the model.
    fn head(&self, maps: &Tensor, mode: Mode) -> Result<Tensor>;
}
