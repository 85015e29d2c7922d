//! Comparing the training errors of several settings (He et al. 2015, figure 1).

use super::Outcome;
use super::flow;
use super::images::ImageData;
use super::recipe::{AnyRecipe, Data, Experiment, Start, Training};
use super::report;
use crate::plots::{self, Chart, Line};
use crate::train::{Epoch, say};
use anyhow::Result;

/// Trains each of the named settings, and draws their training errors over the epochs in one plot.
pub fn compare(compared: Vec<(String, AnyRecipe<ImageData>)>) -> Experiment<ImageData> {
    Box::new(move |training| train_all(training, &compared))
}

fn train_all(training: &Training<ImageData>, compared: &[(String, AnyRecipe<ImageData>)]) -> Result<Outcome> {
    let Training { settings, start, device, .. } = training;
    let mut data: ImageData = flow::load(training)?;
    data.validate_on_training();
    let parent = flow::folder(settings, start, device, flow::record::<ImageData>(data.about()))?;
    data.keep_files(&parent)?;
    let (mut lines, mut text) = (vec![], vec![]);
    for (name, settings) in compared {
        let start = Start::part(settings.binary, &parent, name)?;
        let report = flow::fit(training, settings, &data, &start)?.report;
        if report.interrupted {
            say(&flow::how_to_resume(&flow::resume_command(settings.binary, parent.dir())));
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
