//! CIFAR-10's own file format, the binary version: records of a label and the pixels, nothing else.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::Images;

const SHAPE: (usize, usize, usize) = (3, 32, 32);

/// The label's byte, then a plane each of red, green and blue.
const RECORD: usize = 1 + 3 * 32 * 32;

/// The classes, unless the folder says otherwise.
pub(super) const NAMES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// Reads the training set, `data_batch_1.bin` to `data_batch_5.bin`, and the test set, `test_batch.bin`, from `dir`.
/// The pictures have the shape `(3, 32, 32)` and ten classes, named by `batches.meta.txt` where it is there.
///
/// The format is described on the CIFAR-10 page of Krizhevsky.
///
/// # Errors
/// When a file is missing, empty or no whole number of records; when a label is above 9; when `batches.meta.txt` is
/// there and does not name ten classes.
pub fn read_dir(dir: &Path) -> Result<(Images, Images)> {
    ensure!(dir.is_dir(), "{}: no such directory", dir.display());
    let names = names(&dir.join("batches.meta.txt"))?;
    let training: Vec<String> = (1..=5).map(|batch| format!("data_batch_{batch}.bin")).collect();
    Ok((read(dir, &training, &names)?, read(dir, &["test_batch.bin".into()], &names)?))
}

fn names(path: &Path) -> Result<Vec<String>> {
    if !path.exists() {
        return Ok(NAMES.map(String::from).into());
    }
    let text = fs::read_to_string(path).with_context(|| format!("{}: can't be read", path.display()))?;
    let names: Vec<String> =
        text.lines().map(|line| line.trim().to_string()).filter(|line| !line.is_empty()).collect();
    ensure!(
        names.len() == NAMES.len(),
        "{}: found {} names, expected {}, one a line",
        path.display(),
        names.len(),
        NAMES.len()
    );
    Ok(names)
}

/// The pictures of the batches `files`, one after the other.
fn read(dir: &Path, files: &[String], names: &[String]) -> Result<Images> {
    let (mut pixels, mut labels) = (vec![], vec![]);
    for file in files {
        let path = dir.join(file);
        let name = path.display();
        ensure!(path.exists(), "{name}: no such file, expected a binary batch of CIFAR-10");
        let batch = fs::read(&path).with_context(|| format!("{name}: can't be read"))?;
        ensure!(
            !batch.is_empty() && batch.len() % RECORD == 0,
            "{name}: is {} bytes, expected a multiple of {RECORD} (a label and 3x32x32 pixels)",
            batch.len()
        );
        for (at, record) in batch.chunks_exact(RECORD).enumerate() {
            if usize::from(record[0]) >= names.len() {
                bail!("{name}: label {} at record {at}, expected 0 to {}", record[0], names.len() - 1);
            }
            labels.push(record[0]);
            pixels.extend_from_slice(&record[1..]);
        }
    }
    Ok(Images::new(pixels, labels, SHAPE, names.len())?.named(names)?)
}
