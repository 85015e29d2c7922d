//! Arguments of the operations: their types, and the checks that an operation and its reference share.

use super::{PackedSequences, gpu};
use crate::kernels::cpu::batch_norm::Grid;
use crate::kernels::cpu::conv_max_over_time::{FilterSize, Layout};
use crate::kernels::cpu::conv2d::Conv2d;
use crate::kernels::cpu::pool::Windows;
use candle_core::{DType, Device, Result, Tensor, Var, bail};

mod recurrent;

pub use recurrent::{RecurrentState, RecurrentWeights};
pub(super) use recurrent::{check_recurrent, check_recurrent_tokens, check_recurrent_weights};

/// Checks the shapes.
pub(super) fn check_linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<()> {
    let &[outputs, inputs] = weight.dims() else {
        bail!("linear: found a weight of shape {:?}, expected (out, in)", weight.dims())
    };
    if xs.dims().last() != Some(&inputs) {
        bail!(
            "linear: found an input of shape {:?}, expected (.., {inputs}) for a weight of shape {:?}",
            xs.dims(),
            weight.dims()
        );
    }
    check_types("linear", xs, weight)?;
    check_bias("linear", bias, outputs)
}

/// Fails if the input `xs` and the weight have different types.
pub(crate) fn check_types(op: &str, xs: &Tensor, weight: &Tensor) -> Result<()> {
    let [found, expected] = [xs, weight].map(|tensor| tensor.dtype().as_str());
    if found != expected {
        bail!("{op}: found an input of type {found}, expected {expected}, the type of the weight");
    }
    Ok(())
}

/// Fails if the shape of `bias` is not `(outputs)`.
pub(super) fn check_bias(op: &str, bias: Option<&Tensor>, outputs: usize) -> Result<()> {
    match bias.map(Tensor::dims) {
        Some(dims) if dims != [outputs] => {
            bail!("{op}: found a bias of shape {dims:?}, expected ({outputs}), one value per output")
        }
        _ => Ok(()),
    }
}

/// Stride, padding, dilation and groups of a two-dimensional convolution; pairs are (height, width).
///
/// The layer [`nn::conv2d`](crate::nn::conv2d) takes candle's `Conv2dConfig`, which has one number for both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dConfig {
    /// Distance between neighbouring positions of the kernel.
    pub stride: (usize, usize),
    /// Zeros on either side of the input.
    pub padding: (usize, usize),
    /// Distance between neighbouring taps of the kernel.
    pub dilation: (usize, usize),
    /// Number of groups of channels that are convolved separately.
    pub groups: usize,
}

impl Default for Conv2dConfig {
    /// Stride 1, no padding, dilation 1, one group.
    fn default() -> Self {
        Self { stride: (1, 1), padding: (0, 0), dilation: (1, 1), groups: 1 }
    }
}

/// Checks the shapes and returns the sizes of the convolution.
pub(super) fn check_conv2d(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: Conv2dConfig,
) -> Result<Conv2d> {
    let Conv2dConfig { stride, padding, dilation, groups } = config;
    let (batch, channels, height, width) = match *xs.dims() {
        [batch, channels, height, width] => (batch, channels, height, width),
        ref dims => {
            bail!("conv2d: found an input of shape {dims:?}, expected (batch, channels, height, width)")
        }
    };
    let (outputs, group_channels, kernel) = match *weight.dims() {
        [outputs, group_channels, h, w] => (outputs, group_channels, (h, w)),
        ref dims => {
            bail!("conv2d: found a weight of shape {dims:?}, expected (out, in / groups, height, width)")
        }
    };
    check_not_empty("conv2d", xs, weight, config)?;
    let group_outputs = outputs / groups;
    if Some(channels) != group_channels.checked_mul(groups) || outputs != group_outputs * groups {
        bail!(
            "conv2d: found {channels} input channels and {outputs} output channels in {groups} groups, expected \
             {group_channels} input channels per group and a multiple of {groups} output channels"
        );
    }
    let (Some(rows), Some(columns)) = (
        Extent::new(height, kernel.0, padding.0, dilation.0),
        Extent::new(width, kernel.1, padding.1, dilation.1),
    ) else {
        bail!("conv2d: found padding {padding:?} and dilation {dilation:?}, expected less: sizes overflow")
    };
    if rows.kernel > rows.padded || columns.kernel > columns.padded {
        bail!(
            "conv2d: found a kernel that covers {:?}, expected one no larger than the padded input {:?}",
            (rows.kernel, columns.kernel),
            (rows.padded, columns.padded)
        );
    }
    check_types("conv2d", xs, weight)?;
    check_bias("conv2d", bias, outputs)?;
    // A stride longer than the input also leaves one position.
    let stride = (stride.0.min(rows.padded), stride.1.min(columns.padded));
    let output = (rows.positions(stride.0), columns.positions(stride.1));
    let planes = group_channels.max(group_outputs);
    if !fits(&[planes, rows.padded, columns.padded]) || !fits(&[batch, outputs, output.0, output.1]) {
        bail!(
            "conv2d: found an input of {}x{} with its padding, expected one that fits in memory",
            rows.padded,
            columns.padded
        );
    }
    Ok(Conv2d {
        batch,
        groups,
        channels: group_channels,
        outputs: group_outputs,
        kernel,
        stride,
        padding,
        dilation,
        input: (height, width),
        output,
    })
}

/// Checks the shapes of a transposed convolution and returns the sizes of the forward one.
///
/// The forward convolution maps the output of the transposed one to its input.
pub(super) fn check_conv_transpose2d(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: Conv2dConfig,
    output_padding: (usize, usize),
) -> Result<Conv2d> {
    const OP: &str = "conv_transpose2d";
    let (&[batch, inputs, height, width], &[weight_inputs, outputs, kernel_h, kernel_w]) =
        (xs.dims(), weight.dims())
    else {
        bail!(
            "{OP}: found an input of shape {:?} and a weight of shape {:?}, expected (batch, in, height, width) and (in, \
             out / groups, height, width)",
            xs.dims(),
            weight.dims()
        )
    };
    check_not_empty(OP, xs, weight, config)?;
    let Conv2dConfig { stride, padding, dilation, groups } = config;
    if inputs != weight_inputs || !inputs.is_multiple_of(groups) {
        bail!(
            "{OP}: found {inputs} input channels, a weight for {weight_inputs} and {groups} groups, expected equal numbers \
             of channels that the groups divide"
        );
    }
    let Some(all_outputs) = outputs.checked_mul(groups) else {
        bail!("{OP}: found {groups} groups of {outputs} output channels, expected less: sizes overflow")
    };
    check_bias(OP, bias, all_outputs)?;
    let side = |size, kernel, stride: usize, dilation, padding: usize, output_padding| {
        if output_padding >= stride.max(dilation) {
            return Err("the output padding is neither below the stride nor below the dilation");
        }
        let (stride, reach) = spread(size, kernel, stride, dilation).ok_or("sizes overflow")?;
        let padded = reach.checked_add(output_padding).ok_or("sizes overflow")?;
        let output = padding.checked_mul(2).and_then(|both| padded.checked_sub(both));
        output
            .filter(|&output| output > 0)
            .map(|output| (stride, output))
            .ok_or("the padding leaves no output")
    };
    let rows = side(height, kernel_h, stride.0, dilation.0, padding.0, output_padding.0);
    let columns = side(width, kernel_w, stride.1, dilation.1, padding.1, output_padding.1);
    let ((stride_h, output_h), (stride_w, output_w)) = match (rows, columns) {
        (Ok(rows), Ok(columns)) => (rows, columns),
        (Err(why), _) | (_, Err(why)) => bail!(
            "{OP}: found stride {stride:?}, dilation {dilation:?}, padding {padding:?} and output padding \
             {output_padding:?} for an input of {height}x{width}: {why}"
        ),
    };
    let (padded_h, padded_w) = (output_h + 2 * padding.0, output_w + 2 * padding.1);
    let planes = inputs.max(all_outputs);
    if !fits(&[planes, padded_h, padded_w]) || !fits(&[batch, all_outputs, output_h, output_w]) {
        bail!("{OP}: found an output of {output_h}x{output_w}, expected one that fits in memory");
    }
    Ok(Conv2d {
        batch,
        groups,
        channels: outputs,
        outputs: inputs / groups,
        kernel: (kernel_h, kernel_w),
        stride: (stride_h, stride_w),
        padding,
        dilation,
        input: (output_h, output_w),
        output: (height, width),
    })
}

/// The effective stride along one dimension of a transposed convolution, and the extent that it covers.
///
/// Returns `None` if the extent overflows.
fn spread(size: usize, kernel: usize, stride: usize, dilation: usize) -> Option<(usize, usize)> {
    let covered = dilation.checked_mul(kernel - 1)?.checked_add(1)?;
    // The stride does not matter for a single element; limit it to the extent of the kernel.
    let stride = if size == 1 { stride.min(covered) } else { stride };
    Some((stride, (size - 1).checked_mul(stride)?.checked_add(covered)?))
}

/// Fails if a size is 0, except the batch.
fn check_not_empty(op: &str, xs: &Tensor, weight: &Tensor, config: Conv2dConfig) -> Result<()> {
    let Conv2dConfig { stride, dilation, groups, .. } = config;
    let sizes = [stride.0, stride.1, dilation.0, dilation.1, groups, weight.elem_count()];
    if sizes.contains(&0) || xs.dims()[2..].contains(&0) {
        let (xs, weight) = (xs.dims(), weight.dims());
        bail!(
            "{op}: found an input of shape {xs:?}, a weight of shape {weight:?}, stride {stride:?}, dilation {dilation:?} \
             and {groups} groups, expected sizes of 1 or more"
        );
    }
    Ok(())
}

/// Sizes along one dimension.
struct Extent {
    /// The input with its padding.
    padded: usize,
    /// The extent of the dilated kernel.
    kernel: usize,
}

impl Extent {
    /// Returns `None` if a size overflows.
    fn new(size: usize, kernel: usize, padding: usize, dilation: usize) -> Option<Self> {
        let padded = padding.checked_mul(2)?.checked_add(size)?;
        Some(Self { padded, kernel: dilation.checked_mul(kernel - 1)?.checked_add(1)? })
    }

    fn positions(&self, stride: usize) -> usize {
        (self.padded - self.kernel) / stride + 1
    }
}

/// Whether a buffer of these sizes could be allocated, with some margin.
fn fits(sizes: &[usize]) -> bool {
    const MOST: usize = isize::MAX as usize / (4 * size_of::<f64>());
    sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size)).is_some_and(|size| size <= MOST)
}

/// The windows of a pooling operation; each size is (height, width).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool2dConfig {
    /// The size of a window.
    pub kernel: (usize, usize),
    /// The distance between windows.
    pub stride: (usize, usize),
    /// The padding on each side, at most half the kernel.
    pub padding: (usize, usize),
}

impl Pool2dConfig {
    /// Adjacent windows of `size` by `size`, without overlap or padding.
    pub fn square(size: usize) -> Self {
        Self { kernel: (size, size), stride: (size, size), padding: (0, 0) }
    }
}

/// Checks the input and the configuration and returns the windows of a channel.
pub(super) fn check_pool2d(name: &str, xs: &Tensor, config: Pool2dConfig) -> Result<Windows> {
    let Pool2dConfig { kernel, stride, padding } = config;
    let &[_, _, height, width] = xs.dims() else {
        bail!("{name}: found an input of shape {:?}, expected (batch, channels, height, width)", xs.dims())
    };
    if height == 0 || width == 0 {
        bail!("{name}: found an input of shape {:?}, expected at least one row and one column", xs.dims());
    }
    if kernel.0 == 0 || kernel.1 == 0 || stride.0 == 0 || stride.1 == 0 {
        bail!("{name}: found kernel {kernel:?} and stride {stride:?}, expected sizes of at least 1");
    }
    if padding.0 > kernel.0 / 2 || padding.1 > kernel.1 / 2 {
        bail!("{name}: found padding {padding:?}, expected at most half the kernel {kernel:?}");
    }
    // Cannot wrap: the padding is at most half the kernel.
    let padded = (height.saturating_add(2 * padding.0), width.saturating_add(2 * padding.1));
    if kernel.0 > padded.0 || kernel.1 > padded.1 {
        bail!("{name}: found kernel {kernel:?}, expected at most the padded input {padded:?}");
    }
    match Windows::new(kernel, stride, padding, (height, width)) {
        Some(windows) => Ok(windows),
        None => bail!(
            "{name}: found kernel {kernel:?} and padding {padding:?} for an input of shape {:?}: the sizes overflow",
            xs.dims()
        ),
    }
}

/// The mean and the biased variance of each channel.
#[derive(Debug, Clone)]
pub struct BatchStatistics {
    /// `(channels)`
    pub mean: Tensor,
    /// `(channels)`, divided by the number of elements, not by one less.
    pub variance: Tensor,
}

/// Averages of the statistics of past batches, which training updates.
#[derive(Debug, Clone, Copy)]
pub struct RunningAverages<'a> {
    /// Average of the means, `(channels)`.
    pub mean: &'a Var,
    /// Average of the unbiased variances, `(channels)`.
    pub variance: &'a Var,
    /// Fraction of the way towards the batch statistics that an update moves the averages.
    pub momentum: f64,
}

/// Operations fused into the normalisation: an optional residual add, then an optional ReLU.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// The residual, a tensor of the input's shape.
    pub add: Option<&'a Tensor>,
    /// Whether a ReLU follows.
    pub relu: bool,
}

/// Checks the shapes and returns the input's layout.
pub(super) fn check_batch_norm(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    running: Option<&BatchStatistics>,
    epilogue: Epilogue,
) -> Result<Grid> {
    let &[batch, channels, height, width] = xs.dims() else {
        bail!(
            "batch_norm: found an input of shape {:?}, expected (batch, channels, height, width)",
            xs.dims()
        )
    };
    let plane = height.checked_mul(width).filter(|&plane| plane > 0);
    let Some(plane) = plane.filter(|plane| plane.checked_mul(channels).is_some_and(|example| example > 0))
    else {
        bail!(
            "batch_norm: found an input of shape {:?}, expected at least one channel, row and column",
            xs.dims()
        )
    };
    let running = running.map(|running| [("mean", &running.mean), ("variance", &running.variance)]);
    let vectors = [("weight", weight), ("bias", bias)].into_iter().chain(running.into_iter().flatten());
    for (name, found) in vectors {
        if found.dims() != [channels] {
            let (found, xs) = (found.dims(), xs.dims());
            bail!(
                "batch_norm: found a {name} of shape {found:?}, expected ({channels}) for an input of shape {xs:?}"
            );
        }
    }
    if let Some(add) = epilogue.add
        && add.dims() != xs.dims()
    {
        bail!(
            "batch_norm: found a residual of shape {:?}, expected the input's shape {:?}",
            add.dims(),
            xs.dims()
        );
    }
    Ok(Grid { batch, channels, plane })
}

pub(super) fn check_smoothing(smoothing: f64) -> Result<()> {
    if !(0.0..=1.0).contains(&smoothing) {
        bail!("softmax_cross_entropy: found a label smoothing of {smoothing}, expected one from 0 to 1");
    }
    Ok(())
}

/// Returns integers of any type as u32, the type of ids and labels. The largest i64 becomes [`NO_ROW`](super::NO_ROW).
///
/// # Errors
/// Fails if `ids` are not integers or, on the CPU, one does not fit.
pub(crate) fn to_ids(name: &str, ids: &Tensor) -> Result<Tensor> {
    match ids.dtype() {
        DType::U32 => return Ok(ids.clone()),
        DType::U8 => return ids.to_dtype(DType::U32),
        other if !other.is_int() => bail!("{name} of type {}, expected integers", other.as_str()),
        _ if !ids.device().is_cpu() => return ids.to_dtype(DType::U32),
        _ => {}
    }
    let mut values = vec![];
    for value in ids.to_dtype(DType::I64)?.flatten_all()?.to_vec1::<i64>()? {
        match u32::try_from(value) {
            Ok(id) => values.push(id),
            Err(_) if value == i64::MAX => values.push(u32::MAX),
            Err(_) => bail!("{name} {value}, expected 0 to {}", u32::MAX),
        }
    }
    Tensor::from_vec(values, ids.shape(), ids.device())
}

/// Checks the shapes; for logits in main memory also checks and returns the labels.
pub(super) fn check_loss(name: &str, logits: &Tensor, targets: &Tensor) -> Result<Option<Vec<u32>>> {
    let &[batch, classes] = logits.dims() else {
        bail!("{name}: found logits of shape {:?}, expected (batch, classes)", logits.dims())
    };
    check_targets(name, [batch, classes], targets, logits.device())
}

/// Checks the targets of logits `(batch, classes)` on `device`.
///
/// In main memory, also checks and returns the labels.
pub(super) fn check_targets(
    name: &str,
    [batch, classes]: [usize; 2],
    targets: &Tensor,
    device: &Device,
) -> Result<Option<Vec<u32>>> {
    if targets.dims() != [batch] || targets.dtype() != DType::U32 {
        let (dims, dtype) = (targets.dims(), targets.dtype().as_str());
        bail!(
            "{name}: found {dtype} targets of shape {dims:?}, expected u32 of shape ({batch}), the logits' batch"
        );
    }
    if batch == 0 {
        bail!("{name}: found an empty batch, which has no mean; expected at least one example");
    }
    // While a step is recorded, labels from a kernel have no values yet; the emulator has them in main memory.
    match device.is_cpu() && !gpu::is_recording() {
        true => labels(name, classes, targets).map(Some),
        false => Ok(None),
    }
}

fn labels(name: &str, classes: usize, targets: &Tensor) -> Result<Vec<u32>> {
    let labels = targets.to_vec1::<u32>()?;
    match labels.iter().find(|&&label| label as usize >= classes) {
        Some(label) => {
            bail!("{name}: found the target {label}, expected one below {classes}, the number of classes")
        }
        None => Ok(labels),
    }
}

/// How the elements of a sequence are reduced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimePooling {
    /// The mean of each feature.
    Mean,
    /// The maximum of each feature (Collobert et al. 2011). The first of equal maxima gets the gradient.
    Max,
}

/// Checks the shape of the input.
pub(super) fn check_pool_over_time(xs: &Tensor, sequences: &PackedSequences) -> Result<()> {
    match xs.dims() {
        &[rows, _] if rows == sequences.rows() => Ok(()),
        dims => {
            bail!(
                "pool_over_time: found an input of shape {dims:?}, expected ({}, features)",
                sequences.rows()
            )
        }
    }
}

/// Convolution filters of one width.
#[derive(Debug, Clone)]
pub struct ConvFilters {
    /// `(filters, features, width)`, as in PyTorch's `Conv1d`.
    pub weight: Tensor,
    /// `(filters)`
    pub bias: Tensor,
}

/// Checks the arguments; returns the layout of the sentences and the size of each element of `filters`.
pub(super) fn check_conv_max_over_time(
    xs: &Tensor,
    sentences: &PackedSequences,
    filters: &[ConvFilters],
    padding: usize,
) -> Result<(Layout, Vec<FilterSize>)> {
    const OP: &str = "conv_max_over_time";
    let features = match xs.dims() {
        &[rows, features] if rows == sentences.rows() && features > 0 => features,
        dims => bail!("{OP}: found an input of shape {dims:?}, expected ({}, features)", sentences.rows()),
    };
    if filters.is_empty() {
        bail!("{OP}: found no filters, expected at least one");
    }
    let lengths = sentences.lengths();
    let shortest = lengths.iter().min().copied().unwrap_or(0);
    let Some(layout) = Layout::new(lengths, padding, features) else {
        bail!("{OP}: found a padding of {padding}: the sizes overflow")
    };
    let shortest = shortest + 2 * padding;
    let size = |ConvFilters { weight, bias }: &ConvFilters| {
        let (count, width) = match weight.dims() {
            &[count, found, width] if found == features && count > 0 && width > 0 => (count, width),
            dims => bail!("{OP}: found a weight of shape {dims:?}, expected (filters, {features}, width)"),
        };
        if bias.dims() != [count] {
            bail!("{OP}: found a bias of shape {:?}, expected ({count})", bias.dims());
        }
        if shortest < width {
            bail!(
                "{OP}: found a sentence of length {shortest} including its padding, expected at least {width}"
            );
        }
        Ok(FilterSize { count, width })
    };
    Ok((layout, filters.iter().map(size).collect::<Result<_>>()?))
}

/// Checks the shapes.
pub(super) fn check_attention(
    queries: &Tensor,
    [keys, values]: [&Tensor; 2],
    v: Option<&Tensor>,
    sequences: &PackedSequences,
    sequence_of_row: &[u32],
) -> Result<()> {
    let (size, elements) = (keys.dims().last().copied().unwrap_or_default(), sequences.rows());
    if keys.dims() != [elements, size] || values.rank() != 2 || values.dims()[0] != elements {
        bail!(
            "attention: found keys of shape {:?} and values of shape {:?}, expected ({elements}, ..), one row per element \
             of the sequences",
            keys.dims(),
            values.dims()
        );
    }
    let rows = sequence_of_row.len();
    if queries.dims() != [rows, size] {
        bail!("attention: found queries of shape {:?}, expected ({rows}, {size})", queries.dims());
    }
    if let Some(dims) = v.map(Tensor::dims).filter(|&dims| dims != [size] && dims != [1, size]) {
        bail!("attention: found a vector of shape {dims:?}, expected ({size})");
    }
    match sequence_of_row.iter().find(|&&sequence| sequence as usize >= sequences.batch()) {
        Some(sequence) => {
            bail!("attention: found the sequence {sequence}, expected one below {}", sequences.batch())
        }
        None => Ok(()),
    }
}
