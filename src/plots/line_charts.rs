//! Line charts: values over epochs or steps.

use super::svg::{FONT, include};
use anyhow::{Result, anyhow};
use plotters::coord::{Shift, types::RangedCoordf64, types::RangedCoordi64};
use plotters::prelude::*;

const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);

/// One line of a [`Chart`].
pub struct Line<'a> {
    /// The name in the legend.
    pub name: &'a str,
    /// `(x, value)` in ascending order of `x`. A value that is NaN or infinite leaves a gap.
    pub points: Vec<(usize, f64)>,
}

/// One set of axes with lines, to be drawn by [`line_charts`].
pub struct Chart<'a> {
    /// The title above the axes.
    pub title: &'a str,
    /// What the x axis counts, such as `epoch`.
    pub x_label: &'a str,
    /// What the y axis measures.
    pub y_label: &'a str,
    /// The lines.
    pub lines: Vec<Line<'a>>,
}

/// Draws charts side by side, as SVG.
///
/// # Errors
/// Fails if the drawing library fails.
pub fn line_charts(charts: &[Chart]) -> Result<String> {
    const WIDTH: u32 = 560;
    const HEIGHT: u32 = 380;
    let columns = charts.len().max(1);
    let mut svg = String::new();
    let page = SVGBackend::with_string(&mut svg, (WIDTH * columns as u32, HEIGHT)).into_drawing_area();
    page.fill(&WHITE).map_err(|error| anyhow!("line charts: {error}"))?;
    for (chart, area) in charts.iter().zip(page.split_evenly((1, columns))) {
        draw_chart(chart, &area).map_err(|error| anyhow!("line charts: {}: {error}", chart.title))?;
    }
    page.present().map_err(|error| anyhow!("line charts: {error}"))?;
    drop(page);
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Axes<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordi64, RangedCoordf64>>;
type DrawingResult<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Ranges of the axes.
struct Ranges {
    x: (i64, i64),
    y: (f64, f64),
    /// Largest absolute value.
    largest: f64,
}

impl Ranges {
    fn of(points: &[(i64, f64)]) -> Self {
        let x = match points.iter().map(|point| point.0).fold(None, include) {
            None => (0, 1),
            Some((first, last)) if first == last => (first - 1, last + 1),
            Some(ends) => ends,
        };
        let (low, high) = points.iter().map(|point| point.1).fold(None, include).unwrap_or((0.0, 1.0));
        let largest = low.abs().max(high.abs());
        let is_constant = high - low <= 1e-6 * largest;
        if largest == 0.0 {
            return Self { x, y: (0.0, 1.0), largest: 1.0 };
        }
        let margin = if is_constant { (0.02 * largest).max(1e-6) } else { 0.06 * (high - low) };
        Self { x, y: (low - margin, high + margin), largest }
    }
}

fn draw_chart(chart: &Chart, area: &Area) -> DrawingResult<()> {
    let points: Vec<(i64, f64)> =
        chart.lines.iter().flat_map(|line| &line.points).filter_map(drawable).collect();
    let ranges = Ranges::of(&points);
    let Ranges { x: (first, last), y: (low, high), largest } = ranges;
    let mut axes = ChartBuilder::on(area)
        .margin(14)
        .caption(chart.title, (FONT, 18).into_font().color(&INK))
        .x_label_area_size(44)
        .y_label_area_size(66)
        .build_cartesian_2d(first..last, low..high)?;
    let digits = (1.0 - libm::log10((high - low) / 5.0)).clamp(0.0, 8.0) as usize;
    let tick = |y: &f64| if largest < 1e5 { format!("{y:.digits$}") } else { format!("{y:.1e}") };
    axes.configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(225, 225, 225))
        .axis_style(RGBColor(118, 118, 118))
        .label_style((FONT, 13).into_font().color(&INK))
        .axis_desc_style((FONT, 14).into_font().color(&INK))
        .x_labels(10)
        .y_labels(7)
        .y_label_formatter(&tick)
        .x_desc(chart.x_label)
        .y_desc(chart.y_label)
        .draw()?;
    draw_lines(chart, &mut axes, last.saturating_sub(first) <= 40)?;
    axes.configure_series_labels()
        .position(emptiest_corner(&points, &ranges))
        .label_font((FONT, 14).into_font().color(&INK))
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(200, 200, 200))
        .margin(8)
        .draw()?;
    Ok(())
}

/// Draws the lines, with a dot at each point if `with_dots`, and registers their names for the legend.
fn draw_lines<'b>(chart: &Chart, axes: &mut Axes<'_, 'b>, with_dots: bool) -> DrawingResult<()> {
    const PALETTE: [RGBColor; 6] = [
        RGBColor(0, 114, 178),
        RGBColor(213, 94, 0),
        RGBColor(0, 158, 115),
        RGBColor(204, 121, 167),
        RGBColor(230, 159, 0),
        RGBColor(86, 180, 233),
    ];
    for (line, color) in chart.lines.iter().zip(PALETTE.iter().cycle()) {
        let style = color.stroke_width(2).filled();
        let pieces = line.points.split(|point| drawable(point).is_none()).filter(|piece| !piece.is_empty());
        for piece in pieces {
            // A single point between two gaps has no line, so it needs a dot.
            let dots = if with_dots || piece.len() == 1 { 3 } else { 0 };
            axes.draw_series(LineSeries::new(piece.iter().filter_map(drawable), style).point_size(dots))?;
        }
        // An empty series carries the name: a line has several pieces, or none.
        axes.draw_series(std::iter::empty::<Circle<(i64, f64), i32>>())?
            .label(line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
    }
    Ok(())
}

/// Converts a point for drawing; `None` if its value is not finite or too large to draw.
fn drawable(&(x, value): &(usize, f64)) -> Option<(i64, f64)> {
    (value.abs() <= f64::from(f32::MAX)).then_some((x as i64, value))
}

/// Returns the corner of the axes with the fewest points, for the legend.
fn emptiest_corner(points: &[(i64, f64)], &Ranges { x, y, .. }: &Ranges) -> SeriesLabelPosition {
    use SeriesLabelPosition::{LowerLeft, LowerRight, UpperLeft, UpperRight};
    let mut counts = [(UpperRight, 0), (LowerRight, 0), (UpperLeft, 0), (LowerLeft, 0)];
    for &(at, value) in points {
        let right = (at - x.0) as f64 / (x.1 - x.0) as f64;
        let up = (value - y.0) / (y.1 - y.0);
        for (corner, count) in &mut counts {
            let across = if matches!(corner, UpperLeft | LowerLeft) { 1.0 - right } else { right };
            let along = if matches!(corner, LowerLeft | LowerRight) { 1.0 - up } else { up };
            *count += usize::from(across > 0.6 && along > 0.7);
        }
    }
    counts.into_iter().min_by_key(|(_, count)| *count).map_or(UpperRight, |(corner, _)| corner)
}

#[cfg(test)]
mod tests {
    use super::super::svg::tests::assert_well_formed;
    use super::*;

    fn chart<'a>(title: &'a str, points: &[&[(usize, f64)]]) -> Chart<'a> {
        let lines = points.iter().map(|points| Line { name: "<a & b>", points: points.to_vec() }).collect();
        Chart { title, x_label: "epoch", y_label: "loss", lines }
    }

    #[test]
    fn any_points_are_drawn() -> Result<()> {
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
            assert_well_formed(&line_charts(&[chart("x < y", case), chart("", case)])?);
        }
        assert_well_formed(&line_charts(&[])?);
        Ok(())
    }

    #[test]
    fn a_line_is_drawn_between_its_gaps_and_named_in_the_legend() -> Result<()> {
        let svg = line_charts(&[chart("", &[&[(1, 3.0), (2, 2.0), (3, f64::NAN), (4, 1.0), (5, 0.5)]])])?;
        // Two pieces, and the sample in the legend.
        assert_eq!(svg.matches(r##"stroke="#0072B2" stroke-width="2""##).count(), 3);
        assert_eq!(svg.matches("<circle").count(), 4);
        assert!(svg.contains("&lt;a &amp; b&gt;") && svg.contains("epoch"));
        Ok(())
    }
}
