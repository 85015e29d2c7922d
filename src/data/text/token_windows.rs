//! A text cut into parallel streams, for truncated back-propagation through time.

use super::text_stream::{TextStream, Tokens};
use super::vocabulary::Vocabulary;
use crate::data::count;
use anyhow::{Result, ensure};
use std::ops::Range;

/// Consecutive parts of a text, read in parallel, window by window.
///
/// Each window continues where the previous one ended.
#[derive(Debug)]
pub struct TokenWindows<'a> {
    vocabulary: &'a Vocabulary,
    /// For each stream that is read, its reader and the id of the token before it.
    readers: Vec<(Tokens<'a>, u32)>,
    /// Steps left in each stream.
    left: u64,
}

/// A window of all streams: `inputs` and `targets` of shape `(steps, streams)`, row-major.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenWindow {
    /// The ids of the tokens.
    pub inputs: Vec<u32>,
    /// The id of the token after each input.
    pub targets: Vec<u32>,
}

impl<'a> TokenWindows<'a> {
    /// Number of steps of each stream when `tokens` tokens are cut into `streams` streams.
    ///
    /// Every token of a stream but the first is predicted. A remainder of less than one step per stream is left out.
    pub fn steps(tokens: u64, streams: usize) -> u64 {
        tokens.saturating_sub(1) / streams.max(1) as u64
    }

    /// Cuts the tokens `range` into `streams` streams and skips the first `start` steps of each.
    ///
    /// # Errors
    /// Fails if there are no streams, `range` is not within the text, `start` is after the last step, or a file can't
    /// be read.
    pub fn new(
        text: &'a TextStream,
        vocabulary: &'a Vocabulary,
        range: Range<u64>,
        streams: usize,
        start: u64,
    ) -> Result<Self> {
        Self::of_share(text, vocabulary, range, streams, 0..streams, start)
    }

    /// Like [`new`](Self::new), and reads only the streams `share`.
    ///
    /// # Errors
    /// Fails if [`new`](Self::new) would.
    pub(crate) fn of_share(
        text: &'a TextStream,
        vocabulary: &'a Vocabulary,
        range: Range<u64>,
        streams: usize,
        share: Range<usize>,
        start: u64,
    ) -> Result<Self> {
        ensure!(
            streams > 0 && range.start < range.end && range.end <= text.len(),
            "{}: found {} of tokens {} to {}, expected at least one stream of 0 to {}",
            text.name(),
            count(streams, "stream"),
            range.start,
            range.end,
            text.len()
        );
        let steps = Self::steps(range.end - range.start, streams);
        ensure!(
            start <= steps,
            "{}: found step {start} of streams of {steps} steps, expected {steps} at most",
            text.name()
        );
        let mut token = String::new();
        let reader = |stream: usize| {
            let mut tokens = text.read(range.start + stream as u64 * steps + start);
            tokens.require(&mut token)?;
            Ok((tokens, vocabulary.id(&token)))
        };
        let readers = share.map(reader).collect::<Result<_>>()?;
        Ok(Self { vocabulary, readers, left: steps - start })
    }

    /// Reads the next `steps` steps of all streams, or fewer before the end; `None` at the end.
    ///
    /// # Errors
    /// Fails if a file can't be read or has changed since it was opened.
    pub fn next_window(&mut self, steps: usize) -> Result<Option<TokenWindow>> {
        let steps = self.left.min(steps as u64);
        self.left -= steps;
        let (streams, mut token) = (self.readers.len(), String::new());
        let mut window = TokenWindow { inputs: vec![0; steps as usize * streams], targets: vec![] };
        window.targets.clone_from(&window.inputs);
        for (stream, (reader, before)) in self.readers.iter_mut().enumerate() {
            for row in (stream..window.inputs.len()).step_by(streams) {
                reader.require(&mut token)?;
                let next = self.vocabulary.id(&token);
                (window.inputs[row], window.targets[row]) = (std::mem::replace(before, next), next);
            }
        }
        Ok((steps > 0).then_some(window))
    }
}
