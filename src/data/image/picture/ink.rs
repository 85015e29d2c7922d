//! Separating ink from paper in a grey photograph.

use image::{GrayImage, Luma};

/// Number of sample pixels per side to which the background is fitted.
const FIT_SIDE: u32 = 64;

/// Minimum difference between ink and background, of 255.
pub(super) const MIN_CONTRAST: f64 = 24.0;
/// The same in multiples of the background's noise.
const MIN_CONTRAST_TO_NOISE: f64 = 4.0;

/// Two classes of grey values, with the threshold that separates them best (Otsu 1979).
pub(super) struct Threshold {
    pub below: u64,
    pub above: u64,
    pub below_mean: f64,
    pub above_mean: f64,
}

impl Threshold {
    pub fn of(histogram: &[u64; 256]) -> Self {
        let total: u64 = histogram.iter().sum();
        let sum: u64 = histogram.iter().zip(0..).map(|(&count, value)| count * value).sum();
        let mean = |sum: u64, count: u64| sum as f64 / count.max(1) as f64;
        let whole = mean(sum, total);
        let mut best = Self { below: total, above: 0, below_mean: whole, above_mean: whole };
        let mut best_variance = 0.0;
        let (mut below, mut sum_below) = (0, 0);
        for threshold in 1..256 {
            below += histogram[threshold - 1];
            sum_below += histogram[threshold - 1] * (threshold as u64 - 1);
            let above = total - below;
            let (below_mean, above_mean) = (mean(sum_below, below), mean(sum - sum_below, above));
            let distance = above_mean - below_mean;
            let variance = below as f64 * above as f64 * (distance * distance);
            if variance > best_variance {
                best_variance = variance;
                best = Self { below, above, below_mean, above_mean };
            }
        }
        best
    }

    pub fn contrast(&self) -> f64 {
        self.above_mean - self.below_mean
    }
}

/// The brightness of the background: a quadratic polynomial of x and y, each from -1 to 1.
struct Background {
    coefficients: [f64; 6],
    /// The standard deviation of the residuals, estimated from their median.
    noise: f64,
}

impl Background {
    fn terms(grey: &GrayImage, x: u32, y: u32) -> [f64; 6] {
        let x = f64::from(2 * x + 1) / f64::from(grey.width()) - 1.0;
        let y = f64::from(2 * y + 1) / f64::from(grey.height()) - 1.0;
        [1.0, x, y, x * x, x * y, y * y]
    }

    /// How much lighter a pixel is than the background.
    fn residual(&self, grey: &GrayImage, x: u32, y: u32) -> f64 {
        let terms = Self::terms(grey, x, y);
        let value: f64 = terms.iter().zip(&self.coefficients).map(|(term, factor)| term * factor).sum();
        f64::from(grey.get_pixel(x, y)[0]) - value
    }

    /// Fits by least squares over `pixels`, then again without residuals above twice the median.
    fn fit(grey: &GrayImage, pixels: &[(u32, u32)]) -> Self {
        let mut fit = Self { coefficients: [0.0; 6], noise: 0.0 };
        let mut limit = f64::INFINITY;
        for _ in 0..6 {
            let mut system = [[0.0; 7]; 6];
            for &(x, y) in pixels.iter().filter(|&&(x, y)| fit.residual(grey, x, y).abs() <= limit) {
                let terms = Self::terms(grey, x, y);
                for (row, term) in system.iter_mut().zip(terms) {
                    for (sum, other) in row.iter_mut().zip(terms) {
                        *sum += term * other;
                    }
                    row[6] += term * f64::from(grey.get_pixel(x, y)[0]);
                }
            }
            fit.coefficients = solve(system);
            let mut residuals: Vec<f64> =
                pixels.iter().map(|&(x, y)| fit.residual(grey, x, y).abs()).collect();
            let median = median(&mut residuals);
            limit = 2.0 * median + 1.0;
            fit.noise = 1.48 * median;
        }
        fit
    }

    /// The minimum difference between ink and this background.
    fn min_contrast(&self) -> f64 {
        MIN_CONTRAST.max(MIN_CONTRAST_TO_NOISE * self.noise)
    }
}

/// Solves a symmetric system, its right-hand side in the last column, by Gaussian elimination.
///
/// A small ridge on the diagonal sets coefficients to 0 that the pixels do not determine, in images one or two pixels
/// wide.
fn solve(mut system: [[f64; 7]; 6]) -> [f64; 6] {
    let ridge = 1e-9 * system[0][0].max(1.0);
    for (i, row) in system.iter_mut().enumerate() {
        row[i] += ridge;
    }
    for i in 0..6 {
        let pivot = system[i];
        for row in &mut system[i + 1..] {
            let factor = row[i] / pivot[i];
            for (value, above) in row.iter_mut().zip(pivot).skip(i) {
                *value -= factor * above;
            }
        }
    }
    let mut solution = [0.0; 6];
    for i in (0..6).rev() {
        let known: f64 = (i + 1..6).map(|j| system[i][j] * solution[j]).sum();
        solution[i] = (system[i][6] - known) / system[i][i];
    }
    solution
}

fn median(values: &mut [f64]) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f64::total_cmp).1
}

/// The amount of ink in each pixel, 255 for full ink; `None` if nothing stands out from the background.
pub(super) fn ink(grey: &GrayImage) -> Option<GrayImage> {
    let (width, height) = grey.dimensions();
    let (background, sign) = background(grey);
    let min_contrast = background.min_contrast();
    let mut histogram = [0; 256];
    for (x, y, _) in grey.enumerate_pixels() {
        let difference = sign * background.residual(grey, x, y);
        if difference >= min_contrast {
            histogram[difference.min(255.0).round() as usize] += 1;
        }
    }
    // Full ink is the amount that a tenth of the stroke pixels reach.
    let strokes = Threshold::of(&histogram);
    let mut darker = 0;
    let full = (0..256).rev().find(|&value| {
        darker += histogram[value];
        darker > 0 && darker * 10 >= strokes.above
    })? as f64;
    let floor = (3.0 * background.noise).min(full / 3.0);
    Some(GrayImage::from_fn(width, height, |x, y| {
        let ink = (sign * background.residual(grey, x, y) - floor) / (full - floor);
        Luma([(255.0 * ink.clamp(0.0, 1.0)).round() as u8])
    }))
}

/// The background, and the sign of ink's difference from it: -1 for dark ink, 1 for light ink.
///
/// The background is first fitted to the border, then to the pixels that differ little from it. Ink is on the side with
/// the larger differences.
fn background(grey: &GrayImage) -> (Background, f64) {
    let (width, height) = grey.dimensions();
    let step = width.max(height).div_ceil(FIT_SIDE) as usize;
    let columns = |y| (0..width).step_by(step).map(move |x| (x, y));
    let sample: Vec<(u32, u32)> = (0..height).step_by(step).flat_map(columns).collect();
    let border = (width.min(height) / 20).max(1);
    let in_border = |&(x, y): &(u32, u32)| x.min(width - 1 - x) < border || y.min(height - 1 - y) < border;
    let mut background = Background::fit(grey, &sample.iter().copied().filter(in_border).collect::<Vec<_>>());
    let cube = |value: f64| value * value * value;
    let skewness: f64 = grey.enumerate_pixels().map(|(x, y, _)| cube(background.residual(grey, x, y))).sum();
    let sign = skewness.signum();
    for _ in 0..3 {
        let is_free =
            |&(x, y): &(u32, u32)| sign * background.residual(grey, x, y) < background.min_contrast();
        let free: Vec<_> = sample.iter().copied().filter(is_free).collect();
        background = Background::fit(grey, &free);
    }
    (background, sign)
}
