//! Learning-rate schedules.

use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// A learning-rate schedule, a pure function of the base rate, the step and the number of steps.
///
/// Only [`Curve::Plateau`] also depends on a [`PlateauState`].
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Schedule {
    /// Number of warm-up steps, in which the rate rises linearly.
    ///
    /// Step `s`, counted from 0, has `(s + 1) / (warmup_steps + 1)` times the curve's first rate.
    pub warmup_steps: usize,
    /// The rate after the warm-up.
    pub curve: Curve,
}

/// The course of the learning rate, relative to the base rate.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Curve {
    /// The base rate throughout.
    #[default]
    Constant,
    /// Multiplies the rate by `factor` every `every` steps.
    Step {
        /// Number of steps between two reductions; 0 counts as 1.
        every: usize,
        /// Factor of each reduction.
        factor: f64,
    },
    /// Multiplies the rate by `factor` after half of the steps and again after three quarters.
    ///
    /// He et al. 2015, section 4.2.
    Milestones {
        /// Factor of each reduction.
        factor: f64,
    },
    /// Falls to 0 on a straight line.
    Linear,
    /// Falls to 0 in half a cosine wave (Loshchilov and Hutter 2017, "SGDR", without restarts).
    Cosine,
    /// Rises to the base rate and falls again, in half cosine waves (Smith and Topin 2018).
    ///
    /// This is "Super-convergence".
    ///
    /// [`Curve::one_cycle`] has PyTorch's defaults. Unlike PyTorch's, it leaves the momentum constant.
    OneCycle {
        /// Fraction of the steps in which the rate rises, from 0 to 1.
        rise: f64,
        /// The first rate is the base rate divided by this.
        start_divisor: f64,
        /// The last rate is the first rate divided by this.
        end_divisor: f64,
    },
    /// Multiplies the rate by `factor` whenever the validation loss stops improving (Nielsen, chapter 3).
    Plateau {
        /// Factor of each reduction.
        factor: f64,
        /// Number of epochs without improvement before a reduction.
        patience: usize,
        /// Training ends once the rate is at or below this fraction of the base rate.
        stop_at: f64,
    },
}

/// The history that [`Curve::Plateau`] depends on.
///
/// It is the only part of a schedule that a checkpoint has to save.
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

    /// Nielsen's rule: halve the rate after ten epochs without improvement, stop at 1/128.
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
    /// The learning rate of step `step`, counted from 0, of `total_steps`. Later steps keep the last rate.
    pub fn learning_rate(&self, base: f64, step: usize, total_steps: usize, plateau: &PlateauState) -> f64 {
        let total = total_steps.saturating_sub(self.warmup_steps);
        match step.checked_sub(self.warmup_steps) {
            Some(step) => base * self.curve.factor(step, total, plateau),
            None => {
                base * self.curve.factor(0, total, plateau) * (step + 1) as f64
                    / (self.warmup_steps as f64 + 1.)
            }
        }
    }

    /// Records the validation loss of one more epoch. For a metric that should grow, pass its negative.
    pub fn observe(&self, plateau: &mut PlateauState, loss: f64) {
        let Curve::Plateau { patience, .. } = self.curve else { return };
        // An infinite perplexity is no improvement.
        if plateau.best.is_none_or(|best| loss < best) && loss.is_finite() {
            plateau.best = Some(loss);
            plateau.epochs_without_improvement = 0;
            return;
        }
        plateau.epochs_without_improvement = plateau.epochs_without_improvement.saturating_add(1);
        if plateau.epochs_without_improvement >= patience {
            plateau.reductions = plateau.reductions.saturating_add(1);
            plateau.epochs_without_improvement = 0;
        }
    }

    /// Returns whether a longer run would change the learning rates of earlier steps.
    pub fn depends_on_length(&self) -> bool {
        match self.curve {
            Curve::Constant | Curve::Step { .. } | Curve::Plateau { .. } => false,
            Curve::Milestones { .. } | Curve::Linear | Curve::Cosine | Curve::OneCycle { .. } => true,
        }
    }

    /// Whether the rate has fallen to the point where training ends.
    pub fn has_ended(&self, plateau: &PlateauState) -> bool {
        match self.curve {
            Curve::Plateau { stop_at, .. } => self.curve.factor(0, 0, plateau) <= stop_at,
            _ => false,
        }
    }
}

impl Curve {
    /// The factor of the base rate.
    fn factor(&self, step: usize, total: usize, plateau: &PlateauState) -> f64 {
        // From 0 to 1 over the run.
        let position = step.min(total) as f64 / total.max(1) as f64;
        match *self {
            Self::Constant => 1.,
            Self::Step { every, factor } => libm::pow(factor, (step / every.max(1)) as f64),
            Self::Milestones { factor } => match 4 * step as u128 / total.max(1) as u128 {
                0 | 1 => 1.,
                2 => factor,
                _ => factor * factor,
            },
            Self::Linear => 1. - position,
            Self::Cosine => half_wave(1., 0., position),
            Self::OneCycle { rise, start_divisor, end_divisor } => {
                // As in PyTorch, the peak falls between two steps unless `rise * total` is an integer.
                let last = total.saturating_sub(1) as f64;
                let peak = rise * total as f64 - 1.;
                let step = (step as f64).min(last);
                let start = 1. / start_divisor;
                if peak > 0. && step <= peak {
                    half_wave(start, 1., step / peak)
                } else if peak == last {
                    // A single step, which is the peak.
                    1.
                } else {
                    half_wave(1., start / end_divisor, (step - peak) / (last - peak))
                }
            }
            Self::Plateau { factor, .. } => libm::pow(factor, f64::from(plateau.reductions)),
        }
    }
}

/// Half a cosine wave from `start` at position 0 to `end` at position 1.
fn half_wave(start: f64, end: f64, position: f64) -> f64 {
    end + (start - end) / 2. * (1. + libm::cos(PI * position))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(schedule: impl Into<Schedule>, step: usize, total: usize) -> f64 {
        schedule.into().learning_rate(1., step, total, &PlateauState::default())
    }

    #[test]
    fn one_cycle_that_only_rises_has_the_base_rate_in_a_run_of_one_step() {
        let curve = Curve::OneCycle { rise: 1., start_divisor: 25., end_divisor: 1e4 };
        assert_eq!(rate(curve, 0, 1), 1.);
        assert!((rate(curve, 0, 2) - 1. / 25.).abs() < 1e-15);
        assert_eq!(rate(curve, 1, 2), 1.);
    }

    #[test]
    fn huge_step_counts_do_not_overflow() {
        let milestones = Curve::Milestones { factor: 0.5 };
        assert_eq!(rate(milestones, usize::MAX / 2 - 1, usize::MAX), 1.);
        assert_eq!(rate(milestones, usize::MAX / 2 + 1, usize::MAX), 0.5);
        assert_eq!(rate(milestones, usize::MAX, usize::MAX), 0.25);
        let warm_up = Schedule { warmup_steps: usize::MAX, curve: Curve::Constant };
        assert!(rate(warm_up, 0, 10) > 0.);

        let schedule = Schedule::from(Curve::Plateau { factor: 0.5, patience: 0, stop_at: 0. });
        let mut plateau = PlateauState { reductions: u32::MAX, ..PlateauState::default() };
        schedule.observe(&mut plateau, f64::NAN);
        schedule.observe(&mut plateau, f64::INFINITY);
        assert_eq!(plateau.best, None);
        assert_eq!(schedule.learning_rate(1., 0, 1, &plateau), 0.);
    }
}
