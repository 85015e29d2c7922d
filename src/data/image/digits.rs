//! The built-in grey images: handwritten-looking digits, drawn from a seed.
//!
//! Each image starts with one of several pen paths for its digit. The path is bent, slanted, rotated and stretched, then
//! drawn with a pen of random width and pressure. The ink is placed as in MNIST: the bounding box scaled to 20x20 pixels,
//! the centre of mass at the centre of 28x28.

use super::generate::generate;
use super::images::Images;
use crate::rng::StandardNormal;
use candle_core::Result;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::f32::consts::TAU;

/// Height and width of an image, and of the box that the digit is scaled to.
const SIDE: usize = 28;
const BOX: usize = 20;

/// One way to write a digit, with its relative frequency.
struct Style {
    weight: u32,
    strokes: &'static [Stroke],
}

/// The points of a smooth curve, x to the right and y down.
///
/// They are percentages of the digit's undistorted box. A duplicated point is a corner.
type Stroke = &'static [(i8, i8)];

const fn style(weight: u32, strokes: &'static [Stroke]) -> Style {
    Style { weight, strokes }
}

#[rustfmt::skip]
const STYLES: [&[Style]; 10] = [
    &[
        // closed at the top
        style(3, &[&[(50, 0), (22, 10), (4, 36), (3, 62), (16, 88), (45, 100), (78, 88), (95, 58), (92, 30), (75, 8), (46, 1)]]),
        // starting at the upper right, the end crossing the start
        style(2, &[&[(68, 6), (36, 6), (8, 38), (8, 76), (38, 100), (76, 84), (94, 44), (74, 8), (44, 3), (28, 14)]]),
        // ending inside
        style(1, &[&[(58, 2), (22, 10), (4, 40), (6, 76), (40, 100), (80, 84), (96, 46), (82, 8), (52, 6), (40, 26)]]),
        // with a tail at the upper right
        style(1, &[&[(84, -6), (52, 4), (18, 24), (4, 60), (18, 94), (52, 100), (84, 80), (94, 42), (76, 12), (50, 4)]]),
        // wide
        style(1, &[&[(56, 0), (10, 12), (-16, 48), (-6, 84), (40, 100), (96, 84), (118, 44), (98, 10), (46, 2)]]),
        // open at the top
        style(2, &[&[(34, 8), (8, 36), (6, 74), (36, 100), (74, 92), (92, 58), (88, 22), (72, -4)]]),
        // not quite closed
        style(1, &[&[(40, 4), (12, 24), (2, 56), (16, 90), (48, 100), (82, 86), (96, 52), (86, 18), (58, 2)]]),
    ],
    &[
        style(8, &[&[(50, 0), (50, 50), (50, 100)]]),
        // bent
        style(2, &[&[(54, 0), (48, 30), (47, 70), (52, 100)]]),
        // with a flag
        style(1, &[&[(32, 20), (50, 0), (50, 0), (50, 50), (50, 100)]]),
        // with a flag and a base
        style(1, &[&[(26, 20), (52, 0), (52, 0), (51, 50), (50, 98)], &[(18, 99), (50, 99), (86, 98)]]),
    ],
    &[
        // with a corner at the foot
        style(3, &[&[(8, 22), (26, 4), (56, 0), (82, 12), (84, 36), (64, 62), (32, 86), (5, 98), (5, 98), (48, 96), (95, 98)]]),
        // with a loop at the foot
        style(3, &[&[(10, 20), (30, 3), (62, 2), (82, 20), (76, 46), (52, 74), (24, 96), (6, 92), (10, 76), (34, 76), (64, 90), (98, 94)]]),
        // with a large loop at the foot
        style(3, &[&[(6, 30), (20, 6), (54, 0), (78, 22), (72, 54), (48, 86), (20, 100), (0, 88), (6, 66), (32, 64), (62, 84), (100, 92)]]),
        // like a Z
        style(1, &[&[(6, 8), (46, 2), (82, 8), (74, 36), (40, 72), (6, 98), (6, 98), (50, 97), (92, 95)]]),
        // with a curled beginning and a rising end
        style(1, &[&[(24, 34), (8, 24), (24, 4), (60, 0), (82, 22), (70, 54), (36, 82), (8, 96), (24, 84), (54, 94), (76, 98), (98, 82)]]),
    ],
    &[
        // with a corner in the middle
        style(4, &[&[(8, 12), (36, 0), (70, 6), (78, 26), (60, 42), (34, 48), (34, 48), (68, 54), (86, 74), (70, 94), (38, 100), (5, 90)]]),
        // with a small loop in the middle
        style(2, &[&[(10, 14), (40, 0), (72, 8), (74, 30), (52, 46), (34, 50), (42, 55), (70, 56), (84, 76), (66, 96), (34, 100), (4, 92)]]),
        // with a flat top
        style(1, &[&[(8, 5), (44, 3), (82, 2), (82, 2), (42, 40), (42, 40), (76, 52), (86, 76), (58, 99), (8, 92)]]),
        // narrow, curled at the foot
        style(2, &[&[(14, 16), (40, 2), (66, 12), (62, 34), (40, 46), (40, 46), (64, 54), (72, 78), (50, 98), (20, 94), (6, 80)]]),
        // with a weak middle
        style(1, &[&[(12, 6), (50, 0), (74, 14), (66, 36), (50, 46), (74, 58), (82, 80), (56, 98), (10, 98)]]),
    ],
    &[
        // open, with a corner
        style(3, &[&[(18, 0), (12, 28), (8, 54), (8, 54), (50, 54), (94, 48)], &[(80, 2), (74, 50), (68, 100)]]),
        // open and round, in one go
        style(3, &[&[(16, 4), (8, 34), (18, 54), (46, 54), (72, 42), (84, 4), (84, 4), (78, 50), (70, 100)]]),
        // open and round, in two
        style(2, &[&[(20, 0), (8, 36), (20, 56), (54, 55), (94, 48)], &[(76, 10), (70, 54), (66, 100)]]),
        // closed
        style(2, &[&[(66, 0), (36, 32), (4, 64), (4, 64), (50, 65), (98, 62)], &[(66, 0), (65, 50), (62, 100)]]),
    ],
    &[
        // in one go
        style(3, &[&[(84, 2), (54, 4), (26, 5), (26, 5), (18, 44), (18, 44), (50, 38), (80, 54), (82, 78), (58, 97), (28, 100), (4, 90)]]),
        // with a separate bar
        style(3, &[&[(26, 8), (22, 28), (18, 46), (18, 46), (50, 42), (78, 56), (80, 80), (52, 99), (6, 94)], &[(26, 6), (60, 4), (102, -2)]]),
        // with a small belly under a long neck
        style(1, &[&[(84, 2), (40, 6), (40, 6), (30, 42), (30, 42), (56, 46), (68, 68), (50, 94), (8, 98)]]),
        // like an S
        style(2, &[&[(88, 0), (50, 5), (24, 20), (30, 40), (62, 54), (76, 76), (56, 97), (26, 100), (4, 88)]]),
    ],
    &[
        // bent
        style(3, &[&[(60, 0), (30, 24), (8, 58), (12, 88), (40, 100), (72, 92), (82, 70), (62, 54), (34, 60), (14, 80)]]),
        // straight
        style(2, &[&[(78, 0), (42, 32), (12, 68), (18, 92), (46, 100), (76, 88), (76, 66), (50, 58), (20, 76)]]),
        // wide, with a curled beginning
        style(1, &[&[(86, 12), (62, 0), (28, 18), (6, 56), (16, 90), (48, 100), (82, 86), (82, 60), (54, 48), (16, 64)]]),
        // straight down, the loop low
        style(2, &[&[(26, 0), (8, 40), (6, 80), (30, 100), (66, 94), (78, 70), (58, 54), (30, 66), (20, 90)]]),
        // with a loop that stays open
        style(1, &[&[(36, 0), (14, 34), (6, 72), (28, 100), (62, 92), (74, 66), (58, 50), (40, 66)]]),
        // upright, with a small loop
        style(2, &[&[(34, 0), (16, 30), (6, 66), (20, 94), (48, 100), (70, 88), (66, 68), (42, 66), (20, 84)]]),
    ],
    &[
        // with a corner
        style(3, &[&[(4, 10), (48, 7), (90, 4), (90, 4), (66, 50), (48, 100)]]),
        // rounded
        style(3, &[&[(4, 16), (40, 7), (78, 4), (86, 20), (66, 56), (50, 100)]]),
        // with a bar
        style(3, &[&[(6, 10), (48, 6), (90, 4), (90, 4), (64, 50), (46, 100)], &[(24, 50), (54, 49), (90, 47)]]),
        // like a question mark
        style(1, &[&[(2, 26), (20, 6), (60, 0), (88, 12), (80, 40), (60, 70), (54, 100)]]),
        // with a serif
        style(2, &[&[(6, 26), (10, 7), (10, 7), (50, 8), (88, 4), (88, 4), (72, 50), (62, 100)]]),
    ],
    &[
        // an S, closed on the way back
        style(4, &[&[(80, 14), (52, 0), (22, 12), (24, 32), (50, 48), (76, 66), (78, 88), (48, 100), (20, 88), (24, 66), (50, 48), (74, 30), (82, 12)]]),
        // two circles
        style(1, &[&[(50, 46), (24, 36), (22, 12), (50, 0), (76, 12), (74, 36), (48, 46)], &[(50, 46), (20, 60), (16, 86), (48, 100), (82, 86), (78, 60), (48, 46)]]),
        // with a small head
        style(1, &[&[(72, 8), (48, 0), (28, 10), (32, 26), (54, 42), (82, 66), (80, 90), (44, 100), (14, 88), (22, 62), (50, 38), (70, 20), (66, 4)]]),
        // with a small foot
        style(2, &[&[(86, 16), (54, 0), (16, 12), (16, 34), (46, 54), (62, 76), (56, 96), (38, 98), (28, 80), (44, 58), (78, 34), (88, 10)]]),
        // slim, with a nearly straight way back
        style(2, &[&[(84, 10), (58, 0), (30, 12), (34, 34), (58, 54), (66, 78), (46, 100), (24, 90), (36, 64), (60, 40), (86, 10)]]),
        // open at the top
        style(2, &[&[(70, 8), (42, 2), (22, 18), (38, 40), (62, 60), (66, 86), (38, 100), (16, 86), (30, 62), (58, 40), (86, 4)]]),
    ],
    &[
        // a straight stem below the circle
        style(3, &[&[(82, 16), (54, 1), (20, 12), (8, 36), (26, 52), (58, 44), (82, 14), (82, 14), (78, 54), (72, 100)]]),
        // curled at the foot
        style(2, &[&[(80, 20), (52, 1), (18, 12), (10, 38), (30, 52), (62, 44), (82, 18), (84, 56), (70, 92), (40, 100), (14, 90)]]),
        // bent
        style(2, &[&[(84, 8), (48, 2), (14, 22), (16, 46), (46, 48), (78, 18), (84, 10), (76, 46), (60, 76), (42, 100)]]),
        // with a circle that stays open
        style(1, &[&[(70, 8), (34, 4), (8, 28), (20, 48), (54, 44), (80, 24), (80, 24), (76, 60), (70, 100)]]),
        // small and slim on a long stem
        style(2, &[&[(70, 6), (44, 2), (26, 20), (34, 38), (56, 34), (74, 8), (74, 8), (62, 54), (50, 100)]]),
        // like a g, the stem starting above the circle
        style(1, &[&[(76, 12), (42, 4), (12, 22), (18, 44), (48, 46), (76, 24)], &[(80, 2), (78, 50), (72, 100)]]),
        // small circle
        style(2, &[&[(78, 8), (46, 2), (20, 18), (24, 38), (52, 38), (80, 12), (80, 12), (74, 52), (70, 100)]]),
    ],
];

/// Generates `train` training and `test` test images of digits, with ten classes equally often.
///
/// The images have shape (1, 28, 28).
///
/// Image `i` of either set is a function of `seed` and `i`, so a smaller set is the beginning of a larger one.
///
/// # Errors
/// Fails if the images don't fit in memory.
pub fn digits(train: usize, test: usize, seed: u64) -> Result<(Images, Images)> {
    let split = |len, name: &str| {
        let draw = |digit, rng: &mut ChaCha8Rng, image: &mut [u8]| draw(usize::from(digit), rng, image);
        generate(len, (1, SIDE, SIDE), (seed, &format!("digits/{name}")), draw)
    };
    Ok((split(train, "train")?, split(test, "test")?))
}

/// Draws one image of `digit`.
fn draw(digit: usize, rng: &mut ChaCha8Rng, image: &mut [u8]) {
    let mut lines = Vec::new();
    for stroke in pick(STYLES[digit], rng).strokes {
        trace(stroke, rng, &mut lines);
    }
    distort(&mut lines, rng);
    let pen = Pen::random(rng);
    fit(&mut lines, BOX as f32 - 2.0 * (pen.radius * (1.0 + pen.swell) + pen.roughness) - pen.edge);
    centre(&pen.ink(&lines, rng), image);
}

fn pick(styles: &'static [Style], rng: &mut ChaCha8Rng) -> &'static Style {
    let mut at = rng.random_range(0..styles.iter().map(|style| style.weight).sum());
    let chosen = styles.iter().find(|style| {
        let found = at < style.weight;
        at = at.saturating_sub(style.weight);
        found
    });
    chosen.unwrap_or(&styles[0])
}

/// A normal value, clamped to two standard deviations so that every image is legible.
fn normal(rng: &mut ChaCha8Rng) -> f32 {
    rng.sample::<f32, _>(StandardNormal).clamp(-2.0, 2.0)
}

type Point = [f32; 2];

/// Adds the lines of a `stroke` with jittered points, cut at its corners.
fn trace(stroke: Stroke, rng: &mut ChaCha8Rng, lines: &mut Vec<Vec<Point>>) {
    let offset = [0.02 * normal(rng), 0.02 * normal(rng)];
    let mut smooth: Vec<Point> = Vec::with_capacity(stroke.len());
    for (at, &(x, y)) in stroke.iter().enumerate() {
        if at > 0 && stroke[at - 1] == (x, y) {
            let corner = smooth[smooth.len() - 1];
            lines.push(spline(&smooth));
            smooth.clear();
            smooth.push(corner);
        } else {
            let size = if at == 0 || at + 1 == stroke.len() { 0.04 } else { 0.03 };
            let jitter = [size * normal(rng), size * normal(rng)];
            smooth.push([x, y].map(|percent| f32::from(percent) / 100.0));
            let last = smooth.len() - 1;
            (0..2).for_each(|axis| smooth[last][axis] += offset[axis] + jitter[axis]);
        }
    }
    lines.push(spline(&smooth));
}

/// The Catmull-Rom spline through `points`, as a polyline.
fn spline(points: &[Point]) -> Vec<Point> {
    const PIECES: usize = 5;
    let last = points.len() - 1;
    let mut line = Vec::with_capacity(last * PIECES + 1);
    for at in 0..last {
        let [before, from, to, after] =
            [points[at.saturating_sub(1)], points[at], points[at + 1], points[(at + 2).min(last)]];
        for piece in 0..PIECES {
            let t = piece as f32 / PIECES as f32;
            line.push([0, 1].map(|axis| {
                let (a, b, c, d) = (before[axis], from[axis], to[axis], after[axis]);
                b + 0.5 * t * (c - a + t * (2.0 * a - 5.0 * b + 4.0 * c - d + t * (3.0 * (b - c) + d - a)))
            }));
        }
    }
    line.push(points[last]);
    line
}

/// Bends the lines by slow waves, then slants, scales and rotates them.
fn distort(lines: &mut [Vec<Point>], rng: &mut ChaCha8Rng) {
    let waves: [_; 4] = std::array::from_fn(|wave| {
        let frequency = TAU * rng.random_range(0.3..1.0_f32);
        let direction = rng.random_range(0.0..TAU);
        let size = 0.05 * normal(rng);
        (
            wave % 2,
            [frequency * libm::cosf(direction), frequency * libm::sinf(direction)],
            rng.random_range(0.0..TAU),
            size,
        )
    });
    let slant = 0.12 + 0.23 * normal(rng);
    let width = 0.82 * libm::expf(0.22 * normal(rng));
    let (sin, cos) = libm::sincosf(0.12 * normal(rng));
    for point in lines.iter_mut().flatten() {
        let mut bent = *point;
        for (axis, wave, phase, size) in waves {
            bent[axis] += size * libm::sinf(wave[0] * point[0] + wave[1] * point[1] + phase);
        }
        let [x, y] = bent;
        let x = width * x - slant * y;
        *point = [cos * x - sin * y, sin * x + cos * y];
    }
}

/// Scales the lines to the larger extent `extent`, and centres their bounding box in the image.
fn fit(lines: &mut [Vec<Point>], extent: f32) {
    let (mut low, mut high) = ([f32::INFINITY; 2], [f32::NEG_INFINITY; 2]);
    for point in lines.iter().flatten() {
        for axis in 0..2 {
            low[axis] = low[axis].min(point[axis]);
            high[axis] = high[axis].max(point[axis]);
        }
    }
    let scale = extent / (high[0] - low[0]).max(high[1] - low[1]);
    for point in lines.iter_mut().flatten() {
        for axis in 0..2 {
            point[axis] = scale * (point[axis] - 0.5 * (low[axis] + high[axis])) + 0.5 * SIDE as f32;
        }
    }
}

/// The pen that draws the lines; lengths are in pixels.
struct Pen {
    radius: f32,
    /// Width of the blurred edge.
    edge: f32,
    /// Bound of the random displacement of the edge.
    roughness: f32,
    /// Relative amplitude and initial phase of the radius's variation along a line.
    swell: f32,
    phase: f32,
    /// Darkness of the ink. Values above 255 are clipped, which sharpens the edges.
    full: f32,
}

impl Pen {
    fn random(rng: &mut ChaCha8Rng) -> Self {
        Self {
            radius: (1.28 * libm::expf(0.28 * normal(rng))).clamp(0.75, 2.0),
            edge: rng.random_range(0.8..1.5),
            roughness: rng.random_range(0.0..0.3),
            swell: rng.random_range(0.0..0.2),
            phase: rng.random_range(0.0..TAU),
            full: rng.random_range(255.0..330.0),
        }
    }

    /// Draws `lines`.
    fn ink(&self, lines: &[Vec<Point>], rng: &mut ChaCha8Rng) -> [u8; SIDE * SIDE] {
        // The squared distance of each pixel to the nearest line, in radii.
        let mut nearest = [1e6_f32; SIDE * SIDE];
        for line in lines {
            for (at, ends) in line.windows(2).enumerate() {
                let radius = self.radius * (1.0 + self.swell * libm::sinf(self.phase + 0.25 * at as f32));
                self.update([ends[0], ends[1]], radius, &mut nearest);
            }
        }
        let mut ink = [0; SIDE * SIDE];
        rng.fill(&mut ink);
        for (byte, squared) in ink.iter_mut().zip(nearest) {
            let rough = self.roughness * (f32::from(*byte) / 127.5 - 1.0);
            let inside = self.radius * (1.0 - squared.sqrt()) + rough;
            *byte = (self.full * (inside / self.edge + 0.5) + 0.5) as u8;
        }
        ink
    }

    /// Updates `nearest` around the line segment between `ends`.
    fn update(&self, ends: [Point; 2], radius: f32, nearest: &mut [f32; SIDE * SIDE]) {
        let [from, to] = ends;
        let reach = radius + self.edge;
        let span = |axis: usize| {
            let (low, high) = (from[axis].min(to[axis]) - reach, from[axis].max(to[axis]) + reach);
            low.max(0.0) as usize..(high.max(0.0) as usize + 1).min(SIDE)
        };
        let along = [to[0] - from[0], to[1] - from[1]];
        let over_length = 1.0 / (along[0] * along[0] + along[1] * along[1]).max(1e-9);
        let over_radius = 1.0 / (radius * radius);
        let columns = span(0);
        for y in span(1) {
            let dy = y as f32 + 0.5 - from[1];
            for x in columns.clone() {
                let dx = x as f32 + 0.5 - from[0];
                let t = ((dx * along[0] + dy * along[1]) * over_length).clamp(0.0, 1.0);
                let (ex, ey) = (dx - t * along[0], dy - t * along[1]);
                let squared = (ex * ex + ey * ey) * over_radius;
                let pixel = &mut nearest[y * SIDE + x];
                *pixel = pixel.min(squared);
            }
        }
    }
}

/// Copies `ink` to `image`, shifted by whole pixels so that the centre of mass is at the centre.
fn centre(ink: &[u8; SIDE * SIDE], image: &mut [u8]) {
    let (mut mass, mut sum) = (0, [0, 0]);
    for (at, &byte) in ink.iter().enumerate() {
        let byte = u32::from(byte);
        mass += byte;
        sum[0] += byte * (at % SIDE) as u32;
        sum[1] += byte * (at / SIDE) as u32;
    }
    let shift = sum.map(|sum| (SIDE as f32 / 2.0 - 0.5 - sum as f32 / mass as f32).round() as isize);
    for (y, row) in ink.chunks(SIDE).enumerate() {
        let Some(to) = y.checked_add_signed(shift[1]).filter(|&to| to < SIDE) else { continue };
        let width = SIDE - shift[0].unsigned_abs();
        let (from, at) = ((-shift[0]).max(0) as usize, shift[0].max(0) as usize);
        image[to * SIDE + at..][..width].copy_from_slice(&row[from..from + width]);
    }
}

#[cfg(test)]
mod tests {
    use super::digits;
    use candle_core::Result;

    #[test]
    fn a_smaller_set_begins_a_larger_one() -> Result<()> {
        let (large, large_test) = digits(120, 50, 3)?;
        let (mut first, mut first_test) = digits(200, 90, 3)?;
        first.truncate(120);
        first_test.truncate(50);
        assert_eq!((&large, &large_test), (&first, &first_test));
        assert_ne!(large, digits(120, 0, 4)?.0, "another seed");
        assert_ne!(large.image(0)?, large_test.image(0)?, "another split");
        Ok(())
    }

    #[test]
    fn classes_are_equally_frequent() -> Result<()> {
        let (train, test) = digits(1000, 100, 1)?;
        assert_eq!((train.shape(), train.classes(), train.len(), test.len()), ((1, 28, 28), 10, 1000, 100));
        for digit in 0..10 {
            assert_eq!(train.labels().iter().filter(|&&label| label == digit).count(), 100);
        }
        Ok(())
    }

    #[test]
    fn digits_fit_and_are_centred_as_in_mnist() -> Result<()> {
        let (images, _) = digits(5000, 0, 1)?;
        for index in 0..images.len() {
            let ink = |at: usize| f32::from(images.image(index).unwrap()[at]);
            let inked: Vec<usize> = (0..28 * 28).filter(|&at| ink(at) > 0.0).collect();
            let mass: f32 = inked.iter().map(|&at| ink(at)).sum();
            let along = |axis: fn(usize) -> usize| {
                let (low, high) =
                    (inked.iter().map(|&at| axis(at)).min(), inked.iter().map(|&at| axis(at)).max());
                let centre = inked.iter().map(|&at| ink(at) * (axis(at) as f32 + 0.5)).sum::<f32>() / mass;
                (high.unwrap_or(0) + 1 - low.unwrap_or(0), centre)
            };
            let ((width, x), (height, y)) = (along(|at| at % 28), along(|at| at / 28));
            assert!((18..=20).contains(&width.max(height)), "image {index} is {width} by {height}");
            assert!((x - 14.0).abs() <= 0.501 && (y - 14.0).abs() <= 0.501, "image {index} is at {x}, {y}");
            assert!(inked.iter().any(|&at| ink(at) >= 240.0), "image {index} is pale");
        }
        Ok(())
    }

    #[test]
    fn the_number_of_threads_does_not_matter() -> Result<()> {
        let draw = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| digits(95, 15, 1))
        };
        assert_eq!(draw(1)?, draw(3)?);
        Ok(())
    }
}
