//! Labelled sentences and long texts: types, tokens, vocabularies, word vectors, file formats, built-in sets.

mod columns;
mod corpus;
mod encoding;
mod file;
mod level;
mod lines;
mod ngrams;
#[cfg(feature = "hub")]
mod parquet;
mod reviews;
mod source;
mod stream;
mod streams;
mod tokenizer;
mod vocabulary;
mod word_vectors;

pub use corpus::{Corpus, Texts};
pub(super) use file::TextFile;
pub use level::Level;
pub use ngrams::NGrams;
pub use reviews::reviews;
pub use stream::{TextStream, Tokens};
pub use streams::{Streams, TokenWindow};
pub use tokenizer::Tokenizer;
pub use vocabulary::Vocabulary;
pub use word_vectors::WordVectors;

use crate::data::error::DataError;
use anyhow::{Result, ensure};
use std::path::Path;

const KNOWN: [&str; 7] = ["reviews", "mr", "sst2", "trec", "ag-news", "csv", "tsv"];
const BUILT_IN: [&str; 1] = ["reviews"];
const KNOWN_STREAMS: [&str; 2] = ["source", "tiny-shakespeare"];
const BUILT_IN_STREAMS: [&str; 1] = ["source"];

/// The seed of the built-in reviews, which do not change with the seed of a training run.
const REVIEWS_SEED: u64 = 0;

/// Loads the labelled sentences `name`.
///
/// | name | files in `dir` | classes |
/// |---|---|---|
/// | `reviews` | built in; 10,000 for training, 2,000 for testing | negative, positive |
/// | `mr` | `rt-polarity.neg`, `rt-polarity.pos`: one sentence per line; no test split | negative, positive |
/// | `sst2` | `train`, `dev` and `test`, each `.tsv`, `.txt` or named like `stsa.binary.train`: GLUE's columns `sentence` and `label` under a header, or lines of a label 0 or 1 and a sentence | negative, positive |
/// | `trec` | `train_5500.label`, `TREC_10.label`: lines `COARSE:fine question` | the six coarse ones |
/// | `ag-news` | `train.csv`, `test.csv`: class (1 to 4), title and description, with or without a header | world, sports, business, science and technology |
/// | `csv`, `tsv` | `train`, `test` and optionally `validation`, `valid` or `dev`: label and text, quoted or not, with or without a header `label,text` | the labels of the training file, sorted |
///
/// Without `dir`, `mr`, `sst2` and `ag-news` are downloaded, with the splits of the hub, if the feature `hub` is
/// enabled. GLUE's test file of `sst2` has no labels; it is left out, with a note. White space around a sentence is
/// removed. Text that is not UTF-8 is read as Windows-1252, with a note.
///
/// # Errors
/// Fails if the name is unknown or a directory is missing or superfluous, with a [`DataError`]; if files are missing,
/// ambiguous, empty or malformed, or have labels that the training file lacks, with other errors.
pub fn load(name: &str, dir: Option<&Path>) -> Result<Corpus> {
    match (name, dir) {
        ("reviews", None) => Ok(reviews(10_000, 2_000, REVIEWS_SEED)),
        ("reviews", Some(_)) => Err(DataError::built_in(name)),
        ("mr" | "sst2" | "trec" | "ag-news" | "csv" | "tsv", Some(dir)) => {
            ensure!(dir.is_dir(), "{}: no such directory", dir.display());
            match name {
                "mr" => lines::mr(dir),
                "sst2" => lines::sst2(dir),
                "trec" => lines::trec(dir),
                "ag-news" => columns::ag_news(dir),
                "csv" => columns::labelled(dir, "csv", b','),
                _ => columns::labelled(dir, "tsv", b'\t'),
            }
        }
        ("mr" | "sst2" | "ag-news", None) => download(name),
        ("trec" | "csv" | "tsv", None) => Err(DataError::files_needed(name, "no directory given", &BUILT_IN)),
        _ => Err(DataError::unknown(name, &KNOWN)),
    }
}

/// Loads the text `name`: `source`, the files of this project (built in), or `tiny-shakespeare`, from `input.txt` in
/// `dir` or from the hub.
///
/// [`TextStream::open`] opens any other file.
///
/// # Errors
/// Fails if [`load`] would.
pub fn load_stream(name: &str, dir: Option<&Path>, level: Level) -> Result<TextStream> {
    match (name, dir) {
        ("source", None) => TextStream::from_memory("source", source::source(), level),
        ("source", Some(_)) => Err(DataError::built_in(name)),
        ("tiny-shakespeare", Some(dir)) => TextStream::open(&dir.join("input.txt"), level),
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
