//! How well tagged entities are found, counted as CoNLL's conlleval counts.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context, Result, ensure};

use super::tagged::Tag;

/// How many entities there are, were found, and are rightly among the found: same words, same type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EntityCounts {
    pub gold: usize,
    pub predicted: usize,
    pub correct: usize,
}

impl EntityCounts {
    /// The share of the found entities that are right, 0 when none was found.
    pub fn precision(&self) -> f64 {
        share(self.correct, self.predicted)
    }

    /// The share of the entities that were found, 0 when there are none.
    pub fn recall(&self) -> f64 {
        share(self.correct, self.gold)
    }

    /// The harmonic mean of precision and recall, 0 when both are.
    pub fn f1(&self) -> f64 {
        share(2 * self.correct, self.gold + self.predicted)
    }
}

fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// The counts of all entities, and of those of each type that is in the gold or the predicted tags.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EntityScores {
    pub overall: EntityCounts,
    pub types: BTreeMap<String, EntityCounts>,
}

/// Compares `predicted` with `gold` tags, indices into `tags`, sentence by sentence.
///
/// An entity begins at `B-`, at `I-` after `O` and at `I-` of another type than the word before, and goes on over
/// every `I-` of its type: the rules of Tjong Kim Sang and Buchholz's conlleval (CoNLL-2000), for BIO and for what a
/// tagger makes of it.
///
/// # Errors
/// When the two differ in their lengths, a tag is not one of `tags`, or one of these is not `O`, `B-TYPE` or `I-TYPE`.
pub fn entity_scores(gold: &[Vec<u32>], predicted: &[Vec<u32>], tags: &[String]) -> Result<EntityScores> {
    let tags = tags
        .iter()
        .map(|tag| Tag::parse(tag).with_context(|| format!("tag {tag:?}, expected O, B-TYPE or I-TYPE")));
    let tags: Vec<Tag> = tags.collect::<Result<_>>()?;
    ensure!(
        gold.len() == predicted.len(),
        "{} sentences with predicted tags, expected {}",
        predicted.len(),
        gold.len()
    );
    let mut scores = EntityScores::default();
    for (at, (gold, predicted)) in gold.iter().zip(predicted).enumerate() {
        ensure!(
            gold.len() == predicted.len(),
            "sentence {at}: {} predicted tags, expected {}",
            predicted.len(),
            gold.len()
        );
        let [gold, predicted] = [entities(gold, &tags)?, entities(predicted, &tags)?];
        let mut count = |entity: &str, add: fn(&mut EntityCounts)| {
            add(&mut scores.overall);
            add(scores.types.entry(entity.into()).or_default());
        };
        for found in &gold {
            count(found.1, |counts| counts.gold += 1);
        }
        for found in &predicted {
            count(found.1, |counts| counts.predicted += 1);
            if gold.contains(found) {
                count(found.1, |counts| counts.correct += 1);
            }
        }
    }
    Ok(scores)
}

/// The words and the type of each entity of one sentence.
fn entities<'a>(ids: &[u32], tags: &[Tag<'a>]) -> Result<Vec<(Range<usize>, &'a str)>> {
    let mut entities: Vec<(Range<usize>, &str)> = Vec::new();
    for (at, &id) in ids.iter().enumerate() {
        let tag =
            tags.get(id as usize).with_context(|| format!("tag {id}, expected 0 to {}", tags.len() - 1))?;
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
