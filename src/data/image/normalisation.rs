//! The mean and standard deviation for normalising images.

use serde::{Deserialize, Serialize};

/// The mean and standard deviation of each channel, for pixel values from 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Normalisation {
    /// Mean of each channel.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel.
    pub std: Vec<f64>,
}

impl Normalisation {
    /// The values for ImageNet, as used to train the networks of torchvision and timm.
    pub fn imagenet() -> Self {
        Self { mean: vec![0.485, 0.456, 0.406], std: vec![0.229, 0.224, 0.225] }
    }

    /// The values for the training images of MNIST, as in PyTorch's MNIST example.
    pub fn mnist() -> Self {
        Self { mean: vec![0.1307], std: vec![0.3081] }
    }

    /// Normalises consecutive planes of `size` values. Every `mean.len()` planes are an image.
    pub(super) fn apply(&self, pixels: &mut [f32], size: usize) {
        let [means, scales] = self.mean_and_scale();
        let channels = means.into_iter().zip(scales).collect::<Vec<_>>();
        for (plane, (mean, scale)) in pixels.chunks_mut(size).zip(channels.into_iter().cycle()) {
            plane.iter_mut().for_each(|value| *value = (*value - mean) * scale);
        }
    }

    /// The values to subtract from each channel, and the factors to multiply the differences with.
    pub(super) fn mean_and_scale(&self) -> [Vec<f32>; 2] {
        let mean = self.mean.iter().map(|&mean| mean as f32).collect();
        [mean, self.std.iter().map(|&std| 1.0 / std as f32).collect()]
    }
}
