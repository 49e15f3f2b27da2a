//! The cost curve as a picture: one small chart for each figure, over the size of the mesh, both axes logarithmic. Written by
//! hand, since three points and two axes need no library.

use std::fmt::Write as _;

use crate::figures::Figure;

const COLUMNS: usize = 4;
const WIDTH: f64 = 240.0;
const HEIGHT: f64 = 170.0;
const MARGIN: f64 = 34.0;

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
    // Decades, at least one each way, so that a flat curve looks flat.
    let decades = |values: &mut dyn Iterator<Item = f64>| {
        let logs: Vec<f64> = values.map(|value| value.max(1e-3).log10()).collect();
        let (low, high) = logs.iter().fold((f64::MAX, f64::MIN), |(low, high), log| (low.min(*log), high.max(*log)));
        (low.floor(), high.ceil().max(low.floor() + 1.0))
    };
    let (x_low, x_high) = decades(&mut points.iter().map(|(x, _)| *x));
    let (y_low, y_high) = decades(&mut points.iter().map(|(_, y)| *y));
    let (inner_width, inner_height) = (WIDTH - 2.0 * MARGIN, HEIGHT - 2.0 * MARGIN);
    let place = |(x, y): &(f64, f64)| {
        let across = (x.log10() - x_low) / (x_high - x_low);
        let up = (y.max(1e-3).log10() - y_low) / (y_high - y_low);
        (MARGIN + across * inner_width, HEIGHT - MARGIN - up * inner_height)
    };
    let mut out = format!(
        "<text x=\"{MARGIN}\" y=\"{}\" font-weight=\"bold\">{name}</text>\
         <rect x=\"{MARGIN}\" y=\"{MARGIN}\" width=\"{inner_width}\" height=\"{inner_height}\" fill=\"none\" stroke=\"#bbb\"/>",
        MARGIN - 8.0
    );
    for (value, at) in [(y_low, HEIGHT - MARGIN), (y_high, MARGIN + 8.0)] {
        let _ =
            write!(out, "<text x=\"{}\" y=\"{at}\" text-anchor=\"end\" fill=\"#666\">1e{value}</text>", MARGIN - 3.0);
    }
    let places: Vec<(f64, f64)> = points.iter().map(place).collect();
    let line: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = write!(out, "<polyline points=\"{}\" fill=\"none\" stroke=\"#06c\" stroke-width=\"2\"/>", line.join(" "));
    for ((x, y), (workloads, value)) in places.iter().zip(points) {
        let _ = write!(
            out,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"#06c\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{value:.3}</text>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#666\">{}k</text>",
            y - 6.0,
            HEIGHT - MARGIN + 14.0,
            workloads / 1e3
        );
    }
    out
}
