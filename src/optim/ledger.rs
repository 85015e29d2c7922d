//! Losses and gradient norms of many steps, kept where the parameters are.

use super::exchange::{Exchange, Local, Sums};
use super::gpu;
use super::gpu::Recorded;
use super::optimizer::Optimizer;
use super::parameter::Parameter;
use super::step::{Clip, Step};
use crate::kernels::cuda::Buffer;
use crate::ops;
use crate::ops::gpu::Gpu;
use crate::processes::Processes;
use candle_core::{DType, Result, Tensor};
use std::sync::Arc;

/// Sums over training steps.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Totals {
    /// Sum of the losses, each times its number of examples.
    pub loss_sum: f64,
    pub norm_sum: f64,
    pub largest_norm: f64,
    /// Loss of the last step.
    pub loss: f64,
    /// Gradient norm of the last step.
    norm: f64,
    bad_loss: f64,
    bad_norm: f64,
    /// Number of the first step whose loss or norm was not finite, or 0.
    bad_step: f64,
}

/// The first step whose loss or gradient norm was not finite.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct BadStep {
    pub number: u64,
    pub loss: f64,
    /// Unknown if the loss was not finite, so that there was no backward pass.
    pub norm: f64,
}

impl Totals {
    /// The sums after the first steps of an epoch, such as those before a resume.
    pub fn new(loss_sum: f64, norm_sum: f64, largest_norm: f64) -> Self {
        Self { loss_sum, norm_sum, largest_norm, ..Self::default() }
    }

    pub fn bad_step(&self) -> Option<BadStep> {
        let bad = BadStep { number: self.bad_step as u64, loss: self.bad_loss, norm: self.bad_norm };
        (self.bad_step != 0.).then_some(bad)
    }

    fn add(&mut self, number: u64, examples: usize, loss: f64, norm: f64) {
        (self.loss, self.norm) = (loss, norm);
        self.loss_sum += loss * examples as f64;
        self.norm_sum += norm;
        self.largest_norm = self.largest_norm.max(norm);
        if self.bad_step == 0. && !(loss.is_finite() && norm.is_finite()) {
            (self.bad_step, self.bad_loss, self.bad_norm) = (number as f64, loss, norm);
        }
    }

    /// The layout of `Record` in `optimizer.cu`.
    fn to_record(self) -> [f64; 8] {
        let Self { loss_sum, norm_sum, largest_norm, loss, norm, bad_loss, bad_norm, bad_step } = self;
        [loss_sum, norm_sum, largest_norm, loss, norm, bad_loss, bad_norm, bad_step]
    }

    fn from_record(record: [f64; 8]) -> Self {
        let [loss_sum, norm_sum, largest_norm, loss, norm, bad_loss, bad_norm, bad_step] = record;
        Self { loss_sum, norm_sum, largest_norm, loss, norm, bad_loss, bad_norm, bad_step }
    }
}

/// [`Totals`] that steps add to without waiting for the GPU.
pub(crate) struct Ledger {
    totals: Totals,
    on_gpu: Option<(Gpu, Buffer<f64>)>,
}

impl Ledger {
    pub fn new(totals: Totals) -> Self {
        Self { totals, on_gpu: None }
    }

    /// Whether [`read`](Self::read) waits for a GPU.
    pub fn waits(&self) -> bool {
        self.on_gpu.is_some()
    }

    /// Returns the totals of all steps so far.
    pub fn read(&self) -> Result<Totals> {
        let Some((gpu, record)) = &self.on_gpu else { return Ok(self.totals) };
        // SAFETY: the record has eight numbers, which the kernels write.
        let numbers = unsafe { gpu.download(record.pointer(), 8)? };
        Ok(Totals::from_record(std::array::from_fn(|i| numbers[i])))
    }
}

impl Optimizer {
    /// Begins to exchange gradients with `processes`, all of which make this call.
    ///
    /// # Errors
    /// Fails if the parameters are not all of type f32 on the CPU or on one NVIDIA GPU, or the processes cannot be reached.
    pub(crate) fn exchange(&self, processes: &Arc<dyn Processes>) -> anyhow::Result<Exchange> {
        Exchange::new(processes, self.parameters.iter().map(|parameter| (&*parameter.name, &parameter.var)))
    }

    /// Takes a step like [`recorded_step`](Self::recorded_step) together with other processes.
    ///
    /// `part` holds the mean loss of this process's share of the batch and a factor, or `None` for an empty share. The
    /// losses times their factors add up to the loss of the batch. Returns whether a process has set `stops`.
    ///
    /// Every process records the loss of the whole batch, and updates the parameters with the sum of all gradients.
    pub(crate) fn shared_step(
        &mut self,
        part: Option<(Tensor, f64)>,
        stops: bool,
        learning_rate: f64,
        clip: Clip,
        (number, examples): (u64, usize),
        (exchange, ledger): (&mut Exchange, &mut Ledger),
    ) -> anyhow::Result<bool> {
        let finished = exchange.begin(part.as_ref().map_or(0.0, |(_, factor)| *factor));
        let (mut local, mut value) = (Local::default(), 0.0);
        if let Some((loss, factor)) = &part {
            let (grads, mut rows) = ops::backward_with(loss, self.tables(), Some(finished))?;
            // A GPU has begun the backward pass before this waits for it.
            value = loss.to_dtype(DType::F64)?.to_scalar::<f64>()? * factor;
            for parameter in &self.parameters {
                local.gradients.push(grads.get(&parameter.var).cloned());
                local.rows.push(rows.remove(&parameter.var.id()));
            }
        }
        local.values = vec![value, f64::from(u8::from(stops))];
        let Sums { gradients, rows, values } = exchange.complete(local)?;
        let [loss, stops] = [0, 1].map(|index| values.iter().map(|values| values[index]).sum::<f64>());
        let norm = match loss.is_finite() {
            true => {
                let gradient = |((parameter, whole), rows): ((&Parameter, Option<Tensor>), _)| {
                    parameter.gradient(whole.as_ref(), rows)
                };
                let gradients = self.parameters.iter().zip(gradients).zip(rows).map(gradient);
                let gradients = gradients.collect::<Result<Vec<_>>>()?;
                self.apply(gradients, learning_rate, clip, None)?.read()?
            }
            false => f64::NAN,
        };
        ledger.totals.add(number, examples, loss, norm);
        Ok(stops > 0.0)
    }

    /// Takes a step like [`backward_step`](Self::backward_step), and records loss and gradient norm.
    ///
    /// `ledger` receives both.
    ///
    /// `loss` is the mean over `examples` examples; `number` counts the steps from 1.
    ///
    /// If the loss is not finite, parameters on the CPU keep their values. On a GPU this is not known before the next
    /// [`Ledger::read`].
    pub(crate) fn recorded_step(
        &mut self,
        loss: &Tensor,
        learning_rate: f64,
        clip: Clip,
        (number, examples): (u64, usize),
        ledger: &mut Ledger,
    ) -> Result<()> {
        if let Some(gpu) = gpu::of(self.parameters.iter()) {
            let record = match &ledger.on_gpu {
                Some((_, record)) => record.pointer(),
                None => {
                    let record = gpu.upload(&ledger.totals.to_record())?;
                    ledger.on_gpu.insert((gpu, record)).1.pointer()
                }
            };
            let (grads, rows) = self.gradients(loss)?;
            let recorded = Recorded { record, loss: &loss.detach(), number, examples };
            return self.update(&grads, rows, learning_rate, clip, Some(recorded)).map(|_| ());
        }
        self.recorded_step_with(|| Ok(loss.clone()), learning_rate, clip, (number, examples), ledger)
            .map(|_| ())
    }

    /// Takes a step like [`step_with`](Self::step_with), and records loss and gradient norm in `ledger`.
    ///
    /// Returns [`Step::converged`].
    pub(crate) fn recorded_step_with(
        &mut self,
        loss: impl FnMut() -> Result<Tensor>,
        learning_rate: f64,
        clip: Clip,
        (number, examples): (u64, usize),
        ledger: &mut Ledger,
    ) -> Result<bool> {
        let Step { loss, gradient_norm, converged, .. } = self.step_with(loss, learning_rate, clip)?;
        ledger.totals.add(number, examples, loss, gradient_norm);
        Ok(converged)
    }
}
