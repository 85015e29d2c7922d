//! The part of a batch or an evaluation that one of several processes computes.

use super::stop;
use super::task::Task;
use crate::nn::{Mode, Share, of_share};
use crate::processes::{self, Processes, own_share, share, together};
use anyhow::Result;
use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// Returns a loss of this process's share of `batch`, with its graph, and a factor.
///
/// The products of loss and factor, over all processes, add up to the mean loss of the batch, and so do the gradients.
/// The loss is the mean over the share, and the factor is the fraction of [`Task::weight`] in the share.
///
/// Returns `None` if the share is empty. This happens if the batch has fewer examples than there are processes: process
/// 0 then has all of them; see [`share`]. The process adds zero to the loss and to all gradients.
///
/// With `synchronised`, batch normalisation uses the statistics of the whole batch, and the call and the backward pass
/// are collective. The backward pass then adds gradients of different shares, so the loss includes the weight and the
/// factor is 1. Without it, each process uses the statistics of its share. In both cases the running averages of the
/// processes may differ afterwards, and those of process 0 are kept.
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
    let loss = || of_share(|| task.loss_of_share(batch, Mode::Train { seed, epoch, step, share }));
    let fraction = task.weight(&batch[own]) / task.weight(batch);
    Ok(Some(match synchronised {
        true => (together(processes, loss)?.affine(fraction, 0.0)?, 1.0),
        false => (loss()?, fraction),
    }))
}

/// Sums the results of `sums` for the parts of `len` examples over all processes.
pub(super) fn divided_sums<const N: usize>(
    len: usize,
    sums: impl FnOnce(Range<usize>) -> Result<[f64; N]>,
) -> Result<[f64; N]> {
    let own = own_share(len);
    let mut sums = if own.is_empty() && len > 0 { [0.0; N] } else { sums(own)? };
    if let Some(processes) = processes::current() {
        stop::finish()?;
        processes.sum_f64(&mut sums)?;
    }
    Ok(sums)
}

/// Joins the lists that `lists` returns for each process's part of `len` examples, one per example.
pub(super) fn divided_lists(
    len: usize,
    lists: impl FnOnce(Range<usize>) -> Result<Vec<Vec<u32>>>,
) -> Result<Vec<Vec<u32>>> {
    let own = lists(own_share(len))?;
    let Some(processes) = processes::current() else { return Ok(own) };
    stop::finish()?;
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
    let device = own.values().next().map_or(Device::Cpu, |tensor| tensor.device().clone());
    let mut parts: HashMap<String, Vec<Tensor>> = HashMap::new();
    for part in processes.gather(&safetensors::serialize(own, None)?)? {
        for (name, tensor) in candle_core::safetensors::load_buffer(&part, &device)? {
            parts.entry(name).or_default().push(tensor);
        }
    }
    parts.into_iter().map(|(name, parts)| Ok((name, Tensor::cat(&parts, dimension)?))).collect()
}

#[cfg(test)]
mod tests;
