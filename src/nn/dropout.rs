use super::Mode;
use crate::{ops, rng};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

/// Dropout (Srivastava et al. 2014): training zeroes each value with a probability and scales up the rest.
///
/// Evaluation changes nothing.
#[derive(Debug, Clone)]
pub struct Dropout {
    probability: f32,
    path: String,
}

/// Creates a dropout layer, which has no parameters. The path of `vb` makes its masks differ from other layers'.
pub fn dropout(probability: f32, vb: VarBuilder) -> Dropout {
    Dropout { probability, path: vb.prefix() }
}

impl Dropout {
    /// Whether the layer changes anything in this mode.
    pub fn is_active(&self, mode: Mode) -> bool {
        matches!(mode, Mode::Train { .. }) && self.probability != 0.0
    }

    /// Any shape to the same shape. The mask is a function of the mode's seed and step and of the layer's path.
    ///
    /// # Errors
    /// Fails if, in training, the probability is not from 0 to 1.
    pub fn forward(&self, xs: &Tensor, mode: Mode) -> Result<Tensor> {
        match mode {
            Mode::Train { seed, step, .. } if self.is_active(mode) => {
                let mut rng = rng::stream(seed, &format!("dropout/{}/step {step}", self.path));
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
    use candle_core::{DType, Device};
    use candle_nn::VarMap;

    #[test]
    fn masks_differ_by_layer_and_step_and_repeat_for_the_same_step() -> Result<()> {
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
    fn probabilities_out_of_range_are_refused_in_training() -> Result<()> {
        let vb = seeded_var_builder(&VarMap::new(), 0, DType::F32, &Device::Cpu);
        let xs = Tensor::ones(4, DType::F32, &Device::Cpu)?;
        for probability in [f32::NAN, -0.5, 1.5] {
            let layer = dropout(probability, vb.clone());
            assert!(layer.forward(&xs, Mode::Train { seed: 0, epoch: 0, step: 0 }).is_err(), "{probability}");
        }
        Ok(())
    }
}
