//! Pooling on a GPU.

use crate::kernels::cpu::pool::{Reduction, Windows};
use crate::kernels::cuda::{self, Arg, Grid, Real};
use crate::ops::gpu::{Gpu, Stored};
use candle_core::{Result, Shape, Storage, Tensor};

/// Smallest window, in elements, whose output a whole warp computes.
const WIDE: usize = 32;

/// The outputs of `xs` `(batch, channels, height, width)`.
pub(super) fn forward<T: Real + Stored>(
    gpu: &Gpu,
    (reduction, relu): (Reduction, bool),
    windows: &Windows,
    xs: &Tensor,
) -> Result<(Storage, Shape)> {
    let (batch, channels, _, _) = xs.dims4()?;
    let shape = Shape::from((batch, channels, windows.output.0, windows.output.1));
    let count = shape.elem_count();
    let lanes = if windows.kernel.0.saturating_mul(windows.kernel.1) < WIDE { 1 } else { 32 };
    let ys = gpu.alloc::<T>(count)?;
    let mut args = vec![gpu.pointer::<T>(xs)?.into(), ys.pointer().into(), (count as i64).into()];
    args.extend::<[Arg; 3]>([number(reduction).into(), i32::from(relu).into(), (lanes as i32).into()]);
    args.extend(sizes(windows));
    // SAFETY: these are the kernel's parameters.
    unsafe { gpu.launch(cuda::POOL.kernel::<T>("pool"), Grid::elements(count * lanes, 1), &args)? };
    Ok(gpu.output(ys, shape))
}

/// The gradient of `xs`, for the outputs `ys` and their gradient `grad`.
pub(super) fn backward<T: Real + Stored>(
    gpu: &Gpu,
    (reduction, relu): (Reduction, bool),
    windows: &Windows,
    [xs, ys, grad]: [&Tensor; 3],
) -> Result<Tensor> {
    let count = xs.elem_count();
    let dx = gpu.alloc::<T>(count)?;
    let tensors = [gpu.pointer::<T>(xs)?, gpu.pointer::<T>(ys)?, gpu.pointer::<T>(grad)?, dx.pointer()];
    let mut args: Vec<Arg> = tensors.map(Arg::from).into();
    args.extend::<[Arg; 3]>([(count as i64).into(), number(reduction).into(), i32::from(relu).into()]);
    args.extend(sizes(windows));
    // SAFETY: these are the kernel's parameters.
    unsafe { gpu.launch(cuda::POOL.kernel::<T>("pool_back"), Grid::elements(count, 1), &args)? };
    Ok(gpu.tensor(dx, xs.shape()))
}

/// The number of a reduction in the kernels.
fn number(reduction: Reduction) -> i32 {
    match reduction {
        Reduction::Max => 0,
        Reduction::Average => 1,
        Reduction::L2 => 2,
    }
}

/// The kernel, the stride, the padding, the input and the output as arguments.
fn sizes(windows: &Windows) -> impl Iterator<Item = Arg> {
    let Windows { kernel, stride, padding, input, output } = *windows;
    [kernel, stride, padding, input, output]
        .into_iter()
        .flat_map(|(y, x)| [y, x])
        .map(|size| (size as i32).into())
}
