//! Initial values of parameters.

use crate::rng;
use candle_core::{DType, Device, Result, Shape, Tensor, Var, bail};
use candle_nn::init::NormalOrUniform;
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{VarBuilder, VarMap};
use rand::Rng;
use rand_distr::{Normal, Uniform};
use serde::{Deserialize, Serialize};

/// How weights and biases of a layer start, from the number of its inputs (fan-in) and outputs (fan-out) a unit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// PyTorch's default: weights and biases uniform within ±1/√fan-in.
    #[default]
    #[cfg_attr(feature = "cli", value(name = "pytorch"))]
    #[serde(rename = "pytorch")]
    PyTorch,
    /// Weights and biases N(0, 1) (Nielsen, chapter 1).
    StandardNormal,
    /// Weights N(0, 1/fan-in), that is, of deviation 1/√fan-in, and biases N(0, 1) (Nielsen, chapter 3).
    ScaledNormal,
    /// Weights uniform within ±√(6/(fan-in + fan-out)), biases 0 (Glorot and Bengio 2010, eq. 16).
    Xavier,
    /// Weights of deviation √(2/fan-in), normal, biases 0 (He et al. 2015, eq. 10).
    Kaiming,
}

impl Init {
    /// Of a weight whose outputs each read `fan_in` inputs, and whose inputs each reach `fan_out` outputs.
    pub fn weight(self, fan_in: usize, fan_out: usize) -> candle_nn::Init {
        let (fan_in, fan_out) = (fan_in as f64, fan_out as f64);
        match self {
            Self::PyTorch => uniform(1.0 / fan_in.sqrt()),
            Self::StandardNormal => normal(1.0),
            Self::ScaledNormal => normal(1.0 / fan_in.sqrt()),
            Self::Xavier => uniform((6.0 / (fan_in + fan_out)).sqrt()),
            Self::Kaiming => normal((2.0 / fan_in).sqrt()),
        }
    }

    /// Of a bias beside such a weight.
    pub fn bias(self, fan_in: usize) -> candle_nn::Init {
        match self {
            Self::PyTorch => uniform(1.0 / (fan_in as f64).sqrt()),
            Self::StandardNormal | Self::ScaledNormal => normal(1.0),
            Self::Xavier | Self::Kaiming => candle_nn::Init::Const(0.0),
        }
    }
}

fn uniform(bound: f64) -> candle_nn::Init {
    candle_nn::Init::Uniform { lo: -bound, up: bound }
}

fn normal(stdev: f64) -> candle_nn::Init {
    candle_nn::Init::Randn { mean: 0.0, stdev }
}

/// A builder of parameters that live in `vars`; one not there yet is made, with an initial value that is a function
/// of `seed` and its full name alone.
///
/// It stands where candle's `VarBuilder::from_varmap` would, whose numbers can't be seeded on a CPU.
pub fn seeded_var_builder(vars: &VarMap, seed: u64, dtype: DType, device: &Device) -> VarBuilder<'static> {
    VarBuilder::from_backend(Box::new(Seeded { vars: vars.clone(), seed }), dtype, device.clone())
}

struct Seeded {
    vars: VarMap,
    seed: u64,
}

impl SimpleBackend for Seeded {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        init: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        if self.contains_tensor(name) {
            return self.vars.get(shape, name, init, dtype, device);
        }
        let values = draw(init, &shape, self.seed, name)?;
        let var = Var::from_tensor(&Tensor::from_vec(values, shape, device)?.to_dtype(dtype)?)?;
        let tensor = var.as_tensor().clone();
        self.vars.data().lock().unwrap().insert(name.to_string(), var);
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        match self.vars.data().lock().unwrap().get(name) {
            Some(var) => Ok(var.as_tensor().clone()),
            None => bail!("parameter {name} has no value yet, and its shape is not known"),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.vars.data().lock().unwrap().contains_key(name)
    }
}

/// Values of a parameter, drawn on the host in f64, so that f32 and f64 models, CPU and GPU start alike.
fn draw(init: candle_nn::Init, shape: &Shape, seed: u64, name: &str) -> Result<Vec<f64>> {
    let rng = rng::stream(seed, &format!("init/{name}"));
    let count = shape.elem_count();
    let uniform = |lo, up| -> Result<Vec<f64>> {
        let distribution = Uniform::new_inclusive(lo, up).map_err(candle_core::Error::wrap)?;
        Ok(rng.clone().sample_iter(distribution).take(count).collect())
    };
    let normal = |mean, stdev| -> Result<Vec<f64>> {
        let distribution = Normal::new(mean, stdev).map_err(candle_core::Error::wrap)?;
        Ok(rng.clone().sample_iter(distribution).take(count).collect())
    };
    match init {
        candle_nn::Init::Const(value) => Ok(vec![value; count]),
        candle_nn::Init::Uniform { lo, up } => uniform(lo, up),
        candle_nn::Init::Randn { mean, stdev } => normal(mean, stdev),
        candle_nn::Init::Kaiming { dist, fan, non_linearity } => {
            let stdev = non_linearity.gain() / (fan.for_shape(shape) as f64).sqrt();
            match dist {
                NormalOrUniform::Uniform => uniform(-3f64.sqrt() * stdev, 3f64.sqrt() * stdev),
                NormalOrUniform::Normal => normal(0.0, stdev),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(init: Init, seed: u64, name: &str) -> Vec<f32> {
        let vars = VarMap::new();
        let vb = seeded_var_builder(&vars, seed, DType::F32, &Device::Cpu);
        let weight = vb.get_with_hints((50, 100), name, init.weight(100, 50)).unwrap();
        weight.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_value_depends_on_seed_and_name_alone() {
        assert_eq!(values(Init::PyTorch, 1, "a"), values(Init::PyTorch, 1, "a"));
        assert_ne!(values(Init::PyTorch, 1, "a"), values(Init::PyTorch, 1, "b"));
        assert_ne!(values(Init::PyTorch, 1, "a"), values(Init::PyTorch, 2, "a"));
    }

    #[test]
    fn deviations_are_those_of_the_papers() {
        for (init, expected) in [
            (Init::PyTorch, 0.1 / 3f32.sqrt()),
            (Init::StandardNormal, 1.0),
            (Init::ScaledNormal, 0.1),
            (Init::Xavier, (2f32 / 150.0).sqrt()),
            (Init::Kaiming, 0.02f32.sqrt()),
        ] {
            let values = values(init, 3, "weight");
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / values.len() as f32;
            assert!(mean.abs() < 0.06 * expected, "{init:?}: mean {mean}");
            assert!((variance.sqrt() / expected - 1.0).abs() < 0.04, "{init:?}: {}", variance.sqrt());
        }
    }

    #[test]
    fn a_known_name_with_another_shape_is_refused() {
        let vb = seeded_var_builder(&VarMap::new(), 0, DType::F32, &Device::Cpu);
        vb.get((2, 3), "weight").unwrap();
        assert!(vb.get((3, 2), "weight").is_err());
    }
}
