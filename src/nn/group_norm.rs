//! Group normalisation.

use super::is_native;
use super::layer_norm::normalise_rows;
use crate::data::count;
use candle_core::{Module, Result, Tensor, bail};
use candle_nn::VarBuilder;

/// Group normalisation (Wu and He 2018): normalises each group of channels of each example.
#[derive(Debug, Clone)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    channels: usize,
    groups: usize,
    epsilon: f64,
}

/// Creates a group normalisation with PyTorch's initial values, ones and zeros.
///
/// Parameters in `vb`: `weight` and `bias`, `(channels)`.
///
/// # Errors
/// Fails if the groups do not divide the channels, or `vb` holds a parameter in another shape.
pub fn group_norm(groups: usize, channels: usize, epsilon: f64, vb: VarBuilder) -> Result<GroupNorm> {
    let weight = vb.get_with_hints(channels, "weight", candle_nn::init::ONE)?;
    let bias = vb.get_with_hints(channels, "bias", candle_nn::init::ZERO)?;
    GroupNorm::new(weight, bias, channels, groups, epsilon)
}

impl GroupNorm {
    /// Creates a layer from `weight` and `bias`, `(channels)`.
    ///
    /// # Errors
    /// Fails if the groups do not divide the channels.
    pub fn new(weight: Tensor, bias: Tensor, channels: usize, groups: usize, epsilon: f64) -> Result<Self> {
        if groups == 0 || !channels.is_multiple_of(groups) {
            bail!(
                "group_norm: found {}, expected a divisor of the {}",
                count(groups, "group"),
                count(channels, "channel")
            );
        }
        Ok(Self { weight, bias, channels, groups, epsilon })
    }
}

impl Module for GroupNorm {
    /// `(batch, channels, ..)` to the same shape.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let Self { weight, bias, channels, groups, epsilon } = self;
        if !is_native(xs) {
            let (weight, bias) = (weight.clone(), bias.clone());
            return candle_nn::GroupNorm::new(weight, bias, *channels, *groups, *epsilon)?.forward(xs);
        }
        let size = match xs.dims() {
            &[_, found, ref rest @ ..] if found == *channels && !rest.is_empty() => {
                channels / groups * rest.iter().product::<usize>()
            }
            dims => bail!("group_norm: found an input of shape {dims:?}, expected (batch, {channels}, ..)"),
        };
        let mut parameters = vec![1; xs.rank()];
        parameters[1] = *channels;
        let [weight, bias] = [weight, bias].map(|parameter| parameter.reshape(&parameters[..]));
        normalise_rows(xs, size, *epsilon)?.broadcast_mul(&weight?)?.broadcast_add(&bias?)
    }
}
