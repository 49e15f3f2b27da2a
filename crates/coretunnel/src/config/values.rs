//! How single values are written: durations, sizes, switches, addresses. Each reader says what is wrong with its text,
//! not whose text it is.

use std::{fmt::Display, net::SocketAddr, ops::RangeInclusive, str::FromStr, time::Duration};

/// What [`truth`] reads.
pub(super) const TRUTH: &str = "true or false";

/// A switch.
pub(super) fn truth(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err("neither true nor false".to_owned()),
    }
}

/// A duration such as `5s` or `1h30m`, within bounds.
pub(super) fn duration(text: &str, bounds: RangeInclusive<Duration>) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if bounds.contains(&duration) { Ok(duration) } else { Err("out of range".to_owned()) }
}

/// A whole number within bounds.
pub(super) fn number<T: FromStr + PartialOrd>(text: &str, bounds: RangeInclusive<T>) -> Result<T, String>
where
    T::Err: Display,
{
    let number = text.parse().map_err(|error: T::Err| error.to_string())?;
    if bounds.contains(&number) { Ok(number) } else { Err("out of range".to_owned()) }
}

/// An IP address and a port.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "no IP address with a port; IPv6 goes in brackets".to_owned())
}

/// A file that is named, not necessarily there.
pub(super) fn path(text: &str) -> Result<std::path::PathBuf, String> {
    if text.is_empty() || text.contains('\0') { Err("no path".to_owned()) } else { Ok(text.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_are_true_false_one_and_nought_in_any_case() {
        for (text, expected) in
            [("true", true), ("TRUE", true), ("1", true), ("false", false), ("False", false), ("0", false)]
        {
            assert_eq!(truth(text), Ok(expected), "{text}");
        }
        for bad in ["", "yes", "on", "2"] {
            assert!(truth(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_are_humane_and_bounded() {
        let bounds = Duration::from_secs(1)..=Duration::from_secs(3600);
        for (text, seconds) in [("5s", 5), ("1m30s", 90), ("1m 30s", 90), ("1h", 3600), ("1s", 1)] {
            assert_eq!(duration(text, bounds.clone()), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "5", "soon", "-5s", "999ms", "3601s", "99999999999999999999s", "584542046090y"] {
            assert!(duration(bad, bounds.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_keep_to_their_bounds() {
        assert_eq!(number("7", 7..=9_u32), Ok(7));
        for bad in ["", "6", "10", "-7", "7.0", "4294967303"] {
            assert!(number(bad, 7..=9_u32).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_have_a_port() {
        assert_eq!(address("[::]:15020"), Ok(SocketAddr::from(([0_u16; 8], 15020))));
        for bad in ["", "15020", ":15020", "localhost:1", "::1:1", "1.2.3.4", "1.2.3.4:65536"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
