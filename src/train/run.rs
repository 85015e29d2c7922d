//! The run folder and its files.

use super::metrics::{Epoch, Metric};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.json";
const METRICS: &str = "metrics.jsonl";
const MODEL: &str = "model.safetensors";
const CHECKPOINT: &str = "checkpoint.safetensors";

/// A run folder: the configuration, metrics, weights and checkpoint of one training run.
///
/// Every file is written to a temporary name, synced and renamed, so a crash leaves either the old file or the new one.
#[derive(Debug, Clone)]
pub struct Run {
    dir: PathBuf,
}

impl Run {
    /// Creates the run folder `out`, or else the next numbered folder under `runs/<binary>/`.
    ///
    /// `config.json` records `binary`, the version of this crate, and the fields of the object `config`.
    ///
    /// # Errors
    /// Fails if `out` is not empty or the folder cannot be written.
    pub fn create(binary: &str, out: Option<&Path>, config: &Value) -> Result<Self> {
        let dir = match out {
            Some(dir) => {
                fs::create_dir_all(dir)
                    .with_context(|| format!("{}: cannot create the run folder", dir.display()))?;
                let mut entries = fs::read_dir(dir)
                    .with_context(|| format!("{}: cannot read the run folder", dir.display()))?;
                ensure!(
                    entries.next().is_none(),
                    "{}: the folder is not empty, and an earlier run is never overwritten",
                    dir.display()
                );
                dir.to_path_buf()
            }
            None => next_folder(&Path::new("runs").join(binary))?,
        };
        let run = Self { dir };
        let mut recorded = json!({ "binary": binary, "version": env!("CARGO_PKG_VERSION") });
        for (name, value) in config.as_object().into_iter().flatten() {
            recorded[name] = value.clone();
        }
        run.write(CONFIG, &(serde_json::to_string_pretty(&recorded)? + "\n"))?;
        Ok(run)
    }

    /// Opens the run folder `dir`, or else the newest run under `runs/<binary>/`, and reads its configuration.
    ///
    /// # Errors
    /// Fails if there is no such run, its `config.json` cannot be read, or it belongs to another binary.
    pub fn open(binary: &str, dir: Option<&Path>) -> Result<(Self, Value)> {
        let dir = match dir {
            Some(dir) => dir.to_path_buf(),
            None => newest_folder(&Path::new("runs").join(binary))?,
        };
        let path = dir.join(CONFIG);
        let text = fs::read_to_string(&path)
            .with_context(|| format!("{}: cannot read it, so this is not a run folder", path.display()))?;
        let config: Value = serde_json::from_str(&text)
            .with_context(|| format!("{}: not the configuration of a run", path.display()))?;
        let found = &config["binary"];
        ensure!(found == binary, "{}: found a run of {found}, expected one of \"{binary}\"", path.display());
        Ok((Self { dir }, config))
    }

    /// Checks that `facts` about the data and the model are still those that the run started with.
    ///
    /// To resume exactly, a run needs the same data. Record the facts that identify it, such as sizes and a fingerprint,
    /// in the configuration given to [`create`](Self::create). On resuming, pass the configuration from
    /// [`open`](Self::open) as `config` and the facts of the current data as `facts`, before anything is written.
    ///
    /// # Errors
    /// Fails if a field of `facts` differs from the field of the same name in `config`, or is missing there.
    pub fn check_facts(&self, config: &Value, facts: &Value) -> Result<()> {
        for (name, found) in facts.as_object().into_iter().flatten() {
            let expected = &config[name];
            ensure!(
                found == expected,
                "{}: cannot resume: found {} {found}, but the run started with {expected}",
                self.dir.display(),
                name.replace('_', " ")
            );
        }
        Ok(())
    }

    /// Returns the path of the folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the path of the best weights, `model.safetensors`.
    pub fn model(&self) -> PathBuf {
        self.dir.join(MODEL)
    }

    pub(super) fn checkpoint(&self) -> PathBuf {
        self.dir.join(CHECKPOINT)
    }

    /// Writes the file `name` in the folder, in place of an older one.
    ///
    /// # Errors
    /// Fails if the file cannot be written; an older one stays as it was.
    pub fn write(&self, name: &str, contents: &str) -> Result<()> {
        write_file(&self.dir.join(name), contents.as_bytes())
    }

    /// Writes `metrics.jsonl` with one line per epoch, then `last`, the result on the test data.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn write_final(&self, epochs: &[Epoch], metric: Metric, last: &Value) -> Result<()> {
        self.write(METRICS, &format!("{}{last}\n", metrics(epochs, metric)))
    }

    pub(super) fn write_metrics(&self, epochs: &[Epoch], metric: Metric) -> Result<()> {
        self.write(METRICS, &metrics(epochs, metric))
    }
}

/// Formats the epochs as JSON lines.
fn metrics(epochs: &[Epoch], metric: Metric) -> String {
    let line = |epoch: &Epoch| {
        let mut line = json!({
            "epoch": epoch.epoch, "step": epoch.step,
            "train_loss": epoch.train_loss, "val_loss": epoch.validation.loss,
        });
        line[format!("val_{}", metric.name())] = json!(epoch.validation.metric);
        line["learning_rate"] = json!(epoch.learning_rate);
        line["seconds"] = json!(epoch.seconds);
        line["examples_per_second"] = json!(epoch.examples_per_second);
        line["gradient_norm"] = json!(epoch.gradient_norm);
        line["largest_gradient_norm"] = json!(epoch.largest_gradient_norm);
        format!("{line}\n")
    };
    epochs.iter().map(line).collect()
}

/// Creates the folder in `parent` with the lowest number above all present ones.
fn next_folder(parent: &Path) -> Result<PathBuf> {
    let failed = |dir: &Path| format!("{}: cannot create the run folder", dir.display());
    fs::create_dir_all(parent).with_context(|| failed(parent))?;
    let newest = numbered_folders(parent)?.last().map_or(0, |last| last.0);
    let mut number = newest.checked_add(1).with_context(|| failed(parent))?;
    loop {
        let dir = parent.join(number.to_string());
        match fs::create_dir(&dir) {
            Ok(()) => return Ok(dir),
            // Another process was faster.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && number < u64::MAX => number += 1,
            Err(error) => return Err(error).with_context(|| failed(&dir)),
        }
    }
}

/// Returns the folder in `parent` with the highest number that holds a run.
fn newest_folder(parent: &Path) -> Result<PathBuf> {
    let folders = if parent.exists() { numbered_folders(parent)? } else { Vec::new() };
    match folders.into_iter().rev().find(|(_, dir)| dir.join(CONFIG).exists()) {
        Some((_, dir)) => Ok(dir),
        None => bail!("{}: found no run: train one first, or name a run folder", parent.display()),
    }
}

/// Returns the folders in `parent` whose names are numbers, in ascending order.
fn numbered_folders(parent: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let entries = fs::read_dir(parent).with_context(|| format!("{}: cannot read it", parent.display()))?;
    let mut folders: Vec<(u64, PathBuf)> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            Some((path.file_name()?.to_str()?.parse().ok()?, path))
        })
        .collect();
    folders.sort();
    Ok(folders)
}

pub(super) fn read_file(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("{}: cannot read it", path.display()))
}

/// Writes a file atomically: a crash or a full disk leaves the old file or the new one, never a part.
///
/// # Errors
/// Fails if the file cannot be written.
pub fn write_file(path: &Path, contents: &[u8]) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        match path.parent() {
            Some(parent) if cfg!(unix) => File::open(parent)?.sync_all(),
            _ => Ok(()),
        }
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&temporary);
        anyhow!("{}: cannot write it: {error}", path.display())
    })
}
