//! Batches of images, assembled on a GPU from the bytes of a whole set.

use super::gpu::Gpu;
use crate::kernels::cuda::{self, Grid};
use candle_core::{Device, Result, Tensor};

/// Images and labels in the memory of a GPU.
pub(crate) struct ImageTable {
    /// `(images, size)`, bytes.
    pixels: Tensor,
    /// `(images)`
    labels: Tensor,
    /// Mean and inverse standard deviation of each channel, `(2, channels)`.
    statistics: Tensor,
    /// Channels, height and width of an image.
    shape: (usize, usize, usize),
}

/// Which image an example shows, and how it is placed.
#[derive(Clone, Copy)]
pub(crate) struct Placement {
    pub index: u32,
    /// Columns and rows that the image is shifted by.
    pub by: (i32, i32),
    /// Whether it is flipped left to right first.
    pub flip: bool,
}

impl Placement {
    /// The images `indices`, neither shifted nor flipped.
    pub fn centred(indices: &[u32]) -> Vec<Self> {
        indices.iter().map(|&index| Self { index, by: (0, 0), flip: false }).collect()
    }
}

impl ImageTable {
    /// Copies images and labels to `device`; returns `None` if there are no kernels for it.
    ///
    /// Batches scale the values of a channel to the range from 0 to 1, subtract its first statistic and multiply by its
    /// second.
    pub fn new(
        pixels: &[u8],
        labels: &[u32],
        shape: (usize, usize, usize),
        statistics: &[Vec<f32>; 2],
        device: &Device,
    ) -> Result<Option<Self>> {
        let statistics = Tensor::from_vec(statistics.concat(), (2, shape.0), device)?;
        if Gpu::of(&statistics).is_none() {
            return Ok(None);
        }
        let pixels = Tensor::from_slice(pixels, pixels.len(), device)?;
        Ok(Some(Self {
            pixels,
            labels: Tensor::from_slice(labels, labels.len(), device)?,
            statistics,
            shape,
        }))
    }

    /// Whether this thread runs kernels on the device.
    pub fn has_kernels(&self) -> bool {
        Gpu::of(&self.statistics).is_some()
    }

    /// Assembles a batch: f32 images `(batch, channels, height, width)` and labels `(batch)`.
    ///
    /// Pixels outside of the original images are 0.
    pub fn batch(&self, placements: &[Placement]) -> Result<(Tensor, Tensor)> {
        let Some(gpu) = Gpu::of(&self.statistics) else { candle_core::bail!("images: the device has gone") };
        let ((channels, height, width), batch) = (self.shape, placements.len());
        let count = batch * channels * height * width;
        debug_assert!(
            placements.iter().all(|placement| (placement.index as usize) < self.labels.elem_count())
        );
        let plan = |&Placement { index, by, flip }: &Placement| [index as i32, by.0, by.1, i32::from(flip)];
        let plan = gpu.upload(&placements.iter().flat_map(plan).collect::<Vec<i32>>())?;
        let (xs, labels) = (gpu.alloc::<f32>(count)?, gpu.alloc::<u32>(batch)?);
        let args = [
            gpu.pointer::<u8>(&self.pixels)?.into(),
            gpu.pointer::<u32>(&self.labels)?.into(),
            gpu.pointer::<f32>(&self.statistics)?.into(),
            plan.pointer().into(),
            xs.pointer().into(),
            labels.pointer().into(),
            (channels as i32).into(),
            (height as i32).into(),
            (width as i32).into(),
            (count as i64).into(),
        ];
        let kernel = cuda::IMAGE_BATCH.kernel::<f32>("image_batch");
        // SAFETY: these are the kernel's parameters, and each index is below the number of images.
        unsafe { gpu.launch(kernel, Grid::elements(count, 1), &args)? };
        Ok((gpu.tensor(xs, (batch, channels, height, width)), gpu.tensor(labels, batch)))
    }
}
