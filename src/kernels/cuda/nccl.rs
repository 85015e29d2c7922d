//! Messages between the GPUs of several processes: NCCL.

use super::Pointer;
use super::driver::Driver;
use candle_core::cuda_backend::cudarc::nccl::{result, sys};
use candle_core::{Error, Result};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::Arc;
use std::thread::yield_now;

/// GPUs that exchange messages, one per process, as this process sees them.
///
/// Its operations join the stream of the GPU, and every process calls the same ones in the same order.
pub(crate) struct Communicator {
    handle: sys::ncclComm_t,
    driver: Arc<Driver>,
    size: c_int,
}

// SAFETY: NCCL lets any thread use a communicator, one at a time.
unsafe impl Send for Communicator {}

/// Describes a failure in one line: its kind, and what NCCL has recorded last.
fn failure(what: &str) -> impl Fn(result::NcclError) -> Error {
    let first_line = |text: *const c_char| {
        // SAFETY: NCCL returns texts that end with a zero and that it keeps.
        let text = (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) });
        text.and_then(|text| text.to_string_lossy().lines().next().map(str::to_string)).unwrap_or_default()
    };
    move |error| {
        // SAFETY: both take any code and no communicator.
        let texts = unsafe { [sys::ncclGetErrorString(error.0), sys::ncclGetLastError(null_mut())] };
        let [kind, last] = texts.map(first_line);
        let last = if last.is_empty() { last } else { format!(": {last}") };
        Error::Msg(format!("NCCL: {what}: {kind}{last}"))
    }
}

/// Returns a new identity of a communicator, for [`Communicator::new`] on every process.
pub(crate) fn unique_id() -> Result<Vec<u8>> {
    let id = result::get_uniqueid().map_err(failure("cannot start"))?;
    Ok(id.internal.map(|byte| byte as u8).to_vec())
}

impl Communicator {
    /// Connects the GPUs of `size` processes.
    ///
    /// Each process makes this call with the same `id` and its own rank.
    ///
    /// # Errors
    /// Fails if NCCL finds no way from one GPU to the other.
    pub fn new(driver: &Arc<Driver>, id: &[u8], rank: usize, size: usize) -> Result<Self> {
        let mut internal = [0; 128];
        if id.len() != internal.len() {
            return Err(Error::Msg(format!("NCCL: found an id of {} bytes, expected 128", id.len())));
        }
        internal.iter_mut().zip(id).for_each(|(to, &byte)| *to = byte as _);
        let [rank, size] = [rank, size].map(|number| number as c_int);
        // NCCL takes the GPU that is current on this thread.
        driver.stream()?;
        let mut handle = null_mut();
        // SAFETY: the handle is there to be written.
        unsafe { result::comm_init_rank(&mut handle, size, sys::ncclUniqueId { internal }, rank) }
            .map_err(failure("cannot connect the GPUs"))?;
        Ok(Self { handle, driver: driver.clone(), size })
    }

    fn stream(&self) -> Result<sys::cudaStream_t> {
        Ok(self.driver.stream()?.cast())
    }

    /// Sends `each` elements to each process, and receives as many from each, in the order of the ranks.
    ///
    /// # Safety
    /// Both arrays have `each` elements per process; those of `from` have values, and those of `to` are the caller's to
    /// write.
    pub unsafe fn all_to_all(&self, from: Pointer<f32>, to: Pointer<f32>, each: usize) -> Result<()> {
        let stream = self.stream()?;
        let kind = sys::ncclDataType_t::ncclFloat32;
        let at = |array: Pointer<f32>, rank: c_int| array.offset(rank as usize * each).address();
        result::group_start().map_err(failure("cannot begin a message"))?;
        for rank in 0..self.size {
            let (from, to) = (at(from, rank) as *const c_void, at(to, rank) as *mut c_void);
            // SAFETY: the caller's promise.
            unsafe { result::send(from, each, kind, rank, self.handle, stream) }
                .map_err(failure("cannot send"))?;
            // SAFETY: the caller's promise.
            unsafe { result::recv(to, each, kind, rank, self.handle, stream) }
                .map_err(failure("cannot receive"))?;
        }
        result::group_end().map_err(failure("cannot send a message"))?;
        Ok(())
    }

    /// Receives the `each` elements that each process sends to all, in the order of the ranks.
    ///
    /// # Safety
    /// The elements at `own` have values, and there are `each` per process at `all`, which are the caller's to write.
    pub unsafe fn all_gather(&self, own: Pointer<f32>, all: Pointer<f32>, each: usize) -> Result<()> {
        let stream = self.stream()?;
        let kind = sys::ncclDataType_t::ncclFloat32;
        let (own, all) = (own.address() as *const c_void, all.address() as *mut c_void);
        // SAFETY: the caller's promise.
        unsafe { result::all_gather(own, all, each, kind, self.handle, stream) }
            .map_err(failure("cannot gather"))?;
        Ok(())
    }

    /// Waits for everything in the stream of the GPU.
    ///
    /// # Errors
    /// Fails if NCCL finds that another GPU cannot be reached. A message from there may never arrive.
    pub fn wait(&self) -> Result<()> {
        while !self.driver.is_idle()? {
            let mut state = sys::ncclResult_t::ncclSuccess;
            // SAFETY: the communicator exists, and the state is there to be written.
            let asked = unsafe { sys::ncclCommGetAsyncError(self.handle, &mut state) };
            asked.result().and(state.result()).map_err(failure("lost another GPU"))?;
            yield_now();
        }
        Ok(())
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // SAFETY: the communicator exists. The others may have ended, so nothing waits for them.
        let _ = unsafe { result::comm_abort(self.handle) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_with_its_reason() {
        // No process has a rank below 0, and without a GPU NCCL says that first.
        let mut handle = null_mut();
        // SAFETY: the handle is there to be written, and a rank below 0 connects nothing.
        let result =
            unsafe { sys::ncclCommInitRank(&mut handle, 1, sys::ncclUniqueId { internal: [0; 128] }, -1) };
        let error = result.result().map_err(failure("cannot connect")).err().unwrap().to_string();
        assert!(error.starts_with("NCCL: cannot connect: ") && error.lines().count() == 1, "{error}");
        assert_eq!(unique_id().unwrap().len(), 128);
    }
}
