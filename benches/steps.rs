//! Times one training step (forward, loss, backward, optimizer step) of a row of the benchmark.
//!
//! `cargo bench --bench steps -- ROW [--threads N] [--seconds S] [--examples N]` prints one line of JSON, as
//! `benches/peers.py` does for the same work in PyTorch; `benches/compare.sh` runs the two in turn.

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarMap;
use candle_textbook::cli;
use candle_textbook::data::Images;
use candle_textbook::models::lenet::{self, LeNet};
use candle_textbook::models::mlp::{self, Mlp};
use candle_textbook::nn::{Activation, Cost, Init, Mode, Model, parameters};
use candle_textbook::optim::{Adam, Clip, Method, Optimizer, Sgd};
use candle_textbook::rng;
use clap::Parser;
use rand::Rng;
use rand::seq::SliceRandom;
use serde_json::json;
use std::time::{Duration, Instant};

#[derive(Parser)]
struct Arguments {
    /// mlp, lenet or lenet_epoch
    row: String,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Of an epoch
    #[arg(long, default_value_t = 60_000)]
    examples: usize,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    cli::on_threads(Some(arguments.threads), || time(&arguments))
}

fn time(arguments: &Arguments) -> Result<()> {
    let seconds = Duration::from_secs_f64(arguments.seconds);
    let time = match arguments.row.as_str() {
        "mlp" => median(mlp()?, seconds, None)?,
        "lenet" => median(lenet()?, seconds, None)?,
        // An epoch is timed whole, because its steps differ.
        "lenet_epoch" => {
            median(lenet_epoch(arguments.examples)?, seconds, Some(arguments.examples.div_ceil(64)))?
        }
        row => bail!("row {row}: not known; there are mlp, lenet and lenet_epoch"),
    };
    let line = json!({
        "name": arguments.row, "milliseconds_per_step": 1e3 * time, "peak_rss_mb": peak_rss()? / 1e6,
    });
    println!("{line}");
    Ok(())
}

/// A model with its optimizer.
struct Training<M> {
    model: M,
    optimizer: Optimizer,
    learning_rate: f64,
}

impl<M: Model> Training<M> {
    fn new(
        model: impl FnOnce(candle_nn::VarBuilder) -> candle_core::Result<M>,
        method: impl Into<Method>,
        learning_rate: f64,
    ) -> Result<Self> {
        let vars = VarMap::new();
        let model = model(parameters(&vars, 1, DType::F32, &Device::Cpu))?;
        let optimizer = Optimizer::new(method, &vars)?;
        Ok(Self { model, optimizer, learning_rate })
    }

    fn step(&mut self, xs: &Tensor, labels: &Tensor, step: u64) -> Result<Tensor> {
        let logits = self.model.forward(xs, Mode::Train { seed: 1, epoch: 0, step })?;
        let loss = Cost::SoftmaxCrossEntropy.loss(&logits, labels)?;
        self.optimizer.step(&loss.backward()?, self.learning_rate, Clip::None)?;
        Ok(loss)
    }
}

fn mlp() -> Result<impl FnMut() -> Result<()>> {
    let config = mlp::Config {
        sizes: vec![784, 30, 10],
        activation: Activation::Sigmoid,
        init: Init::PyTorch,
        dropout: 0.0,
    };
    let mut training = Training::new(|vb| Mlp::new(&config, vb), Sgd::default(), 0.5)?;
    let (xs, labels) = pictures(10)?.batch(&(0..10).collect::<Vec<_>>(), &Device::Cpu)?;
    Ok(move || training.step(&xs, &labels, 0).map(drop))
}

fn lenet() -> Result<impl FnMut() -> Result<()>> {
    let mut training = Training::new(|vb| LeNet::new(&lenet::Config::default(), vb), Adam::adamw(), 1e-3)?;
    let (xs, labels) = pictures(64)?.batch(&(0..64).collect::<Vec<_>>(), &Device::Cpu)?;
    Ok(move || training.step(&xs, &labels, 0).map(drop))
}

/// `lenet` as a training run sees it: shuffled each epoch, bytes made into floats batch by batch, the loss read.
fn lenet_epoch(examples: usize) -> Result<impl FnMut() -> Result<()>> {
    let mut training = Training::new(|vb| LeNet::new(&lenet::Config::default(), vb), Adam::adamw(), 1e-3)?;
    let images = pictures(examples)?;
    let mut order: Vec<u32> = (0..examples as u32).collect();
    let (mut start, mut epoch) = (examples, 0);
    Ok(move || {
        if start >= examples {
            order.shuffle(&mut rng::stream(1, &format!("shuffle/epoch {epoch}")));
            (start, epoch) = (0, epoch + 1);
        }
        let (xs, labels) = images.batch(&order[start..examples.min(start + 64)], &Device::Cpu)?;
        start += 64;
        training.step(&xs, &labels, 0)?.to_scalar::<f32>()?;
        Ok(())
    })
}

fn pictures(count: usize) -> Result<Images> {
    let mut rng = rng::stream(1, "pictures");
    let mut pixels = vec![0; count * 784];
    rng.fill(&mut pixels[..]);
    let labels = (0..count).map(|_| rng.random_range(0..10)).collect();
    Ok(Images::new(pixels, labels, (1, 28, 28), 10)?)
}

/// Median seconds of a step, over blocks of `block` steps (as many as take some 50 ms, where it is not given).
fn median(mut step: impl FnMut() -> Result<()>, time: Duration, block: Option<usize>) -> Result<f64> {
    let (mut warm, start) = (0, Instant::now());
    while warm < 20 || start.elapsed() < Duration::from_millis(500) {
        step()?;
        warm += 1;
    }
    let block = block.unwrap_or((0.05 * f64::from(warm) / start.elapsed().as_secs_f64()).ceil() as usize);
    let (mut blocks, start) = (Vec::new(), Instant::now());
    while blocks.is_empty() || start.elapsed() < time {
        let start = Instant::now();
        for _ in 0..block {
            step()?;
        }
        blocks.push(start.elapsed().as_secs_f64() / block as f64);
    }
    blocks.sort_by(f64::total_cmp);
    Ok(blocks[blocks.len() / 2])
}

/// The most memory this process has held, in bytes.
fn peak_rss() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.map_or(Some(0.0), |line| line.trim().trim_end_matches(" kB").parse().ok());
    Ok(1024.0 * kilobytes.context("/proc/self/status: VmHWM is no number of kB")?)
}
