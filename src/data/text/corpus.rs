//! Labelled sentences.

use super::table::Layout;
use crate::data::fingerprint::Fingerprint;
use crate::data::quoted;
use crate::data::splits::Splits;
use anyhow::Result;
use std::collections::HashMap;
use std::path::PathBuf;

/// Sentences and their labels.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Texts {
    /// The sentences.
    pub texts: Vec<String>,
    /// The class of each sentence, an index into [`Corpus::classes`].
    pub labels: Vec<u32>,
}

impl Texts {
    /// Number of sentences.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// Whether there are no sentences.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// A hash of the sentences and labels, to detect changed data when a run is resumed.
    pub fn fingerprint(&self) -> u64 {
        Fingerprint::new().add_strings(&self.texts).add_ids(&self.labels).finish()
    }

    pub(super) fn push(&mut self, text: impl Into<String>, label: u32) {
        self.texts.push(text.into());
        self.labels.push(label);
    }
}

/// A data set of labelled sentences with the splits that it defines.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Corpus {
    /// The training split.
    pub train: Texts,
    /// The validation split, if the data set defines one.
    pub validation: Option<Texts>,
    /// The test split, if the data set defines one.
    pub test: Option<Texts>,
    /// The names of the classes.
    pub classes: Vec<String>,
    /// Remarks about the files for the user, one line each.
    pub notes: Vec<String>,
    /// Where a table has its columns, for [`Columns::trained`](super::Columns::trained).
    pub layout: Option<Layout>,
    /// Which columns of a table were taken as label and text, if its header does not say so alone: a further remark.
    pub assumption: Option<String>,
}

impl Corpus {
    /// Reads each of `splits` with `read`.
    pub(super) fn read(
        splits: Splits,
        classes: Vec<String>,
        mut notes: Vec<String>,
        mut read: impl FnMut(PathBuf, &mut Vec<String>) -> Result<Texts>,
    ) -> Result<Self> {
        let Splits { train, validation, test, .. } = splits;
        let mut read = |path: Option<PathBuf>| path.map(|path| read(path, &mut notes)).transpose();
        let (train, validation, test) = (read(train)?.unwrap_or_default(), read(validation)?, read(test)?);
        Ok(Self { train, validation, test, classes, notes, ..Self::default() })
    }

    /// Notes odd classes.
    ///
    /// They are two classes that are probably the same, a class that is probably a missing label, and a class with a single
    /// sentence in a large set.
    pub(super) fn note_odd_classes(&mut self) {
        self.notes.extend(note_twins("classes", &self.classes));
        let missing = ["nan", "null", "na", "n/a", "<na>", "#n/a"];
        let missing = self.classes.iter().filter(|class| missing.contains(&class.to_lowercase().as_str()));
        self.notes
            .extend(missing.map(|class| format!("{} is a class: is it a missing label?", quoted(class))));
        let mut counts = vec![0; self.classes.len()];
        self.train.labels.iter().for_each(|&label| counts[label as usize] += 1);
        if let (Some(single), 21..) = (counts.iter().position(|&count| count == 1), self.train.len()) {
            let (class, sentences) = (quoted(&self.classes[single]), self.train.len());
            self.notes.push(format!("the class {class} has a single sentence, the training set {sentences}"));
        }
    }
}

/// A note about two of the `names` of `what` that are probably the same, if there are any.
pub(in crate::data) fn note_twins<S: AsRef<str>>(what: &str, names: &[S]) -> Option<String> {
    let mut seen = HashMap::new();
    let names = names.iter().map(AsRef::as_ref);
    let (first, second) =
        { names }.find_map(|name: &str| Some((seen.insert(spelling(name), name)?, name)))?;
    let is_case = first.to_lowercase() == second.to_lowercase();
    let difference = if is_case { "case" } else { "spelling" };
    Some(format!("the {what} {} and {} differ only in {difference}", quoted(first), quoted(second)))
}

/// A class name without differences that are hard to see.
///
/// It has lower case, no zero-width characters, and numbers by value.
fn spelling(class: &str) -> String {
    let is_visible = |c: &char| !matches!(c, '\u{200b}'..='\u{200d}' | '\u{2060}' | '\u{feff}');
    let visible: String = class.chars().filter(is_visible).collect();
    let lower = visible.trim().to_lowercase();
    lower.parse().map_or(lower, |number: f64| number.to_string())
}

/// The class names of data sets of opinions.
pub(super) fn polarities() -> Vec<String> {
    ["negative", "positive"].map(String::from).into()
}
