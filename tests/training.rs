//! The end of training, refused arguments, and the files of a run.

use anyhow::Result;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarMap;
use candle_textbook::data::{Level, TextStream};
use candle_textbook::models::language_model::{Config, LanguageModel};
use candle_textbook::nn::{Cell, Mode, seeded_var_builder};
use candle_textbook::optim::{Clip, Curve, Lbfgs, Method, NewtonCg, Optimizer, Sgd};
use candle_textbook::train::{
    LanguageModelling, LanguageModellingConfig, Metric, Progress, Quiet, Report, Run, Score, Stop, Task,
    Trainer, TrainerOptions, Windowing, evaluate_text, load_weights,
};
use std::cell::RefCell;
use std::path::Path;
use tempfile::TempDir;

/// Minimises w² and reports scripted validation metrics, one per epoch.
struct Scripted {
    w: Var,
    /// The step with a loss of NaN.
    nan_at: Option<u64>,
    metrics: Vec<f64>,
    epoch: std::cell::Cell<usize>,
    /// Whether the loss has no graph.
    detached: bool,
}

impl Scripted {
    /// A task with w = 1, and its variables.
    fn new(metrics: &[f64]) -> (Self, VarMap) {
        let (vars, w) = (VarMap::new(), Var::new(1f64, &Device::Cpu).unwrap());
        vars.data().lock().unwrap().insert("w".to_string(), w.clone());
        let (metrics, epoch) = (metrics.to_vec(), Default::default());
        (Self { w, nan_at: None, metrics, epoch, detached: false }, vars)
    }
}

impl Task for Scripted {
    fn examples(&self) -> usize {
        5
    }

    fn loss(&self, _: &[u32], mode: Mode) -> Result<Tensor> {
        let Mode::Train { step, epoch, .. } = mode else { anyhow::bail!("not a training step") };
        self.epoch.set(epoch);
        let loss = self.w.sqr()?;
        Ok(match self.detached {
            true => loss.detach(),
            false if Some(step) == self.nan_at => loss.affine(f64::NAN, 0.0)?,
            false => loss,
        })
    }

    fn validate(&self) -> Result<Score> {
        Ok(Score { loss: 1.0, metric: self.metrics[self.epoch.get()] })
    }

    fn metric(&self) -> Metric {
        Metric::ACCURACY
    }
}

/// Collects the messages.
#[derive(Default)]
struct Heard(RefCell<Vec<String>>);

impl Progress for Heard {
    fn message(&self, text: &str) {
        self.0.borrow_mut().push(text.to_string());
    }
}

fn options(epochs: usize, batch_size: usize, learning_rate: f64) -> TrainerOptions {
    let mut options = TrainerOptions::default();
    (options.epochs, options.batch_size, options.learning_rate) = (epochs, batch_size, learning_rate);
    options
}

/// Trains on `Scripted` in the run folder `dir`, new or not; also returns the final w.
fn train_in(
    dir: &Path,
    nan_at: Option<u64>,
    metrics: &[f64],
    options: TrainerOptions,
) -> (Result<Report>, f64) {
    train_by(Sgd::default().into(), &Quiet, dir, nan_at, metrics, options)
}

fn train_by(
    method: Method,
    progress: &dyn Progress,
    dir: &Path,
    nan_at: Option<u64>,
    metrics: &[f64],
    options: TrainerOptions,
) -> (Result<Report>, f64) {
    let run = match dir.join("config.json").exists() {
        true => Run::open("test", Some(dir)).unwrap().0,
        false => Run::create("test", Some(dir), &serde_json::json!({})).unwrap(),
    };
    let (mut task, vars) = Scripted::new(metrics);
    task.nan_at = nan_at;
    let mut optimizer = Optimizer::new(method, &vars).unwrap();
    let trainer = Trainer { options, run: Some(&run), progress, ..Trainer::default() };
    let report = trainer.fit(&task, &vars, &mut optimizer);
    (report, task.w.to_scalar::<f64>().unwrap())
}

/// Trains for three steps per epoch, each of which multiplies w by 0.98.
///
/// Also returns the run folder and the final w.
fn train(nan_at: Option<u64>, metrics: &[f64], options: TrainerOptions) -> (Result<Report>, TempDir, f64) {
    let mut options = options;
    options.epochs = metrics.len();
    options.batch_size = 2;
    options.learning_rate = 0.01;
    let dir = tempfile::tempdir().unwrap();
    let (report, w) = train_in(dir.path(), nan_at, metrics, options);
    (report, dir, w)
}

#[test]
fn a_loss_of_nan_is_an_error_that_names_the_step_and_the_last_checkpoint() {
    for (nan_at, checkpoint_every, saved_step) in
        [(0, None, None), (2, None, None), (2, Some(2), Some(2)), (4, None, Some(3)), (5, Some(4), Some(4))]
    {
        let mut options = TrainerOptions::default();
        options.checkpoint_every = checkpoint_every;
        let (report, dir, _) = train(Some(nan_at), &[1.0, 2.0, 3.0], options);
        let message = report.unwrap_err().to_string();
        assert!(message.contains(&format!("step {} is NaN", nan_at + 1)), "{message}");
        let path = dir.path().join("checkpoint.safetensors");
        assert_eq!(path.exists(), saved_step.is_some());
        match saved_step {
            None => assert!(message.contains("no checkpoint yet"), "{message}"),
            Some(step) => {
                assert!(message.contains(&path.display().to_string()), "{message}");
                let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
                let w = tensors["parameters.w"].to_scalar::<f64>().unwrap();
                assert!((w - 0.98f64.powi(step)).abs() < 1e-12, "{w} after {step} steps");
            }
        }
    }
}

/// Keeps the losses of all steps, and requests a stop after `stop_after` of them.
struct Watching {
    losses: std::cell::RefCell<Vec<f64>>,
    stop: Stop,
    stop_after: usize,
}

impl Progress for Watching {
    fn step_done(&self, _: usize, loss: f64) {
        self.losses.borrow_mut().push(loss);
        if self.losses.borrow().len() == self.stop_after {
            assert!(!self.stop.request());
        }
    }
}

#[test]
fn a_task_trains_without_a_run_folder_on_its_own_metric_until_it_is_stopped() {
    /// The scripted scores as errors: the lowest is the best.
    struct Errors(Scripted);
    impl Task for Errors {
        fn examples(&self) -> usize {
            self.0.examples()
        }
        fn loss(&self, batch: &[u32], mode: Mode) -> Result<Tensor> {
            self.0.loss(batch, mode)
        }
        fn validate(&self) -> Result<Score> {
            self.0.validate()
        }
        fn metric(&self) -> Metric {
            Metric::new("error", false, |value| format!("{value} mm"))
        }
    }
    for (stop_after, steps, epochs) in [(usize::MAX, 9, 3), (4, 4, 1)] {
        let (task, vars) = Scripted::new(&[3., 1., 2.]);
        let (w, task) = (task.w.clone(), Errors(task));
        let options = options(3, 2, 0.01);
        let stop = Stop::default();
        let watching = Watching { losses: Default::default(), stop: stop.clone(), stop_after };
        let trainer = Trainer { options, progress: &watching, stop, ..Trainer::default() };
        let mut optimizer = Optimizer::new(Sgd::default(), &vars).unwrap();
        let report = trainer.fit(&task, &vars, &mut optimizer).unwrap();
        assert_eq!((watching.losses.borrow().len(), report.epochs.len()), (steps, epochs));
        assert_eq!(report.interrupted, stop_after < 9);
        assert_eq!(report.metric.format(1.5), "1.5 mm");
        // The weights of the second epoch, which is the best, or of the last step.
        let expected = if report.interrupted { 4 } else { 6 };
        assert_eq!(report.best_epoch, if report.interrupted { 1 } else { 2 });
        assert!((w.to_scalar::<f64>().unwrap() - 0.98f64.powi(expected)).abs() < 1e-12);
    }
}

#[test]
fn patience_ends_training_with_the_weights_of_the_best_epoch() {
    let mut options = TrainerOptions::default();
    options.patience = Some(2);
    let (report, dir, w) = train(None, &[1.0, 3.0, 2.0, 3.0, 4.0], options);
    let report = report.unwrap();
    assert_eq!((report.epochs.len(), report.best_epoch, report.interrupted), (4, 2, false));
    assert!((w - 0.98f64.powi(6)).abs() < 1e-12, "{w}");
    let saved = candle_core::safetensors::load(dir.path().join("model.safetensors"), &Device::Cpu).unwrap();
    assert_eq!(saved["w"].to_scalar::<f64>().unwrap(), w);
    let lines = std::fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    assert_eq!((&lines[3]["step"], &lines[3]["val_accuracy"]), (&12.into(), &3.0.into()));
}

#[test]
fn training_ends_when_no_step_lowers_the_loss_and_says_so() {
    for method in [Method::from(Lbfgs::default()), NewtonCg::default().into()] {
        let dir = tempfile::tempdir().unwrap();
        let mut ends = vec![];
        // The second time it resumes, already at its end.
        for epochs in [30, 40] {
            let mut options = TrainerOptions::default();
            (options.epochs, options.keep_checkpoint) = (epochs, true);
            let heard = Heard::default();
            let (report, _) = train_by(method, &heard, dir.path(), None, &[1.0; 40], options);
            let (report, heard) = (report.unwrap(), heard.0.into_inner());
            let last = report.epochs.last().unwrap();
            assert!(last.train_loss < 1e-6 && report.epochs.len() < 20, "{method:?}: {report:?}");
            let words = format!("converged in epoch {}: no step lowers the loss", report.epochs.len());
            assert!(heard.len() == 1 && heard[0].starts_with(&words), "{heard:?}");
            ends.push(report.epochs.len());
        }
        assert_eq!(ends[0], ends[1]);
    }
}

#[test]
fn the_plateau_schedule_lowers_the_rate_and_ends_training() {
    let curve = Curve::Plateau { factor: 0.5, patience: 1, stop_at: 0.25 };
    let mut options = TrainerOptions::default();
    options.schedule = curve.into();
    let report = train(None, &[1.0; 9], options).0.unwrap();
    let rates: Vec<f64> = report.epochs.iter().map(|epoch| epoch.learning_rate).collect();
    assert_eq!(rates, [0.01, 0.01, 0.005]);
}

#[test]
fn huge_option_values_do_not_overflow() {
    let mut options = options(usize::MAX, usize::MAX, 0.01);
    options.schedule = Curve::Cosine.into();
    options.patience = Some(2);
    options.checkpoint_every = Some(u64::MAX);
    let dir = tempfile::tempdir().unwrap();
    let report = train_in(dir.path(), None, &[1.0; 3], options).0.unwrap();
    assert_eq!((report.epochs.len(), report.epochs[2].step), (3, 3));
}

#[test]
fn a_loss_without_a_graph_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let run = Run::create("test", Some(dir.path()), &serde_json::json!({})).unwrap();
    let (mut task, vars) = Scripted::new(&[1.0]);
    task.detached = true;
    let mut optimizer = Optimizer::new(Sgd::default(), &vars).unwrap();
    let trainer = Trainer { options: options(1, 2, 0.01), run: Some(&run), ..Trainer::default() };
    let message = trainer.fit(&task, &vars, &mut optimizer).unwrap_err().to_string();
    assert!(message.contains("loss of step 1 depends on no parameter"), "{message}");
}

#[test]
fn a_loss_of_several_numbers_and_other_variables_than_the_model_s_are_errors() {
    let (mut task, vars) = Scripted::new(&[1.0]);
    task.w = Var::new(&[1f64, 2.0], &Device::Cpu).unwrap();
    let mut optimizer = Optimizer::new(Sgd::default(), &vars).unwrap();
    for (vars, part) in [(vars, "loss of step 1 has the shape [2]"), (VarMap::new(), "variables: found none")]
    {
        let message = Trainer::default().fit(&task, &vars, &mut optimizer).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_patience_of_no_epochs_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(2, 5, 0.01);
    options.patience = Some(0);
    let error = train_in(dir.path(), None, &[1.0; 2], options).0.unwrap_err();
    assert_eq!(error.to_string(), "patience: found 0, expected at least 1");
}

#[test]
fn a_checkpoint_of_another_batch_size_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    train_in(dir.path(), None, &[1.0; 2], options(1, 2, 0.01)).0.unwrap();
    let message = train_in(dir.path(), None, &[1.0; 2], options(2, 1, 0.01)).0.unwrap_err().to_string();
    assert!(message.contains("step 3") && message.contains("5 steps per epoch"), "{message}");
}

#[test]
fn a_solver_needs_one_loss_of_all_examples_in_each_step() {
    let train = |options: TrainerOptions, extra: &str| {
        let dir = tempfile::tempdir().unwrap();
        let run = Run::create("test", Some(dir.path()), &serde_json::json!({})).unwrap();
        let (task, vars) = Scripted::new(&[1.0; 3]);
        vars.data().lock().unwrap().insert(extra.to_string(), task.w.clone());
        let mut optimizer = Optimizer::new(Lbfgs::default(), &vars).unwrap();
        Trainer { options, run: Some(&run), ..Trainer::default() }.fit(&task, &vars, &mut optimizer)
    };
    let good = options(3, 5, 1.0);
    let report = train(good.clone(), "w").unwrap();
    assert_eq!(report.epochs[0].train_loss, 1.0);
    assert!(report.epochs.last().unwrap().train_loss < 1e-9);
    let refuse = |options, extra| train(options, extra).unwrap_err().to_string();
    let message = refuse(options(3, 4, 1.0), "w");
    assert!(message.starts_with("batch size: found 4, expected at least 5"), "{message}");
    let mut clipped = good.clone();
    clipped.clip = Clip::Norm(1.0);
    let message = refuse(clipped, "w");
    assert!(message.starts_with("gradient clipping: expected none"), "{message}");
    let message = refuse(good, "norm.running_mean");
    assert!(message.starts_with("batch normalisation"), "{message}");
}

/// Two epochs of three steps at a constant rate.
fn short() -> TrainerOptions {
    options(2, 2, 0.01)
}

/// The same, for a run that can be extended.
fn extensible() -> TrainerOptions {
    let mut options = short();
    options.keep_checkpoint = true;
    options
}

#[test]
fn a_flipped_bit_of_a_checkpoint_or_a_model_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let options = extensible();
    train_in(dir.path(), None, &[1.0; 2], options.clone()).0.unwrap();
    let checkpoint = dir.path().join("checkpoint.safetensors");
    let bytes = std::fs::read(&checkpoint).unwrap();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        std::fs::write(&checkpoint, damaged).unwrap();
        let message = train_in(dir.path(), None, &[1.0; 2], options.clone()).0.unwrap_err().to_string();
        assert!(message.contains("checkpoint.safetensors: "), "byte {at}: {message}");
    }

    let model = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&model).unwrap();
    let vars = VarMap::new();
    let w = Var::new(1f64, &Device::Cpu).unwrap();
    vars.data().lock().unwrap().insert("w".to_string(), w.clone());
    load_weights(&model, &vars).unwrap();
    let expected = w.to_scalar::<f64>().unwrap();
    let key = bytes.windows(8).position(|text| text == b"checksum").unwrap();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        std::fs::write(&model, damaged).unwrap();
        // Under another name the checksum is a remark of another program.
        let is_noticed = load_weights(&model, &vars).is_err();
        assert!(is_noticed || (key..key + 8).contains(&at), "byte {at}");
        assert_eq!(w.to_scalar::<f64>().unwrap(), expected);
    }
}

#[test]
fn files_of_another_run_and_an_edited_configuration_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two] = [1, 2].map(|seed| {
        let out = dir.path().join(seed.to_string());
        drop(Run::create("test", Some(&out), &serde_json::json!({ "seed": seed })).unwrap());
        train_in(&out, None, &[1.0; 2], extensible()).0.unwrap();
        out
    });
    for (name, expected) in [
        ("model.safetensors", "the weights of another run"),
        ("checkpoint.safetensors", "belongs to another run"),
    ] {
        std::fs::copy(one.join(name), two.join(name)).unwrap();
        let message = format!("{:#}", train_in(&two, None, &[1.0; 2], short()).0.unwrap_err());
        assert!(message.contains(expected), "{message}");
    }

    let text = std::fs::read_to_string(one.join("config.json")).unwrap();
    let without = text.lines().filter(|line| !line.contains("checksum")).collect::<String>();
    for edited in [text.replace("\"seed\": 1", "\"seed\": 3"), without.replace(",}", "}")] {
        assert_ne!(edited, text);
        std::fs::write(one.join("config.json"), edited).unwrap();
        let message = Run::open("test", Some(&one)).unwrap_err().to_string();
        assert!(message.contains("config.json: it has changed since"), "{message}");
    }

    // Only the layout differs.
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    std::fs::write(one.join("config.json"), config.to_string()).unwrap();
    Run::open("test", Some(&one)).unwrap();
}

#[test]
fn a_run_resumes_after_an_epoch_with_an_infinite_score() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = extensible();
    train_in(dir.path(), None, &[1.0, f64::INFINITY], options.clone()).0.unwrap();
    options.epochs = 3;
    let report = train_in(dir.path(), None, &[1.0, f64::INFINITY, 2.0], options).0.unwrap();
    assert_eq!((report.epochs.len(), report.best_epoch), (3, 2));
    let lines = std::fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap();
    assert!(lines.lines().nth(1).unwrap().contains("\"val_accuracy\":null"), "{lines}");
}

#[test]
fn only_one_process_at_a_time_trains_in_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let first = Run::create("test", Some(dir.path()), &serde_json::json!({})).unwrap();
    let clone = first.clone();
    drop(first);
    // A lock keeps out every other `Run`, of this process too.
    let message = train_in(dir.path(), None, &[1.0; 2], short()).0.unwrap_err().to_string();
    assert!(message.contains("another process is training in this folder"), "{message}");
    clone.lock().unwrap();
    drop(clone);
    train_in(dir.path(), None, &[1.0; 2], short()).0.unwrap();

    // Another process has just started, and has written nothing yet.
    let dir = tempfile::tempdir().unwrap();
    let lock = std::fs::File::create(dir.path().join("run.lock")).unwrap();
    lock.lock().unwrap();
    let message = Run::create("test", Some(dir.path()), &serde_json::json!({})).unwrap_err().to_string();
    assert!(message.contains("another process"), "{message}");
}

#[test]
fn a_folder_with_nothing_but_temporary_files_counts_as_empty() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str| std::fs::write(dir.path().join(name), "{\"bin").unwrap();
    let create = || Run::create("test", Some(dir.path()), &serde_json::json!({}));
    write("notes.tmp");
    let message = create().unwrap_err().to_string();
    assert!(message.contains("not empty"), "{message}");
    let unexpanded = Run::create("test", Some(Path::new("~/run")), &serde_json::json!({})).unwrap_err();
    assert!(unexpanded.to_string().contains("~/run: ~ is not expanded here"), "{unexpanded}");
    assert!(!dir.path().join("run.lock").exists());
    std::fs::remove_file(dir.path().join("notes.tmp")).unwrap();
    ["run.lock", "config.json.tmp", "vocabulary.txt.tmp"].iter().for_each(|name| write(name));
    drop(create().unwrap());

    // Training removes the files that the killed process has left, and nothing else.
    ["checkpoint.safetensors.tmp", "notes.tmp"].iter().for_each(|name| write(name));
    train_in(dir.path(), None, &[1.0; 2], short()).0.unwrap();
    let names = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let temporary: Vec<_> = names.filter(|name| name.to_string_lossy().ends_with(".tmp")).collect();
    assert_eq!(temporary, ["notes.tmp"]);
}

#[test]
fn more_epochs_train_on_if_the_checkpoint_was_kept() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, kept, dropped] = ["whole", "kept", "dropped"].map(|name| dir.path().join(name));
    let scores = [1.0, 2.0, 3.0, 4.0];
    let longer = options(4, 2, 0.01);
    let (expected, w) = train_in(&whole, None, &scores, longer.clone());
    train_in(&kept, None, &scores, extensible()).0.unwrap();
    let (report, extended) = train_in(&kept, None, &scores, longer.clone());
    assert_eq!((report.unwrap().best_epoch, extended), (expected.unwrap().best_epoch, w));

    train_in(&dropped, None, &scores, short()).0.unwrap();
    let path = dropped.join("checkpoint.safetensors");
    assert!(candle_core::safetensors::load(&path, &Device::Cpu).unwrap().is_empty());
    let message = train_in(&dropped, None, &scores, longer).0.unwrap_err().to_string();
    assert!(message.contains("after 2 epochs and its checkpoint was not kept"), "{message}");
    // The trained result is still there.
    let (report, w) = train_in(&dropped, None, &scores, short());
    assert_eq!(report.unwrap().best_epoch, 2);
    assert!((w - 0.98f64.powi(6)).abs() < 1e-12, "{w}");
}

#[test]
fn a_run_does_not_resume_with_other_data() {
    let dir = tempfile::tempdir().unwrap();
    let facts = |text: &str| {
        let text = TextStream::from_memory("text", text, Level::Char).unwrap();
        serde_json::json!({ "tokens": text.len(), "fingerprint": text.fingerprint() })
    };
    Run::create("test", Some(dir.path()), &facts("to be")).unwrap();
    let (run, config) = Run::open("test", Some(dir.path())).unwrap();
    run.check_facts(&config, &facts("to be")).unwrap();
    let mut unrecorded = facts("to be");
    unrecorded["classes"] = serde_json::json!(["a"]);
    for (changed, field) in
        [(facts("to be or not"), "tokens"), (facts("to me"), "fingerprint"), (unrecorded, "classes")]
    {
        let message = run.check_facts(&config, &changed).unwrap_err().to_string();
        assert!(message.contains(&format!("cannot resume: found {field} ")), "{message}");
    }
}

/// Calls `check` with the configuration of a small language model on a text of 200 tokens.
fn with_language_model(check: impl FnOnce(&LanguageModellingConfig, &VarMap)) {
    let text = TextStream::from_memory("letters", "abcab".repeat(40), Level::Char).unwrap();
    let vocabulary = text.vocabulary(0..200, 1, None).unwrap();
    let (vars, device) = (VarMap::new(), Device::Cpu);
    let config = Config {
        vocabulary: vocabulary.len(),
        embedding: Some(4),
        cell: Cell::Gru,
        hidden: 5,
        layers: 1,
        dropout: 0.0,
        tie_weights: false,
    };
    let vb = seeded_var_builder(&vars, 0, DType::F32, &device);
    let model = LanguageModel::new(&config, vb).unwrap();
    let config = LanguageModellingConfig {
        model: &model,
        vocabulary: &vocabulary,
        text: &text,
        training: 0..161,
        validation: 161..200,
        windowing: Windowing { streams: 4, window: 10 },
        seed: 0,
        device: &device,
    };
    check(&config, &vars);
}

#[test]
fn language_modelling_trains_only_with_a_batch_of_all_streams() {
    with_language_model(|config, vars| {
        for (batch_size, is_right) in [(4, true), (1, false), (2, false), (3, false), (5, false), (8, false)]
        {
            let task = LanguageModelling::new(config.clone()).unwrap();
            assert_eq!(task.examples(), 16);
            let dir = tempfile::tempdir().unwrap();
            let run = Run::create("test", Some(dir.path()), &serde_json::json!({})).unwrap();
            let mut optimizer = Optimizer::new(Sgd::default(), vars).unwrap();
            let trainer =
                Trainer { options: options(1, batch_size, 1e-3), run: Some(&run), ..Trainer::default() };
            match trainer.fit(&task, vars, &mut optimizer) {
                Ok(report) => assert!(is_right && report.epochs[0].step == 4, "batch size {batch_size}"),
                Err(error) => {
                    assert!(!is_right, "batch size {batch_size}: {error:#}");
                    assert!(error.to_string().contains("number of streams"), "{error:#}");
                }
            }
        }
        let task = LanguageModelling::new(config.clone()).unwrap();
        let mode = Mode::train(0, 0, 0);
        for batch in [&[][..], &[1, 0, 2, 3], &[0, 1, 2, 7], &[2, 3, 4, 5]] {
            assert!(task.loss(batch, mode).is_err(), "{batch:?}");
        }
        assert!(task.loss(&[4, 5, 6, 7], mode).is_ok());
    });
}

#[test]
fn language_modelling_refuses_ranges_and_windows_that_do_not_fit_the_text() {
    with_language_model(|config, _| {
        let max = usize::MAX;
        for (streams, window) in [(0, 10), (4, 0), (4, 41), (max, 1), (1, max), (max, max), (max, 2)] {
            let config =
                LanguageModellingConfig { windowing: Windowing { streams, window }, ..config.clone() };
            assert!(LanguageModelling::new(config).is_err(), "{streams} streams, window {window}");
        }
        #[allow(clippy::reversed_empty_ranges)]
        for (training, validation) in
            [(0..201, 161..200), (0..u64::MAX, 0..10), (0..161, 161..201), (100..0, 0..200), (0..161, 9..8)]
        {
            let shown = format!("{training:?}, {validation:?}");
            let config = LanguageModellingConfig { training, validation, ..config.clone() };
            assert!(LanguageModelling::new(config).is_err(), "{shown}");
        }
    });
}

#[test]
fn a_text_is_evaluated_with_windows_of_any_size() {
    with_language_model(|config, _| {
        let &LanguageModellingConfig { model, vocabulary, text, device, .. } = config;
        let loss = |streams, window| {
            evaluate_text(model, vocabulary, text, 0..200, Windowing { streams, window }, device)
        };
        let expected = loss(1, 10).unwrap();
        for (streams, window) in [(1, 1), (1, usize::MAX), (usize::MAX, usize::MAX)] {
            let found = loss(streams, window).unwrap();
            assert!(
                (found - expected).abs() < 1e-6,
                "{streams} streams, window {window}: {found}, {expected}"
            );
        }
        assert!(loss(usize::MAX, 1).is_ok());
        assert!(loss(0, 10).is_err() && loss(1, 0).is_err());
    });
}
