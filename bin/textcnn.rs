//! A convolutional network classifies sentences by the phrases in them (Kim 2014).
//!
//! Data: `reviews` (built in), `mr`, `sst2`, `trec`, `ag-news`, `csv`, `tsv`.
//! Result: 99% on `reviews` in a quarter of a minute; 76.9% with `--dataset mr --lower-case --folds 10`.
//! `predict` shows the words behind each prediction; `neighbours` shows words with similar vectors.

use anyhow::Result;
use candle_core::bail;
use candle_nn::VarBuilder;
use candle_textbook::cli::{
    self, Binary, Experiment, OptimizerName, Recipe, ScheduleName, SentenceData, SentenceOptions, TextFacts,
    TextOptions, TrainOptions, fraction, positive, positive_number,
};
use candle_textbook::data::NGrams;
use candle_textbook::models::textcnn::{Config, TextCnn, Variant};
use candle_textbook::nn::SentenceModel;
use candle_textbook::optim::Optimizer;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

#[derive(Clone, Args, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// How word vectors are initialised and trained [default: rand; with --vectors non-static]
    #[arg(long, value_name = "NAME")]
    variant: Option<Variant>,
    /// Size of the word vectors [default: 300, or the size of those in --vectors]
    #[arg(long, value_name = "N", value_parser = positive)]
    embedding: Option<usize>,
    /// Filter widths in words
    #[arg(long, value_name = "N,..", value_delimiter = ',', value_parser = positive, default_value = "3,4,5")]
    widths: Vec<usize>,
    /// Number of filters per width
    #[arg(long, value_name = "N", value_parser = positive, default_value_t = 100)]
    filters: usize,
    /// Dropout probability before the output layer
    #[arg(long, value_name = "X", value_parser = fraction::<f32>, default_value_t = 0.5)]
    dropout: f32,
    /// Largest norm of each class's weights
    #[arg(long, value_name = "X", value_parser = positive_number, default_value_t = 3.0)]
    max_norm: f64,
    /// Settings from the paper; other options given with it win
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
    /// Adadelta, the best of 25 epochs
    Kim,
}

impl Binary for Settings {
    const NAME: &'static str = "textcnn";
    const ABOUT: &'static str = "A convolutional network classifies sentences";

    fn train_defaults() -> TrainOptions {
        TrainOptions {
            dataset: "reviews".to_string(),
            epochs: 6,
            batch_size: 50,
            optimizer: OptimizerName::LazyAdam,
            learning_rate: 1e-3,
            ..TrainOptions::default()
        }
    }

    fn apply_preset(&mut self) {
        if let Some(Preset::Kim) = self.preset {
            self.train.optimizer = OptimizerName::Adadelta;
            self.train.learning_rate = 1.0;
            self.train.schedule = ScheduleName::Constant;
            self.train.epochs = 25;
        }
    }
}

impl Recipe for Settings {
    type Data = SentenceData;

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
        let variant = match (self.variant, &self.text.words.vectors) {
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
            vocabulary: facts.vocabulary.len(),
            embedding: self.embedding(facts),
            widths: self.widths.clone(),
            filters: self.filters,
            dropout: self.dropout,
            classes: facts.classes.len(),
        };
        Ok(Box::new(TextCnn::new(&config, vb)?))
    }

    fn constrain(&self, optimizer: &mut Optimizer) -> candle_core::Result<()> {
        optimizer.set_max_row_norm("output.weight", self.max_norm)
    }

    fn experiment(&self) -> Option<Experiment<Self::Data>> {
        cli::cross_validation(&self.text)
    }

    fn activations(&self, facts: &TextFacts) -> u64 {
        2 * self.embedding(facts) as u64
    }
}

impl Settings {
    /// Size of the word vectors.
    fn embedding(&self, facts: &TextFacts) -> usize {
        self.embedding.or(facts.vector_size).unwrap_or(300)
    }
}

fn main() -> ExitCode {
    cli::main::<Settings>()
}
