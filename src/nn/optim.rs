//! Optimizers with candle_nn's interface. [`crate::optim`] has more methods, saved state, schedules and clipping.

use crate::optim::{self, Adam, Clip, Method, Sgd};
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var, bail};
use candle_nn::VarMap;
use std::fmt;

pub use candle_nn::optim::{Optimizer, ParamsAdamW};

/// An optimizer of this crate with `method`, on a list of variables.
fn optimizer(method: impl Into<Method>, vars: &[Var]) -> Result<optim::Optimizer> {
    let map = VarMap::new();
    {
        let Ok(mut named) = map.data().lock() else {
            bail!("optimizer: the lock of the variables is poisoned")
        };
        for (index, var) in vars.iter().enumerate().filter(|(_, var)| var.dtype().is_float()) {
            named.insert(format!("{index:09}"), var.clone());
        }
    }
    optim::Optimizer::new(method, &map)
}

/// Stochastic gradient descent without momentum.
pub struct SGD {
    optimizer: optim::Optimizer,
    vars: Vec<Var>,
    learning_rate: f64,
}

impl Optimizer for SGD {
    /// The learning rate.
    type Config = f64;

    fn new(vars: Vec<Var>, learning_rate: f64) -> Result<Self> {
        let vars: Vec<Var> = vars.into_iter().filter(|var| var.dtype().is_float()).collect();
        Ok(Self { optimizer: optimizer(Sgd::default(), &vars)?, vars, learning_rate })
    }

    fn step(&mut self, grads: &GradStore) -> Result<()> {
        self.optimizer.step(grads, self.learning_rate, Clip::None).map(drop)
    }

    fn learning_rate(&self) -> f64 {
        self.learning_rate
    }

    fn set_learning_rate(&mut self, learning_rate: f64) {
        self.learning_rate = learning_rate;
    }

    fn backward_step(&mut self, loss: &Tensor) -> Result<()> {
        self.optimizer.backward_step(loss, self.learning_rate, Clip::None).map(drop)
    }
}

impl SGD {
    /// Returns the variables.
    pub fn into_inner(self) -> Vec<Var> {
        self.vars
    }

    /// Adds a variable.
    ///
    /// # Panics
    /// If the variable is not contiguous.
    pub fn push(&mut self, var: &Var) {
        self.vars.push(var.clone());
        self.optimizer = optimizer(Sgd::default(), &self.vars).expect("contiguous variables");
    }
}

impl fmt::Debug for SGD {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("SGD").field("vars", &self.vars).field("learning_rate", &self.learning_rate).finish()
    }
}

/// Adam with decoupled weight decay (Loshchilov and Hutter 2019).
///
/// Like candle_nn's, it also decays biases.
pub struct AdamW {
    optimizer: optim::Optimizer,
    params: ParamsAdamW,
}

fn adamw(params: &ParamsAdamW) -> Adam {
    let &ParamsAdamW { beta1, beta2, eps, weight_decay, .. } = params;
    Adam { betas: (beta1, beta2), epsilon: eps, weight_decay, decoupled: true, decay_biases: true }
}

impl Optimizer for AdamW {
    type Config = ParamsAdamW;

    fn new(vars: Vec<Var>, params: ParamsAdamW) -> Result<Self> {
        Ok(Self { optimizer: optimizer(adamw(&params), &vars)?, params })
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
