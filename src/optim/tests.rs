use super::*;
use candle_core::Shape;

/// Both forms of an update from the same start; returns (parameter, moments) of each.
fn both(method: Method, dtype: DType, limit: f64, lazy: bool) -> Result<[(Tensor, Option<Tensor>); 2]> {
    let wave = |shape: &[usize], frequency: f64| {
        let shape = Shape::from(shape);
        let values: Vec<f64> = (0..shape.elem_count()).map(|i| (frequency * i as f64).sin()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)
    };
    type Apply = fn(&Method, &Update, &Var, &Gradient, Option<&Var>) -> Result<()>;
    let run = |apply: Apply| -> Result<(Tensor, Option<Tensor>)> {
        let mut parameter =
            Parameter::new("p", &Var::from_tensor(&wave(&[7, 9], 1.)?)?, method.moments().len())?;
        for step in 1..=5 {
            parameter.steps = step;
            let decay = method.decay(2);
            let update = Update {
                learning_rate: 0.1,
                steps: step,
                scale: 0.7,
                limit,
                l2: decay.l2,
                l1: decay.l1,
                shrink: 1. - 0.1 * decay.decoupled,
                lazy,
            };
            let rows = lazy.then(|| vec![0, 2, 3 + step % 3]);
            let values = wave(&[rows.as_ref().map_or(7, Vec::len), 9], 1.3 + f64::from(step))?;
            let gradient = Gradient { values, rows };
            apply(&method, &update, &parameter.var, &gradient, parameter.moments.as_ref())?;
        }
        Ok((
            parameter.var.as_detached_tensor(),
            parameter.moments.map(|moments| moments.as_detached_tensor()),
        ))
    };
    Ok([run(kernel::update)?, run(tensor_ops::update)?])
}

#[test]
fn kernels_and_tensor_operations_agree() -> Result<()> {
    let difference = |a: &Tensor, b: &Tensor| -> Result<f64> {
        (a - b)?.abs()?.flatten_all()?.max(0)?.to_dtype(DType::F64)?.to_scalar()
    };
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
            for (limit, lazy) in [(0.3, false), (f64::INFINITY, false), (f64::INFINITY, true)] {
                let [(p, m), (expected_p, expected_m)] = both(method, dtype, limit, lazy)?;
                assert!(difference(&p, &expected_p)? < tolerance, "{method:?} {dtype:?}");
                if let (Some(m), Some(expected_m)) = (m, expected_m) {
                    assert!(difference(&m, &expected_m)? < tolerance, "{method:?} {dtype:?}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn both_forms_of_the_norm_agree() -> Result<()> {
    let gradient = Tensor::arange(0f32, 1000., &Device::Cpu)?.affine(1e-3, -0.3)?;
    let (kernel, tensor_ops) = (kernel::sum_squares(&gradient)?, tensor_ops::sum_squares(&gradient)?);
    assert!((kernel / f64::from(tensor_ops.to_scalar::<f32>()?) - 1.).abs() < 1e-6);
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
