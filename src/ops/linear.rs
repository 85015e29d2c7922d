//! The fully connected layer.

use super::autograd::{self, Operation, gradients};
use super::host::{self, Element, with_real};
use super::reference;
use crate::kernels::cpu::matmul::{Init, Panels, gemm, gemm_transposed};
use crate::kernels::cpu::parallel;
use crate::kernels::cpu::simd::{DotProducts, OuterProducts, vectorised};
use candle_core::{CpuStorage, Result, Shape, Tensor, bail};

/// `xs * weight^T + bias`: `xs` (.., in), `weight` (out, in) and `bias` (out) give (.., out).
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (outputs, inputs) = match weight.dims() {
        &[outputs, inputs] if outputs * inputs > 0 => (outputs, inputs),
        dims => bail!("linear: found a weight of shape {dims:?}, expected (out, in)"),
    };
    if xs.dims().last() != Some(&inputs) {
        bail!(
            "linear: found an input of shape {:?}, expected (.., {inputs}) for a weight of shape {:?}",
            xs.dims(),
            weight.dims()
        );
    }
    check_bias("linear", bias, outputs)?;
    if !xs.device().is_cpu() {
        return reference::linear(xs, weight, bias);
    }
    let args = [Some(xs), Some(weight), bias].into_iter().flatten().map(Tensor::contiguous);
    autograd::apply(Linear, args.collect::<Result<_>>()?)
}

pub(super) fn check_bias(op: &str, bias: Option<&Tensor>, outputs: usize) -> Result<()> {
    match bias.map(Tensor::dims) {
        Some(dims) if dims != [outputs] => {
            bail!("{op}: found a bias of shape {dims:?}, expected ({outputs}), one for each output")
        }
        _ => Ok(()),
    }
}

struct Linear;

impl Linear {
    fn dims(args: &[Tensor]) -> Result<Dims> {
        let (outputs, inputs) = args[1].dims2()?;
        Ok((args[0].elem_count() / inputs, inputs, outputs))
    }
}

impl Operation for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let (held, dims) = (host::hold(args), Self::dims(args)?);
        let (leading, _) = args[0].dims().split_at(args[0].rank() - 1);
        let shape = [leading, &[dims.2]].concat();
        with_real!(self.name(), args[0].dtype(), T => {
            let bias = if args.len() > 2 { held.get::<T>(2)? } else { &[] };
            Ok(host::output(forward(held.get(0)?, held.get(1)?, bias, dims), shape))
        })
    }

    fn backward(&self, args: &[Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (held, dims) = (host::hold(args.iter().chain([grad])), Self::dims(args)?);
        with_real!(self.name(), grad.dtype(), T => {
            let (xs, weight, grad) = (held.get::<T>(0)?, held.get::<T>(1)?, held.get::<T>(args.len())?);
            gradients(args, |index| match index {
                0 => input_grad(grad, weight, dims),
                1 => weight_grad(grad, xs, dims),
                _ => column_sums(grad, dims.2, dims.2),
            })
        })
    }
}

/// (rows, inputs, outputs)
type Dims = (usize, usize, usize);

/// From so many rows on it pays to lay a matrix out anew before it is multiplied.
const MANY: usize = 128;

/// How many rows of a product that costs `flops_a_row` make a chunk worth handing to a thread.
fn rows_a_chunk(flops_a_row: usize) -> usize {
    (1usize << 20).div_ceil(flops_a_row.max(1)).next_multiple_of(8)
}

fn forward<T: Element>(xs: &[T], weight: &[T], bias: &[T], (rows, inputs, outputs): Dims) -> Vec<T> {
    if rows >= MANY {
        let panels = Panels::transposed((inputs, outputs), |output| &weight[output * inputs..]);
        let start = if bias.is_empty() { Init::Zero } else { Init::Bias(bias) };
        // SAFETY: the product writes all of it.
        let mut ys = unsafe { parallel::unwritten(rows * outputs) };
        gemm((xs, inputs), &panels, &mut ys, outputs, start);
        return ys;
    }
    let chunk = rows_a_chunk(2 * inputs * outputs);
    let weight_rows = (0..outputs).map(|output| output * inputs).collect::<Vec<_>>();
    let work = |i: usize, ys: &mut [T]| {
        DotProducts {
            rows: ys.len() / outputs,
            segments: 1,
            len: inputs,
            a: &xs[i * chunk * inputs..],
            a_stride: inputs,
            a_segment_stride: 0,
            b: weight,
            b_offsets: &weight_rows,
            b_segment_stride: 0,
            c: ys.into(),
            c_stride: outputs,
            bias: bias,
        }
        .run();
    };
    // SAFETY: `DotProducts` writes each result.
    unsafe { parallel::build(rows * outputs, chunk * outputs, work) }
}

fn input_grad<T: Element>(grad: &[T], weight: &[T], (rows, inputs, outputs): Dims) -> Vec<T> {
    if rows >= MANY {
        let panels = Panels::new((outputs, inputs), |output| &weight[output * inputs..]);
        // SAFETY: the product writes all of it.
        let mut xs_grad = unsafe { parallel::unwritten(rows * inputs) };
        gemm((grad, outputs), &panels, &mut xs_grad, inputs, Init::Zero);
        return xs_grad;
    }
    let chunk = rows_a_chunk(2 * inputs * outputs);
    let steps = (0..outputs).map(|output| (output, output * inputs)).collect::<Vec<_>>();
    let work = |i: usize, xs_grad: &mut [T]| {
        OuterProducts {
            rows: xs_grad.len() / inputs,
            terms: &steps,
            runs: &[(0, 0, inputs)],
            a: &grad[i * chunk * outputs..],
            a_stride: outputs,
            b: weight,
            b_padded: false,
            c: xs_grad.into(),
            c_stride: inputs,
            bias: &[],
            accumulate: false,
        }
        .run();
    };
    // SAFETY: `OuterProducts` writes each result.
    unsafe { parallel::build(rows * inputs, chunk * inputs, work) }
}

fn weight_grad<T: Element>(grad: &[T], xs: &[T], (rows, inputs, outputs): Dims) -> Vec<T> {
    if rows >= MANY {
        let right = |row: usize| &xs[row * inputs..];
        let [product] = gemm_transposed((grad, outputs), [(&right, inputs)], (rows, outputs));
        return product;
    }
    let chunk = rows_a_chunk(2 * inputs * rows);
    let steps = (0..rows).map(|row| (row * outputs, row * inputs)).collect::<Vec<_>>();
    let work = |i: usize, weight_grad: &mut [T]| {
        OuterProducts {
            rows: weight_grad.len() / inputs,
            terms: &steps,
            runs: &[(0, 0, inputs)],
            a: grad.get(i * chunk..).unwrap_or(&[]),
            a_stride: 1,
            b: xs,
            b_padded: false,
            c: weight_grad.into(),
            c_stride: inputs,
            bias: &[],
            accumulate: false,
        }
        .run();
    };
    // SAFETY: `OuterProducts` writes each result.
    unsafe { parallel::build(outputs * inputs, chunk * inputs, work) }
}

/// The sums over rows, which start every `row` numbers, of the first `columns` numbers of each.
pub(super) fn column_sums<T: Element>(rows: &[T], row: usize, columns: usize) -> Vec<T> {
    const PIECE: usize = 128;
    let mut sums = vec![T::ZERO; columns];
    parallel::for_each_piece(&mut sums, PIECE, |i, sums| {
        let at = i * PIECE..i * PIECE + sums.len();
        vectorised(
            #[inline(always)]
            || {
                for row in rows.chunks_exact(row) {
                    sums.iter_mut().zip(&row[at.clone()]).for_each(|(sum, &x)| *sum += x);
                }
            },
        );
    });
    sums
}
