//! CUDA kernels: their sources, and one interface to what runs them.
//!
//! The sources are the `.cu` files of this folder, compiled at run time behind `prelude.cu`. A [`Device`] compiles, caches and
//! launches them. It has two implementations: the driver of a GPU (feature `cuda`), and an emulator that compiles the same
//! files with g++ and runs them on host memory (feature `cuda-emulator`, for tests). The host code that chooses grids,
//! arguments and buffers is the same for both.
//!
//! # How to add the CUDA form of an operation
//!
//! 1. Write `NAME.cu` and add a [`Source`] for it below. Each kernel starts with a line
//!    `extern "C" __global__ void name(` (or `void __launch_bounds__(256) name(`). Its parameters are pointers, `int`,
//!    `unsigned`, `long long`, `unsigned long long` and `real`. Kernel names are not names of the C library. Test the
//!    kernel by hand first, see the head of `emulate.h`.
//! 2. In `ops/NAME.rs`, the public function takes the operation's path if [`Gpu::supports`] the tensor, and otherwise
//!    `ops::reference`. The `Operation` branches in `forward` and `backward`:
//!
//!    ```text
//!    if let Some(gpu) = Gpu::of(&args[0]) {
//!        return with_real!(self.name(), args[0].dtype(), T => self.forward_on::<T>(&gpu, args));
//!    }
//!    ```
//! 3. The CUDA form allocates results with `gpu.alloc`, gets addresses of arguments (contiguous, as `autograd::apply`
//!    requires) with `gpu.pointer`, launches, and returns `gpu.output(buffer, shape)` from `forward` or
//!    `gpu.tensor(buffer, shape)` for a gradient:
//!
//!    ```text
//!    let ys = gpu.alloc::<T>(n)?;
//!    let kernel = cuda::ACTIVATION.kernel::<T>("relu_forward");
//!    // SAFETY: these are the kernel's parameters; it stays within `n` elements.
//!    unsafe { gpu.launch(kernel, Grid::elements(n, 4), &[gpu.pointer::<T>(xs)?.into(), ys.pointer().into(), (n as i64).into()])? };
//!    Ok(gpu.output(ys, xs.shape()))
//!    ```
//!
//!    `ops/activation.rs` and `ops/linear.rs` are the models. Specialise a kernel to its shape with
//!    `kernel::<T>("name").with(&[("HIDDEN", 128)])`, which compiles with `-DHIDDEN=128`. Each set of constants is a module
//!    of its own, compiled once (0.5 s) and cached on disk: constants are layer sizes, never batch sizes or lengths.
//! 4. Rules: results go to buffers from `alloc`; sizes and scalars go by value; a forward or backward pass copies nothing
//!    from or to the host ([`Device::upload`] and [`Device::download`] are for data and for reading losses); sums have a
//!    fixed order. A grid without blocks launches nothing, so that empty tensors need no special case. While a training step
//!    is recorded as a graph ([`recording`]), launches wait for its end; only uploads take place at once.
//!
//! All work of a device is in one stream: a buffer may be dropped as soon as the last launch that reads it is issued.
//!
//! # The emulator in tests
//!
//! In a build with `cuda-emulator`, operations on CPU tensors run their CUDA form on every thread:
//! `cargo test --no-default-features --features cuda-emulator --test ops` tests all operations that have one.
//! `ops::emulator::off` runs the CPU kernels instead, to compare; `ops::emulator::count` counts launches, allocations and copies.
//! A buffer from `alloc` is filled with NaN. `CANDLE_TEXTBOOK_CXXFLAGS` adds compiler options, such as sanitizers.
//!
//! [`Gpu::supports`]: crate::ops::gpu::Gpu::supports

#![cfg_attr(not(any(feature = "cuda", feature = "cuda-emulator")), allow(unused))]

#[cfg(any(feature = "cuda", feature = "cuda-emulator"))]
mod cache;
pub(crate) mod conv2d_tiles;
mod counts;
mod device;
#[cfg(feature = "cuda")]
pub(crate) mod driver;
#[cfg(feature = "cuda-emulator")]
pub(crate) mod emulator;
mod errors;
pub(crate) mod graph;
#[cfg(feature = "nccl")]
pub(crate) mod nccl;
pub(crate) mod recording;

#[cfg(feature = "cuda-emulator")]
pub use counts::Counts;
#[cfg(feature = "cuda-emulator")]
pub(crate) use counts::counts;
pub(crate) use device::{Buffer, Device, Memory};

use super::cpu::Lanes;
use std::marker::PhantomData;

/// A kernel file.
pub(crate) struct Source {
    pub name: &'static str,
    pub text: &'static str,
}

macro_rules! source {
    ($name:literal) => {
        Source { name: $name, text: include_str!($name) }
    };
}

static PRELUDE: Source = source!("prelude.cu");
pub(crate) static ACTIVATION: Source = source!("activation.cu");
pub(crate) static ATTENTION: Source = source!("attention.cu");
pub(crate) static LINEAR: Source = source!("linear.cu");
pub(crate) static LOSS: Source = source!("loss.cu");
pub(crate) static DROPOUT: Source = source!("dropout.cu");
pub(crate) static EMBEDDING: Source = source!("embedding.cu");
pub(crate) static POOL_OVER_TIME: Source = source!("pool_over_time.cu");
pub(crate) static CONV_MAX_OVER_TIME: Source = source!("conv_max_over_time.cu");
pub(crate) static OPTIMIZER: Source = source!("optimizer.cu");
pub(crate) static BATCH_NORM: Source = source!("batch_norm.cu");
pub(crate) static CONV2D: Source = source!("conv2d.cu");
pub(crate) static CONV2D_FILTER: Source = source!("conv2d_filter.cu");
pub(crate) static IMAGE_BATCH: Source = source!("image_batch.cu");
pub(crate) static POOL: Source = source!("pool.cu");
pub(crate) static CONCAT: Source = source!("concat.cu");
pub(crate) static EXCHANGE: Source = source!("exchange.cu");
pub(crate) static SUM_ROWS: Source = source!("sum_rows.cu");
pub(crate) static UNFOLD: Source = source!("unfold.cu");
pub(crate) static RECURRENT: Source = source!("recurrent.cu");
pub(crate) static RECURRENT_SEQUENCE: Source = Source {
    name: "recurrent_sequence.cu",
    text: concat!(include_str!("recurrent.cu"), include_str!("recurrent_sequence.cu")),
};

impl Source {
    /// Names a kernel of this file for the element type `T`.
    pub fn kernel<T: Real>(&'static self, name: &'static str) -> Kernel<'static> {
        Kernel { source: self, real: T::NAME, name, constants: &[] }
    }
}

/// A kernel, and the constants that its file is compiled with.
#[derive(Clone, Copy)]
pub(crate) struct Kernel<'a> {
    pub source: &'static Source,
    /// `float` or `double`.
    pub real: &'static str,
    pub name: &'static str,
    pub constants: &'a [(&'static str, usize)],
}

impl<'a> Kernel<'a> {
    /// The kernel compiled with `-DNAME=VALUE` for each of `constants`.
    pub fn with(self, constants: &'a [(&'static str, usize)]) -> Self {
        Self { constants, ..self }
    }

    /// The compiler options of the module.
    fn options(&self) -> Vec<String> {
        let real = std::iter::once(format!("-DREAL={}", self.real));
        real.chain(self.constants.iter().map(|(name, value)| format!("-D{name}={value}"))).collect()
    }

    /// The key that distinguishes the module from others.
    fn module(&self) -> ModuleKey {
        (self.source.name, self.real, self.constants.to_vec())
    }
}

type ModuleKey = (&'static str, &'static str, Vec<(&'static str, usize)>);

/// The blocks of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    pub blocks: [usize; 3],
    pub threads: [usize; 3],
    /// Bytes of dynamic shared memory.
    pub shared: usize,
}

impl Grid {
    /// Blocks of 256 threads that cover `count` elements, `each` of them per thread.
    pub fn elements(count: usize, each: usize) -> Self {
        Self { blocks: [count.div_ceil(256 * each), 1, 1], threads: [256, 1, 1], shared: 0 }
    }
}

/// A type that buffers can have.
pub(crate) trait Scalar: Copy + Default + Send + Sync + 'static + DeviceScalar {}

#[cfg(feature = "cuda")]
pub(crate) use candle_core::cuda_backend::cudarc::driver::DeviceRepr as DeviceScalar;

#[cfg(not(feature = "cuda"))]
pub(crate) trait DeviceScalar {}

#[cfg(not(feature = "cuda"))]
impl<T> DeviceScalar for T {}

impl<T: Copy + Default + Send + Sync + 'static + DeviceScalar> Scalar for T {}

/// An element type of the kernels: `f32` or `f64`.
pub(crate) trait Real: Lanes + Scalar + Into<Arg> {
    /// Its name in C.
    const NAME: &'static str;

    fn command(product: Product<Self>) -> Command;
}

impl Real for f32 {
    const NAME: &'static str = "float";

    fn command(product: Product<Self>) -> Command {
        Command::ProductF32(product)
    }
}

impl Real for f64 {
    const NAME: &'static str = "double";

    fn command(product: Product<Self>) -> Command {
        Command::ProductF64(product)
    }
}

/// An address in the memory of a device: of an element that a kernel reads or writes.
#[derive(Debug, PartialEq)]
pub(crate) struct Pointer<T>(u64, PhantomData<*const T>);

impl<T> Clone for Pointer<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Pointer<T> {}

impl<T> Pointer<T> {
    pub fn new(address: u64) -> Self {
        Self(address, PhantomData)
    }

    pub fn address(self) -> u64 {
        self.0
    }

    /// The address of the element `elements` further on.
    pub fn offset(self, elements: usize) -> Self {
        Self::new(self.0 + (elements * size_of::<T>()) as u64)
    }

    /// For a parameter that the kernel does not use.
    pub fn null() -> Self {
        Self::new(0)
    }
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Arg {
    Pointer(u64),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    F32(f32),
    F64(f64),
}

macro_rules! args {
    ($($variant:ident($type:ty)),*) => {
        $(impl From<$type> for Arg {
            fn from(value: $type) -> Self {
                Self::$variant(value)
            }
        })*
    };
}

args!(I32(i32), U32(u32), I64(i64), U64(u64), F32(f32), F64(f64));

impl<T> From<Pointer<T>> for Arg {
    fn from(pointer: Pointer<T>) -> Self {
        Self::Pointer(pointer.0)
    }
}

impl Arg {
    /// The bytes of the value, in the low ones.
    fn bits(&self) -> u64 {
        match *self {
            Self::Pointer(value) | Self::U64(value) => value,
            Self::I32(value) => value as u32 as u64,
            Self::U32(value) => value as u64,
            Self::I64(value) => value as u64,
            Self::F32(value) => value.to_bits() as u64,
            Self::F64(value) => value.to_bits(),
        }
    }
}

/// A matrix in memory, row by row.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Matrix<T> {
    pub at: Pointer<T>,
    /// Distance between rows.
    pub stride: usize,
    /// Distance between the matrices of a batch.
    pub batch_stride: usize,
}

impl<T> Matrix<T> {
    /// A single matrix whose rows follow one another, `stride` elements apart.
    pub fn new(at: Pointer<T>, stride: usize) -> Self {
        Self { at, stride, batch_stride: 0 }
    }
}

impl<T> From<(Pointer<T>, usize)> for Matrix<T> {
    fn from((at, stride): (Pointer<T>, usize)) -> Self {
        Self::new(at, stride)
    }
}

/// A batch of products `c = alpha * a * b + beta * c`.
///
/// `a` is `(m, k)`, `b` is `(k, n)` and `c` is `(m, n)`. A transposed operand is stored as its transpose: `(k, m)` or
/// `(n, k)`.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Product<T> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub batch: usize,
    pub a: Matrix<T>,
    pub a_transposed: bool,
    pub b: Matrix<T>,
    pub b_transposed: bool,
    pub c: Matrix<T>,
    pub alpha: T,
    pub beta: T,
}

impl<T: Real> Product<T> {
    /// The single product `c = a * b` of sizes `[m, n, k]`, without transposed operands.
    pub fn new(
        [m, n, k]: [usize; 3],
        a: impl Into<Matrix<T>>,
        b: impl Into<Matrix<T>>,
        c: impl Into<Matrix<T>>,
    ) -> Self {
        let (a, b, c) = (a.into(), b.into(), c.into());
        let (alpha, beta) = (T::ONE, T::ZERO);
        Self { m, n, k, batch: 1, a, a_transposed: false, b, b_transposed: false, c, alpha, beta }
    }
}

/// Work for a device.
#[derive(Clone, PartialEq)]
pub(crate) enum Command {
    Launch { function: Function, name: &'static str, grid: Grid, args: Vec<Arg> },
    ProductF32(Product<f32>),
    ProductF64(Product<f64>),
    Copy { from: u64, to: u64, bytes: usize },
    Clear { at: u64, bytes: usize },
}

/// The address of a compiled kernel, as the driver or the emulator knows it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Function(usize);
