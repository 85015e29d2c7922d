//! A convolutional network tells whether a sentence is positive, by its telling phrases (Kim 2014).
//!
//! Data: `reviews` (built in), `mr`, `sst2`, `trec`, `ag-news`, `csv`, `tsv`. On `reviews` it is right 99% of the time, in a
//! quarter of a minute; `--dataset mr --lower-case --folds 10` gives 76.9%. `predict` takes sentences as arguments, or a
//! line each on standard input, and tells which words the answer comes from; `neighbours` takes words.

use candle_core::{Result, bail};
use candle_nn::VarBuilder;
use candle_textbook::cli::sentences::{self, SentenceRecipe, TextOptions};
use candle_textbook::cli::{Settings, TrainOptions, positive, positive_number, probability};
use candle_textbook::models::textcnn::{Config, TextCnn, Variant};
use candle_textbook::nn::SentenceModel;
use candle_textbook::optim::Optimizer;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::process::ExitCode;

#[derive(Args, Serialize, Deserialize)]
struct Recipe {
    /// What becomes of the words' vectors [default: rand; with --vectors non-static]
    #[arg(long, value_name = "NAME")]
    variant: Option<Variant>,
    /// Size of a word's vector
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = positive)]
    embedding: usize,
    /// Words that filters look at
    #[arg(long, value_name = "N,..", default_value = "3,4,5", value_delimiter = ',', value_parser = positive)]
    widths: Vec<usize>,
    /// Filters of each width
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = positive)]
    filters: usize,
    /// Probability that a filter's response is dropped in training
    #[arg(long, value_name = "X", default_value_t = 0.5, value_parser = probability)]
    dropout: f32,
    /// Largest norm of each class's weights
    #[arg(long, value_name = "X", default_value_t = 3.0, value_parser = positive_number)]
    max_norm: f64,
    /// Settings of the paper; options given beside it stand
    #[arg(long, value_name = "NAME")]
    preset: Option<Preset>,
    #[command(flatten)]
    #[serde(flatten)]
    text: TextOptions,
    #[command(flatten)]
    #[serde(flatten)]
    train: TrainOptions,
}

#[derive(Clone, Copy, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Preset {
    /// Adadelta, at most 25 epochs, the best of which counts
    Kim,
}

impl Settings for Recipe {
    const DEFAULTS: &'static [(&'static str, &'static str)] = &[
        ("dataset", "reviews"),
        ("epochs", "6"),
        ("batch_size", "50"),
        ("optimizer", "lazy-adam"),
        ("learning_rate", "1e-3"),
    ];
    const READS_INPUT: bool = true;

    fn train_options(&self) -> &TrainOptions {
        &self.train
    }

    fn preset(&self) -> Value {
        match self.preset {
            None => Value::Null,
            Some(Preset::Kim) => json!({
                "optimizer": "adadelta",
                "learning_rate": 1.0,
                "schedule": "constant",
                "epochs": 25,
            }),
        }
    }
}

impl SentenceRecipe for Recipe {
    const NAME: &'static str = "textcnn";
    const ABOUT: &'static str = "A convolutional network tells whether a sentence is positive";

    fn text_options(&self) -> &TextOptions {
        &self.text
    }

    fn constrain(&self, optimizer: &mut Optimizer) -> Result<()> {
        optimizer.set_max_row_norm("output.weight", self.max_norm)
    }

    fn model(&self, words: usize, classes: usize, vb: VarBuilder) -> Result<Box<dyn SentenceModel>> {
        let variant = match (self.variant, &self.text.vectors) {
            (Some(Variant::Static | Variant::NonStatic | Variant::Multichannel), None) => {
                bail!("--variant: all but rand need pretrained vectors: give --vectors FILE")
            }
            (Some(Variant::Rand), Some(_)) => bail!("--variant rand: takes no --vectors"),
            (Some(variant), _) => variant,
            (None, Some(_)) => Variant::NonStatic,
            (None, None) => Variant::Rand,
        };
        let config = Config {
            variant,
            vocabulary: words,
            embedding: self.embedding,
            widths: self.widths.clone(),
            filters: self.filters,
            dropout: self.dropout,
            classes,
        };
        Ok(Box::new(TextCnn::new(&config, vb)?))
    }
}

fn main() -> ExitCode {
    sentences::main::<Recipe>()
}
