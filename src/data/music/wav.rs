//! A small synthesiser that turns pieces into sound.

use super::piece::{Piece, Span};
use anyhow::{Context, Result};

/// Samples per second.
const RATE: u32 = 44_100;
/// Number of partials of a note.
const PARTIALS: u32 = 8;
/// Seconds until a note reaches full strength, and until it is silent after its end.
const ATTACK: f64 = 0.006;
const RELEASE: f64 = 0.09;

/// Returns `piece` as a WAV file of one channel with 16 bits, 44,100 samples per second.
///
/// Each note is a sum of harmonic partials that decay like a plucked string's, the higher ones faster.
///
/// # Errors
/// Fails if the piece is too long for the format, 13 hours.
pub fn write_wav(piece: &Piece) -> Result<Vec<u8>> {
    let step = 60.0 / piece.tempo / piece.steps_per_quarter as f64;
    let length = ((piece.len() as f64 * step + RELEASE) * f64::from(RATE)).ceil() as usize;
    let mut bytes =
        header(length).context("the piece is too long for a WAV file, expected at most 13 hours")?;
    let mut sound = vec![0f32; length];
    piece.spans().into_iter().for_each(|span| add(&mut sound, span, step));
    let peak = sound.iter().fold(0f32, |peak, x| peak.max(x.abs())).max(f32::MIN_POSITIVE);
    bytes.extend(sound.iter().flat_map(|x| ((x / peak * 0.9 * f32::from(i16::MAX)) as i16).to_le_bytes()));
    Ok(bytes)
}

/// The header of a WAV file of `samples`; `None` if there are too many for its 32-bit sizes.
fn header(samples: usize) -> Option<Vec<u8>> {
    const SIZE: u32 = 44;
    let [pcm, channels, bytes_per_sample] = [1u16, 1, 2];
    let data = u32::try_from(samples).ok()?.checked_mul(u32::from(bytes_per_sample))?;
    let after_size = data.checked_add(SIZE - 8)?;
    let mut bytes = b"RIFF".to_vec();
    bytes.extend(after_size.to_le_bytes());
    bytes.extend(b"WAVEfmt ");
    bytes.extend(16u32.to_le_bytes());
    bytes.extend([pcm, channels].map(u16::to_le_bytes).concat());
    bytes.extend([RATE, RATE * u32::from(bytes_per_sample)].map(u32::to_le_bytes).concat());
    bytes.extend([bytes_per_sample, 8 * bytes_per_sample].map(u16::to_le_bytes).concat());
    bytes.extend(b"data");
    bytes.extend(data.to_le_bytes());
    Some(bytes)
}

/// Adds the sound of a note.
fn add(sound: &mut [f32], span: Span, step: f64) {
    let rate = f64::from(RATE);
    let frequency = 440.0 * libm::exp2((f64::from(span.pitch) - 69.0) / 12.0);
    let [start, end] = [span.start, span.start + span.steps].map(|at| (at as f64 * step * rate) as usize);
    let release = (RELEASE * rate) as usize;
    let samples = (end + release).min(sound.len()) - start;
    let envelope = |i: usize| {
        let rise = (i as f64 / (ATTACK * rate)).min(1.0);
        let fall = 1.0 - (i.saturating_sub(end - start) as f64 / release as f64).min(1.0);
        rise * fall
    };
    for partial in 1..=PARTIALS {
        let partial = f64::from(partial);
        if frequency * partial > 0.45 * rate {
            break;
        }
        // A rotation per sample replaces a sine per sample.
        let angle = std::f64::consts::TAU * frequency * partial / rate;
        let decay = libm::exp(-(0.9 + 0.5 * partial) / rate);
        let (cos, sin) = (libm::cos(angle) * decay, libm::sin(angle) * decay);
        let (mut x, mut y) = (libm::pow(partial, -1.3), 0.0);
        for (i, sample) in sound[start..start + samples].iter_mut().enumerate() {
            (x, y) = (x * cos - y * sin, x * sin + y * cos);
            *sample += (y * envelope(i)) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::piece::tests::piece;
    use super::*;

    /// The strength of a frequency in a sound.
    fn strength(sound: &[f64], frequency: f64) -> f64 {
        let turn = |(i, x): (usize, &f64)| {
            let (sin, cos) = (std::f64::consts::TAU * frequency * i as f64 / f64::from(RATE)).sin_cos();
            (x * cos, x * sin)
        };
        let (re, im) = sound.iter().enumerate().map(turn).fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
        re.hypot(im)
    }

    #[test]
    fn the_sound_has_the_pitches_of_the_notes_while_they_last() -> Result<()> {
        let bytes = write_wav(&piece(&[&[69, -69, 0], &[52, 55, 0]]))?;
        let reader = hound::WavReader::new(&bytes[..])?;
        assert_eq!((reader.spec().sample_rate, reader.spec().channels), (RATE, 1));
        let sound: Vec<f64> = reader.into_samples::<i16>().map(|x| f64::from(x.unwrap_or(0))).collect();
        let step = RATE as usize * 60 / 90;
        assert!((3 * step..4 * step).contains(&sound.len()), "{} samples", sound.len());
        let (first, second, last) = (&sound[..step], &sound[step..2 * step], &sound[5 * step / 2..3 * step]);
        let (e, g) = (164.81, 196.0);
        assert!(strength(first, 440.0) > 20.0 * strength(first, 415.3));
        assert!(strength(first, e) > 20.0 * strength(first, g));
        assert!(strength(second, g) > 5.0 * strength(second, e));
        assert!(last.iter().all(|&x| x == 0.0));
        assert!(sound.iter().any(|x| x.abs() > 0.85 * f64::from(i16::MAX)));
        Ok(())
    }

    #[test]
    fn a_sound_too_long_for_the_format_is_refused() {
        let endless = Piece { tempo: 1e-9, ..piece(&[&[69]]) };
        assert!(write_wav(&endless).unwrap_err().to_string().contains("at most 13 hours"));
        assert_eq!(header(1 << 31), None);
        assert_eq!(header((1 << 31) - 18), None);
    }
}
