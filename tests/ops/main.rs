//! Compares each operation with PyTorch, its gradient with finite differences, and its CPU kernel with its definition.

use candle_core::{DType, Device, Result, Tensor, Var, safetensors};
use candle_textbook::ops::{
    self, BatchStatistics, Conv2dConfig, ConvFilters, Epilogue, PackedSequences, Pool2dConfig, QueryRows,
    TimePooling, reference,
};
use candle_textbook::rng;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;

mod conv2d;
#[cfg(feature = "cuda-emulator")]
mod image_models;
mod special_values;
mod text;

const CPU: Device = Device::Cpu;

/// A function of several tensors.
type Op<'a> = Box<dyn Fn(&[Tensor]) -> Result<Tensor> + 'a>;

fn op<'a>(f: impl Fn(&[Tensor]) -> Result<Tensor> + 'a) -> Op<'a> {
    Box::new(f)
}

fn normal(rng: &mut ChaCha8Rng, dims: &[usize]) -> Result<Tensor> {
    let value = |_| rng.sample::<f64, _>(rand_distr::StandardNormal);
    Tensor::from_vec((0..dims.iter().product()).map(value).collect(), dims, &CPU)
}

fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

/// Returns the output, and the gradient of `sum(output * output_grad)` with respect to each input.
///
/// Without `output_grad`, it is the gradient of `sum(output^2)`.
fn run(f: &Op, inputs: &[Tensor], output_grad: Option<&Tensor>) -> Result<Vec<Tensor>> {
    let vars = inputs.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
    let output = f(&vars.iter().map(|var| var.as_tensor().clone()).collect::<Vec<_>>())?;
    let scalar = match output_grad {
        Some(grad) => (&output * grad)?.sum_all()?,
        None => output.sqr()?.sum_all()?,
    };
    let grads = scalar.backward()?;
    let grad = |var: &Var| Ok(grads.get(var).cloned().unwrap_or(var.zeros_like()?));
    std::iter::once(Ok(output.detach())).chain(vars.iter().map(grad)).collect()
}

fn assert_near(name: &str, found: &[Tensor], expected: &[Tensor], tolerance: f64) -> Result<()> {
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.dims(), expected.dims(), "{name}: shape of result {i}");
        let (found, expected) = (values(found)?, values(expected)?);
        let scale = expected.iter().fold(1f64, |scale, x| scale.max(x.abs()));
        for (j, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let near = (found - expected).abs() <= tolerance * scale;
            assert!(near, "{name}: element {j} of result {i} is {found}, expected {expected}");
        }
    }
    Ok(())
}

/// Compares gradients in f64 with central differences.
fn assert_gradients(name: &str, f: &Op, inputs: &[Tensor]) -> Result<()> {
    const STEP: f64 = 1e-5;
    let output_grad = normal(&mut rng::stream(1, name), f(inputs)?.dims())?;
    let found = run(f, inputs, Some(&output_grad))?;
    for (i, input) in inputs.iter().enumerate() {
        let values = values(input)?;
        let mut expected = vec![];
        for j in 0..values.len() {
            let at = |step: f64| -> Result<f64> {
                let (mut values, mut inputs) = (values.clone(), inputs.to_vec());
                values[j] += step;
                inputs[i] = Tensor::from_vec(values, input.shape(), &CPU)?;
                (f(&inputs)? * &output_grad)?.sum_all()?.to_scalar::<f64>()
            };
            expected.push((at(STEP)? - at(-STEP)?) / (2. * STEP));
        }
        let expected = Tensor::from_vec(expected, input.shape(), &CPU)?;
        assert_near(&format!("{name}, input {i}"), &found[i + 1..i + 2], &[expected], 1e-7)?;
    }
    Ok(())
}

/// Compares a CPU kernel with its definition: on the inputs, on transposed views of them, and in f32.
fn assert_reference(name: &str, kernel: &Op, reference: &Op, inputs: &[Tensor]) -> Result<()> {
    let expected = run(reference, inputs, None)?;
    assert_near(name, &run(kernel, inputs, None)?, &expected, 1e-10)?;
    let transposed = |x: &Tensor| match x.rank() {
        0 | 1 => Ok(x.clone()),
        rank => x.transpose(0, rank - 1)?.contiguous()?.transpose(0, rank - 1),
    };
    let strided = op(|inputs| kernel(&inputs.iter().map(transposed).collect::<Result<Vec<_>>>()?));
    assert_near(&format!("{name}, transposed"), &run(&strided, inputs, None)?, &expected, 1e-10)?;
    let single = inputs.iter().map(|x| x.to_dtype(DType::F32)).collect::<Result<Vec<_>>>()?;
    assert_near(&format!("{name}, f32"), &run(kernel, &single, None)?, &expected, 2e-5)
}

fn statistics(mean: &[f64], variance: &[f64]) -> Result<BatchStatistics> {
    Ok(BatchStatistics { mean: Tensor::new(mean, &CPU)?, variance: Tensor::new(variance, &CPU)? })
}

fn geometry(
    stride: (usize, usize),
    padding: (usize, usize),
    dilation: (usize, usize),
    groups: usize,
) -> Conv2dConfig {
    Conv2dConfig { stride, padding, dilation, groups }
}

fn window(kernel: (usize, usize), stride: (usize, usize), padding: (usize, usize)) -> Pool2dConfig {
    Pool2dConfig { kernel, stride, padding }
}

fn conv(geometry: Conv2dConfig) -> (Op<'static>, Op<'static>) {
    (
        op(move |x| ops::conv2d(&x[0], &x[1], x.get(2), geometry)),
        op(move |x| reference::conv2d(&x[0], &x[1], x.get(2), geometry)),
    )
}

/// Batch, channels and outputs; height and width; kernel; stride; padding.
type ConvolutionCase = ((usize, usize, usize), (usize, usize), (usize, usize), usize, usize);

/// Compares convolutions of these sizes with their definition.
fn assert_convolutions(purpose: &str, cases: &[ConvolutionCase]) -> Result<()> {
    for &((batch, channels, outputs), (height, width), kernel, stride, padding) in cases {
        let rng = &mut rng::stream(1, purpose);
        let inputs = [
            normal(rng, &[batch, channels, height, width])?,
            normal(rng, &[outputs, channels, kernel.0, kernel.1])?,
            normal(rng, &[outputs])?,
        ];
        let (ours, definition) = conv(geometry((stride, stride), (padding, padding), (1, 1), 1));
        let name = format!("{:?} {kernel:?} stride {stride}, padding {padding}", inputs[0].dims());
        assert_reference(&name, &ours, &definition, &inputs)?;
    }
    Ok(())
}

fn pools(window: Pool2dConfig) -> [(&'static str, Op<'static>, Op<'static>); 3] {
    [
        (
            "max",
            op(move |x| ops::max_pool2d(&x[0], window)),
            op(move |x| reference::max_pool2d(&x[0], window)),
        ),
        (
            "avg",
            op(move |x| ops::avg_pool2d(&x[0], window)),
            op(move |x| reference::avg_pool2d(&x[0], window)),
        ),
        ("l2", op(move |x| ops::l2_pool2d(&x[0], window)), op(move |x| reference::l2_pool2d(&x[0], window))),
    ]
}

fn linear() -> (Op<'static>, Op<'static>) {
    (op(|x| ops::linear(&x[0], &x[1], x.get(2))), op(|x| reference::linear(&x[0], &x[1], x.get(2))))
}

/// Batch norm of the input, weight, bias and, if there is a fourth tensor, the residual.
fn batch_norm(epsilon: f64, running: Option<&BatchStatistics>, relu: bool) -> (Op<'_>, Op<'_>) {
    fn epilogue(x: &[Tensor], relu: bool) -> Epilogue<'_> {
        Epilogue { add: x.get(3), relu }
    }
    (
        op(move |x| Ok(ops::batch_norm(&x[0], &x[1], &x[2], epsilon, running, epilogue(x, relu))?.0)),
        op(move |x| Ok(reference::batch_norm(&x[0], &x[1], &x[2], epsilon, running, epilogue(x, relu))?.0)),
    )
}

fn activations() -> [(&'static str, Op<'static>, Op<'static>); 3] {
    [
        ("relu", op(|x| ops::relu(&x[0])), op(|x| reference::relu(&x[0]))),
        ("sigmoid", op(|x| ops::sigmoid(&x[0])), op(|x| reference::sigmoid(&x[0]))),
        ("tanh", op(|x| ops::tanh(&x[0])), op(|x| reference::tanh(&x[0]))),
    ]
}

fn losses(targets: &Tensor) -> [(&'static str, Op<'_>, Op<'_>); 4] {
    [
        (
            "softmax_cross_entropy",
            op(|x| ops::softmax_cross_entropy(&x[0], targets, 0.)),
            op(|x| reference::softmax_cross_entropy(&x[0], targets, 0.)),
        ),
        (
            "smoothed_cross_entropy",
            op(|x| ops::softmax_cross_entropy(&x[0], targets, 0.1)),
            op(|x| reference::softmax_cross_entropy(&x[0], targets, 0.1)),
        ),
        (
            "sigmoid_cross_entropy",
            op(|x| ops::sigmoid_cross_entropy(&x[0], targets)),
            op(|x| reference::sigmoid_cross_entropy(&x[0], targets)),
        ),
        ("quadratic", op(|x| ops::quadratic(&x[0], targets)), op(|x| reference::quadratic(&x[0], targets))),
    ]
}

fn embedding(ids: &Tensor) -> (Op<'static>, Op<'static>) {
    let (ids, flat, shape) = (ids.clone(), ids.flatten_all(), [ids.dims(), &[5]].concat());
    let flat = flat.unwrap();
    (op(move |x| ops::embedding(&x[0], &ids)), op(move |x| x[0].index_select(&flat, 0)?.reshape(&shape[..])))
}

fn embedding_mean(ids: Tensor, sequences: &Arc<PackedSequences>) -> (Op<'static>, Op<'static>) {
    let (same_ids, same, sequences) = (ids.clone(), sequences.clone(), sequences.clone());
    (
        op(move |x| ops::embedding_mean(&x[0], &ids, &sequences)),
        op(move |x| reference::pool_over_time(&x[0].index_select(&same_ids, 0)?, &same, TimePooling::Mean)),
    )
}

#[test]
fn outputs_and_gradients_match_pytorch() -> Result<()> {
    let saved = safetensors::load("tests/fixtures/ops.safetensors", &CPU)?;
    let targets = saved["targets"].to_dtype(DType::U32)?;
    let running = statistics(&[0.5, -1., 0., 2.], &[0.25, 2., 1., 0.5])?;
    let mut cases = vec![("linear".to_string(), linear())];
    // fixtures/ops.py has the same list.
    for (name, geometry) in [
        ("conv_lenet", geometry((1, 1), (2, 2), (1, 1), 1)),
        ("conv_odd", geometry((2, 3), (1, 0), (1, 2), 1)),
        ("conv_groups", geometry((1, 2), (0, 1), (2, 1), 2)),
        ("conv_depthwise", geometry((1, 1), (1, 1), (1, 1), 4)),
        ("conv_one", geometry((3, 2), (0, 0), (1, 1), 1)),
    ] {
        cases.push((name.to_string(), conv(geometry)));
    }
    for (name, window) in [
        ("pool_square", Pool2dConfig::square(2)),
        ("pool_overlap", window((3, 2), (2, 1), (1, 1))),
        ("pool_gaps", window((2, 3), (4, 5), (0, 1))),
    ] {
        cases.extend(
            pools(window).map(|(kind, kernel, definition)| (format!("{kind}_{name}"), (kernel, definition))),
        );
    }
    let ids = Tensor::new(&[[2u32, 5, 2], [0, 4, 4], [5, 0, 0]], &CPU)?;
    cases.push(("embedding".to_string(), embedding(&ids)));
    let sequences = Arc::new(PackedSequences::new(&[3, 2, 1])?);
    cases.push(("embedding_mean".to_string(), embedding_mean(sequences.pack(&ids)?, &sequences)));
    cases.push(("batch_norm".to_string(), batch_norm(1e-5, None, false)));
    for name in ["batch_norm_relu", "batch_norm_add_relu"] {
        cases.push((name.to_string(), batch_norm(1e-5, None, true)));
    }
    cases.push(("batch_norm_given".to_string(), batch_norm(1e-5, Some(&running), false)));
    cases.extend(activations().map(|(name, kernel, definition)| (name.to_string(), (kernel, definition))));
    cases.extend(losses(&targets).map(|(name, kernel, definition)| (name.to_string(), (kernel, definition))));

    for (name, (kernel, definition)) in &cases {
        let with = |dtype| -> Result<(Vec<Tensor>, Tensor, Vec<Tensor>)> {
            let get =
                |key: String| saved.get(&format!("{name}/{key}")).map(|x| x.to_dtype(dtype)).transpose();
            let all = |key: &str| {
                (0..4).map_while(|i| get(format!("{key}{i}")).transpose()).collect::<Result<Vec<_>>>()
            };
            let [output, grad] = ["output", "output_grad"].map(|key| get(key.to_string()));
            let expected = [vec![output?.expect("an output")], all("grad")?].concat();
            Ok((all("input")?, grad?.expect("its gradient"), expected))
        };
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 2e-6)] {
            let (inputs, output_grad, expected) = with(dtype)?;
            for (definition, what) in [(kernel, "kernel"), (definition, "reference")] {
                let found = run(definition, &inputs, Some(&output_grad))?;
                assert_near(&format!("{name}, {what}, {dtype:?}"), &found, &expected, tolerance)?;
            }
        }
    }
    Ok(())
}

#[test]
fn gradients_match_finite_differences() -> Result<()> {
    let rng = &mut rng::stream(2, "finite differences");
    let xs = normal(rng, &[2, 4, 5, 6])?;
    for (dims, geometry) in [
        ([3, 4, 3, 2], geometry((1, 1), (1, 1), (1, 1), 1)),
        ([2, 2, 2, 3], geometry((2, 3), (0, 1), (2, 1), 2)),
        ([4, 1, 1, 1], geometry((4, 4), (0, 0), (1, 1), 4)),
    ] {
        let inputs = [xs.clone(), normal(rng, &dims)?, normal(rng, &dims[..1])?];
        assert_gradients(&format!("conv2d {geometry:?}"), &conv(geometry).0, &inputs)?;
        assert_gradients(&format!("conv2d without bias {geometry:?}"), &conv(geometry).0, &inputs[..2])?;
    }
    for window in [Pool2dConfig::square(2), window((3, 2), (2, 1), (1, 1)), window((1, 2), (2, 3), (0, 0))] {
        for (name, kernel, _) in pools(window) {
            assert_gradients(&format!("{name} {window:?}"), &kernel, std::slice::from_ref(&xs))?;
        }
    }
    let inputs = [normal(rng, &[2, 3, 4])?, normal(rng, &[5, 4])?, normal(rng, &[5])?];
    assert_gradients("linear", &linear().0, &inputs)?;
    for (name, kernel, _) in activations() {
        assert_gradients(name, &kernel, &inputs[..1])?;
    }
    let targets = Tensor::new(&[3u32, 0, 2], &CPU)?;
    for (name, kernel, _) in losses(&targets) {
        assert_gradients(name, &kernel, &[normal(rng, &[3, 4])?])?;
    }
    let running = statistics(&[0.5, -1., 0., 2.], &[0.25, 2., 1., 0.5])?;
    let (weight, bias, add) = (normal(rng, &[4])?, normal(rng, &[4])?, normal(rng, &[2, 4, 5, 6])?);
    let inputs = [xs.clone(), weight, bias, add];
    for running in [None, Some(&running)] {
        for (relu, count) in [(false, 3), (false, 4), (true, 3), (true, 4)] {
            let name = format!("batch_norm of {count}, {relu}, {}", running.is_some());
            assert_gradients(&name, &batch_norm(1e-3, running, relu).0, &inputs[..count])?;
        }
    }
    let mask = || rng::stream(3, "dropout");
    assert_gradients("dropout", &op(move |x| ops::dropout(&x[0], 0.3, &mut mask())), &[xs])
}

#[test]
fn kernels_match_the_reference_on_random_shapes() -> Result<()> {
    for round in 0..60 {
        let rng = &mut rng::stream(round, "random shapes");
        let pair =
            |rng: &mut ChaCha8Rng, low, high| (rng.random_range(low..=high), rng.random_range(low..=high));
        let batch = rng.random_range(0..=5);
        let groups = rng.random_range(1..=3);
        let (channels, outputs) = pair(rng, 1, 7);
        let (kernel, stride, padding, dilation) =
            (pair(rng, 1, 5), pair(rng, 1, 4), pair(rng, 0, 3), pair(rng, 1, 3));
        let least = |kernel: usize, padding: usize, dilation: usize| {
            (dilation * (kernel - 1) + 1).saturating_sub(2 * padding).max(1)
        };
        let height = least(kernel.0, padding.0, dilation.0) + rng.random_range(0..=20);
        let width = least(kernel.1, padding.1, dilation.1) + rng.random_range(0..=20);
        let geometry = geometry(stride, padding, dilation, groups);
        let inputs = [
            normal(rng, &[batch, channels * groups, height, width])?,
            normal(rng, &[outputs * groups, channels, kernel.0, kernel.1])?,
            normal(rng, &[outputs * groups])?,
        ];
        let name = format!("round {round}: {:?} {:?} {geometry:?}", inputs[0].dims(), inputs[1].dims());
        let (ours, definition) = conv(geometry);
        assert_reference(&name, &ours, &definition, &inputs)?;

        // Rounding makes many maxima equal.
        let xs = inputs[0].round()?;
        let padding = (padding.0.min(kernel.0 / 2), padding.1.min(kernel.1 / 2));
        if kernel.0 <= height + 2 * padding.0 && kernel.1 <= width + 2 * padding.1 {
            let window = window(kernel, stride, padding);
            for (kind, ours, definition) in pools(window) {
                assert_reference(
                    &format!("round {round}: {kind} {:?} {window:?}", xs.dims()),
                    &ours,
                    &definition,
                    std::slice::from_ref(&xs),
                )?;
            }
        }

        let plane = if round % 5 == 0 { (1, 1) } else { pair(rng, 1, 40) };
        let shape = [batch, channels * groups, plane.0, plane.1];
        let inputs = [
            normal(rng, &shape)?,
            normal(rng, &shape[1..2])?,
            normal(rng, &shape[1..2])?,
            normal(rng, &shape)?,
        ];
        let running = BatchStatistics { mean: inputs[1].clone(), variance: inputs[2].sqr()? };
        for (running, relu, count) in [(None, round % 2 == 0, 3), (None, true, 4), (Some(&running), true, 4)]
        {
            let (ours, definition) = batch_norm(0.1, running, relu);
            let name =
                format!("round {round}: batch_norm of {count} {shape:?}, {relu}, {}", running.is_some());
            assert_reference(&name, &ours, &definition, &inputs[..count])?;
        }

        let (rows, features) = (rng.random_range(0..=70), rng.random_range(1..=200));
        let inputs =
            [normal(rng, &[rows, features])?, normal(rng, &[outputs, features])?, normal(rng, &[outputs])?];
        let (ours, definition) = linear();
        assert_reference(
            &format!("round {round}: linear {rows} {features} {outputs}"),
            &ours,
            &definition,
            &inputs,
        )?;
    }
    Ok(())
}

#[test]
fn convolution_kernels_of_height_three_match_the_reference() -> Result<()> {
    // Strips of rows that end in the last row of the image, and one, two and three rows beyond it; images of a few strips
    // per block and of several blocks per chunk.
    for (batch, channels, outputs, (height, width), columns, padding) in [
        (1, 16, 16, (12, 12), 3, (1, 1)),
        (9, 17, 17, (8, 8), 3, (1, 1)),
        (3, 16, 20, (11, 13), 3, (0, 0)),
        (2, 17, 12, (6, 31), 3, (2, 2)),
        (2, 32, 7, (9, 33), 3, (2, 0)),
        (1, 64, 64, (4, 1), 3, (1, 1)),
        (3, 40, 40, (3, 5), 3, (1, 2)),
        (2, 16, 40, (10, 7), 1, (1, 0)),
        (2, 12, 12, (10, 7), 5, (1, 3)),
        (1, 48, 48, (7, 150), 2, (0, 1)),
        (17, 16, 16, (16, 16), 3, (1, 1)),
        (3, 1, 17, (8, 9), 3, (1, 1)),
        (3, 3, 80, (8, 9), 3, (1, 1)),
        (2, 17, 3, (8, 8), 3, (1, 1)),
        (2, 64, 64, (1, 1), 3, (1, 1)),
        (0, 16, 16, (8, 8), 3, (1, 1)),
    ] {
        let rng = &mut rng::stream(8, "three rows");
        let inputs = [
            normal(rng, &[batch, channels, height, width])?,
            normal(rng, &[outputs, channels, 3, columns])?,
            normal(rng, &[outputs])?,
        ];
        let (ours, definition) = conv(geometry((1, 1), padding, (1, 1), 1));
        let name = format!("{:?} {:?} {padding:?}", inputs[0].dims(), inputs[1].dims());
        assert_reference(&name, &ours, &definition, &inputs)?;
        assert_reference(&format!("{name}, no bias"), &ours, &definition, &inputs[..2])?;
    }
    Ok(())
}

#[test]
fn tensors_of_several_chunks_match_the_reference() -> Result<()> {
    let rng = &mut rng::stream(5, "chunks");
    let inputs = [normal(rng, &[37, 3, 30, 31])?, normal(rng, &[9, 3, 3, 3])?, normal(rng, &[9])?];
    let (ours, definition) = conv(geometry((1, 1), (1, 1), (1, 1), 1));
    assert_reference("conv2d", &ours, &definition, &inputs)?;
    for (name, ours, definition) in pools(Pool2dConfig::square(2)).into_iter().chain(activations()) {
        assert_reference(name, &ours, &definition, &inputs[..1])?;
    }
    // A weight that is packed although there are few rows.
    let inputs = [normal(rng, &[50, 1029])?, normal(rng, &[1023, 1029])?, normal(rng, &[1023])?];
    let (ours, definition) = linear();
    assert_reference("large linear", &ours, &definition, &inputs)?;
    let inputs = [normal(rng, &[150, 301])?, normal(rng, &[203, 301])?, normal(rng, &[203])?];
    assert_reference("linear", &ours, &definition, &inputs)?;
    let targets = Tensor::arange(0u32, 150, &CPU)?;
    for (name, ours, definition) in losses(&targets) {
        assert_reference(name, &ours, &definition, &inputs[..1])?;
    }
    Ok(())
}

#[test]
fn batch_norm_is_accurate_far_from_zero_and_propagates_nan() -> Result<()> {
    let xs = (normal(&mut rng::stream(7, "moments"), &[3, 2, 50, 31])? + 1e4)?.to_dtype(DType::F32)?;
    let ones = |dtype| Tensor::ones(2, dtype, &CPU);
    let norm = |xs: &Tensor| {
        let ones = ones(xs.dtype())?;
        ops::batch_norm(xs, &ones, &ones, 1e-5, None, Epilogue { add: None, relu: true })
    };
    let ((ys, statistics), (expected, exact)) = (norm(&xs)?, norm(&xs.to_dtype(DType::F64)?)?);
    assert_near("output", &[ys], &[expected], 1e-5)?;
    assert_near("mean", &[(statistics.mean - 1e4)?], &[(exact.mean - 1e4)?], 1e-3)?;
    assert_near("variance", &[statistics.variance], &[exact.variance], 1e-6)?;

    let nan = Tensor::new(&[[[[1f32, f32::NAN]], [[1., 2.]]]], &CPU)?;
    let ys = values(&norm(&nan)?.0)?;
    assert!(ys[..2].iter().all(|y| y.is_nan()) && ys[2..].iter().all(|y| y.is_finite()), "{ys:?}");
    let var = Var::from_tensor(&nan)?;
    let grads = norm(&var)?.0.sum_all()?.backward()?;
    assert!(values(grads.get(&var).unwrap())?[..2].iter().all(|grad| grad.is_nan()));
    Ok(())
}

#[test]
fn inputs_that_are_not_variables_get_no_gradient() -> Result<()> {
    let rng = &mut rng::stream(6, "no gradient");
    let xs = normal(rng, &[2, 1, 5, 5])?;
    let weight = Var::from_tensor(&normal(rng, &[2, 1, 3, 3])?)?;
    let grads = ops::conv2d(&xs, &weight, None, Conv2dConfig::default())?.sum_all()?.backward()?;
    assert!(grads.get(&xs).is_none() && grads.get(&weight).is_some());
    Ok(())
}

#[test]
fn dropout_keeps_the_expected_share_and_the_expected_value() -> Result<()> {
    let ones = Tensor::ones((100, 1000), DType::F32, &CPU)?;
    let drop = |probability, seed| ops::dropout(&ones, probability, &mut rng::stream(seed, "dropout"));
    let ys = drop(0.25, 1)?;
    let kept = values(&ys)?.iter().filter(|&&y| y != 0.).count();
    assert!((74_000..76_000).contains(&kept), "kept {kept} of 100000");
    assert!(values(&ys)?.iter().all(|&y| y == 0. || (y - 4. / 3.).abs() < 1e-6));
    assert_eq!(values(&ys)?, values(&drop(0.25, 1)?)?);
    assert_ne!(values(&ys)?, values(&drop(0.25, 2)?)?);
    assert_eq!(values(&drop(0., 1)?)?, values(&ones)?);
    assert_eq!(values(&drop(1., 1)?)?, vec![0.; 100_000]);
    Ok(())
}

#[test]
fn errors_name_the_operation_and_the_invalid_argument() -> Result<()> {
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &CPU);
    let (image, logits) = (zeros(&[2, 4, 5, 5])?, zeros(&[2, 3])?);
    let targets = |labels: &[u32]| Tensor::new(labels, &CPU);
    let padded = |padding| window((2, 2), (2, 2), (padding, 0));
    let plain = Conv2dConfig::default();
    let grouped = Conv2dConfig { groups: 2, ..plain };
    let no_rng = || rng::stream(0, "");
    let norm = |xs: &Tensor, channels: usize, add| {
        let zeros = Tensor::zeros(channels, DType::F32, &CPU)?;
        Ok(ops::batch_norm(xs, &zeros, &zeros, 1e-5, None, Epilogue { add, relu: false })?.0)
    };
    let cases = [
        (ops::linear(&logits, &zeros(&[5, 4])?, None), "linear: found an input of shape [2, 3]"),
        (ops::linear(&logits, &zeros(&[5])?, None), "linear: found a weight of shape [5]"),
        (ops::linear(&logits, &zeros(&[5, 3])?, Some(&zeros(&[3])?)), "linear: found a bias of shape [3]"),
        (ops::conv2d(&logits, &zeros(&[5, 4, 3, 3])?, None, plain), "conv2d: found an input of shape [2, 3]"),
        (ops::conv2d(&image, &zeros(&[5, 3, 3, 3])?, None, plain), "conv2d: found 4 input channels"),
        (
            ops::conv2d(&image, &zeros(&[5, 2, 3, 3])?, None, grouped),
            "conv2d: found 4 input channels and 5 output",
        ),
        (
            ops::conv2d(&image, &zeros(&[5, 4, 6, 3])?, None, plain),
            "conv2d: found a kernel that covers (6, 3)",
        ),
        (
            ops::conv2d(&image, &zeros(&[5, 4, 0, 3])?, None, plain),
            "conv2d: found an input of shape [2, 4, 5, 5], a weight",
        ),
        (ops::max_pool2d(&image, Pool2dConfig::square(6)), "max_pool2d: found kernel (6, 6)"),
        (ops::avg_pool2d(&image, padded(2)), "avg_pool2d: found padding (2, 0)"),
        (ops::l2_pool2d(&image, Pool2dConfig::square(0)), "l2_pool2d: found kernel (0, 0)"),
        (ops::max_pool2d(&logits, Pool2dConfig::square(1)), "max_pool2d: found an input of shape [2, 3]"),
        (
            ops::softmax_cross_entropy(&logits, &targets(&[0, 3])?, 0.),
            "softmax_cross_entropy: found the target 3",
        ),
        (ops::quadratic(&logits, &targets(&[0])?), "quadratic: found u32 targets of shape [1]"),
        (ops::quadratic(&logits, &zeros(&[2])?), "quadratic: found f32 targets"),
        (
            ops::sigmoid_cross_entropy(&zeros(&[0, 3])?, &targets(&[])?),
            "sigmoid_cross_entropy: found an empty batch",
        ),
        (
            ops::max_pool2d(&zeros(&[1, 1, 0, 3])?, padded(1)),
            "max_pool2d: found an input of shape [1, 1, 0, 3]",
        ),
        (ops::dropout(&logits, 1.5, &mut no_rng()), "dropout: found a probability of 1.5"),
        (ops::dropout(&logits, f32::NAN, &mut no_rng()), "dropout: found a probability of NaN"),
        (ops::relu(&targets(&[1])?), "relu: found U32, expected f32 or f64"),
        (norm(&logits, 3, None), "batch_norm: found an input of shape [2, 3]"),
        (
            norm(&image, 3, None),
            "batch_norm: found a weight of shape [3], expected (4) for an input of shape [2, 4, ",
        ),
        (norm(&image, 4, Some(&logits)), "batch_norm: found a residual of shape [2, 3], expected"),
    ];
    for (result, expected) in cases {
        let found = result.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(found.starts_with(expected), "{found:?} does not start with {expected:?}");
    }
    Ok(())
}

#[test]
fn results_are_equal_to_the_bit_for_any_number_of_threads() -> Result<()> {
    let rng = &mut rng::stream(1, "threads");
    let mut normal = |dims: &[usize]| -> Result<Var> {
        let value = |_| rng.sample::<f32, _>(rand_distr::StandardNormal);
        let values = (0..dims.iter().product()).map(value).collect::<Vec<_>>();
        Var::from_tensor(&Tensor::from_vec(values, dims, &CPU)?)
    };
    let vars = [
        normal(&[50, 3, 20, 20])?,
        normal(&[8, 3, 3, 3])?,
        normal(&[8])?,
        normal(&[100, 800])?,
        normal(&[8, 8, 3, 3])?,
    ];
    let targets = Tensor::arange(0u32, 50, &CPU)?;
    let step = || -> Result<Vec<Vec<u32>>> {
        let padded = Conv2dConfig { padding: (1, 1), ..Default::default() };
        let xs = ops::relu(&ops::conv2d(&vars[0], &vars[1], Some(&vars[2]), padded)?)?;
        let xs = ops::conv2d(&xs, &vars[4], None, padded)?;
        let xs =
            ops::batch_norm(&xs, &vars[2], &vars[2], 1e-5, None, Epilogue { add: Some(&xs), relu: true })?.0;
        let xs = ops::max_pool2d(&xs, Pool2dConfig::square(2))?.reshape((50, 800))?;
        let loss = ops::softmax_cross_entropy(&ops::linear(&xs, &vars[3], None)?, &targets, 0.)?;
        let grads = loss.backward()?;
        let bits = |tensor: &Tensor| -> Result<Vec<u32>> {
            let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            Ok(values.into_iter().map(f32::to_bits).collect())
        };
        let grads = vars.iter().filter_map(|var| grads.get(var));
        std::iter::once(&loss).chain(grads).map(bits).collect()
    };
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.map_err(candle_core::Error::wrap)?.install(step)
    };
    assert!(on(1)? == on(3)?);
    Ok(())
}
