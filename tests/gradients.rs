//! Gradients through graphs of our operations and candle's, against derivatives derived by hand.

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, Var};
use candle_textbook::nn::{Mode, VarMap};
use candle_textbook::ops::{self, Epilogue, PackedSequences};
use candle_textbook::optim::{Optimizer, Sgd};
use candle_textbook::train::{Metric, Score, Task, Trainer};
use std::sync::{Arc, Mutex};

const CPU: Device = Device::Cpu;

fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

/// Returns the gradient of `loss`, and checks that repeated passes by candle and `ops::backward` agree.
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
fn a_result_accumulates_the_gradients_of_all_its_uses() -> Result<()> {
    let x = x()?;
    let y = ops::tanh(&x)?;
    // Two of our operations, two of candle's (one through a view), and one whose result is not part of the loss.
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
fn a_tensor_may_be_two_arguments_and_a_variable_may_have_many_uses() -> Result<()> {
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
fn losses_that_share_part_of_a_graph_have_separate_gradients() -> Result<()> {
    let x = x()?;
    let y = ops::tanh(&x)?;
    let (one, other) = (ops::relu(&y)?.sum_all()?, ops::tanh(&y)?.sum_all()?);
    let (first, second) = (gradient(&one, &x)?, gradient(&other, &x)?);
    assert_eq!((gradient(&one, &x)?, gradient(&other, &x)?), (first.clone(), second.clone()));
    let both: Vec<f64> = first.iter().zip(&second).map(|(a, b)| a + b).collect();
    assert_near(&gradient(&(one + other)?, &x)?, &both);
    Ok(())
}

/// A custom operation of candle without a backward pass.
struct NoBackward;

impl CustomOp1 for NoBackward {
    fn name(&self) -> &'static str {
        "no backward"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((xs.clone(), layout.shape().clone()))
    }
}

#[test]
fn gradients_left_by_a_broken_pass_are_noticed_and_cleared() -> Result<()> {
    let x = x()?;
    let y = ops::tanh(&x)?;
    let (loss, before) = (ops::relu(&y)?.sum_all()?, gradient(&ops::relu(&y)?.sum_all()?, &x)?);
    // Candle visits the right-hand side first: when the pass stops, a part has arrived for `y`.
    assert!((y.apply_op1(NoBackward)?.sum_all()? + &loss)?.backward().is_err());
    let (grads, _) = ops::backward(&loss, vec![])?;
    assert_near(&numbers(grads.get(&x).expect("a gradient"))?, &before);
    let error = loss.backward().unwrap_err().to_string();
    assert!(error.contains("found 2 parts of a gradient, expected 1"), "{error}");
    assert_eq!(gradient(&loss, &x)?, before);
    Ok(())
}

#[test]
fn a_graph_may_be_built_on_one_thread_and_differentiated_on_another() -> Result<()> {
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
fn concurrent_passes_in_one_pool_do_not_mix() -> Result<()> {
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
fn only_what_depends_on_a_variable_is_recorded() -> Result<()> {
    let x = x()?;
    let y = ops::tanh(&x)?;
    assert!(!ops::relu(&y.detach())?.track_op() && !ops::relu(&Tensor::new(&X, &CPU)?)?.track_op());
    // The second argument is tracked, but candle does not continue below the product with 0.
    let sum = ops::linear(&y.reshape((1, 3))?, &ops::relu(&(&y * 0.)?)?.reshape((1, 3))?, None)?.sum_all()?;
    assert_near(&gradient(&sum, &x)?, &[0.; 3]);
    Ok(())
}

#[test]
fn operations_with_many_arguments_give_each_its_gradient() -> Result<()> {
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

/// Runs `jobs` jobs in a pool of `threads` threads, all spawned from one of them; returns their results.
fn in_pool<R: Send>(threads: usize, jobs: usize, job: impl Fn(usize) -> R + Sync) -> Vec<R> {
    let results: Vec<_> = (0..jobs).map(|_| Mutex::new(None)).collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.in_place_scope(|scope| {
        for (index, result) in results.iter().enumerate() {
            let job = &job;
            scope.spawn(move |_| *result.lock().unwrap() = Some(job(index)));
        }
    });
    results.into_iter().map(|result| result.into_inner().unwrap().expect("a result")).collect()
}

#[test]
fn the_trainer_records_no_operation_of_a_validation() -> anyhow::Result<()> {
    struct Square(Var);
    impl Task for Square {
        fn examples(&self) -> usize {
            1
        }
        fn loss(&self, _: &[u32], _: Mode) -> anyhow::Result<Tensor> {
            Ok(self.0.sqr()?.sum_all()?)
        }
        fn validate(&self) -> anyhow::Result<Score> {
            Ok(Score { loss: 0.0, metric: f64::from(u8::from(ops::relu(&self.0)?.track_op())) })
        }
        fn metric(&self) -> Metric {
            Metric::ACCURACY
        }
    }
    let (vars, x) = (VarMap::new(), x()?);
    vars.data().lock().unwrap().insert("x".to_string(), x.clone());
    let report = Trainer::default().fit(&Square(x), &vars, &mut Optimizer::new(Sgd::default(), &vars)?)?;
    assert!(report.epochs.iter().all(|epoch| epoch.validation.metric == 0.0));
    Ok(())
}

#[test]
fn no_grad_does_not_reach_jobs_that_its_thread_runs_while_it_waits() -> Result<()> {
    // Large enough for `relu` to use the pool and wait there.
    let x = Var::from_tensor(&Tensor::ones(1 << 19, DType::F32, &CPU)?)?;
    for threads in [2, 4] {
        let tracked = in_pool(threads, 400, |job| match job % 2 {
            0 => ops::no_grad(|| ops::relu(&x)).map(|ys| !ys.track_op()),
            _ => ops::relu(&x).map(|ys| ys.track_op()),
        });
        let lost = tracked.into_iter().collect::<Result<Vec<_>>>()?.iter().filter(|right| !**right).count();
        assert_eq!(lost, 0, "with {threads} threads");
    }
    Ok(())
}

#[test]
fn row_gradients_of_concurrent_passes_stay_apart() -> Result<()> {
    // The emulator runs one thread of a GPU at a time.
    const ROWS: usize = if cfg!(feature = "cuda-emulator") { 40 } else { 4000 };
    let table = Var::from_tensor(&Tensor::ones((ROWS, 64), DType::F32, &CPU)?)?;
    // The emulator takes a second for each.
    let jobs = if cfg!(feature = "cuda-emulator") { 12 } else { 200 };
    let wrong = in_pool(4, jobs, |job| -> Result<bool> {
        let ids: Vec<u32> = (0..ROWS).map(|i| (i * (1 + job % 3) % ROWS) as u32).collect();
        let loss = ops::embedding(&table, &Tensor::new(&ids[..], &CPU)?)?.sum_all()?;
        let (grads, mut rows) = ops::backward(&loss, vec![table.id()])?;
        let rows = rows.remove(&table.id()).expect("row gradients");
        let mut uses = vec![0f32; ROWS];
        ids.iter().for_each(|&id| uses[id as usize] += 1.);
        let expected = uses.iter().map(|&uses| vec![uses; 64]).collect::<Vec<_>>();
        Ok(grads.get(&table).is_some() || rows.whole(ROWS)?.to_vec2::<f32>()? != expected)
    });
    assert!(wrong.into_iter().collect::<Result<Vec<_>>>()?.iter().all(|wrong| !wrong));
    Ok(())
}

#[test]
fn row_gradients_of_all_uses_of_a_table_add_up() -> Result<()> {
    let table = Var::from_tensor(&Tensor::ones((5, 2), DType::F64, &CPU)?)?;
    let ids = |ids: &[u32]| Tensor::from_slice(ids, ids.len(), &CPU);
    let sequences = Arc::new(PackedSequences::new(&[1, 2])?);
    let uses = [
        ops::embedding(&table, &ids(&[])?)?,
        ops::embedding(&table, &ids(&[3, 1, 3])?)?,
        ops::embedding_mean(&table, &ids(&[3, 0, 4])?, &sequences)?,
    ];
    let loss = Tensor::cat(&uses, 0)?.sum_all()?;
    let (grads, rows) = ops::backward(&loss, vec![table.id()])?;
    let rows = &rows[&table.id()];
    assert_eq!(numbers(&rows.whole(5)?)?, [1., 1., 1., 1., 0., 0., 2.5, 2.5, 0.5, 0.5]);
    assert!(grads.get(&table).is_none());
    Ok(())
}

#[test]
fn two_threads_may_differentiate_one_graph_at_the_same_time() -> Result<()> {
    let x = x()?;
    let y = ops::tanh(&x)?;
    let mut loss = ops::relu(&y)?;
    for _ in 0..20 {
        loss = (ops::tanh(&loss)? + ops::sigmoid(&loss)?)?;
    }
    let loss = (loss.sum_all()? + y.sum_all()?)?;
    let expected = gradient(&loss, &x)?;
    let passes = || (0..15).map(|_| gradient(&loss, &x)).collect::<Result<Vec<_>>>();
    let found = std::thread::scope(|scope| {
        [scope.spawn(passes), scope.spawn(passes)].map(|thread| thread.join().unwrap())
    });
    for found in found {
        assert!(found?.iter().all(|found| *found == expected));
    }
    Ok(())
}
