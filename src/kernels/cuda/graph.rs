//! Launches the commands of a training step together, as a CUDA graph.
//!
//! A step is recorded ([`recording`]). If no command has changed, it runs as the graph captured before; this is so for
//! steps of one shape once the memory pool repeats its addresses. Otherwise the step is captured again, which updates
//! the graph in place. A capture contains only finished commands, so that no allocation, compilation or copy can break
//! it. If it fails nevertheless, the commands run one by one.

use super::Command;
use super::device::{Device, Executable};
use super::recording::{self, Recording};
use candle_core::Error;

/// Commands that run repeatedly as one graph.
pub(crate) struct Graph {
    device: Device,
    captured: Option<Captured>,
    /// Whether this thread's work cannot be a graph.
    refused: bool,
}

struct Captured {
    commands: Vec<Command>,
    executable: Executable,
}

impl Graph {
    /// A graph on `device`, without commands so far.
    pub fn new(device: &Device) -> Self {
        Self { device: device.clone(), captured: None, refused: false }
    }

    /// Runs `work`, and launches the commands that it has issued as one graph.
    ///
    /// If that is impossible, the commands run one by one, after a note on stderr. If `work` fails, none runs.
    pub fn run<R, E: From<Error>>(&mut self, work: impl FnOnce() -> Result<R, E>) -> Result<R, E> {
        /// Ends the recording also if `work` fails or panics.
        struct Stop;
        impl Drop for Stop {
            fn drop(&mut self) {
                let _recording = recording::stop();
            }
        }
        if self.refused {
            return work();
        }
        recording::start();
        let stop = Stop;
        let result = work()?;
        let Recording { commands, held, ended } = recording::stop();
        drop(stop);
        if let Some(reason) = ended {
            self.refuse(reason);
        } else if !commands.is_empty() {
            self.launch(commands)?;
        }
        drop(held);
        Ok(result)
    }

    fn refuse(&mut self, reason: &str) {
        eprintln!("note: CUDA graphs: {reason}; training continues without them");
        (self.refused, self.captured) = (true, None);
    }

    fn launch(&mut self, commands: Vec<Command>) -> candle_core::Result<()> {
        let captured = match self.captured.take() {
            Some(captured) if captured.commands == commands => Ok(captured),
            before => self
                .device
                .capture(&commands, before.map(|captured| captured.executable))
                .map(|executable| Captured { commands: commands.clone(), executable }),
        };
        match captured {
            Ok(captured) => {
                let captured = self.captured.insert(captured);
                // SAFETY: the caller that recorded the commands upholds their contract, and the memory that they use is held.
                unsafe { self.device.launch_graph(&captured.executable) }
            }
            Err(error) => {
                self.refuse(&error.to_string());
                // SAFETY: as above.
                commands.iter().try_for_each(|command| unsafe { self.device.issue(command) })
            }
        }
    }
}
