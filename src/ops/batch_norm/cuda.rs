//! Batch normalisation on a GPU.

use super::share::{merged, whole_statistics, whole_sums};
use super::tensors;
use crate::kernels::cpu::batch_norm::{Grid, Statistics as Moments, Sums};
use crate::kernels::cuda::{self, Arg, Buffer, Kernel, Pointer, Real, Scalar};
use crate::ops::arguments::{BatchStatistics, Epilogue, RunningAverages};
use crate::ops::autograd::{self, Operation};
use crate::ops::gpu::{Gpu, Stored};
use crate::ops::host::with_real;
use crate::processes::Processes;
use candle_core::{Result, Shape, Storage, Tensor, bail};
use std::sync::{Arc, OnceLock};

/// Normalises tensors: see [`batch_norm`](super::batch_norm()).
///
/// Updates `averages`. `processes` have the other shares of the batch that `xs` is a share of. Their sums travel
/// through the host, which waits for the GPU. Also returns the number of elements per channel behind the batch
/// statistics.
pub(super) fn batch_norm(
    [xs, weight, bias]: [&Tensor; 3],
    grid: Grid,
    epsilon: f64,
    running: Option<&BatchStatistics>,
    averages: Option<RunningAverages>,
    epilogue: Epilogue,
    processes: Option<&Arc<dyn Processes>>,
) -> Result<(Tensor, BatchStatistics, f64)> {
    let mut args = vec![xs.contiguous()?, weight.contiguous()?, bias.contiguous()?];
    if let Some(add) = epilogue.add {
        args.push(add.contiguous()?);
    }
    let running = match running {
        Some(BatchStatistics { mean, variance }) => {
            let convert = |tensor: &Tensor| tensor.to_dtype(xs.dtype())?.contiguous();
            Some(BatchStatistics { mean: convert(mean)?, variance: convert(variance)? })
        }
        None => None,
    };
    let averages = averages.map(|RunningAverages { mean, variance, momentum }| Averages {
        mean: mean.as_detached_tensor(),
        variance: variance.as_detached_tensor(),
        momentum,
    });
    let statistics: Arc<OnceLock<Statistics>> = Arc::default();
    let op = BatchNorm {
        grid,
        epsilon,
        relu: epilogue.relu,
        running: running.clone(),
        averages,
        processes: processes.cloned(),
        statistics: statistics.clone(),
    };
    let ys = autograd::apply(op, args)?;
    let Some(Statistics { of_batch, whole, .. }) = statistics.get() else {
        bail!("batch_norm: there are no statistics")
    };
    let count = whole.as_ref().map_or((grid.batch * grid.plane) as f64, |whole| whole.count);
    let used = match (running, whole, of_batch) {
        (Some(running), ..) => running,
        (None, Some(whole), _) => {
            let BatchStatistics { mean, variance } = tensors(&whole.channels, xs.dtype())?;
            BatchStatistics { mean: mean.to_device(xs.device())?, variance: variance.to_device(xs.device())? }
        }
        (None, None, Some(of_batch)) => {
            BatchStatistics { mean: of_batch.get(0)?, variance: of_batch.get(1)? }
        }
        (None, None, None) => bail!("batch_norm: there are no statistics of the batch"),
    };
    Ok((ys, used, count))
}

struct BatchNorm {
    grid: Grid,
    epsilon: f64,
    relu: bool,
    /// The statistics to normalise with, unless these are the batch statistics.
    running: Option<BatchStatistics>,
    averages: Option<Averages>,
    /// The processes that have the other shares, if `xs` is a share of a batch.
    processes: Option<Arc<dyn Processes>>,
    statistics: Arc<OnceLock<Statistics>>,
}

/// Running averages, which the forward pass updates in place.
struct Averages {
    mean: Tensor,
    variance: Tensor,
    momentum: f64,
}

/// Results of the forward pass in addition to the output.
struct Statistics {
    /// Mean and variance, `(2, channels)` in `f64`, for the backward pass.
    saved: Tensor,
    /// The batch statistics, in the type of the input.
    of_batch: Option<Tensor>,
    whole: Option<Whole>,
}

/// The statistics of the whole batch that the input is a share of, and its elements per channel.
struct Whole {
    channels: Vec<Moments>,
    count: f64,
}

/// The constants and the blocks of a launch.
struct Shapes {
    constants: [(&'static str, usize); 1],
    grid: cuda::Grid,
}

impl Shapes {
    /// Threads of a block that holds a channel, or a slice of one, and elements that a thread holds.
    const THREADS: usize = 512;
    const HELD: usize = 16;

    fn new<T>(grid: Grid, tensors: &[Pointer<T>]) -> Self {
        let Grid { batch, channels, plane } = grid;
        let aligned = plane.is_multiple_of(4) && tensors.iter().all(|at| at.address().is_multiple_of(16));
        let vector = if aligned { 4 } else { 1 };
        let threads = (batch * plane).div_ceil(Self::HELD).next_multiple_of(32).min(Self::THREADS);
        let slices = (batch * plane).div_ceil((threads * Self::HELD).max(1));
        Self {
            constants: [("VECTOR", vector)],
            grid: cuda::Grid { blocks: [slices, channels, 1], threads: [threads.max(32), 1, 1], shared: 0 },
        }
    }

    /// Slices of a channel, a block each.
    fn slices(&self) -> usize {
        self.grid.blocks[0]
    }

    /// Elements of a slice of a channel of `count` elements.
    fn elements(&self, slice: usize, count: usize) -> usize {
        let size = self.grid.threads[0] * Self::HELD;
        size.min(count - slice * size)
    }

    fn kernel<T: Real>(&self, name: &'static str) -> Kernel<'_> {
        cuda::BATCH_NORM.kernel::<T>(name).with(&self.constants)
    }
}

impl Operation for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(Storage, Shape)> {
        let Some(gpu) = Gpu::of(&args[0]) else { bail!("batch_norm: found a tensor on another device") };
        with_real!(self.name(), args[0].dtype(), T => self.forward_on::<T>(&gpu, args))
    }

    fn backward(&self, args: &[Tensor], ys: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let Some(gpu) = Gpu::of(&args[0]) else { bail!("batch_norm: found a tensor on another device") };
        with_real!(self.name(), args[0].dtype(), T => self.backward_on::<T>(&gpu, args, ys, grad))
    }
}

impl BatchNorm {
    /// A buffer of `values` per channel, set to 0 if no launch follows because the batch is empty.
    fn per_channel<T: Scalar>(&self, gpu: &Gpu, values: usize) -> Result<Buffer<T>> {
        match self.grid.batch {
            0 => gpu.zeros(values * self.grid.channels),
            _ => gpu.alloc(values * self.grid.channels),
        }
    }

    fn forward_on<T: Real + Stored>(&self, gpu: &Gpu, args: &[Tensor]) -> Result<(Storage, Shape)> {
        let (len, channels) = (args[0].elem_count(), self.grid.channels);
        let [batch, plane]: [Arg; 2] = [self.grid.batch, self.grid.plane].map(|size| (size as i32).into());
        let ys = gpu.alloc::<T>(len)?;
        let xs = gpu.pointer::<T>(&args[0])?;
        let residual = match args.get(3) {
            Some(residual) => gpu.pointer::<T>(residual)?,
            None => Pointer::null(),
        };
        let shapes = Shapes::new(self.grid, &[xs, residual, ys.pointer()]);
        let saved = self.per_channel::<f64>(gpu, 2)?;
        let operands: [Arg; 5] = [
            xs.into(),
            gpu.pointer::<T>(&args[1])?.into(),
            gpu.pointer::<T>(&args[2])?.into(),
            residual.into(),
            ys.pointer().into(),
        ];
        let last: [Arg; 3] = [batch, plane, i32::from(self.relu).into()];
        let launch = |name, args: &[&[Arg]]| {
            // SAFETY: `args` are the kernel's parameters for these shapes.
            unsafe { gpu.launch(shapes.kernel::<T>(name), shapes.grid, &args.concat()) }
        };
        let (mut of_batch, mut whole) = (None, None);
        if let Some(BatchStatistics { mean, variance }) = &self.running {
            let running: [Arg; 4] = [
                gpu.pointer::<T>(mean)?.into(),
                gpu.pointer::<T>(variance)?.into(),
                saved.pointer().into(),
                self.epsilon.into(),
            ];
            launch("batch_norm_evaluate", &[&operands, &running, &last])?;
        } else {
            let buffer = self.per_channel::<T>(gpu, 2)?;
            let (mean, variance, momentum) = match &self.averages {
                Some(Averages { mean, variance, momentum }) => {
                    (gpu.pointer::<T>(mean)?, gpu.pointer::<T>(variance)?, *momentum)
                }
                None => (Pointer::null(), Pointer::null(), 0.0),
            };
            let statistics: [Arg; 6] = [
                saved.pointer().into(),
                buffer.pointer().into(),
                mean.into(),
                variance.into(),
                self.epsilon.into(),
                momentum.into(),
            ];
            if shapes.slices() <= 1 && self.processes.is_none() {
                launch("batch_norm_train", &[&operands, &statistics, &last])?;
            } else {
                let mut moments = gpu.alloc::<f64>(2 * channels * shapes.slices())?;
                launch("batch_norm_moments", &[&operands[..1], &[moments.pointer().into()], &last[..2]])?;
                if let Some(processes) = &self.processes {
                    let channels = self.exchange_moments(gpu, &shapes, &mut moments, &**processes)?;
                    whole = Some(channels);
                }
                launch("batch_norm_apply", &[&operands, &[moments.pointer().into()], &statistics, &last])?;
            }
            of_batch = Some(gpu.tensor(buffer, (2, channels)));
        }
        let saved = match &whole {
            Some(Whole { channels, .. }) => {
                let means = channels.iter().map(|channel| channel.mean);
                let variances = channels.iter().map(|channel| channel.variance);
                gpu.upload(&means.chain(variances).collect::<Vec<f64>>())?
            }
            None => saved,
        };
        let saved = gpu.tensor(saved, (2, channels));
        self.statistics.get_or_init(|| Statistics { saved, of_batch, whole });
        Ok(gpu.output(ys, args[0].shape()))
    }

    fn backward_on<T: Real + Stored>(
        &self,
        gpu: &Gpu,
        args: &[Tensor],
        ys: &Tensor,
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let Some(Statistics { saved, whole, .. }) = self.statistics.get() else {
            bail!("batch_norm: there are no statistics")
        };
        let (len, channels) = (args[0].elem_count(), self.grid.channels);
        let [batch, plane]: [Arg; 2] = [self.grid.batch, self.grid.plane].map(|size| (size as i32).into());
        let with_residual = args.get(3).is_some_and(Tensor::track_op);
        let [xs, ys, dy] = [gpu.pointer::<T>(&args[0])?, gpu.pointer::<T>(ys)?, gpu.pointer::<T>(grad)?];
        let dx = gpu.alloc::<T>(len)?;
        // Without a ReLU the residual has the gradient of the output.
        let residual = match with_residual && self.relu {
            true => Some(gpu.alloc::<T>(len)?),
            false => None,
        };
        let to_residual = residual.as_ref().map_or(Pointer::null(), |residual| residual.pointer());
        let shapes = Shapes::new(self.grid, &[xs, ys, dy, dx.pointer(), to_residual]);
        let [dweight, dbias] = [self.per_channel::<T>(gpu, 1)?, self.per_channel::<T>(gpu, 1)?];
        let saved = gpu.pointer::<f64>(saved)?;
        let inputs: [Arg; 3] = [xs.into(), ys.into(), dy.into()];
        let weight: [Arg; 2] = [gpu.pointer::<T>(&args[1])?.into(), saved.into()];
        let outputs: [Arg; 4] =
            [dx.pointer().into(), to_residual.into(), dweight.pointer().into(), dbias.pointer().into()];
        let flags: [Arg; 4] =
            [batch, plane, i32::from(self.relu).into(), i32::from(self.running.is_none()).into()];
        let launch = |name, args: &[&[Arg]]| {
            // SAFETY: `args` are the kernel's parameters for these shapes.
            unsafe { gpu.launch(shapes.kernel::<T>(name), shapes.grid, &args.concat()) }
        };
        let epsilon = [self.epsilon.into()];
        let mut own = None;
        if shapes.slices() <= 1 && whole.is_none() {
            launch("batch_norm_back", &[&inputs, &weight, &outputs, &epsilon, &flags])?;
        } else {
            let mut sums = gpu.alloc::<f64>(2 * channels * shapes.slices())?;
            let pointer = [sums.pointer().into()];
            launch("batch_norm_back_sums", &[&inputs, &[saved.into()], &pointer, &flags[..3]])?;
            if let (Some(whole), Some(processes)) = (whole, &self.processes) {
                let share = self.exchange_sums(gpu, &shapes, &mut sums, (whole, &**processes))?;
                own = Some(self.parameter_gradients::<T>(gpu, &share, whole)?);
            }
            let pointer = [sums.pointer().into()];
            launch("batch_norm_back_apply", &[&inputs, &weight, &pointer, &outputs, &epsilon, &flags])?;
        }
        let shape = args[0].shape();
        // For a share, the launch returns sums over the whole batch.
        let of_parameters = own.unwrap_or([dweight, dbias]).map(|grad| gpu.tensor(grad, channels));
        let mut grads = vec![Some(gpu.tensor(dx, shape))];
        grads.extend(of_parameters.map(Some));
        if args.len() > 3 {
            let own = residual.map(|residual| gpu.tensor(residual, shape));
            grads.push(with_residual.then(|| own.unwrap_or_else(|| grad.clone())));
        }
        Ok(grads)
    }

    /// Exchanges the moments of this share for the statistics of the whole batch, and returns those.
    ///
    /// The moments of the share's slices become moments that merge to the whole statistics.
    fn exchange_moments(
        &self,
        gpu: &Gpu,
        shapes: &Shapes,
        moments: &mut Buffer<f64>,
        processes: &dyn Processes,
    ) -> Result<Whole> {
        let (count, slices) = (self.grid.batch * self.grid.plane, shapes.slices());
        // SAFETY: the launch has written the mean and the sum of squares of each slice.
        let own = unsafe { gpu.download(moments.pointer(), 2 * self.grid.channels * slices)? };
        let own = own.chunks_exact(2 * slices.max(1)).map(|slices| {
            let slices = slices.as_chunks().0.iter().enumerate();
            merged(slices.map(|(slice, &[mean, squares])| {
                let count = shapes.elements(slice, count) as f64;
                (count, Moments { mean, variance: squares / count })
            }))
        });
        let (channels, whole) = whole_statistics(&own.collect::<Vec<_>>(), count as f64, processes)?;
        // The next launch merges the slices.
        let pairs = channels.iter().flat_map(|&Moments { mean, variance }| {
            let squares = move |slice| if slice == 0 { variance * count as f64 } else { 0.0 };
            (0..slices).flat_map(move |slice| [mean, squares(slice)])
        });
        *moments = gpu.upload(&pairs.collect::<Vec<f64>>())?;
        Ok(Whole { channels, count: whole })
    }

    /// Exchanges the sums of this share for the sums of the whole batch, and returns the share's own sums.
    ///
    /// The sums of the share's slices become sums that give the gradients of the whole batch.
    fn exchange_sums(
        &self,
        gpu: &Gpu,
        shapes: &Shapes,
        sums: &mut Buffer<f64>,
        (whole, processes): (&Whole, &dyn Processes),
    ) -> Result<Vec<Sums>> {
        let slices = shapes.slices();
        // SAFETY: the launch has written both sums of each slice.
        let own = unsafe { gpu.download(sums.pointer(), 2 * self.grid.channels * slices)? };
        let own = own.chunks_exact(2 * slices.max(1)).map(|slices| Sums {
            gradient: slices.iter().step_by(2).sum(),
            product: slices.iter().skip(1).step_by(2).sum(),
        });
        let own: Vec<Sums> = own.collect();
        // The next launch adds the slices, and divides by the elements of the share.
        let scale = (self.grid.batch * self.grid.plane) as f64 / whole.count;
        let all = whole_sums(&own, processes)?;
        let pairs = all.iter().flat_map(|&Sums { gradient, product }| {
            let first = [gradient * scale, product * scale];
            (0..slices).flat_map(move |slice| if slice == 0 { first } else { [0.0; 2] })
        });
        *sums = gpu.upload(&pairs.collect::<Vec<f64>>())?;
        Ok(own)
    }

    /// Returns the gradients of the weight and the bias for the share.
    fn parameter_gradients<T: Real>(&self, gpu: &Gpu, own: &[Sums], whole: &Whole) -> Result<[Buffer<T>; 2]> {
        let channels = own.iter().zip(&whole.channels);
        let weight = channels.map(|(sums, channel)| {
            // The products are with the input less the rounded mean.
            let (_, error) = channel.centre::<T>();
            (sums.product - error * sums.gradient) * channel.inverse_deviation(self.epsilon)
        });
        let weight: Vec<T> = weight.map(T::of).collect();
        let bias: Vec<T> = own.iter().map(|sums| T::of(sums.gradient)).collect();
        Ok([gpu.upload(&weight)?, gpu.upload(&bias)?])
    }
}
