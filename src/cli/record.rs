//! The contents of a run's folder: its configuration and scores.

use crate::train::{Metric, Run};
use anyhow::{Context, Result, anyhow};
use serde_json::{Map, Value};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// The configuration and the scores of a run.
pub(super) struct Record {
    /// `config.json`.
    pub(super) config: Value,
    /// The lines of `metrics.jsonl`, one per epoch.
    pub(super) epochs: Vec<Value>,
    /// The last line of `metrics.jsonl`, with the result on the test data; `None` if the run is unfinished.
    pub(super) last: Option<Value>,
    /// The metric that selected the best epoch.
    pub(super) metric: Option<Metric>,
}

impl Record {
    /// Reads the run of `binary` in the folder `dir`.
    ///
    /// # Errors
    /// Fails if the folder holds no run of `binary`, or a file is damaged.
    pub(super) fn read(binary: &str, dir: &Path) -> Result<Self> {
        let (_, config) = Run::open(binary, Some(dir))?;
        let path = dir.join("metrics.jsonl");
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            text => text.with_context(|| format!("{}: cannot read it", path.display()))?,
        };
        let line = |(number, line): (usize, &str)| {
            serde_json::from_str::<Value>(line)
                .map_err(|_| anyhow!("{}: line {} is no JSON", path.display(), number + 1))
        };
        let mut epochs = text.lines().enumerate().map(line).collect::<Result<Vec<Value>>>()?;
        let last = epochs.pop_if(|last| last["final"] == true);
        let metric = metric(epochs.first(), "val_").or_else(|| metric(last.as_ref(), "test_"));
        Ok(Self { config, epochs, last, metric })
    }

    /// The settings by the names of their options.
    pub(super) fn settings(&self) -> Map<String, Value> {
        self.config["settings"].as_object().cloned().unwrap_or_default()
    }

    /// The number of the epoch with the best validation score, and its score.
    pub(super) fn best(&self) -> Option<(usize, f64)> {
        let metric = self.metric?;
        let (number, value) = (0..self.epochs.len())
            .filter_map(|at| Some((at, self.epochs[at][format!("val_{}", metric.name())].as_f64()?)))
            .reduce(|best, other| {
                let loss = |at: usize| self.epochs[at]["val_loss"].as_f64().unwrap_or(f64::INFINITY);
                let [goodness, others] = [best.1, other.1].map(|value| metric.goodness(value));
                match others > goodness || others == goodness && loss(other.0) < loss(best.0) {
                    true => other,
                    false => best,
                }
            })?;
        Some((number + 1, value))
    }

    /// The score on the test data, on the scale of the metric.
    pub(super) fn test(&self) -> Option<f64> {
        self.last.as_ref()?[format!("test_{}", self.metric?.name())].as_f64()
    }

    /// How long the run took; of an unfinished or resumed one, at least how long its steps did.
    pub(super) fn seconds(&self) -> Option<f64> {
        let steps = self.epochs.iter().map(|epoch| epoch["seconds"].as_f64()).sum::<Option<f64>>();
        let steps = steps.filter(|_| !self.epochs.is_empty());
        // The last process that trained.
        let last = self.last.as_ref().and_then(|last| last["seconds"].as_f64());
        [steps, last].into_iter().flatten().reduce(f64::max)
    }

    /// A value of the metric, as text.
    pub(super) fn shown(&self, value: f64) -> String {
        self.metric.map_or_else(|| value.to_string(), |metric| metric.format(value).trim().to_string())
    }
}

/// The metric whose value is in `line`, under its name with a prefix.
fn metric(line: Option<&Value>, prefix: &str) -> Option<Metric> {
    const ALL: [Metric; 6] =
        [Metric::ACCURACY, Metric::F1, Metric::PERPLEXITY, Metric::NATS, Metric::EXACT_MATCH, Metric::BLEU];
    let named = |name: &str| ALL.into_iter().find(|metric| metric.name() == name);
    line?.as_object()?.keys().find_map(|key| named(key.strip_prefix(prefix)?))
}

/// The value of an option on the command line; `None` for an absent value and a flag that is off.
pub(super) fn option_value(value: &Value) -> Option<String> {
    match value {
        Value::Null | Value::Bool(false) => None,
        Value::Bool(true) => Some("true".to_string()),
        Value::String(text) => Some(text.clone()),
        Value::Array(values) => Some(values.iter().filter_map(option_value).collect::<Vec<_>>().join(",")),
        Value::Number(number) => Some(match number.as_f64() {
            Some(value) if number.is_f64() => {
                // JSON holds an f32 with the digits of the nearest f64.
                let short = value as f32;
                if f64::from(short) == value { short.to_string() } else { value.to_string() }
            }
            _ => number.to_string(),
        }),
        Value::Object(_) => Some(value.to_string()),
    }
}

/// A duration in words: `9.3 s`, `4 min 20 s` or `2 h 5 min`.
pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_record_knows_the_best_epoch_and_the_test_score() {
        let dir = tempfile::tempdir().unwrap();
        let run = Run::create("test", Some(dir.path()), &json!({})).unwrap();
        let read = || Record::read("test", dir.path());
        let record = read().unwrap();
        assert!(record.best().is_none() && record.last.is_none() && record.seconds().is_none());
        let epoch =
            |loss: f64, f1: f64| json!({ "val_loss": loss, "val_f1": f1, "seconds": 2.0 }).to_string();
        let lines = [epoch(1.0, 0.5), epoch(0.7, 0.75), epoch(0.9, 0.75)].join("\n") + "\n";
        run.write("metrics.jsonl", &lines).unwrap();
        let record = read().unwrap();
        assert_eq!((record.best(), record.test(), record.seconds()), (Some((2, 0.75)), None, Some(6.0)));
        let last = json!({ "final": true, "test_loss": 1.0, "test_f1": 0.25, "seconds": 70.4 });
        run.write("metrics.jsonl", &format!("{lines}{last}\n")).unwrap();
        let record = read().unwrap();
        assert_eq!((record.test(), record.seconds().map(duration)), (Some(0.25), Some("1 min 10 s".into())));
        // It was resumed in its third epoch.
        run.write("metrics.jsonl", &format!("{lines}{}\n", json!({ "final": true, "seconds": 3.0 })))
            .unwrap();
        assert_eq!(read().unwrap().seconds(), Some(6.0));
        assert_eq!(record.shown(0.25), "25.00%");
        run.write("metrics.jsonl", "{\"epoch\":").unwrap();
        assert!(read().err().unwrap().to_string().contains("metrics.jsonl: line 1 is no JSON"));
    }

    #[test]
    fn values_of_options_are_short_and_read_back() {
        let shown = |value: Value| option_value(&value);
        assert_eq!(shown(json!(0.3f32)), Some("0.3".into()));
        assert_eq!(shown(json!(1e-7)), Some("0.0000001".into()));
        assert_eq!(shown(json!(0.1)), Some("0.1".into()));
        assert_eq!(shown(json!([30, 20])), Some("30,20".into()));
        assert_eq!(
            (shown(json!(null)), shown(json!(false)), shown(json!(u64::MAX))),
            (None, None, Some(u64::MAX.to_string()))
        );
    }
}
