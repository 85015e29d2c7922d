//! The axes of charts: ranges, ticks and their labels.

use super::svg::include;

/// The scale of an axis.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Scale {
    /// Equal distances for equal differences.
    #[default]
    Linear,
    /// Equal distances for equal ratios; values must be positive.
    Log,
    /// One name for each of the positions 0, 1, ...
    Names(Vec<String>),
}

/// An axis over a set of values. Positions on it are values, or the base-10 logarithms of values.
pub(super) struct Axis<'a> {
    scale: &'a Scale,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) ticks: Vec<f64>,
    /// Digits of a label after the decimal point; `None` for powers of ten and their multiples.
    digits: Option<usize>,
}

impl<'a> Axis<'a> {
    /// Covers `values`, with `margin` of their range at both ends.
    pub(super) fn new(scale: &'a Scale, values: &[f64], margin: f64) -> Self {
        if let Scale::Names(names) = scale {
            let ticks = (0..names.len()).map(|at| at as f64).collect();
            return Self { scale, low: -0.5, high: names.len().max(1) as f64 - 0.5, ticks, digits: None };
        }
        let positions: Vec<f64> = values.iter().filter_map(|&value| position(scale, value)).collect();
        let (low, high) = positions.iter().copied().fold(None, include).unwrap_or((0.0, 1.0));
        let largest = low.abs().max(high.abs());
        let (low, high) = match (scale, high - low <= 1e-6 * largest) {
            _ if low == 0.0 && high == 0.0 => (0.0, 1.0),
            (Scale::Log, true) => (low - 0.5, high + 0.5),
            // Around a single x, and around equal values.
            (_, true) if margin == 0.0 => (low - 1.0, high + 1.0),
            (_, true) => (low - (0.02 * largest).max(1e-6), high + (0.02 * largest).max(1e-6)),
            _ => (low - margin * (high - low), high + margin * (high - low)),
        };
        let is_whole = positions.iter().all(|position| position.fract() == 0.0);
        let (ticks, digits) = match scale {
            Scale::Log => log_ticks(low, high),
            _ => linear_ticks(low, high, if is_whole { 1.0 } else { 0.0 }),
        };
        Self { scale, low, high, ticks, digits }
    }

    /// The position of a value; `None` if it can't be shown.
    pub(super) fn position(&self, value: f64) -> Option<f64> {
        position(self.scale, value)
    }

    /// The label of a tick.
    pub(super) fn label(&self, position: f64) -> String {
        match self.scale {
            Scale::Names(names) => names.get(position.round() as usize).cloned().unwrap_or_default(),
            Scale::Log => {
                let value = libm::exp10(position);
                match (position, self.digits) {
                    (-4.01..5.01, Some(digits)) => format!("{value:.digits$}"),
                    (-3.01..-0.01, None) => format!("{value:.*}", (-position).ceil() as usize),
                    (-0.01..5.01, None) => format!("{value:.0}"),
                    (_, Some(_)) => format!("{value:.2e}"),
                    _ => format!("{value:.0e}"),
                }
            }
            Scale::Linear if self.low.abs().max(self.high.abs()) >= 1e6 => format!("{position:.1e}"),
            // Without the sign of -0.
            Scale::Linear => format!("{:.*}", self.digits.unwrap_or(0), position + 0.0),
        }
    }
}

fn position(scale: &Scale, value: f64) -> Option<f64> {
    match scale {
        _ if value.is_nan() || value.abs() > f64::from(f32::MAX) => None,
        Scale::Log => (value > 1e-300).then(|| libm::log10(value)),
        _ => Some(value),
    }
}

/// Ticks at multiples of 1, 2 or 5 times a power of ten, at least `least`.
///
/// Also returns the number of digits that tell them apart.
fn linear_ticks(low: f64, high: f64, least: f64) -> (Vec<f64>, Option<usize>) {
    let rough = (high - low) / 7.0;
    let power = libm::exp10(libm::floor(libm::log10(rough)));
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|&step| step >= rough);
    let step = step.unwrap_or(10.0 * power).max(least);
    let digits = (-libm::floor(libm::log10(step) + 1e-9)).clamp(0.0, 12.0) as usize;
    let first = libm::ceil(low / step - 1e-9);
    let ticks =
        (0..=20).map(|at| step * (first + f64::from(at))).take_while(|&tick| tick <= high + 1e-9 * step);
    (ticks.collect(), Some(digits))
}

/// Powers of ten and, over less than two and a half decades, twice and five times these.
///
/// If the range has fewer than two of them, the ticks are linear.
fn log_ticks(low: f64, high: f64) -> (Vec<f64>, Option<usize>) {
    let factors: &[f64] = if high - low < 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let every = libm::ceil((high - low) / 9.0).max(1.0) as i64;
    let powers = (low.floor() as i64..=high.ceil() as i64).filter(|power| power.rem_euclid(every) == 0);
    let ticks: Vec<f64> = powers
        .flat_map(|power| factors.iter().map(move |&factor| power as f64 + libm::log10(factor)))
        .filter(|tick| (low - 1e-9..=high + 1e-9).contains(tick))
        .collect();
    if ticks.len() > 1 {
        return (ticks, None);
    }
    let (ticks, digits) = linear_ticks(libm::exp10(low), libm::exp10(high), 0.0);
    (ticks.into_iter().map(libm::log10).collect(), digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale, values: &[f64], margin: f64) -> Vec<String> {
        let axis = Axis::new(&scale, values, margin);
        axis.ticks.iter().map(|&tick| axis.label(tick)).collect()
    }

    #[test]
    fn ticks_are_round_and_their_labels_short() {
        let cases: [(Scale, &[f64], &[&str]); 8] = [
            (Scale::Linear, &[1.0, 30.0], &["5", "10", "15", "20", "25", "30"]),
            (Scale::Linear, &[1.0, 3.0], &["1", "2", "3"]),
            (
                Scale::Linear,
                &[-0.1, 0.25],
                &["-0.10", "-0.05", "0.00", "0.05", "0.10", "0.15", "0.20", "0.25"],
            ),
            (Scale::Log, &[0.005, 0.5], &["0.005", "0.01", "0.02", "0.05", "0.1", "0.2", "0.5"]),
            (
                Scale::Log,
                &[1e-7, 0.0, 10.0],
                &["1e-7", "1e-6", "1e-5", "1e-4", "0.001", "0.01", "0.1", "1", "10"],
            ),
            (Scale::Log, &[2.1, 4.9], &["2.5", "3.0", "3.5", "4.0", "4.5"]),
            (Scale::Log, &[0.31, 0.33], &["0.310", "0.315", "0.320", "0.325", "0.330"]),
            (Scale::Names(vec!["a".into(), "b".into()]), &[], &["a", "b"]),
        ];
        for (scale, values, expected) in cases {
            assert_eq!(labels(scale, values, 0.0), expected);
        }
    }
}
