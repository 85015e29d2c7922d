//! Gradients that several processes sum while the backward pass goes on.
//!
//! A thread of its own packs gradients into buckets and sums each bucket over all processes as soon as its gradients are
//! complete. All processes sum the same buckets in the same order: the order in which gradients were complete in the first
//! step. What does not fit the buckets, such as every gradient of the first step, follows when the backward pass is over.
//! Each element of a gradient is one sum in the order of the ranks either way, so the bits do not depend on the buckets.

mod buckets;
mod message;

use self::buckets::Buckets;
use self::message::{Message, Place};
use crate::ops::{Finished, RowGradients};
use crate::processes::Processes;
use anyhow::{Context, Result};
use candle_core::{Shape, Tensor, TensorId, Var};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Elements of a bucket. A larger gradient has a bucket of its own.
const BUCKET: usize = 1 << 20;

/// What a process contributes to a step, beside the gradients that were complete early.
#[derive(Default)]
pub(super) struct Local {
    /// The gradient of each parameter, if it has one; empty if none has.
    pub gradients: Vec<Option<Tensor>>,
    /// The gradient of rows of each parameter, if it has one; empty if none has.
    pub rows: Vec<Option<RowGradients>>,
    /// Other values, the same number on each process.
    pub values: Vec<f64>,
}

/// What all processes together have contributed to a step.
pub(super) struct Sums {
    pub gradients: Vec<Option<Tensor>>,
    pub rows: Vec<Option<RowGradients>>,
    /// The values of each process, in the order of the ranks.
    pub values: Vec<Vec<f64>>,
}

/// How much the processes have exchanged, and how long this one has waited for it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Traffic {
    pub steps: u64,
    /// Bytes that this process has sent.
    pub bytes: u64,
    /// Time from the end of the backward passes to the sums. On a GPU the host is done with a backward pass before the GPU.
    pub waited: Duration,
}

impl Traffic {
    /// Returns the means per step in words.
    pub(crate) fn describe(&self) -> Option<String> {
        let per_step = |total: f64| total / self.steps as f64;
        (self.steps > 0).then(|| {
            format!(
                "communication: {:.3} MB sent and {:.2} ms waited per step",
                per_step(self.bytes as f64) / 1e6,
                per_step(self.waited.as_secs_f64()) * 1e3
            )
        })
    }
}

/// Sums the gradients of parameters over all processes.
pub(crate) struct Exchange {
    /// `None` once the exchange ends.
    jobs: Option<Sender<Job>>,
    sums: Receiver<Result<(Sums, u64)>>,
    worker: Option<JoinHandle<()>>,
    pub(crate) traffic: Traffic,
}

enum Job {
    /// A step begins, in which each gradient is multiplied by this factor.
    Begin(f64),
    /// A gradient that is complete, or what candle's own operations contribute to it.
    Gradient(TensorId, Tensor),
    End(Local),
}

impl Exchange {
    /// Every process calls this, with the same parameters.
    ///
    /// # Errors
    /// Fails if the parameters are not all of type f32 on the CPU, or on a GPU with kernels of this crate, or if the
    /// processes cannot be reached.
    pub(super) fn new<'a>(
        processes: &Arc<dyn Processes>,
        parameters: impl Iterator<Item = (&'a str, &'a Var)>,
    ) -> Result<Self> {
        let parameters: Vec<_> = parameters.collect();
        let buckets = Buckets::new(processes.for_another_thread()?, &parameters)?;
        let indices = parameters.iter().zip(0..).map(|((_, var), index)| (var.id(), index)).collect();
        let slots = parameters.iter().map(|(_, var)| Slot::new(var.shape().clone())).collect();
        let mut worker =
            Worker { buckets, indices, slots, factor: 1.0, plan: vec![], done: 0, arrived: vec![], bytes: 0 };
        let (jobs, inbox) = channel();
        let (outbox, sums) = channel();
        let worker = std::thread::Builder::new()
            .name("gradients".into())
            .spawn(move || worker.run(&inbox, &outbox))
            .context("cannot start the thread that exchanges gradients")?;
        Ok(Self { jobs: Some(jobs), sums, worker: Some(worker), traffic: Traffic::default() })
    }

    /// Begins a step whose gradients are multiplied by `factor`.
    ///
    /// Returns the function that receives the gradients that are complete early.
    pub(super) fn begin(&self, factor: f64) -> Finished {
        let jobs = self.jobs.clone();
        let send = move |job: Job| {
            // If the worker has ended, `complete` finds out why.
            let _ = jobs.as_ref().map(|jobs| jobs.send(job));
        };
        send(Job::Begin(factor));
        Box::new(move |id, gradient| send(Job::Gradient(id, gradient.clone())))
    }

    /// Ends the step, and waits for the sums.
    ///
    /// # Errors
    /// Fails if a process has ended, or cannot be reached.
    pub(super) fn complete(&mut self, local: Local) -> Result<Sums> {
        let start = Instant::now();
        let _ = self.jobs.as_ref().map(|jobs| jobs.send(Job::End(local)));
        let (sums, bytes) = self.sums.recv().context("the thread that exchanges gradients has ended")??;
        self.traffic.steps += 1;
        self.traffic.bytes += bytes;
        self.traffic.waited += start.elapsed();
        Ok(sums)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.jobs = None;
        let _ = self.worker.take().map(JoinHandle::join);
    }
}

/// A parameter.
struct Slot {
    shape: Shape,
    /// Its gradient in this step.
    gradient: Option<Tensor>,
    /// What candle's own operations contribute, when the gradient may have been sent already.
    rest: Option<Tensor>,
    /// Whether it was ever so: the gradient then counts as complete at the end of a backward pass only.
    is_late: bool,
    /// Whether it has a place in the buckets.
    is_planned: bool,
    /// The sum over all processes.
    sum: Option<Tensor>,
}

impl Slot {
    fn new(shape: Shape) -> Self {
        Self { shape, gradient: None, rest: None, is_late: false, is_planned: false, sum: None }
    }
}

/// The state of the thread.
struct Worker {
    buckets: Buckets,
    indices: HashMap<TensorId, usize>,
    slots: Vec<Slot>,
    factor: f32,
    /// Indices of the parameters in each bucket.
    plan: Vec<Vec<usize>>,
    /// Number of buckets that have been summed in this step.
    done: usize,
    /// Indices of the parameters whose gradients have arrived in this step, in that order.
    arrived: Vec<usize>,
    /// Bytes sent in this step.
    bytes: u64,
}

impl Worker {
    fn run(&mut self, jobs: &Receiver<Job>, sums: &Sender<Result<(Sums, u64)>>) {
        for job in jobs {
            let result = match job {
                Job::Begin(factor) => {
                    self.begin(factor);
                    Ok(None)
                }
                Job::Gradient(id, gradient) => self.receive(id, gradient).map(|()| None),
                Job::End(local) => self.end(local).map(|sums| Some((sums, self.bytes))),
            };
            let has_failed = result.is_err();
            // If nobody waits for the sums, the exchange was dropped.
            let _ = result.transpose().map(|result| sums.send(result));
            if has_failed {
                return;
            }
        }
    }

    fn begin(&mut self, factor: f64) {
        (self.factor, self.done, self.bytes) = (factor as f32, 0, 0);
        self.arrived.clear();
        for slot in &mut self.slots {
            (slot.gradient, slot.rest, slot.sum) = (None, None, None);
        }
    }

    /// Takes a gradient, and sums the buckets that are complete.
    fn receive(&mut self, id: TensorId, gradient: Tensor) -> Result<()> {
        let Some(&index) = self.indices.get(&id) else { return Ok(()) };
        let slot = &mut self.slots[index];
        if slot.is_late {
            return Ok(());
        }
        match slot.gradient {
            Some(_) => slot.rest = Some(gradient),
            None => {
                slot.gradient = Some(gradient);
                self.arrived.push(index);
            }
        }
        while let Some(bucket) = self.plan.get(self.done)
            && bucket.iter().all(|&index| self.slots[index].gradient.is_some())
        {
            let bucket = bucket.clone();
            self.sum_buckets(&[bucket], |slot| slot.gradient.as_ref(), true)?;
            self.done += 1;
        }
        Ok(())
    }

    fn end(&mut self, local: Local) -> Result<Sums> {
        for (index, gradient) in local.gradients.into_iter().enumerate() {
            let slot = &mut self.slots[index];
            if slot.gradient.is_none() && gradient.is_some() {
                self.arrived.push(index);
                slot.gradient = gradient;
            } else if slot.rest.is_some() && !slot.is_planned {
                slot.gradient = gradient;
            }
        }
        let left = self.plan[self.done..].to_vec();
        self.sum_buckets(&left, |slot| slot.gradient.as_ref(), false)?;
        let mut messages = self.gather(local.values, &local.rows)?;
        self.sum_others(&messages)?;
        self.buckets.wait()?;
        let gradients = self.slots.iter_mut().map(|slot| slot.sum.take()).collect();
        let columns: Vec<usize> =
            self.slots.iter().map(|slot| slot.shape.dims().last().copied().unwrap_or(1)).collect();
        let rows = message::sum_rows(&mut messages, &columns)?;
        let rows = rows.into_iter().map(|rows| rows.map(|rows| self.buckets.receive(rows)).transpose());
        let rows = rows.collect::<Result<_>>()?;
        let values = messages.into_iter().map(|message| message.values).collect();
        Ok(Sums { gradients, rows, values })
    }

    /// Sums what `part` returns for the parameters in each of `buckets`, and adds it to their sums.
    fn sum_buckets(
        &mut self,
        buckets: &[Vec<usize>],
        part: impl Fn(&Slot) -> Option<&Tensor>,
        in_background: bool,
    ) -> Result<()> {
        for bucket in buckets {
            let parts: Vec<_> = bucket
                .iter()
                .map(|&index| (part(&self.slots[index]), self.slots[index].shape.elem_count()))
                .collect();
            let (sums, bytes) = self.buckets.sum(&parts, self.factor, in_background)?;
            self.bytes += bytes;
            let mut start = 0;
            for &index in bucket {
                let slot = &mut self.slots[index];
                let elements = slot.shape.elem_count();
                let sum = sums.narrow(0, start, elements)?.reshape(&slot.shape)?;
                slot.sum = Some(match slot.sum.take() {
                    Some(before) => (before + sum)?,
                    None => sum,
                });
                start += elements;
            }
        }
        Ok(())
    }

    /// Tells all processes which gradients this one has, and the rest.
    fn gather(&mut self, values: Vec<f64>, rows: &[Option<RowGradients>]) -> Result<Vec<Message>> {
        let mut places = vec![None; self.slots.len()];
        for (place, &index) in (1..).zip(&self.arrived) {
            places[index] = Some(Place { place, has_rest: self.slots[index].rest.is_some() });
        }
        let bytes = Message::new(values, places, rows, self.factor)?.to_bytes();
        let processes = &self.buckets.processes;
        self.bytes += (bytes.len() * (processes.size() - 1)) as u64;
        processes.gather(&bytes)?.iter().map(|bytes| Message::from_bytes(bytes)).collect()
    }

    /// Sums the gradients that are not in the buckets, and puts them into the buckets of the next step.
    ///
    /// A parameter that has a gradient on no process gets no sum.
    fn sum_others(&mut self, messages: &[Message]) -> Result<()> {
        let places = |index: usize| messages.iter().filter_map(move |message| message.places[index]);
        let has_rest = |index: usize| places(index).any(|place| place.has_rest);
        let (mut new, mut sent) = (vec![], vec![]);
        for (index, slot) in self.slots.iter_mut().enumerate() {
            match places(index).next() {
                None => slot.sum = None,
                Some(Place { place, .. }) if !slot.is_planned => new.push((place, index)),
                Some(Place { place, .. }) if has_rest(index) => sent.push((place, index)),
                Some(_) => {}
            }
        }
        let [new, sent] = [new, sent].map(|mut others| {
            others.sort_unstable();
            others.into_iter().map(|(_, index)| index).collect::<Vec<usize>>()
        });
        if new.is_empty() && sent.is_empty() {
            return Ok(());
        }
        self.sum_buckets(&self.cut(&new), |slot| slot.gradient.as_ref(), false)?;
        self.sum_buckets(&self.cut(&sent), |slot| slot.rest.as_ref(), false)?;
        for &index in new.iter().chain(&sent) {
            self.slots[index].is_planned = true;
            self.slots[index].is_late |= has_rest(index);
        }
        let mut order = [self.plan.concat(), new].concat();
        order.sort_by_key(|&index| self.slots[index].is_late);
        self.plan = self.cut(&order);
        Ok(())
    }

    /// Cuts a list of parameters into buckets.
    fn cut(&self, order: &[usize]) -> Vec<Vec<usize>> {
        let mut buckets: Vec<Vec<usize>> = vec![];
        let mut room = 0;
        for &index in order {
            let elements = self.slots[index].shape.elem_count();
            match buckets.last_mut() {
                Some(bucket) if elements <= room => bucket.push(index),
                _ => {
                    buckets.push(vec![index]);
                    room = BUCKET;
                }
            }
            room = room.saturating_sub(elements);
        }
        buckets
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::RowNumbers;
    use crate::processes::threads;
    use candle_core::{DType, Device};

    const SHAPES: [&[usize]; 5] = [&[3, 2], &[BUCKET + 7], &[5], &[2, 2], &[1]];
    const SIZE: usize = 3;

    /// The gradient of a parameter on a process, before it is scaled.
    fn gradient(step: usize, rank: usize, index: usize) -> Tensor {
        let value = |i: usize| ((step * 31 + rank * 17 + index * 7 + i) % 101) as f32 * 0.37 - 9.0;
        let elements = SHAPES[index].iter().product();
        Tensor::from_vec((0..elements).map(value).collect(), SHAPES[index], &Device::Cpu).unwrap()
    }

    /// Which processes have a gradient of a parameter in a step.
    fn has(step: usize, rank: usize, index: usize) -> bool {
        match index {
            // Only one process, and not in the first step.
            3 => step > 0 && rank == 1,
            4 => false,
            _ => true,
        }
    }

    /// Sums the gradients of three steps on each of `SIZE` threads; returns those of the last step, and its row gradients.
    fn run(rank: usize, processes: &Arc<dyn Processes>) -> Vec<Sums> {
        let vars: Vec<Var> =
            SHAPES.iter().map(|&shape| Var::zeros(shape, DType::F32, &Device::Cpu).unwrap()).collect();
        let mut exchange = Exchange::new(processes, vars.iter().map(|var| ("w", var))).unwrap();
        let step = |step: usize| {
            let mut finished = exchange.begin([0.5, 0.25, 0.25][rank]);
            // The order of completion differs between the processes, and parameter 2 is complete only at the end.
            let order = if rank == 0 { [0, 1, 3] } else { [3, 1, 0] };
            for index in order.into_iter().filter(|&index| has(step, rank, index)) {
                finished(vars[index].id(), &gradient(step, rank, index));
            }
            let mut local = Local { values: vec![rank as f64], ..Local::default() };
            for index in 0..SHAPES.len() {
                let mut whole = has(step, rank, index).then(|| gradient(step, rank, index));
                if index == 0 && rank == 2 {
                    // Candle's own operations contribute another gradient.
                    finished(vars[0].id(), &gradient(step + 1, rank, 0));
                    whole = Some((whole.unwrap() + gradient(step + 1, rank, 0)).unwrap());
                }
                local.gradients.push(whole);
                local.rows.push((index == 3 && rank != 1).then(|| RowGradients {
                    rows: RowNumbers::Host(vec![0]),
                    values: Tensor::new(&[[1f32, rank as f32]], &Device::Cpu).unwrap(),
                }));
            }
            exchange.complete(local).unwrap()
        };
        (0..3).map(step).collect()
    }

    #[test]
    fn gradients_add_up_in_the_order_of_the_ranks_however_they_arrive() -> Result<()> {
        let results: Vec<Vec<Sums>> = std::thread::scope(|scope| {
            let run = |(rank, processes)| scope.spawn(move || run(rank, &processes));
            let threads: Vec<_> = threads(SIZE).into_iter().enumerate().map(run).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (step, sums) in results.iter().flat_map(|sums| sums.iter().enumerate()) {
            for index in 0..SHAPES.len() {
                let mut expected: Option<Tensor> = None;
                for rank in (0..SIZE).filter(|&rank| has(step, rank, index)) {
                    let mut part = gradient(step, rank, index);
                    if index == 0 && rank == 2 {
                        part = (part + gradient(step + 1, rank, 0))?;
                    }
                    let part = (part * [0.5, 0.25, 0.25][rank])?;
                    expected = Some(match expected {
                        Some(before) => (before + part)?,
                        None => part,
                    });
                }
                let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
                let found = sums.gradients[index].as_ref().map(values).transpose()?;
                assert!(
                    found == expected.as_ref().map(values).transpose()?,
                    "step {step}, parameter {index}"
                );
            }
            let rows = sums.rows[3].as_ref().context("no rows")?;
            assert_eq!(message::on_host(rows)?, (vec![0], vec![0.75, 0.5]));
            assert_eq!(sums.values, [[0.0], [1.0], [2.0]]);
        }
        Ok(())
    }
}
