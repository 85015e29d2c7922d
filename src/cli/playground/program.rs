//! The binaries whose models the page offers, and the questions to these models.

use super::super::flow;
use super::super::recipe::{AnyBinary, Binary, Data, Saved};
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
pub fn program<B: Binary>() -> Program
where
    B::Data: Playable,
{
    Program {
        name: B::NAME,
        about: B::ABOUT,
        section: B::Data::SECTION,
        open: |dir| {
            let (run, config) = Run::open(B::NAME, Some(dir))?;
            let settings = AnyBinary::new::<B>().recorded(&run, &config)?;
            Ok(Box::new(flow::load_trained(Saved { run, config, settings, device: Device::Cpu })?))
        },
        main: || B::Data::main(&AnyBinary::new::<B>(), std::env::args_os().skip(1).collect()),
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
