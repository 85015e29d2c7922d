//! A folder of the user's own images, `DIR/train/CLASS/IMAGE.jpg`.

use super::files::{Files, Format, check_side};
use super::images::{ImageSet, Images};
use super::preparation::Preparation;
use crate::data::count;
use crate::data::file_kind::check_is_directory;
use crate::data::splits::{self, Splits};
use crate::data::text::{composed, note_twins};
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

const EXTENSIONS: [&str; 3] = ["jpg", "jpeg", "png"];

/// How to read the files; `None` if this build can't.
#[cfg(feature = "images")]
const FORMAT: Option<Format> =
    Some(Format { read: super::picture::read_square, check: super::picture::check });
#[cfg(not(feature = "images"))]
const FORMAT: Option<Format> = None;

/// Lists the images in the splits of `dir`, such as `dir/train` and `dir/test`.
///
/// The names of the splits are `train`; `val`, `valid`, `validation` or `dev`; and `test`. Without a test split the
/// validation split replaces it, with a note; without both, the test images are empty. If there are class folders but
/// no splits, `dir` is the training split, with a note.
///
/// The classes are the folders in the training split, sorted by name. Their images are the files with the extensions
/// `jpg`, `jpeg` and `png`; other entries are skipped, with a note. Images are interleaved so that any part of the list
/// has its share of each class. Hidden files and files that operating systems leave behind are ignored. The files are
/// read only when they are needed, by [`read_square`](super::read_square) with `side`. An unreadable file is an error
/// then.
///
/// # Errors
/// Fails if `side` is out of range, the training split is missing, two folders serve as one split, there are fewer than
/// two classes, another split has other classes than the training split, a class has no images, or an image lies beside
/// the classes; without the feature `images`; inside [`together`](crate::processes::together) also if the processes find
/// different files.
pub fn read_dir(dir: &Path, side: usize) -> Result<ImageSet> {
    check_side(side)?;
    let format = supported_format(dir)?;
    let mut notes = vec![];
    let Splits { train, validation, test, .. } = find_splits(dir, false, &mut notes)?;
    let train = train.context("no training split")?;
    let names = classes_of(&train, dir)?;
    notes.extend(note_twins("classes", &names));
    notes.extend(passed_over(&[Some(&train), validation.as_ref(), test.as_ref()])?);
    ensure!(
        names.len() >= 2,
        "{}: found {}, expected at least 2",
        train.display(),
        count(names.len(), "class folder")
    );
    let mut foreign = vec![];
    let (mut files, mut labels) = list(&train, &names, &mut foreign)?;
    let training = labels.len();
    let mut other = |split: &PathBuf| {
        check_classes(split, &names)?;
        list(split, &names, &mut foreign)
    };
    let validation = match validation {
        Some(split) => {
            let (more_files, more_labels) = other(&split)?;
            files.extend(more_files);
            labels.extend(more_labels);
            Some(labels.len() - training)
        }
        None => None,
    };
    let (test, test_labels) = test.as_ref().map(other).transpose()?.unwrap_or_default();
    notes.extend(no_images(&foreign));
    let images = |paths, labels| -> Result<Images> {
        let files = Files::new(paths, side, format);
        files.check_same().with_context(|| dir.display().to_string())?;
        Ok(Images::from_files(files, labels, (3, side, side), names.clone()))
    };
    Ok(ImageSet {
        training: images(files, labels)?,
        validation,
        test: images(test, test_labels)?,
        preparation: Preparation::Square,
        notes,
    })
}

/// Lists only the test images, and returns notes about them for the user.
///
/// The classes are the folders in the test split. If there are class folders but no splits, `dir` is the test split,
/// with a note. Otherwise like [`read_dir`].
///
/// # Errors
/// Fails like [`read_dir`] on the test split, and if there is none.
pub fn read_test(dir: &Path, side: usize) -> Result<(Images, Vec<String>)> {
    check_side(side)?;
    let format = supported_format(dir)?;
    let (mut notes, mut foreign) = (vec![], vec![]);
    let test = find_splits(dir, true, &mut notes)?.test;
    let test = test.with_context(|| {
        format!("{}: no folder test, with a folder per class; val would do, too", dir.display())
    })?;
    let names = classes_of(&test, dir)?;
    let (files, labels) = list(&test, &names, &mut foreign)?;
    notes.extend(no_images(&foreign));
    Ok((Images::from_files(Files::new(files, side, format), labels, (3, side, side), names), notes))
}

fn supported_format(dir: &Path) -> Result<Format> {
    FORMAT.with_context(|| {
        format!("{}: this build does not read images from files, enable its feature `images`", dir.display())
    })
}

/// Finds the splits in `dir`. If it has folders of images but no splits, it is the wanted split itself.
fn find_splits(dir: &Path, test_only: bool, notes: &mut Vec<String>) -> Result<Splits> {
    check_is_directory(dir)?;
    let mut splits = Splits::find_folders(dir)?;
    if splits.is_empty() && class_folders(dir)?.iter().any(|name| holds_images(&dir.join(name))) {
        let (split, role) = match test_only {
            true => (&mut splits.test, "test"),
            false => (&mut splits.train, "training"),
        };
        *split = Some(dir.to_path_buf());
        notes.push(format!(
            "{}: has no folder train, test or val, so its folders of images are the classes of the {role} split",
            dir.display()
        ));
        return Ok(splits);
    }
    let is_unlabelled = |test: &mut PathBuf| holds_images(test) && !holds_folders(test);
    if splits.train.is_some()
        && let Some(test) = splits.test.take_if(is_unlabelled)
    {
        notes.push(format!("{}: no class folders, so it can't be the test split", test.display()));
    }
    if test_only && splits.test.is_none() && splits.validation.is_none() {
        return Ok(splits);
    }
    splits.choose(dir, "a folder train, with a folder per class", test_only, notes)
}

/// The names of the class folders of `split`, sorted, with composed accents.
///
/// If `split` is `dir` itself, a folder `runs` without images is no class: trainings in `dir` create it.
fn classes_of(split: &Path, dir: &Path) -> Result<Vec<String>> {
    let mut names = class_folders(split)?;
    names.retain(|name| split != dir || name != "runs" || holds_images(&dir.join(name)));
    Ok(all_composed(&names))
}

fn holds_images(folder: &Path) -> bool {
    splits::entries(folder).is_ok_and(|entries| entries.iter().any(|path| is_image(path)))
}

fn holds_folders(folder: &Path) -> bool {
    splits::entries(folder).is_ok_and(|entries| entries.iter().any(|path| path.is_dir()))
}

/// Lists the image files of one split and their labels. Files that are not images join `foreign`.
fn list(dir: &Path, names: &[String], foreign: &mut Vec<PathBuf>) -> Result<(Vec<PathBuf>, Vec<u32>)> {
    // Each file with its relative position in its class, by which the classes are interleaved.
    let mut images = vec![];
    let folders = class_folders(dir)?;
    for (class, name) in (0..).zip(names) {
        // A Mac's file system decomposes accents.
        let mut entries = vec![];
        for folder in folders.iter().filter(|folder| composed(folder) == **name) {
            entries.extend(splits::entries(&dir.join(folder))?);
        }
        let (files, others): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|path| is_image(path) && path.is_file());
        foreign.extend(others);
        ensure!(
            !files.is_empty(),
            "{}: no images, expected files ending in {}",
            dir.join(name).display(),
            EXTENSIONS.join(", ")
        );
        let count = files.len() as f64;
        let place = |at: usize| (at as f64 + 0.5) / count;
        images.extend(files.into_iter().enumerate().map(|(at, path)| (place(at), path, class)));
    }
    images.sort_by(|a, b| a.0.total_cmp(&b.0));
    Ok(images.into_iter().map(|(_, path, class)| (path, class)).unzip())
}

/// Notes about entries of class folders that are not images, one for each kind of entry.
fn no_images(foreign: &[PathBuf]) -> Vec<String> {
    let expected = EXTENSIONS.join(", ");
    let other = format!("not an image file ending in {expected}");
    let kind = |path: &PathBuf| match path.metadata() {
        Ok(metadata) if metadata.is_dir() => "a folder inside a class, whose images are not read",
        Ok(metadata) if metadata.is_file() => other.as_str(),
        Ok(_) => "a pipe or a device",
        Err(_) => "a link to nothing",
    };
    let mut kinds = BTreeMap::<&str, Vec<&PathBuf>>::new();
    foreign.iter().for_each(|path| kinds.entry(kind(path)).or_default().push(path));
    kinds.into_iter().filter_map(|(kind, paths)| splits::note_passed_over(&paths, kind)).collect()
}

/// Checks that the class folders in `dir` are `names`, the classes of the training images.
fn check_classes(dir: &Path, names: &[String]) -> Result<()> {
    let found = all_composed(&class_folders(dir)?);
    let missing_in = |these: &[String], those: &[String]| -> String {
        let missing = those.iter().filter(|name| !these.contains(name));
        missing.map(String::as_str).collect::<Vec<_>>().join(", ")
    };
    let (missing, extra) = (missing_in(&found, names), missing_in(names, &found));
    let seen = if extra.is_empty() { String::new() } else { format!("; found {extra}, which train lacks") };
    ensure!(missing.is_empty(), "{}: class folders missing: {missing}, which train has{seen}", dir.display());
    ensure!(extra.is_empty(), "{}: unexpected class folders: {extra}, which train lacks", dir.display());
    Ok(())
}

/// The different names with composed accents, sorted.
fn all_composed(names: &[String]) -> Vec<String> {
    let names: BTreeSet<String> = names.iter().map(|name| composed(name).into_owned()).collect();
    names.into_iter().collect()
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
    Ok((!names.is_empty()).then(|| format!("passed over: {}", splits::listed(&names))))
}

/// Whether the name of the file has the extension of an image.
fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known))
}

#[cfg(all(test, not(feature = "images")))]
mod tests {
    use super::*;

    #[test]
    fn a_build_that_reads_no_images_names_the_feature() {
        for error in [read_dir(Path::new("pictures"), 8).err(), read_test(Path::new("pictures"), 8).err()] {
            let error = error.map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains("pictures: ") && error.contains("feature `images`"), "{error}");
        }
    }
}
