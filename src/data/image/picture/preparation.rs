//! Preparing a picture as handwriting or as a square.

use super::super::files::grey;
use super::super::preparation::{Preparation, Prepared};
use super::decode;
use super::digit_photo::digit;
use super::square::square;
use crate::data::count;
use anyhow::{Result, bail};
use image::{DynamicImage, imageops};
use std::path::Path;

/// Largest distance between the values of an even background, and between the channels of a grey pixel.
const TOLERANCE: u8 = 32;

impl Preparation {
    /// Reads the PNG or JPEG file `path` as an image of `shape`, `(channels, height, width)`.
    ///
    /// Also returns the conversion that was applied.
    ///
    /// # Errors
    /// Fails if no conversion gives that shape, or like [`read_digit`](crate::data::image::read_digit) and
    /// [`read_square`](crate::data::image::read_square).
    pub fn read(self, path: &Path, shape: (usize, usize, usize)) -> Result<(Vec<u8>, Prepared)> {
        self.decode(&decode::read(path)?, path, shape)
    }

    /// Like [`read`](Self::read), with `bytes` as the contents of the file. Errors name it `path`.
    ///
    /// # Errors
    /// Fails like [`read`](Self::read).
    pub fn decode(
        self,
        bytes: &[u8],
        path: &Path,
        shape: (usize, usize, usize),
    ) -> Result<(Vec<u8>, Prepared)> {
        match (self, shape) {
            (Self::Digit, (1, 28, 28)) => {
                let picture = decode::whole(bytes, path)?;
                match like_mnist(&picture) {
                    Some(image) => Ok(image),
                    None => Ok((digit(picture, path)?, Prepared::Photograph)),
                }
            }
            (Self::Square, (1, height, width)) if height == width => {
                Ok((grey(&square(bytes, path, height)?), Prepared::Square))
            }
            (Self::Square, (3, height, width)) if height == width => {
                Ok((square(bytes, path, height)?, Prepared::Square))
            }
            (_, (channels, height, width)) => {
                bail!(
                    "pictures can't be prepared as images of {height}x{width} pixels with {}",
                    count(channels, "channel")
                )
            }
        }
    }
}

/// The pixels of a picture that looks like an image of MNIST.
///
/// It is grey, 28x28, on an even dark background, or inverted.
///
/// Some digits of MNIST touch the border, in at most 5 of its 108 pixels.
fn like_mnist(picture: &DynamicImage) -> Option<(Vec<u8>, Prepared)> {
    const SIDE: u32 = 28;
    let is_grey = |pixel: &image::Rgba<u8>| {
        let [red, green, blue, alpha] = pixel.0;
        red.abs_diff(green).max(green.abs_diff(blue)) <= TOLERANCE && alpha == u8::MAX
    };
    if (picture.width(), picture.height()) != (SIDE, SIDE) || !picture.to_rgba8().pixels().all(is_grey) {
        return None;
    }
    let mut grey = picture.to_luma8();
    let border =
        grey.enumerate_pixels().filter(|&(x, y, _)| [x, y].iter().any(|at| [0, SIDE - 1].contains(at)));
    let border: Vec<u8> = border.map(|(_, _, pixel)| pixel.0[0]).collect();
    let is_mostly = |value: u8| {
        border.iter().filter(|pixel| pixel.abs_diff(value) <= TOLERANCE).count() >= border.len() * 7 / 8
    };
    let prepared = match (is_mostly(0), is_mostly(u8::MAX)) {
        (true, _) => Prepared::Unchanged,
        (_, true) => Prepared::Inverted,
        _ => return None,
    };
    if prepared == Prepared::Inverted {
        imageops::invert(&mut grey);
    }
    let has_ink = grey.pixels().any(|pixel| pixel.0[0] > 2 * TOLERANCE);
    has_ink.then(|| (grey.into_raw(), prepared))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::digits;
    use image::GrayImage;

    #[test]
    fn images_of_the_data_set_stay_as_they_are() {
        let (_, test) = digits(0, 4000, 0).unwrap();
        for index in 0..test.len() {
            let pixels = test.image(index).unwrap().into_owned();
            let picture = GrayImage::from_raw(28, 28, pixels.clone()).unwrap();
            let mut inverted = picture.clone();
            imageops::invert(&mut inverted);
            for (picture, prepared) in [(picture, Prepared::Unchanged), (inverted, Prepared::Inverted)] {
                let in_colour = DynamicImage::from(picture.clone()).into_rgba8();
                for picture in [DynamicImage::from(picture), DynamicImage::from(in_colour)] {
                    assert_eq!(like_mnist(&picture), Some((pixels.clone(), prepared)), "image {index}");
                }
            }
        }
    }

    #[test]
    fn other_pictures_are_photographs() {
        let enlarged = GrayImage::new(56, 56);
        let shaded = GrayImage::from_fn(28, 28, |x, _| image::Luma([8 * x as u8]));
        let [grey, blank] = [128, 255].map(|value| GrayImage::from_pixel(28, 28, image::Luma([value])));
        for picture in [enlarged, shaded, grey, blank] {
            assert_eq!(like_mnist(&picture.into()), None);
        }
        assert_eq!(like_mnist(&image::RgbImage::from_pixel(28, 28, image::Rgb([0, 0, 200])).into()), None);
        assert_eq!(like_mnist(&image::RgbaImage::new(28, 28).into()), None);
    }
}
