//! A folder of the user's own images, `DIR/train/CLASS/IMAGE.jpg`, of any number.

use super::files::Files;
use super::images::{ImageSet, Images};
use super::square::check_side;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};

const EXTENSIONS: [&str; 3] = ["jpg", "jpeg", "png"];

/// Lists the images in `dir/train`, `dir/test` and, optionally, `dir/val` or `dir/validation`.
///
/// The classes are the folders in `train`, sorted by name. Their images are the files with the extensions `jpg`, `jpeg`
/// and `png`. They are interleaved so that any part of the list has its share of each class. Names that begin with a dot
/// are ignored. The files are read, as [`read_square`](super::read_square) does it with `side`, when they are needed: an
/// unreadable file is an error then.
///
/// # Errors
/// Fails if `side` is out of range, `train` or `test` is missing, there are fewer than two classes, another split has
/// other classes than `train`, a class has no images, a class's folder holds other files, or an image lies beside the
/// classes.
pub fn read_dir(dir: &Path, side: usize) -> Result<ImageSet> {
    check_side(side)?;
    ensure!(dir.is_dir(), "{}: no such directory", dir.display());
    let [train, test, val, validation] = ["train", "test", "val", "validation"].map(|split| dir.join(split));
    for split in [&train, &test] {
        ensure!(
            split.is_dir(),
            "{}: no such directory, expected one with a folder per class",
            split.display()
        );
    }
    ensure!(
        !(val.is_dir() && validation.is_dir()),
        "{}: found both val and validation, expected at most one of them",
        dir.display()
    );
    let names = class_folders(&train)?;
    ensure!(
        names.len() >= 2,
        "{}: found {} class folders, expected at least 2",
        train.display(),
        names.len()
    );
    let (mut files, mut labels) = list(&train, &names)?;
    let training = labels.len();
    let validation = match [val, validation].into_iter().find(|split| split.is_dir()) {
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
    Ok(ImageSet { training: images(files, labels), validation, test: images(test, test_labels) })
}

/// The image files of one split and their labels.
fn list(dir: &Path, names: &[String]) -> Result<(Vec<PathBuf>, Vec<u32>)> {
    check_classes(dir, names)?;
    // Each file with its relative position in its class, by which the classes are interleaved.
    let mut images = vec![];
    for (class, name) in (0..).zip(names) {
        let folder = dir.join(name);
        let files = entries(&folder)?;
        ensure!(
            !files.is_empty(),
            "{}: no images, expected files ending in {}",
            folder.display(),
            EXTENSIONS.join(", ")
        );
        let count = files.len() as f64;
        for (at, file) in files.into_iter().enumerate() {
            let path = folder.join(&file);
            ensure!(
                is_image(&path),
                "{}: found among images, expected only files ending in {}",
                path.display(),
                EXTENSIONS.join(", ")
            );
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
    let mut names = entries(dir)?;
    let paths = names.iter().map(|name| dir.join(name));
    if let Some(stray) = paths.into_iter().find(|path| is_image(path) && path.is_file()) {
        bail!("{}: an image without a class, expected it in a folder named after its class", stray.display());
    }
    names.retain(|name| dir.join(name).is_dir());
    Ok(names)
}

/// The names of the entries of `dir`, sorted, without those that begin with a dot.
fn entries(dir: &Path) -> Result<Vec<String>> {
    let context = || format!("{}: can't be listed", dir.display());
    let mut names = vec![];
    for entry in fs::read_dir(dir).with_context(context)? {
        let entry = entry.with_context(context)?;
        let name = entry.file_name().into_string();
        let name = name.map_err(|_| anyhow!("{}: the file name is not UTF-8", entry.path().display()))?;
        if !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Whether the name of the file has the extension of an image.
fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known))
}
