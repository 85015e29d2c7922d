//! Labelled images: types, augmentation, file formats, built-in sets.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use candle_textbook::data::{self, Images};
//!
//! fn main() -> anyhow::Result<()> {
//!     let (training, _test) = data::digits(100, 20, 0)?;
//!     let (xs, labels) = training.batch(&[3, 1, 4], &Device::Cpu)?;
//!     assert_eq!((xs.dims(), labels.dims()), (&[3, 1, 28, 28][..], &[3][..]));
//!
//!     // Tensors such as `train_images` and `train_labels` of `candle_datasets::vision::mnist::load()`.
//!     let pixels = Tensor::full(0.5f32, (2, 784), &Device::Cpu)?;
//!     let labels = Tensor::new(&[7u8, 2], &Device::Cpu)?;
//!     let images = Images::from_tensors(&pixels, &labels, (1, 28, 28), 10)?;
//!     assert_eq!(images.labels(), [7, 2]);
//!     Ok(())
//! }
//! ```

mod augmentation;
pub mod cifar;
mod device_copy;
mod digits;
mod distortion;
pub mod emnist;
mod files;
pub mod folder;
mod generate;
pub mod idx;
mod images;
mod normalisation;
#[cfg(feature = "hub")]
mod parquet;
mod photo;
#[cfg(feature = "images")]
mod picture;
mod prefetch;
mod preparation;
mod same_files;
mod shapes;
mod shift;

pub use augmentation::Augmentation;
pub use digits::digits;
pub use distortion::Distortion;
#[cfg(feature = "plots")]
pub(crate) use distortion::resampled;
pub use images::{ImageSet, Images};
pub use normalisation::Normalisation;
pub use photo::PhotoAugmentation;
#[cfg(feature = "images")]
pub use picture::{read_digit, read_square};
pub use preparation::{Preparation, Prepared};
pub use same_files::note_same_files;
pub use shapes::shapes;

use crate::data::error::DataError;
use anyhow::Result;
use std::path::Path;

/// The class names of `fashion-mnist`, which are missing from its files (Xiao et al. 2017, table 2).
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

const KNOWN: [&str; 11] = {
    let [digits, letters, balanced, by_merge, by_class] = emnist::NAMES;
    [
        "digits",
        "shapes",
        "mnist",
        "fashion-mnist",
        digits,
        letters,
        balanced,
        by_merge,
        by_class,
        "cifar10",
        "image-folder",
    ]
};
const BUILT_IN: [&str; 2] = ["digits", "shapes"];

/// The seed of the built-in images. It is independent of the seed of a training run.
const BUILT_IN_SEED: u64 = 0;

/// Numbers of built-in images.
const TRAINING_DIGITS: usize = 20_000;
const TEST_DIGITS: usize = 4_000;
const TRAINING_SHAPES: usize = 10_000;
const TEST_SHAPES: usize = 2_000;

/// Loads the data set `name`.
///
/// | name | source | training and test images |
/// |---|---|---|
/// | `digits` | built in | 20,000 and 4,000 of shape (1, 28, 28) |
/// | `shapes` | built in | 10,000 and 2,000 of shape (3, 32, 32) |
/// | `mnist`, `fashion-mnist` | [`idx`] files in `dir`, or the hub | 60,000 and 10,000 of shape (1, 28, 28) |
/// | `emnist-letters`, `-digits`, `-balanced`, `-bymerge`, `-byclass` | [`emnist`] files in `dir` | the files' number, of shape (1, 28, 28) |
/// | `cifar10` | [`cifar`] files in `dir`, or the hub | 50,000 and 10,000 of shape (3, 32, 32) |
/// | `image-folder` | a [`folder`] of PNG and JPEG files, `dir` (feature `images`) | the files' number, of shape (3, `side`, `side`) |
///
/// Without `dir`, the data sets of the hub are downloaded if the feature `hub` is enabled.
///
/// # Errors
/// Fails if the name is unknown or a directory is missing or not needed, with a [`DataError`]; if files are missing or
/// malformed, with other errors.
pub fn load(name: &str, dir: Option<&Path>, side: usize) -> Result<ImageSet> {
    let (training, test) = match (name, dir) {
        ("digits", None) => digits(TRAINING_DIGITS, TEST_DIGITS, BUILT_IN_SEED)?,
        ("shapes", None) => shapes(TRAINING_SHAPES, TEST_SHAPES, BUILT_IN_SEED)?,
        ("image-folder", Some(dir)) => return folder::read_dir(dir, side),
        ("cifar10", Some(dir)) => cifar::read_dir(dir)?,
        ("mnist", Some(dir)) => idx::read_dir(dir)?,
        ("fashion-mnist", Some(dir)) => {
            let (training, test) = idx::read_dir(dir)?;
            (training.with_class_names(CLOTHING)?, test.with_class_names(CLOTHING)?)
        }
        (name, Some(dir)) if emnist::NAMES.contains(&name) => emnist::read_dir(dir, name)?,
        ("mnist" | "fashion-mnist" | "cifar10", None) => {
            let [training, test] = download(name, ["train", "test"])?;
            (training, test)
        }
        _ => return Err(not_found(name, dir)),
    };
    let preparation = if is_handwriting(name) { Preparation::Digit } else { Preparation::Square };
    Ok(ImageSet { training, validation: None, test, preparation, notes: vec![] })
}

/// Loads only the test images of the data set `name`, like [`load`], with notes for the user.
///
/// # Errors
/// Fails like [`load`] on the files of the test images.
pub fn load_test(name: &str, dir: Option<&Path>, side: usize) -> Result<(Images, Vec<String>)> {
    let test = match (name, dir) {
        ("digits", None) => digits(0, TEST_DIGITS, BUILT_IN_SEED)?.1,
        ("shapes", None) => shapes(0, TEST_SHAPES, BUILT_IN_SEED)?.1,
        ("image-folder", Some(dir)) => return folder::read_test(dir, side),
        ("cifar10", Some(dir)) => cifar::read_test(dir)?,
        ("mnist", Some(dir)) => idx::read_test(dir)?,
        ("fashion-mnist", Some(dir)) => idx::read_test(dir)?.with_class_names(CLOTHING)?,
        (name, Some(dir)) if emnist::NAMES.contains(&name) => emnist::read_test(dir, name)?,
        ("mnist" | "fashion-mnist" | "cifar10", None) => {
            let [test] = download(name, ["test"])?;
            test
        }
        _ => return Err(not_found(name, dir)),
    };
    Ok((test, vec![]))
}

/// Whether the data set `name` holds handwriting, whose meaning changes when it is mirrored.
pub fn is_handwriting(name: &str) -> bool {
    matches!(name, "digits" | "mnist") || emnist::NAMES.contains(&name)
}

/// Explains why there is no data set `name` in `dir`.
fn not_found(name: &str, dir: Option<&Path>) -> anyhow::Error {
    match (name, dir) {
        ("digits" | "shapes", Some(_)) => DataError::built_in(name),
        ("image-folder", None) => {
            let reason = "no directory given, expected one with the images as train/CLASS/IMAGE.jpg";
            DataError::files_needed(name, reason, &BUILT_IN)
        }
        (name, None) if emnist::NAMES.contains(&name) => {
            DataError::files_needed(name, "no directory given", &BUILT_IN)
        }
        _ => DataError::unknown(name, &KNOWN),
    }
}

#[cfg(feature = "hub")]
fn download<const N: usize>(name: &str, splits: [&str; N]) -> Result<[Images; N]> {
    use ::image::ColorType::{L8, Rgb8};
    let (id, folder, column, colour, classes) = match name {
        "mnist" => ("ylecun/mnist", "mnist", "image", L8, None),
        "fashion-mnist" => ("zalando-datasets/fashion_mnist", "fashion_mnist", "image", L8, Some(CLOTHING)),
        _ => ("uoft-cs/cifar10", "plain_text", "img", Rgb8, Some(cifar::CLASS_NAMES)),
    };
    let read = || {
        let mut images = parquet::read(id, folder, column, colour, splits)?;
        if let Some(names) = classes {
            for images in &mut images {
                *images = images.clone().with_class_names(names)?;
            }
        }
        Ok(images)
    };
    read().map_err(|error: anyhow::Error| DataError::files_needed(name, &format!("{error:#}"), &BUILT_IN))
}

#[cfg(not(feature = "hub"))]
fn download<const N: usize>(name: &str, _splits: [&str; N]) -> Result<[Images; N]> {
    Err(DataError::files_needed(name, crate::data::error::NO_DOWNLOAD, &BUILT_IN))
}
