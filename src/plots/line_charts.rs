//! Lines over epochs or steps.

use super::{FONT, spread};
use anyhow::{Result, anyhow};
use plotters::prelude::*;

/// One line of a [`Chart`]: a value an epoch, or whatever the panel counts.
pub struct Line<'a> {
    pub name: &'a str,
    /// `(x, value)` in order; a value that is NaN or infinite leaves a gap.
    pub points: Vec<(usize, f64)>,
}

/// One set of axes in the picture of [`line_charts`].
pub struct Chart<'a> {
    pub title: &'a str,
    /// What is counted along the x axis: `epoch`.
    pub x_label: &'a str,
    pub y_label: &'a str,
    pub lines: Vec<Line<'a>>,
}

/// The panels side by side.
///
/// # Errors
/// When the drawing library fails.
pub fn line_charts(panels: &[Chart]) -> Result<String> {
    const WIDTH: u32 = 560;
    const HEIGHT: u32 = 380;
    let columns = panels.len().max(1);
    let mut svg = String::new();
    let page = SVGBackend::with_string(&mut svg, (WIDTH * columns as u32, HEIGHT)).into_drawing_area();
    page.fill(&WHITE).map_err(|error| anyhow!("curves: {error}"))?;
    for (panel, area) in panels.iter().zip(page.split_evenly((1, columns))) {
        draw_panel(panel, &area).map_err(|error| anyhow!("curves: {}: {error}", panel.title))?;
    }
    page.present().map_err(|error| anyhow!("curves: {error}"))?;
    drop(page);
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw_panel(panel: &Chart, area: &Area) -> Result<(), Box<dyn std::error::Error>> {
    const PALETTE: [RGBColor; 6] = [
        RGBColor(0, 114, 178),
        RGBColor(213, 94, 0),
        RGBColor(0, 158, 115),
        RGBColor(204, 121, 167),
        RGBColor(230, 159, 0),
        RGBColor(86, 180, 233),
    ];
    let ink = RGBColor(0x22, 0x22, 0x22);
    let drawn: Vec<(i64, f64)> =
        panel.lines.iter().flat_map(|curve| &curve.points).filter_map(drawable).collect();
    let (first, last) = match drawn.iter().map(|point| point.0).fold(None, spread) {
        None => (0, 1),
        Some((first, last)) if first == last => (first - 1, last + 1),
        Some(ends) => ends,
    };
    let (low, high) = drawn.iter().map(|point| point.1).fold(None, spread).unwrap_or((0.0, 1.0));
    let greatest = low.abs().max(high.abs());
    let constant = high - low <= 1e-6 * greatest;
    let room = if constant { (0.02 * greatest).max(1e-6) } else { 0.06 * (high - low) };
    let (low, high) = (low - room, high + room);

    let mut chart = ChartBuilder::on(area)
        .margin(14)
        .caption(panel.title, (FONT, 18).into_font().color(&ink))
        .x_label_area_size(44)
        .y_label_area_size(66)
        .build_cartesian_2d(first..last, low..high)?;
    let digits = (1.0 - ((high - low) / 5.0).log10()).clamp(0.0, 8.0) as usize;
    let tick = |y: &f64| if greatest < 1e5 { format!("{y:.digits$}") } else { format!("{y:.1e}") };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(225, 225, 225))
        .axis_style(RGBColor(118, 118, 118))
        .label_style((FONT, 13).into_font().color(&ink))
        .axis_desc_style((FONT, 14).into_font().color(&ink))
        .x_labels(10)
        .y_labels(7)
        .y_label_formatter(&tick)
        .x_desc(panel.x_label)
        .y_desc(panel.y_label)
        .draw()?;

    let marks = if last - first <= 40 { 3 } else { 0 };
    for (curve, color) in panel.lines.iter().zip(PALETTE.iter().cycle()) {
        let style = color.stroke_width(2).filled();
        let pieces = curve.points.split(|point| drawable(point).is_none()).filter(|piece| !piece.is_empty());
        for piece in pieces {
            // A point between two gaps has no line to be seen by.
            let marks = if piece.len() == 1 { 3 } else { marks };
            chart.draw_series(LineSeries::new(piece.iter().filter_map(drawable), style).point_size(marks))?;
        }
        // The name belongs to all the pieces, even when there are none.
        chart
            .draw_series(std::iter::empty::<Circle<(i64, f64), i32>>())?
            .label(curve.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
    }
    let corner = emptiest_corner(&drawn, (first, last), (low, high));
    chart
        .configure_series_labels()
        .position(corner)
        .label_font((FONT, 14).into_font().color(&ink))
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(200, 200, 200))
        .margin(8)
        .draw()?;
    Ok(())
}

fn drawable(&(epoch, value): &(usize, f64)) -> Option<(i64, f64)> {
    (value.abs() <= f64::from(f32::MAX)).then_some((epoch as i64, value))
}

/// The corner of the axes where the fewest points lie, for the legend.
fn emptiest_corner(points: &[(i64, f64)], x: (i64, i64), y: (f64, f64)) -> SeriesLabelPosition {
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
