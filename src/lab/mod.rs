//! The experiments of the books, each rerun by one function.
//!
//! ```
//! use candle_textbook::lab::{EXPERIMENTS, Lab, Settings};
//!
//! fn main() -> anyhow::Result<()> {
//!     let neuron = EXPERIMENTS.iter().find(|experiment| experiment.name == "neuron").unwrap();
//!     # let dir = tempfile::tempdir()?;
//!     # std::env::set_current_dir(&dir)?;
//!     // `None` stands for the next folder under `runs/lab/`.
//!     let (findings, dir) = Lab::run(neuron, &Settings { quick: true, ..Settings::default() }, None)?;
//!     assert!(findings.claim.holds, "{}", findings.claim.text);
//!     println!("the figures are in {}", dir.display());
//!     Ok(())
//! }
//! ```
//!
//! [`EXPERIMENTS`] lists them. An experiment trains this crate's models with this crate's training loop and returns its
//! [`Findings`]: a few observations, tables, figures, and the claim of the book with the values measured here.
//! [`Lab::run`] writes them into a run folder, and [`page`] combines several into one HTML page.

mod augmentation;
mod backprop;
mod batch_size;
mod data;
mod depth;
mod ensemble;
mod experiment;
mod findings;
mod hyperparameters;
mod initialization;
mod invariance;
mod learning_rate;
mod memory;
mod neuron;
mod optimizers;
mod overfitting;
mod page;
mod pooling;
mod regularization;
mod study;
mod universal;
mod vanishing_gradient;

pub use experiment::{Experiment, Lab, Settings, remove_unfinished};
pub use findings::{Claim, Figure, Findings, Table};
pub use page::page;

/// All experiments, in the order of the books.
pub const EXPERIMENTS: &[Experiment] = &[
    data::EXPERIMENT,
    backprop::EXPERIMENT,
    neuron::EXPERIMENT,
    overfitting::EXPERIMENT,
    regularization::EXPERIMENT,
    initialization::EXPERIMENT,
    learning_rate::EXPERIMENT,
    batch_size::EXPERIMENT,
    hyperparameters::EXPERIMENT,
    optimizers::EXPERIMENT,
    universal::EXPERIMENT,
    vanishing_gradient::EXPERIMENT,
    pooling::EXPERIMENT,
    augmentation::EXPERIMENT,
    ensemble::EXPERIMENT,
    invariance::EXPERIMENT,
    depth::EXPERIMENT,
    memory::EXPERIMENT,
];

/// The quick findings of the experiment `name`, for tests.
#[cfg(test)]
fn quick(name: &str) -> Findings {
    let experiment = EXPERIMENTS.iter().find(|experiment| experiment.name == name).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { quick: true, ..Settings::default() };
    let (findings, _) = Lab::run(experiment, &settings, Some(dir.path())).unwrap();
    assert!(findings.claim.holds, "{name}: {}", findings.claim.text);
    findings
}
