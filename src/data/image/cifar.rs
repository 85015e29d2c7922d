//! The binary format of CIFAR-10: records of a label and pixels.

use super::images::Images;
use crate::data::count;
use crate::data::file_kind::{check_is_directory, found_instead};
use crate::data::splits;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};

const SHAPE: (usize, usize, usize) = (3, 32, 32);

const TEST: &str = "test_batch.bin";

/// Bytes of a record: the label, then one plane each of red, green and blue.
const RECORD: usize = 1 + 3 * 32 * 32;

/// The names of the classes, unless the folder has others.
pub(super) const CLASS_NAMES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// Reads the training set and the test set from `dir`.
///
/// The files are `data_batch_1.bin` to `data_batch_5.bin`, and `test_batch.bin`; without the last the test set is
/// empty. They may be in a folder of `dir`. The images have shape `(3, 32, 32)`. `batches.meta.txt` names the ten
/// classes, if it exists. Krizhevsky's CIFAR-10 page describes the format.
///
/// # Errors
/// Fails if a file is missing, empty or not a whole number of records; if a label is above 9; if `batches.meta.txt`
/// does not name ten classes.
pub fn read_dir(dir: &Path) -> Result<(Images, Images)> {
    let training: Vec<String> = (1..=5).map(|batch| format!("data_batch_{batch}.bin")).collect();
    let train = read(dir, &training)?;
    let test = if folder(dir)?.join(TEST).exists() { read_test(dir)? } else { train.select(&[])? };
    Ok((train, test))
}

/// Reads only the test set from `dir`, like [`read_dir`].
///
/// # Errors
/// Fails like [`read_dir`] on the files of the test set.
pub fn read_test(dir: &Path) -> Result<Images> {
    read(dir, &[TEST.into()])
}

fn class_names(path: &Path) -> Result<Vec<String>> {
    if !path.exists() {
        return Ok(CLASS_NAMES.map(String::from).into());
    }
    let text = fs::read_to_string(path).with_context(|| format!("{}: can't be read", path.display()))?;
    let names: Vec<String> =
        text.lines().map(|line| line.trim().to_string()).filter(|line| !line.is_empty()).collect();
    ensure!(
        names.len() == CLASS_NAMES.len(),
        "{}: found {}, expected {}, one per line",
        path.display(),
        count(names.len(), "class name"),
        CLASS_NAMES.len()
    );
    Ok(names)
}

/// Finds the folder with the batches: `dir`, or the only folder in it that holds them.
fn folder(dir: &Path) -> Result<PathBuf> {
    check_is_directory(dir)?;
    let find = |name: &str| splits::unpacked(dir, &|dir| dir.join(name).is_file());
    let python = find("test_batch")?;
    ensure!(
        !python.join("test_batch").is_file(),
        "{}: found CIFAR-10 for Python, expected its binary version (test_batch.bin and others)",
        python.display()
    );
    match find(TEST)? {
        found if found.join(TEST).is_file() => Ok(found),
        _ => find("data_batch_1.bin"),
    }
}

/// The images of the batches `files`, one after another.
fn read(dir: &Path, files: &[String]) -> Result<Images> {
    let dir = &folder(dir)?;
    let names = class_names(&dir.join("batches.meta.txt"))?;
    let (mut pixels, mut labels) = (vec![], vec![]);
    for file in files {
        let path = dir.join(file);
        let name = path.display();
        ensure!(path.exists(), "{name}: no such file, expected a binary batch of CIFAR-10");
        let batch = fs::read(&path).with_context(|| format!("{name}: can't be read"))?;
        let is_batch = !batch.is_empty() && batch.len() % RECORD == 0;
        if let Some(other) = found_instead(&batch, "a binary batch of CIFAR-10").filter(|_| !is_batch) {
            bail!("{name}: {other}");
        }
        ensure!(
            is_batch,
            "{name}: found {}, expected a multiple of {RECORD} (a label and 3x32x32 pixels)",
            count(batch.len(), "byte")
        );
        for (at, record) in batch.chunks_exact(RECORD).enumerate() {
            if usize::from(record[0]) >= names.len() {
                bail!("{name}: label {} in record {at}, expected 0 to {}", record[0], names.len() - 1);
            }
            labels.push(record[0]);
            pixels.extend_from_slice(&record[1..]);
        }
    }
    Ok(Images::new(pixels, labels, SHAPE, names.len())?.with_class_names(names)?)
}
