//! IDX, the format of MNIST.
//!
//! A file has a magic number, the dimensions, then one byte per pixel or label, and may be gzipped.

use super::images::Images;
use crate::data::count as quantity;
use crate::data::file_kind::{check_is_directory, found_instead};
use crate::data::gzip;
use crate::data::splits;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// Number of classes of MNIST and Fashion-MNIST.
const CLASSES: usize = 10;

/// The largest compression ratio of Deflate: a header that announces more is wrong.
const DEFLATE_MAX_RATIO: u64 = 1032;

/// Reads the training and the test set from `dir`. The test set is empty if its files are missing.
///
/// The files are `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
/// `t10k-labels-idx1-ubyte`, each with or without `.gz`, also spelled `train-images.idx3-ubyte`. Each may lie in a folder
/// of `dir`, such as `MNIST/raw`. The images have the shape `(1, height, width)` and ten classes. The MNIST page of LeCun,
/// Cortes and Burges describes the format.
///
/// # Errors
/// Fails if a file is missing, truncated, damaged, longer than its header announces or of another format; if the
/// numbers of images and labels differ, or two files for the same part; if a label is above 9; if training and test images
/// differ in size.
pub fn read_dir(dir: &Path) -> Result<(Images, Images)> {
    read_both(dir, ["train", "t10k"], |split| read_split(dir, split))
}

/// Reads a training and a test set whose files begin with `train` and `test`.
///
/// The test set is empty if its files are missing.
pub(super) fn read_both(
    dir: &Path,
    [train, test]: [&str; 2],
    read: impl Fn(&str) -> Result<Images>,
) -> Result<(Images, Images)> {
    let images = files_of::<3>(dir, &format!("{test}-images"))?;
    let labels = files_of::<1>(dir, &format!("{test}-labels"))?;
    let train = read(train)?;
    if images.1.is_empty() && labels.1.is_empty() {
        let test = train.select(&[])?;
        return Ok((train, test));
    }
    let test = read(test)?;
    let ((_, train_height, train_width), (_, height, width)) = (train.shape(), test.shape());
    ensure!(
        train.shape() == test.shape(),
        "{}: the test images are {height}x{width}, but the training images are {train_height}x{train_width}",
        dir.display()
    );
    Ok((train, test))
}

/// Reads only the test set from `dir`, like [`read_dir`].
///
/// # Errors
/// Fails like [`read_dir`] on the files of the test set.
pub fn read_test(dir: &Path) -> Result<Images> {
    read_split(dir, "t10k")
}

fn read_split(dir: &Path, split: &str) -> Result<Images> {
    let (pixels, labels, (height, width)) = read_bytes(dir, split, 0..=CLASSES as u8 - 1)?;
    Ok(Images::new(pixels, labels, (1, height, width), CLASSES)?)
}

/// The pixels and the labels of images, and the images' height and width.
type Bytes = (Vec<u8>, Vec<u8>, (usize, usize));

/// Reads a split whose labels are in `range`.
pub(super) fn read_bytes(dir: &Path, split: &str, range: RangeInclusive<u8>) -> Result<Bytes> {
    let (images_path, ([images, height, width], pixels)) = read_file(dir, &format!("{split}-images"))?;
    let (labels_path, ([count], labels)) = read_file(dir, &format!("{split}-labels"))?;
    ensure!(
        count == images,
        "{}: {}, but {} holds {}",
        labels_path.display(),
        quantity(count, "label"),
        images_path.display(),
        quantity(images, "image")
    );
    if let Some(at) = labels.iter().position(|label| !range.contains(label)) {
        let (first, last) = range.into_inner();
        bail!("{}: label {} at position {at}, expected {first} to {last}", labels_path.display(), labels[at]);
    }
    Ok((pixels, labels, (height, width)))
}

/// The dimensions and the bytes of a file.
type Contents<const D: usize> = ([usize; D], Vec<u8>);

/// Finds the files of the part `stem` in `dir` or, as archives unpack, in a folder there.
///
/// Also returns the names that the file may have.
fn files_of<const D: usize>(dir: &Path, stem: &str) -> Result<(PathBuf, Vec<PathBuf>, [String; 4])> {
    check_is_directory(dir)?;
    let dashed = format!("{stem}-idx{D}-ubyte");
    let dotted = format!("{stem}.idx{D}-ubyte");
    let names = [format!("{dashed}.gz"), dashed, format!("{dotted}.gz"), dotted];
    let files_in = |dir: &Path| -> Vec<PathBuf> {
        names.iter().map(|name| dir.join(name)).filter(|path| path.is_file()).collect()
    };
    let dir = splits::unpacked(dir, &|dir| !files_in(dir).is_empty())?;
    let files = files_in(&dir);
    Ok((dir, files, names))
}

/// Finds and reads the file of the part `stem`.
fn read_file<const D: usize>(dir: &Path, stem: &str) -> Result<(PathBuf, Contents<D>)> {
    let (dir, files, names) = files_of::<D>(dir, stem)?;
    let mut files = files.into_iter();
    let Some(path) = files.next() else {
        bail!("{}: found none of the files {}{}", dir.display(), names.join(", "), splits::found_in(&dir)?)
    };
    let contents = read(&path)?;
    for other in files {
        ensure!(
            read(&other)? == contents,
            "{}: its content differs from that of {}: remove one of them",
            other.display(),
            path.display()
        );
    }
    Ok((path, contents))
}

/// Reads the dimensions and the bytes of a file. Its first bytes, not its name, show whether it is gzipped.
fn read<const D: usize>(path: &Path) -> Result<Contents<D>> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("{name}: can't be opened"))?;
    let length = file.metadata().with_context(|| format!("{name}: can't be read"))?.len();
    let mut file = BufReader::with_capacity(1 << 16, file);
    let start = file.fill_buf().with_context(|| format!("{name}: can't be read"))?;
    ensure!(!start.is_empty(), "{name}: is empty, expected an IDX file");
    let other = found_instead(start, "an IDX file");
    let is_gzipped = start.starts_with(&gzip::MAGIC);
    let parsed = if start.starts_with(&gzip::MAGIC) {
        parse(gzip::Unpacked::new(file), length.saturating_mul(DEFLATE_MAX_RATIO))
    } else {
        parse(file, length)
    };
    parsed.map_err(|error| match other.filter(|_| !is_gzipped) {
        Some(other) => anyhow!("{name}: {other}"),
        None => anyhow!("{name}: {error}"),
    })
}

/// Parses a file of at most `max_bytes` bytes. Reads to the end, so that the gzip decoder verifies its checksum.
fn parse<const D: usize>(mut reader: impl Read, max_bytes: u64) -> Result<Contents<D>> {
    let magic = word(&mut reader)?;
    let expected = 0x0800 + D as u32;
    ensure!(magic >> 8 == expected >> 8, "not an IDX file of bytes");
    ensure!(magic == expected, "found {}, expected {}", content(magic & 0xff), content(D as u32));
    let mut sizes = [0; D];
    for size in &mut sizes {
        *size = word(&mut reader)? as usize;
    }
    let announced = sizes.map(|size| size.to_string()).join("x");
    ensure!(!sizes.contains(&0), "the header announces {announced} bytes, expected no size of 0");
    let length = sizes.iter().try_fold(1_usize, |length, &size| length.checked_mul(size));
    let Some(length) = length.filter(|&length| length as u64 <= max_bytes) else {
        bail!(
            "the header announces {announced} bytes, but the file can hold at most {max_bytes}: truncated or damaged"
        );
    };
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length).with_context(|| format!("no memory for {announced} bytes"))?;
    reader.by_ref().take(length as u64).read_to_end(&mut bytes).map_err(gzip::read_error)?;
    ensure!(
        bytes.len() == length,
        "found {} after the header, expected {announced} = {length}: truncated",
        quantity(bytes.len(), "byte")
    );
    ensure!(
        reader.read(&mut [0]).map_err(gzip::read_error)? == 0,
        "more bytes follow than the {announced} = {length} that the header announces"
    );
    Ok((sizes, bytes))
}

/// Describes the content of an IDX file with this number of dimensions.
fn content(dimensions: u32) -> String {
    match dimensions {
        1 => "labels (1 dimension)".to_string(),
        3 => "images (3 dimensions)".to_string(),
        other => format!("{other} dimensions"),
    }
}

fn word(reader: &mut impl Read) -> Result<u32> {
    let mut bytes = [0; 4];
    reader.read_exact(&mut bytes).map_err(gzip::read_error)?;
    Ok(u32::from_be_bytes(bytes))
}
