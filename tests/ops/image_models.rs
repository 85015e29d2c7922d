//! The CUDA forms of the operations of image models, on the emulator.

use super::{CPU, assert_convolutions, assert_near, assert_reference, batch_norm, geometry, normal, values};
use candle_core::{DType, ModuleT, Result, Tensor, Var};
use candle_nn::VarMap;
use candle_textbook::models::{lenet, resnet};
use candle_textbook::nn::{self, Cost, Epilogue, Mode, Model, seeded_var_builder};
use candle_textbook::ops::{self, emulator};
use candle_textbook::rng;

const TRAIN: Mode = Mode::train(0, 0, 0);

#[test]
fn direct_convolutions_match_the_reference() -> Result<()> {
    assert_convolutions(
        "direct",
        &[
            ((2, 1, 6), (28, 28), (5, 5), 1, 2),
            ((3, 6, 16), (14, 14), (5, 5), 1, 0),
            ((1, 3, 5), (15, 16), (7, 7), 2, 3),
            ((2, 5, 9), (16, 16), (3, 3), 2, 1),
            ((2, 20, 7), (9, 13), (3, 3), 2, 0),
            ((2, 17, 12), (8, 12), (1, 1), 1, 0),
            ((2, 4, 8), (12, 12), (1, 1), 2, 0),
            ((1, 2, 3), (4, 300), (2, 3), 1, 1),
            ((0, 2, 3), (4, 300), (2, 3), 1, 1),
        ],
    )
}

#[test]
fn views_that_are_not_aligned_give_the_same_results() -> Result<()> {
    let rng = &mut rng::stream(2, "alignment");
    let shapes = [vec![2, 4, 8, 8], vec![4, 4, 3, 3], vec![2, 4, 8, 8], vec![4]];
    let tensors =
        shapes.iter().map(|dims| normal(rng, dims)?.to_dtype(DType::F32)).collect::<Result<Vec<_>>>()?;
    let shifted = |x: &Tensor| {
        let flat = Tensor::cat(&[&Tensor::zeros(1, DType::F32, &CPU)?, &x.flatten_all()?], 0)?;
        flat.narrow(0, 1, x.elem_count())?.reshape(x.shape())
    };
    let results = |x: &[Tensor]| -> Result<Vec<Tensor>> {
        let ys = ops::conv2d(&x[0], &x[1], None, geometry((1, 1), (1, 1), (1, 1), 1))?;
        let norm =
            ops::batch_norm(&x[0], &x[3], &x[3], 1e-5, None, Epilogue { add: Some(&x[2]), relu: true })?.0;
        Ok(vec![ys, norm])
    };
    let unaligned = tensors.iter().map(shifted).collect::<Result<Vec<_>>>()?;
    assert_near("unaligned", &results(&unaligned)?, &results(&tensors)?, 1e-6)
}

#[test]
fn channels_in_several_slices_match_the_reference() -> Result<()> {
    for plane in [(32, 32), (31, 33)] {
        let rng = &mut rng::stream(3, "slices");
        let shape = [17, 2, plane.0, plane.1];
        let inputs = [normal(rng, &shape)?, normal(rng, &[2])?, normal(rng, &[2])?, normal(rng, &shape)?];
        for (relu, count) in [(true, 4), (false, 3)] {
            let (ours, definition) = batch_norm(1e-3, None, relu);
            assert_reference(&format!("{plane:?}, {relu}"), &ours, &definition, &inputs[..count])?;
        }
    }
    Ok(())
}

#[test]
fn running_averages_move_as_on_the_cpu() -> Result<()> {
    for batch in [3, 20] {
        let xs = normal(&mut rng::stream(4, "averages"), &[batch, 2, 21, 25])?
            .affine(2., 5.)?
            .to_dtype(DType::F32)?;
        let averages = || -> Result<Vec<Tensor>> {
            let vars = VarMap::new();
            let norm = nn::batch_norm(2, 1e-5, seeded_var_builder(&vars, 0, DType::F32, &CPU))?;
            norm.forward_t(&xs, true)?;
            norm.forward_t(&xs.affine(0.5, 1.)?, true)?;
            let vars = vars.data().lock().unwrap();
            ["running_mean", "running_var"].iter().map(|&name| Ok(vars[name].as_detached_tensor())).collect()
        };
        assert_near("averages", &averages()?, &emulator::off(averages)?, 1e-6)?;
    }
    Ok(())
}

/// The losses of some steps of gradient descent, and the launches of the last forward and backward pass.
fn train(model: &dyn Model, vars: &VarMap, xs: &Tensor, labels: &Tensor) -> Result<(Vec<f64>, usize)> {
    let vars: Vec<Var> = vars.all_vars();
    let (mut losses, mut launches) = (vec![], 0);
    for _ in 0..3 {
        let (step, counts) = emulator::count(|| -> Result<_> {
            let loss = Cost::SoftmaxCrossEntropy.loss(&model.forward(xs, TRAIN)?, labels)?;
            let grads = ops::backward(&loss, vec![])?.0;
            Ok((loss, grads))
        });
        let (loss, grads) = step?;
        launches = counts.launches;
        assert_eq!((counts.to_device, counts.waits), (0, 0));
        losses.push(values(&loss)?[0]);
        for var in &vars {
            if let Some(grad) = grads.get(var) {
                var.set(&(var.as_detached_tensor() - (grad * 0.02)?)?)?;
            }
        }
    }
    Ok((losses, launches))
}

fn assert_same_losses(found: &[f64], expected: &[f64]) {
    for (found, expected) in found.iter().zip(expected) {
        assert!((found / expected - 1.).abs() < 1e-5, "{found}, the CPU has {expected}");
    }
}

#[test]
fn a_lenet_trains_as_on_the_cpu_with_few_launches() -> Result<()> {
    let xs = normal(&mut rng::stream(5, "images"), &[4, 1, 28, 28])?.to_dtype(DType::F32)?;
    let labels = Tensor::new(&[3u32, 0, 9, 1], &CPU)?;
    let run = || -> Result<_> {
        let vars = VarMap::new();
        let config = lenet::Config::default();
        let model = lenet::LeNet::new(&config, seeded_var_builder(&vars, 0, DType::F32, &CPU))?;
        train(&model, &vars, &xs, &labels)
    };
    let ((losses, launches), (expected, _)) = (run()?, emulator::off(run)?);
    assert_same_losses(&losses, &expected);
    assert!(launches <= 35, "{launches} launches");
    Ok(())
}

#[test]
fn a_resnet_trains_as_on_the_cpu_within_its_budget_of_launches() -> Result<()> {
    let xs = normal(&mut rng::stream(6, "images"), &[2, 3, 16, 16])?.to_dtype(DType::F32)?;
    let labels = Tensor::new(&[3u32, 1], &CPU)?;
    let run = || -> Result<_> {
        let vars = VarMap::new();
        let config = resnet::Config::cifar(20, resnet::Shortcut::Identity, 4)?;
        let model = resnet::ResNet::new(&config, seeded_var_builder(&vars, 0, DType::F32, &CPU))?;
        train(&model, &vars, &xs, &labels)
    };
    let ((losses, launches), (expected, _)) = (run()?, emulator::off(run)?);
    assert_same_losses(&losses, &expected);
    // With batches of 128 images of 32x32, 13 normalisations take two launches each way instead of one; the optimizer
    // takes one or two.
    assert!(launches + 26 + 2 <= 200, "{launches} launches");
    Ok(())
}
