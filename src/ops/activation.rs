//! Activation functions.

use super::autograd::{self, Operation};
use super::gpu::{self, Gpu, Stored};
use super::host::{self, with_real};
use super::reference;
use crate::kernels::cpu::Real;
use crate::kernels::cpu::elementwise::{map, zip_map};
use crate::kernels::cuda::{self, Grid};
use candle_core::{Result, Shape, Storage, Tensor};

/// Computes `max(x, 0)` of each element; the gradient at 0 is 0, as in PyTorch.
///
/// # Errors
/// Fails if the type, on the CPU, is neither `f32` nor `f64`.
pub fn relu(xs: &Tensor) -> Result<Tensor> {
    apply(xs, Activation::Relu, reference::relu)
}

/// Computes the logistic function `1 / (1 + exp(-x))` of each element.
///
/// # Errors
/// Fails if the type, on the CPU, is neither `f32` nor `f64`.
pub fn sigmoid(xs: &Tensor) -> Result<Tensor> {
    apply(xs, Activation::Sigmoid, reference::sigmoid)
}

/// Computes the hyperbolic tangent of each element.
///
/// # Errors
/// Fails if the type, on the CPU, is neither `f32` nor `f64`.
pub fn tanh(xs: &Tensor) -> Result<Tensor> {
    apply(xs, Activation::Tanh, reference::tanh)
}

fn apply(
    xs: &Tensor,
    activation: Activation,
    reference: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    match Gpu::supports(xs) {
        true => autograd::apply(activation, vec![xs.contiguous()?]),
        false => reference(xs),
    }
}

#[derive(Clone, Copy)]
enum Activation {
    Relu,
    Sigmoid,
    Tanh,
}

impl Activation {
    fn forward_on<T: Stored + cuda::Real>(self, gpu: &Gpu, xs: &Tensor) -> Result<(Storage, Shape)> {
        let kernel = cuda::ACTIVATION.kernel::<T>(match self {
            Self::Relu => "relu_forward",
            Self::Sigmoid => "sigmoid_forward",
            Self::Tanh => "tanh_forward",
        });
        let n = xs.elem_count();
        let ys = gpu.alloc::<T>(n)?;
        let args = [gpu.pointer::<T>(xs)?.into(), ys.pointer().into(), (n as i64).into()];
        // SAFETY: these are the kernel's parameters; both arrays have `n` elements.
        unsafe { gpu.launch(kernel, Grid::elements(n, 4), &args)? };
        Ok(gpu.output(ys, xs.shape()))
    }

    fn backward_on<T: Stored + cuda::Real>(self, gpu: &Gpu, ys: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let kernel = match self {
            Self::Relu => "relu_backward",
            Self::Sigmoid => "sigmoid_backward",
            Self::Tanh => "tanh_backward",
        };
        gpu::zip_map::<T>(gpu, cuda::ACTIVATION.kernel::<T>(kernel), ys, grad)
    }
}

impl Operation for Activation {
    fn name(&self) -> &'static str {
        match self {
            Self::Relu => "relu",
            Self::Sigmoid => "sigmoid",
            Self::Tanh => "tanh",
        }
    }

    fn forward(&self, args: &[Tensor]) -> Result<(Storage, Shape)> {
        if let Some(gpu) = Gpu::of(&args[0]) {
            return with_real!(self.name(), args[0].dtype(), T => self.forward_on::<T>(&gpu, &args[0]));
        }
        with_real!(self.name(), args[0].dtype(), T => host::read::<T, _>(&args[0], |xs| {
            let ys = match self {
                Self::Relu => map(xs, Real::relu),
                Self::Sigmoid => map(xs, Real::sigmoid),
                Self::Tanh => map(xs, Real::tanh),
            };
            Ok(host::output(ys, args[0].shape()))
        }))
    }

    /// Computes the gradient from the result, which determines the derivative of each of these functions.
    fn backward(&self, _: &[Tensor], ys: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        if let Some(gpu) = Gpu::of(ys) {
            let xs_grad = with_real!(self.name(), ys.dtype(), T => self.backward_on::<T>(&gpu, ys, grad)?);
            return Ok(vec![Some(xs_grad)]);
        }
        let held = host::hold([ys, grad]);
        with_real!(self.name(), ys.dtype(), T => {
            let (values, grad) = (held.get::<T>(0)?, held.get::<T>(1)?);
            let xs_grad = match self {
                Self::Relu => zip_map(values, grad, |y, g| if y <= T::ZERO { T::ZERO } else { g }),
                Self::Sigmoid => zip_map(values, grad, |y, g| g * y * (T::ONE - y)),
                Self::Tanh => zip_map(values, grad, |y, g| g * (T::ONE - y * y)),
            };
            Ok(vec![Some(Tensor::from_vec(xs_grad, ys.shape(), ys.device())?)])
        })
    }
}
