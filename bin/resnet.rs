//! A residual network learns to tell pictures apart.
//!
//! Data: `shapes` (built in), `cifar10`, and `image-folder`: pictures of your own in `DIR/train/CLASS` and `DIR/test/CLASS`.
//! `--layers` picks the network of He et al. 2015: 20, 32, 44, 56 or 110 for small pictures, 18, 34, 50, 101 or 152 for large
//! ones. `--pretrained` starts from weights of torchvision or timm. `--degradation` shows what shortcuts are for.

use anyhow::Result;
use candle_core::bail;
use candle_nn::VarBuilder;
use candle_textbook::cli::images::{self, ImageRecipe};
use candle_textbook::cli::{Settings, TrainOptions};
use candle_textbook::data::{Augmentation, Images, Normalisation, PhotoAugmentation, image};
use candle_textbook::models::ImageModel;
use candle_textbook::models::resnet::{Config, ResNet, Shortcut};
use clap::{ArgAction, Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;
use std::process::ExitCode;

#[derive(Clone, Args, Serialize, Deserialize)]
struct Recipe {
    /// 20, 32, 44, 56, 110 (6n+2, for small pictures) or 18, 34, 50, 101, 152 (for large ones)
    #[arg(long, value_name = "N", default_value_t = 20)]
    layers: usize,
    /// What a block adds to its input: A, B or nothing in the paper; large networks have projections
    #[arg(long, value_name = "NAME")]
    shortcut: Option<Shortcut>,
    /// Side of the squares that the pictures of a folder are made into [default: 32, for large networks 224]
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u16).range(8..=1024))]
    side: Option<u16>,
    /// Move training pictures by up to so many pixels along each axis
    #[arg(long, value_name = "PIXELS", default_value_t = 0)]
    crop: usize,
    /// Mirror training pictures left to right, every other time
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    flip: bool,
    /// Change brightness, contrast and saturation of training pictures by up to this part
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = part)]
    jitter: f32,
    /// Spread so much of a label over all classes
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = part)]
    label_smoothing: f32,
    /// Start from the weights in a safetensors or PyTorch file, or, with the feature `hub`, from those of resnet18, 34, 50, 101
    /// or 152
    #[arg(long, value_name = "NAME|FILE")]
    pretrained: Option<String>,
    /// Leave what comes before layer1, layer2, layer3, layer4 or fc as it is
    #[arg(long, value_name = "LAYER", requires = "pretrained")]
    freeze_until: Option<String>,
    /// Train a network of so many layers (56 if none is said) with and without shortcuts, and draw the training error of both
    #[arg(long)]
    degradation: bool,
    /// A whole recipe; options given beside it stand
    #[arg(long, value_name = "NAME")]
    preset: Option<Preset>,
    #[command(flatten)]
    #[serde(flatten)]
    train: TrainOptions,
}

#[derive(Clone, Copy, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Preset {
    /// He et al.: 64,000 steps of 128 pictures of CIFAR-10, the learning rate lowered twice
    Paper,
}

fn part(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(part) if (0.0..1.0).contains(&part) => Ok(part),
        _ => Err("expected a number from 0 to below 1".into()),
    }
}

impl Recipe {
    fn is_large(&self) -> bool {
        [18, 34, 50, 101, 152].contains(&self.layers)
    }
}

impl Settings for Recipe {
    const DEFAULTS: &'static [(&'static str, &'static str)] = &[
        ("dataset", "shapes"),
        ("epochs", "5"),
        ("batch_size", "32"),
        ("optimizer", "sgd"),
        ("momentum", "0.9"),
        ("weight_decay", "1e-4"),
        ("learning_rate", "0.05"),
        ("schedule", "one-cycle"),
    ];

    fn train_options(&self) -> &TrainOptions {
        &self.train
    }

    fn preset(&self) -> Value {
        match self.preset {
            None if self.degradation => json!({ "layers": 56 }),
            None => Value::Null,
            Some(Preset::Paper) => json!({
                "dataset": "cifar10",
                "crop": 4,
                "epochs": 182,
                "batch_size": 128,
                "learning_rate": 0.1,
                "schedule": "milestones",
                "schedule_factor": 0.1,
                "validation": 5000,
            }),
        }
    }
}

impl ImageRecipe for Recipe {
    const NAME: &'static str = "resnet";
    const ABOUT: &'static str = "A residual network learns to tell pictures apart";
    const LIKELIEST: usize = 5;

    fn model(&self, images: &Images, vb: VarBuilder) -> candle_core::Result<Box<dyn ImageModel>> {
        let (channels, ..) = images.shape();
        let config = match (self.is_large(), self.shortcut) {
            (true, None | Some(Shortcut::Projection)) => Config::imagenet(self.layers, images.classes())?,
            (true, Some(_)) => bail!("--shortcut: a network of {} layers has projections", self.layers),
            (false, shortcut) => Config::cifar(self.layers, shortcut.unwrap_or_default(), images.classes())?,
        };
        let mut resnet = ResNet::new(&Config { channels, ..config }, vb)?;
        if let Some(layer) = &self.freeze_until {
            resnet.freeze_until(layer)?;
        }
        Ok(Box::new(resnet))
    }

    fn augmentation(&self) -> Option<Augmentation> {
        let &Self { crop: pad, flip, jitter, .. } = self;
        Some(Augmentation::Photo(PhotoAugmentation {
            pad,
            flip,
            brightness: jitter,
            contrast: jitter,
            saturation: jitter,
        }))
    }

    fn label_smoothing(&self) -> f64 {
        self.label_smoothing.into()
    }

    fn side(&self) -> candle_core::Result<usize> {
        match self.side {
            Some(_) if self.train.dataset != "image-folder" => {
                bail!(
                    "--side: pictures of {} have a size of their own, only a folder's are scaled",
                    self.train.dataset
                )
            }
            Some(side) => Ok(side.into()),
            None => Ok(if self.is_large() { 224 } else { 32 }),
        }
    }

    fn normalisation(&self, images: &Images, training: &[u32]) -> candle_core::Result<Option<Normalisation>> {
        Ok(Some(match self.pretrained {
            Some(_) if self.is_large() => Normalisation::imagenet(),
            _ => images.channel_statistics(training)?,
        }))
    }

    fn pretrained(&self) -> Option<(&str, &'static str)> {
        Some((self.pretrained.as_ref()?, "fc"))
    }

    fn compared(&self) -> Vec<(String, Self)> {
        let with = |kind: &str, shortcut| {
            (format!("{kind}-{}", self.layers), Self { shortcut: Some(shortcut), ..self.clone() })
        };
        match self.degradation {
            true => vec![with("plain", Shortcut::None), with("resnet", Shortcut::Identity)],
            false => vec![],
        }
    }

    fn read(path: &Path, (channels, side, _): (usize, usize, usize)) -> Result<Vec<u8>> {
        match channels {
            1 => image::read_digit(path),
            _ => image::read_square(path, side),
        }
    }
}

fn main() -> ExitCode {
    images::main::<Recipe>()
}
