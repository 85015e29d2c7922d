//! The device that a program computes on.
//!
//! [`models`](crate::models) starts with an example.

use anyhow::{Context, Result, anyhow, bail};
use candle_core::{Device, DeviceLocation};
use std::fmt;
use std::str::FromStr;

/// The choice of a device, written `auto`, `cpu`, `cuda`, `cuda:N`, `metal` or `metal:N`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The device that trains the model faster; see [`open`](Self::open).
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of this index.
    Cuda(usize),
    /// The Metal device of this index.
    Metal(usize),
}

impl DeviceChoice {
    /// Opens the device.
    ///
    /// `Auto` decides here, and nowhere else. It is the first CUDA device if `prefers_gpu` and if this build and this
    /// machine have one, and otherwise the CPU. `prefers_gpu` tells whether every operation of the model has CUDA
    /// kernels of this project, and a step is large enough for a GPU to be faster. Candle's own operations train these
    /// models more slowly on a GPU than this project's do on the CPU.
    ///
    /// # Errors
    /// Fails if this build does not support the device (the message names the feature it needs), or the machine has
    /// none.
    pub fn open(self, prefers_gpu: bool) -> Result<Device> {
        match self {
            Self::Auto => {
                if cfg!(feature = "cuda")
                    && prefers_gpu
                    && let Ok(device) = Device::new_cuda(0)
                {
                    return Ok(device);
                }
                Ok(Device::Cpu)
            }
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(_) if !cfg!(feature = "cuda") => {
                bail!("device {self}: this build does not support CUDA: build with `--features cuda`")
            }
            Self::Metal(_) if !cfg!(feature = "metal") => {
                bail!("device {self}: this build does not support Metal: build with `--features metal`")
            }
            Self::Cuda(ordinal) => {
                Device::new_cuda(ordinal).map_err(|error| cannot_open(self, ordinal, &error))
            }
            Self::Metal(ordinal) => {
                Device::new_metal(ordinal).with_context(|| format!("device {self}: cannot open it"))
            }
        }
    }
}

/// Explains why a CUDA device does not open.
fn cannot_open(choice: DeviceChoice, index: usize, error: &candle_core::Error) -> anyhow::Error {
    let reason = error.to_string();
    let reason = reason.lines().next().unwrap_or_default();
    anyhow!("device {choice}: {}", no_device(index, cuda_devices(), reason))
}

/// Returns the number of CUDA devices, or the driver's error.
fn cuda_devices() -> Result<usize, String> {
    #[cfg(feature = "cuda")]
    let count = {
        use candle_core::cuda_backend::cudarc::driver::result;
        let count = result::init().and_then(|()| result::device::get_count());
        let text =
            |error: result::DriverError| error.error_string().map(|text| text.to_string_lossy().into_owned());
        count.map(|count| count.max(0) as usize).map_err(|error| text(error).unwrap_or_default())
    };
    #[cfg(not(feature = "cuda"))]
    let count = Ok(0);
    count
}

/// Explains why the CUDA device of this index cannot be opened.
///
/// `devices` is the number of devices, or the driver's error instead.
fn no_device(index: usize, devices: Result<usize, String>, reason: &str) -> String {
    match devices {
        Ok(0) => "found no CUDA device: is there a GPU, and is its driver loaded?".to_string(),
        Ok(1) if index > 0 => "found one CUDA device, expected cuda:0".to_string(),
        Ok(count) if index >= count => {
            format!("found {count} CUDA devices, expected one from cuda:0 to cuda:{}", count - 1)
        }
        Ok(_) => format!("cannot open it: {reason}"),
        Err(error) => format!("cannot ask the NVIDIA driver: {error}: install or update it"),
    }
}

impl DeviceChoice {
    /// Returns the choice of one of several processes on a machine, the one with this number among them.
    ///
    /// This is the GPU that comes this many after the chosen one, or from there on again after the last one. A launcher may
    /// show each process a GPU of its own only.
    pub fn of_process(self, local_rank: usize) -> Self {
        match self {
            Self::Cuda(first) => Self::Cuda(gpu_of_process(first, local_rank, cuda_devices().unwrap_or(0))),
            other => other,
        }
    }
}

/// Returns the index of the GPU of a process; all processes find that the `first` is missing if it is.
fn gpu_of_process(first: usize, local_rank: usize, devices: usize) -> usize {
    first + local_rank % devices.saturating_sub(first).max(1)
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, ordinal) = match text.split_once(':') {
            Some((kind, ordinal)) => (kind, ordinal.parse().ok()),
            None => (text, Some(0)),
        };
        match (kind, ordinal) {
            ("auto", Some(0)) => Ok(Self::Auto),
            ("cpu", Some(0)) => Ok(Self::Cpu),
            ("cuda", Some(ordinal)) => Ok(Self::Cuda(ordinal)),
            ("metal", Some(ordinal)) => Ok(Self::Metal(ordinal)),
            _ => Err("expected auto, cpu, cuda, cuda:N, metal or metal:N".to_string()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Auto => write!(f, "auto"),
            Self::Cpu => write!(f, "cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Self::Metal(ordinal) => write!(f, "metal:{ordinal}"),
        }
    }
}

/// The name of a device as [`DeviceChoice`] writes it.
pub fn device_name(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => DeviceChoice::Cpu,
        DeviceLocation::Cuda { gpu_id } => DeviceChoice::Cuda(gpu_id),
        DeviceLocation::Metal { gpu_id } => DeviceChoice::Metal(gpu_id),
    }
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_survive_formatting_and_parsing() {
        for text in ["auto", "cpu", "cuda:0", "cuda:3", "metal:1"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for text in ["gpu", "cuda:x", "cpu:1", ""] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_device_that_does_not_exist_is_compared_with_those_that_do() {
        assert!(no_device(0, Ok(0), "").contains("found no CUDA device"));
        assert!(no_device(1, Ok(1), "").contains("expected cuda:0"));
        assert!(no_device(7, Ok(2), "").contains("found 2 CUDA devices, expected one from cuda:0 to cuda:1"));
        assert!(
            no_device(0, Err("driver version is insufficient".into()), "").ends_with("install or update it")
        );
        assert!(no_device(0, Ok(1), "out of memory").ends_with("out of memory"));
    }

    #[test]
    fn processes_of_a_machine_take_its_gpus_in_turn() {
        let gpus = |first, devices| [0, 1, 2].map(|local_rank| gpu_of_process(first, local_rank, devices));
        assert_eq!([gpus(0, 4), gpus(2, 4), gpus(0, 1)], [[0, 1, 2], [2, 3, 2], [0, 0, 0]]);
        assert_eq!([gpus(0, 0), gpus(5, 4)], [[0, 0, 0], [5, 5, 5]]);
    }

    #[test]
    fn a_process_shares_the_cpu_with_others() {
        let choices = ["cpu", "auto"].map(|text| text.parse::<DeviceChoice>().unwrap());
        assert_eq!(choices.map(|choice| choice.of_process(1)), choices);
    }

    #[test]
    fn auto_takes_the_cpu_for_a_model_without_gpu_kernels() {
        assert_eq!(device_name(&DeviceChoice::Auto.open(false).unwrap()), "cpu");
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn an_unsupported_device_names_the_feature_it_needs() {
        let error = DeviceChoice::Cuda(0).open(true).unwrap_err().to_string();
        assert!(error.contains("--features cuda"), "{error}");
    }
}
