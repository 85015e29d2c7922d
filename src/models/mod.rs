//! Architectures, one file each.
//!
//! ```
//! use candle_core::{DType, Tensor};
//! use candle_textbook::device::DeviceChoice;
//! use candle_textbook::models::lenet::{Config, LeNet};
//! use candle_textbook::nn::{Mode, Model, VarMap, count_parameters, seeded_var_builder};
//!
//! fn main() -> anyhow::Result<()> {
//!     let (vars, device) = (VarMap::new(), DeviceChoice::Auto.open(true)?);
//!     let model = LeNet::new(&Config::default(), seeded_var_builder(&vars, 42, DType::F32, &device))?;
//!     let logits = model.forward(&Tensor::zeros((2, 1, 28, 28), DType::F32, &device)?, Mode::Evaluate)?;
//!     assert_eq!(logits.dims(), [2, 10]);
//!     assert_eq!(count_parameters(|vb| LeNet::new(&Config::default(), vb))?, 61_706);
//!     Ok(())
//! }
//! ```
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
