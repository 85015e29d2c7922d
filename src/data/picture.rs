//! Pictures of handwritten digits as people have them, made into what MNIST's are.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use image::{
    DynamicImage, GrayImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, Luma, imageops,
};

/// The side of MNIST's pictures, and of the square inside them that the digit's box fits.
const SIDE: u32 = 28;
const BOX: u32 = 20;

const MOST_BYTES: u64 = 256 << 20;
const MOST_DECODED_BYTES: u64 = 512 << 20;

/// Larger pictures are shrunk to this longest side first: a digit is told from 20x20 pixels in the end.
const WORKING_SIDE: u32 = 1024;

/// Of so many pixels a side, evenly spread, the ground is fitted.
const FIT_SIDE: u32 = 64;

/// Ink differs from the ground by at least this much of 255, and by so many times the ground's own noise.
const LEAST_CONTRAST: f64 = 24.0;
const LEAST_CONTRAST_TO_NOISE: f64 = 4.0;

/// Pixels of more than this belong to a stroke; the middle of some is darker than half.
const FAINT: u8 = 25;
const HALF: u8 = 127;

/// What holds less ink than this part of the largest piece is dirt.
const DIRT: f64 = 0.03;

/// Strokes thinner than this, in pixels of the result, are thickened: MNIST's are 2.0 to 5.6 wide (1st and 99th percentile).
const THINNEST_STROKE: f64 = 2.2;

/// Reads the PNG or JPEG file `path`, of any size, in colour or grey, ink dark on light or light on dark or on
/// nothing, as a picture of MNIST's kind: 28x28 bytes, 0 the ground and 255 full ink, the digit's box fitted into 20x20
/// with its proportions kept and its centre of mass in pixel (14, 14).
///
/// The ground is a quadratic surface fitted to the pixels without ink, so soft shadows and paper noise fall away. A
/// picture that MNIST could hold comes out nearly unchanged. How MNIST's were made: LeCun et al. 1998, section III.A.
///
/// # Errors
/// When the file is missing, truncated, neither PNG nor JPEG, or too large to decode; when there is no ink in it.
pub fn read_digit(path: &Path) -> Result<Vec<u8>> {
    let name = path.display();
    let bytes = read(path)?;
    let picture = open(&bytes).and_then(decode).map_err(|error| anyhow!("{name}: {error}"))?;
    let ink = ink(&shrink(flatten(picture))).and_then(|ink| crop(&ink)).with_context(|| {
        format!("{name}: no digit in the picture, expected one in dark ink on light ground or light on dark")
    })?;
    Ok(centre(&fit_box(ink)))
}

/// The bytes of the file `path`; of one that is too large, enough to tell.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("{name}: can't be opened"))?;
    let mut bytes = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes).with_context(|| format!("{name}: can't be read"))?;
    Ok(bytes)
}

/// A decoder of the PNG or JPEG file `bytes`, its header read: the picture is there in whole and not too large.
pub(super) fn open(bytes: &[u8]) -> Result<impl ImageDecoder> {
    let expected = "expected a PNG or JPEG picture";
    ensure!(!bytes.is_empty(), "is empty, {expected}");
    ensure!(bytes.len() as u64 <= MOST_BYTES, "is larger than {} MB, {expected}", MOST_BYTES >> 20);
    let format = match image::guess_format(bytes) {
        Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg)) => format,
        _ => bail!("starts with {:02x?}, {expected}", &bytes[..bytes.len().min(4)]),
    };
    ensure!(format == ImageFormat::Png || jpeg_ends(bytes), "ends too early, expected a whole JPEG picture");
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(MOST_DECODED_BYTES);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    ensure!(width > 0 && height > 0, "is {width}x{height} pixels, expected at least one");
    ensure!(
        decoder.total_bytes() <= MOST_DECODED_BYTES,
        "is {width}x{height} pixels, which take {} MB, expected {} at most",
        decoder.total_bytes() >> 20,
        MOST_DECODED_BYTES >> 20
    );
    Ok(decoder)
}

/// The picture, upright.
pub(super) fn decode(mut decoder: impl ImageDecoder) -> Result<DynamicImage> {
    let orientation = decoder.orientation().map_err(damaged)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    picture.apply_orientation(orientation);
    Ok(picture)
}

fn damaged(error: ImageError) -> anyhow::Error {
    anyhow!("damaged or truncated, expected a whole picture: {error}")
}

/// Whether the end marker follows the last scan: the decoder itself fills up what is missing with grey.
fn jpeg_ends(bytes: &[u8]) -> bool {
    const START: u8 = 0xd8;
    const END: u8 = 0xd9;
    const SCAN: u8 = 0xda;
    let mut at = 0;
    let mut in_scan = false;
    while let Some(&[mark, kind]) = bytes.get(at..at + 2).and_then(|pair| pair.first_chunk()) {
        match kind {
            _ if mark != 0xff && in_scan => at += 1,
            _ if mark != 0xff => return false,
            0xff => at += 1,
            0x00 | 0x01 | 0xd0..=0xd7 | START => at += 2,
            END => return true,
            _ => {
                let Some(&[high, low]) = bytes.get(at + 2..at + 4).and_then(|pair| pair.first_chunk()) else {
                    return false;
                };
                at += 2 + usize::from(u16::from_be_bytes([high, low]));
                in_scan = kind == SCAN;
            }
        }
    }
    false
}

/// Grey without transparency. What shows through is the ground: of the tone that most of the picture has, or, where
/// all that can be seen is of one tone and only transparency draws the digit, of the opposite one.
fn flatten(picture: DynamicImage) -> GrayImage {
    if !picture.color().has_alpha() {
        return picture.into_luma8();
    }
    let picture = picture.into_luma_alpha8();
    let mut seen = [0; 256];
    for pixel in picture.pixels() {
        seen[usize::from(pixel[0])] += u64::from(pixel[1]);
    }
    let tones = Split::of(&seen);
    let ground = if tones.contrast() >= LEAST_CONTRAST {
        if tones.above > tones.below { tones.above_mean } else { tones.below_mean }
    } else if tones.below_mean < 127.5 {
        255.0
    } else {
        0.0
    };
    GrayImage::from_fn(picture.width(), picture.height(), |x, y| {
        let [grey, alpha] = picture.get_pixel(x, y).0.map(f64::from);
        Luma([((grey * alpha + ground * (255.0 - alpha)) / 255.0).round() as u8])
    })
}

fn shrink(grey: GrayImage) -> GrayImage {
    let (width, height) = grey.dimensions();
    let longest = width.max(height);
    if longest <= WORKING_SIDE {
        return grey;
    }
    let part = f64::from(WORKING_SIDE) / f64::from(longest);
    let shrunk = |side: u32| (f64::from(side) * part).ceil() as u32;
    imageops::thumbnail(&grey, shrunk(width), shrunk(height))
}

/// Two classes of tones, as far apart as they can be (Otsu 1979).
struct Split {
    below: u64,
    above: u64,
    below_mean: f64,
    above_mean: f64,
}

impl Split {
    fn of(histogram: &[u64; 256]) -> Self {
        let total: u64 = histogram.iter().sum();
        let sum: u64 = histogram.iter().zip(0..).map(|(&count, tone)| count * tone).sum();
        let mean = |sum: u64, count: u64| sum as f64 / count.max(1) as f64;
        let whole = mean(sum, total);
        let mut best = Self { below: total, above: 0, below_mean: whole, above_mean: whole };
        let mut best_spread = 0.0;
        let (mut below, mut sum_below) = (0, 0);
        for threshold in 1..256 {
            below += histogram[threshold - 1];
            sum_below += histogram[threshold - 1] * (threshold as u64 - 1);
            let above = total - below;
            let (below_mean, above_mean) = (mean(sum_below, below), mean(sum - sum_below, above));
            let spread = below as f64 * above as f64 * (above_mean - below_mean).powi(2);
            if spread > best_spread {
                best_spread = spread;
                best = Self { below, above, below_mean, above_mean };
            }
        }
        best
    }

    fn contrast(&self) -> f64 {
        self.above_mean - self.below_mean
    }
}

/// How a tone varies smoothly over a picture: a quadratic in x and y, each from -1 to 1.
struct Surface {
    coefficients: [f64; 6],
    /// The standard deviation around it, from the median one.
    noise: f64,
}

impl Surface {
    fn terms(grey: &GrayImage, x: u32, y: u32) -> [f64; 6] {
        let x = f64::from(2 * x + 1) / f64::from(grey.width()) - 1.0;
        let y = f64::from(2 * y + 1) / f64::from(grey.height()) - 1.0;
        [1.0, x, y, x * x, x * y, y * y]
    }

    /// How much lighter a pixel is than the surface.
    fn off(&self, grey: &GrayImage, x: u32, y: u32) -> f64 {
        let terms = Self::terms(grey, x, y);
        let surface: f64 = terms.iter().zip(&self.coefficients).map(|(term, factor)| term * factor).sum();
        f64::from(grey.get_pixel(x, y)[0]) - surface
    }

    /// Least squares over `pixels`, again and again without those that lie more than twice the median off.
    fn fit(grey: &GrayImage, pixels: &[(u32, u32)]) -> Self {
        let mut surface = Self { coefficients: [0.0; 6], noise: 0.0 };
        let mut most_off = f64::INFINITY;
        for _ in 0..6 {
            let mut system = [[0.0; 7]; 6];
            for &(x, y) in pixels.iter().filter(|&&(x, y)| surface.off(grey, x, y).abs() <= most_off) {
                let terms = Self::terms(grey, x, y);
                for (row, term) in system.iter_mut().zip(terms) {
                    for (sum, other) in row.iter_mut().zip(terms) {
                        *sum += term * other;
                    }
                    row[6] += term * f64::from(grey.get_pixel(x, y)[0]);
                }
            }
            surface.coefficients = solve(system);
            let mut off: Vec<f64> = pixels.iter().map(|&(x, y)| surface.off(grey, x, y).abs()).collect();
            let median = median(&mut off);
            most_off = 2.0 * median + 1.0;
            surface.noise = 1.48 * median;
        }
        surface
    }
}

/// Gauss's elimination of a symmetric system with its right-hand side in the last column. What the pixels leave open,
/// in pictures a pixel or two wide, is held at 0 by a little weight on the diagonal.
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

/// How much ink there is in each pixel, 255 where it is full. None where nothing stands out from the ground.
fn ink(grey: &GrayImage) -> Option<GrayImage> {
    let (width, height) = grey.dimensions();
    let step = width.max(height).div_ceil(FIT_SIDE) as usize;
    let columns = |y| (0..width).step_by(step).map(move |x| (x, y));
    let sample: Vec<(u32, u32)> = (0..height).step_by(step).flat_map(columns).collect();

    // The ground is what lies at the rim; what is farthest off it, darker or lighter, is ink.
    let rim = (width.min(height) / 20).max(1);
    let at_rim = |&(x, y): &(u32, u32)| x.min(width - 1 - x) < rim || y.min(height - 1 - y) < rim;
    let mut ground = Surface::fit(grey, &sample.iter().copied().filter(at_rim).collect::<Vec<_>>());
    let skewness: f64 = grey.enumerate_pixels().map(|(x, y, _)| ground.off(grey, x, y).powi(3)).sum();
    let sign = skewness.signum();
    let least = |ground: &Surface| LEAST_CONTRAST.max(LEAST_CONTRAST_TO_NOISE * ground.noise);
    for _ in 0..3 {
        let free = |&(x, y): &(u32, u32)| sign * ground.off(grey, x, y) < least(&ground);
        ground = Surface::fit(grey, &sample.iter().copied().filter(free).collect::<Vec<_>>());
    }

    let mut histogram = [0; 256];
    for (x, y, _) in grey.enumerate_pixels() {
        let off = sign * ground.off(grey, x, y);
        if off >= least(&ground) {
            histogram[off.min(255.0).round() as usize] += 1;
        }
    }
    let strokes = Split::of(&histogram);
    let mut darker = 0;
    let full = (0..256).rev().find(|&tone| {
        darker += histogram[tone];
        darker > 0 && darker * 10 >= strokes.above
    })? as f64;
    let floor = (3.0 * ground.noise).min(full / 3.0);
    Some(GrayImage::from_fn(width, height, |x, y| {
        let ink = (sign * ground.off(grey, x, y) - floor) / (full - floor);
        Luma([(255.0 * ink.clamp(0.0, 1.0)).round() as u8])
    }))
}

/// The smallest box around the strokes, without dirt. None where all is dirt.
fn crop(ink: &GrayImage) -> Option<GrayImage> {
    let (width, height) = ink.dimensions();
    let mut piece_of = vec![0; (width * height) as usize];
    let mut pieces = vec![Piece::default()];
    let mut open = Vec::new();
    for (x, y) in (0..height).flat_map(|y| (0..width).map(move |x| (x, y))) {
        let unseen = |piece_of: &[usize], x, y| {
            piece_of[(y * width + x) as usize] == 0 && ink.get_pixel(x, y)[0] > FAINT
        };
        if !unseen(&piece_of, x, y) {
            continue;
        }
        let mut piece = Piece { left: x, top: y, ..Piece::default() };
        piece_of[(y * width + x) as usize] = pieces.len();
        open.push((x, y));
        while let Some((x, y)) = open.pop() {
            piece.add(x, y, ink.get_pixel(x, y)[0]);
            for y in y.saturating_sub(1)..=(y + 1).min(height - 1) {
                for x in x.saturating_sub(1)..=(x + 1).min(width - 1) {
                    if unseen(&piece_of, x, y) {
                        piece_of[(y * width + x) as usize] = pieces.len();
                        open.push((x, y));
                    }
                }
            }
        }
        pieces.push(piece);
    }
    let most = pieces.iter().filter(|piece| piece.darkest > HALF).map(|piece| piece.mass).max()?;
    let is_stroke = |piece: &Piece| piece.darkest > HALF && piece.mass as f64 >= DIRT * most as f64;
    let whole = pieces.iter().filter(|piece| is_stroke(piece)).copied().reduce(Piece::with)?;
    let (box_width, box_height) = (whole.right + 1 - whole.left, whole.bottom + 1 - whole.top);
    let longest = box_width.max(box_height);
    if longest < 5 || longest < width.max(height) / 64 {
        return None;
    }
    Some(GrayImage::from_fn(box_width, box_height, |x, y| {
        let (x, y) = (x + whole.left, y + whole.top);
        let piece = piece_of[(y * width + x) as usize];
        if piece == 0 || is_stroke(&pieces[piece]) { *ink.get_pixel(x, y) } else { Luma([0]) }
    }))
}

/// Pixels that touch one another, and the box around them.
#[derive(Clone, Copy, Default)]
struct Piece {
    left: u32,
    top: u32,
    right: u32,
    bottom: u32,
    mass: u64,
    darkest: u8,
}

impl Piece {
    fn add(&mut self, x: u32, y: u32, ink: u8) {
        *self = self.with(Self { left: x, top: y, right: x, bottom: y, mass: u64::from(ink), darkest: ink });
    }

    fn with(self, other: Self) -> Self {
        Self {
            left: self.left.min(other.left),
            top: self.top.min(other.top),
            right: self.right.max(other.right),
            bottom: self.bottom.max(other.bottom),
            mass: self.mass + other.mass,
            darkest: self.darkest.max(other.darkest),
        }
    }
}

/// Scales the box into 20x20, thin strokes thickened first. A box that already is of that size keeps its pixels.
fn fit_box(mut ink: GrayImage) -> GrayImage {
    let longest = |ink: &GrayImage| ink.width().max(ink.height());
    if (BOX - 1..=BOX).contains(&longest(&ink)) {
        return ink;
    }
    let thinnest = THINNEST_STROKE * f64::from(longest(&ink)) / f64::from(BOX);
    let lacking = ((thinnest - stroke_width(&ink)) / 2.0).round();
    if lacking >= 1.0 && longest(&ink) > BOX {
        ink = thicken(&ink, lacking as u32);
    }
    let scaled =
        |side: u32| ((f64::from(side * BOX) / f64::from(longest(&ink))).round() as u32).clamp(1, BOX);
    let mut scaled = imageops::resize(&ink, scaled(ink.width()), scaled(ink.height()), imageops::Triangle);
    let darkest = scaled.pixels().map(|pixel| pixel[0]).max().unwrap_or(0).max(1);
    for pixel in scaled.pixels_mut() {
        pixel[0] = (u32::from(pixel[0]) * 255 / u32::from(darkest)) as u8;
    }
    scaled
}

/// Twice the area over the length of the edge, in pixels.
fn stroke_width(ink: &GrayImage) -> f64 {
    let is_ink = |x: u32, y: u32| ink.get_pixel_checked(x, y).is_some_and(|pixel| pixel[0] > HALF);
    let (mut area, mut edge) = (0, 0);
    for (x, y, _) in ink.enumerate_pixels().filter(|&(x, y, _)| is_ink(x, y)) {
        area += 1;
        let inside = is_ink(x.wrapping_sub(1), y)
            && is_ink(x + 1, y)
            && is_ink(x, y.wrapping_sub(1))
            && is_ink(x, y + 1);
        edge += u32::from(!inside);
    }
    2.0 * f64::from(area) / f64::from(edge.max(1))
}

/// The picture, `by` pixels larger on each side, each pixel the darkest within `by` pixels of it.
fn thicken(ink: &GrayImage, by: u32) -> GrayImage {
    let (width, height) = ink.dimensions();
    let around = |at: u32, side: u32| at.saturating_sub(2 * by)..(at + 1).min(side);
    let wide = GrayImage::from_fn(width + 2 * by, height, |x, y| {
        Luma([around(x, width).map(|x| ink.get_pixel(x, y)[0]).max().unwrap_or(0)])
    });
    GrayImage::from_fn(width + 2 * by, height + 2 * by, |x, y| {
        Luma([around(y, height).map(|y| wide.get_pixel(x, y)[0]).max().unwrap_or(0)])
    })
}

/// Lays the box into the 28x28 picture, its centre of mass in the pixel (14, 14) as near as the box allows.
fn centre(ink: &GrayImage) -> Vec<u8> {
    let (mut mass, mut moment_x, mut moment_y) = (0.0, 0.0, 0.0);
    for (x, y, pixel) in ink.enumerate_pixels() {
        let ink = f64::from(pixel[0]);
        mass += ink;
        moment_x += ink * f64::from(x);
        moment_y += ink * f64::from(y);
    }
    let start = |moment: f64, side: u32| {
        (f64::from(SIDE / 2) - moment / mass).round().clamp(0.0, f64::from(SIDE - side)) as i64
    };
    let mut picture = GrayImage::new(SIDE, SIDE);
    imageops::replace(&mut picture, ink, start(moment_x, ink.width()), start(moment_y, ink.height()));
    picture.into_raw()
}
