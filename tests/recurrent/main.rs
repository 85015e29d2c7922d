//! Recurrent networks, against PyTorch, finite differences and the reference implementation; and errors.

use candle_core::{DType, Device, Result, Tensor, Var, safetensors};
use candle_nn::{VarBuilder, VarMap};
use candle_textbook::nn::{
    Cell, Linear, Mode, PackedSequences, Recurrent, RecurrentConfig, RecurrentState, recurrent,
    seeded_var_builder,
};
use candle_textbook::ops::{self, RecurrentWeights, reference};
use candle_textbook::rng;
use rand::Rng;
use std::collections::HashMap;
use std::sync::Arc;

#[cfg(feature = "cuda-emulator")]
mod cuda;
mod refusals;

const CPU: Device = Device::Cpu;
const CELLS: [(&str, Cell); 4] =
    [("tanh", Cell::Tanh), ("relu", Cell::Relu), ("gru", Cell::Gru), ("lstm", Cell::Lstm)];

fn normal(seed: u64, dims: &[usize]) -> Result<Var> {
    let mut rng = rng::stream(seed, "recurrent test");
    let value = |_| rng.sample::<f64, _>(rand_distr::StandardNormal);
    Var::from_tensor(&Tensor::from_vec((0..dims.iter().product()).map(value).collect(), dims, &CPU)?)
}

fn assert_near(name: &str, found: &Tensor, expected: &Tensor, tolerance: f64) -> Result<()> {
    assert_eq!(found.dims(), expected.dims(), "{name}");
    let values = |tensor: &Tensor| tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    let expected = values(expected)?;
    let scale = expected.iter().fold(1f64, |scale, x| scale.max(x.abs()));
    for (i, (found, expected)) in values(found)?.iter().zip(&expected).enumerate() {
        let near = (found - expected).abs() <= tolerance * scale;
        assert!(near, "{name}: element {i} is {found}, expected {expected}");
    }
    Ok(())
}

#[test]
fn outputs_and_gradients_equal_pytorch() -> Result<()> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/recurrent.safetensors");
    let fixtures = safetensors::load(path, &CPU)?;
    for (name, cell) in CELLS {
        for (case, layers, bidirectional) in [(1, 1, false), (2, 1, true), (3, 2, true), (4, 3, false)] {
            for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-5)] {
                let name = format!("{name}_{case}");
                let get = |key: &str| fixtures[&format!("{name}.{key}")].clone();
                let var = |key: &str| Var::from_tensor(&get(key).to_dtype(dtype)?);
                let start = format!("{name}.net.");
                let weights: HashMap<String, Var> = fixtures
                    .keys()
                    .filter_map(|key| key.strip_prefix(&start).filter(|key| !key.ends_with(".grad")))
                    .map(|key| Ok((key.to_string(), var(&format!("net.{key}"))?)))
                    .collect::<Result<_>>()?;
                let tensors =
                    weights.iter().map(|(key, var)| (key.clone(), var.as_tensor().clone())).collect();
                let xs = var("xs")?;
                let features = xs.dim(2)?;
                let hidden = get("state0").dim(2)?;
                let config = RecurrentConfig {
                    cell,
                    features,
                    hidden,
                    layers,
                    bidirectional,
                    dropout: 0.5,
                    forget_bias: None,
                };
                let network = recurrent(&config, VarBuilder::from_tensors(tensors, dtype, &CPU))?;
                let lengths: Vec<usize> =
                    get("lengths").to_vec1::<i64>()?.into_iter().map(|length| length as usize).collect();
                let sequences = Arc::new(PackedSequences::new(&lengths)?);
                let starts = (0..if cell.has_cell_state() { 2 } else { 1 })
                    .map(|i| var(&format!("state{i}")))
                    .collect::<Result<Vec<_>>>()?;
                let state = RecurrentState {
                    hidden: starts[0].as_tensor().clone(),
                    cell: starts.get(1).map(|cell| cell.as_tensor().clone()),
                };
                let packed = sequences.pack(&xs)?;
                let (ys, end) = network.forward(&packed, &sequences, Some(&state), Mode::Evaluate)?;
                let ys = sequences.unpack(&ys)?;
                assert_near(&format!("{name} ys"), &ys, &get("ys"), tolerance)?;
                let wave = |tensor: &Tensor, phase: f64| -> Result<Tensor> {
                    let i = Tensor::arange(0f64, tensor.elem_count() as f64, &CPU)?;
                    let angle = ((&i * 0.37)? + ((i.sqr()? * 0.0007)? + phase)?)?;
                    angle.sin()?.reshape(tensor.shape())?.to_dtype(dtype)
                };
                let mut loss = (&ys * wave(&ys, 1.5)?)?.sum_all()?;
                for (i, end) in std::iter::once(&end.hidden).chain(&end.cell).enumerate() {
                    assert_near(&format!("{name} end{i}"), end, &get(&format!("end{i}")), tolerance)?;
                    loss = (loss + (end * wave(end, 5.0 + i as f64)?)?.sum_all()?)?;
                }
                let grads = loss.backward()?;
                let states = starts.iter().enumerate().map(|(i, var)| (format!("state{i}"), var));
                let net = weights.iter().map(|(key, var)| (format!("net.{key}"), var));
                for (key, var) in net.chain(states).chain([("xs".to_string(), &xs)]) {
                    let expected = get(&format!("{key}.grad"));
                    assert_near(&format!("{name} {key}"), grads.get(var).unwrap(), &expected, tolerance)?;
                }
            }
        }
    }
    Ok(())
}

/// Random arguments of a layer: input, weights of each direction, initial hidden and cell state.
fn arguments(
    cell: Cell,
    lengths: &[usize],
    (features, hidden): (usize, usize),
    both: bool,
) -> Result<Vec<Var>> {
    let (rows, directions) = (cell.gates() * hidden, if both { 2 } else { 1 });
    let mut shapes = vec![vec![lengths.iter().sum(), features]];
    for _ in 0..directions {
        shapes.extend([vec![rows, features], vec![rows, hidden], vec![rows], vec![rows]]);
    }
    for _ in 0..if cell.has_cell_state() { 2 } else { 1 } {
        shapes.push(vec![directions, lengths.len(), hidden]);
    }
    shapes.iter().enumerate().map(|(i, shape)| normal(i as u64, shape)).collect()
}

type Layer = fn(
    Cell,
    &Tensor,
    &Arc<PackedSequences>,
    &[RecurrentWeights],
    Option<&RecurrentState>,
) -> Result<(Tensor, RecurrentState)>;

fn by_reference(
    cell: Cell,
    xs: &Tensor,
    sequences: &Arc<PackedSequences>,
    weights: &[RecurrentWeights],
    state: Option<&RecurrentState>,
) -> Result<(Tensor, RecurrentState)> {
    reference::recurrent(cell, xs, sequences, weights, state)
}

/// The outputs and final states of a layer in one vector.
fn run(
    layer: Layer,
    cell: Cell,
    lengths: &[usize],
    both: bool,
    with_state: bool,
    args: &[Tensor],
) -> Result<Tensor> {
    let directions = if both { 2 } else { 1 };
    let weights: Vec<RecurrentWeights> = args[1..]
        .chunks_exact(4)
        .take(directions)
        .map(|w| RecurrentWeights {
            input: w[0].clone(),
            hidden: w[1].clone(),
            input_bias: w[2].clone(),
            hidden_bias: w[3].clone(),
        })
        .collect();
    let states = &args[1 + 4 * directions..];
    let state = RecurrentState { hidden: states[0].clone(), cell: states.get(1).cloned() };
    let sequences = Arc::new(PackedSequences::new(lengths)?);
    let (ys, end) = layer(cell, &args[0], &sequences, &weights, with_state.then_some(&state))?;
    let parts = [Some(&ys), Some(&end.hidden), end.cell.as_ref()];
    let flat = parts.into_iter().flatten().map(Tensor::flatten_all).collect::<Result<Vec<_>>>()?;
    Tensor::cat(&flat, 0)
}

fn tensors(vars: &[Var]) -> Vec<Tensor> {
    vars.iter().map(|var| var.as_tensor().clone()).collect()
}

#[test]
fn gradients_equal_finite_differences() -> Result<()> {
    const STEP: f64 = 1e-5;
    for (name, cell) in CELLS {
        for (lengths, both, with_state) in [
            (&[3, 1, 2][..], false, true),
            (&[2, 1][..], true, true),
            (&[2, 3][..], true, false),
            (&[1], false, false),
        ] {
            let vars = arguments(cell, lengths, (2, 3), both)?;
            let value = |args: &[Tensor]| -> Result<Tensor> {
                let out = run(ops::recurrent, cell, lengths, both, with_state, args)?;
                let weight = normal(99, out.dims())?;
                (out * weight.as_tensor().detach())?.sum_all()
            };
            let grads = value(&tensors(&vars))?.backward()?;
            for (i, var) in vars.iter().enumerate() {
                let values = var.flatten_all()?.to_vec1::<f64>()?;
                let difference = |j: usize| -> Result<f64> {
                    let at = |step: f64| -> Result<f64> {
                        let (mut args, mut values) = (tensors(&vars), values.clone());
                        values[j] += step;
                        args[i] = Tensor::from_vec(values, var.shape(), &CPU)?;
                        value(&args)?.to_scalar()
                    };
                    Ok((at(STEP)? - at(-STEP)?) / (2.0 * STEP))
                };
                let expected = (0..values.len()).map(difference).collect::<Result<Vec<_>>>()?;
                let expected = Tensor::from_vec(expected, var.shape(), &CPU)?;
                let found = grads.get(var).cloned().unwrap_or(var.zeros_like()?);
                assert_near(&format!("{name} of {lengths:?}, argument {i}"), &found, &expected, 1e-7)?;
            }
        }
    }
    Ok(())
}

#[test]
fn the_kernel_agrees_with_the_reference_on_random_shapes() -> Result<()> {
    let mut rng = rng::stream(5, "shapes");
    for round in 0..60 {
        let (name, cell) = CELLS[round % 4];
        let batch = [1, 2, 7, 20, 70][rng.random_range(0..5)];
        // From very different lengths to nearly equal ones.
        let shortest = rng.random_range(1..=9);
        let lengths: Vec<usize> = (0..batch).map(|_| rng.random_range(shortest..=9)).collect();
        let sizes = (rng.random_range(1..=20), rng.random_range(1..=40));
        let (both, with_state) = (rng.random(), rng.random());
        let vars = arguments(cell, &lengths, sizes, both)?;
        let result = |layer: Layer, vars: &[Var]| -> Result<Vec<Tensor>> {
            let out = run(layer, cell, &lengths, both, with_state, &tensors(vars))?;
            let grads = out.sqr()?.sum_all()?.backward()?;
            let grad = |var| grads.get(var).cloned().map_or_else(|| Tensor::zeros_like(var), Ok);
            std::iter::once(Ok(out.clone())).chain(vars.iter().map(|var| grad(var))).collect()
        };
        let expected = result(by_reference, &vars)?;
        let name = format!("{name} of {lengths:?}, sizes {sizes:?}, both {both}, state {with_state}");
        for (found, expected) in result(ops::recurrent, &vars)?.iter().zip(&expected) {
            assert_near(&name, found, expected, 1e-9)?;
        }
        let single = vars.iter().map(|var| Var::from_tensor(&var.to_dtype(DType::F32)?));
        for (found, expected) in
            result(ops::recurrent, &single.collect::<Result<Vec<_>>>()?)?.iter().zip(&expected)
        {
            assert_near(&format!("{name}, f32"), found, expected, 1e-3)?;
        }
    }
    Ok(())
}

/// Runs a layer on tokens, one distinct token per feature of `xs`.
///
/// Their table is the transposed input weights.
fn on_tokens(
    layer: Layer,
    cell: Cell,
    xs: &Tensor,
    sequences: &Arc<PackedSequences>,
    weights: &[RecurrentWeights],
    state: Option<&RecurrentState>,
) -> Result<(Tensor, RecurrentState)> {
    let transposed =
        |weights: &RecurrentWeights| Ok(RecurrentWeights { input: weights.input.t()?, ..weights.clone() });
    let weights = weights.iter().map(transposed).collect::<Result<Vec<_>>>()?;
    layer(cell, &token_ids(xs)?, sequences, &weights, state)
}

fn token_ids(xs: &Tensor) -> Result<Tensor> {
    let (rows, tokens) = xs.dims2()?;
    Tensor::from_vec((0..rows).map(|row| (row * row % tokens) as u32).collect(), rows, &CPU)
}

#[test]
fn tokens_equal_their_one_hot_vectors() -> Result<()> {
    let one_hot: Layer = |cell, xs, sequences, weights, state| {
        let vectors = Tensor::eye(xs.dim(1)?, xs.dtype(), &CPU)?.index_select(&token_ids(xs)?, 0)?;
        ops::recurrent(cell, &vectors, sequences, weights, state)
    };
    let kernel: Layer = |cell, xs, sequences, weights, state| {
        on_tokens(ops::recurrent_tokens, cell, xs, sequences, weights, state)
    };
    let reference: Layer = |cell, xs, sequences, weights, state| {
        let layer: Layer = |cell, ids, sequences, weights, state| {
            reference::recurrent_tokens(cell, ids, sequences, weights, state)
        };
        on_tokens(layer, cell, xs, sequences, weights, state)
    };
    for (name, cell) in CELLS {
        for (lengths, tokens, both, with_state) in [
            (&[3, 1, 2][..], 4, false, true),
            (&[9; 40], 7, true, false),
            (&[1], 1, false, true),
            (&[2], 50, true, true),
        ] {
            let vars = arguments(cell, lengths, (tokens, 33), both)?;
            let result = |layer: Layer| -> Result<Vec<Tensor>> {
                let out = run(layer, cell, lengths, both, with_state, &tensors(&vars))?;
                let grads = out.sqr()?.sum_all()?.backward()?;
                let grad = |var| grads.get(var).cloned().map_or_else(|| Tensor::zeros_like(var), Ok);
                std::iter::once(Ok(out.clone())).chain(vars[1..].iter().map(|var| grad(var))).collect()
            };
            let expected = result(one_hot)?;
            for layer in [kernel, reference] {
                for (found, expected) in result(layer)?.iter().zip(&expected) {
                    assert_near(&format!("{name} of {lengths:?}"), found, expected, 1e-9)?;
                }
            }
        }
    }
    let vars = arguments(Cell::Gru, &[2], (3, 4), false)?;
    let out_of_range: Layer = |cell, _, sequences, weights, state| {
        let ids = Tensor::new(&[0u32, 4], &CPU)?;
        ops::recurrent_tokens(
            cell,
            &ids,
            sequences,
            &[RecurrentWeights { input: weights[0].input.t()?, ..weights[0].clone() }],
            state,
        )
    };
    let error = run(out_of_range, Cell::Gru, &[2], false, false, &tensors(&vars)).unwrap_err().to_string();
    assert!(error.contains("id 4, expected one below 3"), "{error}");
    Ok(())
}

fn network(cell: Cell, layers: usize, bidirectional: bool, dropout: f32) -> Result<(VarMap, Recurrent)> {
    let config =
        RecurrentConfig { cell, features: 6, hidden: 20, layers, bidirectional, dropout, forget_bias: None };
    let vars = VarMap::new();
    let network = recurrent(&config, seeded_var_builder(&vars, 3, DType::F32, &CPU))?;
    Ok((vars, network))
}

#[test]
fn windows_that_pass_on_the_state_equal_the_whole_sequence() -> Result<()> {
    for (_, cell) in CELLS {
        let (_, network) = network(cell, 2, false, 0.0)?;
        let xs = normal(1, &[3, 8, 6])?.to_dtype(DType::F32)?;
        let all = Arc::new(PackedSequences::new(&[8, 8, 8])?);
        let (whole, end) = network.forward(&all.pack(&xs)?, &all, None, Mode::Evaluate)?;
        let whole = all.unpack(&whole)?;
        for window in [1, 4] {
            let sequences = Arc::new(PackedSequences::new(&[window; 3])?);
            let (mut parts, mut state) = (vec![], None);
            for start in (0..8).step_by(window) {
                let xs = sequences.pack(&xs.narrow(1, start, window)?)?;
                let (ys, next) = network.forward(&xs, &sequences, state.as_ref(), Mode::Evaluate)?;
                parts.push(sequences.unpack(&ys)?);
                state = Some(next.detach());
            }
            assert_near("outputs", &Tensor::cat(&parts, 1)?, &whole, 1e-6)?;
            assert_near("end", &state.unwrap().hidden, &end.hidden, 1e-6)?;
        }
    }
    Ok(())
}

#[test]
fn a_sequence_does_not_depend_on_the_rest_of_the_batch() -> Result<()> {
    let (_, network) = network(Cell::Lstm, 2, true, 0.0)?;
    let xs = normal(2, &[4, 9, 6])?.to_dtype(DType::F32)?;
    let lengths = [9, 2, 5, 1];
    let together = Arc::new(PackedSequences::new(&lengths)?);
    let (ys, end) = network.forward(&together.pack(&xs)?, &together, None, Mode::Evaluate)?;
    let ys = together.unpack(&ys)?;
    for (i, &length) in lengths.iter().enumerate() {
        let alone = Arc::new(PackedSequences::new(&[length])?);
        let (alone_ys, alone_end) = network.forward(
            &xs.narrow(0, i, 1)?.narrow(1, 0, length)?.squeeze(0)?,
            &alone,
            None,
            Mode::Evaluate,
        )?;
        assert_near("outputs", &alone_ys, &ys.get(i)?.narrow(0, 0, length)?, 1e-6)?;
        assert_near("end", &alone_end.hidden.squeeze(1)?, &end.hidden.narrow(1, i, 1)?.squeeze(1)?, 1e-6)?;
    }
    Ok(())
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() -> Result<()> {
    // One thread computes so few sequences together, and several divide them.
    let lengths: Vec<usize> = (0..30).map(|i| 1 + i * 7 % 12).collect();
    for (_, cell) in CELLS {
        let (vars, network) = network(cell, 2, true, 0.3)?;
        let sequences = Arc::new(PackedSequences::new(&lengths)?);
        let xs = normal(4, &[sequences.rows(), 6])?.to_dtype(DType::F32)?;
        let step = || -> Result<Vec<Vec<u32>>> {
            let mode = Mode::train(1, 0, 5);
            let (ys, _) = network.forward(&xs, &sequences, None, mode)?;
            let grads = ys.sqr()?.sum_all()?.backward()?;
            let mut vars: Vec<_> = vars.data().lock().unwrap().clone().into_iter().collect();
            vars.sort_by(|a, b| a.0.cmp(&b.0));
            let bits = |tensor: &Tensor| -> Result<Vec<u32>> {
                Ok(tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
            };
            vars.iter().map(|(_, var)| bits(grads.get(var).unwrap())).collect()
        };
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.map_err(candle_core::Error::wrap)?.install(step)
        };
        assert!(on(1)? == on(3)?);
    }
    Ok(())
}

#[test]
fn the_incremental_decoder_equals_the_whole_sequence() -> Result<()> {
    let ids = [3u32, 0, 4, 4, 1];
    let sequences = Arc::new(PackedSequences::new(&[ids.len()])?);
    for (_, cell) in CELLS {
        let (_, network) = network(cell, 3, false, 0.0)?;
        let float = |var: Var| var.to_dtype(DType::F32);
        let table = float(normal(1, &[5, 6])?)?;
        for bias in [None, Some(float(normal(2, &[7])?)?)] {
            let output = Linear::new(float(normal(3, &[7, 20])?)?, bias);
            let xs = table.index_select(&Tensor::new(&ids, &CPU)?, 0)?;
            let whole = network.forward(&xs, &sequences, None, Mode::Evaluate)?.0.apply(&output)?;
            let mut decoder = network.incremental_decoder(&table, &output)?;
            let each = ids.iter().flat_map(|&id| decoder.step(id).unwrap()).collect();
            assert_near("outputs", &Tensor::from_vec(each, (5, 7), &CPU)?, &whole, 1e-5)?;
            let error = decoder.step(5).unwrap_err().to_string();
            assert!(error.contains("id 5, expected one below 5"), "{error}");
        }
    }
    Ok(())
}

#[test]
fn a_layer_without_features_equals_one_whose_feature_is_zero() -> Result<()> {
    let zero_feature: Layer = |cell, xs, sequences, weights, state| {
        let xs = Tensor::zeros((xs.dim(0)?, 1), DType::F64, &CPU)?;
        let padded = |weights: &RecurrentWeights| -> Result<RecurrentWeights> {
            let input = Tensor::ones((weights.input.dim(0)?, 1), DType::F64, &CPU)?;
            Ok(RecurrentWeights { input, ..weights.clone() })
        };
        let weights = weights.iter().map(padded).collect::<Result<Vec<_>>>()?;
        ops::recurrent(cell, &xs, sequences, &weights, state)
    };
    for (name, cell) in CELLS {
        let vars = arguments(cell, &[3, 1, 2], (0, 5), true)?;
        let result = |layer: Layer| -> Result<Vec<Tensor>> {
            let out = run(layer, cell, &[3, 1, 2], true, true, &tensors(&vars))?;
            let grads = out.sqr()?.sum_all()?.backward()?;
            let nonempty = vars.iter().filter(|var| var.elem_count() > 0);
            let grads = nonempty.map(|var| grads.get(var).cloned().unwrap());
            Ok(std::iter::once(out.clone()).chain(grads).collect())
        };
        for (found, expected) in result(ops::recurrent)?.iter().zip(&result(zero_feature)?) {
            assert_near(name, found, expected, 1e-12)?;
        }
    }
    Ok(())
}

#[test]
fn the_memory_layout_of_the_arguments_does_not_matter() -> Result<()> {
    for (name, cell) in CELLS {
        let lengths = [3, 1, 2];
        let vars = arguments(cell, &lengths, (4, 5), true)?;
        let result = |args: &[Tensor]| -> Result<Vec<Tensor>> {
            let out = run(ops::recurrent, cell, &lengths, true, true, args)?;
            let grads = out.sqr()?.sum_all()?.backward()?;
            let grads = vars.iter().map(|var| grads.get(var).cloned().unwrap());
            Ok(std::iter::once(out.clone()).chain(grads).collect())
        };
        // Every other element of a tensor of twice the size.
        let strided = |var: &Var| -> Result<Tensor> {
            let last = var.rank();
            let doubled = Tensor::stack(&[var.as_tensor(), var.as_tensor()], last)?;
            let strided = doubled.narrow(last, 1, 1)?.squeeze(last)?;
            assert!(!strided.is_contiguous());
            Ok(strided)
        };
        let strided = vars.iter().map(strided).collect::<Result<Vec<_>>>()?;
        for (found, expected) in result(&strided)?.iter().zip(&result(&tensors(&vars))?) {
            assert_near(name, found, expected, 1e-12)?;
        }
    }
    Ok(())
}

/// An operation whose backward pass fails.
struct Failing;

impl candle_core::CustomOp1 for Failing {
    fn name(&self) -> &'static str {
        "failing"
    }

    fn cpu_fwd(
        &self,
        storage: &candle_core::CpuStorage,
        layout: &candle_core::Layout,
    ) -> Result<(candle_core::CpuStorage, candle_core::Shape)> {
        Ok((storage.clone(), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        candle_core::bail!("failing on purpose")
    }
}

#[test]
fn passes_through_one_graph_do_not_see_each_others_cell_gradients() -> Result<()> {
    let args = arguments(Cell::Lstm, &[4; 20], (3, 8), false)?;
    let sequences = Arc::new(PackedSequences::new(&[4; 20])?);
    let layer = |args: &[Var]| {
        let weight = |i: usize| args[i].as_tensor().clone();
        let weights = RecurrentWeights {
            input: weight(1),
            hidden: weight(2),
            input_bias: weight(3),
            hidden_bias: weight(4),
        };
        ops::recurrent(Cell::Lstm, &args[0], &sequences, &[weights], None)
    };
    let (ys, state) = layer(&args)?;
    let cells = state.cell.unwrap();
    let grad = |loss: &Tensor| -> Result<Vec<f64>> {
        loss.backward()?.get(&args[1]).unwrap().flatten_all()?.to_vec1::<f64>()
    };
    let (of_ys, of_both) = (ys.sum_all()?, (ys.sum_all()? + cells.sum_all()?)?);
    let expected = [grad(&of_ys)?, grad(&of_both)?];
    // Passes of several threads at once.
    std::thread::scope(|scope| {
        let pass = |i: usize| grad([&of_ys, &of_both][i % 2]).unwrap() == expected[i % 2];
        let passes: Vec<_> = (0..4).map(|i| scope.spawn(move || (0..20).all(|_| pass(i)))).collect();
        assert!(passes.into_iter().all(|pass| pass.join().unwrap()));
    });
    // A pass that fails before it reaches the layer.
    let failing = ys.apply_op1(Failing)?.sum_all()?;
    for broken in [(&failing + cells.sum_all()?)?, (cells.sum_all()? + &failing)?] {
        assert!(broken.backward().is_err());
        let after = grad(&of_ys).or_else(|_| grad(&of_ys))?;
        assert_eq!(after, expected[0]);
    }
    Ok(())
}
