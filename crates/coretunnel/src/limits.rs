//! Resource limits that the daemon raises for itself before anything else: soft limits are made for shells.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises soft limits to their hard ones; nothing is lost where it cannot. Returns what could not be raised.
pub(crate) fn raise() -> Vec<String> {
    // Every captured connection takes two descriptors, every core some locked memory.
    let resources =
        [("open files (RLIMIT_NOFILE)", Resource::Nofile), ("locked memory (RLIMIT_MEMLOCK)", Resource::Memlock)];
    let refused = |(what, resource): (&str, Resource)| {
        let Rlimit { current, maximum } = getrlimit(resource);
        let error = setrlimit(resource, Rlimit { current: maximum, maximum }).err()?;
        Some(format!("cannot raise the soft limit on {what} from {current:?} to {maximum:?}: {error}"))
    };
    resources.into_iter().filter_map(refused).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soft_limits_become_the_hard_ones() {
        assert_eq!(raise(), Vec::<String>::new());
        for resource in [Resource::Nofile, Resource::Memlock] {
            let limit = getrlimit(resource);
            assert_eq!(limit.current, limit.maximum);
        }
    }
}
