//! Corpora with one labelled sentence per line: MR, SST-2, TREC and fastText's format.

use super::corpus::{Corpus, Texts, polarities};
use super::file::{TextFile, required};
use super::tokenizer::composed;
use crate::data::splits::Splits;
use crate::data::{count, quoted};
use anyhow::Result;
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// Parses the lines after the first `skip`, each into a sentence and its class.
///
/// Lines without text are skipped, with a note.
fn sentences<'a>(
    file: &'a TextFile,
    skip: usize,
    notes: &mut Vec<String>,
    parse: impl Fn(&'a str) -> Result<(Cow<'a, str>, u32), String>,
) -> Result<Texts> {
    let (mut texts, mut without_text) = (Texts::default(), vec![]);
    for (number, line) in file.lines().skip(skip) {
        if line.trim().is_empty() {
            without_text.push(number);
            continue;
        }
        let (text, label) = parse(line).map_err(|error| file.error_at(number, error))?;
        match text.trim() {
            "" => without_text.push(number),
            text => texts.push(text, label),
        }
    }
    notes.extend(file.skipped(&without_text, "without text"));
    if texts.is_empty() { Err(file.error("no sentences")) } else { Ok(texts) }
}

/// Movie reviews (Pang and Lee 2005). Negative and positive sentences alternate.
pub(super) fn mr(dir: &Path) -> Result<Corpus> {
    let mut notes = Vec::new();
    let mut read = |name: &str, label| {
        let file = TextFile::read(required(dir, name)?, &mut notes)?;
        sentences(&file, 0, &mut notes, |line| Ok((line.into(), label)))
    };
    let (negative, positive) = (read("rt-polarity.neg", 0)?, read("rt-polarity.pos", 1)?);
    let mut train = Texts::default();
    for at in 0..negative.len().max(positive.len()) {
        for texts in [&negative, &positive] {
            texts.texts.get(at).into_iter().for_each(|text| train.push(text, texts.labels[at]));
        }
    }
    Ok(Corpus { train, classes: polarities(), notes, ..Corpus::default() })
}

/// First line of GLUE's test file of SST-2.
const WITHOUT_LABELS: &str = "index\tsentence";

/// The Stanford Sentiment Treebank with two classes (Socher et al. 2013), in GLUE's files or Stanford's.
pub(super) fn sst2(dir: &Path, test_only: bool) -> Result<Corpus> {
    let mut notes = Vec::new();
    let mut splits = Splits::find(dir, &|split| {
        let mut names = ["tsv", "txt"].map(|extension| format!("{split}.{extension}")).to_vec();
        names.push(format!("stsa.binary.{split}"));
        names.extend((split == "train").then(|| "stsa.binary.phrases.train".to_string()));
        names
    })?;
    if let Some(test) = &splits.test {
        let file = TextFile::read(test.clone(), &mut Vec::new())?;
        if file.lines().next().is_some_and(|(_, line)| line == WITHOUT_LABELS) {
            notes.push(format!("{}: has no labels, so it is passed over", test.display()));
            splits.test = None;
        }
    }
    let expected = "train.tsv, train.txt, stsa.binary.train or stsa.binary.phrases.train";
    let splits = splits.choose(dir, expected, test_only, &mut notes)?;
    Corpus::read(splits, polarities(), notes, |path, notes| {
        let file = TextFile::read(path, notes)?;
        let first = file.lines().next().map_or("", |(_, line)| line);
        match first {
            "sentence\tlabel" | "label\tsentence" => {
                let is_text_first = first.starts_with("sentence");
                sentences(&file, 1, notes, |line| match line.split('\t').collect::<Vec<_>>()[..] {
                    [text, label] if is_text_first => Ok((text.into(), polarity(label)?)),
                    [label, text] => Ok((text.into(), polarity(label)?)),
                    ref columns => {
                        Err(format!("{}, expected sentence and label", count(columns.len(), "column")))
                    }
                })
            }
            _ => sentences(&file, 0, notes, |line| {
                let (label, text) = line.split_once([' ', '\t']).unwrap_or((line, ""));
                Ok((text.into(), polarity(label)?))
            }),
        }
    })
}

fn polarity(label: &str) -> Result<u32, String> {
    match label {
        "0" => Ok(0),
        "1" => Ok(1),
        _ => Err(format!("label {}, expected 0 or 1", quoted(label))),
    }
}

const TREC_CLASSES: [&str; 6] = ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"];

/// Questions by the type of their answer (Li and Roth 2002).
pub(super) fn trec(dir: &Path, test_only: bool) -> Result<Corpus> {
    let mut splits = Splits::default();
    splits.test = required(dir, "TREC_10.label").ok();
    if !test_only || splits.test.is_none() {
        splits.train = Some(required(dir, "train_5500.label")?);
    }
    let classes = TREC_CLASSES.map(String::from).into();
    Corpus::read(splits, classes, vec![], |path, notes| {
        let file = TextFile::read(path, notes)?;
        sentences(&file, 0, notes, |line| {
            let (label, text) = line.split_once(' ').unwrap_or((line, ""));
            let coarse = label.split_once(':').map(|(coarse, _)| coarse);
            match TREC_CLASSES.iter().position(|&class| coarse == Some(class)) {
                Some(class) => Ok((text.into(), class as u32)),
                None => {
                    let classes = TREC_CLASSES.join(", ");
                    Err(format!("starts with {}, expected one of {classes} and :fine", quoted(label)))
                }
            }
        })
    })
}

/// Reads lines of a sentence with `__label__CLASS` before, after or in it, like fastText.
///
/// With the classes `known`, only the test split is read. Otherwise the classes are the labels of the training split.
pub(super) fn fasttext(dir: &Path, known: Option<&[String]>) -> Result<Corpus> {
    let mut notes = Vec::new();
    let splits = Splits::find_by_words(dir, &["txt", "ft"])?;
    let expected = "a name like train.txt or my.train";
    let splits = splits.choose(dir, expected, known.is_some(), &mut notes)?;
    let classes = match (&splits.train, known) {
        (_, Some(known)) => known.to_vec(),
        (None, None) => vec![],
        (Some(train), None) => {
            // Notes about this file come when it is read as a split.
            let file = TextFile::read(train.clone(), &mut Vec::new())?;
            let mut classes = BTreeSet::new();
            for (number, line) in file.lines().filter(|(_, line)| !line.trim().is_empty()) {
                let (label, text) = label_and_text(line).map_err(|error| file.error_at(number, error))?;
                classes.extend((!text.is_empty()).then(|| composed(label)));
            }
            match classes.len() {
                0 => return Err(file.error("no sentences")),
                1 => return Err(file.error("only one class, expected two or more")),
                _ => classes.into_iter().map(Cow::into_owned).collect(),
            }
        }
    };
    let ids: HashMap<String, u32> = classes.iter().cloned().zip(0..).collect();
    let mut corpus = Corpus::read(splits, classes, notes, |path: PathBuf, notes| {
        let file = TextFile::read(path, notes)?;
        sentences(&file, 0, notes, |line| {
            let (label, text) = label_and_text(line)?;
            if text.is_empty() {
                return Ok((text, 0));
            }
            let class = ids
                .get(&*composed(label))
                .ok_or_else(|| format!("label {}, which the training set lacks", quoted(label)))?;
            Ok((text, *class))
        })
    })?;
    if known.is_none() {
        corpus.note_odd_classes();
    }
    Ok(corpus)
}

/// The prefix of a label in fastText's format.
const LABEL: &str = "__label__";

/// The label and the text of a line. As in fastText, the label may be anywhere.
fn label_and_text(line: &str) -> Result<(&str, Cow<'_, str>), String> {
    let line = line.trim();
    let mut labels = line.split_whitespace().filter_map(|word| word.strip_prefix(LABEL));
    let Some(label) = labels.next() else {
        let first = quoted(line.split_whitespace().next().unwrap_or_default());
        return Err(format!("begins with {first} and has no label, expected {LABEL}CLASS"));
    };
    match labels.count() {
        0 => {}
        others => return Err(format!("{} labels, expected one", others + 1)),
    }
    let start = label.as_ptr().addr() - line.as_ptr().addr() - LABEL.len();
    let (before, after) = (line[..start].trim(), line[start + LABEL.len() + label.len()..].trim());
    Ok(match (before, after) {
        ("", text) | (text, "") => (label, text.into()),
        _ => (label, format!("{before} {after}").into()),
    })
}

/// The text of a line in fastText's format; `None` for a line without a label.
#[cfg(feature = "cli")]
pub(crate) fn without_label(line: &str) -> Option<Cow<'_, str>> {
    label_and_text(line).ok().map(|(_, text)| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_may_stand_anywhere() {
        for line in ["__label__a good film", "good film\t__label__a ", " good __label__a film"] {
            assert_eq!(label_and_text(line), Ok(("a", "good film".into())), "{line}");
        }
        assert_eq!(label_and_text("__label__a"), Ok(("a", "".into())));
        assert!(label_and_text("x __label__a __label__b").unwrap_err().contains("2 labels"));
        assert!(label_and_text("x y").unwrap_err().contains("no label"));
    }
}
