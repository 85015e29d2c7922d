//! Corpora with one labelled sentence per line: MR, SST-2 and TREC.

use super::corpus::{Corpus, Texts, polarities};
use super::file::{TextFile, find_required};
use anyhow::Result;
use std::path::Path;

/// Parses the lines after the first `skip`, each into a sentence and its class.
fn sentences<'a>(
    file: &'a TextFile,
    skip: usize,
    parse: impl Fn(&'a str) -> Result<(&'a str, u32), String>,
) -> Result<Texts> {
    let mut texts = Texts::default();
    for (number, line) in file.lines().skip(skip) {
        let (text, label) = parse(line).map_err(|error| file.error_at(number, error))?;
        if text.trim().is_empty() {
            return Err(file.error_at(number, "no text, expected a sentence"));
        }
        texts.push(text.trim(), label);
    }
    if texts.is_empty() { Err(file.error("no sentences")) } else { Ok(texts) }
}

/// Movie reviews (Pang and Lee 2005). Negative and positive sentences alternate.
pub(super) fn mr(dir: &Path) -> Result<Corpus> {
    let mut notes = Vec::new();
    let mut read = |name: &str, label| {
        let file = TextFile::read(find_required(dir, &[name.into()])?, &mut notes)?;
        sentences(&file, 0, |line| Ok((line, label)))
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

/// The Stanford Sentiment Treebank with two classes (Socher et al. 2013), in GLUE's files or Stanford's.
pub(super) fn sst2(dir: &Path) -> Result<Corpus> {
    let mut notes = Vec::new();
    let mut read = |split, stanford: &[&str]| {
        let mut names = vec![format!("{split}.tsv"), format!("{split}.txt")];
        names.extend(stanford.iter().map(|name| format!("stsa.binary.{name}")));
        let file = TextFile::read(find_required(dir, &names)?, &mut notes)?;
        let first = file.lines().next().map_or("", |(_, line)| line);
        match first {
            "sentence\tlabel" => sentences(&file, 1, |line| match line.split('\t').collect::<Vec<_>>()[..] {
                [text, label] => Ok((text, polarity(label)?)),
                ref columns => Err(format!("found {} columns, expected sentence and label", columns.len())),
            }),
            "index\tsentence" if split == "test" => {
                notes.push(format!("{}: has no labels, so there is no test set", file.path.display()));
                Ok(Texts::default())
            }
            _ => sentences(&file, 0, |line| {
                let (label, text) = line.split_once([' ', '\t']).unwrap_or((line, ""));
                Ok((text, polarity(label)?))
            }),
        }
    };
    let train = read("train", &["train", "phrases.train"])?;
    let (validation, test) = (Some(read("dev", &["dev"])?), read("test", &["test"])?);
    let test = Some(test).filter(|test| !test.is_empty());
    Ok(Corpus { train, validation, test, classes: polarities(), notes })
}

fn polarity(label: &str) -> Result<u32, String> {
    match label {
        "0" => Ok(0),
        "1" => Ok(1),
        _ => Err(format!("label {label:?}, expected 0 or 1")),
    }
}

const TREC_CLASSES: [&str; 6] = ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"];

/// Questions by the type of their answer (Li and Roth 2002).
pub(super) fn trec(dir: &Path) -> Result<Corpus> {
    let mut notes = Vec::new();
    let mut read = |name: &str| -> Result<Texts> {
        let file = TextFile::read(find_required(dir, &[name.into()])?, &mut notes)?;
        sentences(&file, 0, |line| {
            let (label, text) = line.split_once(' ').unwrap_or((line, ""));
            let coarse = label.split_once(':').map(|(coarse, _)| coarse);
            match TREC_CLASSES.iter().position(|&class| coarse == Some(class)) {
                Some(class) => Ok((text, class as u32)),
                None => Err(format!(
                    "starts with {label:?}, expected one of {} and :fine",
                    TREC_CLASSES.join(", ")
                )),
            }
        })
    };
    let (train, test) = (read("train_5500.label")?, read("TREC_10.label")?);
    Ok(Corpus {
        train,
        test: Some(test),
        classes: TREC_CLASSES.map(String::from).into(),
        notes,
        ..Corpus::default()
    })
}
