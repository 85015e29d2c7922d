//! Tensors in main memory as slices of numbers.

use crate::kernels::cpu::Lanes;
use candle_core::{CpuStorage, Layout, Result, Shape, Storage, Tensor, WithDType, bail};
use std::ops::Deref;

/// An element type that both candle and the CPU kernels know: f32 or f64.
pub(crate) trait Element: Lanes + WithDType {}

impl<T: Lanes + WithDType> Element for T {}

/// Evaluates an expression with a type name bound to the Rust type of a dtype.
macro_rules! with_real {
    ($op:expr, $dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $t = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $t = f64;
                $body
            }
            other => candle_core::bail!("{}: found {other:?}, expected f32 or f64", $op),
        }
    };
}
pub(crate) use with_real;

/// The numbers of a contiguous layout.
pub(crate) fn slice<'a, T: Element>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&T::cpu_storage_as_slice(storage)?[start..end]),
        None => bail!("a kernel was given a tensor that is not contiguous: {layout:?}"),
    }
}

/// Gives `read` the numbers of a contiguous tensor in main memory.
pub(crate) fn read<T: Element, R>(tensor: &Tensor, read: impl FnOnce(&[T]) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => read(slice(storage, layout)?),
        _ => bail!("a CPU kernel was given a tensor on {:?}", tensor.device()),
    }
}

/// Tensors in main memory, held for reading.
pub(crate) struct Held<'a, Guard>(Vec<(Guard, &'a Layout)>);

pub(crate) fn hold<'a>(
    tensors: impl IntoIterator<Item = &'a Tensor>,
) -> Held<'a, impl Deref<Target = Storage>> {
    Held(tensors.into_iter().map(Tensor::storage_and_layout).collect())
}

impl<Guard: Deref<Target = Storage>> Held<'_, Guard> {
    /// The numbers of the tensor `index`, which must be contiguous.
    pub fn get<T: Element>(&self, index: usize) -> Result<&[T]> {
        let (storage, layout) = &self.0[index];
        match &**storage {
            Storage::Cpu(storage) => slice(storage, layout),
            _ => bail!("a CPU kernel was given a tensor that is not in main memory"),
        }
    }
}

/// Numbers as what a custom op returns.
pub(crate) fn output<T: Element>(data: Vec<T>, shape: impl Into<Shape>) -> (CpuStorage, Shape) {
    (T::to_cpu_storage_owned(data), shape.into())
}
