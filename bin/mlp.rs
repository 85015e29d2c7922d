//! A multi-layer perceptron learns to read handwritten digits (Nielsen, chapters 1 and 3).
//!
//! Data: `digits` (built in), `mnist`, `fashion-mnist`. On MNIST, `--preset chapter1` reaches 95% and
//! `--preset chapter3` 98%, as in the book.

use candle_core::Result;
use candle_nn::VarBuilder;
use candle_textbook::cli::images::{self, Augment, ImageRecipe};
use candle_textbook::cli::{Settings, TrainOptions, probability};
use candle_textbook::data::{Augmentation, Images};
use candle_textbook::models::ImageModel;
use candle_textbook::models::mlp::{Config, Mlp};
use candle_textbook::nn::{Activation, Cost, Init};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::process::ExitCode;

#[derive(Args, Serialize, Deserialize)]
struct Recipe {
    /// Units of the hidden layers: 100 or 300,100
    #[arg(long, value_name = "N,..", default_value = "100", value_delimiter = ',')]
    hidden: Vec<usize>,
    #[arg(long, value_name = "NAME", default_value = "sigmoid")]
    activation: Activation,
    #[arg(long, value_name = "NAME", default_value = "softmax-cross-entropy")]
    cost: Cost,
    /// How weights and biases start
    #[arg(long, value_name = "NAME", default_value = "pytorch")]
    init: Init,
    /// Probability that a hidden unit is dropped in training
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = probability)]
    dropout: f32,
    /// Change the training pictures each time they are seen
    #[arg(long, value_name = "HOW", default_value = "none")]
    expand: Augment,
    /// Settings of the book; options given beside it stand
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

impl Settings for Recipe {
    fn train_options(&self) -> &TrainOptions {
        &self.train
    }

    fn preset(&self) -> Value {
        match self.preset {
            None => Value::Null,
            Some(Preset::Chapter1) => json!({
                "hidden": [30],
                "cost": "quadratic",
                "init": "standard-normal",
                "optimizer": "sgd",
                "schedule": "constant",
                "learning_rate": 3.0,
                "batch_size": 10,
                "epochs": 30,
                "validation": 10_000,
            }),
            Some(Preset::Chapter3) => json!({
                "hidden": [100],
                "cost": "sigmoid-cross-entropy",
                "init": "scaled-normal",
                "optimizer": "sgd",
                "schedule": "constant",
                "learning_rate": 0.1,
                "weight_decay": 5.0 / 50_000.0,
                "keep_biases": true,
                "batch_size": 10,
                "epochs": 60,
                "validation": 10_000,
            }),
        }
    }
}

impl ImageRecipe for Recipe {
    const NAME: &'static str = "mlp";
    const ABOUT: &'static str = "A multi-layer perceptron learns to read handwritten digits";

    fn model(&self, images: &Images, vb: VarBuilder) -> Result<Box<dyn ImageModel>> {
        let (channels, height, width) = images.shape();
        let sizes = [&[channels * height * width], self.hidden.as_slice(), &[images.classes()]].concat();
        let &Self { activation, init, dropout, .. } = self;
        Ok(Box::new(Mlp::new(&Config { sizes, activation, init, dropout }, vb)?))
    }

    fn cost(&self) -> Cost {
        self.cost
    }

    fn augmentation(&self) -> Option<Augmentation> {
        self.expand.augmentation()
    }
}

fn main() -> ExitCode {
    images::main::<Recipe>()
}
