//! Times single operations, forward alone and with the gradients of all inputs.
//!
//! `cargo bench --bench ops -- [--threads N] [--seconds S] [NAME...]` prints one line of JSON for each operation in
//! `benches/ops.json` whose name contains one of the given texts. `benches/ops.py` does the same in PyTorch, runs both
//! alternately and prints a table.

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor, Var};
use candle_textbook::cli;
use candle_textbook::ops::{
    self, Conv2dConfig, Epilogue, PackedSequences, Pool2dConfig, RunningAverages, TimePooling,
};
use clap::Parser;
use serde::Deserialize;
use serde_json::json;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Parser)]
struct Arguments {
    /// Texts that the names of the operations contain; default: all operations
    names: Vec<String>,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Time for each measurement
    #[arg(long, default_value_t = 0.3)]
    seconds: f64,
    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// An entry of `benches/ops.json`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    op: String,
    #[serde(default)]
    xs: Vec<usize>,
    #[serde(default)]
    weight: Vec<usize>,
    /// Number of rows that are looked up.
    #[serde(default)]
    ids: usize,
    #[serde(default = "ones")]
    kernel: (usize, usize),
    #[serde(default = "ones")]
    stride: (usize, usize),
    #[serde(default)]
    padding: (usize, usize),
    #[serde(default = "one")]
    groups: usize,
}

fn ones() -> (usize, usize) {
    (1, 1)
}

fn one() -> usize {
    1
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let entries: Vec<Entry> = serde_json::from_str(include_str!("ops.json"))?;
    let wanted = |entry: &&Entry| {
        arguments.names.is_empty() || arguments.names.iter().any(|name| entry.name.contains(name))
    };
    cli::on_threads(Some(arguments.threads), || {
        for entry in entries.iter().filter(wanted) {
            let (inputs, run) = operation(entry)?;
            let time = Duration::from_secs_f64(arguments.seconds);
            let forward = median(time, || Ok(_ = black_box(ops::no_grad(&run)?)))?;
            let tables = if entry.op == "embedding" { vec![inputs[0].id()] } else { vec![] };
            let both = median(time, || Ok(_ = black_box(ops::backward(&run()?, tables.clone())?)))?;
            println!("{}", json!({ "name": entry.name, "forward": forward, "both": both }));
        }
        Ok(())
    })
}

/// The inputs that get gradients, and the operation.
type Operation = (Vec<Var>, Box<dyn Fn() -> candle_core::Result<Tensor>>);

fn operation(entry: &Entry) -> Result<Operation> {
    let random = |shape: &[usize]| Var::randn(0f32, 1., shape, &Device::Cpu);
    let ids = |count: usize, below: usize| {
        let ids: Vec<u32> = (0..count).map(|i| (i * 7919 % below) as u32).collect();
        Tensor::from_vec(ids, count, &Device::Cpu)
    };
    let (stride, padding) = (entry.stride, entry.padding);
    let window = Pool2dConfig { kernel: entry.kernel, stride, padding };
    let shape = &entry.xs;
    Ok(match entry.op.as_str() {
        "conv2d" => {
            let (xs, weight, bias) = (random(shape)?, random(&entry.weight)?, random(&entry.weight[..1])?);
            let config = Conv2dConfig { stride, padding, groups: entry.groups, ..Default::default() };
            let inputs = vec![xs.clone(), weight.clone(), bias.clone()];
            (inputs, Box::new(move || ops::conv2d(&xs, &weight, Some(&bias), config)))
        }
        "linear" => {
            let (xs, weight, bias) = (random(shape)?, random(&entry.weight)?, random(&entry.weight[..1])?);
            let inputs = vec![xs.clone(), weight.clone(), bias.clone()];
            (inputs, Box::new(move || ops::linear(&xs, &weight, Some(&bias))))
        }
        "max_pool2d" => {
            let xs = random(shape)?;
            (vec![xs.clone()], Box::new(move || ops::max_pool2d(&xs, window)))
        }
        "avg_pool2d" => {
            let xs = random(shape)?;
            (vec![xs.clone()], Box::new(move || ops::avg_pool2d(&xs, window)))
        }
        "max_over_time" => {
            let &[sequences, length, features] = shape.as_slice() else {
                bail!("{}: wrong shape", entry.name)
            };
            let xs = random(&[sequences * length, features])?;
            let sequences = Arc::new(PackedSequences::new(&vec![length; sequences])?);
            (vec![xs.clone()], Box::new(move || ops::pool_over_time(&xs, &sequences, TimePooling::Max)))
        }
        "batch_norm" => {
            let channels = *shape.get(1).context("batch_norm: no channels")?;
            let (xs, weight, bias) = (random(shape)?, random(&[channels])?, random(&[channels])?);
            let (mean, variance) = (random(&[channels])?, Var::ones(channels, DType::F32, &Device::Cpu)?);
            let inputs = vec![xs.clone(), weight.clone(), bias.clone()];
            (
                inputs,
                Box::new(move || {
                    let averages = RunningAverages { mean: &mean, variance: &variance, momentum: 0.1 };
                    ops::batch_norm_training(&xs, &weight, &bias, 1e-5, averages, Epilogue::default())
                }),
            )
        }
        "cross_entropy" => {
            let (xs, targets) = (random(shape)?, ids(shape[0], shape[1])?);
            (vec![xs.clone()], Box::new(move || ops::softmax_cross_entropy(&xs, &targets, 0.)))
        }
        "embedding" => {
            let (table, ids) = (random(&entry.weight)?, ids(entry.ids, entry.weight[0])?);
            (vec![table.clone()], Box::new(move || ops::embedding(&table, &ids)))
        }
        op => bail!("{}: unknown operation {op}", entry.name),
    })
}

/// Measures `work` for `time`: the median seconds over blocks of a few milliseconds.
fn median(time: Duration, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    let mut warm = 0;
    while warm < 2 || start.elapsed() < time / 3 {
        work()?;
        warm += 1;
    }
    let block = (0.005 * f64::from(warm) / start.elapsed().as_secs_f64()).ceil() as u32;
    let (mut blocks, start) = (vec![], Instant::now());
    while blocks.len() < 3 || start.elapsed() < time {
        let start = Instant::now();
        (0..block).try_for_each(|_| work())?;
        blocks.push(start.elapsed().as_secs_f64() / f64::from(block));
    }
    blocks.sort_by(f64::total_cmp);
    Ok(blocks[blocks.len() / 2])
}
