//! What is done to photographs in training: they are moved, mirrored and put in other light.

use super::augment::{add_scaled, shift};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// How much red, green and blue add to grey (ITU-R BT.601).
const LUMA: [f32; 3] = [0.299, 0.587, 0.114];

/// What [`Expansion::Photo`](super::Expansion::Photo) does. The default is what He et al. do to CIFAR-10, which leaves
/// the light alone.
///
/// Brightness, contrast and saturation are factors around 1, drawn evenly, each at most so far off it: 0.4 is 0.6 to
/// 1.4. They multiply the pixels, their distance from the picture's mean grey, and their distance from their own grey.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Photo {
    /// How many pixels the picture is moved along each axis, at most: the crops of the picture with such a frame of
    /// zeros, each as often.
    pub pad: usize,
    /// Mirrored left to right, every other time.
    pub flip: bool,
    pub brightness: f32,
    pub contrast: f32,
    pub saturation: f32,
}

impl Default for Photo {
    fn default() -> Self {
        Self { pad: 4, flip: true, brightness: 0.0, contrast: 0.0, saturation: 0.0 }
    }
}

impl Photo {
    /// As [`Expansion::apply`](super::Expansion::apply).
    pub(super) fn apply(
        &self,
        picture: &[u8],
        shape: (usize, usize, usize),
        rng: &mut ChaCha8Rng,
        out: &mut [f32],
    ) {
        let mut by = || rng.random_range(0..=2 * self.pad) as isize - self.pad as isize;
        let by = (by(), by());
        let flip = self.flip && rng.random();
        let within = shift(picture, shape, by, flip, out);
        if [self.brightness, self.contrast, self.saturation] != [0.0; 3] {
            self.light(picture, shape, within, rng, out);
        }
    }

    /// The part `within` of `out` in another light.
    fn light(
        &self,
        picture: &[u8],
        (channels, height, width): (usize, usize, usize),
        [columns, rows]: [Range<usize>; 2],
        rng: &mut ChaCha8Rng,
        out: &mut [f32],
    ) {
        let [brightness, contrast, saturation] = [self.brightness, self.contrast, self.saturation]
            .map(|bound| 1.0 + bound * rng.random_range(-1.0..=1.0_f32));
        let weight = |channel: usize| if channels == 3 { LUMA[channel] } else { 1.0 / channels as f32 };
        let planes = picture.chunks(height * width).enumerate();
        let mean: f32 = planes
            .map(|(channel, plane)| {
                weight(channel) * plane.iter().map(|&byte| u32::from(byte)).sum::<u32>() as f32
            })
            .sum::<f32>()
            / (255 * height * width) as f32;
        // All three are linear, so they are one map of a pixel and its grey.
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
                add_scaled(&mut grey, of_grey * weight(channel), &out[row(channel)]);
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
    use super::Photo;
    use crate::rng::stream;

    const COLOUR: (usize, usize, usize) = (3, 6, 9);

    fn photo(photo: Photo, picture: &[u8], seed: u64) -> Vec<f32> {
        let mut out = vec![f32::NAN; picture.len()];
        photo.apply(picture, COLOUR, &mut stream(seed, "expand"), &mut out);
        out
    }

    #[test]
    fn photos_are_cropped_from_a_frame_of_zeros_and_mirrored() {
        let picture: Vec<u8> = (1..=162).collect();
        let moved = |columns: isize, rows: isize, flip: bool| -> Vec<f32> {
            let value = |channel: isize, x: isize, y: isize| match (x - columns, y - rows) {
                (x @ 0..9, y @ 0..6) => {
                    let x = if flip { 8 - x } else { x };
                    f32::from(picture[((channel * 6 + y) * 9 + x) as usize]) / 255.0
                }
                _ => 0.0,
            };
            let places = (0..3).flat_map(|c| (0..6).flat_map(move |y| (0..9).map(move |x| (c, x, y))));
            places.map(|(c, x, y)| value(c, x, y)).collect()
        };
        let all = (-2..=2).flat_map(|x| (-2..=2).flat_map(move |y| [(x, y, false), (x, y, true)]));
        let all: Vec<Vec<f32>> = all.map(|(x, y, flip)| moved(x, y, flip)).collect();
        let mut seen = vec![0; all.len()];
        for seed in 0..5000 {
            let changed = photo(Photo { pad: 2, ..Photo::default() }, &picture, seed);
            seen[all.iter().position(|moved| *moved == changed).unwrap()] += 1;
        }
        assert!(seen.iter().all(|&times| (60..150).contains(&times)), "{seen:?}");
        let off = photo(Photo { pad: 7, ..Photo::default() }, &picture, 1);
        assert!(off.iter().all(|value| (0.0..=1.0).contains(value)));
    }

    #[test]
    fn light_changes_brightness_contrast_and_saturation_by_their_factors() {
        let none = Photo { pad: 0, flip: false, ..Photo::default() };
        let picture: Vec<u8> = (0..162).map(|at| 60 + (at * 37 % 90) as u8).collect();
        let before = picture.iter().map(|&byte| f32::from(byte) / 255.0).collect::<Vec<f32>>();
        assert_eq!(photo(none, &picture, 1), before);
        let grey = |of: &[f32], at: usize| 0.299 * of[at] + 0.587 * of[54 + at] + 0.114 * of[108 + at];
        let mean = (0..54).map(|at| grey(&before, at)).sum::<f32>() / 54.0;
        // Of every pixel the same factor, found between the bounds and near both of them.
        let factors = |photograph: Photo, factor: &dyn Fn(&[f32], usize) -> f32| {
            let (mut low, mut high) = (f32::INFINITY, 0.0_f32);
            for seed in 0..200 {
                let after = photo(photograph, &picture, seed);
                let first = factor(&after, 0);
                (1..162).for_each(|at| assert!((factor(&after, at) - first).abs() < 1e-3));
                (low, high) = (low.min(first), high.max(first));
            }
            assert!((0.6..0.62).contains(&low) && (1.38..1.401).contains(&high), "{low} to {high}");
        };
        factors(Photo { brightness: 0.4, ..none }, &|after, at| after[at] / before[at]);
        factors(Photo { contrast: 0.4, ..none }, &|after, at| {
            // What is near the mean says little of the factor.
            let far = (0..162).max_by(|&a, &b| (before[a] - mean).abs().total_cmp(&(before[b] - mean).abs()));
            let at = if (before[at] - mean).abs() < 0.02 { far.unwrap() } else { at };
            (after[at] - mean) / (before[at] - mean)
        });
        factors(Photo { saturation: 0.4, ..none }, &|after, at| {
            assert!((grey(after, at % 54) - grey(&before, at % 54)).abs() < 1e-5);
            let off = before[at] - grey(&before, at % 54);
            if off.abs() < 0.02 {
                (after[0] - grey(after, 0)) / (before[0] - grey(&before, 0))
            } else {
                (after[at] - grey(after, at % 54)) / off
            }
        });
        let strong = Photo { pad: 4, flip: true, brightness: 1.0, contrast: 1.0, saturation: 1.0 };
        assert!((0..50).all(|seed| photo(strong, &picture, seed).iter().all(|v| (0.0..=1.0).contains(v))));
    }
}
