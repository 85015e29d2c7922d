//! Training, testing and asking a classifier of pictures from the command line.

use super::{
    EvalCommand, Outcome, PredictCommand, Questions, Request, Settings, Training, flow, settings_of,
};
use crate::data::{self, Expansion, Images};
use crate::models::ImageModel;
use crate::nn::{Cost, parameters};
use crate::train::pictures::{self, Section, Tile};
use crate::train::{self, Evaluation, ImageClassification, Metric, Report, Run, say};
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::process::ExitCode;
use std::time::Instant;

/// A binary that trains a classifier of pictures.
pub trait ImageRecipe: Settings {
    const NAME: &'static str;
    const ABOUT: &'static str;

    /// The model with its parameters in `vb`, for pictures like those of `images`.
    ///
    /// # Errors
    /// When there is no such model.
    fn model(&self, images: &Images, vb: VarBuilder) -> candle_core::Result<Box<dyn ImageModel>>;

    fn cost(&self) -> Cost {
        Cost::default()
    }

    fn expand(&self) -> Expand {
        Expand::None
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
    fn expansion(self) -> Option<Expansion> {
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

fn train<R: ImageRecipe>(training: Training<R>) -> Result<Outcome> {
    let Training { settings, resume, out, machine, progress } = training;
    super::catch_interrupts()?;
    let start = Instant::now();
    let options = settings.train_options();
    let (images, test) = data::load(&options.dataset, options.data_dir.as_deref())?;
    let (training, validation) = flow::split(images.len(), options)?;
    let device = machine.device.open()?;
    let vars = VarMap::new();
    let model = settings.model(&images, parameters(&vars, options.seed, DType::F32, &device))?;
    let mut optimizer = options.optimizer(&vars)?;
    let facts = json!({
        "training_examples": training.len(),
        "validation_examples": validation.len(),
        "test_examples": test.len(),
        "parameters": flow::size(&vars),
    });
    let run = flow::folder(R::NAME, (resume, out.as_deref()), &device, facts, &settings)?;
    if progress != train::Progress::Quiet {
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
    }
    let task = ImageClassification {
        model: model.as_ref(),
        cost: settings.cost(),
        images: &images,
        training: &training,
        validation: &validation,
        expansion: settings.expand().expansion(),
        device: &device,
    };
    let report = train::fit(&task, &vars, &mut optimizer, &options.options(training.len()), &run, &progress)?;
    if report.interrupted {
        return Ok(flow::interrupted(R::NAME, &run));
    }

    let all: Vec<u32> = (0..test.len() as u32).collect();
    let evaluation = train::evaluate(model.as_ref(), settings.cost(), &test, &all, &device)?;
    let last = json!({
        "final": true,
        "best_epoch": report.best_epoch,
        "test_loss": evaluation.loss,
        "test_accuracy": evaluation.accuracy(),
        "seconds": start.elapsed().as_secs_f64(),
    });
    run.write_final(&report.epochs, Metric::Accuracy, &last)?;
    draw(&run, &report, model.as_ref(), &test, &evaluation, &device)?;
    say(&format!(
        "{}; best epoch {}; run folder {}",
        flow::result(&evaluation),
        report.best_epoch,
        run.dir().display()
    ));
    Ok(Outcome::Done)
}

fn eval<R: ImageRecipe>(command: &EvalCommand) -> Result<Outcome> {
    let (run, config) = Run::open(R::NAME, command.run.as_deref())?;
    let settings: R = settings_of(&run, &config)?;
    let (name, dir) = command.data(settings.train_options());
    let (_, test) = data::load(name, dir)?;
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
    let device = command.machine.device.open()?;
    let pixels: Vec<u8> = inputs
        .iter()
        .map(|path| data::picture::read_digit(path.as_ref()))
        .collect::<Result<Vec<_>>>()?
        .concat();
    let images = Images::new(pixels, vec![0; inputs.len()], (1, 28, 28), 10)?;
    let model = trained(&settings, &run, &images, &device)?;
    let all: Vec<u32> = (0..images.len() as u32).collect();
    let (xs, _) = images.batch(&all, &device)?;
    let logits = model.forward(&xs, crate::nn::Mode::Evaluate)?;
    let probabilities = settings.cost().probabilities(&logits)?.to_vec2::<f32>()?;
    for (path, probabilities) in inputs.iter().zip(probabilities) {
        let mut ranked: Vec<(usize, f32)> = probabilities.into_iter().enumerate().collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        let three: Vec<String> =
            ranked[..3].iter().map(|(digit, p)| format!("{digit} ({:.2}%)", 100.0 * p)).collect();
        say(&format!("{}: {}", path.display(), three.join("  ")));
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
            Tile::picture(test.picture(index), test.shape(), &caption)
        })
        .collect::<Result<Vec<_>>>()?;
    let heading = format!("{} of {} wrong; the surest mistakes first", wrong.len(), test.len());
    pictures::picture_grid(&[Section { heading: &heading, columns: 8, tiles }])
}

/// The first layer's weights, a picture a unit, whose channels stand one below the other; of all pixels where the layer has no
/// windows.
fn filters(model: &dyn ImageModel, pictures: (usize, usize, usize)) -> Result<String> {
    let weight = model.filters();
    let (channels, height, width) = match *weight.dims() {
        [_, channels, height, width] => (channels, height, width),
        _ => pictures,
    };
    let weight = weight.flatten_from(1)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    let tile = |(unit, values): (usize, &Vec<f32>)| {
        Tile::signed(values, channels * height, width, &(unit + 1).to_string())
    };
    let tiles = weight.iter().enumerate().map(tile).collect::<Result<Vec<_>>>()?;
    pictures::picture_grid(&[Section {
        heading: "First layer: red is above 0, blue below",
        columns: 10,
        tiles,
    }])
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
            test.picture(0),
            test.shape(),
            &format!("a {}", test.names()[test.labels()[0] as usize]),
        )?],
    }];
    for (map, heading) in maps.iter().zip(&headings) {
        sections.push(Section { heading, columns: 10, tiles: channels(map)? });
    }
    pictures::picture_grid(&sections).map(Some).context("features")
}

/// A tile a channel of `map` `(1, channels, height, width)`.
fn channels(map: &Tensor) -> Result<Vec<Tile>> {
    let (_, _, height, width) = map.dims4()?;
    let values = map.get(0)?.flatten_from(1)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    let tile =
        |(channel, values): (usize, &Vec<f32>)| Tile::grey(values, height, width, &(channel + 1).to_string());
    values.iter().enumerate().map(tile).collect()
}
