//! The splits of a data set: their names on disk, and drawing a missing one from the training data.

use crate::rng;
use anyhow::{Context, Result, bail};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// The names of each split, for all data sets: training, validation, test.
const NAMES: [&[&str]; 3] = [&["train"], &["val", "valid", "validation", "dev"], &["test"]];

/// The splits of a data set: files, folders, or parts of a file.
#[derive(Debug, Default)]
pub(super) struct Splits<T = PathBuf> {
    pub train: Option<T>,
    pub validation: Option<T>,
    pub test: Option<T>,
    /// Names of entries that look like data but not like a split.
    passed_over: Vec<String>,
}

impl Splits {
    /// Finds each split in `dir` as the folder with its name. Case is ignored.
    ///
    /// # Errors
    /// Fails if `dir` can't be listed, or has two folders for one split.
    pub fn find_folders(dir: &Path) -> Result<Self> {
        let mut splits = Self::assign(dir, named(dir, &Path::is_dir)?, &split_named, &|_| true)?;
        let loose = named(dir, &|path| !path.is_dir())?.into_iter().map(|(name, _)| name);
        splits.passed_over.extend(loose.filter(|name| !is_about(name)));
        Ok(splits)
    }

    /// Finds each split in `dir` as the file with one of the names that `names` returns for a name of the split.
    ///
    /// Case is ignored, and so is `.gz` after another extension.
    ///
    /// # Errors
    /// Fails if `dir` can't be listed, or has two files for one split.
    pub fn find(dir: &Path, names: &dyn Fn(&str) -> Vec<String>) -> Result<Self> {
        let expected = NAMES.map(|split| split.iter().flat_map(|name| names(name)).collect::<Vec<_>>());
        let extension = |name: &str| name.rsplit_once('.').map(|(_, extension)| extension.to_string());
        let extensions: Vec<_> = expected.iter().flatten().map(|name| extension(name)).collect();
        let split = |name: &str| expected.iter().position(|names| names.iter().any(|known| known == name));
        let is_related = |name: &str| extensions.contains(&extension(name));
        Self::assign(dir, named(dir, &|path| !path.is_dir())?, &split, &is_related)
    }

    /// Finds each split in `dir` as the file whose name contains a name of the split, as a word or as the beginning of one.
    ///
    /// `my-train.EXTENSION`, `my.train`, `train` and `trainset` are training splits, but `restrain` and `trained` are not.
    /// Otherwise like [`find`](Self::find).
    ///
    /// # Errors
    /// Fails if `dir` can't be listed, or has two files for one split.
    pub fn find_by_words(dir: &Path, extensions: &[&str]) -> Result<Self> {
        let is_related = |name: &str| name.rsplit_once('.').is_some_and(|(_, end)| extensions.contains(&end));
        let split = |name: &str| {
            split_of(match name.rsplit_once('.') {
                Some((stem, extension)) if extensions.contains(&extension) => stem,
                Some((_, extension)) => extension,
                None => name,
            })
        };
        Self::assign(dir, named(dir, &Path::is_file)?, &split, &is_related)
    }

    /// Like [`find_by_words`](Self::find_by_words), in a part of each name.
    ///
    /// `part` returns it for a name in lower case without `.gz`, or `None` for a file that does not belong to the data.
    ///
    /// # Errors
    /// Fails if `dir` can't be listed, or has two files for one split.
    pub fn find_in_part(dir: &Path, part: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let split = |name: &str| part(name).and_then(|part| split_of(&part));
        Self::assign(dir, named(dir, &Path::is_file)?, &split, &|name| part(name).is_some())
    }

    /// Without any split, takes the only file of `dir` that is data as the training split, with a note.
    pub fn or_only(mut self, dir: &Path, is_data: &dyn Fn(&Path) -> bool, notes: &mut Vec<String>) -> Self {
        let is_other = |name: &&String| self.is_empty() && is_data(&dir.join(name));
        let others: Vec<String> = self.passed_over.iter().filter(is_other).cloned().collect();
        if let [only] = &others[..] {
            let place = dir.display();
            notes.push(format!("{place}: no file is named after a split, so {only} is the training split"));
            self.passed_over.retain(|name| name != only);
            self.train = Some(dir.join(only));
        }
        self
    }
}

/// The split that a part of a file's name contains, as a word or as the beginning of one.
pub(super) fn split_of(part: &str) -> Option<usize> {
    // CoNLL-2003 calls its validation split `testa`.
    const PARTS: [&[&str]; 3] = [&["train"], &["valid", "dev", "testa"], &["test"]];
    // As in `training`, `validation`, `development` and `testset`.
    const ENDINGS: [&str; 4] = ["ing", "ation", "elopment", "set"];
    let words: Vec<&str> = part.split(|c: char| !c.is_ascii_alphabetic()).collect();
    // WMT calls its splits `newsdev2016` and `newstest2016`.
    let stems = words.iter().map(|word| word.strip_prefix("news").unwrap_or(word));
    let is_part = |name: &&str| {
        let mut endings = stems.clone().filter_map(|word| word.strip_prefix(name));
        endings.any(|ending| ending.len() <= 1 || ENDINGS.contains(&ending))
    };
    let whole = NAMES.iter().position(|names| names.iter().any(|name| words.contains(name)));
    whole.or_else(|| PARTS.iter().position(|names| names.iter().any(is_part)))
}

impl<T> Splits<T> {
    /// Finds each split among the named `parts` of the file `path`.
    ///
    /// # Errors
    /// Fails if there are two parts for one split.
    pub fn find_among(path: &Path, parts: impl IntoIterator<Item = (String, T)>) -> Result<Self> {
        Self::assign(path, parts, &split_named, &|_| true)
    }

    /// Whether no split was found.
    pub fn is_empty(&self) -> bool {
        [&self.train, &self.validation, &self.test].iter().all(|split| split.is_none())
    }

    fn assign(
        place: &Path,
        candidates: impl IntoIterator<Item = (String, T)>,
        split: &dyn Fn(&str) -> Option<usize>,
        is_related: &dyn Fn(&str) -> bool,
    ) -> Result<Self> {
        let mut found = [const { None::<(String, T)> }; 3];
        let mut passed_over = vec![];
        for (name, candidate) in candidates {
            let lower = name.to_lowercase();
            // The name of a gzipped file, but `train.gz` is not the folder `train`.
            let lower = lower.strip_suffix(".gz").filter(|stem| stem.contains('.')).unwrap_or(&lower);
            match split(lower) {
                Some(split) => {
                    if let Some((other, _)) = &found[split] {
                        bail!(
                            "{}: found both {other} and {name}, expected one {} split",
                            place.display(),
                            ["training", "validation", "test"][split]
                        );
                    }
                    found[split] = Some((name, candidate));
                }
                None if is_related(lower) && !is_about(&name) => passed_over.push(name),
                None => {}
            }
        }
        let [train, validation, test] = found.map(|found| found.map(|(_, split)| split));
        Ok(Self { train, validation, test, passed_over })
    }
}

impl<T: AsRef<Path>> Splits<T> {
    /// Chooses the splits to read: all, or with `test_only` only the test split, if there is one.
    ///
    /// Without a test split, the validation split replaces it, with a note. Another note names the skipped entries of
    /// `place`.
    ///
    /// # Errors
    /// Fails if the training split is missing and needed; `expected` describes its name.
    pub fn choose(
        mut self,
        place: &Path,
        expected: &str,
        test_only: bool,
        notes: &mut Vec<String>,
    ) -> Result<Self> {
        if !test_only && !self.passed_over.is_empty() {
            notes.push(format!("{}: passed over: {}", place.display(), listed(&self.passed_over)));
        }
        if self.test.is_none() {
            self.test = self.validation.take();
            notes.extend(self.test.as_ref().map(|validation| {
                let name = file_name(validation.as_ref());
                format!("{}: no test split, so {name} is used for the test", place.display())
            }));
        }
        if test_only && self.test.is_some() {
            (self.train, self.validation) = (None, None);
        } else if self.train.is_none() {
            let found = if place.is_dir() { found_in(place)? } else { String::new() };
            bail!("{}: no training split, expected {expected}{found}", place.display());
        }
        Ok(self)
    }
}

/// The split with this name, in lower case.
fn split_named(name: &str) -> Option<usize> {
    NAMES.iter().position(|names| names.contains(&name))
}

/// The entries of `dir` that `is_kind` accepts, with their names.
fn named(dir: &Path, is_kind: &dyn Fn(&Path) -> bool) -> Result<Vec<(String, PathBuf)>> {
    let paths = entries(dir)?.into_iter().filter(|path| is_kind(path));
    Ok(paths.map(|path| (file_name(&path), path)).collect())
}

/// Describes the entries of `dir`, for the message that something is missing from it.
pub(super) fn found_in(dir: &Path) -> Result<String> {
    let name = |path: &PathBuf| match path.is_dir() {
        true => format!("{} (a folder)", file_name(path)),
        false => file_name(path),
    };
    let names: Vec<String> = entries(dir)?.iter().map(name).collect();
    Ok(match names.is_empty() {
        true => ": the directory is empty".to_string(),
        false => format!("; found {}", listed(&names)),
    })
}

/// The first of `names`, and the number of the others.
pub(super) fn listed(names: &[String]) -> String {
    const SHOWN: usize = 5;
    match names.len() {
        ..=SHOWN => names.join(", "),
        more => format!("{} and {} more", names[..SHOWN].join(", "), more - SHOWN),
    }
}

/// A note that `paths` are passed over because each is a `kind`; `None` without paths.
pub(super) fn note_passed_over<P: AsRef<Path>>(paths: &[P], kind: &str) -> Option<String> {
    let first = paths.first()?.as_ref().display();
    Some(match paths.len() {
        1 => format!("passed over {first}: {kind}"),
        found => format!("passed over {found} entries such as {first}: {kind}"),
    })
}

/// Finds the folder with the files of a data set: `dir`, or a folder in it.
///
/// Archives unpack to folders: if only one folder up to two levels below `dir` `holds` the files, it is that one. If
/// none does, it is `dir` itself.
///
/// # Errors
/// Fails if `dir` can't be listed, or several folders hold them.
pub(super) fn unpacked(dir: &Path, holds: &dyn Fn(&Path) -> bool) -> Result<PathBuf> {
    let mut level = vec![dir.to_path_buf()];
    for _ in 0..3 {
        match &level.iter().filter(|folder| holds(folder)).collect::<Vec<_>>()[..] {
            [] => {}
            [folder] => return Ok(folder.to_path_buf()),
            [first, second, ..] => bail!(
                "{}: found both {} and {}, expected one",
                dir.display(),
                first.display(),
                second.display()
            ),
        }
        let inside = level.iter().map(|folder| entries(folder)).collect::<Result<Vec<_>>>()?;
        level = inside.into_iter().flatten().filter(|path| path.is_dir()).collect();
    }
    Ok(dir.to_path_buf())
}

/// Lists the entries of `dir`, sorted, without hidden files and files of the operating system.
///
/// # Errors
/// Fails if `dir` can't be listed.
pub(super) fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let context = || format!("{}: can't be listed", dir.display());
    let mut paths = fs::read_dir(dir)
        .with_context(context)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .with_context(context)?;
    paths.retain(|path| !is_litter(&file_name(path)));
    paths.sort();
    Ok(paths)
}

fn is_litter(name: &str) -> bool {
    name.starts_with('.') || is_of_system(name)
}

/// Whether operating systems leave behind files with this name.
pub(crate) fn is_of_system(name: &str) -> bool {
    const LITTER: [&str; 7] =
        ["thumbs.db", "desktop.ini", "__macosx", ".ds_store", ".localized", ".directory", "@eadir"];
    name.starts_with("._") || LITTER.contains(&name.to_lowercase().as_str())
}

/// Whether a file, by its name, describes the data.
pub(super) fn is_about(name: &str) -> bool {
    let name = name.to_lowercase();
    ["readme", "license", "licence", "_about"].iter().any(|start| name.starts_with(start))
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Which examples of the training data are held out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Selection {
    /// The first ones
    First,
    /// The last ones
    Last,
    /// A random sample with the same proportions of the classes
    #[default]
    Random,
}

impl Selection {
    /// Splits `examples` into `count` selected ones and the rest, both in the order of `examples`.
    ///
    /// `class` returns the class of an example. A random sample depends only on `examples`, their classes, `count`, `seed`
    /// and `purpose`.
    pub fn select(
        self,
        examples: &[u32],
        count: usize,
        class: impl Fn(u32) -> u32,
        seed: u64,
        purpose: &str,
    ) -> (Vec<u32>, Vec<u32>) {
        let count = count.min(examples.len());
        let is_selected: Vec<bool> = match self {
            Self::First => (0..examples.len()).map(|place| place < count).collect(),
            Self::Last => (0..examples.len()).map(|place| place >= examples.len() - count).collect(),
            Self::Random => {
                let classes: Vec<usize> = examples.iter().map(|&example| class(example) as usize).collect();
                let mut left = shares(&classes, count);
                let mut order: Vec<usize> = (0..examples.len()).collect();
                order.shuffle(&mut rng::stream(seed, purpose));
                let mut is_selected = vec![false; examples.len()];
                for place in order {
                    let left = &mut left[classes[place]];
                    is_selected[place] = *left > 0;
                    *left = left.saturating_sub(1);
                }
                is_selected
            }
        };
        let part = |selected: bool| {
            let places = examples.iter().zip(&is_selected).filter(|&(_, &is)| is == selected);
            places.map(|(&example, _)| example).collect()
        };
        (part(true), part(false))
    }
}

/// The number of examples of each class in a proportional sample of `count` (largest remainders).
fn shares(classes: &[usize], count: usize) -> Vec<usize> {
    let mut sizes = vec![0_usize; classes.iter().max().map_or(0, |last| last + 1)];
    classes.iter().for_each(|&class| sizes[class] += 1);
    let (total, count) = (classes.len().max(1) as u128, count as u128);
    let scaled: Vec<u128> = sizes.iter().map(|&size| size as u128 * count).collect();
    let mut shares: Vec<usize> = scaled.iter().map(|scaled| (scaled / total) as usize).collect();
    let missing = count as usize - shares.iter().sum::<usize>();
    let mut by_remainder: Vec<usize> = (0..sizes.len()).collect();
    by_remainder.sort_by_key(|&class| std::cmp::Reverse(scaled[class] % total));
    by_remainder.into_iter().take(missing).for_each(|class| shares[class] += 1);
    shares
}
