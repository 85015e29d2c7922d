//! Updates in candle's tensor operations, for devices and element types without a kernel.

use super::step::{Gradient, Update};
use crate::kernels::cpu::optimizer::Rule;
use crate::ops::RowGradients;
use candle_core::{D, DType, Result, Tensor, Var};

/// Does the same as `cpu::update`.
pub(super) fn update(
    update: &Update,
    parameter: &Var,
    gradient: &Gradient,
    moments: Option<&Var>,
) -> Result<()> {
    let old = parameter.as_detached_tensor();
    let gradient = match &gradient.rows {
        None => gradient.values.clone(),
        Some(rows) => {
            let gradient = RowGradients { rows: rows.clone(), values: gradient.values.clone() };
            gradient.whole(parameter.dim(0)?)?
        }
    };
    let (p, g) = (old.clone(), final_gradient(update, &old, &gradient)?);
    let moment = |index: usize| match moments {
        Some(moments) => moments.as_detached_tensor().get(index),
        None => old.zeros_like(),
    };
    // The running mean that keeps the fraction `kept` of moment `index`.
    let mean = |index: usize, kept: f64, x: &Tensor| (moment(index)? * kept)? + (x * (1. - kept))?;
    let (p, new) = match update.rule {
        Rule::Sgd { rate } => ((p - g * rate)?, vec![]),
        Rule::Momentum { rate, momentum, nesterov } => {
            let buffer = ((moment(0)? * momentum)? + &g)?;
            let direction = if nesterov { (g + (&buffer * momentum)?)? } else { buffer.clone() };
            ((p - direction * rate)?, vec![buffer])
        }
        Rule::Adam { betas, epsilon, step_size, root_scale, shrink } => {
            let (mean, square) = (mean(0, betas.0, &g)?, mean(1, betas.1, &g.sqr()?)?);
            let direction = (&mean / ((square.sqrt()? * root_scale)? + epsilon)?)?;
            (((p * shrink)? - direction * step_size)?, vec![mean, square])
        }
        Rule::RmsProp { rate, alpha, epsilon } => {
            let square = mean(0, alpha, &g.sqr()?)?;
            let direction = (g / (square.sqrt()? + epsilon)?)?;
            ((p - direction * rate)?, vec![square])
        }
        Rule::RmsPropMomentum { rate, alpha, epsilon, momentum } => {
            let square = mean(0, alpha, &g.sqr()?)?;
            let buffer = ((moment(1)? * momentum)? + (g / (square.sqrt()? + epsilon)?)?)?;
            ((p - (&buffer * rate)?)?, vec![square, buffer])
        }
        Rule::Adagrad { rate, epsilon } => {
            let sum = (moment(0)? + g.sqr()?)?;
            let direction = (g / (sum.sqrt()? + epsilon)?)?;
            ((p - direction * rate)?, vec![sum])
        }
        Rule::Adadelta { rate, rho, epsilon } => {
            let square = mean(0, rho, &g.sqr()?)?;
            let change = (((moment(1)? + epsilon)?.sqrt()? / (&square + epsilon)?.sqrt()?)? * g)?;
            let changes = mean(1, rho, &change.sqr()?)?;
            ((p - change * rate)?, vec![square, changes])
        }
    };
    // Whether each row changes at all, `(rows, 1)`.
    let changes = match update.sparse {
        true => Some(gradient.ne(0.)?.max_keepdim(D::Minus1)?),
        false => None,
    };
    let keep = |new: Tensor, old: &Tensor| match &changes {
        Some(changes) => changes.broadcast_as(new.shape())?.where_cond(&new, old),
        None => Ok(new),
    };
    if let Some(moments) = moments {
        moments.set(&keep(Tensor::stack(&new, 0)?, &moments.as_detached_tensor())?)?;
    }
    parameter.set(&keep(p, &old)?)
}

/// The gradient of the parameter `p` after scaling, clipping and weight decay.
fn final_gradient(update: &Update, p: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    let terms = update.terms;
    let mut g = (gradient * terms.scale)?;
    if terms.limit.is_finite() {
        g = g.clamp(-terms.limit, terms.limit)?;
    }
    if terms.l2 != 0. {
        g = (g + (p * terms.l2)?)?;
    }
    if terms.l1 != 0. {
        let sign = (p.gt(0.)?.to_dtype(p.dtype())? - p.lt(0.)?.to_dtype(p.dtype())?)?;
        g = (g + (sign * terms.l1)?)?;
    }
    Ok(g)
}

/// Scales down the rows of `matrix` whose Euclidean norm exceeds `max`.
pub(super) fn limit_row_norms(matrix: &Var, max: f64) -> Result<()> {
    let rows = matrix.as_detached_tensor();
    let scale = (rows.sqr()?.sum_keepdim(1)?.sqrt()?.maximum(max)?.recip()? * max)?;
    matrix.set(&rows.broadcast_mul(&scale)?)
}

/// The sum of the squares of all elements, an f32 scalar.
pub(super) fn sum_squares(gradient: &Tensor) -> Result<Tensor> {
    gradient.to_dtype(DType::F32)?.sqr()?.sum_all()
}
