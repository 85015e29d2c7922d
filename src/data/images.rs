//! Labelled pictures, kept as bytes until the batch.

use super::Augmentation;
use super::folder::Files;
use candle_core::{Device, Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::path::Path;

/// That of a channel which is the same everywhere, so that it can be divided by.
const LEAST_DEVIATION: f64 = 1.0 / 255.0;

/// Of so many pictures in files the statistics are taken.
const SAMPLE: usize = 2000;

/// Sets of files that take no more bytes than this, decoded, are better read once.
const MOST_IN_MEMORY: usize = 256 << 20;

/// Of each channel, the mean and the standard deviation of its pixels in 0 to 1: what pictures are normalised with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    pub mean: Vec<f64>,
    pub deviation: Vec<f64>,
}

impl Statistics {
    /// Those of ImageNet's training pictures, with which the networks of torchvision and timm were trained.
    pub fn imagenet() -> Self {
        Self { mean: vec![0.485, 0.456, 0.406], deviation: vec![0.229, 0.224, 0.225] }
    }
}

/// A set of labelled pictures of one size, a byte a pixel and channel: 0 is black, 255 full ink or light.
///
/// Those of a folder stay in their files until they are wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct Images {
    pixels: Pixels,
    labels: Vec<u32>,
    shape: (usize, usize, usize),
    names: Vec<String>,
    normalisation: Option<Statistics>,
}

#[derive(Debug, Clone, PartialEq)]
enum Pixels {
    Memory(Vec<u8>),
    Files(Files),
}

impl Images {
    /// `pixels` holds the pictures one after another, each `(channels, height, width)` row-major; `labels` one class each.
    /// The classes are named by their numbers.
    ///
    /// # Errors
    /// When the number of pixels is not that of `labels.len()` pictures, or a label is not below `classes`.
    pub fn new<L: Into<u32>>(
        pixels: Vec<u8>,
        labels: Vec<L>,
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
        let labels: Vec<u32> = labels.into_iter().map(Into::into).collect();
        if let Some(at) = labels.iter().position(|&label| label as usize >= classes) {
            bail!("label {} at position {at}, but the classes are 0 to {}", labels[at], classes - 1);
        }
        let names = (0..classes).map(|class| class.to_string()).collect();
        Ok(Self { pixels: Pixels::Memory(pixels), labels, shape, names, normalisation: None })
    }

    /// Pictures in files, a label each.
    pub(super) fn in_files(files: Files, labels: Vec<u32>, names: Vec<String>) -> Self {
        let shape = (3, files.side(), files.side());
        Self { pixels: Pixels::Files(files), labels, shape, names, normalisation: None }
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
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// Bytes of a picture.
    fn size(&self) -> usize {
        self.shape.0 * self.shape.1 * self.shape.2
    }

    /// The bytes of picture `index`, `(channels, height, width)` row-major.
    ///
    /// # Errors
    /// When its file can't be read.
    pub fn picture(&self, index: usize) -> Result<Cow<'_, [u8]>> {
        match &self.pixels {
            Pixels::Memory(pixels) => Ok(pixels[index * self.size()..][..self.size()].into()),
            Pixels::Files(_) => Ok(self.read(&[index as u32])?.into()),
        }
    }

    /// The file of picture `index`, where it is in one.
    pub fn path(&self, index: usize) -> Option<&Path> {
        match &self.pixels {
            Pixels::Memory(_) => None,
            Pixels::Files(files) => Some(files.path(index)),
        }
    }

    /// The bytes of the pictures `indices`, one after another. Files are read on all threads.
    ///
    /// # Errors
    /// Of the first file that can't be read.
    pub fn read(&self, indices: &[u32]) -> Result<Vec<u8>> {
        match &self.pixels {
            Pixels::Memory(pixels) => {
                let picture = |&index: &u32| &pixels[index as usize * self.size()..][..self.size()];
                Ok(indices.iter().map(picture).collect::<Vec<_>>().concat())
            }
            // Candle's layers have one kind of error.
            Pixels::Files(files) => {
                files.read(indices).map_err(|error| candle_core::Error::Msg(format!("{error:#}")))
            }
        }
    }

    /// Has files read ahead of their use, on other threads, for these batches, if they are then asked for in this order.
    pub fn read_ahead(&self, batches: Vec<Vec<u32>>) {
        if let Pixels::Files(files) = &self.pixels {
            files.read_ahead(batches);
        }
    }

    /// Reads all that is in files, and keeps it if that takes no more than 256 MB.
    ///
    /// # Errors
    /// Of the first file that can't be read.
    pub fn keep(&mut self) -> Result<()> {
        if matches!(self.pixels, Pixels::Files(_)) && self.len() <= MOST_IN_MEMORY / self.size() {
            let all: Vec<u32> = (0..self.len() as u32).collect();
            self.pixels = Pixels::Memory(self.read(&all)?);
        }
        Ok(())
    }

    /// Keeps only the first `len` pictures.
    pub fn truncate(&mut self, len: usize) {
        self.labels.truncate(len);
        let bytes = len * self.size();
        match &mut self.pixels {
            Pixels::Memory(pixels) => pixels.truncate(bytes),
            Pixels::Files(files) => files.truncate(len),
        }
    }

    /// Batches then hold each channel less its mean and divided by its deviation.
    ///
    /// # Errors
    /// When there are statistics of another number of channels.
    pub fn normalise(&mut self, statistics: Statistics) -> Result<()> {
        let found = (statistics.mean.len(), statistics.deviation.len());
        if found != (self.shape.0, self.shape.0) {
            bail!("statistics of {found:?} channels, but the pictures have {}", self.shape.0);
        }
        self.normalisation = Some(statistics);
        Ok(())
    }

    /// The pictures `indices`, f32 of shape `(batch, channels, height, width)`, in 0 to 1 or
    /// [normalised](Self::normalise), and their labels, u32 of shape `(batch)`.
    ///
    /// # Errors
    /// When `device` has no room, or a file can't be read.
    pub fn batch(&self, indices: &[u32], device: &Device) -> Result<(Tensor, Tensor)> {
        let bytes = self.read(indices)?;
        self.tensors(indices, bytes.iter().map(|&byte| f32::from(byte) / 255.0).collect(), device)
    }

    /// As [`batch`](Self::batch), each picture changed as [`Expansion::apply_to`] says.
    ///
    /// # Errors
    /// As for [`batch`](Self::batch).
    pub fn augmented_batch(
        &self,
        indices: &[u32],
        augmentation: &Augmentation,
        seed: u64,
        epoch: usize,
        device: &Device,
    ) -> Result<(Tensor, Tensor)> {
        let pixels = augmentation.apply_to(indices, &self.read(indices)?, self.shape, (seed, epoch));
        self.tensors(indices, pixels, device)
    }

    /// What is in 0 to 1, as a model wants it, with the labels.
    fn tensors(&self, indices: &[u32], mut pixels: Vec<f32>, device: &Device) -> Result<(Tensor, Tensor)> {
        let (channels, height, width) = self.shape;
        if let Some(Statistics { mean, deviation }) = &self.normalisation {
            let plane = |(at, plane): (usize, &mut [f32])| {
                let channel = at % channels;
                let (mean, scale) = (mean[channel] as f32, 1.0 / deviation[channel] as f32);
                plane.iter_mut().for_each(|value| *value = (*value - mean) * scale);
            };
            pixels.chunks_mut(height * width).enumerate().for_each(plane);
        }
        let pixels = Tensor::from_vec(pixels, (indices.len(), channels, height, width), device)?;
        let labels: Vec<u32> = indices.iter().map(|&index| self.labels[index as usize]).collect();
        Ok((pixels, Tensor::from_vec(labels, indices.len(), device)?))
    }

    /// The mean and the standard deviation of each channel over the pictures `indices`; of pictures in files, over 2,000 of
    /// these, evenly spread. Exact sums, so the same in whatever order.
    ///
    /// # Errors
    /// When a file can't be read.
    pub fn statistics(&self, indices: &[u32]) -> Result<Statistics> {
        let (channels, height, width) = self.shape;
        let step = match self.pixels {
            Pixels::Memory(_) => 1,
            Pixels::Files(_) => indices.len().div_ceil(SAMPLE).max(1),
        };
        let indices: Vec<u32> = indices.iter().copied().step_by(step).collect();
        let (mut sums, mut squares) = (vec![0_u64; channels], vec![0_u64; channels]);
        for indices in indices.chunks(64) {
            for (at, plane) in self.read(indices)?.chunks(height * width).enumerate() {
                // Of so many bytes the squares' sum is below 2^32.
                for part in plane.chunks(1 << 16) {
                    sums[at % channels] += u64::from(part.iter().map(|&byte| u32::from(byte)).sum::<u32>());
                    squares[at % channels] +=
                        u64::from(part.iter().map(|&byte| u32::from(byte) * u32::from(byte)).sum::<u32>());
                }
            }
        }
        let count = (indices.len() * height * width).max(1) as f64;
        let mean: Vec<f64> = sums.iter().map(|&sum| sum as f64 / count / 255.0).collect();
        let deviation = squares.iter().zip(&mean).map(|(&sum, mean)| {
            (sum as f64 / count / (255.0 * 255.0) - mean * mean).max(0.0).sqrt().max(LEAST_DEVIATION)
        });
        Ok(Statistics { deviation: deviation.collect(), mean })
    }
}
