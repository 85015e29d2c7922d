use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// The learning rate of each step, a pure function of the base rate, the step and the number of steps of the run; only
/// [`Curve::Plateau`] also looks at a [`PlateauState`].
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Schedule {
    /// The first steps, in which the rate rises linearly: at step `s` from 0 it is `(s + 1) / (warmup_steps + 1)` of
    /// the rate with which the curve then starts.
    pub warmup_steps: usize,
    pub curve: Curve,
}

/// How the rate goes on from the base rate.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Curve {
    #[default]
    Constant,
    /// Multiplies the rate by `factor` every so many steps (0 counts as 1).
    Step { every: usize, factor: f64 },
    /// Multiplies the rate by `factor` after half of the steps and again after three quarters (He et al. 2015, section 4.2).
    Milestones { factor: f64 },
    /// Down to 0 on a straight line.
    Linear,
    /// Half a cosine wave from the base rate down to 0 (Loshchilov & Hutter 2017, "SGDR", without restarts).
    Cosine,
    /// Up to the base rate over the first `rise` of the steps and down again, in half cosine waves (Smith & Topin 2018,
    /// "Super-convergence"). Starts at `1 / start_divisor` of the base rate and ends at `1 / end_divisor` of where it
    /// started. PyTorch's defaults: [`Curve::one_cycle`]; momentum stays as it is.
    OneCycle { rise: f64, start_divisor: f64, end_divisor: f64 },
    /// Multiplies the rate by `factor` whenever the validation loss has not improved for `patience` epochs, and ends
    /// training once the rate is at or below `stop_at` of the base rate (Nielsen, ch. 3: halve until 1/128).
    Plateau { factor: f64, patience: usize, stop_at: f64 },
}

/// What [`Curve::Plateau`] has seen of the run: the only part of a schedule that a checkpoint has to hold.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct PlateauState {
    best: Option<f64>,
    epochs_without_improvement: usize,
    reductions: u32,
}

impl Curve {
    /// One cycle with PyTorch's defaults.
    pub fn one_cycle() -> Self {
        Self::OneCycle { rise: 0.3, start_divisor: 25., end_divisor: 1e4 }
    }

    /// Nielsen's: halve after ten epochs without improvement, end at 1/128.
    pub fn plateau() -> Self {
        Self::Plateau { factor: 0.5, patience: 10, stop_at: 1. / 128. }
    }
}

impl From<Curve> for Schedule {
    fn from(curve: Curve) -> Self {
        Self { warmup_steps: 0, curve }
    }
}

impl Schedule {
    /// The rate of step `step`, counted from 0, of `total_steps`. Beyond the end it stays what it was there.
    pub fn learning_rate(&self, base: f64, step: usize, total_steps: usize, plateau: &PlateauState) -> f64 {
        let total = total_steps.saturating_sub(self.warmup_steps);
        match step.checked_sub(self.warmup_steps) {
            Some(step) => base * self.curve.factor(step, total, plateau),
            None => {
                base * self.curve.factor(0, total, plateau) * (step + 1) as f64
                    / (self.warmup_steps + 1) as f64
            }
        }
    }

    /// Takes note of the validation loss of one more epoch; for a metric of which more is better, of its negative.
    pub fn observe(&self, plateau: &mut PlateauState, loss: f64) {
        let Curve::Plateau { patience, .. } = self.curve else { return };
        if plateau.best.is_none_or(|best| loss < best) && !loss.is_nan() {
            plateau.best = Some(loss);
            plateau.epochs_without_improvement = 0;
            return;
        }
        plateau.epochs_without_improvement += 1;
        if plateau.epochs_without_improvement >= patience {
            plateau.reductions += 1;
            plateau.epochs_without_improvement = 0;
        }
    }

    /// Whether the rate has fallen so low that training ends.
    pub fn has_ended(&self, plateau: &PlateauState) -> bool {
        match self.curve {
            Curve::Plateau { factor, stop_at, .. } => factor.powf(f64::from(plateau.reductions)) <= stop_at,
            _ => false,
        }
    }
}

impl Curve {
    /// What the base rate is multiplied by.
    fn factor(&self, step: usize, total: usize, plateau: &PlateauState) -> f64 {
        match *self {
            Self::Constant => 1.,
            Self::Step { every, factor } => factor.powf((step / every.max(1)) as f64),
            Self::Milestones { factor } => factor.powi((4 * step / total.max(1)).clamp(1, 3) as i32 - 1),
            Self::Linear => 1. - step.min(total) as f64 / total.max(1) as f64,
            Self::Cosine => half_wave(1., 0., step.min(total) as f64 / total.max(1) as f64),
            Self::OneCycle { rise, start_divisor, end_divisor } => {
                // PyTorch's: the peak falls between two steps unless `rise * total` is whole.
                let last = total.saturating_sub(1) as f64;
                let peak = rise * total as f64 - 1.;
                let step = (step as f64).min(last);
                let start = 1. / start_divisor;
                if peak > 0. && step <= peak {
                    half_wave(start, 1., step / peak)
                } else {
                    half_wave(1., start / end_divisor, (step - peak) / (last - peak))
                }
            }
            Self::Plateau { factor, .. } => factor.powf(f64::from(plateau.reductions)),
        }
    }
}

/// From `start` at 0 to `end` at 1.
fn half_wave(start: f64, end: f64, position: f64) -> f64 {
    end + (start - end) / 2. * (1. + (PI * position).cos())
}
