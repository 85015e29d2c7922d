//! Batch normalisation.

use super::is_native;
use crate::ops::{self, BatchStatistics, Epilogue, RunningAverages};
use crate::processes;
use candle_core::{ModuleT, Result, Tensor, Var, bail};
use candle_nn::VarBuilder;

pub use candle_nn::batch_norm::BatchNormConfig;

/// Batch normalisation (Ioffe and Szegedy 2015) of each channel of an input `(batch, channels, ..)`.
///
/// Training normalises with the mean and variance of the batch and moves their running averages towards them. Evaluation
/// normalises with the running averages.
///
/// If several processes train together, each normalises its share of a batch with the share's own statistics, or inside
/// [`together`](processes::together) with the statistics of the whole batch.
#[derive(Debug, Clone)]
pub struct BatchNorm {
    candle: candle_nn::BatchNorm,
    removes_mean: bool,
}

/// Creates a batch normalisation with PyTorch's initial values, ones and zeros.
///
/// The configuration can be the number epsilon alone. Parameters in `vb`: `weight`, `bias` and the
/// [buffers](BatchNorm::BUFFERS) `running_mean` and `running_var`, `(channels)` each. The buffers get no gradient.
///
/// # Errors
/// Fails if `vb` holds one of them in another shape, or epsilon is negative.
pub fn batch_norm<C: Into<BatchNormConfig>>(channels: usize, config: C, vb: VarBuilder) -> Result<BatchNorm> {
    let config = config.into();
    let candle = candle_nn::batch_norm(channels, config, vb)?;
    Ok(BatchNorm { candle, removes_mean: config.remove_mean })
}

impl BatchNorm {
    /// Names of the tensors that are saved with the parameters but not learned.
    pub const BUFFERS: [&str; 2] = ["running_mean", "running_var"];

    /// Whether `name` names a [buffer](Self::BUFFERS), at any path.
    pub(crate) fn is_buffer(name: &str) -> bool {
        Self::BUFFERS.iter().any(|buffer| name.ends_with(buffer))
    }

    /// Creates a layer from its four tensors, `(channels)` each, with a momentum of 0.1.
    ///
    /// # Errors
    /// Fails if a shape differs, or epsilon is negative.
    pub fn new(
        channels: usize,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor,
        bias: Tensor,
        epsilon: f64,
    ) -> Result<Self> {
        candle_nn::BatchNorm::new(channels, running_mean, running_var, weight, bias, epsilon)
            .map(Self::removing_mean)
    }

    /// Creates a layer without weight and bias; see [`new`](Self::new).
    ///
    /// # Errors
    /// Fails if [`new`](Self::new) would.
    pub fn new_no_bias(
        channels: usize,
        running_mean: Tensor,
        running_var: Tensor,
        epsilon: f64,
    ) -> Result<Self> {
        candle_nn::BatchNorm::new_no_bias(channels, running_mean, running_var, epsilon)
            .map(Self::removing_mean)
    }

    /// Creates a layer with another momentum; see [`new`](Self::new).
    ///
    /// The momentum is the weight of a batch in the running averages.
    ///
    /// # Errors
    /// Fails if [`new`](Self::new) would, or the momentum is not from 0 to 1.
    pub fn new_with_momentum(
        channels: usize,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor,
        bias: Tensor,
        epsilon: f64,
        momentum: f64,
    ) -> Result<Self> {
        let new = candle_nn::BatchNorm::new_with_momentum;
        new(channels, running_mean, running_var, weight, bias, epsilon, momentum).map(Self::removing_mean)
    }

    /// Creates a layer without weight and bias; see [`new_with_momentum`](Self::new_with_momentum).
    ///
    /// # Errors
    /// Fails if [`new_with_momentum`](Self::new_with_momentum) would.
    pub fn new_no_bias_with_momentum(
        channels: usize,
        running_mean: Tensor,
        running_var: Tensor,
        epsilon: f64,
        momentum: f64,
    ) -> Result<Self> {
        let new = candle_nn::BatchNorm::new_no_bias_with_momentum;
        new(channels, running_mean, running_var, epsilon, momentum).map(Self::removing_mean)
    }

    fn removing_mean(candle: candle_nn::BatchNorm) -> Self {
        Self { candle, removes_mean: true }
    }

    /// The running mean of each channel.
    pub fn running_mean(&self) -> &Tensor {
        self.candle.running_mean()
    }

    /// The running (unbiased) variance of each channel.
    pub fn running_var(&self) -> &Tensor {
        self.candle.running_var()
    }

    /// The number that is added to the variance.
    pub fn eps(&self) -> f64 {
        self.candle.eps()
    }

    /// The weight and the bias of each channel.
    pub fn weight_and_bias(&self) -> Option<(&Tensor, &Tensor)> {
        self.candle.weight_and_bias()
    }

    /// The weight of a batch in the running averages.
    pub fn momentum(&self) -> f64 {
        self.candle.momentum()
    }

    pub(super) fn as_candle(&self) -> &candle_nn::BatchNorm {
        &self.candle
    }

    /// Normalises `xs` as in training; see [`forward_fused`](Self::forward_fused).
    ///
    /// # Errors
    /// Fails if [`forward_fused`](Self::forward_fused) would.
    pub fn forward_train(&self, xs: &Tensor) -> Result<Tensor> {
        self.forward_t(xs, true)
    }

    /// Normalises `xs` `(batch, channels, ..)` and applies `epilogue`; the shape stays the same.
    ///
    /// # Errors
    /// Fails if shapes do not fit; in training also if there are fewer than two values per channel, which have no
    /// variance.
    pub fn forward_fused(&self, xs: &Tensor, epilogue: Epilogue, train: bool) -> Result<Tensor> {
        if !self.removes_mean || !is_native(xs) || xs.rank() < 2 {
            if train && processes::current().is_some() {
                bail!(
                    "batch_norm: the statistics of several processes need elements of type f32 or f64 and removed means"
                );
            }
            let mut ys = self.candle.forward_t(xs, train)?;
            if let Some(add) = epilogue.add {
                ys = (ys + add)?;
            }
            return if epilogue.relu { ys.relu() } else { Ok(ys) };
        }
        if let &[batch, channels, ref rest @ ..] = xs.dims()
            && rest.len() != 2
        {
            let maps = (batch, channels, rest.iter().product::<usize>(), 1usize);
            let add = epilogue.add.map(|add| ops::reshape(add, maps)).transpose()?;
            let epilogue = Epilogue { add: add.as_ref(), ..epilogue };
            return ops::reshape(&self.forward_fused(&ops::reshape(xs, maps)?, epilogue, train)?, xs.shape());
        }
        let [mean, variance] = [self.running_mean(), self.running_var()];
        let identity;
        let (weight, bias) = match self.weight_and_bias() {
            Some(parameters) => parameters,
            None => {
                identity = (mean.ones_like()?.detach(), mean.zeros_like()?.detach());
                (&identity.0, &identity.1)
            }
        };
        if !train {
            let running = BatchStatistics { mean: mean.detach(), variance: variance.detach() };
            return Ok(ops::batch_norm(xs, weight, bias, self.eps(), Some(&running), epilogue)?.0);
        }
        let [mean, variance] = [Var::from_tensor(mean)?, Var::from_tensor(variance)?];
        let averages = RunningAverages { mean: &mean, variance: &variance, momentum: self.momentum() };
        ops::batch_norm_training(xs, weight, bias, self.eps(), averages, epilogue)
    }
}

impl ModuleT for BatchNorm {
    /// `(batch, channels, ..)` to the same shape.
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_fused(xs, Epilogue::default(), train)
    }
}
