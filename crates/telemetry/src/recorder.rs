//! Metric cells of one core, behind the `metrics` crate's [`Recorder`] as a value: no global, no lock.
//!
//! A cell has one writer, its core, and sits on a cache line of its own, so counting is a load and a store. A new series
//! is announced to the [`Exposition`], which reads the cells whenever it is asked. What the numbers look like on the page
//! is the exposition's business.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender};
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, SharedString, Unit,
};

use crate::exposition::{Exposition, Kind};

/// Series that all cores together may have; each core gets its share of them. What comes after is summed in one series
/// per family and core whose labels all say `overflow`, so that the pods that come and go on a node for a year neither
/// fill its memory nor make its page too large to be scraped. Worst case about 3 KiB each, half of it the page's text:
/// 96 MiB.
pub const SERIES_MAX: usize = 32_768;

/// A core's share of [`SERIES_MAX`] on a machine with very many cores.
const SERIES_PER_CORE_MIN: usize = 1_024;

/// Announcements on their way from all cores. More wait on their core: the page is the later for it, no count is lost.
/// Worst case 1.5 KiB each: 6 MiB.
const ANNOUNCEMENTS_MAX: usize = 4_096;

/// The recorders of `cores` cores, and the page that reads them.
pub fn recorders(cores: usize) -> (Vec<CoreRecorder>, Exposition) {
    let series_max = (SERIES_MAX / cores.max(1)).max(SERIES_PER_CORE_MIN);
    with_limits(cores, series_max, ANNOUNCEMENTS_MAX)
}

fn with_limits(cores: usize, series_max: usize, announcements_max: usize) -> (Vec<CoreRecorder>, Exposition) {
    let (announce, announced) = crossbeam_channel::bounded(announcements_max);
    let recorders = (0..cores).map(|core| CoreRecorder::new(core, announce.clone(), series_max)).collect();
    (recorders, Exposition::new(announced))
}

/// What the exposition hears of.
pub(crate) type Announced = Receiver<Announcement>;

/// News from a core for the exposition.
pub(crate) enum Announcement {
    /// A series has come into being.
    Series { kind: Kind, key: Key, cell: Arc<Cell> },
    /// What a family means.
    Help { family: KeyName, text: SharedString },
}

/// A number with one writer.
#[repr(align(64))]
#[derive(Debug, Default)]
pub(crate) struct Cell(AtomicU64);

impl Cell {
    /// May lag behind its writer by some nanoseconds.
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

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "gauges here count things, in whole numbers far below 2^53"
)]
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

/// The longest time that something of a core has taken since the daemon began: nothing is missed between two scrapes, and
/// when it was is seen where it rose. Only its core may write.
#[derive(Debug)]
pub struct Longest(Arc<Cell>);

impl Longest {
    /// It took so long this time.
    pub fn took(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        if nanos > self.0.read() {
            self.0.absolute(nanos);
        }
    }
}

/// The cells of one core. Made anywhere, then moved to its core for good; its handles must not leave that core either,
/// since a cell counts right for a single writer only.
pub struct CoreRecorder {
    core: usize,
    announce: Sender<Announcement>,
    /// Announcements that found the channel full, oldest first.
    late: RefCell<VecDeque<Announcement>>,
    series: RefCell<HashMap<Key, Arc<Cell>>>,
    series_max: usize,
    /// Lookups that were given an overflow series.
    overflowed: Arc<Cell>,
}

impl CoreRecorder {
    fn new(core: usize, announce: Sender<Announcement>, series_max: usize) -> Self {
        let recorder = Self {
            core,
            announce,
            late: RefCell::default(),
            series: RefCell::default(),
            series_max,
            overflowed: Arc::default(),
        };
        let name = "coretunnel_core_series_overflowed";
        let text = "Times that a connection was counted in an overflow series because the core had no room for its own";
        recorder.describe_counter(name.into(), None, text.into());
        let key = recorder.core_key(name);
        recorder.announce(Announcement::Series { kind: Kind::Counter, key, cell: recorder.overflowed.clone() });
        recorder
    }

    /// The longest time of something of this core, in seconds on the page, told from the other cores' by its one label,
    /// `core`.
    pub fn core_longest(&self, name: &'static str, help: &'static str) -> Longest {
        self.describe_gauge(name.into(), None, help.into());
        Longest(self.cell(Kind::Seconds, &self.core_key(name)))
    }

    /// Announces what found no room before. Costs nothing when there is nothing; call it now and then.
    pub fn catch_up(&self) {
        let mut late = self.late.borrow_mut();
        while let Some(announcement) = late.pop_front() {
            if let Err(refused) = self.announce.try_send(announcement) {
                late.push_front(refused.into_inner());
                return;
            }
        }
    }

    fn core_key(&self, name: &'static str) -> Key {
        Key::from_parts(name, vec![Label::new("core", self.core.to_string())])
    }

    fn cell(&self, kind: Kind, key: &Key) -> Arc<Cell> {
        if let Some(cell) = self.series.borrow().get(key) {
            return cell.clone();
        }
        if self.series.borrow().len() >= self.series_max && !is_overflow(key) {
            if self.overflowed.read() == 0 {
                tracing::warn!(
                    core = self.core,
                    series_max = self.series_max,
                    "this core has as many metric series as it may; further ones are summed with all labels overflow"
                );
            }
            self.overflowed.step(1);
            return self.cell(kind, &overflow(key));
        }
        let cell = Arc::new(Cell::default());
        self.series.borrow_mut().insert(key.clone(), cell.clone());
        self.announce(Announcement::Series { kind, key: key.clone(), cell: cell.clone() });
        cell
    }

    fn announce(&self, announcement: Announcement) {
        self.late.borrow_mut().push_back(announcement);
        self.catch_up();
    }

    fn describe(&self, family: KeyName, text: SharedString) {
        self.announce(Announcement::Help { family, text });
    }
}

/// The `metrics` crate wants to know who registers; nothing here does.
pub(crate) const METADATA: Metadata<'static> = Metadata::new("coretunnel", Level::INFO, None);

/// The series that stands for all that `key`'s family has no room for.
fn overflow(key: &Key) -> Key {
    let labels: Vec<Label> = key.labels().map(|label| Label::new(label.key().to_owned(), "overflow")).collect();
    Key::from_parts(key.name().to_owned(), labels)
}

/// A series without labels stands for itself: there is one per family.
fn is_overflow(key: &Key) -> bool {
    key.labels().all(|label| label.value() == "overflow")
}

impl Recorder for CoreRecorder {
    fn describe_counter(&self, family: KeyName, _unit: Option<Unit>, text: SharedString) {
        self.describe(family, text);
    }

    fn describe_gauge(&self, family: KeyName, _unit: Option<Unit>, text: SharedString) {
        self.describe(family, text);
    }

    /// No histogram is exposed: see [`CoreRecorder::register_histogram`].
    fn describe_histogram(&self, _family: KeyName, _unit: Option<Unit>, _text: SharedString) {}

    fn register_counter(&self, key: &Key, _metadata: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.cell(Kind::Counter, key))
    }

    fn register_gauge(&self, key: &Key, _metadata: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.cell(Kind::Gauge, key))
    }

    /// The page has counters and gauges only; a histogram counts nothing.
    fn register_histogram(&self, _key: &Key, _metadata: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(value: &'static str) -> Key {
        Key::from_parts("things", vec![Label::new("which", value)])
    }

    /// One core with room for `series_max` series, and what it announces.
    fn core(series_max: usize, announcements_max: usize) -> (CoreRecorder, Announced) {
        let (announce, announced) = crossbeam_channel::bounded(announcements_max);
        (CoreRecorder::new(0, announce, series_max), announced)
    }

    /// The announced series of the family `things`, by their label, with what they count.
    fn heard(announced: &Announced) -> Vec<(String, u64)> {
        let things = announced.try_iter().filter_map(|announcement| match announcement {
            Announcement::Series { key, cell, .. } if key.name() == "things" => {
                Some((key.labels().next().expect("one label").value().to_owned(), cell.read()))
            }
            Announcement::Series { .. } | Announcement::Help { .. } => None,
        });
        things.collect()
    }

    #[test]
    fn one_series_has_one_cell_and_is_announced_once() {
        let (recorder, announced) = core(8, 8);
        recorder.register_counter(&key("a"), &METADATA).increment(2);
        recorder.register_counter(&key("a"), &METADATA).increment(3);
        assert_eq!(heard(&announced), [("a".to_owned(), 5)]);
    }

    #[test]
    fn series_beyond_the_limit_are_summed_in_one_that_says_overflow_and_counted() {
        let (recorder, announced) = core(1, 8);
        for which in ["a", "b", "c", "a", "c"] {
            recorder.register_counter(&key(which), &METADATA).increment(1);
        }
        assert_eq!(heard(&announced), [("a".to_owned(), 2), ("overflow".to_owned(), 3)]);
        assert_eq!(recorder.overflowed.read(), 3);
    }

    #[test]
    fn each_core_has_its_share_of_the_series_and_a_large_machine_some_each() {
        for (cores, share) in [(1, 32_768), (2, 16_384), (128, 1_024)] {
            let (recorders, _page) = recorders(cores);
            assert_eq!(recorders.len(), cores);
            assert!(recorders.iter().all(|recorder| recorder.series_max == share), "{cores} cores");
        }
    }

    #[test]
    fn an_announcement_that_finds_the_channel_full_goes_when_there_is_room_again() {
        let (recorder, announced) = core(8, 1);
        // Its own counter and that counter's help went first and fill the channel.
        for which in ["a", "b"] {
            recorder.register_counter(&key(which), &METADATA).increment(1);
        }
        let mut all = Vec::new();
        for _ in 0..4 {
            all.extend(heard(&announced));
            recorder.catch_up();
        }
        assert_eq!(all, [("a".to_owned(), 1), ("b".to_owned(), 1)]);
        assert!(recorder.late.borrow().is_empty());
    }

    #[test]
    fn a_gauge_goes_up_down_and_below_nothing() {
        let (recorder, announced) = core(8, 8);
        let gauge = recorder.register_gauge(&key("open"), &METADATA);
        gauge.increment(3.0);
        gauge.decrement(1.0);
        assert_eq!(heard(&announced), [("open".to_owned(), 2)]);
        gauge.set(7.0);
        gauge.decrement(8.0);
        assert_eq!(recorder.cell(Kind::Gauge, &key("open")).read().cast_signed(), -1);
    }

    #[test]
    fn a_cell_has_a_cache_line_of_its_own() {
        assert_eq!((size_of::<Cell>(), align_of::<Cell>()), (64, 64));
    }

    #[test]
    fn counts_of_another_thread_are_all_seen_once_it_has_ended() {
        let (mut recorders, _page) = recorders(1);
        let recorder = recorders.remove(0);
        let cell = recorder.cell(Kind::Counter, &key("a"));
        std::thread::spawn(move || {
            let counter = recorder.register_counter(&key("a"), &METADATA);
            (0..10_000).for_each(|_| counter.increment(1));
        })
        .join()
        .expect("no panic");
        assert_eq!(cell.read(), 10_000);
    }
}
