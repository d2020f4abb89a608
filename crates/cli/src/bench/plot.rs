//! Draws two charts in one SVG: latency by percentile, and throughput over time.

use std::fmt::Write as _;

use super::report::{Curve, Report};

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 760.0;
/// Left and right edge of the charts.
const LEFT: f64 = 80.0;
const RIGHT: f64 = 780.0;
const CHART_HEIGHT: f64 = 270.0;
/// A palette that people with colour blindness can distinguish (Okabe and Ito).
const COLOURS: [&str; 7] =
    ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"];

/// One chart.
struct Chart<'a> {
    top: f64,
    title: &'a str,
    /// Marks of the axes: position from 0 to 1, and text.
    x_marks: Vec<(f64, String)>,
    y_marks: Vec<(f64, String)>,
    /// Lines; the coordinates of points are from 0 to 1.
    lines: Vec<Vec<(f64, f64)>>,
}

/// Draws a report.
pub(super) fn svg(report: &Report) -> String {
    let curves: Vec<&Curve> = report.runs.iter().map(|run| &run.curve).collect();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    text(&mut svg, LEFT, 30.0, "start", &report.title());
    draw(&mut svg, &latency(&curves));
    draw(&mut svg, &throughput(&curves));
    for (at, run) in report.runs.iter().enumerate() {
        let y = 90.0 + 18.0 * at as f64;
        line(&mut svg, &[(RIGHT + 12.0, y - 4.0), (RIGHT + 32.0, y - 4.0)], colour(at), 2.0);
        text(&mut svg, RIGHT + 38.0, y, "start", &format!("{} callers", run.callers));
    }
    svg.push_str("</svg>\n");
    svg
}

/// Percentiles are placed by their number of nines and latencies by powers of ten, to show the
/// tail.
fn latency(curves: &[&Curve]) -> Chart<'static> {
    let nines = |part: f64| -(1.0 - part).log10();
    let points = || curves.iter().flat_map(|curve| &curve.latency);
    let nines_max = points().map(|(part, _)| nines(*part)).fold(1.0, f64::max);
    let exponent = |ms: f64| ms.max(1e-6).log10();
    let low = points().map(|(_, ms)| exponent(*ms)).fold(f64::INFINITY, f64::min);
    let low = if low.is_finite() { low.floor() } else { 0.0 };
    let high = points().map(|(_, ms)| exponent(*ms)).fold(low + 1.0, f64::max).ceil();
    let percentiles = ["0", "90", "99", "99.9", "99.99", "99.999", "99.9999", "99.99999"];
    let x_marks = percentiles
        .iter()
        .enumerate()
        .map(|(at, word)| (at as f64 / nines_max, format!("{word} %")));
    let y_marks = (low as i32..=high as i32).map(|power| {
        ((f64::from(power) - low) / (high - low), format!("{} ms", 10_f64.powi(power)))
    });
    let scale =
        |(part, ms): &(f64, f64)| (nines(*part) / nines_max, (exponent(*ms) - low) / (high - low));
    Chart {
        top: 70.0,
        title: "latency by percentile",
        x_marks: x_marks.filter(|(at, _)| *at <= 1.0).collect(),
        y_marks: y_marks.collect(),
        lines: curves.iter().map(|curve| curve.latency.iter().map(scale).collect()).collect(),
    }
}

fn throughput(curves: &[&Curve]) -> Chart<'static> {
    let points = || curves.iter().flat_map(|curve| &curve.throughput);
    let seconds = points().map(|(at, _)| *at).fold(1e-3, f64::max);
    let most = points().map(|(_, rate)| *rate).fold(1.0, f64::max) * 1.05;
    let quarters = || (0..=4).map(|quarter| f64::from(quarter) / 4.0);
    let scale = |(at, rate): &(f64, f64)| (at / seconds, rate / most);
    Chart {
        top: 420.0,
        title: "operations per second, over time",
        x_marks: quarters().map(|at| (at, format!("{:.1} s", at * seconds))).collect(),
        y_marks: quarters().map(|at| (at, format!("{:.0}/s", at * most))).collect(),
        lines: curves.iter().map(|curve| curve.throughput.iter().map(scale).collect()).collect(),
    }
}

fn draw(svg: &mut String, chart: &Chart<'_>) {
    let x = |at: f64| LEFT + at * (RIGHT - LEFT);
    let y = |at: f64| chart.top + CHART_HEIGHT * (1.0 - at);
    text(svg, LEFT, chart.top - 12.0, "start", chart.title);
    for (at, word) in &chart.x_marks {
        line(svg, &[(x(*at), y(0.0)), (x(*at), y(1.0))], "#ddd", 1.0);
        text(svg, x(*at), y(0.0) + 18.0, "middle", word);
    }
    for (at, word) in &chart.y_marks {
        line(svg, &[(x(0.0), y(*at)), (x(1.0), y(*at))], "#ddd", 1.0);
        text(svg, LEFT - 8.0, y(*at) + 4.0, "end", word);
    }
    for (at, points) in chart.lines.iter().enumerate() {
        let points: Vec<(f64, f64)> = points.iter().map(|(px, py)| (x(*px), y(*py))).collect();
        line(svg, &points, colour(at), 2.0);
    }
}

fn colour(at: usize) -> &'static str {
    COLOURS[at % COLOURS.len()]
}

fn line(svg: &mut String, points: &[(f64, f64)], colour: &str, width: f64) {
    let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    // Writing to a string cannot fail.
    writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/>",
        points.join(" ")
    )
    .ok();
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>").ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every element is closed, every number is finite, and every point lies in the picture.
    fn check(svg: &str, lines: usize) {
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert_eq!(svg.matches("<text ").count(), svg.matches("</text>").count());
        for element in svg.lines().filter(|line| line.starts_with("<polyline ")) {
            assert!(element.ends_with("/>") && element.matches('"').count() == 8, "{element}");
            let points = element.split('"').nth(1).unwrap();
            for point in points.split_whitespace() {
                let (x, y) = point.split_once(',').unwrap();
                assert!((0.0..=WIDTH).contains(&x.parse().unwrap()), "{element}");
                assert!((0.0..=HEIGHT).contains(&y.parse().unwrap()), "{element}");
            }
        }
        assert_eq!(svg.matches("stroke-width=\"2\"").count(), lines);
    }

    fn drawn(curves: &[Curve]) -> String {
        let curves: Vec<&Curve> = curves.iter().collect();
        let mut svg = "<svg >\n".to_owned();
        draw(&mut svg, &latency(&curves));
        draw(&mut svg, &throughput(&curves));
        svg + "</svg>\n"
    }

    #[test]
    fn a_picture_is_well_formed_and_every_point_lies_in_it() {
        let steep = Curve {
            latency: vec![(0.0, 0.000_3), (0.5, 1.2), (0.99, 80.0), (0.999_999, 30_000.0)],
            throughput: vec![(0.1, 0.0), (5.0, 1_250_000.0)],
        };
        let one = Curve { latency: vec![(0.0, 10.0)], throughput: vec![(1.0, 1.0)] };
        check(&drawn(&[steep, one]), 4);
    }

    #[test]
    fn nothing_measured_is_a_picture_too() {
        check(&drawn(&[Curve::default()]), 2);
        check(&drawn(&[]), 0);
    }

    #[test]
    fn words_cannot_break_out_of_their_element() {
        let mut svg = String::new();
        text(&mut svg, 1.0, 2.0, "end", "a < b & c > d");
        assert!(svg.contains(">a &lt; b &amp; c &gt; d</text>"), "{svg}");
    }
}
