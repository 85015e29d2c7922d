//! Compares models and their weights with PyTorch; `fixtures/models.py` computes the expected values.

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use candle_textbook::data::digits;
use candle_textbook::models::lenet::{self, LeNet};
use candle_textbook::models::lenet5::LeNet5;
use candle_textbook::models::mnist_cnn::MnistCnn;
use candle_textbook::models::{ImageModel, mlp};
use candle_textbook::nn::Activation::{Relu, Sigmoid, Tanh};
use candle_textbook::nn::{Activation, Cost, InitScheme, Mode, Model, Pooling, linear, seeded_var_builder};
use candle_textbook::optim::{Adam, Clip, Optimizer};
use candle_textbook::train::{Run, load_model, load_weights, save_weights};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

const CPU: Device = Device::Cpu;
const IMAGES: (&[usize], &[u32]) = (&[3, 1, 28, 28], &[3, 0, 7]);
const ROWS: (&[usize], &[u32]) = (&[3, 7], &[2, 0, 1]);

enum Architecture {
    Mlp(&'static [usize], Activation),
    LeNet(lenet::Config),
    LeNet5,
    MnistCnn,
}

impl Architecture {
    fn build(&self, vb: VarBuilder) -> Result<Box<dyn ImageModel>> {
        Ok(match self {
            &Self::Mlp(sizes, activation) => {
                let config = mlp::Config {
                    sizes: sizes.to_vec(),
                    activation,
                    init: InitScheme::PyTorch,
                    dropout: 0.0,
                };
                Box::new(mlp::Mlp::new(&config, vb)?)
            }
            Self::LeNet(config) => Box::new(LeNet::new(config, vb)?),
            Self::LeNet5 => Box::new(LeNet5::new(10, vb)?),
            Self::MnistCnn => Box::new(MnistCnn::new(10, vb)?),
        })
    }
}

struct Case {
    name: &'static str,
    architecture: Architecture,
    cost: Cost,
    input: (&'static [usize], &'static [u32]),
    parameters: usize,
}

fn cases() -> Vec<Case> {
    use Cost::{Quadratic, SigmoidCrossEntropy, SoftmaxCrossEntropy};
    let mlp = |name, cost, activation| Case {
        name,
        architecture: Architecture::Mlp(&[784, 30, 10], activation),
        cost,
        input: IMAGES,
        parameters: 23_860,
    };
    let lenet = |name, config, parameters| Case {
        name,
        architecture: Architecture::LeNet(config),
        cost: SoftmaxCrossEntropy,
        input: IMAGES,
        parameters,
    };
    let modern = lenet::Config::default;
    let l2 = lenet::Config {
        channels: vec![2, 3],
        padding: 0,
        pooling: Pooling::L2,
        activation: Sigmoid,
        hidden: vec![],
        ..modern()
    };
    let nielsen = |stages| lenet::Config::nielsen(stages, Sigmoid, &[100], 0.0);
    let dropout = lenet::Config::nielsen(2, Relu, &[1000, 1000], 0.5);
    vec![
        mlp("mlp_quadratic", Quadratic, Sigmoid),
        mlp("mlp_sigmoid", SigmoidCrossEntropy, Sigmoid),
        mlp("mlp_softmax", SoftmaxCrossEntropy, Relu),
        Case {
            architecture: Architecture::Mlp(&[7, 5, 4, 3], Tanh),
            input: ROWS,
            parameters: 79,
            ..mlp("mlp_odd", SoftmaxCrossEntropy, Tanh)
        },
        Case {
            architecture: Architecture::Mlp(&[7, 3], Sigmoid),
            input: ROWS,
            parameters: 24,
            ..mlp("mlp_one_layer", Quadratic, Sigmoid)
        },
        lenet("modern", modern(), 61_706),
        lenet("average", lenet::Config { pooling: Pooling::Average, activation: Tanh, ..modern() }, 61_706),
        lenet("l2", l2, 695),
        lenet("nielsen_one", nielsen(1), 289_630),
        lenet("nielsen_two", nielsen(2), 85_670),
        lenet("nielsen_dropout", dropout, 1_672_570),
        Case { architecture: Architecture::LeNet5, ..lenet("lenet5", modern(), 61_750) },
        Case { architecture: Architecture::MnistCnn, ..lenet("mnist_cnn", modern(), 1_199_882) },
    ]
}

fn fixture() -> Result<HashMap<String, Tensor>> {
    candle_core::safetensors::load("tests/fixtures/models.safetensors", &CPU)
}

fn wave(count: usize, phase: f64) -> Vec<f64> {
    (0..count).map(|i| i as f64).map(|i| (0.37 * i + 0.0007 * i * i + phase).sin()).collect()
}

fn input(shape: &[usize], dtype: DType) -> Result<Tensor> {
    let values = wave(shape.iter().product(), 100.0);
    Tensor::from_vec(values, shape, &CPU)?.affine(0.5, 0.5)?.to_dtype(dtype)
}

fn sorted(vars: &VarMap) -> BTreeMap<String, Var> {
    vars.data().lock().unwrap().clone().into_iter().collect()
}

fn model_with_wave_weights(case: &Case, dtype: DType) -> Result<(VarMap, Box<dyn ImageModel>)> {
    let vars = VarMap::new();
    let model = case.architecture.build(seeded_var_builder(&vars, 0, dtype, &CPU))?;
    for (phase, var) in sorted(&vars).values().enumerate() {
        let values = Tensor::from_vec(wave(var.elem_count(), phase as f64), var.shape(), &CPU)?;
        var.set(&values.affine(0.1, 0.0)?.to_dtype(dtype)?)?;
    }
    Ok((vars, model))
}

fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1()
}

#[track_caller]
fn assert_close(what: &str, found: &[f64], expected: &Tensor, tolerance: f64) {
    let expected = values(expected).unwrap();
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= tolerance, "{what}: {found}, PyTorch has {expected}");
    }
}

/// Names and shapes of a case's parameters in PyTorch.
fn state_dict(fixture: &HashMap<String, Tensor>, case: &str) -> Result<BTreeMap<String, Vec<usize>>> {
    let prefix = format!("{case}/shape/");
    let shapes = fixture.iter().filter_map(|(key, shape)| Some((key.strip_prefix(&prefix)?, shape)));
    let usizes = |shape: &Tensor| -> Result<Vec<usize>> {
        Ok(shape.to_vec1::<i64>()?.into_iter().map(|n| n as usize).collect())
    };
    shapes.map(|(name, shape)| Ok((name.to_string(), usizes(shape)?))).collect()
}

#[test]
fn logits_loss_and_gradients_equal_pytorchs() -> Result<()> {
    let fixture = fixture()?;
    for case in cases() {
        let name = case.name;
        let (vars, model) = model_with_wave_weights(&case, DType::F64)?;
        let logits = model.forward(&input(case.input.0, DType::F64)?, Mode::Evaluate)?;
        assert_close(name, &values(&logits)?, &fixture[&format!("{name}/logits")], 1e-11);
        let loss = case.cost.loss(&logits, &Tensor::new(case.input.1, &CPU)?)?;
        assert_close(name, &values(&loss)?, &fixture[&format!("{name}/loss")], 1e-11);
        let grads = loss.backward()?;
        for (parameter, var) in sorted(&vars) {
            let grad = values(grads.get(&var).unwrap())?;
            let norm = grad.iter().map(|g| g * g).sum::<f64>().sqrt();
            let product = grad.iter().zip(wave(grad.len(), 50.0)).map(|(g, w)| g * w).sum();
            let mut probe = vec![norm, grad.iter().sum(), product];
            probe.extend(grad.iter().take(8));
            let tolerance = 1e-12 * (1.0 + norm * (grad.len() as f64).sqrt());
            let expected = &fixture[&format!("{name}/grad/{parameter}")];
            assert_close(&format!("gradient of {name}/{parameter}"), &probe, expected, tolerance);
        }
    }
    Ok(())
}

#[test]
fn names_and_shapes_equal_pytorchs_and_saved_weights_load() -> anyhow::Result<()> {
    let fixture = fixture()?;
    let dir = tempfile::tempdir()?;
    for case in cases() {
        let expected = state_dict(&fixture, case.name)?;
        let (vars, _) = model_with_wave_weights(&case, DType::F32)?;
        let count: usize = vars.all_vars().iter().map(|var| var.elem_count()).sum();
        assert_eq!(count, case.parameters, "{}", case.name);

        let path = dir.path().join(case.name);
        save_weights(&path, &vars)?;
        let bytes = std::fs::read(&path)?;
        let tensors = safetensors::SafeTensors::deserialize(&bytes)?.tensors();
        let shapes = tensors.iter().map(|(name, view)| (name.clone(), view.shape().to_vec())).collect();
        assert_eq!(expected, shapes, "{}", case.name);
        assert!(tensors.iter().all(|(_, view)| view.dtype() == safetensors::Dtype::F32));

        let vars = VarMap::new();
        let model = case.architecture.build(seeded_var_builder(&vars, 1, DType::F32, &CPU))?;
        load_weights(&path, &vars)?;
        let logits = model.forward(&input(case.input.0, DType::F32)?, Mode::Evaluate)?;
        assert_close(case.name, &values(&logits)?, &fixture[&format!("{}/logits", case.name)], 1e-4);
    }
    Ok(())
}

#[test]
fn weights_saved_by_pytorch_load() -> anyhow::Result<()> {
    let config = lenet::Config { channels: vec![2, 3], hidden: vec![7], ..lenet::Config::default() };
    for (name, architecture, shape) in [
        ("mlp", Architecture::Mlp(&[7, 5, 3], Sigmoid), ROWS.0),
        ("lenet", Architecture::LeNet(config), IMAGES.0),
    ] {
        let vars = VarMap::new();
        let model = architecture.build(seeded_var_builder(&vars, 0, DType::F32, &CPU))?;
        load_weights(Path::new(&format!("tests/fixtures/models_{name}.safetensors")), &vars)?;
        let logits = model.forward(&input(shape, DType::F32)?, Mode::Evaluate)?;
        assert_close(name, &values(&logits)?, &fixture()?[&format!("file/{name}")], 1e-5);
    }
    Ok(())
}

#[test]
fn missing_connections_of_lenet5_get_no_gradient() -> Result<()> {
    let vars = VarMap::new();
    let model = LeNet5::new(10, seeded_var_builder(&vars, 0, DType::F32, &CPU))?;
    let logits = model.forward(&input(IMAGES.0, DType::F32)?, Mode::Evaluate)?;
    let grads = logits.sqr()?.sum_all()?.backward()?;
    let grad = grads.get(&sorted(&vars)["c3.weight"]).unwrap();
    let connected = grad.abs()?.sum((2, 3))?.flatten_all()?.to_vec1::<f32>()?;
    // The paper counts 1,516 parameters of C3: 16 biases and 25 per connection.
    assert_eq!(connected.iter().filter(|&&sum| sum != 0.0).count(), 60);
    Ok(())
}

#[test]
fn a_model_of_f64_loads_from_its_run() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let run = Run::create("test", Some(dir.path()), &serde_json::json!({}))?;
    let vars = VarMap::new();
    let trained = linear(2, 1, seeded_var_builder(&vars, 0, DType::F64, &CPU))?;
    save_weights(&run.model(), &vars)?;
    let (loaded, _) = load_model(&run, &CPU, |vb| linear(2, 1, vb))?;
    assert_eq!(loaded.weight().to_vec2::<f64>()?, trained.weight().to_vec2::<f64>()?);
    let message = load_model(&run, &CPU, |vb| linear(2, 1, vb.pp("fc"))).unwrap_err().to_string();
    assert!(
        message.ends_with("fc.bias is missing, expected one of shape [1]; found bias instead"),
        "{message}"
    );
    Ok(())
}

#[test]
fn weights_that_do_not_fit_are_refused_and_change_nothing() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("model.safetensors");
    let vars = VarMap::new();
    Architecture::Mlp(&[4, 3, 2], Sigmoid).build(seeded_var_builder(&vars, 0, DType::F32, &CPU))?;
    let bits = || -> Result<Vec<Vec<f32>>> {
        sorted(&vars).values().map(|var| var.flatten_all()?.to_vec1()).collect()
    };
    let before = bits()?;
    let refused = |contents: Option<&[u8]>, expected: &[&str]| -> anyhow::Result<()> {
        match contents {
            Some(bytes) => std::fs::write(&path, bytes)?,
            None => std::fs::remove_file(&path).or_else(|_| anyhow::Ok(()))?,
        }
        let message = format!("{:#}", load_weights(&path, &vars).unwrap_err());
        assert!(message.starts_with(&path.display().to_string()), "{message}");
        assert!(!message.contains('\n'), "{message}");
        for part in expected {
            assert!(message.contains(part), "{message}: expected {part}");
        }
        assert_eq!(bits()?, before);
        Ok(())
    };

    refused(None, &["cannot read it"])?;
    refused(Some(b""), &["found an empty file"])?;
    refused(Some(b"PK\x03\x04 a zip of another framework"), &["found a zip archive"])?;
    let other = VarMap::new();
    Architecture::Mlp(&[4, 3, 2], Sigmoid).build(seeded_var_builder(&other, 1, DType::F32, &CPU))?;
    let good_path = dir.path().join("good.safetensors");
    save_weights(&good_path, &other)?;
    let whole = std::fs::read(&good_path)?;
    for length in [1, 7, 8, 9, 100, whole.len() / 2, whole.len() - 4, whole.len() - 1] {
        refused(Some(&whole[..length]), &["not a complete safetensors file", &format!("{length} bytes")])?;
    }

    let good = candle_core::safetensors::load_buffer(&whole, &CPU)?;
    let name = "layers.1.weight";
    let changed = |tensor: Option<(&str, Tensor)>| -> anyhow::Result<Vec<u8>> {
        let mut tensors = good.clone();
        match tensor {
            Some((name, tensor)) => tensors.insert(name.to_string(), tensor),
            None => tensors.remove(name),
        };
        Ok(safetensors::serialize(&tensors, None)?)
    };
    refused(Some(&changed(None)?), &[name, "[2, 3]"])?;
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &CPU);
    refused(Some(&changed(Some((name, zeros(&[3, 2], DType::F32)?)))?), &[name, "[3, 2]", "[2, 3]"])?;
    refused(Some(&changed(Some((name, zeros(&[2, 3], DType::F64)?)))?), &[name, "f64", "f32"])?;
    let foreign = changed(Some(("layers.2.weight", zeros(&[5, 2], DType::F32)?)))?;
    refused(Some(&foreign), &["layers.2.weight", "[5, 2]"])?;

    load_weights(&good_path, &vars)?;
    assert_ne!(bits()?, before);
    Ok(())
}

#[test]
fn thirty_steps_halve_the_loss() -> Result<()> {
    let (images, _) = digits(16, 0, 0)?;
    let (xs, labels) = images.batch(&(0..16).collect::<Vec<_>>(), &CPU)?;
    for (architecture, learning_rate) in [
        (Architecture::Mlp(&[784, 30, 10], Sigmoid), 1e-2),
        (Architecture::LeNet(lenet::Config::default()), 3e-3),
        (Architecture::LeNet5, 3e-3),
        (Architecture::MnistCnn, 1e-3),
    ] {
        let vars = VarMap::new();
        let model = architecture.build(seeded_var_builder(&vars, 0, DType::F32, &CPU))?;
        let mut optimizer = Optimizer::new(Adam::default(), &vars)?;
        let mut losses = Vec::new();
        for step in 0..30 {
            let logits = model.forward(&xs, Mode::train(0, 0, step))?;
            let loss = Cost::SoftmaxCrossEntropy.loss(&logits, &labels)?;
            losses.push(loss.to_scalar::<f32>()?);
            optimizer.backward_step(&loss, learning_rate, Clip::None)?;
        }
        assert!(losses[29] < losses[0] / 2.0, "{losses:?}");
    }
    Ok(())
}

#[test]
fn dropout_is_active_only_in_training() -> Result<()> {
    let config = lenet::Config::nielsen(1, Relu, &[20], 0.5);
    let perceptron = mlp::Config {
        sizes: vec![784, 20, 10],
        activation: Sigmoid,
        init: InitScheme::PyTorch,
        dropout: 0.5,
    };
    let vars = VarMap::new();
    let vb = seeded_var_builder(&vars, 0, DType::F32, &CPU);
    let models: [Box<dyn Model>; 2] =
        [Box::new(LeNet::new(&config, vb.pp("a"))?), Box::new(mlp::Mlp::new(&perceptron, vb.pp("b"))?)];
    for model in models {
        let at = |mode| model.forward(&input(IMAGES.0, DType::F32)?, mode)?.to_vec2::<f32>();
        let train = |step| Mode::train(0, 0, step);
        assert_ne!(at(train(0))?, at(Mode::Evaluate)?);
        assert_ne!(at(train(0))?, at(train(1))?);
        assert_eq!(at(train(1))?, at(train(1))?);
    }
    Ok(())
}

#[test]
fn impossible_sizes_are_refused() {
    let vb = || seeded_var_builder(&VarMap::new(), 0, DType::F32, &CPU);
    let lenet = |config: lenet::Config| LeNet::new(&config, vb()).unwrap_err().to_string();
    let modern = lenet::Config::default;
    assert!(lenet(lenet::Config { padding: usize::MAX, ..modern() }).contains("too large"));
    assert!(lenet(lenet::Config { channels: vec![1; 4], ..modern() }).contains("leave nothing"));
    for config in [
        lenet::Config { channels: vec![], ..modern() },
        lenet::Config { channels: vec![6, 0], ..modern() },
        lenet::Config { hidden: vec![0], ..modern() },
        lenet::Config { classes: 0, ..modern() },
    ] {
        assert!(lenet(config).contains("no zeros"));
    }
    assert!(lenet(lenet::Config { hidden: vec![usize::MAX], ..modern() }).contains("too large"));
    assert!(LeNet5::new(0, vb()).is_err());
    for sizes in [vec![784], vec![784, 0, 10]] {
        let config = mlp::Config { sizes, activation: Sigmoid, init: InitScheme::PyTorch, dropout: 0.0 };
        assert!(mlp::Mlp::new(&config, vb()).unwrap_err().to_string().contains("expected at least two"));
    }
}
