//! Max, average and L2 pooling in the same network (Nielsen, chapter 6).

use super::experiment::{Experiment, Lab};
use super::findings::{Claim, Figure, Findings, Table};
use super::study::{Study, build, lenet_config, over_epochs, percent};
use crate::models::lenet::{Config, LeNet};
use crate::nn::Pooling;
use crate::plots::{Chart, Line};
use anyhow::Result;
use candle_core::DType;

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "pooling",
    about: "Max, average and L2 pooling in the same network",
    source: "Nielsen, chapter 6: introducing convolutional networks",
    book: "Max and L2 pooling are both widely used; validation data may choose between them.",
    uses_images: true,
    run,
};

fn run(lab: &Lab) -> Result<Findings> {
    let data = lab.digits(lab.scale(300, 5_000), lab.scale(200, 2_000))?;
    let mut table = Table::new("pooling", &["pooling", "training accuracy", "test accuracy", "test cost"]);
    let (mut lines, mut accuracies) = (vec![], vec![]);
    for (name, pooling) in [("max", Pooling::Max), ("average", Pooling::Average), ("L2", Pooling::L2)] {
        let config = Config { pooling, ..lenet_config(lab) };
        let (model, vars) = build(lab.seed(), DType::F32, |vb| LeNet::new(&config, vb))?;
        let points = Study::adam(lab, &data, lab.scale(5, 6)).train(lab, name, &model, &vars)?;
        let end = points[points.len() - 1];
        table.push([
            name.to_string(),
            percent(end.train.metric),
            percent(end.test.metric),
            format!("{:.4}", end.test.loss),
        ]);
        accuracies.push(end.test.metric);
        lines.push(Line::new(name, over_epochs(points.iter().map(|point| 100.0 * point.test.metric))));
    }
    let chart = Chart {
        title: "Accuracy with three kinds of pooling",
        x_label: "epoch",
        y_label: "accuracy on test images in %",
        lines,
        ..Chart::default()
    };
    let (least, most) =
        accuracies.iter().fold((1.0, 0.0), |(low, high): (f64, f64), &x| (low.min(x), high.max(x)));
    Ok(Findings {
        lines: vec!["Pooling keeps whether a feature was found and drops its exact position. The kind of pooling matters little.".into()],
        tables: vec![table],
        figures: vec![Figure::charts("pooling", "Accuracy over the epochs for each kind of pooling.", &[chart])?],
        claim: Claim::new(
            least >= 0.7 && most - least <= 0.15,
            format!("all three learn: they reach {} to {}", percent(least), percent(most)),
        ),
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn all_kinds_of_pooling_learn() {
        super::super::quick("pooling");
    }
}
