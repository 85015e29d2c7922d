//! The operations on text: embeddings, pooling over time and convolution over words.

use super::*;

#[test]
fn embeddings_and_pooling_over_time_match_the_reference() -> Result<()> {
    let rng = &mut rng::stream(1, "text ops");
    let ids = Tensor::new(&[[3u32, 0, 3], [1, ops::NO_ROW, 5]], &CPU)?;
    let table = normal(rng, &[6, 5])?;
    let (kernel, definition) = embedding(&ids);
    assert_gradients("embedding", &kernel, std::slice::from_ref(&table))?;
    assert_reference("embedding", &kernel, &definition, &[table])?;
    for lengths in [&[1][..], &[3, 1, 4, 4], &[2, 9]] {
        let sequences = Arc::new(PackedSequences::new(lengths)?);
        let ids = (0..sequences.rows()).map(|_| rng.random_range(0..6u32)).collect::<Vec<_>>();
        let (kernel, definition) = embedding_mean(Tensor::new(ids, &CPU)?, &sequences);
        let table = normal(rng, &[6, 5])?;
        assert_gradients("embedding_mean", &kernel, std::slice::from_ref(&table))?;
        assert_reference("embedding_mean", &kernel, &definition, &[table])?;
        let xs = normal(rng, &[sequences.rows(), 3])?;
        for pooling in [TimePooling::Mean, TimePooling::Max] {
            let kernel = op(|x| ops::pool_over_time(&x[0], &sequences, pooling));
            let definition = op(|x| reference::pool_over_time(&x[0], &sequences, pooling));
            let name = format!("{pooling:?} over {lengths:?}");
            assert_gradients(&name, &kernel, std::slice::from_ref(&xs))?;
            assert_reference(&name, &kernel, &definition, std::slice::from_ref(&xs))?;
        }
    }
    Ok(())
}

/// [`ops::conv_max_over_time`] and its definition. The inputs are the words, then weights and biases.
pub(super) fn conv_max_over_time(
    sequences: &Arc<PackedSequences>,
    padding: usize,
) -> (Op<'static>, Op<'static>) {
    let filters = |x: &[Tensor]| -> Vec<ConvFilters> {
        x[1..].chunks(2).map(|x| ConvFilters { weight: x[0].clone(), bias: x[1].clone() }).collect()
    };
    let (sequences, same) = (sequences.clone(), sequences.clone());
    (
        op(move |x| ops::conv_max_over_time(&x[0], &sequences, &filters(x), padding)),
        op(move |x| Ok(reference::conv_max_over_time(&x[0], &same, &filters(x), padding)?.0)),
    )
}

#[test]
fn conv_max_over_time_matches_pytorch_and_the_reference() -> Result<()> {
    let saved = safetensors::load("tests/fixtures/ops.safetensors", &CPU)?;
    let sequences = Arc::new(PackedSequences::new(&[3, 6, 1])?);
    let saved = |key: String| saved[&format!("conv_max/{key}")].clone();
    let inputs: Vec<Tensor> = (0..7).map(|i| saved(format!("input{i}"))).collect();
    let grads = (0..7).map(|i| saved(format!("grad{i}")));
    let expected: Vec<Tensor> = std::iter::once(saved("output".to_string())).chain(grads).collect();
    let (kernel, definition) = conv_max_over_time(&sequences, 4);
    for (f, what) in [(&kernel, "kernel"), (&definition, "reference")] {
        let packed = op(|x| f(&[&[sequences.pack(&x[0])?], &x[1..]].concat()));
        let found = run(&packed, &inputs, Some(&saved("output_grad".to_string())))?;
        assert_near(what, &found, &expected, 1e-12)?;
    }

    let rng = &mut rng::stream(8, "conv_max");
    for round in 0..20 {
        let batch = rng.random_range(1..=if round < 15 { 4 } else { 60 });
        let widths: Vec<usize> = (0..rng.random_range(1..=3)).map(|_| rng.random_range(1..=5)).collect();
        let padding = rng.random_range(0..=5);
        let least = widths.iter().max().unwrap().saturating_sub(2 * padding).max(1);
        let lengths: Vec<usize> = (0..batch).map(|_| rng.random_range(least..=least + 9)).collect();
        let sequences = Arc::new(PackedSequences::new(&lengths)?);
        let features = rng.random_range(1..=20);
        let mut inputs = vec![normal(rng, &[sequences.rows(), features])?];
        for &width in &widths {
            let count = rng.random_range(1..=50);
            inputs.extend([normal(rng, &[count, features, width])?, normal(rng, &[count])?]);
        }
        let (kernel, definition) = conv_max_over_time(&sequences, padding);
        let name = format!("widths {widths:?}, padding {padding}, lengths {lengths:?}");
        assert_reference(&name, &kernel, &definition, &inputs)?;
        if round < 5 {
            let few = [
                vec![inputs[0].clone()],
                inputs[1..].iter().map(|x| x.narrow(0, 0, 1)).collect::<Result<_>>()?,
            ];
            assert_gradients(&name, &kernel, &few.concat())?;
        }
        let filters: Vec<ConvFilters> =
            inputs[1..].chunks(2).map(|x| ConvFilters { weight: x[0].clone(), bias: x[1].clone() }).collect();
        let positions = ops::conv_max_positions(&inputs[0], &sequences, &filters, padding)?;
        assert_eq!(
            positions,
            reference::conv_max_over_time(&inputs[0], &sequences, &filters, padding)?.1,
            "{name}"
        );
    }
    Ok(())
}

#[test]
fn filters_of_the_wrong_shape_are_errors() -> Result<()> {
    let sequences = Arc::new(PackedSequences::new(&[2, 3])?);
    let xs = Tensor::zeros((5, 4), DType::F32, &CPU)?;
    let error = |weight: (usize, usize, usize), bias: usize, padding: usize| -> Result<String> {
        let filters = ConvFilters {
            weight: Tensor::zeros(weight, DType::F32, &CPU)?,
            bias: Tensor::zeros(bias, DType::F32, &CPU)?,
        };
        Ok(ops::conv_max_over_time(&xs, &sequences, &[filters], padding).unwrap_err().to_string())
    };
    assert!(error((6, 3, 2), 6, 0)?.contains("expected (filters, 4, width)"));
    assert!(error((6, 4, 2), 5, 0)?.contains("expected (6)"));
    assert!(
        error((6, 4, 5), 6, 1)?
            .contains("found a sentence of length 4 including its padding, expected at least 5")
    );
    assert!(ops::conv_max_over_time(&xs, &sequences, &[], 0).is_err());
    Ok(())
}

#[test]
fn ids_outside_the_table_and_wrong_row_counts_are_errors() -> Result<()> {
    let table = Tensor::zeros((4, 2), DType::F32, &CPU)?;
    let error = ops::embedding(&table, &Tensor::new(&[1u32, 4], &CPU)?).unwrap_err().to_string();
    assert!(error.contains("found the id 4, expected one below 4"), "{error}");
    assert!(ops::embedding(&table, &Tensor::new(&[1i64], &CPU)?).is_err());
    let sequences = Arc::new(PackedSequences::new(&[2, 3])?);
    assert!(ops::pool_over_time(&table, &sequences, TimePooling::Max).is_err());
    let none = Tensor::full(ops::NO_ROW, 5, &CPU)?;
    assert!(ops::embedding_mean(&table, &none, &sequences).is_err());
    let error = ops::embedding_mean(&table, &Tensor::zeros(4, DType::U32, &CPU)?, &sequences).unwrap_err();
    assert!(error.to_string().contains("ids of shape [4], expected (5)"), "{error}");
    Ok(())
}

#[test]
fn attention_matches_the_reference_and_finite_differences() -> Result<()> {
    let rng = &mut rng::stream(4, "attention");
    // Lengths of the sequences, sequence of each query, size of queries, size of values.
    for (lengths, rows, size, features) in [
        (&[1][..], &[0u32][..], 1, 1),
        (&[4], &[0, 0, 0], 3, 5),
        (&[2, 5, 1], &[1, 0, 2, 1, 1], 17, 4),
        (&[3, 3, 2, 7], &[3, 0, 3], 6, 19),
        (&[2, 1], &[], 2, 3),
        (&[40, 11], &[1, 0, 1, 1], 70, 300),
    ] {
        let sequences = Arc::new(PackedSequences::new(lengths)?);
        let inputs = [
            normal(rng, &[rows.len(), size])?,
            normal(rng, &[sequences.rows(), size])?,
            normal(rng, &[sequences.rows(), features])?,
            normal(rng, &[size])?,
        ];
        for (name, count) in [("additive", 4), ("dot", 3)] {
            let name = format!("{name} attention over {lengths:?}");
            let kernel =
                op(|x| Ok(ops::attention(&x[0], &x[1], &x[2], x.get(3), &sequences, QueryRows::Of(rows))?.0));
            let definition =
                op(|x| Ok(reference::attention(&x[0], &x[1], &x[2], x.get(3), &sequences, rows)?.0));
            assert_reference(&name, &kernel, &definition, &inputs[..count])?;
            if !rows.is_empty() && size < 50 {
                assert_gradients(&name, &kernel, &inputs[..count])?;
            }
            let weights = |x: &[Tensor]| -> Result<[Tensor; 2]> {
                let (_, ours) =
                    ops::attention(&x[0], &x[1], &x[2], x.get(3), &sequences, QueryRows::Of(rows))?;
                let (_, definition) = reference::attention(&x[0], &x[1], &x[2], x.get(3), &sequences, rows)?;
                Ok([ours, definition])
            };
            let [found, expected] = weights(&inputs[..count])?;
            assert_near(&name, &[found], &[expected], 1e-12)?;
        }
    }
    Ok(())
}

#[test]
fn attention_checks_its_arguments() -> Result<()> {
    let sequences = Arc::new(PackedSequences::new(&[2, 1])?);
    let zeros = |dims: [usize; 2]| Tensor::zeros(&dims, DType::F32, &CPU);
    let v = Tensor::zeros(4, DType::F32, &CPU)?;
    for (queries, keys, values, v, rows, expected) in [
        ([1, 4], [2, 4], [3, 5], None, [0], "found keys of shape [2, 4]"),
        ([1, 4], [3, 4], [4, 5], None, [0], "values of shape [4, 5]"),
        ([1, 3], [3, 4], [3, 5], None, [0], "found queries of shape [1, 3], expected (1, 4)"),
        ([1, 3], [3, 3], [3, 5], Some(&v), [0], "found a vector of shape [4], expected (3)"),
        ([1, 4], [3, 4], [3, 5], None, [2], "found the sequence 2, expected one below 2"),
    ] {
        let found = ops::attention(
            &zeros(queries)?,
            &zeros(keys)?,
            &zeros(values)?,
            v,
            &sequences,
            QueryRows::Of(&rows),
        );
        let error = found.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    Ok(())
}

#[test]
fn the_most_probable_classes_come_first_and_equal_ones_in_order() -> Result<()> {
    let logits = Tensor::new(&[[0f64, 2., 1., 2.], [-1., -1., -1., 500.]], &CPU)?;
    let found = ops::top_log_probabilities(&logits, 3)?;
    let classes = |row: usize| found[row].iter().map(|&(class, _)| class).collect::<Vec<_>>();
    assert_eq!((classes(0), classes(1)), (vec![1, 3, 2], vec![3, 0, 1]));
    let sum = (1f64 + 2f64.exp() * 2. + 1f64.exp()).ln();
    for (&(_, x), expected) in found[0].iter().zip([2. - sum, 2. - sum, 1. - sum]) {
        assert!((x - expected).abs() < 1e-12);
    }
    assert_eq!(found[1][1].1, -501.);
    assert_eq!(ops::top_log_probabilities(&logits, usize::MAX)?[0].len(), 4);
    let nan = Tensor::new(&[[0f32, f32::NAN, 3., 1.]], &CPU)?;
    assert!(ops::top_log_probabilities(&nan, 1).is_err());
    Ok(())
}

#[test]
fn linear_cross_entropy_is_the_cross_entropy_of_a_linear_layer() -> Result<()> {
    let rng = &mut rng::stream(5, "linear cross-entropy");
    for (rows, size, classes) in [(1, 1, 1), (3, 5, 7), (150, 9, 40)] {
        let inputs = [normal(rng, &[rows, size])?, normal(rng, &[classes, size])?, normal(rng, &[classes])?];
        let targets: Vec<u32> = (0..rows).map(|_| rng.random_range(0..classes as u32)).collect();
        let targets = Tensor::new(targets, &CPU)?;
        for (count, smoothing) in [(3, 0.0), (2, 0.2)] {
            let kernel = op(|x| {
                ops::linear_cross_entropy(&x[0], &x[1], x.get(2), &targets, smoothing)?.affine(3., 0.)
            });
            let definition = op(|x| {
                let logits = reference::linear(&x[0], &x[1], x.get(2))?;
                reference::softmax_cross_entropy(&logits, &targets, smoothing)?.affine(3., 0.)
            });
            assert_reference(&format!("{rows} {size} {classes}"), &kernel, &definition, &inputs[..count])?;
        }
        let without_gradient =
            ops::linear_cross_entropy(&inputs[0], &inputs[1], Some(&inputs[2]), &targets, 0.1)?;
        let expected = ops::softmax_cross_entropy(
            &ops::linear(&inputs[0], &inputs[1], Some(&inputs[2]))?,
            &targets,
            0.1,
        )?;
        assert_near("without a gradient", &[without_gradient], &[expected], 0.0)?;
    }
    let (xs, weight) = (Tensor::zeros((2, 3), DType::F32, &CPU)?, Tensor::zeros((4, 3), DType::F32, &CPU)?);
    let error = |targets: &[u32]| {
        let targets = Tensor::new(targets, &CPU).unwrap();
        ops::linear_cross_entropy(&xs, &weight, None, &targets, 0.0).unwrap_err().to_string()
    };
    assert!(error(&[1, 4]).contains("found the target 4, expected one below 4"));
    assert!(error(&[1]).contains("expected u32 of shape (2)"));
    Ok(())
}

#[test]
fn the_first_of_equal_maxima_over_time_gets_the_gradient() -> Result<()> {
    let sequences = Arc::new(PackedSequences::new(&[3])?);
    let xs = Var::new(&[[0f64], [2.], [2.]], &CPU)?;
    let grads = ops::pool_over_time(&xs, &sequences, TimePooling::Max)?.sum_all()?.backward()?;
    assert_eq!(values(grads.get(&xs).unwrap())?, [0., 1., 0.]);
    Ok(())
}
