//! The interface between the training loop and a task.

use super::metrics::{Metric, Score};
use crate::nn::Mode;
use anyhow::{Result, ensure};
use candle_core::Tensor;
use std::collections::HashMap;

/// A model together with its training and validation data.
///
/// The [`Trainer`](super::Trainer) numbers the training examples from 0 and asks for the loss of one batch after another.
/// The task owns everything else: how examples become tensors, which loss the model minimises, and how it is validated.
///
/// Its errors are [`anyhow::Error`], as everywhere in [`train`](super). `?` converts candle's errors, and the errors of
/// other libraries.
pub trait Task {
    /// Returns the number of training examples.
    fn examples(&self) -> usize;

    /// Prepares for `batches`, the remaining batches of the epoch.
    ///
    /// Called at the start of an epoch, and on resuming in the middle of one. A task may start to read the examples in
    /// the background. On several processes, the batches are the shares of this one. The default does nothing.
    fn prefetch(&self, _batches: &[&[u32]]) {}

    /// Returns the mean loss of the training examples `batch`, a scalar tensor with its graph.
    ///
    /// `mode` is always [`Mode::Train`]; it holds the seed, epoch and step that random draws are derived from. If it has a
    /// share, `batch` holds the examples of the share only.
    ///
    /// L-BFGS and Newton-CG take all examples in one batch, and call this several times per step, with other values of
    /// the parameters. The loss must then depend on the parameters only: no dropout, no augmentation.
    ///
    /// # Errors
    /// Fails if the examples cannot be read or do not fit the model.
    fn loss(&self, batch: &[u32], mode: Mode) -> Result<Tensor>;

    /// Returns the mean loss of the examples of `batch` that the share of `mode` selects.
    ///
    /// See [`Share`](crate::nn::Share).
    ///
    /// The trainer calls this on several processes, and [`loss`](Self::loss) otherwise. The default calls
    /// [`loss`](Self::loss) with these examples. A task whose random draws depend on the whole batch, such as dropout
    /// in packed sequences, makes them here as for the whole batch.
    ///
    /// # Errors
    /// Fails if [`loss`](Self::loss) would.
    fn loss_of_share(&self, batch: &[u32], mode: Mode) -> Result<Tensor> {
        self.loss(&batch[mode.examples(batch.len())], mode)
    }

    /// Returns the number of terms that [`loss`](Self::loss) averages, such as the words of all sentences.
    ///
    /// The losses of several processes are weighted with it. The default is the number of examples.
    fn weight(&self, batch: &[u32]) -> f64 {
        batch.len() as f64
    }

    /// Scores the model on the validation data.
    ///
    /// The trainer calls this in [`no_grad`](crate::ops::no_grad): operations of this crate are not recorded for a backward
    /// pass, so all validation examples may be one batch.
    ///
    /// # Errors
    /// Fails if the examples cannot be read or do not fit the model.
    fn validate(&self) -> Result<Score>;

    /// Returns the metric that [`validate`](Self::validate) reports and that selects the best epoch.
    fn metric(&self) -> Metric;

    /// Returns whether an epoch visits the examples in order. The default is `false`: every epoch shuffles them.
    fn in_order(&self) -> bool {
        false
    }

    /// Returns whether a training step may run as a CUDA graph. The default is `false`.
    ///
    /// It may if nothing but other operations of this crate reads what [`loss`](Self::loss) computes with this crate's
    /// operations. The trainer checks that for the graph of the loss, and runs other steps launch by launch. It cannot
    /// check anything else that a task computes, such as a state for the next step.
    fn is_capturable(&self) -> bool {
        false
    }

    /// Returns the tensors that the next step needs, such as a hidden state.
    ///
    /// Parameters and optimizer are not among them.
    ///
    /// Checkpoints store them. The default has none.
    ///
    /// # Errors
    /// Fails if the tensors cannot be copied.
    fn state(&self) -> Result<HashMap<String, Tensor>> {
        Ok(HashMap::new())
    }

    /// Restores what [`state`](Self::state) returned when the checkpoint was saved.
    ///
    /// # Errors
    /// Fails if `state` does not belong to this task.
    fn load_state(&self, state: HashMap<String, Tensor>) -> Result<()> {
        ensure!(state.is_empty(), "found task state in the checkpoint, expected none");
        Ok(())
    }

    /// Returns a text to show after an epoch, such as a sample from a language model.
    ///
    /// # Errors
    /// Fails if the model fails.
    fn sample(&self) -> Result<Option<String>> {
        Ok(None)
    }
}

/// Fails if `loss`, the loss of the step `number`, can't be minimised.
pub(super) fn check_loss(loss: Tensor, number: u64) -> Result<Tensor> {
    let shape = loss.dims();
    ensure!(
        shape.is_empty(),
        "the loss of step {number} has the shape {shape:?}, expected a scalar, such as a mean"
    );
    ensure!(
        loss.track_op(),
        "the loss of step {number} depends on no parameter, so there is nothing to train"
    );
    Ok(loss)
}
