//! Augmentation compensates for a lack of images.
//!
//! Nielsen, chapters 3 and 6; Simard, Steinkraus and Platt 2003.

use super::experiment::{Experiment, Lab};
use super::findings::{Claim, Figure, Findings, Table};
use super::study::{Study, build, lenet_config, percent};
use crate::data::{Augmentation, Distortion};
use crate::models::lenet::LeNet;
use crate::plots::{Chart, Line, Scale};
use anyhow::Result;
use candle_core::DType;

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "augmentation",
    about: "Accuracy against the number of training images, with and without augmentation",
    source: "Nielsen, chapter 3: artificially expanding the training data, and chapter 6; Simard, Steinkraus and Platt 2003",
    book: "Shifting the training images of MNIST by a pixel raises the convolutional network from 99.23% to 99.37%.",
    uses_images: true,
    run,
};

fn run(lab: &Lab) -> Result<Findings> {
    let sizes: &[usize] = lab.scale(&[50], &[100, 300, 1_000, 3_000]);
    let most = sizes[sizes.len() - 1];
    let data = lab.digits(most, lab.scale(200, 2_000))?;
    let ways = [
        ("none", None),
        ("shifts by one pixel", Some(Augmentation::Shifts)),
        ("affine and elastic distortions", Some(Augmentation::Distort(Distortion::default()))),
    ];
    let config = lenet_config(lab);
    let mut table = Table::new("augmentation", &["images", "none", "shifts", "distortions"]);
    let mut lines = ways.map(|(name, _)| Line::new(name, vec![]));
    for &examples in sizes {
        let mut row = vec![examples.to_string()];
        for (line, (name, augmentation)) in lines.iter_mut().zip(ways) {
            let (model, vars) = build(lab.seed(), DType::F32, |vb| LeNet::new(&config, vb))?;
            // About the same number of steps for each size.
            let epochs = lab.scale(30, (15_000 / examples).clamp(6, 60));
            let mut study = Study { examples, augmentation, ..Study::adam(lab, &data, epochs) };
            study.options.batch_size = 10;
            let folder = format!("{examples}-{}", name.replace(' ', "-"));
            let points = study.train(lab, &folder, &model, &vars)?;
            let accuracy = points[points.len() - 1].test.metric;
            row.push(percent(accuracy));
            line.points.push((examples as f64, 100.0 * accuracy));
        }
        table.push(row);
    }
    let [plain, _, distorted] = [0, 1, 2].map(|way| lines[way].points[0].1);
    let chart = Chart {
        title: "Accuracy and number of images",
        x_label: "training images",
        y_label: "accuracy on test images in %",
        x_scale: Scale::Log,
        lines: lines.into(),
        ..Chart::default()
    };
    Ok(Findings {
        lines: vec!["Each epoch shifts or distorts the images differently. The fewer images there are, the more this helps.".into()],
        tables: vec![table],
        figures: vec![Figure::charts("augmentation", "Accuracy over the number of training images.", &[chart])?],
        claim: Claim::new(
            distorted >= plain + 2.0,
            format!("with {} images distortions raise the accuracy from {plain:.1}% to {distorted:.1}%", sizes[0]),
        ),
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn distortions_help_when_images_are_few() {
        super::super::quick("augmentation");
    }
}
