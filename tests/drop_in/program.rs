// A program for candle_nn. It is compiled twice: `candle_nn` is candle_nn itself, and then this crate's `nn`.

use candle_core::{DType, Device, IndexOp, Result, Tensor, Var};
#[allow(unused_imports)]
use candle_nn::{
    AdamW, BatchNormConfig, Conv1dConfig, Conv2dConfig, ConvTranspose1dConfig, ConvTranspose2dConfig,
    Dropout, GRUConfig, LSTMConfig, LayerNormConfig, Linear, Module, ModuleT, Optimizer, ParamsAdamW, RNN,
    SGD, Sequential, VarBuilder, VarMap, func, rnn::LSTMState, seq,
};

/// A function from a tensor to a tensor.
pub type Layer = Box<dyn Fn(&Tensor) -> Result<Tensor>>;

/// The layers that only call their module.
macro_rules! layer {
    ($layer:expr) => {{
        let layer = $layer?;
        Box::new(move |xs: &Tensor| layer.forward(xs)) as Layer
    }};
}

fn boxed(f: impl Fn(&Tensor) -> Result<Tensor> + 'static) -> Layer {
    Box::new(f)
}

/// Layers, each with its name and the shape of its input.
pub type Layers = Vec<(&'static str, Vec<usize>, Layer)>;

/// All layers.
pub fn layers(vb: VarBuilder) -> Result<Layers> {
    let parts = [dense(&vb)?, convolutions(&vb)?, transposed(&vb)?, normalisations(&vb)?, recurrent(&vb)?];
    Ok(parts.into_iter().flatten().collect())
}

fn dense(vb: &VarBuilder) -> Result<Layers> {
    let mlp = seq()
        .add(candle_nn::linear(6, 7, vb.pp("mlp.0"))?)
        .add(candle_nn::Activation::Silu)
        .add(candle_nn::linear_b(7, 3, false, vb.pp("mlp.2"))?)
        .add_fn(|xs| candle_nn::ops::log_softmax(xs, 1));
    let table = candle_nn::embedding(9, 4, vb.pp("embedding"))?;
    let embedding = move |xs: &Tensor| {
        let ids = Tensor::new(&[[3i64, 0, 3], [8, 1, 3]], xs.device())?;
        xs.unsqueeze(1)?.broadcast_mul(&ids.apply(&table)?)
    };
    let rope = |xs: &Tensor| {
        let angles = Tensor::arange(0f32, 6., xs.device())?.reshape((3, 2))?.to_dtype(xs.dtype())?;
        candle_nn::rotary_emb::rope(xs, &angles.cos()?, &angles.sin()?)
    };
    Ok(vec![
        ("linear", vec![4, 6], layer!(candle_nn::linear(6, 5, vb.pp("linear")))),
        ("linear of rank 3", vec![2, 3, 6], layer!(candle_nn::linear_no_bias(6, 5, vb.pp("linear3")))),
        ("sequential", vec![4, 6], boxed(move |xs| xs.apply(&mlp))),
        ("embedding", vec![2, 4], boxed(embedding)),
        ("prelu", vec![2, 4, 3], layer!(candle_nn::prelu(Some(4), vb.pp("prelu")))),
        ("softmax", vec![2, 3, 4], boxed(candle_nn::ops::softmax_last_dim)),
        ("sigmoid", vec![2, 3], boxed(candle_nn::ops::sigmoid)),
        ("rope", vec![1, 2, 3, 4], boxed(rope)),
    ])
}

fn convolutions(vb: &VarBuilder) -> Result<Layers> {
    let grouped = Conv1dConfig { groups: 2, padding: 1, stride: 2, ..Default::default() };
    let dilated = Conv1dConfig { dilation: 2, padding: 3, ..Default::default() };
    let strided = Conv2dConfig { stride: 2, padding: 1, ..Default::default() };
    let depthwise = Conv2dConfig { groups: 4, dilation: 2, ..Default::default() };
    let norm = candle_nn::batch_norm(4, 1e-3, vb.pp("absorbed"))?;
    let folded = candle_nn::conv2d(3, 4, 3, strided, vb.pp("folded"))?.absorb_bn(&norm)?;
    let conv1d = candle_nn::conv1d(3, 4, 3, Default::default(), vb.pp("conv1d"));
    let conv2d = candle_nn::conv2d(3, 4, 3, Default::default(), vb.pp("conv2d"));
    Ok(vec![
        ("conv1d", vec![2, 3, 9], layer!(conv1d)),
        (
            "grouped conv1d",
            vec![2, 4, 9],
            layer!(candle_nn::conv1d_no_bias(4, 6, 3, grouped, vb.pp("conv1d_g"))),
        ),
        ("dilated conv1d", vec![2, 3, 9], layer!(candle_nn::conv1d(3, 2, 3, dilated, vb.pp("conv1d_d")))),
        ("conv2d", vec![2, 3, 6, 7], layer!(conv2d)),
        (
            "strided conv2d",
            vec![2, 3, 6, 7],
            layer!(candle_nn::conv2d_no_bias(3, 4, 3, strided, vb.pp("conv2d_s"))),
        ),
        (
            "depthwise conv2d",
            vec![2, 4, 6, 7],
            layer!(candle_nn::conv2d(4, 4, 3, depthwise, vb.pp("conv2d_g"))),
        ),
        ("conv2d with batch norm", vec![2, 3, 6, 7], boxed(move |xs| folded.forward(xs))),
    ])
}

fn transposed(vb: &VarBuilder) -> Result<Layers> {
    let up1 = ConvTranspose1dConfig { stride: 2, padding: 1, output_padding: 1, ..Default::default() };
    let grouped = ConvTranspose1dConfig { groups: 2, dilation: 2, stride: 3, ..Default::default() };
    let up2 = ConvTranspose2dConfig { stride: 2, padding: 1, output_padding: 1, ..Default::default() };
    let dilated = ConvTranspose2dConfig { dilation: 2, ..Default::default() };
    let grouped = candle_nn::conv_transpose1d_no_bias(4, 6, 2, grouped, vb.pp("up1_g"));
    let dilated = candle_nn::conv_transpose2d_no_bias(3, 2, 3, dilated, vb.pp("up2_d"));
    Ok(vec![
        ("conv_transpose1d", vec![2, 3, 5], layer!(candle_nn::conv_transpose1d(3, 4, 3, up1, vb.pp("up1")))),
        ("grouped conv_transpose1d", vec![2, 4, 5], layer!(grouped)),
        (
            "conv_transpose2d",
            vec![2, 3, 4, 5],
            layer!(candle_nn::conv_transpose2d(3, 4, 3, up2, vb.pp("up2"))),
        ),
        ("dilated conv_transpose2d", vec![2, 3, 4, 5], layer!(dilated)),
    ])
}

fn normalisations(vb: &VarBuilder) -> Result<Layers> {
    let rms = LayerNormConfig { remove_mean: false, affine: false, eps: 1e-6 };
    let norm = candle_nn::batch_norm(4, 1e-3, vb.pp("batch_norm"))?;
    let evaluated = norm.clone();
    let plain = BatchNormConfig { affine: false, momentum: 0.3, ..Default::default() };
    let plain = candle_nn::batch_norm(4, plain, vb.pp("batch_norm_plain"))?;
    let scaled = BatchNormConfig { remove_mean: false, ..Default::default() };
    let scaled = candle_nn::batch_norm(4, scaled, vb.pp("batch_norm_scaled"))?;
    let no_bias = candle_nn::layer_norm_no_bias(6, 1e-5, vb.pp("layer_norm_no_bias"));
    Ok(vec![
        ("batch_norm in training", vec![3, 4, 2, 5], boxed(move |xs| norm.forward_t(xs, true))),
        ("batch_norm in evaluation", vec![3, 4, 5], boxed(move |xs| evaluated.forward_t(xs, false))),
        ("batch_norm without parameters", vec![3, 4], boxed(move |xs| plain.forward_train(xs))),
        ("batch_norm without mean", vec![3, 4, 5], boxed(move |xs| scaled.forward_t(xs, true))),
        ("layer_norm", vec![2, 3, 6], layer!(candle_nn::layer_norm(6, 1e-5, vb.pp("layer_norm")))),
        ("layer_norm_no_bias", vec![2, 3, 6], layer!(no_bias)),
        (
            "layer_norm without mean",
            vec![2, 6],
            layer!(candle_nn::layer_norm(6, rms, vb.pp("layer_norm_rms"))),
        ),
        ("rms_norm", vec![2, 3, 6], layer!(candle_nn::rms_norm(6, 1e-6, vb.pp("rms_norm")))),
        ("group_norm", vec![2, 4, 3, 2], layer!(candle_nn::group_norm(2, 4, 1e-5, vb.pp("group_norm")))),
    ])
}

fn recurrent(vb: &VarBuilder) -> Result<Layers> {
    let lstm = candle_nn::lstm(3, 5, LSTMConfig::default(), vb.pp("lstm"))?;
    let gru = candle_nn::gru(3, 5, GRUConfig::default_no_bias(), vb.pp("gru"))?;
    let (last, cells, steps, gru_last) = (lstm.clone(), lstm.clone(), lstm.clone(), gru.clone());
    let cells = move |xs: &Tensor| {
        let ones = Tensor::ones((2, 5), xs.dtype(), xs.device())?;
        let init = LSTMState::new(xs.i((.., 0, 0..1))?.broadcast_as((2, 5))?, ones);
        let states = cells.seq_init(xs, &init)?;
        &states[1].c + (states[3].c() * states[2].h())?
    };
    let steps = move |xs: &Tensor| {
        let state = steps.step(&xs.i((.., 0))?.contiguous()?, &steps.zero_state(2)?)?;
        steps.step(&xs.i((.., 1))?.contiguous()?, &state)?.h() + state.c()
    };
    let shape = || vec![2, 4, 3];
    Ok(vec![
        ("lstm", shape(), boxed(move |xs| lstm.states_to_tensor(&lstm.seq(xs)?))),
        ("last state of lstm", shape(), boxed(move |xs| Ok(last.seq(xs)?.pop().unwrap().h))),
        ("cell states of lstm", shape(), boxed(cells)),
        ("steps of lstm", shape(), boxed(steps)),
        ("gru", shape(), boxed(move |xs| gru.states_to_tensor(&gru.seq(xs)?))),
        ("last state of gru", shape(), boxed(move |xs| Ok(gru_last.seq(xs)?.pop().unwrap().h))),
    ])
}

/// The losses of logits `(4, 3)` and scalars derived from them.
pub fn losses() -> Vec<(&'static str, Layer)> {
    use candle_nn::loss;
    fn labels(xs: &Tensor) -> Result<Tensor> {
        Tensor::new(&[2i64, 0, 1, 2], xs.device())
    }
    fn targets(xs: &Tensor) -> Result<Tensor> {
        Tensor::arange(0f32, 12., xs.device())?.affine(1. / 11., 0.)?.reshape((4, 3))?.to_dtype(xs.dtype())
    }
    vec![
        ("cross_entropy", Box::new(|xs| loss::cross_entropy(xs, &labels(xs)?))),
        ("nll", Box::new(|xs| loss::nll(&candle_nn::ops::log_softmax(xs, 1)?, &labels(xs)?))),
        ("mse", Box::new(|xs| loss::mse(xs, &targets(xs)?))),
        ("huber", Box::new(|xs| loss::huber(xs, &targets(xs)?, 0.7))),
        (
            "binary_cross_entropy_with_logit",
            Box::new(|xs| loss::binary_cross_entropy_with_logit(xs, &targets(xs)?)),
        ),
    ]
}

/// Each activation but `Tanh`, which candle_nn lacks.
pub fn activations() -> Vec<candle_nn::Activation> {
    use candle_nn::Activation::*;
    vec![
        Gelu,
        NewGelu,
        Relu,
        Relu2,
        Relu6,
        Silu,
        Sigmoid,
        HardSigmoid,
        Swiglu,
        Swish,
        Mish,
        HardSwish,
        Elu(0.7),
        LeakyRelu(0.1),
        GeluPytorchTanh,
    ]
}

/// The classifier that [`train`] trains.
struct Net {
    conv: candle_nn::Conv2d,
    norm: candle_nn::BatchNorm,
    dropout: Dropout,
    output: Linear,
}

impl Net {
    fn new(vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            // A bias before the normalisation has no gradient but rounding errors, which AdamW would enlarge.
            conv: candle_nn::conv2d_no_bias(1, 4, 3, Default::default(), vb.pp("conv"))?,
            norm: candle_nn::batch_norm(4, 1e-5, vb.pp("norm"))?,
            dropout: Dropout::new(0.0),
            output: candle_nn::linear(4 * 4 * 4, 3, vb.pp("output"))?,
        })
    }
}

impl ModuleT for Net {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let xs = xs.apply(&self.conv)?.apply_t(&self.norm, train)?.relu()?.flatten_from(1)?;
        self.dropout.forward(&xs, train)?.apply(&self.output)
    }
}

/// Trains a small network with both optimizers, and returns the losses.
///
/// `fill` gives the parameters their initial values.
pub fn train(fill: impl Fn(&VarMap) -> Result<()>) -> Result<Vec<f32>> {
    let (vars, device) = (VarMap::new(), Device::Cpu);
    let net = Net::new(VarBuilder::from_varmap(&vars, DType::F32, &device))?;
    fill(&vars)?;
    let xs = Tensor::arange(0f32, 8. * 36., &device)?.sin()?.reshape((8, 1, 6, 6))?;
    let labels = Tensor::new(&[0u32, 1, 2, 0, 1, 2, 0, 1], &device)?;
    let mut adam = AdamW::new(vars.all_vars(), ParamsAdamW { lr: 0.01, ..Default::default() })?;
    let mut sgd = SGD::new(vars.all_vars(), 0.05)?;
    let mut losses = vec![];
    for step in 0..12 {
        let loss = candle_nn::loss::cross_entropy(&net.forward_t(&xs, true)?, &labels)?;
        losses.push(loss.to_scalar()?);
        match step % 3 {
            0 => adam.backward_step(&loss)?,
            1 => adam.step(&loss.backward()?)?,
            _ => sgd.backward_step(&loss)?,
        }
        adam.set_learning_rate(adam.learning_rate() * 0.9);
    }
    losses.push(candle_nn::loss::cross_entropy(&net.forward_t(&xs, false)?, &labels)?.to_scalar()?);
    Ok(losses)
}

/// Runs AdamW with changed settings, and gradient descent on a variable added later.
///
/// Returns the parameters.
pub fn optimize(start: &Tensor) -> Result<[Tensor; 2]> {
    let vars = [Var::from_tensor(start)?, Var::from_tensor(start)?];
    let mut adam = AdamW::new_lr(vec![vars[0].clone()], 0.1)?;
    let mut sgd = SGD::empty(0.1)?;
    sgd.push(&vars[1]);
    for step in 0..4 {
        if step == 2 {
            adam.set_params(ParamsAdamW { beta1: 0.5, weight_decay: 0.5, ..adam.params().clone() });
        }
        let loss = |var: &Var| (var.as_tensor() - 1.)?.sqr()?.sum_all();
        adam.backward_step(&loss(&vars[0])?)?;
        sgd.backward_step(&loss(&vars[1])?)?;
    }
    Ok(vars.map(|var| var.as_detached_tensor()))
}
