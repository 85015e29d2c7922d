//! The rules of four-part writing.
//!
//! The built-in chorales follow them, and their violations measure how well a model has learned them.

use super::piece::Piece;
use std::ops::RangeInclusive;

/// The voices of a four-part setting, from the highest: soprano, alto, tenor, bass.
pub const VOICES: usize = 4;

/// The range of each voice.
pub const RANGES: [RangeInclusive<u8>; VOICES] = [60..=81, 55..=74, 48..=69, 40..=64];

/// The pitches of the four voices, from the highest.
pub(super) type Chord = [u8; VOICES];

/// A rule of four-part writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// All four voices sound.
    FourVoices,
    /// Each voice stays in its range.
    Range,
    /// No voice is above a higher one.
    Crossing,
    /// The upper three voices are at most an octave apart.
    Spacing,
    /// The notes form a triad or a dominant seventh chord, except passing notes and suspensions.
    Consonance,
    /// No two voices move from one fifth to another.
    ParallelFifths,
    /// No two voices move from one octave or unison to another.
    ParallelOctaves,
    /// The outer voices do not move in the same direction into a fifth or an octave.
    ///
    /// It is allowed if the soprano moves by step.
    DirectPerfect,
    /// No voice moves beyond the previous note of its neighbour.
    Overlap,
    /// Voices avoid leaps of a tritone, of a seventh, and beyond an octave.
    Leap,
}

impl Rule {
    /// All rules.
    pub const ALL: [Self; 10] = [
        Self::FourVoices,
        Self::Range,
        Self::Crossing,
        Self::Spacing,
        Self::Consonance,
        Self::ParallelFifths,
        Self::ParallelOctaves,
        Self::DirectPerfect,
        Self::Overlap,
        Self::Leap,
    ];

    /// Whether good pieces occasionally break the rule.
    pub(super) fn is_soft(self) -> bool {
        matches!(self, Self::DirectPerfect | Self::Overlap)
    }

    /// Describes a violation of the rule in a few words.
    pub fn violation(self) -> &'static str {
        match self {
            Self::FourVoices => "not four voices",
            Self::Range => "voice out of range",
            Self::Crossing => "crossed voices",
            Self::Spacing => "upper voices too far apart",
            Self::Consonance => "unprepared dissonance",
            Self::ParallelFifths => "parallel fifths",
            Self::ParallelOctaves => "parallel octaves",
            Self::DirectPerfect => "direct fifth or octave",
            Self::Overlap => "overlapping voices",
            Self::Leap => "awkward leap",
        }
    }
}

/// Returns the rules that are broken at a step of `piece`, in the order of [`Rule::ALL`].
///
/// In a piece without voices, steps of four notes are treated as four voices.
pub fn violations(piece: &Piece, step: usize) -> Vec<Rule> {
    let Some(now) = voices(piece, step) else { return vec![Rule::FourVoices] };
    let mut broken = vertical(now);
    let after = (step + 1 < piece.len()).then(|| voices(piece, step + 1)).flatten();
    let before = step.checked_sub(1).and_then(|step| voices(piece, step));
    if !is_consonant(piece, step, before, now, after) {
        broken.push(Rule::Consonance);
    }
    broken.extend(before.into_iter().flat_map(|before| horizontal(before, now)));
    broken
}

/// The fraction of the steps of `pieces` that break a rule; 0 without steps.
pub fn violation_share(pieces: &[Piece]) -> f64 {
    let steps: usize = pieces.iter().map(Piece::len).sum();
    let breaks = |piece: &Piece| (0..piece.len()).filter(|&step| !violations(piece, step).is_empty()).count();
    pieces.iter().map(breaks).sum::<usize>() as f64 / steps.max(1) as f64
}

/// The four pitches at a step; `None` if there are more or fewer notes.
fn voices(piece: &Piece, step: usize) -> Option<Chord> {
    let mut pitches: Vec<u8> = piece.notes(step).map(|note| note.pitch).collect();
    if piece.voices.is_none() {
        pitches.reverse();
    }
    pitches.try_into().ok()
}

/// The rules for simultaneous notes that `chord` breaks.
pub(super) fn vertical(chord: Chord) -> Vec<Rule> {
    let [soprano, alto, tenor, _] = chord;
    let is_in_range = RANGES.iter().zip(&chord).all(|(range, pitch)| range.contains(pitch));
    let checks = [
        (Rule::Range, is_in_range),
        (Rule::Crossing, chord.is_sorted_by(|upper, lower| upper >= lower)),
        (Rule::Spacing, soprano.abs_diff(alto) <= 12 && alto.abs_diff(tenor) <= 12),
    ];
    checks.into_iter().filter(|(_, holds)| !holds).map(|(rule, _)| rule).collect()
}

/// The rules for the motion of voices that the step from `before` to `now` breaks.
pub(super) fn horizontal(before: Chord, now: Chord) -> Vec<Rule> {
    let mut broken = vec![];
    let moves = |voice: usize| before[voice] != now[voice];
    let interval = |chord: Chord, upper: usize, lower: usize| chord[upper].abs_diff(chord[lower]) % 12;
    let pairs = || (0..VOICES).flat_map(|upper| (upper + 1..VOICES).map(move |lower| (upper, lower)));
    let parallel = |size: u8| {
        pairs().any(|(upper, lower)| {
            moves(upper)
                && moves(lower)
                && [before, now].iter().all(|&chord| interval(chord, upper, lower) == size)
        })
    };
    if parallel(7) {
        broken.push(Rule::ParallelFifths);
    }
    if parallel(0) {
        broken.push(Rule::ParallelOctaves);
    }
    let [soprano, bass] = [0, VOICES - 1].map(|voice| i16::from(now[voice]) - i16::from(before[voice]));
    if soprano * bass > 0 && soprano.abs() > 2 && [0, 7].contains(&interval(now, 0, VOICES - 1)) {
        broken.push(Rule::DirectPerfect);
    }
    if (1..VOICES).any(|voice| now[voice] > before[voice - 1] || now[voice - 1] < before[voice]) {
        broken.push(Rule::Overlap);
    }
    if leaps(before, now) {
        broken.push(Rule::Leap);
    }
    broken
}

/// Whether a voice breaks the rule for leaps.
pub(super) fn leaps(before: Chord, now: Chord) -> bool {
    before.iter().zip(&now).any(|(a, b)| matches!(a.abs_diff(*b), 6 | 10 | 11 | 13..))
}

/// A set of pitch classes, one per bit.
type Classes = u16;

/// The chords above C: triads, the dominant seventh, and both without their fifth.
const CHORDS: [Classes; 7] = [
    classes(&[0, 4, 7]),
    classes(&[0, 3, 7]),
    classes(&[0, 3, 6]),
    classes(&[0, 4, 7, 10]),
    classes(&[0, 4, 10]),
    classes(&[0, 4]),
    classes(&[0, 3]),
];

/// The pitch classes of some pitches.
const fn classes(pitches: &[u8]) -> Classes {
    let (mut set, mut i) = (0, 0);
    while i < pitches.len() {
        set |= 1 << (pitches[i] % 12);
        i += 1;
    }
    set
}

/// Whether a chord on any root satisfies a condition.
fn any_chord(is: impl Fn(Classes) -> bool) -> bool {
    let on = |chord: Classes, root: u32| (chord << root | chord >> (12 - root)) & 0xfff;
    CHORDS.iter().any(|&chord| (0..12).any(|root| is(on(chord, root))))
}

/// Whether the notes at a step form a chord once passing notes and suspensions are left out.
fn is_consonant(piece: &Piece, step: usize, before: Option<Chord>, now: Chord, after: Option<Chord>) -> bool {
    let all = classes(&now);
    if any_chord(|chord| chord == all) {
        return true;
    }
    let (Some(before), Some(after)) = (before, after) else { return false };
    let is_on_beat =
        piece.place(step).is_none_or(|(_, _, place)| place.is_multiple_of(piece.steps_per_quarter));
    let is_step = |from: u8, to: u8| (1..=2).contains(&from.abs_diff(to));
    let is_free = |voice: usize| match is_on_beat {
        true => before[voice] == now[voice] && now[voice] > after[voice] && is_step(now[voice], after[voice]),
        false => is_step(before[voice], now[voice]) && is_step(now[voice], after[voice]),
    };
    let rest: Vec<u8> = (0..VOICES).filter(|&voice| !is_free(voice)).map(|voice| now[voice]).collect();
    let rest_classes = classes(&rest);
    rest.len() >= 2 && rest.len() < VOICES && any_chord(|chord| rest_classes & !chord == 0)
}

#[cfg(test)]
mod tests {
    use super::super::piece::tests::piece;
    use super::*;

    /// The rules broken anywhere in a piece of steps of a quarter.
    fn broken(voices: [&[i16]; 4]) -> Vec<Rule> {
        let piece = piece(&voices);
        (0..piece.len()).flat_map(|step| violations(&piece, step)).collect()
    }

    #[test]
    fn a_cadence_by_the_book_breaks_no_rule() {
        // IV, V, I in C major.
        assert_eq!(broken([&[72, 71, 72], &[69, 67, 67], &[65, 62, 64], &[53, 55, 48]]), []);
    }

    #[test]
    fn each_rule_finds_its_violation() {
        for (rule, voices) in [
            (Rule::FourVoices, [[72, 72], [67, 0], [64, 64], [48, 48]]),
            (Rule::Range, [[84, 72], [72, 67], [64, 64], [48, 48]]),
            (Rule::Crossing, [[72, 72], [64, 64], [67, 67], [48, 48]]),
            (Rule::Spacing, [[79, 79], [64, 64], [60, 60], [48, 48]]),
            (Rule::Consonance, [[72, 72], [67, 67], [65, 65], [50, 50]]),
            (Rule::ParallelFifths, [[72, 74], [67, 69], [64, 65], [53, 55]]),
            (Rule::ParallelOctaves, [[72, 74], [67, 69], [64, 65], [48, 50]]),
            (Rule::DirectPerfect, [[67, 72], [64, 69], [60, 60], [48, 53]]),
            (Rule::Overlap, [[67, 76], [60, 72], [55, 67], [48, 48]]),
            (Rule::Leap, [[67, 73], [64, 64], [60, 57], [57, 57]]),
        ] {
            let found = broken([&voices[0], &voices[1], &voices[2], &voices[3]]);
            assert!(found.contains(&rule), "{rule:?}: {found:?}");
        }
    }

    #[test]
    fn passing_notes_and_suspensions_are_no_dissonances() {
        let consonance = |voices: [&[i16]; 4]| {
            let mut piece = piece(&voices);
            piece.steps_per_quarter = 2;
            (0..piece.len()).any(|step| violations(&piece, step).contains(&Rule::Consonance))
        };
        // The soprano passes through d between two beats; on the beat it would be a dissonance.
        assert!(!consonance([&[76, 74, 72, -72], &[67; 4], &[64; 4], &[48; 4]]));
        assert!(consonance([&[76, -76, 74, 72, 72], &[67; 5], &[64; 5], &[48; 5]]));
        // The soprano holds c over the chord of G and falls to b.
        assert!(!consonance([&[72, -72, -72, 71], &[67; 4], &[64, 64, 62, 62], &[48, 48, 55, 55]]));
        assert!(consonance([&[72, -72, -72, 74], &[67; 4], &[64, 64, 62, 62], &[48, 48, 55, 55]]));
    }
}
