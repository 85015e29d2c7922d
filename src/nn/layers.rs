//! Linear, convolution, batch normalisation, embedding, pooling, dropout and activations.

use super::{Init, Mode};
use crate::ops::{self, BatchStatistics, Conv2dConfig, ConvFilters, Epilogue, PackedSequences, Pool2dConfig};
use crate::rng;
use candle_core::{DType, Module, Result, Tensor, Var, bail};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A fully connected layer: `y = x · weightᵀ + bias`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

/// A fully connected layer with PyTorch's initial values: `weight` `(outputs, inputs)` and `bias` `(outputs)` of `vb`.
///
/// # Errors
/// When `vb` holds these parameters in other shapes.
pub fn linear(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Linear> {
    linear_with(inputs, outputs, Init::PyTorch, vb)
}

/// A fully connected layer with initial values of the caller's choice; see [`linear`].
///
/// # Errors
/// When `vb` holds these parameters in other shapes.
pub fn linear_with(inputs: usize, outputs: usize, init: Init, vb: VarBuilder) -> Result<Linear> {
    Ok(Linear {
        weight: vb.get_with_hints((outputs, inputs), "weight", init.weight(inputs, outputs))?,
        bias: Some(vb.get_with_hints(outputs, "bias", init.bias(inputs))?),
    })
}

impl Linear {
    /// A layer of given `weight` `(outputs, inputs)` and `bias` `(outputs)`.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

impl Module for Linear {
    /// `(.., inputs)` to `(.., outputs)`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        ops::linear(xs, &self.weight, self.bias.as_ref())
    }
}

/// A 2-d convolution (cross-correlation, as everywhere in deep learning).
#[derive(Debug, Clone)]
pub struct Conv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    geometry: Conv2dConfig,
}

/// A convolution with square kernels and PyTorch's initial values: `weight` `(outputs, inputs / groups, kernel, kernel)`
/// and `bias` `(outputs)` of `vb`.
///
/// # Errors
/// When the channels can't be cut into the geometry's groups, or `vb` holds these parameters in other shapes.
pub fn conv2d(
    inputs: usize,
    outputs: usize,
    kernel: usize,
    geometry: Conv2dConfig,
    vb: VarBuilder,
) -> Result<Conv2d> {
    let mut conv = conv2d_no_bias(inputs, outputs, kernel, geometry, Init::PyTorch, vb.clone())?;
    let fan_in = inputs / geometry.groups * kernel * kernel;
    conv.bias = Some(vb.get_with_hints(outputs, "bias", Init::PyTorch.bias(fan_in))?);
    Ok(conv)
}

/// A convolution without bias, with initial values of the caller's choice; see [`conv2d`].
///
/// # Errors
/// As for [`conv2d`].
pub fn conv2d_no_bias(
    inputs: usize,
    outputs: usize,
    kernel: usize,
    geometry: Conv2dConfig,
    init: Init,
    vb: VarBuilder,
) -> Result<Conv2d> {
    let groups = geometry.groups;
    if groups == 0 || !inputs.is_multiple_of(groups) || !outputs.is_multiple_of(groups) {
        bail!("conv2d: {inputs} and {outputs} channels can't be cut into {groups} groups");
    }
    let (fan_in, fan_out) = (inputs / groups * kernel * kernel, outputs / groups * kernel * kernel);
    let shape = (outputs, inputs / groups, kernel, kernel);
    let weight = vb.get_with_hints(shape, "weight", init.weight(fan_in, fan_out))?;
    Ok(Conv2d { weight, bias: None, geometry })
}

impl Conv2d {
    /// A layer of given `weight` `(outputs, inputs / groups, height, width)` and `bias` `(outputs)`.
    pub fn new(weight: Tensor, bias: Option<Tensor>, geometry: Conv2dConfig) -> Self {
        Self { weight, bias, geometry }
    }

    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

impl Module for Conv2d {
    /// `(batch, inputs, height, width)` to `(batch, outputs, height', width')`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        ops::conv2d(xs, &self.weight, self.bias.as_ref(), self.geometry)
    }
}

/// Batch normalisation of pictures (Ioffe and Szegedy 2015): in training with the mean and variance of the batch, of which
/// it keeps running ones, and in evaluation with those.
#[derive(Debug, Clone)]
pub struct BatchNorm2d {
    weight: Tensor,
    bias: Tensor,
    running_mean: Var,
    running_var: Var,
}

/// Batch normalisation with PyTorch's initial values, ones and zeros: `weight`, `bias` and, beside them as if they were
/// parameters, `running_mean` and `running_var`, `(channels)` each, of `vb`. The running ones get no gradient.
///
/// # Errors
/// When `vb` holds these in other shapes.
pub fn batch_norm2d(channels: usize, vb: VarBuilder) -> Result<BatchNorm2d> {
    let get = |name, value| vb.get_with_hints(channels, name, candle_nn::Init::Const(value));
    Ok(BatchNorm2d {
        weight: get("weight", 1.0)?,
        bias: get("bias", 0.0)?,
        running_mean: Var::from_tensor(&get("running_mean", 0.0)?)?,
        running_var: Var::from_tensor(&get("running_var", 1.0)?)?,
    })
}

impl BatchNorm2d {
    /// What is kept beside the parameters but not learned.
    pub const BUFFERS: [&str; 2] = ["running_mean", "running_var"];
    const EPSILON: f64 = 1e-5;
    const MOMENTUM: f64 = 0.1;

    /// `(batch, channels, height, width)` to the same shape, and `then` what the caller says. In training the running mean
    /// and the running variance, the unbiased one, go a tenth of the way to those of the batch.
    ///
    /// # Errors
    /// When shapes do not fit; in training also when there is but one value a channel, which has no variance.
    pub fn forward(&self, xs: &Tensor, then: Epilogue, mode: Mode) -> Result<Tensor> {
        let norm = |given| ops::batch_norm(xs, &self.weight, &self.bias, Self::EPSILON, given, then);
        if mode == Mode::Evaluate {
            let [mean, variance] = [&self.running_mean, &self.running_var].map(Var::as_detached_tensor);
            return Ok(norm(Some(&BatchStatistics { mean, variance }))?.0);
        }
        let (ys, BatchStatistics { mean, variance }) = norm(None)?;
        let count = xs.elem_count() / mean.elem_count();
        if count < 2 {
            bail!(
                "batch_norm: found an input of shape {:?} in training, expected two values a channel",
                xs.dims()
            );
        }
        let unbiased = count as f64 / (count - 1) as f64;
        for (running, new, scale) in
            [(&self.running_mean, mean, 1.0), (&self.running_var, variance, unbiased)]
        {
            let old = running.as_detached_tensor().affine(1.0 - Self::MOMENTUM, 0.0)?;
            running.set(&(old + new.affine(Self::MOMENTUM * scale, 0.0)?)?)?;
        }
        Ok(ys)
    }
}

/// A table of vectors, one for each word or character.
#[derive(Debug, Clone)]
pub struct Embedding {
    weight: Tensor,
}

/// An embedding with PyTorch's initial values, N(0, 1): `weight` `(rows, size)` of `vb`.
///
/// # Errors
/// When `vb` holds this parameter in another shape.
pub fn embedding(rows: usize, size: usize, vb: VarBuilder) -> Result<Embedding> {
    embedding_with(rows, size, candle_nn::Init::Randn { mean: 0.0, stdev: 1.0 }, vb)
}

/// An embedding with initial values of the caller's choice; see [`embedding`].
///
/// # Errors
/// When `vb` holds this parameter in another shape.
pub fn embedding_with(rows: usize, size: usize, init: candle_nn::Init, vb: VarBuilder) -> Result<Embedding> {
    Ok(Embedding { weight: vb.get_with_hints((rows, size), "weight", init)? })
}

/// Initial values of words' vectors that let little be read into words seen rarely: uniform within ±0.25 (Kim 2014).
pub const WORD_VECTOR_INIT: candle_nn::Init = candle_nn::Init::Uniform { lo: -0.25, up: 0.25 };

impl Embedding {
    /// A table of given `weight` `(rows, size)`.
    pub fn new(weight: Tensor) -> Self {
        Self { weight }
    }

    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The `count` rows, of the first `rows`, whose vectors have the largest cosine with that of `id`, which is not among
    /// them, each with its cosine.
    ///
    /// # Errors
    /// When the table has no such row.
    pub fn nearest(&self, id: u32, rows: usize, count: usize) -> Result<Vec<(u32, f32)>> {
        let table = self.weight.narrow(0, 0, rows)?.detach().to_dtype(DType::F32)?;
        let own = table.get(id as usize)?;
        let norms = (table.sqr()?.sum(1)? * own.sqr()?.sum_all()?.to_scalar::<f32>()? as f64)?.sqrt()?;
        let cosines = (table.broadcast_mul(&own)?.sum(1)? / norms.maximum(f32::MIN_POSITIVE)?)?;
        let mut ranked: Vec<(u32, f32)> = (0..).zip(cosines.to_vec1()?).filter(|row| row.0 != id).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        ranked.truncate(count);
        Ok(ranked)
    }

    /// The mean of the vectors of each of `sequences`, `(batch, size)`, of ids `(rows)`, u32 (PyTorch's `EmbeddingBag`).
    ///
    /// # Errors
    /// When an id is outside the table, or there is another number of ids.
    pub fn mean(&self, ids: &Tensor, sequences: &Arc<PackedSequences>) -> Result<Tensor> {
        ops::embedding_mean(&self.weight, ids, sequences)
    }
}

impl Module for Embedding {
    /// Ids `(..)`, u32, to their vectors `(.., size)`.
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        ops::embedding(&self.weight, ids)
    }
}

/// Filters over windows of words, the largest response of each over a sentence, and a ReLU (Kim 2014).
#[derive(Debug, Clone)]
pub struct ConvMaxOverTime {
    filters: Vec<ConvFilters>,
    padding: usize,
}

/// So many `filters` of each of `widths` words, with PyTorch's initial values: `k.weight` `(filters, features, width)` and
/// `k.bias` `(filters)` of `vb` for the k-th width. Sentences have zeros before and after them, so that each word is at
/// each place of a window.
///
/// # Errors
/// Without widths or filters, and when `vb` holds these parameters in other shapes.
pub fn conv_max_over_time(
    features: usize,
    widths: &[usize],
    filters: usize,
    vb: VarBuilder,
) -> Result<ConvMaxOverTime> {
    let widest = match widths.iter().max() {
        Some(&widest) if !widths.contains(&0) && filters > 0 => widest,
        _ => bail!(
            "conv_max_over_time: found {filters} filters of {widths:?} words, expected at least one of one"
        ),
    };
    let width = |(k, &width): (usize, &usize)| -> Result<ConvFilters> {
        let (vb, init, fan_in) = (vb.pp(k), Init::PyTorch, features * width);
        let weight =
            vb.get_with_hints((filters, features, width), "weight", init.weight(fan_in, filters * width))?;
        Ok(ConvFilters { weight, bias: vb.get_with_hints(filters, "bias", init.bias(fan_in))? })
    };
    let filters = widths.iter().enumerate().map(width).collect::<Result<_>>()?;
    Ok(ConvMaxOverTime { filters, padding: widest - 1 })
}

impl ConvMaxOverTime {
    /// Responses `(batch, filters)`, those of the first width first, to the words `xs` `(rows, features)` of `sentences`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, xs: &Tensor, sentences: &Arc<PackedSequences>) -> Result<Tensor> {
        ops::relu(&ops::conv_max_over_time(xs, sentences, &self.filters, self.padding)?)
    }

    /// Where each filter's window begins in each sentence: the number of its first word, negative before the sentence.
    ///
    /// # Errors
    /// As for [`forward`](Self::forward).
    pub fn max_positions(&self, xs: &Tensor, sentences: &Arc<PackedSequences>) -> Result<Vec<Vec<i64>>> {
        ops::conv_max_positions(xs, sentences, &self.filters, self.padding)
    }

    /// The width of each filter.
    pub fn widths(&self) -> Vec<usize> {
        let widths = |ConvFilters { weight, .. }: &ConvFilters| vec![weight.dims()[2]; weight.dims()[0]];
        self.filters.iter().flat_map(widths).collect()
    }
}

/// What a pooling layer makes of its window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    Max,
    Average,
    /// The square root of the sum of squares (Nielsen, chapter 6).
    L2,
}

/// A pooling layer; candle's own `max_pool2d` has a wrong gradient.
#[derive(Debug, Clone, Copy)]
pub struct Pool2d {
    pub pooling: Pooling,
    pub window: Pool2dConfig,
}

impl Module for Pool2d {
    /// `(batch, channels, height, width)` to `(batch, channels, height', width')`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match self.pooling {
            Pooling::Max => ops::max_pool2d(xs, self.window),
            Pooling::Average => ops::avg_pool2d(xs, self.window),
            Pooling::L2 => ops::l2_pool2d(xs, self.window),
        }
    }
}

/// An element-wise nonlinearity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    #[default]
    Relu,
    Sigmoid,
    Tanh,
}

impl Module for Activation {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match self {
            Self::Relu => ops::relu(xs),
            Self::Sigmoid => ops::sigmoid(xs),
            Self::Tanh => ops::tanh(xs),
        }
    }
}

/// Dropout (Srivastava et al. 2014): in training each value is zeroed with a probability and the rest scaled up, so
/// that evaluation needs no change.
#[derive(Debug, Clone)]
pub struct Dropout {
    probability: f32,
    address: String,
}

/// Dropout of `probability`; the path of `vb` tells its masks from those of other layers. It has no parameters.
pub fn dropout(probability: f32, vb: VarBuilder) -> Dropout {
    Dropout { probability, address: vb.prefix() }
}

impl Dropout {
    /// Whether it changes anything in this mode.
    pub fn is_active(&self, mode: Mode) -> bool {
        matches!(mode, Mode::Train { .. }) && self.probability > 0.0
    }

    /// Any shape to the same shape. The mask is a function of the mode's seed and step and of this layer's path.
    ///
    /// # Errors
    /// When the probability is not in 0 to 1 (1 excluded).
    pub fn forward(&self, xs: &Tensor, mode: Mode) -> Result<Tensor> {
        match mode {
            Mode::Train { seed, step, .. } if self.is_active(mode) => {
                let mut rng = rng::stream(seed, &format!("dropout/{}/step {step}", self.address));
                ops::dropout(xs, self.probability, &mut rng)
            }
            _ => Ok(xs.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::seeded_var_builder;
    use candle_core::Device;
    use candle_nn::VarMap;

    #[test]
    fn dropout_masks_differ_by_layer_and_step_and_repeat_at_the_same_place() -> Result<()> {
        let vb = seeded_var_builder(&VarMap::new(), 0, DType::F32, &Device::Cpu);
        let (first, second) = (dropout(0.5, vb.pp("first")), dropout(0.5, vb.pp("second")));
        let xs = Tensor::ones(1000, DType::F32, &Device::Cpu)?;
        let at = |layer: &Dropout, step| -> Result<Vec<f32>> {
            layer.forward(&xs, Mode::Train { seed: 7, epoch: 0, step })?.to_vec1()
        };
        assert_eq!(at(&first, 3)?, at(&first, 3)?);
        assert_ne!(at(&first, 3)?, at(&first, 4)?);
        assert_ne!(at(&first, 3)?, at(&second, 3)?);
        assert!(at(&first, 3)?.iter().all(|&value| value == 0.0 || value == 2.0));
        assert_eq!(first.forward(&xs, Mode::Evaluate)?.to_vec1::<f32>()?, vec![1.0; 1000]);
        Ok(())
    }

    #[test]
    fn channels_that_do_not_fit_the_groups_are_refused() {
        let vb = seeded_var_builder(&VarMap::new(), 0, DType::F32, &Device::Cpu);
        let geometry = Conv2dConfig { groups: 4, ..Default::default() };
        assert!(conv2d(6, 8, 3, geometry, vb).is_err());
    }
}
