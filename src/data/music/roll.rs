//! Piano rolls in JSON: lists of pitches per time step, a common format for polyphonic music.

use super::corpus::{MusicCorpus, Texture};
use super::piece::{KEYS, Note, Piece};
use crate::data::file_kind::{check_is_file, found_instead};
use crate::data::quoted;
use crate::data::splits::{Splits, entries};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::error::Category;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::{fmt, fs};

/// Reads the pieces of the only JSON file in `dir`.
///
/// With `test_only` it reads the test pieces alone, if there are any.
///
/// Its format is `{"train": [[[60, 64, 67], ..], ..], "valid": .., "test": ..}`.
pub(super) fn read(dir: &Path, test_only: bool) -> Result<MusicCorpus> {
    let path = file(dir)?;
    check_is_file(&path)?;
    let bytes = fs::read(&path).with_context(|| format!("{}: cannot read it", path.display()))?;
    let text = String::from_utf8_lossy(&bytes);
    parse(&path, &text, test_only).map_err(|error| match found_instead(&bytes, "a JSON file") {
        Some(other) => anyhow!("{}: {other}", path.display()),
        None => error,
    })
}

/// The only JSON file in `dir`.
fn file(dir: &Path) -> Result<PathBuf> {
    let is_json =
        |path: &PathBuf| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    let mut files: Vec<PathBuf> = entries(dir)?.into_iter().filter(is_json).collect();
    match files.len() {
        1 => Ok(files.remove(0)),
        0 => bail!(
            "{}: found no .json file, expected one with the splits train, valid and test",
            dir.display()
        ),
        count => bail!("{}: found {count} .json files, expected one", dir.display()),
    }
}

/// Reads the pieces in the `text` of the file `path`.
fn parse(path: &Path, text: &str, test_only: bool) -> Result<MusicCorpus> {
    let place = || path.display().to_string();
    let lists = lists(text).with_context(place)?;
    let is_empty = |list: &Value| list.is_null() || list.as_array().is_some_and(Vec::is_empty);
    let found = lists.iter().filter(|(_, list)| !is_empty(list)).map(|(name, _)| (name.clone(), name));
    let mut notes = vec![];
    let splits = Splits::find_among(path, found)?.choose(path, "the list train", test_only, &mut notes)?;
    let split =
        |name: Option<&String>| name.map(|name| pieces(&lists[name], name).with_context(place)).transpose();
    let train = split(splits.train)?.unwrap_or_default();
    let (validation, test) = (split(splits.validation)?, split(splits.test)?);
    Ok(MusicCorpus { train, validation, test, texture: Texture::Keys, notes })
}

/// The lists of a file by their names.
fn lists(text: &str) -> Result<Map<String, Value>> {
    let text = text.trim_start_matches('\u{feff}');
    let unreadable = |error: serde_json::Error| match error.classify() {
        Category::Data => anyhow!("{error}"),
        _ => anyhow!("not JSON at line {}, column {}", error.line(), error.column()),
    };
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map(|Lists(lists)| lists).map_err(unreadable);
    }
    let other: Value = serde_json::from_str(text).map_err(unreadable)?;
    bail!("found {}, expected an object with the lists train, valid and test", kind(&other))
}

/// An object whose keys are distinct; for a `Map` of serde_json, the last of two equal keys would win.
struct Lists(Map<String, Value>);

impl<'de> Deserialize<'de> for Lists {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Distinct;

        impl<'de> Visitor<'de> for Distinct {
            type Value = Lists;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Lists, A::Error> {
                let mut lists = Map::new();
                while let Some(key) = object.next_key::<String>()? {
                    if lists.contains_key(&key) {
                        let key = quoted(&key);
                        return Err(A::Error::custom(format!("expected each key once, found {key} again")));
                    }
                    lists.insert(key, object.next_value()?);
                }
                Ok(Lists(lists))
            }
        }

        deserializer.deserialize_map(Distinct)
    }
}

/// The pieces of a split.
fn pieces(value: &Value, name: &str) -> Result<Vec<Piece>> {
    let mut pieces = vec![];
    for (number, piece) in list(value, name, "a list of pieces")?.iter().enumerate() {
        let name = format!("{name}[{number}]");
        let mut steps = vec![];
        for (step, notes) in list(piece, &name, "a list of time steps")?.iter().enumerate() {
            let place = format!("{name}[{step}]");
            let mut pitches = vec![];
            for note in list(notes, &place, "a list of pitches")? {
                pitches.push(pitch(note, &place)?);
            }
            pitches.sort_unstable();
            pitches.dedup();
            steps.push(pitches.into_iter().map(|pitch| Some(Note { pitch, held: false })).collect());
        }
        ensure!(!steps.is_empty(), "{name}: found no time steps, expected at least one");
        pieces.push(Piece {
            name,
            steps,
            voices: None,
            steps_per_quarter: 2,
            metres: vec![],
            tonality: None,
            style: None,
            tempo: 84.0,
        });
    }
    Ok(pieces)
}

fn list<'a>(value: &'a Value, place: &str, expected: &str) -> Result<&'a Vec<Value>> {
    value.as_array().with_context(|| format!("{place}: found {}, expected {expected}", kind(value)))
}

fn pitch(value: &Value, place: &str) -> Result<u8> {
    let number =
        value.as_f64().with_context(|| format!("{place}: found {}, expected a pitch", kind(value)))?;
    let pitch = number as u8;
    ensure!(
        f64::from(pitch) == number && KEYS.contains(&pitch),
        "{place}: found the pitch {number}, expected a MIDI number from {} to {}",
        KEYS.start(),
        KEYS.end()
    );
    Ok(pitch)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, test_only: bool) -> Result<MusicCorpus> {
        super::parse(Path::new("roll.json"), text, test_only)
    }

    #[test]
    fn pitches_are_read_step_by_step() -> Result<()> {
        // A byte order mark may come first.
        assert!(parse("\u{feff}{\"train\": [[[60]]]}", false).is_ok());
        let corpus =
            parse(r#"{"train": [[[67, 60], [], [60.0]]], "valid": [], "test": [[[21, 108]]]}"#, false)?;
        let train = &corpus.train[0];
        assert_eq!(
            (0..3).map(|step| train.chord(step)).collect::<Vec<_>>(),
            [vec![60, 67], vec![], vec![60]]
        );
        assert_eq!((corpus.validation, corpus.test.unwrap()[0].chord(0)), (None, vec![21, 108]));
        Ok(())
    }

    #[test]
    fn splits_have_the_names_of_all_data_sets_and_validation_serves_as_a_missing_test_split() -> Result<()> {
        let corpus = parse(r#"{"Train": [[[60]]], "dev": [[[61]]], "tempo": 3, "test": null}"#, false)?;
        let test = corpus.test.map(|test| test[0].chord(0));
        assert_eq!((corpus.train.len(), corpus.validation, test), (1, None, Some(vec![61])));
        let notes =
            ["roll.json: passed over: tempo", "roll.json: no test split, so dev is used for the test"];
        assert_eq!(corpus.notes, notes);
        for name in ["val", "valid", "validation", "dev"] {
            let text = format!(r#"{{"train": [[[60]]], "{name}": [[[61]]], "test": [[[62]]]}}"#);
            let corpus = parse(&text, false)?;
            assert_eq!((corpus.validation.unwrap().len(), corpus.notes.len()), (1, 0), "{name}");
        }
        let error =
            parse(r#"{"train": [[[60]]], "val": [[[60]]], "dev": [[[60]]]}"#, false).unwrap_err().to_string();
        assert!(
            error.contains("found both val and dev") || error.contains("found both dev and val"),
            "{error}"
        );
        Ok(())
    }

    #[test]
    fn a_test_needs_only_the_test_list() -> Result<()> {
        let corpus = parse(r#"{"train": 3, "test": [[[62]]]}"#, true)?;
        assert_eq!((corpus.train.len(), corpus.test.unwrap().len()), (0, 1));
        assert_eq!(parse(r#"{"train": [[[60]]]}"#, true)?.train.len(), 1, "to draw the test pieces from");
        Ok(())
    }

    #[test]
    fn other_shapes_are_named_with_their_place() {
        for (text, expected) in [
            ("[1", "not JSON"),
            (r#"{"train": [}"#, "roll.json: not JSON at line 1"),
            (
                r#"{"train": [], "test": [], "train": []}"#,
                "roll.json: expected each key once, found \"train\" again at line 1",
            ),
            ("[[60]]", "found a list, expected an object"),
            (r#"{"test": []}"#, "roll.json: no training split, expected the list train"),
            (r#"{"train": []}"#, "roll.json: no training split, expected the list train"),
            (r#"{"train": 3}"#, "train: found a number, expected a list of pieces"),
            (r#"{"train": [{}]}"#, "train[0]: found an object, expected a list of time steps"),
            (r#"{"train": [[60, 64]]}"#, "train[0][0]: found a number, expected a list of pitches"),
            (r#"{"train": [[[60], ["c"]]]}"#, "train[0][1]: found a text, expected a pitch"),
            (
                r#"{"train": [[[20]]]}"#,
                "train[0][0]: found the pitch 20, expected a MIDI number from 21 to 108",
            ),
            (r#"{"train": [[[60.5]]]}"#, "found the pitch 60.5"),
            (r#"{"train": [[]]}"#, "train[0]: found no time steps"),
        ] {
            let error = format!("{:#}", parse(text, false).unwrap_err());
            assert!(error.contains(expected) && !error.contains('\n'), "{text}: {error}");
        }
    }
}
