//! The attention of translations: how much each target token attends to each source token.

use super::svg::{INK, MUTED, Svg, Text, shorten, text_width, tint};
use crate::data::count;
use anyhow::{Result, ensure};

const BLUE: [u8; 3] = [8, 81, 156];
/// Side of a cell.
const CELL: f64 = 20.0;

/// A translation with its attention weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Alignment {
    /// The source tokens.
    pub source: Vec<String>,
    /// The target tokens.
    pub target: Vec<String>,
    /// For each target token, the weight of each source token, 0 to 1.
    pub weights: Vec<Vec<f32>>,
}

/// Draws alignments one below the other, as SVG.
///
/// Each has a row per target token and a column per source token; cells are darker for larger weights (Bahdanau et al.
/// 2015, figure 3).
///
/// # Errors
/// Fails if an alignment does not have one weight per target and source token.
pub fn alignments(alignments: &[Alignment]) -> Result<String> {
    let mut svg = Svg::new(0.0, 16.0);
    let mut top = 16.0;
    for (at, Alignment { source, target, weights }) in alignments.iter().enumerate() {
        ensure!(
            weights.len() == target.len() && weights.iter().all(|row| row.len() == source.len()),
            "alignment {at}: found weights for {}, expected {} with {} each",
            count(weights.len(), "target token"),
            target.len(),
            count(source.len(), "weight")
        );
        top = draw(&mut svg, top, source, target, weights);
    }
    Ok(svg.finish())
}

/// Draws one alignment below `top`; returns the top of the next one.
fn draw(svg: &mut Svg, top: f64, source: &[String], target: &[String], weights: &[Vec<f32>]) -> f64 {
    let label = Text { size: 13.0, color: INK, ..Text::default() };
    let [source, target] =
        [source, target].map(|tokens| tokens.iter().map(|token| visible(token)).collect::<Vec<_>>());
    let widest = |tokens: &[String]| {
        tokens.iter().map(|token| text_width(token, label.size)).fold(0.0, f64::max).ceil()
    };
    let upright = widest(&source) <= CELL;
    let height = if upright { label.size } else { widest(&source) };
    let (left, top) = (16.0 + widest(&target) + 8.0, top + height + 8.0);
    for (column, token) in source.iter().enumerate() {
        let x = left + CELL * (column as f64 + 0.5);
        let (x, anchor, angle) =
            if upright { (x, "middle", 0) } else { (x + 0.35 * label.size, "start", -90) };
        svg.text(x, top - 6.0, &Text { anchor, angle, ..label }, token);
    }
    for (row, (token, weights)) in target.iter().zip(weights).enumerate() {
        let y = top + CELL * row as f64;
        svg.text(left - 8.0, y + CELL / 2.0 + 0.35 * label.size, &Text { anchor: "end", ..label }, token);
        for (column, &weight) in weights.iter().enumerate() {
            let strength = f64::from(weight).clamp(0.0, 1.0);
            svg.rect(left + CELL * column as f64, y, CELL, CELL, tint(strength, BLUE));
        }
    }
    let (right, bottom) = (left + CELL * source.len() as f64, top + CELL * target.len() as f64);
    if source.is_empty() || target.is_empty() {
        svg.text(16.0, bottom, &Text { color: MUTED, ..label }, "no tokens");
    }
    svg.extend_to(right + 16.0, bottom + 24.0);
    bottom + 24.0
}

/// A token as it is shown: white space by a symbol.
fn visible(token: &str) -> String {
    match token.trim() {
        "" => "␣".into(),
        token => shorten(token, 24),
    }
}

#[cfg(test)]
mod tests {
    use super::super::svg::tests::assert_well_formed;
    use super::*;

    #[test]
    fn weights_are_shades_between_tokens() -> Result<()> {
        let tokens = |text: &str| text.split('|').map(String::from).collect();
        let one = Alignment {
            source: tokens("a| |<eos>"),
            target: tokens("house|<eos>"),
            weights: vec![vec![1.0, 0.0, 0.0], vec![0.0, 0.5, f32::NAN]],
        };
        let svg = alignments(&[one.clone(), one.clone()])?;
        assert_well_formed(&svg);
        for (part, times) in [("#08519c", 2), (">house</text>", 2), (">␣</text>", 2), ("&lt;eos&gt;", 4)] {
            assert_eq!(svg.matches(part).count(), times, "{part}");
        }
        assert_well_formed(&alignments(&[])?);
        assert!(alignments(&[Alignment { target: tokens("house"), ..one }]).is_err());
        Ok(())
    }
}
