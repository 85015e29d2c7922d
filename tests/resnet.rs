//! Compares residual networks and batch normalisation with PyTorch.
//!
//! `fixtures/resnet.py` computes the expected values.

use candle_core::{DType, Device, ModuleT, Result, Shape, Tensor, Var};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{VarBuilder, VarMap};
use candle_textbook::models::ImageModel;
use candle_textbook::models::resnet::{Config, ResNet, Shortcut};
use candle_textbook::nn::{Cost, Mode, Model, batch_norm, linear, seeded_var_builder};
use candle_textbook::optim::{Clip, Optimizer, Sgd};
use candle_textbook::train::{load_pretrained, load_weights, save_weights};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};

const CPU: Device = Device::Cpu;
const TRAIN: Mode = Mode::train(0, 0, 0);

struct Case {
    name: &'static str,
    config: Config,
    input: [usize; 4],
    targets: &'static [u32],
}

fn cases() -> Result<Vec<Case>> {
    let cifar = |name, shortcut, input, targets| {
        Ok(Case { name, config: Config::cifar(20, shortcut, 10)?, input, targets })
    };
    let imagenet = |name, layers, input, targets| {
        Ok(Case { name, config: Config::imagenet(layers, 10)?, input, targets })
    };
    [
        cifar("resnet20", Shortcut::Identity, [3, 3, 13, 10], &[3, 0, 7]),
        cifar("resnet20_projection", Shortcut::Projection, [2, 3, 8, 8], &[9, 1]),
        cifar("plain20", Shortcut::None, [2, 3, 8, 12], &[5, 2]),
        imagenet("resnet18", 18, [2, 3, 64, 50], &[3, 0]),
        imagenet("resnet50", 50, [2, 3, 64, 64], &[9, 5]),
    ]
    .into_iter()
    .collect()
}

/// Values from -1 to 1 that are the same in any language: quadratic residues.
fn fixed_values(shape: &[usize], phase: usize) -> Result<Tensor> {
    let number = |i: usize| ((31 * i * i + 17 * i + 101 * phase) % 1009) as f64 / 504.0 - 1.0;
    Tensor::from_vec((0..shape.iter().product()).map(number).collect(), shape, &CPU)
}

fn sorted(vars: &VarMap) -> BTreeMap<String, Var> {
    vars.data().lock().unwrap().clone().into_iter().collect()
}

fn model_with_fixed_weights(config: &Config, dtype: DType) -> Result<(VarMap, ResNet)> {
    let vars = VarMap::new();
    let model = ResNet::new(config, seeded_var_builder(&vars, 0, dtype, &CPU))?;
    for (phase, (name, var)) in sorted(&vars).into_iter().enumerate() {
        let values = fixed_values(var.dims(), phase)?;
        let values = match var.rank() {
            1 if name.ends_with("running_var") || name.ends_with("weight") => values.affine(0.5, 1.0)?,
            1 => values.affine(0.1, 0.0)?,
            _ => values.affine((6.0 / var.dims()[1..].iter().product::<usize>() as f64).sqrt(), 0.0)?,
        };
        var.set(&values.to_dtype(dtype)?)?;
    }
    Ok((vars, model))
}

fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1()
}

#[track_caller]
fn assert_close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1f64, |scale, x| scale.max(x.abs()));
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= tolerance * scale, "{what}: {found}, PyTorch has {expected}");
    }
}

/// Norm, sum, product with fixed values, and the first eight elements.
fn probe(tensor: &Tensor) -> Result<Vec<f64>> {
    let flat = values(tensor)?;
    let product = values(&fixed_values(&[flat.len()], 7)?)?.iter().zip(&flat).map(|(a, b)| a * b).sum();
    let norm = flat.iter().map(|x| x * x).sum::<f64>().sqrt();
    Ok([&[norm, flat.iter().sum(), product], &flat[..8]].concat())
}

fn fixture() -> Result<HashMap<String, Tensor>> {
    candle_core::safetensors::load("tests/fixtures/resnet.safetensors", &CPU)
}

#[test]
fn logits_gradients_and_running_statistics_equal_pytorchs() -> Result<()> {
    let fixture = fixture()?;
    for Case { name, config, input, targets } in cases()? {
        let (vars, model) = model_with_fixed_weights(&config, DType::F64)?;
        let xs = fixed_values(&input, 1000)?;
        let evaluated = values(&model.forward(&xs, Mode::Evaluate)?)?;
        assert_close(name, &evaluated, &values(&fixture[&format!("{name}/evaluated")])?, 1e-10);
        let logits = model.forward(&xs, TRAIN)?;
        assert_close(name, &values(&logits)?, &values(&fixture[&format!("{name}/trained")])?, 1e-9);
        let grads = Cost::SoftmaxCrossEntropy.loss(&logits, &Tensor::new(targets, &CPU)?)?.backward()?;
        let probes = fixture[&format!("{name}/probes")].to_vec2::<f64>()?;
        let vars = sorted(&vars);
        assert_eq!(vars.len(), probes.len());
        for ((parameter, var), expected) in vars.iter().zip(probes) {
            let running = parameter.contains("running_");
            assert_eq!(grads.get(var).is_none(), running, "{parameter}");
            let found = probe(grads.get(var).unwrap_or(var))?;
            assert_close(&format!("{name}, {parameter}"), &found, &expected, 1e-8);
        }

        let (_, model) = model_with_fixed_weights(&config, DType::F32)?;
        let logits = values(&model.forward(&xs.to_dtype(DType::F32)?, Mode::Evaluate)?)?;
        assert_close(name, &logits, &evaluated, 1e-4);
    }
    Ok(())
}

/// A backend that records names and shapes of the parameters and returns zeros without allocating memory.
#[derive(Clone, Default)]
struct Shapes(Arc<Mutex<BTreeMap<String, Vec<usize>>>>);

impl SimpleBackend for Shapes {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        self.0.lock().unwrap().insert(name.to_string(), shape.dims().to_vec());
        Tensor::zeros((), dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("{name}")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

fn shapes(config: &Config) -> Result<BTreeMap<String, Vec<usize>>> {
    let shapes = Shapes::default();
    ResNet::new(config, VarBuilder::from_backend(Box::new(shapes.clone()), DType::F32, CPU))?;
    Ok(shapes.0.lock().unwrap().clone())
}

#[test]
fn names_and_shapes_equal_torchvisions() -> Result<()> {
    for Case { name, config, .. } in cases()? {
        let text = fixture()?[&format!("{name}/shapes")].to_vec1::<u8>()?;
        let expected: BTreeMap<_, _> = serde_json::from_slice(&text).map_err(candle_core::Error::wrap)?;
        assert_eq!(shapes(&config)?, expected, "{name}");
    }
    Ok(())
}

#[test]
fn parameter_counts_match_the_paper_and_torchvision() -> Result<()> {
    let count = |config: Config| -> Result<usize> {
        let parameters = shapes(&config)?.into_iter().filter(|(name, _)| !name.contains("running_"));
        Ok(parameters.map(|(_, shape)| shape.iter().product::<usize>()).sum())
    };
    for (layers, expected) in [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)] {
        let digits = if layers == 110 { 0.1 } else { 0.01 };
        for shortcut in [Shortcut::Identity, Shortcut::None] {
            let millions = count(Config::cifar(layers, shortcut, 10)?)? as f64 / 1e6;
            assert_eq!((millions / digits).round(), (expected / digits).round(), "{layers}: {millions}");
        }
    }
    for (layers, expected) in
        [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)]
    {
        assert_eq!(count(Config::imagenet(layers, 1000)?)?, expected, "{layers}");
    }
    Ok(())
}

#[test]
fn invalid_depths_and_batches_without_variance_are_refused() -> Result<()> {
    let depth = Config::cifar(21, Shortcut::Identity, 10).unwrap_err().to_string();
    assert!(depth.contains("found 21 layers, expected 6n+2"), "{depth}");
    assert!(Config::cifar(2, Shortcut::Identity, 10).is_err());
    let depth = Config::imagenet(20, 10).unwrap_err().to_string();
    assert!(depth.contains("found 20 layers, expected 18, 34, 50, 101 or 152"), "{depth}");

    let valid = || Config::cifar(20, Shortcut::Projection, 10);
    for config in [
        Config { width: 0, ..valid()? },
        Config { channels: 0, ..valid()? },
        Config { classes: 0, ..valid()? },
        Config { width: usize::MAX / 2, ..valid()? },
        Config { blocks: vec![1; 100], ..valid()? },
    ] {
        let error =
            ResNet::new(&config, seeded_var_builder(&VarMap::new(), 0, DType::F32, &CPU)).unwrap_err();
        assert!(error.to_string().contains("expected numbers of at least 1"), "{error}");
    }

    let vars = VarMap::new();
    let norm = batch_norm(3, 1e-5, seeded_var_builder(&vars, 0, DType::F32, &CPU))?;
    let one = Tensor::ones((1, 3, 1, 1), DType::F32, &CPU)?;
    let error = norm.forward_t(&one, true).unwrap_err().to_string();
    assert!(error.contains("found an input of shape [1, 3, 1, 1] in training, expected two"), "{error}");
    assert!(norm.forward_t(&one.narrow(0, 0, 0)?, true).is_err());
    assert_eq!(sorted(&vars)["running_var"].to_vec1::<f32>()?, [1.0; 3]);
    norm.forward_t(&one, false)?;
    Ok(())
}

#[test]
fn a_network_learns_and_saves_its_running_statistics() -> anyhow::Result<()> {
    let config = Config { width: 4, ..Config::cifar(8, Shortcut::Identity, 4)? };
    let vars = VarMap::new();
    let model = ResNet::new(&config, seeded_var_builder(&vars, 0, DType::F32, &CPU))?;
    // Weight decay would change the running statistics if they had a gradient.
    let sgd = Sgd { momentum: 0.9, weight_decay: 1e-2, decay_biases: true, ..Sgd::default() };
    let mut optimizer = Optimizer::new(sgd, &vars)?;
    let xs = fixed_values(&[16, 3, 12, 12], 3)?.to_dtype(DType::F32)?;
    let targets = Tensor::from_iter((0..16u32).map(|i| i % 4), &CPU)?;
    let mut losses = vec![];
    for _ in 0..30 {
        let loss = Cost::SoftmaxCrossEntropy.loss(&model.forward(&xs, TRAIN)?, &targets)?;
        let before = values(&sorted(&vars)["bn1.running_var"])?;
        optimizer.backward_step(&loss, 0.05, Clip::None)?;
        assert_eq!(before, values(&sorted(&vars)["bn1.running_var"])?);
        losses.push(loss.to_scalar::<f32>()?);
    }
    assert!(losses[29] < losses[0] / 2.0, "{losses:?}");

    let evaluated = values(&model.forward(&xs, Mode::Evaluate)?)?;
    assert_eq!(evaluated, values(&model.forward(&xs, Mode::Evaluate)?)?);
    let file = tempfile::NamedTempFile::new()?;
    save_weights(file.path(), &vars)?;
    let vars = VarMap::new();
    let model = ResNet::new(&config, seeded_var_builder(&vars, 1, DType::F32, &CPU))?;
    load_weights(file.path(), &vars)?;
    assert_eq!(evaluated, values(&model.forward(&xs, Mode::Evaluate)?)?);
    Ok(())
}

#[test]
fn frozen_layers_do_not_change() -> Result<()> {
    let vars = VarMap::new();
    let config = Config { width: 4, ..Config::cifar(8, Shortcut::Projection, 3)? };
    let mut model = ResNet::new(&config, seeded_var_builder(&vars, 0, DType::F32, &CPU))?;
    model.freeze_until("layer2")?;
    let kept: Vec<_> = sorted(&vars).into_iter().map(|(name, tensor)| (name, values(&tensor))).collect();
    let mut optimizer = Optimizer::new(Sgd { weight_decay: 0.1, ..Sgd::default() }, &vars)?;
    let xs = fixed_values(&[6, 3, 8, 8], 3)?.to_dtype(DType::F32)?;
    let targets = Tensor::new(&[0u32, 1, 2, 0, 1, 2], &CPU)?;
    optimizer.backward_step(
        &Cost::default().loss(&model.forward(&xs, TRAIN)?, &targets)?,
        0.1,
        Clip::None,
    )?;
    for (name, before) in kept {
        let same = before? == values(&sorted(&vars)[&name])?;
        let frozen = ["conv1", "bn1", "layer1"].iter().any(|layer| name.starts_with(layer));
        assert_eq!(same, frozen, "{name}");
    }
    let error = model.freeze_until("layer4").unwrap_err().to_string();
    assert!(error.contains("no layer layer4, expected one of layer1, layer2, layer3, fc"), "{error}");
    Ok(())
}

#[test]
fn pretrained_weights_load_except_for_a_head_with_other_classes() -> anyhow::Result<()> {
    let of = |classes: usize| -> Result<VarMap> {
        let vars = VarMap::new();
        let vb = seeded_var_builder(&vars, 0, DType::F32, &CPU);
        linear(2, 3, vb.pp("first"))?;
        batch_norm(3, 1e-5, vb.pp("norm"))?;
        linear(3, classes, vb.pp("fc"))?;
        Ok(vars)
    };
    for file in ["weights.pth", "weights.safetensors"] {
        let path = Path::new("tests/fixtures").join(file);
        let vars = of(4)?;
        assert!(load_pretrained(&path, &vars, "fc")?.has_head, "{file}");
        let fc = values(&sorted(&vars)["fc.bias"])?;
        let vars = of(5)?;
        let own = values(&sorted(&vars)["fc.weight"])?;
        assert!(!load_pretrained(&path, &vars, "fc")?.has_head, "{file}");
        assert_eq!(values(&sorted(&vars)["fc.weight"])?, own);
        assert_eq!(values(&sorted(&vars)["first.weight"])?, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!((values(&sorted(&vars)["norm.running_mean"])?, fc), (vec![7.0; 3], vec![8.0; 4]));
    }
    let vars = of(4)?;
    linear(1, 1, seeded_var_builder(&vars, 0, DType::F32, &CPU).pp("more"))?;
    let path = Path::new("tests/fixtures/weights.pth");
    let error = load_pretrained(path, &vars, "fc").unwrap_err().to_string();
    assert!(error.contains("weights.pth: parameter more.bias is missing"), "{error}");
    let other = tempfile::Builder::new().suffix(".pth").tempfile()?;
    let error = load_pretrained(other.path(), &vars, "fc").unwrap_err().to_string();
    assert!(error.contains("found an empty file"), "{error}");
    Ok(())
}

#[test]
fn the_deepest_networks_backpropagate_on_a_2_mb_stack() {
    let gradients = || -> Result<()> {
        let narrow =
            |layers| Ok::<_, candle_core::Error>(Config { width: 1, ..Config::imagenet(layers, 10)? });
        for config in [Config::cifar(110, Shortcut::Identity, 10)?, narrow(152)?] {
            let vars = VarMap::new();
            let model = ResNet::new(&config, seeded_var_builder(&vars, 0, DType::F32, &CPU))?;
            let xs = fixed_values(&[2, 3, 36, 36], 1)?.to_dtype(DType::F32)?;
            let grads = model.forward(&xs, TRAIN)?.sqr()?.sum_all()?.backward()?;
            let first = grads.get(&sorted(&vars)["conv1.weight"]).expect("a gradient");
            assert!(values(first)?.iter().any(|&x| x != 0.0));
        }
        Ok(())
    };
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(gradients).unwrap();
    thread.join().unwrap().unwrap();
}

#[test]
fn feature_maps_are_those_of_the_stem_and_each_stage() -> Result<()> {
    let (_, model) = model_with_fixed_weights(&Config::imagenet(18, 10)?, DType::F32)?;
    let maps = model.feature_maps(&fixed_values(&[1, 3, 33, 64], 1)?.to_dtype(DType::F32)?)?;
    let found: Vec<_> = maps.iter().map(Tensor::dims).collect();
    let expected: [&[usize]; 5] =
        [&[1, 64, 9, 16], &[1, 64, 9, 16], &[1, 128, 5, 8], &[1, 256, 3, 4], &[1, 512, 2, 2]];
    assert_eq!(found, expected);
    assert_eq!(model.filters().dims(), [64, 3, 7, 7]);
    Ok(())
}
