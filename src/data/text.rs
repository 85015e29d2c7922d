//! Labelled sentences: movie reviews, questions, or any CSV or TSV file of labels and texts.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use encoding_rs::{Encoding, UTF_8, WINDOWS_1252};

use super::reviews;

/// The built-in reviews are always the same ones, whatever the seed of a training.
const REVIEWS_SEED: u64 = 0;

/// Sentences and the class of each.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Texts {
    pub texts: Vec<String>,
    /// Indices into [`Corpus::classes`], as many as `texts`.
    pub labels: Vec<u32>,
}

impl Texts {
    /// How many sentences there are.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    pub(super) fn push(&mut self, text: impl Into<String>, label: u32) {
        self.texts.push(text.into());
        self.labels.push(label);
    }
}

/// A data set of labelled sentences with the splits that it comes in.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Corpus {
    pub train: Texts,
    pub validation: Option<Texts>,
    pub test: Option<Texts>,
    pub classes: Vec<String>,
    /// What the user should know about the files, a line each.
    pub notes: Vec<String>,
}

/// The data set of labelled sentences `name`, from its files in `dir`:
///
/// | name | files | classes |
/// |---|---|---|
/// | `reviews` | built in; 10,000 and 2,000 for testing | negative, positive |
/// | `mr` | `rt-polarity.neg`, `rt-polarity.pos`, a sentence a line; read in turn, as there is no test set | negative, positive |
/// | `sst2` | `train`, `dev` and `test`, each `.tsv`, `.txt` or named `stsa.binary.train` and so on; GLUE's columns `sentence` and `label` under a header, or lines of a label 0 or 1 and a sentence; GLUE's test file has no labels and is left out, with a note | negative, positive |
/// | `trec` | `train_5500.label`, `TREC_10.label`, lines `COARSE:fine question` | the six coarse ones |
/// | `ag-news` | `train.csv`, `test.csv`, each with the columns class (1 to 4), title and description, which make one text, under a header or none | world, sports, business, science and technology |
/// | `csv`, `tsv` | `train`, `test` and, if there, `validation`, `valid` or `dev`, each with the columns label and text, quoted or not, under a header `label,text` or none | the labels of the training file, sorted |
///
/// With the feature `hub`, `mr`, `sst2` and `ag-news` come from there where no `dir` is given, cut into the parts that they
/// have there.
///
/// Blanks around a sentence are cut off. Text that is not UTF-8 is read as Windows-1252, with a note.
///
/// # Errors
/// A name that is not known; a file that is missing, there under several names, empty or not of this format; a
/// label that the training file lacks.
pub fn load(name: &str, dir: Option<&Path>) -> Result<Corpus> {
    match (name, dir) {
        ("reviews", None) => Ok(reviews(10_000, 2_000, REVIEWS_SEED)),
        ("reviews", Some(_)) => bail!("data set reviews: it is built in, so --data-dir has no meaning"),
        ("mr" | "sst2" | "trec" | "ag-news" | "csv" | "tsv", Some(dir)) => {
            ensure!(dir.is_dir(), "{}: no such directory", dir.display());
            match name {
                "mr" => mr(dir),
                "sst2" => sst2(dir),
                "trec" => trec(dir),
                "ag-news" => ag_news(dir),
                "csv" => columns(dir, "csv", b','),
                _ => columns(dir, "tsv", b'\t'),
            }
        }
        #[cfg(feature = "hub")]
        ("mr" | "sst2" | "ag-news", None) => {
            super::hub::load_corpus(name).with_context(|| format!("data set {name}"))
        }
        #[cfg(not(feature = "hub"))]
        ("mr" | "sst2" | "ag-news", None) => bail!(
            "data set {name}: this build can't download it: give its files with --data-dir DIR, build with \
             `--features hub`, or use the built-in reviews"
        ),
        ("trec" | "csv" | "tsv", None) => {
            bail!("data set {name}: give its files with --data-dir DIR, or use the built-in reviews")
        }
        _ => bail!("data set {name}: not known; there are reviews, mr, sst2, trec, ag-news, csv and tsv"),
    }
}

/// A whole text file, decoded.
pub(super) struct File {
    pub path: PathBuf,
    text: String,
}

impl File {
    /// Reads UTF-8, or, with a note, Windows-1252.
    pub fn read(path: PathBuf, notes: &mut Vec<String>) -> Result<Self> {
        let name = path.display();
        let bytes = fs::read(&path).with_context(|| format!("{name}: can't be read"))?;
        ensure!(!bytes.is_empty(), "{name}: is empty");
        let text = match String::from_utf8(bytes) {
            Ok(text) => text.strip_prefix('\u{feff}').map(String::from).unwrap_or(text),
            Err(error) => {
                let (valid, bytes) = (error.utf8_error().valid_up_to(), error.as_bytes());
                let line = 1 + bytes[..valid].iter().filter(|&&byte| byte == b'\n').count();
                if let Some((marked, _)) = Encoding::for_bom(bytes) {
                    ensure!(marked == UTF_8, "{name}: is {}, expected UTF-8 or Windows-1252", marked.name());
                    bail!("{name}: line {line}: not UTF-8, but the file is marked as such");
                }
                notes.push(format!("{name}: not UTF-8 at line {line}, so it is read as Windows-1252"));
                WINDOWS_1252.decode_without_bom_handling(bytes).0.into_owned()
            }
        };
        Ok(Self { path, text })
    }

    /// The lines and their numbers, from 1.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(at, line)| (at + 1, line))
    }

    /// The error that `what` is wrong with the file.
    pub fn error(&self, what: &str) -> anyhow::Error {
        anyhow::anyhow!("{}: {what}", self.path.display())
    }

    /// The error that `what` is wrong in line `line`.
    pub fn at(&self, line: usize, what: impl std::fmt::Display) -> anyhow::Error {
        anyhow::anyhow!("{}: line {line}: {what}", self.path.display())
    }

    /// The sentence and the class that `parse` finds in each line after the first `skip`.
    fn sentences<'a>(
        &'a self,
        skip: usize,
        parse: impl Fn(&'a str) -> Result<(&'a str, u32), String>,
    ) -> Result<Texts> {
        let mut texts = Texts::default();
        for (number, line) in self.lines().skip(skip) {
            let (text, label) = parse(line).map_err(|what| self.at(number, what))?;
            if text.trim().is_empty() {
                return Err(self.at(number, "no text, expected a sentence"));
            }
            texts.push(text.trim(), label);
        }
        if texts.is_empty() { Err(self.error("holds no sentence")) } else { Ok(texts) }
    }
}

/// The one of `names` that lies in `dir`.
fn find(dir: &Path, names: &[String]) -> Result<Option<PathBuf>> {
    let mut found = names.iter().filter(|name| dir.join(name).is_file());
    let first = found.next();
    if let (Some(first), Some(second)) = (first, found.next()) {
        bail!("{}: both {first} and {second} are here, expected one of them", dir.display());
    }
    Ok(first.map(|name| dir.join(name)))
}

fn find_required(dir: &Path, names: &[String]) -> Result<PathBuf> {
    match find(dir, names)? {
        Some(path) => Ok(path),
        None if names.len() == 1 => bail!("{}: the file {} is not here", dir.display(), names[0]),
        None => bail!("{}: none of the files {} is here", dir.display(), names.join(", ")),
    }
}

/// Names of the classes of every set of opinions.
pub(super) fn polarities() -> Vec<String> {
    ["negative", "positive"].map(String::from).into()
}

fn mr(dir: &Path) -> Result<Corpus> {
    let mut notes = Vec::new();
    let mut read = |name: &str, label| {
        File::read(find_required(dir, &[name.into()])?, &mut notes)?.sentences(0, |line| Ok((line, label)))
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

fn sst2(dir: &Path) -> Result<Corpus> {
    let mut notes = Vec::new();
    let mut read = |split, stanford: &[&str]| {
        let mut names = vec![format!("{split}.tsv"), format!("{split}.txt")];
        names.extend(stanford.iter().map(|name| format!("stsa.binary.{name}")));
        let file = File::read(find_required(dir, &names)?, &mut notes)?;
        let first = file.lines().next().map_or("", |(_, line)| line);
        match first {
            "sentence\tlabel" => file.sentences(1, |line| match line.split('\t').collect::<Vec<_>>()[..] {
                [text, label] => Ok((text, polarity(label)?)),
                ref columns => Err(format!("{} columns, expected sentence and label", columns.len())),
            }),
            "index\tsentence" if split == "test" => {
                notes.push(format!("{}: has no labels, so there is no test set", file.path.display()));
                Ok(Texts::default())
            }
            _ => file.sentences(0, |line| {
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

fn trec(dir: &Path) -> Result<Corpus> {
    let mut notes = Vec::new();
    let mut read = |name: &str| -> Result<Texts> {
        let file = File::read(find_required(dir, &[name.into()])?, &mut notes)?;
        file.sentences(0, |line| {
            let (label, text) = line.split_once(' ').unwrap_or((line, ""));
            let coarse = label.split_once(':').map(|(coarse, _)| coarse);
            match TREC_CLASSES.iter().position(|&class| coarse == Some(class)) {
                Some(class) => Ok((text, class as u32)),
                None => Err(format!("starts with {label:?}, expected {} and :fine", TREC_CLASSES.join(", "))),
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

/// A text and its label, and the line they begin in.
struct Row {
    line: usize,
    label: String,
    text: String,
}

fn columns(dir: &Path, extension: &str, delimiter: u8) -> Result<Corpus> {
    let mut notes = Vec::new();
    let mut read = |path| -> Result<(File, Vec<Row>)> {
        let file = File::read(path, &mut notes)?;
        let rows = rows(&file, delimiter)?;
        Ok((file, rows))
    };
    let names = |stems: &[&str]| stems.iter().map(|stem| format!("{stem}.{extension}")).collect::<Vec<_>>();
    let train = read(find_required(dir, &names(&["train"]))?)?;
    let test = read(find_required(dir, &names(&["test"]))?)?;
    let validation = find(dir, &names(&["validation", "valid", "dev"]))?.map(read).transpose()?;

    let classes: BTreeSet<&str> = train.1.iter().map(|row| row.label.as_str()).collect();
    let classes: Vec<String> = classes.into_iter().map(String::from).collect();
    if let [only] = &classes[..] {
        return Err(train.0.error(&format!("every label is {only:?}, expected two or more classes")));
    }
    let texts = |(file, rows): (File, Vec<Row>)| -> Result<Texts> {
        let mut texts = Texts::default();
        for Row { line, label, text } in rows {
            match classes.binary_search(&label) {
                Ok(class) => texts.push(text, class as u32),
                Err(_) => return Err(file.at(line, format!("label {label:?}, which the training set lacks"))),
            }
        }
        Ok(texts)
    };
    let (train, test) = (texts(train)?, texts(test)?);
    let validation = validation.map(texts).transpose()?;
    Ok(Corpus { train, validation, test: Some(test), classes, notes })
}

fn rows(file: &File, delimiter: u8) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (at, (line, columns)) in records(file, delimiter)?.into_iter().enumerate() {
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        match columns[..] {
            [label, text]
                if at == 0 && label.eq_ignore_ascii_case("label") && text.eq_ignore_ascii_case("text") => {}
            [text, label]
                if at == 0 && text.eq_ignore_ascii_case("text") && label.eq_ignore_ascii_case("label") =>
            {
                return Err(file.at(line, "the columns are text and label, expected label and text"));
            }
            [_, text] if delimiter == b'\t' && text.contains('\n') => {
                return Err(file.at(line, "a quoted text goes over several lines, expected one"));
            }
            ["", _] => return Err(file.at(line, "no label, expected label and text")),
            [_, ""] => return Err(file.at(line, "no text, expected label and text")),
            [label, text] => rows.push(Row { line, label: label.into(), text: text.into() }),
            _ => return Err(file.at(line, format!("{} columns, expected label and text", columns.len()))),
        }
    }
    if rows.is_empty() { Err(file.error("holds no label and text")) } else { Ok(rows) }
}

/// The columns, quoted or not, of each record, without blanks around them, and the line it begins in.
fn records(file: &File, delimiter: u8) -> Result<Vec<(usize, Vec<String>)>> {
    // A quoted field that never ends swallows what follows it; then this is not read as the last record.
    const END: &str = "\u{3}";
    let text = format!("{}\n{END}", file.text);
    let reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .has_headers(false)
        .flexible(true)
        .from_reader(text.as_bytes());
    let mut records = Vec::new();
    for record in reader.into_records() {
        let record = record.with_context(|| format!("{}: can't be read", file.path.display()))?;
        // The crate counts blank lines before a record as its beginning.
        let (offset, line) = record.position().map_or((0, 0), |at| (at.byte() as usize, at.line() as usize));
        let blank = text[offset..].split(|c| c != '\r' && c != '\n').next().unwrap_or_default();
        let line = line + blank.matches('\n').count();
        let columns: Vec<String> = record.iter().map(|column| column.trim().to_string()).collect();
        if offset + blank.len() > file.text.len() && columns == [END] {
            break;
        }
        if columns.last().is_some_and(|column| column.ends_with(END)) {
            return Err(file.at(line, "a quoted field begins that never ends"));
        }
        records.push((line, columns));
    }
    Ok(records)
}

pub(super) const AG_NEWS_CLASSES: [&str; 4] = ["World", "Sports", "Business", "Sci/Tech"];

fn ag_news(dir: &Path) -> Result<Corpus> {
    let mut notes = Vec::new();
    let mut read = |name: &str| -> Result<Texts> {
        let file = File::read(find_required(dir, &[name.into()])?, &mut notes)?;
        let mut texts = Texts::default();
        for (at, (line, columns)) in records(&file, b',')?.into_iter().enumerate() {
            match &columns[..] {
                [class, ..] if at == 0 && class.eq_ignore_ascii_case("class index") => {}
                [class, title, description] => match class.parse::<u32>() {
                    // Where a line ended in the sources there is a backslash.
                    Ok(class @ 1..=4) => {
                        texts.push(format!("{title} {description}").replace('\\', " "), class - 1);
                    }
                    _ => return Err(file.at(line, format!("class {class:?}, expected 1 to 4"))),
                },
                _ => {
                    let what = format!("{} columns, expected class, title and description", columns.len());
                    return Err(file.at(line, what));
                }
            }
        }
        if texts.is_empty() { Err(file.error("holds no news")) } else { Ok(texts) }
    };
    let (train, test) = (read("train.csv")?, read("test.csv")?);
    let classes = AG_NEWS_CLASSES.map(String::from).into();
    Ok(Corpus { train, test: Some(test), classes, notes, ..Corpus::default() })
}
