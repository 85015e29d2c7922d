//! Evaluation of classifiers.

use super::stop;
use crate::nn::Cost;
use crate::ops;
use crate::processes::{self, Processes, own_share};
use anyhow::{Context, Result};
use candle_core::{D, DType, Tensor};

/// A model's prediction for one labelled example.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// True class.
    pub label: u32,
    /// Most probable class according to the model.
    pub predicted: u32,
    /// Probability of the predicted class.
    pub probability: f32,
}

impl Prediction {
    /// Returns whether the predicted class is the label.
    pub fn is_correct(&self) -> bool {
        self.label == self.predicted
    }
}

/// A model's predictions for labelled examples, and their mean loss.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Mean loss; 0 without examples.
    pub loss: f64,
    /// One prediction per example, in the order of the examples.
    pub predictions: Vec<Prediction>,
}

impl Evaluation {
    /// Evaluates batches of logits `(batch, classes)` and labels `(batch)`, u32.
    ///
    /// The iterator runs inside [`ops::no_grad`], so a lazy one computes its logits without a graph.
    ///
    /// # Errors
    /// Fails if a batch is an error, or its logits and labels do not match.
    pub fn from_batches(
        cost: Cost,
        batches: impl IntoIterator<Item = Result<(Tensor, Tensor)>>,
    ) -> Result<Self> {
        ops::no_grad(|| {
            let (mut loss, mut predictions) = (0.0, vec![]);
            for batch in batches {
                stop::check()?;
                let (logits, labels) = batch?;
                let logits = logits.detach();
                let mean = cost.loss(&logits, &labels)?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
                loss += mean * labels.elem_count() as f64;
                let probabilities = cost.probabilities(&logits)?;
                let predicted = probabilities.argmax(D::Minus1)?.to_vec1::<u32>()?;
                let probability = probabilities.max(D::Minus1)?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
                let labels = labels.to_vec1::<u32>()?;
                predictions.extend(
                    labels.into_iter().zip(predicted).zip(probability).map(
                        |((label, predicted), probability)| Prediction { label, predicted, probability },
                    ),
                );
            }
            Ok(Self { loss: loss / predictions.len().max(1) as f64, predictions })
        })
    }

    /// Evaluates the examples at `indices`, divided among the processes.
    ///
    /// Outside of [`together`](processes::together), this process evaluates all of them.
    pub(super) fn divided(indices: &[u32], evaluate: impl FnOnce(&[u32]) -> Result<Self>) -> Result<Self> {
        let own = evaluate(&indices[own_share(indices.len())])?;
        match processes::current() {
            Some(processes) => {
                stop::finish()?;
                own.gathered(&*processes)
            }
            None => Ok(own),
        }
    }

    /// Joins the evaluations of all processes.
    fn gathered(&self, processes: &dyn Processes) -> Result<Self> {
        const BYTES: usize = 12;
        let mut bytes = (self.loss * self.predictions.len() as f64).to_le_bytes().to_vec();
        for &Prediction { label, predicted, probability } in &self.predictions {
            bytes.extend([label, predicted, probability.to_bits()].into_iter().flat_map(u32::to_le_bytes));
        }
        let (mut loss, mut predictions) = (0.0, vec![]);
        for part in processes.gather(&bytes)? {
            let (sum, part) = part.split_first_chunk().context("evaluation: found no loss")?;
            loss += f64::from_le_bytes(*sum);
            predictions.extend(part.as_chunks::<BYTES>().0.iter().map(|bytes| {
                let [label, predicted, probability] =
                    [0, 1, 2].map(|i| u32::from_le_bytes(bytes.as_chunks().0[i]));
                Prediction { label, predicted, probability: f32::from_bits(probability) }
            }));
        }
        Ok(Self { loss: loss / predictions.len().max(1) as f64, predictions })
    }

    /// Returns the number of correct predictions.
    pub fn correct(&self) -> usize {
        self.predictions.iter().filter(|prediction| prediction.is_correct()).count()
    }

    /// Returns the fraction of correct predictions; 0 without examples.
    pub fn accuracy(&self) -> f64 {
        self.correct() as f64 / self.predictions.len().max(1) as f64
    }

    /// Returns how often each class (row) was predicted as each class (column).
    ///
    /// # Errors
    /// Fails if a label or a predicted class is not below `classes`.
    pub fn confusion_matrix(&self, classes: usize) -> Result<Vec<Vec<u64>>> {
        let mut counts = vec![vec![0; classes]; classes];
        for &Prediction { label, predicted, .. } in &self.predictions {
            let row = counts.get_mut(label as usize);
            let count = row.and_then(|row| row.get_mut(predicted as usize)).with_context(|| {
                format!("confusion matrix: found class {}, expected below {classes}", label.max(predicted))
            })?;
            *count += 1;
        }
        Ok(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_confusion_matrix_counts_each_pair_and_refuses_unknown_classes() {
        let predictions = [(0, 0), (0, 2), (2, 0), (0, 2)].map(|(label, predicted)| Prediction {
            label,
            predicted,
            probability: 0.5,
        });
        let evaluation = Evaluation { loss: 0.0, predictions: predictions.to_vec() };
        assert_eq!(evaluation.correct(), 1);
        let expected = [vec![1, 0, 2], vec![0, 0, 0], vec![1, 0, 0]];
        assert_eq!(evaluation.confusion_matrix(3).unwrap(), expected);
        for classes in [0, 1, 2] {
            let message = evaluation.confusion_matrix(classes).unwrap_err().to_string();
            assert!(message.contains(&format!("expected below {classes}")), "{message}");
        }
    }

    #[test]
    fn an_evaluation_without_examples_has_accuracy_0() -> Result<()> {
        let evaluation = Evaluation::from_batches(Cost::SoftmaxCrossEntropy, [])?;
        assert_eq!((evaluation.loss, evaluation.accuracy(), evaluation.correct()), (0.0, 0.0, 0));
        Ok(())
    }
}
