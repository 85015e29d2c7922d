//! Convolution: its algorithms, and kernels beyond the size of the input.

use super::{CPU, assert_convolutions, assert_gradients, assert_reference, geometry, normal, op};
use candle_core::{DType, Result, Tensor};
use candle_textbook::ops::{Conv2dConfig, conv_transpose2d, conv2d, linear, reference};
use candle_textbook::rng;

#[test]
fn sizes_that_overflow_are_refused() -> Result<()> {
    let xs = Tensor::zeros((1, 1, 5, 5), DType::F32, &CPU)?;
    let weight = Tensor::zeros((1, 1, 3, 3), DType::F32, &CPU)?;
    let plain = Conv2dConfig::default();
    for (config, expected) in [
        (Conv2dConfig { padding: (usize::MAX / 2, 0), ..plain }, "conv2d: found padding"),
        (Conv2dConfig { dilation: (1, usize::MAX / 2 + 1), ..plain }, "conv2d: found padding"),
        (Conv2dConfig { padding: (1 << 40, 1 << 40), ..plain }, "conv2d: found an input of"),
        (Conv2dConfig { groups: usize::MAX, ..plain }, "conv2d: found 1 input channels"),
    ] {
        let error = conv2d(&xs, &weight, None, config).err().map(|error| error.to_string());
        assert!(error.as_ref().is_some_and(|error| error.starts_with(expected)), "{config:?}: {error:?}");
    }
    Ok(())
}

#[test]
fn a_stride_beyond_the_input_leaves_one_position() -> Result<()> {
    let xs = Tensor::arange(0f64, 25., &CPU)?.reshape((1, 1, 5, 5))?;
    let weight = Tensor::ones((1, 1, 3, 3), DType::F64, &CPU)?;
    let config = Conv2dConfig { stride: (usize::MAX, 2), ..Conv2dConfig::default() };
    let ys = conv2d(&xs, &weight, None, config)?;
    assert_eq!(ys.dims(), [1, 1, 1, 2]);
    assert_eq!(ys.flatten_all()?.to_vec1::<f64>()?, [54., 72.]);
    Ok(())
}

#[test]
fn convolutions_of_every_kind_match_the_reference() -> Result<()> {
    assert_convolutions(
        "kinds",
        &[
            // Patches that do not overlap, with a remainder.
            ((2, 3, 5), (19, 17), (8, 8), 8, 0),
            ((1, 2, 18), (9, 30), (8, 9), 9, 0),
            ((0, 3, 5), (19, 17), (8, 8), 8, 0),
            // Windows that are copied, because many outputs share them.
            ((2, 5, 18), (13, 13), (3, 3), 2, 1),
            ((1, 150, 17), (5, 7), (1, 1), 1, 0),
            // Single pixels, as packed products.
            ((2, 64, 65), (33, 31), (1, 1), 1, 0),
            ((2, 64, 65), (65, 62), (1, 1), 2, 0),
            ((2, 3, 4), (5, 6), (1, 1), 3, 0),
            // Products of Winograd's method that are divided among threads.
            ((4, 100, 96), (12, 11), (3, 3), 1, 1),
            // And its transforms, for few large examples.
            ((2, 150, 17), (18, 23), (3, 3), 1, 1),
            ((2, 17, 150), (18, 23), (3, 3), 1, 1),
        ],
    )
}

#[test]
fn transposed_convolution_equals_its_definition_and_its_gradient_finite_differences() -> Result<()> {
    let rng = &mut rng::stream(1, "conv_transpose2d");
    for (input, kernel, groups, stride, padding, dilation, output_padding) in [
        ((1, 2, 3, 4), (3, 3), 1, (1, 1), (0, 0), (1, 1), (0, 0)),
        ((2, 4, 3, 2), (3, 2), 2, (2, 3), (1, 0), (1, 1), (1, 2)),
        ((1, 2, 2, 3), (2, 3), 1, (1, 2), (2, 1), (3, 2), (2, 1)),
        ((2, 3, 1, 1), (4, 4), 1, (9, 1), (1, 0), (1, 1), (0, 0)),
        ((1, 3, 2, 2), (1, 1), 3, (3, 2), (0, 0), (1, 1), (2, 1)),
        ((2, 8, 12, 14), (3, 3), 1, (1, 1), (1, 1), (1, 1), (0, 0)),
    ] {
        let (batch, inputs, height, width) = input;
        let config = geometry(stride, padding, dilation, groups);
        let args = [
            normal(rng, &[batch, inputs, height, width])?,
            normal(rng, &[inputs, 2, kernel.0, kernel.1])?,
            normal(rng, &[2 * groups])?,
        ];
        let kernel = op(move |x| conv_transpose2d(&x[0], &x[1], x.get(2), config, output_padding));
        let plain = op(move |x| reference::conv_transpose2d(&x[0], &x[1], x.get(2), config, output_padding));
        assert_reference("conv_transpose2d", &kernel, &plain, &args)?;
        assert_reference("conv_transpose2d without bias", &kernel, &plain, &args[..2])?;
        if height < 5 {
            assert_gradients("conv_transpose2d", &kernel, &args)?;
        }
    }
    Ok(())
}

#[test]
fn transposed_convolution_refuses_sizes_that_do_not_fit() -> Result<()> {
    let xs = Tensor::zeros((1, 2, 3, 3), DType::F32, &CPU)?;
    let weight = Tensor::zeros((2, 1, 3, 3), DType::F32, &CPU)?;
    let plain = Conv2dConfig::default();
    for (config, output_padding, expected) in [
        (
            Conv2dConfig { padding: (3, 0), ..plain },
            (0, 0),
            "padding (3, 0) and output padding (0, 0) for an input of 3x3: the padding leaves",
        ),
        (Conv2dConfig { padding: (usize::MAX, 0), ..plain }, (0, 0), "the padding leaves no output"),
        (Conv2dConfig { stride: (0, 1), ..plain }, (0, 0), "stride (0, 1)"),
        (Conv2dConfig { stride: (usize::MAX, 1), ..plain }, (0, 0), "sizes overflow"),
        (Conv2dConfig { groups: 3, ..plain }, (0, 0), "3 groups"),
        (plain, (1, 0), "the output padding is neither"),
    ] {
        let error = conv_transpose2d(&xs, &weight, None, config, output_padding).unwrap_err().to_string();
        assert!(error.starts_with("conv_transpose2d: ") && error.contains(expected), "{error}");
    }
    Ok(())
}

#[test]
fn inputs_of_another_type_than_the_weight_are_refused() -> Result<()> {
    let ones = |shape: &[usize], dtype| Tensor::ones(shape, dtype, &CPU);
    let weight = ones(&[5, 4, 3, 3], DType::F32)?;
    let images = conv2d(&ones(&[2, 4, 5, 5], DType::F64)?, &weight, None, Conv2dConfig::default());
    let rows = linear(&ones(&[2, 3], DType::F64)?, &ones(&[5, 3], DType::F32)?, None);
    for (op, result) in [("conv2d", images), ("linear", rows)] {
        let error = result.unwrap_err().to_string();
        let expected = format!("{op}: found an input of type f64, expected f32, the type of the weight");
        assert!(error.starts_with(&expected), "{error}");
    }
    Ok(())
}
