//! Convolution over the words of sentences and the maximum of each filter over time, fused.

mod cuda;

use super::arguments::{ConvFilters, check_conv_max_over_time};
use super::autograd::{self, Operation};
use super::gpu::Gpu;
use super::host::{self, Element, with_real};
use super::{PackedSequences, reference};
use crate::kernels::cpu::conv_max_over_time::{self as kernel, FilterSize, Layout, Maxima};
use candle_core::{CpuStorage, Result, Shape, Storage, Tensor, bail};
use std::sync::{Arc, OnceLock};

/// Convolves sentences with `filters` and takes each filter's maximum over time: `(batch, filters)`.
///
/// `xs` `(rows, features)` holds the words of `sentences` in packed order; `padding` rows of zeros precede and follow each
/// sentence. The columns of the result are the filters in order (Collobert et al. 2011; Kim 2014, equations 2 to 4). Kim's
/// nonlinearity is left to the caller: a monotonic one commutes with the maximum. The first of equal maxima gets the
/// gradient.
///
/// # Errors
/// Fails if shapes do not match, there are no filters, or a sentence with its padding is shorter than a filter.
pub fn conv_max_over_time(
    xs: &Tensor,
    sentences: &Arc<PackedSequences>,
    filters: &[ConvFilters],
    padding: usize,
) -> Result<Tensor> {
    let (layout, sizes) = check_conv_max_over_time(xs, sentences, filters, padding)?;
    if !supports(xs, &sizes) {
        return Ok(reference::conv_max_over_time(xs, sentences, filters, padding)?.0);
    }
    let op = ConvMaxOverTime::new(sentences, layout, sizes, padding);
    autograd::apply(op, arguments(xs, filters)?)
}

/// Finds the word at which the window of each maximum of [`conv_max_over_time`] begins.
///
/// The result is `(batch, filters)`.
///
/// A window that begins in the padding before the first word has a negative index.
///
/// # Errors
/// Fails if [`conv_max_over_time`] would.
pub fn conv_max_positions(
    xs: &Tensor,
    sentences: &Arc<PackedSequences>,
    filters: &[ConvFilters],
    padding: usize,
) -> Result<Vec<Vec<i64>>> {
    let (layout, sizes) = check_conv_max_over_time(xs, sentences, filters, padding)?;
    if !supports(xs, &sizes) {
        return Ok(reference::conv_max_over_time(xs, sentences, filters, padding)?.1);
    }
    let op = ConvMaxOverTime::new(sentences, layout, sizes, padding);
    op.forward(&arguments(xs, filters)?)?;
    if let Some(saved) = op.on_gpu.get() {
        return saved.positions();
    }
    let rows = &op.saved()?.rows;
    let sentences = rows.chunks_exact(op.total()).zip(op.layout.starts());
    let positions =
        |(rows, &start): (&[u32], &usize)| rows.iter().map(|&row| i64::from(row) - start as i64).collect();
    Ok(sentences.map(positions).collect())
}

/// Whether there are kernels for these arguments.
fn supports(xs: &Tensor, sizes: &[FilterSize]) -> bool {
    xs.device().is_cpu() || Gpu::of(xs).is_some() && cuda::supports(sizes)
}

/// The operation's arguments: the words, then the weight and the bias of each width.
fn arguments(xs: &Tensor, filters: &[ConvFilters]) -> Result<Vec<Tensor>> {
    let filters = filters.iter().flat_map(|ConvFilters { weight, bias }| [weight, bias]);
    std::iter::once(xs).chain(filters).map(Tensor::contiguous).collect()
}

struct ConvMaxOverTime {
    sentences: Arc<PackedSequences>,
    layout: Layout,
    sizes: Vec<FilterSize>,
    padding: usize,
    /// The data of the forward pass on the CPU that the backward pass needs.
    saved: OnceLock<Saved>,
    /// The data of the forward pass on a GPU that the backward pass needs.
    on_gpu: OnceLock<cuda::Saved>,
}

struct Saved {
    /// The words in the order of the layout.
    words: CpuStorage,
    /// The row at which the window of each maximum begins.
    rows: Vec<u32>,
}

impl ConvMaxOverTime {
    fn new(sentences: &Arc<PackedSequences>, layout: Layout, sizes: Vec<FilterSize>, padding: usize) -> Self {
        let (saved, on_gpu) = (OnceLock::new(), OnceLock::new());
        Self { sentences: sentences.clone(), layout, sizes, padding, saved, on_gpu }
    }

    /// The GPU to run the operation on, if its kernels support it.
    fn gpu(&self, xs: &Tensor) -> Option<Gpu> {
        Gpu::of(xs).filter(|_| cuda::supports(&self.sizes))
    }

    /// The number of filters of all widths.
    fn total(&self) -> usize {
        self.sizes.iter().map(|size| size.count).sum()
    }

    /// The row of the layout at which each row of the input lies.
    fn places(&self) -> Vec<usize> {
        let starts = self.layout.starts();
        self.sentences.positions().map(|(sentence, word)| starts[sentence] + word).collect()
    }

    fn saved(&self) -> Result<&Saved> {
        match self.saved.get() {
            Some(saved) => Ok(saved),
            None => bail!("conv_max_over_time: the backward pass ran before the forward pass"),
        }
    }

    fn forward_as<T: Element>(&self, args: &[Tensor]) -> Result<(Storage, Shape)> {
        let held = host::hold(args);
        let filters = (0..self.sizes.len())
            .map(|i| Ok((self.sizes[i], held.get::<T>(1 + 2 * i)?, held.get::<T>(2 + 2 * i)?)))
            .collect::<Result<Vec<_>>>()?;
        let Maxima { ys, rows, words } =
            kernel::forward(&self.layout, held.get(0)?, &self.places(), &filters);
        let words = T::to_cpu_storage_owned(words);
        self.saved.get_or_init(|| Saved { words, rows });
        Ok(host::output(ys, (self.sentences.batch(), self.total())))
    }

    fn backward_as<T: Element>(&self, args: &[Tensor], grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let Saved { words, rows } = self.saved()?;
        let words = T::cpu_storage_as_slice(words)?;
        let held = host::hold(args.iter().chain([grad]));
        let grad = held.get::<T>(args.len())?;
        let tensor =
            |data: Vec<T>, like: &Tensor| Tensor::from_vec(data, like.shape(), like.device()).map(Some);
        let mut grads = vec![None; args.len()];
        if args[0].track_op() {
            let weights = (0..self.sizes.len())
                .map(|i| Ok((self.sizes[i], held.get::<T>(1 + 2 * i)?)))
                .collect::<Result<Vec<_>>>()?;
            let xs_grad = kernel::input_grad(&self.layout, &self.places(), &weights, rows, grad);
            grads[0] = tensor(xs_grad, &args[0])?;
        }
        let mut columns = (0, self.total());
        for (i, &size) in self.sizes.iter().enumerate() {
            let (weight, bias) = (&args[1 + 2 * i], &args[2 + 2 * i]);
            if weight.track_op() {
                let weight_grad = kernel::weight_grad(&self.layout, size, words, columns, rows, grad);
                grads[1 + 2 * i] = tensor(weight_grad, weight)?;
            }
            if bias.track_op() {
                grads[2 + 2 * i] = tensor(kernel::bias_grad(size, columns, grad), bias)?;
            }
            columns.0 += size.count;
        }
        Ok(grads)
    }
}

impl Operation for ConvMaxOverTime {
    fn name(&self) -> &'static str {
        "conv_max_over_time"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(Storage, Shape)> {
        if let Some(gpu) = self.gpu(&args[0]) {
            return with_real!(self.name(), args[0].dtype(), T => self.forward_on::<T>(&gpu, args));
        }
        with_real!(self.name(), args[0].dtype(), T => self.forward_as::<T>(args))
    }

    fn backward(&self, args: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        if let Some(gpu) = self.gpu(&args[0]) {
            return with_real!(self.name(), grad.dtype(), T => self.backward_on::<T>(&gpu, args, grad));
        }
        with_real!(self.name(), grad.dtype(), T => self.backward_as::<T>(args, grad))
    }
}
