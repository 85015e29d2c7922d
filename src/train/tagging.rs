//! Tagging of words: named-entity recognition.

use super::evaluation::Evaluation;
use super::metrics::{Metric, Score};
use super::sentences::{EVALUATION_BATCH, Sentences};
use super::shares::divided_lists;
use super::task::Task;
use crate::data::entity_scores;
use crate::nn::{Cost, Mode, PackedSequences, SentenceModel};
use anyhow::Result;
use candle_core::{Device, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// The task of tagging the words of sentences. The metric is the F1 score of whole entities.
pub struct Tagging<'a> {
    /// The model, which gives one row of logits per word.
    pub model: &'a dyn SentenceModel,
    /// All sentences, as word ids.
    pub words: &'a Sentences,
    /// The tags of all sentences: one tag per word.
    pub tags: &'a Sentences,
    /// Names of the tags: `O`, `B-PER`, `I-PER`, ...
    pub names: &'a [String],
    /// Indices of the training sentences in `words`.
    pub training: &'a [u32],
    /// Indices of the validation sentences in `words`.
    pub validation: &'a [u32],
    /// The model's device.
    pub device: &'a Device,
}

/// A model's predictions for tagged sentences.
#[derive(Debug, Clone, PartialEq)]
pub struct TaggingEvaluation {
    /// One prediction per word, in the row order of the evaluation's batches.
    pub words: Evaluation,
    /// The predicted tags of each sentence, in the order of the sentences and their words.
    pub tags: Vec<Vec<u32>>,
}

impl Tagging<'_> {
    /// Returns the logits and the true tags of the sentences at `indices[share]`, and their row order.
    fn batch(
        &self,
        indices: &[u32],
        share: Range<usize>,
        mode: Mode,
    ) -> Result<(Tensor, Tensor, Arc<PackedSequences>)> {
        let sequences = self.words.layout(indices, share.clone())?;
        let indices = &indices[share];
        let [words, tags] = [self.words, self.tags].map(|sentences| sentences.rows(indices, &sequences));
        let [words, tags] = sequences.with_layout([&words, &tags], self.device)?;
        Ok((self.model.forward(&words, &sequences, mode)?, tags, sequences))
    }

    /// Evaluates the model on the sentences at `indices`.
    ///
    /// # Errors
    /// Fails if a sentence does not fit the model.
    pub fn evaluate(&self, indices: &[u32]) -> Result<TaggingEvaluation> {
        let mut tags = vec![];
        let words = Evaluation::divided(indices, |indices| {
            let mut packed = vec![];
            let batches = indices.chunks(EVALUATION_BATCH).map(|indices| {
                let (logits, tags, sequences) = self.batch(indices, 0..indices.len(), Mode::Evaluate)?;
                packed.push(sequences);
                Ok((logits, tags))
            });
            let words = Evaluation::from_batches(Cost::SoftmaxCrossEntropy, batches)?;
            let mut predicted = words.predictions.iter().map(|prediction| prediction.predicted);
            for sequences in packed {
                let mut batch: Vec<Vec<u32>> = vec![vec![]; sequences.batch()];
                for ((sentence, _), tag) in sequences.positions().zip(&mut predicted) {
                    batch[sentence].push(tag);
                }
                tags.extend(batch);
            }
            Ok(words)
        })?;
        Ok(TaggingEvaluation { words, tags: divided_lists(indices.len(), |_| Ok(tags))? })
    }

    /// Returns the true tags of the sentences at `indices`.
    pub fn true_tags(&self, indices: &[u32]) -> Vec<Vec<u32>> {
        indices.iter().map(|&i| self.tags.sentence(i as usize).to_vec()).collect()
    }
}

impl Task for Tagging<'_> {
    fn examples(&self) -> usize {
        self.training.len()
    }

    fn loss(&self, batch: &[u32], mode: Mode) -> Result<Tensor> {
        self.loss_of_share(batch, mode)
    }

    fn loss_of_share(&self, batch: &[u32], mode: Mode) -> Result<Tensor> {
        let share = mode.examples(batch.len());
        let indices: Vec<u32> = batch.iter().map(|&i| self.training[i as usize]).collect();
        let (logits, tags, _) = self.batch(&indices, share, mode)?;
        Ok(Cost::SoftmaxCrossEntropy.loss(&logits, &tags)?)
    }

    /// The number of words.
    fn weight(&self, batch: &[u32]) -> f64 {
        let length = |&i: &u32| self.words.sentence(self.training[i as usize] as usize).len();
        batch.iter().map(length).sum::<usize>() as f64
    }

    fn validate(&self) -> Result<Score> {
        let TaggingEvaluation { words, tags } = self.evaluate(self.validation)?;
        let scores = entity_scores(&self.true_tags(self.validation), &tags, self.names)?;
        Ok(Score { loss: words.loss, metric: scores.overall.f1() })
    }

    fn is_capturable(&self) -> bool {
        true
    }

    fn metric(&self) -> Metric {
        Metric::F1
    }
}
