//! Batch normalisation (Ioffe and Szegedy 2015), fused with an optional residual add and ReLU.

mod cuda;
mod share;

use super::arguments::{BatchStatistics, Epilogue, RunningAverages, check_batch_norm};
use super::autograd::{self, Operation};
use super::gpu::Gpu;
use super::host::{self, with_real};
use super::reference;
use crate::kernels::cpu::batch_norm::{self as kernel, Backward, Forward, Grid, Statistics};
use crate::processes::{self, Processes};
use candle_core::{DType, Device, Error, Result, Shape, Storage, Tensor, Var, bail};
use std::sync::{Arc, OnceLock};

/// Normalises each channel of `xs` `(batch, channels, height, width)`, like PyTorch's `batch_norm`.
///
/// Computes `weight * (xs - mean) / sqrt(variance + epsilon) + bias`, then the `epilogue`. `weight` and `bias` are
/// `(channels)`. Evaluation passes the `running` statistics. Training passes `None`, and the operation normalises with
/// the statistics of the batch, through which gradients flow. Returns the result and the statistics used, zeros for an
/// empty batch.
///
/// # Errors
/// Fails if shapes do not match, or a channel has no elements although the batch is not empty.
pub fn batch_norm(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    epsilon: f64,
    running: Option<&BatchStatistics>,
    epilogue: Epilogue,
) -> Result<(Tensor, BatchStatistics)> {
    let grid = check_batch_norm(xs, weight, bias, running, epilogue)?;
    let (ys, statistics, _) = normalise([xs, weight, bias], grid, epsilon, running, epilogue, None)?;
    Ok((ys, statistics))
}

/// Like [`batch_norm`], and returns the number of elements per channel behind the statistics.
///
/// If `xs` is a share of a batch, `processes` have the other shares.
fn normalise(
    [xs, weight, bias]: [&Tensor; 3],
    grid: Grid,
    epsilon: f64,
    running: Option<&BatchStatistics>,
    epilogue: Epilogue,
    processes: Option<Arc<dyn Processes>>,
) -> Result<(Tensor, BatchStatistics, f64)> {
    if Gpu::of(xs).is_some() {
        let processes = processes.as_ref();
        return cuda::batch_norm([xs, weight, bias], grid, epsilon, running, None, epilogue, processes);
    }
    let count = (grid.batch * grid.plane) as f64;
    if !xs.device().is_cpu() {
        if processes.is_some() {
            let found = xs.device().location();
            bail!("batch_norm: found a tensor on {found:?}, expected a CPU or a CUDA device");
        }
        let (ys, statistics) = reference::batch_norm(xs, weight, bias, epsilon, running, epilogue)?;
        return Ok((ys, statistics, count));
    }
    let mut args = vec![xs.contiguous()?, weight.contiguous()?, bias.contiguous()?];
    if let Some(add) = epilogue.add {
        args.push(add.contiguous()?);
    }
    if let Some(processes) = processes {
        return share::batch_norm(args, grid, epsilon, epilogue.relu, processes);
    }
    let statistics: Arc<OnceLock<Vec<Statistics>>> = Arc::default();
    if let Some(running) = running {
        let values = |tensor: &Tensor| tensor.to_dtype(DType::F64)?.to_vec1::<f64>();
        let channels = values(&running.mean)?.into_iter().zip(values(&running.variance)?);
        statistics.get_or_init(|| channels.map(|(mean, variance)| Statistics { mean, variance }).collect());
    }
    let (of_batch, relu) = (running.is_none(), epilogue.relu);
    let op = BatchNorm { grid, epsilon, of_batch, relu, statistics: statistics.clone(), whole: None };
    let ys = autograd::apply(op, args)?;
    if let Some(running) = running {
        return Ok((ys, running.clone(), count));
    }
    let statistics = statistics.get().map_or(&[][..], Vec::as_slice);
    Ok((ys, tensors(statistics, xs.dtype())?, count))
}

/// Returns statistics as tensors of this type.
fn tensors(statistics: &[Statistics], dtype: DType) -> Result<BatchStatistics> {
    let tensor = |field: fn(&Statistics) -> f64| {
        Tensor::from_iter(statistics.iter().map(field), &Device::Cpu)?.to_dtype(dtype)
    };
    Ok(BatchStatistics {
        mean: tensor(|channel| channel.mean)?,
        variance: tensor(|channel| channel.variance)?,
    })
}

/// Like [`batch_norm`] in training, and moves `averages` towards the statistics of the batch.
///
/// The variances are averaged in their unbiased form.
///
/// Inside [`together`](crate::processes::together), `xs` is a share of a batch: the statistics are those of the shares of all
/// processes, and the backward pass must run on all of them.
///
/// # Errors
/// As for [`batch_norm`]; also if a channel has fewer than two elements, which have no variance.
pub fn batch_norm_training(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    epsilon: f64,
    averages: RunningAverages,
    epilogue: Epilogue,
) -> Result<Tensor> {
    let grid = check_batch_norm(xs, weight, bias, None, epilogue)?;
    let processes = processes::current();
    let is_share = processes.is_some();
    if grid.batch * grid.plane < 2 && !is_share {
        bail!(
            "batch_norm: found an input of shape {:?} in training, expected two values a channel",
            xs.dims()
        );
    }
    let RunningAverages { mean, variance, momentum } = averages;
    let fits = |average: &Var| average.dtype() == xs.dtype() && average.dims() == [grid.channels];
    if !is_share && Gpu::of(xs).is_some() && fits(mean) && fits(variance) {
        let averages = Some(averages);
        return Ok(cuda::batch_norm([xs, weight, bias], grid, epsilon, None, averages, epilogue, None)?.0);
    }
    let (ys, statistics, count) = normalise([xs, weight, bias], grid, epsilon, None, epilogue, processes)?;
    let unbiased = count / (count - 1.0);
    for (average, new, scale) in [(mean, statistics.mean, 1.0), (variance, statistics.variance, unbiased)] {
        let old = average.as_detached_tensor().affine(1.0 - momentum, 0.0)?;
        average.set(&(old + new.affine(momentum * scale, 0.0)?)?)?;
    }
    Ok(ys)
}

struct BatchNorm {
    grid: Grid,
    epsilon: f64,
    of_batch: bool,
    relu: bool,
    /// The running statistics, or the batch statistics once `forward` has computed them.
    statistics: Arc<OnceLock<Vec<Statistics>>>,
    /// The processes with the other shares, and the batch's elements per channel, if `xs` is a share.
    whole: Option<(Arc<dyn Processes>, f64)>,
}

impl Operation for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(Storage, Shape)> {
        let held = host::hold(args);
        with_real!(self.name(), args[0].dtype(), T => {
            let operands = Forward {
                grid: self.grid,
                xs: held.get::<T>(0)?,
                weight: held.get(1)?,
                bias: held.get(2)?,
                residual: if args.len() > 3 { Some(held.get(3)?) } else { None },
                relu: self.relu,
                epsilon: self.epsilon,
            };
            let running = self.statistics.get().map(Vec::as_slice);
            let (ys, statistics) = kernel::forward(&operands, running);
            self.statistics.get_or_init(|| statistics);
            Ok(host::output(ys, args[0].shape()))
        })
    }

    fn backward(&self, args: &[Tensor], ys: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let held = host::hold(args.iter().chain([ys, grad]));
        with_real!(self.name(), args[0].dtype(), T => {
            let operands = Backward {
                grid: self.grid,
                xs: held.get::<T>(0)?,
                weight: held.get(1)?,
                ys: held.get(args.len())?,
                grad: held.get(args.len() + 1)?,
                statistics: self.statistics.get().map_or(&[][..], Vec::as_slice),
                of_batch: self.of_batch,
                residual: args.get(3).is_some_and(Tensor::track_op),
                relu: self.relu,
                epsilon: self.epsilon,
            };
            let grads = match &self.whole {
                None => kernel::backward(&operands),
                Some((processes, count)) => kernel::backward_of_part(&operands, |own| {
                    Ok::<_, Error>((share::whole_sums(own, &**processes)?, *count))
                })?,
            };
            let grads = [Some(grads.xs), Some(grads.weight), Some(grads.bias), grads.residual];
            args.iter()
                .zip(grads)
                .map(|(arg, grad)| grad.map(|grad| Tensor::from_vec(grad, arg.shape(), arg.device())).transpose())
                .collect()
        })
    }
}
