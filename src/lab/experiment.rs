//! An experiment, its settings, and its environment.

use super::findings::Findings;
use crate::data::{Images, count};
use crate::train::Run;
use anyhow::{Result, ensure};
use serde_json::json;
use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

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
    pub(super) run: fn(&Lab) -> Result<Findings>,
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
    pub(super) settings: Settings,
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
    pub(super) fn folder(&self) -> Result<&Run> {
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
    pub(super) fn scale<T>(&self, quick: T, full: T) -> T {
        if self.settings.quick { quick } else { full }
    }

    pub(super) fn seed(&self) -> u64 {
        self.settings.seed
    }

    /// The first `training` and `test` images of the data set.
    pub(super) fn digits(&self, training: usize, test: usize) -> Result<(Images, Images)> {
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
