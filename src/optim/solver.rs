//! Methods that evaluate the loss several times per step: L-BFGS and Newton-CG.

use super::lbfgs::{self, Memory};
use super::line_search::strong_wolfe;
use super::method::{Lbfgs, Method, NewtonCg};
use super::newton_cg;
use super::objective::{Objective, Point, largest};
use super::step::Step;
use crate::kernels::cpu::optimizer::{dot, sum_squares};
use candle_core::{DType, Device, Result, Tensor, bail};
use std::collections::HashMap;

/// The line search ends when no element would change by more than this.
const MIN_CHANGE: f64 = 1e-9;

/// The state of L-BFGS or Newton-CG.
#[derive(Debug, Default)]
pub(super) struct Solver {
    /// Number of steps so far.
    steps: u32,
    /// The last steps of L-BFGS.
    memory: Memory,
    /// The end of the last step, whose loss the next step need not evaluate again.
    ///
    /// It is not saved: after resuming, the same function has the same value.
    end: Option<Point>,
}

impl Solver {
    /// Takes a step of `method`; if it fails, the parameters have not changed.
    pub fn step(&mut self, method: &Method, mut objective: Objective, rate: f64) -> Result<Step> {
        let mut x = objective.x()?;
        match self.advance(method, &mut objective, &x, rate) {
            Ok((loss, gradient_norm, converged)) => {
                Ok(Step { loss, gradient_norm, evaluations: objective.evaluations, converged })
            }
            Err(error) => {
                objective.set(&mut x)?;
                Err(error)
            }
        }
    }

    /// Moves the parameters from `x`.
    ///
    /// Returns the loss and the norm of the gradient at `x`, and whether no move is left.
    fn advance(
        &mut self,
        method: &Method,
        objective: &mut Objective,
        x: &[f64],
        rate: f64,
    ) -> Result<(f64, f64, bool)> {
        let start = match self.end.take() {
            Some(end) if end.x == x => end,
            _ => objective.evaluate(x.to_vec())?,
        };
        let norm = sum_squares(&start.gradient).sqrt();
        let loss = start.loss;
        if !(start.value.is_finite() && norm.is_finite()) {
            return Ok((loss, norm, false));
        }
        let lower = match method {
            Method::Lbfgs(lbfgs) => self.lbfgs(lbfgs, objective, &start, rate)?,
            Method::NewtonCg(newton_cg) => newton_step(newton_cg, objective, &start, rate)?,
            _ => None,
        };
        let converged = lower.is_none();
        let mut end = lower.unwrap_or(start);
        // The last evaluation may have been at another point.
        objective.set(&mut end.x)?;
        self.end = Some(end);
        Ok((loss, norm, converged))
    }

    /// Takes a step of L-BFGS from `start` and returns its end, or `None` if no point is lower.
    fn lbfgs(
        &mut self,
        lbfgs: &Lbfgs,
        objective: &mut Objective,
        start: &Point,
        rate: f64,
    ) -> Result<Option<Point>> {
        let gradient = &start.gradient;
        if largest(gradient) <= lbfgs.tolerance_grad {
            return Ok(None);
        }
        let direction = self.memory.direction(gradient);
        let first = match self.steps {
            0 => rate * f64::min(1., 1. / gradient.iter().map(|g| g.abs()).sum::<f64>()),
            _ => rate,
        };
        self.steps = self.steps.saturating_add(1);
        let slope = dot(gradient, &direction);
        if slope > -lbfgs.tolerance_change {
            return Ok(None);
        }
        let mut evaluate = |x| objective.evaluate(x);
        let end = match lbfgs.line_search {
            true => strong_wolfe(&mut evaluate, start, &direction, slope, first, lbfgs.tolerance_change)?,
            false => Some(evaluate(start.moved(first, &direction))?),
        };
        if let Some(end) = &end {
            let change = |to: &[f64], from: &[f64]| to.iter().zip(from).map(|(to, from)| to - from).collect();
            let (step, change) = (change(&end.x, &start.x), change(&end.gradient, gradient));
            self.memory.push(step, change, lbfgs.history_size);
        }
        Ok(end)
    }

    /// The state that the next step of `method` depends on, for parameters of `elements` elements.
    pub fn state(&self, method: &Method, elements: usize) -> Result<HashMap<String, Tensor>> {
        let Method::Lbfgs(_) = method else { return Ok(HashMap::new()) };
        let mut state = self.memory.state(elements)?;
        state.insert(lbfgs::COUNT.to_string(), Tensor::new(i64::from(self.steps), &Device::Cpu)?);
        Ok(state)
    }

    /// Restores what [`state`](Self::state) returned.
    pub fn from_state(method: &Method, elements: usize, state: &HashMap<String, Tensor>) -> Result<Self> {
        let known: &[&str] = match method {
            Method::Lbfgs(_) => &[lbfgs::STEPS, lbfgs::CHANGES, lbfgs::COUNT],
            _ => &[],
        };
        if let Some(name) = state.keys().filter(|name| !known.contains(&name.as_str())).min() {
            bail!("optimizer state: {name} is unknown, expected only the state of this optimizer")
        }
        let Method::Lbfgs(Lbfgs { history_size, .. }) = method else { return Ok(Self::default()) };
        let find = |name: &str, dtype: DType| match state.get(name) {
            Some(tensor) if tensor.dtype() == dtype => Ok(tensor),
            Some(tensor) => {
                let [found, expected] = [tensor.dtype(), dtype].map(|dtype| dtype.as_str());
                bail!("optimizer state: {name} has type {found}, expected {expected}")
            }
            None => bail!("optimizer state: {name} is missing"),
        };
        let (steps, changes) = (find(lbfgs::STEPS, DType::F64)?, find(lbfgs::CHANGES, DType::F64)?);
        for (name, tensor) in [(lbfgs::STEPS, steps), (lbfgs::CHANGES, changes)] {
            let pairs = steps.dims().first().copied().unwrap_or_default().min(*history_size);
            if tensor.dims() != [pairs, elements] {
                bail!(
                    "optimizer state: {name} has shape {:?}, expected [{pairs}, {elements}], at most {history_size} steps",
                    tensor.dims()
                )
            }
        }
        let count = find(lbfgs::COUNT, DType::I64)?;
        match count.rank() {
            0 => {}
            _ => bail!("optimizer state: {} has shape {:?}, expected a scalar", lbfgs::COUNT, count.dims()),
        }
        let count = count.to_scalar::<i64>()?;
        let Ok(count) = u32::try_from(count) else {
            bail!("optimizer state: {} is {count}, expected a number of steps", lbfgs::COUNT)
        };
        Ok(Self { steps: count, memory: Memory::from_state(steps, changes)?, end: None })
    }
}

/// Takes a step of Newton-CG from `start` and returns its end, or `None` if no point is lower.
fn newton_step(
    newton_cg: &NewtonCg,
    objective: &mut Objective,
    start: &Point,
    rate: f64,
) -> Result<Option<Point>> {
    if largest(&start.gradient) <= newton_cg.tolerance_grad {
        return Ok(None);
    }
    let roundoff = objective.roundoff();
    let mut evaluate = |x| objective.evaluate(x);
    let direction = newton_cg::direction(&mut evaluate, start, newton_cg.iterations, roundoff)?;
    let slope = dot(&start.gradient, &direction);
    if slope >= 0. {
        return Ok(None);
    }
    strong_wolfe(&mut evaluate, start, &direction, slope, rate, MIN_CHANGE)
}
