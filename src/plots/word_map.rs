//! A map of words: where the two leading principal components of their vectors put them.

use super::{MUTED, Svg, Text, escape, shorten, spread, text_width};
use crate::rng;
use anyhow::{Result, bail, ensure};
use rand::Rng;

/// Where each word stands in the plane that shows the most of how their vectors differ: that of the first two
/// principal components of `vectors` `(words, size)` (Pearson 1901; Hotelling 1933). One length across is the
/// same difference as that length upwards.
///
/// Words come in the order of their importance, such as the most frequent first: each in turn gets a label
/// beside its dot if there is still room, and shows its name when pointed at.
///
/// # Errors
/// When there are not `size` numbers a word, or some that are not finite.
pub fn word_map(words: &[String], vectors: &[f32], size: usize) -> Result<String> {
    const WIDTH: f64 = 960.0;
    const HEIGHTS: (f64, f64) = (480.0, 760.0);
    /// Between the frame and the outermost words.
    const ROOM: f64 = 40.0;
    const LEFT: f64 = 44.0;
    const TOP: f64 = 48.0;
    ensure!(
        size > 0 && vectors.len() == words.len() * size,
        "map: {} numbers, expected {} vectors of {size}",
        vectors.len(),
        words.len()
    );
    if let Some(at) = vectors.iter().position(|value| !value.is_finite()) {
        bail!(
            "map: the vector of {:?} has the number {}, expected finite ones",
            words[at / size],
            vectors[at]
        );
    }
    let [across, up] = components(vectors, size);
    let [(west, east), (south, north)] =
        [&across, &up].map(|part| part.scores.iter().copied().fold(None, spread).unwrap_or((0.0, 0.0)));
    let (wide, high) = (east - west, north - south);
    // Where all words stand in one place, 0 / 0 is no number and the least height is taken.
    let height = ((WIDTH - 2.0 * ROOM) * high / wide + 2.0 * ROOM).max(HEIGHTS.0).min(HEIGHTS.1);
    let scale = ((WIDTH - 2.0 * ROOM) / wide).min((height - 2.0 * ROOM) / high);
    let scale = if scale.is_finite() { scale } else { 0.0 };
    let x = |score: f64| LEFT + WIDTH / 2.0 + scale * (score - (west + east) / 2.0);
    let y = |score: f64| TOP + height / 2.0 - scale * (score - (south + north) / 2.0);

    let mut svg = Svg::new(LEFT + WIDTH + 16.0, TOP + height + 40.0);
    let title = format!("{} words by their vectors", words.len());
    svg.text(LEFT, 30.0, &Text { size: 16.0, bold: true, ..Text::default() }, &title);
    let (right, bottom) = (LEFT + WIDTH, TOP + height);
    svg.push(format_args!(
        r##"<path d="M{LEFT} {:.1}H{right}M{:.1} {TOP}V{bottom:.1}" stroke="#e4e4e4"/>"##,
        y(0.0),
        x(0.0)
    ));
    svg.push(format_args!(
        r##"<rect x="{LEFT}" y="{TOP}" width="{WIDTH}" height="{height:.1}" fill="none" stroke="#c8c8c8"/>"##
    ));
    let axis = Text { anchor: "middle", color: MUTED, ..Text::default() };
    let told =
        |name: &str, share: f64| format!("{name} principal component: {:.1}% of the variance", 100.0 * share);
    svg.text(LEFT + WIDTH / 2.0, bottom + 26.0, &axis, &told("first", across.share));
    svg.text(28.0, TOP + height / 2.0, &Text { angle: -90, ..axis }, &told("second", up.share));

    let points: Vec<(f64, f64)> =
        across.scores.iter().zip(&up.scores).map(|(&across, &up)| (x(across), y(up))).collect();
    let frame = Rectangle { left: LEFT, top: TOP, right, bottom };
    let mut taken: Vec<Rectangle> = points.iter().map(|&(x, y)| Rectangle::around(x, y, 4.0, 4.0)).collect();
    for (word, &(x, y)) in words.iter().zip(&points) {
        // What can't be seen is shown as it is written in a program.
        let is_blank = word.chars().all(|c| c.is_whitespace() || c.is_control());
        let name = if is_blank { format!("{word:?}") } else { word.clone() };
        let shown = shorten(&name, 18);
        let label = room(&shown, (x, y), &frame, &taken);
        let color = if label.is_some() { "#0072B2" } else { "#b0b0b0" };
        svg.push(format_args!(
            r#"<circle cx="{x:.1}" cy="{y:.1}" r="2" fill="{color}"><title>{}</title></circle>"#,
            escape(&name)
        ));
        if let Some((label, anchor)) = label {
            let x = match anchor {
                "start" => label.left,
                "end" => label.right,
                _ => (label.left + label.right) / 2.0,
            };
            let style = Text { size: LABEL, anchor, ..Text::default() };
            svg.text(x, label.bottom - 0.27 * LABEL, &style, &shown);
            taken.push(label);
        }
    }
    Ok(svg.finish())
}

const LABEL: f64 = 12.0;

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

    fn meets(&self, other: &Self) -> bool {
        self.left < other.right
            && other.left < self.right
            && self.top < other.bottom
            && other.top < self.bottom
    }

    fn lies_in(&self, frame: &Self) -> bool {
        self.left >= frame.left
            && self.right <= frame.right
            && self.top >= frame.top
            && self.bottom <= frame.bottom
    }
}

/// Where the label of a dot hides nothing, and its anchor: beside the dot, above or below it, or at a corner.
fn room(
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
        .find(|(label, _)| label.lies_in(frame) && !taken.iter().any(|other| label.meets(other)))
}

/// A principal component.
#[derive(Debug)]
struct Component {
    /// Of each vector, its projection.
    scores: Vec<f64>,
    /// Of all the variance.
    share: f64,
}

/// The two leading principal components of `vectors` `(count, size)`; where there are fewer, the rest is
/// zeros. The score of largest absolute value is positive.
///
/// The scores are the eigenvectors of the `(count, count)` matrix of dot products of the centred vectors,
/// each times the root of its eigenvalue (Gower 1966); those are found by orthogonal iteration (Golub and Van
/// Loan, section 8.2). Where the second and the third component explain almost the same, it may end before it
/// has told them wholly apart.
fn components(vectors: &[f32], size: usize) -> [Component; 2] {
    const ROUNDS: usize = 10_000;
    let count = vectors.len() / size;
    // Differences to the first vector: where all are equal, these are exactly 0.
    let differences =
        vectors.iter().enumerate().map(|(at, &value)| f64::from(value) - f64::from(vectors[at % size]));
    let mut centred: Vec<f64> = differences.collect();
    for column in 0..size {
        let mean = centred[column.min(count * size)..].iter().step_by(size).sum::<f64>() / count as f64;
        centred.iter_mut().skip(column).step_by(size).for_each(|value| *value -= mean);
    }
    let mut gram = vec![0.0; count * count];
    for (i, one) in centred.chunks_exact(size).enumerate() {
        for (j, other) in centred.chunks_exact(size).enumerate().take(i + 1) {
            gram[i * count + j] = dot(one, other);
            gram[j * count + i] = gram[i * count + j];
        }
    }
    let total: f64 = gram.iter().step_by(count + 1).sum();
    if total == 0.0 {
        return [(); 2].map(|()| Component { scores: vec![0.0; count], share: 0.0 });
    }
    // So that the image of a vector that the matrix takes to 0 is that vector, not rounding alone.
    let shift = 1e-12 * total;
    gram.iter_mut().step_by(count + 1).for_each(|value| *value += shift);

    let mut rng = rng::stream(0, "map");
    let mut images = [(); 2].map(|()| (0..count).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f64>>());
    let (mut basis, mut values) = (images.clone(), [0.0; 2]);
    for _ in 0..ROUNDS {
        basis = orthonormal(images);
        images = basis.each_ref().map(|vector| product(&gram, vector));
        // The basis of the same plane in which the matrix is diagonal there.
        let [a, b, c] = [(0, 0), (0, 1), (1, 1)].map(|(i, j)| dot(&basis[i], &images[j]));
        let turn = (0.5 * (2.0 * b).atan2(a - c)).sin_cos();
        rotate(&mut basis, turn);
        rotate(&mut images, turn);
        values = [0, 1].map(|i| dot(&basis[i], &images[i]));
        let error = |i: usize| {
            let squares = basis[i].iter().zip(&images[i]).map(|(x, image)| (image - values[i] * x).powi(2));
            squares.sum::<f64>().sqrt()
        };
        if error(0).max(error(1)) <= 1e-10 * values[0] {
            break;
        }
    }
    let mut values = values.into_iter();
    basis.map(|vector| {
        let variance = (values.next().unwrap_or_default() - shift).max(0.0);
        let largest = vector.iter().fold(0.0, |most: f64, x| if x.abs() > most.abs() { *x } else { most });
        let scale = variance.sqrt().copysign(largest);
        Component { scores: vector.iter().map(|x| scale * x).collect(), share: variance / total }
    })
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// A symmetric matrix times a vector.
fn product(matrix: &[f64], vector: &[f64]) -> Vec<f64> {
    let mut sum = vec![0.0; vector.len()];
    for (row, factor) in matrix.chunks_exact(vector.len()).zip(vector) {
        sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += factor * value);
    }
    sum
}

/// Gram and Schmidt's.
fn orthonormal([mut first, mut second]: [Vec<f64>; 2]) -> [Vec<f64>; 2] {
    let unit = |vector: &mut [f64]| {
        let length = dot(vector, vector).sqrt();
        vector.iter_mut().for_each(|x| *x /= length);
    };
    unit(&mut first);
    let along = dot(&first, &second);
    second.iter_mut().zip(&first).for_each(|(x, first)| *x -= along * first);
    unit(&mut second);
    [first, second]
}

fn rotate([first, second]: &mut [Vec<f64>; 2], (sin, cos): (f64, f64)) {
    for (x, y) in first.iter_mut().zip(second) {
        (*x, *y) = (cos * *x + sin * *y, cos * *y - sin * *x);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_well_formed;
    use super::*;

    #[track_caller]
    fn assert_near(found: &[f64], expected: &[f64]) {
        let near =
            found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(near, "{found:?}, expected {expected:?}");
    }

    fn words(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("<{i}&")).collect()
    }

    #[test]
    fn the_components_of_an_ellipse_are_its_axes() {
        let (sin, cos) = 0.5_f64.sin_cos();
        let turns = (0..16).map(|i| std::f64::consts::TAU * f64::from(i) / 16.0);
        let (along, across): (Vec<f64>, Vec<f64>) = turns.map(|t| (3.0 * t.cos(), t.sin())).unzip();
        let points: Vec<f32> = along
            .iter()
            .zip(&across)
            .flat_map(|(x, y)| [cos * x - sin * y, 100.0, sin * x + cos * y - 7.0].map(|value| value as f32))
            .collect();
        let [first, second] = components(&points, 3);
        assert_near(&[first.share, second.share], &[0.9, 0.1]);
        // Either end of an axis is as far out as the other.
        for (found, expected) in [(first, along), (second, across)] {
            let sign = (found.scores[1] * expected[1]).signum();
            assert_near(&found.scores, &expected.iter().map(|x| sign * x).collect::<Vec<f64>>());
        }
    }

    #[test]
    fn the_components_are_those_of_a_singular_value_decomposition() {
        let vectors = [1.0, 2.0, 0.0, 0.0, -1.0, 3.0, 2.0, 2.0, 1.0, -1.0, 0.5, -2.0, 4.0, 1.0, 1.0];
        let [first, second] = components(&vectors, 3);
        // numpy.linalg.svd of the centred vectors: U * S, with the signs of this module; S**2 / sum(S**2).
        let expected = [0.423733182, -0.314769063, -0.971067966, 3.34188058, -2.47977673];
        assert_near(&first.scores, &expected);
        assert_near(&second.scores, &[-0.964425188, 3.27275423, -0.731908871, -0.546422164, -1.02999801]);
        assert_near(&[first.share, second.share], &[0.5420778, 0.39579532]);
    }

    #[test]
    fn what_has_less_than_two_components_is_drawn() -> Result<()> {
        for (vectors, size, shares) in [
            (vec![], 3, [0.0, 0.0]),
            (vec![0.1, 0.2], 2, [0.0, 0.0]),
            ([0.1, 0.2].repeat(9), 2, [0.0, 0.0]),
            (vec![2.0, -1.0, 0.5], 1, [1.0, 0.0]),
            (vec![1.0, 2.0, 2.0, 4.0, 4.0, 8.0], 2, [1.0, 0.0]),
            (vec![3e38, -3e38, -3e38, 3e38], 2, [1.0, 0.0]),
            (vec![1e-40, 0.0], 1, [1.0, 0.0]),
        ] {
            let count = vectors.len() / size;
            let components = components(&vectors, size);
            assert_near(&components.each_ref().map(|component| component.share), &shares);
            assert!(components.iter().flat_map(|component| &component.scores).all(|score| score.is_finite()));
            let svg = word_map(&words(count), &vectors, size)?;
            assert_well_formed(&svg);
            assert_eq!(svg.matches("<title>&lt;").count(), count);
        }
        Ok(())
    }

    #[test]
    fn the_first_words_have_labels_and_the_last_ones_where_there_is_room() -> Result<()> {
        let mut vectors: Vec<f32> = (0..40_u16).flat_map(|i| [f32::from(i % 7), f32::from(i / 7)]).collect();
        // One more at the place of each.
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
    fn what_is_no_vector_a_word_is_refused() {
        let said =
            |count, vectors: &[f32], size| word_map(&words(count), vectors, size).unwrap_err().to_string();
        assert_eq!(said(2, &[1.0; 5], 3), "map: 5 numbers, expected 2 vectors of 3");
        assert_eq!(said(0, &[], 0), "map: 0 numbers, expected 0 vectors of 0");
        assert!(said(2, &[1.0, 2.0, f32::NAN, 4.0], 2).contains("\"<1&\" has the number NaN"));
    }
}
