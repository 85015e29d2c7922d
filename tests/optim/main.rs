//! Compares optimizers and schedules with PyTorch; `fixtures/optim.py` computes the expected values.

mod solvers;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::VarMap;
use candle_textbook::optim::{
    Adadelta, Adagrad, Adam, Clip, Curve, Method, Optimizer, PlateauState, RmsProp, Schedule, Sgd,
};
use candle_textbook::{ops, rng};
use rand::Rng;
use std::collections::HashMap;

const STEPS: usize = 20;
const NAMES: [&str; 3] = ["layer.bias", "layer.weight", "scale"];

struct Case {
    name: &'static str,
    method: Method,
    clip: Clip,
    /// Whether every third step has no gradient for the bias.
    skips: bool,
}

fn case(name: &'static str, method: impl Into<Method>) -> Case {
    Case { name, method: method.into(), clip: Clip::None, skips: false }
}

fn cases() -> Vec<Case> {
    let (sgd, adam, adamw, rmsprop) = (Sgd::default(), Adam::default(), Adam::adamw(), RmsProp::default());
    let (adagrad, adadelta) = (Adagrad::default(), Adadelta::default());
    let decayed = Sgd { weight_decay: 0.1, ..sgd };
    let momentum = Sgd { momentum: 0.9, ..sgd };
    vec![
        case("sgd", sgd),
        case("sgd_decay", decayed),
        case("sgd_l1", Sgd { l1: 0.1, ..sgd }),
        case("sgd_momentum", momentum),
        case("sgd_nesterov", Sgd { nesterov: true, weight_decay: 0.1, ..momentum }),
        case("sgd_weights_only", Sgd { decay_biases: false, ..decayed }),
        Case { clip: Clip::Norm(4.5), ..case("sgd_clip_norm", Sgd { weight_decay: 0.1, ..momentum }) },
        Case { clip: Clip::Value(0.5), ..case("sgd_clip_value", decayed) },
        Case { skips: true, ..case("sgd_skip", momentum) },
        case("adam", adam),
        case("adam_options", Adam { betas: (0.8, 0.95), epsilon: 1e-3, weight_decay: 0.1, ..adam }),
        Case { skips: true, ..case("adam_skip", adam) },
        case("adamw", adamw),
        case("adamw_weights_only", Adam { weight_decay: 0.1, decay_biases: false, ..adamw }),
        Case { clip: Clip::Norm(4.5), ..case("adamw_clip_norm", adamw) },
        case("rmsprop", rmsprop),
        case("rmsprop_options", RmsProp { alpha: 0.9, epsilon: 1e-3, weight_decay: 0.1, ..rmsprop }),
        case("rmsprop_momentum", RmsProp { momentum: 0.9, ..rmsprop }),
        case("adagrad", adagrad),
        case("adagrad_options", Adagrad { epsilon: 1e-3, weight_decay: 0.1, ..adagrad }),
        case("adadelta", adadelta),
        case("adadelta_options", Adadelta { rho: 0.95, epsilon: 1e-3, weight_decay: 0.1, ..adadelta }),
    ]
}

fn fixture() -> Result<HashMap<String, Tensor>> {
    candle_core::safetensors::load("tests/fixtures/optim.safetensors", &Device::Cpu)
}

fn var_map(values: impl IntoIterator<Item = (String, Tensor)>) -> Result<VarMap> {
    let vars = VarMap::new();
    for (name, value) in values {
        vars.data().lock().unwrap().insert(name, Var::from_tensor(&value)?);
    }
    Ok(vars)
}

fn start(fixture: &HashMap<String, Tensor>, dtype: DType) -> Result<VarMap> {
    let values =
        NAMES.iter().map(|name| Ok((name.to_string(), fixture[&format!("start.{name}")].to_dtype(dtype)?)));
    var_map(values.collect::<Result<Vec<_>>>()?)
}

fn var(vars: &VarMap, name: &str) -> Var {
    vars.data().lock().unwrap()[name].clone()
}

fn value(vars: &VarMap, name: &str) -> Tensor {
    var(vars, name).as_detached_tensor()
}

fn bits(vars: &VarMap) -> Result<Vec<Vec<u64>>> {
    let mut named: Vec<_> = vars.data().lock().unwrap().clone().into_iter().collect();
    named.sort_by(|a, b| a.0.cmp(&b.0));
    let bits = |var: Var| {
        let values = var.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        Ok(values.into_iter().map(f64::to_bits).collect())
    };
    named.into_iter().map(|(_, var)| bits(var)).collect()
}

/// Computes gradients that equal `gradients`, by a backward pass.
fn backward(vars: &VarMap, gradients: &HashMap<String, Tensor>) -> Result<GradStore> {
    let mut loss = Tensor::zeros((), gradients.values().next().unwrap().dtype(), &Device::Cpu)?;
    for (name, gradient) in gradients {
        loss = (loss + (var(vars, name).as_tensor() * gradient)?.sum_all()?)?;
    }
    loss.backward()
}

/// Runs `steps` of a case and returns each step's gradient norm.
fn train(
    case: &Case,
    fixture: &HashMap<String, Tensor>,
    vars: &VarMap,
    optimizer: &mut Optimizer,
    steps: std::ops::Range<usize>,
    mut after_step: impl FnMut(usize) -> Result<()>,
) -> Result<Vec<f64>> {
    let rates = fixture["rates"].to_vec1::<f64>()?;
    let mut norms = vec![];
    for step in steps {
        let mut gradients = HashMap::new();
        for name in NAMES {
            if !(case.skips && step % 3 == 0 && name == "layer.bias") {
                let gradient = fixture[&format!("gradient.{name}")].get(step)?;
                gradients.insert(name.to_string(), gradient.to_dtype(value(vars, name).dtype())?);
            }
        }
        norms.push(optimizer.step(&backward(vars, &gradients)?, rates[step], case.clip)?);
        after_step(step)?;
    }
    Ok(norms)
}

/// The error message without the backtrace that `RUST_BACKTRACE` adds.
fn first_line(error: candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_string()
}

fn largest_difference(a: &Tensor, b: &Tensor) -> Result<f64> {
    (a.to_dtype(DType::F64)? - b.to_dtype(DType::F64)?)?.abs()?.flatten_all()?.max(0)?.to_scalar()
}

#[test]
fn every_method_follows_pytorch_step_by_step() -> Result<()> {
    let fixture = fixture()?;
    for (dtype, tolerance) in [(DType::F64, 1e-13), (DType::F32, 3e-6)] {
        for case in cases() {
            let vars = start(&fixture, dtype)?;
            let mut optimizer = Optimizer::new(case.method, &vars)?;
            let norms = train(&case, &fixture, &vars, &mut optimizer, 0..STEPS, |step| {
                for name in NAMES {
                    let expected = fixture[&format!("{}.{name}", case.name)].get(step)?;
                    let difference = largest_difference(&value(&vars, name), &expected)?;
                    assert!(
                        difference < tolerance,
                        "{} {name} {dtype:?} step {step}: {difference:e}",
                        case.name
                    );
                }
                Ok(())
            })?;
            if let Clip::Norm(max) = case.clip {
                let expected = fixture[&format!("{}.norm", case.name)].to_vec1::<f64>()?;
                for (norm, expected) in norms.iter().zip(&expected) {
                    assert!((norm - expected).abs() < 1e-12 * expected, "{norm} {expected}");
                }
                assert!(expected.iter().any(|&norm| norm > max) && expected.iter().any(|&norm| norm < max));
            }
        }
    }
    Ok(())
}

#[test]
fn sparse_updates_follow_pytorch_and_keep_unused_rows() -> Result<()> {
    let fixture = fixture()?;
    let rates = fixture["rates"].to_vec1::<f64>()?;
    for (dtype, tolerance) in [(DType::F64, 1e-13), (DType::F32, 3e-6)] {
        let methods: [(&str, Method); 4] = [
            ("sgd", Sgd::default().into()),
            ("adagrad", Adagrad::default().into()),
            ("adam", Adam { epsilon: 1e-3, ..Adam::default() }.into()),
            // PyTorch has no sparse form of it.
            ("adadelta", Adadelta::default().into()),
        ];
        for (name, method) in methods {
            let table = || -> Result<(VarMap, Optimizer)> {
                let start =
                    Tensor::arange(0f64, 18., &Device::Cpu)?.affine(2. / 17., -1.)?.reshape((6, 3))?;
                let vars = var_map([("table".to_string(), start.to_dtype(dtype)?)])?;
                let mut optimizer = Optimizer::new(method, &vars)?;
                optimizer.set_sparse("table")?;
                Ok((vars, optimizer))
            };
            let ((by_rows, mut by_rows_optimizer), (whole, mut whole_optimizer)) = (table()?, table()?);
            for (step, &rate) in rates.iter().enumerate() {
                let mut rows = vec![step as u32 % 6, (step * step + 3) as u32 % 6];
                rows.sort_unstable();
                rows.dedup();
                let values = fixture["gradient.layer.weight"].get(step)?.narrow(1, 0, rows.len())?.t()?;
                let (rows, values) = (Tensor::new(rows, &Device::Cpu)?, values.to_dtype(dtype)?);
                let loss = |vars| (ops::embedding(&tracked_table(vars), &rows)? * &values)?.sum_all();
                let norm = by_rows_optimizer.backward_step(&loss(&by_rows)?, rate, Clip::None)?;
                let expected = whole_optimizer.step(&loss(&whole)?.backward()?, rate, Clip::None)?;
                assert!((norm - expected).abs() < 1e-12, "{norm} {expected}");
                assert_eq!(bits(&by_rows)?, bits(&whole)?, "{name} {dtype:?} step {step}");
                if let Some(expected) = fixture.get(&format!("lazy.{name}")) {
                    let difference = largest_difference(&value(&by_rows, "table"), &expected.get(step)?)?;
                    assert!(difference < tolerance, "{name} {dtype:?} step {step}: {difference:e}");
                }
            }
        }
    }
    Ok(())
}

fn tracked_table(vars: &VarMap) -> Tensor {
    var(vars, "table").as_tensor().clone()
}

#[test]
fn a_table_used_twice_gets_both_gradients() -> Result<()> {
    let vars = var_map([("table".to_string(), Tensor::zeros((5, 2), DType::F64, &Device::Cpu)?)])?;
    let mut optimizer = Optimizer::new(Sgd::default(), &vars)?;
    optimizer.set_sparse("table")?;
    let table = tracked_table(&vars);
    let sum = |ids: &[u32]| ops::embedding(&table, &Tensor::new(ids, &Device::Cpu)?)?.sum_all();
    let twice = (sum(&[3, 1, 3])? + sum(&[0, 3])?)?;
    optimizer.backward_step(&twice, 1.0, Clip::None)?;
    let rows = |values: [f64; 5]| values.map(|x| vec![x, x]).to_vec();
    assert_eq!(value(&vars, "table").to_vec2::<f64>()?, rows([-1., -1., 0., -3., 0.]));
    let whole_too = (sum(&[4])? + table.sum_all()?)?;
    optimizer.backward_step(&whole_too, 1.0, Clip::None)?;
    assert_eq!(value(&vars, "table").to_vec2::<f64>()?, rows([-2., -2., -1., -4., -2.]));
    Ok(())
}

#[test]
fn a_saved_state_resumes_to_the_same_bits() -> Result<()> {
    let fixture = fixture()?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("state.safetensors");
    for dtype in [DType::F32, DType::F64] {
        for case in cases() {
            let vars = start(&fixture, dtype)?;
            let mut optimizer = Optimizer::new(case.method, &vars)?;
            train(&case, &fixture, &vars, &mut optimizer, 0..10, |_| Ok(()))?;
            let state = optimizer.state()?;
            let half_way = var_map(NAMES.map(|name| (name.to_string(), value(&vars, name).copy().unwrap())))?;
            train(&case, &fixture, &vars, &mut optimizer, 10..STEPS, |_| Ok(()))?;

            let mut resumed = Optimizer::new(case.method, &half_way)?;
            candle_core::safetensors::save(&state, &file)?;
            resumed.load_state(&candle_core::safetensors::load(&file, &Device::Cpu)?)?;
            train(&case, &fixture, &half_way, &mut resumed, 10..STEPS, |_| Ok(()))?;
            assert_eq!(bits(&vars)?, bits(&half_way)?, "{} {dtype:?}", case.name);
        }
    }
    Ok(())
}

#[test]
fn results_depend_neither_on_threads_nor_on_the_size_of_the_parameter() -> Result<()> {
    const LEN: usize = 150_001;
    let mut rng = rng::stream(1, "test");
    let mut draw = || Tensor::from_iter((0..LEN).map(|_| rng.random_range(-1f32..1.)), &Device::Cpu);
    let (start, gradient) = (draw()?, draw()?);
    let pieces = |tensor: &Tensor| -> Result<HashMap<String, Tensor>> {
        let piece = |i| Ok((format!("{i:03}"), tensor.narrow(0, i * 1000, 1000.min(LEN - i * 1000))?));
        (0..LEN.div_ceil(1000)).map(piece).collect()
    };
    let whole = |tensor: &Tensor| HashMap::from([("whole".to_string(), tensor.clone())]);
    let train = |start: HashMap<String, Tensor>, gradients, threads| -> Result<(Vec<u64>, u64)> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let vars = var_map(start)?;
            let mut optimizer = Optimizer::new(Adam::adamw(), &vars)?;
            let mut norm = 0.;
            for _ in 0..3 {
                norm = optimizer.step(&backward(&vars, &gradients)?, 0.01, Clip::Norm(1.0))?;
            }
            Ok((bits(&vars)?.concat(), norm.to_bits()))
        })
    };
    let one_thread = train(whole(&start), whole(&gradient), 1)?;
    assert_eq!(one_thread, train(whole(&start), whole(&gradient), 3)?);
    // The pieces sum the norm in another order, which may change its last bits and so the scale: no clipping here.
    let unclipped = |start, gradients| -> Result<Vec<u64>> {
        let vars = var_map(start)?;
        let mut optimizer = Optimizer::new(Adam::adamw(), &vars)?;
        for _ in 0..3 {
            optimizer.step(&backward(&vars, &gradients)?, 0.01, Clip::None)?;
        }
        Ok(bits(&vars)?.concat())
    };
    assert_eq!(unclipped(whole(&start), whole(&gradient))?, unclipped(pieces(&start)?, pieces(&gradient)?)?);
    Ok(())
}

#[test]
fn gradients_need_not_be_contiguous() -> Result<()> {
    let vars = var_map([("w".to_string(), Tensor::zeros((2, 3), DType::F64, &Device::Cpu)?)])?;
    let gradient = Tensor::arange(0f64, 6., &Device::Cpu)?.reshape((3, 2))?.t()?;
    let mut grads = GradStore::default();
    grads.insert(&vars.all_vars()[0], gradient.clone());
    Optimizer::new(Sgd::default(), &vars)?.step(&grads, 1.0, Clip::None)?;
    assert_eq!(value(&vars, "w").to_vec2::<f64>()?, gradient.neg()?.to_vec2::<f64>()?);
    Ok(())
}

#[test]
fn wrong_gradients_and_settings_are_refused() -> Result<()> {
    let zeros = |n: usize| Tensor::zeros(n, DType::F32, &Device::Cpu);
    let vars = var_map([("a".to_string(), zeros(2)?), ("b".to_string(), zeros(3)?)])?;
    let mut grads = GradStore::default();
    grads.insert(&var(&vars, "a"), Tensor::ones(2, DType::F32, &Device::Cpu)?);
    grads.insert(&var(&vars, "b"), zeros(4)?);
    let mut optimizer = Optimizer::new(Sgd::default(), &vars)?;
    let error = optimizer.step(&grads, 1.0, Clip::None).unwrap_err();
    assert_eq!(first_line(error), "gradient of b: found shape [4] and type f32, expected [3] and f32");
    assert_eq!(value(&vars, "a").to_vec1::<f32>()?, [0., 0.]);

    grads.insert(&var(&vars, "b"), zeros(3)?);
    let mut refuse = |rate, clip| first_line(optimizer.step(&grads, rate, clip).unwrap_err());
    assert_eq!(refuse(f64::NAN, Clip::None), "optimizer: the learning rate is NaN, expected a finite number");
    for clip in [Clip::Norm(f64::NAN), Clip::Value(-1.0)] {
        assert!(refuse(0.1, clip).starts_with("optimizer: the clipping limit is"));
    }
    assert_eq!(value(&vars, "a").to_vec1::<f32>()?, [0., 0.]);

    let refuse = |method: Method| first_line(Optimizer::new(method, &vars).err().unwrap());
    assert_eq!(
        refuse(Sgd { nesterov: true, ..Sgd::default() }.into()),
        "optimizer: nesterov is on and momentum is 0, expected a momentum above 0"
    );
    assert_eq!(
        refuse(Adam { betas: (0.9, 1.0), ..Adam::default() }.into()),
        "optimizer: betas.1 is 1, expected at least 0 and less than 1"
    );
    assert_eq!(
        refuse(RmsProp { weight_decay: f64::NAN, ..RmsProp::default() }.into()),
        "optimizer: weight_decay is NaN, expected a number of at least 0"
    );
    Ok(())
}

#[test]
fn an_optimizer_that_is_built_before_its_model_is_refused() {
    let message = Optimizer::new(Adam::default(), &VarMap::new()).err().unwrap().to_string();
    assert!(message.contains("found no variables: build the model before its optimizer"), "{message}");
}

#[test]
fn a_foreign_state_is_refused_and_changes_nothing() -> Result<()> {
    let vars = start(&fixture()?, DType::F32)?;
    let mut optimizer = Optimizer::new(Adam::default(), &vars)?;
    let good = optimizer.state()?;
    let mut refuse = |state: HashMap<String, Tensor>| first_line(optimizer.load_state(&state).unwrap_err());

    let mut state = good.clone();
    state.remove("layer.weight.exp_avg");
    assert_eq!(refuse(state), "optimizer state: layer.weight.exp_avg is missing");

    let mut state = good.clone();
    state.insert("layer.weight.exp_avg".to_string(), Tensor::ones((5, 3), DType::F32, &Device::Cpu)?);
    assert_eq!(
        refuse(state),
        "optimizer state: layer.weight.exp_avg has shape [5, 3] and type f32, expected [3, 5] and f32"
    );

    let mut state = good.clone();
    state.insert("layer.weight.exp_avg".to_string(), Tensor::ones((3, 5), DType::F64, &Device::Cpu)?);
    assert_eq!(
        refuse(state),
        "optimizer state: layer.weight.exp_avg has shape [3, 5] and type f64, expected [3, 5] and f32"
    );

    let mut state = good.clone();
    state.insert("scale.step".to_string(), Tensor::new(-1i64, &Device::Cpu)?);
    assert_eq!(refuse(state), "optimizer state: scale.step is -1, expected a number of updates");

    let mut state = good.clone();
    state.insert("layer.bias.exp_avg".to_string(), Tensor::ones(5, DType::F32, &Device::Cpu)?);
    state.insert("other.exp_avg".to_string(), Tensor::ones(2, DType::F32, &Device::Cpu)?);
    assert_eq!(
        refuse(state),
        "optimizer state: other.exp_avg is unknown, expected only the state of this optimizer's parameters"
    );

    let unchanged = optimizer.state()?;
    assert_eq!(unchanged["layer.bias.exp_avg"].to_vec1::<f32>()?, [0.; 5]);
    Ok(())
}

#[test]
fn schedules_follow_pytorch() -> Result<()> {
    let fixture = fixture()?;
    let one_cycle = Schedule::from(Curve::one_cycle());
    let milestones = Schedule::from(Curve::Milestones { factor: 0.1 });
    let rates = [0, 49, 50, 74, 75, 99, 200]
        .map(|step| milestones.learning_rate(1.0, step, 100, &PlateauState::default()));
    let expected = [1.0, 1.0, 0.1, 0.1, 0.01, 0.01, 0.01];
    assert!(rates.iter().zip(expected).all(|(a, b): (&f64, f64)| (a - b).abs() < 1e-15), "{rates:?}");
    let cosine = Schedule::from(Curve::Cosine);
    for (name, schedule, total) in [
        ("step", Curve::Step { every: 7, factor: 0.5 }.into(), 30),
        ("linear", Curve::Linear.into(), 30),
        ("cosine", cosine, 30),
        ("one_cycle_7", one_cycle, 7),
        ("one_cycle_30", one_cycle, 30),
        ("one_cycle_100", one_cycle, 100),
        ("warmup", Schedule { warmup_steps: 5, curve: Curve::Constant }, 30),
        ("warmup_cosine", Schedule { warmup_steps: 5, ..cosine }, 30),
    ] {
        let expected = fixture[&format!("schedule.{name}")].to_vec1::<f64>()?;
        for (step, expected) in expected.into_iter().enumerate() {
            let rate = schedule.learning_rate(0.1, step, total, &PlateauState::default());
            assert!((rate - expected).abs() < 1e-15, "{name} step {step}: {rate} {expected}");
        }
    }
    Ok(())
}

#[test]
fn rates_are_finite_in_runs_of_any_length() {
    for curve in [Curve::Constant, Curve::Cosine, Curve::one_cycle(), Curve::Step { every: 0, factor: 0.5 }] {
        for warmup_steps in [0, 3] {
            let schedule = Schedule { warmup_steps, curve };
            for total in 0..12 {
                for step in 0..total + 2 {
                    let rate = schedule.learning_rate(0.1, step, total, &PlateauState::default());
                    assert!((0. ..=0.1).contains(&rate), "{schedule:?}: step {step} of {total} at {rate}");
                }
            }
        }
    }
}

#[test]
fn plateau_reductions_follow_pytorch_and_survive_a_checkpoint() -> Result<()> {
    let fixture = fixture()?;
    let schedule = Schedule::from(Curve::Plateau { factor: 0.5, patience: 3, stop_at: 1. / 128. });
    let losses = fixture["losses"].to_vec1::<f64>()?;
    let expected = fixture["schedule.plateau"].to_vec1::<f64>()?;
    let mut plateau = PlateauState::default();
    for (epoch, (loss, expected)) in losses.into_iter().zip(expected).enumerate() {
        let saved = serde_json::to_string(&plateau).unwrap();
        plateau = serde_json::from_str(&saved).unwrap();
        schedule.observe(&mut plateau, loss);
        assert_eq!(schedule.learning_rate(0.1, epoch, 30, &plateau), expected, "epoch {epoch}");
        assert_eq!(schedule.has_ended(&plateau), expected <= 0.1 / 128., "epoch {epoch}");
    }
    assert!(schedule.has_ended(&plateau));
    Ok(())
}

#[test]
fn a_nan_loss_is_no_improvement() {
    let schedule = Schedule::from(Curve::Plateau { factor: 0.5, patience: 1, stop_at: 0. });
    let mut plateau = PlateauState::default();
    schedule.observe(&mut plateau, f64::NAN);
    assert_eq!(schedule.learning_rate(1.0, 0, 1, &plateau), 0.5);
    schedule.observe(&mut plateau, 1.0);
    assert_eq!(schedule.learning_rate(1.0, 0, 1, &plateau), 0.5);
}

#[test]
fn settings_survive_serialisation() {
    for case in cases() {
        let saved = serde_json::to_string(&(case.method, case.clip)).unwrap();
        assert_eq!(
            serde_json::from_str::<(Method, Clip)>(&saved).unwrap(),
            (case.method, case.clip),
            "{saved}"
        );
    }
}
