//! The binaries whose models the page offers, and the questions to these models.

use super::super::recipe::Recipe;
use super::super::{flow, main_on};
use super::answers::{Answers, Playable};
use crate::train::Run;
use anyhow::Result;
use candle_core::Device;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A binary whose models the page offers. [`program`] creates it from the binary's recipe.
#[derive(Clone)]
pub struct Program {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    /// The section of the page that uses its models.
    pub(super) section: &'static str,
    /// Opens a run.
    pub(super) open: fn(&Path) -> Result<Box<dyn Answers>>,
    /// Runs the binary on the process's arguments, which begin with its name.
    pub(super) main: fn() -> ExitCode,
}

/// The binary of a recipe.
pub fn program<R: Recipe + 'static>() -> Program
where
    R::Data: Playable,
{
    Program {
        name: R::NAME,
        about: R::ABOUT,
        section: R::Data::SECTION,
        open: |dir| {
            let (run, config) = Run::open(R::NAME, Some(dir))?;
            Ok(Box::new(flow::load_trained::<R>(run, &config, |_| Ok(Device::Cpu))?))
        },
        main: || main_on::<R>(std::env::args_os().skip(1)),
    }
}

/// A question to a model, and the channel for its answer.
pub(super) struct Job {
    pub(super) program: Program,
    /// The folder of the run.
    pub(super) dir: PathBuf,
    pub(super) question: Vec<u8>,
    pub(super) reply: tokio::sync::oneshot::Sender<Result<Value>>,
}
