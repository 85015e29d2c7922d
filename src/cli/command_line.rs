//! Reading the command line: sub-commands, defaults, presets, and settings of a resumed run.

use super::inputs::{self, RunOption, folder, is_run};
use super::options::{Given, MachineOptions, TrainOptions};
use super::process::{STOP, catch_interrupts, on_threads};
use super::recipe::{AnyBinary, AnyRecipe, Data, KEPT, PATHS, Saved, Start, Training, WITHOUT_EFFECT};
use super::record::option_value;
use super::settings::{defaults, given, of_preset, resolved, with_defaults, with_negative_numbers};
use super::{Outcome, UsageError, finish, flow, progress, runs, shell_quoted, together, unrecordable};
use crate::optim::Schedule;
use crate::processes::Processes;
use crate::train::{Run, can_train_on};
use anyhow::{Context, Result, bail};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, Args, FromArgMatches, Parser, Subcommand};
use serde_json::{Map, Value, json};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

// Without the settings of `train`, which the binary adds.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct CommandLine<T: Args, C: Subcommand> {
    #[command(subcommand)]
    command: Option<Commands<T, C>>,
    #[command(flatten)]
    train: TrainCommand,
}

#[derive(Subcommand)]
enum Commands<T: Args, C: Subcommand> {
    /// Train, select the best epoch on validation data, test, and write a run folder (the default)
    Train(TrainCommand),
    /// Test a finished run
    Eval(T),
    /// List the runs so far: the settings that differ among them, their scores and times
    Runs,
    #[command(flatten)]
    Other(C),
}

#[derive(Args)]
struct TrainCommand {
    #[command(flatten)]
    machine: MachineOptions,
    /// Run folder [default: a new one under runs/]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Resume this run from its last checkpoint, to the same result as without interruption
    #[arg(long, value_name = "RUN", conflicts_with = "out")]
    resume: Option<PathBuf>,
    /// Print only the result
    #[arg(long)]
    quiet: bool,
}

type Line<D> = CommandLine<<D as Data>::TestOptions, <D as Data>::Command>;

/// Runs `binary` on `arguments`, which begin with the name of the program.
pub(super) fn main<D: Data>(binary: &AnyBinary<D>, arguments: Vec<OsString>) -> ExitCode {
    finish(parse(binary, arguments), &|matches| run(binary, matches))
}

/// Parses `arguments`.
///
/// # Errors
/// Fails if the usage is wrong, and if help was asked for.
fn parse<D: Data>(binary: &AnyBinary<D>, arguments: Vec<OsString>) -> Result<ArgMatches, clap::Error> {
    let known = data_sets(D::DATA_SETS, binary.unfit);
    let complete = |train| with_defaults(binary, train).after_help(&known);
    let command = Line::<D>::augment_args((binary.augment)(clap::Command::new(binary.name)));
    let command = complete(command.bin_name(binary.name).about(binary.about));
    let command = command.mut_subcommands(|command| match command.get_name() {
        "train" => {
            let about = command.get_about().cloned().unwrap_or_default();
            // The help lists the settings of the binary first.
            let settings = (binary.augment)(clap::Command::new("train"));
            complete(TrainCommand::augment_args(settings).about(about).display_order(0))
        }
        "runs" => command,
        _ => {
            // clap would describe the command by the first line of its option struct.
            let about = command.get_about().cloned().unwrap_or_default();
            let command = MachineOptions::augment_args(RunOption::augment_args(command));
            command.about(about).long_about(None).mut_args(with_negative_numbers)
        }
    });
    command.try_get_matches_from(arguments)
}

/// The data sets that a binary accepts, for `--help`: all of a kind but the unfit ones.
fn data_sets(all: &[(&[&str], &str)], unfit: &[&str]) -> String {
    let sets = all.iter().filter(|(names, _)| !names.iter().all(|name| unfit.contains(name)));
    let lines = sets.map(|(names, files)| format!("  {:<16}  {files}\n", names.join(", ")));
    format!("Data sets, with their files in --data-dir:\n{}", lines.collect::<String>())
}

/// Runs the command in `matches`.
///
/// # Errors
/// Fails if an option has no meaning for this binary, a run can't be used or contradicts the options, or the work fails.
fn run<D: Data>(binary: &AnyBinary<D>, matches: &ArgMatches) -> Result<Outcome> {
    let CommandLine { command, train } = Line::<D>::from_arg_matches(matches)?;
    let matches = matches.subcommand().map_or(matches, |(_, matches)| matches);
    let machine = match command {
        Some(Commands::Runs) => MachineOptions::default(),
        _ => MachineOptions::from_arg_matches(matches)?,
    };
    let load = || flow::load_trained(saved(binary, &RunOption::from_arg_matches(matches)?, &machine)?);
    let command = command.unwrap_or(Commands::Train(train));
    if together::is_silent() && !matches!(command, Commands::Train(_)) {
        return Ok(Outcome::Done);
    }
    on_threads(machine.threads.or_else(together::default_threads), || match command {
        Commands::Train(command) => {
            let work = |processes| flow::train(&training(binary, command, matches, processes)?);
            together::on_processes(|| STOP.is_requested(), work)
        }
        Commands::Eval(test) => flow::eval(load()?, &test),
        Commands::Runs => runs::list(binary.name),
        Commands::Other(command) => {
            let arguments = matches.try_get_many::<OsString>("inputs").ok().flatten();
            let arguments: Vec<_> = arguments.into_iter().flatten().collect();
            inputs::check(binary.name, &arguments, D::INPUTS_ARE_PATHS)?;
            D::answer(&command, load()?)
        }
    })
}

/// The training run that the arguments `matches` of `train` describe, with all settings resolved.
fn training<D: Data>(
    binary: &AnyBinary<D>,
    command: TrainCommand,
    matches: &ArgMatches,
    processes: Option<Arc<dyn Processes>>,
) -> Result<Training<D>> {
    check_paths(matches)?;
    let (name, TrainCommand { machine, out, resume, quiet }) = (binary.name, command);
    let defaults = defaults(binary)?;
    let given = given(&defaults.fields, matches);
    if let Some(option) = binary.unused.iter().find(|option| given.contains_id(option)) {
        bail!(UsageError(format!("--{}: has no meaning for {name}", option.replace('_', "-"))));
    }
    let (settings, resume) = match resume {
        None => {
            let settings = resolved(binary, &defaults, &given)?;
            let options = settings.train_options().clone();
            if options.optimizer.is_full_batch() && !binary.full_batch {
                let why = "trains on batches, and the chosen optimizer needs all examples at once: choose another one";
                bail!(UsageError(format!("--optimizer: {name} {why}")));
            }
            TrainOptions { given: Given::new(matches), ..options }.check()?;
            (settings, None)
        }
        Some(dir) => {
            let (run, config) = Run::open(name, Some(&folder(name, &dir)?))?;
            let recorded = binary.recorded(&run, &config)?;
            check_whole(&run, &config, recorded.experiment().is_some())?;
            let settings = resumed(binary, &run, &recorded, &given)?;
            (settings, Some((run, config)))
        }
    };
    check_data_set(&settings.train_options().dataset, D::DATA_SETS, binary.unfit)?;
    catch_interrupts()?;
    let given = Given::new(matches);
    let sources = match &resume {
        Some((run, _)) => with_kept_files(settings.value(), &given, run),
        None => settings.value(),
    };
    // Several processes train on the CPU unless told otherwise.
    let prefers_gpu = settings.prefers_gpu() && processes.is_none();
    Ok(Training {
        device: machine.device.of_process(together::local_rank()).open(prefers_gpu)?,
        preset: of_preset(binary, &defaults, &settings)?.fields,
        defaults: defaults.fields,
        sources: (binary.read)(sources)?,
        settings,
        given,
        start: Start { resume, out, parent: None },
        progress: progress::detect(quiet || together::is_silent()),
        processes,
    })
}

/// Refuses an unknown data set, where the model can't learn all that its kind of data has.
fn check_data_set(name: &str, all: &[(&[&str], &str)], unfit: &[&str]) -> Result<()> {
    let known = || all.iter().flat_map(|(names, _)| names.iter().copied());
    if unfit.is_empty() || known().any(|known| known == name) {
        return Ok(());
    }
    let fit: Vec<&str> = known().filter(|name| !unfit.contains(name)).collect();
    bail!("data set {name}: not known, expected one of {}; choose one with --dataset NAME", fit.join(", "))
}

/// The settings, with the copies that `run` keeps in place of files that the user does not name anew.
fn with_kept_files(mut settings: Value, given: &Given, run: &Run) -> Value {
    for (option, file) in KEPT {
        let copy = run.dir().join(file);
        if settings[option].is_string() && !given.contains(option) && copy.exists() {
            settings[option] = json!(copy);
        }
    }
    settings
}

/// The finished run that `run` names, with the device that the options choose.
fn saved<D: Data>(binary: &AnyBinary<D>, run: &RunOption, machine: &MachineOptions) -> Result<Saved<D>> {
    let (run, config) = run.open(binary.name)?;
    flow::check_trains_model(&run, &config)?;
    let settings = binary.recorded(&run, &config)?;
    let device = machine.device.open(settings.prefers_gpu())?;
    Ok(Saved { settings, run, config, device })
}

/// Checks that `config.json` can record the paths in `matches`.
fn check_paths(matches: &ArgMatches) -> Result<()> {
    for name in PATHS {
        let paths = matches.try_get_raw(name).ok().flatten();
        if let Some(path) = paths.into_iter().flatten().find(|path| path.to_str().is_none()) {
            bail!("--{} {}", name.replace('_', "-"), unrecordable(Path::new(path)));
        }
    }
    Ok(())
}

/// Checks that a run to resume is not a part of another one, such as a fold.
fn check_whole(run: &Run, config: &Value, is_experiment: bool) -> Result<()> {
    // In an experiment, only the parts hold a model.
    if !is_experiment || config["parameters"].is_null() {
        return Ok(());
    }
    let dir = run.dir();
    let whole = dir.canonicalize().with_context(|| format!("{}: can't be found", dir.display()))?;
    let parent = whole.parent().map(Path::to_path_buf).unwrap_or_default();
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(&parent);
    match is_run(parent) {
        true => bail!(
            "{}: this is a part of the run {}: resume the whole, with --resume {}",
            dir.display(),
            parent.display(),
            shell_quoted(parent)
        ),
        false => bail!("{}: this is a part of a run, and only the whole can be resumed", dir.display()),
    }
}

/// The settings of the run to resume, changed by the options that the user gave.
///
/// # Errors
/// Fails if an option would change the result, except that more epochs may be asked for.
fn resumed<D: Data>(
    binary: &AnyBinary<D>,
    run: &Run,
    recorded: &AnyRecipe<D>,
    given: &ArgMatches,
) -> Result<AnyRecipe<D>> {
    let wanted = (binary.update)(recorded.value(), given)?;
    let schedule = wanted.train_options().options(1).schedule;
    let is_experiment = recorded.experiment().is_some();
    check_resumable(run, (&recorded.fields, &wanted.fields), schedule, is_experiment)?;
    Ok(wanted)
}

/// Checks that a run with the settings `recorded` can be resumed with `wanted`.
fn check_resumable(
    run: &Run,
    (recorded, wanted): (&Map<String, Value>, &Map<String, Value>),
    schedule: Schedule,
    is_experiment: bool,
) -> Result<()> {
    let dir = run.dir().display();
    let has_text = recorded.get("text").is_some_and(|text| !text.is_null());
    for (name, before) in recorded {
        let (name, now) = (name.as_str(), &wanted[name]);
        if name == "epochs" && now.as_u64() > before.as_u64() {
            let why_not = match &wanted["schedule"] {
                Value::String(name) if schedule.depends_on_length() => {
                    format!("the {name} schedule depends on the number of epochs, {before}")
                }
                _ if is_experiment => "it trains several models".into(),
                _ if !can_train_on(run)? => "training has ended without --keep-checkpoint".into(),
                _ => continue,
            };
            bail!("{dir}: --epochs {now}: the run can't be extended, as {why_not}: start a new run");
        }
        // Compare the contents of a path with the contents at the start of the run. `--data-dir` may replace a download.
        let is_place = if name == "data_dir" { !has_text } else { !before.is_null() };
        let may_change = WITHOUT_EFFECT.contains(&name) || PATHS.contains(&name) && is_place;
        if before != now && !may_change {
            let option = name.replace('_', "-");
            if name == "epochs" {
                // The number of epochs may have been extended since.
                bail!("{dir}: this run has --epochs {before} and can't be resumed with {now}: give no fewer");
            }
            let started = match option_value(before) {
                None => format!("without --{option}"),
                Some(before) => format!("with --{option} {before}"),
            };
            let now = match (before, option_value(now)) {
                (Value::Bool(false), Some(_)) => "it".to_string(),
                (_, now) => now.unwrap_or_else(|| "false".to_string()),
            };
            bail!(
                "{dir}: this run was started {started} and can't be resumed with {now}: leave the option out, or start a new run"
            );
        }
    }
    Ok(())
}

/// The message of a usage error in one line; none for the help and the version.
pub(super) fn usage(error: &clap::Error) -> Option<String> {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return None;
    }
    let argument = [ContextKind::InvalidArg, ContextKind::InvalidSubcommand].map(|kind| error.get(kind));
    if let [Some(ContextValue::String(argument)), _] | [_, Some(ContextValue::String(argument))] = argument
        && argument.starts_with('-')
        && std::env::args_os().skip_while(|other| other != "--").skip(1).any(|other| other == **argument)
    {
        return Some(format!(
            "error: {argument} follows --, after which there are no options: leave out the --"
        ));
    }
    let text = error.to_string();
    let (tips, lines): (Vec<&str>, Vec<&str>) =
        text.lines().map(str::trim).partition(|line| line.starts_with("tip: to pass"));
    let message: Vec<&str> = lines.into_iter().take_while(|line| !line.starts_with("Usage:")).collect();
    let message = message.join(" ");
    let message = message.split("For more information").next().unwrap_or_default().trim();
    let names_run =
        |value: &str| is_run(Path::new(value)) || value.contains("runs/") || value.parse::<u64>().is_ok();
    let is_invalid = |kind: ContextKind, is: &dyn Fn(&str) -> bool| matches!(error.get(kind), Some(ContextValue::String(value)) if is(value));
    let tip = if is_invalid(ContextKind::InvalidArg, &names_run)
        || is_invalid(ContextKind::InvalidSubcommand, &names_run)
    {
        ": name a run with --run RUN, or resume it with --resume RUN"
    } else if !tips.is_empty() && is_invalid(ContextKind::InvalidArg, &|value| !value.starts_with("--")) {
        ": an input that begins with - needs -- before it"
    } else {
        ""
    };
    Some(format!("{message}{tip}"))
}
