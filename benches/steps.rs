//! Times one training step (forward, loss, backward, optimizer step) of one row of the benchmark.
//!
//! `cargo bench --bench steps -- ROW [--threads N] [--seconds S] [--examples N]` prints one line of JSON, as
//! `benches/peers.py` does for the same work in PyTorch. `benches/compare.sh` runs the two alternately.

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarMap;
use candle_textbook::cli;
use candle_textbook::data::Images;
use candle_textbook::models::birnn::{self, BiRnn};
use candle_textbook::models::language_model::{self, LanguageModel};
use candle_textbook::models::lenet::{self, LeNet};
use candle_textbook::models::mlp::{self, Mlp};
use candle_textbook::models::mnist_cnn::MnistCnn;
use candle_textbook::models::resnet::{self, ResNet};
use candle_textbook::models::seq2seq::{self, Attention, PackedTokens, Seq2Seq};
use candle_textbook::models::textcnn::{self, TextCnn};
use candle_textbook::nn::{
    Activation, Cell, Cost, Init, Mode, Model, PackedSequences, SentenceModel, seeded_var_builder,
};
use candle_textbook::ops;
use candle_textbook::optim::{Adadelta, Adam, Clip, Method, Optimizer, Sgd};
use candle_textbook::rng;
use clap::Parser;
use rand::Rng;
use rand::seq::SliceRandom;
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Parser)]
struct Arguments {
    /// mlp, lenet, lenet_epoch, mnist_pytorch, lstm_small, gru_small, lstm_large, birnn, textcnn, seq2seq, seq2seq_128,
    /// resnet20, resnet20_128, or product: a large matrix product
    row: String,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Examples of an epoch
    #[arg(long, default_value_t = 60_000)]
    examples: usize,
    /// Passed by `cargo bench`
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
        // A whole epoch is timed, because its steps differ.
        "lenet_epoch" => {
            median(lenet_epoch(arguments.examples)?, seconds, Some(arguments.examples.div_ceil(64)))?
        }
        "mnist_pytorch" => median(mnist_pytorch()?, seconds, None)?,
        "lstm_small" => median(language_model(Cell::Lstm, 128, 50, 50)?, seconds, None)?,
        "gru_small" => median(language_model(Cell::Gru, 128, 50, 50)?, seconds, None)?,
        "lstm_large" => median(language_model(Cell::Lstm, 512, 100, 64)?, seconds, None)?,
        "birnn" => median(birnn()?, seconds, None)?,
        "textcnn" => median(textcnn()?, seconds, None)?,
        "seq2seq" => median(seq2seq(64)?, seconds, None)?,
        "seq2seq_128" => median(seq2seq(128)?, seconds, None)?,
        "resnet20" => median(resnet20(32)?, seconds, None)?,
        "resnet20_128" => median(resnet20(128)?, seconds, None)?,
        "product" => median(product()?, seconds, None)?,
        row => bail!("row {row}: unknown; --help lists the rows"),
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
        let model = model(seeded_var_builder(&vars, 1, DType::F32, &Device::Cpu))?;
        let optimizer = Optimizer::new(method, &vars)?;
        Ok(Self { model, optimizer, learning_rate })
    }

    fn step(&mut self, xs: &Tensor, labels: &Tensor, step: u64) -> Result<Tensor> {
        let logits = self.model.forward(xs, Mode::Train { seed: 1, epoch: 0, step })?;
        let loss = Cost::SoftmaxCrossEntropy.loss(&logits, labels)?;
        self.optimizer.backward_step(&loss, self.learning_rate, Clip::None)?;
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
    let (xs, labels) = random_images(10)?.batch(&(0..10).collect::<Vec<_>>(), &Device::Cpu)?;
    Ok(move || training.step(&xs, &labels, 0).map(drop))
}

fn lenet() -> Result<impl FnMut() -> Result<()>> {
    let mut training = Training::new(|vb| LeNet::new(&lenet::Config::default(), vb), Adam::adamw(), 1e-3)?;
    let (xs, labels) = random_images(64)?.batch(&(0..64).collect::<Vec<_>>(), &Device::Cpu)?;
    Ok(move || training.step(&xs, &labels, 0).map(drop))
}

/// The network of PyTorch's MNIST example.
fn mnist_pytorch() -> Result<impl FnMut() -> Result<()>> {
    let mut training = Training::new(|vb| MnistCnn::new(10, vb), Adadelta::default(), 1.0)?;
    let (xs, labels) = random_images(64)?.batch(&(0..64).collect::<Vec<_>>(), &Device::Cpu)?;
    let mut step = 0;
    Ok(move || {
        step += 1;
        training.step(&xs, &labels, step).map(drop)
    })
}

fn resnet20(batch: usize) -> Result<impl FnMut() -> Result<()>> {
    let config = resnet::Config::cifar(20, resnet::Shortcut::Identity, 10)?;
    let sgd = Sgd { momentum: 0.9, weight_decay: 1e-4, decay_biases: true, ..Sgd::default() };
    let mut training = Training::new(|vb| ResNet::new(&config, vb), sgd, 0.1)?;
    let xs = Tensor::from_iter((0..batch * 3 * 32 * 32).map(|i| (i as f32).sin()), &Device::Cpu)?;
    let (xs, labels) = (xs.reshape((batch, 3, 32, 32))?, random_ids("labels", batch, 10)?);
    Ok(move || training.step(&xs, &labels, 0).map(drop))
}

/// `lenet` as in a training run: shuffled each epoch, bytes converted to floats per batch, and the loss read.
fn lenet_epoch(examples: usize) -> Result<impl FnMut() -> Result<()>> {
    let mut training = Training::new(|vb| LeNet::new(&lenet::Config::default(), vb), Adam::adamw(), 1e-3)?;
    let images = random_images(examples)?;
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

/// A character model, on the same windows in each step.
fn language_model(cell: Cell, size: usize, steps: usize, batch: usize) -> Result<impl FnMut() -> Result<()>> {
    let config = language_model::Config {
        vocabulary: 65,
        embedding: Some(size),
        cell,
        hidden: size,
        layers: 2,
        dropout: 0.0,
        tie_weights: false,
    };
    let texts = Arc::new(PackedSequences::new(&vec![steps; batch])?);
    let (ids, targets) = (random_ids("ids", texts.rows(), 65)?, random_ids("targets", texts.rows(), 65)?);
    let vars = VarMap::new();
    let model = LanguageModel::new(&config, seeded_var_builder(&vars, 1, DType::F32, &Device::Cpu))?;
    let mut optimizer = Optimizer::new(Adam::adamw(), &vars)?;
    Ok(move || {
        let (logits, _) = model.forward(&ids, &texts, None, Mode::Train { seed: 1, epoch: 0, step: 0 })?;
        let loss = Cost::SoftmaxCrossEntropy.loss(&logits, &targets)?;
        optimizer.backward_step(&loss, 1e-3, Clip::None)?;
        Ok(())
    })
}

fn birnn() -> Result<impl FnMut() -> Result<()>> {
    let config = birnn::Config {
        vocabulary: 20_000,
        embedding: 100,
        cell: Cell::Lstm,
        hidden: 200,
        layers: 2,
        bidirectional: true,
        dropout: 0.0,
        tags: 9,
    };
    // 32 lengths from 5 to 40, 705 words in total.
    let lengths: Vec<usize> = (0..32).map(|i| 5 + i * 35 / 31).collect();
    let sentences = Arc::new(PackedSequences::new(&lengths)?);
    let (ids, tags) =
        (random_ids("ids", sentences.rows(), 20_000)?, random_ids("tags", sentences.rows(), 9)?);
    let vars = VarMap::new();
    let model = BiRnn::new(&config, seeded_var_builder(&vars, 1, DType::F32, &Device::Cpu))?;
    sentence_model(model, Optimizer::new(Adam::adamw(), &vars)?, sentences, ids, tags)
}

fn textcnn() -> Result<impl FnMut() -> Result<()>> {
    let config = textcnn::Config {
        variant: textcnn::Variant::Rand,
        vocabulary: 18_766,
        embedding: 300,
        widths: vec![3, 4, 5],
        filters: 100,
        dropout: 0.5,
        classes: 2,
    };
    let sentences = Arc::new(PackedSequences::new(&[56; 50])?);
    let (ids, classes) = (random_ids("ids", sentences.rows(), 18_766)?, random_ids("classes", 50, 2)?);
    let vars = VarMap::new();
    let model = TextCnn::new(&config, seeded_var_builder(&vars, 1, DType::F32, &Device::Cpu))?;
    sentence_model(model, Optimizer::new(Adam::adamw(), &vars)?, sentences, ids, classes)
}

/// Translation at the size of Multi30k, on the same batch in each step: image captions of 4 to 19 words.
fn seq2seq(batch: usize) -> Result<impl FnMut() -> Result<()>> {
    const WORDS: u32 = 10_000;
    let config = seq2seq::Config {
        cell: Cell::Gru,
        source_vocabulary: WORDS as usize,
        target_vocabulary: WORDS as usize,
        embedding: 256,
        hidden: 256,
        layers: 1,
        bidirectional: true,
        attention: Attention::Additive,
        input_feeding: false,
        dropout: 0.3,
    };
    // Each sentence and its end.
    let tokens = |purpose: &str, length: fn(usize) -> usize| -> Result<PackedTokens> {
        let lengths: Vec<usize> = (0..batch).map(|i| length(i) + 1).collect();
        let sequences = Arc::new(PackedSequences::new(&lengths)?);
        Ok(PackedTokens { ids: random_ids(purpose, sequences.rows(), WORDS)?, sequences })
    };
    let sources = tokens("sources", |i| 4 + 7 * i % 9 + 5 * i % 8)?;
    let targets = tokens("targets", |i| 4 + 11 * i % 9 + 3 * i % 8)?;
    let next = random_ids("next", targets.sequences.rows(), WORDS)?;
    let vars = VarMap::new();
    let model = Seq2Seq::new(&config, seeded_var_builder(&vars, 1, DType::F32, &Device::Cpu))?;
    let mut optimizer = Optimizer::new(Adam::default(), &vars)?;
    let mut step = 0;
    Ok(move || {
        let mode = Mode::Train { seed: 1, epoch: 0, step };
        let loss = model.loss(&sources, &targets, &next, 1.0, 0.0, mode)?;
        optimizer.backward_step(&loss, 1e-3, Clip::Norm(1.0))?;
        step += 1;
        Ok(())
    })
}

/// A model of sentences, on the same batch in each step.
fn sentence_model(
    model: impl SentenceModel,
    mut optimizer: Optimizer,
    sentences: Arc<PackedSequences>,
    ids: Tensor,
    targets: Tensor,
) -> Result<impl FnMut() -> Result<()>> {
    let mut step = 0;
    Ok(move || {
        let logits = model.forward(&ids, &sentences, Mode::Train { seed: 1, epoch: 0, step })?;
        let loss = Cost::SoftmaxCrossEntropy.loss(&logits, &targets)?;
        optimizer.backward_step(&loss, 1e-3, Clip::None)?;
        step += 1;
        Ok(())
    })
}

/// A product of 2 * 1024^3 operations, which measures the machine's peak rate.
fn product() -> Result<impl FnMut() -> Result<()>> {
    let size = 1024;
    let ones = Tensor::ones((size, size), DType::F32, &Device::Cpu)?;
    Ok(move || {
        ops::linear(&ones, &ones, None)?;
        Ok(())
    })
}

fn random_ids(purpose: &str, count: usize, below: u32) -> Result<Tensor> {
    let mut rng = rng::stream(1, purpose);
    let ids = (0..count).map(|_| rng.random_range(0..below)).collect();
    Ok(Tensor::from_vec(ids, count, &Device::Cpu)?)
}

fn random_images(count: usize) -> Result<Images> {
    let mut rng = rng::stream(1, "pictures");
    let mut pixels = vec![0; count * 784];
    rng.fill(&mut pixels[..]);
    let labels = (0..count).map(|_| rng.random_range(0..10_u32)).collect();
    Ok(Images::new(pixels, labels, (1, 28, 28), 10)?)
}

/// Median seconds per step over blocks of `block` steps, by default as many as take about 50 ms.
fn median(mut step: impl FnMut() -> Result<()>, time: Duration, block: Option<usize>) -> Result<f64> {
    let (mut warm, start) = (0, Instant::now());
    while warm < 3 || start.elapsed() < Duration::from_millis(500) {
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

/// Peak memory of this process in bytes.
fn peak_rss() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.map_or(Some(0.0), |line| line.trim().trim_end_matches(" kB").parse().ok());
    Ok(1024.0 * kilobytes.context("/proc/self/status: VmHWM is not a number of kB")?)
}
