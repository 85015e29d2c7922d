//! The options of the optimizer.

use super::options::{OptimizerName, ScheduleName, TrainOptions, WORD_VECTORS};
use super::{UsageError, show_notes};
use crate::optim::{Adadelta, Adagrad, Adam, Lbfgs, Method, NewtonCg, Optimizer, RmsProp, Sgd};
use anyhow::ensure;
use candle_nn::VarMap;
use clap::ValueEnum;

impl TrainOptions {
    /// The chosen optimizer over the variables `vars`.
    pub(super) fn optimizer(&self, vars: &VarMap) -> candle_core::Result<Optimizer> {
        let mut optimizer = Optimizer::new(self.method(), vars)?;
        let has_words = vars.data().lock().is_ok_and(|vars| vars.contains_key(WORD_VECTORS));
        if has_words && self.is_sparse() {
            optimizer.set_sparse(WORD_VECTORS)?;
        }
        Ok(optimizer)
    }

    fn method(&self) -> Method {
        let &Self { momentum, nesterov, l1, .. } = self;
        let decay_biases = !self.keep_biases;
        let weight_decay = self.weight_decay.unwrap_or(0.0);
        match self.optimizer {
            OptimizerName::Sgd => Sgd { momentum, nesterov, weight_decay, l1, decay_biases }.into(),
            OptimizerName::Adam | OptimizerName::LazyAdam => {
                Adam { weight_decay, decay_biases, ..Adam::default() }.into()
            }
            OptimizerName::AdamW => {
                let adamw = Adam::adamw();
                let weight_decay = self.weight_decay.unwrap_or(adamw.weight_decay);
                Adam { weight_decay, decay_biases, ..adamw }.into()
            }
            OptimizerName::RmsProp => {
                RmsProp { momentum, weight_decay, decay_biases, ..RmsProp::default() }.into()
            }
            OptimizerName::Adagrad => Adagrad { weight_decay, decay_biases, ..Adagrad::default() }.into(),
            OptimizerName::Adadelta => {
                Adadelta { rho: 0.95, weight_decay, decay_biases, ..Adadelta::default() }.into()
            }
            OptimizerName::Lbfgs => {
                let history_size = self.history_size;
                Lbfgs { history_size, weight_decay, decay_biases, ..Lbfgs::default() }.into()
            }
            OptimizerName::NewtonCg => NewtonCg { weight_decay, decay_biases, ..NewtonCg::default() }.into(),
        }
    }

    /// Number of values that the optimizer keeps per parameter.
    pub(super) fn moments(&self) -> u64 {
        let momentum = u64::from(self.momentum > 0.0);
        match self.optimizer {
            OptimizerName::Sgd => momentum,
            OptimizerName::Adagrad => 1,
            OptimizerName::RmsProp => 1 + momentum,
            OptimizerName::Adam
            | OptimizerName::AdamW
            | OptimizerName::LazyAdam
            | OptimizerName::Adadelta => 2,
            // Two vectors of 64 bits per past step.
            OptimizerName::Lbfgs => 4 * self.history_size.min(self.epochs) as u64,
            OptimizerName::NewtonCg => 0,
        }
    }

    /// Whether the optimizer updates only the word vectors that have a gradient.
    ///
    /// Without momentum and decay the other vectors would keep their values anyway.
    fn is_sparse(&self) -> bool {
        let plain =
            self.momentum == 0.0 && self.l1 == 0.0 && self.weight_decay.is_none_or(|decay| decay == 0.0);
        match self.optimizer {
            OptimizerName::Sgd | OptimizerName::Adagrad | OptimizerName::Adadelta => plain,
            OptimizerName::LazyAdam => true,
            OptimizerName::Adam
            | OptimizerName::AdamW
            | OptimizerName::RmsProp
            | OptimizerName::Lbfgs
            | OptimizerName::NewtonCg => false,
        }
    }

    /// Checks that no given option contradicts steps on all training examples with a line search.
    pub(super) fn check_full_batch(&self) -> anyhow::Result<()> {
        let name = value_name(self.optimizer);
        ensure!(
            !self.given.contains("batch_size"),
            UsageError(format!(
                "--batch-size: has no meaning with --optimizer {name}, whose steps take all training examples: leave it out"
            ))
        );
        let is_constant = self.schedule == ScheduleName::Constant;
        for (option, is_given) in [
            ("schedule", self.given.contains("schedule") && !is_constant),
            ("warmup", self.given.contains("warmup")),
            ("clip-norm", self.given.contains("clip_norm")),
            ("clip-value", self.given.contains("clip_value")),
        ] {
            ensure!(
                !is_given,
                UsageError(format!(
                    "--{option}: has no meaning with --optimizer {name}, which searches for the length of its steps: leave \
                     it out"
                ))
            );
        }
        Ok(())
    }

    /// Adapts settings for small steps to steps on all training examples, if the optimizer takes those.
    ///
    /// A note lists the settings of a preset that are replaced.
    pub fn adapt_to_optimizer(&mut self, has_preset: bool) {
        if self.optimizer.is_full_batch() {
            if has_preset {
                let (name, size, rate) = (value_name(self.optimizer), self.batch_size, self.learning_rate);
                show_notes(&[format!(
                    "--optimizer {name} replaces the preset's batch size, {size}, and learning rate, {rate}: its steps \
                     take all training examples and search for their length"
                )]);
            }
            (self.learning_rate, self.schedule, self.warmup) = (1.0, ScheduleName::Constant, 0);
            (self.clip_norm, self.clip_value) = (None, None);
        }
    }

    /// Number of examples per step, of `examples` in all.
    pub(super) fn step_size(&self, batch_size: usize, examples: usize) -> usize {
        if self.optimizer.is_full_batch() { examples } else { batch_size }
    }
}

/// The name of `value` on the command line.
fn value_name(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_string())
}

#[cfg(test)]
mod tests {
    use super::super::options::Given;
    use super::*;
    use crate::optim::Clip;

    #[test]
    fn options_that_contradict_steps_on_all_examples_are_refused() {
        for optimizer in [OptimizerName::Lbfgs, OptimizerName::NewtonCg] {
            let options = |option: &str| {
                let given = Given::of(option);
                let mut options =
                    TrainOptions { optimizer, given, clip_norm: Some(5.), ..TrainOptions::default() };
                options.adapt_to_optimizer(false);
                options
            };
            let adapted = options("learning_rate");
            assert_eq!((adapted.learning_rate, adapted.options(1).clip), (1., Clip::None));
            assert_eq!(
                (adapted.step_size(64, 1000), TrainOptions::default().step_size(64, 1000)),
                (1000, 64)
            );
            assert!(adapted.method().is_full_batch());
            adapted.check().unwrap();
            options("schedule").check().unwrap();
            for option in ["batch_size", "warmup", "clip_norm", "clip_value", "momentum", "nesterov", "l1"] {
                let error = options(option).check().unwrap_err().to_string();
                assert!(error.starts_with(&format!("--{}: has no ", option.replace('_', "-"))), "{error}");
            }
            let cosine = TrainOptions { schedule: ScheduleName::Cosine, ..options("schedule") };
            let error = cosine.check().unwrap_err().to_string();
            assert!(error.starts_with("--schedule: has no meaning with --optimizer "), "{error}");
        }
        let adam = TrainOptions { given: Given::of("history_size"), ..TrainOptions::default() };
        assert!(adam.check().unwrap_err().to_string().contains("--optimizer lbfgs"));
    }
}
