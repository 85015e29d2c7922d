//! Training and evaluation, the same for every recipe.

use super::memory;
use super::options::Given;
use super::process::{STOP, ending_at_once, prepare};
use super::recipe::{
    About, AnyRecipe, CLASSES, Data, Facts, GRADIENT_FLOW, PATHS, Saved, Start, Test, Trained, Training,
};
use super::text::COLUMNS;
use super::together::{self, check_same_facts, check_same_program};
use super::{Outcome, UsageError, complain, count, report, shell_quoted, show_notes, unrecordable};
use crate::device::device_name;
use crate::nn::{BatchNorm, count_parameters, seeded_var_builder};
use crate::plots::{self, Chart, Line};
use crate::processes::{share, together};
use crate::train::{self, Epoch, Metric, Report, Run, Trainer, TrainerOptions, say};
use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use candle_core::{DType, Device};
use candle_nn::VarMap;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::sync::{Once, PoisonError};
use std::time::Instant;

/// Trains as the settings say, and tests the model.
pub(super) fn train<D: Data>(training: &Training<D>) -> Result<Outcome> {
    let Training { settings, start, .. } = training;
    if let Some(experiment) = settings.experiment() {
        let size = training.size();
        ensure!(
            size == 1,
            UsageError(format!("found {size} processes, expected one: this trains several models"))
        );
        return experiment(training);
    }
    // Before the data, which options choose.
    if let Some(processes) = &training.processes {
        let resumed = start.resume.as_ref().map(|(_, config)| config["id"].clone()).unwrap_or_default();
        check_same_program(
            processes.as_ref(),
            (settings.binary, &settings.fields),
            &training.device,
            &resumed,
        )?;
    }
    let data = load(training)?;
    Ok(match fit_and_test(training, settings, &data, start)? {
        Fitted::Tested(_) => Outcome::Done,
        Fitted::Interrupted => Outcome::Interrupted,
    })
}

/// Reads the data to train on. A signal ends the process meanwhile.
pub(super) fn load<D: Data>(training: &Training<D>) -> Result<D> {
    prepare(|| match &training.processes {
        Some(processes) => together(processes, || read(training)),
        None => read(training),
    })
}

fn read<D: Data>(training: &Training<D>) -> Result<D> {
    let data = D::load(training.sources.data_options()?, &training.options(), None);
    match &training.start.resume {
        Some((run, _)) => {
            data.map_err(|error| with_origin(error, run, &training.settings.fields, &training.given))
        }
        None => data,
    }
}

/// Adds to an error of loading the data of `run` where their path comes from, if they are gone from there.
fn with_origin(error: Error, run: &Run, settings: &Map<String, Value>, given: &Given) -> Error {
    let text = format!("{error:#}");
    let is_gone = |path: &str| text.contains(path) && !Path::new(path).exists();
    let path = |name: &str| settings.get(name).and_then(Value::as_str);
    let names_path = |name: &&&str| !given.contains(name) && path(name).is_some_and(is_gone);
    match PATHS.iter().find(names_path) {
        Some(name) => anyhow!(
            "{text}; the path is recorded in {}/config.json: if the data has moved, name it with --{}",
            run.dir().display(),
            name.replace('_', "-")
        ),
        None => error,
    }
}

/// Most classes of a confusion matrix that is drawn: its size grows with their square.
const MOST_CLASSES_DRAWN: usize = 200;

/// The end of a training run.
pub(super) enum Fitted {
    Tested(Test),
    /// A signal came, and the user knows how to resume.
    Interrupted,
}

/// Trains and tests a model, and completes its run folder.
pub(super) fn fit_and_test<D: Data>(
    training: &Training<D>,
    settings: &AnyRecipe<D>,
    data: &D,
    start: &Start,
) -> Result<Fitted> {
    let begin = Instant::now();
    let Fit { run, model, report, command } = fit(training, settings, data, start)?;
    let (device, best) = (&training.device, report.epochs.get(report.best_epoch.wrapping_sub(1)));
    let test = || match &training.processes {
        Some(processes) => together(processes, || test_model(data, &model, best, device)),
        None => test_model(data, &model, best, device),
    };
    let words = how_to_resume(&command);
    let Some(test) = unless_interrupted(training, report.interrupted, &words, test)? else {
        say(&words);
        return Ok(Fitted::Interrupted);
    };
    let Some(run) = &run else { return test.map(Fitted::Tested) };
    let test = test.map_err(|error| {
        let first = format!("{error:#}").lines().next().unwrap_or_default().to_string();
        anyhow!(
            "{first}; the trained model is kept: repair the test data, then use --resume {}",
            shell_quoted(start.parent.as_deref().unwrap_or(run.dir()))
        )
    })?;
    let mut last = Map::from_iter([
        ("final".to_string(), json!(true)),
        ("best_epoch".to_string(), json!(report.best_epoch)),
    ]);
    last.extend(test.record.clone());
    last.insert("seconds".to_string(), json!(begin.elapsed().as_secs_f64()));
    run.write_final(&report.epochs, report.metric, &Value::Object(last))?;
    let (drawing, curves) = curves(&report)?;
    run.write("curves.svg", &drawing)?;
    if let Some(evaluation) = &test.evaluation {
        let classes = data.about().facts.classes();
        if classes.len() <= MOST_CLASSES_DRAWN {
            let confusion = evaluation.confusion_matrix(classes.len())?;
            run.write("confusion.svg", &plots::confusion_matrix(&confusion, classes)?)?;
        } else {
            show_notes(&[format!("no confusion matrix is drawn of more than {MOST_CLASSES_DRAWN} classes")]);
        }
    }
    data.plot(run, &model, &test, device)?;
    report::write(run, training, settings, start, &test.text, &curves)?;
    let separator = if test.text.contains('\n') { "\n" } else { "; " };
    let dir = run.dir().display();
    say(&format!("{}{separator}best epoch {}; run folder {dir}", test.text, report.best_epoch));
    Ok(Fitted::Tested(test))
}

/// Calls `test`, unless training was interrupted or a signal has come since. A signal during the test ends all with the line
/// `words`.
fn unless_interrupted<D: Data>(
    training: &Training<D>,
    interrupted: bool,
    words: &str,
    test: impl FnOnce() -> Result<Test>,
) -> Result<Option<Result<Test>>> {
    let words = words.to_string();
    ending_at_once(
        move || together::report(&words, say),
        || {
            // All processes test, or none does: the signal may have come to one of them.
            let asked = together::any(training.processes.as_ref(), interrupted || STOP.is_requested())?;
            Ok((!asked).then(test))
        },
    )
}

/// What to say when a signal has interrupted a training that `command` resumes.
pub(super) fn how_to_resume(command: &str) -> String {
    format!("interrupted; resume with: {command}")
}

/// The command that resumes the run in `dir`.
pub(super) fn resume_command(binary: &str, dir: &Path) -> String {
    format!("{binary} train --resume {}", shell_quoted(dir))
}

/// What a training leaves.
pub(super) struct Fit<D: Data> {
    run: Option<Run>,
    model: Box<D::Model>,
    pub(super) report: Report,
    /// Resumes the run.
    command: String,
}

/// Trains a model in a new run folder, or continues in the folder of a resumed run. Of several processes, the first has the
/// folder.
pub(super) fn fit<D: Data>(
    training: &Training<D>,
    settings: &AnyRecipe<D>,
    data: &D,
    start: &Start,
) -> Result<Fit<D>> {
    let (options, device) = (settings.train_options(), &training.device);
    let about = data.about();
    let parameters = count_parameters(|vb| settings.model(&about.facts, vb))?;
    let examples = usize::try_from(about.sizes[0])?;
    let batch_size = options.step_size(data.batch_size(options), examples);
    let rows = data.largest_batch(batch_size.div_ceil(training.size()));
    if device.is_cpu() {
        let activations = rows.saturating_mul(settings.activations(&about.facts));
        memory::check(parameters, options.moments(), activations)?;
    }
    let vars = VarMap::new();
    let vb = seeded_var_builder(&vars, options.seed, DType::F32, device);
    let model = settings.model(&about.facts, vb)?;
    let note = data.initialise(&vars)?;
    let mut optimizer = options.optimizer(&vars)?;
    settings.constrain(&mut optimizer)?;
    let task = data.task(&model, device)?;
    let steps = train::steps_per_epoch(task.examples(), batch_size, &vars);
    let processes = if settings.sync_batch_norm() { 1 } else { training.size() };
    check_batches(settings.least_batch(&about.facts), [task.examples(), batch_size, steps], processes)?;
    let parameters = trained_parameters(&vars);
    let mut record = record::<D>(about);
    record.insert("parameters".to_string(), json!(parameters));
    if note.is_some() {
        // The initial weights come from a file.
        record.insert("initialisation_fingerprint".to_string(), json!(train::weights_checksum(&vars)?));
    }
    if let Some(processes) = &training.processes {
        check_same_facts(processes.as_ref(), &record)?;
    }
    let run = match training.is_first() {
        true => Some(begin(training, settings, data, start, (task.metric(), record, note))?),
        false => None,
    };
    let dir = run.as_ref().map(|run| start.parent.as_deref().unwrap_or(run.dir()));
    let command = resume_command(settings.binary, dir.unwrap_or(Path::new("")));
    let command = together::share_command(training.processes.as_ref(), command)?;
    // The parts of an experiment would repeat the notes.
    static NOTES: Once = Once::new();
    NOTES.call_once(|| show_notes(&training.options().without_effect(examples, steps)));
    let sync_batch_norm = settings.sync_batch_norm();
    let options = TrainerOptions { batch_size, sync_batch_norm, ..options.options(steps) };
    let (progress, stop) = (training.progress.as_ref(), STOP.clone());
    let processes = training.processes.clone();
    let trainer = Trainer { options, run: run.as_ref(), progress, stop, processes };
    let report = trainer.fit(task.as_ref(), &vars, &mut optimizer)?;
    drop(task);
    Ok(Fit { run, model, report, command })
}

/// Checks that each of the `processes` has `least` examples or more in every batch of an epoch of `steps` steps.
fn check_batches(least: usize, [examples, batch_size, steps]: [usize; 3], processes: usize) -> Result<()> {
    let last = examples.saturating_sub(batch_size.saturating_mul(steps.saturating_sub(1)));
    // No share is smaller than that of process 0, except for empty ones.
    let smallest = |batch: usize| share(batch, 0, processes).len();
    let found = smallest(last).min(if steps > 1 { smallest(batch_size) } else { usize::MAX });
    let place = if processes > 1 { " of one process" } else { "" };
    ensure!(
        found >= least,
        "the smallest batch{place} has {}, but batch normalisation needs {least}, as the last feature maps are single pixels: \
         choose another --batch-size, or larger images",
        count(found, "image")
    );
    Ok(())
}

/// Prepares the run folder, and shows what will be trained.
fn begin<D: Data>(
    training: &Training<D>,
    settings: &AnyRecipe<D>,
    data: &D,
    start: &Start,
    (metric, record, note): (Metric, Map<String, Value>, Option<String>),
) -> Result<Run> {
    let (about, device) = (data.about(), &training.device);
    let parameters = record["parameters"].clone();
    let mut resumable = None;
    if let Some((run, _)) = &start.resume {
        run.lock()?;
        resumable = train::check_resumable(run, metric)?;
    }
    let run = folder(settings, start, device, record)?;
    show_notes(resumable.as_slice());
    about.facts.write(&run)?;
    // A part of a run resumes with the copies of the whole.
    if start.parent.is_none() {
        data.keep_files(&run)?;
    }
    if !training.progress.is_quiet() {
        note.iter().for_each(|note| say(note));
        let [training_size, validation, test] = about.sizes;
        let processes = match training.size() {
            1 => String::new(),
            size => format!(" on {size} processes"),
        };
        say(&format!(
            "{}: {parameters} parameters{}; {training_size} training, {validation} validation, {test} test {} of {}; device \
             {}{processes}; run folder {}",
            settings.binary,
            data.describe(),
            D::NOUN,
            about.name,
            device_name(device),
            run.dir().display()
        ));
    }
    Ok(run)
}

/// Tests a model, and notes what it does not know of the test part.
fn test_model<D: Data>(data: &D, model: &D::Model, best: Option<&Epoch>, device: &Device) -> Result<Test> {
    data.note_unknown()?;
    data.test(model, best, device)
}

/// Tests a trained model on the data that the options choose.
pub(super) fn eval<D: Data>(trained: Trained<D>, test: &D::TestOptions) -> Result<Outcome> {
    let Trained { run, settings, facts, model, device } = trained;
    let data = D::load(settings.data_options()?, settings.train_options(), Some((facts, test)))
        .map_err(|error| with_origin(error, &run, &settings.fields, &Given::default()))?;
    say(&test_model(&data, &model, None, &device)?.text);
    Ok(Outcome::Done)
}

/// What `config.json` records about a data set.
pub(super) fn record<D: Data>(about: &About<D::Facts>) -> Map<String, Value> {
    let classes = about.facts.classes();
    let classes = (!classes.is_empty()).then(|| (CLASSES.to_string(), json!(classes)));
    let fingerprints = about.fingerprints.as_object().into_iter().flatten();
    let fingerprints =
        fingerprints.map(|(part, fingerprint)| (format!("{part}_fingerprint"), fingerprint.clone()));
    // When the classes have changed, so has the data, and when the data has changed, so have its words.
    let mut record: Map<String, Value> =
        classes.into_iter().chain(fingerprints).chain(about.facts.record()).collect();
    for (part, size) in ["training", "validation", "test"].iter().zip(about.sizes) {
        record.insert(format!("{part}_{}", D::UNIT), json!(size));
    }
    record
}

/// Checks that a run trains a model of its own.
pub(super) fn check_trains_model(run: &Run, config: &Value) -> Result<()> {
    if run.model().exists() || !config["parameters"].is_null() {
        return Ok(());
    }
    let dir = run.dir().display();
    if let Some(part) = part_with_model(run.dir()) {
        bail!("{dir}: this run has one model per folder in it: name one, such as {}", part.display());
    }
    let holds = match config[GRADIENT_FLOW].is_null() {
        true => "it consists of several trainings, and none of them has saved a model yet",
        false => "it plots the gradient flow",
    };
    bail!("{dir}: this run has no model: {holds}")
}

/// Loads the best weights of a run.
pub(super) fn load_trained<D: Data>(saved: Saved<D>) -> Result<Trained<D>> {
    let Saved { run, config, settings, device } = saved;
    let facts = D::Facts::read(&run, &config)?;
    let (model, names_run) = train::load_model(&run, &device, |vb| settings.model(&facts, vb))?;
    if !names_run {
        let path = run.model();
        complain(&format!("note: {}: these weights name no run: another program wrote them", path.display()));
    }
    Ok(Trained { run, settings, facts, model, device })
}

/// The first of the folders in `dir` that are runs with a model, such as folds.
fn part_with_model(dir: &Path) -> Option<PathBuf> {
    let parts = std::fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path());
    parts.filter(|part| part.join("model.safetensors").exists()).min()
}

/// A new run folder that records the device, `facts` and the settings, or the folder of the run to resume.
///
/// The test data of a resumed run may have changed: the model does not depend on them.
///
/// # Errors
/// Fails if the folder can't be written, another process uses it, or the data of a resumed run has changed.
pub(super) fn folder<D: Data>(
    settings: &AnyRecipe<D>,
    start: &Start,
    device: &Device,
    mut facts: Map<String, Value>,
) -> Result<Run> {
    let takes_all = settings.train_options().optimizer.is_full_batch();
    let (binary, mut settings) = (settings.binary, Value::Object(settings.fields.clone()));
    for name in PATHS {
        // The name of weights on the hub is no path.
        if let Some(path) = settings[name].as_str().map(Path::new).filter(|path| path.exists()) {
            // A pipe such as /dev/fd/63 leads to nothing with a path.
            let whole = path.canonicalize().or_else(|_| std::path::absolute(path));
            let failed = || format!("{}: the absolute path can't be found", path.display());
            let whole = whole.with_context(failed)?;
            settings[name] = json!(whole.to_str().with_context(|| unrecordable(&whole))?);
        }
    }
    if takes_all {
        settings["batch_size"] = facts[&format!("training_{}", D::UNIT)].clone();
    }
    let Some((run, recorded)) = &start.resume else {
        let mut config = json!({ "device": device_name(device) });
        facts.into_iter().for_each(|(name, fact)| config[name] = fact);
        config["settings"] = settings;
        return Run::create(binary, start.out.as_deref(), &config);
    };
    // The contents of a table's columns are compared, not their names and places.
    let columns = facts.shift_remove(COLUMNS);
    let (test, facts): (Map<_, _>, Map<_, _>) =
        facts.into_iter().partition(|(name, _)| name.starts_with("test_"));
    let missing = test.iter().find(|(name, fact)| fact.is_null() && !recorded[*name].is_null());
    ensure!(
        missing.is_none(),
        "{}: cannot resume: found no test split, but the run started with one: restore its file",
        run.dir().display()
    );
    run.check_facts(recorded, &Value::Object(facts))?;
    run.lock()?;
    let mut config = recorded.clone();
    if test.iter().any(|(name, fact)| config[name] != *fact) {
        let dir = run.dir().display();
        complain(&format!(
            "note: {dir}: the test data has changed since the run started; the model stays as it is"
        ));
        test.into_iter().for_each(|(name, fact)| config[name] = fact);
    }
    if let Some(columns) = columns {
        config[COLUMNS] = columns;
    }
    config["settings"] = settings;
    if config != *recorded {
        run.reconfigure(&config)?;
    }
    Ok(run.clone())
}

/// Number of trained parameters, without running statistics.
fn trained_parameters(vars: &VarMap) -> usize {
    let vars = vars.data().lock().unwrap_or_else(PoisonError::into_inner);
    vars.iter().filter(|(name, _)| !BatchNorm::is_buffer(name)).map(|(_, var)| var.elem_count()).sum()
}

/// Draws losses and metric over epochs: in one drawing, and in one each.
fn curves(report: &Report) -> Result<(String, Vec<String>)> {
    let points =
        |value: fn(&Epoch) -> f64| report.epochs.iter().map(|e| (e.epoch as f64, value(e))).collect();
    let name = &*report.metric.name().replace('_', " ");
    let title = name[..1].to_uppercase() + &name[1..];
    let charts = [
        Chart {
            title: "Loss",
            x_label: "epoch",
            y_label: "mean loss",
            lines: vec![
                Line::new("training", points(|e| e.train_loss)),
                Line::new("validation", points(|e| e.validation.loss)),
            ],
            ..Chart::default()
        },
        Chart {
            title: &title,
            x_label: "epoch",
            y_label: name,
            lines: vec![Line::new("validation", points(|e| e.validation.metric))],
            ..Chart::default()
        },
    ];
    Ok((plots::line_charts(&charts)?, charts.chunks(1).map(plots::line_charts).collect::<Result<_>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_batch_normalisation_cannot_take_is_known_in_advance() {
        for (sizes, processes, fits) in [
            ([10, 4, 3], 1, true),
            // The last one joins the batch before.
            ([9, 4, 2], 1, true),
            ([1, 4, 1], 1, false),
            ([3, 1, 3], 1, false),
            ([12, 4, 3], 2, true),
            ([12, 3, 4], 2, false),
            ([11, 4, 3], 2, false),
            ([8, 7, 2], 4, false),
        ] {
            assert_eq!(check_batches(2, sizes, processes).is_ok(), fits, "{sizes:?} {processes}");
        }
        assert!(check_batches(1, [1, 1, 1], 1).is_ok());
    }
}
