//! Arguments that recurrent networks and their decoder refuse.

use super::*;

#[test]
fn the_incremental_decoder_refuses_what_does_not_fit() -> Result<()> {
    let decoder = |bidirectional: bool, features: usize, inputs: usize| {
        let (_, network) = network(Cell::Gru, 1, bidirectional, 0.0)?;
        let weight = Tensor::zeros((7, inputs), DType::F32, &CPU)?;
        network
            .incremental_decoder(&Tensor::zeros((5, features), DType::F32, &CPU)?, &Linear::new(weight, None))
    };
    let refused = |bidirectional: bool, features: usize, inputs: usize, expected: &str| {
        let error = decoder(bidirectional, features, inputs).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    };
    assert!(decoder(false, 6, 20).is_ok());
    refused(false, 5, 20, "input weight");
    refused(false, 6, 21, "[7, 21]");
    refused(true, 6, 20, "bidirectional");
    Ok(())
}

#[test]
fn inputs_and_states_of_wrong_shapes_are_errors() -> Result<()> {
    let (_, network) = network(Cell::Gru, 1, false, 0.0)?;
    let sequences = Arc::new(PackedSequences::new(&[2, 1])?);
    let forward = |rows: usize, features: usize, state: Option<&RecurrentState>| {
        let xs = Tensor::zeros((rows, features), DType::F32, &CPU)?;
        network.forward(&xs, &sequences, state, Mode::Evaluate)
    };
    assert!(forward(3, 6, None).is_ok());
    assert!(forward(4, 6, None).is_err());
    assert!(forward(3, 5, None).is_err());
    let state = |layers: usize, batch: usize, cell: bool| -> Result<RecurrentState> {
        let hidden = Tensor::zeros((layers, batch, 20), DType::F32, &CPU)?;
        Ok(RecurrentState { cell: cell.then(|| hidden.clone()), hidden })
    };
    let one = state(1, 2, false)?;
    assert!(forward(3, 6, Some(&one)).is_ok());
    assert!(forward(3, 6, Some(&state(1, 3, false)?)).is_err());
    assert!(forward(3, 6, Some(&state(1, 2, true)?)).is_err());
    // A state of more layers than the network has.
    let error = forward(3, 6, Some(&state(2, 2, false)?)).unwrap_err().to_string();
    assert!(error.contains("[2, 2, 20], expected (1, batch, 20)"), "{error}");
    assert!(one.last_layer(1).is_ok() && one.last_layer(2).is_err());
    Ok(())
}

#[test]
fn sizes_that_overflow_are_errors() -> Result<()> {
    let config = RecurrentConfig {
        cell: Cell::Lstm,
        features: 1,
        hidden: 1,
        layers: 1,
        bidirectional: true,
        dropout: 0.0,
        forget_bias: None,
    };
    for config in [
        RecurrentConfig { hidden: usize::MAX / 2, ..config },
        RecurrentConfig { features: usize::MAX, ..config },
        RecurrentConfig { layers: usize::MAX, ..config },
        RecurrentConfig { layers: 0, ..config },
        RecurrentConfig { hidden: 0, ..config },
    ] {
        let vb = seeded_var_builder(&VarMap::new(), 0, DType::F32, &CPU);
        let error = recurrent(&config, vb).unwrap_err().to_string();
        assert!(error.contains("address space") || error.contains("at least one"), "{error}");
    }
    // An empty weight takes no memory, whatever its shape.
    let weight = Tensor::zeros((0, usize::MAX), DType::F32, &CPU)?;
    let weights = RecurrentWeights {
        input: weight.clone(),
        hidden: weight.clone(),
        input_bias: weight.clone(),
        hidden_bias: weight,
    };
    let sequences = Arc::new(PackedSequences::new(&[1])?);
    let xs = Tensor::zeros((1, 1), DType::F32, &CPU)?;
    let error = ops::recurrent(Cell::Gru, &xs, &sequences, &[weights], None).unwrap_err().to_string();
    assert!(error.contains("hidden weight"), "{error}");
    Ok(())
}
