//! What differs from binary to binary ([`Recipe`]) and from one kind of data to another ([`Data`]).

use super::Outcome;
use super::options::{MachineOptions, TrainOptions};
use crate::optim::Optimizer;
use crate::train::{Epoch, Evaluation, Metric, Progress, Run, Task};
use anyhow::Result;
use candle_core::Device;
use candle_nn::{VarBuilder, VarMap};
use clap::{Args, Subcommand};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The options of a binary: what it trains, on which data, and with which defaults.
///
/// The fields are the options of `train`. A run records them in its `config.json`. Fields get their defaults from the
/// [`Default`] implementation alone, not from clap attributes.
pub trait Recipe: Args + Clone + Default + Serialize + DeserializeOwned + Send {
    /// Name of the binary.
    const NAME: &'static str;
    /// One line for `--help`.
    const ABOUT: &'static str;
    /// Ids of the options in [`TrainOptions`] that this binary rejects and hides.
    const UNUSED: &'static [&'static str] = &[];
    /// The data it trains on.
    type Data: Data;

    /// The options that all binaries share.
    fn train_options(&self) -> &TrainOptions;

    /// How to read the data and to pose the task.
    ///
    /// # Errors
    /// When options contradict each other.
    fn data_options(&self) -> Result<<Self::Data as Data>::Options>;

    /// The model for data described by `facts`, with its parameters in `vb`.
    ///
    /// # Errors
    /// When there is no such model.
    fn model(
        &self,
        facts: &<Self::Data as Data>::Facts,
        vb: VarBuilder,
    ) -> candle_core::Result<Box<<Self::Data as Data>::Model>>;

    /// Replaces defaults by the settings of the chosen preset. Options that the user gave win over these.
    fn apply_preset(&mut self) {}

    /// Adds constraints on parameters to the optimizer.
    ///
    /// # Errors
    /// When the model lacks the parameters.
    fn constrain(&self, _optimizer: &mut Optimizer) -> candle_core::Result<()> {
        Ok(())
    }

    /// The program that takes the place of an ordinary training run, if the options ask for one.
    fn experiment(&self) -> Option<Experiment<Self>> {
        None
    }
}

/// A program that `train` runs in place of one training run.
pub type Experiment<R> = fn(&Training<R>) -> Result<Outcome>;

/// A training run that was asked for.
pub struct Training<R> {
    /// Its settings, with defaults and preset resolved.
    pub settings: R,
    /// Where it starts.
    pub(super) start: Start,
    /// Where to compute.
    pub device: Device,
    /// How to show progress.
    pub(super) progress: Box<dyn Progress + Send>,
}

/// Where a training run starts: in a new folder, or from a run's last checkpoint.
#[derive(Default)]
pub(super) struct Start {
    /// The run to resume, with its configuration.
    pub(super) resume: Option<(Run, Value)>,
    /// The new folder; none for the next number under `runs/`.
    pub(super) out: Option<PathBuf>,
}

/// A kind of data set, with the task that it poses.
pub trait Data: Sized {
    /// The trait or type of the models that learn from it.
    type Model: ?Sized;
    /// The choices that a recipe makes about data and task.
    type Options;
    /// What a model depends on and `predict` needs, such as the vocabulary and the classes.
    type Facts;
    /// Options of `eval` that choose the test data.
    type TestOptions: Args + Send;
    /// The sub-commands besides `train` and `eval`.
    type Command: Command;
    /// Metric of validation and test.
    const METRIC: Metric;
    /// What an example is, in the plural.
    const NOUN: &'static str;
    /// Unit of the counts in `config.json`.
    const UNIT: &'static str = "examples";
    /// Whether `predict` reads standard input if it has no arguments.
    const READS_INPUT: bool = false;

    /// Reads the data set for training, or, given a run's facts and the options of `eval`, the test data of that run.
    ///
    /// # Errors
    /// Unknown names, missing or broken files, too few examples, test data that doesn't fit the facts.
    fn load(
        options: Self::Options,
        train: &TrainOptions,
        run: Option<(Self::Facts, &Self::TestOptions)>,
    ) -> Result<Self>;

    /// The facts about this data set.
    fn facts(&self) -> &Self::Facts;

    /// Sizes of the training, validation and test part.
    fn sizes(&self) -> [u64; 3];

    /// The names of the classes; empty if there are none.
    fn classes(&self) -> &[String] {
        &[]
    }

    /// The fields that `config.json` records about the data.
    ///
    /// # Errors
    /// When they can't be determined.
    fn record(&self) -> Result<Map<String, Value>>;

    /// Writes facts that are too large for `config.json` into the run folder.
    ///
    /// # Errors
    /// When it can't be written.
    fn write(&self, _run: &Run) -> Result<()> {
        Ok(())
    }

    /// Reads the facts that a run recorded.
    ///
    /// # Errors
    /// When they are missing or damaged.
    fn read(run: &Run, config: &Value) -> Result<Self::Facts>;

    /// Name of the data set.
    fn name<'a>(&'a self, train: &'a TrainOptions) -> &'a str {
        &train.dataset
    }

    /// The facts in words for the first line of output.
    fn describe(&self) -> String {
        String::new()
    }

    /// Sets initial values other than random ones; returns a line to show.
    ///
    /// # Errors
    /// Those of the files that are read for this.
    fn initialise(&self, _vars: &VarMap) -> Result<Option<String>> {
        Ok(None)
    }

    /// The task of training `model` on this data.
    ///
    /// # Errors
    /// When the data doesn't fit the task.
    fn task<'a>(
        &'a self,
        model: &'a Self::Model,
        train: &TrainOptions,
        device: &'a Device,
    ) -> Result<Box<dyn Task + 'a>>;

    /// Tests `model`. At the end of a training run, `best` is its best epoch.
    ///
    /// # Errors
    /// When the test data doesn't fit the model.
    fn test(&self, model: &Self::Model, best: Option<&Epoch>, device: &Device) -> Result<Test>;

    /// Draws plots of a trained model into the run folder.
    ///
    /// # Errors
    /// When they can't be drawn or written.
    fn plot(&self, _run: &Run, _model: &Self::Model, _test: &Evaluation, _device: &Device) -> Result<()> {
        Ok(())
    }

    /// Runs a sub-command on a trained model.
    ///
    /// # Errors
    /// Input that the model can't process.
    fn answer<R: Recipe<Data = Self>>(command: &Self::Command, trained: Trained<R>) -> Result<()>;
}

/// The result of a test.
pub struct Test {
    /// Fields of the last line of `metrics.jsonl`.
    pub record: Map<String, Value>,
    /// The result in words, one or more lines.
    pub text: String,
    /// The predictions, if the task is a classification.
    pub evaluation: Option<Evaluation>,
}

/// A finished run, ready to be used.
pub struct Trained<R: Recipe> {
    /// The run folder.
    pub run: Run,
    /// The settings that it recorded.
    pub settings: R,
    /// The facts about its data.
    pub facts: <R::Data as Data>::Facts,
    /// The model with the best weights.
    pub model: Box<<R::Data as Data>::Model>,
    /// The device that holds the model.
    pub device: Device,
}

/// A sub-command that uses a trained model.
pub trait Command: Subcommand + Send {
    /// Where to compute.
    fn machine(&self) -> &MachineOptions;
    /// The run folder, or none for the newest.
    fn run(&self) -> Option<&Path>;
}
