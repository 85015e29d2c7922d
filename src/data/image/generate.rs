//! The code that the built-in image sets share.

use super::images::{Images, image_size};
use crate::kernels::cpu::parallel;
use crate::rng::stream;
use candle_core::{Error, Result};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Draws `len` images of ten classes, equally often.
///
/// Each ten images hold every class once and have their own random stream, so that a smaller set is the beginning of a
/// larger one. `draw` draws one image of a class into zeroed bytes.
///
/// # Errors
/// Fails if the images don't fit in memory.
pub(super) fn generate(
    len: usize,
    shape: (usize, usize, usize),
    (seed, purpose): (u64, &str),
    draw: impl Fn(u8, &mut ChaCha8Rng, &mut [u8]) + Sync,
) -> Result<Images> {
    let too_many = || Error::Msg(format!("{purpose}: {len} images don't fit in memory"));
    let size = image_size(shape).ok_or_else(too_many)?;
    let bytes = len.checked_mul(size).ok_or_else(too_many)?;
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    pixels.try_reserve_exact(bytes).map_err(|_| too_many())?;
    labels.try_reserve_exact(len).map_err(|_| too_many())?;
    pixels.resize(bytes, 0);
    labels.resize(len, 0_u8);
    let mut images: Vec<(&mut [u8], &mut u8)> = pixels.chunks_mut(size).zip(&mut labels).collect();
    parallel::for_each_piece(&mut images, 10, |ten, images| {
        let mut rng = stream(seed, &format!("{purpose}/{ten}"));
        let mut order = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];
        order.shuffle(&mut rng);
        for ((pixels, label), class) in images.iter_mut().zip(order) {
            **label = class;
            draw(class, &mut rng, pixels);
        }
    });
    Images::new(pixels, labels, shape, 10)
}
