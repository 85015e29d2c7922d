//! A long short-term memory tells whether a sentence is positive (Hochreiter and Schmidhuber 1997).
//!
//! Data: `reviews` (built in), `mr`, `sst2`, `trec`, `csv`, `tsv`. On `reviews` it is right about 99.9% of the
//! time, in a quarter of a minute; a bag of words about 51%. On `mr`, `--epochs 4 --folds 10` gives 77%. `predict`
//! takes sentences as arguments, or a line each on standard input.

use candle_core::Result;
use candle_nn::VarBuilder;
use candle_textbook::cli::recurrent::RecurrentOptions;
use candle_textbook::cli::sentences::{self, SentenceRecipe, TextOptions};
use candle_textbook::cli::{Settings, TrainOptions};
use candle_textbook::models::rnn::Rnn;
use candle_textbook::nn::{Cell, SentenceModel};
use clap::Args;
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

#[derive(Args, Serialize, Deserialize)]
struct Recipe {
    /// What the bias of the forget gate starts from [default: a small random value]
    #[arg(long, value_name = "X")]
    forget_bias: Option<f64>,
    #[command(flatten)]
    #[serde(flatten)]
    network: RecurrentOptions,
}

impl Settings for Recipe {
    const DEFAULTS: &'static [(&'static str, &'static str)] = RecurrentOptions::DEFAULTS;
    const READS_INPUT: bool = true;

    fn train_options(&self) -> &TrainOptions {
        &self.network.train
    }
}

impl SentenceRecipe for Recipe {
    const NAME: &'static str = "lstm";
    const ABOUT: &'static str = "A long short-term memory tells whether a sentence is positive";

    fn text_options(&self) -> &TextOptions {
        &self.network.text
    }

    fn gradient_flow(&self) -> bool {
        self.network.gradient_flow
    }

    fn model(&self, words: usize, classes: usize, vb: VarBuilder) -> Result<Box<dyn SentenceModel>> {
        let config = self.network.config(Cell::Lstm, self.forget_bias, words, classes);
        Ok(Box::new(Rnn::new(&config, vb)?))
    }
}

fn main() -> ExitCode {
    sentences::main::<Recipe>()
}
