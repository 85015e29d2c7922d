//! The hub's parquet files of labelled images.

use super::images::Images;
use crate::data::count;
use crate::data::hub::{self, column};
use anyhow::{Context, Result, anyhow, bail, ensure};
use image::{ColorType, GenericImageView, ImageFormat};
use parquet::record::{Field, Row};
use std::path::Path;

/// Number of classes of every image set of the hub that is known here.
const CLASSES: usize = 10;

/// Downloads the data set `id` and reads the images of `splits` from the files in `folder`.
///
/// Each row holds a PNG file of the given colour in `bytes` of the group `group`, and a `label`.
pub(super) fn read<const N: usize>(
    id: &str,
    folder: &str,
    group: &str,
    colour: ColorType,
    splits: [&str; N],
) -> Result<[Images; N]> {
    let files = splits.map(|split| format!("{folder}/{split}/0000.parquet"));
    let paths = hub::dataset(id, files)?;
    let mut images: Vec<Images> = vec![];
    for path in &paths {
        let (read, first) = (read_file(path, group, colour)?, images.first());
        if let Some(first) = first.filter(|first| first.shape() != read.shape()) {
            let ((_, height, width), (_, first_height, first_width)) = (read.shape(), first.shape());
            bail!(
                "{}: images of {height}x{width} pixels, but those of {} have {first_height}x{first_width}",
                path.display(),
                paths[0].display()
            );
        }
        images.push(read);
    }
    images.try_into().map_err(|_| anyhow!("a file per split"))
}

fn read_file(path: &Path, group: &str, colour: ColorType) -> Result<Images> {
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    let mut size = None;
    let channels = usize::from(colour.channel_count());
    hub::read_rows(path, |at, row| {
        let image = decode(row, at, group, colour)?;
        let (width, height) = image.dimensions();
        let (first_width, first_height) = *size.get_or_insert((width, height));
        ensure!(
            (width, height) == (first_width, first_height),
            "the image in row {at} is {height}x{width}, expected {first_height}x{first_width} like the first"
        );
        let Some(label) = hub::label(row, at, CLASSES)? else {
            bail!("label -1 in row {at}, expected 0 to {}", CLASSES - 1);
        };
        let plane = |channel| image.as_bytes().iter().skip(channel).step_by(channels);
        pixels.extend((0..channels).flat_map(plane));
        labels.push(label);
        Ok(())
    })?;
    let (width, height) = size.context("no rows")?;
    Ok(Images::new(pixels, labels, (channels, height as usize, width as usize), CLASSES)?)
}

/// What the pixels of an image are.
fn pixels(colour: ColorType) -> String {
    let (channels, bits) = (usize::from(colour.channel_count()), colour.bits_per_pixel());
    format!("{} of {} bits", count(channels, "channel"), usize::from(bits) / channels)
}

fn decode(row: &Row, at: usize, group: &str, colour: ColorType) -> Result<image::DynamicImage> {
    let Some(Field::Group(fields)) = column(row, group) else {
        bail!("no group {group:?} in row {at}");
    };
    let Some(Field::Bytes(png)) = column(fields, "bytes") else {
        bail!("no column \"{group}.bytes\" in row {at}");
    };
    let image = image::load_from_memory_with_format(png.data(), ImageFormat::Png)
        .map_err(|error| anyhow!("the image in row {at} is not a PNG file: {error}"))?;
    let found = image.color();
    ensure!(found == colour, "the image in row {at} has {}, expected {}", pixels(found), pixels(colour));
    Ok(image)
}
