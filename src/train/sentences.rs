//! Sentence classification.

use super::evaluation::Evaluation;
use super::metrics::{Metric, Score};
use super::task::Task;
use crate::data::{NGrams, Vocabulary};
use crate::nn::{Cost, Mode, PackedSequences, SentenceModel};
use anyhow::Result;
use candle_core::{Device, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// Sentences in a batch of an evaluation.
pub(super) const EVALUATION_BATCH: usize = 256;

/// Sentences as ids: of their words in a vocabulary, or of their words' tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sentences {
    ids: Vec<u32>,
    /// Start of each sentence in `ids`, then the end of the last.
    starts: Vec<usize>,
}

impl Sentences {
    /// Looks up the words of each sentence, and the n-grams that `ngrams` selects, in `vocabulary`.
    ///
    /// A sentence without words becomes a single unknown word.
    pub fn encode<'a>(
        vocabulary: &Vocabulary,
        ngrams: NGrams,
        sentences: impl IntoIterator<Item = &'a Vec<String>>,
    ) -> Self {
        Self::new(sentences.into_iter().map(|words| ngrams.ids(vocabulary, words)))
    }

    /// Collects sentences that are ids already.
    pub fn new(sentences: impl IntoIterator<Item = Vec<u32>>) -> Self {
        let (mut ids, mut starts) = (vec![], vec![0]);
        for sentence in sentences {
            ids.extend(sentence);
            starts.push(ids.len());
        }
        Self { ids, starts }
    }

    /// Returns the number of sentences.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Returns whether there are no sentences.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the ids of one sentence.
    ///
    /// # Panics
    /// Panics if `index` is not below [`len`](Self::len).
    pub fn sentence(&self, index: usize) -> &[u32] {
        &self.ids[self.starts[index]..self.starts[index + 1]]
    }

    /// Packs the sentences at `indices` into one tensor of ids `(rows)`.
    ///
    /// The rows have the order of the returned sequences.
    ///
    /// # Errors
    /// Fails if a sentence is empty.
    ///
    /// # Panics
    /// Panics if an index is not below [`len`](Self::len).
    pub fn batch(&self, indices: &[u32], device: &Device) -> Result<(Tensor, Arc<PackedSequences>)> {
        let sequences = self.layout(indices, 0..indices.len())?;
        let [ids] = sequences.with_layout([&self.rows(indices, &sequences)], device)?;
        Ok((ids, sequences))
    }

    /// Returns the layout of the sentences at `indices[share]`, as a share of the batch `indices`.
    pub(super) fn layout(&self, indices: &[u32], share: Range<usize>) -> Result<Arc<PackedSequences>> {
        let lengths: Vec<usize> = indices.iter().map(|&i| self.sentence(i as usize).len()).collect();
        Ok(Arc::new(PackedSequences::of_share(&lengths, share)?))
    }

    /// Returns the ids of the sentences at `indices` in the row order of `sequences`.
    ///
    /// `sequences` must have the sentences' lengths.
    pub(super) fn rows(&self, indices: &[u32], sequences: &PackedSequences) -> Vec<u32> {
        let id = |(sequence, step)| self.ids[self.starts[indices[sequence] as usize] + step];
        sequences.positions().map(id).collect()
    }
}

/// The task of classifying sentences.
///
/// This learns from texts of one's own. The other models of [`models`](crate::models) that are a [`SentenceModel`] take the place of
/// `FastText`; so does a model of your own.
///
/// ```
/// use candle_core::{DType, Device};
/// use candle_textbook::data::{NGrams, Tokenizer, Vocabulary};
/// use candle_textbook::models::fasttext::{Config, FastText};
/// use candle_textbook::nn::{Mode, SentenceModel, VarMap, seeded_var_builder};
/// use candle_textbook::optim::{Adam, Optimizer};
/// use candle_textbook::train::{SentenceClassification, Sentences, Trainer};
///
/// fn main() -> anyhow::Result<()> {
///     let texts = [("Good food!", 1), ("bad food", 0), ("a good room", 1), ("a bad room", 0)];
///     let words: Vec<Vec<String>> = texts.iter().map(|(text, _)| Tokenizer::Words.tokens(text)).collect();
///     let labels = texts.map(|(_, label)| label);
///     let vocabulary = Vocabulary::new(&words, true, 1); // in lower case, words that occur once or more
///     let sentences = Sentences::encode(&vocabulary, NGrams::default(), &words);
///
///     let (vars, device) = (VarMap::new(), Device::Cpu);
///     let config = Config { features: vocabulary.len(), embedding: 10, classes: 2 };
///     let model = FastText::new(&config, seeded_var_builder(&vars, 42, DType::F32, &device))?;
///     let task = SentenceClassification {
///         model: &model, sentences: &sentences, labels: &labels, training: &[0, 1, 2], validation: &[3], device: &device,
///     };
///     let mut trainer = Trainer::default();
///     (trainer.options.epochs, trainer.options.learning_rate) = (20, 0.1);
///     trainer.fit(&task, &vars, &mut Optimizer::new(Adam::default(), &vars)?)?;
///
///     // Another program also needs the vocabulary: `vocabulary.to_text()`, `Vocabulary::from_text`.
///     let new = [Tokenizer::Words.tokens("The room was good")];
///     let (ids, layout) = Sentences::encode(&vocabulary, NGrams::default(), &new).batch(&[0], &device)?;
///     let logits = model.forward(&ids, &layout, Mode::Evaluate)?;
///     assert_eq!(logits.argmax(1)?.to_vec1::<u32>()?, [1]);
///     Ok(())
/// }
/// ```
pub struct SentenceClassification<'a> {
    /// The model, which gives one row of logits per sentence.
    pub model: &'a dyn SentenceModel,
    /// All sentences, as word ids.
    pub sentences: &'a Sentences,
    /// The class of each sentence.
    pub labels: &'a [u32],
    /// Indices of the training sentences in `sentences`.
    pub training: &'a [u32],
    /// Indices of the validation sentences in `sentences`.
    pub validation: &'a [u32],
    /// The model's device.
    pub device: &'a Device,
}

impl SentenceClassification<'_> {
    /// Returns the logits and the labels of the sentences at `indices[share]`.
    fn batch(&self, indices: &[u32], share: Range<usize>, mode: Mode) -> Result<(Tensor, Tensor)> {
        let sequences = self.sentences.layout(indices, share.clone())?;
        let indices = &indices[share];
        let words = self.sentences.rows(indices, &sequences);
        let labels: Vec<u32> = indices.iter().map(|&i| self.labels[i as usize]).collect();
        let [words, labels] = sequences.with_layout([&words, &labels], self.device)?;
        Ok((self.model.forward(&words, &sequences, mode)?, labels))
    }

    /// Evaluates the model on the sentences at `indices`.
    ///
    /// # Errors
    /// Fails if a sentence does not fit the model.
    pub fn evaluate(&self, indices: &[u32]) -> Result<Evaluation> {
        Evaluation::divided(indices, |indices| {
            let batches = indices.chunks(EVALUATION_BATCH);
            let batches = batches.map(|indices| self.batch(indices, 0..indices.len(), Mode::Evaluate));
            Evaluation::from_batches(Cost::SoftmaxCrossEntropy, batches)
        })
    }
}

impl Task for SentenceClassification<'_> {
    fn examples(&self) -> usize {
        self.training.len()
    }

    fn loss(&self, batch: &[u32], mode: Mode) -> Result<Tensor> {
        self.loss_of_share(batch, mode)
    }

    fn loss_of_share(&self, batch: &[u32], mode: Mode) -> Result<Tensor> {
        let share = mode.examples(batch.len());
        let indices: Vec<u32> = batch.iter().map(|&i| self.training[i as usize]).collect();
        let (logits, labels) = self.batch(&indices, share, mode)?;
        Ok(Cost::SoftmaxCrossEntropy.loss(&logits, &labels)?)
    }

    fn validate(&self) -> Result<Score> {
        let evaluation = self.evaluate(self.validation)?;
        Ok(Score { loss: evaluation.loss, metric: evaluation.accuracy() })
    }

    fn is_capturable(&self) -> bool {
        true
    }

    fn metric(&self) -> Metric {
        Metric::ACCURACY
    }
}
