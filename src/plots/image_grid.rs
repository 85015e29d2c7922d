//! Grids of small images with captions.

use super::svg::{RED, Svg, Text, include, text_width, tint};
use anyhow::{Context, Result, ensure};
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};

const BLUE: [u8; 3] = [33, 102, 172];
/// Colour of values that are NaN.
const ORANGE: [u8; 3] = [230, 159, 0];
/// Font size of captions.
const CAPTION: f64 = 12.0;

/// An image with a caption, to be placed in an [`image_grid`].
pub struct Tile {
    rgb: Vec<u8>,
    width: usize,
    height: usize,
    caption: String,
}

impl Tile {
    /// Creates a tile from the pixels of an image, row-major, of `shape` `(channels, height, width)`.
    ///
    /// The image is grey (1 channel) or RGB (3 channels). The caption may have several lines.
    ///
    /// # Errors
    /// Fails if `pixels` does not have that shape, or `shape` has another number of channels.
    pub fn image(pixels: &[u8], shape: (usize, usize, usize), caption: &str) -> Result<Self> {
        let (channels, height, width) = shape;
        ensure!(
            channels == 1 || channels == 3,
            "image {caption:?}: found {channels} channels, expected 1 or 3"
        );
        check_size(pixels.len(), shape, caption)?;
        let area = width * height;
        let rgb = (0..area).flat_map(|at| [0, 1, 2].map(|c| pixels[at + area * (c % channels)])).collect();
        Ok(Self { rgb, width, height, caption: caption.to_owned() })
    }

    /// Creates a tile from `height * width` values in grey: the minimum is black, the maximum white.
    ///
    /// NaN is drawn in orange.
    ///
    /// # Errors
    /// Fails if the number of values is not `height * width`.
    pub fn grey(values: &[f32], height: usize, width: usize, caption: &str) -> Result<Self> {
        let finite = values.iter().copied().filter(|value| value.is_finite());
        let (low, high) = finite.fold(None, include).unwrap_or((0.0, 0.0));
        let range = if high > low { f64::from(high) - f64::from(low) } else { 1.0 };
        Self::from_values(values, (height, width), caption, |value| {
            [(255.0 * ((value - f64::from(low)) / range).clamp(0.0, 1.0)).round() as u8; 3]
        })
    }

    /// Creates a tile from `height * width` signed values: 0 is white, positive is red, negative blue.
    ///
    /// The largest absolute value gets the full colour. NaN is drawn in orange.
    ///
    /// # Errors
    /// Fails if the number of values is not `height * width`.
    pub fn signed(values: &[f32], height: usize, width: usize, caption: &str) -> Result<Self> {
        let finite = values.iter().filter(|value| value.is_finite());
        let largest = f64::from(finite.fold(0.0, |largest: f32, value| largest.max(value.abs())));
        let scale = if largest > 0.0 { 1.0 / largest } else { 0.0 };
        Self::from_values(values, (height, width), caption, |value| {
            let full = if value > 0.0 { RED } else { BLUE };
            tint((value.abs() * scale).clamp(0.0, 1.0), full)
        })
    }

    /// Creates a tile from an image in grey under a heat map: the larger the value, the stronger the red.
    ///
    /// `pixels` and `shape` are as in [`image`](Self::image). `map` holds rows of non-negative values, usually fewer
    /// than the image has pixels; they are interpolated linearly.
    ///
    /// # Errors
    /// Fails if [`image`](Self::image) would, `map` is empty, or its rows differ in length.
    pub fn heatmap(
        pixels: &[u8],
        shape: (usize, usize, usize),
        map: &[Vec<f32>],
        caption: &str,
    ) -> Result<Self> {
        let Self { rgb, width, height, caption } = Self::image(pixels, shape, caption)?;
        let columns = map.first().map_or(0, Vec::len);
        ensure!(
            columns > 0 && map.iter().all(|row| row.len() == columns),
            "image {caption:?}: the heat map is empty or its rows differ in length"
        );
        let largest = map.iter().flatten().copied().fold(f32::MIN_POSITIVE, f32::max);
        // The two cells whose centres enclose a pixel, and its relative position between them.
        let between = |pixel: usize, pixels: usize, cells: usize| {
            let position = (pixel as f32 + 0.5) * cells as f32 / pixels as f32 - 0.5;
            let position = position.clamp(0.0, cells as f32 - 1.0);
            (position as usize, (position as usize + 1).min(cells - 1), position.fract())
        };
        let heat = |at: usize| {
            let (above, below, down) = between(at / width, height, map.len());
            let (left, right, across) = between(at % width, width, columns);
            let row = |row: &[f32]| row[left] + across * (row[right] - row[left]);
            (row(&map[above]) + down * (row(&map[below]) - row(&map[above]))) / largest
        };
        let rgb = rgb.chunks(3).enumerate().flat_map(|(at, pixel)| {
            let grey = pixel.iter().map(|&value| f32::from(value)).sum::<f32>() / 3.0;
            let opacity = 0.75 * heat(at);
            RED.map(|full| (grey + opacity * (f32::from(full) - grey)) as u8)
        });
        Ok(Self { rgb: rgb.collect(), width, height, caption })
    }

    fn from_values(
        values: &[f32],
        (height, width): (usize, usize),
        caption: &str,
        color: impl Fn(f64) -> [u8; 3],
    ) -> Result<Self> {
        check_size(values.len(), (1, height, width), caption)?;
        let rgb = values
            .iter()
            .flat_map(|&value| if value.is_nan() { ORANGE } else { color(f64::from(value)) })
            .collect();
        Ok(Self { rgb, width, height, caption: caption.to_owned() })
    }

    /// Screen pixels per image pixel, so that small images of any size appear about equally large.
    fn scale(&self) -> usize {
        (84 / self.width.max(self.height)).max(1)
    }

    fn caption_width(&self) -> f64 {
        self.caption.lines().map(|line| text_width(line, CAPTION)).fold(0.0, f64::max)
    }

    fn data_uri(&self) -> Result<String> {
        // Enlarge here, because some viewers blur when they enlarge.
        let scale = self.scale();
        let rows = self.rgb.chunks(3 * self.width);
        let pixels: Vec<u8> = rows
            .flat_map(|row| std::iter::repeat_n(row, scale))
            .flat_map(|row| row.chunks(3))
            .flat_map(|pixel| pixel.repeat(scale))
            .collect();
        let mut png = Vec::new();
        PngEncoder::new(&mut png).write_image(
            &pixels,
            (self.width * scale) as u32,
            (self.height * scale) as u32,
            ExtendedColorType::Rgb8,
        )?;
        Ok(format!("data:image/png;base64,{}", base64(&png)))
    }
}

fn check_size(found: usize, shape: (usize, usize, usize), caption: &str) -> Result<()> {
    let (channels, height, width) = shape;
    let expected = channels.checked_mul(height).and_then(|rows| rows.checked_mul(width));
    let expected =
        expected.with_context(|| format!("image {caption:?}: the shape {shape:?} is too large"))?;
    ensure!(
        found == expected && expected > 0,
        "image {caption:?}: found {found} values, expected {expected} of shape {shape:?}, and at least 1"
    );
    Ok(())
}

/// Tiles under a common heading in an [`image_grid`].
pub struct GridSection<'a> {
    /// The heading.
    pub heading: &'a str,
    /// Tiles per row.
    pub columns: usize,
    /// The tiles, row by row.
    pub tiles: Vec<Tile>,
}

/// Draws sections of tiles, one below the other, as SVG with embedded images.
///
/// # Errors
/// Fails if an image cannot be encoded.
pub fn image_grid(sections: &[GridSection]) -> Result<String> {
    const MARGIN: f64 = 16.0;
    const GAP: f64 = 12.0;
    const LINE: f64 = 1.25 * CAPTION;
    let mut svg = Svg::new(2.0 * MARGIN, MARGIN);
    let mut y = MARGIN;
    for section in sections {
        let columns = section.columns.max(1);
        let heading = Text { size: 15.0, bold: true, ..Text::default() };
        svg.text(MARGIN, y + 15.0, &heading, section.heading);
        svg.extend_to(2.0 * MARGIN + 1.1 * text_width(section.heading, 15.0), 0.0);
        y += 30.0;
        let largest = |value: &dyn Fn(&Tile) -> f64| section.tiles.iter().map(value).fold(0.0, f64::max);
        let width = largest(&|tile| ((tile.width * tile.scale()) as f64).max(tile.caption_width())).ceil();
        let height = largest(&|tile| (tile.height * tile.scale()) as f64);
        let lines = largest(&|tile| tile.caption.lines().count() as f64);
        for row in section.tiles.chunks(columns) {
            for (column, tile) in row.iter().enumerate() {
                let x = MARGIN + column as f64 * (width + GAP);
                let (w, h) = (tile.width * tile.scale(), tile.height * tile.scale());
                svg.image(x + (width - w as f64) / 2.0, y, w, h, &tile.data_uri()?);
                let caption = Text { size: CAPTION, anchor: "middle", ..Text::default() };
                for (line, text) in tile.caption.lines().enumerate() {
                    svg.text(x + width / 2.0, y + height + LINE * (line as f64 + 1.0), &caption, text);
                }
                svg.extend_to(x + width + MARGIN, 0.0);
            }
            y += height + LINE * lines + GAP;
        }
        y += GAP;
    }
    svg.extend_to(0.0, y);
    Ok(svg.finish())
}

/// Encodes bytes in base64 (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, at| bits << 8 | u32::from(group.get(at).copied().unwrap_or(0)));
        for place in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::svg::tests::assert_well_formed;
    use super::*;

    /// Decodes the images in `svg` and shrinks them to their original sizes.
    fn embedded(svg: &str, longer_sides: &[u32]) -> Result<Vec<Vec<u8>>> {
        let value = |c: u8| match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            _ => 63,
        };
        let images = svg.split("base64,").skip(1).map(|rest| rest.split('"').next().unwrap_or_default());
        images
            .zip(longer_sides)
            .map(|(text, side)| {
                let bits = text
                    .trim_end_matches('=')
                    .bytes()
                    .flat_map(|c| (0..6).map(move |b| value(c) >> (5 - b) & 1));
                let bits: Vec<u8> = bits.collect();
                let png: Vec<u8> =
                    bits.chunks_exact(8).map(|byte| byte.iter().fold(0, |all, bit| all << 1 | bit)).collect();
                let image = image::load_from_memory(&png)?.to_rgb8();
                let scale = image.width().max(image.height()) / side;
                let small = |(x, y, _): &(u32, u32, _)| x % scale == 0 && y % scale == 0;
                Ok(image.enumerate_pixels().filter(small).flat_map(|(_, _, pixel)| pixel.0).collect())
            })
            .collect()
    }

    #[test]
    fn the_grid_holds_the_images_and_their_captions() -> Result<()> {
        let tiles = vec![
            Tile::image(&[0, 9, 128, 255], (1, 2, 2), "4, predicted 9\n\"<&>\"\u{7}")?,
            Tile::image(&[1, 2, 3, 4, 5, 6], (3, 1, 2), "")?,
            Tile::grey(&[-1.0, 0.0, 1.0, f32::INFINITY], 1, 4, "")?,
            Tile::signed(&[2.0, 0.0, -2.0, f32::NAN], 2, 2, "")?,
            Tile::signed(&[f32::NAN, 0.0], 1, 2, "")?,
            Tile::grey(&[7.0], 1, 1, "")?,
        ];
        let svg = image_grid(&[GridSection { heading: "mistakes & why", columns: 4, tiles }])?;
        assert_well_formed(&svg);
        for text in ["mistakes &amp; why", "4, predicted 9", "&quot;&lt;&amp;&gt;&quot;"] {
            assert!(svg.contains(&format!(">{text}</text>")), "{text}");
        }
        let pixels = embedded(&svg, &[2, 2, 4, 2, 2, 1])?;
        assert_eq!(pixels[0], [0, 0, 0, 9, 9, 9, 128, 128, 128, 255, 255, 255]);
        assert_eq!(pixels[1], [1, 3, 5, 2, 4, 6]);
        assert_eq!(pixels[2], [0, 0, 0, 128, 128, 128, 255, 255, 255, 255, 255, 255]);
        assert_eq!(pixels[3], [178, 24, 43, 255, 255, 255, 33, 102, 172, 230, 159, 0]);
        assert_eq!(pixels[4], [230, 159, 0, 255, 255, 255]);
        assert_eq!(pixels[5], [0, 0, 0]);
        Ok(())
    }

    #[test]
    fn a_grid_may_be_empty_but_a_tile_must_have_its_shape() -> Result<()> {
        assert_well_formed(&image_grid(&[])?);
        assert_well_formed(&image_grid(&[GridSection { heading: "nothing", columns: 0, tiles: vec![] }])?);
        assert!(Tile::image(&[0; 6], (1, 2, 2), "").is_err());
        assert!(Tile::image(&[0; 8], (2, 2, 2), "").is_err());
        assert!(Tile::image(&[], (3, usize::MAX, 2), "").is_err());
        assert!(Tile::grey(&[], 0, 3, "").is_err());
        assert!(Tile::signed(&[0.0; 3], 2, 2, "").is_err());
        assert!(Tile::signed(&[], usize::MAX, usize::MAX, "").is_err());
        Ok(())
    }

    #[test]
    fn a_heat_map_is_red_over_a_grey_image() -> Result<()> {
        let map = [vec![0.0, 4.0]];
        let tile = Tile::heatmap(&[100; 12], (3, 1, 4), &map, "")?;
        let svg = image_grid(&[GridSection { heading: "", columns: 1, tiles: vec![tile] }])?;
        let pixels = &embedded(&svg, &[4])?[0];
        assert_eq!(pixels[..3], [100; 3]);
        assert_eq!(pixels[9..], [158, 43, 57]);
        assert!(pixels[3] > 100 && pixels[3] < pixels[6] && pixels[6] < pixels[9]);
        for map in [&[][..], &[vec![]], &[vec![1.0], vec![1.0, 2.0]]] {
            assert!(Tile::heatmap(&[0; 4], (1, 2, 2), map, "").is_err());
        }
        Ok(())
    }
}
