//! The experiments of the books, each one command and one picture.
//!
//! Data: `digits` (built in), `mnist`, `fashion-mnist`; some experiments make up their own.
//! Result: a run folder with pictures, and all numbers as CSV; `lab all` combines all experiments into one HTML page.

use anyhow::{Result, bail};
use candle_textbook::cli::{self, Outcome, UsageError, on_threads};
use candle_textbook::lab::{EXPERIMENTS, Experiment, Findings, Lab, Settings, page};
use candle_textbook::train::{Run, say};
use clap::{ArgMatches, Args, Command, FromArgMatches};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
struct Options {
    /// Shrink the experiment to seconds
    #[arg(long)]
    quick: bool,
    /// Data set of the experiments on images: digits, mnist or fashion-mnist
    #[arg(long, value_name = "NAME", default_value = "digits")]
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

fn main() -> ExitCode {
    let command = |name, about| Options::augment_args(Command::new(name).about(about));
    let line = Command::new("lab")
        .version(env!("CARGO_PKG_VERSION"))
        .about("The experiments of the books, each one command and one picture")
        .subcommand_required(true)
        .subcommand(Command::new("list").about("Name the experiments with their sources"))
        .subcommand(command("all", "Run every experiment and write one HTML page"))
        .subcommands(EXPERIMENTS.iter().map(|experiment| command(experiment.name, experiment.about)));
    cli::program(line, run)
}

fn run(matches: &ArgMatches) -> Result<Outcome> {
    let Some((name, matches)) = matches.subcommand() else { return Ok(Outcome::Done) };
    if name == "list" {
        for Experiment { name, about, source, .. } in EXPERIMENTS {
            say(&format!("{name:<20}{about}\n{:20}{source}", ""));
        }
        return Ok(Outcome::Done);
    }
    let Options { quick, dataset, data_dir, seed, function, out, threads } =
        Options::from_arg_matches(matches)?;
    if function.is_some() && !["universal", "all"].contains(&name) {
        bail!(UsageError(format!("--function: has no meaning for {name}: only universal fits a function")));
    }
    let settings = Settings { quick, dataset, data_dir, seed, function };
    on_threads(threads, || match EXPERIMENTS.iter().find(|experiment| experiment.name == name) {
        Some(experiment) => {
            let (findings, dir) = Lab::run(experiment, &settings, out.as_deref())?;
            show(experiment, &findings);
            say(&format!("pictures and numbers are in the run folder {}", dir.display()));
            Ok(Outcome::Done)
        }
        None => all(&settings, out),
    })
}

/// Prints the findings, and what the book reports.
fn show(experiment: &Experiment, findings: &Findings) {
    findings.print();
    if !experiment.book.is_empty() {
        say(&format!("The book: {}", experiment.book));
    }
}

/// Runs every experiment, and writes a page of all findings.
fn all(settings: &Settings, out: Option<PathBuf>) -> Result<Outcome> {
    let run = Run::create("lab", out.as_deref(), &json!({ "experiment": "all", "seed": settings.seed }))?;
    let mut parts = vec![];
    for experiment in EXPERIMENTS {
        say(&format!("== {}: {}", experiment.name, experiment.about));
        let (findings, _) = Lab::run(experiment, settings, Some(&run.dir().join(experiment.name)))?;
        show(experiment, &findings);
        say("");
        parts.push((experiment, findings));
    }
    let mut options = String::new();
    if settings.quick {
        options += " --quick";
    }
    if settings.dataset != "digits" {
        options += &format!(" --dataset {}", settings.dataset);
    }
    run.write("lab.html", &page(&parts, &options))?;
    say(&format!("all findings are in {}", run.dir().join("lab.html").display()));
    Ok(Outcome::Done)
}
