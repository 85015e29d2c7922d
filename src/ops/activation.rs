//! Activation functions.

use super::host::{self, Real, with_real};
use super::simd::vectorised;
use super::{parallel, reference};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

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
        true => xs.contiguous()?.apply_op1(activation),
        false => reference(xs),
    }
}

#[derive(Clone, Copy)]
enum Activation {
    Relu,
    Sigmoid,
    Tanh,
}

impl CustomOp1 for Activation {
    fn name(&self) -> &'static str {
        match self {
            Self::Relu => "relu",
            Self::Sigmoid => "sigmoid",
            Self::Tanh => "tanh",
        }
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        with_real!(self.name(), host::dtype(xs), T => {
            let xs = host::slice::<T>(xs, layout)?;
            let ys = match self {
                Self::Relu => map(xs, xs, |x, _| relu_of(x)),
                Self::Sigmoid => map(xs, xs, |x, _| sigmoid_of(x)),
                Self::Tanh => map(xs, xs, |x, _| Real::tanh(x)),
            };
            Ok(host::output(ys, layout.shape()))
        })
    }

    fn bwd(&self, xs: &Tensor, ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        with_real!(self.name(), xs.dtype(), T => host::read::<T, _>(ys, |ys| host::read::<T, _>(&grad, |grad| {
            let xs_grad = match self {
                Self::Relu => map(ys, grad, |y, g| if y <= T::ZERO { T::ZERO } else { g }),
                Self::Sigmoid => map(ys, grad, |y, g| g * y * (T::ONE - y)),
                Self::Tanh => map(ys, grad, |y, g| g * (T::ONE - y * y)),
            };
            Ok(Some(Tensor::from_vec(xs_grad, xs.shape(), xs.device())?))
        })))
    }
}

/// The larger of 0 and x; what is no number stays none.
#[inline(always)]
pub(super) fn relu_of<T: Real>(x: T) -> T {
    if x <= T::ZERO { T::ZERO } else { x }
}

/// The logistic function.
#[inline(always)]
pub(super) fn sigmoid_of<T: Real>(x: T) -> T {
    T::ONE / (T::ONE + (-x).exp())
}

/// `f` of each pair of elements.
#[inline(always)]
fn map<T: Real>(a: &[T], b: &[T], f: impl Fn(T, T) -> T + Sync) -> Vec<T> {
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
