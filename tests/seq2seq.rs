//! The encoder-decoder: PyTorch's logits and gradients, both forms of the decoder, decoding, training.

use candle_core::{D, DType, Device, Result, Tensor, Var, safetensors};
use candle_nn::VarMap;
use candle_textbook::data::{Language, Pairs};
use candle_textbook::models::seq2seq::{Attention, Config, PackedTokens, Seq2Seq};
use candle_textbook::nn::{Cell, Mode, seeded_var_builder};
use candle_textbook::ops;
use candle_textbook::optim::{Adam, Optimizer};
use candle_textbook::train::{
    Decoding, Hypothesis, Metric, Quiet, Run, Score, Scoring, Stop, Task, TeacherForcing, Trainer,
    TrainerOptions, Translation, Translator, evaluate_translation,
};
use std::collections::BTreeMap;
use std::path::Path;

const CPU: Device = Device::Cpu;

const TRAIN: Mode = Mode::train(3, 0, 7);

fn config(cell: Cell, layers: usize, bidirectional: bool, attention: Attention) -> Config {
    Config {
        cell,
        source_vocabulary: 11,
        target_vocabulary: 12,
        embedding: 5,
        hidden: 4,
        layers,
        bidirectional,
        attention,
        input_feeding: false,
        dropout: 0.0,
    }
}

/// The models of fixtures/seq2seq.py, with their numbers of parameters.
fn cases() -> [(&'static str, Config, usize); 5] {
    let none = config(Cell::Gru, 2, true, Attention::None);
    let additive = config(Cell::Gru, 1, true, Attention::Additive);
    let recurrent = |gates: usize, inputs: usize| gates * 4 * (inputs + 4 + 2);
    let (embeddings, output) = (11 * 5 + 12 * 5, 5 * 12);
    let (encoder, deep) =
        (2 * recurrent(3, 5), 2 * (recurrent(3, 5) + recurrent(3, 8)) + recurrent(3, 5) + recurrent(3, 4));
    let (bridge, attention, combine) = (9 * 4, 4 * 4 + 8 * 4 + 4, 13 * 4);
    let common = embeddings + output;
    [
        ("none", none, common + deep + 2 * bridge),
        ("additive", additive.clone(), common + encoder + recurrent(3, 5) + bridge + attention + combine),
        (
            "dot",
            config(Cell::Lstm, 2, false, Attention::Dot),
            common + 2 * (recurrent(4, 5) + recurrent(4, 4)) + 9 * 4,
        ),
        (
            "general",
            config(Cell::Lstm, 2, true, Attention::General),
            common
                + 2 * (recurrent(4, 5) + recurrent(4, 8))
                + recurrent(4, 5)
                + recurrent(4, 4)
                + 4 * bridge
                + 8 * 4
                + combine,
        ),
        (
            "fed",
            Config { input_feeding: true, ..additive },
            common + encoder + recurrent(3, 9) + bridge + attention + combine,
        ),
    ]
}

fn build(config: &Config, dtype: DType) -> Result<(VarMap, Seq2Seq)> {
    let vars = VarMap::new();
    let model = Seq2Seq::new(config, seeded_var_builder(&vars, 1, dtype, &CPU))?;
    Ok((vars, model))
}

fn parameters(vars: &VarMap) -> BTreeMap<String, Var> {
    vars.data().lock().unwrap().clone().into_iter().collect()
}

fn tokens(sequences: &[&[u32]]) -> Result<PackedTokens> {
    PackedTokens::new(&sequences.iter().map(|ids| ids.to_vec()).collect::<Vec<_>>(), &CPU)
}

const SOURCES: [&[u32]; 4] = [&[3, 7, 5], &[9, 4, 4, 6, 8], &[2], &[5, 10, 7]];
const TARGETS: [&[u32]; 4] = [&[2, 5, 6, 8], &[2], &[2, 7, 4, 4, 5, 6], &[2, 11]];
const NEXT: [&[u32]; 4] = [&[5, 6, 8, 3], &[3], &[7, 4, 4, 5, 6, 3], &[11, 3]];

/// Reorders rows from packed order to one sequence after another.
fn by_sequence(packed: &PackedTokens, rows: &Tensor) -> Result<Tensor> {
    let mut order: Vec<(usize, usize, u32)> =
        packed.sequences.positions().zip(0..).map(|((sequence, step), row)| (sequence, step, row)).collect();
    order.sort();
    rows.index_select(&Tensor::new(order.iter().map(|&(_, _, row)| row).collect::<Vec<_>>(), &CPU)?, 0)
}

fn assert_near(name: &str, found: &Tensor, expected: &Tensor, tolerance: f64) -> Result<()> {
    assert_eq!(found.dims(), expected.dims(), "{name}");
    let difference =
        (found - expected)?.abs()?.flatten_all()?.max(0)?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
    assert!(difference <= tolerance, "{name}: {difference}");
    Ok(())
}

#[test]
fn logits_and_gradients_equal_pytorch_for_the_same_weights() -> Result<()> {
    let fixtures = safetensors::load("tests/fixtures/seq2seq.safetensors", &CPU)?;
    for (name, config, count) in cases() {
        let (vars, model) = build(&config, DType::F64)?;
        let parameters = parameters(&vars);
        assert_eq!(parameters.values().map(|var| var.elem_count()).sum::<usize>(), count, "{name}");
        let start = format!("{name}.weights.");
        let of_pytorch: Vec<&str> = fixtures.keys().filter_map(|key| key.strip_prefix(&start)).collect();
        assert_eq!(of_pytorch.len(), parameters.len(), "{name}");
        for (key, var) in &parameters {
            var.set(&fixtures[&format!("{start}{key}")])?;
        }
        let (sources, targets, next) = (tokens(&SOURCES)?, tokens(&TARGETS)?, tokens(&NEXT)?);
        for mode in [Mode::Evaluate, TRAIN] {
            let logits = model.forward(&sources, &targets, 1.0, mode)?;
            assert_near(name, &by_sequence(&targets, &logits)?, &fixtures[&format!("{name}.logits")], 1e-12)?;
            let loss = model.loss(&sources, &targets, &next.ids, 1.0, 0.0, mode)?;
            assert_near(name, &loss, &fixtures[&format!("{name}.loss")], 1e-12)?;
            let grads = loss.backward()?;
            for (key, var) in &parameters {
                let expected = &fixtures[&format!("{name}.grads.{key}")];
                assert_near(&format!("{name}: {key}"), grads.get(var).unwrap(), expected, 1e-12)?;
            }
        }
    }
    Ok(())
}

#[test]
fn steps_predict_as_the_whole_target_does() -> Result<()> {
    // The output layer has a separate form for f32.
    let types = [(DType::F64, 1e-12), (DType::F32, 1e-5)];
    for ((name, config, _), (dtype, tolerance)) in
        cases().into_iter().flat_map(|case| types.map(|of| (case.clone(), of)))
    {
        let (_, model) = build(&config, dtype)?;
        let (sources, targets) =
            (tokens(&SOURCES)?, tokens(&[&[2, 5, 6], &[2, 1, 9], &[2, 4, 4], &[2, 8, 8]])?);
        let whole = by_sequence(&targets, &model.forward(&sources, &targets, 1.0, Mode::Evaluate)?)?;
        let encoded = model.encode(&sources, Mode::Evaluate)?;
        let mut state = model.start(&encoded)?;
        let mut order = [0, 1, 2, 3u32];
        for (step, ids) in [[2u32; 4], [5, 1, 4, 8], [6, 9, 4, 8]].into_iter().enumerate() {
            let read = Tensor::new(order.map(|row| ids[row as usize]).as_slice(), &CPU)?;
            let next = model.step(&encoded, &state, &read)?;
            let rows = order.map(|row| 3 * row + step as u32);
            let expected = whole.index_select(&Tensor::new(rows.as_slice(), &CPU)?, 0)?;
            assert_near(name, &next.logits, &expected, tolerance)?;
            if let Some(weights) = next.attention {
                assert_near(name, &weights.sum(1)?, &Tensor::ones(4, dtype, &CPU)?, tolerance)?;
            }
            // The rows of a state may come in any order.
            state = next.state.select(&[3, 1, 0, 2])?;
            order = [order[3], order[1], order[0], order[2]];
            assert_eq!(state.sources(), order);
        }
    }
    Ok(())
}

#[test]
fn both_forms_of_the_decoder_give_the_same_gradients() -> Result<()> {
    for (name, config, _) in cases() {
        let (vars, model) = build(&config, DType::F64)?;
        let (sources, targets, next) = (tokens(&SOURCES)?, tokens(&TARGETS)?, tokens(&NEXT)?);
        let gradients = |forcing| -> Result<Vec<Tensor>> {
            let grads = model.loss(&sources, &targets, &next.ids, forcing, 0.1, TRAIN)?.backward()?;
            Ok(parameters(&vars).values().map(|var| grads.get(var).unwrap().clone()).collect())
        };
        // So close to 1 that every token is the target's, but the decoder reads them one by one.
        for (found, expected) in gradients(1.0 - 1e-12)?.iter().zip(gradients(1.0)?) {
            assert_near(name, found, &expected, 1e-12)?;
        }
    }
    Ok(())
}

#[test]
fn gradients_match_finite_differences() -> Result<()> {
    const STEP: f64 = 1e-5;
    for (name, config, _) in cases() {
        let (vars, model) = build(&Config { dropout: 0.3, ..config }, DType::F64)?;
        let (sources, targets, next) = (tokens(&SOURCES)?, tokens(&TARGETS)?, tokens(&NEXT)?);
        // With dropout masks and scheduled draws, which are the same each time.
        let loss = || model.loss(&sources, &targets, &next.ids, 0.7, 0.1, TRAIN);
        let grads = loss()?.backward()?;
        for (key, var) in parameters(&vars) {
            let (value, grad) = (var.as_detached_tensor().copy()?, grads.get(&var).unwrap());
            let count = value.elem_count();
            let direction: Vec<f64> = (0..count).map(|i| (1.0 + 0.7 * i as f64).sin()).collect();
            let direction = Tensor::from_vec(direction, value.shape(), &CPU)?;
            let at = |step: f64| -> Result<f64> {
                var.set(&(&value + (&direction * step)?)?)?;
                loss()?.to_scalar()
            };
            let expected = (at(STEP)? - at(-STEP)?) / (2.0 * STEP);
            let found = (grad * &direction)?.sum_all()?.to_scalar::<f64>()?;
            assert!((found - expected).abs() < 1e-8, "{name}: {key}: {found} {expected}");
            var.set(&value)?;
        }
    }
    Ok(())
}

#[test]
fn a_sentence_is_predicted_in_a_batch_as_alone() -> Result<()> {
    for (name, config, _) in cases() {
        let (_, model) = build(&config, DType::F64)?;
        let targets = tokens(&TARGETS)?;
        let batch = model.forward(&tokens(&SOURCES)?, &targets, 1.0, Mode::Evaluate)?;
        let alone = SOURCES.iter().zip(TARGETS).map(|(source, target)| {
            model.forward(&tokens(&[source])?, &tokens(&[target])?, 1.0, Mode::Evaluate)
        });
        let alone = Tensor::cat(&alone.collect::<Result<Vec<_>>>()?, 0)?;
        assert_near(name, &by_sequence(&targets, &batch)?, &alone, 1e-12)?;
    }
    Ok(())
}

#[test]
fn without_teacher_forcing_the_decoder_reads_its_own_predictions() -> Result<()> {
    for (name, config, _) in cases() {
        let (_, model) = build(&config, DType::F64)?;
        let (sources, targets) = (tokens(&SOURCES)?, tokens(&TARGETS)?);
        let free = by_sequence(&targets, &model.forward(&sources, &targets, 0.0, TRAIN)?)?;
        let predicted = free.argmax(D::Minus1)?.to_vec1::<u32>()?;
        let mut row = 0;
        let read: Vec<Vec<u32>> = TARGETS
            .iter()
            .map(|target| {
                let own = predicted[row..row + target.len() - 1].iter().copied();
                row += target.len();
                std::iter::once(target[0]).chain(own).collect()
            })
            .collect();
        let read = PackedTokens::new(&read, &CPU)?;
        let expected = by_sequence(&read, &model.forward(&sources, &read, 1.0, TRAIN)?)?;
        assert_near(name, &free, &expected, 1e-12)?;
    }
    Ok(())
}

#[test]
fn scheduled_draws_depend_on_seed_epoch_and_step_alone() -> Result<()> {
    let (_, model) = build(&cases()[1].1, DType::F64)?;
    let (sources, targets) = (tokens(&SOURCES)?, tokens(&[&[2; 9], &[2; 9], &[2; 9], &[2; 9]])?);
    let logits = |seed, epoch, step| -> Result<Vec<Vec<f64>>> {
        model.forward(&sources, &targets, 0.5, Mode::train(seed, epoch, step))?.to_vec2()
    };
    let first = logits(1, 0, 0)?;
    assert_eq!(first, logits(1, 0, 0)?);
    for other in [(2, 0, 0), (1, 1, 0), (1, 0, 1)] {
        assert_ne!(first, logits(other.0, other.1, other.2)?, "{other:?}");
    }
    Ok(())
}

#[test]
fn the_teacher_forcing_rate_follows_its_schedule() {
    let linear = TeacherForcing::Linear { end: 0.2, steps: 4 };
    let rates: Vec<f64> = (0..6).map(|step| (linear.rate(step) * 100.0).round()).collect();
    assert_eq!(rates, [100.0, 80.0, 60.0, 40.0, 20.0, 20.0]);
    let sigmoid = TeacherForcing::InverseSigmoid { k: 100.0 };
    assert!(sigmoid.rate(0) > 0.99 && (sigmoid.rate(461) - 0.5).abs() < 0.01 && sigmoid.rate(10_000) < 1e-6);
    assert_eq!(TeacherForcing::Constant(0.7).rate(5), 0.7);
    assert_eq!(TeacherForcing::default().rate(5), 1.0);
}

#[test]
fn unsuitable_configurations_and_arguments_are_errors() -> Result<()> {
    let error = |config: Config| build(&config, DType::F32).err().unwrap().to_string();
    let dot = error(config(Cell::Gru, 1, true, Attention::Dot));
    assert!(dot.contains("decoder states of size 4 and encoder outputs of size 8"), "{dot}");
    let fed = Config { input_feeding: true, ..config(Cell::Gru, 1, true, Attention::None) };
    assert!(error(fed).contains("input feeding without attention"));
    let (_, model) = build(&cases()[1].1, DType::F32)?;
    let (sources, targets) = (tokens(&SOURCES)?, tokens(&TARGETS[..3])?);
    let found = model.forward(&sources, &targets, 1.0, Mode::Evaluate).unwrap_err().to_string();
    assert!(found.contains("found 3 targets for 4 sources"), "{found}");
    let found = model.forward(&sources, &tokens(&TARGETS)?, 1.5, TRAIN).unwrap_err().to_string();
    assert!(found.contains("rate of 1.5"), "{found}");
    let sources = vec![vec![4, 5]];
    for (decoding, expected) in [
        (Decoding { beam: 0, ..Decoding::default() }, "beam: found 0"),
        (Decoding { max_length: 0, ..Decoding::default() }, "maximal length: found 0"),
        (Decoding { n_best: 2, ..Decoding::default() }, "found 2, expected 1 to 1"),
        (Decoding { length_penalty: f64::NAN, ..Decoding::default() }, "length penalty: found NaN"),
    ] {
        let error = Translator::new(&model, &CPU).translate(&sources, &decoding).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    Ok(())
}

/// The log-probability of a translation, and of its end if it is finished.
fn log_probability(model: &Seq2Seq, source: &[u32], hypothesis: &Hypothesis) -> Result<f64> {
    let end = if hypothesis.finished { &[Language::END][..] } else { &[] };
    let next = [&hypothesis.ids, end].concat();
    let read = [&[Language::BEGIN], &next[..next.len() - 1]].concat();
    let source = [source, &[Language::END]].concat();
    let logits = model.forward(&tokens(&[&source])?, &tokens(&[&read])?, 1.0, Mode::Evaluate)?;
    let loss = ops::softmax_cross_entropy(&logits, &Tensor::new(next.as_slice(), &CPU)?, 0.0)?;
    Ok(-loss.to_scalar::<f64>()? * next.len() as f64)
}

/// A model with large weights, whose predictions differ from token to token.
fn decided(config: &Config) -> Result<Seq2Seq> {
    let (vars, model) = build(config, DType::F64)?;
    for var in vars.all_vars() {
        var.set(&(var.as_detached_tensor() * 3.0)?)?;
    }
    Ok(model)
}

#[test]
fn greedy_translations_follow_the_most_probable_token() -> anyhow::Result<()> {
    for (name, config, _) in cases() {
        let model = decided(&config)?;
        let decoding = Decoding { max_length: 6, ..Decoding::default() };
        let sources: Vec<Vec<u32>> = SOURCES.iter().map(|ids| ids.to_vec()).chain([vec![]]).collect();
        let found = Translator::new(&model, &CPU).translate(&sources, &decoding)?;
        for (source, found) in sources.iter().zip(&found) {
            let [best] = &found[..] else { panic!("{name}: found {} translations", found.len()) };
            let with_end = [&source[..], &[Language::END]].concat();
            let encoded = model.encode(&tokens(&[&with_end])?, Mode::Evaluate)?;
            let (mut state, mut last, mut expected) = (model.start(&encoded)?, Language::BEGIN, vec![]);
            while expected.len() < 6 {
                let step = model.step(&encoded, &state, &Tensor::new(&[last], &CPU)?)?;
                let mut logits = step.logits.to_vec2::<f64>()?.remove(0);
                logits[Language::PAD as usize] = f64::NEG_INFINITY;
                logits[Language::BEGIN as usize] = f64::NEG_INFINITY;
                last = (0..12).max_by(|&a, &b| logits[a as usize].total_cmp(&logits[b as usize])).unwrap();
                if last == Language::END {
                    break;
                }
                expected.push(last);
                state = step.state;
            }
            assert_eq!(best.ids, expected, "{name}");
            assert_eq!(best.finished, last == Language::END, "{name}");
            let attended = if config.attention == Attention::None {
                0
            } else {
                expected.len() + usize::from(best.finished)
            };
            assert_eq!(best.attention.len(), attended, "{name}");
            assert!(best.attention.iter().all(|weights| weights.len() == source.len() + 1), "{name}");
            assert!((best.score - log_probability(&model, source, best)?).abs() < 1e-9, "{name}");
        }
    }
    Ok(())
}

#[test]
fn a_beam_as_wide_as_all_translations_finds_the_best() -> anyhow::Result<()> {
    // With a vocabulary of six tokens, four of them possible, there are 3 + 3 * 3 unfinished beginnings of two tokens.
    let config = Config { target_vocabulary: 6, ..cases()[1].1.clone() };
    let model = decided(&config)?;
    let source = vec![3, 7, 5];
    for length_penalty in [0.0, 1.0] {
        let decoding = Decoding { beam: 40, max_length: 3, length_penalty, n_best: 40 };
        let found =
            Translator::new(&model, &CPU).translate(std::slice::from_ref(&source), &decoding)?.remove(0);
        let mut all = vec![];
        let mut beginnings = vec![vec![]];
        for _ in 0..3 {
            for ids in &beginnings {
                let ended =
                    Hypothesis { ids: Vec::clone(ids), score: 0.0, attention: vec![], finished: true };
                let normal = f64::powf((5.0 + (ids.len() + 1) as f64) / 6.0, length_penalty);
                all.push((ids.clone(), log_probability(&model, &source, &ended)? / normal));
            }
            let longer = |ids: &Vec<u32>| [1, 4, 5].map(|token| [&ids[..], &[token]].concat());
            beginnings = beginnings.iter().flat_map(longer).collect();
        }
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        let finished: Vec<_> = found.iter().filter(|hypothesis| hypothesis.finished).collect();
        assert_eq!(finished.len(), all.len());
        for (found, (ids, score)) in finished.iter().zip(&all) {
            assert!(found.ids == *ids && (found.score - score).abs() < 1e-9, "{found:?} {ids:?} {score}");
        }
        assert!(found.iter().all(|hypothesis| hypothesis.ids.len() <= 3));
    }
    Ok(())
}

#[test]
fn beams_do_not_depend_on_the_rest_of_the_batch_and_come_in_order() -> anyhow::Result<()> {
    let model = decided(&cases()[4].1)?;
    let translator = Translator::new(&model, &CPU);
    let decoding = Decoding { beam: 4, max_length: 5, length_penalty: 0.6, n_best: 3 };
    let sources: Vec<Vec<u32>> =
        (0..70u32).map(|i| (0..i % 6).map(|k| 4 + (i * k + i) % 7).collect()).collect();
    let all = translator.translate(&sources, &decoding)?;
    assert_eq!(all.len(), 70);
    for (source, found) in sources.iter().zip(&all).step_by(9) {
        let alone = translator.translate(std::slice::from_ref(source), &decoding)?.remove(0);
        assert!((1..=3).contains(&found.len()));
        // Cut-off translations occur only if none has ended.
        assert!(found.iter().all(|hypothesis| hypothesis.finished == found[0].finished));
        for (a, b) in found.iter().zip(&alone) {
            assert!(a.ids == b.ids && a.finished == b.finished && (a.score - b.score).abs() < 1e-9);
        }
        assert!(found.is_sorted_by(|a, b| a.score >= b.score));
    }
    assert!(translator.translate(&[], &decoding)?.is_empty());
    Ok(())
}

/// Sentences to be reversed.
fn reversals(count: u32) -> Pairs {
    let sources: Vec<Vec<u32>> =
        (0..count).map(|i| (0..1 + i % 4).map(|k| 4 + (i * i + 3 * k * i + k) % 6).collect()).collect();
    let targets = sources.iter().map(|source| source.iter().rev().copied().collect()).collect();
    Pairs { sources, targets }
}

/// A task that interrupts training in step `at`.
struct Interrupted<'a>(Translation<'a>, Option<u64>, Stop);

impl Task for Interrupted<'_> {
    fn examples(&self) -> usize {
        self.0.examples()
    }
    fn loss(&self, batch: &[u32], mode: Mode) -> anyhow::Result<Tensor> {
        if matches!(mode, Mode::Train { step, .. } if Some(step) == self.1) {
            self.2.request();
        }
        self.0.loss(batch, mode)
    }
    fn validate(&self) -> anyhow::Result<Score> {
        self.0.validate()
    }
    fn metric(&self) -> Metric {
        self.0.metric()
    }
}

/// Trains in `dir`; returns the scores of all epochs and the final weights.
fn train(
    dir: &Path,
    forcing: TeacherForcing,
    epochs: usize,
    at: Option<u64>,
) -> anyhow::Result<(Vec<Score>, Vec<u8>)> {
    let run = match dir.exists() {
        true => Run::open("test", Some(dir))?.0,
        false => Run::create("test", Some(dir), &serde_json::json!({ "binary": "test" }))?,
    };
    let config = Config { hidden: 24, dropout: 0.1, ..cases()[1].1.clone() };
    let (vars, model) = build(&config, DType::F32)?;
    let (training, validation) = (reversals(60), reversals(20));
    let task = Translation {
        model: &model,
        training: &training,
        validation: &validation,
        forcing,
        label_smoothing: 0.0,
        scoring: Scoring::ExactMatch { max_length: 10 },
        device: &CPU,
    };
    let mut options = TrainerOptions::default();
    options.epochs = epochs;
    options.batch_size = 10;
    options.learning_rate = 1e-2;
    options.seed = 5;
    let mut optimizer = Optimizer::new(Adam::default(), &vars)?;
    let stop = Stop::default();
    let task = Interrupted(task, at, stop.clone());
    let report = Trainer { options, run: Some(&run), progress: &Quiet, stop, processes: None }.fit(
        &task,
        &vars,
        &mut optimizer,
    );
    let scores = report?.epochs.into_iter().map(|epoch| epoch.validation).collect();
    Ok((scores, std::fs::read(dir.join("model.safetensors")).unwrap_or_default()))
}

#[test]
fn training_reduces_the_loss_and_resumes_to_the_same_bits() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    // Scheduled sampling from the first step on.
    let forcing = TeacherForcing::Linear { end: 0.5, steps: 20 };
    let (expected, model) = train(&dir.path().join("whole"), forcing, 3, None)?;
    assert!(expected.windows(2).all(|pair| pair[1].loss < pair[0].loss), "{expected:?}");
    let cut = dir.path().join("cut");
    for at in [2, 9, 13] {
        train(&cut, forcing, 3, Some(at))?;
    }
    let (found, resumed) = train(&cut, forcing, 3, None)?;
    assert_eq!(found, expected);
    assert!(resumed == model);
    Ok(())
}

#[test]
fn a_model_learns_to_reverse_short_sentences() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (scores, _) = train(&dir.path().join("run"), TeacherForcing::default(), 60, None)?;
    let best = scores.iter().map(|score| score.metric).fold(0.0, f64::max);
    assert!(best >= 0.9, "{best}");
    Ok(())
}

#[test]
fn the_loss_counts_each_target_token_and_each_end_once() -> anyhow::Result<()> {
    let (_, model) = build(&cases()[1].1, DType::F64)?;
    // More than one batch, with targets of different lengths, one of them empty.
    let mut pairs = reversals(70);
    pairs.targets[3].clear();
    let (mut sum, mut count) = (0.0, 0);
    for (source, target) in pairs.sources.iter().zip(&pairs.targets) {
        let hypothesis = Hypothesis { ids: target.clone(), score: 0.0, attention: vec![], finished: true };
        sum -= log_probability(&model, source, &hypothesis)?;
        count += target.len() + 1;
    }
    let found = evaluate_translation(&model, &pairs, &CPU)?;
    assert!((found - sum / f64::from(count as u32)).abs() < 1e-9, "{found}");
    assert!(evaluate_translation(&model, &Pairs::default(), &CPU).is_err());
    Ok(())
}
