//! A recurrent language model learns a text, by characters or words, and generates more of it (Karpathy 2015).
//!
//! Data: `source` (built in: this project's sources), `--text FILE`, `tiny-shakespeare`. `--train-limit` counts tokens.
//! Result: 1.1 nats per character on `source`; 1.43 on `tiny-shakespeare` with `--preset shakespeare` in half an hour.
//! `sample` generates text, `score` prints the probability of each line of a text, `neurons` shows the cells' values.

use anyhow::Result;
use candle_nn::VarBuilder;
use candle_textbook::cli::{
    self, Binary, LanguageData, LanguageOptions, Recipe, TrainOptions, fraction, layers, positive,
    recurrent_activations,
};
use candle_textbook::data::Vocabulary;
use candle_textbook::models::language_model::{Config, LanguageModel};
use candle_textbook::nn::Cell;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

#[derive(Clone, Args, Serialize, Deserialize)]
pub(crate) struct Settings {
    #[command(flatten)]
    #[serde(flatten)]
    text: LanguageOptions,
    /// Recurrent cell
    #[arg(long, value_name = "NAME", value_enum, default_value_t = RecurrentCell::Lstm)]
    cell: RecurrentCell,
    /// Size of the token vectors
    #[arg(long, value_name = "N", value_parser = positive, default_value_t = 128)]
    embedding: usize,
    /// Use one-hot vectors instead of trained ones
    #[arg(long, conflicts_with_all = ["embedding", "tie_weights"])]
    one_hot: bool,
    /// Number of units per layer
    #[arg(long, value_name = "N", value_parser = positive, default_value_t = 128)]
    hidden: usize,
    /// Number of layers
    #[arg(long, value_name = "N", value_parser = layers, default_value_t = 2)]
    layers: usize,
    /// Dropout probability on token vectors, between layers, and before the output layer
    #[arg(long, value_name = "X", value_parser = fraction::<f32>, default_value_t = 0.0)]
    dropout: f32,
    /// Use the token vectors as weights of the output layer
    #[arg(long)]
    tie_weights: bool,
    /// Complete settings; other options given with it win
    #[arg(long, value_name = "NAME")]
    preset: Option<Preset>,
    #[command(flatten)]
    #[serde(flatten)]
    train: TrainOptions,
}

#[derive(Clone, Copy, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RecurrentCell {
    Rnn,
    Gru,
    Lstm,
}

impl RecurrentCell {
    fn cell(self) -> Cell {
        match self {
            Self::Rnn => Cell::Tanh,
            Self::Gru => Cell::Gru,
            Self::Lstm => Cell::Lstm,
        }
    }
}

#[derive(Clone, Copy, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Preset {
    /// For a megabyte of plays; half an hour on two cores
    Shakespeare,
}

impl Binary for Settings {
    const NAME: &'static str = "char_lm";
    const ABOUT: &'static str = "A recurrent language model learns a text and generates more of it";
    const UNUSED: &'static [&'static str] = &["validation", "validation_split"];

    fn train_defaults() -> TrainOptions {
        TrainOptions {
            dataset: "source".to_string(),
            epochs: 12,
            batch_size: 50,
            learning_rate: 4e-3,
            clip_norm: Some(5.0),
            ..TrainOptions::default()
        }
    }

    fn apply_preset(&mut self) {
        if let Some(Preset::Shakespeare) = self.preset {
            (self.embedding, self.hidden, self.layers) = (128, 384, 2);
            self.dropout = 0.3;
            self.text.window = 100;
            self.train.batch_size = 32;
            self.train.epochs = 13;
            self.train.learning_rate = 3e-3;
            self.train.warmup = 100;
        }
    }
}

impl Recipe for Settings {
    type Data = LanguageData;

    fn prefers_gpu(&self) -> bool {
        true
    }

    fn train_options(&self) -> &TrainOptions {
        &self.train
    }

    fn data_options(&self) -> Result<LanguageOptions> {
        Ok(self.text.clone())
    }

    fn model(&self, vocabulary: &Vocabulary, vb: VarBuilder) -> candle_core::Result<Box<LanguageModel>> {
        let &Self { embedding, one_hot, hidden, layers, dropout, tie_weights, .. } = self;
        let config = Config {
            vocabulary: vocabulary.len(),
            embedding: (!one_hot).then_some(embedding),
            cell: self.cell.cell(),
            hidden,
            layers,
            dropout,
            tie_weights,
        };
        Ok(Box::new(LanguageModel::new(&config, vb)?))
    }

    fn activations(&self, vocabulary: &Vocabulary) -> u64 {
        let inputs = if self.one_hot { 0 } else { self.embedding as u64 };
        let hidden = recurrent_activations(self.cell.cell(), self.layers, self.hidden);
        inputs + hidden + vocabulary.len() as u64
    }
}

fn main() -> ExitCode {
    cli::main::<Settings>()
}
