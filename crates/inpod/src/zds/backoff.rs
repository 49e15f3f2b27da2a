//! How long to wait before the next connection to the CNI agent. Pure: the caller sleeps and supplies the draw.

use std::time::Duration;

/// The longest wait, whatever failed.
pub const WAIT_MAX: Duration = Duration::from_secs(15);

/// How a connection ended or did not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// `connect` failed: the agent is not there, or its queue is full.
    Connect,
    /// Connected, but the hello could not be sent.
    Hello,
    /// Lost after the hello: closed, unreadable, or an answer could not be sent.
    Lost,
}

/// The waits of one client, which outlive its connections.
#[derive(Clone, Debug)]
pub struct Backoff {
    connect: Duration,
    hello: Duration,
    /// `None` until a connection was lost before the agent had finished its snapshot.
    lost: Option<Duration>,
}

impl Backoff {
    /// Of a client that has not connected yet.
    pub fn new() -> Self {
        Self { connect: CONNECT_FIRST, hello: HELLO_FIRST, lost: None }
    }

    /// The connection stands and the hello was sent.
    pub fn on_connected(&mut self) {
        self.connect = CONNECT_FIRST;
    }

    /// The agent has sent its snapshot: it works, so the next trouble is a new one.
    pub fn on_ready(&mut self) {
        self.hello = HELLO_AFTER_READY;
        self.lost = None;
    }

    /// How long to wait now; `draw` spreads the waits that need it.
    ///
    /// A lost connection is made again at once, for the agent sends nothing new to a proxy it has lost. Only when
    /// connections are lost again and again without a snapshot in between does the wait grow, since that would
    /// otherwise be a busy loop over an agent that refuses us.
    pub fn wait(&mut self, failure: Failure, draw: u64) -> Duration {
        match failure {
            Failure::Connect => doubled(&mut self.connect),
            Failure::Hello => spread(doubled(&mut self.hello), draw),
            Failure::Lost => match &mut self.lost {
                Some(next) => spread(doubled(next), draw),
                None => {
                    self.lost = Some(CONNECT_FIRST);
                    Duration::ZERO
                }
            },
        }
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

const CONNECT_FIRST: Duration = Duration::from_millis(20);
const HELLO_FIRST: Duration = Duration::from_millis(500);
const HELLO_AFTER_READY: Duration = Duration::from_millis(5);

fn doubled(next: &mut Duration) -> Duration {
    let wait = *next;
    *next = (wait * 2).min(WAIT_MAX);
    wait
}

/// Up to a fifth more or less, but never more than the longest wait.
fn spread(wait: Duration, draw: u64) -> Duration {
    let fifth = wait / 5;
    let twice_fifth_ns = u64::try_from((fifth * 2).as_nanos()).expect("a few seconds fit");
    (wait - fifth + Duration::from_nanos(draw % (twice_fifth_ns + 1))).min(WAIT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connect_waits_double_from_20_ms_to_15_s_and_start_anew_once_connected() {
        let mut backoff = Backoff::new();
        let waits: Vec<_> = (0..12).map(|draw| backoff.wait(Failure::Connect, draw).as_millis()).collect();
        assert_eq!(waits, [20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240, 15000, 15000]);
        backoff.on_connected();
        assert_eq!(backoff.wait(Failure::Connect, 0), Duration::from_millis(20));
    }

    #[test]
    fn hello_waits_start_at_500_ms_and_after_readiness_at_5_ms() {
        let mut backoff = Backoff::new();
        // The draw that lands in the middle: a fifth of 500 ms above the lowest.
        assert_eq!(backoff.wait(Failure::Hello, 100_000_000), Duration::from_millis(500));
        assert_eq!(backoff.wait(Failure::Hello, 200_000_000), Duration::from_millis(1000));
        backoff.on_connected();
        assert_eq!(backoff.wait(Failure::Hello, 400_000_000), Duration::from_millis(2000), "connecting proves little");
        backoff.on_ready();
        assert_eq!(backoff.wait(Failure::Hello, 1_000_000), Duration::from_millis(5));
    }

    #[test]
    fn jitter_stays_within_a_fifth_and_reaches_both_ends() {
        let hello = |draw| Backoff::new().wait(Failure::Hello, draw);
        assert_eq!(hello(0), Duration::from_millis(400));
        assert_eq!(hello(200_000_000), Duration::from_millis(600));
        for draw in [1, 77, u64::MAX / 3, u64::MAX - 1, u64::MAX] {
            assert!((400..=600).contains(&hello(draw).as_millis()), "draw {draw}: {:?}", hello(draw));
        }
        let mut long = Backoff::new();
        for _ in 0..20 {
            long.wait(Failure::Hello, 0);
        }
        for draw in [0, 1, 5_999_999_999, u64::MAX] {
            assert!(long.wait(Failure::Hello, draw) <= WAIT_MAX, "draw {draw}");
        }
    }

    #[test]
    fn a_lost_connection_is_made_again_at_once_but_not_over_and_over() {
        let mut backoff = Backoff::new();
        backoff.on_ready();
        assert_eq!(backoff.wait(Failure::Lost, 0), Duration::ZERO);
        assert_eq!(backoff.wait(Failure::Lost, 4_000_000), Duration::from_millis(20));
        assert_eq!(backoff.wait(Failure::Lost, 8_000_000), Duration::from_millis(40));
        backoff.on_ready();
        assert_eq!(backoff.wait(Failure::Lost, 0), Duration::ZERO);
    }
}
