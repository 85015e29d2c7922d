//! The updates in candle's own tensor operations, for the devices that have no kernel of ours.

use super::{Adam, Method, RmsProp, Sgd, Update};
use candle_core::{DType, Result, Tensor, Var};

pub(super) fn update(
    method: &Method,
    update: &Update,
    parameter: &Var,
    gradient: &Tensor,
    moments: Option<&Var>,
) -> Result<()> {
    let learning_rate = update.learning_rate;
    let p = parameter.as_detached_tensor();
    let mut g = (gradient * update.scale)?;
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
    };
    if let Some(moments) = moments {
        moments.set(&Tensor::stack(&kept, 0)?)?;
    }
    parameter.set(&p)
}

/// The sum of the squares of all elements, an f32 scalar.
pub(super) fn sum_squares(gradient: &Tensor) -> Result<Tensor> {
    gradient.to_dtype(DType::F32)?.sqr()?.sum_all()
}
