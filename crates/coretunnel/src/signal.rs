//! The signals that end the process: the first starts a drain, a second SIGINT ends it at once.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listens for SIGTERM and SIGINT.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes over both signals.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The first signal, by name.
    pub(crate) async fn first(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// A further SIGINT. A second SIGTERM changes nothing: the drain has its deadline already.
    pub(crate) async fn interrupted(&mut self) {
        self.interrupt.recv().await;
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future, time::Duration};

    use rustix::process::{Signal as Number, getpid, kill_process};

    use super::*;

    async fn is_heard(listening: impl Future) -> bool {
        tokio::time::timeout(Duration::from_millis(200), listening).await.is_ok()
    }

    // One test, because signals are sent to the whole process.
    #[tokio::test]
    async fn either_signal_is_the_first_and_only_sigint_is_a_second() {
        let mut signals = Signals::listen().expect("nobody forbids it");
        for (number, name) in [(Number::INT, "SIGINT"), (Number::TERM, "SIGTERM")] {
            kill_process(getpid(), number).expect("it is us");
            assert_eq!(signals.first().await, name);
        }
        kill_process(getpid(), Number::TERM).expect("it is us");
        assert!(!is_heard(signals.interrupted()).await, "SIGTERM ended the drain");
        kill_process(getpid(), Number::INT).expect("it is us");
        assert!(is_heard(signals.interrupted()).await);
    }
}
