//! Pictures of one's own: `DIR/train/CLASS/*.jpg`, too many to keep them all in memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, bail, ensure};
use image::{DynamicImage, ImageDecoder, RgbImage, imageops};
use rayon::prelude::*;

use super::{Images, picture};

const EXTENSIONS: [&str; 3] = ["jpg", "jpeg", "png"];

/// Nothing can be told from smaller pictures: they are placeholders.
const LEAST_SIDE: u32 = 4;

/// Sets that take no more than this, decoded, are better read once.
const MOST_IN_MEMORY: usize = 256 << 20;

/// So many bytes of whole pictures are decoded at once, on however many threads.
const MOST_IN_FLIGHT: u64 = 512 << 20;

/// The splits of a folder of pictures, `DIR/SPLIT/CLASS/PICTURE`.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageFolder {
    pub train: Pictures,
    /// Where there is a folder `val` or `validation`.
    pub validation: Option<Pictures>,
    pub test: Pictures,
}

impl ImageFolder {
    /// Lists the pictures in `dir/train`, `dir/test` and, where there is one, `dir/val` or `dir/validation`.
    ///
    /// The classes are the folders in `train`, sorted by name; their pictures, the files that end in `jpg`, `jpeg` or
    /// `png`, too. What begins with a dot is passed over. The pictures are not opened: one that can't be read is told
    /// of when it is.
    ///
    /// # Errors
    /// When `train` or `test` is missing; when there are fewer than two classes; when the classes of another split are
    /// not those of `train`; when a class has no pictures; when there is something else among the pictures or a picture
    /// among the classes.
    pub fn open(dir: &Path) -> Result<Self> {
        ensure!(dir.is_dir(), "{}: no such directory", dir.display());
        let [train, test, val, validation] =
            ["train", "test", "val", "validation"].map(|split| dir.join(split));
        for split in [&train, &test] {
            ensure!(split.is_dir(), "{}: no such folder, expected one of classes", split.display());
        }
        ensure!(
            !(val.is_dir() && validation.is_dir()),
            "{}: there are folders val and validation, expected one of them at most",
            dir.display()
        );
        let names = classes(&train)?;
        ensure!(
            names.len() >= 2,
            "{}: found {} folders of classes, expected 2 or more",
            train.display(),
            names.len()
        );
        let validation = [val, validation].into_iter().find(|split| split.is_dir());
        Ok(Self {
            validation: validation.map(|split| Pictures::list(split, &names)).transpose()?,
            test: Pictures::list(test, &names)?,
            train: Pictures::list(train, &names)?,
        })
    }
}

/// The labelled pictures of one split, in their files.
#[derive(Debug, Clone, PartialEq)]
pub struct Pictures {
    dir: PathBuf,
    names: Vec<String>,
    files: Vec<String>,
    labels: Vec<u32>,
}

impl Pictures {
    fn list(dir: PathBuf, names: &[String]) -> Result<Self> {
        let found = classes(&dir)?;
        let lacking = |these: &[String], those: &[String]| -> String {
            let lacking: Vec<&str> =
                these.iter().filter(|name| !those.contains(name)).map(String::as_str).collect();
            lacking.join(", ")
        };
        let (missing, extra) = (lacking(names, &found), lacking(&found, names));
        ensure!(
            missing.is_empty(),
            "{}: no folders of the classes {missing}, which train has",
            dir.display()
        );
        ensure!(extra.is_empty(), "{}: folders of the classes {extra}, which train has not", dir.display());
        let (mut files, mut labels) = (vec![], vec![]);
        for (class, name) in names.iter().enumerate() {
            let folder = dir.join(name);
            for file in entries(&folder)? {
                let path = folder.join(&file);
                ensure!(
                    is_picture(&path),
                    "{}: found among pictures, expected only files ending in {}",
                    path.display(),
                    EXTENSIONS.join(", ")
                );
                files.push(file);
                labels.push(class as u32);
            }
            ensure!(
                labels.last() == Some(&(class as u32)),
                "{}: no pictures, expected files ending in {}",
                folder.display(),
                EXTENSIONS.join(", ")
            );
        }
        Ok(Self { dir, names: names.to_vec(), files, labels })
    }

    /// How many pictures there are.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The class of each picture.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// What each class is called.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The file of picture `index`.
    pub fn path(&self, index: usize) -> PathBuf {
        self.dir.join(&self.names[self.labels[index] as usize]).join(&self.files[index])
    }

    /// Reads the pictures `indices` as [`read_square`] does, on all of rayon's threads; one after another, each
    /// `(3, side, side)` row-major.
    ///
    /// # Errors
    /// Of the first of them that can't be read.
    pub fn load(&self, indices: &[u32], side: usize) -> Result<Vec<u8>> {
        let size = 3 * side * side;
        let mut pixels = vec![0; indices.len() * size];
        let read: Vec<Result<()>> = pixels
            .par_chunks_mut(size)
            .zip(indices)
            .map(|(picture, &index)| read_into(&self.path(index as usize), side, picture))
            .collect();
        read.into_iter().collect::<Result<()>>()?;
        Ok(pixels)
    }

    /// Whether the whole split, read at `side`, is small enough to be kept as [`Images`]: 256 MB and 256 classes.
    pub fn fits_in_memory(&self, side: usize) -> bool {
        self.len() <= MOST_IN_MEMORY / (3 * side * side) && self.names.len() <= 256
    }

    /// Reads all the pictures.
    ///
    /// # Errors
    /// When they do not fit, as [`fits_in_memory`](Self::fits_in_memory) tells; those of [`load`](Self::load).
    pub fn images(&self, side: usize) -> Result<Images> {
        ensure!(
            self.fits_in_memory(side),
            "{}: {} pictures of {side}x{side} and {} classes, expected {} MB and 256 classes at most",
            self.dir.display(),
            self.len(),
            self.names.len(),
            MOST_IN_MEMORY >> 20
        );
        let all: Vec<u32> = (0..self.len() as u32).collect();
        let labels = self.labels.iter().map(|&label| label as u8).collect();
        let images = Images::new(self.load(&all, side)?, labels, (3, side, side), self.names.len())?;
        Ok(images.named(&self.names)?)
    }
}

/// The names of the folders in `dir`, sorted.
fn classes(dir: &Path) -> Result<Vec<String>> {
    let mut names = entries(dir)?;
    if let Some(stray) =
        names.iter().map(|name| dir.join(name)).find(|path| is_picture(path) && path.is_file())
    {
        bail!(
            "{}: a picture without a class, expected it in a folder named after its class",
            stray.display()
        );
    }
    names.retain(|name| dir.join(name).is_dir());
    Ok(names)
}

/// The names of what is in `dir`, sorted, without those that begin with a dot.
fn entries(dir: &Path) -> Result<Vec<String>> {
    let cant = || format!("{}: can't be listed", dir.display());
    let mut names = vec![];
    for entry in fs::read_dir(dir).with_context(cant)? {
        let entry = entry.with_context(cant)?;
        let name = entry.file_name().into_string();
        let name =
            name.map_err(|_| anyhow!("{}: the name is no UTF-8, expected UTF-8", entry.path().display()))?;
        if !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// By its name alone.
fn is_picture(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// Reads the PNG or JPEG file `path` as `(3, side, side)` row-major bytes, red, green and blue.
///
/// The picture's middle square is scaled to `side`: averaged where it shrinks, linear between pixels where it grows.
/// Grey, palettes and 16 bits become 8-bit colours; what is transparent lies on white; a camera's note of which side is
/// up is heeded. Of pictures that are read at the same time no more than 512 MB, decoded, are in memory; the rest wait.
///
/// # Errors
/// When the file is missing, truncated, neither PNG nor JPEG, smaller than 4x4 pixels, or too large to decode.
pub fn read_square(path: &Path, side: usize) -> Result<Vec<u8>> {
    let mut pixels = vec![0; 3 * side * side];
    read_into(path, side, &mut pixels)?;
    Ok(pixels)
}

fn read_into(path: &Path, side: usize, pixels: &mut [u8]) -> Result<()> {
    let square = square_of(&picture::read(path)?, side as u32);
    let square = square.map_err(|error| anyhow!("{}: {error}", path.display()))?;
    let (red, rest) = pixels.split_at_mut(side * side);
    let (green, blue) = rest.split_at_mut(side * side);
    for (at, pixel) in square.pixels().enumerate() {
        [red[at], green[at], blue[at]] = pixel.0;
    }
    Ok(())
}

fn square_of(bytes: &[u8], side: u32) -> Result<RgbImage> {
    let decoder = picture::open(bytes)?;
    let (width, height) = decoder.dimensions();
    let least = width.min(height);
    ensure!(
        least >= LEAST_SIDE,
        "is {width}x{height} pixels, expected at least {LEAST_SIDE}x{LEAST_SIDE}: nothing can be told from it"
    );
    let _room = Room::take(decoder.total_bytes());
    let whole = opaque(picture::decode(decoder)?);
    if whole.dimensions() == (side, side) {
        return Ok(whole);
    }
    let (width, height) = whole.dimensions();
    let square = imageops::crop_imm(&whole, (width - least) / 2, (height - least) / 2, least, least);
    Ok(imageops::resize(&*square, side, side, imageops::Triangle))
}

fn opaque(picture: DynamicImage) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.into_rgb8();
    }
    let picture = picture.into_rgba8();
    RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
        let [red, green, blue, alpha] = picture.get_pixel(x, y).0.map(u32::from);
        image::Rgb([red, green, blue].map(|value| ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8))
    })
}

/// Bytes of whole pictures that are decoded at present.
static IN_FLIGHT: (Mutex<u64>, Condvar) = (Mutex::new(0), Condvar::new());

/// A share of [`MOST_IN_FLIGHT`]; whoever finds none left waits.
struct Room(u64);

impl Room {
    fn take(bytes: u64) -> Self {
        let (taken, given_back) = &IN_FLIGHT;
        let taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |taken: &mut u64| *taken > 0 && *taken + bytes > MOST_IN_FLIGHT;
        *given_back.wait_while(taken, full).unwrap_or_else(PoisonError::into_inner) += bytes;
        Self(bytes)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let (taken, given_back) = &IN_FLIGHT;
        *taken.lock().unwrap_or_else(PoisonError::into_inner) -= self.0;
        given_back.notify_all();
    }
}

/// Batches in order, loaded ahead of their use on a thread: two at most are ready or under way besides the one in use.
pub struct Prefetch<T> {
    loaded: Receiver<Result<T>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Prefetch<T> {
    /// Begins to `load` the `batches`, up to the first that fails.
    pub fn new<B, L>(batches: B, mut load: L) -> Self
    where
        B: IntoIterator + Send + 'static,
        L: FnMut(B::Item) -> Result<T> + Send + 'static,
    {
        let (sender, loaded) = sync_channel(1);
        let thread = thread::spawn(move || {
            for batch in batches {
                let batch = load(batch);
                let failed = batch.is_err();
                if sender.send(batch).is_err() || failed {
                    break;
                }
            }
        });
        Self { loaded, thread: Some(thread) }
    }
}

impl<T> Iterator for Prefetch<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Ok(batch) = self.loaded.recv() {
            return Some(batch);
        }
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
            std::panic::resume_unwind(panic);
        }
        None
    }
}
