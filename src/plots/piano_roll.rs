//! A piano roll: time to the right, pitch upwards.

use super::svg::{MUTED, PALETTE, Svg, Text, include};
use crate::data::music::Piece;

/// Draws a piece as a piano roll, with a line per bar and a mark per octave.
pub fn piano_roll(piece: &Piece) -> String {
    const MARGIN: f64 = 40.0;
    const ROW: f64 = 8.0;
    let column = 32.0 / piece.steps_per_quarter as f64;
    let spans = piece.spans();
    let range = spans.iter().fold(None, |range, span| include(range, span.pitch));
    let (lowest, highest) = range.map_or((60, 72), |(low, high)| (low - low % 12, high));
    let x = |step: usize| MARGIN + column * step as f64;
    let y = |pitch: u8| MARGIN + ROW * f64::from(highest - pitch);
    let (right, bottom) = (x(piece.len()), y(lowest) + ROW);
    let mut svg = Svg::new(right + MARGIN, bottom + MARGIN);
    let small = Text { size: 10.0, color: MUTED, ..Text::default() };
    svg.text(MARGIN, 20.0, &Text { bold: true, ..Text::default() }, &piece.name);
    for pitch in (lowest..=highest).step_by(12) {
        let y = y(pitch) + ROW;
        svg.push(format_args!(r##"<path d="M{MARGIN} {y}H{right:.1}" stroke="#d0d0d0"/>"##));
        svg.text(8.0, y, &small, &format!("C{}", i16::from(pitch) / 12 - 1));
    }
    for step in 0..piece.len() {
        if let Some((_, bar, 0)) = piece.place(step) {
            let x = x(step);
            svg.push(format_args!(r##"<path d="M{x:.1} {MARGIN}V{bottom:.1}" stroke="#d0d0d0"/>"##));
            svg.text(x + 2.0, bottom + 14.0, &small, &(bar + 1).to_string());
        }
    }
    for span in spans {
        let width = column * span.steps as f64 - 1.0;
        svg.rect(x(span.start), y(span.pitch), width, ROW, PALETTE[span.voice % PALETTE.len()]);
    }
    svg.finish()
}

#[cfg(test)]
mod tests {
    use super::super::svg::tests::assert_well_formed;
    use super::*;
    use crate::data::music::chorales;

    #[test]
    fn every_note_has_its_rectangle() {
        let piece = &chorales(1, 0, 0, 0).train[0];
        for piece in [piece.clone(), piece.clone().without_voices(), piece.beginning(0)] {
            let svg = piano_roll(&piece);
            assert_well_formed(&svg);
            // The page itself is one rectangle.
            assert_eq!(svg.matches("<rect").count(), piece.spans().len() + 1);
        }
    }
}
