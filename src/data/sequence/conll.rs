//! The format of the CoNLL shared tasks: one word per line, its tag last, a blank line between sentences.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::tagged::{Tag, TaggedCorpus, TaggedSentences, tag_names};
use crate::data::text::TextFile;

/// Reads the data set in `dir` as [`load`](super::load) describes.
pub(super) fn read_dir(dir: &Path) -> Result<TaggedCorpus> {
    let mut notes = Vec::new();
    let [train, dev, test] = find(dir)?;
    let Some(train) = train else {
        bail!(
            "{}: no training file, expected a name like train.txt, eng.train or my-train.conll",
            dir.display()
        )
    };
    let train = TextFile::read(train, &mut notes)?;
    let sentences = sentences(&train, &mut notes)?;
    let types: BTreeSet<&str> = sentences.iter().flatten().filter_map(|token| token.tag.entity()).collect();
    if types.is_empty() {
        return Err(train.error("no entities"));
    }
    let types: Vec<&str> = types.into_iter().collect();
    let mut read = |path: Option<PathBuf>| {
        path.map(|path| {
            let file = TextFile::read(path, &mut notes)?;
            encode(&file, self::sentences(&file, &mut notes)?, &types)
        })
        .transpose()
    };
    let (validation, test) = (read(dev)?, read(test)?);
    let tags = tag_names(types.iter().copied());
    Ok(TaggedCorpus { train: encode(&train, sentences, &types)?, validation, test, tags, notes })
}

/// The files of training, validation and test split, found by their names.
fn find(dir: &Path) -> Result<[Option<PathBuf>; 3]> {
    const EXTENSIONS: [&str; 7] = ["txt", "conll", "tsv", "bio", "iob", "iob2", "annotated"];
    const SPLITS: [(&str, &[&str]); 3] =
        [("training", &["train"]), ("validation", &["dev", "valid", "testa"]), ("test", &["test"])];
    let entries = fs::read_dir(dir).with_context(|| format!("{}: can't be read", dir.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    paths.sort();
    let mut found = [const { None::<PathBuf> }; 3];
    for path in paths.into_iter().filter(|path| path.is_file()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let relevant = match name.rsplit_once('.') {
            Some((stem, extension)) if EXTENSIONS.contains(&extension) => stem,
            Some((_, extension)) => extension,
            None => &name,
        };
        let split = SPLITS.iter().position(|(_, words)| words.iter().any(|word| relevant.contains(word)));
        let Some(split) = split else { continue };
        if let Some(other) = &found[split] {
            let [other, name] = [other, &path].map(|path| path.file_name().unwrap_or_default().display());
            bail!(
                "{}: {other} and {name} both look like the {} file, expected one",
                dir.display(),
                SPLITS[split].0
            );
        }
        found[split] = Some(path);
    }
    Ok(found)
}

struct Token<'a> {
    line: usize,
    word: &'a str,
    tag: Tag<'a>,
}

/// Parses the sentences of `file`, with tags in BIO.
fn sentences<'a>(file: &'a TextFile, notes: &mut Vec<String>) -> Result<Vec<Vec<Token<'a>>>> {
    let mut sentences = Vec::new();
    let mut sentence = Vec::new();
    let mut columns_before = None;
    for (line, text) in file.lines() {
        if text.starts_with("-DOCSTART-") || text.trim_ascii().is_empty() {
            if !sentence.is_empty() {
                sentences.push(std::mem::take(&mut sentence));
            }
            continue;
        }
        let columns: Vec<&str> = match text.contains('\t') {
            true => text.split('\t').map(str::trim_ascii).collect(),
            false => text.split_ascii_whitespace().collect(),
        };
        let (first_line, expected) = *columns_before.get_or_insert((line, columns.len()));
        let [word, .., tag] = columns[..] else {
            return Err(
                file.error_at(line, format!("no tag after {:?}, expected a word and a tag", columns[0]))
            );
        };
        if word.is_empty() || tag.is_empty() {
            let missing = if word.is_empty() { "word" } else { "tag" };
            return Err(file.error_at(line, format!("an empty {missing}, expected a word and a tag")));
        }
        if columns.len() != expected {
            let found = columns.len();
            let message = format!("{found} columns, expected {expected} as in line {first_line}");
            return Err(file.error_at(line, message));
        }
        let Some(tag) = Tag::parse(tag) else {
            return Err(file.error_at(line, format!("tag {tag:?}, expected O, B-TYPE or I-TYPE")));
        };
        sentence.push(Token { line, word, tag });
    }
    if !sentence.is_empty() {
        sentences.push(sentence);
    }
    if sentences.is_empty() {
        return Err(file.error("no sentences"));
    }
    to_bio(file, &mut sentences, notes)?;
    Ok(sentences)
}

/// Converts IOB1 to BIO.
///
/// In BIO, every entity begins with `B-`. In IOB1, an entity begins with `I-` unless it directly follows another of its
/// type. So the first tag of any entity that does not follow another reveals the scheme; a file with both is an error.
fn to_bio(file: &TextFile, sentences: &mut [Vec<Token>], notes: &mut Vec<String>) -> Result<()> {
    let (mut iob1, mut bio) = (None, None);
    for sentence in &mut *sentences {
        let mut before = None;
        for Token { line, tag, .. } in sentence {
            let entity = tag.entity();
            if entity != before {
                match *tag {
                    Tag::Outside => {}
                    Tag::Begin(_) => _ = bio.get_or_insert(*line),
                    Tag::Inside(entity) => {
                        iob1.get_or_insert(*line);
                        *tag = Tag::Begin(entity);
                    }
                }
            }
            before = entity;
        }
    }
    match (iob1, bio) {
        (Some(iob1), Some(bio)) => Err(file.error_at(
            iob1,
            format!("an entity begins with I- as in IOB1, but in line {bio} with B- as in BIO; expected one scheme"),
        )),
        (Some(_), None) => {
            notes.push(format!("{}: tagged in IOB1, converted to BIO", file.path.display()));
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Replaces the tags by their indices.
fn encode(file: &TextFile, sentences: Vec<Vec<Token>>, types: &[&str]) -> Result<TaggedSentences> {
    let mut tagged = TaggedSentences::default();
    for sentence in sentences {
        let tag = |token: &Token| match token.tag.entity().map(|entity| types.binary_search(&entity)) {
            None => Ok(0),
            Some(Ok(at)) => Ok(2 * at as u32 + if matches!(token.tag, Tag::Begin(_)) { 1 } else { 2 }),
            Some(Err(_)) => {
                let entity = token.tag.entity().unwrap_or_default();
                Err(file.error_at(token.line, format!("type {entity:?}, which the training set lacks")))
            }
        };
        tagged.tags.push(sentence.iter().map(tag).collect::<Result<_>>()?);
        tagged.words.push(sentence.iter().map(|token| token.word.into()).collect());
    }
    Ok(tagged)
}
