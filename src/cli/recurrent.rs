//! The recipe that the binaries `rnn`, `gru` and `lstm` share.

use super::folds::cross_validation;
use super::gradient_flow;
use super::options::{TrainOptions, fraction, layers, positive};
use super::recipe::{Binary, Experiment, Recipe};
use super::sentences::{SentenceData, SentenceOptions, TextOptions};
use super::text::TextFacts;
use crate::data::NGrams;
use crate::models::rnn::{Config, Pool, Rnn};
use crate::nn::{Cell, RecurrentConfig, SentenceModel};
use anyhow::Result;
use candle_nn::VarBuilder;
use clap::{Args, ValueEnum};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The cell of a recurrent classifier, with the options that only it has.
pub trait RecurrentClassifier: Args + Clone + Serialize + DeserializeOwned + Send + 'static {
    /// Name of the binary.
    const NAME: &'static str;
    /// One line for `--help`.
    const ABOUT: &'static str;

    /// The cell, and the initial bias of its forget gate; `None` for a random one.
    fn cell(&self) -> (Cell, Option<f64>);
}

/// The value of `--cell` where Elman's is not offered.
#[derive(Debug, Clone, Copy, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CellName {
    /// Gated recurrent unit
    Gru,
    /// Long short-term memory
    Lstm,
}

impl CellName {
    /// The cell.
    pub fn cell(self) -> Cell {
        match self {
            Self::Gru => Cell::Gru,
            Self::Lstm => Cell::Lstm,
        }
    }
}

/// Minimum number of elements that a token takes in `layers` layers of `hidden` units.
///
/// These are the gates and the state.
pub fn recurrent_activations(cell: Cell, layers: usize, hidden: usize) -> u64 {
    (cell.gates() as u64 + 1).saturating_mul(layers as u64).saturating_mul(hidden as u64)
}

/// A recurrent network that classifies sentences.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct RecurrentRecipe<C: RecurrentClassifier> {
    #[command(flatten)]
    #[serde(flatten)]
    classifier: C,
    /// Size of the word vectors [default: 100, or the size of those in --vectors]
    #[arg(long, value_name = "N", value_parser = positive)]
    embedding: Option<usize>,
    /// Number of units per layer and direction
    #[arg(long, value_name = "N", value_parser = positive, default_value_t = 128)]
    hidden: usize,
    /// Number of layers
    #[arg(long, value_name = "N", value_parser = layers, default_value_t = 1)]
    layers: usize,
    /// Read sentences in both directions
    #[arg(long)]
    bidirectional: bool,
    /// How hidden states become a representation of the sentence
    #[arg(long, value_name = "NAME", value_enum, default_value_t = Pool::Last)]
    pool: Pool,
    /// Dropout probability on word vectors, between layers, and before the output layer
    #[arg(long, value_name = "X", value_parser = fraction::<f32>, default_value_t = 0.3)]
    dropout: f32,
    /// Plot how far back gradients reach in an rnn, a gru and an lstm, instead of training a classifier
    #[arg(long, conflicts_with_all = [
        "dataset", "data_dir", "epochs", "batch_size", "train_limit", "validation", "validation_split", "schedule",
        "schedule_epochs", "schedule_factor", "warmup", "patience", "checkpoint_every", "keep_checkpoint", "embedding",
        "hidden", "layers", "bidirectional", "pool", "dropout", "folds", "label_column", "text_column", "tokenizer",
        "lower_case", "min_count", "vectors",
    ])]
    gradient_flow: bool,
    #[command(flatten)]
    #[serde(flatten)]
    text: TextOptions,
    #[command(flatten)]
    #[serde(flatten)]
    train: TrainOptions,
}

impl<C: RecurrentClassifier> RecurrentRecipe<C> {
    /// Size of the word vectors.
    fn embedding(&self, facts: &TextFacts) -> usize {
        self.embedding.or(facts.vector_size).unwrap_or(100)
    }
}

impl<C: RecurrentClassifier> Binary for RecurrentRecipe<C> {
    const NAME: &'static str = C::NAME;
    const ABOUT: &'static str = C::ABOUT;

    fn train_defaults() -> TrainOptions {
        TrainOptions {
            dataset: "reviews".to_string(),
            epochs: 12,
            batch_size: 50,
            clip_norm: Some(5.0),
            ..TrainOptions::default()
        }
    }
}

impl<C: RecurrentClassifier> Recipe for RecurrentRecipe<C> {
    type Data = SentenceData;

    /// With `--pool last`, candle only computes the last states.
    fn prefers_gpu(&self) -> bool {
        true
    }

    fn train_options(&self) -> &TrainOptions {
        &self.train
    }

    fn data_options(&self) -> Result<SentenceOptions> {
        Ok(SentenceOptions { text: self.text.clone(), ngrams: NGrams::default() })
    }

    fn model(&self, facts: &TextFacts, vb: VarBuilder) -> candle_core::Result<Box<dyn SentenceModel>> {
        let &Self { hidden, layers, bidirectional, pool, dropout, .. } = self;
        let (cell, forget_bias) = self.classifier.cell();
        let features = self.embedding(facts);
        let recurrent =
            RecurrentConfig { cell, features, hidden, layers, bidirectional, dropout, forget_bias };
        let (vocabulary, classes) = (facts.vocabulary.len(), facts.classes.len());
        Ok(Box::new(Rnn::new(&Config { vocabulary, recurrent, pool, dropout, classes }, vb)?))
    }

    fn activations(&self, facts: &TextFacts) -> u64 {
        let directions = if self.bidirectional { 2 } else { 1 };
        let (cell, _) = self.classifier.cell();
        self.embedding(facts) as u64 + recurrent_activations(cell, directions * self.layers, self.hidden)
    }

    fn experiment(&self) -> Option<Experiment<Self::Data>> {
        match self.gradient_flow {
            true => Some(Box::new(gradient_flow::plot)),
            false => cross_validation(&self.text),
        }
    }
}
