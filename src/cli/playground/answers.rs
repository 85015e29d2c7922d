//! The answers of models of each kind of data.

use super::super::images::{self, ImageData};
use super::super::language::LanguageData;
use super::super::language_commands::add_values;
use super::super::music::MusicData;
use super::super::music_commands;
use super::super::recipe::{Data, Trained};
use super::super::sentences::{self, Classified, Phrase, SentenceData};
use super::super::tagging::{self, TaggingData};
use super::super::translation::TranslationData;
use super::super::translation_commands::alignment;
use super::super::translation_options::unknown;
use crate::data::{NGrams, Vocabulary};
use crate::nn::Sampling;
use crate::plots::{listen_page, ranked_cells};
use crate::train::{TextGenerator, Translator};
use anyhow::{Context, Result, anyhow, ensure};
use candle_core::{DType, Tensor};
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::Path;

/// Maximum number of characters of a text.
const TEXT: usize = 1000;
/// Maximum number of words of a sentence: without attributions, it is classified once per word.
const WORDS: usize = 200;
/// Maximum number of tokens that a language model writes at once.
const TOKENS: usize = 2000;
/// Maximum number of bars of a piece.
const BARS: usize = 64;
/// Maximum number of feature maps of a stage, and of cells of a language model.
const MAPS: usize = 64;

/// A kind of data whose models the page can use.
pub trait Playable: Data {
    /// The section of the page.
    const SECTION: &'static str;

    /// Answers `question`, the body of a request of this section.
    ///
    /// # Errors
    /// Fails if the question is malformed or too long.
    fn ask(trained: &Trained<Self>, question: &[u8]) -> Result<Value>;
}

/// A loaded model of any recipe.
pub(super) trait Answers {
    /// See [`Playable::ask`].
    fn answer(&self, question: &[u8]) -> Result<Value>;
}

impl<D: Playable> Answers for Trained<D> {
    fn answer(&self, question: &[u8]) -> Result<Value> {
        D::ask(self, question)
    }
}

/// A question about a text.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    text: String,
}

/// Reads a question in JSON.
fn parse<'a, T: Deserialize<'a>>(question: &'a [u8]) -> Result<T> {
    serde_json::from_slice(question).map_err(|_| anyhow!("the question is not as expected"))
}

/// Reads a question about a text.
fn text(question: &[u8]) -> Result<String> {
    let About { text } = parse(question)?;
    check_text(&text)?;
    Ok(text)
}

fn check_text(text: &str) -> Result<()> {
    let found = text.chars().count();
    ensure!(found <= TEXT, "the text: found {found} characters, expected at most {TEXT}");
    Ok(())
}

fn check_words(words: &[String]) -> Result<()> {
    let found = words.len();
    ensure!(found <= WORDS, "the text: found {found} words, expected at most {WORDS}");
    Ok(())
}

fn check_temperature(temperature: f64) -> Result<()> {
    let is_possible = (0.0..=10.0).contains(&temperature);
    ensure!(is_possible, "the temperature: found {temperature}, expected 0 to 10");
    Ok(())
}

/// The question is a picture, PNG or JPEG.
impl Playable for ImageData {
    const SECTION: &'static str = "digit";

    fn ask(trained: &Trained<Self>, question: &[u8]) -> Result<Value> {
        let Trained { settings, facts, model, device, .. } = trained;
        let (pixels, _) = facts.preparation.decode(question, Path::new("the picture"), facts.shape)?;
        let (channels, height, width) = facts.shape;
        let input = json!({ "height": height, "width": width, "maps": pixels.chunks(height * width).map(hex).collect::<Vec<_>>() });
        let (image, probabilities) = images::classify(trained, settings.data_options()?.cost, pixels)?;
        let maps = model.feature_maps(&image.batch(&[0], device)?.0)?;
        let stages = maps.iter().map(stage).collect::<Result<Vec<_>>>()?;
        Ok(json!({
            "classes": facts.classes, "probabilities": probabilities, "channels": channels, "input": input,
            "stages": stages,
        }))
    }
}

/// Bytes as hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The feature maps `(1, channels, height, width)` of a stage as bytes.
///
/// The minimum becomes 0, the maximum 255.
fn stage(maps: &Tensor) -> Result<Value> {
    let (_, _, height, width) = maps.dims4()?;
    let values = maps.get(0)?.flatten_from(1)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    let extreme = |choose: fn(f32, f32) -> f32| values.iter().flatten().copied().fold(f32::NAN, choose);
    let (low, high) = (extreme(f32::min), extreme(f32::max));
    let range = if high > low { high - low } else { 1.0 };
    let byte = |value: &f32| (255.0 * (value - low) / range).round() as u8;
    let map = |values: &Vec<f32>| hex(&values.iter().map(byte).collect::<Vec<u8>>());
    let maps: Vec<String> = values.iter().take(MAPS).map(map).collect();
    Ok(json!({ "height": height, "width": width, "maps": maps }))
}

impl Playable for SentenceData {
    const SECTION: &'static str = "sentence";

    fn ask(trained: &Trained<Self>, question: &[u8]) -> Result<Value> {
        let options = trained.settings.data_options()?;
        let words = options.text.tokenizer.tokens(&text(question)?);
        check_words(&words)?;
        let classified = sentences::classify(trained, options.ngrams, &words)?;
        let is_attributed = classified.phrases.is_some();
        let Classified { probabilities, best, logit, phrases } = classified;
        let phrases = match phrases {
            Some(phrases) => phrases,
            None => left_out(trained, options.ngrams, &words, best, logit)?,
        };
        let phrase = |Phrase { text, places, contribution }: &Phrase| json!({ "text": text, "start": places.start, "end": places.end, "contribution": contribution });
        Ok(json!({
            "classes": trained.facts.classes,
            "probabilities": probabilities,
            "words": words,
            "known": known(&words, &trained.facts.vocabulary),
            "phrases": phrases.iter().map(phrase).collect::<Vec<_>>(),
            "attributed": is_attributed,
        }))
    }
}

/// Whether the vocabulary has each word.
fn known(words: &[String], vocabulary: &Vocabulary) -> Vec<bool> {
    words.iter().map(|word| vocabulary.id(word) != Vocabulary::UNKNOWN).collect()
}

/// Computes for each word how much the logit of `class` shrinks without it, the largest change first.
fn left_out(
    trained: &Trained<SentenceData>,
    ngrams: NGrams,
    words: &[String],
    class: usize,
    logit: f32,
) -> Result<Vec<Phrase>> {
    if words.len() < 2 {
        return Ok(vec![]);
    }
    let shorter: Vec<Vec<String>> =
        (0..words.len()).map(|place| [&words[..place], &words[place + 1..]].concat()).collect();
    let logits = sentences::logits(trained, ngrams, &shorter)?;
    let phrase = |(place, logits): (usize, Vec<f32>)| Phrase {
        text: words[place].clone(),
        places: place..place + 1,
        contribution: logit - logits[class],
    };
    let mut phrases: Vec<Phrase> = logits.into_iter().enumerate().map(phrase).collect();
    phrases.sort_by(|a, b| b.contribution.abs().total_cmp(&a.contribution.abs()));
    Ok(phrases)
}

impl Playable for TaggingData {
    const SECTION: &'static str = "names";

    fn ask(trained: &Trained<Self>, question: &[u8]) -> Result<Value> {
        let (words, tags) = tagging::tagged(trained, &text(question)?)?;
        let known = known(&words, &trained.facts.vocabulary);
        Ok(json!({ "words": words, "tags": tags, "known": known, "classes": trained.facts.classes }))
    }
}

impl Playable for TranslationData {
    const SECTION: &'static str = "translation";

    fn ask(trained: &Trained<Self>, question: &[u8]) -> Result<Value> {
        let Trained { settings, facts, model, device, .. } = trained;
        let text = text(question)?;
        let source = facts.source.encode(&text);
        ensure!(!source.is_empty(), "the text: it is empty, expected something to translate");
        ensure!(source.len() <= WORDS, "the text: found {} tokens, expected at most {WORDS}", source.len());
        let unknown = unknown(&source);
        let decoding = settings.data_options()?.decoding();
        let mut found = Translator::new(model, device).translate(&[source], &decoding)?;
        let best = found.pop().and_then(|mut best| (!best.is_empty()).then(|| best.remove(0)));
        let best = best.context("the search found no translation")?;
        let attention = alignment(facts, &text, &best);
        let attention = attention
            .map(|found| json!({ "source": found.source, "target": found.target, "weights": found.weights }));
        Ok(json!({
            "translation": facts.target.decode(&best.ids), "finished": best.finished, "unknown": unknown,
            "attention": attention,
        }))
    }
}

/// A beginning for a language model, and how to continue it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Beginning {
    text: String,
    length: usize,
    temperature: f64,
    /// 0 for all tokens.
    top_k: usize,
    seed: u64,
}

impl Playable for LanguageData {
    const SECTION: &'static str = "text";

    fn ask(trained: &Trained<Self>, question: &[u8]) -> Result<Value> {
        let Trained { settings, facts: vocabulary, model, .. } = trained;
        let Beginning { text, length, temperature, top_k, seed } = parse(question)?;
        check_text(&text)?;
        ensure!((1..=TOKENS).contains(&length), "the length: found {length}, expected 1 to {TOKENS}");
        check_temperature(temperature)?;
        let level = settings.data_options()?.level;
        let sampling = Sampling { temperature, top_k: (top_k > 0).then_some(top_k), top_p: None };
        let mut generator = TextGenerator::new(model, vocabulary, level, sampling, seed, &text)?;
        let (mut tokens, mut cells) = (vec![], vec![]);
        for _ in 0..length {
            tokens.push(generator.next_text()?);
            add_values(&mut cells, generator.activations());
        }
        let mut cells = ranked_cells(&cells);
        cells.truncate(MAPS);
        let unknown =
            level.encode(&text, vocabulary)?.iter().filter(|&&id| id == Vocabulary::UNKNOWN).count();
        Ok(json!({ "tokens": tokens, "cells": cells, "unknown": unknown }))
    }
}

/// A piece to compose.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    bars: usize,
    temperature: f64,
    seed: u64,
}

/// The answer is a page that plays the piece.
impl Playable for MusicData {
    const SECTION: &'static str = "music";

    fn ask(trained: &Trained<Self>, question: &[u8]) -> Result<Value> {
        let Trained { run, facts, model, .. } = trained;
        let Order { bars, temperature, seed } = parse(question)?;
        ensure!((1..=BARS).contains(&bars), "the bars: found {bars}, expected 1 to {BARS}");
        check_temperature(temperature)?;
        let piece = music_commands::compose((run, model, facts), bars, temperature, seed)?;
        Ok(json!({ "page": listen_page(&piece) }))
    }
}
