//! Labelled images: types, augmentation, file formats, built-in sets.

mod augmentation;
pub mod cifar;
mod decode;
mod device_copy;
mod digit_photo;
mod digits;
mod distortion;
mod files;
pub mod folder;
mod generate;
pub mod idx;
mod images;
mod ink;
mod normalisation;
#[cfg(feature = "hub")]
mod parquet;
mod photo;
mod prefetch;
mod shapes;
mod shift;
mod square;

pub use augmentation::Augmentation;
pub use digit_photo::read_digit;
pub use digits::digits;
pub use distortion::Distortion;
pub use images::{ImageSet, Images};
pub use normalisation::Normalisation;
pub use photo::PhotoAugmentation;
pub use shapes::shapes;
pub use square::read_square;

use crate::data::error::DataError;
use anyhow::Result;
use std::path::Path;

/// The classes of `fashion-mnist`, which its files leave out (Xiao et al. 2017, table 2).
const CLOTHING: [&str; 10] = [
    "t-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
];

const KNOWN: [&str; 6] = ["digits", "shapes", "mnist", "fashion-mnist", "cifar10", "image-folder"];
const BUILT_IN: [&str; 2] = ["digits", "shapes"];

/// The seed of the built-in images, which do not change with the seed of a training run.
const BUILT_IN_SEED: u64 = 0;

/// Loads the data set `name`.
///
/// | name | source | training and test images |
/// |---|---|---|
/// | `digits` | built in | 20,000 and 4,000 of shape (1, 28, 28) |
/// | `shapes` | built in | 10,000 and 2,000 of shape (3, 32, 32) |
/// | `mnist`, `fashion-mnist` | [`idx`] files in `dir`, or the hub | 60,000 and 10,000 of shape (1, 28, 28) |
/// | `cifar10` | [`cifar`] files in `dir`, or the hub | 50,000 and 10,000 of shape (3, 32, 32) |
/// | `image-folder` | a [`folder`] of PNG and JPEG files, `dir` | the files' number, of shape (3, `side`, `side`) |
///
/// Without `dir`, the data sets of the hub are downloaded if the feature `hub` is enabled.
///
/// # Errors
/// Fails if the name is unknown or a directory is missing or superfluous, with a [`DataError`]; if files are missing or
/// malformed, with other errors.
pub fn load(name: &str, dir: Option<&Path>, side: usize) -> Result<ImageSet> {
    let (training, test) = match (name, dir) {
        ("digits", None) => digits(20_000, 4_000, BUILT_IN_SEED)?,
        ("shapes", None) => shapes(10_000, 2_000, BUILT_IN_SEED)?,
        ("digits" | "shapes", Some(_)) => return Err(DataError::built_in(name)),
        ("image-folder", Some(dir)) => return folder::read_dir(dir, side),
        ("image-folder", None) => {
            let reason = "no directory given, expected one with the images as train/CLASS/IMAGE.jpg";
            return Err(DataError::files_needed(name, reason, &BUILT_IN));
        }
        ("cifar10", Some(dir)) => cifar::read_dir(dir)?,
        ("mnist", Some(dir)) => idx::read_dir(dir)?,
        ("fashion-mnist", Some(dir)) => {
            let (training, test) = idx::read_dir(dir)?;
            (training.with_class_names(CLOTHING)?, test.with_class_names(CLOTHING)?)
        }
        ("mnist" | "fashion-mnist" | "cifar10", None) => download(name)?,
        _ => return Err(DataError::unknown(name, &KNOWN)),
    };
    Ok(ImageSet { training, validation: None, test })
}

#[cfg(feature = "hub")]
fn download(name: &str) -> Result<(Images, Images)> {
    use ::image::ColorType::{L8, Rgb8};
    let (id, folder, column, colour, classes) = match name {
        "mnist" => ("ylecun/mnist", "mnist", "image", L8, None),
        "fashion-mnist" => ("zalando-datasets/fashion_mnist", "fashion_mnist", "image", L8, Some(CLOTHING)),
        _ => ("uoft-cs/cifar10", "plain_text", "img", Rgb8, Some(cifar::CLASS_NAMES)),
    };
    let read = || {
        let (training, test) = parquet::read(id, folder, column, colour)?;
        Ok(match classes {
            Some(names) => (training.with_class_names(names)?, test.with_class_names(names)?),
            None => (training, test),
        })
    };
    read().map_err(|error: anyhow::Error| DataError::files_needed(name, &format!("{error:#}"), &BUILT_IN))
}

#[cfg(not(feature = "hub"))]
fn download(name: &str) -> Result<(Images, Images)> {
    Err(DataError::files_needed(name, crate::data::error::NO_DOWNLOAD, &BUILT_IN))
}
