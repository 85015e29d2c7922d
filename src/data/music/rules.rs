//! The rules of part writing.
//!
//! The built-in chorales follow them, and their violations measure how well a model has learned them. With other than
//! four voices, only the rules count that hold for any number of them.

use super::piece::Piece;
use std::ops::RangeInclusive;

/// The voices of a four-part setting, from the highest: soprano, alto, tenor, bass.
pub const VOICES: usize = 4;

/// The range of each voice.
pub const RANGES: [RangeInclusive<u8>; VOICES] = [60..=81, 55..=74, 48..=69, 40..=64];

/// The pitches of the four voices, from the highest.
pub(super) type Chord = [u8; VOICES];

/// A rule of part writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// All four voices sound. Other numbers of voices may rest.
    FourVoices,
    /// Each of four voices stays in its range.
    Range,
    /// No voice is above a higher one.
    Crossing,
    /// The upper three of four voices are at most an octave apart.
    Spacing,
    /// The notes form a triad or a dominant seventh chord, except passing notes and suspensions.
    ///
    /// Where fewer than four voices sound, notes of a triad are enough.
    Consonance,
    /// No two voices move from one fifth to another.
    ParallelFifths,
    /// No two voices move from one octave or unison to another.
    ParallelOctaves,
    /// The outer voices do not move in the same direction into a fifth or an octave.
    ///
    /// It is allowed if the highest moves by step.
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

    /// Whether the rule exists for this number of voices.
    pub fn applies_to(self, voices: usize) -> bool {
        voices == VOICES || !matches!(self, Self::FourVoices | Self::Range | Self::Spacing)
    }

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
/// They are the rules for the number of voices of the piece. A piece without voices is treated as one of four.
pub fn violations(piece: &Piece, step: usize) -> Vec<Rule> {
    let Some(now) = voices(piece, step) else { return vec![Rule::FourVoices] };
    let after = (step + 1 < piece.len()).then(|| voices(piece, step + 1)).flatten();
    let before = step.checked_sub(1).and_then(|step| voices(piece, step));
    let sounding: Vec<u8> = now.iter().flatten().copied().collect();
    let mut broken = vertical(&sounding);
    broken.retain(|rule| rule.applies_to(now.len()));
    if !is_consonant(piece, step, before.as_deref(), &now, after.as_deref()) {
        broken.push(Rule::Consonance);
    }
    if let Some(before) = before {
        let (before, now): (Vec<u8>, Vec<u8>) =
            before.iter().zip(&now).filter_map(|(a, b)| a.zip(*b)).unzip();
        broken.extend(horizontal(&before, &now));
    }
    broken
}

/// The number of voices whose rules `pieces` of one texture can be checked against.
///
/// Sets of notes have four voices if most of their steps have four notes. Otherwise their voices are unknown: the result
/// is `None`.
pub fn checked_voices(pieces: &[Piece]) -> Option<usize> {
    let voices = pieces.first()?.voices;
    let steps = || pieces.iter().flat_map(|piece| &piece.steps);
    let is_four_part = || 2 * steps().filter(|notes| notes.len() == VOICES).count() > steps().count();
    voices.or_else(|| is_four_part().then_some(VOICES))
}

/// The fraction of the steps of `pieces` that break a rule; 0 without steps.
pub fn violation_share(pieces: &[Piece]) -> f64 {
    let steps: usize = pieces.iter().map(Piece::len).sum();
    let breaks = |piece: &Piece| (0..piece.len()).filter(|&step| !violations(piece, step).is_empty()).count();
    pieces.iter().map(breaks).sum::<usize>() as f64 / steps.max(1) as f64
}

/// The pitch of each voice at a step, from the highest.
///
/// `None` if the piece has four voices, or none, and the step has more or fewer notes.
fn voices(piece: &Piece, step: usize) -> Option<Vec<Option<u8>>> {
    let mut pitches: Vec<Option<u8>> =
        piece.steps[step].iter().map(|note| note.map(|note| note.pitch)).collect();
    if piece.voices.is_none() {
        pitches.reverse();
    }
    let is_other = piece.voices.is_some_and(|voices| voices != VOICES);
    let is_complete = pitches.len() == VOICES && pitches.iter().all(Option::is_some);
    (is_other || is_complete).then_some(pitches)
}

/// The rules for simultaneous notes of four voices that `chord`, from the highest voice, breaks.
pub(super) fn vertical(chord: &[u8]) -> Vec<Rule> {
    let is_in_range = RANGES.iter().zip(chord).all(|(range, pitch)| range.contains(pitch));
    let mut upper = chord.windows(2).take(2);
    let checks = [
        (Rule::Range, is_in_range),
        (Rule::Crossing, chord.is_sorted_by(|upper, lower| upper >= lower)),
        (Rule::Spacing, upper.all(|pair| pair[0].abs_diff(pair[1]) <= 12)),
    ];
    checks.into_iter().filter(|(_, holds)| !holds).map(|(rule, _)| rule).collect()
}

/// The rules for the motion of voices that the step from `before` to `now`, of as many voices, breaks.
pub(super) fn horizontal(before: &[u8], now: &[u8]) -> Vec<Rule> {
    let voices = now.len();
    let mut broken = vec![];
    let moves = |voice: usize| before[voice] != now[voice];
    let interval = |chord: &[u8], upper: usize, lower: usize| chord[upper].abs_diff(chord[lower]) % 12;
    let pairs = || (0..voices).flat_map(|upper| (upper + 1..voices).map(move |lower| (upper, lower)));
    let parallel = |size: u8| {
        pairs().any(|(upper, lower)| {
            moves(upper)
                && moves(lower)
                && [before, now].into_iter().all(|chord| interval(chord, upper, lower) == size)
        })
    };
    if parallel(7) {
        broken.push(Rule::ParallelFifths);
    }
    if parallel(0) {
        broken.push(Rule::ParallelOctaves);
    }
    if voices > 1 {
        let [highest, lowest] = [0, voices - 1].map(|voice| i16::from(now[voice]) - i16::from(before[voice]));
        let is_perfect = [0, 7].contains(&interval(now, 0, voices - 1));
        if highest * lowest > 0 && highest.abs() > 2 && is_perfect {
            broken.push(Rule::DirectPerfect);
        }
    }
    if (1..voices).any(|voice| now[voice] > before[voice - 1] || now[voice - 1] < before[voice]) {
        broken.push(Rule::Overlap);
    }
    if leaps(before, now) {
        broken.push(Rule::Leap);
    }
    broken
}

/// Whether a voice breaks the rule for leaps.
pub(super) fn leaps(before: &[u8], now: &[u8]) -> bool {
    before.iter().zip(now).any(|(a, b)| matches!(a.abs_diff(*b), 6 | 10 | 11 | 13..))
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

/// Number of triads, which come first.
const TRIADS: usize = 3;

/// Whether one of some chords, on any root, satisfies a condition.
fn any_chord(chords: &[Classes], is: impl Fn(Classes) -> bool) -> bool {
    let on = |chord: Classes, root: u32| (chord << root | chord >> (12 - root)) & 0xfff;
    chords.iter().any(|&chord| (0..12).any(|root| is(on(chord, root))))
}

/// Whether the notes at a step form a chord once passing notes and suspensions are left out.
fn is_consonant(
    piece: &Piece,
    step: usize,
    before: Option<&[Option<u8>]>,
    now: &[Option<u8>],
    after: Option<&[Option<u8>]>,
) -> bool {
    let sounding: Vec<u8> = now.iter().flatten().copied().collect();
    let all = classes(&sounding);
    let are_few = sounding.len() < VOICES;
    let chords = if are_few { &CHORDS[..TRIADS] } else { &CHORDS };
    let is_part = |classes: Classes| any_chord(chords, |chord| classes & !chord == 0);
    if any_chord(&CHORDS, |chord| chord == all) || (are_few && is_part(all)) {
        return true;
    }
    let (Some(before), Some(after)) = (before, after) else { return false };
    let is_on_beat =
        piece.place(step).is_none_or(|(_, _, place)| place.is_multiple_of(piece.steps_per_quarter));
    let is_step = |from: u8, to: u8| (1..=2).contains(&from.abs_diff(to));
    let is_free = |before: u8, now: u8, after: u8| match is_on_beat {
        true => before == now && now > after && is_step(now, after),
        false => is_step(before, now) && is_step(now, after),
    };
    let around = before.iter().zip(after);
    let rest: Vec<u8> = now
        .iter()
        .zip(around)
        .filter(|&(&now, (&before, &after))| {
            !matches!((before, now, after), (Some(before), Some(now), Some(after)) if is_free(before, now, after))
        })
        .filter_map(|(now, _)| *now)
        .collect();
    let fewest = 2.min(sounding.len() - 1);
    rest.len() >= fewest && rest.len() < sounding.len() && is_part(classes(&rest))
}

#[cfg(test)]
mod tests {
    use super::super::piece::tests::piece;
    use super::*;

    /// The rules broken anywhere in a piece of steps of a quarter.
    fn broken(voices: &[&[i16]]) -> Vec<Rule> {
        let piece = piece(voices);
        (0..piece.len()).flat_map(|step| violations(&piece, step)).collect()
    }

    #[test]
    fn a_cadence_by_the_book_breaks_no_rule() {
        // IV, V, I in C major.
        assert_eq!(broken(&[&[72, 71, 72], &[69, 67, 67], &[65, 62, 64], &[53, 55, 48]]), []);
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
            let found = broken(&voices.each_ref().map(|voice| &voice[..]));
            assert!(found.contains(&rule), "{rule:?}: {found:?}");
        }
    }

    #[test]
    fn other_numbers_of_voices_break_only_the_rules_that_they_have() {
        // Far apart, outside of the ranges of four voices, with a rest, and a passing note between two beats.
        assert_eq!(broken(&[&[86, 84, 0, 83], &[45, 48, 48, 43]]), []);
        let mut passing = piece(&[&[76, 74, 72, -72], &[60, -60, 57, -57]]);
        passing.steps_per_quarter = 2;
        assert_eq!(violations(&passing, 1), []);
        for (rule, voices) in [
            (Rule::Crossing, [[72, 60], [64, 64]]),
            (Rule::Consonance, [[72, 67], [64, 65]]),
            (Rule::ParallelFifths, [[67, 69], [60, 62]]),
            (Rule::ParallelOctaves, [[72, 74], [60, 62]]),
            (Rule::DirectPerfect, [[67, 72], [64, 65]]),
            (Rule::Overlap, [[67, 71], [64, 68]]),
            (Rule::Leap, [[72, 66], [57, 57]]),
        ] {
            let two = broken(&voices.each_ref().map(|voice| &voice[..]));
            assert!(two.contains(&rule), "{rule:?}: {two:?}");
            let five = broken(&[&[84, 84], &voices[0], &[0, 0], &voices[1], &[0, 0]]);
            assert!(five.iter().all(|rule| rule.applies_to(5)), "{five:?}");
        }
        // Voices that rest are passed over: the outer ones of the three that sound move to a fifth.
        assert_eq!(broken(&[&[0, 0], &[64, 67], &[60, 64], &[55, 60], &[0, 0]]), [Rule::DirectPerfect]);
        assert_eq!(broken(&[&[0, 60], &[0, 0]]), []);
    }

    #[test]
    fn sets_of_notes_are_checked_as_four_voices_if_most_steps_have_four_notes() {
        let [two, four] =
            [piece(&[&[72; 3], &[64; 3]]), piece(&[&[72; 3], &[67; 3], &[64; 3], &[48, 48, 0]])];
        let checked = |piece: &Piece| checked_voices(std::slice::from_ref(piece));
        assert_eq!((checked(&two), checked(&four)), (Some(2), Some(4)));
        assert_eq!((checked(&two.without_voices()), checked(&four.without_voices())), (None, Some(4)));
        assert_eq!(checked_voices(&[]), None);
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
