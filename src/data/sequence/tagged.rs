//! Sentences with a tag for each word.

use crate::data::fingerprint::Fingerprint;

/// Sentences and the tags of their words.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TaggedSentences {
    /// The words of each sentence.
    pub words: Vec<Vec<String>>,
    /// The tag of each word, an index into [`TaggedCorpus::tags`].
    pub tags: Vec<Vec<u32>>,
}

impl TaggedSentences {
    /// Number of sentences.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether there are no sentences.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// A hash of the words and tags, to detect changed data when a run is resumed.
    pub fn fingerprint(&self) -> u64 {
        let sentences = self.words.iter().zip(&self.tags);
        let add = |hash: Fingerprint, (words, tags): (&Vec<String>, &Vec<u32>)| {
            hash.add_strings(words).add_ids(tags)
        };
        sentences.fold(Fingerprint::new(), add).finish()
    }
}

/// A data set of tagged sentences with the splits that it defines.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TaggedCorpus {
    /// The training split.
    pub train: TaggedSentences,
    /// The validation split, if the data set defines one.
    pub validation: Option<TaggedSentences>,
    /// The test split, if the data set defines one.
    pub test: Option<TaggedSentences>,
    /// The tag names: `O`, then `B-` and `I-` of each type in alphabetical order.
    ///
    /// The first word of an entity has `B-`, the others `I-`.
    pub tags: Vec<String>,
    /// Remarks about the files for the user, one line each.
    pub notes: Vec<String>,
}

/// A tag in the scheme BIO or IOB1, with the type of its entity.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Tag<'a> {
    Outside,
    Begin(&'a str),
    Inside(&'a str),
}

/// How a tag is written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scheme {
    /// BIO or IOB1.
    Bio,
    /// With marks for the ends of entities and for single words.
    Bioes,
    /// In another form, such as `B_LOC` or `LOC-B`.
    Other,
    /// As the type of the entity alone, such as `LOC`.
    Type,
}

impl<'a> Tag<'a> {
    pub fn parse(tag: &'a str) -> Option<Self> {
        match tag.split_once('-') {
            None => ["O", "o"].contains(&tag).then_some(Self::Outside),
            Some((_, "")) => None,
            Some(("B" | "b", entity)) => Some(Self::Begin(entity)),
            Some(("I" | "i", entity)) => Some(Self::Inside(entity)),
            Some(_) => None,
        }
    }

    /// Parses a tag in any scheme.
    ///
    /// In BIOES and its relatives, a single word begins an entity, and the end of an entity is inside. The type may also
    /// follow an underscore, or come first, as in `LOC-B`.
    pub fn parse_any(tag: &'a str) -> Option<(Self, Scheme)> {
        let with = |role: &str, entity: &'a str| match role {
            _ if entity.is_empty() => None,
            "B" | "S" | "U" | "W" => Some(Self::Begin(entity)),
            "I" | "E" | "L" | "M" => Some(Self::Inside(entity)),
            _ => None,
        };
        let bioes = || tag.split_once('-').and_then(|(role, entity)| with(role, entity));
        let other = || {
            let first = tag.split_once('_').and_then(|(role, entity)| with(role, entity));
            first.or_else(|| tag.rsplit_once(['-', '_']).and_then(|(entity, role)| with(role, entity)))
        };
        let bio = Self::parse(tag).map(|tag| (tag, Scheme::Bio));
        bio.or_else(|| bioes().map(|tag| (tag, Scheme::Bioes))).or_else(|| Some((other()?, Scheme::Other)))
    }

    /// The type of the entity that the word belongs to.
    pub fn entity(self) -> Option<&'a str> {
        match self {
            Self::Outside => None,
            Self::Begin(entity) | Self::Inside(entity) => Some(entity),
        }
    }
}

impl std::fmt::Display for Tag<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Outside => write!(f, "O"),
            Self::Begin(entity) => write!(f, "B-{entity}"),
            Self::Inside(entity) => write!(f, "I-{entity}"),
        }
    }
}

/// `O`, then `B-` and `I-` of each type.
pub(super) fn tag_names<'a>(types: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let of_type = |entity| ["B", "I"].map(|prefix| format!("{prefix}-{entity}"));
    std::iter::once("O".into()).chain(types.into_iter().flat_map(of_type)).collect()
}
