//! A convolutional network of one's own, trained with the built-in task for images.
//!
//!     cargo run --example mnist            # handwritten digits, generated
//!     cargo run --example mnist MNIST_DIR  # MNIST
//!
//! Expected: 98% of the generated test digits, 99% of MNIST's. The run folder `runs/mnist-example/N` holds the metrics and the
//! best weights, with the parameter names of the equivalent PyTorch module.

use candle_core::{DType, Device, Result, Tensor};
use candle_textbook::data;
use candle_textbook::nn::{self, BatchNorm, Conv2d, Cost, Linear, Mode, Model, VarBuilder};
use candle_textbook::optim::{Adam, Curve, Optimizer};
use candle_textbook::train::{self, Run, Trainer, TrainerOptions};
use std::path::Path;

struct Net {
    conv1: Conv2d,
    conv2: Conv2d,
    norm: BatchNorm,
    output: Linear,
}

impl Net {
    fn new(vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            conv1: nn::conv2d(1, 16, 5, Default::default(), vb.pp("conv1"))?,
            conv2: nn::conv2d_no_bias(16, 32, 5, Default::default(), vb.pp("conv2"))?,
            norm: nn::batch_norm(32, 1e-5, vb.pp("norm"))?,
            output: nn::linear(32 * 4 * 4, 10, vb.pp("output"))?,
        })
    }
}

impl Model for Net {
    /// `(batch, 1, 28, 28)` to `(batch, 10)`.
    fn forward(&self, xs: &Tensor, mode: Mode) -> Result<Tensor> {
        let xs = nn::max_pool2d(&xs.apply(&self.conv1)?.relu()?, 2)?; // (batch, 16, 12, 12)
        let xs = xs.apply(&self.conv2)?.apply_t(&self.norm, mode.is_training())?; // (batch, 32, 8, 8)
        nn::max_pool2d(&xs.relu()?, 2)?.flatten_from(1)?.apply(&self.output)
    }
}

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

fn main() -> anyhow::Result<()> {
    run(std::env::args().nth(1).as_deref().map(Path::new), None, 5, usize::MAX).map(drop)
}
