//! A residual network classifies images (He et al. 2015).
//!
//! Data: `shapes` (built in), `cifar10`, and `image-folder`: your own images in `DIR/train/CLASS` and `DIR/test/CLASS`.
//! Result: 95% on `shapes` in a minute; 84.5% on CIFAR-10 after ten epochs with the settings in docs/resnet.md.
//! `--layers` selects the depth: 20, 32, 44, 56 or 110 for small images, 18, 34, 50, 101 or 152 for large ones.
//! `--pretrained` starts from weights of torchvision or timm. `--degradation` shows the effect of the shortcuts.

use anyhow::{Result, ensure};
use candle_core::bail;
use candle_nn::VarBuilder;
use candle_textbook::cli::{
    self, Binary, Experiment, ImageData, ImageFacts, ImageOptions, Normalise, OptimizerName, Recipe,
    ScheduleName, TrainOptions, degradation, fraction, in_range, whole,
};
use candle_textbook::data::image::is_handwriting;
use candle_textbook::data::{Augmentation, PhotoAugmentation};
use candle_textbook::models::ImageModel;
use candle_textbook::models::resnet::{Config, ResNet, Shortcut};
use clap::{ArgAction, Args, ValueEnum};
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

#[derive(Clone, Args, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Number of layers: 20, 32, 44, 56, 110 (6n+2, small images) or 18, 34, 50, 101, 152 (large images)
    #[arg(long, value_name = "N", value_parser = whole::<usize>, default_value_t = 20)]
    layers: usize,
    /// Shortcuts [default: identity, in networks for large images projection]
    #[arg(long, value_name = "NAME")]
    shortcut: Option<Shortcut>,
    /// Side of the squares that the images of a folder are scaled to [default: 32, for large networks 224]
    #[arg(long, value_name = "PIXELS", value_parser = |text: &str| in_range(text, 8..=1024_u16, "a whole number, 8 to 1024"))]
    side: Option<u16>,
    /// Augmentation: shift training images by at most this much along each axis
    #[arg(long, value_name = "PIXELS", value_parser = whole::<usize>, default_value_t = 0)]
    crop: usize,
    /// Augmentation: mirror half of the training images [default: true, for handwriting false]
    #[arg(long, value_name = "BOOL", action = ArgAction::Set)]
    flip: Option<bool>,
    /// Augmentation: change brightness, contrast and saturation by at most this fraction
    #[arg(long, value_name = "X", value_parser = fraction::<f32>, default_value_t = 0.0)]
    jitter: f32,
    /// Fraction of each label that is spread over all classes
    #[arg(long, value_name = "X", value_parser = fraction::<f32>, default_value_t = 0.0)]
    label_smoothing: f32,
    /// Start from the weights in a safetensors or PyTorch file, or, with the feature `hub`, of resnet18, 34, 50, 101 or
    /// 152
    #[arg(long, value_name = "NAME|FILE")]
    pretrained: Option<String>,
    /// Freeze the parameters before layer1, layer2, layer3, layer4 or fc
    #[arg(long, value_name = "LAYER", requires = "pretrained")]
    freeze_until: Option<String>,
    /// Let batch normalisation on several processes use the statistics of the whole batch instead of each process's
    /// share
    #[arg(long)]
    #[serde(default)]
    sync_batch_norm: bool,
    /// Train with and without shortcuts, by default 56 layers, and plot both training errors
    #[arg(long, conflicts_with = "shortcut")]
    degradation: bool,
    /// Complete settings; other options given with it win
    #[arg(long, value_name = "NAME")]
    preset: Option<Preset>,
    #[command(flatten)]
    #[serde(flatten)]
    train: TrainOptions,
}

#[derive(Clone, Copy, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Preset {
    /// He et al.: 64,000 steps of 128 images of CIFAR-10, the learning rate lowered twice
    Paper,
}

impl Settings {
    fn is_large(&self) -> bool {
        [18, 34, 50, 101, 152].contains(&self.layers)
    }

    fn config(&self, images: &ImageFacts) -> candle_core::Result<Config> {
        let (channels, classes) = (images.shape.0, images.classes.len());
        let config = match (self.is_large(), self.shortcut) {
            (true, None | Some(Shortcut::Projection)) => Config::imagenet(self.layers, classes)?,
            (true, Some(_)) => bail!("--shortcut: a network of {} layers has projections", self.layers),
            (false, shortcut) => Config::cifar(self.layers, shortcut.unwrap_or_default(), classes)?,
        };
        Ok(Config { channels, ..config })
    }
}

impl Binary for Settings {
    const NAME: &'static str = "resnet";
    const ABOUT: &'static str = "A residual network classifies images";

    fn train_defaults() -> TrainOptions {
        TrainOptions {
            dataset: "shapes".to_string(),
            epochs: 5,
            batch_size: 32,
            optimizer: OptimizerName::Sgd,
            momentum: 0.9,
            weight_decay: Some(1e-4),
            learning_rate: 0.05,
            schedule: ScheduleName::OneCycle,
            ..TrainOptions::default()
        }
    }

    fn apply_preset(&mut self) {
        match self.preset {
            None if self.degradation => self.layers = 56,
            None => {}
            Some(Preset::Paper) => {
                self.crop = 4;
                self.train = TrainOptions {
                    dataset: "cifar10".to_string(),
                    epochs: 182,
                    batch_size: 128,
                    learning_rate: 0.1,
                    schedule: ScheduleName::Milestones,
                    schedule_factor: 0.1,
                    validation: Some(5000),
                    ..self.train.clone()
                };
            }
        }
    }
}

impl Recipe for Settings {
    type Data = ImageData;

    fn prefers_gpu(&self) -> bool {
        true
    }

    fn train_options(&self) -> &TrainOptions {
        &self.train
    }

    fn least_batch(&self, images: &ImageFacts) -> usize {
        let (_, height, width) = images.shape;
        let has_single_pixels =
            self.config(images).is_ok_and(|config| config.last_maps(height, width) == (1, 1));
        // Frozen layers normalise with their running averages.
        let is_frozen = self.freeze_until.as_deref() == Some("fc");
        if has_single_pixels && !is_frozen { 2 } else { 1 }
    }

    fn sync_batch_norm(&self) -> bool {
        self.sync_batch_norm
    }

    fn data_options(&self) -> Result<ImageOptions> {
        let &Self { crop: pad, flip, jitter, .. } = self;
        ensure!(
            self.side.is_none() || self.train.dataset == "image-folder",
            "--side: the images of {} have a fixed size; only those of a folder are scaled",
            self.train.dataset
        );
        Ok(ImageOptions {
            side: self.side.map_or(if self.is_large() { 224 } else { 32 }, usize::from),
            augmentation: Some(Augmentation::Photo(PhotoAugmentation {
                pad,
                flip: flip.unwrap_or(!is_handwriting(&self.train.dataset)),
                brightness: jitter,
                contrast: jitter,
                saturation: jitter,
            })),
            label_smoothing: self.label_smoothing.into(),
            normalise: match self.pretrained {
                Some(_) if self.is_large() => Normalise::ImageNet,
                _ => Normalise::TrainingSet,
            },
            pretrained: self.pretrained.clone().map(|weights| (weights, "fc")),
            shown_classes: 5,
            ..ImageOptions::default()
        })
    }

    fn model(&self, images: &ImageFacts, vb: VarBuilder) -> candle_core::Result<Box<dyn ImageModel>> {
        let mut resnet = ResNet::new(&self.config(images)?, vb)?;
        if let Some(layer) = &self.freeze_until {
            resnet.freeze_until(layer)?;
        }
        Ok(Box::new(resnet))
    }

    fn experiment(&self) -> Option<Experiment<Self::Data>> {
        self.degradation.then(|| {
            let variant = |kind: &str, shortcut| {
                let settings = Self { shortcut: Some(shortcut), ..self.clone() };
                (format!("{kind}-{}", self.layers), cli::AnyRecipe::new(settings))
            };
            degradation::compare(vec![
                variant("plain", Shortcut::None),
                variant("resnet", Shortcut::Identity),
            ])
        })
    }

    fn activations(&self, images: &ImageFacts) -> u64 {
        // Channels of a layer's output, at the image size and averaged over the stages.
        let channels = match self.layers {
            50.. if self.is_large() => 2,
            _ if self.is_large() => 1,
            _ => 9,
        };
        let (_, height, width) = images.shape;
        (self.layers as u64).saturating_mul(channels * (height * width) as u64)
    }
}

fn main() -> ExitCode {
    cli::main::<Settings>()
}
