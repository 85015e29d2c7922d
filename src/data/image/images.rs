//! Labelled images, kept as bytes until they are batched.

use super::augmentation::Augmentation;
use super::device_copy::DeviceCopy;
use super::files::{self, Files, grey};
use super::normalisation::Normalisation;
use super::preparation::Preparation;
use crate::data::count;
use crate::data::fingerprint::Fingerprint;
use crate::ops::image_batch::{ImageTable, Placement};
use crate::ops::to_ids;
use crate::processes::own_share;
use candle_core::{DType, Device, Error, Result, Tensor, bail};
use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Lower bound of a channel's standard deviation, so that a constant channel can be divided by it.
const MIN_STD: f64 = 1.0 / 255.0;

/// Number of images in files from which the normalisation is estimated.
const SAMPLE: usize = 2000;

/// Image files that take at most this many bytes, decoded, are kept in memory.
const MAX_BYTES_IN_MEMORY: usize = 256 << 20;

/// Images that take at most this many bytes are copied to a GPU, which assembles their batches.
const MAX_BYTES_ON_DEVICE: usize = 2 << 30;

/// A data set of images.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageSet {
    /// The training images, followed by the validation images, if the data set has any.
    pub training: Images,
    /// Number of validation images at the end of `training`; `None` without a validation split.
    pub validation: Option<usize>,
    /// The test images; empty if the data set does not define a test split.
    pub test: Images,
    /// How to convert a picture to an image like these.
    pub preparation: Preparation,
    /// Notes about the files for the user.
    pub notes: Vec<String>,
}

/// Labelled images of one size, one byte per pixel and channel: 0 is black, 255 is full ink or light.
///
/// The images of a folder stay in their files until they are needed.
#[derive(Debug, Clone, PartialEq)]
pub struct Images {
    pixels: Pixels,
    labels: Vec<u32>,
    shape: (usize, usize, usize),
    class_names: Vec<String>,
    normalisation: Option<Normalisation>,
    device_copy: DeviceCopy,
}

#[derive(Debug, Clone, PartialEq)]
enum Pixels {
    Memory(Vec<u8>),
    Files(Files),
}

impl Images {
    /// Creates a set from the images' bytes, with one label per image.
    ///
    /// Each image is `(channels, height, width)`, row-major.
    ///
    /// The classes are named "0", "1", ...
    ///
    /// # Errors
    /// Fails if `shape` has a size of 0, `pixels` does not hold `labels.len()` images, or a label is not below
    /// `classes`.
    pub fn new<L: Into<u32>>(
        pixels: Vec<u8>,
        labels: Vec<L>,
        shape: (usize, usize, usize),
        classes: usize,
    ) -> Result<Self> {
        let expected = image_size(shape).and_then(|size| size.checked_mul(labels.len()));
        if expected != Some(pixels.len()) {
            let (channels, height, width) = shape;
            bail!(
                "images: found {}, expected {} of {channels}x{height}x{width} bytes, no size being 0",
                count(pixels.len(), "byte"),
                count(labels.len(), "image")
            );
        }
        let labels: Vec<u32> = labels.into_iter().map(Into::into).collect();
        if let Some(at) = labels.iter().position(|&label| label as usize >= classes) {
            let classes = count(classes, "class");
            bail!("images: found label {} at position {at}, expected one of {classes}", labels[at]);
        }
        let class_names = (0..classes).map(|class| class.to_string()).collect();
        Ok(Self::of(Pixels::Memory(pixels), labels, shape, class_names))
    }

    /// Creates a set from tensors, such as candle-datasets returns.
    ///
    /// `images` `(count, ..)` holds values from 0 to 1, with the elements of `shape` `(channels, height, width)` per
    /// image; `labels` `(count)` are integers.
    ///
    /// # Errors
    /// Fails if [`new`](Self::new) would, there is not one image per label, a value is not from 0 to 1, or the labels are not
    /// integers.
    pub fn from_tensors(
        images: &Tensor,
        labels: &Tensor,
        shape: (usize, usize, usize),
        classes: usize,
    ) -> Result<Self> {
        if labels.rank() != 1 || images.dims().first() != labels.dims().first() {
            let (images, labels) = (images.dims(), labels.dims());
            bail!(
                "images: found images and labels of shapes {images:?} and {labels:?}, expected (count, ..) and (count)"
            );
        }
        let values = images.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        if let Some(at) = values.iter().position(|value| !(0.0..=1.0).contains(value)) {
            bail!("images: found the value {} at position {at}, expected one from 0 to 1", values[at]);
        }
        let pixels = values.into_iter().map(|value| (255.0 * value).round() as u8).collect();
        let labels = to_ids("images: found a label", labels)?.to_vec1::<u32>()?;
        Self::new(pixels, labels, shape, classes)
    }

    /// Creates a set of images in files, each of `shape`, with one label per file.
    pub(super) fn from_files(
        files: Files,
        labels: Vec<u32>,
        shape: (usize, usize, usize),
        class_names: Vec<String>,
    ) -> Self {
        Self::of(Pixels::Files(files), labels, shape, class_names)
    }

    fn of(pixels: Pixels, labels: Vec<u32>, shape: (usize, usize, usize), class_names: Vec<String>) -> Self {
        Self { pixels, labels, shape, class_names, normalisation: None, device_copy: DeviceCopy::default() }
    }

    /// Names the classes.
    ///
    /// # Errors
    /// Fails if there is not one name per class.
    pub fn with_class_names<S: ToString>(mut self, names: impl IntoIterator<Item = S>) -> Result<Self> {
        let names: Vec<String> = names.into_iter().map(|name| name.to_string()).collect();
        if names.len() != self.classes() {
            bail!("images: found {}, expected {}", count(names.len(), "class name"), self.classes());
        }
        self.class_names = names;
        Ok(self)
    }

    /// Converts images of three channels to grey by their luma (Rec. 709).
    ///
    /// It undoes their normalisation. Images of one channel stay as they are.
    #[must_use]
    pub fn into_grey(self) -> Self {
        let (3, height, width) = self.shape else { return self };
        let pixels = match self.pixels {
            Pixels::Memory(pixels) => {
                Pixels::Memory(pixels.chunks_exact(3 * height * width).flat_map(grey).collect())
            }
            Pixels::Files(files) => Pixels::Files(files.into_grey()),
        };
        Self::of(pixels, self.labels, (1, height, width), self.class_names)
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// `(channels, height, width)` of each image.
    pub fn shape(&self) -> (usize, usize, usize) {
        self.shape
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.class_names.len()
    }

    /// The name of each class.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// The class of each image.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// Number of bytes of an image.
    fn size(&self) -> usize {
        self.shape.0 * self.shape.1 * self.shape.2
    }

    /// The bytes of image `index`, `(channels, height, width)` row-major.
    ///
    /// # Errors
    /// Fails if `index` is out of range or the image's file can't be read.
    pub fn image(&self, index: usize) -> Result<Cow<'_, [u8]>> {
        self.check_range(index)?;
        match &self.pixels {
            Pixels::Memory(pixels) => Ok(pixels[index * self.size()..][..self.size()].into()),
            Pixels::Files(_) => Ok(self.read(&[index as u32])?.into()),
        }
    }

    /// The file of image `index`; `None` for an image in memory.
    pub fn path(&self, index: usize) -> Option<&Path> {
        match &self.pixels {
            Pixels::Memory(_) => None,
            Pixels::Files(files) => files.path(index),
        }
    }

    /// The bytes of the images `indices`, one after another. Files are read in parallel.
    ///
    /// # Errors
    /// Fails if an index is out of range or a file can't be read.
    pub fn read(&self, indices: &[u32]) -> Result<Vec<u8>> {
        if let Some(&largest) = indices.iter().max() {
            self.check_range(largest as usize)?;
        }
        match &self.pixels {
            Pixels::Memory(pixels) => {
                let image = |&index: &u32| &pixels[index as usize * self.size()..][..self.size()];
                Ok(indices.iter().map(image).collect::<Vec<_>>().concat())
            }
            Pixels::Files(files) => files.read(indices).map_err(|error| Error::Msg(format!("{error:#}"))),
        }
    }

    fn check_range(&self, index: usize) -> Result<()> {
        if index >= self.len() {
            bail!("images: found index {index}, expected one below {}, the number of images", self.len());
        }
        Ok(())
    }

    /// Starts to read the files of `batches` in the background, for calls of `read` or `batch` in order.
    ///
    /// Does nothing for images in memory. Replaces the batches of the last call. At most two batches are ready or being
    /// read. The reader uses as many threads as the caller's rayon pool.
    pub fn read_ahead(&self, batches: Vec<Vec<u32>>) {
        let in_range = |batch: &Vec<u32>| batch.iter().all(|&index| (index as usize) < self.len());
        if let Pixels::Files(files) = &self.pixels
            && batches.iter().all(in_range)
        {
            files.read_ahead(batches);
        }
    }

    /// Reads the images of files into memory if they take at most 256 MiB.
    ///
    /// # Errors
    /// Fails if a file can't be read.
    pub fn load_into_memory(&mut self) -> Result<()> {
        if matches!(self.pixels, Pixels::Files(_)) && self.len() <= MAX_BYTES_IN_MEMORY / self.size() {
            let all: Vec<u32> = (0..self.len() as u32).collect();
            self.pixels = Pixels::Memory(self.read(&all)?);
            self.device_copy.clear();
        }
        Ok(())
    }

    /// Checks that the files of all images are whole, by their headers. Does nothing for images in memory.
    ///
    /// # Errors
    /// Fails if a file can't be read; the message says how many can't.
    pub fn check_files(&self) -> Result<()> {
        match &self.pixels {
            Pixels::Memory(_) => Ok(()),
            Pixels::Files(files) => files.check().map_err(|error| Error::Msg(format!("{error:#}"))),
        }
    }

    /// A hash of the content of each image's file; none for images in memory. Several processes divide the files.
    pub(super) fn file_contents(&self) -> Result<&[u64]> {
        match &self.pixels {
            Pixels::Memory(_) => Ok(&[]),
            Pixels::Files(files) => files.contents().map_err(|error| Error::Msg(format!("{error:#}"))),
        }
    }

    /// Returns the images `indices` as a new set.
    ///
    /// # Errors
    /// Fails if an index is out of range.
    pub fn select(&self, indices: &[u32]) -> Result<Self> {
        if let Some(&largest) = indices.iter().max() {
            self.check_range(largest as usize)?;
        }
        let pixels = match &self.pixels {
            Pixels::Memory(_) => Pixels::Memory(self.read(indices)?),
            Pixels::Files(files) => Pixels::Files(files.select(indices)),
        };
        let labels = indices.iter().map(|&index| self.labels[index as usize]).collect();
        let mut images = Self::of(pixels, labels, self.shape, self.class_names.clone());
        images.normalisation = self.normalisation.clone();
        Ok(images)
    }

    /// Keeps only the first `len` images.
    pub fn truncate(&mut self, len: usize) {
        self.labels.truncate(len);
        self.device_copy.clear();
        let bytes = self.len() * self.size();
        match &mut self.pixels {
            Pixels::Memory(pixels) => pixels.truncate(bytes),
            Pixels::Files(files) => files.truncate(len),
        }
    }

    /// Makes `batch` subtract each channel's mean and divide by its standard deviation.
    ///
    /// # Errors
    /// Fails if the normalisation is for another number of channels.
    pub fn normalise(&mut self, normalisation: Normalisation) -> Result<()> {
        let (means, stds) = (normalisation.mean.len(), normalisation.std.len());
        if (means, stds) != (self.shape.0, self.shape.0) {
            bail!(
                "normalisation: found {means} means and {stds} standard deviations, expected {} of each, one per channel",
                self.shape.0
            );
        }
        self.normalisation = Some(normalisation);
        self.device_copy.clear();
        Ok(())
    }

    /// The images `indices` and their labels.
    ///
    /// The images are f32 of shape `(batch, channels, height, width)`, from 0 to 1 unless
    /// [normalised](Self::normalise); the labels are u32 of shape `(batch)`.
    ///
    /// # Errors
    /// Fails if an index is out of range, a file can't be read, or the device has no memory left.
    pub fn batch(&self, indices: &[u32], device: &Device) -> Result<(Tensor, Tensor)> {
        if let Some(table) = self.table(indices, device)? {
            return table.batch(&Placement::centred(indices));
        }
        let bytes = self.read(indices)?;
        self.tensors(indices, bytes.iter().map(|&byte| f32::from(byte) / 255.0).collect(), device)
    }

    /// Like [`batch`](Self::batch), with each image augmented.
    ///
    /// An augmented image is a function of `seed`, `epoch` and the image's index: it changes every epoch and does not
    /// depend on the rest of the batch.
    ///
    /// # Errors
    /// Fails if [`batch`](Self::batch) would, or a parameter of the augmentation is out of range.
    pub fn augmented_batch(
        &self,
        indices: &[u32],
        augmentation: &Augmentation,
        seed: u64,
        epoch: usize,
        device: &Device,
    ) -> Result<(Tensor, Tensor)> {
        augmentation.validate()?;
        if augmentation.only_places()
            && let Some(table) = self.table(indices, device)?
        {
            return table.batch(&augmentation.placements(indices, (seed, epoch)));
        }
        let pixels = augmentation.apply_to(indices, &self.read(indices)?, self.shape, (seed, epoch));
        self.tensors(indices, pixels, device)
    }

    /// The copy of all images on `device`, for a batch of `indices`; `None` if they stay in main memory.
    fn table(&self, indices: &[u32], device: &Device) -> Result<Option<Arc<ImageTable>>> {
        let Pixels::Memory(pixels) = &self.pixels else { return Ok(None) };
        if let Some(&largest) = indices.iter().max() {
            self.check_range(largest as usize)?;
        }
        let table = self.device_copy.on(device, || {
            if pixels.len() > MAX_BYTES_ON_DEVICE {
                return Ok(None);
            }
            let statistics = match &self.normalisation {
                Some(normalisation) => normalisation.mean_and_scale(),
                None => [vec![0.0; self.shape.0], vec![1.0; self.shape.0]],
            };
            ImageTable::new(pixels, &self.labels, self.shape, &statistics, device)
        })?;
        Ok(table.filter(|table| table.has_kernels()))
    }

    /// Images from 0 to 1 as a model reads them, with their labels.
    fn tensors(&self, indices: &[u32], mut pixels: Vec<f32>, device: &Device) -> Result<(Tensor, Tensor)> {
        let (channels, height, width) = self.shape;
        if let Some(normalisation) = &self.normalisation {
            normalisation.apply(&mut pixels, height * width);
        }
        let pixels = Tensor::from_vec(pixels, (indices.len(), channels, height, width), device)?;
        let labels: Vec<u32> = indices.iter().map(|&index| self.labels[index as usize]).collect();
        Ok((pixels, Tensor::from_vec(labels, indices.len(), device)?))
    }

    /// The mean and standard deviation of each channel over the images `indices`.
    ///
    /// For images in files, 2,000 of them, evenly spread, represent all. Several processes divide them. The sums are
    /// exact, so their order does not matter.
    ///
    /// # Errors
    /// Fails if an index is out of range or a file can't be read.
    pub fn channel_statistics(&self, indices: &[u32]) -> Result<Normalisation> {
        let (channels, height, width) = self.shape;
        let step = match self.pixels {
            Pixels::Memory(_) => 1,
            Pixels::Files(_) => indices.len().div_ceil(SAMPLE).max(1),
        };
        let indices: Vec<u32> = indices.iter().copied().step_by(step).collect();
        let own = match self.pixels {
            Pixels::Memory(_) => 0..indices.len(),
            Pixels::Files(_) => own_share(indices.len()),
        };
        let mut sums = vec![0_u64; 2 * channels];
        for indices in indices[own].chunks(64) {
            for (at, plane) in self.read(indices)?.chunks(height * width).enumerate() {
                let (sum, square) = sums_of(plane);
                sums[at % channels] += sum;
                sums[channels + at % channels] += square;
            }
        }
        if let Pixels::Files(_) = self.pixels {
            sums = files::added(sums).map_err(|error| Error::Msg(format!("{error:#}")))?;
        }
        let (sums, squares) = sums.split_at(channels);
        let count = (indices.len() * height * width).max(1) as f64;
        let mean: Vec<f64> = sums.iter().map(|&sum| sum as f64 / count / 255.0).collect();
        let std = squares.iter().zip(&mean).map(|(&sum, mean)| {
            (sum as f64 / count / (255.0 * 255.0) - mean * mean).max(0.0).sqrt().max(MIN_STD)
        });
        Ok(Normalisation { std: std.collect(), mean })
    }

    /// A hash of the images `range` and their labels, to detect changed data when a run is resumed.
    ///
    /// For images in files, it covers their content, not the paths. Several processes divide the files, and get the same
    /// hash as one.
    ///
    /// # Errors
    /// Fails if the range exceeds the set or a file can't be read.
    pub fn fingerprint(&self, range: Range<usize>) -> Result<u64> {
        let Some(labels) = self.labels.get(range.clone()) else {
            bail!("found a range up to image {}, expected at most {}", range.end, self.len())
        };
        let hash = Fingerprint::new().add_strings(&self.class_names).add_ids(labels);
        let size = self.size();
        Ok(match &self.pixels {
            Pixels::Memory(pixels) => hash.add(&pixels[range.start * size..range.end * size]).finish(),
            Pixels::Files(_) => self.file_contents()?[range]
                .iter()
                .fold(hash, |hash, file| hash.add(&file.to_le_bytes()))
                .finish(),
        })
    }
}

/// Number of bytes of an image; `None` if it is 0 or too large.
pub(super) fn image_size((channels, height, width): (usize, usize, usize)) -> Option<usize> {
    channels.checked_mul(height)?.checked_mul(width).filter(|&size| size > 0)
}

/// The sum of `bytes` and the sum of their squares.
fn sums_of(bytes: &[u8]) -> (u64, u64) {
    let (mut sum, mut squares) = (0, 0);
    // The squares of 2^16 bytes add up to less than 2^32.
    for part in bytes.chunks(1 << 16) {
        sum += u64::from(part.iter().map(|&byte| u32::from(byte)).sum::<u32>());
        squares += u64::from(part.iter().map(|&byte| u32::from(byte) * u32::from(byte)).sum::<u32>());
    }
    (sum, squares)
}

#[cfg(all(test, feature = "cuda-emulator"))]
mod tests {
    use super::*;
    use crate::data::PhotoAugmentation;
    use crate::ops::emulator;

    /// Seven images of shape (3, 5, 6).
    fn images() -> Result<Images> {
        Images::new(
            (0..7 * 90).map(|at| (at * 37 % 251) as u8).collect(),
            vec![3_u8, 1, 4, 1, 5, 0, 2],
            (3, 5, 6),
            6,
        )
    }

    fn assert_same(make: impl Fn(&Images) -> Result<(Tensor, Tensor)>) -> Result<()> {
        let mut images = images()?;
        for normalised in [false, true] {
            if normalised {
                images.normalise(Normalisation::imagenet())?;
            }
            let (xs, labels) = make(&images)?;
            let (expected, expected_labels) = emulator::off(|| make(&images))?;
            assert_eq!(xs.dims(), expected.dims());
            assert_eq!(xs.flatten_all()?.to_vec1::<f32>()?, expected.flatten_all()?.to_vec1::<f32>()?);
            assert_eq!(labels.to_vec1::<u32>()?, expected_labels.to_vec1::<u32>()?);
        }
        Ok(())
    }

    #[test]
    fn batches_made_on_a_gpu_equal_those_of_the_host_to_the_bit() -> Result<()> {
        assert_same(|images| images.batch(&[6, 0, 3], &Device::Cpu))?;
        assert_same(|images| images.batch(&[], &Device::Cpu))?;
        let far = PhotoAugmentation { pad: 8, ..PhotoAugmentation::default() };
        for augmentation in [Augmentation::Shifts, Augmentation::Photo(far)] {
            for epoch in 0..20 {
                let all = [0, 1, 2, 3, 4, 5, 6];
                assert_same(|images| images.augmented_batch(&all, &augmentation, 3, epoch, &Device::Cpu))?;
            }
        }
        Ok(())
    }

    #[test]
    fn a_batch_takes_one_launch_and_one_copy() -> Result<()> {
        let images = images()?;
        images.batch(&[0], &Device::Cpu)?;
        let (batch, counts) =
            emulator::count(|| images.augmented_batch(&[5, 2], &Augmentation::Shifts, 3, 1, &Device::Cpu));
        batch?;
        assert_eq!((counts.launches, counts.to_device, counts.waits), (1, 1, 0));
        Ok(())
    }
}
