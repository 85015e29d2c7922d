//! Batch normalisation of a share of a batch with the statistics of the whole batch.

use super::{BatchNorm, tensors};
use crate::kernels::cpu::batch_norm::{self as kernel, Grid, Statistics, Sums};
use crate::ops::arguments::BatchStatistics;
use crate::ops::autograd;
use crate::ops::host::{self, with_real};
use crate::processes::Processes;
use candle_core::{Error, Result, Tensor, bail};
use std::sync::{Arc, OnceLock};

/// Normalises a share on the CPU: see [`batch_norm`](super::batch_norm()).
///
/// `args` are contiguous. Also returns the statistics of the whole batch, and the number of its elements per channel.
pub(super) fn batch_norm(
    args: Vec<Tensor>,
    grid: Grid,
    epsilon: f64,
    relu: bool,
    processes: Arc<dyn Processes>,
) -> Result<(Tensor, BatchStatistics, f64)> {
    let dtype = args[0].dtype();
    let own = with_real!("batch_norm", dtype, T => {
        host::read::<T, _>(&args[0], |xs| Ok(kernel::statistics(xs, grid)))?
    });
    let (statistics, count) = whole_statistics(&own, (grid.batch * grid.plane) as f64, &*processes)?;
    let result = tensors(&statistics, dtype)?;
    let (statistics, whole) = (Arc::new(OnceLock::from(statistics)), Some((processes, count)));
    let op = BatchNorm { grid, epsilon, of_batch: true, relu, statistics, whole };
    Ok((autograd::apply(op, args)?, result, count))
}

/// Merges the statistics of all processes.
///
/// `own` are the statistics of this process, over `count` elements per channel. Also returns the number of all elements
/// per channel.
pub(super) fn whole_statistics(
    own: &[Statistics],
    count: f64,
    processes: &dyn Processes,
) -> Result<(Vec<Statistics>, f64)> {
    let values = own.iter().flat_map(|channel| [channel.mean, channel.variance]);
    let parts = processes.gather_f64(&std::iter::once(count).chain(values).collect::<Vec<_>>());
    let parts = parts.map_err(failed)?;
    if parts.iter().any(|part| part.len() != 1 + 2 * own.len()) {
        bail!("batch_norm: found different numbers of channels on the processes");
    }
    let whole = |channel: usize| {
        let statistics =
            |part: &Vec<f64>| Statistics { mean: part[1 + 2 * channel], variance: part[2 + 2 * channel] };
        merged(parts.iter().map(|part| (part[0], statistics(part))))
    };
    Ok(((0..own.len()).map(whole).collect(), parts.iter().map(|part| part[0]).sum()))
}

/// Merges the statistics of parts, each with its number of elements (Chan, Golub and LeVeque 1983).
pub(super) fn merged(parts: impl Iterator<Item = (f64, Statistics)> + Clone) -> Statistics {
    let count: f64 = parts.clone().map(|(count, _)| count).sum();
    let mean = parts.clone().map(|(count, part)| count * part.mean).sum::<f64>() / count;
    let squares = parts.map(|(count, part)| {
        let distance = part.mean - mean;
        count * (part.variance + distance * distance)
    });
    Statistics { mean, variance: squares.sum::<f64>() / count }
}

/// Sums each channel over the elements of all processes, given this process's sums.
pub(super) fn whole_sums(own: &[Sums], processes: &dyn Processes) -> Result<Vec<Sums>> {
    let mut values: Vec<f64> = own.iter().flat_map(|sums| [sums.gradient, sums.product]).collect();
    processes.sum_f64(&mut values).map_err(failed)?;
    Ok(values.as_chunks().0.iter().map(|&[gradient, product]| Sums { gradient, product }).collect())
}

/// Converts an error of [`Processes`] into candle's type.
fn failed(error: anyhow::Error) -> Error {
    Error::msg(format!("batch_norm: {error:#}"))
}

#[cfg(test)]
mod tests {
    use crate::ops::{Epilogue, RunningAverages, batch_norm_training};
    use crate::processes::{Processes, share, threads, together};
    use crate::rng::{StandardNormal, stream};
    use candle_core::{DType, Device, Result, Tensor, Var};
    use rand::Rng;
    use std::sync::Arc;

    /// Two shapes. A GPU cuts the channels of the first into slices.
    const SHAPES: [[usize; 4]; 2] = [[5, 2, 64, 64], [3, 3, 2, 1]];

    fn normal(shape: &[usize], purpose: &str) -> Result<Tensor> {
        let rng = stream(0, purpose);
        let values: Vec<f64> =
            rng.sample_iter(StandardNormal).take(shape.iter().product()).map(|x: f64| 0.5 + x).collect();
        Tensor::from_vec(values, shape, &Device::Cpu)
    }

    /// Runs a process's share.
    ///
    /// Returns the result, the gradients of the input and of the residual, the running averages, and the gradients of
    /// weight and bias summed over the processes.
    fn run(shape: [usize; 4], processes: &Arc<dyn Processes>) -> Result<Vec<Tensor>> {
        let own = share(shape[0], processes.rank(), processes.size());
        let part = |name| -> Result<Var> {
            let all = normal(&shape, name)?;
            Var::from_tensor(&all.narrow(0, own.start, own.len())?.contiguous()?)
        };
        let per_channel = |name| Var::from_tensor(&normal(&shape[1..2], name)?);
        let (xs, add) = (part("xs")?, part("add")?);
        let [weight, bias, mean, variance] = ["weight", "bias", "mean", "variance"].map(per_channel);
        let (weight, bias, mean, variance) = (weight?, bias?, mean?, variance?);
        let averages = RunningAverages { mean: &mean, variance: &variance, momentum: 0.1 };
        let epilogue = Epilogue { add: Some(add.as_tensor()), relu: true };
        let ys = together(processes, || batch_norm_training(&xs, &weight, &bias, 1e-5, averages, epilogue))?;
        let grads = (&ys * part("grad")?.as_tensor())?.sum_all()?.backward()?;
        let grad = |var: &Var| grads.get(var).expect("a gradient of each argument").clone();
        let mut results = vec![ys.detach(), grad(&xs), grad(&add)];
        for var in [&weight, &bias] {
            let mut sums = grad(var).to_vec1::<f64>()?;
            processes.sum_f64(&mut sums).unwrap();
            results.push(Tensor::new(sums, &Device::Cpu)?);
        }
        results.extend([&mean, &variance].map(|average| average.as_detached_tensor()));
        Ok(results)
    }

    #[test]
    fn shares_together_are_the_whole_batch() -> Result<()> {
        for shape in SHAPES {
            let expected = run(shape, &threads(1)[0])?;
            let found: Vec<Vec<Tensor>> = std::thread::scope(|scope| {
                let run = |processes| scope.spawn(move || run(shape, &processes).unwrap());
                let running: Vec<_> = threads(2).into_iter().map(run).collect();
                running.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            for (i, expected) in expected.iter().enumerate() {
                let parts = [&found[0][i], &found[1][i]];
                // Tensors with a row per example are split; everything else is the same on both processes.
                let found = if i < 3 { Tensor::cat(&parts, 0)? } else { parts[1].clone() };
                let distance =
                    (found - expected)?.abs()?.max_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
                assert!(distance < 1e-11, "{shape:?}, result {i}: {distance}");
            }
        }
        Ok(())
    }
}
