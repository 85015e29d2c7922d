//! The vanishing gradient (Hochreiter 1991; Bengio, Simard and Frasconi 1994), made visible.
//!
//! The task is to classify a sequence of symbols by its first symbol; the others are noise. The plot shows the norm of
//! the loss's gradient with respect to the state after each symbol, for a tanh network, a GRU and an LSTM, before and
//! after training.

use super::Outcome;
use super::process::STOP;
use super::recipe::{GRADIENT_FLOW, Training};
use super::sentences::SentenceData;
use crate::nn::{
    Cell, Cost, Embedding, Linear, Mode, PackedSequences, Recurrent, RecurrentConfig, RecurrentState,
    embedding, linear, recurrent, seeded_var_builder,
};
use crate::plots::{self, Chart, Line};
use crate::rng;
use crate::train::{Run, say};
use anyhow::{Result, ensure};
use candle_core::{D, DType, Device, Module, Tensor, Var};
use candle_nn::VarMap;
use rand::Rng;
use serde_json::json;
use std::sync::Arc;

/// Length of a sequence.
const STEPS: usize = 30;
/// Number of different symbols; the first ones are the classes.
const SYMBOLS: usize = 8;
const CLASSES: usize = 2;
const BATCH: usize = 64;
const TRAINING_STEPS: u64 = 1000;

struct Network {
    embedding: Embedding,
    recurrent: Recurrent,
    output: Linear,
}

impl Network {
    /// Computes logits after `symbols` `(steps, BATCH)`, which follow `state`, and the state after them.
    fn forward(
        &self,
        symbols: &Tensor,
        state: Option<&RecurrentState>,
    ) -> candle_core::Result<(Tensor, RecurrentState)> {
        let sequences = Arc::new(PackedSequences::new(&vec![symbols.dim(0)?; BATCH])?);
        let xs = self.embedding.forward(&symbols.flatten_all()?)?;
        let (_, state) = self.recurrent.forward(&xs, &sequences, state, Mode::Evaluate)?;
        Ok((self.output.forward(&state.last_layer(1)?)?, state))
    }
}

/// Symbols `(STEPS, BATCH)` and classes `(BATCH)`.
fn batch(seed: u64, purpose: &str, device: &Device) -> candle_core::Result<(Tensor, Tensor)> {
    let mut rng = rng::stream(seed, purpose);
    let mut symbols: Vec<u32> =
        (0..STEPS * BATCH).map(|_| rng.random_range(CLASSES as u32..SYMBOLS as u32)).collect();
    let classes: Vec<u32> = (0..BATCH).map(|_| rng.random_range(0..CLASSES as u32)).collect();
    symbols[..BATCH].copy_from_slice(&classes);
    Ok((Tensor::from_vec(symbols, (STEPS, BATCH), device)?, Tensor::new(classes, device)?))
}

/// The base-10 logarithm of the gradient's norm with respect to the state after each symbol.
fn norms(network: &Network, symbols: &Tensor, classes: &Tensor) -> candle_core::Result<Vec<(f64, f64)>> {
    let mut points = vec![];
    for step in 1..STEPS {
        let (_, state) = network.forward(&symbols.narrow(0, 0, step)?, None)?;
        // A variable, so that the backward pass keeps its gradient.
        let hidden = Var::from_tensor(&state.hidden.detach())?;
        let cell = state.cell.map(|cell| Var::from_tensor(&cell.detach())).transpose()?;
        let leaf = RecurrentState {
            hidden: hidden.as_tensor().clone(),
            cell: cell.as_ref().map(|c| c.as_tensor().clone()),
        };
        let (logits, _) = network.forward(&symbols.narrow(0, step, STEPS - step)?, Some(&leaf))?;
        let grads = Cost::SoftmaxCrossEntropy.loss(&logits, classes)?.backward()?;
        let mut square = 0.0;
        for grad in std::iter::once(&hidden).chain(&cell).filter_map(|var| grads.get(var)) {
            square += grad.sqr()?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        }
        points.push((step as f64, square.sqrt().log10()));
    }
    Ok(points)
}

/// Trains the three networks, prints their accuracies, and draws `gradient-flow.svg` into a run folder.
pub(super) fn plot(training: &Training<SentenceData>) -> Result<Outcome> {
    let (options, device) = (training.settings.train_options(), &training.device);
    ensure!(
        training.start.resume.is_none(),
        "--resume: a plot of the gradient flow can't be resumed: start a new one"
    );
    let config = json!({
        GRADIENT_FLOW: { "steps": STEPS, "seed": options.seed, "training_steps": TRAINING_STEPS },
        "settings": training.settings.fields,
    });
    let run = Run::create(training.settings.binary, training.start.out.as_deref(), &config)?;
    say(&format!(
        "gradient flow: classify sequences of {STEPS} symbols by the first one; run folder {}",
        run.dir().display()
    ));
    let (mut before, mut after) = (vec![], vec![]);
    for (name, cell) in [("rnn", Cell::Tanh), ("gru", Cell::Gru), ("lstm", Cell::Lstm)] {
        let vars = VarMap::new();
        let vb = seeded_var_builder(&vars, options.seed, DType::F32, device);
        let config = RecurrentConfig {
            cell,
            features: 16,
            hidden: 32,
            layers: 1,
            bidirectional: false,
            dropout: 0.0,
            // An open forget gate, as Jozefowicz et al. (2015) recommend.
            forget_bias: (cell == Cell::Lstm).then_some(1.0),
        };
        let network = Network {
            embedding: embedding(SYMBOLS, 16, vb.pp("embedding"))?,
            recurrent: recurrent(&config, vb.pp("recurrent"))?,
            output: linear(32, CLASSES, vb.pp("output"))?,
        };
        let (symbols, classes) = batch(options.seed, "gradient-flow/test", device)?;
        before.push(Line::new(name, norms(&network, &symbols, &classes)?));
        let mut optimizer = options.optimizer(&vars)?;
        let clip = options.options(1).clip;
        for step in 0..TRAINING_STEPS {
            if STOP.is_requested() {
                say("interrupted; this plot can't be resumed");
                return Ok(Outcome::Interrupted);
            }
            let (symbols, classes) = batch(options.seed, &format!("gradient-flow/step {step}"), device)?;
            let loss = Cost::SoftmaxCrossEntropy.loss(&network.forward(&symbols, None)?.0, &classes)?;
            optimizer.backward_step(&loss, options.learning_rate, clip)?;
        }
        after.push(Line::new(name, norms(&network, &symbols, &classes)?));
        let predicted = network.forward(&symbols, None)?.0.argmax(D::Minus1)?;
        let accuracy = predicted.eq(&classes)?.to_dtype(DType::F32)?.mean_all()?.to_scalar::<f32>()?;
        say(&format!("{name:<4} accuracy {:6.2}% after {TRAINING_STEPS} steps", 100.0 * accuracy));
    }
    let chart = |title, lines| Chart {
        title,
        x_label: "symbol",
        y_label: "log10 of the gradient norm",
        lines,
        ..Chart::default()
    };
    let plot = plots::line_charts(&[chart("Before training", before), chart("After training", after)])?;
    run.write("gradient-flow.svg", &plot)?;
    say(&format!("gradient-flow.svg is in the run folder {}", run.dir().display()));
    Ok(Outcome::Done)
}
