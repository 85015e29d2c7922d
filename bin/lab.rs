//! The experiments of the books, each one command and one picture.
//!
//! Data: `digits` (built in), `mnist`, `fashion-mnist`; some experiments generate their own.
//! Result: a run folder with pictures, and all numbers as CSV; `lab all` combines all experiments into one HTML page.

use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_textbook::cli::{self, Outcome, STOP, UsageError, catch_interrupts, end_at_once, on_threads};
use candle_textbook::lab::{EXPERIMENTS, Experiment, Findings, Lab, Settings, page, remove_unfinished};
use candle_textbook::train::{Run, say};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, value_parser};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};

#[derive(Args)]
struct Options {
    /// Shrink the experiment to seconds
    #[arg(long)]
    quick: bool,
    /// Data set of the experiments on images
    #[arg(long, value_name = "NAME", default_value = "digits", value_parser = ["digits", "mnist", "fashion-mnist", "emnist-digits"])]
    dataset: String,
    /// Read the data set's files from DIR
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Seed of initial weights and shuffles
    #[arg(long, value_name = "N", value_parser = cli::whole::<u64>, default_value_t = 42)]
    seed: u64,
    /// Function of x, or x and y, from 0 to 1 that `universal` fits, such as "0.2+0.4*x^2" or "sin(3*x)*y"
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    function: Option<String>,
    /// Run folder [default: a new one under runs/lab/]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Number of CPU threads [default: one per physical core]
    #[arg(long, value_name = "N", value_parser = |text: &str| cli::in_range(text, 1..=1024_usize, "a whole number, 1 to 1024"))]
    threads: Option<usize>,
}

const NOT_RESUMABLE: &str =
    "An experiment can't be resumed: when a signal ends it, its run folder is removed.";

fn main() -> ExitCode {
    let command =
        |name, about| Options::augment_args(Command::new(name).about(about)).after_help(NOT_RESUMABLE);
    let line = Command::new("lab")
        .version(env!("CARGO_PKG_VERSION"))
        .about("The experiments of the books, each one command and one picture")
        .subcommand_required(true)
        .subcommand(Command::new("list").about("Name the experiments with their sources"))
        .subcommand(command("all", "Run every experiment and write one HTML page"))
        .subcommands(EXPERIMENTS.iter().map(|experiment| command(experiment.name, experiment.about)));
    let line = DRAWINGS.iter().fold(line, |line, drawing| {
        let run = Arg::new("run").value_name("RUN").help("Run folder").required(true);
        let command =
            Command::new(drawing.name).about(drawing.about).arg(run.value_parser(value_parser!(PathBuf)));
        let picture = Arg::new("picture").value_name("PICTURE").help("The picture").required(true);
        let picture = picture.value_parser(value_parser!(PathBuf));
        line.subcommand(if drawing.takes_picture { command.arg(picture) } else { command })
    });
    cli::program(line, run)
}

/// A drawing of a trained model, made by the binary that trained it.
struct Drawing {
    name: &'static str,
    about: &'static str,
    binaries: &'static [&'static str],
    takes_picture: bool,
}

const DRAWINGS: &[Drawing] = &[
    Drawing {
        name: "filters",
        about: "Draw the weights of the first layer of a trained lenet, resnet or mlp",
        binaries: &["lenet", "resnet", "mlp"],
        takes_picture: false,
    },
    Drawing {
        name: "activations",
        about: "Draw the feature maps of a picture after each stage of a trained lenet or resnet",
        binaries: &["lenet", "resnet"],
        takes_picture: true,
    },
    Drawing {
        name: "embeddings",
        about: "Draw a map of the words of a trained classifier of sentences, and show their neighbours",
        binaries: &["textcnn", "fasttext", "rnn", "gru", "lstm"],
        takes_picture: false,
    },
];

/// Lets the binary that trained the run draw.
fn draw(drawing: &Drawing, matches: &ArgMatches) -> Result<Outcome> {
    let path = |name| matches.try_get_one::<PathBuf>(name).ok().flatten();
    let Some(dir) = path("run") else { return Ok(Outcome::Failed) };
    ensure!(dir.exists(), "{}: there is no such run", dir.display());
    let config = dir.join("config.json");
    let text = std::fs::read_to_string(&config)
        .with_context(|| format!("{}: cannot read it, so this is not a run folder", config.display()))?;
    let recorded: serde_json::Value = serde_json::from_str(&text)
        .map_err(|_| anyhow!("{}: not the configuration of a run: truncated or damaged", config.display()))?;
    let Some(binary) = drawing.binaries.iter().find(|binary| recorded["binary"] == **binary) else {
        let found = recorded["binary"].as_str().unwrap_or("an unknown program");
        let expected = drawing.binaries.join(", ");
        bail!("{}: found a run of {found}, expected one of {expected}", config.display());
    };
    let mut command = process::Command::new(std::env::current_exe()?.with_file_name(binary));
    command.arg(drawing.name).args(path("picture")).arg("--run").arg(dir);
    let status = command.status().with_context(|| format!("{binary}: cannot run it"))?;
    Ok(if status.success() { Outcome::Done } else { Outcome::Failed })
}

fn run(matches: &ArgMatches) -> Result<Outcome> {
    let Some((name, matches)) = matches.subcommand() else { return Ok(Outcome::Done) };
    if name == "list" {
        for Experiment { name, about, source, .. } in EXPERIMENTS {
            say(&format!("{name:<20}{about}\n{:20}{source}", ""));
        }
        DRAWINGS.iter().for_each(|drawing| say(&format!("{:<20}{}", drawing.name, drawing.about)));
        return Ok(Outcome::Done);
    }
    if let Some(drawing) = DRAWINGS.iter().find(|drawing| drawing.name == name) {
        return draw(drawing, matches);
    }
    let Options { quick, dataset, data_dir, seed, function, out, threads } =
        Options::from_arg_matches(matches)?;
    if function.is_some() && !["universal", "all"].contains(&name) {
        bail!(UsageError(format!("--function: has no meaning for {name}: only universal fits a function")));
    }
    let experiment = EXPERIMENTS.iter().find(|experiment| experiment.name == name);
    for option in ["dataset", "data_dir"] {
        if experiment.is_some_and(|experiment| !experiment.uses_images)
            && matches.value_source(option) == Some(ValueSource::CommandLine)
        {
            let option = option.replace('_', "-");
            bail!(UsageError(format!("--{option}: has no meaning for {name}, which makes up its own data")));
        }
    }
    let settings = Settings { quick, dataset, data_dir, seed, function };
    settings.check()?;
    on_threads(threads, || {
        catch_interrupts()?;
        let Some(experiment) = experiment else {
            let config = json!({ "experiment": "all", "seed": settings.seed });
            let run = Run::create("lab", out.as_deref(), &config)?;
            return unless_interrupted(Some(run.dir()), || all(&settings, &run));
        };
        unless_interrupted(None, || {
            let (findings, dir) = Lab::run(experiment, &settings, out.as_deref())?;
            show(experiment, &findings);
            say(&format!("pictures and numbers are in the run folder {}", dir.display()));
            Ok(())
        })
    })
}

/// Calls `work`. If a signal or an error ends it, removes the folders of unfinished experiments.
///
/// Also removes the folder `all` if none has finished.
fn unless_interrupted(all: Option<&Path>, work: impl FnOnce() -> Result<()>) -> Result<Outcome> {
    let all = all.map(Path::to_path_buf);
    let tidy = move || {
        remove_unfinished();
        if let Some(all) = &all
            && !std::fs::read_dir(all).is_ok_and(|mut entries| entries.any(|entry| is_folder(&entry)))
        {
            let _ = std::fs::remove_dir_all(all);
        }
    };
    let last_act = {
        let tidy = tidy.clone();
        move || {
            say("interrupted; an experiment can't be resumed, so its run folder is removed: run it again");
            tidy();
        }
    };
    let result = end_at_once(last_act, work);
    if let Some(Ok(())) = result {
        return Ok(Outcome::Done);
    }
    tidy();
    match result {
        Some(Err(error)) if !STOP.is_requested() => Err(error),
        // The signal has removed the folder while the experiment was running.
        _ => Ok(Outcome::Interrupted),
    }
}

fn is_folder(entry: &std::io::Result<std::fs::DirEntry>) -> bool {
    entry.as_ref().is_ok_and(|entry| entry.path().is_dir())
}

/// Prints the findings, and what the book reports.
fn show(experiment: &Experiment, findings: &Findings) {
    findings.print();
    if !experiment.book.is_empty() {
        say(&format!("The book: {}", experiment.book));
    }
}

/// Runs every experiment, and writes a page of all findings.
fn all(settings: &Settings, run: &Run) -> Result<()> {
    let mut parts = vec![];
    for experiment in EXPERIMENTS {
        say(&format!("== {}: {}", experiment.name, experiment.about));
        let (findings, _) = Lab::run(experiment, settings, Some(&run.dir().join(experiment.name)))?;
        show(experiment, &findings);
        say("");
        parts.push((experiment, findings));
    }
    run.write("lab.html", &page(&parts, settings))?;
    say(&format!("all findings are in {}", run.dir().join("lab.html").display()));
    Ok(())
}
