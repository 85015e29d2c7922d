//! Language models: learning a text, testing on one, writing one.

use super::{Metric, Score, Task};
use crate::data::{Level, Streams, TextStream, TokenWindow, Vocabulary};
use crate::models::language_model::LanguageModel;
use crate::nn::{Cost, IncrementalDecoder, Mode, PackedSequences, RecurrentState, Sampling};
use crate::ops;
use crate::rng;
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use rand_chacha::ChaCha8Rng;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// A model that learns to foretell a text, token by token, by truncated back-propagation through time (Williams and Peng
/// 1990): the text is cut into parallel streams, which are read in windows, the state being carried from one to the next
/// and gradients not.
///
/// A training example is a window of one stream. Windows of an epoch come in the order of the text, and what does not
/// fill a whole one is left out.
pub struct LanguageModelling<'a> {
    model: &'a LanguageModel,
    vocabulary: &'a Vocabulary,
    text: &'a TextStream,
    training: Range<u64>,
    validation: Range<u64>,
    streams: usize,
    window: usize,
    seed: u64,
    device: &'a Device,
    place: RefCell<Place<'a>>,
}

/// Where in the epoch a training is.
#[derive(Default)]
struct Place<'a> {
    /// The number of the next window, and the streams at it.
    streams: Option<(usize, Streams<'a>)>,
    state: Option<RecurrentState>,
}

/// Tokens of the sample shown after each epoch.
const SHOWN: usize = 200;

impl<'a> LanguageModelling<'a> {
    /// The task of learning the tokens `training` of `text` in `streams` streams and windows of `window` steps, validated
    /// on the tokens `validation`. Samples are drawn with `seed`.
    ///
    /// # Errors
    /// When the training part has no window for each stream, or the validation part no two tokens.
    pub fn new(
        model: &'a LanguageModel,
        vocabulary: &'a Vocabulary,
        text: &'a TextStream,
        (training, validation): (Range<u64>, Range<u64>),
        (streams, window): (usize, usize),
        seed: u64,
        device: &'a Device,
    ) -> Result<Self> {
        let tokens = training.end - training.start;
        ensure!(
            window > 0 && Streams::steps(tokens, streams) >= window as u64,
            "{}: {tokens} tokens to train on, expected at least {}: a window of {window} in each of {streams} streams, \
             and one more",
            text.name(),
            streams * window + 1
        );
        let held_out = validation.end - validation.start;
        ensure!(
            held_out >= 2,
            "{}: {held_out} tokens to validate on, expected at least 2 of its {}",
            text.name(),
            text.len()
        );
        let place = RefCell::default();
        Ok(Self { model, vocabulary, text, training, validation, streams, window, seed, device, place })
    }

    /// Mean loss of the tokens of `range` of `text`, in nats a token, read in at most `streams` streams, each of which
    /// starts knowing nothing.
    ///
    /// # Errors
    /// A file that can't be read, fewer than two tokens.
    pub fn evaluate(
        model: &LanguageModel,
        vocabulary: &Vocabulary,
        text: &TextStream,
        range: Range<u64>,
        (streams, window): (usize, usize),
        device: &Device,
    ) -> Result<f64> {
        let tokens = range.end.saturating_sub(range.start);
        ensure!(tokens >= 2, "{}: {tokens} tokens to test on, expected at least 2", text.name());
        // A stream of less than some windows would show the model little of what comes before a token.
        let streams = (tokens / (8 * window as u64)).clamp(1, streams as u64) as usize;
        let mut reader = Streams::new(text, vocabulary, range, streams, 0)?;
        let windows = std::iter::from_fn(|| reader.next_window(window).transpose());
        let (sum, count) = total_loss(model, windows, streams, device)?;
        Ok(sum / count as f64)
    }
}

/// The loss of `windows`, one after the other, summed over their tokens, and how many those are.
fn total_loss(
    model: &LanguageModel,
    windows: impl Iterator<Item = Result<TokenWindow>>,
    streams: usize,
    device: &Device,
) -> Result<(f64, usize)> {
    let (mut sum, mut count, mut state) = (0.0, 0, None);
    for window in windows {
        let window = window?;
        let rows = window.tokens.len();
        let evaluate = || window_loss(model, window, streams, state.as_ref(), Mode::Evaluate, device);
        let (loss, after) = ops::no_grad(evaluate)?;
        sum += loss.to_dtype(DType::F64)?.to_scalar::<f64>()? * rows as f64;
        count += rows;
        state = Some(after.detach());
    }
    Ok((sum, count))
}

/// The mean loss of a window of `streams` streams, and the state after it.
fn window_loss(
    model: &LanguageModel,
    TokenWindow { tokens, next }: TokenWindow,
    streams: usize,
    state: Option<&RecurrentState>,
    mode: Mode,
    device: &Device,
) -> candle_core::Result<(Tensor, RecurrentState)> {
    let sequences = Arc::new(PackedSequences::new(&vec![tokens.len() / streams; streams])?);
    let (logits, state) = model.forward(&Tensor::new(tokens, device)?, &sequences, state, mode)?;
    Ok((Cost::SoftmaxCrossEntropy.loss(&logits, &Tensor::new(next, device)?)?, state))
}

impl Task for LanguageModelling<'_> {
    fn examples(&self) -> usize {
        let steps = Streams::steps(self.training.end - self.training.start, self.streams);
        steps as usize / self.window * self.streams
    }

    fn in_order(&self) -> bool {
        true
    }

    fn loss(&self, batch: &[u32], mode: Mode) -> candle_core::Result<Tensor> {
        let mut place = self.place.borrow_mut();
        let number = batch[0] as usize / self.streams;
        if number == 0 {
            place.state = None;
        }
        let mut streams = match place.streams.take() {
            Some((at, streams)) if at == number => streams,
            _ => {
                let start = (number * self.window) as u64;
                Streams::new(self.text, self.vocabulary, self.training.clone(), self.streams, start)
                    .map_err(error)?
            }
        };
        let Some(window) = streams.next_window(self.window).map_err(error)? else {
            candle_core::bail!("window {number} is beyond the end of the text")
        };
        let (loss, state) =
            window_loss(self.model, window, self.streams, place.state.as_ref(), mode, self.device)?;
        *place = Place { streams: Some((number + 1, streams)), state: Some(state.detach()) };
        Ok(loss)
    }

    fn validate(&self) -> candle_core::Result<Score> {
        let cut = (self.streams, self.window);
        let range = self.validation.clone();
        let loss = Self::evaluate(self.model, self.vocabulary, self.text, range, cut, self.device);
        let loss = loss.map_err(error)?;
        Ok(Score { loss, metric: loss.exp() })
    }

    fn metric(&self) -> Metric {
        Metric::Perplexity
    }

    fn carried(&self) -> candle_core::Result<HashMap<String, Tensor>> {
        let place = self.place.borrow();
        let state = place.state.iter();
        let parts = state.flat_map(|state| [("hidden", Some(&state.hidden)), ("cell", state.cell.as_ref())]);
        Ok(parts.filter_map(|(name, part)| Some((name.to_string(), part?.clone()))).collect())
    }

    fn carry(&self, mut carried: HashMap<String, Tensor>) -> Result<()> {
        let mut take = |name: &str| carried.remove(name).map(|part| part.to_device(self.device)).transpose();
        let (hidden, cell) = (take("hidden")?, take("cell")?);
        ensure!(carried.is_empty() && (hidden.is_some() || cell.is_none()), "the carried state is damaged");
        self.place.borrow_mut().state = hidden.map(|hidden| RecurrentState { hidden, cell });
        Ok(())
    }

    fn sample(&self) -> Result<Option<String>> {
        let sampling = Sampling { temperature: 0.8, ..Sampling::default() };
        let mut writer =
            TextGenerator::new(self.model, self.vocabulary, self.text.level(), sampling, self.seed, "")?;
        Ok(Some((0..SHOWN).map(|_| writer.write()).collect::<Result<String>>()?))
    }
}

fn error(error: anyhow::Error) -> candle_core::Error {
    candle_core::Error::Msg(format!("{error:#}"))
}

/// A model that writes a text.
pub struct TextGenerator<'a> {
    reading: IncrementalDecoder,
    vocabulary: &'a Vocabulary,
    level: Level,
    sampling: Sampling,
    rng: ChaCha8Rng,
    logits: Vec<f32>,
    last: u32,
}

impl<'a> TextGenerator<'a> {
    /// One that has read `prompt`, or the end of a line where that has no tokens, and goes on from there.
    ///
    /// # Errors
    /// A prompt with zero bytes; those of the model.
    pub fn new(
        model: &'a LanguageModel,
        vocabulary: &'a Vocabulary,
        level: Level,
        sampling: Sampling,
        seed: u64,
        prompt: &str,
    ) -> Result<Self> {
        let mut ids = level.encode(prompt, vocabulary).context("the prompt")?;
        if ids.is_empty() {
            ids.push(vocabulary.id(level.line_end()));
        }
        let (mut reading, mut logits) = (model.incremental_decoder()?, vec![]);
        for &id in &ids {
            logits = reading.step(id)?;
        }
        let (last, rng) = (ids[ids.len() - 1], rng::stream(seed, "sample"));
        Ok(Self { reading, vocabulary, level, sampling, rng, logits, last })
    }

    /// The next piece of text: a token, with what stands between it and the last one.
    ///
    /// # Errors
    /// Those of the model.
    pub fn write(&mut self) -> Result<String> {
        // Never what is no text.
        for special in [Vocabulary::PAD, Vocabulary::UNKNOWN] {
            self.logits[special as usize] = f32::NEG_INFINITY;
        }
        let drawn = self.sampling.sample(&self.logits, &mut self.rng);
        let id = drawn.context("the model's vocabulary is empty, or its weights are no numbers")?;
        self.logits = self.reading.step(id)?;
        let [before, last] = [self.last, id].map(|id| self.vocabulary.token(id));
        self.last = id;
        Ok(self.level.written(before, last.unwrap_or_default()).concat())
    }
}

/// The logarithm of the probability of `line` and of its end, by the chain rule, after the end of another
/// line; and how many tokens that is. Of a line without tokens, such as blanks at the level of words, that is
/// of its end alone.
///
/// # Errors
/// A line with zero bytes; those of the model.
pub fn line_score(
    model: &LanguageModel,
    vocabulary: &Vocabulary,
    level: Level,
    line: &str,
    device: &Device,
) -> Result<(f64, usize)> {
    const WINDOW: usize = 1024;
    let end = vocabulary.id(level.line_end());
    let mut tokens = vec![end];
    tokens.extend(level.encode(line, vocabulary)?);
    tokens.push(end);
    let (from, to) = (&tokens[..tokens.len() - 1], &tokens[1..]);
    let windows = from.chunks(WINDOW).zip(to.chunks(WINDOW));
    let windows =
        windows.map(|(tokens, next)| Ok(TokenWindow { tokens: tokens.to_vec(), next: next.to_vec() }));
    let (loss, count) = total_loss(model, windows, 1, device)?;
    Ok((-loss, count))
}
