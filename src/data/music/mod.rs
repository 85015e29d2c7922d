//! Music in time steps: pieces, part writing, built-in chorales, MIDI files and piano rolls.
//!
//! ```
//! use candle_textbook::data::music::{chorales, violation_share, write_midi};
//!
//! let pieces = chorales(3, 0, 0, 0).train;
//! assert_eq!(pieces[0].voices, Some(4));
//! assert!(violation_share(&pieces) < 0.1);
//! let file = write_midi(&pieces[0].transposed(2).expect("notes within the keyboard"));
//! assert!(file.starts_with(b"MThd"));
//! ```

mod chorales;
mod corpus;
mod encoding;
mod harmony;
mod midi;
mod musicxml;
mod piece;
mod roll;
mod rules;
mod statistics;
mod wav;

pub use chorales::chorales;
pub use corpus::{MusicCorpus, Texture};
pub use encoding::{Encoding, NoteChoice};
pub use midi::{Quantisation, read_midi, write_midi};
pub use musicxml::write_musicxml;
pub use piece::{KEY_COUNT, KEYS, Metre, Note, Piece, Span, Tonality, fingerprint};
pub use rules::{RANGES, Rule, VOICES, checked_voices, violation_share, violations};
pub use statistics::MusicStatistics;
pub use wav::write_wav;

use crate::data::error::DataError;
use crate::data::file_kind::{MUSICXML, check_is_directory};
use crate::data::splits::{Splits, entries, is_about, note_passed_over};
use anyhow::{Result, ensure};
use midi::NoNotes;
use musicxml::{EXPORT, is_musicxml_file};
use std::path::{Path, PathBuf};

const KNOWN: [&str; 3] = ["chorales", "midi", "piano-roll"];
const BUILT_IN: [&str; 1] = ["chorales"];

/// The seed of the built-in chorales. It is independent of the seed of a training run.
const CHORALES_SEED: u64 = 0;

/// Number of built-in training pieces.
const CHORALES: usize = 2400;

/// Loads the pieces of the data set `name`.
///
/// The steps of a MIDI file are quarter notes divided by `steps_per_quarter`.
///
/// | name | files in `dir` |
/// |---|---|
/// | `chorales` | built in; 2400 for training, 60 for validation, 60 for testing |
/// | `midi` | `.mid` files, in a folder per split or in `dir` itself; folders in these name styles |
/// | `piano-roll` | a JSON file of lists of pitches per time step, under the name of each split |
///
/// The names of the splits are `train`; `val`, `valid`, `validation` or `dev`; and `test`. If there is a validation but no
/// test split, it serves as the test split, with a note. What is passed over is named in a note.
///
/// At most `limit` training pieces are composed. The limit does not apply to files.
///
/// MIDI files have voices if all of them have the same number of parts with one note at a time; otherwise all of them
/// are sets of notes. A note lists what did not fit the steps.
///
/// # Errors
/// Fails with a [`DataError`] for an unknown name and a directory that is missing or not needed; with other errors for a file that
/// is missing or damaged, and for a split without music.
pub fn load(
    name: &str,
    dir: Option<&Path>,
    steps_per_quarter: usize,
    limit: Option<usize>,
) -> Result<MusicCorpus> {
    match (name, dir) {
        ("chorales", None) => {
            let training = limit.map_or(CHORALES, |limit| limit.min(CHORALES));
            Ok(chorales(training, 60, 60, CHORALES_SEED))
        }
        _ => read(name, dir, steps_per_quarter, false),
    }
}

/// Loads only the test split of the pieces `name`, if there is one.
///
/// Without a test or validation split, it is the same as [`load`].
///
/// # Errors
/// Fails as [`load`] does.
pub fn load_test(name: &str, dir: Option<&Path>, steps_per_quarter: usize) -> Result<MusicCorpus> {
    match (name, dir) {
        ("chorales", None) => Ok(MusicCorpus { validation: None, ..chorales(0, 0, 60, CHORALES_SEED) }),
        _ => read(name, dir, steps_per_quarter, true),
    }
}

/// Reads the pieces of a data set that is not built in.
fn read(name: &str, dir: Option<&Path>, steps_per_quarter: usize, test_only: bool) -> Result<MusicCorpus> {
    match (name, dir) {
        ("chorales", _) => Err(DataError::built_in(name)),
        ("midi" | "piano-roll", Some(dir)) => {
            check_is_directory(dir)?;
            match name {
                "midi" => midi_folder(dir, steps_per_quarter, test_only),
                _ => roll::read(dir, test_only),
            }
        }
        ("midi" | "piano-roll", None) => Err(DataError::files_needed(name, "no directory given", &BUILT_IN)),
        _ => Err(DataError::unknown(name, &KNOWN)),
    }
}

/// Reads the MIDI files of a folder, or with `test_only` those of its test split, if there is one.
fn midi_folder(dir: &Path, steps_per_quarter: usize, test_only: bool) -> Result<MusicCorpus> {
    let splits = Splits::find_folders(dir)?;
    let (mut notes, mut report) = (vec![], Quantisation::default());
    let folders = match splits.is_empty() {
        true => [Some(dir.to_path_buf()), None, None],
        false => {
            let Splits { train, validation, test, .. } =
                splits.choose(dir, "a folder train", test_only, &mut notes)?;
            [train, validation, test]
        }
    };
    let (mut files, mut passed_over, mut without_notes) = (vec![], PassedOver::default(), vec![]);
    let mut read = |folder: Option<PathBuf>| -> Result<Option<Vec<Piece>>> {
        let Some(folder) = folder else { return Ok(None) };
        let (mut pieces, mut no_notes) = (vec![], None);
        for (path, style) in midi_files(&folder, &mut passed_over)? {
            match read_midi(&path, steps_per_quarter) {
                Ok((piece, found)) => {
                    report += found;
                    pieces.push(Piece { style, ..piece });
                    files.push(path);
                }
                Err(error) if error.is::<NoNotes>() => {
                    no_notes.get_or_insert(error);
                    without_notes.push(path);
                }
                Err(error) => return Err(error),
            }
        }
        if let (true, Some(error)) = (pieces.is_empty(), no_notes) {
            return Err(error);
        }
        ensure!(!pieces.is_empty(), without_midi(&folder, &passed_over.scores));
        Ok(Some(pieces))
    };
    let [train, validation, test] = folders;
    let (train, validation, test) = (read(train)?.unwrap_or_default(), read(validation)?, read(test)?);
    notes.extend(note_passed_over(&passed_over.scores, &format!("{MUSICXML}: {EXPORT}")));
    notes.extend(note_passed_over(&passed_over.others, "no MIDI file"));
    notes.extend(note_passed_over(&without_notes, "no notes on the piano's keys"));
    notes.extend(report.report().map(|report| format!("{}: {report}", dir.display())));
    let corpus = MusicCorpus { train, validation, test, texture: Texture::Keys, notes };
    Ok(corpus.with_common_texture(&files))
}

/// Entries that are not MIDI files.
#[derive(Default)]
struct PassedOver {
    /// The files in MusicXML.
    scores: Vec<PathBuf>,
    others: Vec<PathBuf>,
}

/// Says that there are no MIDI files in `folder`, and what to do with the `scores` in it.
fn without_midi(folder: &Path, scores: &[PathBuf]) -> String {
    let score = scores.iter().find(|path| path.starts_with(folder));
    let score = score.map(|path| format!("; {}: {MUSICXML}: {EXPORT}", path.display()));
    let folder = folder.display();
    format!(
        "{folder}: found no .mid files in it or in its folders, expected at least one{}",
        score.unwrap_or_default()
    )
}

/// Lists the MIDI files in `folder` and its subfolders. The name of a subfolder is their style.
///
/// Other entries, but for descriptions of the data, join `passed_over`.
fn midi_files(folder: &Path, passed_over: &mut PassedOver) -> Result<Vec<(PathBuf, Option<String>)>> {
    let is_midi = |path: &Path| {
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        path.is_file() && matches!(extension.as_deref(), Some("mid" | "midi"))
    };
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let mut files = vec![];
    for path in entries(folder)? {
        let (inside, style) = match path.is_dir() {
            true => (entries(&path)?, name(&path)),
            false => (vec![path], None),
        };
        for path in inside {
            match is_midi(&path) {
                true => files.push((path, style.clone())),
                false if is_about(&name(&path).unwrap_or_default()) => {}
                false if is_musicxml_file(&path) => passed_over.scores.push(path),
                false => passed_over.others.push(path),
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn midi_folders_have_splits_styles_and_a_common_texture() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let pieces = chorales(3, 0, 0, 5).train;
        for (path, piece) in ["train/a.mid", "train/baroque/b.midi", "test/c.mid"].iter().zip(&pieces) {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap_or(dir.path()))?;
            fs::write(path, write_midi(piece))?;
        }
        let corpus = load("midi", Some(dir.path()), 2, None)?;
        let styles: Vec<_> = corpus.train.iter().map(|piece| piece.style.as_deref()).collect();
        assert_eq!((styles, corpus.texture), (vec![None, Some("baroque")], Texture::Voices(4)));
        assert_eq!(corpus.test.as_ref().map(Vec::len), Some(1));
        fs::write(dir.path().join("train/d.mid"), write_midi(&pieces[0].clone().without_voices()))?;
        let corpus = load("midi", Some(dir.path()), 2, None)?;
        assert_eq!((corpus.texture, corpus.train[0].voices), (Texture::Keys, None));
        let odd = dir.path().join("train/d.mid");
        let note = "has no separate voices, but 3 of 4 pieces have 4 voices: all are taken as sets of notes";
        assert_eq!(corpus.notes, [format!("{}: {note}", odd.display())]);
        fs::write(dir.path().join("train/e.mid"), b"MThd")?;
        let error = format!("{:#}", load("midi", Some(dir.path()), 2, None).unwrap_err());
        assert!(error.contains("e.mid: not a MIDI file"), "{error}");
        Ok(())
    }

    #[test]
    fn midi_splits_have_the_names_of_all_data_sets_and_a_test_needs_only_its_own() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let write = |path: &str, number: usize| -> Result<()> {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap_or(dir.path()))?;
            Ok(fs::write(path, write_midi(&chorales(3, 0, 0, 5).train[number]))?)
        };
        write("Train/a.mid", 0)?;
        write("dev/b.mid", 1)?;
        fs::write(dir.path().join("Train/words.txt"), "")?;
        let corpus = load("midi", Some(dir.path()), 2, None)?;
        assert_eq!(
            (corpus.train.len(), corpus.validation, corpus.test.map(|test| test.len())),
            (1, None, Some(1))
        );
        let [serves, passed_over] = &corpus.notes[..] else { panic!("{:?}", corpus.notes) };
        assert!(serves.contains("no test split, so dev is used for the test"), "{serves}");
        assert!(passed_over.contains("words.txt: no MIDI file"), "{passed_over}");
        fs::remove_dir_all(dir.path().join("Train"))?;
        let error = format!("{:#}", load("midi", Some(dir.path()), 2, None).unwrap_err());
        assert!(error.contains("expected a folder train; found dev (a folder)"), "{error}");
        let of_test =
            |corpus: MusicCorpus| (corpus.train.len(), corpus.test.map(|test| test[0].name.clone()));
        assert_eq!(of_test(load_test("midi", Some(dir.path()), 2)?), (0, Some("b".to_string())));
        write("test/c.mid", 2)?;
        assert_eq!(of_test(load_test("midi", Some(dir.path()), 2)?), (0, Some("c".to_string())));
        Ok(())
    }

    #[test]
    fn loose_files_beside_the_splits_are_named() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let midi = write_midi(&chorales(1, 0, 0, 5).train[0]);
        fs::create_dir(dir.path().join("train"))?;
        for name in ["train/a.mid", "README", "1.mid", "2.mid", "3.mid", "4.mid", "5.mid", "train.mid"] {
            fs::write(dir.path().join(name), &midi)?;
        }
        let corpus = load("midi", Some(dir.path()), 2, None)?;
        let note =
            format!("{}: passed over: 1.mid, 2.mid, 3.mid, 4.mid, 5.mid and 1 more", dir.path().display());
        assert_eq!((corpus.train.len(), corpus.notes), (1, vec![note]));
        Ok(())
    }

    #[test]
    fn midi_files_without_notes_are_passed_over_if_others_have_some() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let silent = Piece { steps: vec![], ..chorales(1, 0, 0, 5).train.remove(0) };
        for name in ["a.mid", "z.mid"] {
            fs::write(dir.path().join(name), write_midi(&silent))?;
        }
        let error = format!("{:#}", load("midi", Some(dir.path()), 2, None).unwrap_err());
        assert!(error.contains("a.mid: found no notes"), "{error}");
        fs::write(dir.path().join("b.mid"), write_midi(&chorales(1, 0, 0, 5).train[0]))?;
        let corpus = load("midi", Some(dir.path()), 2, None)?;
        let first = dir.path().join("a.mid");
        let note = format!("passed over 2 entries such as {}: no notes on the piano's keys", first.display());
        assert_eq!((corpus.train.len(), corpus.notes), (1, vec![note]));
        fs::write(dir.path().join("z.mid"), &write_midi(&silent)[..30])?;
        let error = format!("{:#}", load("midi", Some(dir.path()), 2, None).unwrap_err());
        assert!(error.contains("z.mid: ") && error.contains("truncated"), "{error}");
        Ok(())
    }

    #[test]
    fn musicxml_files_are_named_with_the_way_to_midi() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let (piece, path) = (chorales(1, 0, 0, 5).train.remove(0), dir.path().join("a.musicxml"));
        fs::write(&path, write_musicxml(&piece))?;
        let named = format!("{}: a MusicXML file: export it as MIDI, ", path.display());
        let error = format!("{:#}", load("midi", Some(dir.path()), 2, None).unwrap_err());
        assert!(error.contains("found no .mid files") && error.contains(&named), "{error}");
        let error = format!("{:#}", read_midi(&path, 2).unwrap_err());
        assert!(
            error.contains("found a MusicXML file, expected a MIDI file: export it as MIDI, "),
            "{error}"
        );
        fs::write(dir.path().join("b.mid"), write_midi(&piece))?;
        fs::write(dir.path().join("c.xml"), "<?xml version='1.0'?><list/>")?;
        fs::write(&path, write_musicxml(&piece) + &" ".repeat(1 << 17))?;
        let notes = load("midi", Some(dir.path()), 2, None)?.notes;
        assert!(notes[0].contains(&named) && notes[1].ends_with("c.xml: no MIDI file"), "{notes:?}");
        Ok(())
    }

    #[test]
    fn wrong_choices_are_errors_with_a_remedy() {
        let error = |name: &str, dir: Option<&Path>| format!("{:#}", load(name, dir, 2, None).unwrap_err());
        let dir = tempfile::tempdir().unwrap();
        assert!(error("polkas", None).contains("expected one of chorales, midi, piano-roll"));
        assert!(error("chorales", Some(dir.path())).contains("built in"));
        assert!(error("midi", None).contains("no directory given"));
        assert!(error("midi", Some(dir.path())).contains("found no .mid files in it or in its folders"));
        assert!(error("piano-roll", Some(dir.path())).contains("found no .json file"));
    }

    #[test]
    fn a_limit_composes_the_first_training_pieces_only() -> Result<()> {
        let corpus = load("chorales", None, 2, Some(2))?;
        assert_eq!(load_test("chorales", None, 2)?.test, corpus.test);
        assert_eq!(corpus.train, chorales(2, 0, 0, CHORALES_SEED).train);
        assert_eq!(corpus.train.len(), 2);
        Ok(())
    }
}
