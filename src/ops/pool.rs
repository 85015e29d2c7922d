//! Pooling over windows of each channel.

mod cuda;

use super::arguments::{Pool2dConfig, check_pool2d};
use super::autograd::{self, Operation};
use super::gpu::Gpu;
use super::host::{self, with_real};
use super::reference;
use super::relu;
use crate::kernels::cpu::pool::{self as kernel, Reduction, Windows};
use candle_core::{Result, Shape, Storage, Tensor};

/// Takes the maximum of each window, like PyTorch's `max_pool2d`.
///
/// `xs` is `(batch, channels, height, width)`; padding counts as minus infinity. The gradient goes to the first of equal
/// maxima in row-major order. A window that contains NaN yields NaN, and its gradient goes to the last NaN.
///
/// # Errors
/// Fails if the padded input is smaller than the kernel, the padding exceeds half the kernel, or a size other than the
/// batch, the channels or the padding is 0.
pub fn max_pool2d(xs: &Tensor, config: Pool2dConfig) -> Result<Tensor> {
    apply("max_pool2d", (Reduction::Max, false), xs, config, reference::max_pool2d)
}

/// Computes `relu(max_pool2d(xs))`, on a GPU in one launch.
///
/// # Errors
/// Fails if [`max_pool2d`] would.
pub(crate) fn max_pool2d_relu(xs: &Tensor, config: Pool2dConfig) -> Result<Tensor> {
    match Gpu::of(xs) {
        Some(_) => apply("max_pool2d", (Reduction::Max, true), xs, config, reference::max_pool2d),
        None => relu(&max_pool2d(xs, config)?),
    }
}

/// Takes the mean of each window, like PyTorch's `avg_pool2d`.
///
/// `xs` is `(batch, channels, height, width)`; padding counts as zeros.
///
/// # Errors
/// Fails if [`max_pool2d`] would.
pub fn avg_pool2d(xs: &Tensor, config: Pool2dConfig) -> Result<Tensor> {
    apply("avg_pool2d", (Reduction::Average, false), xs, config, reference::avg_pool2d)
}

/// Takes the square root of the sum of squares of each window: L2 pooling (Nielsen, chapter 6).
///
/// `xs` is `(batch, channels, height, width)`; padding counts as zeros. The gradient of a window of zeros is defined as
/// 0.
///
/// # Errors
/// Fails if [`max_pool2d`] would.
pub fn l2_pool2d(xs: &Tensor, config: Pool2dConfig) -> Result<Tensor> {
    apply("l2_pool2d", (Reduction::L2, false), xs, config, reference::l2_pool2d)
}

fn apply(
    name: &'static str,
    (reduction, relu): (Reduction, bool),
    xs: &Tensor,
    config: Pool2dConfig,
    reference: impl Fn(&Tensor, Pool2dConfig) -> Result<Tensor>,
) -> Result<Tensor> {
    let windows = check_pool2d(name, xs, config)?;
    match Gpu::supports(xs) {
        true => autograd::apply(Pool { name, reduction, windows, relu }, vec![xs.contiguous()?]),
        false => reference(xs, config),
    }
}

struct Pool {
    name: &'static str,
    reduction: Reduction,
    windows: Windows,
    /// Whether a ReLU follows, which only the CUDA kernels compute.
    relu: bool,
}

impl Operation for Pool {
    fn name(&self) -> &'static str {
        self.name
    }

    fn forward(&self, args: &[Tensor]) -> Result<(Storage, Shape)> {
        if let Some(gpu) = Gpu::of(&args[0]) {
            return with_real!(self.name, args[0].dtype(), T => {
                cuda::forward::<T>(&gpu, (self.reduction, self.relu), &self.windows, &args[0])
            });
        }
        let (batch, channels, _, _) = args[0].dims4()?;
        let (height, width) = self.windows.output();
        with_real!(self.name, args[0].dtype(), T => host::read::<T, _>(&args[0], |xs| {
            let ys = kernel::forward(self.reduction, &self.windows, xs, batch * channels);
            Ok(host::output(ys, (batch, channels, height, width)))
        }))
    }

    fn backward(&self, args: &[Tensor], ys: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        if let Some(gpu) = Gpu::of(&args[0]) {
            return with_real!(self.name, grad.dtype(), T => {
                let dx = cuda::backward::<T>(&gpu, (self.reduction, self.relu), &self.windows, [&args[0], ys, grad])?;
                Ok(vec![Some(dx)])
            });
        }
        let held = host::hold([&args[0], ys, grad]);
        with_real!(self.name, grad.dtype(), T => {
            let (xs, ys, grad) = (held.get::<T>(0)?, held.get(1)?, held.get(2)?);
            let xs_grad = kernel::backward(self.reduction, &self.windows, xs, ys, grad);
            Ok(vec![Some(Tensor::from_vec(xs_grad, args[0].shape(), args[0].device())?)])
        })
    }
}
