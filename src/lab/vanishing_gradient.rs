//! Gradients vanish or explode in the lower layers of deep networks (Nielsen, chapter 5).

use super::experiment::{Experiment, Lab};
use super::findings::{Claim, Figure, Findings, Table};
use super::study::{build, descend, gradients, norm};
use crate::data::Images;
use crate::nn::{Activation, BatchNorm, Cost, InitScheme, Linear, Mode, Model, batch_norm, linear_with};
use crate::optim::{Clip, Optimizer, Sgd};
use crate::plots::{Chart, Line, Scale};
use anyhow::Result;
use candle_core::{DType, Device, Module, ModuleT, Tensor};
use candle_nn::{VarBuilder, VarMap};

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "vanishing-gradient",
    about: "The gradient of each layer in networks of 2 to 6 hidden layers: it vanishes, explodes, and how to keep it alive",
    source: "Nielsen, chapter 5; Glorot and Bengio 2010; Ioffe and Szegedy 2015; He et al. 2015; Pascanu et al. 2013",
    book: "[784, 30, 30, 10]: 0.07 in the first and 0.31 in the second hidden layer; with four hidden layers 0.003, 0.017, \
           0.070, 0.285.",
    uses_images: true,
    run,
};

const UNITS: usize = 30;

/// The kind of a network's hidden layers.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    activation: Activation,
    init: InitScheme,
    normalised: bool,
    /// Whether each hidden layer except the first adds its input to its output.
    shortcut: bool,
}

const SIGMOID: Kind = Kind {
    name: "sigmoid",
    activation: Activation::Sigmoid,
    init: InitScheme::ScaledNormal,
    normalised: false,
    shortcut: false,
};
const RELU: Kind = Kind { name: "ReLU", activation: Activation::Relu, init: InitScheme::Kaiming, ..SIGMOID };
const NORMALISED: Kind = Kind { name: "sigmoid, batch norm", normalised: true, ..SIGMOID };
const SHORTCUT: Kind = Kind { name: "sigmoid, shortcuts", shortcut: true, ..SIGMOID };
const LARGE: Kind = Kind { name: "ReLU, weights N(0, 1)", init: InitScheme::StandardNormal, ..RELU };

/// A multi-layer perceptron with optional batch normalisation and shortcuts.
struct Deep {
    kind: Kind,
    hidden: Vec<(Linear, Option<BatchNorm>)>,
    output: Linear,
}

impl Deep {
    fn new(kind: Kind, depth: usize, vb: VarBuilder) -> candle_core::Result<Self> {
        let layer = |i: usize| {
            let (inputs, vb) = (if i == 0 { 784 } else { UNITS }, vb.pp("layers").pp(i));
            let norm = kind.normalised.then(|| batch_norm(UNITS, 1e-5, vb.pp("norm"))).transpose()?;
            Ok((linear_with(inputs, UNITS, kind.init, vb)?, norm))
        };
        let hidden = (0..depth).map(layer).collect::<candle_core::Result<_>>()?;
        Ok(Self { kind, hidden, output: linear_with(UNITS, 10, kind.init, vb.pp("output"))? })
    }

    /// The names of the biases of the hidden layers: their gradients are the errors of the weighted inputs.
    fn biases(&self) -> Vec<String> {
        let end = if self.kind.normalised { "norm.bias" } else { "bias" };
        (0..self.hidden.len()).map(|i| format!("layers.{i}.{end}")).collect()
    }
}

impl Model for Deep {
    fn forward(&self, xs: &Tensor, mode: Mode) -> candle_core::Result<Tensor> {
        let mut xs = xs.flatten_from(1)?;
        for (i, (layer, norm)) in self.hidden.iter().enumerate() {
            let mut zs = xs.apply(layer)?; // (batch, UNITS)
            if let Some(norm) = norm {
                zs = norm.forward_t(&zs, mode.is_training())?;
            }
            let outputs = self.kind.activation.forward(&zs)?;
            xs = if self.kind.shortcut && i > 0 { (outputs + xs)? } else { outputs };
        }
        xs.apply(&self.output)
    }
}

/// One batch of all images that the experiment uses, as in the book.
struct Batch {
    xs: Tensor,
    labels: Tensor,
}

impl Batch {
    fn new(images: &Images) -> Result<Self> {
        let all: Vec<u32> = (0..images.len() as u32).collect();
        let (xs, labels) = images.batch(&all, &Device::Cpu)?;
        Ok(Self { xs, labels })
    }

    fn loss(&self, model: &Deep, step: usize) -> candle_core::Result<Tensor> {
        let mode = Mode::train(0, 0, step as u64);
        Cost::SigmoidCrossEntropy.loss(&model.forward(&self.xs, mode)?, &self.labels)
    }

    /// The norm of the gradient of each hidden layer's bias.
    fn norms(&self, model: &Deep, vars: &VarMap) -> candle_core::Result<Vec<f64>> {
        let gradients = gradients(&self.loss(model, 0)?, vars, &model.biases())?;
        Ok(gradients.iter().map(|gradient| norm(gradient)).collect())
    }
}

fn network(lab: &Lab, kind: Kind, depth: usize) -> candle_core::Result<(Deep, VarMap)> {
    build(lab.seed(), DType::F32, |vb| Deep::new(kind, depth, vb))
}

fn run(lab: &Lab) -> Result<Findings> {
    let batch = Batch::new(&lab.digits(lab.scale(200, 1_000), 1)?.0)?;
    let mut table =
        Table::new("gradient-norms", &["network", "hidden layers", "first", "last", "last / first"]);
    let mut row = |name: &str, norms: &[f64]| {
        let (first, last) = (norms[0], norms[norms.len() - 1]);
        table.push([
            name.to_string(),
            norms.len().to_string(),
            format!("{first:.2e}"),
            format!("{last:.2e}"),
            format!("{:.3}", last / first),
        ]);
        last / first
    };
    let by_layer = |norms: &[f64]| (1..).map(f64::from).zip(norms.iter().copied()).collect::<Vec<_>>();
    let names = ["2 hidden layers", "3", "4", "5", "6"];
    let (mut depths, mut kinds, mut ratio, mut others) = (vec![], vec![], 0.0, vec![]);
    for (name, depth) in names.into_iter().zip(2..) {
        let (model, vars) = network(lab, SIGMOID, depth)?;
        let norms = batch.norms(&model, &vars)?;
        let found = row(SIGMOID.name, &norms);
        ratio = if depth == 5 { found } else { ratio };
        depths.push(Line::new(name, by_layer(&norms)));
    }
    for kind in [SIGMOID, RELU, NORMALISED, SHORTCUT, LARGE] {
        let (model, vars) = network(lab, kind, 5)?;
        let norms = batch.norms(&model, &vars)?;
        if kind.name != SIGMOID.name {
            others.push(format!("{:.2} ({})", row(kind.name, &norms), kind.name));
        }
        kinds.push(Line::new(kind.name, by_layer(&norms)));
    }
    let exploding = clipping(lab, &batch)?;
    let (unclipped, clipped) = (last_cost(&exploding[0]), last_cost(&exploding[1]));
    let chart = |title, x_label, y_label, lines| Chart {
        title,
        x_label,
        y_label,
        y_scale: Scale::Log,
        lines,
        ..Chart::default()
    };
    let charts = [
        chart("Sigmoid networks at the start", "hidden layer", "gradient norm", depths),
        chart("Five hidden layers at the start", "hidden layer", "gradient norm", kinds),
        chart("Four sigmoid layers in training", "step", "gradient norm", over_time(lab, &batch)?),
        chart("Exploding gradients, rate 0.05", "step", "cost", exploding),
    ];
    Ok(Findings {
        lines: vec![
            format!(
                "Each sigmoid layer multiplies the error by its weights and by s'(z), which is at most 1/4. The last gradient of \
                 five layers over the first: {ratio:.0} (sigmoid), {}.",
                others.join(", ")
            ),
            "Weights that are too large make it explode. Clipping the gradient to norm 1 keeps the steps small."
                .into(),
        ],
        tables: vec![table],
        figures: vec![Figure::charts(
            "gradients",
            "Norm of the cost's gradient with respect to the biases of each hidden layer of 30 units; the cost with and \
             without clipping.",
            &charts,
        )?],
        claim: Claim::new(
            ratio >= 10.0 && unclipped > 2.0 * clipped,
            format!(
                "in five sigmoid layers the first gradient is {ratio:.0} times smaller than the last; with \
                 exploding gradients the cost ends at {clipped:.2} with clipping, and without it {}",
                if unclipped < EXPLODED { format!("at {unclipped:.2}") } else { "goes beyond 1e8".into() }
            ),
        ),
    })
}

fn last_cost(line: &Line) -> f64 {
    line.points.last().map_or(f64::NAN, |point| point.1)
}

/// The gradient norms of each of four hidden layers during training on the whole batch.
fn over_time(lab: &Lab, batch: &Batch) -> Result<Vec<Line<'static>>> {
    let (model, vars) = network(lab, SIGMOID, 4)?;
    let mut optimizer = Optimizer::new(Sgd::default(), &vars)?;
    let names = ["first hidden layer", "second", "third", "fourth"];
    let mut lines = names.map(|name| Line::new(name, vec![]));
    for step in 0..lab.scale(20, 300) {
        for (line, norm) in lines.iter_mut().zip(batch.norms(&model, &vars)?) {
            line.points.push((step as f64, norm));
        }
        optimizer.backward_step(&batch.loss(&model, step)?, 0.1, Clip::None)?;
    }
    Ok(lines.into())
}

/// The cost at which a line is cut off.
const EXPLODED: f64 = 1e8;

/// The cost of a network with exploding gradients, without and with clipping.
fn clipping(lab: &Lab, batch: &Batch) -> Result<Vec<Line<'static>>> {
    let mut lines = vec![];
    for (name, clip) in [("no clipping", Clip::None), ("clipped to norm 1", Clip::Norm(1.0))] {
        let (model, vars) = network(lab, LARGE, 5)?;
        let mut optimizer = Optimizer::new(Sgd::default(), &vars)?;
        let costs =
            descend(&mut optimizer, (lab.scale(40, 200), 0.05, clip), |step| batch.loss(&model, step))?;
        // An exploded cost would leave no room for the rest: the line rises to the limit and ends there.
        let exploded = costs.iter().position(|cost| cost.is_nan() || *cost > EXPLODED);
        let shown =
            costs[..exploded.unwrap_or(costs.len())].iter().copied().chain(exploded.map(|_| EXPLODED));
        lines.push(Line::new(name, (0..).map(f64::from).zip(shown).collect()));
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_gradient_vanishes_in_five_sigmoid_layers_and_clipping_tames_it_when_it_explodes() {
        super::super::quick("vanishing-gradient");
    }
}
