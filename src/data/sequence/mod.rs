//! Sentences with a tag for each word: types, the CoNLL format, entity scores, a built-in set.
//!
//! ```
//! use candle_textbook::data::{entity_scores, names};
//!
//! fn main() -> anyhow::Result<()> {
//!     let corpus = names(100, 0, 0);
//!     assert_eq!(corpus.train.words[0].len(), corpus.train.tags[0].len());
//!     assert!(corpus.tags.iter().any(|tag| tag == "B-PER"));
//!     let gold = &corpus.train.tags;
//!     assert_eq!(entity_scores(gold, gold, &corpus.tags)?.overall.f1(), 1.0);
//!     Ok(())
//! }
//! ```

mod conll;
mod entity_scores;
mod names;
mod tagged;

#[cfg(feature = "cli")]
pub(crate) use conll::Words;
pub use entity_scores::{EntityCounts, EntityScores, entity_scores};
pub use names::names;
pub use tagged::{TaggedCorpus, TaggedSentences};

use crate::data::error::DataError;
use crate::data::file_kind::check_is_directory;
use anyhow::Result;
use std::path::Path;

const KNOWN: [&str; 2] = ["names", "conll"];
const BUILT_IN: [&str; 1] = ["names"];

/// The seed of the built-in names. It is independent of the seed of a training run.
const NAMES_SEED: u64 = 0;

/// Loads the tagged sentences `name`.
///
/// `names` is built in, with 6,000 sentences for training and 1,000 for testing. `conll` reads the files in `dir`.
///
/// A file in the CoNLL format has one word per line, its tag in the last column, and a blank line between sentences.
/// Tabs or spaces separate the columns. Lines of `-DOCSTART-` and comments (`# ..`) are skipped.
///
/// Columns before the words are skipped, with a note, if they count, as in CoNLL-U, hold offsets or an id of each word,
/// or are constant within each sentence, such as the name of a document. The training file determines these columns for
/// all files with the same number of columns.
///
/// The files' names contain a name of their split, `train`, `dev`, `test` or another one of
/// [`text::load`](crate::data::text::load). They may end in .txt, .conll, .tsv, .bio, .iob, .iob2 or .annotated. Text
/// has the encodings of [`text::load`](crate::data::text::load).
///
/// Tags are converted to BIO, with a note, from BIOES, from forms such as `B_LOC` and `LOC-B`, and from the older scheme
/// IOB1, in which `B-` only separates adjacent entities of one type. If all tags are `O` or types without a prefix, such
/// as `LOC`, adjacent words of one type are one entity, with a note. An entity that does not begin as the file's scheme
/// requires is read as by conlleval, with a note.
///
/// # Errors
/// Fails with a [`DataError`] for an unknown name, or for a directory that is missing or not needed; with other errors for
/// a training file that is missing, two files for one split, lines with a wrong number of columns or an invalid tag, files
/// without blank lines, and types that the training file lacks.
pub fn load(name: &str, dir: Option<&Path>) -> Result<TaggedCorpus> {
    read(name, dir, None)
}

/// Loads only the test split of the tagged sentences `name`, if there is one, for a model of `tags`.
///
/// Without a test or validation split, it is the same as [`load`].
///
/// # Errors
/// Fails as [`load`] does, and for types that are not in `tags`.
pub fn load_test(name: &str, dir: Option<&Path>, tags: &[String]) -> Result<TaggedCorpus> {
    read(name, dir, Some(tags))
}

fn read(name: &str, dir: Option<&Path>, tags: Option<&[String]>) -> Result<TaggedCorpus> {
    match (name, dir) {
        ("names", None) => Ok(names(6_000, 1_000, NAMES_SEED)),
        ("names", Some(_)) => Err(DataError::built_in(name)),
        ("conll", Some(dir)) => {
            check_is_directory(dir)?;
            conll::read_dir(dir, tags)
        }
        ("conll", None) => Err(DataError::files_needed(name, "no directory given", &BUILT_IN)),
        _ => Err(DataError::unknown(name, &KNOWN)),
    }
}
