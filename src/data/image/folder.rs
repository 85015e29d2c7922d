//! A folder of the user's own images, `DIR/train/CLASS/IMAGE.jpg`, of any number.

use super::files::Files;
use super::images::{ImageSet, Images};
use super::preparation::Preparation;
use super::square::check_side;
use crate::data::splits::{self, Splits};
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

const EXTENSIONS: [&str; 3] = ["jpg", "jpeg", "png"];

/// Lists the images in the splits of `dir`, such as `dir/train` and `dir/test`.
///
/// The names of the splits are `train`; `val`, `valid`, `validation` or `dev`; and `test`. Without a test split the
/// validation split serves as it, with a note. The classes are the folders in the training split, sorted by name. Their
/// images are the files with the extensions `jpg`, `jpeg` and `png`. They are interleaved so that any part of the list has
/// its share of each class. Hidden files and what operating systems leave behind are ignored. The files are read, as
/// [`read_square`](super::read_square) does it with `side`, when they are needed: an unreadable file is an error then.
///
/// # Errors
/// Fails if `side` is out of range, the training split or both others are missing, two folders serve as one split, there
/// are fewer than two classes, another split has other classes than the training split, a class has no images, a class's
/// folder holds other files, or an image lies beside the classes.
pub fn read_dir(dir: &Path, side: usize) -> Result<ImageSet> {
    check_side(side)?;
    let mut notes = vec![];
    let (splits, test) = find_splits(dir, false, &mut notes)?;
    let train = splits.train.context("no training split")?;
    let names = class_folders(&train)?;
    notes.extend(passed_over(&[Some(&train), splits.validation.as_ref(), Some(&test)])?);
    ensure!(
        names.len() >= 2,
        "{}: found {} class folders, expected at least 2",
        train.display(),
        names.len()
    );
    let (mut files, mut labels) = list(&train, &names)?;
    let training = labels.len();
    let validation = match splits.validation {
        Some(split) => {
            let (more_files, more_labels) = list(&split, &names)?;
            files.extend(more_files);
            labels.extend(more_labels);
            Some(labels.len() - training)
        }
        None => None,
    };
    let (test, test_labels) = list(&test, &names)?;
    let images = |files, labels| Images::from_files(Files::new(files, side), labels, names.clone());
    Ok(ImageSet {
        training: images(files, labels),
        validation,
        test: images(test, test_labels),
        preparation: Preparation::Square,
        notes,
    })
}

/// Lists the test images alone, and says what a user should know about them.
///
/// The classes are the folders in the test split. Otherwise like [`read_dir`].
///
/// # Errors
/// Fails like [`read_dir`] on the test split.
pub fn read_test(dir: &Path, side: usize) -> Result<(Images, Vec<String>)> {
    check_side(side)?;
    let mut notes = vec![];
    let (_, test) = find_splits(dir, true, &mut notes)?;
    let names = class_folders(&test)?;
    let (files, labels) = list(&test, &names)?;
    Ok((Images::from_files(Files::new(files, side), labels, names), notes))
}

/// The splits in `dir`, with the test split once more.
fn find_splits(dir: &Path, test_only: bool, notes: &mut Vec<String>) -> Result<(Splits, PathBuf)> {
    ensure!(dir.is_dir(), "{}: no such directory", dir.display());
    let expected = "a folder train, with a folder per class";
    let splits = Splits::find(dir, |name| vec![name.to_string()])?.choose(dir, expected, test_only, notes)?;
    let test = splits.test.clone();
    let test = test.with_context(|| {
        format!("{}: no folder test, with a folder per class; val would serve as it", dir.display())
    })?;
    Ok((splits, test))
}

/// The image files of one split and their labels.
fn list(dir: &Path, names: &[String]) -> Result<(Vec<PathBuf>, Vec<u32>)> {
    check_classes(dir, names)?;
    // Each file with its relative position in its class, by which the classes are interleaved.
    let mut images = vec![];
    for (class, name) in (0..).zip(names) {
        let folder = dir.join(name);
        let files = splits::entries(&folder)?;
        ensure!(
            !files.is_empty(),
            "{}: no images, expected files ending in {}",
            folder.display(),
            EXTENSIONS.join(", ")
        );
        let count = files.len() as f64;
        for (at, path) in files.into_iter().enumerate() {
            ensure!(
                is_image(&path),
                "{}: found among images, expected only files ending in {}",
                path.display(),
                EXTENSIONS.join(", ")
            );
            ensure!(path.is_file(), "{}: not a regular file, expected an image", path.display());
            images.push(((at as f64 + 0.5) / count, path, class));
        }
    }
    images.sort_by(|a, b| a.0.total_cmp(&b.0));
    Ok(images.into_iter().map(|(_, path, class)| (path, class)).unzip())
}

/// Checks that the class folders in `dir` are `names`, those of the training images.
fn check_classes(dir: &Path, names: &[String]) -> Result<()> {
    let found = class_folders(dir)?;
    let missing_in = |these: &[String], those: &[String]| -> String {
        let missing = those.iter().filter(|name| !these.contains(name));
        missing.map(String::as_str).collect::<Vec<_>>().join(", ")
    };
    let (missing, extra) = (missing_in(&found, names), missing_in(names, &found));
    ensure!(missing.is_empty(), "{}: class folders missing: {missing}, which train has", dir.display());
    ensure!(extra.is_empty(), "{}: unexpected class folders: {extra}, which train lacks", dir.display());
    Ok(())
}

/// The names of the folders in `dir`, sorted.
fn class_folders(dir: &Path) -> Result<Vec<String>> {
    let entries = splits::entries(dir)?;
    if let Some(stray) = entries.iter().find(|path| is_image(path) && path.is_file()) {
        bail!("{}: an image without a class, expected it in a folder named after its class", stray.display());
    }
    let folders = entries.into_iter().filter(|path| path.is_dir());
    let name = |path: PathBuf| {
        let name = path.file_name().and_then(OsStr::to_str).map(String::from);
        name.with_context(|| format!("{}: the file name is not UTF-8", path.display()))
    };
    folders.map(name).collect()
}

/// A note about files beside the class folders of `splits`.
fn passed_over(splits: &[Option<&PathBuf>]) -> Result<Option<String>> {
    let mut files = vec![];
    for split in splits.iter().flatten() {
        let is_data = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            path.is_file() && !splits::is_about(&name)
        };
        files.extend(splits::entries(split)?.into_iter().filter(is_data));
    }
    let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    Ok((!names.is_empty()).then(|| format!("passed over: {}", names.join(", "))))
}

/// Whether the name of the file has the extension of an image.
fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known))
}
