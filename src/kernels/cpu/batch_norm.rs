//! Batch normalisation, one channel at a time.
//!
//! A task is a few whole channels. Each channel is small enough to stay in a cache while several passes run over it, so
//! main memory is read once in the forward pass and once in the backward pass.

use super::Real;
use super::memory::{assume_init, assume_init_mut, build, uninit, write_copy};
use super::parallel::{self, Shared};
use super::simd::vectorised;
use std::convert::Infallible;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Elements that fit the first-level cache and are few enough to be summed in f32.
const PIECE: usize = 1 << 10;

/// The layout `(batch, channels, plane)` of a tensor.
#[derive(Clone, Copy)]
pub(crate) struct Grid {
    pub batch: usize,
    pub channels: usize,
    /// Elements of one channel of one example.
    pub plane: usize,
}

/// The mean and the biased variance of one channel.
#[derive(Clone, Copy, Default)]
pub(crate) struct Statistics {
    pub mean: f64,
    pub variance: f64,
}

/// The operands of the forward pass.
///
/// `xs` and `residual` have the layout of `grid`; `weight` and `bias` hold one element per channel.
pub(crate) struct Forward<'a, T> {
    pub grid: Grid,
    pub xs: &'a [T],
    pub weight: &'a [T],
    pub bias: &'a [T],
    pub residual: Option<&'a [T]>,
    pub relu: bool,
    pub epsilon: f64,
}

/// The operands of the backward pass: `ys` is the output, `grad` its gradient.
pub(crate) struct Backward<'a, T> {
    pub grid: Grid,
    pub xs: &'a [T],
    pub weight: &'a [T],
    pub ys: &'a [T],
    pub grad: &'a [T],
    pub statistics: &'a [Statistics],
    /// Whether the statistics were computed from the batch, so that the gradient flows through them too.
    pub of_batch: bool,
    pub residual: bool,
    pub relu: bool,
    pub epsilon: f64,
}

pub(crate) struct Gradients<T> {
    pub xs: Vec<T>,
    pub weight: Vec<T>,
    pub bias: Vec<T>,
    pub residual: Option<Vec<T>>,
}

impl Grid {
    fn len(&self) -> usize {
        self.batch * self.channels * self.plane
    }

    /// The layout with the elements of each channel together, if the planes are too small on their own.
    fn gathered(self) -> Option<Self> {
        let scattered = self.batch > 1 && (1..128).contains(&self.plane);
        scattered.then_some(Self { batch: 1, plane: self.batch * self.plane, ..self })
    }

    /// Puts the elements of each channel together.
    fn gather<T: Real>(self, xs: &[T]) -> Vec<T> {
        swap(xs, [self.batch, self.channels, self.plane])
    }

    /// Undoes [`Self::gather`].
    fn scatter<T: Real>(self, xs: &[T]) -> Vec<T> {
        swap(xs, [self.channels, self.batch, self.plane])
    }

    /// The ranges of one channel's elements, cut into pieces of at most [`PIECE`].
    fn pieces(self, channel: usize) -> impl Iterator<Item = Range<usize>> + Clone {
        (0..self.batch).flat_map(move |example| {
            let plane = (example * self.channels + channel) * self.plane;
            let end = plane + self.plane;
            (plane..end).step_by(PIECE).map(move |start| start..end.min(start + PIECE))
        })
    }

    /// Elements of one channel; 1 for an empty batch, so that the means of its empty sums are 0.
    fn count(&self) -> f64 {
        (self.batch * self.plane).max(1) as f64
    }

    /// Calls `work` on each channel in parallel and collects the results.
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

impl Statistics {
    /// Computes the statistics of one channel of the batch by the corrected two-pass algorithm.
    ///
    /// A first pass estimates the mean, and a second one sums differences from the estimate and corrects for its error
    /// (Chan, Golub and LeVeque 1983).
    #[inline(always)]
    fn of_batch<T: Real>(xs: &[T], grid: Grid, channel: usize) -> Self {
        let mut sum = Sum::new();
        for at in grid.pieces(channel) {
            let xs = &xs[at];
            sum.add(
                xs,
                xs,
                #[inline(always)]
                |x, _| x,
            );
        }
        let centre = T::of(sum.total() / grid.count());
        let (mut error, mut squares) = (Sum::new(), Sum::new());
        for at in grid.pieces(channel) {
            let xs = &xs[at];
            error.add(
                xs,
                xs,
                #[inline(always)]
                |x, _| x - centre,
            );
            squares.add(
                xs,
                xs,
                #[inline(always)]
                |x, _| (x - centre) * (x - centre),
            );
        }
        let (error, squares) = (error.total() / grid.count(), squares.total());
        Self { mean: centre.as_f64() + error, variance: squares / grid.count() - error * error }
    }

    pub fn inverse_deviation(&self, epsilon: f64) -> f64 {
        1. / (self.variance + epsilon).sqrt()
    }

    /// The mean rounded to `T`, and the rounding error.
    pub fn centre<T: Real>(&self) -> (T, f64) {
        let centre = T::of(self.mean);
        (centre, self.mean - centre.as_f64())
    }
}

/// Swaps the first two dimensions of a tensor.
fn swap<T: Real>(xs: &[T], [rows, columns, plane]: [usize; 3]) -> Vec<T> {
    let write = |column: usize, to: &mut [MaybeUninit<T>]| {
        for (row, to) in to.chunks_exact_mut(plane).enumerate() {
            write_copy(to, &xs[(row * columns + column) * plane..][..plane]);
        }
    };
    // SAFETY: the rows of a column fill it.
    unsafe { build(xs.len(), rows * plane, write) }
}

/// The statistics of each channel of `xs`.
pub(crate) fn statistics<T: Real>(xs: &[T], grid: Grid) -> Vec<Statistics> {
    if let Some(gathered) = grid.gathered() {
        return statistics(&grid.gather(xs), gathered);
    }
    grid.for_each_channel(
        #[inline(always)]
        |channel| Statistics::of_batch(xs, grid, channel),
    )
}

/// Returns the normalised tensor and the statistics of each channel: `running`, or else of the batch.
pub(crate) fn forward<T: Real>(
    operands: &Forward<T>,
    running: Option<&[Statistics]>,
) -> (Vec<T>, Vec<Statistics>) {
    let grid = operands.grid;
    // With the statistics known, one pass is left, for which a copy does not pay.
    if let Some(gathered) = grid.gathered().filter(|_| running.is_none()) {
        let xs = grid.gather(operands.xs);
        let residual = operands.residual.map(|residual| grid.gather(residual));
        let operands = Forward { grid: gathered, xs: &xs, residual: residual.as_deref(), ..*operands };
        let (ys, statistics) = forward(&operands, None);
        return (grid.scatter(&ys), statistics);
    }
    let mut ys = uninit(grid.len());
    let to = Shared::new(&mut ys);
    let statistics = grid.for_each_channel(
        #[inline(always)]
        |channel| {
            let statistics = match running {
                Some(running) => running[channel],
                None => Statistics::of_batch(operands.xs, grid, channel),
            };
            operands.normalise(channel, statistics, &to);
            statistics
        },
    );
    // SAFETY: `normalise` has written every piece of every channel, and these make up the whole.
    (unsafe { assume_init(ys) }, statistics)
}

impl<T: Real> Forward<'_, T> {
    /// Writes the output of one channel.
    #[inline(always)]
    fn normalise(&self, channel: usize, statistics: Statistics, to: &Shared<MaybeUninit<T>>) {
        let scale = self.weight[channel].as_f64() * statistics.inverse_deviation(self.epsilon);
        let (centre, error) = statistics.centre::<T>();
        let shift = T::of(self.bias[channel].as_f64() - error * scale);
        let scale = T::of(scale);
        let norm = |x: T| (x - centre) * scale + shift;
        for at in self.grid.pieces(channel) {
            // SAFETY: the pieces of different channels do not overlap, and one task works on a channel.
            let ys = unsafe { to.slice(at.clone()) };
            let xs = &self.xs[at.clone()];
            match (self.residual.map(|residual| &residual[at]), self.relu) {
                (None, false) => write_zip(
                    ys,
                    xs,
                    xs,
                    #[inline(always)]
                    |x, _| norm(x),
                ),
                (None, true) => write_zip(
                    ys,
                    xs,
                    xs,
                    #[inline(always)]
                    |x, _| norm(x).relu(),
                ),
                (Some(residual), false) => write_zip(
                    ys,
                    xs,
                    residual,
                    #[inline(always)]
                    |x, r| norm(x) + r,
                ),
                (Some(residual), true) => write_zip(
                    ys,
                    xs,
                    residual,
                    #[inline(always)]
                    |x, r| (norm(x) + r).relu(),
                ),
            };
        }
    }
}

/// Sums over the elements of one channel on which the gradients depend.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sums {
    /// The sum of the gradient before the ReLU.
    pub gradient: f64,
    /// The sum of its products with the centred input.
    pub product: f64,
}

/// The gradients of the operands.
pub(crate) fn backward<T: Real>(operands: &Backward<T>) -> Gradients<T> {
    let work = |operands: &Backward<T>, to: &Targets<T>| -> Result<_, Infallible> {
        let count = operands.grid.count();
        Ok(operands.grid.for_each_channel(
            #[inline(always)]
            |channel| {
                let sums = operands.sums(channel, to);
                operands.finish(channel, sums, count, to);
                sums
            },
        ))
    };
    // SAFETY: `sums` and `finish` run on every channel.
    let Ok(gradients) = unsafe { operands.gradients(work) };
    gradients
}

/// Computes the gradients of the operands if they are a part of a larger batch.
///
/// `exchange` takes the sums of each channel over this part. It returns the sums over the whole batch, and the number
/// of elements per channel there.
pub(crate) fn backward_of_part<T: Real, E>(
    operands: &Backward<T>,
    exchange: impl FnOnce(&[Sums]) -> Result<(Vec<Sums>, f64), E>,
) -> Result<Gradients<T>, E> {
    let work = |operands: &Backward<T>, to: &Targets<T>| {
        let grid = operands.grid;
        let sums = grid.for_each_channel(
            #[inline(always)]
            |channel| operands.sums(channel, to),
        );
        let (all, count) = exchange(&sums)?;
        grid.for_each_channel(
            #[inline(always)]
            |channel| operands.finish(channel, all[channel], count, to),
        );
        Ok(sums)
    };
    // SAFETY: `sums` and `finish` run on every channel.
    unsafe { operands.gradients(work) }
}

/// Memory for the gradients of the input and the residual; the latter is empty if there is no residual.
struct Targets<'a, T> {
    xs: Shared<'a, MaybeUninit<T>>,
    residual: Shared<'a, MaybeUninit<T>>,
}

impl<T: Real> Backward<'_, T> {
    /// The gradients of the operands. `work` returns the sums of each channel.
    ///
    /// If the planes are small, `work` gets operands with the elements of each channel together.
    ///
    /// # Safety
    /// Unless it fails, `work` calls [`Self::sums`] and [`Self::finish`] of its operands on every channel.
    unsafe fn gradients<E>(
        &self,
        work: impl FnOnce(&Backward<T>, &Targets<T>) -> Result<Vec<Sums>, E>,
    ) -> Result<Gradients<T>, E> {
        if let Some(grid) = self.grid.gathered() {
            let gather = |xs: &[T]| self.grid.gather(xs);
            let ys = if self.relu { gather(self.ys) } else { vec![] };
            let (xs, grad) = (gather(self.xs), gather(self.grad));
            let operands = Backward { grid, xs: &xs, ys: &ys, grad: &grad, ..*self };
            // SAFETY: the caller's contract.
            let gradients = unsafe { operands.gradients(work)? };
            let residual = gradients.residual.map(|residual| self.grid.scatter(&residual));
            return Ok(Gradients { xs: self.grid.scatter(&gradients.xs), residual, ..gradients });
        }
        let len = self.grid.len();
        let (mut xs, mut residual) = (uninit(len), uninit(if self.residual { len } else { 0 }));
        let sums = work(self, &Targets { xs: Shared::new(&mut xs), residual: Shared::new(&mut residual) })?;
        // SAFETY: `work` has written the pieces of all channels, which make up the whole.
        let (xs, residual) = unsafe { (assume_init(xs), assume_init(residual)) };
        let inverse = |channel: &Statistics| channel.inverse_deviation(self.epsilon);
        let weight = sums.iter().zip(self.statistics).map(|(sums, channel)| sums.product * inverse(channel));
        Ok(Gradients {
            xs,
            weight: weight.map(T::of).collect(),
            bias: sums.iter().map(|sums| T::of(sums.gradient)).collect(),
            residual: self.residual.then_some(residual),
        })
    }

    /// Returns the sums of one channel. Writes the gradient of the residual there, and with a ReLU the gradient before it.
    #[inline(always)]
    fn sums(&self, channel: usize, to: &Targets<T>) -> Sums {
        let (centre, error) = self.statistics[channel].centre::<T>();
        let (mut sum, mut product) = (Sum::new(), Sum::new());
        for at in self.grid.pieces(channel) {
            let grad = &self.grad[at.clone()];
            let dx = match self.relu {
                true => write_zip(
                    // SAFETY: the pieces of different channels do not overlap, and one task works on a channel.
                    unsafe { to.xs.slice(at.clone()) },
                    &self.ys[at.clone()],
                    grad,
                    #[inline(always)]
                    |y, g| if y <= T::ZERO { T::ZERO } else { g },
                ),
                false => grad,
            };
            if self.residual {
                // SAFETY: as before.
                write_copy(unsafe { to.residual.slice(at.clone()) }, dx);
            }
            sum.add(
                dx,
                dx,
                #[inline(always)]
                |g, _| g,
            );
            product.add(
                dx,
                &self.xs[at],
                #[inline(always)]
                |g, x| g * (x - centre),
            );
        }
        let gradient = sum.total();
        Sums { gradient, product: product.total() - error * gradient }
    }

    /// Writes the gradient of the input in one channel, after [`Self::sums`].
    ///
    /// `sums` are over all `count` elements behind the statistics.
    #[inline(always)]
    fn finish(&self, channel: usize, sums: Sums, count: f64, to: &Targets<T>) {
        let statistics = self.statistics[channel];
        let inverse = statistics.inverse_deviation(self.epsilon);
        let (centre, error) = statistics.centre::<T>();
        let scale = self.weight[channel] * T::of(inverse);
        let [level, slope] = match self.of_batch {
            true => {
                let slope = sums.product * inverse * inverse / count;
                [sums.gradient / count - error * slope, slope].map(T::of)
            }
            false => [T::ZERO; 2],
        };
        let input = |g: T, x: T| scale * (g - level - (x - centre) * slope);
        for at in self.grid.pieces(channel) {
            // SAFETY: the pieces of different channels do not overlap, and one task works on a channel.
            let dx = unsafe { to.xs.slice(at.clone()) };
            let xs = &self.xs[at.clone()];
            if self.relu {
                // SAFETY: `sums` has written it.
                let dx = unsafe { assume_init_mut(dx) };
                dx.iter_mut().zip(xs).for_each(|(g, &x)| *g = input(*g, x));
            } else {
                write_zip(dx, &self.grad[at], xs, input);
            }
        }
    }
}

/// A sum in a fixed order.
///
/// A few lanes add in `T`, and their totals are added in f64 before they grow large.
struct Sum<T> {
    lanes: [T; 32],
    /// Elements that the lanes have added.
    added: usize,
    total: f64,
}

impl<T: Real> Sum<T> {
    #[inline(always)]
    fn new() -> Self {
        Self { lanes: [T::ZERO; 32], added: 0, total: 0. }
    }

    /// Adds `f` of each pair of elements.
    #[inline(always)]
    fn add(&mut self, a: &[T], b: &[T], f: impl Fn(T, T) -> T) {
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<32>(), b.as_chunks::<32>());
        // The compiler vectorises the loop only if no other code indexes the lanes.
        let mut lanes = self.lanes;
        for (a, b) in a.iter().zip(b) {
            for ((sum, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
                *sum += f(a, b);
            }
        }
        self.lanes = lanes;
        for ((sum, &a), &b) in self.lanes.iter_mut().zip(a_rest).zip(b_rest) {
            *sum += f(a, b);
        }
        self.added += 32 * a.len() + a_rest.len();
        if self.added >= PIECE {
            *self = Self { total: self.total(), ..Self::new() };
        }
    }

    #[inline(always)]
    fn total(&self) -> f64 {
        self.total + self.lanes.iter().fold(T::ZERO, |sum, &x| sum + x).as_f64()
    }
}

/// Writes `f` of each pair of elements, and returns the initialised slice.
#[inline(always)]
fn write_zip<'a, T: Real>(
    to: &'a mut [MaybeUninit<T>],
    a: &[T],
    b: &[T],
    f: impl Fn(T, T) -> T,
) -> &'a mut [T] {
    assert!(a.len() == to.len() && b.len() == to.len());
    for ((to, &a), &b) in to.iter_mut().zip(a).zip(b) {
        to.write(f(a, b));
    }
    // SAFETY: all three slices have the same length, so the loop has written every element.
    unsafe { assume_init_mut(to) }
}
