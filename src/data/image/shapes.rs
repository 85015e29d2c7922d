//! The built-in colour images: five shapes in two textures, drawn from a seed.
//!
//! A class is a shape with a texture. Nothing else distinguishes the classes: the colours of background, figure and
//! texture are drawn independently for each image, the shapes have equal areas on average, and both textures cover half
//! of the figure. Distracting patches are behind and over the figure, some of them with the other texture.

use super::generate::generate;
use super::images::Images;
use candle_core::Result;
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::f32::consts::TAU;
use std::ops::Range;

/// Height and width of an image.
const SIDE: usize = 32;
const PIXELS: usize = SIDE * SIDE;

/// Upper bound of the fraction of a figure that a patch hides.
const MAX_HIDDEN: f32 = 0.25;

/// Minimum distance between the colours of a figure and its background, out of 255.
///
/// It is the root mean square over the channels.
const MIN_CONTRAST: f32 = 50.0;

/// The class names; a class is twice the index of its shape, plus one if it is dotted.
const CLASS_NAMES: [&str; 10] = [
    "striped disc",
    "dotted disc",
    "striped square",
    "dotted square",
    "striped triangle",
    "dotted triangle",
    "striped star",
    "dotted star",
    "striped cross",
    "dotted cross",
];

/// Generates `train` training and `test` test images, with ten classes equally often.
///
/// The images have shape (3, 32, 32).
///
/// Image `i` of either set is a function of `seed` and `i`, so a smaller set is the beginning of a larger one.
///
/// # Errors
/// Fails if the images don't fit in memory.
pub fn shapes(train: usize, test: usize, seed: u64) -> Result<(Images, Images)> {
    let split = |len, name: &str| {
        let images = generate(len, (3, SIDE, SIDE), (seed, &format!("shapes/{name}")), draw)?;
        images.with_class_names(CLASS_NAMES)
    };
    Ok((split(train, "train")?, split(test, "test")?))
}

/// Draws one image of `class`, `(3, SIDE, SIDE)` row-major.
fn draw(class: u8, rng: &mut ChaCha8Rng, image: &mut [u8]) {
    let background = colour(MIDDLE, rng);
    let mut canvas = Canvas::background(background, rng);
    for _ in 0..rng.random_range(0..4) {
        let at = [rng.random_range(0.0..SIDE as f32), rng.random_range(0.0..SIDE as f32)];
        let patch = Patch::random(at, rng.random_range(2.0..4.5), rng);
        canvas.paint(&patch, &patch.cover());
    }

    let size = rng.random_range(6.0..9.5_f32);
    let mut within = || rng.random_range(size..SIDE as f32 - size);
    let at = [within(), within()];
    let shape =
        [Shape::Disc, Shape::Square, Shape::Triangle, Shape::Star, Shape::Cross][usize::from(class / 2)];
    let texture = [Texture::Stripes, Texture::Dots][usize::from(class % 2)];
    let dark = contrasting(DARK, &[background], rng);
    let mut colours = [dark, contrasting(LIGHT, &[background, dark], rng)];
    colours.shuffle(rng);
    let figure =
        Patch { shape, size, frame: Frame::random(at, rng), fill: Fill::random(texture, colours, rng) };
    let cover = figure.cover();
    canvas.paint(&figure, &cover);

    if rng.random_bool(0.5) {
        let direction = rng.random_range(0.0..TAU);
        let away = size * rng.random_range(0.3..1.2_f32);
        let at = [at[0] + away * libm::cosf(direction), at[1] + away * libm::sinf(direction)];
        let mut patch = Patch::random(at, rng.random_range(2.5..5.0), rng);
        let whole: f32 = cover.iter().sum();
        let hidden =
            |patch: &Patch| patch.cover().iter().zip(&cover).map(|(over, under)| over * under).sum::<f32>();
        while hidden(&patch) > MAX_HIDDEN * whole {
            patch.size *= 0.8;
        }
        canvas.paint(&patch, &patch.cover());
    }
    canvas.render(rng, image);
}

/// Red, green and blue, 0 to 255.
type Colour = [f32; 3];

/// The ranges of the channels of a background and of the two colours of a figure.
const MIDDLE: Range<f32> = 80.0..175.0;
const DARK: Range<f32> = 0.0..115.0;
const LIGHT: Range<f32> = 140.0..255.0;

fn colour(range: Range<f32>, rng: &mut ChaCha8Rng) -> Colour {
    std::array::from_fn(|_| rng.random_range(range.clone()))
}

/// Draws a colour that contrasts with `others`. `DARK` and `LIGHT` always contain one.
fn contrasting(range: Range<f32>, others: &[Colour], rng: &mut ChaCha8Rng) -> Colour {
    loop {
        let new = colour(range.clone(), rng);
        let contrasts = |other: &Colour| {
            let squared: f32 = new.iter().zip(other).map(|(a, b)| (a - b) * (a - b)).sum();
            squared >= 3.0 * MIN_CONTRAST * MIN_CONTRAST
        };
        if others.iter().all(contrasts) {
            return new;
        }
    }
}

type Point = [f32; 2];

/// A rotated and stretched coordinate system.
struct Frame {
    origin: Point,
    /// Cosine and sine of the rotation.
    rotation: Point,
    stretch: f32,
}

impl Frame {
    fn random(origin: Point, rng: &mut ChaCha8Rng) -> Self {
        let (sin, cos) = libm::sincosf(rng.random_range(0.0..TAU));
        Self { origin, rotation: [cos, sin], stretch: rng.random_range(0.85..1.0 / 0.85) }
    }

    /// The coordinates of the centre of a pixel.
    fn at(&self, x: usize, y: usize) -> Point {
        let (x, y) = (x as f32 + 0.5 - self.origin[0], y as f32 + 0.5 - self.origin[1]);
        let [cos, sin] = self.rotation;
        [(cos * x + sin * y) * self.stretch, (cos * y - sin * x) / self.stretch]
    }
}

#[derive(Clone, Copy)]
enum Shape {
    Disc,
    Square,
    Triangle,
    Star,
    Cross,
}

impl Shape {
    /// Returns the distance of `point` from the edge of a shape, negative inside.
    ///
    /// The shape has the area of a disc of radius `size`.
    fn distance(self, [x, y]: Point, size: f32) -> f32 {
        /// The sine of 60 degrees; the cosine and sine of 72 and of 144.
        const SIN_60: f32 = 0.866_025_4;
        const FIFTH: Point = [0.309_017, 0.951_056_5];
        const TWO_FIFTHS: Point = [-0.809_017, 0.587_785_25];
        match self {
            Self::Disc => (x * x + y * y).sqrt() - size,
            Self::Square => x.abs().max(y.abs()) - 0.886 * size,
            Self::Triangle => (-y).max(SIN_60 * x.abs() + 0.5 * y) - 0.777 * size,
            // A point of the star is beyond at most one of the five lines along its edges.
            Self::Star => {
                let mut most = [f32::NEG_INFINITY; 2];
                let x = x.abs();
                for [cos, sin] in
                    [[1.0, 0.0], FIFTH, [FIFTH[0], -FIFTH[1]], TWO_FIFTHS, [TWO_FIFTHS[0], -TWO_FIFTHS[1]]]
                {
                    let beyond = cos * y + sin * x;
                    most = [most[0].max(beyond), most[1].max(most[0].min(beyond))];
                }
                most[1] - 0.517 * size
            }
            Self::Cross => {
                let (long, short) = (x.abs().max(y.abs()), x.abs().min(y.abs()));
                (long - 1.166 * size).max(short - 0.408 * size)
            }
        }
    }

    /// The largest distance of the edge from the centre.
    fn reach(self, size: f32) -> f32 {
        size * match self {
            Self::Disc => 1.0,
            Self::Square => 1.26,
            Self::Triangle => 1.56,
            Self::Star => 1.68,
            Self::Cross => 1.24,
        }
    }
}

#[derive(Clone, Copy)]
enum Texture {
    Plain,
    Stripes,
    Dots,
}

/// The filling of a patch: one colour or, with a texture, two colours that cover half of it each.
struct Fill {
    texture: Texture,
    colours: [Colour; 2],
    frame: Frame,
    /// The distance of stripes or dots, in pixels.
    period: f32,
}

impl Fill {
    fn random(texture: Texture, colours: [Colour; 2], rng: &mut ChaCha8Rng) -> Self {
        let origin = [rng.random_range(-8.0..0.0), rng.random_range(-8.0..0.0)];
        Self { texture, colours, frame: Frame::random(origin, rng), period: rng.random_range(3.6..6.0) }
    }

    fn colour_at(&self, x: usize, y: usize) -> Colour {
        /// The radius, in periods, of dots that cover half of the plane.
        const RADIUS: f32 = 0.398_942_3;
        let off = |along: f32| {
            let periods = along / self.period;
            periods - periods.round()
        };
        let inside = match self.texture {
            Texture::Plain => return self.colours[0],
            Texture::Stripes => 0.25 - off(self.frame.at(x, y)[0]).abs(),
            Texture::Dots => {
                let [dx, dy] = self.frame.at(x, y).map(off);
                RADIUS - (dx * dx + dy * dy).sqrt()
            }
        };
        mix(self.colours[0], self.colours[1], (0.5 + self.period * inside).clamp(0.0, 1.0))
    }
}

fn mix(from: Colour, to: Colour, part: f32) -> Colour {
    std::array::from_fn(|channel| from[channel] + part * (to[channel] - from[channel]))
}

/// A filled shape somewhere in the image.
struct Patch {
    shape: Shape,
    size: f32,
    frame: Frame,
    fill: Fill,
}

impl Patch {
    /// A distracting patch: a disc or a bar, half of them without texture.
    fn random(at: Point, size: f32, rng: &mut ChaCha8Rng) -> Self {
        let shape = if rng.random_bool(0.5) { Shape::Disc } else { Shape::Square };
        let texture = match rng.random_range(0..4) {
            0 => Texture::Stripes,
            1 => Texture::Dots,
            _ => Texture::Plain,
        };
        let colours = [colour(0.0..255.0, rng), colour(0.0..255.0, rng)];
        let mut frame = Frame::random(at, rng);
        frame.stretch = rng.random_range(0.6..1.0);
        Self { shape, size, frame, fill: Fill::random(texture, colours, rng) }
    }

    /// The columns and rows that the patch may cover.
    fn span(&self) -> [Range<usize>; 2] {
        let stretch = self.frame.stretch.max(1.0 / self.frame.stretch);
        let reach = stretch * self.shape.reach(self.size) + 1.0;
        self.frame.origin.map(|at| {
            ((at - reach).max(0.0) as usize).min(SIDE)..((at + reach).max(0.0) as usize + 1).min(SIDE)
        })
    }

    /// The fraction of each pixel that the patch covers.
    fn cover(&self) -> [f32; PIXELS] {
        let mut cover = [0.0; PIXELS];
        let [columns, rows] = self.span();
        for y in rows {
            for x in columns.clone() {
                let distance = self.shape.distance(self.frame.at(x, y), self.size);
                cover[y * SIDE + x] = (0.5 - distance).clamp(0.0, 1.0);
            }
        }
        cover
    }
}

/// An image before it is converted to bytes.
struct Canvas([Colour; PIXELS]);

impl Canvas {
    /// A background of about the given colour: a gradient, with clouds of another colour.
    fn background(mean: Colour, rng: &mut ChaCha8Rng) -> Self {
        const KNOTS: usize = 5;
        let mut around = |by: f32| mean.map(|value| value + rng.random_range(-by..by));
        let [from, to, cloud] = [around(30.0), around(30.0), around(45.0)];
        let frame = Frame::random([SIDE as f32 / 2.0; 2], rng);
        let knots: [f32; KNOTS * KNOTS] = std::array::from_fn(|_| rng.random_range(0.0..1.0));
        let between = |at: usize| {
            let knot = (at as f32 + 0.5) * (KNOTS - 1) as f32 / SIDE as f32;
            (knot as usize, knot.fract())
        };
        Self(std::array::from_fn(|pixel| {
            let (x, y) = (pixel % SIDE, pixel / SIDE);
            let ((column, right), (row, down)) = (between(x), between(y));
            let at = row * KNOTS + column;
            let above = knots[at] + right * (knots[at + 1] - knots[at]);
            let below = knots[at + KNOTS] + right * (knots[at + KNOTS + 1] - knots[at + KNOTS]);
            let along = (0.5 + frame.at(x, y)[0] / SIDE as f32).clamp(0.0, 1.0);
            mix(mix(from, to, along), cloud, above + down * (below - above))
        }))
    }

    fn paint(&mut self, patch: &Patch, cover: &[f32; PIXELS]) {
        let [columns, rows] = patch.span();
        for y in rows {
            for x in columns.clone() {
                let (pixel, cover) = (&mut self.0[y * SIDE + x], cover[y * SIDE + x]);
                if cover > 0.0 {
                    *pixel = mix(*pixel, patch.fill.colour_at(x, y), cover);
                }
            }
        }
    }

    /// Converts to bytes, one plane per channel, under light that decreases to one side, and with noise.
    fn render(&self, rng: &mut ChaCha8Rng, image: &mut [u8]) {
        let noise = rng.random_range(0.0..12.0_f32) / 127.5;
        let falloff = rng.random_range(0.0..0.4_f32);
        let frame = Frame::random([SIDE as f32 / 2.0; 2], rng);
        rng.fill(image);
        for (channel, plane) in image.chunks_mut(PIXELS).enumerate() {
            for (at, (byte, colour)) in plane.iter_mut().zip(&self.0).enumerate() {
                let light = 1.0 - falloff * (0.5 + frame.at(at % SIDE, at / SIDE)[0] / (1.5 * SIDE as f32));
                *byte = (light * colour[channel] + noise * (f32::from(*byte) - 127.5) + 0.5) as u8;
            }
        }
    }
}
