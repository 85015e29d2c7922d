//! Image classification.

use super::evaluation::Evaluation;
use super::metrics::{Metric, Score};
use super::task::Task;
use crate::data::{Augmentation, Images};
use crate::nn::{Cost, Mode, Model};
use crate::ops;
use anyhow::Result;
use candle_core::{Device, Tensor};

/// Largest number of images, and of pixels per channel, in a batch of an evaluation.
const EVALUATION_BATCH: usize = 500;
const EVALUATION_PIXELS: usize = 1 << 17;

/// The task of classifying images.
pub struct ImageClassification<'a> {
    /// The model, which maps images `(batch, channels, height, width)` to logits `(batch, classes)`.
    pub model: &'a dyn Model,
    /// The cost to minimise.
    pub cost: Cost,
    /// The images with their labels.
    pub images: &'a Images,
    /// Indices of the training images in `images`.
    pub training: &'a [u32],
    /// Indices of the validation images in `images`.
    pub validation: &'a [u32],
    /// Augmentation of the training images, drawn again in each epoch.
    pub augmentation: Option<Augmentation>,
    /// Probability mass that training spreads evenly over all classes.
    ///
    /// Only [`crate::ops::softmax_cross_entropy`] supports a value other than 0.
    pub label_smoothing: f64,
    /// The model's device.
    pub device: &'a Device,
}

impl Task for ImageClassification<'_> {
    fn examples(&self) -> usize {
        self.training.len()
    }

    fn prefetch(&self, batches: &[&[u32]]) {
        self.images.read_ahead(batches.iter().map(|batch| self.indices(batch)).collect());
    }

    fn loss(&self, batch: &[u32], mode: Mode) -> Result<Tensor> {
        let indices = self.indices(batch);
        let (xs, labels) = match (&self.augmentation, mode) {
            (Some(augmentation), Mode::Train { seed, epoch, .. }) => {
                self.images.augmented_batch(&indices, augmentation, seed, epoch, self.device)?
            }
            _ => self.images.batch(&indices, self.device)?,
        };
        let logits = self.model.forward(&xs, mode)?;
        Ok(match self.label_smoothing {
            0.0 => self.cost.loss(&logits, &labels)?,
            smoothing => ops::softmax_cross_entropy(&logits, &labels, smoothing)?,
        })
    }

    fn validate(&self) -> Result<Score> {
        let evaluation = evaluate_images(self.model, self.cost, self.images, self.validation, self.device)?;
        Ok(Score { loss: evaluation.loss, metric: evaluation.accuracy() })
    }

    fn is_capturable(&self) -> bool {
        true
    }

    fn metric(&self) -> Metric {
        Metric::ACCURACY
    }
}

impl ImageClassification<'_> {
    /// Maps training examples to indices in `images`.
    fn indices(&self, batch: &[u32]) -> Vec<u32> {
        batch.iter().map(|&i| self.training[i as usize]).collect()
    }
}

/// Evaluates an image classifier on the images at `indices`.
///
/// # Errors
/// Fails if an image cannot be read or does not fit the model.
pub fn evaluate_images(
    model: &dyn Model,
    cost: Cost,
    images: &Images,
    indices: &[u32],
    device: &Device,
) -> Result<Evaluation> {
    let (_, height, width) = images.shape();
    let batch = (EVALUATION_PIXELS / (height * width)).clamp(2, EVALUATION_BATCH);
    Evaluation::divided(indices, |indices| {
        let batches = indices.chunks(batch).map(|batch| {
            let (xs, labels) = images.batch(batch, device)?;
            Ok((model.forward(&xs, Mode::Evaluate)?, labels))
        });
        Evaluation::from_batches(cost, batches)
    })
}
