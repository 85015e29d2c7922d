//! Bars that move over time.

use super::svg::{INK, MUTED, Svg, Text, escape, text_width};

/// A value over time, from 0 to 1.
pub struct Animation<'a> {
    /// The name beside the bar.
    pub name: &'a str,
    /// The values at equal intervals.
    pub values: Vec<f64>,
}

/// Draws one bar per value as SVG. Its length follows the value over 6 seconds, repeatedly.
///
/// A viewer without animation shows the first values.
pub fn animation(title: &str, bars: &[Animation]) -> String {
    const WIDTH: f64 = 480.0;
    const ROW: f64 = 34.0;
    let label = Text { anchor: "end", ..Text::default() };
    let widest = bars.iter().map(|bar| text_width(bar.name, label.size)).fold(0.0, f64::max);
    let left = 16.0 + widest + 10.0;
    let bottom = 48.0 + ROW * bars.len() as f64;
    let mut svg = Svg::new(left + WIDTH + 24.0, bottom + 34.0);
    svg.text(16.0, 28.0, &Text { size: 16.0, bold: true, ..Text::default() }, title);
    for tick in 0..=5 {
        let x = left + WIDTH * f64::from(tick) / 5.0;
        svg.push(format_args!(r##"<path d="M{x:.1} 44V{bottom:.1}" stroke="#e4e4e4"/>"##));
        let name = format!("{:.1}", f64::from(tick) / 5.0);
        svg.text(x, bottom + 20.0, &Text { anchor: "middle", color: MUTED, ..Text::default() }, &name);
    }
    for (row, bar) in bars.iter().enumerate() {
        let y = 48.0 + ROW * row as f64;
        svg.text(left - 10.0, y + ROW / 2.0 + 4.0, &Text { color: INK, ..label }, bar.name);
        // Every hundredth of the time is smooth enough.
        let every = bar.values.len().div_ceil(100).max(1);
        let widths: Vec<String> = bar
            .values
            .iter()
            .step_by(every)
            .map(|value| format!("{:.1}", WIDTH * value.clamp(0.0, 1.0)))
            .collect();
        let first = widths.first().map_or("0", |width| width);
        svg.push(format_args!(
            r##"<rect x="{left:.1}" y="{:.1}" width="{first}" height="{}" fill="#0072B2"><title>{}</title><animate attributeName="width" values="{}" dur="6s" repeatCount="indefinite"/></rect>"##,
            y + 6.0,
            ROW - 12.0,
            escape(bar.name),
            widths.join(";")
        ));
    }
    svg.finish()
}

#[cfg(test)]
mod tests {
    use super::super::svg::tests::assert_well_formed;
    use super::*;

    #[test]
    fn a_bar_has_a_width_for_each_moment() {
        let bars =
            [Animation { name: "<a>", values: vec![1.0, 0.5, 0.0] }, Animation { name: "b", values: vec![] }];
        let svg = animation("Output & time", &bars);
        assert_well_formed(&svg);
        assert!(svg.contains(r#"values="480.0;240.0;0.0""#) && svg.contains("&lt;a&gt;"));
    }
}
