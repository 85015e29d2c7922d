//! Convolution over the words of sentences that keeps only each filter's maximum.
//!
//! The sentences are stored one after the other, with rows of zeros between them. The words of a window are then
//! consecutive elements, and all windows are the rows of a matrix that needs no copy. The convolution is one matrix
//! product, and the maxima are found while its result is still in a cache. The backward pass reads only the windows
//! with the maxima, one per sentence and filter.

use super::matmul::{Init, Lhs, Panels, gemm_serial};
use super::memory::{assume_init, build, uninit};
use super::parallel::{self, Shared};
use super::simd::vectorised;
use super::{Lanes, Real};
use std::mem::MaybeUninit;
use std::ops::Range;

/// The layout of sentences one after the other, with `padding` rows of zeros around each.
pub(crate) struct Layout {
    features: usize,
    padding: usize,
    lengths: Vec<usize>,
    /// The row of each sentence's first word.
    starts: Vec<usize>,
    rows: usize,
}

/// The size of the filters of one width.
#[derive(Clone, Copy)]
pub(crate) struct FilterSize {
    pub count: usize,
    pub width: usize,
}

/// Filters of one width: their size, the weight `(count, features, width)` and the bias `(count)`.
///
/// No sentence with its padding is shorter than `width`.
pub(crate) type Filters<'a, T> = (FilterSize, &'a [T], &'a [T]);

/// The result of the forward pass.
pub(crate) struct Maxima<T> {
    /// `(batch, filters)`
    pub ys: Vec<T>,
    /// The row at which the window of each maximum begins, `(batch, filters)`.
    pub rows: Vec<u32>,
    /// The words in the order of the layout, for the backward pass.
    pub words: Vec<T>,
}

impl Layout {
    /// `None` if a size overflows.
    pub(crate) fn new(lengths: Vec<usize>, padding: usize, features: usize) -> Option<Self> {
        let (mut starts, mut rows) = (vec![], padding);
        for length in &lengths {
            starts.push(rows);
            rows = rows.checked_add(*length)?.checked_add(padding)?;
        }
        let elements = rows.checked_mul(features)?;
        // Row numbers are kept as u32, and no allocation may exceed `isize::MAX` bytes.
        let fits = u32::try_from(rows).is_ok() && elements <= isize::MAX as usize / size_of::<f64>();
        fits.then_some(Self { features, padding, lengths, starts, rows })
    }

    pub(crate) fn starts(&self) -> &[usize] {
        &self.starts
    }

    /// The rows at which the windows of a sentence begin.
    fn windows(&self, sentence: usize, width: usize) -> Range<usize> {
        let first = self.starts[sentence] - self.padding;
        first..first + self.lengths[sentence] + 2 * self.padding + 1 - width
    }

    /// The ranges of consecutive sentences that make up the tasks.
    fn tasks(&self) -> Vec<Range<usize>> {
        const ROWS: usize = 256;
        let (mut tasks, mut start, mut rows) = (vec![], 0, 0);
        for (i, length) in self.lengths.iter().enumerate() {
            rows += length + self.padding;
            if rows >= ROWS || i + 1 == self.lengths.len() {
                tasks.push(start..i + 1);
                (start, rows) = (i + 1, 0);
            }
        }
        tasks
    }

    /// Copies the words `xs` to their `places`, the rows of the layout.
    fn spread<T: Real>(&self, xs: &[T], places: &[usize]) -> Vec<T> {
        let mut words = vec![T::ZERO; self.rows * self.features];
        for (x, place) in xs.chunks_exact(self.features).zip(places) {
            words[place * self.features..][..self.features].copy_from_slice(x);
        }
        words
    }
}

/// The maximum response of each filter to each sentence.
///
/// The words `xs` are at the rows `places` of the layout.
pub(crate) fn forward<T: Lanes>(
    layout: &Layout,
    xs: &[T],
    places: &[usize],
    filters: &[Filters<T>],
) -> Maxima<T> {
    let features = layout.features;
    let words = layout.spread(xs, places);
    let panels = |&(size, weight, _): &Filters<T>| {
        let (by_word, depth) = (features_last(weight, size, features), size.width * features);
        Panels::transposed((depth, size.count), |filter| &by_word[filter * depth..])
    };
    let panels: Vec<_> = filters.iter().map(panels).collect();
    let total: usize = filters.iter().map(|(size, ..)| size.count).sum();
    let len = layout.lengths.len() * total;
    let (mut ys, mut rows) = (vec![T::ZERO; len], vec![0u32; len]);
    let (all_ys, all_rows) = (Shared::new(&mut ys), Shared::new(&mut rows));
    let tasks = layout.tasks();
    parallel::for_each_chunk(tasks.len(), |task| {
        let sentences = tasks[task].clone();
        let own = sentences.start * total..sentences.end * total;
        // SAFETY: each sentence belongs to one task.
        let (ys, rows) = unsafe { (all_ys.slice(own.clone()), all_rows.slice(own)) };
        let mut column = 0;
        for (&(size, _, bias), panels) in filters.iter().zip(&panels) {
            let (first, responses) = responses(layout, &words, sentences.clone(), size, panels, bias);
            for sentence in sentences.clone() {
                let at = (sentence - sentences.start) * total + column;
                let at = at..at + size.count;
                let windows = layout.windows(sentence, size.width);
                maxima(&responses, first, windows, &mut ys[at.clone()], &mut rows[at]);
            }
            column += size.count;
        }
    });
    Maxima { ys, rows, words }
}

/// Computes the responses of the filters of one width, and the first row.
///
/// The rows run from the first window of `sentences` to the last.
fn responses<T: Lanes>(
    layout: &Layout,
    words: &[T],
    sentences: Range<usize>,
    size: FilterSize,
    panels: &Panels<T>,
    bias: &[T],
) -> (usize, Vec<T>) {
    let first = layout.windows(sentences.start, size.width).start;
    let rows = layout.windows(sentences.end - 1, size.width).end - first;
    let mut responses = uninit(rows * size.count);
    let windows = Lhs::Rows(&words[first * layout.features..], layout.features);
    gemm_serial(windows, panels, &mut responses, (rows, size.count), Init::Bias(bias));
    // SAFETY: the product has written all rows and columns.
    (first, unsafe { assume_init(responses) })
}

/// Finds the maximum response of each filter over the rows `windows`.
///
/// It is the first of equal maxima, or the last NaN. `responses` begins with row `first`.
fn maxima<T: Real>(responses: &[T], first: usize, windows: Range<usize>, ys: &mut [T], rows: &mut [u32]) {
    let count = ys.len();
    vectorised(
        #[inline(always)]
        || {
            for row in windows.clone() {
                let responses = &responses[(row - first) * count..][..count];
                for ((y, best), &response) in ys.iter_mut().zip(&mut *rows).zip(responses) {
                    let better = row == windows.start || response > *y || response.is_nan();
                    *best = if better { row as u32 } else { *best };
                    *y = if better { response } else { *y };
                }
            }
        },
    );
}

/// The gradient of the words, in the order of `places`. `rows` are the rows of the maxima.
pub(crate) fn input_grad<T: Real>(
    layout: &Layout,
    places: &[usize],
    filters: &[(FilterSize, &[T])],
    rows: &[u32],
    grad: &[T],
) -> Vec<T> {
    let &Layout { features, padding, .. } = layout;
    let weights: Vec<_> =
        filters.iter().map(|&(size, weight)| (size, features_last(weight, size, features))).collect();
    let total: usize = filters.iter().map(|(size, _)| size.count).sum();
    let mut words_grad = vec![T::ZERO; layout.rows * features];
    let all = Shared::new(&mut words_grad);
    parallel::for_each_chunk(layout.lengths.len(), |sentence| {
        let first = layout.starts[sentence] - padding;
        let end = layout.starts[sentence] + layout.lengths[sentence] + padding;
        let mut own = vec![T::ZERO; (end - first) * features];
        let mut at = sentence * total;
        for (size, weight) in &weights {
            for weight in weight.chunks_exact(size.width * features).take(size.count) {
                let place = (rows[at] as usize - first) * features;
                add_multiple(&mut own[place..place + weight.len()], weight, grad[at]);
                at += 1;
            }
        }
        let words = layout.starts[sentence] * features..(end - padding) * features;
        let own = &own[words.start - first * features..words.end - first * features];
        // SAFETY: the words of different sentences do not overlap.
        unsafe { all.slice(words) }.copy_from_slice(own);
    });
    places.iter().flat_map(|place| &words_grad[place * features..][..features]).copied().collect()
}

/// Computes the gradient of the weight `(count, features, width)` of the filters of one width.
///
/// The filters begin at `column` of `grad` and `rows` `(batch, total)`.
pub(crate) fn weight_grad<T: Real>(
    layout: &Layout,
    size: FilterSize,
    words: &[T],
    (column, total): (usize, usize),
    rows: &[u32],
    grad: &[T],
) -> Vec<T> {
    let features = layout.features;
    let len = size.width * features;
    let work = |filter: usize, to: &mut [MaybeUninit<T>]| {
        let mut sum = vec![T::ZERO; len];
        for at in (column + filter..grad.len()).step_by(total) {
            add_multiple(&mut sum, &words[rows[at] as usize * features..][..len], grad[at]);
        }
        for (word, sum) in sum.chunks_exact(features).enumerate() {
            to.iter_mut().skip(word).step_by(size.width).zip(sum).for_each(|(to, &sum)| _ = to.write(sum));
        }
    };
    // SAFETY: a piece is one filter, and each word writes every `width`-th element from its own index on.
    unsafe { build(size.count * len, len, work) }
}

/// The gradient of the bias of the filters that begin at `column` of `grad` `(batch, total)`.
pub(crate) fn bias_grad<T: Real>(size: FilterSize, (column, total): (usize, usize), grad: &[T]) -> Vec<T> {
    let sum =
        |filter: usize| (column + filter..grad.len()).step_by(total).fold(T::ZERO, |sum, at| sum + grad[at]);
    (0..size.count).map(sum).collect()
}

/// Transposes each filter: `(filters, features, width)` to `(filters, width, features)`.
fn features_last<T: Real>(weight: &[T], FilterSize { count, width }: FilterSize, features: usize) -> Vec<T> {
    let work = |filter: usize, to: &mut [MaybeUninit<T>]| {
        let from = &weight[filter * to.len()..(filter + 1) * to.len()];
        for (word, to) in to.chunks_exact_mut(features).enumerate() {
            let from = from[word..].iter().step_by(width);
            to.iter_mut().zip(from).for_each(|(to, &from)| _ = to.write(from));
        }
    };
    // SAFETY: a piece is one filter; its chunks are its words, each of which has all its features in `from`.
    unsafe { build(count * features * width, features * width, work) }
}

/// `sum += factor * xs`, skipped if the factor is 0: after a ReLU, half of all factors are.
fn add_multiple<T: Real>(sum: &mut [T], xs: &[T], factor: T) {
    if factor == T::ZERO {
        return;
    }
    vectorised(
        #[inline(always)]
        || sum.iter_mut().zip(xs).for_each(|(sum, &x)| *sum += factor * x),
    );
}
