//! Optimizers whose state can be saved, learning-rate schedules, gradient clipping.
//!
//! A training loop of one's own, without [`Trainer`](crate::train::Trainer):
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use candle_textbook::nn::{Module, VarMap, linear, seeded_var_builder};
//! use candle_textbook::optim::{Adam, Clip, Curve, Optimizer, PlateauState, Schedule};
//!
//! fn main() -> candle_core::Result<()> {
//!     let vars = VarMap::new();
//!     let layer = linear(3, 2, seeded_var_builder(&vars, 42, DType::F32, &Device::Cpu))?;
//!     let mut optimizer = Optimizer::new(Adam::adamw(), &vars)?;
//!     let schedule = Schedule { warmup_steps: 10, curve: Curve::Cosine };
//!     let xs = Tensor::ones((4, 3), DType::F32, &Device::Cpu)?;
//!     for step in 0..100 {
//!         let loss = layer.forward(&xs)?.sqr()?.mean_all()?;
//!         let learning_rate = schedule.learning_rate(1e-3, step, 100, &PlateauState::default());
//!         let gradient_norm = optimizer.backward_step(&loss, learning_rate, Clip::Norm(1.0))?;
//!         assert!(gradient_norm > 0.0);
//!     }
//!     Ok(())
//! }
//! ```
//!
//! An optimizer updates the variables of its [`VarMap`](crate::nn::VarMap) only. Networks that take turns, such as a generator and
//! its critic, have a `VarMap` and an optimizer each. To resume such a loop, save the variables with
//! [`save_weights`](crate::train::save_weights) and [`Optimizer::state`] with [`candle_core::safetensors::save`].
//!
//! [`SGD`] and [`AdamW`] have candle_nn's interface instead, without schedules, clipping and saved state.

mod cpu;
mod drop_in;
mod exchange;
mod gpu;
mod lbfgs;
mod ledger;
mod line_search;
mod method;
mod newton_cg;
mod objective;
mod optimizer;
mod parameter;
mod schedule;
mod solver;
mod step;
mod tensor_ops;
#[cfg(test)]
mod tests;

pub use candle_nn::ParamsAdamW;
pub use drop_in::{AdamW, SGD};
pub(crate) use exchange::Exchange;
pub(crate) use ledger::{Ledger, Totals};
pub use method::{Adadelta, Adagrad, Adam, Lbfgs, Method, NewtonCg, RmsProp, Sgd};
pub use optimizer::Optimizer;
pub use schedule::{Curve, PlateauState, Schedule};
pub use step::{Clip, Step};
