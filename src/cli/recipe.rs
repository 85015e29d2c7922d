//! The differences between binaries ([`Recipe`], [`Binary`]) and between kinds of data ([`Data`]).

use super::Outcome;
use super::options::{Given, TrainOptions};
use crate::optim::Optimizer;
use crate::processes::Processes;
use crate::train::{Epoch, Evaluation, Progress, Run, Task};
use anyhow::{Error, Result, anyhow};
use candle_core::Device;
use candle_nn::{VarBuilder, VarMap};
use clap::{ArgMatches, Args, Command, Subcommand};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::ffi::OsString;
use std::ops::Deref;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// The settings that are paths of data. A run records them as absolute paths.
pub(super) const PATHS: [&str; 4] = ["data_dir", "text", "vectors", "pretrained"];

/// The field of `config.json` with the names of the classes.
pub(super) const CLASSES: &str = "classes";

/// The field of `config.json` that a plot of the gradient flow has.
pub(super) const GRADIENT_FLOW: &str = "gradient_flow";

/// The settings that do not change the result.
pub(super) const WITHOUT_EFFECT: [&str; 2] = ["checkpoint_every", "keep_checkpoint"];

/// The settings that name files of initial weights. A run keeps copies of them in its folder, under these names.
pub(super) const KEPT: [(&str, &str); 2] = [("vectors", KEPT_VECTORS), ("pretrained", KEPT_WEIGHTS)];
pub(super) const KEPT_VECTORS: &str = "vectors.txt";
pub(super) const KEPT_WEIGHTS: &str = "pretrained.weights";

/// What a binary trains: the data, the model, and how to optimise it.
///
/// The rest of the program is compiled once for each kind of data, and uses the recipe through this trait. [`Binary`] has
/// what the command line needs to know, which [`AnyBinary`] passes on.
pub trait Recipe: Send {
    /// The data it trains on.
    type Data: Data;

    /// The options that all binaries share.
    fn train_options(&self) -> &TrainOptions;

    /// How to read the data and to define the task.
    ///
    /// # Errors
    /// Fails if options contradict each other.
    fn data_options(&self) -> Result<<Self::Data as Data>::Options>;

    /// The model for data described by `facts`, with its parameters in `vb`.
    ///
    /// # Errors
    /// Fails if there is no such model.
    fn model(
        &self,
        facts: &<Self::Data as Data>::Facts,
        vb: VarBuilder,
    ) -> candle_core::Result<Box<<Self::Data as Data>::Model>>;

    /// Whether `--device auto` selects a GPU.
    ///
    /// It should if the model's operations have CUDA kernels of this project, and a step is large enough that the GPU
    /// is faster than the CPU.
    fn prefers_gpu(&self) -> bool {
        false
    }

    /// Number of elements that one image, word or other row of a batch occupies at least in a forward pass.
    ///
    /// A training on the CPU that needs more memory than is free is refused at its start.
    fn activations(&self, facts: &<Self::Data as Data>::Facts) -> u64;

    /// Adds constraints on parameters to the optimizer.
    ///
    /// # Errors
    /// Fails if the model lacks the parameters.
    fn constrain(&self, _optimizer: &mut Optimizer) -> candle_core::Result<()> {
        Ok(())
    }

    /// The least number of examples that a step of training needs: batch normalisation needs two values per channel.
    fn least_batch(&self, _facts: &<Self::Data as Data>::Facts) -> usize {
        1
    }

    /// Whether batch normalisation on several processes uses the statistics of the whole batch.
    fn sync_batch_norm(&self) -> bool {
        false
    }

    /// Returns the program that replaces an ordinary training run, if the options ask for one.
    fn experiment(&self) -> Option<Experiment<Self::Data>> {
        None
    }
}

/// The options of a binary, its name and its defaults.
///
/// The fields are the options of `train`. A run records them in its `config.json`.
pub trait Binary: Recipe + Args + Clone + Serialize + DeserializeOwned + 'static {
    /// Name of the binary.
    const NAME: &'static str;
    /// One line for `--help`.
    const ABOUT: &'static str;
    /// Ids of the options in [`TrainOptions`] that this binary rejects and hides.
    const UNUSED: &'static [&'static str] = &[];
    /// The data sets of [`Data::DATA_SETS`] that its model can't learn.
    const UNFIT: &'static [&'static str] = &[];
    /// Whether a step may evaluate the loss of all training examples several times, as L-BFGS does.
    const FULL_BATCH: bool = false;

    /// The defaults of the options that all binaries share.
    fn train_defaults() -> TrainOptions;

    /// Replaces defaults by the settings of the chosen preset. Options that the user gave win over these.
    fn apply_preset(&mut self) {}
}

/// The settings by the names of their options.
pub(super) fn fields(settings: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(settings) {
        Ok(Value::Object(fields)) => fields,
        _ => unreachable!("a struct of options serialises to a map"),
    }
}

/// The recipe of any binary, with its settings as a run records them.
pub struct AnyRecipe<D> {
    /// Name of the binary.
    pub(super) binary: &'static str,
    /// The settings by the names of their options.
    pub(super) fields: Map<String, Value>,
    recipe: Box<dyn Recipe<Data = D>>,
}

impl<D: Data> AnyRecipe<D> {
    /// The recipe with these settings.
    pub fn new<B: Binary<Data = D>>(settings: B) -> Self {
        Self { binary: B::NAME, fields: fields(&settings), recipe: Box::new(settings) }
    }

    /// The settings as JSON.
    pub(super) fn value(&self) -> Value {
        Value::Object(self.fields.clone())
    }
}

impl<D> Deref for AnyRecipe<D> {
    type Target = dyn Recipe<Data = D>;

    fn deref(&self) -> &Self::Target {
        self.recipe.as_ref()
    }
}

/// Any binary for a kind of data, without the type of its settings.
pub struct AnyBinary<D> {
    /// [`Binary::NAME`].
    pub(super) name: &'static str,
    /// [`Binary::ABOUT`].
    pub(super) about: &'static str,
    /// [`Binary::UNUSED`].
    pub(super) unused: &'static [&'static str],
    /// [`Binary::UNFIT`].
    pub(super) unfit: &'static [&'static str],
    /// [`Binary::FULL_BATCH`].
    pub(super) full_batch: bool,
    /// [`Binary::train_defaults`].
    pub(super) train_defaults: fn() -> TrainOptions,
    /// Adds the options of `train` to a command.
    pub(super) augment: fn(Command) -> Command,
    /// The settings that options give.
    pub(super) parse: fn(&ArgMatches) -> Result<AnyRecipe<D>>,
    /// The settings that a run recorded.
    pub(super) read: fn(Value) -> Result<AnyRecipe<D>>,
    /// Settings, changed by options.
    pub(super) update: fn(Value, &ArgMatches) -> Result<AnyRecipe<D>>,
    /// Settings, changed by the chosen preset.
    pub(super) apply_preset: fn(Value) -> Result<AnyRecipe<D>>,
}

impl<D: Data> AnyBinary<D> {
    /// The binary with the settings `B`.
    pub fn new<B: Binary<Data = D>>() -> Self {
        fn read<B: Binary>(fields: Value) -> Result<B> {
            Ok(serde_json::from_value(fields)?)
        }
        Self {
            name: B::NAME,
            about: B::ABOUT,
            unused: B::UNUSED,
            unfit: B::UNFIT,
            full_batch: B::FULL_BATCH,
            train_defaults: B::train_defaults,
            augment: B::augment_args,
            parse: |matches| Ok(AnyRecipe::new(B::from_arg_matches(matches)?)),
            read: |fields| Ok(AnyRecipe::new(read::<B>(fields)?)),
            update: |fields, given| {
                let mut settings: B = read(fields)?;
                settings.update_from_arg_matches(given)?;
                Ok(AnyRecipe::new(settings))
            },
            apply_preset: |fields| {
                let mut settings: B = read(fields)?;
                settings.apply_preset();
                Ok(AnyRecipe::new(settings))
            },
        }
    }

    /// The settings that `run` recorded in its `config.json`.
    ///
    /// # Errors
    /// Fails if they are missing or damaged.
    pub(super) fn recorded(&self, run: &Run, config: &Value) -> Result<AnyRecipe<D>> {
        // Any other damage shows in the checksum.
        (self.read)(config["settings"].clone()).map_err(|_| {
            let file = run.dir().join("config.json");
            anyhow!("{}: its settings belong to another version of {}", file.display(), self.name)
        })
    }
}

/// A program that `train` runs instead of a single training run.
pub type Experiment<D> = Box<dyn FnOnce(&Training<D>) -> Result<Outcome>>;

/// A training run to perform.
pub struct Training<D> {
    /// Its settings, with defaults and preset resolved.
    pub settings: AnyRecipe<D>,
    /// The settings that read the data: a resumed run has copies of some files.
    pub(super) sources: AnyRecipe<D>,
    /// The defaults of the settings.
    pub(super) defaults: Map<String, Value>,
    /// The settings of the preset, or else the defaults.
    pub(super) preset: Map<String, Value>,
    /// The options that the user gave.
    pub(super) given: Given,
    /// Where it starts.
    pub(super) start: Start,
    /// Where to compute.
    pub device: Device,
    /// How to show progress.
    pub(super) progress: Box<dyn Progress + Send>,
    /// The processes that train together; `None` for one.
    pub(super) processes: Option<Arc<dyn Processes>>,
}

impl<D: Data> Training<D> {
    /// The shared options, and which of them the user gave.
    pub(super) fn options(&self) -> TrainOptions {
        TrainOptions { given: self.given.clone(), ..self.settings.train_options().clone() }
    }

    /// Number of processes that train together.
    pub(super) fn size(&self) -> usize {
        self.processes.as_ref().map_or(1, |processes| processes.size())
    }

    /// Whether this is the only process, or the first of several, which writes the run folder.
    pub(super) fn is_first(&self) -> bool {
        self.processes.as_ref().is_none_or(|processes| processes.rank() == 0)
    }
}

/// A run folder with its configuration, whose model is not loaded yet.
pub struct Saved<D> {
    pub(super) run: Run,
    pub(super) config: Value,
    pub(super) settings: AnyRecipe<D>,
    /// Where to load the model to.
    pub(super) device: Device,
}

/// Where a training run starts: in a new folder, or from a run's last checkpoint.
#[derive(Default)]
pub(super) struct Start {
    /// The run to resume, with its configuration.
    pub(super) resume: Option<(Run, Value)>,
    /// The new folder; `None` for the next number under `runs/`.
    pub(super) out: Option<PathBuf>,
    /// The folder of the run that this one is a part of, such as a fold. Resuming needs that folder.
    pub(super) parent: Option<PathBuf>,
}

impl Start {
    /// The start of the part `name` of `run`: from its last checkpoint, or in a new folder in the run's.
    pub(super) fn part(binary: &str, run: &Run, name: &str) -> Result<Self> {
        let dir = run.dir().join(name);
        let resume = dir.join("config.json").exists().then(|| Run::open(binary, Some(&dir))).transpose()?;
        Ok(Self { resume, out: Some(dir), parent: Some(run.dir().to_path_buf()) })
    }
}

/// The error about `what` a run records in its `config.json`, if it can't be read.
pub(super) fn of_another_version(run: &Run, what: &str) -> Error {
    anyhow!("{}: its {what} are described in another version's form", run.dir().join("config.json").display())
}

/// A kind of data set, with the task that it poses.
pub trait Data: Sized + 'static {
    /// The trait or type of the models that learn from it.
    type Model: ?Sized;
    /// The choices that a recipe makes about data and task.
    type Options;
    /// The facts that a model depends on.
    type Facts: Facts;
    /// Options of `eval` that choose the test data.
    type TestOptions: Args + Send;
    /// The sub-commands besides `train` and `eval`.
    type Command: Subcommand + Send;
    /// The names of the data sets, each with its files. Data sets with the same files share an entry.
    const DATA_SETS: &'static [(&'static [&'static str], &'static str)];
    /// The noun for examples, in the plural.
    const NOUN: &'static str;
    /// Whether the inputs of `predict` are paths of files, not text.
    const INPUTS_ARE_PATHS: bool = false;
    /// Unit of the counts in `config.json`.
    const UNIT: &'static str = "examples";

    /// Reads the data set for training, or the test data of a run.
    ///
    /// The latter is chosen by the run's facts and the options of `eval`.
    ///
    /// # Errors
    /// Fails if the name is unknown, files are missing or broken, there are too few examples, or the test data doesn't
    /// fit the facts.
    fn load(
        options: Self::Options,
        train: &TrainOptions,
        run: Option<(Self::Facts, &Self::TestOptions)>,
    ) -> Result<Self>;

    /// The description of the data.
    fn about(&self) -> &About<Self::Facts>;

    /// Number of examples per step.
    fn batch_size(&self, train: &TrainOptions) -> usize {
        train.batch_size
    }

    /// Number of images, words or tokens in the largest batch of at most `batch_size` examples.
    fn largest_batch(&self, batch_size: usize) -> u64;

    /// A few words about data and task for the first line of output.
    fn describe(&self) -> String {
        self.about().facts.describe()
    }

    /// Notes how many tokens of the test part the model does not know, if that matters for the test.
    ///
    /// # Errors
    /// Fails if the test part can't be read.
    fn note_unknown(&self) -> Result<()> {
        Ok(())
    }

    /// Sets initial values other than random ones; returns a line to show.
    ///
    /// # Errors
    /// Fails if a file with these values can't be read or doesn't fit.
    fn initialise(&self, _vars: &VarMap) -> Result<Option<String>> {
        Ok(None)
    }

    /// Copies pretrained vectors and weights into the run folder, so that resuming does not need the files.
    ///
    /// # Errors
    /// Fails if they can't be written.
    fn keep_files(&self, _run: &Run) -> Result<()> {
        Ok(())
    }

    /// The task of training `model` on this data.
    ///
    /// # Errors
    /// Fails if the data doesn't fit the task.
    fn task<'a>(&'a self, model: &'a Self::Model, device: &'a Device) -> Result<Box<dyn Task + 'a>>;

    /// Tests `model`. At the end of a training run, `best` is its best epoch.
    ///
    /// # Errors
    /// Fails if the test data doesn't fit the model.
    fn test(&self, model: &Self::Model, best: Option<&Epoch>, device: &Device) -> Result<Test>;

    /// Draws plots of a trained model into the run folder.
    ///
    /// # Errors
    /// Fails if they can't be drawn or written.
    fn plot(&self, _run: &Run, _model: &Self::Model, _test: &Test, _device: &Device) -> Result<()> {
        Ok(())
    }

    /// Runs a sub-command on a trained model.
    ///
    /// # Errors
    /// Fails if the command can't be carried out. An input that the model can't process ends in [`Outcome::Failed`].
    fn answer(command: &Self::Command, trained: Trained<Self>) -> Result<Outcome>;

    /// Runs `binary` on `arguments`, which begin with the name of the program.
    ///
    /// Each kind of data does the same. It is a method so that this is compiled once for each, not for each binary.
    fn main(binary: &AnyBinary<Self>, arguments: Vec<OsString>) -> ExitCode;
}

/// The description of a data set: its name, its size, and the facts that a model depends on.
pub struct About<F> {
    /// Name of the data set.
    pub name: String,
    /// Number of examples in the training, validation and test part.
    pub sizes: [u64; 3],
    /// Hashes of the content of each part: `training_data`, `validation_data`, `test_data`, or `text`.
    pub fingerprints: Value,
    /// The facts that a model depends on.
    pub facts: F,
}

/// [`About::fingerprints`] of a data set with these hashes of its training, validation and test split.
pub(super) fn split_fingerprints([training, validation, test]: [Option<u64>; 3]) -> Value {
    json!({ "training_data": training, "validation_data": validation, "test_data": test })
}

/// The facts that a model and `predict` need, such as the vocabulary and the classes.
pub trait Facts: Sized {
    /// The names of the classes; empty if there are none.
    fn classes(&self) -> &[String] {
        &[]
    }

    /// The fields that `config.json` records beside the classes.
    fn record(&self) -> Map<String, Value>;

    /// Writes facts that are too large for `config.json` into the run folder.
    ///
    /// # Errors
    /// Fails if it can't be written.
    fn write(&self, _run: &Run) -> Result<()> {
        Ok(())
    }

    /// Reads the facts that [`record`](Self::record) and [`write`](Self::write) wrote.
    ///
    /// # Errors
    /// Fails if it is missing or damaged.
    fn read(run: &Run, config: &Value) -> Result<Self>;

    /// A few words for [`Data::describe`].
    fn describe(&self) -> String;
}

/// The result of a test.
#[derive(Default)]
pub struct Test {
    /// Fields of the last line of `metrics.jsonl`.
    pub record: Map<String, Value>,
    /// The result in words, one or more lines.
    pub text: String,
    /// The predictions, if the task is a classification.
    pub evaluation: Option<Evaluation>,
    /// The translations of the test sources, if the task is one.
    pub translations: Vec<String>,
}

/// A finished run, ready to be used.
pub struct Trained<D: Data> {
    /// The run folder.
    pub run: Run,
    /// The settings that it recorded.
    pub settings: AnyRecipe<D>,
    /// The facts about its data.
    pub facts: D::Facts,
    /// The model with the best weights.
    pub model: Box<D::Model>,
    /// The device that holds the model.
    pub device: Device,
}
