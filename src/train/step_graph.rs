//! Training steps as CUDA graphs.

use crate::kernels::cuda::graph::Graph;
use crate::ops::{self, gpu::Gpu};
use anyhow::Result;
use candle_core::Tensor;

/// Number of first steps that run launch by launch: they compile the kernels and fill the memory pool.
const WARM_UP: usize = 2;

/// Runs training steps, on a GPU as graphs if possible.
pub(super) enum StepGraph {
    /// Launch by launch.
    Eager,
    /// Launch by launch, for this number of steps.
    WarmUp(usize),
    Graph(Graph),
}

impl StepGraph {
    /// Prepares the steps of a training; `capturable` tells whether they may be graphs.
    ///
    /// The environment variable `CANDLE_TEXTBOOK_CUDA_GRAPHS` set to `off` forbids it.
    pub fn new(capturable: bool) -> Self {
        let forbidden = std::env::var("CANDLE_TEXTBOOK_CUDA_GRAPHS").is_ok_and(|value| value == "off");
        let has_kernels = cfg!(any(feature = "cuda", feature = "cuda-emulator"));
        if has_kernels && capturable && !forbidden { Self::WarmUp(WARM_UP) } else { Self::Eager }
    }

    /// Runs a step, which returns its loss.
    pub fn run(&mut self, step: impl FnOnce() -> Result<Tensor>) -> Result<()> {
        match self {
            Self::Graph(graph) => graph.run(step).map(drop),
            Self::Eager => step().map(drop),
            Self::WarmUp(left) => {
                let loss = step()?;
                *left -= 1;
                if *left == 0 {
                    *self = match Gpu::of(&loss) {
                        Some(gpu) if ops::is_native(&loss) => Self::Graph(Graph::new(&gpu)),
                        _ => Self::Eager,
                    };
                }
                Ok(())
            }
        }
    }
}
