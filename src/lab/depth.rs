//! Degradation (He et al. 2015): a deep plain network has a larger training error than a shallow one.
//!
//! Shortcuts remove the difference.

use super::experiment::{Experiment, Lab};
use super::findings::{Claim, Figure, Findings, Table};
use super::study::{Study, build, over_epochs, percent};
use crate::models::resnet::{Config, ResNet, Shortcut};
use crate::nn::Cost;
use crate::optim::{Method, Sgd};
use crate::plots::{Chart, Line};
use crate::train::TrainerOptions;
use anyhow::Result;
use candle_core::DType;

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "depth",
    about: "Plain and residual networks of growing depth: training error",
    source: "He et al. 2015, arXiv:1512.03385, section 4.2 and figure 6",
    book: "On CIFAR-10 the training error grows from 20 to 56 layers in plain networks and falls in residual networks.",
    uses_images: true,
    run,
};

fn run(lab: &Lab) -> Result<Findings> {
    let depths: &[usize] = lab.scale(&[26], &[20, 32, 44, 56]);
    let data = lab.digits(lab.scale(40, 500), lab.scale(10, 200))?;
    let (channels, ..) = data.0.shape();
    let mut table = Table::new("depth", &["layers", "network", "training error", "test error"]);
    let mut charts = vec![];
    let (mut errors, names) = ([vec![], vec![]], depths.iter().map(|depth| format!("{depth} layers")));
    let names: Vec<String> = names.collect();
    let ways = [("Plain", Shortcut::None), ("Residual", Shortcut::Identity)];
    for ((title, shortcut), errors) in ways.into_iter().zip(&mut errors) {
        let mut lines = vec![];
        for (&depth, name) in depths.iter().zip(&names) {
            let config = Config::cifar(depth, shortcut, data.0.classes())?;
            let config = Config { channels, width: lab.scale(4, 6), ..config };
            let (model, vars) = build(lab.seed(), DType::F32, |vb| ResNet::new(&config, vb))?;
            let study = Study {
                cost: Cost::SoftmaxCrossEntropy,
                method: Method::Sgd(Sgd { momentum: 0.9, ..Sgd::default() }),
                ..Study::new(lab, &data, lab.scale(16, 8), 0.05)
            };
            let options = TrainerOptions { batch_size: lab.scale(8, 20), ..study.options.clone() };
            let folder = format!("{}-{depth}", title.to_lowercase());
            let points = Study { options, ..study }.train(lab, &folder, &model, &vars)?;
            let end = points[points.len() - 1];
            table.push([
                depth.to_string(),
                title.to_lowercase(),
                percent(1.0 - end.train.metric),
                percent(1.0 - end.test.metric),
            ]);
            let course: Vec<f64> = points.iter().map(|point| 1.0 - point.train.metric).collect();
            // The last error alone would depend on the last few batches.
            errors.push(course.iter().sum::<f64>() / course.len() as f64);
            let course = course.into_iter().map(|error| 100.0 * error);
            lines.push(Line::new(name, over_epochs(course)));
        }
        charts.push(Chart {
            title,
            x_label: "epoch",
            y_label: "error on training images in %",
            lines,
            ..Chart::default()
        });
    }
    let [plain, residual] = errors.map(|errors| errors[errors.len() - 1]);
    let deepest = depths[depths.len() - 1];
    Ok(Findings {
        lines: vec![
            "A deeper plain network could copy a shallower one, but training does not find that solution."
                .into(),
        ],
        tables: vec![table],
        figures: vec![Figure::charts("depth", "Error on the training images over the epochs.", &charts)?],
        claim: Claim::new(
            plain >= residual + 0.1,
            format!(
                "with {deepest} layers the training error, averaged over the epochs, is {} without and {} with shortcuts",
                percent(plain),
                percent(residual)
            ),
        ),
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn shortcuts_make_a_deep_network_trainable() {
        super::super::quick("depth");
    }
}
