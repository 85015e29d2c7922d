//! A line search for the strong Wolfe conditions (Nocedal and Wright 2006, algorithms 3.5 and 3.6).
//!
//! Constants, interpolation and safeguards are PyTorch's, so that both take the same steps.

use super::objective::{Evaluate, Point, largest};
use crate::kernels::cpu::optimizer::dot;
use candle_core::Result;

/// Fraction of the decrease predicted by the slope that a step must reach: `c1`, sufficient decrease.
const DECREASE: f64 = 1e-4;
/// Fraction of the initial slope that may remain: `c2`, curvature.
const CURVATURE: f64 = 0.9;
/// Trial steps at most, after the first.
const TRIALS: usize = 25;

/// A step length that was tried.
struct Trial {
    step: f64,
    /// Infinite if the function has no finite value there.
    value: f64,
    /// Derivative along the direction.
    slope: f64,
    /// None at the start.
    point: Option<Point>,
}

/// A search along `direction` from `start`.
struct Search<'a, 'b> {
    evaluate: &'a mut Evaluate<'b>,
    start: &'a Point,
    direction: &'a [f64],
    /// Derivative along the direction at the start, which is below 0.
    slope: f64,
    /// Trials after the first.
    trials: usize,
}

/// Returns a point on the ray from `start` along `direction` that meets the strong Wolfe conditions.
///
/// `slope` is the derivative along the direction, below 0, and `first` the first step length to try. The search fails
/// if the interval of steps shrinks to `tolerance` (the largest change of an element) or trials run out. The result is
/// then the best point found, or `None` if that is the start.
///
/// # Errors
/// Fails if `evaluate` fails.
pub(super) fn strong_wolfe(
    evaluate: &mut Evaluate,
    start: &Point,
    direction: &[f64],
    slope: f64,
    first: f64,
    tolerance: f64,
) -> Result<Option<Point>> {
    let mut search = Search { evaluate, start, direction, slope, trials: 0 };
    let mut previous = Trial { step: 0., value: start.value, slope, point: None };
    let mut trial = search.try_step(first)?;
    loop {
        if search.trials == TRIALS {
            return Ok(trial.point.filter(|_| trial.value < start.value));
        }
        let rises = search.trials > 1 && trial.value >= previous.value;
        if search.decreases_too_little(&trial) || rises {
            break;
        }
        if search.is_flat(&trial) {
            return Ok(trial.point);
        }
        if trial.slope >= 0. {
            break;
        }
        let bounds = (trial.step + 0.01 * (trial.step - previous.step), 10. * trial.step);
        let step = cubic_minimum(&previous, &trial, bounds);
        previous = std::mem::replace(&mut trial, search.try_step(step)?);
        search.trials += 1;
    }
    search.zoom([previous, trial], tolerance)
}

impl Search<'_, '_> {
    fn try_step(&mut self, step: f64) -> Result<Trial> {
        let point = (self.evaluate)(self.start.moved(step, self.direction))?;
        let value = if point.value.is_finite() { point.value } else { f64::INFINITY };
        let slope = dot(&point.gradient, self.direction);
        Ok(Trial { step, value, slope, point: Some(point) })
    }

    /// Whether `trial` violates the condition of sufficient decrease.
    fn decreases_too_little(&self, trial: &Trial) -> bool {
        trial.value > self.start.value + DECREASE * trial.step * self.slope
    }

    /// Whether `trial` meets the curvature condition.
    fn is_flat(&self, trial: &Trial) -> bool {
        trial.slope.abs() <= -CURVATURE * self.slope
    }

    /// Shrinks the interval between two trials until its better end meets the conditions; returns that end.
    fn zoom(mut self, mut bracket: [Trial; 2], tolerance: f64) -> Result<Option<Point>> {
        let better = |bracket: &[Trial; 2]| usize::from(bracket[0].value > bracket[1].value);
        let largest = largest(self.direction);
        let mut low = better(&bracket);
        let mut was_near_end = false;
        while self.trials < TRIALS && (bracket[1].step - bracket[0].step).abs() * largest >= tolerance {
            let ends = bracket.each_ref().map(|trial| trial.step);
            let (left, right) = (ends[0].min(ends[1]), ends[0].max(ends[1]));
            let mut step = cubic_minimum(&bracket[0], &bracket[1], (left, right));
            // A step too near to an end shrinks the interval too little. The second time, move it away.
            let margin = 0.1 * (right - left);
            let is_near_end = (right - step).min(step - left) < margin;
            let moves = is_near_end && (was_near_end || step >= right || step <= left);
            if moves {
                let is_right = (step - right).abs() < (step - left).abs();
                step = if is_right { right - margin } else { left + margin };
            }
            was_near_end = is_near_end && !moves;
            let trial = self.try_step(step)?;
            self.trials += 1;
            let high = 1 - low;
            if self.decreases_too_little(&trial) || trial.value >= bracket[low].value {
                bracket[high] = trial;
                low = better(&bracket);
                continue;
            }
            if self.is_flat(&trial) {
                return Ok(trial.point);
            }
            if trial.slope * (bracket[high].step - bracket[low].step) >= 0. {
                // The minimum lies between the trial and the better end so far, which becomes the other end.
                bracket.swap(0, 1);
            }
            bracket[low] = trial;
        }
        let [first, second] = bracket;
        Ok(if low == 0 { first.point } else { second.point })
    }
}

/// Returns the minimum, within `bounds`, of the cubic through the values and slopes of two trials.
///
/// Returns the middle if there is no minimum.
fn cubic_minimum(a: &Trial, b: &Trial, (low, high): (f64, f64)) -> f64 {
    let (a, b) = if a.step <= b.step { (a, b) } else { (b, a) };
    let d1 = a.slope + b.slope - 3. * (a.value - b.value) / (a.step - b.step);
    // Not a number if there is no minimum or a value is infinite.
    let d2 = (d1 * d1 - a.slope * b.slope).sqrt();
    let minimum = b.step - (b.step - a.step) * ((b.slope + d2 - d1) / (b.slope - a.slope + 2. * d2));
    if minimum.is_nan() { (low + high) / 2. } else { minimum.max(low).min(high) }
}
