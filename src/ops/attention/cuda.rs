//! The operation on a GPU.

use super::{Attention, QueryRows};
use crate::kernels::cuda::{self, Arg, Buffer, Grid, Pointer};
use crate::ops::PackedSequences;
use crate::ops::gpu::{Gpu, Stored};
use crate::ops::linear::column_sums_on;
use candle_core::{Result, Shape, Storage, Tensor, bail};
use std::sync::Arc;

const THREADS: usize = 256;

/// Which queries attend to each sequence, in the memory of a GPU.
pub(super) enum Queries {
    /// The queries of the same sequence in this layout.
    Packed(Arc<PackedSequences>),
    Listed(List),
}

/// The queries, ordered by their sequences like packed sequences; see [`Queries::places`].
pub(super) struct List {
    numbers: Tensor,
    /// Number of queries.
    rows: usize,
    /// The largest number of queries of a sequence.
    most: usize,
}

/// The arguments of the kernels that locate queries.
///
/// Query i of a sequence is row `order[starts[i] + places[sequence]]`, for i < `lengths[sequence]`.
struct Places {
    /// Sequence of each row.
    sequences: Pointer<u32>,
    starts: Pointer<u32>,
    places: Pointer<u32>,
    lengths: Pointer<u32>,
    /// Null for the identity.
    order: Pointer<u32>,
}

impl Queries {
    /// Copies to `gpu` which of the `batch` sequences each row attends to.
    pub(super) fn new(gpu: &Gpu, rows: QueryRows, batch: usize) -> Result<Self> {
        let sequence_of_row = match rows {
            QueryRows::Packed(layout) => return Ok(Self::Packed(layout.clone())),
            QueryRows::Of(sequence_of_row) => sequence_of_row,
        };
        let mut lengths = vec![0u32; batch];
        sequence_of_row.iter().for_each(|&sequence| lengths[sequence as usize] += 1);
        let most = lengths.iter().copied().max().unwrap_or_default();
        let places = lengths.iter().scan(0, |next, length| {
            let place = *next;
            *next += length;
            Some(place)
        });
        let mut order: Vec<u32> = (0..sequence_of_row.len() as u32).collect();
        order.sort_by_key(|&row| sequence_of_row[row as usize]);
        let numbers = sequence_of_row.iter().copied().chain(0..most).chain(places);
        let numbers: Vec<u32> = numbers.chain(lengths.iter().copied()).chain(order).collect();
        let numbers = gpu.tensor(gpu.upload(&numbers)?, numbers.len());
        Ok(Self::Listed(List { numbers, rows: sequence_of_row.len(), most: most as usize }))
    }

    fn places(&self, gpu: &Gpu, batch: usize) -> Result<Places> {
        Ok(match self {
            Self::Packed(layout) => {
                let layout = layout.on_device(gpu)?;
                let (sequences, starts) = (layout.sequences, layout.starts);
                Places {
                    sequences,
                    starts,
                    places: layout.places,
                    lengths: layout.lengths,
                    order: Pointer::null(),
                }
            }
            Self::Listed(List { numbers, rows, most }) => {
                let sequences = gpu.pointer::<u32>(numbers)?;
                let starts = sequences.offset(*rows);
                let places = starts.offset(*most);
                let lengths = places.offset(batch);
                Places { sequences, starts, places, lengths, order: lengths.offset(batch) }
            }
        })
    }
}

/// The sizes of the arguments.
#[derive(Clone, Copy)]
struct Sizes {
    rows: usize,
    /// Columns of queries and keys.
    size: usize,
    /// Columns of the values.
    features: usize,
    /// Columns appended to the sums.
    more: usize,
    steps: usize,
}

impl Sizes {
    /// The last arguments of the kernels.
    fn args(self) -> [Arg; 4] {
        [self.size, self.features, self.more, self.steps].map(|size| Arg::from(size as i32))
    }

    /// A block for each query.
    fn grid(self) -> Grid {
        Grid { blocks: [self.rows, 1, 1], threads: [THREADS, 1, 1], shared: 0 }
    }
}

impl Attention {
    fn sizes(&self, args: &[Tensor]) -> Result<Sizes> {
        let ((rows, size), features) = (args[0].dims2()?, args[2].dim(1)?);
        let more = if self.has_beside { args[args.len() - 1].dim(1)? } else { 0 };
        Ok(Sizes { rows, size, features, more, steps: self.sequences.steps() })
    }

    /// The addresses of `v` and of the columns to append, null if absent.
    fn optional<T: Stored>(&self, gpu: &Gpu, args: &[Tensor]) -> Result<[Pointer<T>; 2]> {
        let pointer = |exists: bool, index: usize| match exists {
            true => gpu.pointer::<T>(&args[index]),
            false => Ok(Pointer::null()),
        };
        Ok([pointer(self.has_v, 3)?, pointer(self.has_beside, args.len() - 1)?])
    }

    fn queries(&self) -> Result<&Queries> {
        match &self.queries {
            super::Queries::Device(queries) => Ok(queries),
            super::Queries::Host(_) => {
                bail!("attention: found queries on the CPU, expected queries on a GPU")
            }
        }
    }

    pub(super) fn forward_on<T: Stored + cuda::Real>(
        &self,
        gpu: &Gpu,
        args: &[Tensor],
    ) -> Result<(Storage, Shape)> {
        let sizes @ Sizes { rows, features, more, steps, .. } = self.sizes(args)?;
        let elements = self.sequences.on_device(gpu)?;
        let queries = self.queries()?.places(gpu, self.sequences.batch())?;
        let (sums, weights) = (gpu.alloc::<T>(rows * (features + more))?, gpu.alloc::<T>(rows * steps)?);
        let mut kernel_args: Vec<Arg> = vec![];
        for arg in &args[..3] {
            kernel_args.push(gpu.pointer::<T>(arg)?.into());
        }
        kernel_args.extend(self.optional::<T>(gpu, args)?.map(Arg::from));
        kernel_args
            .extend([queries.sequences, elements.starts, elements.places, elements.lengths].map(Arg::from));
        kernel_args.extend([sums.pointer(), weights.pointer()].map(Arg::from));
        kernel_args.extend(sizes.args());
        let kernel = cuda::ATTENTION.kernel::<T>("attention_forward");
        // SAFETY: these are the kernel's parameters; `check_attention` has compared the shapes with the sequences.
        unsafe { gpu.launch(kernel, sizes.grid(), &kernel_args)? };
        self.weights.get_or_init(|| gpu.tensor(weights, (rows, steps)));
        Ok(gpu.output(sums, (rows, features + more)))
    }

    pub(super) fn backward_on<T: Stored + cuda::Real>(
        &self,
        gpu: &Gpu,
        args: &[Tensor],
        weights: &Tensor,
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let sizes @ Sizes { rows, size, features, steps, .. } = self.sizes(args)?;
        let batch = self.sequences.batch();
        let elements = self.sequences.on_device(gpu)?;
        let elements = [elements.starts, elements.places, elements.lengths].map(Arg::from);
        let queries = self.queries()?.places(gpu, batch)?;
        let [query, key, value] = [0, 1, 2].map(|index| gpu.pointer::<T>(&args[index]));
        let (query, key, value) = (query?, key?, value?);
        let [v, _] = self.optional::<T>(gpu, args)?;
        let (weights, grad) = (gpu.pointer::<T>(weights)?, gpu.pointer::<T>(grad)?);
        let wanted = |index: usize| -> Result<Option<Buffer<T>>> {
            args[index].track_op().then(|| gpu.alloc::<T>(args[index].elem_count())).transpose()
        };
        let address = |buffer: &Option<Buffer<T>>| buffer.as_ref().map_or(Pointer::null(), Buffer::pointer);
        let [query_grads, key_grads, value_grads] = [wanted(0)?, wanted(1)?, wanted(2)?];
        let beside_grads = if self.has_beside { wanted(args.len() - 1)? } else { None };
        let v_sums = (self.has_v && args[3].track_op()).then(|| gpu.alloc::<T>(batch * size)).transpose()?;
        let score_grads = gpu.alloc::<T>(rows * steps)?;

        let mut kernel_args: Vec<Arg> = [query, key, value, v, weights, grad].map(Arg::from).into();
        kernel_args.push(queries.sequences.into());
        kernel_args.extend(elements);
        kernel_args
            .extend([score_grads.pointer(), address(&query_grads), address(&beside_grads)].map(Arg::from));
        kernel_args.extend(sizes.args());
        let kernel = cuda::ATTENTION.kernel::<T>("attention_queries_gradient");
        // SAFETY: these are the kernel's parameters; the gradients are as large as the arguments.
        unsafe { gpu.launch(kernel, sizes.grid(), &kernel_args)? };

        if key_grads.is_some() || value_grads.is_some() || v_sums.is_some() {
            let mut kernel_args: Vec<Arg> =
                [query, key, v, weights, score_grads.pointer(), grad].map(Arg::from).into();
            kernel_args.extend(elements);
            kernel_args
                .extend([queries.starts, queries.places, queries.lengths, queries.order].map(Arg::from));
            kernel_args.extend([&key_grads, &value_grads, &v_sums].map(|grads| Arg::from(address(grads))));
            kernel_args.extend(sizes.args());
            let tiles = size.div_ceil(32) + features.div_ceil(32);
            let grid = Grid { blocks: [batch, tiles, 1], threads: [32, THREADS / 32, 1], shared: 0 };
            let kernel = cuda::ATTENTION.kernel::<T>("attention_elements_gradient");
            // SAFETY: these are the kernel's parameters; there is a row of `v_sums` for each sequence.
            unsafe { gpu.launch(kernel, grid, &kernel_args)? };
        }
        let v_grads = v_sums.map(|sums| column_sums_on::<T>(gpu, sums.pointer(), batch, size)).transpose()?;
        let mut grads = vec![query_grads, key_grads, value_grads];
        grads.extend(self.has_v.then_some(v_grads));
        grads.extend(self.has_beside.then_some(beside_grads));
        let tensor =
            |(grad, arg): (Option<Buffer<T>>, &Tensor)| grad.map(|grad| gpu.tensor(grad, arg.shape()));
        Ok(grads.into_iter().zip(args).map(tensor).collect())
    }
}
