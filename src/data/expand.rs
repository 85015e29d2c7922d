//! Artificial expansion of a training set: each time a picture is batched it is drawn a little differently.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};

/// How a training picture is changed when it is batched.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expansion {
    /// Left alone or moved up, down, left or right by one pixel, each as often (Nielsen, chapter 6).
    Shifts,
    /// Moved, turned, scaled, sheared and bent (Simard, Steinkraus and Platt 2003; Cireşan et al. 2010).
    Distort(Distortion),
}

/// How far [`Expansion::Distort`] goes; zero everywhere leaves the picture as it is.
///
/// All but the elastic part are drawn evenly between minus and plus the bound given here. The defaults are for
/// handwriting on 28x28 pixels.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Distortion {
    /// Pixels along each axis.
    pub shift: f32,
    /// Degrees around the picture's middle.
    pub rotation: f32,
    /// Parts of the size, each axis by itself: 0.1 is 90% to 110%.
    pub scale: f32,
    /// Columns moved a row.
    pub shear: f32,
    /// Standard deviation, along each axis, of how far a pixel is moved from where the rest puts it, in pixels.
    pub elastic: f32,
    /// Over how many pixels that movement is alike: the standard deviation of the Gaussian that Simard smooths
    /// with, which a cubic B-spline over a coarse grid stands for here. Above zero.
    pub smoothness: f32,
}

impl Default for Distortion {
    fn default() -> Self {
        Self { shift: 1.5, rotation: 10.0, scale: 0.12, shear: 0.12, elastic: 0.9, smoothness: 4.5 }
    }
}

impl Expansion {
    /// Writes to `out` what becomes of one channel of a picture, `(height, width)` row-major, in 0 to 1; zero where
    /// the original does not reach.
    ///
    /// What happens is drawn from `rng`, which gives every channel of a picture the same if it starts the same.
    ///
    /// # Panics
    /// When `picture` or `out` is shorter than `height * width`.
    pub fn apply(&self, picture: &[u8], size: (usize, usize), rng: &mut ChaCha8Rng, out: &mut [f32]) {
        match self {
            Self::Shifts => {
                let moves = [(0, 0), (0, -1), (0, 1), (-1, 0), (1, 0)];
                shift(picture, size, moves[rng.random_range(0..moves.len())], out);
            }
            Self::Distort(distortion) => distortion.apply(picture, size, rng, out),
        }
    }
}

/// Moves the picture by `(columns, rows)`.
fn shift(picture: &[u8], (height, width): (usize, usize), by: (isize, isize), out: &mut [f32]) {
    for (y, row) in out.chunks_mut(width).take(height).enumerate() {
        let from = y.checked_add_signed(-by.1).filter(|&y| y < height);
        for (x, value) in row.iter_mut().enumerate() {
            let at = from.zip(x.checked_add_signed(-by.0).filter(|&x| x < width));
            *value = at.map_or(0.0, |(y, x)| f32::from(picture[y * width + x]) / 255.0);
        }
    }
}

impl Distortion {
    fn apply(&self, picture: &[u8], (height, width): (usize, usize), rng: &mut ChaCha8Rng, out: &mut [f32]) {
        let framed = framed(picture, height, width);
        let mut within = |bound: f32| bound * rng.random_range(-1.0..=1.0_f32);
        let (sin, cos) = within(self.rotation.to_radians()).sin_cos();
        let [across, down] = [within(self.scale), within(self.scale)].map(|change| 1.0 / (1.0 + change));
        let shear = within(self.shear);
        let shift = [within(self.shift), within(self.shift)];
        let elastic = Elastic::draw(self, height, width, rng);
        let mut moves = vec![[0.0; 2]; width];
        let middle = [0.5 * (width as f32 - 1.0), 0.5 * (height as f32 - 1.0)];
        for (y, row) in out.chunks_mut(width).take(height).enumerate() {
            elastic.row(y, &mut moves);
            let dy = y as f32 - middle[1];
            for (x, (value, moved)) in row.iter_mut().zip(&moves).enumerate() {
                // From where in the picture this pixel comes.
                let dx = x as f32 - middle[0];
                let (dx, dy) = (across * (cos * dx + sin * dy), down * (cos * dy - sin * dx));
                let at =
                    [dx + shear * dy + shift[0] + moved[0] + middle[0], dy + shift[1] + moved[1] + middle[1]];
                *value = between(&framed, height, width, at);
            }
        }
    }
}

/// The picture in 0 to 1 with a frame of zeros one pixel wide.
fn framed(picture: &[u8], height: usize, width: usize) -> Vec<f32> {
    let mut framed = vec![0.0; (height + 2) * (width + 2)];
    for (to, from) in framed.chunks_mut(width + 2).skip(1).zip(picture.chunks(width)) {
        for (to, &from) in to[1..].iter_mut().zip(from) {
            *to = f32::from(from) / 255.0;
        }
    }
    framed
}

/// The value at column and row `at` of the picture inside the frame, bilinear between pixels.
fn between(framed: &[f32], height: usize, width: usize, at: [f32; 2]) -> f32 {
    let x = (at[0] + 1.0).clamp(0.0, width as f32 + 0.999);
    let y = (at[1] + 1.0).clamp(0.0, height as f32 + 0.999);
    let (column, row) = (x as usize, y as usize);
    let (right, below) = (x - column as f32, y - row as f32);
    let above_left = row * (width + 2) + column;
    let [a, b, c, d] = [0, 1, width + 2, width + 3].map(|next| framed[above_left + next]);
    let (above, under) = (a + right * (b - a), c + right * (d - c));
    above + below * (under - above)
}

/// A smooth random field of movements: random ones at the knots of a grid, cubic B-splines between.
struct Elastic {
    /// `(rows, columns)` of knots.
    knots: Vec<[f32; 2]>,
    columns: usize,
    spacing: f32,
}

impl Elastic {
    fn draw(distortion: &Distortion, height: usize, width: usize, rng: &mut ChaCha8Rng) -> Self {
        // The cubic B-spline over knots `h` apart has variance h^2 / 3.
        let spacing = 3.0_f32.sqrt() * distortion.smoothness;
        // The mean, over where a point lies between the knots, of the sum of its squared weights is 151/315 an axis.
        let size = distortion.elastic * (315.0 / 151.0);
        let count = |pixels: usize| (pixels as f32 / spacing) as usize + 4;
        let knots = (0..count(height) * count(width))
            .map(|_| [0; 2].map(|_: i32| size * rng.sample::<f32, _>(StandardNormal)))
            .collect();
        Self { knots, columns: count(width), spacing }
    }

    /// The movements of the pixels of row `y`.
    fn row(&self, y: usize, moves: &mut [[f32; 2]]) {
        let (first, weights) = self.weights(y);
        let rows = &self.knots[first * self.columns..];
        let across: Vec<[f32; 2]> =
            (0..self.columns).map(|column| blend(rows, column, self.columns, weights)).collect();
        for (x, moved) in moves.iter_mut().enumerate() {
            let (first, weights) = self.weights(x);
            *moved = blend(&across, first, 1, weights);
        }
    }

    /// The first of the four knots that act on pixel `at` of an axis, and how much each does.
    fn weights(&self, at: usize) -> (usize, [f32; 4]) {
        let at = at as f32 / self.spacing;
        let t = at.fract();
        let (t2, t3) = (t * t, t * t * t);
        let weights = [
            1.0 - 3.0 * t + 3.0 * t2 - t3,
            4.0 - 6.0 * t2 + 3.0 * t3,
            1.0 + 3.0 * t + 3.0 * t2 - 3.0 * t3,
            t3,
        ];
        (at as usize, weights.map(|weight| weight / 6.0))
    }
}

/// The weighted sum of four of `values`, from `first` on, `stride` apart.
fn blend(values: &[[f32; 2]], first: usize, stride: usize, weights: [f32; 4]) -> [f32; 2] {
    let [a, b, c, d] = [0, 1, 2, 3].map(|at| values[first + at * stride]);
    [0, 1]
        .map(|axis| weights[0] * a[axis] + weights[1] * b[axis] + weights[2] * c[axis] + weights[3] * d[axis])
}
