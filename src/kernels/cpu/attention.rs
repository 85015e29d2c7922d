//! Attention of queries to the elements of sequences, and its gradients.
//!
//! The kernels process one sequence after another, with all its queries, so nothing is padded. The backward pass
//! computes the `tanh` of additive scores again, so that it need not be stored for each pair of query and element.

use super::Real;
use super::parallel::{self, Shared};
use super::sequences::PackedLayout;
use super::simd::{sum, vectorised};

/// The rows of the elements of each sequence, and the rows of its queries.
pub(crate) struct Groups {
    elements: Vec<Vec<usize>>,
    queries: Vec<Vec<usize>>,
    /// Number of elements of the longest sequence.
    steps: usize,
}

impl Groups {
    /// Groups the rows. The query of row i belongs to the sequence `sequence_of_row[i]`, which exists.
    pub fn new(layout: &PackedLayout, sequence_of_row: &[u32]) -> Self {
        let group = |sequences: &mut dyn Iterator<Item = usize>| {
            let mut rows = vec![vec![]; layout.batch()];
            sequences.enumerate().for_each(|(row, sequence)| rows[sequence].push(row));
            rows
        };
        Self {
            elements: group(&mut layout.positions().map(|(sequence, _)| sequence)),
            queries: group(&mut sequence_of_row.iter().map(|&sequence| sequence as usize)),
            steps: layout.steps(),
        }
    }

    /// Number of queries.
    fn rows(&self) -> usize {
        self.queries.iter().map(Vec::len).sum()
    }
}

/// Queries `(rows, size)`, keys `(elements, size)` and values `(elements, features)`.
#[derive(Clone, Copy)]
pub(crate) struct Arguments<'a, T> {
    pub queries: &'a [T],
    pub keys: &'a [T],
    pub values: &'a [T],
    /// The vector `(size)` for additive scores; `None` for dot products.
    pub v: Option<&'a [T]>,
    pub size: usize,
    pub features: usize,
}

impl<T> Arguments<'_, T> {
    fn query(&self, row: usize) -> &[T] {
        &self.queries[row * self.size..][..self.size]
    }

    fn key(&self, row: usize) -> &[T] {
        &self.keys[row * self.size..][..self.size]
    }

    fn value(&self, row: usize) -> &[T] {
        &self.values[row * self.features..][..self.features]
    }
}

/// Returns the weighted sums of the values, `(rows, features)`, and the weights `(rows, steps)`.
///
/// The weights are zero beyond the end of a sequence.
pub(crate) fn forward<T: Real>(groups: &Groups, args: Arguments<T>) -> (Vec<T>, Vec<T>) {
    let (rows, steps, features) = (groups.rows(), groups.steps, args.features);
    let (mut sums, mut weights) = (vec![T::ZERO; rows * features], vec![T::ZERO; rows * steps]);
    let (shared_sums, shared_weights) = (Shared::new(&mut sums), Shared::new(&mut weights));
    parallel::for_each_chunk(groups.queries.len(), |sequence| {
        let elements = &groups.elements[sequence];
        let mut scratch = vec![T::ZERO; args.size];
        for &row in &groups.queries[sequence] {
            let at = row * steps..row * steps + elements.len();
            // SAFETY: a query belongs to one sequence, and one call of the closure handles each.
            let (weights, sums) = unsafe {
                (shared_weights.slice(at), shared_sums.slice(row * features..(row + 1) * features))
            };
            vectorised(
                #[inline(always)]
                || {
                    for (weight, &element) in weights.iter_mut().zip(elements) {
                        *weight = score(args.query(row), args.key(element), args.v, &mut scratch);
                    }
                    softmax(weights);
                    for (&weight, &element) in weights.iter().zip(elements) {
                        add_scaled(sums, args.value(element), weight);
                    }
                },
            );
        }
    });
    (sums, weights)
}

/// The gradients of queries, keys, values and `v`; the last is empty if there is no vector.
pub(crate) struct Gradients<T> {
    pub queries: Vec<T>,
    pub keys: Vec<T>,
    pub values: Vec<T>,
    pub v: Vec<T>,
}

/// Computes all gradients from the gradient `grad` of the weighted sums, and the weights.
pub(crate) fn backward<T: Real>(
    groups: &Groups,
    args: Arguments<T>,
    weights: &[T],
    grad: &[T],
) -> Gradients<T> {
    let Arguments { size, features, .. } = args;
    let zeros = |like: &[T]| vec![T::ZERO; like.len()];
    let (mut queries, mut keys, mut values) = (zeros(args.queries), zeros(args.keys), zeros(args.values));
    let v_size = args.v.map_or(0, |_| size);
    // One row per sequence. They are added in the order of the sequences.
    let mut parts = vec![T::ZERO; groups.queries.len() * v_size];
    let shared = [&mut queries, &mut keys, &mut values, &mut parts].map(|grad| Shared::new(grad));
    parallel::for_each_chunk(groups.queries.len(), |sequence| {
        let elements = &groups.elements[sequence];
        let mut score_grads = vec![T::ZERO; elements.len()];
        // SAFETY: an element, a query and a part belong to one sequence, and one call of the closure handles each.
        let row_of =
            |grad: usize, row: usize, len: usize| unsafe { shared[grad].slice(row * len..(row + 1) * len) };
        let v_grad = row_of(3, sequence, v_size);
        for &row in &groups.queries[sequence] {
            let weights = &weights[row * groups.steps..][..elements.len()];
            let grad = &grad[row * features..][..features];
            let query_grad = row_of(0, row, size);
            vectorised(
                #[inline(always)]
                || {
                    let mut mean = T::ZERO;
                    for ((score_grad, &weight), &element) in score_grads.iter_mut().zip(weights).zip(elements)
                    {
                        *score_grad = dot(grad, args.value(element));
                        mean += weight * *score_grad;
                        add_scaled(row_of(2, element, features), grad, weight);
                    }
                    for ((&score_grad, &weight), &element) in score_grads.iter().zip(weights).zip(elements) {
                        let score_grad = weight * (score_grad - mean);
                        let (query, key) = (args.query(row), args.key(element));
                        let key_grad = row_of(1, element, size);
                        let grads = [&mut *query_grad, key_grad, &mut *v_grad];
                        score_gradient((query, key), args.v, score_grad, grads);
                    }
                },
            );
        }
    });
    let mut v = vec![T::ZERO; v_size];
    for part in parts.chunks_exact(v_size.max(1)) {
        v.iter_mut().zip(part).for_each(|(sum, &x)| *sum += x);
    }
    Gradients { queries, keys, values, v }
}

/// `v · tanh(query + key)`, or `query · key` without `v`.
#[inline(always)]
fn score<T: Real>(query: &[T], key: &[T], v: Option<&[T]>, scratch: &mut [T]) -> T {
    let Some(v) = v else { return dot(query, key) };
    for ((to, &q), &k) in scratch.iter_mut().zip(query).zip(key) {
        *to = (q + k).tanh();
    }
    dot(scratch, v)
}

/// Adds `grad` times the gradients of [`score`] to the gradients of query, key and v.
#[inline(always)]
fn score_gradient<T: Real>(
    (query, key): (&[T], &[T]),
    v: Option<&[T]>,
    grad: T,
    [query_grad, key_grad, v_grad]: [&mut [T]; 3],
) {
    let Some(v) = v else {
        add_scaled(query_grad, key, grad);
        add_scaled(key_grad, query, grad);
        return;
    };
    let size = v.len();
    let (query, key) = (&query[..size], &key[..size]);
    let (query_grad, key_grad, v_grad) =
        (&mut query_grad[..size], &mut key_grad[..size], &mut v_grad[..size]);
    for i in 0..size {
        let y = (query[i] + key[i]).tanh();
        v_grad[i] += grad * y;
        let inner = grad * v[i] * (T::ONE - y * y);
        query_grad[i] += inner;
        key_grad[i] += inner;
    }
}

/// Replaces scores by their softmax.
#[inline(always)]
fn softmax<T: Real>(scores: &mut [T]) {
    let max = scores.iter().fold(scores[0], |max, &x| if x > max { x } else { max });
    scores.iter_mut().for_each(|x| *x = (*x - max).exp_non_positive());
    let scale = T::ONE / sum(scores);
    scores.iter_mut().for_each(|x| *x *= scale);
}

/// The dot product in a fixed order: sixteen partial sums, added in order, then the remainder.
#[inline(always)]
fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let mut sums = [T::ZERO; 16];
    for (a, b) in a.iter().zip(b) {
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let sum = sums.iter().fold(T::ZERO, |sum, &x| sum + x);
    a_rest.iter().zip(b_rest).fold(sum, |sum, (&a, &b)| sum + a * b)
}

/// `to += scale * from`
#[inline(always)]
fn add_scaled<T: Real>(to: &mut [T], from: &[T], scale: T) {
    to.iter_mut().zip(from).for_each(|(to, &x)| *to += scale * x);
}
