//! LeNet classifies handwritten digits (LeCun et al. 1998; Nielsen, chapter 6).
//!
//! Data: `digits` (built in), `mnist`, `fashion-mnist`, `emnist-letters` and others, `image-folder`.
//! Result: 99% on `digits` and 99.2% on MNIST after 10 epochs; 99.6% on MNIST with `--preset nielsen`, which trains
//! Nielsen's last network on distorted images. `--variant` selects the network; `--preset pytorch` trains the network of
//! PyTorch's MNIST example as the example does.

use anyhow::Result;
use candle_core::bail;
use candle_nn::VarBuilder;
use candle_textbook::cli::{
    self, Augment, Binary, ImageData, ImageFacts, ImageOptions, Normalise, OptimizerName, Recipe,
    ScheduleName, TrainOptions,
};
use candle_textbook::models::ImageModel;
use candle_textbook::models::lenet::{Config, LeNet};
use candle_textbook::models::lenet5::LeNet5;
use candle_textbook::models::mnist_cnn::MnistCnn;
use candle_textbook::nn::Activation::{Relu, Sigmoid};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

#[derive(Clone, Args, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Network
    #[arg(long, value_name = "NAME", value_enum, default_value_t = Variant::Modern)]
    variant: Variant,
    /// Augmentation of training images
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    augment: Augment,
    /// Complete settings; other options given with it win
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
    /// LeNet-5 of 1998: tanh, trainable subsampling, partial connections between feature maps
    #[serde(rename = "lenet5")]
    #[value(name = "lenet5")]
    LeNet5,
    /// Nielsen: one convolution with 20 channels, 100 sigmoid units
    NielsenOne,
    /// Nielsen: convolutions with 20 and 40 channels, 100 sigmoid units
    NielsenTwo,
    /// Nielsen: the same with ReLU
    NielsenRelu,
    /// Nielsen: the same with two layers of 1000 units and dropout
    NielsenDropout,
    /// PyTorch's MNIST example: 3x3 convolutions with 32 and 64 channels, 128 units, dropout
    #[serde(rename = "pytorch")]
    #[value(name = "pytorch")]
    PyTorch,
}

#[derive(Clone, Copy, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Preset {
    /// Nielsen's last network, trained on distorted images
    Nielsen,
    /// PyTorch's MNIST example: Adadelta, 14 epochs, the learning rate times 0.7 after each
    #[serde(rename = "pytorch")]
    #[value(name = "pytorch")]
    PyTorch,
}

impl Binary for Settings {
    const NAME: &'static str = "lenet";
    const ABOUT: &'static str = "LeNet classifies handwritten digits";
    const UNFIT: &'static [&'static str] = &["shapes", "cifar10"];

    fn train_defaults() -> TrainOptions {
        TrainOptions::default()
    }

    fn apply_preset(&mut self) {
        let train = &mut self.train;
        match self.preset {
            Some(Preset::Nielsen) => {
                self.variant = Variant::NielsenDropout;
                self.augment = Augment::Distort;
                train.epochs = 25;
                train.schedule = ScheduleName::OneCycle;
                train.learning_rate = 1.5e-3;
                train.validation = Some(5000);
            }
            Some(Preset::PyTorch) => {
                self.variant = Variant::PyTorch;
                train.epochs = 14;
                train.optimizer = OptimizerName::Adadelta;
                train.learning_rate = 1.0;
                train.schedule = ScheduleName::Step;
                (train.schedule_epochs, train.schedule_factor) = (1, 0.7);
                train.validation = Some(5000);
            }
            None => {}
        }
    }
}

impl Recipe for Settings {
    type Data = ImageData;

    fn prefers_gpu(&self) -> bool {
        // LeNet-5's subsampling and partial connections consist of candle's operations.
        !matches!(self.variant, Variant::LeNet5)
    }

    fn train_options(&self) -> &TrainOptions {
        &self.train
    }

    fn data_options(&self) -> Result<ImageOptions> {
        let normalise = match self.variant {
            Variant::PyTorch => Normalise::Mnist,
            _ => Normalise::Off,
        };
        let augmentation = self.augment.augmentation();
        Ok(ImageOptions { augmentation, normalise, grey: true, ..ImageOptions::default() })
    }

    fn model(&self, images: &ImageFacts, vb: VarBuilder) -> candle_core::Result<Box<dyn ImageModel>> {
        let (classes, shape) = (images.classes.len(), images.shape);
        if shape != (1, 28, 28) {
            let (channels, height, width) = shape;
            bail!(
                "lenet: found images of {height}x{width} pixels with {channels} channels, expected 28x28 with 1: use mlp or \
                 resnet"
            );
        }
        let config = match self.variant {
            Variant::LeNet5 => return Ok(Box::new(LeNet5::new(classes, vb)?)),
            Variant::PyTorch => return Ok(Box::new(MnistCnn::new(classes, vb)?)),
            Variant::Modern => Config::default(),
            Variant::NielsenOne => Config::nielsen(1, Sigmoid, &[100], 0.0),
            Variant::NielsenTwo => Config::nielsen(2, Sigmoid, &[100], 0.0),
            Variant::NielsenRelu => Config::nielsen(2, Relu, &[100], 0.0),
            Variant::NielsenDropout => Config::nielsen(2, Relu, &[1000, 1000], 0.5),
        };
        Ok(Box::new(LeNet::new(&Config { classes, ..config }, vb)?))
    }

    fn activations(&self, _images: &ImageFacts) -> u64 {
        // The outputs of the convolutions.
        match self.variant {
            Variant::Modern | Variant::LeNet5 => 6 * 28 * 28 + 16 * 10 * 10,
            Variant::NielsenOne => 20 * 24 * 24,
            Variant::NielsenTwo | Variant::NielsenRelu | Variant::NielsenDropout => 20 * 24 * 24 + 40 * 8 * 8,
            Variant::PyTorch => 32 * 26 * 26 + 64 * 24 * 24,
        }
    }
}

fn main() -> ExitCode {
    cli::main::<Settings>()
}
