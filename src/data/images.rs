//! Labelled pictures, kept as bytes until the batch.

use super::Expansion;
use candle_core::{Device, Result, Tensor, bail};
use serde::{Deserialize, Serialize};

/// That of a channel which is the same everywhere, so that it can be divided by.
const LEAST_DEVIATION: f64 = 1.0 / 255.0;

/// Of each channel, the mean and the standard deviation of its pixels: what pictures are normalised with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    pub mean: Vec<f64>,
    pub deviation: Vec<f64>,
}

/// A set of labelled pictures of one size, a byte a pixel and channel: 0 is black, 255 full ink or light.
#[derive(Debug, Clone, PartialEq)]
pub struct Images {
    pixels: Vec<u8>,
    labels: Vec<u8>,
    shape: (usize, usize, usize),
    names: Vec<String>,
}

impl Images {
    /// `pixels` holds the pictures one after another, each `(channels, height, width)` row-major; `labels` one class each.
    /// The classes are named by their numbers.
    ///
    /// # Errors
    /// When the number of pixels is not that of `labels.len()` pictures, or a label is not below `classes`.
    pub fn new(
        pixels: Vec<u8>,
        labels: Vec<u8>,
        shape: (usize, usize, usize),
        classes: usize,
    ) -> Result<Self> {
        let size = shape.0 * shape.1 * shape.2;
        if pixels.len() != size * labels.len() {
            bail!(
                "{} labels go with {} pixels of {shape:?} pictures, but {} pixels were given",
                labels.len(),
                size * labels.len(),
                pixels.len()
            );
        }
        if let Some(at) = labels.iter().position(|&label| usize::from(label) >= classes) {
            bail!("label {} at position {at}, but the classes are 0 to {}", labels[at], classes - 1);
        }
        Ok(Self { pixels, labels, shape, names: (0..classes).map(|class| class.to_string()).collect() })
    }

    /// The same pictures, their classes with these names.
    ///
    /// # Errors
    /// When there are not as many names as classes.
    pub fn named<S: ToString>(mut self, names: impl IntoIterator<Item = S>) -> Result<Self> {
        let names: Vec<String> = names.into_iter().map(|name| name.to_string()).collect();
        if names.len() != self.classes() {
            bail!("{} names were given to {} classes", names.len(), self.classes());
        }
        self.names = names;
        Ok(self)
    }

    /// How many pictures there are.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// `(channels, height, width)` of each picture.
    pub fn shape(&self) -> (usize, usize, usize) {
        self.shape
    }

    /// How many classes the labels are drawn from.
    pub fn classes(&self) -> usize {
        self.names.len()
    }

    /// What each class is called.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The class of each picture.
    pub fn labels(&self) -> &[u8] {
        &self.labels
    }

    /// The bytes of picture `index`, `(channels, height, width)` row-major.
    pub fn picture(&self, index: usize) -> &[u8] {
        let size = self.shape.0 * self.shape.1 * self.shape.2;
        &self.pixels[index * size..(index + 1) * size]
    }

    /// Keeps only the first `len` pictures.
    pub fn truncate(&mut self, len: usize) {
        self.labels.truncate(len);
        self.pixels.truncate(len * self.shape.0 * self.shape.1 * self.shape.2);
    }

    /// The pictures `indices`, f32 in 0 to 1 of shape `(batch, channels, height, width)`, and their labels, u32 of shape `(batch)`.
    ///
    /// # Errors
    /// When `device` has no room.
    pub fn batch(&self, indices: &[u32], device: &Device) -> Result<(Tensor, Tensor)> {
        let (channels, height, width) = self.shape;
        let mut pixels = Vec::with_capacity(indices.len() * channels * height * width);
        for &index in indices {
            pixels.extend(self.picture(index as usize).iter().map(|&byte| f32::from(byte) / 255.0));
        }
        Ok((
            Tensor::from_vec(pixels, (indices.len(), channels, height, width), device)?,
            self.labels_of(indices, device)?,
        ))
    }

    /// As [`batch`](Self::batch), each picture changed as [`Expansion::batch`] says.
    ///
    /// # Errors
    /// When `device` has no room.
    pub fn expanded_batch(
        &self,
        indices: &[u32],
        expansion: &Expansion,
        seed: u64,
        epoch: usize,
        device: &Device,
    ) -> Result<(Tensor, Tensor)> {
        let picture = |at: usize| self.picture(indices[at] as usize);
        let pixels = expansion.batch(indices, picture, self.shape, (seed, epoch), device)?;
        Ok((pixels, self.labels_of(indices, device)?))
    }

    /// The mean and the standard deviation of each channel over the pictures `indices`, in 0 to 1; exact sums, so the
    /// same in whatever order.
    pub fn statistics(&self, indices: &[u32]) -> Statistics {
        let (channels, height, width) = self.shape;
        let (mut sums, mut squares) = (vec![0_u64; channels], vec![0_u64; channels]);
        for &index in indices {
            for (channel, plane) in self.picture(index as usize).chunks(height * width).enumerate() {
                // Of so many bytes the squares' sum is below 2^32.
                for part in plane.chunks(1 << 16) {
                    sums[channel] += u64::from(part.iter().map(|&byte| u32::from(byte)).sum::<u32>());
                    squares[channel] +=
                        u64::from(part.iter().map(|&byte| u32::from(byte) * u32::from(byte)).sum::<u32>());
                }
            }
        }
        let count = (indices.len() * height * width).max(1) as f64;
        let mean: Vec<f64> = sums.iter().map(|&sum| sum as f64 / count / 255.0).collect();
        let deviation = squares.iter().zip(&mean).map(|(&sum, mean)| {
            (sum as f64 / count / (255.0 * 255.0) - mean * mean).max(0.0).sqrt().max(LEAST_DEVIATION)
        });
        Statistics { deviation: deviation.collect(), mean }
    }

    /// The labels of the pictures `indices`, u32 of shape `(batch)`.
    ///
    /// # Errors
    /// When `device` has no room.
    pub fn labels_of(&self, indices: &[u32], device: &Device) -> Result<Tensor> {
        let labels: Vec<u32> = indices.iter().map(|&index| u32::from(self.labels[index as usize])).collect();
        Tensor::from_vec(labels, indices.len(), device)
    }
}
