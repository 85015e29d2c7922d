//! Optimizers with candle_nn's interface.

use super::method::{Adam, Sgd};
use super::optimizer::Optimizer;
use super::step::Clip;
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};
use candle_nn::{Optimizer as CandleOptimizer, ParamsAdamW};
use std::fmt;

/// Stochastic gradient descent without momentum, with candle_nn's interface.
///
/// [`Sgd`] is the method with momentum.
pub struct SGD {
    optimizer: Optimizer,
    /// The optimizer has all but those that were pushed since the last step.
    vars: Vec<Var>,
    known: usize,
    learning_rate: f64,
}

impl CandleOptimizer for SGD {
    /// The learning rate.
    type Config = f64;

    fn new(vars: Vec<Var>, learning_rate: f64) -> Result<Self> {
        let vars: Vec<Var> = vars.into_iter().filter(|var| var.dtype().is_float()).collect();
        let mut sgd = Self { optimizer: Optimizer::empty(Sgd::default())?, vars, known: 0, learning_rate };
        sgd.add_pushed()?;
        Ok(sgd)
    }

    fn step(&mut self, grads: &GradStore) -> Result<()> {
        self.add_pushed()?;
        self.optimizer.step(grads, self.learning_rate, Clip::None).map(drop)
    }

    fn learning_rate(&self) -> f64 {
        self.learning_rate
    }

    fn set_learning_rate(&mut self, learning_rate: f64) {
        self.learning_rate = learning_rate;
    }

    fn backward_step(&mut self, loss: &Tensor) -> Result<()> {
        self.add_pushed()?;
        self.optimizer.backward_step(loss, self.learning_rate, Clip::None).map(drop)
    }
}

impl SGD {
    /// Returns the variables.
    pub fn into_inner(self) -> Vec<Var> {
        self.vars
    }

    /// Adds a variable.
    pub fn push(&mut self, var: &Var) {
        self.vars.push(var.clone());
    }

    fn add_pushed(&mut self) -> Result<()> {
        for var in self.vars[self.known..].iter().filter(|var| var.dtype().is_float()) {
            self.optimizer.add(var)?;
        }
        self.known = self.vars.len();
        Ok(())
    }
}

impl fmt::Debug for SGD {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("SGD").field("vars", &self.vars).field("learning_rate", &self.learning_rate).finish()
    }
}

/// Adam with decoupled weight decay (Loshchilov and Hutter 2019), with candle_nn's interface.
///
/// Like candle_nn's, it also decays biases. [`Adam`] is the method with more settings.
pub struct AdamW {
    optimizer: Optimizer,
    params: ParamsAdamW,
}

fn adamw(params: &ParamsAdamW) -> Adam {
    let &ParamsAdamW { beta1, beta2, eps, weight_decay, .. } = params;
    Adam { betas: (beta1, beta2), epsilon: eps, weight_decay, decoupled: true, decay_biases: true }
}

impl CandleOptimizer for AdamW {
    type Config = ParamsAdamW;

    fn new(vars: Vec<Var>, params: ParamsAdamW) -> Result<Self> {
        let mut optimizer = Optimizer::empty(adamw(&params))?;
        vars.iter().filter(|var| var.dtype().is_float()).try_for_each(|var| optimizer.add(var))?;
        Ok(Self { optimizer, params })
    }

    fn step(&mut self, grads: &GradStore) -> Result<()> {
        self.optimizer.step(grads, self.params.lr, Clip::None).map(drop)
    }

    fn learning_rate(&self) -> f64 {
        self.params.lr
    }

    fn set_learning_rate(&mut self, learning_rate: f64) {
        self.params.lr = learning_rate;
    }

    fn backward_step(&mut self, loss: &Tensor) -> Result<()> {
        self.optimizer.backward_step(loss, self.params.lr, Clip::None).map(drop)
    }
}

impl AdamW {
    /// Creates an optimizer with this learning rate and the default parameters.
    ///
    /// # Errors
    /// Fails if a variable is not contiguous.
    pub fn new_lr(vars: Vec<Var>, learning_rate: f64) -> Result<Self> {
        Self::new(vars, ParamsAdamW { lr: learning_rate, ..ParamsAdamW::default() })
    }

    /// The parameters of the method.
    pub fn params(&self) -> &ParamsAdamW {
        &self.params
    }

    /// Changes the parameters of the method; the moments stay.
    pub fn set_params(&mut self, params: ParamsAdamW) {
        self.optimizer.set_adam(adamw(&params));
        self.params = params;
    }
}

impl fmt::Debug for AdamW {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("AdamW").field("params", &self.params).finish_non_exhaustive()
    }
}
