//! Functional harmony: the chords of a phrase of a chorale.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// A chord in a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Harmony {
    /// The degree of the scale of its root, from 1.
    pub degree: usize,
    /// Whether it has a seventh.
    pub seventh: bool,
    /// The note in the bass: 0 for the root, 1 for the third.
    pub inversion: usize,
}

/// The notes of the chord on each degree, as semitones above the tonic.
const MAJOR: [[u8; 3]; 7] = [[0, 4, 7], [2, 5, 9], [4, 7, 11], [5, 9, 0], [7, 11, 2], [9, 0, 4], [11, 2, 5]];
const MINOR: [[u8; 3]; 7] = [[0, 3, 7], [2, 5, 8], [3, 7, 10], [5, 8, 0], [7, 11, 2], [8, 0, 3], [11, 2, 5]];

/// How often each degree follows each other one: from tonic through subdominant to dominant, and back.
const FOLLOWS: [[u32; 7]; 7] = [
    [0, 3, 1, 5, 5, 4, 1],
    [0, 0, 0, 0, 7, 0, 2],
    [0, 0, 0, 4, 0, 6, 0],
    [3, 3, 0, 0, 6, 0, 1],
    [8, 0, 0, 0, 0, 3, 0],
    [0, 4, 1, 4, 2, 0, 0],
    [9, 0, 1, 0, 0, 0, 0],
];

impl Harmony {
    /// The notes from the root up, as semitones above the tonic.
    pub fn tones(self, minor: bool) -> Vec<u8> {
        let triads = if minor { MINOR } else { MAJOR };
        let mut tones = triads[self.degree - 1].to_vec();
        if self.seventh {
            // Only the dominant has one.
            tones.push(5);
        }
        tones
    }

    /// The chord on `degree`, in an inversion that suits it.
    fn any(degree: usize, minor: bool, rng: &mut ChaCha8Rng) -> Self {
        let is_diminished = degree == 7 || (degree == 2 && minor);
        let inversion = usize::from(is_diminished || (degree != 3 && degree != 6 && rng.random_bool(0.3)));
        Self { degree, seventh: degree == 5 && rng.random_bool(0.3), inversion }
    }
}

/// How a phrase ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cadence {
    /// On the dominant.
    Half,
    /// From the dominant to the tonic.
    Authentic,
    /// From the dominant to the sixth degree.
    Deceptive,
}

/// The chords of a phrase, of `length` chords, at least 4.
pub(super) fn phrase(length: usize, cadence: Cadence, minor: bool, rng: &mut ChaCha8Rng) -> Vec<Harmony> {
    let root = |degree, seventh| Harmony { degree, seventh, inversion: 0 };
    let dominant = root(5, rng.random_bool(0.6));
    let prepared = match rng.random_bool(0.5) {
        true => Harmony { degree: 2, seventh: false, inversion: 1 },
        false => root(4, false),
    };
    let end = match cadence {
        Cadence::Half => vec![prepared, root(5, false)],
        Cadence::Authentic => vec![prepared, dominant, root(1, false)],
        Cadence::Deceptive => vec![prepared, dominant, root(6, false)],
    };
    loop {
        let first = if rng.random_bool(0.85) { 1 } else { 6 };
        let mut chords = vec![root(first, false)];
        while chords.len() + end.len() < length {
            let last = chords[chords.len() - 1];
            // Occasionally the same chord in another position.
            let next = match rng.random_bool(0.12) && matches!(last.degree, 1 | 4) && last.inversion == 0 {
                true => Harmony { inversion: 1, ..last },
                false => Harmony::any(drawn(&FOLLOWS[last.degree - 1], rng), minor, rng),
            };
            chords.push(next);
        }
        let last = chords[chords.len() - 1].degree;
        if FOLLOWS[last - 1][prepared.degree - 1] > 0 {
            return chords.into_iter().chain(end).collect();
        }
    }
}

/// A degree, drawn with these weights.
fn drawn(weights: &[u32; 7], rng: &mut ChaCha8Rng) -> usize {
    let mut at = rng.random_range(0..weights.iter().sum());
    let is_here = |weight: &u32| {
        let here = at < *weight;
        at = at.saturating_sub(*weight);
        here
    };
    1 + weights.iter().position(is_here).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    #[test]
    fn phrases_end_with_their_cadence() {
        let rng = &mut rng::stream(0, "test");
        for (cadence, degrees) in
            [(Cadence::Half, vec![5]), (Cadence::Authentic, vec![5, 1]), (Cadence::Deceptive, vec![5, 6])]
        {
            for minor in [false, true] {
                let chords = phrase(12, cadence, minor, rng);
                let end: Vec<_> = chords[12 - degrees.len()..].iter().map(|chord| chord.degree).collect();
                assert_eq!((chords.len(), end), (12, degrees.clone()));
            }
        }
    }

    #[test]
    fn weights_decide_what_is_drawn() {
        let rng = &mut rng::stream(0, "test");
        let mut counts = [0; 8];
        (0..1000).for_each(|_| counts[drawn(&[0, 3, 0, 1, 0, 0, 0], rng)] += 1);
        assert_eq!(counts[2] + counts[4], 1000);
        assert!((700..800).contains(&counts[2]), "{counts:?}");
    }
}
