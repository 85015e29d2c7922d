//! Training on several processes, which a launcher such as `mpirun` has started.

use super::Outcome;
use super::recipe::PATHS;
use crate::processes::{Launch, Processes};
use crate::train::checksum;
use anyhow::{Result, bail};
use candle_core::Device;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Whether process 0 speaks for this one.
static IS_SILENT: AtomicBool = AtomicBool::new(false);

/// Whether process 0 speaks for this one.
pub(super) fn is_silent() -> bool {
    IS_SILENT.load(Ordering::Relaxed)
}

/// The processes that this one trains with.
static PROCESSES: Mutex<Option<Arc<dyn Processes>>> = Mutex::new(None);

/// Ends this process and those that it trains with, with an exit code. The first of them to do so calls its `report`.
pub(super) fn end_all(report: impl FnOnce(), code: u8) -> ! {
    let processes = PROCESSES.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match processes {
        Some(processes) => processes.end_all(Box::new(report), code),
        None => {
            report();
            std::process::exit(code.into())
        }
    }
}

/// Shows the last line of the process with `show`; of a process that is otherwise silent, on standard error.
pub(super) fn report(line: &str, show: fn(&str)) {
    match is_silent() {
        true => drop(writeln!(std::io::stderr(), "{line}")),
        false => show(line),
    }
}

/// Returns whether `asks` is true on one of the processes.
pub(super) fn any(processes: Option<&Arc<dyn Processes>>, asks: bool) -> Result<bool> {
    match processes {
        Some(processes) => Ok(processes.gather(&[asks.into()])?.contains(&vec![1])),
        None => Ok(asks),
    }
}

/// The command that resumes the run, once it has a folder.
static RESUME: Mutex<Option<String>> = Mutex::new(None);

/// Returns process 0's command to resume the run. Any of the processes may have to name it.
pub(super) fn share_command(processes: Option<&Arc<dyn Processes>>, command: String) -> Result<String> {
    let Some(processes) = processes else { return Ok(command) };
    let command = String::from_utf8(processes.broadcast(command.into_bytes())?)?;
    *RESUME.lock().unwrap_or_else(PoisonError::into_inner) = Some(command.clone());
    Ok(command)
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

/// Calls `work` with the processes that the launcher has started.
///
/// All end if `work` fails on one of them, or if one does not answer although `is_asked` reports a request to stop.
#[cfg(feature = "mpi")]
pub(super) fn on_processes(
    is_asked: fn() -> bool,
    work: impl FnOnce(Option<Arc<dyn Processes>>) -> Result<Outcome>,
) -> Result<Outcome> {
    use crate::processes::mpi::Session;
    let Some(launch) = Launch::from_environment() else { return work(None) };
    let mut session = Session::start()?;
    let processes = session.processes();
    anyhow::ensure!(
        processes.size() == launch.size,
        "MPI: found {} of {} processes: use the launcher of the MPI library that the program was built with",
        processes.size(),
        launch.size
    );
    let set = |processes| *PROCESSES.lock().unwrap_or_else(PoisonError::into_inner) = processes;
    set(Some(processes.clone()));
    session.watch(is_asked, |rank| end_all(|| report(&lost(rank), super::complain), 1));
    let rank = processes.rank();
    // Process 0 draws pictures when the others are done.
    let outcome = work(Some(processes.clone())).and_then(|outcome| processes.barrier().map(|()| outcome));
    let error = match outcome {
        Ok(outcome) => {
            set(None);
            return Ok(outcome);
        }
        Err(error) => error,
    };
    let line = match (super::error_line(&error), rank) {
        (line, 0) => line,
        (line, _) => line.replacen("error: ", &format!("error: process {rank}: "), 1),
    };
    end_all(|| report(&line, super::complain), super::error_code(&error))
}

/// The error when a process no longer answers.
#[cfg(feature = "mpi")]
fn lost(rank: usize) -> String {
    let command = RESUME.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let how = command.map(|command| format!("; resume from the last checkpoint with: {command}"));
    format!("error: process {rank} no longer answers{}", how.unwrap_or_default())
}

/// Calls `work` on the only process.
#[cfg(not(feature = "mpi"))]
pub(super) fn on_processes(
    _: fn() -> bool,
    work: impl FnOnce(Option<Arc<dyn Processes>>) -> Result<Outcome>,
) -> Result<Outcome> {
    let size = Launch::from_environment().map_or(1, |launch| launch.size);
    anyhow::ensure!(
        size == 1,
        "found {size} processes, expected one: build the program with the feature `mpi` to train one model on all of them"
    );
    work(None)
}

/// Checks that all processes run the same training.
///
/// They need the same program, kind of device and settings, and the same run to resume.
///
/// The paths of data may differ.
pub(super) fn check_same_program(
    processes: &dyn Processes,
    (name, settings): (&str, &Map<String, Value>),
    device: &Device,
    run: &Value,
) -> Result<()> {
    let settings = settings
        .iter()
        .filter(|(name, _)| !PATHS.contains(&name.as_str()))
        .map(|(name, value)| (format!("--{}", name.replace('_', "-")), value.clone()));
    let program = [
        ("program", json!(name)),
        ("version", json!(env!("CARGO_PKG_VERSION"))),
        // Two builds of one version may differ.
        ("build", json!(std::env::current_exe().and_then(std::fs::read).ok().map(|file| checksum(&file)))),
        ("device", json!(if device.is_cpu() { "cpu" } else { "gpu" })),
        ("run to resume", run.clone()),
    ];
    let program = program.map(|(name, value)| (name.to_string(), value));
    check_same(processes, program.into_iter().chain(settings))
}

/// Checks that all processes have the same `facts` about data and model.
pub(super) fn check_same_facts(processes: &dyn Processes, facts: &Map<String, Value>) -> Result<()> {
    check_same(processes, facts.iter().map(|(name, value)| (name.replace('_', " "), value.clone())))
}

/// Checks that all processes pass the same values. The first difference is reported, so causes come before effects.
fn check_same(processes: &dyn Processes, own: impl Iterator<Item = (String, Value)>) -> Result<()> {
    let mut own: Map<String, Value> = own.collect();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processes::threads;

    #[test]
    fn all_processes_learn_what_one_asks_and_what_the_first_says() {
        for asks in [None, Some(2)] {
            let ask = |processes: Arc<dyn Processes>| {
                let (rank, processes) = (processes.rank(), Some(&processes));
                let command = share_command(processes, format!("command of {rank}")).unwrap();
                (any(processes, asks == Some(rank)).unwrap(), command)
            };
            std::thread::scope(|scope| {
                let running: Vec<_> =
                    threads(3).into_iter().map(|processes| scope.spawn(move || ask(processes))).collect();
                for thread in running {
                    assert_eq!(thread.join().unwrap(), (asks.is_some(), "command of 0".to_string()));
                }
            });
        }
    }
}
