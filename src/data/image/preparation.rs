//! How a picture becomes an image like those of a data set.

use serde::{Deserialize, Serialize};

/// How a picture becomes an image like those of a data set, for a model that was trained on the data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preparation {
    /// As handwriting. A grey picture of the data set's size on an even background stays as it is, or is inverted if the
    /// background is light. Any other is a photograph of a handwritten digit: [`read_digit`](super::read_digit).
    Digit,
    /// As a square without further changes: [`read_square`](super::read_square), grey or in colour. An image of the data set stays as it is.
    Square,
}

/// What [`Preparation::read`] did to a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prepared {
    /// Nothing: it looks like an image of the data set.
    Unchanged,
    /// It looks like an image of the data set, inverted, and was inverted back.
    Inverted,
    /// It was taken as a photograph of a handwritten digit.
    Photograph,
    /// It was taken as a square.
    Square,
}
