//! The direction of Newton-CG (Nocedal and Wright 2006, section 7.1, algorithm 7.1).

use super::objective::{Evaluate, Point};
use crate::kernels::cpu::optimizer::{add_scaled, dot, sum_squares};
use candle_core::Result;

/// Largest residual, relative to the gradient, at which the conjugate gradients stop.
///
/// With 0.5, which the book suggests, steps along a curved valley are little better than steepest descent.
const COARSEST: f64 = 0.01;

/// Returns an approximate solution of `H d = -g`, with the gradient `g` and the Hessian `H` at `at`.
///
/// Conjugate gradients end after `iterations` products with the Hessian, or when the residual is at most `min(0.01,
/// |g|) |g|`, which makes Newton's method converge quadratically. If the curvature along a direction is not positive,
/// the result is the solution so far; at the first iteration, it is `-g`. It is always a direction of descent.
///
/// # Errors
/// Fails if `evaluate` fails.
pub(super) fn direction(
    evaluate: &mut Evaluate,
    at: &Point,
    iterations: usize,
    roundoff: f64,
) -> Result<Vec<f64>> {
    let mut residual = at.gradient.clone();
    let mut squares = sum_squares(&residual);
    let tolerance = squares.sqrt().min(COARSEST) * squares.sqrt();
    let descent: Vec<f64> = residual.iter().map(|r| -r).collect();
    let mut solution = vec![0.; descent.len()];
    let mut search = descent.clone();
    for iteration in 0..iterations {
        let product = hessian_product(evaluate, at, &search, roundoff)?;
        let curvature = dot(&search, &product);
        // Also if it is not a number.
        if curvature.is_nan() || curvature <= 0. {
            return Ok(if iteration == 0 { descent } else { solution });
        }
        let length = squares / curvature;
        add_scaled(&mut solution, length, &search);
        add_scaled(&mut residual, length, &product);
        let before = std::mem::replace(&mut squares, sum_squares(&residual));
        if squares.sqrt() <= tolerance {
            break;
        }
        let kept = squares / before;
        search.iter_mut().zip(&residual).for_each(|(s, r)| *s = kept * *s - r);
    }
    Ok(solution)
}

/// Returns the product of the Hessian at `at` and `vector`, by central differences (section 8.1).
///
/// Two gradients at a distance of `cube root of roundoff * (1 + |x|)` balance the truncation error, which is quadratic
/// in the distance, and the rounding error. The exact product needs a second derivative of each operation (Pearlmutter
/// 1994, "Fast exact multiplication by the Hessian"), which candle's graph does not have for custom operations.
pub(super) fn hessian_product(
    evaluate: &mut Evaluate,
    at: &Point,
    vector: &[f64],
    roundoff: f64,
) -> Result<Vec<f64>> {
    let norm = sum_squares(vector).sqrt();
    if norm == 0. {
        return Ok(vec![0.; vector.len()]);
    }
    let step = libm::cbrt(roundoff) * (1. + sum_squares(&at.x).sqrt()) / norm;
    let mut product = evaluate(at.moved(step, vector))?.gradient;
    let behind = evaluate(at.moved(-step, vector))?.gradient;
    add_scaled(&mut product, -1., &behind);
    product.iter_mut().for_each(|p| *p /= 2. * step);
    Ok(product)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value and the gradient of Rosenbrock's function, and the rows of its Hessian.
    fn rosenbrock(x: &[f64]) -> (Point, [[f64; 2]; 2]) {
        let (a, b) = (x[0], x[1]);
        let value = 100. * (b - a * a).powi(2) + (1. - a).powi(2);
        let gradient = vec![-400. * a * (b - a * a) - 2. * (1. - a), 200. * (b - a * a)];
        let hessian = [[1200. * a * a - 400. * b + 2., -400. * a], [-400. * a, 200.]];
        (Point { x: x.to_vec(), loss: value, value, gradient }, hessian)
    }

    #[test]
    fn products_with_the_hessian_are_close_to_exact_ones() -> Result<()> {
        let mut evaluate = |x: Vec<f64>| Ok(rosenbrock(&x).0);
        for x in [[-1.2, 1.], [0., 0.], [3., -7.]] {
            let (at, hessian) = rosenbrock(&x);
            for vector in [[1., 0.], [-0.3, 2.], [1e-8, 3e-8], [1e6, 1e7]] {
                let product = hessian_product(&mut evaluate, &at, &vector, f64::EPSILON)?;
                let exact = hessian.map(|row| dot(&row, &vector));
                let norm = sum_squares(&exact).sqrt();
                let error = product.iter().zip(exact).map(|(p, e)| (p - e).abs()).fold(0., f64::max);
                assert!(error < 1e-7 * norm, "{product:?}, expected {exact:?}");
            }
        }
        assert_eq!(hessian_product(&mut evaluate, &rosenbrock(&[1., 2.]).0, &[0., 0.], 1e-16)?, [0., 0.]);
        Ok(())
    }

    #[test]
    fn negative_curvature_gives_a_direction_of_descent() -> Result<()> {
        // x² - y², whose Hessian is indefinite.
        let mut evaluate = |x: Vec<f64>| {
            let value = x[0] * x[0] - x[1] * x[1];
            Ok(Point { gradient: vec![2. * x[0], -2. * x[1]], x, loss: value, value })
        };
        for x in [[0., 1.], [1., 1.], [1., 0.1], [1., 0.]] {
            let at = evaluate(x.to_vec())?;
            let direction = direction(&mut evaluate, &at, 10, f64::EPSILON)?;
            assert!(dot(&direction, &at.gradient) < 0., "{x:?}: {direction:?}");
        }
        Ok(())
    }
}
