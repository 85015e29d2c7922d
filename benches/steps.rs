//! Times one training step (forward, loss, backward, optimizer step) of one row of the benchmark.
//!
//! `cargo bench --bench steps -- ROW [--threads N] [--seconds S] [--examples N] [--device DEVICE]` prints one line of JSON,
//! as `benches/peers.py` does for the same work in PyTorch. `benches/compare.sh` runs the two alternately on a CPU,
//! `benches/gpu.sh` on a GPU. There the steps run in the trainer, which makes CUDA graphs of them unless
//! `CANDLE_TEXTBOOK_CUDA_GRAPHS` is `off`.

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use candle_textbook::cli;
use candle_textbook::data::{Images, Language};
use candle_textbook::device::DeviceChoice;
use candle_textbook::models::birnn::{self, BiRnn};
use candle_textbook::models::language_model::{self, LanguageModel};
use candle_textbook::models::lenet::{self, LeNet};
use candle_textbook::models::mlp::{self, Mlp};
use candle_textbook::models::mnist_cnn::MnistCnn;
use candle_textbook::models::music::{self, Bags, MusicModel, Notes};
use candle_textbook::models::resnet::{self, ResNet};
use candle_textbook::models::seq2seq::{self, Attention, PackedTokens, Seq2Seq};
use candle_textbook::models::textcnn::{self, TextCnn};
use candle_textbook::nn::{
    Activation, Cell, Cost, InitScheme, Mode, Model, PackedSequences, SentenceModel, seeded_var_builder,
};
use candle_textbook::ops;
use candle_textbook::optim::{Adadelta, Adam, Clip, Method, Optimizer, Sgd};
use candle_textbook::rng;
use candle_textbook::train::{Decoding, Metric, Run, Score, Task, Trainer, TrainerOptions, Translator};
use clap::Parser;
use rand::Rng;
use rand::seq::SliceRandom;
use serde_json::json;
use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Parser)]
struct Arguments {
    /// mlp, lenet, lenet_epoch, mnist_pytorch, lstm_small, gru_small, lstm_large, birnn, textcnn, seq2seq, seq2seq_128,
    /// translate, translate_5, music, resnet20, resnet20_128, or product: a large matrix product
    row: String,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Examples of an epoch
    #[arg(long, default_value_t = 60_000)]
    examples: usize,
    /// auto, cpu or cuda
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// Prints the losses of this many steps instead of a time
    #[arg(long)]
    losses: Option<usize>,
    /// Computes in f64; for mnist_pytorch and resnet20, whose losses depend on the rounding of f32 after a few steps
    #[arg(long, requires = "losses")]
    f64: bool,
    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    cli::on_threads(Some(arguments.threads), || run(&arguments))
}

fn run(arguments: &Arguments) -> Result<()> {
    let (name, device) = (arguments.row.as_str(), arguments.device.open(true)?);
    let dtype = if arguments.f64 { DType::F64 } else { DType::F32 };
    let time = Duration::from_secs_f64(arguments.seconds);
    match name {
        "product" => return print(name, median(product()?, time, None)?),
        "translate" => return print(name, median(translate(1)?, time, None)?),
        "translate_5" => return print(name, median(translate(5)?, time, None)?),
        _ => {}
    }
    let mut row = match name {
        "mlp" => mlp(&device)?,
        "lenet" => lenet(&device)?,
        "lenet_epoch" => lenet_epoch(arguments.examples, &device)?,
        "mnist_pytorch" => mnist_pytorch(dtype, &device)?,
        "lstm_small" => language_model(Cell::Lstm, 128, 50, 50, &device)?,
        "gru_small" => language_model(Cell::Gru, 128, 50, 50, &device)?,
        "lstm_large" => language_model(Cell::Lstm, 512, 100, 64, &device)?,
        "birnn" => birnn(&device)?,
        "textcnn" => textcnn(&device)?,
        "seq2seq" => seq2seq(64, &device)?,
        "seq2seq_128" => seq2seq(128, &device)?,
        "music" => music(&device)?,
        "resnet20" => resnet20(32, dtype, &device)?,
        "resnet20_128" => resnet20(128, dtype, &device)?,
        row => bail!("row {row}: unknown; --help lists the rows"),
    };
    if let Some(count) = arguments.losses {
        let losses = (0..count).map(|step| Ok(row.step(step as u64)?.to_dtype(DType::F64)?.to_scalar()?));
        println!("{}", json!({ "name": name, "losses": losses.collect::<Result<Vec<f64>>>()? }));
        return Ok(());
    }
    // A whole epoch is timed, because its steps differ.
    let block = (name == "lenet_epoch").then(|| arguments.examples.div_ceil(64));
    match device {
        Device::Cuda(_) => print(name, on_gpu(row, time, block)?),
        _ => {
            let mut step = 0;
            let next = || {
                row.step(step)?;
                step += 1;
                Ok(())
            };
            print(name, median(next, time, block)?)
        }
    }
}

fn print(name: &str, seconds: f64) -> Result<()> {
    let memory = peak_rss()? / 1e6;
    println!("{}", json!({ "name": name, "milliseconds_per_step": 1e3 * seconds, "peak_rss_mb": memory }));
    Ok(())
}

type Loss = Box<dyn Fn(u64) -> candle_core::Result<Tensor>>;

/// A model to train, and its data.
struct Row {
    vars: VarMap,
    optimizer: Optimizer,
    learning_rate: f64,
    clip: Clip,
    /// The loss of each step.
    loss: Loss,
}

impl Row {
    fn new(vars: VarMap, method: impl Into<Method>, learning_rate: f64, loss: Loss) -> Result<Self> {
        let optimizer = Optimizer::new(method, &vars)?;
        Ok(Self { vars, optimizer, learning_rate, clip: Clip::None, loss })
    }

    fn step(&mut self, step: u64) -> Result<Tensor> {
        let loss = (self.loss)(step)?;
        self.optimizer.backward_step(&loss, self.learning_rate, self.clip)?;
        Ok(loss)
    }
}

/// The steps of a row as examples of a task.
struct Steps {
    loss: Loss,
    count: usize,
}

impl Task for Steps {
    fn examples(&self) -> usize {
        self.count
    }

    fn loss(&self, _: &[u32], mode: Mode) -> anyhow::Result<Tensor> {
        match mode {
            Mode::Train { step, .. } => Ok((self.loss)(step)?),
            Mode::Evaluate => anyhow::bail!("not a training step"),
        }
    }

    fn validate(&self) -> anyhow::Result<Score> {
        Ok(Score { loss: 0., metric: 0. })
    }

    fn metric(&self) -> Metric {
        Metric::ACCURACY
    }

    fn is_capturable(&self) -> bool {
        true
    }
}

/// Median seconds per step of the trainer, which does not wait for the GPU in a step.
fn on_gpu(row: Row, time: Duration, block: Option<usize>) -> Result<f64> {
    const EPOCHS: usize = 5;
    let Row { vars, mut optimizer, learning_rate, clip, loss } = row;
    let dir = std::env::temp_dir().join(format!("candle-textbook-steps-{}", std::process::id()));
    let mut task = Steps { loss, count: block.unwrap_or(30) };
    let mut train = |task: &Steps, name: &str, epochs| -> Result<Vec<f64>> {
        let mut options = TrainerOptions::default();
        options.epochs = epochs;
        options.batch_size = 1;
        options.learning_rate = learning_rate;
        options.clip = clip;
        let run = Run::create("steps", Some(&dir.join(name)), &json!({}))?;
        let trainer = Trainer { options, run: Some(&run), ..Trainer::default() };
        let report = trainer.fit(task, &vars, &mut optimizer)?;
        Ok(report.epochs.iter().map(|epoch| epoch.seconds / task.count as f64).collect())
    };
    let warm = train(&task, "warm", 2)?[1];
    let count = (time.as_secs_f64() / EPOCHS as f64 / warm).ceil() as usize;
    task.count = block.unwrap_or(count.clamp(20, 20_000));
    let times = train(&task, "timed", EPOCHS + 1);
    std::fs::remove_dir_all(&dir)?;
    // The first epoch has steps that are no graphs yet.
    let mut times = times?.split_off(1);
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

fn builder<'a>(vars: &'a VarMap, device: &Device) -> VarBuilder<'a> {
    seeded_var_builder(vars, 1, DType::F32, device)
}

fn mode(step: u64) -> Mode {
    Mode::train(1, 0, step)
}

/// The loss of a classifier on a batch.
fn classify(model: &dyn Model, (xs, labels): &(Tensor, Tensor), step: u64) -> candle_core::Result<Tensor> {
    Cost::SoftmaxCrossEntropy.loss(&model.forward(xs, mode(step))?, labels)
}

fn mlp(device: &Device) -> Result<Row> {
    let config = mlp::Config {
        sizes: vec![784, 30, 10],
        activation: Activation::Sigmoid,
        init: InitScheme::PyTorch,
        dropout: 0.0,
    };
    let vars = VarMap::new();
    let model = Mlp::new(&config, builder(&vars, device))?;
    let batch = random_images(10)?.batch(&(0..10).collect::<Vec<_>>(), device)?;
    Row::new(vars, Sgd::default(), 0.5, Box::new(move |step| classify(&model, &batch, step)))
}

fn lenet(device: &Device) -> Result<Row> {
    let vars = VarMap::new();
    let model = LeNet::new(&lenet::Config::default(), builder(&vars, device))?;
    let batch = random_images(64)?.batch(&(0..64).collect::<Vec<_>>(), device)?;
    Row::new(vars, Adam::adamw(), 1e-3, Box::new(move |step| classify(&model, &batch, step)))
}

/// The network of PyTorch's MNIST example.
fn mnist_pytorch(dtype: DType, device: &Device) -> Result<Row> {
    let vars = VarMap::new();
    let model = MnistCnn::new(10, seeded_var_builder(&vars, 1, dtype, device))?;
    let (xs, labels) = random_images(64)?.batch(&(0..64).collect::<Vec<_>>(), device)?;
    let batch = (xs.to_dtype(dtype)?, labels);
    Row::new(vars, Adadelta::default(), 1.0, Box::new(move |step| classify(&model, &batch, step)))
}

fn resnet20(batch: usize, dtype: DType, device: &Device) -> Result<Row> {
    let config = resnet::Config::cifar(20, resnet::Shortcut::Identity, 10)?;
    let sgd = Sgd { momentum: 0.9, weight_decay: 1e-4, decay_biases: true, ..Sgd::default() };
    let vars = VarMap::new();
    let model = ResNet::new(&config, seeded_var_builder(&vars, 1, dtype, device))?;
    let xs =
        Tensor::from_iter((0..batch * 3 * 32 * 32).map(|i| (i as f32).sin()), device)?.to_dtype(dtype)?;
    let batch = (xs.reshape((batch, 3, 32, 32))?, random_ids("labels", batch, 10)?.to_device(device)?);
    Row::new(vars, sgd, 0.1, Box::new(move |step| classify(&model, &batch, step)))
}

/// `lenet` as in a training run: shuffled each epoch, and bytes converted to floats per batch.
fn lenet_epoch(examples: usize, device: &Device) -> Result<Row> {
    let (vars, device) = (VarMap::new(), device.clone());
    let model = LeNet::new(&lenet::Config::default(), builder(&vars, &device))?;
    let images = random_images(examples)?;
    let order = RefCell::new((0..examples as u32).collect::<Vec<_>>());
    let steps = examples.div_ceil(64) as u64;
    let loss = move |step: u64| {
        if step.is_multiple_of(steps) {
            order.borrow_mut().shuffle(&mut rng::stream(1, &format!("shuffle/epoch {}", step / steps)));
        }
        let start = 64 * (step % steps) as usize;
        let batch = images.batch(&order.borrow()[start..examples.min(start + 64)], &device)?;
        classify(&model, &batch, step)
    };
    Row::new(vars, Adam::adamw(), 1e-3, Box::new(loss))
}

/// A character model, on the same windows in each step.
fn language_model(cell: Cell, size: usize, steps: usize, batch: usize, device: &Device) -> Result<Row> {
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
    let [ids, targets] = ["ids", "targets"].map(|name| random_ids(name, texts.rows(), 65));
    let (ids, targets) = (ids?.to_device(device)?, targets?.to_device(device)?);
    let vars = VarMap::new();
    let model = LanguageModel::new(&config, builder(&vars, device))?;
    let loss = move |step| {
        let (logits, _) = model.forward(&ids, &texts, None, mode(step))?;
        Cost::SoftmaxCrossEntropy.loss(&logits, &targets)
    };
    Row::new(vars, Adam::adamw(), 1e-3, Box::new(loss))
}

fn birnn(device: &Device) -> Result<Row> {
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
    let model = BiRnn::new(&config, builder(&vars, device))?;
    sentence_model(model, vars, sentences, [ids, tags], device)
}

/// A model of music in four voices: 16 pieces of 128 steps.
fn music(device: &Device) -> Result<Row> {
    const STEPS: usize = 16 * 128;
    const NOTES: usize = 4 * STEPS;
    const CLASSES: usize = 177;
    let output = music::Output::Autoregressive { features: 5552, units: 128, classes: CLASSES };
    let config = music::Config {
        features: 405,
        embedding: 128,
        cell: Cell::Gru,
        hidden: 128,
        layers: 1,
        dropout: 0.0,
        output,
    };
    let vars = VarMap::new();
    let model = MusicModel::new(&config, builder(&vars, device))?;
    let pieces = Arc::new(PackedSequences::new(&[128; 16])?);
    let bags = |name: &str, count: usize, size: usize, features: u32| -> Result<Bags> {
        let ids: Vec<u32> = random_ids(name, count * size, features)?.to_vec1()?;
        Ok(Bags::new(&ids.chunks(size).collect::<Vec<_>>(), model.weight())?)
    };
    let steps = bags("steps", STEPS, 9, 405)?;
    let notes = Notes {
        chosen: bags("notes", NOTES, 8, 5552)?,
        steps: Tensor::new((0..NOTES as u32).map(|note| note / 4).collect::<Vec<_>>(), device)?,
        mask: Tensor::zeros((NOTES, CLASSES), DType::F32, device)?,
        first: 0,
    };
    let classes = random_ids("classes", NOTES, CLASSES as u32)?.to_device(device)?;
    let loss = move |step| {
        let (states, _) = model.states(&steps, &pieces, None, mode(step))?;
        model.note_loss(&states, &notes, &classes, mode(step))
    };
    Row::new(vars, Adam::adamw(), 1e-3, Box::new(loss))
}

fn textcnn(device: &Device) -> Result<Row> {
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
    let model = TextCnn::new(&config, builder(&vars, device))?;
    sentence_model(model, vars, sentences, [ids, classes], device)
}

const WORDS: u32 = 10_000;

const TRANSLATION: seq2seq::Config = seq2seq::Config {
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

/// Translation at the size of Multi30k, on one fixed batch: image captions of 4 to 19 words.
fn seq2seq(batch: usize, device: &Device) -> Result<Row> {
    // Each sentence and its end.
    let tokens = |purpose: &str, length: fn(usize) -> usize| -> Result<PackedTokens> {
        let lengths: Vec<usize> = (0..batch).map(|i| length(i) + 1).collect();
        let sequences = Arc::new(PackedSequences::new(&lengths)?);
        Ok(PackedTokens { ids: random_ids(purpose, sequences.rows(), WORDS)?.to_device(device)?, sequences })
    };
    let sources = tokens("sources", |i| 4 + 7 * i % 9 + 5 * i % 8)?;
    let targets = tokens("targets", |i| 4 + 11 * i % 9 + 3 * i % 8)?;
    let next = random_ids("next", targets.sequences.rows(), WORDS)?.to_device(device)?;
    let vars = VarMap::new();
    let model = Seq2Seq::new(&TRANSLATION, builder(&vars, device))?;
    let loss = move |step| model.loss(&sources, &targets, &next, 1.0, 0.0, mode(step));
    let row = Row::new(vars, Adam::default(), 1e-3, Box::new(loss))?;
    Ok(Row { clip: Clip::Norm(1.0), ..row })
}

/// A model of sentences, on the same batch in each step.
fn sentence_model(
    model: impl SentenceModel + 'static,
    vars: VarMap,
    sentences: Arc<PackedSequences>,
    [ids, targets]: [Tensor; 2],
    device: &Device,
) -> Result<Row> {
    let (ids, targets) = (ids.to_device(device)?, targets.to_device(device)?);
    let loss = move |step| {
        let logits = model.forward(&ids, &sentences, mode(step))?;
        Cost::SoftmaxCrossEntropy.loss(&logits, &targets)
    };
    Row::new(vars, Adam::adamw(), 1e-3, Box::new(loss))
}

/// Translates 64 captions into 15 words each.
fn translate(beam: usize) -> Result<impl FnMut() -> Result<()>> {
    let vars = VarMap::new();
    let model = Seq2Seq::new(&TRANSLATION, builder(&vars, &Device::Cpu))?;
    // No translation ends early.
    let mut bias = vec![0f32; WORDS as usize];
    bias[Language::END as usize] = -1e9;
    vars.data().lock().unwrap()["output.bias"].set(&Tensor::new(bias, &Device::Cpu)?)?;
    let source = |i: usize| {
        let length = 4 + 7 * i % 9 + 5 * i % 8;
        Ok(random_ids(&format!("source {i}"), length, WORDS)?.to_vec1::<u32>()?)
    };
    let sources: Vec<Vec<u32>> = (0..64).map(source).collect::<Result<_>>()?;
    let decoding = Decoding { beam, max_length: 15, ..Decoding::default() };
    Ok(move || {
        Translator::new(&model, &Device::Cpu).translate(&sources, &decoding)?;
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

/// Median seconds per step over blocks of `block` steps, by default of about 50 ms.
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
