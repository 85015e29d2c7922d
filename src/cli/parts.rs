//! Dividing a data set into training, validation and test parts.

use super::options::TrainOptions;
use super::{UsageError, show_notes};
use crate::data::{Selection, count};
use anyhow::{Result, bail, ensure};
use std::collections::{BTreeSet, HashSet};
use std::hash::Hash;
use std::ops::Range;

/// Indices of the examples of each part, in a numbering across all parts.
pub(super) struct Parts {
    pub(super) training: Vec<u32>,
    pub(super) validation: Vec<u32>,
    pub(super) test: Vec<u32>,
}

impl Parts {
    /// Divides a data set whose splits have the given sizes and follow one another.
    ///
    /// A missing validation or test part becomes a tenth of the training part; see [`hold_out`]. `class` returns the
    /// class of an example. A note reports a missing test split. A data set with only a test split is not divided.
    pub(super) fn new(
        [training, validation, test]: [Option<usize>; 3],
        class: impl Fn(u32) -> u32,
        options: &TrainOptions,
    ) -> Result<Self> {
        let training = training.unwrap_or(0);
        if let (0, None, Some(test)) = (training, validation, test) {
            return Ok(Self::test_only(test));
        }
        let given = training + validation.unwrap_or(0);
        let range = |Range { start, end }: Range<usize>| start as u32..end as u32;
        let mut rest: Vec<u32> = range(0..training).collect();
        let test = match test {
            Some(test) => range(given..given + test).collect(),
            None => {
                let TrainOptions { validation_split, seed, .. } = options;
                let (test, others) = validation_split.select(&rest, training / 10, &class, *seed, "test");
                ensure!(
                    !test.is_empty(),
                    "{}no test split, and the training set is too small to draw one from it",
                    place(options)
                );
                show_notes(&[format!(
                    "no test split, so the test uses {} of the {training} training examples",
                    test.len()
                )]);
                rest = others;
                test
            }
        };
        let validation = validation.map(|_| range(training..given));
        let (training, validation) = hold_out(&rest, validation, &class, options)?;
        show_notes(&missing_classes(
            &[("training", &training), ("validation", &validation), ("test", &test)],
            class,
        ));
        Ok(Self { training, validation, test })
    }

    /// The parts of a data set that has only a test split.
    pub(super) fn test_only(test: usize) -> Self {
        Self { training: vec![], validation: vec![], test: (0..test as u32).collect() }
    }

    /// Prints a note if many test examples occur in the training part.
    ///
    /// Many means a share at least 10 percentage points above the share of training examples that are repeats of others.
    /// `content` returns what repeated examples have in common. `noun` is a word for examples.
    pub(super) fn note_repeated<T: Eq + Hash>(&self, noun: &str, content: impl Fn(u32) -> T) {
        let known: HashSet<T> = self.training.iter().map(|&index| content(index)).collect();
        let repeated = self.test.iter().filter(|&&index| known.contains(&content(index))).count();
        let all = self.test.len();
        let usual = 1.0 - known.len() as f64 / self.training.len().max(1) as f64;
        if repeated > 0 && repeated as f64 / all as f64 >= usual + 0.1 {
            show_notes(&[format!("test {noun} that also occur in the training part: {repeated} of {all}")]);
        }
    }

    /// Number of examples in the training, validation and test part.
    pub(super) fn sizes(&self) -> [u64; 3] {
        [&self.training, &self.validation, &self.test].map(|part| part.len() as u64)
    }
}

/// Divides `examples` into those for training and those for validation.
///
/// The validation part is `validation`, or drawn from `examples` according to `--validation` and `--validation-split`:
/// by default a tenth with the proportions of the classes. `--train-limit` selects training examples in the same way.
///
/// # Errors
/// Fails if no training examples are left.
pub(super) fn hold_out(
    examples: &[u32],
    validation: Option<Range<u32>>,
    class: impl Fn(u32) -> u32,
    options: &TrainOptions,
) -> Result<(Vec<u32>, Vec<u32>)> {
    let TrainOptions { validation_split: selection, seed, .. } = options;
    let (validation, mut training) = match validation {
        Some(validation) => {
            for (id, option) in [("validation", "validation"), ("validation_split", "validation-split")] {
                ensure!(
                    !options.given.contains(id),
                    UsageError(format!(
                        "--{option}: has no effect on a data set that has a validation split: leave it out"
                    ))
                );
            }
            (validation.collect(), examples.to_vec())
        }
        None => {
            let tenth = examples.len().div_ceil(10);
            let mut held_out = options.validation.unwrap_or(tenth);
            // A preset's number, meant for a larger data set.
            if !options.given.contains("validation") && held_out >= examples.len() && tenth < held_out {
                show_notes(&[format!(
                    "the preset holds out {held_out} examples for validation; of these {} that is {tenth}",
                    count(examples.len(), "example")
                )]);
                held_out = tenth;
            }
            match (held_out < examples.len(), options.validation) {
                (true, _) => selection.select(examples, held_out, &class, *seed, "validation"),
                (false, Some(_)) => {
                    bail!(
                        "--validation {held_out}: found {} for training and validation, expected more than that",
                        count(examples.len(), "example")
                    )
                }
                (false, None) => bail!(
                    "{}the training set is too small to hold out a validation part: found {}, expected 2 examples or more",
                    place(options),
                    examples.len()
                ),
            }
        }
    };
    if let Some(limit) = options.train_limit {
        let selection = if *selection == Selection::Random { Selection::Random } else { Selection::First };
        training = selection.select(&training, limit, &class, *seed, "train limit").0;
    }
    Ok((training, validation))
}

/// The start of an error message: the data folder, or nothing for built-in data.
fn place(options: &TrainOptions) -> String {
    options.data_dir.as_ref().map_or_else(String::new, |dir| format!("{}: ", dir.display()))
}

/// Notes on classes that some parts have and another one lacks, as in data that is sorted by class.
///
/// A class with few examples may also be missing. A part with fewer examples than there are classes must lack some.
fn missing_classes(parts: &[(&str, &[u32])], class: impl Fn(u32) -> u32) -> Vec<String> {
    let classes = |part: &[u32]| part.iter().map(|&example| class(example)).collect::<BTreeSet<u32>>();
    let all: BTreeSet<u32> = parts.iter().flat_map(|(_, part)| classes(part)).collect();
    let large = parts.iter().filter(|(_, part)| part.len() >= all.len());
    large
        .map(|(name, part)| (name, all.len() - classes(part).len()))
        .filter(|(_, missing)| *missing > 0)
        .map(|(name, missing)| format!("the {name} part lacks {missing} of the {} classes", all.len()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::options::Given;
    use super::*;

    /// Sorted by class, like many users' files.
    fn class(example: u32) -> u32 {
        example / 50
    }

    #[test]
    fn drawn_parts_are_disjoint_and_hold_all_classes() {
        let options = TrainOptions { train_limit: Some(20), ..TrainOptions::default() };
        let parts = Parts::new([Some(100), None, None], class, &options).unwrap();
        assert_eq!(parts.sizes(), [20, 9, 10]);
        for part in [&parts.training, &parts.validation, &parts.test] {
            let first = part.iter().filter(|&&example| class(example) == 0).count();
            assert!(first.abs_diff(part.len() - first) <= 1, "{part:?}");
        }
        let mut all = [parts.training, parts.validation, parts.test].concat();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 39);
        let last = TrainOptions { validation_split: Selection::Last, ..options };
        let parts = Parts::new([Some(100), None, Some(5)], class, &last).unwrap();
        assert_eq!(parts.training, (0..20).collect::<Vec<u32>>());
        assert_eq!((parts.validation, parts.test), ((90..100).collect(), (100..105).collect()));
    }

    #[test]
    fn a_part_without_a_class_is_named() {
        let of = |test: &[u32]| missing_classes(&[("training", &[0, 60]), ("test", test)], class);
        assert_eq!(of(&[1, 2]), ["the test part lacks 1 of the 2 classes"]);
        assert!(of(&[1, 99]).is_empty() && of(&[1]).is_empty());
    }

    #[test]
    fn held_out_examples_are_not_chosen_where_the_data_has_a_validation_split() {
        for option in ["validation", "validation_split"] {
            let options = TrainOptions { given: Given::of(option), ..TrainOptions::default() };
            let error = Parts::new([Some(9), Some(3), Some(3)], class, &options).err().unwrap();
            let said = format!(
                "--{}: has no effect on a data set that has a validation split",
                option.replace('_', "-")
            );
            assert!(error.is::<UsageError>() && error.to_string().starts_with(&said), "{error}");
        }
    }

    #[test]
    fn a_part_that_leaves_nothing_is_an_error() {
        let of = |sizes, validation| {
            let given = Given::of("validation");
            let options = TrainOptions { validation, given, ..TrainOptions::default() };
            Parts::new(sizes, class, &options).err().unwrap().to_string()
        };
        assert!(of([Some(1), None, Some(1)], None).contains("too small"));
        assert!(of([Some(5), None, Some(1)], Some(5)).contains("--validation 5"));
        assert!(of([Some(5), None, None], None).contains("no test split"));
    }
}
