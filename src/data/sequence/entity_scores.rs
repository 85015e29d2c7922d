//! Precision, recall and F1 of entities, counted like CoNLL's conlleval.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::data::{count, quoted};
use anyhow::{Context, Result, ensure};

use super::tagged::Tag;

/// Numbers of entities.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EntityCounts {
    /// Entities in the gold tags.
    pub gold: usize,
    /// Entities in the predicted tags.
    pub predicted: usize,
    /// Predicted entities that are also gold: the same words and type.
    pub correct: usize,
}

impl EntityCounts {
    /// The fraction of the predicted entities that are correct; 0 without predictions.
    pub fn precision(&self) -> f64 {
        ratio(self.correct, self.predicted)
    }

    /// The fraction of the gold entities that were predicted; 0 without entities.
    pub fn recall(&self) -> f64 {
        ratio(self.correct, self.gold)
    }

    /// The harmonic mean of precision and recall; 0 if both are 0.
    pub fn f1(&self) -> f64 {
        ratio(2 * self.correct, self.gold + self.predicted)
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// The counts of all entities and of each type.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EntityScores {
    /// The counts of all entities.
    pub overall: EntityCounts,
    /// The counts of each type that occurs in the gold or the predicted tags.
    pub types: BTreeMap<String, EntityCounts>,
}

/// Compares the `predicted` with the `gold` tags of each sentence, indices into `tags`.
///
/// An entity begins at `B-`, at `I-` after `O`, and at `I-` of another type than the previous word's. It extends over
/// every following `I-` of its type. These are the rules of conlleval (Tjong Kim Sang and Buchholz, CoNLL-2000), for
/// BIO and for a tagger's imperfect BIO.
///
/// # Errors
/// Fails if the lengths differ, a tag is not an index into `tags`, or one of `tags` is not `O`, `B-TYPE` or `I-TYPE`.
pub fn entity_scores(gold: &[Vec<u32>], predicted: &[Vec<u32>], tags: &[String]) -> Result<EntityScores> {
    let tags = tags.iter().map(|tag| {
        Tag::parse(tag).with_context(|| format!("tag {}, expected O, B-TYPE or I-TYPE", quoted(tag)))
    });
    let tags: Vec<Tag> = tags.collect::<Result<_>>()?;
    ensure!(
        gold.len() == predicted.len(),
        "found predicted tags of {}, expected {}",
        count(predicted.len(), "sentence"),
        gold.len()
    );
    let mut scores = EntityScores::default();
    for (at, (gold, predicted)) in gold.iter().zip(predicted).enumerate() {
        ensure!(
            gold.len() == predicted.len(),
            "sentence {at}: found {}, expected {}",
            count(predicted.len(), "predicted tag"),
            gold.len()
        );
        let [gold, predicted] = [entities(gold, &tags)?, entities(predicted, &tags)?];
        let mut update = |kind: &str, add: fn(&mut EntityCounts)| {
            add(&mut scores.overall);
            add(scores.types.entry(kind.into()).or_default());
        };
        for entity in &gold {
            update(entity.1, |counts| counts.gold += 1);
        }
        for entity in &predicted {
            update(entity.1, |counts| counts.predicted += 1);
            if gold.contains(entity) {
                update(entity.1, |counts| counts.correct += 1);
            }
        }
    }
    Ok(scores)
}

/// The words and the type of each entity of one sentence.
fn entities<'a>(ids: &[u32], tags: &[Tag<'a>]) -> Result<Vec<(Range<usize>, &'a str)>> {
    let mut entities: Vec<(Range<usize>, &str)> = Vec::new();
    for (at, &id) in ids.iter().enumerate() {
        let tag = tags
            .get(id as usize)
            .with_context(|| format!("tag {id}, expected one of {}", count(tags.len(), "tag")))?;
        match (*tag, entities.last_mut()) {
            (Tag::Outside, _) => {}
            (Tag::Inside(entity), Some((words, before))) if words.end == at && *before == entity => {
                words.end += 1
            }
            (Tag::Begin(entity) | Tag::Inside(entity), _) => entities.push((at..at + 1, entity)),
        }
    }
    Ok(entities)
}
