//! The element types of the CPU kernels and their elementary functions.
//!
//! The functions are plain arithmetic or come from the crate `libm`, never from the platform's library, which picks its
//! code by processor. Results are therefore the same to the bit everywhere.

use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

/// An element type of the CPU kernels: `f32`, or `f64`, which checks gradients by finite differences.
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

    /// The value nearest to `x`.
    fn of(x: f64) -> Self;

    /// The same value as `f64`.
    fn as_f64(self) -> f64;

    fn exp(self) -> Self;

    /// `exp(x)` for `x <= 0`. A result below the normal numbers may be zero.
    fn exp_non_positive(self) -> Self;

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
    ($t:ty, $exp:expr, $exp_non_positive:expr, $tanh:expr, $ln:expr, $ln_1p:expr) => {
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
            fn exp_non_positive(self) -> Self {
                $exp_non_positive(self)
            }
            #[inline(always)]
            fn tanh(self) -> Self {
                $tanh(self)
            }
            #[inline(always)]
            fn ln(self) -> Self {
                $ln(self)
            }
            #[inline(always)]
            fn ln_1p(self) -> Self {
                $ln_1p(self)
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
real!(f32, exp, exp_non_positive, tanh, libm::logf, libm::log1pf);
real!(f64, libm::exp, libm::exp, libm::tanh, libm::log, libm::log1p);

/// Splits `x = n * ln(2) + r` with an integer n, and returns n and `exp(r) - 1`.
///
/// Plain arithmetic without branches, so that the compiler vectorises loops over it.
#[inline(always)]
fn exp_parts(x: f32) -> (i32, f32) {
    // Adding this leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.;
    // ln(2) in two parts. The first has few enough bits for an exact product with n.
    const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN_2.0 - n * LN_2.1;
    let series = [1. / 5040., 1. / 720., 1. / 120., 1. / 24., 1. / 6., 0.5, 1.];
    let mut value = 0.;
    for coefficient in series {
        value = value * r + coefficient;
    }
    ((rounded.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32), value * r)
}

/// 2^n, for an n from -126 to 127.
#[inline(always)]
fn power(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// `exp(x)` within 2 units in the last place.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let x = if x > 89. { 89. } else { x };
    let x = if x < -104. { -104. } else { x };
    let (n, value) = exp_parts(x);
    // Two factors, as 2^n itself may overflow or underflow.
    (1. + value) * power(n >> 1) * power(n - (n >> 1))
}

/// `exp(x)` within 2 units in the last place, or zero for an `x` so small that 2^n is not a normal number.
#[inline(always)]
fn exp_non_positive(x: f32) -> f32 {
    let (n, value) = exp_parts(x);
    if x < -87.336 { 0. } else { (1. + value) * power(n) }
}

/// `tanh(x)` within 4 units in the last place, by `exp(2x) - 1`, which is accurate near 0, too.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    let double = 2. * x.abs();
    let (n, value) = exp_parts(if double > 20. { 20. } else { double });
    let power = power(n);
    let exp_m1 = power * value + (power - 1.);
    (exp_m1 / (exp_m1 + 2.)).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::Real;

    #[test]
    fn exp_and_tanh_in_f32_are_within_four_units_in_the_last_place() {
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
        for i in 0..=874_000 {
            let x = i as f32 * -1e-4;
            let exact = if x < -87.336 { 0. } else { f64::from(x).exp() };
            assert!(near(x.exp_non_positive(), exact), "exp({x})");
        }
        assert!(f32::NEG_INFINITY.exp_non_positive() == 0. && f32::NAN.exp_non_positive().is_nan());
        assert!(Real::exp(f32::NAN).is_nan() && Real::tanh(f32::NAN).is_nan());
    }
}
