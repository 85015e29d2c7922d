use crate::kernels::cpu::optimizer::Rule;
use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};

/// An optimization method: how a gradient changes a parameter.
///
/// Names, defaults and formulas follow `torch.optim`. The learning rate is set per step; see
/// [`Schedule`](super::Schedule).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Stochastic gradient descent.
    Sgd(Sgd),
    /// Adam and AdamW.
    Adam(Adam),
    /// RMSprop.
    RmsProp(RmsProp),
    /// Adagrad.
    Adagrad(Adagrad),
    /// Adadelta.
    Adadelta(Adadelta),
    /// L-BFGS, on all training examples at once.
    Lbfgs(Lbfgs),
    /// Newton's method with conjugate gradients, on all training examples at once.
    #[serde(rename = "newton-cg")]
    NewtonCg(NewtonCg),
}

/// Stochastic gradient descent, optionally with momentum.
///
/// The momentum follows Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning".
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sgd {
    /// Fraction of the momentum buffer that a step keeps; 0 turns momentum off.
    pub momentum: f64,
    /// Nesterov momentum: looks ahead along the momentum. Needs a momentum above 0.
    pub nesterov: bool,
    /// L2: `weight_decay * parameter` is added to the gradient (Nielsen's lambda / n).
    pub weight_decay: f64,
    /// L1: `l1 * sign(parameter)` is added to the gradient.
    pub l1: f64,
    /// Whether L2 and L1 also apply to tensors of fewer than two dimensions (biases, norms).
    pub decay_biases: bool,
}

/// Adam or, with `decoupled`, AdamW.
///
/// Kingma and Ba 2015, "Adam: a method for stochastic optimization", algorithm 1; Loshchilov and Hutter 2019,
/// "Decoupled weight decay regularization".
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Adam {
    /// Decay of the running means of the gradient and of the squared gradient.
    pub betas: (f64, f64),
    /// Added to the root of the bias-corrected second moment.
    ///
    /// A sparse update adds it before the bias correction, like `torch.optim.SparseAdam`.
    pub epsilon: f64,
    /// Strength of the weight decay.
    pub weight_decay: f64,
    /// Whether weight decay is decoupled from the gradient.
    ///
    /// If so (AdamW), it multiplies the parameter by `1 - learning_rate * weight_decay`. Otherwise (L2), it adds
    /// `weight_decay * parameter` to the gradient.
    pub decoupled: bool,
    /// Whether weight decay also applies to tensors of fewer than two dimensions (biases, norms).
    pub decay_biases: bool,
}

/// RMSprop, optionally with momentum.
///
/// Tieleman and Hinton 2012, "Neural networks for machine learning", lecture 6.5; momentum as in Graves 2013,
/// "Generating sequences with recurrent neural networks".
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RmsProp {
    /// Decay of the running mean of the squared gradient.
    pub alpha: f64,
    /// Added to the root of that mean.
    pub epsilon: f64,
    /// Fraction of the momentum buffer that a step keeps; 0 turns momentum off.
    pub momentum: f64,
    /// L2: `weight_decay * parameter` is added to the gradient.
    pub weight_decay: f64,
    /// Whether L2 also applies to tensors of fewer than two dimensions (biases, norms).
    pub decay_biases: bool,
}

/// Adagrad.
///
/// Duchi, Hazan and Singer 2011, "Adaptive subgradient methods for online learning and stochastic optimization".
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Adagrad {
    /// Added to the root of the sum of the squared gradients.
    pub epsilon: f64,
    /// L2: `weight_decay * parameter` is added to the gradient.
    pub weight_decay: f64,
    /// Whether L2 also applies to tensors of fewer than two dimensions (biases, norms).
    pub decay_biases: bool,
}

/// Adadelta (Zeiler 2012, arXiv:1212.5701, algorithm 1).
///
/// The paper has no learning rate: set it to 1 for the paper's method.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Adadelta {
    /// Decay of the running means of the squared gradient and of the squared change.
    ///
    /// The default is PyTorch's 0.9; the paper has 0.95.
    pub rho: f64,
    /// Added to both means under their roots.
    pub epsilon: f64,
    /// L2: `weight_decay * parameter` is added to the gradient.
    pub weight_decay: f64,
    /// Whether L2 also applies to tensors of fewer than two dimensions (biases, norms).
    pub decay_biases: bool,
}

/// L-BFGS, the limited-memory quasi-Newton method.
///
/// Nocedal and Wright 2006, "Numerical optimization", algorithm 7.5.
///
/// A step is one iteration, like a step of `torch.optim.LBFGS` with `max_iter=1`. Take it with
/// [`Optimizer::step_with`]. A step evaluates the loss and its gradient once, sometimes a few times. The sum of the
/// absolute changes of the first step is at most the learning rate. Each later step first tries the whole direction
/// times the learning rate, which is best left at 1.
///
/// PyTorch's defaults are a history of 100 steps and no line search.
///
/// [`Optimizer::step_with`]: super::Optimizer::step_with
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Lbfgs {
    /// Number of past steps that the method keeps, each as two vectors of all parameters in f64.
    pub history_size: usize,
    /// Whether a line search for the strong Wolfe conditions determines the length of each step.
    ///
    /// Without it, the length is the learning rate, and the loss may grow.
    pub line_search: bool,
    /// The parameters do not change if no element of the gradient exceeds this.
    pub tolerance_grad: f64,
    /// The parameters do not change if the slope along the direction is less steep than this.
    ///
    /// The line search ends when no element would change by more.
    pub tolerance_change: f64,
    /// L2: adds `weight_decay / 2` times the sum of the squared parameters to the loss.
    pub weight_decay: f64,
    /// Whether L2 also applies to tensors of fewer than two dimensions (biases, norms).
    pub decay_biases: bool,
}

/// Newton-CG, Newton's method with conjugate gradients (Nocedal and Wright 2006, algorithm 7.1).
///
/// Conjugate gradients solve Newton's equation approximately, and a line search for the strong Wolfe conditions
/// follows.
///
/// Take a step with [`Optimizer::step_with`]. The product of the Hessian and a vector is the central difference of two
/// gradients, so each iteration of the conjugate gradients costs two evaluations. The line search first tries the whole
/// direction times the learning rate, which is best left at 1.
///
/// [`Optimizer::step_with`]: super::Optimizer::step_with
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct NewtonCg {
    /// Maximum number of conjugate-gradient iterations in a step.
    pub iterations: usize,
    /// The parameters do not change if no element of the gradient exceeds this.
    pub tolerance_grad: f64,
    /// L2: adds `weight_decay / 2` times the sum of the squared parameters to the loss.
    pub weight_decay: f64,
    /// Whether L2 also applies to tensors of fewer than two dimensions (biases, norms).
    pub decay_biases: bool,
}

impl Default for Sgd {
    fn default() -> Self {
        Self { momentum: 0., nesterov: false, weight_decay: 0., l1: 0., decay_biases: true }
    }
}

impl Default for Adam {
    fn default() -> Self {
        Self { betas: (0.9, 0.999), epsilon: 1e-8, weight_decay: 0., decoupled: false, decay_biases: true }
    }
}

impl Adam {
    /// AdamW with PyTorch's weight decay of 0.01.
    pub fn adamw() -> Self {
        Self { weight_decay: 0.01, decoupled: true, ..Self::default() }
    }
}

impl Default for RmsProp {
    fn default() -> Self {
        Self { alpha: 0.99, epsilon: 1e-8, momentum: 0., weight_decay: 0., decay_biases: true }
    }
}

impl Default for Adagrad {
    fn default() -> Self {
        Self { epsilon: 1e-10, weight_decay: 0., decay_biases: true }
    }
}

impl Default for Adadelta {
    fn default() -> Self {
        Self { rho: 0.9, epsilon: 1e-6, weight_decay: 0., decay_biases: true }
    }
}

impl Default for Lbfgs {
    fn default() -> Self {
        Self {
            history_size: 10,
            line_search: true,
            tolerance_grad: 1e-7,
            tolerance_change: 1e-9,
            weight_decay: 0.,
            decay_biases: true,
        }
    }
}

impl Default for NewtonCg {
    fn default() -> Self {
        Self { iterations: 20, tolerance_grad: 1e-7, weight_decay: 0., decay_biases: true }
    }
}

impl From<Sgd> for Method {
    fn from(sgd: Sgd) -> Self {
        Self::Sgd(sgd)
    }
}

impl From<Adam> for Method {
    fn from(adam: Adam) -> Self {
        Self::Adam(adam)
    }
}

impl From<RmsProp> for Method {
    fn from(rms_prop: RmsProp) -> Self {
        Self::RmsProp(rms_prop)
    }
}

impl From<Adagrad> for Method {
    fn from(adagrad: Adagrad) -> Self {
        Self::Adagrad(adagrad)
    }
}

impl From<Adadelta> for Method {
    fn from(adadelta: Adadelta) -> Self {
        Self::Adadelta(adadelta)
    }
}

impl From<Lbfgs> for Method {
    fn from(lbfgs: Lbfgs) -> Self {
        Self::Lbfgs(lbfgs)
    }
}

impl From<NewtonCg> for Method {
    fn from(newton_cg: NewtonCg) -> Self {
        Self::NewtonCg(newton_cg)
    }
}

impl Method {
    /// Returns whether a step evaluates the loss of all training examples, possibly several times.
    ///
    /// Such a step takes [`Optimizer::step_with`](super::Optimizer::step_with).
    pub fn is_full_batch(&self) -> bool {
        matches!(self, Self::Lbfgs(_) | Self::NewtonCg(_))
    }

    /// Checks that all settings are in range.
    pub(super) fn check(&self) -> Result<()> {
        let not_negative = |name: &str, value: f64| match value >= 0. && value.is_finite() {
            true => Ok(()),
            false => bail!("optimizer: {name} is {value}, expected a number of at least 0"),
        };
        let fraction = |name: &str, value: f64| match (0. ..1.).contains(&value) {
            true => Ok(()),
            false => bail!("optimizer: {name} is {value}, expected at least 0 and less than 1"),
        };
        let positive = |name: &str, value: usize| match value {
            0 => bail!("optimizer: {name} is 0, expected at least 1"),
            _ => Ok(()),
        };
        match self {
            Self::Sgd(sgd) => {
                not_negative("momentum", sgd.momentum)?;
                not_negative("weight_decay", sgd.weight_decay)?;
                not_negative("l1", sgd.l1)?;
                if sgd.nesterov && sgd.momentum == 0. {
                    bail!("optimizer: nesterov is on and momentum is 0, expected a momentum above 0")
                }
                Ok(())
            }
            Self::Adam(adam) => {
                fraction("betas.0", adam.betas.0)?;
                fraction("betas.1", adam.betas.1)?;
                not_negative("epsilon", adam.epsilon)?;
                not_negative("weight_decay", adam.weight_decay)
            }
            Self::RmsProp(rms_prop) => {
                fraction("alpha", rms_prop.alpha)?;
                not_negative("epsilon", rms_prop.epsilon)?;
                not_negative("momentum", rms_prop.momentum)?;
                not_negative("weight_decay", rms_prop.weight_decay)
            }
            Self::Adagrad(adagrad) => {
                not_negative("epsilon", adagrad.epsilon)?;
                not_negative("weight_decay", adagrad.weight_decay)
            }
            Self::Adadelta(adadelta) => {
                fraction("rho", adadelta.rho)?;
                not_negative("epsilon", adadelta.epsilon)?;
                not_negative("weight_decay", adadelta.weight_decay)
            }
            Self::Lbfgs(lbfgs) => {
                positive("history_size", lbfgs.history_size)?;
                not_negative("tolerance_grad", lbfgs.tolerance_grad)?;
                not_negative("tolerance_change", lbfgs.tolerance_change)?;
                not_negative("weight_decay", lbfgs.weight_decay)
            }
            Self::NewtonCg(newton_cg) => {
                positive("iterations", newton_cg.iterations)?;
                not_negative("tolerance_grad", newton_cg.tolerance_grad)?;
                not_negative("weight_decay", newton_cg.weight_decay)
            }
        }
    }

    /// PyTorch's names of the tensors kept per parameter, each in the parameter's shape.
    pub(super) fn moments(&self) -> &'static [&'static str] {
        match self {
            Self::Sgd(sgd) if sgd.momentum == 0. => &[],
            Self::Sgd(_) => &["momentum_buffer"],
            Self::Adam(_) => &["exp_avg", "exp_avg_sq"],
            Self::RmsProp(rms_prop) if rms_prop.momentum == 0. => &["square_avg"],
            Self::RmsProp(_) => &["square_avg", "momentum_buffer"],
            Self::Adagrad(_) => &["sum"],
            Self::Adadelta(_) => &["square_avg", "acc_delta"],
            Self::Lbfgs(_) | Self::NewtonCg(_) => &[],
        }
    }

    /// Whether an update depends on the number of earlier updates.
    pub(super) fn counts_steps(&self) -> bool {
        matches!(self, Self::Adam(_))
    }

    /// The update rule of step number `steps` (from 1).
    ///
    /// The rule multiplies the parameter by `shrink` first.
    ///
    /// # Errors
    /// Fails if the method has no rule for single parameters.
    pub(super) fn rule(&self, rate: f64, steps: u32, shrink: f64, sparse: bool) -> Result<Rule> {
        Ok(match *self {
            Self::Sgd(Sgd { momentum: 0., .. }) => Rule::Sgd { rate },
            Self::Sgd(Sgd { momentum, nesterov, .. }) => Rule::Momentum { rate, momentum, nesterov },
            Self::Adam(Adam { betas, epsilon, .. }) => {
                let correction = |beta| 1. - libm::pow(beta, f64::from(steps));
                let (correction, root) = (correction(betas.0), correction(betas.1).sqrt());
                // SparseAdam corrects the bias after adding epsilon, Adam before.
                let (step_size, root_scale) =
                    if sparse { (rate * root / correction, 1.) } else { (rate / correction, 1. / root) };
                Rule::Adam { betas, epsilon, step_size, root_scale, shrink }
            }
            Self::RmsProp(RmsProp { alpha, epsilon, momentum: 0., .. }) => {
                Rule::RmsProp { rate, alpha, epsilon }
            }
            Self::RmsProp(RmsProp { alpha, epsilon, momentum, .. }) => {
                Rule::RmsPropMomentum { rate, alpha, epsilon, momentum }
            }
            Self::Adagrad(Adagrad { epsilon, .. }) => Rule::Adagrad { rate, epsilon },
            Self::Adadelta(Adadelta { rho, epsilon, .. }) => Rule::Adadelta { rate, rho, epsilon },
            Self::Lbfgs(_) | Self::NewtonCg(_) => {
                bail!("optimizer: this method evaluates the loss several times per step: use `step_with`")
            }
        })
    }

    /// The weight decay of a parameter with `rank` dimensions.
    pub(super) fn decay(&self, rank: usize) -> Decay {
        let (decay, decay_biases) = match *self {
            Self::Sgd(Sgd { weight_decay, l1, decay_biases, .. }) => {
                (Decay { l2: weight_decay, l1, decoupled: 0. }, decay_biases)
            }
            Self::Adam(Adam { weight_decay, decoupled: true, decay_biases, .. }) => {
                (Decay { decoupled: weight_decay, ..Decay::default() }, decay_biases)
            }
            Self::Adam(Adam { weight_decay, decay_biases, .. })
            | Self::RmsProp(RmsProp { weight_decay, decay_biases, .. })
            | Self::Adagrad(Adagrad { weight_decay, decay_biases, .. })
            | Self::Adadelta(Adadelta { weight_decay, decay_biases, .. })
            | Self::Lbfgs(Lbfgs { weight_decay, decay_biases, .. })
            | Self::NewtonCg(NewtonCg { weight_decay, decay_biases, .. }) => {
                (Decay { l2: weight_decay, ..Decay::default() }, decay_biases)
            }
        };
        if rank >= 2 || decay_biases { decay } else { Decay::default() }
    }
}

/// The forms of weight decay and their strengths.
#[derive(Default)]
pub(super) struct Decay {
    /// Multiple of the parameter that is added to its gradient.
    pub l2: f64,
    /// Multiple of the parameter's sign that is added to its gradient.
    pub l1: f64,
    /// Decay of the parameter itself, relative to the learning rate.
    pub decoupled: f64,
}
