//! Training with CUDA kernels on the CPU against training with the CPU kernels.
#![cfg(feature = "cuda-emulator")]

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::VarMap;
use candle_textbook::data::Language;
use candle_textbook::models::seq2seq::{self, Attention, PackedTokens, Seq2Seq};
use candle_textbook::models::{birnn, language_model, lenet, mlp, resnet, textcnn};
use candle_textbook::nn::{
    Activation, Cell, Cost, InitScheme, Mode, Model, PackedSequences, SentenceModel, seeded_var_builder,
};
use candle_textbook::ops::{self, TimePooling, emulator};
use candle_textbook::optim::{Adam, Clip, Lbfgs, Method, NewtonCg, Optimizer, RmsProp, Sgd};
use candle_textbook::train::{
    Decoding, Metric, Progress, Run, Score, Task, Trainer, TrainerOptions, Translator,
};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::cell::Cell as StdCell;
use std::sync::Arc;

fn randoms(shape: &[usize], seed: u64) -> Result<Tensor> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let elements: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_vec(elements, shape, &Device::Cpu)
}

fn ids(count: usize, below: u32, seed: u64) -> Result<Tensor> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let ids: Vec<u32> = (0..count).map(|_| rng.random_range(0..below)).collect();
    Tensor::from_vec(ids, count, &Device::Cpu)
}

fn sentences(seed: u64) -> Result<Arc<PackedSequences>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let lengths: Vec<usize> = (0..6).map(|_| rng.random_range(1..9)).collect();
    PackedSequences::new(&lengths).map(Arc::new)
}

fn bits(tensor: &Tensor) -> Vec<u64> {
    let values = tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    values.into_iter().map(f64::to_bits).collect()
}

fn train_mode(step: u64) -> Mode {
    Mode::train(7, 0, step)
}

#[test]
fn dropout_masks_have_the_same_bits() -> Result<()> {
    for count in [1, 31, 33, 1000, 5001] {
        for before in [0, 1, 15, 16, 37] {
            let xs = randoms(&[count], 3)?;
            let run = || -> Result<(Vec<u64>, u32)> {
                let mut rng = ChaCha8Rng::seed_from_u64(11);
                rng.set_stream(5);
                (0..before).for_each(|_| _ = rng.next_u32());
                Ok((bits(&ops::dropout(&xs, 0.3, &mut rng)?), rng.next_u32()))
            };
            assert_eq!(run()?, emulator::off(run)?, "{count} elements after {before} words");
        }
    }
    Ok(())
}

/// Trains a few steps with a sparse table, and returns the variables and the norms.
fn optimize(method: Method, clip: Clip, dtype: DType) -> Result<(Vec<Vec<u64>>, Vec<u64>)> {
    let vars = VarMap::new();
    let vb = seeded_var_builder(&vars, 1, dtype, &Device::Cpu);
    for (name, shape) in [("table", &[40, 9][..]), ("weight", &[31, 50]), ("bias", &[2100])] {
        vb.get_with_hints(shape, name, candle_nn::Init::Randn { mean: 0., stdev: 1. })?;
    }
    let mut optimizer = Optimizer::new(method, &vars)?;
    optimizer.set_sparse("table")?;
    optimizer.set_max_row_norm("weight", 6.5)?;
    let var = |name: &str| vars.data().lock().unwrap()[name].as_tensor().clone();
    let mut norms = vec![];
    for step in 0..4 {
        let found = ops::embedding(&var("table"), &ids(30, 12, step)?)?;
        let more = ops::embedding(&var("table"), &ids(5, 40, 50 + step)?)?;
        let loss = (found.sqr()?.sum_all()? + more.sum_all()?)?;
        let loss = ((loss + var("weight").sqr()?.sum_all()?)? + (var("bias") * 0.3)?.sum_all()?)?;
        norms.push(optimizer.backward_step(&loss, 0.05, clip)?.to_bits());
    }
    Ok((["table", "weight", "bias"].map(|name| bits(&var(name))).to_vec(), norms))
}

#[test]
fn optimizers_follow_the_cpu_element_by_element() -> Result<()> {
    let methods: [Method; 4] = [
        Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.01, l1: 0.01, ..Sgd::default() }.into(),
        Adam::adamw().into(),
        Sgd::default().into(),
        RmsProp { momentum: 0.9, ..RmsProp::default() }.into(),
    ];
    for method in methods {
        for clip in [Clip::None, Clip::Norm(1.), Clip::Value(0.2)] {
            for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F64, 1e-13)] {
                let (found, norms) = optimize(method, clip, dtype)?;
                let (expected, expected_norms) = emulator::off(|| optimize(method, clip, dtype))?;
                let found = found.into_iter().chain([norms]).flatten();
                for (a, b) in found.zip(expected.into_iter().chain([expected_norms]).flatten()) {
                    let (a, b) = (f64::from_bits(a), f64::from_bits(b));
                    assert!((a - b).abs() <= tolerance * (1. + b.abs()), "{method:?} {clip:?}: {a}, {b}");
                }
            }
        }
    }
    Ok(())
}

/// The model's parameters and the loss of a step.
type Steps<'a> = (VarMap, Box<dyn Fn(u64) -> Result<Tensor> + 'a>);

fn mlp_steps() -> Result<Steps<'static>> {
    let vars = VarMap::new();
    let vb = seeded_var_builder(&vars, 3, DType::F32, &Device::Cpu);
    let config = mlp::Config {
        sizes: vec![49, 30, 10],
        activation: Activation::Sigmoid,
        init: InitScheme::ScaledNormal,
        dropout: 0.,
    };
    let model = mlp::Mlp::new(&config, vb)?;
    let loss = move |step| {
        let logits = model.forward(&randoms(&[10, 49], step)?, train_mode(step))?;
        Cost::SigmoidCrossEntropy.loss(&logits, &ids(10, 10, step)?)
    };
    Ok((vars, Box::new(loss)))
}

fn lenet_steps() -> Result<Steps<'static>> {
    let vars = VarMap::new();
    let vb = seeded_var_builder(&vars, 3, DType::F32, &Device::Cpu);
    let model = lenet::LeNet::new(&lenet::Config::default(), vb)?;
    let loss = move |step| {
        let logits = model.forward(&randoms(&[4, 1, 28, 28], step)?, train_mode(step))?;
        Cost::SoftmaxCrossEntropy.loss(&logits, &ids(4, 10, step)?)
    };
    Ok((vars, Box::new(loss)))
}

fn resnet_steps() -> Result<Steps<'static>> {
    let vars = VarMap::new();
    let vb = seeded_var_builder(&vars, 3, DType::F32, &Device::Cpu);
    let config = resnet::Config::cifar(8, resnet::Shortcut::default(), 10)?;
    let model = resnet::ResNet::new(&config, vb)?;
    let loss = move |step| {
        let logits = model.forward(&randoms(&[4, 3, 12, 12], step)?, train_mode(step))?;
        Cost::SoftmaxCrossEntropy.loss(&logits, &ids(4, 10, step)?)
    };
    Ok((vars, Box::new(loss)))
}

fn language_steps() -> Result<Steps<'static>> {
    let vars = VarMap::new();
    let vb = seeded_var_builder(&vars, 3, DType::F32, &Device::Cpu);
    let config = language_model::Config {
        vocabulary: 20,
        embedding: Some(12),
        cell: Cell::Lstm,
        hidden: 16,
        layers: 2,
        dropout: 0.2,
        tie_weights: false,
    };
    let model = language_model::LanguageModel::new(&config, vb)?;
    let loss = move |step| {
        let sequences = Arc::new(PackedSequences::new(&[7; 5])?);
        let (logits, _) = model.forward(&ids(35, 20, step)?, &sequences, None, train_mode(step))?;
        Cost::SoftmaxCrossEntropy.loss(&logits, &ids(35, 20, 100 + step)?)
    };
    Ok((vars, Box::new(loss)))
}

fn birnn_steps() -> Result<Steps<'static>> {
    let vars = VarMap::new();
    let vb = seeded_var_builder(&vars, 3, DType::F32, &Device::Cpu);
    let config = birnn::Config {
        vocabulary: 30,
        embedding: 12,
        cell: Cell::Gru,
        hidden: 10,
        layers: 1,
        bidirectional: true,
        dropout: 0.1,
        tags: 5,
    };
    let model = birnn::BiRnn::new(&config, vb)?;
    let loss = move |step| {
        let sentences = sentences(step)?;
        let rows = sentences.rows();
        let logits = model.forward(&ids(rows, 30, step)?, &sentences, train_mode(step))?;
        Cost::SoftmaxCrossEntropy.loss(&logits, &ids(rows, 5, 100 + step)?)
    };
    Ok((vars, Box::new(loss)))
}

fn textcnn_steps() -> Result<Steps<'static>> {
    let vars = VarMap::new();
    let vb = seeded_var_builder(&vars, 3, DType::F32, &Device::Cpu);
    let config = textcnn::Config {
        variant: textcnn::Variant::Rand,
        vocabulary: 30,
        embedding: 14,
        widths: vec![3, 4, 5],
        filters: 9,
        dropout: 0.5,
        classes: 2,
    };
    let model = textcnn::TextCnn::new(&config, vb)?;
    let loss = move |step| {
        let sentences = sentences(step)?;
        let logits = model.forward(&ids(sentences.rows(), 30, step)?, &sentences, train_mode(step))?;
        Cost::SoftmaxCrossEntropy.loss(&logits, &ids(sentences.batch(), 2, step)?)
    };
    Ok((vars, Box::new(loss)))
}

fn translation_model(cell: Cell, layers: usize, attention: Attention) -> Result<(VarMap, Seq2Seq)> {
    let config = seq2seq::Config {
        cell,
        source_vocabulary: 30,
        target_vocabulary: 25,
        embedding: 12,
        hidden: 10,
        layers,
        bidirectional: true,
        attention,
        input_feeding: false,
        dropout: 0.2,
    };
    let vars = VarMap::new();
    let model = Seq2Seq::new(&config, seeded_var_builder(&vars, 3, DType::F32, &Device::Cpu))?;
    Ok((vars, model))
}

fn translation_steps(cell: Cell, layers: usize, attention: Attention) -> Result<Steps<'static>> {
    let (vars, model) = translation_model(cell, layers, attention)?;
    let loss = move |step| {
        let [sources, targets] = [(step, 30), (50 + step, 25)].map(|(seed, below)| {
            let sequences = sentences(seed)?;
            Ok::<_, candle_core::Error>(PackedTokens { ids: ids(sequences.rows(), below, seed)?, sequences })
        });
        let (sources, targets) = (sources?, targets?);
        let next = ids(targets.sequences.rows(), 25, 100 + step)?;
        model.loss(&sources, &targets, &next, 1.0, 0.1, train_mode(step))
    };
    Ok((vars, Box::new(loss)))
}

/// The losses of 20 steps.
fn losses(steps: fn() -> Result<Steps<'static>>) -> Result<Vec<f32>> {
    let (vars, loss) = steps()?;
    let mut optimizer = Optimizer::new(Sgd { momentum: 0.9, ..Sgd::default() }, &vars)?;
    if vars.data().lock().unwrap().contains_key("embedding.weight") {
        optimizer.set_sparse("embedding.weight")?;
    }
    let step = |step| {
        let loss = loss(step)?;
        optimizer.backward_step(&loss, 0.02, Clip::Norm(5.))?;
        loss.to_scalar::<f32>()
    };
    (0..20).map(step).collect()
}

#[test]
fn the_losses_of_the_first_steps_are_those_of_the_cpu() -> Result<()> {
    type Model = (&'static str, fn() -> Result<Steps<'static>>);
    let models: [Model; 8] = [
        ("mlp", mlp_steps),
        ("lenet", lenet_steps),
        ("language model", language_steps),
        ("birnn", birnn_steps),
        ("textcnn", textcnn_steps),
        ("resnet", resnet_steps),
        ("additive attention", || translation_steps(Cell::Gru, 1, Attention::Additive)),
        ("general attention", || translation_steps(Cell::Lstm, 2, Attention::General)),
    ];
    for (name, steps) in models {
        let (found, expected) = (losses(steps)?, emulator::off(|| losses(steps))?);
        for (step, (a, b)) in found.iter().zip(&expected).enumerate() {
            assert!((a - b).abs() <= 1e-5 * b.abs(), "{name}, step {step}: {a}, expected {b}");
        }
    }
    Ok(())
}

#[test]
fn translations_are_those_of_the_cpu() -> Result<()> {
    let sources: Vec<Vec<u32>> =
        (0..5).map(|seed| ids(1 + seed as usize, 30, seed)?.to_vec1()).collect::<Result<_>>()?;
    for (cell, layers, attention) in [
        (Cell::Gru, 1, Attention::Additive),
        (Cell::Lstm, 2, Attention::General),
        (Cell::Gru, 2, Attention::None),
    ] {
        let (vars, model) = translation_model(cell, layers, attention)?;
        // Logits far apart.
        let weight = vars.data().lock().unwrap()["output.weight"].clone();
        weight.set(&randoms(&[25, 10], 9)?.affine(20., 0.)?)?;
        for beam in [1, 3] {
            let decoding = Decoding { beam, max_length: 8, n_best: beam, ..Decoding::default() };
            let run = || Translator::new(&model, &Device::Cpu).translate(&sources, &decoding).unwrap();
            let (found, expected) = (run(), emulator::off(run));
            for (a, b) in found.into_iter().flatten().zip(expected.into_iter().flatten()) {
                assert!(!b.ids.contains(&Language::END));
                assert_eq!((a.ids, a.finished), (b.ids, b.finished), "{attention:?}, beam of {beam}");
                assert!(
                    (a.score - b.score).abs() <= 1e-4,
                    "{attention:?}: {}, expected {}",
                    a.score,
                    b.score
                );
                let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5;
                assert!(a.attention.iter().flatten().zip(b.attention.iter().flatten()).all(near));
            }
        }
    }
    Ok(())
}

#[test]
fn solvers_take_the_same_steps_as_on_the_cpu() -> Result<()> {
    for method in [Method::from(Lbfgs::default()), NewtonCg { iterations: 3, ..NewtonCg::default() }.into()] {
        let losses = || -> Result<Vec<f64>> {
            let (vars, loss) = mlp_steps()?;
            let mut optimizer = Optimizer::new(method, &vars)?;
            let mut step = || Ok(optimizer.step_with(|| loss(0), 1.0, Clip::None)?.loss);
            (0..4).map(|_| step()).collect()
        };
        let (found, expected) = (losses()?, emulator::off(losses)?);
        assert!(found[3] < 0.9 * found[0], "{method:?}: {found:?}");
        for (a, b) in found.iter().zip(&expected) {
            assert!((a - b).abs() <= 1e-3 * b.abs(), "{method:?}: {found:?}, expected {expected:?}");
        }
    }
    Ok(())
}

#[test]
fn time_is_pooled_as_on_the_cpu() -> Result<()> {
    let sequences = sentences(4)?;
    let xs = Var::from_tensor(&randoms(&[sequences.rows(), 7], 1)?)?;
    for pooling in [TimePooling::Mean, TimePooling::Max] {
        let run = || -> Result<[Vec<u64>; 2]> {
            let ys = ops::pool_over_time(&xs, &sequences, pooling)?;
            let (grads, _) = ops::backward(&ys.sqr()?.sum_all()?, vec![])?;
            Ok([bits(&ys), bits(grads.get(&xs).unwrap())])
        };
        assert_eq!(run()?, emulator::off(run)?, "{pooling:?}");
    }
    Ok(())
}

/// An mlp on random examples.
struct Examples {
    steps: Steps<'static>,
    /// The step with a loss of NaN.
    nan_at: Option<u64>,
    /// The step after which training is interrupted.
    stop_at: Option<u64>,
}

impl Task for Examples {
    fn examples(&self) -> usize {
        600
    }

    fn loss(&self, _: &[u32], mode: Mode) -> anyhow::Result<Tensor> {
        let Mode::Train { step, .. } = mode else { anyhow::bail!("not a training step") };
        let interrupts = self.stop_at == Some(step);
        if interrupts {
            anyhow::bail!("killed");
        }
        let loss = self.steps.1(step)?;
        Ok(if self.nan_at == Some(step) { loss.affine(f64::NAN, 0.)? } else { loss })
    }

    fn validate(&self) -> anyhow::Result<Score> {
        Ok(Score { loss: 1., metric: 1. })
    }

    fn metric(&self) -> Metric {
        Metric::ACCURACY
    }
}

/// Counts the steps that are reported.
#[derive(Default)]
struct Reports(StdCell<usize>);

impl Progress for Reports {
    fn step_done(&self, _: usize, _: f64) {
        self.0.set(self.0.get() + 1);
    }
}

/// Trains in the run folder `dir`.
///
/// Returns the result, the parameters, the waits and the reported steps.
fn fit(
    dir: &std::path::Path,
    nan_at: Option<u64>,
    stop_at: Option<u64>,
) -> (anyhow::Result<Vec<candle_textbook::train::Epoch>>, Vec<Vec<u64>>, usize, usize) {
    let run = match dir.join("config.json").exists() {
        true => Run::open("test", Some(dir)).unwrap().0,
        false => Run::create("test", Some(dir), &serde_json::json!({})).unwrap(),
    };
    let task = Examples { steps: mlp_steps().unwrap(), nan_at, stop_at };
    let vars = task.steps.0.clone();
    let mut optimizer = Optimizer::new(Adam::default(), &vars).unwrap();
    let mut options = TrainerOptions::default();
    options.epochs = 2;
    options.batch_size = 10;
    options.checkpoint_every = Some(37);
    options.clip = Clip::Norm(1.);
    let progress = Reports::default();
    let trainer = Trainer { options, run: Some(&run), progress: &progress, ..Trainer::default() };
    let (report, counts) = emulator::count(|| trainer.fit(&task, &vars, &mut optimizer));
    let vars = vars.data().lock().unwrap();
    let mut names: Vec<_> = vars.keys().collect();
    names.sort();
    let parameters = names.into_iter().map(|name| bits(&vars[name])).collect();
    (report.map(|report| report.epochs), parameters, counts.waits, progress.0.get())
}

#[test]
fn training_does_not_wait_within_a_step_and_resumes_exactly() {
    let folder = || tempfile::tempdir().unwrap();
    let whole = folder();
    let (epochs, parameters, waits, reported) = fit(whole.path(), None, None);
    let epochs = epochs.unwrap();
    // 60 steps per epoch: steps 37, 50, 60, and 74, 110, 111, 120.
    assert_eq!((waits, reported), (7, 7));
    let killed = folder();
    assert!(fit(killed.path(), None, Some(100)).0.is_err());
    let (again, same, ..) = fit(killed.path(), None, None);
    assert_eq!(same, parameters);
    let cpu = folder();
    let (expected, ..) = emulator::off(|| fit(cpu.path(), None, None));
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-4 * b.abs();
    for ((epoch, again), expected) in epochs.iter().zip(again.unwrap()).zip(expected.unwrap()) {
        assert_eq!((epoch.train_loss, epoch.gradient_norm), (again.train_loss, again.gradient_norm));
        assert_eq!(epoch.largest_gradient_norm, again.largest_gradient_norm);
        assert!(near(epoch.train_loss, expected.train_loss), "{epoch:?}, expected {expected:?}");
        assert!(near(epoch.gradient_norm, expected.gradient_norm), "{epoch:?}, expected {expected:?}");
        assert!(near(epoch.largest_gradient_norm, expected.largest_gradient_norm));
    }
}

#[test]
fn a_loss_of_nan_is_found_later_and_names_its_step() {
    let dir = tempfile::tempdir().unwrap();
    let message = fit(dir.path(), Some(40), None).0.unwrap_err().to_string();
    assert!(message.contains("the loss of step 41 is NaN") && message.contains("checkpoint"), "{message}");
    let checkpoint = candle_core::safetensors::load(dir.path().join("checkpoint.safetensors"), &Device::Cpu);
    assert!(
        checkpoint
            .unwrap()
            .values()
            .all(|tensor| bits(tensor).iter().all(|&x| f64::from_bits(x).is_finite()))
    );
}
