//! Optimizers compared on digits and in a curved valley (Nielsen, chapter 3; Goodfellow et al., chapter 8).

use super::experiment::{Experiment, Lab};
use super::findings::{Claim, Figure, Findings, Table};
use super::study::perceptron;
use crate::nn::{Activation, Cost, InitScheme, Mode, Model};
use crate::optim::{Adam, Clip, Lbfgs, Method, NewtonCg, Optimizer, RmsProp, Sgd};
use crate::plots::{Chart, Line, Mark, Scale};
use anyhow::Result;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarMap;
use std::cell::Cell;
use std::time::Instant;

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "optimizers",
    about: "SGD, momentum, Nesterov, RMSprop, Adam, L-BFGS and Newton-CG on the same problem, and their paths in a valley",
    source: "Nielsen, chapter 3: variations on stochastic gradient descent; Goodfellow et al., chapter 8; Nocedal and Wright 2006",
    book: "Second-order methods need few steps, but each costs more; momentum gives some of their benefit for nothing.",
    uses_images: true,
    run,
};

/// A method, with its learning rates for the digits and for the valley.
struct Way {
    name: &'static str,
    method: Method,
    rate: f64,
    valley_rate: f64,
}

fn ways() -> [Way; 7] {
    let momentum = Sgd { momentum: 0.9, ..Sgd::default() };
    let way = |name, method, rate, valley_rate| Way { name, method, rate, valley_rate };
    [
        way("SGD", Method::Sgd(Sgd::default()), 0.5, 1e-3),
        way("momentum", Method::Sgd(momentum), 0.1, 5e-4),
        way("Nesterov", Method::Sgd(Sgd { nesterov: true, ..momentum }), 0.1, 5e-4),
        way("RMSprop", Method::RmsProp(RmsProp::default()), 3e-3, 5e-3),
        way("Adam", Method::Adam(Adam::default()), 1e-2, 5e-2),
        way("L-BFGS", Method::Lbfgs(Lbfgs::default()), 1.0, 1.0),
        way("Newton-CG", Method::NewtonCg(NewtonCg::default()), 1.0, 1.0),
    ]
}

/// A step of a descent.
#[derive(Clone, Copy)]
struct Point {
    cost: f64,
    /// Number of gradients computed so far, including this one.
    gradients: usize,
    seconds: f64,
}

/// A descent: where each step started, and whether no step lowers the cost any more.
struct Descent {
    points: Vec<Point>,
    converged: bool,
}

/// Minimises `loss` with at most `budget` gradients. Calls `after` at the start and after each step.
fn minimise(
    (method, rate): (Method, f64),
    budget: usize,
    vars: &VarMap,
    loss: impl Fn() -> candle_core::Result<Tensor>,
    mut after: impl FnMut() -> candle_core::Result<()>,
) -> candle_core::Result<Descent> {
    let (mut optimizer, start) = (Optimizer::new(method, vars)?, Instant::now());
    let (mut points, mut converged) = (vec![], false);
    let used = Cell::new(0);
    after()?;
    while used.get() < budget && !converged {
        let within_budget = || match used.get() {
            used if used == budget => candle_core::bail!("no gradients are left"),
            before => {
                used.set(before + 1);
                loss()
            }
        };
        let step = match optimizer.step_with(within_budget, rate, Clip::None) {
            // A step that would exceed the budget of gradients is not taken.
            Err(_) if used.get() == budget => break,
            step => step?,
        };
        converged = step.converged;
        let seconds = start.elapsed().as_secs_f64();
        points.push(Point { cost: step.loss, gradients: used.get(), seconds });
        after()?;
    }
    Ok(Descent { points, converged })
}

/// Rosenbrock's valley: its floor is the curve y = x^2, and its minimum is at (1, 1).
fn valley(place: &Tensor) -> candle_core::Result<Tensor> {
    let (x, y) = (place.get(0)?, place.get(1)?);
    let across = (y - x.sqr()?)?.sqr()?;
    (x.affine(-1.0, 1.0)?.sqr()? + (across * 100.0)?)?.sum_all()
}

/// The path from (-1.2, 1), and the cost at its end.
fn path(way: &Way, gradients: usize) -> candle_core::Result<(Vec<(f64, f64)>, f64)> {
    let vars = VarMap::new();
    let place = Var::from_slice(&[-1.2f64, 1.0], 2, &Device::Cpu)?;
    vars.data().lock().unwrap_or_else(|error| error.into_inner()).insert("place".into(), place.clone());
    let mut path = vec![];
    let loss = || valley(place.as_tensor());
    minimise((way.method, way.valley_rate), gradients, &vars, loss, || {
        let at = place.as_detached_tensor().to_vec1::<f64>()?;
        path.push((at[0], at[1]));
        Ok(())
    })?;
    Ok((path, valley(&place.as_detached_tensor())?.to_scalar()?))
}

/// The level line of the valley at `height`, above and below its floor.
fn level(height: f64) -> Line<'static> {
    let end = height.sqrt();
    let at = |i: i32| 1.0 - end + 2.0 * end * f64::from(i) / 100.0;
    let distance = |x: f64| ((height - (1.0 - x).powi(2)).max(0.0) / 100.0).sqrt();
    let upper = (0..=100).map(at).map(|x| (x, x * x + distance(x)));
    let lower = (0..=100).rev().map(at).map(|x| (x, x * x - distance(x)));
    let points = upper.chain(lower).filter(|(x, y)| (-1.6..=1.6).contains(x) && (-0.6..=1.8).contains(y));
    Line { name: "", points: points.collect(), mark: Mark::Guide }
}

fn run(lab: &Lab) -> Result<Findings> {
    let (images, _) = lab.digits(lab.scale(100, 500), 1)?;
    let all: Vec<u32> = (0..images.len() as u32).collect();
    let (xs, labels) = images.batch(&all, &Device::Cpu)?;
    let (sizes, kind) = ([784, lab.scale(10, 20), 10], (Activation::Tanh, InitScheme::Xavier));
    let budget = lab.scale(60, 200);
    let mut table = Table::new(
        "optimizers",
        &["method", "rate", "steps", "gradients", "seconds", "cost", "cost in the valley"],
    );
    let (mut by_step, mut by_gradient, mut by_second) = (vec![], vec![], vec![]);
    let (mut paths, mut costs, mut valleys) = (vec![level(4.0), level(1.0), level(0.25)], vec![], vec![]);
    let mut converged = vec![];
    for way in &ways() {
        let (model, vars) = perceptron(lab.seed(), DType::F32, &sizes, kind)?;
        let loss = || Cost::SoftmaxCrossEntropy.loss(&model.forward(&xs, Mode::Evaluate)?, &labels);
        let descent = minimise((way.method, way.rate), budget, &vars, loss, || Ok(()))?;
        let points = descent.points;
        // If a method has converged, its last evaluation is not a step.
        let steps = points.len() - usize::from(descent.converged);
        if descent.converged {
            converged.push(format!("{} after {steps} steps", way.name));
        }
        let (path, end) = path(way, 300)?;
        let last = points[points.len() - 1];
        table.push([
            way.name.to_string(),
            way.rate.to_string(),
            steps.to_string(),
            last.gradients.to_string(),
            format!("{:.2}", last.seconds),
            format!("{:.1e}", last.cost),
            format!("{end:.1e}"),
        ]);
        costs.push(last.cost);
        valleys.push(end);
        by_step.push(Line::new(
            way.name,
            (0..).map(f64::from).zip(points.iter().map(|point| point.cost)).collect(),
        ));
        by_gradient.push(Line::new(
            way.name,
            points.iter().map(|point| (point.gradients as f64, point.cost)).collect(),
        ));
        by_second.push(Line::new(way.name, points.iter().map(|point| (point.seconds, point.cost)).collect()));
        paths.push(Line::new(way.name, path));
    }
    let valley = Chart {
        title: "Paths in Rosenbrock's valley",
        x_label: "x",
        y_label: "y",
        lines: paths,
        ..Chart::default()
    };
    let charts = [
        cost_chart("Cost and steps", "step", by_step),
        cost_chart("Cost and gradients", "gradient evaluations", by_gradient),
        Chart { x_scale: Scale::Log, ..cost_chart("Cost and time", "seconds", by_second) },
        valley,
    ];
    let mut lines = vec![format!(
        "Every method may compute {budget} gradients of the cost of all {} images, and 300 in the valley; it stops earlier if no \
         step lowers the cost.",
        images.len()
    )];
    if !converged.is_empty() {
        lines.push(format!("On the images these converged: {}.", converged.join(", ")));
    }
    let caption = format!(
        "The cost of {sizes:?} on the whole training set; the paths from (-1.2, 1), with level lines in grey."
    );
    Ok(Findings {
        lines,
        tables: vec![table],
        figures: vec![Figure::charts("optimizers", &caption, &charts)?],
        claim: claim(&costs, &valleys),
    })
}

fn cost_chart<'a>(title: &'a str, x_label: &'a str, lines: Vec<Line<'a>>) -> Chart<'a> {
    Chart { title, x_label, y_label: "cost", y_scale: Scale::Log, lines, ..Chart::default() }
}

/// Judges the costs on the images, and in the valley, that the methods ended with.
fn claim(costs: &[f64], valleys: &[f64]) -> Claim {
    Claim::new(
        costs[1] < costs[0] && valleys[5] < 1e-6 && valleys[6] < 1e-6 && valleys[0] > 1e-2,
        format!(
            "momentum ends lower than SGD ({:.1e} against {:.1e}); L-BFGS and Newton-CG reach the minimum of the valley \
             ({:.0e} and {:.0e}), where SGD is still at {:.2}",
            costs[1], costs[0], valleys[5], valleys[6], valleys[0]
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_order_methods_follow_the_valley_to_its_minimum() {
        let table = &super::super::quick("optimizers").tables[0];
        for row in &table.rows {
            let [steps, gradients] = [2, 3].map(|column| row[column].parse::<usize>().unwrap());
            assert!(steps <= gradients && gradients <= 60, "{row:?}");
        }
    }

    #[test]
    fn a_method_stops_where_no_step_lowers_the_cost() {
        let vars = VarMap::new();
        let x = Var::new(3f64, &Device::Cpu).unwrap();
        vars.data().lock().unwrap().insert("x".into(), x.clone());
        let method = Method::Lbfgs(Lbfgs::default());
        let descent = minimise((method, 1.0), 500, &vars, || x.sqr(), || Ok(())).unwrap();
        assert!(descent.converged && descent.points.len() < 20, "{} points", descent.points.len());
    }
}
