//! A minimal SVG writer, and the text measures and colours of the plots.

use std::fmt::Write;

pub(super) const INK: &str = "#222222";
pub(super) const MUTED: &str = "#767676";
pub(super) const FONT: &str = "sans-serif";
pub(super) const RED: [u8; 3] = [178, 24, 43];
/// The colours of Okabe and Ito, without the yellow, which is too light for lines.
pub(super) const PALETTE: [[u8; 3]; 7] =
    [[0, 114, 178], [213, 94, 0], [0, 158, 115], [204, 121, 167], [230, 159, 0], [86, 180, 233], [0, 0, 0]];

/// An SVG document under construction: elements at absolute positions on a white page.
pub(super) struct Svg {
    body: String,
    width: f64,
    height: f64,
}

/// Style of a text element.
#[derive(Clone, Copy)]
pub(super) struct Text {
    pub(super) size: f64,
    pub(super) anchor: &'static str,
    pub(super) color: &'static str,
    pub(super) bold: bool,
    /// Rotation in degrees, clockwise.
    pub(super) angle: i32,
}

impl Default for Text {
    fn default() -> Self {
        Self { size: 13.0, anchor: "start", color: INK, bold: false, angle: 0 }
    }
}

impl Svg {
    pub(super) fn new(width: f64, height: f64) -> Self {
        Self { body: String::new(), width, height }
    }

    /// Enlarges the page so that it contains the point.
    pub(super) fn extend_to(&mut self, x: f64, y: f64) {
        self.width = self.width.max(x);
        self.height = self.height.max(y);
    }

    pub(super) fn text(&mut self, x: f64, y: f64, style: &Text, text: &str) {
        let Text { size, anchor, color, bold, angle } = style;
        let weight = if *bold { r#" font-weight="bold""# } else { "" };
        let rotation = if *angle == 0 {
            String::new()
        } else {
            format!(r#" transform="rotate({angle} {x:.1} {y:.1})""#)
        };
        self.push(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" font-size="{size}" text-anchor="{anchor}" fill="{color}"{weight}{rotation}>{}</text>"#,
            escape(text)
        ));
    }

    pub(super) fn rect(&mut self, x: f64, y: f64, width: f64, height: f64, [r, g, b]: [u8; 3]) {
        self.push(format_args!(
            r##"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="#{r:02x}{g:02x}{b:02x}" stroke="#e4e4e4"/>"##
        ));
    }

    pub(super) fn image(&mut self, x: f64, y: f64, width: usize, height: usize, uri: &str) {
        self.push(format_args!(
            r##"<image x="{x:.1}" y="{y:.1}" width="{width}" height="{height}" style="image-rendering:pixelated" href="{uri}"/>"##
        ));
        self.push(format_args!(
            r##"<rect x="{x:.1}" y="{y:.1}" width="{width}" height="{height}" fill="none" stroke="#c8c8c8"/>"##
        ));
    }

    pub(super) fn push(&mut self, element: std::fmt::Arguments) {
        // Writing to a String can't fail.
        let _ = writeln!(self.body, "{element}");
    }

    pub(super) fn finish(self) -> String {
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

/// Converts text to XML character data: escapes markup and drops the characters that XML forbids.
pub(crate) fn escape(text: &str) -> String {
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

/// Estimates the width of `text` in a sans-serif font of `size`, rather too large than too small.
pub(super) fn text_width(text: &str, size: f64) -> f64 {
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

/// Cuts `text` to at most `max` characters, with an ellipsis at the end.
pub(super) fn shorten(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        None => text.to_owned(),
        Some(_) => text.chars().take(max - 1).chain(['…']).collect(),
    }
}

/// Interpolates between white at 0 and the colour `full` at 1.
pub(super) fn tint(strength: f64, full: [u8; 3]) -> [u8; 3] {
    full.map(|end| (255.0 + strength * (f64::from(end) - 255.0)).round() as u8)
}

/// Extends `range`, the minimum and maximum so far, to include `value`.
pub(super) fn include<T: PartialOrd + Copy>(range: Option<(T, T)>, value: T) -> Option<(T, T)> {
    Some(range.map_or((value, value), |(low, high)| {
        (if value < low { value } else { low }, if value > high { value } else { high })
    }))
}

#[cfg(test)]
pub(super) mod tests {
    /// Panics unless every element is closed in order and every attribute is quoted.
    #[track_caller]
    pub(crate) fn assert_well_formed(svg: &str) {
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
}
