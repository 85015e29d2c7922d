//! Architectures, one file each: a `Config`, a constructor that takes its parameters from a `VarBuilder` under the
//! names of the same PyTorch module, and a forward pass.

pub mod birnn;
pub mod fasttext;
pub mod language_model;
pub mod lenet;
pub mod lenet5;
pub mod mlp;
pub mod resnet;
pub mod rnn;
pub mod textcnn;

use crate::nn::{Mode, Model};
use candle_core::{Result, Tensor};

/// A model of pictures, which can show what its first layer looks for.
pub trait ImageModel: Model {
    /// The first layer's weight: `(units, ..)`, square pictures.
    fn filters(&self) -> &Tensor;

    /// What each convolutional stage makes of `xs` `(batch, channels, height, width)`: `(batch, channels', height',
    /// width')` each; nothing for a model without convolutions.
    ///
    /// # Errors
    /// When `xs` does not fit the model.
    fn feature_maps(&self, xs: &Tensor) -> Result<Vec<Tensor>>;

    /// Logits `(batch, classes)` of what the last convolutional stage has made of a batch, or of the batch itself where there
    /// is none: what [`Model::forward`] ends with.
    ///
    /// # Errors
    /// When `maps` do not fit the model.
    fn head(&self, maps: &Tensor, mode: Mode) -> Result<Tensor>;
}
