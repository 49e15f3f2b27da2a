//! Chooses the home core of a pod. Pure: the caller supplies what each core carries.
//!
//! All of a pod's listeners, pools and connections live on its home core, so that its noise stays there. Not here:
//! moving a pod later, or spilling a hot one over several cores.

/// What one core carries when a pod has to be placed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Load {
    /// Pods whose home this core is.
    pub(crate) pods: usize,
    /// Those of them that belong to the same tenant as the pod to be placed.
    pub(crate) pods_of_tenant: usize,
}

/// The home core of a new pod: the one with the fewest pods of its own tenant among those with the fewest pods.
///
/// Fewest pods first, so that cores fill evenly; the tenant breaks ties, so that two pods of one tenant are not put
/// together while another core is as empty. The lowest index wins what is left, which makes placement reproducible.
///
/// # Panics
/// When there is no core: a daemon without cores does not start.
pub(crate) fn home(loads: &[Load]) -> usize {
    let (core, _) = loads
        .iter()
        .enumerate()
        .min_by_key(|(core, load)| (load.pods, load.pods_of_tenant, *core))
        .expect("a daemon has at least one core, checked at start");
    core
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(pods: usize, pods_of_tenant: usize) -> Load {
        Load { pods, pods_of_tenant }
    }

    #[test]
    fn a_pod_goes_to_the_emptiest_core_then_away_from_its_own_tenant_then_to_the_lowest() {
        for (loads, expected) in [
            (vec![load(0, 0)], 0),
            (vec![load(0, 0), load(0, 0)], 0),
            (vec![load(1, 0), load(0, 0)], 1),
            (vec![load(1, 1), load(1, 0)], 1),
            (vec![load(2, 0), load(1, 1)], 1),
            (vec![load(3, 1), load(2, 1), load(2, 0)], 2),
        ] {
            assert_eq!(home(&loads), expected, "{loads:?}");
        }
    }
}
