//! Reading the command line: sub-commands, defaults, presets, and settings of a resumed run.

use super::options::MachineOptions;
use super::progress;
use super::recipe::{Command, Data, Recipe, Start};
use crate::train::{Progress, Run};
use anyhow::{Context, Result, bail};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use serde_json::{Map, Value};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct CommandLine<R: Args, T: Args, C: Subcommand> {
    #[command(subcommand)]
    command: Option<Commands<R, T, C>>,
    #[command(flatten)]
    train: TrainCommand<R>,
}

#[derive(Subcommand)]
enum Commands<R: Args, T: Args, C: Subcommand> {
    /// Train, select the best epoch on validation data, test, and write a run folder (the default)
    Train(TrainCommand<R>),
    /// Test a finished run
    Eval(EvalCommand<T>),
    #[command(flatten)]
    Other(C),
}

#[derive(Args)]
struct TrainCommand<R: Args> {
    #[command(flatten)]
    settings: R,
    #[command(flatten)]
    machine: MachineOptions,
    /// Run folder [default: a new one under runs/]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Resume the run in this folder from its last checkpoint, to the same result as without interruption
    #[arg(long, value_name = "RUN", conflicts_with = "out")]
    resume: Option<PathBuf>,
    /// Print only the result
    #[arg(long)]
    quiet: bool,
}

/// The sub-command `eval`.
#[derive(Args)]
pub(super) struct EvalCommand<T: Args> {
    /// Run folder [default: the newest]
    pub(super) run: Option<PathBuf>,
    #[command(flatten)]
    pub(super) test: T,
    #[command(flatten)]
    pub(super) machine: MachineOptions,
}

/// A run folder and input for its model, as positional arguments.
#[derive(Args)]
pub struct PredictCommand {
    /// Run folder, if not the newest, followed by the input
    #[arg(required = true, value_name = "[RUN] INPUT")]
    inputs: Vec<OsString>,
    #[command(flatten)]
    pub(super) machine: MachineOptions,
}

impl PredictCommand {
    /// The run folder, if the first argument is one.
    pub(super) fn run(&self) -> Option<&Path> {
        split(&self.inputs).0
    }

    /// The arguments after the run folder.
    pub(super) fn inputs(&self) -> &[OsString] {
        split(&self.inputs).1
    }
}

/// The run folder, if the first of `inputs` is a folder, and the other inputs.
pub(super) fn split(inputs: &[OsString]) -> (Option<&Path>, &[OsString]) {
    match inputs {
        [first, rest @ ..] if Path::new(first).is_dir() => (Some(Path::new(first)), rest),
        inputs => (None, inputs),
    }
}

/// What the command line asks for.
pub(super) enum Request<R: Recipe> {
    Train { settings: R, start: Start, machine: MachineOptions, progress: Box<dyn Progress + Send> },
    Eval(EvalCommand<<R::Data as Data>::TestOptions>),
    Other(<R::Data as Data>::Command),
}

impl<R: Recipe> Request<R> {
    /// The machine options of the sub-command.
    pub(super) fn machine(&self) -> &MachineOptions {
        match self {
            Self::Train { machine, .. } => machine,
            Self::Eval(command) => &command.machine,
            Self::Other(command) => command.machine(),
        }
    }
}

type Line<R> =
    CommandLine<R, <<R as Recipe>::Data as Data>::TestOptions, <<R as Recipe>::Data as Data>::Command>;

/// Parses the arguments of the process.
///
/// # Errors
/// The usage error, or the help that was asked for.
pub(super) fn parse<R: Recipe>() -> Result<ArgMatches, clap::Error> {
    let mut command = Line::<R>::command().name(R::NAME).bin_name(R::NAME).about(R::ABOUT);
    command = with_defaults::<R>(command).mut_subcommand("train", with_defaults::<R>);
    if R::Data::READS_INPUT {
        command =
            command.mut_subcommand("predict", |predict| predict.mut_arg("inputs", |arg| arg.required(false)));
    }
    command.try_get_matches()
}

/// Gives the options of `train` the recipe's defaults, and hides those without a meaning.
fn with_defaults<R: Recipe>(command: clap::Command) -> clap::Command {
    let defaults = fields(&R::default());
    command.mut_args(|arg| {
        let arg = arg.clone().hide(arg.is_hide_set() || R::UNUSED.contains(&arg.get_id().as_str()));
        match defaults.get(arg.get_id().as_str()).and_then(text) {
            Some(default) if arg.get_action().takes_values() => {
                // clap keeps defaults until the process ends.
                arg.required(false).default_value(&*default.leak())
            }
            _ => arg,
        }
    })
}

/// A recorded value as the command line writes it; none for an option that isn't set.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null | Value::Object(_) => None,
        Value::String(text) => Some(text.clone()),
        Value::Array(values) => Some(values.iter().filter_map(text).collect::<Vec<_>>().join(",")),
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(number) => match number.as_f64() {
            // The shortest form of an `f32`, where the number was one.
            Some(value) if number.is_f64() && f64::from(value as f32) == value => {
                Some((value as f32).to_string())
            }
            _ => Some(number.to_string()),
        },
    }
}

/// The request, with all settings resolved.
///
/// # Errors
/// An option without a meaning for this binary, a run that can't be resumed or contradicts the options.
pub(super) fn request<R: Recipe>(matches: &ArgMatches) -> Result<Request<R>> {
    let CommandLine { command, train } = Line::<R>::from_arg_matches(matches)?;
    let command = match command.unwrap_or(Commands::Train(train)) {
        Commands::Train(command) => command,
        Commands::Eval(command) => return Ok(Request::Eval(command)),
        Commands::Other(command) => return Ok(Request::Other(command)),
    };
    let given = given::<R>(matches.subcommand_matches("train").unwrap_or(matches));
    if let Some(option) = R::UNUSED.iter().find(|option| given.contains_id(option)) {
        bail!("--{}: has no meaning for {}", option.replace('_', "-"), R::NAME);
    }
    let TrainCommand { machine, out, resume, quiet, .. } = command;
    let (settings, resume) = match resume {
        None => (settings(&given)?, None),
        Some(dir) => {
            let (run, config) = Run::open(R::NAME, Some(&dir))?;
            let settings = recorded_settings(&run, &config)?;
            check_agreement::<R>(&run, &settings, &given)?;
            (settings, Some((run, config)))
        }
    };
    Ok(Request::Train { settings, start: Start { resume, out }, machine, progress: progress::detect(quiet) })
}

/// Those of `matches` that the user gave, without defaults.
fn given<R: Recipe>(matches: &ArgMatches) -> ArgMatches {
    let mut given = matches.clone();
    for name in fields(&R::default()).keys() {
        if matches.value_source(name) != Some(ValueSource::CommandLine) {
            // Fails only for an unknown name.
            let _ = given.try_clear_id(name);
        }
    }
    given
}

/// The defaults, replaced by the preset, replaced by what the user gave.
fn settings<R: Recipe>(given: &ArgMatches) -> Result<R> {
    let mut settings = R::default();
    // The first time for the name of the preset.
    settings.update_from_arg_matches(given)?;
    settings.apply_preset();
    settings.update_from_arg_matches(given)?;
    Ok(settings)
}

/// Checks that no option that the user gave contradicts the settings of the run to resume.
fn check_agreement<R: Recipe>(run: &Run, recorded: &R, given: &ArgMatches) -> Result<()> {
    let mut wanted = recorded.clone();
    wanted.update_from_arg_matches(given)?;
    let wanted = fields(&wanted);
    for (name, recorded) in fields(recorded) {
        let wanted = &wanted[&name];
        if recorded != *wanted {
            bail!(
                "{}: this run was started with --{} {recorded} and can't be resumed with {wanted}: leave the option out, \
                 or start a new run",
                run.dir().display(),
                name.replace('_', "-")
            );
        }
    }
    Ok(())
}

/// The settings that a run recorded in its `config.json`.
///
/// # Errors
/// When they are missing or damaged.
pub(super) fn recorded_settings<R: Recipe>(run: &Run, config: &Value) -> Result<R> {
    serde_json::from_value(config["settings"].clone())
        .with_context(|| format!("{}: cannot read the settings in its config.json", run.dir().display()))
}

/// The settings by the names of their options.
fn fields<R: Recipe>(settings: &R) -> Map<String, Value> {
    match serde_json::to_value(settings) {
        Ok(Value::Object(fields)) => fields,
        _ => unreachable!("a struct of options serialises to a map"),
    }
}

/// The message of a usage error in one line; none for the help or the version, which are printed.
pub(super) fn usage(error: &clap::Error) -> Option<String> {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = error.print();
        return None;
    }
    let text = error.to_string();
    let message: Vec<&str> =
        text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:")).collect();
    let message = message.join(" ");
    Some(message.split("For more information").next().unwrap_or_default().trim().to_string())
}
