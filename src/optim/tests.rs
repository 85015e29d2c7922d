use super::method::{Adadelta, Adagrad, Adam, Method, RmsProp, Sgd};
use super::optimizer::Optimizer;
use super::parameter::Parameter;
use super::step::{Clip, Gradient, Update};
use super::{cpu, tensor_ops};
use crate::kernels::cpu::optimizer::GradientTerms;
use crate::ops::RowNumbers;
use candle_core::{DType, Device, Result, Shape, Tensor, Var, bail};
use candle_nn::VarMap;

/// Five updates by the kernels and by tensor operations from the same start.
///
/// Returns (parameter, moments) of each.
fn both(method: Method, dtype: DType, limit: f64, sparse: bool) -> Result<[(Tensor, Option<Tensor>); 2]> {
    let wave = |shape: &[usize], frequency: f64| {
        let shape = Shape::from(shape);
        let values: Vec<f64> = (0..shape.elem_count()).map(|i| (frequency * i as f64).sin()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)
    };
    type Apply = fn(&Update, &Var, &Gradient, Option<&Var>) -> Result<()>;
    let run = |apply: Apply| -> Result<(Tensor, Option<Tensor>)> {
        let parameter = Parameter::new("p", &Var::from_tensor(&wave(&[7, 9], 1.)?)?, method.moments().len())?;
        for step in 1..=5 {
            let decay = method.decay(2);
            let update = Update {
                rule: method.rule(0.1, step, 1. - 0.1 * decay.decoupled, sparse)?,
                terms: GradientTerms { scale: 0.7, limit, l2: decay.l2, l1: decay.l1 },
                sparse,
            };
            let rows = sparse.then(|| vec![0, 2, 3 + step % 3]);
            let values = wave(&[rows.as_ref().map_or(7, Vec::len), 9], 1.3 + f64::from(step))?;
            let rows = rows.map(RowNumbers::Host);
            apply(&update, &parameter.var, &Gradient { values, rows }, parameter.moments.as_ref())?;
        }
        Ok((
            parameter.var.as_detached_tensor(),
            parameter.moments.map(|moments| moments.as_detached_tensor()),
        ))
    };
    Ok([run(cpu::update)?, run(tensor_ops::update)?])
}

fn largest_difference(a: &Tensor, b: &Tensor) -> Result<f64> {
    (a - b)?.abs()?.flatten_all()?.max(0)?.to_dtype(DType::F64)?.to_scalar()
}

#[test]
fn kernels_and_tensor_operations_agree() -> Result<()> {
    for (dtype, tolerance) in [(DType::F64, 1e-14), (DType::F32, 2e-6)] {
        for method in [
            Method::from(Sgd { weight_decay: 0.1, l1: 0.1, ..Sgd::default() }),
            Sgd { momentum: 0.9, weight_decay: 0.1, ..Sgd::default() }.into(),
            Sgd { momentum: 0.9, nesterov: true, ..Sgd::default() }.into(),
            Adam { weight_decay: 0.1, ..Adam::default() }.into(),
            Adam::adamw().into(),
            RmsProp { weight_decay: 0.1, ..RmsProp::default() }.into(),
            RmsProp { momentum: 0.9, ..RmsProp::default() }.into(),
            Adagrad { weight_decay: 0.1, ..Adagrad::default() }.into(),
            Adadelta { weight_decay: 0.1, ..Adadelta::default() }.into(),
        ] {
            for (limit, sparse) in [(0.3, false), (f64::INFINITY, false), (f64::INFINITY, true)] {
                let [(p, m), (expected_p, expected_m)] = both(method, dtype, limit, sparse)?;
                assert!(largest_difference(&p, &expected_p)? < tolerance, "{method:?} {dtype:?}");
                if let (Some(m), Some(expected_m)) = (m, expected_m) {
                    assert!(largest_difference(&m, &expected_m)? < tolerance, "{method:?} {dtype:?}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn both_forms_of_the_norm_agree() -> Result<()> {
    let gradient = Tensor::arange(0f32, 1000., &Device::Cpu)?.affine(1e-3, -0.3)?;
    let (kernel, tensor_ops) = (cpu::sum_squares(&gradient)?, tensor_ops::sum_squares(&gradient)?);
    assert!((kernel / f64::from(tensor_ops.to_scalar::<f32>()?) - 1.).abs() < 1e-6);
    Ok(())
}

#[test]
fn both_forms_of_the_row_limit_agree() -> Result<()> {
    let start = Tensor::arange(-30f32, 30., &Device::Cpu)?.affine(0.1, 0.)?.reshape((6, 10))?;
    let (kernel, tensor_ops) = (Var::from_tensor(&start)?, Var::from_tensor(&start)?);
    cpu::limit_row_norms(&kernel, 3.)?;
    tensor_ops::limit_row_norms(&tensor_ops, 3.)?;
    assert!(largest_difference(&kernel, &tensor_ops)? < 1e-6);
    let norms = kernel.sqr()?.sum(1)?.sqrt()?.to_vec1::<f32>()?;
    let unlimited = start.sqr()?.sum(1)?.sqrt()?.to_vec1::<f32>()?;
    for (norm, unlimited) in norms.into_iter().zip(unlimited) {
        assert!((norm - unlimited.min(3.)).abs() < 1e-5, "{norm} {unlimited}");
    }
    Ok(())
}

#[test]
fn half_precision_is_trained_by_tensor_operations() -> Result<()> {
    let vars = VarMap::new();
    let var = Var::ones((2, 2), DType::BF16, &Device::Cpu)?;
    let Ok(mut map) = vars.data().lock() else { bail!("poisoned") };
    map.insert("w".to_string(), var.clone());
    drop(map);
    let grads = var.sum_all()?.backward()?;
    let norm = Optimizer::new(Sgd::default(), &vars)?.step(&grads, 0.5, Clip::None)?;
    assert_eq!(norm, 2.);
    assert_eq!(var.to_dtype(DType::F32)?.to_vec2::<f32>()?, [[0.5, 0.5], [0.5, 0.5]]);
    Ok(())
}
