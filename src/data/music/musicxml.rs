//! MusicXML, the format of notation programs.

use super::piece::{Metre, Piece, Tonality};
use crate::data::file_kind::{MUSICXML, known_format};
use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// How to read a MusicXML file.
pub(super) const EXPORT: &str =
    "export it as MIDI, for example with `mscore -o piece.mid piece.musicxml` of MuseScore";

/// Whether the file `path` is MusicXML, by its extension and the beginning of its content.
pub(super) fn is_musicxml_file(path: &Path) -> bool {
    /// Enough for comments before the score, and for the files before the container's in a compressed one.
    const BEGINNING: u64 = 1 << 16;
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    let mut bytes = vec![];
    matches!(extension.as_deref(), Some("musicxml" | "mxl" | "xml"))
        && path.is_file()
        && File::open(path).is_ok_and(|file| file.take(BEGINNING).read_to_end(&mut bytes).is_ok())
        && is_musicxml(&bytes)
}

/// Whether the content of a file is MusicXML.
pub(super) fn is_musicxml(bytes: &[u8]) -> bool {
    known_format(bytes).is_some_and(|(name, _)| name == MUSICXML)
}

/// A time in which the same notes sound: between two changes, or a change and a bar line.
struct Slice {
    start: usize,
    steps: usize,
    /// The pitches, and whether each is tied to the slice before and to the next one.
    notes: Vec<(u8, bool, bool)>,
}

/// Returns `piece` as a partwise MusicXML 4.0 score, with one part per voice, or one for everything.
///
/// Without bars, the piece is written in 4/4.
pub fn write_musicxml(piece: &Piece) -> String {
    let names = match piece.voices {
        Some(4) => ["Soprano", "Alto", "Tenor", "Bass"].map(String::from).to_vec(),
        Some(voices) => (1..=voices).map(|voice| format!("Voice {voice}")).collect(),
        None => vec!["Piano".to_string()],
    };
    let mut text = String::from(concat!(
        r#"<?xml version="1.0" encoding="UTF-8"?>"#,
        "\n",
        r#"<!DOCTYPE score-partwise PUBLIC "-//Recordare//DTD MusicXML 4.0 Partwise//EN" "http://www.musicxml.org/dtds/partwise.dtd">"#,
        "\n<score-partwise version=\"4.0\">\n<part-list>\n"
    ));
    // Writing to a String can't fail.
    for (i, name) in names.iter().enumerate() {
        let _ = writeln!(text, r#"<score-part id="P{i}"><part-name>{name}</part-name></score-part>"#);
    }
    text += "</part-list>\n";
    for voice in 0..names.len() {
        let _ = writeln!(text, r#"<part id="P{voice}">"#);
        part(piece, voice, &mut text);
        text += "</part>\n";
    }
    text + "</score-partwise>\n"
}

/// The metre at a step, the step's bar and place in it; 4/4 without bars.
fn place(piece: &Piece, step: usize) -> (Metre, usize, usize) {
    let common = Metre { beats: 4, unit: 4 };
    let length = common.steps(piece.steps_per_quarter);
    piece.place(step).unwrap_or((common, step / length, step % length))
}

fn part(piece: &Piece, voice: usize, text: &mut String) {
    let mut metre = None;
    for slice in slices(piece, voice) {
        let (now, bar, at) = place(piece, slice.start);
        if at == 0 {
            if bar > 0 {
                *text += "</measure>\n";
            }
            let _ = writeln!(text, r#"<measure number="{}">"#, bar + 1);
            if metre != Some(now) {
                attributes(piece, voice, bar == 0, now, text);
                metre = Some(now);
            }
        }
        written(piece, slice, text);
    }
    *text += "</measure>\n";
}

fn attributes(piece: &Piece, voice: usize, is_first: bool, metre: Metre, text: &mut String) {
    *text += "<attributes>";
    if is_first {
        let _ = write!(text, "<divisions>{}</divisions>", 4 * piece.steps_per_quarter);
        if let Some(key) = piece.tonality {
            let mode = if key.minor { "minor" } else { "major" };
            let _ = write!(text, "<key><fifths>{}</fifths><mode>{mode}</mode></key>", key.signature());
        }
    }
    let _ = write!(text, "<time><beats>{}</beats><beat-type>{}</beat-type></time>", metre.beats, metre.unit);
    if is_first {
        let spans = piece.spans();
        let pitches = spans.iter().filter(|span| span.voice == voice).map(|span| usize::from(span.pitch));
        let (sum, count) = pitches.fold((0, 0), |(sum, count), pitch| (sum + pitch, count + 1));
        let (sign, line) = if sum < 58 * count { ("F", 4) } else { ("G", 2) };
        let _ = write!(text, "<clef><sign>{sign}</sign><line>{line}</line></clef>");
    }
    *text += "</attributes>\n";
    if is_first && voice == 0 {
        let _ = writeln!(
            text,
            r#"<direction><direction-type><metronome><beat-unit>quarter</beat-unit><per-minute>{0:.0}</per-minute></metronome></direction-type><sound tempo="{0:.0}"/></direction>"#,
            piece.tempo
        );
    }
}

/// Cuts a voice, or all notes, into slices that do not cross bar lines.
fn slices(piece: &Piece, voice: usize) -> Vec<Slice> {
    let notes = |step: usize| {
        let all = piece.steps.get(step).map_or(&[][..], |notes| &notes[..]);
        let own = if piece.voices.is_some() { all.get(voice..=voice).unwrap_or_default() } else { all };
        own.iter().flatten()
    };
    let pitches = |step: usize| notes(step).map(|note| note.pitch).collect::<Vec<_>>();
    let goes_on = |step: usize, pitch: u8| notes(step).any(|note| note.pitch == pitch && note.held);
    let changes = |step: usize| {
        let is_bar = place(piece, step).2 == 0;
        is_bar || notes(step).any(|note| !note.held) || pitches(step) != pitches(step - 1)
    };
    let mut slices: Vec<Slice> = vec![];
    for step in 0..piece.len() {
        match slices.last_mut().filter(|_| !changes(step)) {
            Some(slice) => slice.steps += 1,
            None => slices.push(Slice { start: step, steps: 1, notes: vec![] }),
        }
    }
    for slice in &mut slices {
        let end = slice.start + slice.steps;
        let tied = |pitch| (pitch, slice.start > 0 && goes_on(slice.start, pitch), goes_on(end, pitch));
        slice.notes = pitches(slice.start).into_iter().map(tied).collect();
    }
    slices
}

/// Writes a slice as one or more tied notes.
fn written(piece: &Piece, slice: Slice, text: &mut String) {
    // The unit is a sixteenth of a quarter note divided by the steps in it.
    let quarter = 4 * piece.steps_per_quarter;
    let mut left = 4 * slice.steps;
    let mut is_first = true;
    while left > 0 {
        let (duration, name, dots) = value(left, quarter);
        left -= duration;
        if slice.notes.is_empty() {
            note(text, "<rest/>", duration, name, dots, (false, false));
        }
        for (i, &(pitch, from, into)) in slice.notes.iter().enumerate() {
            let chord = if i > 0 { "<chord/>" } else { "" };
            let spelled = format!("{chord}{}", spelled(pitch, piece.tonality));
            note(text, &spelled, duration, name, dots, (from || !is_first, into || left > 0));
        }
        is_first = false;
    }
}

/// The longest note value of at most `left` units: its length, name and number of dots.
fn value(left: usize, quarter: usize) -> (usize, &'static str, usize) {
    const NAMES: [&str; 7] = ["whole", "half", "quarter", "eighth", "16th", "32nd", "64th"];
    for (i, name) in NAMES.into_iter().enumerate() {
        let length = 4 * quarter / (1 << i);
        for (length, dots) in [(length * 3 / 2, 1), (length, 0)] {
            if length > 0 && length <= left && (4 * quarter).is_multiple_of(1 << (i + dots)) {
                return (length, name, dots);
            }
        }
    }
    // Steps that no note value divides, such as triplets, have a duration but a wrong name.
    (left, "eighth", 0)
}

fn note(
    text: &mut String,
    pitch: &str,
    duration: usize,
    name: &str,
    dots: usize,
    (from, into): (bool, bool),
) {
    let ties = [(from, "stop"), (into, "start")].into_iter().filter(|(is, _)| *is).map(|(_, kind)| kind);
    let tie: String = ties.clone().map(|kind| format!(r#"<tie type="{kind}"/>"#)).collect();
    let tied: String = ties.map(|kind| format!(r#"<tied type="{kind}"/>"#)).collect();
    let notations = if tied.is_empty() { tied } else { format!("<notations>{tied}</notations>") };
    let dots = "<dot/>".repeat(dots);
    let _ = writeln!(
        text,
        "<note>{pitch}<duration>{duration}</duration>{tie}<voice>1</voice><type>{name}</type>{dots}{notations}</note>"
    );
}

/// Spells a pitch with the sharps or flats of the key.
fn spelled(pitch: u8, key: Option<Tonality>) -> String {
    const SHARPS: [&str; 12] = ["C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"];
    const FLATS: [&str; 12] = ["C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B"];
    let class = usize::from(pitch % 12);
    // The leading note of a minor key with flats is still a raised note.
    let is_leading = key.is_some_and(|key| key.minor && class == usize::from((key.tonic + 11) % 12));
    let has_flats = key.is_some_and(|key| key.signature() < 0) && !is_leading;
    let name = if has_flats { FLATS[class] } else { SHARPS[class] };
    let alter = match name.as_bytes().get(1) {
        Some(b'#') => "<alter>1</alter>",
        Some(_) => "<alter>-1</alter>",
        None => "",
    };
    format!("<pitch><step>{}</step>{alter}<octave>{}</octave></pitch>", &name[..1], pitch / 12 - 1)
}

#[cfg(test)]
mod tests {
    use super::super::chorales;
    use super::super::piece::tests::piece;
    use super::*;

    #[test]
    fn bars_ties_and_rests_are_written() {
        let mut piece = piece(&[&[60, 0, 62, -62, -62, -62], &[48; 6]]);
        piece.tonality = Some(Tonality { tonic: 2, minor: true });
        let text = write_musicxml(&piece);
        let upper = &text[text.find(r#"<part id="P0">"#).unwrap()..text.find(r#"<part id="P1">"#).unwrap()];
        assert_eq!(upper.matches("<measure").count(), 2);
        assert_eq!((upper.matches("<rest/>").count(), upper.matches("<fifths>-1</fifths>").count()), (1, 1));
        // The d lasts for two quarters in each bar.
        let half = "<duration>8</duration>";
        assert_eq!(upper.matches(&format!("{half}<tie type=\"start\"/>")).count(), 1);
        assert_eq!(upper.matches(&format!("{half}<tie type=\"stop\"/>")).count(), 1);
    }

    #[test]
    fn every_bar_has_its_length() {
        for piece in chorales(6, 0, 0, 2).train {
            for piece in [piece.clone(), piece.without_voices()] {
                let text = write_musicxml(&piece);
                let metre = piece.metres[0].1;
                for bar in text.split("<measure").skip(1) {
                    let length = |note: &&str| !note.contains("<chord/>");
                    let notes = bar.split("<note>").skip(1).filter(length);
                    let duration = |note: &str| -> usize {
                        note.split("<duration>").nth(1).unwrap().split('<').next().unwrap().parse().unwrap()
                    };
                    assert_eq!(
                        notes.map(duration).sum::<usize>(),
                        usize::from(metre.beats) * 8,
                        "{}",
                        piece.name
                    );
                }
            }
        }
    }

    #[test]
    fn durations_become_note_values() {
        assert_eq!(value(24, 8), (24, "half", 1));
        assert_eq!(value(40, 8), (32, "whole", 0));
        assert_eq!(value(4, 8), (4, "eighth", 0));
        assert_eq!(value(1, 12), (1, "eighth", 0));
    }
}
