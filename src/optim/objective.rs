//! The loss as a function of one vector, which holds the elements of all parameters.

use super::parameter::Parameter;
use crate::kernels::cpu::optimizer::{add_scaled, sum_squares};
use crate::ops;
use candle_core::{DType, Device, Result, Tensor};

/// Evaluates a function and its gradient at a vector.
pub(super) type Evaluate<'a> = dyn FnMut(Vec<f64>) -> Result<Point> + 'a;

/// A vector, with the value and the gradient of a function there.
#[derive(Debug, Clone)]
pub(super) struct Point {
    pub x: Vec<f64>,
    /// The loss without the L2 penalty.
    pub loss: f64,
    /// The loss with the L2 penalty.
    pub value: f64,
    pub gradient: Vec<f64>,
}

impl Point {
    /// The vector `x + step * direction`.
    pub fn moved(&self, step: f64, direction: &[f64]) -> Vec<f64> {
        let mut x = self.x.clone();
        add_scaled(&mut x, step, direction);
        x
    }
}

/// The loss of a model plus its L2 penalty, as a function of the elements of all parameters.
///
/// The vectors are in main memory, in f64, whatever the device and type of the parameters: a step makes one pass over a
/// few vectors, but several passes over the training set.
pub(super) struct Objective<'a> {
    pub parameters: &'a [Parameter],
    /// The L2 penalty of each parameter: half of this times the sum of its squares.
    pub decays: Vec<f64>,
    pub loss: &'a mut dyn FnMut() -> Result<Tensor>,
    /// Number of evaluations so far.
    pub evaluations: usize,
}

impl Objective<'_> {
    /// The elements of all parameters.
    pub fn x(&self) -> Result<Vec<f64>> {
        let mut x = vec![];
        for parameter in self.parameters {
            x.extend(elements(&parameter.var.as_detached_tensor())?);
        }
        Ok(x)
    }

    /// Sets all parameters to `x`, and rounds `x` to their type.
    pub fn set(&self, x: &mut [f64]) -> Result<()> {
        let mut rest = x;
        for Parameter { var, .. } in self.parameters {
            let (part, others) = std::mem::take(&mut rest).split_at_mut(var.elem_count());
            let values = Tensor::from_slice(part, var.shape(), &Device::Cpu)?.to_dtype(var.dtype())?;
            part.copy_from_slice(&elements(&values)?);
            var.set(&values.to_device(var.device())?)?;
            rest = others;
        }
        Ok(())
    }

    /// Sets all parameters to `x`, and computes the value and the gradient there.
    ///
    /// As in PyTorch, a parameter that the loss does not depend on has the gradient 0.
    pub fn evaluate(&mut self, mut x: Vec<f64>) -> Result<Point> {
        self.set(&mut x)?;
        self.evaluations += 1;
        let loss = (self.loss)()?;
        let (grads, _) = ops::backward(&loss, vec![])?;
        let loss = elements(&loss.detach())?.first().copied().unwrap_or(f64::NAN);
        let mut value = loss;
        let mut gradient = Vec::with_capacity(x.len());
        for (parameter, &decay) in self.parameters.iter().zip(&self.decays) {
            let start = gradient.len();
            let end = start + parameter.var.elem_count();
            match parameter.gradient(grads.get(&parameter.var), None)? {
                Some(part) => gradient.extend(elements(&part.values)?),
                None => gradient.resize(end, 0.),
            }
            if decay != 0. {
                value += decay / 2. * sum_squares(&x[start..end]);
                add_scaled(&mut gradient[start..], decay, &x[start..end]);
            }
        }
        Ok(Point { x, loss, value, gradient })
    }

    /// The relative rounding error of a gradient.
    pub fn roundoff(&self) -> f64 {
        let roundoff = |parameter: &Parameter| match parameter.var.dtype() {
            DType::F64 => f64::EPSILON,
            DType::F32 => f64::from(f32::EPSILON),
            // The precision of bf16.
            _ => 1. / 128.,
        };
        self.parameters.iter().map(roundoff).fold(f64::EPSILON, f64::max)
    }
}

/// The largest absolute value of an element.
pub(super) fn largest(vector: &[f64]) -> f64 {
    vector.iter().fold(0., |largest: f64, x| largest.max(x.abs()))
}

/// The elements of `tensor` in order.
fn elements(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}
