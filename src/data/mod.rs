//! Data sets: built-in ones, file formats, the hub.

mod conll;
mod digits;
mod entities;
mod expand;
#[cfg(feature = "hub")]
pub mod hub;
pub mod idx;
mod images;
pub mod long_text;
mod names;
mod ngrams;
pub mod picture;
mod reviews;
pub mod tagged;
pub mod text;
mod vectors;
mod vocabulary;

pub use digits::digits;
pub use entities::{EntityCounts, EntityScores, entity_scores};
pub use expand::{Distortion, Expansion};
pub use images::Images;
pub use long_text::{Level, LongText, Streams, TokenWindow, Tokens};
pub use names::names;
pub use ngrams::NGrams;
pub use reviews::reviews;
pub use tagged::{Tagged, TaggedCorpus};
pub use text::{Corpus, Texts};
pub use vectors::WordVectors;
pub use vocabulary::{Tokenizer, Vocabulary};

use anyhow::{Result, bail};
use std::path::Path;

/// The built-in digits are always the same ones, whatever the seed of a training.
const DIGITS_SEED: u64 = 0;

/// The training and the test pictures of the data set `name`: `digits` (built in; 20,000 and 4,000), or `mnist` or
/// `fashion-mnist` from their files in `dir` or, without one, from the hub.
///
/// # Errors
/// A name that is not known; files that are missing or broken; no network.
pub fn load(name: &str, dir: Option<&Path>) -> Result<(Images, Images)> {
    match (name, dir) {
        ("digits", None) => Ok(digits(20_000, 4_000, DIGITS_SEED)?),
        ("digits", Some(_)) => bail!("data set digits: it is built in, so --data-dir has no meaning"),
        ("mnist" | "fashion-mnist", Some(dir)) => idx::read_dir(dir),
        #[cfg(feature = "hub")]
        ("mnist" | "fashion-mnist", None) => hub::load(name),
        #[cfg(not(feature = "hub"))]
        ("mnist" | "fashion-mnist", None) => bail!(
            "data set {name}: this build can't download it: give its files with --data-dir DIR, build with \
             `--features hub`, or use the built-in digits"
        ),
        _ => bail!("data set {name}: not known; there are digits, mnist and fashion-mnist"),
    }
}
