//! The operations written in candle's own tensor operations: definitions, and the oracle in tests.
//!
//! These forms run on CUDA and Metal. They use only operations that every device supports and whose gradient is
//! correct. They check their arguments exactly as the operations in [`super`] do.

use super::arguments::{
    self, BatchStatistics, ConvFilters, Epilogue, Pool2dConfig, RecurrentState, RecurrentWeights, TimePooling,
};
use super::{Cell, PackedSequences};
use candle_core::{D, DType, Result, Tensor};

mod convolution;

use convolution::{Unfold, pad};
pub use convolution::{conv_transpose2d, conv2d};

/// The definition of [`super::linear()`].
///
/// # Errors
/// Fails if [`super::linear()`] would.
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    arguments::check_linear(xs, weight, bias)?;
    let (outputs, inputs) = weight.dims2()?;
    let mut shape = xs.dims().to_vec();
    shape.pop();
    let rows = shape.iter().product::<usize>();
    shape.push(outputs);
    let ys = match rows == 0 || inputs == 0 || outputs == 0 {
        true => Tensor::zeros(shape, xs.dtype(), xs.device())?,
        false => xs.reshape((rows, inputs))?.matmul(&weight.contiguous()?.t()?)?.reshape(shape)?,
    };
    match bias {
        Some(bias) => ys.broadcast_add(bias),
        None => Ok(ys),
    }
}

/// The definition of [`super::batch_norm()`].
///
/// # Errors
/// Fails if [`super::batch_norm()`] would.
pub fn batch_norm(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    epsilon: f64,
    running: Option<&BatchStatistics>,
    epilogue: Epilogue,
) -> Result<(Tensor, BatchStatistics)> {
    arguments::check_batch_norm(xs, weight, bias, running, epilogue)?;
    let (batch, channels, height, width) = xs.dims4()?;
    if batch == 0 {
        let zeros = || Tensor::zeros(channels, xs.dtype(), xs.device());
        let statistics = match running {
            Some(running) => running.clone(),
            None => BatchStatistics { mean: zeros()?, variance: zeros()? },
        };
        return Ok((xs.clone(), statistics));
    }
    // (channels, values)
    let values = xs.transpose(0, 1)?.reshape((channels, batch * height * width))?;
    let column = |tensor: &Tensor| tensor.to_dtype(xs.dtype())?.reshape((channels, 1));
    let (mean, deviation, variance) = match running {
        Some(BatchStatistics { mean, variance }) => {
            let (mean, variance) = (column(&mean.detach())?, column(&variance.detach())?);
            let deviation = values.broadcast_sub(&mean)?;
            (mean, deviation, variance)
        }
        None => {
            // Far from 0 the first mean is inexact; the mean of the differences from it is its error.
            let estimate = values.detach().mean_keepdim(1)?;
            let centred = values.broadcast_sub(&estimate)?;
            let error = centred.mean_keepdim(1)?;
            let deviation = centred.broadcast_sub(&error)?;
            let variance = deviation.sqr()?.mean_keepdim(1)?;
            ((estimate + error)?, deviation, variance)
        }
    };
    let scale = column(weight)?.broadcast_div(&(&variance + epsilon)?.sqrt()?)?;
    let ys = deviation.broadcast_mul(&scale)?.broadcast_add(&column(bias)?)?;
    let mut ys = ys.reshape((channels, batch, height, width))?.transpose(0, 1)?.contiguous()?;
    if let Some(add) = epilogue.add {
        ys = (ys + add)?;
    }
    let ys = if epilogue.relu { relu(&ys)? } else { ys };
    let flat = |tensor: Tensor| tensor.detach().flatten_all();
    Ok((ys, BatchStatistics { mean: flat(mean)?, variance: flat(variance)? }))
}

/// The definition of [`super::conv_max_over_time()`] and [`super::conv_max_positions()`].
///
/// Returns the maxima, and where their windows begin.
///
/// # Errors
/// Fails if [`super::conv_max_over_time()`] would.
pub fn conv_max_over_time(
    xs: &Tensor,
    sentences: &PackedSequences,
    filters: &[ConvFilters],
    padding: usize,
) -> Result<(Tensor, Vec<Vec<i64>>)> {
    arguments::check_conv_max_over_time(xs, sentences, filters, padding)?;
    let (batch, device) = (sentences.batch(), xs.device());
    let padded = sentences.unpack(&xs.contiguous()?)?.pad_with_zeros(1, padding, padding)?;
    let (mut maxima, mut positions) = (vec![], vec![vec![]; batch]);
    for ConvFilters { weight, bias } in filters {
        let (count, _, width) = weight.dims3()?;
        let windows = padded.dim(1)? + 1 - width;
        // One word of the windows at a time: candle's own convolution has a wrong gradient.
        let mut responses = bias.broadcast_as((batch, windows, count))?;
        for word in 0..width {
            let words = padded.narrow(1, word, windows)?;
            responses = (responses + linear(&words, &weight.narrow(2, word, 1)?.squeeze(2)?, None)?)?;
        }
        // Windows beyond a sentence's end do not exist.
        let exists = sentences.lengths().into_iter().flat_map(|length| {
            let own = length + 2 * padding + 1 - width;
            (0..windows).map(move |window| u8::from(window < own))
        });
        let exists = Tensor::from_vec(exists.collect(), (batch, windows, 1), device)?;
        let exists = exists.broadcast_as((batch, windows, count))?;
        let responses = exists.where_cond(&responses, &lowest(&responses)?)?.contiguous()?;
        let first = argmax(&responses, 1, None)?;
        maxima.push(responses.gather(&first, 1)?.squeeze(1)?);
        for (positions, first) in positions.iter_mut().zip(first.squeeze(1)?.to_vec2::<u32>()?) {
            positions.extend(first.into_iter().map(|window| i64::from(window) - padding as i64));
        }
    }
    Ok((Tensor::cat(&maxima, 1)?, positions))
}

/// The definition of [`super::recurrent()`], one time step after another.
///
/// # Errors
/// Fails if [`super::recurrent()`] would.
pub fn recurrent(
    cell: Cell,
    xs: &Tensor,
    sequences: &PackedSequences,
    weights: &[RecurrentWeights],
    state: Option<&RecurrentState>,
) -> Result<(Tensor, RecurrentState)> {
    arguments::check_recurrent(cell, xs, sequences, weights, state)?;
    let inputs = weights.iter().map(|weights| linear(xs, &weights.input, Some(&weights.input_bias)));
    recurrent_layer(cell, &inputs.collect::<Result<Vec<_>>>()?, sequences, weights, state)
}

/// The definition of [`super::recurrent_tokens()`].
///
/// # Errors
/// Fails if [`super::recurrent_tokens()`] would.
pub fn recurrent_tokens(
    cell: Cell,
    ids: &Tensor,
    sequences: &PackedSequences,
    weights: &[RecurrentWeights],
    state: Option<&RecurrentState>,
) -> Result<(Tensor, RecurrentState)> {
    arguments::check_recurrent_tokens(cell, ids, sequences, weights, state)?;
    let ids = ids.contiguous()?;
    let input = |weights: &RecurrentWeights| {
        weights.input.contiguous()?.index_select(&ids, 0)?.broadcast_add(&weights.input_bias)
    };
    let inputs = weights.iter().map(input).collect::<Result<Vec<_>>>()?;
    recurrent_layer(cell, &inputs, sequences, weights, state)
}

/// Runs a layer on the input part of each direction's gate pre-activations, `(rows, gates * hidden)`.
fn recurrent_layer(
    cell: Cell,
    inputs: &[Tensor],
    sequences: &PackedSequences,
    weights: &[RecurrentWeights],
    state: Option<&RecurrentState>,
) -> Result<(Tensor, RecurrentState)> {
    let (mut outputs, mut last_hidden, mut last_cells) = (vec![], vec![], vec![]);
    for (direction, (weights, inputs)) in weights.iter().zip(inputs).enumerate() {
        let initial = |state: Option<&Tensor>| state.map(|state| state.get(direction)).transpose();
        let hidden = initial(state.map(|state| &state.hidden))?;
        let cells = initial(state.and_then(|state| state.cell.as_ref()))?;
        let reversed = direction == 1;
        let (ys, hidden, cells) =
            recurrent_direction(cell, inputs, sequences, weights, [hidden, cells], reversed)?;
        outputs.push(ys);
        last_hidden.push(hidden);
        last_cells.push(cells);
    }
    let cell = if cell.has_cell_state() { Some(Tensor::stack(&last_cells, 0)?) } else { None };
    Ok((Tensor::cat(&outputs, 1)?, RecurrentState { hidden: Tensor::stack(&last_hidden, 0)?, cell }))
}

/// Runs one direction.
///
/// Returns its hidden states `(rows, hidden)` and its final hidden and cell states `(batch, hidden)`.
fn recurrent_direction(
    cell: Cell,
    inputs: &Tensor,
    sequences: &PackedSequences,
    RecurrentWeights { hidden: weight, hidden_bias, .. }: &RecurrentWeights,
    initial: [Option<Tensor>; 2],
    reversed: bool,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (batch, units, device) = (sequences.batch(), weight.dim(1)?, inputs.device());
    let index = |sequences: &[usize]| {
        Tensor::new(sequences.iter().map(|&sequence| sequence as u32).collect::<Vec<_>>(), device)
    };
    let order = index(sequences.order())?;
    let zeros = Tensor::zeros((batch, units), inputs.dtype(), device)?;
    let [hidden, cells] = initial.map(|state| match state {
        Some(state) => state.contiguous()?.index_select(&order, 0),
        None => Ok(zeros.clone()),
    });
    // Ordered from the longest sequence to the shortest. Sequences without the current step keep their state.
    let (mut hidden, mut cells) = (hidden?, cells?);
    let mut steps: Vec<usize> = (0..sequences.steps()).collect();
    if reversed {
        steps.reverse();
    }
    let mut ys = vec![];
    for step in steps {
        let (active, row) = sequences.step(step);
        let [before, cells_before] = [&hidden, &cells].map(|state| state.narrow(0, 0, active));
        let (before, cells_before) = (before?, cells_before?);
        let product = linear(&before, weight, Some(hidden_bias))?;
        let (now, cells_now) =
            cell_step(cell, &inputs.narrow(0, row, active)?, &product, before, cells_before)?;
        ys.push((row, now.clone()));
        let with_idle = |now: Tensor, all: &Tensor| match batch - active {
            0 => Ok(now),
            idle => Tensor::cat(&[now, all.narrow(0, active, idle)?], 0),
        };
        hidden = with_idle(now, &hidden)?;
        cells = with_idle(cells_now, &cells)?;
    }
    ys.sort_by_key(|&(row, _)| row);
    let ys = Tensor::cat(&ys.into_iter().map(|(_, ys)| ys).collect::<Vec<_>>(), 0)?;
    let places = index(&sequences.places())?;
    Ok((ys, hidden.index_select(&places, 0)?, cells.index_select(&places, 0)?))
}

/// Computes the hidden and cell states after one time step.
///
/// The arguments are the input part and the recurrent part (`product`) of the gate pre-activations, and the states
/// before the step.
fn cell_step(
    cell: Cell,
    input: &Tensor,
    product: &Tensor,
    before: Tensor,
    cells_before: Tensor,
) -> Result<(Tensor, Tensor)> {
    let units = before.dim(1)?;
    let gate = |gates: &Tensor, i: usize| gates.narrow(1, i * units, units);
    let sum = |i: usize| gate(input, i)? + gate(product, i)?;
    Ok(match cell {
        Cell::Tanh => (tanh(&sum(0)?)?, cells_before),
        Cell::Relu => (relu(&sum(0)?)?, cells_before),
        Cell::Gru => {
            let (r, z) = (sigmoid(&sum(0)?)?, sigmoid(&sum(1)?)?);
            let n = tanh(&(gate(input, 2)? + (r * gate(product, 2)?)?)?)?;
            ((&n + (z * (before - &n)?)?)?, cells_before)
        }
        Cell::Lstm => {
            let (i, f, o) = (sigmoid(&sum(0)?)?, sigmoid(&sum(1)?)?, sigmoid(&sum(3)?)?);
            let cells = ((f * cells_before)? + (i * tanh(&sum(2)?)?)?)?;
            ((o * tanh(&cells)?)?, cells)
        }
    })
}

/// The definition of [`super::pool_over_time()`]: one sequence after another.
///
/// # Errors
/// Fails if [`super::pool_over_time()`] would.
pub fn pool_over_time(xs: &Tensor, sequences: &PackedSequences, pooling: TimePooling) -> Result<Tensor> {
    arguments::check_pool_over_time(xs, sequences)?;
    let features = xs.dim(1)?;
    if features == 0 {
        return Tensor::zeros((sequences.batch(), 0), xs.dtype(), xs.device());
    }
    let xs = xs.contiguous()?;
    let mut rows = vec![vec![]; sequences.batch()];
    for (row, (sequence, _)) in sequences.positions().enumerate() {
        rows[sequence].push(row as u32);
    }
    let reduce = |rows: Vec<u32>| {
        let xs = xs.index_select(&Tensor::new(rows, xs.device())?, 0)?;
        match pooling {
            TimePooling::Mean => xs.mean(0),
            TimePooling::Max => xs.gather(&argmax(&xs, 0, None)?, 0)?.squeeze(0),
        }
    };
    Tensor::stack(&rows.into_iter().map(reduce).collect::<Result<Vec<_>>>()?, 0)
}

/// The definition of [`super::attention()`]: padded sequences, repeated for each query.
///
/// # Errors
/// Fails if [`super::attention()`] would.
pub fn attention(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    v: Option<&Tensor>,
    sequences: &PackedSequences,
    sequence_of_row: &[u32],
) -> Result<(Tensor, Tensor)> {
    arguments::check_attention(queries, [keys, values], v, sequences, sequence_of_row)?;
    let (rows, steps, device) = (sequence_of_row.len(), sequences.steps(), queries.device());
    if rows == 0 {
        let zeros = |columns: usize| Tensor::zeros((0, columns), queries.dtype(), device);
        return Ok((zeros(values.dim(1)?)?, zeros(steps)?));
    }
    let index = Tensor::new(sequence_of_row, device)?;
    let spread = |xs: &Tensor| sequences.unpack(xs)?.index_select(&index, 0); // (rows, steps, ..)
    let (keys, queries) = (spread(keys)?, queries.unsqueeze(1)?);
    let scores = match v {
        Some(v) => tanh(&keys.broadcast_add(&queries)?)?.broadcast_mul(v)?,
        None => keys.broadcast_mul(&queries)?,
    };
    let lengths = sequences.lengths();
    let mask = |&sequence: &u32| {
        let length = lengths[sequence as usize];
        (0..steps).map(move |step| if step < length { 0f32 } else { f32::NEG_INFINITY })
    };
    let mask: Vec<f32> = sequence_of_row.iter().flat_map(mask).collect();
    let mask = Tensor::from_vec(mask, (rows, steps), device)?.to_dtype(scores.dtype())?;
    let scores = (scores.sum(2)? + mask)?;
    let exp = scores.broadcast_sub(&scores.max_keepdim(1)?.detach())?.exp()?;
    let weights = exp.broadcast_div(&exp.sum_keepdim(1)?)?;
    let sums = spread(values)?.broadcast_mul(&weights.unsqueeze(2)?)?.sum(1)?;
    Ok((sums, weights.detach()))
}

/// The definition of [`super::max_pool2d()`].
///
/// # Errors
/// Fails if [`super::max_pool2d()`] would.
pub fn max_pool2d(xs: &Tensor, config: Pool2dConfig) -> Result<Tensor> {
    let (height, width) = arguments::check_pool2d("max_pool2d", xs, config)?.output();
    let (batch, channels, rows, columns) = xs.dims4()?;
    if batch * channels == 0 {
        return Tensor::zeros((batch, channels, height, width), xs.dtype(), xs.device());
    }
    let unfold = Unfold::pooling(xs, config)?;
    let windows = unfold.apply(&pad(xs, config.padding, f64::NEG_INFINITY)?)?;
    // A window of minus infinities must not choose the padding.
    let inside = Tensor::ones((1, 1, rows, columns), DType::F32, xs.device())?;
    let inside = unfold.apply(&pad(&inside, config.padding, 0.)?)?;
    let maxima = windows.gather(&argmax(&windows, 2, Some(&inside))?, 2)?;
    maxima.reshape((batch, channels, height, width))
}

/// The definition of [`super::avg_pool2d()`].
///
/// # Errors
/// Fails if [`super::avg_pool2d()`] would.
pub fn avg_pool2d(xs: &Tensor, config: Pool2dConfig) -> Result<Tensor> {
    arguments::check_pool2d("avg_pool2d", xs, config)?;
    window_sums(xs, config)? / (config.kernel.0 as f64 * config.kernel.1 as f64)
}

/// The definition of [`super::l2_pool2d()`].
///
/// # Errors
/// Fails if [`super::l2_pool2d()`] would.
pub fn l2_pool2d(xs: &Tensor, config: Pool2dConfig) -> Result<Tensor> {
    arguments::check_pool2d("l2_pool2d", xs, config)?;
    let squares = window_sums(&xs.sqr()?, config)?;
    let zeros = squares.zeros_like()?;
    let is_zero = squares.eq(&zeros)?;
    is_zero.where_cond(&zeros, &is_zero.where_cond(&squares.ones_like()?, &squares)?.sqrt()?)
}

/// The definition of [`super::relu()`].
///
/// # Errors
/// Fails if one of candle's operations does.
pub fn relu(xs: &Tensor) -> Result<Tensor> {
    let zeros = xs.zeros_like()?;
    xs.le(&zeros)?.where_cond(&zeros, xs)
}

/// The definition of [`super::sigmoid()`].
///
/// # Errors
/// Fails if one of candle's operations does.
pub fn sigmoid(xs: &Tensor) -> Result<Tensor> {
    candle_nn::ops::sigmoid(xs)
}

/// The definition of [`super::tanh()`].
///
/// # Errors
/// Fails if one of candle's operations does.
pub fn tanh(xs: &Tensor) -> Result<Tensor> {
    xs.tanh()
}

/// The definition of [`super::softmax_cross_entropy()`].
///
/// # Errors
/// Fails if [`super::softmax_cross_entropy()`] would.
pub fn softmax_cross_entropy(logits: &Tensor, targets: &Tensor, smoothing: f64) -> Result<Tensor> {
    arguments::check_smoothing(smoothing)?;
    arguments::check_loss("softmax_cross_entropy", logits, targets)?;
    let logits = logits.broadcast_sub(&logits.detach().max_keepdim(D::Minus1)?)?;
    let log_sum = logits.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let target = logits.gather(&targets.unsqueeze(1)?.contiguous()?, 1)?;
    // Without smoothing, a logit of minus infinity must not turn 0 * x into NaN.
    let expected = match smoothing > 0. {
        true => {
            (target.affine(1. - smoothing, 0.)? + logits.mean_keepdim(D::Minus1)?.affine(smoothing, 0.)?)?
        }
        false => target,
    };
    (log_sum - expected)?.mean_all()
}

/// The definition of [`super::sigmoid_cross_entropy()`].
///
/// # Errors
/// Fails if [`super::sigmoid_cross_entropy()`] would.
pub fn sigmoid_cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    arguments::check_loss("sigmoid_cross_entropy", logits, targets)?;
    // The target's term is softplus(-x), every other one softplus(x): all are positive, so none cancel.
    let signs = one_hot(logits, targets)?.affine(-2., 1.)?;
    softplus(&logits.mul(&signs)?)?.sum_all()? / logits.dim(0)? as f64
}

/// The definition of [`super::quadratic()`].
///
/// # Errors
/// Fails if [`super::quadratic()`] would.
pub fn quadratic(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    arguments::check_loss("quadratic", logits, targets)?;
    let expected = one_hot(logits, targets)?;
    (sigmoid(logits)? - expected)?.sqr()?.sum_all()? / (2. * logits.dim(0)? as f64)
}

/// Multiplies each element by `scale` if its element of `keep` is not 0, and by 0 otherwise.
pub(super) fn dropout(xs: &Tensor, keep: &[u8], scale: f32) -> Result<Tensor> {
    let mask = keep.iter().map(|&keep| if keep != 0 { scale } else { 0. }).collect::<Vec<_>>();
    xs.mul(&Tensor::from_vec(mask, xs.shape(), xs.device())?.to_dtype(xs.dtype())?)
}

/// `ln(1 + exp(xs))`, accurate for any x: `max(x, 0) + ln(1 + exp(-|x|))`.
fn softplus(xs: &Tensor) -> Result<Tensor> {
    let zeros = xs.zeros_like()?;
    // Counting 0 as positive makes the gradient at 0 correct too.
    let is_positive = xs.ge(&zeros)?;
    let positive = is_positive.where_cond(xs, &zeros)?;
    let power = is_positive.where_cond(&xs.neg()?, xs)?.exp()?;
    // ln(1 + power), corrected for the rounding error of the sum.
    let sum = (&power + 1.)?;
    let rounded_off = (power - (&sum - 1.)?)?;
    positive + (sum.log()? + (rounded_off / sum)?)?
}

/// `(batch, classes)`: 1 for the target class, 0 for the others.
fn one_hot(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let (batch, classes) = logits.dims2()?;
    let class = Tensor::arange(0u32, classes as u32, logits.device())?.reshape((1, classes))?;
    let targets = targets.reshape((batch, 1))?;
    class.broadcast_eq(&targets)?.to_dtype(logits.dtype())
}

/// Minus infinity in the shape of `like`.
fn lowest(like: &Tensor) -> Result<Tensor> {
    let value = Tensor::full(f32::NEG_INFINITY, (), like.device())?.to_dtype(like.dtype())?;
    value.broadcast_as(like.shape())
}

/// Returns the index of the maximum along `dim`, whose size becomes 1.
///
/// It is the first of equal maxima, or the last NaN. `inside`, if given, broadcasts to `values` and is 0 for elements
/// that must not be chosen, which are minus infinity.
fn argmax(values: &Tensor, dim: usize, inside: Option<&Tensor>) -> Result<Tensor> {
    let (values, size) = (values.detach(), values.dim(dim)?);
    let mut shape = vec![1; values.rank()];
    shape[dim] = size;
    let index = Tensor::arange(0u32, size as u32, values.device())?.to_dtype(DType::F32)?.reshape(shape)?;
    // Rank every element: `size` to 1 for maxima in order, more for NaNs in reverse order, 0 for all others.
    let nan_rank = (&index + (size + 1) as f64)?.broadcast_as(values.shape())?;
    let max_rank = index.affine(-1., size as f64)?;
    let max_rank = match inside {
        Some(inside) => max_rank.broadcast_mul(inside)?,
        None => max_rank,
    };
    let max_rank = max_rank.broadcast_as(values.shape())?;
    let is_nan = values.ne(&values)?;
    let numbers = is_nan.where_cond(&lowest(&values)?, &values)?;
    let is_max = numbers.broadcast_eq(&numbers.max_keepdim(dim)?)?;
    let rank = is_nan.where_cond(&nan_rank, &is_max.where_cond(&max_rank, &max_rank.zeros_like()?)?)?;
    rank.contiguous()?.argmax_keepdim(dim)?.contiguous()
}

/// The sum of each window; padding counts as zeros.
fn window_sums(xs: &Tensor, config: Pool2dConfig) -> Result<Tensor> {
    let (batch, channels, _, _) = xs.dims4()?;
    let unfold = Unfold::pooling(xs, config)?;
    let (height, width) = unfold.output();
    if batch * channels == 0 {
        return Tensor::zeros((batch, channels, height, width), xs.dtype(), xs.device());
    }
    unfold.apply(&pad(xs, config.padding, 0.)?)?.sum(2)?.reshape((batch, channels, height, width))
}
