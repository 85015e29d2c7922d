//! Using a trained language model: sampling, scoring lines, and showing its cells.

use super::command_line::split;
use super::options::{MachineOptions, non_negative, positive};
use super::recipe::Command;
use super::show_notes;
use crate::data::{Level, TextStream, Vocabulary};
use crate::models::language_model::LanguageModel;
use crate::nn::Sampling;
use crate::plots::{self, Neuron};
use crate::train::{Run, TextGenerator, line_log_probability, say};
use anyhow::{Context, Result, ensure};
use candle_core::Device;
use clap::{Args, Subcommand};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// The sub-commands of a language model.
#[derive(Subcommand)]
pub enum LanguageCommand {
    /// Generate text, always on the CPU: a single token is too little work for other devices
    Sample(SampleCommand),
    /// Print the log-probability of each line of a text
    Score(ScoreCommand),
    /// Write a page that colours a text by the values of the model's cells
    Neurons(NeuronsCommand),
}

/// The options of `sample`.
#[derive(Args)]
pub struct SampleCommand {
    /// Run folder [default: the newest]
    run: Option<PathBuf>,
    /// Beginning of the text
    #[arg(long, value_name = "TEXT", default_value = "")]
    prompt: String,
    /// Number of tokens to generate
    #[arg(long, value_name = "N", default_value_t = 1000)]
    length: usize,
    /// Divisor of the logits: below 1 favours probable tokens, 0 always takes the most probable one
    #[arg(long, value_name = "X", default_value_t = 0.8, value_parser = non_negative)]
    temperature: f64,
    /// Sample from the K most probable tokens only
    #[arg(long, value_name = "K", value_parser = positive)]
    top_k: Option<usize>,
    /// Sample from the smallest set of most probable tokens with total probability P
    #[arg(long, value_name = "P", value_parser = non_negative)]
    top_p: Option<f64>,
    /// Seed; the same seed gives the same text
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
    /// Stop before TEXT is generated
    #[arg(long, value_name = "TEXT")]
    stop: Option<String>,
    #[command(flatten)]
    machine: MachineOptions,
}

/// The options of `score`.
#[derive(Args)]
pub struct ScoreCommand {
    /// Run folder, if not the newest, followed by the text's file [default: standard input]
    #[arg(value_name = "[RUN] [FILE]", num_args = 0..=2)]
    inputs: Vec<OsString>,
    #[command(flatten)]
    machine: MachineOptions,
}

/// The options of `neurons`.
#[derive(Args)]
pub struct NeuronsCommand {
    /// Run folder, if not the newest, followed by the text's file
    #[arg(value_name = "[RUN] FILE", required = true, num_args = 1..=2)]
    inputs: Vec<OsString>,
    /// Show the first N tokens of the text only
    #[arg(long, value_name = "N", default_value_t = 5000, value_parser = positive)]
    length: usize,
    #[command(flatten)]
    machine: MachineOptions,
}

impl Command for LanguageCommand {
    fn machine(&self) -> &MachineOptions {
        match self {
            Self::Sample(command) => &command.machine,
            Self::Score(command) => &command.machine,
            Self::Neurons(command) => &command.machine,
        }
    }

    fn run(&self) -> Option<&Path> {
        match self {
            Self::Sample(command) => command.run.as_deref(),
            Self::Score(ScoreCommand { inputs, .. }) | Self::Neurons(NeuronsCommand { inputs, .. }) => {
                split(inputs).0
            }
        }
    }
}

/// A trained language model, with what its sub-commands need.
pub(super) struct TrainedModel<'a> {
    pub(super) run: &'a Run,
    pub(super) model: &'a LanguageModel,
    pub(super) vocabulary: &'a Vocabulary,
    pub(super) level: Level,
    pub(super) device: &'a Device,
}

pub(super) fn answer(command: &LanguageCommand, trained: &TrainedModel) -> Result<()> {
    match command {
        LanguageCommand::Sample(command) => sample(command, trained),
        LanguageCommand::Score(command) => score(file(&command.inputs)?, trained),
        LanguageCommand::Neurons(command) => {
            let file = file(&command.inputs)?.context("neurons: name a file after the run folder")?;
            neurons(file, command.length, trained)
        }
    }
}

/// The file after the run folder.
fn file(inputs: &[OsString]) -> Result<Option<&Path>> {
    let (_, files) = split(inputs);
    ensure!(files.len() <= 1, "{}: no such run folder", Path::new(&files[0]).display());
    Ok(files.first().map(Path::new))
}

fn sample(command: &SampleCommand, trained: &TrainedModel) -> Result<()> {
    let &SampleCommand { temperature, top_k, top_p, seed, .. } = command;
    let sampling = Sampling { temperature, top_k, top_p };
    let &TrainedModel { vocabulary, model, level, .. } = trained;
    let mut generator = TextGenerator::new(model, vocabulary, level, sampling, seed, &command.prompt)?;
    let stop = command.stop.as_deref().filter(|stop| !stop.is_empty());
    let mut output = Output { stop, held: String::new() };
    let mut is_open = print(&command.prompt);
    for _ in 0..command.length {
        if !is_open {
            return Ok(());
        }
        is_open = output.write(&generator.next_text()?);
    }
    output.finish();
    Ok(())
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
        let Some(stop) = self.stop else { return print(piece) };
        self.held.push_str(piece);
        if let Some(end) = self.held.find(stop) {
            print(&self.held[..end]);
            self.held.clear();
            print("\n");
            return false;
        }
        let may_begin = |&at: &usize| self.held.is_char_boundary(at) && stop.starts_with(&self.held[at..]);
        let safe = (0..self.held.len()).find(may_begin).unwrap_or(self.held.len());
        let is_open = print(&self.held[..safe]);
        self.held.drain(..safe);
        is_open
    }

    fn finish(&self) {
        print(&self.held);
        print("\n");
    }
}

/// Writes to standard output, and returns whether anyone reads it.
fn print(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

fn score(file: Option<&Path>, trained: &TrainedModel) -> Result<()> {
    let &TrainedModel { vocabulary, model, level, device, .. } = trained;
    let (name, lines): (_, Box<dyn BufRead>) = match file {
        None => ("standard input".to_string(), Box::new(std::io::stdin().lock())),
        Some(path) => {
            let name = path.display().to_string();
            let file = std::fs::File::open(path).with_context(|| format!("{name}: cannot read it"))?;
            (name, Box::new(BufReader::new(file)))
        }
    };
    let (mut total, mut tokens) = (0.0, 0);
    for (number, line) in lines.lines().enumerate() {
        let place = || format!("{name}: line {}", number + 1);
        let line = line.with_context(place)?;
        let score = line_log_probability(model, vocabulary, level, &line, device);
        let (log_probability, count) = score.with_context(place)?;
        let nats = -log_probability / count as f64;
        say(&format!("{log_probability:.3}\t{nats:.4}\t{:.3}\t{line}", nats.exp()));
        (total, tokens) = (total + log_probability, tokens + count);
    }
    if tokens > 0 {
        let nats = -total / tokens as f64;
        say(&format!("{total:.3}\t{nats:.4}\t{:.3}\t(all {tokens} tokens)", nats.exp()));
    }
    Ok(())
}

fn neurons(file: &Path, length: usize, trained: &TrainedModel) -> Result<()> {
    let &TrainedModel { run, vocabulary, model, level, .. } = trained;
    let text = TextStream::open(file, level)?;
    show_notes(&text.notes);
    let (mut tokens, mut token) = (text.read(0), String::new());
    let (mut decoder, mut shown, mut last) = (model.incremental_decoder()?, vec![], None);
    let mut cells: Vec<Neuron> = vec![];
    while shown.len() < length && tokens.next_into(&mut token)? {
        decoder.step(vocabulary.id(&token))?;
        shown.push(level.decode(last.as_deref(), &token).concat());
        last = Some(token.clone());
        for (layer, values) in decoder.activations().into_iter().enumerate() {
            if shown.len() == 1 {
                let name = |cell: usize| format!("layer {}, cell {}", layer + 1, cell + 1);
                cells.extend((0..values.len()).map(|cell| Neuron { name: name(cell), values: vec![] }));
            }
            let layer = cells[layer * values.len()..].iter_mut();
            layer.zip(values).for_each(|(cell, value)| cell.values.push(value));
        }
    }
    if text.len() > shown.len() as u64 {
        show_notes(&[format!("{}: the first {} of {} tokens", text.name(), shown.len(), text.len())]);
    }
    run.write("neurons.html", &plots::neuron_page(&shown, &cells)?)?;
    say(&run.dir().join("neurons.html").display().to_string());
    Ok(())
}
