//! A convolutional autoencoder: digits through 16 numbers and back, with transposed convolutions. It writes
//! `autoencoder.png`, with test digits above their reconstructions.
//!
//!     cargo run --example autoencoder

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_textbook::data::{self, Images};
use candle_textbook::nn::{
    self, Activation, Conv2dConfig, ConvTranspose2dConfig, Mode, Module, Sequential, VarBuilder,
};
use candle_textbook::optim::{Adam, Optimizer};
use candle_textbook::train::{Lines, Metric, Score, Task, Trainer, TrainerOptions};
use std::path::Path;

struct Autoencoder {
    layers: Sequential,
    images: Images,
    training: usize,
}

fn layers(vb: VarBuilder) -> Result<Sequential> {
    let down = Conv2dConfig { stride: 2, padding: 1, ..Default::default() };
    let up = ConvTranspose2dConfig { stride: 2, padding: 1, output_padding: 1, ..Default::default() };
    Ok(nn::seq()
        .add(nn::conv2d(1, 8, 3, down, vb.pp("encoder.0"))?) // (batch, 8, 14, 14)
        .add(Activation::Relu)
        .add(nn::conv2d(8, 16, 3, down, vb.pp("encoder.2"))?) // (batch, 16, 7, 7)
        .add_fn(|xs| nn::relu(xs)?.flatten_from(1))
        .add(nn::linear(16 * 7 * 7, 16, vb.pp("encoder.5"))?) // (batch, 16), the code
        .add(nn::linear(16, 16 * 7 * 7, vb.pp("decoder.0"))?)
        .add_fn(|xs| nn::relu(xs)?.reshape((xs.dim(0)?, 16, 7, 7)))
        .add(nn::conv_transpose2d(16, 8, 3, up, vb.pp("decoder.3"))?) // (batch, 8, 14, 14)
        .add(Activation::Relu)
        .add(nn::conv_transpose2d(8, 1, 3, up, vb.pp("decoder.5"))?) // (batch, 1, 28, 28)
        .add(Activation::Sigmoid))
}

impl Task for Autoencoder {
    fn examples(&self) -> usize {
        self.training
    }

    fn loss(&self, batch: &[u32], _: Mode) -> Result<Tensor> {
        let (xs, _) = self.images.batch(batch, &Device::Cpu)?;
        Ok(nn::loss::mse(&self.layers.forward(&xs)?, &xs)?)
    }

    fn validate(&self) -> Result<Score> {
        let validation: Vec<u32> = (self.training as u32..self.images.len() as u32).collect();
        let loss = self.loss(&validation, Mode::Evaluate)?.to_scalar::<f32>()?.into();
        Ok(Score { loss, metric: loss })
    }

    fn metric(&self) -> Metric {
        Metric::new("squared_error", false, |error| format!("{error:.4}"))
    }
}

/// Trains on `training` digits, draws ten others and their reconstructions to `file`, and returns the error of the best epoch.
pub fn run(training: usize, epochs: usize, file: &Path) -> Result<f64> {
    let (images, test) = data::digits(training + 200, 10, 0)?;
    let vars = nn::VarMap::new();
    let layers = layers(nn::seeded_var_builder(&vars, 42, DType::F32, &Device::Cpu))?;
    let task = Autoencoder { layers, images, training };
    let mut options = TrainerOptions::default();
    (options.epochs, options.learning_rate) = (epochs, 2e-3);
    let trainer = Trainer { options, progress: &Lines, ..Default::default() };
    let report = trainer.fit(&task, &vars, &mut Optimizer::new(Adam::default(), &vars)?)?;
    let (xs, _) = test.batch(&(0..10).collect::<Vec<_>>(), &Device::Cpu)?;
    let pairs = Tensor::cat(&[&xs, &task.layers.forward(&xs)?], 2)?; // (10, 1, 56, 28)
    let grey = (Tensor::cat(&pairs.chunk(10, 0)?, 3)? * 255.0)?.to_dtype(DType::U8)?.flatten_all()?;
    image::GrayImage::from_vec(280, 56, grey.to_vec1()?).expect("280 x 56 bytes").save(file)?;
    Ok(report.epochs[report.best_epoch - 1].validation.metric)
}

fn main() -> Result<()> {
    run(5_000, 5, Path::new("autoencoder.png")).map(|error| println!("squared error {error:.4}"))
}
