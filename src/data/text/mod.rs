//! Labelled sentences and long texts: types, tokens, vocabularies, vectors, formats, built-in sets.
//!
//! ```
//! use candle_textbook::data::{Tokenizer, Vocabulary, reviews};
//!
//! let corpus = reviews(200, 20, 0);
//! let sentences: Vec<_> = corpus.train.texts.iter().map(|text| Tokenizer::Words.tokens(text)).collect();
//! let vocabulary = Vocabulary::new(&sentences, true, 2);
//! assert_eq!(corpus.classes, ["negative", "positive"]);
//! assert!(vocabulary.id("the") != Vocabulary::UNKNOWN && vocabulary.id("zzyzx") == Vocabulary::UNKNOWN);
//! ```

mod columns;
mod corpus;
mod encoding;
mod file;
mod header;
#[cfg(feature = "cli")]
mod input_tables;
mod level;
mod lines;
#[cfg(feature = "cli")]
mod live_lines;
mod ngrams;
#[cfg(feature = "hub")]
mod parquet;
mod quotes;
mod records;
mod reviews;
mod source;
mod table;
mod text_stream;
mod token_windows;
mod tokenizer;
mod vocabulary;
mod word_vectors;

pub(super) use corpus::note_twins;
pub use corpus::{Corpus, Texts};
pub(crate) use file::TextFile;
pub(super) use file::counted_lines;
#[cfg(feature = "cli")]
pub(crate) use file::is_json;
#[cfg(feature = "cli")]
pub(crate) use input_tables::{texts_by_header, texts_of_table};
pub use level::Level;
#[cfg(feature = "cli")]
pub(crate) use lines::without_label;
#[cfg(feature = "cli")]
pub(crate) use live_lines::{LiveLines, path_of_bytes};
pub use ngrams::NGrams;
pub(super) use quotes::are_fields_quoted;
pub(super) use records::{Record, records};
pub use reviews::reviews;
pub use table::{Columns, Layout};
pub use text_stream::{TextStream, Tokens};
pub use token_windows::{TokenWindow, TokenWindows};
pub use tokenizer::Tokenizer;
pub(crate) use tokenizer::composed;
pub use vocabulary::Vocabulary;
pub use word_vectors::WordVectors;

use crate::data::error::DataError;
use crate::data::file_kind::check_is_directory;
use crate::data::splits;
use anyhow::{Context, Result, ensure};
use std::path::Path;

const KNOWN: [&str; 8] = ["reviews", "mr", "sst2", "trec", "ag-news", "csv", "tsv", "fasttext"];
const BUILT_IN: [&str; 1] = ["reviews"];
const KNOWN_STREAMS: [&str; 2] = ["source", "tiny-shakespeare"];
const BUILT_IN_STREAMS: [&str; 1] = ["source"];

/// The seed of the built-in reviews. It is independent of the seed of a training run.
const REVIEWS_SEED: u64 = 0;

/// Loads the labelled sentences `name`.
///
/// | name | files in `dir` | classes |
/// |---|---|---|
/// | `reviews` | built in; 10,000 for training, 2,000 for testing | negative, positive |
/// | `mr` | `rt-polarity.neg`, `rt-polarity.pos`: one sentence per line; no test split | negative, positive |
/// | `sst2` | each split `.tsv`, `.txt` or named like `stsa.binary.train`: GLUE's columns `sentence` and `label` under a header, or lines of a label 0 or 1 and a sentence | negative, positive |
/// | `trec` | `train_5500.label`, `TREC_10.label`: lines `COARSE:fine question` | the six coarse ones |
/// | `ag-news` | each split `.csv`: class (1 to 4), title and description, with or without a header | world, sports, business, science and technology |
/// | `csv`, `tsv` | each split `.csv` or `.tsv`: columns of a label and a text, quoted or not | the labels of the training file, sorted |
/// | `fasttext` | each split `.txt`, or with its name as the extension: lines of `__label__CLASS` and a sentence; the label may stand anywhere | the labels of the training file, sorted |
///
/// The names of the splits are `train`; `val`, `valid`, `validation` or `dev`; and `test`. Only `train` is required. If
/// there is a validation but no test split, it serves as the test split, with a note. Other files of the same kind are
/// skipped, with a note. The files of `mr`, `sst2`, `trec` and `ag-news` may be in a folder of `dir`, as their archives
/// unpack.
///
/// `columns` tells where `csv` and `tsv` files have label and text. Otherwise a header decides if it names them, such
/// as `review,sentiment`. Without a header the label comes first, with a note. Commas, semicolons or tabs separate the
/// columns of `csv` files; a first line such as `sep=;` declares the separator. Repetitions of the header are skipped,
/// with a note, and so are, without a note, columns at the end that are always empty.
///
/// Without `dir`, `mr`, `sst2` and `ag-news` are downloaded, with the splits of the hub, if the feature `hub` is
/// enabled. GLUE's test file of `sst2` has no labels; it is skipped, with a note. White space around a sentence is
/// removed; lines without text are skipped, with a note. Text is UTF-8 or, with a note, UTF-16 with a byte order mark
/// or Windows-1252; it may be gzipped.
///
/// # Errors
/// Fails with a [`DataError`] for an unknown name, a directory that is missing or not needed, and unclear columns; with
/// other errors for files that are missing, ambiguous, empty or malformed, for labels that the training file lacks, and for
/// `columns` of another format.
pub fn load(name: &str, dir: Option<&Path>, columns: &Columns) -> Result<Corpus> {
    read(name, dir, columns, None)
}

/// Loads only the test split of the sentences `name`, if there is one, for a model of `classes`.
///
/// Without a test or validation split, it is the same as [`load`].
///
/// # Errors
/// Fails as [`load`] does, and for labels that are not in `classes`.
pub fn load_test(name: &str, dir: Option<&Path>, columns: &Columns, classes: &[String]) -> Result<Corpus> {
    read(name, dir, columns, Some(classes))
}

fn read(name: &str, dir: Option<&Path>, columns: &Columns, classes: Option<&[String]>) -> Result<Corpus> {
    if !matches!(name, "csv" | "tsv") && KNOWN.contains(&name) {
        ensure!(columns.is_empty(), "data set {name}: has no choice of columns");
    }
    match (name, dir) {
        ("reviews", None) => Ok(reviews(10_000, 2_000, REVIEWS_SEED)),
        ("reviews", Some(_)) => Err(DataError::built_in(name)),
        ("mr" | "sst2" | "trec" | "ag-news" | "csv" | "tsv" | "fasttext", Some(dir)) => {
            check_is_directory(dir)?;
            let names = archive(name);
            let dir = &splits::unpacked(dir, &|dir| {
                names.is_empty() || names.iter().any(|name| dir.join(name).is_file())
            })?;
            match name {
                "mr" => lines::mr(dir),
                "sst2" => lines::sst2(dir, classes.is_some()),
                "trec" => lines::trec(dir, classes.is_some()),
                "ag-news" => columns::ag_news(dir, classes.is_some()),
                "fasttext" => lines::fasttext(dir, classes),
                _ => columns::labelled(dir, name, columns, classes),
            }
        }
        ("mr" | "sst2" | "ag-news", None) => download(name),
        ("trec" | "csv" | "tsv" | "fasttext", None) => {
            Err(DataError::files_needed(name, "no directory given", &BUILT_IN))
        }
        _ => Err(DataError::unknown(name, &KNOWN)),
    }
}

/// Some of the files in the archive of the data set `name`, which may unpack into folders.
fn archive(name: &str) -> &'static [&'static str] {
    match name {
        "mr" => &["rt-polarity.neg", "rt-polarity.pos"],
        "sst2" => &["train.tsv", "dev.tsv", "test.tsv", "train.txt", "stsa.binary.train"],
        "trec" => &["train_5500.label", "TREC_10.label"],
        "ag-news" => &["train.csv", "test.csv"],
        _ => &[],
    }
}

/// Loads the text `name`: `source` or `tiny-shakespeare`.
///
/// `source` is built in: the files of this project. `tiny-shakespeare` comes from `input.txt` in `dir` or from the hub.
/// [`TextStream::open`] opens any other file.
///
/// # Errors
/// Fails if [`load`] would.
pub fn load_stream(name: &str, dir: Option<&Path>, level: Level) -> Result<TextStream> {
    match (name, dir) {
        ("source", None) => TextStream::from_memory("source", source::source(), level),
        ("source", Some(_)) => Err(DataError::built_in(name)),
        ("tiny-shakespeare", Some(dir)) => {
            check_is_directory(dir)?;
            let path = file::required(dir, "input.txt")?;
            let text = TextStream::open(&path, level)?;
            file::check_is_corpus(&text.beginning()?).with_context(|| path.display().to_string())?;
            Ok(text)
        }
        ("tiny-shakespeare", None) => TextStream::from_memory(name, download_text(name)?, level),
        _ => Err(DataError::unknown(name, &KNOWN_STREAMS)),
    }
}

#[cfg(feature = "hub")]
fn download(name: &str) -> Result<Corpus> {
    let needed = |error| DataError::files_needed(name, &format!("{error:#}"), &BUILT_IN);
    parquet::corpus(name).map_err(needed)
}

#[cfg(not(feature = "hub"))]
fn download(name: &str) -> Result<Corpus> {
    Err(DataError::files_needed(name, crate::data::error::NO_DOWNLOAD, &BUILT_IN))
}

#[cfg(feature = "hub")]
fn download_text(name: &str) -> Result<String> {
    let needed = |error| DataError::files_needed(name, &format!("{error:#}"), &BUILT_IN_STREAMS);
    parquet::tiny_shakespeare().map_err(needed)
}

#[cfg(not(feature = "hub"))]
fn download_text(name: &str) -> Result<String> {
    Err(DataError::files_needed(name, crate::data::error::NO_DOWNLOAD, &BUILT_IN_STREAMS))
}
