//! Recording the commands of a training step, and launching them together as a graph.
//!
//! While a thread records, allocations and copies from the host take place at once. Launches, products, copies within the
//! device and clearing become a list of commands. At its end the list runs: as the graph captured before if nothing has
//! changed, which is so for steps of one shape once the memory pool repeats its addresses, and otherwise as a new capture,
//! which updates the graph in place. A capture contains nothing but finished commands, so that no allocation, compilation or
//! copy can break it; where it fails all the same, the commands run one by one.
//!
//! Nothing that a command reads or writes may return to the pool before it has run: [`hold`] keeps it until then. A step
//! therefore needs as much memory as all its intermediate results together; without it, the recording ends.
//!
//! The host must not read results of commands that are being recorded. [`Device::download`] ends the recording;
//! operations of candle do not know of it, so [`Graph::run`] is for work that has none on such results.

use super::{Command, Device};
use candle_core::Error;
use std::any::Any;
use std::cell::RefCell;

/// The commands of a thread that records.
#[derive(Default)]
struct Recording {
    /// The device of the commands, once there is one.
    device: Option<Device>,
    commands: Vec<Command>,
    /// What the commands read and write.
    held: Vec<Box<dyn Any>>,
    /// Why commands are not recorded any more.
    ended: Option<&'static str>,
}

thread_local! {
    static RECORDING: RefCell<Option<Recording>> = const { RefCell::new(None) };
}

/// Takes `command` if this thread records, and otherwise returns it.
pub(super) fn push(device: &Device, command: Command) -> Option<Command> {
    RECORDING.with_borrow_mut(|recording| match recording {
        Some(recording) if recording.ended.is_none() => {
            recording.device.get_or_insert_with(|| device.clone());
            recording.commands.push(command);
            None
        }
        _ => Some(command),
    })
}

/// Whether this thread records commands.
pub(crate) fn is_on() -> bool {
    RECORDING.with_borrow(|recording| recording.as_ref().is_some_and(|recording| recording.ended.is_none()))
}

/// Keeps `value` until the commands being recorded have run; drops it if there are none.
pub(crate) fn hold(value: impl Any) {
    // A value may be dropped while its thread ends.
    let _ = RECORDING.try_with(|recording| {
        if let Ok(mut recording) = recording.try_borrow_mut()
            && let Some(recording) = recording.as_mut().filter(|recording| recording.ended.is_none())
        {
            recording.held.push(Box::new(value));
        }
    });
}

/// Runs the commands recorded so far, one by one, and records no more of them, for this reason.
pub(super) fn end_early(device: &Device, reason: &'static str) -> candle_core::Result<()> {
    let recorded = RECORDING.with_borrow_mut(|recording| {
        let recording = recording.as_mut().filter(|recording| recording.ended.is_none())?;
        recording.ended = Some(reason);
        Some((std::mem::take(&mut recording.commands), std::mem::take(&mut recording.held)))
    });
    // What was held is dropped last.
    recorded.map_or(Ok(()), |(commands, _held)| run(device, &commands))
}

fn run(device: &Device, commands: &[Command]) -> candle_core::Result<()> {
    // SAFETY: whoever recorded a command has promised what it needs, and what it uses is held.
    commands.iter().try_for_each(|command| unsafe { device.issue(command) })
}

/// Commands that run as one graph, again and again.
#[derive(Default)]
pub(crate) struct Graph {
    captured: Option<Captured>,
    /// Whether this thread's work cannot be a graph.
    refused: bool,
}

struct Captured {
    commands: Vec<Command>,
    executable: Executable,
}

/// A graph that a device can launch.
pub(super) enum Executable {
    #[cfg(feature = "cuda-emulator")]
    Emulated(Vec<Command>),
    #[cfg(feature = "cuda")]
    Gpu(super::driver::Executable),
}

impl Graph {
    /// Runs `work`, and launches the commands that it has asked for as one graph.
    ///
    /// If that cannot be, the commands run one by one, after a note on stderr. If `work` fails, none runs.
    pub fn run<R, E: From<Error>>(&mut self, work: impl FnOnce() -> Result<R, E>) -> Result<R, E> {
        /// Ends the recording also if `work` fails or panics.
        struct Stop;
        impl Drop for Stop {
            fn drop(&mut self) {
                let _recording = RECORDING.take();
            }
        }
        if self.refused || !cfg!(any(feature = "cuda", feature = "cuda-emulator")) {
            return work();
        }
        RECORDING.set(Some(Recording::default()));
        let stop = Stop;
        let result = work()?;
        let Recording { device, commands, held, ended } = RECORDING.take().unwrap_or_default();
        drop(stop);
        if let Some(reason) = ended {
            self.refuse(reason);
        } else if let Some(device) = device {
            self.launch(&device, commands)?;
        }
        drop(held);
        Ok(result)
    }

    fn refuse(&mut self, reason: &str) {
        eprintln!("note: CUDA graphs: {reason}; training goes on without them");
        (self.refused, self.captured) = (true, None);
    }

    fn launch(&mut self, device: &Device, commands: Vec<Command>) -> candle_core::Result<()> {
        let captured = match self.captured.take() {
            Some(captured) if captured.commands == commands => Ok(captured),
            before => device
                .capture(&commands, before.map(|captured| captured.executable))
                .map(|executable| Captured { commands: commands.clone(), executable }),
        };
        match captured {
            Ok(captured) => {
                let captured = self.captured.insert(captured);
                // SAFETY: whoever recorded the commands has promised what they need, and what they use is held.
                unsafe { device.launch_graph(&captured.executable) }
            }
            Err(error) => {
                self.refuse(&error.to_string());
                run(device, &commands)
            }
        }
    }
}
