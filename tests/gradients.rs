//! How gradients find their way through our operations and candle's: against sums made by hand.

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, Var};
use candle_textbook::ops::{self, Epilogue};

const CPU: Device = Device::Cpu;

fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

/// The gradient of `loss`, the same by candle's own backward pass, again and again, and by ours.
fn gradient(loss: &Tensor, x: &Var) -> Result<Vec<f64>> {
    let found = numbers(loss.backward()?.get(x).expect("a gradient"))?;
    for _ in 0..2 {
        assert_eq!(found, numbers(loss.backward()?.get(x).expect("a gradient"))?);
        let (grads, _) = ops::backward(loss, vec![])?;
        assert_near(&found, &numbers(grads.get(x).expect("a gradient"))?);
    }
    Ok(found)
}

fn assert_near(found: &[f64], expected: &[f64]) {
    let near = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-12;
    assert!(found.len() == expected.len() && found.iter().zip(expected).all(near), "{found:?}, {expected:?}");
}

const X: [f64; 3] = [0.5, 2., -1.];

fn x() -> Result<Var> {
    Var::new(&X, &CPU)
}

#[test]
fn a_result_gets_the_gradients_of_all_its_uses() -> Result<()> {
    let x = x()?;
    let y = ops::tanh(&x)?;
    // Ours twice, candle's twice, one of them through a view, and one that nothing comes back from.
    let ours = (ops::relu(&y)? + ops::tanh(&y)?)?;
    let candles = (y.sqr()? + y.narrow(0, 0, 3)?.affine(3., 1.)?)?;
    ops::relu(&y)?;
    let loss = (ours + candles)?.sum_all()?;
    let expected = X.map(|x| {
        let y = x.tanh();
        let slope = if y > 0. { 1. } else { 0. };
        (slope + 1. - y.tanh().powi(2) + 2. * y + 3.) * (1. - y * y)
    });
    assert_near(&gradient(&loss, &x)?, &expected);
    Ok(())
}

#[test]
fn an_argument_may_come_in_twice_and_a_variable_from_several_sides() -> Result<()> {
    let x = x()?;
    let square = ops::tanh(&x)?.reshape((3, 1))?;
    let products = ops::linear(&square, &square, None)?;
    let tripled = (ops::tanh(&x)? + (ops::tanh(&x)? + x.as_tensor() * 2.)?)?;
    let loss = (products.sum_all()? + tripled.sum_all()?)?;
    let sum: f64 = X.iter().map(|x| x.tanh()).sum();
    let expected = X.map(|x| (1. - x.tanh().powi(2)) * (2. * sum + 2.) + 2.);
    assert_near(&gradient(&loss, &x)?, &expected);
    Ok(())
}

#[test]
fn losses_that_share_a_part_of_the_graph_do_not_mix() -> Result<()> {
    let x = x()?;
    let y = ops::tanh(&x)?;
    let (one, other) = (ops::relu(&y)?.sum_all()?, ops::tanh(&y)?.sum_all()?);
    let (first, second) = (gradient(&one, &x)?, gradient(&other, &x)?);
    assert_eq!((gradient(&one, &x)?, gradient(&other, &x)?), (first.clone(), second.clone()));
    let both: Vec<f64> = first.iter().zip(&second).map(|(a, b)| a + b).collect();
    assert_near(&gradient(&(one + other)?, &x)?, &both);
    Ok(())
}

/// Candle finds no way back through it.
struct NoWayBack;

impl CustomOp1 for NoWayBack {
    fn name(&self) -> &'static str {
        "no way back"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((xs.clone(), layout.shape().clone()))
    }
}

#[test]
fn what_a_pass_that_broke_off_has_left_does_not_go_unnoticed() -> Result<()> {
    let x = x()?;
    let y = ops::tanh(&x)?;
    let (loss, before) = (ops::relu(&y)?.sum_all()?, gradient(&ops::relu(&y)?.sum_all()?, &x)?);
    // Candle goes back through the right side first.
    assert!((y.apply_op1(NoWayBack)?.sum_all()? + &loss)?.backward().is_err());
    let error = loss.backward().unwrap_err().to_string();
    assert!(error.contains("a gradient of 2 parts, expected 1"), "{error}");
    assert_eq!(gradient(&loss, &x)?, before);
    Ok(())
}

#[test]
fn a_graph_built_on_one_thread_is_gone_back_on_another() -> Result<()> {
    let x = x()?;
    let here = ops::tanh(&x)?;
    let build = || -> Result<Tensor> { ops::relu(&here)?.sum_all() };
    let loss = std::thread::scope(|scope| scope.spawn(build).join().unwrap())?;
    drop(here);
    let expected = gradient(&loss, &x)?;
    let there = std::thread::scope(|scope| scope.spawn(|| gradient(&loss, &x)).join().unwrap())?;
    assert_eq!(expected, there);
    Ok(())
}

#[test]
fn passes_side_by_side_in_one_pool_do_not_mix() -> Result<()> {
    use rayon::prelude::*;
    let x = Var::from_tensor(&Tensor::arange(0., 1e5, &CPU)?.affine(1e-5, 0.)?)?;
    let pass = |i: u32| -> Result<Vec<f64>> {
        let loss = (ops::tanh(&x)? + ops::tanh(&ops::sigmoid(&x)?)?)?.sum_all()?;
        let grads = if i.is_multiple_of(2) { loss.backward()? } else { ops::backward(&loss, vec![])?.0 };
        numbers(grads.get(&x).expect("a gradient"))
    };
    let expected = pass(0)?;
    let found = (0..64u32).into_par_iter().map(pass).collect::<Result<Vec<_>>>()?;
    assert!(found.iter().all(|found| *found == expected));
    Ok(())
}

#[test]
fn without_a_variable_there_is_no_graph_and_what_is_cut_off_gets_nothing() -> Result<()> {
    let x = x()?;
    let y = ops::tanh(&x)?;
    assert!(!ops::relu(&y.detach())?.track_op() && !ops::relu(&Tensor::new(&X, &CPU)?)?.track_op());
    // The second argument is tracked, but candle finds no way back through it.
    let sum = ops::linear(&y.reshape((1, 3))?, &ops::relu(&(&y * 0.)?)?.reshape((1, 3))?, None)?.sum_all()?;
    assert_near(&gradient(&sum, &x)?, &[0.; 3]);
    Ok(())
}

#[test]
fn operations_of_many_arguments_give_each_its_own() -> Result<()> {
    let vars = [[2, 1, 1, 3].as_slice(), &[1], &[1], &[2, 1, 1, 3]]
        .map(|dims| Var::from_tensor(&Tensor::ones(dims, DType::F64, &CPU).unwrap()).unwrap());
    let [xs, weight, bias, add] = &vars;
    let add = ops::tanh(add)?;
    let (ys, _) = ops::batch_norm(xs, weight, bias, 1e-3, None, Epilogue { add: Some(&add), relu: false })?;
    let (loss, slope) = ((ys.sum_all()? * 2.)?, 1. - 1f64.tanh().powi(2));
    let expected = [vec![0.; 6], vec![0.], vec![12.], vec![2. * slope; 6]];
    for (var, expected) in vars.iter().zip(&expected) {
        assert_near(&gradient(&loss, var)?, expected);
    }
    Ok(())
}
