//! The four equations of backpropagation by hand (Nielsen, chapter 2).
//!
//! They are compared with autograd and finite differences.

use super::experiment::{Experiment, Lab};
use super::findings::{Claim, Figure, Findings, Table};
use super::study::{get, gradients, perceptron, set};
use crate::models::mlp::Mlp;
use crate::nn::{Activation, Cost, InitScheme, Mode, Model};
use crate::plots::{Chart, Line, Scale};
use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarMap;
use std::cell::Cell;
use std::hint::black_box;
use std::time::Instant;

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "backprop",
    about: "The four equations by hand, against autograd and finite differences; and what each costs",
    source: "Nielsen, chapter 2",
    book: "Backpropagation needs one forward and one backward pass; finite differences need a forward pass per weight: a \
           million passes for a million weights.",
    uses_images: false,
    run,
};

/// The weights and biases of a network, or the gradients with respect to them.
struct Layers {
    /// `weights[l][j][k]` leads from unit k of layer l to unit j of the next.
    weights: Vec<Vec<Vec<f64>>>,
    biases: Vec<Vec<f64>>,
}

fn sigmoid(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

/// The gradient of the quadratic cost of the input `x` and the wanted output `y`.
fn backprop(network: &Layers, x: &[f64], y: &[f64]) -> Layers {
    let mut activations = vec![x.to_vec()];
    for (weights, biases) in network.weights.iter().zip(&network.biases) {
        let a = &activations[activations.len() - 1];
        let z = |(w, b): (&Vec<f64>, &f64)| w.iter().zip(a).map(|(w, a)| w * a).sum::<f64>() + b;
        activations.push(weights.iter().zip(biases).map(z).map(sigmoid).collect());
    }
    // BP1: the error of the output layer, (a - y) s'(z), where s'(z) = a (1 - a).
    let outputs = &activations[activations.len() - 1];
    let mut delta: Vec<f64> = outputs.iter().zip(y).map(|(a, y)| (a - y) * a * (1.0 - a)).collect();
    let mut gradient = Layers { weights: vec![], biases: vec![] };
    for (weights, inputs) in network.weights.iter().zip(&activations).rev() {
        // BP4: the gradient of a weight is the input times the error. BP3: the gradient of a bias is the error.
        let of_weights = delta.iter().map(|d| inputs.iter().map(|a| a * d).collect()).collect();
        gradient.weights.insert(0, of_weights);
        gradient.biases.insert(0, delta.clone());
        // BP2: the error of the layer below.
        let back = |k: usize| weights.iter().zip(&delta).map(|(w, d)| w[k] * d).sum::<f64>();
        delta = inputs.iter().enumerate().map(|(k, a)| back(k) * a * (1.0 - a)).collect();
    }
    gradient
}

/// A network in f64, and an example for it.
struct Setting {
    sizes: Vec<usize>,
    model: Mlp,
    vars: VarMap,
    xs: Tensor,
    label: Tensor,
    /// Number of forward passes so far.
    passes: Cell<usize>,
}

impl Setting {
    fn new(seed: u64, sizes: &[usize]) -> candle_core::Result<Self> {
        let (model, vars) =
            perceptron(seed, DType::F64, sizes, (Activation::Sigmoid, InitScheme::ScaledNormal))?;
        let x: Vec<f64> = (0..sizes[0]).map(|k| (k as f64 + 1.0).sin()).collect();
        let xs = Tensor::from_vec(x, (1, sizes[0]), &Device::Cpu)?;
        let (sizes, label) = (sizes.to_vec(), Tensor::new(&[1u32], &Device::Cpu)?);
        Ok(Self { sizes, model, vars, xs, label, passes: Cell::new(0) })
    }

    fn names(&self) -> Vec<String> {
        let layers = 0..self.sizes.len() - 1;
        layers.flat_map(|l| ["weight", "bias"].map(|end| format!("layers.{l}.{end}"))).collect()
    }

    /// A forward pass.
    fn cost(&self) -> candle_core::Result<Tensor> {
        self.passes.set(self.passes.get() + 1);
        Cost::Quadratic.loss(&self.model.forward(&self.xs, Mode::Evaluate)?, &self.label)
    }

    fn autograd(&self) -> candle_core::Result<Vec<f64>> {
        Ok(gradients(&self.cost()?, &self.vars, &self.names())?.concat())
    }

    fn by_hand(&self) -> candle_core::Result<Vec<f64>> {
        let mut network = Layers { weights: vec![], biases: vec![] };
        for (l, inputs) in self.sizes[..self.sizes.len() - 1].iter().enumerate() {
            let weights = get(&self.vars, &format!("layers.{l}.weight"))?;
            network.weights.push(weights.chunks(*inputs).map(<[f64]>::to_vec).collect());
            network.biases.push(get(&self.vars, &format!("layers.{l}.bias"))?);
        }
        let outputs = self.sizes[self.sizes.len() - 1];
        let y: Vec<f64> = (0..outputs).map(|class| f64::from(u8::from(class == 1))).collect();
        let gradient = backprop(&network, &self.xs.flatten_all()?.to_vec1::<f64>()?, &y);
        let layers = gradient.weights.iter().zip(&gradient.biases);
        Ok(layers.flat_map(|(weights, biases)| [weights.concat(), biases.clone()].concat()).collect())
    }

    /// Central differences: two forward passes per parameter.
    fn differences(&self) -> candle_core::Result<Vec<f64>> {
        const STEP: f64 = 1e-5;
        let mut gradient = vec![];
        for name in self.names() {
            let values = get(&self.vars, &name)?;
            for at in 0..values.len() {
                let cost = |step: f64| {
                    let mut moved = values.clone();
                    moved[at] += step;
                    set(&self.vars, &name, &moved)?;
                    self.cost()?.to_scalar::<f64>()
                };
                gradient.push((cost(STEP)? - cost(-STEP)?) / (2.0 * STEP));
            }
            set(&self.vars, &name, &values)?;
        }
        Ok(gradient)
    }
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// The median time of `count` calls of `work`, in milliseconds.
fn median<T>(count: usize, mut work: impl FnMut() -> candle_core::Result<T>) -> candle_core::Result<f64> {
    let mut times = (0..count)
        .map(|_| {
            let start = Instant::now();
            black_box(work()?);
            Ok(1e3 * start.elapsed().as_secs_f64())
        })
        .collect::<candle_core::Result<Vec<f64>>>()?;
    times.sort_by(f64::total_cmp);
    Ok(times[count / 2])
}

fn run(lab: &Lab) -> Result<Findings> {
    let small = Setting::new(lab.seed(), &[4, 5, 6, 3])?;
    let (by_hand, autograd) = (small.by_hand()?, small.autograd()?);
    let passes_of_autograd = small.passes.take();
    let differences = small.differences()?;
    let passes_of_differences = small.passes.take();
    let errors = [largest_difference(&by_hand, &autograd), largest_difference(&differences, &autograd)];
    let mut table =
        Table::new("gradients", &["gradient of [4, 5, 6, 3]", "parameters", "differs from autograd by"]);
    for (name, error) in ["the four equations by hand", "finite differences"].into_iter().zip(errors) {
        table.push([name.to_string(), autograd.len().to_string(), format!("{error:.1e}")]);
    }
    let mut times = Table::new(
        "times",
        &["units per layer", "parameters", "forward pass in ms", "backprop in ms", "differences in ms"],
    );
    let (mut backprop, mut differences) = (vec![], vec![]);
    let mut ratios = [0.0; 2];
    let widths: &[usize] = lab.scale(&[4, 8], &[4, 8, 16, 32, 64]);
    for &width in widths {
        let setting = Setting::new(lab.seed(), &[width; 3])?;
        let parameters = setting.autograd()?.len();
        let forward = median(101, || setting.cost()?.to_scalar::<f64>())?;
        let fast = median(101, || setting.autograd())?;
        let slow = median(5, || setting.differences())?;
        times.push([
            width.to_string(),
            parameters.to_string(),
            format!("{forward:.4}"),
            format!("{fast:.4}"),
            format!("{slow:.2}"),
        ]);
        backprop.push((parameters as f64, fast));
        differences.push((parameters as f64, slow));
        ratios = [fast / forward, slow / forward];
    }
    let chart = Chart {
        title: "Time of one gradient",
        x_label: "parameters",
        y_label: "milliseconds",
        x_scale: Scale::Log,
        y_scale: Scale::Log,
        lines: vec![Line::new("backpropagation", backprop), Line::new("finite differences", differences)],
    };
    Ok(Findings {
        lines: vec![
            format!(
                "All three agree. For {} parameters, autograd ran the network forward {passes_of_autograd} time and finite \
                 differences {passes_of_differences} times.",
                autograd.len()
            ),
            format!(
                "With {} units per layer, backpropagation took as long as {:.1} forward passes, finite differences as long as \
                 {:.0} (medians).",
                widths[widths.len() - 1],
                ratios[0],
                ratios[1]
            ),
        ],
        tables: vec![table, times],
        figures: vec![Figure::charts(
            "times",
            "Time of the gradient of a network with two layers of equal width.",
            &[chart],
        )?],
        claim: Claim::new(
            errors[0] <= 1e-14 && errors[1] <= 1e-8,
            format!(
                "the four equations by hand differ from autograd by at most {:.1e}, finite differences by {:.1e}",
                errors[0], errors[1]
            ),
        ),
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_four_equations_equal_autograd_and_finite_differences() {
        let findings = super::super::quick("backprop");
        // 4 * 5 + 5 + 5 * 6 + 6 + 6 * 3 + 3 parameters.
        assert!(
            findings.lines[0].contains("forward 1 time and finite differences 164 times"),
            "{:?}",
            findings.lines
        );
    }
}
