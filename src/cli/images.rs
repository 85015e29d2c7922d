//! Training, testing and asking a classifier of pictures from the command line.

use super::{
    EvalCommand, Outcome, PredictCommand, Questions, Request, Settings, Training, flow, image_pictures,
    settings_of,
};
use crate::data::{self, Augmentation, Images, Normalisation};
use crate::models::ImageModel;
use crate::nn::{Cost, Mode, seeded_var_builder};
use crate::plots::{self, Chart, Line};
use crate::train::{self, ImageClassification, Progress, Report, Run, Trainer, say};
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device};
use candle_nn::{VarBuilder, VarMap};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// A binary that trains a classifier of pictures.
pub trait ImageRecipe: Settings {
    const NAME: &'static str;
    const ABOUT: &'static str;
    /// How many classes `predict` names.
    const LIKELIEST: usize = 3;

    /// The model with its parameters in `vb`, for pictures like those of `images`.
    ///
    /// # Errors
    /// When there is no such model.
    fn model(&self, images: &Images, vb: VarBuilder) -> candle_core::Result<Box<dyn ImageModel>>;

    fn cost(&self) -> Cost {
        Cost::default()
    }

    /// How training pictures are changed each time they are seen.
    fn augmentation(&self) -> Option<Augmentation> {
        None
    }

    /// See [`ImageClassification::label_smoothing`].
    fn label_smoothing(&self) -> f64 {
        0.0
    }

    /// The side of the squares that a folder's pictures are made into.
    ///
    /// # Errors
    /// Where one is asked for of pictures that are not a folder's.
    fn side(&self) -> candle_core::Result<usize> {
        Ok(28)
    }

    /// What pictures are normalised with, if at all, given those for training.
    ///
    /// # Errors
    /// When a picture can't be read.
    fn normalisation(
        &self,
        _images: &Images,
        _training: &[u32],
    ) -> candle_core::Result<Option<Normalisation>> {
        Ok(None)
    }

    /// A file of weights to start from, or the name of a model on the hub, and the layer that is made anew for other classes.
    fn pretrained(&self) -> Option<(&str, &'static str)> {
        None
    }

    /// Settings, by name, whose training errors are to be compared in one picture; none where this is a training like any.
    fn compared(&self) -> Vec<(String, Self)> {
        vec![]
    }

    /// The user's picture in the file `path` as the model is to see it: `(channels, height, width)` is `shape`.
    ///
    /// # Errors
    /// When it can't be read.
    fn read(path: &Path, _shape: (usize, usize, usize)) -> Result<Vec<u8>> {
        data::image::read_digit(path)
    }
}

/// `--augment`: how training pictures are changed each time they are seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Augment {
    #[default]
    None,
    /// By one pixel up, down, left, right, or not at all
    Shifts,
    /// Shifts, small rotations, scaling, shear and elastic distortion
    Distort,
}

impl Augment {
    pub fn augmentation(self) -> Option<Augmentation> {
        match self {
            Self::None => None,
            Self::Shifts => Some(Augmentation::Shifts),
            Self::Distort => Some(Augmentation::Distort(data::Distortion::default())),
        }
    }
}

/// The whole program of a binary.
pub fn main<R: ImageRecipe>() -> ExitCode {
    super::run(R::NAME, R::ABOUT, |request: Request<R>| match request {
        Request::Train(training) => train(training),
        Request::Other(Questions::Eval(command)) => eval::<R>(&command),
        Request::Other(Questions::Predict(command)) => predict::<R>(&command),
    })
}

/// What a run knows of its pictures, recorded for those to come.
#[derive(Serialize, Deserialize)]
struct Known {
    shape: (usize, usize, usize),
    classes: Vec<String>,
    normalisation: Option<Normalisation>,
}

impl Known {
    fn of(run: &Run, config: &Value) -> Result<Self> {
        serde_json::from_value(config["pictures"].clone()).with_context(|| {
            format!("{}: it does not tell of what pictures the run was", run.dir().display())
        })
    }
}

/// The pictures of a training.
struct Data {
    images: Images,
    /// Which of the images are for what.
    training: Vec<u32>,
    validation: Vec<u32>,
    test: Images,
    known: Known,
}

impl Data {
    fn load(settings: &impl ImageRecipe) -> Result<Self> {
        let options = settings.train_options();
        let set = data::image::load(&options.dataset, options.data_dir.as_deref(), settings.side()?)
            .map_err(super::data_error)?;
        let data::ImageSet { training: mut images, validation, mut test } = set;
        let examples = images.len() - validation.unwrap_or(0);
        let (training, validation) =
            flow::split(examples, validation.map(|_| examples..images.len()), options)?;
        images.load_into_memory()?;
        let normalisation = settings.normalisation(&images, &training)?;
        if let Some(statistics) = &normalisation {
            images.normalise(statistics.clone())?;
            test.normalise(statistics.clone())?;
        }
        let known = Known { shape: images.shape(), classes: images.class_names().to_vec(), normalisation };
        Ok(Self { images, training, validation, test, known })
    }
}

fn train<R: ImageRecipe>(training: Training<R>) -> Result<Outcome> {
    super::catch_interrupts()?;
    let start = Instant::now();
    let Training { settings, resume, out, machine, progress } = training;
    let device = machine.device.open()?;
    let mut data = Data::load(&settings)?;
    if !settings.compared().is_empty() {
        ensure!(resume.is_none(), "--resume: a comparison can't be gone on with");
        data.validation = data.training.clone();
        return compare(&settings, out.as_deref(), &data, &device, progress.as_ref());
    }
    let (run, model, report) = learn(&settings, (resume, out.as_deref()), &data, &device, progress.as_ref())?;
    if report.interrupted {
        return Ok(flow::interrupted(R::NAME, &run));
    }

    let all: Vec<u32> = (0..data.test.len() as u32).collect();
    let evaluation = train::evaluate_images(model.as_ref(), settings.cost(), &data.test, &all, &device)?;
    flow::conclude((&run, &report), &evaluation, data.test.class_names(), start, || {
        image_pictures::draw(&run, model.as_ref(), &data.test, &evaluation, &device)
    })?;
    Ok(Outcome::Done)
}

/// Trains a model, in a new run folder or in that of a run that is gone on with.
fn learn<R: ImageRecipe>(
    settings: &R,
    folder: (Option<(Run, Value)>, Option<&Path>),
    data: &Data,
    device: &Device,
    progress: &dyn Progress,
) -> Result<(Run, Box<dyn ImageModel>, Report)> {
    let Data { images, training, validation, test, known } = data;
    let options = settings.train_options();
    let vars = VarMap::new();
    let model = settings.model(images, seeded_var_builder(&vars, options.seed, DType::F32, device))?;
    let mut started = None;
    if let Some((name, head)) = settings.pretrained() {
        let path = weights(name)?;
        let whole = train::load_pretrained(&path, &vars, head)?;
        let anew = if whole { String::new() } else { format!(", but for {head}, which starts anew") };
        started = Some(format!("starts from {}{anew}", path.display()));
    }
    let mut optimizer = options.optimizer(&vars)?;
    let facts = json!({
        "training_examples": training.len(),
        "validation_examples": validation.len(),
        "test_examples": test.len(),
        "parameters": flow::size(&vars),
        "pictures": known,
    });
    let run = flow::folder(R::NAME, folder, device, facts, settings)?;
    if !progress.is_quiet() {
        say(&format!(
            "{}: {} parameters; {} training, {} validation, {} test pictures of {}; run folder {}",
            R::NAME,
            flow::size(&vars),
            training.len(),
            validation.len(),
            test.len(),
            options.dataset,
            run.dir().display()
        ));
        if let Some(started) = started {
            say(&started);
        }
    }
    let task = ImageClassification {
        model: model.as_ref(),
        cost: settings.cost(),
        images,
        training,
        validation,
        augmentation: settings.augmentation(),
        label_smoothing: settings.label_smoothing(),
        device,
    };
    let trainer = Trainer { options: options.options(training.len()), run: &run, progress };
    let report = trainer.fit(&task, &vars, &mut optimizer)?;
    Ok((run, model, report))
}

/// Trains what is to be compared, one after the other, and draws how often each is wrong about its training pictures.
fn compare<R: ImageRecipe>(
    settings: &R,
    out: Option<&Path>,
    data: &Data,
    device: &Device,
    progress: &dyn Progress,
) -> Result<Outcome> {
    let compared = settings.compared();
    let names: Vec<&str> = compared.iter().map(|(name, _)| name.as_str()).collect();
    let parent = Run::create(R::NAME, out, &json!({ "compared": names, "settings": settings }))?;
    let mut curves = vec![];
    for (name, settings) in &compared {
        let dir = parent.dir().join(name);
        let (_, _, report) = learn(settings, (None, Some(&dir)), data, device, progress)?;
        if report.interrupted {
            say("interrupted; a comparison can't be gone on with");
            return Ok(Outcome::Interrupted);
        }
        let error = |epoch: &train::Epoch| (epoch.epoch, 100.0 * (1.0 - epoch.validation.metric));
        let points: Vec<(usize, f64)> = report.epochs.iter().map(error).collect();
        let last = points.last().map_or(f64::NAN, |point| point.1);
        say(&format!("{name}: wrong about {last:.2}% of the training pictures after the last epoch"));
        curves.push(Line { name, points });
    }
    let panel = Chart { title: "Training error", x_label: "epoch", y_label: "% wrong", lines: curves };
    parent.write("degradation.svg", &plots::line_charts(&[panel])?)?;
    say(&format!("degradation.svg is in the run folder {}", parent.dir().display()));
    Ok(Outcome::Done)
}

/// The file `name`, or that of the model of this name on the hub.
fn weights(name: &str) -> Result<PathBuf> {
    let path = PathBuf::from(name);
    if path.exists() {
        return Ok(path);
    }
    #[cfg(feature = "hub")]
    return data::hub::load_weights(name).with_context(|| format!("--pretrained {name}: no such file"));
    #[cfg(not(feature = "hub"))]
    bail!(
        "--pretrained {name}: no such file, and this build can't download weights: give a safetensors or PyTorch \
         file, or build with `--features hub`"
    )
}

fn eval<R: ImageRecipe>(command: &EvalCommand) -> Result<Outcome> {
    let (run, config) = Run::open(R::NAME, command.run.as_deref())?;
    let settings: R = settings_of(&run, &config)?;
    let known = Known::of(&run, &config)?;
    let (name, dir) = command.data(settings.train_options());
    let mut test = data::image::load(name, dir, known.shape.1).map_err(super::data_error)?.test;
    ensure!(
        test.classes() == known.classes.len(),
        "data set {name}: found {} classes, expected {}, those of the run {}",
        test.classes(),
        known.classes.len(),
        run.dir().display()
    );
    if let Some((found, expected)) = test.class_names().iter().zip(&known.classes).find(|(a, b)| a != b) {
        bail!(
            "data set {name}: found the class {found}, expected {expected}, a class of the run {}",
            run.dir().display()
        );
    }
    if let Some(statistics) = known.normalisation {
        test.normalise(statistics)?;
    }
    let device = command.machine.device.open()?;
    let model = trained(&settings, &run, &test, &device)?;
    let all: Vec<u32> = (0..test.len() as u32).collect();
    let evaluation = train::evaluate_images(model.as_ref(), settings.cost(), &test, &all, &device)?;
    say(&flow::result(&evaluation));
    Ok(Outcome::Done)
}

fn predict<R: ImageRecipe>(command: &PredictCommand) -> Result<Outcome> {
    let (dir, inputs) = command.split();
    ensure!(!inputs.is_empty(), "predict: name at least one PNG or JPEG file");
    let (run, config) = Run::open(R::NAME, dir)?;
    let settings: R = settings_of(&run, &config)?;
    let Known { shape, classes, normalisation } = Known::of(&run, &config)?;
    let device = command.machine.device.open()?;
    let read = |path: &OsString| R::read(path.as_ref(), shape);
    let pixels = inputs.iter().map(read).collect::<Result<Vec<_>>>()?.concat();
    let mut images = Images::new(pixels, vec![0_u32; inputs.len()], shape, classes.len())?;
    if let Some(statistics) = normalisation {
        images.normalise(statistics)?;
    }
    let model = trained(&settings, &run, &images, &device)?;
    for (index, path) in (0..).zip(inputs) {
        let logits = model.forward(&images.batch(&[index], &device)?.0, Mode::Evaluate)?;
        let probabilities = settings.cost().probabilities(&logits)?.get(0)?.to_vec1::<f32>()?;
        let mut ranked: Vec<(&String, f32)> = classes.iter().zip(probabilities).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        ranked.truncate(R::LIKELIEST);
        let likeliest = ranked.iter().map(|(class, p)| format!("{class} ({:.2}%)", 100.0 * p));
        say(&format!("{}: {}", path.display(), likeliest.collect::<Vec<_>>().join("  ")));
    }
    Ok(Outcome::Done)
}

/// The model of a run, with its best weights.
fn trained<R: ImageRecipe>(
    settings: &R,
    run: &Run,
    images: &Images,
    device: &Device,
) -> Result<Box<dyn ImageModel>> {
    train::load_model(&run.model(), device, |vb| settings.model(images, vb))
}
