//! A program for candle_nn that trains on this crate's layers: the line after this comment is all that differs.
//!
//!     cargo run --example drop_in            # handwritten digits, generated
//!     cargo run --example drop_in MNIST_DIR  # MNIST
//!
//! Expected: 98% of the generated test digits after the third epoch. Without the line it does the same on candle_nn, more slowly.
//! Pooling is the one thing to change by hand: an import cannot replace `Tensor::max_pool2d`, whose gradient is a quarter of the
//! right one, so call `candle_textbook::nn::max_pool2d`.

use candle_textbook::nn as candle_nn;

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::{
    AdamW, Conv2d, Conv2dConfig, Dropout, Linear, Module, Optimizer, ParamsAdamW, VarBuilder, VarMap, loss,
    ops,
};
use candle_textbook::data;
use std::path::Path;

struct ConvNet {
    conv1: Conv2d,
    conv2: Conv2d,
    fc1: Linear,
    fc2: Linear,
    dropout: Dropout,
}

impl ConvNet {
    fn new(vb: VarBuilder) -> Result<Self> {
        let config = Conv2dConfig { stride: 2, ..Default::default() };
        Ok(Self {
            conv1: candle_nn::conv2d(1, 16, 5, config, vb.pp("conv1"))?,
            conv2: candle_nn::conv2d(16, 32, 5, config, vb.pp("conv2"))?,
            fc1: candle_nn::linear(32 * 4 * 4, 128, vb.pp("fc1"))?,
            fc2: candle_nn::linear(128, 10, vb.pp("fc2"))?,
            dropout: Dropout::new(0.5),
        })
    }

    fn forward(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let xs = xs.apply(&self.conv1)?.relu()?; // (batch, 16, 12, 12)
        let xs = xs.apply(&self.conv2)?.relu()?; // (batch, 32, 4, 4)
        let xs = self.fc1.forward(&xs.flatten_from(1)?)?.relu()?; // (batch, 128)
        self.dropout.forward(&xs, train)?.apply(&self.fc2) // (batch, 10)
    }
}

/// Trains on the first `limit` images, and returns the accuracy on the test images.
pub fn run(dir: Option<&Path>, epochs: usize, limit: usize) -> anyhow::Result<f64> {
    let (training, test) = match dir {
        Some(dir) => data::image::idx::read_dir(dir)?,
        None => data::digits(limit.min(20_000), limit.min(4_000), 0)?,
    };
    let device = Device::Cpu;
    let indices = |count: usize| (0..count as u32).collect::<Vec<_>>();
    let (test_xs, test_labels) = test.batch(&indices(test.len().min(limit)), &device)?;

    let vars = VarMap::new();
    let model = ConvNet::new(VarBuilder::from_varmap(&vars, DType::F32, &device))?;
    let mut optimizer = AdamW::new(vars.all_vars(), ParamsAdamW { lr: 1e-3, ..Default::default() })?;
    let mut accuracy = 0.0;
    for epoch in 1..=epochs {
        for batch in indices(training.len().min(limit)).chunks(64) {
            let (xs, labels) = training.batch(batch, &device)?;
            let log_probabilities = ops::log_softmax(&model.forward(&xs, true)?, D::Minus1)?;
            optimizer.backward_step(&loss::nll(&log_probabilities, &labels)?)?;
        }
        let correct = model.forward(&test_xs, false)?.argmax(D::Minus1)?.eq(&test_labels)?;
        accuracy = correct.to_dtype(DType::F64)?.mean_all()?.to_scalar()?;
        println!("epoch {epoch}: {:.2}% of the test images", 100.0 * accuracy);
    }
    Ok(accuracy)
}

fn main() -> anyhow::Result<()> {
    run(std::env::args().nth(1).as_deref().map(Path::new), 3, usize::MAX).map(drop)
}
