//! Telling the class of a picture.

use super::{Metric, Score, Task};
use crate::data::{Augmentation, Images};
use crate::nn::{Cost, Mode, Model};
use crate::ops;
use candle_core::{D, DType, Device, Result, Tensor};

/// Pictures in a batch of evaluation, at most, and their pixels if they are large.
const EVALUATION_BATCH: usize = 500;
const EVALUATION_PIXELS: usize = 1 << 17;

/// A model that learns to classify pictures.
pub struct ImageClassification<'a> {
    pub model: &'a dyn Model,
    pub cost: Cost,
    pub images: &'a Images,
    /// Which of the images are for training, and which for validation.
    pub training: &'a [u32],
    pub validation: &'a [u32],
    /// How training pictures are changed each time they are seen.
    pub augmentation: Option<Augmentation>,
    /// How much of a label is spread over all classes in training: see [`crate::ops::softmax_cross_entropy`], the cost that has
    /// it.
    pub label_smoothing: f64,
    pub device: &'a Device,
}

impl Task for ImageClassification<'_> {
    fn examples(&self) -> usize {
        self.training.len()
    }

    fn announce(&self, batches: &[&[u32]]) {
        self.images.read_ahead(batches.iter().map(|batch| self.pictures(batch)).collect());
    }

    fn loss(&self, batch: &[u32], mode: Mode) -> Result<Tensor> {
        let pictures = self.pictures(batch);
        let (xs, labels) = match (&self.augmentation, mode) {
            (Some(augmentation), Mode::Train { seed, epoch, .. }) => {
                self.images.augmented_batch(&pictures, augmentation, seed, epoch, self.device)?
            }
            _ => self.images.batch(&pictures, self.device)?,
        };
        let logits = self.model.forward(&xs, mode)?;
        match self.label_smoothing {
            0.0 => self.cost.loss(&logits, &labels),
            smoothing => ops::softmax_cross_entropy(&logits, &labels, smoothing),
        }
    }

    fn validate(&self) -> Result<Score> {
        let evaluation = evaluate(self.model, self.cost, self.images, self.validation, self.device)?;
        Ok(Score { loss: evaluation.loss, metric: evaluation.accuracy() })
    }

    fn metric(&self) -> Metric {
        Metric::Accuracy
    }
}

impl ImageClassification<'_> {
    fn pictures(&self, batch: &[u32]) -> Vec<u32> {
        batch.iter().map(|&i| self.training[i as usize]).collect()
    }
}

/// What a model says of labelled examples.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Mean loss.
    pub loss: f64,
    /// Of each example, its true class, the likeliest class and that class's probability.
    pub predictions: Vec<(u32, u32, f32)>,
}

impl Evaluation {
    /// Of batches of logits `(batch, classes)` and labels `(batch)`, made one by one, without gradients.
    ///
    /// # Errors
    /// Those of the batches.
    pub fn of(cost: Cost, batches: impl IntoIterator<Item = Result<(Tensor, Tensor)>>) -> Result<Self> {
        ops::no_grad(|| {
            let (mut loss, mut predictions) = (0.0, vec![]);
            for batch in batches {
                let (logits, labels) = batch?;
                let logits = logits.detach();
                let mean = cost.loss(&logits, &labels)?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
                loss += mean * labels.elem_count() as f64;
                let probabilities = cost.probabilities(&logits)?;
                let said = probabilities.argmax(D::Minus1)?.to_vec1::<u32>()?;
                let probability = probabilities.max(D::Minus1)?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
                let truth = labels.to_vec1::<u32>()?;
                predictions.extend(truth.into_iter().zip(said).zip(probability).map(|((t, s), p)| (t, s, p)));
            }
            Ok(Self { loss: loss / predictions.len().max(1) as f64, predictions })
        })
    }

    /// How many examples' likeliest class is the true one.
    pub fn right(&self) -> usize {
        self.predictions.iter().filter(|(label, said, _)| label == said).count()
    }

    /// The fraction of examples whose likeliest class is the true one; 0 where there are none.
    pub fn accuracy(&self) -> f64 {
        self.right() as f64 / self.predictions.len().max(1) as f64
    }

    /// How often each class (row) was said to be each class (column).
    pub fn confusion(&self, classes: usize) -> Vec<Vec<u64>> {
        let mut counts = vec![vec![0; classes]; classes];
        for &(label, said, _) in &self.predictions {
            counts[label as usize][said as usize] += 1;
        }
        counts
    }
}

/// Evaluates `model` on the pictures `indices` of `images`.
///
/// # Errors
/// When the pictures do not fit the model.
pub fn evaluate(
    model: &dyn Model,
    cost: Cost,
    images: &Images,
    indices: &[u32],
    device: &Device,
) -> Result<Evaluation> {
    let (_, height, width) = images.shape();
    let batch = (EVALUATION_PIXELS / (height * width)).clamp(2, EVALUATION_BATCH);
    Evaluation::of(
        cost,
        indices.chunks(batch).map(|batch| {
            let (xs, labels) = images.batch(batch, device)?;
            Ok((model.forward(&xs, Mode::Evaluate)?, labels))
        }),
    )
}
