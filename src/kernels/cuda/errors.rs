//! Errors of a GPU, in one line each.

#![cfg_attr(not(feature = "cuda"), allow(dead_code))]

use candle_core::Error;

/// The GPU has too little memory. `free` and `total` are bytes; both are 0 if unknown.
pub(crate) fn out_of_memory(asked: usize, free: usize, total: usize) -> Error {
    let [asked, free, total] = [asked, free, total].map(|bytes| bytes.div_ceil(1 << 20));
    let have =
        if total > 0 { format!(", and {free} of the GPU's {total} MiB are free") } else { String::new() };
    Error::Msg(format!(
        "CUDA: out of memory: asked for {asked} MiB{have}: lower the batch size or the model's size"
    ))
}

/// A kernel that cannot be launched.
pub(crate) fn launch(kernel: &str, reason: &str) -> Error {
    Error::Msg(format!("CUDA: cannot launch the kernel {kernel}, or one before it has failed: {reason}"))
}

/// A failure that shows only when the host waits for the GPU. `last` is the kernel launched last.
pub(crate) fn after_launch(last: Option<&str>, reason: &str) -> Error {
    let kernels = last.map_or(String::new(), |last| {
        format!(": a kernel has failed, {last} or one before it; CUDA_LAUNCH_BLOCKING=1 shows which one")
    });
    Error::Msg(format!("CUDA: cannot read from the GPU: {reason}{kernels}"))
}

/// A compiled kernel file that the driver does not accept.
pub(crate) fn old_driver(file: &str, nvrtc: (i32, i32), capability: i32, reason: &str) -> Error {
    let (major, minor) = nvrtc;
    Error::Msg(format!(
        "CUDA: the driver cannot load {file}, which nvrtc {major}.{minor} has compiled for sm_{capability}: {reason}: update \
         the NVIDIA driver, or use an older version of the CUDA toolkit"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_kernel_and_the_remedy() {
        let text = |error: Error| error.to_string();
        assert!(text(launch("conv2d", "too many resources")).contains("conv2d"));
        assert!(
            text(after_launch(Some("pool"), "an illegal memory access")).contains("pool or one before it")
        );
        assert!(!text(after_launch(None, "unknown")).contains("kernel has failed"));
        let old = text(old_driver("pool.cu", (13, 0), 90, "the driver is too old"));
        assert!(
            old.contains("pool.cu") && old.contains("nvrtc 13.0") && old.contains("update the NVIDIA driver")
        );
        let memory = text(out_of_memory(5 << 30, 1 << 20, 8 << 30));
        assert!(memory.contains("asked for 5120 MiB, and 1 of the GPU's 8192 MiB"), "{memory}");
    }
}
