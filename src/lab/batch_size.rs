//! Small batches learn more per epoch, large ones take less time (Nielsen, chapters 2 and 3).

use super::experiment::{Experiment, Lab};
use super::findings::{Claim, Figure, Findings, Table};
use super::study::{Study, over_epochs, percent, perceptron};
use crate::nn::{Activation, InitScheme};
use crate::plots::{Chart, Line, Scale};
use crate::train::TrainerOptions;
use anyhow::Result;
use candle_core::DType;

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "batch-size",
    about: "Small and large batches: cost against epochs and against seconds",
    source: "Nielsen, chapter 2: a fully matrix-based approach, and chapter 3: mini-batch size",
    book: "As matrices, a batch of 100 may take perhaps 50 times as long as a single example instead of 100 times.",
    uses_images: true,
    run,
};

fn run(lab: &Lab) -> Result<Findings> {
    let sizes: &[usize] = lab.scale(&[1, 16, 256], &[1, 4, 16, 64, 256, 1024]);
    let data = lab.digits(lab.scale(256, 4_096), lab.scale(50, 1_000))?;
    let kind = (Activation::Sigmoid, InitScheme::ScaledNormal);
    let mut table =
        Table::new("batch-size", &["batch", "cost", "test accuracy", "seconds", "images per second"]);
    let names: Vec<String> = sizes.iter().map(|size| size.to_string()).collect();
    let (mut epochs, mut seconds, mut costs) = (vec![], vec![], vec![]);
    for (&batch_size, name) in sizes.iter().zip(&names) {
        let (model, vars) = perceptron(lab.seed(), DType::F32, &[784, 30, 10], kind)?;
        let study = Study::new(lab, &data, lab.scale(3, 10), 0.1);
        let study = Study { options: TrainerOptions { batch_size, ..study.options.clone() }, ..study };
        let points = study.train(lab, name, &model, &vars)?;
        let end = points[points.len() - 1];
        let images = (data.0.len() * points.len()) as f64;
        table.push([
            name.clone(),
            format!("{:.4}", end.train.loss),
            percent(end.test.metric),
            format!("{:.2}", end.seconds),
            format!("{:.0}", images / end.seconds),
        ]);
        costs.push(end.train.loss);
        epochs.push(Line::new(name, over_epochs(points.iter().map(|point| point.train.loss))));
        let over_time = points.iter().map(|point| (point.seconds, point.train.loss)).collect();
        seconds.push(Line::new(name, over_time));
    }
    let chart = |title, x_label, x_scale, lines| Chart {
        title,
        x_label,
        y_label: "cost of the training images",
        x_scale,
        y_scale: Scale::Log,
        lines,
    };
    let charts = [
        chart("Cost and epochs", "epoch", Scale::Linear, epochs),
        chart("Cost and time", "seconds of training", Scale::Log, seconds),
    ];
    let (first, last) = (costs[0], costs[costs.len() - 1]);
    Ok(Findings {
        lines: vec!["The same learning rate for all: a small batch takes more steps per epoch, a large batch computes each image in \
                     less time."
            .into()],
        tables: vec![table],
        figures: vec![Figure::charts("batch-size", "Cost of the training images, by the size of the batch.", &charts)?],
        claim: Claim::new(
            first <= 0.5 * last,
            format!("after the same number of epochs the cost is {first:.3} with batches of 1 and {last:.3} with batches of {}", sizes[sizes.len() - 1]),
        ),
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn small_batches_learn_more_per_epoch() {
        super::super::quick("batch-size");
    }
}
