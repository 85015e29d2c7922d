//! Language modelling.

use super::metrics::{Metric, Score};
use super::shares::{divided_sums, gathered};
use super::stop;
use super::task::Task;
use super::text_generator::TextGenerator;
use crate::data::{Level, TextStream, TokenWindow, TokenWindows, Vocabulary, count};
use crate::models::language_model::LanguageModel;
use crate::nn::{Cost, Mode, PackedSequences, RecurrentState, Sampling};
use crate::ops;
use crate::processes::own_share;
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// The dimension of a hidden state that counts the streams.
const STREAMS: usize = 1;

/// Tokens of the sample shown after each epoch.
const SAMPLE_LENGTH: usize = 200;

/// How a text is cut for truncated back-propagation through time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windowing {
    /// Number of streams: equal parts of the text that are read in parallel, as one batch.
    pub streams: usize,
    /// Number of tokens of each stream in a window; gradients flow back over one window.
    pub window: usize,
}

impl Windowing {
    fn check(self) -> Result<()> {
        ensure!(self.streams > 0, "streams: found 0, expected at least 1");
        ensure!(self.window > 0, "window: found 0, expected at least 1");
        Ok(())
    }
}

/// The model, the data and the settings of a [`LanguageModelling`] task.
#[derive(Clone)]
pub struct LanguageModellingConfig<'a> {
    /// The model to train.
    pub model: &'a LanguageModel,
    /// The vocabulary that maps tokens to ids.
    pub vocabulary: &'a Vocabulary,
    /// The text.
    pub text: &'a TextStream,
    /// Tokens of `text` to train on.
    pub training: Range<u64>,
    /// Tokens of `text` to validate on.
    pub validation: Range<u64>,
    /// How to cut the text.
    pub windowing: Windowing,
    /// Seed of the samples shown after each epoch.
    pub seed: u64,
    /// The model's device.
    pub device: &'a Device,
}

/// The task of predicting each token of a text from the tokens before it.
///
/// Trains by truncated back-propagation through time (Williams and Peng 1990). The text is cut into parallel streams, and
/// each stream into windows. One step trains on one window of every stream; the hidden state carries over to the next
/// window, gradients do not.
///
/// A training example is a window of one stream, so the trainer's batch size must be the number of streams. Examples
/// come in order. Tokens at the end that do not fill a window of every stream are left out.
///
/// Several processes divide the streams: each reads its own, and keeps their hidden state. Inside
/// [`together`](crate::processes::together), [`state`](Task::state) returns the state of all streams to each process,
/// and [`load_state`](Task::load_state) selects a process's own streams from such a state.
pub struct LanguageModelling<'a> {
    config: LanguageModellingConfig<'a>,
    position: RefCell<Position<'a>>,
}

/// The position in the text that the current epoch has reached.
#[derive(Default)]
struct Position<'a> {
    /// Number of the next window, and the streams positioned there.
    windows: Option<(usize, TokenWindows<'a>)>,
    /// Hidden state before this window.
    state: Option<RecurrentState>,
}

impl<'a> LanguageModelling<'a> {
    /// Creates the task.
    ///
    /// # Errors
    /// Fails if there are no streams, a window has no tokens, a range exceeds the text, the training range has less than
    /// one window per stream, or the validation range has fewer than 2 tokens.
    pub fn new(config: LanguageModellingConfig<'a>) -> Result<Self> {
        let LanguageModellingConfig { text, training, validation, windowing, .. } = &config;
        let Windowing { streams, window } = *windowing;
        windowing.check()?;
        let name = text.name();
        for range in [training, validation] {
            ensure!(
                range.end <= text.len(),
                "{name}: found a range up to token {}, expected at most {}",
                range.end,
                text.len()
            );
        }
        let tokens = training.end.saturating_sub(training.start);
        ensure!(
            TokenWindows::steps(tokens, streams) >= window as u64,
            "{name}: found {} to train on, expected at least {}: a window of {window} in each of {}, and one more",
            count(usize::try_from(tokens)?, "token"),
            streams.saturating_mul(window).saturating_add(1),
            count(streams, "stream")
        );
        let held_out = validation.end.saturating_sub(validation.start);
        ensure!(
            held_out >= 2,
            "{name}: found {} to validate on, expected at least 2 of its {}",
            count(usize::try_from(held_out)?, "token"),
            text.len()
        );
        Ok(Self { config, position: RefCell::default() })
    }
}

/// Returns the mean loss of the tokens of `range`, in nats per token.
///
/// Reads the range in at most `windowing.streams` streams, fewer if it is short. Each stream starts with a hidden state
/// of zeros, so its first token is not predicted.
///
/// # Errors
/// Fails if the text cannot be read, or the range has fewer than 2 tokens.
pub fn evaluate_text(
    model: &LanguageModel,
    vocabulary: &Vocabulary,
    text: &TextStream,
    range: Range<u64>,
    windowing: Windowing,
    device: &Device,
) -> Result<f64> {
    windowing.check()?;
    let Windowing { streams, window } = windowing;
    let tokens = range.end.saturating_sub(range.start);
    ensure!(tokens >= 2, "{}: the tokens to test on are {tokens}, expected at least 2", text.name());
    // A stream of only a few windows would give most tokens little context.
    let streams = (tokens / (window as u64).saturating_mul(8)).clamp(1, streams as u64) as usize;
    let [sum, count] = divided_sums(streams, |share| {
        let mut reader = TokenWindows::of_share(text, vocabulary, range, streams, share.clone(), 0)?;
        let windows = std::iter::from_fn(|| reader.next_window(window).transpose());
        let (sum, count) = total_loss(model, windows, share.len(), device)?;
        Ok([sum, count as f64])
    })?;
    Ok(sum / count)
}

/// The score of a line of text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LineScore {
    /// Natural logarithm of the probability of the line and its end.
    pub log_probability: f64,
    /// Number of tokens, including the end of the line.
    pub tokens: usize,
    /// Number of tokens that the vocabulary lacks, without the end of the line.
    pub unknown: usize,
}

/// Scores `line` and its end.
///
/// The model first reads the end of another line, then predicts one token after the other. A line without tokens, such
/// as blanks at the word level, consists of its end alone. A token that the vocabulary lacks counts as the least
/// probable one at its position: the model never saw it, so the probability of `<unk>` says nothing about it.
///
/// # Errors
/// Fails if the line has zero bytes, or the model fails.
pub fn score_line(
    model: &LanguageModel,
    vocabulary: &Vocabulary,
    level: Level,
    line: &str,
    device: &Device,
) -> Result<LineScore> {
    const WINDOW: usize = 1024;
    let end = vocabulary.id(level.line_end());
    let mut tokens = vec![end];
    tokens.extend(level.encode(line, vocabulary)?);
    let unknown = tokens[1..].iter().filter(|&&id| id == Vocabulary::UNKNOWN).count();
    tokens.push(end);
    let (inputs, targets) = (&tokens[..tokens.len() - 1], &tokens[1..]);
    let (mut log_probability, mut state) = (0.0, None);
    for (inputs, targets) in inputs.chunks(WINDOW).zip(targets.chunks(WINDOW)) {
        let sequences = Arc::new(PackedSequences::new(&[inputs.len()])?);
        let inputs = Tensor::new(inputs, device)?;
        let (logits, after) =
            ops::no_grad(|| model.forward(&inputs, &sequences, state.as_ref(), Mode::Evaluate))?;
        for (logits, &target) in logits.to_dtype(DType::F32)?.to_vec2::<f32>()?.iter().zip(targets) {
            log_probability += token_log_probability(logits, target);
        }
        state = Some(after.detach());
    }
    Ok(LineScore { log_probability, tokens: targets.len(), unknown })
}

/// The log-probability of `target`, or of the least probable token if the target is unknown.
fn token_log_probability(logits: &[f32], target: u32) -> f64 {
    let highest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&logit| libm::exp(f64::from(logit) - highest)).sum();
    let logit = match target {
        Vocabulary::UNKNOWN => {
            let known = logits.iter().skip(Vocabulary::UNKNOWN as usize);
            known.copied().fold(f32::INFINITY, f32::min)
        }
        known => logits[known as usize],
    };
    f64::from(logit) - highest - libm::log(sum)
}

/// Returns the summed loss of consecutive windows, and their number of tokens.
fn total_loss(
    model: &LanguageModel,
    windows: impl Iterator<Item = Result<TokenWindow>>,
    streams: usize,
    device: &Device,
) -> Result<(f64, usize)> {
    let (mut sum, mut count, mut state) = (0.0, 0, None);
    for window in windows {
        stop::check()?;
        let window = window?;
        let rows = window.inputs.len();
        let sequences = PackedSequences::new(&vec![rows / streams; streams])?;
        let evaluate = || window_loss(model, window, sequences, state.as_ref(), Mode::Evaluate, device);
        let (loss, after) = ops::no_grad(evaluate)?;
        sum += loss.to_dtype(DType::F64)?.to_scalar::<f64>()? * rows as f64;
        count += rows;
        state = Some(after.detach());
    }
    Ok((sum, count))
}

/// Returns the mean loss of one window of the streams in `sequences`, and the hidden state after it.
fn window_loss(
    model: &LanguageModel,
    TokenWindow { inputs: tokens, targets: next }: TokenWindow,
    sequences: PackedSequences,
    state: Option<&RecurrentState>,
    mode: Mode,
    device: &Device,
) -> Result<(Tensor, RecurrentState)> {
    let sequences = Arc::new(sequences);
    let [tokens, next] = sequences.with_layout([&tokens, &next], device)?;
    let (logits, state) = model.forward(&tokens, &sequences, state, mode)?;
    Ok((Cost::SoftmaxCrossEntropy.loss(&logits, &next)?, state))
}

impl Task for LanguageModelling<'_> {
    fn examples(&self) -> usize {
        let LanguageModellingConfig { training, windowing: Windowing { streams, window }, .. } = &self.config;
        TokenWindows::steps(training.end - training.start, *streams) as usize / window * streams
    }

    fn in_order(&self) -> bool {
        true
    }

    /// Trains on one window of every stream: `batch` must hold these examples, in order.
    fn loss(&self, batch: &[u32], mode: Mode) -> Result<Tensor> {
        self.loss_of_share(batch, mode)
    }

    /// Trains on one window of each stream of the share: there is one stream per example of `batch`.
    fn loss_of_share(&self, batch: &[u32], mode: Mode) -> Result<Tensor> {
        let share = mode.examples(batch.len());
        let LanguageModellingConfig { model, vocabulary, text, training, windowing, device, .. } =
            &self.config;
        let Windowing { streams, window } = *windowing;
        let number = batch.first().map_or(0, |&first| first as usize / streams);
        ensure!(
            batch.iter().map(|&example| example as usize).eq(number * streams..(number + 1) * streams),
            "language modelling: found a batch of {}, expected one per stream: set the batch size to the number of streams, {streams}",
            count(batch.len(), "window")
        );
        let mut position = self.position.borrow_mut();
        if number == 0 {
            position.state = None;
        }
        let mut windows = match position.windows.take() {
            Some((at, windows)) if at == number => windows,
            _ => {
                let start = (number * window) as u64;
                TokenWindows::of_share(text, vocabulary, training.clone(), streams, share.clone(), start)?
            }
        };
        let Some(tokens) = windows.next_window(window)? else {
            bail!("{}: window {number} is beyond the end of the training range", text.name())
        };
        let steps = tokens.inputs.len() / share.len();
        let sequences = PackedSequences::of_share(&vec![steps; streams], share)?;
        let before = position.state.as_ref();
        let (loss, state) = window_loss(model, tokens, sequences, before, mode, device)?;
        *position = Position { windows: Some((number + 1, windows)), state: Some(state.detach()) };
        Ok(loss)
    }

    fn validate(&self) -> Result<Score> {
        let LanguageModellingConfig { model, vocabulary, text, validation, windowing, device, .. } =
            &self.config;
        let loss = evaluate_text(model, vocabulary, text, validation.clone(), *windowing, device)?;
        Ok(Score { loss, metric: libm::exp(loss) })
    }

    fn is_capturable(&self) -> bool {
        true
    }

    fn metric(&self) -> Metric {
        Metric::PERPLEXITY
    }

    fn state(&self) -> Result<HashMap<String, Tensor>> {
        let position = self.position.borrow();
        let state = position.state.iter();
        let parts = state.flat_map(|state| [("hidden", Some(&state.hidden)), ("cell", state.cell.as_ref())]);
        let own = parts.filter_map(|(name, part)| Some((name.to_string(), part?.clone()))).collect();
        gathered(own, STREAMS)
    }

    fn load_state(&self, mut state: HashMap<String, Tensor>) -> Result<()> {
        let own = own_share(self.config.windowing.streams);
        let mut take = |name: &str| -> Result<Option<Tensor>> {
            let Some(all) = state.remove(name).filter(|_| !own.is_empty()) else { return Ok(None) };
            let damaged = "the hidden state in the checkpoint is damaged";
            let own = all.narrow(STREAMS, own.start, own.len()).context(damaged)?;
            Ok(Some(own.contiguous()?.to_device(self.config.device)?))
        };
        let (hidden, cell) = (take("hidden")?, take("cell")?);
        ensure!(
            state.is_empty() && (hidden.is_some() || cell.is_none()),
            "the hidden state in the checkpoint is damaged"
        );
        self.position.borrow_mut().state = hidden.map(|hidden| RecurrentState { hidden, cell });
        Ok(())
    }

    fn sample(&self) -> Result<Option<String>> {
        let LanguageModellingConfig { model, vocabulary, text, seed, .. } = self.config;
        let sampling = Sampling { temperature: 0.8, ..Sampling::default() };
        let mut generator = TextGenerator::new(model, vocabulary, text.level(), sampling, seed, "")?;
        let text = (0..SAMPLE_LENGTH).map(|_| generator.next_text()).collect::<Result<String>>()?;
        let lines: Vec<String> = text.lines().map(|line| format!("sample | {line}")).collect();
        Ok(Some(lines.join("\n")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_token_is_never_more_probable_than_a_known_one() {
        let logits = [9.0, 3.0, 0.5, -1.0, 2.0];
        let known = [2, 3, 4].map(|target| token_log_probability(&logits, target));
        assert!(known.iter().all(|&known| token_log_probability(&logits, Vocabulary::UNKNOWN) <= known));
        let total: f64 =
            (0..5).filter(|&at| at != 1).map(|at| token_log_probability(&logits, at).exp()).sum();
        assert!(
            (total + 3f64.exp() / logits.iter().map(|&x| f64::from(x).exp()).sum::<f64>() - 1.0).abs() < 1e-9
        );
    }
}
