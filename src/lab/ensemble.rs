//! Five networks vote (Nielsen, chapter 6): together they make fewer errors than the best of them.

use super::experiment::{Experiment, Lab};
use super::findings::{Claim, Figure, Findings, Table};
use super::study::{Study, percent, perceptron};
use crate::nn::{Activation, InitScheme};
use crate::plots::{Chart, Line, Mark, Scale};
use crate::train::TrainerOptions;
use anyhow::Result;
use candle_core::DType;

pub(super) const EXPERIMENT: Experiment = Experiment {
    name: "ensemble",
    about: "Five networks voting, against the best single one",
    source: "Nielsen, chapter 6: other practical tricks",
    book: "Five convolutional networks of about 99.6% each reach 99.67% on MNIST by voting.",
    uses_images: true,
    run,
};

const MEMBERS: usize = 5;

/// The class with the most votes; the first one in a tie.
fn vote(classes: usize, votes: impl IntoIterator<Item = u32>) -> u32 {
    let mut counts = vec![0; classes];
    votes.into_iter().for_each(|class| counts[class as usize] += 1);
    let most = counts.iter().copied().max().unwrap_or(0);
    counts.iter().position(|&count| count == most).unwrap_or(0) as u32
}

fn run(lab: &Lab) -> Result<Findings> {
    let data = lab.digits(lab.scale(300, 5_000), lab.scale(400, 4_000))?;
    let (sizes, kind) = ([784, lab.scale(20, 60), 10], (Activation::Relu, InitScheme::Kaiming));
    let (mut predictions, mut accuracies) = (vec![], vec![]);
    let mut table = Table::new("ensemble", &["network", "test accuracy"]);
    for member in 0..MEMBERS {
        let seed = lab.seed() + member as u64;
        let (model, vars) = perceptron(seed, DType::F32, &sizes, kind)?;
        let study = Study::adam(lab, &data, lab.scale(6, 10));
        let study = Study { options: TrainerOptions { seed, ..study.options.clone() }, ..study };
        study.train(lab, &member.to_string(), &model, &vars)?;
        let evaluation = study.evaluate(&model)?;
        accuracies.push(evaluation.accuracy());
        table.push([format!("{}", member + 1), percent(evaluation.accuracy())]);
        predictions.push(evaluation.predictions);
    }
    let labels = data.1.labels();
    let correct = (0..labels.len())
        .filter(|&i| {
            vote(data.1.classes(), predictions.iter().map(|member| member[i].predicted)) == labels[i]
        })
        .count();
    let together = correct as f64 / labels.len() as f64;
    let (best, mean) =
        (accuracies.iter().copied().fold(0.0, f64::max), accuracies.iter().sum::<f64>() / MEMBERS as f64);
    table.push(["vote".to_string(), percent(together)]);
    let names = (1..=MEMBERS).map(|member| member.to_string()).chain(["vote".to_string()]).collect();
    let points: Vec<(f64, f64)> =
        accuracies.iter().enumerate().map(|(member, accuracy)| (member as f64, 100.0 * accuracy)).collect();
    let dots =
        |name, points: Vec<(f64, f64)>| Line { name, mark: Mark::Spread(vec![0.0; points.len()]), points };
    let chart = Chart {
        title: "Single networks and their vote",
        x_label: "network",
        y_label: "accuracy on test images in %",
        x_scale: Scale::Names(names),
        lines: vec![dots("single networks", points), dots("vote", vec![(MEMBERS as f64, 100.0 * together)])],
        ..Chart::default()
    };
    Ok(Findings {
        lines: vec!["The networks differ in their initial weights and shuffles only, yet they make different mistakes.".into()],
        tables: vec![table],
        figures: vec![Figure::charts("ensemble", "Accuracy of each network and of their vote.", &[chart])?],
        claim: Claim::new(
            together > mean && together >= best,
            format!(
                "the vote reaches {}, the best single network {}, their mean {}",
                percent(together),
                percent(best),
                percent(mean)
            ),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_majority_decides() {
        assert_eq!((vote(4, [3, 1, 3]), vote(4, [2, 1]), vote(4, [])), (3, 1, 0));
    }

    #[test]
    fn the_vote_is_at_least_as_good_as_the_best_network() {
        super::super::quick("ensemble");
    }
}
