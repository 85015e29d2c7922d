//! A map of words: their vectors in the plane of the two leading principal components.

use super::principal_components::{Component, components};
use super::svg::{MUTED, Svg, Text, escape, include, shorten, text_width};
use anyhow::{Result, bail, ensure};

const WIDTH: f64 = 960.0;
/// Minimum and maximum height of the frame.
const HEIGHTS: (f64, f64) = (480.0, 760.0);
/// Distance between the frame and the outermost words.
const MARGIN: f64 = 40.0;
const LEFT: f64 = 44.0;
const TOP: f64 = 48.0;
/// Font size of labels.
const LABEL: f64 = 12.0;

/// Draws each word at its vector's position on the first two principal components, as SVG.
///
/// `vectors` is `(words, size)`, row-major. Both axes have the same scale.
///
/// Sort the words by importance, such as by frequency: they get labels in this order, as long as there is room. Every
/// dot shows its word on hovering.
///
/// # Errors
/// Fails if `vectors` does not have that shape, or has values that are not finite.
pub fn word_map(words: &[String], vectors: &[f32], size: usize) -> Result<String> {
    ensure!(
        size > 0 && words.len().checked_mul(size) == Some(vectors.len()),
        "word map: found {} values, expected {} vectors of {size}",
        vectors.len(),
        words.len()
    );
    if let Some(at) = vectors.iter().position(|value| !value.is_finite()) {
        bail!(
            "word map: found the value {} in the vector of {:?}, expected finite values",
            vectors[at],
            words[at / size]
        );
    }
    let components = components(vectors, size);
    let layout = Layout::new(&components);
    let Layout { frame, .. } = layout;
    let mut svg = Svg::new(frame.right + 16.0, frame.bottom + 40.0);
    draw_frame(&mut svg, words.len(), &components, &layout);
    let [across, up] = &components;
    let points: Vec<(f64, f64)> =
        across.scores.iter().zip(&up.scores).map(|(&across, &up)| layout.position(across, up)).collect();
    draw_words(&mut svg, words, &points, &frame);
    Ok(svg.finish())
}

/// Maps scores to positions on the page.
struct Layout {
    frame: Rectangle,
    scale: f64,
    /// Scores at the centre of the frame.
    centre: (f64, f64),
}

impl Layout {
    fn new(components: &[Component; 2]) -> Self {
        let [(west, east), (south, north)] = components
            .each_ref()
            .map(|part| part.scores.iter().copied().fold(None, include).unwrap_or((0.0, 0.0)));
        let (wide, high) = (east - west, north - south);
        // If all words are at the same position, 0 / 0 is NaN and `max` picks the least height.
        let height = ((WIDTH - 2.0 * MARGIN) * high / wide + 2.0 * MARGIN).max(HEIGHTS.0).min(HEIGHTS.1);
        let scale = ((WIDTH - 2.0 * MARGIN) / wide).min((height - 2.0 * MARGIN) / high);
        Self {
            frame: Rectangle { left: LEFT, top: TOP, right: LEFT + WIDTH, bottom: TOP + height },
            scale: if scale.is_finite() { scale } else { 0.0 },
            centre: ((west + east) / 2.0, (south + north) / 2.0),
        }
    }

    fn position(&self, across: f64, up: f64) -> (f64, f64) {
        let (x, y) = self.frame.centre();
        (x + self.scale * (across - self.centre.0), y - self.scale * (up - self.centre.1))
    }
}

/// Draws title, axes and frame.
fn draw_frame(svg: &mut Svg, words: usize, components: &[Component; 2], layout: &Layout) {
    let Rectangle { left, top, right, bottom } = layout.frame;
    let title = format!("{words} words by their vectors");
    svg.text(left, 30.0, &Text { size: 16.0, bold: true, ..Text::default() }, &title);
    let (x, y) = layout.position(0.0, 0.0);
    svg.push(format_args!(
        r##"<path d="M{left} {y:.1}H{right}M{x:.1} {top}V{bottom:.1}" stroke="#e4e4e4"/>"##
    ));
    let (width, height) = (right - left, bottom - top);
    svg.push(format_args!(
        r##"<rect x="{left}" y="{top}" width="{width}" height="{height:.1}" fill="none" stroke="#c8c8c8"/>"##
    ));
    let axis = Text { anchor: "middle", color: MUTED, ..Text::default() };
    let label = |name: &str, component: &Component| {
        format!("{name} principal component: {:.1}% of the variance", 100.0 * component.share)
    };
    let (x, y) = layout.frame.centre();
    let [across, up] = components;
    svg.text(x, bottom + 26.0, &axis, &label("first", across));
    svg.text(28.0, y, &Text { angle: -90, ..axis }, &label("second", up));
}

/// Draws a dot for each word, and a label where there is room.
fn draw_words(svg: &mut Svg, words: &[String], points: &[(f64, f64)], frame: &Rectangle) {
    let mut taken: Vec<Rectangle> = points.iter().map(|&(x, y)| Rectangle::around(x, y, 4.0, 4.0)).collect();
    for (word, &(x, y)) in words.iter().zip(points) {
        // Invisible words are shown as a string literal.
        let is_blank = word.chars().all(|c| c.is_whitespace() || c.is_control());
        let name = if is_blank { format!("{word:?}") } else { word.clone() };
        let shown = shorten(&name, 18);
        let label = place_label(&shown, (x, y), frame, &taken);
        let color = if label.is_some() { "#0072B2" } else { "#b0b0b0" };
        svg.push(format_args!(
            r#"<circle cx="{x:.1}" cy="{y:.1}" r="2" fill="{color}"><title>{}</title></circle>"#,
            escape(&name)
        ));
        if let Some((label, anchor)) = label {
            let x = match anchor {
                "start" => label.left,
                "end" => label.right,
                _ => label.centre().0,
            };
            let style = Text { size: LABEL, anchor, ..Text::default() };
            svg.text(x, label.bottom - 0.27 * LABEL, &style, &shown);
            taken.push(label);
        }
    }
}

#[derive(Clone, Copy)]
struct Rectangle {
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
}

impl Rectangle {
    fn around(x: f64, y: f64, width: f64, height: f64) -> Self {
        let (w, h) = (width / 2.0, height / 2.0);
        Self { left: x - w, top: y - h, right: x + w, bottom: y + h }
    }

    fn centre(&self) -> (f64, f64) {
        ((self.left + self.right) / 2.0, (self.top + self.bottom) / 2.0)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.left < other.right
            && other.left < self.right
            && self.top < other.bottom
            && other.top < self.bottom
    }

    fn is_inside(&self, frame: &Self) -> bool {
        self.left >= frame.left
            && self.right <= frame.right
            && self.top >= frame.top
            && self.bottom <= frame.bottom
    }
}

/// Finds a free position for the label of a dot, and its text anchor.
///
/// The label is beside the dot, above or below it, or at a corner.
fn place_label(
    name: &str,
    (x, y): (f64, f64),
    frame: &Rectangle,
    taken: &[Rectangle],
) -> Option<(Rectangle, &'static str)> {
    let (width, height) = (text_width(name, LABEL), LABEL + 1.0);
    let (aside, over) = (width / 2.0 + 4.5, height / 2.0 + 2.5);
    let [right, left, middle] = [(aside, "start"), (-aside, "end"), (0.0, "middle")];
    [(right, 0.0), (left, 0.0), (middle, -over), (middle, over)]
        .into_iter()
        .chain([-0.7, 0.7].into_iter().flat_map(|part| [(right, part * over), (left, part * over)]))
        .map(|((across, anchor), down)| (Rectangle::around(x + across, y + down, width, height), anchor))
        .find(|(label, _)| label.is_inside(frame) && !taken.iter().any(|other| label.overlaps(other)))
}

#[cfg(test)]
mod tests {
    use super::super::svg::tests::assert_well_formed;
    use super::*;

    fn words(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("<{i}&")).collect()
    }

    #[test]
    fn vectors_of_rank_0_or_1_are_drawn() -> Result<()> {
        for (vectors, size) in [
            (vec![], 3),
            (vec![0.1, 0.2], 2),
            ([0.1, 0.2].repeat(9), 2),
            (vec![2.0, -1.0, 0.5], 1),
            (vec![1.0, 2.0, 2.0, 4.0, 4.0, 8.0], 2),
            (vec![3e38, -3e38, -3e38, 3e38], 2),
            (vec![1e-40, 0.0], 1),
        ] {
            let count = vectors.len() / size;
            let svg = word_map(&words(count), &vectors, size)?;
            assert_well_formed(&svg);
            assert_eq!(svg.matches("<title>&lt;").count(), count);
        }
        Ok(())
    }

    #[test]
    fn the_first_words_have_labels_and_the_last_only_where_there_is_room() -> Result<()> {
        let mut vectors: Vec<f32> = (0..40_u16).flat_map(|i| [f32::from(i % 7), f32::from(i / 7)]).collect();
        // A second word at each position.
        vectors.extend(vectors.clone());
        vectors.extend([5.0; 2].repeat(20));
        let svg = word_map(&words(100), &vectors, 2)?;
        let labelled = |i: usize| svg.contains(&format!(">&lt;{i}&amp;</text>"));
        assert!((0..40).all(labelled) && !(80..100).all(labelled));
        assert_eq!(svg, word_map(&words(100), &vectors, 2)?);
        let blanks = word_map(&["\n".to_string(), " ".to_string()], &[0.0, 1.0], 1)?;
        assert!(blanks.contains(">&quot;\\n&quot;</text>") && blanks.contains(">&quot; &quot;</text>"));
        Ok(())
    }

    #[test]
    fn vectors_of_another_shape_or_with_nan_are_refused() {
        let error =
            |count, vectors: &[f32], size| word_map(&words(count), vectors, size).unwrap_err().to_string();
        assert_eq!(error(2, &[1.0; 5], 3), "word map: found 5 values, expected 2 vectors of 3");
        assert_eq!(error(0, &[], 0), "word map: found 0 values, expected 0 vectors of 0");
        assert!(error(2, &[], usize::MAX).contains("expected 2 vectors"));
        assert!(error(2, &[1.0, 2.0, f32::NAN, 4.0], 2).contains("value NaN in the vector of \"<1&\""));
    }
}
