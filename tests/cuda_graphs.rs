//! Whole training steps with CUDA kernels: the calls that they make to a GPU, and the same steps as graphs.
#![cfg(feature = "cuda-emulator")]

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarMap;
use candle_textbook::data::{Images, Level, Pairs, TextStream, Vocabulary};
use candle_textbook::models::seq2seq::{self, Attention, Seq2Seq};
use candle_textbook::models::{birnn, language_model, lenet, mlp, resnet, textcnn};
use candle_textbook::nn::{
    Activation, Cell, Cost, InitScheme, Mode, Model, SentenceModel, seeded_var_builder,
};
use candle_textbook::ops::emulator::{self, Counts, Fault};
use candle_textbook::optim::{Adam, Clip, Optimizer};
use candle_textbook::train::{
    ImageClassification, LanguageModelling, LanguageModellingConfig, Metric, Quiet, Run, Score, Scoring,
    SentenceClassification, Sentences, Tagging, Task, TeacherForcing, Trainer, TrainerOptions, Translation,
    Windowing,
};
use std::collections::HashMap;
use std::path::Path;

const CPU: Device = Device::Cpu;

/// What to do with a task: its variables, the name of its sparse table, and its batch size.
type Use<'a, R> = &'a dyn Fn(&dyn Task, &VarMap, Option<&str>, usize) -> R;

fn builder(vars: &VarMap) -> candle_nn::VarBuilder<'_> {
    seeded_var_builder(vars, 3, DType::F32, &CPU)
}

/// Images of `shape` with 10 classes.
fn images<R>(
    model: impl FnOnce(candle_nn::VarBuilder) -> Result<Box<dyn Model>>,
    shape: (usize, usize, usize),
    batch: usize,
    run: Use<R>,
) -> Result<R> {
    let (count, size) = (2 * batch + batch / 2, shape.0 * shape.1 * shape.2);
    let pixels: Vec<u8> = (0..count * size).map(|at| (at * at % 253) as u8).collect();
    let images = Images::new(pixels, (0..count as u32).map(|at| at % 10).collect(), shape, 10)?;
    let (vars, all) = (VarMap::new(), (0..count as u32).collect::<Vec<_>>());
    let model = model(builder(&vars))?;
    let task = ImageClassification {
        model: model.as_ref(),
        cost: Cost::SoftmaxCrossEntropy,
        images: &images,
        training: &all,
        validation: &all[..2],
        augmentation: None,
        label_smoothing: 0.,
        device: &CPU,
    };
    Ok(run(&task, &vars, None, batch))
}

/// Some sentences of different lengths, as ids below `below`.
fn sentences(count: usize, below: u32) -> Sentences {
    let sentence =
        |at: usize| (0..3 + at * 7 % 11).map(|word| (at * 13 + word * word) as u32 % below).collect();
    Sentences::new((0..count).map(sentence))
}

fn text_cnn<R>(run: Use<R>) -> Result<R> {
    let (vars, sentences) = (VarMap::new(), sentences(50, 40));
    let labels: Vec<u32> = (0..50).map(|at| at % 2).collect();
    let (widths, variant) = (vec![3, 4, 5], textcnn::Variant::Multichannel);
    let config = textcnn::Config {
        variant,
        vocabulary: 40,
        embedding: 12,
        widths,
        filters: 9,
        dropout: 0.5,
        classes: 2,
    };
    let model = textcnn::TextCnn::new(&config, builder(&vars))?;
    let all: Vec<u32> = (0..50).collect();
    let task = SentenceClassification {
        model: &model as &dyn SentenceModel,
        sentences: &sentences,
        labels: &labels,
        training: &all,
        validation: &all[..3],
        device: &CPU,
    };
    Ok(run(&task, &vars, Some("embedding.weight"), 20))
}

fn tagging<R>(run: Use<R>) -> Result<R> {
    let (vars, words, tags) = (VarMap::new(), sentences(80, 40), sentences(80, 5));
    let config = birnn::Config {
        vocabulary: 40,
        embedding: 12,
        cell: Cell::Lstm,
        hidden: 16,
        layers: 2,
        bidirectional: true,
        dropout: 0.1,
        tags: 5,
    };
    let model = birnn::BiRnn::new(&config, builder(&vars))?;
    let (all, names) = ((0..80).collect::<Vec<_>>(), ["O", "B-A", "I-A", "B-B", "I-B"].map(String::from));
    let task = Tagging {
        model: &model,
        words: &words,
        tags: &tags,
        names: &names,
        training: &all,
        validation: &all[..3],
        device: &CPU,
    };
    Ok(run(&task, &vars, Some("embedding.weight"), 30))
}

fn translation<R>(run: Use<R>) -> Result<R> {
    let (vars, sources, targets) = (VarMap::new(), sentences(50, 40), sentences(50, 30));
    let ids = |sentences: &Sentences, shift: usize| {
        (0..50).map(|at| sentences.sentence((at + shift) % 50).to_vec()).collect::<Vec<_>>()
    };
    let pairs = Pairs { sources: ids(&sources, 0), targets: ids(&targets, 1) };
    let validation =
        Pairs { sources: ids(&sources, 0)[..3].to_vec(), targets: ids(&targets, 1)[..3].to_vec() };
    let config = seq2seq::Config {
        cell: Cell::Gru,
        source_vocabulary: 40,
        target_vocabulary: 30,
        embedding: 12,
        hidden: 16,
        layers: 1,
        bidirectional: true,
        attention: Attention::Additive,
        input_feeding: false,
        dropout: 0.1,
    };
    let model = Seq2Seq::new(&config, builder(&vars))?;
    let task = Translation {
        model: &model,
        training: &pairs,
        validation: &validation,
        forcing: TeacherForcing::default(),
        label_smoothing: 0.1,
        scoring: Scoring::ExactMatch { max_length: 5 },
        device: &CPU,
    };
    Ok(run(&task, &vars, None, 20))
}

fn language<R>(cell: Cell, run: Use<R>) -> Result<R> {
    let text: String = (0..1400u32).map(|at| char::from(b'a' + (at * at / 7 % 20) as u8)).collect();
    let text = TextStream::from_memory("text", text, Level::Char).map_err(candle_core::Error::wrap)?;
    let letters: Vec<Vec<String>> = vec![('a'..='t').map(String::from).collect()];
    let (vars, vocabulary) = (VarMap::new(), Vocabulary::new(&letters, false, 1));
    let config = language_model::Config {
        vocabulary: vocabulary.len(),
        embedding: Some(16),
        cell,
        hidden: 16,
        layers: 2,
        dropout: 0.1,
        tie_weights: false,
    };
    let model = language_model::LanguageModel::new(&config, builder(&vars))?;
    let config = LanguageModellingConfig {
        model: &model,
        vocabulary: &vocabulary,
        text: &text,
        training: 0..1300,
        validation: 1300..1400,
        windowing: Windowing { streams: 10, window: 30 },
        seed: 1,
        device: &CPU,
    };
    let task = LanguageModelling::new(config).map_err(candle_core::Error::wrap)?;
    Ok(run(&task, &vars, None, 10))
}

/// Uses each model, and returns its name, the permitted launches per step, and the result.
///
/// `batch` is LeNet's batch size.
fn each<R>(batch: usize, run: Use<R>) -> Result<Vec<(&'static str, usize, R)>> {
    let sigmoid = |vb: candle_nn::VarBuilder| -> Result<Box<dyn Model>> {
        let (sizes, activation) = (vec![64, 30, 10], Activation::Sigmoid);
        let config = mlp::Config { sizes, activation, init: InitScheme::ScaledNormal, dropout: 0. };
        Ok(Box::new(mlp::Mlp::new(&config, vb)?))
    };
    let lenet = |vb: candle_nn::VarBuilder| -> Result<Box<dyn Model>> {
        Ok(Box::new(lenet::LeNet::new(&lenet::Config::default(), vb)?))
    };
    let resnet = |vb: candle_nn::VarBuilder| -> Result<Box<dyn Model>> {
        let config = resnet::Config::cifar(20, resnet::Shortcut::Identity, 10)?;
        Ok(Box::new(resnet::ResNet::new(&config, vb)?))
    };
    Ok(vec![
        ("mlp", 12, images(sigmoid, (1, 8, 8), 10, run)?),
        ("lenet", 30, images(lenet, (1, 28, 28), batch, run)?),
        // With batches of 128 images of 32x32, 13 normalisations take two launches each way instead of one.
        ("resnet20", 200 - 26, images(resnet, (3, 8, 8), 4, run)?),
        ("textcnn", 40, text_cnn(run)?),
        ("birnn", 80, tagging(run)?),
        ("lstm", 40, language(Cell::Lstm, run)?),
        ("gru", 40, language(Cell::Gru, run)?),
        // The gradient of a table is cleared and computed, in one launch each.
        ("seq2seq", 60, translation(run)?),
    ])
}

fn optimizer(vars: &VarMap, sparse: Option<&str>) -> Result<Optimizer> {
    let mut optimizer = Optimizer::new(Adam::default(), vars)?;
    sparse.into_iter().try_for_each(|table| optimizer.set_sparse(table))?;
    Ok(optimizer)
}

/// The calls of the second step to the GPU.
///
/// Repeating the step asks for the same memory, which the pool then holds.
fn counts(task: &dyn Task, vars: &VarMap, sparse: Option<&str>, batch: usize) -> Result<Counts> {
    let mut optimizer = optimizer(vars, sparse)?;
    let mut step = |step: u32| {
        let batch: Vec<u32> = (0..batch as u32).map(|at| step * batch as u32 + at).collect();
        let loss = task.loss(&batch, Mode::train(1, 0, step.into()))?;
        anyhow::Ok(optimizer.backward_step(&loss, 0.01, Clip::None)?)
    };
    step(0)?;
    let (norm, counts) = emulator::count(|| step(1));
    assert!(norm? > 0.);
    let (_, again) = emulator::count(|| step(1));
    assert_eq!((again.allocations, again.bytes), (counts.allocations, counts.bytes));
    Ok(counts)
}

#[test]
fn a_step_keeps_to_its_budget() -> Result<()> {
    let mut over = vec![];
    for (name, launches, counts) in each(64, &counts)? {
        let counts = counts?;
        // The host waits only for the norm that `backward_step` returns. It copies the optimizer's table of parameters,
        // and the batch, which for translation has two languages.
        let copies = if name == "seq2seq" { 3 } else { 2 };
        if counts.launches > launches || counts.to_device > copies || counts.waits > 1 {
            over.push(format!("{name}: {counts:?}, expected at most {launches} launches"));
        }
    }
    assert!(over.is_empty(), "{over:#?}");
    Ok(())
}

/// A task whose steps can't be graphs, or that is interrupted before a step.
struct Changed<'a> {
    task: &'a dyn Task,
    capturable: bool,
    stop_at: Option<u64>,
    /// Whether the loss is read in each step.
    reads: bool,
}

impl Task for Changed<'_> {
    fn examples(&self) -> usize {
        self.task.examples()
    }

    fn loss(&self, batch: &[u32], mode: Mode) -> Result<Tensor> {
        let Mode::Train { step, .. } = mode else { anyhow::bail!("not a training step") };
        if self.stop_at == Some(step) {
            anyhow::bail!("killed");
        }
        let loss = self.task.loss(batch, mode)?;
        if self.reads {
            // An optimizer of the user's might do this.
            let vars = VarMap::new();
            let weight = builder(&vars).get(1, "weight")?.reshape((1, 1))?;
            let other = candle_textbook::ops::linear(&weight, &weight, None)?.sqr()?.sum_all()?;
            optimizer(&vars, None)?.backward_step(&other, 0.1, Clip::None)?;
        }
        Ok(loss)
    }

    fn validate(&self) -> Result<Score> {
        self.task.validate()
    }

    fn metric(&self) -> Metric {
        self.task.metric()
    }

    fn in_order(&self) -> bool {
        self.task.in_order()
    }

    fn is_capturable(&self) -> bool {
        self.capturable && self.task.is_capturable()
    }

    fn state(&self) -> Result<HashMap<String, Tensor>> {
        self.task.state()
    }

    fn load_state(&self, state: HashMap<String, Tensor>) -> Result<()> {
        self.task.load_state(state)
    }
}

/// The results of training: the weights and the metrics.
type Trained = (Vec<(String, Vec<u32>)>, String);

/// Trains for two epochs in the run folder `dir`.
fn fit(
    dir: &Path,
    task: &Changed,
    vars: &VarMap,
    sparse: Option<&str>,
    batch_size: usize,
) -> Result<(Trained, Counts)> {
    let run = match dir.join("config.json").exists() {
        true => Run::open("test", Some(dir))?.0,
        false => Run::create("test", Some(dir), &serde_json::json!({}))?,
    };
    let mut optimizer = optimizer(vars, sparse)?;
    let mut options = TrainerOptions::default();
    options.epochs = 2;
    options.batch_size = batch_size;
    options.checkpoint_every = Some(1);
    options.clip = Clip::Norm(1.);
    let trainer = Trainer { options, run: Some(&run), progress: &Quiet, ..Trainer::default() };
    let (report, counts) = emulator::count(|| trainer.fit(task, vars, &mut optimizer));
    let report = report?;
    let epochs = report.epochs.iter().map(|epoch| {
        format!("{} {} {} {:?}", epoch.train_loss, epoch.gradient_norm, epoch.step, epoch.validation)
    });
    let mut weights = vec![];
    for (name, var) in vars.data().lock().unwrap().iter() {
        let values = var.flatten_all()?.to_vec1::<f32>()?;
        weights.push((name.clone(), values.into_iter().map(f32::to_bits).collect()));
    }
    weights.sort();
    Ok(((weights, epochs.collect::<Vec<_>>().join("\n")), counts))
}

/// Trains eagerly, as graphs, and as graphs with an interruption.
///
/// Returns the counts of the second training run.
fn all_ways(task: &dyn Task, vars: &VarMap, sparse: Option<&str>, batch: usize) -> Result<Counts> {
    let start: Vec<_> =
        vars.data().lock().unwrap().iter().map(|(name, var)| (name.clone(), var.copy())).collect();
    let train = |dir: &Path, capturable: bool, stop_at: Option<u64>| {
        for (name, value) in &start {
            vars.data().lock().unwrap()[name].set(value.as_ref().unwrap()).unwrap();
        }
        let task = Changed { task, capturable, stop_at, reads: false };
        fit(dir, &task, vars, sparse, batch)
    };
    let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let [eager, graphs, killed] = folders.each_ref().map(tempfile::TempDir::path);
    let (expected, none) = train(eager, false, None)?;
    assert_eq!(none.graphs, 0);
    let (found, counts) = train(graphs, true, None)?;
    assert_eq!(found.1, expected.1);
    assert!(found.0 == expected.0, "the weights differ");
    assert_eq!((none.launches, none.waits), (counts.launches, counts.waits));
    assert!(train(killed, true, Some(4)).is_err());
    let (resumed, _) = train(killed, true, None)?;
    assert!(resumed == found, "resuming gives other bits");
    Ok(counts)
}

#[test]
fn graphs_have_the_bits_of_single_launches() -> Result<()> {
    for (name, _, counts) in each(3, &all_ways)? {
        let counts = counts.unwrap_or_else(|error| panic!("{name}: {error:#}"));
        // All steps but the first two.
        assert!(counts.graphs >= 3 && counts.captures <= counts.graphs, "{name}: {counts:?}");
    }
    Ok(())
}

/// Trains `textcnn`, and returns the counts of its calls to the GPU.
fn text_cnn_counts(fault: Option<Fault>, reads: bool) -> Result<Counts> {
    let train = |task: &dyn Task, vars: &VarMap, sparse: Option<&str>, batch: usize| {
        let dir = tempfile::tempdir().unwrap();
        let task = Changed { task, capturable: true, stop_at: None, reads };
        let work = || fit(dir.path(), &task, vars, sparse, batch);
        match fault {
            Some(fault) => emulator::failing(fault, work),
            None => work(),
        }
    };
    Ok(text_cnn(&train)??.1)
}

#[test]
fn steps_that_cannot_be_graphs_run_launch_by_launch() {
    let refused = text_cnn_counts(Some(Fault::Capture), false).unwrap();
    assert_eq!((refused.graphs, refused.captures), (0, 1));
    let too_large = text_cnn_counts(Some(Fault::MemoryOfGraph), false).unwrap();
    assert_eq!((too_large.graphs, too_large.captures), (0, 0));
    let reading = text_cnn_counts(None, true).unwrap();
    assert_eq!((reading.graphs, reading.captures), (0, 0));
}

#[test]
fn failures_of_the_gpu_name_what_failed() {
    let message = |fault| format!("{:#}", text_cnn_counts(Some(fault), false).unwrap_err());
    let memory = message(Fault::Memory);
    assert!(
        memory.contains("out of memory: asked for") && memory.contains("lower the batch size"),
        "{memory}"
    );
    let launch = message(Fault::Launch("maxima"));
    assert!(launch.contains("cannot launch the kernel maxima"), "{launch}");
}
