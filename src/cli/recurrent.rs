//! What the binaries of recurrent classifiers share.

use super::sentences::TextOptions;
use super::{TrainOptions, positive, probability};
use crate::models::rnn::{Config, Pool};
use crate::nn::{Cell, RecurrentConfig};
use clap::Args;
use serde::{Deserialize, Serialize};

/// The recurrent network and what goes into it, and the options of every training.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
pub struct RecurrentOptions {
    /// Size of a word's vector
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = positive)]
    embedding: usize,
    /// Units of each layer and direction
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = positive)]
    hidden: usize,
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
    layers: usize,
    /// Read sentences from their ends too
    #[arg(long)]
    bidirectional: bool,
    /// What stands for the sentence
    #[arg(long, value_name = "NAME", default_value = "last")]
    pool: Pool,
    /// Probability that a value is dropped in training: of words' vectors, between layers, and before the classes
    #[arg(long, value_name = "X", default_value_t = 0.3, value_parser = probability)]
    dropout: f32,
    /// Instead of training a classifier, draw how far back the gradient of rnn, gru and lstm reaches
    #[arg(long)]
    pub gradient_flow: bool,
    #[command(flatten)]
    #[serde(flatten)]
    pub text: TextOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub train: TrainOptions,
}

impl RecurrentOptions {
    /// Defaults that suit sentences.
    pub const DEFAULTS: &'static [(&'static str, &'static str)] =
        &[("dataset", "reviews"), ("epochs", "12"), ("batch_size", "50"), ("clip_norm", "5")];

    /// The classifier asked for, of so many known words and classes.
    pub fn config(&self, cell: Cell, forget_bias: Option<f64>, words: usize, classes: usize) -> Config {
        let &Self { embedding: features, hidden, layers, bidirectional, pool, dropout, .. } = self;
        let recurrent =
            RecurrentConfig { cell, features, hidden, layers, bidirectional, dropout, forget_bias };
        Config { vocabulary: words, recurrent, pool, dropout, classes }
    }
}
