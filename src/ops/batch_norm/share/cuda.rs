//! The same on a GPU. The statistics travel through the host, which waits for the GPU.

use super::super::cuda::Shapes;
use super::super::tensors;
use super::{merged, whole_statistics, whole_sums};
use crate::kernels::cpu::batch_norm::{Grid, Statistics, Sums};
use crate::kernels::cuda::{Arg, Pointer, Real};
use crate::ops::arguments::BatchStatistics;
use crate::ops::autograd::{self, Operation};
use crate::ops::gpu::{Gpu, Stored};
use crate::ops::host::with_real;
use crate::processes::Processes;
use candle_core::{Result, Shape, Storage, Tensor, bail};
use std::sync::{Arc, OnceLock};

/// Normalises contiguous tensors: see [`batch_norm`](super::batch_norm()).
pub(super) fn batch_norm(
    args: Vec<Tensor>,
    grid: Grid,
    epsilon: f64,
    relu: bool,
    processes: &Arc<dyn Processes>,
) -> Result<(Tensor, BatchStatistics, f64)> {
    let (device, dtype) = (args[0].device().clone(), args[0].dtype());
    let whole: Arc<OnceLock<Whole>> = Arc::default();
    let op = BatchNorm { grid, epsilon, relu, processes: processes.clone(), whole: whole.clone() };
    let ys = autograd::apply(op, args)?;
    let Some(Whole { statistics, count }) = whole.get() else { bail!("batch_norm: there are no statistics") };
    let BatchStatistics { mean, variance } = tensors(statistics, dtype)?;
    Ok((
        ys,
        BatchStatistics { mean: mean.to_device(&device)?, variance: variance.to_device(&device)? },
        *count,
    ))
}

struct BatchNorm {
    grid: Grid,
    epsilon: f64,
    relu: bool,
    processes: Arc<dyn Processes>,
    whole: Arc<OnceLock<Whole>>,
}

/// The statistics of the whole batch, and the number of its elements per channel.
struct Whole {
    statistics: Vec<Statistics>,
    count: f64,
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
    /// Elements per channel of the share.
    fn count(&self) -> usize {
        self.grid.batch * self.grid.plane
    }

    /// Batch and plane, as the kernels take them.
    fn sizes(&self) -> [Arg; 2] {
        [self.grid.batch, self.grid.plane].map(|size| (size as i32).into())
    }

    fn forward_on<T: Real + Stored>(&self, gpu: &Gpu, args: &[Tensor]) -> Result<(Storage, Shape)> {
        let channels = self.grid.channels;
        let ys = gpu.alloc::<T>(args[0].elem_count())?;
        let xs = gpu.pointer::<T>(&args[0])?;
        let residual = match args.get(3) {
            Some(residual) => gpu.pointer::<T>(residual)?,
            None => Pointer::null(),
        };
        let shapes = Shapes::new(self.grid, &[xs, residual, ys.pointer()]);
        let launch = |name, args: &[&[Arg]]| {
            // SAFETY: `args` are the kernel's parameters for these shapes.
            unsafe { gpu.launch(shapes.kernel::<T>(name), shapes.grid, &args.concat()) }
        };
        let moments = gpu.alloc::<f64>(2 * channels * shapes.slices())?;
        launch("batch_norm_moments", &[&[xs.into(), moments.pointer().into()], &self.sizes()])?;
        // SAFETY: the launch writes the mean and the sum of squares of each slice.
        let moments = unsafe { gpu.download(moments.pointer(), 2 * channels * shapes.slices())? };
        let own = moments.chunks_exact(2 * shapes.slices()).map(|slices| {
            let slices = slices.as_chunks().0.iter().enumerate();
            merged(slices.map(|(slice, &[mean, squares])| {
                let count = shapes.elements(slice, self.count()) as f64;
                (count, Statistics { mean, variance: squares / count })
            }))
        });
        let own: Vec<Statistics> = own.collect();
        let (statistics, count) = whole_statistics(&own, self.count() as f64, &*self.processes)?;
        // The second launch merges the slices: these give the statistics of the whole batch.
        let pairs = statistics.iter().flat_map(|&Statistics { mean, variance }| {
            let squares = move |slice| if slice == 0 { variance * self.count() as f64 } else { 0.0 };
            (0..shapes.slices()).flat_map(move |slice| [mean, squares(slice)])
        });
        let moments = gpu.upload(&pairs.collect::<Vec<f64>>())?;
        let (saved, of_batch) = (gpu.alloc::<f64>(2 * channels)?, gpu.alloc::<T>(2 * channels)?);
        let operands: [Arg; 5] = [
            xs.into(),
            gpu.pointer::<T>(&args[1])?.into(),
            gpu.pointer::<T>(&args[2])?.into(),
            residual.into(),
            ys.pointer().into(),
        ];
        let nowhere = Pointer::<T>::null();
        let results: [Arg; 7] = [
            moments.pointer().into(),
            saved.pointer().into(),
            of_batch.pointer().into(),
            nowhere.into(),
            nowhere.into(),
            self.epsilon.into(),
            0f64.into(),
        ];
        launch("batch_norm_apply", &[&operands, &results, &self.sizes(), &[i32::from(self.relu).into()]])?;
        self.whole.get_or_init(|| Whole { statistics, count });
        Ok(gpu.output(ys, args[0].shape()))
    }

    fn backward_on<T: Real + Stored>(
        &self,
        gpu: &Gpu,
        args: &[Tensor],
        ys: &Tensor,
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let Some(Whole { statistics, count }) = self.whole.get() else {
            bail!("batch_norm: there are no statistics")
        };
        let (channels, shape) = (self.grid.channels, args[0].shape());
        let [xs, ys, dy] = [gpu.pointer::<T>(&args[0])?, gpu.pointer::<T>(ys)?, gpu.pointer::<T>(grad)?];
        let dx = gpu.alloc::<T>(args[0].elem_count())?;
        // Without a ReLU the residual has the gradient of the output.
        let with_residual = args.get(3).is_some_and(Tensor::track_op);
        let residual = match with_residual && self.relu {
            true => Some(gpu.alloc::<T>(args[0].elem_count())?),
            false => None,
        };
        let to_residual = residual.as_ref().map_or(Pointer::null(), |residual| residual.pointer());
        let shapes = Shapes::new(self.grid, &[xs, ys, dy, dx.pointer(), to_residual]);
        let launch = |name, args: &[&[Arg]]| {
            // SAFETY: `args` are the kernel's parameters for these shapes.
            unsafe { gpu.launch(shapes.kernel::<T>(name), shapes.grid, &args.concat()) }
        };
        let means = statistics.iter().map(|channel| channel.mean);
        let saved: Vec<f64> = means.chain(statistics.iter().map(|channel| channel.variance)).collect();
        let saved = gpu.upload(&saved)?;
        let inputs: [Arg; 3] = [xs.into(), ys.into(), dy.into()];
        let flags: [Arg; 2] = [i32::from(self.relu).into(), 1i32.into()];
        let slices = shapes.slices();
        let sums = gpu.alloc::<f64>(2 * channels * slices)?;
        let pointers: [Arg; 2] = [saved.pointer().into(), sums.pointer().into()];
        launch("batch_norm_back_sums", &[&inputs, &pointers, &self.sizes(), &flags[..1]])?;
        // SAFETY: the launch writes both sums of each slice.
        let sums = unsafe { gpu.download(sums.pointer(), 2 * channels * slices)? };
        let own: Vec<Sums> = sums
            .chunks_exact(2 * slices)
            .map(|slices| Sums {
                gradient: slices.iter().step_by(2).sum(),
                product: slices.iter().skip(1).step_by(2).sum(),
            })
            .collect();
        let whole = whole_sums(&own, &*self.processes)?;
        // The second launch adds the slices and divides by the elements of the share.
        let scale = self.count() as f64 / count;
        let pairs = whole.iter().flat_map(|&Sums { gradient, product }| {
            (0..slices).flat_map(
                move |slice| {
                    if slice == 0 { [gradient * scale, product * scale] } else { [0.0; 2] }
                },
            )
        });
        let pairs = gpu.upload(&pairs.collect::<Vec<f64>>())?;
        let unused = [gpu.alloc::<T>(channels)?, gpu.alloc::<T>(channels)?];
        let pointers: [Arg; 7] = [
            gpu.pointer::<T>(&args[1])?.into(),
            saved.pointer().into(),
            pairs.pointer().into(),
            dx.pointer().into(),
            to_residual.into(),
            unused[0].pointer().into(),
            unused[1].pointer().into(),
        ];
        let last: [&[Arg]; 2] = [&self.sizes(), &flags];
        launch("batch_norm_back_apply", &[&inputs, &pointers, &[self.epsilon.into()], last[0], last[1]])?;
        let mut grads = vec![Some(gpu.tensor(dx, shape))];
        grads.extend(self.parameter_gradients::<T>(gpu, &own, statistics)?.map(Some));
        if args.len() > 3 {
            let own = residual.map(|residual| gpu.tensor(residual, shape));
            grads.push(with_residual.then(|| own.unwrap_or_else(|| grad.clone())));
        }
        Ok(grads)
    }

    /// Returns the gradients of the weight and the bias for the share.
    fn parameter_gradients<T: Real + Stored>(
        &self,
        gpu: &Gpu,
        own: &[Sums],
        statistics: &[Statistics],
    ) -> Result<[Tensor; 2]> {
        let channels = own.iter().zip(statistics);
        let weight = channels.map(|(sums, channel)| {
            // The products are with the input less the rounded mean.
            let error = channel.mean - T::of(channel.mean).as_f64();
            (sums.product - error * sums.gradient) / (channel.variance + self.epsilon).sqrt()
        });
        let weight: Vec<T> = weight.map(T::of).collect();
        let bias: Vec<T> = own.iter().map(|sums| T::of(sums.gradient)).collect();
        Ok([gpu.tensor(gpu.upload(&weight)?, own.len()), gpu.tensor(gpu.upload(&bias)?, own.len())])
    }
}
