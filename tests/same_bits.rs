//! Operations and trainings give the same bits on every instruction set and for any number of threads.

use candle_core::{DType, Device, Result, Tensor, Var, safetensors};
use candle_nn::{VarBuilder, VarMap};
use candle_textbook::data::music::{Encoding, Texture, chorales};
use candle_textbook::models::birnn::{self, BiRnn};
use candle_textbook::models::fasttext::{self, FastText};
use candle_textbook::models::language_model::{self, LanguageModel};
use candle_textbook::models::lenet::{self, LeNet};
use candle_textbook::models::lenet5::LeNet5;
use candle_textbook::models::mlp::{self, Mlp};
use candle_textbook::models::mnist_cnn::MnistCnn;
use candle_textbook::models::music::{self, MusicModel, Output};
use candle_textbook::models::resnet::{self, ResNet};
use candle_textbook::models::rnn::{self, Rnn};
use candle_textbook::models::seq2seq::{self, Attention, PackedTokens, Seq2Seq};
use candle_textbook::models::textcnn::{self, TextCnn};
use candle_textbook::nn::{
    Activation, Cell, Cost, InitScheme, Mode, Model, PackedSequences, RecurrentConfig, SentenceModel,
    seeded_var_builder,
};
use candle_textbook::ops::{self, Conv2dConfig, ConvFilters, Epilogue, Pool2dConfig, QueryRows, TimePooling};
use candle_textbook::optim::{
    Adadelta, Adagrad, Adam, Clip, Lbfgs, Method, NewtonCg, Optimizer, RmsProp, Sgd,
};
use candle_textbook::rng;
use candle_textbook::train::MusicBatch;
use rand::Rng;
use std::borrow::Cow;
use std::collections::HashMap;
use std::env;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

const CPU: Device = Device::Cpu;

/// Where a child process writes its results.
const RESULTS: &str = "SAME_BITS_RESULTS";

type Results = HashMap<String, Tensor>;

/// Runs itself once per instruction set, as each process reads the variable once.
#[test]
fn every_instruction_set_gives_the_same_bits() -> anyhow::Result<()> {
    if let Some(path) = env::var_os(RESULTS) {
        return write_results(Path::new(&path));
    }
    let dir = tempfile::tempdir()?;
    let mut expected: Option<(&str, Results)> = None;
    for set in ["avx512", "avx2", "neon", "scalar", "portable512"] {
        let path = dir.path().join(set);
        let status = Command::new(env::current_exe()?)
            .args(["--exact", "every_instruction_set_gives_the_same_bits", "--nocapture"])
            .env("CANDLE_TEXTBOOK_SIMD", set)
            .env(RESULTS, &path)
            .status()?;
        assert!(status.success(), "{set}: {status}");
        if !path.exists() {
            println!("{set}: not available here");
            continue;
        }
        let found = safetensors::load(&path, &CPU)?;
        println!("{set}: {} tensors", found.len());
        match &expected {
            Some((first, expected)) => assert_same(&format!("{set} and {first}"), &found, expected)?,
            None => expected = Some((set, found)),
        }
    }
    Ok(())
}

fn write_results(path: &Path) -> anyhow::Result<()> {
    if ops::instruction_set().is_err() {
        return Ok(());
    }
    let on = |threads| -> anyhow::Result<Results> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        Ok(pool.install(results)?)
    };
    let found = on(1)?;
    assert_same("one thread and three", &on(3)?, &found)?;
    Ok(safetensors::save(&found, path)?)
}

fn assert_same(what: &str, found: &Results, expected: &Results) -> Result<()> {
    let bits = |tensor: &Tensor| -> Result<Vec<u64>> {
        let values = tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
        Ok(values.into_iter().map(f64::to_bits).collect())
    };
    assert_eq!(found.len(), expected.len());
    let mut different = vec![];
    for (name, tensor) in found {
        if bits(tensor)? != bits(&expected[name])? {
            different.push(name.as_str());
        }
    }
    different.sort();
    assert!(different.is_empty(), "{what} differ in {different:?}");
    Ok(())
}

fn results() -> Result<Results> {
    let mut results = Results::new();
    for dtype in [DType::F32, DType::F64] {
        let mut found = Results::new();
        operations(dtype, &mut found)?;
        trainings(dtype, &mut found)?;
        let name = |name| format!("{dtype:?} {name}");
        results.extend(found.into_iter().map(|(key, value)| (name(key), value)));
    }
    Ok(results)
}

/// Normally distributed values that depend on the shape alone.
fn normal(dims: &[usize], dtype: DType) -> Result<Tensor> {
    let rng = &mut rng::stream(1, &format!("{dims:?}"));
    let value = |_| rng.sample::<f64, _>(rand_distr::StandardNormal);
    let values: Vec<f64> = (0..dims.iter().product()).map(value).collect();
    Tensor::from_vec(values, dims, &CPU)?.to_dtype(dtype)
}

fn ids(count: usize, below: u32) -> Result<Tensor> {
    let rng = &mut rng::stream(1, &format!("{count} ids below {below}"));
    Tensor::from_vec((0..count).map(|_| rng.random_range(0..below)).collect(), count, &CPU)
}

/// Adds an operation's output and its gradients with respect to all inputs.
fn operation(
    name: &str,
    dtype: DType,
    shapes: &[&[usize]],
    results: &mut Results,
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    let vars = shapes.iter().map(|dims| Var::from_tensor(&normal(dims, dtype)?));
    let vars = vars.collect::<Result<Vec<_>>>()?;
    let output = f(&vars.iter().map(|var| var.as_tensor().clone()).collect::<Vec<_>>())?;
    let grads = (&output * normal(output.dims(), dtype)?)?.sum_all()?.backward()?;
    for (i, var) in vars.iter().enumerate() {
        let grad = grads.get(var).expect("every input is a variable");
        results.insert(format!("{name}, gradient {i} of {shapes:?}"), grad.clone());
    }
    results.insert(format!("{name} of {shapes:?}"), output.detach());
    Ok(())
}

/// Every operation, on shapes that fill no vector and no tile.
fn operations(dtype: DType, results: &mut Results) -> Result<()> {
    for (rows, inputs, outputs) in [(1, 5, 2), (7, 47, 11), (37, 200, 13), (131, 45, 29)] {
        let shapes: [&[usize]; 3] = [&[rows, inputs], &[outputs, inputs], &[outputs]];
        operation("linear", dtype, &shapes, results, |x| ops::linear(&x[0], &x[1], Some(&x[2])))?;
    }
    convolutions(dtype, results)?;
    let image: &[usize] = &[3, 5, 9, 11];
    let window = Pool2dConfig { kernel: (3, 2), stride: (2, 1), padding: (1, 1) };
    operation("max_pool2d", dtype, &[image], results, |x| ops::max_pool2d(&x[0], window))?;
    operation("avg_pool2d", dtype, &[image], results, |x| ops::avg_pool2d(&x[0], window))?;
    operation("l2_pool2d", dtype, &[image], results, |x| ops::l2_pool2d(&x[0], window))?;
    operation("relu", dtype, &[image], results, |x| ops::relu(&x[0]))?;
    operation("sigmoid", dtype, &[image], results, |x| ops::sigmoid(&x[0]))?;
    operation("tanh", dtype, &[image], results, |x| ops::tanh(&x[0]))?;
    operation("dropout", dtype, &[image], results, |x| {
        ops::dropout(&x[0], 0.3, &mut rng::stream(1, "dropout"))
    })?;
    operation("batch_norm", dtype, &[image, &[5], &[5], image], results, |x| {
        let epilogue = Epilogue { add: Some(&x[3]), relu: true };
        Ok(ops::batch_norm(&x[0], &x[1], &x[2], 1e-5, None, epilogue)?.0)
    })?;
    let (logits, targets): (&[usize], _) = (&[19, 37], ids(19, 37)?);
    operation("softmax_cross_entropy", dtype, &[logits], results, |x| {
        ops::softmax_cross_entropy(&x[0], &targets, 0.1)
    })?;
    operation("sigmoid_cross_entropy", dtype, &[logits], results, |x| {
        ops::sigmoid_cross_entropy(&x[0], &targets)
    })?;
    operation("quadratic", dtype, &[logits], results, |x| ops::quadratic(&x[0], &targets))?;

    let sequences = Arc::new(PackedSequences::new(&[7, 3, 1, 5])?);
    let (words, tokens): (&[usize], _) = (&[16, 21], ids(16, 9)?);
    operation("embedding", dtype, &[&[9, 21]], results, |x| ops::embedding(&x[0], &tokens))?;
    operation("embedding_mean", dtype, &[&[9, 21]], results, |x| {
        ops::embedding_mean(&x[0], &tokens, &sequences)
    })?;
    operation("mean over time", dtype, &[words], results, |x| {
        ops::pool_over_time(&x[0], &sequences, TimePooling::Mean)
    })?;
    operation("max over time", dtype, &[words], results, |x| {
        ops::pool_over_time(&x[0], &sequences, TimePooling::Max)
    })?;
    let rows = [2, 0, 0, 3, 1, 0];
    for (name, count) in [("additive attention", 4), ("dot attention", 3)] {
        let shapes: [&[usize]; 4] = [&[6, 21], &[16, 21], &[16, 37], &[21]];
        operation(name, dtype, &shapes[..count], results, |x| {
            Ok(ops::attention(&x[0], &x[1], &x[2], x.get(3), &sequences, QueryRows::Of(&rows))?.0)
        })?;
    }
    operation("linear_cross_entropy", dtype, &[&[19, 23], &[37, 23], &[37]], results, |x| {
        ops::linear_cross_entropy(&x[0], &x[1], Some(&x[2]), &targets, 0.1)
    })?;
    operation("conv_max_over_time", dtype, &[words, &[19, 21, 3], &[19]], results, |x| {
        let filters = ConvFilters { weight: x[1].clone(), bias: x[2].clone() };
        ops::conv_max_over_time(&x[0], &sequences, &[filters], 2)
    })
}

/// Direct convolution, Winograd's, and both ways to the weight's gradient.
fn convolutions(dtype: DType, results: &mut Results) -> Result<()> {
    type Pair = (usize, usize);
    type Case = ([usize; 4], [usize; 4], Pair, Pair, Pair, usize);
    let cases: [Case; 7] = [
        ([5, 1, 13, 15], [3, 1, 5, 5], (1, 1), (2, 2), (1, 1), 1),
        ([9, 6, 14, 14], [16, 6, 5, 5], (1, 1), (0, 0), (1, 1), 1),
        ([3, 4, 9, 10], [6, 2, 3, 2], (2, 3), (1, 0), (1, 2), 2),
        ([2, 17, 11, 13], [16, 17, 3, 3], (1, 1), (1, 1), (1, 1), 1),
        ([2, 150, 18, 23], [17, 150, 3, 3], (1, 1), (1, 1), (1, 1), 1),
        ([3, 16, 9, 9], [19, 16, 3, 3], (2, 2), (1, 1), (1, 1), 1),
        ([2, 5, 7, 8], [9, 5, 1, 1], (2, 2), (0, 0), (1, 1), 1),
    ];
    for (input, weight, stride, padding, dilation, groups) in cases {
        let config = Conv2dConfig { stride, padding, dilation, groups };
        operation("conv2d", dtype, &[&input, &weight, &weight[..1]], results, |x| {
            ops::conv2d(&x[0], &x[1], Some(&x[2]), config)
        })?;
    }
    Ok(())
}

/// Trains a model for three steps and adds its weights.
fn train<M>(
    name: &str,
    dtype: DType,
    method: impl Into<Method>,
    results: &mut Results,
    build: impl FnOnce(VarBuilder) -> Result<M>,
    loss: impl Fn(&M, Mode) -> Result<Tensor>,
) -> Result<()> {
    let vars = VarMap::new();
    let model = build(seeded_var_builder(&vars, 1, dtype, &CPU))?;
    let mut optimizer = Optimizer::new(method, &vars)?;
    for step in 0..3 {
        let mode = Mode::train(1, 0, step);
        optimizer.step_with(|| loss(&model, mode), 0.01, Clip::None)?;
    }
    for (key, var) in vars.data().lock().unwrap().iter() {
        results.insert(format!("{name}: {key}"), var.as_tensor().clone());
    }
    Ok(())
}

fn trainings(dtype: DType, results: &mut Results) -> Result<()> {
    images(dtype, results)?;
    sentences(dtype, results)?;
    translations(dtype, results)?;
    music(dtype, results)?;
    let sequences = Arc::new(PackedSequences::new(&[5, 4, 2])?);
    let (tokens, targets) = (ids(11, 13)?, ids(11, 12)?);
    for cell in [Cell::Tanh, Cell::Relu, Cell::Gru, Cell::Lstm] {
        for embedding in [None, Some(7)] {
            let config = language_model::Config {
                vocabulary: 13,
                embedding,
                cell,
                hidden: 19,
                layers: 2,
                dropout: 0.2,
                tie_weights: false,
            };
            let build = |vb: VarBuilder| LanguageModel::new(&config, vb);
            train(
                &format!("{cell:?} {embedding:?}"),
                dtype,
                Adam::adamw(),
                results,
                build,
                |model, mode| {
                    let (logits, _) = model.forward(&tokens, &sequences, None, mode)?;
                    Cost::SoftmaxCrossEntropy.loss(&logits, &targets)
                },
            )?;
        }
    }
    Ok(())
}

fn images(dtype: DType, results: &mut Results) -> Result<()> {
    let (digits, labels) = (normal(&[3, 1, 28, 28], dtype)?, ids(3, 10)?);
    let photos = normal(&[3, 3, 16, 16], dtype)?;
    let classify =
        |model: &dyn Model, xs: &Tensor, cost: Cost, mode| cost.loss(&model.forward(xs, mode)?, &labels);
    let (activation, init) = (Activation::Sigmoid, InitScheme::PyTorch);
    let mlp = mlp::Config { sizes: vec![784, 30, 10], activation, init, dropout: 0.2 };
    let sgd = Sgd { momentum: 0.9, nesterov: true, ..Sgd::default() };
    let flat = digits.flatten_from(1)?;
    for (name, method, dropout) in [
        ("mlp", Method::from(sgd), 0.2),
        ("mlp by lbfgs", Lbfgs::default().into(), 0.),
        ("mlp by newton-cg", NewtonCg::default().into(), 0.),
    ] {
        let config = mlp::Config { dropout, ..mlp.clone() };
        train(
            name,
            dtype,
            method,
            results,
            |vb| Mlp::new(&config, vb),
            |model, mode| classify(model, &flat, Cost::SoftmaxCrossEntropy, mode),
        )?;
    }
    let config = lenet::Config::default();
    train(
        "lenet",
        dtype,
        Adadelta::default(),
        results,
        |vb| LeNet::new(&config, vb),
        |model, mode| classify(model, &digits, Cost::SigmoidCrossEntropy, mode),
    )?;
    train(
        "lenet5",
        dtype,
        Adagrad::default(),
        results,
        |vb| LeNet5::new(10, vb),
        |model, mode| classify(model, &digits, Cost::Quadratic, mode),
    )?;
    train(
        "mnist_cnn",
        dtype,
        Adadelta::default(),
        results,
        |vb| MnistCnn::new(10, vb),
        |model, mode| classify(model, &digits, Cost::SoftmaxCrossEntropy, mode),
    )?;
    let config = resnet::Config::cifar(8, resnet::Shortcut::Projection, 10)?;
    train(
        "resnet",
        dtype,
        sgd,
        results,
        |vb| ResNet::new(&config, vb),
        |model, mode| classify(model, &photos, Cost::SoftmaxCrossEntropy, mode),
    )
}

fn sentences(dtype: DType, results: &mut Results) -> Result<()> {
    let sentences = Arc::new(PackedSequences::new(&[6, 9, 5])?);
    let (words, classes, tags) = (ids(20, 30)?, ids(3, 2)?, ids(20, 2)?);
    let classify = |model: &dyn SentenceModel, targets: &Tensor, mode| {
        Cost::SoftmaxCrossEntropy.loss(&model.forward(&words, &sentences, mode)?, targets)
    };
    let variant = textcnn::Variant::Rand;
    let (widths, vocabulary, embedding, dropout) = (vec![3, 4, 5], 30, 21, 0.3);
    let config = textcnn::Config { variant, vocabulary, embedding, widths, filters: 10, dropout, classes: 2 };
    train(
        "textcnn",
        dtype,
        Adadelta::default(),
        results,
        |vb| TextCnn::new(&config, vb),
        |model, mode| classify(model, &classes, mode),
    )?;
    let config = fasttext::Config { features: 30, embedding: 10, classes: 2 };
    train(
        "fasttext",
        dtype,
        Sgd::default(),
        results,
        |vb| FastText::new(&config, vb),
        |model, mode| classify(model, &classes, mode),
    )?;
    let (cell, hidden, layers, bidirectional) = (Cell::Gru, 9, 1, true);
    let recurrent =
        RecurrentConfig { cell, features: 21, hidden, layers, bidirectional, dropout, forget_bias: None };
    let config = rnn::Config { vocabulary, recurrent, pool: rnn::Pool::Mean, dropout, classes: 2 };
    train(
        "rnn",
        dtype,
        RmsProp::default(),
        results,
        |vb| Rnn::new(&config, vb),
        |model, mode| classify(model, &classes, mode),
    )?;
    let (cell, layers) = (Cell::Lstm, 2);
    let config =
        birnn::Config { vocabulary, embedding, cell, hidden, layers, bidirectional, dropout, tags: 2 };
    train(
        "birnn",
        dtype,
        Adam::adamw(),
        results,
        |vb| BiRnn::new(&config, vb),
        |model, mode| classify(model, &tags, mode),
    )
}

fn translations(dtype: DType, results: &mut Results) -> Result<()> {
    let tokens = |lengths: &[u32], first: u32| {
        let sequence = |&length: &u32| (0..length).map(|i| (first + 5 * i + length) % 13).collect();
        PackedTokens::new(&lengths.iter().map(sequence).collect::<Vec<_>>(), &CPU)
    };
    let (sources, targets, next) = (tokens(&[3, 6, 1], 1)?, tokens(&[5, 2, 4], 2)?, tokens(&[5, 2, 4], 7)?);
    for (attention, cell, input_feeding, forcing) in
        [(Attention::Additive, Cell::Gru, false, 1.0), (Attention::General, Cell::Lstm, true, 0.5)]
    {
        let config = seq2seq::Config {
            cell,
            source_vocabulary: 13,
            target_vocabulary: 13,
            embedding: 7,
            hidden: 19,
            layers: 2,
            bidirectional: true,
            attention,
            input_feeding,
            dropout: 0.2,
        };
        train(
            &format!("seq2seq {attention:?}"),
            dtype,
            Adam::adamw(),
            results,
            |vb| Seq2Seq::new(&config, vb),
            |model, mode| model.loss(&sources, &targets, &next.ids, forcing, 0.1, mode),
        )?;
    }
    Ok(())
}

fn music(dtype: DType, results: &mut Results) -> Result<()> {
    let pieces = chorales(2, 0, 0, 0).train;
    for is_autoregressive in [false, true] {
        let texture = if is_autoregressive { Texture::Voices(4) } else { Texture::Keys };
        let encoding = Encoding::new(&pieces, texture);
        let output = match is_autoregressive {
            false => Output::Independent { keys: encoding.key_outputs() },
            true => Output::Autoregressive {
                features: encoding.note_features(),
                units: 9,
                classes: encoding.classes(),
            },
        };
        let config = music::Config {
            features: encoding.features(),
            embedding: 7,
            cell: Cell::Gru,
            hidden: 19,
            layers: 1,
            dropout: 0.2,
            output,
        };
        let parts: Vec<_> = pieces
            .iter()
            .map(|piece| match texture {
                Texture::Voices(_) => (Cow::Borrowed(piece), 0..20),
                Texture::Keys => (Cow::Owned(piece.clone().without_voices()), 5..30),
            })
            .collect();
        train(
            &format!("music {texture:?}"),
            dtype,
            Adam::adamw(),
            results,
            |vb| MusicModel::new(&config, vb),
            |model, mode| {
                let loss =
                    MusicBatch::new(model, &encoding, &parts).and_then(|batch| batch.loss(model, mode));
                loss.map_err(candle_core::Error::wrap)
            },
        )?;
    }
    Ok(())
}
