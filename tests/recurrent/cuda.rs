//! The CUDA kernels, which run in an emulator here.

use super::*;
use candle_textbook::ops::emulator;

/// The outputs, final states and gradients of a layer in f32.
fn results(
    cell: Cell,
    lengths: &[usize],
    sizes: (usize, usize),
    both: bool,
    with_state: bool,
) -> Result<Vec<Tensor>> {
    let args = arguments(cell, lengths, sizes, both)?;
    // Small enough weights that the states of many steps stay comparable in f32.
    let args = args.iter().map(|arg| Var::from_tensor(&(arg.to_dtype(DType::F32)? * 0.2)?));
    let args = args.collect::<Result<Vec<_>>>()?;
    let out = run(ops::recurrent, cell, lengths, both, with_state, &tensors(&args))?;
    let grads = out.sqr()?.sum_all()?.backward()?;
    let grads = args.iter().filter_map(|arg| grads.get(arg).cloned());
    Ok(std::iter::once(out.detach()).chain(grads).collect())
}

fn compare(cell: Cell, lengths: &[usize], sizes: (usize, usize), both: bool, with_state: bool) -> Result<()> {
    let run = || results(cell, lengths, sizes, both, with_state);
    let (found, counts) = emulator::count(run);
    let (found, expected) = (found?, emulator::off(run)?);
    assert!(counts.launches > 0 && found.len() == expected.len());
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let name = format!("{i} of {cell} with {sizes:?}, {} sequences", lengths.len());
        assert_near(&name, found, expected, 2e-5)?;
    }
    Ok(())
}

#[test]
fn several_sequences_share_a_block() -> Result<()> {
    for (_, cell) in CELLS {
        for batch in [131, 259] {
            let lengths: Vec<usize> = (0..batch).map(|i| 1 + i * 7 % 3).collect();
            compare(cell, &lengths, (2, 5), false, true)?;
        }
    }
    compare(Cell::Lstm, &[2; 130], (2, 3), true, false)
}

#[test]
fn weights_beyond_registers_and_shared_memory_are_read_in_each_step() -> Result<()> {
    compare(Cell::Lstm, &[2, 3], (3, 200), true, true)?;
    compare(Cell::Gru, &[2], (3, 129), false, false)
}

#[test]
fn layers_too_large_for_a_block_run_step_by_step() -> Result<()> {
    for (_, cell) in CELLS {
        for (both, with_state) in [(true, true), (true, false), (false, false)] {
            compare(cell, &[2, 3, 1], (3, 257), both, with_state)?;
        }
    }
    Ok(())
}

#[test]
fn a_layer_launches_few_kernels_and_copies_only_the_lengths() -> Result<()> {
    let launches = |lengths: &[usize], both: bool, tokens: bool| -> Result<[[usize; 3]; 2]> {
        let args = arguments(Cell::Lstm, lengths, (4, 6), both)?;
        let args = tensors(&args);
        let sequences = Arc::new(PackedSequences::new(lengths)?);
        let weights = |w: &[Tensor]| -> Result<RecurrentWeights> {
            let input = if tokens { w[0].t()?.contiguous()? } else { w[0].clone() };
            let [hidden, input_bias, hidden_bias] = [1, 2, 3].map(|i| w[i].clone());
            Ok(RecurrentWeights { input, hidden, input_bias, hidden_bias })
        };
        let directions = if both { 2 } else { 1 };
        let weights: Vec<_> =
            args[1..].chunks_exact(4).take(directions).map(weights).collect::<Result<_>>()?;
        let ids = token_ids(&args[0])?;
        let (ys, forward) = emulator::count(|| match tokens {
            true => ops::recurrent_tokens(Cell::Lstm, &ids, &sequences, &weights, None),
            false => ops::recurrent(Cell::Lstm, &args[0], &sequences, &weights, None),
        });
        let loss = ys?.0.sum_all()?;
        let (grads, backward) = emulator::count(|| ops::backward(&loss, vec![]));
        grads?;
        Ok([forward, backward].map(|counts| [counts.launches, counts.to_device, counts.waits]))
    };
    // Input product and recurrence; recurrence, bias gradients, and the products of input and two weights.
    assert_eq!(launches(&[3; 4], false, false)?, [[2, 0, 0], [5, 0, 0]]);
    assert_eq!(launches(&[3; 4], false, true)?, [[1, 0, 0], [4, 0, 0]]);
    // Both directions share all of these but the products of the input.
    assert_eq!(launches(&[3, 5, 1], true, false)?, [[3, 1, 0], [6, 0, 0]]);
    Ok(())
}
