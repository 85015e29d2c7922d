//! Optimizers whose state can be saved, learning-rate schedules, gradient clipping.
//!
//! ```
//! use candle_core::{DType, Device};
//! use candle_textbook::nn::{Module, VarBuilder, VarMap, linear};
//! use candle_textbook::optim::{Adam, Clip, Optimizer};
//!
//! fn main() -> candle_core::Result<()> {
//!     let vars = VarMap::new();
//!     let layer = linear(3, 2, VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
//!     let mut optimizer = Optimizer::new(Adam::adamw(), &vars)?;
//!     let loss = layer.forward(&candle_core::Tensor::ones((4, 3), DType::F32, &Device::Cpu)?)?.sqr()?.mean_all()?;
//!     let gradient_norm = optimizer.backward_step(&loss, 1e-3, Clip::Norm(1.0))?;
//!     assert!(gradient_norm > 0.0);
//!     Ok(())
//! }
//! ```
//!
//! [`SGD`] and [`AdamW`] have candle_nn's interface instead, without these.

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
