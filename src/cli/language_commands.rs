//! Using a trained language model: sampling, scoring lines, and showing its cells.

use super::inputs::Inputs;
use super::options::{in_range, non_negative, positive, whole};
use super::text::{UnknownCount, note_unknown_count, noun};
use super::{Outcome, count, show_notes};
use crate::data::{Level, TextStream, Vocabulary};
use crate::models::language_model::LanguageModel;
use crate::nn::Sampling;
use crate::plots::{self, Neuron};
use crate::train::{LineScore, Run, TextGenerator, is_output_open, print, say, score_line};
use anyhow::{Context, Result};
use candle_core::Device;
use clap::{Args, Subcommand};

/// The sub-commands of a language model.
#[derive(Subcommand)]
pub enum LanguageCommand {
    /// Generate text, always on the CPU: a single token is too little work for other devices
    Sample(SampleCommand),
    /// Print the log-probability of each line of a text
    Score(Inputs),
    /// Write a page that colours a text by the values of the model's cells
    Neurons(NeuronsCommand),
}

/// The options of `sample`.
#[derive(Args)]
pub struct SampleCommand {
    /// Beginning of the text
    #[arg(long, value_name = "TEXT", default_value = "")]
    prompt: String,
    /// Number of tokens to generate
    #[arg(long, value_name = "N", value_parser = whole::<usize>, default_value_t = 1000)]
    length: usize,
    /// Divisor of the logits: below 1 favours probable tokens, 0 always takes the most probable one
    #[arg(long, value_name = "X", default_value_t = 0.8, value_parser = non_negative)]
    temperature: f64,
    /// Sample from the K most probable tokens only
    #[arg(long, value_name = "K", value_parser = positive)]
    top_k: Option<usize>,
    /// Sample from the smallest set of most probable tokens with total probability P
    #[arg(long, value_name = "P", value_parser = |text: &str| in_range(text, 0.0..=1.0, "a number from 0 to 1"))]
    top_p: Option<f64>,
    /// Seed; the same seed gives the same text
    #[arg(long, value_name = "N", value_parser = whole::<u64>, default_value_t = 42)]
    seed: u64,
    /// Stop before TEXT is generated
    #[arg(long, value_name = "TEXT")]
    stop: Option<String>,
}

/// The options of `neurons`.
#[derive(Args)]
pub struct NeuronsCommand {
    #[command(flatten)]
    inputs: Inputs,
    /// Show the first N tokens of the text only
    #[arg(long, value_name = "N", default_value_t = 5000, value_parser = positive)]
    length: usize,
}

/// A trained language model, and the data of its sub-commands.
pub(super) struct TrainedModel<'a> {
    pub(super) run: &'a Run,
    pub(super) model: &'a LanguageModel,
    pub(super) vocabulary: &'a Vocabulary,
    pub(super) level: Level,
    pub(super) device: &'a Device,
}

pub(super) fn answer(command: &LanguageCommand, trained: &TrainedModel) -> Result<Outcome> {
    match command {
        LanguageCommand::Sample(command) => sample(command, trained),
        LanguageCommand::Score(inputs) => score(inputs, trained),
        LanguageCommand::Neurons(NeuronsCommand { inputs, length }) => neurons(inputs, *length, trained),
    }
}

fn sample(command: &SampleCommand, trained: &TrainedModel) -> Result<Outcome> {
    let &SampleCommand { temperature, top_k, top_p, seed, .. } = command;
    let sampling = Sampling { temperature, top_k, top_p };
    if temperature == 0.0 && (top_k.is_some() || top_p.is_some()) {
        show_notes(&[
            "--temperature 0 always takes the most probable token, so --top-k and --top-p have no effect"
                .into(),
        ]);
    }
    let &TrainedModel { vocabulary, model, level, .. } = trained;
    let prompt = level.encode(&command.prompt, vocabulary).context("the prompt")?;
    let unknown = prompt.iter().filter(|&&id| id == Vocabulary::UNKNOWN).count();
    if unknown > 0 {
        note_unknown_count(unknown as u64, prompt.len() as u64, noun(level), &[]);
    }
    let mut generator = TextGenerator::new(model, vocabulary, level, sampling, seed, &command.prompt)?;
    let stop = command.stop.as_deref().filter(|stop| !stop.is_empty());
    let mut output = Output { stop, held: String::new() };
    print(&command.prompt);
    for _ in 0..command.length {
        if !output.write(&generator.next_text()?) {
            return Ok(Outcome::Done);
        }
    }
    print(&output.held);
    print("\n");
    Ok(Outcome::Done)
}

/// Standard output, up to the stop text.
struct Output<'a> {
    stop: Option<&'a str>,
    /// Text that may be the beginning of the stop text.
    held: String,
}

impl Output<'_> {
    /// Writes `piece`, and returns whether more may follow.
    fn write(&mut self, piece: &str) -> bool {
        self.held.push_str(piece);
        let safe = match self.stop {
            None => self.held.len(),
            Some(stop) if let Some(end) = self.held.find(stop) => {
                print(&self.held[..end]);
                print("\n");
                return false;
            }
            Some(stop) => {
                let may_begin =
                    |&at: &usize| self.held.is_char_boundary(at) && stop.starts_with(&self.held[at..]);
                (0..self.held.len()).find(may_begin).unwrap_or(self.held.len())
            }
        };
        print(&self.held[..safe]);
        self.held.drain(..safe);
        is_output_open()
    }
}

fn score(inputs: &Inputs, trained: &TrainedModel) -> Result<Outcome> {
    let &TrainedModel { vocabulary, model, level, device, .. } = trained;
    let (mut total, mut tokens, mut unknown_count) = (0.0, 0, UnknownCount::default());
    say("log_probability\tnats_per_token\tperplexity\ttext");
    let outcome = inputs.for_each_text(|line| {
        let LineScore { log_probability, tokens: count, unknown } =
            score_line(model, vocabulary, level, line, device)?;
        let nats = -log_probability / count as f64;
        say(&format!("{log_probability:.3}\t{nats:.4}\t{:.3}\t{line}", libm::exp(nats)));
        // The end of the line also is a token.
        if count > 1 {
            unknown_count.add(line, unknown as u64, count as u64 - 1);
        }
        (total, tokens) = (total + log_probability, tokens + count);
        Ok(())
    })?;
    unknown_count.note(noun(level));
    if tokens > 0 {
        let nats = -total / tokens as f64;
        say(&format!("{total:.3}\t{nats:.4}\t{:.3}\t(all {})", libm::exp(nats), count(tokens, "token")));
    }
    Ok(outcome)
}

fn neurons(inputs: &Inputs, length: usize, trained: &TrainedModel) -> Result<Outcome> {
    let &TrainedModel { run, vocabulary, model, level, .. } = trained;
    let (text, outcome) = match inputs.file() {
        Some(file) => (TextStream::open(file, level)?, Outcome::Done),
        None => {
            let mut text = String::new();
            let outcome = inputs.for_each_text(|line| {
                text.extend([line, "\n"]);
                Ok(())
            })?;
            (TextStream::from_memory("the input", text, level)?, outcome)
        }
    };
    show_notes(&text.notes);
    let (mut tokens, mut token) = (text.read(0), String::new());
    let (mut decoder, mut shown, mut last) = (model.incremental_decoder()?, vec![], None);
    let mut cells: Vec<Neuron> = vec![];
    // The end of a line is a token that the user did not type.
    let (mut unknown, mut all) = (0, 0);
    while shown.len() < length && tokens.next_into(&mut token)? {
        let id = vocabulary.id(&token);
        unknown += u64::from(id == Vocabulary::UNKNOWN);
        all += u64::from(token != level.line_end());
        decoder.step(id)?;
        shown.push(level.decode(last.as_deref(), &token).concat());
        last = Some(token.clone());
        add_values(&mut cells, decoder.activations());
    }
    note_unknown_count(unknown, all, noun(level), &[]);
    if text.len() > shown.len() as u64 {
        show_notes(&[format!("{}: the first {} of {} tokens", text.name(), shown.len(), text.len())]);
    }
    run.write("neurons.html", &plots::neuron_page(&shown, &cells)?)?;
    say(&run.dir().join("neurons.html").display().to_string());
    Ok(outcome)
}

/// Adds the values of the cells after one more token, given per layer.
pub(super) fn add_values(cells: &mut Vec<Neuron>, layers: Vec<Vec<f32>>) {
    if cells.is_empty() {
        for (layer, values) in layers.iter().enumerate() {
            let name = |cell: usize| format!("layer {}, cell {}", layer + 1, cell + 1);
            cells.extend((0..values.len()).map(|cell| Neuron { name: name(cell), values: vec![] }));
        }
    }
    cells.iter_mut().zip(layers.into_iter().flatten()).for_each(|(cell, value)| cell.values.push(value));
}
