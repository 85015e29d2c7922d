//! The mean and standard deviation that images are normalised with.

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
    /// The values for ImageNet, with which the networks of torchvision and timm were trained.
    pub fn imagenet() -> Self {
        Self { mean: vec![0.485, 0.456, 0.406], std: vec![0.229, 0.224, 0.225] }
    }

    /// Normalises consecutive planes of `size` values, of which every `mean.len()` make an image.
    pub(super) fn apply(&self, pixels: &mut [f32], size: usize) {
        let channels = self.mean.iter().zip(&self.std).cycle();
        for (plane, (&mean, &std)) in pixels.chunks_mut(size).zip(channels) {
            let (mean, scale) = (mean as f32, 1.0 / std as f32);
            plane.iter_mut().for_each(|value| *value = (*value - mean) * scale);
        }
    }
}
