//! Training, testing and asking a classifier of pictures from the command line.

use super::{
    EvalCommand, Outcome, PredictCommand, Questions, Request, Settings, Training, flow, settings_of,
};
use crate::data::{self, Expansion, Images, Statistics};
use crate::models::ImageModel;
use crate::nn::{Cost, Mode, parameters};
use crate::train::pictures::{self, Curve, Panel, Section, Tile};
use crate::train::{self, Evaluation, ImageClassification, Metric, Progress, Report, Run, say};
use anyhow::{Context, Result, ensure};
use candle_core::{D, DType, Device, Tensor, Var};
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
    fn expansion(&self) -> Option<Expansion> {
        None
    }

    /// See [`ImageClassification::label_smoothing`].
    fn label_smoothing(&self) -> f64 {
        0.0
    }

    /// The side of the squares that a folder's pictures are made into.
    fn side(&self) -> usize {
        28
    }

    /// What pictures are normalised with, if at all, given those for training.
    ///
    /// # Errors
    /// When a picture can't be read.
    fn normalisation(&self, _images: &Images, _training: &[u32]) -> candle_core::Result<Option<Statistics>> {
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
        data::picture::read_digit(path)
    }
}

/// `--expand`: how training pictures are changed each time they are seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expand {
    #[default]
    None,
    /// By one pixel up, down, left, right, or not at all
    Shifts,
    /// Shifts, small rotations, scaling, shear and elastic distortion
    Distort,
}

impl Expand {
    pub fn expansion(self) -> Option<Expansion> {
        match self {
            Self::None => None,
            Self::Shifts => Some(Expansion::Shifts),
            Self::Distort => Some(Expansion::Distort(data::Distortion::default())),
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
    normalisation: Option<Statistics>,
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
        let set = data::load(&options.dataset, options.data_dir.as_deref(), settings.side())?;
        let data::ImageSet { training: mut images, validation, mut test } = set;
        let examples = images.len() - validation.unwrap_or(0);
        let (training, validation) =
            flow::split(examples, validation.map(|_| examples..images.len()), options)?;
        images.keep()?;
        let normalisation = settings.normalisation(&images, &training)?;
        if let Some(statistics) = &normalisation {
            images.normalise(statistics.clone())?;
            test.normalise(statistics.clone())?;
        }
        let known = Known { shape: images.shape(), classes: images.names().to_vec(), normalisation };
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
        ensure!(resume.is_none(), "--resume: a comparison is not gone on with, only its single runs");
        data.validation = data.training.clone();
        return compare(&settings, out.as_deref(), &data, &device, &progress);
    }
    let (run, model, report) = learn(&settings, (resume, out.as_deref()), &data, &device, &progress)?;
    if report.interrupted {
        return Ok(flow::interrupted(R::NAME, &run));
    }

    let all: Vec<u32> = (0..data.test.len() as u32).collect();
    let evaluation = train::evaluate(model.as_ref(), settings.cost(), &data.test, &all, &device)?;
    let last = json!({
        "final": true,
        "best_epoch": report.best_epoch,
        "test_loss": evaluation.loss,
        "test_accuracy": evaluation.accuracy(),
        "seconds": start.elapsed().as_secs_f64(),
    });
    run.write_final(&report.epochs, Metric::Accuracy, &last)?;
    draw(&run, &report, model.as_ref(), &data.test, &evaluation, &device)?;
    say(&format!(
        "{}; best epoch {}; run folder {}",
        flow::result(&evaluation),
        report.best_epoch,
        run.dir().display()
    ));
    Ok(Outcome::Done)
}

/// Trains a model, in a new run folder or in that of a run that is gone on with.
fn learn<R: ImageRecipe>(
    settings: &R,
    folder: (Option<(Run, Value)>, Option<&Path>),
    data: &Data,
    device: &Device,
    progress: &Progress,
) -> Result<(Run, Box<dyn ImageModel>, Report)> {
    let Data { images, training, validation, test, known } = data;
    let options = settings.train_options();
    let vars = VarMap::new();
    let model = settings.model(images, parameters(&vars, options.seed, DType::F32, device))?;
    let weights = settings.pretrained().map(|(name, head)| Ok::<_, anyhow::Error>((weights(name)?, head)));
    let started = match weights.transpose()? {
        Some((path, head)) => {
            let whole = train::load_pretrained(&path, &vars, head)?;
            let anew = if whole { String::new() } else { format!(", but for {head}, which starts anew") };
            Some(format!("starts from {}{anew}", path.display()))
        }
        None => None,
    };
    let mut optimizer = options.optimizer(&vars)?;
    let facts = json!({
        "training_examples": training.len(),
        "validation_examples": validation.len(),
        "test_examples": test.len(),
        "parameters": flow::size(&vars),
        "pictures": known,
    });
    let run = flow::folder(R::NAME, folder, device, facts, settings)?;
    if *progress != Progress::Quiet {
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
        started.iter().for_each(|started| say(started));
    }
    let task = ImageClassification {
        model: model.as_ref(),
        cost: settings.cost(),
        images,
        training,
        validation,
        expansion: settings.expansion(),
        label_smoothing: settings.label_smoothing(),
        device,
    };
    let report = train::fit(&task, &vars, &mut optimizer, &options.options(training.len()), &run, progress)?;
    Ok((run, model, report))
}

/// Trains what is to be compared, one after the other, and draws how often each is wrong about its training pictures.
fn compare<R: ImageRecipe>(
    settings: &R,
    out: Option<&Path>,
    data: &Data,
    device: &Device,
    progress: &Progress,
) -> Result<Outcome> {
    let compared = settings.compared();
    let names: Vec<&str> = compared.iter().map(|(name, _)| name.as_str()).collect();
    let parent = Run::create(R::NAME, out, &json!({ "compared": names, "settings": settings }))?;
    let mut curves = vec![];
    for (name, settings) in &compared {
        let dir = parent.dir().join(name);
        let (run, _, report) = learn(settings, (None, Some(&dir)), data, device, progress)?;
        if report.interrupted {
            return Ok(flow::interrupted(R::NAME, &run));
        }
        let error = |epoch: &train::Epoch| (epoch.epoch, 100.0 * (1.0 - epoch.validation.metric));
        let points: Vec<(usize, f64)> = report.epochs.iter().map(error).collect();
        let last = points.last().map_or(f64::NAN, |point| point.1);
        say(&format!("{name}: wrong about {last:.2}% of the training pictures after the last epoch"));
        curves.push(Curve { name, points });
    }
    let panel = Panel { title: "Training error", x_label: "epoch", y_label: "% wrong", curves };
    parent.write("degradation.svg", &pictures::curves(&[panel])?)?;
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
    anyhow::bail!(
        "--pretrained {name}: no such file, and this build can't download weights: give a safetensors or PyTorch \
         file, or build with `--features hub`"
    )
}

fn eval<R: ImageRecipe>(command: &EvalCommand) -> Result<Outcome> {
    let (run, config) = Run::open(R::NAME, command.run.as_deref())?;
    let settings: R = settings_of(&run, &config)?;
    let known = Known::of(&run, &config)?;
    let (name, dir) = command.data(settings.train_options());
    let mut test = data::load(name, dir, settings.side())?.test;
    ensure!(
        test.classes() == known.classes.len(),
        "data set {name}: found {} classes, expected {}, those of the run {}",
        test.classes(),
        known.classes.len(),
        run.dir().display()
    );
    if let Some(statistics) = known.normalisation {
        test.normalise(statistics)?;
    }
    let device = command.machine.device.open()?;
    let model = trained(&settings, &run, &test, &device)?;
    let all: Vec<u32> = (0..test.len() as u32).collect();
    let evaluation = train::evaluate(model.as_ref(), settings.cost(), &test, &all, &device)?;
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

/// Pictures for the run folder.
fn draw(
    run: &Run,
    report: &Report,
    model: &dyn ImageModel,
    test: &Images,
    evaluation: &Evaluation,
    device: &Device,
) -> Result<()> {
    run.write("curves.svg", &flow::curves(report, Metric::Accuracy)?)?;
    let counts = evaluation.confusion(test.classes());
    run.write("confusion.svg", &pictures::confusion(&counts, test.names())?)?;
    run.write("mistakes.svg", &mistakes(test, evaluation)?)?;
    run.write("filters.svg", &filters(model, test.shape())?)?;
    if let Some(features) = features(model, test, device)? {
        run.write("features.svg", &features)?;
        run.write("grad-cam.svg", &attention(model, test, evaluation, device)?)?;
    }
    Ok(())
}

/// The pictures it got wrong and was surest of.
fn mistakes(test: &Images, evaluation: &Evaluation) -> Result<String> {
    const SHOWN: usize = 40;
    let mut wrong: Vec<(usize, (u32, u32, f32))> = evaluation
        .predictions
        .iter()
        .copied()
        .enumerate()
        .filter(|(_, (label, said, _))| label != said)
        .collect();
    wrong.sort_by(|a, b| b.1.2.total_cmp(&a.1.2));
    let tiles = wrong
        .iter()
        .take(SHOWN)
        .map(|&(index, (label, said, probability))| {
            let [label, said] = [label, said].map(|class| &test.names()[class as usize]);
            let caption = format!("{label}, said {said}\n({probability:.2})");
            Tile::picture(&test.picture(index)?, test.shape(), &caption)
        })
        .collect::<Result<Vec<_>>>()?;
    let heading = format!("{} of {} wrong; the surest mistakes first", wrong.len(), test.len());
    pictures::picture_grid(&[Section { heading: &heading, columns: 8, tiles }])
}

/// The first layer's weights, a picture a unit: those of three channels in colour, others one below the other; of all pixels
/// where the layer has no windows.
fn filters(model: &dyn ImageModel, pictures: (usize, usize, usize)) -> Result<String> {
    let weight = model.filters();
    let (channels, height, width) = match *weight.dims() {
        [_, channels, height, width] => (channels, height, width),
        _ => pictures,
    };
    let weight = weight.flatten_from(1)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    let tile = |(unit, values): (usize, &Vec<f32>)| {
        let caption = (unit + 1).to_string();
        if channels != 3 {
            return Tile::signed(values, channels * height, width, &caption);
        }
        let most = values.iter().fold(f32::MIN_POSITIVE, |most, value| most.max(value.abs()));
        let bytes: Vec<u8> = values.iter().map(|value| (127.5 * (1.0 + value / most)) as u8).collect();
        Tile::picture(&bytes, (channels, height, width), &caption)
    };
    let tiles = weight.iter().enumerate().map(tile).collect::<Result<Vec<_>>>()?;
    let heading = match channels {
        3 => "First layer: grey is 0",
        _ => "First layer: red is above 0, blue below",
    };
    pictures::picture_grid(&[Section { heading, columns: 10, tiles }])
}

/// What the convolutional stages make of the first test picture.
fn features(model: &dyn ImageModel, test: &Images, device: &Device) -> Result<Option<String>> {
    let (xs, _) = test.batch(&[0], device)?;
    let maps = model.feature_maps(&xs)?;
    if maps.is_empty() {
        return Ok(None);
    }
    let headings: Vec<String> = (1..=maps.len()).map(|stage| format!("After stage {stage}")).collect();
    let mut sections = vec![Section {
        heading: "Input",
        columns: 1,
        tiles: vec![Tile::picture(
            &test.picture(0)?,
            test.shape(),
            &format!("a {}", test.names()[test.labels()[0] as usize]),
        )?],
    }];
    for (map, heading) in maps.iter().zip(&headings) {
        sections.push(Section { heading, columns: 10, tiles: channels(map)? });
    }
    pictures::picture_grid(&sections).map(Some).context("features")
}

/// A tile a channel of `map` `(1, channels, height, width)`, of the first ones.
fn channels(map: &Tensor) -> Result<Vec<Tile>> {
    const SHOWN: usize = 64;
    let (_, _, height, width) = map.dims4()?;
    let values = map.get(0)?.flatten_from(1)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    let tile =
        |(channel, values): (usize, &Vec<f32>)| Tile::grey(values, height, width, &(channel + 1).to_string());
    values.iter().take(SHOWN).enumerate().map(tile).collect()
}

/// Of one picture a class, what spoke for the class that the model said.
fn attention(
    model: &dyn ImageModel,
    test: &Images,
    evaluation: &Evaluation,
    device: &Device,
) -> Result<String> {
    const SHOWN: u32 = 20;
    let mut tiles = vec![];
    for class in 0..SHOWN.min(test.classes() as u32) {
        let Some(index) = test.labels().iter().position(|&label| label == class) else { continue };
        let picture = test.picture(index)?;
        let (_, said, probability) = evaluation.predictions[index];
        let [name, said] = [class, said].map(|class| &test.names()[class as usize]);
        let heat = grad_cam(model, &test.batch(&[index as u32], device)?.0)?;
        tiles.push(Tile::picture(&picture, test.shape(), name)?);
        tiles.push(Tile::heat(&picture, test.shape(), &heat, &format!("said {said}\n({probability:.2})"))?);
    }
    pictures::picture_grid(&[Section {
        heading: "What speaks for the class that was said, the darker red the more (Grad-CAM)",
        columns: 6,
        tiles,
    }])
}

/// How much each place of the last stage's maps speaks for the likeliest class of the picture `xs` `(1, channels, height,
/// width)`: the maps, each times the mean of its gradient, added up and above 0 (Selvaraju et al. 2017, arXiv:1610.02391).
fn grad_cam(model: &dyn ImageModel, xs: &Tensor) -> Result<Vec<Vec<f32>>> {
    let maps = model.feature_maps(xs)?.pop().context("Grad-CAM of a model without convolutions")?;
    let maps = Var::from_tensor(&maps.detach())?;
    let logits = model.head(&maps, Mode::Evaluate)?;
    let grads = logits.max(D::Minus1)?.sum_all()?.backward()?;
    let grad = grads.get(&maps).context("Grad-CAM: the maps have no gradient")?;
    let weights = grad.mean_keepdim((2, 3))?;
    let heat = maps.as_detached_tensor().broadcast_mul(&weights)?.sum(1)?.relu()?;
    Ok(heat.get(0)?.to_dtype(DType::F32)?.to_vec2()?)
}
