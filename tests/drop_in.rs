//! Compiles one program with candle_nn and with `candle_textbook::nn` instead, and compares the results.

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::VarMap;
use candle_textbook::{nn, rng};
use rand::Rng;
use std::collections::BTreeMap;

/// The program for candle_nn.
mod stock {
    use ::candle_nn;
    include!("drop_in/names.rs");
    include!("drop_in/program.rs");
}

/// The program with one line changed.
mod ours {
    use candle_textbook::nn as candle_nn;
    include!("drop_in/names.rs");
    include!("drop_in/program.rs");
}

/// Layers whose gradients are wrong or missing in candle: it drops them, refuses, or mixes up elements.
const WRONG_GRADIENTS: [&str; 10] = [
    "strided conv2d",
    "conv1d",
    "grouped conv1d",
    "dilated conv1d",
    "conv_transpose1d",
    "grouped conv_transpose1d",
    "layer_norm",
    "rms_norm",
    "softmax",
    "rope",
];

/// The layer that reads the values of its parameters when it is created.
const FOLDED: &str = "conv2d with batch norm";

fn draw(name: &str, dims: &[usize], dtype: DType) -> Result<Tensor> {
    let rng = rng::stream(5, name);
    let values: Vec<f64> = rng.sample_iter(rand_distr::StandardNormal).take(dims.iter().product()).collect();
    Tensor::from_vec(values, dims, &Device::Cpu)?.to_dtype(dtype)
}

/// Gives each variable values that depend on its name.
fn fill(vars: &VarMap) -> Result<()> {
    for (name, var) in vars.data().lock().unwrap().iter() {
        let values = draw(name, var.dims(), var.dtype())?.affine(0.4, 0.1)?;
        var.set(&if name.ends_with("running_var") { values.abs()? } else { values })?;
    }
    Ok(())
}

fn sorted(vars: &VarMap) -> BTreeMap<String, Var> {
    vars.data().lock().unwrap().iter().map(|(name, var)| (name.clone(), var.clone())).collect()
}

fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

fn assert_near(name: &str, found: &Tensor, expected: &Tensor, tolerance: f64) -> Result<()> {
    assert_eq!(found.dims(), expected.dims(), "{name}");
    let (found, expected) = (values(found)?, values(expected)?);
    let scale = expected.iter().fold(1f64, |scale, x| scale.max(x.abs()));
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() <= tolerance * scale, "{name}: found {found}, expected {expected}");
    }
    Ok(())
}

/// A fixed weighted sum of the elements.
fn weighted_sum(ys: &Tensor) -> Result<Tensor> {
    (ys * draw("weights", ys.dims(), ys.dtype())?)?.sum_all()
}

/// Compares the gradients of the `inputs` with central differences.
fn assert_differences(name: &str, inputs: &[Var], f: impl Fn() -> Result<Tensor>) -> Result<()> {
    let grads = weighted_sum(&f()?)?.backward()?;
    for input in inputs {
        let at = values(input)?;
        let gradient = grads.get(input).map_or_else(|| Ok(vec![0.; at.len()]), values)?;
        for i in 0..at.len() {
            let loss = |offset: f64| -> Result<f64> {
                let mut moved = at.clone();
                moved[i] += offset;
                input.set(&Tensor::from_vec(moved, input.dims(), &Device::Cpu)?)?;
                weighted_sum(&f()?)?.to_scalar()
            };
            let difference = (loss(1e-5)? - loss(-1e-5)?) / 2e-5;
            let near = (gradient[i] - difference).abs() <= 2e-5 * difference.abs().max(1.);
            assert!(near, "{name}: the gradient of element {i} is {}, expected {difference}", gradient[i]);
        }
        input.set(&Tensor::from_vec(at, input.dims(), &Device::Cpu)?)?;
    }
    Ok(())
}

#[test]
fn parameters_have_candles_names_and_shapes() -> Result<()> {
    let [stock, ours] = [VarMap::new(), VarMap::new()];
    let vb = |vars: &VarMap| candle_nn::VarBuilder::from_varmap(vars, DType::F32, &Device::Cpu);
    stock::layers(vb(&stock))?;
    ours::layers(vb(&ours))?;
    let shapes = |vars: &VarMap| -> Vec<_> {
        sorted(vars).into_iter().map(|(name, var)| (name, var.dims().to_vec())).collect()
    };
    assert_eq!(shapes(&ours), shapes(&stock));
    assert!(shapes(&ours).len() > 40);
    Ok(())
}

#[test]
fn layers_have_candles_outputs_and_its_gradients_where_they_are_right() -> Result<()> {
    let [stock_vars, our_vars] = [VarMap::new(), VarMap::new()];
    let vb = |vars: &VarMap| candle_nn::VarBuilder::from_varmap(vars, DType::F32, &Device::Cpu);
    let (stock, ours) = (stock::layers(vb(&stock_vars))?, ours::layers(vb(&our_vars))?);
    fill(&stock_vars)?;
    fill(&our_vars)?;
    for ((name, shape, stock), (_, _, ours)) in stock.iter().zip(&ours).filter(|layer| layer.0.0 != FOLDED) {
        let xs = Var::from_tensor(&draw(name, shape, DType::F32)?)?;
        let (expected, found) = (stock(&xs)?, ours(&xs)?);
        assert_near(name, &found, &expected, 2e-6)?;
        if WRONG_GRADIENTS.contains(name) {
            continue;
        }
        let (expected, found) = (weighted_sum(&expected)?.backward()?, weighted_sum(&found)?.backward()?);
        assert_near(name, found.get(&xs).unwrap(), expected.get(&xs).unwrap(), 1e-5)?;
        for (parameter, (stock, ours)) in
            sorted(&stock_vars).iter().zip(sorted(&our_vars).values()).map(|((name, a), b)| (name, (a, b)))
        {
            match (found.get(ours), expected.get(stock)) {
                (Some(found), Some(expected)) => {
                    assert_near(&format!("{name}: {parameter}"), found, expected, 1e-5)?;
                }
                (found, expected) => assert_eq!(found.is_some(), expected.is_some(), "{name}: {parameter}"),
            }
        }
    }
    let (found, expected) = (sorted(&our_vars), sorted(&stock_vars));
    for (name, found) in found.iter().filter(|(name, _)| name.contains("running")) {
        assert_near(name, found, &expected[name], 1e-6)?;
    }
    Ok(())
}

#[test]
fn gradients_of_all_layers_match_finite_differences() -> Result<()> {
    let vars = VarMap::new();
    let layers = ours::layers(candle_nn::VarBuilder::from_varmap(&vars, DType::F64, &Device::Cpu))?;
    fill(&vars)?;
    for (name, shape, layer) in layers {
        let xs = Var::from_tensor(&draw(name, &shape, DType::F64)?)?;
        let mut inputs = vec![xs.clone()];
        let grads = weighted_sum(&layer(&xs)?)?.backward()?;
        assert!(grads.get(&xs).is_some(), "{name} passes no gradient on");
        if name != FOLDED {
            inputs.extend(sorted(&vars).into_values().filter(|var| grads.get(var).is_some()));
        }
        assert_differences(name, &inputs, || layer(&xs))?;
    }
    Ok(())
}

#[test]
fn losses_equal_candles() -> Result<()> {
    let logits = Var::from_tensor(&draw("logits", &[4, 3], DType::F32)?)?;
    for ((name, stock), (_, ours)) in stock::losses().iter().zip(&ours::losses()) {
        let (expected, found) = (stock(&logits)?, ours(&logits)?);
        assert_near(name, &found, &expected, 1e-6)?;
        let (expected, found) = (expected.backward()?, found.backward()?);
        assert_near(name, found.get(&logits).unwrap(), expected.get(&logits).unwrap(), 1e-6)?;
        let precise = Var::from_tensor(&draw("logits", &[4, 3], DType::F64)?)?;
        assert_differences(name, std::slice::from_ref(&precise), || ours(&precise))?;
    }
    Ok(())
}

#[test]
fn binary_cross_entropy_is_finite_for_large_logits() -> Result<()> {
    let logits = Var::new(&[-200f32, -20., 0., 20., 200.], &Device::Cpu)?;
    let targets = Tensor::new(&[1f32, 0., 1., 1., 0.], &Device::Cpu)?;
    let loss = nn::loss::binary_cross_entropy_with_logit(&logits, &targets)?;
    assert!((loss.to_scalar::<f32>()? - (400. + 2f32.ln()) / 5.).abs() < 1e-4);
    let grads = loss.backward()?;
    assert_near(
        "gradient",
        grads.get(&logits).unwrap(),
        &Tensor::new(&[-0.2f32, 0., -0.1, 0., 0.2], &Device::Cpu)?,
        1e-6,
    )
}

#[test]
fn activations_equal_candles() -> Result<()> {
    let xs = Var::from_tensor(&draw("activation", &[3, 4], DType::F32)?.affine(2.5, 0.)?)?;
    for (stock, ours) in stock::activations().iter().zip(ours::activations()) {
        let name = format!("{ours:?}");
        let (expected, found) = (xs.apply(stock)?, xs.apply(&ours)?);
        assert_near(&name, &found, &expected, 1e-6)?;
        let (expected, found) = (weighted_sum(&expected)?.backward()?, weighted_sum(&found)?.backward()?);
        assert_near(&name, found.get(&xs).unwrap(), expected.get(&xs).unwrap(), 1e-5)?;
        let precise = Var::from_tensor(&draw("activation", &[3, 4], DType::F64)?.affine(2.5, 0.)?)?;
        assert_differences(&name, std::slice::from_ref(&precise), || precise.apply(&ours))?;
        let text = serde_json::to_string(stock).unwrap();
        assert_eq!(serde_json::to_string(&ours).unwrap(), text);
        assert_eq!(serde_json::from_str::<nn::Activation>(&text).unwrap(), ours);
    }
    for (name, expected) in [("gelu_new", nn::Activation::NewGelu), ("tanh", nn::Activation::Tanh)] {
        assert_eq!(serde_json::from_str::<nn::Activation>(&format!("\"{name}\"")).unwrap(), expected);
    }
    assert_eq!(nn::Activation::default(), nn::Activation::Gelu);
    let large = Var::new(&[-300f32, 300.], &Device::Cpu)?;
    let grads = large.apply(&nn::Activation::Mish)?.sum_all()?.backward()?;
    assert_eq!(grads.get(&large).unwrap().to_vec1::<f32>()?, [0., 1.]);
    Ok(())
}

#[test]
fn activations_convert_into_candles_and_back() {
    for stock in stock::activations() {
        let ours = nn::Activation::from(stock);
        assert_eq!(candle_nn::Activation::try_from(ours).unwrap(), stock);
    }
    let error = candle_nn::Activation::try_from(nn::Activation::Tanh).unwrap_err();
    assert!(error.to_string().contains("no Tanh"), "{error}");
}

#[test]
fn selu_and_relu_have_the_right_gradients_everywhere() -> Result<()> {
    let xs = Var::new(&[-200f32, -1., 0., 2., 200.], &Device::Cpu)?;
    let gradient = |ys: Tensor| ys.sum_all()?.backward()?.get(&xs).unwrap().to_vec1::<f32>();
    let expected = candle_nn::ops::selu(&xs, 1.5, 1.25)?;
    assert_near("selu", &nn::ops::selu(&xs, 1.5, 1.25)?, &expected, 1e-6)?;
    let expected = [0., 1.875 * (-1f32).exp(), 1.875, 1.25, 1.25];
    let found = gradient(nn::ops::selu(&xs, 1.5, 1.25)?)?;
    assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}");
    let precise = Var::from_tensor(&draw("selu", &[3, 4], DType::F64)?)?;
    assert_differences("selu", std::slice::from_ref(&precise), || nn::ops::selu(&precise, 1.7, 1.1))?;

    for dtype in [DType::F32, DType::BF16] {
        let ys = nn::relu(&xs.to_dtype(dtype)?)?;
        assert_eq!(ys.to_dtype(DType::F32)?.to_vec1::<f32>()?, [0., 0., 0., 2., 200.], "{dtype:?}");
        assert_eq!(gradient(ys)?, [0., 0., 0., 1., 1.], "{dtype:?}");
    }
    Ok(())
}

#[test]
fn rope_passes_the_gradient_on_and_takes_angles_per_example() -> Result<()> {
    use nn::rotary_emb::{rope, rope_i, rope_thd};
    let xs = Var::from_tensor(&draw("rope", &[2, 3, 4, 6], DType::F64)?)?;
    // Two further steps, which are left out.
    let angles = draw("angles", &[2, 6, 3], DType::F64)?;
    type Rope = fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>;
    let ropes: [(&str, Rope, Rope, usize); 3] = [
        ("rope", rope, candle_nn::rotary_emb::rope, 4),
        ("rope_i", rope_i, candle_nn::rotary_emb::rope_i, 4),
        ("rope_thd", rope_thd, candle_nn::rotary_emb::rope_thd, 3),
    ];
    for (name, ours, stock, steps) in ropes {
        let example = |i: usize| -> Result<Tensor> {
            let angles = angles.get(i)?.narrow(0, 0, steps)?;
            stock(&xs.narrow(0, i, 1)?.contiguous()?.detach(), &angles.cos()?, &angles.sin()?)
        };
        let each = Tensor::cat(&[example(0)?, example(1)?], 0)?;
        let (cos, sin) = (angles.cos()?, angles.sin()?);
        assert_near(name, &ours(&xs, &cos, &sin)?, &each, 1e-12)?;
        assert_near(name, &ours(&xs.detach(), &cos, &sin)?, &each, 1e-12)?;
        assert_differences(name, std::slice::from_ref(&xs), || ours(&xs, &cos, &sin))?;
        let (cos, sin) = (cos.get(1)?, sin.get(1)?);
        let second = ours(&xs, &cos, &sin)?.narrow(0, 1, 1)?;
        assert_near(name, &second, &example(1)?, 1e-12)?;
        for shape in [&[2, 2, 3][..], &[1, 6, 3], &[6, 2], &[6], &[6, 1]] {
            let wrong = draw("wrong", shape, DType::F64)?;
            for xs in [xs.as_tensor(), &xs.detach()] {
                assert!(
                    ours(xs, &wrong, &wrong).is_err() && ours(xs, &cos, &wrong).is_err(),
                    "{name} {shape:?}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn normalisations_refuse_inputs_of_another_size() -> Result<()> {
    use candle_nn::Module;
    let parameter = |size: usize| Var::ones(size, DType::F32, &Device::Cpu);
    for (size, last) in [(1, 6), (6, 1), (6, 5)] {
        let xs = Tensor::ones((2, last), DType::F32, &Device::Cpu)?;
        let (weight, fitting) = (parameter(size)?, parameter(last)?);
        let layer = |weight: &Var, bias: &Var| {
            nn::LayerNorm::new(weight.as_tensor().clone(), bias.as_tensor().clone(), 1e-5).forward(&xs)
        };
        let found = [
            layer(&weight, &fitting),
            layer(&fitting, &weight),
            nn::LayerNorm::new_no_bias(weight.as_tensor().clone(), 1e-5).forward(&xs),
            nn::LayerNorm::rms_norm(weight.as_tensor().clone(), 1e-5).forward(&xs),
            nn::RmsNorm::new(weight.as_tensor().clone(), 1e-5).forward(&xs),
            nn::RmsNorm::new(weight.as_detached_tensor(), 1e-5).forward(&xs),
            nn::ops::layer_norm(&xs, &weight, &fitting, 1e-5),
            nn::ops::rms_norm(&xs, &weight, 1e-5),
        ];
        for (i, found) in found.into_iter().enumerate() {
            assert!(found.is_err(), "{i}: {size} and {last}");
        }
        assert!(layer(&fitting, &fitting).is_ok());
    }
    Ok(())
}

#[test]
fn layers_name_the_type_and_the_rank_that_they_expect() -> Result<()> {
    use candle_nn::Module;
    let ones = |dims: &[usize], dtype| Tensor::ones(dims, dtype, &Device::Cpu);
    let [vector, filter] = [ones(&[6], DType::F32)?, ones(&[1, 1, 3], DType::F32)?];
    let linear = nn::Linear::new(ones(&[2, 6], DType::F32)?, None).forward(&ones(&[1, 6], DType::U8)?);
    let filters = nn::Conv2d::new(ones(&[1, 1, 3, 3], DType::F32)?, None, Default::default());
    let image = filters.forward(&ones(&[1, 1, 8, 8], DType::U8)?);
    let norm = nn::LayerNorm::new(vector.clone(), vector, 1e-5).forward(&ones(&[2, 6], DType::F64)?);
    let convolution = nn::Conv1d::new(filter, None, Default::default()).forward(&ones(&[1, 8], DType::F32)?);
    for (found, expected) in [
        (linear, "linear: found an input of type u8, expected f32, the type of the weight"),
        (image, "conv2d: found an input of type u8, expected f32, the type of the weight"),
        (norm, "layer_norm: found an input of type f64, expected f32, the type of the weight"),
        (convolution, "conv1d: found an input of shape [1, 8], expected (batch, channels, length)"),
    ] {
        let message = found.unwrap_err().to_string();
        assert!(message.starts_with(expected), "{message}");
    }
    Ok(())
}

#[test]
fn ids_and_targets_are_integers_of_any_type() -> Result<()> {
    use candle_nn::Module;
    let table = Var::from_tensor(&draw("table", &[3, 2], DType::F32)?)?;
    let embedding = nn::Embedding::new(table.as_tensor().clone(), 2);
    let ids = Tensor::new(&[2i64, 0], &Device::Cpu)?;
    let expected = embedding.forward(&ids)?;
    let targets = Tensor::new(&[1u32, 0], &Device::Cpu)?;
    let loss = candle_nn::loss::cross_entropy(&table.narrow(0, 0, 2)?, &targets)?;
    for dtype in [DType::U8, DType::U32, DType::I16, DType::I32, DType::I64] {
        let ids = ids.to_dtype(dtype)?;
        assert_near("embedding", &embedding.forward(&ids)?, &expected, 0.)?;
        let found = nn::loss::cross_entropy(&table.narrow(0, 0, 2)?, &targets.to_dtype(dtype)?)?;
        assert_near("loss", &found, &loss, 1e-6)?;
    }
    let wrong = |ids: Tensor| {
        let errors =
            [embedding.forward(&ids), nn::loss::cross_entropy(&table.narrow(0, 0, 1).unwrap(), &ids)];
        errors.map(|found| found.unwrap_err().to_string())
    };
    for error in wrong(Tensor::new(&[1.5f32], &Device::Cpu)?) {
        assert!(error.contains("f32, expected integers"), "{error}");
    }
    for id in [-1, 1i64 << 32] {
        for error in wrong(Tensor::new(&[id], &Device::Cpu)?) {
            assert!(error.contains(&format!("{id}, expected 0 to")), "{error}");
        }
    }
    Ok(())
}

#[test]
fn the_largest_id_is_that_of_no_row_as_in_candle() -> Result<()> {
    use candle_nn::Module;
    let table = Var::from_tensor(&draw("table", &[3, 2], DType::F32)?)?;
    let ids = Tensor::new(&[1, u32::MAX, 1, 0], &Device::Cpu)?;
    let stock = candle_nn::Embedding::new(table.as_tensor().clone(), 2).forward(&ids)?;
    let expected = weighted_sum(&stock)?.backward()?;
    for ids in [ids, Tensor::new(&[1, i64::MAX, 1, 0], &Device::Cpu)?] {
        let ours = nn::Embedding::new(table.as_tensor().clone(), 2).forward(&ids)?;
        assert_near("rows", &ours, &stock, 0.)?;
        let found = weighted_sum(&ours)?.backward()?;
        assert_near("gradient", found.get(&table).unwrap(), expected.get(&table).unwrap(), 1e-6)?;
    }
    Ok(())
}

#[test]
fn layers_of_given_weights_stand_in_for_methods_of_tensors() -> Result<()> {
    use candle_nn::Module;
    let (xs, weight) = (draw("xs", &[2, 4, 9], DType::F64)?, draw("weight", &[4, 2, 3], DType::F64)?);
    let (xs, weight) = (Var::from_tensor(&xs)?, Var::from_tensor(&weight)?);
    let config = candle_nn::Conv1dConfig { padding: 1, stride: 2, groups: 2, ..Default::default() };
    let conv = || nn::Conv1d::new(weight.as_tensor().clone(), None, config).forward(&xs);
    assert_near("conv1d", &conv()?, &xs.conv1d(&weight, 1, 2, 1, 2)?, 1e-12)?;
    assert_differences("conv1d", &[xs.clone(), weight.clone()], conv)?;
    let config = candle_nn::ConvTranspose1dConfig { stride: 2, groups: 2, ..Default::default() };
    let conv = || nn::ConvTranspose1d::new(weight.as_tensor().clone(), None, config).forward(&xs);
    assert_near("conv_transpose1d", &conv()?, &xs.conv_transpose1d(&weight, 0, 0, 2, 1, 2)?, 1e-12)?;
    assert_differences("conv_transpose1d", &[xs.clone(), weight.clone()], conv)?;
    let images = Var::from_tensor(&draw("images", &[1, 2, 3, 3], DType::F64)?)?;
    assert_differences("upsample_nearest2d", std::slice::from_ref(&images), || {
        // The first use is the one whose gradient would be lost.
        images.sqr()? + images.affine(1.0, 0.0)?.upsample_nearest2d(6, 6)?.narrow(2, 0, 3)?.narrow(3, 0, 3)?
    })
}

#[test]
fn variables_pushed_between_steps_are_updated() -> Result<()> {
    use candle_textbook::optim::{AdamW, ParamsAdamW, SGD};
    use nn::Optimizer;
    let ones = || Var::ones(2, DType::F32, &Device::Cpu);
    let (first, second) = (ones()?, ones()?);
    let mut sgd = SGD::new(vec![first.clone()], 0.5)?;
    sgd.backward_step(&(first.as_tensor() + second.as_tensor())?.sum_all()?)?;
    sgd.push(&second);
    sgd.push(&Var::zeros(2, DType::U32, &Device::Cpu)?);
    sgd.backward_step(&(first.as_tensor() + second.as_tensor())?.sum_all()?)?;
    assert_eq!((first.to_vec1::<f32>()?, second.to_vec1::<f32>()?), (vec![0.0; 2], vec![0.5; 2]));
    assert_eq!(sgd.into_inner().len(), 3);
    let mut adam = AdamW::new(vec![first.clone()], ParamsAdamW { lr: 0.25, ..Default::default() })?;
    adam.backward_step(&first.sum_all()?)?;
    assert_near("adam", &first, &Tensor::new(&[-0.25f32; 2], &Device::Cpu)?, 1e-5)
}

#[test]
fn optimizers_take_candles_steps() -> Result<()> {
    let start = draw("start", &[3, 4], DType::F32)?;
    for (found, expected) in ours::optimize(&start)?.iter().zip(stock::optimize(&start)?) {
        assert_near("parameters", found, &expected, 1e-6)?;
    }
    Ok(())
}

#[test]
fn a_program_trains_to_the_same_losses() -> Result<()> {
    let (found, expected) = (ours::train(fill)?, stock::train(fill)?);
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-4, "found losses {found}, expected {expected}");
    }
    assert!(found[11] < 0.7 * found[0], "{found:?}");
    Ok(())
}

#[test]
fn types_and_shapes_without_kernels_run_candles_layers() -> Result<()> {
    use candle_nn::Module;
    let xs = draw("half", &[2, 6], DType::F16)?;
    let (weight, bias) = (draw("weight", &[4, 6], DType::F16)?, draw("bias", &[4], DType::F16)?);
    let stock = candle_nn::Linear::new(weight.clone(), Some(bias.clone())).forward(&xs)?;
    assert_near("linear", &nn::Linear::new(weight, Some(bias)).forward(&xs)?, &stock, 0.)?;
    let scalar =
        nn::Linear::new(Tensor::new(&[[2f32]], &Device::Cpu)?, Some(Tensor::new(1f32, &Device::Cpu)?));
    assert_eq!(scalar.forward(&Tensor::new(&[[3f32]], &Device::Cpu)?)?.to_vec2::<f32>()?, [[7.]]);
    let images = draw("images", &[1, 2, 4, 4], DType::F16)?;
    assert_near("max_pool2d", &nn::max_pool2d(&images, 2)?, &images.max_pool2d(2)?, 0.)?;
    assert_near("avg_pool2d", &nn::avg_pool2d(&images, (2, 4))?, &images.avg_pool2d((2, 4))?, 0.)
}

#[test]
fn pooling_passes_each_gradient_to_the_largest_element() -> Result<()> {
    let image = Var::new(&[[[[1f32, 2., 0., 0.], [4., 3., 0., 5.]]]], &Device::Cpu)?;
    let grads = nn::max_pool2d(&image, 2)?.sum_all()?.backward()?;
    let gradient = grads.get(&image).unwrap().flatten_all()?.to_vec1::<f32>()?;
    assert_eq!(gradient, [0., 0., 0., 0., 1., 0., 0., 1.]);
    let overlapping = nn::max_pool2d_with_stride(&image, (2, 2), (1, 1))?;
    assert_eq!(overlapping.flatten_all()?.to_vec1::<f32>()?, [4., 3., 5.]);
    assert!(weighted_sum(&overlapping)?.backward()?.get(&image).is_some());
    Ok(())
}
