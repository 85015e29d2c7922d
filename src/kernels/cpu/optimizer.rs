//! Optimizer updates: one pass over the parameter, its gradient and its moments.
//!
//! Every element follows the plain formula of its [`Rule`], so that results do not depend on the number of threads or
//! on the width of vectors. Sums add sixteen fixed lanes within chunks of a fixed size.

use super::parallel::{self, Shared};
use super::real::Real;
use super::simd::vectorised;
use std::ops::Range;

/// Elements per task: the data of a task fits into a core's second-level cache.
const CHUNK: usize = 1 << 14;
/// Fewer elements than this are updated faster by a single thread.
const PARALLEL: usize = 1 << 16;

/// Elements that are updated together.
const BLOCK: usize = 16;

/// How one step changes an element `p` of a parameter, given its gradient `g` and its moments.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rule {
    /// `p -= rate * g`
    Sgd { rate: f64 },
    /// `buffer = momentum * buffer + g`, then `p -= rate * buffer`.
    ///
    /// With `nesterov`, `p -= rate * (g + momentum * buffer)`.
    Momentum { rate: f64, momentum: f64, nesterov: bool },
    /// Adam.
    ///
    /// `mean = beta1 * mean + (1 - beta1) * g` and `square = beta2 * square + (1 - beta2) * g²`, then `p = shrink * p -
    /// step_size * mean / (root_scale * sqrt(square) + epsilon)`.
    Adam { betas: (f64, f64), epsilon: f64, step_size: f64, root_scale: f64, shrink: f64 },
    /// `square = alpha * square + (1 - alpha) * g²`, then `p -= rate * g / (sqrt(square) + epsilon)`.
    RmsProp { rate: f64, alpha: f64, epsilon: f64 },
    /// `buffer = momentum * buffer + g / (sqrt(square) + epsilon)`, then `p -= rate * buffer`.
    ///
    /// `square` is computed as in `RmsProp`.
    RmsPropMomentum { rate: f64, alpha: f64, epsilon: f64, momentum: f64 },
    /// `sum += g²`, then `p -= rate * g / (sqrt(sum) + epsilon)`.
    Adagrad { rate: f64, epsilon: f64 },
    /// Adadelta.
    ///
    /// `square = rho * square + (1 - rho) * g²` and `change = sqrt(changes + epsilon) / sqrt(square + epsilon) * g`,
    /// then `p -= rate * change` and `changes = rho * changes + (1 - rho) * change²`.
    Adadelta { rate: f64, rho: f64, epsilon: f64 },
}

/// Changes to a gradient before a [`Rule`] reads it.
///
/// The gradient is scaled, clipped to ±`limit`, and `l2 * p + l1 * sign(p)` is added.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GradientTerms {
    pub scale: f64,
    pub limit: f64,
    pub l2: f64,
    pub l1: f64,
}

impl GradientTerms {
    /// The final gradient of the element `p`.
    #[inline(always)]
    fn of<T: Real>(self) -> impl Fn(T, T) -> T + Copy + Sync {
        let [scale, limit, l2, l1] = [self.scale, self.limit, self.l2, self.l1].map(T::of);
        #[inline(always)]
        move |p, g| {
            let g = g * scale;
            let g = if g > limit { limit } else { g };
            let g = if g < -limit { -limit } else { g };
            let sign =
                if p > T::ZERO { T::ONE } else { T::ZERO } - if p < T::ZERO { T::ONE } else { T::ZERO };
            g + l2 * p + l1 * sign
        }
    }
}

/// The part of a parameter that a gradient covers.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Coverage<'a> {
    /// All elements.
    Dense,
    /// Rows of `columns` elements, one per row of the gradient.
    ///
    /// A row whose gradient is all zero keeps its parameter and its moments.
    Sparse {
        columns: usize,
        /// Indices of the rows, strictly increasing; `None` covers every row of the parameter.
        rows: Option<&'a [u32]>,
    },
}

/// Applies one step of `rule` to `parameter` and `moments`, which holds one moment after the other.
///
/// # Panics
/// If the lengths do not match, or if the rows are out of range or not strictly increasing.
pub(crate) fn update<T: Real>(
    rule: &Rule,
    terms: GradientTerms,
    coverage: Coverage,
    parameter: &mut [T],
    gradient: &[T],
    moments: &mut [T],
) {
    let sweep = Sweep { coverage, parameter, gradient, moments };
    let gradient_of = terms.of::<T>();
    match *rule {
        Rule::Sgd { rate } => {
            let rate = T::of(rate);
            sweep.run(move |p, g, []| (p - rate * gradient_of(p, g), []))
        }
        Rule::Momentum { rate, momentum, nesterov } => {
            let (rate, momentum) = (T::of(rate), T::of(momentum));
            sweep.run(move |p, g, [buffer]| {
                let g = gradient_of(p, g);
                let buffer = momentum * buffer + g;
                let direction = if nesterov { g + momentum * buffer } else { buffer };
                (p - rate * direction, [buffer])
            })
        }
        Rule::Adam { betas: (beta1, beta2), epsilon, step_size, root_scale, shrink } => {
            let [kept1, added1] = [beta1, 1. - beta1].map(T::of);
            let [kept2, added2] = [beta2, 1. - beta2].map(T::of);
            let [epsilon, step_size, root_scale, shrink] =
                [epsilon, step_size, root_scale, shrink].map(T::of);
            sweep.run(move |p, g, [mean, square]| {
                let g = gradient_of(p, g);
                let mean = kept1 * mean + added1 * g;
                let square = kept2 * square + added2 * (g * g);
                (p * shrink - step_size * (mean / (square.sqrt() * root_scale + epsilon)), [mean, square])
            })
        }
        Rule::RmsProp { rate, alpha, epsilon } => {
            let [rate, kept, added, epsilon] = [rate, alpha, 1. - alpha, epsilon].map(T::of);
            sweep.run(move |p, g, [square]| {
                let g = gradient_of(p, g);
                let square = kept * square + added * (g * g);
                (p - rate * (g / (square.sqrt() + epsilon)), [square])
            })
        }
        Rule::RmsPropMomentum { rate, alpha, epsilon, momentum } => {
            let [rate, kept, added, epsilon] = [rate, alpha, 1. - alpha, epsilon].map(T::of);
            let momentum = T::of(momentum);
            sweep.run(move |p, g, [square, buffer]| {
                let g = gradient_of(p, g);
                let square = kept * square + added * (g * g);
                let buffer = momentum * buffer + g / (square.sqrt() + epsilon);
                (p - rate * buffer, [square, buffer])
            })
        }
        Rule::Adagrad { rate, epsilon } => {
            let (rate, epsilon) = (T::of(rate), T::of(epsilon));
            sweep.run(move |p, g, [sum]| {
                let g = gradient_of(p, g);
                let sum = sum + g * g;
                (p - rate * (g / (sum.sqrt() + epsilon)), [sum])
            })
        }
        Rule::Adadelta { rate, rho, epsilon } => {
            let [rate, kept, added, epsilon] = [rate, rho, 1. - rho, epsilon].map(T::of);
            sweep.run(move |p, g, [square, changes]| {
                let g = gradient_of(p, g);
                let square = kept * square + added * (g * g);
                let change = (changes + epsilon).sqrt() / (square + epsilon).sqrt() * g;
                (p - rate * change, [square, kept * changes + added * (change * change)])
            })
        }
    }
}

/// The slices that one update reads and writes.
struct Sweep<'a, T> {
    coverage: Coverage<'a>,
    parameter: &'a mut [T],
    gradient: &'a [T],
    moments: &'a mut [T],
}

impl<T: Real> Sweep<'_, T> {
    /// Replaces each covered element and its `N` moments by `rule(element, gradient, moments)`.
    fn run<const N: usize>(self, rule: impl Fn(T, T, [T; N]) -> (T, [T; N]) + Copy + Sync) {
        let Self { coverage, parameter, gradient, moments } = self;
        let len = parameter.len();
        assert_eq!(moments.len(), N * len, "{N} moments of {len} elements");
        let targets = Targets { len, parameter: Shared::new(parameter), moments: Shared::new(moments) };
        match coverage {
            Coverage::Dense => targets.update_all(gradient, rule),
            Coverage::Sparse { columns: 0, .. } => {}
            Coverage::Sparse { columns, rows } => targets.update_rows(gradient, columns, rows, rule),
        }
    }
}

/// A parameter and its moments, whose parts several threads update.
struct Targets<'a, T> {
    len: usize,
    parameter: Shared<'a, T>,
    moments: Shared<'a, T>,
}

impl<T: Real> Targets<'_, T> {
    fn update_all<const N: usize>(
        &self,
        gradient: &[T],
        rule: impl Fn(T, T, [T; N]) -> (T, [T; N]) + Copy + Sync,
    ) {
        let len = self.len;
        assert_eq!(gradient.len(), len, "gradient of {len} elements");
        for_each_chunk(len, |at| {
            vectorised(
                #[inline(always)]
                // SAFETY: chunks do not overlap.
                || unsafe { self.update(at.clone(), &gradient[at], rule) },
            )
        });
    }

    /// Updates the rows whose gradient is not zero. `gradient` holds all rows, or these `rows`.
    fn update_rows<const N: usize>(
        &self,
        gradient: &[T],
        columns: usize,
        rows: Option<&[u32]>,
        rule: impl Fn(T, T, [T; N]) -> (T, [T; N]) + Copy + Sync,
    ) {
        let count = rows.map_or(self.len / columns, <[u32]>::len);
        assert_eq!(gradient.len(), count * columns, "gradient of {count} rows of {columns} elements");
        assert!(rows.is_none_or(|rows| rows.is_sorted_by(|a, b| a < b)), "rows out of order");
        let is_used = |&i: &usize| gradient[i * columns..][..columns].iter().any(|&g| g != T::ZERO);
        let per_task = (CHUNK / columns).max(1);
        for_each_task(count.div_ceil(per_task), gradient.len(), |task| {
            vectorised(
                #[inline(always)]
                || {
                    for i in (task * per_task..count.min((task + 1) * per_task)).filter(is_used) {
                        let gradient = &gradient[i * columns..][..columns];
                        let start = rows.map_or(i, |rows| rows[i] as usize) * columns;
                        // SAFETY: rows do not overlap, and none appears twice.
                        unsafe { self.update(start..start + columns, gradient, rule) };
                    }
                },
            )
        });
    }

    /// Updates the elements `at`.
    ///
    /// # Safety
    /// No other thread updates any of these elements at the same time.
    #[inline(always)]
    unsafe fn update<const N: usize>(
        &self,
        at: Range<usize>,
        gradient: &[T],
        rule: impl Fn(T, T, [T; N]) -> (T, [T; N]),
    ) {
        // SAFETY: the caller's contract; the moments of one element lie `len` apart.
        let (parameter, moments): (_, [_; N]) = unsafe {
            let moment = |k| self.moments.slice(k * self.len + at.start..k * self.len + at.end);
            (self.parameter.slice(at.clone()), std::array::from_fn(moment))
        };
        let len = parameter.len();
        let gradient = &gradient[..len];
        let moments = moments.map(|moment| &mut moment[..len]);
        let blocks = len / BLOCK * BLOCK;
        for at in (0..blocks).step_by(BLOCK) {
            // The compiler knows that local arrays do not overlap, and so vectorises the loop.
            let (mut block, gradient) = (load(&parameter[at..]), load(&gradient[at..]));
            let mut kept: [[T; BLOCK]; N] = std::array::from_fn(|k| load(&moments[k][at..]));
            for i in 0..BLOCK {
                let (p, m) = rule(block[i], gradient[i], std::array::from_fn(|k| kept[k][i]));
                block[i] = p;
                for k in 0..N {
                    kept[k][i] = m[k];
                }
            }
            parameter[at..at + BLOCK].copy_from_slice(&block);
            for k in 0..N {
                moments[k][at..at + BLOCK].copy_from_slice(&kept[k]);
            }
        }
        for i in blocks..len {
            let (p, m) = rule(parameter[i], gradient[i], std::array::from_fn(|k| moments[k][i]));
            parameter[i] = p;
            for k in 0..N {
                moments[k][i] = m[k];
            }
        }
    }
}

/// The first elements of `from`.
#[inline(always)]
fn load<T: Real>(from: &[T]) -> [T; BLOCK] {
    *from.first_chunk().expect("a whole block")
}

/// Scales down each row of `columns` elements whose Euclidean norm exceeds `max`, to that norm.
pub(crate) fn limit_row_norms<T: Real>(matrix: &mut [T], columns: usize, max: f64) {
    let columns = columns.max(1);
    let per_task = (CHUNK / columns).max(1);
    let work = |_, rows: &mut [T]| {
        vectorised(
            #[inline(always)]
            || {
                for row in rows.chunks_exact_mut(columns) {
                    let norm = dot_of_chunk(row, row).sqrt();
                    // A NaN spreads over its whole row.
                    if norm > max || norm.is_nan() {
                        let scale = T::of(max / norm);
                        row.iter_mut().for_each(|x| *x *= scale);
                    }
                }
            },
        )
    };
    parallel::for_each_piece(matrix, per_task * columns, work);
}

/// The sum of the squares of all `elements`.
pub(crate) fn sum_squares<T: Real>(elements: &[T]) -> f64 {
    dot(elements, elements)
}

/// The scalar product of `a` and `b`, which have the same length.
pub(crate) fn dot<T: Real>(a: &[T], b: &[T]) -> f64 {
    assert_eq!(a.len(), b.len(), "vectors of different lengths");
    let mut sums = vec![0.; a.len().div_ceil(CHUNK)];
    let shared = Shared::new(&mut sums);
    for_each_chunk(a.len(), |at| {
        // SAFETY: each chunk has its own sum.
        let sum = unsafe { shared.slice(at.start / CHUNK..at.start / CHUNK + 1) };
        sum[0] = vectorised(
            #[inline(always)]
            || dot_of_chunk(&a[at.clone()], &b[at]),
        );
    });
    sums.into_iter().sum()
}

#[inline(always)]
fn dot_of_chunk<T: Real>(a: &[T], b: &[T]) -> f64 {
    // Sixteen independent sums, so that additions need not wait for one another.
    let mut sums = [0.; 16];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..16 {
            sums[i] += a[i].as_f64() * b[i].as_f64();
        }
    }
    for ((sum, &a), &b) in sums.iter_mut().zip(a_rest).zip(b_rest) {
        *sum += a.as_f64() * b.as_f64();
    }
    sums.into_iter().sum()
}

/// Adds `factor * x` to `y`, which has the same length.
pub(crate) fn add_scaled<T: Real>(y: &mut [T], factor: f64, x: &[T]) {
    let plain = GradientTerms { scale: 1., limit: f64::INFINITY, l2: 0., l1: 0. };
    update(&Rule::Sgd { rate: -factor }, plain, Coverage::Dense, y, x, &mut []);
}

/// Calls `work` on consecutive ranges of `CHUNK` elements that cover `0..len`.
fn for_each_chunk(len: usize, work: impl Fn(Range<usize>) + Sync) {
    for_each_task(len.div_ceil(CHUNK), len, |i| work(i * CHUNK..len.min((i + 1) * CHUNK)));
}

/// Calls `work(i)` for each `i < tasks`, on one thread if the tasks have few elements in all.
fn for_each_task(tasks: usize, elements: usize, work: impl Fn(usize) + Sync) {
    match elements < PARALLEL {
        true => (0..tasks).for_each(work),
        false => parallel::for_each_chunk(tasks, work),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: GradientTerms = GradientTerms { scale: 1., limit: f64::INFINITY, l2: 0., l1: 0. };

    #[test]
    fn sparse_updates_skip_rows_with_zero_gradient() {
        let rule = Rule::Momentum { rate: 1., momentum: 0.5, nesterov: false };
        let (mut parameter, mut moments) = ([0f64; 8], [2f64; 8]);
        let coverage = Coverage::Sparse { columns: 2, rows: Some(&[1, 3]) };
        update(&rule, PLAIN, coverage, &mut parameter, &[0., 1., 0., 0.], &mut moments);
        assert_eq!(parameter, [0., 0., -1., -2., 0., 0., 0., 0.]);
        assert_eq!(moments, [2., 2., 1., 2., 2., 2., 2., 2.]);
    }

    #[test]
    #[should_panic(expected = "rows out of order")]
    fn a_row_given_twice_is_refused() {
        let coverage = Coverage::Sparse { columns: 1, rows: Some(&[1, 1]) };
        update(&Rule::Sgd { rate: 1. }, PLAIN, coverage, &mut [0f32; 3], &[1.; 2], &mut []);
    }

    #[test]
    fn rows_longer_than_the_limit_shrink_to_it_and_nan_spreads() {
        let mut matrix = [3f64, 4., 0.3, 0.4, f64::NAN, 1., 0., 0.];
        limit_row_norms(&mut matrix, 2, 1.);
        assert_eq!(matrix[2..4], [0.3, 0.4]);
        assert!((matrix[0] - 0.6).abs() < 1e-15 && (matrix[1] - 0.8).abs() < 1e-15, "{matrix:?}");
        assert!(matrix[4].is_nan() && matrix[5].is_nan());
        assert_eq!(matrix[6..], [0., 0.]);
    }
}
