//! Two-dimensional convolution.

mod cuda;

use super::arguments::{Conv2dConfig, check_conv2d};
use super::autograd::{self, Operation, gradients};
use super::gpu::Gpu;
use super::host::{self, with_real};
use super::reference;
use crate::kernels::cpu::conv2d::Conv2d;
use candle_core::{Result, Shape, Storage, Tensor};

/// Two-dimensional cross-correlation, like PyTorch's `conv2d`. [`nn::conv2d`](crate::nn::conv2d) is the layer.
///
/// `xs` `(batch, in, height, width)` with `weight` `(out, in / groups, kernel height, kernel width)` and `bias` `(out)`
/// gives `(batch, out, output height, output width)`, where an output size is
/// `(size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1`, rounded down. The pairs in `config` are (height, width).
/// All three tensors have gradients. On the CPU and on CUDA they are f32 or f64.
///
/// # Errors
/// Fails if a tensor has the wrong rank, type or device; if the weight is empty or an image has no pixels; if the channels do
/// not match `weight`, `bias` and the groups; if a stride, a dilation or the number of groups is 0; if the dilated kernel is
/// larger than the padded input; or if sizes are too large for memory.
///
/// # Example
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_textbook::ops::{self, Conv2dConfig};
///
/// fn main() -> candle_core::Result<()> {
///     let images = Tensor::ones((2, 3, 9, 12), DType::F32, &Device::Cpu)?;
///     let weight = Tensor::ones((8, 3, 5, 3), DType::F32, &Device::Cpu)?; // 8 kernels, 5 pixels high and 3 wide
///     let config = Conv2dConfig { padding: (2, 1), stride: (1, 2), ..Default::default() };
///     let maps = ops::conv2d(&images, &weight, None, config)?;
///     assert_eq!(maps.dims(), [2, 8, 9, 6]);
///     Ok(())
/// }
/// ```
pub fn conv2d(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, config: Conv2dConfig) -> Result<Tensor> {
    let conv = check_conv2d(xs, weight, bias, config)?;
    if !Gpu::supports(xs) {
        return reference::conv2d(xs, weight, bias, config);
    }
    let args = [Some(xs), Some(weight), bias].into_iter().flatten().map(Tensor::contiguous);
    autograd::apply(conv, args.collect::<Result<_>>()?)
}

impl Operation for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(Storage, Shape)> {
        if let Some(gpu) = Gpu::of(&args[0]) {
            return with_real!(self.name(), args[0].dtype(), T => cuda::forward::<T>(self, &gpu, args));
        }
        let shape = (self.batch, self.groups * self.outputs, self.output.0, self.output.1);
        let held = host::hold(args);
        with_real!(self.name(), args[0].dtype(), T => {
            let bias = if args.len() > 2 { held.get::<T>(2)? } else { &[] };
            Ok(host::output(Conv2d::forward(self, held.get(0)?, held.get(1)?, bias), shape))
        })
    }

    fn backward(&self, args: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        if let Some(gpu) = Gpu::of(&args[0]) {
            return with_real!(self.name(), args[0].dtype(), T => cuda::backward::<T>(self, &gpu, args, grad));
        }
        let held = host::hold(args.iter().chain([grad]));
        with_real!(self.name(), grad.dtype(), T => {
            let (xs, weight, grad) = (held.get::<T>(0)?, held.get::<T>(1)?, held.get::<T>(args.len())?);
            gradients(args, |index| match index {
                0 => self.input_grad(grad, weight),
                1 => self.weight_grad(grad, xs),
                _ => self.bias_grad(grad),
            })
        })
    }
}
