//! Optimizers whose state can be saved, learning-rate schedules, gradient clipping.
//!
//! ```
//! use candle_core::{DType, Device};
//! use candle_nn::{Module, VarBuilder, VarMap};
//! use candle_textbook::optim::{Adam, Clip, Optimizer};
//!
//! # fn main() -> candle_core::Result<()> {
//! let vars = VarMap::new();
//! let layer = candle_nn::linear(3, 2, VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
//! let mut optimizer = Optimizer::new(Adam::adamw(), &vars)?;
//! let loss = layer.forward(&candle_core::Tensor::ones((4, 3), DType::F32, &Device::Cpu)?)?.sqr()?.mean_all()?;
//! let gradient_norm = optimizer.backward_step(&loss, 1e-3, Clip::Norm(1.0))?;
//! assert!(gradient_norm > 0.0);
//! # Ok(())
//! # }
//! ```

mod kernel;
mod method;
mod schedule;
mod tensor_ops;
#[cfg(test)]
mod tests;

pub use method::{Adadelta, Adagrad, Adam, Method, RmsProp, Sgd};
pub use schedule::{Curve, PlateauState, Schedule};

use crate::ops::{self, RowGradients};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, TensorId, Var, bail};
use candle_nn::VarMap;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};

/// What keeps one large gradient from throwing the parameters far off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clip {
    #[default]
    None,
    /// Scales all gradients together so that their Euclidean norm is at most this (Pascanu et al. 2013, algorithm 1;
    /// `torch.nn.utils.clip_grad_norm_`).
    Norm(f64),
    /// Limits each element to plus or minus this (`torch.nn.utils.clip_grad_value_`).
    Value(f64),
}

/// Updates the variables of a [`VarMap`] in place.
///
/// On the CPU an update in f32 or f64 makes no temporary tensors and gives the same bits for any number of threads.
pub struct Optimizer {
    method: Method,
    parameters: Vec<Parameter>,
}

struct Parameter {
    name: String,
    var: Var,
    /// (moments, shape of the parameter)
    moments: Option<Var>,
    steps: u32,
    largest_row_norm: Option<f64>,
    lazy: bool,
}

/// The gradient of a parameter: `values` of its shape or, with `rows`, of these rows alone, in rising order; the others' is
/// zero.
struct Gradient {
    values: Tensor,
    rows: Option<Vec<u32>>,
}

impl Gradient {
    /// In the shape of the parameter.
    fn whole(&self, parameter: &Tensor) -> Result<Tensor> {
        match &self.rows {
            None => Ok(self.values.clone()),
            Some(rows) => plus_rows(&parameter.zeros_like()?, rows, &self.values),
        }
    }
}

/// `whole` with `values` added to its `rows`.
fn plus_rows(whole: &Tensor, rows: &[u32], values: &Tensor) -> Result<Tensor> {
    whole.index_add(&Tensor::new(rows, whole.device())?, values, 0)
}

/// The numbers of one update of one parameter.
struct Update {
    learning_rate: f64,
    /// Updates of this parameter, this one included.
    steps: u32,
    /// The gradient is multiplied by `scale`, then limited to plus or minus `limit`.
    scale: f64,
    limit: f64,
    l2: f64,
    l1: f64,
    /// What the parameter is multiplied by before the update.
    shrink: f64,
    /// Only rows whose gradient is not zero throughout change.
    lazy: bool,
}

impl Optimizer {
    /// An optimizer of the variables that `vars` holds now, taken in the order of their names, without history.
    ///
    /// # Errors
    /// A setting out of its range, a variable that is no floating-point tensor.
    pub fn new(method: impl Into<Method>, vars: &VarMap) -> Result<Self> {
        let method = method.into();
        method.check()?;
        let Ok(vars) = vars.data().lock() else { bail!("optimizer: the variables' lock is poisoned") };
        let mut parameters = vars
            .iter()
            .map(|(name, var)| Parameter::new(name, var, method.moments().len()))
            .collect::<Result<Vec<_>>>()?;
        parameters.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { method, parameters })
    }

    /// Keeps the Euclidean norm of each row of the matrix `name` from growing beyond `largest`: after each update, longer
    /// rows are scaled down to it (Hinton et al. 2012, arXiv:1207.0580, section 2).
    ///
    /// # Errors
    /// When there is no such matrix.
    pub fn set_max_row_norm(&mut self, name: &str, largest: f64) -> Result<()> {
        self.matrix(name)?.largest_row_norm = Some(largest);
        Ok(())
    }

    /// Leaves those rows of the matrix `name` as they are, and their state too, whose gradient is zero throughout: of a
    /// table of words' vectors the words that are not in the batch. A step's work then goes by the batch, not by the table,
    /// if it is made with [`backward_step`](Self::backward_step).
    ///
    /// Without momentum and decay, stochastic gradient descent and Adagrad come to the same either way; Adam and Adadelta
    /// become their lazy forms (PyTorch's `SparseAdam`).
    ///
    /// # Errors
    /// When there is no such matrix.
    pub fn set_sparse(&mut self, name: &str) -> Result<()> {
        self.matrix(name)?.lazy = true;
        Ok(())
    }

    fn matrix(&mut self, name: &str) -> Result<&mut Parameter> {
        match self.parameters.iter_mut().find(|parameter| parameter.name == name) {
            Some(parameter) if parameter.var.rank() == 2 => Ok(parameter),
            _ => bail!("optimizer: there is no matrix {name}"),
        }
    }

    /// Updates every parameter that `loss` depends on: [`step`](Self::step) with its gradients.
    ///
    /// # Errors
    /// Those of the gradients and of [`step`](Self::step).
    pub fn backward_step(&mut self, loss: &Tensor, learning_rate: f64, clip: Clip) -> Result<f64> {
        let lazy = self.parameters.iter().filter(|parameter| parameter.lazy);
        let (grads, rows) = ops::backward(loss, lazy.map(|parameter| parameter.var.id()).collect())?;
        self.update(&grads, rows, learning_rate, clip)
    }

    /// Updates every parameter that has a gradient and returns the Euclidean norm of all these gradients together,
    /// before clipping.
    ///
    /// As in PyTorch, a parameter without a gradient is left as it is, and so is its state.
    ///
    /// # Errors
    /// A gradient whose shape or type is not its parameter's; no parameter has then changed.
    pub fn step(&mut self, grads: &GradStore, learning_rate: f64, clip: Clip) -> Result<f64> {
        self.update(grads, HashMap::new(), learning_rate, clip)
    }

    fn update(
        &mut self,
        grads: &GradStore,
        mut rows: HashMap<TensorId, RowGradients>,
        learning_rate: f64,
        clip: Clip,
    ) -> Result<f64> {
        let gradient = |parameter: &Parameter| parameter.gradient(grads, rows.remove(&parameter.var.id()));
        let gradients = self.parameters.iter().map(gradient).collect::<Result<Vec<_>>>()?;
        let norm = norm(gradients.iter().flatten().map(|gradient| &gradient.values))?;
        let (scale, limit) = match clip {
            Clip::None => (1., f64::INFINITY),
            // The 1e-6 is PyTorch's.
            Clip::Norm(max) => (if norm + 1e-6 > max { max / (norm + 1e-6) } else { 1. }, f64::INFINITY),
            Clip::Value(max) => (1., max),
        };
        for (parameter, gradient) in self.parameters.iter_mut().zip(gradients) {
            let Some(gradient) = gradient else { continue };
            parameter.steps += 1;
            let decay = self.method.decay(parameter.var.rank());
            let update = Update {
                learning_rate,
                steps: parameter.steps,
                scale,
                limit,
                l2: decay.l2,
                l1: decay.l1,
                shrink: 1. - learning_rate * decay.decoupled,
                lazy: parameter.lazy,
            };
            let apply = if has_kernel(&gradient.values) { kernel::update } else { tensor_ops::update };
            apply(&self.method, &update, &parameter.var, &gradient, parameter.moments.as_ref())?;
            if let Some(largest) = parameter.largest_row_norm {
                let rows = parameter.var.as_detached_tensor();
                let scale = (rows.sqr()?.sum_keepdim(1)?.sqrt()?.maximum(largest)?.recip()? * largest)?;
                parameter.var.set(&rows.broadcast_mul(&scale)?)?;
            }
        }
        Ok(norm)
    }

    /// A copy of everything but the parameters that the next step depends on, named by parameter and PyTorch's name
    /// of the quantity (`conv1.weight.exp_avg`), each in the parameter's shape and type; for Adam also the number of
    /// updates of each parameter (`conv1.weight.step`, an i64 scalar).
    ///
    /// # Errors
    /// Those of the device.
    pub fn state(&self) -> Result<HashMap<String, Tensor>> {
        let mut state = HashMap::new();
        for parameter in &self.parameters {
            if let Some(moments) = &parameter.moments {
                let moments = moments.as_detached_tensor();
                for (index, moment) in self.method.moments().iter().enumerate() {
                    state.insert(format!("{}.{moment}", parameter.name), moments.get(index)?.copy()?);
                }
            }
            if self.method.counts_steps() {
                let steps = Tensor::new(i64::from(parameter.steps), &Device::Cpu)?;
                state.insert(format!("{}.step", parameter.name), steps);
            }
        }
        Ok(state)
    }

    /// Goes on from a [`state`](Self::state) of an optimizer of the same method and parameters.
    ///
    /// # Errors
    /// A tensor that is missing, unknown, or of another shape or type; nothing has then changed.
    pub fn load_state(&mut self, state: &HashMap<String, Tensor>) -> Result<()> {
        let mut known = HashSet::new();
        let mut loaded = Vec::new();
        for parameter in &self.parameters {
            let mut find = |quantity: &str, shape: &[usize], dtype: DType| {
                let name = format!("{}.{quantity}", parameter.name);
                match state.get(&name) {
                    Some(tensor) if tensor.dims() == shape && tensor.dtype() == dtype => {
                        known.insert(name);
                        Ok(tensor)
                    }
                    Some(tensor) => bail!(
                        "optimizer state: {name} is {:?} {:?}, expected {shape:?} {dtype:?}",
                        tensor.dims(),
                        tensor.dtype()
                    ),
                    None => bail!("optimizer state: {name} is missing, expected {shape:?} {dtype:?}"),
                }
            };
            let (shape, dtype) = (parameter.var.dims(), parameter.var.dtype());
            let moments = self
                .method
                .moments()
                .iter()
                .map(|moment| find(moment, shape, dtype)?.to_device(parameter.var.device()))
                .collect::<Result<Vec<_>>>()?;
            let steps = match self.method.counts_steps() {
                false => 0,
                true => {
                    let steps = find("step", &[], DType::I64)?.to_scalar::<i64>()?;
                    match u32::try_from(steps) {
                        Ok(steps) => steps,
                        Err(_) => bail!(
                            "optimizer state: {}.step is {steps}, expected a number of updates",
                            parameter.name
                        ),
                    }
                }
            };
            loaded.push((moments, steps));
        }
        if let Some(name) = state.keys().filter(|name| !known.contains(*name)).min() {
            bail!(
                "optimizer state: {name} {:?} is unknown, expected only the state of this optimizer's parameters",
                state[name].dims()
            )
        }
        for (parameter, (moments, steps)) in self.parameters.iter_mut().zip(loaded) {
            if let Some(var) = &parameter.moments {
                var.set(&Tensor::stack(&moments, 0)?)?;
            }
            parameter.steps = steps;
        }
        Ok(())
    }
}

impl Parameter {
    fn new(name: &str, var: &Var, moments: usize) -> Result<Self> {
        if !var.dtype().is_float() || !var.is_contiguous() {
            bail!("optimizer: {name} is {:?}, expected a contiguous floating-point variable", var.dtype())
        }
        let shape = [&[moments], var.dims()].concat();
        let moments = match moments {
            0 => None,
            _ => Some(Var::zeros(shape, var.dtype(), var.device())?),
        };
        Ok(Self {
            name: name.to_string(),
            var: var.clone(),
            moments,
            steps: 0,
            largest_row_norm: None,
            lazy: false,
        })
    }

    /// That of `grads`, and of `rows` what was put by there.
    fn gradient(&self, grads: &GradStore, rows: Option<RowGradients>) -> Result<Option<Gradient>> {
        let gradient = match (grads.get(&self.var), rows) {
            (None, None) => return Ok(None),
            (Some(values), None) => Gradient { values: values.clone(), rows: None },
            (None, Some(RowGradients { rows, values })) => Gradient { values, rows: Some(rows) },
            (Some(values), Some(RowGradients { rows, values: more })) => {
                Gradient { values: plus_rows(values, &rows, &more)?, rows: None }
            }
        };
        let Gradient { values, rows } = gradient;
        if (rows.is_none() && values.dims() != self.var.dims()) || values.dtype() != self.var.dtype() {
            bail!(
                "gradient of {} is {:?} {:?}, expected {:?} {:?}",
                self.name,
                values.dims(),
                values.dtype(),
                self.var.dims(),
                self.var.dtype()
            )
        }
        Ok(Some(Gradient { values: values.detach().contiguous()?, rows }))
    }
}

fn has_kernel(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && matches!(tensor.dtype(), DType::F32 | DType::F64)
}

/// Euclidean norm of all gradients together.
fn norm<'a>(gradients: impl Iterator<Item = &'a Tensor>) -> Result<f64> {
    let mut sum = 0.;
    // One transfer from the device for all of them.
    let mut on_device = Vec::new();
    for gradient in gradients {
        if has_kernel(gradient) {
            sum += kernel::sum_squares(gradient)?;
        } else {
            on_device.push(tensor_ops::sum_squares(gradient)?);
        }
    }
    if !on_device.is_empty() {
        sum += Tensor::stack(&on_device, 0)?.to_vec1::<f32>()?.into_iter().map(f64::from).sum::<f64>();
    }
    Ok(sum.sqrt())
}
