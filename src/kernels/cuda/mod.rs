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
mod command;
pub(crate) mod conv2d_tiles;
mod counts;
#[cfg(feature = "cuda")]
pub(crate) mod driver;
#[cfg(feature = "cuda-emulator")]
pub(crate) mod emulator;
pub(crate) mod errors;
pub(crate) mod recording;

#[cfg(feature = "cuda-emulator")]
pub use counts::Counts;
#[cfg(feature = "cuda-emulator")]
pub(crate) use counts::counts;

use super::cpu::Lanes;
use candle_core::Result;
use command::{Command, Function};
use counts::count;
use recording::Executable;
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

    /// What distinguishes the module from others.
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

/// Memory of a device, which returns to the device's pool when dropped; while commands are recorded, after they have run.
pub(crate) struct Buffer<T: Scalar>(Option<Memory<T>>);

pub(crate) enum Memory<T> {
    #[cfg_attr(not(feature = "cuda-emulator"), allow(dead_code))]
    Host(Vec<T>),
    #[cfg(feature = "cuda")]
    Gpu(candle_core::cuda_backend::cudarc::driver::CudaSlice<T>),
}

impl<T: Scalar> Buffer<T> {
    pub fn pointer(&self) -> Pointer<T> {
        match self.0.as_ref().expect("memory until drop") {
            Memory::Host(data) => Pointer::new(data.as_ptr() as u64),
            #[cfg(feature = "cuda")]
            Memory::Gpu(slice) => Pointer::new(driver::address(slice)),
        }
    }

    pub fn into_memory(mut self) -> Memory<T> {
        self.0.take().expect("memory until drop")
    }
}

impl<T: Scalar> Drop for Buffer<T> {
    fn drop(&mut self) {
        if let Some(memory) = self.0.take() {
            recording::hold(memory);
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

/// A batch of products `c = alpha * a * b + beta * c`, where `a` is `(m, k)`, `b` is `(k, n)` and `c` is `(m, n)`.
///
/// A transposed operand lies in memory as its transpose: `(k, m)` or `(n, k)`.
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

/// What runs kernels. Clones are the same device.
#[derive(Clone)]
pub(crate) enum Device {
    #[cfg(feature = "cuda-emulator")]
    Emulator,
    #[cfg(feature = "cuda")]
    Driver(std::sync::Arc<driver::Driver>),
}

impl Device {
    /// Allocates a buffer of `len` elements without values.
    pub fn alloc<T: Scalar>(&self, len: usize) -> Result<Buffer<T>> {
        count(|counts| {
            (counts.allocations, counts.bytes) = (counts.allocations + 1, counts.bytes + len * size_of::<T>())
        });
        let memory = match self.memory(len) {
            Err(_) if recording::is_on() => {
                // Single launches need less memory: a result may go as soon as the next one is there.
                recording::end_early(self, "the GPU has too little memory for them")?;
                self.memory(len)
            }
            memory => memory,
        };
        memory.map(|memory| Buffer(Some(memory)))
    }

    fn memory<T: Scalar>(&self, len: usize) -> Result<Memory<T>> {
        match *self {
            #[cfg(feature = "cuda-emulator")]
            Self::Emulator => emulator::alloc(len).map(Memory::Host),
            #[cfg(feature = "cuda")]
            Self::Driver(ref driver) => driver.alloc(len).map(Memory::Gpu),
        }
    }

    /// Allocates a buffer of `len` zeros.
    pub fn zeros<T: Scalar>(&self, len: usize) -> Result<Buffer<T>> {
        let buffer = self.alloc(len)?;
        // SAFETY: the buffer has `len` elements, which may be zero bits.
        unsafe { self.clear(buffer.pointer(), len)? };
        Ok(buffer)
    }

    /// Sets all bits of `len` elements to 0.
    ///
    /// # Safety
    /// They are the caller's to write.
    pub unsafe fn clear<T: Scalar>(&self, at: Pointer<T>, len: usize) -> Result<()> {
        match len {
            0 => Ok(()),
            // SAFETY: the caller's promise.
            _ => unsafe { self.submit(Command::Clear { at: at.0, bytes: len * size_of::<T>() }) },
        }
    }

    /// Copies `data` to a new buffer.
    pub fn upload<T: Scalar>(&self, data: &[T]) -> Result<Buffer<T>> {
        let buffer = self.alloc(data.len())?;
        // SAFETY: the buffer is new and as long as the data.
        unsafe { self.write(buffer.pointer(), data)? };
        Ok(buffer)
    }

    /// Copies `data` to `at`, before all commands that are being recorded.
    ///
    /// # Safety
    /// There is room for the data, which is the caller's to write and which no command being recorded uses.
    unsafe fn write<T: Scalar>(&self, at: Pointer<T>, data: &[T]) -> Result<()> {
        count(|counts| counts.to_device += 1);
        match *self {
            #[cfg(feature = "cuda-emulator")]
            Self::Emulator => {
                emulator::refuse_while_capturing("a copy from the host")?;
                // SAFETY: the caller's promise.
                unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), at.0 as *mut T, data.len()) }
            }
            #[cfg(feature = "cuda")]
            // SAFETY: the caller's promise.
            Self::Driver(ref driver) => unsafe { driver.write(at, data)? },
        }
        #[allow(unreachable_code)]
        Ok(())
    }

    /// Waits for the device and returns `len` elements from `at`. Ends a recording: its commands run one by one.
    ///
    /// # Safety
    /// They exist and have values.
    pub unsafe fn download<T: Scalar>(&self, at: Pointer<T>, len: usize) -> Result<Vec<T>> {
        recording::end_early(self, "the step reads a result")?;
        count(|counts| (counts.to_host, counts.waits) = (counts.to_host + 1, counts.waits + 1));
        match *self {
            #[cfg(feature = "cuda-emulator")]
            Self::Emulator if len > 0 => {
                emulator::refuse_while_capturing("a copy to the host")?;
                // SAFETY: the caller's promise; a vector is not null.
                Ok(unsafe { std::slice::from_raw_parts(at.0 as *const T, len) }.to_vec())
            }
            #[cfg(feature = "cuda-emulator")]
            Self::Emulator => Ok(vec![]),
            #[cfg(feature = "cuda")]
            // SAFETY: the caller's promise.
            Self::Driver(ref driver) => unsafe { driver.read(at, len) },
        }
    }

    /// Copies `len` elements within the memory of the device.
    ///
    /// # Safety
    /// They have values, and there is room at `to`, which is the caller's to write and does not overlap.
    pub unsafe fn copy<T: Scalar>(&self, from: Pointer<T>, to: Pointer<T>, len: usize) -> Result<()> {
        match len {
            0 => Ok(()),
            // SAFETY: the caller's promise.
            _ => unsafe {
                self.submit(Command::Copy { from: from.0, to: to.0, bytes: len * size_of::<T>() })
            },
        }
    }

    /// Launches a kernel.
    ///
    /// # Errors
    /// Fails if the kernel cannot be compiled or launched. The emulator also refuses arguments of the wrong types and
    /// barriers that not all threads reach.
    ///
    /// # Safety
    /// `args` are the kernel's parameters, and for these it reads elements that have values and writes elements that are
    /// the caller's to write.
    pub unsafe fn launch(&self, kernel: Kernel, grid: Grid, args: &[Arg]) -> Result<()> {
        debug_assert!(grid.threads.iter().product::<usize>() <= 1024, "{}: {grid:?}", kernel.name);
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        let function = match *self {
            #[cfg(feature = "cuda-emulator")]
            Self::Emulator => Function::Emulated(emulator::entry(kernel)?),
            #[cfg(feature = "cuda")]
            Self::Driver(ref driver) => Function::Gpu(driver.function(kernel, grid.shared)?),
        };
        #[allow(unreachable_code)]
        // SAFETY: the caller's promise.
        unsafe {
            self.submit(Command::Launch { function, name: kernel.name, grid, args: args.to_vec() })
        }
    }

    /// Computes a product. Elements of `c` are not read if `beta` is 0.
    ///
    /// # Safety
    /// The matrices exist; `a` and `b` have values, and `c` is the caller's to write and does not overlap them.
    pub unsafe fn product<T: Real>(&self, product: Product<T>) -> Result<()> {
        debug_assert!(product.c.stride >= product.n);
        match product.m * product.n * product.batch {
            0 => Ok(()),
            // SAFETY: the caller's promise.
            _ => unsafe { self.submit(T::command(product)) },
        }
    }

    /// Records a command if this thread records, and otherwise issues it.
    ///
    /// # Safety
    /// As for [`launch`](Self::launch).
    unsafe fn submit(&self, command: Command) -> Result<()> {
        count(|counts| counts.launches += 1);
        match recording::push(self, command) {
            None => Ok(()),
            // SAFETY: the caller's promise.
            Some(command) => unsafe { self.issue(&command) },
        }
    }

    /// Issues a command.
    ///
    /// # Safety
    /// As for [`launch`](Self::launch).
    unsafe fn issue(&self, command: &Command) -> Result<()> {
        match *self {
            #[cfg(feature = "cuda-emulator")]
            // SAFETY: the caller's promise.
            Self::Emulator => unsafe { emulator::issue(command) },
            #[cfg(feature = "cuda")]
            // SAFETY: the caller's promise.
            Self::Driver(ref driver) => unsafe { driver.issue(command) },
        }
    }

    /// Captures commands as a graph, which takes the place of `before`.
    fn capture(&self, commands: &[Command], before: Option<Executable>) -> Result<Executable> {
        count(|counts| counts.captures += 1);
        match *self {
            #[cfg(feature = "cuda-emulator")]
            Self::Emulator => emulator::capture(commands, before).map(Executable::Emulated),
            #[cfg(feature = "cuda")]
            Self::Driver(ref driver) => {
                #[allow(irrefutable_let_patterns)]
                let before =
                    before.and_then(
                        |before| {
                            if let Executable::Gpu(before) = before { Some(before) } else { None }
                        },
                    );
                driver.capture(commands, before).map(Executable::Gpu)
            }
        }
    }

    /// Launches a graph.
    ///
    /// # Safety
    /// As for [`launch`](Self::launch), for each of its commands.
    unsafe fn launch_graph(&self, executable: &Executable) -> Result<()> {
        count(|counts| counts.graphs += 1);
        match (self, executable) {
            #[cfg(feature = "cuda-emulator")]
            (Self::Emulator, Executable::Emulated(commands)) => {
                // SAFETY: the caller's promise.
                commands.iter().try_for_each(|command| unsafe { emulator::issue(command) })
            }
            #[cfg(feature = "cuda")]
            // SAFETY: the caller's promise.
            (Self::Driver(driver), Executable::Gpu(executable)) => unsafe { driver.launch_graph(executable) },
            #[allow(unreachable_patterns)]
            _ => Err(candle_core::Error::Msg("CUDA: found a graph of another device".to_string())),
        }
    }

    /// Bytes of dynamic shared memory that a block may have.
    pub fn shared_limit(&self) -> usize {
        match *self {
            // The least of the GPUs from sm_86 on.
            #[cfg(feature = "cuda-emulator")]
            Self::Emulator => 99 << 10,
            #[cfg(feature = "cuda")]
            Self::Driver(ref driver) => driver.shared_limit(),
        }
    }
}
