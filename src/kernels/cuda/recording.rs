//! Recording the commands of a thread instead of issuing them.
//!
//! While a thread records, allocations and copies from the host take place immediately. Launches, products, copies
//! within the device and clearing become a list of commands, which [`graph`](super::graph) launches together.
//!
//! Nothing that a command reads or writes may return to the pool before it has run: [`hold`] keeps it until then. A
//! step therefore needs memory for all its intermediate results together. If there is too little, the recording ends.
//!
//! The host must not read results of commands that are being recorded. `Device::download` ends the recording; candle's
//! operations do not know about it.

use super::Command;
use std::any::Any;
use std::cell::RefCell;

/// The commands of a thread that records.
#[derive(Default)]
pub(super) struct Recording {
    pub commands: Vec<Command>,
    /// The buffers that the commands read and write.
    pub held: Vec<Box<dyn Any>>,
    /// The reason why commands are no longer recorded.
    pub ended: Option<&'static str>,
}

thread_local! {
    static RECORDING: RefCell<Option<Recording>> = const { RefCell::new(None) };
}

/// Takes `command` if this thread records, and otherwise returns it.
pub(super) fn push(command: Command) -> Option<Command> {
    RECORDING.with_borrow_mut(|recording| match recording {
        Some(recording) if recording.ended.is_none() => {
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

/// Starts to record the commands of this thread.
pub(super) fn start() {
    RECORDING.set(Some(Recording::default()));
}

/// Stops recording, and returns the recorded commands.
pub(super) fn stop() -> Recording {
    RECORDING.take().unwrap_or_default()
}

/// Takes the commands recorded so far, and records no more, for this reason.
///
/// Returns `None` if this thread does not record.
pub(super) fn end_early(reason: &'static str) -> Option<Recording> {
    RECORDING.with_borrow_mut(|recording| {
        let recording = recording.as_mut().filter(|recording| recording.ended.is_none())?;
        Some(std::mem::replace(recording, Recording { ended: Some(reason), ..Recording::default() }))
    })
}
