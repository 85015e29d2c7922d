//! The history of L-BFGS, and the direction that it gives (Nocedal and Wright 2006, section 7.2).

use crate::kernels::cpu::optimizer::{add_scaled, dot};
use candle_core::{DType, Device, Result, Tensor};
use std::collections::{HashMap, VecDeque};

/// PyTorch's names of the steps, of the changes of the gradient, and of the number of steps.
pub(super) const STEPS: &str = "old_stps";
pub(super) const CHANGES: &str = "old_dirs";
pub(super) const COUNT: &str = "n_iter";

/// The smallest product of a step and its gradient change that enters the memory.
///
/// A positive bound keeps the approximated Hessian positive definite.
const MIN_PRODUCT: f64 = 1e-10;

/// The last steps, which approximate the inverse of the Hessian.
#[derive(Debug, Default)]
pub(super) struct Memory(VecDeque<Pair>);

#[derive(Debug)]
struct Pair {
    step: Vec<f64>,
    /// The change of the gradient in that step.
    change: Vec<f64>,
    /// The scalar product of step and change.
    product: f64,
}

impl Memory {
    /// Remembers a step and the change of the gradient in it, and forgets all but the last `size` steps.
    pub fn push(&mut self, step: Vec<f64>, change: Vec<f64>, size: usize) {
        let product = dot(&step, &change);
        if product > MIN_PRODUCT {
            let surplus = (self.0.len() + 1).saturating_sub(size);
            self.0.drain(..surplus);
            self.0.push_back(Pair { step, change, product });
        }
    }

    /// Returns minus the product of the approximated inverse Hessian and `gradient` (algorithm 7.4).
    ///
    /// It takes two loops over the memory. The initial inverse Hessian is a multiple of the identity that fits the last
    /// pair (equation 7.20).
    pub fn direction(&self, gradient: &[f64]) -> Vec<f64> {
        let mut direction: Vec<f64> = gradient.iter().map(|g| -g).collect();
        let mut weights = vec![];
        for Pair { step, change, product } in self.0.iter().rev() {
            let weight = dot(step, &direction) / product;
            add_scaled(&mut direction, -weight, change);
            weights.push(weight);
        }
        if let Some(Pair { change, product, .. }) = self.0.back() {
            let scale = product / dot(change, change);
            direction.iter_mut().for_each(|d| *d *= scale);
        }
        for (Pair { step, change, product }, weight) in self.0.iter().zip(weights.into_iter().rev()) {
            let correction = dot(change, &direction) / product;
            add_scaled(&mut direction, weight - correction, step);
        }
        direction
    }

    /// The memory as tensors `(pairs, elements)`, for `elements` elements.
    pub fn state(&self, elements: usize) -> Result<HashMap<String, Tensor>> {
        let stack = |of: fn(&Pair) -> &[f64]| {
            let values: Vec<f64> = self.0.iter().flat_map(of).copied().collect();
            Tensor::from_vec(values, (self.0.len(), elements), &Device::Cpu)
        };
        let steps = stack(|pair| &pair.step)?;
        let changes = stack(|pair| &pair.change)?;
        Ok(HashMap::from([(STEPS.to_string(), steps), (CHANGES.to_string(), changes)]))
    }

    /// Restores the memory from the tensors of a [`state`](Self::state), in f64.
    pub fn from_state(steps: &Tensor, changes: &Tensor) -> Result<Self> {
        debug_assert_eq!((steps.dtype(), changes.dtype()), (DType::F64, DType::F64));
        let pairs = steps.to_vec2::<f64>()?.into_iter().zip(changes.to_vec2::<f64>()?);
        let pair = |(step, change): (Vec<f64>, Vec<f64>)| {
            let product = dot(&step, &change);
            Pair { step, change, product }
        };
        Ok(Self(pairs.map(pair).collect()))
    }
}
