//! The run folder: settings, metrics, best weights, checkpoint, pictures. Every file is written whole or not at all.

use super::{Epoch, Metric, State, Task};
use crate::nn::seeded_var_builder;
use crate::optim::Optimizer;
use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::{DType, Device, Tensor, pickle};
use candle_nn::{VarBuilder, VarMap};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.json";
const METRICS: &str = "metrics.jsonl";
const MODEL: &str = "model.safetensors";
const CHECKPOINT: &str = "checkpoint.safetensors";

/// A run's folder.
#[derive(Debug, Clone)]
pub struct Run {
    dir: PathBuf,
}

impl Run {
    /// Makes a new run folder that records the fields of `config`: `out`, or the next number under `runs/<binary>/`.
    ///
    /// # Errors
    /// When `out` holds anything already, or can't be written.
    pub fn create(binary: &str, out: Option<&Path>, config: &Value) -> Result<Self> {
        let dir = match out {
            Some(dir) => {
                fs::create_dir_all(dir)
                    .with_context(|| format!("{}: cannot make the run folder", dir.display()))?;
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

    /// The run in the folder `dir`, or the newest one of `binary` under `runs/`, with its recorded configuration.
    ///
    /// # Errors
    /// When there is none, or its `config.json` can't be read.
    pub fn open(binary: &str, dir: Option<&Path>) -> Result<(Self, Value)> {
        let dir = match dir {
            Some(dir) => dir.to_path_buf(),
            None => newest_folder(&Path::new("runs").join(binary))?,
        };
        let path = dir.join(CONFIG);
        let text = fs::read_to_string(&path)
            .with_context(|| format!("{}: cannot read it, so this is not a run folder", path.display()))?;
        let config: Value = serde_json::from_str(&text)
            .with_context(|| format!("{}: not the settings of a run", path.display()))?;
        let found = &config["binary"];
        ensure!(
            found == binary,
            "{}: this is a run of {found}, expected one of \"{binary}\"",
            path.display()
        );
        Ok((Self { dir }, config))
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Path of the best weights.
    pub fn model(&self) -> PathBuf {
        self.dir.join(MODEL)
    }

    /// Writes the file `name` of this run.
    ///
    /// # Errors
    /// No room or no right to write; an older file of that name is then as it was.
    pub fn write(&self, name: &str, contents: &str) -> Result<()> {
        write_file(&self.dir.join(name), contents.as_bytes())
    }

    /// Adds the test's result to the metrics, as the last line.
    ///
    /// # Errors
    /// No room or no right to write.
    pub fn write_final(&self, epochs: &[Epoch], metric: Metric, last: &Value) -> Result<()> {
        self.write(METRICS, &format!("{}{last}\n", metrics(epochs, metric)))
    }

    pub(super) fn write_metrics(&self, epochs: &[Epoch], metric: Metric) -> Result<()> {
        self.write(METRICS, &metrics(epochs, metric))
    }

    pub(super) fn save_checkpoint(
        &self,
        vars: &VarMap,
        optimizer: &Optimizer,
        task: &dyn Task,
        state: &State,
    ) -> Result<()> {
        let mut tensors: BTreeMap<String, Tensor> = optimizer
            .state()?
            .into_iter()
            .map(|(name, tensor)| (format!("optimizer.{name}"), tensor))
            .collect();
        for (name, tensor) in named(vars) {
            tensors.insert(format!("parameters.{name}"), tensor);
        }
        for (name, tensor) in task.carried()? {
            tensors.insert(format!("carried.{name}"), tensor);
        }
        let state = HashMap::from([("state".to_string(), serde_json::to_string(state)?)]);
        let bytes = safetensors::serialize(&tensors, Some(state))?;
        write_file(&self.dir.join(CHECKPOINT), &bytes)
    }

    /// Puts the last checkpoint's values into `vars`, `optimizer` and `task`; none where no checkpoint was saved yet.
    pub(super) fn load_checkpoint(
        &self,
        vars: &VarMap,
        optimizer: &mut Optimizer,
        task: &dyn Task,
    ) -> Result<Option<State>> {
        let path = self.dir.join(CHECKPOINT);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = read(&path)?;
        let [mut parameters, mut moments, mut carried] = [(); 3].map(|()| HashMap::new());
        for (name, tensor) in tensors(&path, &bytes)? {
            match name.split_once('.') {
                Some(("parameters", name)) => parameters.insert(name.to_string(), tensor),
                Some(("optimizer", name)) => moments.insert(name.to_string(), tensor),
                Some(("carried", name)) => carried.insert(name.to_string(), tensor),
                _ => bail!("{}: found a tensor {name}, which is not of a checkpoint", path.display()),
            };
        }
        optimizer.load_state(&moments).with_context(|| path.display().to_string())?;
        set(&path, vars, &parameters)?;
        task.carry(carried).with_context(|| path.display().to_string())?;
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes)?;
        let state = header.metadata().as_ref().and_then(|metadata| metadata.get("state"));
        let state = state.with_context(|| format!("{}: it has no training state", path.display()))?;
        let state: State = serde_json::from_str(state)
            .with_context(|| format!("{}: its training state can't be read", path.display()))?;
        ensure!(
            state.best_epoch <= state.history.len(),
            "{}: its training state is damaged: epoch {} is the best of {}",
            path.display(),
            state.best_epoch,
            state.history.len()
        );
        Ok(Some(state))
    }

    pub(super) fn last_good(&self) -> String {
        let path = self.dir.join(CHECKPOINT);
        match path.exists() {
            true => format!("the last good checkpoint is {}; try a lower learning rate", path.display()),
            false => "there is no checkpoint yet; try a lower learning rate".to_string(),
        }
    }
}

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

fn next_folder(parent: &Path) -> Result<PathBuf> {
    let failed = |dir: &Path| format!("{}: cannot make the run folder", dir.display());
    fs::create_dir_all(parent).with_context(|| failed(parent))?;
    let mut number = numbered_folders(parent)?.last().map_or(1, |last| last.0 + 1);
    loop {
        let dir = parent.join(number.to_string());
        match fs::create_dir(&dir) {
            Ok(()) => return Ok(dir),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error).with_context(|| failed(&dir)),
        }
    }
}

fn newest_folder(parent: &Path) -> Result<PathBuf> {
    let folders = if parent.exists() { numbered_folders(parent)? } else { Vec::new() };
    match folders.into_iter().rev().find(|(_, dir)| dir.join(CONFIG).exists()) {
        Some((_, dir)) => Ok(dir),
        None => bail!("{}: there is no run yet: train one first, or name a run's folder", parent.display()),
    }
}

/// The folders whose names are numbers, in their order.
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

/// Writes `path` so that a crash or a full disk leaves the old file or the new one, never a part.
///
/// # Errors
/// No room or no right to write.
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

/// Saves the variables as a safetensors file of PyTorch's names and shapes.
///
/// # Errors
/// No room or no right to write.
pub fn save_weights(path: &Path, vars: &VarMap) -> Result<()> {
    write_file(path, &safetensors::serialize(named(vars), None)?)
}

/// Sets the variables to the tensors of a safetensors file, which must hold exactly these names and shapes.
///
/// # Errors
/// A file that is missing, truncated, no safetensors, or of another model: the parameter is named, with both shapes.
pub fn load_weights(path: &Path, vars: &VarMap) -> Result<()> {
    set(path, vars, &tensors(path, &read(path)?)?)
}

/// Sets the variables to the tensors of a safetensors file or one of PyTorch's (`.pth`, `.pt`, `.bin`: a `state_dict`). The
/// layer `head` stays as it is where the file has it for another number of classes, or not at all. Whether it was taken too.
///
/// # Errors
/// A file that is missing, neither, or of another model.
pub fn load_pretrained(path: &Path, vars: &VarMap, head: &str) -> Result<bool> {
    let pickled = ["pth", "pt", "bin"].map(|extension| Some(OsStr::new(extension)));
    let mut found = match pickled.contains(&path.extension()) {
        true => {
            let unreadable = |error| anyhow!("{}: not a state_dict of PyTorch: {error}", path.display());
            let tensors = pickle::read_all(path).map_err(unreadable)?;
            trained(tensors.into_iter().collect())
        }
        false => tensors(path, &read(path)?)?,
    };
    let head = format!("{head}.");
    let own: HashMap<_, _> = named(vars).into_iter().filter(|(name, _)| name.starts_with(&head)).collect();
    let fits = |(name, own): (&String, &Tensor)| found.get(name).is_some_and(|x| x.shape() == own.shape());
    let whole = own.iter().all(fits);
    if !whole {
        found.retain(|name, _| !name.starts_with(&head));
        for (name, own) in own {
            found.insert(name, own.copy()?);
        }
    }
    set(path, vars, &found)?;
    Ok(whole)
}

/// The model that `build` makes, with the weights of a safetensors file, which must hold exactly its parameters. They are
/// fixed: nothing is kept for gradients.
///
/// # Errors
/// Those of `build` and of [`load_weights`].
pub fn load_model<M>(
    path: &Path,
    device: &Device,
    build: impl Fn(VarBuilder) -> candle_core::Result<M>,
) -> Result<M> {
    let vars = VarMap::new();
    build(seeded_var_builder(&vars, 0, DType::F32, device))?;
    load_weights(path, &vars)?;
    let tensors = named(&vars).into_iter().map(|(name, tensor)| (name, tensor.detach())).collect();
    Ok(build(VarBuilder::from_tensors(tensors, DType::F32, device))?)
}

fn named(vars: &VarMap) -> BTreeMap<String, Tensor> {
    let vars = vars.data().lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("{}: cannot read it", path.display()))
}

fn tensors(path: &Path, bytes: &[u8]) -> Result<HashMap<String, Tensor>> {
    let found = candle_core::safetensors::load_buffer(bytes, &Device::Cpu).map_err(|error| {
        anyhow!("{}: not a whole safetensors file ({} bytes): {error}", path.display(), bytes.len())
    })?;
    Ok(trained(found))
}

/// Without PyTorch's counts of batches, which no layer of ours needs.
fn trained(mut tensors: HashMap<String, Tensor>) -> HashMap<String, Tensor> {
    tensors.retain(|name, _| !name.ends_with(".num_batches_tracked"));
    tensors
}

fn set(path: &Path, vars: &VarMap, tensors: &HashMap<String, Tensor>) -> Result<()> {
    let path = path.display();
    let vars = vars.data().lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let expected: BTreeMap<_, _> = vars.iter().collect();
    for (name, var) in &expected {
        let shape = var.shape();
        match tensors.get(*name) {
            None => bail!("{path}: it has no parameter {name}, expected one of shape {shape:?}"),
            Some(tensor) if tensor.shape() != shape => {
                bail!("{path}: parameter {name} has shape {:?}, expected {shape:?}", tensor.shape())
            }
            Some(tensor) if tensor.dtype() != var.dtype() => {
                bail!("{path}: parameter {name} is {:?}, expected {:?}", tensor.dtype(), var.dtype())
            }
            Some(_) => {}
        }
    }
    if let Some(name) = tensors.keys().filter(|name| !vars.contains_key(*name)).min() {
        bail!(
            "{path}: it has a parameter {name} of shape {:?}, which this model has not",
            tensors[name].shape()
        );
    }
    for (name, var) in expected {
        var.set(&tensors[name].to_device(var.device())?)?;
    }
    Ok(())
}
