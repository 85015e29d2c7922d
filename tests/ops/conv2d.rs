//! Convolution with sizes beyond those of its input.

use super::CPU;
use candle_core::{DType, Result, Tensor};
use candle_textbook::ops::{Conv2dConfig, conv2d};

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
