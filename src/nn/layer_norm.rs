//! Layer normalisation, with and without the mean.

use super::is_native;
use crate::ops::{self, Epilogue};
use candle_core::{D, DType, Module, Result, Tensor, bail};
use candle_nn::VarBuilder;

pub use candle_nn::layer_norm::LayerNormConfig;

/// Layer normalisation (Ba et al. 2016): normalises each vector along the last dimension.
///
/// candle_nn's layer blocks the gradient; this one passes it on.
#[derive(Debug, Clone)]
pub struct LayerNorm(candle_nn::LayerNorm);

/// Creates a layer normalisation with PyTorch's initial values, ones and zeros.
///
/// The configuration can be the number epsilon alone. Parameters in `vb`: `weight` and `bias` `(size)`, or `gamma` and `beta`
/// if `vb` holds these instead.
///
/// # Errors
/// Fails if `vb` holds a parameter in another shape.
pub fn layer_norm<C: Into<LayerNormConfig>>(size: usize, config: C, vb: VarBuilder) -> Result<LayerNorm> {
    candle_nn::layer_norm(size, config, vb).map(LayerNorm)
}

/// Creates a layer normalisation without bias; see [`layer_norm`].
///
/// # Errors
/// Fails if [`layer_norm`] would.
pub fn layer_norm_no_bias(size: usize, epsilon: f64, vb: VarBuilder) -> Result<LayerNorm> {
    candle_nn::layer_norm_no_bias(size, epsilon, vb).map(LayerNorm)
}

impl LayerNorm {
    /// Creates a layer from `weight` and `bias` `(size)`.
    pub fn new(weight: Tensor, bias: Tensor, epsilon: f64) -> Self {
        Self(candle_nn::LayerNorm::new(weight, bias, epsilon))
    }

    /// Creates a layer without bias.
    pub fn new_no_bias(weight: Tensor, epsilon: f64) -> Self {
        Self(candle_nn::LayerNorm::new_no_bias(weight, epsilon))
    }

    /// Creates a layer that keeps the mean and divides by the root mean square, like [`RmsNorm`].
    pub fn rms_norm(weight: Tensor, epsilon: f64) -> Self {
        Self(candle_nn::LayerNorm::rms_norm(weight, epsilon))
    }

    /// The weight, `(size)`.
    pub fn weight(&self) -> &Tensor {
        self.0.weight()
    }

    /// The bias, `(size)`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.0.bias()
    }

    /// The number that is added to the variance.
    pub fn eps(&self) -> f64 {
        self.0.eps()
    }

    /// Whether the layer subtracts the mean.
    pub fn remove_mean(&self) -> bool {
        self.0.remove_mean()
    }

    /// Checks that the parameters have the type of the input, and the size of its last dimension: they would be broadcast
    /// otherwise.
    fn check(&self, xs: &Tensor) -> Result<()> {
        let size = xs.dim(D::Minus1)?;
        let layer = if self.remove_mean() { "layer_norm" } else { "rms_norm" };
        if is_native(xs) {
            ops::check_types(layer, xs, self.weight())?;
        }
        for (name, parameter) in [("weight", Some(self.weight())), ("bias", self.bias())] {
            if let Some(found) = parameter.map(Tensor::dims).filter(|found| *found != [size]) {
                let xs = xs.dims();
                bail!(
                    "{layer}: found a {name} of shape {found:?}, expected ({size}) for an input of shape {xs:?}"
                );
            }
        }
        Ok(())
    }
}

impl Module for LayerNorm {
    /// `(.., size)` to the same shape.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.check(xs)?;
        let tracks = [Some(xs), Some(self.weight()), self.bias()].into_iter().flatten().any(Tensor::track_op);
        match self.bias() {
            // Without the mean, candle builds the layer from operations that have gradients.
            _ if !self.remove_mean() => self.0.forward(xs),
            bias if is_native(xs) => {
                let ys = normalise_rows(xs, xs.dim(D::Minus1)?, self.eps())?;
                let ys = ys.broadcast_mul(self.weight())?;
                bias.map_or(Ok(ys.clone()), |bias| ys.broadcast_add(bias))
            }
            Some(bias) if tracks => {
                candle_nn::ops::layer_norm_slow(xs, self.weight(), bias, self.eps() as f32)
            }
            _ => self.0.forward(xs),
        }
    }
}

/// Normalises each row of `size` elements to mean 0 and variance 1.
pub(super) fn normalise_rows(xs: &Tensor, size: usize, epsilon: f64) -> Result<Tensor> {
    let rows = xs.elem_count().checked_div(size).unwrap_or(0);
    if rows == 0 {
        return Ok(xs.clone());
    }
    let (ones, zeros) =
        (Tensor::ones(rows, xs.dtype(), xs.device())?, Tensor::zeros(rows, xs.dtype(), xs.device())?);
    let maps = ops::reshape(xs, (1, rows, size, 1))?;
    let (ys, _) = ops::batch_norm(&maps, &ones, &zeros, epsilon, None, Epilogue::default())?;
    ops::reshape(&ys, xs.shape())
}

/// Divides each vector along the last dimension by its root mean square (Zhang and Sennrich 2019).
///
/// candle_nn's layer blocks the gradient; this one passes it on.
#[derive(Debug, Clone)]
pub struct RmsNorm(LayerNorm);

/// Creates an RMS normalisation; its parameter in `vb` is `weight` `(size)`, initially ones.
///
/// # Errors
/// Fails if `vb` holds the parameter in another shape.
pub fn rms_norm(size: usize, epsilon: f64, vb: VarBuilder) -> Result<RmsNorm> {
    let config = LayerNormConfig { eps: epsilon, remove_mean: false, affine: false };
    layer_norm(size, config, vb).map(RmsNorm)
}

impl RmsNorm {
    /// Creates a layer from `weight` `(size)`.
    pub fn new(weight: Tensor, epsilon: f64) -> Self {
        Self(LayerNorm::rms_norm(weight, epsilon))
    }

    /// The same layer as a [`LayerNorm`].
    pub fn into_inner(self) -> LayerNorm {
        self.0
    }

    /// The weight, `(size)`.
    pub fn weight(&self) -> &Tensor {
        self.0.weight()
    }

    /// The number that is added to the mean square.
    pub fn eps(&self) -> f64 {
        self.0.eps()
    }

    /// `(.., size)` to the same shape, as [`Module::forward`].
    ///
    /// # Errors
    /// Fails if the size differs.
    pub fn forward_diff(&self, xs: &Tensor) -> Result<Tensor> {
        self.0.forward(xs)
    }
}

impl Module for RmsNorm {
    /// `(.., size)` to the same shape.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match xs.track_op() || self.weight().track_op() || xs.dtype() == DType::F64 {
            true => self.0.forward(xs),
            // Without gradients, candle has one operation, except in f64.
            false => candle_nn::RmsNorm::new(self.weight().clone(), self.eps()).forward(xs),
        }
    }
}
