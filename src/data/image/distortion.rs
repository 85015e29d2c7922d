//! Affine and elastic distortions of handwriting.

use crate::rng::StandardNormal;
use candle_core::{Result, bail};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// The parameters of [`Augmentation::Distort`](super::Augmentation::Distort).
///
/// The affine parameters are drawn uniformly between minus and plus their bound. If all bounds are zero, the image is
/// unchanged. The defaults suit handwriting of 28x28 pixels.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Distortion {
    /// Bound of the shift along each axis, in pixels.
    pub shift: f32,
    /// Bound of the rotation around the centre, in degrees.
    pub rotation: f32,
    /// Bound of the relative change of size along each axis: 0.1 scales by 0.9 to 1.1. Below 1.
    pub scale: f32,
    /// Bound of the horizontal shear, in columns per row.
    pub shear: f32,
    /// Standard deviation of the elastic displacement along each axis, in pixels.
    pub elastic: f32,
    /// Correlation length of the elastic displacement, in pixels, at least 0.1.
    ///
    /// This is the standard deviation of Simard's Gaussian filter, which is replaced here by a cubic B-spline over a
    /// coarse grid.
    pub smoothness: f32,
}

impl Default for Distortion {
    fn default() -> Self {
        Self { shift: 1.5, rotation: 10.0, scale: 0.12, shear: 0.12, elastic: 0.9, smoothness: 4.5 }
    }
}

impl Distortion {
    pub(super) fn validate(&self) -> Result<()> {
        let Self { shift, rotation, scale, shear, elastic, smoothness } = *self;
        if ![shift, rotation, scale, shear, elastic, smoothness].iter().all(|value| value.is_finite()) {
            bail!("distortion: found an infinite or undefined parameter, expected finite ones");
        }
        if scale.abs() >= 1.0 {
            bail!("distortion: found scale {scale}, expected less than 1");
        }
        if smoothness < 0.1 {
            bail!("distortion: found smoothness {smoothness}, expected at least 0.1");
        }
        Ok(())
    }

    /// Distorts the planes of one image into `out`.
    pub(super) fn apply(
        &self,
        image: &[u8],
        (height, width): (usize, usize),
        rng: &mut ChaCha8Rng,
        out: &mut [f32],
    ) {
        let mut within = |bound: f32| bound * rng.random_range(-1.0..=1.0_f32);
        let (sin, cos) = libm::sincosf(within(self.rotation.to_radians()));
        let [across, down] = [within(self.scale), within(self.scale)].map(|change| 1.0 / (1.0 + change));
        let shear = within(self.shear);
        // The inverse map, from an output pixel to its source: rotation, scaling and shear around the centre, shift, then
        // the elastic displacement.
        let linear = [
            [across * cos - shear * down * sin, across * sin + shear * down * cos],
            [-down * sin, down * cos],
        ];
        let centre = [width, height].map(|length| 0.5 * (length as f32 - 1.0));
        let origin = centre.map(|centre| centre + within(self.shift));
        // A cubic B-spline over knots h apart has variance h^2 / 3.
        let spacing = 3.0_f32.sqrt() * self.smoothness;
        let (rows, columns) = (splines(height, spacing), splines(width, spacing));
        let [from_x, from_y] = [0, 1].map(|axis| {
            let mut from = self.displacement(&rows, height, &columns, width, rng);
            for (y, row) in from.chunks_mut(width).enumerate() {
                let start = origin[axis] + linear[axis][1] * (y as f32 - centre[1]);
                for (x, from) in row.iter_mut().enumerate() {
                    *from += start + linear[axis][0] * (x as f32 - centre[0]);
                }
            }
            from
        });
        for (plane, out) in image.chunks(height * width).zip(out.chunks_mut(height * width)) {
            let framed = framed(plane, height, width);
            for (value, (&x, &y)) in out.iter_mut().zip(from_x.iter().zip(&from_y)) {
                *value = interpolate(&framed, height, width, x, y);
            }
        }
    }

    /// The elastic displacement of each pixel along one axis.
    ///
    /// It is a B-spline through normal values on a coarse grid.
    fn displacement(
        &self,
        rows: &[f32],
        height: usize,
        columns: &[f32],
        width: usize,
        rng: &mut ChaCha8Rng,
    ) -> Vec<f32> {
        // The squared weights of a pixel's knots add up to 151/315 on average along each axis.
        let size = self.elastic * (315.0 / 151.0);
        let mut field = vec![0.0; height * width];
        let mut row = vec![0.0; width];
        for down in rows.chunks(height) {
            row.fill(0.0);
            for across in columns.chunks(width) {
                add_scaled(&mut row, size * rng.sample::<f32, _>(StandardNormal), across);
            }
            for (to, &weight) in field.chunks_mut(width).zip(down).filter(|&(_, &weight)| weight != 0.0) {
                add_scaled(to, weight, &row);
            }
        }
        field
    }
}

/// The weights of cubic B-splines around knots `spacing` apart, `(knots, pixels)` row-major.
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

/// Samples `plane` `(height, width)` at `from(x, y)` for each pixel `(x, y)` of the result.
///
/// The result is from 0 to 1, and zero outside the plane.
///
/// It is zero outside the plane.
#[cfg(feature = "plots")]
pub(crate) fn resampled(
    plane: &[u8],
    (height, width): (usize, usize),
    from: impl Fn(f32, f32) -> (f32, f32),
) -> Vec<f32> {
    let framed = framed(plane, height, width);
    let value = |at: usize| {
        let (x, y) = from((at % width) as f32, (at / width) as f32);
        interpolate(&framed, height, width, x, y)
    };
    (0..height * width).map(value).collect()
}

/// The plane, from 0 to 1, in a frame of zeros one pixel wide.
fn framed(plane: &[u8], height: usize, width: usize) -> Vec<f32> {
    let mut framed = vec![0.0; (height + 2) * (width + 2)];
    for (to, from) in framed.chunks_mut(width + 2).skip(1).zip(plane.chunks(width).take(height)) {
        for (to, &from) in to[1..].iter_mut().zip(from) {
            *to = f32::from(from) / 255.0;
        }
    }
    framed
}

/// The value at column `x` and row `y` of a framed plane, by bilinear interpolation.
fn interpolate(framed: &[f32], height: usize, width: usize, x: f32, y: f32) -> f32 {
    let x = (x + 1.0).clamp(0.0, width as f32 + 0.999);
    let y = (y + 1.0).clamp(0.0, height as f32 + 0.999);
    let (column, row) = ((x as i32).min(width as i32), (y as i32).min(height as i32));
    let (right, below) = (x - column as f32, y - row as f32);
    let pixels = &framed[row as usize * (width + 2) + column as usize..][..width + 4];
    let [a, b, c, d] = [pixels[0], pixels[1], pixels[width + 2], pixels[width + 3]];
    let (above, under) = (a + right * (b - a), c + right * (d - c));
    above + below * (under - above)
}
