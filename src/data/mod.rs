//! Data sets: built-in ones, file formats, the hub.

mod augment;
pub mod cifar;
mod conll;
mod digits;
mod entities;
pub mod folder;
#[cfg(feature = "hub")]
pub mod hub;
pub mod idx;
mod images;
mod names;
mod ngrams;
mod photo;
pub mod picture;
mod reviews;
mod shapes;
pub mod tagged;
pub mod text;
pub mod text_stream;
mod vectors;
mod vocabulary;

pub use augment::{Augmentation, Distortion};
pub use digits::digits;
pub use entities::{EntityCounts, EntityScores, entity_scores};
pub use folder::read_square;
pub use images::{Images, Statistics};
pub use names::names;
pub use ngrams::NGrams;
pub use photo::Photo;
pub use reviews::reviews;
pub use shapes::shapes;
pub use tagged::{Tagged, TaggedCorpus};
pub use text::{Corpus, Texts};
pub use text_stream::{Level, Streams, TextStream, TokenWindow, Tokens};
pub use vectors::WordVectors;
pub use vocabulary::{Tokenizer, Vocabulary};

#[cfg(feature = "hub")]
use anyhow::Context;
use anyhow::{Result, bail};
use std::path::Path;

/// The classes of `fashion-mnist`, which its files leave out (Xiao et al. 2017, table 2).
const CLOTHING: [&str; 10] = [
    "t-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
];

/// The built-in pictures are always the same ones, whatever the seed of a training.
const BUILT_IN_SEED: u64 = 0;

/// A data set of pictures.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageSet {
    pub training: Images,
    /// How many of them, the last ones, are there for validation; where the data set doesn't tell, the caller may.
    pub validation: Option<usize>,
    pub test: Images,
}

/// The pictures of the data set `name`: `digits` (built in; 20,000 and 4,000), `shapes` (built in; 10,000 and 2,000),
/// `image-folder` from the pictures in `dir`, made into squares of `side` pixels, `cifar10`, `mnist` or `fashion-mnist`
/// from their files in `dir` or, without a `dir`, from the hub.
///
/// # Errors
/// A name that is not known; files that are missing or broken; no network.
pub fn load(name: &str, dir: Option<&Path>, side: usize) -> Result<ImageSet> {
    let (training, test) = match (name, dir) {
        ("digits", None) => digits(20_000, 4_000, BUILT_IN_SEED)?,
        ("shapes", None) => shapes(10_000, 2_000, BUILT_IN_SEED)?,
        ("digits" | "shapes", Some(_)) => {
            bail!("data set {name}: it is built in, so --data-dir has no meaning")
        }
        ("image-folder", Some(dir)) => return folder::read_dir(dir, side),
        ("image-folder", None) => {
            bail!(
                "data set {name}: give the folder with --data-dir DIR, its pictures as DIR/train/CLASS/PICTURE.jpg"
            )
        }
        ("cifar10", Some(dir)) => cifar::read_dir(dir)?,
        ("mnist", Some(dir)) => idx::read_dir(dir)?,
        ("fashion-mnist", Some(dir)) => {
            let (training, test) = idx::read_dir(dir)?;
            (training.named(CLOTHING)?, test.named(CLOTHING)?)
        }
        #[cfg(feature = "hub")]
        ("mnist" | "fashion-mnist" | "cifar10", None) => {
            hub::load(name).with_context(|| format!("data set {name}"))?
        }
        #[cfg(not(feature = "hub"))]
        ("mnist" | "fashion-mnist" | "cifar10", None) => bail!(
            "data set {name}: this build can't download it: give its files with --data-dir DIR, build with \
             `--features hub`, or use a built-in one, digits or shapes"
        ),
        _ => bail!(
            "data set {name}: not known; there are digits, shapes, mnist, fashion-mnist, cifar10 and image-folder"
        ),
    };
    Ok(ImageSet { training, validation: None, test })
}
