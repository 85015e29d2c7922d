//! A piece of music in time steps.

use crate::data::fingerprint::Fingerprint;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The MIDI numbers of a piano's lowest and highest key.
pub const KEYS: std::ops::RangeInclusive<u8> = 21..=108;

/// Number of keys of a piano.
pub const KEY_COUNT: usize = 88;

/// A note at one time step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Note {
    /// MIDI number, within [`KEYS`]; 60 is middle C.
    pub pitch: u8,
    /// Whether the note is held from the previous step; otherwise it is struck.
    pub held: bool,
}

impl Note {
    /// The number of its key, from 0.
    pub fn key(self) -> usize {
        usize::from(self.pitch - KEYS.start())
    }
}

/// A time signature, such as 3/4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Metre {
    /// Number of beats in a bar.
    pub beats: u8,
    /// Note value of a beat: 4 for a quarter.
    pub unit: u8,
}

impl Metre {
    /// Number of steps in a bar, at least 1.
    pub fn steps(self, steps_per_quarter: usize) -> usize {
        (usize::from(self.beats) * 4 * steps_per_quarter / usize::from(self.unit.max(1))).max(1)
    }
}

impl fmt::Display for Metre {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.beats, self.unit)
    }
}

/// A major or minor key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tonality {
    /// Pitch class of the tonic, from 0 for C to 11 for B.
    pub tonic: u8,
    /// Whether the key is minor.
    pub minor: bool,
}

const TONICS: [&str; 12] = ["C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B"];
const MINOR_TONICS: [&str; 12] = ["c", "c#", "d", "eb", "e", "f", "f#", "g", "g#", "a", "bb", "b"];

impl Tonality {
    /// Number of keys.
    pub const COUNT: usize = 24;

    /// Its number, below [`COUNT`](Self::COUNT).
    pub fn index(self) -> usize {
        usize::from(self.tonic) + 12 * usize::from(self.minor)
    }

    /// The sharps of its key signature, or the flats as a negative number.
    pub fn signature(self) -> i8 {
        const MAJOR: [i8; 12] = [0, -5, 2, -3, 4, -1, 6, 1, -4, 3, -2, 5];
        const MINOR: [i8; 12] = [-3, 4, -1, -6, 1, -4, 3, -2, 5, 0, -5, 2];
        let table = if self.minor { MINOR } else { MAJOR };
        table[usize::from(self.tonic % 12)]
    }

    /// The key with this signature, as MIDI files record it.
    pub fn from_signature(sharps: i8, minor: bool) -> Option<Self> {
        (0..12).map(|tonic| Self { tonic, minor }).find(|key| key.signature() == sharps)
    }
}

impl fmt::Display for Tonality {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let names = if self.minor { MINOR_TONICS } else { TONICS };
        f.write_str(names[usize::from(self.tonic % 12)])
    }
}

impl FromStr for Tonality {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let keys =
            [false, true].into_iter().flat_map(|minor| (0..12).map(move |tonic| Self { tonic, minor }));
        keys.into_iter()
            .find(|key| key.to_string() == text)
            .ok_or_else(|| "expected a key such as C, Eb or F# (major), or c, eb or f# (minor)".to_string())
    }
}

/// A note of a piece: where it starts, and how long it sounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The voice, from 0 at the top; 0 in music without voices.
    pub voice: usize,
    /// MIDI number.
    pub pitch: u8,
    /// First step.
    pub start: usize,
    /// Number of steps.
    pub steps: usize,
}

/// A piece of music in time steps of equal length.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// The origin of the piece, for messages.
    pub name: String,
    /// The notes of each step.
    ///
    /// With voices, a step has the note of each voice from the highest to the lowest, or a rest. Without, it has its
    /// notes from the lowest to the highest.
    pub steps: Vec<Vec<Option<Note>>>,
    /// Number of voices; `None` for sets of notes.
    pub voices: Option<usize>,
    /// Number of steps in a quarter note.
    pub steps_per_quarter: usize,
    /// Metres, each with the step of the first bar that it applies to; empty if bars are unknown.
    pub metres: Vec<(usize, Metre)>,
    /// The key, if it is known.
    pub tonality: Option<Tonality>,
    /// The style, if the piece has a label.
    pub style: Option<String>,
    /// Quarter notes per minute.
    pub tempo: f64,
}

impl Piece {
    /// Number of time steps.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether there are no steps.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The notes that sound at a step.
    pub fn notes(&self, step: usize) -> impl DoubleEndedIterator<Item = Note> + '_ {
        self.steps[step].iter().flatten().copied()
    }

    /// The notes of the previous step; empty before the first one.
    pub fn before(&self, step: usize) -> &[Option<Note>] {
        step.checked_sub(1).map_or(&[], |before| &self.steps[before])
    }

    /// The pitches that sound at a step, from the lowest to the highest, each once.
    pub fn chord(&self, step: usize) -> Vec<u8> {
        let mut pitches: Vec<u8> = self.notes(step).map(|note| note.pitch).collect();
        pitches.sort_unstable();
        pitches.dedup();
        pitches
    }

    /// The metre at a step, the number of the bar from 0, and the step's place in it.
    ///
    /// Returns `None` if bars are unknown.
    pub fn place(&self, step: usize) -> Option<(Metre, usize, usize)> {
        let mut bar = 0;
        for (i, &(start, metre)) in self.metres.iter().enumerate() {
            let length = metre.steps(self.steps_per_quarter);
            match self.metres.get(i + 1) {
                Some(&(next, _)) if next <= step => bar += (next - start).div_ceil(length),
                _ => return Some((metre, bar + (step - start) / length, (step - start) % length)),
            }
        }
        None
    }

    /// All notes, voice by voice and in order of their start.
    pub fn spans(&self) -> Vec<Span> {
        let mut spans: Vec<Span> = vec![];
        // The sounding notes: indices of spans by voice and pitch.
        let mut open: Vec<usize> = vec![];
        for (start, step) in self.steps.iter().enumerate() {
            let mut now = vec![];
            for (slot, note) in step.iter().enumerate() {
                let Some(Note { pitch, held }) = *note else { continue };
                let voice = if self.voices.is_some() { slot } else { 0 };
                let is_held = |&&i: &&usize| spans[i].voice == voice && spans[i].pitch == pitch;
                match open.iter().find(is_held).filter(|_| held) {
                    Some(&i) => {
                        spans[i].steps += 1;
                        now.push(i);
                    }
                    None => {
                        now.push(spans.len());
                        spans.push(Span { voice, pitch, start, steps: 1 });
                    }
                }
            }
            open = now;
        }
        spans.sort_by_key(|span| (span.voice, span.start, span.pitch));
        spans
    }

    /// The piece `semitones` higher; `None` if a note leaves the keyboard.
    pub fn transposed(&self, semitones: i8) -> Option<Self> {
        let mut piece = self.clone();
        for note in piece.steps.iter_mut().flatten().flatten() {
            note.pitch = note.pitch.checked_add_signed(semitones).filter(|pitch| KEYS.contains(pitch))?;
        }
        if let Some(key) = &mut piece.tonality {
            key.tonic = (i16::from(key.tonic) + i16::from(semitones)).rem_euclid(12) as u8;
        }
        Some(piece)
    }

    /// The same sound without voices: at each step, the notes from the lowest to the highest.
    pub fn without_voices(mut self) -> Self {
        self.voices = None;
        for step in &mut self.steps {
            let mut notes: Vec<Note> = step.iter().flatten().copied().collect();
            // If two voices sound the same key, the voice that strikes it is heard.
            notes.sort_by_key(|note| (note.pitch, note.held));
            notes.dedup_by_key(|note| note.pitch);
            *step = notes.into_iter().map(Some).collect();
        }
        self
    }

    /// The first `steps` steps.
    pub fn beginning(&self, steps: usize) -> Self {
        let mut piece = self.clone();
        piece.steps.truncate(steps);
        piece.metres.retain(|&(start, _)| start == 0 || start < steps);
        piece
    }
}

/// A hash of the pieces, to detect changed data when a run is resumed.
pub fn fingerprint(pieces: &[Piece]) -> u64 {
    let mut hash = Fingerprint::new();
    for piece in pieces {
        let note =
            |note: &Option<Note>| note.map_or(0, |note| u32::from(note.pitch) * 2 + u32::from(note.held));
        for step in &piece.steps {
            hash = hash.add_ids(&step.iter().map(note).collect::<Vec<_>>());
        }
        for (start, metre) in &piece.metres {
            hash = hash.add_ids(&[*start as u32, metre.beats.into(), metre.unit.into()]);
        }
        let key = piece.tonality.map_or(99, |key| key.index() as u32);
        hash = hash.add_ids(&[piece.steps_per_quarter as u32, key]).add_strings(&piece.style);
    }
    hash.finish()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A piece with one voice per list, in steps of a quarter.
    ///
    /// 0 is a rest, a repeated negative pitch is held.
    pub(crate) fn piece(voices: &[&[i16]]) -> Piece {
        let note =
            |pitch: i16| (pitch != 0).then(|| Note { pitch: pitch.unsigned_abs() as u8, held: pitch < 0 });
        let steps = (0..voices[0].len()).map(|step| voices.iter().map(|voice| note(voice[step])).collect());
        Piece {
            name: "test".into(),
            steps: steps.collect(),
            voices: Some(voices.len()),
            steps_per_quarter: 1,
            metres: vec![(0, Metre { beats: 4, unit: 4 })],
            tonality: Some(Tonality { tonic: 0, minor: false }),
            style: None,
            tempo: 90.0,
        }
    }

    #[test]
    fn spans_join_held_notes_and_separate_struck_ones() {
        let piece = piece(&[&[72, -72, 72, 0], &[60, 62, -62, -62]]);
        let found: Vec<_> = piece.spans().iter().map(|s| (s.voice, s.pitch, s.start, s.steps)).collect();
        assert_eq!(found, [(0, 72, 0, 2), (0, 72, 2, 1), (1, 60, 0, 1), (1, 62, 1, 3)]);
    }

    #[test]
    fn bars_are_counted_across_changes_of_metre() {
        let mut piece = piece(&[&[60; 12]]);
        piece.metres.push((8, Metre { beats: 3, unit: 4 }));
        let place = |step| piece.place(step).map(|(metre, bar, place)| (metre.beats, bar, place));
        assert_eq!([0, 7, 8, 11].map(place), [(4, 0, 0), (4, 1, 3), (3, 2, 0), (3, 3, 0)].map(Some));
        piece.metres.clear();
        assert_eq!(piece.place(3), None);
    }

    #[test]
    fn transposing_moves_notes_and_key_and_stays_on_the_keyboard() {
        let original = piece(&[&[107, -107]]);
        let up = original.transposed(1).unwrap();
        assert_eq!((up.chord(1), up.tonality.unwrap().tonic), (vec![108], 1));
        assert_eq!(original.transposed(2), None);
        assert_eq!(original.transposed(-1).unwrap().tonality.unwrap().tonic, 11);
    }

    #[test]
    fn keys_have_the_names_and_signatures_of_musicians() {
        for (name, sharps, minor) in
            [("C", 0, false), ("Eb", -3, false), ("F#", 6, false), ("a", 0, true), ("c#", 4, true)]
        {
            let key: Tonality = name.parse().unwrap();
            assert_eq!((key.signature(), key.minor), (sharps, minor), "{name}");
            assert_eq!(
                (Tonality::from_signature(sharps, minor), key.to_string().as_str()),
                (Some(key), name)
            );
        }
        assert!("H".parse::<Tonality>().unwrap_err().contains("such as C"));
    }
}
