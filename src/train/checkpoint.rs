//! Checkpoints: everything that an exact resume needs, in one safetensors file.

use super::metrics::Epoch;
use super::run::{Run, read_file, write_file};
use super::task::Task;
use super::weights::{named, read_tensors, set_vars};
use crate::optim::{Optimizer, PlateauState};
use anyhow::{Context, Result, bail, ensure};
use candle_core::Tensor;
use candle_nn::VarMap;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// The part of a checkpoint that is not a tensor.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct State {
    /// Finished epochs.
    pub(super) history: Vec<Epoch>,
    /// Number of the best epoch, counted from 1; 0 before the first is finished.
    pub(super) best_epoch: usize,
    /// Steps since the start of training.
    pub(super) step: u64,
    /// Steps of the current epoch; the fields below accumulate over them.
    pub(super) steps_in_epoch: usize,
    pub(super) loss_sum: f64,
    pub(super) norm_sum: f64,
    pub(super) largest_norm: f64,
    pub(super) seconds: f64,
    pub(super) plateau: PlateauState,
}

impl State {
    pub(super) fn best(&self) -> Option<&Epoch> {
        self.history.get(self.best_epoch.checked_sub(1)?)
    }

    pub(super) fn epochs_since_best(&self) -> usize {
        self.history.len() - self.best_epoch
    }

    pub(super) fn finish_epoch(&mut self, record: Epoch) {
        self.history.push(record);
        self.steps_in_epoch = 0;
        (self.loss_sum, self.norm_sum, self.largest_norm, self.seconds) = (0.0, 0.0, 0.0, 0.0);
    }
}

/// Writes the checkpoint of `run`, in place of the last one.
pub(super) fn save(
    run: &Run,
    vars: &VarMap,
    optimizer: &Optimizer,
    task: &dyn Task,
    state: &State,
) -> Result<()> {
    let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
    for (name, tensor) in optimizer.state()? {
        tensors.insert(format!("optimizer.{name}"), tensor);
    }
    for (name, tensor) in named(vars) {
        tensors.insert(format!("parameters.{name}"), tensor);
    }
    for (name, tensor) in task.state()? {
        tensors.insert(format!("task.{name}"), tensor);
    }
    let state = HashMap::from([("state".to_string(), serde_json::to_string(state)?)]);
    write_file(&run.checkpoint(), &safetensors::serialize(&tensors, Some(state))?)
}

/// Restores `vars`, `optimizer` and `task` from the checkpoint of `run`; returns `None` if there is none.
pub(super) fn load(
    run: &Run,
    vars: &VarMap,
    optimizer: &mut Optimizer,
    task: &dyn Task,
    steps_per_epoch: usize,
) -> Result<Option<State>> {
    let path = run.checkpoint();
    if !path.exists() {
        return Ok(None);
    }
    let bytes = read_file(&path)?;
    let shown = path.display();
    let [mut parameters, mut moments, mut task_state] = [(); 3].map(|()| HashMap::new());
    for (name, tensor) in read_tensors(&path, &bytes)? {
        match name.split_once('.') {
            Some(("parameters", name)) => parameters.insert(name.to_string(), tensor),
            Some(("optimizer", name)) => moments.insert(name.to_string(), tensor),
            Some(("task", name)) => task_state.insert(name.to_string(), tensor),
            _ => bail!("{shown}: found a tensor {name}, which does not belong in a checkpoint"),
        };
    }
    let state = read_state(&path, &bytes, steps_per_epoch)?;
    optimizer.load_state(&moments).with_context(|| shown.to_string())?;
    set_vars(&path, vars, &parameters)?;
    task.load_state(task_state).with_context(|| shown.to_string())?;
    Ok(Some(state))
}

/// Reads the training state from the contents of a checkpoint, and checks its counts.
fn read_state(path: &Path, bytes: &[u8], steps_per_epoch: usize) -> Result<State> {
    let shown = path.display();
    let (_, header) = safetensors::SafeTensors::read_metadata(bytes)?;
    let state = header.metadata().as_ref().and_then(|metadata| metadata.get("state"));
    let state = state.with_context(|| format!("{shown}: no training state found"))?;
    let state: State =
        serde_json::from_str(state).with_context(|| format!("{shown}: cannot read the training state"))?;
    ensure!(
        state.best_epoch <= state.history.len(),
        "{shown}: the training state is damaged: epoch {} is the best of {}",
        state.best_epoch,
        state.history.len()
    );
    let finished = state.history.len().checked_mul(steps_per_epoch);
    let expected = finished.and_then(|steps| steps.checked_add(state.steps_in_epoch));
    ensure!(
        state.steps_in_epoch <= steps_per_epoch && expected.is_some_and(|steps| steps as u64 == state.step),
        "{shown}: found step {} after {} epochs and {} steps, which does not fit {steps_per_epoch} steps per epoch; \
         resume with the data and the batch size that the run started with",
        state.step,
        state.history.len(),
        state.steps_in_epoch
    );
    Ok(state)
}

/// Describes the last checkpoint, for the message of a training run that failed.
pub(super) fn last_good(run: &Run) -> String {
    let path = run.checkpoint();
    match path.exists() {
        true => format!("the last good checkpoint is {}; try a lower learning rate", path.display()),
        false => "there is no checkpoint yet; try a lower learning rate".to_string(),
    }
}
