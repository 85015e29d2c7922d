//! How long recurrent networks remember (Hochreiter and Schmidhuber 1997).
//!
//! The tasks are a symbol to copy, and two numbers to add, after a growing gap.

use super::experiment::{Experiment, Lab};
use super::findings::{Claim, Figure, Findings, Table};
use super::study::{build, get, set};
use crate::nn::{Cell, Cost, Linear, Mode, PackedSequences, Recurrent, RecurrentConfig, linear, recurrent};
use crate::optim::{Adam, Clip, Method, Optimizer};
use crate::plots::{Chart, Line, Scale};
use crate::rng;
use anyhow::Result;
use candle_core::{D, DType, Device, Module, Tensor};
use candle_nn::{VarBuilder, VarMap};
use rand::Rng;
use std::sync::Arc;

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "memory",
    about: "Copying a symbol and adding two numbers after ever longer gaps: how far rnn, gru and lstm remember",
    source: "Hochreiter and Schmidhuber 1997; Ng, sequence models; Tallec and Ollivier 2018, arXiv:1804.11188",
    book: "Simple recurrent networks fail from gaps of about 10 steps on; the LSTM solves the adding problem at 100 to 1,000.",
    uses_images: false,
    run,
};

const SYMBOLS: usize = 4;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Recalls the first symbol after a gap of blanks.
    Copy,
    /// Adds two marked numbers among many: the first, and one from the middle of the gap.
    Add,
}

impl Kind {
    fn name(self) -> &'static str {
        if self == Self::Copy { "copy" } else { "add" }
    }

    /// Values per step, and outputs.
    fn sizes(self) -> (usize, usize) {
        if self == Self::Copy { (SYMBOLS + 1, SYMBOLS) } else { (2, 1) }
    }
}

struct Network {
    recurrent: Recurrent,
    output: Linear,
}

impl Network {
    fn new(kind: Kind, cell: Cell, hidden: usize, vb: VarBuilder) -> candle_core::Result<Self> {
        let (features, outputs) = kind.sizes();
        let config = RecurrentConfig {
            cell,
            features,
            hidden,
            layers: 1,
            bidirectional: false,
            dropout: 0.0,
            forget_bias: None,
        };
        Ok(Self {
            recurrent: recurrent(&config, vb.pp("recurrent"))?,
            output: linear(hidden, outputs, vb.pp("output"))?,
        })
    }

    /// Outputs `(batch, outputs)` after the last step of `xs` `(steps * batch, features)`.
    fn forward(&self, xs: &Tensor, batch: usize) -> candle_core::Result<Tensor> {
        let sequences = Arc::new(PackedSequences::new(&vec![xs.dim(0)? / batch; batch])?);
        let (_, state) = self.recurrent.forward(xs, &sequences, None, Mode::Evaluate)?;
        self.output.forward(&state.last_layer(1)?)
    }
}

/// Generates inputs `(steps * batch, features)` and the target outputs.
fn batch(kind: Kind, gap: usize, size: usize, purpose: &str) -> candle_core::Result<(Tensor, Tensor)> {
    let mut rng = rng::stream(0, purpose);
    let (features, _) = kind.sizes();
    let mut xs = vec![0f32; (gap + 1) * size * features];
    let at = |step: usize, sequence: usize| (step * size + sequence) * features;
    let (device, shape) = (&Device::Cpu, ((gap + 1) * size, features));
    if kind == Kind::Copy {
        let symbols: Vec<u32> = (0..size).map(|_| rng.random_range(0..SYMBOLS as u32)).collect();
        for (sequence, &symbol) in symbols.iter().enumerate() {
            xs[at(0, sequence) + symbol as usize] = 1.0;
            (1..=gap).for_each(|step| xs[at(step, sequence) + SYMBOLS] = 1.0);
        }
        return Ok((Tensor::from_vec(xs, shape, device)?, Tensor::new(symbols, device)?));
    }
    let mut sums = vec![0f32; size];
    for (sequence, sum) in sums.iter_mut().enumerate() {
        (0..=gap).for_each(|step| xs[at(step, sequence)] = rng.random_range(0.0..1.0));
        for step in [0, rng.random_range(1..=gap.div_ceil(2))] {
            xs[at(step, sequence) + 1] = 1.0;
            *sum += xs[at(step, sequence)];
        }
    }
    Ok((Tensor::from_vec(xs, shape, device)?, Tensor::from_vec(sums, (size, 1), device)?))
}

/// The part of the task that is solved, 0 to 1: accuracy above chance, or explained variance.
fn score(kind: Kind, outputs: &Tensor, wanted: &Tensor) -> candle_core::Result<f64> {
    if kind == Kind::Copy {
        let right =
            outputs.argmax(D::Minus1)?.eq(wanted)?.to_dtype(DType::F64)?.mean_all()?.to_scalar::<f64>()?;
        let chance = 1.0 / SYMBOLS as f64;
        return Ok(((right - chance) / (1.0 - chance)).max(0.0));
    }
    let error = (outputs - wanted)?.sqr()?.mean_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
    // The variance of the sum of two numbers between 0 and 1 is 1/6.
    Ok((1.0 - 6.0 * error).max(0.0))
}

/// Sets gate biases to keep the state for about the length of the gap (Tallec and Ollivier 2018).
fn remember(vars: &VarMap, cell: Cell, gap: usize, hidden: usize) -> candle_core::Result<()> {
    // The indices of the gates that keep the state and of those that let new input in, in the parameters' order.
    let (keeps, writes) = match cell {
        Cell::Lstm => (1, Some(0)),
        Cell::Gru => (1, None),
        _ => return Ok(()),
    };
    let name = "recurrent.bias_ih_l0";
    let mut biases = get(vars, name)?;
    biases[keeps * hidden..][..hidden].fill((gap as f64).ln());
    if let Some(writes) = writes {
        biases[writes * hidden..][..hidden].fill(-(gap as f64).ln());
    }
    set(vars, name, &biases)
}

/// Trains until the task is solved or the steps are used up.
///
/// Returns the score on new sequences, and the number of steps.
fn train(lab: &Lab, kind: Kind, cell: Cell, gap: usize) -> Result<(f64, usize)> {
    let (size, hidden) = lab.scale((16, 16), (32, 32));
    let most = lab.scale(240, if kind == Kind::Copy { 300 } else { 600 });
    let (network, vars) = build(lab.seed(), DType::F32, |vb| Network::new(kind, cell, hidden, vb))?;
    remember(&vars, cell, gap, hidden)?;
    let mut optimizer = Optimizer::new(Method::Adam(Adam::default()), &vars)?;
    let test = batch(kind, gap, 100, "memory/test")?;
    for step in 1..=most {
        let (xs, wanted) = batch(kind, gap, size, &format!("memory/step {step}"))?;
        let outputs = network.forward(&xs, size)?;
        let loss = match kind {
            Kind::Copy => Cost::SoftmaxCrossEntropy.loss(&outputs, &wanted)?,
            Kind::Add => (outputs - wanted)?.sqr()?.mean_all()?,
        };
        optimizer.backward_step(&loss, 0.01, Clip::Norm(1.0))?;
        if step % 20 == 0 || step == most {
            let score = score(kind, &network.forward(&test.0, 100)?, &test.1)?;
            if score >= 0.95 || step == most {
                return Ok((score, step));
            }
        }
    }
    Ok((0.0, most))
}

fn run(lab: &Lab) -> Result<Findings> {
    let gaps: &[usize] = lab.scale(&[200], &[10, 30, 100, 200, 500]);
    let kinds: &[Kind] = lab.scale(&[Kind::Copy], &[Kind::Copy, Kind::Add]);
    let cells = [("rnn", Cell::Tanh), ("gru", Cell::Gru), ("lstm", Cell::Lstm)];
    let mut table = Table::new("memory", &["task", "gap", "network", "solved", "steps"]);
    // The scores after 100 steps and more.
    let (mut charts, mut long) = (vec![], [const { vec![] }; 3]);
    for &kind in kinds {
        let mut lines = cells.map(|(name, _)| Line::new(name, vec![]));
        for &gap in gaps {
            for (at, (name, cell)) in cells.into_iter().enumerate() {
                let (score, steps) = train(lab, kind, cell, gap)?;
                let cells =
                    [gap.to_string(), name.to_string(), format!("{:.0}%", 100.0 * score), steps.to_string()];
                table.push([kind.name().to_string()].into_iter().chain(cells));
                lines[at].points.push((gap as f64, 100.0 * score));
                if gap >= 100 {
                    long[at].push(score);
                }
            }
        }
        let (title, y_label) = match kind {
            Kind::Copy => ("Copying a symbol", "accuracy beyond chance in %"),
            Kind::Add => ("Adding two numbers", "variance explained in %"),
        };
        let (x_label, x_scale) = ("steps to remember", Scale::Log);
        charts.push(Chart { title, x_label, y_label, x_scale, lines: lines.into(), ..Chart::default() });
    }
    let simple = long[0].iter().sum::<f64>() / long[0].len() as f64;
    let lstm = long[2].iter().fold(1.0, |least: f64, &score| least.min(score));
    Ok(Findings {
        lines: vec!["The state of a simple network fades or explodes by a factor at each step. Gates keep the state, and with \
                     it the gradient, as long as they are open."
            .into()],
        tables: vec![table],
        figures: vec![Figure::charts("memory", "How much of the task each network solves, over the gap.", &charts)?],
        claim: Claim::new(
            lstm >= 0.9 && simple < 0.5,
            format!(
                "after 100 steps and more the LSTM solves at least {:.0}% of a task, the simple network {:.0}% on average",
                100.0 * lstm,
                100.0 * simple
            ),
        ),
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_lstm_remembers_over_100_steps_and_a_simple_network_does_not() {
        super::super::quick("memory");
    }
}
