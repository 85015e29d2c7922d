//! What a run has to show, as SVG text: curves over epochs, a confusion matrix, a grid of small pictures, a
//! map of words; and a page of a text coloured by a model's cells.
//!
//! Nothing is written here; the caller decides where the text goes. Colours can be told apart by colour-blind eyes
//! (Okabe and Ito's palette; blue against red or orange, never red against green).

mod line_charts;
mod neuron_page;
mod word_map;

pub use line_charts::{Chart, Line, line_charts};
pub use neuron_page::{Neuron, neuron_page};
pub use word_map::word_map;

use anyhow::{Result, ensure};
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use std::fmt::Write;

const INK: &str = "#222222";
const MUTED: &str = "#767676";
const RED: [u8; 3] = [178, 24, 43];
const FONT: &str = "sans-serif";

/// Folds values into their least and greatest.
fn spread<T: PartialOrd + Copy>(ends: Option<(T, T)>, value: T) -> Option<(T, T)> {
    Some(ends.map_or((value, value), |(low, high)| {
        (if value < low { value } else { low }, if value > high { value } else { high })
    }))
}

/// The matrix of what was said for each class: `counts[true class][said]`, with the classes' names and recalls.
///
/// Right answers are blue, mistakes orange, each the darker the larger its share of the true class; mistakes by the
/// cube root of the share, so that a few in a thousand still show.
///
/// # Errors
/// When `counts` is not square with one row a name.
pub fn confusion_matrix(counts: &[Vec<u64>], names: &[String]) -> Result<String> {
    let classes = names.len();
    ensure!(
        counts.len() == classes && counts.iter().all(|row| row.len() == classes),
        "confusion matrix: {classes} class names need {classes} rows of {classes} counts, found rows of {:?}",
        counts.iter().map(Vec::len).collect::<Vec<_>>()
    );
    let names: Vec<String> = names.iter().map(|name| shorten(name, 18)).collect();
    let size = if classes <= 20 { 13.0 } else { 10.0 };
    let widest = |texts: &mut dyn Iterator<Item = &str>| {
        texts.map(|text| text_width(text, size)).fold(0.0, f64::max).ceil()
    };
    let count_texts: Vec<String> = counts.iter().flatten().map(u64::to_string).collect();
    let name_width = widest(&mut names.iter().map(String::as_str));
    let mut cell = (widest(&mut count_texts.iter().map(String::as_str)) + 8.0).max(2.4 * size);
    if classes <= 6 {
        cell = cell.max(name_width + 8.0);
    }
    let upright = name_width <= cell;
    let name_height = if upright { size } else { name_width };

    let left = 40.0 + name_width + 8.0;
    let top = 74.0 + name_height + 8.0;
    let side = cell * classes as f64;
    let (right, bottom) = (left + side, top + side);
    let total: u64 = counts.iter().flatten().sum();
    let correct: u64 = counts.iter().enumerate().map(|(class, row)| row[class]).sum();
    let title = format!("{correct} of {total} right, {}", percent(correct, total));
    let mut svg = Svg::new((right + 80.0).max(32.0 + 1.1 * text_width(&title, 16.0)), bottom + 16.0);
    svg.text(16.0, 28.0, &Text { size: 16.0, bold: true, ..Text::default() }, &title);
    let axis = Text { size: 13.0, anchor: "middle", color: MUTED, ..Text::default() };
    svg.text(left + side / 2.0, 58.0, &axis, "said");
    svg.text(24.0, top + side / 2.0, &Text { angle: -90, ..axis }, "true class");
    svg.text(right + 38.0, top - 8.0, &axis, "recall");

    for (index, (row, name)) in counts.iter().zip(&names).enumerate() {
        let middle = cell * (index as f64 + 0.5);
        let baseline = top + middle + 0.35 * size;
        let label = Text { size, ..Text::default() };
        svg.text(left - 8.0, baseline, &Text { anchor: "end", ..label }, name);
        if upright {
            svg.text(left + middle, top - 8.0, &Text { anchor: "middle", ..label }, name);
        } else {
            svg.text(left + middle + 0.35 * size, top - 8.0, &Text { angle: -90, ..label }, name);
        }
        let seen: u64 = row.iter().sum();
        for (said, &count) in row.iter().enumerate() {
            let share = if seen == 0 { 0.0 } else { count as f64 / seen as f64 };
            let (strength, full) =
                if said == index { (share, [8, 81, 156]) } else { (share.cbrt(), [190, 77, 0]) };
            let x = left + cell * said as f64;
            svg.rect(x, top + cell * index as f64, cell, cell, mix(strength, full));
            let color = match count {
                0 => "#b0b0b0",
                _ if strength > 0.55 => "#ffffff",
                _ => INK,
            };
            let text = Text { anchor: "middle", color, ..label };
            svg.text(x + cell / 2.0, baseline, &text, &count_texts[index * classes + said]);
        }
        svg.text(right + 38.0, baseline, &Text { anchor: "middle", ..label }, &percent(row[index], seen));
    }
    Ok(svg.finish())
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "–".into() } else { format!("{:.1}%", 100.0 * part as f64 / whole as f64) }
}

/// A small picture and what stands under it.
pub struct Tile {
    rgb: Vec<u8>,
    width: usize,
    height: usize,
    caption: String,
}

impl Tile {
    /// A picture of `shape` `(channels, height, width)`, row-major, grey (1 channel) or RGB (3); the lines of `caption`
    /// are set one below the other.
    ///
    /// # Errors
    /// When `pixels` is not a picture of that shape.
    pub fn image(pixels: &[u8], shape: (usize, usize, usize), caption: &str) -> Result<Self> {
        let (channels, height, width) = shape;
        ensure!(channels == 1 || channels == 3, "picture {caption:?}: {channels} channels, expected 1 or 3");
        let area = width * height;
        check_size(pixels.len(), channels * area, shape, caption)?;
        let rgb = (0..area).flat_map(|at| [0, 1, 2].map(|c| pixels[at + area * (c % channels)])).collect();
        Ok(Self { rgb, width, height, caption: caption.to_owned() })
    }

    /// A map of `height * width` values in grey, its least black and its greatest white (a NaN is drawn in
    /// orange).
    ///
    /// # Errors
    /// When there are not `height * width` values.
    pub fn grey(values: &[f32], height: usize, width: usize, caption: &str) -> Result<Self> {
        let finite = values.iter().copied().filter(|value| value.is_finite());
        let (low, high) = finite.fold(None, spread).unwrap_or((0.0, 0.0));
        let range = if high > low { f64::from(high) - f64::from(low) } else { 1.0 };
        Self::mapped(values, (height, width), caption, |value| {
            [(255.0 * ((value - f64::from(low)) / range).clamp(0.0, 1.0)).round() as u8; 3]
        })
    }

    /// A map of `height * width` signed values: white at 0, to red above and to blue below, both ends at the greatest
    /// absolute value (a NaN is drawn in orange).
    ///
    /// # Errors
    /// When there are not `height * width` values.
    pub fn signed(values: &[f32], height: usize, width: usize, caption: &str) -> Result<Self> {
        let finite = values.iter().filter(|value| value.is_finite());
        let greatest = f64::from(finite.fold(0.0, |most: f32, value| most.max(value.abs())));
        let scale = if greatest > 0.0 { 1.0 / greatest } else { 0.0 };
        Self::mapped(values, (height, width), caption, |value| {
            let full = if value > 0.0 { RED } else { [33, 102, 172] };
            mix((value.abs() * scale).clamp(0.0, 1.0), full)
        })
    }

    /// A picture, as for [`image`](Self::image), in grey, under a map of rows of values from 0, red where they are great.
    ///
    /// # Errors
    /// As for [`image`](Self::image), and when there is no map.
    pub fn heatmap(
        pixels: &[u8],
        shape: (usize, usize, usize),
        map: &[Vec<f32>],
        caption: &str,
    ) -> Result<Self> {
        let Self { rgb, width, height, caption } = Self::image(pixels, shape, caption)?;
        let columns = map.first().map_or(0, Vec::len);
        ensure!(columns > 0 && map.iter().all(|row| row.len() == columns), "picture {caption:?}: no map");
        let greatest = map.iter().flatten().copied().fold(f32::MIN_POSITIVE, f32::max);
        // Between the middles of the map's places.
        let between = |at: usize, pixels: usize, places: usize| {
            let place = (at as f32 + 0.5) * places as f32 / pixels as f32 - 0.5;
            let place = place.clamp(0.0, places as f32 - 1.0);
            (place as usize, (place as usize + 1).min(places - 1), place.fract())
        };
        let heat = |at: usize| {
            let (above, below, down) = between(at / width, height, map.len());
            let (left, right, across) = between(at % width, width, columns);
            let row = |row: &[f32]| row[left] + across * (row[right] - row[left]);
            (row(&map[above]) + down * (row(&map[below]) - row(&map[above]))) / greatest
        };
        let rgb = rgb.chunks(3).enumerate().flat_map(|(at, pixel)| {
            let grey = pixel.iter().map(|&value| f32::from(value)).sum::<f32>() / 3.0;
            let part = 0.75 * heat(at);
            RED.map(|full| (grey + part * (f32::from(full) - grey)) as u8)
        });
        Ok(Self { rgb: rgb.collect(), width, height, caption })
    }

    fn mapped(
        values: &[f32],
        (height, width): (usize, usize),
        caption: &str,
        color: impl Fn(f64) -> [u8; 3],
    ) -> Result<Self> {
        check_size(values.len(), height * width, (1, height, width), caption)?;
        let rgb = values
            .iter()
            .flat_map(|&value| if value.is_nan() { [230, 159, 0] } else { color(f64::from(value)) })
            .collect();
        Ok(Self { rgb, width, height, caption: caption.to_owned() })
    }

    /// How many screen pixels one pixel of the picture takes, for small pictures of any size to look alike.
    fn scale(&self) -> usize {
        (84 / self.width.max(self.height)).max(1)
    }

    fn caption_width(&self) -> f64 {
        self.caption.lines().map(|line| text_width(line, CAPTION)).fold(0.0, f64::max)
    }

    fn data_uri(&self) -> Result<String> {
        // Enlarged here, because not every viewer does it without blurring.
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

fn check_size(found: usize, expected: usize, shape: (usize, usize, usize), caption: &str) -> Result<()> {
    ensure!(
        found == expected && expected > 0,
        "picture {caption:?}: {found} values, but shape {shape:?} takes {expected}"
    );
    Ok(())
}

/// Tiles under one heading, `columns` in a row.
pub struct GridSection<'a> {
    pub heading: &'a str,
    pub columns: usize,
    pub tiles: Vec<Tile>,
}

const CAPTION: f64 = 12.0;

/// The sections one below the other.
///
/// # Errors
/// When a picture can't be encoded.
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
        svg.reach(2.0 * MARGIN + 1.1 * text_width(section.heading, 15.0), 0.0);
        y += 30.0;
        let most = |of: &dyn Fn(&Tile) -> f64| section.tiles.iter().map(of).fold(0.0, f64::max);
        let width = most(&|tile| ((tile.width * tile.scale()) as f64).max(tile.caption_width())).ceil();
        let height = most(&|tile| (tile.height * tile.scale()) as f64);
        let lines = most(&|tile| tile.caption.lines().count() as f64);
        for row in section.tiles.chunks(columns) {
            for (column, tile) in row.iter().enumerate() {
                let x = MARGIN + column as f64 * (width + GAP);
                let (w, h) = (tile.width * tile.scale(), tile.height * tile.scale());
                svg.image(x + (width - w as f64) / 2.0, y, w, h, &tile.data_uri()?);
                let caption = Text { size: CAPTION, anchor: "middle", ..Text::default() };
                for (line, text) in tile.caption.lines().enumerate() {
                    svg.text(x + width / 2.0, y + height + LINE * (line as f64 + 1.0), &caption, text);
                }
                svg.reach(x + width + MARGIN, 0.0);
            }
            y += height + LINE * lines + GAP;
        }
        y += GAP;
    }
    svg.reach(0.0, y);
    Ok(svg.finish())
}

/// An SVG being written: text in absolute places on a white page.
struct Svg {
    body: String,
    width: f64,
    height: f64,
}

#[derive(Clone, Copy)]
struct Text {
    size: f64,
    anchor: &'static str,
    color: &'static str,
    bold: bool,
    /// Degrees clockwise.
    angle: i32,
}

impl Default for Text {
    fn default() -> Self {
        Self { size: 13.0, anchor: "start", color: INK, bold: false, angle: 0 }
    }
}

impl Svg {
    fn new(width: f64, height: f64) -> Self {
        Self { body: String::new(), width, height }
    }

    /// Widens the page to hold the point.
    fn reach(&mut self, x: f64, y: f64) {
        self.width = self.width.max(x);
        self.height = self.height.max(y);
    }

    fn text(&mut self, x: f64, y: f64, style: &Text, text: &str) {
        let Text { size, anchor, color, bold, angle } = style;
        let weight = if *bold { r#" font-weight="bold""# } else { "" };
        let turn = if *angle == 0 {
            String::new()
        } else {
            format!(r#" transform="rotate({angle} {x:.1} {y:.1})""#)
        };
        self.push(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" font-size="{size}" text-anchor="{anchor}" fill="{color}"{weight}{turn}>{}</text>"#,
            escape(text)
        ));
    }

    fn rect(&mut self, x: f64, y: f64, width: f64, height: f64, [r, g, b]: [u8; 3]) {
        self.push(format_args!(
            r##"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="#{r:02x}{g:02x}{b:02x}" stroke="#e4e4e4"/>"##
        ));
    }

    fn image(&mut self, x: f64, y: f64, width: usize, height: usize, uri: &str) {
        self.push(format_args!(
            r##"<image x="{x:.1}" y="{y:.1}" width="{width}" height="{height}" style="image-rendering:pixelated" href="{uri}"/>"##
        ));
        self.push(format_args!(
            r##"<rect x="{x:.1}" y="{y:.1}" width="{width}" height="{height}" fill="none" stroke="#c8c8c8"/>"##
        ));
    }

    fn push(&mut self, element: std::fmt::Arguments) {
        // Writing to a String can't fail.
        let _ = writeln!(self.body, "{element}");
    }

    fn finish(self) -> String {
        let Self { body, width, height } = self;
        let (width, height) = (width.ceil(), height.ceil());
        format!(
            concat!(
                r#"<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}" font-family="{f}">"#,
                "\n",
                r##"<rect width="{w}" height="{h}" fill="#ffffff"/>"##,
                "\n{body}</svg>\n"
            ),
            w = width,
            h = height,
            f = FONT,
            body = body
        )
    }
}

/// `text` as XML character data: markup escaped, characters that XML forbids left out.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\u{fffe}' | '\u{ffff}' => {}
            c if c.is_control() => {}
            c => escaped.push(c),
        }
    }
    escaped
}

/// Roughly how wide a sans-serif font of `size` sets `text`; rather too wide than too narrow.
fn text_width(text: &str, size: f64) -> f64 {
    let width = |c: char| match c {
        'f' | 'i' | 'j' | 'l' | 'r' | 't' | 'I' | ' ' | '.' | ',' | ':' | ';' | '!' | '\'' | '(' | ')' => {
            0.42
        }
        'm' | 'w' | 'M' | 'W' | '@' | '%' | '…' | '—' | '\u{1100}'.. => 1.0,
        c if c.is_uppercase() => 0.78,
        _ => 0.63,
    };
    size * text.chars().map(width).sum::<f64>()
}

fn shorten(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some(_) => text.chars().take(most - 1).chain(['…']).collect(),
    }
}

/// White at 0, `full` at 1.
fn mix(strength: f64, full: [u8; 3]) -> [u8; 3] {
    full.map(|end| (255.0 + strength * (f64::from(end) - 255.0)).round() as u8)
}

/// RFC 4648, section 4.
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
    use super::*;
    use std::collections::HashSet;

    /// Panics unless every tag is closed in order and every attribute quoted.
    pub(super) fn assert_well_formed(svg: &str) {
        let mut open = Vec::new();
        let mut rest = svg;
        while let Some(at) = rest.find('<') {
            assert!(!rest[..at].contains('>'), "stray > in {:?}", &rest[..at]);
            let end = at + rest[at..].find('>').expect("a tag that never ends");
            let tag = &rest[at + 1..end];
            assert!(!tag.contains('<'), "stray < in {tag:?}");
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag:?}");
            let name = tag.trim_matches('/').split_whitespace().next().unwrap_or_default();
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name), "closed out of order");
            } else if !tag.ends_with('/') {
                open.push(name);
            }
            rest = &rest[end + 1..];
        }
        assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} left open, {rest:?} left over");
        for entity in svg.split('&').skip(1) {
            assert!(["amp;", "lt;", "gt;", "quot;", "apos;"].iter().any(|name| entity.starts_with(name)));
        }
        assert!(svg.starts_with("<svg") && !svg.contains("NaN") && !svg.contains("inf"));
    }

    fn panel<'a>(title: &'a str, points: &[&[(usize, f64)]]) -> Chart<'a> {
        let curves = points.iter().map(|points| Line { name: "<a & b>", points: points.to_vec() }).collect();
        Chart { title, x_label: "epoch", y_label: "loss", lines: curves }
    }

    #[test]
    fn curves_of_any_points_are_drawn() -> Result<()> {
        let (nan, inf) = (f64::NAN, f64::INFINITY);
        let cases: [&[&[(usize, f64)]]; 10] = [
            &[],
            &[&[]],
            &[&[(1, 0.3)]],
            &[&[(1, nan)], &[(1, inf), (2, -inf)]],
            &[&[(1, 2.0), (2, nan), (3, 1.0), (4, 0.5)], &[(1, 1.0), (2, inf)]],
            &[&[(1, 0.5), (2, 0.5), (3, 0.5)]],
            &[&[(1, 0.0), (2, 0.0)]],
            &[&[(1, 1e30), (2, 1e-30), (3, -1e38), (4, 1e300)]],
            &[&[(1, 1e15), (2, 1e15 + 0.125)]],
            &[&[(0, 1e-12), (1_000_000, 2e-12)]],
        ];
        for case in cases {
            assert_well_formed(&line_charts(&[panel("x < y", case), panel("", case)])?);
        }
        assert_well_formed(&line_charts(&[])?);
        Ok(())
    }

    #[test]
    fn a_curve_has_a_line_between_gaps_and_a_name_in_the_legend() -> Result<()> {
        let svg = line_charts(&[panel("", &[&[(1, 3.0), (2, 2.0), (3, f64::NAN), (4, 1.0), (5, 0.5)]])])?;
        // Two pieces, and the sample in the legend.
        assert_eq!(svg.matches(r##"stroke="#0072B2" stroke-width="2""##).count(), 3);
        assert_eq!(svg.matches("<circle").count(), 4);
        assert!(svg.contains("&lt;a &amp; b&gt;") && svg.contains("epoch"));
        Ok(())
    }

    #[test]
    fn the_matrix_shows_each_count_name_and_recall() -> Result<()> {
        let names = ["cat", "<dog>", "none"].map(String::from);
        let svg = confusion_matrix(&[vec![641, 22, 3], vec![0, 77, 5], vec![0, 0, 0]], &names)?;
        assert_well_formed(&svg);
        for text in ["641", "22", "3", "77", "5", "cat", "&lt;dog&gt;", "96.2%", "93.9%", "–"] {
            assert!(svg.contains(&format!(">{text}</text>")), "{text}");
        }
        assert!(svg.contains("718 of 748 right, 96.0%"));
        assert_eq!(svg.matches(">0</text>").count(), 4);
        Ok(())
    }

    #[test]
    fn a_matrix_may_be_empty_or_large_but_not_ragged() -> Result<()> {
        assert_well_formed(&confusion_matrix(&[], &[])?);
        let names: Vec<String> = (0..50).map(|class| format!("a class with a long name {class}")).collect();
        let counts: Vec<Vec<u64>> =
            (0..50).map(|row| (0..50).map(|said| row * 50 + said).collect()).collect();
        let svg = confusion_matrix(&counts, &names)?;
        assert_well_formed(&svg);
        let shown: HashSet<&str> = svg.split("</text>").filter_map(|text| text.rsplit('>').next()).collect();
        assert!((0..2500).all(|count| shown.contains(count.to_string().as_str())));
        assert!(confusion_matrix(&counts, &names[..49]).is_err());
        assert!(confusion_matrix(&[vec![1, 2], vec![3]], &names[..2]).is_err());
        Ok(())
    }

    /// The pixels of the pictures in `svg`, decoded again and made small again.
    fn embedded(svg: &str, longer_sides: &[u32]) -> Result<Vec<Vec<u8>>> {
        let value = |c: u8| match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            _ => 63,
        };
        let pictures = svg.split("base64,").skip(1).map(|rest| rest.split('"').next().unwrap_or_default());
        pictures
            .zip(longer_sides)
            .map(|(text, side)| {
                let bits = text
                    .trim_end_matches('=')
                    .bytes()
                    .flat_map(|c| (0..6).map(move |b| value(c) >> (5 - b) & 1));
                let bits: Vec<u8> = bits.collect();
                let png: Vec<u8> =
                    bits.chunks_exact(8).map(|byte| byte.iter().fold(0, |all, bit| all << 1 | bit)).collect();
                let picture = image::load_from_memory(&png)?.to_rgb8();
                let scale = picture.width().max(picture.height()) / side;
                let small = |(x, y, _): &(u32, u32, _)| x % scale == 0 && y % scale == 0;
                Ok(picture.enumerate_pixels().filter(small).flat_map(|(_, _, pixel)| pixel.0).collect())
            })
            .collect()
    }

    #[test]
    fn the_grid_holds_the_pictures_and_their_captions() -> Result<()> {
        let tiles = vec![
            Tile::image(&[0, 9, 128, 255], (1, 2, 2), "4, said 9\n\"<&>\"\u{7}")?,
            Tile::image(&[1, 2, 3, 4, 5, 6], (3, 1, 2), "")?,
            Tile::grey(&[-1.0, 0.0, 1.0, f32::INFINITY], 1, 4, "")?,
            Tile::signed(&[2.0, 0.0, -2.0, f32::NAN], 2, 2, "")?,
            Tile::signed(&[f32::NAN, 0.0], 1, 2, "")?,
            Tile::grey(&[7.0], 1, 1, "")?,
        ];
        let svg = image_grid(&[GridSection { heading: "most wrong & why", columns: 4, tiles }])?;
        assert_well_formed(&svg);
        for text in ["most wrong &amp; why", "4, said 9", "&quot;&lt;&amp;&gt;&quot;"] {
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
        assert!(Tile::grey(&[], 0, 3, "").is_err());
        assert!(Tile::signed(&[0.0; 3], 2, 2, "").is_err());
        Ok(())
    }
}
