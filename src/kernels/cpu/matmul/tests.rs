//! Tests of the matrix products.

use super::*;
use crate::rng;
use rand::Rng;

/// Integers, whose products and sums are exact in any order.
fn whole(len: usize, purpose: &str) -> Vec<f32> {
    let mut rng = rng::stream(1, purpose);
    (0..len).map(|_| rng.random_range(-3i32..=3) as f32).collect()
}

#[test]
fn products_of_any_shape_match_the_definition() {
    let sizes = [(1, 1, 1), (3, 0, 5), (8, 7, 48), (9, 130, 49), (25, 128, 65), (50, 600, 17), (120, 3, 200)];
    for (rows, depth, columns) in sizes {
        let (a, b) = (whole(rows * depth, "a"), whole(depth * columns, "b"));
        let start = whole(rows * columns, "c");
        let expected = |i: usize, j: usize| -> f32 {
            start[i * columns + j] + (0..depth).map(|k| a[i * depth + k] * b[k * columns + j]).sum::<f32>()
        };
        let expected: Vec<f32> = (0..rows * columns).map(|at| expected(at / columns, at % columns)).collect();
        let straight = Panels::new((depth, columns), |k| &b[k * columns..]);
        let transpose = |m: &[f32], rows: usize, columns: usize| -> Vec<f32> {
            (0..m.len()).map(|at| m[at % rows * columns + at / rows]).collect()
        };
        let turned = transpose(&b, depth, columns);
        let turned = Panels::transposed((depth, columns), |j| &turned[j * depth..]);
        for right in [&straight, &turned] {
            let mut c = start.clone();
            gemm((&a, depth), right, &mut c, columns, Init::Accumulate);
            assert_eq!(c, expected, "{rows} x {depth} x {columns}");
        }
        let left = transpose(&a, rows, depth);
        let right = |k: usize| &b[k * columns..];
        let products = gemm_transposed((&left, rows), [(&right, columns), (&right, 1)], (depth, rows));
        let sums: Vec<f32> = products[0].iter().zip(&start).map(|(sum, start)| sum + start).collect();
        assert_eq!(sums, expected, "transposed, {rows} x {depth} x {columns}");
        assert!(products[1].iter().eq(products[0].iter().step_by(columns)));
        let mut sums = vec![f32::NAN; rows * columns];
        gemm((&a, depth), &straight, &mut sums, columns, Init::Zero);
        let from_start: Vec<f32> = sums.iter().zip(&start).map(|(sum, start)| sum + start).collect();
        assert_eq!(from_start, expected);
    }
}

#[test]
fn products_by_columns_match_products_by_rows() {
    let sizes = [(1, 1, 1), (9, 130, 49), (50, 600, 17), (5, 300, 500), (30, 128, 1000), (8, 7, 48)];
    for (rows, depth, columns) in sizes {
        let (a, b) = (whole(rows * depth, "a"), whole(depth * columns, "b"));
        let bias = &whole(columns, "bias")[..];
        let pack = |depths: Range<usize>, part: Range<usize>| {
            let row = |k: usize| &b[(depths.start + k) * columns + part.start..];
            Panels::new((depths.len(), part.len()), row)
        };
        let panels = Panels::new((depth, columns), |k| &b[k * columns..]);
        for (bias, init) in [(bias, Init::Bias(bias)), (&[], Init::Zero)] {
            let mut expected = vec![0.; rows * columns];
            gemm((&a, depth), &panels, &mut expected, columns, init);
            assert_eq!(gemm_by_columns(&a, pack, [rows, depth, columns], bias), expected);
        }
    }
}
