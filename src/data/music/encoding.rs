//! The encoding of pieces for models: features and classes.

use super::corpus::Texture;
use super::piece::{KEY_COUNT, KEYS, Metre, Note, Piece, Tonality};
use crate::data::count;
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ops::Range;

/// The longest bar, in steps, within which a model distinguishes positions.
const MAX_BAR: usize = 64;
/// Bars are counted modulo this number, the usual length of a phrase.
const PHRASE: usize = 4;
/// The largest number of notes in a step that a model counts.
const MAX_COUNT: usize = 16;
/// The largest motion of a voice, in semitones, that a model distinguishes from larger ones.
const MAX_MOTION: i16 = 12;
/// Number of features that describe one voice to another.
///
/// They are the voice's note before, its new note (both may be rests), the motion between them, and, for each interval
/// (modulo octaves) between the two voices before, the pitch class to which the voice moves.
const VOICE_FEATURES: usize = 2 * (KEY_COUNT + 1) + (2 * MAX_MOTION as usize + 1) + 12 * 12;

/// How the steps and notes of pieces become features and classes.
///
/// A feature is an index, and the features of a step or a note form a list.
///
/// A step's features are the notes of the step before and what is known about the step: its place in the bar, key,
/// metre and style. A note's features are the notes already chosen in its step and, with voices, the motion of these
/// and the previous notes of all voices. A note's class is the key that is struck or held. One more class is a rest
/// (with voices) or the end of the step's notes (without).
///
/// If the key of a piece is known, its notes are numbered from the tonic, so that a model transfers what it learns to
/// all keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Encoding {
    /// Whether pieces consist of voices or of sets of notes.
    pub texture: Texture,
    /// Whether held notes differ from struck ones.
    pub held: bool,
    /// Number of steps in a quarter note.
    pub steps_per_quarter: usize,
    /// Length of the longest bar in steps; 0 if bars are unknown.
    pub bar: usize,
    /// The metres, if there is more than one.
    pub metres: Vec<Metre>,
    /// Whether keys are known.
    pub tonalities: bool,
    /// The names of the styles, if pieces have labels.
    pub styles: Vec<String>,
}

/// The features from which a model chooses a note, and the permitted classes.
#[derive(Debug, Clone, PartialEq)]
pub struct NoteChoice {
    /// Features.
    pub ids: Vec<u32>,
    /// The keys that may be struck, and how far their classes are from them.
    struck: (Range<usize>, usize),
    /// The classes of the notes that may be held.
    held: Vec<usize>,
}

impl Encoding {
    /// Creates the encoding that covers `pieces`, which all have the texture.
    pub fn new(pieces: &[Piece], texture: Texture) -> Self {
        let metres: BTreeSet<Metre> =
            pieces.iter().flat_map(|piece| &piece.metres).map(|&(_, metre)| metre).collect();
        let steps_per_quarter = pieces.first().map_or(1, |piece| piece.steps_per_quarter);
        let longest = metres.iter().map(|metre| metre.steps(steps_per_quarter)).max();
        let styles: BTreeSet<&String> = pieces.iter().filter_map(|piece| piece.style.as_ref()).collect();
        Self {
            texture,
            held: pieces.iter().flat_map(|piece| &piece.steps).flatten().flatten().any(|note| note.held),
            steps_per_quarter,
            bar: longest.unwrap_or(0).min(MAX_BAR),
            metres: if metres.len() > 1 { metres.into_iter().collect() } else { vec![] },
            tonalities: pieces.iter().any(|piece| piece.tonality.is_some()),
            styles: styles.into_iter().cloned().collect(),
        }
    }

    /// Number of features of a step.
    pub fn features(&self) -> usize {
        self.conditions() + self.condition_count()
    }

    /// Number of features of a note.
    pub fn note_features(&self) -> usize {
        match self.texture {
            // Of each voice, for each voice that chooses.
            Texture::Voices(voices) => voices * voices * VOICE_FEATURES,
            // The chosen notes, the last of them, and their number.
            Texture::Keys => 2 * KEY_COUNT + MAX_COUNT + 1,
        }
    }

    /// Number of classes of a note.
    pub fn classes(&self) -> usize {
        self.key_outputs() + 1
    }

    /// Number of outputs of a model that predicts keys independently.
    ///
    /// There is one per key for whether it sounds and, if notes are held, one for whether it is struck.
    pub fn key_outputs(&self) -> usize {
        KEY_COUNT * if self.held { 2 } else { 1 }
    }

    /// The class of a voice that rests, and of the end of a step's notes.
    fn none(&self) -> u32 {
        self.key_outputs() as u32
    }

    /// The class of a note in `piece`.
    pub fn class(&self, piece: &Piece, note: Option<Note>) -> u32 {
        match note {
            Some(note) if note.held && self.held => (KEY_COUNT + number(piece, note)) as u32,
            Some(note) => number(piece, note) as u32,
            None => self.none(),
        }
    }

    /// The note of a class in `piece`.
    pub fn note(&self, piece: &Piece, class: u32) -> Option<Note> {
        let key = (class as usize + KEY_COUNT - shift(piece)) % KEY_COUNT;
        let note = Note { pitch: KEYS.start() + key as u8, held: class as usize >= KEY_COUNT };
        (class != self.none()).then_some(note)
    }

    /// The first feature that does not describe the step before.
    fn conditions(&self) -> usize {
        match self.texture {
            // Each voice's note or rest, and whether it was struck.
            Texture::Voices(voices) => voices * (KEY_COUNT + 2) + 1,
            // The notes, which of them were struck, and silence.
            Texture::Keys => 2 * KEY_COUNT + 2,
        }
    }

    fn condition_count(&self) -> usize {
        let bars = if self.bar > 0 { self.bar + PHRASE + 2 } else { 0 };
        bars + self.metres.len() + if self.tonalities { Tonality::COUNT } else { 0 } + self.styles.len()
    }

    /// The features of step `step` in a piece that has, or will have, `length` steps.
    pub fn step(&self, piece: &Piece, step: usize, length: usize) -> Vec<u32> {
        let mut ids = vec![];
        let number = |note: Note| number(piece, note);
        match step.checked_sub(1).map(|before| &piece.steps[before]) {
            // The beginning.
            None => ids.push(self.conditions() - 1),
            Some(before) => match self.texture {
                Texture::Voices(voices) => {
                    for (voice, note) in before.iter().enumerate() {
                        ids.push(voice * (KEY_COUNT + 1) + note.map_or(KEY_COUNT, number));
                        if note.is_some_and(|note| !note.held) {
                            ids.push(voices * (KEY_COUNT + 1) + voice);
                        }
                    }
                }
                Texture::Keys => {
                    let notes = before.iter().flatten();
                    ids.extend(notes.clone().map(|&note| number(note)));
                    if self.held {
                        ids.extend(notes.filter(|note| !note.held).map(|&note| KEY_COUNT + number(note)));
                    }
                    if ids.is_empty() {
                        ids.push(2 * KEY_COUNT);
                    }
                }
            },
        }
        self.add_conditions(piece, step, length, &mut ids);
        ids.into_iter().map(|id| id as u32).collect()
    }

    fn add_conditions(&self, piece: &Piece, step: usize, length: usize, ids: &mut Vec<usize>) {
        let mut first = self.conditions();
        let place = piece.place(step);
        if self.bar > 0 {
            if let (Some((_, bar, place)), Some((_, last, _))) = (place, piece.place(length - 1)) {
                ids.extend([first + place.min(self.bar - 1), first + self.bar + bar % PHRASE]);
                let left = last.saturating_sub(bar);
                ids.extend((left < 2).then_some(first + self.bar + PHRASE + left));
            }
            first += self.bar + PHRASE + 2;
        }
        let metre = place.and_then(|(metre, ..)| self.metres.iter().position(|&known| known == metre));
        ids.extend(metre.map(|index| first + index));
        first += self.metres.len();
        if self.tonalities {
            ids.extend(piece.tonality.map(|key| first + key.index()));
            first += Tonality::COUNT;
        }
        let style =
            piece.style.as_ref().and_then(|style| self.styles.iter().position(|known| known == style));
        ids.extend(style.map(|index| first + index));
    }

    /// The features and permitted classes of the next note of `step`, given the notes already `chosen`.
    pub fn choice(&self, piece: &Piece, step: usize, chosen: &[Option<Note>]) -> NoteChoice {
        let before = piece.before(step);
        let class_held = |note: Note| KEY_COUNT + number(piece, note);
        let (ids, first_key, held) = match self.texture {
            Texture::Voices(voices) => {
                let ids = (0..voices).flat_map(|voice| voice_features(piece, before, chosen, voice, voices));
                let own = before.get(chosen.len()).copied().flatten();
                (ids.collect(), 0, own.map(class_held).into_iter().collect())
            }
            Texture::Keys => {
                let keys = || chosen.iter().flatten().map(|&note| number(piece, note));
                let last = keys().next_back();
                let count = 2 * KEY_COUNT + chosen.len().min(MAX_COUNT);
                let ids: Vec<usize> = keys().chain(last.map(|key| KEY_COUNT + key)).chain([count]).collect();
                let first_key = chosen.iter().flatten().next_back().map_or(0, |last| last.key() + 1);
                let held = before.iter().flatten().filter(|note| note.key() >= first_key);
                (ids, first_key, held.map(|&note| class_held(note)).collect())
            }
        };
        let ids = ids.into_iter().map(|id| id as u32).collect();
        NoteChoice { ids, struck: (first_key..KEY_COUNT, shift(piece)), held }
    }

    /// Whether the notes `chosen` are all notes of a step, so that the step is complete.
    pub fn is_complete(&self, chosen: &[Option<Note>]) -> bool {
        match self.texture {
            Texture::Voices(voices) => chosen.len() == voices,
            Texture::Keys => chosen.last().is_some_and(Option::is_none),
        }
    }

    /// Fills `mask`, one element per class: 0 for the permitted classes, minus infinity for the others.
    pub fn mask(&self, choice: &NoteChoice, mask: &mut [f32]) {
        mask.fill(f32::NEG_INFINITY);
        let (keys, shift) = choice.struck.clone();
        keys.for_each(|key| mask[(key + shift) % KEY_COUNT] = 0.0);
        if self.held {
            choice.held.iter().for_each(|&class| mask[class] = 0.0);
        }
        mask[self.none() as usize] = 0.0;
    }

    /// The choices of one step with their classes.
    pub fn choices(&self, piece: &Piece, step: usize) -> Vec<(NoteChoice, u32)> {
        let mut all = piece.steps[step].clone();
        if self.texture == Texture::Keys {
            all.push(None);
        }
        (0..all.len()).map(|i| (self.choice(piece, step, &all[..i]), self.class(piece, all[i]))).collect()
    }

    /// Number of [`choices`](Self::choices) of a step.
    pub(crate) fn choice_count(&self, piece: &Piece, step: usize) -> usize {
        piece.steps[step].len() + usize::from(self.texture == Texture::Keys)
    }

    /// Returns the sign of each output of a model that predicts keys independently.
    ///
    /// It is 1 for on, -1 for off, 0 for undefined.
    ///
    /// Whether a key is struck again is undefined if it does not sound, or did not sound before.
    pub fn key_signs(&self, piece: &Piece, step: usize) -> Vec<f32> {
        let mut signs = vec![-1.0; self.key_outputs()];
        if self.held {
            signs[KEY_COUNT..].fill(0.0);
        }
        let before = piece.before(step);
        for note in piece.notes(step) {
            let number = number(piece, note);
            signs[number] = 1.0;
            if self.held && before.iter().flatten().any(|other| other.pitch == note.pitch) {
                signs[KEY_COUNT + number] = if note.held { -1.0 } else { 1.0 };
            }
        }
        signs
    }

    /// Converts a piece to the form of this encoding.
    ///
    /// # Errors
    /// Fails if it has other voices, other steps, or a style that is not known.
    pub fn adapt(&self, piece: Piece) -> Result<Piece> {
        let Piece { name, steps_per_quarter, voices, .. } = &piece;
        ensure!(
            *steps_per_quarter == self.steps_per_quarter,
            "{name}: found {} per quarter note, expected {}",
            count(*steps_per_quarter, "step"),
            self.steps_per_quarter
        );
        match (self.texture, *voices) {
            (Texture::Keys, _) => Ok(piece.without_voices()),
            (Texture::Voices(expected), Some(found)) if found == expected => Ok(piece),
            (Texture::Voices(expected), found) => {
                let found = found.map_or("no separate voices".to_string(), |found| format!("{found} voices"));
                anyhow::bail!("{name}: found {found}, expected {expected} parts with one note at a time")
            }
        }
    }
}

/// The number of a note's key, counted from the tonic of `piece` if it is known.
fn number(piece: &Piece, note: Note) -> usize {
    (note.key() + shift(piece)) % KEY_COUNT
}

/// The offset from keys to their numbers.
///
/// It moves the tonic by up to a tritone, up or down; the keyboard wraps around.
fn shift(piece: &Piece) -> usize {
    match piece.tonality.map_or(0, |key| usize::from(key.tonic)) {
        tonic @ 0..6 => (KEY_COUNT - tonic) % KEY_COUNT,
        tonic => 12 - tonic,
    }
}

/// The features that describe `voice` to the voice that chooses next, after those in `chosen`.
///
/// The features of a pair of voices make rules about their motion easy to learn. For example, a previous fifth and the
/// pitch class to which one voice moves tell the other which note would be a parallel fifth.
fn voice_features(
    piece: &Piece,
    before: &[Option<Note>],
    chosen: &[Option<Note>],
    voice: usize,
    voices: usize,
) -> Vec<usize> {
    let number = |note: Note| number(piece, note);
    let first = (chosen.len() * voices + voice) * VOICE_FEATURES;
    let was = before.get(voice).copied().flatten();
    let mut ids = vec![first + was.map_or(KEY_COUNT, number)];
    let Some(&now) = chosen.get(voice) else { return ids };
    let first = first + KEY_COUNT + 1;
    ids.push(first + now.map_or(KEY_COUNT, number));
    let first = first + KEY_COUNT + 1;
    let (Some(was), Some(now)) = (was, now) else { return ids };
    let motion = i16::from(now.pitch) - i16::from(was.pitch);
    ids.push(first + (motion.clamp(-MAX_MOTION, MAX_MOTION) + MAX_MOTION) as usize);
    let first = first + 2 * MAX_MOTION as usize + 1;
    if let Some(own) = before.get(chosen.len()).copied().flatten().filter(|_| motion != 0) {
        let interval = (i16::from(was.pitch) - i16::from(own.pitch)).rem_euclid(12) as usize;
        ids.push(first + 12 * interval + number(now) % 12);
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::super::chorales;
    use super::*;

    #[test]
    fn classes_and_notes_correspond_and_the_mask_allows_what_happens() {
        let voices = chorales(2, 0, 0, 0).train;
        let keys: Vec<Piece> = voices.iter().map(|piece| piece.clone().without_voices()).collect();
        for (pieces, texture) in [(voices, Texture::Voices(4)), (keys, Texture::Keys)] {
            let encoding = Encoding::new(&pieces, texture);
            let mut mask = vec![0.0; encoding.classes()];
            for piece in &pieces {
                let mut decoded: Vec<Vec<Option<Note>>> = vec![vec![]; piece.len()];
                for (step, decoded) in decoded.iter_mut().enumerate() {
                    let ids = encoding.step(piece, step, piece.len());
                    assert!(ids.iter().all(|&id| (id as usize) < encoding.features()));
                    for (choice, class) in encoding.choices(piece, step) {
                        assert!(choice.ids.iter().all(|&id| (id as usize) < encoding.note_features()));
                        encoding.mask(&choice, &mut mask);
                        assert_eq!(mask[class as usize], 0.0);
                        decoded.push(encoding.note(piece, class));
                    }
                }
                if texture == Texture::Keys {
                    decoded.iter_mut().for_each(|notes| assert_eq!(notes.pop(), Some(None)));
                }
                assert_eq!(decoded, piece.steps);
            }
        }
    }

    #[test]
    fn features_tell_apart_what_they_describe() {
        let piece = &chorales(1, 0, 0, 0).train[0];
        let encoding = Encoding::new(std::slice::from_ref(piece), Texture::Voices(4));
        let original = encoding.step(piece, 5, piece.len());
        assert_ne!(original, encoding.step(&piece.transposed(1).unwrap(), 5, piece.len()));
        assert_ne!(original, encoding.step(piece, 5, 6), "the last bar");
        assert_ne!(original, encoding.step(&Piece { tonality: None, ..piece.clone() }, 5, piece.len()));
        assert_ne!(original, encoding.step(&Piece { style: None, ..piece.clone() }, 5, piece.len()));
        // Half a phrase later, with everything else equal.
        let mut later = piece.clone();
        later.steps.rotate_right(8 * 2);
        assert_ne!(original, encoding.step(&later, 5 + 8 * 2, piece.len()));
    }

    #[test]
    fn what_is_learned_in_one_key_holds_in_all() {
        let chorale = chorales(1, 0, 0, 0).train.remove(0);
        let in_c = chorale.transposed(-(chorale.tonality.unwrap().tonic as i8)).unwrap();
        for (texture, piece) in [(Texture::Voices(4), in_c.clone()), (Texture::Keys, in_c.without_voices())] {
            let encoding = Encoding::new(std::slice::from_ref(&piece), texture);
            for semitones in [-6, 2, 5] {
                let other = piece.transposed(semitones).unwrap();
                let [ids, of_other] = [&piece, &other].map(|piece| encoding.step(piece, 5, piece.len()));
                assert_eq!(ids.iter().filter(|id| !of_other.contains(id)).count(), 1, "only the key");
                for (a, b) in encoding.choices(&piece, 5).into_iter().zip(encoding.choices(&other, 5)) {
                    assert_eq!((a.0.ids, a.1), (b.0.ids, b.1));
                }
                assert_eq!(encoding.key_signs(&piece, 5), encoding.key_signs(&other, 5));
            }
        }
    }

    #[test]
    fn a_voice_knows_how_the_others_move() {
        let note = |pitch| Some(Note { pitch, held: false });
        let encoding = |before: [u8; 2], soprano: u8| {
            let piece = Piece {
                steps: vec![before.map(note).to_vec()],
                voices: Some(2),
                tonality: None,
                ..chorales(1, 0, 0, 0).train.remove(0)
            };
            let encoding = Encoding::new(std::slice::from_ref(&piece), Texture::Voices(2));
            encoding.choice(&piece, 1, &[note(soprano)]).ids
        };
        // Two notes before, one now, its motion, and its interval and target unless it stays.
        assert_eq!(encoding([67, 60], 69).len(), 5);
        assert_eq!(encoding([69, 60], 69).len(), 4);
        let (fifth, octave) = (encoding([67, 60], 69), encoding([67, 55], 69));
        assert_ne!(fifth[3], octave[3]);
        assert_eq!(fifth[..3], octave[..3]);
    }

    #[test]
    fn signs_leave_out_what_has_no_meaning() {
        let note = |pitch, held| Some(Note { pitch, held });
        let encoding = Encoding {
            texture: Texture::Keys,
            held: true,
            steps_per_quarter: 2,
            bar: 0,
            metres: vec![],
            tonalities: false,
            styles: vec![],
        };
        let piece = Piece {
            steps: vec![vec![note(60, false), note(64, false)], vec![note(60, true), note(67, false)]],
            voices: None,
            tonality: None,
            ..chorales(1, 0, 0, 0).train.remove(0)
        };
        let signs = encoding.key_signs(&piece, 1);
        let at = |pitch: usize| (signs[pitch - 21], signs[KEY_COUNT + pitch - 21]);
        assert_eq!([60, 64, 67].map(at), [(1.0, -1.0), (-1.0, 0.0), (1.0, 0.0)]);
    }

    #[test]
    fn pieces_of_another_form_are_refused() {
        let piece = chorales(1, 0, 0, 0).train.remove(0);
        let encoding = Encoding::new(std::slice::from_ref(&piece), Texture::Voices(4));
        let other = Piece { steps_per_quarter: 4, ..piece.clone() };
        assert!(
            encoding
                .adapt(other)
                .unwrap_err()
                .to_string()
                .contains("found 4 steps per quarter note, expected 2")
        );
        let error = encoding.adapt(piece.clone().without_voices()).unwrap_err().to_string();
        assert!(error.contains("found no separate voices, expected 4 parts"), "{error}");
        let keys = Encoding { texture: Texture::Keys, ..encoding };
        assert_eq!(keys.adapt(piece).unwrap().voices, None);
    }
}
