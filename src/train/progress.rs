//! What a person sees of a training: a bar on a terminal, a line an epoch in a pipe.

use super::{Epoch, Metric};
#[cfg(feature = "cli")]
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};

/// Where progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    #[cfg(feature = "cli")]
    /// A bar with loss, examples a second and time left on standard error, and a line an epoch on standard output.
    Bar,
    /// A line an epoch on standard output.
    Lines,
    Quiet,
}

impl Progress {
    /// A bar where standard error is a terminal, lines elsewhere.
    pub fn detect() -> Self {
        match std::io::stderr().is_terminal() {
            #[cfg(feature = "cli")]
            true => Self::Bar,
            _ => Self::Lines,
        }
    }

    pub(super) fn epoch(self, epoch: usize, epochs: usize, examples: usize) -> EpochProgress {
        #[cfg(feature = "cli")]
        let bar = {
            let target = match self {
                Self::Bar => ProgressDrawTarget::stderr(),
                _ => ProgressDrawTarget::hidden(),
            };
            let bar = ProgressBar::with_draw_target(Some(examples as u64), target)
                .with_prefix(format!("epoch {epoch}/{epochs}"));
            let template = "{prefix} {wide_bar:.cyan} {pos}/{len}  {msg}  {eta} left";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        };
        #[cfg(not(feature = "cli"))]
        let _ = (epoch, epochs, examples);
        EpochProgress {
            #[cfg(feature = "cli")]
            bar,
            lines: self != Self::Quiet,
        }
    }
}

pub(super) struct EpochProgress {
    #[cfg(feature = "cli")]
    bar: ProgressBar,
    lines: bool,
}

impl EpochProgress {
    /// `examples` have been seen in this epoch; the last batch's loss was `loss`.
    pub(super) fn advance(&self, examples: usize, loss: f64) {
        #[cfg(not(feature = "cli"))]
        let _ = (examples, loss);
        #[cfg(feature = "cli")]
        if !self.bar.is_hidden() {
            self.bar.set_message(format!("loss {loss:.4}  {:.0} examples/s", self.bar.per_sec()));
            self.bar.set_position(examples as u64);
        }
    }

    pub(super) fn finish(self, record: &Epoch, epochs: usize, metric: Metric) {
        #[cfg(feature = "cli")]
        self.bar.finish_and_clear();
        if self.lines {
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
    }
}

/// A line on standard output. Nobody reading it any more is no reason to stop training.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
