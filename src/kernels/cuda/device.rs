//! The devices that run kernels: a GPU or the emulator.

use super::counts::count;
#[cfg(feature = "cuda")]
use super::driver;
#[cfg(feature = "cuda-emulator")]
use super::emulator;
use super::recording::{self, Recording};
use super::{Arg, Command, Function, Grid, Kernel, Pointer, Product, Real, Scalar};
use candle_core::Result;

/// Memory of a device, which returns to the device's pool when dropped.
///
/// While commands are recorded, it returns after they have run.
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

/// A device that runs kernels. Clones are the same device.
#[derive(Clone)]
pub(crate) enum Device {
    #[cfg(feature = "cuda-emulator")]
    Emulator,
    #[cfg(feature = "cuda")]
    Driver(std::sync::Arc<driver::Driver>),
}

impl Device {
    /// Allocates a buffer of `len` uninitialised elements.
    pub fn alloc<T: Scalar>(&self, len: usize) -> Result<Buffer<T>> {
        count(|counts| {
            (counts.allocations, counts.bytes) = (counts.allocations + 1, counts.bytes + len * size_of::<T>())
        });
        let memory = match self.memory(len) {
            Err(_) if recording::is_on() => {
                // Single launches need less memory: a result can be freed as soon as the next one exists.
                self.end_recording("the GPU has too little memory for them")?;
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
        self.end_recording("the step reads a result")?;
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
            Self::Emulator => Function(emulator::entry(kernel)?),
            #[cfg(feature = "cuda")]
            Self::Driver(ref driver) => Function(driver.function(kernel, grid.shared)?),
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
        match recording::push(command) {
            None => Ok(()),
            // SAFETY: the caller's promise.
            Some(command) => unsafe { self.issue(&command) },
        }
    }

    /// Runs the commands recorded so far one by one, and stops recording, for this reason.
    fn end_recording(&self, reason: &'static str) -> Result<()> {
        // Drop the held values last.
        let Some(Recording { commands, held: _held, .. }) = recording::end_early(reason) else {
            return Ok(());
        };
        // SAFETY: the caller that recorded a command upholds its contract, and the memory that it uses is held.
        commands.iter().try_for_each(|command| unsafe { self.issue(command) })
    }

    /// Issues a command.
    ///
    /// # Safety
    /// As for [`launch`](Self::launch).
    pub(super) unsafe fn issue(&self, command: &Command) -> Result<()> {
        match *self {
            #[cfg(feature = "cuda-emulator")]
            // SAFETY: the caller's promise.
            Self::Emulator => unsafe { emulator::issue(command) },
            #[cfg(feature = "cuda")]
            // SAFETY: the caller's promise.
            Self::Driver(ref driver) => unsafe { driver.issue(command) },
        }
    }

    /// Captures commands as a graph, which replaces `before`.
    pub(super) fn capture(&self, commands: &[Command], before: Option<Executable>) -> Result<Executable> {
        count(|counts| counts.captures += 1);
        match *self {
            #[cfg(feature = "cuda-emulator")]
            Self::Emulator => {
                drop(before);
                emulator::capture(commands).map(Executable::Emulated)
            }
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
    pub(super) unsafe fn launch_graph(&self, executable: &Executable) -> Result<()> {
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
            // The smallest limit of the GPUs from sm_86 on.
            #[cfg(feature = "cuda-emulator")]
            Self::Emulator => 99 << 10,
            #[cfg(feature = "cuda")]
            Self::Driver(ref driver) => driver.shared_limit(),
        }
    }
}

/// A graph that a device can launch.
pub(super) enum Executable {
    #[cfg(feature = "cuda-emulator")]
    Emulated(Vec<Command>),
    #[cfg(feature = "cuda")]
    Gpu(driver::Executable),
}
