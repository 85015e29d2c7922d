//! EMNIST: handwritten letters and digits in the files of MNIST (Cohen et al. 2017).
//!
//! The files hold each image transposed; here it is upright, as in MNIST.

use super::idx::{read_both, read_bytes};
use super::images::Images;
use anyhow::Result;
use std::path::Path;

/// The names of the data sets.
pub const NAMES: [&str; 5] =
    ["emnist-digits", "emnist-letters", "emnist-balanced", "emnist-bymerge", "emnist-byclass"];

/// The lower-case letters that differ from their upper case in more than size.
const OWN_LOWER_CASE: &str = "abdefghnqrt";

/// Reads the training and the test set `name`, such as `emnist-letters`, from `dir`.
///
/// The files have names such as `emnist-letters-train-images-idx3-ubyte` and `emnist-letters-test-labels-idx1-ubyte`. The
/// classes are digits and letters: `emnist-letters` has `a` to `z` for both cases.
///
/// # Errors
/// Fails like [`idx::read_dir`](super::idx::read_dir).
pub fn read_dir(dir: &Path, name: &str) -> Result<(Images, Images)> {
    let splits = ["train", "test"].map(|split| format!("{name}-{split}"));
    read_both(dir, [&splits[0], &splits[1]], |split| read_split(dir, name, split))
}

/// Reads only the test set, like [`read_dir`].
///
/// # Errors
/// Fails like [`read_dir`] on the files of the test set.
pub fn read_test(dir: &Path, name: &str) -> Result<Images> {
    read_split(dir, name, &format!("{name}-test"))
}

fn read_split(dir: &Path, name: &str, split: &str) -> Result<Images> {
    let (first, classes) = labels(name);
    let last = first + classes.len() as u8 - 1;
    let (stored, mut labels, (height, width)) = read_bytes(dir, split, first..=last)?;
    labels.iter_mut().for_each(|label| *label -= first);
    let mut pixels = Vec::with_capacity(stored.len());
    for image in stored.chunks(height * width) {
        pixels.extend((0..width).flat_map(|x| (0..height).map(move |y| image[y * width + x])));
    }
    Ok(Images::new(pixels, labels, (1, width, height), classes.len())?.with_class_names(classes)?)
}

/// The label of the first class, and the names of the classes.
fn labels(name: &str) -> (u8, Vec<String>) {
    let (digits, upper, lower) = ('0'..='9', 'A'..='Z', 'a'..='z');
    let (first, classes): (u8, Vec<char>) = match name {
        "emnist-letters" => (1, lower.collect()),
        "emnist-byclass" => (0, digits.chain(upper).chain(lower).collect()),
        "emnist-balanced" | "emnist-bymerge" => {
            (0, digits.chain(upper).chain(OWN_LOWER_CASE.chars()).collect())
        }
        _ => (0, digits.collect()),
    };
    (first, classes.into_iter().map(String::from).collect())
}
