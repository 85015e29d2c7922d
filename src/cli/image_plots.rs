//! Plots of an image classifier's run.

use super::write_drawing;
use crate::data::Images;
use crate::models::ImageModel;
use crate::nn::Mode;
use crate::plots::{self, GridSection, Tile};
use crate::train::{Evaluation, Prediction, Run};
use anyhow::{Context, Result};
use candle_core::{D, DType, Device, Tensor, Var};

/// Draws mistakes and filters into the run folder.
///
/// Convolutional networks also get feature maps and Grad-CAM.
pub(super) fn draw(
    run: &Run,
    model: &dyn ImageModel,
    test: &Images,
    evaluation: &Evaluation,
    device: &Device,
) -> Result<()> {
    run.write("mistakes.svg", &mistakes(test, evaluation)?)?;
    run.write("filters.svg", &filters(model, test.shape())?)?;
    let class = &test.class_names()[test.labels()[0] as usize];
    if let Some(features) = features(model, test, class, device)? {
        run.write("features.svg", &features)?;
        run.write("grad-cam.svg", &grad_cams(model, test, evaluation, device)?)?;
    }
    Ok(())
}

/// Draws the first layer's weights as `filters.svg`, and prints the path.
pub(super) fn draw_filters(run: &Run, model: &dyn ImageModel, images: (usize, usize, usize)) -> Result<()> {
    write_drawing(run, "filters.svg", &filters(model, images)?)
}

/// Draws the feature maps of the one image in `image` as `activations.svg`, and prints the path.
///
/// # Errors
/// Fails if the model has no feature maps, because it has no convolutions.
pub(super) fn draw_activations(
    run: &Run,
    model: &dyn ImageModel,
    image: &Images,
    caption: &str,
    device: &Device,
) -> Result<()> {
    let dir = run.dir().display();
    let features = features(model, image, caption, device)?;
    let features = features.with_context(|| {
        format!("{dir}: this model has no convolutions, expected a run of lenet or resnet")
    })?;
    write_drawing(run, "activations.svg", &features)
}

/// The wrong predictions with the highest probabilities.
fn mistakes(test: &Images, evaluation: &Evaluation) -> Result<String> {
    const SHOWN: usize = 40;
    let mut wrong: Vec<(usize, Prediction)> = evaluation
        .predictions
        .iter()
        .copied()
        .enumerate()
        .filter(|(_, prediction)| !prediction.is_correct())
        .collect();
    wrong.sort_by(|a, b| b.1.probability.total_cmp(&a.1.probability));
    let tiles = wrong
        .iter()
        .take(SHOWN)
        .map(|&(index, Prediction { label, predicted, probability })| {
            let [label, predicted] = [label, predicted].map(|class| &test.class_names()[class as usize]);
            let caption = format!("{label}, predicted {predicted}\n({probability:.2})");
            Tile::image(&test.image(index)?, test.shape(), &caption)
        })
        .collect::<Result<Vec<_>>>()?;
    let heading = format!("{} of {} wrong, most confident first", wrong.len(), test.len());
    plots::image_grid(&[GridSection { heading: &heading, columns: 8, tiles }])
}

/// The first layer's weights, one tile per unit.
///
/// Three channels are shown in colour, others one below the other. A unit of a fully connected layer has the shape of an
/// image, `images`.
fn filters(model: &dyn ImageModel, images: (usize, usize, usize)) -> Result<String> {
    let weight = model.filters();
    let (channels, height, width) = match *weight.dims() {
        [_, channels, height, width] => (channels, height, width),
        _ => images,
    };
    let weight = weight.flatten_from(1)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    let tile = |(unit, values): (usize, &Vec<f32>)| {
        let caption = (unit + 1).to_string();
        if channels != 3 {
            return Tile::signed(values, channels * height, width, &caption);
        }
        let most = values.iter().fold(f32::MIN_POSITIVE, |most, value| most.max(value.abs()));
        let bytes: Vec<u8> = values.iter().map(|value| (127.5 * (1.0 + value / most)) as u8).collect();
        Tile::image(&bytes, (channels, height, width), &caption)
    };
    let tiles = weight.iter().enumerate().map(tile).collect::<Result<Vec<_>>>()?;
    let heading = match channels {
        3 => "First layer: grey is 0",
        _ => "First layer: red is above 0, blue below",
    };
    plots::image_grid(&[GridSection { heading, columns: 10, tiles }])
}

/// The feature maps of the first of `images` after each convolutional stage.
fn features(
    model: &dyn ImageModel,
    images: &Images,
    caption: &str,
    device: &Device,
) -> Result<Option<String>> {
    let (xs, _) = images.batch(&[0], device)?;
    let maps = model.feature_maps(&xs)?;
    if maps.is_empty() {
        return Ok(None);
    }
    let headings: Vec<String> = (1..=maps.len()).map(|stage| format!("After stage {stage}")).collect();
    let mut sections = vec![GridSection {
        heading: "Input",
        columns: 1,
        tiles: vec![Tile::image(&images.image(0)?, images.shape(), caption)?],
    }];
    for (map, heading) in maps.iter().zip(&headings) {
        sections.push(GridSection { heading, columns: 10, tiles: channels(map)? });
    }
    plots::image_grid(&sections).map(Some).context("feature maps")
}

/// One tile per channel of `map` `(1, channels, height, width)`, for the first channels.
fn channels(map: &Tensor) -> Result<Vec<Tile>> {
    const SHOWN: usize = 64;
    let (_, _, height, width) = map.dims4()?;
    let values = map.get(0)?.flatten_from(1)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    let tile =
        |(channel, values): (usize, &Vec<f32>)| Tile::grey(values, height, width, &(channel + 1).to_string());
    values.iter().take(SHOWN).enumerate().map(tile).collect()
}

/// Grad-CAM of one test image per class, for the predicted class.
fn grad_cams(
    model: &dyn ImageModel,
    test: &Images,
    evaluation: &Evaluation,
    device: &Device,
) -> Result<String> {
    const SHOWN: u32 = 20;
    let mut tiles = vec![];
    for class in 0..SHOWN.min(test.classes() as u32) {
        let Some(index) = test.labels().iter().position(|&label| label == class) else { continue };
        let image = test.image(index)?;
        let Prediction { predicted, probability, .. } = evaluation.predictions[index];
        let [name, predicted] = [class, predicted].map(|class| &test.class_names()[class as usize]);
        let heat = grad_cam(model, &test.batch(&[index as u32], device)?.0)?;
        tiles.push(Tile::image(&image, test.shape(), name)?);
        tiles.push(Tile::heatmap(
            &image,
            test.shape(),
            &heat,
            &format!("predicted {predicted}\n({probability:.2})"),
        )?);
    }
    plots::image_grid(&[GridSection {
        heading: "Evidence for the predicted class, stronger in darker red (Grad-CAM)",
        columns: 6,
        tiles,
    }])
}

/// Computes Grad-CAM of the most probable class for the image `xs` `(1, channels, height, width)`.
///
/// It is the sum of the last feature maps, each weighted by the mean of its gradient, cut off below 0 (Selvaraju et al.
/// 2017, arXiv:1610.02391).
fn grad_cam(model: &dyn ImageModel, xs: &Tensor) -> Result<Vec<Vec<f32>>> {
    let maps = model.feature_maps(xs)?.pop().context("Grad-CAM: the model has no convolutions")?;
    let maps = Var::from_tensor(&maps.detach())?;
    let logits = model.head(&maps, Mode::Evaluate)?;
    let grads = logits.max(D::Minus1)?.sum_all()?.backward()?;
    let grad = grads.get(&maps).context("Grad-CAM: the maps have no gradient")?;
    let weights = grad.mean_keepdim((2, 3))?;
    let heat = maps.as_detached_tensor().broadcast_mul(&weights)?.sum(1)?.relu()?;
    Ok(heat.get(0)?.to_dtype(DType::F32)?.to_vec2()?)
}
