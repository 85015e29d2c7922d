use crate::ops::{self, Pool2dConfig};
use candle_core::{Module, Result, Tensor};

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

/// A 2-d pooling layer. It stands in for candle's `max_pool2d`, whose gradient is wrong.
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
