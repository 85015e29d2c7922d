//! The experiments of the books, each rerun by one function.
//!
//! ```
//! use candle_textbook::lab::{EXPERIMENTS, Lab, Settings};
//!
//! # fn main() -> anyhow::Result<()> {
//! let neuron = EXPERIMENTS.iter().find(|experiment| experiment.name == "neuron").unwrap();
//! let out = tempfile::tempdir()?;
//! // `None` instead of a folder stands for the next one under `runs/lab/`.
//! let (findings, dir) = Lab::run(neuron, &Settings { quick: true, ..Settings::default() }, Some(out.path()))?;
//! assert!(findings.claim.holds, "{}", findings.claim.text);
//! println!("the figures are in {}", dir.display());
//! # Ok(())
//! # }
//! ```
//!
//! [`EXPERIMENTS`] lists them. An experiment trains this crate's models with this crate's training loop and returns its
//! [`Findings`]: a few observations, tables, figures, and the claim of the book with the values measured here.
//! [`Lab::run`] writes them into a run folder, and [`page`] combines several into one HTML page.

mod augmentation;
mod backprop;
mod batch_size;
mod data;
mod depth;
mod ensemble;
mod findings;
mod hyperparameters;
mod initialization;
mod invariance;
mod learning_rate;
mod memory;
mod neuron;
mod optimizers;
mod overfitting;
mod page;
mod pooling;
mod regularization;
mod study;
mod universal;
mod vanishing_gradient;

pub use findings::{Claim, Figure, Findings, Table};
pub use page::page;

use crate::data::{Images, count};
use crate::train::Run;
use anyhow::{Result, ensure};
use serde_json::json;
use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// All experiments, in the order of the books.
pub const EXPERIMENTS: &[Experiment] = &[
    data::EXPERIMENT,
    backprop::EXPERIMENT,
    neuron::EXPERIMENT,
    overfitting::EXPERIMENT,
    regularization::EXPERIMENT,
    initialization::EXPERIMENT,
    learning_rate::EXPERIMENT,
    batch_size::EXPERIMENT,
    hyperparameters::EXPERIMENT,
    optimizers::EXPERIMENT,
    universal::EXPERIMENT,
    vanishing_gradient::EXPERIMENT,
    pooling::EXPERIMENT,
    augmentation::EXPERIMENT,
    ensemble::EXPERIMENT,
    invariance::EXPERIMENT,
    depth::EXPERIMENT,
    memory::EXPERIMENT,
];

/// An experiment of a book.
pub struct Experiment {
    /// The name on the command line.
    pub name: &'static str,
    /// A one-line description.
    pub about: &'static str,
    /// The book or paper that describes it.
    pub source: &'static str,
    /// The result that the book reports; empty if there is none to compare with.
    pub book: &'static str,
    /// Whether it uses the data set of [`Settings::dataset`]. Otherwise it generates its own data.
    pub uses_images: bool,
    /// Runs the experiment.
    run: fn(&Lab) -> Result<Findings>,
}

/// The settings that all experiments share.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whether to reduce every experiment to seconds.
    pub quick: bool,
    /// The data set of the experiments that use images: `digits`, `mnist` or `fashion-mnist`.
    pub dataset: String,
    /// The directory with the files of the data set.
    pub data_dir: Option<PathBuf>,
    /// Seed of initial weights and shuffles.
    pub seed: u64,
    /// The function that `universal` fits, in `x` or in `x` and `y`.
    pub function: Option<String>,
}

impl Settings {
    /// Checks the function that `universal` fits, so that a mistake shows before other experiments run.
    ///
    /// # Errors
    /// Fails if it can't be parsed, or has no finite value somewhere.
    pub fn check(&self) -> Result<()> {
        self.function.as_deref().map_or(Ok(()), universal::check)
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self { quick: false, dataset: "digits".into(), data_dir: None, seed: 42, function: None }
    }
}

/// The run folders of the experiments that are running.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(vec![]);

fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the run folders of unfinished experiments, which can't be resumed.
///
/// Call it when the process is about to end: an experiment that would create its folder afterwards waits forever.
pub fn remove_unfinished() {
    let mut folders = unfinished();
    for dir in folders.drain(..) {
        // The experiment may still write to it.
        let _ = (0..10).find(|_| std::fs::remove_dir_all(&dir).is_ok());
    }
    // The lock is never released.
    std::mem::forget(folders);
}

/// The environment of an experiment: its settings and its run folder.
pub struct Lab {
    settings: Settings,
    name: &'static str,
    out: Option<PathBuf>,
    /// The run folder, once it is needed.
    run: OnceCell<Run>,
}

impl Lab {
    /// Runs `experiment`, and writes its figures and tables into a run folder.
    ///
    /// The folder is `out`, or else a new one under `runs/lab/`. Returns the findings and the folder.
    ///
    /// # Errors
    /// Fails if the data can't be loaded, the folder can't be written, or a training run fails. The folder is then
    /// empty.
    pub fn run(
        experiment: &Experiment,
        settings: &Settings,
        out: Option<&Path>,
    ) -> Result<(Findings, PathBuf)> {
        let (settings, out) = (settings.clone(), out.map(Path::to_path_buf));
        let lab = Self { settings, name: experiment.name, out, run: OnceCell::new() };
        let findings = (experiment.run)(&lab).and_then(|findings| {
            findings.write(lab.folder()?)?;
            Ok(findings)
        });
        if let Some(run) = lab.run.get() {
            if findings.is_err() {
                let _ = std::fs::remove_dir_all(run.dir());
            }
            unfinished().retain(|dir| dir != run.dir());
        }
        Ok((findings?, lab.folder()?.dir().to_path_buf()))
    }

    /// The run folder. The first call creates it, so that nothing is written if data or settings are wrong.
    fn folder(&self) -> Result<&Run> {
        if let Some(run) = self.run.get() {
            return Ok(run);
        }
        let Settings { quick, dataset, data_dir, seed, function } = &self.settings;
        let data_dir = data_dir.as_ref().map(|dir| dir.display().to_string());
        let config = json!({
            "experiment": self.name,
            "settings": {
                "quick": quick, "dataset": dataset, "data_dir": data_dir, "seed": seed, "function": function,
            },
        });
        // The lock is held while the folder is created, so that a signal finds it in the list.
        let mut unfinished = unfinished();
        let run = Run::create("lab", self.out.as_deref(), &config)?;
        unfinished.push(run.dir().to_path_buf());
        Ok(self.run.get_or_init(|| run))
    }

    /// Returns `quick` in a quick run, `full` otherwise.
    fn scale<T>(&self, quick: T, full: T) -> T {
        if self.settings.quick { quick } else { full }
    }

    fn seed(&self) -> u64 {
        self.settings.seed
    }

    /// The first `training` and `test` images of the data set.
    fn digits(&self, training: usize, test: usize) -> Result<(Images, Images)> {
        let Settings { dataset, data_dir, .. } = &self.settings;
        if dataset == "digits" && data_dir.is_none() {
            return Ok(crate::data::digits(training, test, 0)?);
        }
        let mut set = crate::data::image::load(dataset, data_dir.as_deref(), 28)?;
        let (channels, height, width) = set.training.shape();
        ensure!(
            (channels, height, width) == (1, 28, 28),
            "{dataset}: found images of {channels}x{height}x{width} values, expected grey ones of 28x28 pixels"
        );
        for (images, expected) in [(&mut set.training, training), (&mut set.test, test)] {
            ensure!(
                images.len() >= expected,
                "{dataset}: found {}, expected {expected}",
                count(images.len(), "image")
            );
            images.truncate(expected);
        }
        Ok((set.training, set.test))
    }
}

/// The quick findings of the experiment `name`, for tests.
#[cfg(test)]
fn quick(name: &str) -> Findings {
    let experiment = EXPERIMENTS.iter().find(|experiment| experiment.name == name).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { quick: true, ..Settings::default() };
    let (findings, _) = Lab::run(experiment, &settings, Some(dir.path())).unwrap();
    assert!(findings.claim.holds, "{name}: {}", findings.claim.text);
    findings
}
