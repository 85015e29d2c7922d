//! Attention of queries to the elements of packed sequences.

mod cuda;

use super::arguments::check_attention;
use super::autograd::{self, Operation};
use super::gpu::Gpu;
use super::host::{self, Element, with_real};
use super::{PackedSequences, concat, reference};
use crate::kernels::cpu::attention::{self as kernel, Arguments, Groups};
use candle_core::{Device, Result, Shape, Storage, Tensor, bail};
use std::borrow::Cow;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

/// The sequence that each query of [`attention`] attends to.
#[derive(Debug, Clone, Copy)]
pub enum QueryRows<'a> {
    /// The sequence of each row.
    Of(&'a [u32]),
    /// The queries are packed: the queries of sequence i attend to sequence i.
    ///
    /// A GPU that already has this layout needs no copy of the indices.
    Packed(&'a Arc<PackedSequences>),
}

impl<'a> QueryRows<'a> {
    /// The sequence of each row.
    pub fn sequences(self) -> Cow<'a, [u32]> {
        match self {
            Self::Of(sequence_of_row) => sequence_of_row.into(),
            Self::Packed(layout) => {
                layout.positions().map(|(sequence, _)| sequence as u32).collect::<Vec<_>>().into()
            }
        }
    }
}

/// Computes for each query the weighted sum of the values of its sequence.
///
/// The weights are the softmax of the scores. `queries` are `(rows, size)`, and `rows` has the sequence that each
/// attends to. `keys` `(elements, size)` and `values` `(elements, features)` are packed as `sequences` describes. The
/// score of a query q and a key k is `v · tanh(q + k)` if there is a vector `v`, `(size)` or `(1, size)` (Bahdanau et
/// al. 2015), and otherwise `q · k` (Luong et al. 2015).
///
/// Returns the sums `(rows, features)` and the weights `(rows, steps)`. The weights are zero beyond the end of a
/// sequence and have no gradient.
///
/// # Errors
/// Fails if the shapes do not agree, or a row's sequence does not exist.
pub fn attention(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    v: Option<&Tensor>,
    sequences: &Arc<PackedSequences>,
    rows: QueryRows,
) -> Result<(Tensor, Tensor)> {
    run([queries, keys, values], v, None, sequences, rows)
}

/// Like [`attention`], and appends the columns of `beside` `(rows, more)` to the sums.
///
/// The result is `(rows, features + more)`.
pub(crate) fn attention_beside(
    arguments: [&Tensor; 3],
    v: Option<&Tensor>,
    beside: &Tensor,
    sequences: &Arc<PackedSequences>,
    rows: QueryRows,
) -> Result<(Tensor, Tensor)> {
    if Gpu::of(beside).is_some() {
        return run(arguments, v, Some(beside), sequences, rows);
    }
    let (sums, weights) = run(arguments, v, None, sequences, rows)?;
    Ok((concat(&[sums, beside.clone()], 1, 0)?, weights))
}

fn run(
    arguments @ [queries, keys, values]: [&Tensor; 3],
    v: Option<&Tensor>,
    beside: Option<&Tensor>,
    sequences: &Arc<PackedSequences>,
    rows: QueryRows,
) -> Result<(Tensor, Tensor)> {
    let sequence_of_row = rows.sequences();
    if !Gpu::supports(queries) {
        return reference::attention(queries, keys, values, v, sequences, &sequence_of_row);
    }
    check_attention(queries, [keys, values], v, sequences, &sequence_of_row)?;
    let weights = Arc::<OnceLock<Tensor>>::default();
    let op = Attention {
        sequences: sequences.clone(),
        queries: match Gpu::of(queries) {
            Some(gpu) => Queries::Device(cuda::Queries::new(&gpu, rows, sequences.batch())?),
            None => Queries::Host(Groups::new(sequences.layout(), &sequence_of_row)),
        },
        has_v: v.is_some(),
        has_beside: beside.is_some(),
        weights: weights.clone(),
    };
    let args = arguments.into_iter().chain(v).chain(beside).map(Tensor::contiguous);
    let sums = autograd::apply(op, args.collect::<Result<_>>()?)?;
    match weights.get() {
        Some(weights) => Ok((sums, weights.clone())),
        None => bail!("attention: there are no weights"),
    }
}

/// The operation.
///
/// The arguments are queries, keys, values, for additive scores the vector, and on a GPU the columns to append.
struct Attention {
    sequences: Arc<PackedSequences>,
    queries: Queries,
    has_v: bool,
    has_beside: bool,
    /// The weights, once the forward pass has computed them.
    weights: Arc<OnceLock<Tensor>>,
}

/// Which queries attend to each sequence, in the form that the kernels read.
enum Queries {
    Host(Groups),
    Device(cuda::Queries),
}

impl Attention {
    fn groups(&self) -> Result<&Groups> {
        match &self.queries {
            Queries::Host(groups) => Ok(groups),
            Queries::Device(_) => bail!("attention: found queries on a GPU, expected queries on the CPU"),
        }
    }

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
        if let Some(gpu) = Gpu::of(&args[0]) {
            return with_real!(self.name(), args[0].dtype(), T => self.forward_on::<T>(&gpu, args));
        }
        let held = host::hold(args);
        with_real!(self.name(), args[0].dtype(), T => {
            let arguments = Self::arguments::<T>(args, &held)?;
            let rows = args[0].dim(0)?;
            let (sums, weights) = kernel::forward(self.groups()?, arguments);
            let weights = Tensor::from_vec(weights, (rows, self.sequences.steps()), &Device::Cpu)?;
            self.weights.get_or_init(|| weights);
            Ok(host::output(sums, (rows, arguments.features)))
        })
    }

    fn backward(&self, args: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let Some(weights) = self.weights.get() else { bail!("attention: there are no weights") };
        if let Some(gpu) = Gpu::of(grad) {
            return with_real!(self.name(), grad.dtype(), T => self.backward_on::<T>(&gpu, args, weights, grad));
        }
        let held = host::hold(args.iter().chain([grad, weights]));
        with_real!(self.name(), grad.dtype(), T => {
            let arguments = Self::arguments::<T>(args, &held)?;
            let (grad, weights) = (held.get::<T>(args.len())?, held.get(args.len() + 1)?);
            let kernel::Gradients { queries, keys, values, v } =
                kernel::backward(self.groups()?, arguments, weights, grad);
            let grads = [queries, keys, values, v].into_iter().zip(args);
            let tensor = |(grad, arg): (Vec<T>, &Tensor)| {
                arg.track_op().then(|| Tensor::from_vec(grad, arg.shape(), &Device::Cpu)).transpose()
            };
            grads.map(tensor).collect()
        })
    }
}
