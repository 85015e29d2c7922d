//! The element types of the CPU kernels and their elementary functions.

use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

/// The numbers the CPU kernels compute with: `f32`, and `f64` so that gradients can be checked by differences.
pub(crate) trait Real:
    Copy
    + Default
    + PartialOrd
    + Debug
    + Send
    + Sync
    + 'static
    + Neg<Output = Self>
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + DivAssign
{
    const ZERO: Self;
    const ONE: Self;

    /// The nearest value to a constant.
    fn of(x: f64) -> Self;
    fn as_f64(self) -> f64;

    fn exp(self) -> Self;
    fn tanh(self) -> Self;
    fn ln(self) -> Self;
    fn ln_1p(self) -> Self;
    fn sqrt(self) -> Self;
    fn abs(self) -> Self;
    fn is_nan(self) -> bool;

    /// `max(0, x)`; NaN stays NaN.
    #[inline(always)]
    fn relu(self) -> Self {
        if self <= Self::ZERO { Self::ZERO } else { self }
    }

    /// The logistic function, `1 / (1 + exp(-x))`.
    #[inline(always)]
    fn sigmoid(self) -> Self {
        Self::ONE / (Self::ONE + (-self).exp())
    }
}

macro_rules! real {
    ($t:ty, $exp:expr, $tanh:expr) => {
        impl Real for $t {
            const ZERO: Self = 0.;
            const ONE: Self = 1.;

            #[inline(always)]
            fn of(x: f64) -> Self {
                x as Self
            }
            #[inline(always)]
            fn as_f64(self) -> f64 {
                self as f64
            }

            #[inline(always)]
            fn exp(self) -> Self {
                $exp(self)
            }
            #[inline(always)]
            fn tanh(self) -> Self {
                $tanh(self)
            }
            #[inline(always)]
            fn ln(self) -> Self {
                self.ln()
            }
            #[inline(always)]
            fn ln_1p(self) -> Self {
                self.ln_1p()
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                self.sqrt()
            }
            #[inline(always)]
            fn abs(self) -> Self {
                self.abs()
            }
            #[inline(always)]
            fn is_nan(self) -> bool {
                self.is_nan()
            }
        }
    };
}
real!(f32, exp, tanh);
real!(f64, f64::exp, f64::tanh);

/// `x = n * ln(2) + r` with a whole n: the two factors of 2^n, and `exp(r) - 1`. In plain arithmetic, so that loops
/// over it become vector instructions.
#[inline(always)]
fn exp_parts(x: f32) -> (f32, f32, f32) {
    // Adding it leaves the nearest whole number in the low bits.
    const ROUND: f32 = 12_582_912.;
    // ln(2), of which the first part has so few bits that its product with n is exact.
    const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN_2.0 - n * LN_2.1;
    let series = [1. / 5040., 1. / 720., 1. / 120., 1. / 24., 1. / 6., 0.5, 1.];
    let mut value = 0.;
    for coefficient in series {
        value = value * r + coefficient;
    }
    // In two factors, as 2^n itself may be too large or too small for a normal number.
    let n = rounded.to_bits() as i32 - ROUND.to_bits() as i32;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    (power(n >> 1), power(n - (n >> 1)), value * r)
}

/// Within 2 units in the last place.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let x = if x > 89. { 89. } else { x };
    let x = if x < -104. { -104. } else { x };
    let (a, b, value) = exp_parts(x);
    (1. + value) * a * b
}

/// By `exp(2x) - 1`, accurate near 0 too: within 4 units in the last place.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    let double = 2. * x.abs();
    let (a, b, value) = exp_parts(if double > 20. { 20. } else { double });
    let power = a * b;
    let exp_m1 = power * value + (power - 1.);
    (exp_m1 / (exp_m1 + 2.)).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::Real;

    #[test]
    fn exp_and_tanh_in_f32_are_right_everywhere() {
        let near = |found: f32, exact: f64| {
            let unit = f64::from(f32::EPSILON) * exact.abs().max(f64::from(f32::MIN_POSITIVE));
            (f64::from(found) - exact).abs() <= 4. * unit
        };
        for i in -1_100_000..=1_100_000 {
            let x = i as f32 * 1e-4;
            let exact = (f64::from(x).exp(), f64::from(x).tanh());
            let overflow = exact.0 > f64::from(f32::MAX);
            assert!(near(Real::exp(x), exact.0) || overflow && Real::exp(x) == f32::INFINITY, "exp({x})");
            assert!(near(Real::tanh(x), exact.1), "tanh({x}) = {}", Real::tanh(x));
        }
        for (x, exp, tanh) in
            [(f32::INFINITY, f32::INFINITY, 1.), (f32::NEG_INFINITY, 0., -1.), (1e-30, 1., 1e-30)]
        {
            assert_eq!((Real::exp(x), Real::tanh(x)), (exp, tanh));
        }
        assert!(Real::exp(f32::NAN).is_nan() && Real::tanh(f32::NAN).is_nan());
    }
}
