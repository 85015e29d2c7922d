//! Training of models on music.

use super::metrics::{Metric, Score};
use super::shares::divided_sums;
use super::stop;
use super::task::Task;
use crate::data::music::{Encoding, NoteChoice, Piece};
use crate::models::music::{Bags, MusicModel, Notes};
use crate::nn::{Mode, PackedSequences};
use crate::{ops, rng};
use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use rand::Rng;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// Steps in a batch of an evaluation, unless a single piece has more.
const EVALUATION_STEPS: usize = 2048;

/// The task of predicting each step of pieces from the previous steps.
///
/// The loss is the mean over all steps of a batch, in nats per step. Batches hold no padding, so pieces of any lengths
/// may share one. Pieces longer than a window are trained in parts, each from a zero state.
pub struct Composition<'a> {
    /// The model to train.
    pub model: &'a MusicModel,
    /// How pieces become features and classes.
    pub encoding: &'a Encoding,
    /// Pieces to train on.
    pub training: &'a [Piece],
    /// Pieces to validate on.
    pub validation: &'a [Piece],
    /// Each epoch transposes each piece by up to this number of semitones, up or down.
    pub transpose: i8,
    /// The examples of `training`, from [`music_windows`].
    pub windows: &'a [(usize, Range<usize>)],
}

/// Returns the examples of `pieces`: the number of a piece, and a range of at most `window` steps.
pub fn music_windows(pieces: &[Piece], window: usize) -> Vec<(usize, Range<usize>)> {
    let starts = |piece: &Piece| (0..piece.len()).step_by(window.max(1));
    let examples = pieces.iter().enumerate().flat_map(|(number, piece)| {
        starts(piece).map(move |start| (number, start..piece.len().min(start + window.max(1))))
    });
    examples.collect()
}

/// Returns the loss of `pieces` in one batch, summed over their steps, in nats.
///
/// # Errors
/// Fails if the pieces do not fit the model.
pub fn score_music(model: &MusicModel, encoding: &Encoding, pieces: &[Piece]) -> Result<f64> {
    let parts: Vec<_> = pieces.iter().map(|piece| (Cow::Borrowed(piece), 0..piece.len())).collect();
    let batch = MusicBatch::new(model, encoding, &parts)?;
    let loss = ops::no_grad(|| batch.loss(model, Mode::Evaluate))?;
    Ok(loss.to_dtype(DType::F64)?.to_scalar::<f64>()? * batch.pieces.rows() as f64)
}

/// Returns the mean loss of all steps of `pieces`, in nats.
///
/// # Errors
/// Fails if there are no pieces, or they do not fit the model.
pub fn evaluate_music(model: &MusicModel, encoding: &Encoding, pieces: &[Piece]) -> Result<f64> {
    let steps: usize = pieces.iter().map(Piece::len).sum();
    ensure!(steps > 0, "music: found no pieces to evaluate, expected at least one");
    let [sum] = divided_sums(pieces.len(), |own| {
        let (mut sum, mut rest) = (0.0, &pieces[own]);
        while !rest.is_empty() {
            stop::check()?;
            let mut size = 0;
            let fits = |piece: &&Piece| {
                size += piece.len();
                size <= EVALUATION_STEPS
            };
            let count = rest.iter().take_while(fits).count().max(1);
            sum += score_music(model, encoding, &rest[..count])?;
            rest = &rest[count..];
        }
        Ok([sum])
    })?;
    Ok(sum / steps as f64)
}

/// Parts of pieces, encoded for a model.
pub struct MusicBatch {
    steps: Bags,
    pieces: Arc<PackedSequences>,
    targets: Targets,
}

enum Targets {
    /// The signs of the logits; see [`MusicModel::key_loss`].
    Keys(Tensor),
    /// The notes and their classes.
    Notes(Notes, Tensor),
}

impl MusicBatch {
    /// Encodes ranges of steps of pieces for `model`.
    ///
    /// # Errors
    /// Fails if there are no parts, one is empty, or the device has no memory for them.
    pub fn new(
        model: &MusicModel,
        encoding: &Encoding,
        parts: &[(Cow<Piece>, Range<usize>)],
    ) -> Result<Self> {
        Self::of_share(model, encoding, parts, 0..parts.len())
    }

    /// Encodes the parts `share` of a batch of `parts`.
    fn of_share(
        model: &MusicModel,
        encoding: &Encoding,
        parts: &[(Cow<Piece>, Range<usize>)],
        share: Range<usize>,
    ) -> Result<Self> {
        let lengths: Vec<usize> = parts.iter().map(|(_, range)| range.len()).collect();
        let pieces = Arc::new(PackedSequences::of_share(&lengths, share.clone())?);
        let (before, parts, lengths) = (&parts[..share.start], &parts[share.clone()], &lengths[share]);
        let positions: Vec<(usize, usize)> = pieces.positions().collect();
        let like = model.weight();
        // The piece and the step in it of each row.
        let places = || positions.iter().map(|&(part, step)| (&*parts[part].0, parts[part].1.start + step));
        let steps: Vec<Vec<u32>> =
            places().map(|(piece, step)| encoding.step(piece, step, piece.len())).collect();
        let targets = match model.is_autoregressive() {
            false => {
                let signs = places().flat_map(|(piece, step)| encoding.key_signs(piece, step));
                let shape = (pieces.rows(), encoding.key_outputs());
                Targets::Keys(tensor(signs.collect(), shape, like)?)
            }
            true => {
                let mut rows: Vec<Vec<u32>> = lengths.iter().map(|&length| vec![0; length]).collect();
                positions.iter().enumerate().for_each(|(row, &(part, step))| rows[part][step] = row as u32);
                // The row, the known features, and the class of each note, piece by piece.
                let mut notes = vec![];
                for ((piece, range), rows) in parts.iter().zip(&rows) {
                    for (step, &row) in range.clone().zip(rows) {
                        let choices = encoding.choices(piece, step);
                        notes.extend(choices.into_iter().map(|(choice, class)| (row, choice, class)));
                    }
                }
                let classes = encoding.classes();
                let mut mask = vec![0f32; notes.len() * classes];
                for ((_, choice, _), mask) in notes.iter().zip(mask.chunks_exact_mut(classes)) {
                    encoding.mask(choice, mask);
                }
                let count = |piece: &Piece, range: Range<usize>| -> usize {
                    range.map(|step| encoding.choice_count(piece, step)).sum()
                };
                let ids = |of: fn(&(u32, NoteChoice, u32)) -> u32| {
                    Tensor::new(notes.iter().map(of).collect::<Vec<u32>>(), like.device())
                };
                let chosen: Vec<&[u32]> = notes.iter().map(|(_, choice, _)| &choice.ids[..]).collect();
                let found = Notes {
                    chosen: Bags::new(&chosen, like)?,
                    steps: ids(|(row, ..)| *row)?,
                    mask: tensor(mask, (notes.len(), classes), like)?,
                    first: before.iter().map(|(piece, range)| count(piece, range.clone())).sum(),
                };
                Targets::Notes(found, ids(|(.., class)| *class)?)
            }
        };
        Ok(Self { steps: Bags::new(&steps, like)?, pieces, targets })
    }

    /// The mean loss in nats per step.
    ///
    /// # Errors
    /// Fails if the batch does not fit the model.
    pub fn loss(&self, model: &MusicModel, mode: Mode) -> Result<Tensor> {
        let (states, _) = model.states(&self.steps, &self.pieces, None, mode)?;
        Ok(match &self.targets {
            Targets::Keys(signs) => model.key_loss(&states, signs)?,
            Targets::Notes(notes, classes) => model.note_loss(&states, notes, classes, mode)?,
        })
    }
}

/// A matrix on the device and of the type of `like`.
pub(super) fn tensor(values: Vec<f32>, shape: (usize, usize), like: &Tensor) -> Result<Tensor> {
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(like.dtype())?.to_device(like.device())?)
}

impl Composition<'_> {
    /// Returns an example, transposed by an amount that depends on the place in training.
    fn part(&self, example: u32, mode: Mode) -> (Cow<'_, Piece>, Range<usize>) {
        let (piece, range) = self.windows[example as usize].clone();
        let piece = &self.training[piece];
        let Mode::Train { seed, epoch, .. } = mode else { return (Cow::Borrowed(piece), range) };
        let rng = &mut rng::stream(seed, &format!("transpose/epoch {epoch}/{example}"));
        let by = rng.random_range(-self.transpose..=self.transpose);
        match (by != 0).then(|| piece.transposed(by)).flatten() {
            Some(transposed) => (Cow::Owned(transposed), range),
            None => (Cow::Borrowed(piece), range),
        }
    }
}

impl Task for Composition<'_> {
    fn examples(&self) -> usize {
        self.windows.len()
    }

    fn loss(&self, batch: &[u32], mode: Mode) -> Result<Tensor> {
        self.loss_of_share(batch, mode)
    }

    fn loss_of_share(&self, batch: &[u32], mode: Mode) -> Result<Tensor> {
        let share = mode.examples(batch.len());
        let parts: Vec<_> = batch.iter().map(|&example| self.part(example, mode)).collect();
        MusicBatch::of_share(self.model, self.encoding, &parts, share)?.loss(self.model, mode)
    }

    /// The number of steps.
    fn weight(&self, batch: &[u32]) -> f64 {
        batch.iter().map(|&example| self.windows[example as usize].1.len()).sum::<usize>() as f64
    }

    fn validate(&self) -> Result<Score> {
        let loss = evaluate_music(self.model, self.encoding, self.validation)?;
        Ok(Score { loss, metric: loss })
    }

    fn metric(&self) -> Metric {
        Metric::NATS
    }
}
