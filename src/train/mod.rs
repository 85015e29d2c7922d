//! Training: one loop for every model, its run folder, and the evaluation of models.
//!
//! - A [`Task`] is a model with its data. It computes the loss of a batch and scores the model on validation data.
//!   [`ImageClassification`], [`SentenceClassification`], [`Tagging`] and [`LanguageModelling`] are the built-in ones.
//! - A [`Trainer`] runs the epochs: it shuffles the examples, steps the optimizer, validates, and writes the run folder.
//! - A [`Run`] is that folder.
//! - [`Progress`] receives the events of a training run to display them.

mod checkpoint;
mod evaluation;
mod images;
mod language;
mod metrics;
mod progress;
mod run;
mod sentences;
mod tagging;
mod task;
mod text_generator;
mod trainer;
mod weights;

pub use evaluation::{Evaluation, Prediction};
pub use images::{ImageClassification, evaluate_images};
pub use language::{
    LanguageModelling, LanguageModellingConfig, Windowing, evaluate_text, line_log_probability,
};
pub use metrics::{Epoch, Metric, Report, Score};
pub use progress::{Lines, Progress, Quiet, say};
pub use run::{Run, write_file};
pub use sentences::{SentenceClassification, Sentences};
pub use tagging::{Tagging, TaggingEvaluation};
pub use task::Task;
pub use text_generator::TextGenerator;
pub use trainer::{INTERRUPTED, Trainer, TrainerOptions};
pub use weights::{load_model, load_pretrained, load_weights, save_weights};
