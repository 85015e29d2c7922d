//! The memory that a training run needs, compared with the free memory.

use anyhow::{Result, ensure};
use std::fs::read_to_string;

/// Checks that training on the CPU fits into memory. The optimizer keeps `moments` values per parameter.
///
/// The estimate is a lower bound, so no training run that fits is refused. A step needs room for parameters, moments,
/// activations and the gradients of activations, and a checkpoint needs room for parameters and moments once more.
pub(super) fn check(parameters: u64, moments: u64, activations: u64) -> Result<()> {
    let state = (1 + moments) as f64 * parameters as f64;
    let needed = 4.0 * f64::max(state + 2.0 * activations as f64, 2.0 * state);
    // Do nothing if the system can't report its memory.
    let free = free().unwrap_or(f64::INFINITY);
    ensure!(
        needed <= free,
        "{parameters} parameters and {activations} activations per step need at least {:.2} GB, but at most {:.2} GB of \
         memory are free: choose a smaller model or batch",
        needed / 1e9,
        free.max(0.0) / 1e9
    );
    Ok(())
}

/// The bytes that this process can still take; `None` if the system can't tell.
fn free() -> Option<f64> {
    [in_machine().or_else(installed), in_address_space()].into_iter().flatten().reduce(f64::min)
}

/// The free bytes of the machine and the process's control group.
fn in_machine() -> Option<f64> {
    let memory = read_to_string("/proc/meminfo").ok()?;
    let kilobytes = |name| field(&memory, name);
    let available = 1024.0 * (kilobytes("MemAvailable:")? + kilobytes("SwapFree:").unwrap_or(0.0));
    let group = |file: &str| read_to_string(format!("/sys/fs/cgroup/memory.{file}")).ok();
    let number = |file| group(file)?.trim().parse::<f64>().ok();
    // Cached file contents are dropped when a process needs the memory.
    let files = group("stat").map_or(0.0, |stat| {
        ["active_file", "inactive_file"].iter().filter_map(|name| field(&stat, name)).sum()
    });
    let in_group = number("max").map(|limit| limit - (number("current").unwrap_or(0.0) - files).max(0.0));
    Some(in_group.map_or(available, |in_group| in_group.min(available)))
}

/// The bytes of the machine, on macOS, which does not tell how many are free.
fn installed() -> Option<f64> {
    #[cfg(target_os = "macos")]
    {
        let (mut bytes, mut size) = (0_u64, size_of::<u64>());
        // SAFETY: the name ends with a zero byte, and `bytes` has room for `size` bytes.
        let failed = unsafe {
            let value = (&raw mut bytes).cast();
            libc::sysctlbyname(c"hw.memsize".as_ptr(), value, &raw mut size, std::ptr::null_mut(), 0)
        };
        (failed == 0).then_some(bytes as f64)
    }
    #[cfg(not(target_os = "macos"))]
    None
}

/// What the limit of the address space (`ulimit -v`) leaves.
fn in_address_space() -> Option<f64> {
    #[cfg(target_os = "linux")]
    {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: it writes to `limit` only.
        let failed = unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) };
        let is_limited = failed == 0 && limit.rlim_cur != libc::RLIM_INFINITY;
        let taken = field(&read_to_string("/proc/self/status").ok()?, "VmSize:")?;
        is_limited.then_some(limit.rlim_cur as f64 - 1024.0 * taken)
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// The number after `name`, the first word of a line of `text`.
fn field(text: &str, name: &str) -> Option<f64> {
    let mut lines = text.lines().map(str::split_whitespace);
    lines.find_map(|mut words| words.next().filter(|&word| word == name).and(words.next()))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_beyond_memory_are_refused_with_the_figures() {
        assert!(check(1000, 2, 1000).is_ok());
        let error = check(1 << 50, 2, 7).map_err(|error| error.to_string());
        if cfg!(target_os = "linux") {
            let error = error.unwrap_err();
            assert!(error.contains("1125899906842624 parameters and 7 activations"), "{error}");
            assert!(check(7, 2, u64::MAX).is_err());
        }
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "inactive_file 3\nfile 5\nSwapFree:  7 kB\n";
        assert_eq!(
            ["file", "SwapFree:", "active_file"].map(|name| field(text, name)),
            [Some(5.0), Some(7.0), None]
        );
    }
}
