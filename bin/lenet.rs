//! LeNet learns to read handwritten digits.
//!
//! Data: `digits` (built in; 99% of its test set after 10 epochs), `mnist` (99.2%), `fashion-mnist`.
//! `--variant` picks the network: today's usual LeNet, LeNet-5 of 1998, or one of Nielsen's chapter 6.
//! `--preset nielsen` trains Nielsen's last network on distorted pictures: 99.6% of MNIST.

use candle_core::{Result, bail};
use candle_nn::VarBuilder;
use candle_textbook::cli::images::{self, Augment, ImageRecipe};
use candle_textbook::cli::{Settings, TrainOptions};
use candle_textbook::data::{Augmentation, Images};
use candle_textbook::models::ImageModel;
use candle_textbook::models::lenet::{Config, LeNet};
use candle_textbook::models::lenet5::LeNet5;
use candle_textbook::nn::Activation::{Relu, Sigmoid};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::process::ExitCode;

#[derive(Args, Serialize, Deserialize)]
struct Recipe {
    #[arg(long, value_name = "NAME", default_value = "modern")]
    variant: Variant,
    /// Change the training pictures each time they are seen
    #[arg(long, value_name = "HOW", default_value = "none")]
    expand: Augment,
    /// A whole recipe; options given beside it stand
    #[arg(long, value_name = "NAME")]
    preset: Option<Preset>,
    #[command(flatten)]
    #[serde(flatten)]
    train: TrainOptions,
}

#[derive(Clone, Copy, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Variant {
    /// 6 and 16 channels, ReLU, max-pooling, 120 and 84 units
    Modern,
    /// LeCun's of 1998: tanh, trainable subsampling, the table of connections
    #[serde(rename = "lenet5")]
    #[value(name = "lenet5")]
    LeNet5,
    /// Nielsen: one convolution of 20 channels, 100 sigmoid units
    NielsenOne,
    /// Nielsen: convolutions of 20 and 40 channels, 100 sigmoid units
    NielsenTwo,
    /// Nielsen: the same with ReLU
    NielsenRelu,
    /// Nielsen: the same with two layers of 1000 units and dropout
    NielsenDropout,
}

#[derive(Clone, Copy, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Preset {
    /// Nielsen's last network, trained on distorted pictures
    Nielsen,
}

impl Settings for Recipe {
    fn train_options(&self) -> &TrainOptions {
        &self.train
    }

    fn preset(&self) -> Value {
        match self.preset {
            None => Value::Null,
            Some(Preset::Nielsen) => json!({
                "variant": "nielsen-dropout",
                "augment": "distort",
                "epochs": 25,
                "schedule": "one-cycle",
                "learning_rate": 1.5e-3,
                "validation": 5000,
            }),
        }
    }
}

impl ImageRecipe for Recipe {
    const NAME: &'static str = "lenet";
    const ABOUT: &'static str = "LeNet learns to read handwritten digits";

    fn model(&self, images: &Images, vb: VarBuilder) -> Result<Box<dyn ImageModel>> {
        let (classes, shape) = (images.classes(), images.shape());
        if shape != (1, 28, 28) {
            bail!("lenet: found pictures of {}x{} pixels, expected 28x28", shape.1, shape.2);
        }
        let config = match self.variant {
            Variant::LeNet5 => return Ok(Box::new(LeNet5::new(classes, vb)?)),
            Variant::Modern => Config::default(),
            Variant::NielsenOne => Config::nielsen(1, Sigmoid, &[100], 0.0),
            Variant::NielsenTwo => Config::nielsen(2, Sigmoid, &[100], 0.0),
            Variant::NielsenRelu => Config::nielsen(2, Relu, &[100], 0.0),
            Variant::NielsenDropout => Config::nielsen(2, Relu, &[1000, 1000], 0.5),
        };
        Ok(Box::new(LeNet::new(&Config { classes, ..config }, vb)?))
    }

    fn augmentation(&self) -> Option<Augmentation> {
        self.expand.augmentation()
    }
}

fn main() -> ExitCode {
    images::main::<Recipe>()
}
