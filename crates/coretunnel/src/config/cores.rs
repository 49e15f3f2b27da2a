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
pub(super) fn parse(text: &str) -> Result<Asked, String> {
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
        for cpu in first..=last {
            if !list.insert(cpu) {
                return Err(format!("CPU {cpu} is named twice: a list is of CPUs, each for one core"));
            }
        }
    }
    Ok(Asked::List(list))
}

/// No machine has a CPU beyond; keeps a typo from being a long list.
pub(super) const CPU_MAX: usize = 8_191;

/// The CPUs that were asked for.
pub(super) fn choose(asked: &Asked, limits: &CpuLimits, cpus: &Cpus) -> Result<Vec<usize>, String> {
    let usable = cpus.usable.len();
    let count = match asked {
        Asked::List(list) => {
            let missing: Vec<usize> = list.iter().filter(|cpu| !cpus.usable.contains(cpu)).copied().collect();
            if missing.is_empty() {
                return Ok(list.iter().copied().collect());
            }
            return Err(format!(
                "this process may not use CPU {}; it may use {}",
                ranges(&missing),
                ranges(&cpus.usable)
            ));
        }
        Asked::Count(0) => usable,
        Asked::Count(count) if *count > usable => {
            return Err(format!("this process may use {usable} CPUs ({})", ranges(&cpus.usable)));
        }
        Asked::Count(count) => *count,
        Asked::Percent(percent) => (counted(limits, cpus) * usize::from(*percent)).div_ceil(100),
    };
    Ok(first(count, cpus))
}

/// The CPUs where nothing was asked for: what the container is limited to, else a quarter of the machine, so that the
/// proxy leaves it to those it serves.
pub(super) fn by_default(limits: &CpuLimits, cpus: &Cpus) -> Vec<usize> {
    let requested = limits.resource_request.unwrap_or(0);
    match limits.resource_limit {
        Some(limit) => first(limit.max(requested), cpus),
        None => first(counted(limits, cpus).div_ceil(4).max(requested).max(2), cpus),
    }
}

/// The CPUs of which percentages and quarters are taken.
fn counted(limits: &CpuLimits, cpus: &Cpus) -> usize {
    let usable = cpus.usable.len();
    limits.resource_limit.or(limits.cpu_limit).unwrap_or(usable).clamp(1, usable)
}

fn first(count: usize, cpus: &Cpus) -> Vec<usize> {
    cpus.usable[..count.clamp(1, cpus.usable.len())].to_vec()
}

/// `0-3, 8`, of ascending numbers.
pub(crate) fn ranges(cpus: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for cpu in cpus {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == *cpu => *last = *cpu,
            _ => parts.push((*cpu, *cpu)),
        }
    }
    let part =
        |(first, last): &(usize, usize)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    parts.iter().map(part).collect::<Vec<_>>().join(", ")
}

/// A whole number.
fn whole(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| format!("{text:?} is no whole number"))
}

/// A Kubernetes quantity of CPUs (`2`, `1.5`, `500m`), rounded up.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be above 0 and small")]
pub(super) fn quantity(text: &str) -> Result<usize, String> {
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
            (Some("30%"), none, (0..5).collect()),
            (Some("50%"), limited, vec![0, 1]),
            (Some("1,4-6"), none, vec![1, 4, 5, 6]),
        ] {
            let chosen = match asked {
                Some(text) => choose(&parse(text).expect("good"), &limits, &cpus).expect("there"),
                None => by_default(&limits, &cpus),
            };
            assert_eq!(chosen, expected, "{asked:?} {limits:?}");
        }
    }

    #[test]
    fn a_small_machine_gets_no_more_cores_than_it_has() {
        let cpus = Cpus { usable: vec![3] };
        assert_eq!(by_default(&CpuLimits::default(), &cpus), [3]);
        assert!(choose(&Asked::Count(2), &CpuLimits::default(), &cpus).is_err());
        assert!(choose(&parse("0-1").expect("a list"), &CpuLimits::default(), &cpus).is_err());
    }

    #[test]
    fn neighbours_are_written_as_a_range() {
        for (cpus, expected) in [(&[][..], ""), (&[3], "3"), (&[0, 1], "0-1"), (&[0, 2, 3, 4, 9], "0, 2-4, 9")] {
            assert_eq!(ranges(cpus), expected);
        }
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
