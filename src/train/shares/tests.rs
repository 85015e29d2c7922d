use super::*;
use crate::data::music::{Encoding, Texture, chorales};
use crate::data::{Augmentation, Images, Level, Pairs, TextStream, digits, shapes};
use crate::models::birnn::{self, BiRnn};
use crate::models::language_model::{self, LanguageModel};
use crate::models::lenet::{self, LeNet};
use crate::models::music::{self, MusicModel};
use crate::models::resnet::{self, ResNet};
use crate::models::rnn::{self, Rnn};
use crate::models::seq2seq::{self, Attention, Seq2Seq};
use crate::models::textcnn::{self, TextCnn};
use crate::nn::{self, BatchNorm, Cell, Cost, Model, RecurrentConfig, SentenceModel, seeded_var_builder};
use crate::ops;
use crate::optim::{Clip, Optimizer, Sgd};
use crate::processes::threads;
use crate::train::weights::broadcast;
use crate::train::{
    Composition, Decoding, ImageClassification, LanguageModelling, LanguageModellingConfig, Score, Scoring,
    SentenceClassification, Sentences, Tagging, TeacherForcing, Translation, Windowing, best_translations,
    music_windows,
};
use candle_core::DType;
use candle_nn::{VarBuilder, VarMap};

const CPU: Device = Device::Cpu;

/// The result of one process after some steps.
#[derive(Debug, PartialEq)]
struct Outcome {
    /// Loss of each batch.
    losses: Vec<f64>,
    /// The gradient of the first batch, and all variables after the last step, in the order of their names.
    gradient: Vec<f64>,
    variables: Vec<f64>,
    validation: Score,
}

/// A model and its task, for `steps` steps on batches of `batch_size` examples.
struct Case<'a> {
    size: usize,
    batch_size: usize,
    steps: u64,
    dtype: DType,
    synchronised: bool,
    /// Builds a task from its variables and passes it on.
    #[allow(clippy::type_complexity)]
    build: &'a (dyn Fn(VarBuilder, &mut dyn FnMut(&dyn Task) -> Result<()>) -> Result<()> + Sync),
}

impl Case<'_> {
    /// Trains on `size` threads, each of which stands for a process.
    fn train(&self) -> Vec<Outcome> {
        std::thread::scope(|scope| {
            let run = |processes| scope.spawn(move || self.train_process(&processes).unwrap());
            let running: Vec<_> = threads(self.size).into_iter().map(run).collect();
            running.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    fn train_process(&self, processes: &Arc<dyn Processes>) -> Result<Outcome> {
        let vars = VarMap::new();
        let mut outcome = None;
        (self.build)(seeded_var_builder(&vars, 3, self.dtype, &CPU), &mut |task| {
            outcome = Some(self.steps(task, &vars, processes)?);
            Ok(())
        })?;
        Ok(outcome.unwrap())
    }

    fn steps(&self, task: &dyn Task, vars: &VarMap, processes: &Arc<dyn Processes>) -> Result<Outcome> {
        let mut named: Vec<_> = vars.data().lock().unwrap().clone().into_iter().collect();
        named.sort_by(|(a, _), (b, _)| a.cmp(b));
        let values = |tensor: &Tensor| tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>();
        let mut optimizer = Optimizer::new(Sgd { momentum: 0.9, ..Sgd::default() }, vars)?;
        let order: Vec<u32> = (0..task.examples() as u32).collect();
        let (mut losses, mut gradient) = (vec![], vec![]);
        for (step, batch) in (0..self.steps).zip(order.chunks(self.batch_size).cycle()) {
            let mode = Mode::train(1, 0, step);
            let part = part_of_loss(task, batch, mode, processes, self.synchronised)?;
            let tables = named.iter().filter(|(name, _)| name == "embedding.weight");
            let tables = tables.map(|(_, var)| var.id()).collect();
            let (mut grads, rows) = match &part {
                Some((loss, _)) => ops::backward(loss, tables)?,
                None => (Tensor::zeros((), self.dtype, &CPU)?.backward()?, HashMap::new()),
            };
            let (loss, factor) = match part {
                Some((loss, factor)) => (loss.to_dtype(DType::F64)?.to_scalar::<f64>()?, factor),
                None => (0.0, 0.0),
            };
            let mut sums = vec![loss];
            for (_, var) in &named {
                let mut sum = var.zeros_like()?;
                if let Some(grad) = grads.get(var) {
                    sum = (sum + grad)?;
                }
                if let Some(rows) = rows.get(&var.id()) {
                    sum = (sum + rows.whole(var.dim(0)?)?)?;
                }
                sums.extend(values(&sum)?);
            }
            sums.iter_mut().for_each(|value| *value *= factor);
            processes.sum_f64(&mut sums)?;
            losses.push(sums[0]);
            let mut rest = &sums[1..];
            for (_, var) in &named {
                let (own, others) = rest.split_at(var.elem_count());
                grads.insert(var, Tensor::new(own, &CPU)?.reshape(var.shape())?.to_dtype(self.dtype)?);
                rest = others;
            }
            if step == 0 {
                gradient = sums[1..].to_vec();
            }
            optimizer.step(&grads, 0.05, Clip::None)?;
            // A checkpoint holds the state of all processes, and each finds its own part in it.
            let state = together(processes, || task.state())?;
            together(processes, || task.load_state(state))?;
        }
        // All processes evaluate the model of process 0.
        broadcast(processes.as_ref(), vars, BatchNorm::is_buffer)?;
        let validation = together(processes, || task.validate())?;
        let variables: Vec<Vec<f64>> = named.iter().map(|(_, var)| values(var)).collect::<Result<_, _>>()?;
        Ok(Outcome { losses, gradient, variables: variables.concat(), validation })
    }

    /// Checks that 2 and 3 processes learn the same as one, to `tolerance`, and agree to the bit.
    fn check(&self, tolerance: f64) {
        let one = self.train_alone();
        assert!(one.gradient.iter().any(|&x| x.abs() > 100.0 * tolerance), "there is nothing to compare");
        for size in [2, 3] {
            let all = Case { size, ..*self }.train();
            assert!(all.iter().all(|other| *other == all[0]));
            let found = &all[0];
            for (name, found, expected) in [
                ("loss", &found.losses, &one.losses),
                ("gradient", &found.gradient, &one.gradient),
                ("variables", &found.variables, &one.variables),
            ] {
                assert_eq!(found.len(), expected.len());
                let largest = expected.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
                for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
                    let distance = (found - expected).abs() / largest;
                    assert!(distance < tolerance, "{size} processes, {name} {i}: {found} {expected}");
                }
            }
            let (found, expected) = (found.validation, one.validation);
            assert!(
                (found.loss - expected.loss).abs() < 100.0 * tolerance * expected.loss,
                "{found:?} {expected:?}"
            );
            assert!(
                (found.metric - expected.metric).abs() < 100.0 * tolerance.max(1e-9),
                "{found:?} {expected:?}"
            );
        }
    }

    fn train_alone(&self) -> Outcome {
        Case { size: 1, ..*self }.train().remove(0)
    }
}

/// A model of images in f64, where rounding does not obscure the comparison.
struct InF64<M>(M);

impl<M: Model> Model for InF64<M> {
    fn forward(&self, xs: &Tensor, mode: Mode) -> candle_core::Result<Tensor> {
        self.0.forward(&xs.to_dtype(DType::F64)?, mode)
    }
}

/// The task of classifying images, without augmentation.
fn classification<'a>(
    model: &'a dyn Model,
    images: &'a Images,
    (training, validation): (&'a [u32], &'a [u32]),
) -> ImageClassification<'a> {
    ImageClassification {
        model,
        cost: Cost::SoftmaxCrossEntropy,
        images,
        training,
        validation,
        augmentation: None,
        label_smoothing: 0.0,
        device: &CPU,
    }
}

fn numbers(range: Range<u32>) -> Vec<u32> {
    range.collect()
}

#[test]
fn lenet_with_dropout_and_augmentation() {
    let (images, _) = digits(30, 1, 0).unwrap();
    let all = numbers(0..30);
    let config =
        lenet::Config { channels: vec![2, 3], hidden: vec![9, 7], dropout: 0.5, ..lenet::Config::default() };
    let case = Case {
        size: 1,
        // The last batch has two examples. One of three processes has both.
        batch_size: 10,
        steps: 6,
        dtype: DType::F64,
        synchronised: false,
        build: &|vb, run| {
            let model = InF64(LeNet::new(&config, vb)?);
            run(&ImageClassification {
                augmentation: Some(Augmentation::Shifts),
                label_smoothing: 0.1,
                ..classification(&model, &images, all.split_at(22))
            })
        },
    };
    case.check(1e-11);
}

#[test]
fn a_residual_network_with_the_statistics_of_the_whole_batch() {
    let (images, _) = shapes(16, 1, 0).unwrap();
    let all = numbers(0..16);
    let config = resnet::Config {
        width: 4,
        ..resnet::Config::cifar(8, resnet::Shortcut::Projection, images.classes()).unwrap()
    };
    let case = Case {
        size: 1,
        batch_size: 5,
        steps: 4,
        dtype: DType::F64,
        synchronised: true,
        build: &|vb, run| {
            let model = InF64(ResNet::new(&config, vb)?);
            run(&classification(&model, &images, all.split_at(12)))
        },
    };
    case.check(1e-9);
}

/// A model that normalises each image by itself.
struct Normed {
    hidden: nn::Linear,
    layer: nn::LayerNorm,
    group: nn::GroupNorm,
    output: nn::Linear,
}

impl Model for Normed {
    fn forward(&self, xs: &Tensor, _mode: Mode) -> candle_core::Result<Tensor> {
        let xs = xs.to_dtype(DType::F64)?.flatten_from(1)?.apply(&self.hidden)?.apply(&self.layer)?;
        xs.unsqueeze(2)?.apply(&self.group)?.flatten_from(1)?.apply(&self.output)
    }
}

#[test]
fn layer_and_group_normalisation_stay_within_an_example() {
    let (images, _) = digits(16, 1, 0).unwrap();
    let all = numbers(0..16);
    let case = Case {
        size: 1,
        batch_size: 6,
        steps: 4,
        dtype: DType::F64,
        // The statistics of layers that normalise batches would be those of all processes.
        synchronised: true,
        build: &|vb, run| {
            let model = Normed {
                hidden: nn::linear(784, 6, vb.pp("hidden"))?,
                layer: nn::layer_norm(6, 1e-5, vb.pp("layer"))?,
                group: nn::group_norm(2, 6, 1e-5, vb.pp("group"))?,
                output: nn::linear(6, 10, vb.pp("output"))?,
            };
            run(&classification(&model, &images, all.split_at(12)))
        },
    };
    case.check(1e-9);
}

/// 20 sentences of 1 to 9 out of 30 words, or out of as many tags.
fn sentences(ids: u32) -> Sentences {
    Sentences::new(
        (0..20u32).map(|i| (0..1 + i * 7 % 9).map(|j| (3 * i + 5 * j * j + i * j) % ids).collect()),
    )
}

/// Checks a sentence classifier.
fn check_sentences<M: SentenceModel>(build: impl Fn(VarBuilder) -> candle_core::Result<M> + Sync) {
    let (sentences, labels) = (sentences(30), (0..20).map(|i| i % 3).collect::<Vec<u32>>());
    let (training, validation) = (numbers(0..15), numbers(15..20));
    let case = Case {
        size: 1,
        batch_size: 8,
        steps: 5,
        dtype: DType::F64,
        synchronised: false,
        build: &|vb, run| {
            run(&SentenceClassification {
                model: &build(vb)?,
                sentences: &sentences,
                labels: &labels,
                training: &training,
                validation: &validation,
                device: &CPU,
            })
        },
    };
    case.check(1e-11);
}

#[test]
fn textcnn_with_sparse_rows_and_dropout() {
    let config = textcnn::Config {
        variant: textcnn::Variant::Rand,
        vocabulary: 30,
        embedding: 5,
        widths: vec![2, 3],
        filters: 4,
        dropout: 0.5,
        classes: 3,
    };
    check_sentences(|vb| TextCnn::new(&config, vb));
}

#[test]
fn a_recurrent_classifier_of_sentences_of_different_lengths() {
    let recurrent = RecurrentConfig {
        cell: Cell::Lstm,
        features: 5,
        hidden: 4,
        layers: 2,
        bidirectional: true,
        dropout: 0.3,
        forget_bias: None,
    };
    let config = rnn::Config { vocabulary: 30, recurrent, pool: rnn::Pool::Last, dropout: 0.3, classes: 3 };
    check_sentences(|vb| Rnn::new(&config, vb));
}

#[test]
fn a_tagger_whose_loss_is_the_mean_over_words() {
    let (words, tags) = (sentences(30), sentences(3));
    let names = ["O", "B-PER", "I-PER"].map(String::from);
    let (training, validation) = (numbers(0..15), numbers(15..20));
    let config = birnn::Config {
        vocabulary: 30,
        embedding: 5,
        cell: Cell::Gru,
        hidden: 4,
        layers: 2,
        bidirectional: true,
        dropout: 0.3,
        tags: 3,
    };
    let case = Case {
        size: 1,
        batch_size: 8,
        steps: 5,
        dtype: DType::F64,
        synchronised: false,
        build: &|vb, run| {
            run(&Tagging {
                model: &BiRnn::new(&config, vb)?,
                words: &words,
                tags: &tags,
                names: &names,
                training: &training,
                validation: &validation,
                device: &CPU,
            })
        },
    };
    case.check(1e-11);
}

const SMALL_TRANSLATOR: seq2seq::Config = seq2seq::Config {
    cell: Cell::Gru,
    source_vocabulary: 13,
    target_vocabulary: 11,
    embedding: 5,
    hidden: 6,
    layers: 1,
    bidirectional: true,
    attention: Attention::Additive,
    input_feeding: false,
    dropout: 0.0,
};

#[test]
fn translation_with_scheduled_sampling_and_without() {
    let lists = |ids: u32| -> Vec<Vec<u32>> {
        let list = |i: u32| (0..1 + i * ids % 7).map(|j| 3 + (i * i + 2 * j) % (ids - 3)).collect();
        (0..12).map(list).collect()
    };
    let pairs = Pairs { sources: lists(13), targets: lists(11) };
    for (input_feeding, forcing) in [(false, 1.0), (true, 0.5)] {
        let config = seq2seq::Config { layers: 2, input_feeding, dropout: 0.2, ..SMALL_TRANSLATOR };
        let case = Case {
            size: 1,
            batch_size: 7,
            steps: 3,
            dtype: DType::F64,
            synchronised: false,
            build: &|vb, run| {
                run(&Translation {
                    model: &Seq2Seq::new(&config, vb)?,
                    training: &pairs,
                    validation: &pairs,
                    forcing: TeacherForcing::Constant(forcing),
                    label_smoothing: 0.1,
                    scoring: Scoring::ExactMatch { max_length: 5 },
                    device: &CPU,
                })
            },
        };
        case.check(1e-11);
    }
}

#[test]
fn music_of_keys_and_of_voices() {
    let pieces = chorales(5, 0, 0, 0).train;
    for texture in [Texture::Keys, Texture::Voices(4)] {
        let pieces: Vec<_> = match texture {
            Texture::Keys => pieces.iter().map(|piece| piece.clone().without_voices()).collect(),
            Texture::Voices(_) => pieces.clone(),
        };
        let (encoding, windows) = (Encoding::new(&pieces, texture), music_windows(&pieces, 13));
        let output = match texture {
            Texture::Keys => music::Output::Independent { keys: encoding.key_outputs() },
            Texture::Voices(_) => music::Output::Autoregressive {
                features: encoding.note_features(),
                units: 5,
                classes: encoding.classes(),
            },
        };
        let config = music::Config {
            features: encoding.features(),
            embedding: 5,
            cell: Cell::Gru,
            hidden: 6,
            layers: 1,
            dropout: 0.2,
            output,
        };
        let case = Case {
            size: 1,
            batch_size: 8,
            steps: 2,
            dtype: DType::F64,
            synchronised: false,
            build: &|vb, run| {
                run(&Composition {
                    model: &MusicModel::new(&config, vb)?,
                    encoding: &encoding,
                    training: &pieces,
                    validation: &pieces[..4],
                    transpose: 2,
                    windows: &windows,
                })
            },
        };
        case.check(1e-11);
    }
}

#[test]
fn a_language_model_whose_streams_are_divided() {
    let text: String = (0..900u32).map(|i| char::from(b'a' + (i * i % 37 % 13) as u8)).collect();
    let text = TextStream::from_memory("text", text, Level::Char).unwrap();
    let vocabulary = text.vocabulary(0..text.len(), 1, None).unwrap();
    let config = language_model::Config {
        vocabulary: vocabulary.len(),
        embedding: Some(5),
        cell: Cell::Lstm,
        hidden: 6,
        layers: 2,
        dropout: 0.2,
        tie_weights: false,
    };
    // Two streams are fewer than three processes.
    for streams in [2, 5] {
        let case = Case {
            size: 1,
            batch_size: streams,
            steps: 6,
            dtype: DType::F64,
            synchronised: false,
            build: &|vb, run| {
                run(&LanguageModelling::new(LanguageModellingConfig {
                    model: &LanguageModel::new(&config, vb)?,
                    vocabulary: &vocabulary,
                    text: &text,
                    training: 0..700,
                    validation: 700..900,
                    windowing: Windowing { streams, window: 4 },
                    seed: 0,
                    device: &CPU,
                })?)
            },
        };
        case.check(1e-11);
    }
}

#[test]
fn processes_divide_the_search_for_translations() {
    let sources: Vec<Vec<u32>> = (0..7).map(|i| (0..=i).map(|j| 3 + (i * j) % 10).collect()).collect();
    let decoding = Decoding { beam: 3, max_length: 4, ..Decoding::default() };
    let search = |processes: Arc<dyn Processes>| {
        let vb = seeded_var_builder(&VarMap::new(), 3, DType::F64, &CPU);
        let model = Seq2Seq::new(&SMALL_TRANSLATOR, vb).unwrap();
        together(&processes, || best_translations(&model, &sources, &decoding, &CPU)).unwrap()
    };
    let expected = search(threads(1).remove(0));
    assert!(expected.iter().any(|(ids, finished)| !ids.is_empty() && !finished));
    let search = &search;
    std::thread::scope(|scope| {
        let running: Vec<_> =
            threads(3).into_iter().map(|processes| scope.spawn(move || search(processes))).collect();
        for thread in running {
            assert_eq!(thread.join().unwrap(), expected);
        }
    });
}
