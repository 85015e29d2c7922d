//! Convolutions, and the windows of images.

use crate::ops::arguments::{Conv2dConfig, Pool2dConfig, check_conv_transpose2d, check_conv2d};
use candle_core::{Result, Tensor, bail};

/// The definition of [`conv2d()`](crate::ops::conv2d()).
///
/// It is one matrix product per group, with the windows of the input as columns.
///
/// # Errors
/// Fails if [`conv2d()`](crate::ops::conv2d()) would.
pub fn conv2d(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, config: Conv2dConfig) -> Result<Tensor> {
    check_conv2d(xs, weight, bias, config)?;
    let Conv2dConfig { stride, padding, dilation, groups } = config;
    let (batch, channels, height, width) = xs.dims4()?;
    let (outputs, group_channels, kernel_h, kernel_w) = weight.dims4()?;
    let windows = Unfold {
        kernel: (kernel_h, kernel_w),
        stride,
        dilation,
        padded: (height + 2 * padding.0, width + 2 * padding.1),
    };
    let (height, width) = windows.output();
    if batch == 0 {
        return Tensor::zeros((0, outputs, height, width), xs.dtype(), xs.device());
    }
    // (batch, channels, kernel, positions) -> (groups, channels of a group * kernel, batch * positions)
    let columns = windows
        .apply(&pad(xs, padding, 0.)?)?
        .reshape((batch, channels * kernel_h * kernel_w, height * width))?
        .transpose(0, 1)?
        .reshape((groups, group_channels * kernel_h * kernel_w, batch * height * width))?;
    let weight = weight.reshape((groups, outputs / groups, group_channels * kernel_h * kernel_w))?;
    let ys =
        weight.matmul(&columns)?.reshape((outputs, batch, height, width))?.transpose(0, 1)?.contiguous()?;
    match bias {
        Some(bias) => ys.broadcast_add(&bias.reshape((1, outputs, 1, 1))?),
        None => Ok(ys),
    }
}

/// The definition of [`conv_transpose2d()`](crate::ops::conv_transpose2d()).
///
/// It inserts zeros between the elements of the input and convolves with the mirrored kernel.
///
/// # Errors
/// Fails if [`conv_transpose2d()`](crate::ops::conv_transpose2d()) would.
pub fn conv_transpose2d(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: Conv2dConfig,
    output_padding: (usize, usize),
) -> Result<Tensor> {
    let conv = check_conv_transpose2d(xs, weight, bias, config, output_padding)?;
    let Conv2dConfig { padding, dilation, groups, .. } = config;
    let ((batch, channels, height, width), stride) = (xs.dims4()?, conv.stride);
    let spread = xs
        .reshape((batch, channels, height, 1, width, 1))?
        .pad_with_zeros(3, 0, stride.0 - 1)?
        .pad_with_zeros(5, 0, stride.1 - 1)?
        .reshape((batch, channels, height * stride.0, width * stride.1))?;
    let spread =
        with_margins(&spread, 2, conv.input.0, stride.0, dilation.0 * (conv.kernel.0 - 1), padding.0)?;
    let spread =
        with_margins(&spread, 3, conv.input.1, stride.1, dilation.1 * (conv.kernel.1 - 1), padding.1)?;
    let (inputs, outputs, kernel_h, kernel_w) = weight.dims4()?;
    let mirrored = weight
        .reshape((groups, inputs / groups, outputs, kernel_h, kernel_w))?
        .transpose(1, 2)?
        .reshape((groups * outputs, inputs / groups, kernel_h, kernel_w))?
        .flip(&[2, 3])?;
    conv2d(&spread, &mirrored, bias, Conv2dConfig { dilation, groups, ..Conv2dConfig::default() })
}

/// Cuts or pads a dimension of a spread input so that its convolution has `output` elements.
///
/// The kernel covers `reach` elements beside its first. After each element of the input are `stride - 1` zeros.
fn with_margins(
    xs: &Tensor,
    dim: usize,
    output: usize,
    stride: usize,
    reach: usize,
    padding: usize,
) -> Result<Tensor> {
    let last = xs.dim(dim)? - (stride - 1);
    let xs = xs.narrow(dim, 0, last)?.pad_with_zeros(dim, reach, reach + output)?;
    xs.narrow(dim, padding, output + reach)
}

/// Pads the last two dimensions with `value`.
pub(super) fn pad(xs: &Tensor, padding: (usize, usize), value: f64) -> Result<Tensor> {
    let along = |xs: &Tensor, dim: usize, size: usize| {
        if size == 0 {
            return Ok(xs.clone());
        }
        let mut shape = xs.dims().to_vec();
        shape[dim] = size;
        let border = Tensor::full(value as f32, shape, xs.device())?.to_dtype(xs.dtype())?;
        Tensor::cat(&[&border, xs, &border], dim)
    };
    along(&along(xs, 2, padding.0)?, 3, padding.1)
}

/// Cuts padded images into windows; each size is (height, width). The windows fit into the image.
pub(super) struct Unfold {
    kernel: (usize, usize),
    stride: (usize, usize),
    dilation: (usize, usize),
    padded: (usize, usize),
}

impl Unfold {
    /// The windows of a pooling operation with checked arguments.
    ///
    /// [`check_pool2d`](super::super::arguments::check_pool2d) has accepted them.
    pub(super) fn pooling(xs: &Tensor, config: Pool2dConfig) -> Result<Self> {
        let Pool2dConfig { kernel, stride, padding } = config;
        let (_, _, height, width) = xs.dims4()?;
        let padded = (height + 2 * padding.0, width + 2 * padding.1);
        Ok(Self { kernel, stride, dilation: (1, 1), padded })
    }

    /// The number of windows along the height and the width.
    pub(super) fn output(&self) -> (usize, usize) {
        let windows = |size, kernel, stride, dilation| (size - dilation * (kernel - 1) - 1) / stride + 1;
        (
            windows(self.padded.0, self.kernel.0, self.stride.0, self.dilation.0),
            windows(self.padded.1, self.kernel.1, self.stride.1, self.dilation.1),
        )
    }

    /// The windows of the padded `(batch, channels, height, width)`.
    ///
    /// The result is `(batch, channels, kernel elements, positions)`.
    pub(super) fn apply(&self, xs: &Tensor) -> Result<Tensor> {
        let &Self { kernel, stride, dilation, padded } = self;
        let (batch, channels, _, _) = xs.dims4()?;
        let (height, width) = self.output();
        let sizes = [kernel.0, kernel.1, height, width];
        let len = sizes.iter().try_fold(1, |len: usize, &size| len.checked_mul(size));
        let image = padded.0.checked_mul(padded.1);
        // Candle's indices are u32.
        let [Some(len), Some(image)] = [len, image].map(|len| len.filter(|&len| u32::try_from(len).is_ok()))
        else {
            bail!("found {height} by {width} windows of {kernel:?}, expected at most {} elements", u32::MAX)
        };
        let mut index = Vec::with_capacity(len);
        for tap in 0..kernel.0 * kernel.1 {
            let (row, column) = (tap / kernel.1 * dilation.0, tap % kernel.1 * dilation.1);
            for y in 0..height {
                let start = (y * stride.0 + row) * padded.1 + column;
                index.extend((0..width).map(|x| (start + x * stride.1) as u32));
            }
        }
        let index = Tensor::from_vec(index, len, xs.device())?;
        let windows = xs.reshape((batch, channels, image))?.contiguous()?.index_select(&index, 2)?;
        windows.reshape((batch, channels, kernel.0 * kernel.1, height * width))
    }
}
