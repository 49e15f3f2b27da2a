//! The `traceparent` header: which trace a connection belongs to. Sampling is nobody's business here: flags are
//! written as 00 and ignored when read.

use std::fmt;

/// A trace and the span in it that caused this connection; neither is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traceparent {
    /// The trace.
    pub trace: u128,
    /// The parent span.
    pub parent: u64,
}

impl Traceparent {
    /// A new trace from three random numbers.
    pub fn from_draws([high, low, parent]: [u64; 3]) -> Self {
        let trace = (u128::from(high) << 64) | u128::from(low);
        // The all-zero ids mean "invalid" to every reader.
        Self { trace: trace.max(1), parent: parent.max(1) }
    }

    /// Reads a header value. Anything but the 55 characters of version 00's layout is no trace at all.
    pub fn parse(value: &str) -> Option<Self> {
        let bytes = value.as_bytes();
        if bytes.len() != LENGTH || [2, 35, 52].iter().any(|dash| bytes[*dash] != b'-') {
            return None;
        }
        let version = hex(&bytes[..2])?;
        let trace = hex(&bytes[3..35])?;
        let parent = hex(&bytes[36..52])?;
        let _flags = hex(&bytes[53..])?;
        if version == 0xff || trace == 0 || parent == 0 {
            return None;
        }
        Some(Self { trace, parent: u64::try_from(parent).expect("16 digits are 64 bits") })
    }
}

impl fmt::Display for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-00", self.trace, self.parent)
    }
}

const LENGTH: usize = 55;

/// Hexadecimal digits and nothing else: `from_str_radix` would take a sign.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |value, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some((value << 4) | u128::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-0123456789abcdef0123456789abcdef-fedcba9876543210-01";

    #[test]
    fn a_good_value_is_read_and_written_with_flags_zero() {
        let read = Traceparent::parse(GOOD).expect("good");
        assert_eq!(read.trace, 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        assert_eq!(read.parent, 0xfedc_ba98_7654_3210);
        assert_eq!(read.to_string(), "00-0123456789abcdef0123456789abcdef-fedcba9876543210-00");
    }

    #[test]
    fn a_crafted_value_is_no_trace() {
        let rows = [
            String::new(),
            GOOD[..54].into(),
            format!("{GOOD}0"),
            "0".repeat(55),
            "-".repeat(55),
            "\u{e9}".repeat(27) + "0",
            GOOD.replace('-', "_"),
            GOOD.replace("00-", "ff-"),
            GOOD.replace("00-0", "00-+"),
            GOOD.replace("0123456789abcdef0123456789abcdef", &"0".repeat(32)),
            GOOD.replace("fedcba9876543210", &"0".repeat(16)),
            GOOD.replace("-01", "-0x"),
        ];
        for row in rows {
            assert_eq!(Traceparent::parse(&row), None, "{row:?}");
        }
    }

    #[test]
    fn no_draw_makes_an_invalid_id() {
        for draws in [[0; 3], [u64::MAX; 3], [1, 0, 0], [0, 0, 1]] {
            let made = Traceparent::from_draws(draws);
            assert_eq!(Traceparent::parse(&made.to_string()), Some(made), "{draws:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(draws: [u64; 3]) {
            let made = Traceparent::from_draws(draws);
            prop_assert_eq!(Traceparent::parse(&made.to_string()), Some(made));
        }

        #[test]
        fn no_text_makes_reading_panic(text in "[0-9a-f\\-\u{e9}+]{50,56}") {
            let _ = Traceparent::parse(&text);
        }
    }
}
