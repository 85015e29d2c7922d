//! Telling the class of a sentence, and the tags of its words.

use super::{Evaluation, Metric, Score, Task};
use crate::data::{NGrams, Vocabulary, entity_scores};
use crate::nn::{Cost, Mode, PackedSequences, SentenceModel};
use candle_core::{Device, Result, Tensor};
use std::sync::Arc;

/// Sentences in a batch of evaluation.
const EVALUATION_BATCH: usize = 256;

/// Sentences as numbers: of their words, or of their words' tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sentences {
    ids: Vec<u32>,
    /// Where each sentence starts, and where the last ends.
    starts: Vec<usize>,
}

impl Sentences {
    /// The numbers in `vocabulary` of the words, and of what else there is among `ngrams`; a sentence without words counts as
    /// one unknown word.
    pub fn encode<'a>(
        vocabulary: &Vocabulary,
        ngrams: NGrams,
        sentences: impl IntoIterator<Item = &'a Vec<String>>,
    ) -> Self {
        Self::new(sentences.into_iter().map(|words| ngrams.ids(vocabulary, words)))
    }

    pub fn new(sentences: impl IntoIterator<Item = Vec<u32>>) -> Self {
        let (mut ids, mut starts) = (vec![], vec![0]);
        for sentence in sentences {
            ids.extend(sentence);
            starts.push(ids.len());
        }
        Self { ids, starts }
    }

    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn sentence(&self, index: usize) -> &[u32] {
        &self.ids[self.starts[index]..self.starts[index + 1]]
    }

    /// The numbers `(rows)` of the sentences `which`, in the order of their sequences.
    ///
    /// # Errors
    /// When one of them is empty.
    pub fn batch(&self, which: &[u32], device: &Device) -> Result<(Tensor, Arc<PackedSequences>)> {
        let lengths: Vec<usize> = which.iter().map(|&i| self.sentence(i as usize).len()).collect();
        let sequences = Arc::new(PackedSequences::new(&lengths)?);
        Ok((self.rows(which, &sequences, device)?, sequences))
    }

    /// The numbers `(rows)` of the sentences `which`, in the order of `sequences`, which have their lengths.
    fn rows(&self, which: &[u32], sequences: &PackedSequences, device: &Device) -> Result<Tensor> {
        let id = |(sequence, step)| self.ids[self.starts[which[sequence] as usize] + step];
        Tensor::new(sequences.positions().map(id).collect::<Vec<u32>>(), device)
    }
}

/// A model that learns to classify sentences.
pub struct SentenceClassification<'a> {
    pub model: &'a dyn SentenceModel,
    pub sentences: &'a Sentences,
    /// The class of each sentence.
    pub labels: &'a [u32],
    /// Which of the sentences are for training, and which for validation.
    pub training: &'a [u32],
    pub validation: &'a [u32],
    pub device: &'a Device,
}

impl SentenceClassification<'_> {
    fn batch(&self, which: &[u32], mode: Mode) -> Result<(Tensor, Tensor)> {
        let (words, sequences) = self.sentences.batch(which, self.device)?;
        let labels: Vec<u32> = which.iter().map(|&i| self.labels[i as usize]).collect();
        Ok((self.model.forward(&words, &sequences, mode)?, Tensor::new(labels, self.device)?))
    }

    /// What the model says of the sentences `which`.
    ///
    /// # Errors
    /// When a sentence does not fit the model.
    pub fn evaluate(&self, which: &[u32]) -> Result<Evaluation> {
        let batches = which.chunks(EVALUATION_BATCH).map(|which| self.batch(which, Mode::Evaluate));
        Evaluation::of(Cost::SoftmaxCrossEntropy, batches)
    }
}

impl Task for SentenceClassification<'_> {
    fn examples(&self) -> usize {
        self.training.len()
    }

    fn loss(&self, batch: &[u32], mode: Mode) -> Result<Tensor> {
        let which: Vec<u32> = batch.iter().map(|&i| self.training[i as usize]).collect();
        let (logits, labels) = self.batch(&which, mode)?;
        Cost::SoftmaxCrossEntropy.loss(&logits, &labels)
    }

    fn validate(&self) -> Result<Score> {
        let evaluation = self.evaluate(self.validation)?;
        Ok(Score { loss: evaluation.loss, metric: evaluation.accuracy() })
    }

    fn metric(&self) -> Metric {
        Metric::Accuracy
    }
}

/// A model that learns to tag words; the metric is the F1 of whole entities.
pub struct Tagging<'a> {
    pub model: &'a dyn SentenceModel,
    pub words: &'a Sentences,
    pub tags: &'a Sentences,
    /// `O`, `B-PER`, `I-PER`, ...
    pub names: &'a [String],
    /// Which of the sentences are for training, and which for validation.
    pub training: &'a [u32],
    pub validation: &'a [u32],
    pub device: &'a Device,
}

/// What a model says of tagged sentences.
#[derive(Debug, Clone, PartialEq)]
pub struct Tagged {
    /// Of words.
    pub evaluation: Evaluation,
    /// The likeliest tags of each sentence.
    pub tags: Vec<Vec<u32>>,
}

impl Tagging<'_> {
    /// Logits and true tags of the words of the sentences `which`, and how they lie.
    fn batch(&self, which: &[u32], mode: Mode) -> Result<(Tensor, Tensor, Arc<PackedSequences>)> {
        let (words, sentences) = self.words.batch(which, self.device)?;
        let tags = self.tags.rows(which, &sentences, self.device)?;
        Ok((self.model.forward(&words, &sentences, mode)?, tags, sentences))
    }

    /// What the model says of the sentences `which`.
    ///
    /// # Errors
    /// When a sentence does not fit the model.
    pub fn evaluate(&self, which: &[u32]) -> Result<Tagged> {
        let mut sequences = vec![];
        let batches = which.chunks(EVALUATION_BATCH).map(|which| {
            let (logits, tags, sentences) = self.batch(which, Mode::Evaluate)?;
            sequences.push(sentences);
            Ok((logits, tags))
        });
        let evaluation = Evaluation::of(Cost::SoftmaxCrossEntropy, batches)?;
        // Back from rows to sentences.
        let (mut tags, mut said) = (vec![], evaluation.predictions.iter().map(|&(_, said, _)| said));
        for sentences in sequences {
            let mut batch: Vec<Vec<u32>> = vec![vec![]; sentences.batch()];
            sentences.positions().zip(&mut said).for_each(|((sentence, _), tag)| batch[sentence].push(tag));
            tags.extend(batch);
        }
        Ok(Tagged { evaluation, tags })
    }

    /// The true tags of the sentences `which`.
    pub fn truth(&self, which: &[u32]) -> Vec<Vec<u32>> {
        which.iter().map(|&i| self.tags.sentence(i as usize).to_vec()).collect()
    }
}

impl Task for Tagging<'_> {
    fn examples(&self) -> usize {
        self.training.len()
    }

    fn loss(&self, batch: &[u32], mode: Mode) -> Result<Tensor> {
        let which: Vec<u32> = batch.iter().map(|&i| self.training[i as usize]).collect();
        let (logits, tags, _) = self.batch(&which, mode)?;
        Cost::SoftmaxCrossEntropy.loss(&logits, &tags)
    }

    fn validate(&self) -> Result<Score> {
        let Tagged { evaluation, tags } = self.evaluate(self.validation)?;
        let scores = entity_scores(&self.truth(self.validation), &tags, self.names)
            .map_err(candle_core::Error::wrap)?;
        Ok(Score { loss: evaluation.loss, metric: scores.overall.f1() })
    }

    fn metric(&self) -> Metric {
        Metric::F1
    }
}
