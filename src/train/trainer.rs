//! The training loop.

use super::checkpoint::{self, State};
use super::metrics::{Epoch, Metric, Report, Score};
use super::progress::{Progress, Quiet};
use super::run::Run;
use super::shares::part_of_loss;
use super::step_graph::StepGraph;
use super::stop::Stop;
use super::task::{Task, check_loss};
use super::weights::{Best, broadcast, load_weights, matrices_checksum, save_best};
use crate::data::count;
use crate::nn::{BatchNorm, Mode};
use crate::ops::no_grad;
use crate::optim::{Clip, Exchange, Ledger, Optimizer, Schedule, Totals};
use crate::processes::{Processes, share, take_turns, together};
use crate::rng;
use anyhow::{Context, Result, bail, ensure};
use candle_core::Tensor;
use candle_nn::VarMap;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

/// Number of steps on a GPU between two readings of the loss, which wait for the GPU.
const READ_EVERY: usize = 50;

/// Length of a training run and the settings of its steps. Start from the default and change fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TrainerOptions {
    /// Number of epochs: passes over the training examples.
    pub epochs: usize,
    /// Examples per step. The last batch of an epoch may be smaller; see [`steps_per_epoch`].
    pub batch_size: usize,
    /// Base learning rate, which `schedule` scales.
    pub learning_rate: f64,
    /// Learning rate of each step.
    pub schedule: Schedule,
    /// Gradient clipping.
    pub clip: Clip,
    /// Seed of the shuffles and of all random draws in training steps.
    pub seed: u64,
    /// Stops training after this many epochs without a better validation score.
    pub patience: Option<usize>,
    /// Saves a checkpoint every this many steps, in addition to the one at the end of each epoch.
    ///
    /// Without a run folder, it has no effect.
    pub checkpoint_every: Option<u64>,
    /// Keeps the whole checkpoint when training ends, so that the run can train for more epochs later.
    ///
    /// Otherwise only the record of its epochs is kept.
    pub keep_checkpoint: bool,
    /// Whether batch normalisation on several processes uses the statistics of the whole batch.
    ///
    /// Otherwise each process uses the statistics of its share.
    pub sync_batch_norm: bool,
}

impl Default for TrainerOptions {
    /// 10 epochs of batches of 64 at a learning rate of 1e-3, seed 42.
    ///
    /// There is no clipping, patience, extra checkpoint or synchronised batch normalisation; the last checkpoint is not
    /// kept.
    fn default() -> Self {
        Self {
            epochs: 10,
            batch_size: 64,
            learning_rate: 1e-3,
            schedule: Schedule::default(),
            clip: Clip::None,
            seed: 42,
            patience: None,
            checkpoint_every: None,
            keep_checkpoint: false,
            sync_batch_norm: false,
        }
    }
}

/// Trains models with the same loop for every [`Task`].
pub struct Trainer<'a> {
    /// Settings of the training loop.
    pub options: TrainerOptions,
    /// Folder for metrics, checkpoints and the best weights. Without one, the best weights are kept in memory.
    pub run: Option<&'a Run>,
    /// Receives the events of each step and each epoch: [`Quiet`], [`Lines`](super::Lines) or your own.
    pub progress: &'a dyn Progress,
    /// Ends the training early on request. With several processes, a request on any of them ends it.
    pub stop: Stop,
    /// The processes that train the model together.
    ///
    /// Each of them calls [`fit`](Trainer::fit) with the same task, variables, optimizer and options. Only process 0
    /// needs a run folder and a display.
    pub processes: Option<Arc<dyn Processes>>,
}

impl Default for Trainer<'_> {
    /// The default options, one process, no run folder and no display.
    fn default() -> Self {
        let options = TrainerOptions::default();
        Self { options, run: None, progress: &Quiet, stop: Stop::default(), processes: None }
    }
}

impl Trainer<'_> {
    /// Trains the variables `vars` on `task`, and leaves the weights of the best epoch in them.
    ///
    /// Each epoch trains on every example once, evaluates on validation data, and keeps the weights if their validation
    /// score is the best so far. If there is a run folder, they go to `model.safetensors`, the scores go to
    /// `metrics.jsonl`, and a checkpoint is saved.
    ///
    /// If the folder already holds a checkpoint, training resumes from it. It ends with the same bits as an
    /// uninterrupted run on the same kind of device, provided that task, variables, optimizer and options are set up in
    /// the same way. A larger number of epochs continues the run if training has not ended or the checkpoint was kept
    /// ([`TrainerOptions::keep_checkpoint`]).
    ///
    /// L-BFGS and Newton-CG end early when no step lowers the loss any more.
    ///
    /// An interrupted run (see [`Stop`]) leaves the weights of the last step in `vars`.
    ///
    /// With several [`processes`](Trainer::processes), each computes a share of each batch. They start from the weights
    /// of process 0 and end with the same weights. These differ from the weights of a single process by rounding, and
    /// by the statistics of batch normalisation unless [`TrainerOptions::sync_batch_norm`] is set. Process 0 reads and
    /// writes the run folder; the others ignore theirs. If a process fails, the others wait, and the program must end
    /// them.
    ///
    /// On a GPU, a loss that is not finite is noticed up to 50 steps later.
    ///
    /// # Errors
    /// Fails if an option is 0 where at least 1 is needed, a loss or a gradient is not finite, a loss depends on no
    /// parameter, a checkpoint is damaged, incomplete or does not match, another process trains in the run folder, a
    /// file cannot be written, or the task fails.
    ///
    /// L-BFGS and Newton-CG evaluate the loss several times per step. With these methods, it also fails if a batch does
    /// not hold all examples, gradients are clipped, batches depend on each other, the model normalises batches, or
    /// there are several processes. Several processes need parameters of type f32 on the CPU or an NVIDIA GPU.
    pub fn fit(&self, task: &dyn Task, vars: &VarMap, optimizer: &mut Optimizer) -> Result<Report> {
        let mut training = Training::restore(self, task, vars, optimizer)?;
        while !training.is_finished() {
            if !training.epoch()? {
                return Ok(training.report(true));
            }
            if !training.end_epoch()? {
                return Ok(training.report(true));
            }
        }
        if training.state.has_converged {
            let epochs = training.state.history.len();
            self.progress.message(&format!("converged in epoch {epochs}: no step lowers the loss any more"));
        }
        match (training.run, &training.best) {
            (Some(run), _) => {
                if !self.options.keep_checkpoint {
                    checkpoint::save_ended(run, &mut training.state)?;
                }
                load_weights(&run.model(), vars)?;
            }
            (None, Some(best)) => best.restore(vars)?,
            (None, None) => {}
        }
        if let Some(Group { processes, exchange }) = &training.group {
            broadcast(processes.as_ref(), vars, |_| true)?;
            exchange.traffic.describe().iter().for_each(|text| self.progress.message(text));
        }
        Ok(training.report(false))
    }
}

/// Returns the number of steps of an epoch.
///
/// Batch normalisation needs at least two examples. With it, a last batch of one example joins the batch before it.
pub fn steps_per_epoch(examples: usize, batch_size: usize, vars: &VarMap) -> usize {
    let joins = normalises(vars) && batch_size > 1 && examples > batch_size && examples % batch_size == 1;
    examples.div_ceil(batch_size) - usize::from(joins)
}

/// Whether `vars` hold the running averages of batch normalisation.
fn normalises(vars: &VarMap) -> bool {
    let vars = vars.data().lock().unwrap_or_else(PoisonError::into_inner);
    vars.keys().any(|name| BatchNorm::is_buffer(name))
}

/// Checks that the loss is the same function of the parameters in all steps, for full-batch methods.
fn check_full_batch(options: &TrainerOptions, task: &dyn Task, vars: &VarMap) -> Result<()> {
    let why = "the optimizer needs the loss of all training examples several times per step";
    let (found, expected) = (options.batch_size, task.examples());
    ensure!(found >= expected, "batch size: found {found}, expected at least {expected}: {why}");
    ensure!(options.clip == Clip::None, "gradient clipping: expected none: {why}");
    ensure!(!task.in_order(), "the task carries a state from step to step: {why}");
    ensure!(!normalises(vars), "batch normalisation changes its running averages: {why}");
    Ok(())
}

/// Cuts `order` into `steps` batches; the last one may be smaller, or larger by one.
fn batches(order: &[u32], batch_size: usize, steps: usize) -> impl Iterator<Item = &[u32]> {
    let last = batch_size.saturating_mul(steps.saturating_sub(1)).min(order.len());
    order[..last].chunks(batch_size).chain([&order[last..]])
}

/// The processes that train together.
struct Group {
    processes: Arc<dyn Processes>,
    exchange: Exchange,
}

/// A training run in progress.
struct Training<'a> {
    options: &'a TrainerOptions,
    run: Option<&'a Run>,
    progress: &'a dyn Progress,
    stop: &'a Stop,
    task: &'a dyn Task,
    vars: &'a VarMap,
    optimizer: &'a mut Optimizer,
    metric: Metric,
    /// Number of training examples.
    examples: u32,
    steps_per_epoch: usize,
    graph: StepGraph,
    /// None for one process.
    group: Option<Group>,
    state: State,
    /// The best weights, if there is no run folder.
    best: Option<Best>,
    /// The checksum of the matrices before the first epoch.
    initial: Option<String>,
}

impl<'a> Training<'a> {
    /// Checks the options and loads the last checkpoint, if there is one.
    fn restore(
        trainer: &'a Trainer,
        task: &'a dyn Task,
        vars: &'a VarMap,
        optimizer: &'a mut Optimizer,
    ) -> Result<Self> {
        let &Trainer { ref options, run, progress, ref stop, ref processes } = trainer;
        let processes = processes.as_ref().filter(|processes| processes.size() > 1);
        let run = run.filter(|_| processes.is_none_or(|processes| processes.rank() == 0));
        ensure!(options.epochs > 0, "epochs: found 0, expected at least 1");
        ensure!(options.batch_size > 0, "batch size: found 0, expected at least 1");
        ensure!(options.patience != Some(0), "patience: found 0, expected at least 1");
        ensure!(task.examples() > 0, "training examples: found none, expected at least 1");
        let is_empty = vars.data().lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        ensure!(!is_empty, "variables: found none, expected those that the model was built with");
        let examples = u32::try_from(task.examples()).with_context(|| {
            format!("training examples: found {}, expected at most {}", task.examples(), u32::MAX)
        })?;
        if optimizer.is_full_batch() {
            check_full_batch(options, task, vars)?;
            let found = processes.map_or(1, |processes| processes.size());
            ensure!(
                found == 1,
                "found {found} processes, expected one: the optimizer takes all examples in each step"
            );
        }
        let steps_per_epoch = steps_per_epoch(task.examples(), options.batch_size, vars);
        let metric = task.metric();
        run.map_or(Ok(()), Run::lock)?;
        let mut restore = || checkpoint::load(run, processes, vars, optimizer, task, steps_per_epoch);
        let state = match processes {
            Some(processes) => together(processes, restore)?,
            None => restore()?,
        };
        let mut state = state.unwrap_or_default();
        let size = processes.map_or(1, |processes| processes.size());
        if state.step > 0 && state.processes != size {
            let before = state.processes;
            progress.message(&format!(
                "note: {before} processes trained the run so far, and {size} do now: sums are rounded in another order"
            ));
        }
        state.processes = size;
        if let Some(processes) = processes
            && state.step == 0
        {
            broadcast(processes.as_ref(), vars, |_| true)?;
        }
        let group = match processes {
            Some(processes) => {
                Some(Group { processes: processes.clone(), exchange: optimizer.exchange(processes)? })
            }
            None => None,
        };
        // Only a message depends on it.
        let initial = if state.step == 0 && !progress.is_quiet() { matrices_checksum(vars)? } else { None };
        let graph = StepGraph::new(task.is_capturable() && !optimizer.is_full_batch());
        let training = Self {
            options,
            run,
            progress,
            stop,
            task,
            vars,
            optimizer,
            metric,
            examples,
            steps_per_epoch,
            graph,
            group,
            state,
            best: None,
            initial,
        };
        if let Some(run) = run {
            ensure!(
                !training.state.has_ended || training.is_finished(),
                "{}: training has ended after {} and its checkpoint was not kept, so it cannot go on",
                run.dir().display(),
                count(training.state.history.len(), "epoch")
            );
            run.remove_temporary_files();
            run.write_metrics(&training.state.history, metric)?;
        }
        Ok(training)
    }

    fn is_finished(&self) -> bool {
        let &TrainerOptions { epochs, schedule, patience, .. } = self.options;
        self.state.history.len() >= epochs
            || schedule.has_ended(&self.state.plateau)
            || self.state.has_converged
            || patience.is_some_and(|patience| self.state.epochs_since_best() >= patience)
    }

    /// Trains on the remaining batches of the current epoch; returns `false` if interrupted.
    fn epoch(&mut self) -> Result<bool> {
        let &TrainerOptions { epochs, batch_size, seed, .. } = self.options;
        let epoch = self.state.history.len();
        let mut order: Vec<u32> = (0..self.examples).collect();
        // A method that takes all examples in each step needs the same sum of their losses, to the bit.
        if !self.task.in_order() && !self.optimizer.is_full_batch() {
            order.shuffle(&mut rng::stream(seed, &format!("shuffle/epoch {epoch}")));
        }
        self.progress.epoch_started(epoch + 1, epochs, order.len());
        let batches: Vec<&[u32]> =
            batches(&order, batch_size, self.steps_per_epoch).skip(self.state.steps_in_epoch).collect();
        let mut used = order.len() - batches.iter().map(|batch| batch.len()).sum::<usize>();
        let mut own = batches.clone();
        if let Some(Group { processes, .. }) = &self.group {
            let (rank, size) = (processes.rank(), processes.size());
            own.iter_mut().for_each(|batch| *batch = &batch[share(batch.len(), rank, size)]);
            own.retain(|batch| !batch.is_empty());
        }
        self.task.prefetch(&own);
        let State { loss_sum, norm_sum, largest_norm, .. } = self.state;
        let mut ledger = Ledger::new(Totals::new(loss_sum, norm_sum, largest_norm));
        let last = batches.len();
        for (number, batch) in (1..).zip(batches) {
            let start = Instant::now();
            let stops = self.step(batch, epoch, &mut ledger)?;
            used += batch.len();
            let is_due = |every| self.state.step.is_multiple_of(every);
            let is_due = self.options.checkpoint_every.is_some_and(is_due);
            let is_marked = is_due || number == last || number.is_multiple_of(READ_EVERY);
            // A step on a GPU continues while the host prepares the next one.
            let reads = is_marked || !ledger.waits() || self.stop.is_requested();
            let loss = if reads { Some(self.read(&ledger)?) } else { None };
            self.state.seconds += start.elapsed().as_secs_f64();
            if let Some(loss) = loss {
                self.progress.step_done(used, loss);
            }
            let interrupted = match self.group {
                Some(_) => stops,
                // The display may just have requested it.
                None => reads && self.stop.is_requested(),
            };
            if is_due || interrupted {
                self.save_checkpoint()?;
            }
            if interrupted {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Trains on one batch, and records its loss and its gradient norm in `ledger`.
    ///
    /// Returns whether a process asks to stop.
    fn step(&mut self, batch: &[u32], epoch: usize, ledger: &mut Ledger) -> Result<bool> {
        let rate = self.learning_rate(self.state.step);
        let mode = Mode::train(self.options.seed, epoch, self.state.step);
        let number = self.state.step + 1;
        let check = |loss: Tensor| check_loss(loss, number);
        let (clip, step) = (self.options.clip, (number, batch.len()));
        let mut stops = self.stop.is_requested();
        if let Some(Group { processes, exchange }) = &mut self.group {
            let part = part_of_loss(self.task, batch, mode, processes, self.options.sync_batch_norm)?;
            let part = part.map(|(loss, factor)| anyhow::Ok((check(loss)?, factor))).transpose()?;
            stops = self.optimizer.shared_step(part, stops, rate, clip, step, (exchange, ledger))?;
        } else if self.optimizer.is_full_batch() {
            // The optimizer returns candle's errors, which can't hold another one with its causes.
            let causes = |error: anyhow::Error| candle_core::Error::msg(format!("{error:#}"));
            let loss = || self.task.loss(batch, mode).and_then(check).map_err(causes);
            self.state.has_converged = self.optimizer.recorded_step_with(loss, rate, clip, step, ledger)?;
        } else {
            self.graph.run(|| {
                let loss = check(self.task.loss(batch, mode)?)?;
                self.optimizer.recorded_step(&loss, rate, clip, step, ledger)?;
                Ok(loss)
            })?;
        }
        self.state.step = number;
        self.state.steps_in_epoch += 1;
        Ok(stops)
    }

    /// Reads the sums of the epoch so far, and returns the loss of the last step.
    fn read(&mut self, ledger: &Ledger) -> Result<f64> {
        let totals = ledger.read()?;
        if let Some(bad) = totals.bad_step() {
            let (what, value) =
                if bad.loss.is_finite() { ("gradient norm", bad.norm) } else { ("loss", bad.loss) };
            bail!("the {what} of step {} is {value}: {}", bad.number, self.advice());
        }
        let state = &mut self.state;
        (state.loss_sum, state.norm_sum) = (totals.loss_sum, totals.norm_sum);
        state.largest_norm = totals.largest_norm;
        Ok(totals.loss)
    }

    /// Validates, keeps the best weights and records the epoch; returns `false` if interrupted.
    fn end_epoch(&mut self) -> Result<bool> {
        let validation = self.stop.interrupting(|| match &self.group {
            Some(Group { processes, .. }) => {
                // The processes may have different averages.
                broadcast(processes.as_ref(), self.vars, BatchNorm::is_buffer)?;
                together(processes, || no_grad(|| self.task.validate()))
            }
            None => no_grad(|| self.task.validate()),
        });
        let Some(validation) = validation.transpose()? else {
            // The run resumes with this validation.
            self.save_checkpoint()?;
            return Ok(false);
        };
        let record = self.record(validation);
        if !validation.loss.is_finite() {
            bail!("the validation loss of epoch {} is {}: {}", record.epoch, validation.loss, self.advice());
        }
        self.progress.epoch_finished(&record, self.options.epochs, self.metric);
        if let Some(initial) = self.initial.take()
            && Some(initial) == matrices_checksum(self.vars)?
        {
            let rate = self.options.learning_rate;
            let text =
                format!("note: the first epoch, with a learning rate of {rate:e}, has changed no weight");
            self.progress.message(&text);
        }
        if !self.progress.is_quiet()
            && let Some(sample) = self.task.sample()?
        {
            self.progress.message(&sample);
        }
        let loss = -self.metric.goodness(validation.metric);
        self.options.schedule.observe(&mut self.state.plateau, loss);
        if self.state.best().is_none_or(|best| validation.beats(&best.validation, self.metric)) {
            self.state.best_epoch = record.epoch;
            // Save the weights before the checkpoint that refers to them: after a crash in between, only the epoch is
            // repeated.
            match (self.run, &self.group) {
                (Some(run), _) => take_turns(|| save_best(run, self.vars))?,
                // Process 0 has the weights.
                (None, Some(group)) if group.processes.rank() > 0 => {}
                (None, _) => self.best = Some(Best::new(self.vars)?),
            }
        }
        self.state.finish_epoch(record);
        self.save_checkpoint()?;
        self.run.map_or(Ok(()), |run| run.write_metrics(&self.state.history, self.metric))?;
        Ok(true)
    }

    /// Advice for losses and gradients that are not finite.
    fn advice(&self) -> String {
        self.run.map_or_else(|| "try a lower learning rate".to_string(), checkpoint::last_good)
    }

    fn record(&self, validation: Score) -> Epoch {
        let State { step, steps_in_epoch, loss_sum, norm_sum, largest_norm, seconds, .. } = self.state;
        let examples = f64::from(self.examples);
        Epoch {
            epoch: self.state.history.len() + 1,
            step,
            train_loss: loss_sum / examples,
            validation,
            gradient_norm: norm_sum / steps_in_epoch as f64,
            largest_gradient_norm: largest_norm,
            learning_rate: self.learning_rate(step.saturating_sub(1)),
            seconds,
            examples_per_second: examples / seconds,
        }
    }

    fn learning_rate(&self, step: u64) -> f64 {
        let &TrainerOptions { epochs, learning_rate, schedule, .. } = self.options;
        let total_steps = epochs.saturating_mul(self.steps_per_epoch);
        schedule.learning_rate(learning_rate, step as usize, total_steps, &self.state.plateau)
    }

    fn save_checkpoint(&self) -> Result<()> {
        let task_state = match &self.group {
            Some(group) => together(&group.processes, || self.task.state())?,
            None if self.run.is_none() => return Ok(()),
            None => self.task.state()?,
        };
        match self.run {
            Some(run) => {
                let save = || checkpoint::save(run, self.vars, self.optimizer, task_state, &self.state);
                take_turns(save)
            }
            None => Ok(()),
        }
    }

    fn report(self, interrupted: bool) -> Report {
        Report {
            metric: self.metric,
            epochs: self.state.history,
            best_epoch: self.state.best_epoch,
            interrupted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::digits;
    use crate::models::mlp::{self, Mlp};
    use crate::nn::{Activation, Cost, InitScheme, batch_norm, seeded_var_builder};
    use crate::optim::Sgd;
    use crate::processes::threads;
    use crate::train::ImageClassification;
    use candle_core::{DType, Device};
    use candle_nn::VarBuilder;

    #[test]
    fn a_last_batch_of_one_joins_the_batch_before_it() {
        let order: Vec<u32> = (0..9).collect();
        let sizes = |steps| batches(&order, 4, steps).map(<[u32]>::len).collect::<Vec<_>>();
        assert_eq!((sizes(3), sizes(2)), (vec![4, 4, 1], vec![4, 5]));
        let vars = VarMap::new();
        assert_eq!(steps_per_epoch(9, 4, &vars), 3);
        let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
        batch_norm(1, 1e-5, vb).unwrap();
        let steps = [9, 1, 8, 10].map(|examples| steps_per_epoch(examples, 4, &vars));
        assert_eq!((steps, steps_per_epoch(9, 1, &vars)), ([2, 1, 2, 3], 9));
    }

    #[test]
    fn processes_start_from_the_weights_of_process_0() {
        let (images, _) = digits(40, 1, 0).unwrap();
        let config = mlp::Config {
            sizes: vec![784, 10],
            activation: Activation::Relu,
            init: InitScheme::PyTorch,
            dropout: 0.0,
        };
        let train = |seed: u64, processes: Option<Arc<dyn Processes>>| -> Vec<f32> {
            let vars = VarMap::new();
            let vb = seeded_var_builder(&vars, seed, DType::F32, &Device::Cpu);
            let model = Mlp::new(&config, vb).unwrap();
            let training: Vec<u32> = (0..40).collect();
            let task = ImageClassification {
                model: &model,
                cost: Cost::SoftmaxCrossEntropy,
                images: &images,
                training: &training,
                validation: &training[..8],
                augmentation: None,
                label_smoothing: 0.0,
                device: &Device::Cpu,
            };
            let mut optimizer = Optimizer::new(Sgd::default(), &vars).unwrap();
            let options = TrainerOptions { epochs: 1, ..TrainerOptions::default() };
            let trainer = Trainer { options, processes, ..Trainer::default() };
            trainer.fit(&task, &vars, &mut optimizer).unwrap();
            let weight = vars.all_vars().into_iter().find(|var| var.rank() == 2).unwrap();
            weight.flatten_all().unwrap().to_vec1().unwrap()
        };
        let expected = train(0, None);
        let together: Vec<Vec<f32>> = std::thread::scope(|scope| {
            let run = |processes: Arc<dyn Processes>| {
                scope.spawn(|| train(processes.rank() as u64, Some(processes)))
            };
            let running: Vec<_> = threads(2).into_iter().map(run).collect();
            running.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for found in together {
            assert!(found.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() < 1e-6));
        }
    }
}
