//! How gradients are packed into a bucket and summed, in main memory or in the memory of a GPU.

use crate::device::device_name;
use crate::kernels::cuda::{Buffer, EXCHANGE, Grid, Pointer};
#[cfg(feature = "nccl")]
use crate::kernels::cuda::{Device::Driver, driver, nccl::Communicator, nccl::unique_id};
use crate::ops::gpu::Gpu;
use crate::ops::{RowGradients, RowNumbers, host};
use crate::processes::Processes;
use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor, Var};
use std::sync::Arc;

/// Sums buckets over all processes.
pub(super) struct Buckets {
    pub processes: Arc<dyn Processes>,
    /// Where the parameters are.
    device: Device,
    /// What packs the buckets of parameters on a GPU.
    gpu: Option<Gpu>,
    /// How they travel from GPU to GPU; through main memory if there is none.
    #[cfg(feature = "nccl")]
    communicator: Option<Communicator>,
}

impl Buckets {
    /// Every process calls this, with the same parameters.
    pub fn new(processes: Arc<dyn Processes>, parameters: &[(&str, &Var)]) -> Result<Self> {
        let device = parameters.first().map_or(Device::Cpu, |(_, var)| var.device().clone());
        let gpu = Gpu::on(&device);
        for (name, var) in parameters {
            ensure!(
                var.dtype() == DType::F32
                    && var.device().same_device(&device)
                    && (device.is_cpu() || gpu.is_some()),
                "several processes: {name} is {} on {}, expected all parameters to be f32 on the CPU or on one NVIDIA GPU",
                var.dtype().as_str(),
                device_name(var.device())
            );
        }
        Ok(Self {
            #[cfg(feature = "nccl")]
            communicator: match gpu.as_deref() {
                Some(Driver(driver)) => Some(connect(driver, &*processes)?),
                _ => None,
            },
            processes,
            device,
            gpu,
        })
    }

    /// Returns the sums over all processes of a bucket, and the number of bytes that this process has sent.
    ///
    /// The bucket holds `factor` times each of `parts`, with its number of elements, one after the other, and may end with
    /// zeros. A part that is `None` is zero.
    pub fn sum(
        &self,
        parts: &[(Option<&Tensor>, usize)],
        factor: f32,
        in_background: bool,
    ) -> Result<(Tensor, u64)> {
        let size = self.processes.size();
        let elements: usize = parts.iter().map(|part| part.1).sum();
        let len = elements.next_multiple_of(size);
        let bytes = 2 * (size - 1) * (len / size) * size_of::<f32>();
        let sums = match &self.gpu {
            Some(gpu) => self.sum_on(gpu, parts, len, factor, in_background)?,
            None => {
                let mut values = pack(parts, len, factor)?;
                self.processes.sum_f32(&mut values, in_background)?;
                Tensor::from_vec(values, len, &Device::Cpu)?
            }
        };
        Ok((sums, bytes as u64))
    }

    fn sum_on(
        &self,
        gpu: &Gpu,
        parts: &[(Option<&Tensor>, usize)],
        len: usize,
        factor: f32,
        in_background: bool,
    ) -> Result<Tensor> {
        let bucket = pack_on(gpu, parts, len, factor)?;
        #[cfg(feature = "nccl")]
        if let Some(communicator) = &self.communicator {
            let each = len / self.processes.size();
            let (received, sums) = (gpu.alloc(len)?, gpu.alloc(each)?);
            // SAFETY: the bucket and what is received have a part of `each` elements per process.
            unsafe {
                communicator.all_to_all(bucket.pointer(), received.pointer(), each)?;
                add_parts(gpu, received.pointer(), sums.pointer(), each, self.processes.size())?;
                communicator.all_gather(sums.pointer(), bucket.pointer(), each)?;
            }
            return Ok(gpu.tensor(bucket, len));
        }
        // SAFETY: the bucket has `len` elements, which have values.
        let mut values = unsafe { gpu.download(bucket.pointer(), len)? };
        self.processes.sum_f32(&mut values, in_background)?;
        Ok(gpu.tensor(gpu.upload(&values)?, len))
    }

    /// Waits for sums that travel from GPU to GPU.
    ///
    /// # Errors
    /// Fails if a process cannot be reached.
    pub fn wait(&self) -> Result<()> {
        #[cfg(feature = "nccl")]
        if let Some(communicator) = &self.communicator {
            communicator.wait()?;
        }
        Ok(())
    }

    /// Moves gradients of rows from main memory to the parameters' device.
    pub fn receive(&self, gradients: RowGradients) -> Result<RowGradients> {
        match gradients.rows {
            RowNumbers::Host(rows) if self.gpu.is_some() => Ok(RowGradients {
                rows: RowNumbers::Device(Tensor::new(rows, &self.device)?),
                values: gradients.values.to_device(&self.device)?,
            }),
            _ => Ok(gradients),
        }
    }
}

/// Connects the GPUs of all processes.
///
/// # Errors
/// Fails if two processes have the same GPU.
#[cfg(feature = "nccl")]
fn connect(driver: &Arc<driver::Driver>, processes: &dyn Processes) -> Result<Communicator> {
    let gpus = processes.gather(&driver.uuid()?)?;
    for (rank, gpu) in gpus.iter().enumerate() {
        if let Some(before) = gpus[..rank].iter().position(|before| before == gpu) {
            anyhow::bail!("processes {before} and {rank} have the same GPU: start one process per GPU");
        }
    }
    let id = if processes.rank() == 0 { unique_id()? } else { vec![] };
    let id = processes.broadcast(id)?;
    Ok(Communicator::new(driver, &id, processes.rank(), processes.size())?)
}

/// Packs a bucket of `len` elements in main memory.
fn pack(parts: &[(Option<&Tensor>, usize)], len: usize, factor: f32) -> Result<Vec<f32>> {
    let mut values = Vec::with_capacity(len);
    for (part, elements) in parts {
        match part {
            Some(part) => host::read::<f32, _>(&part.contiguous()?, |part| {
                values.extend(part.iter().map(|value| value * factor));
                Ok(())
            })?,
            None => values.resize(values.len() + elements, 0.0),
        }
    }
    values.resize(len, 0.0);
    Ok(values)
}

/// Packs a bucket of `len` elements in the memory of a GPU.
fn pack_on(gpu: &Gpu, parts: &[(Option<&Tensor>, usize)], len: usize, factor: f32) -> Result<Buffer<f32>> {
    /// Elements that a block of threads copies, unless there are very many.
    const ELEMENTS: usize = 1024;
    let bucket = gpu.alloc(len)?;
    let tensors: Vec<Option<Tensor>> =
        parts.iter().map(|(part, _)| part.map(Tensor::contiguous).transpose()).collect::<Result<_, _>>()?;
    let (mut table, mut start, mut longest) = (vec![], 0, 0);
    let mut add = |from: Pointer<f32>, elements: usize| {
        table.extend([from.address(), start as u64, elements as u64]);
        (start, longest) = (start + elements, longest.max(elements));
        start
    };
    let mut end = 0;
    for (tensor, &(_, elements)) in tensors.iter().zip(parts) {
        end = add(tensor.as_ref().map_or(Ok(Pointer::null()), |tensor| gpu.pointer(tensor))?, elements);
    }
    add(Pointer::null(), len - end);
    let table = gpu.upload(&table)?;
    let grid = Grid {
        blocks: [longest.div_ceil(ELEMENTS).min(256), parts.len() + 1, 1],
        threads: [256, 1, 1],
        shared: 0,
    };
    let args = [table.pointer().into(), bucket.pointer().into(), factor.into()];
    // SAFETY: these are the kernel's parameters; the parts and what follows them fill the bucket.
    unsafe { gpu.launch(EXCHANGE.kernel::<f32>("pack"), grid, &args)? };
    Ok(bucket)
}

/// Adds `count` arrays of `each` elements, which follow one another, in their order.
///
/// # Safety
/// They have values, and `sums` is the caller's to write.
#[cfg_attr(not(feature = "nccl"), allow(unused))]
unsafe fn add_parts(
    gpu: &Gpu,
    parts: Pointer<f32>,
    sums: Pointer<f32>,
    each: usize,
    count: usize,
) -> Result<()> {
    let args = [parts.into(), sums.into(), (each as i64).into(), (count as i32).into()];
    // SAFETY: these are the kernel's parameters; the rest is the caller's promise.
    unsafe { gpu.launch(EXCHANGE.kernel::<f32>("add_parts"), Grid::elements(each, 1), &args)? };
    Ok(())
}

#[cfg(all(test, feature = "cuda-emulator"))]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_bucket_add_up_in_the_order_of_the_processes() -> Result<()> {
        let gpu = Gpu::on(&Device::Cpu).unwrap();
        let parts = [1e8f32, 1.0, 2.0, -1e8, 3.0, 4.0, 1.0, 5.0, 6.0];
        let (parts, sums) = (gpu.upload(&parts)?, gpu.alloc::<f32>(3)?);
        // SAFETY: there are three parts of three elements.
        unsafe { add_parts(&gpu, parts.pointer(), sums.pointer(), 3, 3)? };
        // SAFETY: the kernel has written the sums.
        assert_eq!(unsafe { gpu.download(sums.pointer(), 3)? }, [1.0, 9.0, 12.0]);
        Ok(())
    }

    #[test]
    fn a_bucket_holds_scaled_parts_one_after_the_other() -> Result<()> {
        let gpu = Gpu::on(&Device::Cpu).unwrap();
        let columns = Tensor::new(&[[1f32, 2.0, 3.0], [4.0, 5.0, 6.0]], &Device::Cpu)?.t()?;
        let long = Tensor::ones(3000, DType::F32, &Device::Cpu)?;
        let parts = [(Some(&columns), 6), (None, 2), (Some(&long), 3000)];
        let bucket = pack_on(&gpu, &parts, 3011, 0.5)?;
        // SAFETY: the bucket has this many elements.
        let found = unsafe { gpu.download(bucket.pointer(), 3011)? };
        assert_eq!(found, pack(&parts, 3011, 0.5)?);
        assert_eq!(found[..9], [0.5, 2.0, 1.0, 2.5, 1.5, 3.0, 0.0, 0.0, 0.5]);
        assert_eq!(found[3007..], [0.5, 0.0, 0.0, 0.0]);
        Ok(())
    }
}
