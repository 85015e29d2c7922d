//! Decoding PNG and JPEG files, with limits on their size.

use crate::data::file_kind::found_instead;
use anyhow::{Context, Result, anyhow, bail, ensure};
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};
use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

const MAX_BYTES: u64 = 256 << 20;
const MAX_DECODED_BYTES: u64 = 512 << 20;

/// Returns the bytes of the file `path`. Stops reading a file that is too large once [`open`] can refuse it.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("{name}: can't be opened"))?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).with_context(|| format!("{name}: can't be read"))?;
    Ok(bytes)
}

/// Returns the image in `bytes`, the contents of the PNG or JPEG file `path`.
pub(super) fn whole(bytes: &[u8], path: &Path) -> Result<DynamicImage> {
    open(bytes).and_then(decode).map_err(|error| anyhow!("{}: {error}", path.display()))
}

/// Reads the header of a PNG or JPEG file and checks that the file is complete and not too large.
pub(super) fn open(bytes: &[u8]) -> Result<impl ImageDecoder> {
    let expected = "expected a PNG or JPEG image";
    ensure!(!bytes.is_empty(), "is empty, {expected}");
    ensure!(bytes.len() as u64 <= MAX_BYTES, "is larger than {} MiB, {expected}", MAX_BYTES >> 20);
    let format = match image::guess_format(bytes) {
        Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg)) => format,
        Ok(other) => bail!("is an image in the format {}, {expected}", other.extensions_str()[0]),
        Err(_) => match found_instead(bytes, "a PNG or JPEG image") {
            Some(other) => bail!("{other}"),
            None => bail!("is not an image, {expected}"),
        },
    };
    match format {
        ImageFormat::Png => check_chunks(bytes)?,
        _ => ensure!(has_end_marker(bytes), "truncated, expected a whole JPEG image"),
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_DECODED_BYTES);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    ensure!(width > 0 && height > 0, "found {width}x{height} pixels, expected at least one");
    ensure!(
        decoder.total_bytes() <= MAX_DECODED_BYTES,
        "{width}x{height} pixels take {} MiB, expected at most {}",
        decoder.total_bytes() >> 20,
        MAX_DECODED_BYTES >> 20
    );
    Ok(decoder)
}

/// Decodes the image and applies its EXIF orientation.
pub(super) fn decode(mut decoder: impl ImageDecoder) -> Result<DynamicImage> {
    let orientation = decoder.orientation().map_err(damaged)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    image.apply_orientation(orientation);
    Ok(image)
}

fn damaged(error: ImageError) -> anyhow::Error {
    // The decoder ends its message with a chunk in Rust's notation.
    let message = error.to_string();
    let why = message.split(" while decoding ").next().unwrap_or_default();
    anyhow!("damaged or truncated, expected a whole image: {why}")
}

/// Checks the checksums of a PNG file's chunks except the pixels', which the decoder checks.
///
/// The decoder ignores damage to the other chunks. Without them an image may be opaque or turned.
fn check_chunks(bytes: &[u8]) -> Result<()> {
    const SIGNATURE: usize = 8;
    let mut rest = bytes.get(SIGNATURE..).unwrap_or_default();
    while let Some((length, chunk)) = rest.split_first_chunk() {
        let length = u32::from_be_bytes(*length) as usize;
        let kind = chunk.get(..4).context("truncated, expected a whole PNG image")?;
        if kind == b"IDAT" {
            let after = chunk.get(length.saturating_add(8)..);
            rest = after.context("truncated, expected a whole PNG image")?;
            continue;
        }
        let name = kind.escape_ascii();
        let (checked, after) = chunk
            .split_at_checked(length.saturating_add(4))
            .with_context(|| format!("damaged or truncated in chunk {name}, expected a whole PNG image"))?;
        let (sum, after) = after.split_first_chunk().context("truncated, expected a whole PNG image")?;
        ensure!(
            crc32fast::hash(checked) == u32::from_be_bytes(*sum),
            "damaged: chunk {name} does not match its checksum, expected a whole PNG image"
        );
        if kind == b"IEND" {
            break;
        }
        rest = after;
    }
    Ok(())
}

/// Whether the end marker follows the last scan of a JPEG file. The decoder fills in missing data with grey.
fn has_end_marker(bytes: &[u8]) -> bool {
    const START: u8 = 0xd8;
    const END: u8 = 0xd9;
    const SCAN: u8 = 0xda;
    let mut at = 0;
    let mut in_scan = false;
    while let Some(&[mark, kind]) = bytes.get(at..at + 2).and_then(|pair| pair.first_chunk()) {
        match kind {
            _ if mark != 0xff && in_scan => at += 1,
            _ if mark != 0xff => return false,
            0xff => at += 1,
            0x00 | 0x01 | 0xd0..=0xd7 | START => at += 2,
            END => return true,
            _ => {
                let Some(&[high, low]) = bytes.get(at + 2..at + 4).and_then(|pair| pair.first_chunk()) else {
                    return false;
                };
                at += 2 + usize::from(u16::from_be_bytes([high, low]));
                in_scan = kind == SCAN;
            }
        }
    }
    false
}
