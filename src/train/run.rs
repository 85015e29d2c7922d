//! The run folder and its files.

use super::checksum::{CHECKSUM, checksum};
use super::metrics::{Epoch, Metric};
use crate::data::is_of_system;
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

const CONFIG: &str = "config.json";
const METRICS: &str = "metrics.jsonl";
const MODEL: &str = "model.safetensors";
const CHECKPOINT: &str = "checkpoint.safetensors";
/// The file that the process writing to the folder holds locked. It is empty and stays.
const LOCK: &str = "run.lock";
/// Extension of the names under which files are written.
const TEMPORARY: &str = ".tmp";
/// Name of the run's identity in `config.json`: the checksum of its first configuration.
const ID: &str = "id";

/// A run folder: the configuration, metrics, weights and checkpoint of one training run.
///
/// Every file is written to a temporary name, synced and renamed, so a crash leaves either the old file or the new one.
#[derive(Debug, Clone)]
pub struct Run {
    dir: PathBuf,
    id: String,
    /// Shared by all clones: the lock ends when the last of them is dropped.
    lock: Arc<OnceLock<File>>,
}

impl Run {
    /// Creates the run folder `out`, or else the next numbered folder under `runs/<binary>/`, and locks it.
    ///
    /// See [`lock`](Self::lock). `config.json` records `binary`, the version of this crate, the fields of the object
    /// `config`, and checksums. A folder counts as empty if it holds only the temporary files of a run that was killed
    /// at its start, or files that operating systems leave behind.
    ///
    /// # Errors
    /// Fails if `out` is not empty, another process trains in it, or the folder cannot be written.
    pub fn create(binary: &str, out: Option<&Path>, config: &Value) -> Result<Self> {
        let dir = match out {
            Some(dir) => {
                // The shell does not expand `--out=~/run`.
                let shown = dir.display();
                ensure!(
                    !dir.starts_with("~"),
                    "{shown}: ~ is not expanded here: write the path of your home folder, or ./{shown}"
                );
                fs::create_dir_all(dir)
                    .with_context(|| format!("{}: cannot create the run folder", dir.display()))?;
                check_empty(dir)?;
                dir.to_path_buf()
            }
            None => next_folder(&Path::new("runs").join(binary))?,
        };
        let mut recorded = json!({ "binary": binary, "version": env!("CARGO_PKG_VERSION") });
        for (name, value) in config.as_object().into_iter().flatten() {
            recorded[name] = value.clone();
        }
        let id = checksum(recorded.to_string().as_bytes());
        recorded[ID] = json!(id);
        let run = Self { dir, id, lock: Arc::default() };
        run.lock()?;
        // Another process may have trained here in the meantime.
        check_empty(&run.dir)?;
        run.write_config(recorded)?;
        Ok(run)
    }

    /// Opens the run folder `dir`, or else the newest run with a model, and reads its configuration.
    ///
    /// The newest run is searched for under `runs/<binary>/`.
    ///
    /// # Errors
    /// Fails if there is no such run, its `config.json` cannot be read or has changed, or it belongs to another binary.
    pub fn open(binary: &str, dir: Option<&Path>) -> Result<(Self, Value)> {
        let dir = match dir {
            Some(dir) => dir.to_path_buf(),
            None => Self::with_model(binary)?.pop().with_context(|| {
                let parent = Path::new("runs").join(binary);
                format!(
                    "{}: found no run with a model: train one, resume one, or name a run folder",
                    parent.display()
                )
            })?,
        };
        let path = dir.join(CONFIG);
        let text = fs::read_to_string(&path)
            .with_context(|| format!("{}: cannot read it, so this is not a run folder", path.display()))?;
        let config: Value = serde_json::from_str(&text).map_err(|_| {
            anyhow!("{}: not the configuration of a run: truncated or damaged", path.display())
        })?;
        let found = &config["binary"];
        ensure!(
            found == binary,
            "{}: found a run of {}, expected one of {binary}",
            path.display(),
            found.as_str().unwrap_or("another program")
        );
        let id = config[ID].as_str().unwrap_or_default().to_string();
        ensure!(
            config[CHECKSUM] == with_checksum(config.clone())[CHECKSUM],
            "{}: it has changed since the run wrote it: its contents do not match its checksum",
            path.display()
        );
        Ok((Self { dir, id, lock: Arc::default() }, config))
    }

    /// Returns the numbered folders under `runs/<binary>/` that hold a model, the oldest first.
    ///
    /// # Errors
    /// Fails if the folder cannot be read.
    pub fn with_model(binary: &str) -> Result<Vec<PathBuf>> {
        let parent = Path::new("runs").join(binary);
        let folders = if parent.exists() { numbered_folders(&parent)? } else { Vec::new() };
        let has_model = |dir: &PathBuf| dir.join(CONFIG).exists() && dir.join(MODEL).exists();
        Ok(folders.into_iter().map(|(_, dir)| dir).filter(has_model).collect())
    }

    /// Returns the path of the next numbered folder under `runs/<binary>/`, which is not created.
    ///
    /// # Errors
    /// Fails if the folders cannot be read.
    pub fn next(binary: &str) -> Result<PathBuf> {
        let parent = Path::new("runs").join(binary);
        let number = if parent.exists() { next_number(&parent)? } else { 1 };
        Ok(parent.join(number.to_string()))
    }

    /// Claims the folder for this process until the last clone of this `Run` is dropped.
    ///
    /// A second call does nothing. [`create`](Self::create) and [`Trainer::fit`](super::Trainer::fit) also lock the
    /// folder. A file system without locks does not protect it.
    ///
    /// # Errors
    /// Fails if another process trains in the folder, or the file `run.lock` cannot be written.
    pub fn lock(&self) -> Result<()> {
        if self.lock.get().is_some() {
            return Ok(());
        }
        let path = self.dir.join(LOCK);
        let file = File::options().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("{}: cannot write it", path.display()))?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            bail!("{}: another process is training in this folder", self.dir.display());
        }
        self.lock.get_or_init(|| file);
        Ok(())
    }

    /// Replaces the configuration by `config`, a changed copy of what [`open`](Self::open) returned.
    ///
    /// The run's identity stays the same: its checkpoint still belongs to it.
    ///
    /// # Errors
    /// Fails if `config.json` cannot be written.
    pub fn reconfigure(&self, config: &Value) -> Result<()> {
        self.write_config(config.clone())
    }

    fn write_config(&self, config: Value) -> Result<()> {
        self.write(CONFIG, &(serde_json::to_string_pretty(&with_checksum(config))? + "\n"))
    }

    /// Returns the identity of this run. Runs with the same configuration, which give the same result, share it.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Removes the temporary files that a killed process has left.
    pub(super) fn remove_temporary_files(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if is_temporary(&entry.file_name()) {
                // A file that cannot be removed does no harm.
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Checks that `facts` about the data and the model are the same as at the start of the run.
    ///
    /// To resume exactly, a run needs the same data. Record the facts that identify it, such as sizes and a fingerprint,
    /// in the configuration given to [`create`](Self::create). On resuming, pass the configuration from
    /// [`open`](Self::open) as `config` and the facts of the current data as `facts`, before anything is written. A
    /// fingerprint has a name like `training_data_fingerprint`, which the message shows as "the training data".
    ///
    /// # Errors
    /// Fails if a field of `facts` differs from the field of the same name in `config`, or is missing there.
    pub fn check_facts(&self, config: &Value, facts: &Value) -> Result<()> {
        for (name, found) in facts.as_object().into_iter().flatten() {
            let expected = &config[name];
            if found == expected {
                continue;
            }
            let (dir, name) = (self.dir.display(), name.replace('_', " "));
            match name.strip_suffix(" fingerprint") {
                Some(content) if found.is_null() => {
                    bail!("{dir}: cannot resume: the {content} is missing")
                }
                Some(content) => {
                    bail!("{dir}: cannot resume: the {content} has changed since the run started")
                }
                None => {
                    let value =
                        |fact: &Value| if fact.is_null() { "none".to_string() } else { fact.to_string() };
                    let (found, expected) = (value(found), value(expected));
                    bail!("{dir}: cannot resume: found {name} {found}, but the run started with {expected}")
                }
            }
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

    /// Writes the file `name` in the folder, and replaces an older one.
    ///
    /// # Errors
    /// Fails if the file cannot be written. The older file then stays unchanged.
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

    /// Reads `metrics.jsonl`; `None` if there is none. Bytes that are not UTF-8 are replaced.
    pub(super) fn read_metrics(&self) -> Result<Option<String>> {
        let path = self.dir.join(METRICS);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("{}: cannot read it", path.display())),
        }
    }

    pub(super) fn write_metrics(&self, epochs: &[Epoch], metric: Metric) -> Result<()> {
        self.write(METRICS, &metrics(epochs, metric))
    }
}

/// Returns `config` with the checksum of its other fields.
fn with_checksum(mut config: Value) -> Value {
    if let Some(fields) = config.as_object_mut() {
        fields.shift_remove(CHECKSUM);
    }
    let checksum = checksum(config.to_string().as_bytes());
    config[CHECKSUM] = json!(checksum);
    config
}

/// Checks that the folder holds only the lock, temporary files and files of the operating system.
fn check_empty(dir: &Path) -> Result<()> {
    let entries =
        fs::read_dir(dir).with_context(|| format!("{}: cannot read the run folder", dir.display()))?;
    for entry in entries {
        let name =
            entry.with_context(|| format!("{}: cannot read the run folder", dir.display()))?.file_name();
        ensure!(
            name == LOCK || is_temporary(&name) || is_of_system(&name.to_string_lossy()),
            "{}: the folder is not empty, and an earlier run is never overwritten",
            dir.display()
        );
    }
    Ok(())
}

/// Returns whether a file of this name is the unfinished version of another one.
///
/// An example is `config.json.tmp`.
fn is_temporary(name: &OsStr) -> bool {
    let finished = name.to_str().and_then(|name| name.strip_suffix(TEMPORARY));
    finished.is_some_and(|name| Path::new(name).extension().is_some())
}

/// Returns whether `text` is the `metrics.jsonl` of a run with these epochs.
///
/// The last epoch may be missing, because a process may have been killed before it was added. The result on the test data
/// may follow.
pub(super) fn is_record_of(text: &str, epochs: &[Epoch], metric: Metric) -> bool {
    let all = metrics(epochs, metric);
    let before_last = metrics(&epochs[..epochs.len().saturating_sub(1)], metric);
    let is_result = |rest: &str| {
        let result = serde_json::from_str::<Value>(rest);
        rest.is_empty() || rest.ends_with('\n') && result.is_ok_and(|result| result["final"] == true)
    };
    text == before_last || text.strip_prefix(&all).is_some_and(is_result)
}

/// Formats the epochs as JSON lines. A number that is not finite becomes `null`.
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
    let mut number = next_number(parent)?;
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

/// Returns the lowest number above the numbers of all folders in `parent`.
fn next_number(parent: &Path) -> Result<u64> {
    let newest = numbered_folders(parent)?.last().map_or(0, |last| last.0);
    newest.checked_add(1).with_context(|| format!("{}: cannot create the run folder", parent.display()))
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
    temporary.push(TEMPORARY);
    let temporary = PathBuf::from(temporary);
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        match path.parent() {
            Some(parent) if cfg!(unix) && !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
            _ => Ok(()),
        }
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&temporary);
        anyhow!("{}: cannot write it: {error}", path.display())
    })
}
