//! Figures of five shapes and two textures drawn from a seed: the set of colour pictures that needs no files.
//!
//! A class is a shape and a texture, so both must be seen. Nothing else tells them apart: the colours of ground, figure
//! and texture are drawn anew for each picture, the shapes have equal areas on average, both textures cover half of the
//! figure. Patches lie behind the figure and over it, some of them with the wrong texture.

use super::generate::generate;
use super::images::Images;
use candle_core::Result;
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::f32::consts::TAU;
use std::ops::Range;

/// Height and width of a picture.
const SIDE: usize = 32;
const PIXELS: usize = SIDE * SIDE;

/// The part of a figure that a patch over it hides, at most.
const MOST_HIDDEN: f32 = 0.25;

/// How far the colours of a figure are from each other and from that of the ground, in bytes: the root of the mean square of the channels.
const LEAST_CONTRAST: f32 = 50.0;

/// The classes: twice the number of the shape, plus one where it is dotted.
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

/// `train` and `test` pictures of the built-in shapes, 3x32x32, ten classes equally often.
///
/// Picture `i` of either set is a function of `seed` and `i`: the first pictures of a larger set are the smaller set.
///
/// # Errors
/// Never: the pictures are what [`Images::new`] asks for.
pub fn shapes(train: usize, test: usize, seed: u64) -> Result<(Images, Images)> {
    let split = |len, name: &str| {
        let images = generate(len, (3, SIDE, SIDE), (seed, &format!("shapes/{name}")), draw)?;
        images.with_class_names(CLASS_NAMES)
    };
    Ok((split(train, "train")?, split(test, "test")?))
}

/// Draws one picture of `class`, `(3, SIDE, SIDE)` row-major.
fn draw(class: u8, rng: &mut ChaCha8Rng, picture: &mut [u8]) {
    let ground = colour(MIDDLE, rng);
    let mut canvas = Canvas::ground(ground, rng);
    for _ in 0..rng.random_range(0..4) {
        let at = [rng.random_range(0.0..SIDE as f32), rng.random_range(0.0..SIDE as f32)];
        let patch = Patch::any(at, rng.random_range(2.0..4.5), rng);
        canvas.paint(&patch, &patch.cover());
    }

    let size = rng.random_range(6.0..9.5_f32);
    let mut within = || rng.random_range(size..SIDE as f32 - size);
    let at = [within(), within()];
    let shape =
        [Shape::Disc, Shape::Square, Shape::Triangle, Shape::Star, Shape::Cross][usize::from(class / 2)];
    let texture = [Texture::Stripes, Texture::Dots][usize::from(class % 2)];
    let dark = contrasting(DARK, &[ground], rng);
    let mut colours = [dark, contrasting(LIGHT, &[ground, dark], rng)];
    colours.shuffle(rng);
    let figure = Patch { shape, size, place: Place::any(at, rng), fill: Fill::any(texture, colours, rng) };
    let cover = figure.cover();
    canvas.paint(&figure, &cover);

    if rng.random_bool(0.5) {
        let direction = rng.random_range(0.0..TAU);
        let away = size * rng.random_range(0.3..1.2_f32);
        let at = [at[0] + away * libm::cosf(direction), at[1] + away * libm::sinf(direction)];
        let mut patch = Patch::any(at, rng.random_range(2.5..5.0), rng);
        let whole: f32 = cover.iter().sum();
        let hidden =
            |patch: &Patch| patch.cover().iter().zip(&cover).map(|(over, under)| over * under).sum::<f32>();
        while hidden(&patch) > MOST_HIDDEN * whole {
            patch.size *= 0.8;
        }
        canvas.paint(&patch, &patch.cover());
    }
    canvas.develop(rng, picture);
}

/// Red, green and blue, 0 to 255.
type Colour = [f32; 3];

/// Between which bytes the channels of a ground lie, and those of the two colours of a figure.
const MIDDLE: Range<f32> = 80.0..175.0;
const DARK: Range<f32> = 0.0..115.0;
const LIGHT: Range<f32> = 140.0..255.0;

fn colour(within: Range<f32>, rng: &mut ChaCha8Rng) -> Colour {
    std::array::from_fn(|_| rng.random_range(within.clone()))
}

/// A colour that can be told from `others`: wherever these lie, `DARK` and `LIGHT` hold some.
fn contrasting(within: Range<f32>, others: &[Colour], rng: &mut ChaCha8Rng) -> Colour {
    loop {
        let new = colour(within.clone(), rng);
        let far = |other: &Colour| {
            let squared: f32 = new.iter().zip(other).map(|(a, b)| (a - b) * (a - b)).sum();
            squared >= 3.0 * LEAST_CONTRAST * LEAST_CONTRAST
        };
        if others.iter().all(far) {
            return new;
        }
    }
}

type Point = [f32; 2];

/// A frame of reference: its origin, how it is turned, and how much longer it is along one axis than along the other.
struct Place {
    origin: Point,
    turn: Point,
    stretch: f32,
}

impl Place {
    fn any(origin: Point, rng: &mut ChaCha8Rng) -> Self {
        let (sin, cos) = libm::sincosf(rng.random_range(0.0..TAU));
        Self { origin, turn: [cos, sin], stretch: rng.random_range(0.85..1.0 / 0.85) }
    }

    /// Where in this frame the middle of a pixel is.
    fn of(&self, x: usize, y: usize) -> Point {
        let (x, y) = (x as f32 + 0.5 - self.origin[0], y as f32 + 0.5 - self.origin[1]);
        let [cos, sin] = self.turn;
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
    /// How far outside the edge `point` is, or inside where below 0, for a shape of the area of a disc of radius `size`.
    fn outside(self, [x, y]: Point, size: f32) -> f32 {
        /// The sine and cosine of 60 degrees, of 72 and of 144.
        const SIN_60: f32 = 0.866_025_4;
        const FIFTH: Point = [0.309_017, 0.951_056_5];
        const TWO_FIFTHS: Point = [-0.809_017, 0.587_785_25];
        match self {
            Self::Disc => (x * x + y * y).sqrt() - size,
            Self::Square => x.abs().max(y.abs()) - 0.886 * size,
            Self::Triangle => (-y).max(SIN_60 * x.abs() + 0.5 * y) - 0.777 * size,
            // Its tips lie beyond one of the five lines along its edges, the rest of it beyond none.
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

    /// How far the edge of such a shape is from its middle, at most.
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

/// What a patch is filled with: a ground and, where the texture says so, a second colour on half of it.
struct Fill {
    texture: Texture,
    colours: [Colour; 2],
    place: Place,
    /// From a stripe or a dot to the next, in pixels.
    period: f32,
}

impl Fill {
    fn any(texture: Texture, colours: [Colour; 2], rng: &mut ChaCha8Rng) -> Self {
        let origin = [rng.random_range(-8.0..0.0), rng.random_range(-8.0..0.0)];
        Self { texture, colours, place: Place::any(origin, rng), period: rng.random_range(3.6..6.0) }
    }

    fn of(&self, x: usize, y: usize) -> Colour {
        /// The radius of dots that cover half of the plane, in periods.
        const RADIUS: f32 = 0.398_942_3;
        let off = |along: f32| {
            let periods = along / self.period;
            periods - periods.round()
        };
        let inside = match self.texture {
            Texture::Plain => return self.colours[0],
            Texture::Stripes => 0.25 - off(self.place.of(x, y)[0]).abs(),
            Texture::Dots => {
                let [dx, dy] = self.place.of(x, y).map(off);
                RADIUS - (dx * dx + dy * dy).sqrt()
            }
        };
        mix(self.colours[0], self.colours[1], (0.5 + self.period * inside).clamp(0.0, 1.0))
    }
}

fn mix(from: Colour, to: Colour, part: f32) -> Colour {
    std::array::from_fn(|channel| from[channel] + part * (to[channel] - from[channel]))
}

/// A filled shape somewhere in the picture.
struct Patch {
    shape: Shape,
    size: f32,
    place: Place,
    fill: Fill,
}

impl Patch {
    /// A patch that says nothing: a disc or a bar, half of them plain.
    fn any(at: Point, size: f32, rng: &mut ChaCha8Rng) -> Self {
        let shape = if rng.random_bool(0.5) { Shape::Disc } else { Shape::Square };
        let texture = match rng.random_range(0..4) {
            0 => Texture::Stripes,
            1 => Texture::Dots,
            _ => Texture::Plain,
        };
        let colours = [colour(0.0..255.0, rng), colour(0.0..255.0, rng)];
        let mut place = Place::any(at, rng);
        place.stretch = rng.random_range(0.6..1.0);
        Self { shape, size, place, fill: Fill::any(texture, colours, rng) }
    }

    /// The columns and rows that it can touch.
    fn span(&self) -> [Range<usize>; 2] {
        let stretch = self.place.stretch.max(1.0 / self.place.stretch);
        let reach = stretch * self.shape.reach(self.size) + 1.0;
        self.place.origin.map(|at| {
            ((at - reach).max(0.0) as usize).min(SIDE)..((at + reach).max(0.0) as usize + 1).min(SIDE)
        })
    }

    /// How much of each pixel it covers, 0 to 1.
    fn cover(&self) -> [f32; PIXELS] {
        let mut cover = [0.0; PIXELS];
        let [columns, rows] = self.span();
        for y in rows {
            for x in columns.clone() {
                let outside = self.shape.outside(self.place.of(x, y), self.size);
                cover[y * SIDE + x] = (0.5 - outside).clamp(0.0, 1.0);
            }
        }
        cover
    }
}

/// A picture in the making.
struct Canvas([Colour; PIXELS]);

impl Canvas {
    /// A ground of about the colour `ground`: a gradient, and clouds of another colour.
    fn ground(ground: Colour, rng: &mut ChaCha8Rng) -> Self {
        const KNOTS: usize = 5;
        let mut around = |by: f32| ground.map(|value| value + rng.random_range(-by..by));
        let [from, to, cloud] = [around(30.0), around(30.0), around(45.0)];
        let place = Place::any([SIDE as f32 / 2.0; 2], rng);
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
            let along = (0.5 + place.of(x, y)[0] / SIDE as f32).clamp(0.0, 1.0);
            mix(mix(from, to, along), cloud, above + down * (below - above))
        }))
    }

    fn paint(&mut self, patch: &Patch, cover: &[f32; PIXELS]) {
        let [columns, rows] = patch.span();
        for y in rows {
            for x in columns.clone() {
                let (pixel, cover) = (&mut self.0[y * SIDE + x], cover[y * SIDE + x]);
                if cover > 0.0 {
                    *pixel = mix(*pixel, patch.fill.of(x, y), cover);
                }
            }
        }
    }

    /// As bytes, a plane a colour, in light that falls off to one side and with a camera's noise.
    fn develop(&self, rng: &mut ChaCha8Rng, picture: &mut [u8]) {
        let noise = rng.random_range(0.0..12.0_f32) / 127.5;
        let fall = rng.random_range(0.0..0.4_f32);
        let place = Place::any([SIDE as f32 / 2.0; 2], rng);
        rng.fill(picture);
        for (channel, plane) in picture.chunks_mut(PIXELS).enumerate() {
            for (at, (byte, colour)) in plane.iter_mut().zip(&self.0).enumerate() {
                let light = 1.0 - fall * (0.5 + place.of(at % SIDE, at / SIDE)[0] / (1.5 * SIDE as f32));
                *byte = (light * colour[channel] + noise * (f32::from(*byte) - 127.5) + 0.5) as u8;
            }
        }
    }
}
