//! Runs the kernels on the CPU, for tests: g++ compiles them with `emulate.h` to a shared object.

use super::recording;
use super::{
    Arg, Command, Function, Grid, Kernel, Matrix, ModuleKey, PRELUDE, Product, Real, Scalar, cache, errors,
};
use crate::kernels::cpu::matmul::{Init, Panels, gemm};
use candle_core::{Error, Result, bail};
use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::fmt::Write;
use std::path::Path;
use std::process;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::{env, fs};

/// A failure of a GPU that the emulator can imitate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There is no memory left.
    Memory,
    /// There is too little memory to hold all results of a step that is recorded.
    MemoryOfGraph,
    /// The driver cannot launch this kernel.
    Launch(&'static str),
    /// The driver cannot capture a graph.
    Capture,
}

thread_local! {
    pub(crate) static FAULT: Cell<Option<Fault>> = const { Cell::new(None) };
    /// Whether this thread captures a graph.
    static CAPTURING: Cell<bool> = const { Cell::new(false) };
}

/// Fails while a graph is being captured, as a GPU would.
pub(super) fn refuse_while_capturing(what: &str) -> Result<()> {
    if CAPTURING.get() {
        bail!("CUDA emulator: found {what} in a capture");
    }
    Ok(())
}

/// Returns uninitialised elements: NaN, or -1.
pub(super) fn alloc<T: Scalar>(len: usize) -> Result<Vec<T>> {
    refuse_while_capturing("an allocation")?;
    let fault = FAULT.get();
    if fault == Some(Fault::Memory) || fault == Some(Fault::MemoryOfGraph) && recording::is_on() {
        return Err(errors::out_of_memory(len * size_of::<T>(), 0, 0));
    }
    let mut data = vec![T::default(); len];
    // SAFETY: all scalars are plain numbers, for which all bits are valid.
    unsafe { std::ptr::write_bytes(data.as_mut_ptr(), 0xff, len) };
    Ok(data)
}

/// The entry of a kernel; returns an error or null.
///
/// It takes the sizes of grid and block, bytes of dynamic shared memory, and types and addresses of the arguments.
type Entry = unsafe extern "C" fn(*const u32, usize, *const c_char, *mut *mut c_void) -> *const c_char;

/// Captures commands without running them.
pub(super) fn capture(commands: &[Command]) -> Result<Vec<Command>> {
    CAPTURING.set(true);
    let captured: Result<Vec<Command>> = commands
        .iter()
        .map(|command| match FAULT.get() {
            Some(Fault::Capture) => bail!("the emulator has been asked to refuse"),
            _ => Ok(command.clone()),
        })
        .collect();
    CAPTURING.set(false);
    captured
}

/// Runs a command.
///
/// # Safety
/// See [`launch`](super::Device::launch).
pub(super) unsafe fn issue(command: &Command) -> Result<()> {
    match *command {
        Command::Launch { function: Function(entry), name, grid, ref args } => {
            if FAULT.get() == Some(Fault::Launch(name)) {
                return Err(errors::launch(name, "the emulator has been asked to refuse"));
            }
            // SAFETY: the caller's promise.
            unsafe { launch(entry, grid, args) }
        }
        // SAFETY: the caller's promise.
        Command::ProductF32(product) => unsafe { multiply(product) },
        // SAFETY: the caller's promise.
        Command::ProductF64(product) => unsafe { multiply(product) },
        Command::Copy { from, to, bytes } => {
            // SAFETY: the caller's promise.
            unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
            Ok(())
        }
        Command::Clear { at, bytes } => {
            // SAFETY: the caller's promise.
            unsafe { std::ptr::write_bytes(at as *mut u8, 0, bytes) };
            Ok(())
        }
    }
}

/// Runs a kernel.
///
/// # Safety
/// See [`launch`](super::Device::launch).
unsafe fn launch(entry: usize, grid: Grid, args: &[Arg]) -> Result<()> {
    // SAFETY: `entry` has returned the address of a generated function, whose module stays open.
    let entry = unsafe { std::mem::transmute::<usize, Entry>(entry) };
    let mut words: Vec<u64> = args.iter().map(Arg::bits).collect();
    let mut addresses: Vec<*mut c_void> =
        words.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
    let kinds = CString::new(args.iter().map(Arg::kind).collect::<Vec<_>>()).map_err(Error::wrap)?;
    let sizes: Vec<u32> = grid.blocks.into_iter().chain(grid.threads).map(|size| size as u32).collect();
    // SAFETY: the entry checks the types of the arguments; the rest is the caller's promise.
    let error = unsafe { entry(sizes.as_ptr(), grid.shared, kinds.as_ptr(), addresses.as_mut_ptr()) };
    if !error.is_null() {
        // SAFETY: a string of the shared object, valid until the next launch.
        bail!("CUDA emulator: {}", unsafe { CStr::from_ptr(error) }.to_string_lossy());
    }
    Ok(())
}

impl Arg {
    /// The letter of this type in `emulate.h`.
    fn kind(&self) -> u8 {
        match self {
            Self::Pointer(_) => b'p',
            Self::I32(_) => b'i',
            Self::U32(_) => b'u',
            Self::I64(_) => b'l',
            Self::U64(_) => b'L',
            Self::F32(_) => b'f',
            Self::F64(_) => b'd',
        }
    }
}

/// Finds the generated function that runs a kernel, and compiles its module if necessary.
pub(super) fn entry(kernel: Kernel) -> Result<usize> {
    refuse_while_capturing("a compilation")?;
    static MODULES: LazyLock<Mutex<HashMap<ModuleKey, usize>>> = LazyLock::new(Mutex::default);
    let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
    let module = match modules.get(&kernel.module()) {
        Some(&module) => module,
        None => {
            let module = open(kernel)?;
            modules.insert(kernel.module(), module);
            module
        }
    };
    let name = CString::new(format!("emulated_{}", kernel.name)).map_err(Error::wrap)?;
    // SAFETY: the module stays open.
    let symbol = unsafe { libc::dlsym(module as *mut c_void, name.as_ptr()) };
    if symbol.is_null() {
        bail!("CUDA emulator: {} has no kernel {}", kernel.source.name, kernel.name);
    }
    Ok(symbol as usize)
}

/// Compiles a module and opens the shared object. Returns its handle.
fn open(kernel: Kernel) -> Result<usize> {
    let source = source(kernel)?;
    let options = options(kernel);
    let folder = cache::folder();
    let key = [vec![source.as_str()], options.iter().map(String::as_str).collect()].concat();
    let code =
        cache::load(folder.as_deref(), (kernel.source.name, "so"), &key, || compile(&source, &options))?;
    let open = |file: &Path| -> Result<usize> {
        let name = CString::new(file.as_os_str().as_encoded_bytes()).map_err(Error::wrap)?;
        // SAFETY: the shared object has constructors of its own variables only.
        let module = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if module.is_null() {
            // SAFETY: after a failed `dlopen` the message is a string.
            bail!("CUDA emulator: {}", unsafe { CStr::from_ptr(libc::dlerror()) }.to_string_lossy());
        }
        Ok(module as usize)
    };
    match code.file {
        Some(file) => open(&file),
        None => {
            let file = cache::unique(&env::temp_dir().join("candle-textbook-kernel.so"));
            let module = fs::write(&file, code.bytes).map_err(Error::from).and_then(|()| open(&file));
            let _ = fs::remove_file(&file);
            module
        }
    }
}

fn options(kernel: Kernel) -> Vec<String> {
    let mut options: Vec<String> =
        ["-std=gnu++20", "-O1", "-w", "-shared", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique"]
            .map(String::from)
            .into();
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2") {
        options.push("-march=x86-64-v3".to_string());
    }
    options.extend(kernel.options());
    let more = env::var("CANDLE_TEXTBOOK_CXXFLAGS").unwrap_or_default();
    options.extend(more.split_whitespace().map(String::from));
    options
}

fn compile(source: &str, options: &[String]) -> Result<Vec<u8>> {
    let input = cache::unique(&env::temp_dir().join("candle-textbook-kernel.cc"));
    let output = input.with_extension("so");
    fs::write(&input, source)?;
    let result = process::Command::new("g++").args(options).arg("-o").arg(&output).arg(&input).output();
    let code = match result {
        Ok(result) if result.status.success() => fs::read(&output).map_err(Error::from),
        Ok(result) => Err(Error::Msg(format!(
            "CUDA emulator: g++ refuses a kernel:\n{}",
            String::from_utf8_lossy(&result.stderr)
        ))),
        Err(error) => Err(Error::Msg(format!("CUDA emulator: cannot run g++: {error}"))),
    };
    for file in [input, output] {
        let _ = fs::remove_file(file);
    }
    code
}

/// The C++ source of a module: the kernels in their own namespace, and an entry for each.
fn source(kernel: Kernel) -> Result<String> {
    let mut text = format!("#line 1 \"emulate.h\"\n{}\nnamespace {{\n", include_str!("emulate.h"));
    for source in [&PRELUDE, kernel.source] {
        write!(text, "#line 1 \"{}\"\n{}\n", source.name, source.text).map_err(Error::wrap)?;
    }
    text.push_str(
        "}\n#define ENTRY(name, bounds) extern \"C\" __attribute__((visibility(\"default\"))) const char* emulated_##name( \
         const unsigned* n, size_t shared, const char* kinds, void** args) { \
         return emulate::call(#name, name, bounds, dim3(n[0], n[1], n[2]), dim3(n[3], n[4], n[5]), shared, kinds, args); }\n",
    );
    for (name, bounds) in kernels(kernel.source.text) {
        writeln!(text, "ENTRY({name}, emulate::launch_bounds({bounds}))").map_err(Error::wrap)?;
    }
    Ok(text)
}

/// The name of each kernel and the arguments of its `__launch_bounds__`.
fn kernels(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| {
        let rest = line.strip_prefix("extern \"C\" __global__ void ")?.trim_start();
        let (bounds, rest) = match rest.strip_prefix("__launch_bounds__(") {
            Some(rest) => rest.split_once(')')?,
            None => ("", rest),
        };
        Some((rest.trim_start().split_once('(')?.0, bounds))
    })
}

/// Computes a product with the CPU's matrix products.
///
/// # Safety
/// See [`product`](super::Device::product).
unsafe fn multiply<T: Real>(product: Product<T>) -> Result<()> {
    let Product { m, n, k, a_transposed, b_transposed, alpha, beta, .. } = product;
    for i in 0..product.batch {
        let at = |matrix: Matrix<T>| matrix.at.offset(i * matrix.batch_stride).address();
        // SAFETY: the matrices exist.
        let read = |matrix: Matrix<T>, rows: usize, columns: usize| unsafe {
            let len = if rows * columns == 0 { 0 } else { (rows - 1) * matrix.stride + columns };
            let at = if len == 0 { std::ptr::NonNull::dangling().as_ptr() } else { at(matrix) as *mut T };
            std::slice::from_raw_parts(at, len)
        };
        let rows: Vec<T> = match a_transposed {
            true => {
                let a = read(product.a, k, m);
                (0..m * k).map(|at| a[at % k * product.a.stride + at / k]).collect()
            }
            false => {
                let a = read(product.a, m, k);
                (0..m * k).map(|at| a[at / k * product.a.stride + at % k]).collect()
            }
        };
        let mut sums = vec![T::ZERO; m * n];
        if k > 0 {
            let stride = product.b.stride;
            let panels = match b_transposed {
                true => {
                    let b = read(product.b, n, k);
                    Panels::transposed((k, n), |column| &b[column * stride..])
                }
                false => {
                    let b = read(product.b, k, n);
                    Panels::new((k, n), |row| &b[row * stride..])
                }
            };
            gemm((&rows, k), &panels, &mut sums[..], n, Init::Zero);
        }
        for (row, sums) in sums.chunks_exact(n).enumerate() {
            let c = (at(product.c) as *mut T).wrapping_add(row * product.c.stride);
            for (column, &sum) in sums.iter().enumerate() {
                // SAFETY: the element belongs to `c`.
                unsafe {
                    let c = c.add(column);
                    *c = if beta == T::ZERO { alpha * sum } else { alpha * sum + beta * *c };
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Pointer, Source};
    use super::*;

    static FAULTS: Source = Source {
        name: "faults.cu",
        text: r#"
extern "C" __global__ void __launch_bounds__(64) same_barrier(real* x, int n) {
    if (threadIdx.x < n) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    x[threadIdx.x] = 1;
}
extern "C" __global__ void shared_memory(real* x) {
    __shared__ real all[32];
    DYNAMIC_SHARED(real, more);
    x[threadIdx.x] = all[threadIdx.x] + more[threadIdx.x];
}
extern "C" __global__ void neighbours(real* x) {
    real sum = block_sum(x[threadIdx.x]), first = __shfl_sync(ALL, x[threadIdx.x], 0);
    __syncthreads();
    x[threadIdx.x] = sum + first;
}
"#,
    };

    fn run(name: &'static str, threads: usize, shared: usize, args: &[Arg]) -> Result<()> {
        let grid = Grid { blocks: [1, 1, 1], threads: [threads, 1, 1], shared };
        // SAFETY: the kernels write one element per thread.
        unsafe { launch(entry(FAULTS.kernel::<f32>(name))?, grid, args) }
    }

    fn pointer(data: &mut [f32]) -> Arg {
        Pointer::<f32>::new(data.as_mut_ptr() as u64).into()
    }

    #[test]
    fn what_a_gpu_would_not_forgive_is_an_error() {
        let mut x = [0.; 96];
        let message = |result: Result<()>| result.unwrap_err().to_string();
        let apart = message(run("same_barrier", 64, 0, &[pointer(&mut x), 32.into()]));
        assert!(apart.contains("thread 0 in line 4") && apart.contains("thread 32 in line 6"), "{apart}");
        let types = message(run("same_barrier", 64, 0, &[pointer(&mut x), 32i64.into()]));
        assert!(types.contains("same_barrier: found arguments of types pl, expected pi"), "{types}");
        let large = message(run("same_barrier", 96, 0, &[pointer(&mut x), 96.into()]));
        assert!(large.contains("launch bounds of 64"), "{large}");
        assert!(run("same_barrier", 64, 0, &[pointer(&mut x), 64.into()]).is_ok() && x[63] == 1.);
    }

    #[test]
    fn shared_memory_has_no_values_at_first() {
        let mut x = [0.; 32];
        run("shared_memory", 32, 128, &[pointer(&mut x)]).unwrap();
        assert!(x.iter().all(|x| x.is_nan()));
    }

    #[test]
    fn reductions_reach_all_threads() {
        let mut x: Vec<f32> = (0..96).map(|x| x as f32).collect();
        run("neighbours", 96, 0, &[pointer(&mut x)]).unwrap();
        assert!((0..96).all(|i| x[i] == (95 * 48 + i / 32 * 32) as f32));
    }
}
