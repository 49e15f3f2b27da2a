//! The cost curve as a picture: one small chart for each figure, over the size of the mesh, both axes logarithmic. Written by
//! hand, since three points and two axes need no library.

use std::fmt::Write as _;

use crate::figures::Figure;

const COLUMNS: usize = 4;
const WIDTH: f64 = 270.0;
const HEIGHT: f64 = 190.0;
const LEFT: f64 = 48.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 30.0;

/// What is aimed at with a million workloads, drawn as a line.
const TARGETS: [(&str, f64); 10] = [
    ("bytes_per_workload", 400.0),
    ("build_s", 4.0),
    ("change_p99_us", 20.0),
    ("generation_kib", 16.0),
    ("addr_hot_ns", 150.0),
    ("addr_cold_ns", 600.0),
    ("host_hot_ns", 250.0),
    ("host_cold_ns", 900.0),
    ("vip_hot_ns", 1_000.0),
    ("vip_cold_ns", 2_000.0),
];

/// An SVG of all figures of meshes of several sizes.
pub(crate) fn svg(curve: &[(u32, Vec<Figure>)]) -> String {
    let names: Vec<&str> =
        curve.first().map(|(_, figures)| figures.iter().map(|(name, _)| &**name).collect()).unwrap_or_default();
    let rows = names.len().div_ceil(COLUMNS);
    let (width, height) = (COLUMNS as f64 * WIDTH, rows as f64 * HEIGHT);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (at, name) in names.iter().enumerate() {
        let points: Vec<(f64, f64)> =
            curve.iter().map(|(workloads, figures)| (f64::from(*workloads), figures[at].1)).collect();
        let (x, y) = ((at % COLUMNS) as f64 * WIDTH, (at / COLUMNS) as f64 * HEIGHT);
        let _ = writeln!(out, "<g transform=\"translate({x} {y})\">{}</g>", chart(name, &points));
    }
    out + "</svg>\n"
}

fn chart(name: &str, points: &[(f64, f64)]) -> String {
    let target = TARGETS.iter().find(|(of, _)| *of == name).map(|(_, target)| *target);
    let (x_low, x_high) = range(points.iter().map(|(x, _)| *x));
    let (y_low, y_high) = range(points.iter().map(|(_, y)| *y).chain(target));
    // Room for what is written above the highest point and below the lowest one.
    let (y_low, y_high) = (y_low - 0.15, y_high.max(y_low + 1.0) + 0.3);
    let across = |x: f64| LEFT + (x.log10() - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT - 24.0) + 12.0;
    let up = |y: f64| HEIGHT - BOTTOM - (log(y) - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM);
    let right = WIDTH - RIGHT;
    let mut out = format!("<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{name}</text>", TOP - 10.0);
    for decade in y_low.ceil() as i32..=y_high.floor() as i32 {
        let value = 10_f64.powi(decade);
        let at = up(value);
        let _ = write!(
            out,
            "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#666\">{value}</text>",
            LEFT - 5.0,
            at + 4.0
        );
    }
    if let Some(target) = target {
        let at = up(target);
        let _ = write!(
            out,
            "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\" stroke=\"#c30\" stroke-dasharray=\"4 3\"/>\
             <text x=\"{}\" y=\"{:.1}\" fill=\"#c30\">{target}</text>",
            // Between the first two points, where no other number is.
            LEFT + 48.0,
            at - 3.0
        );
    }
    let line: Vec<String> = points.iter().map(|(x, y)| format!("{:.1},{:.1}", across(*x), up(*y))).collect();
    let _ = write!(out, "<polyline points=\"{}\" fill=\"none\" stroke=\"#06c\" stroke-width=\"2\"/>", line.join(" "));
    for (at, (x, y)) in points.iter().enumerate() {
        let (left, top) = (across(*x), up(*y));
        // The first and the last would reach out of the picture.
        let (anchor, aside) = match at {
            0 => ("start", -6.0),
            _ if at + 1 == points.len() => ("end", 8.0),
            _ => ("middle", 0.0),
        };
        let _ = write!(
            out,
            "<circle cx=\"{left:.1}\" cy=\"{top:.1}\" r=\"3\" fill=\"#06c\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" stroke=\"white\" stroke-width=\"3\" \
             paint-order=\"stroke\">{}</text>\
             <text x=\"{left:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#666\">{}</text>",
            left + aside,
            // Below the target's line when it would be written through it.
            if target.is_some_and(|target| (top - 10.0 - up(target)).abs() < 8.0) { top + 16.0 } else { top - 7.0 },
            significant(*y),
            HEIGHT - BOTTOM + 16.0,
            if *x >= 1e6 { format!("{}M", x / 1e6) } else { format!("{}k", x / 1e3) }
        );
    }
    out
}

/// From the lowest to the highest, as powers of ten.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.map(log).fold((f64::MAX, f64::MIN), |(low, high), log| (low.min(log), high.max(log)))
}

fn log(value: f64) -> f64 {
    value.max(1e-3).log10()
}

/// With three digits that tell something.
fn significant(value: f64) -> String {
    let decimals = (2 - value.max(1e-3).log10().floor() as i32).max(0) as usize;
    format!("{value:.decimals$}")
}
