use super::Mode;
use crate::ops::{self, BatchStatistics, Epilogue, RunningAverages};
use candle_core::{Result, Tensor, Var};
use candle_nn::VarBuilder;

/// Batch normalisation of images (Ioffe and Szegedy 2015).
///
/// Training normalises with the mean and variance of the batch and updates their running averages. Evaluation
/// normalises with the running averages.
#[derive(Debug, Clone)]
pub struct BatchNorm2d {
    weight: Tensor,
    bias: Tensor,
    running_mean: Var,
    running_var: Var,
}

/// Creates a batch normalisation with PyTorch's initial values, ones and zeros.
///
/// Parameters in `vb`: `weight`, `bias` and the [buffers](BatchNorm2d::BUFFERS) `running_mean` and `running_var`,
/// `(channels)` each. The buffers get no gradient.
///
/// # Errors
/// Fails if `vb` holds one of them in another shape.
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
    /// Names of the tensors that are saved with the parameters but not learned.
    pub const BUFFERS: [&str; 2] = ["running_mean", "running_var"];
    const EPSILON: f64 = 1e-5;
    const MOMENTUM: f64 = 0.1;

    /// Normalises `xs` `(batch, channels, height, width)` and applies `epilogue`; the shape stays the same.
    ///
    /// Training moves the running mean and the running (unbiased) variance a tenth of the way to the batch's.
    ///
    /// # Errors
    /// Fails if shapes do not fit; in training also if there are fewer than two values per channel, which have no
    /// variance.
    pub fn forward(&self, xs: &Tensor, epilogue: Epilogue, mode: Mode) -> Result<Tensor> {
        let (weight, bias, epsilon) = (&self.weight, &self.bias, Self::EPSILON);
        if mode == Mode::Evaluate {
            let [mean, variance] = [&self.running_mean, &self.running_var].map(Var::as_detached_tensor);
            let running = BatchStatistics { mean, variance };
            return Ok(ops::batch_norm(xs, weight, bias, epsilon, Some(&running), epilogue)?.0);
        }
        let averages = RunningAverages {
            mean: &self.running_mean,
            variance: &self.running_var,
            momentum: Self::MOMENTUM,
        };
        ops::batch_norm_training(xs, weight, bias, epsilon, averages, epilogue)
    }
}
