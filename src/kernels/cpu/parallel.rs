//! How the operations spread their work over threads.
//!
//! Everything here runs on the rayon pool of the thread that asks: the global one, or one that a program runs in
//! through `ThreadPool::install`, which saves the way from the main thread to the pool at every operation. Candle's
//! own pool is the wrong one: it waits at each operation until every thread has answered, which on a machine that
//! does other things too takes a hundred times longer than the work. As two pools would fight for the cores, a
//! program should keep candle's at one thread with `CANDLE_NUM_THREADS=1`.
//!
//! Work is cut by the problem's size, never by the number of threads, and whoever adds partial sums adds them in
//! the order of the chunks: results are the same to the bit for any number of threads.

use super::real::Real;
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

/// Calls `work(i)` once for each `i < chunks`, spread over the pool.
pub(crate) fn for_each_chunk(chunks: usize, work: impl Fn(usize) + Sync) {
    match chunks {
        0 | 1 => (0..chunks).for_each(work),
        _ => (0..chunks).into_par_iter().with_max_len(1).for_each(&work),
    }
}

/// Calls `work(i, chunk)` on consecutive pieces of `data`, `size` elements each (the last may be shorter).
pub(crate) fn for_each_piece<T: Send + Sync>(
    data: &mut [T],
    size: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    let (len, size) = (data.len(), size.max(1));
    let data = Shared::new(data);
    for_each_chunk(len.div_ceil(size), |i| {
        // SAFETY: the ranges of different `i` do not overlap, and each `i` is visited once.
        work(i, unsafe { data.slice(i * size..len.min((i + 1) * size)) })
    });
}

/// A new vector of `len` numbers, of which `work(i, piece)` writes consecutive pieces as in `for_each_piece`.
///
/// # Safety
/// `work` must write every element of its piece before it reads it.
pub(crate) unsafe fn build<T: Real>(
    len: usize,
    size: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) -> Vec<T> {
    // SAFETY: the pieces, all of which `work` writes, make up the whole.
    let mut data = unsafe { unwritten(len) };
    for_each_piece(&mut data, size, work);
    data
}

/// `len` numbers, whatever they may be: memory that is not cleared first.
///
/// # Safety
/// Each must be written before it is read.
#[allow(clippy::uninit_vec)]
pub(crate) unsafe fn unwritten<T: Real>(len: usize) -> Vec<T> {
    let mut data = Vec::with_capacity(len);
    // SAFETY: the memory is there, any bits make a number, and the caller reads none before it is written.
    unsafe { data.set_len(len) };
    data
}

/// A mutable slice of which several threads write different parts.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    _borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `slice`, whose caller keeps ranges apart.
unsafe impl<T: Send + Sync> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(data: &'a mut [T]) -> Self {
        Self { start: data.as_mut_ptr(), len: data.len(), _borrow: PhantomData }
    }

    /// The part `range` of the slice.
    ///
    /// # Safety
    /// No two ranges that are alive at the same time may overlap.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds; the caller keeps ranges apart.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::{self, Conv2dConfig, Epilogue, Pool2dConfig};
    use crate::rng;
    use candle_core::{DType, Device, Result, Tensor, Var};

    #[test]
    fn one_thread_and_many_give_the_same_bits() -> Result<()> {
        let rng = &mut rng::stream(1, "threads");
        let mut normal = |dims: &[usize]| -> Result<Var> {
            use rand::Rng;
            let value = |_| rng.sample::<f32, _>(rand_distr::StandardNormal);
            let values = (0..dims.iter().product()).map(value).collect::<Vec<_>>();
            Var::from_tensor(&Tensor::from_vec(values, dims, &Device::Cpu)?)
        };
        let vars = [
            normal(&[50, 3, 20, 20])?,
            normal(&[8, 3, 3, 3])?,
            normal(&[8])?,
            normal(&[100, 800])?,
            normal(&[8, 8, 3, 3])?,
        ];
        let targets = Tensor::arange(0u32, 50, &Device::Cpu)?;
        let step = || -> Result<Vec<Vec<u32>>> {
            let padded = Conv2dConfig { padding: (1, 1), ..Default::default() };
            let xs = ops::relu(&ops::conv2d(&vars[0], &vars[1], Some(&vars[2]), padded)?)?;
            let xs = ops::conv2d(&xs, &vars[4], None, padded)?;
            let xs = ops::batch_norm(
                &xs,
                &vars[2],
                &vars[2],
                1e-5,
                None,
                Epilogue { add: Some(&xs), relu: true },
            )?
            .0;
            let xs = ops::max_pool2d(&xs, Pool2dConfig::square(2))?.reshape((50, 800))?;
            let loss = ops::softmax_cross_entropy(&ops::linear(&xs, &vars[3], None)?, &targets, 0.)?;
            let grads = loss.backward()?;
            let bits = |tensor: &Tensor| -> Result<Vec<u32>> {
                let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
                Ok(values.into_iter().map(f32::to_bits).collect())
            };
            let grads = vars.iter().filter_map(|var| grads.get(var));
            std::iter::once(&loss).chain(grads).map(bits).collect()
        };
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.map_err(candle_core::Error::wrap)?.install(step)
        };
        assert!(on(1)? == on(3)?);
        Ok(())
    }
}
