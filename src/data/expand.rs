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
        // From where in the picture a pixel comes: turned and scaled around the middle, then sheared and moved.
        let turn = [
            [across * cos + shear * down * -sin, across * sin + shear * down * cos],
            [down * -sin, down * cos],
        ];
        let middle = [0.5 * (width as f32 - 1.0), 0.5 * (height as f32 - 1.0)];
        let start = middle.map(|middle| middle + within(self.shift));
        let [move_x, move_y] = [0; 2].map(|_: i32| self.elastic(height, width, rng));
        for (y, row) in out.chunks_mut(width).take(height).enumerate() {
            let dy = y as f32 - middle[1];
            let moves = move_x[y * width..].iter().zip(&move_y[y * width..]);
            for (x, (value, (move_x, move_y))) in row.iter_mut().zip(moves).enumerate() {
                let dx = x as f32 - middle[0];
                let [x, y] = [0, 1].map(|axis| start[axis] + turn[axis][0] * dx + turn[axis][1] * dy);
                *value = between(&framed, height, width, [x + move_x, y + move_y]);
            }
        }
    }

    /// How far each pixel is moved along one axis: normal numbers at the knots of a coarse grid, cubic B-splines between.
    fn elastic(&self, height: usize, width: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
        // The cubic B-spline over knots h apart has variance h^2 / 3.
        let spacing = 3.0_f32.sqrt() * self.smoothness;
        // The sum of the squared weights of a pixel's knots is, on average, 151/315 along each axis.
        let size = self.elastic * (315.0 / 151.0);
        let (down, across) = (splines(height, spacing), splines(width, spacing));
        let mut field = vec![0.0; height * width];
        for down in down.chunks(height) {
            let mut row = vec![0.0; width];
            for across in across.chunks(width) {
                add_scaled(&mut row, size * rng.sample::<f32, _>(StandardNormal), across);
            }
            for (to, &weight) in field.chunks_mut(width).zip(down).filter(|&(_, &weight)| weight != 0.0) {
                add_scaled(to, weight, &row);
            }
        }
        field
    }
}

/// The cubic B-splines around knots `spacing` apart, `(knots, pixels)` row-major.
fn splines(pixels: usize, spacing: f32) -> Vec<f32> {
    let knots = ((pixels - 1) as f32 / spacing) as usize + 4;
    let mut weights = vec![0.0; knots * pixels];
    for pixel in 0..pixels {
        let at = pixel as f32 / spacing;
        let knot = at as usize;
        let t = at - knot as f32;
        let (t2, t3) = (t * t, t * t * t);
        let four = [1.0 - 3.0 * (t - t2) - t3, 4.0 - 6.0 * t2 + 3.0 * t3, 1.0 + 3.0 * (t + t2 - t3), t3];
        for (next, weight) in four.into_iter().enumerate() {
            weights[(knot + next) * pixels + pixel] = weight / 6.0;
        }
    }
    weights
}

fn add_scaled(to: &mut [f32], scale: f32, values: &[f32]) {
    for (to, value) in to.iter_mut().zip(values) {
        *to += scale * value;
    }
}

/// The picture in 0 to 1 with a frame of zeros one pixel wide.
fn framed(picture: &[u8], height: usize, width: usize) -> Vec<f32> {
    let mut framed = vec![0.0; (height + 2) * (width + 2)];
    for (to, from) in framed.chunks_mut(width + 2).skip(1).zip(picture.chunks(width).take(height)) {
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
    let (column, row) = (x as i32, y as i32);
    let (right, below) = (x - column as f32, y - row as f32);
    let pixels = &framed[row as usize * (width + 2) + column as usize..][..width + 4];
    let [a, b, c, d] = [pixels[0], pixels[1], pixels[width + 2], pixels[width + 3]];
    let (above, under) = (a + right * (b - a), c + right * (d - c));
    above + below * (under - above)
}
