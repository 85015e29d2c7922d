//! The CoNLL format: one word per line, its tag last, a blank line between sentences.

use crate::data::{count, quoted};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::tagged::{Scheme, Tag, TaggedCorpus, TaggedSentences, tag_names};
use crate::data::splits::Splits;
use crate::data::text::{TextFile, composed, counted_lines, note_twins};

const EXTENSIONS: [&str; 7] = ["txt", "conll", "tsv", "bio", "iob", "iob2", "annotated"];

/// Reads the data set in `dir` like [`load`](super::load), or only its test split if `known` has tags.
pub(super) fn read_dir(dir: &Path, known: Option<&[String]>) -> Result<TaggedCorpus> {
    let mut notes = Vec::new();
    let splits = Splits::find_by_words(dir, &EXTENSIONS)?;
    let expected = "a name like train.txt, eng.train or my-train.conll";
    let training_file = splits.train.clone();
    let Splits { train, validation, test, .. } = splits.choose(dir, expected, known.is_some(), &mut notes)?;
    let train = train.map(|path| TextFile::read(path, &mut notes)).transpose()?;
    let layout = match &train {
        Some(file) => Some(Layout::of(file, None)?),
        // A test alone needs no training file, but if there is one, reads its words from the same column.
        None => training_file
            .and_then(|path| TextFile::read(path, &mut vec![]).and_then(|file| Layout::of(&file, None)).ok()),
    };
    let training = train.as_ref().zip(layout.as_ref());
    let training = training.map(|(file, layout)| sentences(file, layout, &mut notes)).transpose()?;
    let types: BTreeSet<&str> = match known {
        Some(tags) => tags.iter().filter_map(|tag| Tag::parse(tag)?.entity()).collect(),
        None => training.iter().flatten().flatten().filter_map(|token| token.tag.entity()).collect(),
    };
    let types: Vec<&str> = types.into_iter().collect();
    if let (Some(train), []) = (&train, &types[..]) {
        return Err(train.error("no entities"));
    }
    notes.extend(note_twins("types", &types).filter(|_| known.is_none()));
    let mut read = |path: Option<PathBuf>| {
        let read = |path| {
            let file = TextFile::read(path, &mut notes)?;
            let layout = Layout::of(&file, layout.as_ref())?;
            encode(&file, sentences(&file, &layout, &mut notes)?, &types)
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

/// The words of a text in the CoNLL format.
#[cfg(feature = "cli")]
pub(crate) struct Words {
    /// The words of each sentence.
    pub sentences: Vec<Vec<String>>,
    layout: Layout,
}

#[cfg(feature = "cli")]
impl Words {
    /// Reads the words of `file`; `None` if it is not in the CoNLL format.
    ///
    /// Two or more lines with the same number of columns, the last one a tag, are. Without tabs they also need an entity
    /// or a third line: two sentences may end with the word O. After a text `before` in this format, one line is enough.
    ///
    /// # Errors
    /// Fails if it is in this format except for some lines.
    pub fn read(file: &TextFile, before: Option<&Self>) -> Result<Option<Self>> {
        let is_header = |columns: &[&str]| matches!(columns, [word, .., tag] if is_header(word, tag));
        let is_comment = |line: &str, columns: &[&str]| line.starts_with('#') && last_tag(columns).is_none();
        let lines = file.lines().filter(|(_, line)| !is_end(line)).map(|(_, line)| (line, columns(line)));
        let rows = lines.filter(|(line, columns)| !is_header(columns) && !is_comment(line, columns));
        let rows: Vec<Vec<&str>> = rows.map(|(_, columns)| columns).collect();
        let width = rows.first().map_or(0, Vec::len);
        let layout = Layout::of(file, before.map(|before| &before.layout));
        let has_types = layout.as_ref().is_ok_and(|layout| layout.has_types);
        let other = has_types.then_some(Tag::Outside);
        let tagged = rows.iter().filter(|columns| columns.len() == width);
        let tags: Vec<Tag> = tagged.filter_map(|columns| last_tag(columns).or(other)).collect();
        let is_entity = |tag: &Tag| tag.entity().is_some();
        let is_clear = match tags.len() {
            0 => false,
            1 => before.is_some(),
            2 => before.is_some() || file.text.contains('\t') || tags.iter().any(is_entity),
            _ => true,
        };
        if !is_clear || 20 * tags.len() < 19 * rows.len() {
            return Ok(None);
        }
        let layout = layout?;
        let sentences = sentences(file, &layout, &mut vec![])?;
        let words = |sentence: Vec<Token>| sentence.iter().map(|token| composed(token.word).into()).collect();
        Ok(Some(Self { sentences: sentences.into_iter().map(words).collect(), layout }))
    }

    /// The number of the words' column, from 1.
    pub fn column(&self) -> usize {
        self.layout.before.len() + 1
    }

    /// Whether a line may be a part of a text in the CoNLL format: a comment, or columns of a word and its tag.
    pub fn may_have(line: &str) -> bool {
        line.starts_with("# ") || line.starts_with("#\t") || last_tag(&columns(line)).is_some()
    }
}

/// The tag in the last of two or more columns.
#[cfg(feature = "cli")]
fn last_tag<'a>(columns: &[&'a str]) -> Option<Tag<'a>> {
    match columns[..used(columns)] {
        [_, .., tag] => Tag::parse_any(tag).map(|(tag, _)| tag),
        _ => None,
    }
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
    const DOCUMENT: &str = "-DOCSTART-";
    line.trim_ascii().is_empty() || line.contains(DOCUMENT) && columns(line).contains(&DOCUMENT)
}

/// The columns of words and tags in a file.
#[derive(Clone)]
struct Layout {
    /// The content of each of the columns before the words.
    before: Vec<Leading>,
    /// Number of columns from the words on, and the line that has them.
    width: usize,
    first_line: usize,
    /// Whether the last column holds the tags of entities within those of the column before.
    is_nested: bool,
    /// Whether the tags are O and types alone, such as PER.
    has_types: bool,
}

/// The content of a column before the words.
#[derive(Clone, Copy, PartialEq)]
enum Leading {
    /// Numbers of the words or sentences, counted through the file or per sentence.
    Count,
    /// The same in all lines of a sentence, such as the name of a document.
    Constant,
    /// Positions in a text.
    Offset,
    /// A name of each word, such as tok17 or 3-2.
    Id,
}

impl Layout {
    /// Finds the layout of a file. If the training file has the same number of columns, `training` applies.
    fn of(file: &TextFile, training: Option<&Self>) -> Result<Self> {
        let lines = || file.lines().filter(|(_, line)| !is_end(line));
        let first = lines().find(|(_, line)| !line.starts_with('#')).or_else(|| lines().next());
        let (first_line, width) = first.map_or((0, 0), |(number, line)| (number, used(&columns(line))));
        // A short file may not show what its columns hold.
        let same = training.filter(|training| training.before.len() + training.width == width);
        let mut before = same.map_or(vec![], |training| training.before.clone());
        if same.is_none() {
            while let Some(column) = leading(file, before.len())? {
                before.push(column);
            }
        }
        let width = width - before.len();
        // As in GermEval 2014: number, word, outer tag, inner tag.
        let may_be_nested = width == 3 && before.contains(&Leading::Count);
        let is_nested = match same {
            Some(training) => training.is_nested,
            None => may_be_nested && is_nested(file, before.len()),
        };
        let has_types = width == 2 && has_types(file);
        Ok(Self { width, before, first_line, is_nested, has_types })
    }

    /// A note about the columns before the words and about nested tags, if there are any.
    fn note(&self) -> Option<String> {
        let what = |(number, column)| match column {
            Leading::Count => format!("column {number} counts"),
            Leading::Constant => format!("column {number} is the same throughout each sentence"),
            Leading::Offset => format!("column {number} holds offsets"),
            Leading::Id => format!("column {number} holds an id of each word"),
        };
        let found: Vec<String> = (1..).zip(self.before.iter().copied()).map(what).collect();
        let word = found.len() + 1;
        let nested = match self.is_nested {
            true => format!("; the tags are read from column {}, without those within entities", word + 1),
            false => String::new(),
        };
        (word > 1).then(|| format!("{}, so the words are read from column {word}{nested}", found.join(", ")))
    }

    /// The columns from the word on, without surplus empty ones at the end.
    fn columns<'a>(&self, line: &'a str) -> Vec<&'a str> {
        let mut columns = columns(line);
        columns.drain(..columns.len().min(self.before.len()));
        if used(&columns) <= self.width {
            columns.truncate(self.width);
        }
        columns
    }

    /// Whether a line is not a word. The word `#` with its tag looks like a comment; the number of columns decides.
    fn is_comment(&self, line: &str, found: &[&str]) -> bool {
        if self.before.is_empty() {
            let has_tag = found.last().is_some_and(|tag| Tag::parse_any(tag).is_some());
            return line.starts_with("# ") && !(found.len() == self.width && has_tag);
        }
        let counted = self.before.iter().position(|column| *column == Leading::Count);
        let number = counted.and_then(|at| columns(line).get(at).copied());
        line.starts_with('#') || number.is_some_and(is_between)
    }
}

/// Whether all lines of a file have two tags after the word, the last ones with types of the others.
fn is_nested(file: &TextFile, word: usize) -> bool {
    let mut types = [HashSet::new(), HashSet::new()];
    for (_, line) in file.lines().filter(|(_, line)| !is_end(line) && !line.starts_with('#')) {
        for (types, tag) in types.iter_mut().zip(columns(line).into_iter().skip(word + 1)) {
            let Some((tag, _)) = Tag::parse_any(tag) else { return false };
            types.extend(tag.entity());
        }
    }
    let [outer, inner] = types;
    !outer.is_empty() && inner.is_subset(&outer)
}

/// Whether the last column has O, and less often each of some types without `B-` and `I-`.
///
/// A type has two letters or more, as single ones may be parts of speech. `BPER` and `IPER` are no types.
fn has_types(file: &TextFile) -> bool {
    let mut counts = HashMap::<&str, usize>::new();
    for (_, line) in file.lines().filter(|(_, line)| !is_end(line) && !line.starts_with("# ")) {
        let columns = columns(line);
        match columns[..used(&columns)] {
            [word, .., tag] if !is_header(word, tag) => *counts.entry(tag).or_default() += 1,
            _ => {}
        }
    }
    let outside = counts.remove("O").unwrap_or(0);
    let is_word = |tag: &str| {
        tag.len() > 1
            && tag.starts_with(char::is_alphabetic)
            && tag.chars().all(|c| c.is_alphanumeric() || c == '_')
    };
    let is_inside = |tag: &str| counts.contains_key(format!("I{tag}").as_str());
    let is_type = |tag: &str| {
        is_word(tag) && Tag::parse_any(tag).is_none() && !tag.strip_prefix('B').is_some_and(is_inside)
    };
    !counts.is_empty() && counts.iter().all(|(tag, count)| *count <= outside && is_type(tag))
}

/// Number of columns up to the last that is not empty.
fn used(columns: &[&str]) -> usize {
    columns.iter().rposition(|cell| !cell.is_empty()).map_or(0, |last| last + 1)
}

/// The content of the column `at` if it comes before the words.
///
/// Two or more columns follow it, and words do not look like its cells.
///
/// # Errors
/// Fails for a column of numbers that are neither counts nor offsets.
fn leading(file: &TextFile, at: usize) -> Result<Option<Leading>> {
    let mut sentences = vec![vec![]];
    for (_, line) in file.lines().filter(|(_, line)| !line.starts_with('#')) {
        if is_end(line) {
            sentences.push(vec![]);
            continue;
        }
        let columns = columns(line);
        let Some(&cell) = columns.get(at).filter(|_| columns.len() >= at + 3) else { return Ok(None) };
        sentences.last_mut().unwrap_or(&mut vec![]).push(cell);
    }
    let words: usize = sentences.iter().map(Vec::len).sum();
    let pairs = || sentences.iter().flat_map(|cells| cells.windows(2));
    let is_place = sentences.iter().flatten().all(|cell| offset(cell).is_some());
    Ok(if counts(&sentences) {
        Some(Leading::Count)
    } else if pairs().count() >= 3 && pairs().all(|pair| pair[0] == pair[1]) {
        Some(Leading::Constant)
    } else if is_place && pairs().count() >= 2 && pairs().all(|pair| offset(pair[0]) < offset(pair[1])) {
        Some(Leading::Offset)
    } else if is_place && words >= 10 {
        let number = at + 1;
        return Err(file.error(format!(
            "column {number} holds nothing but numbers, expected words: remove it if the words are in another column"
        )));
    } else if words >= 3 && 20 * ids(&sentences) >= 19 * words {
        Some(Leading::Id)
    } else {
        None
    })
}

/// Whether the cells of each sentence count words or sentences, through the file or per sentence.
fn counts(sentences: &[Vec<&str>]) -> bool {
    let (mut first, mut words) = (None, 0);
    for cells in sentences {
        let mut before = None;
        for cell in cells.iter().filter(|cell| !is_between(cell)) {
            let Ok(number) = cell.parse::<u64>() else { return false };
            if before.is_some_and(|before: u64| ![before, before.saturating_add(1)].contains(&number)) {
                return false;
            }
            (before, words) = (Some(number), words + 1);
            first.get_or_insert(number);
        }
    }
    // A short file may consist of numbers only.
    first.is_some_and(|first| first <= 1 || words >= 3)
}

/// Number of cells with a digit that occur once in their sentence.
fn ids(sentences: &[Vec<&str>]) -> usize {
    let distinct = |cells: &Vec<&str>| {
        let numbered = cells.iter().filter(|cell| cell.contains(|c: char| c.is_ascii_digit()));
        numbered.collect::<HashSet<_>>().len()
    };
    sentences.iter().map(distinct).sum()
}

/// The position that a cell such as 17, 17-20 or 17:20 begins at.
fn offset(cell: &str) -> Option<u64> {
    let (start, end) = cell.split_once(['-', ':', ',']).unwrap_or((cell, cell));
    let (start, end): (u64, u64) = (start.parse().ok()?, end.parse().ok()?);
    (start <= end).then_some(start)
}

/// Whether a line of CoNLL-U is not a word.
///
/// It covers several, such as 3-4, or is absent from the text, such as 8.1.
fn is_between(number: &str) -> bool {
    let parts = number.split_once(['-', '.']);
    parts.is_some_and(|(a, b)| a.parse::<u64>().is_ok() && b.parse::<u64>().is_ok())
}

/// Parses the sentences of `file`, with tags in BIO.
fn sentences<'a>(
    file: &'a TextFile,
    layout: &Layout,
    notes: &mut Vec<String>,
) -> Result<Vec<Vec<Token<'a>>>> {
    notes.extend(layout.note().map(|note| format!("{}: {note}", file.path.display())));
    let (mut sentences, mut sentence) = (vec![], vec![]);
    let (mut has_ends, mut schemes) = (false, Schemes::default());
    for (line, text) in file.lines() {
        let columns = layout.columns(text);
        if is_end(text) {
            has_ends = true;
            if !sentence.is_empty() {
                sentences.push(std::mem::take(&mut sentence));
            }
            continue;
        }
        if layout.is_comment(text, &columns) {
            continue;
        }
        let [word, .., mut name] = columns[..] else {
            // In place of a word there may be columns that come before the words.
            let word = quoted(columns.first().unwrap_or(&text.trim_ascii()));
            return Err(file.error_at(line, format!("no tag after {word}, expected a word and a tag")));
        };
        if word.is_empty() || name.is_empty() {
            let missing = if word.is_empty() { "word" } else { "tag" };
            return Err(file.error_at(line, format!("an empty {missing}, expected a word and a tag")));
        }
        if columns.len() != layout.width {
            let (found, Layout { width, first_line, .. }) = (count(columns.len(), "column"), layout);
            let message = format!("{found}, expected {width} as in line {first_line}");
            return Err(file.error_at(line, message));
        }
        if layout.is_nested {
            name = columns[1];
        }
        if line == layout.first_line && is_header(word, name) {
            notes.push(format!("{}: line {line} is read as a header", file.path.display()));
            continue;
        }
        let goes_on = sentence.last().is_some_and(|last: &Token| last.tag.entity() == Some(name));
        let parsed = match layout.has_types && name != "O" {
            true if goes_on => Some((Tag::Inside(name), Scheme::Type)),
            true => Some((Tag::Begin(name), Scheme::Type)),
            false => Tag::parse_any(name),
        };
        let Some((tag, scheme)) = parsed else {
            let are_swapped = Tag::parse_any(word).is_some() && columns.len() == 2;
            let hint = if are_swapped { ": are the columns of words and tags swapped?" } else { "" };
            let found = quoted(name);
            return Err(file.error_at(line, format!("tag {found}, expected O, B-TYPE or I-TYPE{hint}")));
        };
        schemes.add(name, tag, scheme);
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
    notes.extend(schemes.note().map(|note| format!("{}: {note}", file.path.display())));
    to_bio(file, &mut sentences, notes);
    Ok(sentences)
}

/// The schemes in which the tags of a file are written.
#[derive(Default)]
struct Schemes<'a> {
    has_bioes: bool,
    /// The first tag in another form, and its meaning.
    other: Option<(&'a str, Tag<'a>)>,
    /// The first type without a prefix.
    only_type: Option<&'a str>,
}

impl<'a> Schemes<'a> {
    fn add(&mut self, name: &'a str, tag: Tag<'a>, scheme: Scheme) {
        match scheme {
            Scheme::Bio => {}
            Scheme::Bioes => self.has_bioes = true,
            Scheme::Other => _ = self.other.get_or_insert((name, tag)),
            Scheme::Type => _ = self.only_type.get_or_insert(name),
        }
    }

    /// A note about tags that are converted, if there are any.
    fn note(&self) -> Option<String> {
        let other = self.other.map(|(name, tag)| format!("tags such as {name} are read in BIO, as {tag}"));
        let only_type = self.only_type.map(|name| {
            format!(
                "tags such as {name} lack B- and I-, so adjacent words of one type are read as one entity"
            )
        });
        other.or(only_type).or(self.has_bioes.then(|| "tagged in BIOES, converted to BIO".to_string()))
    }
}

/// Whether these are the names of the columns of words and tags.
fn is_header(word: &str, tag: &str) -> bool {
    let is = |cell: &str, names: &[&str]| names.iter().any(|name| cell.eq_ignore_ascii_case(name));
    is(word, &["token", "tokens", "word", "words", "form", "text"])
        && is(tag, &["tag", "tags", "label", "labels", "ner", "ner_tag", "ner_tags", "entity"])
}

/// A number of words that no sentence reaches.
const LONG: usize = 150;

/// Converts IOB1 to BIO.
///
/// In BIO, every entity begins with `B-`. In IOB1, an entity begins with `I-` unless it directly follows another one of
/// its type. A file with both is read as by conlleval: an entity begins either way.
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
                Err(file
                    .error_at(token.line, format!("type {}, which the training set lacks", quoted(entity))))
            }
        };
        tagged.tags.push(sentence.iter().map(tag).collect::<Result<_>>()?);
        tagged.words.push(sentence.iter().map(|token| composed(token.word).into()).collect());
    }
    Ok(tagged)
}
