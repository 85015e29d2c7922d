//! Training of encoder-decoders on sentences and their translations.

use super::metrics::{Metric, Score};
use super::shares::{divided_lists, divided_sums};
use super::stop;
use super::task::Task;
use super::translator::{Decoding, Hypothesis, Translator};
use crate::data::{Language, Pairs};
use crate::models::seq2seq::{PackedTokens, Seq2Seq};
use crate::nn::{Mode, PackedSequences};
use crate::ops;
use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;

/// Pairs in a batch of an evaluation.
const EVALUATION_BATCH: usize = 64;

/// The teacher-forcing rate, as a function of the training step (Bengio et al. 2015, section 2.4).
///
/// It is the probability that the decoder reads a token of the target rather than its own prediction.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TeacherForcing {
    /// The same rate in all steps.
    Constant(f64),
    /// Falls linearly from 1 at the start to `end` after `steps` steps, and then stays.
    Linear {
        /// The final rate.
        end: f64,
        /// Number of steps.
        steps: u64,
    },
    /// `k / (k + exp(step / k))`: close to 1 at first, then falling to 0.
    ///
    /// It is one half after `k ln k` steps.
    InverseSigmoid {
        /// The larger, the slower the rate falls; at least 1.
        k: f64,
    },
}

impl Default for TeacherForcing {
    /// Always the target.
    fn default() -> Self {
        Self::Constant(1.0)
    }
}

impl TeacherForcing {
    /// Returns the rate of a training step, counted from 0.
    pub fn rate(self, step: u64) -> f64 {
        match self {
            Self::Constant(rate) => rate,
            Self::Linear { end, steps } if step < steps => 1.0 - (1.0 - end) * (step as f64 / steps as f64),
            Self::Linear { end, .. } => end,
            Self::InverseSigmoid { k } => k / (k + libm::exp(step as f64 / k)),
        }
    }
}

/// The validation metric of a [`Translation`] task.
#[derive(Clone, Copy)]
pub enum Scoring<'a> {
    /// Perplexity of the true translations.
    Perplexity,
    /// Fraction of greedy translations that equal the true translation.
    ExactMatch {
        /// The maximum number of tokens of a translation.
        max_length: usize,
    },
    /// BLEU of greedy translations.
    Bleu {
        /// The maximum number of tokens of a translation.
        max_length: usize,
        /// Computes the BLEU, from 0 to 100, of translations in the order of the validation data.
        bleu: &'a dyn Fn(&[Vec<u32>]) -> f64,
    },
}

/// The task of translating sentences.
///
/// The encoder reads a source and its end. The decoder begins with [`Language::BEGIN`], reads the target, and predicts
/// the target and its end. The loss is the mean over all target tokens of a batch and their ends. Batches hold no
/// padding, so sentences of any lengths may share one.
pub struct Translation<'a> {
    /// The model to train.
    pub model: &'a Seq2Seq,
    /// Pairs to train on.
    pub training: &'a Pairs,
    /// Pairs to validate on.
    pub validation: &'a Pairs,
    /// The teacher-forcing rate.
    pub forcing: TeacherForcing,
    /// Label smoothing of the training loss, from 0 to 1.
    ///
    /// See [`softmax_cross_entropy`](crate::ops::softmax_cross_entropy).
    pub label_smoothing: f64,
    /// How to score the model on the validation data.
    pub scoring: Scoring<'a>,
    /// The model's device.
    pub device: &'a Device,
}

/// Returns the mean loss of `pairs` in nats per target token, ends included.
///
/// The decoder reads the true translation up to each token.
///
/// # Errors
/// Fails if there are no pairs, or an id is outside its vocabulary.
pub fn evaluate_translation(model: &Seq2Seq, pairs: &Pairs, device: &Device) -> Result<f64> {
    let indices: Vec<u32> = (0..pairs.len() as u32).collect();
    let [sum, tokens] = divided_sums(indices.len(), |own| {
        let (mut sum, mut tokens) = (0.0, 0);
        for indices in indices[own].chunks(EVALUATION_BATCH) {
            stop::check()?;
            let batch = Batch::new(pairs, indices, 0..indices.len(), device)?;
            let loss = ops::no_grad(|| batch.loss(model, 1.0, 0.0, Mode::Evaluate))?;
            let rows = batch.next.elem_count();
            sum += loss.to_dtype(DType::F64)?.to_scalar::<f64>()? * rows as f64;
            tokens += rows;
        }
        Ok([sum, tokens as f64])
    })?;
    ensure!(tokens > 0.0, "translation: found no pairs to evaluate, expected at least one");
    Ok(sum / tokens)
}

/// Pairs as tensors for the model.
struct Batch {
    sources: PackedTokens,
    targets: PackedTokens,
    /// The token that follows each target token.
    next: Tensor,
}

impl Batch {
    /// Packs the pairs at `indices[share]`, as a share of the batch `indices`.
    fn new(pairs: &Pairs, indices: &[u32], share: Range<usize>, device: &Device) -> Result<Self> {
        let with_end = |&i: &u32| -> Vec<u32> {
            pairs.sources[i as usize].iter().copied().chain([Language::END]).collect()
        };
        let sources = indices.iter().map(with_end).collect::<Vec<_>>();
        let sources = PackedTokens::of_share(&sources, share.clone(), device)?;
        let targets: Vec<&[u32]> = indices.iter().map(|&i| &pairs.targets[i as usize][..]).collect();
        let lengths: Vec<usize> = targets.iter().map(|target| target.len() + 1).collect();
        let sequences = Arc::new(PackedSequences::of_share(&lengths, share.clone())?);
        let targets = &targets[share];
        let token = |sequence: usize, step: usize| targets[sequence].get(step).copied();
        let read = |(sequence, step): (usize, usize)| {
            step.checked_sub(1).and_then(|before| token(sequence, before)).unwrap_or(Language::BEGIN)
        };
        let follows = |(sequence, step)| token(sequence, step).unwrap_or(Language::END);
        let ids: Vec<u32> = sequences.positions().map(read).collect();
        let next: Vec<u32> = sequences.positions().map(follows).collect();
        let [ids, next] = sequences.with_layout([&ids, &next], device)?;
        Ok(Self { sources, targets: PackedTokens { ids, sequences }, next })
    }

    fn loss(&self, model: &Seq2Seq, forcing: f64, smoothing: f64, mode: Mode) -> Result<Tensor> {
        Ok(model.loss(&self.sources, &self.targets, &self.next, forcing, smoothing, mode)?)
    }
}

/// Returns the best translation of each of `sources`, and whether it is finished.
///
/// The ids and the search are those of [`Translator::translate`].
///
/// # Errors
/// Fails if [`Translator::translate`] would.
pub fn best_translations(
    model: &Seq2Seq,
    sources: &[Vec<u32>],
    decoding: &Decoding,
    device: &Device,
) -> Result<Vec<(Vec<u32>, bool)>> {
    let best = |mut found: Vec<Hypothesis>| {
        let Hypothesis { mut ids, finished, .. } = found.swap_remove(0);
        ids.push(finished.into());
        ids
    };
    let lists = divided_lists(sources.len(), |own| {
        Ok(Translator::new(model, device).translate(&sources[own], decoding)?.into_iter().map(best).collect())
    })?;
    let split = |mut ids: Vec<u32>| {
        let finished = ids.pop() == Some(1);
        (ids, finished)
    };
    Ok(lists.into_iter().map(split).collect())
}

impl Translation<'_> {
    /// Translates the validation sources greedily.
    fn translations(&self, max_length: usize) -> Result<Vec<Vec<u32>>> {
        let decoding = Decoding { max_length, ..Decoding::default() };
        let found = best_translations(self.model, &self.validation.sources, &decoding, self.device)?;
        Ok(found.into_iter().map(|(ids, _)| ids).collect())
    }
}

impl Task for Translation<'_> {
    fn examples(&self) -> usize {
        self.training.len()
    }

    fn loss(&self, batch: &[u32], mode: Mode) -> Result<Tensor> {
        self.loss_of_share(batch, mode)
    }

    fn loss_of_share(&self, batch: &[u32], mode: Mode) -> Result<Tensor> {
        let share = mode.examples(batch.len());
        let forcing = match mode {
            Mode::Train { step, .. } => self.forcing.rate(step),
            Mode::Evaluate => 1.0,
        };
        let batch = Batch::new(self.training, batch, share, self.device)?;
        batch.loss(self.model, forcing, self.label_smoothing, mode)
    }

    /// The number of target tokens and their ends.
    fn weight(&self, batch: &[u32]) -> f64 {
        batch.iter().map(|&i| self.training.targets[i as usize].len() + 1).sum::<usize>() as f64
    }

    fn validate(&self) -> Result<Score> {
        let loss = evaluate_translation(self.model, self.validation, self.device)?;
        let metric = match self.scoring {
            Scoring::Perplexity => libm::exp(loss),
            Scoring::ExactMatch { max_length } => {
                let found = self.translations(max_length)?;
                let equal =
                    found.iter().zip(&self.validation.targets).filter(|(found, target)| found == target);
                equal.count() as f64 / found.len() as f64
            }
            Scoring::Bleu { max_length, bleu } => bleu(&self.translations(max_length)?),
        };
        Ok(Score { loss, metric })
    }

    fn is_capturable(&self) -> bool {
        // With another rate, the decoder reads its own predictions.
        self.forcing == TeacherForcing::Constant(1.0)
    }

    fn metric(&self) -> Metric {
        match self.scoring {
            Scoring::Perplexity => Metric::PERPLEXITY,
            Scoring::ExactMatch { .. } => Metric::EXACT_MATCH,
            Scoring::Bleu { .. } => Metric::BLEU,
        }
    }
}
