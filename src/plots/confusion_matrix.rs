//! The confusion matrix of a classifier.

use super::svg::{INK, MUTED, Svg, Text, shorten, text_width, tint};
use anyhow::{Result, ensure};

const BLUE: [u8; 3] = [8, 81, 156];
const ORANGE: [u8; 3] = [190, 77, 0];

/// Draws a confusion matrix with the recall of each class, as SVG.
///
/// `counts[label][predicted]` is the number of examples of class `label` that were predicted as class `predicted`.
/// Cells of correct predictions are blue, cells of errors orange. A cell is darker the larger its share of the row. For
/// errors, the shade follows the cube root of the share, so that a few in a thousand are still visible.
///
/// # Errors
/// Fails if `counts` is not square with one row per name.
pub fn confusion_matrix(counts: &[Vec<u64>], names: &[String]) -> Result<String> {
    let classes = names.len();
    ensure!(
        counts.len() == classes && counts.iter().all(|row| row.len() == classes),
        "confusion matrix: found rows of {:?} counts, expected {classes} rows of {classes}",
        counts.iter().map(Vec::len).collect::<Vec<_>>()
    );
    let names: Vec<String> = names.iter().map(|name| shorten(name, 18)).collect();
    let count_texts: Vec<String> = counts.iter().flatten().map(u64::to_string).collect();
    let total: u64 = counts.iter().flatten().sum();
    let correct: u64 = counts.iter().enumerate().map(|(class, row)| row[class]).sum();
    let title = format!("{correct} of {total} correct, {}", percent(correct, total));
    let grid = Grid::new(&names, &count_texts);
    let Grid { size, cell, left, top, .. } = grid;
    let side = cell * classes as f64;
    let (right, bottom) = (left + side, top + side);

    let mut svg = Svg::new((right + 80.0).max(32.0 + 1.1 * text_width(&title, 16.0)), bottom + 16.0);
    svg.text(16.0, 28.0, &Text { size: 16.0, bold: true, ..Text::default() }, &title);
    let axis = Text { size: 13.0, anchor: "middle", color: MUTED, ..Text::default() };
    svg.text(left + side / 2.0, 58.0, &axis, "predicted class");
    svg.text(24.0, top + side / 2.0, &Text { angle: -90, ..axis }, "true class");
    svg.text(right + 38.0, top - 8.0, &axis, "recall");
    for (index, (row, name)) in counts.iter().zip(&names).enumerate() {
        let middle = cell * (index as f64 + 0.5);
        let baseline = top + middle + 0.35 * size;
        let label = Text { size, ..Text::default() };
        svg.text(left - 8.0, baseline, &Text { anchor: "end", ..label }, name);
        if grid.upright {
            svg.text(left + middle, top - 8.0, &Text { anchor: "middle", ..label }, name);
        } else {
            svg.text(left + middle + 0.35 * size, top - 8.0, &Text { angle: -90, ..label }, name);
        }
        grid.draw_row(&mut svg, index, row, &count_texts[index * classes..]);
        let recall = percent(row[index], row.iter().sum());
        svg.text(right + 38.0, baseline, &Text { anchor: "middle", ..label }, &recall);
    }
    Ok(svg.finish())
}

/// Geometry of the cells.
struct Grid {
    /// Font size.
    size: f64,
    /// Side of a cell.
    cell: f64,
    /// Whether the column names are upright instead of rotated.
    upright: bool,
    left: f64,
    top: f64,
}

impl Grid {
    fn new(names: &[String], counts: &[String]) -> Self {
        let size = if names.len() <= 20 { 13.0 } else { 10.0 };
        let widest =
            |texts: &[String]| texts.iter().map(|text| text_width(text, size)).fold(0.0, f64::max).ceil();
        let name_width = widest(names);
        let mut cell = (widest(counts) + 8.0).max(2.4 * size);
        if names.len() <= 6 {
            cell = cell.max(name_width + 8.0);
        }
        let upright = name_width <= cell;
        let name_height = if upright { size } else { name_width };
        Self { size, cell, upright, left: 40.0 + name_width + 8.0, top: 74.0 + name_height + 8.0 }
    }

    /// Draws the cells of one class with the texts of their counts.
    fn draw_row(&self, svg: &mut Svg, label: usize, row: &[u64], texts: &[String]) {
        let &Self { size, cell, left, top, .. } = self;
        let y = top + cell * label as f64;
        let examples: u64 = row.iter().sum();
        for (predicted, (&count, text)) in row.iter().zip(texts).enumerate() {
            let share = if examples == 0 { 0.0 } else { count as f64 / examples as f64 };
            let (strength, full) =
                if predicted == label { (share, BLUE) } else { (libm::cbrt(share), ORANGE) };
            let x = left + cell * predicted as f64;
            svg.rect(x, y, cell, cell, tint(strength, full));
            let color = match count {
                0 => "#b0b0b0",
                _ if strength > 0.55 => "#ffffff",
                _ => INK,
            };
            let style = Text { size, anchor: "middle", color, ..Text::default() };
            svg.text(x + cell / 2.0, y + cell / 2.0 + 0.35 * size, &style, text);
        }
    }
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "–".into() } else { format!("{:.1}%", 100.0 * part as f64 / whole as f64) }
}

#[cfg(test)]
mod tests {
    use super::super::svg::tests::assert_well_formed;
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_matrix_shows_each_count_name_and_recall() -> Result<()> {
        let names = ["cat", "<dog>", "none"].map(String::from);
        let svg = confusion_matrix(&[vec![641, 22, 3], vec![0, 77, 5], vec![0, 0, 0]], &names)?;
        assert_well_formed(&svg);
        for text in ["641", "22", "3", "77", "5", "cat", "&lt;dog&gt;", "96.2%", "93.9%", "–"] {
            assert!(svg.contains(&format!(">{text}</text>")), "{text}");
        }
        assert!(svg.contains("718 of 748 correct, 96.0%"));
        assert_eq!(svg.matches(">0</text>").count(), 4);
        Ok(())
    }

    #[test]
    fn a_matrix_may_be_empty_or_large_but_not_ragged() -> Result<()> {
        assert_well_formed(&confusion_matrix(&[], &[])?);
        let names: Vec<String> = (0..50).map(|class| format!("a class with a long name {class}")).collect();
        let counts: Vec<Vec<u64>> =
            (0..50).map(|row| (0..50).map(|column| row * 50 + column).collect()).collect();
        let svg = confusion_matrix(&counts, &names)?;
        assert_well_formed(&svg);
        let shown: HashSet<&str> = svg.split("</text>").filter_map(|text| text.rsplit('>').next()).collect();
        assert!((0..2500).all(|count| shown.contains(count.to_string().as_str())));
        assert!(confusion_matrix(&counts, &names[..49]).is_err());
        assert!(confusion_matrix(&[vec![1, 2], vec![3]], &names[..2]).is_err());
        Ok(())
    }
}
