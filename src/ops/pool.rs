//! Pooling over windows of each channel.

use super::autograd::{self, Operation};
use super::host::{self, with_real};
use super::reference;
use crate::kernels::cpu::pool::{self as kernel, Reduction, Windows};
use candle_core::{CpuStorage, Result, Shape, Tensor, bail};

/// The windows of a pooling operation; each size is (height, width).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool2dConfig {
    /// The size of a window.
    pub kernel: (usize, usize),
    /// The distance between windows.
    pub stride: (usize, usize),
    /// The padding on each side, at most half the kernel.
    pub padding: (usize, usize),
}

impl Pool2dConfig {
    /// Adjacent windows of `size` by `size`, without overlap or padding.
    pub fn square(size: usize) -> Self {
        Self { kernel: (size, size), stride: (size, size), padding: (0, 0) }
    }
}

/// Takes the maximum of each window, like PyTorch's `max_pool2d`.
///
/// `xs` is `(batch, channels, height, width)`; padding counts as minus infinity. The gradient goes to the first of equal
/// maxima in row-major order. A window that contains NaN yields NaN, and its gradient goes to the last NaN.
///
/// # Errors
/// If the padded input is smaller than the kernel, the padding exceeds half the kernel, or a size other than the batch,
/// the channels or the padding is 0.
pub fn max_pool2d(xs: &Tensor, config: Pool2dConfig) -> Result<Tensor> {
    apply("max_pool2d", Reduction::Max, xs, config, reference::max_pool2d)
}

/// Takes the mean of each window, like PyTorch's `avg_pool2d`.
///
/// `xs` is `(batch, channels, height, width)`; padding counts as zeros.
///
/// # Errors
/// As for [`max_pool2d`].
pub fn avg_pool2d(xs: &Tensor, config: Pool2dConfig) -> Result<Tensor> {
    apply("avg_pool2d", Reduction::Average, xs, config, reference::avg_pool2d)
}

/// Takes the square root of the sum of squares of each window: L2 pooling (Nielsen, chapter 6).
///
/// `xs` is `(batch, channels, height, width)`; padding counts as zeros. The gradient of a window of zeros is taken as 0.
///
/// # Errors
/// As for [`max_pool2d`].
pub fn l2_pool2d(xs: &Tensor, config: Pool2dConfig) -> Result<Tensor> {
    apply("l2_pool2d", Reduction::L2, xs, config, reference::l2_pool2d)
}

fn apply(
    name: &'static str,
    reduction: Reduction,
    xs: &Tensor,
    config: Pool2dConfig,
    reference: impl Fn(&Tensor, Pool2dConfig) -> Result<Tensor>,
) -> Result<Tensor> {
    let windows = check(name, xs, config)?;
    match xs.device().is_cpu() {
        true => autograd::apply(Pool { name, reduction, windows }, vec![xs.contiguous()?]),
        false => reference(xs, config),
    }
}

/// Checks the input and the configuration and returns the windows of a channel.
pub(super) fn check(name: &str, xs: &Tensor, config: Pool2dConfig) -> Result<Windows> {
    let Pool2dConfig { kernel, stride, padding } = config;
    let &[_, _, height, width] = xs.dims() else {
        bail!("{name}: found an input of shape {:?}, expected (batch, channels, height, width)", xs.dims())
    };
    if height == 0 || width == 0 {
        bail!("{name}: found an input of shape {:?}, expected at least one row and one column", xs.dims());
    }
    if kernel.0 == 0 || kernel.1 == 0 || stride.0 == 0 || stride.1 == 0 {
        bail!("{name}: found kernel {kernel:?} and stride {stride:?}, expected sizes of at least 1");
    }
    if padding.0 > kernel.0 / 2 || padding.1 > kernel.1 / 2 {
        bail!("{name}: found padding {padding:?}, expected at most half the kernel {kernel:?}");
    }
    // Cannot wrap: the padding is at most half the kernel.
    let padded = (height.saturating_add(2 * padding.0), width.saturating_add(2 * padding.1));
    if kernel.0 > padded.0 || kernel.1 > padded.1 {
        bail!("{name}: found kernel {kernel:?}, expected at most the padded input {padded:?}");
    }
    match Windows::new(kernel, stride, padding, (height, width)) {
        Some(windows) => Ok(windows),
        None => bail!(
            "{name}: found kernel {kernel:?} and padding {padding:?} for an input of shape {:?}: the sizes overflow",
            xs.dims()
        ),
    }
}

struct Pool {
    name: &'static str,
    reduction: Reduction,
    windows: Windows,
}

impl Operation for Pool {
    fn name(&self) -> &'static str {
        self.name
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, _, _) = args[0].dims4()?;
        let (height, width) = self.windows.output();
        with_real!(self.name, args[0].dtype(), T => host::read::<T, _>(&args[0], |xs| {
            let ys = kernel::forward(self.reduction, &self.windows, xs, batch * channels);
            Ok(host::output(ys, (batch, channels, height, width)))
        }))
    }

    fn backward(&self, args: &[Tensor], ys: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let held = host::hold([&args[0], ys, grad]);
        with_real!(self.name, grad.dtype(), T => {
            let (xs, ys, grad) = (held.get::<T>(0)?, held.get(1)?, held.get(2)?);
            let xs_grad = kernel::backward(self.reduction, &self.windows, xs, ys, grad);
            Ok(vec![Some(Tensor::from_vec(xs_grad, args[0].shape(), args[0].device())?)])
        })
    }
}
