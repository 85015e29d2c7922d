//! What one of several processes computes of a batch and of an evaluation.

use super::task::Task;
use crate::nn::{BatchNorm, Mode, Share};
use crate::processes::{self, Processes, share, together};
use anyhow::{Context, Result};
use candle_core::{Device, Tensor, Var};
use candle_nn::VarMap;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, PoisonError};

/// Returns the mean loss of this process's share of `batch`, with its graph, and the fraction of [`Task::weight`] in the share.
///
/// The products of both, over all processes, add up to the mean loss of the batch, and so do the gradients.
///
/// `None` if the share is empty, which happens if the batch has fewer examples than there are processes: process 0 then has
/// all of them, see [`share`]. The process adds zero to the loss and to all gradients.
///
/// With `synchronised`, batch normalisation uses the statistics of the whole batch, and the call and the backward pass are
/// collective. Without, each process uses the statistics of its share. Either way the running averages of the processes
/// may differ until [`share_averages`] makes them equal.
///
/// # Errors
/// Fails if the loss cannot be computed, or a process has ended.
pub(super) fn part_of_loss(
    task: &dyn Task,
    batch: &[u32],
    mode: Mode,
    processes: &Arc<dyn Processes>,
    synchronised: bool,
) -> Result<Option<(Tensor, f64)>> {
    let own = share(batch.len(), processes.rank(), processes.size());
    let (Mode::Train { seed, epoch, step, .. }, false) = (mode, own.len() == batch.len()) else {
        return Ok(Some((task.loss(batch, mode)?, 1.0)));
    };
    if own.is_empty() {
        return Ok(None);
    }
    let share = Some(Share { start: own.start, len: own.len(), batch: batch.len() });
    let loss = || task.loss_of_share(batch, Mode::Train { seed, epoch, step, share });
    let loss = if synchronised { together(processes, loss)? } else { loss()? };
    let fraction = task.weight(&batch[own]) / task.weight(batch);
    Ok(Some((loss, fraction)))
}

/// Gives the running averages of batch normalisation that process 0 has to all processes.
///
/// Before a validation, this makes all processes evaluate the same model.
///
/// # Errors
/// Fails if a process has ended, or has other variables.
pub(super) fn share_averages(vars: &VarMap, processes: &Arc<dyn Processes>) -> Result<()> {
    let vars = vars.data().lock().unwrap_or_else(PoisonError::into_inner);
    let averages: BTreeMap<&String, &Var> =
        vars.iter().filter(|(name, _)| BatchNorm::BUFFERS.iter().any(|end| name.ends_with(end))).collect();
    if averages.is_empty() {
        return Ok(());
    }
    let own = match processes.rank() {
        0 => {
            safetensors::serialize(averages.iter().map(|(name, var)| (name, var.as_tensor().clone())), None)?
        }
        _ => vec![],
    };
    let first = processes.gather(&own)?.swap_remove(0);
    let mut first = candle_core::safetensors::load_buffer(&first, &Device::Cpu)?;
    for (name, var) in averages {
        let average = first.remove(name).with_context(|| format!("{name}: found no average on process 0"))?;
        var.set(&average.to_device(var.device())?)?;
    }
    Ok(())
}

/// Returns the part of `len` examples that this process computes inside [`together`]; all of them outside.
pub(super) fn own_share(len: usize) -> Range<usize> {
    processes::current().map_or(0..len, |processes| share(len, processes.rank(), processes.size()))
}

/// Returns the sums that `sums` computes of parts of `len` examples, over all examples.
pub(super) fn divided_sums<const N: usize>(
    len: usize,
    sums: impl FnOnce(Range<usize>) -> Result<[f64; N]>,
) -> Result<[f64; N]> {
    let own = own_share(len);
    let mut sums = if own.is_empty() && len > 0 { [0.0; N] } else { sums(own)? };
    if let Some(processes) = processes::current() {
        processes.sum_f64(&mut sums)?;
    }
    Ok(sums)
}

/// Returns the lists that `lists` computes of parts of `len` examples, one per example.
pub(super) fn divided_lists(
    len: usize,
    lists: impl FnOnce(Range<usize>) -> Result<Vec<Vec<u32>>>,
) -> Result<Vec<Vec<u32>>> {
    let own = lists(own_share(len))?;
    let Some(processes) = processes::current() else { return Ok(own) };
    let with_length = |list: &Vec<u32>| -> Vec<u8> {
        let numbers = [list.len() as u32].into_iter().chain(list.iter().copied());
        numbers.flat_map(u32::to_le_bytes).collect()
    };
    let mut all = vec![];
    for part in processes.gather(&own.iter().flat_map(with_length).collect::<Vec<u8>>())? {
        let mut numbers = part.as_chunks().0.iter().map(|&number| u32::from_le_bytes(number));
        while let Some(length) = numbers.next() {
            all.push(numbers.by_ref().take(length as usize).collect());
        }
    }
    Ok(all)
}

/// Returns the tensors of all processes inside [`together`], each joined along `dimension`.
///
/// A process may lack a tensor.
pub(super) fn gathered(own: HashMap<String, Tensor>, dimension: usize) -> Result<HashMap<String, Tensor>> {
    let Some(processes) = processes::current() else { return Ok(own) };
    let mut parts: HashMap<String, Vec<Tensor>> = HashMap::new();
    for part in processes.gather(&safetensors::serialize(own, None)?)? {
        for (name, tensor) in candle_core::safetensors::load_buffer(&part, &Device::Cpu)? {
            parts.entry(name).or_default().push(tensor);
        }
    }
    parts.into_iter().map(|(name, parts)| Ok((name, Tensor::cat(&parts, dimension)?))).collect()
}

#[cfg(test)]
mod tests;
