//! Pictures in files become squares of one size.

use super::says::assert_says;
use super::{encoded, plain};
use ::image::{DynamicImage, GrayImage, ImageFormat, Luma, Rgb, RgbImage, Rgba, RgbaImage};
use candle_textbook::data::image::read_square;
use candle_textbook::data::{Preparation, shapes};
use std::fs;
use tempfile::tempdir;

#[test]
fn exported_images_are_prepared_as_the_data_set_has_them() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("image.png");
    let colour = shapes(0, 3, 1).unwrap().1;
    for index in 0..3 {
        let planes = colour.image(index).unwrap();
        let pixel =
            |x: u32, y: u32| [0, 1, 2].map(|plane| planes[(plane * 32 + y as usize) * 32 + x as usize]);
        RgbImage::from_fn(32, 32, |x, y| Rgb(pixel(x, y))).save(&path).unwrap();
        assert_eq!(Preparation::Square.read(&path, (3, 32, 32)).unwrap().0, planes.as_ref());
    }
    let grey: Vec<u8> = (0..28 * 28).map(|at| (at * 37 % 256) as u8).collect();
    GrayImage::from_raw(28, 28, grey.clone()).unwrap().save(&path).unwrap();
    assert_eq!(Preparation::Square.read(&path, (1, 28, 28)).unwrap().0, grey);
    let error = Preparation::Square.read(&path, (1, 28, 20)).unwrap_err();
    assert_says(&error, &["28x20 pixels with 1 channel"]);
}

/// A PNG file with a further chunk after its header.
fn with_chunk(image: DynamicImage, kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    const HEADER: usize = 33;
    let mut file = encoded(image, ImageFormat::Png);
    let checked = [kind, data].concat();
    let mut checksum = flate2::Crc::new();
    checksum.update(&checked);
    let chunk = [&(data.len() as u32).to_be_bytes()[..], &checked, &checksum.sum().to_be_bytes()].concat();
    file.splice(HEADER..HEADER, chunk);
    file
}

#[test]
fn damage_to_orientation_or_transparency_is_refused() {
    // TIFF with one entry: orientation 3, upside down.
    let upside_down = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x03\0\0\0\0\0\0\0";
    let half = RgbImage::from_fn(8, 8, |_, y| Rgb(if y < 4 { [0; 3] } else { [100; 3] }));
    let dir = tempdir().unwrap();
    let path = dir.path().join("image.png");
    for (kind, data, first) in [(b"eXIf", &upside_down[..], 100), (b"tRNS", &[0; 6][..], 255)] {
        let whole = with_chunk(half.clone().into(), kind, data);
        fs::write(&path, &whole).unwrap();
        assert_eq!(read_square(&path, 8).unwrap()[0], first);
        for at in 33..33 + 12 + data.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&path, &damaged).unwrap();
            assert_says(&read_square(&path, 8).unwrap_err(), &["image.png: ", "PNG"]);
        }
    }
}

/// Writes `image` to a file, reads it as 8x8, and returns the pixel in row 2, column 5.
fn read_back(image: DynamicImage, format: ImageFormat) -> [u8; 3] {
    let dir = tempdir().unwrap();
    let path = dir.path().join("image");
    fs::write(&path, encoded(image, format)).unwrap();
    let pixels = read_square(&path, 8).unwrap();
    [0, 64, 128].map(|plane| pixels[plane + 2 * 8 + 5])
}

#[test]
fn images_of_every_kind_become_8_bit_colour() {
    let (png, jpeg) = (ImageFormat::Png, ImageFormat::Jpeg);
    let colour = plain(8, 8, [250, 128, 3]);
    assert_eq!(read_back(colour.clone(), png), [250, 128, 3]);
    assert_eq!(read_back(colour.to_rgb16().into(), png), [250, 128, 3]);
    assert_eq!(read_back(colour.to_luma8().into(), png), [colour.to_luma8().as_raw()[0]; 3]);
    assert_eq!(read_back(colour.to_luma16().into(), png), [colour.to_luma8().as_raw()[0]; 3]);
    assert_eq!(read_back(plain(8, 8, [77; 3]).to_luma8().into(), jpeg), [77; 3]);
    let glass = |alpha: u8| DynamicImage::from(RgbaImage::from_pixel(8, 8, Rgba([250, 100, 0, alpha])));
    assert_eq!(read_back(glass(255), png), [250, 100, 0]);
    assert_eq!(read_back(glass(0), png), [255; 3]);
    assert_eq!(read_back(glass(51), png), [254, 224, 204]);
}

#[test]
fn the_central_square_is_scaled() {
    // A wide ramp along x. The middle third is averaged.
    let wide = RgbImage::from_fn(96, 32, |x, _| Rgb([2 * x as u8, 0, 0]));
    let [red, ..] = read_back(wide.into(), ImageFormat::Png);
    assert!(red.abs_diff(2 * (32 + 22)) <= 2, "{red}");
    let tiny = RgbImage::from_fn(4, 6, |x, y| Rgb([60 * x as u8, 40 * y as u8, 0]));
    let [red, green, _] = read_back(tiny.into(), ImageFormat::Png);
    assert!(red.abs_diff(135) <= 2 && green.abs_diff(70) <= 2, "{red}, {green}");
}

#[test]
fn an_image_of_40_megapixels_is_read() {
    let large =
        GrayImage::from_fn(8000, 5000, |x, _| Luma([if (1500..6500).contains(&x) { 60 } else { 255 }]));
    assert_eq!(read_back(large.into(), ImageFormat::Png), [60; 3]);
}
