//! The plot: throughput against latency, a line for each number of rows.

use std::ffi::OsStr;
use std::ops::Range;
use std::path::Path;

use anyhow::{Result, bail, ensure};
use plotters::prelude::*;

use crate::generator::report::{Latency, Report};

const SIZE: (u32, u32) = (960, 600);

const COLORS: [RGBColor; 6] = [
    RGBColor(0x1f, 0x77, 0xb4),
    RGBColor(0xd6, 0x27, 0x28),
    RGBColor(0x2c, 0xa0, 0x2c),
    RGBColor(0x94, 0x67, 0xbd),
    RGBColor(0xff, 0x7f, 0x0e),
    RGBColor(0x7f, 0x7f, 0x7f),
];

/// A percentile that is drawn.
struct Drawn {
    name: &'static str,
    /// How strong its color is.
    strength: f64,
    of: fn(&Latency) -> f64,
}

const DRAWN: [Drawn; 2] = [
    Drawn {
        name: "p50",
        strength: 1.0,
        of: |latency| latency.p50,
    },
    Drawn {
        name: "p99",
        strength: 0.4,
        of: |latency| latency.p99,
    },
];

/// Whether a plot can be written there, before anything is measured for it.
///
/// # Errors
/// If the name says another format, or the folder is not there.
pub fn check(path: &Path) -> Result<()> {
    ensure!(
        path.extension() == Some(OsStr::new("svg")),
        "--plot {}: the name has to end in .svg, which is all that is drawn",
        path.display()
    );
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        bail!(
            "--plot {}: the folder {} does not exist",
            path.display(),
            folder.display()
        );
    }
    Ok(())
}

/// Draws what was measured.
pub fn draw(path: &Path, reports: &[Report]) -> Result<()> {
    let mut svg = String::new();
    draw_into(&mut svg, reports)?;
    Ok(std::fs::write(path, svg)?)
}

/// A line: the points of one number of rows, at one percentile.
struct Line {
    name: String,
    color: RGBAColor,
    /// Rows a second, milliseconds.
    points: Vec<(f64, f64)>,
}

fn lines(reports: &[Report]) -> Vec<Line> {
    let mut lines = Vec::new();
    // Cases of the same rows were measured one after the other.
    let of_rows = reports.chunk_by(|a, b| a.case.rows == b.case.rows);
    for (reports, color) in of_rows.zip(COLORS.iter().cycle()) {
        for Drawn { name, strength, of } in DRAWN {
            let points = reports.iter().filter(|report| report.rows_per_s > 0.0);
            lines.push(Line {
                name: format!("{} rows, {name}", reports[0].case.rows),
                color: color.mix(strength),
                points: points
                    .map(|report| (report.rows_per_s, of(&report.latency_us) / 1e3))
                    .collect(),
            });
        }
    }
    lines
}

fn draw_into(svg: &mut String, reports: &[Report]) -> Result<()> {
    let lines = lines(reports);
    let points = || lines.iter().flat_map(|line| line.points.iter());
    // Sizes of requests differ by powers, and so do latencies before and past saturation.
    let width = span(points().map(|(rows, _)| *rows));
    let height = span(points().map(|(_, latency)| *latency));
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("Throughput and latency", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(width.log_scale(), height.log_scale())?;
    chart
        .configure_mesh()
        .max_light_lines(0)
        .bold_line_style(BLACK.mix(0.15))
        .label_style(("sans-serif", 13))
        .x_label_formatter(&|rows| format!("{rows}"))
        .y_label_formatter(&|latency| format!("{latency}"))
        .x_desc("rows a second")
        .y_desc("latency, ms")
        .draw()?;
    for Line {
        name,
        color,
        points,
    } in lines
    {
        chart
            .draw_series(LineSeries::new(points.iter().copied(), color))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
        let dots = points
            .into_iter()
            .map(|at| Circle::new(at, 3, color.filled()));
        chart.draw_series(dots)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .border_style(BLACK)
        .draw()?;
    root.present()?;
    Ok(())
}

/// From below the least to above the largest, and never empty.
fn span(numbers: impl Iterator<Item = f64>) -> Range<f64> {
    let ends = numbers.fold(None, |ends: Option<(f64, f64)>, number| {
        let number = number.max(1e-6);
        Some(ends.map_or((number, number), |(least, most)| {
            (least.min(number), most.max(number))
        }))
    });
    let (least, most) = ends.unwrap_or((1.0, 1.0));
    least / 1.5..most * 1.5
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation;

    #[test]
    fn a_line_for_each_number_of_rows_and_percentile_is_drawn() {
        let [mut one, other] = simulation::samples();
        one.case.rows = 1;
        let mut svg = String::new();
        draw_into(&mut svg, &[one.clone(), one, other]).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for word in [
            "1 rows, p50",
            "1 rows, p99",
            "10 rows, p50",
            "rows a second",
        ] {
            assert!(svg.contains(word), "{word}");
        }
        assert_eq!(svg.matches("<circle").count(), 6);
    }

    #[test]
    fn a_plot_of_nothing_is_empty_and_no_error() {
        let mut svg = String::new();
        draw_into(&mut svg, &[]).unwrap();
        assert!(svg.contains("</svg>"));
    }

    #[test]
    fn a_plot_that_cannot_be_written_is_told_before_the_work() {
        let wrong = |path: &str| check(Path::new(path)).unwrap_err().to_string();
        assert!(wrong("plot.png").contains(".svg"));
        assert!(wrong("no_such_folder/plot.svg").contains("does not exist"));
        assert!(check(Path::new("plot.svg")).is_ok());
    }
}
