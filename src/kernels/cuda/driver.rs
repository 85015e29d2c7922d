//! Runs the kernels on a GPU: nvrtc compiles them, the driver launches them, cuBLAS computes products.

use super::{Arg, Command, Function, Kernel, ModuleKey, PRELUDE, Product, Real, Scalar, cache, errors};
use candle_core::cuda_backend::cudarc::cublas::{result as cublas, sys as cublas_sys};
use candle_core::cuda_backend::cudarc::driver::result::DriverError;
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaModule, CudaSlice, DevicePtr, result, sys,
};
use candle_core::cuda_backend::cudarc::nvrtc::{self, Ptx, sys as nvrtc_sys};
use candle_core::{CudaDevice, Error, Result};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CStr, CString, c_int, c_longlong, c_void};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

/// A GPU, with the modules that are loaded there.
pub(crate) struct Driver {
    device: CudaDevice,
    /// Major version times 10 plus minor version.
    capability: c_int,
    nvrtc: (c_int, c_int),
    shared_limit: usize,
    functions: Mutex<Functions>,
    /// The kernel launched last.
    last: Mutex<Option<&'static str>>,
    /// Memory for cuBLAS, which would otherwise allocate while a graph is being captured.
    _workspace: CudaSlice<u8>,
}

/// A graph that can be launched.
pub(crate) struct Executable(sys::CUgraphExec);

impl Drop for Executable {
    fn drop(&mut self) {
        // SAFETY: the graph exists, and the driver lets its launches finish.
        let _ = unsafe { result::graph::exec_destroy(self.0) };
    }
}

#[derive(Default)]
struct Functions {
    modules: HashMap<ModuleKey, Arc<CudaModule>>,
    /// Kernels, with the bytes of dynamic shared memory that they may have.
    kernels: HashMap<(ModuleKey, &'static str), (CudaFunction, usize)>,
}

/// Bytes of shared memory that every kernel may have.
const SHARED: usize = 48 << 10;

/// Bytes that NVIDIA recommends for cuBLAS on the largest GPUs.
const WORKSPACE: usize = 32 << 20;

/// Returns the address of the first element.
pub(crate) fn address<T>(slice: &CudaSlice<T>) -> u64 {
    slice.device_ptr(slice.stream()).0
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The driver's description of a failure.
fn reason(error: DriverError) -> String {
    error.error_string().map_or_else(|_| format!("{:?}", error.0), |text| text.to_string_lossy().into_owned())
}

/// Describes a failure of the driver.
fn failure(what: &str, error: DriverError) -> Error {
    Error::Msg(format!("CUDA: {what}: {}", reason(error)))
}

impl Driver {
    /// Opens the driver for `device`; prints a note on stderr and returns `None` if it does not work there.
    pub(crate) fn of(device: &CudaDevice) -> Option<Arc<Self>> {
        type Drivers = Vec<(CudaDevice, Option<Arc<Driver>>)>;
        static DRIVERS: LazyLock<Mutex<Drivers>> = LazyLock::new(Mutex::default);
        let mut drivers = lock(&DRIVERS);
        if let Some((_, driver)) = drivers.iter().find(|(known, _)| known.id() == device.id()) {
            return driver.clone();
        }
        let driver = match Self::new(device.clone()) {
            Ok(driver) => Some(Arc::new(driver)),
            Err(error) => {
                eprintln!("note: {error}; candle's slower operations replace the kernels of this crate");
                None
            }
        };
        drivers.push((device.clone(), driver.clone()));
        driver
    }

    fn new(device: CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        let context = stream.context();
        let attribute =
            |attribute| context.attribute(attribute).map_err(|error| failure("cannot ask the GPU", error));
        use sys::CUdevice_attribute_enum as Attribute;
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let shared = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let mut nvrtc = (0, 0);
        // SAFETY: both are integers to write; the pool is the device's own; the threshold is a 64-bit integer.
        unsafe {
            nvrtc_sys::nvrtcVersion(&mut nvrtc.0, &mut nvrtc.1);
            // Freed memory stays in the pool: a step allocates what the previous step has freed.
            if let Ok(pool) = result::device::get_default_mem_pool(context.cu_device()) {
                let mut threshold = u64::MAX;
                let name = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
                let _ = sys::cuMemPoolSetAttribute(pool, name, (&raw mut threshold).cast());
            }
            // Candle's device has a single stream, which orders all uses of a buffer.
            context.disable_event_tracking();
        }
        let workspace = device.cuda_stream();
        // SAFETY: cuBLAS writes the memory before it reads it.
        let workspace = unsafe { workspace.alloc::<u8>(WORKSPACE) }
            .map_err(|error| failure("cannot allocate memory for cuBLAS", error))?;
        // SAFETY: the memory lives as long as the driver, which lives until the program ends.
        unsafe {
            cublas_sys::cublasSetWorkspace_v2(
                *device.cublas_handle().handle(),
                address(&workspace) as *mut c_void,
                WORKSPACE,
            )
        }
        .result()
        .map_err(|error| Error::Msg(format!("CUDA: cuBLAS takes no workspace: {:?}", error.0)))?;
        let driver = Self {
            capability: major * 10 + minor,
            nvrtc,
            shared_limit: shared.max(0) as usize,
            functions: Mutex::default(),
            last: Mutex::default(),
            _workspace: workspace,
            device,
        };
        driver.function(super::ACTIVATION.kernel::<f32>("relu_forward"), 0)?;
        Ok(driver)
    }

    pub(super) fn shared_limit(&self) -> usize {
        self.shared_limit
    }

    pub(super) fn alloc<T: Scalar>(&self, len: usize) -> Result<CudaSlice<T>> {
        let stream = self.device.cuda_stream();
        // SAFETY: kernels write the elements before others read them. An allocation has at least one element.
        unsafe { stream.alloc::<T>(len.max(1)) }.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (free, total) = stream.context().mem_get_info().unwrap_or_default();
                errors::out_of_memory(len * size_of::<T>(), free, total)
            }
            _ => failure("cannot allocate memory", error),
        })
    }

    /// What identifies the GPU among those of all machines.
    #[cfg(feature = "nccl")]
    pub(crate) fn uuid(&self) -> Result<Vec<u8>> {
        let uuid = self.device.cuda_stream().context().uuid();
        Ok(uuid.map_err(|error| failure("cannot ask the GPU", error))?.bytes.map(|byte| byte as u8).to_vec())
    }

    /// Whether the GPU has carried out all commands in its stream.
    #[cfg(feature = "nccl")]
    pub(super) fn is_idle(&self) -> Result<bool> {
        let stream = self.stream()?;
        // SAFETY: the stream is candle's.
        match unsafe { sys::cuStreamQuery(stream) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => {
                let failed = |error| errors::after_launch(*lock(&self.last), &reason(error));
                result.result().map(|()| true).map_err(failed)
            }
        }
    }

    /// The stream of the GPU, which becomes the current one of this thread.
    pub(super) fn stream(&self) -> Result<sys::CUstream> {
        let stream = self.device.cuda_stream();
        stream.context().bind_to_thread().map_err(|error| failure("cannot use the GPU", error))?;
        Ok(stream.cu_stream())
    }

    /// Copies `data` to `at`.
    ///
    /// # Safety
    /// There is room for the data, which is the caller's to write.
    pub(super) unsafe fn write<T>(&self, at: super::Pointer<T>, data: &[T]) -> Result<()> {
        let stream = self.stream()?;
        if data.is_empty() {
            return Ok(());
        }
        // SAFETY: the caller's promise. The driver has read pageable memory when the call returns.
        unsafe { result::memcpy_htod_async(at.address(), data, stream) }
            .map_err(|error| failure("cannot copy to the GPU", error))
    }

    /// Waits, and returns `len` elements from `at`.
    ///
    /// # Safety
    /// They exist and have values.
    pub(super) unsafe fn read<T: Scalar>(&self, at: super::Pointer<T>, len: usize) -> Result<Vec<T>> {
        let stream = self.stream()?;
        let mut data = vec![T::default(); len];
        let failed = |error| errors::after_launch(*lock(&self.last), &reason(error));
        if len > 0 {
            // SAFETY: the caller's promise; the vector lives until the stream has finished.
            unsafe { result::memcpy_dtoh_async(&mut data, at.address(), stream) }.map_err(failed)?;
            // SAFETY: the stream is candle's.
            unsafe { result::stream::synchronize(stream) }.map_err(failed)?;
        }
        Ok(data)
    }

    /// Puts a command into the stream.
    ///
    /// # Safety
    /// See [`launch`](super::Device::launch).
    pub(super) unsafe fn issue(&self, command: &Command) -> Result<()> {
        let stream = self.stream()?;
        match command {
            Command::Launch { function: Function(function), name, grid, args } => {
                let mut words: Vec<u64> = args.iter().map(Arg::bits).collect();
                let mut addresses: Vec<*mut c_void> =
                    words.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
                let [blocks, threads] =
                    [grid.blocks, grid.threads].map(|[x, y, z]| (x as u32, y as u32, z as u32));
                let (function, shared) = (*function as sys::CUfunction, grid.shared as u32);
                *lock(&self.last) = Some(name);
                // SAFETY: the caller's promise; the driver copies the arguments.
                unsafe { result::launch_kernel(function, blocks, threads, shared, stream, &mut addresses) }
                    .map_err(|error| errors::launch(name, &reason(error)))
            }
            // SAFETY: the caller's promise, for both.
            &Command::ProductF32(product) => unsafe { self.product(product) },
            &Command::ProductF64(product) => unsafe { self.product(product) },
            // SAFETY: the caller's promise.
            &Command::Copy { from, to, bytes } => {
                unsafe { result::memcpy_dtod_async(to, from, bytes, stream) }
                    .map_err(|error| failure("cannot copy on the GPU", error))
            }
            // SAFETY: the caller's promise.
            &Command::Clear { at, bytes } => unsafe { result::memset_d8_async(at, 0, bytes, stream) }
                .map_err(|error| failure("cannot clear memory", error)),
        }
    }

    /// Captures commands as a graph, which replaces `before`.
    pub(super) fn capture(&self, commands: &[Command], before: Option<Executable>) -> Result<Executable> {
        let stream = self.stream()?;
        let failed = |error| failure("cannot capture a graph", error);
        // SAFETY: the stream is candle's; the capture ends below.
        let begun = unsafe {
            result::stream::begin_capture(
                stream,
                sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
            )
        };
        begun.map_err(failed)?;
        // SAFETY: the caller that recorded the commands upholds their contract; nothing runs yet.
        let issued = commands.iter().try_for_each(|command| unsafe { self.issue(command) });
        // SAFETY: the stream captures.
        let ended = unsafe { result::stream::end_capture(stream) };
        // A failed command invalidates the capture and says more.
        issued?;
        let graph = ended.map_err(failed)?;
        // SAFETY: the graph exists until it is destroyed below.
        unsafe {
            let executable = match before.filter(|before| Self::update(before, graph)) {
                Some(before) => Ok(before),
                None => result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)).map(Executable),
            };
            let _ = result::graph::destroy(graph);
            executable.map_err(failed)
        }
    }

    /// Updates an executable graph to the nodes of `graph`; returns `false` if it differs too much.
    ///
    /// # Safety
    /// Both exist.
    unsafe fn update(executable: &Executable, graph: sys::CUgraph) -> bool {
        // SAFETY: a struct of numbers and pointers, for which zero bits are valid.
        let mut info: sys::CUgraphExecUpdateResultInfo = unsafe { std::mem::zeroed() };
        // SAFETY: the caller's promise.
        unsafe { sys::cuGraphExecUpdate_v2(executable.0, graph, &mut info) }.result().is_ok()
    }

    /// Launches a graph.
    ///
    /// # Safety
    /// See [`launch_graph`](super::Device::launch_graph).
    pub(super) unsafe fn launch_graph(&self, executable: &Executable) -> Result<()> {
        let stream = self.stream()?;
        // SAFETY: the graph exists; the rest is the caller's promise.
        unsafe { result::graph::launch(executable.0, stream) }
            .map_err(|error| failure("cannot launch a graph", error))
    }

    /// Finds a kernel with up to `shared` bytes of dynamic shared memory, and returns the driver's handle.
    pub(super) fn function(&self, kernel: Kernel, shared: usize) -> Result<usize> {
        let mut functions = lock(&self.functions);
        let key = (kernel.module(), kernel.name);
        if let Some((function, allowed)) = functions.kernels.get(&key)
            && shared <= *allowed
        {
            return Ok(function.cu_function() as usize);
        }
        let module = match functions.modules.entry(kernel.module()) {
            Entry::Occupied(module) => module.get().clone(),
            Entry::Vacant(place) => place.insert(self.load(kernel)?).clone(),
        };
        let missing =
            |error| failure(&format!("{} has no kernel {}", kernel.source.name, kernel.name), error);
        let function = module.load_function(kernel.name).map_err(missing)?;
        if shared > SHARED {
            let name = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(name, shared as c_int).map_err(|error| {
                failure(&format!("{} cannot have {shared} bytes of shared memory", kernel.name), error)
            })?;
        }
        // The module stays loaded for as long as the program runs.
        let handle = function.cu_function() as usize;
        functions.kernels.insert(key, (function, shared.max(SHARED)));
        Ok(handle)
    }

    /// Loads a module, compiled by nvrtc unless the cache holds it.
    fn load(&self, kernel: Kernel) -> Result<Arc<CudaModule>> {
        let name = kernel.source.name;
        let source = format!("{}\n#line 1 \"{name}\"\n{}", PRELUDE.text, kernel.source.text);
        let mut options = kernel.options();
        options.extend([
            format!("--gpu-architecture=sm_{}", self.capability),
            "--std=c++17".to_string(),
            "--diag-suppress=177".to_string(),
        ]);
        let version = format!("{}.{}", self.nvrtc.0, self.nvrtc.1);
        let key = [vec![source.as_str(), &version], options.iter().map(String::as_str).collect()].concat();
        let compile = || self.compile(&source, &options);
        let code = cache::load(cache::folder().as_deref(), (name, "cubin"), &key, compile)?;
        let stream = self.device.cuda_stream();
        stream
            .context()
            .load_module(Ptx::from_binary(code.bytes))
            .map_err(|error| errors::old_driver(name, self.nvrtc, self.capability, &reason(error)))
    }

    /// Compiles a module to CUBIN.
    fn compile(&self, source: &str, options: &[String]) -> Result<Vec<u8>> {
        let source = CString::new(source).map_err(Error::wrap)?;
        let failed = |error: nvrtc::result::NvrtcError| Error::Msg(format!("CUDA: nvrtc: {:?}", error.0));
        let program = nvrtc::result::create_program(&source, Some(c"prelude.cu")).map_err(failed)?;
        // SAFETY: the program is valid until it is destroyed below; the buffer is as long as nvrtc says.
        unsafe {
            let compiled = nvrtc::result::compile_program(program, options);
            let code = compiled.map_err(|error| self.compiler_message(program, error)).and_then(|()| {
                let mut size = 0;
                nvrtc_sys::nvrtcGetCUBINSize(program, &mut size).result().map_err(failed)?;
                let mut code = vec![0u8; size];
                nvrtc_sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast()).result().map_err(failed)?;
                Ok(code)
            });
            let _ = nvrtc::result::destroy_program(program);
            code
        }
    }

    /// Describes why nvrtc has not compiled a program.
    ///
    /// # Safety
    /// The program exists.
    unsafe fn compiler_message(
        &self,
        program: nvrtc_sys::nvrtcProgram,
        error: nvrtc::result::NvrtcError,
    ) -> Error {
        let ((major, minor), capability) = (self.nvrtc, self.capability);
        if error.0 == nvrtc_sys::nvrtcResult::NVRTC_ERROR_INVALID_OPTION {
            return Error::Msg(format!(
                "CUDA: nvrtc {major}.{minor} does not know this GPU, sm_{capability}: use another version of the CUDA \
                 toolkit"
            ));
        }
        // SAFETY: the program exists.
        let log = unsafe { nvrtc::result::get_program_log(program) }.unwrap_or_default();
        let bytes: Vec<u8> = log.into_iter().map(|byte| byte as u8).collect();
        let log = CStr::from_bytes_until_nul(&bytes).unwrap_or_default().to_string_lossy().into_owned();
        Error::Msg(format!("CUDA: nvrtc {major}.{minor} cannot compile a kernel: {}", log.trim()))
    }

    /// Computes a product. cuBLAS reads matrices column by column, so it computes `c^T = b^T * a^T`.
    ///
    /// # Safety
    /// See [`product`](super::Device::product).
    unsafe fn product<T: Real>(&self, product: Product<T>) -> Result<()> {
        use cublas_sys::cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};
        self.stream()?;
        let blas = self.device.cublas_handle();
        let Product { m, n, k, batch, a, b, c, .. } = product;
        let [m, n, k, batch] = [m, n, k, batch].map(|size| size as c_int);
        let operation = |transposed| if transposed { CUBLAS_OP_T } else { CUBLAS_OP_N };
        let (first, second) = (operation(product.b_transposed), operation(product.a_transposed));
        let [lda, ldb, ldc] = [a.stride, b.stride, c.stride].map(|stride| stride.max(1) as c_int);
        let [step_a, step_b, step_c] = [a, b, c].map(|matrix| matrix.batch_stride as c_longlong);
        let (alpha, beta) = (&raw const product.alpha, &raw const product.beta);
        let [a, b, c] = [a, b, c].map(|matrix| matrix.at.address());
        // SAFETY: the caller's promise; the scalars are of type `T`, which is `f32` or `f64` as its size says.
        let result = unsafe {
            match size_of::<T>() {
                4 => cublas::sgemm_strided_batched(
                    *blas.handle(),
                    first,
                    second,
                    n,
                    m,
                    k,
                    alpha.cast(),
                    b as *const f32,
                    ldb,
                    step_b,
                    a as *const f32,
                    lda,
                    step_a,
                    beta.cast(),
                    c as *mut f32,
                    ldc,
                    step_c,
                    batch,
                ),
                _ => cublas::dgemm_strided_batched(
                    *blas.handle(),
                    first,
                    second,
                    n,
                    m,
                    k,
                    alpha.cast(),
                    b as *const f64,
                    ldb,
                    step_b,
                    a as *const f64,
                    lda,
                    step_a,
                    beta.cast(),
                    c as *mut f64,
                    ldc,
                    step_c,
                    batch,
                ),
            }
        };
        result.map_err(|error| {
            Error::Msg(format!("CUDA: cuBLAS, product of {m}x{k} and {k}x{n}: {:?}", error.0))
        })
    }
}
