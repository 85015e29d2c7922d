//! Photographs of digits: how they are read, and errors for files without a digit.

use super::encoded;
use super::says::assert_says;
use ::image::{
    DynamicImage, EncodableLayout, GrayImage, ImageBuffer, ImageFormat, Luma, LumaA, Pixel,
    PixelWithColorType, Rgb, Rgba, RgbaImage, imageops,
};
use candle_textbook::data::image::{idx::read_dir, read_digit};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::tempdir;

/// The fraction of pixel (x, y) that is ink of a seven in the box of 100x140 pixels at (90, 30).
fn seven(x: u32, y: u32) -> f32 {
    let corners = [(98.0, 38.0), (182.0, 38.0), (130.0, 162.0)];
    let at = (x as f32 + 0.5, y as f32 + 0.5);
    let distance = corners.windows(2).map(|line| {
        let (from, to) = (line[0], line[1]);
        let along = (to.0 - from.0, to.1 - from.1);
        let part =
            ((at.0 - from.0) * along.0 + (at.1 - from.1) * along.1) / (along.0.powi(2) + along.1.powi(2));
        let part = part.clamp(0.0, 1.0);
        f32::hypot(at.0 - from.0 - part * along.0, at.1 - from.1 - part * along.1)
    });
    (8.5 - distance.fold(f32::INFINITY, f32::min)).clamp(0.0, 1.0)
}

fn blend(ground: f32, ink: f32, cover: f32) -> u8 {
    (ground + (ink - ground) * cover).round().clamp(0.0, 255.0) as u8
}

/// Draws an image of 300x200 pixels and reads it as a digit.
fn read_drawn<P>(name: &str, pixel: impl Fn(u32, u32) -> P) -> Vec<u8>
where
    P: Pixel<Subpixel = u8> + PixelWithColorType,
    [u8]: EncodableLayout,
{
    let dir = tempdir().unwrap();
    let path = dir.path().join(name);
    ImageBuffer::from_fn(300, 200, pixel).save(&path).unwrap();
    read_digit(&path).unwrap()
}

fn plain_seven() -> Vec<u8> {
    read_drawn("seven.png", |x, y| Luma([blend(255.0, 0.0, seven(x, y))]))
}

/// The mean absolute difference of two images, full ink being 1.
fn difference(one: &[u8], other: &[u8]) -> f64 {
    let sum: u64 = one.iter().zip(other).map(|(&a, &b)| u64::from(a.abs_diff(b))).sum();
    sum as f64 / 255.0 / one.len() as f64
}

fn error_of_image(name: &str, bytes: &[u8]) -> String {
    let dir = tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    let error = format!("{:#}", read_digit(&path).expect_err("a malformed file was read"));
    assert!(error.contains(name) && !error.contains('\n'), "{error}");
    error
}

#[test]
fn a_drawn_digit_fills_the_box_and_is_centred_by_mass() {
    let digit = plain_seven();
    let inked = |index: &usize| digit[*index] > 25;
    let rows: Vec<usize> = (0..784).filter(inked).map(|index| index / 28).collect();
    let columns: Vec<usize> = (0..784).filter(inked).map(|index| index % 28).collect();
    let extent = |places: &[usize]| places.iter().max().unwrap() - places.iter().min().unwrap() + 1;
    assert_eq!((extent(&rows), extent(&columns)), (20, 14));
    let mass: f64 = digit.iter().map(|&ink| f64::from(ink)).sum();
    let mean = |place: fn(usize) -> usize| {
        (0..784).map(|index| f64::from(digit[index]) * place(index) as f64).sum::<f64>() / mass
    };
    let (x, y) = (mean(|index| index % 28), mean(|index| index / 28));
    assert!((x - 14.0).abs() <= 0.5 && (y - 14.0).abs() <= 0.5, "({x}, {y})");
    assert_eq!((digit[0], digit.iter().max()), (0, Some(&255)));
}

#[test]
fn polarity_colour_transparency_and_format_do_not_matter() {
    let digit = plain_seven();
    let light_on_dark = read_drawn("light.png", |x, y| Luma([blend(0.0, 255.0, seven(x, y))]));
    let blue_on_cream = read_drawn("colour.png", |x, y| {
        Rgb([(250.0, 20.0), (245.0, 40.0), (220.0, 160.0)]
            .map(|(ground, ink)| blend(ground, ink, seven(x, y))))
    });
    let black_on_nothing = read_drawn("black.png", |x, y| Rgba([0, 0, 0, blend(0.0, 255.0, seven(x, y))]));
    let white_on_nothing = read_drawn("white.png", |x, y| LumaA([255, blend(0.0, 255.0, seven(x, y))]));
    let transparent_margin = read_drawn("margin.png", |x, y| {
        let alpha = if x < 20 || y < 15 { 0 } else { 255 };
        LumaA([blend(255.0, 0.0, seven(x, y)).min(alpha), alpha])
    });
    let jpeg = read_drawn("seven.jpg", |x, y| Rgb([blend(230.0, 30.0, seven(x, y)); 3]));
    for (other, name) in [
        (light_on_dark, "light on dark"),
        (blue_on_cream, "blue on cream"),
        (black_on_nothing, "black on nothing"),
        (white_on_nothing, "white on nothing"),
        (transparent_margin, "transparent margin"),
        (jpeg, "JPEG"),
    ] {
        assert!(difference(&digit, &other) < 0.005, "{name}: {}", difference(&digit, &other));
    }
}

#[test]
fn shadows_noise_and_specks_are_not_ink() {
    let random = |x: u32, y: u32| f32::from((x * 7919 + y * 104_729 + x * y * 31) as u8 % 41) - 20.0;
    let speck = |x: u32, y: u32| x.abs_diff(30) < 2 && y.abs_diff(170) < 2 || x.abs_diff(280) < 3 && y < 4;
    let shadowed = |x: u32, y: u32| {
        let shade = 70.0 * (x as f32 / 300.0).powi(2) + 40.0 * y as f32 / 200.0;
        let ink = if speck(x, y) { 1.0 } else { seven(x, y) };
        f32::from(blend(235.0 - shade, 70.0 - shade / 4.0, ink)) + random(x, y)
    };
    let photo = read_drawn("photo.png", |x, y| Luma([shadowed(x, y).clamp(0.0, 255.0) as u8]));
    let blackboard = read_drawn("board.jpg", |x, y| Luma([255 - shadowed(x, y).clamp(0.0, 255.0) as u8]));
    let digit = plain_seven();
    // The centre of mass lies between two pixels and may be rounded to either.
    let nearest = |other: &[u8]| f64::min(difference(&digit, other), difference(&digit[..783], &other[1..]));
    assert!(
        nearest(&photo) < 0.02 && nearest(&blackboard) < 0.02,
        "{} {}",
        nearest(&photo),
        nearest(&blackboard)
    );
}

#[test]
fn thin_strokes_of_a_large_image_stay_visible() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("thin.png");
    let line = |x: u32, y: u32| (300..1500).contains(&y) && (900..906).contains(&x);
    GrayImage::from_fn(1800, 2000, |x, y| Luma([if line(x, y) { 40 } else { 230 }])).save(&path).unwrap();
    let digit = read_digit(&path).unwrap();
    let row: u32 = digit[14 * 28..15 * 28].iter().map(|&ink| u32::from(ink)).sum();
    assert!((400..800).contains(&row), "{:?}", &digit[14 * 28..15 * 28]);
}

#[test]
fn an_image_in_the_format_of_mnist_is_nearly_unchanged() {
    let digit = plain_seven();
    let dir = tempdir().unwrap();
    let path = dir.path().join("mnist.png");
    GrayImage::from_raw(28, 28, digit.clone()).unwrap().save(&path).unwrap();
    let again = read_digit(&path).unwrap();
    assert!(difference(&digit, &again) < 0.005, "{}", difference(&digit, &again));
    assert!(digit.iter().zip(&again).all(|(&a, &b)| a.abs_diff(b) < 30));
}

#[test]
fn mnist_images_are_nearly_unchanged_even_when_enlarged_and_inverted() {
    let Some(data) = std::env::var_os("TEXTBOOK_DATA") else { return };
    let (_, test) = read_dir(&PathBuf::from(data).join("mnist")).unwrap();
    let dir = tempdir().unwrap();
    let path = dir.path().join("digit.png");
    let (mut same, mut enlarged) = (0.0, 0.0);
    for index in 0..100 {
        let digit = GrayImage::from_raw(28, 28, test.image(index).unwrap().into_owned()).unwrap();
        digit.save(&path).unwrap();
        same += difference(&digit, &read_digit(&path).unwrap()) / 100.0;
        let mut large = imageops::resize(&digit, 280, 280, imageops::Triangle);
        imageops::invert(&mut large);
        large.save(&path).unwrap();
        enlarged += difference(&digit, &read_digit(&path).unwrap()) / 100.0;
    }
    assert!(same < 0.005 && enlarged < 0.04, "{same} {enlarged}");
}

#[test]
fn files_that_are_not_images_are_refused() {
    assert_says(
        &format!("{:#}", read_digit(Path::new("no/seven.png")).unwrap_err()),
        &["no/seven.png: can't be opened"],
    );
    assert_says(&error_of_image("empty.png", &[]), &["is empty", "expected a PNG or JPEG"]);
    assert_says(&error_of_image("text.png", b"%PDF-1.7"), &["a PDF document", "expected a PNG or JPEG"]);
    assert_says(&error_of_image("short.png", b"\x89"), &["expected a PNG or JPEG"]);

    let image =
        DynamicImage::from(GrayImage::from_fn(300, 200, |x, y| Luma([blend(255.0, 0.0, seven(x, y))])));
    let png = encoded(image.clone(), ImageFormat::Png);
    let jpeg = encoded(image, ImageFormat::Jpeg);
    for part in [4, 8] {
        error_of_image("cut.png", &png[..png.len() * part / 9]);
        error_of_image("cut.jpg", &jpeg[..jpeg.len() * part / 9]);
    }
    assert_says(&error_of_image("cut.jpg", &jpeg[..jpeg.len() - 2]), &["expected a whole JPEG"]);
    let mut flipped = png.clone();
    flipped[png.len() / 2] ^= 0x10;
    error_of_image("flipped.png", &flipped);
}

#[test]
fn blank_and_giant_images_are_refused() {
    let blank = [
        DynamicImage::from(GrayImage::from_pixel(300, 200, Luma([200]))),
        DynamicImage::from(RgbaImage::new(300, 200)),
        DynamicImage::from(GrayImage::from_pixel(1, 1, Luma([200]))),
        DynamicImage::from(GrayImage::from_fn(300, 200, |x, y| {
            Luma([190 + ((x * 31 + y * 17 + x * y) % 40) as u8])
        })),
        DynamicImage::from(GrayImage::from_fn(300, 200, |x, y| Luma([(x / 3 + y / 4) as u8]))),
    ];
    for image in blank {
        assert_says(&error_of_image("blank.png", &encoded(image, ImageFormat::Png)), &["no digit"]);
    }
    // A PNG file has its width in bytes 16 to 19 and the checksum of bytes 12 to 28 in bytes 29 to 32.
    let mut giant = encoded(DynamicImage::from(GrayImage::new(1, 60_000)), ImageFormat::Png);
    giant[16..20].copy_from_slice(&60_000_u32.to_be_bytes());
    let mut checksum = flate2::Crc::new();
    checksum.update(&giant[12..29]);
    giant[29..33].copy_from_slice(&checksum.sum().to_be_bytes());
    assert_says(&error_of_image("giant.png", &giant), &["60000x60000 pixels", "expected at most 512"]);
}
