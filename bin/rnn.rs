//! An Elman network tells whether a sentence is positive (Elman 1990).
//!
//! Data: `reviews` (built in), `mr`, `sst2`, `trec`, `csv`, `tsv`. On `reviews` it is right about 99.9% of the
//! time, in ten seconds; a bag of words about 51%. `predict` takes sentences as arguments, or a line each on
//! standard input.

use candle_core::Result;
use candle_nn::VarBuilder;
use candle_textbook::cli::recurrent::RecurrentOptions;
use candle_textbook::cli::sentences::{self, SentenceRecipe, TextOptions};
use candle_textbook::cli::{Settings, TrainOptions};
use candle_textbook::models::rnn::Rnn;
use candle_textbook::nn::{Cell, SentenceModel};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

#[derive(Args, Serialize, Deserialize)]
struct Recipe {
    /// tanh, or ReLU (Le, Jaitly and Hinton 2015)
    #[arg(long, value_name = "NAME", default_value = "tanh")]
    activation: Activation,
    #[command(flatten)]
    #[serde(flatten)]
    network: RecurrentOptions,
}

#[derive(Clone, Copy, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Activation {
    Tanh,
    Relu,
}

impl Settings for Recipe {
    const DEFAULTS: &'static [(&'static str, &'static str)] = RecurrentOptions::DEFAULTS;
    const READS_INPUT: bool = true;

    fn train_options(&self) -> &TrainOptions {
        &self.network.train
    }
}

impl SentenceRecipe for Recipe {
    const NAME: &'static str = "rnn";
    const ABOUT: &'static str = "An Elman network tells whether a sentence is positive";

    fn text_options(&self) -> &TextOptions {
        &self.network.text
    }

    fn gradient_flow(&self) -> bool {
        self.network.gradient_flow
    }

    fn model(&self, words: usize, classes: usize, vb: VarBuilder) -> Result<Box<dyn SentenceModel>> {
        let cell = match self.activation {
            Activation::Tanh => Cell::Tanh,
            Activation::Relu => Cell::Relu,
        };
        let config = self.network.config(cell, None, words, classes);
        Ok(Box::new(Rnn::new(&config, vb)?))
    }
}

fn main() -> ExitCode {
    sentences::main::<Recipe>()
}
