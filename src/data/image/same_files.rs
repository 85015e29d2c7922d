//! Image files with the same content.

use super::images::Images;
use candle_core::Result;
use std::collections::HashMap;

/// Returns notes on test images that the training part has, and on images that are in two classes.
///
/// The images of the second set follow those of the first: `training` and `test` are indices of both. There are no notes on
/// images in memory.
///
/// # Errors
/// Fails if a file can't be read.
pub fn note_same_files(sets: [&Images; 2], training: &[u32], test: &[u32]) -> Result<Vec<String>> {
    let [first, second] = sets;
    let image = |index: u32| match (index as usize).checked_sub(first.len()) {
        Some(index) => (second, index),
        None => (first, index as usize),
    };
    let mut contents = vec![];
    for set in sets {
        contents.extend_from_slice(set.file_contents()?);
    }
    if contents.is_empty() {
        return Ok(vec![]);
    }
    let label = |index: u32| {
        let (set, index) = image(index);
        set.labels()[index]
    };
    let content = |index: u32| contents[index as usize];
    let known: HashMap<u64, u32> = training.iter().rev().map(|&index| (content(index), index)).collect();
    let twins = |index: &u32| Some((*index, *known.get(&content(*index))?));
    let in_test: Vec<(u32, u32)> = test.iter().filter_map(twins).collect();
    let mut all = HashMap::new();
    let twins = |index: u32| Some((index, *all.entry(content(index)).or_insert(index)));
    let in_classes: Vec<(u32, u32)> = (0..contents.len() as u32)
        .filter_map(twins)
        .filter(|&(index, other)| label(index) != label(other))
        .collect();
    let such_as = |&(index, other): &(u32, u32)| {
        let [path, other] = [index, other].map(|index| {
            let (set, index) = image(index);
            set.path(index).map(|path| path.display().to_string()).unwrap_or_default()
        });
        format!("such as {path}, the same file as {other}")
    };
    let test_note = in_test.first().map(|twins| {
        let (found, all) = (in_test.len(), test.len());
        format!("test images that are also in the training part: {found} of {all}, {}", such_as(twins))
    });
    let class_note = in_classes.first().map(|twins| {
        format!("images that are also in another class: {}, {}", in_classes.len(), such_as(twins))
    });
    Ok([test_note, class_note].into_iter().flatten().collect())
}
