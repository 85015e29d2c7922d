//! Initial weights: how large they may be, and why they must differ.
//!
//! Nielsen, chapter 3; Glorot and Bengio 2010; He et al. 2015.

use super::experiment::{Experiment, Lab};
use super::findings::{Claim, Figure, Findings, Table};
use super::study::{Study, build, get, over_epochs, percent, set};
use crate::data::Images;
use crate::models::mlp::{Config, Mlp};
use crate::nn::{Activation, InitScheme, Mode, Model, seeded_var_builder};
use crate::plots::{Chart, Line};
use anyhow::Result;
use candle_core::{DType, Device, Module};
use candle_nn::VarMap;

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "initialization",
    about: "Initial weights N(0, 1), N(0, 1/n), Xavier, Kaiming, all ones and all zeros",
    source: "Nielsen, chapter 3: weight initialization; Glorot and Bengio 2010; He et al. 2015",
    book: "On MNIST, [784, 30, 10]: almost 93% after one epoch with N(0, 1/n), under 87% with N(0, 1); both end near 96%.",
    uses_images: true,
    run,
};

/// A way to initialise: its name, the distribution, and the constant for all weights, if any.
type Start = (&'static str, InitScheme, Option<f64>);

const STARTS: [Start; 6] = [
    ("N(0, 1)", InitScheme::StandardNormal, None),
    ("N(0, 1/n)", InitScheme::ScaledNormal, None),
    ("Xavier", InitScheme::Xavier, None),
    ("Kaiming", InitScheme::Kaiming, None),
    ("all ones", InitScheme::PyTorch, Some(1.0)),
    ("all zeros", InitScheme::PyTorch, Some(0.0)),
];

/// Creates a network with the weights and biases of a start.
fn network(seed: u64, sizes: &[usize], (_, init, constant): Start) -> candle_core::Result<(Mlp, VarMap)> {
    let (model, vars) = build(seed, DType::F32, |vb| Mlp::new(&config(sizes, init), vb))?;
    if let Some(value) = constant {
        for (layer, pair) in sizes.windows(2).enumerate() {
            set(&vars, &format!("layers.{layer}.weight"), &vec![value; pair[0] * pair[1]])?;
            set(&vars, &format!("layers.{layer}.bias"), &vec![value; pair[1]])?;
        }
    }
    Ok((model, vars))
}

fn config(sizes: &[usize], init: InitScheme) -> Config {
    Config { sizes: sizes.to_vec(), activation: Activation::Sigmoid, init, dropout: 0.0 }
}

fn run(lab: &Lab) -> Result<Findings> {
    let data = lab.digits(lab.scale(400, 10_000), lab.scale(300, 2_000))?;
    let epochs = lab.scale(3, 12);
    let mut table = Table::new(
        "initialization",
        &["start", "after epoch 1", "at the end", "different hidden units", "saturated in layer 1"],
    );
    let (mut lines, mut histograms, mut means, mut units) = (vec![], vec![], vec![], vec![]);
    for start in STARTS {
        let (name, sizes) = (start.0, [784, 30, 10]);
        let (model, vars) = network(lab.seed(), &sizes, start)?;
        let folder = name.replace([' ', '(', ')', ',', '/'], "");
        let points = Study::new(lab, &data, epochs, 0.1).train(lab, &folder, &model, &vars)?;
        let accuracies: Vec<f64> = points.iter().map(|point| 100.0 * point.test.metric).collect();
        let (layers, saturated) = activations(lab.seed(), &data.1, start)?;
        means.push(accuracies.iter().sum::<f64>() / (100 * epochs) as f64);
        units.push(different_units(&vars, sizes[1])?);
        table.push([
            name.to_string(),
            format!("{:.1}%", accuracies[0]),
            format!("{:.1}%", accuracies[epochs - 1]),
            units[units.len() - 1].to_string(),
            percent(saturated),
        ]);
        lines.push(Line::new(name, over_epochs(accuracies)));
        histograms.push((name, layers));
    }
    let accuracy = Chart {
        title: "Accuracy",
        x_label: "epoch",
        y_label: "accuracy on test images in %",
        lines,
        ..Chart::default()
    };
    let names = ["first hidden layer", "second", "third"];
    let histograms: Vec<Chart> = histograms
        .into_iter()
        .map(|(title, layers)| Chart {
            title,
            x_label: "activation",
            y_label: "share of the units in %",
            lines: names.iter().zip(layers).map(|(name, points)| Line::new(name, points)).collect(),
            ..Chart::default()
        })
        .collect();
    Ok(Findings {
        lines: vec![
            "With N(0, 1) the weighted inputs of a layer with n inputs have the deviation sqrt(n): sigmoid units start \
             saturated and learn slowly."
                .into(),
            "Equal weights stay equal: all hidden units compute the same value, so the layer is equivalent to a single unit.".into(),
        ],
        tables: vec![table],
        figures: vec![
            Figure::charts("accuracy", "Accuracy over the epochs for each start.", &[accuracy])?,
            Figure::charts(
                "activations",
                "Activations of test images in the hidden layers of [784, 100, 100, 100, 10] before training.",
                &histograms,
            )?,
        ],
        claim: Claim::new(
            means[1] >= means[0] + 0.02 && units[4] == 1 && units[5] == 1,
            format!(
                "over the epochs, the mean accuracy is {} with N(0, 1/n) and {} with N(0, 1); {} and {} of 30 hidden \
                 units are distinct after starting from all ones and from all zeros",
                percent(means[1]),
                percent(means[0]),
                units[4],
                units[5]
            ),
        ),
    })
}

/// Number of hidden units whose weights differ from all others'.
fn different_units(vars: &VarMap, units: usize) -> Result<usize> {
    let weights = get(vars, "layers.0.weight")?;
    let mut rows: Vec<&[f64]> = weights.chunks(weights.len() / units).collect();
    rows.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    // Rounding differs from unit to unit.
    let differ = |a: &[f64], b: &[f64]| a.iter().zip(b).any(|(a, b)| (a - b).abs() > 1e-3);
    Ok(1 + rows.windows(2).filter(|pair| differ(pair[0], pair[1])).count())
}

/// The percentage of the units around each activation.
type Histogram = Vec<(f64, f64)>;

/// Histograms of each hidden layer's activations, and the saturated fraction of the first layer.
///
/// A unit is saturated below 0.05 or above 0.95.
fn activations(seed: u64, images: &Images, start: Start) -> Result<(Vec<Histogram>, f64)> {
    const BINS: usize = 20;
    let sizes = [784, 100, 100, 100, 10];
    let (_, vars) = network(seed, &sizes, start)?;
    let all: Vec<u32> = (0..images.len().min(200) as u32).collect();
    let (xs, _) = images.batch(&all, &Device::Cpu)?;
    let (mut layers, mut saturated) = (vec![], 0.0);
    for hidden in 1..=3 {
        // A network of the first layers only, which ends with the weighted inputs of the hidden layer.
        let vb = seeded_var_builder(&vars, seed, DType::F32, &Device::Cpu);
        let part = Mlp::new(&config(&sizes[..=hidden], start.1), vb)?;
        let outputs = Activation::Sigmoid.forward(&part.forward(&xs, Mode::Evaluate)?)?;
        let values: Vec<f32> = outputs.flatten_all()?.to_vec1()?;
        let mut counts = [0.0; BINS];
        for value in &values {
            counts[((value * BINS as f32) as usize).min(BINS - 1)] += 100.0 / values.len() as f64;
        }
        if hidden == 1 {
            saturated = (counts[0] + counts[BINS - 1]) / 100.0;
        }
        let centre = |bin: usize| (bin as f64 + 0.5) / BINS as f64;
        layers.push(counts.iter().enumerate().map(|(bin, &share)| (centre(bin), share)).collect());
    }
    Ok((layers, saturated))
}

#[cfg(test)]
mod tests {
    #[test]
    fn scaled_weights_start_faster_and_equal_weights_stay_equal() {
        super::super::quick("initialization");
    }
}
