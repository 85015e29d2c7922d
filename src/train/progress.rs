//! The events of a running training, and their display.

use super::metrics::{Epoch, Metric};
use anyhow::{Result, bail};
use std::io::{self, ErrorKind, Write};
use std::sync::OnceLock;

/// Receives the events of a training run: a call after each step and each epoch.
///
/// Every method does nothing by default. To end the training from here, keep a clone of its [`Stop`](super::Stop).
pub trait Progress {
    /// Epoch `epoch` (counted from 1) of `epochs` starts, or resumes, with `examples` training examples.
    fn epoch_started(&self, _epoch: usize, _epochs: usize, _examples: usize) {}

    /// A step is done.
    ///
    /// The epoch has used `examples` examples so far, and the last batch had the mean loss `loss`. Training on a GPU
    /// reports every fiftieth step, the last step of an epoch and steps with a checkpoint, because a report waits for
    /// the GPU.
    fn step_done(&self, _examples: usize, _loss: f64) {}

    /// An epoch of `epochs` is finished and validated.
    fn epoch_finished(&self, _record: &Epoch, _epochs: usize, _metric: Metric) {}

    /// Shows a line or a longer text, such as a sample of the model's output.
    fn message(&self, _text: &str) {}

    /// Returns whether messages are discarded, so that the caller need not produce them.
    fn is_quiet(&self) -> bool {
        false
    }
}

/// Shows nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quiet;

impl Progress for Quiet {
    fn is_quiet(&self) -> bool {
        true
    }
}

/// Prints one line per epoch, and all messages, to standard output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lines;

impl Progress for Lines {
    fn epoch_finished(&self, record: &Epoch, epochs: usize, metric: Metric) {
        say(&format!(
            "epoch {:>3}/{epochs}  train loss {:.4}  validation loss {:.4}  {} {}  {:6.1} s  {:.0} examples/s",
            record.epoch,
            record.train_loss,
            record.validation.loss,
            metric.name(),
            metric.format(record.validation.metric),
            record.seconds,
            record.examples_per_second
        ));
    }

    fn message(&self, text: &str) {
        say(text);
    }
}

/// The first error of writing to standard output.
static OUTPUT_ERROR: OnceLock<io::Error> = OnceLock::new();

/// Prints a line to standard output. [`check_output`] reports an error.
///
/// Unlike `println!`, it does not panic when nobody reads the output, so training continues.
pub fn say(line: &str) {
    print(&format!("{line}\n"));
}

/// Prints `text` to standard output immediately. [`check_output`] reports an error.
pub fn print(text: &str) {
    let mut out = io::stdout().lock();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        OUTPUT_ERROR.get_or_init(|| error);
    }
}

/// Returns whether all output so far has been written.
pub fn is_output_open() -> bool {
    OUTPUT_ERROR.get().is_none()
}

/// Checks that all output so far has been written, except to a pipe that is no longer read.
///
/// # Errors
/// Fails if standard output can't be written, for example because a disk is full.
pub fn check_output() -> Result<()> {
    match OUTPUT_ERROR.get() {
        Some(error) if error.kind() != ErrorKind::BrokenPipe => {
            bail!("standard output: cannot write it: {error}")
        }
        _ => Ok(()),
    }
}
