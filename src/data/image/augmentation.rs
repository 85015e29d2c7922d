//! Augmentation: a training image changes slightly each time it is batched.

use super::distortion::Distortion;
use super::photo::PhotoAugmentation;
use super::shift::shift;
use crate::kernels::cpu::parallel;
use crate::ops::image_batch::Placement;
use crate::rng::stream;
use candle_core::Result;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How training images are augmented.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Augmentation {
    /// Shifts by one pixel up, down, left, right, or not at all, equally likely (Nielsen, chapter 6).
    Shifts,
    /// Affine and elastic distortions (Simard, Steinkraus and Platt 2003; Cireşan et al. 2010).
    Distort(Distortion),
    /// Crops, flips and colour jitter, for photographs (He et al. 2015, section 4.2; Krizhevsky et al. 2012).
    Photo(PhotoAugmentation),
}

impl fmt::Display for Augmentation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Shifts => write!(f, "shifts by one pixel"),
            Self::Distort(_) => write!(f, "affine and elastic distortions"),
            Self::Photo(photo) => photo.fmt(f),
        }
    }
}

impl Augmentation {
    /// Checks the parameters.
    pub(super) fn validate(&self) -> Result<()> {
        match self {
            Self::Shifts => Ok(()),
            Self::Distort(distortion) => distortion.validate(),
            Self::Photo(photo) => photo.validate(),
        }
    }

    /// Augments one image of `shape` `(channels, height, width)`, row-major, into `out`, from 0 to 1.
    ///
    /// Pixels from outside the image are 0.
    fn apply(&self, image: &[u8], shape: (usize, usize, usize), rng: &mut ChaCha8Rng, out: &mut [f32]) {
        let (_, height, width) = shape;
        match self {
            Self::Shifts => {
                shift(image, (height, width), random_shift(rng), false, out);
            }
            Self::Distort(distortion) => distortion.apply(image, (height, width), rng, out),
            Self::Photo(photo) => photo.apply(image, shape, rng, out),
        }
    }

    /// Augments `images`, the images `indices` of a set, one after another.
    ///
    /// The random numbers are a function of `seed`, `epoch` and the image's index.
    pub(super) fn apply_to(
        &self,
        indices: &[u32],
        images: &[u8],
        shape: (usize, usize, usize),
        (seed, epoch): (u64, usize),
    ) -> Vec<f32> {
        let size = shape.0 * shape.1 * shape.2;
        let mut pixels = vec![0.0; images.len()];
        parallel::for_each_piece(&mut pixels, size, |at, out| {
            self.apply(
                &images[at * size..][..size],
                shape,
                &mut image_stream(indices[at], (seed, epoch)),
                out,
            );
        });
        pixels
    }

    /// Whether the augmentation only shifts and flips.
    pub(super) fn only_places(&self) -> bool {
        match self {
            Self::Shifts => true,
            Self::Distort(_) => false,
            Self::Photo(photo) => !photo.jitters(),
        }
    }

    /// The shifts and flips that [`apply_to`](Self::apply_to) gives the images `indices`.
    pub(super) fn placements(&self, indices: &[u32], (seed, epoch): (u64, usize)) -> Vec<Placement> {
        let place = |&index: &u32| {
            let rng = &mut image_stream(index, (seed, epoch));
            let ((columns, rows), flip) = match self {
                Self::Shifts => (random_shift(rng), false),
                Self::Distort(_) => ((0, 0), false),
                Self::Photo(photo) => photo.place(rng),
            };
            Placement { index, by: (columns as i32, rows as i32), flip }
        };
        indices.iter().map(place).collect()
    }
}

/// The random numbers of an image.
fn image_stream(index: u32, (seed, epoch): (u64, usize)) -> ChaCha8Rng {
    // The wording is part of the seed.
    stream(seed, &format!("expand/epoch {epoch}/picture {index}"))
}

/// One of the five shifts by at most a pixel.
fn random_shift(rng: &mut ChaCha8Rng) -> (isize, isize) {
    let shifts = [(0, 0), (0, -1), (0, 1), (-1, 0), (1, 0)];
    shifts[rng.random_range(0..shifts.len())]
}

#[cfg(test)]
mod tests {
    use super::super::digits::digits;
    use super::super::images::Images;
    use super::{Augmentation, Distortion};
    use crate::rng::stream;
    use candle_core::{Device, Result};

    const SHAPE: (usize, usize, usize) = (1, 28, 28);

    fn augment(augmentation: Augmentation, image: &[u8], seed: u64) -> Vec<f32> {
        let mut out = vec![f32::NAN; image.len()];
        augmentation.apply(image, SHAPE, &mut stream(seed, "expand"), &mut out);
        out
    }

    fn in_0_to_1(image: &[u8]) -> Vec<f32> {
        image.iter().map(|&byte| f32::from(byte) / 255.0).collect()
    }

    #[test]
    fn shifts_are_of_at_most_one_pixel_and_fill_with_zeros() {
        let image: Vec<u8> = (0..28 * 28).map(|at| (at % 251) as u8 + 1).collect();
        let moved = |columns: isize, rows: isize| -> Vec<f32> {
            let value = |x: isize, y: isize| match (x - columns, y - rows) {
                (x @ 0..28, y @ 0..28) => f32::from(image[(y * 28 + x) as usize]) / 255.0,
                _ => 0.0,
            };
            (0..28).flat_map(|y| (0..28).map(move |x| (x, y))).map(|(x, y)| value(x, y)).collect()
        };
        let moves = [moved(0, 0), moved(0, -1), moved(0, 1), moved(-1, 0), moved(1, 0)];
        let mut counts = [0; 5];
        for seed in 0..1000 {
            let shifted = augment(Augmentation::Shifts, &image, seed);
            counts[moves.iter().position(|moved| *moved == shifted).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| (150..250).contains(count)), "{counts:?}");
    }

    #[test]
    fn no_distortion_leaves_the_image_unchanged() -> Result<()> {
        let (images, _) = digits(10, 0, 1)?;
        let none =
            Distortion { shift: 0.0, rotation: 0.0, scale: 0.0, shear: 0.0, elastic: 0.0, smoothness: 4.0 };
        for index in 0..10 {
            let image = images.image(index)?;
            assert_eq!(augment(Augmentation::Distort(none), &image, 1), in_0_to_1(&image));
        }
        Ok(())
    }

    #[test]
    fn distortion_keeps_the_amount_of_ink_and_depends_on_the_seed() -> Result<()> {
        let (images, _) = digits(500, 0, 1)?;
        let distort = Augmentation::Distort(Distortion::default());
        let (mut before, mut after) = (0.0, 0.0);
        for index in 0..500 {
            let image = &images.image(index)?;
            let distorted = augment(distort, image, index as u64);
            assert!(distorted.iter().all(|value| (0.0..=1.0).contains(value)));
            assert_eq!(distorted, augment(distort, image, index as u64));
            assert_ne!(distorted, augment(distort, image, index as u64 + 1));
            before += in_0_to_1(image).iter().sum::<f32>();
            after += distorted.iter().sum::<f32>();
        }
        assert!((after / before - 1.0).abs() < 0.03, "{before} became {after}");
        Ok(())
    }

    #[test]
    fn elastic_displacements_have_the_given_standard_deviation() {
        // On a ramp along x, the value shows which column it came from.
        let ramp: Vec<u8> = (0..28 * 28).map(|at| (at % 28 * 9) as u8).collect();
        let elastic =
            Distortion { shift: 0.0, rotation: 0.0, scale: 0.0, shear: 0.0, ..Distortion::default() };
        let mut squares = 0.0;
        for seed in 0..400 {
            let distorted = augment(Augmentation::Distort(elastic), &ramp, seed);
            let moves = (8..20).flat_map(|y| (8..20).map(move |x| (x, y)));
            squares +=
                moves.map(|(x, y)| (distorted[y * 28 + x] * 255.0 / 9.0 - x as f32).powi(2)).sum::<f32>();
        }
        let deviation = (squares / (400.0 * 144.0)).sqrt();
        assert!((deviation / elastic.elastic - 1.0).abs() < 0.08, "{deviation}");
    }

    #[test]
    fn augmentation_depends_on_the_epoch_and_not_on_the_batch() -> Result<()> {
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
    fn all_channels_are_augmented_alike() -> Result<()> {
        let (one, _) = digits(1, 0, 1)?;
        let colour = Images::new(one.image(0)?.repeat(3), vec![0_u8], (3, 28, 28), 10)?;
        let augmentation = Augmentation::Distort(Distortion::default());
        let (pixels, _) = colour.augmented_batch(&[0], &augmentation, 7, 1, &Device::Cpu)?;
        let planes = pixels.reshape((3, 28 * 28))?.to_vec2::<f32>()?;
        assert!(planes[0] == planes[1] && planes[1] == planes[2]);
        Ok(())
    }
}
