//! Which CPUs the cores are pinned to. Pure: what the machine has, and what Kubernetes allows, come in.

use std::collections::BTreeSet;

/// The CPUs this process may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cpus {
    /// Their numbers, ascending.
    pub(crate) usable: Vec<usize>,
}

/// What Kubernetes says of this container, through ztunnel's variables.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CpuLimits {
    /// `limits.cpu` by the downward API; the node's CPUs when there is no limit.
    pub(crate) cpu_limit: Option<usize>,
    /// `resources.limits.cpu`, rounded up.
    pub(crate) resource_limit: Option<usize>,
    /// `resources.requests.cpu`, rounded up.
    pub(crate) resource_request: Option<usize>,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    /// So many; 0 is all.
    Count(usize),
    /// So many hundredths of the CPUs, rounded up.
    Percent(u8),
    /// These.
    List(BTreeSet<usize>),
}

/// Reads `2`, `0`, `25%`, `0,2-3`. A single number is a count; a list has a comma or a dash.
pub(crate) fn parse(text: &str) -> Result<Asked, String> {
    if let Some(percent) = text.strip_suffix('%') {
        return match percent.parse() {
            Ok(percent @ 1..=100) => Ok(Asked::Percent(percent)),
            _ => Err("a percentage is from 1% to 100%".to_owned()),
        };
    }
    if !text.contains([',', '-']) {
        return whole(text).map(Asked::Count);
    }
    let mut list = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (whole(first.trim())?, whole(last.trim())?);
        if first > last || last > CPU_MAX {
            return Err(format!("range {part} is empty or beyond CPU {CPU_MAX}"));
        }
        list.extend(first..=last);
    }
    Ok(Asked::List(list))
}

/// No machine has a CPU beyond; keeps a typo from being a long list.
const CPU_MAX: usize = 8_191;

/// The CPUs to pin to.
pub(crate) fn choose(asked: Option<&Asked>, limits: &CpuLimits, cpus: &Cpus) -> Result<Vec<usize>, String> {
    let usable = cpus.usable.len();
    let counted = limits.resource_limit.or(limits.cpu_limit).unwrap_or(usable).clamp(1, usable);
    let count = match asked {
        Some(Asked::List(list)) => {
            let missing: Vec<String> =
                list.iter().filter(|cpu| !cpus.usable.contains(cpu)).map(ToString::to_string).collect();
            if !missing.is_empty() {
                return Err(format!("this process may not use CPU {}; it may use {:?}", missing.join(", "), cpus.usable));
            }
            return Ok(list.iter().copied().collect());
        }
        Some(Asked::Count(0)) => usable,
        Some(Asked::Count(count)) if *count > usable => {
            return Err(format!("this process may use {usable} CPUs ({:?})", cpus.usable));
        }
        Some(Asked::Count(count)) => *count,
        Some(Asked::Percent(percent)) => (counted * usize::from(*percent)).div_ceil(100),
        None => match limits.resource_limit {
            Some(limit) => limit.max(limits.resource_request.unwrap_or(0)),
            None => counted.div_ceil(4).max(limits.resource_request.unwrap_or(0)).max(2),
        },
    };
    Ok(cpus.usable[..count.clamp(1, usable)].to_vec())
}

/// A whole number.
pub(crate) fn whole(text: &str) -> Result<usize, String> {
    text.parse().map_err(|error: std::num::ParseIntError| error.to_string())
}

/// A Kubernetes quantity of CPUs (`2`, `1.5`, `500m`), rounded up.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be above 0 and small")]
pub(crate) fn quantity(text: &str) -> Result<usize, String> {
    let (number, scale) = match text.strip_suffix('m') {
        Some(milli) => (milli, 1000.0),
        None => (text, 1.0),
    };
    let value = number.parse::<f64>().map_err(|error| error.to_string())? / scale;
    if !value.is_finite() || value <= 0.0 || value > CPU_MAX as f64 {
        return Err("out of range".to_owned());
    }
    Ok(value.ceil() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_chosen_from_what_is_asked_limited_and_there() {
        let cpus = Cpus { usable: (0..16).collect() };
        let none = CpuLimits::default();
        let limited = CpuLimits { resource_limit: Some(4), resource_request: Some(1), cpu_limit: Some(16) };
        for (asked, limits, expected) in [
            (None, none, vec![0, 1, 2, 3]),
            (None, limited, vec![0, 1, 2, 3]),
            (None, CpuLimits { resource_request: Some(6), ..none }, (0..6).collect()),
            (Some("0"), none, (0..16).collect()),
            (Some("3"), none, vec![0, 1, 2]),
            (Some("50%"), none, (0..8).collect()),
            (Some("1%"), none, vec![0]),
            (Some("50%"), limited, vec![0, 1]),
            (Some("1,4-6"), none, vec![1, 4, 5, 6]),
        ] {
            let asked = asked.map(|text| parse(text).expect("good"));
            assert_eq!(choose(asked.as_ref(), &limits, &cpus), Ok(expected), "{asked:?} {limits:?}");
        }
    }

    #[test]
    fn a_small_machine_gets_no_more_cores_than_it_has() {
        let cpus = Cpus { usable: vec![3] };
        assert_eq!(choose(None, &CpuLimits::default(), &cpus), Ok(vec![3]));
        assert!(choose(Some(&Asked::Count(2)), &CpuLimits::default(), &cpus).is_err());
        assert!(choose(Some(&parse("0-1").expect("a list")), &CpuLimits::default(), &cpus).is_err());
    }

    #[test]
    fn quantities_round_up() {
        for (text, expected) in [("2", 2), ("1.5", 2), ("500m", 1), ("2500m", 3)] {
            assert_eq!(quantity(text), Ok(expected), "{text}");
        }
        for bad in ["", "0", "-1", "m", "inf", "NaN", "1e300"] {
            assert!(quantity(bad).is_err(), "{bad}");
        }
    }
}
