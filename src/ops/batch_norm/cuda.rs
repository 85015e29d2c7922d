//! Batch normalisation on a GPU.

use crate::kernels::cpu::batch_norm::Grid;
use crate::kernels::cuda::{self, Arg, Buffer, Kernel, Pointer, Real, Scalar};
use crate::ops::arguments::{BatchStatistics, Epilogue, RunningAverages};
use crate::ops::autograd::{self, Operation};
use crate::ops::gpu::{Gpu, Stored};
use crate::ops::host::with_real;
use candle_core::{Result, Shape, Storage, Tensor, bail};
use std::sync::{Arc, OnceLock};

/// Normalises contiguous tensors: see [`batch_norm`](super::batch_norm()). `averages` are those to update.
pub(super) fn batch_norm(
    [xs, weight, bias]: [&Tensor; 3],
    grid: Grid,
    epsilon: f64,
    running: Option<&BatchStatistics>,
    averages: Option<RunningAverages>,
    epilogue: Epilogue,
) -> Result<(Tensor, BatchStatistics)> {
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
        statistics: statistics.clone(),
    };
    let ys = autograd::apply(op, args)?;
    let Some(Statistics { of_batch, .. }) = statistics.get() else {
        bail!("batch_norm: there are no statistics")
    };
    match (running, of_batch) {
        (None, Some(of_batch)) => {
            Ok((ys, BatchStatistics { mean: of_batch.get(0)?, variance: of_batch.get(1)? }))
        }
        (Some(running), _) => Ok((ys, running)),
        (None, None) => bail!("batch_norm: there are no statistics of the batch"),
    }
}

struct BatchNorm {
    grid: Grid,
    epsilon: f64,
    relu: bool,
    /// The statistics to normalise with, if they are not those of the batch.
    running: Option<BatchStatistics>,
    averages: Option<Averages>,
    statistics: Arc<OnceLock<Statistics>>,
}

/// Running averages, which the forward pass updates in place.
struct Averages {
    mean: Tensor,
    variance: Tensor,
    momentum: f64,
}

/// Results of the forward pass beside the output.
struct Statistics {
    /// Mean and variance, `(2, channels)` in `f64`, for the backward pass.
    saved: Tensor,
    /// Those of the batch, in the type of the input.
    of_batch: Option<Tensor>,
}

/// The constants and the blocks of a launch.
pub(super) struct Shapes {
    constants: [(&'static str, usize); 1],
    pub(super) grid: cuda::Grid,
}

impl Shapes {
    /// Threads of a block that holds a channel, or a slice of one, and elements that a thread holds.
    const THREADS: usize = 512;
    const HELD: usize = 16;

    pub(super) fn new<T>(grid: Grid, tensors: &[Pointer<T>]) -> Self {
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
    pub(super) fn slices(&self) -> usize {
        self.grid.blocks[0]
    }

    /// Elements of a slice of a channel of `count` elements.
    pub(super) fn elements(&self, slice: usize, count: usize) -> usize {
        let size = self.grid.threads[0] * Self::HELD;
        size.min(count - slice * size)
    }

    pub(super) fn kernel<T: Real>(&self, name: &'static str) -> Kernel<'_> {
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
    /// A buffer of `values` per channel, which are 0 if no launch follows, for an empty batch.
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
        let mut of_batch = None;
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
            if shapes.slices() <= 1 {
                launch("batch_norm_train", &[&operands, &statistics, &last])?;
            } else {
                let moments = gpu.alloc::<f64>(2 * channels * shapes.slices())?;
                launch("batch_norm_moments", &[&operands[..1], &[moments.pointer().into()], &last[..2]])?;
                launch("batch_norm_apply", &[&operands, &[moments.pointer().into()], &statistics, &last])?;
            }
            of_batch = Some(gpu.tensor(buffer, (2, channels)));
        }
        let saved = gpu.tensor(saved, (2, channels));
        self.statistics.get_or_init(|| Statistics { saved, of_batch });
        Ok(gpu.output(ys, args[0].shape()))
    }

    fn backward_on<T: Real + Stored>(
        &self,
        gpu: &Gpu,
        args: &[Tensor],
        ys: &Tensor,
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let Some(Statistics { saved, .. }) = self.statistics.get() else {
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
        if shapes.slices() <= 1 {
            launch("batch_norm_back", &[&inputs, &weight, &outputs, &epsilon, &flags])?;
        } else {
            let sums = gpu.alloc::<f64>(2 * channels * shapes.slices())?;
            let pointer = [sums.pointer().into()];
            launch("batch_norm_back_sums", &[&inputs, &[saved.into()], &pointer, &flags[..3]])?;
            launch("batch_norm_back_apply", &[&inputs, &weight, &pointer, &outputs, &epsilon, &flags])?;
        }
        let shape = args[0].shape();
        let mut grads = vec![
            Some(gpu.tensor(dx, shape)),
            Some(gpu.tensor(dweight, channels)),
            Some(gpu.tensor(dbias, channels)),
        ];
        if args.len() > 3 {
            let own = residual.map(|residual| gpu.tensor(residual, shape));
            grads.push(with_residual.then(|| own.unwrap_or_else(|| grad.clone())));
        }
        Ok(grads)
    }
}
