//! A sigmoid neuron learns to turn 1 into 0 (Nielsen, chapter 3), quickly or slowly.
//!
//! The speed depends on the cost and the starting point.

use super::experiment::{Experiment, Lab};
use super::findings::{Claim, Figure, Findings, Table};
use super::study::{build, set};
use crate::nn::{Activation, Linear, linear};
use crate::optim::{Clip, Method, Optimizer, Sgd};
use crate::plots::{Animation, Chart, Line, animation};
use anyhow::Result;
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::VarMap;

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "neuron",
    about: "One neuron learns 1 -> 0 from a good and a bad start, with the quadratic cost and with cross-entropy",
    source: "Nielsen, chapter 3: the cross-entropy cost function",
    book: "With the quadratic cost at a rate of 0.15, 300 epochs take the output from 0.82 to 0.09, but only from 0.98 to \
           0.20; with cross-entropy the bad start learns fastest.",
    uses_images: false,
    run,
};

const EPOCHS: usize = 300;
const STARTS: [(f64, f64); 2] = [(0.6, 0.9), (2.0, 2.0)];

#[derive(Clone, Copy, PartialEq)]
enum NeuronCost {
    Quadratic,
    CrossEntropy,
}

impl NeuronCost {
    /// The book's learning rate.
    fn rate(self) -> f64 {
        if self == Self::Quadratic { 0.15 } else { 0.005 }
    }

    fn name(self) -> &'static str {
        if self == Self::Quadratic { "quadratic" } else { "cross-entropy" }
    }

    /// The cost of the weighted input `z`, when the output should be 0: `a^2 / 2` or `-ln(1 - a)`.
    fn of(self, z: &Tensor) -> candle_core::Result<Tensor> {
        let a = Activation::Sigmoid.forward(z)?;
        match self {
            Self::Quadratic => (a.sqr()? / 2.0)?.sum_all(),
            Self::CrossEntropy => a.affine(-1.0, 1.0)?.log()?.neg()?.sum_all(),
        }
    }
}

/// Cost and output before each epoch and after the last one.
fn train(cost: NeuronCost, (weight, bias): (f64, f64)) -> candle_core::Result<Vec<(f64, f64)>> {
    let (neuron, vars): (Linear, VarMap) = build(0, DType::F64, |vb| linear(1, 1, vb))?;
    set(&vars, "weight", &[weight])?;
    set(&vars, "bias", &[bias])?;
    let input = Tensor::ones((1, 1), DType::F64, &Device::Cpu)?;
    let mut optimizer = Optimizer::new(Method::Sgd(Sgd::default()), &vars)?;
    let mut course = vec![];
    for epoch in 0..=EPOCHS {
        let z = neuron.forward(&input)?;
        let loss = cost.of(&z)?;
        let output = Activation::Sigmoid.forward(&z)?.flatten_all()?.get(0)?.to_scalar::<f64>()?;
        course.push((loss.to_scalar()?, output));
        if epoch < EPOCHS {
            optimizer.backward_step(&loss, cost.rate(), Clip::None)?;
        }
    }
    Ok(course)
}

fn run(_: &Lab) -> Result<Findings> {
    let mut table = Table::new(
        "neuron",
        &[
            "cost",
            "rate",
            "start (w, b)",
            "cost at 50",
            "cost at 150",
            "cost at 300",
            "output at 0",
            "output at 300",
        ],
    );
    let (mut charts, mut bars, mut fallen) = (vec![], vec![], vec![]);
    for cost in [NeuronCost::Quadratic, NeuronCost::CrossEntropy] {
        let mut lines = vec![];
        for (name, start) in ["from (0.6, 0.9)", "from (2, 2)"].into_iter().zip(STARTS) {
            let course = train(cost, start)?;
            let costs: Vec<f64> = course.iter().map(|point| point.0).collect();
            let outputs: Vec<f64> = course.iter().map(|point| point.1).collect();
            let mut row =
                vec![cost.name().to_string(), cost.rate().to_string(), format!("({}, {})", start.0, start.1)];
            row.extend([50, 150, 300].map(|epoch| format!("{:.6}", costs[epoch])));
            row.extend([0, EPOCHS].map(|epoch| format!("{:.4}", outputs[epoch])));
            table.push(row);
            fallen.push(costs[0] - costs[50]);
            bars.push((format!("{}, {name}", cost.name()), outputs));
            lines.push(Line::new(name, (0..).map(f64::from).zip(costs).collect()));
        }
        let title = if cost == NeuronCost::Quadratic { "Quadratic cost" } else { "Cross-entropy" };
        charts.push(Chart { title, x_label: "epoch", y_label: "cost", lines, ..Chart::default() });
    }
    let bars: Vec<Animation> =
        bars.iter().map(|(name, values)| Animation { name, values: values.clone() }).collect();
    Ok(Findings {
        lines: vec![
            "The quadratic cost has the factor s'(z) in its gradient: a neuron that is badly wrong, and therefore \
             saturated, hardly learns at first. Cross-entropy cancels the factor: the worse the start, the faster it learns."
                .into(),
        ],
        tables: vec![table],
        figures: vec![
            Figure::charts("cost", "Cost over the epochs, from both starts.", &charts)?,
            Figure::picture(
                "output",
                "The neuron's output over 300 epochs; it should become 0.",
                animation("Output", &bars),
            ),
        ],
        claim: Claim::new(
            fallen[1] < fallen[0] / 4.0 && fallen[3] > fallen[2],
            format!(
                "in 50 epochs from the bad start (2, 2) the quadratic cost falls by {:.4}, from the good start by {:.4}; \
                 cross-entropy falls by {:.4} and {:.4}: faster from the bad start",
                fallen[1], fallen[0], fallen[3], fallen[2]
            ),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The weight and the bias after `epochs` epochs of gradient descent, by the book's derivation.
    fn recurrence(cost: NeuronCost, (mut w, mut b): (f64, f64)) -> Vec<(f64, f64)> {
        let output = |w: f64, b: f64| 1.0 / (1.0 + (-(w + b)).exp());
        let mut course = vec![];
        for _ in 0..=EPOCHS {
            let a = output(w, b);
            let (value, slope) = match cost {
                NeuronCost::Quadratic => (a * a / 2.0, a * a * (1.0 - a)),
                NeuronCost::CrossEntropy => (-(1.0 - a).ln(), a),
            };
            course.push((value, a));
            w -= cost.rate() * slope;
            b -= cost.rate() * slope;
        }
        course
    }

    #[test]
    fn the_neuron_follows_the_recurrence_of_the_book() -> Result<()> {
        for cost in [NeuronCost::Quadratic, NeuronCost::CrossEntropy] {
            for start in STARTS {
                let (found, expected) = (train(cost, start)?, recurrence(cost, start));
                for (epoch, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    let error = (found.0 - expected.0).abs().max((found.1 - expected.1).abs());
                    assert!(error <= 1e-12, "{} from {start:?}, epoch {epoch}: {error}", cost.name());
                }
            }
        }
        Ok(())
    }

    #[test]
    fn cross_entropy_learns_from_a_bad_start() {
        let rows = &super::super::quick("neuron").tables[0].rows;
        // The outputs that the book reports for the quadratic cost.
        assert_eq!([&rows[0][7][..4], &rows[1][7][..4]], ["0.09", "0.20"]);
        assert_eq!([&rows[0][1], &rows[3][1]], ["0.15", "0.005"]);
    }
}
