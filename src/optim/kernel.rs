//! The updates on the CPU: one pass over memory, no temporaries.

use super::{Adadelta, Adagrad, Adam, Gradient, Method, RmsProp, Sgd, Update};
use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Result, Storage, Tensor, Var, WithDType, bail};
use rayon::prelude::*;
use std::borrow::Cow;
use std::cell::Cell;

/// Elements that one task works on: all it touches fits a core's second-level cache.
const CHUNK: usize = 1 << 14;
/// Fewer elements than this are faster on one thread.
const PARALLEL: usize = 1 << 16;

/// Updates `parameter` and its `moments` (moments, shape of the parameter); all contiguous, f32 or f64.
pub(super) fn update(
    method: &Method,
    update: &Update,
    parameter: &Var,
    gradient: &Gradient,
    moments: Option<&Var>,
) -> Result<()> {
    match parameter.dtype() {
        DType::F64 => typed::<f64>(method, update, parameter, gradient, moments),
        _ => typed::<f32>(method, update, parameter, gradient, moments),
    }
}

/// The sum of the squares of all elements of a contiguous tensor.
pub(super) fn sum_squares(gradient: &Tensor) -> Result<f64> {
    fn typed<T: Real>(gradient: &Tensor) -> Result<f64> {
        let (storage, layout) = gradient.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else {
            bail!("optimizer: {:?} is not on the CPU", layout.shape())
        };
        let elements = slice::<T>(storage, layout)?;
        let chunks: Vec<_> = elements.chunks(CHUNK).collect();
        let sums = for_each(chunks, elements.len(), |chunk| pulp::Arch::new().dispatch(SumSquares(chunk)));
        Ok(sums.into_iter().sum())
    }
    match gradient.dtype() {
        DType::F64 => typed::<f64>(gradient),
        _ => typed::<f32>(gradient),
    }
}

fn typed<T: Real>(
    method: &Method,
    update: &Update,
    parameter: &Var,
    gradient: &Gradient,
    moments: Option<&Var>,
) -> Result<()> {
    let real = T::from_f64;
    // A lazy update goes row by row.
    let rows = match (update.lazy, &gradient.rows) {
        (false, _) => None,
        (true, Some(rows)) => Some(Cow::Borrowed(&rows[..])),
        (true, None) => Some((0..parameter.dim(0)? as u32).collect()),
    };
    let (gradient, rows) = (&gradient.values, rows.as_deref());
    let learning_rate = real(update.learning_rate);
    let (scale, limit, l2, l1) = (real(update.scale), real(update.limit), real(update.l2), real(update.l1));
    let (zero, one) = (T::zero(), T::one());
    let clipped_and_decayed = move |p: T, g: T| {
        let g = g * scale;
        let g = if g > limit { limit } else { g };
        let g = if g < zero - limit { zero - limit } else { g };
        let sign = if p > zero { one } else { zero } - if p < zero { one } else { zero };
        g + l2 * p + l1 * sign
    };
    match *method {
        Method::Sgd(Sgd { momentum: 0., .. }) => {
            run(parameter, gradient, rows, moments, move |p: T, g, []| {
                (p - learning_rate * clipped_and_decayed(p, g), [])
            })
        }
        Method::Sgd(Sgd { momentum, nesterov, .. }) => {
            let momentum = real(momentum);
            run(parameter, gradient, rows, moments, move |p: T, g, [buffer]| {
                let g = clipped_and_decayed(p, g);
                let buffer = momentum * buffer + g;
                let direction = if nesterov { g + momentum * buffer } else { buffer };
                (p - learning_rate * direction, [buffer])
            })
        }
        Method::Adam(Adam { betas: (beta1, beta2), epsilon, .. }) => {
            let correction1 = 1. - beta1.powf(f64::from(update.steps));
            let correction2 = 1. - beta2.powf(f64::from(update.steps));
            let step_size = real(update.learning_rate / correction1);
            let root_scale = real(1. / correction2.sqrt());
            let (epsilon, shrink) = (real(epsilon), real(update.shrink));
            let (kept1, added1, kept2, added2) =
                (real(beta1), real(1. - beta1), real(beta2), real(1. - beta2));
            run(parameter, gradient, rows, moments, move |p: T, g, [mean, square]| {
                let g = clipped_and_decayed(p, g);
                let mean = kept1 * mean + added1 * g;
                let square = kept2 * square + added2 * (g * g);
                (p * shrink - step_size * (mean / (square.sqrt() * root_scale + epsilon)), [mean, square])
            })
        }
        Method::RmsProp(RmsProp { alpha, epsilon, momentum, .. }) => {
            let (kept, added, epsilon) = (real(alpha), real(1. - alpha), real(epsilon));
            let adapted = move |p: T, g: T, square: T| {
                let g = clipped_and_decayed(p, g);
                let square = kept * square + added * (g * g);
                (g / (square.sqrt() + epsilon), square)
            };
            if momentum == 0. {
                run(parameter, gradient, rows, moments, move |p: T, g, [square]| {
                    let (direction, square) = adapted(p, g, square);
                    (p - learning_rate * direction, [square])
                })
            } else {
                let momentum = real(momentum);
                run(parameter, gradient, rows, moments, move |p: T, g, [square, buffer]| {
                    let (direction, square) = adapted(p, g, square);
                    let buffer = momentum * buffer + direction;
                    (p - learning_rate * buffer, [square, buffer])
                })
            }
        }
        Method::Adagrad(Adagrad { epsilon, .. }) => {
            let epsilon = real(epsilon);
            run(parameter, gradient, rows, moments, move |p: T, g, [sum]| {
                let g = clipped_and_decayed(p, g);
                let sum = sum + g * g;
                (p - learning_rate * (g / (sum.sqrt() + epsilon)), [sum])
            })
        }
        Method::Adadelta(Adadelta { rho, epsilon, .. }) => {
            let (kept, added, epsilon) = (real(rho), real(1. - rho), real(epsilon));
            run(parameter, gradient, rows, moments, move |p: T, g, [square, changes]| {
                let g = clipped_and_decayed(p, g);
                let square = kept * square + added * (g * g);
                let change = (changes + epsilon).sqrt() / (square + epsilon).sqrt() * g;
                (p - learning_rate * change, [square, kept * changes + added * (change * change)])
            })
        }
    }
}

/// Replaces each element of the parameter and of its `N` moments by what `rule` makes of them and of the gradient; with
/// `rows`, only in those rows, whose gradients `gradient` holds, and of them only where that is not zero throughout.
fn run<T: Real, const N: usize>(
    parameter: &Var,
    gradient: &Tensor,
    rows: Option<&[u32]>,
    moments: Option<&Var>,
    rule: impl Fn(T, T, [T; N]) -> (T, [T; N]) + Copy + Send + Sync,
) -> Result<()> {
    let apply = |moments: &mut [T]| {
        lend(parameter, gradient, move |parameter, gradient| {
            let whole = parameter.len().max(1);
            let size = match rows {
                Some(rows) => (gradient.len() / rows.len().max(1)).max(1),
                None => CHUNK,
            };
            let mut moments = moments.chunks_exact_mut(whole);
            let mut moments: [_; N] =
                std::array::from_fn(|_| moments.next().unwrap_or_default().chunks_mut(size));
            let mut parameter = parameter.chunks_mut(size);
            let mut next = 0;
            let mut piece = |at: usize, gradient| {
                let skipped = at - std::mem::replace(&mut next, at + 1);
                let parameter = parameter.nth(skipped).unwrap_or_default();
                let moments = moments.each_mut().map(|moment| moment.nth(skipped).unwrap_or_default());
                Piece { parameter, gradient, moments }
            };
            let gradients = gradient.chunks(size);
            let mut pieces: Vec<Piece<T, N>> = match rows {
                Some(rows) => {
                    let changed = |(_, gradient): &(_, &[T])| gradient.iter().any(|&g| g != T::zero());
                    let changed = rows.iter().zip(gradients).filter(changed);
                    changed.map(|(&row, gradient)| piece(row as usize, gradient)).collect()
                }
                None => gradients.enumerate().map(|(at, gradient)| piece(at, gradient)).collect(),
            };
            let chunks = pieces.chunks_mut((CHUNK / size).max(1)).collect();
            for_each(chunks, gradient.len(), |pieces| pulp::Arch::new().dispatch(Sweep { pieces, rule }));
        })
    };
    match moments {
        Some(moments) => {
            let mut applied = Ok(());
            lend(moments, gradient, |moments, _| applied = apply(moments))?;
            applied
        }
        None => apply(&mut []),
    }
}

/// The results of `task` in the order of `chunks`, which together have `len` elements.
fn for_each<C: Send, R: Send>(chunks: Vec<C>, len: usize, task: impl Fn(C) -> R + Send + Sync) -> Vec<R> {
    if len < PARALLEL {
        chunks.into_iter().map(task).collect()
    } else {
        chunks.into_par_iter().map(task).collect()
    }
}

/// Part of a parameter, and of its gradient and moments.
struct Piece<'a, T, const N: usize> {
    parameter: &'a mut [T],
    gradient: &'a [T],
    moments: [&'a mut [T]; N],
}

struct Sweep<'a, 'b, T, const N: usize, F> {
    pieces: &'a mut [Piece<'b, T, N>],
    rule: F,
}

impl<T: Real, const N: usize, F: Fn(T, T, [T; N]) -> (T, [T; N])> pulp::NullaryFnOnce
    for Sweep<'_, '_, T, N, F>
{
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for Piece { parameter, gradient, moments } in self.pieces {
            let len = parameter.len();
            let (parameter, gradient) = (&mut parameter[..len], &gradient[..len]);
            let moments = moments.each_mut().map(|moment| &mut moment[..len]);
            for i in 0..len {
                let (p, m) = (self.rule)(parameter[i], gradient[i], std::array::from_fn(|k| moments[k][i]));
                parameter[i] = p;
                for k in 0..N {
                    moments[k][i] = m[k];
                }
            }
        }
    }
}

struct SumSquares<'a, T>(&'a [T]);

impl<T: Real> pulp::NullaryFnOnce for SumSquares<'_, T> {
    type Output = f64;

    #[inline(always)]
    fn call(self) -> f64 {
        // Independent sums, so that additions need not wait for one another.
        let mut sums = [0.; 16];
        let (blocks, rest) = self.0.as_chunks::<16>();
        for block in blocks {
            let squares = block.map(T::square);
            for i in 0..16 {
                sums[i] += squares[i];
            }
        }
        for (sum, x) in sums.iter_mut().zip(rest) {
            *sum += x.square();
        }
        sums.into_iter().sum()
    }
}

trait Real: WithDType {
    fn sqrt(self) -> Self;
    fn square(self) -> f64;
    fn elements_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}

macro_rules! real {
    ($type:ty, $variant:ident) => {
        impl Real for $type {
            #[inline(always)]
            fn sqrt(self) -> Self {
                self.sqrt()
            }

            #[inline(always)]
            fn square(self) -> f64 {
                let x = self as f64;
                x * x
            }

            fn elements_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
                match storage {
                    CpuStorage::$variant(elements) => Some(elements),
                    _ => None,
                }
            }
        }
    };
}

real!(f32, F32);
real!(f64, F64);

/// Lends the elements of `to`, for writing, and of `from` to `f`. Candle's in-place operations are the only way to a
/// tensor's elements that can be written to.
fn lend<T: Real>(to: &Tensor, from: &Tensor, f: impl FnOnce(&mut [T], &[T])) -> Result<()> {
    struct Lend<T, F>(Cell<Option<F>>, std::marker::PhantomData<T>);

    impl<T: Real, F: FnOnce(&mut [T], &[T])> InplaceOp2 for Lend<T, F> {
        fn name(&self) -> &'static str {
            "optimizer"
        }

        fn cpu_fwd(
            &self,
            to: &mut CpuStorage,
            to_l: &Layout,
            from: &CpuStorage,
            from_l: &Layout,
        ) -> Result<()> {
            let from = slice::<T>(from, from_l)?;
            let to =
                to_l.contiguous_offsets().and_then(|(start, end)| T::elements_mut(to)?.get_mut(start..end));
            match (to, self.0.take()) {
                (Some(to), Some(f)) => f(to, from),
                _ => bail!("optimizer: expected a contiguous {:?} variable", T::DTYPE),
            }
            Ok(())
        }
    }

    to.inplace_op2(from, &Lend(Cell::new(Some(f)), std::marker::PhantomData))
}

fn slice<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<T>()?[start..end]),
        None => bail!("optimizer: expected a contiguous gradient, found strides {:?}", layout.stride()),
    }
}
