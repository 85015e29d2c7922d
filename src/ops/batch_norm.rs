//! Batch normalisation (Ioffe and Szegedy 2015), with what a residual network does right after it.
//!
//! A chunk of work is a few whole channels: what belongs to a channel is small enough to stay in a cache while it is gone
//! through several times, and is read from main memory once forward and once backward.

use super::autograd::{self, Operation};
use super::host::{self, Element, with_real};
use super::reference;
use crate::kernels::cpu::Real;
use crate::kernels::cpu::parallel::{self, Shared};
use crate::kernels::cpu::simd::vectorised;
use candle_core::{CpuStorage, DType, Device, Result, Shape, Tensor, WithDType, bail};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// The mean and the biased variance of each channel, `(channels)` both.
#[derive(Debug, Clone)]
pub struct BatchStatistics {
    pub mean: Tensor,
    pub variance: Tensor,
}

/// What is done to what has been normalised, in the same pass over memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// First this, of the same shape, is added.
    pub add: Option<&'a Tensor>,
    /// Last a ReLU is taken.
    pub relu: bool,
}

/// `weight * (xs - mean) / sqrt(variance + epsilon) + bias`, of `xs` `(batch, channels, height, width)` and for each channel
/// by itself: PyTorch's `batch_norm`.
///
/// With the moments that are `given`, as in evaluation; if none are, with those of the batch, through which the gradient
/// then goes too. Both come back beside the result. Those of an empty batch are zeros.
///
/// # Errors
/// When shapes do not fit.
pub fn batch_norm(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    epsilon: f64,
    given: Option<&BatchStatistics>,
    then: Epilogue,
) -> Result<(Tensor, BatchStatistics)> {
    let channels = match xs.dims() {
        &[_, channels, height, width] if channels * height * width > 0 => channels,
        dims => {
            bail!("batch_norm: found an input of shape {dims:?}, expected (batch, channels, height, width)")
        }
    };
    let moments = given.map(|given| [("mean", &given.mean), ("variance", &given.variance)]);
    for (name, found) in [("weight", weight), ("bias", bias)].into_iter().chain(moments.into_iter().flatten())
    {
        if found.dims() != [channels] {
            bail!("batch_norm: found the {name} of shape {:?}, expected ({channels})", found.dims());
        }
    }
    if let Some(add) = then.add
        && add.dims() != xs.dims()
    {
        bail!("batch_norm: found {:?} to add, expected the shape of the input, {:?}", add.dims(), xs.dims());
    }
    if !xs.device().is_cpu() {
        return reference::batch_norm(xs, weight, bias, epsilon, given, then);
    }
    let mut args = vec![xs.contiguous()?, weight.contiguous()?, bias.contiguous()?];
    if let Some(add) = then.add {
        args.push(add.contiguous()?);
    }
    let moments: Arc<OnceLock<Vec<Channel>>> = Arc::default();
    if let Some(given) = given {
        let numbers = |tensor: &Tensor| tensor.to_dtype(DType::F64)?.to_vec1::<f64>();
        let channels = numbers(&given.mean)?.into_iter().zip(numbers(&given.variance)?);
        moments.get_or_init(|| channels.map(|(mean, variance)| Channel { mean, variance }).collect());
    }
    let op = BatchNorm { epsilon, training: given.is_none(), relu: then.relu, moments: moments.clone() };
    let ys = autograd::apply(op, args)?;
    if let Some(given) = given {
        return Ok((ys, given.clone()));
    }
    let moments = moments.get().map_or(&[][..], Vec::as_slice);
    let tensor = |of: fn(&Channel) -> f64| {
        Tensor::from_iter(moments.iter().map(of), &Device::Cpu)?.to_dtype(xs.dtype())
    };
    Ok((
        ys,
        BatchStatistics {
            mean: tensor(|channel| channel.mean)?,
            variance: tensor(|channel| channel.variance)?,
        },
    ))
}

/// The moments of one channel.
#[derive(Clone, Copy, Default)]
struct Channel {
    mean: f64,
    variance: f64,
}

struct BatchNorm {
    epsilon: f64,
    training: bool,
    relu: bool,
    /// Given, or those of the batch once they are known.
    moments: Arc<OnceLock<Vec<Channel>>>,
}

/// How the numbers of (batch, channels, plane) lie.
#[derive(Clone, Copy)]
struct Grid {
    batch: usize,
    channels: usize,
    /// Numbers of one channel of one example.
    plane: usize,
}

impl Grid {
    fn of(xs: &Tensor) -> Result<Self> {
        let (batch, channels, height, width) = xs.dims4()?;
        Ok(Self { batch, channels, plane: height * width })
    }

    fn len(&self) -> usize {
        self.batch * self.channels * self.plane
    }

    /// Where the numbers of a channel lie: pieces short enough for the first-level cache and for sums in f32.
    fn pieces(self, channel: usize) -> impl Iterator<Item = Range<usize>> + Clone {
        const PIECE: usize = 1 << 10;
        (0..self.batch).flat_map(move |example| {
            let plane = (example * self.channels + channel) * self.plane;
            let end = plane + self.plane;
            (plane..end).step_by(PIECE).map(move |start| start..end.min(start + PIECE))
        })
    }

    /// Values of a channel; 1 if there are none, whose sums then are their mean.
    fn count(&self) -> f64 {
        (self.batch * self.plane).max(1) as f64
    }

    /// Calls `work` on each channel, spread over the threads.
    fn for_each_channel<R: Send + Sync + Clone + Default>(self, work: impl Fn(usize) -> R + Sync) -> Vec<R> {
        let chunk = (1usize << 14).div_ceil((self.batch * self.plane).max(1));
        let mut results = vec![R::default(); self.channels];
        parallel::for_each_piece(&mut results, chunk, |i, results| {
            for (channel, result) in (i * chunk..).zip(results) {
                *result = vectorised(
                    #[inline(always)]
                    || work(channel),
                );
            }
        });
        results
    }
}

/// The sum of `f` of each pair of numbers, added in a fixed order.
#[inline(always)]
fn sum_of<T: Element>(a: &[T], b: &[T], f: impl Fn(T, T) -> T) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<32>(), b.as_chunks::<32>());
    let mut sums = [T::ZERO; 32];
    for (a, b) in a.iter().zip(b) {
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            *sum += f(a, b);
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(&a, &b)| f(a, b));
    sums.into_iter().chain(rest).fold(T::ZERO, |sum, x| sum + x).as_f64()
}

impl Channel {
    /// Those of a channel of the batch, by the corrected two-pass algorithm: once what lies around the mean is known,
    /// the sums are of differences from there, and what it was off by is put right.
    #[inline(always)]
    fn of_batch<T: Element>(xs: &[T], grid: Grid, channel: usize) -> Self {
        let (mut sum, mut off, mut squares) = (0., 0., 0.);
        for at in grid.pieces(channel) {
            sum += sum_of(
                &xs[at.clone()],
                &xs[at],
                #[inline(always)]
                |x, _| x,
            );
        }
        let center = T::of(sum / grid.count());
        for at in grid.pieces(channel) {
            let xs = &xs[at];
            off += sum_of(
                xs,
                xs,
                #[inline(always)]
                |x, _| x - center,
            );
            squares += sum_of(
                xs,
                xs,
                #[inline(always)]
                |x, _| (x - center) * (x - center),
            );
        }
        off /= grid.count();
        Self { mean: center.as_f64() + off, variance: squares / grid.count() - off * off }
    }

    fn inverse_deviation(&self, epsilon: f64) -> f64 {
        1. / (self.variance + epsilon).sqrt()
    }

    /// The mean as a number of this type, and what it lost.
    fn center<T: Element>(&self) -> (T, f64) {
        let center = T::of(self.mean);
        (center, self.mean - center.as_f64())
    }
}

impl Operation for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let held = host::hold(args);
        let grid = Grid::of(&args[0])?;
        with_real!(self.name(), args[0].dtype(), T => {
            let [xs, weight, bias] = [held.get::<T>(0)?, held.get(1)?, held.get(2)?];
            let add = if args.len() > 3 { Some(held.get::<T>(3)?) } else { None };
            // SAFETY: each number belongs to a channel, which writes it.
            let mut ys = unsafe { parallel::unwritten::<T>(grid.len()) };
            let to = Shared::new(&mut ys);
            let given = self.moments.get();
            let moments = grid.for_each_channel(
                #[inline(always)]
                |channel| {
                    let moments = match given {
                        Some(given) => given[channel],
                        None => Channel::of_batch(xs, grid, channel),
                    };
                    let scale = weight[channel].as_f64() * moments.inverse_deviation(self.epsilon);
                    let (center, off) = moments.center::<T>();
                    let shift = T::of(bias[channel].as_f64() - off * scale);
                    let scale = T::of(scale);
                    for at in grid.pieces(channel) {
                        // SAFETY: a channel's pieces are its own.
                        let ys = unsafe { to.slice(at.clone()) };
                        let norm = |x: T| (x - center) * scale + shift;
                        match (add.map(|add| &add[at.clone()]), self.relu) {
                            (None, false) => map(ys, &xs[at.clone()], &xs[at], #[inline(always)] |x, _| norm(x)),
                            (None, true) => {
                                map(ys, &xs[at.clone()], &xs[at], #[inline(always)] |x, _| Real::relu(norm(x)))
                            }
                            (Some(add), false) => map(ys, &xs[at], add, #[inline(always)] |x, r| norm(x) + r),
                            (Some(add), true) => {
                                map(ys, &xs[at], add, #[inline(always)] |x, r| Real::relu(norm(x) + r))
                            }
                        }
                    }
                    moments
                },
            );
            self.moments.get_or_init(|| moments);
            Ok(host::output(ys, args[0].shape()))
        })
    }

    fn backward(&self, args: &[Tensor], ys: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let held = host::hold(args.iter().chain([ys, grad]));
        let grid = Grid::of(&args[0])?;
        let moments = self.moments.get().map_or(&[][..], Vec::as_slice);
        let add_wanted = args.get(3).is_some_and(Tensor::track_op);
        with_real!(self.name(), args[0].dtype(), T => {
            let [xs, weight] = [held.get::<T>(0)?, held.get(1)?];
            let [ys, grad] = [held.get::<T>(args.len())?, held.get(args.len() + 1)?];
            // SAFETY: each number belongs to a channel, which writes it.
            let mut xs_grad = unsafe { parallel::unwritten::<T>(grid.len()) };
            // SAFETY: as before.
            let mut add_grad = unsafe { parallel::unwritten::<T>(if add_wanted { grid.len() } else { 0 }) };
            let (to, add_to) = (Shared::new(&mut xs_grad), Shared::new(&mut add_grad));
            let sums = grid.for_each_channel(
                #[inline(always)]
                |channel| {
                    let inverse = moments[channel].inverse_deviation(self.epsilon);
                    let (center, off) = moments[channel].center::<T>();
                    let scale = weight[channel] * T::of(inverse);
                    // Of what comes in, without the nonlinearity, and of its products with what was normalised.
                    let (mut sum, mut product) = (0., 0.);
                    for at in grid.pieces(channel) {
                        // SAFETY: a channel's pieces are its own.
                        let dx = unsafe { to.slice(at.clone()) };
                        match self.relu {
                            true => map(
                                dx,
                                &ys[at.clone()],
                                &grad[at.clone()],
                                #[inline(always)]
                                |y, g| if y <= T::ZERO { T::ZERO } else { g },
                            ),
                            false => dx.copy_from_slice(&grad[at.clone()]),
                        }
                        if add_wanted {
                            // SAFETY: as before.
                            unsafe { add_to.slice(at.clone()) }.copy_from_slice(dx);
                        }
                        sum += sum_of(dx, dx, #[inline(always)] |g, _| g);
                        product += sum_of(dx, &xs[at], #[inline(always)] |g, x| g * (x - center));
                    }
                    product -= off * sum;
                    let [level, slope] = match self.training {
                        true => {
                            let slope = product * inverse * inverse / grid.count();
                            [sum / grid.count() - off * slope, slope].map(T::from_f64)
                        }
                        false => [T::ZERO; 2],
                    };
                    for at in grid.pieces(channel) {
                        // SAFETY: as before.
                        let dx = unsafe { to.slice(at.clone()) };
                        for (g, &x) in dx.iter_mut().zip(&xs[at]) {
                            *g = scale * (*g - level - (x - center) * slope);
                        }
                    }
                    (sum, product * inverse)
                },
            );
            let tensor = |data: Vec<T>, like: &Tensor| Tensor::from_vec(data, like.shape(), like.device()).map(Some);
            let bias_grad = sums.iter().map(|&(sum, _)| T::of(sum)).collect();
            let weight_grad = sums.iter().map(|&(_, product)| T::of(product)).collect();
            let mut grads = vec![
                tensor(xs_grad, &args[0])?,
                tensor(weight_grad, &args[1])?,
                tensor(bias_grad, &args[2])?,
            ];
            if add_wanted {
                grads.push(tensor(add_grad, &args[3])?);
            }
            Ok(grads)
        })
    }
}

/// `f` of each pair of numbers.
#[inline(always)]
fn map<T: Element>(to: &mut [T], a: &[T], b: &[T], f: impl Fn(T, T) -> T) {
    for ((to, &a), &b) in to.iter_mut().zip(a).zip(b) {
        *to = f(a, b);
    }
}
