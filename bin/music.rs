//! A recurrent network learns music in time steps, and composes (Boulanger-Lewandowski, Bengio and Vincent 2012).
//!
//! Data: `chorales` (built in): four-part settings by the rules of voice leading; `midi`, `piano-roll`.
//! Result: 5.74 nats per step on Bach's chorales with `--preset jsb`, 8.33 with `--output independent`.
//! `sample` composes, `harmonize` adds voices to a melody, `score` prints nats per step, `listen` writes a page that plays.

use anyhow::Result;
use candle_nn::VarBuilder;
use candle_textbook::cli::{
    self, Binary, CellName, MusicData, MusicFacts, MusicOptions, OutputName, Recipe, TrainOptions, fraction,
    layers, positive, recurrent_activations,
};
use candle_textbook::models::music::{Config, MusicModel, Output};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

#[derive(Clone, Args, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Recurrent cell
    #[arg(long, value_name = "NAME", value_enum, default_value_t = CellName::Gru)]
    cell: CellName,
    /// Size of the vector of a step
    #[arg(long, value_name = "N", value_parser = positive, default_value_t = 128)]
    embedding: usize,
    /// Number of units per recurrent layer
    #[arg(long, value_name = "N", value_parser = positive, default_value_t = 128)]
    hidden: usize,
    /// Number of recurrent layers
    #[arg(long, value_name = "N", value_parser = layers, default_value_t = 1)]
    layers: usize,
    /// Dropout probability on the vectors of steps, between layers, and before the output layer
    #[arg(long, value_name = "X", value_parser = fraction::<f32>, default_value_t = 0.0)]
    dropout: f32,
    /// Complete settings; other options given with it win
    #[arg(long, value_name = "NAME")]
    preset: Option<Preset>,
    #[command(flatten)]
    #[serde(flatten)]
    music: MusicOptions,
    #[command(flatten)]
    #[serde(flatten)]
    train: TrainOptions,
}

#[derive(Clone, Copy, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Preset {
    /// Chorales by Bach, as a piano roll in the folder --data-dir
    Jsb,
}

impl Binary for Settings {
    const NAME: &'static str = "music";
    const ABOUT: &'static str = "A recurrent network learns music and composes";

    fn train_defaults() -> TrainOptions {
        TrainOptions {
            dataset: "chorales".to_string(),
            epochs: 5,
            batch_size: 16,
            learning_rate: 4e-3,
            clip_norm: Some(1.0),
            ..TrainOptions::default()
        }
    }

    fn apply_preset(&mut self) {
        if let Some(Preset::Jsb) = self.preset {
            // Independent keys need no more keys than the few hundred pieces have.
            let (dropout, transpose, batch_size) = match self.music.output {
                OutputName::Independent => (0.3, 0, 4),
                OutputName::Autoregressive => (0.5, 5, 16),
            };
            (self.hidden, self.embedding, self.music.note_units) = (200, 200, 200);
            (self.dropout, self.music.transpose) = (dropout, transpose);
            self.train = TrainOptions {
                dataset: "piano-roll".to_string(),
                epochs: 60,
                batch_size,
                learning_rate: 3e-3,
                patience: Some(20),
                ..self.train.clone()
            };
        }
    }
}

impl Recipe for Settings {
    type Data = MusicData;

    fn train_options(&self) -> &TrainOptions {
        &self.train
    }

    fn data_options(&self) -> Result<MusicOptions> {
        Ok(self.music.clone())
    }

    fn model(&self, facts: &MusicFacts, vb: VarBuilder) -> candle_core::Result<Box<MusicModel>> {
        let (encoding, &Self { embedding, hidden, layers, dropout, .. }) = (&facts.encoding, self);
        let output = match self.music.output {
            OutputName::Independent => Output::Independent { keys: encoding.key_outputs() },
            OutputName::Autoregressive => Output::Autoregressive {
                features: encoding.note_features(),
                units: self.music.note_units,
                classes: encoding.classes(),
            },
        };
        let features = encoding.features();
        let config = Config { features, embedding, cell: self.cell.cell(), hidden, layers, dropout, output };
        Ok(Box::new(MusicModel::new(&config, vb)?))
    }

    fn activations(&self, facts: &MusicFacts) -> u64 {
        // For a step with four notes.
        let recurrent = recurrent_activations(self.cell.cell(), self.layers, self.hidden);
        self.embedding as u64 + recurrent + 4 * (self.music.note_units + facts.encoding.classes()) as u64
    }
}

fn main() -> ExitCode {
    cli::main::<Settings>()
}
