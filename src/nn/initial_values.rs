//! Initial values of parameters.

use crate::rng::{self, StandardNormal};
use candle_core::{DType, Device, Result, Shape, Tensor, Var, bail};
use candle_nn::init::NormalOrUniform;
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{VarBuilder, VarMap};
use rand::Rng;
use rand::distr::Uniform;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The distribution of a layer's initial weights and biases.
///
/// It depends on the layer's fan-in, the number of inputs of each output, and its fan-out, the number of outputs of
/// each input. A fan of 0 gives zeros.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum InitScheme {
    /// PyTorch's default: weights and biases uniform within ±1/√fan-in.
    #[default]
    #[cfg_attr(feature = "cli", value(name = "pytorch"))]
    #[serde(rename = "pytorch")]
    PyTorch,
    /// Weights and biases N(0, 1) (Nielsen, chapter 1).
    StandardNormal,
    /// Weights N(0, 1/fan-in), biases N(0, 1) (Nielsen, chapter 3).
    ScaledNormal,
    /// Weights uniform within ±√(6/(fan-in + fan-out)), biases 0 (Glorot and Bengio 2010, eq. 16).
    Xavier,
    /// Weights N(0, 2/fan-in), biases 0 (He et al. 2015, eq. 10).
    Kaiming,
}

impl InitScheme {
    /// The distribution of a weight with this fan-in and fan-out.
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

    /// The distribution of the bias beside a weight with this fan-in.
    pub fn bias(self, fan_in: usize) -> candle_nn::Init {
        match self {
            Self::PyTorch => uniform(1.0 / (fan_in as f64).sqrt()),
            Self::StandardNormal | Self::ScaledNormal => normal(1.0),
            Self::Xavier | Self::Kaiming => candle_nn::Init::Const(0.0),
        }
    }
}

/// Uniform within ±`bound`; a fan of 0, which makes the bound infinite, gives zeros.
fn uniform(bound: f64) -> candle_nn::Init {
    let bound = if bound.is_finite() { bound } else { 0.0 };
    candle_nn::Init::Uniform { lo: -bound, up: bound }
}

/// Normal around 0, with zeros for an infinite deviation as in [`uniform`].
fn normal(stdev: f64) -> candle_nn::Init {
    let stdev = if stdev.is_finite() { stdev } else { 0.0 };
    candle_nn::Init::Randn { mean: 0.0, stdev }
}

/// Returns a builder that creates missing parameters in `vars` with reproducible initial values.
///
/// Each value is a function of `seed` and the parameter's full name. Unlike candle's `VarBuilder::from_varmap`, the
/// values are reproducible on the CPU. The builder refuses shapes that are too large for the memory.
pub fn seeded_var_builder(vars: &VarMap, seed: u64, dtype: DType, device: &Device) -> VarBuilder<'static> {
    VarBuilder::from_backend(Box::new(Seeded { vars: vars.clone(), seed }), dtype, device.clone())
}

/// Counts the elements of all parameters that `build` asks for, without allocating them.
///
/// # Errors
/// Fails if `build` does.
pub fn count_parameters<M>(build: impl FnOnce(VarBuilder) -> Result<M>) -> Result<u64> {
    let elements = Arc::new(AtomicU64::new(0));
    build(VarBuilder::from_backend(Box::new(Counting(elements.clone())), DType::F32, Device::Cpu))?;
    Ok(elements.load(Ordering::Relaxed))
}

/// Counts the elements of parameters, and returns zeros that all share one place in memory.
struct Counting(Arc<AtomicU64>);

impl SimpleBackend for Counting {
    fn get(
        &self,
        shape: Shape,
        _: &str,
        _: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let elements = shape.dims().iter().fold(1, |count: u64, &dim| count.saturating_mul(dim as u64));
        // No other thread counts.
        self.0.store(self.0.load(Ordering::Relaxed).saturating_add(elements), Ordering::Relaxed);
        Tensor::zeros((), dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        bail!("parameter {name} does not exist, and its shape is unknown")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        // Keeps anyone from writing initial values.
        true
    }
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
            None => bail!("parameter {name} does not exist yet, and its shape is unknown"),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.vars.data().lock().unwrap().contains_key(name)
    }
}

/// Draws the values of a parameter on the host in f64, so that f32 and f64, CPU and GPU agree.
fn draw(init: candle_nn::Init, shape: &Shape, seed: u64, name: &str) -> Result<Vec<f64>> {
    let mut rng = rng::stream(seed, &format!("init/{name}"));
    let mut values = Vec::new();
    let count = shape.dims().iter().try_fold(1usize, |count, &dim| count.checked_mul(dim));
    let count = match count {
        Some(count) if values.try_reserve_exact(count).is_ok() => count,
        _ => bail!("parameter {name}: the shape {:?} is too large", shape.dims()),
    };
    let mut uniform = |lo, up| -> Result<()> {
        let uniform = Uniform::new_inclusive(lo, up).map_err(candle_core::Error::wrap)?;
        values.extend((&mut rng).sample_iter(uniform).take(count));
        Ok(())
    };
    match init {
        candle_nn::Init::Const(value) => values.resize(count, value),
        candle_nn::Init::Uniform { lo, up } => uniform(lo, up)?,
        candle_nn::Init::Randn { mean, stdev } => {
            values.extend(rng.sample_iter(StandardNormal).take(count).map(|z: f64| mean + stdev * z));
        }
        candle_nn::Init::Kaiming { dist, fan, non_linearity } => {
            let stdev = non_linearity.gain() / (fan.for_shape(shape) as f64).sqrt();
            match dist {
                NormalOrUniform::Uniform => uniform(-3f64.sqrt() * stdev, 3f64.sqrt() * stdev)?,
                NormalOrUniform::Normal => {
                    values.extend(rng.sample_iter(StandardNormal).take(count).map(|z: f64| stdev * z));
                }
            }
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(init: InitScheme, seed: u64, name: &str) -> Vec<f32> {
        let vars = VarMap::new();
        let vb = seeded_var_builder(&vars, seed, DType::F32, &Device::Cpu);
        let weight = vb.get_with_hints((50, 100), name, init.weight(100, 50)).unwrap();
        weight.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn values_depend_only_on_seed_and_name() {
        assert_eq!(values(InitScheme::PyTorch, 1, "a"), values(InitScheme::PyTorch, 1, "a"));
        assert_ne!(values(InitScheme::PyTorch, 1, "a"), values(InitScheme::PyTorch, 1, "b"));
        assert_ne!(values(InitScheme::PyTorch, 1, "a"), values(InitScheme::PyTorch, 2, "a"));
    }

    #[test]
    fn standard_deviations_match_the_papers() {
        for (init, expected) in [
            (InitScheme::PyTorch, 0.1 / 3f32.sqrt()),
            (InitScheme::StandardNormal, 1.0),
            (InitScheme::ScaledNormal, 0.1),
            (InitScheme::Xavier, (2f32 / 150.0).sqrt()),
            (InitScheme::Kaiming, 0.02f32.sqrt()),
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

    #[test]
    fn shapes_beyond_memory_are_refused_and_empty_ones_are_not() {
        let vb = seeded_var_builder(&VarMap::new(), 0, DType::F32, &Device::Cpu);
        for shape in [(usize::MAX, 2), (1 << 32, 1 << 32), (1 << 31, 1 << 31)] {
            let error = vb.get_with_hints(shape, "weight", candle_nn::Init::Const(0.0)).unwrap_err();
            assert!(error.to_string().contains("too large"), "{error}");
        }
        for init in [InitScheme::PyTorch, InitScheme::ScaledNormal, InitScheme::Xavier, InitScheme::Kaiming] {
            let name = format!("{init:?}");
            assert_eq!(vb.get_with_hints((3, 0), &name, init.weight(0, 0)).unwrap().dims(), [3, 0]);
        }
        assert_eq!(
            vb.get_with_hints(2, "b", InitScheme::PyTorch.bias(0)).unwrap().to_vec1::<f32>().unwrap(),
            [0.; 2]
        );
    }
}
