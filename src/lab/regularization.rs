//! Methods against overfitting, compared (Nielsen, chapter 3).

use super::experiment::{Experiment, Lab};
use super::findings::{Claim, Figure, Findings, Table};
use super::study::{Study, build, mean_and_deviation};
use crate::data::Augmentation;
use crate::models::mlp::{Config, Mlp};
use crate::nn::{Activation, InitScheme};
use crate::optim::{Method, Sgd};
use crate::plots::{Chart, Line, Mark, Scale};
use crate::train::TrainerOptions;
use anyhow::Result;
use candle_core::DType;

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "regularization",
    about: "None, L2, L1, dropout, shifted images and early stopping on few images, with three seeds each",
    source: "Nielsen, chapter 3: overfitting and regularization",
    book: "1,000 images of MNIST, [784, 30, 10]: 82.27% without, 87.1% with L2; [784, 100, 10] with all images and L2: 98.04%.",
    uses_images: true,
    run,
};

const SEEDS: u64 = 3;

/// A regularisation method: the optimizer's penalties, dropout, shifted images, or early stopping.
#[derive(Clone, Copy, Default)]
struct Way {
    name: &'static str,
    l2: f64,
    l1: f64,
    dropout: f32,
    shifts: bool,
    stops: bool,
}

fn ways() -> [Way; 6] {
    let none = Way { name: "none", ..Way::default() };
    [
        none,
        Way { name: "L2", l2: 2e-3, ..none },
        Way { name: "L1", l1: 2e-4, ..none },
        Way { name: "dropout", dropout: 0.2, ..none },
        Way { name: "shifts", shifts: true, ..none },
        Way { name: "early stop", stops: true, ..none },
    ]
}

/// The accuracy on test images, averaged over the last eighth of the epochs.
///
/// With early stopping, it is the accuracy of the epoch that is best on validation images.
fn accuracy(lab: &Lab, study: &Study, way: Way, seed: u64) -> Result<f64> {
    let config = Config {
        sizes: vec![784, lab.scale(20, 60), 10],
        activation: Activation::Sigmoid,
        init: InitScheme::StandardNormal,
        dropout: way.dropout,
    };
    let (model, vars) = build(seed, DType::F32, |vb| Mlp::new(&config, vb))?;
    let sgd = Sgd { weight_decay: way.l2, l1: way.l1, decay_biases: false, ..Sgd::default() };
    let study = Study {
        method: Method::Sgd(sgd),
        augmentation: way.shifts.then_some(Augmentation::Shifts),
        validation: if way.stops { study.validation } else { 0 },
        options: TrainerOptions { seed, patience: way.stops.then_some(10), ..study.options.clone() },
        ..study.clone()
    };
    let folder = format!("{}-{seed}", way.name.replace(' ', "-"));
    let points = study.train(lab, &folder, &model, &vars)?;
    match way.stops {
        true => Ok(study.evaluate(&model)?.accuracy()),
        false => {
            // Single epochs fluctuate.
            let last = &points[points.len() - (points.len() / 8).max(1)..];
            Ok(last.iter().map(|point| point.test.metric).sum::<f64>() / last.len() as f64)
        }
    }
}

fn run(lab: &Lab) -> Result<Findings> {
    let (examples, validation) = (lab.scale(120, 1_000), lab.scale(40, 300));
    let data = lab.digits(examples + validation, lab.scale(300, 2_000))?;
    let study = Study { examples, validation, ..Study::new(lab, &data, lab.scale(15, 80), 0.5) };
    let mut table = Table::new("regularization", &["way", "test accuracy", "deviation", "seeds"]);
    let (mut points, mut spread, mut found) = (vec![], vec![], vec![]);
    for (at, way) in ways().into_iter().enumerate() {
        let seeds = lab.seed()..lab.seed() + SEEDS;
        let accuracies: Vec<f64> =
            seeds.map(|seed| Ok(100.0 * accuracy(lab, &study, way, seed)?)).collect::<Result<_>>()?;
        let (mean, deviation) = mean_and_deviation(&accuracies);
        let each: Vec<String> = accuracies.iter().map(|accuracy| format!("{accuracy:.1}")).collect();
        table.push([way.name.to_string(), format!("{mean:.2}%"), format!("{deviation:.2}"), each.join(", ")]);
        points.push((at as f64, mean));
        spread.push(deviation);
        found.push(accuracies);
    }
    // The same seed gives the same initial weights and shuffles, so the methods are compared seed by seed.
    let gains: Vec<f64> = found[1].iter().zip(&found[0]).map(|(l2, none)| l2 - none).collect();
    let (gain, deviation) = mean_and_deviation(&gains);
    let error = deviation / (SEEDS as f64).sqrt();
    let names = ways().iter().map(|way| way.name.to_string()).collect();
    let chart = Chart {
        title: "Test accuracy, mean and deviation of three seeds",
        x_label: "regularization",
        y_label: "accuracy in %",
        x_scale: Scale::Names(names),
        lines: vec![Line { name: "", points, mark: Mark::Spread(spread) }],
        ..Chart::default()
    };
    Ok(Findings {
        lines: vec![format!(
            "{examples} images, {} epochs, weights from N(0, 1) as in the book's section.",
            study.options.epochs
        )],
        tables: vec![table],
        figures: vec![Figure::charts("regularization", "Accuracy on test images for each way.", &[chart])?],
        claim: Claim::new(
            gain > 2.0 * error,
            format!(
                "L2 beats no regularization by {gain:.1} points; the standard error of the difference over {SEEDS} seeds is \
                 {error:.1}"
            ),
        ),
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn l2_beats_no_regularization_by_more_than_two_standard_errors() {
        super::super::quick("regularization");
    }
}
