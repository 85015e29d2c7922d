//! The text models: PyTorch's logits from PyTorch's weights, parameter counts, and a falling loss.

use candle_core::{DType, Device, Result, Tensor, safetensors};
use candle_nn::{VarBuilder, VarMap};
use candle_textbook::models::birnn::{self, BiRnn};
use candle_textbook::models::fasttext::{self, FastText};
use candle_textbook::models::language_model::{self, LanguageModel};
use candle_textbook::models::rnn::{self, Pool, Rnn};
use candle_textbook::models::textcnn::{self, TextCnn, Variant};
use candle_textbook::nn::{
    Cell, Cost, Mode, PackedSequences, RecurrentConfig, SentenceModel, seeded_var_builder,
};
use candle_textbook::optim::{Adam, Clip, Optimizer};
use std::collections::HashMap;
use std::sync::Arc;

const CPU: Device = Device::Cpu;

fn birnn(hidden: usize) -> birnn::Config {
    birnn::Config {
        vocabulary: 11,
        embedding: 5,
        cell: Cell::Lstm,
        hidden,
        layers: 2,
        bidirectional: true,
        dropout: 0.4,
        tags: 3,
    }
}

fn classifier(cell: Cell, layers: usize, bidirectional: bool, pool: Pool) -> rnn::Config {
    let recurrent = RecurrentConfig {
        cell,
        features: 5,
        hidden: 7,
        layers,
        bidirectional,
        dropout: 0.4,
        forget_bias: None,
    };
    rnn::Config { vocabulary: 11, recurrent, pool, dropout: 0.4, classes: 2 }
}

fn convolutional(variant: Variant) -> textcnn::Config {
    textcnn::Config {
        variant,
        vocabulary: 11,
        embedding: 5,
        widths: vec![2, 3],
        filters: 4,
        dropout: 0.4,
        classes: 2,
    }
}

const FASTTEXT: fasttext::Config = fasttext::Config { features: 11, embedding: 5, classes: 2 };

fn language_model() -> language_model::Config {
    language_model::Config {
        vocabulary: 11,
        embedding: Some(5),
        cell: Cell::Lstm,
        hidden: 7,
        layers: 2,
        dropout: 0.4,
        tie_weights: false,
    }
}

#[test]
fn logits_equal_pytorch_for_the_same_weights() -> Result<()> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/text_models.safetensors");
    let fixtures = safetensors::load(path, &CPU)?;
    let lengths: Vec<usize> =
        fixtures["lengths"].to_vec1::<i64>()?.into_iter().map(|length| length as usize).collect();
    let sequences = Arc::new(PackedSequences::new(&lengths)?);
    let ids = sequences.pack(&fixtures["ids"].to_dtype(DType::U32)?)?;
    let weights = |name: &str| {
        let start = format!("{name}.weights.");
        let tensors: HashMap<String, Tensor> = fixtures
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(&start)?.to_string(), value.clone())))
            .collect();
        VarBuilder::from_tensors(tensors, DType::F32, &CPU)
    };
    let near = |name: &str, found: Tensor| -> Result<()> {
        let difference =
            (found - &fixtures[&format!("{name}.logits")])?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(difference < 1e-5, "{name}: {difference}");
        Ok(())
    };
    let mode = Mode::Evaluate;
    // In PyTorch's fixtures the padding holds the output bias.
    let padding = |name: &str, logits: Tensor| -> Result<Tensor> {
        let bias = &fixtures[&format!("{name}.weights.output.bias")];
        let gap = (sequences.unpack(&logits.ones_like()?)? * -1.0)? + 1.0;
        sequences.unpack(&logits)? + gap?.broadcast_mul(bias)?
    };
    let tagger = BiRnn::new(&birnn(7), weights("birnn"))?;
    near("birnn", padding("birnn", tagger.forward(&ids, &sequences, mode)?)?)?;
    for (name, config) in [
        ("last", classifier(Cell::Gru, 2, true, Pool::Last)),
        ("mean", classifier(Cell::Tanh, 1, false, Pool::Mean)),
        ("max", classifier(Cell::Lstm, 1, false, Pool::Max)),
    ] {
        near(name, Rnn::new(&config, weights(name))?.forward(&ids, &sequences, mode)?)?;
    }
    let convolutional = |name, variant| TextCnn::new(&convolutional(variant), weights(name));
    let explained: [(&str, Box<dyn SentenceModel>); 3] = [
        ("convolutional", Box::new(convolutional("convolutional", Variant::Rand)?)),
        ("multichannel", Box::new(convolutional("multichannel", Variant::Multichannel)?)),
        ("fasttext", Box::new(FastText::new(&FASTTEXT, weights("fasttext"))?)),
    ];
    for (name, model) in explained {
        let logits = model.forward(&ids, &sequences, mode)?;
        // The attributions and the bias sum to the logits.
        let bias = fixtures.get(&format!("{name}.weights.output.bias"));
        let bias = bias.map_or(Ok(vec![0.0; 2]), |bias| bias.to_vec1::<f32>())?;
        for (attributions, logits) in
            model.attributions(&ids, &sequences)?.iter().zip(logits.to_vec2::<f32>()?)
        {
            for (class, logit) in logits.into_iter().enumerate() {
                let sum = attributions.iter().map(|attribution| attribution.logits[class]).sum::<f32>()
                    + bias[class];
                assert!((sum - logit).abs() < 1e-5, "{name}: {sum} {logit}");
            }
        }
        near(name, logits)?;
    }
    let (logits, _) =
        LanguageModel::new(&language_model(), weights("language"))?.forward(&ids, &sequences, None, mode)?;
    near("language", padding("language", logits)?)
}

fn parameter_count(vars: &VarMap) -> usize {
    vars.all_vars().iter().map(|var| var.elem_count()).sum()
}

#[test]
fn parameter_counts_match_the_formulas() -> Result<()> {
    let vars = VarMap::new();
    BiRnn::new(&birnn(7), seeded_var_builder(&vars, 1, DType::F32, &CPU))?;
    let layer = |inputs: usize| 2 * 4 * 7 * (inputs + 7 + 2);
    assert_eq!(parameter_count(&vars), 11 * 5 + layer(5) + layer(14) + 15 * 3);
    let vars = VarMap::new();
    Rnn::new(&classifier(Cell::Gru, 1, false, Pool::Last), seeded_var_builder(&vars, 1, DType::F32, &CPU))?;
    assert_eq!(parameter_count(&vars), 11 * 5 + 3 * 7 * (5 + 7 + 2) + 8 * 2);
    let vars = VarMap::new();
    TextCnn::new(&convolutional(Variant::Rand), seeded_var_builder(&vars, 1, DType::F32, &CPU))?;
    assert_eq!(parameter_count(&vars), 11 * 5 + 4 * (2 * 5 + 1) + 4 * (3 * 5 + 1) + 9 * 2);
    let vars = VarMap::new();
    TextCnn::new(&convolutional(Variant::Multichannel), seeded_var_builder(&vars, 1, DType::F32, &CPU))?;
    assert_eq!(parameter_count(&vars), 2 * 11 * 5 + 4 * (2 * 10 + 1) + 4 * (3 * 10 + 1) + 9 * 2);
    let vars = VarMap::new();
    FastText::new(&FASTTEXT, seeded_var_builder(&vars, 1, DType::F32, &CPU))?;
    assert_eq!(parameter_count(&vars), 11 * 5 + 5 * 2);
    let tied = language_model::Config { embedding: Some(7), tie_weights: true, ..language_model() };
    let one_hot = language_model::Config { embedding: None, ..language_model() };
    let recurrent = |features: usize| 4 * 7 * (features + 7 + 2) + 4 * 7 * (7 + 7 + 2);
    for (config, expected) in [(tied, 11 * 7 + recurrent(7) + 11), (one_hot, recurrent(11) + 8 * 11)] {
        let vars = VarMap::new();
        LanguageModel::new(&config, seeded_var_builder(&vars, 1, DType::F32, &CPU))?;
        assert_eq!(parameter_count(&vars), expected);
    }
    Ok(())
}

#[test]
fn training_reduces_the_loss() -> Result<()> {
    let sequences = Arc::new(PackedSequences::new(&[3, 6, 1, 6])?);
    let ids: Vec<u32> = (0..16).map(|i| i * 7 % 11).collect();
    let ids = Tensor::new(ids, &CPU)?;
    let tags = Tensor::new((0..16u32).map(|i| i % 3).collect::<Vec<_>>(), &CPU)?;
    let classes = Tensor::new(&[0u32, 1, 1, 0], &CPU)?;
    let vars = VarMap::new();
    let vb = seeded_var_builder(&vars, 1, DType::F32, &CPU);
    let tagger = BiRnn::new(&birnn(16), vb.pp("tagger"))?;
    let sentences = Rnn::new(&classifier(Cell::Tanh, 1, false, Pool::Last), vb.pp("classifier"))?;
    let language = LanguageModel::new(&language_model(), vb.pp("language"))?;
    let convolutional = TextCnn::new(&convolutional(Variant::Rand), vb.pp("convolutional"))?;
    let bag = FastText::new(&FASTTEXT, vb.pp("bag"))?;
    let mut optimizer = Optimizer::new(Adam::adamw(), &vars)?;
    optimizer.set_max_row_norm("convolutional.output.weight", 0.5)?;
    optimizer.set_sparse("bag.embedding.weight")?;
    let (mut first, mut last) = (f32::NAN, f32::NAN);
    for step in 0..60 {
        let mode = Mode::train(1, 0, step);
        let cost = Cost::SoftmaxCrossEntropy;
        let tagging = cost.loss(&tagger.forward(&ids, &sequences, mode)?, &tags)?;
        let classifying = cost.loss(&sentences.forward(&ids, &sequences, mode)?, &classes)?;
        let convolving = cost.loss(&convolutional.forward(&ids, &sequences, mode)?, &classes)?;
        let modelling = cost.loss(&language.forward(&ids, &sequences, None, mode)?.0, &tags)?;
        let averaging = cost.loss(&bag.forward(&ids, &sequences, mode)?, &classes)?;
        let loss = ((((tagging + classifying)? + modelling)? + convolving)? + averaging)?;
        last = loss.to_scalar()?;
        first = if step == 0 { last } else { first };
        optimizer.backward_step(&loss, 1e-2, Clip::None)?;
    }
    assert!(last < 0.6 * first, "from {first} to {last}");
    assert!(bag.embedding().nearest(3, 11, 4)?.windows(2).all(|pair| pair[0].1 >= pair[1].1));
    let vars = vars.data().lock().unwrap();
    let norms = vars["convolutional.output.weight"].sqr()?.sum(1)?.sqrt()?.to_vec1::<f32>()?;
    assert!(norms.iter().all(|norm| (norm - 0.5).abs() < 1e-5), "{norms:?}");
    Ok(())
}

#[test]
fn the_incremental_decoder_predicts_as_the_forward_pass_does() -> Result<()> {
    for (cell, embedding, tokens) in
        [(Cell::Lstm, Some(5), 9), (Cell::Gru, None, 30), (Cell::Tanh, Some(7), 30)]
    {
        let tie_weights = embedding == Some(7);
        let config = language_model::Config { cell, embedding, tie_weights, ..language_model() };
        let vars = VarMap::new();
        let model = LanguageModel::new(&config, seeded_var_builder(&vars, 1, DType::F32, &CPU))?;
        let ids: Vec<u32> = (0..tokens).map(|i| i * i % 11).collect();
        let text = Arc::new(PackedSequences::new(&[ids.len()])?);
        let (logits, state) =
            model.forward(&Tensor::new(ids.as_slice(), &CPU)?, &text, None, Mode::Evaluate)?;
        let mut decoder = model.incremental_decoder()?;
        assert_eq!(decoder.activations(), vec![vec![0.0; config.hidden]; config.layers]);
        for (&id, expected) in ids.iter().zip(logits.to_vec2::<f32>()?) {
            let found = decoder.step(id)?;
            assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "{cell:?}");
        }
        let expected =
            state.cell.map_or(Ok(state.hidden), |cell| cell.tanh())?.squeeze(1)?.to_vec2::<f32>()?;
        let found = decoder.activations().concat();
        assert!(found.iter().zip(expected.concat()).all(|(a, b)| (a - b).abs() < 1e-5), "{cell:?}");
    }
    Ok(())
}

#[test]
fn embeddings_too_large_for_two_channels_are_an_error() {
    let config =
        textcnn::Config { vocabulary: 0, embedding: usize::MAX, ..convolutional(Variant::Multichannel) };
    let vb = seeded_var_builder(&VarMap::new(), 1, DType::F32, &CPU);
    let error = TextCnn::new(&config, vb).unwrap_err().to_string();
    assert!(error.contains("too many for two channels"), "{error}");
}
