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
mod schedule;
mod solver;
mod tensor_ops;
#[cfg(test)]
mod tests;

pub use candle_nn::ParamsAdamW;
pub use drop_in::{AdamW, SGD};
pub(crate) use exchange::Exchange;
pub(crate) use ledger::{Ledger, Totals};
pub use method::{Adadelta, Adagrad, Adam, Lbfgs, Method, NewtonCg, RmsProp, Sgd};
pub use schedule::{Curve, PlateauState, Schedule};

use self::objective::Objective;
use self::solver::Solver;
use crate::kernels::cpu::optimizer::{GradientTerms, Rule};
use crate::kernels::cuda::Buffer;
use crate::ops::gpu::Gpu;
use crate::ops::{self, RowGradients, RowNumbers};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, TensorId, Var, bail};
use candle_nn::VarMap;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};

/// Gradient clipping, which limits the effect of a single large gradient.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clip {
    /// No clipping.
    #[default]
    None,
    /// Scales all gradients by one factor so that their Euclidean norm is at most this value.
    ///
    /// Pascanu et al. 2013, algorithm 1; `torch.nn.utils.clip_grad_norm_`.
    Norm(f64),
    /// Limits each element to plus or minus this value (`torch.nn.utils.clip_grad_value_`).
    Value(f64),
}

/// Updates the variables of a [`VarMap`] in place.
///
/// On the CPU, updates in f32 and f64 allocate no temporary tensors and give the same bits for any number of threads.
pub struct Optimizer {
    method: Method,
    parameters: Vec<Parameter>,
    /// The state of a method that evaluates the loss several times per step.
    solver: Option<Solver>,
}

/// The result of [`Optimizer::step_with`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// The loss before the step.
    pub loss: f64,
    /// The Euclidean norm of all gradients before the step, unclipped; NaN if the loss is not finite.
    pub gradient_norm: f64,
    /// Number of evaluations of the loss and its gradient.
    pub evaluations: usize,
    /// Whether L-BFGS or Newton-CG found no parameters with a lower loss.
    ///
    /// The parameters have not changed, and another step would not change them either.
    pub converged: bool,
}

/// A variable and its part of the optimizer's state.
struct Parameter {
    name: String,
    var: Var,
    /// `(moments, shape of the parameter)`
    moments: Option<Var>,
    /// Number of updates so far.
    steps: u32,
    max_row_norm: Option<f64>,
    sparse: bool,
}

/// The gradient of a parameter: in the parameter's shape or, with `rows`, of these rows only.
struct Gradient {
    values: Tensor,
    rows: Option<RowNumbers>,
}

/// One update of one parameter.
struct Update {
    rule: Rule,
    terms: GradientTerms,
    /// Whether rows whose gradient is all zero keep their values.
    sparse: bool,
}

impl Optimizer {
    /// Creates an optimizer of all variables in `vars`, in the order of their names, with empty state.
    ///
    /// # Errors
    /// Fails if a setting is out of range, or a variable is not a contiguous floating-point tensor.
    pub fn new(method: impl Into<Method>, vars: &VarMap) -> Result<Self> {
        let mut optimizer = Self::empty(method)?;
        let Ok(vars) = vars.data().lock() else { bail!("optimizer: the lock of the variables is poisoned") };
        let moments = optimizer.method.moments().len();
        optimizer.parameters =
            vars.iter().map(|(name, var)| Parameter::new(name, var, moments)).collect::<Result<_>>()?;
        optimizer.parameters.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(optimizer)
    }

    /// An optimizer of no variables.
    fn empty(method: impl Into<Method>) -> Result<Self> {
        let method = method.into();
        method.check()?;
        let solver = method.is_full_batch().then(Solver::default);
        Ok(Self { method, parameters: vec![], solver })
    }

    /// Adds a variable, which is named by its number.
    fn add(&mut self, var: &Var) -> Result<()> {
        let name = format!("variable {}", self.parameters.len());
        self.parameters.push(Parameter::new(&name, var, self.method.moments().len())?);
        Ok(())
    }

    /// Changes the settings of Adam and keeps its state.
    fn set_adam(&mut self, adam: Adam) {
        debug_assert!(matches!(self.method, Method::Adam(_)));
        self.method = Method::Adam(adam);
    }

    /// Returns whether a step evaluates the loss of all training examples, possibly several times.
    pub fn is_full_batch(&self) -> bool {
        self.method.is_full_batch()
    }

    /// Limits the Euclidean norm of each row of the matrix `name` to `max`.
    ///
    /// Longer rows are scaled down after each update (Hinton et al. 2012, arXiv:1207.0580, section 2).
    ///
    /// # Errors
    /// Fails if there is no matrix of that name, or `max` is not above 0.
    pub fn set_max_row_norm(&mut self, name: &str, max: f64) -> Result<()> {
        if max.is_nan() || max <= 0. {
            bail!("optimizer: the maximum row norm of {name} is {max}, expected a number above 0")
        }
        self.matrix(name)?.max_row_norm = Some(max);
        Ok(())
    }

    /// Updates only the rows of the matrix `name` that have a non-zero gradient.
    ///
    /// Other rows keep their values and their moments.
    ///
    /// In a table of word vectors these are the words of the batch. The cost of
    /// [`backward_step`](Self::backward_step) then depends on the size of the batch, not on the size of the table.
    ///
    /// Plain stochastic gradient descent and Adagrad give the same result with and without this, unless they decay
    /// weights. Adam becomes `torch.optim.SparseAdam`, Adadelta its sparse analogue.
    ///
    /// # Errors
    /// Fails if there is no matrix of that name.
    pub fn set_sparse(&mut self, name: &str) -> Result<()> {
        self.matrix(name)?.sparse = true;
        Ok(())
    }

    fn matrix(&mut self, name: &str) -> Result<&mut Parameter> {
        if self.is_full_batch() {
            bail!(
                "optimizer: the method changes all parameters together, so it can't treat the rows of {name} apart"
            )
        }
        match self.parameters.iter_mut().find(|parameter| parameter.name == name) {
            Some(parameter) if parameter.var.rank() == 2 => Ok(parameter),
            _ => bail!("optimizer: there is no matrix {name}"),
        }
    }

    /// Computes the gradients of `loss` and takes a [`step`](Self::step) with them.
    ///
    /// # Errors
    /// Fails if a gradient cannot be computed, or [`step`](Self::step) fails.
    pub fn backward_step(&mut self, loss: &Tensor, learning_rate: f64, clip: Clip) -> Result<f64> {
        let (grads, rows) = self.gradients(loss)?;
        self.update(&grads, rows, learning_rate, clip, None)?.read()
    }

    /// Takes a step of any method, with a function that computes the loss at the current parameters.
    ///
    /// The function corresponds to the closure that `torch.optim.LBFGS.step` takes.
    ///
    /// L-BFGS and Newton-CG evaluate the loss at several values of the parameters. `loss` must be the same function of
    /// the parameters in all steps: the loss of all training examples, without dropout or augmentation, and without
    /// running averages that it updates. The other methods evaluate it once; if it is not finite, they change no
    /// parameter.
    ///
    /// # Errors
    /// Fails if `loss` fails, a gradient cannot be computed or does not fit its parameter, or the learning rate or the
    /// clipping limit is not a number; with L-BFGS and Newton-CG also if the gradient is to be clipped. No parameter has
    /// changed then.
    pub fn step_with(
        &mut self,
        mut loss: impl FnMut() -> Result<Tensor>,
        learning_rate: f64,
        clip: Clip,
    ) -> Result<Step> {
        let Some(solver) = &mut self.solver else {
            let loss = loss()?;
            let value = loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
            let gradient_norm = match value.is_finite() {
                true => self.backward_step(&loss, learning_rate, clip)?,
                false => f64::NAN,
            };
            return Ok(Step { loss: value, gradient_norm, evaluations: 1, converged: false });
        };
        if clip != Clip::None {
            bail!(
                "optimizer: found gradient clipping, expected none: the method searches for the length of its steps"
            )
        }
        check_rate(learning_rate)?;
        let decays =
            self.parameters.iter().map(|parameter| self.method.decay(parameter.var.rank()).l2).collect();
        let objective = Objective { parameters: &self.parameters, decays, loss: &mut loss, evaluations: 0 };
        solver.step(&self.method, objective, learning_rate)
    }

    fn gradients(&self, loss: &Tensor) -> Result<(GradStore, HashMap<TensorId, RowGradients>)> {
        ops::backward(loss, self.tables())
    }

    /// The parameters that receive row gradients.
    fn tables(&self) -> Vec<TensorId> {
        let sparse = self.parameters.iter().filter(|parameter| parameter.sparse);
        sparse.map(|parameter| parameter.var.id()).collect()
    }

    /// Updates every parameter that has a gradient, and returns the gradient norm before clipping.
    ///
    /// The norm is the Euclidean norm of all gradients together.
    ///
    /// As in PyTorch, a parameter without a gradient keeps its value and its state.
    ///
    /// # Errors
    /// Fails if the shape or type of a gradient differs from its parameter's, or the learning rate or the clipping
    /// limit is not a number. No parameter has changed then.
    pub fn step(&mut self, grads: &GradStore, learning_rate: f64, clip: Clip) -> Result<f64> {
        self.update(grads, HashMap::new(), learning_rate, clip, None)?.read()
    }

    fn update(
        &mut self,
        grads: &GradStore,
        mut rows: HashMap<TensorId, RowGradients>,
        learning_rate: f64,
        clip: Clip,
        recorded: Option<gpu::Recorded>,
    ) -> Result<Norm> {
        let gradient = |parameter: &Parameter| {
            parameter.gradient(grads.get(&parameter.var), rows.remove(&parameter.var.id()))
        };
        let gradients = self.parameters.iter().map(gradient).collect::<Result<Vec<_>>>()?;
        self.apply(gradients, learning_rate, clip, recorded)
    }

    /// Updates every parameter that has a gradient; `gradients` holds one per parameter.
    fn apply(
        &mut self,
        gradients: Vec<Option<Gradient>>,
        learning_rate: f64,
        clip: Clip,
        recorded: Option<gpu::Recorded>,
    ) -> Result<Norm> {
        check_rate(learning_rate)?;
        let (_, limit) = clip.limits()?;
        let gpu = gpu::of(self.parameters.iter());
        let (scale, norm) = match &gpu {
            Some(_) => (1., 0.),
            None => {
                let norm = norm(gradients.iter().flatten().map(|gradient| &gradient.values))?;
                (clip.scale(norm)?, norm)
            }
        };
        let mut updates = vec![];
        for (parameter, gradient) in self.parameters.iter_mut().zip(gradients) {
            let Some(gradient) = gradient else { continue };
            parameter.steps = parameter.steps.saturating_add(1);
            let decay = self.method.decay(parameter.var.rank());
            let shrink = 1. - learning_rate * decay.decoupled;
            let update = Update {
                rule: self.method.rule(learning_rate, parameter.steps, shrink, parameter.sparse)?,
                terms: GradientTerms { scale, limit, l2: decay.l2, l1: decay.l1 },
                sparse: parameter.sparse,
            };
            updates.push((&*parameter, gradient, update));
        }
        match gpu {
            Some(gpu) if !updates.is_empty() => {
                let norm = gpu::update(&gpu, clip, &updates, recorded)?;
                Ok(Norm::OnGpu(gpu, norm))
            }
            _ => {
                for (parameter, gradient, update) in updates {
                    parameter.update(&update, gradient)?;
                }
                Ok(Norm::Known(norm))
            }
        }
    }

    /// Returns a copy of the optimizer's state.
    ///
    /// Together with the parameters, it is all that the next step depends on.
    ///
    /// Each tensor is named by its parameter and by PyTorch's name of the quantity (`conv1.weight.exp_avg`), and has
    /// the parameter's shape and type. Adam adds each parameter's number of updates (`conv1.weight.step`, an i64
    /// scalar).
    ///
    /// L-BFGS has three tensors in all, with PyTorch's names: the last steps `old_stps` and the changes of the gradient
    /// `old_dirs`, both `(steps, elements of all parameters)` in f64, and the number of steps `n_iter`. Newton-CG has none.
    ///
    /// # Errors
    /// Fails if the device cannot copy a tensor.
    pub fn state(&self) -> Result<HashMap<String, Tensor>> {
        if let Some(solver) = &self.solver {
            return solver.state(&self.method, self.elements());
        }
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

    /// Restores the [`state`](Self::state) of an optimizer with the same method and parameters.
    ///
    /// # Errors
    /// Fails if a tensor is missing, unknown, or of another shape or type. Nothing has changed then.
    pub fn load_state(&mut self, state: &HashMap<String, Tensor>) -> Result<()> {
        let elements = self.elements();
        if let Some(solver) = &mut self.solver {
            *solver = Solver::from_state(&self.method, elements, state)?;
            return Ok(());
        }
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
                        "optimizer state: {name} has shape {:?} and type {}, expected {shape:?} and {}",
                        tensor.dims(),
                        tensor.dtype().as_str(),
                        dtype.as_str()
                    ),
                    None => bail!("optimizer state: {name} is missing"),
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
                "optimizer state: {name} is unknown, expected only the state of this optimizer's parameters"
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

    /// Number of elements of all parameters.
    fn elements(&self) -> usize {
        self.parameters.iter().map(|parameter| parameter.var.elem_count()).sum()
    }
}

fn check_rate(learning_rate: f64) -> Result<()> {
    if !learning_rate.is_finite() {
        bail!("optimizer: the learning rate is {learning_rate}, expected a finite number")
    }
    Ok(())
}

impl Clip {
    /// The largest norm of all gradients together, and the largest absolute value of an element.
    fn limits(self) -> Result<(f64, f64)> {
        match self {
            Self::Norm(max) | Self::Value(max) if max.is_nan() || max < 0. => {
                bail!("optimizer: the clipping limit is {max}, expected a number of at least 0")
            }
            Self::None => Ok((f64::INFINITY, f64::INFINITY)),
            Self::Norm(max) => Ok((max, f64::INFINITY)),
            Self::Value(max) => Ok((f64::INFINITY, max)),
        }
    }

    /// The factor for all gradients, given their `norm`.
    fn scale(self, norm: f64) -> Result<f64> {
        let (max, _) = self.limits()?;
        // PyTorch adds 1e-6, too.
        Ok(if norm + 1e-6 > max { max / (norm + 1e-6) } else { 1. })
    }
}

/// The Euclidean norm of the gradients of a step.
enum Norm {
    Known(f64),
    /// The first number of the buffer.
    OnGpu(Gpu, Buffer<f64>),
}

impl Norm {
    fn read(self) -> Result<f64> {
        match self {
            Self::Known(norm) => Ok(norm),
            // SAFETY: the update has written the norm.
            Self::OnGpu(gpu, norm) => Ok(unsafe { gpu.download(norm.pointer(), 1)? }[0]),
        }
    }
}

impl Parameter {
    fn new(name: &str, var: &Var, moments: usize) -> Result<Self> {
        if !var.dtype().is_float() || !var.is_contiguous() {
            let dtype = var.dtype().as_str();
            bail!("optimizer: {name} has type {dtype}, expected a contiguous floating-point variable")
        }
        let shape = [&[moments], var.dims()].concat();
        let moments = match moments {
            0 => None,
            _ => Some(Var::zeros(shape, var.dtype(), var.device())?),
        };
        let (name, var) = (name.to_string(), var.clone());
        Ok(Self { name, var, moments, steps: 0, max_row_norm: None, sparse: false })
    }

    /// The gradient of this parameter: the dense gradient plus the row gradients, if there are any.
    fn gradient(&self, whole: Option<&Tensor>, rows: Option<RowGradients>) -> Result<Option<Gradient>> {
        let (values, rows) = match (whole, rows) {
            (None, None) => return Ok(None),
            (Some(values), None) => (values.clone(), None),
            (None, Some(RowGradients { rows, values })) => (values, Some(rows)),
            (Some(values), Some(rows)) => {
                (ops::sum(&values.contiguous()?, &rows.whole(self.var.dim(0)?)?)?, None)
            }
        };
        if (rows.is_none() && values.dims() != self.var.dims()) || values.dtype() != self.var.dtype() {
            bail!(
                "gradient of {}: found shape {:?} and type {}, expected {:?} and {}",
                self.name,
                values.dims(),
                values.dtype().as_str(),
                self.var.dims(),
                self.var.dtype().as_str()
            )
        }
        Ok(Some(Gradient { values: values.detach().contiguous()?, rows }))
    }

    fn update(&self, update: &Update, gradient: Gradient) -> Result<()> {
        let on_cpu = cpu::supports(&self.var);
        let apply = if on_cpu { cpu::update } else { tensor_ops::update };
        apply(update, &self.var, &gradient, self.moments.as_ref())?;
        match self.max_row_norm {
            Some(max) if on_cpu => cpu::limit_row_norms(&self.var, max),
            Some(max) => tensor_ops::limit_row_norms(&self.var, max),
            None => Ok(()),
        }
    }
}

/// The Euclidean norm of all gradients together.
fn norm<'a>(gradients: impl Iterator<Item = &'a Tensor>) -> Result<f64> {
    let mut sum = 0.;
    // One transfer from the device for all gradients.
    let mut on_device = Vec::new();
    for gradient in gradients {
        if cpu::supports(gradient) {
            sum += cpu::sum_squares(gradient)?;
        } else {
            on_device.push(tensor_ops::sum_squares(gradient)?);
        }
    }
    if !on_device.is_empty() {
        sum += Tensor::stack(&on_device, 0)?.to_vec1::<f32>()?.into_iter().map(f64::from).sum::<f64>();
    }
    Ok(sum.sqrt())
}
