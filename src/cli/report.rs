//! `report.html`: a run on one page.

use super::recipe::{AnyRecipe, Data, Start, Training};
use super::record::{Record, duration, option_value};
use super::settings;
use crate::plots::{self, Section, escape};
use crate::train::Run;
use anyhow::{Context, Result};
use serde_json::{Map, Value};
use std::path::Path;

const FILE: &str = "report.html";

/// Writes `report.html` into the folder of `run`.
///
/// It has the run's result, curves, pictures and settings, and the command that repeats it. `text` is the result in
/// words, and `curves` are drawings that the page shows side by side. The run may be one of several of `training`, such
/// as a fold; it began at `start`.
///
/// # Errors
/// Fails if a file of the folder cannot be read, or the page cannot be written.
pub(super) fn write<D: Data>(
    run: &Run,
    training: &Training<D>,
    settings: &AnyRecipe<D>,
    start: &Start,
    text: &str,
    curves: &[String],
) -> Result<()> {
    let dir = run.dir();
    let record = Record::read(settings.binary, dir)?;
    let mut sections = vec![];
    let mut add = |id: &str, title: &str, body: String| {
        if !body.is_empty() {
            sections.push(Section { id: id.into(), title: title.into(), body });
        }
    };
    add("result", "Test", result(&record, text));
    let curves: String = curves.iter().map(|svg| plots::figure(svg, "")).collect();
    let curves = if curves.is_empty() { curves } else { format!("<div class=\"charts\">{curves}</div>") };
    add("curves", "Training", curves + &epochs(&record));
    let (files, parts) = contents(dir)?;
    add("pictures", "Pictures", pictures(dir, &files)?);
    let pages = files.iter().filter(|name| name.ends_with(".html") && *name != FILE).cloned();
    let parts = parts.iter().map(|part| format!("{part}/{FILE}"));
    add("pages", "Further pages", pages.chain(parts).map(|file| link(&file)).collect());
    add("settings", "Settings", options(&settings.fields, &training.defaults));
    add("data", "Data and machine", facts(&record));
    let command = settings::repeating(training);
    let mut repeat = format!("<pre class=\"command\"><code>{}</code></pre>", escape(&command));
    if start.parent.is_some() {
        repeat +=
            "<p class=\"muted\">This run is a part of another one, which the command repeats as a whole.</p>";
    }
    add("repeat", "Repeat it", repeat);
    let name = dir.canonicalize().unwrap_or_default();
    let name = name.file_name().unwrap_or_default().to_string_lossy();
    let title = format!("{}: run {name}", settings.binary);
    run.write(FILE, &plots::page(&title, &cards(&record, D::UNIT), &sections))
}

/// The most important numbers.
fn cards(record: &Record, unit: &str) -> String {
    let metric = record.metric.map(|metric| metric.name().replace('_', " ")).unwrap_or_default();
    let best = record.best().map(|(epoch, value)| {
        let of = format!("epoch {epoch} of {}", record.epochs.len());
        (format!("Best validation {metric}"), record.shown(value), of)
    });
    let test = record.test().map(|value| (format!("Test {metric}"), record.shown(value), String::new()));
    let number = |name: &str| record.config[name].as_u64().map(grouped);
    let parameters = number("parameters").map(|number| ("Parameters".to_string(), number, String::new()));
    // The user's own text replaces the data set.
    let settings = &record.config["settings"];
    let text = settings["text"].as_str().and_then(|path| Path::new(path).file_name()?.to_str());
    let dataset = text.or(settings["dataset"].as_str()).unwrap_or_default();
    let size = |part: &str| Some(format!("{} {part}", number(&format!("{part}_{unit}"))?));
    let sizes: Vec<String> = ["training", "validation", "test"].into_iter().filter_map(size).collect();
    let data = ("Data".to_string(), dataset.to_string(), sizes.join(", "));
    let time = record.seconds().map(|seconds| ("Time".to_string(), duration(seconds), String::new()));
    let cards = [test, best, parameters, Some(data), time].into_iter().flatten();
    let card = |(name, value, small): (String, String, String)| {
        let [name, value, small] = [name, value, small].map(|text| escape(&text));
        let small = if small.is_empty() { small } else { format!("<small>{small}</small>") };
        format!("<div><dt>{name}</dt><dd>{value}{small}</dd></div>")
    };
    format!("<dl class=\"cards\">{}</dl>", cards.map(card).collect::<String>())
}

/// Formats a whole number with separated thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| std::str::from_utf8(group).unwrap_or_default())
        .collect();
    groups.join(",")
}

/// The result in words, and the numbers of the last line of `metrics.jsonl`.
fn result(record: &Record, text: &str) -> String {
    let words = match text.contains('\n') {
        true => format!("<pre>{}</pre>", escape_lines(text)),
        false => format!("<p>{}</p>", escape(text)),
    };
    let fields = record.last.as_ref().and_then(Value::as_object).into_iter().flatten();
    let number = |(name, value): (&String, &Value)| {
        let value = value.as_f64()?;
        let text = if value.fract() == 0.0 { value.to_string() } else { format!("{value:.5}") };
        Some(vec![name.replace('_', " "), text])
    };
    let rows: Vec<Vec<String>> = fields.filter_map(number).collect();
    match rows.is_empty() {
        true => words,
        false => words + &plots::table::<&str>(&[], &rows),
    }
}

/// The numbers of all epochs.
fn epochs(record: &Record) -> String {
    let Some(first) = record.epochs.first().and_then(Value::as_object) else { return String::new() };
    let names: Vec<&String> = first.keys().collect();
    let cell = |value: &Value| match value.as_f64() {
        Some(number) if value.is_f64() => short(number),
        _ => value.to_string(),
    };
    let row = |epoch: &Value| names.iter().map(|name| cell(&epoch[name.as_str()])).collect();
    let rows: Vec<Vec<String>> = record.epochs.iter().map(row).collect();
    let heads: Vec<String> = names.iter().map(|name| name.replace('_', " ")).collect();
    format!("<details><summary>All epochs</summary>{}</details>", plots::table(&heads, &rows))
}

/// A number with about four digits.
fn short(number: f64) -> String {
    match number.abs() {
        0.0 => "0".to_string(),
        size if (1e-3..1.0).contains(&size) => format!("{number:.5}"),
        size if (1.0..1e3).contains(&size) => format!("{number:.3}"),
        size if (1e3..1e9).contains(&size) => format!("{number:.0}"),
        _ => format!("{number:.3e}"),
    }
}

/// Text of several lines as HTML.
fn escape_lines(text: &str) -> String {
    text.lines().map(escape).collect::<Vec<_>>().join("\n")
}

/// The names of the files in the folder, and of the folders that hold a report, both sorted.
fn contents(dir: &Path) -> Result<(Vec<String>, Vec<String>)> {
    let (mut files, mut parts) = (vec![], vec![]);
    let entries = std::fs::read_dir(dir).with_context(|| format!("{}: cannot read it", dir.display()))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        match path.join(FILE).exists() {
            true => parts.push(name.to_string()),
            false => files.push(name.to_string()),
        }
    }
    files.sort();
    // Sort numbers by value.
    parts.sort_by_key(|name| (name.len(), name.clone()));
    Ok((files, parts))
}

/// The drawings in the folder, except the curves.
fn pictures(dir: &Path, files: &[String]) -> Result<String> {
    let drawings = files.iter().filter(|name| name.ends_with(".svg") && *name != "curves.svg");
    let figure = |name: &String| {
        let path = dir.join(name);
        let svg =
            std::fs::read_to_string(&path).with_context(|| format!("{}: cannot read it", path.display()))?;
        Ok(plots::figure(&svg, name))
    };
    drawings.map(figure).collect()
}

fn link(file: &str) -> String {
    let file = escape(file);
    format!("<a href=\"{file}\">{file}</a> ")
}

/// The settings that are not defaults, and all settings.
fn options(settings: &Map<String, Value>, defaults: &Map<String, Value>) -> String {
    let shown = |value: &Value| match value {
        Value::Bool(true) => "on".to_string(),
        value => option_value(value).unwrap_or_else(|| "-".to_string()),
    };
    let row =
        |name: &String, value: &Value| vec![name.replace('_', "-"), shown(value), shown(&defaults[name])];
    let rows = |changed: bool| -> Vec<Vec<String>> {
        let chosen = settings.iter().filter(|(name, value)| !changed || defaults[*name] != **value);
        chosen.map(|(name, value)| row(name, value)).collect()
    };
    let (changed, heads) = (rows(true), ["option", "value", "default"]);
    let first = match changed.is_empty() {
        true => "<p>All options have their defaults.</p>".to_string(),
        false => plots::table(&heads, &changed),
    };
    format!("{first}<details><summary>All options</summary>{}</details>", plots::table(&heads, &rows(false)))
}

/// The other fields of `config.json`; lists are shown by their lengths.
fn facts(record: &Record) -> String {
    let fields = record.config.as_object().into_iter().flatten().filter(|(name, _)| *name != "checksum");
    let row = |(name, value): (&String, &Value)| {
        let text = match value {
            Value::Array(values) => values.len().to_string(),
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => return None,
        };
        Some(vec![name.replace('_', " "), text])
    };
    plots::table::<&str>(&[], &fields.filter_map(row).collect::<Vec<_>>())
}
