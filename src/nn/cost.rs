use crate::ops;
use candle_core::{D, DType, Device, Result, Tensor};
use serde::{Deserialize, Serialize};

/// The cost of a classifier, together with its output nonlinearity: models return logits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Cost {
    /// Softmax output, negative log-likelihood (Nielsen eq. 80; PyTorch's `CrossEntropyLoss`).
    #[default]
    SoftmaxCrossEntropy,
    /// Sigmoid output, cross-entropy summed over the classes (Nielsen eq. 63).
    SigmoidCrossEntropy,
    /// Sigmoid output, half the squared distance to the one-hot target (Nielsen eq. 6).
    Quadratic,
}

impl Cost {
    /// The mean cost, a scalar, of `logits` `(batch, classes)` for the u32 `targets` `(batch)`.
    ///
    /// # Errors
    /// Fails if shapes do not fit, or a target is not a class.
    pub fn loss(self, logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
        match self {
            Self::SoftmaxCrossEntropy => ops::softmax_cross_entropy(logits, targets, 0.0),
            Self::SigmoidCrossEntropy => ops::sigmoid_cross_entropy(logits, targets),
            Self::Quadratic => ops::quadratic(logits, targets),
        }
    }

    /// The probabilities `(batch, classes)` of `logits`, without gradients. Sigmoid outputs are divided by their sum.
    ///
    /// # Errors
    /// Fails if `logits` has no dimension, or the device cannot copy it.
    pub fn probabilities(self, logits: &Tensor) -> Result<Tensor> {
        let classes = logits.dim(D::Minus1)?;
        let on_host = logits.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
        let mut values = on_host.flatten_all()?.to_vec1::<f64>()?;
        for row in values.chunks_exact_mut(classes.max(1)) {
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            // candle's softmax uses the platform's `exp`, which differs from one system to the next.
            let output = |x: f64| match self {
                Self::SoftmaxCrossEntropy => libm::exp(x - max),
                Self::SigmoidCrossEntropy | Self::Quadratic => 1.0 / (1.0 + libm::exp(-x)),
            };
            row.iter_mut().for_each(|x| *x = output(*x));
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|x| *x /= sum);
        }
        let probabilities = Tensor::from_vec(values, logits.shape(), &Device::Cpu)?;
        probabilities.to_dtype(logits.dtype())?.to_device(logits.device())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_add_up_to_one_and_do_not_hide_nan() -> Result<()> {
        let logits =
            Tensor::new(&[[0f32, f32::ln(3.0), f32::NEG_INFINITY], [900., 900., -900.]], &Device::Cpu)?;
        let found = Cost::SoftmaxCrossEntropy.probabilities(&logits)?.to_vec2::<f32>()?;
        assert_eq!(found, [[0.25, 0.75, 0.0], [0.5, 0.5, 0.0]]);
        let logits = Tensor::new(&[[0f64, 0.0, f64::NEG_INFINITY]], &Device::Cpu)?;
        assert_eq!(Cost::Quadratic.probabilities(&logits)?.to_vec2::<f64>()?, [[0.5, 0.5, 0.0]]);
        let nan = Cost::default().probabilities(&Tensor::new(&[[f32::NAN, 1.0]], &Device::Cpu)?)?;
        assert!(nan.to_vec2::<f32>()?[0].iter().all(|x| x.is_nan()));
        Ok(())
    }
}
