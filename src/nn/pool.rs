use super::is_native;
use crate::ops::{self, Pool2dConfig};
use candle_core::ToUsize2;
use candle_core::{Module, Result, Tensor};

/// The largest value of each window of `size`, like `Tensor::max_pool2d`, with a correct gradient.
///
/// `(batch, channels, height, width)` to `(batch, channels, height / size, width / size)`.
///
/// # Errors
/// Fails if `xs` has another rank, or the window is empty or larger than the image.
pub fn max_pool2d<T: ToUsize2>(xs: &Tensor, size: T) -> Result<Tensor> {
    let size = size.to_usize2();
    max_pool2d_with_stride(xs, size, size)
}

/// The largest value of each window of `size`, every `stride` elements; see [`max_pool2d`].
///
/// # Errors
/// Fails if [`max_pool2d`] would, or a stride is 0.
pub fn max_pool2d_with_stride<T: ToUsize2>(xs: &Tensor, size: T, stride: T) -> Result<Tensor> {
    let (kernel, stride) = (size.to_usize2(), stride.to_usize2());
    match is_native(xs) {
        true => ops::max_pool2d(xs, Pool2dConfig { kernel, stride, padding: (0, 0) }),
        false => xs.max_pool2d_with_stride(kernel, stride),
    }
}

/// The mean of each window of `size`, like `Tensor::avg_pool2d`; see [`max_pool2d`].
///
/// It has a gradient for images of any size.
///
/// # Errors
/// Fails if [`max_pool2d`] would.
pub fn avg_pool2d<T: ToUsize2>(xs: &Tensor, size: T) -> Result<Tensor> {
    let size = size.to_usize2();
    avg_pool2d_with_stride(xs, size, size)
}

/// The mean of each window of `size`, every `stride` elements; see [`max_pool2d`].
///
/// # Errors
/// Fails if [`max_pool2d_with_stride`] would.
pub fn avg_pool2d_with_stride<T: ToUsize2>(xs: &Tensor, size: T, stride: T) -> Result<Tensor> {
    let (kernel, stride) = (size.to_usize2(), stride.to_usize2());
    match is_native(xs) {
        true => ops::avg_pool2d(xs, Pool2dConfig { kernel, stride, padding: (0, 0) }),
        false => xs.avg_pool2d_with_stride(kernel, stride),
    }
}

/// The function that a pooling layer computes over each window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The largest value.
    Max,
    /// The mean.
    Average,
    /// The square root of the sum of squares (Nielsen, chapter 6).
    L2,
}

/// A 2-d pooling layer. It replaces candle's `max_pool2d`, whose gradient is wrong.
#[derive(Debug, Clone, Copy)]
pub struct Pool2d {
    /// The function of each window.
    pub pooling: Pooling,
    /// Size, stride and padding of the windows.
    pub window: Pool2dConfig,
}

impl Module for Pool2d {
    /// `(batch, channels, height, width)` to `(batch, channels, height', width')`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match self.pooling {
            Pooling::Max => ops::max_pool2d(xs, self.window),
            Pooling::Average => ops::avg_pool2d(xs, self.window),
            Pooling::L2 => ops::l2_pool2d(xs, self.window),
        }
    }
}
