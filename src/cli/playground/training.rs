//! Training runs that the page starts, one at a time.

use super::super::process::STOP;
use super::super::record::Record;
use crate::train::Run;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Number of lines of output that are kept.
const LINES: usize = 20;
/// Maximum time for saving a checkpoint after a request to stop.
const PATIENCE: Duration = Duration::from_secs(20);

/// The training run that the page started last.
#[derive(Default)]
pub(super) struct Trainings(Mutex<Option<Training>>);

/// A process that trains.
struct Training {
    program: &'static str,
    dir: PathBuf,
    state: Arc<State>,
    /// The thread that waits for the process.
    watcher: Option<JoinHandle<()>>,
}

/// The state that the threads of a training run share.
#[derive(Default)]
struct State {
    stop: AtomicBool,
    lines: Mutex<VecDeque<String>>,
    ended: Mutex<Option<ExitStatus>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Trainings {
    /// Trains `program` with its default settings, in a new run folder.
    ///
    /// # Errors
    /// Fails if a training is running, or the process can't be started.
    pub(super) fn start(&self, program: &'static str) -> Result<()> {
        let mut training = locked(&self.0);
        if let Some(running) = training.as_ref().filter(|training| training.is_running()) {
            anyhow::bail!("{} is training: stop it first, or wait for its end", running.program);
        }
        ensure!(!STOP.is_requested(), "the playground is ending");
        let dir = Run::next(program)?;
        let mut command = Command::new(std::env::current_exe().context("this program's own file")?);
        command.args([program, "train", "--out"]).arg(&dir);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // The watcher passes Ctrl-C on once.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().context("cannot start the training")?;
        let state = Arc::new(State::default());
        let (output, errors) = (child.stdout.take(), child.stderr.take());
        let readers =
            [output.map(|pipe| state.clone().read(pipe)), errors.map(|pipe| state.clone().read(pipe))];
        let watcher = state.clone();
        let watcher = std::thread::spawn(move || {
            let status = watcher.wait(&mut child);
            // All output arrives before the process ends.
            readers.into_iter().flatten().for_each(|reader| drop(reader.join()));
            *locked(&watcher.ended) = Some(status);
        });
        *training = Some(Training { program, dir, state, watcher: Some(watcher) });
        Ok(())
    }

    /// Asks the training to stop after a checkpoint.
    ///
    /// # Errors
    /// Fails if none is running.
    pub(super) fn stop(&self) -> Result<()> {
        let training = locked(&self.0);
        let running = training.as_ref().filter(|training| training.is_running());
        running.context("no training is running")?.state.stop.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Waits for the end of the training run, which Ctrl-C has ended.
    pub(super) fn end(&self) {
        let watcher = locked(&self.0).as_mut().and_then(|training| training.watcher.take());
        if let Some(watcher) = watcher {
            let _ = watcher.join();
        }
    }

    /// The progress of the last training run; null before the first.
    pub(super) fn progress(&self) -> Value {
        let training = locked(&self.0);
        let Some(Training { program, dir, state, .. }) = &*training else { return Value::Null };
        let ended = locked(&state.ended).map(|status| status.code());
        let lines: Vec<String> = locked(&state.lines).iter().cloned().collect();
        // There is none before the process has started its run.
        let record = Record::read(program, dir).ok();
        json!({
            "program": program,
            "run": summary(dir, record.as_ref()),
            "running": ended.is_none(),
            "stopping": state.stop.load(Ordering::Relaxed),
            "code": ended.flatten(),
            "total": record.as_ref().map(|record| record.config["settings"]["epochs"].clone()),
            "epochs": record.map_or(vec![], |record| record.epochs),
            "lines": lines,
        })
    }
}

impl Training {
    fn is_running(&self) -> bool {
        locked(&self.state.ended).is_none()
    }
}

impl State {
    /// Reads the lines of the process from a thread.
    fn read(self: Arc<Self>, pipe: impl Read + Send + 'static) -> JoinHandle<()> {
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                let mut lines = locked(&self.lines);
                lines.push_back(String::from_utf8_lossy(&line).into_owned());
                if lines.len() > LINES {
                    lines.pop_front();
                }
            }
        })
    }

    /// Waits for the end of the process, and interrupts it on request.
    fn wait(&self, child: &mut Child) -> ExitStatus {
        let mut asked: Option<Instant> = None;
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                return status;
            }
            match asked {
                None if self.stop.load(Ordering::Relaxed) || STOP.is_requested() => {
                    interrupt(child);
                    asked = Some(Instant::now());
                }
                Some(since) if since.elapsed() > PATIENCE => drop(child.kill()),
                _ => {}
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Asks the process to end, as Ctrl-C does.
#[cfg(unix)]
fn interrupt(child: &mut Child) {
    // SAFETY: the process is our own child and has not been waited for, so its id is no other one's.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
}

/// Ends the process: its last checkpoint remains.
#[cfg(not(unix))]
fn interrupt(child: &mut Child) {
    let _ = child.kill();
}

/// Summarises a run for the page: its name, whether it is finished, its metric, and its test result.
pub(super) fn summary(dir: &Path, record: Option<&Record>) -> Value {
    let metric = record.and_then(|record| record.metric).map(|metric| metric.name());
    let test = record.and_then(|record| Some(record.shown(record.test()?)));
    let name = dir.file_name().and_then(|name| name.to_str());
    json!({
        "id": name,
        "name": name,
        "finished": record.is_some_and(|record| record.last.is_some()),
        "metric": metric,
        "test": test,
    })
}
