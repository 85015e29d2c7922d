//! The format of the CoNLL shared tasks: one word per line, its tag last, a blank line between sentences.

use crate::data::count;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::tagged::{Tag, TaggedCorpus, TaggedSentences, tag_names};
use crate::data::splits::Splits;
use crate::data::text::{TextFile, counted_lines};

const EXTENSIONS: [&str; 7] = ["txt", "conll", "tsv", "bio", "iob", "iob2", "annotated"];

/// Reads the data set in `dir` as [`load`](super::load) describes, or with `known` tags only its test split.
pub(super) fn read_dir(dir: &Path, known: Option<&[String]>) -> Result<TaggedCorpus> {
    let mut notes = Vec::new();
    let splits = Splits::find_by_words(dir, &EXTENSIONS)?;
    let expected = "a name like train.txt, eng.train or my-train.conll";
    let Splits { train, validation, test, .. } = splits.choose(dir, expected, known.is_some(), &mut notes)?;
    let train = train.map(|path| TextFile::read(path, &mut notes)).transpose()?;
    let training = train.as_ref().map(|file| sentences(file, &mut notes)).transpose()?;
    let types: BTreeSet<&str> = match known {
        Some(tags) => tags.iter().filter_map(|tag| Tag::parse(tag)?.entity()).collect(),
        None => training.iter().flatten().flatten().filter_map(|token| token.tag.entity()).collect(),
    };
    let types: Vec<&str> = types.into_iter().collect();
    if let (Some(train), []) = (&train, &types[..]) {
        return Err(train.error("no entities"));
    }
    let mut read = |path: Option<PathBuf>| {
        let read = |path| {
            let file = TextFile::read(path, &mut notes)?;
            encode(&file, sentences(&file, &mut notes)?, &types)
        };
        path.map(read).transpose()
    };
    let (validation, test) = (read(validation)?, read(test)?);
    let train = match (&train, training) {
        (Some(file), Some(sentences)) => encode(file, sentences, &types)?,
        _ => TaggedSentences::default(),
    };
    let tags = tag_names(types.iter().copied());
    Ok(TaggedCorpus { train, validation, test, tags, notes })
}

struct Token<'a> {
    line: usize,
    word: &'a str,
    tag: Tag<'a>,
}

fn columns(line: &str) -> Vec<&str> {
    match line.contains('\t') {
        true => line.split('\t').map(str::trim_ascii).collect(),
        false => line.split_ascii_whitespace().collect(),
    }
}

/// Whether a line ends a sentence or a document.
fn is_end(line: &str) -> bool {
    line.starts_with("-DOCSTART-") || line.trim_ascii().is_empty()
}

/// Where the lines of a file have words and tags.
struct Layout {
    /// Whether a column of counts precedes the words.
    is_counted: bool,
    /// Number of columns from the words on, and the line that has them.
    width: usize,
    first_line: usize,
}

impl Layout {
    fn of(file: &TextFile) -> Self {
        let is_counted = is_counted(file);
        let lines = || file.lines().filter(|(_, line)| !is_end(line));
        let first = lines().find(|(_, line)| !line.starts_with('#')).or_else(|| lines().next());
        let mut layout = Self { is_counted, width: usize::MAX, first_line: 0 };
        if let Some((number, line)) = first {
            (layout.first_line, layout.width) = (number, used(&layout.columns(line)));
        }
        layout
    }

    /// The columns from the word on, without surplus empty ones at the end.
    fn columns<'a>(&self, line: &'a str) -> Vec<&'a str> {
        let mut columns = columns(line);
        columns.drain(..columns.len().min(usize::from(self.is_counted)));
        if used(&columns) <= self.width {
            columns.truncate(self.width);
        }
        columns
    }

    /// Whether a line is no word. The word `#` with its tag looks like a comment; the number of columns decides.
    fn is_comment(&self, line: &str, columns: &[&str]) -> bool {
        match self.is_counted {
            true => {
                line.starts_with('#') || is_between(line.split_ascii_whitespace().next().unwrap_or_default())
            }
            false => {
                let has_tag = columns.last().is_some_and(|tag| Tag::parse_any(tag).is_some());
                line.starts_with("# ") && !(columns.len() == self.width && has_tag)
            }
        }
    }
}

/// Number of columns up to the last that is not empty.
fn used(columns: &[&str]) -> usize {
    columns.iter().rposition(|cell| !cell.is_empty()).map_or(0, |last| last + 1)
}

/// Whether the first of three or more columns counts: words or sentences, in the whole file or anew in each sentence.
fn is_counted(file: &TextFile) -> bool {
    let (mut before, mut first, mut words) = (None, None, 0);
    for (_, line) in file.lines().filter(|(_, line)| !line.starts_with('#')) {
        if is_end(line) {
            before = None;
            continue;
        }
        let columns = columns(line);
        if is_between(columns[0]) {
            continue;
        }
        let Ok(number) = columns[0].parse::<u64>() else { return false };
        let is_next = before.is_none_or(|before: u64| [before, before.saturating_add(1)].contains(&number));
        if !is_next || columns.len() < 3 {
            return false;
        }
        (before, words) = (Some(number), words + 1);
        first.get_or_insert(number);
    }
    // A short file may hold nothing but numbers.
    first.is_some_and(|first| first <= 1 || words >= 3)
}

/// Whether a line of CoNLL-U is not a word: it covers several, such as 3-4, or is left out in the text, such as 8.1.
fn is_between(number: &str) -> bool {
    let parts = number.split_once(['-', '.']);
    parts.is_some_and(|(a, b)| a.parse::<u64>().is_ok() && b.parse::<u64>().is_ok())
}

/// Parses the sentences of `file`, with tags in BIO.
fn sentences<'a>(file: &'a TextFile, notes: &mut Vec<String>) -> Result<Vec<Vec<Token<'a>>>> {
    let layout = Layout::of(file);
    if layout.is_counted {
        let path = file.path.display();
        notes.push(format!("{path}: the first column counts, so the words are read from the second"));
    }
    let (mut sentences, mut sentence) = (vec![], vec![]);
    let (mut has_ends, mut is_bioes) = (false, false);
    for (line, text) in file.lines() {
        let columns = layout.columns(text);
        if is_end(text) || layout.is_counted && columns.first() == Some(&"-DOCSTART-") {
            has_ends = true;
            if !sentence.is_empty() {
                sentences.push(std::mem::take(&mut sentence));
            }
            continue;
        }
        if layout.is_comment(text, &columns) {
            continue;
        }
        let [word, .., name] = columns[..] else {
            return Err(
                file.error_at(line, format!("no tag after {:?}, expected a word and a tag", columns[0]))
            );
        };
        if word.is_empty() || name.is_empty() {
            let missing = if word.is_empty() { "word" } else { "tag" };
            return Err(file.error_at(line, format!("an empty {missing}, expected a word and a tag")));
        }
        if columns.len() != layout.width {
            let (found, Layout { width, first_line, .. }) = (count(columns.len(), "column"), &layout);
            let message = format!("{found}, expected {width} as in line {first_line}");
            return Err(file.error_at(line, message));
        }
        let Some(tag) = Tag::parse_any(name) else {
            return Err(file.error_at(line, format!("tag {name:?}, expected O, B-TYPE or I-TYPE")));
        };
        is_bioes |= Tag::parse(name).is_none();
        sentence.push(Token { line, word, tag });
    }
    if !sentence.is_empty() {
        sentences.push(sentence);
    }
    match &sentences[..] {
        [] => return Err(file.error("no sentences")),
        [only] if !has_ends && only.len() > LONG => {
            let words = only.len();
            let message =
                format!("one sentence of {words} words: are the blank lines between sentences missing?");
            return Err(file.error(message));
        }
        _ => {}
    }
    if is_bioes {
        notes.push(format!("{}: tagged in BIOES, converted to BIO", file.path.display()));
    }
    to_bio(file, &mut sentences, notes);
    Ok(sentences)
}

/// Number of words that no sentence has.
const LONG: usize = 150;

/// Converts IOB1 to BIO.
///
/// In BIO, every entity begins with `B-`. In IOB1, an entity begins with `I-` unless it directly follows another of its
/// type. A file with both is read as conlleval reads it: an entity begins either way.
fn to_bio(file: &TextFile, sentences: &mut [Vec<Token>], notes: &mut Vec<String>) {
    let (mut inside, mut begin) = (vec![], vec![]);
    for sentence in sentences {
        let mut before = None;
        for Token { line, tag, .. } in sentence {
            let entity = tag.entity();
            if entity != before {
                match *tag {
                    Tag::Outside => {}
                    Tag::Begin(_) => begin.push(*line),
                    Tag::Inside(entity) => {
                        inside.push(*line);
                        *tag = Tag::Begin(entity);
                    }
                }
            }
            before = entity;
        }
    }
    if inside.is_empty() {
        return;
    }
    let name = file.path.display();
    notes.push(match (inside.len() > begin.len(), &begin[..]) {
        (true, []) => format!("{name}: tagged in IOB1, converted to BIO"),
        (true, begin) => format!(
            "{name}: tagged in IOB1, converted to BIO; accepted {}",
            counted_lines(begin, "with B- where an entity begins")
        ),
        (false, _) => format!(
            "{name}: tagged in BIO; accepted {}",
            counted_lines(&inside, "with I- where an entity begins")
        ),
    });
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
