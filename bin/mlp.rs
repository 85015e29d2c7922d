//! A multi-layer perceptron classifies handwritten digits (Nielsen, chapters 1 and 3).
//!
//! Data: `digits` (built in), `mnist`, `fashion-mnist`.
//! Result: 95% on MNIST with `--preset chapter1` and 98% with `--preset chapter3`, as in the book.

use anyhow::{Result, ensure};
use candle_nn::VarBuilder;
use candle_textbook::cli::{
    self, Augment, Binary, ImageData, ImageFacts, ImageOptions, MOST_LAYERS, OptimizerName, Recipe,
    ScheduleName, TrainOptions, UsageError, fraction, positive,
};
use candle_textbook::models::ImageModel;
use candle_textbook::models::mlp::{Config, Mlp};
use candle_textbook::nn::{Activation, Cost, InitScheme};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

#[derive(Clone, Args, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Number of units of each hidden layer, such as 100 or 300,100
    #[arg(long, value_name = "N,..", value_delimiter = ',', value_parser = positive, default_value = "100")]
    hidden: Vec<usize>,
    /// Activation of the hidden layers
    #[arg(long, value_name = "NAME", value_enum, default_value_t = Activation::Sigmoid)]
    activation: Activation,
    /// Cost function
    #[arg(long, value_name = "NAME", value_enum, default_value_t = Cost::SoftmaxCrossEntropy)]
    cost: Cost,
    /// Initial weights and biases
    #[arg(long, value_name = "NAME", value_enum, default_value_t = InitScheme::PyTorch)]
    init: InitScheme,
    /// Dropout probability of hidden units
    #[arg(long, value_name = "X", value_parser = fraction::<f32>, default_value_t = 0.0)]
    dropout: f32,
    /// Augmentation of training images
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    augment: Augment,
    /// Settings from the book; other options given with it win
    #[arg(long, value_name = "NAME")]
    preset: Option<Preset>,
    #[command(flatten)]
    #[serde(flatten)]
    train: TrainOptions,
}

#[derive(Clone, Copy, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Preset {
    /// Nielsen, chapter 1: 30 units, quadratic cost, learning rate 3.0, 30 epochs
    Chapter1,
    /// Nielsen, chapter 3: 100 units, cross-entropy, 1/sqrt(n) weights, L2 with lambda 5.0, 60 epochs
    Chapter3,
}

impl Binary for Settings {
    const NAME: &'static str = "mlp";
    const ABOUT: &'static str = "A multi-layer perceptron classifies handwritten digits";
    const FULL_BATCH: bool = true;

    fn train_defaults() -> TrainOptions {
        TrainOptions::default()
    }

    fn apply_preset(&mut self) {
        let optimizer = self.train.optimizer;
        if let Some(preset) = self.preset {
            self.use_preset(preset);
        }
        if optimizer.is_full_batch() {
            self.train.optimizer = optimizer;
            self.train.adapt_to_optimizer(self.preset.is_some());
        }
    }
}

impl Recipe for Settings {
    type Data = ImageData;

    fn prefers_gpu(&self) -> bool {
        // With small batches, a step takes less time on a core than the launches of its kernels.
        self.train.batch_size >= 128 || self.train.optimizer.is_full_batch()
    }

    fn train_options(&self) -> &TrainOptions {
        &self.train
    }

    fn data_options(&self) -> Result<ImageOptions> {
        let layers = self.hidden.len();
        ensure!(
            layers <= MOST_LAYERS,
            UsageError(format!("--hidden: found {layers} layers, expected at most {MOST_LAYERS}"))
        );
        if self.train.optimizer.is_full_batch() {
            let why = "the optimizer needs the same loss in each step: leave out this option";
            ensure!(self.dropout == 0.0, UsageError(format!("--dropout {}: {why}", self.dropout)));
            ensure!(self.augment == Augment::None, UsageError(format!("--augment: {why}")));
        }
        let augmentation = self.augment.augmentation();
        Ok(ImageOptions { cost: self.cost, augmentation, ..ImageOptions::default() })
    }

    fn model(&self, images: &ImageFacts, vb: VarBuilder) -> candle_core::Result<Box<dyn ImageModel>> {
        let (channels, height, width) = images.shape;
        let sizes = [&[channels * height * width], self.hidden.as_slice(), &[images.classes.len()]].concat();
        let &Self { activation, init, dropout, .. } = self;
        Ok(Box::new(Mlp::new(&Config { sizes, activation, init, dropout }, vb)?))
    }

    fn activations(&self, images: &ImageFacts) -> u64 {
        let (channels, height, width) = images.shape;
        let hidden = self.hidden.iter().fold(0, |sum: u64, &units| sum.saturating_add(units as u64));
        hidden.saturating_add((channels * height * width) as u64 / 2)
    }
}

impl Settings {
    fn use_preset(&mut self, preset: Preset) {
        self.train = TrainOptions {
            optimizer: OptimizerName::Sgd,
            schedule: ScheduleName::Constant,
            batch_size: 10,
            validation: Some(10_000),
            ..self.train.clone()
        };
        match preset {
            Preset::Chapter1 => {
                self.hidden = vec![30];
                self.cost = Cost::Quadratic;
                self.init = InitScheme::StandardNormal;
                self.train.learning_rate = 3.0;
                self.train.epochs = 30;
            }
            Preset::Chapter3 => {
                self.hidden = vec![100];
                self.cost = Cost::SigmoidCrossEntropy;
                self.init = InitScheme::ScaledNormal;
                self.train.learning_rate = 0.1;
                self.train.weight_decay = Some(5.0 / 50_000.0);
                self.train.keep_biases = true;
                self.train.epochs = 60;
            }
        }
    }
}

fn main() -> ExitCode {
    cli::main::<Settings>()
}
