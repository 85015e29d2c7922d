//! Training on several processes, which a launcher such as `mpirun` has started.

use super::Outcome;
use super::recipe::{PATHS, Recipe};
use crate::processes::{Launch, Processes};
use crate::train::checksum;
use anyhow::{Result, bail};
use candle_core::Device;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether process 0 speaks for this one.
static IS_SILENT: AtomicBool = AtomicBool::new(false);

/// Whether process 0 speaks for this one.
pub(super) fn is_silent() -> bool {
    IS_SILENT.load(Ordering::Relaxed)
}

/// Silences every process but the first.
pub(super) fn silence_others() {
    if Launch::from_environment().is_none_or(|launch| launch.rank == 0) {
        return;
    }
    IS_SILENT.store(true, Ordering::Relaxed);
    #[cfg(unix)]
    if let Ok(nowhere) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
        use std::os::fd::AsRawFd;
        // SAFETY: both descriptors are open, and standard output stays open.
        unsafe { libc::dup2(nowhere.as_raw_fd(), libc::STDOUT_FILENO) };
    }
}

/// The number of threads of a process, if several share the machine; none to use all cores.
pub(super) fn default_threads() -> Option<usize> {
    let launch = Launch::from_environment()?;
    let cores = candle_core::utils::get_num_threads();
    // The launcher may have bound the process to some cores, which it may have to share.
    let allowed = std::thread::available_parallelism().map_or(cores, usize::from);
    Some(allowed.min(cores / launch.local_size.unwrap_or(1)).max(1))
}

/// The number of this process among those on this machine.
pub(super) fn local_rank() -> usize {
    Launch::from_environment().and_then(|launch| launch.local_rank).unwrap_or(0)
}

/// Calls `work` with the processes that the launcher has started. If it fails on one of them, all end.
#[cfg(feature = "mpi")]
pub(super) fn on_processes(
    work: impl FnOnce(Option<Arc<dyn Processes>>) -> Result<Outcome>,
) -> Result<Outcome> {
    use crate::processes::mpi::Session;
    use std::io::Write;
    use std::thread::sleep;
    use std::time::Duration;
    let Some(launch) = Launch::from_environment() else { return work(None) };
    let session = Session::start()?;
    let processes = session.processes();
    anyhow::ensure!(
        processes.size() == launch.size,
        "MPI: found {} of {} processes: use the launcher of the MPI library that the program was built with",
        processes.size(),
        launch.size
    );
    let rank = processes.rank();
    let error = match work(Some(processes)) {
        Ok(outcome) => return Ok(outcome),
        Err(error) => error,
    };
    let line = super::error_line(&error);
    if rank == 0 {
        super::complain(&line);
    } else {
        // If several processes fail, the first of them reports it, and ends the others meanwhile.
        sleep(Duration::from_millis(1000 + 100 * rank.min(50) as u64));
        let line = line.replacen("error: ", &format!("error: process {rank}: "), 1);
        let _ = writeln!(std::io::stderr(), "{line}");
    }
    session.abort(super::error_code(&error))
}

/// Calls `work` on the only process.
#[cfg(not(feature = "mpi"))]
pub(super) fn on_processes(
    work: impl FnOnce(Option<Arc<dyn Processes>>) -> Result<Outcome>,
) -> Result<Outcome> {
    let size = Launch::from_environment().map_or(1, |launch| launch.size);
    anyhow::ensure!(
        size == 1,
        "found {size} processes, expected one: build the program with the feature `mpi` to train one model on all of them"
    );
    work(None)
}

/// Checks that all processes run the same training: the same program, kind of device, settings, and `facts` about data and
/// model.
///
/// The paths of data may differ.
pub(super) fn check_same<R: Recipe>(
    processes: &dyn Processes,
    settings: &R,
    device: &Device,
    run: &Value,
    facts: &Map<String, Value>,
) -> Result<()> {
    let settings = serde_json::to_value(settings)?;
    let settings = settings.as_object().into_iter().flatten();
    let settings = settings
        .filter(|(name, _)| !PATHS.contains(&name.as_str()))
        .map(|(name, value)| (format!("--{}", name.replace('_', "-")), value.clone()));
    let program = [
        ("program", json!(R::NAME)),
        ("version", json!(env!("CARGO_PKG_VERSION"))),
        ("device", json!(if device.is_cpu() { "cpu" } else { "gpu" })),
        ("run to resume", run.clone()),
    ];
    let program = program.map(|(name, value)| (name.to_string(), value));
    let facts = facts.iter().map(|(name, value)| (name.replace('_', " "), value.clone()));
    // Causes before effects: the first difference is the one to report.
    let mut own: Map<String, Value> = program.into_iter().chain(settings).chain(facts).collect();
    for value in own.values_mut() {
        let text = value.to_string();
        if text.len() > 100 {
            *value = json!(checksum(text.as_bytes()));
        }
    }
    let all = processes.gather(&serde_json::to_vec(&own)?)?;
    let all: Vec<Map<String, Value>> =
        all.iter().map(|bytes| serde_json::from_slice(bytes)).collect::<Result<_, _>>()?;
    for (rank, other) in all.iter().enumerate().skip(1) {
        let names = all[0].keys().chain(other.keys());
        let differing = names.into_iter().find(|&name| all[0].get(name) != other.get(name));
        let Some(name) = differing else { continue };
        let [expected, found] = [&all[0], other].map(|of| of.get(name).unwrap_or(&Value::Null));
        match name.strip_suffix(" fingerprint") {
            Some(data) => bail!(
                "the {data} of process {rank} differs from that of process 0: give all processes the same files"
            ),
            None => bail!(
                "process {rank} differs from process 0: found {name} {found}, expected {expected}: start all processes with \
                 the same program and options"
            ),
        }
    }
    Ok(())
}
