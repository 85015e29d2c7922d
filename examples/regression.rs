//! A task of one's own: regression, measured by its mean absolute error, without a run folder.
//!
//!     cargo run --example regression
//!
//! Learns the range of a projectile, 0 to 41 m, from its angle and its speed.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_textbook::nn::{self, Activation, Mode, Module, Sequential};
use candle_textbook::optim::{Adam, Curve, Optimizer};
use candle_textbook::train::{Lines, Metric, Score, Task, Trainer, TrainerOptions};

struct Projectiles {
    model: Sequential,
    training: Vec<[f32; 2]>,
    validation: Vec<[f32; 2]>,
}

/// The range in metres at an angle from 0 (flat) to 1 (90 degrees) and a speed from 0 to 1 (20 m/s).
fn range([angle, speed]: [f32; 2]) -> f32 {
    (speed * 20.0).powi(2) * (angle * std::f32::consts::PI).sin() / 9.81
}

impl Projectiles {
    /// Predicted and true ranges, `(points, 1)` each.
    fn ranges(&self, points: &[[f32; 2]]) -> Result<(Tensor, Tensor)> {
        let targets: Vec<f32> = points.iter().map(|&point| range(point)).collect();
        let points = Tensor::from_slice(points.as_flattened(), (points.len(), 2), &Device::Cpu)?;
        Ok((self.model.forward(&points)?, Tensor::from_vec(targets, (points.dim(0)?, 1), &Device::Cpu)?))
    }
}

impl Task for Projectiles {
    fn examples(&self) -> usize {
        self.training.len()
    }

    fn loss(&self, batch: &[u32], _: Mode) -> Result<Tensor> {
        let points: Vec<_> = batch.iter().map(|&i| self.training[i as usize]).collect();
        let (predicted, targets) = self.ranges(&points)?;
        Ok(nn::loss::mse(&predicted, &targets)?)
    }

    fn validate(&self) -> Result<Score> {
        let (predicted, targets) = self.ranges(&self.validation)?;
        let mean = |xs: Tensor| xs.mean_all()?.to_dtype(DType::F64)?.to_scalar();
        let difference = (predicted - targets)?;
        Ok(Score { loss: mean(difference.sqr()?)?, metric: mean(difference.abs()?)? })
    }

    fn metric(&self) -> Metric {
        Metric::new("mean_absolute_error", false, |metres| format!("{metres:.3} m"))
    }
}

/// Trains, and returns the best error in metres.
pub fn run(epochs: usize) -> Result<f64> {
    let vars = nn::VarMap::new();
    let vb = nn::seeded_var_builder(&vars, 42, DType::F32, &Device::Cpu);
    let model = nn::seq()
        .add(nn::linear(2, 64, vb.pp("0"))?)
        .add(Activation::Tanh)
        .add(nn::linear(64, 64, vb.pp("2"))?)
        .add(Activation::Tanh)
        .add(nn::linear(64, 1, vb.pp("4"))?);
    let points = |count: u8, shift: f32| {
        let at = move |i: u8| (f32::from(i) + shift) / f32::from(count);
        (0..count).flat_map(move |i| (0..count).map(move |k| [at(i), at(k)])).collect()
    };
    let task = Projectiles { model, training: points(40, 0.0), validation: points(39, 0.5) };
    let mut options = TrainerOptions::default();
    (options.epochs, options.learning_rate, options.schedule) = (epochs, 1e-2, Curve::Cosine.into());
    let trainer = Trainer { options, progress: &Lines, ..Default::default() };
    let report = trainer.fit(&task, &vars, &mut Optimizer::new(Adam::default(), &vars)?)?;
    Ok(report.epochs[report.best_epoch - 1].validation.metric)
}

fn main() -> Result<()> {
    run(60).map(|error| println!("best mean absolute error: {error:.3} m"))
}
