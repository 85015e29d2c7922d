//! Activation functions.

use super::autograd::{self, Operation};
use super::host::{self, Element, with_real};
use super::reference;
use crate::kernels::cpu::Real;
use crate::kernels::cpu::parallel;
use crate::kernels::cpu::simd::vectorised;
use candle_core::{CpuStorage, Result, Shape, Tensor};

/// `max(xs, 0)`; its gradient at 0 is 0, as in PyTorch.
pub fn relu(xs: &Tensor) -> Result<Tensor> {
    apply(xs, Activation::Relu, reference::relu)
}

/// `1 / (1 + exp(-xs))`.
pub fn sigmoid(xs: &Tensor) -> Result<Tensor> {
    apply(xs, Activation::Sigmoid, reference::sigmoid)
}

/// The hyperbolic tangent.
pub fn tanh(xs: &Tensor) -> Result<Tensor> {
    apply(xs, Activation::Tanh, reference::tanh)
}

fn apply(
    xs: &Tensor,
    activation: Activation,
    reference: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    match xs.device().is_cpu() {
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

impl Operation for Activation {
    fn name(&self) -> &'static str {
        match self {
            Self::Relu => "relu",
            Self::Sigmoid => "sigmoid",
            Self::Tanh => "tanh",
        }
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        with_real!(self.name(), args[0].dtype(), T => host::read::<T, _>(&args[0], |xs| {
            let ys = match self {
                Self::Relu => map(xs, xs, |x, _| Real::relu(x)),
                Self::Sigmoid => map(xs, xs, |x, _| Real::sigmoid(x)),
                Self::Tanh => map(xs, xs, |x, _| Real::tanh(x)),
            };
            Ok(host::output(ys, args[0].shape()))
        }))
    }

    fn backward(&self, _: &[Tensor], ys: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let held = host::hold([ys, grad]);
        with_real!(self.name(), ys.dtype(), T => {
            let (numbers, grad) = (held.get::<T>(0)?, held.get::<T>(1)?);
            let xs_grad = match self {
                Self::Relu => map(numbers, grad, |y, g| if y <= T::ZERO { T::ZERO } else { g }),
                Self::Sigmoid => map(numbers, grad, |y, g| g * y * (T::ONE - y)),
                Self::Tanh => map(numbers, grad, |y, g| g * (T::ONE - y * y)),
            };
            Ok(vec![Some(Tensor::from_vec(xs_grad, ys.shape(), ys.device())?)])
        })
    }
}

/// `f` of each pair of elements.
#[inline(always)]
pub(super) fn map<T: Element>(a: &[T], b: &[T], f: impl Fn(T, T) -> T + Sync) -> Vec<T> {
    const CHUNK: usize = 1 << 14;
    let work = |i: usize, ys: &mut [T]| {
        let (a, b) = (&a[i * CHUNK..][..ys.len()], &b[i * CHUNK..][..ys.len()]);
        vectorised(|| {
            for ((y, &a), &b) in ys.iter_mut().zip(a).zip(b) {
                *y = f(a, b);
            }
        });
    };
    // SAFETY: each element is written.
    unsafe { parallel::build(a.len(), CHUNK, work) }
}
