//! The updates in candle's own tensor operations, for the devices that have no kernel of ours.

use super::{Adadelta, Adagrad, Adam, Gradient, Method, RmsProp, Sgd, Update};
use candle_core::{D, DType, Result, Tensor, Var};

pub(super) fn update(
    method: &Method,
    update: &Update,
    parameter: &Var,
    gradient: &Gradient,
    moments: Option<&Var>,
) -> Result<()> {
    let learning_rate = update.learning_rate;
    let old = parameter.as_detached_tensor();
    let gradient = gradient.whole(parameter)?;
    let (p, mut g) = (old.clone(), (&gradient * update.scale)?);
    if update.limit.is_finite() {
        g = g.clamp(-update.limit, update.limit)?;
    }
    if update.l2 != 0. {
        g = (g + (&p * update.l2)?)?;
    }
    if update.l1 != 0. {
        let sign = (p.gt(0.)?.to_dtype(p.dtype())? - p.lt(0.)?.to_dtype(p.dtype())?)?;
        g = (g + (sign * update.l1)?)?;
    }
    let moment = |index: usize, kept: f64, added: &Tensor| -> Result<Tensor> {
        match moments {
            Some(moments) => (moments.as_detached_tensor().get(index)? * kept)? + added,
            None => Ok(added.clone()),
        }
    };
    let (p, kept) = match *method {
        Method::Sgd(Sgd { momentum: 0., .. }) => ((p - g * learning_rate)?, vec![]),
        Method::Sgd(Sgd { momentum, nesterov, .. }) => {
            let buffer = moment(0, momentum, &g)?;
            let direction = if nesterov { (g + (&buffer * momentum)?)? } else { buffer.clone() };
            ((p - direction * learning_rate)?, vec![buffer])
        }
        Method::Adam(Adam { betas: (beta1, beta2), epsilon, .. }) => {
            let correction1 = 1. - beta1.powf(f64::from(update.steps));
            let correction2 = 1. - beta2.powf(f64::from(update.steps));
            let mean = moment(0, beta1, &(&g * (1. - beta1))?)?;
            let square = moment(1, beta2, &(g.sqr()? * (1. - beta2))?)?;
            let direction = (&mean / ((square.sqrt()? / correction2.sqrt())? + epsilon)?)?;
            let p = ((p * update.shrink)? - direction * (learning_rate / correction1))?;
            (p, vec![mean, square])
        }
        Method::RmsProp(RmsProp { alpha, epsilon, momentum, .. }) => {
            let square = moment(0, alpha, &(g.sqr()? * (1. - alpha))?)?;
            let direction = (g / (square.sqrt()? + epsilon)?)?;
            if momentum == 0. {
                ((p - direction * learning_rate)?, vec![square])
            } else {
                let buffer = moment(1, momentum, &direction)?;
                ((p - (&buffer * learning_rate)?)?, vec![square, buffer])
            }
        }
        Method::Adagrad(Adagrad { epsilon, .. }) => {
            let sum = moment(0, 1., &g.sqr()?)?;
            let direction = (g / (sum.sqrt()? + epsilon)?)?;
            ((p - direction * learning_rate)?, vec![sum])
        }
        Method::Adadelta(Adadelta { rho, epsilon, .. }) => {
            let square = moment(0, rho, &(g.sqr()? * (1. - rho))?)?;
            let before = moment(1, 1., &g.zeros_like()?)?;
            let change = (((before + epsilon)?.sqrt()? / (&square + epsilon)?.sqrt()?)? * g)?;
            let changes = moment(1, rho, &(change.sqr()? * (1. - rho))?)?;
            ((p - change * learning_rate)?, vec![square, changes])
        }
    };
    // (rows, 1): whether a row changes at all.
    let changes = match update.lazy {
        true => Some(gradient.ne(0.)?.max_keepdim(D::Minus1)?),
        false => None,
    };
    let keep = |new: Tensor, old: &Tensor| match &changes {
        Some(changes) => changes.broadcast_as(new.shape())?.where_cond(&new, old),
        None => Ok(new),
    };
    if let Some(moments) = moments {
        moments.set(&keep(Tensor::stack(&kept, 0)?, &moments.as_detached_tensor())?)?;
    }
    parameter.set(&keep(p, &old)?)
}

/// The sum of the squares of all elements, an f32 scalar.
pub(super) fn sum_squares(gradient: &Tensor) -> Result<Tensor> {
    gradient.to_dtype(DType::F32)?.sqr()?.sum_all()
}
