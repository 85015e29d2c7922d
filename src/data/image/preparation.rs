//! Conversion of pictures to the form of a data set's images.

use serde::{Deserialize, Serialize};

/// How to convert a picture for a model that was trained on a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preparation {
    /// As handwriting.
    ///
    /// A grey picture of the data set's size on an even background is kept, or inverted if the background is light. Any
    /// other picture is treated as a photograph of a handwritten digit: see [`read_digit`](super::read_digit).
    Digit,
    /// As a square, grey or in colour: see [`read_square`](super::read_square).
    ///
    /// An image of the data set is kept.
    Square,
}

/// The conversion that [`Preparation::read`] applied to a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prepared {
    /// None: the picture looks like an image of the data set.
    Unchanged,
    /// The picture looks like an inverted image of the data set, and was inverted back.
    Inverted,
    /// The picture was treated as a photograph of a handwritten digit.
    Photograph,
    /// The picture was treated as a square.
    Square,
}
