//! A variable with its part of the optimizer's state.

use super::step::{Gradient, Update};
use super::{cpu, tensor_ops};
use crate::ops::{self, RowGradients};
use candle_core::{Result, Tensor, Var, bail};

/// A variable and its part of the optimizer's state.
pub(super) struct Parameter {
    pub name: String,
    pub var: Var,
    /// `(moments, shape of the parameter)`
    pub moments: Option<Var>,
    /// Number of updates so far.
    pub steps: u32,
    pub max_row_norm: Option<f64>,
    pub sparse: bool,
}

impl Parameter {
    pub fn new(name: &str, var: &Var, moments: usize) -> Result<Self> {
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
    pub fn gradient(&self, whole: Option<&Tensor>, rows: Option<RowGradients>) -> Result<Option<Gradient>> {
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

    pub fn update(&self, update: &Update, gradient: Gradient) -> Result<()> {
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
