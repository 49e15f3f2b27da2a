//! What a pair of a local and a remote workload costs: memory and CPU of the whole configuration, and CPU of one endpoint that
//! changes, over a grid of both, and the plane through it.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use testbed::mesh::{NodeId, PodSpec};

use crate::stage::Stage;
use crate::tell;
use crate::world::{World, response};

/// A place in the grid.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Point {
    pub(crate) local: u32,
    pub(crate) remote: u32,
    pub(crate) bytes: f64,
    /// From the start of the daemon until it had all.
    pub(crate) whole: Duration,
    pub(crate) change: Duration,
}

/// Of the daemon, or of the node proxy whose binary is given.
pub(crate) fn measure(peer: Option<&Path>, locals: &[u32], remotes: &[u32], changes: u32) -> Result<Vec<Point>> {
    let mut stage = Stage::start_with(peer, &[PodSpec::new("local-0", NodeId::A)], &[])?;
    let (mut points, mut pods) = (Vec::new(), 1);
    for &local in locals {
        while pods < local {
            stage.add_pod(&format!("local-{pods}"))?;
            pods += 1;
        }
        for &remote in remotes {
            let world = World { workloads: remote };
            stage.xds().record(world.encoded(0));
            stage.restart()?;
            let (bytes, whole) = (stage.memory("RssAnon")?, stage.cpu()?);
            let change = one_change(&stage, world, changes)?;
            tell(&format!(
                "{local} local x {remote} remote: {:.1} MB, {:.0} ms of CPU for all, {:.0} us for a change",
                bytes / 1e6,
                whole.as_secs_f64() * 1e3,
                change.as_secs_f64() * 1e6
            ));
            points.push(Point { local, remote, bytes, whole, change });
        }
    }
    Ok(points)
}

/// CPU of one change, as the mean of some that are so far apart that each is a generation.
fn one_change(stage: &Stage, world: World, changes: u32) -> Result<Duration> {
    const APART: Duration = Duration::from_millis(40);
    let idle_before = stage.cpu()?;
    std::thread::sleep(APART * changes);
    let before = stage.cpu()?;
    for number in 0..changes {
        let resource = world.workload(number % world.workloads, 2 + number);
        stage.xds().send(&response(vec![resource], number.into()));
        std::thread::sleep(APART);
    }
    let spent = stage.cpu()? - before;
    Ok(spent.saturating_sub(before - idle_before) / changes)
}

/// Bytes that each pair adds beyond what its two members take: d of the plane bytes = a + b local + c remote + d local remote
/// that fits best.
pub(crate) fn bytes_per_pair(points: &[Point]) -> f64 {
    let rows: Vec<[f64; 5]> = points
        .iter()
        .map(|point| {
            let (local, remote) = (f64::from(point.local), f64::from(point.remote));
            [1.0, local, remote, local * remote, point.bytes]
        })
        .collect();
    // The normal equations, with the wanted side as the last column.
    let mut equations = [[0.0; 5]; 4];
    for (i, equation) in equations.iter_mut().enumerate() {
        for (j, cell) in equation.iter_mut().enumerate() {
            *cell = rows.iter().map(|row| row[i] * row[j]).sum();
        }
    }
    solved(equations)[3]
}

/// Gauss and Jordan, with the largest pivot.
fn solved(mut equations: [[f64; 5]; 4]) -> [f64; 4] {
    for column in 0..4 {
        let pivot = (column..4)
            .max_by(|one, other| equations[*one][column].abs().total_cmp(&equations[*other][column].abs()))
            .expect("there are rows left");
        equations.swap(column, pivot);
        let pivot_row = equations[column].map(|cell| cell / equations[column][column]);
        for (row, equation) in equations.iter_mut().enumerate() {
            if row == column {
                *equation = pivot_row;
            } else {
                let factor = equation[column];
                equation.iter_mut().zip(pivot_row).for_each(|(cell, pivot)| *cell -= factor * pivot);
            }
        }
    }
    equations.map(|equation| equation[4])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_is_that_of_the_pairs_and_not_of_their_members() {
        let grid = [1, 10, 50].iter().flat_map(|local| [100, 1_000, 2_000].map(|remote| (*local, remote)));
        for per_pair in [0.0, 48.0, 89_200.0] {
            let points: Vec<Point> = grid
                .clone()
                .map(|(local, remote)| {
                    let bytes = 2e7
                        + 30_000.0 * f64::from(local)
                        + 900.0 * f64::from(remote)
                        + per_pair * f64::from(local * remote);
                    Point { local, remote, bytes, whole: Duration::ZERO, change: Duration::ZERO }
                })
                .collect();
            let found = bytes_per_pair(&points);
            assert!((found - per_pair).abs() < 0.01 + per_pair / 1e6, "{per_pair}: {found}");
        }
    }
}
