//! NaN, infinities, large values, empty tensors and absurd sizes, in the kernels and the definitions.

use super::*;
use candle_textbook::ops::ConvFilters;

/// The output of `f` and the gradient of its input.
fn output_and_gradient(f: &Op, input: &Tensor) -> Result<[Vec<f64>; 2]> {
    let found = run(f, std::slice::from_ref(input), Some(&f(std::slice::from_ref(input))?.ones_like()?))?;
    Ok([values(&found[0])?, values(&found[1])?])
}

#[test]
fn sigmoid_cross_entropy_is_accurate_for_large_logits() -> Result<()> {
    let targets = Tensor::new(&[1u32], &CPU)?;
    for x in [15f64, 100., -15., -1e4] {
        let expected = (-x).max(0.) + (-x.abs()).exp().ln_1p();
        let exact_gradient = -1. / (1. + x.exp());
        // The other logit adds a loss of exp(-1000), which is 0.
        let logits = Tensor::new(&[[-1000., x]], &CPU)?;
        for (name, kernel, definition) in
            losses(&targets).into_iter().filter(|(name, ..)| name.starts_with("sigmoid"))
        {
            for f in [kernel, definition] {
                let [loss, gradient] = output_and_gradient(&f, &logits)?;
                assert!((loss[0] / expected - 1.).abs() < 1e-9, "{name} of {x}: {loss:?}");
                assert!((gradient[1] / exact_gradient - 1.).abs() < 1e-9, "{name} of {x}: {gradient:?}");
                let [loss, gradient] = output_and_gradient(&f, &logits.to_dtype(DType::F32)?)?;
                let tiny = 1e-40;
                assert!(
                    (loss[0] - expected).abs() <= 1e-6 * expected + tiny,
                    "{name} of {x} in f32: {loss:?}"
                );
                let error = (gradient[1] - exact_gradient).abs();
                assert!(error <= -1e-6 * exact_gradient + tiny, "{name} of {x} in f32: {gradient:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn losses_ignore_logits_of_minus_infinity() -> Result<()> {
    let inf = f64::INFINITY;
    let targets = Tensor::new(&[2u32, 0], &CPU)?;
    let masked = Tensor::new(&[[0.5, -inf, 1.], [2., -inf, -1.]], &CPU)?;
    let finite = Tensor::new(&[[0.5, -1000., 1.], [2., -1000., -1.]], &CPU)?;
    for (name, kernel, definition) in
        losses(&targets).into_iter().filter(|(name, ..)| !name.starts_with("smoothed"))
    {
        let expected = output_and_gradient(&kernel, &finite)?;
        for f in [kernel, definition] {
            let found = output_and_gradient(&f, &masked)?;
            let near =
                found.iter().flatten().zip(expected.iter().flatten()).all(|(a, b)| (a - b).abs() < 1e-12);
            assert!(near, "{name}: found {found:?}, expected {expected:?}");
        }
    }
    Ok(())
}

#[test]
fn pooling_propagates_nan_and_infinities_like_the_reference() -> Result<()> {
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    let xs = Tensor::new(
        &[
            [nan, 1., 3., 2., 5.],
            [0., 2., nan, nan, 5.],
            [-inf, -inf, inf, 0., 0.],
            [-inf, -inf, 0., 0., 4.],
            [1., 0., 4., 0., 0.],
        ],
        &CPU,
    )?
    .reshape((1, 1, 5, 5))?;
    for window in [Pool2dConfig::square(2), window((3, 3), (2, 2), (1, 1)), window((1, 2), (1, 1), (0, 1))] {
        for (name, kernel, definition) in pools(window) {
            let inputs = std::slice::from_ref(&xs);
            let grad = kernel(inputs)?.ones_like()?;
            let [found, expected] = [kernel, definition].map(|f| run(&f, inputs, Some(&grad)));
            for (found, expected) in found?.iter().zip(&expected?) {
                let (found, expected) = (values(found)?, values(expected)?);
                let same = |(a, b): (&f64, &f64)| a == b || a.is_nan() && b.is_nan() || (a - b).abs() < 1e-12;
                let all_same = found.iter().zip(&expected).all(same);
                assert!(all_same, "{name} {window:?}: found {found:?}, expected {expected:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn the_maximum_of_a_window_with_nan_is_nan_and_its_gradient_goes_there() -> Result<()> {
    let xs = Tensor::new(&[[[[3f64, f64::NAN], [1., 2.]]]], &CPU)?;
    let [(_, kernel, definition), ..] = pools(Pool2dConfig::square(2));
    for f in [kernel, definition] {
        let [ys, grad] = output_and_gradient(&f, &xs)?;
        assert!(ys[0].is_nan());
        assert_eq!(grad, [0., 1., 0., 0.]);
    }
    Ok(())
}

#[test]
fn the_gradient_of_l2_pooling_shows_nan_and_is_zero_for_zeros() -> Result<()> {
    let xs = Tensor::new(&[[[[f64::NAN, 1., 0., 0.], [2., 3., 0., 0.]]]], &CPU)?;
    let [.., (_, kernel, definition)] = pools(Pool2dConfig::square(2));
    for f in [kernel, definition] {
        let [ys, grad] = output_and_gradient(&f, &xs)?;
        assert!(ys[0].is_nan() && ys[1] == 0.);
        let [zeros, nans]: [Vec<f64>; 2] =
            [2, 0].map(|from| grad.chunks(4).flat_map(|row| &row[from..from + 2]).copied().collect());
        assert!(nans.iter().all(|x| x.is_nan()) && zeros == [0.; 4], "{grad:?}");
    }
    Ok(())
}

#[test]
fn maxima_over_time_propagate_nan() -> Result<()> {
    let sequences = Arc::new(PackedSequences::new(&[3, 1])?);
    let nan = f64::NAN;
    let xs = Tensor::new(&[[[nan, 1.], [5., 1.], [1., 1.]], [[7., nan], [nan, nan], [nan, nan]]], &CPU)?;
    let xs = sequences.pack(&xs)?;
    let filters = ConvFilters {
        weight: Tensor::ones((1, 2, 2), DType::F64, &CPU)?,
        bias: Tensor::zeros(1, DType::F64, &CPU)?,
    };
    let (kernel, definition) = text::conv_max_over_time(&sequences, 1);
    for f in [kernel, definition] {
        let ys = f(&[xs.clone(), filters.weight.clone(), filters.bias.clone()])?;
        assert!(values(&ys)?.iter().all(|y| y.is_nan()));
    }
    let positions = ops::conv_max_positions(&xs, &sequences, std::slice::from_ref(&filters), 1)?;
    assert_eq!(positions, reference::conv_max_over_time(&xs, &sequences, &[filters], 1)?.1);
    assert_eq!(positions, [[0], [0]]);
    let definition = op(|x| reference::pool_over_time(&x[0], &sequences, TimePooling::Max));
    for f in [op(|x| ops::pool_over_time(&x[0], &sequences, TimePooling::Max)), definition] {
        let [ys, grad] = output_and_gradient(&f, &xs)?;
        assert_eq!(ys.iter().map(|y| y.is_nan()).collect::<Vec<_>>(), [true, false, false, true]);
        assert_eq!(grad, [1., 1., 1., 1., 0., 0., 0., 0.]);
    }
    Ok(())
}

#[test]
fn dropout_does_not_hide_nan() -> Result<()> {
    let xs = Tensor::new(&[f32::NAN; 64], &CPU)?;
    let ys = ops::dropout(&xs, 0.5, &mut rng::stream(1, "dropout"))?;
    assert!(values(&ys)?.iter().all(|y| y.is_nan()));
    Ok(())
}

#[test]
fn the_reference_of_batch_norm_is_accurate_far_from_zero() -> Result<()> {
    let xs = (normal(&mut rng::stream(7, "far"), &[8, 3, 20, 20])? + 1000.)?.to_dtype(DType::F32)?;
    let norm = |xs: &Tensor| {
        let ones = Tensor::ones(3, xs.dtype(), &CPU)?;
        reference::batch_norm(xs, &ones, &ones, 1e-5, None, Epilogue::default())
    };
    let ((ys, found), (exact_ys, exact)) = (norm(&xs)?, norm(&xs.to_dtype(DType::F64)?)?);
    assert_near("output", &[ys], &[exact_ys], 3e-6)?;
    assert_near("variance", &[found.variance], &[exact.variance], 1e-6)?;
    Ok(())
}

#[test]
fn references_accept_inputs_of_any_layout() -> Result<()> {
    let rng = &mut rng::stream(3, "layouts");
    let sequences = Arc::new(PackedSequences::new(&[3, 1])?);
    let xs = normal(rng, &[2, 4])?.t()?;
    for pooling in [TimePooling::Mean, TimePooling::Max] {
        let found = reference::pool_over_time(&xs, &sequences, pooling)?;
        let expected = reference::pool_over_time(&xs.contiguous()?, &sequences, pooling)?;
        assert_eq!(values(&found)?, values(&expected)?);
    }
    let filters = ConvFilters { weight: normal(rng, &[2, 2, 3])?.transpose(0, 2)?, bias: normal(rng, &[3])? };
    let found = reference::conv_max_over_time(&xs, &sequences, std::slice::from_ref(&filters), 1)?.0;
    let expected = ops::conv_max_over_time(&xs, &sequences, &[filters], 1)?;
    assert_near("conv_max_over_time", &[found], &[expected], 1e-12)
}

#[test]
fn pooling_over_time_accepts_zero_features() -> Result<()> {
    let sequences = Arc::new(PackedSequences::new(&[3, 1])?);
    let xs = Var::zeros((4, 0), DType::F32, &CPU)?;
    for pooling in [TimePooling::Mean, TimePooling::Max] {
        let ys = ops::pool_over_time(&xs, &sequences, pooling)?;
        assert_eq!(ys.dims(), [2, 0]);
        assert_eq!(reference::pool_over_time(&xs, &sequences, pooling)?.dims(), [2, 0]);
        ys.sum_all()?.backward()?;
    }
    Ok(())
}

#[test]
fn empty_batches_and_channels_are_accepted() -> Result<()> {
    for (batch, channels) in [(0, 2), (3, 0), (0, 0)] {
        let xs = Tensor::zeros((batch, channels, 4, 4), DType::F64, &CPU)?;
        for window in [Pool2dConfig::square(2), window((3, 3), (2, 2), (1, 1))] {
            for (name, kernel, definition) in pools(window) {
                for f in [kernel, definition] {
                    let found = run(&f, std::slice::from_ref(&xs), None)?;
                    assert_eq!(found[0].dims(), [batch, channels, 2, 2], "{name}");
                    assert_eq!(found[1].dims(), xs.dims(), "{name}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn absurd_sizes_are_errors() -> Result<()> {
    let xs = Tensor::zeros((1, 1, 4, 4), DType::F32, &CPU)?;
    let huge = usize::MAX;
    let empty = Tensor::zeros((0, 1, 1 << 40, 1 << 40), DType::F32, &CPU)?;
    let mut results = vec![];
    for (xs, config) in [
        (&xs, window((huge, 1), (1, 1), (huge / 2, 0))),
        (&xs, window((huge, huge), (huge, huge), (huge / 2, huge / 2))),
        (&xs, window((2, 2), (1, 1), (huge, huge))),
        (&xs, window((2, huge), (1, 1), (0, 0))),
        (&empty, Pool2dConfig::square(1)),
    ] {
        for (name, kernel, definition) in pools(config) {
            for f in [kernel, definition] {
                results.push((format!("{name} {config:?}"), f(std::slice::from_ref(xs))));
            }
        }
    }
    let vector = Tensor::zeros(1, DType::F32, &CPU)?;
    let (kernel, definition) = batch_norm(1e-5, None, false);
    for f in [kernel, definition] {
        results.push(("batch_norm".to_string(), f(&[empty.clone(), vector.clone(), vector.clone()])));
    }
    let sequences = Arc::new(PackedSequences::new(&[2, 3])?);
    let words = Tensor::zeros((5, 4), DType::F32, &CPU)?;
    let weight = Tensor::zeros((1, 4, 2), DType::F32, &CPU)?;
    for padding in [huge, huge / 2, huge / 4, 1 << 40] {
        let (kernel, definition) = text::conv_max_over_time(&sequences, padding);
        for f in [kernel, definition] {
            let result = f(&[words.clone(), weight.clone(), vector.clone()]);
            results.push((format!("conv_max_over_time, padding {padding}"), result));
        }
    }
    for (name, result) in results {
        assert!(result.is_err(), "{name}");
    }
    Ok(())
}

#[test]
fn references_check_their_arguments() -> Result<()> {
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &CPU);
    let (image, logits) = (zeros(&[2, 4, 5, 5])?, zeros(&[2, 3])?);
    let targets = |labels: &[u32]| Tensor::new(labels, &CPU);
    let sequences = PackedSequences::new(&[2, 3])?;
    let norm = |channels: usize| {
        let vector = zeros(&[channels])?;
        Ok(reference::batch_norm(&image, &vector, &vector, 1e-5, None, Epilogue::default())?.0)
    };
    let filters = ConvFilters { weight: zeros(&[1, 3, 9])?, bias: zeros(&[1])? };
    let conv_max = reference::conv_max_over_time(&zeros(&[5, 3])?, &sequences, &[filters], 0);
    let cases = [
        (reference::linear(&logits, &zeros(&[5, 4])?, None), "linear"),
        (reference::linear(&logits, &zeros(&[5, 3])?, Some(&zeros(&[3])?)), "linear"),
        (reference::conv2d(&image, &zeros(&[5, 4, 6, 3])?, None, Conv2dConfig::default()), "conv2d"),
        (reference::conv2d(&image, &zeros(&[5, 3, 3, 3])?, None, Conv2dConfig::default()), "conv2d"),
        (norm(3), "batch_norm"),
        (conv_max.map(|(maxima, _)| maxima), "conv_max_over_time"),
        (reference::pool_over_time(&logits, &sequences, TimePooling::Mean), "pool_over_time"),
        (reference::max_pool2d(&image, Pool2dConfig::square(6)), "max_pool2d"),
        (reference::avg_pool2d(&image, Pool2dConfig::square(0)), "avg_pool2d"),
        (reference::l2_pool2d(&logits, Pool2dConfig::square(1)), "l2_pool2d"),
        (reference::softmax_cross_entropy(&logits, &targets(&[0, 3])?, 0.), "softmax_cross_entropy"),
        (reference::softmax_cross_entropy(&logits, &targets(&[0, 1])?, 2.), "softmax_cross_entropy"),
        (reference::sigmoid_cross_entropy(&logits, &targets(&[0, 3])?), "sigmoid_cross_entropy"),
        (reference::quadratic(&zeros(&[0, 3])?, &targets(&[])?), "quadratic"),
    ];
    for (result, operation) in cases {
        let found = result.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(found.starts_with(&format!("{operation}: found")), "{operation}: {found:?}");
    }
    Ok(())
}

#[test]
fn empty_views_behave_like_empty_tensors() -> Result<()> {
    for dims in [[5, 0, 7], [0, 4, 7]] {
        let empty = Tensor::zeros(&dims, DType::F32, &CPU)?.narrow(2, 2, 3)?;
        for (name, kernel, _) in activations() {
            assert_eq!(kernel(std::slice::from_ref(&empty))?.dims(), [dims[0], dims[1], 3], "{name}");
        }
        let ys = ops::linear(&empty, &Tensor::ones((2, 3), DType::F32, &CPU)?, None)?;
        assert_eq!(ys.dims(), [dims[0], dims[1], 2]);
        let dropped = ops::dropout(&empty, 0.5, &mut rng::stream(0, ""))?;
        assert_eq!(dropped.dims(), empty.dims());
    }
    Ok(())
}

#[test]
fn linear_accepts_layers_without_inputs_or_outputs() -> Result<()> {
    let rng = &mut rng::stream(9, "empty layers");
    for rows in [0, 3, 200] {
        let inputs = [normal(rng, &[rows, 0])?, normal(rng, &[4, 0])?, normal(rng, &[4])?];
        let output_grad = normal(rng, &[rows, 4])?;
        let found = run(&linear().0, &inputs, Some(&output_grad))?;
        let output = inputs[2].broadcast_as((rows, 4))?.contiguous()?;
        let expected = [output, inputs[0].clone(), inputs[1].clone(), output_grad.sum(0)?];
        assert_near("no inputs", &found, &expected, 1e-12)?;
        let without_bias = run(&linear().0, &inputs[..2], Some(&output_grad))?;
        assert_near("no inputs, no bias", &without_bias, &[output_grad.zeros_like()?], 0.)?;

        let inputs = [normal(rng, &[rows, 3])?, normal(rng, &[0, 3])?, normal(rng, &[0])?];
        let found = run(&linear().0, &inputs, None)?;
        let output = Tensor::zeros((rows, 0), DType::F64, &CPU)?;
        let expected = [output, inputs[0].zeros_like()?, inputs[1].clone(), inputs[2].clone()];
        assert_near("no outputs", &found, &expected, 0.)?;
    }
    Ok(())
}
