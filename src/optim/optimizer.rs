//! The optimizer: its parameters, its steps, and its state.

use super::method::{Adam, Method};
use super::objective::Objective;
use super::parameter::Parameter;
use super::solver::Solver;
use super::step::{Clip, Gradient, Step, Update};
use super::{cpu, gpu, tensor_ops};
use crate::kernels::cpu::optimizer::GradientTerms;
use crate::kernels::cuda::Buffer;
use crate::ops::gpu::Gpu;
use crate::ops::{self, RowGradients};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, TensorId, Var, bail};
use candle_nn::VarMap;
use std::collections::{HashMap, HashSet};

/// Updates the variables of a [`VarMap`] in place.
///
/// On the CPU, updates in f32 and f64 allocate no temporary tensors and give the same bits for any number of threads.
pub struct Optimizer {
    method: Method,
    pub(super) parameters: Vec<Parameter>,
    /// The state of a method that evaluates the loss several times per step.
    solver: Option<Solver>,
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
        if optimizer.parameters.is_empty() {
            bail!("optimizer: found no variables: build the model before its optimizer");
        }
        optimizer.parameters.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(optimizer)
    }

    /// An optimizer of no variables.
    pub(super) fn empty(method: impl Into<Method>) -> Result<Self> {
        let method = method.into();
        method.check()?;
        let solver = method.is_full_batch().then(Solver::default);
        Ok(Self { method, parameters: vec![], solver })
    }

    /// Adds a variable, which is named by its number.
    pub(super) fn add(&mut self, var: &Var) -> Result<()> {
        let name = format!("variable {}", self.parameters.len());
        self.parameters.push(Parameter::new(&name, var, self.method.moments().len())?);
        Ok(())
    }

    /// Changes the settings of Adam and keeps its state.
    pub(super) fn set_adam(&mut self, adam: Adam) {
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

    /// Computes the gradients of `loss`, takes a [`step`](Self::step) with them, and returns the gradient norm before clipping.
    ///
    /// As in candle, the gradients of a tensor of several elements are those of its sum. A loss that depends on none of the
    /// variables changes nothing; the gradient norm is 0 then.
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

    pub(super) fn gradients(&self, loss: &Tensor) -> Result<(GradStore, HashMap<TensorId, RowGradients>)> {
        ops::backward(loss, self.tables())
    }

    /// The parameters that receive row gradients.
    pub(super) fn tables(&self) -> Vec<TensorId> {
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

    pub(super) fn update(
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
    pub(super) fn apply(
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

/// The Euclidean norm of the gradients of a step.
pub(super) enum Norm {
    Known(f64),
    /// The first number of the buffer.
    OnGpu(Gpu, Buffer<f64>),
}

impl Norm {
    pub fn read(self) -> Result<f64> {
        match self {
            Self::Known(norm) => Ok(norm),
            // SAFETY: the update has written the norm.
            Self::OnGpu(gpu, norm) => Ok(unsafe { gpu.download(norm.pointer(), 1)? }[0]),
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
