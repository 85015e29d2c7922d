//! The CUDA kernels on the CPU against the CPU kernels.
#![cfg(feature = "cuda-emulator")]

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_textbook::ops::{self, emulator};
use rand::{Rng, SeedableRng};

/// Returns a variable of random elements.
fn var(shape: &[usize], seed: u64) -> Result<Var> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let elements: Vec<f64> = (0..shape.iter().product()).map(|_| rng.random_range(-2.0..2.0)).collect();
    Var::from_tensor(&Tensor::from_vec(elements, shape, &Device::Cpu)?)
}

/// Checks that `op` and its gradients are the same with CUDA kernels and CPU kernels, in f32 and f64.
fn compare(shapes: &[&[usize]], op: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<()> {
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F64, 1e-13)] {
        let args: Vec<Var> = shapes
            .iter()
            .zip(1..)
            .map(|(shape, seed)| Var::from_tensor(&var(shape, seed)?.to_dtype(dtype)?))
            .collect::<Result<_>>()?;
        let run = || -> Result<Vec<Tensor>> {
            let tensors: Vec<Tensor> = args.iter().map(|arg| arg.as_tensor().clone()).collect();
            let ys = op(&tensors)?;
            let weights = var(ys.dims(), 99)?.as_detached_tensor().to_dtype(dtype)?;
            let (grads, _) = ops::backward(&(&ys * weights)?.sum_all()?, vec![])?;
            let grads = args.iter().filter_map(|arg| grads.get(arg).cloned());
            Ok(std::iter::once(ys.detach()).chain(grads).collect())
        };
        let (found, counts) = emulator::count(run);
        let (found, expected) = (found?, emulator::off(run)?);
        assert!(counts.launches > 0, "no kernel ran: {counts:?}");
        assert_eq!(found.len(), args.len() + 1);
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let [found, expected] = [found, expected].map(|tensor| {
                tensor.to_dtype(DType::F64).and_then(|tensor| tensor.flatten_all()?.to_vec1::<f64>())
            });
            let (found, expected) = (found?, expected?);
            let largest = expected.iter().fold(0f64, |max, x| max.max(x.abs()));
            for (found, expected) in found.iter().zip(&expected) {
                let allowed = tolerance * (1. + largest);
                assert!(
                    (found - expected).abs() <= allowed,
                    "{i} of {shapes:?} {dtype:?}: {found}, {expected}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn activations() -> Result<()> {
    for shape in [&[1usize][..], &[3, 5], &[2, 4, 4], &[1031]] {
        compare(&[shape], |args| ops::relu(&args[0]))?;
        compare(&[shape], |args| ops::sigmoid(&args[0]))?;
        compare(&[shape], |args| ops::tanh(&args[0]))?;
        compare(&[shape], |args| ops::tanh(&args[0])? + ops::relu(&ops::tanh(&args[0])?)?)?;
    }
    Ok(())
}

#[test]
fn linear() -> Result<()> {
    for (rows, inputs, outputs) in
        [(1, 1, 1), (3, 5, 2), (10, 784, 30), (64, 33, 36), (300, 7, 65), (2, 3, 0)]
    {
        let shapes: [&[usize]; 3] = [&[rows, inputs], &[outputs, inputs], &[outputs]];
        compare(&shapes, |args| ops::linear(&args[0], &args[1], Some(&args[2])))?;
        compare(&shapes[..2], |args| ops::linear(&args[0], &args[1], None))?;
    }
    Ok(())
}

#[test]
fn a_step_launches_few_kernels_and_copies_nothing() -> Result<()> {
    let (xs, weight, bias) = (var(&[10, 20], 1)?, var(&[7, 20], 2)?, var(&[7], 3)?);
    let step = || ops::backward(&ops::relu(&ops::linear(&xs, &weight, Some(&bias))?)?.sum_all()?, vec![]);
    let (result, counts) = emulator::count(step);
    result?;
    // Product, bias, relu; gradients of relu, of the input, and of weight and bias.
    assert_eq!((counts.launches, counts.to_device, counts.to_host, counts.waits), (6, 0, 0, 0), "{counts:?}");
    Ok(())
}
