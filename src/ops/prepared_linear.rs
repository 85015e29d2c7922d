//! A fully connected layer for many products with the same weight.

use super::arguments::check_linear;
use super::gpu::Gpu;
use super::{host, linear};
use crate::kernels::cpu::linear::PackedWeight;
use candle_core::{DType, Device, Result, Tensor};
use std::sync::Arc;

/// A [`linear()`] layer for many products without gradients, as in decoding.
///
/// On the CPU, an `f32` weight is stored in the order in which products read it. Later changes of the weight do not
/// affect the layer.
#[derive(Clone)]
pub struct PreparedLinear {
    weight: Tensor,
    bias: Option<Tensor>,
    packed: Option<Arc<PackedWeight<f32>>>,
}

impl PreparedLinear {
    /// Prepares a layer with `weight` `(out, in)` and `bias` `(out)`.
    ///
    /// # Errors
    /// Fails if the weight is not a matrix.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let (outputs, inputs) = weight.dims2()?;
        let (weight, bias) = (weight.detach().contiguous()?, bias.map(|bias| bias.detach().contiguous()));
        let is_plain = weight.device().is_cpu() && Gpu::of(&weight).is_none();
        let packed = match is_plain && weight.dtype() == DType::F32 && inputs * outputs > 0 {
            true => {
                let pack = |elements: &[f32]| Ok(PackedWeight::new(elements, [inputs, outputs]));
                Some(Arc::new(host::read(&weight, pack)?))
            }
            false => None,
        };
        Ok(Self { weight, bias: bias.transpose()?, packed })
    }

    /// `xs` `(rows, in)` to `(rows, out)`; the result has no gradient.
    ///
    /// # Errors
    /// Fails if the shapes do not match.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let Some(packed) = &self.packed else {
            return linear(&xs.detach(), &self.weight, self.bias.as_ref());
        };
        check_linear(xs, &self.weight, self.bias.as_ref())?;
        let (rows, _) = xs.dims2()?;
        let xs = xs.detach().contiguous()?;
        let held = host::hold([&xs].into_iter().chain(&self.bias));
        let bias = if self.bias.is_some() { held.get::<f32>(1)? } else { &[] };
        let ys = packed.product(held.get(0)?, bias);
        Tensor::from_vec(ys, (rows, self.weight.dim(0)?), &Device::Cpu)
    }
}
