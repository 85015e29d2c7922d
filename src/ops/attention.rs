//! Attention of queries to the elements of packed sequences.

use super::arguments::check_attention;
use super::autograd::{self, Operation};
use super::host::{self, Element, with_real};
use super::{PackedSequences, reference};
use crate::kernels::cpu::attention::{self as kernel, Arguments, Groups};
use candle_core::{Device, Result, Shape, Storage, Tensor, bail};
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

/// Computes for each query the weighted sum of the values of its sequence; the weights are the softmax of the scores.
///
/// `queries` are `(rows, size)`; row i attends to the sequence `sequence_of_row[i]`. `keys` `(elements, size)` and `values`
/// `(elements, features)` are packed as `sequences` describe. The score of a query q and a key k is `v · tanh(q + k)` if
/// there is a vector `v` `(size)` (Bahdanau et al. 2015), and else `q · k` (Luong et al. 2015).
///
/// Returns the sums `(rows, features)` and the weights `(rows, steps)`, which are zero beyond the end of a sequence and have
/// no gradient.
///
/// # Errors
/// Fails if the shapes do not agree, or a row's sequence does not exist.
pub fn attention(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    v: Option<&Tensor>,
    sequences: &Arc<PackedSequences>,
    sequence_of_row: &[u32],
) -> Result<(Tensor, Tensor)> {
    if !queries.device().is_cpu() {
        return reference::attention(queries, keys, values, v, sequences, sequence_of_row);
    }
    check_attention(queries, [keys, values], v, sequences, sequence_of_row)?;
    let weights = Arc::<OnceLock<Tensor>>::default();
    let op = Attention {
        groups: Groups::new(sequences.layout(), sequence_of_row),
        steps: sequences.steps(),
        weights: weights.clone(),
    };
    let args = [Some(queries), Some(keys), Some(values), v].into_iter().flatten().map(Tensor::contiguous);
    let sums = autograd::apply(op, args.collect::<Result<_>>()?)?;
    match weights.get() {
        Some(weights) => Ok((sums, weights.clone())),
        None => bail!("attention: there are no weights"),
    }
}

/// The arguments are queries, keys, values and, for additive scores, the vector.
struct Attention {
    groups: Groups,
    /// Elements of the longest sequence.
    steps: usize,
    /// The weights, once the forward pass has computed them.
    weights: Arc<OnceLock<Tensor>>,
}

impl Attention {
    /// The arguments of the kernels, from the tensors that are held.
    fn arguments<'a, T: Element>(
        args: &[Tensor],
        held: &'a host::Held<'_, impl Deref<Target = Storage>>,
    ) -> Result<Arguments<'a, T>> {
        Ok(Arguments {
            queries: held.get(0)?,
            keys: held.get(1)?,
            values: held.get(2)?,
            v: if args.len() > 3 { Some(held.get(3)?) } else { None },
            size: args[0].dim(1)?,
            features: args[2].dim(1)?,
        })
    }
}

impl Operation for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(Storage, Shape)> {
        let held = host::hold(args);
        with_real!(self.name(), args[0].dtype(), T => {
            let arguments = Self::arguments::<T>(args, &held)?;
            let rows = args[0].dim(0)?;
            let (sums, weights) = kernel::forward(&self.groups, arguments);
            let weights = Tensor::from_vec(weights, (rows, self.steps), &Device::Cpu)?;
            self.weights.get_or_init(|| weights);
            Ok(host::output(sums, (rows, arguments.features)))
        })
    }

    fn backward(&self, args: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let Some(weights) = self.weights.get() else { bail!("attention: there are no weights") };
        let held = host::hold(args.iter().chain([grad, weights]));
        with_real!(self.name(), grad.dtype(), T => {
            let arguments = Self::arguments::<T>(args, &held)?;
            let (grad, weights) = (held.get::<T>(args.len())?, held.get(args.len() + 1)?);
            let kernel::Gradients { queries, keys, values, v } =
                kernel::backward(&self.groups, arguments, weights, grad);
            let grads = [queries, keys, values, v].into_iter().zip(args);
            let tensor = |(grad, arg): (Vec<T>, &Tensor)| {
                arg.track_op().then(|| Tensor::from_vec(grad, arg.shape(), &Device::Cpu)).transpose()
            };
            grads.map(tensor).collect()
        })
    }
}
