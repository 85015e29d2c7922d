//! How a picture becomes an image like those of a data set.

use super::digit_photo::read_digit;
use super::square::{read_grey_square, read_square};
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// How a picture becomes an image like those of a data set, for a model that was trained on the data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preparation {
    /// As a photograph of a handwritten digit: [`read_digit`].
    Digit,
    /// As a square without further changes: [`read_square`], grey or in colour. An image of the data set stays as it is.
    Square,
}

impl Preparation {
    /// Reads the PNG or JPEG file `path` as an image of `shape`, `(channels, height, width)`.
    ///
    /// # Errors
    /// Fails if no picture is prepared to that shape, or like [`read_digit`] and [`read_square`].
    pub fn read(self, path: &Path, shape: (usize, usize, usize)) -> Result<Vec<u8>> {
        match (self, shape) {
            (Self::Digit, (1, 28, 28)) => read_digit(path),
            (Self::Square, (1, height, width)) if height == width => read_grey_square(path, height),
            (Self::Square, (3, height, width)) if height == width => read_square(path, height),
            (_, (channels, height, width)) => {
                bail!(
                    "pictures can't be prepared as images of {height}x{width} pixels with {channels} channels"
                )
            }
        }
    }
}
