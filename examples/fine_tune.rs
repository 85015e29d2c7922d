//! Fine-tunes a residual network on a folder of one's own images.
//!
//!     cargo run --example fine_tune DIR [WEIGHTS]
//!
//! `DIR/train/CLASS/` and `DIR/test/CLASS/` hold PNG and JPEG files. WEIGHTS is a ResNet-18 of torchvision or timm, as a `.pth` or
//! `.safetensors` file; only its last stage and the new output layer are trained then. Without it the network starts from
//! random weights, which takes many more images.

use candle_core::{DType, Device};
use candle_textbook::data::{self, Augmentation, PhotoAugmentation};
use candle_textbook::models::resnet::{Config, ResNet};
use candle_textbook::nn::{self, Cost, Model};
use candle_textbook::optim::{Curve, Optimizer, Sgd};
use candle_textbook::train::{self, Lines, Trainer, TrainerOptions};
use std::path::Path;

/// Trains on images scaled to `side`, and returns the accuracy on the test images.
pub fn run(dir: &Path, weights: Option<&Path>, side: usize, epochs: usize) -> anyhow::Result<f64> {
    let device = Device::Cpu;
    let mut set = data::image::load("image-folder", Some(dir), side)?;
    set.notes.iter().for_each(|note| eprintln!("{note}"));
    let count = set.training.len();
    // Every fifth image is for validation, unless the folder has a split for it.
    let (validation, training): (Vec<u32>, Vec<u32>) = match set.validation {
        Some(held_out) => (0..count as u32).partition(|&i| i as usize >= count - held_out),
        None => (0..count as u32).partition(|i| i % 5 == 4),
    };
    let normalisation = set.training.channel_statistics(&training)?;
    set.training.normalise(normalisation.clone())?;
    set.test.normalise(normalisation)?;

    let vars = nn::VarMap::new();
    let config = Config::imagenet(18, set.training.classes())?;
    let mut model = ResNet::new(&config, nn::seeded_var_builder(&vars, 42, DType::F32, &device))?;
    if let Some(weights) = weights {
        train::load_pretrained(weights, &vars, "fc")?;
        model.freeze_until("layer4")?;
    }
    let task = train::ImageClassification {
        model: &model,
        cost: Cost::SoftmaxCrossEntropy,
        images: &set.training,
        training: &training,
        validation: &validation,
        augmentation: Some(Augmentation::Photo(PhotoAugmentation { pad: side / 8, ..Default::default() })),
        label_smoothing: 0.1,
        device: &device,
    };
    let mut options = TrainerOptions::default();
    (options.epochs, options.batch_size) = (epochs, 16);
    (options.learning_rate, options.schedule) = (0.01, Curve::Cosine.into());
    let method = Sgd { momentum: 0.9, nesterov: true, weight_decay: 1e-4, ..Default::default() };
    let trainer = Trainer { options, progress: &Lines, ..Default::default() };
    trainer.fit(&task, &vars, &mut Optimizer::new(method, &vars)?)?;

    let model: &dyn Model = &model;
    let all: Vec<u32> = (0..set.test.len() as u32).collect();
    Ok(train::evaluate_images(model, Cost::SoftmaxCrossEntropy, &set.test, &all, &device)?.accuracy())
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(dir) = args.first() else { anyhow::bail!("usage: fine_tune DIR [WEIGHTS]") };
    let accuracy = run(Path::new(dir), args.get(1).map(Path::new), 224, 10)?;
    println!("{:.2}% of the test images", 100.0 * accuracy);
    Ok(())
}
