//! MNIST's own file format, IDX: a magic number, the sizes, then a byte a pixel or label; gzipped or not.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use flate2::bufread::MultiGzDecoder;

use super::Images;

/// The labels of every data set in MNIST's format are the digits, or ten kinds of clothing.
const CLASSES: usize = 10;

/// Deflate can't pack more than this many bytes into one, so a header that announces more is wrong.
const DEFLATE_MAX_RATIO: u64 = 1032;

/// Reads the training and the test set in MNIST's format from `dir`: `train-images-idx3-ubyte`,
/// `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`, each with or without `.gz`,
/// also spelled `train-images.idx3-ubyte`. The pictures have the shape `(1, height, width)` and ten classes.
///
/// The format is described on the MNIST page of LeCun, Cortes and Burges.
///
/// # Errors
/// When a file is missing, truncated, damaged, longer than its header announces or not of this format; when the
/// counts of pictures and labels disagree; when a label is above 9; when training and test pictures differ in size.
pub fn read_dir(dir: &Path) -> Result<(Images, Images)> {
    let train = read_split(dir, "train")?;
    let test = read_split(dir, "t10k")?;
    let ((_, train_height, train_width), (_, height, width)) = (train.shape(), test.shape());
    ensure!(
        train.shape() == test.shape(),
        "{}: the test pictures are {height}x{width}, but the training pictures are {train_height}x{train_width}",
        dir.display()
    );
    Ok((train, test))
}

fn read_split(dir: &Path, split: &str) -> Result<Images> {
    let images_path = find(dir, &format!("{split}-images"), 3)?;
    let labels_path = find(dir, &format!("{split}-labels"), 1)?;
    let ([images, height, width], pixels) = read(&images_path)?;
    let ([count], labels) = read(&labels_path)?;
    ensure!(
        count == images,
        "{}: {count} labels, but {} holds {images} pictures",
        labels_path.display(),
        images_path.display()
    );
    if let Some(at) = labels.iter().position(|&label| usize::from(label) >= CLASSES) {
        bail!("{}: label {} at position {at}, expected 0 to 9", labels_path.display(), labels[at]);
    }
    Ok(Images::new(pixels, labels, (1, height, width), CLASSES)?)
}

fn find(dir: &Path, stem: &str, dimensions: usize) -> Result<PathBuf> {
    ensure!(dir.is_dir(), "{}: no such directory", dir.display());
    let dashed = format!("{stem}-idx{dimensions}-ubyte");
    let dotted = format!("{stem}.idx{dimensions}-ubyte");
    let names = [format!("{dashed}.gz"), dashed, format!("{dotted}.gz"), dotted];
    match names.iter().map(|name| dir.join(name)).find(|path| path.exists()) {
        Some(path) => Ok(path),
        None => bail!("{}: none of the files {} is here", dir.display(), names.join(", ")),
    }
}

/// The sizes and the bytes of one file. Whether it is gzipped shows in its first bytes, not in its name.
fn read<const D: usize>(path: &Path) -> Result<([usize; D], Vec<u8>)> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("{name}: can't be opened"))?;
    let length = file.metadata().with_context(|| format!("{name}: can't be read"))?.len();
    let mut file = BufReader::with_capacity(1 << 16, file);
    let start = file.fill_buf().with_context(|| format!("{name}: can't be read"))?;
    ensure!(!start.is_empty(), "{name}: is empty, expected an IDX file");
    let parsed = if start.starts_with(&[0x1f, 0x8b]) {
        parse(MultiGzDecoder::new(file), length.saturating_mul(DEFLATE_MAX_RATIO))
    } else {
        parse(file, length)
    };
    parsed.map_err(|found| anyhow::anyhow!("{name}: {found}"))
}

/// Reads to the end, which also makes the gzip decoder compare its checksum. `most` is how many bytes there can be.
fn parse<const D: usize>(mut reader: impl Read, most: u64) -> Result<([usize; D], Vec<u8>)> {
    let magic = word(&mut reader)?;
    let expected = 0x0800 + D as u32;
    ensure!(
        magic == expected,
        "starts with {magic:08x}, expected {expected:08x} (IDX, bytes, {D} dimensions)"
    );
    let mut sizes = [0; D];
    for size in &mut sizes {
        *size = word(&mut reader)? as usize;
    }
    let announced = sizes.map(|size| size.to_string()).join("x");
    ensure!(!sizes.contains(&0), "the header announces {announced} bytes, expected no size of 0");
    let length = sizes.iter().try_fold(1_usize, |length, &size| length.checked_mul(size));
    let Some(length) = length.filter(|&length| length as u64 <= most) else {
        bail!(
            "the header announces {announced} bytes, but the file can hold {most} at most: truncated or damaged"
        );
    };
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length).with_context(|| format!("no memory for {announced} bytes"))?;
    reader.by_ref().take(length as u64).read_to_end(&mut bytes).map_err(damage)?;
    ensure!(
        bytes.len() == length,
        "{} bytes follow the header, expected {announced} = {length}: truncated",
        bytes.len()
    );
    ensure!(
        reader.read(&mut [0]).map_err(damage)? == 0,
        "more bytes follow than the {announced} = {length} that the header announces"
    );
    Ok((sizes, bytes))
}

fn word(reader: &mut impl Read) -> Result<u32> {
    let mut bytes = [0; 4];
    reader.read_exact(&mut bytes).map_err(damage)?;
    Ok(u32::from_be_bytes(bytes))
}

fn damage(error: std::io::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::UnexpectedEof => anyhow::anyhow!("ends too early, expected a whole file: truncated"),
        ErrorKind::InvalidInput | ErrorKind::InvalidData => {
            anyhow::anyhow!("damaged, expected a whole gzip file: {error}")
        }
        _ => error.into(),
    }
}
