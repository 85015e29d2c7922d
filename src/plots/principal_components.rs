//! The two leading principal components of a set of vectors.

use crate::rng;
use rand::Rng;

/// A principal component.
#[derive(Debug)]
pub struct Component {
    /// Projection of each centred vector onto the component.
    pub scores: Vec<f64>,
    /// Fraction of the total variance that the component explains.
    pub share: f64,
}

/// Returns the two leading principal components of `vectors` `(count, size)`.
///
/// Pearson 1901; Hotelling 1933.
///
/// Components beyond the rank of the vectors are zero. The score with the largest absolute value is positive.
///
/// The scores are the eigenvectors of the `(count, count)` matrix of dot products of the centred vectors, each times the
/// square root of its eigenvalue (Gower 1966). Orthogonal iteration finds them (Golub and Van Loan, section 8.2). If the
/// second and the third component explain almost the same variance, it may stop before they are fully separated.
pub fn components(vectors: &[f32], size: usize) -> [Component; 2] {
    let count = vectors.len() / size;
    let mut gram = gram_matrix(&centred(vectors, size), size, count);
    let total: f64 = gram.iter().step_by(count + 1).sum();
    if total == 0.0 {
        return [(); 2].map(|()| Component { scores: vec![0.0; count], share: 0.0 });
    }
    // Keeps vectors in the null space of the matrix from becoming rounding errors.
    let shift = 1e-12 * total;
    gram.iter_mut().step_by(count + 1).for_each(|value| *value += shift);
    let (basis, values) = leading_eigenvectors(&gram, count);
    let mut values = values.into_iter();
    basis.map(|vector| {
        let variance = (values.next().unwrap_or_default() - shift).max(0.0);
        let largest = vector.iter().fold(0.0, |best: f64, x| if x.abs() > best.abs() { *x } else { best });
        let scale = variance.sqrt().copysign(largest);
        Component { scores: vector.iter().map(|x| scale * x).collect(), share: variance / total }
    })
}

/// Subtracts the mean vector.
fn centred(vectors: &[f32], size: usize) -> Vec<f64> {
    let count = vectors.len() / size;
    // Relative to the first vector: if all vectors are equal, the result is exactly 0.
    let differences =
        vectors.iter().enumerate().map(|(at, &value)| f64::from(value) - f64::from(vectors[at % size]));
    let mut centred: Vec<f64> = differences.collect();
    for column in 0..size {
        let mean = centred[column.min(count * size)..].iter().step_by(size).sum::<f64>() / count as f64;
        centred.iter_mut().skip(column).step_by(size).for_each(|value| *value -= mean);
    }
    centred
}

/// Returns the dot products `(count, count)` of all pairs of vectors.
fn gram_matrix(vectors: &[f64], size: usize, count: usize) -> Vec<f64> {
    let mut gram = vec![0.0; count * count];
    for (i, one) in vectors.chunks_exact(size).enumerate() {
        for (j, other) in vectors.chunks_exact(size).enumerate().take(i + 1) {
            gram[i * count + j] = dot(one, other);
            gram[j * count + i] = gram[i * count + j];
        }
    }
    gram
}

/// Returns the two leading eigenvectors and eigenvalues of a symmetric matrix by orthogonal iteration.
fn leading_eigenvectors(matrix: &[f64], count: usize) -> ([Vec<f64>; 2], [f64; 2]) {
    const ITERATIONS: usize = 10_000;
    let mut rng = rng::stream(0, "map");
    let mut images = [(); 2].map(|()| (0..count).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f64>>());
    let (mut basis, mut values) = (images.clone(), [0.0; 2]);
    for _ in 0..ITERATIONS {
        basis = orthonormal(images);
        images = basis.each_ref().map(|vector| product(matrix, vector));
        // Rotates the basis so that the matrix is diagonal on the plane that it spans.
        let [a, b, c] = [(0, 0), (0, 1), (1, 1)].map(|(i, j)| dot(&basis[i], &images[j]));
        let rotation = libm::sincos(0.5 * libm::atan2(2.0 * b, a - c));
        rotate(&mut basis, rotation);
        rotate(&mut images, rotation);
        values = [0, 1].map(|i| dot(&basis[i], &images[i]));
        let error = |i: usize| {
            let squares = basis[i].iter().zip(&images[i]).map(|(x, image)| (image - values[i] * x).powi(2));
            squares.sum::<f64>().sqrt()
        };
        if error(0).max(error(1)) <= 1e-10 * values[0] {
            break;
        }
    }
    (basis, values)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Multiplies a symmetric matrix by a vector.
fn product(matrix: &[f64], vector: &[f64]) -> Vec<f64> {
    let mut sum = vec![0.0; vector.len()];
    for (row, factor) in matrix.chunks_exact(vector.len()).zip(vector) {
        sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += factor * value);
    }
    sum
}

/// Orthonormalises two vectors by the Gram-Schmidt process.
fn orthonormal([mut first, mut second]: [Vec<f64>; 2]) -> [Vec<f64>; 2] {
    let normalise = |vector: &mut [f64]| {
        let length = dot(vector, vector).sqrt();
        vector.iter_mut().for_each(|x| *x /= length);
    };
    normalise(&mut first);
    let along = dot(&first, &second);
    second.iter_mut().zip(&first).for_each(|(x, first)| *x -= along * first);
    normalise(&mut second);
    [first, second]
}

fn rotate([first, second]: &mut [Vec<f64>; 2], (sin, cos): (f64, f64)) {
    for (x, y) in first.iter_mut().zip(second) {
        (*x, *y) = (cos * *x + sin * *y, cos * *y - sin * *x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_near(found: &[f64], expected: &[f64]) {
        let near =
            found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(near, "{found:?}, expected {expected:?}");
    }

    #[test]
    fn the_components_of_an_ellipse_are_its_axes() {
        let (sin, cos) = 0.5_f64.sin_cos();
        let turns = (0..16).map(|i| std::f64::consts::TAU * f64::from(i) / 16.0);
        let (along, across): (Vec<f64>, Vec<f64>) = turns.map(|t| (3.0 * t.cos(), t.sin())).unzip();
        let points: Vec<f32> = along
            .iter()
            .zip(&across)
            .flat_map(|(x, y)| [cos * x - sin * y, 100.0, sin * x + cos * y - 7.0].map(|value| value as f32))
            .collect();
        let [first, second] = components(&points, 3);
        assert_near(&[first.share, second.share], &[0.9, 0.1]);
        // Both ends of an axis are equally far from the centre, so the sign is arbitrary.
        for (found, expected) in [(first, along), (second, across)] {
            let sign = (found.scores[1] * expected[1]).signum();
            assert_near(&found.scores, &expected.iter().map(|x| sign * x).collect::<Vec<f64>>());
        }
    }

    #[test]
    fn the_components_equal_those_of_a_singular_value_decomposition() {
        let vectors = [1.0, 2.0, 0.0, 0.0, -1.0, 3.0, 2.0, 2.0, 1.0, -1.0, 0.5, -2.0, 4.0, 1.0, 1.0];
        let [first, second] = components(&vectors, 3);
        // numpy.linalg.svd of the centred vectors: U * S, with the signs of this module; S**2 / sum(S**2).
        let expected = [0.423733182, -0.314769063, -0.971067966, 3.34188058, -2.47977673];
        assert_near(&first.scores, &expected);
        assert_near(&second.scores, &[-0.964425188, 3.27275423, -0.731908871, -0.546422164, -1.02999801]);
        assert_near(&[first.share, second.share], &[0.5420778, 0.39579532]);
    }

    #[test]
    fn vectors_of_rank_0_or_1_have_finite_scores() {
        for (vectors, size, shares) in [
            (vec![], 3, [0.0, 0.0]),
            (vec![0.1, 0.2], 2, [0.0, 0.0]),
            ([0.1, 0.2].repeat(9), 2, [0.0, 0.0]),
            (vec![2.0, -1.0, 0.5], 1, [1.0, 0.0]),
            (vec![1.0, 2.0, 2.0, 4.0, 4.0, 8.0], 2, [1.0, 0.0]),
            (vec![3e38, -3e38, -3e38, 3e38], 2, [1.0, 0.0]),
            (vec![1e-40, 0.0], 1, [1.0, 0.0]),
        ] {
            let components = components(&vectors, size);
            assert_near(&components.each_ref().map(|component| component.share), &shares);
            assert!(components.iter().flat_map(|component| &component.scores).all(|score| score.is_finite()));
        }
    }
}
