//! Overfitting (Nielsen, chapter 3): with few images, a network memorises images instead of digits.

use super::experiment::{Experiment, Lab};
use super::findings::{Claim, Figure, Findings, Table};
use super::study::{Point, Study, over_epochs, percent, perceptron};
use crate::data::Images;
use crate::nn::{Activation, InitScheme};
use crate::plots::{Chart, Line};
use anyhow::Result;
use candle_core::DType;

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "overfitting",
    about: "Few images and many epochs: training and test cost drift apart; more data closes the gap",
    source: "Nielsen, chapter 3: overfitting and regularization",
    book: "1,000 images of MNIST, 400 epochs, [784, 30, 10]: 100% on the training images, 82.27% on the test images; with all \
           50,000 images 97.86% and 95.33%.",
    uses_images: true,
    run,
};

fn train(lab: &Lab, data: &(Images, Images), examples: usize, epochs: usize) -> Result<Vec<Point>> {
    let kind = (Activation::Sigmoid, InitScheme::StandardNormal);
    let (model, vars) = perceptron(lab.seed(), DType::F32, &[784, 30, 10], kind)?;
    let study = Study { examples, ..Study::new(lab, data, epochs, 0.5) };
    study.train(lab, &examples.to_string(), &model, &vars)
}

fn run(lab: &Lab) -> Result<Findings> {
    let (few, many) = lab.scale((100, 1_000), (1_000, 20_000));
    let data = lab.digits(many, lab.scale(200, 2_000))?;
    let many = many.min(data.0.len());
    let small = train(lab, &data, few, lab.scale(80, 400))?;
    let large = train(lab, &data, many, lab.scale(6, 30))?;
    let mut table = Table::new(
        "overfitting",
        &["images", "epochs", "training accuracy", "test accuracy", "gap", "training cost", "test cost"],
    );
    let mut gaps = vec![];
    for (images, points) in [(few, &small), (many, &large)] {
        let end = points[points.len() - 1];
        let gap = end.train.metric - end.test.metric;
        gaps.push(gap);
        table.push([
            images.to_string(),
            points.len().to_string(),
            percent(end.train.metric),
            percent(end.test.metric),
            percent(gap),
            format!("{:.4}", end.train.loss),
            format!("{:.4}", end.test.loss),
        ]);
    }
    let lowest =
        (0..small.len()).min_by(|&a, &b| small[a].test.loss.total_cmp(&small[b].test.loss)).unwrap_or(0);
    let (least, last) = (small[lowest].test.loss, small[small.len() - 1].test.loss);
    let titles =
        [few, many].map(|images| (format!("Cost, {images} images"), format!("Accuracy, {images} images")));
    let mut charts = vec![];
    for ((cost, accuracy), points) in titles.iter().zip([&small, &large]) {
        let lines = |of: fn(&Point) -> [f64; 2]| {
            let values = |at: usize| over_epochs(points.iter().map(|point| of(point)[at]));
            vec![Line::new("training images", values(0)), Line::new("test images", values(1))]
        };
        let chart =
            |title, y_label, lines| Chart { title, x_label: "epoch", y_label, lines, ..Chart::default() };
        charts.push(chart(cost, "cost", lines(|point| [point.train.loss, point.test.loss])));
        let accuracies =
            lines(|point| [point.train.metric, point.test.metric].map(|accuracy| 100.0 * accuracy));
        charts.push(chart(accuracy, "accuracy in %", accuracies));
    }
    Ok(Findings {
        lines: vec![format!(
            "On {few} images the training cost keeps falling, but the test cost is lowest after epoch {} and rises from then on.",
            lowest + 1
        )],
        tables: vec![table],
        figures: vec![Figure::charts(
            "overfitting",
            "Cost and accuracy over the epochs, on few and on many images.",
            &charts,
        )?],
        claim: Claim::new(
            gaps[0] >= 2.0 * gaps[1] && last >= 1.01 * least,
            format!(
                "the gap between training and test accuracy is {} with {few} images and {} with {many}; with {few} the test cost \
                 rises from {least:.3} to {last:.3}",
                percent(gaps[0]),
                percent(gaps[1])
            ),
        ),
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn few_images_are_learnt_by_heart() {
        super::super::quick("overfitting");
    }
}
