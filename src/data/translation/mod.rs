//! Sentences with their translations: types, file formats, built-in dates, and scores.
//!
//! ```
//! use candle_textbook::data::translation::{Language, Segmentation, dates, exact_match};
//!
//! let corpus = dates(100, 0, 0, 0);
//! let targets = &corpus.train.targets; // such as 2016-03-05
//! let language = Language::learn(targets.iter().map(String::as_str), Segmentation::Characters, false, 1);
//! let decoded: Vec<String> = targets.iter().map(|target| language.decode(&language.encode(target))).collect();
//! assert_eq!(exact_match(&decoded, targets), 100.0); // percent
//! ```

mod byte_pairs;
mod dates;
mod files;
mod language;
mod pair_columns;
mod pairs;
mod scores;

pub use dates::dates;
#[cfg(feature = "cli")]
pub(crate) use files::sources;
pub use language::{Language, Segmentation};
pub use pairs::{PairCorpus, Pairs, TextPairs};
pub use scores::{BleuTokenizer, bleu, chrf, exact_match};

use crate::data::error::DataError;
use crate::data::file_kind::check_is_directory;
use anyhow::{Result, ensure};
use std::path::Path;

const KNOWN: [&str; 3] = ["dates", "tsv-pairs", "parallel"];
const BUILT_IN: [&str; 1] = ["dates"];

/// The seed of the built-in dates. It is independent of the seed of a training run.
const DATES_SEED: u64 = 0;

/// Loads the pairs of sentences and translations `name`.
///
/// | name | files in `dir` |
/// |---|---|
/// | `dates` | built in; 12,000 for training, 1,000 for validation, 1,000 for testing |
/// | `tsv-pairs` | each split `.tsv` or `.txt`: a source, a tab and a target per line |
/// | `parallel` | two files per split, which end with the two `languages`, such as `train.en` and `train.de`: line by line a sentence and its translation |
///
/// With a note, the language may also be a word in the name of a parallel file, such as `train.en.txt`; without `languages`,
/// OpenNMT's `src-train.txt` and `tgt-train.txt` are source and target. There, and in a data set without a validation
/// split, a test file without its translation is passed over, with a note. With a note, a single file of pairs is the
/// training split whatever its name is, such as Anki's `deu.txt`, whose third column holds attributions.
///
/// The files' names contain a name of their split, `train`, `dev`, `test` or another one of
/// [`text::load`](crate::data::text::load), such as `test_2016_flickr.en`. White space around a sentence is removed,
/// and so are blank lines at the end of a file. Pairs with an empty side are skipped, with a note.
///
/// A first line of names, such as `target` and `source` or `English` and `German`, is a header of `tsv-pairs`, with a
/// note. It tells which columns hold source and target: by these names, by the `languages`, which it must name if they
/// are given, or in this order. Without a header, source and target are the first two columns. Further columns are
/// ignored, with a note, and quotes that surround whole columns are removed. Text that is not UTF-8 is read as
/// Windows-1252, with a note.
///
/// # Errors
/// Fails with a [`DataError`] for an unknown name, a directory that is missing or not needed, and `parallel` without two
/// different languages; with other errors for a training file that is missing, two files for one split and language, a file
/// without its translation, two files of different length or of the same content, and lines without a tab or with another
/// number of columns than the first.
pub fn load(name: &str, dir: Option<&Path>, languages: Option<[&str; 2]>) -> Result<PairCorpus> {
    read(name, dir, languages, false)
}

/// Loads only the test split of the pairs `name`, if there is one.
///
/// Without a test or validation split, it is the same as [`load`].
///
/// # Errors
/// Fails as [`load`] does.
pub fn load_test(name: &str, dir: Option<&Path>, languages: Option<[&str; 2]>) -> Result<PairCorpus> {
    read(name, dir, languages, true)
}

fn read(name: &str, dir: Option<&Path>, languages: Option<[&str; 2]>, test_only: bool) -> Result<PairCorpus> {
    if name == "dates" {
        ensure!(languages.is_none(), "data set {name}: has no choice of languages");
    }
    match (name, dir) {
        ("dates", None) => Ok(dates(12_000, 1_000, 1_000, DATES_SEED)),
        ("dates", Some(_)) => Err(DataError::built_in(name)),
        ("tsv-pairs" | "parallel", Some(dir)) => {
            check_is_directory(dir)?;
            match languages {
                Some([source, target]) if name == "tsv-pairs" && source != target => {
                    files::tab_separated(dir, Some([source, target]), test_only)
                }
                None if name == "tsv-pairs" => files::tab_separated(dir, None, test_only),
                Some([source, target]) if source != target => {
                    files::parallel(dir, [source, target], test_only)
                }
                None if files::has_sides(dir)? => files::parallel(dir, files::SIDES, test_only),
                Some([both, _]) => {
                    Err(unclear(name, &format!("translates {both} into {both}, expected two languages")))
                }
                None => Err(unclear(
                    name,
                    "no languages given, expected the endings of its files, such as en and de",
                )),
            }
        }
        ("tsv-pairs" | "parallel", None) => {
            Err(DataError::files_needed(name, "no directory given", &BUILT_IN))
        }
        _ => Err(DataError::unknown(name, &KNOWN)),
    }
}

fn unclear(name: &str, reason: &str) -> anyhow::Error {
    DataError::Languages { name: name.into(), reason: reason.into() }.into()
}
