//! Classifying images.

use super::inputs::Inputs;
use super::options::{Given, TrainOptions};
use super::parts::Parts;
use super::recipe::{
    About, AnyBinary, CLASSES, Data, Facts, KEPT_WEIGHTS, Test, Trained, of_another_version,
    split_fingerprints,
};
use super::{
    Outcome, TestSet, UsageError, command_line, count, data_error, image_plots, most_probable, show_notes,
};
use crate::data::file_kind::check_is_file;
use crate::data::{
    Augmentation, Distortion, ImageSet, Images, Normalisation, PhotoAugmentation, Preparation, Prepared,
    image,
};
use crate::models::ImageModel;
use crate::nn::{Cost, Mode};
use crate::train::{self, Epoch, Evaluation, ImageClassification, Pretrained, Run, Task, say};
use anyhow::{Context, Result, bail, ensure};
use candle_core::Device;
use candle_nn::VarMap;
use clap::{Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A recipe's choices about images.
pub struct ImageOptions {
    /// Side of the squares that the images of a folder are scaled to.
    pub side: usize,
    /// Whether the images of a folder are converted to grey.
    pub grey: bool,
    /// The cost that training minimises.
    pub cost: Cost,
    /// How training images are augmented.
    pub augmentation: Option<Augmentation>,
    /// See [`ImageClassification::label_smoothing`].
    pub label_smoothing: f64,
    /// How images are normalised.
    pub normalise: Normalise,
    /// The initial weights, and the layer that is initialised randomly if the classes differ.
    ///
    /// They are a file, or the name of a model on the hub.
    pub pretrained: Option<(String, &'static str)>,
    /// Number of classes that `predict` shows.
    pub shown_classes: usize,
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self {
            side: 28,
            grey: false,
            cost: Cost::default(),
            augmentation: None,
            label_smoothing: 0.0,
            normalise: Normalise::Off,
            pretrained: None,
            shown_classes: 3,
        }
    }
}

/// The mean and standard deviation that images are normalised with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Normalise {
    /// Images are not normalised.
    Off,
    /// The mean and standard deviation of the training images.
    TrainingSet,
    /// The values for ImageNet, which pretrained models expect.
    ImageNet,
    /// The values for MNIST.
    Mnist,
}

/// The value of `--augment`: how training images change each time they are used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Augment {
    /// Not at all
    #[default]
    None,
    /// Shift by at most one pixel up, down, left or right
    Shifts,
    /// Shift, rotate, scale, shear and distort elastically
    Distort,
}

impl Augment {
    /// The augmentation, if any.
    pub fn augmentation(self) -> Option<Augmentation> {
        match self {
            Self::None => None,
            Self::Shifts => Some(Augmentation::Shifts),
            Self::Distort => Some(Augmentation::Distort(Distortion::default())),
        }
    }
}

/// The facts that a model of images depends on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageFacts {
    /// Channels, height and width.
    pub shape: (usize, usize, usize),
    /// Names of the classes.
    #[serde(skip)]
    pub classes: Vec<String>,
    /// The normalisation of the images.
    pub normalisation: Option<Normalisation>,
    /// How to prepare a picture for `predict`.
    pub preparation: Preparation,
}

impl ImageFacts {
    /// Checks that a model for images like these can be tested on `test`.
    fn check(&self, test: &Images) -> Result<()> {
        let (found, expected) = (test.class_names(), &self.classes);
        ensure!(
            found.len() == expected.len(),
            "found {}, expected the {} of the run",
            count(found.len(), "class"),
            expected.len()
        );
        if let Some((found, expected)) = found.iter().zip(expected).find(|(a, b)| a != b) {
            bail!("found the class {found}, expected {expected}, a class of the run");
        }
        let size = |(channels, height, width)| {
            format!("{height}x{width} pixels with {}", count(channels, "channel"))
        };
        ensure!(
            test.shape() == self.shape,
            "found images of {}, expected {}",
            size(test.shape()),
            size(self.shape)
        );
        Ok(())
    }
}

impl Facts for ImageFacts {
    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn record(&self) -> Map<String, Value> {
        Map::from_iter([("pictures".to_string(), json!(self))])
    }

    fn read(run: &Run, config: &Value) -> Result<Self> {
        let read = || -> serde_json::Result<Self> {
            let classes = serde_json::from_value(config[CLASSES].clone())?;
            Ok(Self { classes, ..serde_json::from_value(config["pictures"].clone())? })
        };
        read().map_err(|_| of_another_version(run, "images"))
    }

    fn describe(&self) -> String {
        format!(", {}", count(self.classes.len(), "class"))
    }
}

/// Labelled images.
pub struct ImageData {
    options: ImageOptions,
    /// The images for training and validation; `None` if there is only a model to test.
    images: Option<Images>,
    training: Vec<u32>,
    validation: Vec<u32>,
    test: Images,
    about: About<ImageFacts>,
}

impl ImageData {
    /// Validates on the training images, to compare training errors.
    pub(super) fn validate_on_training(&mut self) {
        self.validation = self.training.clone();
    }

    /// Loads only the test images, for a model of images described by `facts`.
    ///
    /// If training drew them from a folder without a test split, the same images are drawn again.
    fn for_test(
        options: ImageOptions,
        facts: ImageFacts,
        chosen: &TestSet,
        train: &TrainOptions,
    ) -> Result<Self> {
        let (name, dir) = TestSet::resolve(Some(chosen), train);
        let is_own = TestSet::is_own(Some(chosen), train);
        let is_grey = facts.shape.0 == 1;
        let drawn = || {
            let drawn = drawn_test(name, dir.filter(|_| is_own)?, facts.shape.1, train);
            drawn.inspect(|_| TestSet::note_moved(Some(chosen), train))
        };
        let given = || image::load_test(name, dir, facts.shape.1).map_err(data_error);
        let (mut test, notes) = match name {
            // A folder of class folders could be a test split.
            FOLDER => drawn().unwrap_or_else(given)?,
            _ => given().or_else(|error| drawn().unwrap_or(Err(error)))?,
        };
        show_notes(&notes);
        if is_grey && name == FOLDER {
            test = test.into_grey();
        }
        facts.check(&test).with_context(|| format!("data set {name}"))?;
        if let Some(normalisation) = &facts.normalisation {
            test.normalise(normalisation.clone())?;
        }
        let about = About {
            name: name.to_string(),
            sizes: [0, 0, test.len() as u64],
            fingerprints: Value::Null,
            facts,
        };
        Ok(Self { options, images: None, training: vec![], validation: vec![], test, about })
    }
}

/// Divides images. The last `validation` images are for validation. An empty `test` part is drawn from the others.
fn divide(images: &Images, validation: Option<usize>, test: &Images, train: &TrainOptions) -> Result<Parts> {
    let training = images.len() - validation.unwrap_or(0);
    let size = (!test.is_empty()).then_some(test.len());
    let label = |image: u32| {
        let image = image as usize;
        images.labels().get(image).copied().unwrap_or_else(|| test.labels()[image - images.len()])
    };
    Parts::new([Some(training), validation, size], label, train)
}

/// The test images that training drew from the folder `dir`, with notes; `None` if it has a test split.
fn drawn_test(
    name: &str,
    dir: &Path,
    side: usize,
    train: &TrainOptions,
) -> Option<Result<(Images, Vec<String>)>> {
    // Without training images, there may only be the test split.
    let set = image::load(name, Some(dir), side).ok().filter(|set| set.test.is_empty())?;
    let draw = || {
        let parts = divide(&set.training, set.validation, &set.test, train)?;
        Ok((set.training.select(&parts.test)?, set.notes))
    };
    Some(draw())
}

/// The data set of the user's own images.
const FOLDER: &str = "image-folder";

/// How pictures of handwriting were prepared, for a note.
const HANDWRITING: [(Prepared, &str); 3] = [
    (Prepared::Unchanged, "taken as they are"),
    (Prepared::Inverted, "inverted"),
    (Prepared::Photograph, "prepared as photographs of ink"),
];

impl Data for ImageData {
    type Model = dyn ImageModel;
    type Options = ImageOptions;
    type Facts = ImageFacts;
    type TestOptions = TestSet;
    type Command = ImageCommand;
    const DATA_SETS: &'static [(&'static [&'static str], &'static str)] = &[
        (&["digits"], "built in"),
        (&["shapes"], "built in"),
        (&["mnist"], "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-.. alike; or a download"),
        (&["fashion-mnist"], "the same names as mnist; or a download"),
        (&image::emnist::NAMES, "names like emnist-letters-train-images-idx3-ubyte"),
        (&["cifar10"], "data_batch_1.bin to data_batch_5.bin, test_batch.bin; or a download"),
        (&[FOLDER], "train/CLASS/IMAGE.jpg, optionally test/ and val/ alike; or CLASS/IMAGE.jpg; also .png"),
    ];
    const NOUN: &'static str = "images";
    const INPUTS_ARE_PATHS: bool = true;

    fn load(
        mut options: ImageOptions,
        train: &TrainOptions,
        run: Option<(ImageFacts, &TestSet)>,
    ) -> Result<Self> {
        if let Some((facts, test)) = run {
            return Self::for_test(options, facts, test, train);
        }
        let (name, dir) = TestSet::resolve(None, train);
        let set = image::load(name, dir, options.side).map_err(data_error)?;
        let ImageSet { training: mut images, validation, mut test, preparation, notes } = set;
        show_notes(&notes);
        if options.grey && name == FOLDER {
            (images, test) = (images.into_grey(), test.into_grey());
        }
        let examples = images.len() - validation.unwrap_or(0);
        let parts = divide(&images, validation, &test, train)?;
        images.check_files()?;
        test.check_files()?;
        show_notes(&image::note_same_files([&images, &test], &parts.training, &parts.test)?);
        let is_drawn = test.is_empty();
        if is_drawn {
            test = images.select(&parts.test)?;
        }
        let Parts { training, validation, .. } = parts;
        limit_crop(&mut options, images.shape(), &train.given)?;
        if let [first, others @ ..] = images.labels() {
            ensure!(
                others.iter().any(|other| other != first),
                "data set {name}: every training image has the class {}, expected two or more classes",
                images.class_names()[*first as usize]
            );
        }
        images.load_into_memory()?;
        let normalisation = match options.normalise {
            Normalise::Off => None,
            Normalise::TrainingSet => Some(images.channel_statistics(&training)?),
            Normalise::ImageNet => Some(Normalisation::imagenet()),
            Normalise::Mnist => Some(Normalisation::mnist()),
        };
        if let Some(normalisation) = &normalisation {
            images.normalise(normalisation.clone())?;
            test.normalise(normalisation.clone())?;
        }
        let (shape, classes) = (images.shape(), images.class_names().to_vec());
        let about = About {
            name: name.to_string(),
            sizes: [training.len(), validation.len(), test.len()].map(|size| size as u64),
            fingerprints: split_fingerprints([
                Some(images.fingerprint(0..examples)?),
                Some(images.fingerprint(examples..images.len())?),
                (!is_drawn).then(|| test.fingerprint(0..test.len())).transpose()?,
            ]),
            facts: ImageFacts { shape, classes, normalisation, preparation },
        };
        Ok(Self { options, images: Some(images), training, validation, test, about })
    }

    fn about(&self) -> &About<ImageFacts> {
        &self.about
    }

    fn largest_batch(&self, batch_size: usize) -> u64 {
        batch_size.min(self.training.len()) as u64
    }

    fn describe(&self) -> String {
        let augmentation = self.options.augmentation.map_or("none".to_string(), |how| how.to_string());
        format!("{}, augmentation: {augmentation}", self.about.facts.describe())
    }

    fn initialise(&self, vars: &VarMap) -> Result<Option<String>> {
        let Some((name, head)) = &self.options.pretrained else { return Ok(None) };
        let path = weights(name)?;
        let Pretrained { has_head, notes } = train::load_pretrained(&path, vars, head)?;
        show_notes(&notes);
        let new =
            if has_head { String::new() } else { format!(", except {head}, which is initialised randomly") };
        Ok(Some(format!("starts from {}{new}", path.display())))
    }

    fn keep_files(&self, run: &Run) -> Result<()> {
        let Some((name, _)) = &self.options.pretrained else { return Ok(()) };
        let (path, copy) = (weights(name)?, run.dir().join(KEPT_WEIGHTS));
        if path == copy {
            return Ok(());
        }
        let bytes = std::fs::read(&path).with_context(|| format!("{}: can't be read", path.display()))?;
        train::write_file(&copy, &bytes)
    }

    fn task<'a>(&'a self, model: &'a dyn ImageModel, device: &'a Device) -> Result<Box<dyn Task + 'a>> {
        Ok(Box::new(ImageClassification {
            model,
            cost: self.options.cost,
            images: self.images.as_ref().context("there are no training images")?,
            training: &self.training,
            validation: &self.validation,
            augmentation: self.options.augmentation,
            label_smoothing: self.options.label_smoothing,
            device,
        }))
    }

    fn test(&self, model: &dyn ImageModel, _best: Option<&Epoch>, device: &Device) -> Result<Test> {
        let all: Vec<u32> = (0..self.test.len() as u32).collect();
        Ok(Test::classification(train::evaluate_images(model, self.options.cost, &self.test, &all, device)?))
    }

    fn plot(&self, run: &Run, model: &dyn ImageModel, test: &Test, device: &Device) -> Result<()> {
        match &test.evaluation {
            Some(evaluation) => image_plots::draw(run, model, &self.test, evaluation, device),
            None => Ok(()),
        }
    }

    fn answer(command: &ImageCommand, trained: Trained<Self>) -> Result<Outcome> {
        let inputs = match command {
            ImageCommand::Predict(inputs) => inputs,
            ImageCommand::Filters => {
                image_plots::draw_filters(&trained.run, trained.model.as_ref(), trained.facts.shape)?;
                return Ok(Outcome::Done);
            }
            ImageCommand::Activations { picture } => {
                let cost = trained.settings.data_options()?.cost;
                let (image, _, probabilities) = classified(&trained, cost, picture)?;
                let caption = most_probable(&trained.facts.classes, &probabilities, 1);
                let Trained { run, model, device, .. } = trained;
                image_plots::draw_activations(&run, model.as_ref(), &image, &caption, &device)?;
                return Ok(Outcome::Done);
            }
        };
        let options = trained.settings.data_options()?;
        let mut prepared = vec![];
        let outcome = inputs.for_each_path(|path| {
            let (_, how, probabilities) = classified(&trained, options.cost, path)?;
            let classes = most_probable(&trained.facts.classes, &probabilities, options.shown_classes);
            say(&format!("{}: {classes}", path.display()));
            prepared.push(how);
            Ok(())
        });
        let counts =
            HANDWRITING.map(|(how, text)| (text, prepared.iter().filter(|&&found| found == how).count()));
        let counts: Vec<String> = counts
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(text, count)| format!("{text}: {count}"))
            .collect();
        if !counts.is_empty() {
            show_notes(&[format!("images {}", counts.join(", "))]);
        }
        outcome
    }

    fn main(binary: &AnyBinary<Self>, arguments: Vec<OsString>) -> ExitCode {
        command_line::main(binary, arguments)
    }
}

/// The sub-commands of a classifier of images.
#[derive(Subcommand)]
pub enum ImageCommand {
    /// Predict your own input, with probabilities
    Predict(Inputs),
    /// Draw the weights of the first layer, as filters.svg in the run folder
    Filters,
    /// Draw the feature maps of one picture after each stage, as activations.svg in the run folder
    Activations {
        /// The picture
        #[arg(value_name = "PICTURE")]
        picture: PathBuf,
    },
}

/// Reads a picture as the run's data set requires.
///
/// Returns it with its preparation and the probabilities of the classes.
fn classified(trained: &Trained<ImageData>, cost: Cost, path: &Path) -> Result<(Images, Prepared, Vec<f32>)> {
    let ImageFacts { preparation, shape, .. } = trained.facts;
    let (pixels, how) = preparation.read(path, shape)?;
    let (image, probabilities) = classify(trained, cost, pixels)?;
    Ok((image, how, probabilities))
}

/// Classifies an image given as bytes of the run's shape.
///
/// Returns it with the probabilities of the classes.
pub(super) fn classify(
    trained: &Trained<ImageData>,
    cost: Cost,
    pixels: Vec<u8>,
) -> Result<(Images, Vec<f32>)> {
    let Trained { facts, model, device, .. } = trained;
    let mut image = Images::new(pixels, vec![0_u32], facts.shape, facts.classes.len())?;
    if let Some(normalisation) = &facts.normalisation {
        image.normalise(normalisation.clone())?;
    }
    let logits = model.forward(&image.batch(&[0], device)?.0, Mode::Evaluate)?;
    Ok((image, cost.probabilities(&logits)?.get(0)?.to_vec1()?))
}

impl Test {
    /// The test of a classifier.
    pub(super) fn classification(evaluation: Evaluation) -> Self {
        let (loss, accuracy) = (evaluation.loss, evaluation.accuracy());
        let record = [("test_loss", loss), ("test_accuracy", accuracy)];
        let text = format!(
            "test accuracy {:.2}% ({} of {}), loss {loss:.4}",
            100.0 * accuracy,
            evaluation.correct(),
            evaluation.predictions.len()
        );
        Self { record: numbers(&record), text, evaluation: Some(evaluation), ..Self::default() }
    }
}

/// Limits the largest shift of an augmentation that a preset chose so that a part of the image is left.
///
/// # Errors
/// Fails if the user chose the shift.
fn limit_crop(
    options: &mut ImageOptions,
    (_, height, width): (usize, usize, usize),
    given: &Given,
) -> Result<()> {
    let Some(Augmentation::Photo(PhotoAugmentation { pad, .. })) = &mut options.augmentation else {
        return Ok(());
    };
    let most = height.min(width).saturating_sub(1);
    if *pad > most {
        ensure!(
            !given.contains("crop"),
            UsageError(format!("--crop {pad}: the images are {height}x{width} pixels, expected 0 to {most}"))
        );
        show_notes(&[format!(
            "the preset shifts images by up to {}; for images of {height}x{width} pixels the limit is {most}",
            count(*pad, "pixel")
        )]);
        *pad = most;
    }
    Ok(())
}

/// Named numbers as JSON.
pub(super) fn numbers(fields: &[(&str, f64)]) -> Map<String, Value> {
    fields.iter().map(|&(name, value)| (name.to_string(), json!(value))).collect()
}

/// The file `name`, or the weights of this name on the hub.
fn weights(name: &str) -> Result<PathBuf> {
    let path = PathBuf::from(name);
    if path.exists() {
        check_is_file(&path).context("--pretrained")?;
        return Ok(path);
    }
    #[cfg(feature = "hub")]
    return crate::data::hub::load_weights(name)
        .with_context(|| format!("--pretrained {name}: no such file"));
    #[cfg(not(feature = "hub"))]
    bail!(
        "--pretrained {name}: no such file, and this build can't download weights: give a safetensors or PyTorch file, \
         or build with `--features hub`"
    )
}
