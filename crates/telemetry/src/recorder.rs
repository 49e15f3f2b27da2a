//! Metric cells of one core, behind the `metrics` crate's [`Recorder`] as a value: no global, no lock.
//!
//! A cell has one writer, its core, and sits on a cache line of its own, so counting is a load and a store. A new series
//! is announced to the [`Exposition`](crate::exposition::Exposition), which reads the cells whenever it is asked.

use std::{
    cell::{Cell as Flag, RefCell},
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crossbeam_channel::{Receiver, Sender};
use metrics::{Counter, CounterFn, Gauge, GaugeFn, Histogram, Key, KeyName, Label, Metadata, Recorder, SharedString, Unit};

use crate::exposition::{Exposition, Kind};

/// Series one core may have; what comes after is summed in one series per family whose labels say `overflow`. Worst
/// case 64 bytes a cell and about 1.5 KiB of labels: 32 MiB per core.
pub const SERIES_MAX: usize = 20_000;

/// Announcements on their way. More are kept by the core and sent with the next ones.
const ANNOUNCEMENTS_MAX: usize = 4_096;

/// The recorders of `cores` cores and the page that reads them.
pub fn recorders(cores: usize) -> (Vec<CoreRecorder>, Exposition) {
    let (announce, announced) = crossbeam_channel::bounded(ANNOUNCEMENTS_MAX);
    let recorders = (0..cores).map(|_| CoreRecorder::new(announce.clone(), SERIES_MAX)).collect();
    (recorders, Exposition::new(announced))
}

/// What the exposition hears of.
pub(crate) type Announced = Receiver<Announcement>;

/// A series that has come into being on one core.
pub(crate) struct Announcement {
    pub(crate) kind: Kind,
    pub(crate) key: Key,
    pub(crate) cell: Arc<Cell>,
}

/// A number with one writer.
#[repr(align(64))]
#[derive(Debug, Default)]
pub(crate) struct Cell(AtomicU64);

impl Cell {
    pub(crate) fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Gauges are whole numbers here (connections, descriptors), kept in two's complement.
    fn step(&self, by: u64) {
        // One writer: a plain load and store cannot lose a count, and needs no locked instruction.
        self.0.store(self.read().wrapping_add(by), Ordering::Relaxed);
    }
}

impl CounterFn for Cell {
    fn increment(&self, value: u64) {
        self.step(value);
    }

    fn absolute(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "gauges here count things, in whole numbers")]
impl GaugeFn for Cell {
    fn increment(&self, value: f64) {
        self.step(value as i64 as u64);
    }

    fn decrement(&self, value: f64) {
        self.step((value as i64).wrapping_neg() as u64);
    }

    fn set(&self, value: f64) {
        self.0.store(value as i64 as u64, Ordering::Relaxed);
    }
}

/// The cells of one core. Made anywhere, then moved to its core for good.
pub struct CoreRecorder {
    announce: Sender<Announcement>,
    /// Announcements that found the channel full.
    late: RefCell<Vec<Announcement>>,
    series: RefCell<HashMap<Key, Arc<Cell>>>,
    series_max: usize,
    overflowed: Flag<bool>,
}

impl CoreRecorder {
    fn new(announce: Sender<Announcement>, series_max: usize) -> Self {
        Self {
            announce,
            late: RefCell::default(),
            series: RefCell::default(),
            series_max,
            overflowed: Flag::new(false),
        }
    }

    fn cell(&self, kind: Kind, key: &Key) -> Arc<Cell> {
        if let Some(cell) = self.series.borrow().get(key) {
            return cell.clone();
        }
        if self.series.borrow().len() >= self.series_max && !is_overflow(key) {
            if !self.overflowed.replace(true) {
                tracing::warn!(
                    series_max = self.series_max,
                    "this core has as many metric series as it may; new ones are summed as labels=overflow"
                );
            }
            return self.cell(kind, &overflow(key));
        }
        let cell = Arc::new(Cell::default());
        self.series.borrow_mut().insert(key.clone(), cell.clone());
        self.late.borrow_mut().push(Announcement { kind, key: key.clone(), cell: cell.clone() });
        self.tell();
        cell
    }

    /// Sends announcements as far as there is room.
    fn tell(&self) {
        let mut late = self.late.borrow_mut();
        while let Some(announcement) = late.pop() {
            if let Err(refused) = self.announce.try_send(announcement) {
                late.push(refused.into_inner());
                return;
            }
        }
    }
}

/// The series that stands for all that `key`'s family has no room for.
fn overflow(key: &Key) -> Key {
    let labels: Vec<Label> = key.labels().map(|label| Label::new(label.key().to_owned(), "overflow")).collect();
    Key::from_parts(key.name().to_owned(), labels)
}

fn is_overflow(key: &Key) -> bool {
    key.labels().all(|label| label.value() == "overflow")
}

impl Recorder for CoreRecorder {
    fn describe_counter(&self, _key: KeyName, _unit: Option<Unit>, _description: SharedString) {}

    fn describe_gauge(&self, _key: KeyName, _unit: Option<Unit>, _description: SharedString) {}

    fn describe_histogram(&self, _key: KeyName, _unit: Option<Unit>, _description: SharedString) {}

    fn register_counter(&self, key: &Key, _metadata: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.cell(Kind::Counter, key))
    }

    fn register_gauge(&self, key: &Key, _metadata: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.cell(Kind::Gauge, key))
    }

    /// No histogram is exposed yet; one that is registered counts nothing.
    fn register_histogram(&self, _key: &Key, _metadata: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[cfg(test)]
mod tests {
    use metrics::Level;

    use super::*;

    const METADATA: Metadata<'static> = Metadata::new("test", Level::INFO, None);

    fn key(value: &'static str) -> Key {
        Key::from_parts("things", vec![Label::new("which", value)])
    }

    fn recorder(series_max: usize, announcements_max: usize) -> (CoreRecorder, Announced) {
        let (announce, announced) = crossbeam_channel::bounded(announcements_max);
        (CoreRecorder::new(announce, series_max), announced)
    }

    #[test]
    fn one_series_has_one_cell_and_is_announced_once() {
        let (recorder, announced) = recorder(8, 8);
        recorder.register_counter(&key("a"), &METADATA).increment(2);
        recorder.register_counter(&key("a"), &METADATA).increment(3);
        let cells: Vec<u64> = announced.try_iter().map(|announcement| announcement.cell.read()).collect();
        assert_eq!(cells, [5]);
    }

    #[test]
    fn series_beyond_the_limit_are_summed_in_one_that_says_overflow() {
        let (recorder, announced) = recorder(1, 8);
        for which in ["a", "b", "c"] {
            recorder.register_counter(&key(which), &METADATA).increment(1);
        }
        let seen: Vec<(String, u64)> = announced
            .try_iter()
            .map(|one| (one.key.labels().next().expect("one label").value().to_owned(), one.cell.read()))
            .collect();
        assert_eq!(seen, [("a".to_owned(), 1), ("overflow".to_owned(), 2)]);
    }

    #[test]
    fn an_announcement_that_finds_the_channel_full_goes_with_the_next_one() {
        let (recorder, announced) = recorder(8, 1);
        for which in ["a", "b"] {
            recorder.register_counter(&key(which), &METADATA).increment(1);
        }
        assert_eq!(announced.try_iter().count(), 1);
        recorder.register_counter(&key("c"), &METADATA).increment(1);
        assert_eq!(announced.try_iter().count(), 1);
        recorder.register_gauge(&key("d"), &METADATA).increment(1.0);
        assert_eq!(announced.try_iter().count(), 1);
    }

    #[test]
    fn a_gauge_goes_up_and_down() {
        let (recorder, announced) = recorder(8, 8);
        let gauge = recorder.register_gauge(&key("open"), &METADATA);
        gauge.increment(3.0);
        gauge.decrement(1.0);
        assert_eq!(announced.try_recv().expect("announced").cell.read(), 2);
        gauge.set(7.0);
        gauge.decrement(7.0);
        assert!(announced.try_recv().is_err());
    }
}
