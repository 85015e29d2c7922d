//! Tensors in main memory as slices.

use crate::kernels::cpu::Lanes;
use candle_core::{CpuStorage, Layout, Result, Shape, Storage, Tensor, WithDType, bail};
use std::ops::Deref;

/// An element type that both candle and the CPU kernels support: `f32` or `f64`.
pub(crate) trait Element: Lanes + WithDType {}

impl<T: Lanes + WithDType> Element for T {}

/// Evaluates an expression with the name `$t` bound to the Rust type of a dtype, `f32` or `f64`.
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

/// Returns the elements of a contiguous layout.
pub(crate) fn slice<'a, T: Element>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let elements = T::cpu_storage_as_slice(storage)?;
    match layout.contiguous_offsets() {
        // An empty view may start beyond the end of its storage.
        Some((start, end)) if start == end => Ok(&[]),
        Some((start, end)) => Ok(&elements[start..end]),
        None => bail!("found a tensor with strides {:?}, expected a contiguous one", layout.stride()),
    }
}

/// Calls `read` with the elements of a contiguous tensor in main memory.
pub(crate) fn read<T: Element, R>(tensor: &Tensor, read: impl FnOnce(&[T]) -> Result<R>) -> Result<R> {
    read(hold([tensor]).get(0)?)
}

/// Tensors locked for reading.
pub(crate) struct Held<'a, Guard>(Vec<(Guard, &'a Layout)>);

/// Locks `tensors` for reading.
pub(crate) fn hold<'a>(
    tensors: impl IntoIterator<Item = &'a Tensor>,
) -> Held<'a, impl Deref<Target = Storage>> {
    Held(tensors.into_iter().map(Tensor::storage_and_layout).collect())
}

impl<Guard: Deref<Target = Storage>> Held<'_, Guard> {
    /// Returns the elements of the tensor `index`, which must be contiguous and in main memory.
    pub fn get<T: Element>(&self, index: usize) -> Result<&[T]> {
        let (storage, layout) = &self.0[index];
        match &**storage {
            Storage::Cpu(storage) => slice(storage, layout),
            _ => bail!("found a tensor on another device, expected one in main memory"),
        }
    }
}

/// Turns elements into the return value of a custom operation.
pub(crate) fn output<T: Element>(data: Vec<T>, shape: impl Into<Shape>) -> (Storage, Shape) {
    (Storage::Cpu(T::to_cpu_storage_owned(data)), shape.into())
}
