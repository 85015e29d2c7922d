//! A convolutional network of one's own, in `net.rs`: trained with the built-in task for images, saved, loaded again and asked.
//!
//!     cargo run --example mnist                    # trains on handwritten digits, generated
//!     cargo run --example mnist MNIST_DIR          # trains on MNIST
//!     cargo run --example mnist predict DIGIT.png  # loads the newest weights
//!
//! Expected: 98% of the generated test digits, 99% of MNIST's. The run folder `runs/mnist-example/N` holds the metrics and the
//! best weights, with the parameter names of the equivalent PyTorch module.

mod net;

use candle_core::{D, DType, Device, Tensor};
use candle_textbook::data;
use candle_textbook::nn::{self, Cost, Mode, Model};
use candle_textbook::optim::{Adam, Curve, Optimizer};
use candle_textbook::train::{self, Run, Trainer, TrainerOptions};
use net::Net;
use std::path::Path;

/// Trains in the run folder `out`, or else in a new one, and returns the accuracy on the test images.
pub fn run(dir: Option<&Path>, out: Option<&Path>, epochs: usize, limit: usize) -> anyhow::Result<f64> {
    let (images, test) = match dir {
        Some(dir) => data::image::idx::read_dir(dir)?,
        None => data::digits(limit.min(20_000), limit.min(4_000), 0)?,
    };
    let (validation, training): (Vec<u32>, _) =
        (0..images.len().min(limit) as u32).partition(|i| i % 10 == 0);

    let (vars, device) = (nn::VarMap::new(), Device::Cpu);
    let model = Net::new(nn::seeded_var_builder(&vars, 42, DType::F32, &device))?;
    let task = train::ImageClassification {
        model: &model,
        cost: Cost::SoftmaxCrossEntropy,
        images: &images,
        training: &training,
        validation: &validation,
        augmentation: Some(data::Augmentation::Shifts),
        label_smoothing: 0.0,
        device: &device,
    };
    let mut options = TrainerOptions::default();
    (options.epochs, options.learning_rate, options.schedule) = (epochs, 3e-3, Curve::Cosine.into());
    let run = Run::create("mnist-example", out, &serde_json::json!({ "epochs": epochs }))?;
    let trainer = Trainer { options, run: Some(&run), progress: &train::Lines, ..Default::default() };
    trainer.fit(&task, &vars, &mut Optimizer::new(Adam::adamw(), &vars)?)?;

    let all: Vec<u32> = (0..test.len() as u32).collect();
    let accuracy = train::evaluate_images(&model, task.cost, &test, &all, &device)?.accuracy();
    println!("{:.2}% of the test images; run folder {}", 100.0 * accuracy, run.dir().display());
    Ok(accuracy)
}

/// Loads the weights of the run in `dir`, or of the newest run, and returns the digit in an image file and its probability.
pub fn predict(dir: Option<&Path>, image: &Path) -> anyhow::Result<(u32, f32)> {
    let (run, _) = Run::open("mnist-example", dir)?;
    let (model, _) = train::load_model(&run, &Device::Cpu, Net::new)?;
    let bytes = Tensor::from_vec(data::image::read_digit(image)?, (1, 1, 28, 28), &Device::Cpu)?;
    let logits = model.forward(&(bytes.to_dtype(DType::F32)? / 255.0)?, Mode::Evaluate)?;
    let probabilities = nn::ops::softmax(&logits, D::Minus1)?.squeeze(0)?;
    Ok((probabilities.argmax(0)?.to_scalar()?, probabilities.max(0)?.to_scalar()?))
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [command, image] = &args[..]
        && command == "predict"
    {
        let (digit, probability) = predict(None, Path::new(image))?;
        println!("{digit} ({:.1}%)", 100.0 * probability);
        return Ok(());
    }
    run(args.first().map(Path::new), None, 5, usize::MAX).map(drop)
}
