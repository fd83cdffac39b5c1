//! Plots of a run as SVG: latency and throughput over message size, CPU per GB.

use super::record::{Run, Subject, Summary};
use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

const SIZE: (u32, u32) = (900, 520);
/// Told apart by people who see few colours as well; one for each path, in the order of the run.
pub(super) const COLOURS: [RGBColor; 13] = [
    RGBColor(0, 0, 0),
    RGBColor(153, 153, 153),
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(120, 94, 240),
    RGBColor(100, 70, 40),
    RGBColor(170, 20, 70),
    RGBColor(150, 190, 0),
    RGBColor(255, 120, 90),
];

struct Line {
    name: String,
    colour: RGBColor,
    dashed: bool,
    points: Vec<(f64, f64)>,
}

/// Writes all plots that the run has figures for; their files' names and what they show.
///
/// # Errors
/// When a file cannot be written.
pub fn write(run: &Run, dir: &Path) -> Result<Vec<(String, String)>> {
    let summaries = run.summaries();
    let mut files = Vec::new();
    let mut over_size = |file: &str, job: &str, metrics: &[&str], title: &str, unit: &str| {
        let lines = lines(run, &summaries, job, metrics);
        if lines.iter().all(|line| line.points.len() < 2) {
            return Ok(());
        }
        draw_lines(&dir.join(file), title, unit, &lines)
            .map_err(|error| anyhow!("{error}"))
            .with_context(|| format!("draw {file}"))?;
        files.push((file.to_owned(), title.to_owned()));
        anyhow::Ok(())
    };
    let latency = "One-way latency over message size: median (solid), 99th percentile (dashed)";
    over_size("latency.svg", "ping-pong", &["p50", "p99"], latency, "µs")?;
    let throughput = "Throughput of one stream over message size";
    over_size("throughput.svg", "throughput", &["throughput"], throughput, "Gbit/s")?;
    let bars = bars(run, &summaries);
    if !bars.is_empty() {
        let title = "CPU seconds per GB, both nodes together";
        draw_bars(&dir.join("cpu.svg"), title, &bars)
            .map_err(|error| anyhow!("{error}"))
            .context("draw cpu.svg")?;
        files.push(("cpu.svg".to_owned(), title.to_owned()));
    }
    Ok(files)
}

type Summaries = BTreeMap<(Subject, String), Summary>;

fn colour(run: &Run, path: &str) -> RGBColor {
    let index = run.paths.iter().position(|other| other == path).unwrap_or(0);
    COLOURS[index % COLOURS.len()]
}

fn lines(run: &Run, summaries: &Summaries, job: &str, metrics: &[&str]) -> Vec<Line> {
    let mut lines = Vec::new();
    for path in &run.paths {
        for (index, metric) in metrics.iter().enumerate() {
            let about = |subject: &Subject| subject.0 == job && subject.2 == *metric;
            let points = summaries
                .iter()
                .filter(|((subject, of), _)| of == path && about(subject))
                .filter_map(|((subject, _), summary)| {
                    subject.1.map(|bytes| (f64::from(bytes), summary.median))
                })
                .collect();
            let colour = colour(run, path);
            lines.push(Line { name: path.clone(), colour, dashed: index > 0, points });
        }
    }
    lines
}

/// A range that holds all values, with some room, for a logarithmic axis.
fn range(values: impl Iterator<Item = f64> + Clone) -> Range<f64> {
    let low = values.clone().fold(f64::INFINITY, f64::min);
    let high = values.fold(0.0, f64::max);
    low.max(1e-6) * 0.7..high.max(1e-6) * 1.5
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

fn sheet<'a>(
    path: &'a Path,
) -> Result<DrawingArea<SVGBackend<'a>, Shift>, Box<dyn std::error::Error>> {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    // A background of its own: pages may be dark.
    area.fill(&WHITE)?;
    Ok(area)
}

fn draw_lines(path: &Path, title: &str, unit: &str, lines: &[Line]) -> Drawn {
    let area = sheet(path)?;
    let points = lines.iter().flat_map(|line| &line.points);
    let x = range(points.clone().map(|point| point.0));
    let y = range(points.map(|point| point.1));
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(x.log_scale().base(4.0), y.log_scale())?;
    chart
        .configure_mesh()
        .x_desc("message size")
        .y_desc(unit)
        .x_label_formatter(&|bytes| size(*bytes))
        .y_label_formatter(&|value| short(*value))
        .light_line_style(RGBColor(240, 240, 240))
        .draw()?;
    for line in lines.iter().filter(|line| !line.points.is_empty()) {
        let style = line.colour.stroke_width(2);
        let points = line.points.iter().copied();
        if line.dashed {
            chart.draw_series(DashedLineSeries::new(points, 5, 4, line.colour.stroke_width(1)))?;
            continue;
        }
        let colour = line.colour;
        chart
            .draw_series(LineSeries::new(points.clone(), style).point_size(2))?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(200, 200, 200))
        .draw()?;
    area.present()?;
    Ok(())
}

struct Bar {
    name: String,
    colour: RGBColor,
    /// For one stream and for eight.
    values: [f64; 2],
}

const BULK_JOBS: [&str; 2] = ["iperf3, 1 stream", "iperf3, 8 streams"];

fn bars(run: &Run, summaries: &Summaries) -> Vec<Bar> {
    let value = |path: &String, job: &str| {
        let subject = (job.to_owned(), None, "CPU per GB".to_owned());
        summaries.get(&(subject, path.clone())).map_or(0.0, |summary| summary.median)
    };
    run.paths
        .iter()
        .map(|path| Bar {
            name: path.clone(),
            colour: colour(run, path),
            values: BULK_JOBS.map(|job| value(path, job)),
        })
        .filter(|bar| bar.values.iter().any(|value| *value > 0.0))
        .collect()
}

fn draw_bars(path: &Path, title: &str, bars: &[Bar]) -> Drawn {
    let area = sheet(path)?;
    let highest = bars.iter().flat_map(|bar| bar.values).fold(0.0, f64::max);
    let count = i32::try_from(bars.len())?;
    let width = f64::from(count);
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..width, 0.0..highest * 1.15)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .max_light_lines(1)
        .y_desc("CPU s per GB (left bar: 1 stream, right bar: 8 streams)")
        .draw()?;
    for (number, bar) in (0..).zip(bars) {
        for (index, value) in (0..).zip(bar.values) {
            let left = f64::from(number) + 0.14 + 0.36 * f64::from(index);
            let fill = bar.colour.mix(if index == 0 { 1.0 } else { 0.55 }).filled();
            let corners = [(left, 0.0), (left + 0.34, value)];
            chart.draw_series([Rectangle::new(corners, fill)])?;
            let label = Text::new(
                format!("{value:.2}"),
                (left, value + highest * 0.04),
                ("sans-serif", 12),
            );
            chart.draw_series([label])?;
        }
        // Long names in two lines, or they run into the next.
        let (first, second) = bar.name.split_once('-').unwrap_or((&bar.name, ""));
        let (x, y) = chart.backend_coord(&(f64::from(number) + 0.14, 0.0));
        for (below, part) in [(6, first), (20, second)] {
            area.draw(&Text::new(part, (x, y + below), ("sans-serif", 12)))?;
        }
    }
    area.present()?;
    Ok(())
}

/// Bytes in the largest unit that fits.
#[must_use]
pub fn size(bytes: f64) -> String {
    match bytes {
        b if b >= 999_424.0 => format!("{:.0} MiB", b / 1_048_576.0),
        b if b >= 1024.0 => format!("{:.0} KiB", b / 1024.0),
        b => format!("{b:.0} B"),
    }
}

fn short(value: f64) -> String {
    if value >= 10.0 { format!("{value:.0}") } else { format!("{value}") }
}
