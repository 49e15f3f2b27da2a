//! Waiting for a condition of another process, with a deadline and a sentence about what was awaited. Not for ordering
//! within a test.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at. Conditions read files of `/proc` or a short list, so this costs nothing that a
/// measurement would see.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Polls `look` until it finds something, and returns that.
///
/// # Errors
/// After `patience`, naming `what`.
pub fn until_some<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            bail!("waited {patience:?} in vain for {what}");
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Polls `attempt` until it succeeds.
///
/// # Errors
/// After `patience`, naming `what` and the last attempt's error.
pub fn until_ok<T>(what: &str, patience: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let mut last = None;
    until_some(what, patience, || match attempt() {
        Ok(value) => Some(value),
        Err(error) => {
            last = Some(error);
            None
        }
    })
    .map_err(|timeout| match last.take() {
        Some(error) => error.context(timeout),
        None => timeout,
    })
}

/// Polls `condition` until it holds.
///
/// # Errors
/// After `patience`, naming `what`.
pub fn until(what: &str, patience: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    until_some(what, patience, || condition().then_some(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vain_wait_says_what_for_and_why() {
        let error =
            until_ok("the moon", Duration::from_millis(1), || -> Result<()> { bail!("it is day") }).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("the moon") && text.contains("it is day"), "{text}");
    }
}
