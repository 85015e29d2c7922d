//! Photographs as squares of one size.

use super::super::files::check_side;
use super::decode;
use anyhow::{Result, anyhow, ensure};
use image::{DynamicImage, ImageDecoder, RgbImage, imageops};
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};

/// Smaller images are placeholders, without content to learn from.
const MIN_SIDE: u32 = 4;

/// Upper bound of the bytes of whole images that are decoded at the same time, over all threads.
const MAX_DECODING: u64 = 512 << 20;

/// Reads the PNG or JPEG file `path` as `(3, side, side)` row-major bytes: red, green, blue.
///
/// The central square of the image is scaled to `side`, averaged where it shrinks and interpolated linearly where it
/// grows. Grey, palette and 16-bit images become 8-bit colour, transparent parts become white, and the EXIF orientation
/// is applied. Images that are read at the same time take at most 512 MiB of memory, decoded; further threads wait.
///
/// # Errors
/// Fails if `side` is 0 or above 16,384; if the file is missing, truncated, neither PNG nor JPEG, smaller than 4x4
/// pixels, or too large to decode.
pub fn read_square(path: &Path, side: usize) -> Result<Vec<u8>> {
    square(&decode::read(path)?, path, side)
}

/// Like [`read_square`], with `bytes` as the contents of the file `path`.
pub(super) fn square(bytes: &[u8], path: &Path, side: usize) -> Result<Vec<u8>> {
    check_side(side)?;
    let square = scaled(bytes, side as u32).map_err(|error| anyhow!("{}: {error}", path.display()))?;
    Ok((0..3).flat_map(|channel| square.pixels().map(move |pixel| pixel.0[channel])).collect())
}

/// Checks the header of the image file `path`, and that the file is complete, without decoding it.
pub(in super::super) fn check(path: &Path) -> Result<()> {
    let bytes = decode::read(path)?;
    let checked = decode::open(&bytes).and_then(|decoder| check_size(decoder.dimensions()));
    checked.map_err(|error| anyhow!("{}: {error}", path.display()))
}

fn check_size((width, height): (u32, u32)) -> Result<()> {
    ensure!(
        width.min(height) >= MIN_SIDE,
        "found {width}x{height} pixels, expected at least {MIN_SIDE}x{MIN_SIDE}"
    );
    Ok(())
}

fn scaled(bytes: &[u8], side: u32) -> Result<RgbImage> {
    let decoder = decode::open(bytes)?;
    check_size(decoder.dimensions())?;
    let _reserved = Reservation::wait_for(decoder.total_bytes());
    let whole = opaque(decode::decode(decoder)?);
    if whole.dimensions() == (side, side) {
        return Ok(whole);
    }
    let (width, height) = whole.dimensions();
    let shorter = width.min(height);
    let square = imageops::crop_imm(&whole, (width - shorter) / 2, (height - shorter) / 2, shorter, shorter);
    Ok(imageops::resize(&*square, side, side, imageops::Triangle))
}

/// The image in colour, on white where it is transparent.
fn opaque(image: DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.into_rgb8();
    }
    let image = image.into_rgba8();
    RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let [red, green, blue, alpha] = image.get_pixel(x, y).0.map(u32::from);
        image::Rgb([red, green, blue].map(|value| ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8))
    })
}

/// Bytes of the images that are being decoded.
static DECODING: (Mutex<u64>, Condvar) = (Mutex::new(0), Condvar::new());

/// A share of [`MAX_DECODING`], given back when dropped.
struct Reservation(u64);

impl Reservation {
    /// Waits until `bytes` are free. An image larger than the limit is decoded alone.
    fn wait_for(bytes: u64) -> Self {
        let (taken, given_back) = &DECODING;
        let taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |taken: &mut u64| *taken > 0 && *taken + bytes > MAX_DECODING;
        *given_back.wait_while(taken, full).unwrap_or_else(PoisonError::into_inner) += bytes;
        Self(bytes)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let (taken, given_back) = &DECODING;
        *taken.lock().unwrap_or_else(PoisonError::into_inner) -= self.0;
        given_back.notify_all();
    }
}
