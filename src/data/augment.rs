//! Artificial expansion of a training set: each time a picture is batched it is drawn a little differently.

use super::Photo;
use crate::rng::stream;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// How a training picture is changed when it is batched.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Augmentation {
    /// Left alone or moved up, down, left or right by one pixel, each as often (Nielsen, chapter 6).
    Shifts,
    /// Moved, turned, scaled, sheared and bent (Simard, Steinkraus and Platt 2003; Cireşan et al. 2010).
    Distort(Distortion),
    /// Moved, mirrored and in other light: for photographs (He et al. 2015, section 4.2; Krizhevsky et al. 2012).
    Photo(Photo),
}

/// How far [`Expansion::Distort`] goes; zero everywhere leaves the picture as it is.
///
/// All but the elastic part are drawn evenly between minus and plus the bound given here. The defaults are for
/// handwriting on 28x28 pixels.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Distortion {
    /// Pixels along each axis.
    pub shift: f32,
    /// Degrees around the picture's middle.
    pub rotation: f32,
    /// Parts of the size, each axis by itself: 0.1 is 90% to 110%.
    pub scale: f32,
    /// Columns moved a row.
    pub shear: f32,
    /// Standard deviation, along each axis, of how far a pixel is moved from where the rest puts it, in pixels.
    pub elastic: f32,
    /// Over how many pixels that movement is alike: the standard deviation of the Gaussian that Simard smooths
    /// with, which a cubic B-spline over a coarse grid stands for here. Above zero.
    pub smoothness: f32,
}

impl Default for Distortion {
    fn default() -> Self {
        Self { shift: 1.5, rotation: 10.0, scale: 0.12, shear: 0.12, elastic: 0.9, smoothness: 4.5 }
    }
}

impl Augmentation {
    /// Writes to `out` what becomes of a picture of `shape` `(channels, height, width)`, row-major, in 0 to 1; zero
    /// where the original does not reach. What happens is drawn from `rng`.
    ///
    /// # Panics
    /// When `picture` or `out` is shorter than `shape` tells.
    pub fn apply(&self, picture: &[u8], shape: (usize, usize, usize), rng: &mut ChaCha8Rng, out: &mut [f32]) {
        let (_, height, width) = shape;
        match self {
            Self::Shifts => {
                let moves = [(0, 0), (0, -1), (0, 1), (-1, 0), (1, 0)];
                shift(picture, shape, moves[rng.random_range(0..moves.len())], false, out);
            }
            Self::Distort(distortion) => distortion.apply(picture, (height, width), rng, out),
            Self::Photo(photo) => photo.apply(picture, shape, rng, out),
        }
    }

    /// What becomes of `pictures`, those `indices` of a set, one after another; see [`apply`](Self::apply).
    ///
    /// The change is a function of `seed`, `epoch` and the picture's index: new every epoch, the same whatever else is
    /// in the batch.
    pub fn apply_to(
        &self,
        indices: &[u32],
        pictures: &[u8],
        shape: (usize, usize, usize),
        (seed, epoch): (u64, usize),
    ) -> Vec<f32> {
        let size = shape.0 * shape.1 * shape.2;
        let mut pixels = vec![0.0; pictures.len()];
        let pairs = pixels.par_chunks_mut(size).zip(pictures.par_chunks(size)).zip(indices);
        pairs.for_each(|((changed, picture), &index)| {
            let mut rng = stream(seed, &format!("expand/epoch {epoch}/picture {index}"));
            self.apply(picture, shape, &mut rng, changed);
        });
        pixels
    }
}

/// Moves the picture by `(columns, rows)`, mirrored first where `flip` says so. The columns and rows that it fills.
pub(super) fn shift(
    picture: &[u8],
    (_, height, width): (usize, usize, usize),
    by: (isize, isize),
    flip: bool,
    out: &mut [f32],
) -> [Range<usize>; 2] {
    let filled = |by: isize, length: usize| {
        let within = |at: isize| at.clamp(0, length as isize) as usize;
        within(by)..within(length as isize + by)
    };
    let (columns, rows) = (filled(by.0, width), filled(by.1, height));
    out.fill(0.0);
    for (plane, out) in picture.chunks(height * width).zip(out.chunks_mut(height * width)) {
        for y in rows.clone() {
            let from = &plane[y.wrapping_add_signed(-by.1) * width..][..width];
            let to = out[y * width..][columns.clone()].iter_mut();
            let skipped = (-by.0).max(0) as usize;
            if flip {
                to.zip(from.iter().rev().skip(skipped)).for_each(|(to, &byte)| *to = f32::from(byte) / 255.0);
            } else {
                to.zip(from.iter().skip(skipped)).for_each(|(to, &byte)| *to = f32::from(byte) / 255.0);
            }
        }
    }
    [columns, rows]
}

impl Distortion {
    fn apply(&self, picture: &[u8], (height, width): (usize, usize), rng: &mut ChaCha8Rng, out: &mut [f32]) {
        let mut within = |bound: f32| bound * rng.random_range(-1.0..=1.0_f32);
        let (sin, cos) = within(self.rotation.to_radians()).sin_cos();
        let [across, down] = [within(self.scale), within(self.scale)].map(|change| 1.0 / (1.0 + change));
        let shear = within(self.shear);
        // From where in the picture a pixel comes: turned and scaled around the middle, sheared, moved, then bent.
        let turn = [
            [across * cos - shear * down * sin, across * sin + shear * down * cos],
            [-down * sin, down * cos],
        ];
        let middle = [width, height].map(|length| 0.5 * (length as f32 - 1.0));
        let start = middle.map(|middle| middle + within(self.shift));
        // The cubic B-spline over knots h apart has variance h^2 / 3.
        let spacing = 3.0_f32.sqrt() * self.smoothness;
        let (rows, columns) = (splines(height, spacing), splines(width, spacing));
        let [from_x, from_y] = [0, 1].map(|axis| {
            let mut from = self.elastic(&rows, height, &columns, width, rng);
            for (y, row) in from.chunks_mut(width).enumerate() {
                let start = start[axis] + turn[axis][1] * (y as f32 - middle[1]);
                for (x, from) in row.iter_mut().enumerate() {
                    *from += start + turn[axis][0] * (x as f32 - middle[0]);
                }
            }
            from
        });
        for (plane, out) in picture.chunks(height * width).zip(out.chunks_mut(height * width)) {
            let framed = framed(plane, height, width);
            for (value, (&x, &y)) in out.iter_mut().zip(from_x.iter().zip(&from_y)) {
                *value = between(&framed, height, width, x, y);
            }
        }
    }

    /// How far each pixel is moved along one axis: normal numbers at the knots of a coarse grid, smooth between.
    fn elastic(
        &self,
        rows: &[f32],
        height: usize,
        columns: &[f32],
        width: usize,
        rng: &mut ChaCha8Rng,
    ) -> Vec<f32> {
        // The sum of the squared weights of a pixel's knots is, on average, 151/315 along each axis.
        let size = self.elastic * (315.0 / 151.0);
        let mut field = vec![0.0; height * width];
        let mut row = vec![0.0; width];
        for down in rows.chunks(height) {
            row.fill(0.0);
            for across in columns.chunks(width) {
                add_scaled(&mut row, size * rng.sample::<f32, _>(StandardNormal), across);
            }
            for (to, &weight) in field.chunks_mut(width).zip(down).filter(|&(_, &weight)| weight != 0.0) {
                add_scaled(to, weight, &row);
            }
        }
        field
    }
}

/// The cubic B-splines around knots `spacing` apart, `(knots, pixels)` row-major.
fn splines(pixels: usize, spacing: f32) -> Vec<f32> {
    let knots = ((pixels - 1) as f32 / spacing) as usize + 4;
    let mut weights = vec![0.0; knots * pixels];
    for pixel in 0..pixels {
        let at = pixel as f32 / spacing;
        let knot = at as usize;
        let t = at - knot as f32;
        let (t2, t3) = (t * t, t * t * t);
        let four = [1.0 - 3.0 * (t - t2) - t3, 4.0 - 6.0 * t2 + 3.0 * t3, 1.0 + 3.0 * (t + t2 - t3), t3];
        for (next, weight) in four.into_iter().enumerate() {
            weights[(knot + next) * pixels + pixel] = weight / 6.0;
        }
    }
    weights
}

pub(super) fn add_scaled(to: &mut [f32], scale: f32, values: &[f32]) {
    for (to, value) in to.iter_mut().zip(values) {
        *to += scale * value;
    }
}

/// The picture in 0 to 1 with a frame of zeros one pixel wide.
fn framed(picture: &[u8], height: usize, width: usize) -> Vec<f32> {
    let mut framed = vec![0.0; (height + 2) * (width + 2)];
    for (to, from) in framed.chunks_mut(width + 2).skip(1).zip(picture.chunks(width).take(height)) {
        for (to, &from) in to[1..].iter_mut().zip(from) {
            *to = f32::from(from) / 255.0;
        }
    }
    framed
}

/// The value at column `x` and row `y` of the picture inside the frame, bilinear between pixels.
fn between(framed: &[f32], height: usize, width: usize, x: f32, y: f32) -> f32 {
    let x = (x + 1.0).clamp(0.0, width as f32 + 0.999);
    let y = (y + 1.0).clamp(0.0, height as f32 + 0.999);
    let (column, row) = (x as i32, y as i32);
    let (right, below) = (x - column as f32, y - row as f32);
    let pixels = &framed[row as usize * (width + 2) + column as usize..][..width + 4];
    let [a, b, c, d] = [pixels[0], pixels[1], pixels[width + 2], pixels[width + 3]];
    let (above, under) = (a + right * (b - a), c + right * (d - c));
    above + below * (under - above)
}

#[cfg(test)]
mod tests {
    use super::{Augmentation, Distortion};
    use crate::data::{Images, digits};
    use crate::rng::stream;
    use candle_core::{Device, Result};

    const SHAPE: (usize, usize, usize) = (1, 28, 28);

    fn expand(augmentation: Augmentation, picture: &[u8], seed: u64) -> Vec<f32> {
        let mut out = vec![f32::NAN; picture.len()];
        augmentation.apply(picture, SHAPE, &mut stream(seed, "expand"), &mut out);
        out
    }

    fn in_0_to_1(picture: &[u8]) -> Vec<f32> {
        picture.iter().map(|&byte| f32::from(byte) / 255.0).collect()
    }

    #[test]
    fn shifts_move_by_at_most_one_pixel_and_fill_with_zeros() {
        let picture: Vec<u8> = (0..28 * 28).map(|at| (at % 251) as u8 + 1).collect();
        let moved = |columns: isize, rows: isize| -> Vec<f32> {
            let value = |x: isize, y: isize| match (x - columns, y - rows) {
                (x @ 0..28, y @ 0..28) => f32::from(picture[(y * 28 + x) as usize]) / 255.0,
                _ => 0.0,
            };
            (0..28).flat_map(|y| (0..28).map(move |x| (x, y))).map(|(x, y)| value(x, y)).collect()
        };
        let moves = [moved(0, 0), moved(0, -1), moved(0, 1), moved(-1, 0), moved(1, 0)];
        let mut seen = [0; 5];
        for seed in 0..1000 {
            let shifted = expand(Augmentation::Shifts, &picture, seed);
            seen[moves.iter().position(|moved| *moved == shifted).unwrap()] += 1;
        }
        assert!(seen.iter().all(|&times| (150..250).contains(&times)), "{seen:?}");
    }

    #[test]
    fn no_distortion_leaves_the_picture_alone() -> Result<()> {
        let (images, _) = digits(10, 0, 1)?;
        let none =
            Distortion { shift: 0.0, rotation: 0.0, scale: 0.0, shear: 0.0, elastic: 0.0, smoothness: 4.0 };
        for index in 0..10 {
            let picture = images.picture(index)?;
            assert_eq!(expand(Augmentation::Distort(none), &picture, 1), in_0_to_1(&picture));
        }
        Ok(())
    }

    #[test]
    fn distortion_keeps_the_ink_and_changes_with_the_seed() -> Result<()> {
        let (images, _) = digits(500, 0, 1)?;
        let distort = Augmentation::Distort(Distortion::default());
        let (mut before, mut after) = (0.0, 0.0);
        for index in 0..500 {
            let picture = &images.picture(index)?;
            let distorted = expand(distort, picture, index as u64);
            assert!(distorted.iter().all(|value| (0.0..=1.0).contains(value)));
            assert_eq!(distorted, expand(distort, picture, index as u64));
            assert_ne!(distorted, expand(distort, picture, index as u64 + 1));
            before += in_0_to_1(picture).iter().sum::<f32>();
            after += distorted.iter().sum::<f32>();
        }
        assert!((after / before - 1.0).abs() < 0.03, "{before} became {after}");
        Ok(())
    }

    #[test]
    fn elastic_movements_have_the_size_asked_for() {
        // On a ramp along x the value tells from where it came.
        let ramp: Vec<u8> = (0..28 * 28).map(|at| (at % 28 * 9) as u8).collect();
        let elastic =
            Distortion { shift: 0.0, rotation: 0.0, scale: 0.0, shear: 0.0, ..Distortion::default() };
        let mut squares = 0.0;
        for seed in 0..400 {
            let bent = expand(Augmentation::Distort(elastic), &ramp, seed);
            let moves = (8..20).flat_map(|y| (8..20).map(move |x| (x, y)));
            squares += moves.map(|(x, y)| (bent[y * 28 + x] * 255.0 / 9.0 - x as f32).powi(2)).sum::<f32>();
        }
        let deviation = (squares / (400.0 * 144.0)).sqrt();
        assert!((deviation / elastic.elastic - 1.0).abs() < 0.08, "{deviation}");
    }

    #[test]
    fn a_picture_is_expanded_alike_in_any_batch_and_anew_each_epoch() -> Result<()> {
        let (images, _) = digits(40, 0, 1)?;
        let augmentation = Augmentation::Distort(Distortion::default());
        let batch = |images: &Images, indices: &[u32], epoch| -> Result<Vec<Vec<f32>>> {
            let (pixels, labels) = images.augmented_batch(indices, &augmentation, 7, epoch, &Device::Cpu)?;
            assert_eq!(pixels.dims(), [indices.len(), 1, 28, 28]);
            assert_eq!(
                labels.to_vec1::<u32>()?,
                indices.iter().map(|&index| images.labels()[index as usize]).collect::<Vec<_>>()
            );
            pixels.flatten_from(1)?.to_vec2()
        };
        let all: Vec<u32> = (0..40).collect();
        let whole = batch(&images, &all, 1)?;
        assert_eq!(batch(&images, &[31, 2], 1)?, [whole[31].clone(), whole[2].clone()]);
        assert_ne!(batch(&images, &[31], 2)?, [whole[31].clone()]);
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| batch(&images, &all, 1))?, whole);
        }
        Ok(())
    }

    #[test]
    fn channels_of_a_picture_are_expanded_alike() -> Result<()> {
        let (one, _) = digits(1, 0, 1)?;
        let colour = Images::new(one.picture(0)?.repeat(3), vec![0_u8], (3, 28, 28), 10)?;
        let augmentation = Augmentation::Distort(Distortion::default());
        let (pixels, _) = colour.augmented_batch(&[0], &augmentation, 7, 1, &Device::Cpu)?;
        let planes = pixels.reshape((3, 28 * 28))?.to_vec2::<f32>()?;
        assert!(planes[0] == planes[1] && planes[1] == planes[2]);
        Ok(())
    }
}
