//! What all the binaries share: their options, sub-commands, error messages and exit codes.

mod flow;
mod gradient_flow;
mod image_pictures;
pub mod images;
pub mod language;
mod progress;
pub mod recurrent;
pub mod sentences;
pub mod tagging;

use crate::data::DataError;
use crate::device::DeviceChoice;
use crate::optim::{Adadelta, Adagrad, Adam, Clip, Curve, Method, Optimizer, RmsProp, Schedule, Sgd};
use crate::train::{INTERRUPTED, Progress, Run, TrainerOptions};
use anyhow::{Context, Result, bail};
use candle_nn::VarMap;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;

/// The parameter that holds the vectors of words, in every model of texts.
const VECTORS: &str = "embedding.weight";

/// The options of `train` that every binary has.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
pub struct TrainOptions {
    /// Data set
    #[arg(long, value_name = "NAME", default_value = "digits")]
    pub dataset: String,
    /// Read the data set's own files from DIR instead of downloading them
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Times the training set is gone through
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = positive)]
    pub epochs: usize,
    /// Examples a step
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive)]
    pub batch_size: usize,
    #[arg(long, value_name = "X", default_value_t = 2e-3, value_parser = positive_number)]
    pub learning_rate: f64,
    /// Seed of initial values, shuffles, dropout and distortions: the same seed trains the same model, bit for bit
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
    /// Only the first N training examples
    #[arg(long, value_name = "N", value_parser = positive)]
    pub train_limit: Option<usize>,
    /// Training examples held out for validation, from the end of the training set [default: a tenth]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub validation: Option<usize>,
    #[arg(long, value_name = "NAME", default_value = "adamw")]
    pub optimizer: OptimizerName,
    /// Momentum of sgd and rmsprop
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = number)]
    pub momentum: f64,
    /// Nesterov's momentum (sgd)
    #[arg(long)]
    pub nesterov: bool,
    /// L2 (adamw: decoupled) [default: 0, adamw 0.01]
    #[arg(long, value_name = "X", value_parser = number)]
    pub weight_decay: Option<f64>,
    /// L1 (sgd)
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = number)]
    pub l1: f64,
    /// Let L2 and L1 leave biases and normalisations alone
    #[arg(long)]
    pub keep_biases: bool,
    /// How the learning rate changes over the training
    #[arg(long, value_name = "NAME", default_value = "cosine")]
    pub schedule: ScheduleName,
    /// Epochs between the reductions of `step`, and without a better score before those of `plateau`
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = positive)]
    pub schedule_epochs: usize,
    /// What `step`, `milestones` and `plateau` multiply the learning rate by
    #[arg(long, value_name = "X", default_value_t = 0.5, value_parser = positive_number)]
    pub schedule_factor: f64,
    /// Steps over which the learning rate first rises to its value
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub warmup: usize,
    /// Scale gradients down to a norm of X
    #[arg(long, value_name = "X", value_parser = positive_number, conflicts_with = "clip_value")]
    pub clip_norm: Option<f64>,
    /// Limit each gradient element to plus or minus X
    #[arg(long, value_name = "X", value_parser = positive_number)]
    pub clip_value: Option<f64>,
    /// Stop after N epochs without a better validation score
    #[arg(long, value_name = "N", value_parser = positive)]
    pub patience: Option<usize>,
    /// Save a checkpoint every N steps, besides the one after each epoch
    #[arg(long, value_name = "N", value_parser = positive)]
    pub checkpoint_every: Option<usize>,
}

/// What the computing is done with.
#[derive(Debug, Clone, Default, Args)]
pub struct MachineOptions {
    /// auto, cpu, cuda, cuda:N, metal or metal:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Threads of the CPU [default: one a physical core]
    #[arg(long, value_name = "N", value_parser = thread_count)]
    pub threads: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum OptimizerName {
    Sgd,
    Adam,
    AdamW,
    RmsProp,
    Adagrad,
    /// Zeiler's, which wants a learning rate of 1
    Adadelta,
    /// Adam, but the vectors of words that are not in the batch stay as they are
    #[serde(rename = "lazy-adam")]
    #[value(name = "lazy-adam")]
    LazyAdam,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleName {
    Constant,
    Step,
    /// Lower the rate after half and three quarters of the training
    Milestones,
    Linear,
    Cosine,
    OneCycle,
    /// Nielsen's: lower the rate when validation no longer gets better, end at 1/128
    Plateau,
}

impl TrainOptions {
    /// The optimizer asked for, of `vars`.
    fn optimizer(&self, vars: &VarMap) -> candle_core::Result<Optimizer> {
        let mut optimizer = Optimizer::new(self.method(), vars)?;
        let has_words = vars.data().lock().is_ok_and(|vars| vars.contains_key(VECTORS));
        if has_words && self.is_lazy() {
            optimizer.set_sparse(VECTORS)?;
        }
        Ok(optimizer)
    }

    fn method(&self) -> Method {
        let &Self { momentum, nesterov, l1, .. } = self;
        let decay_biases = !self.keep_biases;
        let weight_decay = self.weight_decay.unwrap_or(0.0);
        match self.optimizer {
            OptimizerName::Sgd => Sgd { momentum, nesterov, weight_decay, l1, decay_biases }.into(),
            OptimizerName::Adam | OptimizerName::LazyAdam => {
                Adam { weight_decay, decay_biases, ..Adam::default() }.into()
            }
            OptimizerName::AdamW => {
                let adamw = Adam::adamw();
                let weight_decay = self.weight_decay.unwrap_or(adamw.weight_decay);
                Adam { weight_decay, decay_biases, ..adamw }.into()
            }
            OptimizerName::RmsProp => {
                RmsProp { momentum, weight_decay, decay_biases, ..RmsProp::default() }.into()
            }
            OptimizerName::Adagrad => Adagrad { weight_decay, decay_biases, ..Adagrad::default() }.into(),
            OptimizerName::Adadelta => {
                Adadelta { rho: 0.95, weight_decay, decay_biases, ..Adadelta::default() }.into()
            }
        }
    }

    /// Whether words that are not in the batch are to stay as they are.
    fn is_lazy(&self) -> bool {
        let plain =
            self.momentum == 0.0 && self.l1 == 0.0 && self.weight_decay.is_none_or(|decay| decay == 0.0);
        match self.optimizer {
            OptimizerName::Sgd | OptimizerName::Adagrad | OptimizerName::Adadelta => plain,
            OptimizerName::LazyAdam => true,
            OptimizerName::Adam | OptimizerName::AdamW | OptimizerName::RmsProp => false,
        }
    }

    /// The training loop's options, where an epoch has `examples` examples.
    pub fn options(&self, examples: usize) -> TrainerOptions {
        let factor = self.schedule_factor;
        let curve = match self.schedule {
            ScheduleName::Constant => Curve::Constant,
            ScheduleName::Step => Curve::Step {
                every: self.schedule_epochs.saturating_mul(examples.div_ceil(self.batch_size)),
                factor,
            },
            ScheduleName::Milestones => Curve::Milestones { factor },
            ScheduleName::Linear => Curve::Linear,
            ScheduleName::Cosine => Curve::Cosine,
            ScheduleName::OneCycle => Curve::one_cycle(),
            ScheduleName::Plateau => {
                Curve::Plateau { factor, patience: self.schedule_epochs, stop_at: 1.0 / 128.0 }
            }
        };
        TrainerOptions {
            epochs: self.epochs,
            batch_size: self.batch_size,
            learning_rate: self.learning_rate,
            schedule: Schedule { warmup_steps: self.warmup, curve },
            clip: match (self.clip_norm, self.clip_value) {
                (Some(norm), _) => Clip::Norm(norm),
                (None, Some(value)) => Clip::Value(value),
                (None, None) => Clip::None,
            },
            seed: self.seed,
            patience: self.patience,
            checkpoint_every: self.checkpoint_every.map(|every| every as u64),
        }
    }
}

/// Settings of a training: options of the command line that `config.json` records.
pub trait Settings: Args + Serialize + DeserializeOwned + Send {
    /// Defaults that differ from those of [`TrainOptions`], by the option's field name.
    const DEFAULTS: &'static [(&'static str, &'static str)] = &[];
    /// Options of [`TrainOptions`] that have no meaning here, by the field name.
    const WITHOUT: &'static [&'static str] = &[];
    /// Whether `predict` reads standard input where it is given none.
    const READS_INPUT: bool = false;

    fn train_options(&self) -> &TrainOptions;

    /// Settings that take the place of the defaults, such as those of a preset; what the user gives stands.
    fn preset(&self) -> Value {
        Value::Null
    }
}

#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct CommandLine<S: Args, C: Subcommand> {
    #[command(subcommand)]
    command: Option<Command<S, C>>,
    #[command(flatten)]
    train: TrainCommand<S>,
}

#[derive(Subcommand)]
enum Command<S: Args, C: Subcommand> {
    /// Train, pick the best epoch on validation data, test, and write a run folder (the default)
    Train(TrainCommand<S>),
    #[command(flatten)]
    Other(C),
}

/// The sub-commands of a binary besides `train`.
trait Commands: Subcommand + Send {
    fn machine(&self) -> &MachineOptions;
}

/// Those of a classifier.
#[derive(Subcommand)]
enum Questions {
    /// Test a finished run
    Eval(EvalCommand),
    /// What a trained model says of your own input, with probabilities
    Predict(PredictCommand),
}

impl Commands for Questions {
    fn machine(&self) -> &MachineOptions {
        match self {
            Self::Eval(command) => &command.machine,
            Self::Predict(command) => &command.machine,
        }
    }
}

#[derive(Args)]
struct TrainCommand<S: Args> {
    #[command(flatten)]
    settings: S,
    #[command(flatten)]
    machine: MachineOptions,
    /// Run folder [default: a new one under runs/]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on from that run's last checkpoint, as if it had never stopped
    #[arg(long, value_name = "RUN", conflicts_with = "out")]
    resume: Option<PathBuf>,
    /// No progress, only the result
    #[arg(long)]
    quiet: bool,
}

#[derive(Args)]
struct EvalCommand {
    /// Run folder [default: the newest]
    run: Option<PathBuf>,
    /// Data set to test on [default: the one it was trained on]
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,
    /// Read the data set's own files from DIR instead of downloading them
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    machine: MachineOptions,
}

impl EvalCommand {
    /// The data set to test on and where it is: by default the one trained on.
    fn data<'a>(&'a self, trained_on: &'a TrainOptions) -> (&'a str, Option<&'a Path>) {
        match (&self.dataset, &self.data_dir) {
            (None, None) => (&trained_on.dataset, trained_on.data_dir.as_deref()),
            (name, dir) => (name.as_deref().unwrap_or(&trained_on.dataset), dir.as_deref()),
        }
    }
}

#[derive(Args)]
struct PredictCommand {
    /// A run folder, where not the newest is meant, then the input
    #[arg(required = true, value_name = "[RUN] INPUT")]
    inputs: Vec<OsString>,
    #[command(flatten)]
    machine: MachineOptions,
}

impl PredictCommand {
    /// The run folder, if the first of the inputs is one, and the inputs.
    fn split(&self) -> (Option<&Path>, &[OsString]) {
        match self.inputs.as_slice() {
            [first, rest @ ..] if Path::new(first).is_dir() => (Some(Path::new(first)), rest),
            inputs => (None, inputs),
        }
    }
}

/// What a program is asked to do.
enum Request<S, C = Questions> {
    Train(Training<S>),
    Other(C),
}

/// A training that is asked for, its settings resolved.
struct Training<S> {
    settings: S,
    /// The run to go on with, whose settings these are, and its configuration.
    resume: Option<(Run, Value)>,
    out: Option<PathBuf>,
    machine: MachineOptions,
    progress: Box<dyn Progress + Send>,
}

impl<S, C: Commands> Request<S, C> {
    fn threads(&self) -> Option<usize> {
        match self {
            Self::Train(training) => training.machine.threads,
            Self::Other(command) => command.machine().threads,
        }
    }
}

/// How a program ended that met no error.
enum Outcome {
    Done,
    Interrupted,
}

/// Runs `program` on what the command line asks for, and turns its outcome into the process's.
fn run<S: Settings, C: Commands>(
    binary: &'static str,
    about: &'static str,
    program: impl FnOnce(Request<S, C>) -> Result<Outcome> + Send,
) -> ExitCode {
    let mut command = CommandLine::<S, C>::command().name(binary).bin_name(binary).about(about);
    for &(option, value) in S::DEFAULTS {
        let set = |command: clap::Command| command.mut_arg(option, |arg| arg.default_value(value));
        command = set(command).mut_subcommand("train", set);
    }
    for &option in S::WITHOUT {
        let hide = |command: clap::Command| command.mut_arg(option, |arg| arg.hide(true));
        command = hide(command).mut_subcommand("train", hide);
    }
    if S::READS_INPUT {
        let optional = |command: clap::Command| command.mut_arg("inputs", |arg| arg.required(false));
        command = command.mut_subcommand("predict", optional);
    }
    let matches = match command.try_get_matches() {
        Ok(matches) => matches,
        Err(error) => return usage(&error),
    };
    let outcome =
        request(binary, &matches).and_then(|request| on_threads(request.threads(), || program(request)));
    match outcome {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Interrupted) => ExitCode::from(130),
        Err(error) => {
            // One line, whatever a library adds below its own.
            complain(&format!("error: {}", format!("{error:#}").lines().next().unwrap_or_default()));
            ExitCode::FAILURE
        }
    }
}

/// Calls `work` on `threads` threads, or one a core, with the process set up for training. To be called from `main`,
/// before any thread is started.
///
/// # Errors
/// Those of `work`; when the threads can't be started.
pub fn on_threads<R: Send>(threads: Option<usize>, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    // One pool for everything: candle's own would fight it for the cores.
    // SAFETY: no thread has been started yet, so nobody reads the environment now.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    // A training step asks for the same memory again and again: keep it, instead of having the system clear it anew.
    // In one arena: those of single threads give memory back all the same.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: these calls only set limits of the allocator.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 30);
    }
    let threads = threads.unwrap_or_else(candle_core::utils::get_num_threads);
    // All of the work inside the pool: an operation need not hand its share over to it first.
    rayon::ThreadPoolBuilder::new().num_threads(threads).build()?.install(work)
}

/// Lets the training loop end in order on Ctrl-C or TERM; the second one ends the process at once.
fn catch_interrupts() -> Result<()> {
    Ok(ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })?)
}

/// Reads the command line and finds the settings.
fn request<S: Settings, C: Commands>(binary: &str, matches: &ArgMatches) -> Result<Request<S, C>> {
    let CommandLine { command, train } = CommandLine::<S, C>::from_arg_matches(matches)?;
    let command = command.unwrap_or(Command::Train(train));
    Ok(match command {
        Command::Other(command) => Request::Other(command),
        Command::Train(command) => {
            let given = given(matches.subcommand_matches("train").unwrap_or(matches), &command.settings)?;
            if let Some(option) = S::WITHOUT.iter().find(|option| given.contains_key(**option)) {
                bail!("--{}: has no meaning for {binary}", option.replace('_', "-"));
            }
            let (settings, resume) = match &command.resume {
                None => (with_preset(command.settings, given)?, None),
                Some(dir) => {
                    let (run, config) = Run::open(binary, Some(dir))?;
                    agree(&run, &config["settings"], &given)?;
                    (settings_of(&run, &config)?, Some((run, config)))
                }
            };
            let progress = progress::detect(command.quiet);
            let TrainCommand { out, machine, .. } = command;
            Request::Train(Training { settings, resume, out, machine, progress })
        }
    })
}

/// The settings that the user gave, as against defaults.
fn given<S: Serialize>(matches: &ArgMatches, settings: &S) -> Result<Map<String, Value>> {
    let Value::Object(all) = serde_json::to_value(settings)? else { bail!("settings must have names") };
    let by_user = |name: &str| {
        matches.try_contains_id(name).is_ok() && matches.value_source(name) == Some(ValueSource::CommandLine)
    };
    Ok(all.into_iter().filter(|(name, _)| by_user(name)).collect())
}

/// Defaults, over them the preset, over it what the user gave.
fn with_preset<S: Settings>(settings: S, given: Map<String, Value>) -> Result<S> {
    let mut merged = serde_json::to_value(&settings)?;
    let preset = settings.preset();
    for (name, value) in preset.as_object().into_iter().flatten().chain(&given) {
        merged[name] = value.clone();
    }
    Ok(serde_json::from_value(merged)?)
}

/// That nothing the user gave contradicts the run's settings.
fn agree(run: &Run, settings: &Value, given: &Map<String, Value>) -> Result<()> {
    for (name, value) in given {
        let recorded = &settings[name];
        if recorded != value {
            bail!(
                "{}: this run was started with --{} {recorded}, and can't go on with {value}: leave the option out, \
                 or start a new run",
                run.dir().display(),
                name.replace('_', "-")
            );
        }
    }
    Ok(())
}

/// The settings that a run recorded.
fn settings_of<S: Settings>(run: &Run, config: &Value) -> Result<S> {
    serde_json::from_value(config["settings"].clone())
        .with_context(|| format!("{}: the settings in its config.json can't be read", run.dir().display()))
}

/// One line on standard error for a mistake in the options, or the help asked for.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    let message: Vec<&str> =
        text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:")).collect();
    let message = message.join(" ");
    let message = message.split("For more information").next().unwrap_or_default().trim();
    complain(message);
    ExitCode::from(2)
}

/// Whether a person who sees colours reads standard output.
fn in_colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// A line on standard error, which may be closed already.
fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The value of an option that counts something.
///
/// # Errors
/// When `text` is no whole number above 0.
pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("expected a whole number, 1 or more".to_string()),
        Ok(number) => Ok(number),
    }
}

/// Adds to an error of loading a data set the options that remedy it.
fn data_error(error: anyhow::Error) -> anyhow::Error {
    let remedy = match error.downcast_ref() {
        Some(DataError::UnknownName { .. }) => "choose one with --dataset NAME",
        Some(DataError::BuiltIn { .. }) => "leave out --data-dir",
        Some(DataError::FilesNeeded { .. }) => {
            "give its files with --data-dir DIR, or choose another with --dataset NAME"
        }
        None => return error,
    };
    anyhow::anyhow!("{error:#}; {remedy}")
}

fn thread_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads @ 1..=1024) => Ok(threads),
        _ => Err("expected a whole number, 1 to 1024".to_string()),
    }
}

fn number(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if (0.0..f64::INFINITY).contains(&number) => Ok(number),
        _ => Err("expected a number, 0 or more".to_string()),
    }
}

/// The value of an option that is a probability.
///
/// # Errors
/// When `text` is no number from 0 to 1.
pub fn probability(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(number) if (0.0..=1.0).contains(&number) => Ok(number),
        _ => Err("expected a number from 0 to 1".to_string()),
    }
}

/// The value of an option that measures something.
///
/// # Errors
/// When `text` is no number above 0.
pub fn positive_number(text: &str) -> Result<f64, String> {
    match number(text) {
        Ok(number) if number > 0.0 => Ok(number),
        _ => Err("expected a number above 0".to_string()),
    }
}
