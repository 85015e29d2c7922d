//! The search for learning rate, regularization and batch size (Nielsen, chapter 3), automated.
//!
//! The methods are random search (Bergstra and Bengio 2012) and successive halving (Jamieson and Talwalkar 2016).

use super::experiment::{Experiment, Lab};
use super::findings::{Claim, Figure, Findings, Table};
use super::study::{Study, percent, perceptron};
use crate::nn::{Activation, InitScheme};
use crate::optim::{Method, Sgd};
use crate::plots::{Chart, Line, Mark, Scale};
use crate::rng;
use crate::train::TrainerOptions;
use anyhow::Result;
use candle_core::DType;
use rand::Rng;

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "hyperparameters",
    about: "The search for eta, lambda and the batch size: random search and successive halving",
    source: "Nielsen, chapter 3: how to choose a neural network's hyper-parameters; Bergstra and Bengio 2012, JMLR 13; \
             Jamieson and Talwalkar 2016, arXiv:1502.07943",
    book: "From eta = 10 and lambda = 1000, at chance level, to eta = 0.5 and lambda = 5 by hand.",
    uses_images: true,
    run,
};

/// The ranges of the values, on logarithmic scales.
const ETA: (f64, f64) = (0.01, 10.0);
const LAMBDA: (f64, f64) = (0.001, 100.0);
const BATCH: (f64, f64) = (4.0, 128.0);

/// A setting with its position, 0 to 1, on the scale of each value.
#[derive(Clone, Copy)]
struct Candidate {
    places: [f64; 3],
}

impl Candidate {
    fn draw(seed: u64, number: usize) -> Self {
        let mut rng = rng::stream(seed, &format!("candidate {number}"));
        Self { places: [(); 3].map(|()| rng.random_range(0.0..1.0)) }
    }

    fn values(&self) -> (f64, f64, usize) {
        let value = |(low, high): (f64, f64), place: f64| low * (high / low).powf(place);
        let [eta, lambda, batch] = self.places;
        (value(ETA, eta), value(LAMBDA, lambda), value(BATCH, batch).round() as usize)
    }

    /// Accuracy on validation images after `epochs` epochs, and on test images.
    fn train(&self, lab: &Lab, study: &Study, folder: &str, epochs: usize) -> Result<(f64, f64)> {
        let (learning_rate, lambda, batch_size) = self.values();
        let (sizes, kind) = ([784, lab.scale(15, 30), 10], (Activation::Sigmoid, InitScheme::ScaledNormal));
        let (model, vars) = perceptron(lab.seed(), DType::F32, &sizes, kind)?;
        let weight_decay = lambda / study.examples as f64;
        let study = Study {
            method: Method::Sgd(Sgd { weight_decay, decay_biases: false, ..Sgd::default() }),
            options: TrainerOptions { epochs, batch_size, learning_rate, ..study.options.clone() },
            ..study.clone()
        };
        study.train(lab, folder, &model, &vars)?;
        Ok((study.validate(&model)?.accuracy(), study.evaluate(&model)?.accuracy()))
    }
}

fn run(lab: &Lab) -> Result<Findings> {
    let (examples, validation) = (lab.scale(150, 1_000), lab.scale(100, 500));
    let data = lab.digits(examples + validation, lab.scale(100, 1_000))?;
    let study = Study { examples, validation, ..Study::new(lab, &data, 1, 1.0) };
    let (count, longest) = lab.scale((9, 9), (27, 27));
    let all: Vec<Candidate> = (0..count).map(|number| Candidate::draw(lab.seed(), number)).collect();

    // Random search: each candidate for the full number of epochs.
    let mut random = vec![];
    for (number, candidate) in all.iter().enumerate() {
        random.push(candidate.train(lab, &study, &format!("random-{number}"), longest)?);
    }
    // Successive halving: three times as many epochs for the best third, until one is left.
    let (mut left, mut spent): (Vec<usize>, usize) = ((0..count).collect(), 0);
    let mut epochs = longest / count;
    let mut rounds = Table::new("halving", &["round", "candidates", "epochs each", "best on validation"]);
    while left.len() > 1 {
        epochs = (3 * epochs).min(longest);
        let mut scored = vec![];
        for &number in &left {
            let folder = format!("halving-{number}-{epochs}");
            scored.push((all[number].train(lab, &study, &folder, epochs)?.0, number));
        }
        spent += epochs * left.len();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0));
        rounds.push([
            (rounds.rows.len() + 1).to_string(),
            left.len().to_string(),
            epochs.to_string(),
            percent(scored[0].0),
        ]);
        scored.truncate(left.len().div_ceil(3));
        left = scored.iter().map(|&(_, number)| number).collect();
    }
    let mut ranked: Vec<usize> = (0..count).collect();
    ranked.sort_by(|&a, &b| random[b].0.total_cmp(&random[a].0));
    let (best, chosen) = (ranked[0], left[0]);
    let mut table =
        Table::new("candidates", &["rank", "eta", "lambda", "batch", "validation", "test", "chosen by"]);
    for (rank, &number) in ranked.iter().enumerate() {
        let (eta, lambda, batch) = all[number].values();
        let by = match (number == best, number == chosen) {
            (true, true) => "both",
            (true, false) => "random search",
            (false, true) => "halving",
            _ => "",
        };
        let (validation, test) = random[number];
        let cells = [
            format!("{eta:.3}"),
            format!("{lambda:.4}"),
            batch.to_string(),
            percent(validation),
            percent(test),
        ];
        table.push([(rank + 1).to_string()].into_iter().chain(cells).chain([by.to_string()]));
    }
    let cost = count * longest;
    Ok(Findings {
        lines: vec![format!(
            "Random search trains {count} settings for {longest} epochs each: {cost} epochs. Successive halving repeatedly \
                     drops the worst two thirds, and trains {spent} epochs."
        )],
        tables: vec![table, rounds],
        figures: vec![parallel_coordinates(&all, &random, &ranked)?],
        claim: Claim::new(
            random[chosen].0 >= random[best].0 - 0.03 && spent < cost,
            format!(
                "halving finds a setting with {} on the validation images, random search one with {}, in {spent} instead of \
                 {cost} epochs",
                percent(random[chosen].0),
                percent(random[best].0)
            ),
        ),
    })
}

/// Draws one line per setting across its values and its accuracy; the best three are coloured.
fn parallel_coordinates(all: &[Candidate], scores: &[(f64, f64)], ranked: &[usize]) -> Result<Figure> {
    let names = ["best", "second", "third"];
    let line = |(rank, &number): (usize, &usize)| {
        let places = all[number].places.into_iter().chain([scores[number].0]);
        let points = (0..).map(f64::from).zip(places).collect();
        match names.get(rank) {
            Some(name) => Line::new(name, points),
            None => Line { mark: Mark::Guide, ..Line::new("", points) },
        }
    };
    let range = |name, (low, high): (f64, f64)| format!("{name}, {low} to {high}");
    let scales =
        vec![range("eta", ETA), range("lambda", LAMBDA), range("batch", BATCH), "accuracy".to_string()];
    let mut lines: Vec<Line> = ranked.iter().enumerate().map(line).collect();
    // Draw the best lines on top of the others.
    let others = lines.split_off(names.len().min(lines.len()));
    lines.splice(0..0, others);
    let chart = Chart {
        title: "Settings and their accuracy",
        x_label: "",
        y_label: "position on the scale",
        x_scale: Scale::Names(scales),
        lines,
        ..Chart::default()
    };
    let caption =
        "Each line is a setting: its values on logarithmic scales, and its accuracy on validation images.";
    Figure::charts("settings", caption, &[chart])
}

#[cfg(test)]
mod tests {
    #[test]
    fn halving_finds_almost_the_best_setting_in_fewer_epochs() {
        super::super::quick("hyperparameters");
    }
}
