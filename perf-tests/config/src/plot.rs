//! The slope as a picture: memory and CPU over the pairs of local and remote workloads, ours beside Envoy's. Written by hand:
//! nine points and two axes need no library.

use std::fmt::Write as _;

use crate::slope::Point;

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 300.0;
const MARGIN: f64 = 56.0;

/// Of a pair of Envoys, measured with `gen_scale.py` (docs/decisions/0001-own-engine.md): bytes and milliseconds of CPU that
/// a pair of workloads adds.
const ENVOY_BYTES: f64 = 89_200.0;
const ENVOY_MS: f64 = 0.75;
/// And what one changed remote costs: 4.5 s at 10 x 1,000.
const ENVOY_CHANGE_MS: f64 = 0.45;

/// A chart of the memory and two of the CPU, all axes logarithmic, with the points of another proxy where it was measured.
pub(crate) fn svg(points: &[Point], beside: &[Point]) -> String {
    let pairs = |point: &Point| f64::from(point.local) * f64::from(point.remote);
    type Value = fn(&Point) -> f64;
    let values: [Value; 3] =
        [|point| point.bytes / 1e6, |point| point.whole.as_secs_f64() * 1e3, |point| point.change.as_secs_f64() * 1e3];
    let of = |points: &[Point], value: Value| -> Places {
        points.iter().map(|point| (pairs(point), value(point))).collect()
    };
    let line = |of: f64| points.iter().map(|point| (pairs(point), pairs(point) * of)).collect::<Vec<_>>();
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        WIDTH * 3.0
    );
    let charts = [
        ("memory, MB", line(ENVOY_BYTES / 1e6), "Envoy: 89.2 kB a pair"),
        ("CPU until all is there, ms", line(ENVOY_MS), "Envoy: 0.75 ms a pair"),
        ("CPU of one changed endpoint, ms", line(ENVOY_CHANGE_MS), "Envoy: 0.45 ms a pair"),
    ];
    for (number, ((name, envoy, envoys_name), value)) in charts.iter().zip(values).enumerate() {
        let x = number as f64 * WIDTH;
        let drawn = chart(name, &of(points, value), &of(beside, value), envoy, envoys_name);
        writeln!(out, "<g transform=\"translate({x} 0)\">{drawn}</g>").expect("a string takes everything");
    }
    out + "</svg>\n"
}

type Places = Vec<(f64, f64)>;

fn chart(name: &str, ours: &Places, beside: &Places, envoy: &Places, envoys_name: &str) -> String {
    let decades = |values: Vec<f64>| {
        let logs: Vec<f64> = values.into_iter().map(|value| value.max(1e-3).log10()).collect();
        let (low, high) = logs.iter().fold((f64::MAX, f64::MIN), |(low, high), log| (low.min(*log), high.max(*log)));
        (low.floor(), high.ceil().max(low.floor() + 1.0))
    };
    let all = || ours.iter().chain(beside).chain(envoy);
    let (x_low, x_high) = decades(all().map(|(x, _)| *x).collect());
    let (y_low, y_high) = decades(all().map(|(_, y)| *y).collect());
    let other = if beside.is_empty() { "" } else { "; orange: the other" };
    let place = |(x, y): &(f64, f64)| {
        let across = (x.log10() - x_low) / (x_high - x_low);
        let up = (y.max(1e-3).log10() - y_low) / (y_high - y_low);
        (MARGIN + across * (WIDTH - 2.0 * MARGIN), HEIGHT - MARGIN - up * (HEIGHT - 2.0 * MARGIN))
    };
    let mut out = format!(
        "<text x=\"{MARGIN}\" y=\"{}\" font-weight=\"bold\">{name}</text>\
         <text x=\"{MARGIN}\" y=\"{}\" fill=\"#666\">pairs: local x remote workloads; blue: coretunnel{other}; grey: {envoys_name}</text>\
         <rect x=\"{MARGIN}\" y=\"{MARGIN}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"#bbb\"/>",
        MARGIN - 12.0,
        HEIGHT - 14.0,
        WIDTH - 2.0 * MARGIN,
        HEIGHT - 2.0 * MARGIN
    );
    let mut put = |text: String| out.push_str(&text);
    for exponent in y_low as i32..=y_high as i32 {
        let (_, y) = place(&(10_f64.powf(x_low), 10_f64.powi(exponent)));
        put(format!("<text x=\"{}\" y=\"{y}\" text-anchor=\"end\" fill=\"#666\">1e{exponent}</text>", MARGIN - 4.0));
    }
    for exponent in x_low as i32..=x_high as i32 {
        let (x, _) = place(&(10_f64.powi(exponent), 1.0));
        put(format!(
            "<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\" fill=\"#666\">1e{exponent}</text>",
            HEIGHT - MARGIN + 14.0
        ));
    }
    for (points, colour) in [(envoy, "#999"), (beside, "#e80"), (ours, "#06c")] {
        for (x, y) in points.iter().map(place) {
            put(format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_point_is_in_each_chart_beside_envoys() {
        let point = |local, remote| Point {
            local,
            remote,
            bytes: 3e7,
            whole: Duration::from_millis(90),
            change: Duration::from_micros(400),
        };
        assert_eq!(svg(&[point(1, 100)], &[]).matches("#e80").count(), 0);
        let picture = svg(&[point(1, 100), point(50, 2_000)], &[point(1, 100)]);
        assert_eq!(picture.matches("fill=\"#06c\"").count(), 6);
        assert_eq!(picture.matches("fill=\"#999\"").count(), 6);
        assert_eq!(picture.matches("fill=\"#e80\"").count(), 3);
        assert!(!picture.contains("NaN") && picture.ends_with("</svg>\n"), "{picture}");
    }
}
