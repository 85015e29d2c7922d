//! The columns of source and target in a file of pairs.

use crate::data::count;
use crate::data::text::Record;

/// Words in the names of columns of sources, of targets, and of either.
const SOURCE_WORDS: &str = "source src input question original prompt";
const TARGET_WORDS: &str = "target tgt trg translation output answer reference response";
const OTHER_WORDS: &str = "sentence text language lang";

/// Languages, each after its code.
const LANGUAGES: &str = "en english de german fr french es spanish it italian pt portuguese nl dutch ru russian \
    zh chinese ja japanese ko korean ar arabic hi hindi tr turkish pl polish sv swedish cs czech da danish fi finnish \
    el greek uk ukrainian ro romanian hu hungarian vi vietnamese la latin he hebrew fa persian no norwegian \
    id indonesian";

/// The columns of source and target in the files of a data set, which a header may name.
#[derive(Default)]
pub(super) struct PairColumns<'a> {
    /// The languages of source and target that the user chose.
    languages: Option<[&'a str; 2]>,
    /// Whether a header must name them.
    are_languages_required: bool,
    /// Names and places in the first file that has a header, and its number of columns.
    first: Option<([String; 2], [usize; 2], usize)>,
}

/// The columns of a file.
#[derive(Debug, PartialEq)]
pub(super) struct Places {
    /// Indices of source and target.
    pub places: [usize; 2],
    pub has_header: bool,
}

impl<'a> PairColumns<'a> {
    pub fn new(languages: Option<[&'a str; 2]>, are_languages_required: bool) -> Self {
        Self { languages, are_languages_required, first: None }
    }

    /// The columns of a file with these rows.
    ///
    /// # Errors
    /// Returns the reason if the columns are unclear.
    pub fn find(&mut self, rows: &[Record]) -> Result<Places, String> {
        let Some((_, cells)) = rows.first() else { return Ok(Places { places: [0, 1], has_header: false }) };
        let shown = || cells.join(", ").chars().take(100).collect::<String>();
        let is_unique = rows[1..].iter().all(|(_, row)| row != cells);
        let by_language = self
            .languages
            .and_then(|languages| both(languages.map(|name| only(cells, |cell| is_language(cell, name)))));
        let names: Vec<usize> = (0..cells.len()).filter(|&place| is_name(&cells[place])).collect();
        let is_header = names.len() > 1
            && names.iter().any(|&place| cells[place].to_lowercase() != cells[names[0]].to_lowercase());
        if !is_unique || !is_header && by_language.is_none() {
            return self.without_header(rows);
        }
        let known = self.first.as_ref().and_then(|([source, target], ..)| {
            both([source, target].map(|name| only(cells, |cell| cell.to_lowercase() == *name)))
        });
        if by_language.is_none() && self.are_languages_required {
            let [source, target] = self.languages.unwrap_or_default();
            return Err(format!("found the columns {}, expected {source} and {target}", shown()));
        }
        let Some(places) = by_language.or(known).or_else(|| by_role(cells, &names)) else {
            return Err(format!(
                "found the columns {}, expected source and target: name them so in the first line",
                shown()
            ));
        };
        let found = places.map(|place| cells[place].to_lowercase());
        self.first.get_or_insert((found, places, cells.len()));
        Ok(Places { places, has_header: true })
    }

    fn without_header(&self, rows: &[Record]) -> Result<Places, String> {
        let width = rows[0].1.len();
        if let Some((_, places, _)) = self.first.as_ref().filter(|(_, _, known)| *known == width) {
            return Ok(Places { places: *places, has_header: false });
        }
        if let (true, Some([source, target])) = (self.are_languages_required, self.languages) {
            return Err(format!("no header, expected one that names the columns {source} and {target}"));
        }
        // The first row may be a header that is not recognised.
        let rest = &rows[usize::from(rows.len() > 1)..];
        let is_number = |(_, cells): &Record| cells.first().is_some_and(|cell| cell.parse::<u64>().is_ok());
        if width > 2 && rest.iter().all(is_number) {
            return Err(format!(
                "{}, the first with numbers, expected a source and a target: name these source and target in the first line",
                count(width, "column")
            ));
        }
        Ok(Places { places: [0, 1], has_header: false })
    }
}

/// The columns of source and target by their names' words. Two names of languages are taken in this order.
fn by_role(cells: &[String], names: &[usize]) -> Option<[usize; 2]> {
    let with = |list: &str, other: &str| -> Vec<usize> {
        let has = |place: usize, list: &str| words(&cells[place]).any(|word| contains(list, &word));
        names.iter().copied().filter(|&place| has(place, list) && !has(place, other)).collect()
    };
    let (sources, targets) = (with(SOURCE_WORDS, TARGET_WORDS), with(TARGET_WORDS, SOURCE_WORDS));
    let others: Vec<usize> =
        names.iter().copied().filter(|place| !sources.contains(place) && !targets.contains(place)).collect();
    match (&sources[..], &targets[..], &others[..]) {
        (&[source], &[target], _) => Some([source, target]),
        (&[source], &[], &[target]) | (&[], &[target], &[source]) => Some([source, target]),
        (&[], &[], &[source, target]) => Some([source, target]),
        _ => None,
    }
}

fn words(cell: &str) -> impl Iterator<Item = String> {
    let words = cell.to_lowercase();
    let words = words.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty());
    words.map(String::from).collect::<Vec<_>>().into_iter()
}

fn contains(list: &str, word: &str) -> bool {
    list.split_whitespace().any(|known| known == word)
}

/// Whether a cell consists of words that name a column of a source or a target.
fn is_name(cell: &str) -> bool {
    // The code of Indonesian is more likely the name of a column of numbers.
    let is_known = |word: &String| {
        let lists = [SOURCE_WORDS, TARGET_WORDS, OTHER_WORDS, LANGUAGES];
        lists.iter().any(|list| contains(list, word))
    };
    let mut words = words(cell).filter(|word| !cell.eq_ignore_ascii_case("id") || word != "id").peekable();
    words.peek().is_some() && words.all(|word| is_known(&word))
}

/// Whether a cell names the language with this code or name.
fn is_language(cell: &str, language: &str) -> bool {
    let language = language.trim_start_matches('.').to_lowercase();
    let list: Vec<&str> = LANGUAGES.split_whitespace().collect();
    let names = list.as_chunks::<2>().0.iter().find(|names| names.contains(&language.as_str()));
    words(cell).any(|word| word == language || names.is_some_and(|names| names.contains(&word.as_str())))
        || cell.to_lowercase() == language
}

/// The only cell that `is` accepts.
fn only(cells: &[String], is: impl Fn(&str) -> bool) -> Option<usize> {
    let mut found = (0..cells.len()).filter(|&place| is(&cells[place]));
    found.next().filter(|_| found.next().is_none())
}

/// Both places, if both exist and differ.
fn both(places: [Option<usize>; 2]) -> Option<[usize; 2]> {
    let [source, target] = [places[0]?, places[1]?];
    (source != target).then_some([source, target])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> Vec<Record> {
        (1..)
            .zip(text.lines())
            .map(|(line, row)| (line, row.split('\t').map(String::from).collect()))
            .collect()
    }

    fn places(text: &str) -> Result<([usize; 2], bool), String> {
        let found = PairColumns::default().find(&rows(text))?;
        Ok((found.places, found.has_header))
    }

    #[test]
    fn headers_name_the_columns_in_any_order_and_beside_others() {
        for (header, expected) in [
            ("target\tsource", [1, 0]),
            ("id\tsource\ttarget", [1, 2]),
            ("tgt_text\tscore\tsrc_text", [2, 0]),
            ("id\tEnglish\tGerman", [1, 2]),
            ("translation\tsentence", [1, 0]),
        ] {
            assert_eq!(places(&format!("{header}\na\tb\tc\n")), Ok((expected, true)), "{header}");
        }
        for unclear in
            ["English\tGerman\tFrench\na\tb\tc", "1\tcat\tKatze\n2\tdog\tHund", "nr\ta\tb\n1\tcat\tKatze"]
        {
            let error = places(unclear).unwrap_err();
            assert!(
                error.contains("source and target in the first line") || error.contains("name them so"),
                "{error}"
            );
        }
        assert_eq!(places("cat\tKatze\tCC-BY\ndog\tHund\tCC-BY"), Ok(([0, 1], false)));
    }

    #[test]
    fn languages_and_the_first_file_choose_the_columns() {
        let mut columns = PairColumns::new(Some(["de", "en"]), true);
        let found = columns.find(&rows("English\tfr\tGerman\na\tb\tc")).unwrap();
        assert_eq!(found, Places { places: [2, 0], has_header: true });
        let mut columns = PairColumns::new(Some(["de", "en"]), false);
        assert_eq!(columns.find(&rows("cat\tKatze")).unwrap().places, [0, 1]);
        let mut columns = PairColumns::new(Some(["de", "en"]), true);
        assert!(columns.find(&rows("cat\tKatze")).unwrap_err().contains("no header"));
        let mut columns = PairColumns::default();
        for text in ["English\tGerman\na\tb", "a\tb"] {
            assert_eq!(columns.find(&rows(text)).unwrap().places, [0, 1], "{text}");
        }
        assert_eq!(columns.find(&rows("German\tEnglish\na\tb")).unwrap().places, [1, 0]);
    }
}
