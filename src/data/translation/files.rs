//! Pairs in files: two parallel files per split, or one file with a tab between source and target.

use super::pair_columns::{PairColumns, Places};
use super::pairs::{PairCorpus, TextPairs};
use crate::data::count;
use crate::data::error::DataError;
use crate::data::splits::{Splits, file_name, split_of};
use crate::data::text::{Record, TextFile, are_fields_quoted, counted_lines, records};
use anyhow::{Result, bail, ensure};
use std::path::{Path, PathBuf};

/// What OpenNMT calls the two sides.
pub(super) const SIDES: [&str; 2] = ["src", "tgt"];

/// Whether `dir` has files of both [`SIDES`] for a split.
pub(super) fn has_sides(dir: &Path) -> Result<bool> {
    let has_splits = |side: &Side| Ok(!Splits::find_in_part(dir, &|name| side.rest(name))?.is_empty());
    Ok(Side::both(SIDES).iter().map(has_splits).collect::<Result<Vec<bool>>>()? == [true, true])
}

/// Reads the splits of `dir`, or only the test split, as two files each, whose names have the languages in them.
pub(super) fn parallel(dir: &Path, languages: [&str; 2], test_only: bool) -> Result<PairCorpus> {
    let [source, target] = &Side::both(languages);
    let mut notes = vec![];
    let find = |side: &Side, notes: &mut Vec<String>| {
        let splits = Splits::find_in_part(dir, &|name| side.rest(name))?;
        anyhow::Ok(splits.or_only(dir, &|_| true, notes))
    };
    // The notes on the splits would be the same.
    let (mut sources, targets) = (find(source, &mut notes)?, find(target, &mut vec![])?);
    // Otherwise the validation split would replace the missing file.
    let is_drawn = sources.train.is_some() && targets.train.is_some() && sources.validation.is_none();
    match (&sources.test, &targets.test) {
        (Some(found), None) if languages == SIDES || is_drawn => {
            let name = file_name(found);
            notes.push(format!("{}: {name} has no translation, so it is passed over", dir.display()));
            sources.test = None;
        }
        (Some(found), None) => return Err(lacks(dir, found, source, target)),
        (None, Some(found)) => return Err(lacks(dir, found, target, source)),
        _ => {}
    }
    let expected = |side: &Side| format!("train.{}", side.language);
    let sources = sources.choose(dir, &expected(source), test_only, &mut notes)?;
    let targets = targets.choose(dir, &expected(target), test_only, &mut vec![])?;
    notes.extend(note_unusual(dir, [(source, &sources), (target, &targets)]));
    let mut read = |split: &str, source_file: Option<PathBuf>, target_file: Option<PathBuf>| {
        let (source_file, target_file) = match (source_file, target_file) {
            (None, None) => return Ok(None),
            (Some(found), None) => return Err(lacks(dir, &found, source, target)),
            (None, Some(found)) => return Err(lacks(dir, &found, target, source)),
            (Some(source_file), Some(target_file)) => (source_file, target_file),
        };
        let [source_name, target_name] = [&source_file, &target_file].map(|path| file_name(path));
        ensure!(
            source.rest(&plain(&source_name)) == target.rest(&plain(&target_name)),
            "{}: found {source_name} and {target_name} for the {split} split, expected two files of one name",
            dir.display(),
        );
        let sources = TextFile::read(source_file, &mut notes)?;
        let targets = TextFile::read(target_file, &mut notes)?;
        pair_up(&sources, &targets, &mut notes).map(Some)
    };
    let train = read("training", sources.train, targets.train)?.unwrap_or_default();
    let validation = read("validation", sources.validation, targets.validation)?;
    let test = read("test", sources.test, targets.test)?;
    Ok(PairCorpus { train, validation, test, notes })
}

/// The language of the sources or of the targets in parallel files, and the other one, in lower case.
struct Side {
    language: String,
    other: String,
}

impl Side {
    /// The two sides, which the user may have given as `.en` and `.de`.
    fn both(languages: [&str; 2]) -> [Self; 2] {
        let [source, target] = languages.map(|language| language.trim_start_matches('.').to_lowercase());
        [(&source, &target), (&target, &source)]
            .map(|(language, other)| Self { language: language.clone(), other: other.clone() })
    }

    /// The rest of a file's name without the language; `None` if the file has another language.
    ///
    /// The language ends the name, as in `train.en`, or is a word in it, as in `train.en.txt`, `src-train.txt` and
    /// `en.train`.
    fn rest(&self, name: &str) -> Option<String> {
        let stem = name.strip_suffix(".txt").unwrap_or(name);
        if let Some(rest) = stem.strip_suffix(&self.language).and_then(|rest| rest.strip_suffix('.')) {
            return Some(rest.to_string());
        }
        let is_split = |(_, extension): (&str, &str)| split_of(extension).is_some();
        if stem == name && !name.rsplit_once('.').is_none_or(is_split) {
            return None;
        }
        let words: Vec<&str> = stem.split(|c: char| !c.is_alphanumeric()).collect();
        let is_of = |language: &String| words.contains(&language.as_str());
        let others = words.iter().copied().filter(|word| *word != self.language);
        (is_of(&self.language) && !is_of(&self.other)).then(|| others.collect::<Vec<_>>().join("."))
    }
}

/// A file's name in lower case, without `.gz`.
fn plain(name: &str) -> String {
    let name = name.to_lowercase();
    name.strip_suffix(".gz").unwrap_or(&name).to_string()
}

/// A note on the files that are read, if their names do not end with the language.
fn note_unusual(dir: &Path, sides: [(&Side, &Splits); 2]) -> Option<String> {
    let names = |splits: &Splits| {
        let files = [&splits.train, &splits.validation, &splits.test];
        files.into_iter().flatten().map(|path| file_name(path)).collect::<Vec<_>>()
    };
    let is_usual = |(side, splits): &(&Side, &Splits)| {
        names(splits).iter().all(|name| plain(name).ends_with(&format!(".{}", side.language)))
    };
    let [sources, targets] = sides.map(|(_, splits)| names(splits).join(", "));
    let is_usual = sides.iter().all(is_usual);
    (!is_usual).then(|| format!("{}: source {sources}; target {targets}", dir.display()))
}

/// An error about a file of `side` that lacks its translation on the side `other`.
fn lacks(dir: &Path, found: &Path, side: &Side, other: &Side) -> anyhow::Error {
    let found = file_name(found);
    let is_word = |at: usize, word: &str| {
        let (before, after) = (&found[..at], &found[at + word.len()..]);
        ![before.chars().next_back(), after.chars().next()].into_iter().flatten().any(char::is_alphanumeric)
    };
    let lower = found.to_ascii_lowercase();
    let place = lower.rmatch_indices(&side.language).find(|(at, word)| is_word(*at, word));
    let expected = place.map_or(String::new(), |(at, word)| {
        format!("{}{}{}", &found[..at], other.language, &found[at + word.len()..])
    });
    anyhow::anyhow!("{}: found {found} without its translation, expected {expected}", dir.display())
}

/// The lines of a file without blank lines at its end.
fn lines(file: &TextFile) -> Vec<&str> {
    file.text.trim_end().lines().map(str::trim).collect()
}

/// Pairs the lines of two files. Pairs with an empty side are skipped, with a note.
fn pair_up(sources: &TextFile, targets: &TextFile, notes: &mut Vec<String>) -> Result<TextPairs> {
    let [source_lines, target_lines] = [sources, targets].map(lines);
    let names = format!("{} and {}", sources.path.display(), targets.path.display());
    if source_lines.len() != target_lines.len() {
        let counts = format!(
            "found {} and {}, expected one translation per line",
            count(source_lines.len(), "line"),
            count(target_lines.len(), "line")
        );
        match divergence(&source_lines, &target_lines) {
            Some(line) => {
                bail!("{names}: {counts}; judging by the lengths of the lines, they diverge near line {line}")
            }
            None => bail!("{names}: {counts}"),
        }
    }
    ensure!(
        source_lines != target_lines || source_lines.is_empty(),
        "{names}: have the same content, expected a text and its translation"
    );
    let (mut pairs, mut skipped) = (TextPairs::default(), vec![]);
    for ((source, target), number) in source_lines.into_iter().zip(target_lines).zip(1..) {
        match source.is_empty() || target.is_empty() {
            true => skipped.push(number),
            false => pairs.push(source, target),
        }
    }
    if !skipped.is_empty() {
        notes.push(format!("{names}: skipped {}", counted_lines(&skipped, "with an empty side")));
    }
    note_identical(&names, &pairs, notes);
    ensure!(!pairs.is_empty(), "{names}: no pairs of sentences");
    Ok(pairs)
}

/// Notes how many pairs have two equal sides, if more than half of them do.
fn note_identical(name: &str, pairs: &TextPairs, notes: &mut Vec<String>) {
    let identical =
        pairs.sources.iter().zip(&pairs.targets).filter(|(source, target)| source == target).count();
    if 2 * identical > pairs.len() {
        notes.push(format!(
            "{name}: source and target are the same in {identical} of {}",
            count(pairs.len(), "pair")
        ));
    }
}

/// Finds where the longer of two parallel texts has surplus lines, if their lengths are conclusive.
///
/// If the surplus is in one place, the lengths of the lines before it fit, and the lengths after it fit with the lines
/// shifted (Gale and Church 1993). The cost of a pair is the absolute log ratio of the lengths.
fn divergence(a: &[&str], b: &[&str]) -> Option<usize> {
    /// Lines this close to the best place may cost nearly the same.
    const NEAR: usize = 10;
    /// A difference of costs that chance rarely explains.
    ///
    /// With one line removed from captions in two languages, 39 of 60 trials reached it, and the place was then right
    /// within 5 lines.
    const CLEAR: f64 = 2.0;
    let (longer, shorter) = if a.len() > b.len() { (a, b) } else { (b, a) };
    let surplus = longer.len() - shorter.len();
    let length = |line: &str| libm::log(2.0 + line.chars().count() as f64);
    let [longer, shorter] =
        [longer, shorter].map(|lines| lines.iter().map(|line| length(line)).collect::<Vec<_>>());
    // One language may need more characters than the other throughout.
    let mean = |lengths: &[f64]| lengths.iter().sum::<f64>() / lengths.len().max(1) as f64;
    let usual = mean(&longer) - mean(&shorter);
    let fit = |at: usize, partner: usize| (longer[at] - shorter[partner] - usual).abs();
    // The costs with the surplus before line 0, 1, ..
    let mut cost: f64 = (0..shorter.len()).map(|at| fit(at + surplus, at)).sum();
    let mut costs = vec![cost];
    for at in 0..shorter.len() {
        cost += fit(at, at) - fit(at + surplus, at);
        costs.push(cost);
    }
    let (best, lowest) = costs.iter().enumerate().min_by(|a, b| a.1.total_cmp(b.1))?;
    let is_clear = |(at, cost): (usize, &f64)| at.abs_diff(best) <= NEAR || cost - lowest > CLEAR;
    // All of a few lines are near.
    (costs.len() > 4 * NEAR && costs.iter().enumerate().all(is_clear)).then_some(best + 1)
}

/// Reads the splits of `dir`, or only the test split: lines of a source, a tab and a target.
///
/// The headers of training files must name `languages`, if they are given.
pub(super) fn tab_separated(dir: &Path, languages: Option<[&str; 2]>, test_only: bool) -> Result<PairCorpus> {
    let mut notes = vec![];
    let mut columns = PairColumns::new(languages, languages.is_some() && !test_only);
    let splits = Splits::find_by_words(dir, &["tsv", "txt"])?.or_only(dir, &holds_pairs, &mut notes);
    let splits = splits.choose(dir, "train.tsv", test_only, &mut notes)?;
    let mut read = |path: Option<PathBuf>| {
        let read = |path| pairs(&TextFile::read(path, &mut notes)?, &mut columns, &mut notes);
        path.map(read).transpose().map(|found| found.map(|(pairs, _)| pairs))
    };
    let train = read(splits.train)?.unwrap_or_default();
    let (validation, test) = (read(splits.validation)?, read(splits.test)?);
    Ok(PairCorpus { train, validation, test, notes })
}

/// Whether each line of a file has a source and a target, and perhaps an attribution, as in the files of Anki.
fn holds_pairs(path: &Path) -> bool {
    let Ok(file) = TextFile::read(path.into(), &mut vec![]) else { return false };
    let is_pair = |line: &str| match line.split('\t').collect::<Vec<_>>()[..] {
        [_, _] => true,
        [_, _, attribution] => attribution.starts_with("CC-BY") || attribution.starts_with("CC0"),
        _ => false,
    };
    file.text.lines().filter(|line| !line.trim().is_empty()).all(is_pair)
}

/// The rows of a file, each with its columns and the number of its line.
///
/// Quotes that surround whole columns are removed as in CSV files, with a note. All others belong to the text.
fn rows(file: &TextFile, notes: &mut Vec<String>) -> Result<Vec<Record>> {
    if are_fields_quoted(&file.text, b'\t') {
        notes.push(format!("{}: the quotes around columns are removed", file.path.display()));
        return records(file, b'\t').map(|found| found.records);
    }
    let columns = |line: &str| line.split('\t').map(|column| column.trim().to_string()).collect();
    Ok(file.lines().map(|(number, line)| (number, columns(line))).collect())
}

/// The pairs in a file, and their columns.
fn pairs(file: &TextFile, columns: &mut PairColumns, notes: &mut Vec<String>) -> Result<(TextPairs, Places)> {
    let (mut pairs, mut skipped, mut expected) = (TextPairs::default(), vec![], None);
    let name = file.path.display();
    let rows = rows(file, notes)?;
    let Places { places, has_header } = columns.find(&rows).map_err(|reason| unclear(file, &reason))?;
    if let Some((number, columns)) = rows.first().filter(|_| has_header) {
        let [source, target] = places.map(|place| &columns[place]);
        notes.push(format!("{name}: line {number} is read as a header: source {source}, target {target}"));
    }
    for (number, columns) in rows.into_iter().skip(usize::from(has_header)) {
        let blank = columns.iter().all(String::is_empty);
        if columns.len() < 2 && !blank {
            return Err(file.error_at(number, "no tab, expected a source, a tab and a target"));
        }
        if columns.len() < 2 {
            skipped.push(number);
            continue;
        }
        let (first, width) = *expected.get_or_insert((number, columns.len()));
        if columns.len() != width || places.iter().any(|&place| place >= width) {
            let message = format!("{}, expected {width} as in line {first}", count(columns.len(), "column"));
            return Err(file.error_at(number, message));
        }
        let [source, target] = places.map(|place| columns[place].as_str());
        match source.is_empty() || target.is_empty() {
            true => skipped.push(number),
            false => pairs.push(source, target),
        }
    }
    if !skipped.is_empty() {
        notes.push(format!("{name}: skipped {}", counted_lines(&skipped, "with an empty side")));
    }
    if let Some((_, width @ 3..)) = expected {
        let [source, target] = places.map(|place| place + 1);
        notes.push(format!("{name}: {width} columns; {source} is the source and {target} the target"));
    }
    note_identical(&name.to_string(), &pairs, notes);
    if pairs.is_empty() {
        Err(file.error("no pairs of sentences"))
    } else {
        Ok((pairs, Places { places, has_header }))
    }
}

/// The sources in a file of pairs, and the number of their column, from 1; `None` if it is another file.
///
/// A file of pairs has a header, or two rows or more, all with the same number of columns.
#[cfg(feature = "cli")]
pub(crate) fn sources(file: &TextFile, languages: Option<[&str; 2]>) -> Option<(Vec<String>, usize)> {
    let found = pairs(file, &mut PairColumns::new(languages, false), &mut vec![]);
    let (TextPairs { sources, .. }, Places { places: [column, _], has_header }) = found.ok()?;
    (has_header || sources.len() > 1).then_some((sources, column + 1))
}

/// An error about columns that only a header or a choice of languages makes clear.
fn unclear(file: &TextFile, reason: &str) -> anyhow::Error {
    DataError::Languages { name: "tsv-pairs".into(), reason: format!("{}: {reason}", file.path.display()) }
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::stream;
    use rand::Rng;

    /// Lines of different lengths, and translations that are about a fifth longer.
    fn parallel_lines(count: usize) -> (Vec<String>, Vec<String>) {
        let mut rng = stream(1, "lines");
        let lengths: Vec<usize> = (0..count).map(|_| rng.random_range(8..120)).collect();
        let targets =
            lengths.iter().map(|&length| "b".repeat(length * rng.random_range(100..140) / 100)).collect();
        (lengths.iter().map(|&length| "a".repeat(length)).collect(), targets)
    }

    #[test]
    fn headers_and_quotes_of_pairs_are_no_text() {
        let of = |text: &str| {
            let mut notes = vec![];
            let file = TextFile { path: "train.tsv".into(), text: text.into() };
            let (TextPairs { sources, targets }, _) =
                pairs(&file, &mut PairColumns::default(), &mut notes).unwrap();
            (sources.into_iter().zip(targets).collect::<Vec<_>>(), notes.len())
        };
        let cat = ("cat".to_string(), "Katze".to_string());
        for header in
            ["source\ttarget", "English\tGerman", "Source Sentence\ttranslation", "en\tde", "src_text\tTGT"]
        {
            assert_eq!(of(&format!("{header}\ncat\tKatze\n")), (vec![cat.clone()], 1), "{header}");
        }
        // Words that occur again, or only on one side, are text.
        assert_eq!(of("answer\tquestion\ncat\tKatze\nanswer\tquestion\n").0.len(), 3);
        assert_eq!(of("answer\tAntwort\ncat\tKatze\n").0.len(), 2);
        assert_eq!(of("id\ttarget\tsource\n1\tKatze\tcat\n"), (vec![cat.clone()], 2));
        assert_eq!(of("\"cat\"\tKatze\n"), (vec![cat], 1));
        let (found, notes) = of("\"Yes\", he said\t\"Ja\", sagte er\n");
        assert_eq!((found[0].0.as_str(), notes), ("\"Yes\", he said", 0));
        assert_eq!(of("\"a \"\"b\"\"\"\tc\n").0[0].0, "a \"b\"");
    }

    #[test]
    fn the_line_where_files_diverge_is_named_only_if_it_is_clear() {
        fn refs(lines: &[String]) -> Vec<&str> {
            lines.iter().map(String::as_str).collect()
        }
        let (sources, targets) = parallel_lines(300);
        for missing in [0, 20, 150, 299] {
            let mut shorter = targets.clone();
            shorter.remove(missing);
            for (a, b) in [(&sources, &shorter), (&shorter, &sources)] {
                let line = divergence(&refs(a), &refs(b)).unwrap();
                assert!(line.abs_diff(missing + 1) <= 2, "{line}, {missing}");
            }
        }
        let same = vec!["same"; 50];
        assert_eq!(divergence(&same, &same[1..]), None);
        assert_eq!(divergence(&["a", "some words", "b"], &["a", "b"]), None);
    }
}
