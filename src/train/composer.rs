//! Composition with a model of music: from nothing, from a beginning, or under a melody.

use super::music::tensor;
use crate::data::music::{Encoding, KEYS, Note, NoteChoice, Piece, Texture};
use crate::models::music::{Bags, MusicModel, Notes};
use crate::nn::{Mode, PackedSequences, RecurrentState, Sampling};
use crate::{ops, rng};
use anyhow::{Context, Result, ensure};
use candle_core::{D, Tensor};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;

/// The largest number of keys that sound at once.
const MAX_NOTES: usize = 20;
/// Number of harmonisations that are compared at each step.
const CANDIDATES: usize = 12;
/// Number of steps after a block that are scored when the block is drawn again.
const LOOK_AHEAD: usize = 4;

const NAN: &str = "cannot draw a note: the model's logits are NaN";

/// Composes with a model, step by step.
pub struct Composer<'a> {
    /// The model.
    pub model: &'a MusicModel,
    /// How pieces become features and classes.
    pub encoding: &'a Encoding,
    /// How to choose notes.
    pub sampling: Sampling,
}

/// The hidden states of some pieces before a step, `(pieces, hidden)`, and the network's next state.
struct States {
    hidden: Tensor,
    state: RecurrentState,
}

impl Composer<'_> {
    /// Continues `beginning` to `length` steps.
    ///
    /// The beginning is a piece with the wanted metre, key and style, and possibly some steps. The result is a function
    /// of the model, the beginning, the sampling and `seed`.
    ///
    /// # Errors
    /// Fails if the beginning is longer than the piece, or the model's output is NaN.
    pub fn compose(&self, beginning: Piece, length: usize, seed: u64) -> Result<Piece> {
        ensure!(
            beginning.len() <= length,
            "{}: found {} steps, expected a beginning of at most {length}, the length of the piece",
            beginning.name,
            beginning.len()
        );
        let rng = &mut rng::stream(seed, "compose");
        let (start, mut pieces, mut state) = (beginning.len(), [beginning], None);
        for step in 0..length {
            let states = self.states(&pieces, step, length, state.as_ref())?;
            if step >= start {
                let drawn = self.draw(&states.hidden, &pieces, step, &[vec![]], rng)?;
                pieces[0].steps.extend(drawn);
            }
            state = Some(states.state);
        }
        let [piece] = pieces;
        Ok(piece)
    }

    /// Adds the lower voices to a melody, the highest voice of `melody`, whose other voices rest.
    ///
    /// A first setting comes from several candidates, which are resampled by the probability of the melody's next notes
    /// (a particle filter). Then each beat is drawn again `sweeps` times, given the steps before and after it (Gibbs
    /// sampling, as in Hadjeres, Pachet and Nielsen 2017, arXiv:1612.01010).
    ///
    /// # Errors
    /// Fails if the model does not choose voices one by one, or its output is NaN.
    pub fn harmonize(&self, melody: &Piece, sweeps: usize, seed: u64) -> Result<Piece> {
        ensure!(
            matches!(self.encoding.texture, Texture::Voices(2..)) && self.model.is_autoregressive(),
            "the model was not trained on separate voices, which harmonising needs"
        );
        let rng = &mut rng::stream(seed, "harmonize");
        let mut piece = self.first_setting(melody, rng)?;
        for _ in 0..sweeps {
            self.sweep(melody, &mut piece, rng)?;
        }
        Ok(piece)
    }

    /// Draws several settings step by step, resamples them by the melody's probability, and returns one.
    fn first_setting(&self, melody: &Piece, rng: &mut ChaCha8Rng) -> Result<Piece> {
        let length = melody.len();
        let mut pieces = vec![melody.beginning(0); CANDIDATES];
        let mut state = None;
        for step in 0..length {
            let fixed = vec![vec![melody.steps[step][0]]; CANDIDATES];
            let states = self.states(&pieces, step, length, state.as_ref())?;
            let weights = self.log_probabilities(&states.hidden, &pieces, step, &fixed)?;
            let kept = (0..CANDIDATES).map(|_| drawn(&weights, rng)).collect::<Result<Vec<usize>>>()?;
            pieces = kept.iter().map(|&i| pieces[i].clone()).collect();
            let rows =
                Tensor::new(kept.iter().map(|&i| i as u32).collect::<Vec<_>>(), states.hidden.device())?;
            let hidden = states.hidden.index_select(&rows, 0)?;
            let notes = self.draw(&hidden, &pieces, step, &fixed, rng)?;
            pieces.iter_mut().zip(notes).for_each(|(piece, notes)| piece.steps.push(notes));
            state = Some(select(&states.state, &rows)?);
        }
        Ok(pieces.swap_remove(0))
    }

    /// Draws the lower voices of each beat again, given the melody and the rest of the piece.
    fn sweep(&self, melody: &Piece, piece: &mut Piece, rng: &mut ChaCha8Rng) -> Result<()> {
        let (length, block) = (piece.len(), piece.steps_per_quarter);
        let mut before: Option<RecurrentState> = None;
        for start in (0..length).step_by(block) {
            let (end, last) = ((start + block).min(length), (start + block + LOOK_AHEAD).min(length));
            // The first candidate keeps the present notes.
            let mut candidates = vec![piece.beginning(start); CANDIDATES];
            let rows = Tensor::zeros(CANDIDATES, candle_core::DType::U32, self.model.weight().device())?;
            let mut state = before.as_ref().map(|state| select(state, &rows)).transpose()?;
            let (mut weights, mut after) = (vec![0.0; CANDIDATES], None);
            for step in start..last {
                let states = self.states(&candidates, step, length, state.as_ref())?;
                let is_drawn = step < end;
                let known = if is_drawn { vec![melody.steps[step][0]] } else { piece.steps[step].clone() };
                let known = vec![known; CANDIDATES];
                let found = self.log_probabilities(&states.hidden, &candidates, step, &known)?;
                weights.iter_mut().zip(found).for_each(|(weight, found)| *weight += found);
                let mut notes = known.clone();
                if is_drawn {
                    notes = self.draw(&states.hidden, &candidates, step, &known, rng)?;
                    notes[0] = piece.steps[step].clone();
                }
                candidates.iter_mut().zip(notes).for_each(|(piece, notes)| piece.steps.push(notes));
                if step + 1 == end {
                    after = Some(states.state.clone());
                }
                state = Some(states.state);
            }
            let chosen = drawn(&weights, rng)?;
            let row = Tensor::new(&[chosen as u32], self.model.weight().device())?;
            before = after.as_ref().map(|state| select(state, &row)).transpose()?;
            piece.steps[start..end].clone_from_slice(&candidates[chosen].steps[start..end]);
        }
        Ok(())
    }

    /// Computes the hidden states before `step` from `state`, the state before the previous step.
    fn states(
        &self,
        pieces: &[Piece],
        step: usize,
        length: usize,
        state: Option<&RecurrentState>,
    ) -> Result<States> {
        let like = self.model.weight();
        let steps: Vec<Vec<u32>> =
            pieces.iter().map(|piece| self.encoding.step(piece, step, length)).collect();
        let single = Arc::new(PackedSequences::new(&vec![1; pieces.len()])?);
        let steps = Bags::new(&steps, like)?;
        let (hidden, state) = ops::no_grad(|| self.model.states(&steps, &single, state, Mode::Evaluate))?;
        Ok(States { hidden, state })
    }

    /// Computes logits of the next note of each choice, minus infinity for forbidden classes.
    ///
    /// Each choice belongs to a row of `hidden`, given by `rows`.
    fn logits(&self, hidden: &Tensor, rows: &[u32], choices: &[NoteChoice]) -> Result<Vec<Vec<f32>>> {
        let (like, classes) = (self.model.weight(), self.encoding.classes());
        let mut mask = vec![0f32; choices.len() * classes];
        for (choice, mask) in choices.iter().zip(mask.chunks_exact_mut(classes)) {
            self.encoding.mask(choice, mask);
        }
        let ids: Vec<&[u32]> = choices.iter().map(|choice| &choice.ids[..]).collect();
        let notes = Notes {
            chosen: Bags::new(&ids, like)?,
            steps: Tensor::new(rows, like.device())?,
            mask: tensor(mask, (choices.len(), classes), like)?,
            first: 0,
        };
        let logits = ops::no_grad(|| self.model.note_logits(hidden, &notes, Mode::Evaluate))?;
        Ok(logits.to_dtype(candle_core::DType::F32)?.to_vec2()?)
    }

    /// Draws the notes of `step` for each piece, after the notes that are `known`.
    fn draw(
        &self,
        hidden: &Tensor,
        pieces: &[Piece],
        step: usize,
        known: &[Vec<Option<Note>>],
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<Vec<Option<Note>>>> {
        if !self.model.is_autoregressive() {
            return self.draw_keys(hidden, pieces, step, rng);
        }
        let mut notes = known.to_vec();
        loop {
            let open: Vec<usize> =
                (0..notes.len()).filter(|&i| !self.encoding.is_complete(&notes[i])).collect();
            if open.is_empty() {
                break;
            }
            let choice = |&i: &usize| self.encoding.choice(&pieces[i], step, &notes[i]);
            let choices: Vec<NoteChoice> = open.iter().map(choice).collect();
            let rows: Vec<u32> = open.iter().map(|&i| i as u32).collect();
            for (i, logits) in open.into_iter().zip(self.logits(hidden, &rows, &choices)?) {
                let class = self.sampling.sample(&logits, rng).context(NAN)?;
                notes[i].push(self.encoding.note(&pieces[i], class));
                if self.encoding.texture == Texture::Keys && notes[i].len() == MAX_NOTES {
                    notes[i].push(None);
                }
            }
        }
        if self.encoding.texture == Texture::Keys {
            // Remove the end marker.
            for notes in &mut notes {
                notes.pop();
            }
        }
        Ok(notes)
    }

    /// Draws the keys of `step` independently. A temperature divides their logits; the other restrictions do not apply.
    fn draw_keys(
        &self,
        hidden: &Tensor,
        pieces: &[Piece],
        step: usize,
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<Vec<Option<Note>>>> {
        let logits = ops::no_grad(|| self.model.key_logits(hidden))?;
        let logits: Vec<Vec<f32>> = logits.to_dtype(candle_core::DType::F32)?.to_vec2()?;
        let mut is_on = |logit: f32| {
            let probability =
                1.0 / (1.0 + libm::exp(-f64::from(logit) / self.sampling.temperature.max(1e-9)));
            rng.random::<f64>() < probability
        };
        let mut all = vec![];
        for (piece, logits) in pieces.iter().zip(logits) {
            let logit = |note| logits[self.encoding.class(piece, note) as usize];
            let mut notes = vec![];
            for pitch in KEYS {
                let sounded = piece.before(step).iter().flatten().any(|note| note.pitch == pitch);
                let [struck, held] = [false, true].map(|held| Some(Note { pitch, held }));
                if is_on(logit(struck)) {
                    let is_held = self.encoding.held && sounded && !is_on(logit(held));
                    notes.push(if is_held { held } else { struck });
                }
            }
            all.push(notes);
        }
        Ok(all)
    }

    /// The log-probability of the first notes of `step` in each piece, given the previous steps.
    fn log_probabilities(
        &self,
        hidden: &Tensor,
        pieces: &[Piece],
        step: usize,
        notes: &[Vec<Option<Note>>],
    ) -> Result<Vec<f32>> {
        let (mut rows, mut choices, mut classes) = (vec![], vec![], vec![]);
        for (i, (piece, notes)) in pieces.iter().zip(notes).enumerate() {
            for (place, &note) in notes.iter().enumerate() {
                rows.push(i as u32);
                choices.push(self.encoding.choice(piece, step, &notes[..place]));
                classes.push(self.encoding.class(piece, note));
            }
        }
        let mut sums = vec![0.0; pieces.len()];
        for ((logits, &row), class) in self.logits(hidden, &rows, &choices)?.iter().zip(&rows).zip(classes) {
            let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = logits.iter().map(|logit| libm::exp(f64::from(logit - highest))).sum();
            sums[row as usize] += f64::from(logits[class as usize] - highest) - libm::log(sum);
        }
        Ok(sums.into_iter().map(|sum| sum as f32).collect())
    }
}

/// The states of some of the pieces.
fn select(state: &RecurrentState, rows: &Tensor) -> Result<RecurrentState> {
    let of = |states: &Tensor| states.index_select(rows, D::Minus2);
    Ok(RecurrentState { hidden: of(&state.hidden)?, cell: state.cell.as_ref().map(of).transpose()? })
}

/// Draws an index; `weights` are logarithms.
fn drawn(weights: &[f32], rng: &mut ChaCha8Rng) -> Result<usize> {
    Ok(Sampling::default().sample(weights, rng).context(NAN)? as usize)
}
