//! Too small, right and too large learning rates (Nielsen, chapter 3), and a test that suggests one.

use super::experiment::{Experiment, Lab};
use super::findings::{Claim, Figure, Findings, Table};
use super::study::{Study, over_epochs, perceptron};
use crate::data::Images;
use crate::models::mlp::Mlp;
use crate::nn::{Activation, Cost, InitScheme, Mode, Model};
use crate::optim::{Clip, Method, Optimizer, Sgd};
use crate::plots::{Chart, Line, Scale};
use anyhow::Result;
use candle_core::{DType, Device};
use candle_nn::VarMap;

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "learning-rate",
    about: "Learning rates 0.025, 0.25 and 2.5, and a range test that suggests one",
    source: "Nielsen, chapter 3: how to choose a neural network's hyper-parameters; Smith 2017, arXiv:1506.01186",
    book: "At 0.025 the cost falls smoothly, at 0.25 faster and then it levels off, at 2.5 it oscillates from the start.",
    uses_images: true,
    run,
};

const RATES: [(&str, f64); 3] = [("0.025", 0.025), ("0.25", 0.25), ("2.5", 2.5)];

fn network(lab: &Lab) -> candle_core::Result<(Mlp, VarMap)> {
    perceptron(lab.seed(), DType::F32, &[784, 30, 10], (Activation::Sigmoid, InitScheme::ScaledNormal))
}

fn run(lab: &Lab) -> Result<Findings> {
    let data = lab.digits(lab.scale(300, 5_000), lab.scale(100, 1_000))?;
    let mut table = Table::new("learning-rates", &["rate", "training cost", "largest rise", "test accuracy"]);
    let (mut lines, mut rises, mut last) = (vec![], vec![], vec![]);
    for (name, rate) in RATES {
        let (model, vars) = network(lab)?;
        let points = Study::new(lab, &data, lab.scale(10, 30), rate).train(lab, name, &model, &vars)?;
        let costs: Vec<f64> = points.iter().map(|point| point.train.loss).collect();
        let rise = costs.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
        let end = points[points.len() - 1];
        table.push([
            name.to_string(),
            format!("{:.4}", end.train.loss),
            format!("{rise:.4}"),
            format!("{:.1}%", 100.0 * end.test.metric),
        ]);
        rises.push(rise);
        last.push(end.train.loss);
        lines.push(Line::new(name, over_epochs(costs)));
    }
    let (range, suggested) = range_test(lab, &data.0)?;
    let charts = [
        Chart {
            title: "Cost at three rates",
            x_label: "epoch",
            y_label: "cost of the training images",
            y_scale: Scale::Log,
            lines,
            ..Chart::default()
        },
        Chart {
            title: "Range test",
            x_label: "learning rate of the step",
            y_label: "cost of the batch, smoothed",
            x_scale: Scale::Log,
            lines: vec![Line::new("cost", range)],
            ..Chart::default()
        },
    ];
    Ok(Findings {
        lines: vec![format!(
            "The range test raises the rate from step to step. It suggests {suggested:.2}: a quarter of the rate at \
                     which the cost is lowest before it rises again."
        )],
        tables: vec![table],
        figures: vec![Figure::charts(
            "learning-rate",
            "Left: the cost of the training images over the epochs. Right: the cost while the rate rises by a constant factor.",
            &charts,
        )?],
        claim: Claim::new(
            last[1] < last[0] && rises[2] > 2.0 * rises[1].max(rises[0]) && (0.025..2.5).contains(&suggested),
            format!(
                "0.25 ends lower than 0.025 ({:.3} against {:.3}); at 2.5 the cost rises by up to {:.3} from one epoch to \
                 the next; the range test suggests {suggested:.2}, between 0.025 and 2.5",
                last[1], last[0], rises[2]
            ),
        ),
    })
}

/// The smoothed cost over a rising rate, and the rate that it suggests.
fn range_test(lab: &Lab, images: &Images) -> Result<(Vec<(f64, f64)>, f64)> {
    const STEPS: usize = 300;
    const ENDS: (f64, f64) = (1e-3, 1e2);
    let (model, vars) = network(lab)?;
    let mut optimizer = Optimizer::new(Method::Sgd(Sgd::default()), &vars)?;
    let (mut points, mut smooth) = (vec![], None);
    for step in 0..STEPS {
        let rate = ENDS.0 * (ENDS.1 / ENDS.0).powf(step as f64 / (STEPS - 1) as f64);
        let batch: Vec<u32> = (0..10).map(|i| ((10 * step + i) % images.len()) as u32).collect();
        let (xs, labels) = images.batch(&batch, &Device::Cpu)?;
        let mode = Mode::train(lab.seed(), 0, step as u64);
        let loss = Cost::SigmoidCrossEntropy.loss(&model.forward(&xs, mode)?, &labels)?;
        optimizer.backward_step(&loss, rate, Clip::None)?;
        let cost = f64::from(loss.to_scalar::<f32>()?);
        let average = smooth.map_or(cost, |smooth: f64| 0.9 * smooth + 0.1 * cost);
        smooth = Some(average);
        points.push((rate, average));
        let lowest = points.iter().map(|point| point.1).fold(f64::INFINITY, f64::min);
        if average > 4.0 * lowest && step > 20 {
            break;
        }
    }
    let best = points.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or_default();
    Ok((points, best.0 / 4.0))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_rate_can_be_too_small_and_too_large() {
        super::super::quick("learning-rate");
    }
}
