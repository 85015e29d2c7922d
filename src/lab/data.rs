//! A look at the data (Nielsen, chapter 1): samples, mean images, and a map of the images.

use super::experiment::{Experiment, Lab};
use super::findings::{Claim, Figure, Findings, Table};
use super::study::percent;
use crate::data::Images;
use crate::plots::{Chart, GridSection, Line, Mark, Tile, image_grid, principal_components};
use anyhow::Result;

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "data",
    about: "What the images look like: samples of each class, mean images, counts, and a map",
    source: "Nielsen, chapter 1",
    book: "The average darkness of an image alone classifies 22.25% of MNIST's test images.",
    uses_images: true,
    run,
};

/// An image as values from 0 to 1.
fn pixels(images: &Images, index: usize) -> Result<Vec<f32>> {
    Ok(images.image(index)?.iter().map(|&byte| f32::from(byte) / 255.0).collect())
}

/// The mean image of each class, and the number of its images.
fn means(images: &Images) -> Result<Vec<(Vec<f32>, usize)>> {
    let (channels, height, width) = images.shape();
    let mut means = vec![(vec![0.0; channels * height * width], 0); images.classes()];
    for (index, &label) in images.labels().iter().enumerate() {
        let (sum, count) = &mut means[label as usize];
        sum.iter_mut().zip(pixels(images, index)?).for_each(|(sum, value)| *sum += value);
        *count += 1;
    }
    for (sum, count) in &mut means {
        sum.iter_mut().for_each(|value| *value /= (*count).max(1) as f32);
    }
    Ok(means)
}

/// The fraction of `images` whose nearest mean image is the mean of their class.
fn nearest_mean(images: &Images, means: &[(Vec<f32>, usize)]) -> Result<f64> {
    let mut correct = 0;
    for (index, &label) in images.labels().iter().enumerate() {
        let image = pixels(images, index)?;
        let distance = |mean: &[f32]| image.iter().zip(mean).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        let nearest =
            (0..means.len()).min_by(|&a, &b| distance(&means[a].0).total_cmp(&distance(&means[b].0)));
        correct += usize::from(nearest == Some(label as usize));
    }
    Ok(correct as f64 / images.len().max(1) as f64)
}

fn run(lab: &Lab) -> Result<Findings> {
    const SAMPLES: usize = 10;
    let (training, test) = lab.digits(lab.scale(500, 10_000), lab.scale(200, 2_000))?;
    let (_, height, width) = training.shape();
    let (names, means) = (training.class_names(), means(&training)?);
    let mut samples = vec![];
    for class in 0..training.classes() as u32 {
        let of_class = (0..training.len()).filter(|&index| training.labels()[index] == class);
        for index in of_class.take(SAMPLES) {
            samples.push(Tile::image(&training.image(index)?, training.shape(), "")?);
        }
    }
    let mean = |((mean, _), name): (&(Vec<f32>, usize), &String)| Tile::grey(mean, height, width, name);
    let mean_tiles = means.iter().zip(names).map(mean).collect::<Result<Vec<_>>>()?;
    let sheet = image_grid(&[
        GridSection { heading: "Samples, a row per class", columns: SAMPLES, tiles: samples },
        GridSection { heading: "Mean image of each class", columns: SAMPLES, tiles: mean_tiles },
    ])?;
    let mut table = Table::new("classes", &["class", "training images", "test images", "mean ink"]);
    for (class, ((mean, count), name)) in means.iter().zip(names).enumerate() {
        let tests = test.labels().iter().filter(|&&label| label as usize == class).count();
        let ink = mean.iter().sum::<f32>() / mean.len() as f32;
        table.push([name.clone(), count.to_string(), tests.to_string(), percent(ink.into())]);
    }
    let (map, shares) = map(&training, lab.scale(150, 2_000))?;
    let found = nearest_mean(&test, &means)?;
    Ok(Findings {
        lines: vec![format!(
            "{} training and {} test images of {height}x{width} pixels in {} classes. Two principal components hold {} of \
             the variance.",
            training.len(),
            test.len(),
            training.classes(),
            percent(shares)
        )],
        tables: vec![table],
        figures: vec![Figure::picture("samples", "Samples and mean images.", sheet), map],
        claim: Claim::new(
            found >= 0.5,
            format!("the nearest mean image alone classifies {} of the test images", percent(found)),
        ),
    })
}

/// A map of the first `count` images, labelled by class, on the first two principal components.
fn map(images: &Images, count: usize) -> Result<(Figure, f64)> {
    let count = count.min(images.len());
    let mut vectors = vec![];
    for index in 0..count {
        vectors.extend(pixels(images, index)?);
    }
    let [across, up] = principal_components(&vectors, vectors.len() / count);
    let short: Vec<String> = images.class_names().iter().map(|name| name.chars().take(3).collect()).collect();
    let of_class = |class: usize| {
        let members = (0..count).filter(move |&index| images.labels()[index] as usize == class);
        members.map(|index| (across.scores[index], up.scores[index])).collect::<Vec<_>>()
    };
    let lines = short.iter().enumerate().map(|(class, name)| Line {
        name,
        points: of_class(class),
        mark: Mark::Name,
    });
    let chart = Chart {
        title: "Images by their two principal components",
        x_label: "first component",
        y_label: "second component",
        lines: lines.collect(),
        ..Chart::default()
    };
    let caption = format!("{count} images in the plane of the largest variance, each drawn as its class.");
    Ok((Figure::charts("map", &caption, &[chart])?, across.share + up.share))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_nearest_mean_image_classifies_most_digits() {
        let findings = super::super::quick("data");
        let counts = findings.tables[0].rows.iter().map(|row| row[1].parse::<usize>().unwrap());
        assert_eq!(counts.sum::<usize>(), 500);
    }
}
