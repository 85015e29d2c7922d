//! Line charts: values over epochs, steps or settings.

use super::axis::{Axis, Scale};
use super::svg::{FONT, PALETTE, text_width};
use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::ops::Range;

const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const GREY: RGBColor = RGBColor(170, 170, 170);
/// Size of a chart without its legend.
const WIDTH: u32 = 560;
const HEIGHT: u32 = 380;
/// Height of a row of the legend, its font size, and the space for a sample with its gaps.
const ROW: u32 = 22;
const LEGEND: u32 = 14;
const SAMPLE: f64 = 46.0;
/// One line of a [`Chart`].
#[derive(Clone, Default)]
pub struct Line<'a> {
    /// The name in the legend.
    pub name: &'a str,
    /// The points `(x, value)`, in the order in which they are joined.
    ///
    /// A value that the scale can't show, such as NaN, leaves a gap.
    pub points: Vec<(f64, f64)>,
    /// How the points are drawn.
    pub mark: Mark,
}

impl<'a> Line<'a> {
    /// Creates a line through `points`.
    pub fn new(name: &'a str, points: Vec<(f64, f64)>) -> Self {
        Self { name, points, mark: Mark::Line }
    }
}

/// How the points of a [`Line`] are drawn.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Mark {
    /// Joined, with a dot at each if they are few.
    #[default]
    Line,
    /// Joined by a thin grey line that is not in the legend.
    Guide,
    /// Dots with error bars: plus and minus the value of the same index.
    Spread(Vec<f64>),
    /// The name of the line, as a text at each point instead of the legend.
    Name,
}

/// One set of axes with lines, to be drawn by [`line_charts`].
#[derive(Clone, Default)]
pub struct Chart<'a> {
    /// The title above the axes.
    pub title: &'a str,
    /// The quantity on the x axis, such as `epoch`.
    pub x_label: &'a str,
    /// The quantity on the y axis.
    pub y_label: &'a str,
    /// Scale of the x axis.
    pub x_scale: Scale,
    /// Scale of the y axis.
    pub y_scale: Scale,
    /// The lines.
    pub lines: Vec<Line<'a>>,
}

/// Draws charts in rows of two, each with its legend below, as SVG.
///
/// # Errors
/// Fails if the drawing library fails.
pub fn line_charts(charts: &[Chart]) -> Result<String> {
    let columns = charts.len().clamp(1, 2);
    let rows = charts.len().div_ceil(columns).max(1);
    let legend = ROW * charts.iter().map(|chart| legend_rows(chart).len()).max().unwrap_or(0) as u32;
    let size = (WIDTH * columns as u32, (HEIGHT + legend) * rows as u32);
    let mut svg = String::new();
    let page = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    page.fill(&WHITE).map_err(|error| anyhow!("line charts: {error}"))?;
    for (chart, area) in charts.iter().zip(page.split_evenly((rows, columns))) {
        draw_chart(chart, &area).map_err(|error| anyhow!("line charts: {}: {error}", chart.title))?;
    }
    page.present().map_err(|error| anyhow!("line charts: {error}"))?;
    drop(page);
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Axes<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Coordinate, Coordinate>>;
type DrawingResult<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The positions on an axis, as the drawing library needs them.
struct Coordinate {
    range: Range<f64>,
    ticks: Vec<f64>,
}

impl Coordinate {
    fn of(axis: &Axis) -> Self {
        Self { range: axis.low..axis.high, ticks: axis.ticks.clone() }
    }
}

impl Ranged for Coordinate {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, &position: &f64, (start, end): (i32, i32)) -> i32 {
        let share = (position - self.range.start) / (self.range.end - self.range.start);
        start + (share * f64::from(end - start)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { vec![] } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

fn draw_chart(chart: &Chart, area: &Area) -> DrawingResult<()> {
    let (upper, lower) = area.split_vertically(HEIGHT);
    let values = |of: fn(&Line) -> Vec<f64>| chart.lines.iter().flat_map(of).collect::<Vec<f64>>();
    // Texts need room beside the outermost points.
    let margin = if chart.lines.iter().any(|line| line.mark == Mark::Name) { 0.04 } else { 0.0 };
    let x =
        Axis::new(&chart.x_scale, &values(|line| line.points.iter().map(|point| point.0).collect()), margin);
    let y = Axis::new(&chart.y_scale, &values(heights), 0.06);
    let mut axes = ChartBuilder::on(&upper)
        .margin(14)
        .caption(chart.title, (FONT, 18).into_font().color(&INK))
        .x_label_area_size(44)
        .y_label_area_size(66)
        .build_cartesian_2d(Coordinate::of(&x), Coordinate::of(&y))?;
    axes.configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(225, 225, 225))
        .axis_style(RGBColor(118, 118, 118))
        .label_style((FONT, 13).into_font().color(&INK))
        .axis_desc_style((FONT, 14).into_font().color(&INK))
        .x_label_formatter(&|&at| x.label(at))
        .y_label_formatter(&|&at| y.label(at))
        .x_desc(chart.x_label)
        .y_desc(chart.y_label)
        .draw()?;
    for (line, color) in colored(chart) {
        draw_line(line, color, (&x, &y), &mut axes)?;
    }
    draw_legend(chart, &lower)
}

/// The values that the y axis covers, with the ends of error bars.
fn heights(line: &Line) -> Vec<f64> {
    let values = line.points.iter().map(|point| point.1);
    match &line.mark {
        Mark::Spread(spread) => {
            values.zip(spread).flat_map(|(value, spread)| [value - spread, value + spread]).collect()
        }
        _ => values.collect(),
    }
}

/// The lines with their colours.
fn colored<'a>(chart: &'a Chart<'a>) -> impl Iterator<Item = (&'a Line<'a>, RGBColor)> {
    let mut palette = PALETTE.iter().map(|&[r, g, b]| RGBColor(r, g, b)).cycle();
    let color = move |line: &Line| if line.mark == Mark::Guide { None } else { palette.next() };
    chart.lines.iter().map({
        let mut color = color;
        move |line| (line, color(line).unwrap_or(GREY))
    })
}

fn draw_line(line: &Line, color: RGBColor, (x, y): (&Axis, &Axis), axes: &mut Axes) -> DrawingResult<()> {
    let place = |&(across, up): &(f64, f64)| Some((x.position(across)?, y.position(up)?));
    let style = color.stroke_width(2).filled();
    match &line.mark {
        Mark::Line | Mark::Guide => {
            let style = if line.mark == Mark::Guide { color.stroke_width(1).filled() } else { style };
            let dotted = line.mark == Mark::Line && line.points.len() <= 40;
            let pieces = line.points.split(|point| place(point).is_none()).filter(|piece| !piece.is_empty());
            for piece in pieces {
                // A single point between two gaps has no line, so it needs a dot.
                let dots = if dotted || piece.len() == 1 { 3 } else { 0 };
                axes.draw_series(LineSeries::new(piece.iter().filter_map(place), style).point_size(dots))?;
            }
        }
        Mark::Spread(spread) => {
            for (&(across, up), spread) in line.points.iter().zip(spread) {
                let ends = [(across, up - spread), (across, up + spread)];
                axes.draw_series([PathElement::new(
                    ends.iter().filter_map(place).collect::<Vec<_>>(),
                    style,
                )])?;
                axes.draw_series(place(&(across, up)).map(|at| Circle::new(at, 4, style)))?;
            }
        }
        Mark::Name => {
            let style = (FONT, 11).into_font().color(&color).pos(Pos::new(HPos::Center, VPos::Center));
            let text = |point| place(point).map(|at| Text::new(line.name.to_owned(), at, style.clone()));
            axes.draw_series(line.points.iter().filter_map(text))?;
        }
    }
    Ok(())
}

/// The lines of each row of the legend.
fn legend_rows<'a>(chart: &'a Chart<'a>) -> Vec<Vec<(&'a Line<'a>, RGBColor)>> {
    let mut rows: Vec<Vec<_>> = vec![];
    let mut left = 0.0;
    let is_listed = |line: &Line| !line.name.is_empty() && !matches!(line.mark, Mark::Guide | Mark::Name);
    for (line, color) in colored(chart).filter(|(line, _)| is_listed(line)) {
        let width = SAMPLE + text_width(line.name, f64::from(LEGEND));
        if rows.is_empty() || left + width > f64::from(WIDTH - 80) {
            rows.push(vec![]);
            left = 0.0;
        }
        left += width;
        if let Some(row) = rows.last_mut() {
            row.push((line, color));
        }
    }
    rows
}

fn draw_legend(chart: &Chart, area: &Area) -> DrawingResult<()> {
    let font = (FONT, LEGEND).into_font().color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
    for (row, lines) in legend_rows(chart).iter().enumerate() {
        let (mut x, y) = (80.0, (ROW * row as u32) as i32 + 8);
        for (line, color) in lines {
            let left = x as i32;
            area.draw(&PathElement::new([(left, y), (left + 22, y)], color.stroke_width(2)))?;
            area.draw(&Text::new(line.name.to_owned(), (left + 28, y), font.clone()))?;
            x += SAMPLE + text_width(line.name, f64::from(LEGEND));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::svg::tests::assert_well_formed;
    use super::*;

    fn chart<'a>(title: &'a str, points: &[&[(f64, f64)]]) -> Chart<'a> {
        let lines = points.iter().map(|points| Line::new("<a & b>", points.to_vec())).collect();
        Chart { title, x_label: "epoch", y_label: "loss", lines, ..Chart::default() }
    }

    #[test]
    fn any_points_are_drawn() -> Result<()> {
        let (nan, inf) = (f64::NAN, f64::INFINITY);
        let cases: [&[&[(f64, f64)]]; 10] = [
            &[],
            &[&[]],
            &[&[(1.0, 0.3)]],
            &[&[(1.0, nan)], &[(1.0, inf), (2.0, -inf)]],
            &[&[(1.0, 2.0), (2.0, nan), (3.0, 1.0), (4.0, 0.5)], &[(1.0, 1.0), (2.0, inf)]],
            &[&[(1.0, 0.5), (2.0, 0.5), (3.0, 0.5)]],
            &[&[(1.0, 0.0), (2.0, 0.0)]],
            &[&[(1.0, 1e30), (2.0, 1e-30), (3.0, -1e38), (4.0, 1e300)]],
            &[&[(1.0, 1e15), (2.0, 1e15 + 0.125)]],
            &[&[(0.0, 1e-12), (1_000_000.0, 2e-12)]],
        ];
        for case in cases {
            assert_well_formed(&line_charts(&[chart("x < y", case), chart("", case)])?);
        }
        assert_well_formed(&line_charts(&[])?);
        Ok(())
    }

    #[test]
    fn a_line_is_drawn_between_its_gaps_and_named_in_the_legend() -> Result<()> {
        let svg =
            line_charts(&[chart("", &[&[(1.0, 3.0), (2.0, 2.0), (3.0, f64::NAN), (4.0, 1.0), (5.0, 0.5)]])])?;
        // Two pieces, and the sample in the legend.
        assert_eq!(svg.matches(r##"stroke="#0072B2" stroke-width="2""##).count(), 3);
        assert_eq!(svg.matches("<circle").count(), 4);
        assert!(svg.contains("&lt;a &amp; b&gt;") && svg.contains("epoch"));
        Ok(())
    }
}
