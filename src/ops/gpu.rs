//! Tensors as arguments and results of CUDA kernels.

#![cfg_attr(not(any(feature = "cuda", feature = "cuda-emulator")), allow(unused))]

use crate::kernels::cuda::{Buffer, Device, Grid, Kernel, Memory, Pointer, Scalar, recording};
use candle_core::{DType, Layout, Result, Shape, Storage, Tensor, WithDType, bail, op::BackpropOp};
use std::ops::Deref;

/// The GPU, or emulator, that runs operations on a tensor with CUDA kernels.
pub(crate) struct Gpu {
    device: Device,
    #[cfg_attr(not(feature = "cuda"), allow(unused))]
    tensors: candle_core::Device,
}

impl Deref for Gpu {
    type Target = Device;

    fn deref(&self) -> &Device {
        &self.device
    }
}

/// An element type that tensors and kernels share.
#[cfg(feature = "cuda")]
pub(crate) trait Stored: Scalar + WithDType + candle_core::cuda_backend::CudaDType {}

#[cfg(feature = "cuda")]
impl<T: Scalar + WithDType + candle_core::cuda_backend::CudaDType> Stored for T {}

/// An element type that tensors and kernels share.
#[cfg(not(feature = "cuda"))]
pub(crate) trait Stored: Scalar + WithDType {}

#[cfg(not(feature = "cuda"))]
impl<T: Scalar + WithDType> Stored for T {}

impl Gpu {
    /// Returns the GPU that runs operations on `tensor`, which must have elements of type `f32` or `f64`.
    ///
    /// This is the GPU that holds the tensor, if its kernels work, or the emulator. `None` means the CPU kernel for a
    /// tensor in main memory, and `ops::reference` for others.
    #[inline]
    pub fn of(tensor: &Tensor) -> Option<Self> {
        if !matches!(tensor.dtype(), DType::F32 | DType::F64) {
            return None;
        }
        Self::on(tensor.device())
    }

    /// Returns the GPU that runs kernels on tensors of `device`.
    #[inline]
    pub fn on(tensors: &candle_core::Device) -> Option<Self> {
        if !cfg!(any(feature = "cuda", feature = "cuda-emulator")) {
            return None;
        }
        let device: Device = match tensors {
            #[cfg(feature = "cuda-emulator")]
            candle_core::Device::Cpu if super::emulator::is_on() => Device::Emulator,
            #[cfg(feature = "cuda")]
            candle_core::Device::Cuda(device) => {
                Device::Driver(crate::kernels::cuda::driver::Driver::of(device)?)
            }
            _ => return None,
        };
        #[allow(unreachable_code, unused_variables)]
        Some(Self { device, tensors: tensors.clone() })
    }

    /// Returns whether an operation with a CUDA form has kernels for `tensor`.
    ///
    /// It has if the tensor is in main memory, or on a GPU with working kernels.
    pub fn supports(tensor: &Tensor) -> bool {
        tensor.device().is_cpu() || Self::of(tensor).is_some()
    }

    /// Returns the address of the first element of a contiguous tensor.
    ///
    /// The tensor must outlive the launches that use the address; a recording holds it until they run.
    pub fn pointer<T: Stored>(&self, tensor: &Tensor) -> Result<Pointer<T>> {
        hold(tensor);
        let (storage, layout) = tensor.storage_and_layout();
        let start = start(layout)?;
        match &*storage {
            Storage::Cpu(storage) if self.tensors.is_cpu() => {
                Ok(Pointer::new(T::cpu_storage_as_slice(storage)?.as_ptr() as u64).offset(start))
            }
            #[cfg(feature = "cuda")]
            Storage::Cuda(storage) if self.tensors.same_device(tensor.device()) => {
                let slice = T::as_cuda_slice(storage)?;
                Ok(Pointer::new(crate::kernels::cuda::driver::address(slice)).offset(start))
            }
            _ => bail!(
                "found a tensor on {:?}, expected {:?}",
                tensor.device().location(),
                self.tensors.location()
            ),
        }
    }

    /// Turns a buffer into the return value of `Operation::forward`.
    pub fn output<T: Stored>(&self, buffer: Buffer<T>, shape: impl Into<Shape>) -> (Storage, Shape) {
        let storage = match buffer.into_memory() {
            Memory::Host(data) => Storage::Cpu(T::to_cpu_storage_owned(data)),
            #[cfg(feature = "cuda")]
            Memory::Gpu(slice) => {
                let device = self.tensors.as_cuda_device().expect("a GPU").clone();
                Storage::Cuda(T::wrap_cuda_slice(slice, device))
            }
        };
        (storage, shape.into())
    }

    /// Turns a buffer into a tensor.
    pub fn tensor<T: Stored>(&self, buffer: Buffer<T>, shape: impl Into<Shape>) -> Tensor {
        let (storage, shape) = self.output(buffer, shape);
        let tensor = Tensor::from_storage(storage, shape, BackpropOp::none(), false);
        hold(&tensor);
        tensor
    }
}

/// Whether this thread records its commands, so that results have no values yet.
pub(super) fn is_recording() -> bool {
    cfg!(any(feature = "cuda", feature = "cuda-emulator")) && recording::is_on()
}

/// Keeps the memory of `tensor` until the commands being recorded have run.
pub(super) fn hold(tensor: &Tensor) {
    if is_recording() {
        recording::hold(tensor.detach());
    }
}

/// Runs a kernel that takes two tensors of the same shape element by element.
pub(super) fn zip_map<T: Stored>(gpu: &Gpu, kernel: Kernel, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let n = a.elem_count();
    assert_eq!(n, b.elem_count());
    let ys = gpu.alloc::<T>(n)?;
    let args =
        [gpu.pointer::<T>(a)?.into(), gpu.pointer::<T>(b)?.into(), ys.pointer().into(), (n as i64).into()];
    // SAFETY: these are the kernel's parameters; all arrays have `n` elements.
    unsafe { gpu.launch(kernel, Grid::elements(n, 4), &args)? };
    Ok(gpu.tensor(ys, a.shape()))
}

/// The offset of the first element of a contiguous layout.
fn start(layout: &Layout) -> Result<usize> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(if start == end { 0 } else { start }),
        None => bail!("found a tensor with strides {:?}, expected a contiguous one", layout.stride()),
    }
}
