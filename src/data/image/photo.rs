//! Augmentation of photographs: random crops, flips and colour jitter.

use super::shift::shift;
use crate::data::count;
use candle_core::{Result, bail};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;

/// The weights of red, green and blue in grey (ITU-R BT.601).
const LUMA: [f32; 3] = [0.299, 0.587, 0.114];

/// Upper bound of [`PhotoAugmentation::pad`].
const MAX_PAD: usize = 1 << 16;

/// The parameters of [`Augmentation::Photo`](super::Augmentation::Photo).
///
/// The default follows He et al. on CIFAR-10: crops and flips, no colour jitter. Brightness, contrast and saturation
/// are factors drawn uniformly around 1, with the bound given here: 0.4 draws from 0.6 to 1.4. They scale the pixels,
/// their distance from the image's mean grey, and their distance from their own grey.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PhotoAugmentation {
    /// Zero padding on each side before a random crop of the original size. At most 65,536 pixels.
    pub pad: usize,
    /// Flips the image left to right with probability 1/2.
    pub flip: bool,
    /// Bound of the relative change of brightness.
    pub brightness: f32,
    /// Bound of the relative change of contrast.
    pub contrast: f32,
    /// Bound of the relative change of saturation.
    pub saturation: f32,
}

impl Default for PhotoAugmentation {
    fn default() -> Self {
        Self { pad: 4, flip: true, brightness: 0.0, contrast: 0.0, saturation: 0.0 }
    }
}

impl fmt::Display for PhotoAugmentation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mut parts = vec![];
        if self.flip {
            parts.push("mirroring".to_string());
        }
        if self.pad > 0 {
            parts.push(format!("shifts up to {}", count(self.pad, "pixel")));
        }
        if [self.brightness, self.contrast, self.saturation] != [0.0; 3] {
            parts.push("colour jitter".to_string());
        }
        if parts.is_empty() {
            parts.push("none".to_string());
        }
        f.write_str(&parts.join(", "))
    }
}

impl PhotoAugmentation {
    pub(super) fn validate(&self) -> Result<()> {
        if self.pad > MAX_PAD {
            bail!("photo augmentation: found a padding of {} pixels, expected at most {MAX_PAD}", self.pad);
        }
        if ![self.brightness, self.contrast, self.saturation].iter().all(|bound| bound.is_finite()) {
            bail!("photo augmentation: found an infinite or undefined factor, expected finite ones");
        }
        Ok(())
    }

    /// Augments one image into `out`.
    pub(super) fn apply(
        &self,
        image: &[u8],
        shape: (usize, usize, usize),
        rng: &mut ChaCha8Rng,
        out: &mut [f32],
    ) {
        let (by, flip) = self.place(rng);
        let covered = shift(image, (shape.1, shape.2), by, flip, out);
        if self.jitters() {
            self.jitter(image, shape, covered, rng, out);
        }
    }

    /// Draws the columns and rows that an image is shifted by, and whether it is flipped first.
    pub(super) fn place(&self, rng: &mut ChaCha8Rng) -> ((isize, isize), bool) {
        let mut by = || rng.random_range(0..=2 * self.pad) as isize - self.pad as isize;
        let by = (by(), by());
        (by, self.flip && rng.random())
    }

    /// Whether colours change.
    pub(super) fn jitters(&self) -> bool {
        [self.brightness, self.contrast, self.saturation] != [0.0; 3]
    }

    /// Changes brightness, contrast and saturation in the part `[columns, rows]` of `out`.
    fn jitter(
        &self,
        image: &[u8],
        (channels, height, width): (usize, usize, usize),
        [columns, rows]: [Range<usize>; 2],
        rng: &mut ChaCha8Rng,
        out: &mut [f32],
    ) {
        let [brightness, contrast, saturation] = [self.brightness, self.contrast, self.saturation]
            .map(|bound| 1.0 + bound * rng.random_range(-1.0..=1.0_f32));
        let weight = |channel: usize| if channels == 3 { LUMA[channel] } else { 1.0 / channels as f32 };
        let planes = image.chunks(height * width).enumerate();
        let mean: f32 = planes
            .map(|(channel, plane)| {
                weight(channel) * plane.iter().map(|&byte| u64::from(byte)).sum::<u64>() as f32
            })
            .sum::<f32>()
            / (255 * height * width) as f32;
        // All three changes are linear, so together they are one linear map of a pixel and its grey.
        let both = brightness * contrast;
        let (own, of_grey) = (saturation * both, (1.0 - saturation) * both);
        let offset = brightness * (1.0 - contrast) * mean;
        let mut grey = vec![0.0; columns.len()];
        for y in rows {
            let row = |channel: usize| {
                let start = (channel * height + y) * width;
                start + columns.start..start + columns.end
            };
            grey.fill(offset);
            for channel in 0..channels {
                let scale = of_grey * weight(channel);
                for (grey, value) in grey.iter_mut().zip(&out[row(channel)]) {
                    *grey += scale * value;
                }
            }
            for channel in 0..channels {
                for (value, grey) in out[row(channel)].iter_mut().zip(&grey) {
                    *value = (own * *value + grey).clamp(0.0, 1.0);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::PhotoAugmentation;
    use crate::rng::stream;

    const COLOUR: (usize, usize, usize) = (3, 6, 9);

    fn photo(photo: PhotoAugmentation, image: &[u8], seed: u64) -> Vec<f32> {
        let mut out = vec![f32::NAN; image.len()];
        photo.apply(image, COLOUR, &mut stream(seed, "photo"), &mut out);
        out
    }

    #[test]
    fn photos_are_cropped_from_a_padded_image_and_flipped() {
        let image: Vec<u8> = (1..=162).collect();
        let moved = |columns: isize, rows: isize, flip: bool| -> Vec<f32> {
            let value = |channel: isize, x: isize, y: isize| match (x - columns, y - rows) {
                (x @ 0..9, y @ 0..6) => {
                    let x = if flip { 8 - x } else { x };
                    f32::from(image[((channel * 6 + y) * 9 + x) as usize]) / 255.0
                }
                _ => 0.0,
            };
            let places = (0..3).flat_map(|c| (0..6).flat_map(move |y| (0..9).map(move |x| (c, x, y))));
            places.map(|(c, x, y)| value(c, x, y)).collect()
        };
        let all = (-2..=2).flat_map(|x| (-2..=2).flat_map(move |y| [(x, y, false), (x, y, true)]));
        let all: Vec<Vec<f32>> = all.map(|(x, y, flip)| moved(x, y, flip)).collect();
        let mut counts = vec![0; all.len()];
        for seed in 0..5000 {
            let changed = photo(PhotoAugmentation { pad: 2, ..PhotoAugmentation::default() }, &image, seed);
            counts[all.iter().position(|moved| *moved == changed).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| (60..150).contains(count)), "{counts:?}");
        let off = photo(PhotoAugmentation { pad: 7, ..PhotoAugmentation::default() }, &image, 1);
        assert!(off.iter().all(|value| (0.0..=1.0).contains(value)));
    }

    #[test]
    fn jitter_scales_brightness_contrast_and_saturation() {
        let none = PhotoAugmentation { pad: 0, flip: false, ..PhotoAugmentation::default() };
        let image: Vec<u8> = (0..162).map(|at| 60 + (at * 37 % 90) as u8).collect();
        let before = image.iter().map(|&byte| f32::from(byte) / 255.0).collect::<Vec<f32>>();
        assert_eq!(photo(none, &image, 1), before);
        let grey = |of: &[f32], at: usize| 0.299 * of[at] + 0.587 * of[54 + at] + 0.114 * of[108 + at];
        let mean = (0..54).map(|at| grey(&before, at)).sum::<f32>() / 54.0;
        // All pixels have one factor; over many seeds it comes near both bounds.
        let factors = |parameters: PhotoAugmentation, factor: &dyn Fn(&[f32], usize) -> f32| {
            let (mut low, mut high) = (f32::INFINITY, 0.0_f32);
            for seed in 0..200 {
                let after = photo(parameters, &image, seed);
                let first = factor(&after, 0);
                (1..162).for_each(|at| assert!((factor(&after, at) - first).abs() < 1e-3));
                (low, high) = (low.min(first), high.max(first));
            }
            assert!((0.6..0.62).contains(&low) && (1.38..1.401).contains(&high), "{low} to {high}");
        };
        factors(PhotoAugmentation { brightness: 0.4, ..none }, &|after, at| after[at] / before[at]);
        factors(PhotoAugmentation { contrast: 0.4, ..none }, &|after, at| {
            // Near the mean, rounding hides the factor.
            let far = (0..162).max_by(|&a, &b| (before[a] - mean).abs().total_cmp(&(before[b] - mean).abs()));
            let at = if (before[at] - mean).abs() < 0.02 { far.unwrap() } else { at };
            (after[at] - mean) / (before[at] - mean)
        });
        factors(PhotoAugmentation { saturation: 0.4, ..none }, &|after, at| {
            assert!((grey(after, at % 54) - grey(&before, at % 54)).abs() < 1e-5);
            let off = before[at] - grey(&before, at % 54);
            if off.abs() < 0.02 {
                (after[0] - grey(after, 0)) / (before[0] - grey(&before, 0))
            } else {
                (after[at] - grey(after, at % 54)) / off
            }
        });
        let strong =
            PhotoAugmentation { pad: 4, flip: true, brightness: 1.0, contrast: 1.0, saturation: 1.0 };
        assert!((0..50).all(|seed| photo(strong, &image, seed).iter().all(|v| (0.0..=1.0).contains(v))));
    }
}
