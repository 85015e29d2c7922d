//! Checkpoints: everything that an exact resume needs, in one safetensors file.

use super::checksum::{self, CHECKSUM};
use super::metrics::{Epoch, Metric, any_f64};
use super::run::{Run, is_record_of, read_file, write_file};
use super::task::Task;
use super::weights::{named, read_best, read_tensors, set_vars};
use crate::data::count;
use crate::optim::{Optimizer, PlateauState};
use crate::processes::Processes;
use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::Tensor;
use candle_nn::VarMap;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// First part of the names of tensors.
const PARAMETERS: &str = "parameters";
const OPTIMIZER: &str = "optimizer";
const TASK: &str = "task";
/// Name of the [`State`] in the metadata.
const STATE: &str = "state";

/// The part of a checkpoint that is not a tensor.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct State {
    /// Identity of the run.
    run: String,
    /// Number of processes that train it.
    #[serde(default = "one")]
    pub(super) processes: usize,
    /// Whether training has ended and the checkpoint holds no tensors.
    pub(super) has_ended: bool,
    /// Whether the optimizer found no step that lowers the loss, which ends training.
    pub(super) has_converged: bool,
    /// Finished epochs.
    pub(super) history: Vec<Epoch>,
    /// Number of the best epoch, counted from 1; 0 before the first is finished.
    pub(super) best_epoch: usize,
    /// Steps since the start of training.
    pub(super) step: u64,
    /// Steps of the current epoch; the fields below accumulate over them.
    pub(super) steps_in_epoch: usize,
    #[serde(with = "any_f64")]
    pub(super) loss_sum: f64,
    #[serde(with = "any_f64")]
    pub(super) norm_sum: f64,
    #[serde(with = "any_f64")]
    pub(super) largest_norm: f64,
    #[serde(with = "any_f64")]
    pub(super) seconds: f64,
    pub(super) plateau: PlateauState,
}

/// The number of processes if a checkpoint does not record it.
fn one() -> usize {
    1
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

/// Writes the checkpoint of `run`, and replaces the previous one.
pub(super) fn save(
    run: &Run,
    vars: &VarMap,
    optimizer: &Optimizer,
    task_state: HashMap<String, Tensor>,
    state: &State,
) -> Result<()> {
    let mut tensors = BTreeMap::new();
    for (name, tensor) in optimizer.state()? {
        tensors.insert(format!("{OPTIMIZER}.{name}"), tensor);
    }
    for (name, tensor) in named(vars) {
        tensors.insert(format!("{PARAMETERS}.{name}"), tensor);
    }
    for (name, tensor) in task_state {
        tensors.insert(format!("{TASK}.{name}"), tensor);
    }
    write(run, tensors, state)
}

/// Writes the checkpoint of a training run that has ended: the record of its epochs, without tensors.
pub(super) fn save_ended(run: &Run, state: &mut State) -> Result<()> {
    state.has_ended = true;
    write(run, BTreeMap::new(), state)
}

fn write(run: &Run, tensors: BTreeMap<String, Tensor>, state: &State) -> Result<()> {
    let state = State { run: run.id().to_string(), ..state.clone() };
    let state = HashMap::from([(STATE.to_string(), serde_json::to_string(&state)?)]);
    write_file(&run.checkpoint(), &checksum::serialize(tensors, state)?)
}

/// Restores `vars`, `optimizer` and `task` from the checkpoint of `run`, or returns `None` without one.
///
/// With several processes, the first has the run and sends its checkpoint to all.
pub(super) fn load(
    run: Option<&Run>,
    processes: Option<&Arc<dyn Processes>>,
    vars: &VarMap,
    optimizer: &mut Optimizer,
    task: &dyn Task,
    steps_per_epoch: usize,
) -> Result<Option<State>> {
    let (mut bytes, mut own) = (vec![], None);
    if let Some(run) = run
        && has_checkpoint(run)?
    {
        bytes = read_file(&run.checkpoint())?;
        let state = read_state(run, &bytes)?;
        check_best(run, &state)?;
        own = Some(state);
    }
    if let Some(processes) = processes {
        bytes = processes.broadcast(bytes)?;
    }
    if bytes.is_empty() {
        return Ok(None);
    }
    let path = run.map_or_else(|| PathBuf::from("the checkpoint of process 0"), Run::checkpoint);
    let shown = path.display();
    let [mut parameters, mut moments, mut task_state] = [(); 3].map(|()| HashMap::new());
    for (name, tensor) in read_tensors(&path, &bytes)? {
        match name.split_once('.') {
            Some((PARAMETERS, name)) => parameters.insert(name.to_string(), tensor),
            Some((OPTIMIZER, name)) => moments.insert(name.to_string(), tensor),
            Some((TASK, name)) => task_state.insert(name.to_string(), tensor),
            _ => bail!("{shown}: found a tensor {name}, which does not belong in a checkpoint"),
        };
    }
    let state = own.map_or_else(|| parse_state(&path, &bytes), Ok)?;
    check_counts(&path, &state, &moments, steps_per_epoch)?;
    if !state.has_ended {
        optimizer.load_state(&moments).with_context(|| shown.to_string())?;
        set_vars(&path, vars, &parameters)?;
        task.load_state(task_state).with_context(|| shown.to_string())?;
    }
    Ok(Some(state))
}

/// Returns whether `run` has a checkpoint.
///
/// # Errors
/// Fails if there is none although the run has reached its first one.
fn has_checkpoint(run: &Run) -> Result<bool> {
    let path = run.checkpoint();
    if path.try_exists().with_context(|| format!("{}: cannot read it", path.display()))? {
        return Ok(true);
    }
    // A run has metrics before it trains, and its first model just before its first checkpoint.
    let why = match run.read_metrics()? {
        Some(text) if text.is_empty() => return Ok(false),
        None if !run.model().exists() => return Ok(false),
        Some(_) => "metrics.jsonl records that epochs were trained",
        None => "the run has a model",
    };
    bail!("{}: it is missing, but {why}: restore it, or start a new run", path.display())
}

/// Checks that the best weights, which training ends with, exist and are complete.
fn check_best(run: &Run, state: &State) -> Result<()> {
    if state.best_epoch > 0 {
        read_best(run).context("the best weights so far, without which the run cannot be completed")?;
    }
    Ok(())
}

/// Checks the files that resuming `run` depends on, and returns a note for the user.
///
/// # Errors
/// Fails if the checkpoint or the best weights are missing, damaged or another run's, unless the run never reached its
/// first checkpoint.
pub fn check_resumable(run: &Run, metric: Metric) -> Result<Option<String>> {
    let dir = run.dir().display();
    if !has_checkpoint(run)? {
        return Ok(Some(format!("{dir}: the run has no checkpoint yet, so it starts at epoch 1")));
    }
    let path = run.checkpoint();
    let bytes = read_file(&path)?;
    read_tensors(&path, &bytes)?;
    let state = read_state(run, &bytes)?;
    check_best(run, &state)?;
    let is_whole = run.read_metrics()?.is_some_and(|text| is_record_of(&text, &state.history, metric));
    Ok((!is_whole)
        .then(|| format!("{dir}: metrics.jsonl was damaged or missing; the checkpoint restores it")))
}

/// Returns whether `run` can train for more epochs: training has not ended, or its checkpoint was kept.
///
/// # Errors
/// Fails if the checkpoint cannot be read.
pub fn can_train_on(run: &Run) -> Result<bool> {
    let path = run.checkpoint();
    Ok(!has_checkpoint(run)? || !read_state(run, &read_file(&path)?)?.has_ended)
}

/// Reads the training state from the contents of the checkpoint of `run`, which must be its own.
fn read_state(run: &Run, bytes: &[u8]) -> Result<State> {
    let path = run.checkpoint();
    let state = parse_state(&path, bytes)?;
    ensure!(
        state.run == run.id(),
        "{}: this checkpoint belongs to another run: its configuration differs from the one in {}",
        path.display(),
        run.dir().display()
    );
    Ok(state)
}

/// Reads the training state from the contents of the checkpoint `path`.
fn parse_state(path: &Path, bytes: &[u8]) -> Result<State> {
    let shown = path.display();
    let (_, header) = safetensors::SafeTensors::read_metadata(bytes)
        .with_context(|| format!("{shown}: not a complete safetensors file ({} bytes)", bytes.len()))?;
    let metadata = header.metadata().as_ref().with_context(|| format!("{shown}: no training state found"))?;
    ensure!(metadata.contains_key(CHECKSUM), "{shown}: the checkpoint is damaged: it has no checksum");
    let state = metadata.get(STATE).with_context(|| format!("{shown}: no training state found"))?;
    serde_json::from_str(state).map_err(|_| anyhow!("{shown}: the training state is damaged"))
}

/// Checks that the counts of steps and epochs are consistent with each other and the data.
fn check_counts(
    path: &Path,
    state: &State,
    moments: &HashMap<String, Tensor>,
    steps_per_epoch: usize,
) -> Result<()> {
    let shown = path.display();
    let epochs = state.history.len();
    ensure!(
        state.best_epoch <= epochs,
        "{shown}: the training state is damaged: epoch {} is the best of {epochs}",
        state.best_epoch
    );
    let finished = epochs.checked_mul(steps_per_epoch);
    let expected = finished.and_then(|steps| steps.checked_add(state.steps_in_epoch));
    ensure!(
        state.steps_in_epoch <= steps_per_epoch && expected.is_some_and(|steps| steps as u64 == state.step),
        "{shown}: found step {} after {} and {}, which does not fit {} per epoch; resume with the data and the batch size \
         that the run started with",
        state.step,
        count(epochs, "epoch"),
        count(state.steps_in_epoch, "step"),
        count(steps_per_epoch, "step")
    );
    for (name, steps) in moments.iter().filter(|(name, _)| name.ends_with(".step")) {
        let updates = steps.flatten_all()?.to_vec1::<i64>().unwrap_or_default();
        let is_wrong = |updates: i64| u64::try_from(updates).map_or(true, |updates| updates > state.step);
        if let Some(updates) = updates.into_iter().find(|&updates| is_wrong(updates)) {
            bail!(
                "{shown}: the training state is damaged: {OPTIMIZER}.{name} is {updates}, expected at most {}",
                state.step
            );
        }
    }
    Ok(())
}

/// Describes the last checkpoint, for the message of a training run that failed.
pub(super) fn last_good(run: &Run) -> String {
    let path = run.checkpoint();
    match path.exists() {
        true => format!("the last good checkpoint is {}; try a lower learning rate", path.display()),
        false => "there is no checkpoint yet; try a lower learning rate".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Score;
    use candle_core::Device;
    use serde_json::json;

    fn epoch() -> Epoch {
        Epoch {
            epoch: 1,
            step: 3,
            train_loss: 0.5,
            validation: Score { loss: 0.25, metric: 1.0 },
            gradient_norm: 1.0,
            largest_gradient_norm: 2.0,
            learning_rate: 1e-3,
            seconds: 1.0,
            examples_per_second: 3.0,
        }
    }

    #[test]
    fn counts_that_do_not_fit_are_refused() {
        let good =
            State { history: vec![epoch()], best_epoch: 1, step: 4, steps_in_epoch: 1, ..State::default() };
        let check = |state: &State, updates: i64| {
            let updates = Tensor::new(updates, &Device::Cpu).unwrap();
            let moments = HashMap::from([("w.step".to_string(), updates)]);
            check_counts(Path::new("checkpoint"), state, &moments, 3)
        };
        check(&good, 4).unwrap();
        for step in [0, 5, u64::MAX] {
            assert!(check(&State { step, ..good.clone() }, 0).is_err(), "step {step}");
        }
        for steps_in_epoch in [0, 4, 1 << 60, usize::MAX] {
            assert!(check(&State { steps_in_epoch, ..good.clone() }, 0).is_err(), "{steps_in_epoch} steps");
        }
        let message = check(&State { best_epoch: 7, ..good.clone() }, 0).unwrap_err().to_string();
        assert!(message.contains("training state is damaged"), "{message}");
        for updates in [-1, 5, i64::from(u32::MAX), i64::MAX] {
            let message = check(&good, updates).unwrap_err().to_string();
            assert!(message.contains("optimizer.w.step") && message.contains("at most 4"), "{message}");
        }
    }

    #[test]
    fn a_copied_checkpoint_is_refused_before_anything_is_restored() {
        let dir = tempfile::tempdir().unwrap();
        let run =
            |name: &str| Run::create("x", Some(&dir.path().join(name)), &json!({ "name": name })).unwrap();
        let (own, other) = (run("own"), run("other"));
        save_ended(&own, &mut State::default()).unwrap();
        std::fs::copy(own.checkpoint(), other.checkpoint()).unwrap();
        check_resumable(&own, Metric::ACCURACY).unwrap();
        let message = check_resumable(&other, Metric::ACCURACY).unwrap_err().to_string();
        assert!(message.contains("belongs to another run"), "{message}");
    }

    #[test]
    fn infinite_numbers_survive_a_checkpoint() {
        let history = vec![Epoch {
            validation: Score { loss: 1e300, metric: f64::INFINITY },
            examples_per_second: f64::NEG_INFINITY,
            ..epoch()
        }];
        let state = State { history, loss_sum: f64::NAN, ..State::default() };
        let read: State = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
        assert_eq!(read.history, state.history);
        assert!(read.loss_sum.is_nan());
    }
}
