//! Updates on a GPU: one launch for all parameters.

use super::parameter::Parameter;
use super::step::{Clip, Gradient, Update};
use crate::kernels::cpu::optimizer::Rule;
use crate::kernels::cuda::{self, Buffer, Grid, Pointer};
use crate::ops::RowNumbers;
use crate::ops::gpu::{Gpu, Stored};
use crate::ops::host::with_real;
use candle_core::{Result, Tensor};

/// Threads per block.
const THREADS: usize = 256;
/// Elements that a block updates.
const ELEMENTS: usize = 1024;
/// Rows of a sparse gradient that a block updates, a warp each.
const ROWS: usize = THREADS / 32;

/// Words of 8 bytes of `Step` and `Parameter` in `optimizer.cu`.
const STEP: usize = 15;
const PARAMETER: usize = 12;

/// The data of a step for the record of a training run, in the memory of the GPU.
pub(super) struct Recorded<'a> {
    pub record: Pointer<f64>,
    pub loss: &'a Tensor,
    /// Number of the step, from 1.
    pub number: u64,
    /// Weight of the loss.
    pub examples: usize,
}

/// Returns the GPU to run the kernels on, if all `parameters` are of one type that the kernels support.
pub(super) fn of<'a>(parameters: impl Iterator<Item = &'a Parameter>) -> Option<Gpu> {
    let mut parameters = parameters.map(|parameter| parameter.var.as_tensor());
    let first = parameters.next()?;
    let gpu = Gpu::of(first)?;
    let fits =
        |tensor: &Tensor| tensor.dtype() == first.dtype() && tensor.device().same_device(first.device());
    parameters.all(fits).then_some(gpu)
}

/// Applies `updates`, which are not empty, and returns where the norm of all gradients is stored.
pub(super) fn update(
    gpu: &Gpu,
    clip: Clip,
    updates: &[(&Parameter, Gradient, Update)],
    recorded: Option<Recorded>,
) -> Result<Buffer<f64>> {
    with_real!("optimizer", updates[0].0.var.dtype(), T => typed::<T>(gpu, clip, updates, recorded))
}

fn typed<T: Stored + cuda::Real>(
    gpu: &Gpu,
    clip: Clip,
    updates: &[(&Parameter, Gradient, Update)],
    recorded: Option<Recorded>,
) -> Result<Buffer<f64>> {
    let (mut parameters, mut blocks) = (Vec::with_capacity(PARAMETER * updates.len()), vec![]);
    for ((parameter, gradient, update), index) in updates.iter().zip(0u64..) {
        let (words, parts) = describe::<T>(gpu, parameter, gradient, update)?;
        parameters.extend(words);
        blocks.extend((0..parts as u64).map(|part| part << 32 | index));
    }
    let (partials, norm) = (gpu.alloc::<f64>(blocks.len())?, gpu.alloc::<f64>(2)?);
    let mut loss = None;
    let [record, examples, number] = match &recorded {
        None => [0; 3],
        Some(Recorded { record, loss: value, number, examples }) => {
            let value = loss.insert(value.to_dtype(updates[0].0.var.dtype())?);
            debug_assert_eq!(value.elem_count(), 1);
            [record.address(), (*examples as f64).to_bits(), (*number as f64).to_bits()]
        }
    };
    let loss = loss.as_ref().map_or(Ok(Pointer::null()), |loss| gpu.pointer::<T>(loss))?;
    let (max_norm, limit) = clip.limits()?;
    let mut table = vec![record, loss.address(), partials.pointer().address(), norm.pointer().address()];
    table.extend([number, examples, max_norm.to_bits(), limit.to_bits()]);
    let (rule, factors) = rule(&updates[0].2.rule);
    table.extend(factors.map(f64::to_bits));
    debug_assert_eq!((table.len(), parameters.len()), (STEP, PARAMETER * updates.len()));
    let grid = Grid { blocks: [blocks.len(), 1, 1], threads: [THREADS, 1, 1], shared: 0 };
    table.append(&mut parameters);
    table.append(&mut blocks);
    let table = gpu.upload(&table)?;
    let at = table.pointer();
    let parameters = at.offset(STEP);
    let args = [at.into(), parameters.into(), parameters.offset(PARAMETER * updates.len()).into()];
    let moments = updates[0].0.moments.as_ref().map_or(Ok(0), |moments| moments.dim(0))?;
    let constants = [("RULE", rule), ("MOMENTS", moments)];
    let kernel = |name| cuda::OPTIMIZER.kernel::<T>(name).with(&constants);
    let names: &[_] = if max_norm.is_finite() { &["gradient_norm", "update_clipped"] } else { &["update"] };
    for name in names {
        // SAFETY: the table has the layout that the kernels expect, and holds the addresses of tensors of these sizes.
        unsafe { gpu.launch(kernel(name), grid, &args)? };
    }
    for (parameter, _, _) in updates {
        let Some(max) = parameter.max_row_norm else { continue };
        let (rows, columns) = parameter.var.dims2()?;
        let args = [
            gpu.pointer::<T>(&parameter.var)?.into(),
            (rows as i32).into(),
            (columns as i32).into(),
            T::of(max).into(),
        ];
        let grid = Grid { blocks: [rows.div_ceil(ROWS), 1, 1], threads: [THREADS, 1, 1], shared: 0 };
        // SAFETY: these are the kernel's parameters; the matrix has this size.
        unsafe { gpu.launch(kernel("limit_row_norms"), grid, &args)? };
    }
    Ok(norm)
}

/// The words of a parameter in the table of a step, and the number of blocks that update it.
fn describe<T: Stored + cuda::Real>(
    gpu: &Gpu,
    parameter: &Parameter,
    gradient: &Gradient,
    update: &Update,
) -> Result<([u64; PARAMETER], usize)> {
    let Parameter { var, moments, .. } = parameter;
    let len = var.elem_count();
    let moments = moments.as_ref().map_or(Ok(Pointer::null()), |moments| gpu.pointer::<T>(moments))?;
    let rows = match &gradient.rows {
        Some(RowNumbers::Device(rows)) => gpu.pointer::<u32>(rows)?,
        _ => Pointer::null(),
    };
    let (columns, given) = match update.sparse {
        true => (var.dim(1)?, gradient.values.dim(0)?),
        false => (0, 0),
    };
    let parts = match update.sparse {
        true if columns == 0 => 0,
        true => given.div_ceil(ROWS),
        false => len.div_ceil(ELEMENTS),
    };
    let (step_size, root_scale, shrink) = match update.rule {
        Rule::Adam { step_size, root_scale, shrink, .. } => (step_size, root_scale, shrink),
        _ => (0., 0., 0.),
    };
    let addresses = [
        gpu.pointer::<T>(var)?.address(),
        gpu.pointer::<T>(&gradient.values)?.address(),
        moments.address(),
        rows.address(),
    ];
    let sizes = [len, columns, given].map(|size| size as u64);
    let factors = [update.terms.l2, update.terms.l1, step_size, root_scale, shrink].map(f64::to_bits);
    let mut words = [0; PARAMETER];
    words.iter_mut().zip(addresses.into_iter().chain(sizes).chain(factors)).for_each(|(to, word)| *to = word);
    Ok((words, parts))
}

/// The number of a rule in `optimizer.cu`, and its factors.
///
/// The factors are: rate, momentum, kept1, added1, kept2, added2, epsilon.
fn rule(rule: &Rule) -> (usize, [f64; 7]) {
    match *rule {
        Rule::Sgd { rate } => (0, [rate, 0., 0., 0., 0., 0., 0.]),
        Rule::Momentum { rate, momentum, nesterov } => {
            (if nesterov { 2 } else { 1 }, [rate, momentum, 0., 0., 0., 0., 0.])
        }
        Rule::Adam { betas: (beta1, beta2), epsilon, .. } => {
            (3, [0., 0., beta1, 1. - beta1, beta2, 1. - beta2, epsilon])
        }
        Rule::RmsProp { rate, alpha, epsilon } => (4, [rate, 0., 0., 0., alpha, 1. - alpha, epsilon]),
        Rule::RmsPropMomentum { rate, alpha, epsilon, momentum } => {
            (5, [rate, momentum, 0., 0., alpha, 1. - alpha, epsilon])
        }
        Rule::Adagrad { rate, epsilon } => (6, [rate, 0., 0., 0., 0., 0., epsilon]),
        Rule::Adadelta { rate, rho, epsilon } => (7, [rate, 0., 0., 0., rho, 1. - rho, epsilon]),
    }
}
