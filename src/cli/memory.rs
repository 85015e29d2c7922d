//! The memory that a training needs, compared with what is free.

use anyhow::{Result, ensure};
use std::fs::read_to_string;

/// Checks that a training fits into memory.
///
/// Each parameter needs room for itself, its gradient and two moments, each activation for itself and its gradient.
pub(super) fn check(parameters: u64, activations: u64) -> Result<()> {
    let needed = 4.0 * (4.0 * parameters as f64 + 2.0 * activations as f64);
    // Memory that the system can't report is not checked.
    let free = free().unwrap_or(f64::INFINITY);
    ensure!(
        needed <= free,
        "{parameters} parameters and {activations} activations per step need about {:.1} GB, but {:.1} GB of memory are \
         free: choose a smaller model or batch",
        needed / 1e9,
        free / 1e9
    );
    Ok(())
}

/// The bytes of memory that the machine and the process's control group have left; none if the system can't tell.
fn free() -> Option<f64> {
    let memory = read_to_string("/proc/meminfo").ok()?;
    let available = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let available = 1024.0 * available.trim().trim_end_matches("kB").trim().parse::<f64>().ok()?;
    let group =
        |file: &str| read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?.trim().parse::<f64>().ok();
    let in_group = group("memory.max").map(|limit| limit - group("memory.current").unwrap_or(0.0));
    Some(in_group.map_or(available, |in_group| in_group.min(available)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_beyond_memory_are_refused_with_the_figures() {
        assert!(check(1000, 1000).is_ok());
        let error = check(1 << 50, 7).map_err(|error| error.to_string());
        if cfg!(target_os = "linux") {
            let error = error.unwrap_err();
            assert!(error.contains("1125899906842624 parameters and 7 activations"), "{error}");
        }
    }
}
