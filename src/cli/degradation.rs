//! Comparing the training errors of several settings (He et al. 2015, figure 1).

use super::Outcome;
use super::flow;
use super::images::ImageData;
use super::recipe::{Data, Recipe, Start, Training};
use super::report;
use crate::plots::{self, Chart, Line};
use crate::train::{Epoch, say};
use anyhow::Result;

/// Trains each of the named settings, and draws their training errors over the epochs in one plot.
///
/// # Errors
/// Fails if a training run does, or the data of a resumed comparison has changed.
pub fn compare<R: Recipe<Data = ImageData>>(
    training: &Training<R>,
    compared: &[(String, R)],
) -> Result<Outcome> {
    let Training { settings, start, device, .. } = training;
    let mut data = flow::load(training)?;
    data.validate_on_training();
    let parent = flow::folder(settings, start, device, flow::record::<R>(data.about()))?;
    data.keep_files(&parent)?;
    let (mut lines, mut text) = (vec![], vec![]);
    for (name, settings) in compared {
        let start = Start::part::<R>(&parent, name)?;
        let (_, _, report) = flow::fit(training, settings, &data, &start)?;
        if report.interrupted {
            say(&flow::how_to_resume::<R>(parent.dir()));
            return Ok(Outcome::Interrupted);
        }
        let error = |epoch: &Epoch| (epoch.epoch as f64, 100.0 * (1.0 - epoch.validation.metric));
        let points: Vec<(f64, f64)> = report.epochs.iter().map(error).collect();
        let last = points.last().map_or(f64::NAN, |point| point.1);
        let line = format!("{name}: training error {last:.2}% after the last epoch");
        say(&line);
        text.push(line);
        lines.push(Line::new(name, points));
    }
    let chart =
        Chart { title: "Training error", x_label: "epoch", y_label: "error in %", lines, ..Chart::default() };
    parent.write("degradation.svg", &plots::line_charts(&[chart])?)?;
    report::write(&parent, training, settings, start, &text.join("\n"), &[])?;
    say(&format!("degradation.svg is in the run folder {}", parent.dir().display()));
    Ok(Outcome::Done)
}
