//! Pictures of one's own: `DIR/train/CLASS/*.jpg`, too many to keep them all in memory.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, bail, ensure};
use image::{DynamicImage, ImageDecoder, RgbImage, imageops};
use rayon::prelude::*;

use super::{ImageSet, Images, picture};

const EXTENSIONS: [&str; 3] = ["jpg", "jpeg", "png"];

/// Nothing can be told from smaller pictures: they are placeholders.
const LEAST_SIDE: u32 = 4;

/// So many bytes of whole pictures are decoded at once, on however many threads.
const MOST_IN_FLIGHT: u64 = 512 << 20;

/// Lists the pictures in `dir/train`, `dir/test` and, where there is one, `dir/val` or `dir/validation`, to be read as
/// squares of `side` pixels: see [`read_square`].
///
/// The classes are the folders in `train`, sorted by name; their pictures, the files that end in `jpg`, `jpeg` or
/// `png`, too. They come class by class in turn, so that any part of them has about its share of each class. What begins
/// with a dot is passed over. The pictures are not opened: one that can't be read is told of when it is.
///
/// # Errors
/// When `train` or `test` is missing; when there are fewer than two classes; when the classes of another split are
/// not those of `train`; when a class has no pictures; when there is something else among the pictures or a picture
/// among the classes.
pub fn read_dir(dir: &Path, side: usize) -> Result<ImageSet> {
    ensure!(dir.is_dir(), "{}: no such directory", dir.display());
    let [train, test, val, validation] = ["train", "test", "val", "validation"].map(|split| dir.join(split));
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
    let (mut files, mut labels) = list(&train, &names)?;
    let training = labels.len();
    let validation = match [val, validation].into_iter().find(|split| split.is_dir()) {
        Some(split) => {
            let (more, their_labels) = list(&split, &names)?;
            files.extend(more);
            labels.extend(their_labels);
            Some(labels.len() - training)
        }
        None => None,
    };
    let (test, test_labels) = list(&test, &names)?;
    let images = |files, labels| Images::in_files(Files::new(files, side), labels, names.clone());
    Ok(ImageSet { training: images(files, labels), validation, test: images(test, test_labels) })
}

/// The pictures of one split, with their labels.
fn list(dir: &Path, names: &[String]) -> Result<(Vec<PathBuf>, Vec<u32>)> {
    let found = classes(dir)?;
    let lacking = |these: &[String], those: &[String]| -> String {
        let lacking: Vec<&str> =
            these.iter().filter(|name| !those.contains(name)).map(String::as_str).collect();
        lacking.join(", ")
    };
    let (missing, extra) = (lacking(names, &found), lacking(&found, names));
    ensure!(missing.is_empty(), "{}: no folders of the classes {missing}, which train has", dir.display());
    ensure!(extra.is_empty(), "{}: folders of the classes {extra}, which train has not", dir.display());
    // Each with how much of its class comes before it.
    let mut pictures = vec![];
    for (class, name) in (0..).zip(names) {
        let folder = dir.join(name);
        let files = entries(&folder)?;
        let count = files.len() as f64;
        for (at, file) in files.into_iter().enumerate() {
            let path = folder.join(&file);
            ensure!(
                is_picture(&path),
                "{}: found among pictures, expected only files ending in {}",
                path.display(),
                EXTENSIONS.join(", ")
            );
            pictures.push(((at as f64 + 0.5) / count, path, class));
        }
        ensure!(
            count > 0.0,
            "{}: no pictures, expected files ending in {}",
            folder.display(),
            EXTENSIONS.join(", ")
        );
    }
    pictures.sort_by(|a, b| a.0.total_cmp(&b.0));
    Ok(pictures.into_iter().map(|(_, path, class)| (path, class)).unzip())
}

/// Pictures in files, which are read when they are wanted, or, if it is known in time, a little before.
#[derive(Debug)]
pub(super) struct Files {
    paths: Arc<Vec<PathBuf>>,
    side: usize,
    ahead: Mutex<Option<Ahead>>,
}

/// Batches that are being read.
#[derive(Debug)]
struct Ahead {
    batches: VecDeque<Vec<u32>>,
    read: Prefetch<Vec<u8>>,
}

impl Files {
    fn new(paths: Vec<PathBuf>, side: usize) -> Self {
        Self { paths: Arc::new(paths), side, ahead: Mutex::default() }
    }

    pub fn side(&self) -> usize {
        self.side
    }

    pub fn path(&self, index: usize) -> &Path {
        &self.paths[index]
    }

    pub fn truncate(&mut self, len: usize) {
        Arc::make_mut(&mut self.paths).truncate(len);
    }

    pub fn read_ahead(&self, batches: Vec<Vec<u32>>) {
        let (paths, side) = (self.paths.clone(), self.side);
        let read = move |batch: Vec<u32>| read_files(&paths, &batch, side);
        let ahead = Ahead { batches: batches.clone().into(), read: Prefetch::new(batches, read) };
        *self.ahead.lock().unwrap_or_else(PoisonError::into_inner) = Some(ahead);
    }

    pub fn read(&self, indices: &[u32]) -> Result<Vec<u8>> {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Ahead { batches, read }) = ahead.as_mut()
            && batches.front().is_some_and(|next| next == indices)
        {
            batches.pop_front();
            if let Some(pixels) = read.next() {
                return pixels;
            }
        }
        read_files(&self.paths, indices, self.side)
    }
}

impl Clone for Files {
    fn clone(&self) -> Self {
        Self { paths: self.paths.clone(), side: self.side, ahead: Mutex::default() }
    }
}

impl PartialEq for Files {
    fn eq(&self, other: &Self) -> bool {
        (&self.paths, self.side) == (&other.paths, other.side)
    }
}

/// Reads the pictures `indices` as [`read_square`] does, on all of rayon's threads; one after another, each
/// `(3, side, side)` row-major.
fn read_files(paths: &[PathBuf], indices: &[u32], side: usize) -> Result<Vec<u8>> {
    let size = 3 * side * side;
    let mut pixels = vec![0; indices.len() * size];
    let pictures = pixels.par_chunks_mut(size).zip(indices);
    let read: Vec<Result<()>> =
        pictures.map(|(picture, &index)| read_into(&paths[index as usize], side, picture)).collect();
    read.into_iter().collect::<Result<()>>()?;
    Ok(pixels)
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
#[derive(Debug)]
struct Prefetch<T> {
    loaded: Receiver<Result<T>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Prefetch<T> {
    /// Begins to `load` the `batches`, up to the first that fails.
    fn new<B, L>(batches: B, mut load: L) -> Self
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

#[cfg(test)]
mod tests {
    use super::Prefetch;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn prefetch_keeps_the_order_and_stays_two_batches_ahead() {
        let loaded = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&loaded);
        let batches = Prefetch::new(0..20, move |batch| {
            counter.fetch_add(1, Ordering::SeqCst);
            Ok(batch)
        });
        while loaded.load(Ordering::SeqCst) < 2 {
            std::thread::yield_now();
        }
        let mut used = 0;
        for batch in batches {
            assert_eq!(batch.unwrap(), used);
            used += 1;
            assert!(loaded.load(Ordering::SeqCst) <= used + 2);
        }
        assert_eq!(used, 20);

        let load = |batch| if batch == 3 { anyhow::bail!("no batch 3") } else { Ok(batch) };
        let results: Vec<_> = Prefetch::new(0..20, load).map(|batch| batch.ok()).collect();
        assert_eq!(results, [Some(0), Some(1), Some(2), None]);
    }
}
