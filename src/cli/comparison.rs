//! Comparing translators with and without attention (Bahdanau et al. 2015, figure 2).

use super::Outcome;
use super::flow::{self, Fitted};
use super::recipe::{AnyRecipe, Data, Experiment, Start, Training};
use super::report;
use super::translation::TranslationData;
use crate::plots::{self, Chart, Line};
use crate::train::say;
use anyhow::Result;

/// Trains each of the named settings in its own folder, and plots test scores over the source length.
pub fn compare_by_length(compared: Vec<(String, AnyRecipe<TranslationData>)>) -> Experiment<TranslationData> {
    Box::new(move |training| compare(training, &compared))
}

fn compare(
    training: &Training<TranslationData>,
    compared: &[(String, AnyRecipe<TranslationData>)],
) -> Result<Outcome> {
    let Training { settings, start, device, .. } = training;
    let data: TranslationData = flow::load(training)?;
    let parent = flow::folder(settings, start, device, flow::record::<TranslationData>(data.about()))?;
    data.keep_files(&parent)?;
    let (mut lines, mut score, mut text) = (vec![], "", String::new());
    for (name, settings) in compared {
        let start = Start::part(settings.binary, &parent, name)?;
        let Fitted::Tested(test) = flow::fit_and_test(training, settings, &data, &start)? else {
            return Ok(Outcome::Interrupted);
        };
        text += &format!("{name}: {}\n", test.text);
        let points;
        (score, points) = by_length(&data, &test.translations);
        lines.push(Line::new(name, points));
    }
    let chart =
        Chart { title: "Length", x_label: "tokens of the source", y_label: score, lines, ..Chart::default() };
    parent.write("lengths.svg", &plots::line_charts(&[chart])?)?;
    report::write(&parent, training, settings, start, &text, &[])?;
    say(&format!("lengths.svg is in the run folder {}", parent.dir().display()));
    Ok(Outcome::Done)
}

/// The name of the score, and the score of each group of test sentences, by length. The groups are about equally large.
fn by_length(data: &TranslationData, translations: &[String]) -> (&'static str, Vec<(f64, f64)>) {
    const GROUPS: usize = 8;
    let (references, sources) = (data.references(), &data.test.sources);
    let mut order: Vec<usize> = (0..sources.len()).collect();
    order.sort_by_key(|&i| sources[i].len());
    let mut groups: Vec<(usize, Vec<usize>)> = vec![];
    for group in order.chunks(order.len().div_ceil(GROUPS).max(1)) {
        let length = group.iter().map(|&i| sources[i].len()).sum::<usize>() / group.len();
        match groups.last_mut() {
            Some((last, all)) if *last == length => all.extend(group),
            _ => groups.push((length, group.to_vec())),
        }
    }
    let (mut name, mut points) = ("", vec![]);
    for (length, group) in groups {
        let of = |texts: &[String]| -> Vec<String> { group.iter().map(|&i| texts[i].clone()).collect() };
        let score;
        (name, score) = data.score(&of(translations), &of(&references));
        points.push((length as f64, score));
    }
    (name, points)
}
