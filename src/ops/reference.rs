//! The operations in candle's own tensor operations, of which only those are used whose gradient is right and that
//! every device has. These are what runs on CUDA and Metal, and what the CPU kernels are tested against.

use super::{
    BatchStatistics, Cell, Conv2dConfig, ConvFilters, Epilogue, PackedSequences, Pool2dConfig,
    RecurrentState, RecurrentWeights, TimePooling,
};
use candle_core::{D, DType, Result, Tensor};

/// See [`super::linear`].
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let mut shape = xs.dims().to_vec();
    shape.pop();
    shape.push(outputs);
    let rows = xs.elem_count() / inputs.max(1);
    let ys = xs.reshape((rows, inputs))?.matmul(&weight.t()?)?.reshape(shape)?;
    match bias {
        Some(bias) => ys.broadcast_add(bias),
        None => Ok(ys),
    }
}

/// See [`super::conv2d`]: the windows of the input as the columns of a matrix, one product for each group.
pub fn conv2d(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, geometry: Conv2dConfig) -> Result<Tensor> {
    let Conv2dConfig { stride, padding, dilation, groups } = geometry;
    let (batch, channels, _, _) = xs.dims4()?;
    let (outputs, group_channels, kernel_h, kernel_w) = weight.dims4()?;
    let unfolded = unfold(&pad(xs, padding, 0.)?, (kernel_h, kernel_w), stride, dilation)?;
    let (windows, (height, width)) = unfolded;
    if batch == 0 {
        return Tensor::zeros((0, outputs, height, width), xs.dtype(), xs.device());
    }
    // (batch, channels, kernel, positions) -> (groups, channels a group * kernel, batch * positions)
    let columns = windows
        .reshape((batch, channels * kernel_h * kernel_w, height * width))?
        .transpose(0, 1)?
        .reshape((groups, group_channels * kernel_h * kernel_w, batch * height * width))?;
    let weight = weight.reshape((groups, outputs / groups, group_channels * kernel_h * kernel_w))?;
    let ys =
        weight.matmul(&columns)?.reshape((outputs, batch, height, width))?.transpose(0, 1)?.contiguous()?;
    match bias {
        Some(bias) => ys.broadcast_add(&bias.reshape((1, outputs, 1, 1))?),
        None => Ok(ys),
    }
}

/// See [`super::batch_norm`].
pub fn batch_norm(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    epsilon: f64,
    given: Option<&BatchStatistics>,
    then: Epilogue,
) -> Result<(Tensor, BatchStatistics)> {
    let (batch, channels, height, width) = xs.dims4()?;
    if batch == 0 {
        let zeros = || Tensor::zeros(channels, xs.dtype(), xs.device());
        let moments = match given {
            Some(given) => given.clone(),
            None => BatchStatistics { mean: zeros()?, variance: zeros()? },
        };
        return Ok((xs.clone(), moments));
    }
    // (channels, values)
    let values = xs.transpose(0, 1)?.reshape((channels, batch * height * width))?;
    let count = (batch * height * width) as f64;
    let column = |tensor: &Tensor| tensor.to_dtype(xs.dtype())?.reshape((channels, 1));
    let (mean, variance) = match given {
        Some(BatchStatistics { mean, variance }) => (column(&mean.detach())?, column(&variance.detach())?),
        None => {
            let mean = (values.sum_keepdim(1)? / count)?;
            let variance = (values.broadcast_sub(&mean)?.sqr()?.sum_keepdim(1)? / count)?;
            (mean, variance)
        }
    };
    let scale = column(weight)?.broadcast_div(&(&variance + epsilon)?.sqrt()?)?;
    let ys = values.broadcast_sub(&mean)?.broadcast_mul(&scale)?.broadcast_add(&column(bias)?)?;
    let mut ys = ys.reshape((channels, batch, height, width))?.transpose(0, 1)?.contiguous()?;
    if let Some(add) = then.add {
        ys = (ys + add)?;
    }
    let ys = if then.relu { relu(&ys)? } else { ys };
    let flat = |tensor: Tensor| tensor.detach().flatten_all();
    Ok((ys, BatchStatistics { mean: flat(mean)?, variance: flat(variance)? }))
}

/// See [`super::recurrent`]: step after step, all sequences that have one together.
/// The maxima, and where in each sentence their windows begin.
pub fn conv_max_over_time(
    xs: &Tensor,
    sentences: &PackedSequences,
    filters: &[ConvFilters],
    padding: usize,
) -> Result<(Tensor, Vec<Vec<i64>>)> {
    let padded = sentences.unpack(xs)?.pad_with_zeros(1, padding, padding)?;
    let (mut maxima, mut winners) = (vec![], vec![vec![]; sentences.batch()]);
    for ConvFilters { weight, bias } in filters {
        let width = weight.dim(2)?;
        let windows = padded.dim(1)? + 1 - width;
        // Word by word of the windows: candle's own convolution has a wrong gradient.
        let mut responses = bias.broadcast_as((sentences.batch(), windows, bias.dim(0)?))?;
        for word in 0..width {
            let words = padded.narrow(1, word, windows)?;
            responses = (responses + linear(&words, &weight.narrow(2, word, 1)?.squeeze(2)?, None)?)?;
        }
        // Beyond a sentence's end there is no window.
        let mask = sentences.lengths().into_iter().flat_map(|length| {
            let own = length + 2 * padding + 1 - width;
            (0..windows).map(move |window| if window < own { 0.0 } else { f64::NEG_INFINITY })
        });
        let mask = Tensor::from_vec(mask.collect(), (sentences.batch(), windows, 1), xs.device())?;
        let responses = responses.broadcast_add(&mask.to_dtype(xs.dtype())?)?.contiguous()?;
        let first = responses.detach().argmax_keepdim(1)?;
        maxima.push(responses.gather(&first, 1)?.squeeze(1)?);
        for (winners, first) in winners.iter_mut().zip(first.squeeze(1)?.to_vec2::<u32>()?) {
            winners.extend(first.into_iter().map(|window| i64::from(window) - padding as i64));
        }
    }
    Ok((Tensor::cat(&maxima, 1)?, winners))
}

pub fn recurrent(
    cell: Cell,
    xs: &Tensor,
    sequences: &PackedSequences,
    weights: &[RecurrentWeights],
    state: Option<&RecurrentState>,
) -> Result<(Tensor, RecurrentState)> {
    let added = weights.iter().map(|weights| linear(xs, &weights.input, Some(&weights.input_bias)));
    recurrent_on(cell, &added.collect::<Result<Vec<_>>>()?, sequences, weights, state)
}

pub fn recurrent_tokens(
    cell: Cell,
    ids: &Tensor,
    sequences: &PackedSequences,
    weights: &[RecurrentWeights],
    state: Option<&RecurrentState>,
) -> Result<(Tensor, RecurrentState)> {
    let added = |weights: &RecurrentWeights| {
        weights.input.contiguous()?.index_select(ids, 0)?.broadcast_add(&weights.input_bias)
    };
    let added = weights.iter().map(added).collect::<Result<Vec<_>>>()?;
    recurrent_on(cell, &added, sequences, weights, state)
}

/// Of what the elements add to each direction's gates, `(rows, gates * hidden)`.
fn recurrent_on(
    cell: Cell,
    added: &[Tensor],
    sequences: &PackedSequences,
    weights: &[RecurrentWeights],
    state: Option<&RecurrentState>,
) -> Result<(Tensor, RecurrentState)> {
    let xs = &added[0];
    let order: Vec<u32> = sequences.order().iter().map(|&sequence| sequence as u32).collect();
    let mut places = vec![0u32; order.len()];
    order.iter().enumerate().for_each(|(place, &sequence)| places[sequence as usize] = place as u32);
    let order = Tensor::new(order, xs.device())?;
    let places = Tensor::new(places, xs.device())?;
    let (mut outputs, mut last_hidden, mut last_cells) = (vec![], vec![], vec![]);
    for (direction, (RecurrentWeights { hidden: recurrent, hidden_bias, .. }, added)) in
        weights.iter().zip(added).enumerate()
    {
        let units = recurrent.dim(1)?;
        let zeros = Tensor::zeros((sequences.batch(), units), xs.dtype(), xs.device())?;
        let start = |state: Option<&Tensor>| match state {
            Some(state) => state.get(direction)?.index_select(&order, 0),
            None => Ok(zeros.clone()),
        };
        // Of all sequences by falling length: those not begun yet as they start, those ended as they ended.
        let mut hidden = start(state.map(|state| &state.hidden))?;
        let mut cells = start(state.and_then(|state| state.cell.as_ref()))?;
        let mut steps: Vec<usize> = (0..sequences.steps()).collect();
        if direction == 1 {
            steps.reverse();
        }
        let mut ys = vec![];
        for step in steps {
            let (active, row) = sequences.step(step);
            let before = hidden.narrow(0, 0, active)?;
            let cells_before = cells.narrow(0, 0, active)?;
            let xs = added.narrow(0, row, active)?;
            let product = linear(&before, recurrent, Some(hidden_bias))?;
            let gate = |of: &Tensor, i: usize| of.narrow(1, i * units, units);
            let both = |i: usize| gate(&xs, i)? + gate(&product, i)?;
            let (now, cells_now) = match cell {
                Cell::Tanh => (tanh(&both(0)?)?, cells_before),
                Cell::Relu => (relu(&both(0)?)?, cells_before),
                Cell::Gru => {
                    let (r, z) = (sigmoid(&both(0)?)?, sigmoid(&both(1)?)?);
                    let n = tanh(&(gate(&xs, 2)? + (r * gate(&product, 2)?)?)?)?;
                    ((&n + (z * (before - &n)?)?)?, cells_before)
                }
                Cell::Lstm => {
                    let (i, f, o) = (sigmoid(&both(0)?)?, sigmoid(&both(1)?)?, sigmoid(&both(3)?)?);
                    let cells = ((f * cells_before)? + (i * tanh(&both(2)?)?)?)?;
                    ((o * tanh(&cells)?)?, cells)
                }
            };
            ys.push((row, now.clone()));
            let rest = sequences.batch() - active;
            let with_rest = |now: Tensor, all: &Tensor| match rest {
                0 => Ok(now),
                _ => Tensor::cat(&[now, all.narrow(0, active, rest)?], 0),
            };
            hidden = with_rest(now, &hidden)?;
            cells = with_rest(cells_now, &cells)?;
        }
        ys.sort_by_key(|&(row, _)| row);
        outputs.push(Tensor::cat(&ys.into_iter().map(|(_, ys)| ys).collect::<Vec<_>>(), 0)?);
        last_hidden.push(hidden.index_select(&places, 0)?);
        last_cells.push(cells.index_select(&places, 0)?);
    }
    let cell = if cell.has_cell_state() { Some(Tensor::stack(&last_cells, 0)?) } else { None };
    Ok((Tensor::cat(&outputs, 1)?, RecurrentState { hidden: Tensor::stack(&last_hidden, 0)?, cell }))
}

/// See [`super::pool_over_time`]: sequence after sequence.
pub fn pool_over_time(xs: &Tensor, sequences: &PackedSequences, how: TimePooling) -> Result<Tensor> {
    let mut rows = vec![vec![]; sequences.batch()];
    for (row, (sequence, _)) in sequences.positions().enumerate() {
        rows[sequence].push(row as u32);
    }
    let one = |rows: Vec<u32>| {
        let xs = xs.index_select(&Tensor::new(rows, xs.device())?, 0)?;
        match how {
            TimePooling::Mean => xs.mean(0),
            // The first of equal maxima takes all the gradient.
            TimePooling::Max => xs.gather(&xs.detach().argmax_keepdim(0)?, 0)?.squeeze(0),
        }
    };
    Tensor::stack(&rows.into_iter().map(one).collect::<Result<Vec<_>>>()?, 0)
}

/// See [`super::max_pool2d`].
pub fn max_pool2d(xs: &Tensor, window: Pool2dConfig) -> Result<Tensor> {
    let (batch, channels, _, _) = xs.dims4()?;
    let padded = pad(xs, window.padding, f64::NEG_INFINITY)?;
    let (windows, (height, width)) = unfold(&padded, window.kernel, window.stride, (1, 1))?;
    if batch * channels == 0 {
        return Tensor::zeros((batch, channels, height, width), xs.dtype(), xs.device());
    }
    // The first of equal maxima takes all the gradient: the least index where the maximum is found.
    let values = windows.detach();
    let size = window.kernel.0 * window.kernel.1;
    let index =
        Tensor::arange(0u32, size as u32, xs.device())?.to_dtype(DType::F32)?.reshape((1, 1, size, 1))?;
    let index = index.broadcast_as(values.shape())?;
    let is_max = values.broadcast_eq(&values.max_keepdim(2)?)?;
    let first =
        is_max.where_cond(&index, &index.affine(0., size as f64)?)?.min_keepdim(2)?.to_dtype(DType::U32)?;
    windows.gather(&first.contiguous()?, 2)?.reshape((batch, channels, height, width))
}

/// See [`super::avg_pool2d`].
pub fn avg_pool2d(xs: &Tensor, window: Pool2dConfig) -> Result<Tensor> {
    let size = window.kernel.0 * window.kernel.1;
    window_sums(xs, window)? / size as f64
}

/// See [`super::l2_pool2d`].
pub fn l2_pool2d(xs: &Tensor, window: Pool2dConfig) -> Result<Tensor> {
    let squares = window_sums(&xs.sqr()?, window)?;
    let zeros = squares.zeros_like()?;
    let is_zero = squares.eq(&zeros)?;
    is_zero.where_cond(&zeros, &is_zero.where_cond(&squares.ones_like()?, &squares)?.sqrt()?)
}

/// See [`super::relu`].
pub fn relu(xs: &Tensor) -> Result<Tensor> {
    let zeros = xs.zeros_like()?;
    xs.le(&zeros)?.where_cond(&zeros, xs)
}

/// See [`super::sigmoid`].
pub fn sigmoid(xs: &Tensor) -> Result<Tensor> {
    candle_nn::ops::sigmoid(xs)
}

/// See [`super::tanh`].
pub fn tanh(xs: &Tensor) -> Result<Tensor> {
    xs.tanh()
}

/// See [`super::softmax_cross_entropy`].
pub fn softmax_cross_entropy(logits: &Tensor, targets: &Tensor, smoothing: f64) -> Result<Tensor> {
    let logits = logits.broadcast_sub(&logits.detach().max_keepdim(D::Minus1)?)?;
    let log_sum = logits.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let target = logits.gather(&targets.unsqueeze(1)?.contiguous()?, 1)?.affine(1. - smoothing, 0.)?;
    let expected = (target + logits.mean_keepdim(D::Minus1)?.affine(smoothing, 0.)?)?;
    (log_sum - expected)?.mean_all()
}

/// See [`super::sigmoid_cross_entropy`].
pub fn sigmoid_cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let expected = one_hot(logits, targets)?;
    // ln(1 + exp(x)) = max(x, 0) + ln(1 + exp(-|x|)), whose gradient is right at 0 too
    let positive = logits.detach().ge(&logits.zeros_like()?)?.to_dtype(logits.dtype())?;
    let minus_abs = logits.mul(&positive.affine(-2., 1.)?)?;
    let softplus = (logits.mul(&positive)? + (minus_abs.exp()? + 1.)?.log()?)?;
    (softplus - logits.mul(&expected)?)?.sum_all()? / logits.dim(0)? as f64
}

/// See [`super::quadratic`].
pub fn quadratic(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let expected = one_hot(logits, targets)?;
    (sigmoid(logits)? - expected)?.sqr()?.sum_all()? / (2 * logits.dim(0)?) as f64
}

/// Multiplies by a mask of as many elements as `xs`.
pub(super) fn dropout(xs: &Tensor, keep: &[u8], scale: f32) -> Result<Tensor> {
    let mask = keep.iter().map(|&keep| if keep != 0 { scale } else { 0. }).collect::<Vec<_>>();
    xs.mul(&Tensor::from_vec(mask, xs.shape(), xs.device())?.to_dtype(xs.dtype())?)
}

/// (batch, classes): 1 where the class is the target, 0 elsewhere.
fn one_hot(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let (batch, classes) = logits.dims2()?;
    let class = Tensor::arange(0u32, classes as u32, logits.device())?.reshape((1, classes))?;
    let targets = targets.reshape((batch, 1))?;
    class.broadcast_eq(&targets)?.to_dtype(logits.dtype())
}

/// The last two dimensions with `value` around them.
fn pad(xs: &Tensor, padding: (usize, usize), value: f64) -> Result<Tensor> {
    let along = |xs: &Tensor, dim: usize, size: usize| {
        if size == 0 {
            return Ok(xs.clone());
        }
        let mut shape = xs.dims().to_vec();
        shape[dim] = size;
        let border = Tensor::full(value as f32, shape, xs.device())?.to_dtype(xs.dtype())?;
        Tensor::cat(&[&border, xs, &border], dim)
    };
    along(&along(xs, 2, padding.0)?, 3, padding.1)
}

/// The windows of (batch, channels, height, width) as (batch, channels, kernel elements, positions), and the height
/// and width of the positions.
fn unfold(
    xs: &Tensor,
    kernel: (usize, usize),
    stride: (usize, usize),
    dilation: (usize, usize),
) -> Result<(Tensor, (usize, usize))> {
    let (batch, channels, height, width) = xs.dims4()?;
    let steps = |size, kernel, stride, dilation| (size - dilation * (kernel - 1) - 1) / stride + 1;
    let out_height = steps(height, kernel.0, stride.0, dilation.0);
    let out_width = steps(width, kernel.1, stride.1, dilation.1);
    let (size, positions) = (kernel.0 * kernel.1, out_height * out_width);
    let mut index = Vec::with_capacity(size * positions);
    for tap in 0..size {
        let (row, column) = (tap / kernel.1 * dilation.0, tap % kernel.1 * dilation.1);
        for y in 0..out_height {
            let start = (y * stride.0 + row) * width + column;
            index.extend((0..out_width).map(|x| (start + x * stride.1) as u32));
        }
    }
    let index = Tensor::from_vec(index, size * positions, xs.device())?;
    let windows = xs.reshape((batch, channels, height * width))?.contiguous()?.index_select(&index, 2)?;
    Ok((windows.reshape((batch, channels, size, positions))?, (out_height, out_width)))
}

fn window_sums(xs: &Tensor, window: Pool2dConfig) -> Result<Tensor> {
    let (batch, channels, _, _) = xs.dims4()?;
    let (windows, (height, width)) =
        unfold(&pad(xs, window.padding, 0.)?, window.kernel, window.stride, (1, 1))?;
    windows.sum(2)?.reshape((batch, channels, height, width))
}
