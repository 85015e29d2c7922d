//! Sentences with a tag at every word.

use std::path::Path;

use anyhow::{Result, bail, ensure};

use super::{conll, names};

/// The built-in names are always the same ones, whatever the seed of a training.
const NAMES_SEED: u64 = 0;

/// Sentences, each a word and a tag a place.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tagged {
    pub words: Vec<Vec<String>>,
    /// Indices into [`TaggedCorpus::tags`], of the same lengths as `words`.
    pub tags: Vec<Vec<u32>>,
}

impl Tagged {
    /// How many sentences there are.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }
}

/// A data set of tagged sentences with the splits that it comes in.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TaggedCorpus {
    pub train: Tagged,
    pub validation: Option<Tagged>,
    pub test: Option<Tagged>,
    /// `O`, then `B-` and `I-` of each type in alphabetical order: an entity begins with `B-` and goes on with `I-`.
    pub tags: Vec<String>,
    /// What the user should know about the files, a line each.
    pub notes: Vec<String>,
}

/// What a tag says of its word.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Tag<'a> {
    Outside,
    Begin(&'a str),
    Inside(&'a str),
}

impl<'a> Tag<'a> {
    pub fn parse(tag: &'a str) -> Option<Self> {
        match tag.split_once('-') {
            None => (tag == "O").then_some(Self::Outside),
            Some((_, "")) => None,
            Some(("B", entity)) => Some(Self::Begin(entity)),
            Some(("I", entity)) => Some(Self::Inside(entity)),
            Some(_) => None,
        }
    }

    /// The type of the entity that the word belongs to.
    pub fn entity(self) -> Option<&'a str> {
        match self {
            Self::Outside => None,
            Self::Begin(entity) | Self::Inside(entity) => Some(entity),
        }
    }
}

/// `O`, and `B-` and `I-` of each of `types`.
pub(super) fn tag_names<'a>(types: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let of_type = |entity| ["B", "I"].map(|place| format!("{place}-{entity}"));
    std::iter::once("O".into()).chain(types.into_iter().flat_map(of_type)).collect()
}

/// The data set of tagged sentences `name`: `names` (built in; 6,000 and 1,000 for testing), or `conll`: files of a
/// word a line, its tag in the last column, and a blank line between sentences, in `dir`.
///
/// The columns are set apart by tabs or by blanks; lines of `-DOCSTART-` are passed over. The files are known by
/// "train", by "dev", "valid" or "testa", and by "test" in their names, which may end in .txt, .conll, .tsv, .bio,
/// .iob, .iob2 or .annotated. Tags of the older scheme IOB1, in which `B-` stands only between two entities of one type, are
/// turned into BIO. Text that is not UTF-8 is read as Windows-1252. Both with a note.
///
/// # Errors
/// A name that is not known; no training file, or two files for one split; a line with too few columns or too many,
/// or with something other than a tag; a file that follows neither scheme; a type that the training file lacks.
pub fn load(name: &str, dir: Option<&Path>) -> Result<TaggedCorpus> {
    match (name, dir) {
        ("names", None) => Ok(names(6_000, 1_000, NAMES_SEED)),
        ("names", Some(_)) => bail!("data set names: it is built in, so --data-dir has no meaning"),
        ("conll", Some(dir)) => {
            ensure!(dir.is_dir(), "{}: no such directory", dir.display());
            conll::read_dir(dir)
        }
        ("conll", None) => {
            bail!("data set conll: give its files with --data-dir DIR, or use the built-in names")
        }
        _ => bail!("data set {name}: not known; there are names and conll"),
    }
}
