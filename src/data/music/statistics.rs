//! Statistics of pieces, to compare composed pieces with a data set.

use super::piece::Piece;
use super::rules::{Rule, violations};
use std::collections::{BTreeMap, BTreeSet};

/// The largest interval that is counted separately, in semitones.
const WIDEST: i16 = 12;

/// Statistics of pieces. Shares are fractions of the total count.
#[derive(Debug, Clone, PartialEq)]
pub struct MusicStatistics {
    /// Share of each pitch class among the sounding notes, from the tonic if keys are known, else from C.
    pub classes: [f64; 12],
    /// Share of each interval between successive notes of the highest voice.
    ///
    /// The intervals run from an octave down or more to an octave up or more. Steps at which the voice does not move
    /// are not counted.
    pub intervals: [f64; 2 * WIDEST as usize + 1],
    /// Share of the most frequent kinds of chords among the steps, by name.
    pub chords: Vec<(String, f64)>,
    /// The number of voices whose rules of part writing were checked; `None` if none were.
    pub voices: Option<usize>,
    /// Share of the steps that break each of these rules.
    pub violations: Vec<(Rule, f64)>,
    /// Share of the steps that break any of these rules.
    pub any_violation: f64,
    /// Mean number of different chords in a piece.
    pub different_chords: f64,
    /// The longest time that one chord sounds without a change, in quarter notes.
    pub longest_chord: f64,
}

impl MusicStatistics {
    /// The statistics of `pieces`, with the rules for this number of voices (see [`checked_voices`](super::checked_voices)).
    pub fn new(pieces: &[Piece], voices: Option<usize>) -> Self {
        let (mut classes, mut intervals) = ([0.0; 12], [0.0; 2 * WIDEST as usize + 1]);
        let (mut chords, mut broken, mut breaking) = (BTreeMap::new(), BTreeMap::new(), 0.0);
        let (mut steps, mut different, mut longest) = (0.0, 0, 0f64);
        for piece in pieces {
            let tonic = piece.tonality.map_or(0, |key| key.tonic);
            let mut known = BTreeSet::new();
            let mut run = (vec![], 0);
            for step in 0..piece.len() {
                let chord = piece.chord(step);
                chord.iter().for_each(|pitch| classes[usize::from((pitch + 12 - tonic) % 12)] += 1.0);
                *chords.entry(kind(&chord)).or_insert(0.0) += 1.0;
                let rules = if voices.is_some() { violations(piece, step) } else { vec![] };
                breaking += f64::from(u8::from(!rules.is_empty()));
                rules.into_iter().for_each(|rule| *broken.entry(rule).or_insert(0.0) += 1.0);
                steps += 1.0;
                if let Some((before, now)) =
                    step.checked_sub(1).and_then(|before| top(piece, before).zip(top(piece, step)))
                    && before != now
                {
                    let interval = (i16::from(now) - i16::from(before)).clamp(-WIDEST, WIDEST);
                    intervals[(interval + WIDEST) as usize] += 1.0;
                }
                run = if run.0 == chord { (run.0, run.1 + 1) } else { (chord.clone(), 1) };
                longest = longest.max(f64::from(run.1) / piece.steps_per_quarter as f64);
                known.insert(chord);
            }
            different += known.len();
        }
        let share = |count: f64, all: f64| if all > 0.0 { count / all } else { 0.0 };
        let (notes, moves) = (classes.iter().sum(), intervals.iter().sum());
        let mut chords: Vec<(String, f64)> =
            chords.into_iter().map(|(kind, count)| (kind, share(count, steps))).collect();
        chords.sort_by(|a, b| b.1.total_cmp(&a.1));
        Self {
            classes: classes.map(|count| share(count, notes)),
            intervals: intervals.map(|count| share(count, moves)),
            chords,
            voices,
            violations: rules(voices)
                .map(|rule| (rule, share(broken.get(&rule).copied().unwrap_or(0.0), steps)))
                .collect(),
            any_violation: share(breaking, steps),
            different_chords: share(different as f64, pieces.len() as f64),
            longest_chord: longest,
        }
    }
}

/// The rules for this number of voices, in the order of [`Rule::ALL`].
fn rules(voices: Option<usize>) -> impl Iterator<Item = Rule> {
    Rule::ALL.into_iter().filter(move |rule| voices.is_some_and(|voices| rule.applies_to(voices)))
}

/// The pitch of the highest voice, or of the highest note.
fn top(piece: &Piece, step: usize) -> Option<u8> {
    match piece.voices {
        Some(_) => piece.steps[step].first().copied().flatten().map(|note| note.pitch),
        None => piece.notes(step).next_back().map(|note| note.pitch),
    }
}

/// The name of a chord's kind, from its pitch classes above the note that makes it a known chord.
fn kind(chord: &[u8]) -> String {
    const KINDS: [(&str, &[u8]); 11] = [
        ("major", &[0, 4, 7]),
        ("minor", &[0, 3, 7]),
        ("diminished", &[0, 3, 6]),
        ("augmented", &[0, 4, 8]),
        ("dominant seventh", &[0, 4, 7, 10]),
        ("dominant seventh", &[0, 4, 10]),
        ("minor seventh", &[0, 3, 7, 10]),
        ("major seventh", &[0, 4, 7, 11]),
        ("half-diminished seventh", &[0, 3, 6, 10]),
        ("third", &[0, 4]),
        ("third", &[0, 3]),
    ];
    let classes: BTreeSet<u8> = chord.iter().map(|pitch| pitch % 12).collect();
    if classes.is_empty() {
        return "silence".into();
    }
    for root in 0..12 {
        let above: BTreeSet<u8> = classes.iter().map(|class| (class + 12 - root) % 12).collect();
        if let Some((name, _)) = KINDS.iter().find(|(_, tones)| above.iter().eq(tones.iter())) {
            return name.to_string();
        }
    }
    "other".into()
}

#[cfg(test)]
mod tests {
    use super::super::piece::tests::piece;
    use super::*;

    #[test]
    fn shares_count_classes_intervals_and_chords() {
        // C major, held for two quarters, then G7.
        let pieces = [piece(&[&[72, -72, 71], &[67, -67, 67], &[64, -64, 65], &[48, -48, 55]])];
        let statistics = MusicStatistics::new(&pieces, Some(4));
        let rounded = |share: f64| (share * 12.0).round();
        assert_eq!((rounded(statistics.classes[0]), rounded(statistics.classes[7])), (4.0, 4.0));
        assert_eq!(statistics.intervals[WIDEST as usize - 1], 1.0);
        let chords: Vec<_> = statistics.chords.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(chords, ["major", "dominant seventh"]);
        assert_eq!((statistics.different_chords, statistics.longest_chord), (2.0, 2.0));
        assert_eq!((statistics.violations.len(), statistics.any_violation), (10, 0.0));
        assert_eq!(MusicStatistics::new(&pieces, None).violations, []);
        assert_eq!(kind(&[]), "silence");
        assert_eq!(kind(&[60, 61]), "other");
    }
}
