//! L-BFGS and Newton-CG; `fixtures/solvers.py` computes the expected values.

use crate::{bits, first_line, var, var_map};
use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::VarMap;
use candle_textbook::ops;
use candle_textbook::optim::{Clip, Lbfgs, Method, NewtonCg, Optimizer, Sgd};
use std::collections::HashMap;

type Tensors = HashMap<String, Tensor>;
/// A loss of the vector `x`.
type Loss = fn(&Tensor, &Tensors) -> Result<Tensor>;

fn fixture() -> Result<Tensors> {
    candle_core::safetensors::load("tests/fixtures/solvers.safetensors", &Device::Cpu)
}

fn vector(values: &[f64]) -> Result<VarMap> {
    var_map([("x".to_string(), Tensor::new(values, &Device::Cpu)?)])
}

fn x(vars: &VarMap) -> Result<Vec<f64>> {
    var(vars, "x").as_detached_tensor().to_vec1()
}

fn rosenbrock(x: &Tensor, _: &Tensors) -> Result<Tensor> {
    let (a, b) = (x.get(0)?, x.get(1)?);
    ((b - a.sqr()?)?.sqr()? * 100.)? + (1. - a)?.sqr()?
}

fn quadratic(x: &Tensor, fixture: &Tensors) -> Result<Tensor> {
    let product = fixture["quadratic.matrix"].broadcast_mul(x)?.sum(1)?;
    ((x * product)?.sum_all()? / 2.)? - (x * &fixture["quadratic.vector"])?.sum_all()?
}

fn mlp(x: &Tensor, fixture: &Tensors) -> Result<Tensor> {
    let part = |start, len| x.narrow(0, start, len);
    let hidden = ops::linear(&fixture["mlp.inputs"], &part(5, 20)?.reshape((5, 4))?, Some(&part(0, 5)?))?;
    let weight = part(28, 15)?.reshape((3, 5))?;
    let logits = ops::linear(&ops::tanh(&hidden)?, &weight, Some(&part(25, 3)?))?;
    ops::softmax_cross_entropy(&logits, &fixture["mlp.labels"].to_dtype(DType::U32)?, 0.)
}

#[test]
fn lbfgs_follows_pytorch_step_by_step() -> Result<()> {
    let fixture = fixture()?;
    let cases: [(&str, Loss, f64, usize, bool); 6] = [
        ("rosenbrock_wolfe", rosenbrock, 1.0, 10, true),
        ("rosenbrock_plain", rosenbrock, 0.5, 10, false),
        ("quadratic_wolfe", quadratic, 1.0, 5, true),
        ("quadratic_plain", quadratic, 1.0, 10, false),
        ("mlp_wolfe", mlp, 1.0, 10, true),
        ("mlp_plain", mlp, 0.5, 3, false),
    ];
    for (name, loss, rate, history_size, line_search) in cases {
        let expected = |key: &str| &fixture[&format!("{name}.{key}")];
        let points = expected("x").to_vec2::<f64>()?;
        let losses = expected("loss").to_vec1::<f64>()?;
        let evaluations = expected("evaluations").to_vec1::<i64>()?;
        let vars = vector(&points[0])?;
        let mut optimizer = Optimizer::new(Lbfgs { history_size, line_search, ..Lbfgs::default() }, &vars)?;
        for (number, expected) in points[1..].iter().enumerate() {
            let compute = || loss(var(&vars, "x").as_tensor(), &fixture);
            let step = optimizer.step_with(compute, rate, Clip::None)?;
            let scale = expected.iter().fold(1e-3, |largest: f64, x| largest.max(x.abs()));
            for (found, expected) in x(&vars)?.iter().zip(expected) {
                let difference = (found - expected).abs() / scale;
                assert!(difference < 1e-7, "{name} step {number}: {found} {expected}, {difference:e}");
            }
            let difference = (step.loss - losses[number]).abs();
            assert!(
                difference < 1e-7 * losses[number].abs().max(1e-3),
                "{name} step {number}: {difference:e}"
            );
            if line_search {
                // Only the first step evaluates the loss at its start.
                let expected = evaluations[number] as usize + usize::from(number == 0);
                assert_eq!(step.evaluations, expected, "{name} step {number}");
            }
        }
    }
    Ok(())
}

/// The norms of the gradient before each of `steps` steps.
fn norms(optimizer: &mut Optimizer, vars: &VarMap, loss: Loss, steps: usize) -> Result<Vec<f64>> {
    let fixture = fixture()?;
    let step = |_| {
        let compute = || loss(var(vars, "x").as_tensor(), &fixture);
        Ok(optimizer.step_with(compute, 1.0, Clip::None)?.gradient_norm)
    };
    (0..steps).map(step).collect()
}

#[test]
fn newton_cg_converges_quadratically_on_a_quadratic() -> Result<()> {
    let vars = vector(&[1.; 10])?;
    let newton_cg = NewtonCg { iterations: 100, tolerance_grad: 0., ..NewtonCg::default() };
    let norms = norms(&mut Optimizer::new(newton_cg, &vars)?, &vars, quadratic, 12)?;
    let pairs = norms.windows(2).take_while(|pair| pair[0] > 1e-5);
    let mut quadratic_pairs = 0;
    for pair in pairs {
        // Conjugate gradients stop at this residual, which is the next gradient of a quadratic function.
        assert!(pair[1] <= 1.01 * pair[0].min(0.01) * pair[0] + 1e-8, "{norms:?}");
        quadratic_pairs += usize::from(pair[0] < 0.01);
    }
    assert!(quadratic_pairs > 0 && norms[11] < 1e-8, "{norms:?}");
    Ok(())
}

#[test]
fn both_solvers_reach_the_minimum_of_rosenbrock() -> Result<()> {
    for (method, steps) in [(Method::from(NewtonCg::default()), 30), (Lbfgs::default().into(), 40)] {
        let vars = vector(&[-1.2, 1.])?;
        let norms = norms(&mut Optimizer::new(method, &vars)?, &vars, rosenbrock, steps)?;
        let x = x(&vars)?;
        assert!(x.iter().all(|x| (x - 1.).abs() < 1e-5), "{method:?}: {x:?}, gradients {norms:?}");
    }
    Ok(())
}

#[test]
fn a_saved_solver_resumes_to_the_same_bits() -> Result<()> {
    let fixture = fixture()?;
    for method in [Method::from(Lbfgs { history_size: 3, ..Lbfgs::default() }), NewtonCg::default().into()] {
        for dtype in [DType::F64, DType::F32] {
            let fixture: Tensors = fixture
                .iter()
                .map(|(name, tensor)| {
                    let is_input = name == "mlp.inputs";
                    Ok((name.clone(), if is_input { tensor.to_dtype(dtype)? } else { tensor.clone() }))
                })
                .collect::<Result<_>>()?;
            let start = fixture["mlp_wolfe.x"].get(0)?.to_dtype(dtype)?;
            let vars = var_map([("x".to_string(), start)])?;
            let mut optimizer = Optimizer::new(method, &vars)?;
            let train = |optimizer: &mut Optimizer, vars: &VarMap| -> Result<()> {
                for _ in 0..5 {
                    optimizer.step_with(|| mlp(var(vars, "x").as_tensor(), &fixture), 1.0, Clip::None)?;
                }
                Ok(())
            };
            train(&mut optimizer, &vars)?;
            let half_way = var_map([("x".to_string(), var(&vars, "x").copy()?)])?;
            let mut resumed = Optimizer::new(method, &half_way)?;
            resumed.load_state(&optimizer.state()?)?;
            train(&mut optimizer, &vars)?;
            train(&mut resumed, &half_way)?;
            assert_eq!(bits(&vars)?, bits(&half_way)?, "{method:?} {dtype:?}");
        }
    }
    Ok(())
}

#[test]
fn steps_of_solvers_do_not_depend_on_the_number_of_threads() -> Result<()> {
    let ramp = |shape: (usize, usize)| {
        let values = (0..shape.0 * shape.1).map(|i| ((i * i % 1009) as f64 / 1009.) as f32);
        Tensor::from_iter(values, &Device::Cpu)?.reshape(shape)
    };
    let (inputs, labels) = (ramp((4, 300))?, Tensor::new(&[0u32, 7, 100, 259], &Device::Cpu)?);
    for method in [Method::from(Lbfgs::default()), NewtonCg::default().into()] {
        let train = |threads| -> Result<Vec<Vec<u64>>> {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let vars = var_map([("weight".to_string(), ramp((260, 300))?)])?;
                let mut optimizer = Optimizer::new(method, &vars)?;
                for _ in 0..3 {
                    let logits = || ops::linear(&inputs, var(&vars, "weight").as_tensor(), None);
                    let loss = || ops::softmax_cross_entropy(&logits()?, &labels, 0.);
                    optimizer.step_with(loss, 1.0, Clip::None)?;
                }
                bits(&vars)
            })
        };
        assert!(train(1)? == train(3)?, "{method:?}");
    }
    Ok(())
}

#[test]
fn weight_decay_is_a_penalty_on_matrices_or_all_parameters() -> Result<()> {
    let start = |name: &str, shape: &[usize]| -> Result<(String, Tensor)> {
        Ok((name.to_string(), Tensor::ones(shape, DType::F64, &Device::Cpu)?))
    };
    for decay_biases in [false, true] {
        let both = || var_map([start("bias", &[2])?, start("weight", &[2, 2])?]);
        let (built_in, by_hand) = (both()?, both()?);
        let loss = |vars: &VarMap| -> Result<Tensor> {
            let (bias, weight) = (var(vars, "bias"), var(vars, "weight"));
            (bias.exp()? * 0.3)?.sum_all()? + (weight.exp()? * 0.7)?.sum_all()?
        };
        let penalised = || {
            let penalty = (var(&by_hand, "weight").sqr()?.sum_all()? * 0.05)?;
            let loss = (loss(&by_hand)? + penalty)?;
            if decay_biases { loss + (var(&by_hand, "bias").sqr()?.sum_all()? * 0.05)? } else { Ok(loss) }
        };
        let decayed = Lbfgs { weight_decay: 0.1, decay_biases, ..Lbfgs::default() };
        let mut optimizers =
            [Optimizer::new(decayed, &built_in)?, Optimizer::new(Lbfgs::default(), &by_hand)?];
        for _ in 0..5 {
            let found = optimizers[0].step_with(|| loss(&built_in), 1.0, Clip::None)?;
            let expected = optimizers[1].step_with(penalised, 1.0, Clip::None)?;
            assert!((found.gradient_norm - expected.gradient_norm).abs() < 1e-12);
            // The loss is reported without the penalty.
            assert!(found.loss < expected.loss);
            for name in ["bias", "weight"] {
                let difference = crate::largest_difference(&var(&built_in, name), &var(&by_hand, name))?;
                assert!(difference < 1e-12, "{name}: {difference:e}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_step_that_fails_changes_nothing() -> Result<()> {
    for method in [Method::from(Lbfgs::default()), NewtonCg::default().into(), Sgd::default().into()] {
        let vars = vector(&[-1.2, 1.])?;
        let mut optimizer = Optimizer::new(method, &vars)?;
        let loss = || rosenbrock(var(&vars, "x").as_tensor(), &Tensors::new());
        let mut calls = 0;
        let result = optimizer.step_with(
            || {
                calls += 1;
                if calls == if method.is_full_batch() { 2 } else { 1 } { bail!("on purpose") } else { loss() }
            },
            1.0,
            Clip::None,
        );
        assert_eq!(first_line(result.unwrap_err()), "on purpose");
        let infinite = || loss()? / 0.;
        let step = optimizer.step_with(infinite, 1.0, Clip::None)?;
        assert!(step.loss.is_infinite() && step.evaluations == 1);
        assert_eq!(x(&vars)?, [-1.2, 1.], "{method:?}");
    }
    Ok(())
}

#[test]
fn the_line_search_avoids_infinite_losses() -> Result<()> {
    let vars = vector(&[0.1])?;
    let mut optimizer = Optimizer::new(Lbfgs::default(), &vars)?;
    // x - ln x, whose logarithm is undefined below 0.
    for _ in 0..20 {
        let loss = || (var(&vars, "x").as_tensor() - var(&vars, "x").log()?)?.sum_all();
        assert!(optimizer.step_with(loss, 30.0, Clip::None)?.loss.is_finite());
    }
    assert!((x(&vars)?[0] - 1.).abs() < 1e-4, "{:?}", x(&vars)?);
    Ok(())
}

#[test]
fn what_solvers_cannot_do_is_refused() -> Result<()> {
    let vars = var_map([("x".to_string(), Tensor::ones((2, 2), DType::F64, &Device::Cpu)?)])?;
    let loss = || var(&vars, "x").sqr()?.sum_all();
    for method in [Method::from(Lbfgs::default()), NewtonCg::default().into()] {
        let mut optimizer = Optimizer::new(method, &vars)?;
        let error = first_line(optimizer.backward_step(&loss()?, 1.0, Clip::None).unwrap_err());
        assert!(error.contains("use `step_with`"), "{error}");
        let error = first_line(optimizer.step_with(loss, 1.0, Clip::Norm(1.)).unwrap_err());
        assert!(error.contains("found gradient clipping, expected none"), "{error}");
        assert!(optimizer.step_with(loss, f64::NAN, Clip::None).is_err());
        assert!(optimizer.set_sparse("x").is_err() && optimizer.set_max_row_norm("x", 1.).is_err());
    }
    for method in [
        Method::from(Lbfgs { history_size: 0, ..Lbfgs::default() }),
        Lbfgs { tolerance_grad: -1., ..Lbfgs::default() }.into(),
        NewtonCg { iterations: 0, ..NewtonCg::default() }.into(),
    ] {
        assert!(Optimizer::new(method, &vars).is_err(), "{method:?}");
    }
    Ok(())
}

#[test]
fn a_foreign_state_of_lbfgs_is_refused() -> Result<()> {
    let vars = vector(&[-1.2, 1.])?;
    let mut optimizer = Optimizer::new(Lbfgs { history_size: 2, ..Lbfgs::default() }, &vars)?;
    norms(&mut optimizer, &vars, rosenbrock, 4)?;
    let good = optimizer.state()?;
    assert_eq!(good["old_stps"].dims(), [2, 2]);
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu);
    for (name, tensor, expected) in [
        ("old_dirs", None, "old_dirs is missing"),
        ("old_dirs", Some(zeros(&[1, 2], DType::F64)?), "old_dirs has shape [1, 2], expected [2, 2]"),
        ("old_stps", Some(zeros(&[3, 2], DType::F64)?), "old_stps has shape [3, 2], expected [2, 2]"),
        ("old_stps", Some(zeros(&[2, 2], DType::F32)?), "old_stps has type f32, expected f64"),
        ("n_iter", Some(Tensor::new(-1i64, &Device::Cpu)?), "n_iter is -1"),
        ("other", Some(zeros(&[1], DType::F64)?), "other is unknown"),
    ] {
        let mut state = good.clone();
        match tensor {
            Some(tensor) => state.insert(name.to_string(), tensor),
            None => state.remove(name),
        };
        let error = first_line(optimizer.load_state(&state).unwrap_err());
        assert!(error.starts_with("optimizer state: ") && error.contains(expected), "{error}");
    }
    optimizer.load_state(&good)?;
    let error = first_line(Optimizer::new(NewtonCg::default(), &vars)?.load_state(&good).unwrap_err());
    assert!(error.contains("is unknown"), "{error}");
    Ok(())
}
