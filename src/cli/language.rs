//! Training a language model from the command line, and having it write, judge and show what it sees.

use super::{
    Commands, MachineOptions, Outcome, Request, Settings, TrainOptions, Training, flow, positive,
    probability, sentences, settings_of,
};
use crate::data::{DataError, Level, TextStream, Vocabulary, text};
use crate::models::language_model::{Config, LanguageModel};
use crate::nn::{Cell, Sampling, seeded_var_builder};
use crate::plots::{self, Neuron};
use crate::train::{
    self, LanguageModelling, LanguageModellingConfig, Metric, Run, TextGenerator, Trainer, Windowing,
    line_log_probability, say,
};
use anyhow::{Context, Result, anyhow, bail};
use candle_core::{DType, Device};
use candle_nn::VarMap;
use clap::{Args, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::io::{BufRead, BufReader, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// The language model, the text, and the options of every training.
#[derive(Args, Serialize, Deserialize)]
struct LanguageOptions {
    /// Learn the text of FILE, of any size
    #[arg(long, value_name = "FILE", conflicts_with_all = ["dataset", "data_dir"])]
    text: Option<PathBuf>,
    /// What the tokens are
    #[arg(long, value_name = "NAME", default_value = "char")]
    level: Level,
    /// Tokens that the training part has less often are unknown ones
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
    min_count: usize,
    /// Know only the N most frequent tokens
    #[arg(long, value_name = "N", value_parser = positive)]
    vocab_size: Option<usize>,
    /// How much of the text, before its test part, is for validation
    #[arg(long, value_name = "X", default_value_t = 0.05, value_parser = fraction)]
    validation_fraction: f64,
    /// How much of the text, at its end, is for testing
    #[arg(long, value_name = "X", default_value_t = 0.05, value_parser = fraction)]
    test_fraction: f64,
    #[arg(long, value_name = "NAME", default_value = "lstm")]
    cell: RecurrentCell,
    /// Size of a token's vector
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = positive)]
    embedding: usize,
    /// Instead of vectors, let tokens in as they are, one of all numbers being 1
    #[arg(long, conflicts_with_all = ["embedding", "tie_weights"])]
    one_hot: bool,
    /// Units of each layer
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = positive)]
    hidden: usize,
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = positive)]
    layers: usize,
    /// Probability that a value is dropped in training: of tokens' vectors, between layers, and before the output
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = probability)]
    dropout: f32,
    /// Use tokens' vectors as the output's weights
    #[arg(long)]
    tie_weights: bool,
    /// Tokens that gradients go back over
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = positive)]
    window: usize,
    /// Settings known to do well; options given beside it stand
    #[arg(long, value_name = "NAME")]
    preset: Option<Preset>,
    #[command(flatten)]
    #[serde(flatten)]
    train: TrainOptions,
}

#[derive(Clone, Copy, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RecurrentCell {
    Rnn,
    Gru,
    Lstm,
}

#[derive(Clone, Copy, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Preset {
    /// Half an hour on two cores for a megabyte of plays
    Shakespeare,
}

fn fraction(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(fraction) if (0.0..1.0).contains(&fraction) => Ok(fraction),
        _ => Err("expected a number from 0 to 1 (1 excluded)".to_string()),
    }
}

impl Settings for LanguageOptions {
    const DEFAULTS: &'static [(&'static str, &'static str)] = &[
        ("dataset", "source"),
        ("epochs", "12"),
        ("batch_size", "50"),
        ("learning_rate", "4e-3"),
        ("clip_norm", "5"),
    ];
    const WITHOUT: &'static [&'static str] = &["validation"];

    fn train_options(&self) -> &TrainOptions {
        &self.train
    }

    fn preset(&self) -> Value {
        match self.preset {
            None => Value::Null,
            Some(Preset::Shakespeare) => json!({
                "embedding": 128,
                "hidden": 384,
                "layers": 2,
                "dropout": 0.3,
                "window": 100,
                "batch_size": 32,
                "epochs": 13,
                "learning_rate": 3e-3,
                "warmup": 100,
            }),
        }
    }
}

impl LanguageOptions {
    fn load(&self) -> Result<TextStream> {
        let text = match &self.text {
            Some(path) => TextStream::open(path, self.level)?,
            None => text::load_stream(&self.train.dataset, self.train.data_dir.as_deref(), self.level)
                .map_err(|error| match error.downcast_ref() {
                    Some(DataError::UnknownName { .. }) => anyhow!("{error}; read any file with --text FILE"),
                    _ => super::data_error(error),
                })?,
        };
        sentences::tell(&text.notes);
        Ok(text)
    }

    fn config(&self, vocabulary: usize) -> Config {
        let &Self { embedding, one_hot, hidden, layers, dropout, tie_weights, .. } = self;
        Config {
            vocabulary,
            embedding: (!one_hot).then_some(embedding),
            cell: match self.cell {
                RecurrentCell::Rnn => Cell::Tanh,
                RecurrentCell::Gru => Cell::Gru,
                RecurrentCell::Lstm => Cell::Lstm,
            },
            hidden,
            layers,
            dropout,
            tie_weights,
        }
    }

    /// How the text is cut.
    fn windowing(&self) -> Windowing {
        Windowing { streams: self.train.batch_size, window: self.window }
    }
}

#[derive(Subcommand)]
enum Questions {
    /// Test a finished run
    Eval(EvalCommand),
    /// Have a trained model write, on the CPU on any --device: one token is too little work for another
    Sample(SampleCommand),
    /// How likely a trained model holds each line of a text
    Score(ScoreCommand),
    /// A page that colours a text by what the model's cells see in it
    Neurons(NeuronsCommand),
}

#[derive(Args)]
struct EvalCommand {
    /// Run folder [default: the newest]
    run: Option<PathBuf>,
    /// Test on FILE, the whole of it [default: on the test part of the text that the run has learned]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    #[command(flatten)]
    machine: MachineOptions,
}

#[derive(Args)]
struct SampleCommand {
    /// Run folder [default: the newest]
    run: Option<PathBuf>,
    /// What the text begins with
    #[arg(long, value_name = "TEXT", default_value = "")]
    prompt: String,
    /// Tokens to write
    #[arg(long, value_name = "N", default_value_t = 1000)]
    length: usize,
    /// Below 1: more of what is likely; 0: always the likeliest
    #[arg(long, value_name = "X", default_value_t = 0.8, value_parser = super::number)]
    temperature: f64,
    /// Only draw from the K likeliest tokens
    #[arg(long, value_name = "K", value_parser = positive)]
    top_k: Option<usize>,
    /// Only draw from the likeliest tokens that together have probability P
    #[arg(long, value_name = "P", value_parser = super::number)]
    top_p: Option<f64>,
    /// The same seed draws the same text
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
    /// End before TEXT is written
    #[arg(long, value_name = "TEXT")]
    stop: Option<String>,
    #[command(flatten)]
    machine: MachineOptions,
}

#[derive(Args)]
struct ScoreCommand {
    /// A run folder, where not the newest is meant, then the text's file [default: standard input]
    #[arg(value_name = "[RUN] [FILE]", num_args = 0..=2)]
    inputs: Vec<PathBuf>,
    #[command(flatten)]
    machine: MachineOptions,
}

#[derive(Args)]
struct NeuronsCommand {
    /// A run folder, where not the newest is meant, then the text's file
    #[arg(value_name = "[RUN] FILE", required = true, num_args = 1..=2)]
    inputs: Vec<PathBuf>,
    /// Only the first N tokens of the text
    #[arg(long, value_name = "N", default_value_t = 5000, value_parser = positive)]
    length: usize,
    #[command(flatten)]
    machine: MachineOptions,
}

/// The run folder, if the first of the paths is one, and the path after it.
fn split(inputs: &[PathBuf]) -> (Option<&PathBuf>, Option<&PathBuf>) {
    match inputs {
        [] => (None, None),
        [one] if one.is_dir() => (Some(one), None),
        [one] => (None, Some(one)),
        [run, file, ..] => (Some(run), Some(file)),
    }
}

impl Commands for Questions {
    fn machine(&self) -> &MachineOptions {
        match self {
            Self::Eval(command) => &command.machine,
            Self::Sample(command) => &command.machine,
            Self::Score(command) => &command.machine,
            Self::Neurons(command) => &command.machine,
        }
    }
}

const NAME: &str = "char_lm";

/// The whole program of the binary `char_lm`.
pub fn main() -> ExitCode {
    let about = "A recurrent language model learns a text and writes";
    super::run(NAME, about, |request: Request<LanguageOptions, Questions>| match request {
        Request::Train(training) => train(training),
        Request::Other(Questions::Eval(command)) => eval(&command),
        Request::Other(Questions::Sample(command)) => sample(&command),
        Request::Other(Questions::Score(command)) => score(&command),
        Request::Other(Questions::Neurons(command)) => neurons(&command),
    })
}

/// Which tokens of a text are for what.
struct Parts {
    training: Range<u64>,
    validation: Range<u64>,
    test: Range<u64>,
}

impl Parts {
    fn new(tokens: u64, options: &LanguageOptions) -> Result<Self> {
        let of = |fraction: f64| (fraction * tokens as f64).round() as u64;
        let (validation, test) = (of(options.validation_fraction), of(options.test_fraction));
        let Some(training) = tokens.checked_sub(validation + test).filter(|&left| left > 0) else {
            bail!(
                "--validation-fraction {} and --test-fraction {}: nothing of the text is left to learn",
                options.validation_fraction,
                options.test_fraction
            );
        };
        let used = options.train.train_limit.map_or(training, |limit| training.min(limit as u64));
        let validation = training..training + validation;
        Ok(Self { training: 0..used, test: validation.end..tokens, validation })
    }
}

fn train(training: Training<LanguageOptions>) -> Result<Outcome> {
    let Training { settings, resume, out, machine, progress } = training;
    super::catch_interrupts()?;
    let start = Instant::now();
    let options = settings.train_options();
    let text = settings.load()?;
    let Parts { training, validation, test } = Parts::new(text.len(), &settings)?;
    let vocabulary = text.vocabulary(training.clone(), settings.min_count, settings.vocab_size)?;
    let device = machine.device.open()?;
    let vars = VarMap::new();
    let vb = seeded_var_builder(&vars, options.seed, DType::F32, &device);
    let model = LanguageModel::new(&settings.config(vocabulary.len()), vb)?;
    let task = LanguageModelling::new(LanguageModellingConfig {
        model: &model,
        vocabulary: &vocabulary,
        text: &text,
        training: training.clone(),
        validation: validation.clone(),
        windowing: settings.windowing(),
        seed: options.seed,
        device: &device,
    })?;
    let mut optimizer = options.optimizer(&vars)?;
    let count = |range: &Range<u64>| range.end - range.start;
    let facts = json!({
        "vocabulary": vocabulary.len(),
        "training_tokens": count(&training),
        "validation_tokens": count(&validation),
        "test_tokens": count(&test),
        "parameters": flow::size(&vars),
    });
    let run = flow::folder(NAME, (resume, out.as_deref()), &device, facts, &settings)?;
    sentences::write_vocabulary(&run, &vocabulary)?;
    if !progress.is_quiet() {
        say(&format!(
            "{NAME}: {} parameters, {} different tokens; {} training, {} validation, {} test tokens of {}; run \
             folder {}",
            flow::size(&vars),
            vocabulary.len(),
            count(&training),
            count(&validation),
            count(&test),
            text.name(),
            run.dir().display()
        ));
    }
    let options = options.options(train::Task::examples(&task));
    let trainer = Trainer { options, run: &run, progress: progress.as_ref() };
    let report = trainer.fit(&task, &vars, &mut optimizer)?;
    if report.interrupted {
        return Ok(flow::interrupted(NAME, &run));
    }
    let best = &report.epochs[report.best_epoch - 1];
    let mut losses = vec![("train", best.train_loss), ("val", best.validation.loss)];
    if count(&test) >= 2 {
        let loss = train::evaluate_text(&model, &vocabulary, &text, test, settings.windowing(), &device)?;
        losses.push(("test", loss));
    }
    let mut last = Map::from_iter([
        ("final".to_string(), json!(true)),
        ("best_epoch".to_string(), json!(report.best_epoch)),
    ]);
    for &(part, loss) in &losses {
        last.insert(format!("{part}_loss"), json!(loss));
        last.insert(format!("{part}_bits"), json!(loss / std::f64::consts::LN_2));
        last.insert(format!("{part}_perplexity"), json!(loss.exp()));
        say(&format!("{part:<5} {}", told(loss, settings.level)));
    }
    last.insert("seconds".to_string(), json!(start.elapsed().as_secs_f64()));
    run.write_final(&report.epochs, Metric::Perplexity, &Value::Object(last))?;
    run.write("curves.svg", &flow::curves(&report, Metric::Perplexity)?)?;
    say(&format!("best epoch {}; run folder {}", report.best_epoch, run.dir().display()));
    Ok(Outcome::Done)
}

/// A mean loss in all its units.
fn told(loss: f64, level: Level) -> String {
    let token = match level {
        Level::Char => "character",
        Level::Word => "word",
    };
    let bits = loss / std::f64::consts::LN_2;
    format!("{loss:.4} nats a {token}, {bits:.4} bits, perplexity {:.3}", loss.exp())
}

/// A run's model with its best weights and its vocabulary.
struct Trained {
    run: Run,
    settings: LanguageOptions,
    vocabulary: Vocabulary,
    model: LanguageModel,
    device: Device,
}

impl Trained {
    fn load(run: Option<&PathBuf>, machine: &MachineOptions) -> Result<Self> {
        let (run, config) = Run::open(NAME, run.map(PathBuf::as_path))?;
        let settings: LanguageOptions = settings_of(&run, &config)?;
        let device = machine.device.open()?;
        let vocabulary = sentences::read_vocabulary(&run)?;
        let config = settings.config(vocabulary.len());
        let model = train::load_model(&run.model(), &device, |vb| LanguageModel::new(&config, vb))?;
        Ok(Self { run, settings, vocabulary, model, device })
    }
}

fn eval(command: &EvalCommand) -> Result<Outcome> {
    let Trained { run, settings, vocabulary, model, device } =
        Trained::load(command.run.as_ref(), &command.machine)?;
    let (text, range) = match &command.text {
        Some(path) => {
            let text = TextStream::open(path, settings.level)?;
            sentences::tell(&text.notes);
            let all = 0..text.len();
            (text, all)
        }
        None => {
            let text = settings.load()?;
            let test = Parts::new(text.len(), &settings)?.test;
            if test.is_empty() {
                bail!("{}: this run has left no test part; give a --text", run.dir().display());
            }
            (text, test)
        }
    };
    let loss = train::evaluate_text(&model, &vocabulary, &text, range, settings.windowing(), &device)?;
    say(&told(loss, settings.level));
    Ok(Outcome::Done)
}

fn sample(command: &SampleCommand) -> Result<Outcome> {
    let Trained { settings, vocabulary, model, .. } = Trained::load(command.run.as_ref(), &command.machine)?;
    let &SampleCommand { temperature, top_k, top_p, seed, .. } = command;
    let sampling = Sampling { temperature, top_k, top_p };
    let mut writer =
        TextGenerator::new(&model, &vocabulary, settings.level, sampling, seed, &command.prompt)?;
    let mut out = Out { stop: command.stop.as_deref().filter(|stop| !stop.is_empty()), held: String::new() };
    let mut open = out.write(&command.prompt, false);
    for _ in 0..command.length {
        if !open {
            return Ok(Outcome::Done);
        }
        open = out.write(&writer.next_text()?, true);
    }
    out.end();
    Ok(Outcome::Done)
}

/// Standard output, up to where a text comes that is to stop it.
struct Out<'a> {
    stop: Option<&'a str>,
    /// What may be the beginning of that text.
    held: String,
}

impl Out<'_> {
    /// Writes `piece`, which may bring the end only if it is `new`; whether more may follow.
    fn write(&mut self, piece: &str, new: bool) -> bool {
        let Some(stop) = self.stop.filter(|_| new) else { return print(piece) };
        self.held.push_str(piece);
        if let Some(end) = self.held.find(stop) {
            print(&self.held[..end]);
            self.held.clear();
            print("\n");
            return false;
        }
        let is_begun = |&at: &usize| self.held.is_char_boundary(at) && stop.starts_with(&self.held[at..]);
        let sure = (0..self.held.len()).find(is_begun).unwrap_or(self.held.len());
        let open = print(&self.held[..sure]);
        self.held.drain(..sure);
        open
    }

    fn end(&self) {
        print(&self.held);
        print("\n");
    }
}

/// Whether anyone reads it.
fn print(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

fn score(command: &ScoreCommand) -> Result<Outcome> {
    let (run, file) = split(&command.inputs);
    let Trained { settings, vocabulary, model, device, .. } = Trained::load(run, &command.machine)?;
    let (name, lines): (_, Box<dyn BufRead>) = match file {
        None => ("standard input".to_string(), Box::new(std::io::stdin().lock())),
        Some(path) => {
            let name = path.display().to_string();
            let file = std::fs::File::open(path).with_context(|| format!("{name}: can't be read"))?;
            (name, Box::new(BufReader::new(file)))
        }
    };
    let (mut total, mut tokens) = (0.0, 0);
    for (number, line) in lines.lines().enumerate() {
        let place = || format!("{name}: line {}", number + 1);
        let line = line.with_context(place)?;
        let score = line_log_probability(&model, &vocabulary, settings.level, &line, &device);
        let (log_probability, count) = score.with_context(place)?;
        let nats = -log_probability / count as f64;
        say(&format!("{log_probability:.3}\t{nats:.4}\t{:.3}\t{line}", nats.exp()));
        (total, tokens) = (total + log_probability, tokens + count);
    }
    if tokens > 0 {
        let nats = -total / tokens as f64;
        say(&format!("{total:.3}\t{nats:.4}\t{:.3}\t(all {tokens} tokens)", nats.exp()));
    }
    Ok(Outcome::Done)
}

fn neurons(command: &NeuronsCommand) -> Result<Outcome> {
    let (run, file) = split(&command.inputs);
    let file = file.context("neurons: no text, expected a file after the run folder")?;
    let Trained { run, settings, vocabulary, model, .. } = Trained::load(run, &command.machine)?;
    let text = TextStream::open(file, settings.level)?;
    sentences::tell(&text.notes);
    let (mut tokens, mut token) = (text.read(0), String::new());
    let (mut reading, mut shown, mut last) = (model.incremental_decoder()?, vec![], None);
    let mut cells: Vec<Neuron> = vec![];
    while shown.len() < command.length && tokens.next_into(&mut token)? {
        reading.step(vocabulary.id(&token))?;
        shown.push(settings.level.decode(last.as_deref(), &token).concat());
        last = Some(token.clone());
        for (layer, values) in reading.activations().into_iter().enumerate() {
            if shown.len() == 1 {
                let name = |cell: usize| format!("layer {}, cell {}", layer + 1, cell + 1);
                cells.extend((0..values.len()).map(|cell| Neuron { name: name(cell), values: vec![] }));
            }
            let layer = cells[layer * values.len()..].iter_mut();
            layer.zip(values).for_each(|(cell, value)| cell.values.push(value));
        }
    }
    if text.len() > shown.len() as u64 {
        sentences::tell(&[format!("{}: the first {} of {} tokens", text.name(), shown.len(), text.len())]);
    }
    run.write("neurons.html", &plots::neuron_page(&shown, &cells)?)?;
    say(&run.dir().join("neurons.html").display().to_string());
    Ok(Outcome::Done)
}
