//! The benefit of convolution (Nielsen, chapter 6).
//!
//! It compares a convolutional and a fully connected network of equal size on images that are shifted, rotated and
//! noisy, unlike all training images.

use super::experiment::{Experiment, Lab};
use super::findings::{Claim, Figure, Findings, Table};
use super::study::{Study, build, lenet_config, percent};
use crate::data::Images;
use crate::data::image::resampled;
use crate::models::lenet::LeNet;
use crate::models::mlp::{self, Mlp};
use crate::nn::{Activation, InitScheme, Model, count_parameters};
use crate::plots::{Chart, GridSection, Line, Tile, image_grid};
use crate::rng::{self, StandardNormal};
use anyhow::Result;
use candle_core::DType;
use rand::Rng;

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "invariance",
    about: "LeNet against a multi-layer perceptron of equal size on shifted, rotated and noisy images",
    source: "Nielsen, chapter 6: introducing convolutional networks; LeCun et al. 1998",
    book: "Shared weights find a feature anywhere in the image; pooling discards its exact position.",
    uses_images: true,
    run,
};

/// A change of the test images, and its strengths.
struct Change {
    name: &'static str,
    unit: &'static str,
    strengths: &'static [f32],
    apply: fn(&[u8], usize, f32) -> Vec<u8>,
}

const SIDE: usize = 28;

const CHANGES: [Change; 3] = [
    Change { name: "Shifted", unit: "pixels", strengths: &[0.0, 1.0, 2.0, 3.0, 4.0], apply: shift },
    Change { name: "Rotated", unit: "degrees", strengths: &[0.0, 10.0, 20.0, 30.0, 40.0], apply: rotate },
    Change {
        name: "Noisy",
        unit: "deviation of the noise",
        strengths: &[0.0, 0.1, 0.2, 0.3, 0.4],
        apply: add_noise,
    },
];

/// Resamples `image` at `from(x, y)` for each pixel `(x, y)`; outside it is black.
fn moved(image: &[u8], from: impl Fn(f32, f32) -> (f32, f32)) -> Vec<u8> {
    resampled(image, (SIDE, SIDE), from).into_iter().map(|value| (255.0 * value).round() as u8).collect()
}

/// Shifts left, right, up or down in turn.
fn shift(image: &[u8], index: usize, pixels: f32) -> Vec<u8> {
    let (right, down) = [(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)][index % 4];
    moved(image, |x, y| (x - right * pixels, y - down * pixels))
}

/// Rotates around the centre, in alternating directions.
fn rotate(image: &[u8], index: usize, degrees: f32) -> Vec<u8> {
    let (sin, cos) = if index.is_multiple_of(2) { degrees } else { -degrees }.to_radians().sin_cos();
    let centre = (SIDE as f32 - 1.0) / 2.0;
    moved(image, |x, y| {
        let (x, y) = (x - centre, y - centre);
        (centre + cos * x + sin * y, centre - sin * x + cos * y)
    })
}

fn add_noise(image: &[u8], index: usize, deviation: f32) -> Vec<u8> {
    let mut rng = rng::stream(0, &format!("noise/{index}"));
    let noisy =
        |&byte: &u8| f32::from(byte) + 255.0 * deviation * rng.sample::<f64, _>(StandardNormal) as f32;
    image.iter().map(noisy).map(|value| value.round().clamp(0.0, 255.0) as u8).collect()
}

/// Changes all images by `strength`.
fn changed(images: &Images, change: &Change, strength: f32) -> Result<Images> {
    let mut pixels = vec![];
    for index in 0..images.len() {
        pixels.extend((change.apply)(&images.image(index)?, index, strength));
    }
    Ok(Images::new(pixels, images.labels().to_vec(), images.shape(), images.classes())?)
}

fn run(lab: &Lab) -> Result<Findings> {
    let data = lab.digits(lab.scale(200, 5_000), lab.scale(100, 1_000))?;
    let lenet_config = lenet_config(lab);
    let parameters = count_parameters(|vb| LeNet::new(&lenet_config, vb))?;
    let units = (parameters as usize - 10) / (784 + 1 + 10);
    let mlp_config = mlp::Config {
        sizes: vec![784, units, 10],
        activation: Activation::Relu,
        init: InitScheme::PyTorch,
        dropout: 0.0,
    };
    let (lenet, lenet_vars) = build(lab.seed(), DType::F32, |vb| LeNet::new(&lenet_config, vb))?;
    let (mlp, mlp_vars) = build(lab.seed(), DType::F32, |vb| Mlp::new(&mlp_config, vb))?;
    let study = Study::adam(lab, &data, lab.scale(8, 6));
    let models: [(&str, &dyn Model, _); 2] = [("LeNet", &lenet, &lenet_vars), ("MLP", &mlp, &mlp_vars)];
    for (name, model, vars) in models {
        study.train(lab, name, model, vars)?;
    }
    let mut table = Table::new("invariance", &["test images", "strength", "LeNet", "MLP"]);
    let (mut charts, mut tiles, mut at_two) = (vec![], vec![], [0.0; 2]);
    for change in &CHANGES {
        let mut lines = models.map(|(name, ..)| Line::new(name, vec![]));
        for &strength in change.strengths {
            let test = changed(&data.1, change, strength)?;
            let study = Study { test: &test, ..study.clone() };
            let mut row = vec![change.name.to_lowercase(), format!("{strength} {}", change.unit)];
            for (at, (_, model, _)) in models.into_iter().enumerate() {
                let accuracy = study.evaluate(model)?.accuracy();
                lines[at].points.push((f64::from(strength), 100.0 * accuracy));
                row.push(percent(accuracy));
                if change.name == "Shifted" && strength == 2.0 {
                    at_two[at] = accuracy;
                }
            }
            table.push(row);
            tiles.push(Tile::image(&test.image(0)?, test.shape(), &format!("{strength}"))?);
        }
        charts.push(Chart {
            title: change.name,
            x_label: change.unit,
            y_label: "accuracy on test images in %",
            lines: lines.into(),
            ..Chart::default()
        });
    }
    let columns = CHANGES[0].strengths.len();
    let heading = "Shifted, rotated, noisy";
    let samples = image_grid(&[GridSection { heading, columns, tiles }])?;
    Ok(Findings {
        lines: vec![format!(
            "LeNet has {parameters} parameters, the perceptron {}. Both were trained on unchanged images only.",
            count_parameters(|vb| Mlp::new(&mlp_config, vb))?
        )],
        tables: vec![table],
        figures: vec![
            Figure::charts(
                "invariance",
                "Accuracy of both networks over the strength of the change.",
                &charts,
            )?,
            Figure::picture("samples", "A test image under each change.", samples),
        ],
        claim: Claim::new(
            at_two[0] >= at_two[1] + 0.05,
            format!(
                "shifted by 2 pixels, LeNet recognises {} of the test images, the perceptron {}",
                percent(at_two[0]),
                percent(at_two[1])
            ),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strength_of_zero_changes_nothing_and_a_shift_moves_whole_pixels() {
        let image: Vec<u8> = (0..SIDE * SIDE).map(|at| (at % 251) as u8).collect();
        for change in &CHANGES {
            assert_eq!((change.apply)(&image, 3, 0.0), image, "{}", change.name);
        }
        let right = shift(&image, 0, 2.0);
        assert_eq!((right[0], right[1], &right[2..SIDE]), (0, 0, &image[..SIDE - 2]));
    }

    #[test]
    fn convolution_tolerates_shifts() {
        super::super::quick("invariance");
    }
}
