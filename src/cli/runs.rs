//! The sub-command `runs`: a table of the runs of a binary.

use super::recipe::{PATHS, WITHOUT_EFFECT};
use super::record::{Record, duration, option_value};
use super::text::COLUMNS;
use super::{Outcome, show_notes};
use crate::data::text::Layout;
use crate::train::print;
use anyhow::{Context, Result};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A run in the table.
struct Row {
    /// Name of its folder.
    name: String,
    settings: Map<String, Value>,
    /// The columns of the training table that were guessed, by the options that would choose them.
    guessed: Vec<(&'static str, String)>,
    /// Name of its metric.
    metric: String,
    /// The best score on the validation data.
    best: Option<String>,
    /// The epoch of this score, and the number of epochs so far.
    epoch: Option<String>,
    /// The score on the test data.
    test: Option<String>,
    has_ended: bool,
    time: Option<String>,
}

/// Prints the runs under `runs/` with the settings that differ among them.
///
/// Also prints columns of tables that were guessed. A note names broken folders.
///
/// # Errors
/// Fails if the folder cannot be read.
pub(super) fn list(binary: &str) -> Result<Outcome> {
    let parent = Path::new("runs").join(binary);
    let (rows, broken) = if parent.exists() { read(binary, &parent)? } else { (vec![], vec![]) };
    if !broken.is_empty() {
        show_notes(&[format!("{}: left out {}", parent.display(), broken.join("; "))]);
    }
    match rows.is_empty() {
        true => print(&format!("no runs in {}\n", parent.display())),
        false => print(&text(&rows, width())),
    }
    Ok(Outcome::Done)
}

/// Reads the runs in the folders of `parent`, in order.
///
/// Also returns the folders that can't be read, each with the reason.
fn read(binary: &str, parent: &Path) -> Result<(Vec<Row>, Vec<String>)> {
    let entries =
        std::fs::read_dir(parent).with_context(|| format!("{}: cannot read it", parent.display()))?;
    let folders = entries.flatten().filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> = folders.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    // Sort numbers by value.
    names.sort_by_key(|name| (name.len(), name.clone()));
    let (mut rows, mut broken) = (vec![], vec![]);
    for name in names {
        let dir = parent.join(&name);
        match Record::read(binary, &dir) {
            Ok(record) => rows.push(row(name, &record, dir.join("report.html").exists())),
            Err(error) => {
                let error = format!("{error:#}");
                let prefix = format!("{}/", dir.display());
                broken.push(format!("{name} ({})", error.strip_prefix(&prefix).unwrap_or(&error)));
            }
        }
    }
    shorten_paths(&mut rows);
    Ok((rows, broken))
}

/// Creates a row.
///
/// `has_report` tells whether a run that consists of others, without a test result of its own, has ended.
fn row(name: String, record: &Record, has_report: bool) -> Row {
    let best = record.best();
    let settings = record.settings();
    let guessed = guessed_columns(&record.config, &settings);
    Row {
        name,
        settings,
        guessed,
        metric: record.metric.map(|metric| metric.name().replace('_', " ")).unwrap_or_default(),
        best: best.map(|(_, value)| record.shown(value)),
        epoch: best.map(|(epoch, _)| format!("{epoch} of {}", record.epochs.len())),
        test: record.test().map(|value| record.shown(value)),
        has_ended: record.last.is_some() || has_report,
        time: record.seconds().map(duration),
    }
}

/// The columns of the training table that neither the settings nor the header name.
fn guessed_columns(config: &Value, settings: &Map<String, Value>) -> Vec<(&'static str, String)> {
    let layout = serde_json::from_value::<Layout>(config[COLUMNS].clone()).ok();
    let columns = layout.and_then(|layout| layout.guessed()).into_iter().flatten();
    let is_given = |option: &str| settings.get(option).is_some_and(|column| !column.is_null());
    ["label_column", "text_column"].into_iter().zip(columns).filter(|(option, _)| !is_given(option)).collect()
}

/// The names of the settings that differ among the runs, and those that were guessed.
fn differing(rows: &[Row]) -> Vec<String> {
    let mut names: Vec<&String> = vec![];
    for name in rows.iter().flat_map(|row| row.settings.keys()) {
        if !names.contains(&name) && !WITHOUT_EFFECT.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let values = |name: &str| rows.iter().map(|row| setting(row, name)).collect::<Vec<_>>();
    let is_guessed =
        |name: &str| rows.iter().flat_map(|row| &row.guessed).any(|(guessed, _)| *guessed == name);
    names.retain(|name| is_guessed(name) || values(name).windows(2).any(|pair| pair[0] != pair[1]));
    names.into_iter().cloned().collect()
}

/// The value of a setting; `-` if it is off.
fn setting(row: &Row, name: &str) -> String {
    if let Some((_, column)) = row.guessed.iter().find(|(guessed, _)| *guessed == name) {
        return format!("{column} (guessed)");
    }
    let value = match &row.settings.get(name) {
        Some(Value::Bool(true)) => Some("on".to_string()),
        Some(value) => option_value(value),
        None => None,
    };
    value.unwrap_or_else(|| "-".to_string())
}

/// Replaces the paths among the settings by their last components, as many as tell the runs' paths apart.
fn shorten_paths(rows: &mut [Row]) {
    for name in PATHS {
        let paths = || rows.iter().filter_map(|row| row.settings.get(name)?.as_str());
        let endings = |n: usize| paths().map(|path| ending(path, n)).collect::<BTreeSet<_>>().len();
        let longest = paths().map(|path| Path::new(path).components().count()).max().unwrap_or(0);
        let n = (1..longest).find(|&n| endings(n) == endings(longest)).unwrap_or(longest);
        for row in &mut *rows {
            if let Some(Value::String(path)) = row.settings.get_mut(name) {
                *path = ending(path, n);
            }
        }
    }
}

/// The last `n` components of a path.
fn ending(path: &str, n: usize) -> String {
    let path = Path::new(path);
    let skipped = path.components().count().saturating_sub(n);
    path.components().skip(skipped).collect::<PathBuf>().display().to_string()
}

/// A table of the runs if it fits into `width` columns, or else a paragraph for each.
fn text(rows: &[Row], width: Option<usize>) -> String {
    let names = differing(rows);
    let metric =
        rows.iter().map(|row| row.metric.as_str()).find(|metric| !metric.is_empty()).unwrap_or("score");
    // If metrics differ, each run names its own.
    let is_shared = rows.iter().all(|row| row.metric.is_empty() || row.metric == metric);
    let score = |row: &Row, value: &Option<String>| match value {
        Some(value) if !is_shared => Some(format!("{} {value}", row.metric)),
        value => value.clone(),
    };
    let metric = if is_shared { metric } else { "score" };
    let options = names.iter().map(|name| name.replace('_', "-"));
    let heads: Vec<String> = ["run".to_string()]
        .into_iter()
        .chain(options.clone())
        .chain([format!("validation {metric}"), "best epoch".into(), format!("test {metric}"), "time".into()])
        .collect();
    let cells = |row: &Row| -> Vec<String> {
        let settings = names.iter().map(|name| setting(row, name));
        let test = if row.has_ended { score(row, &row.test) } else { Some("unfinished".to_string()) };
        let scores = [score(row, &row.best), row.epoch.clone(), test, row.time.clone()];
        let scores = scores.map(|score| score.unwrap_or_else(|| "-".to_string()));
        [row.name.clone()].into_iter().chain(settings).chain(scores).collect()
    };
    let table: Vec<Vec<String>> = [heads].into_iter().chain(rows.iter().map(cells)).collect();
    let widths: Vec<usize> = (0..table[0].len())
        .map(|column| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    if width.is_none_or(|width| widths.iter().map(|width| width + 2).sum::<usize>() <= width + 2) {
        return table.iter().map(|row| aligned(row, &widths)).collect();
    }
    let paragraph = |row: &Row| {
        let settings = options.clone().zip(names.iter().map(|name| setting(row, name)));
        let settings =
            settings.filter(|(_, value)| value != "-").map(|(option, value)| format!("{option} {value}"));
        let best = score(row, &row.best).zip(row.epoch.as_ref());
        let best = best.map(|(best, epoch)| format!("validation {metric} {best} in epoch {epoch}"));
        let test = score(row, &row.test).map(|test| format!("test {metric} {test}"));
        let unfinished = (!row.has_ended).then(|| "unfinished".to_string());
        let scores = [best, test, unfinished, row.time.clone()].into_iter().flatten();
        let lines = [settings.collect::<Vec<_>>().join(", "), scores.collect::<Vec<_>>().join(", ")];
        let lines = lines.iter().filter(|line| !line.is_empty());
        let lines: String = lines.map(|line| wrapped(line, width.unwrap_or(usize::MAX))).collect();
        format!("run {}\n{lines}", row.name)
    };
    rows.iter().map(paragraph).collect()
}

/// A line of a table whose columns have these widths.
fn aligned(row: &[String], widths: &[usize]) -> String {
    let cells = row.iter().zip(widths).map(|(cell, &width)| format!("{cell:<width$}  "));
    cells.collect::<String>().trim_end().to_string() + "\n"
}

/// Breaks a line at spaces into lines of at most `width` columns, each indented by two spaces.
///
/// A longer word stays whole.
fn wrapped(line: &str, width: usize) -> String {
    let (mut text, mut column) = (String::new(), 0);
    for word in line.split(' ') {
        let size = word.chars().count();
        if column == 0 || column + 1 + size > width {
            text += if column == 0 { "  " } else { "\n  " };
            column = 2 + size;
        } else {
            text.push(' ');
            column += 1 + size;
        }
        text += word;
    }
    text + "\n"
}

/// The number of columns of the terminal; `None` if standard output is not a terminal.
fn width() -> Option<usize> {
    console::Term::stdout().size_checked().map(|(_, columns)| columns.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Run;
    use serde_json::json;

    /// Two finished runs and one without a test, with different hidden units, and a folder without a run.
    fn three() -> (Vec<Row>, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        for (name, hidden, is_finished) in [("1", 30, true), ("2", 100, false), ("10", 30, true)] {
            let settings = json!({ "hidden": [hidden], "seed": 1, "nesterov": name == "10", "keep_checkpoint": is_finished });
            let out = dir.path().join(name);
            let run = Run::create("test", Some(&out), &json!({ "settings": settings })).unwrap();
            let epoch = json!({ "val_loss": 0.5, "val_accuracy": 0.9, "seconds": 2.5 });
            let last = json!({ "final": true, "test_accuracy": 0.875, "seconds": 75.0 });
            let last = if is_finished { format!("{last}\n") } else { String::new() };
            run.write("metrics.jsonl", &format!("{epoch}\n{last}")).unwrap();
        }
        std::fs::create_dir(dir.path().join("3")).unwrap();
        read("test", dir.path()).unwrap()
    }

    #[test]
    fn the_table_shows_what_differs_and_marks_what_is_unfinished_or_broken() {
        let (rows, broken) = three();
        let expected = "\
run  hidden  nesterov  validation accuracy  best epoch  test accuracy  time
1    30      -         90.00%               1 of 1      87.50%         1 min 15 s
2    100     -         90.00%               1 of 1      unfinished     2.5 s
10   30      on        90.00%               1 of 1      87.50%         1 min 15 s
";
        assert_eq!(text(&rows, None), expected);
        assert_eq!(text(&rows, Some(81)), expected);
        assert!(broken.len() == 1 && broken[0].starts_with("3 (config.json: cannot read it"), "{broken:?}");
    }

    #[test]
    fn columns_that_were_guessed_are_shown() {
        let dir = tempfile::tempdir().unwrap();
        for (name, header, text_column) in [
            ("1", json!(["label", "text"]), json!(null)),
            ("2", json!(["mood", "remark"]), json!(null)),
            ("3", json!(null), json!("2")),
        ] {
            let columns = json!({ "delimiter": 44, "width": 2, "label": 0, "text": 1, "header": header });
            let settings = json!({ "label_column": null, "text_column": text_column });
            let config = json!({ "columns": columns, "settings": settings });
            Run::create("test", Some(&dir.path().join(name)), &config).unwrap();
        }
        let (rows, _) = read("test", dir.path()).unwrap();
        let found = text(&rows, None);
        let expected = [
            "run  label-column    text-column       validation",
            "1    -               -                 -",
            "2    mood (guessed)  remark (guessed)  -",
            "3    1 (guessed)     2                 -",
        ];
        assert!(found.lines().zip(expected).all(|(line, start)| line.starts_with(start)), "{found}");
        assert!(text(&rows[1..2], None).contains("mood (guessed)"), "also of a single run");
    }

    #[test]
    fn on_a_narrow_terminal_each_run_is_a_paragraph() {
        let (rows, _) = three();
        let found = text(&rows[1..], Some(30));
        let expected = "\
run 2
  hidden 100
  validation accuracy 90.00%
  in epoch 1 of 1, unfinished,
  2.5 s
run 10
";
        assert!(found.starts_with(expected), "{found}");
        assert!(found.lines().all(|line| line.chars().count() <= 30), "{found}");
    }
}
