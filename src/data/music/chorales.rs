//! The built-in pieces: chorales in four parts, composed by the rules of voice leading.
//!
//! A chorale has four phrases of four bars in 4/4 or 3/4, in one of eight keys, with a chord per beat. Each phrase is a
//! walk through functional harmony to a cadence (`harmony.rs`). The four voices then move from chord to chord without
//! breaking a hard rule: ranges, spacing, crossing, parallel fifths and octaves, leaps, resolution of leading notes and
//! sevenths. Soft rules, such as direct fifths and overlaps, only make a motion less probable, so a few steps in a
//! hundred break one. The style `florid` adds passing notes and suspensions to the style `plain`.
//!
//! The pieces follow local rules. A recurrent network that knows the notes already chosen within a step learns nearly
//! all of the rules. A network that chooses the notes of a step independently writes notes that do not form chords.

use super::corpus::{MusicCorpus, Texture};
use super::harmony::{Cadence, Harmony, phrase};
use super::piece::{Metre, Note, Piece, Tonality};
use super::rules::{Chord, RANGES, Rule, VOICES, horizontal, leaps, vertical, violations};
use crate::kernels::cpu::parallel;
use crate::rng::stream;
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

/// The keys: C, D, F and G major, d, e, g and a minor.
const TONALITIES: [Tonality; 8] = [
    Tonality { tonic: 0, minor: false },
    Tonality { tonic: 2, minor: false },
    Tonality { tonic: 5, minor: false },
    Tonality { tonic: 7, minor: false },
    Tonality { tonic: 2, minor: true },
    Tonality { tonic: 4, minor: true },
    Tonality { tonic: 7, minor: true },
    Tonality { tonic: 9, minor: true },
];

const STYLES: [&str; 2] = ["plain", "florid"];
const STEPS_PER_QUARTER: usize = 2;
const PHRASES: usize = 4;
const BARS_PER_PHRASE: usize = 4;

/// Generates `train` training, `validation` validation and `test` test chorales.
///
/// They are a function of `seed`; a smaller training set is the beginning of a larger one.
pub fn chorales(train: usize, validation: usize, test: usize, seed: u64) -> MusicCorpus {
    let split = |count: usize, name: &str| -> Vec<Piece> {
        let mut pieces: Vec<Option<Piece>> = vec![None; count];
        parallel::for_each_piece(&mut pieces, 1, |i, piece| {
            piece[0] = Some(chorale(&format!("chorale {name} {i}"), seed));
        });
        pieces.into_iter().flatten().collect()
    };
    MusicCorpus {
        train: split(train, "train"),
        validation: Some(split(validation, "validation")),
        test: Some(split(test, "test")),
        texture: Texture::Voices(VOICES),
        notes: vec![],
    }
}

/// A chorale, a function of its name and the seed.
fn chorale(name: &str, seed: u64) -> Piece {
    let rng = &mut stream(seed, name);
    let tonality = TONALITIES[rng.random_range(0..TONALITIES.len())];
    let metre = Metre { beats: if rng.random_bool(0.6) { 4 } else { 3 }, unit: 4 };
    let style = STYLES[rng.random_range(0..STYLES.len())];
    let beats = BARS_PER_PHRASE * usize::from(metre.beats);
    let chords = loop {
        let harmonies: Vec<Harmony> = (0..PHRASES)
            .flat_map(|number| {
                let cadence = match number {
                    _ if number + 1 == PHRASES => Cadence::Authentic,
                    0 | 2 if rng.random_bool(0.6) => Cadence::Half,
                    _ if rng.random_bool(0.2) => Cadence::Deceptive,
                    _ => Cadence::Authentic,
                };
                // The last chord of a phrase lasts for two beats.
                phrase(beats - 1, cadence, tonality.minor, rng)
            })
            .collect();
        // Some progressions have no good voices.
        let voices = Voices { tonality, harmonies: &harmonies };
        if let Some(chords) = voices.lead(rng) {
            break chords;
        }
    };
    let mut piece = Piece {
        name: name.to_string(),
        steps: vec![],
        voices: Some(VOICES),
        steps_per_quarter: STEPS_PER_QUARTER,
        metres: vec![(0, metre)],
        tonality: Some(tonality),
        style: Some(style.to_string()),
        tempo: 84.0,
    };
    for (i, chord) in chords.iter().enumerate() {
        let is_end = (i + 1).is_multiple_of(beats - 1);
        let steps = STEPS_PER_QUARTER * if is_end { 2 } else { 1 };
        for step in 0..steps {
            piece.steps.push(chord.map(|pitch| Some(Note { pitch, held: step > 0 })).to_vec());
        }
    }
    debug_assert_eq!(chords.len(), PHRASES * (beats - 1));
    if style == "florid" {
        ornament(&mut piece, tonality, rng);
    }
    piece
}

/// The voices of a progression.
struct Voices<'a> {
    tonality: Tonality,
    harmonies: &'a [Harmony],
}

impl Voices<'_> {
    /// Finds voices for all chords by a random walk that goes back some steps at a dead end.
    fn lead(&self, rng: &mut ChaCha8Rng) -> Option<Vec<Chord>> {
        let mut kinds: Vec<Harmony> = vec![];
        for harmony in self.harmonies {
            if !kinds.contains(harmony) {
                kinds.push(*harmony);
            }
        }
        let of_kinds: Vec<Vec<Chord>> = kinds.iter().map(|&harmony| self.voicings(harmony)).collect();
        let kind = |harmony: &Harmony| kinds.iter().position(|kind| kind == harmony).unwrap_or(0);
        let voicings: Vec<&[Chord]> =
            self.harmonies.iter().map(|harmony| &of_kinds[kind(harmony)][..]).collect();
        let (mut chords, mut tries): (Vec<Chord>, usize) = (vec![], 0);
        while chords.len() < voicings.len() {
            tries += 1;
            if tries > 4 * voicings.len() {
                return None;
            }
            let at = chords.len();
            let costs: Vec<(Chord, f64)> = voicings[at]
                .iter()
                .filter_map(|&chord| Some((chord, self.cost(at, chords.last().copied(), chord)?)))
                .collect();
            let weight = |(_, cost): &(Chord, f64)| libm::exp(-cost);
            match costs.choose_weighted(rng, weight) {
                Ok(&(chord, _)) => chords.push(chord),
                Err(_) => chords.truncate(at.saturating_sub(3)),
            }
        }
        Some(chords)
    }

    /// The pitch class of a number of semitones above the tonic.
    fn class(&self, tone: u8) -> u8 {
        (self.tonality.tonic + tone) % 12
    }

    /// All ways to distribute a chord to the voices.
    fn voicings(&self, harmony: Harmony) -> Vec<Chord> {
        let tones: Vec<u8> =
            harmony.tones(self.tonality.minor).iter().map(|&tone| self.class(tone)).collect();
        let pitches = |voice: usize| RANGES[voice].clone().filter(|pitch| tones.contains(&(pitch % 12)));
        let mut voicings = vec![];
        for bass in pitches(3).filter(|pitch| pitch % 12 == tones[harmony.inversion]) {
            for tenor in pitches(2).filter(|&tenor| tenor >= bass && tenor - bass <= 19) {
                for alto in pitches(1).filter(|&alto| alto >= tenor) {
                    voicings.extend(pitches(0).map(|soprano| [soprano, alto, tenor, bass]));
                }
            }
        }
        let leading = self.class(11);
        voicings.retain(|&chord| {
            let count = |class: u8| chord.iter().filter(|&&pitch| pitch % 12 == class).count();
            // The fifth of a dominant seventh chord may be left out; leading note and seventh are never doubled.
            let is_complete =
                tones.iter().enumerate().all(|(i, &tone)| count(tone) > 0 || (harmony.seventh && i == 2));
            let is_doubled_well = count(leading) <= 1 && (!harmony.seventh || count(tones[3]) == 1);
            is_complete && is_doubled_well && vertical(&chord).is_empty()
        });
        voicings
    }

    /// The cost of the step to a chord: its negative log weight, or `None` if it breaks a hard rule.
    fn cost(&self, at: usize, before: Option<Chord>, chord: Chord) -> Option<f64> {
        // Most voicings are too far away, so this is checked first.
        if before.is_some_and(|before| leaps(&before, &chord)) {
            return None;
        }
        let harmony = self.harmonies[at];
        let root = self.class(harmony.tones(self.tonality.minor)[0]);
        let doubled = chord.iter().filter(|&&pitch| pitch % 12 == root).count();
        let doubling = if harmony.degree == 7 || doubled == 2 { 0.0 } else { 0.8 };
        let is_last = at + 1 == self.harmonies.len();
        if is_last && chord[0] % 12 != root {
            return None;
        }
        let Some(before) = before else { return Some(doubling) };
        let broken = horizontal(&before, &chord);
        if broken.iter().any(|rule| !rule.is_soft())
            || !self.resolves(self.harmonies[at - 1], before, harmony, chord)
        {
            return None;
        }
        let motion = |voice: usize| f64::from(before[voice].abs_diff(chord[voice]));
        let repeated = if before == chord { 3.0 } else { 0.0 };
        let melody = match motion(0) as u8 {
            0 => 1.2,
            1 | 2 => 0.0,
            3 | 4 => 0.6,
            _ => 0.5 * motion(0) - 1.0,
        };
        let inner = 0.35 * (motion(1) + motion(2)) + 0.08 * motion(3);
        Some(doubling + 1.5 * broken.len() as f64 + melody + inner + repeated)
    }

    /// Whether the leading note rises and the seventh falls where the dominant resolves.
    ///
    /// Nor may a voice move by an augmented second.
    fn resolves(&self, from: Harmony, before: Chord, to: Harmony, chord: Chord) -> bool {
        let (leading, sixth, seventh) = (self.class(11), self.class(8), self.class(5));
        let is_resolution = matches!(from.degree, 5 | 7) && matches!(to.degree, 1 | 6);
        before.iter().zip(&chord).enumerate().all(|(voice, (&a, &b))| {
            let is_augmented = self.tonality.minor
                && a.abs_diff(b) == 3
                && ((a % 12 == leading && b % 12 == sixth) || (a % 12 == sixth && b % 12 == leading));
            // In an inner voice the leading note may fall to the fifth.
            let rises = a % 12 != leading || b == a + 1 || (voice != 0 && b < a && a - b == 4);
            let falls = a % 12 != seventh || a == b || (b < a && a - b <= 2);
            let is_seventh = from.seventh || from.degree == 7;
            !is_augmented && (!is_resolution || rises) && (!is_seventh || !is_resolution || falls)
        })
    }
}

/// Adds passing notes and suspensions wherever they break no further rule.
fn ornament(piece: &mut Piece, tonality: Tonality, rng: &mut ChaCha8Rng) {
    let scale: &[u8] = if tonality.minor { &[0, 2, 3, 5, 7, 8, 10] } else { &[0, 2, 4, 5, 7, 9, 11] };
    let leading = (tonality.tonic + 11) % 12;
    let is_in_scale = |pitch: u8| scale.contains(&((pitch + 12 - tonality.tonic) % 12));
    for beat in (0..piece.len() - STEPS_PER_QUARTER).step_by(STEPS_PER_QUARTER) {
        for voice in 0..VOICES {
            let (off, next) = (beat + 1, beat + STEPS_PER_QUARTER);
            let pitch = |piece: &Piece, step: usize| piece.steps[step][voice].map_or(0, |note| note.pitch);
            let (from, to) = (pitch(piece, off), pitch(piece, next));
            let is_raised = tonality.minor && (from % 12 == leading || to % 12 == leading);
            let passing = (from.min(to) + 1..from.max(to)).find(|&pitch| is_in_scale(pitch));
            let mut changed = piece.clone_steps(beat, next + 2);
            match passing {
                Some(passing)
                    if (3..=4).contains(&from.abs_diff(to)) && !is_raised && rng.random_bool(0.6) =>
                {
                    changed[1][voice] = Some(Note { pitch: passing, held: false });
                }
                _ if from > to
                    && from - to <= 2
                    && piece.steps[next + 1][voice].is_some_and(|note| note.held)
                    && rng.random_bool(0.3) =>
                {
                    changed[2][voice] = Some(Note { pitch: from, held: true });
                    changed[3][voice] = Some(Note { pitch: to, held: false });
                }
                _ => continue,
            }
            let steps = beat..(next + 3).min(piece.len());
            let count = |piece: &Piece| {
                let broken: Vec<Rule> = steps.clone().flat_map(|step| violations(piece, step)).collect();
                (broken.len(), broken.iter().filter(|rule| !rule.is_soft()).count())
            };
            let before = count(piece);
            let old = piece.replace_steps(beat, changed);
            let after = count(piece);
            // A soft violation must not be replaced by a hard one.
            if after.0 > before.0 || after.1 > before.1 {
                piece.replace_steps(beat, old);
            }
        }
    }
}

impl Piece {
    fn clone_steps(&self, start: usize, end: usize) -> Vec<Vec<Option<Note>>> {
        self.steps[start..end.min(self.len())].to_vec()
    }

    /// Replaces the steps from `start` on, and returns the old ones.
    fn replace_steps(&mut self, start: usize, steps: Vec<Vec<Option<Note>>>) -> Vec<Vec<Option<Note>>> {
        let end = start + steps.len();
        self.steps.splice(start..end, steps).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::rules::violation_share;
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn chorales_break_no_hard_rule_and_few_soft_ones() {
        let pieces = chorales(20, 0, 0, 7).train;
        for piece in &pieces {
            for step in 0..piece.len() {
                let broken = violations(piece, step);
                assert!(broken.iter().all(|rule| rule.is_soft()), "{}, step {step}: {broken:?}", piece.name);
            }
        }
        let share = violation_share(&pieces);
        assert!((0.002..0.12).contains(&share), "{share}");
    }

    #[test]
    fn chorales_have_bars_phrases_keys_and_variety() {
        let pieces = chorales(24, 0, 0, 0).train;
        for piece in &pieces {
            let (metre, bar, place) = piece.place(piece.len() - 1).unwrap();
            assert_eq!((bar, place + 1), (15, metre.steps(2)), "{}", piece.name);
            let tonic = piece.tonality.unwrap().tonic;
            assert_eq!(piece.chord(piece.len() - 1)[0] % 12, tonic, "{} ends on the tonic", piece.name);
            let chords: HashSet<Vec<u8>> = (0..piece.len()).map(|step| piece.chord(step)).collect();
            assert!(chords.len() >= 20, "{}: {} chords", piece.name, chords.len());
        }
        let kinds: HashSet<_> = pieces.iter().map(|piece| (piece.tonality, piece.metres[0].1)).collect();
        assert!(kinds.len() >= 8, "{} keys and metres", kinds.len());
        let ornaments =
            |piece: &Piece| piece.steps.iter().skip(1).step_by(2).flatten().flatten().any(|note| !note.held);
        assert!(pieces.iter().all(|piece| ornaments(piece) == (piece.style.as_deref() == Some("florid"))));
    }

    #[test]
    fn a_smaller_training_set_is_the_beginning_of_a_larger_one() {
        assert_eq!(chorales(3, 0, 0, 1).train[..2], chorales(2, 0, 0, 1).train[..]);
        assert_ne!(chorales(1, 0, 0, 1).train, chorales(1, 0, 0, 2).train);
    }
}
