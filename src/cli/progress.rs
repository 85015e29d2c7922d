//! Display of the progress of training in a terminal.

use super::in_colour;
use crate::train::{Epoch, Lines, Metric, Progress, Quiet};
use indicatif::{ProgressBar, ProgressStyle};
use std::cell::RefCell;
use std::io::IsTerminal;

/// Chooses the display: a bar if standard error is a terminal, otherwise lines; nothing if `quiet`.
pub(super) fn detect(quiet: bool) -> Box<dyn Progress + Send> {
    // Otherwise an empty NO_COLOR would switch off the colours of the bar.
    let in_colour = in_colour(&std::io::stderr());
    console::set_colors_enabled_stderr(in_colour);
    console::set_colors_enabled(in_colour);
    match (quiet, std::io::stderr().is_terminal()) {
        (true, _) => Box::new(Quiet),
        (false, true) => Box::new(Bar { bar: RefCell::new(ProgressBar::hidden()) }),
        (false, false) => Box::new(Lines),
    }
}

/// A progress bar on standard error, in addition to the output of [`Lines`].
///
/// It shows loss, examples per second and remaining time.
struct Bar {
    /// The bar of the current epoch.
    bar: RefCell<ProgressBar>,
}

impl Progress for Bar {
    fn epoch_started(&self, epoch: usize, epochs: usize, examples: usize) {
        let bar = ProgressBar::new(examples as u64).with_prefix(format!("epoch {epoch}/{epochs}"));
        let template = "{prefix} {wide_bar:.cyan} {pos}/{len}  {msg}  {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        self.bar.replace(bar);
    }

    fn step_done(&self, examples: usize, loss: f64) {
        let bar = self.bar.borrow();
        bar.set_message(format!("loss {loss:.4}  {:.0} examples/s", bar.per_sec()));
        bar.set_position(examples as u64);
    }

    fn epoch_finished(&self, record: &Epoch, epochs: usize, metric: Metric) {
        self.bar.borrow().finish_and_clear();
        Lines.epoch_finished(record, epochs, metric);
    }

    fn message(&self, text: &str) {
        Lines.message(text);
    }
}
