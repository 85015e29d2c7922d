//! Text generation with a language model.

use crate::data::{Level, Vocabulary};
use crate::models::language_model::LanguageModel;
use crate::nn::{IncrementalDecoder, Sampling};
use crate::rng;
use anyhow::{Context, Result};
use rand_chacha::ChaCha8Rng;

/// Generates text with a language model, one token at a time.
pub struct TextGenerator<'a> {
    decoder: IncrementalDecoder,
    vocabulary: &'a Vocabulary,
    level: Level,
    sampling: Sampling,
    rng: ChaCha8Rng,
    /// Logits of the next token.
    logits: Vec<f32>,
    /// The last token; none after white space, which ends a word.
    last: Option<u32>,
}

impl<'a> TextGenerator<'a> {
    /// Reads `prompt`, to continue it.
    ///
    /// Without tokens in the prompt, it reads the end of a line. The generated text is a function of the model, the
    /// prompt, `sampling` and `seed`.
    ///
    /// # Errors
    /// Fails if the prompt has zero bytes, or the model fails.
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
        let (mut decoder, mut logits) = (model.incremental_decoder()?, vec![]);
        for &id in &ids {
            logits = decoder.step(id)?;
        }
        let last = ids.pop().filter(|_| !prompt.ends_with(char::is_whitespace));
        let rng = rng::stream(seed, "sample");
        Ok(Self { decoder, vocabulary, level, sampling, rng, logits, last })
    }

    /// The values of the model's cells after the last token, one list per layer.
    pub fn activations(&self) -> Vec<Vec<f32>> {
        self.decoder.activations()
    }

    /// Draws the next token and returns its text, with a separating blank first if needed.
    ///
    /// # Errors
    /// Fails if the vocabulary has no tokens, the logits are NaN, or the model fails.
    pub fn next_text(&mut self) -> Result<String> {
        // Padding and the unknown token have no text.
        for special in [Vocabulary::PAD, Vocabulary::UNKNOWN] {
            self.logits[special as usize] = f32::NEG_INFINITY;
        }
        let drawn = self.sampling.sample(&self.logits, &mut self.rng);
        let id =
            drawn.context("cannot draw a token: the vocabulary is empty or the model's logits are NaN")?;
        self.logits = self.decoder.step(id)?;
        let before = self.last.replace(id).and_then(|last| self.vocabulary.token(last));
        Ok(self.level.decode(before, self.vocabulary.token(id).unwrap_or_default()).concat())
    }
}
