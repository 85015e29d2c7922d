//! Photographs of handwritten digits, converted to the format of MNIST.

use super::decode;
use super::ink::{MIN_CONTRAST, Threshold, ink};
use anyhow::{Context, Result};
use image::{DynamicImage, GrayImage, Luma, imageops};
use std::path::Path;

/// The side of MNIST's images, and of the square inside them that the digit's bounding box fits.
const SIDE: u32 = 28;
const BOX: u32 = 20;

/// Larger photographs are first reduced to this longer side; the digit ends up with 20x20 pixels.
const WORKING_SIDE: u32 = 1024;

/// A stroke consists of pixels above `FAINT`, some of them above `HALF`.
const FAINT: u8 = 25;
const HALF: u8 = 127;

/// Connected components with less than this fraction of the largest component's ink count as dirt.
const DIRT: f64 = 0.03;

/// Strokes thinner than this, in pixels of the result, are thickened.
///
/// MNIST's strokes are 2.0 to 5.6 wide (1st and 99th percentile).
const MIN_STROKE_WIDTH: f64 = 2.2;

/// Reads a photograph of a digit, PNG or JPEG, as 28x28 bytes in the format of MNIST.
///
/// 0 is paper, 255 is full ink.
///
/// The ink may be dark on light, light on dark, coloured, or opaque on transparent. The digit's bounding box is scaled
/// into 20x20 pixels, its centre of mass placed in pixel (14, 14), as for MNIST (LeCun et al. 1998, section III.A). An
/// MNIST image comes out nearly unchanged. The paper is modelled by a quadratic polynomial, which removes soft shadows.
///
/// # Errors
/// Fails if the file is missing, truncated, neither PNG nor JPEG, or too large to decode; if it shows no ink.
pub fn read_digit(path: &Path) -> Result<Vec<u8>> {
    digit(decode::whole(&decode::read(path)?, path)?, path)
}

/// The digit in `photo`, the image in the file `path`.
pub(super) fn digit(photo: DynamicImage, path: &Path) -> Result<Vec<u8>> {
    let ink = ink(&shrink(flatten(photo))).and_then(|ink| crop(&ink)).with_context(|| {
        let name = path.display();
        format!("{name}: no digit in the image, expected dark ink on a light background or light on dark")
    })?;
    Ok(centre(&fit_box(ink)))
}

/// Converts to grey without transparency.
///
/// Transparent parts become background. The background has the brightness of most of the image. If all visible pixels
/// have the same brightness, and only transparency draws the digit, it has the opposite brightness.
fn flatten(image: DynamicImage) -> GrayImage {
    if !image.color().has_alpha() {
        return image.into_luma8();
    }
    let image = image.into_luma_alpha8();
    let mut histogram = [0; 256];
    for pixel in image.pixels() {
        histogram[usize::from(pixel[0])] += u64::from(pixel[1]);
    }
    let values = Threshold::of(&histogram);
    let background = if values.contrast() >= MIN_CONTRAST {
        if values.above > values.below { values.above_mean } else { values.below_mean }
    } else if values.below_mean < 127.5 {
        255.0
    } else {
        0.0
    };
    GrayImage::from_fn(image.width(), image.height(), |x, y| {
        let [grey, alpha] = image.get_pixel(x, y).0.map(f64::from);
        Luma([((grey * alpha + background * (255.0 - alpha)) / 255.0).round() as u8])
    })
}

fn shrink(grey: GrayImage) -> GrayImage {
    let (width, height) = grey.dimensions();
    let longest = width.max(height);
    if longest <= WORKING_SIDE {
        return grey;
    }
    let scale = f64::from(WORKING_SIDE) / f64::from(longest);
    let shrunk = |side: u32| (f64::from(side) * scale).ceil() as u32;
    imageops::thumbnail(&grey, shrunk(width), shrunk(height))
}

/// Crops to the bounding box of the strokes and removes dirt; `None` if there is only dirt.
fn crop(ink: &GrayImage) -> Option<GrayImage> {
    let (width, height) = ink.dimensions();
    // The component of each pixel; 0 for none.
    let mut component_of = vec![0; (width * height) as usize];
    let mut components = vec![Component::default()];
    for start in (0..height).flat_map(|y| (0..width).map(move |x| (x, y))) {
        if let Some(component) = fill(ink, start, components.len(), &mut component_of) {
            components.push(component);
        }
    }
    let masses =
        components.iter().filter(|component| component.darkest > HALF).map(|component| component.mass);
    let largest = masses.max()?;
    let is_stroke =
        |component: &Component| component.darkest > HALF && component.mass as f64 >= DIRT * largest as f64;
    let strokes =
        components.iter().filter(|component| is_stroke(component)).copied().reduce(Component::with)?;
    let (box_width, box_height) = (strokes.right + 1 - strokes.left, strokes.bottom + 1 - strokes.top);
    let longest = box_width.max(box_height);
    if longest < 5 || longest < width.max(height) / 64 {
        return None;
    }
    Some(GrayImage::from_fn(box_width, box_height, |x, y| {
        let (x, y) = (x + strokes.left, y + strokes.top);
        let component = component_of[(y * width + x) as usize];
        if component == 0 || is_stroke(&components[component]) { *ink.get_pixel(x, y) } else { Luma([0]) }
    }))
}

/// Numbers the pixels that are connected with `start`.
///
/// Returns `None` if `start` has no ink or already has a number.
fn fill(ink: &GrayImage, start: (u32, u32), number: usize, component_of: &mut [usize]) -> Option<Component> {
    let (width, height) = ink.dimensions();
    let mut component = Component { left: start.0, top: start.1, ..Component::default() };
    let mut open = Vec::new();
    let mut visit = |x, y, open: &mut Vec<_>| {
        let component = &mut component_of[(y * width + x) as usize];
        if *component == 0 && ink.get_pixel(x, y)[0] > FAINT {
            *component = number;
            open.push((x, y));
        }
    };
    visit(start.0, start.1, &mut open);
    open.last()?;
    while let Some((x, y)) = open.pop() {
        component.add(x, y, ink.get_pixel(x, y)[0]);
        for y in y.saturating_sub(1)..=(y + 1).min(height - 1) {
            for x in x.saturating_sub(1)..=(x + 1).min(width - 1) {
                visit(x, y, &mut open);
            }
        }
    }
    Some(component)
}

/// A connected component of pixels, with its bounding box.
#[derive(Clone, Copy, Default)]
struct Component {
    left: u32,
    top: u32,
    right: u32,
    bottom: u32,
    mass: u64,
    darkest: u8,
}

impl Component {
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

/// Scales the box into 20x20 pixels, after thickening thin strokes. A box of that size keeps its pixels.
fn fit_box(mut ink: GrayImage) -> GrayImage {
    let longest = |ink: &GrayImage| ink.width().max(ink.height());
    if (BOX - 1..=BOX).contains(&longest(&ink)) {
        return ink;
    }
    let min_width = MIN_STROKE_WIDTH * f64::from(longest(&ink)) / f64::from(BOX);
    let missing = ((min_width - stroke_width(&ink)) / 2.0).round();
    if missing >= 1.0 && longest(&ink) > BOX {
        ink = thicken(&ink, missing as u32);
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

/// Mean width of the strokes in pixels: twice the area over the length of the outline.
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

/// Dilates by `by` pixels: each pixel becomes the darkest within that distance. The image grows on each side.
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

/// Places the box in a 28x28 image, its centre of mass as near to pixel (14, 14) as the box allows.
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
    let mut image = GrayImage::new(SIDE, SIDE);
    imageops::replace(&mut image, ink, start(moment_x, ink.width()), start(moment_y, ink.height()));
    image.into_raw()
}
