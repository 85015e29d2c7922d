//! Images that stay in their files until they are needed.

use super::prefetch::Prefetch;
use crate::data::count;
use crate::data::fingerprint::Fingerprint;
use crate::kernels::cpu::parallel;
use crate::processes::{self, own_share};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Upper bound of the side of a square.
const MAX_SIDE: usize = 1 << 14;

/// How the files of one format are read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Format {
    /// Reads a file as `(3, side, side)` row-major bytes.
    pub read: fn(&Path, usize) -> Result<Vec<u8>>,
    /// Checks that a file is a whole image, by its header.
    pub check: fn(&Path) -> Result<()>,
}

/// Image files, read as squares of one size.
#[derive(Debug)]
pub(super) struct Files {
    paths: Arc<Vec<PathBuf>>,
    side: usize,
    /// Whether the images are converted to grey.
    is_grey: bool,
    format: Format,
    /// A hash of the content of each file, once they have been read.
    contents: OnceLock<Vec<u64>>,
    ahead: Mutex<Option<Ahead>>,
}

/// Batches that are being read in the background.
#[derive(Debug)]
struct Ahead {
    batches: VecDeque<Vec<u32>>,
    pixels: Prefetch<Vec<u8>>,
}

impl Files {
    pub fn new(paths: Vec<PathBuf>, side: usize, format: Format) -> Self {
        let paths = Arc::new(paths);
        Self { paths, side, is_grey: false, format, contents: OnceLock::new(), ahead: Mutex::default() }
    }

    /// The same files, read in grey: `(1, side, side)`.
    pub fn into_grey(self) -> Self {
        Self { is_grey: true, ahead: Mutex::default(), ..self }
    }

    pub fn path(&self, index: usize) -> Option<&Path> {
        self.paths.get(index).map(PathBuf::as_path)
    }

    /// The files `indices`.
    pub fn select(&self, indices: &[u32]) -> Self {
        let paths = indices.iter().map(|&index| self.paths[index as usize].clone()).collect();
        Self { is_grey: self.is_grey, ..Self::new(paths, self.side, self.format) }
    }

    /// A hash of the content of each file. Several processes divide the files.
    pub fn contents(&self) -> Result<&[u64]> {
        if let Some(contents) = self.contents.get() {
            return Ok(contents);
        }
        let paths = &self.paths[own_share(self.paths.len())];
        let mut hashes: Vec<Result<u64>> = paths.iter().map(|_| Ok(0)).collect();
        parallel::for_each_piece(&mut hashes, 1, |at, hash| {
            let bytes = fs::read(&paths[at]);
            let bytes = bytes.with_context(|| format!("{}: can't be read", paths[at].display()));
            hash[0] = bytes.map(|bytes| Fingerprint::new().add(&bytes).finish());
        });
        let own = hashes.into_iter().collect::<Result<Vec<u64>>>()?;
        let all = gathered(own)?;
        Ok(self.contents.get_or_init(|| all))
    }

    /// Checks that all processes have files of the same sizes.
    pub fn check_same(&self) -> Result<()> {
        let Some(processes) = processes::current() else { return Ok(()) };
        let size = |path: &PathBuf| fs::metadata(path).map_or(0, |file| file.len()).to_le_bytes();
        let all = self.paths.iter().fold(Fingerprint::new(), |hash, path| hash.add(&size(path)));
        let all = processes.gather(&all.finish().to_le_bytes())?;
        if let Some(rank) = all.iter().position(|other| *other != all[0]) {
            bail!(
                "the image files of process {rank} differ from those of process 0: give all processes the same files"
            );
        }
        Ok(())
    }

    pub fn truncate(&mut self, len: usize) {
        Arc::make_mut(&mut self.paths).truncate(len);
        self.contents.take();
    }

    /// Checks that all files are whole images, by their headers. Several processes divide them.
    pub fn check(&self) -> Result<()> {
        let paths = &self.paths[own_share(self.paths.len())];
        let mut checked: Vec<Result<()>> = paths.iter().map(|_| Ok(())).collect();
        parallel::for_each_piece(&mut checked, 1, |at, checked| {
            checked[0] = (self.format.check)(&paths[at]);
        });
        all(checked)?;
        Ok(())
    }

    /// Starts to read `batches` in the background. If no threads can start, the batches are read when they are needed.
    pub fn read_ahead(&self, batches: Vec<Vec<u32>>) {
        let files = self.clone();
        let read = move |batch: Vec<u32>| files.read_now(&batch);
        let ahead = Prefetch::new(batches.clone(), read);
        let ahead = ahead.map(|pixels| Ahead { batches: batches.into(), pixels }).ok();
        *self.ahead.lock().unwrap_or_else(PoisonError::into_inner) = ahead;
    }

    /// The pixels of the images `indices`, one after another.
    pub fn read(&self, indices: &[u32]) -> Result<Vec<u8>> {
        match self.take_ahead(indices) {
            Some(pixels) => pixels,
            // No lock is held here: a thread that waits in the pool may run another job that also comes here.
            None => self.read_now(indices),
        }
    }

    /// Reads the images `indices` in parallel.
    ///
    /// Each is `(3, side, side)` or, in grey, `(1, side, side)` row-major; they follow one another.
    fn read_now(&self, indices: &[u32]) -> Result<Vec<u8>> {
        let mut images: Vec<Result<Vec<u8>>> = indices.iter().map(|_| Ok(vec![])).collect();
        parallel::for_each_piece(&mut images, 1, |at, image| {
            let read = (self.format.read)(&self.paths[indices[at] as usize], self.side);
            image[0] = if self.is_grey { read.map(|pixels| grey(&pixels)) } else { read };
        });
        Ok(all(images)?.concat())
    }

    /// The pixels of `indices` if they are the next batch read ahead.
    ///
    /// The lock is held while waiting for the batch, which is safe as its readers need neither the lock nor this thread.
    fn take_ahead(&self, indices: &[u32]) -> Option<Result<Vec<u8>>> {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let Ahead { batches, pixels } = ahead.as_mut()?;
        batches.front().filter(|next| *next == indices)?;
        batches.pop_front();
        pixels.next()
    }
}

impl Clone for Files {
    fn clone(&self) -> Self {
        let (paths, contents) = (self.paths.clone(), self.contents.clone());
        Self { ahead: Mutex::default(), paths, contents, ..*self }
    }
}

impl PartialEq for Files {
    fn eq(&self, other: &Self) -> bool {
        (&self.paths, self.side, self.is_grey) == (&other.paths, other.side, other.is_grey)
    }
}

/// Checks that images can have the side `side`.
pub(super) fn check_side(side: usize) -> Result<()> {
    ensure!((1..=MAX_SIDE).contains(&side), "image side: found {side}, expected 1 to {MAX_SIDE}");
    Ok(())
}

/// The luma (Rec. 709) of an image in red, green and blue planes.
pub(super) fn grey(pixels: &[u8]) -> Vec<u8> {
    let size = pixels.len() / 3;
    let luma = |at: usize| {
        let [red, green, blue] = [0, 1, 2].map(|channel| u32::from(pixels[channel * size + at]));
        ((2126 * red + 7152 * green + 722 * blue) / 10_000) as u8
    };
    (0..size).map(luma).collect()
}

/// The numbers of all processes, in the order of their shares.
fn gathered(own: Vec<u64>) -> Result<Vec<u64>> {
    let Some(processes) = processes::current() else { return Ok(own) };
    let own: Vec<u8> = own.into_iter().flat_map(u64::to_le_bytes).collect();
    let all = processes.gather(&own)?.concat();
    Ok(all.as_chunks().0.iter().map(|&number| u64::from_le_bytes(number)).collect())
}

/// The sums of the numbers of all processes, each of which has as many.
pub(super) fn added(own: Vec<u64>) -> Result<Vec<u64>> {
    let len = own.len();
    let all = gathered(own)?;
    Ok((0..len).map(|at| all.iter().skip(at).step_by(len).sum()).collect())
}

/// Returns all results, or the first error and the number of further ones.
fn all<T>(results: Vec<Result<T>>) -> Result<Vec<T>> {
    let failed = results.iter().filter(|result| result.is_err()).count();
    let results: Result<Vec<T>> = results.into_iter().collect();
    results.map_err(|first| match failed {
        1 => first,
        _ => anyhow!("{first:#}; {} can't be read either", count(failed - 1, "more file")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processes::{Processes, threads, together};
    use anyhow::bail;

    /// A file is whole if its first letter says so.
    const FORMAT: Format = Format {
        read: |_, _| bail!("not read here"),
        check: |path| match fs::read(path)?.first() {
            Some(b'w') => Ok(()),
            _ => bail!("{}: damaged", path.display()),
        },
    };

    #[test]
    fn each_process_reads_its_share_of_the_files_only() {
        let place = tempfile::tempdir().unwrap();
        let files = |name: &str, content: &dyn Fn(usize) -> String| {
            let path = |i: usize| place.path().join(format!("{name}-{i}"));
            (0..5).for_each(|i| fs::write(path(i), content(i)).unwrap());
            Files::new((0..5).map(path).collect(), 1, FORMAT)
        };
        let whole = files("whole", &|i| format!("whole {i}"));
        let expected = whole.contents().unwrap().to_vec();
        assert_eq!(expected.len(), 5);
        // Of 5 files, process 0 has the first 2.
        let first = files("first", &|i| if i < 2 { format!("whole {i}") } else { format!("other {i}") });
        let second = files("second", &|i| if i < 2 { format!("other {i}") } else { format!("whole {i}") });
        let larger = files("larger", &|i| format!("whole {}", i + 98));
        let run = |processes: Arc<dyn Processes>, all: [&Files; 2]| {
            let own = all[processes.rank()];
            together(&processes, || {
                own.check_same()?;
                own.check()?;
                own.contents().map(<[u64]>::to_vec)
            })
        };
        for (all, is_same) in [([&first, &second], true), ([&whole, &larger], false)] {
            std::thread::scope(|scope| {
                let running: Vec<_> = threads(2)
                    .into_iter()
                    .map(|processes| scope.spawn(move || run(processes, all)))
                    .collect();
                for thread in running {
                    match thread.join().unwrap() {
                        Ok(found) => assert!(is_same && found == expected),
                        Err(error) => {
                            assert!(!is_same && error.to_string().contains("process 1 differ"), "{error}")
                        }
                    }
                }
            });
        }
        assert!(first.check().is_err() && added(vec![3, 4]).unwrap() == [3, 4]);
    }
}
