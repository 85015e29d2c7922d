//! One hidden layer fits any function (Nielsen, chapter 4): constructed from steps, and trained.

use super::experiment::{Experiment, Lab, Settings};
use super::findings::{Claim, Figure, Findings, Table};
use super::study::{descend, perceptron, set};
use crate::data::quoted;
use crate::models::mlp::Mlp;
use crate::nn::{Activation, InitScheme, Mode, Model};
use crate::optim::{Adam, Clip, Method, Optimizer};
use crate::plots::{Chart, GridSection, Line, Scale, Tile, image_grid};
use anyhow::{Result, anyhow, ensure};
use candle_core::{DType, Device, Tensor};
use exmex::Express;

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "universal",
    about: "One hidden layer fits any function: weights set by hand, and trained networks of growing width",
    source: "Nielsen, chapter 4; Cybenko 1989; Hornik et al. 1989",
    book: "Pairs of steep sigmoid steps make bumps; enough bumps come as near to a continuous function as one likes.",
    uses_images: false,
    run,
};

/// The default functions: the book's, and one of two inputs.
const CURVE: &str = "0.2+0.4*x^2+0.3*x*sin(15*x)+0.05*cos(50*x)";
const SURFACE: &str = "0.5+0.3*sin(6*x)*cos(5*y)+0.2*x";
/// Steepness of a step.
const STEEP: f64 = 1e4;
/// Number of points along each input, for one and for two inputs.
const POINTS: [usize; 2] = [400, 32];

/// Maximum length of a function in characters.
const LONGEST: usize = 200;

impl Settings {
    /// Checks the function that `universal` fits, so that a mistake shows before other experiments run.
    ///
    /// # Errors
    /// Fails if it can't be parsed, or has no finite value somewhere.
    pub fn check(&self) -> Result<()> {
        self.function.as_deref().map_or(Ok(()), |text| Target::parse(text).map(drop))
    }
}

/// A function of one or two inputs between 0 and 1, with its values on a grid.
struct Target {
    text: String,
    inputs: usize,
    function: exmex::FlatEx<f64>,
    grid: Vec<Vec<f64>>,
    values: Vec<f64>,
}

impl Target {
    /// Parses a function of `x`, or of `x` and `y`.
    fn parse(text: &str) -> Result<Self> {
        let length = text.chars().count();
        ensure!(length <= LONGEST, "the function: found {length} characters, expected at most {LONGEST}");
        let function = exmex::parse::<f64>(text).map_err(|_| {
            anyhow!(
                "the function {}: cannot read it: expected numbers such as 0.5, x and y, and operators and functions \
                 such as + - * / ^ sin exp sqrt: 2*x, not 2x, and sin(x)",
                quoted(text)
            )
        })?;
        if let Some(name) = function.var_names().iter().find(|&name| name != "x" && name != "y") {
            return Err(anyhow!(
                "the function {}: found the variable {name}, expected x, or x and y",
                quoted(text)
            ));
        }
        let inputs = if function.var_names().iter().any(|name| name == "y") { 2 } else { 1 };
        let count = POINTS[inputs - 1];
        let at = |i: usize| (i as f64 + 0.5) / count as f64;
        let grid: Vec<Vec<f64>> = match inputs {
            1 => (0..count).map(|i| vec![at(i)]).collect(),
            _ => (0..count * count).map(|i| vec![at(i % count), at(i / count)]).collect(),
        };
        let mut target = Self { text: text.into(), inputs, function, grid, values: vec![] };
        target.values = target.grid.iter().map(|point| target.value(point)).collect::<Result<_>>()?;
        Ok(target)
    }

    /// The name of the function, with its inputs.
    fn name(&self) -> &'static str {
        if self.inputs == 1 { "f(x)" } else { "f(x, y)" }
    }

    fn value(&self, point: &[f64]) -> Result<f64> {
        // The values of the variables, in the order of their names.
        let names = self.function.var_names();
        let inputs: Vec<f64> = names.iter().map(|name| point[usize::from(name == "y")]).collect();
        let value = self
            .function
            .eval(&inputs)
            .map_err(|error| anyhow!("the function {}: {error}", quoted(&self.text)))?;
        ensure!(
            value.is_finite(),
            "the function {}: found {value} at {}, expected a finite value",
            quoted(&self.text),
            ["x", "y"]
                .iter()
                .zip(point)
                .map(|(name, at)| format!("{name} = {at}"))
                .collect::<Vec<_>>()
                .join(", ")
        );
        Ok(value)
    }

    /// The root mean square error of `outputs` on the grid.
    fn error(&self, outputs: &[f64]) -> f64 {
        let squares = outputs.iter().zip(&self.values).map(|(output, value)| (output - value).powi(2));
        (squares.sum::<f64>() / outputs.len() as f64).sqrt()
    }

    /// The outputs of a model in f64 on the grid.
    fn outputs(&self, model: &Mlp) -> candle_core::Result<Vec<f64>> {
        model.forward(&self.batch()?, Mode::Evaluate)?.flatten_all()?.to_vec1()
    }

    fn batch(&self) -> candle_core::Result<Tensor> {
        Tensor::from_vec(self.grid.concat(), (self.grid.len(), self.inputs), &Device::Cpu)
    }

    /// Creates a network with weights set by hand: bumps over one input, or towers over two.
    fn by_hand(&self, bumps: usize) -> Result<Mlp> {
        if self.inputs == 2 { self.towers(bumps) } else { self.bumps(bumps) }
    }

    /// `[1, 2 * bumps, 1]`: each bump is a step up and a step down.
    fn bumps(&self, bumps: usize) -> Result<Mlp> {
        let (model, vars) = network(0, &[1, 2 * bumps, 1])?;
        let edge = |i: usize| i as f64 / bumps as f64;
        let edges: Vec<f64> = (0..bumps).flat_map(|i| [edge(i), edge(i + 1)]).collect();
        let mut heights = vec![];
        for i in 0..bumps {
            let height = self.value(&[edge(i) + 0.5 / bumps as f64])?;
            heights.extend([height, -height]);
        }
        set(&vars, "layers.0.weight", &vec![STEEP; 2 * bumps])?;
        set(&vars, "layers.0.bias", &edges.iter().map(|edge| -STEEP * edge).collect::<Vec<_>>())?;
        set(&vars, "layers.1.weight", &heights)?;
        set(&vars, "layers.1.bias", &[0.0])?;
        Ok(model)
    }

    /// `[2, 4 * side, side^2, 1]`: a tower rises where a bump along x meets a bump along y.
    fn towers(&self, side: usize) -> Result<Mlp> {
        let (model, vars) = network(0, &[2, 4 * side, side * side, 1])?;
        let edge = |i: usize| i as f64 / side as f64;
        let (mut weights, mut biases) = (vec![], vec![]);
        for axis in 0..2 {
            for i in 0..side {
                for at in [edge(i), edge(i + 1)] {
                    weights.extend([0, 1].map(|input| if input == axis { STEEP } else { 0.0 }));
                    biases.push(-STEEP * at);
                }
            }
        }
        let (mut towers, mut heights) = (vec![], vec![]);
        for (i, j) in (0..side * side).map(|tower| (tower % side, tower / side)) {
            let mut row = vec![0.0; 4 * side];
            for bump in [2 * i, 2 * (side + j)] {
                (row[bump], row[bump + 1]) = (STEEP, -STEEP);
            }
            towers.extend(row);
            heights.push(self.value(&[edge(i) + 0.5 / side as f64, edge(j) + 0.5 / side as f64])?);
        }
        set(&vars, "layers.0.weight", &weights)?;
        set(&vars, "layers.0.bias", &biases)?;
        set(&vars, "layers.1.weight", &towers)?;
        set(&vars, "layers.1.bias", &vec![-1.5 * STEEP; side * side])?;
        set(&vars, "layers.2.weight", &heights)?;
        set(&vars, "layers.2.bias", &[0.0])?;
        Ok(model)
    }

    /// Trains a network of one hidden layer on the grid.
    fn trained(&self, lab: &Lab, width: usize, steps: usize) -> Result<Mlp> {
        let (model, vars) = network(lab.seed(), &[self.inputs, width, 1])?;
        // Steps of moderate steepness, spread over the inputs.
        let weights: Vec<f64> = (0..width * self.inputs).map(|i| 30.0 * (i as f64 * 2.4).cos()).collect();
        let centre = |i: usize| (i as f64 + 0.5) / width as f64;
        let bias = |(i, w): (usize, &[f64])| -w.iter().sum::<f64>() * centre(i);
        let biases: Vec<f64> = weights.chunks(self.inputs).enumerate().map(bias).collect();
        set(&vars, "layers.0.weight", &weights)?;
        set(&vars, "layers.0.bias", &biases)?;
        set(&vars, "layers.1.weight", &vec![0.0; width])?;
        let (xs, ys) =
            (self.batch()?, Tensor::from_slice(&self.values, (self.values.len(), 1), &Device::Cpu)?);
        let mut optimizer = Optimizer::new(Method::Adam(Adam::default()), &vars)?;
        for rate in [0.05, 0.01] {
            descend(&mut optimizer, (steps, rate, Clip::None), |step| {
                let mode = Mode::train(0, 0, step as u64);
                (model.forward(&xs, mode)? - &ys)?.sqr()?.mean_all()
            })?;
        }
        Ok(model)
    }
}

/// A network with sigmoid hidden layers, in f64.
fn network(seed: u64, sizes: &[usize]) -> candle_core::Result<(Mlp, candle_nn::VarMap)> {
    perceptron(seed, DType::F64, sizes, (Activation::Sigmoid, InitScheme::ScaledNormal))
}

/// The fits of a function: the largest network built by hand, the largest trained one, and the errors.
struct Fits {
    by_hand: Vec<f64>,
    trained: Vec<f64>,
    /// `(hidden units, error)`
    errors: [Vec<(f64, f64)>; 2],
}

fn fit(lab: &Lab, target: &Target, table: &mut Table) -> Result<Fits> {
    let sizes: (&[usize], &[usize], usize) = match target.inputs {
        1 => {
            (lab.scale(&[5, 20], &[5, 10, 20, 40, 80, 160]), lab.scale(&[2, 8], &[2, 4, 8, 16, 32, 64]), 1000)
        }
        _ => (lab.scale(&[4, 8], &[4, 8, 16]), lab.scale(&[4, 16], &[4, 8, 16, 32, 64]), 500),
    };
    let mut fits = Fits { by_hand: vec![], trained: vec![], errors: [vec![], vec![]] };
    for &bumps in sizes.0 {
        fits.by_hand = target.outputs(&target.by_hand(bumps)?)?;
        let units = if target.inputs == 1 { 2 * bumps } else { 4 * bumps + bumps * bumps };
        fits.errors[0].push((units as f64, target.error(&fits.by_hand)));
    }
    for &width in sizes.1 {
        fits.trained = target.outputs(&target.trained(lab, width, lab.scale(300, sizes.2))?)?;
        fits.errors[1].push((width as f64, target.error(&fits.trained)));
    }
    for (way, errors) in ["by hand", "trained"].into_iter().zip(&fits.errors) {
        for (units, error) in errors {
            table.push([target.text.clone(), way.into(), units.to_string(), format!("{error:.5}")]);
        }
    }
    Ok(fits)
}

fn run(lab: &Lab) -> Result<Findings> {
    let texts = match &lab.settings.function {
        Some(text) => vec![text.as_str()],
        None => vec![CURVE, SURFACE],
    };
    let mut table = Table::new("errors", &["function", "weights", "hidden units", "error"]);
    let (mut figures, mut lines, mut falls, mut holds) = (vec![], vec![], vec![], true);
    for text in texts {
        let target = Target::parse(text)?;
        let fits = fit(lab, &target, &mut table)?;
        let ends = fits.errors.each_ref().map(|errors| [errors[0].1, errors[errors.len() - 1].1]);
        let [[by_hand, best_by_hand], [trained, best_trained]] = ends;
        holds &= ends.iter().all(|[first, last]| *last <= 0.7 * first || *last < 1e-3);
        figures.extend(draw(&target, &fits)?);
        let f = target.name();
        lines.push(format!(
            "{f} = {text}: error {best_by_hand:.4} by hand, {best_trained:.4} trained, with the largest networks."
        ));
        falls.push(format!(
            "of {f} by hand from {by_hand:.4} to {best_by_hand:.4}, trained from {trained:.4} to {best_trained:.4}"
        ));
    }
    Ok(Findings {
        lines,
        tables: vec![table],
        figures,
        claim: Claim::new(holds, format!("the error falls as the hidden layer grows: {}", falls.join("; "))),
    })
}

fn draw(target: &Target, fits: &Fits) -> Result<Vec<Figure>> {
    let name = target.name();
    let [by_hand, trained] = fits.errors.clone();
    let errors = Chart {
        title: "Error and size",
        x_label: "hidden units",
        y_label: "root mean squared error",
        x_scale: Scale::Log,
        y_scale: Scale::Log,
        lines: vec![Line::new("by hand", by_hand), Line::new("trained", trained)],
    };
    let [curve, surface] = ["curve", "surface"];
    if target.inputs == 1 {
        let points = |values: &[f64]| target.grid.iter().map(|x| x[0]).zip(values.iter().copied()).collect();
        let fit = Chart {
            title: "The function and the largest networks",
            x_label: "x",
            y_label: name,
            lines: vec![
                Line::new("f", points(&target.values)),
                Line::new("by hand", points(&fits.by_hand)),
                Line::new("trained", points(&fits.trained)),
            ],
            ..Chart::default()
        };
        let caption =
            format!("{name} = {}, and its fits; the error over the number of hidden units.", target.text);
        return Ok(vec![Figure::charts(curve, &caption, &[fit, errors])?]);
    }
    const ZOOM: usize = 6;
    let side = POINTS[1];
    let tile = |values: &[f64], caption| {
        // Draw each value as a square, so that the tile is large enough to see.
        let at =
            |pixel: usize| values[pixel / (side * ZOOM) / ZOOM * side + pixel % (side * ZOOM) / ZOOM] as f32;
        let pixels: Vec<f32> = (0..(side * ZOOM).pow(2)).map(at).collect();
        Tile::grey(&pixels, side * ZOOM, side * ZOOM, caption)
    };
    let tiles =
        vec![tile(&target.values, name)?, tile(&fits.by_hand, "by hand")?, tile(&fits.trained, "trained")?];
    let heading = "x to the right, y down";
    let picture = image_grid(&[GridSection { heading, columns: 3, tiles }])?;
    let caption = format!("{name} = {} in shades of grey, and its fits.", target.text);
    Ok(vec![
        Figure::picture(surface, &caption, picture),
        Figure::charts("surface-errors", "The error over the number of hidden units.", &[errors])?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_falls_with_the_width_and_its_numbers_have_names() {
        let claim = super::super::quick("universal").claim.text;
        for name in [": of f(x) by hand from 0.", ", trained from 0.", "; of f(x, y) by hand from 0."] {
            assert!(claim.contains(name), "{claim}");
        }
    }

    #[test]
    fn a_function_has_no_variables_but_x_and_y_and_no_poles() {
        assert_eq!(Target::parse("2*y").unwrap().inputs, 2);
        let long = "x+".repeat(200) + "x";
        for (text, part) in
            [("x+z", "variable z"), ("x+*", "x+*"), ("1/(x-x)", "x = 0.00125"), (&*long, "401 characters")]
        {
            let error = Target::parse(text).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains('\n'), "{error}");
        }
    }
}
